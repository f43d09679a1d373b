"""The diffusion and score families: networks, times and losses against Gaussians and a mixture, shipped models against digits.

Statistical tests have the false-alarm rate of `tests.evidence`; beside each stands a wrong version that it must catch.
"""

from functools import partial

import pytest
import torch
from scipy.stats import norm
from torch import distributions as td

import scoretk as stk
from scoretk.diagnostics import Classifier, sliced_wasserstein
from scoretk.fields.combine import guided
from scoretk.learn.losses import denoising_score_matching, prediction_error
from scoretk.models import specs
from scoretk.models.digits.data import load_digits
from scoretk.models.digits.diffusion import (
    DIGITS_CLASS,
    DIGITS_DIFFUSION,
    DIGITS_EDM,
    DIGITS_V,
    VARIANTS,
    balanced,
    log_normal,
    uniform,
)
from scoretk.models.digits.ncsn import DIGITS_NCSN, DIGITS_NCSNV2
from scoretk.models.digits.networks import (
    EDMNetwork,
    PathNetwork,
    PrincipalAxes,
    TimeMLP,
    fresh,
    principal_axes,
)
from scoretk.models.digits.stored import read_weights, shipped
from scoretk.models.targets.mixture import GaussianMixture, gaussian
from scoretk.plugins.models import build
from scoretk.solvers.annealed import AnnealedLangevin, ncsnv2_ladder
from tests.evidence import assert_distribution, ks_p, mean_z, z_limit
from tests.lawful import checked
from tests.marks import slow_but, slow_rows_but

MODELS = {model.name: model for model in (*VARIANTS, DIGITS_NCSN, DIGITS_NCSNV2)}
SPECS = {name: getattr(specs, name.replace("-", "_")) for name in MODELS}
RECIPES = [DIGITS_CLASS.of if variant is DIGITS_CLASS else variant for variant in VARIANTS]
FLOOR = 0.061
FLOORS = dict.fromkeys(MODELS, 1.3) | {
    "digits-ncsn": 1.8,
    "digits-ncsnv2": 1.8,
}  # under their own solvers
SHORT = {"steps": 3, "width": 16}
ENDS = torch.tensor([0.0, 1e-7, 0.5, 1 - 6e-8])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def of(variant, data):
    """An untrained network of the variant on these data."""
    spread = principal_axes(data, 0.0)
    backbone = fresh(lambda: TimeMLP(data[0].numel(), 8, 1), rng())
    return variant.network(backbone, variant.path, variant.predicts, spread).double()


class Times(torch.nn.Module):
    def forward(self, rows, c_noise):
        return rows * c_noise[:, None]


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def classifier(digits):
    return Classifier(digits.train, digits.train_labels)


# networks


@pytest.mark.thorough
@pytest.mark.parametrize("variant", slow_but(RECIPES, *RECIPES[1:4]), ids=lambda v: v.name)
def test_an_untrained_network_has_the_density_of_the_gaussian_that_it_starts_from(variant):
    data = 0.6 * normal(4000, 3, seed=2) @ (torch.eye(3) + 0.5 * normal(3, 3, seed=1)) + 0.03
    field, x = stk.Diffusion(of(variant, data), (3,), variant.path, variant.predicts), data[:5]
    cov, one = data.T.cov(correction=0), torch.eye(3, dtype=torch.float64)
    if variant.network is EDMNetwork:
        cov = cov.diagonal().mean() * one
    ended = cov + float(variant.path.sigma(1.0)) ** 2 * one  # VE and EDM end above 0
    exact, wider = (
        td.MultivariateNormal(data.mean(0), c).log_prob(x) for c in (ended, 1.05 * ended)
    )
    found = stk.log_prob(field, x, rtol=1e-6, atol=1e-6).value
    assert (
        float((found - exact).abs().max()) < 5e-3
    )  # paths start at noise alone, without the last of the mean
    assert float((found - wider).abs().max()) > 2e-2


