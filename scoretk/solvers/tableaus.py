r"""Fixed-grid methods of the probability flow as tables of numbers: one row an evaluation.

In the coordinates `y = x/alpha`, `s = sigma/alpha` the flow of a Gaussian path is `dy/ds = (y - D) / s`, whatever the
path. Every method here is linear in the position x and the predictions D, so between two times

    x_next = a x + b D_now + c D_before,

and the numbers a, b, c follow from alpha and sigma alone, in float64, once a run. An evaluation reads one row,

    t, (a, b, c) of the next point to evaluate at, (a, b, c) of the position kept,

so that a compiled or captured step serves every row, and no evaluation is spent that does not count.

Where the field has no Gaussian path the same rows hold for the velocity in t itself. On a path:

    Euler       y' = y + (s' - s) (y - D) / s, which is DDIM:  x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) D
    Heun        the trapezoid rule in s; on the step to sigma' = 0 Euler; from alpha = 0 the trapezoid rule in alpha/sigma
    DPM++(2M)   with u = log(alpha/sigma), h = u' - u, r = (u - u_before) / h:
                x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) ((1 + 1/(2r)) D - D_before / (2r));
                first order on the first step and on steps from alpha = 0 or to sigma' = 0

Each D form stays bounded at alpha = 0 and at sigma' = 0.

References: Song, Meng, Ermon, "Denoising diffusion implicit models" (2021); Karras, Aittala, Aila, Laine, "Elucidating
the design space of diffusion-based generative models" (2022); Lu, Zhou, Bao, Chen, Li, Zhu, "DPM-Solver++: fast solver
for guided sampling of diffusion probabilistic models" (2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from scoretk.errors import SingularConversion
from scoretk.fields.paths import GaussianPath

__all__ = ["METHODS", "Knot", "Tableau", "knots", "tableau"]

Weights = tuple[float, float, float]
_KEEP: Weights = (1.0, 0.0, 0.0)


class Knot(NamedTuple):
    """A time of the grid with its alpha and sigma, as floats."""

    t: float
    alpha: float
    sigma: float


class Tableau(NamedTuple):
    """`rows` of shape (evaluations, 7): t, weights of the next point, weights of the position; which rows end an interval."""

    rows: Tensor
    milestones: tuple[bool, ...]


def knots(path: GaussianPath | None, times: Tensor, denoise: bool) -> list[Knot]:
    """The grid's times with their alpha and sigma, and sigma = 0 behind them where the run is to end denoised."""
    if path is None:
        return [Knot(t, 1.0, 1.0) for t in times.tolist()]
    found = [Knot(*k) for k in zip(times.tolist(), path.alpha(times).tolist(), path.sigma(times).tolist(), strict=True)]
    if denoise and found[-1].sigma > 0:
        found.append(Knot(found[-1].t, found[-1].alpha, 0.0))
    return found


def tableau(method: str, path: GaussianPath | None, times: Tensor, denoise: bool = False) -> Tableau:
    """The rows of a method in `METHODS` along a grid."""
    grid = tuple(knots(path, times, denoise))
    if any(k.sigma == 0 for k in grid[:-1]):
        raise SingularConversion("the grid goes on behind sigma = 0: nothing leads away from there")
    return _along(METHODS[method] if path is not None else _VELOCITY[method], grid)


@lru_cache(16)
def _along(interval_rows: Callable[[Knot | None, Knot, Knot], list[list[float]]], grid: tuple[Knot, ...]) -> Tableau:
    rows, milestones = [], []
    for i, (now, after) in enumerate(pairwise(grid)):
        before = grid[i - 1] if i else None
        interval = interval_rows(before, now, after)
        rows += interval
        milestones += [False] * (len(interval) - 1) + [True]
    return Tableau(torch.tensor(rows, dtype=torch.float64), tuple(milestones))


def _row(t: float, ahead: Weights, kept: Weights) -> list[float]:
    return [t, *ahead, *kept]


def _first_order(now: Knot, after: Knot) -> Weights:
    gain = after.sigma / now.sigma
    return gain, after.alpha - now.alpha * gain, 0.0


def _euler(before: Knot | None, now: Knot, after: Knot) -> list[list[float]]:
    weights = _first_order(now, after)
    return [_row(now.t, weights, weights)]


def _heun(before: Knot | None, now: Knot, after: Knot) -> list[list[float]]:
    if after.sigma == 0:
        return _euler(before, now, after)
    gain = after.sigma / now.sigma
    if now.alpha == 0:  # s is infinite here: the trapezoid rule of d(x/sigma) = D d(alpha/sigma), bounded
        half = after.alpha / 2
        final = (gain, half, half)
    else:
        s, s_after = now.sigma / now.alpha, after.sigma / after.alpha
        h = s_after - s
        at_start = after.alpha * h * (1 / (2 * s_after) - 1 / s)
        final = (gain, -after.alpha * h / (2 * s_after), at_start)
    return [_row(now.t, _first_order(now, after), _KEEP), _row(after.t, final, final)]


def _dpmpp_2m(before: Knot | None, now: Knot, after: Knot) -> list[list[float]]:
    if before is None or before.alpha == 0 or after.sigma == 0:
        return _euler(before, now, after)
    gain, rate, _ = _first_order(now, after)
    u_before, u, u_after = (_half_log_snr(k) for k in (before, now, after))
    twice = 2 * (u - u_before) / (u_after - u)
    weights = (gain, rate * (1 + 1 / twice), -rate / twice)
    return [_row(now.t, weights, weights)]


def _half_log_snr(k: Knot) -> float:
    return math.log(k.alpha / k.sigma)


METHODS: dict[str, Callable[[Knot | None, Knot, Knot], list[list[float]]]] = {
    "euler": _euler,
    "heun": _heun,
    "dpmpp_2m": _dpmpp_2m,
}


def _velocity_euler(before: Knot | None, now: Knot, after: Knot) -> list[list[float]]:
    weights = (1.0, after.t - now.t, 0.0)
    return [_row(now.t, weights, weights)]


def _velocity_heun(before: Knot | None, now: Knot, after: Knot) -> list[list[float]]:
    h = after.t - now.t
    trapezoid = (1.0, h / 2, h / 2)
    return [_row(now.t, (1.0, h, 0.0), _KEEP), _row(after.t, trapezoid, trapezoid)]


_VELOCITY = {"euler": _velocity_euler, "heun": _velocity_heun}
"""The same in t, for a velocity without a Gaussian path."""
