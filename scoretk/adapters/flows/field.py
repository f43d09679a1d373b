"""A flow as a field: its density and its score, and draws of this package's noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from scoretk.adapters.flows.law import Cond
from scoretk.adapters.flows.supports import Support
from scoretk.core.rows import row_sum
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.answers import check_asked
from scoretk.fields.constrained import Constrained, constrained
from scoretk.fields.foreign import answered
from scoretk.fields.gradient import grad_energy
from scoretk.fields.protocols import NoiseSource, drawn
from scoretk.fields.supports import Bijection

__all__ = ["FlowField"]
_Found = TypeVar("_Found")

LOST = 0.05
"""How far from z, in units of 1 + |z|, f(f^-1(z)) may be for a draw: a few digits of an inverse."""


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


def _gaps(field: FlowField, z: Tensor, x: Tensor, cond: Cond) -> Tensor:
    """How far the noise of x is from z in units of 1 + |z|, the most of all entries, `(rows,)`."""
    gap = field.flow.gap(z, field.flow.forward(x, cond).reshape(z.shape))
    most: Tensor = (gap / (1 + z.abs())).flatten(1).amax(1)
    return most
