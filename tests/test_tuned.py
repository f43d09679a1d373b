"""What warmup tuned is given back to a solver, which then goes on without warmup."""

import dataclasses
import math
import pickle
from dataclasses import replace

import pytest
import torch

import scoretk as stk
from scoretk.solvers.warmup import tuned
from tests.marks import slow_but, slow_rows_but

SCALES = torch.tensor([1.0, 10.0, 0.1])
FIELD = stk.Energy(lambda x: (x / SCALES.to(x)).square().sum(1) / 2, (3,))
SOLVERS = {
    "HMC": stk.HMC(leapfrogs=4),
    "HMC dense": stk.HMC(leapfrogs=4, metric="dense"),
    "ChEES": stk.ChEES(most=20),
    "NUTS": stk.NUTS(max_depth=3),
    "MCLMC": stk.MCLMC(),
    "AdjustedMCLMC": stk.AdjustedMCLMC(most=10),
    "PreconditionedLangevin": stk.PreconditionedLangevin(),
    "unadjusted": stk.PreconditionedLangevin(adjusted=False),
    "ParallelTempering": stk.ParallelTempering(stk.HMC(leapfrogs=2, metric="none"), replicas=3),
}
RUN = {"chains": 8, "seed": 1}


def warmed(solver, **options):
    return stk.sample(FIELD, solver, steps=4, warmup=60, **(RUN | options))


@pytest.mark.parametrize("name", slow_but(SOLVERS, *sorted(SOLVERS.keys() - {"NUTS"})))
def test_a_run_goes_on_with_what_was_tuned(name, tmp_path):
    solver = SOLVERS[name]
    first = warmed(solver)
    again = solver.tuned_by(stk.Draws.load(first.save(tmp_path / "d.safetensors")))
    more = stk.sample(FIELD, again, init=first.final, steps=6, warmup=0, seed=2)
    assert more.ok.all()
    assert more.tuned.keys() == first.tuned.keys()
    assert all(torch.equal(more.tuned[n], first.tuned[n]) for n in first.tuned)
    assert all((first.tuned[n] != 0).any() for n in first.tuned)  # none that is of no use
    third = stk.sample(
        FIELD, solver.tuned_by(more), init=first.final, steps=6, seed=2
    )  # warmup is 0 by itself
    assert torch.equal(third.x, more.x)


GIVEN = {
    "HMC": (stk.HMC(leapfrogs=3, metric="none"), ("step_size",)),
    "NUTS": (stk.NUTS(metric="none", max_depth=3), ("step_size",)),
    "ChEES": (stk.ChEES(metric="none", most=20), ("step_size", "length")),
    "MCLMC": (stk.MCLMC(metric="none"), ("step_size", "length")),
}


@pytest.mark.parametrize(
    ("mutant", "name"),
    slow_rows_but(
        [(mutant, name) for mutant in (False, True) for name in GIVEN],
        *((False, name) for name in ("HMC", "ChEES", "MCLMC")),
        *((True, name) for name in ("HMC", "ChEES")),
    ),
)
def test_it_is_the_solver_with_these_settings_to_the_bit(name, mutant, monkeypatch):
    """The mutant: what was tuned is not put into the state."""
    solver, names = GIVEN[name]
    first = warmed(solver)
    same = replace(solver, **{n: float(first.tuned[n]) for n in names})
    if mutant:
        monkeypatch.setattr(
            tuned.Tuned, "init", lambda self, field, x, noise: self.solver.init(field, x, noise)
        )
    runs = [
        stk.sample(FIELD, s, init=first.final, steps=5, seed=2).x
        for s in (same, solver.tuned_by(first))
    ]
    assert torch.equal(*runs) is not mutant


def test_what_was_tuned_is_enough():
    """As the draws give it, and as files and pickles do."""
    first = warmed(SOLVERS["HMC"])
    run = {"init": first.final, "steps": 4, "seed": 1, "chains": 8}  # the seed that led there
    whole = stk.sample(FIELD, SOLVERS["HMC"].tuned_by(first), **run)
    for values in (first.tuned, pickle.loads(pickle.dumps(first)).tuned):
        assert torch.equal(stk.sample(FIELD, SOLVERS["HMC"].tuned_by(values), **run).x, whole.x)
    with pytest.raises(stk.InvalidArgument, match=r"NUTS whose warmup.*means another thing"):
        stk.NUTS().tuned_by(first.tuned)
    with pytest.raises(stk.InvalidArgument, match=r"HMC\(\)\.tuned_by"):
        stk.sample(FIELD, stk.HMC(), warmup=first.tuned, chains=8)
    given = stk.sample(FIELD, stk.MALA(0.1), steps=2, chains=4)
    with pytest.raises(stk.InvalidArgument, match="nothing tuned"):
        stk.MALA().tuned_by(given.tuned)
    with pytest.raises(stk.InvalidArgument, match=r"draws\.tuned"):
        stk.HMC().tuned_by(dict(first.tuned))


@pytest.mark.thorough
def test_scales_are_used():
    first = stk.sample(FIELD, stk.HMC(), chains=64, steps=1, warmup=200)
    assert first.tuned["scale"].log().sub(SCALES.log()).abs().max() < 0.3
    more = stk.sample(FIELD, stk.HMC().tuned_by(first), init=first.final, steps=20)
    assert more.stats["accept"].mean() > 0.6


def test_settings_that_nothing_tunes_may_be_others():
    first = warmed(stk.HMC(leapfrogs=4))
    more = stk.sample(FIELD, stk.HMC(leapfrogs=7).tuned_by(first), init=first.final, steps=3)
    assert more.cost["score"] == 8 * (1 + 3 * 7)


