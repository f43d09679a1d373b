"""The streams of the noise: one number a purpose, so that no two uses share random numbers."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Stream"]


class Stream(IntEnum):
    """What a piece of noise is for; a word of the counter in `scoretk.core.noise`.

    Attributes:
        START: Initial states and exact draws.
        PROPOSAL: The noise of a step: proposals, increments of an SDE.
        ACCEPT: Uniforms of accept/reject decisions.
        PROBE: Random directions and test points, of trace estimates and of checks of derivatives.
        REPLAY: Which slots of a replay buffer are used, and which of them start anew.
        CORRECTION: A second draw of the same step, such as the signs of Barker's proposal.
        SWAP: Exchanges between temperatures, and resampling.
        LENGTH: Lengths and directions of trajectories.
        MOMENTUM: Refreshed momenta.
        JUMP: Jumps of coordinates to where other chains were.
        USER: The first number that third-party solvers may use.
    """

    START = 0
    PROPOSAL = 1
    ACCEPT = 2
    PROBE = 3
    REPLAY = 4
    CORRECTION = 5
    SWAP = 6
    LENGTH = 7
    MOMENTUM = 8
    JUMP = 9
    USER = 16

    __hash__ = int.__hash__  # in C: it is part of a key that is looked up at every step
