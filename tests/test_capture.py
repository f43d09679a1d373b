"""What is captured of a run: steps by how long they are, parts for any number of rows, and no other field's."""

import math
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import scoretk as stk
from scoretk.core import columns, compiling
from scoretk.core.compiling import iterate, part, parts_compiled_by
from scoretk.fields.resolve import StaticField, TimedField, resolve
from scoretk.run import capture, parts, tape
from scoretk.run.capture import Captured
from scoretk.run.drive import Eager, drive, engine_of
from scoretk.run.moment import Loop, begin
from scoretk.run.parts import CompiledParts
from scoretk.run.record import RECORDERS, Record
from scoretk.run.schedule import Schedule
from scoretk.run.tape import Heard, listen
from scoretk.solvers import EXAMPLES
from scoretk.solvers.base import Traits, is_grid, traits

FIELD = stk.Energy(lambda x: x.square().sum(1) / 2 + (x**4).sum(1) / 40, (3,))
CHAINS = 16


@pytest.fixture
def made(monkeypatch):
    """The keys of all functions that are compiled, which stay as they are: it is about how many there are."""
    keys = []

    def as_it_is(function, key, options=None):
        keys.append((function, key))

        def graph(*arguments, **named):
            with parts_compiled_by(None):  # what is within a graph is a part of it
                return function(*arguments, **named)

        return graph

    for module in (capture, parts, tape):
        monkeypatch.setattr(module, "compiled", as_it_is)
    # to the bit: torch adds the product with a tensor otherwise than that with a number
    monkeypatch.setattr(capture, "on_data", lambda solver, device: solver)
    return keys


@pytest.fixture
def no_loop(monkeypatch):
    """As on a device, and where the compiler makes no loop of the steps."""
    monkeypatch.setattr(capture, "has_loop", lambda solver, x: False)


def loop_of(solver, field=FIELD, steps=4, chains=CHAINS, cond=None):
    bound = resolve(field, solver.needs, cond, timed=solver.timed)
    noise = stk.Noise(3, chains, dtype=torch.float64)
    x = noise.normal(0, stk.Stream.START, bound.event_shape)
    milestones = solver.milestones(bound) if is_grid(solver) else (True,) * steps
    schedule = Schedule(len(milestones), kept=milestones)
    return Loop(solver, bound, noise, schedule, RECORDERS["all"]), x


def run(loop, x, compiled):
    (*_, last) = drive(loop, begin(loop.solver, loop.field, x, loop.noise), compiled=compiled)
    return last


def push(x, t, y):
    return torch.sin(3 * x) - t[:, None] * x + y


CONDITIONED = stk.Velocity(push, (3,))
ROWS = {"y": torch.linspace(-2, 2, 3 * CHAINS, dtype=torch.float64).reshape(CHAINS, 3)}
IN_PARTS = {
    "nuts": (stk.NUTS(0.4, metric="none", max_depth=4), FIELD, None, 1),
    "chees": (stk.ChEES(0.2, 1.0, metric="none"), FIELD, None, 3),
    "adjusted-mclmc": (stk.AdjustedMCLMC(0.5, 2.0, metric="none"), FIELD, None, 1),
    "dopri5": (stk.ProbabilityFlow("dopri5", steps=2, rtol=1e-3), CONDITIONED, ROWS, 2),
    "dopri8": (stk.ProbabilityFlow("dopri8", steps=2, rtol=1e-3), CONDITIONED, ROWS, 1),
}
"""Solver, field, condition rows, and of how many kinds its parts are: some in two settings, or at a time for each row."""


def run_in_parts(loop, x):
    engine, moment = engine_of(loop, compiled=True), begin(loop.solver, loop.field, x, loop.noise)
    engine = engine if isinstance(engine, Eager) else engine.in_parts
    while moment.step < loop.schedule.total:
        moment = engine.block(moment, loop.schedule.total - moment.step)
    return moment


@pytest.mark.parametrize("name", IN_PARTS)
def test_a_part_has_one_function_whatever_the_rows(made, name):
    solver, field, cond, kinds = IN_PARTS[name]
    loop, x = loop_of(solver, field, cond=cond)
    eager, parted = run(loop, x, False), run_in_parts(loop, x)
    assert torch.equal(parted.state.x, eager.state.x)
    assert parted.evaluations == eager.evaluations
    assert len(made) == kinds


