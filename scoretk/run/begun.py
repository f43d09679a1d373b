"""Whether a field in time begins where its path does, found out at the start of a run.

A run along a Gaussian path starts from N(0, sigma(0)^2 I) in place of the law of
`x_0 = alpha(0) x_1 + sigma(0) eps`. Where alpha(0) is 0 they are the same; else the data's part,
alpha(0) D(x) by the model itself, has to be small beside the noise: of data far from the origin or
of a large scale it is not, and the flow from there leads somewhere else, without a word. The same
is asked at the time at which a grid begins that begins later.

A run of which no chain survives the first interval is told at its end what time the model was
given: a network of sigma, given t = 0, takes the logarithm of 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor

from scoretk.core.anatomy import walk
from scoretk.core.devices import wide
from scoretk.core.rows import finite_rows
from scoretk.core.warned import warn
from scoretk.errors import Status
from scoretk.fields.resolve import Bound, TimedField, of_rows
from scoretk.fields.wrappers import Diffusion, Velocity
from scoretk.run.asking import affordable

__all__ = ["warn_of_base", "warn_of_time"]

ROWS, VALUES, SHARE = 4, 128, 5
ABOUT = 1.4
"""By which factor the chains' spread may differ from sigma(0). Others began elsewhere: at another
level of noise, as annealed Langevin does, or from a base that has the data's part.
"""
FARTHER, WIDER = 1.0, 1 / 3
"""What is told: the data's part, in units of the noise; and the mean of `x e / sigma`, which is 1 for
draws of `p_0` (Stein's identity) and `sigma^2 / (sigma^2 + alpha^2 s^2)` of N(0, sigma^2) for data of
deviation s about 0. Of 128 numbers it is below a third by chance once in ten million runs.
"""
LATE_VALUES, LATE = 1024, 0.75
"""How many numbers are asked for, and the mean of `x e / sigma` that is told, where a grid begins after t = 0: there
the data's part is what the user left out. Of so many numbers it is lower as rarely by chance.
"""


def warn_of_base(bound: Bound, x: Tensor, steps: int, first: float = 0.0) -> None:
    """Warn where the first level of noise does not cover the data.

    Args:
        bound: The field as a solver receives it, with condition rows for the rows of x.
        x: `(chains, *event_shape)`, where the chains start.
        steps: How many steps the run makes; one that would pay more than a `SHARE` of them for the
            question is not asked.
        first: The time at which the run begins.
    """
    if not isinstance(bound, TimedField) or bound.path is None or not x.numel():
        return
    alpha, sigma = float(bound.path.alpha(first)), float(bound.path.sigma(first))
    values, wider = (VALUES, WIDER) if first == 0 else (LATE_VALUES, LATE)
    rows = max(ROWS, -(-values // x[0].numel()))
    if alpha == 0 or rows > len(x) or not affordable(rows, x, steps, SHARE):
        return
    few = torch.arange(rows, device=x.device)
    try:
        with torch.no_grad():
            data = of_rows(bound, few).denoise(x.detach()[few], first)
    except Exception:  # noqa: BLE001 (a model that takes no few rows, or no such t: the run will tell)
        return
    well = finite_rows(data)
    if not bool(well.any()):
        return
    x, data = wide(x.detach()[few][well]), wide(data[well])
    part, spread = alpha * root_mean_square(data) / sigma, root_mean_square(x)
    if not sigma / ABOUT < spread < sigma * ABOUT:
        return
    if part > FARTHER or float((x * (x - alpha * data)).mean()) < wider * sigma**2:
        warn(
            f"the run starts from N(0, {sigma:.3g}^2), which is not where the model's path begins: it "
            f"takes the data for far from 0, or spread wider than {sigma / alpha:.3g}. Draws are of "
            f"another law. "
            + (
                f"At t = {first:.3g}, where the grid begins, data are in x: begin at 0, or give init="
                if first > 0
                else "Scale the data to unit size, as paths suppose, or take a path with more noise"
            )
        )


def warn_of_time(bound: Bound, x: Tensor, status: Tensor, failed_at: Tensor) -> None:
    """Warn where all chains failed in the first interval, as a network has no answer at t = 0.

    Args:
        bound: The field as a solver receives it, with condition rows for the rows of x.
        x: `(chains, *event_shape)`, where the chains were left.
        status: The `Status` code of each, `(chains,)`.
        failed_at: The interval in which each failed, `(chains,)`.
    """
    if not isinstance(bound, TimedField) or not x.numel():
        return
    if not bool(((status == int(Status.NONFINITE)) & (failed_at == 0)).all()):
        return
    networks = [part for part in walk(bound.native) if isinstance(part, Diffusion | Velocity)]
    if any(_is_silent(network, x.detach()[:1], bound.cond) for network in networks):
        warn(
            "all chains failed in the first interval: the network's answer at t = 0 is NaN or infinite. "
            "Diffusion and Velocity give t in [0, 1], from noise to data. Of sigma: scoretk.from_sigmas; of "
            "timesteps: scoretk.from_timesteps; with noise at t = 1: scoretk.from_reversed_time"
        )


def _is_silent(network: Diffusion | Velocity, x: Tensor, cond: Mapping[str, Tensor]) -> bool:
    """Whether a network's answer at t = 0 is not finite, with its conditions or without."""
    for given in ({name: value[:1] for name, value in cond.items()}, {}):
        with suppress(Exception), torch.no_grad():  # no single row, or other conditions
            return not bool(network.predict(x, 0.0, **given).isfinite().all())
    return False


def root_mean_square(x: Tensor) -> float:
    """The root mean square of all entries."""
    return float(x.square().mean().sqrt())
