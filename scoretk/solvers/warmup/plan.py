"""The plan of a warmup: how many steps it has, and how many chains tune."""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

from scoretk.core.arguments import counts
from scoretk.core.warned import warn

__all__ = ["Warmup", "planned", "takes_pilot"]

T = TypeVar("T")


@dataclass(frozen=True)
class Warmup:
    """The steps before draws are kept, in which solvers tune themselves.

    As in `stk.sample(field, warmup=stk.Warmup(500, pilot=64))`.

    Args:
        steps: How many steps warmup has.
        pilot: How many chains, the first ones of a run, tune for all. They are one batch; the
            others take over what these have found, and so have the same draws in any batch. It has
            no effect where nothing is tuned.
    """

    steps: int = 500
    pilot: int = 256

    def __post_init__(self) -> None:
        counts(self, steps=0, pilot=1)


def planned(solver: Any, steps: int) -> Warmup:
    """A warmup of so many steps, with the solver's deprecated `pilot` where it was given one."""
    return Warmup(steps, getattr(solver, "_pilot", Warmup.pilot))


def takes_pilot(kind: type[T]) -> type[T]:
    """Let the class of a solver take `pilot=` for one more release, with a `DeprecationWarning`.

    The setting belongs to `Warmup` now.
    """
    begin: Any = kind.__init__

    @wraps(begin)
    def begin_with_pilot(self: Any, *args: Any, pilot: int | None = None, **settings: Any) -> None:
        begin(self, *args, **settings)
        if pilot is not None:
            object.__setattr__(self, "_pilot", Warmup(pilot=pilot).pilot)
            warn(
                f"{kind.__name__}(pilot=) is now a setting of warmup: sample(..., "
                f"warmup=scoretk.Warmup(pilot={pilot!r}))",
                DeprecationWarning,
            )

    kind.__init__ = begin_with_pilot  # type: ignore[method-assign]
    return kind
