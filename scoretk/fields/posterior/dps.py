"""The likelihood at the denoised data, with a step of the right size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoretk.core.arguments import positive
from scoretk.core.rows import across, row_dot
from scoretk.fields.operators import LinearGaussian
from scoretk.fields.posterior.examined import is_new
from scoretk.fields.posterior.likelihoods import look_for_steps
from scoretk.fields.posterior.method import PriorMoments

__all__ = ["DPS"]


CUTS = 12
"""How often a step up a log-likelihood is cut to a quarter at most."""


@dataclass(frozen=True)
class DPS:
    """Diffusion posterior sampling: the likelihood at D, `p(y | x_t) ~ L(D)`.

    For a `LinearGaussian` likelihood the residual has, as in the paper, its norm taken out, row by
    row: the gradient is that of `-zeta |y - A D|`. The paper leaves the size zeta to the user; here

        zeta = scale sqrt(m) |r| / |r|_K,      |r|_K^2 = std^2 |r|^2 + v |A^T r|^2,

    with which scale 1 is the force of PiGDM on a residual of the expected size (`|r|^2 = m k` where
    `K = k I`), and a residual n times as large is pulled as much, not n times as much. One product
    with the transposed Jacobian an evaluation.

    Any other log-likelihood is stepped up from D in the direction `p = V g`, g its gradient there,
    as far as the posterior of x_1 given x_t has its maximum on that line,

        s maximises  log L(D + s p) - s^2 g^T V g / 2:      s = g^T V g / (g^T V g + p^T H p),

    where H, the curvature of -log L, counts where it is positive and is seen from D to as far as
    x_1 is spread, and a step that lowers what it should raise is cut to a quarter until it does
    not. `D_y = D + scale s p`, Kalman's update of a single linear measurement; `V g` alone would
    overshoot by v / std^2. Two gradients of log L and one value or more an evaluation.

    Args:
        scale: The scale.
        spread: The standard deviation of the data.
    """

    scale: float = 1.0
    spread: float = 1.0

    differentiates: ClassVar[bool] = True
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("scale", self.scale)
        positive("spread", self.spread)

    def shift(self, likelihood: Any, prior: PriorMoments, cond: dict[str, Tensor]) -> Tensor:
        """`V A^T r scale sqrt(m) / |r|_K`, or `scale s V grad log L(D)`, like x."""
        if not isinstance(likelihood, LinearGaussian):
            return self.scale * _uphill(likelihood, prior, self.spread, cond)
        residual = likelihood.residual(prior.data, **cond)
        pulled = likelihood.adjoint(residual, prior.data)
        v = prior.variance(self.spread, pulled).flatten()
        norm = (
            likelihood.std**2 * row_dot(residual, residual) + v * row_dot(pulled, pulled)
        ).sqrt()
        weight = (
            self.scale
            * math.sqrt(math.prod(residual.shape[1:]))
            / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        )
        weight = torch.where(
            norm.isfinite(), weight, torch.nan
        )  # and not 0, which would leave the prior as it is
        return prior.covariance(across(weight, pulled) * pulled)


def _uphill(likelihood: Any, prior: PriorMoments, spread: float, cond: dict[str, Tensor]) -> Tensor:
    """`s p`, like x: how far the log-likelihood is followed from D in the direction `p = V g`.

    See `DPS`.
    """
    unknown = is_new(likelihood)
    value, gradient = likelihood.slope(prior.data, **cond)
    if unknown:
        look_for_steps(likelihood, prior.data, cond)
    direction = prior.covariance(gradient)
    rise, length = row_dot(gradient, direction), row_dot(direction, direction).sqrt()
    reach = (prior.variance(spread, direction).flatten() * math.prod(direction.shape[1:])).sqrt()
    tiny = torch.finfo(length.dtype).tiny
    part = (reach / length.clamp(min=tiny)).clamp(max=1.0)
    ahead = likelihood.slope(prior.data + across(part, direction) * direction, **cond)[1]
    bend = row_dot(gradient - ahead, direction) / part.clamp(min=tiny)
    share = torch.where(
        rise > 0, rise / (rise + torch.where(bend > 0, bend, 0.0)).clamp(min=tiny), 0.0
    )
    return (
        across(
            share * _kept(likelihood, prior.data, direction, share, rise, value, cond), direction
        )
        * direction
    )


def _kept(
    likelihood: Any,
    data: Tensor,
    p: Tensor,
    share: Tensor,
    rise: Tensor,
    value: Tensor,
    cond: dict[str, Tensor],
) -> Tensor:
    """By what a step `share p` is cut, `(batch,)`.

    To a quarter, until the posterior on its line is no lower than at D.
    """
    looks = data.device.type == "cpu" and not torch.compiler.is_compiling()
    kept, rounding = torch.ones_like(rise), 8 * torch.finfo(rise.dtype).eps * value.abs()
    with torch.no_grad():
        for _ in range(CUTS):
            s = kept * share
            gain = (
                likelihood.log_likelihood(data + across(s, p) * p, **cond) - value - s**2 * rise / 2
            )
            higher = (gain >= -rounding) | (s == 0)
            if looks and bool(higher.all()):
                break
            kept = torch.where(higher, kept, kept / 4)
    return kept
