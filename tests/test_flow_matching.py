"""Flow matching in its four ways: what each claims of densities, couplings and paths, and what the shipped weights promise."""

import json

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.diagnostics import Classifier, copies, sliced_wasserstein
from scoretk.learn.losses import flow_matching, prediction_error, stratified
from scoretk.models import specs
from scoretk.models.digits.data import load_digits
from scoretk.models.digits.flow_matching import CLASSES, FLOW, INTERPOLANT, OPTIMAL, Units
from scoretk.models.digits.stored import read_weights, shipped
from scoretk.plugins.models import build
from tests.evidence import assert_mean, ks_p, mean_z, z_limit
from tests.lawful import checked
from tests.marks import in_turn, slow_but

NEW = {"digits-flow-ot": OPTIMAL, "digits-flow-classes": CLASSES, "digits-interpolant": INTERPOLANT}
SPECS = {
    spec.name: spec
    for spec in (specs.digits_flow_ot, specs.digits_flow_classes, specs.digits_interpolant)
}
FLOOR = 0.061
"""Sliced Wasserstein distance of 360 training images to the 360 test images."""
SEEDS = range(3)


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def classifier(digits):
    return Classifier(digits.train, digits.train_labels)


def rows(n=64, shape=(2,), mean=10.0, seed=0):
    return mean + 3 * torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def trained(variant, shape=(2,), **settings):
    """A short training of any variant on rows of its own."""
    settings = {"steps": 3, "width": 16, **settings}
    start = {"start": rows(40, shape, mean=-5.0, seed=1)} if variant is CLASSES else {}
    return variant.train(rows(shape=shape), **start, **settings)


def sampled(field, method="heun", steps=20, chains=360):
    solver = stk.ProbabilityFlow(method, steps, grid="uniform")
    return [stk.sample(field, solver, chains=chains, seed=s).final for s in SEEDS]


def distance(draws, real):
    return sum(sliced_wasserstein(x, real, seed=i) for i, x in enumerate(draws)) / len(draws)


# --- the path of the interpolant -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bulge", [0.0, 0.5, 2.0, 30.0])
def test_an_interpolant_is_the_gaussian_path_of_its_three_terms(bulge):
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    gamma, slope = bulge * t * (1 - t), bulge * (1 - 2 * t)
    path = stk.Interpolant(bulge)
    torch.testing.assert_close(path.sigma(t) ** 2, (1 - t) ** 2 + gamma**2)
    torch.testing.assert_close(path.sigma_dsigma(t), gamma * slope - (1 - t))
    assert bool((path.log_snr(t).diff() > 0).all())
    assert path.sigma(1.0) == 0
    assert float(path.dsigma(1.0)) == pytest.approx(-((1 + bulge**2) ** 0.5))
    inside = torch.linspace(-30, 30, 61, dtype=torch.float64)
    torch.testing.assert_close(path.log_snr(path.t(inside)), inside, rtol=1e-6, atol=1e-6)
    assert path.t(torch.tensor([-torch.inf, torch.inf])).tolist() == [0, 1]


