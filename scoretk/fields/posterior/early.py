"""Times at which x_t says almost nothing.

Near alpha = 0, where the path's conversions lose all digits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoretk.core.rows import across
from scoretk.fields.paths import GaussianPath

__all__ = ["earliest_time", "informed"]


def earliest_time(path: GaussianPath, dtype: torch.dtype) -> float:
    """When alpha/sigma is the fourth root of the dtype's rounding; 0 where it always is above."""
    return max(0.0, float(path.t(math.log(torch.finfo(dtype).eps) / 2)))


def informed(
    path: GaussianPath, x: Tensor, t: float | Tensor, earliest: float
) -> tuple[Tensor, float | Tensor]:
    """`(x_t, t)`, or before `earliest` the point at that time that says the same of x_1 (the same
    l).
    """
    if earliest == 0 or (not isinstance(t, Tensor) and t >= earliest):
        return x, t
    exact = torch.as_tensor(t, dtype=torch.float64)
    later = exact.clamp(min=earliest)
    tilt = (path.alpha(s) / path.sigma(s) ** 2 for s in (exact, later))
    kept = torch.where(exact < earliest, next(tilt) / next(tilt), 1.0)
    return across(kept.to(x), x) * x, t.clamp(min=earliest) if isinstance(t, Tensor) else earliest
