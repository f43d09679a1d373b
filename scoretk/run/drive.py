"""The loop, written once.

Many steps of any solver, with failures masked (`scoretk.run.settle`), draws kept, and a run that
can be resumed.

Everything that a run is at a moment is one `Moment`, replaced whole after each block of steps: an
interrupt finds either the moment before the block or the one after it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as again

from scoretk.core.anatomy import left_as_found
from scoretk.core.compiling import compiled
from scoretk.errors import ChainFailure, Status
from scoretk.fields.resolve import StaticField, TimedField
from scoretk.run.capture import Tape, requests
from scoretk.run.moment import Moment, extent, is_free, outcome
from scoretk.run.record import Recorder
from scoretk.run.schedule import Schedule
from scoretk.run.settle import make_step, settled
from scoretk.run.state import state_leaves, with_leaves
from scoretk.solvers.base import is_planned

__all__ = ["drive"]

BLOCK_SECONDS = 0.1
UNROLL = 8
UNROLL_VALUES = 1 << 18
KINDS = 6
"""How many functions are compiled at most for steps of different length; those have to cover so
much of a run.
"""
COVERED = 0.9


def _one_as_found(solver: Any, bound: Any, *rest: Any) -> tuple[Any, ...]:
    """As `make_step`, the field's modules held as they are in a run: on the way back that has ended."""
    with left_as_found(getattr(bound, "native", bound), True):
        return make_step(solver, bound, *rest)


class _Eager:
    """Blocks of steps, one by one.

    On the CPU the host first looks whether all is well, which spares the masks.
    """

    def __init__(
        self, solver: Any, bound: Any, noise: Any, schedule: Schedule, recorder: Recorder
    ) -> None:
        self.solver, self.bound, self.noise = solver, bound, noise
        self.recompute = False
        self.fast = bound  # for the steps that do not tune, which changes what a compiled part would be made for
        self.schedule, self.recorder = schedule, recorder

    def block(self, moment: Moment, steps: int) -> Moment:
        state, status, failed_at = moment.state, moment.status, moment.failed_at
        record, evaluations = moment.record, moment.evaluations
        kept = self.schedule.kept_before(moment.step)
        total = self.schedule.kept_before(self.schedule.total)
        on_cpu = status.device.type == "cpu"
        probe = on_cpu and not bool(status.any())
        tuning, warmup = moment.tuning, self.schedule.warmup
        for step in range(moment.step, moment.step + steps):
            before = status
            if tuning is not None and step < warmup:
                alive = status == int(Status.OK)
                now = (self.noise, alive, step, warmup)
                new, info, tuning = self.solver.adaptation.update(
                    self.solver, self.bound, state, tuning, *now
                )
                held = (state, status, failed_at, moment.reach)
                state, status, failed_at, stats, used = settled(new, info, held, step, probe)
            else:
                arguments = (
                    self.solver,
                    self.fast,
                    self.noise,
                    (state, status, failed_at, moment.reach),
                    step,
                    probe,
                )
                made = (
                    make_step(*arguments)
                    if not self.recompute
                    else again(
                        _one_as_found, *arguments, use_reentrant=False, preserve_rng_state=False
                    )
                )
                state, status, failed_at, stats, used = made
            probe = probe and (status is before or not bool(status.any()))
            if used is not None:
                evaluations += int(used.sum())
            if self.schedule.keeps(step):
                record = self.recorder.add(record, state.x, stats, kept, total)
                kept += 1
        return replace(
            moment,
            state=state,
            status=status,
            failed_at=failed_at,
            step=moment.step + steps,
            record=record,
            evaluations=evaluations,
            tuning=tuning,
        )


