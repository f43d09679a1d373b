"""ULA against its exact biased law, MALA against exact invariance, and mutants that both must catch."""

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
from tests.evidence import (
    assert_distribution,
    assert_mean,
    assert_second_moment,
    ks_p,
    mean_z,
    z_limit,
)

CHAINS = 40_000


def one_step_from_exact(solver, target, seed, chains=CHAINS, device="cpu"):
    """Exact draws moved by one step: for an exact kernel, exact draws again."""
    noise = stk.Noise(seed, chains, device=device, dtype=torch.float64)
    x = target.draw(chains, noise).double()
    field = resolve(target, solver.needs, timed=solver.timed)
    state = begin(solver, field, x, noise).state
    return solver.step(field, state, noise)[0].x


def ula_variance(solver, h, steps, start):
    """The exact recursion of ULA on N(0, 1): `v' = (1 - h)^2 v + 2 h T`."""
    v = start
    for _ in range(steps):
        v = (1 - h) ** 2 * v + 2 * h * solver.temperature
    return v


@pytest.mark.parametrize(("h", "temperature"), [(0.1, 1.0), (0.5, 1.0), (1.2, 1.0), (0.5, 2.5)])
def test_ula_has_its_exact_variance_at_every_step(h, temperature, device):
    solver = stk.ULA(h, temperature)
    field, steps = gaussian(dim=1), 12
    draws = stk.sample(
        field, solver, chains=CHAINS, steps=steps, seed=3, dtype=torch.float64, device=device
    )
    for s in range(steps):
        assert_second_moment(
            draws.x[:, s].cpu(),
            0.0,
            ula_variance(solver, h, s + 1, 1.0),
            f"variance after step {s}",
        )


@pytest.mark.thorough
def test_ula_reaches_the_stationary_variance():
    h = 0.5
    draws = stk.sample(
        gaussian(dim=1), stk.ULA(h), chains=CHAINS, steps=1, warmup=60, seed=1, dtype=torch.float64
    )
    assert_second_moment(draws.final, 0.0, 1 / (1 - h / 2))
    assert_mean(draws.final, 0.0)


@pytest.mark.parametrize("mutant", [mutants.HalfTheNoise, mutants.WrongSign])
def test_the_variance_test_catches_wrong_langevin(mutant):
    draws = stk.sample(
        gaussian(dim=1), mutant(0.5), chains=CHAINS, steps=3, seed=1, dtype=torch.float64
    )
    z = mean_z(draws.final.square(), ula_variance(stk.ULA(0.5), 0.5, 3, 1.0))
    assert z.abs() > 2 * z_limit()


def test_clipping_and_the_box_do_what_they_say():
    """One step from a known place: the drift is clipped entry by entry, and what leaves the box is put on its edge."""
    field = stk.Score(lambda x: -x, (2,))
    start = torch.tensor([[5.0, -0.1]], dtype=torch.float64)
    plain = stk.sample(field, stk.ULA(0.5), init=start, steps=1, seed=1).final
    clipped = stk.sample(field, stk.ULA(0.5, clip=1.0), init=start, steps=1, seed=1).final
    torch.testing.assert_close(clipped - plain, torch.tensor([[2.0, 0.0]], dtype=torch.float64))
    boxed = stk.sample(field, stk.ULA(0.5, box=(-1, 1)), init=start, steps=50, seed=1).x
    assert bool((boxed.abs() <= 1).all())
    assert bool((boxed.abs() == 1).any())
    nan = stk.sample(
        stk.Score(lambda x: x * torch.nan, (2,)),
        stk.ULA(0.5, clip=1.0, box=(-1, 1)),
        init=start,
        steps=3,
    )
    assert nan.failures == {"NONFINITE": 1}  # neither clamp turns NaN into a number


def test_presets_report_their_temperature():
    assert stk.ULA.du_mordatch().temperature == pytest.approx(1.25e-6)
    assert stk.ULA.jem().temperature == pytest.approx(5e-5)
    solver = stk.ULA.with_noise(0.5, 0.3)
    draws = stk.sample(
        gaussian(dim=1), solver, chains=CHAINS, steps=1, warmup=40, seed=2, dtype=torch.float64
    )
    assert_second_moment(draws.final, 0.0, 0.3**2 / (1 - 0.5**2))


TARGETS = {
    "gaussian": (gaussian(dim=1), 0.7, norm.cdf),
    "ring": (ring_mixture(), 0.04, None),
    "semicircle": (Semicircle(), 0.1, semicircular.cdf),
}


def ring_statistics(x):
    """Moments of the ring that its symmetry or one integral gives: E|x|^2 = 4 + 2/16, E[x], the share of each mode."""
    angle = torch.atan2(x[:, 1], x[:, 0]) / (math.pi / 4)
    sector = torch.nn.functional.one_hot(angle.round().long() % 8, 8).double()
    return torch.cat([x.square().sum(1, keepdim=True), x, sector], 1), [4 + 2 / 16, 0, 0] + [
        1 / 8
    ] * 8


