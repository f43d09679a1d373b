r"""The term that contrastive divergence leaves out: how its negatives move with the parameters.

Where x ~ q is what k steps of a sampler on E make, the gradient of KL(data || p) - KL(q || p) in
the parameters has, beside contrastive divergence's two terms, one through q,

    L = KL(q || p) with p held = E_q E(x) - H(q) + const,    E held, x with its gradient through (the last of) the steps

and the entropy is estimated by the distance rho of each x to the nearest of m other draws (V_d:
volume of the unit ball),

    H(q) = E[ d log rho ] + log V_d + psi(m + 1) - psi(1)

Added to the contrastive divergence loss, L makes its chains low in energy and far from one another.

References:
    Du, Li, Tenenbaum, Mordatch, "Improved contrastive divergence training of energy-based models"
    (2021), who leave out the factor d.
    Kozachenko, Leonenko, "Sample estimate of the entropy of a random vector" (1987).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoretk.core.rows import row_dot
from scoretk.errors import InvalidArgument
from scoretk.fields.gradient import grad_energy

__all__ = ["nearest_neighbour_entropy", "sampler_divergence"]


def sampler_divergence(
    energy: Callable[[Tensor], Tensor], negatives: Tensor, others: Tensor
) -> Tensor:
    """`E(x) - H(q)`: KL(q || p) up to log Z, with gradients through the negatives alone, never
    through the energy.

    Args:
        energy: `(batch, *event_shape) -> (batch,)`.
        negatives: X, with their gradients.
        others: Draws of the same sampler that are not among them, such as those of earlier updates,
            `(m, *event_shape)`.

    Returns:
        `(batch,)`. Raises `InvalidArgument` where shapes disagree.
    """
    values, slope = grad_energy(energy, negatives.detach())
    held = values + row_dot(
        slope, negatives - negatives.detach()
    )  # E(x), whose gradient is grad E(x) dx
    return held - nearest_neighbour_entropy(negatives, others)


def nearest_neighbour_entropy(x: Tensor, others: Tensor) -> Tensor:
    """Entropy in nats, an estimate a row whose mean is H as m grows.

    The others are constants to its gradient.

    The bias at finite m grows with the dimension, the gradient less so.

    References:
        Kozachenko, Leonenko (1987).

    Args:
        x: `(batch, *event_shape)`.
        others: `(m, *event_shape)`, independent of x and of the same law.

    Returns:
        `(batch,)`; `-inf` where a row of x is among the others. Raises `InvalidArgument` where
        shapes disagree.
    """
    if others.shape[1:] != x.shape[1:] or not len(others):
        raise InvalidArgument(
            "others", others, f"rows of the event shape of x, {tuple(x.shape[1:])}, at least one"
        )
    rows, rest = x.flatten(1), others.detach().flatten(1)
    d, m = rows.shape[1], len(rest)
    nearest = rest[torch.cdist(rows.detach(), rest).argmin(1)]
    log_distance = torch.linalg.vector_norm(rows - nearest, dim=1).log()
    log_ball = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)
    rank = torch.special.digamma(torch.tensor([m + 1.0, 1.0], dtype=torch.float64))
    return d * log_distance + (log_ball + float(rank[0] - rank[1]))
