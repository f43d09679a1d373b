"""Normalizing flows of zuko, nflows, normflows and FrEIA as fields.

A flow is a bijection f from data to noise with a base law on the noise:

    log p(x | c) = log p_base(f(x; c)) + log |det df/dx|
    x = f^-1(z; c),  z ~ p_base

Density and score are the flow's own. Its samples are made from this package's noise, so that chain
17 draws the same x anywhere; that needs a base that is a known transform of normals or uniforms.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch import distributions as td

from scoretk.adapters.flow_supports import (
    Support,
    flat_axis,
    nflows_support,
    normflows_support,
    zuko_support,
)
from scoretk.adapters.owned import generators_kept
from scoretk.core.anatomy import left_as_found, modules_of, state_like
from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.core.keywords import explained
from scoretk.core.noise import Noise
from scoretk.core.rows import row_sum
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.answers import check_asked
from scoretk.fields.constrained import Constrained, constrained
from scoretk.fields.distribution import draw_from, explicit
from scoretk.fields.foreign import adapter_of, answered, no_field, owners, within
from scoretk.fields.freelaws import unvalidated
from scoretk.fields.gradient import grad_energy
from scoretk.fields.protocols import NoiseSource, drawn
from scoretk.fields.supports import Bijection

__all__ = ["FlowField", "from_flow"]

Cond = dict[str, Tensor]
_Found = TypeVar("_Found")

LOST = 0.05
"""How far from z, in units of 1 + |z|, f(f^-1(z)) may be for a draw: a few digits of an inverse."""
ASKED = 64
"""How many draws of a base are led to the data and back before a density is believed."""


class _Flow(Protocol):
    """What a library's flow is asked for."""

    @property
    def flow(self) -> Any:
        """The library's own."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the conditions that it may take."""

    def conditional(self, shape: tuple[int, ...]) -> bool:
        """Whether it has to be given its conditions."""

    def shape(self) -> tuple[int, ...]:
        """The event shape; raises anything where the flow does not say."""

    def support(self, shape: tuple[int, ...]) -> Support | None:
        """Where x lives, as the flow's parts say; None for all of R^d, or where they do not."""

    def some_conditions(self, rows: int) -> Cond | None:
        """Conditions to ask it with, which it has to be given; None where it does not say their shape."""

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        """`log p(x | c)`, `(batch,)`."""

    @property
    def discrete(self) -> bool:
        """Whether its base is a law of counts or classes."""

    @property
    def explicit(self) -> bool:
        """Whether its base is a known transform of the noise."""

    def base(self, noise: NoiseSource, cond: Cond) -> Tensor:
        """Draws of the base, `(chains, ...)`."""

    def inverse(self, z: Tensor, cond: Cond) -> Tensor:
        """`f^-1(z; c)`, `(chains, *event_shape)`."""

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        """`f(x; c)`, like z."""

    def gap(self, z: Tensor, other: Tensor) -> Tensor:
        """How far two noises are apart, like z."""


