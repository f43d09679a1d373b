"""`compile=True` with fields that the compiler cannot take: a warning that names the line, and the bits of an eager run."""

import functools
import itertools
import logging
import os
import traceback
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import (
    Categorical,
    Dirichlet,
    Gamma,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

import scoretk as stk
from scoretk.core import compiling
from scoretk.core.compiling import (
    AGAIN,
    Uncompilable,
    Unsettled,
    as_a_loop,
    compiled,
    iterate,
    over_rows,
)
from scoretk.run.capture import CPU_OPTIONS
from tests.marks import slow_but

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, on its way through the compiler
STEPS = {"chains": 3, "steps": 12, "seed": 2}


def talks(x):
    print(end="")  # TALKS
    return x.square().sum(1) / 2


def branches(x):
    if x.sum() > 1e9:  # BRANCHES
        return x.sum(1)
    return x.square().sum(1) / 2


def counts(x):
    return x.square().sum(1) / 2 if x.sum().item() < 1e9 else x.sum(1)  # COUNTS


def leaves_torch(x):
    nothing = np.fromiter(itertools.chain([0.0]), dtype=np.float32)  # LEAVES_TORCH
    return torch.from_numpy(nothing).to(x) + x.square().sum(1) / 2


FIELDS = [talks, branches, counts, leaves_torch]
SOLVERS = [
    stk.ULA(0.1),
    stk.HMC(0.2, 3, metric="none"),
    stk.ChEES(0.2, 0.5, metric="none"),
    stk.NUTS(0.2, metric="none"),
    stk.ChEES(),
]


def line_of(function):
    source = Path(__file__).read_text().splitlines()
    return next(
        i for i, text in enumerate(source, 1) if text.endswith(f"# {function.__name__.upper()}")
    )


def test_the_lines_are_found():
    assert [line_of(f) for f in FIELDS] == sorted({line_of(f) for f in FIELDS})


SLOW = pytest.mark.slow
CASES = [(branches, SOLVERS[0]), (branches, SOLVERS[-1])]
CASES += [pytest.param(f, SOLVERS[0], marks=SLOW) for f in FIELDS if f is not branches]
CASES += [pytest.param(branches, solver, marks=SLOW) for solver in SOLVERS[1:-1]]


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("energy", "solver"), CASES, ids=lambda v: getattr(v, "__name__", repr(v)[:12])
)
def test_what_the_compiler_cannot_take_runs_eagerly(energy, solver):
    field = stk.Energy(energy, (2,))
    run = STEPS | ({"warmup": 20} if getattr(solver, "adapts", False) else {})
    eager = stk.sample(field, solver, **run)
    with pytest.warns(
        UserWarning, match=rf"test_compiling\.py:{line_of(energy)} in {energy.__name__}"
    ) as told:
        draws = stk.sample(field, solver, compile=True, **run)
    (ours,) = (w for w in told if w.category is UserWarning)  # besides torch's own
    assert ours.filename == __file__
    assert torch.equal(draws.x, eager.x)
    assert draws.cost == eager.cost
    for name, value in eager.stats.items():
        assert torch.equal(draws.stats[name], value), name


@pytest.mark.compiled
def test_batches_are_told_once():
    with pytest.warns(UserWarning, match="not compiled") as told:
        draws = stk.sample(stk.Energy(branches, (2,)), stk.ULA(0.1), compile=True, batch=1, **STEPS)
    assert len([w for w in told if w.category is UserWarning]) == 1
    assert torch.equal(draws.x, stk.sample(stk.Energy(branches, (2,)), stk.ULA(0.1), **STEPS).x)


@pytest.mark.compiled
@pytest.mark.parametrize(
    "solver",
    [
        stk.ProbabilityFlow("dopri5"),
        *(
            pytest.param(s, marks=SLOW)
            for s in (stk.ProbabilityFlow(steps=16), stk.ReverseSDE(steps=16))
        ),
    ],
    ids=lambda s: repr(s)[:24],
)
def test_fields_in_time_too(solver):
    def denoise(x, t):
        if x.sum() > 1e9:
            return x
        return x / 2

    field = stk.Diffusion(denoise, (2,), stk.VP(), "data")
    with pytest.warns(UserWarning, match=r"test_compiling\.py:\d+ in denoise"):
        draws = stk.sample(field, solver, chains=3, compile=True)
    assert torch.equal(draws.final, stk.sample(field, solver, chains=3).final)


