"""Marks by which it is seen that a tensor has changed, without reading all of it to a digest.

A mark is the tensor's address and shape, torch's count of its changes, and a sum of all its bits: torch
does not count changes by way of `.data`, or of memory that it shares with an array of numpy.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from scoretk.core.arrays import as_bytes

__all__ = ["marks", "whole_tensor"]

SMALL = 1 << 15
"""Bytes below which a digest on the CPU costs no more than the sum."""


def whole_tensor(x: Tensor) -> Tensor:
    """A tensor; of one in parts on several processes (FSDP, tensor parallel) the whole.

    All of them have to ask for it.
    """
    spread = sys.modules.get("torch.distributed.tensor")  # where it is not there, none is
    if spread is None or not isinstance(x, spread.DTensor):
        return x
    whole: Tensor = x.full_tensor()
    return whole


def marks(tensors: list[Tensor]) -> list[Any]:
    """Marks of tensors, each of which differs when its tensor has changed.

    None where torch does not count its changes, it has no address or no sum, or is so small that it is
    as well read. A device is waited for once, however many tensors are there.
    """
    sums = [_sum(tensor) for tensor in tensors]
    totals, devices = dict[int, int](), {s.device for s in sums if s is not None}
    for device in devices:
        here = [(i, s) for i, s in enumerate(sums) if s is not None and s.device == device]
        read = torch.stack([s for _, s in here]).tolist()
        totals |= {i: total for (i, _), total in zip(here, read, strict=True)}
    return [
        (tensor._version, tensor.data_ptr(), tensor.shape, tensor.dtype, totals[i])
        if i in totals
        else None
        for i, tensor in enumerate(tensors)
    ]


COLUMNS = 1024
BLOCK = 256
"""Rows of so many numbers, and how many of them are read at once: two megabytes."""


def _sum(tensor: Tensor) -> Tensor | None:
    """A sum that sees what torch's counter does not, changes by way of `.data`; None where there is none.

    Of the bits of all numbers as integers modulo 2^64, weighed by their places: unlike a sum of
    floats it is exact, and two numbers that change places change it.
    """
    if (
        (tensor.device.type == "cpu" and tensor.numel() * tensor.element_size() < SMALL)
        or tensor.is_inference()
        or tensor.is_meta
        or tensor.is_nested
        or tensor.is_complex()
        or tensor.is_quantized  # read as bytes, they end the process
        or tensor.layout is not torch.strided
    ):
        return None
    try:
        return _weighed(whole_tensor(tensor.detach()))
    except (RuntimeError, NotImplementedError):  # such as for packed numbers
        return None


def _weighed(x: Tensor) -> Tensor:
    """The weighed sum, eight bytes at a time, so that it costs about what reading them does.

    Each half of the eight bytes has its own weight of 64 bits, so that not even changes of highest
    bits, of signs, cancel each other. Sums of rows are mixed before they are added in turn: weights
    of rows times weights of columns would see no permutation of rows and columns of a table.
    """
    raw = as_bytes(x)
    bits = raw if raw.storage_offset() % 8 == 0 else raw.clone()
    cut = len(bits) // (8 * COLUMNS) * 8 * COLUMNS
    rest = pad(bits[cut:], (0, 8 * COLUMNS + cut - len(bits)))
    low, high = (_weights(i * COLUMNS, COLUMNS, x.device) for i in range(2))
    sums = [
        _products(block, low) + _products(block >> 32, high)
        for part in (bits[:cut], rest)
        for block in part.view(torch.int64).reshape(-1, COLUMNS).split(BLOCK)
    ]
    rows = torch.cat(sums)
    return (_mixed(rows) * _weights(2 * COLUMNS, len(rows), x.device)).sum()


def _products(rows: Tensor, weights: Tensor) -> Tensor:
    """The product of each row with the weights, modulo 2^64."""
    return rows.mv(weights) if rows.device.type == "cpu" else (rows * weights).sum(1)


def _weights(first: int, count: int, device: torch.device) -> Tensor:
    """Odd numbers without a pattern, one a place."""
    return 2 * _mixed(torch.arange(first + 1, first + count + 1, device=device)) + 1


def _mixed(x: Tensor) -> Tensor:
    """Integers of 64 bits without a pattern, another for another one (as of splitmix64)."""
    x = x * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ (x >> shift)) * factor
    return x ^ (x >> 31)
