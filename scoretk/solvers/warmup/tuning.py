r"""Tuning in warmup: the step size by dual averaging, the scales of the target by its moments; frozen afterwards.

Step size. With the acceptance a_m of warmup step m, pooled over chains, and the target delta,

    H_m = (1 - 1/(m + 10)) H_(m-1) + (delta - a_m) / (m + 10),    log eps_m = mu - sqrt(m) / .2 H_m,
    log eps = m^-.75 log eps_m + (1 - m^-.75) log eps

the last being what is kept, mu = log eps_0. (The usual .05 and mu = log(10 eps_0) suit the noise of one chain. Here they threw
the step size about so much that, fifty steps after a window, an acceptance of .574 was missed by .18; these miss by .02.)

Scales. In the first steps chains only approach the target, those that begin far off each in its own way (`warmup.approach`),
which leaves scales and a step size to go on with. Then windows that double in length, as Stan's: each window's pooled covariance
C (Chan's update) of n draws gives the scales S for the next, shrunk to `(n C + 5e-3 S^2) / (n + 5)`, S those so far; then the
step size starts anew. The last steps tune the step size alone.

All chains that tune share what they learn: a few steps of many chains say as much as many steps of one. But a mean over chains
does not see the few that sit far out, where the common step is too long for them. So, in warmup, each chain that was unlikely to
move in several steps on end halves its own step until it moves; such chains do not count for the common one. Chains beyond those
that tune do the same (`Following`) with what the others have found. `ChEES`, the default, pools by the harmonic mean.

References: Hoffman, Gelman, "The No-U-Turn sampler" (2014); Stan development team, "Stan reference manual" (warmup windows and
shrinkage); Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoretk.solvers.warmup.approach import begin_strides

__all__ = [
    "METRICS",
    "PATIENCE",
    "Following",
    "Tuning",
    "accumulate",
    "approach",
    "begin_following",
    "begin_tuning",
    "first_step_size",
    "harmonic_acceptance",
    "next_idle",
    "next_step_size",
    "pooled_acceptance",
    "restart",
    "scales",
    "shortening",
    "window_end",
]

METRICS = ("none", "diagonal", "dense")

GAMMA, DELAY, DECAY = 0.2, 10.0, 0.75
SHRINK, FLOOR = 5.0, 1e-3
UNLIKELY, PATIENCE, HALVINGS, LEAST = 0.05, 3, 30, 0.01


class Tuning(NamedTuple):
    """What tuning remembers: of dual averaging `(5,)` mu, log eps_m, log eps, H, m; of the window draws, mean, deviations.

    `deviations` is the sum of squared deviations, like the event, or of their outer products, `(d, d)`; `idle` `(chains,)` is
    how many steps longer than allowed for each chain was unlikely to move, and so how often its step is halved; `far` `(chains,)`
    says which chains go their own way in the first steps, `log_size` and `log_curvature` are the `Stride` of each on it.
    """

    averaging: Tensor
    draws: Tensor
    mean: Tensor
    deviations: Tensor
    idle: Tensor
    far: Tensor
    log_size: Tensor
    log_curvature: Tensor


class Following(NamedTuple):
    """What a chain remembers in warmup that takes over what others have tuned, as in `Tuning`."""

    idle: Tensor
    far: Tensor
    log_size: Tensor
    log_curvature: Tensor


def begin_tuning(x: Tensor, step_size: float, metric: str) -> Tuning:
    """Nothing learned yet. Arguments: x `(chains, *event_shape)`; the first step size; metric, a name in `METRICS`."""
    shape = x.shape[1:]
    square = (shape.numel(), shape.numel()) if metric == "dense" else shape
    mean, deviations = (x.new_zeros(size, dtype=torch.float64) for size in (shape, square))
    return Tuning(restart(step_size), torch.zeros((), dtype=torch.float64), mean, deviations, *begin_following(x))


def begin_following(x: Tensor) -> Following:
    """Nothing learned by chains at x `(chains, *event_shape)`, which take over what others have tuned."""
    idle = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return Following(idle, torch.zeros_like(idle, dtype=torch.bool), *begin_strides(x))


def restart(step_size: float) -> Tensor:
    """Dual averaging at its beginning, from this step size."""
    start = math.log(step_size)
    return torch.tensor([start, start, start, 0.0, 0.0], dtype=torch.float64)


def next_step_size(tuning: Tuning, accept: float, target: float, last: bool) -> tuple[Tuning, float]:
    """One step of dual averaging: the step size to go on with, the averaged one after the last step of warmup."""
    mu, log_step, average, error, count = tuning.averaging.tolist()
    count += 1
    share = 1 / (count + DELAY)
    error = (1 - share) * error + share * (target - (accept if math.isfinite(accept) else 0.0))
    log_step = mu - math.sqrt(count) / GAMMA * error
    weight = count**-DECAY
    average = weight * log_step + (1 - weight) * average
    averaging = torch.tensor([mu, log_step, average, error, count], dtype=torch.float64)
    return tuning._replace(averaging=averaging), math.exp(average if last else log_step)


def next_idle(idle: Tensor, accept: Tensor) -> Tensor:
    """One more for each chain that was unlikely to move; for the others one less, down to a new beginning."""
    moved = torch.where(idle > PATIENCE, idle - 1, 0)
    return torch.where(accept > UNLIKELY, moved, (idle + 1).clamp(max=PATIENCE + HALVINGS))


def shortening(idle: Tensor, dtype: torch.dtype) -> Tensor:
    """The factor on each chain's step, `(chains,)`: 1, or a power of 1/2."""
    return torch.exp2((PATIENCE - idle).clamp(max=0).to(dtype))


