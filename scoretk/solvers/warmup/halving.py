"""Chains that do not move halve their own steps in warmup until they do.

All chains that tune share what they learn: a few steps of many chains say as much as many steps of
one. But a mean over chains does not see the few that sit far out, where the common step is too long
for them. So each chain that was unlikely to move in several steps on end halves its own step until
it moves; such chains do not count for the common one. Chains beyond those that tune do the same
with what the others have found.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PATIENCE", "next_idle", "shortening"]

UNLIKELY, PATIENCE, HALVINGS = 0.05, 3, 30


def next_idle(idle: Tensor, accept: Tensor) -> Tensor:
    """One more for each chain that was unlikely to move.

    For the others one less, down to a new beginning.
    """
    moved = torch.where(idle > PATIENCE, idle - 1, 0)
    return torch.where(accept > UNLIKELY, moved, (idle + 1).clamp(max=PATIENCE + HALVINGS))


def shortening(idle: Tensor, dtype: torch.dtype) -> Tensor:
    """The factor on each chain's step, `(chains,)`: 1, or a power of 1/2."""
    return torch.exp2((PATIENCE - idle).clamp(max=0).to(dtype))
