"""The loop, written once.

Many steps of any solver, with failures masked, draws kept, and a run that can be resumed.

The driver owns `(state, status, failed_at)`. After each step, row by row: a chain that was well and
whose new state is finite moves on; a chain whose new state is not finite keeps its last finite one,
is marked with a `Status` and the step, and stays there; a chain marked earlier stays where it is.
On a grid, whose run has no acceptance that could turn it back, so does a chain that leaves every
scale that the path and its own start know (`reach_of`). Solvers need no code for any of this.

Everything that a run is at a moment is one `Moment`, replaced whole after each block of steps: an
interrupt finds either the moment before the block or the one after it.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as again

from scoretk.core.anatomy import left_as_found
from scoretk.core.compiling import compiled
from scoretk.core.rows import finite_rows, select_rows
from scoretk.errors import ChainFailure, Status
from scoretk.fields.resolve import StaticField, TimedField
from scoretk.run.capture import Tape, requests
from scoretk.run.record import Record, Recorder, masked
from scoretk.solvers.base import Info, is_grid, is_planned

__all__ = ["Moment", "Schedule", "begin", "drive", "state_leaves", "tuned_leaves", "with_leaves"]

BLOCK_SECONDS = 0.1
BEYOND_PATH, BEYOND_START = 1e7, 1e15
"""How far beyond the scales of its path and its start a chain is `DIVERGED`; where there is no
path, how far beyond its start.

1e7 units of noise are what float32 resolves of it: farther out a state on a path says nothing of
its noise.
"""
UNROLL = 8
UNROLL_VALUES = 1 << 18
KINDS = 6
"""How many functions are compiled at most for steps of different length; those have to cover so
much of a run.
"""
COVERED = 0.9
ATTEMPTS = 100
"""How often a chain is started anew whose energy or score is not finite."""


@dataclass(frozen=True)
class Schedule:
    """Which steps there are and which are kept.

    `kept[s]` for step s, or warmup and thin for a kernel.
    """

    total: int
    warmup: int = 0
    thin: int = 1
    kept: tuple[bool, ...] | None = None
    milestones: tuple[bool, ...] | None = None

    def keeps(self, step: int) -> bool:
        """Whether the position after this step is kept."""
        if self.kept is not None:
            return self.kept[step]
        past = step + 1 - self.warmup
        return past > 0 and past % self.thin == 0

    def kept_before(self, step: int) -> int:
        """How many positions have been kept when `step` steps are done."""
        if self.kept is not None:
            return sum(self.kept[:step])
        return max(step - self.warmup, 0) // self.thin

    def interval(self, step: int) -> int:
        """The step as users count it.

        Intervals of the solver's grid where it takes several rows to one.
        """
        return step if self.milestones is None else sum(self.milestones[:step])


@dataclass
class Moment:
    """All that a run is after `step` steps.

    `reach` `(chains,)` follows from the start; see `reach_of`. `restarts` counts the starts of
    chains that were made anew.
    """

    state: Any
    status: Tensor
    failed_at: Tensor
    step: int = 0
    record: Record = field(default_factory=Record)
    evaluations: int = 0
    tuning: Any = None
    reach: Tensor | None = None
    restarts: int = 0


def state_leaves(nest: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of nested NamedTuples and tuples by their names.

    Those of a plain tuple are numbered.
    """
    leaves: dict[str, Tensor] = {}
    for name, value in zip(getattr(nest, "_fields", range(len(nest))), nest, strict=True):
        leaves |= (
            state_leaves(value, f"{prefix}{name}.")
            if isinstance(value, tuple)
            else {f"{prefix}{name}": value}
        )
    return leaves


def with_leaves(nest: Any, leaves: dict[str, Tensor], prefix: str = "") -> Any:
    """The same with its tensors replaced."""
    names = getattr(nest, "_fields", range(len(nest)))
    values = [
        with_leaves(value, leaves, f"{prefix}{name}.")
        if isinstance(value, tuple)
        else leaves[f"{prefix}{name}"]
        for name, value in zip(names, nest, strict=True)
    ]
    return type(nest)(*values) if hasattr(nest, "_fields") else tuple(values)


