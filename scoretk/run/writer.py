"""Tensors on their way from a device to the disk, while steps go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Writer"]


@dataclass
class _Half:
    """A buffer of host memory for one chunk, and the write that uses it."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    writing: Future[None] | None = None

    def free(self) -> None:
        """Wait until it may be written into again.

        Raises:
            StoreError: What was in it could not be written.
        """
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()


class Writer:
    """Copies chunks to the host and writes them in a thread: two at most, one after the other."""

    def __init__(self) -> None:
        self.halves, self._turn = (_Half(), _Half()), 0
        self._thread: ThreadPoolExecutor | None = None
        self._side: Any = None
        self._copied: Any = None
        self._broken: BaseException | None = None

    def begin(
        self, parts: Mapping[str, Tensor], write: Callable[[dict[str, np.ndarray]], None]
    ) -> None:
        """Copy tensors to the host, and have them written there.

        On a device with streams the copy has one of its own: the steps go on meanwhile. What
        follows the next copy may overwrite what this one copies, and waits for it, on the device.
        """
        half, self._turn = self.halves[self._turn], 1 - self._turn
        half.free()
        device = next(iter(parts.values())).device
        module = None if device.type == "cpu" else torch.get_device_module(device)
        streams = module is not None and hasattr(module, "Stream")
        for name, value in parts.items():
            room = half.tensors.get(name)
            if room is None or room.shape[1:] != value.shape[1:] or len(room) < len(value):
                half.tensors[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=streams)
        rooms = {name: half.tensors[name][: len(value)] for name, value in parts.items()}
        copied = self._copy_beside(module, parts, rooms) if streams else None
        if not streams:
            for name, value in parts.items():
                rooms[name].copy_(value)
        host = {name: room.numpy() for name, room in rooms.items()}

        def written() -> None:
            if self._broken is not None:  # what follows a gap is not to be counted
                raise self._broken
            try:
                if copied is not None:
                    copied.synchronize()
                write(host)
            except BaseException as error:
                self._broken = error
                raise

        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="scoretk-store")
        half.writing = self._thread.submit(written)

    def _copy_beside(
        self, module: Any, parts: Mapping[str, Tensor], rooms: Mapping[str, Tensor]
    ) -> Any:
        """Copy in a stream of its own; the event after it."""
        now = module.current_stream()
        if self._copied is not None:
            now.wait_event(self._copied)
        self._side = self._side or module.Stream()
        self._side.wait_stream(now)
        with module.stream(self._side):
            for name, value in parts.items():
                value.record_stream(self._side)
                rooms[name].copy_(value, non_blocking=True)
            self._copied = self._side.record_event()
        return self._copied

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            StoreError: It cannot be.
        """
        for half in self.halves:
            half.free()

    def close(self) -> None:
        """Wait until all is written that can be, and end the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
