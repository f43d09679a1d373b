"""Moment matching posterior sampling: the prior's own covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scoretk.core.arguments import counts
from scoretk.core.rows import row_dot
from scoretk.fields.operators import LinearGaussian
from scoretk.fields.posterior.method import PriorMoments
from scoretk.fields.posterior.systems import conjugate_gradients

__all__ = ["MMPS"]


@dataclass(frozen=True)
class MMPS:
    """Moment matching: `p(x_1 | x_t)` as a Gaussian with the mean D and the covariance V.

    Exact for Gaussian priors. The system is solved by conjugate gradients, each iteration one
    product with the transposed Jacobian of the denoiser: exact with as many iterations as y has
    entries, often close with a few. Where a network's Jacobian is far from a covariance (symmetric
    and positive semi-definite) more of them do not converge: the iterate of the smallest residual
    is taken.

    Args:
        iterations: The most iterations, at least 1.

    References:
        Rozet, Andry, Lanusse, Louppe, "Learning diffusion priors from observations by expectation
        maximization" (2024).
        Hestenes, Stiefel, "Methods of conjugate gradients for solving linear systems" (1952).
    """

    iterations: int = 5

    differentiates: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        counts(self, iterations=1)

    def shift(
        self, likelihood: LinearGaussian, prior: PriorMoments, cond: dict[str, Tensor]
    ) -> Tensor:
        """`V A^T (R + A V A^T)^-1 r`, like x."""
        return prior.covariance(
            likelihood.adjoint(self._weighed(likelihood, prior, cond)[1], prior.data)
        )

    def twisted(
        self, likelihood: LinearGaussian, prior: PriorMoments, cond: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The shift, and the twist `-r^T (R + A V A^T)^-1 r / 2`, `(batch,)`, of one system."""
        residual, w = self._weighed(likelihood, prior, cond)
        return prior.covariance(likelihood.adjoint(w, prior.data)), -row_dot(residual, w) / 2

    def _weighed(
        self, likelihood: LinearGaussian, prior: PriorMoments, cond: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The residual r and `(R + A V A^T)^-1 r`."""

        def covariance(w: Tensor) -> Tensor:
            return likelihood.std**2 * w + likelihood.forward(
                prior.covariance(likelihood.adjoint(w, prior.data))
            )

        residual = likelihood.residual(prior.data, **cond)
        return residual, conjugate_gradients(
            covariance, residual, self.iterations, likelihood.std**2
        )
