r"""Score matching without the score of the data, by integration by parts.

For data of density p and a model s of its score,

    J = E_p[ |s(x)|^2 / 2 + tr ds/dx ] = E_p |s - grad log p|^2 / 2 - E_p |grad log p|^2 / 2

With random directions v, `E v v^T = I`, the trace is `E_v v^T (ds/dx) v`, and the square may be
`E_v (v^T s)^2`. Both terms are sums over the event, never means: as they scale differently with s,
neither may be divided alone.

References:
    Hyvärinen, "Estimation of non-normalized statistical models by score matching" (2005).
    Song, Garg, Shi, Ermon, "Sliced score matching: a scalable approach to density and score
    estimation" (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoretk.core.rows import row_dot
from scoretk.errors import InvalidArgument
from scoretk.fields.wrappers import check_rows
from scoretk.learn.typed import typed

__all__ = ["implicit_score_matching", "sliced_score_matching"]

Score = Callable[[Tensor], Tensor]


@typed
def implicit_score_matching(score: Score, x: Tensor) -> Tensor:
    """Implicit score matching with the exact trace, `|s|^2 / 2 + tr ds/dx`.

    It costs one backward pass for each dimension.

    Args:
        score: s, `(batch, *event_shape)` to the same shape, its rows independent.
        x: Data, `(batch, *event_shape)`.

    Returns:
        `(batch,)`.

    Raises:
        InvalidArgument: Where the score has another shape than x.

    References:
        Hyvärinen, "Estimation of non-normalized statistical models by score matching" (2005).
    """
    axes = torch.eye(math.prod(x.shape[1:]), dtype=x.dtype, device=x.device)
    s, curvatures = _along(score, x, axes.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape))
    return row_dot(s, s) / 2 + curvatures.sum(0)


@typed
def sliced_score_matching(
    score: Score, x: Tensor, probes: Tensor, *, variance_reduced: bool = True
) -> Tensor:
    """Sliced score matching, `mean_v v^T (ds/dx) v + |s|^2 / 2`.

    Its mean over the probes is `implicit_score_matching`.

    Args:
        score: As in `implicit_score_matching`.
        x: Data, `(batch, *event_shape)`.
        probes: v, standard normals or random signs, `(k, batch, *event_shape)`.
        variance_reduced: Whether the second term is `|s|^2 / 2` (SSM-VR) instead of `mean_v (v^T
            s)^2 / 2` (SSM), which has the same mean.

    Returns:
        `(batch,)`.

    Raises:
        InvalidArgument: Where shapes disagree.

    References:
        Song, Garg, Shi, Ermon, "Sliced score matching: a scalable approach to density and score
        estimation" (2019).
    """
    if probes.shape[1:] != x.shape or not len(probes):
        raise InvalidArgument(
            "probes", probes, f"shape (k, {', '.join(map(str, x.shape))}) with k of at least 1"
        )
    s, curvatures = _along(score, x, probes)
    if variance_reduced:
        squares = row_dot(s, s)
    else:
        squares = torch.stack([row_dot(v, s).square() for v in probes]).mean(0)
    return squares / 2 + curvatures.mean(0)


def _along(score: Score, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The score at x, like x, and `v^T (ds/dx) v` for each of k directions v, `(k, batch)`.

    Both are differentiable in the parameters of s where gradients are on.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        s = check_rows("score(x)", score(y), x.shape, "A score is like x")
        if not s.requires_grad:  # a constant
            return s, x.new_zeros(directions.shape[:2])
        curvatures = []
        for v in directions:
            (back,) = torch.autograd.grad(
                s, y, v, retain_graph=True, create_graph=keep, materialize_grads=True
            )
            curvatures.append(row_dot(back, v))
    along = torch.stack(curvatures)
    return (s, along) if keep else (s.detach(), along.detach())
