r"""Var x^2 of scales, whose laws are far from normal: by conditional laws, averaged over a long run.

In `scoretk.demo.bench.gym.SparseLogistic` the data see a local scale l ~ Gamma(1/2, 1/2) and its weight
w ~ N(0, 1) through b = l w alone. Given b their law is known up to a number,

    p(l | b) ~ l^(-3/2) exp(-l / 2 - b^2 / (2 l^2)),    w = b / l,

so that chains tell where b is, and sums over a grid of log l what its tail holds: chains meet it
seldom. By this E l^2 is within errors of what the Inference Gym has, where averages of l^2
over 64 chains of 1,500 draws are off by half.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["GERMAN_CREDIT", "given_effects"]

LOG_SCALES = (-22.0, 6.0, 561)
"""The grid of log l: least, greatest, how many."""
ROWS = 1 << 11
"""How many rows of effects meet the grid at a time."""

# fmt: off
GERMAN_CREDIT = (
    0.0234,
    161.2, 84.37, 72.42, 15.16, 63.56, 22.68, 20.01, 7.47, 26.18, 14.52, 31.4, 11.77, 7.28,
    11.76, 40.21, 44.36, 46.12, 30.36, 26.43, 17.92, 16.51, 8.421, 7.901, 7.862, 312.7,
    2.802, 2.311, 2.212, 1.436, 2.129, 1.591, 1.544, 1.263, 1.647, 1.427, 1.745, 1.367, 1.258,
    1.368, 1.855, 1.922, 1.936, 1.706, 1.645, 1.495, 1.465, 1.287, 1.274, 1.273, 3.425,
)
# fmt: on
"""Var x^2 of (g, l, w), by `benchmarks/spreads.py`: 1 % of error, 10 % in the first, a plain average."""


def given_effects(b: Tensor) -> tuple[Tensor, Tensor]:
    """The means of (l, w)^2 and of (l, w)^4 given the effects b = l w.

    Args:
        b: The effects, `(n, k)`, float64.

    Returns:
        Two tensors `(n, 2 k)`.
    """
    log_l = torch.linspace(*LOG_SCALES, dtype=b.dtype, device=b.device)
    squares, fourths = list[Tensor](), list[Tensor]()
    for part in b.square().split(ROWS):
        inverse = (-2 * log_l).exp()
        # p(log l | b) = l p(l | b)
        share = (-(log_l + log_l.exp() + part[..., None] * inverse) / 2).softmax(-1)
        squares.append(torch.cat([share @ (2 * log_l).exp(), part * (share @ inverse)], 1))
        fourths.append(
            torch.cat([share @ (4 * log_l).exp(), part**2 * (share @ inverse.square())], 1)
        )
    return torch.cat(squares), torch.cat(fourths)
