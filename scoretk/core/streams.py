"""The noise streams: one number a purpose, so that no two uses of the noise ever meet."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Stream"]


class Stream(IntEnum):
    """Which use a piece of noise serves. Third-party solvers may use numbers from `USER` on."""

    START = 0
    PROPOSAL = 1
    ACCEPT = 2
    PROBE = 3
    REPLAY = 4
    CORRECTION = 5
    SWAP = 6
    LENGTH = 7
    MOMENTUM = 8
    USER = 16

    __hash__ = int.__hash__  # equal to its number, and hashed without a detour through Python
