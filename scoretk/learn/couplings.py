r"""Which start x_0 goes with which datum x_1 of a batch in flow matching.

`flow_matching(net, x, t, coupling(start, x))`.

    independent    as drawn
    optimal        by the permutation pi that minimises sum_i |start_pi(i) - x_i|^2: straighter
                   paths, smaller variance

Either keeps the batch's starts and data, so the flow that is learned has the same two ends.

References:
    Lipman, Chen, Ben-Hamu, Nickel, Le, "Flow matching for generative modeling" (2023).
    Tong, Fatras, Malkin, Huguet, Zhang, Rector-Brooks, Wolf, Bengio, "Improving and generalizing
    flow-based generative models with minibatch optimal transport" (2024).
    Pooladian, Ben-Hamu, Domingo-Enrich, Amos, Lipman, Chen, "Multisample flow matching" (2023).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoretk.core.arguments import tensor_like
from scoretk.core.dependencies import required
from scoretk.errors import InvalidArgument
from scoretk.learn.typed import typed

__all__ = ["COUPLINGS", "independent_coupling", "optimal_coupling"]

PIVOTS = 10_000_000
"""The most steps of the network simplex, about a hundred times those of a batch of a thousand."""


@typed
def independent_coupling(start: Tensor, x: Tensor) -> Tensor:
    """The starts as they were drawn.

    Args:
        start: x_0, `(batch, *event_shape)`.
        x: The data x_1, like it.

    Returns:
        `start` itself.

    Raises:
        InvalidArgument: Where shapes disagree.
    """
    if start.shape != x.shape:
        raise InvalidArgument("start", start, f"the shape of x, {tuple(x.shape)}")
    return start


@typed
def optimal_coupling(start: Tensor, x: Tensor) -> Tensor:
    """The starts in the order of the optimal transport to x for the squared distance.

    The transport is exact (by POT) and of the whole batch: a row's partner depends on the other
    rows, and time grows as the square of their number or faster (0.1 s for 1000).

    Args:
        start: x_0, `(batch, *event_shape)`, finite.
        x: The data x_1, like it.

    Returns:
        A permutation of the rows of `start`.

    Raises:
        InvalidArgument: Where shapes disagree or a number is not finite.
        MissingDependency: Where POT is not installed.

    References:
        Tong, Fatras, Malkin, Huguet, Zhang, Rector-Brooks, Wolf, Bengio, "Improving and
        generalizing flow-based generative models with minibatch optimal transport" (2024).
    """
    emd = required("ot.lp", "transport", "optimal_coupling").emd
    independent_coupling(start, x)
    if not len(x):
        return start
    ends = [
        tensor_like(name, rows.detach(), (None,) * x.ndim)
        for name, rows in (("start", start), ("x", x))
    ]
    a, b = (rows.flatten(1).to("cpu", torch.float64) for rows in ends)
    uniform = torch.full((len(x),), 1 / len(x), dtype=torch.float64).numpy()
    # with equal weights the simplex ends at a vertex of the Birkhoff polytope, a permutation
    plan = torch.from_numpy(
        emd(uniform, uniform, torch.cdist(a, b).square().numpy(), numItermax=PIVOTS)
    )
    return start[plan.argmax(0).to(start.device)]


COUPLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "independent": independent_coupling,
    "optimal": optimal_coupling,
}
