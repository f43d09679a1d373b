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
from typing import Any, Protocol

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
from scoretk.core.anatomy import left_as_found, modules_of, state_like
from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.core.keywords import explained
from scoretk.core.rows import row_sum
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.constrained import Constrained, constrained
from scoretk.fields.distribution import draw_from, explicit
from scoretk.fields.foreign import answered, no_field, owners
from scoretk.fields.freelaws import unvalidated
from scoretk.fields.gradient import grad_energy
from scoretk.fields.protocols import NoiseSource, drawn
from scoretk.fields.supports import Bijection

__all__ = ["FlowField", "from_flow"]

Cond = dict[str, Tensor]


class _Flow(Protocol):
    """What a library's flow is asked for."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the conditions that it may take."""

    def conditional(self, shape: tuple[int, ...]) -> bool:
        """Whether it has to be given its conditions."""

    def shape(self) -> tuple[int, ...]:
        """The event shape; raises anything where the flow does not say."""

    def support(self) -> Support | None:
        """Where x lives, as the flow's parts say; None for all of R^d, or where they do not."""

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        """`log p(x | c)`, `(batch,)`."""

    @property
    def explicit(self) -> bool:
        """Whether its base is a known transform of the noise."""

    def draw(self, noise: NoiseSource, cond: Cond) -> Tensor:
        """`(chains, *event_shape)`."""


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
        if len(x) == 0:
            return row_sum(x)
        if x.shape[1:] != self.event_shape:
            raise InvalidArgument("x", x, f"rows (batch, {str(self.event_shape)[1:]}")
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
                "The flow's base is no known transform of normals or uniforms: sample the field "
                "with a kernel such as MALA, or give the flow a diagonal normal base",
            )
        given = self._checked(cond, n)
        x = self._answered(lambda: self.flow.draw(noise, given), noise.chains, cond)
        x = x.reshape(n, *self.event_shape)
        return x if self.support is None else self.support.clamped(x)

    def _answered(self, ask: Callable[[], Tensor], x: Tensor, cond: Cond) -> Tensor:
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
    kind = next((_KINDS[owner] for owner in owners(flow) if owner in _KINDS), None)
    if kind is None:
        raise no_field("flow", flow, "a flow of zuko, nflows, normflows or FrEIA")
    with _copy_to_ask(flow) as copied:
        field = _field(kind(copied), event_shape, support)
    return replace(field, flow=kind(flow))


def _field(law: _Flow, event_shape: Sequence[int] | None, support: Any) -> FlowField:
    """The field of a flow, which is asked what it does not say."""
    if event_shape is None:
        try:
            event_shape = law.shape()
        except Exception as error:  # whatever a flow of unknown build raises
            raise InvalidArgument(
                "event_shape", None, "the shape of one x, which this flow does not say", str(error)
            ) from error
    shape = as_event_shape(event_shape)
    provides = {"energy", "score", "log_prob"} | ({"draw"} if law.explicit else set())
    field = FlowField(law, shape, frozenset(provides), law.conditional(shape))
    within = law.support() if support is None else support
    if within is not None:
        over = constrained(field, within)
        field = replace(field, support=over.transform, within=over.constraint)
    if not field.conditional:
        _check_falls_off(field)
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


@dataclass(frozen=True, eq=False)
class _ZukoLaw:
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

    def support(self) -> Support | None:
        return zuko_support(self.flow.transform)

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        # torch's checks would refuse all rows where one is outside the base's box
        log_prob: Tensor = unvalidated(self.flow).log_prob(x)
        return log_prob

    @property
    def explicit(self) -> bool:
        return explicit(self.flow.base)

    def draw(self, noise: NoiseSource, cond: Cond) -> Tensor:
        return _zuko_draw(self.flow, self.flow.base, noise)


def _zuko_draw(law: Any, base: td.Distribution, noise: NoiseSource) -> Tensor:
    x: Tensor = law.transform.inv(draw_from(base, noise))
    return x


