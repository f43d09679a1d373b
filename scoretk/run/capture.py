"""The compiled engine: which steps of a run are compiled, and into which graphs.

A solver says only what of it can be captured: its whole step (`capturable`), its step once the
step's length is known (`capturable_ahead`), or the parts that its step is made of
(`scoretk.core.compiling.part`). What is decided here is how many steps go into one
graph, where a loop is cut, and for which numbers of rows there are functions.

- `Captured` is the engine of steps that can be captured whole. On the CPU they are a loop in one
  graph, which holds the step once, whatever the number of steps, of chains, and of what each step
  does over and over (`_Loop`). Where the compiler cannot make a loop of them, and on devices, one
  graph holds several steps one after another: enough that the call itself costs little, and few
  enough that they compile in seconds (`_Steps`). For this the operations of a step are counted
  while it is made once.
- The noise of many steps is made before the graph runs (`scoretk.run.tape`), so that the graph holds
  the steps' own arithmetic alone.
- The parts of steps that cannot be captured are compiled each by itself (`scoretk.run.parts`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from scoretk.core.compiling import (
    LOOPS,
    Uncompilable,
    Unsettled,
    any_length,
    apart,
    as_a_loop,
    compiled,
    over_rows,
)
from scoretk.core.devices import on, widest
from scoretk.run.moment import Loop, Moment, failures
from scoretk.run.parts import native_of
from scoretk.run.record import Record
from scoretk.run.replay import Replayed, can_play
from scoretk.run.settle import Now, make_step
from scoretk.run.state import chain_leaves, state_leaves, tuned_leaves, with_leaves
from scoretk.run.tape import Heard, Tape, TapedNoise, listen
from scoretk.solvers.base import as_data, is_grid, traits

__all__ = ["CALL", "Captured", "Engine", "compiled_for", "has_loop", "on_data"]

CALL = 8
"""The most steps in one graph, a power of two. Calls start at multiples of their length, so that
they divide a run in the same way after a resume.
"""
CALL_VALUES = 1 << 18
"""The most values of a state whose steps share a graph; beyond, a call costs little beside a step."""
CPU_OPTIONS = {"use_joint_graph_passes": False}
"""Of a graph that may hold loops. These passes of torch 2.13 make wrong values within a loop, without
a word, of a model that adds to a part of a tensor in place (`out[:, 1] += x[:, 0]`).
"""
LOOP_OPTIONS = {"cpp_wrapper": True} | CPU_OPTIONS
"""Of a graph with loops: what calls its kernels is C++ itself, as a loop calls them often."""
TURNS = 16
"""The most calls that a device plays by one launch."""
TURNS_VALUES = 1 << 23
"""The most values of x and of noise in all steps of these calls, which the device holds once more."""
CALL_OPERATIONS = 1024
"""The most operations in a graph of more than one step: these compile in about ten seconds."""
KINDS, COVERED = 6, 0.9
"""The most kinds of steps that have functions, and the least share of all steps that these kinds
must cover together; else none has.
"""
LOOKED_AT = 512
"""The number of steps after warmup whose kinds are counted for that."""
_MOST = 2.0**63
"""The least number that no tensor of whole numbers holds; such settings are compiled in."""


class Engine(Protocol):
    """What makes the steps of a run."""

    def block(self, moment: Moment, steps: int) -> Moment:
        """The moment after at most `steps` further steps, and at least one."""


@dataclass(frozen=True, eq=False)
class _Steps:
    """`tape.length` steps of a solver and their chains' status, as one compiled function."""

    solver: Any
    field: Any
    tape: Tape

    def run(self, now: Now, step: Tensor, values: list[Tensor]) -> tuple[Any, ...]:
        """The steps from index `step` on.

        Args:
            now: The run before them.
            step: The index of the first, a 0-d tensor of int64.
            values: What `tape.read` gives for them.

        Returns:
            The run after them; the index of the next step; the positions, `(length, chains,
            *event)`; the statistics of each step, `(length, chains, ...)`, and its "evaluations",
            `(length,)`, where the solver reports them.
        """
        xs, infos = [], []
        for i in range(self.tape.length):
            noise = self.tape.at(values, i)
            now, stats, used, _ = make_step(self.solver, self.field, noise, now, step + i, None)
            xs.append(now.state.x)
            infos.append(stats if used is None else stats | {"evaluations": used.sum()})
        info = {name: torch.stack([one[name] for one in infos]) for name in infos[0]}
        return now, step + self.tape.length, torch.stack(xs), info


