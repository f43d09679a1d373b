"""Pieces that act on the row axis: axis 0 of `x` of shape `(batch, *event_shape)` holds one chain or sample a row.

Everything here treats rows independently, so that a row's result does not depend on its neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["across", "finite_rows", "row_dot", "row_sum", "select_rows"]


def across(values: Tensor, x: Tensor) -> Tensor:
    """One value a row, `(batch,)`, shaped so that it broadcasts over `x` of shape `(batch, *event_shape)`."""
    return values.reshape(values.shape + (1,) * (x.ndim - 1))


def row_sum(x: Tensor) -> Tensor:
    """Sum over the event axes: `(batch, *event_shape) -> (batch,)`."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over the event axes: `(batch, *event_shape), like -> (batch,)`."""
    return row_sum(a * b)


def finite_rows(x: Tensor) -> Tensor:
    """Which rows are finite throughout: `(batch, *event_shape) -> (batch,)` of bool."""
    finite = (x - x) == 0  # inf - inf and nan - nan are nan; cheaper than isfinite, which takes four passes
    return finite.flatten(1).all(1) if x.ndim > 1 else finite


def select_rows(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Row by row `new` where `chosen`, else `old`. Never blends: a NaN in the row not chosen leaves no trace."""
    return torch.where(across(chosen, new), new, old)
