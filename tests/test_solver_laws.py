"""`check_solver`: this package's solvers obey the laws, and each law catches the wrong solver that it is there for."""

import ast
import json
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, NamedTuple

import pytest
import torch

import scoretk as stk
from scoretk.cli import main
from scoretk.conformance import (
    SOLVER_CHECKS,
    Violation,
    check_solver,
    parametrize_with_solver_checks,
    solver_laws,
)
from scoretk.conformance.bench import Enumerated, Watched
from scoretk.core.streams import Stream
from scoretk.plugins.solvers import SOLVER_PROTOCOL
from scoretk.run import settle
from scoretk.solvers import EXAMPLES
from scoretk.solvers.parts.metropolis import metropolis
from tests.marks import slow_but

CHECKS = {check.name: check for check in SOLVER_CHECKS}
NOT_EXACT = {
    "ula",
    "underdamped",
    "mclmc",
    "annealed-langevin",
    "ais",
    "smc",
    "reverse-sde",
    "probability-flow",
    "split-gibbs",
    "daps",
}


class WalkState(NamedTuple):
    x: torch.Tensor
    energy: torch.Tensor
    step: torch.Tensor


@dataclass(frozen=True)
class Walk:
    """Random-walk Metropolis, as a third party would write it; the parts that wrong versions get wrong are methods."""

    size: float = 0.8

    needs: ClassVar = frozenset({"energy"})
    timed: ClassVar = False
    capturable: ClassVar = True
    init_cost: ClassVar = {"energy": 1}
    step_cost: ClassVar = {"energy": 1}

    def init(self, field, x, noise):
        return WalkState(x, field.energy(x), torch.zeros((), dtype=torch.int64))

    def jump(self, state, noise):
        return self.size * noise.normal(
            state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype
        )

    def energy(self, field, x):
        return field.energy(x)

    def log_ratio(self, state, new):
        return state.energy - new.energy

    def step(self, field, state, noise):
        x = state.x + self.jump(state, noise)
        new = WalkState(x, self.energy(field, x), state.step + 1)
        chosen, accept = metropolis(state, new, self.log_ratio(state, new), state.step, noise)
        return chosen, {"accept": accept}


class UnknownNeed(Walk):
    needs = frozenset({"energy", "gradient"})


class Unsaid(Walk):
    init_cost = None


class NumberInInfo(Walk):
    def step(self, field, state, noise):
        new, info = super().step(field, state, noise)
        return new, {"accept": float(info["accept"].mean())}


class OtherKind(Walk):
    def step(self, field, state, noise):
        new, info = super().step(field, state, noise)
        return new._replace(energy=new.energy.float()), info


class InPlace(Walk):
    def step(self, field, state, noise):
        new, info = super().step(field, state, noise)
        state.x.copy_(new.x)
        return new, info


class InPlaceStart(Walk):
    def init(self, field, x, noise):
        return super().init(field, x.mul_(1.5), noise)


class OwnNoise(Walk):
    def jump(self, state, noise):
        return self.size * torch.randn_like(state.x)


class Seeds(Walk):
    def jump(self, state, noise):
        torch.manual_seed(int(state.step))
        return super().jump(state, noise)


@dataclass(frozen=True)
class Remembers(Walk):
    """Its step sizes shrink by a memory of its own."""

    seen: list = field(default_factory=list)

    def jump(self, state, noise):
        self.seen.append(1)
        return super().jump(state, noise) / len(self.seen)


class OfTheBatch(Walk):
    def jump(self, state, noise):
        return super().jump(state, noise) * state.x.std()


class Counter(Walk):
    """Numbers its chains by their place in the batch."""

    def log_ratio(self, state, new):
        return super().log_ratio(state, new) - 0.1 * (torch.arange(len(new.x)) % 3)


class OfTheRejected(Walk):
    """Its chains wait for each other where most are rejected."""

    def step(self, field, state, noise):
        new, info = super().step(field, state, noise)
        waits = info["accept"].mean() < 0.2
        return (state._replace(step=new.step) if waits else new), info


class NaNReplaced(Walk):
    def energy(self, field, x):
        return field.energy(x).nan_to_num(0.0)


class Uncounted(Walk):
    def energy(self, field, x):
        return (field.energy(x) + field.energy(x)) / 2


class Overcounted(Walk):
    step_cost: ClassVar = {"energy": 2}


class AlwaysAccepts(Walk):
    def log_ratio(self, state, new):
        return torch.zeros_like(new.energy)


class WrongTemperature(Walk):
    def log_ratio(self, state, new):
        return 0.9 * super().log_ratio(state, new)


class Stands(Walk):
    def jump(self, state, noise):
        return 0 * super().jump(state, noise)


class Drifts(Walk):
    def jump(self, state, noise):
        return super().jump(state, noise) + 0.05