@dataclass(frozen=True, eq=False)
class _Loop:
    """Any number of steps of a solver and their chains' status, as one compiled function.

    Args:
        solver: The solver.
        field: The field, bound to its conditions.
        tape: The noise of the steps.
        kept: As in `Heard`.
    """

    solver: Any
    field: Any
    tape: Tape
    kept: frozenset[str]

    def run(self, now: Now, steps: Tensor, made: Tensor, values: list[Tensor]) -> tuple[Any, ...]:
        """Steps one after another.

        Args:
            now: The run before them.
            steps: Their indices, `(n,)` of int64, n > 1.
            made: Which of them are made, `(n,)` of bool; the others change nothing.
            values: What the tape has for them, each `(n, chains, *shape)`.

        Returns:
            The run after them; the positions, `(n, chains, *event)`; the statistics of each step,
            `(n, chains, ...)`, and its "evaluations", `(n,)`, where the solver reports them.
        """
        leaves = state_leaves(now.state)
        names = [name for name in leaves if name not in self.kept]

        def moment(carry: tuple[Tensor, ...]) -> Now:
            status, failed_at, *changing = carry
            state = with_leaves(now.state, leaves | dict(zip(names, changing, strict=True)))
            return Now(state, status, failed_at, now.reach)

        def body(carry: tuple[Tensor, ...], row: tuple[Tensor, ...]) -> tuple[Any, Any]:
            step, is_made, *drawn = row
            noise = TapedNoise(self.tape.noise, self.tape.asked, drawn)
            after, stats, used, _ = make_step(
                self.solver, self.field, noise, moment(carry), step, None
            )
            info = stats if used is None else stats | {"evaluations": used.sum()}
            at_last = state_leaves(after.state)
            new = (after.status, after.failed_at, *(at_last[name] for name in names))
            chosen = tuple(
                apart(torch.where(is_made, one, other))
                for one, other in zip(new, carry, strict=True)
            )
            return chosen, (apart(after.state.x), {n: apart(v) for n, v in info.items()})

        carry = (now.status, now.failed_at, *(leaves[name] for name in names))
        carry, (xs, stats) = over_rows(body, carry, (steps, made, *values))
        return moment(carry), xs, stats


class _Turns:
    """A compiled function of `_Steps`, called several times one after another.

    Args:
        function: That of `_Steps.run`.
        turns: How many calls are played by one launch, where a device can.
        can_play: Whether it can (`scoretk.run.replay`).
    """

    def __init__(self, function: Callable[..., Any], turns: int, can_play: bool) -> None:
        self.function, self.turns = function, turns if can_play else 1
        self._played = Replayed(self._calls) if can_play else self._calls

    def __call__(self, now: Now, step: Tensor, values: list[list[Tensor]]) -> tuple[Any, ...]:
        """As `_Steps.run`, with the values of each call."""
        return (self._played if len(values) == self.turns else self._calls)(now, step, values)

    def _calls(self, now: Now, step: Tensor, values: list[list[Tensor]]) -> tuple[Any, ...]:
        xs, infos = [], []
        for of_call in values:
            now, step, x, info = self.function(now, step, of_call)
            xs.append(x)
            infos.append(info)
        if len(values) == 1:
            return now, step, x, info
        info = {name: torch.cat([one[name] for one in infos]) for name in info}
        return now, step, torch.cat(xs), info


