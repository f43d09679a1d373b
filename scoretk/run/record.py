"""What a run keeps: every draw, the last one, or moments, with the solver's statistics.

A recorder is a small set of pure functions over named tensors (the *record*), so that a run can
replace position, state and record in one assignment, and a checkpoint can hold them all. Only
`KeepAll` writes in place, into slots that a repeated step fills with the same numbers again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from scoretk.core.devices import widest
from scoretk.core.rows import across

__all__ = ["RECORDERS", "Constraining", "KeepAll", "KeepLast", "KeepMoments", "Record", "Recorder"]

Stats = dict[str, Tensor]
CHUNK = 1 << 16


@dataclass
class Record:
    """What has been kept.

    Args:
        tensors: Positions ("x"), or running moments of them ("mean", "m2").
        stats: Statistics that the solver reported, by name.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    stats: Stats = field(default_factory=dict)

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

    def position(self, x: Tensor) -> Tensor: ...


def _exact(x: Tensor) -> torch.dtype:
    """The dtype of running sums: float64 where the device has it, so that long sums stay accurate."""
    return widest(x.device)


class _OneByOne:
    """A recorder that adds the steps of a block one by one."""

    def position(self, x: Tensor) -> Tensor:
        """The position as it is kept: unchanged."""
        return x

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


class KeepAll(_OneByOne):
    """Every draw: `x` of shape `(total, chains, *event)`, statistics `(total, chains)`."""

    def add(self, record: Record, x: Tensor, stats: Stats, index: int, total: int) -> Record:
        """Write draw number `index`; the first one makes room for all."""
        if not record.tensors:
            # a graph needs the draws themselves, not a buffer overwritten in place
            if x.requires_grad:
                return Record({"x": x[None]}, {name: value[None] for name, value in stats.items()})
            record = Record({"x": x.new_empty((total, *x.shape))})
            record.stats = {
                name: value.new_empty((total, *value.shape)) for name, value in stats.items()
            }
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


class KeepLast(_OneByOne):
    """The last draw only, `(1, chains, *event)`; statistics as sums over the draws."""

    def add(self, record: Record, x: Tensor, stats: Stats, index: int, total: int) -> Record:
        """Replace the draw, and add the statistics to their sums."""
        return Record({"x": x[None]}, _summed(record.stats, stats))

    def filled(self, record: Record, count: int) -> Record:
        return record


class KeepMoments(_OneByOne):
    """The running mean and the sum of squared deviations of each chain, in constant memory.

    References:
        Welford, "Note on a method for calculating corrected sums of squares and products" (1962).
    """

    def add(self, record: Record, x: Tensor, stats: Stats, index: int, total: int) -> Record:
        """Update `mean += (x - mean) / n` and `m2 += (x - mean_before) (x - mean_after)`."""
        old = record.tensors or {
            name: torch.zeros_like(x, dtype=_exact(x)) for name in ("mean", "m2")
        }
        new = {name: torch.empty_like(value) for name, value in old.items()}
        for start in range(0, len(x), rows := max(1, CHUNK // max(1, x[0].numel()))):
            part = slice(start, start + rows)  # a part at a time, so that intermediates stay small
            mean, m2 = _welford(old["mean"][part], old["m2"][part], x[part], index)
            new["mean"][part], new["m2"][part] = mean, m2
        return Record(new, _summed(record.stats, stats))

    def filled(self, record: Record, count: int) -> Record:
        return record


@dataclass(frozen=True)
class Constraining(_OneByOne):
    """Another recorder for positions that are mapped from free space to the user's.

    Args:
        inner: The other recorder.
        constrain: The map, `(chains, *event_shape)` to positions in the user's space.
    """

    inner: Recorder
    constrain: Callable[[Tensor], Tensor]

    def position(self, x: Tensor) -> Tensor:
        """The position as it is kept: in the user's space."""
        return self.constrain(x)

    def add(self, record: Record, x: Tensor, stats: Stats, index: int, total: int) -> Record:
        """As the other recorder, in the user's space."""
        return self.inner.add(record, self.constrain(x), stats, index, total)

    def filled(self, record: Record, count: int) -> Record:
        return self.inner.filled(record, count)


def _welford(mean: Tensor, m2: Tensor, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
    before = x.to(mean.dtype) - mean
    mean = mean + before / (index + 1)
    return mean, m2 + before * (x - mean)


def _summed(sums: Stats, stats: Stats) -> Stats:
    added = {name: value.to(_exact(value)) for name, value in stats.items()}
    return {name: sums[name] + value if name in sums else value for name, value in added.items()}


def masked(stats: Stats, alive: Tensor) -> Stats:
    """Statistics that are NaN for failed chains, so that no average counts these as if they moved."""
    return {
        name: torch.where(across(alive, value), value, torch.nan)
        if value.is_floating_point()
        else value
        for name, value in stats.items()
    }


RECORDERS: dict[str, Recorder] = {"all": KeepAll(), "last": KeepLast(), "moments": KeepMoments()}
