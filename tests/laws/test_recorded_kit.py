"""What the kit for others asks of a model or a solver, and demands of its answers, is what it was (`tests/recorded.py`).

A law that asks less, or bears more, finds fewer wrong models and solvers, and still finds those that are wrong enough.
"""

import math

import pytest
import torch
from torch import distributions as td

import scoretk as stk
from scoretk.conformance import NotApplicable, Violation, kit, laws, solver_kit, solver_laws
from scoretk.conformance.bench import bench_for, steep_for
from scoretk.conformance.subject import Case, Subject
from scoretk.fields.protocols import offers
from scoretk.plugins import describe
from tests.odd import WAVE, WELL, network, told
from tests.recorded import recorded


class Together:
    """A field with a gradient of its own, a decoder, and a condition."""

    event_shape = (2,)
    provides = frozenset({"energy", "score", "log_prob", "decode", "draw"})

    def energy(self, x, label):
        return (x - label[:, None]).square().sum(1) / 2

    def score(self, x, label):
        return label[:, None] - x

    def energy_and_grad(self, x, label):
        return self.energy(x, label), -self.score(x, label)

    def log_prob(self, x, label):
        return -self.energy(x, label) - math.log(2 * math.pi)

    def decode(self, z, label):
        return z.repeat(1, 2)

    def draw(self, n, noise):
        return noise.normal(0, stk.Stream.START, (2,))


LABEL = {"label": torch.tensor([0.5, -1.0, 2.0])}
SUBJECTS = {
    "an energy": (WELL, {}),
    "a law": (stk.from_distribution(td.Independent(td.Normal(torch.zeros(2), 2.0), 1)), {}),
    "in time": (WAVE, {}),
    "a velocity": (stk.Velocity(network, (2, 1)), {}),
    "with a condition": (Together(), LABEL),
    "scores that are apart": (stk.Score(lambda x: -x + x.new_tensor(1e-4), (2,)), {}),
}
CASES = {Case(3): torch.float32, Case(2, 7, 0.3, 0.9): torch.float64}


def asked_of(monkeypatch, *modules):
    """All that is demanded from now on, in order, in the words and numbers of the demand."""
    seen = []
    for module in modules:
        for name in ("close", "demand"):
            if hasattr(module, name):
                before = getattr(module, name)

                def noted(*given, before=before, name=name, **named):
                    # a tolerance is told, and so are the numbers that are held to it
                    shown = [told(v) for v in given]
                    seen.append((name, shown, named))
                    return before(*given, **named)

                monkeypatch.setattr(module, name, noted)
    return seen


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_what_a_law_of_models_asks(law, monkeypatch):
    seen, ask = asked_of(monkeypatch, laws), Subject.__call__

    def noted(self, name, x, t=None, rows=None):
        seen.append((name, x, told(t), rows))
        return ask(self, name, x, t, rows)

    monkeypatch.setattr(Subject, "__call__", noted)
    for name, (field, cond) in SUBJECTS.items():
        for case, dtype in CASES.items():
            subject = Subject(field, offers(field), dtype, cond=cond)
            try:
                with torch.no_grad():
                    law(subject, case)
            except (NotApplicable, Violation) as found:
                seen.append((name, type(found).__name__, str(found)))
    recorded(f"law of models {law.__name__}", seen)


OF_SOLVERS = ("ula", "probability-flow", "gibbs-with-gradients")


@pytest.mark.parametrize("name", OF_SOLVERS)
def test_what_the_laws_of_solvers_demand(name, monkeypatch):
    """But for the law of what stays exact, which takes long and has tests of its own."""
    seen = asked_of(monkeypatch, solver_laws)
    for check in solver_kit.SOLVER_CHECKS:
        if check.run is not solver_laws.invariant:
            result = check.result(stk.solvers.EXAMPLES[name])
            seen.append((result.check, result.status, result.detail))
    recorded(f"laws of solvers of {name}", seen)


def test_on_which_fields_solvers_are_tried():
    found = {
        name: [
            (repr(w.inner), sorted(w.provides), w.edge)
            for w in (*bench_for(solver), *bench_for(solver, 0.5), *steep_for(solver))
        ]
        for name, solver in stk.solvers.EXAMPLES.items()
    }
    recorded("benches", found)


def test_each_check_of_solvers_takes_what_the_kit_takes(monkeypatch):
    """A solver, its name, and its full name, alone as in the report of all."""
    seen = []
    noted = solver_kit.SolverCheck(seen.append)
    monkeypatch.setattr(solver_kit, "SOLVER_CHECKS", (noted,))
    for form in (stk.solvers.EXAMPLES["mala"], "mala", "scoretk/mala"):
        for ask in (noted, noted.result, solver_kit.check_solver):
            ask(form)
            assert isinstance(seen[-1], stk.MALA)
    for ask in (noted, solver_kit.check_solver):
        with pytest.raises(stk.UnknownName):
            ask("no such")
        with pytest.raises(stk.InvalidArgument):
            ask(3)


def test_each_check_of_models_takes_what_the_kit_takes(monkeypatch):
    seen = []
    noted = kit.Check(lambda subject, case: seen.append(subject))
    monkeypatch.setattr(kit, "CHECKS", (noted,))
    monkeypatch.setattr(kit, "EXAMPLES", 1)
    spec = describe("ring-mixture")
    made = stk.load("ring-mixture")
    for form in (made, "ring-mixture", "scoretk/ring-mixture", spec):
        for ask in (noted, kit.check_model):
            seen.clear()
            ask(form)
            assert {type(s.field) for s in seen} == {type(made)}
            assert {s.claims for s in seen} == {offers(made)}
    for ask in (noted, kit.check_model):
        with pytest.raises(stk.UnknownName):
            ask("no such")
        with pytest.raises(stk.InvalidArgument):
            ask(3)
