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
    """The measured part of D replaced by what was measured.

    For a `Mask` each measured pixel becomes `(v y + std^2 D) / (v + std^2)`, and D stays elsewhere.
    Without noise this is `D + A^+ (y - A D)`, and the path of a measured pixel is
    `alpha y + sigma e` as in RePaint, with the noise e that it started from in place of fresh
    noise. The rest of D depends on y through x_t only: no derivative of the denoiser is taken.
    RePaint's resampling, which harmonises the two parts, is a sampler's business and not a field's.

    Args:
        spread: The standard deviation of the data.

    References:
        Lugmayr, Danelljan, Romero, Yu, Timofte, Van Gool, "RePaint: inpainting using denoising
        diffusion probabilistic models" (2022).
        Wang, Yu, Zhang, "Zero-shot image restoration using denoising diffusion null-space model"
        (2023).
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
