"""Where a tensor's numbers lie in memory, so that equal numbers give equal bits.

Matrix products and inner products add up in an order that depends on the address of their first
number and on its strides: the processor's vector instructions take the numbers before the first
aligned address one by one. So two tensors of equal numbers may give sums that differ in the last
bit. torch allocates at multiples of `ALIGNMENT` bytes, but a row of a batch, a tensor read from a
file or a view into a user's array may begin anywhere. What is read from a file goes through
`fresh`; what a user gives, and what a field is called with, through `aligned`.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ALIGNMENT", "aligned", "aligned_values", "as_bytes", "fresh", "is_aligned"]

ALIGNMENT = 64
"""Bytes, of which the address of memory that torch allocates on a CPU is a multiple."""


def is_aligned(x: Tensor) -> bool:
    """Whether x is contiguous and begins at a multiple of `ALIGNMENT` bytes."""
    return (
        x.data_ptr() % ALIGNMENT == 0
        and x.is_contiguous()
        and (1 not in x.shape or x.stride() == _strides(x))
    )


def fresh(x: Tensor) -> Tensor:
    """A copy of x in memory of its own, aligned and contiguous; without a graph."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x.detach())


def aligned(x: Tensor) -> Tensor:
    """`x` itself where it `is_aligned`, else an aligned copy, through which gradients pass.

    Inside a compiled function and inside a transformation of `torch.func` a tensor has no address,
    and is returned as it is: there the inputs of the whole function have to be aligned.
    """
    if torch.compiler.is_compiling() or x.layout is not torch.strided:
        return x
    try:
        if is_aligned(x):
            return x
    except RuntimeError:  # a tensor without storage: of a transformation, or fake
        return x
    return x.clone(memory_format=torch.contiguous_format)


def aligned_values(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The dict with each tensor `aligned`; what is no tensor stays as it is."""
    return {
        name: aligned(value) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }


def as_bytes(x: Tensor) -> Tensor:
    """The numbers of x in order as bytes, `(n,)` of uint8; x's own memory where they lie there so.

    A tensor of one number, a column of one row, counts as contiguous whatever its strides are, and
    has no bytes to be seen as.
    """
    flat = x.reshape(-1)
    return (flat if flat.stride(0) == 1 else flat.new_empty(len(flat)).copy_(flat)).view(
        torch.uint8
    )


def _strides(x: Tensor) -> tuple[int, ...]:
    """The strides of contiguous memory of this shape.

    torch calls any stride contiguous along an axis of length 1, but matrix products look at it.
    """
    strides, step = [], 1
    for n in reversed(x.shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))