def _chain_leaves(state: Any) -> dict[str, Tensor]:
    shared: frozenset[str] = getattr(state, "shared", frozenset())
    return {
        n: v for n, v in state_leaves(state).items() if v.ndim and n.split(".")[0] not in shared
    }


def _all_finite(state: Any) -> bool:
    """Whether all of the state is finite: asked of the host, cheap on the CPU.

    A sum that overflows says no where yes is right: then the masks are computed, which give the
    same bits.
    """
    shared, total, before = getattr(state, "shared", ()), 0.0, None
    for name, value in zip(state._fields, state, strict=True):
        if value is before or name in shared:
            continue
        before = value
        for leaf in value if isinstance(value, tuple) else (value,):
            if leaf.ndim and leaf.is_floating_point():
                total += leaf.sum().item()
    return total - total == 0


def _finite_chains(state: Any) -> Tensor:
    finite = [
        finite_rows(leaf) for leaf in _chain_leaves(state).values() if leaf.is_floating_point()
    ]
    return torch.stack(finite).all(0) if len(finite) > 1 else finite[0]


def _select_state(chosen: Tensor, new: Any, old: Any) -> Any:
    ours, theirs = _chain_leaves(new), _chain_leaves(old)
    merged = state_leaves(new) | {n: select_rows(chosen, v, theirs[n]) for n, v in ours.items()}
    return with_leaves(new, merged)


def begin(
    solver: Any,
    bound: Any,
    x: Tensor,
    noise: Any,
    *,
    tunes: bool = False,
    tuned: dict[str, Tensor] | None = None,
    again: Callable[[int], Tensor] | None = None,
) -> Moment:
    """The moment before the first step.

    A chain whose energy or score is not finite at the start is `NONFINITE`, at 0.

    Args:
        tunes: Whether warmup is to tune the solver.
        tuned: What other chains have tuned for these.
        again: The start that an attempt makes, by its number, for chains that are not finite at the
            one before; None to take x as it is.
    """
    state = solver.init(bound, x, noise)
    finite, attempts = _finite_chains(state), 0
    while again is not None and attempts < ATTEMPTS and not bool(finite.all()):
        attempts += 1
        x = select_rows(finite, x, again(attempts))
        state = solver.init(bound, x, noise)
        finite = _finite_chains(state)
    if attempts == ATTEMPTS and not bool(finite.all()):
        warnings.warn(
            f"{int((~finite).sum())} of {len(x)} chains found no start with a finite energy and "
            f"score in {ATTEMPTS} attempts, "
            "and are flagged; give them one: init=",
            stacklevel=2,
        )
    status = torch.where(finite, int(Status.OK), int(Status.NONFINITE))
    moment = Moment(
        state,
        status,
        torch.where(finite, -1, 0),
        reach=reach_of(solver, bound, state.x),
        restarts=attempts * len(x),
    )
    if tunes and bool(finite.any()):
        moment.state, moment.tuning, spent = solver.adaptation.begin(
            solver, bound, state, noise, finite
        )
        moment.evaluations += spent * len(x)
    if tuned is not None:
        moment.state = state._replace(**{name: value.clone() for name, value in tuned.items()})
        moment.tuning = solver.adaptation.follow(state)
    return moment


def reach_of(solver: Any, bound: Any, x: Tensor) -> Tensor | None:
    """The largest entry, `(chains,)`, that x may have on a grid that starts at x.

    None where the solver has no grid.

    On a path `x_t = alpha x_1 + sigma eps` of a field in time, `BEYOND_PATH` times the largest of
    alpha, sigma and |x|.
    """
    if not is_grid(solver):
        return None
    scale = x.detach().reshape(len(x), -1).abs().amax(1).nan_to_num(0.0, posinf=0.0).clamp(min=1.0)
    if not isinstance(bound, TimedField):
        return BEYOND_START * scale
    known = (
        []
        if bound.path is None
        else [float(f(t)) for f in (bound.path.alpha, bound.path.sigma) for t in (0.0, 1.0)]
    )
    return BEYOND_PATH * scale.clamp(min=max(known, default=1.0))