@pytest.mark.parametrize("name", ["nuts", "dopri5"])
def test_without_filling_up_each_number_of_rows_has_its_own(made, monkeypatch, name):
    """The mutant."""
    monkeypatch.setattr(CompiledParts, "_filled", lambda self, value: value)
    solver, field, cond, kinds = IN_PARTS[name]
    run_in_parts(*loop_of(solver, field, cond=cond))
    assert len(made) > kinds


@part
def moved(field, x, size, *, by):
    return x + size * by, {"sum": x.sum(1)}


@pytest.mark.parametrize("n", [0, 1, 3, 5, 9])
def test_parts_get_all_rows_and_give_back_those_asked_for(made, n):
    """More than there are, as where a step asks at two places at once, are taken as they come."""
    field = StaticField(FIELD)
    x = torch.arange(3.0 * n).reshape(n, 3)
    with parts_compiled_by(CompiledParts(field, 5)):
        for size in (0.5, 0.25, torch.tensor(2.0), x + 1):
            y, info = moved(field, x, size, by=torch.ones(3))
            assert torch.equal(y, x + size)
            assert torch.equal(info["sum"], x.sum(1))
    assert len(made) == 3  # numbers are data: both sizes have one function


def test_settings_are_compiled_in(made):
    field, x = StaticField(FIELD), torch.ones(2, 3)
    with parts_compiled_by(CompiledParts(field, 2)):
        for by in (1, 2, 1):
            assert torch.equal(moved(field, x, x, by=by)[0], x + by)
    assert len(made) == 2


def test_what_is_compiled_differently_has_a_name_of_its_own(made):
    """The compiler takes a small number of variants of a name: fields of one class have one, of two classes two."""
    x = torch.ones(2, 3)
    kinds = [FIELD, stk.Energy(lambda x: x.sum(1), (3,)), stk.Score(lambda x: -x, (3,))]
    for field in (*kinds, *kinds):
        bound = StaticField(field)
        with parts_compiled_by(CompiledParts(bound, 2)):
            for more in ({"by": 1}, {"by": 2}, {"by": torch.ones(3)}):
                moved(bound, x, x, **more)
    of_one = len(made) // 6
    assert len(set(made)) == len({type(field) for field in kinds}) * of_one


def doubled(field, carry, shift, *, sign):
    x, n = carry
    return 2 * x + sign * shift, n + 1


@pytest.mark.parametrize("rows", [4, 2])
@pytest.mark.parametrize("times", range(10))
def test_what_is_repeated_is_cut_into_two_kinds(made, times, rows):
    field, x, shift = StaticField(FIELD), torch.ones(rows), torch.arange(float(rows))
    start = (x, torch.zeros(rows, dtype=torch.int64))
    plain = iterate(doubled, field, start, times, shift, sign=-1)
    with parts_compiled_by(CompiledParts(field, 4)):
        cut = iterate(doubled, field, start, times, shift, sign=-1)
    assert all(map(torch.equal, cut, plain))
    assert cut[1].tolist() == [times] * rows
    assert len(made) <= 2


class Spy:
    """Compiles nothing and tells what it was given."""

    def __init__(self, field):
        self.field, self.given = field, []

    def serves(self, field):
        return CompiledParts(self.field, 1).serves(field)

    def call(self, function, field, *rows, **same):
        self.given.append(function.__name__)
        return function(field, *rows, **same)

    def iterate(self, body, field, carry, times, *rows, **same):
        self.given += [body.__name__] * times
        return carry


def test_parts_of_other_fields_are_left_alone():
    """A field inside the run's own is evaluated within a part of it, or where nothing is compiled."""
    bound, others = StaticField(FIELD), [StaticField(stk.tempered(FIELD, 2.0)), StaticField(FIELD)]
    spy = Spy(bound)
    with parts_compiled_by(spy):
        others[0].energy_and_grad(torch.zeros(2, 3))
        assert spy.given == []
        others[1].energy_and_grad(torch.zeros(2, 3))  # the same field, for other rows
        assert spy.given == ["_energy_and_grad"]
        timed = TimedField(CONDITIONED, None, {"y": torch.zeros(2, 3)})
        timed.predict(torch.zeros(2, 3), 0.5)
        assert spy.given == ["_energy_and_grad"]


