"""What an adaptation and its parts say to each other.

A step of warmup as it was, and what it has changed for all.

A part is a small frozen object that learns one thing: a step size, scales, a length, a ladder of
temperatures. What it learns is a leaf of the state that all chains share; what it remembers is a
NamedTuple of tensors, so that a checkpoint can hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from scoretk.fields.protocols import NoiseSource
from scoretk.solvers.base import Info

__all__ = ["Change", "Lesson", "Part", "Trial"]


class Trial(NamedTuple):
    """A step of warmup: the state after it and its report, and what only the parts see.

    `accept` is how likely each chain was to move, `(chains,)` or by place `(chains, K)`; `seen` is
    what a kernel shows to parts that know it.
    """

    state: Any
    info: Info
    accept: Tensor
    seen: Any = None


@dataclass(frozen=True)
class Lesson:
    """A step of warmup that the parts learn from.

    Args:
        before: the state that it began from.
        trial: the step.
        alive: `(chains,)` of bool, the chains that are well.
        usual: like the acceptance, of bool: those of them that took the common step.
        step: its number in warmup, from 0.
        warmup: how many steps warmup has.
        came_far: whether the chains have gone their own way first.
    """

    before: Any
    trial: Trial
    alive: Tensor
    usual: Tensor
    step: int
    warmup: int
    came_far: bool

    @property
    def last(self) -> bool:
        """Whether warmup ends with it."""
        return self.step == self.warmup - 1


class Change(NamedTuple):
    """What a part has changed for all others: a window has ended, or the chains have arrived.

    `spread` are the standard deviations that a window found, None without one; `before` and `after`
    the scales; `arrived`, whether the chains' own way has ended; `came_far`, whether there was one.
    """

    before: Tensor | None = None
    after: Tensor | None = None
    spread: Tensor | None = None
    arrived: bool = False
    came_far: bool = False


class Part(Protocol):
    """Something that warmup learns."""

    def begin(
        self, kernel: Any, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[Any, Any, int]:
        """The state to begin with, a NamedTuple of what is remembered, and the evaluations a chain
        that this took.
        """

    def learn(self, state: Any, memory: Any, lesson: Lesson) -> tuple[Any, Any, Change | None]:
        """State and memory after a step, and what it means for the other parts."""

    def changed(self, state: Any, memory: Any, change: Change) -> tuple[Any, Any]:
        """State and memory after a change that this part or another has made."""
