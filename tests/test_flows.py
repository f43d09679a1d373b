"""Normalizing flows: change of variables, draws against densities, and the shipped weights."""

import math
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import norm

import scoretk as stk
from scoretk.diagnostics import Classifier, sliced_wasserstein
from scoretk.models import specs
from scoretk.models.digits.data import load_digits
from scoretk.models.digits.flows import (
    FFJORD,
    MAF,
    NICE,
    REALNVP,
    SPLINE,
    ContinuousNetwork,
    FlowNetwork,
    NormalizingFlow,
)
from scoretk.models.digits.networks import fresh, principal_axes
from scoretk.models.digits.stored import read_weights, shipped
from scoretk.plugins.models import build
from tests.evidence import FALSE_ALARM, assert_distribution, assert_mean, ks_p, mean_z, z_limit
from tests.lawful import checked
from tests.marks import slow_but, slow_rows_but

pytest.importorskip("zuko")

DISCRETE = {variant.model: variant for variant in (NICE, REALNVP, MAF, SPLINE)}
EVERY = {**DISCRETE, FFJORD.model: FFJORD}
SPECS = {spec.name: spec for spec in vars(specs).values() if getattr(spec, "name", None) in EVERY}
DIM = 4
every = pytest.mark.parametrize("name", EVERY)
discrete = pytest.mark.parametrize("name", DISCRETE)


def correlated(n=400, dim=DIM):
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mixing + 1


def random_flow(variant, strength=0.5, dim=DIM):
    """A flow far from the identity: its networks' last layers are no longer zero."""
    settings = {"event_shape": (dim,), "layers": 3, "width": 16, "blocks": 1, "dropout": 0.0}
    generator = torch.Generator().manual_seed(1)
    steps = fresh(lambda: variant.transforms(settings), generator)
    moved(steps, generator, strength)
    return NormalizingFlow(
        in_float64(FlowNetwork(steps, principal_axes(correlated(dim=dim), 0.1))), (dim,)
    )


def random_ffjord(strength=0.5):
    generator = torch.Generator().manual_seed(1)
    drift = fresh(lambda: FFJORD._drift({"event_shape": (DIM,), "width": 16}), generator)
    moved(drift, generator, strength)
    return in_float64(ContinuousNetwork(drift, principal_axes(correlated(), 0.1)))


def in_float64(network):
    """The network without parameter gradients, its principal directions orthogonal to float64's rounding."""
    network = network.double().eval().requires_grad_(False)
    network.basis = torch.linalg.qr(network.basis).Q
    return network


def moved(module, generator, strength):
    for layer in module.modules():
        if getattr(layer, "zero_start", False):
            torch.nn.init.normal_(layer.weight, std=strength, generator=generator)
            torch.nn.init.normal_(layer.bias, std=strength, generator=generator)


def velocity_field(network):
    return stk.Velocity(network, (DIM,), base=normal_base())


def normal_base():
    return torch.distributions.MultivariateNormal(
        torch.zeros(DIM).double(), torch.eye(DIM).double()
    )


@discrete
def test_log_determinant_is_that_of_the_jacobian(name):
    flow, x = random_flow(DISCRETE[name]), correlated(5)
    _, ladj = flow.network(x)
    for i in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(lambda y: flow.network(y[None])[0][0], x[i])
        torch.testing.assert_close(ladj[i], jacobian.slogdet().logabsdet, rtol=1e-9, atol=1e-9)
    assert (
        ladj - ladj.mean()
    ).abs().max() > 0.01 or name == "digits-nice"  # whose volume is the same everywhere