def test_an_eager_run_inside_a_compiled_one_is_eager():
    loop, x = loop_of(stk.NUTS(0.4, metric="none", max_depth=3), steps=2)
    spy, start = Spy(loop.field), begin(loop.solver, loop.field, x, loop.noise)
    with parts_compiled_by(spy):
        tuple(drive(loop, start))
        assert spy.given == []
        loop.solver.step(loop.field, start.state, loop.noise)
        assert "one_step" in spy.given  # the mutant: steps that no engine makes


def test_warmup_is_not_compiled(made, monkeypatch):
    compilers, tuned = [], Eager._tuned
    monkeypatch.setattr(
        Eager, "_tuned", lambda *a: (compilers.append(compiling._PARTS.get()), tuned(*a))[1]
    )
    run = {"chains": 6, "steps": 2, "warmup": 30, "dtype": torch.float64}
    compiled, eager = (
        stk.sample(FIELD, stk.NUTS(max_depth=3), compile=c, **run) for c in (True, False)
    )
    assert compilers == [None] * 60
    assert torch.equal(compiled.x, eager.x)
    assert torch.equal(compiled.tuned["step_size"], eager.tuned["step_size"])
    assert 1 <= len(made) <= 3


CAPTURABLE = [n for n, s in EXAMPLES.items() if s.capturable and s.needs <= {"energy", "score"}]
CAPTURABLE = [n for n in CAPTURABLE if EXAMPLES[n].timed is False]


def heard_of(solver, field=FIELD, window=None):
    loop, x = loop_of(solver, field)
    noise = stk.Noise(3, CHAINS, dtype=torch.float64, window=window)
    state = begin(solver, loop.field, x, noise).state
    return listen(solver, loop.field, state, noise, 0)


@pytest.mark.parametrize("name", CAPTURABLE)
def test_the_noise_is_no_part_of_a_steps_length(name):
    solver = EXAMPLES[name]
    at_once, one_by_one = heard_of(solver), heard_of(solver, window=1)
    assert at_once.operations == one_by_one.operations > 0
    assert at_once.is_all


def test_with_the_noise_it_would_depend_on_when_it_is_made(monkeypatch):
    """The mutant."""

    def ask(self, method, step, stream, shape, dtype):
        self.heard.append((int(step), tape.Request(method, int(stream), tuple(shape), dtype)))
        return getattr(self.noise, method)(step, stream, shape, dtype)

    monkeypatch.setattr(tape._Listener, "_ask", ask)
    solver = EXAMPLES["mala"]
    assert heard_of(solver).operations < heard_of(solver, window=1).operations