@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore:compile=True")
def test_a_models_own_error_is_raised_as_it_is():
    def broken(x):
        if len(x) == 3 and x.square().sum() >= 0:
            raise ZeroDivisionError("of the model")
        return x.sum(1)

    with pytest.raises(ZeroDivisionError, match="of the model"):
        stk.sample(stk.Energy(broken, (2,)), stk.ULA(0.1), compile=True, **STEPS)


@pytest.mark.compiled
def test_a_checkpoint_goes_on(tmp_path):
    field, run = (
        stk.Energy(branches, (2,)),
        STEPS | {"compile": True, "checkpoint": tmp_path / "run"},
    )
    with pytest.warns(UserWarning, match="not compiled"):
        draws = stk.sample(field, stk.ULA(0.1), **run)
    assert torch.equal(stk.sample(field, stk.ULA(0.1), **run).x, draws.x)


class Doubles:
    """Something with a method that a test compiles."""

    def twice(self, x):
        return 2 * x


@pytest.mark.parametrize(
    "module", ["torch._dynamo.exc", "torch._inductor.exc", "torch.fx.experimental.symbolic_shapes"]
)
def test_every_error_of_the_compilers_is_told_from_a_models(monkeypatch, module):
    ours = type("Backend", (RuntimeError,), {"__module__": module})

    def fails(method, key, options):
        def call(*arguments):
            raise ours('no compiler\n  File "/home/a/model.py", line 7, in energy')

        return call

    monkeypatch.setattr(compiling, "_compile", fails)
    with pytest.raises(Uncompilable, match=r"^/home/a/model\.py:7 in energy: no compiler$"):
        compiled(Doubles().twice, module)(torch.ones(2))
    draws = stk.sample(stk.Energy(lambda x: x.square().sum(1), (2,)), stk.ULA(0.1), **STEPS)
    with pytest.warns(UserWarning, match=r"model\.py:7"):
        again = stk.sample(
            stk.Energy(lambda x: x.square().sum(1), (2,)), stk.ULA(0.1), compile=True, **STEPS
        )
    assert torch.equal(again.x, draws.x)


@pytest.mark.compiled
@pytest.mark.parametrize("mutant", [False, True])
@pytest.mark.parametrize("read", [lambda x: x.T, lambda x: x.mT, lambda x: x.real.t()])
def test_attributes_of_tensors_from_outside_are_read_within_loops(read, mutant):
    """Traced only, which is where it fails without a word from torch."""
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))

    def gradient(x):
        return torch.func.grad(lambda x: (x @ read(rows)).square().sum())(x)

    def once(field, carry):
        return (carry[0] - 1e-3 * gradient(carry[0]),)

    def step(carry, row):
        (x,) = iterate(once, None, carry, row[0])
        return (compiling.apart(x),), compiling.apart(x)

    def steps(x, turns):
        return over_rows(step, (x,), (turns,))

    torch._dynamo.eval_frame.reset_code(steps.__code__)
    loop = torch.compile(steps, fullgraph=True, backend="eager")
    x, turns = torch.ones(4, 3), torch.tensor([2, 3])
    with nullcontext() if mutant else as_a_loop():
        if mutant:
            with pytest.raises(AssertionError, match="FakeTensor"):
                loop(x, turns)
            return
        found = loop(x, turns)
    for done, after in zip((2, 5), found[1], strict=True):
        torch.testing.assert_close(
            after, x @ torch.matrix_power(torch.eye(3) - 2e-3 * rows.T @ rows, done)
        )


@pytest.mark.compiled
@pytest.mark.parametrize("mutant", [False, True])
def test_a_graph_with_a_number_as_a_tensor_is_traced_once(mutant):
    size = torch.tensor(0.5, dtype=torch.float64)

    def kick(x):
        return x - size.to(x.dtype) * x

    torch._dynamo.eval_frame.reset_code(kick.__code__)
    with nullcontext() if mutant else as_a_loop():
        torch.compile(kick, fullgraph=True, backend="aot_eager")(torch.ones(2))
    reasons = torch._dynamo.utils.get_compilation_metrics()[-1].restart_reasons
    assert bool(reasons) == mutant