@pytest.mark.thorough
def test_what_does_not_fit_is_refused():
    first = warmed(stk.HMC(leapfrogs=4))
    for draws in (
        stk.sample(FIELD, stk.ULA(0.001), chains=2, steps=2),
        warmed(stk.NUTS(max_depth=3)),
        warmed(stk.HMC(0.1, metric="none")),
    ):
        with pytest.raises(
            stk.InvalidArgument, match=r"draws of a HMC whose warmup has tuned something"
        ):
            stk.HMC().tuned_by(draws)
    for other in (3, None, {"step_size": torch.ones(())}):
        with pytest.raises(stk.InvalidArgument, match=r"as scoretk\.sample returns them"):
            stk.HMC().tuned_by(other)
    for none in (0.0, -0.1):
        draws = dataclasses.replace(first, tuned=first.tuned | {"step_size": torch.tensor(none)})
        with pytest.raises(stk.InvalidArgument, match="positive numbers"):
            stk.HMC().tuned_by(draws)
    for spoilt in (torch.tensor(torch.nan), torch.tensor(torch.inf), 0.5):
        draws = dataclasses.replace(first, tuned=first.tuned | {"step_size": spoilt})
        with pytest.raises(stk.InvalidArgument, match="finite numbers"):
            stk.HMC().tuned_by(draws)
    factor = torch.eye(3)
    factor[2, 2] = 0.0
    for kernel, scale in (
        (stk.HMC(leapfrogs=4), torch.tensor([1.0, 0.0, 1.0])),
        (stk.HMC(leapfrogs=4), -first.tuned["scale"]),
        (stk.HMC(leapfrogs=4, metric="dense"), factor),
    ):
        draws = dataclasses.replace(first, tuned=first.tuned | {"scale": scale})
        with pytest.raises(stk.InvalidArgument, match="positive numbers"):
            kernel.tuned_by(draws)
    with pytest.raises(stk.InvalidArgument, match="tuned values of shapes"):
        stk.sample(
            stk.Energy(lambda x: x.square().sum(1), (2,)),
            stk.HMC().tuned_by(first),
            chains=2,
            steps=2,
        )
    with pytest.raises(stk.InvalidArgument, match="the same metric"):
        stk.sample(FIELD, stk.HMC(metric="dense").tuned_by(first), chains=2, steps=2)


@pytest.mark.thorough
def test_it_goes_on_from_a_checkpoint_and_no_other_scales_take_it_up(tmp_path):
    first, other = warmed(stk.HMC(leapfrogs=4)), warmed(stk.HMC(leapfrogs=4), seed=5)
    run = {"init": first.final, "seed": 2, "checkpoint": tmp_path / "c"}
    stk.sample(FIELD, stk.HMC().tuned_by(first), steps=5, **run)
    more = stk.sample(FIELD, stk.HMC().tuned_by(first), steps=9, **run)
    assert torch.equal(
        more.x, stk.sample(FIELD, stk.HMC().tuned_by(first), init=first.final, steps=9, seed=2).x
    )
    with pytest.raises(stk.CheckpointError, match=r"there, .* here"):
        stk.sample(FIELD, stk.HMC().tuned_by(other), steps=9, **run)


@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, on its way through the compiler
@pytest.mark.parametrize("name", ["HMC", "ChEES"])
def test_compiled_it_agrees_with_eager(name):
    first = warmed(SOLVERS[name])
    eager, compiled = (
        stk.sample(FIELD, SOLVERS[name].tuned_by(first), init=first.final, steps=16, compile=c).x
        for c in (False, True)
    )
    assert torch.allclose(eager, compiled, rtol=1e-3, atol=1e-3)


# --- a run that goes on has noise of its own


def moves(draws, start):
    """What led each chain from one draw to the next, `(chains, steps, *event)`."""
    way = torch.cat([start[:, None], draws.x], 1)
    return way.diff(dim=1).flatten(1)


@pytest.mark.parametrize("mutant", [False, True])
def test_a_run_that_goes_on_with_the_same_seed_is_not_moved_as_before(mutant, monkeypatch):
    """On a flat target every proposal is accepted, so that moves are the noise. The mutant: the noise once more."""
    if mutant:
        monkeypatch.setattr(tuned.Before, "continued_by", lambda *_: 0)
    flat = stk.Energy(lambda x: 0 * x.sum(1), (5,))
    solver = stk.MALA()
    first = stk.sample(flat, solver, chains=8, warmup=40, steps=40, seed=3)
    twice = {"warmup": 0, "steps": 40, "seed": 3}
    second = stk.sample(flat, solver.tuned_by(first), init=first.final, **twice)
    third = stk.sample(flat, solver.tuned_by(second), init=second.final, **twice)
    part = stk.sample(
        flat, solver.tuned_by(first), init=first.final[2:5], chains=range(2, 5), **twice
    )
    again = stk.sample(flat, solver.tuned_by(first), init=first.final, **twice)
    assert torch.equal(second.x, again.x)
    assert torch.equal(part.x, second.x[2:5])
    a, b = moves(second, first.final), moves(third, second.final)
    alike = float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
    assert (abs(alike) < 6 / math.sqrt(a.numel())) is not mutant
    if not mutant:
        assert (second.provenance["continues"], third.provenance["continues"]) == (1, 2)
    fresh = stk.sample(flat, solver.tuned_by(first), init=first.final, **(twice | {"seed": 4}))
    assert "continues" not in fresh.provenance
