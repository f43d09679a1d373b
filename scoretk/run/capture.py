"""What of a run is compiled, and into what.

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
- The noise of many steps is made before the graph runs (`Tape`), so that the graph holds the step's
  own arithmetic alone. (A compiler that sees several steps with their noise computes each step
  again within the next; noise that is read from memory prevents this.) What a step asks for is
  found by recording the requests of two steps. A tape answers those for the step's own index; all
  others go to the noise itself and are computed in the graph.
- `CompiledParts` compiles the parts of steps that cannot be captured, each once for all numbers of
  rows: where a step goes on with some of the chains, copies of the last row fill the batch up to
  all chains, and their results are dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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
from scoretk.core.noise import Noise
from scoretk.run.moment import Loop, Moment, failures
from scoretk.run.record import Record
from scoretk.run.replay import Replayed, can_play
from scoretk.run.settle import Now, make_step
from scoretk.run.state import chain_leaves, state_leaves, tuned_leaves, with_leaves
from scoretk.solvers.base import as_data, is_grid, traits

__all__ = [
    "CALL",
    "Captured",
    "CompiledParts",
    "Engine",
    "Heard",
    "Request",
    "Tape",
    "TapedNoise",
    "compiled_for",
    "listen",
    "on_data",
]

T = TypeVar("T")

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
UNROLLED = 4
"""The number of repetitions in one compiled function of `CompiledParts.iterate`."""
COMPILED_NOISE = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether a CPU makes noise faster by a compiled function. Where its registers do not multiply
64-bit integers, NumPy is as fast, has the bits of an eager run, and ten seconds less to compile.
"""
_MOST = 2.0**63
"""The least number that no tensor of whole numbers holds; such settings are compiled in."""
WINDOW_VALUES = 1 << 19
"""About how many values a tape computes ahead for a request, in at most 128 reads."""


class Engine(Protocol):
    """What makes the steps of a run."""

    def block(self, moment: Moment, steps: int) -> Moment:
        """The moment after at most `steps` further steps, and at least one."""


class Request(NamedTuple):
    """A request to the noise: its method, and its arguments but for the step's index."""

    method: str
    stream: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Heard(NamedTuple):
    """What `listen` finds.

    `asked` are a step's requests to the noise for its own index; `is_all` is whether it makes no
    other; `operations` is the number of its operations without those of the noise; `kept` names the
    leaves of the state that it hands on as they are.
    """

    asked: tuple[Request, ...]
    is_all: bool
    operations: int
    kept: frozenset[str] = frozenset()


class _Asking:
    """A noise source whose three methods call `_ask`; other attributes are those of the noise."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.noise, name)

    def _ask(
        self, method: str, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None
    ) -> Tensor:
        raise NotImplementedError

    def _own(
        self, method: str, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None
    ) -> Tensor:
        """What the noise itself answers."""
        values: Tensor = getattr(self.noise, method)(step, stream, shape, dtype)
        return values

    def normal(
        self, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None = None
    ) -> Tensor:
        """As `Noise.normal`."""
        return self._ask("normal", step, stream, shape, dtype)

    def uniform(
        self, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None = None
    ) -> Tensor:
        """As `Noise.uniform`."""
        return self._ask("uniform", step, stream, shape, dtype)

    def rademacher(
        self, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None = None
    ) -> Tensor:
        """As `Noise.rademacher`."""
        return self._ask("rademacher", step, stream, shape, dtype)


class _Operations(TorchDispatchMode):
    """Counts torch's operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class _Listener(_Asking):
    """Records each request with its step, and does not count the operations of the noise."""

    def __init__(self, noise: Noise, operations: _Operations) -> None:
        super().__init__(noise)
        self.heard: list[tuple[int, Request]] = []
        self.operations = operations

    def _ask(
        self, method: str, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None
    ) -> Tensor:
        self.heard.append(
            (int(step), Request(method, int(stream), tuple(shape), dtype or self.noise.dtype))
        )
        before = self.operations.count
        values = self._own(method, step, stream, shape, dtype)
        self.operations.count = before
        return values


