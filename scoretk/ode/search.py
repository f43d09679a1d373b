r"""Searching the grid of a method: what `scoretk.ode.grids.search` is made of.

A grid of n intervals is known by the logarithms l of their shares of the way, up to a constant. These
are moved along cosines, `l_k + s cos(pi j (k + 1/2) / n)` for j = 1, .., n - 1, one after another and
slowest first, so that the first moves shift all of the grid and the last ones single times. A move
that makes the error smaller is kept and the next one along it is longer; where neither direction
does, it is halved.

References:
    Kolda, Lewis, Torczon, "Optimization by direct search: new perspectives on some classical and
    modern methods" (2003).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoretk.ode.tableaus import Tableau

__all__ = ["follow", "search_shares"]

FIRST, LONGER, LEAST = 0.3, 1.5, 1e-3
"""The first move, what a good one grows by, and the move below which the search ends."""


def follow(table: Tableau, x: Tensor, predict: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Where a method leads.

    Args:
        table: The method along a grid.
        x: The start, `(chains, *event_shape)`.
        predict: `(x, t)` to the data or the velocity, whichever the table is for.

    Returns:
        Like x.
    """
    width = (table.rows.shape[1] - 3) // 2
    ahead, past = x, [torch.zeros_like(x)] * (width - 2)
    for t, p, q, *weights in table.rows.tolist():
        values = [x, p * ahead + q * predict(ahead, t), *past]
        ahead, x = (
            torch.stack([w * v for w, v in zip(half, values, strict=True) if w]).sum(0)
            for half in (weights[:width], weights[width:])
        )
        past = values[1:-1]
    return x


def search_shares(error: Callable[[Tensor], float], shares: Tensor, tries: int) -> Tensor:
    """The shares of the intervals at which the error is least.

    Args:
        error: Of shares `(n,)`, which sum to 1; infinite where there is none.
        shares: Where to begin, positive.
        tries: How often the error is asked at most.

    Returns:
        `(n,)`, those of the least error met.
    """
    n = len(shares)
    logs, least = shares.log(), error(shares)
    middle = (torch.arange(n, dtype=shares.dtype) + 0.5) / n
    moves = {j: torch.cos(math.pi * j * middle) for j in range(1, n)}
    lengths = dict.fromkeys(moves, FIRST)
    left = tries - 1
    while moves and left > 0 and max(map(abs, lengths.values())) > LEAST:
        for j, move in moves.items():
            length = lengths[j]
            lengths[j] = length / 2
            for step in (length, -length):
                if left <= 0:
                    break
                tried, left = logs + step * move, left - 1
                found = error(tried.softmax(0))
                if found < least:
                    logs, least, lengths[j] = tried, found, LONGER * step
                    break
    return logs.softmax(0)
