r"""Learning an energy and its log Z by telling data from noise.

With nu draws y of a known density q for each x of the data, and `p(x) = exp(-E(x) - log_z)`,

    J = -E_x log sigmoid(G(x)) - nu E_y log sigmoid(-G(y)),    G(u) = log p(u) - log q(u) - log nu

is least where p is the normalised density of the data, log_z being a parameter like any other. G(u)
is the log odds that u is from the data.

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
from scoretk.learn.typed import typed

__all__ = ["flow_contrastive", "noise_contrastive"]

PerRow = Callable[[Tensor], Tensor]


@typed
def noise_contrastive(
    energy: PerRow, log_z: float | Tensor, noise_log_prob: PerRow, x: Tensor, y: Tensor
) -> Tensor:
    """Noise contrastive estimation: J of the module, with nu the ratio of the numbers of rows.

    Args:
        energy: E, `(rows, *event_shape) -> (rows,)`.
        log_z: A scalar that is learned with it.
        noise_log_prob: log q, normalised, `(rows, *event_shape) -> (rows,)`.
        x: Data, `(batch, *event_shape)`.
        y: Draws of the noise, `(m, *event_shape)`, so that nu = m / batch.

    Returns:
        A scalar.

    Raises:
        InvalidArgument: Where shapes disagree, or x or y is empty.

    References:
        Gutmann, Hyvärinen, "Noise-contrastive estimation: a new estimation principle for
        unnormalized statistical models" (2010).
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


@typed
def flow_contrastive(
    energy: PerRow, log_z: float | Tensor, flow_log_prob: PerRow, x: Tensor, y: Tensor
) -> Tensor:
    """Flow contrastive estimation: J with a flow as the noise, which the flow maximises.

    For the best energy `-J = 2 JS(data, flow) - log 4`, so that the flow comes near the data.

    Args:
        energy: As in `noise_contrastive`.
        log_z: As in `noise_contrastive`.
        flow_log_prob: The log density of the flow, normalised, `(rows, *event_shape) -> (rows,)`.
        x: Data, `(batch, *event_shape)`.
        y: As many draws of the flow, with their gradients: the flow's optimiser minimises `-loss`.
            Detached where only the energy learns.

    Returns:
        A scalar.

    Raises:
        InvalidArgument: Where shapes disagree.

    References:
        Gao, Nijkamp, Kingma, Xu, Dai, Wu, "Flow contrastive estimation of energy-based models"
        (2020).
    """
    if len(y) != len(x):
        raise InvalidArgument("y", y, f"as many rows as x has, {len(x)}")
    return noise_contrastive(energy, log_z, flow_log_prob, x, y)