@pytest.mark.compiled
def test_an_assertion_of_the_compilers_own_is_its_failure_and_a_models_error_is_not(monkeypatch):
    """It is not one of the compiler's errors by its type."""

    def fails(*arguments, **named):
        raise AssertionError("Expected FakeTensor")

    called = compiled(Doubles().twice, "runs")
    assert torch.equal(called(torch.ones(2)), 2 * torch.ones(2))
    monkeypatch.setattr("torch._dynamo.convert_frame.transform_code_object", fails)
    with pytest.raises(Uncompilable, match="Expected FakeTensor"):
        compiled(Doubles().twice, "fails")(torch.ones(2))
    monkeypatch.setattr(compiling, "_compile", lambda *_: fails)
    with pytest.raises(AssertionError, match="Expected FakeTensor"):
        compiled(Doubles().twice, "runs and fails")(torch.ones(2))


def test_what_is_replaced_is_put_back_when_the_last_has_left():
    """Threads leave in any order, and the torch of whoever else compiles is as it was."""
    from torch._dynamo.variables.misc import GetAttrVariable
    from torch._subclasses import fake_tensor

    def now():
        return vars(GetAttrVariable)["create_getattr_proxy"], fake_tensor._is_plain_tensor

    before, first, second = now(), as_a_loop(), as_a_loop()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not set(now()) & set(before)
    second.__exit__(None, None, None)
    assert now() == before


@pytest.fixture
def traced(monkeypatch):
    """Functions are traced and not made, which takes a tenth of the time; by the backend given."""
    real = torch.compile

    def by(backend):
        def traces(function, *, options, **named):
            return real(function, backend=backend, **named)

        monkeypatch.setattr(torch, "compile", traces)

    return by


NUMBER, ROW = np.float64(0.5), np.array([1.0, 2.0])


@pytest.mark.compiled
@pytest.mark.parametrize("mutant", [False, True])
def test_numbers_and_arrays_of_numpys_are_read_at_each_call(monkeypatch, traced, mutant):
    traced("eager")
    row = ROW.copy()

    def energy(x):
        return (NUMBER * x.square() + x * torch.from_numpy(row)).sum() * float(row[0])

    def gradient(x):
        return torch.func.grad(energy)(x)

    slope = compiled(gradient, "of NumPy")
    if mutant:
        monkeypatch.setattr(compiling, "_traced", nullcontext)
        with pytest.raises(Uncompilable, match="Guard failed"):
            slope(torch.ones(2, dtype=torch.float64))
        return
    for first in (1.0, 3.0):
        row[0] = first
        (answer,) = {tuple(slope(torch.ones(2, dtype=torch.float64)).tolist()) for _ in range(3)}
        assert answer == (first * (1 + first), first * 3)


@pytest.mark.compiled
@pytest.mark.parametrize("mutant", [False, True])
def test_a_trace_that_fails_leaves_checkpoints_usable(monkeypatch, traced, mutant):
    traced("aot_eager")
    again = functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    x = torch.ones(2, requires_grad=True)

    def gradient(x):
        return torch.func.grad(lambda x: again(torch.sum, x.exp()))(x)

    if mutant:
        monkeypatch.setattr(compiling, "_with_saved_tensors", nullcontext)
    with pytest.raises(Uncompilable, match="saved tensor hooks"):
        compiled(gradient, mutant)(x)
    try:
        with pytest.raises(RuntimeError, match="hooks") if mutant else nullcontext():
            again(torch.exp, x)
    finally:
        torch._C._autograd._saved_tensors_hooks_enable()


def written_in_place(x):
    out = torch.zeros(len(x), 3, dtype=x.dtype)
    out[:, 0] = x[:, 1]
    out[:, 1] += 2 * x[:, 0]
    return (out * x).sum(1) / 9 + x.square().sum(1) / 2


@pytest.mark.compiled
@pytest.mark.parametrize("mutant", [False, True])
def test_a_model_that_adds_to_a_part_of_its_own_tensor_is_right_within_a_loop(mutant):
    def once(field, carry):
        (x,) = carry
        return (x - 0.1 * torch.func.grad(lambda x: written_in_place(x).sum())(x),)

    def descent(x, times):
        return iterate(once, None, (x,), times)[0]

    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    found = compiled(descent, mutant, options=None if mutant else CPU_OPTIONS)(x, torch.tensor(3))
    close = torch.allclose(found, descent_by_hand(x, 3))
    assert close != mutant


