"""The recorder of draws that go to a store.

Draws are collected on the device in a ring. A chunk that is full is copied while the steps go on
into the rest of it (on CUDA by a stream of its own, to memory that is pinned), and written by a
thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from scoretk.core.sealed import Stored
from scoretk.run.record import Received, Record, Stats
from scoretk.run.store import Store

__all__ = ["LEAST_BLOCK", "Streaming"]

LEAST_BLOCK = 16
"""How many draws a ring has room for beside a chunk, at least, so that blocks of steps are no
shorter than those of a run whose draws are kept in memory.
"""


@dataclass
class _Progress:
    """The state of a stream: draws in a chunk, and how many draws have left the ring."""

    chunk: int = 1
    written: int = 0


@dataclass(frozen=True, eq=False)
class Streaming:
    """The recorder of a batch whose draws go to a store.

    Its record is a ring of the last draws, written in place as that of `KeepAll`: a block of steps
    that is made again fills it with the same numbers. Only between blocks (`passed`) are chunks
    taken from it, so what is written are draws that stay.

    Args:
        store: Where they go.
        rows: Which chains of the run the batch has.
    """

    store: Store
    rows: slice
    _now: _Progress = field(default_factory=_Progress)

    def position(self, x: Tensor) -> Tensor:
        return x

    def most(self) -> int:
        """How many draws a block of steps may add.

        The ring has room for these, for a chunk that is on its way to the host, and for less than a
        chunk that is not full.
        """
        return max(self._now.chunk, LEAST_BLOCK)

    def _ring(self, like: Mapping[str, Tensor]) -> Record:
        """An empty ring for draws like these; its arrays are in the store from now on."""
        chunk = self.store.draws_a_chunk(like["x"])
        with self.store.as_store_errors():
            self.store.made(like, chunk)
        self._now.chunk, size = chunk, 2 * chunk + max(chunk, LEAST_BLOCK)
        return Record.from_flat({n: v.new_empty((size, *v.shape)) for n, v in like.items()})

    def add(self, record: Record, x: Tensor, stats: Stats, index: int, total: int) -> Record:
        """Write draw number `index` into the ring."""
        record = record if record.tensors else self._ring(Record({"x": x}, stats).flat())
        at = index % len(record.tensors["x"])
        record.tensors["x"][at] = x
        for name, value in stats.items():
            record.stats[name][at] = value
        return record

    def extend(
        self, record: Record, xs: Tensor, stats: Stats, chosen: list[int], index: int, total: int
    ) -> Record:
        """As `add` for each chosen step of a block, in one copy."""
        if not record.tensors:
            first = {name: value[0] for name, value in stats.items()}
            record = self._ring(Record({"x": xs[0]}, first).flat())
        rings, size, done = record.flat(), len(record.tensors["x"]), 0
        while done < len(chosen):  # once, or twice where the ring's end lies between
            at = (index + done) % size
            part = chosen[done : done + size - at]
            for name, value in Record({"x": xs}, stats).flat().items():
                own = value if len(part) == len(value) else value[part]
                rings[name][at : at + len(part)] = own
            done += len(part)
        return record

    def passed(self, record: Record, count: int, status: Tensor, failed_at: Tensor) -> None:
        """Begin to write the chunks that are full.

        Args:
            record: The ring.
            count: How many draws have been made.
            status: The status of each chain.
            failed_at: Where each failed.

        Raises:
            StoreError: What was begun before could not be written.
        """
        now = self._now
        while record.tensors and count - now.written >= now.chunk:
            self._begin(record, now.written, now.chunk, status, failed_at, now.written + now.chunk)
            now.written += now.chunk

    def flushed(self, record: Record, count: int, status: Tensor, failed_at: Tensor) -> None:
        """As `passed`, with the chunk that is not full, and wait until all is written.

        Raises:
            StoreError: It cannot be written.
        """
        self.passed(record, count, status, failed_at)
        now = self._now
        if record.tensors and count >= now.written:  # of an earlier moment more is written already
            # also of no further draws, as a chain may have another status by now
            self._begin(record, now.written, count - now.written, status, failed_at, count)
        self.store.writer.wait()

    def ended(self, record: Record, count: int, status: Tensor, failed_at: Tensor) -> None:
        """As `flushed`; of a batch that was over when it was taken up, what became of its chains."""
        self.flushed(record, count, status, failed_at)
        if not record.tensors and count:
            self.store.open()
            fates = {"status": status, "failed_at": failed_at}
            self.store.write(self.rows, 0, {name: v.cpu().numpy() for name, v in fates.items()})

    def filled(self, record: Record, count: int) -> Record:
        """The part of the record for a checkpoint: empty, as the draws are in the store."""
        return Record()

    def restored(
        self, saved: Mapping[str, Stored | Received], count: int, total: int, device: torch.device
    ) -> Record:
        """The ring as it was after `count` draws, from what the store has of its last chunk.

        Of a batch that is over, here or in another process, there is nothing to go on with.
        """
        if count in (0, total):
            return Record()
        store, now = self.store, self._now
        store.open()
        names = ["x", *(f"stats/{name}" for name in store.names())]
        like = {n: _tensor(store.read(n, self.rows, 0, 1)[0], device) for n in names}
        record = self._ring(like)
        now.written = count // now.chunk * now.chunk
        size = len(record.tensors["x"])
        for name, ring in record.flat().items():
            if now.written < count:
                part = _tensor(store.read(name, self.rows, now.written, count), device)
                for i in range(count - now.written):
                    ring[(now.written + i) % size] = part[i]
        return record

    def _begin(
        self, record: Record, start: int, n: int, status: Tensor, failed_at: Tensor, kept: int
    ) -> None:
        """Take draws from the ring, and begin to write them."""
        size = len(record.tensors["x"])
        at = [i % size for i in range(start, start + n)]
        parts = {name: _cut(ring, at) for name, ring in record.flat().items()} if n else {}
        values = self.store.contents.values
        if n and values is not None:
            parts["named"] = values(parts["x"])
        parts |= {"status": status, "failed_at": failed_at}
        made = np.full(len(status), kept)
        self.store.writer.begin(
            parts, lambda host: self.store.write(self.rows, start, host | {"kept": made})
        )


def _tensor(value: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value)).to(device)


def _cut(ring: Tensor, at: list[int]) -> Tensor:
    """Some draws of a ring, which may go round its end; a view where they do not."""
    if at[-1] >= at[0]:
        return ring[at[0] : at[-1] + 1]
    return torch.cat([ring[at[0] :], ring[: at[-1] + 1]])
