"""Plug-and-play restoration: the data that are nearest to both the denoised data and the measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scoretk.core.arguments import positive
from scoretk.core.rows import across, row_dot
from scoretk.fields.operators import LinearGaussian
from scoretk.fields.posterior.method import PriorMoments
from scoretk.fields.posterior.systems import weighed_by

__all__ = ["DiffPIR"]


@dataclass(frozen=True)
class DiffPIR:
    """Half-quadratic splitting: the data nearest to both D and the measurement.

    D is moved to the minimum over x of

        |y - A x|^2 / (2 std^2) + prior_weight alpha^2 / (2 sigma^2) |x - D|^2,

    as if x_1 given x_t had the variance `u = sigma^2 / (prior_weight alpha^2)` in all directions.
    With prior_weight 1 this is `Replacement` for data of any spread, `spread = inf`; for a prior
    N(m, spread^2 I) it is exact at the time at which `prior_weight = 1 + sigma^2 / (alpha spread)^2`
    and trusts the measurement too much before. No derivative of the denoiser is taken. The fresh
    noise between steps is the solver's: `ReverseSDE("ancestral")`.

    Args:
        prior_weight: How much D counts beside the measurement.

    References:
        Zhu, Zhang, Liang, Cao, Wen, Timofte, Van Gool, "Denoising diffusion models for plug-and-play
        image restoration" (2023).
    """

    prior_weight: float = 1.0

    differentiates: ClassVar[bool] = False
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("prior_weight", self.prior_weight)

    def shift(
        self, likelihood: LinearGaussian, prior: PriorMoments, cond: dict[str, Tensor]
    ) -> Tensor:
        """`u A^T (R + u A A^T)^-1 r`, like x."""
        return self.twisted(likelihood, prior, cond)[0]

    def twisted(
        self, likelihood: LinearGaussian, prior: PriorMoments, cond: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The shift, and the twist `-r^T (R + u A A^T)^-1 r / 2`, `(batch,)`, of one system."""
        ratio = ((prior.sigma / prior.alpha) ** 2 / self.prior_weight).to(prior.data)
        variance = across(ratio, prior.data)
        residual, w = weighed_by(likelihood, prior, ratio, cond)
        return variance * likelihood.adjoint(w, prior.data), -row_dot(residual, w) / 2
