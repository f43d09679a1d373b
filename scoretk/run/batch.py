"""A batch of chains: what is its own, and the moment that it begins with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoretk.core.noise import Noise
from scoretk.fields.resolve import Bound
from scoretk.run.moment import Moment, begin
from scoretk.run.record import Recorder
from scoretk.run.schedule import Schedule
from scoretk.solvers.base import adapts

__all__ = ["Batch", "begin_batch"]


@dataclass(frozen=True)
class Batch:
    """A batch of chains: its field, noise, start, schedule and recorder.

    Args:
        bound: The field with the condition rows of its chains bound.
        noise: The noise of its chains.
        start: Makes the positions at the start, `(chains, *event_shape)`.
        schedule: Which steps it makes, and which are kept.
        recorder: What is kept of them.
        restart: Makes another attempt at a start, by its number from 1; None where the user has given
            the start.
        drawn: Whether the start is drawn for the run, not given by the user.
    """

    bound: Bound
    noise: Noise
    start: Callable[[], Tensor]
    schedule: Schedule
    recorder: Recorder
    restart: Callable[[int], Tensor] | None = None
    drawn: bool = False


def begin_batch(solver: Any, batch: Batch, tuned: dict[str, Tensor] | None) -> Moment:
    """The first moment of a batch, which tunes the solver where `tuned` is None and it has to be.

    Other batches take over what the first one has tuned.
    """
    warms = adapts(solver) and batch.schedule.warmup > 0
    tunes, taken = warms and tuned is None, tuned if warms else None
    return begin(
        solver,
        batch.bound,
        batch.start(),
        batch.noise,
        tunes=tunes,
        tuned=taken,
        restart=batch.restart,
    )
