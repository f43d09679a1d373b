"""Time grids: float64 times on the CPU, from t = 0 (noise) to t = 1 (data), for timed solvers.

`sigma/alpha` is the relative noise level, in the coordinates `x/alpha` in which solvers work. A
path with alpha = 0 at t = 0 has no finite level there: grids in the level then start at t = 0 and
continue from `LARGEST_LEVEL`. A path that ends above sigma = 0 (VE, EDM) ends there; the step from
its end to sigma = 0 is the solver's `denoise`.

References:
    Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative
    models" (2022): `karras`, `edm`.
    Nichol, Dhariwal, "Improved denoising diffusion probabilistic models" (2021): `cosine`.
    Lu, Zhou, Bao, Chen, Li, Zhu, "DPM-Solver: a fast ODE solver for diffusion probabilistic model
    sampling in around 10 steps" (2022): `log_snr`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretk.core.arguments import count, floats, option, positive
from scoretk.core.keywords import explained
from scoretk.core.modules import left_as_found
from scoretk.core.noise import Noise
from scoretk.errors import InvalidArgument
from scoretk.fields.paths import GaussianPath, Tabulated, check_path
from scoretk.fields.protocols import optional
from scoretk.fields.resolve import resolve
from scoretk.ode.registry import find_method
from scoretk.ode.search import follow, search_shares
from scoretk.ode.tableaus import tableau

__all__ = [
    "GRIDS",
    "LARGEST_LEVEL",
    "SMALLEST_LEVEL",
    "adapt",
    "cosine",
    "edm",
    "grid",
    "karras",
    "levels",
    "log_snr",
    "logistic",
    "search",
    "table",
    "uniform",
]

LARGEST_LEVEL, SMALLEST_LEVEL = 80.0, 0.002
FINE = 256
"""The intervals by which `search` solves its trajectories."""


@explained
def uniform(steps: int) -> Tensor:
    """`steps + 1` equally spaced times from 0 to 1."""
    return torch.linspace(0, 1, count("steps", steps, least=1) + 1, dtype=torch.float64)


@explained
def levels(path: GaussianPath, t: Tensor) -> Tensor:
    """`sigma/alpha` at times t, like t; `inf` where alpha = 0.

    Raises:
        InvalidArgument: The path is none.
    """
    check_path(path)
    return path.sigma(t) / path.alpha(t)


@explained
def logistic(path: GaussianPath, steps: int, exponent: float = 0.8) -> Tensor:
    """Times at which `1 / (1 + level^exponent)` is equally spaced.

    The log-SNR then runs through the quantiles of a logistic distribution, densest where the level
    is that of data of unit scale, which is where samples take their shape. With exponent 1 these
    are equal steps of the linear path's time. Both ends are ordinary points, also those with alpha
    = 0 or sigma = 0.

    Args:
        path: The Gaussian path.
        steps: The number of intervals.
        exponent: Positive; smaller values put more times near the ends.

    Returns:
        `(steps + 1,)`.
    """
    positive("exponent", exponent)
    high, low = levels(path, torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    first, last = 1 / (1 + high**exponent), 1 / (1 + low**exponent)
    u = first + (last - first) * uniform(steps)
    times = path.t(2 / exponent * torch.logit(u[1:-1]))
    return torch.cat([u.new_zeros(1), times, u.new_ones(1)])


@explained
def cosine(path: GaussianPath, steps: int) -> Tensor:
    """Times at which the angle `atan(level)` is equally spaced: equal steps of the cosine path's
    time.

    Args:
        path: The Gaussian path.
        steps: The number of intervals.

    Returns:
        `(steps + 1,)`.

    References:
        Nichol, Dhariwal, "Improved denoising diffusion probabilistic models" (2021).
    """
    high, low = levels(path, torch.tensor([0.0, 1.0], dtype=torch.float64)).atan()
    angle = high + (low - high) * uniform(steps)
    return torch.cat([angle.new_zeros(1), path.t(-2 * angle[1:-1].tan().log()), angle.new_ones(1)])


@explained
def karras(path: GaussianPath, steps: int, rho: float = 7.0) -> Tensor:
    """Times at which `level^(1/rho)` is equally spaced.

    Args:
        path: The Gaussian path.
        steps: The number of intervals.
        rho: Positive; larger values put more times at small levels.

    Returns:
        `(steps + 1,)`.

    Raises:
        InvalidArgument: There are fewer steps than the ends of the path need.

    References:
        Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative
        models" (2022).
    """
    positive("rho", rho)
    return _spaced(path, steps, lambda s: s ** (1 / rho), lambda r: r**rho)


@explained
def edm(path: GaussianPath, steps: int) -> Tensor:
    """The levels of EDM: those of `karras` with rho = 7 between 80 and .002, on any path.

    The ends of a path that lie beyond these are steps of their own.

    Args:
        path: The Gaussian path.
        steps: The number of intervals.

    Returns:
        `(steps + 1,)`.

    Raises:
        InvalidArgument: There are fewer steps than the ends of the path need.

    References:
        Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative
        models" (2022).
    """
    return _spaced(
        path, steps, lambda s: s ** (1 / 7), lambda r: r**7, widest=(LARGEST_LEVEL, SMALLEST_LEVEL)
    )


@explained
def log_snr(path: GaussianPath, steps: int) -> Tensor:
    """Times at which the log signal-to-noise ratio is equally spaced.

    Args:
        path: The Gaussian path.
        steps: The number of intervals.

    Returns:
        `(steps + 1,)`.

    Raises:
        InvalidArgument: There are fewer steps than the ends of the path need.
    """
    return _spaced(path, steps, torch.log, torch.exp)


def _spaced(
    path: GaussianPath,
    steps: int,
    forward: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor], Tensor],
    widest: tuple[float, float] = (math.inf, 0.0),
) -> Tensor:
    """Times at which `forward(level)` is equally spaced between the path's ends.

    An end at `widest` or beyond is a step of its own.

    Args:
        path: The Gaussian path.
        steps: The number of intervals.
        forward: A monotone function of the level.
        backward: Its inverse.
        widest: The largest and the smallest level that are spaced.

    Returns:
        `(steps + 1,)`.
    """
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    high, low = levels(path, ends).tolist()
    opens, closes = _beyond(high, widest[0]), _beyond(widest[1], low)
    inner = count("steps", steps, least=1) - opens - closes
    if inner < 0 or (inner == 0 and steps > 1 and not (opens and closes)):
        raise InvalidArgument(
            "steps",
            steps,
            f"at least {opens + closes + 1} on {path}, whose ends are steps of their own",
        )
    high = LARGEST_LEVEL if opens else high
    low = SMALLEST_LEVEL if closes else low
    between = torch.linspace(0, 1, inner + 1, dtype=torch.float64)
    a, b = forward(torch.tensor([high, low], dtype=torch.float64))
    times = path.t(-2 * torch.log(backward(a + (b - a) * between)))
    if not opens:
        times[0] = 0.0
    if not closes:
        times[-1] = 1.0
    return torch.cat([ends[:1]] * opens + [times] + [ends[1:]] * closes)


def _beyond(larger: float, smaller: float) -> bool:
    """Whether a path's end lies beyond a limit, rounding aside.

    Infinity and 0 always do.
    """
    return larger > smaller * (1 + 1e-9) or math.isinf(larger) or smaller == 0 == larger


@explained
def table(path: GaussianPath, given: Sequence[float], steps: int | None = None) -> Tensor:
    """The times of a table of decreasing levels `sigma/alpha`, such as published ones.

    Args:
        path: The Gaussian path.
        given: The levels; inf is t = 0, and 0 is t = 1.
        steps: The number of intervals; log-levels between the table's are interpolated. None for
            the table's own.

    Returns:
        `(steps + 1,)`.

    Raises:
        InvalidArgument: The path is none, or the levels do not decrease, are negative, or cannot be
            interpolated.
    """
    check_path(path)
    decreasing = "at least two decreasing levels sigma/alpha, none negative"
    level = floats("given", given, decreasing).cpu().flatten()
    if len(level) < 2 or not bool((level.diff() < 0).all()) or float(level[-1]) < 0:
        raise InvalidArgument("given", given, decreasing)
    if steps is not None:
        if not bool(level.isfinite().all() and (level > 0).all()):
            raise InvalidArgument(
                "given", given, "positive, finite levels where they are to be interpolated"
            )
        places = (len(level) - 1) * uniform(steps)
        level = _interpolated(
            places, torch.arange(len(level), dtype=torch.float64), level.log()
        ).exp()
    times = path.t(-2 * level.log())
    times = torch.where(level.isinf(), 0.0, torch.where(level == 0, 1.0, times))
    return grid(times.clamp(0, 1), path, len(times) - 1)


@explained
def adapt(
    field: Any,
    steps: int,
    *,
    order: int = 3,
    chains: int = 32,
    fine: int = 256,
    seed: int = 0,
    cond: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The grid on which the steps of a method make equal local errors on this field.

    A few trajectories are solved on a fine grid, in the time `w = alpha/(alpha+sigma)` and the
    position `x/(alpha+sigma)` (t and x without a path), whose velocity F gives the local error of a
    step: `h^(order+1) |d^order F / dw^order|`, here relative to the spread of the trajectories at
    that time, which is what the rest of the flow scales it by. The steps are
    `h ~ (local error density)^(-1/(order+1))`. Half of the density is the default grid's, so that
    no time is left out.

    Args:
        field: A field in time with a base to start from.
        steps: The number of intervals.
        order: The order of the method's prediction (3 for "adams_3").
        chains: The number of trajectories.
        fine: The intervals of the fine grid, each one evaluation of every trajectory.
        seed: The seed of their starts.
        cond: Condition values by name, one row a chain.

    Returns:
        `(steps + 1,)`, for `ProbabilityFlow(grid=...)`; it is to be found once and kept.

    Raises:
        InvalidArgument: An argument is out of its range.
        MissingCapability: The field has no velocity.
    """
    count("order", order, least=1)
    base = grid(None, optional(field, "path"), count("fine", fine, least=4 * (order + 1)))
    with left_as_found(field):
        w, position, slope = _trajectories(
            field, base, count("chains", chains, least=2), seed, cond
        )
    divided, n = slope.flatten(1), len(slope)
    for k in range(1, order + 1):
        divided = divided.diff(dim=0) / (w[k:n] - w[: n - k])[:, None]
    centre = w[:n].unfold(0, order + 1, 1).mean(1)
    error = divided.square().mean(1).sqrt()
    spread = (position - position.mean(1, keepdim=True)).square().flatten(1).mean(1).sqrt()
    spread = _interpolated(centre, w, spread.clamp(min=float(spread.max()) / 100))
    middle = (w[1:] + w[:-1]) / 2
    density = _interpolated(middle, centre, (error / spread).log().clamp(min=-700)).exp() ** (
        1 / (order + 1)
    )
    share = density * w.diff()
    share = _smoothed(share / share.sum(), fine // 16)
    reached = torch.cat([share.new_zeros(1), (share + 1 / len(share)).cumsum(0) / 2])
    places = _interpolated(
        uniform(steps) * reached[-1], reached, torch.arange(fine + 1, dtype=torch.float64)
    )
    found = _interpolated(places, torch.arange(fine + 1, dtype=torch.float64), base)
    found[0], found[-1] = 0.0, 1.0
    return found


@explained
def search(
    field: Any,
    steps: int,
    method: str = "adams_pc_2",
    *,
    denoise: bool = False,
    chains: int = 64,
    tries: int = 400,
    seed: int = 0,
    cond: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The grid on which a method with so few steps is nearest to the flow's own end points.

    A few trajectories are solved on a fine grid. Of grids of `steps` intervals that is taken on
    which the method ends nearest to them, in the mean logarithm of the distances: the best of
    `GRIDS`, and from there by a direct search (`scoretk.ode.search`), which needs no derivatives.
    Where `adapt` makes local errors equal, for any method and many steps, this is for one method
    and its last digit with few.

    Args:
        field: A field in time with a base to start from.
        steps: The number of intervals.
        method: The method, one along a given grid.
        denoise: As `ProbabilityFlow` is to have it; its closing step comes beside `steps`.
        chains: The number of trajectories.
        tries: How many grids are tried at most, each by `chains` trajectories.
        seed: The seed of their starts.
        cond: Condition values by name, one row a chain.

    Returns:
        `(steps + 1,)`, for `ProbabilityFlow(method, grid=...)`; it is to be found once and kept.

    Raises:
        InvalidArgument: An argument is out of its range, or the method chooses its own steps.
        UnknownName: No method has this name.
        MissingCapability: The field has no velocity.

    References:
        Sabour, Fidler, Kreis, "Align your steps: optimizing sampling schedules in diffusion models"
        (2024), and Tong, Hoang, Liu, Van den Broeck, Niepert, "Learning to discretize denoising
        diffusion ODEs" (2025), for grids found by the error.
    """
    count("steps", steps, least=1)
    count("tries", tries, least=1)
    rule = find_method(method)
    if rule.adaptive:
        raise InvalidArgument("method", method, "a method along a given grid, such as 'adams_pc_2'")
    path = optional(field, "path")
    with left_as_found(field), torch.no_grad():
        bound: Any = resolve(field, {rule.needs}, cond, timed=True)
        x = bound.base.draw(count("chains", chains, least=2), Noise(seed, torch.arange(chains)))

        def end(name: str, times: Tensor) -> Tensor:
            kind = "velocity" if bound.path is None else "data"
            table = tableau(name, bound.path, times, denoise)
            return follow(table, x, lambda x, t: bound.to(kind, x, t))

        exact = end("adams_pc_3", grid(None, path, FINE))

        def error(times: Tensor) -> float:
            off = (end(rule.name, times) - exact).flatten(1).norm(dim=1).double()
            nearest = torch.finfo(x.dtype).eps * float(exact.norm(dim=0).max())
            value = float(off.clamp(min=nearest).log().mean())
            return value if math.isfinite(value) else math.inf

        way, places = grid(None, path, 16 * FINE), uniform(16 * FINE)

        def times_of(shares: Tensor) -> Tensor:
            times = _interpolated(shares.cumsum(0), places, way)
            return torch.cat([times.new_zeros(1), times[:-1], times.new_ones(1)])

        begun = min(_known(path, steps), key=error)
        shares = _interpolated(begun, way, places).diff().clamp(min=1e-6)
        found = times_of(search_shares(lambda s: error(times_of(s)), shares / shares.sum(), tries))
        return min(begun, found, key=error)


def _known(path: GaussianPath | None, steps: int) -> list[Tensor]:
    """The grids in `GRIDS` that a path has with so many steps."""
    known = [grid(None, path, steps)]
    for name in GRIDS if path is not None else ():
        with suppress(InvalidArgument):
            known.append(grid(name, path, steps))
    return known


def _trajectories(
    field: Any, times: Tensor, chains: int, seed: int, cond: Mapping[str, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Trajectories by the second-order Adams rule, in w.

    Returns:
        Times w `(n + 1,)`, positions `(n + 1, chains, *event)`, and their slopes in w,
        `(n, chains, *event)`.
    """
    bound: Any = resolve(field, {"velocity"}, cond, timed=True)
    path = bound.path
    x = bound.base.draw(chains, Noise(seed, torch.arange(chains))).double()
    alpha, sigma = (
        (path.alpha(times), path.sigma(times)) if path is not None else (times, 1 - times)
    )
    scale = alpha + sigma
    w = alpha / scale
    position, positions, slopes = x / scale[0], [x / scale[0]], list[Tensor]()
    with torch.no_grad():
        for i, h in enumerate(w.diff().tolist()):
            x, t = position * scale[i], float(times[i])
            slopes.append(
                bound.velocity(x, t)
                if path is None
                else (scale[i] * bound.denoise(x, t) - x) / sigma[i]
            )
            ratio = h / float(w[i] - w[i - 1]) / 2 if i else 0.0
            position = position + h * (slopes[-1] + ratio * (slopes[-1] - slopes[max(i - 1, 0)]))
            positions.append(position)
    return w, torch.stack(positions), torch.stack(slopes)


def _smoothed(values: Tensor, width: int) -> Tensor:
    """Running means of `2 width + 1` values, of fewer at the ends."""
    total = torch.cat([values.new_zeros(1), values.cumsum(0)])
    i = torch.arange(len(values))
    low, high = (i - width).clamp(min=0), (i + width + 1).clamp(max=len(values))
    return (total[high] - total[low]) / (high - low)


def _interpolated(x: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """The piecewise linear function through `(at, values)`, constant beyond them, at x."""
    return torch.from_numpy(np.interp(x.numpy(), at.numpy(), values.numpy()))


_NAMED = {"logistic": logistic, "karras": karras, "edm": edm, "log_snr": log_snr, "cosine": cosine}
GRIDS = ("uniform", *_NAMED)


@explained
def grid(
    spec: str | Sequence[float] | Tensor | None, path: GaussianPath | None, steps: int
) -> Tensor:
    """The times of a grid: by name, as given, or the default.

    Args:
        spec: A name in `GRIDS`; increasing times in [0, 1]; or None for "logistic" ("uniform" on a
            table and without a path).
        path: The Gaussian path; None for a flow without one, which has uniform grids only.
        steps: The number of intervals; ignored where times are given.

    Returns:
        `(steps + 1,)`.

    Raises:
        InvalidArgument: The times do not increase or leave [0, 1], the name needs a path, or there
            are too few steps.
        UnknownName: No grid has this name.
    """
    if spec is None:
        spec = "uniform" if path is None or isinstance(path, Tabulated) else "logistic"
    if isinstance(spec, str):
        option("grid", spec, GRIDS)
        if spec == "uniform":
            return uniform(steps)
        if path is None:
            raise InvalidArgument(
                "grid",
                spec,
                "'uniform' or times: a flow without a Gaussian path has no noise level",
            )
        return _NAMED[spec](path, steps)
    times = floats("grid", spec, f"one of {', '.join(GRIDS)} or times in [0, 1]").cpu().flatten()
    inside = (
        len(times) >= 2
        and bool((times.diff() > 0).all())
        and float(times[0]) >= 0
        and float(times[-1]) <= 1
    )
    if not inside:
        falling = len(times) >= 2 and bool((times.diff() < 0).all()) and float(times[0]) > 1
        way = "Times of levels sigma / alpha: scoretk.grids.table(path, levels)" if falling else ""
        raise InvalidArgument("grid", spec, "at least two increasing times in [0, 1]", way)
    return times


def kept_grid(spec: Any) -> str | tuple[float, ...] | None:
    """What a solver keeps of a grid that it is given: a known name, times, or None.

    Raises:
        InvalidArgument: The times do not increase or leave [0, 1].
        UnknownName: No grid has this name.
    """
    if spec is None or isinstance(spec, str):
        return None if spec is None else option("grid", spec, GRIDS)
    return tuple(grid(spec, None, 1).tolist())
