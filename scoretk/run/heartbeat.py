"""Heartbeats: what a rank says while it works or waits, and what it sees of the others meanwhile.

No rank waits blindly. One that waits, as one that works, says about once a second where it is, looks
whether another has failed, and then raises the same error; and whether the next one in the ring still
moves, and else names it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any

from scoretk.core.ranks import Ranks
from scoretk.errors import RankFailure
from scoretk.run.messages import unpacked

__all__ = ["BEGIN", "END", "Heartbeat"]

PERIOD = 1.0
"""Seconds between two heartbeats of a rank: a thousand ranks send three thousand messages a second, of
some tens of thousands that one store answers.
"""
LOOK = 0.2
"""The most seconds between two looks of a rank that waits."""
BEGIN, END = "begin", "end"
"""The calls that are the begin and the end of a job."""


class Heartbeat:
    """The heartbeats of a rank in one call.

    Args:
        stores: Where the ranks write what is of this call alone, and what is of all calls.
        ranks: Where this one stands.
        call: The name of the call, the same on every rank.
        timeout: As in `distributed`.
        known: The errors of calls that this rank knows of, to which those that it finds are added.
    """

    def __init__(
        self,
        stores: tuple[Any, Any],
        ranks: Ranks,
        call: str,
        timeout: float,
        known: list[BaseException],
    ) -> None:
        self.store, self.of_all = stores
        self.rank, self.world_size = ranks.rank, ranks.world_size
        self.call, self.timeout, self.known = call, timeout, known
        self._beats, self._due = count(), 0.0
        self._watched: tuple[bytes, float, float] | None = None  # the beat, since when, last look

    def begin(self) -> None:
        """Say that this rank has come to the call."""
        self.of_all.set(f"call of {self.rank}", self.call)
        self.beat("the start of the call")

    def beat(self, where: str) -> None:
        """Say where this rank is, and look whether another has failed, and the next still moves.

        Raises:
            RankFailure: The next rank has ended or hangs.
            DistError: The store is gone.
            BaseException: What another rank has raised.
        """
        now = time.monotonic()
        self._due = now + min(PERIOD, self.timeout / 4)
        self.store.set(f"heartbeat of {self.rank}", f"{where}, beat {next(self._beats)}")
        for store, error in ((self.store, "error"), (self.of_all, f"{END}/error")):
            if store.check([error]):
                self.known.append(unpacked(store.get(error), self.rank))
                raise self.known[-1]
        self.watch((self.rank + 1) % self.world_size, now)

    def beat_if_due(self, where: str) -> None:
        """As `beat`, where the last one was long enough ago."""
        if time.monotonic() >= self._due:
            self.beat(where)

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait, with heartbeats meanwhile.

        Raises:
            BaseException: As `beat`.
        """
        pause = 1e-3
        while not holds():
            self.beat_if_due(f"waiting {what}")
            time.sleep(pause)
            pause = min(2 * pause, LOOK)

    def silence(self) -> float:
        """The seconds since this rank's own last heartbeat."""
        return 0.0 if self._watched is None else time.monotonic() - self._watched[2]

    def watch(self, other: int, now: float) -> None:
        """Name the next rank in the ring where it has had the same heartbeat for too long.

        Each watches one other, so that heartbeats are read as often as they are written. Who has not
        looked for that long, as it was stopped itself (Ctrl-Z, SIGSTOP), begins to count anew.
        """
        name = f"heartbeat of {other}"
        beat = self.store.get(name) if self.store.check([name]) else b""
        before, since, looked = self._watched or (None, now, now)
        if beat != before or now - looked > self.timeout:
            since = now
        self._watched = beat, since, now
        if other != self.rank and now - since > self.timeout:
            last = beat.decode().rpartition(",")[0]
            where = f"its last heartbeat was: {last}" if last else self._absent(other)
            raise RankFailure(
                f"rank {other} of {self.world_size} has had no heartbeat for {self.timeout:g} s; "
                f"{where}. It hangs or has ended. Where a step takes so long, give "
                f"scoretk.distributed a longer timeout="
            )

    def _absent(self, other: int) -> str:
        """Where a rank is that has not come here."""
        name = f"call of {other}"
        last = self.of_all.get(name).decode() if self.of_all.check([name]) else BEGIN
        return (
            f"it has not come to {_called(self.call)}, and came to {_called(last)} last. All ranks make "
            f"the same calls"
        )


def _called(call: str) -> str:
    """What a call is called in messages."""
    return f"the {call}" if call in (BEGIN, END) else f"call {int(call) + 1} of the context"