@discrete
def test_there_and_back(name):
    flow, x = random_flow(DISCRETE[name]), correlated(200)
    torch.testing.assert_close(flow.decode(flow.encode(x)), x, rtol=0, atol=1e-8)
    z = torch.randn(200, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(flow.encode(flow.decode(z)), z, rtol=0, atol=1e-8)


@discrete
def test_density_integrates_to_one(name):
    flow = random_flow(DISCRETE[name], strength=0.2, dim=2)
    side = torch.linspace(-15, 15, 401, dtype=torch.float64)
    total = flow.log_prob(torch.cartesian_prod(side, side)).exp().sum() * (side[1] - side[0]) ** 2
    assert float(total) == pytest.approx(1, abs=2e-3)


@pytest.mark.thorough
@discrete
def test_draws_follow_the_density(name):
    """With q the flow and g a Gaussian, E_q[g / q] = 1, and latents are normal; a wrong volume, or shifted draws, are seen."""
    flow = random_flow(DISCRETE[name], strength=0.2)
    x = flow.draw(20_000, stk.Noise(0, 20_000, dtype=torch.float64))
    narrow = torch.distributions.MultivariateNormal(x.mean(0), 0.5 * x.T.cov())
    ratio = (narrow.log_prob(x) - flow.log_prob(x)).exp()
    assert_mean(ratio, 1.0, "E_q[g / q]")
    assert mean_z(ratio * 1.2, 1.0).abs().max() > z_limit()  # a volume wrong by a fifth
    latent = flow.encode(x)
    for i in range(DIM):
        assert_distribution(latent[:, i], norm.cdf, f"latent {i}")
    shifted = flow.encode(x + 0.1 * x.std(0))
    assert min(ks_p(shifted[:, i], norm.cdf) for i in range(DIM)) < FALSE_ALARM


@every
def test_untrained_it_is_the_gaussian_of_the_data(name):
    data = correlated()
    truth = torch.distributions.MultivariateNormal(data.mean(0), data.T.cov(correction=0))
    spread = principal_axes(data, 0.0)
    if name == FFJORD.model:
        network = random_ffjord(0.0)
        network.mean, network.basis, network.std = (part.double() for part in spread)
        found = stk.log_prob(velocity_field(network), data[:5], rtol=1e-9, atol=1e-9).value
    else:
        flow = random_flow(DISCRETE[name], 0.0)
        found = NormalizingFlow(FlowNetwork(flow.network.steps, spread).double(), (DIM,)).log_prob(
            data[:5]
        )
    torch.testing.assert_close(found, truth.log_prob(data[:5]), rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_ffjord_trains_on_the_density_that_it_has():
    """What the solver integrates in whitened coordinates, averaged over all signs, is the exact density in data space."""
    network, x = random_ffjord(0.1), correlated(3)
    exact = stk.log_prob(velocity_field(network), x, rtol=1e-9, atol=1e-9).value
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * DIM)
    solver = stk.ProbabilityFlow("rk4", 64)
    with torch.no_grad():
        values, kinetic = zip(
            *(network.solved(row.expand(len(signs), DIM), signs, solver) for row in x), strict=True
        )
    torch.testing.assert_close(torch.stack(values).mean(1), exact, rtol=0, atol=1e-6)
    assert torch.stack(values).std(1).min() > 1e-3  # the signs matter
    assert torch.stack(kinetic).min() > 0


def test_ffjord_gradients_are_those_of_finite_differences():
    network, x = random_ffjord(), correlated(3)
    signs = torch.tensor([[1.0, -1, 1, 1], [1, 1, -1, -1], [-1, 1, 1, 1]], dtype=torch.float64)
    solver, bias = stk.ProbabilityFlow("rk4", 3), network.drift.leave.bias.requires_grad_()

    def total():
        value, kinetic = network.solved(x, signs, solver)
        return (value + kinetic).sum()

    (gradient,) = torch.autograd.grad(total(), bias)
    for i in range(DIM):
        ends = []
        for h in (1e-5, -2e-5):
            with torch.no_grad():
                bias[i] += h
                ends.append(float(total()))
        with torch.no_grad():
            bias[i] += 1e-5
        assert float(gradient[i]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-6)


def test_ffjord_claims_no_score():
    field = build(SPECS["digits-ffjord"])
    x = torch.zeros(2, 1, 8, 8)
    assert field.provides == {"velocity", "base"}
    for asked in (
        lambda: field.score(x, 0.5),
        lambda: field.denoise(x, 0.5),
        lambda: field.at(0.5).score(x),
    ):
        with pytest.raises(stk.MissingCapability):
            asked()
    with pytest.raises(stk.MissingCapability):
        stk.sample(field, stk.AnnealedLangevin(), chains=2)


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but(EVERY, "digits-realnvp", "digits-ffjord"))
def test_it_keeps_the_laws(name):
    failed = [result for result in checked(SPECS[name]) if result.status == "failed"]
    assert not failed, failed


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("shape", "name"),
    slow_rows_but(
        [(shape, name) for shape in ((2,), (1, 2, 3)) for name in EVERY],
        *(((2,), name) for name in EVERY),
        *(((1, 2, 3), name) for name in ("digits-maf",)),
    ),
)
def test_a_short_training_on_any_event_shape_round_trips(name, shape, tmp_path):
    data = 3 * torch.randn(64, *shape, generator=torch.Generator().manual_seed(0)) + 10
    stored, again = (EVERY[name].train(data, steps=3, width=16, bin=0.0) for _ in range(2))
    assert all(torch.equal(stored.weights[key], again.weights[key]) for key in stored.weights)
    stored.save(tmp_path / "w.safetensors")
    field = EVERY[name].build(tmp_path / "w.safetensors")
    assert field.event_shape == shape
    x = data[:5]
    if name == FFJORD.model:
        draws = stk.sample(field, stk.ProbabilityFlow("rk4", 4), chains=3)
        assert draws.final.shape == (3, *shape)
        assert not draws.failures
    else:
        assert field.draw(3, stk.Noise(0, 3)).shape == (3, *shape)
        network = stored.into(
            lambda: FlowNetwork(EVERY[name].transforms(stored.settings), stored.spread)
        )
        whole = NormalizingFlow(network, shape)
        torch.testing.assert_close(
            field.log_prob(x), whole.log_prob(x), rtol=1e-2, atol=1e-2
        )  # the file holds float16


