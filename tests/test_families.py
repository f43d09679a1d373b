"""The analytic families against known numbers, the trained ones against their own promises."""

import math

import pytest
import torch
from scipy.stats import norm, semicircular

import scoretk as stk
from scoretk.models.digits import energy as digits_energy
from scoretk.models.digits.diffusion import DIGITS_DIFFUSION
from scoretk.models.digits.flow_matching import FLOW
from scoretk.models.digits.networks import PathNetwork, TimeMLP, fresh, principal_axes
from scoretk.models.digits.stored import read_weights, shipped, write_weights
from scoretk.models.digits.training import prepare
from scoretk.models.targets.analytic import EightSchools, Funnel, Semicircle
from scoretk.models.targets.mixture import GaussianMixture, gaussian, ring_mixture
from tests.evidence import (
    assert_distribution,
    assert_mean,
    assert_second_moment,
    ks_p,
    mean_z,
    z_limit,
)

N = 40_000
POINTS = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
TRAINED = {
    "digits-energy": digits_energy,
    "digits-diffusion": DIGITS_DIFFUSION,
    "digits-flow": FLOW,
}


def noise(n=N, seed=0):
    return stk.Noise(seed, n, dtype=torch.float64)


def test_ring_mixture_has_its_published_numbers():
    ring = ring_mixture()
    exact = torch.tensor([-31.0652883442, -1.1447298714, -3.8898923862], dtype=torch.float64)
    torch.testing.assert_close(ring.log_prob(POINTS), exact, rtol=0, atol=1e-9)
    torch.testing.assert_close(-ring.energy(POINTS), exact, rtol=0, atol=1e-9)