@dataclass(frozen=True, eq=False)
class FlowField:
    """The static field of a normalizing flow; made by `from_flow`.

    Attributes:
        flow: The flow, as its library's adapter asks it.
        event_shape: The shape of one x.
        provides: Energy, score and `log_prob`; `draw` where the base is a known transform of noise.
        conditional: Whether it has to be given conditions.
        support: The bijection from free space onto where x lives; None for all of R^d.
        within: Where x lives, as a constraint; None for all of R^d.
    """

    flow: Any
    event_shape: tuple[int, ...]
    provides: frozenset[str]
    conditional: bool
    support: Bijection | None = None
    within: Support | None = None

    def __repr__(self) -> str:
        # a flow's own repr is long, and zuko's builds parts anew, from torch's global generator
        return f"from_flow({type(self.flow).__name__.lstrip('_')}, {self.event_shape})"

    def log_prob(self, x: Tensor, **cond: Tensor) -> Tensor:
        """The flow's own log density, `(batch, *event_shape) -> (batch,)`; `-inf` outside the
        support.
        """
        check_asked(x, self.event_shape)
        if len(x) == 0:
            return row_sum(x)
        given = self._checked(cond, len(x))
        inner = x if self.support is None else self.support.clamped(x)
        found = self._answered(lambda: self.flow.log_prob(inner, given), x, cond)
        if found.shape != x.shape[:1]:
            given_shapes = {name: tuple(value.shape) for name, value in cond.items()}
            raise InvalidArgument(
                "cond" if cond else "flow",
                given_shapes or f"log densities of shape {tuple(found.shape)}",
                f"one log density a row, ({len(x)},)",
                "A condition is a row a chain, (chains, width)" if cond else "",
            )
        log_prob: Tensor = found.to(x.dtype)
        if self.support is None:
            return log_prob
        inside = self.support.contains(x)
        inside = inside.flatten(1).all(1) if inside.ndim > 1 else inside
        return torch.where(inside, log_prob, -torch.inf)

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`-log p(x)`, `(batch,)`."""
        return -self.log_prob(x, **cond)

    def energy_and_grad(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`E(x)`, `(batch,)`, and its gradient, like x, in one evaluation."""
        return grad_energy(lambda y: self.energy(y, **cond), x)

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`grad log p(x)`, like x."""
        return -self.energy_and_grad(x, **cond)[1]

    def bare(self) -> FlowField:
        """The same field without its support, to be the inner field of a `Constrained`."""
        return replace(self, support=None, within=None)

    def over_support(self) -> Constrained:
        """The field in free space, of a flow that has a support."""
        return constrained(self.bare(), self.within)  # type: ignore[arg-type]

    def in_free_space(self) -> Any:
        """The field as solvers get it: in free space where it has a support."""
        return self if self.support is None else self.over_support()

    @drawn
    def draw(self, n: int, noise: NoiseSource, **cond: Tensor) -> Tensor:
        """Exact samples `f^-1(z)`, z from the noise: `field.draw(8, scoretk.Noise(0, 8))`.

        Args:
            n: How many.
            noise: Noise of as many chains, such as `scoretk.Noise(seed, n)`.
            cond: The flow's conditions by name, `(n, ...)`.

        Returns:
            `(n, *event_shape)`.

        Raises:
            MissingCapability: The base of the flow is no known transform of noise.
        """
        if "draw" not in self.provides:
            raise MissingCapability(
                type(self.flow).__name__.lstrip("_"),
                self.provides,
                {"draw"},
                "The flow's base is no known transform of normals or uniforms, or its numerical "
                "inverse does not lead back to all of the base: f(f^-1(z)) is not z. Sample the field "
                "with a kernel such as MALA, or give the flow a diagonal normal base",
            )
        given = self._checked(cond, n)
        shaped = torch.empty((n, *self.event_shape), device="meta")
        x, lost = self._answered(lambda: self._there_and_back(noise, given), shaped, cond)
        if bool(lost.any()):
            raise InvalidArgument(
                "flow",
                f"{int(lost.sum())} of {n} draws z of the base to which no x leads: f(f^-1(z)) is not z",
                "a flow whose numerical inverse reaches as far as its base",
                "Sample its density with a kernel such as MALA; the bounds, or the number of steps, "
                "of an inverse by bisection are the flow's to widen",
            )
        return x if self.support is None else self.support.clamped(x)

    def _there_and_back(self, noise: NoiseSource, cond: Cond) -> tuple[Tensor, Tensor]:
        """`x = f^-1(z)` of draws z of the base, and of which f(x) is not z, `(chains,)` of bool."""
        z = self.flow.base(noise, cond)
        x = self.flow.inverse(z, cond).reshape(len(z), *self.event_shape)
        return x, ~(_gaps(self, z, x, cond) <= LOST)  # (which NaN is)

    def _answered(self, ask: Callable[[], _Found], x: Tensor, cond: Cond) -> _Found:
        needless = cond and not self.conditional
        hint = "This flow answers without a condition: was it made to take one?" if needless else ""
        return answered(ask, self.flow.flow, x, cond, hint)

    def _checked(self, cond: Cond, rows: int) -> Cond:
        names = self.flow.names
        if cond.keys() != set(names) and (cond or self.conditional):
            wanted = f"the flow's conditions: {', '.join(names) or 'none'}"
            raise InvalidArgument("cond", ", ".join(sorted(cond)) or None, wanted)
        for name, value in cond.items():
            if len(value) != rows:  # one row would be that of all without a word
                raise InvalidArgument(f"cond[{name!r}]", value, f"a row for each of {rows} of x")
        return cond


@explained
def from_flow(
    flow: Any, event_shape: Sequence[int] | None = None, support: Any = None
) -> FlowField:
    """A field with energy, score, `log_prob` and `draw` from a normalizing flow.

    A conditional flow takes its condition by the name that its library has for it, one row a chain:
    "c" (zuko, FrEIA; of several in FrEIA "c0", "c1", ...), "context" (nflows, normflows), "y"
    (classes in normflows).

    Args:
        flow: A flow of zuko (or a distribution that it has made), nflows, normflows or FrEIA, whose
            networks lead from data to N(0, I).
        event_shape: The shape of one x, where the flow does not say.
        support: Where x lives, as a constraint is given to `scoretk.constrained`; None for what the
            flow's parts say, which for circular flows is one period.

    Returns:
        The field, of the user's space: outside the support the density is 0, and solvers work in
        free space. It has `draw` where the flow's base is a known transform of noise.

    Raises:
        InvalidArgument: It is no such flow, its event shape is not known, or its density does not
            fall off where x is said to live.
    """
    if isinstance(flow, partial) and adapter_of(flow) == "from_flow":
        raise InvalidArgument(
            "flow",
            type(flow),
            "the flow itself",
            "What it is bound to is a condition: scoretk.from_flow(flow), and cond={name: rows}",
        )
    flow = within(flow)
    kind = next((_KINDS[owner] for owner in owners(flow) if owner in _KINDS), None)
    if kind is None:
        raise no_field("flow", flow, "a flow of zuko, nflows, normflows or FrEIA")
    with _copy_to_ask(flow) as copied, generators_kept():  # a layer may draw, and is refused then
        field = _field(kind(copied), event_shape, support)
    return replace(field, flow=kind(flow))


def _field(law: _Flow, event_shape: Sequence[int] | None, support: Any) -> FlowField:
    """The field of a flow, which is asked what it does not say."""
    if law.discrete:
        raise InvalidArgument(
            "flow",
            type(law.flow),
            "a flow whose base has a density",
            "Its base is a law of counts or classes: what a flow makes of it has probabilities, and no "
            "density to sample by",
        )
    if event_shape is None:
        try:
            event_shape = law.shape()
        except Exception as error:  # whatever a flow of unknown build raises
            raise InvalidArgument(
                "event_shape",
                None,
                f"the shape of one x, which this {type(law.flow).__name__} does not say",
                "scoretk.from_flow(flow, event_shape=(2,)), of two numbers, say: its base does not tell "
                "it, or only with a condition",
            ) from error
    shape = as_event_shape(event_shape)
    provides = {"energy", "score", "log_prob"} | ({"draw"} if law.explicit else set())
    field = FlowField(law, shape, frozenset(provides), law.conditional(shape))
    within = law.support(shape) if support is None else support
    if within is not None:
        over = constrained(field, within)
        field = replace(field, support=over.transform, within=over.constraint)
    if not field.conditional:
        _check_falls_off(field)
    some = law.some_conditions(ASKED) if field.conditional else {}
    if some is not None and law.explicit:
        field = _asked_onto(field, some)
    return field


@contextmanager
def _copy_to_ask(flow: Any) -> Iterator[Any]:
    """A copy of a flow in eval mode: a layer that takes what it is asked for data spoils that alone.

    Raises:
        InvalidArgument: Asking has changed the copy, so that the flow's density is none yet.
    """
    try:
        copied = deepcopy(flow)
    except RuntimeError:  # torch copies no tensors that are results
        copied = flow
    before = [t.detach().clone() for t in _tensors_of(copied)]
    try:
        with left_as_found(copied):
            yield copied
    finally:
        after = _tensors_of(copied)
        if len(after) != len(before) or not all(map(_same, before, after)):
            raise InvalidArgument(
                "flow",
                type(flow),
                "a flow that is the same after it was asked",
                "A layer takes its first batch for data, as ActNorm does: give the flow a batch of "
                "your data first, or what it was trained to",
            )


def _tensors_of(flow: Any) -> list[Tensor]:
    """The parameters and buffers of all modules of a flow."""
    held = (v for m in modules_of(flow) for v in (*m._parameters.values(), *m._buffers.values()))
    return [tensor for tensor in held if tensor is not None]


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether tensors hold the same numbers, or none at the same places."""
    if one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _check_falls_off(field: FlowField) -> None:
    """Check that a density falls off along the axes.

    Raises:
        InvalidArgument: It does not: it is normalised on a part of the space only.
    """
    axis = flat_axis(field.log_prob, _like(field.flow.flow).new_zeros((1, *field.event_shape)))
    if axis is not None:
        raise InvalidArgument(
            "support",
            None,
            "where x lives, as this flow's density does not fall off along all axes",
            f"Along entry {axis} it is periodic, or the same however far out. Say on which part it "
            f"is normalised, such as scoretk.from_flow(flow, support="
            f"torch.distributions.constraints.interval(-math.pi, math.pi))",
        )


