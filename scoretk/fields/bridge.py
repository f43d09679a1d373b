"""The fields that tempering and annealing use: bridges between two fields, and rescaled
coordinates.

    bridge(f, g, w)      p_f^(1-w) p_g^w       energies (1 - w) E_f + w E_g
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoretk.core.arguments import fraction
from scoretk.core.keywords import explained
from scoretk.core.rows import across
from scoretk.errors import InvalidArgument
from scoretk.fields.conditions import Names, own, taken
from scoretk.fields.couplings import Couplings
from scoretk.fields.distribution import in_one_space
from scoretk.fields.protocols import field_name, is_field, is_timed, offers, optional, way_to_energy
from scoretk.fields.resolve import static
from scoretk.fields.wrapped import Kind, Wrapped, check_within, not_kept, shared_map

__all__ = ["Bridge", "Stretched", "bridge", "states_of"]


@dataclass(frozen=True, eq=False)
class Bridge(Wrapped):
    """`(1 - w) E_start + w E_end`.

    It lives in the space of its end.

    Args:
        start: A static field on the solver's space, such as a base; None for energy 0 everywhere.
        end: A static field.
        weight: w, a number or one value a row.
    """

    start: Any
    end: Any
    weight: float | Tensor
    takes: tuple[Names, Names] = (None, None)
    """The conditions that start and end take; None where they get all."""

    kind = Kind.BLEND

    @property
    def computed(self) -> frozenset[str]:
        bonded = {"couplings"} if self._bonds is not None else set()
        return frozenset({"energy", "score"}) | bonded

    @property
    def couplings(self) -> Couplings:
        """Those of its end, times w; what a start adds is for the energy to decide.

        Raises:
            NotKept: The end has none, or each row has a w of its own.
        """
        own = self._bonds
        if own is None or isinstance(self.weight, Tensor):
            raise not_kept(self, "couplings")
        return own * self.weight

    @property
    def _bonds(self) -> Couplings | None:
        native = getattr(self.end, "native", self.end)
        return None if isinstance(self.weight, Tensor) else optional(native, "couplings")

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
        """`E(x)`, `(batch,)`, and its gradient, like x, each field evaluated once."""
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
        """Whether a field has no part in the bridge.

        Then it is not evaluated, so that 0 times infinity does not occur.
        """
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

    Args:
        field: A static field of x.
        scale: A number, or a tensor that broadcasts over x.
    """

    field: Any
    scale: float | Tensor

    kind = Kind.VIEW
    computed = frozenset({"energy", "score"})

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.field,)

    def energy(self, y: Tensor, **cond: Tensor) -> Tensor:
        """`E(scale y)`, `(batch,)`, without the constant of the change of variables."""
        energy: Tensor = self.field.energy(self.scale * y, **cond)
        return energy

    def score(self, y: Tensor, **cond: Tensor) -> Tensor:
        """The score in y: that of the field at `scale y`, times scale; like y."""
        return self.scale * static(self.field).score(self.scale * y, **cond)

    def energy_and_grad(self, y: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """The energy, `(batch,)`, and its gradient in y, like y."""
        energy, gradient = static(self.field).energy_and_grad(self.scale * y, **cond)
        return energy, self.scale * gradient


def states_of(field: Any) -> Any:
    """The states of a discrete field, also through a solver's view of it; None of any other."""
    return optional(getattr(field, "native", field), "states")


@explained
def bridge(start: Any, end: Any, weight: float) -> Any:
    """The geometric bridge between two static fields, `p_start^(1 - w) p_end^w`.

    Args:
        start: A static field with an energy. Where the end is `constrained`, a law of its free
            space, such as N(0, I), or `constrained` alike. Where the end has discrete states, one
            with the same, or with none: then it is an energy on them.
        end: A static field with an energy and the same event shape.
        weight: w in [0, 1].

    Returns:
        A static field, `constrained` where the end is.

    Raises:
        InvalidArgument: The fields do not fit together, or w is outside [0, 1].
    """
    start, end = in_one_space((start, end))
    for name, field in (("start", start), ("end", end)):
        if not is_field(field) or is_timed(field) or "energy" not in offers(field):
            way, expected = way_to_energy(field), "a static field with an energy"
            raise InvalidArgument(name, field_name(field), expected, way)
    if tuple(start.event_shape) != tuple(end.event_shape):
        raise InvalidArgument(
            "end", tuple(end.event_shape), f"the event shape of start, {tuple(start.event_shape)}"
        )
    fraction("weight", weight)
    space = shared_map("start", (start,))
    if space is not None:
        shared_map("start, end", (start, end))
        return space.around(bridge(space.field, end.field, weight))
    check_within("start", start, end)
    return Bridge(start, end, weight, (taken(start), taken(end)))