class TapedNoise(_Asking):
    """The noise of one step: from a tape where that holds the request, else from the noise."""

    def __init__(self, noise: Noise, asked: tuple[Request, ...], values: Sequence[Tensor]) -> None:
        super().__init__(noise)
        self.asked, self.values = asked, values

    def _ask(
        self, method: str, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None
    ) -> Tensor:
        wanted = Request(method, int(stream), tuple(shape), dtype or self.noise.dtype)
        for request, value in zip(self.asked, self.values, strict=True):
            if request == wanted:
                return value
        return self._own(method, step, stream, shape, dtype)


def listen(solver: Any, bound: Any, state: Any, noise: Noise, step: int) -> Heard:
    """The requests of a step to the noise, and its operations, from two steps that are dropped.

    A request that is also made for another step's index, or in only one of the two steps, is left
    to the graph. The operations are those of the second step, as the first may compute what later
    steps reuse.

    Args:
        solver: The solver whose step it is.
        bound: The field, bound to its conditions.
        state: The state before the first of the two steps.
        noise: The run's noise.
        step: The index of that step.

    Returns:
        The requests and the number of operations.
    """
    heard: list[list[tuple[int, Request]]] = []
    before = state_leaves(state)
    for _ in range(2):
        with _Operations() as operations:
            listener = _Listener(noise, operations)
            state, _ = solver.step(bound, state, listener)
        heard.append(listener.heard)
    own = [
        {request for index, request in of_step if index == step + ahead}
        for ahead, of_step in enumerate(heard)
    ]
    other = {
        request
        for ahead, of_step in enumerate(heard)
        for index, request in of_step
        if index != step + ahead
    }
    served = (own[0] & own[1]) - other
    everything = {request for of_step in heard for _, request in of_step}
    kept = frozenset(n for n, leaf in state_leaves(state).items() if leaf is before[n])
    return Heard(tuple(sorted(served, key=repr)), served == everything, operations.count, kept)


