"""Fields made of fields. A combinator wraps the field, not the solver, so that every solver gets every combination.

    tempered(field, T)            p^(1/T)                                energy / T, score / T
    product(f, g, ...)            p_f p_g ... (product of experts)       sums of energies, of scores
    guided(field, weight, ...)    u + weight (c - u)                     classifier-free guidance; weight 1 means none

For *timed* fields tempering and products act on the score at each time. That gives a field one can integrate, but not,
in general, the noised version of the tempered or product density: `p_t^(1/T)` is not `(p^(1/T))_t`. Sampling is then
exact in the limit only with Langevin corrections at each time (Du, Durkan, Strudel, Tenenbaum, Dieleman, Fergus,
Sohl-Dickstein, Doucet, Grathwohl, "Reduce, reuse, recycle: compositional generation with energy-based diffusion models
and MCMC", 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from math import isfinite
from operator import add
from typing import Any

from torch import Tensor

from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.base import Base
from scoretk.fields.gradient import grad_energy
from scoretk.fields.paths import GaussianPath
from scoretk.fields.protocols import field_name, is_timed, offers
from scoretk.fields.resolve import gaussian_path, prediction, static
from scoretk.fields.wrappers import GaussianPathField

__all__ = ["guided", "product", "tempered"]


def tempered(field: object, temperature: float) -> object:
    """The field of `p^(1/T)`: energy and score divided by T.

    Arguments: field, static, or timed on a Gaussian path (then its scores are tempered; see the module's caveat);
    temperature T > 0. `tempered(field, 1)` is the field itself in other clothes.
    """
    if not (isinstance(temperature, int | float) and isfinite(temperature) and temperature > 0):
        raise InvalidArgument("temperature", temperature, "a positive finite number")
    if is_timed(field):
        return _ScaledTimed(field, 1 / temperature)
    return _Weighted((field,), 1 / temperature)


def product(*fields: object) -> object:
    """The product of experts: energies and scores add up.

    Arguments: fields, all static or all timed on one and the same Gaussian path, with one event shape.
    Raises: `InvalidArgument` where they do not fit together.
    """
    if not fields:
        raise InvalidArgument("fields", fields, "at least one field")
    shapes = {tuple(f.event_shape) for f in fields}  # type: ignore[attr-defined]
    if len(shapes) > 1:
        raise InvalidArgument("fields", shapes, "fields of one event shape")
    timed = {is_timed(f) for f in fields}
    if len(timed) > 1:
        raise InvalidArgument(
            "fields",
            fields,
            "all static or all timed",
            "Take field.at(t) of the timed ones, or leave time out",
        )
    if not timed.pop():
        return _Weighted(tuple(fields), 1.0)
    paths = {repr(gaussian_path(f, "product")) for f in fields}
    if len(paths) > 1:
        raise InvalidArgument("fields", paths, "timed fields on one Gaussian path")
    return _SumTimed(tuple(fields))


def guided(
    field: object, weight: float, unconditional: object | None = None, null: Mapping[str, Any] | None = None
) -> object:
    """Classifier-free guidance: `u + weight (c - u)` in the model's own prediction.

    As all predictions are affine in one another with the same x, guiding one is guiding all. `weight` 1 is no guidance,
    0 the unconditional model, above 1 stronger. (Ho, Salimans, "Classifier-free diffusion guidance", 2022, write
    weight = 1 + w.)

    Arguments: field, the conditional model c; unconditional, the model u, by default `field` itself with the condition
    values in `null` put in place of the caller's (a value a name; None leaves the keyword out).
    """
    if not (isinstance(weight, int | float) and isfinite(weight)):
        raise InvalidArgument("weight", weight, "a finite number")
    if (unconditional is None) == (null is None):
        raise InvalidArgument("unconditional, null", (unconditional, null), "exactly one of the two")
    other = field if unconditional is None else unconditional
    if is_timed(field) != is_timed(other):
        raise InvalidArgument("unconditional", other, "timed as the field is (or static as it is)")
    values = dict(null or {})
    if not is_timed(field):
        return _GuidedStatic(field, other, float(weight), values, unconditional is not None)
    ours, theirs = prediction(field), prediction(other)
    if ours != theirs:
        raise InvalidArgument(
            "unconditional", other, f"a model that predicts {ours[0]} on {ours[1]}, as the field does"
        )
    return _Guided(field, other, float(weight), values, unconditional is not None)


@dataclass(frozen=True, eq=False)
class _Weighted:
    """`weight * sum of energies`; scores likewise."""

    fields: tuple[Any, ...]
    weight: float

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.fields[0].event_shape)

    @property
    def provides(self) -> frozenset[str]:
        shared = frozenset.intersection(*(offers(f) for f in self.fields)) & {"energy", "score"}
        return shared | ({"score"} if all(offers(f) & {"energy", "score"} for f in self.fields) else frozenset())

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`weight sum_i E_i(x)`, `(batch,)`. Raises `MissingCapability` where one of the fields has no energy."""
        for f in self.fields:
            if "energy" not in offers(f):
                raise MissingCapability(field_name(f), offers(f), {"energy"}, "A score alone does not give an energy.")
        return self.weight * reduce(add, (f.energy(x, **cond) for f in self.fields))

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`weight sum_i score_i(x)`, like x."""
        return self.weight * reduce(add, (static(f).score(x, **cond) for f in self.fields))

    def energy_and_grad(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`E(x)` and `grad E(x)` for the price of one of each."""
        return grad_energy(lambda y: self.energy(y, **cond), x)


class _SamePath(GaussianPathField):
    """A timed combination: path, base and event shape are those of its first field."""

    first: Any

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.first.event_shape)

    @property
    def path(self) -> GaussianPath:  # type: ignore[override]
        return gaussian_path(self.first, "this combination")

    @property
    def base(self) -> Base:
        return self.first.base


