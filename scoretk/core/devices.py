"""What numbers a device has, and constants that are copied to it once.

Each copy of a constant from the host's memory to an accelerator makes the host wait. So what a
field holds permanently (means, weights, measurements) is copied at the first evaluation on a
device, and found there at the next.

Scalars that control a solve are float64 on the CPU, whatever the device. Sums and statistics on a
device are float64 there too, or float32 where it has no float64 (Apple's MPS).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = [
    "all_and_any",
    "constant_like",
    "copies_noted",
    "flags_like",
    "has_float64",
    "on",
    "precise",
    "sent",
    "wide",
    "widest",
]


_HAS_FLOAT64 = {"cpu": True, "cuda": True, "mps": False}
"""Of the types of devices that are known; others are asked each time."""


def has_float64(kind: str) -> bool:
    """Whether a type of device, such as "cuda" or "mps", has 64-bit floating-point numbers."""
    if kind in _HAS_FLOAT64:
        return _HAS_FLOAT64[kind]
    try:
        torch.empty(0, dtype=torch.float64, device=kind)
    except (TypeError, RuntimeError):
        return False
    return True


def widest(device: torch.device) -> torch.dtype:
    """The dtype of sums and statistics on a device: float64, or float32 where it has none."""
    return torch.float64 if has_float64(device.type) else torch.float32


def wide(x: Tensor) -> Tensor:
    """The tensor in the widest dtype of its device."""
    return x.to(widest(x.device))


def precise(t: float | Tensor) -> Tensor:
    """A time as a tensor.

    A number is float64 on the CPU; a tensor is in the widest dtype of its device.
    """
    return wide(t) if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)


_READ: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""What the host knows of flags, with torch's count of writes to them when it was read."""


def all_and_any(flags: Tensor) -> tuple[bool, bool]:
    """Whether all of some flags are set, and whether any is; a device is asked once for each tensor."""
    found = _READ.get(flags)
    if found is not None and found[0] == flags._version:
        known: tuple[bool, bool] = found[1]
        return known
    every, some = torch.stack([flags.all(), flags.any()]).tolist()
    if not flags.is_inference():  # of which torch counts no writes
        _READ[flags] = (flags._version, (every, some))
    return every, some


def flags_like(flags: Tensor, value: bool) -> Tensor:
    """Flags of one known value, like others, for which the device need not be asked."""
    made = torch.full_like(flags, value, dtype=torch.bool)
    if not made.is_inference():
        _READ[made] = (made._version, (value, value))
    return made


_Copies = dict[tuple[torch.device, torch.dtype], tuple[int, Tensor]]
_COPIES: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""The copies of each constant, with torch's count of writes to the constant when each was made."""


def constant_like(constant: Tensor, x: Tensor) -> Tensor:
    """A constant on the device and in the dtype of x: `constant.to(x)`, copied once for each."""
    return _copied(constant, x.device, x.dtype)


def on(constant: Tensor, device: torch.device) -> Tensor:
    """A constant on a device, in its own dtype or the widest that there is; copied once for
    each.
    """
    dtype = constant.dtype
    if dtype == torch.float64 and not has_float64(device.type):
        dtype = torch.float32
    return _copied(constant, device, dtype)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on a device, without waiting for the work that a GPU has queued."""
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


_NOTED: ContextVar[list[tuple[Tensor, int, Tensor]] | None] = ContextVar("noted", default=None)


@contextmanager
def copies_noted() -> Iterator[list[tuple[Tensor, int, Tensor]]]:
    """Within this, each constant whose copy is asked for, torch's count of writes to it, and the copy."""
    noted: list[tuple[Tensor, int, Tensor]] = []
    token = _NOTED.set(noted)
    try:
        yield noted
    finally:
        _NOTED.reset(token)


def _copied(constant: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    if constant.device == device and constant.dtype == dtype:
        return constant
    if constant.device == device:
        return constant.to(dtype)  # no wait is spared, and what numpy writes is seen
    if constant.requires_grad:
        return constant.to(device, dtype)  # a copy is of one graph
    if torch.compiler.is_compiling():
        copy: Tensor = _copied_in_graph(constant, device, dtype)
        return copy
    if constant.is_inference():
        return constant.to(device, dtype)
    copies: _Copies = _COPIES.setdefault(constant, {})
    found = copies.get((device, dtype))
    if found is None or found[0] != constant._version:
        with torch.inference_mode(False), torch.no_grad():  # so that autograd may use it later
            found = copies[device, dtype] = (constant._version, constant.to(device, dtype))
    noted = _NOTED.get()
    if noted is not None:
        noted.append((constant, *found))
    return found[1]


@torch.library.custom_op("scoretk::copied", mutates_args=())
def _copied_in_graph(constant: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The copy of a constant, for a compiled graph: that would copy it from the host at each call.

    It is a copy of the copy, as a graph may write into what it gets.
    """
    return _copied(constant, device, dtype).clone()


@_copied_in_graph.register_fake
def _copied_in_trace(constant: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(constant, device=device, dtype=dtype)