def _asked_onto(field: FlowField, cond: Cond) -> FlowField:
    """A flow that leads onto all of the space of its base, and from all around the data.

    A density `p_base(f(x)) |det df/dx|` has the mass that the base has where f leads to: with a
    sigmoid before N(0, 1) a third. There is no x then for other noise. An inverse by bisection does
    not get far enough out either, but then f leads nearer to the noise from farther out.

    Returns:
        The field; without `draw` where the flow has no inverse.

    Raises:
        InvalidArgument: It does not, or its density is not computed, or by chance.
    """
    flow, noise = field.flow, Noise(0, ASKED, device=_like(field.flow.flow).device)
    try:
        z = flow.base(noise, cond).detach()
        if z[0].numel() != math.prod(field.event_shape):
            return field  # which is told where it is asked
        # with gradients: some layers find their Jacobian by them
        x = flow.inverse(z, cond).detach().reshape(ASKED, *field.event_shape)
    except Exception as error:  # what a transform raises of noise to which nothing leads
        if type(error).__name__ in NO_INVERSE:
            return replace(field, provides=field.provides - {"draw"})
        raise _not_onto(field, error) from error
    if not bool(x.isfinite().all()):
        raise _not_onto(field)
    _check_density(field, x, cond)
    near = _gaps(field, z, x, cond)
    lost = ~(near <= LOST)
    if bool(lost.any()):
        middle = x.median(0).values
        farther = [middle + reach * (x - middle) for reach in FARTHER]
        best = torch.stack([_gaps(field, z, y, cond).nan_to_num(torch.inf) for y in farther])
        if bool((best.amin(0)[lost] > near[lost] / 2).all()) and float(lost.double().mean()) > CUT:
            raise _not_onto(field)
        field = replace(field, provides=field.provides - {"draw"})
    if field.support is None:
        _check_defined(field, x, cond)
    return field


