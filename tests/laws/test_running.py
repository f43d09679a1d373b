"""What a run keeps, counts and masks, in plain numbers."""

import math

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.errors import Status
from scoretk.fields.resolve import resolve
from scoretk.models.targets.mixture import gaussian
from scoretk.run.checkpoint import weights_digest
from scoretk.run.moment import BEYOND_PATH, BEYOND_START, reach_of
from scoretk.run.record import KeepMoments, Record
from scoretk.run.schedule import Schedule
from scoretk.run.settle import settle
from scoretk.run.witness import contradiction, witness


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("thin", [1, 2, 5])
def test_a_schedule_keeps_the_last_of_each_stride(warmup, thin):
    schedule = Schedule(17 + warmup, warmup, thin)
    kept = [s for s in range(schedule.total) if schedule.keeps(s)]
    assert kept == list(range(warmup + thin - 1, schedule.total, thin))
    for step in range(schedule.total + 1):
        assert schedule.kept_before(step) == sum(s < step for s in kept)


def test_a_grid_counts_intervals_and_keeps_what_it_is_told():
    milestones = (False, True, True, False, True)
    schedule = Schedule(5, kept=(False,) * 4 + (True,), milestones=milestones)
    assert [schedule.interval(s) for s in range(6)] == [0, 0, 1, 2, 2, 3]
    assert [schedule.kept_before(s) for s in range(6)] == [0, 0, 0, 0, 0, 1]


def test_moments_are_those_of_all_draws():
    xs = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0)) * 3 + 5
    record, recorder = Record(), KeepMoments()
    for i, x in enumerate(xs):
        record = recorder.add(record, x, {"accept": x[:, 0]}, i, 7)
    torch.testing.assert_close(record.tensors["mean"], xs.double().mean(0))
    torch.testing.assert_close(record.tensors["m2"] / 6, xs.double().var(0))
    torch.testing.assert_close(record.stats["accept"], xs[:, :, 0].double().sum(0))
    kept, moments = (
        stk.sample(gaussian(2), stk.MALA(0.5), chains=5, steps=9, warmup=4, thin=2, seed=3, keep=k)
        for k in ("all", "moments")
    )
    torch.testing.assert_close(moments.mean, kept.x.double().mean(1))
    torch.testing.assert_close(moments.var, kept.x.double().var(1))
    torch.testing.assert_close(moments.stats["accept"], kept.stats["accept"].double().mean(1))


class State(tuple):
    _fields = ("x", "energy")
    x = property(lambda self: self[0])

    def __new__(cls, x, energy):
        return super().__new__(cls, (x, energy))


def test_settling_keeps_what_was_finite_and_marks_what_is_not():
    ok, bad, out, late = range(4)
    old = State(torch.zeros(4, 2), torch.zeros(4))
    new = State(torch.ones(4, 2), torch.ones(4))
    new.x[bad, 1] = torch.nan
    new.x[out] = 1e9
    status = torch.tensor([0, 0, 0, int(Status.MAX_STEPS)])
    failed_at = torch.tensor([-1, -1, -1, 2])
    reach = torch.full((4,), 1e7)
    info = {"accept": torch.ones(4)}
    state, status, failed_at, stats = settle(new, old, info, status, failed_at, 5, reach)
    assert state[0][:, 0].tolist() == [1, 0, 0, 0]
    assert state[1].tolist() == [1, 0, 0, 0]
    assert status.tolist() == [
        0,
        int(Status.NONFINITE),
        int(Status.DIVERGED),
        int(Status.MAX_STEPS),
    ]
    assert failed_at.tolist() == [-1, 5, 5, 2]
    assert stats["accept"].isnan().tolist() == [False, True, True, True]
    assert (ok, late) == (0, 3)


