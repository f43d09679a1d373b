"""What a run keeps: every draw, the last one, or moments, with the solver's statistics.

A recorder is a small set of pure functions over named tensors (the *record*), so that a run can
replace position, state and record in one assignment, and a checkpoint can hold them all. `KeepAll`
writes in place, into slots that a repeated step fills with the same numbers again: the batches of a
run write side by side into one `Room`, which is the memory of its draws. `KeepMoments` does within a
block of steps, in tensors that no moment holds yet (`Record.own`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from scoretk.core.devices import widest
from scoretk.core.memory import room_like
from scoretk.core.rows import across
from scoretk.core.sealed import Stored

__all__ = [
    "RECORDERS",
    "Constraining",
    "KeepAll",
    "KeepLast",
    "KeepMoments",
    "OfRows",
    "Received",
    "Record",
    "Recorder",
    "Room",
]

Stats = dict[str, Tensor]
CHUNK = 1 << 16


@dataclass
class Record:
    """What has been kept.

    Args:
        tensors: Positions ("x"), or running moments of them ("mean", "m2", and what these were
            after half of the draws: "half_mean", "half_m2", "half_draws").
        stats: Statistics that the solver reported, by name.
        own: Whether nothing else holds these, so that the next draw may be added in place.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    stats: Stats = field(default_factory=dict)
    own: bool = False

    def held(self) -> Record:
        """The record as a moment holds it: its tensors are not written into again."""
        return replace(self, own=False)

    def flat(self) -> dict[str, Tensor]:
        """All tensors under one set of names, for a checkpoint."""
        return self.tensors | {f"stats/{name}": value for name, value in self.stats.items()}

    @staticmethod
    def from_flat(flat: dict[str, Tensor]) -> Record:
        """The inverse of `flat`."""
        stats = {name[6:]: value for name, value in flat.items() if name.startswith("stats/")}
        return Record(
            {name: value for name, value in flat.items() if not name.startswith("stats/")}, stats
        )


class Recorder(Protocol):
    """How draws are added to a record.

    `index` is the number of draws kept so far, `total` that of the whole run.
    """

    def add(self, record: Record, x: Tensor, stats: Stats, index: int, total: int) -> Record: ...

    def extend(
        self, record: Record, xs: Tensor, stats: Stats, chosen: list[int], index: int, total: int
    ) -> Record: ...

    def filled(self, record: Record, count: int) -> Record: ...

    def restored(
        self, saved: Mapping[str, Stored | Received], count: int, total: int, device: torch.device
    ) -> Record: ...

    def position(self, x: Tensor) -> Tensor: ...

    def most(self) -> float: ...

    def passed(self, record: Record, count: int, status: Tensor, failed_at: Tensor) -> None: ...

    def flushed(self, record: Record, count: int, status: Tensor, failed_at: Tensor) -> None: ...

    def ended(self, record: Record, count: int, status: Tensor, failed_at: Tensor) -> None: ...


@dataclass(frozen=True)
class Received:
    """A tensor that another process has sent, with the interface of `Stored`.

    Args:
        value: The tensor.
    """

    value: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.value.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    def __len__(self) -> int:
        return len(self.value)

    def into(self, out: Tensor) -> Tensor:
        """Copy it into a tensor of its shape."""
        return out.copy_(self.value)

    def read(self, device: torch.device) -> Tensor:
        """The tensor, on a device."""
        return self.value.to(device)


@dataclass
class Room:
    """The memory of all draws of a run, of which each batch fills its own chains.

    Args:
        chains: How many chains the run has.
        tensors: The draws `(total, chains, *event)` and the statistics `(total, chains)`, by the
            names of `Record.flat`, from the first draw on.
    """

    chains: int
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def of(self, name: str, like: Tensor, rows: slice, total: int) -> Tensor:
        """Room for some chains, `(total, rows, *event)`, a view.

        Args:
            name: What it is for.
            like: One draw of a batch, `(chains, *event)`.
            rows: Which chains of the run the batch has.
            total: How many draws there will be.
        """
        if name not in self.tensors:
            self.tensors[name] = room_like(like, (total, self.chains, *like.shape[1:]))
        return self.tensors[name][:, rows]


