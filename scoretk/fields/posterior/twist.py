r"""What a posterior in time tells a sampler that weights its way: guidance, and how good it was.

With D the prior's denoised data and D_y the method's, a *twist* is any positive function of x_t that
is near `p(y | x_t)`. It need not be normalised, as factors of t alone cancel on the way, nor right:
only how much weights vary depends on it. With `r = y - A D`, K the covariance of y given x_t that
the method assumes (`R + A V A^T` for `MMPS`, `R + v A A^T` for the others), and L any other
likelihood,

    log twist = -r^T K^-1 r / 2       or    (1 - v / spread^2) log L(D)

where v is the variance of x_1 given x_t of data of standard deviation `spread`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from scoretk.core.rows import row_dot
from scoretk.fields.operators import LinearGaussian
from scoretk.fields.posterior.method import PriorMoments
from scoretk.fields.posterior.systems import weighed_residual

__all__ = ["Twist", "twisted"]


class Twist(NamedTuple):
    """Guidance at a point in time, and what it promises.

    Args:
        prior: D, the denoised data of the prior, like x.
        guided: D_y, those of the posterior by its method, like x.
        log_twist: The logarithm of a guess of `p(y | x_t)`, up to a function of t, `(batch,)`.
    """

    prior: Tensor
    guided: Tensor
    log_twist: Tensor


def twisted(
    method: Any, likelihood: Any, prior: PriorMoments, cond: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The shift of a method, and the logarithm of its twist.

    Args:
        method: A `PosteriorMethod`; where it has `twisted(likelihood, prior, cond)` of its own, as
            `MMPS` has, both come from one system.
        likelihood: As for `PosteriorMethod.shift`.
        prior: The prior's moments of x_1 given x_t.
        cond: The likelihood's own condition values.

    Returns:
        The shift, like x, and the logarithm `(batch,)`.
    """
    own = getattr(method, "twisted", None)
    if own is not None:
        found: tuple[Tensor, Tensor] = own(likelihood, prior, cond)
        return found
    spread = getattr(method, "spread", 1.0)
    shift = method.shift(likelihood, prior, cond)
    if isinstance(likelihood, LinearGaussian):
        residual, w = weighed_residual(likelihood, prior, spread, cond)
        return shift, -row_dot(residual, w) / 2
    value: Tensor = likelihood.log_likelihood(prior.data, **cond)
    return shift, (1 - prior.variance(spread, value) / spread**2) * value