def _gaps(field: FlowField, z: Tensor, x: Tensor, cond: Cond) -> Tensor:
    """How far the noise of x is from z in units of 1 + |z|, the most of all entries, `(rows,)`."""
    gap = field.flow.gap(z, field.flow.forward(x, cond).reshape(z.shape))
    most: Tensor = (gap / (1 + z.abs())).flatten(1).amax(1)
    return most


def _check_density(field: FlowField, x: Tensor, cond: Cond) -> None:
    """Check that a flow has a density, which is a function of x.

    Raises:
        InvalidArgument: A layer leads only from the noise to the data, or draws numbers of its own.
    """
    try:
        first, again = (
            torch.cat([field.flow.log_prob(x, cond), field.flow.forward(x, cond).flatten()])
            for _ in range(2)
        )
    except Exception as error:
        if type(error).__name__ not in NO_INVERSE:
            return  # which is told where it is asked
        raise InvalidArgument(
            "flow",
            type(field.flow.flow),
            "a flow that leads from the data to the noise too, by which its density is computed",
            f"One of its layers has no such way: {error}",
        ) from error
    if not torch.allclose(first, again, rtol=1e-4, atol=1e-4, equal_nan=True):
        raise InvalidArgument(
            "flow",
            type(field.flow.flow),
            "a log density that is a function of the point",
            "A layer draws numbers of its own, as those of stochastic normalizing flows do: such a "
            "flow has no density",
        )


NO_INVERSE = ("NotImplementedError", "InverseNotAvailable")
"""What libraries raise where a transform leads one way only."""
CUT = 0.2
"""The share of a base's draws that do not come back above which a flow is taken to lead to a part of
the space: below, its inverse may be one by bisection that ends too early.
"""
FARTHER = (1.5, 4.0, 16.0, 64.0, 1e3, 1e6)
"""How much farther from the middle of some data a flow is asked, where their noise is not reached."""