class _StepByStep:
    """A recorder that adds the steps of a block one by one."""

    def position(self, x: Tensor) -> Tensor:
        """The position as it is kept: unchanged."""
        return x

    def most(self) -> float:
        """How many draws a block of steps may add: any number."""
        return math.inf

    def passed(self, record: Record, count: int, status: Tensor, failed_at: Tensor) -> None:
        """What is done when a block of steps is over, for recorders that write to a store: nothing.

        Args:
            record: The record.
            count: How many draws it has been given.
            status: The status of each chain of the batch, `(chains,)`.
            failed_at: The step at which each failed, or -1, `(chains,)`.
        """

    def flushed(self, record: Record, count: int, status: Tensor, failed_at: Tensor) -> None:
        """As `passed`, with all that has been recorded, which is on the disk when this returns."""

    def ended(self, record: Record, count: int, status: Tensor, failed_at: Tensor) -> None:
        """As `flushed`, when the batch is over: what became of each chain is known."""

    def restored(
        self, saved: Mapping[str, Stored | Received], count: int, total: int, device: torch.device
    ) -> Record:
        """A record of `count` draws that was saved, ready for those that follow.

        It is empty where none of its draws is to be kept, as the last draw of a shorter run is not.

        Args:
            saved: Its tensors, by the names of `Record.flat`.
            count: How many draws it has.
            total: How many the whole run has.
            device: Where they belong.

        Raises:
            ValueError: It has others.
        """
        flat = {name: value.read(device) for name, value in saved.items()} if count else {}
        return Record.from_flat(flat)

    def extend(
        self: Recorder,
        record: Record,
        xs: Tensor,
        stats: Stats,
        chosen: list[int],
        index: int,
        total: int,
    ) -> Record:
        """Add the chosen steps of a block.

        Args:
            record: The record so far.
            xs: The positions after each step, `(steps, chains, *event_shape)`.
            stats: The statistics of each step, `(steps, chains)`, by name.
            chosen: Which steps of the block are kept.
            index: As in `Recorder`.
            total: As in `Recorder`.
        """
        for n, i in enumerate(chosen):
            record = self.add(
                record, xs[i], {name: value[i] for name, value in stats.items()}, index + n, total
            )
        return record


@dataclass(frozen=True)
class KeepAll(_StepByStep):
    """Every draw: `x` of shape `(total, chains, *event)`, statistics `(total, chains)`.

    Args:
        room: The memory of the run's draws; None for memory of the batch's own.
        rows: Which chains of the run the batch has.
    """

    room: Room | None = None
    rows: slice = field(default_factory=lambda: slice(None))

    def _with_room(self, flat: dict[str, Tensor], total: int) -> Record:
        """A record with room for so many draws like these, each `(chains, *event)`."""
        room = self.room or Room(len(flat["x"]))
        return Record.from_flat({n: room.of(n, v, self.rows, total) for n, v in flat.items()})

    def add(self, record: Record, x: Tensor, stats: Stats, index: int, total: int) -> Record:
        """Write draw number `index`; the first one makes room for all."""
        if not record.tensors:
            # a graph needs the draws themselves, not a buffer overwritten in place
            if x.requires_grad:
                return Record({"x": x[None]}, {name: value[None] for name, value in stats.items()})
            record = self._with_room(Record({"x": x}, stats).flat(), total)
        if x.requires_grad:
            joined = torch.cat([record.tensors["x"], x[None]])
            return Record(
                {"x": joined}, {n: torch.cat([record.stats[n], v[None]]) for n, v in stats.items()}
            )
        record.tensors["x"][index] = x
        for name, value in stats.items():
            record.stats[name][index] = value
        return record

    def extend(
        self, record: Record, xs: Tensor, stats: Stats, chosen: list[int], index: int, total: int
    ) -> Record:
        """As `add` for each chosen step, in one copy."""
        if not record.tensors:
            first = {name: value[chosen[0]] for name, value in stats.items()}
            record = self.add(record, xs[chosen[0]], first, index, total)
        to = slice(index, index + len(chosen))
        record.tensors["x"][to] = xs if len(chosen) == len(xs) else xs[chosen]
        for name, value in stats.items():
            record.stats[name][to] = value if len(chosen) == len(value) else value[chosen]
        return record

    def filled(self, record: Record, count: int) -> Record:
        """The part of the record that is filled, `count` draws."""
        return Record(
            {n: v[:count] for n, v in record.tensors.items()},
            {n: v[:count] for n, v in record.stats.items()},
        )

    def restored(
        self, saved: Mapping[str, Stored | Received], count: int, total: int, device: torch.device
    ) -> Record:
        """As `Recorder.restored`: draws are read to where the run has room for all."""
        if not count:
            return Record()
        if "x" not in saved or any(len(value) != count for value in saved.values()):
            raise ValueError(f"it does not keep {count} draws")
        like = {n: torch.empty(v.shape[1:], dtype=v.dtype, device=device) for n, v in saved.items()}
        made = self._with_room(like, total)
        for name, room in made.flat().items():
            saved[name].into(room[:count])
        return made


