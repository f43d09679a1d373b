"""The tape gives a compiled step the noise that the step asked for, whatever indices and kinds a solver asks with."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pytest
import torch

import scoretk as stk
from scoretk.core.compiling import compiled
from scoretk.fields.resolve import resolve
from scoretk.run import tape as tapes
from scoretk.run.tape import Request, Tape, listen

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # inductor's own


FIELD = stk.Score(lambda x: -x, (2,))


class State(NamedTuple):
    x: torch.Tensor
    step: torch.Tensor


@dataclass(frozen=True)
class Asker:
    """A solver that adds up noise asked for in awkward ways."""

    needs = frozenset({"score"})
    timed = False
    capturable = True
    init_cost: ClassVar = {}
    step_cost: ClassVar = {}

    def init(self, field, x, noise):
        return State(x, torch.zeros((), dtype=torch.int64))

    def step(self, field, state, noise):
        shape, k = tuple(state.x.shape[1:]), state.step
        plain = noise.normal(k, stk.Stream.PROPOSAL, shape, state.x.dtype)
        twice = noise.uniform(k, 20, (), state.x.dtype) + noise.uniform(k, 20, (), state.x.dtype)
        ahead = noise.normal(2 * k + 1, stk.Stream.CORRECTION, shape, state.x.dtype)
        sign = noise.rademacher(k, stk.Stream.PROBE, shape, state.x.dtype)
        return State(state.x + plain + twice[:, None] + ahead + sign, k + 1), {"sum": twice}


def test_listening_finds_what_is_asked_for_the_steps_own_index():
    noise = stk.Noise(3, 4)
    state = Asker().init(None, torch.zeros(4, 2), noise)._replace(step=torch.tensor(5))
    heard = listen(Asker(), None, state, noise, 5)
    assert heard.asked == (
        Request("normal", stk.Stream.PROPOSAL, (2,), torch.float32),
        Request("rademacher", stk.Stream.PROBE, (2,), torch.float32),
        Request("uniform", 20, (), torch.float32),
    )
    assert not heard.is_all
    field = resolve(FIELD, {"score"})
    start = stk.ULA(0.1).init(field, torch.zeros(4, 2), noise)
    assert listen(stk.ULA(0.1), field, start, noise, 0).is_all


@dataclass(frozen=True)
class OfTwoSteps(Asker):
    """A solver that asks for a number of its own step, and for the same kind of another step."""

    ahead: int = 1

    def step(self, field, state, noise):
        k, shape, dtype = state.step, tuple(state.x.shape[1:]), state.x.dtype
        u = noise.uniform(k, stk.Stream.PROBE, (), dtype)[:, None]
        one, other = (
            noise.normal(i, stk.Stream.PROPOSAL, shape, dtype) for i in (k, k + self.ahead)
        )
        return State(state.x + u * (one - other), k + 1), {}


@pytest.mark.parametrize("ahead", [1, -1, 7])
def test_a_kind_that_is_asked_for_another_step_too_is_left_to_the_graph(ahead):
    noise = stk.Noise(3, 4)
    state = State(torch.zeros(4, 2), torch.tensor(9))
    heard = listen(OfTwoSteps(ahead=ahead), None, state, noise, 9)
    assert heard.asked == (Request("uniform", stk.Stream.PROBE, (), torch.float32),)
    assert not heard.is_all


@pytest.mark.compiled
@pytest.mark.parametrize("keep", ["all", "last", "moments"])
def test_compiled_with_a_tape_is_the_eager_run(keep):
    run = {
        "chains": 3,
        "steps": 30,
        "warmup": 5,
        "thin": 3,
        "keep": keep,
        "seed": 8,
        "dtype": torch.float64,
    }
    eager, compiled = (stk.sample(FIELD, Asker(), compile=c, **run) for c in (False, True))
    torch.testing.assert_close(compiled.final, eager.final)
    for name in ("mean", "var") if keep == "moments" else ("x",):
        torch.testing.assert_close(getattr(compiled, name), getattr(eager, name))
    torch.testing.assert_close(compiled.stats["sum"], eager.stats["sum"])


@pytest.mark.compiled
@pytest.mark.parametrize("shape", [(), (3, 5)])
@pytest.mark.parametrize("method", ["normal", "uniform", "rademacher"])
def test_a_tape_reads_the_noise_of_any_window(method, shape):
    noise = stk.Noise(1, 6, dtype=torch.float64)
    tape = Tape(noise, (Request(method, 7, shape, torch.float64),), 8)
    for step in (0, 8, 8 * 1000, 16):
        (values,) = tape.read(step)
        exact = torch.stack([getattr(noise, method)(step + i, 7, shape) for i in range(8)])
        torch.testing.assert_close(values, exact, rtol=1e-12, atol=1e-12)


class Adder:
    def __init__(self, amount):
        self.amount = amount

    def add(self, x):
        return x + self.amount


@pytest.mark.compiled
@pytest.mark.parametrize(
    "key", [lambda amount: amount, lambda amount: "one key"], ids=["own key", "one key"]
)
def test_many_kinds_of_runs_do_not_use_up_the_compilers_limit(key):
    x = torch.zeros(2)
    for amount in [*range(10), 3]:  # the limit for one function is 8
        torch.testing.assert_close(compiled(Adder(float(amount)).add, key(amount))(x), x + amount)


@pytest.mark.compiled
def test_an_equal_run_does_not_compile_again():
    def once():
        field = stk.Score(lambda x: -2 * x, (3,))
        return stk.sample(field, stk.ULA(0.07), chains=2, steps=16, keep="last", compile=True)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    once()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it was compiled at all
    with torch.compiler.set_stance("fail_on_recompile"):
        once()


@pytest.mark.parametrize("shape", [(), (3, 5)])
@pytest.mark.parametrize("method", ["normal", "uniform", "rademacher"])
def test_a_tape_that_is_not_compiled_has_the_bits_of_the_noise(monkeypatch, method, shape):
    monkeypatch.setattr(tapes, "COMPILED_NOISE", False)
    noise = stk.Noise(1, 6, dtype=torch.float32)
    tape = Tape(noise, (Request(method, 7, shape, torch.float32),), 8)
    for step in (0, 8, 8 * 1000, 16):
        (values,) = tape.read(step)
        exact = torch.stack([getattr(noise, method)(step + i, 7, shape) for i in range(8)])
        assert torch.equal(values, exact)
        (most,), count = tape.read_most(step + 3, 2**40)
        assert 0 < count == len(most) <= tape.steps
        assert most.storage_offset() == 0  # or a graph would be for those that are, or are not
        assert torch.equal(most[:5], exact[3:])
