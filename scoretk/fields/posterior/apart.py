r"""A posterior in time taken apart, for samplers that alternate: its prior, and draws by the measurement.

Where the prior of x is replaced by a normal around a point, `N(x; c, w^2 I)`, and the measurement is
`y = A x + std eps`, what is left of the posterior is a normal too, and one linear system draws from it: with a
draw `x' = c + w e` of that normal, and what would be measured of it, `y' = A x' + std n`,

    x = x' + w^2 A^T (std^2 I + w^2 A A^T)^-1 (y - y')

has its mean and its covariance, `(I / w^2 + A^T A / std^2)^-1`.

References:
    Papandreou, Yuille, "Gaussian sampling by local perturbations" (2010).
    Orieux, Féron, Giovannelli, "Sampling high-dimensional Gaussian distributions for general linear
    inverse problems" (2012).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoretk.core.rows import row_dot, select_rows
from scoretk.fields.operators import LinearGaussian
from scoretk.fields.posterior.likelihoods import Likelihood
from scoretk.fields.posterior.systems import conjugate_gradients
from scoretk.fields.resolve import TimedField

__all__ = ["Separated", "drawn_near"]

ITERATIONS = 1000
"""The most of a system: they grow as w |A| / std and, where y is small, end after as many as it has entries."""


class Separated(NamedTuple):
    """What a posterior in time is made of, for some chains.

    Args:
        prior: The prior, with its own condition rows bound.
        likelihood: The likelihood.
        cond: The likelihood's own condition values, one row a chain.
    """

    prior: TimedField
    likelihood: Likelihood
    cond: dict[str, Tensor]


def drawn_near(
    likelihood: LinearGaussian,
    cond: dict[str, Tensor],
    centre: Tensor,
    width: float,
    normals: Callable[[int], Tensor],
) -> Tensor:
    """A draw x of `N(x; c, w^2 I) N(y; A x, std^2 I)`.

    Args:
        likelihood: The measurement.
        cond: Its own condition values.
        centre: c, `(batch, *event_shape)`.
        width: w, positive.
        normals: `normals(n)` are standard normals `(batch, n)`; it is called once.

    Returns:
        Like c; NaN in a row whose system is not solved, to the root of the dtype's rounding.
    """
    residual = likelihood.residual(centre, **cond)
    entries = math.prod(centre.shape[1:])
    drawn = normals(entries + math.prod(residual.shape[1:]))
    e, n = drawn[:, :entries].reshape(centre.shape), drawn[:, entries:].reshape(residual.shape)
    missed = residual - width * likelihood.forward(e) - likelihood.std * n

    def covariance(w: Tensor) -> Tensor:
        return likelihood.std**2 * w + width**2 * likelihood.forward(likelihood.adjoint(w, centre))

    weighed = conjugate_gradients(covariance, missed, ITERATIONS, likelihood.std**2)
    left = covariance(weighed) - missed
    solved = row_dot(left, left) <= torch.finfo(left.dtype).eps * row_dot(missed, missed)
    x = centre + width * e + width**2 * likelihood.adjoint(weighed, centre)
    return select_rows(solved, x, torch.full_like(x, torch.nan))