class Tape:
    """The answers to some requests for windows of steps, by one compiled function where that pays.

    Args:
        noise: The noise of the run, for all of its chains.
        asked: The requests, as in `Heard.asked`.
        length: The number of steps that are read at a time.
    """

    def __init__(self, noise: Noise, asked: tuple[Request, ...], length: int) -> None:
        self.noise, self.asked, self.length = noise, asked, length
        size = max(
            [len(noise.chains) * max(1, torch.Size(r.shape).numel()) for r in asked], default=1
        )
        self.steps = length * max(
            1, min(1 << max(WINDOW_VALUES // (size * length), 1).bit_length() - 1, 128)
        )
        self._start, self._values = -1, list[Tensor]()
        as_on_cpu = noise.chains.device.type == "cpu" and not COMPILED_NOISE
        self._compiled = None if as_on_cpu else compiled(self._window, (asked, self.steps))

    def _window(self, steps: Tensor) -> list[Tensor]:
        return [self.noise.ahead(r.method, steps, r.stream, r.shape, r.dtype) for r in self.asked]

    def _make(self, start: int) -> list[Tensor]:
        """The values of the window that begins at this step."""
        if self._compiled is not None:
            at = torch.arange(start, start + self.steps, device=self.noise.chains.device)
            values: list[Tensor] = self._compiled(at)
            return values
        steps = range(start, start + self.steps)
        return [self.noise.at_once(r.method, steps, r.stream, r.shape, r.dtype) for r in self.asked]

    def read(self, step: int) -> list[Tensor]:
        """For each request its values at `[step, step + length)`, `(length, chains, *shape)`."""
        values, at = self._window_of(step)
        return [value[at : at + self.length] for value in values]

    def read_most(self, step: int, most: int) -> tuple[list[Tensor], int]:
        """As `read`, for as many steps as the window has, at most so many; and how many these are.

        They lie in memory of their own: a graph is for tensors at the start of theirs, or for others.
        """
        values, at = self._window_of(step)
        count = min(most, self.steps - at)
        return [value[at : at + count].clone() for value in values], count

    def _window_of(self, step: int) -> tuple[list[Tensor], int]:
        """The values of the window that a step is in, and where it is there."""
        start = step - step % self.steps
        if self.asked and start != self._start:
            # windows start at multiples of their length: a resumed run makes the same ones
            self._start, self._values = start, self._make(start)
        return self._values, step - start

    def at(self, values: Sequence[Tensor], index: int) -> TapedNoise:
        """The noise of step `index` of those whose values were read."""
        return TapedNoise(self.noise, self.asked, [value[index] for value in values])


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
            now, stats, used = make_step(self.solver, self.field, noise, now, step + i, None)
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
            after, stats, used = make_step(
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
        native = type(_native(loop.field))
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
        native = type(_native(loop.field))
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
    """What a solver's steps are compiled for.

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
    """The solver with the numbers that are data to its steps as tensors `()`, for a graph of these.

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
    """What a function of any number of chains is called with, and of any number of rows of a grid.

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
    """The indices of steps, which of them are made, and their noise, for at least two steps.

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


def _native(field: Any) -> Any:
    """The field beneath a bound one."""
    return getattr(field, "native", field)


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
    """The number of calls that are played together, for a state of so many values."""
    chains = len(tape.noise.chains)
    drawn = sum(chains * torch.Size(request.shape).numel() for request in tape.asked)
    return max(1, min(TURNS, TURNS_VALUES // max(1, (values + drawn) * tape.length)))


def _common(kinds: Iterable[Hashable]) -> list[Hashable]:
    """The most common kinds of steps, or none where they cover too few of the steps."""
    seen = Counter(kinds)
    common = seen.most_common(KINDS)
    covered = sum(n for _, n in common)
    return [kind for kind, _ in common] if covered >= COVERED * seen.total() else []


@dataclass(frozen=True, eq=False)
class CompiledParts:
    """Compiles the parts of the steps of a run (`scoretk.core.compiling.PartCompiler`).

    Each part has one function for each shape of an event and each setting, whatever the number of
    rows: fewer than `chains` are filled up with copies of the last. Floats are passed as tensors,
    so that one function serves all their values.

    Args:
        field: The run's field.
        chains: The number of chains, and so of rows of a full batch.
        made: The functions made so far, by part and setting.
    """

    field: Any
    chains: int
    made: dict[Hashable, Callable[..., Any]] = field(default_factory=dict, repr=False)

    def serves(self, field: Any) -> bool:
        """Whether the field is that of the run, be it for some of the rows only."""
        return _native(field) is _native(self.field)

    def call(self, function: Callable[..., T], field: Any, *rows: Any, **same: Any) -> T:
        """As `scoretk.core.compiling.part`."""
        rows, same = (_mapped(_as_data, value) for value in (rows, same))
        n = next(len(v) for v in _leaves(rows) if isinstance(v, Tensor) and v.ndim)
        fewer = 0 < n < self.chains
        if fewer:
            rows, cond = (_mapped(self._filled, value) for value in (rows, field.cond))
            field = replace(field, cond=cond)
        settings = tuple(map(_setting, _leaves((rows, same))))
        key = (function, type(_native(field)), tuple(same), settings)
        if key not in self.made:
            self.made[key] = compiled(function, key[1:])
        answer: T = self.made[key](field, *rows, **same)
        return _mapped(lambda v: v[:n] if v.ndim else v, answer) if fewer else answer

    def iterate(
        self, body: Callable[..., T], field: Any, carry: T, times: int, *rows: Any, **same: Any
    ) -> T:
        """As `scoretk.core.compiling.iterate`, in functions of `UNROLLED` repetitions and of one."""
        while times:
            n = UNROLLED if times >= UNROLLED else 1
            carry = self.call(_repeated, field, carry, *rows, body=body, times=n, **same)
            times -= n
        return carry

    def _filled(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        return torch.cat([value, value[-1:].expand(self.chains - len(value), *value.shape[1:])])


def _repeated(
    field: Any, carry: T, *rows: Any, body: Callable[..., T], times: int, **same: Any
) -> T:
    for _ in range(times):
        carry = body(field, carry, *rows, **same)
    return carry


def _as_data(value: Any) -> Any:
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else value


def _setting(value: Any) -> Hashable:
    """What a function is compiled for: a tensor's shape, dtype and device; other values as such."""
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value


def _leaves(nest: Any) -> list[Any]:
    if isinstance(nest, dict):
        nest = tuple(nest.values())
    return [leaf for v in nest for leaf in _leaves(v)] if isinstance(nest, tuple) else [nest]


def _mapped(function: Callable[[Any], Any], nest: Any) -> Any:
    """Nested tuples and dicts with the function applied to each leaf."""
    if isinstance(nest, dict):
        return {name: _mapped(function, value) for name, value in nest.items()}
    if not isinstance(nest, tuple):
        return function(nest)
    values = (_mapped(function, value) for value in nest)
    return type(nest)(*values) if hasattr(nest, "_fields") else tuple(values)