def test_edm_s_preconditioning_is_that_of_one_standard_deviation_and_its_coefficients_are_the_paper_s():
    data = 0.6 * normal(500, 4) - 0.4
    network = of(DIGITS_EDM, data)
    x, t = normal(6, 4, seed=3), torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    spread = PrincipalAxes(network.mean, None, network.std)
    plain = PathNetwork(network.backbone, DIGITS_EDM.path, "data", spread)
    torch.testing.assert_close(network(x, t), plain(x, t))  # the backbone is still zero
    network.backbone = Times()
    sigma, s = DIGITS_EDM.path.sigma(t)[:, None], network.std[0]
    root, y = (sigma**2 + s**2).sqrt(), x - network.mean
    paper = network.mean + s**2 / root**2 * y + sigma * s / root * (y / root) * sigma.log() / 4
    torch.testing.assert_close(network(x, t), paper)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0, 8.0])
def test_the_untold_network_sees_the_level_in_x(sigma, digits):
    field, stored = DIGITS_NCSNV2.build(), read_weights(shipped("digits-ncsnv2"), "digits-ncsnv2")
    network = PathNetwork(torch.nn.Identity(), field.path, "noise", stored.spread)
    x = digits.test + sigma * torch.randn(digits.test.shape, generator=rng())
    seen = field.path.sigma(network.apparent_time(x))
    floor2 = 64 / float(network.std.pow(-2).sum())
    assert float(seen.square().mean()) == pytest.approx(
        min(sigma**2 + floor2, field.path.sigma_max**2), rel=0.15
    )
    assert float(seen.std() / seen.mean()) < 0.3


# times, weights and losses


@pytest.mark.parametrize("variant", RECIPES, ids=lambda v: v.name)
@pytest.mark.parametrize("s", [0.01, 0.5, 30.0])
def test_times_lie_in_the_path_and_weighted_losses_are_finite_to_both_ends(variant, s):
    t, weight = variant.levels(ENDS, variant.path, variant.predicts, s)
    assert t.dtype == weight.dtype == ENDS.dtype
    assert bool(((t >= 0) & (t <= 1)).all())
    assert bool((t.diff() >= 0).all() or (t.diff() <= 0).all())
    assert bool((weight > 0).all() and weight.isfinite().all())
    x, noise = s * torch.randn(4, 3, generator=rng()), torch.randn(4, 3, generator=rng(1))
    network = partial(of(variant, s * normal(50, 3)).float())
    assert bool(
        (weight * prediction_error(network, x, t, noise, variant.path, variant.predicts))
        .isfinite()
        .all()
    )


def test_drawn_times_have_the_laws_that_they_are_named_for():
    u, s = torch.rand(20_000, generator=rng(), dtype=torch.float64), 0.7
    for variant in (v for v in RECIPES if v.levels is balanced):
        t, _ = balanced(u, variant.path, variant.predicts, s)
        inside = (t > 0) & (t < 1)
        angle = torch.atan2(variant.path.alpha(t) * s, variant.path.sigma(t)) / (torch.pi / 2)
        torch.testing.assert_close(
            angle[inside], u.clamp(0.002, 0.998)[inside], rtol=1e-6, atol=1e-6
        )
        assert float(inside.double().mean()) > 0.95
    t, weight = log_normal(u, stk.EDM(), "data", s)
    sigma = stk.EDM().sigma(t)
    assert_distribution(sigma.log(), norm(-1.2, 1.2).cdf)
    assert ks_p(sigma.log(), norm(-1.2, 1.3).cdf) < 1e-6
    torch.testing.assert_close(weight * (sigma * s) ** 2 / (sigma**2 + s**2), torch.ones_like(t))
    assert torch.equal(uniform(u, stk.Cosine(), "v", s)[0], u)


def test_balanced_weights_make_every_prediction_the_same_objective():
    path, s, u = stk.VE(), 0.6, torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    x, eps = normal(9, 2), normal(9, 2, seed=1)
    field = stk.Diffusion(lambda y, t: torch.tanh(y), (2,), path, "noise")
    losses = {}
    for name, net in {
        "noise": field.noise,
        "score": field.score,
        "data": field.denoise,
        "v": field.v,
    }.items():
        t, weight = balanced(u, path, name, s)
        losses[name] = weight * prediction_error(net, x, t, eps, path, name)
    for name, value in losses.items():
        torch.testing.assert_close(value, losses["noise"], msg=name)


