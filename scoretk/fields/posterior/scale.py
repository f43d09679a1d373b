"""Whether the data have the spread that a method takes them to have, by the first residual."""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakSet

import torch

from scoretk.core.rows import row_dot
from scoretk.core.warned import warn
from scoretk.fields.operators import LinearGaussian
from scoretk.fields.posterior.method import PriorMoments
from scoretk.fields.posterior.systems import weighed_by

__all__ = ["look_at_spread"]


FAR = 5.0
"""How many times as far as expected y may be from the prior's: of one normal number in two million."""
NEAR, ENTRIES = 0.1, 16
"""How many times as far it has to be at least, where y has so many entries."""

SEEN: WeakSet[Any] = WeakSet()
"""The posteriors whose first residual has been looked at."""


def look_at_spread(
    posterior: Any, likelihood: Any, prior: PriorMoments, cond: dict[str, torch.Tensor]
) -> None:
    """Warn once where y is much further from the prior's mean, or nearer, than a method's spread says.

    While the noise hides the data, `r = y - A D` of data N(m, spread^2 I) has the covariance
    `R = std^2 I + spread^2 A A^T` at least, so that `r^T R^-1 r` is about the number of entries.

    Args:
        posterior: Whose `method` has, or has not, a spread; known by its first call.
        likelihood: The measurement.
        prior: The prior's moments of x_1 given x_t.
        cond: The likelihood's own condition values.
    """
    if torch.compiler.is_compiling() or posterior in SEEN or not len(prior.data):
        return
    spread = getattr(posterior.method, "spread", math.inf)
    if not isinstance(likelihood, LinearGaussian) or not math.isfinite(spread):
        return
    if bool((prior.alpha * spread > prior.sigma).any()):
        return
    SEEN.add(posterior)
    with torch.no_grad():
        residual, weighed = weighed_by(likelihood, prior, torch.tensor(spread**2), cond)
        entries = math.prod(residual.shape[1:])
        far = float((row_dot(residual, weighed) / entries).median().sqrt())
    if far > FAR or (far < NEAR and entries >= ENTRIES):
        name = type(posterior.method).__name__
        warn(
            f"{name}(spread={spread:g}): what was measured is {far:.2g} times as far from the prior's mean as "
            "it is of data of this standard deviation, for which the steps are too large or too small. Give "
            f"the data's own, such as scoretk.{name}(spread={spread * far:.2g}), or take method='mmps'"
        )