def test_what_a_run_costs_is_what_it_asks():
    calls = {"n": 0}

    def energy(x):
        calls["n"] += len(x)
        return (x**2).sum(1) / 2

    field = stk.Energy(energy, (2,))
    found = stk.sample(field, stk.MALA(0.3), chains=6, steps=10, warmup=4)
    assert found.cost["energy"] == found.cost["score"] == 6 * 15 == calls["n"]
    calls["n"] = 0
    found = stk.sample(
        field, stk.HMC(0.3, leapfrogs=3, metric="none"), chains=6, steps=10, warmup=4
    )
    assert found.cost["score"] == 6 * (1 + 14 * 3) == calls["n"]
    for solver in (
        stk.MALA(),
        stk.HMC(leapfrogs=3),
        stk.ChEES(),
        stk.MCLMC(),
        stk.NUTS(max_depth=3),
    ):
        calls["n"] = 0
        found = stk.sample(field, solver, chains=6, steps=2, warmup=20, seed=1)
        assert found.cost["score"] == calls["n"], solver


def test_starts_made_anew_are_wider_and_narrower_in_turn():
    asked = []

    def energy(x):
        asked.append(float(x.detach().std()))
        return (x**2).sum(1) * torch.nan

    field = stk.Energy(energy, (20,))
    with pytest.warns(UserWarning, match="found no start"):
        stk.sample(field, stk.ULA(1e-9), chains=16, steps=1, dtype=torch.float64)
    spreads = [1.0]
    for k in range(1, 9):
        spreads += [2.0**-k, 2.0**k]
    found = [s for s in asked if s > 0][: len(spreads)]
    np.testing.assert_allclose(np.log2(found), np.log2(spreads), atol=0.3)


def test_chains_of_later_batches_take_over_what_the_first_have_tuned():
    field = gaussian(2)
    run = {"chains": 12, "steps": 2, "seed": 2}
    warmup = stk.Warmup(steps=20, pilot=8)
    apart = stk.sample(field, stk.MALA(), warmup=warmup, batch=3, **run)
    whole = stk.sample(field, stk.MALA(), warmup=warmup, **run)
    assert torch.equal(apart.x, whole.x)
    assert torch.equal(apart.tuned["step_size"], whole.tuned["step_size"])


def test_a_digest_of_weights_follows_their_values():
    weight = torch.zeros(3)
    before = weights_digest([weight])
    assert weights_digest([weight]) == before
    weight[1] = 2.0
    assert weights_digest([weight]) != before
    with torch.no_grad():
        weight.data[2] = 1.0
    third = weights_digest([weight])
    assert third not in (before, weights_digest([torch.zeros(3)]))
    assert weights_digest([torch.zeros(3)]) == before


def test_a_witness_contradicts_another_field():
    solver = stk.MALA(0.1)
    fields = [stk.Energy(lambda x, k=k: k * (x**2).sum(1), (2,)) for k in (1.0, 1.0, 1.01)]
    bounds = [resolve(f, solver.needs, timed=False) for f in fields]
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    said = witness(bounds[0], solver.needs, x)
    assert contradiction(bounds[1], solver.needs, said) is None
    assert "energy" in contradiction(bounds[2], solver.needs, said)
    assert math.isfinite(float(said["energy"].sum()))


def test_another_attempt_at_a_start_has_numbers_of_its_own():
    """Half of the plane: the first numbers on another scale would lie in the other half for ever."""
    field = stk.Energy(lambda x: torch.where(x[:, 0] > 0, x.square().sum(1) / 2, torch.inf), (2,))
    draws = stk.sample(field, stk.MALA(0.01), chains=64, steps=1, seed=3)
    assert draws.failures == {}
    assert (draws.final[:, 0] > 0).all()


def test_how_far_a_chain_may_go_is_told_by_its_path_and_by_its_start():
    flow, x = stk.ProbabilityFlow("euler", steps=2), torch.tensor([[0.0], [3.0], [1e4]])
    field = stk.Diffusion(lambda x, t: x, (1,), stk.EDM(sigma_max=80.0), "data")
    bound = resolve(field, {"velocity"})
    far = [BEYOND_PATH * s for s in (80.0, 80.0, 1e4)]
    assert reach_of(flow, bound, x).tolist() == pytest.approx(far)
    still = resolve(gaussian(dim=1), {"score"})
    annealed = stk.AnnealedLangevin(3, 2, step_size=0.1)
    far = [BEYOND_START * s for s in (1.0, 3.0, 1e4)]
    assert reach_of(annealed, still, x).tolist() == pytest.approx(far)
    assert reach_of(stk.ULA(0.1), still, x) is None
