"""Which steps a run makes, and after which of them the position is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """The steps of a run, and which of them are kept.

    Args:
        total: How many steps there are, warmup included.
        warmup: How many of them, the first ones, are warmup.
        thin: After warmup every thin-th step is kept.
        kept: Whether each step is kept, in place of that rule; or None.
        milestones: For a solver with a grid, whether each step completes an interval.
    """

    total: int
    warmup: int = 0
    thin: int = 1
    kept: tuple[bool, ...] | None = None
    milestones: tuple[bool, ...] | None = None

    def next_look(self, step: int, multiple: int) -> int:
        """The next step after this one at which a run is interrupted to see how far its chains are.

        Those are the powers of two past warmup, whatever the length of the run, so that a run that
        is extended has been looked at where an undisturbed one is.

        Args:
            step: How many steps have been made.
            multiple: Of what the step is a multiple: the next one, so that a look divides no call.
        """
        power = 1
        while (look := -(-(self.warmup + power) // multiple) * multiple) <= step:
            power *= 2
        return look

    def keeps(self, step: int) -> bool:
        """Whether the position after this step is kept."""
        if self.kept is not None:
            return self.kept[step]
        past = step + 1 - self.warmup
        return past > 0 and past % self.thin == 0

    def kept_before(self, step: int) -> int:
        """How many positions have been kept when `step` steps are done."""
        if self.kept is not None:
            return sum(self.kept[:step])
        return max(step - self.warmup, 0) // self.thin

    def steps_for(self, step: int, draws: float) -> float:
        """How many steps there are from this one on that keep no more than so many draws."""
        if self.kept is not None or draws == math.inf:
            return draws  # each step keeps one at most
        before = (self.kept_before(step) + int(draws) + 1) * self.thin
        return self.warmup + before - 1 - step

    def intervals(self, steps: Tensor) -> Tensor:
        """Steps as users count them: in intervals of the grid, for a solver that has one.

        Args:
            steps: Of int64; below 0, as of chains that are well, they stay.
        """
        if self.milestones is None:
            return steps
        before = torch.tensor((0, *accumulate(map(int, self.milestones))), device=steps.device)
        return torch.where(steps < 0, steps, before[steps.clamp(min=0)])