@pytest.mark.parametrize("variant", RECIPES, ids=lambda v: v.name)
def test_the_exact_prediction_minimises_the_weighted_loss(variant):
    """At the exact predictor the loss has no slope along any change of it: here a constant, the identity and tanh."""
    n, s = 20_000, 0.6
    exact = gaussian(dim=2, mean=[0.3, -0.2], std=s).noised(variant.path)
    predict = {"noise": exact.noise, "score": exact.score, "data": exact.denoise, "v": exact.v}[
        variant.predicts
    ]
    x, eps = s * normal(n, 2) + torch.tensor([0.3, -0.2]).double(), normal(n, 2, seed=1)
    t, weight = variant.levels(
        torch.rand(n, generator=rng(2), dtype=torch.float64), variant.path, variant.predicts, s
    )

    def slopes(net):
        theta = torch.zeros(n, 3, dtype=torch.float64, requires_grad=True)

        def moved(y, time):
            a, b, c = theta.unbind(1)
            return net(y, time) + a[:, None] + b[:, None] * y + c[:, None] * torch.tanh(3 * y)

        loss = weight * prediction_error(moved, x, t, eps, variant.path, variant.predicts)
        return torch.autograd.grad(loss.sum(), theta)[0]

    assert mean_z(slopes(predict), 0.0).abs().max() < z_limit(3)
    wrong = {
        "sign": lambda y, time: -predict(y, time),
        "scale": lambda y, time: 1.5 * predict(y, time),
    }
    for name, net in wrong.items():
        assert mean_z(slopes(net), 0.0).abs().max() > 2 * z_limit(3), name


def test_the_ladder_s_loss_is_least_for_the_exact_score():
    n, path = 20_000, stk.VE(0.05, 2.0)
    exact, ladder = (
        gaussian(dim=2, std=0.6).noised(path),
        path.sigma(torch.linspace(0, 1, 8, dtype=torch.float64)),
    )
    level = torch.randint(8, (n,), generator=rng())
    t, x, eps = path.t(-2 * ladder.log())[level], 0.6 * normal(n, 2), normal(n, 2, seed=1)

    def slopes(power):
        theta = torch.zeros(n, 1, dtype=torch.float64, requires_grad=True)

        def score(y):
            return (1 + power + theta) * exact.score(y, t)

        return torch.autograd.grad(
            denoising_score_matching(score, x, eps, ladder[level]).sum(), theta
        )[0]

    assert mean_z(slopes(0.0), 0.0).abs().max() < z_limit()
    assert mean_z(slopes(0.05), 0.0).abs().max() > 2 * z_limit()


# training


LEARNERS = [
    name for name in MODELS if name not in ("digits-diffusion", "digits-subvp")
]  # which learn as digits-ve does


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but(LEARNERS, "digits-edm"))
def test_training_learns_what_a_gaussian_does_not_know(name, tmp_path):
    """Two narrow clusters: after a short training the denoiser is much nearer to the exact one than the Gaussian answer is."""
    centres = torch.tensor([[-1.0, -1.0, -1, -1, -1], [1.0, 1.0, 1, 1, 1]])
    mixture = GaussianMixture(centres, torch.tensor([0.3, 0.3]), torch.tensor([1.0, 1.0]))
    data = mixture.draw(1500, stk.Noise(0, 1500))
    more = (
        {"labels": (data[:, 0] > 0).long(), "unlabelled": 0.3} if name == DIGITS_CLASS.name else {}
    )
    model, errors = MODELS[name], {}
    for steps in (1, 280):
        stored = model.train(
            data, steps=steps, width=32, blocks=1, dropout=0.0, smoothing=0.01, **more
        )
        stored.save(tmp_path / "w.safetensors")
        field = model.build(tmp_path / "w.safetensors")
        level = torch.tensor(0.8, dtype=torch.float64)
        t = float(field.path.t(-2 * level.log()))
        alpha, sigma = float(field.path.alpha(t)), float(field.path.sigma(t))
        x = alpha * data[:500] + sigma * torch.randn(500, 5, generator=rng(1))
        with torch.no_grad():
            error = field.denoise(x, t) - mixture.noised(field.path).denoise(x, t)
        errors[steps] = float(error.square().mean())
    slow = name == DIGITS_NCSNV2.name  # which has to learn the level as well
    assert errors[280] < (0.6 if slow else 0.4) * errors[1]


