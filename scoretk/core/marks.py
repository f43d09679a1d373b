"""Marks by which it is seen that a tensor has changed, without reading all of it to a digest.

A mark is the tensor's address, torch's count of its changes, and a sum of all its bits: torch does not
count changes by way of `.data`, or of memory that it shares with an array of numpy.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

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
        (tensor._version, tensor.data_ptr(), totals[i]) if i in totals else None
        for i, tensor in enumerate(tensors)
    ]


INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What numbers of so many bytes are read as, bit by bit."""
COLUMNS = 1024
ALONG, ACROSS, REST = 0x9E3779B97F4A7C1, 0xC2B2AE3D27D4EB5, 0x85EBCA77C2B2AE3
"""Odd numbers without a pattern, by which places are weighed."""


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
        or tensor.layout is not torch.strided
    ):
        return None
    try:
        return _weighed(whole_tensor(tensor.detach()))
    except (RuntimeError, NotImplementedError):  # such as for packed numbers
        return None


def _weighed(x: Tensor) -> Tensor:
    """The weighed sum, large tensors eight bytes at a time, so that it costs about what reading them does."""
    bits = x.reshape(-1).view(INTEGERS[x.element_size()])
    row = COLUMNS * 8 // x.element_size()
    cut = bits.numel() // row * row
    if cut and x.storage_offset() * x.element_size() % 8 == 0:
        rows = bits[:cut].view(torch.int64).reshape(-1, COLUMNS)
        whole = _by_place(rows.sum(0), ACROSS, 1) + _by_place(rows.sum(1), ALONG, 2)
        return whole + _by_place(bits[cut:], REST, 1)
    return _by_place(bits, REST, 1)


def _by_place(values: Tensor, weight: int, first: int) -> Tensor:
    """Odd places where `first` is odd, and even ones, so that the weight of each number is odd in the end.

    An odd number times a change is no multiple of 2^64: the sign of a number, its highest bit, counts.
    """
    places = torch.arange(first, first + 2 * len(values), 2, device=values.device)
    return (places * weight * values).sum()
