"""The measured part of the denoised data replaced: no derivative of the denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scoretk.core.arguments import positive
from scoretk.fields.operators import LinearGaussian
from scoretk.fields.posterior.method import PriorMoments
from scoretk.fields.posterior.systems import pulled_residual

__all__ = ["Replacement"]


@dataclass(frozen=True)
class Replacement:
    """The measured part of D replaced.

    For a `Mask` each measured pixel by `(v y + std^2 D) / (v + std^2)`, and D elsewhere.

    Without noise this is `D + A^+ (y - A D)`, and a measured pixel's path is `alpha y + sigma e`,
    as in RePaint, with the noise e it started from in place of fresh noise. The rest of D learns of
    y through x_t only. No derivative of the denoiser is taken, nor are steps taken back to mend the
    seam (RePaint's resampling is a sampler's business, not a field's).

    Args:
        spread: The standard deviation of the data.
    """

    spread: float = 1.0

    differentiates: ClassVar[bool] = False
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("spread", self.spread)

    def shift(
        self, likelihood: LinearGaussian, prior: PriorMoments, cond: dict[str, Tensor]
    ) -> Tensor:
        """`v A^T (R + v A A^T)^-1 r`, like x."""
        pulled = pulled_residual(likelihood, prior, self.spread, cond)
        return prior.variance(self.spread, pulled) * pulled