class _Calls(NamedTuple):
    """The compiled functions of a run.

    Args:
        tape: The noise of their steps.
        kind_at: The kind of a step, by its index.
        functions: By kind; steps of a kind without one are made by another engine.
    """

    tape: Tape
    kind_at: Callable[[int], Hashable]
    functions: Mapping[Hashable, _Turns]


class Captured:
    """The engine of steps that can be captured whole, all of them or those of some kinds.

    On the CPU they are made by loops in one graph. Elsewhere, and where the compiler has no loop
    for them, by functions of several steps: steps whose length is known ahead are of one kind where
    `capturable_ahead` gives equal solvers for them, and each kind has a function of one step (more
    would gain little and make many kinds). Where there are too many kinds, parts are compiled
    instead.

    Args:
        loop: What stays the same in the run.
        eager: The engine of steps that do not fill a call, and of those that tune.
        in_parts: The engine of all steps where these are of too many kinds.
    """

    def __init__(self, loop: Loop, eager: Engine, in_parts: Engine) -> None:
        self.loop, self.eager, self.in_parts = loop, eager, in_parts
        self._loop: tuple[Tape, Callable[..., Any]] | None = None
        self._calls: _Calls | None = None
        self._loops = True

    def block(self, moment: Moment, steps: int) -> Moment:
        """As `Engine.block`; compiled calls of several steps begin at multiples of their length."""
        warmup = self.loop.schedule.warmup
        if moment.tuning is not None and moment.step < warmup:
            return self.eager.block(moment, min(steps, warmup - moment.step))
        if self._loops and has_loop(self.loop.solver, moment.state.x):
            try:
                return self._looped(moment, moment.step + steps)
            except Unsettled:
                raise
            except Uncompilable:  # a graph within a graph takes less than a graph
                self._loops = False
        return self._in_calls(moment, steps)

    def _in_calls(self, moment: Moment, steps: int) -> Moment:
        """As `block`, by functions of several steps."""
        if not (self.loop.solver.capturable or traits(self.loop.solver).capturable_ahead):
            return self.in_parts.block(moment, steps)
        calls = self._calls = self._calls or self._compile(moment)
        if not calls.functions:
            return self.in_parts.block(moment, steps)
        length, end = calls.tape.length, moment.step + steps
        while moment.step < end:
            alone = min(-moment.step % length or length, end - moment.step)
            called = self._called(calls, moment, end) if alone == length else moment
            made = called.step > moment.step
            if not made:
                called = replace(self.eager.block(moment, alone), alone=alone < length)
            moment = called
        return moment

    def _compile_loop(self, moment: Moment) -> tuple[Tape, Callable[..., Any]]:
        """The function of a run's steps after its warmup, and their noise."""
        loop, x = self.loop, moment.state.x
        heard = listen(loop.solver, loop.field, moment.state, loop.noise, moment.step)
        tape = Tape(loop.noise, heard.asked, CALL)
        native = type(native_of(loop.field))
        kind = compiled_for(loop.solver, moment.state)
        key = (kind, native, x.shape[1:], x.dtype, heard.asked, heard.kept)
        run = _Loop(on_data(loop.solver, x.device), loop.field, tape, heard.kept).run
        return tape, compiled(run, key, options=LOOP_OPTIONS)

    def _looped(self, moment: Moment, end: int) -> Moment:
        """The moment at this step, by a loop in one graph."""
        self._loop = self._loop or self._compile_loop(moment)
        schedule, recorder = self.loop.schedule, self.loop.recorder
        tape, function = self._loop
        grid = is_grid(self.loop.solver)
        now = Now(moment.state, moment.status, moment.failed_at, moment.reach)
        record, step, evaluations = moment.record, moment.step, moment.evaluations
        kept, total = schedule.kept_before(step), schedule.kept_before(schedule.total)
        while step < end:
            values, count = tape.read_most(step, end - step)
            with as_a_loop():
                now, xs, stats = function(_of_any_length(now, grid), *_of_two(step, count, values))
            first = len(xs) - count  # before it are steps that were not made
            if "evaluations" in stats:
                evaluations = stats.pop("evaluations")[first:].sum() + evaluations
            chosen = [first + i for i in range(count) if schedule.keeps(step + i)]
            if chosen:
                record = recorder.extend(record, xs, stats, chosen, kept, total)
                kept += len(chosen)
            step += count
        return _moved(moment, now, step, record, evaluations)

    def _compile(self, moment: Moment) -> _Calls:
        """The functions of a run at a moment after its warmup."""
        loop, x = self.loop, moment.state.x
        ahead = None if loop.solver.capturable else traits(loop.solver).capturable_ahead
        kind_at = _of_one_kind if ahead is None else ahead(moment.state)
        heard = listen(loop.solver, loop.field, moment.state, loop.noise, moment.step)
        tape = Tape(loop.noise, heard.asked, 1 if ahead is not None else _length(heard, x.numel()))
        native = type(native_of(loop.field))
        functions, first = {}, loop.schedule.warmup
        options = CPU_OPTIONS if x.device.type == "cpu" else None
        whole = on_data(loop.solver, x.device), compiled_for(loop.solver, moment.state)
        for kind in _common(map(kind_at, range(first, first + LOOKED_AT))):
            solver, own = (kind, repr(kind)) if ahead is not None else whole
            key = (own, native, x.shape, x.dtype, x.device, heard.asked, tape.length)
            function = compiled(_Steps(solver, loop.field, tape).run, key, options=options)
            turns = 1 if ahead is not None else _turns(tape, x.numel())
            functions[kind] = _Turns(function, turns, can_play(x.device))
        return _Calls(tape, kind_at, functions)

    def _called(self, calls: _Calls, moment: Moment, end: int) -> Moment:
        """The moment after compiled calls, up to the end or to a kind that has no function."""
        loop, device, length = self.loop, moment.status.device, calls.tape.length
        schedule, recorder = loop.schedule, loop.recorder
        leaves = {n: on(v, device) for n, v in state_leaves(moment.state).items()}
        now = Now(with_leaves(moment.state, leaves), moment.status, moment.failed_at, moment.reach)
        counter = torch.tensor(moment.step, dtype=torch.int64, device=device)
        record, step, evaluations = moment.record, moment.step, moment.evaluations
        kept, total = schedule.kept_before(step), schedule.kept_before(schedule.total)
        while end - step >= length:
            function = calls.functions.get(calls.kind_at(step))
            if function is None:
                break
            turns = function.turns if end - step >= function.turns * length else 1
            values = [calls.tape.read(step + i * length) for i in range(turns)]
            now, counter, xs, stats = function(now, counter, values)
            if "evaluations" in stats:  # read when a run is over, as a device waits for its reader
                evaluations = stats.pop("evaluations").sum() + evaluations
            chosen = [i for i in range(turns * length) if schedule.keeps(step + i)]
            if chosen:
                record = recorder.extend(record, xs, stats, chosen, kept, total)
                kept += len(chosen)
            step += turns * length
        return _moved(moment, now, step, record, evaluations)