class _Compiled(_Eager):
    """Blocks of steps as one compiled function.

    So many steps a call that the call itself costs little.

    Of a `PlannedSolver` each length has its own function, of one step: more would gain little and
    make many kinds. Where lengths are too many, its parts are compiled instead.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._tape: Tape | None = None
        self._length_at: Callable[[int], int | None] = lambda step: None
        self._functions: dict[int | None, Callable[..., Any]] = {}

    def _prepare(self, moment: Moment) -> Tape:
        x, solver = moment.state.x, self.solver
        asked, all_served = requests(solver, self.bound, moment.state, self.noise, moment.step)
        unroll = (
            max(1, UNROLL // getattr(solver, "weight", 1))
            if all_served and x.numel() <= UNROLL_VALUES
            else 1
        )
        if not solver.capturable:
            self._length_at, unroll = solver.ahead(moment.state), 1
        self._tape = Tape(self.noise, asked, unroll)
        kind = type(getattr(self.bound, "native", self.bound))
        for length in self._lengths():
            key = (repr(solver), kind, x.shape, x.dtype, x.device, asked, length)
            self._functions[length] = compiled(self._run, key)
        if not self._functions:
            self.fast = _with_fused_parts(self.bound)
        return self._tape

    def _lengths(self) -> list[int | None]:
        """The lengths for which there is a function.

        The most common after warmup, or none where these are too rare.
        """
        first = self.schedule.warmup
        seen = Counter(map(self._length_at, range(first, first + 512)))
        common = seen.most_common(KINDS)
        return (
            [length for length, _ in common]
            if sum(n for _, n in common) >= COVERED * seen.total()
            else []
        )

    def _run(
        self,
        now: tuple[Any, Tensor, Tensor, Tensor | None],
        step: Tensor,
        values: list[Tensor],
        length: int | None,
    ) -> Any:
        """The steps of one call.

        The last state, and position, statistics and evaluations of each step.
        """
        assert self._tape is not None
        solver = self.solver if length is None else self.solver.taking(length)
        state, status, failed_at, reach = now
        xs, infos = [], []
        for i in range(self._tape.length):
            player, now = self._tape.player(values, i), (state, status, failed_at, reach)
            state, status, failed_at, stats, used = make_step(
                solver, self.bound, player, now, step + i, False
            )
            xs.append(state.x)
            infos.append(stats if used is None else stats | {"evaluations": used.sum()})
        info = {name: torch.stack([one[name] for one in infos]) for name in infos[0]}
        return state, status, failed_at, step + self._tape.length, torch.stack(xs), info

    def block(self, moment: Moment, steps: int) -> Moment:
        """Whole calls compiled.

        The few steps that do not fill one, and those that tune, are made eagerly.
        """
        if moment.tuning is not None and moment.step < self.schedule.warmup:
            return super().block(moment, min(steps, self.schedule.warmup - moment.step))
        tape, end = self._tape or self._prepare(moment), moment.step + steps
        if not self._functions:
            return super().block(moment, steps)
        while moment.step < end:
            # calls start at multiples of their length, so that they divide a run in the
            # same way after a resume
            alone = min(-moment.step % tape.length or tape.length, end - moment.step)
            called = self._calls(moment, tape, end) if alone == tape.length else moment
            moment = called if called.step > moment.step else super().block(moment, alone)
        return moment

    def _calls(self, moment: Moment, tape: Tape, end: int) -> Moment:
        """Compiled calls as far as they reach.

        To less than a call before the end, or a length without function.
        """
        device, span = moment.status.device, tape.length
        leaves = {n: v.to(device) for n, v in state_leaves(moment.state).items()}
        state, status, failed_at = (
            with_leaves(moment.state, leaves),
            moment.status,
            moment.failed_at,
        )
        counter = torch.tensor(moment.step, dtype=torch.int64, device=device)
        record, kept = moment.record, self.schedule.kept_before(moment.step)
        total, step, evaluations = (
            self.schedule.kept_before(self.schedule.total),
            moment.step,
            moment.evaluations,
        )
        while end - step >= span:
            function = self._functions.get(length := self._length_at(step))
            if function is None:
                break
            state, status, failed_at, counter, xs, stats = function(
                (state, status, failed_at, moment.reach), counter, tape.read(step), length
            )
            if "evaluations" in stats:
                evaluations += int(stats.pop("evaluations").sum())
            chosen = [i for i in range(span) if self.schedule.keeps(step + i)]
            if chosen:
                record = self.recorder.extend(record, xs, stats, chosen, kept, total)
                kept += len(chosen)
            step += span
        return replace(
            moment,
            state=state,
            status=status,
            failed_at=failed_at,
            step=step,
            record=record,
            evaluations=evaluations,
        )


@dataclass(frozen=True, eq=False)
class _FusedStatic(StaticField):
    """A static field of which solvers' parts are compiled, and its methods where they are called
    alone.
    """

    fuses = True

    def fused(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return _fused(self, StaticField(self.native, self.cond), function, arguments)

    def energy_and_grad(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        return self.fused(StaticField.energy_and_grad, x)


@dataclass(frozen=True, eq=False)
class _FusedTimed(TimedField):
    """A timed field whose predictions are compiled."""

    fuses = True

    def fused(self, function: Callable[..., Any], *arguments: Any) -> Any:
        plain = TimedField(self.native, self.path, self.cond)
        plain.__dict__["source"] = (
            self.source
        )  # looked up here: the compiler takes no cached property that is not filled yet
        return _fused(self, plain, function, arguments)

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.fused(
            TimedField.predict,
            x,
            torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64),
        )


def _fused(owner: Any, plain: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """`function(plain, *arguments)` compiled, once for each function, shape and setting."""
    leaves = [a for b in arguments for a in (b if isinstance(b, tuple) else (b,))]
    key = tuple((v.shape, v.dtype, v.device) if isinstance(v, Tensor) else v for v in leaves)
    made = owner.__dict__.setdefault("_parts", {})
    part = made.get((function, key))
    if part is None:
        part = made[function, key] = compiled(
            MethodType(function, plain), (type(plain.native), key)
        )
    return part(*arguments)


def _with_fused_parts(bound: Any) -> Any:
    """The field as a solver gets it that cannot be captured whole."""
    if isinstance(bound, TimedField):
        return _FusedTimed(bound.native, bound.path, bound.cond)
    return _FusedStatic(bound.native, bound.cond) if isinstance(bound, StaticField) else bound


def drive(
    solver: Any,
    bound: Any,
    noise: Any,
    moment: Moment,
    schedule: Schedule,
    recorder: Recorder,
    *,
    compiled: bool = False,
    recompute: bool = False,
    on_failure: str = "flag",
) -> Iterator[Moment]:
    """Run from a moment to the schedule's end, yielding the moment after every block of steps.

    Args:
        solver: The solver.
        bound: The field that `resolve` returned.
        noise: To the chains.
        bound: To the chains.
        moment: From `begin` or a checkpoint.
        schedule: The schedule.
        recorder: The recorder.
        compiled: Whether the step is compiled, or, of a solver that cannot be captured, its parts
            and the field.
        recompute: Whether what a step computes on the way is not kept for gradients but computed
            again.
        on_failure: "raise" to stop after the first block in which a chain failed.

    Raises:
        `ChainFailure`.
    """
    whole = solver.capturable or is_planned(solver)
    engine = (_Compiled if compiled and whole else _Eager)(solver, bound, noise, schedule, recorder)
    engine.recompute = recompute
    if compiled and not whole:
        engine.fast = _with_fused_parts(bound)
    size, free = 8, is_free(solver)
    while moment.step < schedule.total:
        started = time.perf_counter()
        end = schedule.half if free and moment.step < schedule.half else schedule.total
        moment = engine.block(moment, min(_aligned(moment.step, size), end - moment.step))
        if free and moment.step == schedule.half:
            moment = replace(moment, halfway=extent(moment.state.x))
        _raise_failures(moment, schedule, on_failure, noise.chains)
        yield moment
        # a block takes about a tenth of a second: often enough for progress, checkpoints and Ctrl-C
        pace = BLOCK_SECONDS / max(time.perf_counter() - started, 1e-6)
        size = max(8, min(2 * size, int(size * pace) // 8 * 8))


def _aligned(step: int, size: int) -> int:
    """A block that ends on a multiple of 8, so that compiled calls divide a run in the same way
    after a resume.
    """
    return (step // 8 * 8 + size) - step


def _raise_failures(moment: Moment, schedule: Schedule, on_failure: str, ids: Tensor) -> None:
    if on_failure != "raise":
        return
    over = moment.step == schedule.total
    status, failed_at = outcome(moment) if over else (moment.status, moment.failed_at)
    if bool((status != int(Status.OK)).any()):
        chains = torch.nonzero(status != int(Status.OK)).flatten()
        steps = [schedule.interval(s) for s in failed_at[chains].tolist()]
        raise ChainFailure(ids[chains].tolist(), status[chains].tolist(), steps)