@pytest.mark.thorough
def test_longer_steps_make_shorter_calls():
    lengths = [
        capture._length(heard_of(stk.HMC(0.1, n, metric="none")), 1) for n in (1, 4, 16, 64, 256)
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == capture.CALL
    assert lengths[-1] == 1
    for operations in (1, 100, 1000, 10**4):
        length = capture._length(Heard((), True, operations), 1)
        assert length == 1 or length * operations <= capture.CALL_OPERATIONS
        assert length & (length - 1) == 0
        assert capture.CALL % length == 0
    assert capture._length(Heard((), True, 1), capture.CALL_VALUES + 1) == 1
    assert capture._length(Heard((), False, 1), 1) == 1
    deep = stk.Energy(lambda x: sum(x.sin().square().sum(1) for _ in range(200)), (3,))
    assert capture._length(heard_of(stk.ULA(0.1), deep), 1) == 1  # the field's are counted too


@dataclass(frozen=True)
class Alternating:
    """A kernel whose steps are of two kinds, in turn, and which is captured by these only."""

    size: float = 0.1
    shown: float = 1.0

    needs: ClassVar = frozenset({"energy", "score"})
    timed: ClassVar = False
    capturable: ClassVar = False
    init_cost: ClassVar = {}
    step_cost: ClassVar = {"score": 1}

    def init(self, field, x, noise):
        return stk.ULA(self.size).init(field, x, noise)

    def step(self, field, state, noise):
        return OneKind(self, int(state.step) % 2).step(field, state, noise)

    def capturable_ahead(self, state):
        return lambda step: OneKind(self, step % 2 * self.shown)


@dataclass(frozen=True)
class OneKind:
    kernel: Alternating
    odd: float

    def step(self, field, state, noise):
        return stk.ULA(self.kernel.size * (1 + self.odd)).step(field, state, noise)


def test_kinds_of_steps_have_a_function_each(made, no_loop):
    loop, x = loop_of(Alternating(), steps=21)
    assert torch.equal(run(loop, x, True).state.x, run(loop, x, False).state.x)
    assert [key[0] for _, key in made if "OneKind" in str(key[0])] == [
        repr(OneKind(Alternating(), odd)) for odd in (0.0, 1.0)
    ]


def test_too_many_kinds_are_made_in_parts(made, no_loop, monkeypatch):
    monkeypatch.setattr(capture, "KINDS", 1)
    loop, x = loop_of(Alternating(), steps=21)
    assert torch.equal(run(loop, x, True).state.x, run(loop, x, False).state.x)
    assert not [key for _, key in made if "OneKind" in str(key[0])]


def test_who_says_nothing_of_what_is_ahead_is_made_in_parts():
    assert Traits(("score",)).capturable_ahead is None
    assert not Traits(("score",)).capturable_as_loop
    for name, solver in EXAMPLES.items():
        loop = Loop(solver, None, stk.Noise(0, 4), None, None)
        whole = solver.capturable or traits(solver).capturable_ahead is not None
        engine = engine_of(loop, compiled=True)
        assert isinstance(engine, Captured if whole else Eager), name
        assert isinstance(engine_of(loop, compiled=False), Eager)


@pytest.mark.parametrize("mutant", [False, True])
def test_only_what_fills_no_call_is_made_alone(made, no_loop, monkeypatch, mutant):
    """A run is interrupted to see how far out chains without acceptance are. The mutant: wherever that is."""
    if mutant:
        next_look = Schedule.next_look
        monkeypatch.setattr(Schedule, "next_look", lambda self, step, _: next_look(self, step, 1))
    alone, block = [], Eager.block
    monkeypatch.setattr(
        Eager, "block", lambda self, moment, n: (alone.append(n), block(self, moment, n))[1]
    )
    left = []
    for steps in (8, 12, 16, 24):
        alone.clear()
        run(*loop_of(stk.ULA(0.1), steps=steps), True)
        left.append(sum(alone))
    assert (left == [0, 4, 0, 0]) is not mutant


def test_evaluations_of_calls_are_added_up(made, no_loop, monkeypatch):
    """Of a kernel that reports them, over calls and over the blocks of a run."""
    step = stk.ULA.step

    def reports(self, field, state, noise):
        state, info = step(self, field, state, noise)
        return state, info | {"evaluations": torch.arange(CHAINS)}

    monkeypatch.setattr(stk.ULA, "step", reports)
    loop, x = loop_of(stk.ULA(0.1), steps=32)
    for blocks in ((32,), (16, 16)):
        moment = in_blocks(loop, x, blocks)
        assert int(moment.evaluations) == 32 * sum(range(CHAINS))
        assert same_run(moment, run(loop, x, False))


LOOPED = [*CAPTURABLE, "chees"]


def in_blocks(loop, x, blocks):
    """A run by an engine that compiles, in blocks of these lengths."""
    engine, moment = engine_of(loop, compiled=True), begin(loop.solver, loop.field, x, loop.noise)
    for steps in blocks:
        moment = engine.block(moment, steps)
    return moment


def same_run(one, other):
    """Whether two moments are equal to the bit, what was recorded and reported included."""
    parts = [
        (
            m.state.x,
            m.status,
            m.failed_at,
            torch.as_tensor(m.evaluations),
            *m.record.flat().values(),
        )
        for m in (one, other)
    ]
    return len(parts[0]) == len(parts[1]) and all(
        torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(*parts, strict=True)
    )


@pytest.mark.parametrize("blocks", [(13,), (1, 5, 1, 6)], ids=str)
@pytest.mark.parametrize("name", LOOPED)
def test_a_loop_makes_the_steps_of_an_eager_run_whatever_the_blocks(made, name, blocks):
    """A chain that fails on the way among them, and the counts of evaluations."""
    solver = EXAMPLES[name] if name != "chees" else IN_PARTS[name][0]
    loop, x = loop_of(solver, stk.Energy(edged, (3,)), steps=13)
    eager, looped = run(loop, x, False), in_blocks(loop, x, blocks)
    assert same_run(looped, eager)
    assert [type(getattr(function, "__self__", None)) for function, _ in made].count(
        capture._Loop
    ) == 1


def edged(x):
    """An energy that is not a number beyond an edge that some chain of some kernel meets."""
    energy = x.square().sum(1) / 2 + (x**4).sum(1) / 40
    return torch.where(x[:, 0] < 1.5, energy, torch.nan)


PATH = stk.Diffusion(
    lambda x, t: torch.sin(3 * x) * (1 + t)[:, None], (3,), stk.VE(0.05, 5.0), "noise"
)
ON_GRIDS = [
    stk.ProbabilityFlow(steps=9),
    stk.ReverseSDE(steps=9),
    stk.AnnealedLangevin(3, 3, 1e-3, denoise=False),
]


@pytest.mark.parametrize("solver", ON_GRIDS, ids=repr)
def test_nothing_is_read_beyond_a_grid(made, solver):
    """Where one step is left, as the last one."""
    loop, x = loop_of(solver, PATH)
    assert loop.schedule.total == 9
    assert same_run(in_blocks(loop, x, (8, 1)), run(loop, x, False))


def test_the_first_of_two_steps_is_not_made_where_one_is_asked_for(made, monkeypatch):
    """The mutant: it is."""
    monkeypatch.setattr(
        capture, "_of_two", lambda *a, of=capture._of_two: (of(*a)[0], of(*a)[1] | True, of(*a)[2])
    )
    loop, x = loop_of(stk.MALA(0.2), steps=13)
    assert not same_run(in_blocks(loop, x, (1, 5, 1, 6)), run(loop, x, False))


def test_what_a_step_changes_is_carried(made, monkeypatch):
    """The mutant: the loop takes the cached gradient for one that no step changes."""
    monkeypatch.setattr(
        capture, "listen", lambda *a, of=listen: of(*a)._replace(kept=frozenset({"grad"}))
    )
    loop, x = loop_of(stk.MALA(0.2), steps=13)
    assert not same_run(in_blocks(loop, x, (13,)), run(loop, x, False))


def test_where_no_loop_can_be_compiled_steps_still_are(made, monkeypatch):
    kinds, as_it_is = [], capture.compiled

    def fails(function, key, options=None):
        kinds.append(type(getattr(function, "__self__", None)).__name__)
        if kinds[-1] != "_Loop":
            return as_it_is(function, key)

        def graph(*arguments):
            raise compiling.Uncompilable(RuntimeError("no graph within a graph"))

        return graph

    for module in (capture, parts, tape):
        monkeypatch.setattr(module, "compiled", fails)
    for solver, then in ((stk.ULA(0.1), "_Steps"), (IN_PARTS["chees"][0], "NoneType")):
        kinds.clear()
        loop, x = loop_of(solver, steps=13)
        assert same_run(in_blocks(loop, x, (5, 8)), run(loop, x, False))
        assert kinds.count("_Loop") == 1
        assert then in kinds


@pytest.mark.parametrize("chains", [4, 1])
def test_large_states_and_devices_have_no_loop(chains):
    x = torch.zeros(chains, capture.CALL_VALUES // chains)
    assert capture.has_loop(stk.ULA(0.1), x)
    assert capture.has_loop(stk.ChEES(), x)
    assert not capture.has_loop(stk.NUTS(), x)
    assert not capture.has_loop(stk.ULA(0.1), torch.cat([x, x]))
    assert not capture.has_loop(stk.ULA(0.1), x.to("meta"))


def test_a_step_size_that_the_state_carries_is_not_compiled_for(made):
    """Nor one that another run has tuned, nor any number; how many leapfrogs there are is."""

    def keys_of(*solvers):
        made.clear()
        for solver in solvers:
            run(*loop_of(solver, steps=2), True)
        return len({key[0] for _, key in made if isinstance(key[0], str)})

    given = stk.Draws(
        torch.zeros(2, 1, 3),
        torch.zeros(2, 3),
        torch.zeros(2),
        torch.zeros(2),
        provenance={"solver": "HMC()", "seed": 0},
        tuned={"step_size": torch.tensor(0.3), "length": torch.tensor(1.0), "scale": torch.ones(3)},
    )
    tuned = stk.HMC(leapfrogs=2).tuned_by(given)
    assert keys_of(*(stk.HMC(h, 2, metric="none") for h in (0.1, 0.2))) == 1
    assert keys_of(tuned, stk.HMC(0.1, 2)) == 1
    assert keys_of(*(stk.ChEES(h, 3 * h, metric="none") for h in (0.1, 0.2))) == 1
    assert keys_of(*(stk.HMC(0.1, n, metric="none") for n in (1, 2))) == 2
    assert keys_of(stk.ULA(0.1), stk.ULA(0.2, temperature=2.0), stk.ULA(0.3, clip=1.0)) == 1
    assert keys_of(*(stk.MALA(h, 3 * h) for h in (0.1, 0.2))) == 1


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4], [1, 4], [2]], ids=str)
@pytest.mark.parametrize("keep", RECORDERS)
def test_steps_recorded_together_are_those_recorded_one_by_one(keep, chosen):
    """To the bit: else a resumed run would end with other averages."""
    noise, recorder = stk.Noise(1, 4), RECORDERS[keep]
    xs = noise.at_once("normal", range(5), 1, (3,))
    stats = {
        "accept": noise.at_once("uniform", range(5), 2, ()),
        "diverging": noise.at_once("uniform", range(5), 3, ()) < 0.5,
    }
    together = one_by_one = Record()
    for first in (0, len(chosen)):  # where there is no record yet, and to one that there is
        together = recorder.extend(together, xs, stats, chosen, first, 10)
        for n, i in enumerate(chosen):
            of_step = {name: value[i] for name, value in stats.items()}
            one_by_one = recorder.add(one_by_one, xs[i], of_step, first + n, 10)
    flat, steps = (recorder.filled(r, 2 * len(chosen)).flat() for r in (together, one_by_one))
    assert flat.keys() == steps.keys()
    assert all(torch.equal(flat[name], steps[name]) for name in flat)


QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own


SITES = stk.Discrete(FIELD, (-1.0, 0.5, 2.0))
FIXED = {"metric": "none"}
NUMBERS = [
    (FIELD, stk.ULA(0.1, clip=2.0, box=(-5.0, 5.0)), stk.ULA(0.2, 1.5, clip=1.0, box=(-2.0, 3.0))),
    (FIELD, stk.MALA(0.1), stk.MALA(0.2, temperature=2.0)),
    (FIELD, stk.Barker(0.1), stk.Barker(0.2, temperature=2.0)),
    (FIELD, stk.PreconditionedLangevin(0.1, **FIXED), stk.PreconditionedLangevin(0.2, **FIXED)),
    (FIELD, stk.Underdamped(0.1), stk.Underdamped(0.2, 2.0, 1.5)),
    (FIELD, stk.GHMC(0.1), stk.GHMC(0.2, friction=2.0)),
    (FIELD, stk.HMC(0.1, 3, **FIXED), stk.HMC(0.2, 3, jitter=0.1, **FIXED)),
    (FIELD, stk.ChEES(0.1, 0.5, **FIXED), stk.ChEES(0.2, 1.0, most=3, **FIXED)),
    (FIELD, stk.MCLMC(0.1, 1.0, **FIXED), stk.MCLMC(0.2, 2.0, **FIXED)),
    (
        FIELD,
        stk.AdjustedMCLMC(0.1, leapfrogs=2, **FIXED),
        stk.AdjustedMCLMC(0.2, leapfrogs=2, jitter=0.1, **FIXED),
    ),
    (SITES, stk.GibbsWithGradients(), stk.GibbsWithGradients(2.0)),
    (SITES, stk.DiscreteLangevin(1.0), stk.DiscreteLangevin(2.0, temperature=2.0)),
    (PATH, stk.AnnealedLangevin(3, 2, 1e-3), stk.AnnealedLangevin((3.0, 0.2, 0.1), 3, 1e-4)),
    (PATH, stk.ReverseSDE(steps=5), stk.ReverseSDE(steps=9, eta=0.5)),
    (PATH, stk.ProbabilityFlow(steps=5), stk.ProbabilityFlow(grid=(0.0, 0.4, 0.7, 1.0))),
    (PATH, stk.ProbabilityFlow("heun", steps=5), stk.ProbabilityFlow("heun", steps=9)),
]
"""A field, a solver, and the solver with other numbers."""