def has_loop(solver: Any, x: Tensor) -> bool:
    """Whether a graph can hold the steps of a solver at positions like x as a loop.

    Where the state is large the loop would gain nothing, and on a device it would wait for it at
    each turn.
    """
    can = solver.capturable or traits(solver).capturable_as_loop
    return LOOPS and can and x.device.type == "cpu" and x.numel() <= CALL_VALUES


def compiled_for(solver: Any, state: Any) -> str:
    """A key of what a graph of the solver's steps depends on.

    That is its settings but for those that are data to them, or that its state carries: one
    function serves all step sizes that warmup may find, or that are given back.
    """
    plain = solver.solver if traits(solver).given_back else solver
    if not is_dataclass(plain):
        return repr(plain)
    carried = {name for name, v in tuned_leaves(state).items() if bool(v.isfinite().all())}
    data = carried.union(as_data(plain))
    own = {f.name: getattr(plain, f.name) for f in fields(plain) if f.name not in data}
    return f"{type(plain).__qualname__}({own})"


def on_data(solver: Any, device: torch.device) -> Any:
    """The solver with the numbers in `Traits.as_data` as tensors `()`: one graph for all values.

    Of one that was tuned by another run it is the kernel, whose steps are the same: what was tuned is
    in the state, so that one graph serves both.
    """
    if traits(solver).given_back:
        return on_data(solver.solver, device)
    data = {n: _as_tensors(getattr(solver, n), device) for n in as_data(solver)}
    if not data:
        return solver
    other = copy(solver)
    for name, value in data.items():  # not by `replace`, which would look whether they are numbers
        object.__setattr__(other, name, value)
    return other


