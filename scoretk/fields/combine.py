r"""Fields made of fields. A combinator wraps the field, not the solver, so that every solver gets every combination.

    tempered(field, T)            p^(1/T)                                energy / T, score / T
    product(f, g, ...)            p_f p_g ... (product of experts)       sums of energies, of scores
    mixture((f, g, ...), w)       w_f p_f + w_g p_g + ...                normalised densities; scores in the shares
                                                                         r_f = w_f p_f(x) / sum_i w_i p_i(x)
    guided(field, weight, ...)    u + weight (c - u)                     classifier-free guidance; weight 1 means none
    classifier_guided(field, l)   score + weight grad log p(y | x_t)     guidance by a classifier; weight 0 means none

All of them commute with time: `product(f, g).at(t)` is `product(f.at(t), g.at(t))`. But are the densities p_t so found the noised
density of t = 1? Noising is linear: of a *mixture* they are, and every solver in time samples it. Noising commutes with neither
powers nor products: `p_t^(1/T)` is not `(p^(1/T))_t`, `p_t q_t` is not `(p q)_t`, nor is guidance, `c_t^w u_t^(1-w)`. These are a
sequence of densities that ends in the right one, but that no flow or reverse SDE of their scores follows: however fine the grid,
the samples are of another density. For N(0, .5^2)^(1/2), of standard deviation .707, VP's flow ends at 13.8: so it is refused for
powers and products (`wrapped.check_flow`), and for guidance, where it is common practice, it is not. Langevin corrections at each
time make it right (Du et al.):

    ReverseSDE("ancestral", corrector=k), AnnealedLangevin    scores only; biased by the step size, for which a product of n
                                                              experts at a level is up to n times as curved as one
    MALA or HMC on `field.at(t)`, from one t to the next      exact for p_t; where each `f.at(t)` has an energy

Powers and products start from the power or product of the normal bases. Where the weights of the scores do not add up to one the
"denoiser" `(x + sigma^2 score) / alpha` is no mean of data, and infinite at alpha = 0: begin the grid of such a path later.

References: Du, Durkan, Strudel, Tenenbaum, Dieleman, Fergus, Sohl-Dickstein, Doucet, Grathwohl, "Reduce, reuse, recycle:
compositional generation with energy-based diffusion models and MCMC" (2023); Ho, Salimans, "Classifier-free diffusion guidance"
(2022); Dhariwal, Nichol, "Diffusion models beat GANs on image synthesis" (2021); Kynkaanniemi, Aittala, Karras, Laine, Aila,
Lehtinen, "Applying guidance in a limited interval improves sample and distribution quality in diffusion models" (2024); Lin, Liu,
Li, Yang, "Common diffusion noise schedules and sample steps are flawed" (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arguments import finite, names, positive
from scoretk.core.rows import across
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.alike import alike
from scoretk.fields.answers import check_rows
from scoretk.fields.base import Base, NormalBase, standard_normal
from scoretk.fields.conditions import Names, own, taken
from scoretk.fields.convert import check_time
from scoretk.fields.distribution import in_one_space
from scoretk.fields.gradient import grad_energy
from scoretk.fields.paths import GaussianPath
from scoretk.fields.posterior import _earliest, _informed, _split
from scoretk.fields.protocols import field_name, is_timed, offers
from scoretk.fields.resolve import TimedField, gaussian_path, prediction, static
from scoretk.fields.wrapped import Kind, Wrapped, shared_map
from scoretk.fields.wrappers import GaussianPathField

__all__ = ["classifier_guided", "guided", "mixture", "product", "tempered"]

Interval = tuple[float, float]


def tempered(field: object, temperature: float) -> object:
    """The field of `p^(1/T)`: energy and score divided by T.

    Arguments: field, static, or timed on a Gaussian path (then its scores are tempered; see the module's caveat);
    temperature T > 0. `tempered(field, 1)` is the field itself in other clothes.
    """
    temperature = positive("temperature", temperature)
    (field,) = in_one_space((field,))
    _fitting("field", (field,), "tempered")
    space = shared_map("field", (field,))
    if space is not None:
        return space.around(tempered(space.field, temperature))
    return _PoweredTimed((field,), temperature) if is_timed(field) else _Powered((field,), temperature)


def product(*fields: object) -> object:
    """The product of experts: energies and scores add up.

    Arguments: fields, all static or all timed on one and the same Gaussian path (see the module's caveat), with one event shape.
    Raises: `InvalidArgument` where they do not fit together.
    """
    fields = in_one_space(fields)
    if _fitting("fields", fields, "product"):
        return _PoweredTimed(fields, 1.0)
    space = shared_map("fields", fields)
    if space is not None:
        return space.around(product(*(f.field for f in fields)))  # type: ignore[attr-defined]
    return _Powered(fields, 1.0)


def mixture(fields: Sequence[object], weights: Sequence[float], log_partition: Sequence[float] | None = None) -> object:
    """The mixture `sum_i w_i p_i`: densities add up, and scores and denoisers in the shares `w_i p_i(x) / sum_j w_j p_j(x)`.

    Shares compare densities, so that each must be normalised: energies known up to a constant do not mix, nor do scores.

    Arguments:
        fields: all static, each with `log_prob`; or all timed on one and the same Gaussian path, each with `log_prob` in its
            `at(t)`, and then the result is the exactly noised mixture. One event shape.
        weights: w, positive; normalised here.
        log_partition: for static fields with an energy E_i instead, the `log Z_i` of `p_i = exp(-E_i) / Z_i`, such as
            `scoretk.log_partition` estimates; an error in it shifts its component's weight by as much.
    Raises: `InvalidArgument`; `MissingCapability` for a component without a normalised density.
    """
    if isinstance(fields, Sequence) and not isinstance(fields, str):
        fields = in_one_space(fields, all_alike=True)
    timed, members = _fitting("fields", fields, "mixture"), tuple(fields)
    space = shared_map("fields", members)
    if space is not None:
        return space.around(mixture([f.field for f in members], weights, log_partition))
    shares = [positive("weights", w) for w in _numbers("weights", weights, len(members))]
    logs = tuple(math.log(w / math.fsum(shares)) for w in shares)
    if timed:
        if log_partition is not None:
            raise InvalidArgument("log_partition", log_partition, "None for timed fields, whose constants vary with t")
        for f in members:
            _demand(f, f.at(0.5), "log_prob", "at(t)")
        return _MixtureTimed(members, logs)
    if log_partition is None:
        for f in members:
            _demand(f, f, "log_prob", "the field")
        return _Mixture(members, logs)
    constants = tuple(finite("log_partition", v) for v in _numbers("log_partition", log_partition, len(members)))
    for f in members:
        _demand(f, f, "energy", "the field")
    return _Mixture(members, logs, constants)


def guided(
    field: object,
    weight: float,
    unconditional: object | None = None,
    null: Mapping[str, Any] | None = None,
    *,
    interval: Interval | None = None,
    rescale: float = 0.0,
) -> object:
    """Classifier-free guidance: `g = u + weight (c - u)` in the model's own prediction.

    As all predictions are affine in one another with the same x, guiding one is guiding all. `weight` 1 is no guidance,
    0 the unconditional model, above 1 stronger. (Ho and Salimans write weight = 1 + w.)

    Arguments:
        field: the conditional model c.
        weight: any finite number.
        unconditional: the model u; by default `field` itself with the condition values in `null` put in place of the caller's
            (a value a name; None leaves the keyword out). At most one of the two is given; with neither the field's own
            `null` serves, where it has one.
        interval: `(low, high)`, the noise levels `low < sigma/alpha <= high` at which to guide; at others c alone is asked
            (Kynkaanniemi et al.). Timed fields only.
        rescale: phi in [0, 1], the part in which g is brought back to the standard deviation of c over the entries of its
            sample, `g (1 - phi + phi std(c) / std(g))` (Lin et al.), against the saturation of large weights. Timed fields of at
            least two entries only; here it does matter what the model predicts.
    Raises: `InvalidArgument`.
    """
    finite("weight", weight)
    if unconditional is None and null is None:
        null = getattr(field, "null", None)
    if (unconditional is None) == (null is None):
        raise InvalidArgument(
            "unconditional, null", (unconditional, null), "exactly one of the two, or a field with a `null` of its own"
        )
    field, other = in_one_space((field, field if unconditional is None else unconditional))
    for name, one in (("field", field), ("unconditional", other)):
        if isinstance(one, type) or not hasattr(one, "event_shape"):
            raise InvalidArgument(name, one, "a field")
    if is_timed(field) != is_timed(other):
        raise InvalidArgument("unconditional", other, "timed as the field is (or static as it is)")
    if tuple(field.event_shape) != tuple(other.event_shape):  # type: ignore[attr-defined]
        raise InvalidArgument("unconditional", other, f"the field's event shape {tuple(field.event_shape)}")  # type: ignore[attr-defined]
    if not 0 <= finite("rescale", rescale) <= 1:
        raise InvalidArgument("rescale", rescale, "a number in [0, 1]")
    values, apart = _null(null), unconditional is not None
    if not is_timed(field):
        if interval is not None or rescale:
            raise InvalidArgument("interval, rescale", (interval, rescale), "None and 0 for a static field")
        space = shared_map("unconditional", (field, other))
        if space is None:
            return _GuidedStatic(field, other, float(weight), values, apart)
        pair = (space.field, other.field if apart else None)
        return space.around(guided(pair[0], weight, pair[1], None if apart else values))
    gaussian_path(field, "guidance")
    ours, theirs = prediction(field), prediction(other)
    if not alike(ours, theirs):
        raise InvalidArgument(
            "unconditional", theirs, f"a model that predicts {ours[0]} on the field's path, {type(ours[1]).__name__}"
        )
    if rescale and math.prod(field.event_shape) < 2:  # type: ignore[attr-defined]
        raise InvalidArgument("rescale", rescale, "0 for an event of one entry, which has no standard deviation")
    return _Guided(field, other, float(weight), values, apart, _interval(interval), float(rescale))


def classifier_guided(
    field: object,
    log_prob: Callable[..., Tensor],
    weight: float = 1.0,
    *,
    measured: str | Iterable[str] = (),
    interval: Interval | None = None,
) -> object:
    """Classifier guidance: `score + weight grad log p(y | x_t)`. With weight 1 Bayes' rule: exact for an exact classifier.

    Another weight is the caveat's power `p(y | x_t)^weight`. What classifies clean data only is a likelihood: `posterior`.

    Arguments:
        field: timed, on a Gaussian path.
        log_prob: called as `log_prob(x, t, **cond)`, x noisy and t of shape `(batch,)` in the dtype of x; gives
            `log p(y | x_t = x)` of the y wanted, `(batch,)`, up to a constant, differentiable in x.
        weight: any finite number.
        measured: the names of the condition values that `log_prob` takes; all others go to the field alone.
        interval: as in `guided`; at other levels the field alone is asked.
    Raises: `InvalidArgument`; `MissingCapability` for a field without a Gaussian path.
    """
    if not is_timed(field):
        raise InvalidArgument("field", field, "a timed field", "For a static one: posterior(field, log_likelihood)")
    if not callable(log_prob):
        raise InvalidArgument("log_prob", log_prob, "a callable log_prob(x, t) -> (batch,)")
    taken = names("measured", measured)
    gaussian_path(field, "classifier guidance")
    return _Classified(field, log_prob, finite("weight", weight), taken, _interval(interval))


def _fitting(argument: str, fields: Sequence[Any], purpose: str) -> bool:
    """Whether the fields are timed. Raises `InvalidArgument` unless they are fields that fit together."""
    if not isinstance(fields, Sequence) or isinstance(fields, str) or not fields:
        raise InvalidArgument(argument, fields, "at least one field")
    for f in fields:
        if isinstance(f, type) or not hasattr(f, "event_shape"):
            raise InvalidArgument(argument, f, "a field", "Such as scoretk.Energy(fn, event_shape)")
    shapes = {tuple(f.event_shape) for f in fields}
    if len(shapes) > 1:
        raise InvalidArgument(argument, shapes, "fields of one event shape")
    timed = {is_timed(f) for f in fields}
    if len(timed) > 1:
        hint = "Take field.at(t) of the timed ones, or leave time out"
        raise InvalidArgument(argument, fields, "all static or all timed", hint)
    if not timed.pop():
        return False
    paths = [gaussian_path(f, purpose) for f in fields]
    if not all(alike(paths[0], path) for path in paths[1:]):
        raise InvalidArgument(argument, paths, "timed fields on one Gaussian path")
    return True


def _null(values: Any) -> dict[str, Any]:
    """Condition values that stand for none, by name. Raises `InvalidArgument` where one could be no condition."""
    if not isinstance(values, Mapping | None) or not all(isinstance(name, str) for name in values or {}):
        raise InvalidArgument("null", values, "a mapping of names to condition values, None to leave one out")
    for name, value in (values or {}).items():
        try:
            torch.as_tensor(0 if value is None else value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidArgument(f"null[{name!r}]", value, "a number, a tensor, or None", str(error)) from error
    return dict(values or {})


def _numbers(name: str, values: Any, n: int) -> list[Any]:
    listed = values.tolist() if isinstance(values, Tensor) else values
    if not isinstance(listed, Sequence) or isinstance(listed, str) or len(listed) != n:
        raise InvalidArgument(name, values, f"{n} numbers, one a field")
    return list(listed)


def _demand(field: Any, asked: Any, what: str, where: str) -> None:
    if what not in offers(asked):
        raise MissingCapability(
            field_name(field), offers(asked), {what},
            f"A mixture compares normalised densities: {where} needs {what}. For static energies give log_partition; without "
            "densities draw from each field the share of the samples that is its weight, which is exact",
        )  # fmt: skip


def _interval(value: Any) -> Interval | None:
    if value is None:
        return None
    try:
        low, high = (float(v) for v in value)
    except (TypeError, ValueError) as error:
        raise InvalidArgument("interval", value, "None or noise levels (low, high)") from error
    if not 0 <= low < high:
        raise InvalidArgument("interval", value, "noise levels (low, high) with 0 <= low < high")
    return low, high


class _Members(Wrapped):
    """A combination of fields, each of which is told the conditions that it takes."""

    fields: tuple[Any, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        takes: tuple[Names, ...] = tuple(map(taken, self.fields))  # here, as the compiler reads no signatures
        object.__setattr__(self, "takes", takes)

    @property
    def inner(self) -> tuple[Any, ...]:
        return self.fields

    def told(self, cond: dict[str, Tensor]) -> Iterable[tuple[Any, dict[str, Tensor]]]:
        """Each field with its conditions."""
        return zip(self.fields, own(self.takes, cond), strict=True)  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class _Powered(_Members):
    """`weight * sum of energies`, weight 1 / T; scores likewise."""

    fields: tuple[Any, ...]
    temperature: float

    kind = Kind.POWER

    @property
    def weight(self) -> float:
        """`1 / T`."""
        return 1 / self.temperature

    @property
    def computed(self) -> frozenset[str]:
        shared = frozenset.intersection(*(offers(f) for f in self.fields)) & {"energy", "score"}
        return shared | ({"score"} if all(offers(f) & {"energy", "score"} for f in self.fields) else frozenset())

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`weight sum_i E_i(x)`, `(batch,)`. Raises `MissingCapability` where one of the fields has no energy."""
        if "energy" not in self.provides:
            f = next(f for f in self.fields if "energy" not in offers(f))
            raise MissingCapability(field_name(f), offers(f), {"energy"}, "A score alone does not give an energy.")
        return self.weight * reduce(add, (f.energy(x, **own) for f, own in self.told(cond)))

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`weight sum_i score_i(x)`, like x."""
        return self.weight * reduce(add, (static(f).score(x, **own) for f, own in self.told(cond)))

    def energy_and_grad(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`E(x)` and `grad E(x)` for the price of one of each."""
        return grad_energy(lambda y: self.energy(y, **cond), x)


@dataclass(frozen=True, eq=False)
class _Mixture(_Members):
    """`sum_i w_i p_i`, `p_i` of log density `log_prob`, or `-E_i - log Z_i` where the constants are given."""

    fields: tuple[Any, ...]
    log_weights: tuple[float, ...]
    log_partition: tuple[float, ...] | None = None

    kind = Kind.MIXTURE
    computed = frozenset({"energy", "score", "log_prob"})

    def joint(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`log(w_i p_i(x))`, `(batch, fields)`. Where one is NaN, as outside a support, and not all are, its density is 0."""
        if self.log_partition is None:
            logs = [f.log_prob(x, **own) for f, own in self.told(cond)]
        else:
            logs = [-f.energy(x, **own) - z for (f, own), z in zip(self.told(cond), self.log_partition, strict=True)]
        joint = torch.stack([p + w for p, w in zip(logs, self.log_weights, strict=True)], 1)
        absent = joint.isnan()
        return torch.where(absent & ~absent.all(1, keepdim=True), -torch.inf, joint)

    def log_prob(self, x: Tensor, **cond: Tensor) -> Tensor:
        """Normalised log density, `(batch,)`."""
        return torch.logsumexp(self.joint(x, **cond), 1)

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`-log p(x)`, `(batch,)`."""
        return -self.log_prob(x, **cond)

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`sum_i r_i score_i(x)`, like x."""
        return -self.energy_and_grad(x, **cond)[1]

    def energy_and_grad(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`-log p(x)` and its gradient."""
        joint = self.joint(x, **cond)
        return -torch.logsumexp(joint, 1), -_shared(joint, [self._score(f, x, own) for f, own in self.told(cond)])

    def _score(self, field: Any, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        if offers(field) & {"energy", "score"}:
            return static(field).score(x, **cond)
        return -grad_energy(lambda y: -field.log_prob(y, **cond), x)[1]


def _shared(joint: Tensor, values: Iterable[Tensor]) -> Tensor:
    """`sum_i r_i v_i`, the shares `r = softmax(joint)`, like v; what has no share may be infinite."""
    shares = torch.softmax(joint, 1).unbind(1)
    return reduce(
        add, (torch.where(across(r, v) == 0, 0, across(r, v) * v) for r, v in zip(shares, values, strict=True))
    )


class _SamePath(Wrapped, GaussianPathField):
    """A timed combination: the path is that of its fields."""

    @property
    def computed(self) -> frozenset[str]:
        return GaussianPathField.provides - {"base"}

    @property
    def path(self) -> GaussianPath:  # type: ignore[override]
        return gaussian_path(self.inner[0], "this combination")


class _OfMany(_Members, _SamePath):
    """A timed combination of several fields alike."""

    def views(self, cond: dict[str, Tensor]) -> list[TimedField]:
        """The fields as solvers see them, the condition rows bound."""
        return [TimedField(f, gaussian_path(f, "this combination"), own) for f, own in self.told(cond)]


@dataclass(frozen=True, eq=False)
class _PoweredTimed(_OfMany):
    """`weight * sum of scores` at each time, weight 1 / T."""

    fields: tuple[Any, ...]
    temperature: float

    kind = Kind.POWER
    predicts = "score"

    @property
    def flows(self) -> bool:
        """Only as the field itself in other clothes."""
        return self.weight == 1 and len(self.fields) == 1

    @property
    def weight(self) -> float:
        """`1 / T`."""
        return 1 / self.temperature

    @property
    def base(self) -> Base | None:
        """The power of the product of the bases: of N(0, s_i^2) it is N(0, 1 / (weight sum_i 1 / s_i^2)); of others None."""
        bases: list[Any] = [getattr(f, "base", None) for f in self.fields]
        if self.weight == 1 and len(bases) == 1:
            return bases[0]
        if not all(isinstance(b, NormalBase) for b in bases):
            return None
        return standard_normal(self.event_shape, (self.weight * sum(b.std**-2 for b in bases)) ** -0.5)

    @property
    def computed(self) -> frozenset[str]:
        return super().computed | (frozenset() if self.base is None else frozenset({"base"}))

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """`weight sum_i score_i(x, t)`, like x."""
        return self.weight * reduce(add, (_score_at(f, x, t) for f in self.views(cond)))

    def at(self, t: float | Tensor) -> _Powered:  # type: ignore[override]
        """The static combination of the fields at time t, with an energy where they have one."""
        return _Powered(tuple(f.at(t) for f in self.fields), self.temperature)


@dataclass(frozen=True, eq=False)
class _MixtureTimed(_OfMany):
    """The noised mixture: denoisers in the shares of the noised densities."""

    fields: tuple[Any, ...]
    log_weights: tuple[float, ...]

    kind = Kind.MIXTURE
    predicts = "data"

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """`sum_i r_i D_i(x, t)`, like x."""
        return _shared(self.at(t).joint(x, **cond), [f.denoise(x, t) for f in self.views(cond)])

    def score(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """`sum_i r_i score_i(x, t)`, like x: also at sigma = 0 where the fields' own are."""
        return self.at(t).score(x, **cond)

    def log_prob_at(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """`log p_t(x)`, `(batch,)`."""
        return self.at(t).log_prob(x, **cond)

    def at(self, t: float | Tensor) -> _Mixture:  # type: ignore[override]
        """The static mixture of the fields at time t, normalised."""
        return _Mixture(tuple(f.at(t) for f in self.fields), self.log_weights)


def _score_at(field: TimedField, x: Tensor, t: float | Tensor) -> Tensor:
    own = getattr(field.native, "score", None)  # where it is exact at sigma = 0, and a conversion would not be
    return field.score(x, t) if own is None else own(x, t, **field.cond)


def _unconditioned(x: Tensor, cond: dict[str, Tensor], null: dict[str, Any], apart: bool) -> dict[str, Any]:
    """What the unconditional model is called with: its own nothing, or the caller's values with the nulls put in, as rows."""
    if apart:
        return {}
    kept = {name: value for name, value in cond.items() if name not in null}
    return kept | {n: _null_rows(n, v, cond.get(n), x) for n, v in null.items() if v is not None}


def _null_rows(name: str, value: Any, given: Tensor | None, x: Tensor) -> Tensor:
    """A null as one value a row of x: in shape, dtype and device as what it stands in for, where that is given.

    Without it, a tensor that has a row for each of x is taken as it is, and a floating number is of the dtype of x.
    """
    own = torch.as_tensor(value)
    if given is None:
        dtype = own.dtype if isinstance(value, Tensor) or not own.is_floating_point() else x.dtype
        own = own.to(x.device, dtype)
        return own if own.ndim and len(own) == len(x) else own.expand(len(x), *own.shape)
    if own.dtype != given.dtype and not given.is_floating_point():
        whole = own.to(given.dtype)
        if not torch.equal(whole.to(own.dtype), own):
            raise InvalidArgument(
                f"null[{name!r}]", value, f"a value that {given.dtype} holds, as the condition is of that"
            )
        own = whole
    try:
        return own.to(given.device, given.dtype).expand(given.shape)
    except RuntimeError as error:
        shape = f"a number, or shape {tuple(given.shape[1:])} as a row of the condition"
        raise InvalidArgument(f"null[{name!r}]", value, shape) from error


class _Steered(_SamePath):
    """Guidance in its interval of noise levels, the first field alone elsewhere. A subclass gives `steered`."""

    interval: Interval | None

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """The guided prediction, like x."""
        check_time(t, x)
        if self.interval is None:
            return self.steered(x, t, cond)
        low, high = self.interval
        exact = torch.as_tensor(t, dtype=torch.float64)
        level = self.path.sigma(exact) / self.path.alpha(exact)
        inside = (low < level) & (level <= high)
        if not isinstance(t, Tensor):
            return self.steered(x, t, cond) if bool(inside) else self.plain(x, t, cond)
        return torch.where(across(inside.to(x.device), x), self.steered(x, t, cond), self.plain(x, t, cond))

    def plain(self, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The prediction without guidance, like x."""
        raise NotImplementedError

    def steered(self, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The prediction with guidance, like x."""
        raise NotImplementedError


class _Blend(Wrapped):
    """What guided fields share: the two fields, and what the second is told in place of the condition."""

    first: Any
    other: Any
    nulls: dict[str, Any]
    apart: bool

    kind = Kind.BLEND

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.first, self.other) if self.apart else (self.first,)

    @property
    def null(self) -> Any:
        """What stands for no condition: what this guidance takes for it, or with a model of its own for that the first's."""
        return getattr(self.first, "null", None) if self.apart else self.nulls


@dataclass(frozen=True, eq=False)
class _Guided(_Blend, _Steered):
    first: Any
    other: Any
    weight: float
    nulls: dict[str, Any]
    apart: bool
    interval: Interval | None
    rescale: float

    @property
    def predicts(self) -> str:  # type: ignore[override]
        return prediction(self.first)[0]

    def plain(self, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]) -> Tensor:
        """c, like x."""
        return TimedField(self.first, self.path, cond).predict(x, t)

    def steered(self, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]) -> Tensor:
        """`u + weight (c - u)`, rescaled, like x."""
        c = self.plain(x, t, cond)
        u = TimedField(self.other, self.path, _unconditioned(x, cond, self.nulls, self.apart)).predict(x, t)
        g = u + self.weight * (c - u)
        if not self.rescale:
            return g
        ours, theirs = (value.flatten(1).std(1) for value in (g, c))
        ratio = torch.where(ours > 0, theirs / ours, 1.0)  # a constant stays as it is
        return g * across(1 + self.rescale * (ratio - 1), g)

    def at(self, t: float | Tensor) -> Any:
        """The static field of time t: guided energies, where both have them and guidance is the plain one."""
        if self.interval is not None or self.rescale:
            return super().at(t)
        return _GuidedStatic(self.first.at(t), self.other.at(t), self.weight, self.nulls, self.apart)


@dataclass(frozen=True, eq=False)
class _Classified(_Steered):
    """The first field's denoiser, shifted by `weight (sigma^2 / alpha) grad log p(y | x_t)`; near alpha = 0 as `posterior`."""

    first: Any
    classifier: Callable[..., Tensor]
    weight: float
    measured: frozenset[str]
    interval: Interval | None

    kind = Kind.TILT
    predicts = "data"

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.first,)

    def __post_init__(self) -> None:
        super().__post_init__()
        earliest = {dtype: _earliest(self.path, dtype) for dtype in (torch.float32, torch.float64)}
        object.__setattr__(self, "_earliest", earliest)

    def plain(self, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]) -> Tensor:
        """D, like x."""
        return TimedField(self.first, self.path, _split(cond, self.measured)[1]).denoise(x, t)

    def steered(self, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]) -> Tensor:
        """`D + weight (sigma^2 / alpha) grad log p(y | x_t)`, like x."""
        own, path = _split(cond, self.measured)[0], self.path
        x, t = _informed(path, x, t, self._earliest[x.dtype])  # type: ignore[attr-defined]
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        hint = "A classifier gives one number a row: the log probability of the class wanted"
        slope = -grad_energy(
            lambda z: -check_rows("log_prob", self.classifier(z, times, **own), z.shape[:1], hint).to(z.dtype), x
        )[1]
        exact = torch.as_tensor(t, dtype=torch.float64)
        gain = (self.weight * path.sigma(exact) ** 2 / path.alpha(exact)).to(x)
        return self.plain(x, t, cond) + across(gain, x) * slope


@dataclass(frozen=True, eq=False)
class _GuidedStatic(_Blend):
    """Static guidance: energies, hence scores, combined as `u + weight (c - u)`: `p_u^(1 - w) p_c^w`."""

    first: Any
    other: Any
    weight: float
    nulls: dict[str, Any]
    apart: bool

    @property
    def computed(self) -> frozenset[str]:
        return offers(self.first) & offers(self.other) & {"energy", "score"}

    def _blend(self, name: str, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        c = getattr(static(self.first), name)(x, **cond)
        u = getattr(static(self.other), name)(x, **_unconditioned(x, cond, self.nulls, self.apart))
        return u + self.weight * (c - u)

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`E_u + weight (E_c - E_u)`, `(batch,)`."""
        return self._blend("energy", x, cond)

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`s_u + weight (s_c - s_u)`, like x."""
        return self._blend("score", x, cond)