@pytest.mark.parametrize(
    ("shape", "name"),
    slow_rows_but(
        [(shape, name) for shape in ((5,), (1, 2, 3)) for name in MODELS],
        *(((5,), name) for name in MODELS if name not in ("digits-subvp", "digits-ve", "digits-v")),
        ((1, 2, 3), "digits-edm"),
    ),
)
def test_a_short_training_round_trips(name, shape, tmp_path):
    model, data = MODELS[name], 3 * torch.randn(40, *shape, generator=rng()) + 10
    more = {"labels": torch.arange(40) % 4} if name == DIGITS_CLASS.name else {}
    stored, again = (model.train(data, **SHORT, **more) for _ in range(2))
    assert all(torch.equal(stored.weights[key], again.weights[key]) for key in stored.weights)
    stored.save(tmp_path / "w.safetensors")
    field = model.build(tmp_path / "w.safetensors")
    assert field.event_shape == shape
    assert stored.notes["command"].startswith(
        f"scoretk fit {name} --data FILE --seed 0 --set steps=3"
    )
    draws = stk.sample(field, stk.ProbabilityFlow("euler", 4), chains=3)
    assert draws.final.shape == (3, *shape)
    assert not draws.failures


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "bad", [torch.zeros(5, 2), torch.ones(1, 2), torch.tensor([[1.0], [torch.nan]]), "x"]
)
def test_bad_data_are_refused(name, bad):
    with pytest.raises(stk.InvalidArgument, match="data"):
        MODELS[name].train(bad, **SHORT)


@pytest.mark.parametrize(
    "labels", [None, torch.zeros(9), torch.full((10,), -1), torch.full((10,), 0.5), [0] * 10]
)
def test_bad_labels_are_refused(labels):
    with pytest.raises(stk.InvalidArgument, match="labels"):
        DIGITS_CLASS.train(normal(10, 2), labels=labels, **SHORT)
    with pytest.raises(stk.InvalidArgument, match="unlabelled"):
        DIGITS_CLASS.train(normal(10, 2), labels=torch.arange(10), unlabelled=1.0, **SHORT)


def test_a_ladder_upside_down_is_refused():
    with pytest.raises(stk.InvalidArgument, match="sigma_min"):
        DIGITS_NCSN.train(normal(10, 5), sigma_min=2.0, **SHORT)


# shipped weights


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but(MODELS, "digits-ncsn"))
def test_shipped_models_keep_every_law(name):
    assert {c.check: c.detail for c in checked(SPECS[name]) if c.status == "failed"} == {}


@pytest.mark.thorough
def test_the_class_conditional_model_keeps_every_law_with_labels():
    found = checked(DIGITS_CLASS.build(), cond={"label": torch.tensor([3, 0, -1, 9])})
    assert {c.check: c.detail for c in found if c.status == "failed"} == {}


def test_shipped_weights_tell_how_they_were_made_and_are_small():
    new = [shipped(name) for name in MODELS if name != DIGITS_DIFFUSION.name]
    assert sum(file.stat().st_size for file in new) < 1_900_000
    for name in MODELS:
        assert (
            read_weights(shipped(name), name)
            .notes["command"]
            .startswith(f"scoretk fit {name} --seed 0")
        )
        assert build(SPECS[name]).path == MODELS[name].build().path
    with pytest.raises(stk.InvalidArgument, match="digits-v"):
        DIGITS_V.build(shipped("digits-ve"))