def descent_by_hand(x, times):
    for _ in range(times):
        own = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(written_in_place(own).sum(), own)
        x = x - 0.1 * slope
    return x


@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.parametrize("looped", [True, False])
@pytest.mark.parametrize(
    "solver", [stk.ChEES(0.1, length=0.4, metric="none"), stk.HMC(0.1, 13, metric="none")], ids=repr
)
def test_runs_of_a_model_that_adds_to_a_part_of_its_own_tensor(monkeypatch, solver, looped):
    monkeypatch.setattr("scoretk.run.tape.COMPILED_NOISE", False)
    if not looped:
        monkeypatch.setattr("scoretk.run.capture.LOOPS", False)
    field, run = stk.Energy(written_in_place, (3,)), STEPS | {"warmup": 0, "dtype": torch.float64}
    eager, fast = (stk.sample(field, solver, compile=c, **run).x for c in (False, True))
    torch.testing.assert_close(fast, eager)


LAWS = {
    "normal": Independent(Normal(torch.zeros(2), torch.ones(2)), 1),
    "mixture": MixtureSameFamily(
        Categorical(torch.ones(3)),
        Independent(Normal(torch.linspace(-1, 1, 6).reshape(3, 2), torch.ones(3, 2)), 1),
    ),
    "gamma": Independent(Gamma(torch.full((2,), 2.0), torch.ones(2)), 1),
    "dirichlet": Dirichlet(torch.full((3,), 2.0)),
    "multivariate": MultivariateNormal(torch.zeros(2), torch.eye(2)),
}


@pytest.mark.compiled
@pytest.mark.parametrize("name", slow_but(LAWS, "normal", "dirichlet"))
def test_distributions_are_compiled(traced, name):
    """That of a support among them: where a distribution's tensors are is not asked within a graph."""
    traced("eager")
    run = STEPS | {"warmup": 0, "steps": 24}
    eager, fast = (stk.sample(LAWS[name], stk.MALA(0.1), compile=c, **run).x for c in (False, True))
    torch.testing.assert_close(fast, eager)


class CountsItself:
    """A model with a number that changes whenever it is asked."""

    asked = 0

    def times(self, x):
        self.asked += 1
        return x * self.asked


@pytest.mark.compiled
def test_what_changes_at_every_call_is_compiled_a_few_times(traced):
    traced("eager")
    model = CountsItself()
    times = compiled(model.times, "counted")
    for k in range(1, AGAIN + 1):
        assert times(torch.ones(())) == k
    with pytest.raises(Unsettled, match="counter"):
        times(torch.ones(()))
    assert compiled(CountsItself().times, "counted")(torch.ones(())) == 1  # a run of its own


def test_a_run_whose_model_changes_at_every_call_is_tried_in_no_other_way(monkeypatch):
    field, graphs = stk.Energy(lambda x: x.square().sum(1) / 2, (2,)), itertools.count()
    eager = stk.sample(field, stk.MALA(0.1), **STEPS | {"steps": 100})
    monkeypatch.setattr(compiling, "_compile", lambda function, *_: function)
    monkeypatch.setattr(compiling, "_graphs", lambda key: next(graphs))
    monkeypatch.setattr("scoretk.run.capture.Captured._in_calls", lambda *_: 1 / 0)
    monkeypatch.setattr("scoretk.run.drive.GROWTH", 1)  # a call every eight steps
    with pytest.warns(UserWarning, match="the model changes at each call"):
        draws = stk.sample(field, stk.MALA(0.1), compile=True, **STEPS | {"steps": 100})
    torch.testing.assert_close(draws.x, eager.x)  # the first blocks are not of eager steps


class Adds:
    """A model with a number, which is compiled in."""

    def __init__(self, number):
        self.number = number

    def to(self, x):
        return x + self.number


@pytest.mark.compiled
@pytest.mark.parametrize("mutant", [False, True])
def test_many_models_are_compiled_without_a_word_on_the_screen(monkeypatch, traced, mutant):
    traced("eager")
    if mutant:
        monkeypatch.setattr(compiling, "_traced", nullcontext)
    said, log = [], logging.getLogger(compiling.TRACER)
    listener = logging.Handler()
    listener.emit = said.append
    log.addHandler(listener)
    try:
        for k in range(2 * torch._dynamo.config.recompile_limit):
            assert compiled(Adds(k).to, f"many {mutant}")(torch.ones(())) == 1 + k
    finally:
        log.removeHandler(listener)
    assert bool(said) == mutant
    assert all(record.msg.startswith(compiling.LIMIT_SAID) for record in said)


