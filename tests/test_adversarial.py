"""Latent energies of generators: exact where the log ratio is, and the shipped pairs' gain over their generators alone."""

import math

import pytest
import torch
from scipy.stats import t as student

import scoretk as stk
from scoretk.diagnostics import Classifier, sliced_wasserstein
from scoretk.learn.adversarial import DIVERGENCES, f_gan_critic, gradient_penalty
from scoretk.models import specs
from scoretk.models.digits.adversarial import GAN, WGAN
from scoretk.models.digits.data import load_digits
from scoretk.models.digits.stored import read_weights, shipped
from scoretk.models.latent.energies import GeneratorPrior, LatentEnergy, calibrate
from scoretk.plugins import models
from tests.evidence import FALSE_ALARM, assert_mean, assert_second_moment, mean_z, z_limit
from tests.lawful import checked
from tests.marks import slow_but

GAMES = {"digits-gan": GAN, "digits-wgan": WGAN}
DATA = torch.distributions.Normal(torch.tensor(1.0, dtype=torch.float64), 1.0)
MEAN, STD = 0.3, 1.2  # of the toy's generator
Q = torch.distributions.Normal(torch.tensor(MEAN, dtype=torch.float64), STD)

CRITICS = {  # V of the data's log ratio r at the maximum of the game, f'(p/q) = g_f(V), where that is affine in r
    "kl": (1.0, 1.0),
    "reverse-kl": (1.0, 0.0),
    "hellinger": (0.5, 0.0),
    "js": (1.0, 0.0),
    "gan": (1.0, 0.0),
}


def log_ratio(x):
    return (DATA.log_prob(x) - Q.log_prob(x)).sum(1)


def toy(ratio=log_ratio):
    return LatentEnergy(lambda z: MEAN + STD * z, ratio, (1,), (1,))


def law(z):
    """The energy, up to a constant, of latents whose images `MEAN + STD z` follow DATA."""
    return ((MEAN + STD * z - DATA.mean) / DATA.stddev).square().sum(1) / 2


