"""The loop, written once.

Many steps of any solver, with failures masked (`scoretk.run.settle`), draws kept, and a run that
can be resumed.

Everything that a run is at a moment is one `Moment`, replaced whole after each block of steps: an
interrupt finds either the moment before the block or the one after it. Who makes the steps of a
block is an `Engine`: `Eager` one by one, `scoretk.run.capture.Captured` by compiled functions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from scoretk.core.compiling import PartCompiler, parts_compiled_by
from scoretk.core.modules import left_as_found
from scoretk.errors import ChainFailure, Status
from scoretk.run.capture import CALL, Captured, Engine
from scoretk.run.moment import Loop, Moment, failures, is_free, looked_at, outcome
from scoretk.run.parts import CompiledParts
from scoretk.run.schedule import Schedule
from scoretk.run.settle import AtOnce, AtTheEnd, Made, Now, Watching, make_step, settled
from scoretk.solvers.base import traits
from scoretk.solvers.warmup.adaptation import WarmupStep

__all__ = ["BLOCK_SECONDS", "Eager", "drive", "engine_of"]

BLOCK_SECONDS = 0.1
GROWTH = 8
"""How many times longer than the last a block may be, as later steps may take longer than the first."""
DEVICE_BLOCK = 2 * CALL
"""The fewest steps of a block on a device, which waits for the host at the end of each."""


def drive(
    loop: Loop,
    moment: Moment,
    *,
    compiled: bool = False,
    recompute: bool = False,
    on_failure: str = "flag",
    seconds: float = BLOCK_SECONDS,
) -> Iterator[Moment]:
    """Run from a moment to the schedule's end, yielding the moment after every block of steps.

    Args:
        loop: What stays the same in the run.
        moment: The moment to begin from, of `begin` or of a checkpoint.
        compiled: Whether the step is compiled, or, of a solver that cannot be captured, its parts.
        recompute: Whether what a step computes on the way is not kept for gradients but computed
            again.
        on_failure: "raise" to stop after the first block in which a chain failed.
        seconds: About how long a block takes: often enough for progress, checkpoints and Ctrl-C. 0
            for blocks as short as can be, which end at the same steps however fast they are.

    Yields:
        The moment after each block.

    Raises:
        ChainFailure: Where a chain has failed, with on_failure="raise".
    """
    engine, schedule = engine_of(loop, compiled=compiled, recompute=recompute), loop.schedule
    least = CALL if moment.status.device.type == "cpu" else DEVICE_BLOCK
    size, free = least, is_free(loop.solver)
    while moment.step < schedule.total:
        started = time.perf_counter()
        look = schedule.next_look(moment.step, CALL if compiled else 1) if free else math.inf
        end = min(look, schedule.total)
        most = schedule.steps_for(moment.step, loop.recorder.most())
        steps = _aligned(moment.step, int(min(size, most)) // CALL * CALL)
        moment = engine.block(moment, int(min(steps, end - moment.step)))
        if moment.step == look:
            moment = looked_at(moment)
        kept = schedule.kept_before(moment.step)
        loop.recorder.passed(moment.record, kept, moment.status, moment.failed_at)
        _raise_failures(moment, schedule, on_failure, loop.noise.chains)
        yield moment
        pace = seconds / max(time.perf_counter() - started, 1e-6)
        size = max(least, min(GROWTH * size, int(size * pace) // CALL * CALL))


def engine_of(loop: Loop, *, compiled: bool, recompute: bool = False) -> Engine:
    """The engine of a run, by what its solver says can be captured of it.

    Args:
        loop: What stays the same in the run.
        compiled: As in `drive`.
        recompute: As in `drive`.

    Returns:
        `Eager` where nothing is compiled; `Captured` where steps can be captured whole; else
        `Eager` with compiled parts.
    """
    eager = Eager(loop, recompute=recompute)
    if not compiled:
        return eager
    in_parts = Eager(loop, CompiledParts(loop.field, len(loop.noise.chains)), recompute)
    said = traits(loop.solver)
    captured = (
        loop.solver.capturable or said.capturable_as_loop or said.capturable_ahead is not None
    )
    return Captured(loop, eager, in_parts) if captured else in_parts


@dataclass(frozen=True, eq=False)
class Eager:
    """The engine that makes steps one by one.

    No masks are made while all chains are well. On the CPU that is tested at each step; on a device
    at the end of a block, which is made again with masks where a chain was not well
    (`scoretk.run.settle`).

    Args:
        loop: What stays the same in the run.
        parts: What compiles the parts of steps that do not tune; None to compile none. (Tuning
            changes the settings that a part would be compiled for.)
        recompute: As in `drive`.
    """

    loop: Loop
    parts: PartCompiler | None = None
    recompute: bool = False

    def block(self, moment: Moment, steps: int) -> Moment:
        """As `Engine.block`; a block that tunes ends with warmup."""
        warmup = self.loop.schedule.warmup
        if moment.tuning is not None and moment.step < warmup:
            steps = min(steps, warmup - moment.step)
        if moment.failed:
            return self._steps(moment, steps, None)
        if moment.status.device.type == "cpu":
            reach = math.inf if moment.reach is None else float(moment.reach.min())
            return self._steps(moment, steps, AtOnce(reach))
        noted = self._noted(moment, steps, AtTheEnd(moment.reach))
        return self._steps(moment, steps, None) if noted is None else noted

    def _noted(self, moment: Moment, steps: int, watching: AtTheEnd) -> Moment | None:
        """The moment after the steps, if all chains were well in all of them."""
        try:
            after = self._steps(moment, steps, watching)
        except Exception:
            if watching.all_passed():
                raise
            return None  # of a model that takes no such positions, where masks would spare it them
        return after if watching.all_passed() else None

    def _steps(self, moment: Moment, steps: int, watching: Watching | None) -> Moment:
        """The moment after so many steps; every step is masked where nobody is `watching`."""
        schedule, recorder = self.loop.schedule, self.loop.recorder
        tunes = moment.tuning is not None and moment.step < schedule.warmup
        now = Now(moment.state, moment.status, moment.failed_at, moment.reach)
        record, evaluations, tuning = moment.record, moment.evaluations, moment.tuning
        energies = moment.energies
        kept, total = schedule.kept_before(moment.step), schedule.kept_before(schedule.total)
        with parts_compiled_by(None if tunes else self.parts):
            for step in range(moment.step, moment.step + steps):
                before = now.status
                if tunes:
                    made, tuning = self._tuned(now, tuning, step, watching)
                else:
                    made = self._made(now, step, watching)
                now = made.now
                if watching is not None and now.status is not before and bool(now.status.any()):
                    watching = None
                if made.evaluations is not None:  # summed on the device, read when a run is over
                    evaluations = made.evaluations.sum() + evaluations
                if made.energies is not None:
                    energies = made.energies.sum() + energies
                if schedule.keeps(step):
                    record = recorder.add(record, now.state.x, made.stats, kept, total)
                    kept += 1
        return replace(
            moment,
            state=now.state,
            status=now.status,
            failed_at=now.failed_at,
            failed=moment.failed if now.status is moment.status else failures(now.status),
            step=moment.step + steps,
            record=record.held(),
            evaluations=evaluations,
            energies=energies,
            tuning=tuning,
        )

    def _tuned(
        self, now: Now, tuning: Any, step: int, watching: Watching | None
    ) -> tuple[Made, Any]:
        """A step of warmup, and the state of the adaptation after it."""
        solver, field, noise = self.loop.solver, self.loop.field, self.loop.noise
        alive, warmup = now.status == int(Status.OK), self.loop.schedule.warmup
        at = WarmupStep(solver, field, noise, alive, step, warmup, watching is not None)
        new, info, tuning = solver.adaptation.update(at, now.state, tuning)
        return settled(new, info, now, step, watching), tuning

    def _made(self, now: Now, step: int, watching: Watching | None) -> Made:
        arguments = (self.loop.solver, self.loop.field, self.loop.noise, now, step, watching)
        if not self.recompute:
            return make_step(*arguments)
        made: Made = recomputed(
            _made_as_found, *arguments, use_reentrant=False, preserve_rng_state=False
        )
        return made


def _made_as_found(solver: Any, field: Any, *rest: Any) -> Made:
    """`make_step` with modules in eval mode: gradients may call it again when the run is over."""
    with left_as_found(getattr(field, "native", field), True):
        return make_step(solver, field, *rest)


def _aligned(step: int, size: int) -> int:
    """The length of a block of about `size` steps that ends at a multiple of `CALL`.

    So compiled calls divide a run in the same way after a resume.
    """
    return (step // CALL * CALL + size) - step


def _raise_failures(moment: Moment, schedule: Schedule, on_failure: str, ids: Tensor) -> None:
    if on_failure != "raise":
        return
    over = moment.step == schedule.total
    if not over and not moment.failed:
        return
    status, failed_at = outcome(moment) if over else (moment.status, moment.failed_at)
    if bool((status != int(Status.OK)).any()):
        chains = torch.nonzero(status != int(Status.OK)).flatten()
        steps = schedule.intervals(failed_at[chains])
        raise ChainFailure(ids[chains].tolist(), status[chains].tolist(), steps.tolist())
