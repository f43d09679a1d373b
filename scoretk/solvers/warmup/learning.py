"""The protocol of the parts of an adaptation, and what they are told of a step of warmup.

A part is a small frozen object that learns one thing: a step size, scales, a length, a ladder of
temperatures. What it learns is a leaf of the state that all chains share; what it remembers from
step to step is a NamedTuple of tensors, so that a checkpoint can hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from scoretk.core.rows import across
from scoretk.fields.protocols import NoiseSource
from scoretk.solvers.base import Info

__all__ = [
    "Change",
    "Lesson",
    "Nothing",
    "Part",
    "PartDefaults",
    "Trial",
    "counted_of",
    "mean_where",
]


class Trial(NamedTuple):
    """A step of warmup, as a kernel makes it.

    Args:
        state: The state after the step.
        info: What the step reports.
        accept: How likely each chain was to move, `(chains,)`, or by place `(chains, K)`.
        seen: What the kernel shows besides to the parts that are made for it.
    """

    state: Any
    info: Info
    accept: Tensor
    seen: Any = None


@dataclass(frozen=True)
class Lesson:
    """A step of warmup, and all that the parts need to learn from it.

    Args:
        before: The state before the step.
        trial: The step.
        alive: `(chains,)` of bool, the chains that are well.
        usual: Like `trial.accept`, of bool: those of them that took a step of the common size.
        step: The number of the step in warmup, from 0.
        warmup: How many steps warmup has.
        all_alive: Whether the host knows that all chains are well.
        measured: What the part that learns has measured of the step (`Part.measure`), as it was read
            with what the others have; None where it was not.
    """

    before: Any
    trial: Trial
    alive: Tensor
    usual: Tensor
    step: int
    warmup: int
    all_alive: bool = False
    measured: tuple[float, ...] | None = None

    def living(self, x: Tensor) -> Tensor:
        """The rows of x, `(chains, ...)`, of the chains that are well."""
        return x if self.all_alive else x[self.alive]

    def read(self, part: Part, memory: Any) -> tuple[Any, tuple[float, ...]]:
        """A part's memory and measurements, measured now where that was not done before."""
        if self.measured is not None:
            return memory, self.measured
        memory, numbers = part.measure(memory, self)
        return memory, tuple(float(number) for number in numbers)

    @property
    def last(self) -> bool:
        """Whether this is the last step of warmup."""
        return self.step == self.warmup - 1


class Change(NamedTuple):
    """A change that all parts are told of: a window has ended, or the approach has.

    Args:
        before: The scales before the end of a window; None where no window ended.
        after: The scales after it.
        spread: The scales that the window found, whether or not they become the kernel's: standard
            deviations like an event, or a Cholesky factor.
        arrived: Whether the approach has ended with this step.
    """

    before: Tensor | None = None
    after: Tensor | None = None
    spread: Tensor | None = None
    arrived: bool = False


class Part(Protocol):
    """One thing that warmup learns."""

    def begin(
        self, kernel: Any, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[Any, Any, int]:
        """Begin to learn; arguments are those of `Adaptation.begin`.

        Returns:
            The state with a first value of what is learned, a NamedTuple of what is remembered, and
            how many evaluations a chain this took.
        """

    def measure(self, memory: Any, lesson: Lesson) -> tuple[Any, tuple[Tensor, ...]]:
        """Measure a step on the chains' device, without waiting for the result.

        Returns:
            The memory after that, and numbers `()` that `learn` needs on the host, which reads those
            of all parts at once (`Lesson.read`).
        """

    def learn(self, state: Any, memory: Any, lesson: Lesson) -> tuple[Any, Any, Change | None]:
        """Learn from a step, after `measure`.

        Returns:
            State and memory after it, and the change that all parts are to be told of, if any.
        """

    def changed(self, state: Any, memory: Any, change: Change) -> tuple[Any, Any]:
        """State and memory after a change that this part, another or the approach has made."""


class Nothing(NamedTuple):
    """The memory of a part that remembers nothing."""


class PartDefaults:
    """The methods of a `Part` that remembers nothing, measures nothing and changes nothing."""

    def begin(
        self, kernel: Any, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[Any, Any, int]:
        return state, Nothing(), 0

    def measure(self, memory: Any, lesson: Lesson) -> tuple[Any, tuple[Tensor, ...]]:
        return memory, ()

    def learn(self, state: Any, memory: Any, lesson: Lesson) -> tuple[Any, Any, Change | None]:
        return state, memory, None

    def changed(self, state: Any, memory: Any, change: Change) -> tuple[Any, Any]:
        return state, memory


def counted_of(values: Tensor, counted: Tensor) -> Tensor:
    """The values of the chains that count.

    On the CPU these alone: a sum then has the bits that it has in a run without the others. A device
    would be waited for to know how many they are, and has zeros in place of the others.

    Args:
        values: `(chains, ...)`.
        counted: `(chains,)` of bool.
    """
    if values.device.type == "cpu":
        return values[counted]
    return torch.where(across(counted, values), values, values.new_zeros(()))


def mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """The mean of the counted values, `()`, NaN where there is none; no device is waited for.

    Args:
        values: `(chains,)`.
        counted: Like them, of bool.
    """
    return counted_of(values, counted).sum() / counted.sum()