@dataclass(frozen=True, eq=False)
class _ScaledTimed(_SamePath):
    first: Any
    weight: float
    predicts = "score"

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        return self.weight * self.first.score(x, t, **cond)


@dataclass(frozen=True, eq=False)
class _SumTimed(_SamePath):
    fields: tuple[Any, ...]
    predicts = "score"

    @property
    def first(self) -> Any:
        return self.fields[0]

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        return reduce(add, (f.score(x, t, **cond) for f in self.fields))


def _unconditioned(cond: dict[str, Tensor], null: dict[str, Any], apart: bool) -> dict[str, Any]:
    """What the unconditional model is called with: its own nothing, or the caller's values with the nulls put in."""
    if apart:
        return {}
    replaced = {name: null.get(name, value) for name, value in cond.items()} | null
    return {name: value for name, value in replaced.items() if value is not None}


@dataclass(frozen=True, eq=False)
class _Guided(_SamePath):
    first: Any
    other: Any
    weight: float
    null: dict[str, Any]
    apart: bool

    @property
    def predicts(self) -> str:  # type: ignore[override]
        return prediction(self.first)[0]

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        c = self.first.predict(x, t, **cond)
        u = self.other.predict(x, t, **_unconditioned(cond, self.null, self.apart))
        return u + self.weight * (c - u)


@dataclass(frozen=True, eq=False)
class _GuidedStatic:
    """Static guidance: energies, hence scores, combined as `u + weight (c - u)`: `p_u^(1 - w) p_c^w`."""

    first: Any
    other: Any
    weight: float
    null: dict[str, Any]
    apart: bool

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.first.event_shape)

    @property
    def provides(self) -> frozenset[str]:
        return offers(self.first) & offers(self.other) & {"energy", "score"}

    def _blend(self, name: str, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        c = getattr(static(self.first), name)(x, **cond)
        u = getattr(static(self.other), name)(x, **_unconditioned(cond, self.null, self.apart))
        return u + self.weight * (c - u)

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`E_u + weight (E_c - E_u)`, `(batch,)`."""
        return self._blend("energy", x, cond)

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`s_u + weight (s_c - s_u)`, like x."""
        return self._blend("score", x, cond)
