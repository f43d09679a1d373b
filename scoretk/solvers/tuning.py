r"""Tuning in warmup: the step size by dual averaging, the scales of the target by its moments; frozen afterwards.

Step size. With the acceptance a_m of warmup step m, pooled over chains, and the target delta,

    H_m = (1 - 1/(m + 10)) H_(m-1) + (delta - a_m) / (m + 10),    log eps_m = mu - sqrt(m) / .2 H_m,
    log eps = m^-.75 log eps_m + (1 - m^-.75) log eps

the last being what is kept, mu = log eps_0. (The usual .05 and mu = log(10 eps_0) suit the noise of one chain. Here they threw
the step size about so much that, fifty steps after a window, an acceptance of .574 was missed by .18; these miss by .02.)

Scales. Windows that double in length, as Stan's: after the first steps, which only approach the target, each window's
pooled covariance C (Chan's update) of n draws gives the scales for the next, shrunk to `(n C + 5e-3 I) / (n + 5)`; the
step size then starts anew. The last steps tune the step size alone.

All chains that tune share what they learn: a few steps of many chains say as much as many steps of one. But a mean over chains
does not see the few that sit far out, where the step is too long for them, and never move. So, until the last window, a chain
that was not once likely to move in ten steps counts as an acceptance of 0 of all: the step shrinks until it comes along.

References: Hoffman, Gelman, "The No-U-Turn sampler" (2014); Stan development team, "Stan reference manual" (warmup windows and
shrinkage); Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "METRICS",
    "Tuning",
    "accumulate",
    "begin_tuning",
    "first_step_size",
    "last_window",
    "next_step_size",
    "pooled_acceptance",
    "restart",
    "scales",
    "window_end",
]

METRICS = ("none", "diagonal", "dense")

GAMMA, DELAY, DECAY = 0.2, 10.0, 0.75
SHRINK, FLOOR = 5.0, 1e-3
STUCK_BELOW, STUCK_AFTER = 0.05, 10


class Tuning(NamedTuple):
    """What tuning remembers: of dual averaging `(5,)` mu, log eps_m, log eps, H, m; of the window draws, mean, deviations.

    `deviations` is the sum of squared deviations, like the event, or of their outer products, `(d, d)`; `idle` `(chains,)`
    counts the steps since each chain was last likely to move.
    """

    averaging: Tensor
    draws: Tensor
    mean: Tensor
    deviations: Tensor
    idle: Tensor


def begin_tuning(x: Tensor, step_size: float, metric: str) -> Tuning:
    """Nothing learned yet. Arguments: x `(chains, *event_shape)`; the first step size; metric, a name in `METRICS`."""
    shape = x.shape[1:]
    square = (shape.numel(), shape.numel()) if metric == "dense" else shape
    mean, deviations = (x.new_zeros(size, dtype=torch.float64) for size in (shape, square))
    idle = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return Tuning(restart(step_size), torch.zeros((), dtype=torch.float64), mean, deviations, idle)


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


def pooled_acceptance(tuning: Tuning, accept: Tensor, alive: Tensor, settling: bool) -> tuple[Tuning, float]:
    """The acceptance of all chains that are well: their mean, or 0 while one of them is stuck.

    Arguments: accept `(chains,)`; alive `(chains,)` of bool; settling, whether the last window has begun, in which only the mean
    counts.
    """
    idle = torch.where(accept > STUCK_BELOW, 0, tuning.idle + 1)
    stuck = not settling and bool((idle[alive] > STUCK_AFTER).any())
    return tuning._replace(idle=idle), 0.0 if stuck else float(accept[alive].mean())


def last_window(warmup: int) -> int:
    """The first step of the last window, in which only the step size is tuned."""
    return warmup - (50 if warmup >= 150 else int(0.1 * warmup))


def window_end(step: int, warmup: int) -> tuple[bool, bool]:
    """Whether this step of warmup counts for the scales, and whether a window ends with it."""
    if warmup < 20:
        return False, False
    start, length = (75, 25) if warmup >= 150 else (int(0.15 * warmup), warmup)
    end = last_window(warmup)
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
        flat, off = about.flatten(1), shift.flatten()
        spread = flat.T @ flat + torch.outer(off, off) * (before * n / total)
    else:
        spread = about.square().sum(0) + shift.square() * (before * n / total)
    return tuning._replace(
        draws=torch.tensor(total, dtype=torch.float64),
        mean=tuning.mean + shift * (n / total),
        deviations=tuning.deviations + spread,
    )


def scales(tuning: Tuning, metric: str, dtype: torch.dtype) -> tuple[Tuning, Tensor]:
    """Standard deviations like the event, or a Cholesky factor `(d, d)`, from the window, and an empty window."""
    n = float(tuning.draws)
    covariance = tuning.deviations / max(n - 1, 1)
    weight = n / (n + SHRINK)  # so that (1 - weight) FLOOR is Stan's 5e-3 / (n + 5)
    if metric == "dense":
        eye = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
        found = torch.linalg.cholesky(weight * covariance + (1 - weight) * FLOOR * eye)
    else:
        found = (weight * covariance + (1 - weight) * FLOOR).sqrt()
    empty = tuning._replace(
        draws=torch.zeros_like(tuning.draws),
        mean=torch.zeros_like(tuning.mean),
        deviations=torch.zeros_like(tuning.deviations),
    )
    return empty, found.to(dtype)


def first_step_size(accept: Callable[[float], float], target: float, start: float = 0.1, tries: int = 30) -> float:
    """A step size within a factor of two of the one accepted as often as the target, from doubling or halving."""
    size, rising = start, accept(start) > target
    for _ in range(tries):
        size = size * 2 if rising else size / 2
        if (accept(size) > target) != rising:
            break
    return size