def test_every_captured_solver_is_tried_with_other_numbers():
    tried = {type(solver) for _, solver, _ in NUMBERS} | {stk.BlockGibbs}  # which has no settings
    whole = [s for s in EXAMPLES.values() if s.capturable or traits(s).capturable_as_loop]
    assert tried == {type(s) for s in whole}


@QUIET
@pytest.mark.compiled
@pytest.mark.parametrize(
    ("field", "solver", "other"),
    [
        pytest.param(
            *case,
            id=repr(case[1]),
            marks=() if case[1] in (NUMBERS[0][1], NUMBERS[-1][1]) else pytest.mark.slow,
        )
        for case in NUMBERS
    ],
)
def test_one_graph_serves_any_numbers_chains_steps_and_seed(monkeypatch, field, solver, other):
    """With the draws of an eager run."""
    monkeypatch.setattr(tape, "COMPILED_NOISE", False)  # which has a graph for each size
    graphs, made = torch._dynamo.utils.counters["stats"], []
    for seed, chains, kernel in ((0, 7, solver), (1, 12, other), (2, 30, solver)):
        run = {"chains": chains, "seed": seed, "dtype": torch.float64}
        if not is_grid(kernel):
            run |= {"warmup": 0, "steps": 20 + seed}
        compiled, eager = (stk.sample(field, kernel, compile=c, **run) for c in (True, False))
        torch.testing.assert_close(compiled.final, eager.final)
        made.append(graphs["unique_graphs"])
    assert made[0] == made[1] == made[2] > 0