def _not_onto(field: FlowField, error: Exception | None = None) -> InvalidArgument:
    said = f". It raised {type(error).__name__}: {error}" if error else ""
    return InvalidArgument(
        "flow",
        type(field.flow.flow),
        "a flow from the data onto all of the space of its base",
        "There is no x for some of the base's noise, so that the density does not integrate to 1: a "
        "layer, such as a last sigmoid, leads to a part of the space. Leave that layer out, or "
        "give the flow a base of that part. For data on a part of the space the inverse of such a "
        f"layer, a logit, is the first{said}",
    )


def _check_defined(field: FlowField, x: Tensor, cond: Cond) -> None:
    """Check that a flow without a support has a density a few standard deviations around its data.

    Raises:
        InvalidArgument: It raises there, or says NaN.
    """
    middle, spread = x.median(0).values, (x - x.median(0).values).abs().median(0).values
    for side in (-AROUND, AROUND):
        rows = (middle + side * spread).expand(len(x), *middle.shape)
        try:
            found = field.log_prob(rows, **cond)
        except InvalidArgument as error:
            found, cause = None, error.__cause__
        if found is None or bool(found.isnan().any()):
            raise InvalidArgument(
                "support",
                None,
                "where x lives, as this flow has no density everywhere",
                "Such as scoretk.from_flow(flow, support=torch.distributions.constraints.interval"
                "(0.0, 1.0)), of a flow that begins with a logit",
            ) from (cause if found is None else None)


AROUND = 6.0
"""Where a density is asked for around its data, in their median absolute deviations."""


def _fails(evaluate: Callable[[], Any]) -> bool:
    """Whether a flow cannot be asked without a condition."""
    try:
        with torch.no_grad():
            evaluate()
    except Exception:  # noqa: BLE001 (torch's errors of shapes, a library's own of a missing context)
        return True
    return False


def _like(module: Any) -> Tensor:
    """A tensor of the dtype and on the device of a module, or of a distribution."""
    held = (
        (*module.parameters(), *module.buffers())
        if isinstance(module, torch.nn.Module)
        else state_like(module)
    )
    return next((t for t in held if t.is_floating_point()), torch.zeros(()))


def _normal(noise: NoiseSource, shape: Sequence[int], module: torch.nn.Module) -> Tensor:
    """Standard normals of the START stream, `(chains, *shape)`, as the module takes them."""
    return noise.normal(0, Stream.START, tuple(shape)).to(_like(module).dtype)


def _log_normal(z: Tensor) -> Tensor:
    """`log N(z; 0, I)`, `(batch,)`."""
    return -row_sum(z * z) / 2 - z[0].numel() * math.log(2 * math.pi) / 2


class _OnAllOfSpace:
    """What the flows of most libraries have in common."""

    @property
    def discrete(self) -> bool:
        return False

    def some_conditions(self, rows: int) -> Cond | None:
        return None

    def gap(self, z: Tensor, other: Tensor) -> Tensor:
        return (z - other).abs()


class _OfZuko:
    """What a flow of zuko and a distribution of one have in common: a base of torch's."""

    @property
    def discrete(self) -> bool:
        base = self._base  # type: ignore[attr-defined]
        return not _fails(lambda: base().support) and bool(base().support.is_discrete)

    def some_conditions(self, rows: int) -> Cond | None:
        return None

    def gap(self, z: Tensor, other: Tensor) -> Tensor:
        """The distance; on a box, whose ends circular flows make one point, that on the circle."""
        apart, box = (z - other).abs(), _bare(self._base().support)  # type: ignore[attr-defined]
        low, high = (getattr(box, name, None) for name in ("lower_bound", "upper_bound"))
        return apart if low is None or high is None else torch.minimum(apart, high - low - apart)


@dataclass(frozen=True, eq=False)
class _ZukoLaw(_OfZuko):
    """A distribution that zuko has made: a flow without, or with one, condition."""

    flow: Any
    names = ()

    def __post_init__(self) -> None:
        if self.flow.batch_shape:
            raise InvalidArgument(
                "flow",
                self.flow,
                "an empty batch_shape",
                "Give the flow itself, scoretk.from_flow(flow), and the rows as cond={'c': rows}",
            )

    def conditional(self, shape: tuple[int, ...]) -> bool:
        return False

    def shape(self) -> tuple[int, ...]:
        return tuple(self.flow.event_shape)

    def support(self, shape: tuple[int, ...]) -> Support | None:
        return zuko_support(self.flow.transform, torch.zeros((1, *shape)).to(_like(self.flow)))

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        return _of_base(self.flow, x)

    @property
    def explicit(self) -> bool:
        return explicit(self.flow.base)

    def _base(self) -> td.Distribution:
        base: td.Distribution = self.flow.base
        return base

    def base(self, noise: NoiseSource, cond: Cond) -> Tensor:
        return draw_from(self.flow.base, noise).to(_like(self.flow).dtype)

    def inverse(self, z: Tensor, cond: Cond) -> Tensor:
        x: Tensor = self.flow.transform.inv(z)
        return x

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        z: Tensor = self.flow.transform(x)
        return z