def _within(x: Tensor, reach: Tensor) -> Tensor:
    """Which chains are within reach, `(chains,)` of bool; those that are not finite are not."""
    return x.reshape(len(x), -1).abs().amax(1) <= reach


def tuned_leaves(state: Any) -> dict[str, Tensor]:
    """What warmup has tuned: the leaves that all chains share, but the step's index."""
    shared: frozenset[str] = getattr(state, "shared", frozenset()) - {"step"}
    return {name: value for name, value in state_leaves(state).items() if name in shared}


def settle(
    new: Any,
    old: Any,
    info: Info,
    status: Tensor,
    failed_at: Tensor,
    step: int | Tensor,
    reach: Tensor | None = None,
) -> tuple[Any, ...]:
    """Row by row accept the new state or keep the old one; see the module's docstring.

    No synchronisation.
    """
    alive, finite = status == int(Status.OK), _finite_chains(new)
    code = info.get("status", torch.zeros_like(status)).to(status.dtype)
    code = torch.where(finite | (code != int(Status.OK)), code, int(Status.NONFINITE))
    sound = finite
    if reach is not None:
        sound = finite & _within(new.x, reach)
        code = torch.where(sound | (code != int(Status.OK)), code, int(Status.DIVERGED))
    failed = alive & (code != int(Status.OK))
    state = _select_state(alive & sound, new, old)
    stats = masked(
        {n: v for n, v in info.items() if n not in ("status", "evaluations")}, alive & ~failed
    )
    return state, torch.where(failed, code, status), torch.where(failed, step, failed_at), stats


def _one(
    solver: Any,
    bound: Any,
    noise: Any,
    moment: tuple[Any, Tensor, Tensor, Tensor | None],
    step: Any,
    probe: bool,
) -> tuple[Any, ...]:
    """One step and its settling: (state, status, failed_at, stats, evaluations)."""
    new, info = solver.step(bound, moment[0], noise)
    return _settled(new, info, moment, step, probe)


def _one_as_found(solver: Any, bound: Any, *rest: Any) -> tuple[Any, ...]:
    """As `_one`, the field's modules held as they are in a run: on the way back that has ended."""
    with left_as_found(getattr(bound, "native", bound), True):
        return _one(solver, bound, *rest)


def _settled(
    new: Any, info: Info, moment: tuple[Any, Tensor, Tensor, Tensor | None], step: Any, probe: bool
) -> tuple[Any, ...]:
    old, status, failed_at, reach = moment
    evaluations = info.get("evaluations")
    if (
        probe
        and "status" not in info
        and _all_finite(new)
        and (reach is None or bool(_within(new.x, reach).all()))
    ):
        stats = (
            {n: v for n, v in info.items() if n != "evaluations"}
            if evaluations is not None
            else info
        )
        return new, status, failed_at, stats, evaluations
    return (*settle(new, old, info, status, failed_at, step, reach), evaluations)


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
                state, status, failed_at, stats, used = _settled(new, info, held, step, probe)
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
                    _one(*arguments)
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
            state, status, failed_at, stats, used = _one(
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
    size = 8
    while moment.step < schedule.total:
        started = time.perf_counter()
        moment = engine.block(
            moment, min(_aligned(moment.step, size), schedule.total - moment.step)
        )
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
    if on_failure == "raise" and bool((moment.status != int(Status.OK)).any()):
        chains = torch.nonzero(moment.status != int(Status.OK)).flatten()
        steps = [schedule.interval(s) for s in moment.failed_at[chains].tolist()]
        raise ChainFailure(ids[chains].tolist(), moment.status[chains].tolist(), steps)
