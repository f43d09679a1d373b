"""Pseudoinverse guidance: one variance for all directions, and the derivative of the denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scoretk.core.arguments import positive
from scoretk.fields.operators import LinearGaussian
from scoretk.fields.posterior.method import PriorMoments
from scoretk.fields.posterior.systems import pulled_residual

__all__ = ["PiGDM"]


@dataclass(frozen=True)
class PiGDM:
    """Pseudoinverse guidance: `p(x_1 | x_t)` as a Gaussian with mean D and covariance `v I`.

    An evaluation takes one product with the transposed Jacobian of the denoiser.

    Args:
        spread: The standard deviation of the data.

    References:
        Song, Vahdat, Mardani, Kautz, "Pseudoinverse-guided diffusion models for inverse problems"
        (2023).
    """

    spread: float = 1.0

    differentiates: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("spread", self.spread)

    def shift(
        self, likelihood: LinearGaussian, prior: PriorMoments, cond: dict[str, Tensor]
    ) -> Tensor:
        """`V A^T (R + v A A^T)^-1 r`, like x."""
        return prior.covariance(pulled_residual(likelihood, prior, self.spread, cond))