@dataclass(frozen=True, eq=False)
class _Zuko(_OfZuko):
    """A flow of zuko: `flow(c)` is the distribution given c, a row for a row of c."""

    flow: Any
    names = ("c",)

    def conditional(self, shape: tuple[int, ...]) -> bool:
        own = shape if _fails(self.shape) else self.shape()
        zeros = _like(self.flow).new_zeros((1, *own))
        return _fails(lambda: self.flow().log_prob(zeros))

    def shape(self) -> tuple[int, ...]:
        return tuple(getattr(self.flow, "base", self.flow)().event_shape)

    def support(self, shape: tuple[int, ...]) -> Support | None:
        transform = getattr(self.flow, "transform", None)
        x = torch.zeros((1, *shape)).to(_like(self.flow))
        return None if transform is None else zuko_support(transform, x)

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        return _of_base(self.flow(*_rows(cond)), x)

    @property
    def explicit(self) -> bool:
        base = getattr(self.flow, "base", None)
        return base is not None and not _fails(base) and explicit(base())

    def _base(self) -> td.Distribution:
        base: td.Distribution = self.flow.base()
        return base

    def base(self, noise: NoiseSource, cond: Cond) -> Tensor:
        return draw_from(self._base(), noise).to(_like(self.flow).dtype)

    def inverse(self, z: Tensor, cond: Cond) -> Tensor:
        x: Tensor = self.flow(*_rows(cond)).transform.inv(z)
        return x

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        z: Tensor = self.flow(*_rows(cond)).transform(x)
        return z


def _of_base(law: Any, x: Tensor) -> Tensor:
    """The log density of a distribution of zuko, `(batch,)`; `-inf` of rows outside its base's support.

    torch's own checks would refuse all rows for one; without them some of its families, such as
    Exponential, say of what is outside what their formula gives there.
    """
    law = unvalidated(law)
    log_prob: Tensor = law.log_prob(x)
    base = getattr(law, "base", None)
    if base is None or _fails(lambda: base.support) or not hasattr(law, "transform"):
        return log_prob
    support = base.support
    if _bare(support) is td.constraints.real:
        return log_prob
    return torch.where(support.check(law.transform(x)), log_prob, -torch.inf)


def _bare(support: td.constraints.Constraint) -> td.constraints.Constraint:
    """The constraint of one number, of one of many of these."""
    while isinstance(support, td.constraints.independent):
        support = support.base_constraint
    return support


def _rows(cond: Cond) -> Iterator[Tensor]:
    """Conditions of zuko, which takes a vector for one condition of all rows.

    Raises:
        InvalidArgument: One has no row a chain.
    """
    for name, value in cond.items():
        if value.ndim < 2:
            hint = f"One for all: {name}.expand(chains, -1). Of one number each: {name}[:, None]"
            raise InvalidArgument(name, value, "a row a chain, (chains, width)", hint)
        yield value