class KeepLast(_StepByStep):
    """The last draw only, `(1, chains, *event)`; statistics as sums over the draws."""

    def add(self, record: Record, x: Tensor, stats: Stats, index: int, total: int) -> Record:
        """Replace the draw, and add the statistics to their sums."""
        return Record({"x": x[None]}, _summed(record.stats, stats))

    def extend(
        self, record: Record, xs: Tensor, stats: Stats, chosen: list[int], index: int, total: int
    ) -> Record:
        """As `add` for each chosen step, with the bits of one after another."""
        sums = {}
        for name, value in stats.items():
            rows = value.to(widest(value.device))
            rows = rows if len(chosen) == len(rows) else rows[chosen]
            before = [record.stats[name][None]] if name in record.stats else []
            sums[name] = torch.cat([*before, rows]).cumsum(0)[-1]
        return Record({"x": xs[chosen[-1]][None]}, sums)

    def filled(self, record: Record, count: int) -> Record:
        return record


class KeepMoments(_StepByStep):
    """The running mean and the sum of squared deviations of each chain, in constant memory.

    What they are after half of the draws stays beside them, since R-hat compares halves. A run that
    is extended to less than twice its length has passed its new half: there the old cut stays.

    References:
        Welford, "Note on a method for calculating corrected sums of squares and products" (1962).
    """

    def add(self, record: Record, x: Tensor, stats: Stats, index: int, total: int) -> Record:
        """Update `mean += (x - mean) / n` and `m2 += (x - mean_before) (x - mean_after)`."""
        old = record.tensors or {
            name: torch.zeros_like(x, dtype=widest(x.device)) for name in ("mean", "m2")
        }
        own = (record.own or not record.tensors) and not x.requires_grad
        new = {n: old[n] if own else torch.empty_like(old[n]) for n in ("mean", "m2")}
        for start in range(0, len(x), rows := max(1, CHUNK // max(1, x[0].numel()))):
            part = slice(start, start + rows)  # a part at a time, so that intermediates stay small
            mean, m2 = _welford(old["mean"][part], old["m2"][part], x[part], index)
            new["mean"][part], new["m2"][part] = mean, m2
        half = {name: value for name, value in old.items() if name.startswith("half_")}
        found = _halved(new | half, index + 1, total)
        halves = found.get("half_mean") is new["mean"]  # which share the tensors from now on
        return Record(found, _summed(record.stats, stats, own), own=not halves)

    def restored(
        self, saved: Mapping[str, Stored | Received], count: int, total: int, device: torch.device
    ) -> Record:
        """As `Recorder.restored`; a run that is extended to twice its length is at its half now."""
        record = super().restored(saved, count, total, device)
        return Record(_halved(record.tensors, count, total), record.stats)

    def filled(self, record: Record, count: int) -> Record:
        return record


@dataclass(frozen=True)
class _Around(_StepByStep):
    """A recorder that gives another one, `inner`, something else to record."""

    inner: Recorder

    def most(self) -> float:
        return self.inner.most()

    def passed(self, record: Record, count: int, status: Tensor, failed_at: Tensor) -> None:
        self.inner.passed(record, count, status, failed_at)

    def flushed(self, record: Record, count: int, status: Tensor, failed_at: Tensor) -> None:
        self.inner.flushed(record, count, status, failed_at)

    def ended(self, record: Record, count: int, status: Tensor, failed_at: Tensor) -> None:
        self.inner.ended(record, count, status, failed_at)

    def filled(self, record: Record, count: int) -> Record:
        return self.inner.filled(record, count)

    def restored(
        self, saved: Mapping[str, Stored | Received], count: int, total: int, device: torch.device
    ) -> Record:
        return self.inner.restored(saved, count, total, device)


@dataclass(frozen=True)
class Constraining(_Around):
    """Another recorder for positions that are mapped from free space to the user's.

    Args:
        inner: The other recorder.
        constrain: The map, `(chains, *event_shape)` to positions in the user's space.
    """

    constrain: Callable[[Tensor], Tensor]

    def position(self, x: Tensor) -> Tensor:
        """The position as it is kept: in the user's space."""
        return self.constrain(x)

    def add(self, record: Record, x: Tensor, stats: Stats, index: int, total: int) -> Record:
        """As the other recorder, in the user's space."""
        return self.inner.add(record, self.constrain(x), stats, index, total)


@dataclass(frozen=True)
class OfRows(_Around):
    """Another recorder for some of the chains: of those that tune, the ones that are asked for.

    Args:
        inner: The other recorder.
        rows: Which chains of the batch.
    """

    rows: slice

    def passed(self, record: Record, count: int, status: Tensor, failed_at: Tensor) -> None:
        self.inner.passed(record, count, status[self.rows], failed_at[self.rows])

    def flushed(self, record: Record, count: int, status: Tensor, failed_at: Tensor) -> None:
        self.inner.flushed(record, count, status[self.rows], failed_at[self.rows])

    def ended(self, record: Record, count: int, status: Tensor, failed_at: Tensor) -> None:
        self.inner.ended(record, count, status[self.rows], failed_at[self.rows])

    def position(self, x: Tensor) -> Tensor:
        return self.inner.position(x)[self.rows]

    def add(self, record: Record, x: Tensor, stats: Stats, index: int, total: int) -> Record:
        some = {name: value[self.rows] for name, value in stats.items()}
        return self.inner.add(record, x[self.rows], some, index, total)


def _welford(mean: Tensor, m2: Tensor, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
    before = x.to(mean.dtype) - mean
    mean = mean + before / (index + 1)
    return mean, m2 + before * (x - mean)


def _halved(moments: dict[str, Tensor], count: int, total: int) -> dict[str, Tensor]:
    """Moments of `count` draws, which after half of them are kept as those of the first half too."""
    if count == 0 or count != total // 2:
        return moments
    mean = moments["mean"]
    made = torch.tensor([count], device=mean.device).expand(len(mean))  # one number in memory
    half = {"half_mean": mean, "half_m2": moments["m2"], "half_draws": made}
    return moments | half


def _summed(sums: Stats, stats: Stats, own: bool = False) -> Stats:
    """Sums with another value of each statistic, in float64 where the device has it.

    `own` is as in `Record`.
    """
    found = dict(sums)
    for name, value in stats.items():
        dtype = widest(value.device)
        if name not in sums:
            found[name] = value.to(dtype, copy=True)  # it may be a part of the state
        else:
            found[name] = sums[name].add_(value) if own else sums[name] + value.to(dtype)
    return found


def masked(stats: Stats, alive: Tensor) -> Stats:
    """Statistics that are NaN for failed chains, so that no average counts these as if they moved."""
    return {
        name: torch.where(across(alive, value), value, torch.nan)
        if value.is_floating_point()
        else value
        for name, value in stats.items()
    }


RECORDERS: dict[str, Recorder] = {"all": KeepAll(), "last": KeepLast(), "moments": KeepMoments()}
