"""Preconditioned Langevin: MALA and ULA in other coordinates, exact where it decides, tuned to what it aims at."""

import math

import pytest
import torch

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.fields import resolve
from scoretk.models.targets.mixture import gaussian, ring_mixture
from scoretk.run.moment import begin
from tests.evidence import assert_second_moment, mean_z, z_limit
from tests.test_hamiltonian import TARGETS
from tests.test_langevin import one_step_from_exact

COVARIANCE = torch.tensor([[4.0, 1.2], [1.2, 0.5]], dtype=torch.float64)
CORRELATED = stk.Energy(lambda x: ((x @ torch.linalg.inv(COVARIANCE).to(x)) * x).sum(1) / 2, (2,))


@pytest.mark.parametrize("name", TARGETS)
def test_exact_draws_stay_exact(name):
    target, size, distance = TARGETS[name]
    kernel = stk.PreconditionedLangevin(size**2 / 2, metric="none")
    assert distance(one_step_from_exact(kernel, target, seed=5)) < 1


@pytest.mark.parametrize("adjusted", [True, False])
def test_without_a_metric_it_is_mala_and_ula(adjusted):
    field, run = ring_mixture(), {"chains": 50, "steps": 20, "dtype": torch.float64, "seed": 3}
    ours = stk.sample(
        field, stk.PreconditionedLangevin(0.03, metric="none", adjusted=adjusted), **run
    )
    theirs = stk.sample(field, (stk.MALA if adjusted else stk.ULA)(0.03), **run)
    assert torch.allclose(ours.x, theirs.x, atol=1e-10)
    assert ours.cost["score"] == theirs.cost["score"]


def scaled_step(kernel, scale, seed=1, chains=40_000):
    """One step with this metric from exact draws of the correlated Gaussian."""
    noise = Noise(seed, chains, dtype=torch.float64)
    x = noise.normal(0, stk.Stream.USER, (2,), torch.float64) @ torch.linalg.cholesky(COVARIANCE).T
    field = resolve(CORRELATED, kernel.needs, timed=False)
    state = begin(kernel, field, x, noise).state._replace(scale=scale)
    return kernel.step(field, state, noise)


@pytest.mark.parametrize("metric", ["dense", "diagonal"])
def test_any_metric_leaves_the_target_as_it_is(metric):
    scale = torch.linalg.cholesky(COVARIANCE) if metric == "dense" else COVARIANCE.diagonal().sqrt()
    new, info = scaled_step(stk.PreconditionedLangevin(0.3, metric=metric), scale)
    products = torch.stack([new.x[:, 0] ** 2, new.x[:, 1] ** 2, new.x[:, 0] * new.x[:, 1]], 1)
    assert mean_z(products, [4.0, 0.5, 1.2]).abs().max() < z_limit(3)
    assert 0.2 < float(info["accept"].mean()) < 0.99


def test_the_unadjusted_chain_is_biased_as_ula_is_in_scaled_space():
    h = 0.5
    new, _ = scaled_step(
        stk.PreconditionedLangevin(h, metric="dense", adjusted=False),
        torch.linalg.cholesky(COVARIANCE),
    )
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(COVARIANCE), new.x.T, upper=False).T
    assert_second_moment(white, 0.0, (1 - h) ** 2 + 2 * h)


def test_a_decision_left_out_is_seen():
    new, _ = scaled_step(
        stk.PreconditionedLangevin(0.3, metric="dense", adjusted=False),
        torch.linalg.cholesky(COVARIANCE),
    )
    assert mean_z(new.x[:, :1] ** 2, [4.0]).abs().max() > z_limit(1)


@pytest.mark.thorough
@pytest.mark.parametrize("metric", ["dense", pytest.param("diagonal", marks=pytest.mark.slow)])
def test_warmup_finds_acceptance_and_scales(metric):
    draws = stk.sample(
        CORRELATED, stk.PreconditionedLangevin(metric=metric), chains=128, steps=100, seed=2
    )
    assert float(draws.stats["accept"].mean()) == pytest.approx(0.574, abs=0.05)
    scale = draws.tuned["scale"].double()
    found = scale @ scale.T if metric == "dense" else scale.square()
    wanted = COVARIANCE if metric == "dense" else COVARIANCE.diagonal()
    assert torch.allclose(found, wanted, rtol=0.15, atol=0.1)
    per_chain = draws.x.double().square().mean(1)
    assert mean_z(per_chain, COVARIANCE.diagonal()).abs().max() < z_limit(2)


@pytest.mark.thorough
def test_an_unadjusted_run_tunes_too_and_moves_always():
    draws = stk.sample(
        gaussian(dim=3), stk.PreconditionedLangevin(adjusted=False), chains=64, steps=50, seed=2
    )
    assert bool((draws.x.diff(dim=1) != 0).all())
    h = float(draws.tuned["step_size"]) ** 2 / 2
    assert 0.1 < h < 1.5
    assert float(draws.x.var()) == pytest.approx(1 / (1 - h / 2) / (1 - 0), rel=0.25)


def test_bad_input_is_named():
    for name, value in (("step_size", -1), ("metric", "round"), ("accept", 1.5), ("adjusted", 1)):
        with pytest.raises(stk.ScoretkError, match=name):
            stk.PreconditionedLangevin(**{name: value})
    assert math.isclose(stk.PreconditionedLangevin(0.5)._eps, 1.0)
