r"""What warmup learns of the scales of the target: by its moments in windows that double in length.

In the first steps chains only approach the target, those that begin far off each in its own way
(`warmup.approach`). Then windows that double in length, as Stan's: each window's pooled covariance
C (Chan's update) of n draws gives the scales S for the next, shrunk to `(n C + 5e-3 S^2) / (n +
5)`, S those so far; then the step size starts anew. The last steps tune the step size alone.

References:
    Stan development team, "Stan reference manual" (warmup windows and shrinkage).
    Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk.fields.protocols import NoiseSource
from scoretk.solvers.warmup.learning import Change, Lesson

__all__ = [
    "METRICS",
    "Scales",
    "Window",
    "accumulate",
    "approach",
    "begin_window",
    "scales",
    "window_end",
]

METRICS = ("none", "diagonal", "dense")

SHRINK, FLOOR = 5.0, 1e-3


class Window(NamedTuple):
    """What a window has seen.

    How many draws, their mean, and the sum of squared deviations, like the event, or of their outer
    products, `(d, d)`.
    """

    draws: Tensor
    mean: Tensor
    deviations: Tensor


def approach(warmup: int) -> int:
    """How many steps of warmup, the first ones, only approach the target.

    0 where it is too short for windows.
    """
    if warmup < 20:
        return 0
    return 75 if warmup >= 150 else int(0.15 * warmup)


def window_end(step: int, warmup: int) -> tuple[bool, bool]:
    """Whether this step of warmup counts for the scales, and whether a window ends with it."""
    if warmup < 20:
        return False, False
    last, length = (50, 25) if warmup >= 150 else (int(0.1 * warmup), warmup)
    start, end = approach(warmup), warmup - last
    if not start <= step < end:
        return False, False
    while (
        start + 3 * length <= end and start + length <= step
    ):  # a window that would leave less than the next takes it all
        start, length = start + length, 2 * length
    stop = start + length if start + 3 * length <= end else end
    return True, step == stop - 1


def begin_window(x: Tensor, dense: bool) -> Window:
    """An empty window, of positions like those of x `(chains, *event_shape)`."""
    shape = x.shape[1:]
    square = (shape.numel(), shape.numel()) if dense else shape
    mean, deviations = (x.new_zeros(size, dtype=torch.float64) for size in (shape, square))
    return Window(torch.zeros((), dtype=torch.float64), mean, deviations)


def accumulate(window: Window, x: Tensor, dense: bool) -> Window:
    """Take in positions `(n, *event_shape)` of the chains that are well."""
    n = len(x)
    if n == 0:
        return window
    rows = x.detach().to(torch.float64)
    centre = rows.mean(0)
    about, shift, before = rows - centre, centre - window.mean, float(window.draws)
    total = before + n
    if dense:
        flat, off = about.reshape(n, -1), shift.flatten()
        spread = flat.T @ flat + torch.outer(off, off) * (before * n / total)
    else:
        spread = about.square().sum(0) + shift.square() * (before * n / total)
    return window._replace(
        draws=torch.tensor(total, dtype=torch.float64),
        mean=window.mean + shift * (n / total),
        deviations=window.deviations + spread,
    )


def scales(window: Window, metric: str, before: Tensor) -> tuple[Window, Tensor]:
    """Standard deviations like the event, or a Cholesky factor `(d, d)`, from the window, and an
    empty window.

    Args:
        before: The scales so far, whose squares, a thousandth of them, count as five draws: so that
            no unit is preferred. Covariances are drawn towards the variances alone by as many draws
            as there are dimensions.
    """
    n = float(window.draws)
    covariance = window.deviations / max(n - 1, 1)
    weight = n / (n + SHRINK)
    if metric == "dense":
        known, d = before.to(covariance), len(covariance)
        own = n / (n + d)
        covariance = own * covariance + (1 - own) * torch.diag(covariance.diagonal())
        found = torch.linalg.cholesky(
            weight * covariance + (1 - weight) * FLOOR * torch.diag((known @ known.T).diagonal())
        )
    else:
        found = (weight * covariance + (1 - weight) * FLOOR * before.to(covariance).square()).sqrt()
    return Window(*(torch.zeros_like(value) for value in window)), found.to(before.dtype)


@dataclass(frozen=True)
class Scales:
    """Learns the state's `scale`, a diagonal or a Cholesky factor.

    Args:
        metric: a name in `METRICS`; with "none" the spread is measured, for others to learn from, and the scales stay.
        lengths: leaves of the state that are lengths in scaled space, and change by as much as the scales have grown.
    """

    metric: str
    lengths: tuple[str, ...] = ()

    @property
    def _dense(self) -> bool:
        return self.metric == "dense"

    def begin(
        self, kernel: Any, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[Any, Window, int]:
        """As `Part.begin`."""
        return state, begin_window(state.x, self._dense), 0

    def learn(
        self, state: Any, memory: Window, lesson: Lesson
    ) -> tuple[Any, Window, Change | None]:
        """As `Part.learn`."""
        counts, ends = window_end(lesson.step, lesson.warmup)
        if not counts:
            return state, memory, None
        memory = accumulate(memory, state.x[lesson.alive], self._dense)
        if not ends:
            return state, memory, None
        before = state.scale
        memory, spread = scales(memory, "dense" if self._dense else "diagonal", before)
        after = before if self.metric == "none" else spread
        grown = float((self._diagonal(after) / self._diagonal(before)).log().mean().exp())
        shrunk = {name: getattr(state, name) / grown for name in self.lengths}
        change = Change(before, after, spread, came_far=lesson.came_far)
        return state._replace(scale=after, **shrunk), memory, change

    def changed(self, state: Any, memory: Window, change: Change) -> tuple[Any, Window]:
        """As `Part.changed`: a window knows no more than what it has seen."""
        return state, memory

    def _diagonal(self, scale: Tensor) -> Tensor:
        return scale.diagonal() if self._dense else scale
