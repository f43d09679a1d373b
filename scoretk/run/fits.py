"""Whether what a run keeps fits into memory, asked before it starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scoretk.core.devices import widest
from scoretk.core.memory import available, gigabytes
from scoretk.errors import InvalidArgument

__all__ = ["Kept", "check_fits"]


FATE = 3 * torch.int64.itemsize
"""Bytes of a chain's id, its status, and the step at which it failed."""
LITTLE = 1 << 24
"""The bytes for which the system is not asked what is free, which takes longer than a short run:
what cannot hold these has not held torch.
"""


@dataclass(frozen=True)
class Kept:
    """How much a run keeps: the numbers that its memory follows from.

    Args:
        keep: "all", "last" or "moments".
        chains: How many chains there are.
        draws: How many draws of each are kept.
        entries: How many numbers a draw has, with those of variables that are functions of it.
        final: How many numbers a position has.
        statistics: How many numbers the solver reports of each draw.
        dtype: Their dtype.
        device: Where they are.
        streamed: Whether draws go to a store.
    """

    keep: str
    chains: int
    draws: int
    entries: int
    final: int
    statistics: int
    dtype: torch.dtype
    device: torch.device
    streamed: bool = False

    @property
    def bytes(self) -> int:
        """How many bytes are kept: draws or moments, statistics, and how each chain ends.

        Statistics are those that the solver says it reports; of what another one reports nobody
        knows before its first step.
        """
        of_one = self.final * self.dtype.itemsize + FATE
        exact = widest(self.device).itemsize
        if self.keep == "all" and not self.streamed:
            of_one += self.draws * (self.entries + self.statistics) * self.dtype.itemsize
        elif not self.streamed:
            of_one += self.statistics * exact  # as sums
        if self.keep == "last" and not self.streamed:
            of_one += self.draws * self.entries * self.dtype.itemsize
        if self.keep == "moments":  # of all draws, and of the first half
            of_one += 4 * self.final * exact
        return self.chains * of_one


def check_fits(kept: Kept, processes: int = 1) -> None:
    """Refuse what does not fit into the memory that is free.

    Args:
        kept: What each process keeps.
        processes: How many processes of this machine do.

    Raises:
        InvalidArgument: It does not.
    """
    if kept.bytes * processes <= LITTLE:
        return
    room = available(kept.device, processes)
    if room is None or kept.bytes <= room:
        return
    numbers = f"{kept.chains:,} chains x {kept.draws:,} draws x {kept.entries + kept.statistics:,} numbers"
    if kept.keep == "moments" or kept.streamed:
        numbers = f"{kept.chains:,} chains x {kept.final:,} numbers"
        way = "Run some of the chains at a time: chains=range(a, b)"
    else:
        way = (
            "keep='moments' keeps a mean and a variance of each chain, thin=k every k-th draw, "
            "keep=scoretk.Zarr(path) streams all to the disk"
        )
    of_each = f" for each of {processes} processes" if processes > 1 else ""
    raise InvalidArgument(
        "keep",
        f"{kept.keep}: {gigabytes(kept.bytes)} ({numbers})",
        f"what fits into memory: {gigabytes(room)} are free on {kept.device.type}{of_each}",
        way,
    )