def invariance_z(solver, name, seed=5):
    """How far, in limits, one step from exact draws is from exact: below 1 is a pass."""
    target, _, cdf = TARGETS[name]
    x = one_step_from_exact(solver, target, seed)
    if cdf is not None:
        return math.log(max(ks_p(x[:, 0], cdf), 1e-300)) / math.log(1e-6)
    values, truth = ring_statistics(x)
    z = mean_z(values, truth)
    score_balance = mean_z((target.score(x) * x).sum(1), -2.0)  # Stein: E[x . score] = -d
    return float(max(z.abs().max(), score_balance.abs().max()) / z_limit(len(truth) + 1))


@pytest.mark.parametrize("name", TARGETS)
def test_mala_keeps_exact_draws_exact(name):
    assert invariance_z(stk.MALA(TARGETS[name][1]), name) < 1


@pytest.mark.parametrize("mutant", [mutants.NoCorrection, mutants.SymmetricProposal])
@pytest.mark.parametrize("name", TARGETS)
def test_invariance_catches_wrong_kernels(name, mutant):
    assert invariance_z(mutant(TARGETS[name][1]), name) > 2


def test_invariance_catches_nan_replaced_and_accepted():
    assert invariance_z(mutants.NaNIsReplaced(0.1), "semicircle") > 2


@pytest.mark.parametrize(
    ("kernel", "consistent"), [(stk.MALA, True), (mutants.StaleGradient, False)]
)
def test_cached_energy_and_gradient_are_those_of_the_position(kernel, consistent):
    """After acceptances and rejections alike; a mutant that keeps the proposal's gradient shows that this can fail."""
    target, noise = gaussian(dim=2), stk.Noise(9, 500, dtype=torch.float64)
    solver, field = kernel(1.7), resolve(target, {"energy", "score"})
    state = begin(solver, field, target.draw(500, noise), noise).state
    for _ in range(5):
        state, _ = solver.step(field, state, noise)
    energy, grad = field.energy_and_grad(state.x)
    assert torch.equal(state.energy, energy)
    assert torch.equal(state.grad, grad) is consistent


@pytest.mark.slow
def test_mala_at_temperature_samples_the_tempered_target():
    draws = stk.sample(
        gaussian(dim=1),
        stk.MALA(1.0, temperature=4.0),
        chains=CHAINS,
        steps=1,
        warmup=80,
        dtype=torch.float64,
    )
    assert_distribution(draws.final[:, 0], lambda x: norm.cdf(x, scale=2.0))


def test_nan_outside_the_support_is_a_rejection_and_no_chain_sticks():
    draws = stk.sample(
        "semicircle", stk.MALA(0.1), chains=20_000, steps=60, seed=2, dtype=torch.float64
    )
    assert draws.failures == {}
    assert bool((draws.x.abs() < 1).all())
    assert not bool((draws.x == 0).any())
    assert bool((draws.x[:, 1:] != draws.x[:, :-1]).flatten(1).any(1).all())
    assert_second_moment(draws.final, 0.0, 0.25)


def test_annealed_langevin_over_temperatures_ends_at_temperature_one():
    """On N(0, 1) each rung is the exact recursion v' = (1 - eps / T_L)^2 v + 2 eps T_i / T_L."""
    eps, ladder, per_level = 0.2, (9.0, 3.0, 1.0), 4
    solver = stk.AnnealedLangevin(levels=ladder, steps_per_level=per_level, step_size=eps)
    draws = stk.sample(gaussian(dim=1), solver, chains=CHAINS, seed=4, dtype=torch.float64)
    v = 1.0
    for temperature in ladder:
        for _ in range(per_level):
            v = (1 - eps) ** 2 * v + 2 * eps * temperature
    assert_second_moment(draws.final, 0.0, v)
    assert draws.cost["score"] == CHAINS * len(ladder) * per_level


@pytest.mark.parametrize("path", [stk.VE(0.1, 10.0), stk.VP(), stk.Linear()], ids=repr)
def test_annealed_langevin_over_noise_follows_its_exact_recursion(path):
    """N(0, s^2) data: in x/alpha every level is linear, so mean square after every level is known exactly."""
    s2, levels, per_level = 0.5**2, (8.0, 2.0, 0.5, 0.1), 3
    solver = stk.AnnealedLangevin(levels=levels, steps_per_level=per_level, step_size=2e-3)
    field = gaussian(dim=1, std=math.sqrt(s2)).noised(path)
    draws = stk.sample(field, solver, chains=CHAINS, seed=6, dtype=torch.float64)
    v = levels[0] ** 2
    for level in levels:
        a = 2e-3 * level**2 / levels[-1] ** 2
        for _ in range(per_level):
            v = (1 - a / (s2 + level**2)) ** 2 * v + 2 * a
    v *= (s2 / (s2 + levels[-1] ** 2)) ** 2  # the closing denoising step
    assert_second_moment(draws.final, 0.0, v)


def test_ncsnv2_step_size_is_the_published_one():
    for high, count, published in ((50.0, 232, 6.18e-6), (90.0, 500, 3.34e-6)):
        ladder = torch.exp(
            torch.linspace(math.log(high), math.log(0.01), count, dtype=torch.float64)
        )
        assert stk.ncsnv2_step_size(ladder, 5) == pytest.approx(published, rel=2e-3)