@dataclass(frozen=True, eq=False)
class _NFlows(_OnAllOfSpace):
    """A flow of nflows: a transform from data to noise, a base, and an embedding of the context."""

    flow: Any
    names = ("context",)

    @property
    def discrete(self) -> bool:
        return type(self.flow._distribution).__name__ == "ConditionalIndependentBernoulli"

    def conditional(self, shape: tuple[int, ...]) -> bool:
        """Whether a part of it reads a context; many leave it out without a word where it is None."""
        return any(
            getattr(part, "context_features", None) or "context" in name
            for name, part in self.flow.named_modules()
        )

    def some_conditions(self, rows: int) -> Cond | None:
        parts = self.flow.named_modules()
        found = (getattr(part, "context_features", None) for _, part in parts)
        widths = {width for width in found if width is not None}
        plain = type(self.flow._embedding_net) is torch.nn.Identity
        if len(widths) != 1 or not plain:
            return None
        return {"context": _like(self.flow).new_zeros((rows, *widths))}

    def shape(self) -> tuple[int, ...]:
        """That of what comes of the base's zeros, where the inverse can be asked for it."""
        base = tuple(self.flow._distribution._shape)
        found: list[Tensor] = []

        def ask() -> None:
            with (
                warnings.catch_warnings()
            ):  # of functions of torch's that nflows calls by old names
                warnings.simplefilter("ignore")
                zeros = _like(self.flow).new_zeros((1, *base))
                found.append(self.flow._transform.inverse(zeros)[0])

        return base if _fails(ask) else tuple(found[0].shape[1:])

    def support(self, shape: tuple[int, ...]) -> Support | None:
        return nflows_support(self.flow, _like(self.flow).new_zeros((1, *shape)))

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        log_prob: Tensor = self.flow.log_prob(x, **cond)
        return log_prob

    @property
    def explicit(self) -> bool:
        return type(self.flow._distribution).__name__ in _NFLOWS_BASES

    def _embedded(self, cond: Cond) -> Tensor | None:
        context = cond.get("context")
        embedded: Tensor | None = None if context is None else self.flow._embedding_net(context)
        return embedded

    def base(self, noise: NoiseSource, cond: Cond) -> Tensor:
        base = self.flow._distribution
        z = _normal(noise, base._shape, self.flow)
        mean, log_std = _NFLOWS_BASES[type(base).__name__](base, self._embedded(cond))
        return mean + log_std.exp() * z

    def inverse(self, z: Tensor, cond: Cond) -> Tensor:
        x: Tensor = self.flow._transform.inverse(z, context=self._embedded(cond))[0]
        return x

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        z: Tensor = self.flow._transform(x, context=self._embedded(cond))[0]
        return z


_NFLOWS_BASES: dict[str, Callable[[Any, Tensor | None], tuple[Tensor, Tensor]]] = {
    "StandardNormal": lambda base, context: (torch.zeros(()), torch.zeros(())),
    "DiagonalNormal": lambda base, context: (
        base.mean_.reshape(1, *base._shape),
        base.log_std_.reshape(1, *base._shape),
    ),
    "ConditionalDiagonalNormal": lambda base, context: base._compute_params(context),
}
"""Mean and log standard deviation of the diagonal normals of nflows, by class."""


@dataclass(frozen=True, eq=False)
class _NormFlows(_OnAllOfSpace):
    """A flow of normflows, whose layers lead from noise to data."""

    flow: Any

    @property
    def names(self) -> tuple[str, ...]:
        kinds = {name for _, name in owners(self.flow)}
        return ("context",) if "ConditionalNormalizingFlow" in kinds else ("y",) * self._by_class

    @property
    def _by_class(self) -> bool:
        return any(name in ("ClassCondFlow", "MultiscaleFlow") for _, name in owners(self.flow))

    def conditional(self, shape: tuple[int, ...]) -> bool:
        if self._by_class:
            return bool(getattr(self.flow, "class_cond", True))
        return bool(self.names)

    def shape(self) -> tuple[int, ...]:
        base = self.flow.q0
        sizes = (getattr(base, name, None) for name in ("ndim", "dim"))
        shape = getattr(base, "shape", None) or (next(size for size in sizes if size),)
        if self.names:
            return tuple(shape)
        with torch.no_grad():  # two rows, of which a layer may take the spread
            return tuple(self.flow.forward(_like(self.flow).new_zeros((2, *shape))).shape[1:])

    def support(self, shape: tuple[int, ...]) -> Support | None:
        return normflows_support(self.flow, _like(self.flow).new_zeros((1, *shape)))

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        if self._by_class:
            log_prob: Tensor = self.flow.log_prob(x, cond.get("y"))
        else:
            log_prob = self.flow.log_prob(x, **cond)
        return log_prob

    @property
    def explicit(self) -> bool:
        return type(self.flow.q0).__name__ in ("DiagGaussian", "ConditionalDiagGaussian")

    def base(self, noise: NoiseSource, cond: Cond) -> Tensor:
        base = self.flow.q0
        z = _normal(noise, base.shape, self.flow)
        if type(base).__name__ == "DiagGaussian":
            hotter = math.log(base.temperature or 1.0)
            drawn: Tensor = base.loc + (base.log_scale + hotter).exp() * z
            return drawn
        mean, log_scale = base.context_encoder(cond["context"]).chunk(2, -1)
        drawn = mean + log_scale.exp() * z
        return drawn

    def inverse(self, z: Tensor, cond: Cond) -> Tensor:
        x = z.clone()  # into which some layers write
        for layer in self.flow.flows:
            x = layer(x, **cond)[0]
        return x

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        z = x.clone()
        for layer in reversed(self.flow.flows):
            z = layer.inverse(z, **cond)[0]
        return z