def _as_tensors(value: Any, device: torch.device) -> Any:
    """Numbers but 0, and those of a tuple, as tensors `()`."""
    if isinstance(value, tuple):
        return tuple(_as_tensors(v, device) for v in value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < abs(value) < _MOST:
        return value
    dtype = torch.int64 if isinstance(value, int) else widest(device)
    return torch.tensor(value, dtype=dtype, device=device)


def _of_any_length(now: Now, rows: bool) -> Now:
    """The run, marked so that one graph serves any number of chains and of rows of a grid.

    A tensor that is two leaves of a state at once becomes two, as a loop carries it as two.
    """
    leaves, known = state_leaves(now.state), set[int]()
    for name, leaf in leaves.items():
        leaves[name] = leaf.clone() if id(leaf) in known else leaf
        known.add(id(leaf))
    now = now._replace(state=with_leaves(now.state, leaves))
    chains = [now.status, now.failed_at, *chain_leaves(now.state).values()]
    tables = [v for v in tuned_leaves(now.state).values() if v.ndim] if rows else []
    for value in [*chains, *tables, *([] if now.reach is None else [now.reach])]:
        any_length(value, 0)
    return now


def _of_two(step: int, count: int, values: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Step indices, which of the steps are made, and their noise, padded to two steps.

    A graph of any number of steps is for more than one: one step is made as the second of two, both
    of them from the same state. (A step after it might have no row in a grid's table.)
    """
    steps, made = torch.arange(step, step + count), torch.ones(count, dtype=torch.bool)
    if count == 1:
        steps, made = torch.cat([steps, steps]), torch.tensor([False, True])
        values = [torch.cat([value, value]) for value in values]
    for value in values:
        any_length(value, 0, 1)
    return any_length(steps, 0), any_length(made, 0), values


def _moved(
    moment: Moment, now: Now, step: int, record: Record, evaluations: int | Tensor
) -> Moment:
    """The moment after compiled steps."""
    return replace(
        moment,
        state=now.state,
        status=now.status,
        failed_at=now.failed_at,
        failed=failures(now.status),
        step=step,
        record=record.held(),
        evaluations=evaluations,
        alone=False,
    )


def _of_one_kind(step: int) -> Hashable:
    return None


def _length(heard: Heard, values: int) -> int:
    """The number of steps in one graph, for a state of so many values."""
    if not heard.is_all or values > CALL_VALUES:
        return 1
    length = CALL
    while length > 1 and length * heard.operations > CALL_OPERATIONS:
        length //= 2
    return length


def _turns(tape: Tape, values: int) -> int:
    """How many calls one launch replays, for a state of so many values."""
    chains = len(tape.noise.chains)
    drawn = sum(chains * torch.Size(request.shape).numel() for request in tape.asked)
    return max(1, min(TURNS, TURNS_VALUES // max(1, (values + drawn) * tape.length)))


def _common(kinds: Iterable[Hashable]) -> list[Hashable]:
    """The most common kinds of steps, or none where they cover too few of the steps."""
    seen = Counter(kinds)
    common = seen.most_common(KINDS)
    covered = sum(n for _, n in common)
    return [kind for kind, _ in common] if covered >= COVERED * seen.total() else []