@every
@pytest.mark.parametrize(
    ("data", "bin"),
    [
        (torch.ones(5), 0.1),
        (torch.tensor([[1.0, math.nan]] * 3), 0.1),
        (torch.zeros(5, 2), 0.1),
        (torch.randn(9, 1, generator=torch.Generator().manual_seed(0)), 0.1),
        (torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]), 0.0),
        (correlated(9), -1.0),
    ],
)
def test_training_refuses_what_it_cannot_use(name, data, bin):
    with pytest.raises(stk.InvalidArgument, match=r"data|bin"):
        EVERY[name].train(data, steps=1, bin=bin)


def test_without_zuko_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zuko", None)
    with pytest.raises(stk.MissingDependency, match=r"scoretk\[flows\]"):
        NICE.build()
    assert FFJORD.build().event_shape == (1, 8, 8)  # needs none


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@every
def test_shipped_weights_tell_how_they_were_made(name):
    made = read_weights(shipped(name), name).notes
    assert made["command"].startswith(f"scoretk fit {name} --seed 0")
    assert {"steps", "bin", "torch", "scoretk"} <= made.keys()
    assert sum(shipped(name).stat().st_size for name in EVERY) < 1_100_000


BITS = {
    "digits-nice": 2.75,
    "digits-realnvp": 2.53,
    "digits-maf": 2.55,
    "digits-spline": 2.51,
    "digits-ffjord": 2.61,
}
"""At most so many bits a dimension on the test images. The Gaussian with the training images' covariance takes 2.936."""
FLOORS = {
    "digits-nice": 2.3,
    "digits-realnvp": 1.6,
    "digits-maf": 1.5,
    "digits-spline": 1.5,
    "digits-ffjord": 3.1,
}
"""At most so far from test images in sliced Wasserstein distance, over that of training images."""
BALANCE = {
    "digits-nice": 0.95,
    "digits-realnvp": 0.97,
    "digits-maf": 0.97,
    "digits-spline": 0.98,
    "digits-ffjord": 0.93,
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", slow_but([name for name in EVERY if name != FFJORD.model], "digits-realnvp")
)
def test_chains_start_where_steps_are_possible(name):
    field, run = build(SPECS[name]), {"chains": 256, "steps": 50, "keep": "last"}
    start = field.initial(256, stk.Noise(0, 256))
    mean, std = field.network.mean, field.network.std
    spread = field.network._into(start.flatten(1) - mean) / std
    assert float(spread.mean().abs()) < 0.01
    assert float(spread.std()) == pytest.approx(0.5, abs=0.01)
    draws = stk.sample(field, stk.ULA(1e-4), **run)
    assert not draws.failures
    if name == "digits-realnvp":  # where fields without a start of their own begin
        normals = stk.Noise(0, 256).normal(0, 0, (1, 8, 8))
        assert stk.sample(field, stk.ULA(1e-4), init=normals, **run).failures == {"NONFINITE": 256}


@pytest.mark.parametrize("name", slow_but(EVERY, "digits-realnvp"))
def test_shipped_likelihood_beats_a_gaussian(name, digits):
    levels = ((digits.test + 1) * 8).round()
    options = {"method": "rk4", "steps": 8, "probes": 2} if name == FFJORD.model else {}
    how = {"levels": 17, "interval": (-1.0625, 1.0625)}
    found = stk.bits_per_dim(build(SPECS[name]), levels, **how, **options).value.mean()
    assert found < BITS[name]
    if name == "digits-nice":
        rows = digits.train + 0.125 * (
            torch.rand(digits.train.shape, generator=torch.Generator().manual_seed(0)) - 0.5
        )
        covariance = rows.flatten(1).double().T.cov()
        gaussian = torch.distributions.MultivariateNormal(
            rows.flatten(1).double().mean(0), covariance
        )
        field = SimpleNamespace(event_shape=(64,), log_prob=gaussian.log_prob)
        known = stk.bits_per_dim(field, levels.flatten(1).double(), **how).value.mean()
        assert float(known) == pytest.approx(2.936, abs=0.01)
        assert known > max(BITS.values())


@pytest.mark.parametrize("name", slow_but(EVERY, "digits-spline"))
def test_shipped_samples_are_digits(name, digits):
    field, n = build(SPECS[name]), 720
    if name == FFJORD.model:
        x = stk.sample(field, stk.ProbabilityFlow("rk4", 6), chains=n).final
    else:
        x = field.draw(n, stk.Noise(0, n))
    assert x.isfinite().all()
    distance = sum(sliced_wasserstein(part, digits.test, seed=0) for part in x.split(360)) / 2
    assert distance < FLOORS[name] * 0.061
    judge = Classifier(digits.train, digits.train_labels).judge
    assert judge(x).balance > BALANCE[name]


@discrete
def test_test_images_are_encoded_as_normals(name, digits):
    """Whitened and flowed, held-out images are near normal in mean and variance, and come back to rounding."""
    field = build(SPECS[name])
    with torch.no_grad():
        latent = field.encode(digits.test)
        back = field.decode(latent)
    assert float(latent.square().mean()) == pytest.approx(1, abs=0.3)
    assert (back - digits.test).abs().max() < 1e-3
