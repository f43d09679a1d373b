r"""Learning an energy and its log Z by telling data from noise.

With nu draws y of a known density q for each x of the data, and `p(x) = exp(-E(x) - log_z)`,

    G(u) = log p(u) - log q(u) - log nu                       the log odds that u is a datum
    J = -E_x log sigmoid(G(x)) - nu E_y log sigmoid(-G(y))

is least where p is the density of the data, normalised: log_z is a parameter like any other.

References:
    Gutmann, Hyvärinen, "Noise-contrastive estimation: a new estimation principle for unnormalized
    statistical models" (2010).
    Gao, Nijkamp, Kingma, Xu, Dai, Wu, "Flow contrastive estimation of energy-based models" (2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import softplus

from scoretk.errors import InvalidArgument
from scoretk.fields.wrappers import check_rows

__all__ = ["flow_contrastive", "noise_contrastive"]

PerRow = Callable[[Tensor], Tensor]


def noise_contrastive(
    energy: PerRow, log_z: Tensor, noise_log_prob: PerRow, x: Tensor, y: Tensor
) -> Tensor:
    """Noise contrastive estimation.

    J above, with nu the number of noise rows over that of data rows.

    References:
        Gutmann, Hyvärinen (2010).

    Args:
        energy: `(rows, *event_shape) -> (rows,)`.
        log_z: A scalar to learn with it.
        noise_log_prob: Normalised, like energy.
        x: Data `(batch, *event_shape)`.
        y: Draws of the noise `(nu batch, *event_shape)`.

    Returns:
        a scalar. Raises `InvalidArgument` where shapes disagree.
    """
    if not len(x) or not len(y) or x.shape[1:] != y.shape[1:]:
        raise InvalidArgument(
            "y",
            y,
            f"rows of the event shape of x, {tuple(x.shape[1:])}, and neither of the two empty",
        )
    nu = len(y) / len(x)

    def log_odds(rows: Tensor) -> Tensor:
        e = check_rows("energy", energy(rows), rows.shape[:1], "An energy gives one number a row")
        q = check_rows(
            "noise_log_prob",
            noise_log_prob(rows),
            rows.shape[:1],
            "A log density gives one number a row",
        )
        return -e - log_z - q - math.log(nu)

    return softplus(-log_odds(x)).mean() + nu * softplus(log_odds(y)).mean()


def flow_contrastive(
    energy: PerRow, log_z: Tensor, flow_log_prob: PerRow, x: Tensor, y: Tensor
) -> Tensor:
    """Flow contrastive estimation.

    J with a flow as the noise, on which energy and log_z descend and the flow ascends.

    For the best energy `-J = 2 JS(data, flow) - log 4`, which the flow so makes small.

    References:
        Gao, Nijkamp, Kingma, Xu, Dai, Wu (2020).

    Arguments are as `noise_contrastive`.

    Args:
        flow_log_prob: Of the flow.
        y: As many draws of it as x has rows, through which its gradients flow: give `-loss` to its
            optimiser, and y detached where only the energy learns.

    Returns:
        a scalar. Raises `InvalidArgument` where shapes disagree.
    """
    if len(y) != len(x):
        raise InvalidArgument("y", y, f"as many rows as x has, {len(x)}")
    return noise_contrastive(energy, log_z, flow_log_prob, x, y)
