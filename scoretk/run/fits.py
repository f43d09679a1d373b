"""Whether what a run keeps fits into memory, asked before it starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scoretk.core.devices import widest
from scoretk.core.memory import available, gigabytes
from scoretk.errors import InvalidArgument

__all__ = ["Kept", "check_fits"]


@dataclass(frozen=True)
class Kept:
    """What a run keeps, in numbers.

    Args:
        keep: "all", "last" or "moments".
        chains: How many chains there are.
        draws: How many draws of each are kept.
        entries: How many numbers a draw has, with those of variables that are functions of it.
        final: How many numbers a position has.
        dtype: Their dtype.
        device: Where they are.
        streamed: Whether draws go to a store.
    """

    keep: str
    chains: int
    draws: int
    entries: int
    final: int
    dtype: torch.dtype
    device: torch.device
    streamed: bool = False

    @property
    def bytes(self) -> int:
        """How many bytes are kept: draws or moments, and the last positions.

        Statistics come on top; what they are is known when the first step has been made.
        """
        of_one = self.final * self.dtype.itemsize
        if self.streamed:
            return self.chains * of_one
        if self.keep == "moments":
            # of all draws, and of the first half
            of_one += 4 * self.final * widest(self.device).itemsize
        else:
            of_one += self.draws * self.entries * self.dtype.itemsize
        return self.chains * of_one


def check_fits(kept: Kept) -> None:
    """Refuse what does not fit into the memory that is free.

    Raises:
        InvalidArgument: It does not.
    """
    room = available(kept.device)
    if room is None or kept.bytes <= room:
        return
    numbers = f"{kept.chains:,} chains x {kept.draws:,} draws x {kept.entries:,} numbers"
    if kept.keep == "moments" or kept.streamed:
        numbers = f"{kept.chains:,} chains x {kept.final:,} numbers"
        way = "Run some of the chains at a time: chains=range(a, b)"
    else:
        way = (
            "keep='moments' keeps a mean and a variance of each chain, thin=k every k-th draw, "
            "keep=scoretk.Zarr(path) streams all to the disk"
        )
    raise InvalidArgument(
        "keep",
        f"{kept.keep}: {gigabytes(kept.bytes)} ({numbers})",
        f"what fits into memory: {gigabytes(room)} are free on {kept.device.type}",
        way,
    )