class Foresees(Walk):
    """A walk that is captured when it is known how far it jumps, which the wrong versions say wrongly."""

    capturable: ClassVar = False

    def step(self, field, state, noise):
        return Walk(self.size * (1 + int(state.step) % 2)).step(field, state, noise)

    def capturable_ahead(self, state):
        return lambda step: Walk(self.size * (1 + step % 2))


class ForeseesLate(Foresees):
    def capturable_ahead(self, state):
        return lambda step: Walk(self.size * (1 + (step + 1) % 2))


class ForeseesAnew(Foresees):
    """Each time another object that equals none, so that there would be no end of functions."""

    def capturable_ahead(self, state):
        return lambda step: Unequal(self.size * (1 + step % 2))


class Unequal(Walk):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


WRONG = {
    "protocol": (UnknownNeed(), Unsaid()),
    "tensors": (NumberInInfo(), OtherKind()),
    "unmutated": (InPlace(), InPlaceStart()),
    "quiet": (OwnNoise(), Seeds()),
    "seeded": (OwnNoise(), Remembers()),
    "batched": (OfTheBatch(), Counter(), OfTheRejected()),
    "flagged": (NaNReplaced(),),
    "counted": (Uncounted(), Overcounted()),
    "foreseen": (ForeseesLate(), ForeseesAnew()),
    "invariant": (AlwaysAccepts(), WrongTemperature(), Stands(), Drifts()),
}


def test_a_sound_kernel_of_ones_own_obeys_every_law():
    results = check_solver(Walk())
    assert [r.check for r in results] == list(CHECKS) == list(WRONG)
    assert {r.status for r in results} == {"passed"}, [r for r in results if r.status != "passed"]
    assert all(r.law for r in results)


@pytest.mark.parametrize(
    ("law", "solver"),
    [(law, s) for law, wrong in WRONG.items() for s in wrong],
    ids=[f"{law}-{type(s).__name__}" for law, wrong in WRONG.items() for s in wrong],
)
def test_each_law_catches_its_wrong_solvers(law, solver):
    result = CHECKS[law].result(solver)
    assert result.status == "failed"
    assert result.detail


SAID_WRONGLY = {
    "needs": ({"energy"}, ("energy",), "energy", frozenset(), frozenset({"energy", "gradient"})),
    "timed": ("no", 2),
    "capturable": (None, 1, "yes"),
    "init_cost": (None, 1, {"log_prob": 1}, {"energy": -1}, {"energy": 1.0}, {"energy": True}),
    "step_cost": (None, 1, {"log_prob": 1}, {"energy": -1}, {"energy": 1.0}, {"energy": True}),
    "exact": ("yes", 1),
    "temperature": (0.0, -1.0),
    "varying": (("log_prob",), ("energy", "x")),
}
"""By attribute, values that say nothing that can be true of a solver."""
SAID_RIGHTLY = {
    "needs": (frozenset({"energy", "score"}), frozenset({"velocity"})),
    "timed": (True, None),
    "capturable": (False,),
    "init_cost": ({}, {"gibbs": 0, "energy": 2}),
    "step_cost": ({}, {"denoise": 1, "velocity": 2, "score": 0}),
    "exact": (False,),
    "temperature": (1e-3, 2.0),
    "varying": ((), ("score", "energy")),
}


def _saying(name, value):
    return type("Saying", (Walk,), {name: value})()


@pytest.mark.parametrize("name", SAID_WRONGLY)
def test_whatever_a_solver_says_of_itself_is_held_to_what_can_be_said(name):
    for value in SAID_WRONGLY[name]:
        with pytest.raises(Violation, match=f"^{name}: "):
            solver_laws.protocol(_saying(name, value))
    for value in SAID_RIGHTLY[name]:
        solver_laws.protocol(_saying(name, value))


@pytest.mark.parametrize("name", SOLVER_PROTOCOL)
def test_whatever_every_solver_has_is_asked_for(name):
    def lacking(self):
        raise AttributeError(name)

    with pytest.raises(Violation, match=f"^it has no {name}$"):
        solver_laws.protocol(_saying(name, property(lacking)))


class Reports(Walk):
    reports: ClassVar = ("accept", "energy")


class HalfFail(Walk):
    """A chain in seven fails where all others are exact, and says so."""

    def step(self, field, state, noise):
        new, info = super().step(field, state, noise)
        failed = noise.chains % 7 == 0
        status = torch.where(failed, int(stk.Status.NONFINITE), int(stk.Status.OK))
        return new, info | {"status": status}


class StatOfTheBatch(Walk):
    def step(self, field, state, noise):
        new, info = super().step(field, state, noise)
        return new, {"accept": info["accept"].mean().expand(len(new.x)).clone()}


class NoX(Walk):
    def init(self, field, x, noise):
        return Named(super().init(field, x, noise))


