"""Tweedie moment projection: the variance of each measured number by the prior's covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoretk.core.rows import row_dot, row_sum, select_rows
from scoretk.fields.operators import LinearGaussian
from scoretk.fields.posterior.method import PriorMoments

__all__ = ["TMPD"]


@dataclass(frozen=True)
class TMPD:
    """Tweedie moment projection: the covariance of y given x_t as a diagonal, `R + diag(c)`.

    c holds the row sums of `A V A^T`, at least 0: one product with the transposed Jacobian of the
    denoiser, where `MMPS` takes one for each iteration. Exact for Gaussian priors where
    `A V A^T` is diagonal, so for one entry of y. What entries of y say together of one part of x is
    counted in the sums; where they say opposite things of it, the sums are too small, and guidance
    is too strong. So the sums make no twist (`scoretk.fields.posterior.twist`), which would be as sure
    of what is wrong: weights by one were heavy where no chain came, and evidence 2 to 3 of its errors too low.

    References:
        Boys, Girolami, Pidstrigach, Reich, Mosca, Akyildiz, "Tweedie moment projected diffusions for
        inverse problems" (2024).
    """

    differentiates: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def shift(
        self, likelihood: LinearGaussian, prior: PriorMoments, cond: dict[str, Tensor]
    ) -> Tensor:
        """`V A^T (R + diag(c))^-1 r`, like x.

        NaN in a row where the dtype cannot hold the squares of r, or c.
        """
        residual = likelihood.residual(prior.data, **cond)
        ones = likelihood.adjoint(torch.ones_like(residual), prior.data)
        sums = likelihood.forward(prior.covariance(ones)).clamp(min=0)
        held = (row_dot(residual, residual) + row_sum(sums)).isfinite()
        w = select_rows(
            held, residual / (likelihood.std**2 + sums), torch.full_like(sums, torch.nan)
        )
        return prior.covariance(likelihood.adjoint(w, prior.data))
