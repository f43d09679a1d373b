"""Chains that do not move halve their own steps in warmup until they do.

All chains that tune share what they learn: a few steps of many chains say as much as many steps of
one. But a mean over chains hides the few that are far out, where the common step is too long for
them. So a chain that was unlikely to move in more than `PATIENCE` steps on end halves its own step
until it moves; such chains do not count when the common step size is tuned. Chains that follow do
the same with the step size that the others have found.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PATIENCE", "next_idle", "shortening"]

UNLIKELY, PATIENCE, HALVINGS = 0.05, 3, 30


def next_idle(idle: Tensor, accept: Tensor) -> Tensor:
    """The count of steps in which each chain was unlikely to move, after one more step.

    Args:
        idle: The count so far, `(chains,)` or `(chains, K)`, of int64.
        accept: The acceptance of the step, like it.

    Returns:
        One more where the chain was unlikely to move. Elsewhere one less, so that its step doubles,
        and 0 once its step is the common one.
    """
    moved = torch.where(idle > PATIENCE, idle - 1, 0)
    return torch.where(accept > UNLIKELY, moved, (idle + 1).clamp(max=PATIENCE + HALVINGS))


def shortening(idle: Tensor, dtype: torch.dtype) -> Tensor:
    """The factor on each chain's step size, 1 or a power of 1/2, like `idle`."""
    return torch.exp2((PATIENCE - idle).clamp(max=0).to(dtype))
