"""The linear systems of posterior methods, each row one of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoretk.core.rows import across, row_dot, select_rows
from scoretk.fields.operators import LinearGaussian
from scoretk.fields.posterior.method import PriorMoments

__all__ = ["conjugate_gradients", "pulled_residual", "weighed_by", "weighed_residual"]


PIGDM_ITERATIONS = 64
"""The most iterations of the systems that do not involve the network; they end when the residual is
down to the rounding.
"""


def pulled_residual(
    likelihood: LinearGaussian, prior: PriorMoments, spread: float, cond: dict[str, Tensor]
) -> Tensor:
    """`A^T (R + v A A^T)^-1 r`, like x; arguments as of `weighed_residual`."""
    return likelihood.adjoint(weighed_residual(likelihood, prior, spread, cond)[1], prior.data)


def weighed_residual(
    likelihood: LinearGaussian, prior: PriorMoments, spread: float, cond: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The residual r and `(R + v A A^T)^-1 r`.

    Args:
        likelihood: The measurement.
        prior: The prior's moments of x_1 given x_t.
        spread: The standard deviation of the data, which gives v.
        cond: The likelihood's own condition values.

    Returns:
        Both like y.
    """
    return weighed_by(likelihood, prior, prior.narrowed(spread), cond)


def weighed_by(
    likelihood: LinearGaussian, prior: PriorMoments, variance: Tensor, cond: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The residual r and `(R + v A A^T)^-1 r` for any v.

    Args:
        likelihood: The measurement.
        prior: The prior's moments of x_1 given x_t.
        variance: v, `()` or `(batch,)`.
        cond: The likelihood's own condition values.

    Returns:
        Both like y.
    """
    residual = likelihood.residual(prior.data, **cond)
    v = across(variance.to(residual), residual)

    def covariance(w: Tensor) -> Tensor:
        return likelihood.std**2 * w + v * likelihood.forward(likelihood.adjoint(w, prior.data))

    return residual, conjugate_gradients(covariance, residual, PIGDM_ITERATIONS, likelihood.std**2)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, least: float
) -> Tensor:
    """The solution w of `K w = b`, each row a system of its own, by conjugate gradients from w = 0.

    The iterate of the smallest residual is taken.

    Args:
        product: `w -> K w`, K symmetric and positive definite in each row.
        b: `(batch, ...)`.
        iterations: The most iterations.
        least: A positive lower bound of the eigenvalues of K. A row is done when its residual is
            down to the rounding, or the curvature along a direction is below `least / 2`, which no
            such K has.

    Returns:
        w, like b; NaN in a row where the dtype cannot hold the squares of b, or its products.

    References:
        Hestenes, Stiefel, "Methods of conjugate gradients for solving linear systems" (1952).
    """
    w = best = torch.zeros_like(b)
    residual = direction = b
    square = smallest = row_dot(b, b)
    held = square.isfinite()
    goal, going = square * torch.finfo(b.dtype).eps ** 2, square > 0
    looks = b.device.type == "cpu" and not torch.compiler.is_compiling()
    for _ in range(iterations):
        if looks and not bool(going.any()):
            break
        image = product(direction)
        curvature = row_dot(direction, image)
        held = held & curvature.isfinite()
        going = going & (curvature > least / 2 * row_dot(direction, direction))
        step = across(torch.where(going, square / curvature.where(going, 1.0), 0.0), b)
        w, residual = w + step * direction, residual - step * image
        before, square = square, row_dot(residual, residual)
        best, smallest = select_rows(square < smallest, w, best), torch.minimum(square, smallest)
        direction = residual + across(square / before.where(going, 1.0), b) * direction
        going = going & (square > goal)
    return select_rows(held, best, torch.full_like(best, torch.nan))