def test_what_changes_at_every_call_is_not_compiled_for_ever(monkeypatch):
    hit = type(compiling.LIMIT_HIT, (RuntimeError,), {"__module__": "torch._dynamo.exc"})
    made = []

    def limited(method, key, options):
        made.append(key)

        def call(*arguments):
            raise hit("recompile_limit reached")

        return call

    monkeypatch.setattr(compiling, "_compile", limited)
    with pytest.raises(Uncompilable, match="recompile_limit reached"):
        compiled(Doubles().twice, "key")(torch.ones(2))
    assert len(made) == 2


def test_without_the_way_back_the_run_would_end(monkeypatch):
    """The mutant: the compiler's error ends the run, as it did."""
    ours = type("Backend", (RuntimeError,), {"__module__": "torch._dynamo.exc"})

    def fails(method, key, options):
        def call(*arguments):
            raise ours('no compiler\n  File "/home/a/model.py", line 7, in energy')

        return call

    monkeypatch.setattr(compiling, "_compile", fails)
    monkeypatch.setattr("scoretk.run.batches.Uncompilable", KeyboardInterrupt)
    with pytest.raises(Uncompilable, match="model"):
        stk.sample(
            stk.Energy(lambda x: x.square().sum(1) + 1, (2,)), stk.ULA(0.1), compile=True, **STEPS
        )


TABLE = torch.cumprod(1 - torch.linspace(1e-3, 0.2, 50, dtype=torch.float64), 0)


@pytest.mark.compiled
@pytest.mark.parametrize(
    "t", [0.3, pytest.param([0.0, 0.31, 1.0], marks=SLOW)], ids=["scalar", "rows"]
)
def test_a_table_is_one_graph(t):
    path, time = stk.Tabulated(TABLE), torch.tensor(t, dtype=torch.float64)
    graph = torch.compile(lambda t: tuple(path(t)), fullgraph=True, backend="aot_eager")
    for compiled_value, eager in zip(graph(time), path(time), strict=True):
        torch.testing.assert_close(compiled_value, eager)


SHIFTS = torch.linspace(0, 0.5, 50)
TIMED = [
    stk.ProbabilityFlow(steps=4),
    stk.ProbabilityFlow("dopri5"),
    stk.ReverseSDE(steps=4),
    stk.AnnealedLangevin(3),
]


@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.parametrize("solver", TIMED, ids=["flow", "dopri5", "sde", "annealed"])
def test_networks_on_timesteps_are_compiled(solver):
    """Without a warning, which the tests take for an error; the network looks its timestep up in a table."""
    field = stk.from_timesteps(lambda x, k: x * SHIFTS.to(x)[k][:, None], TABLE, (2,))
    run = {"chains": 3, "dtype": torch.float64, "seed": 1}
    eager, fast = (stk.sample(field, solver, compile=c, **run).final for c in (False, True))
    torch.testing.assert_close(fast, eager, rtol=1e-6, atol=1e-6)


class Another:
    """A part of torch as another release has it."""

    known = "own"


@pytest.mark.parametrize("name", ["known", "not there"])
def test_what_is_replaced_is_put_back_and_what_is_not_there_stays_away(name):
    before = dict(vars(Another))
    with compiling._replaced(Another, name, lambda own: f"by ours for {own}"):
        with compiling._replaced(Another, name, lambda own: f"again for {own}"):
            inside = dict(vars(Another))
        assert vars(Another).keys() == before.keys()
    assert inside.keys() == before.keys()
    assert (inside["known"] == "again for own") == (name == "known")
    assert vars(Another) == before


BODIES = {
    "its input": lambda f, carry: carry,
    "its input the other way round": lambda f, carry: carry[::-1],
    "one tensor twice": lambda f, carry: (carry[0] + 1, carry[0]),
    "views of one": lambda f, carry: (carry[1].T, carry[1]),
    "in another order": lambda f, carry: tuple((c + 1).T.contiguous().T for c in carry),
    "expanded": lambda f, carry: tuple(c[:1].expand(3, 3) for c in carry),
}