@dataclass(frozen=True, eq=False)
class _FrEIA(_OnAllOfSpace):
    """An invertible network of FrEIA, which leads from data to N(0, I): it has no base of its own."""

    flow: Any
    explicit = True

    @property
    def names(self) -> tuple[str, ...]:
        used = self._used
        return ("c",) if used == [0] else tuple(f"c{i}" for i in used)

    @property
    def _used(self) -> list[int]:
        """The places, in the list of conditions, of those that a layer looks at."""
        nodes = getattr(self.flow, "condition_nodes", None)
        if nodes is not None:
            return [*range(len(nodes))]
        return sorted({i for i in self.flow.conditions if i is not None})

    def conditional(self, shape: tuple[int, ...]) -> bool:
        return bool(self._used)

    def _given(self, cond: Cond) -> list[Tensor | None] | None:
        if not cond:
            return None
        placed = dict(zip(self._used, (cond[name] for name in self.names), strict=True))
        return [placed.get(i) for i in range(max(placed) + 1)]

    def shape(self) -> tuple[int, ...]:
        (shape,) = self.flow.dims_in  # of one input
        return tuple(shape)

    def support(self, shape: tuple[int, ...]) -> Support | None:
        return None

    def some_conditions(self, rows: int) -> Cond | None:
        nodes = getattr(self.flow, "condition_nodes", None)
        if nodes is not None:
            shapes = [node.output_dims[0] for node in nodes]
        else:
            by_place = {
                i: layer.dims_c[0]
                for i, layer in zip(self.flow.conditions, self.flow.module_list, strict=True)
                if i is not None
            }
            shapes = [by_place[i] for i in self._used]
        like = _like(self.flow)
        return {n: like.new_zeros((rows, *s)) for n, s in zip(self.names, shapes, strict=True)}

    def _output_shapes(self) -> list[tuple[int, ...]]:
        shapes = getattr(self.flow, "global_out_shapes", None) or self.flow.shapes[-1:]
        return [tuple(shape) for shape in shapes]

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        z, log_det = self.flow(x, c=self._given(cond))
        parts = z if isinstance(z, tuple) else (z,)
        log_prob: Tensor = log_det + sum(map(_log_normal, parts))
        return log_prob

    def base(self, noise: NoiseSource, cond: Cond) -> Tensor:
        return _normal(noise, (sum(map(math.prod, self._output_shapes())),), self.flow)

    def inverse(self, z: Tensor, cond: Cond) -> Tensor:
        shapes = self._output_shapes()
        flat = z.split([math.prod(shape) for shape in shapes], 1)
        parts = [part.reshape(len(z), *shape) for part, shape in zip(flat, shapes, strict=True)]
        given = parts[0] if len(parts) == 1 else parts
        # with its Jacobian, as some layers answer otherwise without
        found = self.flow(given, c=self._given(cond), rev=True)[0]
        x: Tensor = found[0] if isinstance(found, tuple) else found
        return x

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        z = self.flow(x, c=self._given(cond))[0]
        return torch.cat([part.flatten(1) for part in (z if isinstance(z, tuple) else (z,))], 1)


_KINDS: dict[tuple[str, str], Callable[[Any], _Flow]] = {
    ("zuko", "LazyDistribution"): _Zuko,
    ("zuko", "NormalizingFlow"): _ZukoLaw,
    ("nflows", "Flow"): _NFlows,
    ("normflows", "NormalizingFlow"): _NormFlows,
    ("normflows", "ClassCondFlow"): _NormFlows,
    ("normflows", "MultiscaleFlow"): _NormFlows,
    ("FrEIA", "SequenceINN"): _FrEIA,
    ("FrEIA", "GraphINN"): _FrEIA,
}
"""How a library's flows are asked, by package and class."""