def quantiles(distribution, n=20_000):
    return distribution.icdf((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]


def is_constant(values):
    return bool((values - values[0]).abs().max() < 1e-10)


def test_with_the_exact_log_ratio_the_latents_follow_the_data_exactly():
    z = torch.linspace(-6, 6, 41, dtype=torch.float64)[:, None]
    assert is_constant(toy().energy(z) - law(z))
    assert is_constant(toy(lambda x: log_ratio(x) + 3).energy(z) - law(z))
    for wrong in (
        toy(lambda x: -log_ratio(x)),
        toy(lambda x: 2 * log_ratio(x)),
    ):  # sign; an uncalibrated critic
        assert not is_constant(wrong.energy(z) - law(z))
    assert not is_constant(toy().energy(z) - toy().prior.energy(z) - law(z))  # without the prior
    torch.testing.assert_close(toy().critic.energy(toy().decode(z)), -log_ratio(MEAN + STD * z))


@pytest.mark.thorough
def test_chains_of_the_toy_decode_to_the_data():
    draws = stk.sample(
        toy(), stk.MALA(0.1), chains=4000, steps=150, keep="last", dtype=torch.float64
    )
    x, plain = (
        toy().decode(draws.final),
        toy().prior.decode(toy().prior.draw(4000, stk.Noise(1, 4000))),
    )
    assert_mean(x, DATA.mean)
    assert_second_moment(x, DATA.mean, DATA.variance)
    assert mean_z(plain, DATA.mean).abs().max() > 2 * z_limit()  # the start would not pass


def test_the_prior_is_normalised_and_its_draws_decode_to_the_generators_law():
    prior = toy().prior
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    assert float(torch.trapezoid(prior.log_prob(z).exp(), z[:, 0])) == pytest.approx(1, abs=1e-12)
    assert is_constant(prior.log_prob(z) + prior.energy(z))
    x = prior.decode(prior.draw(40_000, stk.Noise(0, 40_000, dtype=torch.float64)))
    assert_mean(x, MEAN)
    assert_second_moment(x, MEAN, STD**2)


@pytest.mark.parametrize("divergence", CRITICS)
def test_calibration_turns_the_best_critic_of_a_game_into_the_log_ratio(divergence):
    scale, shift = CRITICS[divergence]
    x, y = quantiles(DATA), quantiles(Q)
    best = f_gan_critic(lambda r: scale * log_ratio(r) + shift, x, y, divergence)
    for more, other in (
        (1.1, 0.0),
        (0.9, 0.0),
        (1.0, 0.1),
        (1.0, -0.1),
    ):  # it is the best of its kind
        worse = f_gan_critic(
            lambda r, s=more * scale, t=shift + other: s * log_ratio(r) + t, x, y, divergence
        )
        assert float(worse) > float(best)
    a, b = calibrate(scale * log_ratio(x) + shift, scale * log_ratio(y) + shift)
    assert (a, b) == pytest.approx((1 / scale, -shift / scale), abs=5e-3)


def test_calibration_needs_draws_that_reach_the_data():
    x, y = torch.full((10,), 100.0), torch.linspace(0, 1, 1000)
    a, b = calibrate(x, y)  # no tilt of y has the mean of x: as far as fifty draws carry
    w = (a * y.double()).softmax(0)
    assert float(1 / w.square().sum()) == pytest.approx(50, rel=1e-3)
    assert float((a * y.double() + b).exp().mean()) == pytest.approx(1)
    assert calibrate(torch.zeros(5), y)[0] == pytest.approx(
        0, abs=1e-9
    )  # a critic that prefers the draws is not used
    for bad in (torch.zeros(5, 2), "x", torch.tensor([math.nan])):
        with pytest.raises(stk.InvalidArgument, match="data"):
            calibrate(bad, y)


def test_the_penalty_with_slope_zero_is_the_squared_gradient():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(
        gradient_penalty(lambda r: r.square().sum(1), x, 0.0), 4 * x.square().sum(1)
    )
    flat = torch.zeros(2, 3, requires_grad=True)
    gradient_penalty(lambda r: (r * flat).sum(1), x[:2].float(), 0.0).sum().backward()
    assert torch.equal(flat.grad, torch.zeros(2, 3))  # no NaN where the slope is 0


@pytest.mark.parametrize("game", GAMES.values(), ids=GAMES)
@pytest.mark.parametrize("shape", [(2,), (1, 2, 3)])
def test_a_short_training_on_any_event_shape_round_trips(game, shape, tmp_path):
    data = 3 * torch.randn(40, *shape, generator=torch.Generator().manual_seed(0)) + 10
    settings = {"steps": 3, "refine": 3, "width": 16, "critic_width": 16, "latent": 5}
    stored, again = game.train(data, **settings), game.train(data, **settings)
    assert all(torch.equal(stored.weights[name], again.weights[name]) for name in stored.weights)
    stored.save(tmp_path / "w.safetensors")
    field = game.build(tmp_path / "w.safetensors")
    x = field.decode(field.prior.draw(50, stk.Noise(0, 50)))
    assert (field.event_shape, field.data_shape, x.shape) == ((5,), shape, (50, *shape))
    assert bool(((x - 10).abs() < 20).all())
    assert field.critic.score(x).shape == x.shape
    draws = stk.sample(field, stk.ULA(0.01), chains=3, steps=5, keep="last")
    assert draws.final.shape == (3, 5)
    assert not draws.failures


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_trains(divergence):
    data = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    stored = GAN.train(data, divergence=divergence, steps=20, refine=5, width=8, critic_width=8)
    assert all(bool(v.isfinite().all()) for v in stored.weights.values())
    assert f"--set divergence={divergence}" in stored.notes["command"]


@pytest.mark.parametrize("game", GAMES.values(), ids=GAMES)
@pytest.mark.parametrize(
    "bad", [torch.zeros(5, 2), torch.ones(1, 2), torch.tensor([[1.0], [math.nan]]), "x"]
)
def test_training_refuses_bad_data(game, bad):
    with pytest.raises(stk.InvalidArgument, match="data"):
        game.train(bad, steps=1)


def test_training_refuses_an_unknown_divergence_and_another_models_weights():
    with pytest.raises(stk.ScoretkError, match="divergence"):
        GAN.train(divergence="kll", steps=1)
    with pytest.raises(stk.InvalidArgument, match="digits-gan"):
        WGAN.build(shipped("digits-gan"))


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but(GAMES, "digits-gan"))
def test_the_built_models_keep_the_laws(name):
    field = models.build(getattr(specs, name.replace("-", "_")))
    for subject in (field, field.prior, field.critic):
        failed = [r for r in checked(subject) if r.status == "failed"]
        assert not failed, failed
    assert isinstance(field.prior, GeneratorPrior)
    z = torch.zeros(2, *field.event_shape, dtype=torch.float64)
    assert (
        field.decode(z).dtype
        == field.prior.decode(z).dtype
        == field.energy(z).dtype
        == torch.float64
    )


def test_shipped_weights_are_small_and_tell_how_they_were_made():
    assert sum(shipped(name).stat().st_size for name in GAMES) < 400_000
    for name in GAMES:
        assert (
            read_weights(shipped(name), name)
            .notes["command"]
            .startswith(f"scoretk fit {name} --seed 0")
        )


@pytest.mark.slow
def test_langevin_on_the_latent_energy_improves_on_the_generator():
    """Sixteen pairs of 360 samples, paired by their start, each pair's distances by directions of its own.

    The differences are compared with 0 by a t test, with a false alarm of 1e-6 where the critic brings nothing.
    """
    field, digits, groups = GAN.build(), load_digits(), 16
    start = field.prior.draw(360 * groups, stk.Noise(12, 360 * groups))
    judge = Classifier(digits.train, digits.train_labels).judge

    def distances(x):
        parts = enumerate(x.split(360))
        return torch.tensor(
            [sliced_wasserstein(part, digits.test, seed=i) for i, part in parts],
            dtype=torch.float64,
        )

    def run(target):
        draws = stk.sample(target, stk.ULA(0.05), init=start, steps=STEPS, keep="last", seed=4)
        assert not draws.failures
        return field.decode(draws.final)

    with torch.no_grad():
        plain, better, same = field.decode(start), run(field), run(field.prior)
    t_limit = float(student.isf(FALSE_ALARM, groups - 1))
    assert gain_t(distances(plain), distances(better)) > t_limit
    assert gain_t(distances(plain), distances(same)) < t_limit  # the same chains without the critic
    assert distances(better).mean() < LIMIT * 0.061
    assert judge(plain).balance > 0.95
    assert judge(better).balance > 0.95


def gain_t(before, after):
    gain = before - after
    return float(gain.mean() / (gain.std() / math.sqrt(len(gain))))


STEPS = 40
LIMIT = 1.7  # floors