@QUIET
@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.parametrize("mutant", [False, True])
def test_data_are_read_in_a_loop_by_any_of_their_attributes(monkeypatch, mutant):
    """Of a trajectory in a graph, and not by the way for what has no graph."""
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(tape, "COMPILED_NOISE", False)
    monkeypatch.setattr(compiling, "_copies", OrderedDict())  # none that serves this one is known
    monkeypatch.setattr(capture.Captured, "_in_calls", lambda *_: 1 / 0)
    if mutant:
        monkeypatch.setattr(capture, "as_a_loop", nullcontext)

    def energy(x):
        misfit = torch.nn.functional.softplus(-(x @ rows.T)).sum(1)
        return misfit + (x @ rows[:3].mT).square().sum(1) + (x * rows.real[0]).square().sum(1)

    kernel, run = stk.ChEES(0.1, length=0.4, metric="none"), {"chains": 7, "steps": 20, "warmup": 0}
    with pytest.raises(ZeroDivisionError) if mutant else nullcontext():
        compiled, eager = (
            stk.sample(stk.Energy(energy, (3,)), kernel, compile=c, **run) for c in (True, False)
        )
        torch.testing.assert_close(compiled.x, eager.x)


@QUIET
@pytest.mark.compiled
def test_one_graph_serves_the_run_that_tunes_and_those_that_are_given_what_it_found(monkeypatch):
    """Wherever in a window of noise they begin."""
    field = stk.Energy(lambda x: x.square().sum(1) / 2, (3,))
    monkeypatch.setattr(tape, "COMPILED_NOISE", False)
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    warm = stk.sample(field, stk.MALA(), 7, 33, warmup=20, compile=True)
    own = {"warmup": 0, "seed": 1, "init": warm.final}
    given = [
        stk.sample(field, stk.MALA().tuned_by(warm), 7, 33, compile=c, **own) for c in (True, False)
    ]
    torch.testing.assert_close(given[0].x, given[1].x)
    assert graphs["unique_graphs"] == before + 1


