"""How much memory is free, of the process's machine, its container, or a device; and room in it."""

from __future__ import annotations

import math
import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["available", "gigabytes", "room_like"]

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
STATUS = Path("/proc/self/status")
ALIGNED = 64
"""The bytes at whose multiples torch has its own tensors of a CPU begin."""


def gigabytes(size: float) -> str:
    """A number of bytes as gigabytes (10^9 bytes), with three digits."""
    if size < 1e12:
        return f"{size / 1e9:.3g} GB"
    whole = size // 10**9  # of an integer one: it may be larger than any floating-point number
    return f"{whole:,} GB" if isinstance(whole, int) else f"{whole:,.0f} GB"


def available(device: torch.device, processes: int = 1) -> int | None:
    """How many bytes can be taken on a device; None where the system does not say.

    On the CPU that is the least of what the machine has free (with swap), what the control groups
    of the process leave (a container's limit), and what the process's own limit on its address
    space leaves. What a cache holds counts as free.

    Args:
        device: The device.
        processes: How many processes of the machine take as much at once: each has its part of what
            the machine and the control groups leave. (A GPU is one process's.)
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    if device.type != "cpu":
        return None
    shared = [n // processes for n in (_of_machine(), *_of_groups()) if n is not None]
    own = _of_process()
    known = shared if own is None else [*shared, own]
    return max(0, min(known)) if known else None


def room_like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Room of a shape, dtype and device like x, whose values are not set, to be written once.

    That of a CPU is NumPy's, which asks the system for large pages where there is much of it: what
    is written to for the first time is then given by a page of 2 MB and not by one of 4 kB, which
    is most of the time of a copy to it (25,600 numbers a step: 38 us, and so 8).
    """
    if x.device.type != "cpu":
        return x.new_empty(shape)
    size = math.prod(shape) * x.element_size()
    memory = torch.from_numpy(np.empty(size + ALIGNED, np.uint8))
    start = -memory.data_ptr() % ALIGNED
    return memory[start : start + size].view(x.dtype).view(shape)


def _of_machine() -> int | None:
    """What the machine has free."""
    told = _table(MEMINFO)
    if "MemAvailable" in told:
        return 1024 * (told["MemAvailable"] + told.get("SwapFree", 0))
    try:  # all there is, where nothing says how much of it is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _of_groups() -> list[int]:
    """What each control group of the process leaves, from the innermost on; none without limits."""
    found = []
    for line in _text(CGROUP).splitlines():
        _, kinds, way = [*line.split(":", 2), "", ""][:3]
        if kinds not in ("", "memory") and "memory" not in kinds.split(","):
            continue
        root = GROUPS / "memory" if kinds else GROUPS
        if kinds:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            names = ("memory.max", "memory.current")
        inside = root / way.lstrip("/")
        for folder in (inside, *inside.parents):
            if not folder.is_relative_to(root):
                break
            limit, used = (_number(folder / name) for name in names)
            if limit is not None and used is not None and limit < 1 << 60:
                told = _table(folder / "memory.stat")
                cached = told.get("total_inactive_file", told.get("inactive_file", 0))
                found.append(limit - max(0, used - cached))
    return found


def _of_process() -> int | None:
    """What the process's own limit leaves."""
    if find_spec("resource") is None:  # on Windows
        return None
    resource: Any = import_module("resource")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _table(STATUS).get("VmSize")
    if limit == resource.RLIM_INFINITY or used is None:
        return None
    return int(limit) - 1024 * used


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _table(path: Path) -> dict[str, int]:
    """The numbers of a file of names and numbers, by name."""
    found = {}
    for line in _text(path).splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdigit():
            found[words[0]] = int(words[1])
    return found
