"""Fields between fields, and fields in stretched coordinates.

What tempering and annealing walk through.

bridge(f, g, w)      p_f^(1-w) p_g^w       energies (1 - w) E_f + w E_g
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoretk.core.arguments import finite
from scoretk.core.rows import across
from scoretk.errors import InvalidArgument
from scoretk.fields.conditions import Names, own, taken
from scoretk.fields.distribution import in_one_space
from scoretk.fields.protocols import field_name, is_field, is_timed, offers
from scoretk.fields.resolve import static
from scoretk.fields.wrapped import Kind, Wrapped, check_within, shared_map

__all__ = ["Bridge", "Stretched", "bridge", "states_of"]


@dataclass(frozen=True, eq=False)
class Bridge(Wrapped):
    """`(1 - w) E_start + w E_end`; w a number, or one value a row.

    Where start is None its energy is 0 everywhere.

    It lives where its end does: the start's law, of a base, is one of the solver's space.
    """

    start: Any
    end: Any
    weight: float | Tensor
    takes: tuple[Names, Names] = (None, None)
    """The conditions that start and end take; None where they get all."""

    kind = Kind.BLEND
    computed = frozenset({"energy", "score"})

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.end,)

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`(1 - w) E_start(x) + w E_end(x)`, `(batch,)`."""
        of_start, of_end = own(self.takes, cond)
        return self._mixed(
            None if self._alone(self.start, 1) else static(self.start).energy(x, **of_start),
            None if self._alone(self.end, 0) else static(self.end).energy(x, **of_end),
            x,
        )

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`(1 - w) score_start(x) + w score_end(x)`, like x."""
        of_start, of_end = own(self.takes, cond)
        return self._mixed(
            None if self._alone(self.start, 1) else static(self.start).score(x, **of_start),
            None if self._alone(self.end, 0) else static(self.end).score(x, **of_end),
            x,
        )

    def energy_and_grad(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`E(x)` and `grad E(x)`, each field evaluated once."""
        of_start, of_end = own(self.takes, cond)
        start = (
            (None, None)
            if self._alone(self.start, 1)
            else static(self.start).energy_and_grad(x, **of_start)
        )
        end = (
            (None, None)
            if self._alone(self.end, 0)
            else static(self.end).energy_and_grad(x, **of_end)
        )
        return self._mixed(start[0], end[0], x), self._mixed(start[1], end[1], x)

    def _alone(self, field: Any, other: float) -> bool:
        """Whether a field has no part in the mixture: so that 0 times infinity is never asked for."""
        return field is None or (not isinstance(self.weight, Tensor) and self.weight == other)

    def _mixed(self, start: Tensor | None, end: Tensor | None, x: Tensor) -> Tensor:
        part = end if end is not None else start
        assert part is not None
        w = across(self.weight, part) if isinstance(self.weight, Tensor) else self.weight
        if start is None or end is None:
            return w * part if end is not None else (1 - w) * part
        return (1 - w) * start + w * end


@dataclass(frozen=True, eq=False)
class Stretched(Wrapped):
    """A field in coordinates y with `x = scale y`.

    Scale a number or a tensor that broadcasts over x.
    """

    field: Any
    scale: float | Tensor

    kind = Kind.VIEW
    computed = frozenset({"energy", "score"})

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.field,)

    def energy(self, y: Tensor, **cond: Tensor) -> Tensor:
        """`E(scale y)`, `(batch,)`; the constant of the change of variables is left out."""
        energy: Tensor = self.field.energy(self.scale * y, **cond)
        return energy

    def score(self, y: Tensor, **cond: Tensor) -> Tensor:
        """The slope in these units, like y."""
        return self.scale * static(self.field).score(self.scale * y, **cond)

    def energy_and_grad(self, y: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`E` and its gradient in y."""
        energy, gradient = static(self.field).energy_and_grad(self.scale * y, **cond)
        return energy, self.scale * gradient


def states_of(field: Any) -> Any:
    """The states of a discrete field, also through the view that solvers have of it.

    None of any other.
    """
    return getattr(getattr(field, "native", field), "states", None)


def bridge(start: Any, end: Any, weight: float) -> Any:
    """The geometric bridge between two static fields: `p_start^(1 - w) p_end^w`.

    Args:
        start: Static fields with energies and one event shape.
        end: Static fields with energies and one event shape.
        weight: w in [0, 1]. Where the end is `constrained` the bridge is too, and the start a law
            of its free space, such as N(0, I), or `constrained` alike. Where the end has discrete
            states the start has the same, or none: then it is an energy on them.

    Raises:
        `InvalidArgument` where they do not fit together.
    """
    start, end = in_one_space((start, end))
    for name, field in (("start", start), ("end", end)):
        if not is_field(field) or is_timed(field) or "energy" not in offers(field):
            raise InvalidArgument(name, field_name(field), "a static field with an energy")
    if tuple(start.event_shape) != tuple(end.event_shape):
        raise InvalidArgument(
            "end", tuple(end.event_shape), f"the event shape of start, {tuple(start.event_shape)}"
        )
    if not 0 <= finite("weight", weight) <= 1:
        raise InvalidArgument("weight", weight, "a number in [0, 1]")
    space = shared_map("start", (start,))
    if space is not None:
        shared_map("start, end", (start, end))
        return space.around(bridge(space.field, end.field, weight))
    check_within("start", start, end)
    return Bridge(start, end, weight, (taken(start), taken(end)))