def test_without_a_bulge_it_is_the_straight_path():
    t, one, other = torch.linspace(0, 1, 9, dtype=torch.float64), stk.Interpolant(0.0), stk.Linear()
    for got, expected in zip(one(t), other(t), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("bulge", [-1, torch.nan, "2"])
def test_a_bulge_is_a_number_of_at_least_zero(bulge):
    with pytest.raises(stk.InvalidArgument, match="bulge"):
        stk.Interpolant(bulge)


def explicit(t, gamma, slope, n=200_000):
    """Draws of x_t and its rate for data N(1, 1/4), written out with its two noises."""
    x_0, x_1, z = torch.randn(3, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x_1 = 1 + x_1 / 2
    return (1 - t) * x_0 + t * x_1 + gamma * z, x_1 - x_0 + slope * z


def test_the_velocity_of_an_interpolant_is_the_mean_rate_of_its_three_terms():
    t, bulge = 0.4, 2.0
    x, rate = explicit(t, bulge * t * (1 - t), bulge * (1 - 2 * t))
    exact = stk.fields.resolve(
        stk.load("gaussian", dim=1, mean=1.0, std=0.5).noised(stk.Interpolant(bulge)), {"velocity"}
    )
    rest = rate - exact.velocity(x[:, None], t)[:, 0]
    assert_mean(
        torch.stack([rest, rest * x], 1), torch.zeros(2), "rate - velocity, alone and times x_t"
    )
    without = rest - bulge * (1 - 2 * t) * 0.1  # a tenth of gamma' too much
    assert mean_z(without[:, None], 0.0).abs().max() > z_limit()


def test_velocity_prediction_is_flow_matching_on_the_straight_path_and_least_at_the_velocity():
    generator = torch.Generator().manual_seed(0)
    x, noise, t = (
        torch.randn(5, 3, generator=generator),
        torch.randn(5, 3, generator=generator),
        stratified(5, generator),
    )

    def net(x, t):
        return x * t[:, None] + 1

    straight = prediction_error(net, x, t, noise, stk.Linear(), "velocity")
    torch.testing.assert_close(straight, flow_matching(net, x, t, noise))
    field = stk.load("gaussian", dim=1, mean=1.0, std=0.5).noised(stk.Interpolant())
    data, noise, t = torch.randn(3, 40_000, generator=generator, dtype=torch.float64)
    data, t = 1 + data[:, None] / 2, torch.sigmoid(t)

    def loss(scale):
        return prediction_error(
            lambda x, t: scale * field.velocity(x, t),
            data,
            t,
            noise[:, None],
            field.path,
            "velocity",
        )

    best, more, less = (loss(s) for s in (1.0, 1.1, 0.9))
    for worse in (more, less):
        assert float(mean_z(worse - best, 0.0)) > z_limit()
    with pytest.raises(stk.InvalidArgument, match="noise"):
        prediction_error(net, x, stratified(5, generator), x[:4], stk.Linear(), "velocity")


# --- training, and what the fields offer -----------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "shape"), in_turn(NEW, [(2,), (1, 2, 3)]))
def test_a_short_training_round_trips_and_repeats(name, shape, tmp_path):
    variant = NEW[name]
    stored, again = trained(variant, shape), trained(variant, shape)
    assert stored.notes == again.notes
    assert stored.notes["command"].startswith(f"scoretk fit {name} --data FILE --seed 0")
    json.dumps([stored.settings, stored.notes])
    assert all(torch.equal(stored.weights[k], again.weights[k]) for k in stored.weights)
    stored.save(tmp_path / "w.safetensors")
    field = variant.build(tmp_path / "w.safetensors")
    x = stk.sample(field, stk.ProbabilityFlow("euler", 4), chains=3).final
    assert x.shape == (3, *shape)
    assert bool(x.isfinite().all())
    again.save(tmp_path / "again.safetensors")
    other = variant.build(tmp_path / "again.safetensors")
    assert torch.equal(stk.sample(other, stk.ProbabilityFlow("euler", 4), chains=3).final, x)
    with pytest.raises(stk.InvalidArgument, match="weights of digits-flow"):
        variant.build(shipped("digits-flow"))


@pytest.mark.parametrize("variant", NEW.values(), ids=NEW)
@pytest.mark.parametrize(
    "bad", [torch.zeros(5, 2), torch.full((9, 2), torch.nan), torch.ones(4), "x"]
)
def test_bad_data_are_refused(variant, bad):
    start = {"start": rows(9)} if variant is CLASSES else {}
    with pytest.raises(stk.InvalidArgument, match=r"data|start"):
        variant.train(bad, steps=1, **start)


def test_starts_come_as_a_tensor_or_a_file_and_must_fit(tmp_path):
    data, start = rows(), rows(30, mean=-5.0)
    np.save(tmp_path / "start.npy", start.numpy())
    one, other = (
        CLASSES.train(data, start=s, steps=2, width=8) for s in (start, str(tmp_path / "start.npy"))
    )
    assert all(torch.equal(one.weights[k], other.weights[k]) for k in one.weights)
    for wrong in (None, rows(30, (3,)), "nowhere.npy"):
        with pytest.raises(stk.InvalidArgument, match=r"start|nowhere"):
            CLASSES.train(data, start=wrong, steps=1)
    with pytest.raises(stk.InvalidArgument, match="data"):
        CLASSES.train(start=start, steps=1)
    for name, label in (("source", 10), ("target", -1), ("target", 2.0)):
        with pytest.raises(stk.InvalidArgument, match=name):
            CLASSES.train(steps=1, **{name: label})


def test_other_classes_and_other_bulges_can_be_asked_for(tmp_path, digits):
    stored = CLASSES.train(source=1, target=7, steps=1, width=8)
    assert torch.equal(stored.weights["start"], digits.train[digits.train_labels == 1])
    assert "--set source=1 --set target=7" in stored.notes["command"]
    INTERPOLANT.train(rows(), bulge=0.5, steps=1, width=8).save(tmp_path / "w.safetensors")
    assert INTERPOLANT.build(tmp_path / "w.safetensors").path == stk.Interpolant(0.5)
    with pytest.raises(stk.InvalidArgument, match="bulge"):
        INTERPOLANT.train(rows(), bulge=-1.0, steps=1)


@pytest.mark.parametrize("name", slow_but(NEW, "digits-flow-classes"))
def test_conformance(name):
    failed = [r for r in checked(build(SPECS[name])) if r.status == "failed"]
    assert not failed, failed


def test_only_independent_coupling_gives_a_score():
    x = torch.zeros(1, 1, 8, 8)
    assert INTERPOLANT.build().score(x, 0.5).shape == x.shape
    for variant in (OPTIMAL, CLASSES):
        with pytest.raises(stk.MissingCapability, match="score"):
            variant.build().score(x, 0.5)


def test_units_are_those_of_the_starts():
    start = rows(50_000, (3,), mean=7.0)
    noisy = start + 2 * torch.randn(start.shape, generator=torch.Generator().manual_seed(8))
    inside = Units.of(start, 2.0).into(noisy)
    torch.testing.assert_close(inside.mean(0), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(inside.var(), torch.tensor(1.0), atol=0.02, rtol=0)


@pytest.mark.thorough
@pytest.mark.parametrize("variant", slow_but(NEW.values(), INTERPOLANT), ids=NEW)
def test_the_density_is_normalised_and_that_of_the_draws(variant, tmp_path):
    """In the plane: log_prob on a grid adds up to 1, and its first marginal is the distribution of the draws."""
    trained(variant, steps=60, blocks=1).save(tmp_path / "w.safetensors")
    field = variant.build(tmp_path / "w.safetensors")
    axis = torch.linspace(-14, 34, 51)
    cell = float(axis[1] - axis[0])
    estimate = stk.log_prob(field, torch.cartesian_prod(axis, axis), method="rk4", steps=16)
    mass = estimate.value.double().exp().reshape(51, 51).sum(1) * cell**2
    assert float(mass.sum()) == pytest.approx(1, abs=5e-3)
    x = stk.sample(field, stk.ProbabilityFlow("heun", 32), chains=4000).final[:, 0]

    def cdf(values):
        return np.interp(values, (axis + cell / 2).numpy(), mass.cumsum(0).numpy())

    assert ks_p(x, cdf) > 1e-6
    assert ks_p(x + 0.5, cdf) < 1e-6  # a sixth of a standard deviation away


# --- the shipped weights -----------------------------------------------------------------------------------------------


def test_shipped_weights_are_small_and_made_by_their_default_command():
    assert sum(shipped(name).stat().st_size for name in NEW) < 900_000
    for name in NEW:
        made = read_weights(shipped(name), name).notes
        assert made["command"].startswith(f"scoretk fit {name} --seed 0 --set ")
        assert made["seed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", slow_but(["digits-flow-ot", "digits-interpolant"], "digits-interpolant")
)
def test_samples_are_as_near_to_test_digits_as_the_promise(name, digits, classifier):
    x = sampled(NEW[name].build())
    assert distance(x, digits.test) < 1.3 * FLOOR
    blurred = [
        v + 0.35 * torch.randn(v.shape, generator=torch.Generator().manual_seed(0)) for v in x
    ]
    assert distance(blurred, digits.test) > 1.3 * FLOOR
    real, ours = classifier.judge(digits.test), classifier.judge(torch.cat(x))
    assert ours.balance > 0.98
    assert abs(ours.confidence - real.confidence) < 0.06
    assert copies(x[0], digits.train, digits.test).share < 0.1


def bend(field):
    """`int |u|^2 dt / |x_1 - x_0|^2 - 1` along the flow, the mean over chains: 0 where all paths are straight and even."""
    solver = stk.ProbabilityFlow("euler", 50, grid="uniform")
    way = stk.sample(field, solver, chains=200, keep="all").x
    start = field.base.draw(200, stk.Noise(0, 200))[:, None]
    way = torch.cat([start, way], 1).flatten(2).double()
    length = (way[:, -1] - way[:, 0]).square().sum(1)
    return float((50 * way.diff(dim=1).square().sum((1, 2)) / length).mean()) - 1


@pytest.mark.slow
def test_optimal_transport_makes_paths_straighter_so_that_few_steps_do(digits):
    straight, plain = OPTIMAL.build(), FLOW.build()
    assert 0 < bend(straight) < 0.8 * bend(plain)
    for steps in (4, 8):
        ours, theirs = (
            distance(sampled(f, "euler", steps), digits.test) for f in (straight, plain)
        )
        assert ours < 0.9 * theirs, (steps, ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("eta", slow_but([0.0, 0.5, 1.0, 1.4], 0.5))
def test_an_interpolant_serves_any_amount_of_noise(eta, digits):
    field = INTERPOLANT.build()
    x = [
        stk.sample(field, stk.ReverseSDE("ancestral", 40, eta=eta), chains=360, seed=s).final
        for s in SEEDS
    ]
    assert distance(x, digits.test) < 1.4 * FLOOR


@pytest.mark.slow
def test_threes_become_eights_that_are_near_their_start(digits, classifier):
    field = CLASSES.build()
    threes = digits.train[digits.train_labels == 3]
    assert torch.equal(field.base.means.float(), threes)
    solver, n = stk.ProbabilityFlow("heun", 16), 300
    x, start = stk.sample(field, solver, chains=n).final, field.base.draw(n, stk.Noise(0, n))
    classes = classifier.judge(x).counts / n
    assert classes[8] > 0.95
    assert classifier.judge(start).counts[3] > 0.8 * n
    eights = digits.test[digits.test_labels == 8]
    assert sliced_wasserstein(x, eights) < 0.5 * sliced_wasserstein(start, eights)
    own, others = ((x.roll(k, 0) - start).flatten(1).norm(dim=1) for k in (0, 1))
    assert (
        float(mean_z((others - own)[:, None], 0.0)) > z_limit()
    )  # which independent coupling's would be nearer to 0
    inside = stk.log_prob(field, eights[:20], probes=4, rtol=1e-3, atol=1e-3).value
    outside = stk.log_prob(
        field, digits.test[digits.test_labels == 0][:20], probes=4, rtol=1e-3, atol=1e-3
    ).value
    assert float(inside.mean()) > float(outside.mean()) + 100