class Named(NamedTuple):
    walk: WalkState


class HalfEvent(Walk):
    def init(self, field, x, noise):
        return super().init(field, x, noise)._replace(x=x[:, :1])


class PlainTuple(Walk):
    def init(self, field, x, noise):
        return tuple(super().init(field, x, noise))


class NumberInState(Walk):
    def init(self, field, x, noise):
        return super().init(field, x, noise)._replace(step=0)


class SharedUnsaid(Walk):
    def init(self, field, x, noise):
        return super().init(field, x, noise)._replace(energy=torch.zeros(3))


class NoneForInfo(Walk):
    def step(self, field, state, noise):
        return super().step(field, state, noise)[0], None


class ForeseesAnother(Foresees):
    """The same kind of step each time, which is not the one that is made."""

    def capturable_ahead(self, state):
        return lambda step: Walk(0.5 * self.size)


BESIDE = {
    "tensors": (NoX(), HalfEvent(), PlainTuple(), NumberInState(), SharedUnsaid(), NoneForInfo()),
    "batched": (StatOfTheBatch(),),
    "counted": (Reports(),),
    "foreseen": (ForeseesAnother(),),
    "invariant": (HalfFail(),),
}
"""Further wrong solvers, by the law whose other demands they break."""


def _demands():
    """The lines of each demand of the laws, of what every law asks and says."""
    tree = ast.parse(Path(solver_laws.__file__).read_text())
    return [
        range(n.lineno, n.end_lineno + 1)
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "demand"
    ]


def _tripped(law, solver):
    """The lines of the laws that were on the way to a wrong solver's violation."""
    with torch.random.fork_rng(), pytest.raises(Violation) as caught:
        CHECKS[law].run(solver)
    walked = traceback.walk_tb(caught.value.__traceback__)
    return {n for f, n in walked if f.f_code.co_filename == solver_laws.__file__}


def test_every_demand_of_every_law_is_made_of_a_wrong_solver(monkeypatch):
    few = WRONG | {"invariant": (AlwaysAccepts(), Stands())}  # others break the same demand
    wrong = [(law, s) for some in (few, BESIDE) for law in some for s in some[law]]
    wrong += [("protocol", _saying(n, v)) for n, values in SAID_WRONGLY.items() for v in values]
    wrong += [("protocol", _saying("init", property(lambda self: getattr(self, "there is none"))))]
    lines = set().union(*(_tripped(law, solver) for law, solver in wrong))
    lost = SimpleNamespace(final=torch.full((2, 2), torch.nan))  # no kernel's chain ends there
    monkeypatch.setattr(solver_laws, "_run", lambda *given, **options: lost)
    lines |= _tripped("flagged", Walk())
    unmet = [d.start for d in _demands() if not lines & {*d}]
    assert not unmet


BROKEN_ANSWERS = {
    "a dict for a state": ("init", lambda state: state._asdict()),
    "a tuple for a state": ("init", tuple),
    "a position as an array": ("init", lambda state: state._replace(x=state.x.numpy())),
    "a position for half the event": ("init", lambda state: state._replace(x=state.x[:, :1])),
    "no info": ("step", lambda answer: answer[0]),
    "None for info": ("step", lambda answer: (answer[0], None)),
    "a number for a statistic": ("step", lambda answer: (answer[0], {"accept": 1.0})),
    "a statistic of other rows": ("step", lambda answer: (answer[0], {"accept": torch.ones(3)})),
    "another state": ("step", lambda answer: (tuple(answer[0]), answer[1])),
    "a position that shrinks": (
        "step",
        lambda answer: (answer[0]._replace(x=answer[0].x[:, :1]), answer[1]),
    ),
    "a position in float64": (
        "step",
        lambda answer: (answer[0]._replace(x=answer[0].x.double()), answer[1]),
    ),
}
"""What is no answer, by name: of which method, and what makes it of a right one."""


@dataclass(frozen=True)
class Misanswering(Walk):
    wrong: str = "no info"

    def _spoilt(self, call, answer):
        method, spoil = BROKEN_ANSWERS[self.wrong]
        return spoil(answer) if method == call else answer

    def init(self, field, x, noise):
        return self._spoilt("init", super().init(field, x, noise))

    def step(self, field, state, noise):
        return self._spoilt("step", super().step(field, state, noise))


BOWL = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))


@pytest.mark.parametrize("wrong", BROKEN_ANSWERS)
def test_what_is_no_answer_of_a_solver_is_refused_in_a_run(wrong):
    with pytest.raises(stk.InvalidArgument, match=r"^solver: expected"):
        stk.sample(BOWL, Misanswering(wrong=wrong), 8, steps=3)