@QUIET
@pytest.mark.compiled
@pytest.mark.parametrize(
    "solver", [stk.MALA(0.1), pytest.param(IN_PARTS["chees"][0], marks=pytest.mark.slow)], ids=str
)
def test_one_graph_serves_any_number_of_chains_and_of_steps(monkeypatch, solver):
    field = stk.Energy(lambda x: x.square().sum(1) / 2 + (x**4).sum(1) / 40, (3,))
    run, x = {"warmup": 0, "seed": 5, "keep": "all"}, torch.zeros(40, 3)
    monkeypatch.setattr(tape, "COMPILED_NOISE", False)  # which has a graph for each size

    def drawn(chains, steps, compile=True, **more):
        return stk.sample(
            field, solver, init=x[:chains], steps=steps, compile=compile, **run | more
        )

    graphs = torch._dynamo.utils.counters["stats"]
    first = drawn(7, 20)
    before = graphs["unique_graphs"]
    for chains, steps in ((8, 5), (40, 33), (7, 1)):
        compiled, eager = (drawn(chains, steps, compile=c) for c in (True, False))
        torch.testing.assert_close(compiled.x, eager.x)
        torch.testing.assert_close(compiled.x[:7, :20], first.x[:, :steps])
    torch.testing.assert_close(drawn(10, 20, batch=7).x[:7], first.x)
    assert graphs["unique_graphs"] == before > 0


@QUIET
@pytest.mark.compiled
@pytest.mark.parametrize("d", [3, pytest.param(columns.MOST + 1, marks=pytest.mark.slow)])
def test_a_model_sees_rows_in_whatever_order_they_lie(monkeypatch, d):
    """Of few coordinates the chains of each lie side by side; with the draws of an eager run."""
    monkeypatch.setattr(tape, "COMPILED_NOISE", False)
    monkeypatch.setattr(capture.Captured, "_in_calls", lambda *_: 1 / 0)

    def energy(x):
        assert x.is_contiguous()
        return x.view(-1).view(x.shape).square().sum(1) / 2 + (x[:, 1:] * x[:, :1]).square().sum(1)

    kernel = stk.HMC(0.1, leapfrogs=16, metric="none")
    run = {"chains": 19, "steps": 20, "dtype": torch.float64}
    compiled, eager = (
        stk.sample(stk.Energy(energy, (d,)), kernel, compile=c, **run) for c in (True, False)
    )
    torch.testing.assert_close(compiled.x, eager.x)


@QUIET
@pytest.mark.compiled
@pytest.mark.parametrize("mutant", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("d", [2, pytest.param(columns.MOST + 1, marks=pytest.mark.slow)])
def test_loops_of_no_turn_hand_back_what_they_were_given(monkeypatch, d, mutant):
    """Trajectories of one leapfrog step, of a model whose products need memory of their own."""
    monkeypatch.setattr(tape, "COMPILED_NOISE", False)
    monkeypatch.setattr(compiling, "_copies", OrderedDict())  # none that serves this one is known
    monkeypatch.setattr(capture.Captured, "_in_calls", lambda *_: 1 / 0)
    if mutant:
        monkeypatch.setattr(compiling, "_kept_apart", lambda own, *given: own.__func__(*given))

    def energy(x):
        return (x @ x.new_ones(d, d) * x).sum(1) / d + x.square().sum(1)

    kernel = stk.ChEES(0.8, length=1.2, metric="none")
    run = {"chains": 19, "steps": 20, "warmup": 0, "dtype": torch.float64}
    compiled, eager = (
        stk.sample(stk.Energy(energy, (d,)), kernel, compile=c, **run) for c in (True, False)
    )
    assert eager.stats["leapfrogs"].min() == 1
    assert torch.allclose(compiled.x, eager.x) is not mutant


@pytest.mark.parametrize(
    ("shape", "turned"),
    [
        ((5, 2), True),
        ((5, columns.MOST), True),
        ((5, columns.MOST + 1), False),
        ((5, 1), False),
        ((5,), False),
        ((5, 3, 2), False),
    ],
)
def test_what_a_loop_carries_comes_back(monkeypatch, shape, turned):
    monkeypatch.setattr(columns, "_TOLD", True)
    given = torch.arange(math.prod(shape)).reshape(shape), 7
    loop = columns.Turned(given)
    carried = loop.carried(given)
    assert carried[0].shape == (shape[::-1] if turned else shape)
    assert carried[0].is_contiguous()
    assert carried[0].data_ptr() != given[0].data_ptr()
    back = loop.back(carried)
    assert torch.equal(back[0], given[0])
    assert back[1] == 7
    assert columns.in_columns(given[0]) is given[0]  # outside of a graph


def test_memory_is_not_turned_where_the_compiler_knows_of_no_such_thing(monkeypatch):
    monkeypatch.setattr(columns, "_TOLD", False)
    assert not columns.lies_in_columns(torch.zeros(5, 2))
