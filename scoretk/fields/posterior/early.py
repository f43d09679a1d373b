"""Times near alpha = 0, at which x_t says almost nothing and conversions lose all digits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoretk.core.devices import precise
from scoretk.core.rows import across
from scoretk.fields.paths import GaussianPath

__all__ = ["earliest_time", "informed"]


def earliest_time(path: GaussianPath, dtype: torch.dtype) -> float:
    """The time at which alpha/sigma is the fourth root of the dtype's rounding; 0 if it always
    is above.
    """
    return max(0.0, float(path.t(math.log(torch.finfo(dtype).eps) / 2)))


def informed(
    path: GaussianPath, x: Tensor, t: float | Tensor, earliest: float
) -> tuple[Tensor, float | Tensor]:
    """A point and time from `earliest` on that say the same of x_1.

    They are (x, t) itself where t is not before `earliest`; else the point at that time with the
    same `l = alpha x_t / sigma^2`.

    Args:
        path: The Gaussian path.
        x: `(batch, *event_shape)`.
        t: A scalar or one time a row.
        earliest: As `earliest_time` gives it.

    Returns:
        x and t, like the given ones.
    """
    if earliest == 0 or (not isinstance(t, Tensor) and t >= earliest):
        return x, t
    exact = precise(t)
    later = exact.clamp(min=earliest)
    tilt = (path.alpha(s) / path.sigma(s) ** 2 for s in (exact, later))
    kept = torch.where(exact < earliest, next(tilt) / next(tilt), 1.0)
    return across(kept.to(x), x) * x, t.clamp(min=earliest) if isinstance(t, Tensor) else earliest
