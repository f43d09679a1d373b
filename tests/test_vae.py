"""Variational autoencoders: a linear one and small ones whose densities are known, then the trained ones on digits."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import distributions as td

import scoretk as stk
from scoretk.diagnostics import Classifier, sliced_wasserstein
from scoretk.inference.partition import log_partition
from scoretk.models import specs
from scoretk.models.digits import vae as recipes
from scoretk.models.digits.data import load_digits
from scoretk.models.digits.stored import read_weights, shipped
from scoretk.models.latent import vae
from scoretk.plugins.models import build
from tests.evidence import assert_mean, assert_second_moment, mean_z, z_limit
from tests.lawful import checked
from tests.marks import slow_but, slow_rows_but

N = 20_000
WEIGHT = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.3, -0.8], [0.0, 0.6]], dtype=torch.float64)
CENTRE = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
STD = 0.4
PRECISION = torch.eye(2, dtype=torch.float64) + WEIGHT.T @ WEIGHT / STD**2
COVARIANCE = WEIGHT @ WEIGHT.T + STD**2 * torch.eye(4, dtype=torch.float64)
MARGINAL = td.MultivariateNormal(CENTRE, COVARIANCE)
VARIANTS = {v.model: v for v in (recipes.GAUSSIAN, recipes.BINARY, recipes.LATENT_ENERGY)}


def normal(mean, std, axes):
    return td.Independent(td.Normal(mean, std, validate_args=False), axes, validate_args=False)


def posterior_mean(x):
    return (x.reshape(-1, 4) - CENTRE) @ WEIGHT / STD**2 @ torch.linalg.inv(PRECISION)


def exact_encoder(x):
    return td.MultivariateNormal(posterior_mean(x), precision_matrix=PRECISION)


def rough_encoder(x):
    """The right means, but independent latents that vary a third more than they should: weights vary."""
    return normal(
        posterior_mean(x), 1.3 * torch.linalg.inv(PRECISION).diagonal().sqrt().expand(len(x), 2), 1
    )


def linear(encoder=rough_encoder):
    """Probabilistic principal component analysis: `p(x) = N(x; m, W W^T + s^2 I)`."""

    def decoder(z):
        return normal((CENTRE + z @ WEIGHT.T).reshape(-1, 2, 2), z.new_full((len(z), 2, 2), STD), 2)

    return vae.VAE(encoder, decoder, (2,), (2, 2))


def data(n=6, seed=1):
    return MARGINAL.sample((n,)).reshape(n, 2, 2) if seed is None else noisy(n, seed)


def noisy(n, seed):
    z = stk.Noise(seed, n, dtype=torch.float64).normal(0, 0, (4,))
    return (CENTRE + z @ torch.linalg.cholesky(COVARIANCE).T).reshape(n, 2, 2)


def exact(x):
    return MARGINAL.log_prob(x.reshape(-1, 4))


def test_with_the_exact_posterior_as_encoder_every_weight_is_the_density():
    model, x = linear(exact_encoder), data()
    for found in (
        replace(model.marginal, draws=2, newton=0).importance_log_prob(x),
        model.elbo(x, draws=2),
    ):
        torch.testing.assert_close(found.value, exact(x), rtol=0, atol=1e-9)
        assert float(found.stderr.max()) < 1e-7


@pytest.mark.thorough
def test_importance_weights_and_annealing_find_the_density_and_the_elbo_its_bound():
    model, x = linear(), data()
    found = {
        "importance": stk.log_prob(model.marginal, x, seed=3),
        "encoder alone": stk.log_prob(replace(model.marginal, newton=0), x, seed=3),
        "annealed": model.marginal.annealed_log_prob(x[:1], chains=128, seed=4, pilot=64),
    }
    assert found["importance"].method.startswith("importance-weighted (1000 draws")
    for name, estimate in found.items():
        rows = 1 if name == "annealed" else 6
        z = (estimate.value - exact(x[:rows])) / estimate.stderr
        assert z.abs().max() < z_limit(len(x)), name
        assert estimate.value.shape == estimate.stderr.shape == estimate.status.shape == (rows,)
        assert float(estimate.stderr.max()) < 0.2, name
    poor = vae.VAE(
        lambda x: normal(posterior_mean(x) + 2, 0.1 * torch.ones_like(posterior_mean(x)), 1),
        model.decoder,
        (2,),
        (2, 2),
    )
    rescued = stk.log_prob(poor.marginal, x, seed=5)
    assert ((rescued.value - exact(x)) / rescued.stderr).abs().max() < z_limit(len(x))
    assert float(rescued.stderr.max()) < 0.1
    elbo = model.elbo(x, draws=4000)
    gap = td.kl_divergence(
        td.MultivariateNormal(torch.zeros(2).double(), rough_encoder(x).variance[0].diag()),
        td.MultivariateNormal(torch.zeros(2).double(), precision_matrix=PRECISION),
    )
    assert float(gap) > 0.1
    assert ((elbo.value - exact(x) + gap) / elbo.stderr).abs().max() < z_limit(len(x))


def test_a_density_without_the_encoder_in_its_weights_is_caught():
    model, x = linear(), data()

    class Shifted(vae.VAE):
        def log_prior(self, z):
            return super().log_prior(z) + 0.2  # a mistake of .2 nats

    wrong = Shifted(
        model.encoder, model.decoder, model.event_shape, model.data_shape
    ).marginal.importance_log_prob(x)
    assert ((wrong.value - exact(x)) / wrong.stderr).abs().max() > z_limit(len(x))


def test_estimates_of_a_row_do_not_depend_on_its_batch():
    model, x = linear(), data(5)
    whole, first = (
        replace(model.marginal, draws=64).importance_log_prob(rows) for rows in (x, x[:2])
    )
    torch.testing.assert_close(whole.value[:2], first.value, rtol=0, atol=1e-10)
    empty = model.marginal.importance_log_prob(x[:0])
    assert empty.value.shape == empty.stderr.shape == (0,)


@pytest.mark.slow
def test_bits_per_dim_of_the_marginal():
    model = linear()
    cells = ((data(40).clamp(-3.9, 3.9) + 4) * 2).floor()  # 16 levels of [-4, 4]
    found = stk.bits_per_dim(model.marginal, cells, levels=16, interval=(-4.0, 4.0), draws=16)
    u = torch.rand(
        (400, *cells.shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    nats = exact(-4 + (cells + u).flatten(0, 1) / 2).reshape(400, -1)
    bits = -nats.mean(0) / (4 * math.log(2)) + math.log2(16 / 8)
    spread = torch.hypot(found.stderr, nats.std(0) / (4 * math.log(2) * 20))
    assert (
        float(((found.value - bits).mean() / (spread.square().sum().sqrt() / 40)).abs()) < z_limit()
    )


def test_draws_of_the_marginal_and_the_joint_have_the_exact_moments():
    model, noise = linear(), stk.Noise(5, N, dtype=torch.float64)
    x, zx = model.marginal.draw(N, noise).flatten(1), model.joint.draw(N, noise)
    assert torch.equal(model.joint.decode(zx).flatten(1), x)
    whitened = torch.linalg.solve_triangular(
        torch.linalg.cholesky(COVARIANCE), (x - CENTRE).T, upper=False
    ).T
    assert_mean(whitened, torch.zeros(4))
    assert_second_moment(whitened, 0.0, torch.ones(4))
    assert_mean(whitened[:, :1] * whitened[:, 1:], torch.zeros(3), "correlations")
    noiseless = (model.decode(zx[:, :2]).flatten(1) - CENTRE).square()
    assert mean_z(noiseless, COVARIANCE.diagonal()).abs().max() > 2 * z_limit(
        4
    )  # the decoder's mean must not pass
    cross = torch.cat([torch.eye(2).double(), WEIGHT])
    noise_variance = torch.tensor([0.0, 0.0, *[STD**2] * 4], dtype=torch.float64)
    law = td.MultivariateNormal(
        torch.cat([torch.zeros(2), CENTRE]), cross @ cross.T + noise_variance.diag()
    )
    torch.testing.assert_close(model.joint.log_prob(zx), law.log_prob(zx), rtol=0, atol=1e-8)
    constant = model.joint.log_prob(zx) + model.joint.energy(zx)
    torch.testing.assert_close(
        constant, torch.full_like(constant, -math.log(2 * math.pi)), rtol=0, atol=1e-8
    )


@pytest.mark.thorough
def test_each_chain_samples_the_posterior_of_its_own_image():
    model, images = linear(), data(3)
    rows = images.repeat_interleave(400, 0)
    solver = stk.HMC(0.25, leapfrogs=8, metric="none")
    run = {"steps": 40, "keep": "last", "seed": 6}
    draws = stk.sample(model.posterior(), solver, init=model.encode(rows), cond={"x": rows}, **run)
    part = stk.sample(
        model.posterior(), solver, init=model.encode(rows), cond={"x": rows}, batch=300, **run
    )
    torch.testing.assert_close(draws.final, part.final, rtol=0, atol=1e-10)
    factor = torch.linalg.cholesky(PRECISION)
    whitened = (draws.final - posterior_mean(rows)) @ factor
    for i, own in enumerate(whitened.split(400)):
        assert_mean(own, torch.zeros(2), f"image {i}")
        assert_second_moment(own, 0.0, torch.ones(2), f"image {i}")
    crossed = (draws.final - posterior_mean(rows.roll(400, 0))) @ factor
    assert mean_z(crossed[:400], torch.zeros(2)).abs().max() > 2 * z_limit(2)
    z = draws.final[:3]
    one = model.posterior(images[0]).energy(z)
    torch.testing.assert_close(one, model.posterior().energy(z, x=images[:1].expand(3, 2, 2)))
    with pytest.raises(stk.InvalidArgument, match="one row a chain"):
        model.posterior().energy(z)


SLOPES = torch.tensor([[2.0], [-1.0], [0.5]], dtype=torch.float64)
BITS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)


def bernoulli(prior=None):
    """Three bits of one latent."""

    def encoder(x):
        return normal(0.5 * (x @ SLOPES) / 2, x.new_full((len(x), 1), 1.2), 1)

    def decoder(z):
        return td.Independent(
            td.Bernoulli(logits=z @ SLOPES.T + 0.3, validate_args=False), 1, validate_args=False
        )

    return vae.VAE(encoder, decoder, (1,), (3,), prior, (0.0, 1.0))


def quadrature(model):
    """log Z of the prior and `log p(x)` of the eight images, by the trapezoid rule."""
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    cell, prior = math.log(24 / 4000), model.log_prior(z)
    log_z = prior.logsumexp(0) + cell
    joint = prior + torch.stack([model.decoder(z).log_prob(x.expand(4001, 3)) for x in BITS])
    return log_z, joint.logsumexp(1) + cell - log_z


def bumpy():
    """A prior of two modes, known up to a constant."""
    return stk.Energy(lambda z: z[:, 0].square() / 2 + 2 * torch.cos(2 * z[:, 0]), (1,))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "prior", [pytest.param(None, marks=pytest.mark.slow), bumpy()], ids=["normal", "learned"]
)
def test_probabilities_of_binary_images_are_those_of_quadrature_and_sum_to_one(prior):
    model = bernoulli(prior)
    log_z, known = quadrature(model)
    assert float(known.exp().sum()) == pytest.approx(1, abs=1e-9)
    found = stk.log_prob(model.marginal, BITS, seed=2)
    assert ((found.value - known) / found.stderr).abs().max() < z_limit(8)
    elbo = model.elbo(BITS, draws=1000)
    assert bool((elbo.value < known + 5 * elbo.stderr).all())
    annealed = model.marginal.annealed_log_prob(BITS[2:3], chains=128, pilot=64)
    assert ((annealed.value - known[2:3]) / annealed.stderr).abs().max() < z_limit()
    if prior is not None:
        value, stderr = model.log_z.value, model.log_z.stderr
        assert float((value - log_z).abs() / stderr) < z_limit()
        assert float((log_z - math.log(math.sqrt(2 * math.pi))).abs()) > 20 * float(
            stderr
        )  # the tilt has an effect
        assert "draw" not in model.provides
        with pytest.raises(stk.MissingCapability, match="learned"):
            model.draw(3, stk.Noise(0, 3))


def test_binary_draws_have_the_probabilities_of_quadrature():
    model = bernoulli()
    x = model.marginal.draw(N, stk.Noise(1, N, dtype=torch.float64))
    index = (x @ torch.tensor([4.0, 2.0, 1.0]).double()).long()
    assert_mean(torch.nn.functional.one_hot(index, 8), quadrature(model)[1].exp())
    assert model.marginal.states == (0.0, 1.0)
    with pytest.raises(stk.InvalidArgument, match="pixels among 0, 1"):
        stk.log_prob(model.marginal, BITS + 0.5)
    with pytest.raises(stk.MissingCapability, match="discrete"):
        _ = model.joint


def test_interpolation_goes_from_one_reconstruction_to_the_other():
    model, x = linear(), data(4)
    for way in ("spherical", "linear"):
        path = model.interpolate(x[:2], x[2:], 5, way=way)
        assert path.shape == (2, 5, 2, 2)
        torch.testing.assert_close(path[:, 0], model.decode(model.encode(x[:2])))
        torch.testing.assert_close(path[:, -1], model.decode(model.encode(x[2:])))
    torch.testing.assert_close(
        path[:, 2], (path[:, 0] + path[:, 4]) / 2
    )  # a linear decoder of the straight line
    with pytest.raises(stk.ScoretkError, match="way"):
        model.interpolate(x[:2], x[2:], 5, way="scenic")


def test_a_prior_that_does_not_fit_is_refused():
    with pytest.raises(stk.InvalidArgument, match="prior"):
        vae.VAE(rough_encoder, linear().decoder, (2,), (2, 2), prior=bumpy())


# The trained models.


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def models():
    return {name: variant.build() for name, variant in VARIANTS.items()}


def test_specs_build_their_models():
    for spec in (specs.digits_vae, specs.digits_vae_binary, specs.digits_latent_energy):
        assert build(spec).data_shape == (1, 8, 8)
        assert (spec.name, spec.event_shape) == (VARIANTS[spec.name].model, build(spec).event_shape)


@pytest.mark.parametrize("name", slow_but(VARIANTS, "digits-vae"))
def test_the_laws_hold(name, models, digits):
    model = models[name]
    x = (digits.test[:4] > -1).float() if name == "digits-vae-binary" else digits.test[:4]
    fields = {
        "digits-vae": [(model, None), (model.posterior(), {"x": x}), (model.marginal, None)],
        "digits-vae-binary": [(model, None), (model.posterior(x[0]), None), (model.marginal, None)],
        "digits-latent-energy": [(model, None), (vae.Joint(model), None)],
    }
    for field, cond in fields[name]:
        failed = [r for r in checked(field, cond=cond) if r.status == "failed"]
        assert not failed, (type(field).__name__, failed)


@pytest.mark.parametrize("name", ["digits-vae", "digits-vae-binary"])
def test_draws_have_no_gradients(name, models):
    assert models[name].decode(torch.zeros(1, 12)).requires_grad  # the weights'
    fields = [models[name].marginal] + ([] if "binary" in name else [models[name].joint])
    assert not any(field.draw(2, stk.Noise(0, 2)).requires_grad for field in fields)


def test_latents_are_of_the_dtype_of_images(models):
    for dtype in (torch.float32, torch.float64):
        assert models["digits-vae"].encode(torch.zeros(2, 1, 8, 8, dtype=dtype)).dtype == dtype


@pytest.mark.thorough
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_short_training_round_trips_and_repeats(variant, tmp_path):
    rows = 3 * torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(0)) + 10
    rows = (rows > 10).float() if variant is recipes.BINARY else rows
    settings = {"steps": 3, "width": 8, "latent": 2} | (
        {"chains": 50} if variant is recipes.LATENT_ENERGY else {"bin": 0.0}
    )
    stored, again = (variant.train(rows, **settings) for _ in range(2))
    assert all(torch.equal(stored.weights[name], again.weights[name]) for name in stored.weights)
    stored.save(tmp_path / "w.safetensors")
    field = variant.build(tmp_path / "w.safetensors")
    assert (field.event_shape, field.data_shape) == ((2,), (2, 3))
    draws = stk.sample(
        field, stk.HMC(0.2, leapfrogs=3, metric="none"), chains=4, steps=5, keep="last"
    )
    assert field.decode(draws.final).shape == (4, 2, 3)
    assert not draws.failures
    assert bool(stk.log_prob(replace(field.marginal, draws=8), rows[:3]).value.isfinite().all())


@pytest.mark.parametrize(
    "bad", [torch.zeros(5, 2), torch.full((4, 2), math.nan), "x", torch.rand(5, 2)]
)
def test_training_refuses_bad_data(bad):
    with pytest.raises(stk.InvalidArgument, match="data"):
        recipes.BINARY.train(bad, steps=1)


@pytest.mark.slow
def test_two_estimates_of_the_likelihood_of_test_images_agree(models, digits):
    x = digits.test[:3]
    marginal = replace(models["digits-vae"].marginal, draws=4000)
    first, second = (
        stk.log_prob(marginal, x),
        marginal.annealed_log_prob(x, chains=128, pilot=32, seed=1),
    )
    z = (first.value - second.value) / torch.hypot(first.stderr, second.stderr)
    assert z.abs().max() < z_limit(3)
    assert float(first.stderr.max()) < 0.1
    assert float(second.stderr.max()) < 0.2
    elbo = marginal.vae.elbo(x, draws=500)
    assert bool((elbo.value < first.value).all())


@pytest.mark.slow
def test_the_learned_prior_has_one_partition_function_by_two_ways(models):
    model = models["digits-latent-energy"]
    kernel = stk.HMC(0.3, leapfrogs=8, metric="none")
    unit = vae.standard_normal(model.event_shape)
    other = log_partition(model, unit, method="smc", chains=1024, kernel=kernel, seed=2)
    error = (other.value - model.log_z.value) / torch.hypot(model.log_z.stderr, other.stderr)
    assert float(error.abs()) < z_limit()
    assert float(model.log_z.stderr) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most"),
    slow_rows_but([("digits-vae", 2.5), ("digits-latent-energy", 2.55)], ("digits-vae", 2.5)),
)
def test_bits_per_dim_of_test_images(name, most, models, digits):
    cells, on = (digits.test[:60] + 1) * 8, {"levels": 17, "interval": (-1.0625, 1.0625)}
    found = stk.bits_per_dim(replace(models[name].marginal, draws=200), cells, **on)
    assert float(found.value.mean()) < most
    reflected = stk.bits_per_dim(replace(models[name].marginal, draws=200), 16 - cells[:15], **on)
    assert float(reflected.value.mean()) > 2 * most


@pytest.mark.slow
def test_nats_of_binary_test_images(models, digits):
    x = (digits.test > -1).float()
    found = stk.log_prob(replace(models["digits-vae-binary"].marginal, draws=200), x)
    assert float(-found.value.mean()) < 20


@pytest.mark.slow
def test_samples_are_digits(models, digits):
    judge = Classifier(digits.train, digits.train_labels).judge
    noise, gaussian, energy = (
        stk.Noise(0, 720),
        models["digits-vae"],
        models["digits-latent-energy"],
    )
    with torch.no_grad():
        ancestral = gaussian.marginal.draw(720, noise)
        hmc = stk.HMC(0.2, leapfrogs=8, metric="none")
        z = stk.sample(energy, hmc, chains=720, steps=150, keep="last").final
        learned, untilted = (
            energy.observe(latents, noise) for latents in (z, noise.normal(9, 0, (12,)))
        )
    far = [
        sum(sliced_wasserstein(part, digits.test) for part in x.split(360)) / 2 / 0.061
        for x in (ancestral, learned)
    ]
    assert far[0] < 2.2
    assert far[1] < 1.6
    assert judge(ancestral).balance > 0.96
    assert judge(learned).balance > 0.97
    assert sliced_wasserstein(untilted, digits.test) > sliced_wasserstein(learned, digits.test)


def test_shipped_weights_are_small_and_tell_how_they_were_made():
    assert sum(shipped(name).stat().st_size for name in VARIANTS) < 450_000
    for name in VARIANTS:
        assert (
            read_weights(shipped(name), name)
            .notes["command"]
            .startswith(f"scoretk fit {name} --seed 0")
        )