@dataclass(frozen=True, eq=False)
class _Zuko:
    """A flow of zuko: `flow(c)` is the distribution given c, a row for a row of c."""

    flow: Any
    names = ("c",)

    def conditional(self, shape: tuple[int, ...]) -> bool:
        own = shape if _fails(self.shape) else self.shape()
        zeros = _like(self.flow).new_zeros((1, *own))
        return _fails(lambda: self.flow().log_prob(zeros))

    def shape(self) -> tuple[int, ...]:
        return tuple(getattr(self.flow, "base", self.flow)().event_shape)

    def support(self) -> Support | None:
        return zuko_support(getattr(self.flow, "transform", None))

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        law = unvalidated(self.flow(*_rows(cond)))
        log_prob: Tensor = law.log_prob(x)
        return log_prob

    @property
    def explicit(self) -> bool:
        base = getattr(self.flow, "base", None)
        return base is not None and not _fails(base) and explicit(base())

    def draw(self, noise: NoiseSource, cond: Cond) -> Tensor:
        return _zuko_draw(self.flow(*_rows(cond)), self.flow.base(), noise)


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
class _NFlows:
    """A flow of nflows: a transform from data to noise, a base, and an embedding of the context."""

    flow: Any
    names = ("context",)

    def conditional(self, shape: tuple[int, ...]) -> bool:
        """Whether a part of it reads a context; many leave it out without a word where it is None."""
        return any(
            getattr(part, "context_features", None) or "context" in name
            for name, part in self.flow.named_modules()
        )

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

    def support(self) -> Support | None:
        return nflows_support(self.flow)

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        log_prob: Tensor = self.flow.log_prob(x, **cond)
        return log_prob

    @property
    def explicit(self) -> bool:
        return type(self.flow._distribution).__name__ in _NFLOWS_BASES

    def draw(self, noise: NoiseSource, cond: Cond) -> Tensor:
        base, context = self.flow._distribution, cond.get("context")
        if context is not None:
            context = self.flow._embedding_net(context)
        z = _normal(noise, base._shape, self.flow)
        mean, log_std = _NFLOWS_BASES[type(base).__name__](base, context)
        x: Tensor = self.flow._transform.inverse(mean + log_std.exp() * z, context=context)[0]
        return x


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
class _NormFlows:
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

    def support(self) -> Support | None:
        return normflows_support(self.flow)

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        if self._by_class:
            log_prob: Tensor = self.flow.log_prob(x, cond.get("y"))
        else:
            log_prob = self.flow.log_prob(x, **cond)
        return log_prob

    @property
    def explicit(self) -> bool:
        return type(self.flow.q0).__name__ in ("DiagGaussian", "ConditionalDiagGaussian")

    def draw(self, noise: NoiseSource, cond: Cond) -> Tensor:
        base, context = self.flow.q0, cond.get("context")
        z = _normal(noise, base.shape, self.flow)
        if type(base).__name__ == "DiagGaussian":
            hotter = math.log(base.temperature or 1.0)
            x: Tensor = base.loc + (base.log_scale + hotter).exp() * z
        else:
            mean, log_scale = base.context_encoder(context).chunk(2, -1)
            x = mean + log_scale.exp() * z
        given = {} if context is None else {"context": context}
        for layer in self.flow.flows:
            x = layer(x, **given)[0]
        return x


@dataclass(frozen=True, eq=False)
class _FrEIA:
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

    def support(self) -> Support | None:
        return None

    def _output_shapes(self) -> list[tuple[int, ...]]:
        shapes = getattr(self.flow, "global_out_shapes", None) or self.flow.shapes[-1:]
        return [tuple(shape) for shape in shapes]

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        z, log_det = self.flow(x, c=self._given(cond))
        parts = z if isinstance(z, tuple) else (z,)
        log_prob: Tensor = log_det + sum(map(_log_normal, parts))
        return log_prob

    def draw(self, noise: NoiseSource, cond: Cond) -> Tensor:
        shapes = self._output_shapes()
        flat = _normal(noise, (sum(map(math.prod, shapes)),), self.flow)
        parts = flat.split([math.prod(shape) for shape in shapes], 1)
        z = [part.reshape(len(flat), *shape) for part, shape in zip(parts, shapes, strict=True)]
        found = self.flow(z[0] if len(z) == 1 else z, c=self._given(cond), rev=True, jac=False)[0]
        x: Tensor = found[0] if isinstance(found, tuple) else found
        return x


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