def test_the_shipped_ladders_are_as_near_and_as_wide_as_the_published_ones(digits):
    first, published = DIGITS_NCSN.build().path, AnnealedLangevin.ncsn().ladder(None)
    assert first == stk.VE(0.01, 2.0)
    levels = first.sigma(torch.linspace(0, 1, 12, dtype=torch.float64))
    assert 1 < float(levels[0] / levels[1]) <= float(published[0] / published[1])
    assert float(levels[-1]) == pytest.approx(float(published[-1]))
    ladder = ncsnv2_ladder(digits.train, 0.05)
    second, settings = (
        DIGITS_NCSNV2.build(),
        read_weights(shipped("digits-ncsnv2"), "digits-ncsnv2").settings,
    )
    assert (second.path.sigma_max, settings["levels"]) == (
        pytest.approx(float(ladder[0])),
        len(ladder),
    )
    x = digits.test[:3]
    untold = [second.score(x, t) * second.path.sigma(t) for t in (0.2, 0.9)]
    torch.testing.assert_close(*untold)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(MODELS, "digits-edm"))
def test_samples_are_good(name, digits, classifier):
    own = {
        "digits-ncsn": AnnealedLangevin.ncsn(),
        "digits-ncsnv2": AnnealedLangevin.ncsnv2(digits.train, 0.05, 20),
    }
    solver = own.get(name, stk.ProbabilityFlow("heun", steps=20))
    x = [stk.sample(MODELS[name].build(), solver, chains=360, seed=seed).final for seed in range(2)]
    distance = sum(float(sliced_wasserstein(v, digits.test, seed=i)) for i, v in enumerate(x)) / 2
    assert distance < FLOORS[name] * FLOOR
    assert classifier.judge(torch.cat(x)).balance > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(MODELS, "digits-edm", "digits-v"))
def test_held_out_digits_are_likelier_than_under_a_gaussian(name, digits):
    field, x = MODELS[name].build(), digits.test[:40]
    found = stk.log_prob(field, x, rtol=1e-2, atol=1e-2, probes=2)
    mean, basis, std = principal_axes(digits.train, 0.036)
    rival = td.Normal(0.0, std).log_prob((x.flatten(1) - mean) @ basis).sum(1)
    assert not found.status.any()
    assert float((found.value - rival).mean()) > 10
    upside = stk.log_prob(field, x[:10].flip(2), rtol=1e-2, atol=1e-2, probes=2)
    assert float((upside.value - found.value[:10]).mean()) < -10


# classes and guidance


@torch.no_grad()
def test_guidance_of_the_class_conditional_model(digits):
    field, x, label = DIGITS_CLASS.build(), digits.test[:20] + 0.5, torch.arange(20) % 10
    t = torch.linspace(0.05, 0.95, 20)
    conditional, plain = field.predict(x, t, label=label), field.predict(x, t)
    torch.testing.assert_close(field.predict(x, t, label=torch.full((20,), -1)), plain)
    mixed = field.predict(x, t, label=torch.where(torch.arange(20) < 10, label, -1))
    torch.testing.assert_close(mixed, torch.cat([conditional[:10], plain[10:]]))
    assert float((conditional - plain).abs().mean()) > 0.01
    for weight, expected in (
        (1.0, conditional),
        (0.0, plain),
        (3.0, plain + 3 * (conditional - plain)),
    ):
        torch.testing.assert_close(guided(field, weight).predict(x, t, label=label), expected)
    explicit = guided(field, 2.0, null={"label": None}).predict(x, t, label=label)
    torch.testing.assert_close(guided(field, 2.0).predict(x, t, label=label), explicit)
    with pytest.raises(stk.InvalidArgument, match="null"):
        guided(DIGITS_V.build(), 2.0)
    for wrong in (
        torch.full((20,), 10),
        torch.full((20,), -2),
        torch.full((20,), 0.5),
        label[:, None],
    ):
        with pytest.raises(stk.InvalidArgument, match="label"):
            field.predict(x, t, label=wrong)


@pytest.mark.thorough
def test_conditional_samples_are_of_their_class_and_guided_ones_more_so(classifier, digits):
    field, label, solver = (
        DIGITS_CLASS.build(),
        torch.arange(1000) % 10,
        stk.ProbabilityFlow("heun", steps=20),
    )

    def accuracy(model, **more):
        return classifier.accuracy(
            stk.sample(model, solver, chains=1000, seed=1, **more).final, label
        )

    told, more = (
        accuracy(field, cond={"label": label}),
        accuracy(stk.guided(field, weight=2.0), cond={"label": label}),
    )
    assert told >= 0.95
    assert more > told
    assert accuracy(field) < 0.2  # without a label: chance