def test_taken_as_it_comes_it_is_drawn_from_or_leaks(monkeypatch):
    monkeypatch.setattr(settle, "checked_step", lambda answer, old: answer)
    shrunk = stk.sample(BOWL, Misanswering(wrong="a position that shrinks"), 8, steps=1)
    assert shrunk.x.shape == (8, 1, 1)
    with pytest.raises(AttributeError):
        stk.sample(BOWL, Misanswering(wrong="None for info"), 8, steps=3)


@pytest.mark.parametrize("name", slow_but(EXAMPLES, "probability-flow", "discrete-langevin"))
def test_this_packages_solvers_obey_the_laws(name):
    results = {r.check: r for r in check_solver(EXAMPLES[name])}
    assert {n: r.detail for n, r in results.items() if r.status == "failed"} == {}
    assert {n for n, r in results.items() if r.status == "skipped"} == (
        {"invariant"} if name in NOT_EXACT else set()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    ["hmc", "chees", "nuts", "preconditioned-langevin", stk.ProbabilityFlow("dopri5")],
    ids=str,
)
def test_those_that_tune_themselves_too(solver):
    failed = [r for r in check_solver(solver) if r.status == "failed"]
    assert failed == []


def test_a_name_means_the_example_where_a_setting_has_no_default(capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "scoretk.conformance.solver_kit.SOLVER_CHECKS",
        (replace(CHECKS["protocol"], run=_told(seen)),),
    )
    assert [r.status for r in check_solver("ula")] == ["passed"]
    assert main(["check", "hmc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["law"] == "it is seen"
    assert main(["check", "scoretk/ula", "--set", "step_size=0.25"]) == 0
    assert "scoretk/ula: 1 passed, 0 failed, 0 skipped" in capsys.readouterr().out
    assert seen == [EXAMPLES["ula"], stk.HMC(), stk.ULA(0.25)]
    assert main(["check", "hmcc"]) == 2
    assert main(["check", "gaussian", "--set", "dim=2"]) == 2
    for wrong in (stk.HMC, 3):
        with pytest.raises(stk.InvalidArgument, match="a solver object or the name of one"):
            check_solver(wrong)


def _told(seen):
    def law(solver):
        """it is seen"""
        seen.append(solver)

    return law


@parametrize_with_solver_checks([Walk(1.0)])
def test_laws_as_tests(solver, check):
    if check.name != "invariant":
        check(solver)


@pytest.mark.parametrize("method", ["energy", "score", "velocity", "denoise", "gibbs"])
def test_a_watched_field_counts_answers_and_loses_the_same_rows_whatever_it_is_asked(method):
    """Beyond the edge all is NaN, which the number of the chain tells; elsewhere it is the field within."""

    class Inner:
        event_shape, theirs = (2,), 3

        def __getattr__(self, name):
            if name.startswith("_") or name not in (
                "energy",
                "score",
                "velocity",
                "denoise",
                "gibbs",
            ):
                raise AttributeError(name)
            wide = name != "energy"
            return lambda x, *rest: sum(rest) + (len(name) * x if wide else len(name) * x.sum(1))

    x, rows = torch.tensor([[0.5, 9.0], [1.5, 0.0], [2.5, 1.0]]), torch.tensor([4, 7, 9])
    rest = (2.0,) if method in ("velocity", "denoise", "gibbs") else ()
    watched = Watched(Inner(), frozenset({method}), edge=1.0)
    found = getattr(watched, method)(x, *rest, row=rows)
    sound = getattr(Inner(), method)(x, *rest)
    assert torch.equal(found[0], sound[0])
    assert bool(found[1:].isnan().all())
    assert found.shape == sound.shape
    assert watched.met == {7, 9}
    getattr(watched, method)(x[:2], *rest)
    assert watched.asked == {method: 5}
    assert watched.met == {7, 9}
    assert watched.theirs == 3


def test_a_law_of_states_is_drawn_by_its_energies():
    """Of any event shape, all states of all sites."""
    for shape in ((2,), (1, 2), (3, 1)):
        law = stk.Discrete(stk.Energy(lambda x: x.flatten(1).sum(1) / 2, shape), (0.0, 1.0, 4.0))
        law = Enumerated(law)
        x, probability = law._all
        sites = torch.Size(shape).numel()
        assert x.shape == (3**sites, *shape)
        assert len(x.unique(dim=0)) == 3**sites
        torch.testing.assert_close(
            probability, torch.softmax(-x.flatten(1).sum(1) / 2, 0).to(probability)
        )
        drawn = law.draw(4000, stk.Noise(3, 4000))
        shares = torch.stack([(drawn == value).double().mean() for value in (0.0, 1.0, 4.0)])
        exact = torch.softmax(-torch.tensor([0.0, 1.0, 4.0]) / 2, 0).double()
        assert bool(((shares - exact).abs() < 5 * (exact * (1 - exact) / 4000).sqrt()).all())