def pooled_acceptance(idle: Tensor, accept: Tensor, alive: Tensor) -> float:
    """The mean acceptance of the chains that are well and took the common step; 0 where there is none."""
    counted = accept[alive & (idle <= PATIENCE)]
    return float(counted.mean()) if len(counted) else 0.0


def harmonic_acceptance(idle: Tensor, accept: Tensor, alive: Tensor, diverging: Tensor) -> float:
    """As `pooled_acceptance`, by the harmonic mean, in which chains that are seldom accepted count for more.

    Those that diverged count as they do in the plain mean, as 0: a law that ends at an edge has some at any step size. The
    acceptance of the others counts as `LEAST` at least.
    """
    counted = alive & (idle <= PATIENCE)
    usual = accept[counted & ~diverging]
    if not len(usual):
        return 0.0
    return len(usual) / int(counted.sum()) / float((1 / usual.clamp(min=LEAST)).mean())


def approach(warmup: int) -> int:
    """How many steps of warmup, the first ones, only approach the target; 0 where it is too short for windows."""
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


def accumulate(tuning: Tuning, x: Tensor, dense: bool) -> Tuning:
    """Take in positions `(n, *event_shape)` of the chains that are well."""
    n = len(x)
    if n == 0:
        return tuning
    rows = x.detach().to(torch.float64)
    centre = rows.mean(0)
    about, shift, before = rows - centre, centre - tuning.mean, float(tuning.draws)
    total = before + n
    if dense:
        flat, off = about.reshape(n, -1), shift.flatten()
        spread = flat.T @ flat + torch.outer(off, off) * (before * n / total)
    else:
        spread = about.square().sum(0) + shift.square() * (before * n / total)
    return tuning._replace(
        draws=torch.tensor(total, dtype=torch.float64),
        mean=tuning.mean + shift * (n / total),
        deviations=tuning.deviations + spread,
    )


def scales(tuning: Tuning, metric: str, before: Tensor) -> tuple[Tuning, Tensor]:
    """Standard deviations like the event, or a Cholesky factor `(d, d)`, from the window, and an empty window.

    Arguments: before, the scales so far, whose squares, a thousandth of them, count as five draws: so that no unit is preferred.
    Covariances are drawn towards the variances alone by as many draws as there are dimensions.
    """
    n = float(tuning.draws)
    covariance = tuning.deviations / max(n - 1, 1)
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
    empty = tuning._replace(
        draws=torch.zeros_like(tuning.draws),
        mean=torch.zeros_like(tuning.mean),
        deviations=torch.zeros_like(tuning.deviations),
    )
    return empty, found.to(before.dtype)


def first_step_size(accept: Callable[[float], float], target: float, start: float = 0.1, tries: int = 30) -> float:
    """A step size within a factor of two of the one accepted as often as the target, from doubling or halving."""
    size, rising = start, accept(start) > target
    for _ in range(tries):
        size = size * 2 if rising else size / 2
        if (accept(size) > target) != rising:
            break
    return size
