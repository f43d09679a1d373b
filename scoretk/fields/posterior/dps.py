"""Diffusion posterior sampling: the likelihood at the denoised data, with a step of the right
size.
"""

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
"""The most times that a step up a log-likelihood is cut to a quarter."""


@dataclass(frozen=True)
class DPS:
    """Diffusion posterior sampling: the likelihood at D, `p(y | x_t) ~ L(D)`.

    For a `LinearGaussian` likelihood the residual is divided by its norm, row by row, as in the
    paper: the gradient is that of `-zeta |y - A D|`. The paper leaves the size zeta to the user;
    here

        zeta = scale sqrt(m) |r| / |r|_K,      |r|_K^2 = r^T K r = std^2 |r|^2 + v |A^T r|^2,

    with `K = std^2 I + v A A^T` and m entries of y. So scale 1 gives the shift of PiGDM for a
    residual of the expected size (`|r|^2 = m k` where `K = k I`), and a residual n times as large
    gives the same shift, not one n times as large. An evaluation takes one product with the
    transposed Jacobian.

    Any other log-likelihood is followed uphill from D in the direction `p = V g`, g its gradient
    there, to the maximum on that line of the posterior of x_1 given x_t,

        s maximises  log L(D + s p) - s^2 g^T V g / 2:      s = g^T V g / (g^T V g + p^T H p),

    and `D_y = D + scale s p`, Kalman's update of a single linear measurement; `V g` alone would
    overshoot by v / std^2. The curvature H of -log L counts where it is positive, and is a
    difference of gradients over a distance of at most the spread of x_1. A step that lowers what it
    should raise is cut to a quarter until it does not. An evaluation takes two gradients of log L
    and one value or more.

    Args:
        scale: A factor of the shift; 1 is the size above.
        spread: The standard deviation of the data.

    References:
        Chung, Kim, Mccann, Klasky, Ye, "Diffusion posterior sampling for general noisy inverse
        problems" (2023).
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
        step = (
            self.scale
            * math.sqrt(math.prod(residual.shape[1:]))
            / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        )
        # NaN and not 0, which would silently leave the prior as it is.
        step = torch.where(norm.isfinite(), step, torch.nan)
        return prior.covariance(across(step, pulled) * pulled)


def _uphill(likelihood: Any, prior: PriorMoments, spread: float, cond: dict[str, Tensor]) -> Tensor:
    """`s p`, like x: how far `DPS` follows the log-likelihood from D in the direction `p = V g`.

    Args:
        likelihood: A `CallableLikelihood` or a `FieldLikelihood`.
        prior: The prior's moments of x_1 given x_t.
        spread: The standard deviation of the data.
        cond: The likelihood's own condition values.
    """
    unknown = bool(len(prior.data)) and is_new(likelihood)
    value, gradient = likelihood.slope(prior.data, **cond)
    if unknown:
        look_for_steps(likelihood, prior.data, cond)
    direction = prior.covariance(gradient)
    rise, length = row_dot(gradient, direction), row_dot(direction, direction).sqrt()
    radius = (prior.variance(spread, direction).flatten() * math.prod(direction.shape[1:])).sqrt()
    tiny = torch.finfo(length.dtype).tiny
    part = (radius / length.clamp(min=tiny)).clamp(max=1.0)
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
    """The factor by which a step `share p` is shortened, `(batch,)`.

    It is divided by 4 until the posterior on the line is no lower than at D.

    Args:
        likelihood: A `CallableLikelihood` or a `FieldLikelihood`.
        data: D, `(batch, *event_shape)`.
        p: The direction, like D.
        share: The step s, `(batch,)`.
        rise: `g^T V g`, `(batch,)`.
        value: `log L(D)`, `(batch,)`.
        cond: The likelihood's own condition values.
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
