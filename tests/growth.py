"""How much memory a call takes: the highest resident size of this process while it runs, as Linux knows it."""

import ctypes
import gc
from pathlib import Path

import pytest

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
KNOWN = CLEAR.exists()
on_linux = pytest.mark.skipif(not KNOWN, reason="the highest resident size is reset on Linux only")


def _resident(name):
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def peak_of(call):
    """What a call returns, and by how many bytes the process grew at most meanwhile."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that all that is taken shows
    CLEAR.write_text("5")
    before = _resident("VmRSS")
    made = call()
    return made, _resident("VmHWM") - before
