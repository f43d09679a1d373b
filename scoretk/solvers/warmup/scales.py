r"""What warmup learns of the target's scales: from its moments in windows that double in length.

In the first steps chains only approach the target, those that begin far off with settings of their
own (`warmup.approach`). Then there are windows as Stan's: the covariance C of a window's n draws,
pooled over chains (by Chan's update), gives the scales for the next window as a root of
`(n C + 5e-3 S^2) / (n + 5)`, S being the scales so far; then the step size starts anew. The last
steps tune the step size alone.

With "fisher" gradients g of the energy count as much as draws. Of all diagonals that which makes the
Fisher divergence of a normal law from the target least, `E |s g|^2 + E |(x - m) / s|^2`, is

    s^4 = Var x / Var g

where each variance is shrunk as above (towards those of the scales so far). For independent normal
coordinates s is the standard deviation. It is less where they are correlated or bent: the geometric
mean of how long a valley is along a coordinate and how wide.

References:
    Stan development team, "Stan reference manual" (warmup windows and shrinkage).
    Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979).
    Seyboldt, Carlson, Carpenter, "Preconditioning Hamiltonian Monte Carlo by minimizing Fisher
    divergence" (2026), for the diagonal of both variances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk.core.devices import wide, widest
from scoretk.fields.protocols import NoiseSource
from scoretk.solvers.warmup.learning import Change, Lesson, PartDefaults

__all__ = [
    "METRICS",
    "Scales",
    "Window",
    "accumulate",
    "approach_steps",
    "begin_window",
    "fisher_scales",
    "scales",
    "window_end",
]

METRICS = ("none", "diagonal", "fisher", "dense")

SHRINK, FLOOR = 5.0, 1e-3


class Window(NamedTuple):
    """What a window has seen.

    The number of draws, their mean, like an event, and the sum of squared deviations, like an
    event, or of their outer products, `(d, d)`.
    """

    draws: Tensor
    mean: Tensor
    deviations: Tensor


def approach_steps(warmup: int) -> int:
    """How many of the first steps of warmup only approach the target.

    0 where warmup is too short for windows.
    """
    if warmup < 20:
        return 0
    return 75 if warmup >= 150 else int(0.15 * warmup)


def window_end(step: int, warmup: int) -> tuple[bool, bool]:
    """Whether this step of warmup counts for the scales, and whether a window ends with it."""
    if warmup < 20:
        return False, False
    last, length = (50, 25) if warmup >= 150 else (int(0.1 * warmup), warmup)
    start, end = approach_steps(warmup), warmup - last
    if not start <= step < end:
        return False, False
    # a window takes all that is left where that is too short for another of twice its length
    while start + 3 * length <= end and start + length <= step:
        start, length = start + length, 2 * length
    stop = start + length if start + 3 * length <= end else end
    return True, step == stop - 1


def begin_window(x: Tensor, dense: bool) -> Window:
    """An empty window for positions x, `(chains, *event_shape)`."""
    shape = x.shape[1:]
    square = (shape.numel(), shape.numel()) if dense else shape
    mean, deviations = (x.new_zeros(size, dtype=widest(x.device)) for size in (shape, square))
    return Window(torch.zeros((), dtype=torch.float64), mean, deviations)


def accumulate(window: Window, x: Tensor, dense: bool) -> Window:
    """The window with the positions x, `(n, *event_shape)`, added."""
    n = len(x)
    if n == 0:
        return window
    rows = wide(x.detach())
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
    """The scales that a window has found.

    Args:
        window: The window.
        metric: "dense" for a Cholesky factor, else standard deviations.
        before: The scales so far. A thousandth of their squares counts as five draws, so that no
            unit is preferred. With "dense" covariances are shrunk towards 0 as well, by as many
            draws as there are dimensions.

    Returns:
        An empty window, and the scales, like an event or `(d, d)`.
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


def fisher_scales(window: Window, before: Tensor) -> tuple[Window, Tensor, Tensor]:
    """The scales of least Fisher divergence that a window of draws and gradients has found.

    Args:
        window: The window, of draws `(x, grad)` side by side, `(n, 2, *event_shape)`.
        before: The scales so far, which stay where these would be no positive numbers.

    Returns:
        An empty window, the scales, and the standard deviations, like an event.
    """
    emptied, (spread, steepness) = scales(window, "diagonal", torch.stack([before, 1 / before]))
    found = (spread / steepness).sqrt()
    return emptied, torch.where(found.isfinite() & (found > 0), found, before), spread


def mean_growth(before: Tensor, after: Tensor, dense: bool) -> float:
    """The geometric mean of how much longer each entry of a scale, of a factor's diagonal, became."""
    ratio = after.diagonal() / before.diagonal() if dense else after / before
    return float(ratio.log().mean().exp())


@dataclass(frozen=True)
class Scales(PartDefaults):
    """Learns the state's `scale`, a diagonal or a Cholesky factor.

    Args:
        metric: A name in `METRICS`; "fisher" needs the state's `grad`. With "none" the standard
            deviations are measured, for other parts to learn from, and the scales stay as they are.
        lengths: The names of the state's leaves that are lengths in scaled space, which are divided
            by the mean growth of the scales.
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
        return state, begin_window(self._seen(state), self._dense), 0

    def learn(
        self, state: Any, memory: Window, lesson: Lesson
    ) -> tuple[Any, Window, Change | None]:
        """As `Part.learn`."""
        counts, ends = window_end(lesson.step, lesson.warmup)
        if not counts:
            return state, memory, None
        memory = accumulate(memory, lesson.living(self._seen(state)), self._dense)
        if not ends:
            return state, memory, None
        before = state.scale
        if self.metric == "fisher":
            memory, after, spread = fisher_scales(memory, before)
        else:
            memory, spread = scales(memory, "dense" if self._dense else "diagonal", before)
            after = before if self.metric == "none" else spread
        grown = mean_growth(before, after, self._dense)
        shrunk = {name: getattr(state, name) / grown for name in self.lengths}
        return state._replace(scale=after, **shrunk), memory, Change(before, after, spread)

    def _seen(self, state: Any) -> Tensor:
        """What windows are made of: the draws, and with "fisher" the gradients beside them."""
        return torch.stack([state.x, state.grad], 1) if self.metric == "fisher" else state.x