@pytest.mark.parametrize("body", BODIES)
def test_what_a_loop_of_the_graph_carries_is_in_memory_of_its_own(body, monkeypatch):
    """Whatever the body returns: torch refuses a loop whose carry shares memory, and it may write there."""
    seen = []

    def loop(goes_on, once, carry):
        while bool(goes_on(*carry)):
            after = once(*carry)
            seen.append((carry, after))
            carry = after
        return carry

    monkeypatch.setattr(compiling, "while_loop", loop)
    start = torch.arange(9.0).reshape(3, 3), torch.ones(3, 3)
    found = compiling._loop(BODIES[body], None, start, 3, (), {})
    assert len(seen) == 3
    assert not {c.data_ptr() for c in start} & {c.data_ptr() for c in seen[0][0]}
    for before, after in seen:
        assert all(c.is_contiguous() for c in (*before, *after))
        places = [c.untyped_storage().data_ptr() for c in (*before, *after)]
        assert len({*places}) == len(places)
    expected = start
    for _ in range(3):
        expected = BODIES[body](None, expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


class Parts:
    """What compiles parts with one field, and notes what it is given."""

    def __init__(self, own):
        self.own, self.given = own, []

    def serves(self, field):
        return field is self.own

    def call(self, function, field, *rows, **same):
        self.given.append((rows, same))
        return function(field, *rows, **same)

    def iterate(self, body, field, carry, times, *rows, **same):
        self.given.append(((carry, times, *rows), same))
        for _ in range(times):
            carry = body(field, carry, *rows, **same)
        return carry


@pytest.mark.parametrize("same", [{}, {"factor": 3.0}, {"factor": 3.0, "shift": torch.ones(2)}])
@pytest.mark.parametrize("served", [True, False, None])
def test_who_compiles_parts_is_given_all_that_they_are_and_no_others(served, same):
    """Rows by their place, and what is the same for all chains by name; parts with another field are plain calls."""

    def body(field, carry, row, factor=1.0, shift=0.0):
        return (carry[0] * factor + row + shift,)

    own, other = object(), object()
    x, row, compiler = torch.arange(2.0), torch.ones(2), Parts(own)
    field, marked = own if served else other, compiling.part(body)
    with compiling.parts_compiled_by(None if served is None else compiler):
        once = marked(field, (x,), row, **same)
        twice = iterate(body, field, (x,), 2, row, **same)
    assert torch.equal(once[0], body(field, (x,), row, **same)[0])
    assert torch.equal(twice[0], body(field, once, row, **same)[0])
    assert len(compiler.given) == (2 if served else 0)
    if served:
        (called, named), (repeated, again) = compiler.given
        assert called[1] is row
        assert (repeated[1], repeated[2]) == (2, row) or torch.equal(repeated[2], row)
        assert named.keys() == again.keys() == same.keys()


OF_OTHERS = {"torch": torch.__file__, "ours": compiling.__file__, "python": os.__file__}


@pytest.mark.parametrize("told", ["frames", "text"])
@pytest.mark.parametrize("others", [*OF_OTHERS, "all", "none"])
@pytest.mark.parametrize("theirs", [(), (0,), (1,), (0, 2), (2, 3)])
def test_the_place_of_a_failure_is_the_last_line_of_the_users(told, others, theirs):
    """Wherever it lies among lines of torch, of the package and of Python; else the last of any."""
    known = [*OF_OTHERS.values()] if others == "all" else [OF_OTHERS.get(others, "/of/theirs.py")]
    files = ["/of/theirs.py" if i in theirs else known[i % len(known)] for i in range(4)]
    frames = [traceback.FrameSummary(file, 10 + i, f"f{i}") for i, file in enumerate(files)]
    error = RuntimeError("it failed")
    if told == "frames":
        error.real_stack = frames
    else:
        lines = [f'  File "{f.filename}", line {f.lineno}, in {f.name}' for f in frames]
        error = RuntimeError("\n".join(["it failed", *lines]))
    last = max(theirs, default=3) if others != "none" else 3
    assert compiling._place(error) == f"{files[last]}:{10 + last} in f{last}"
    assert compiling._place(RuntimeError("it failed")) == "the compiler"