def test_smoothed_ring_has_its_published_numbers():
    smoothed = ring_mixture().noised(stk.VE(1.0, 2.0))  # sigma = 1 at t = 1
    exact = torch.tensor([-3.7808546294, -3.4390567908, -3.4056976966], dtype=torch.float64)
    torch.testing.assert_close(smoothed.log_prob_at(POINTS, 1.0), exact, rtol=0, atol=1e-9)
    found = smoothed.denoise(torch.tensor([[0.5, 0.0]], dtype=torch.float64), 1.0)
    torch.testing.assert_close(
        found, torch.tensor([[0.8297117380, 0.0]], dtype=torch.float64), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(
    "target",
    [ring_mixture(), Funnel(), Semicircle(), EightSchools()],
    ids=lambda f: type(f).__name__,
)
def test_scores_agree_with_finite_differences(target):
    x = 0.3 * torch.randn(
        5, *target.event_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    score = stk.Energy(target.energy, target.event_shape).score(x)
    for i in range(x[0].numel()):
        step = torch.zeros_like(x[0]).flatten()
        step[i] = 1e-5
        slope = (
            target.energy(x + step.reshape(x[0].shape))
            - target.energy(x - step.reshape(x[0].shape))
        ) / 2e-5
        torch.testing.assert_close(score.flatten(1)[:, i], -slope, rtol=1e-6, atol=1e-6)


def test_funnel_draws_follow_its_energy():
    target = Funnel()
    x = target.draw(N, noise())
    assert_distribution(x[:, 0], norm(0, 3).cdf, "neck")
    assert_distribution(x[:, 1] * torch.exp(-x[:, 0] / 2), norm.cdf, "whitened")

    def quadratic(
        y,
    ):  # the energy without its (d - 1) x_0 / 2: half a chi square of d degrees, of mean d / 2
        return target.energy(y) - 4.5 * y[:, 0]

    assert_mean(quadratic(x), 5.0, "energy")
    wrong_neck = x + torch.tensor([0.3] + [0.0] * 9)
    assert mean_z(quadratic(wrong_neck), 5.0).abs().max() > 2 * z_limit()


def test_funnel_density_is_normalised_in_two_dimensions():
    target = Funnel(dim=2, scale=0.7)
    neck, rest = (
        torch.linspace(-4, 4, 401, dtype=torch.float64),
        torch.linspace(-25, 25, 4001, dtype=torch.float64),
    )
    grid = torch.cartesian_prod(neck, rest)
    total = target.log_prob(grid).exp().sum() * (neck[1] - neck[0]) * (rest[1] - rest[0])
    assert float(total) == pytest.approx(1, abs=1e-4)


def test_semicircle_draws_starts_and_support():
    target = Semicircle()
    assert_distribution(target.draw(N, noise())[:, 0], semicircular.cdf)
    assert (
        ks_p(2 * target.initial(N, noise())[:, 0], semicircular.cdf) < 1e-12
    )  # uniform, which is not the law
    assert bool((target.initial(N, noise()).abs() <= 0.5).all())
    outside = target.energy(torch.tensor([[1.5], [-2.0], [0.5]], dtype=torch.float64))
    assert outside.isnan().tolist() == [True, True, False]


def test_mixture_draws_have_weights_means_and_spread():
    means = torch.tensor([[[0.0, 1.0]], [[5.0, -2.0]]])
    target = GaussianMixture(means, torch.tensor([0.5, 0.1]), torch.tensor([3.0, 1.0]))
    x = target.draw(N, noise(seed=4))
    assert x.shape == (N, 1, 2)
    second = x[:, 0, 0] > 3
    assert_mean(second.double(), 0.25, "weight of the second component")
    assert_mean(x[second], means[1], "its mean")
    assert_second_moment(x[second], means[1], 0.1**2, "its variance")
    assert (
        mean_z((x[second] - means[1]).square(), 0.5**2).abs().max() > 2 * z_limit()
    )  # the other's must not pass


def test_gaussian_parameters():
    target = gaussian(dim=3, mean=[1.0, 2.0, 3.0], std=0.5)
    x = target.draw(N, noise(seed=5))
    assert_mean(x, [1.0, 2.0, 3.0])
    exact = (
        torch.distributions.Normal(torch.tensor([1.0, 2.0, 3.0]).double(), 0.5).log_prob(x).sum(1)
    )
    torch.testing.assert_close(target.log_prob(x), exact)


def test_eight_schools_energy_is_the_model_written_out():
    target, x = (
        EightSchools(),
        torch.tensor([[1.0, 0.5, *[0.1 * k for k in range(8)]]], dtype=torch.float64),
    )
    mu, tau, theta = target.parameters(x)
    d = torch.distributions
    log_p = (
        d.Normal(0.0, 5.0).log_prob(mu) + d.HalfCauchy(5.0).log_prob(tau) + x[:, 1]
    )  # d tau / d log tau = tau
    log_p = log_p + d.Normal(0.0, 1.0).log_prob(x[:, 2:]).sum(1)
    y, s = torch.tensor(target.effects).double(), torch.tensor(target.errors).double()
    log_p = log_p + d.Normal(theta, s).log_prob(y).sum(1)
    zero = torch.zeros(1, 10, dtype=torch.float64)
    # up to a constant, so a difference is compared: at 0 mu = 0, tau = 1, theta = 0
    at_zero = d.Normal(0.0, 5.0).log_prob(zero[:, 0]) + d.HalfCauchy(5.0).log_prob(
        torch.ones(1).double()
    )
    at_zero = (
        at_zero
        + d.Normal(0.0, 1.0).log_prob(zero[:, 2:]).sum(1)
        + d.Normal(zero[:, 2:], s).log_prob(y).sum(1)
    )
    torch.testing.assert_close(
        target.energy(x) - target.energy(zero), at_zero - log_p, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("path", "predicts"), [(stk.VP(), "noise"), (stk.Linear(), "velocity"), (stk.Linear(), "noise")]
)
def test_an_untrained_path_network_is_the_exact_gaussian(path, predicts):
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    data = torch.randn(500, 3, generator=generator, dtype=torch.float64) @ mixing + 1
    net = PathNetwork(
        fresh(lambda: TimeMLP(3, 8, 1), generator), path, predicts, principal_axes(data, 0.0)
    ).double()
    x, t = (
        torch.randn(4, 3, generator=generator, dtype=torch.float64),
        torch.tensor([0.1, 0.4, 0.7, 0.95]).double(),
    )
    mean, cov = data.mean(0), data.T.cov(correction=0)
    for i in range(4):
        alpha, sigma, dalpha, dsigma = path(t[i])
        gain = torch.linalg.inv(alpha**2 * cov + sigma**2 * torch.eye(3)) @ (x[i] - alpha * mean)
        exact_noise, exact_data = sigma * gain, mean + alpha * cov @ gain
        exact = exact_noise if predicts == "noise" else dalpha * exact_data + dsigma * exact_noise
        torch.testing.assert_close(net(x, t)[i], exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", TRAINED.values(), ids=TRAINED)
@pytest.mark.parametrize("shape", [(2,), (1, 2, 3)])
def test_a_short_training_on_any_event_shape_round_trips(module, shape, tmp_path):
    data = 3 * torch.randn(64, *shape, generator=torch.Generator().manual_seed(0)) + 10
    stored = module.train(data, steps=3, width=16)
    again = module.train(data, steps=3, width=16)
    assert all(torch.equal(stored.weights[name], again.weights[name]) for name in stored.weights)
    write_weights(tmp_path / "w.safetensors", stored)
    field = module.build(tmp_path / "w.safetensors")
    assert field.event_shape == shape
    solver = stk.ULA(0.01) if module is digits_energy else stk.ProbabilityFlow("euler", 4)
    draws = stk.sample(
        field, solver, chains=3, keep="last", **({"steps": 5} if module is digits_energy else {})
    )
    assert draws.final.shape == (3, *shape)
    assert not (draws.status != 0).any()


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(5, 2), torch.ones(1, 2), torch.tensor([[1.0], [math.nan]]), torch.ones(4), "x"],
)
def test_training_refuses_bad_data(bad):
    with pytest.raises(stk.InvalidArgument, match="data"):
        prepare(bad, 0.1)


def test_weights_of_another_model_and_broken_files_are_refused(tmp_path):
    with pytest.raises(stk.InvalidArgument, match="digits-flow"):
        digits_energy.build(shipped("digits-flow"))
    (tmp_path / "broken.safetensors").write_bytes(shipped("digits-flow").read_bytes()[:1000])
    for path in (tmp_path / "broken.safetensors", tmp_path / "none.safetensors", 3):
        with pytest.raises(stk.InvalidArgument, match="weights"):
            FLOW.build(path)


def test_shipped_weights_are_small_and_tell_how_they_were_made():
    files = [shipped(name) for name in TRAINED]
    assert sum(f.stat().st_size for f in files) < 3_000_000
    for name, file in zip(TRAINED, files, strict=True):
        made = read_weights(file, name).notes
        assert made["command"].startswith(f"scoretk fit {name}")
        assert {"seed", "steps", "torch", "scoretk"} <= made.keys()
