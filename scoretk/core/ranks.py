"""Where a process stands among those of its job."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

__all__ = ["Ranks"]


@dataclass(frozen=True)
class Ranks:
    """Where a process stands among those of its job.

    No part of what a field is made of, in whose code it may be named: each rank has its own.

    Args:
        rank: Its number, from 0.
        world_size: How many there are.
        device: The device that is its own: `cuda:LOCAL_RANK` where there is a GPU for each process
            of the machine, or the one that it was given alone, else the CPU.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
