r"""The term that contrastive divergence leaves out: how its negatives depend on the parameters.

Let q be the law of the negatives x, which k steps of a sampler on E make. Beside the two terms of
contrastive divergence the gradient of KL(data || p) - KL(q || p) in the parameters has one through
q: that of

    L = E_q E(x) - H(q),    KL(q || p) up to a constant,

with the parameters of E held, and x differentiated through (the last of) the steps. The entropy is
estimated by the distance rho of each x to the nearest of m other draws, with V_d the volume of the
unit ball,

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
from scoretk.learn.typed import typed

__all__ = ["nearest_neighbour_entropy", "sampler_divergence"]


@typed
def sampler_divergence(
    energy: Callable[[Tensor], Tensor], negatives: Tensor, others: Tensor
) -> Tensor:
    """An estimate of KL(q || p) - log Z, `E(x) - H(q)`, differentiable in the negatives alone.

    Args:
        energy: E, `(batch, *event_shape) -> (batch,)`, whose parameters get no gradient.
        negatives: x, with their gradients, `(batch, *event_shape)`.
        others: Other draws of the same sampler, such as those of earlier updates, `(m,
            *event_shape)`.

    Returns:
        `(batch,)`, in nats.

    Raises:
        InvalidArgument: Where shapes disagree.
    """
    values, slope = grad_energy(energy, negatives.detach())
    # E(x), whose gradient is grad E(x) dx
    held = values + row_dot(slope, negatives - negatives.detach())
    return held - nearest_neighbour_entropy(negatives, others)


@typed
def nearest_neighbour_entropy(x: Tensor, others: Tensor) -> Tensor:
    """Estimates of the entropy of a law from nearest neighbours, whose mean tends to H as m grows.

    The bias at finite m grows with the dimension, that of the gradient less so.

    Args:
        x: Draws, `(batch, *event_shape)`.
        others: Other draws of the same law, independent of x, `(m, *event_shape)`; no gradient
            flows to them.

    Returns:
        One estimate a row in nats, `(batch,)`; `-inf` where a row of x is among the others.

    Raises:
        InvalidArgument: Where shapes disagree, or there are no others.

    References:
        Kozachenko, Leonenko, "Sample estimate of the entropy of a random vector" (1987).
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
