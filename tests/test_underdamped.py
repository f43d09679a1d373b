"""BAOAB against its exact covariance at every step, GHMC against exact invariance, with mutants."""

import math

import pytest
import torch
from scipy.stats import norm, semicircular

import scoretk as stk
from scoretk.fields import resolve
from scoretk.models.targets.analytic import Semicircle
from scoretk.models.targets.mixture import gaussian, ring_mixture
from scoretk.run.moment import begin
from tests import mutants
from tests.evidence import assert_second_moment, ks_p, mean_z, z_limit
from tests.test_langevin import ring_statistics

CHAINS = 40_000


def covariance(h, friction, temperature, steps):
    """The exact recursion of BAOAB on N(0, 1): each part is linear in (x, v), from x, v independent of variance 1 and T."""
    kick = torch.tensor([[1.0, 0.0], [-h / 2, 1.0]], dtype=torch.float64)
    drift = torch.tensor([[1.0, h / 2], [0.0, 1.0]], dtype=torch.float64)
    kept = math.exp(-friction * h)
    cov = torch.diag(torch.tensor([1.0, temperature], dtype=torch.float64))
    for _ in range(steps):
        cov = drift @ kick @ cov @ (drift @ kick).T
        cov = (
            torch.diag(torch.tensor([1.0, kept])).double()
            @ cov
            @ torch.diag(torch.tensor([1.0, kept])).double()
        )
        cov[1, 1] += (1 - kept**2) * temperature
        cov = kick @ drift @ cov @ (kick @ drift).T
    return cov


@pytest.mark.parametrize(
    ("h", "friction", "temperature"), [(0.5, 1.0, 1.0), (1.5, 0.3, 1.0), (0.8, 5.0, 2.5)]
)
def test_baoab_has_its_exact_variance_at_every_step(h, friction, temperature):
    solver = stk.Underdamped(h, friction, temperature)
    draws = stk.sample(gaussian(dim=1), solver, chains=CHAINS, steps=8, seed=3, dtype=torch.float64)
    for s in range(8):
        assert_second_moment(
            draws.x[:, s], 0.0, covariance(h, friction, temperature, s + 1)[0, 0], f"after step {s}"
        )


@pytest.mark.thorough
def test_baoab_is_exact_on_a_gaussian_at_any_stable_step_size():
    draws = stk.sample(
        gaussian(dim=1),
        stk.Underdamped(1.5),
        chains=CHAINS,
        steps=1,
        warmup=60,
        dtype=torch.float64,
    )
    assert_second_moment(draws.final, 0.0, 1.0)
    wrong = stk.sample(
        gaussian(dim=1),
        mutants.KickDriftOnce(1.5),
        chains=CHAINS,
        steps=1,
        warmup=60,
        dtype=torch.float64,
    )
    assert mean_z(wrong.final.square(), 1.0).abs() > 2 * z_limit()


TARGETS = {
    "gaussian": (
        gaussian(dim=1),
        1.3,
        lambda x: math.log(max(ks_p(x[:, 0], norm.cdf), 1e-300)) / math.log(1e-6),
    ),
    "semicircle": (
        Semicircle(),
        0.5,
        lambda x: math.log(max(ks_p(x[:, 0], semicircular.cdf), 1e-300)) / math.log(1e-6),
    ),
    "ring": (
        ring_mixture(),
        0.4,
        lambda x: float(mean_z(*ring_statistics(x)).abs().max() / z_limit(11)),
    ),
}


def after(solver, target, steps):
    noise = stk.Noise(4, CHAINS, dtype=torch.float64)
    field = resolve(target, solver.needs)
    state = begin(solver, field, target.draw(CHAINS, noise).double(), noise).state
    for _ in range(steps):
        state, _ = solver.step(field, state, noise)
    return state


@pytest.mark.parametrize("name", TARGETS)
def test_ghmc_keeps_exact_draws_exact(name):
    target, h, distance = TARGETS[name]
    for steps in (
        1,
        4,
    ):  # the velocity carries over from step to step, so more than one is looked at
        state = after(stk.GHMC(h), target, steps)
        assert distance(state.x) < 1
        assert mean_z(
            state.velocity.square(), torch.ones(state.velocity.shape[1])
        ).abs().max() < z_limit(2)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", ["semicircle", "ring"]
)  # on the Gaussian too few proposals are rejected to tell
def test_invariance_catches_a_velocity_that_is_not_turned(name):
    target, h, distance = TARGETS[name]
    state = after(mutants.NeverTurns(1.3 * h, friction=0.05), target, 20)
    speed = mean_z(
        state.velocity.square(), torch.ones(state.velocity.shape[1])
    ).abs().max() / z_limit(2)
    assert max(distance(state.x), float(speed)) > 1.5


@pytest.mark.parametrize("solver", [stk.Underdamped(0.3), stk.GHMC(0.3)], ids=repr)
def test_chains_do_not_depend_on_the_batch_and_cost_one_gradient_a_step(solver):
    run = {"chains": 9, "steps": 20, "seed": 6, "dtype": torch.float64}
    field = stk.Energy(lambda x: x.square().sum(1) / 2 + x.pow(4).sum(1), (2,))
    whole, parts = (stk.sample(field, solver, batch=b, **run) for b in (None, 4))
    assert torch.equal(whole.x, parts.x)
    assert whole.cost["score"] == 9 * 21


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, on its way through the compiler
@pytest.mark.parametrize("solver", [stk.Underdamped(0.3), stk.GHMC(0.3)], ids=repr)
def test_compiled_agrees_with_eager(solver):
    eager, compiled = (
        stk.sample(
            ring_mixture(), solver, chains=3, steps=16, seed=1, dtype=torch.float64, compile=c
        )
        for c in (False, True)
    )
    torch.testing.assert_close(compiled.x, eager.x, rtol=1e-6, atol=1e-8)
