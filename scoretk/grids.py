r"""Time grids: float64 times on the CPU, from t = 0 (noise) to t = 1 (data), along which a timed solver walks.

`sigma/alpha` names the relative noise level in the coordinates `x/alpha` in which solvers work. A path with alpha = 0
at t = 0 has no finite level there: grids in the level then start at t = 0 and continue from `LARGEST_LEVEL`.
A path that ends above sigma = 0 (VE, EDM) ends there; the step from its end to sigma = 0 is the solver's `denoise`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scoretk.arguments import count, option
from scoretk.errors import InvalidArgument
from scoretk.fields.paths import GaussianPath, Linear, Tabulated

__all__ = ["GRIDS", "LARGEST_LEVEL", "SMALLEST_LEVEL", "grid", "karras", "levels", "log_snr", "logistic", "uniform"]

LARGEST_LEVEL, SMALLEST_LEVEL = 80.0, 0.002
GRIDS = ("uniform", "logistic", "karras", "log_snr")


def uniform(steps: int) -> Tensor:
    """`steps + 1` equally spaced times from 0 to 1."""
    return torch.linspace(0, 1, count("steps", steps, least=1) + 1, dtype=torch.float64)


def levels(path: GaussianPath, t: Tensor) -> Tensor:
    """`sigma/alpha` at times t; `inf` where alpha = 0."""
    return path.sigma(t) / path.alpha(t)


def logistic(path: GaussianPath, steps: int, exponent: float = 0.8) -> Tensor:
    """Times at which `1 / (1 + level^exponent)` is equally spaced, `steps + 1` of them.

    The log-SNR then runs through the quantiles of a logistic distribution, densest where the level is that of data of unit
    scale, which is where samples take their shape. With exponent 1 these are equal steps of the linear path's time.
    Both ends are ordinary points, also those with alpha = 0 or sigma = 0.
    """
    high, low = levels(path, torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    first, last = 1 / (1 + high**exponent), 1 / (1 + low**exponent)
    u = first + (last - first) * uniform(steps)
    times = path.t(2 / exponent * torch.logit(u[1:-1]))
    return torch.cat([u.new_zeros(1), times, u.new_ones(1)])


def karras(path: GaussianPath, steps: int, rho: float = 7.0) -> Tensor:
    """Levels with `level^(1/rho)` equally spaced (Karras et al., "Elucidating the design space of diffusion-based
    generative models", 2022), as `steps + 1` times."""
    return _spaced(path, steps, lambda s: s ** (1 / rho), lambda r: r**rho)


def log_snr(path: GaussianPath, steps: int) -> Tensor:
    """Equally spaced log signal-to-noise ratios, as `steps + 1` times."""
    return _spaced(path, steps, torch.log, torch.exp)


def _spaced(path: GaussianPath, steps: int, forward, backward) -> Tensor:  # type: ignore[no-untyped-def]
    """Times at which `forward(level)` is equally spaced between the path's ends, those of infinite log-SNR apart."""
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    high, low = levels(path, ends).tolist()
    opens, closes = math.isinf(high), low == 0
    inner = count("steps", steps, least=1) - opens - closes
    if inner < 0 or (inner == 0 and steps > 1 and not (opens and closes)):
        raise InvalidArgument(
            "steps", steps, f"at least {opens + closes + 1} on {path}, whose ends are steps of their own"
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


def grid(spec: str | Sequence[float] | Tensor | None, path: GaussianPath | None, steps: int) -> Tensor:
    """The times of a grid given by name, by its own times, or left to the default.

    Arguments: spec, None (logistic; uniform in t on the linear path, on a table and without a path), a name in `GRIDS`,
    or increasing times in [0, 1]; path, None for a flow without a Gaussian path, which has uniform grids only; steps,
    ignored where times are given.
    """
    if spec is None:
        spec = "uniform" if path is None or isinstance(path, Linear | Tabulated) else "logistic"
    if isinstance(spec, str):
        option("grid", spec, GRIDS)
        if spec == "uniform":
            return uniform(steps)
        if path is None:
            raise InvalidArgument("grid", spec, "'uniform' or times: a flow without a Gaussian path has no noise level")
        return {"logistic": logistic, "karras": karras, "log_snr": log_snr}[spec](path, steps)
    try:
        times = torch.as_tensor(spec, dtype=torch.float64, device="cpu").flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument("grid", spec, f"one of {', '.join(GRIDS)} or times in [0, 1]") from error
    inside = len(times) >= 2 and bool((times.diff() > 0).all()) and float(times[0]) >= 0 and float(times[-1]) <= 1
    if not inside:
        raise InvalidArgument("grid", spec, "at least two increasing times in [0, 1]")
    return times
