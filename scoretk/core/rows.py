"""Functions that act on the rows of a batch, each row by itself.

Axis 0 of `x` of shape `(batch, *event_shape)` holds one chain or sample a row.

A row's result does not depend on the rows beside it, to the bit. torch's own `logaddexp`,
`sigmoid`, `softplus`, `exp2` and `pow` do not have this property: the few entries at the end of a
tensor that do not fill a vector register are computed by another formula, whose last bit may
differ, so that a row would change with how many come before it. `exp`, `log`, `log1p` and `sqrt` do
have it. Neither has a product with a matrix: rows that do not fill a block of it, or begin within a line
of memory, are added in another order (`row_product`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = [
    "across",
    "add_scaled",
    "finite_rows",
    "log_add_exp",
    "nan_unless_finite",
    "power",
    "row_dot",
    "row_product",
    "row_sum",
    "select_rows",
    "sigmoid",
    "softplus",
]

HALF_MOST = 65504.0
"""The largest number of float16: what is not above it every dtype has."""
MULTIPLE, LINE = 8, 16
"""To multiples of what rows of a product, and entries of a row, are filled (16 of float32 are a line of memory)."""


def across(values: Tensor, x: Tensor) -> Tensor:
    """One value a row, shaped so that it broadcasts over x; one value for all as it is.

    A tensor with an axis has to be where x is; one without may steer it from the CPU.

    Args:
        values: `(batch,)`, or more of the leading axes of x, or `()`.
        x: `(batch, *event_shape)`.

    Returns:
        `(batch, 1, ..., 1)`, of as many axes as x, or `()`.
    """
    return values.reshape(*values.shape, *(1,) * (x.ndim - values.ndim)) if values.ndim else values


def add_scaled(x: Tensor, y: Tensor, factor: float | Tensor) -> Tensor:
    """`x + factor y`; the factor is a number, or a tensor that broadcasts over y."""
    if isinstance(factor, Tensor):
        return x + factor * y
    if abs(factor) > HALF_MOST and abs(factor) > torch.finfo(y.dtype).max:  # no alpha then
        return x + factor * y
    return torch.add(x, y, alpha=factor)


def row_sum(x: Tensor) -> Tensor:
    """The sum over the event axes: `(batch, *event_shape) -> (batch,)`."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product over the event axes: twice `(batch, *event_shape) -> (batch,)`."""
    return row_sum(a * b)


def row_product(x: Tensor, matrix: Tensor) -> Tensor:
    """The product of each row `(batch, d)` with a matrix `(d, e)`: `(batch, e)`.

    Zeros fill blocks and lines, so that every row is computed as every other: a tenth of the time of
    large products, and some microseconds of small ones. In a graph, whose rows are as its compiler adds
    them, it is the plain product.
    """
    if torch.compiler.is_compiling():
        return x @ matrix
    (n, d), e = x.shape, matrix.shape[1]
    rows = pad(x, (0, -d % LINE, 0, -n % MULTIPLE))
    return (rows @ pad(matrix, (0, -e % LINE, 0, -d % LINE)))[:n, :e]


def finite_rows(x: Tensor) -> Tensor:
    """Which rows are finite throughout: `(batch, *event_shape) -> (batch,)` of bool."""
    # inf - inf and nan - nan are nan; a sum of zeros is cheaper than isfinite and all
    return row_sum(x - x) == 0


def nan_unless_finite(values: Tensor, *parts: Tensor) -> Tensor:
    """The values as they are for each row that is finite in all parts, else NaN, in few operations.

    Args:
        values: `(batch,)`.
        parts: Each `(batch, ...)`, the shape of a row its own.
    """
    kinds = {values.shape[1:]: values}  # of a row: a graph may be for any number of these
    for part in parts:  # 0 inf and 0 nan are nan
        known = kinds.get(part.shape[1:])
        kinds[part.shape[1:]] = part - part if known is None else torch.add(known, part, alpha=0)
    first, *others = map(row_sum, kinds.values())
    return sum(others, start=first)


def select_rows(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Row by row `new` where `chosen`, else `old`.

    It selects and does not blend: a NaN in the row not chosen leaves no trace.

    Args:
        chosen: `(batch,)` of bool.
        new: `(batch, *event_shape)`.
        old: Like new.

    Returns:
        Like new.
    """
    return torch.where(across(chosen, new), new, old)


def log_add_exp(a: Tensor, b: Tensor) -> Tensor:
    """`log(exp(a) + exp(b))` without overflow; a and b broadcast."""
    apart = torch.where(a == b, 0.0, a - b).abs()  # equal infinities included
    return torch.maximum(a, b) + torch.log1p(torch.exp(-apart))


def power(x: Tensor, exponent: float) -> Tensor:
    """`x ** exponent` for x >= 0."""
    return torch.exp(exponent * torch.log(x))


def sigmoid(x: Tensor) -> Tensor:
    """`1 / (1 + exp(-x))`."""
    return torch.exp(-softplus(-x))  # its gradient has no overflow


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`, without overflow."""
    return log_add_exp(x, torch.zeros_like(x))
