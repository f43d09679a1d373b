"""Autoregressive models: normalised by enumeration and on a grid, draws against densities, masks by Jacobians; with mutants."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import chi2

import scoretk as stk
from scoretk.diagnostics import Classifier, copies, sliced_wasserstein
from scoretk.models import specs
from scoretk.models.digits import autoregressive as networks
from scoretk.models.digits.data import load_digits
from scoretk.models.digits.networks import PrincipalAxes, fresh
from scoretk.models.digits.stored import read_weights, shipped
from scoretk.models.latent import autoregressive as ar
from scoretk.plugins.models import build
from scoretk.solvers.discrete import DiscreteLangevin, GibbsWithGradients
from tests.evidence import FALSE_ALARM, z_limit
from tests.lawful import checked
from tests.marks import slow_but, slow_rows_but
from tests.test_discrete import all_states, distance
from tests.test_langevin import one_step_from_exact

CHAINS = 20_000
MODELS = {
    "digits-fvsbn": networks.FVSBN,
    "digits-nade": networks.NADE,
    "digits-made": networks.MADE,
    "digits-pixelcnn": networks.PIXELCNN,
}
BINARY, REAL = ("digits-fvsbn", "digits-nade"), ("digits-made", "digits-pixelcnn")
NEAR = {"digits-fvsbn": 1.3, "digits-nade": 1.3, "digits-made": 1.5, "digits-pixelcnn": 1.5}
"""Sliced Wasserstein distance to test images, over that of real ones, that the shipped models stay below."""
SPECS = {
    spec.name: spec
    for spec in (specs.digits_fvsbn, specs.digits_nade, specs.digits_made, specs.digits_pixelcnn)
}
BACKBONES = {
    "fvsbn": lambda shape, outputs: networks.SigmoidBelief(math.prod(shape)),
    "nade": lambda shape, outputs: networks.SharedHidden(math.prod(shape), 7),
    "made": lambda shape, outputs: networks.MaskedMLP(math.prod(shape), 16, 3, outputs, 0.1),
    "pixelcnn": lambda shape, outputs: networks.MaskedConvolutions(shape, 6, 2, outputs, 0.1),
}


def backbone(name, shape, outputs=1, seed=0, scale=2.0):
    """Untrained, in float64, its weights so large that every site matters, its biases drawn as well."""
    generator = torch.Generator().manual_seed(seed)
    net = fresh(lambda: BACKBONES[name](shape, outputs), generator).double().eval()
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight *= scale
                layer.bias.uniform_(-1, 1, generator=generator)
    return net


def binary(name, shape=(2, 4), seed=0):
    return ar.BinaryAutoregressive(ar.Bernoullis(backbone(name, shape, 1, seed)), shape)


def binary_law(name, seed=0):
    """Probabilities of `all_states`."""
    target = binary(name, seed=seed)
    return target.log_prob(all_states(target)).exp().detach().numpy()


def real(name, shape=(2,), components=2):
    spread = PrincipalAxes(torch.tensor(0.5).double(), None, torch.tensor(0.8).double())
    return ar.Autoregressive(
        ar.Logistics(backbone(name, shape, 3 * components, scale=0.6), spread.mean, spread.std),
        shape,
    )


def noise(n=CHAINS, seed=0):
    return stk.Noise(seed, n, dtype=torch.float64)


# Order: what a site's conditional depends on


def dependence(net, d):
    """Whether the numbers of site i depend on site j, at any of a few points: `(d, d)` of bool."""
    x = torch.randn(4, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda rows: net(rows).sum(0), x
    )  # (d, outputs, rows, d)
    return (jacobian != 0).any(2).any(1)


EARLIER = torch.ones(12, 12, dtype=torch.bool).tril(-1)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_site_sees_all_sites_before_it_and_no_other(name):
    net = backbone(name, (3, 4), 1 if name in ("fvsbn", "nade") else 3)
    assert torch.equal(dependence(net, 12), EARLIER)
    assert not torch.equal(
        dependence(lambda x: net(x.roll(-1, 1)), 12), EARLIER
    )  # an order off by one


@pytest.mark.parametrize("name", ["fvsbn", "made", "pixelcnn"])
def test_a_mask_that_lets_a_site_see_itself_is_caught(monkeypatch, name):
    monkeypatch.setattr(networks, "_sees", lambda order, inputs, equals: order[:, None] >= inputs)
    assert bool(dependence(backbone(name, (3, 4)), 12).diagonal().any())
    if name == "fvsbn":
        assert abs(binary_law(name).sum() - 1) > 1e-3


@pytest.mark.parametrize("name", BACKBONES)
def test_the_numbers_of_one_site_are_those_of_all(name):
    net, x = (
        backbone(name, (3, 4)),
        torch.randn(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )
    torch.testing.assert_close(torch.stack([net.at(x, i) for i in range(12)], 1), net(x))


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 1, 2)])
@pytest.mark.parametrize("name", BACKBONES)
def test_events_of_any_shape_have_an_order(name, shape):
    d = math.prod(shape)
    assert torch.equal(dependence(backbone(name, shape), d), EARLIER[:d, :d])


# Binary sites, by enumeration


@pytest.mark.parametrize("name", BACKBONES)
def test_probabilities_of_all_states_add_up_to_one(name):
    assert binary_law(name).sum() == pytest.approx(1, abs=1e-12)
    assert binary(name).exact_log_partition() == 0.0


@pytest.mark.parametrize("name", ["fvsbn", "nade"])
def test_draws_of_binary_sites_follow_the_enumerated_law(monkeypatch, name):
    target, probability = binary(name), binary_law(name)
    assert (
        distance(target.draw(CHAINS, noise()), target, probability) < 1
    )  # chi-square, false alarm 1e-6
    assert (
        distance(target.draw(CHAINS, noise()), binary(name, seed=1), binary_law(name, seed=1)) > 2
    )
    if name == "fvsbn":
        right = torch.sigmoid
        monkeypatch.setattr(networks.torch, "sigmoid", lambda a: right(1.2 * a))
        assert distance(target.draw(CHAINS, noise()), target, probability) > 2


@pytest.mark.parametrize("kernel", [GibbsWithGradients(), DiscreteLangevin(0.6)], ids=repr)
def test_exact_draws_stay_exact_under_discrete_kernels(kernel):
    target = binary("nade")
    moved = one_step_from_exact(kernel, target, seed=3, chains=CHAINS)
    assert distance(moved, target, binary_law("nade")) < 1
    assert not torch.equal(moved, target.draw(CHAINS, noise(seed=3)))
    mixed = one_step_from_exact(kernel, Misjudged(target), seed=3, chains=CHAINS)
    assert distance(mixed, target, binary_law("nade")) > 2


class Misjudged:
    """The draws of one law, the energy of a flatter one."""

    def __init__(self, target):
        self.target, self.event_shape, self.states = target, target.event_shape, target.states

    def draw(self, n, noise):
        return self.target.draw(n, noise)

    def energy(self, x):
        return 0.5 * self.target.energy(x)


# Real sites, on a grid


def on_grid(target, edge=24.0, cells=360):
    """Probabilities of the cells of a square grid, by the density at their middles."""
    middle = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 2 * edge - edge
    with torch.no_grad():
        density = torch.cat(
            [target.log_prob(x).exp() for x in torch.cartesian_prod(middle, middle).split(2**17)]
        )
    return density.reshape(cells, cells) * (2 * edge / cells) ** 2


def in_limits(x, probability, edge=24.0, coarse=24):
    """Chi-square of draws against cells' probabilities, merged to blocks and the rare ones to one, over its limit."""
    cells = len(probability)
    blocks = probability.reshape(coarse, cells // coarse, coarse, -1).sum((1, 3)).numpy()
    edges = np.linspace(-edge, edge, coarse + 1)
    seen = np.histogram2d(x[:, 0].numpy(), x[:, 1].numpy(), bins=(edges, edges))[0]
    rare = len(x) * blocks < 10
    seen, expected = np.append(seen[~rare], 0.0), np.append(len(x) * blocks[~rare], 0.0)
    seen[-1], expected[-1] = len(x) - seen.sum(), len(x) - expected.sum()
    return float(((seen - expected) ** 2 / expected).sum() / chi2.isf(FALSE_ALARM, len(seen) - 1))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["made", "pixelcnn"])
def test_density_of_two_pixels_integrates_to_one_and_draws_follow_it(monkeypatch, name):
    target = real(name)
    probability = on_grid(target)
    assert float(probability.sum()) == pytest.approx(1, abs=1e-5)
    assert in_limits(target.draw(CHAINS, noise()), probability) < 1
    assert (
        in_limits(one_step_from_exact(stk.MALA(0.2), target, seed=3, chains=CHAINS), probability)
        < 1
    )
    if name == "made":
        right = torch.logit
        monkeypatch.setattr(networks.torch, "logit", lambda u: 1.1 * right(u))
        assert in_limits(target.draw(CHAINS, noise()), probability) > 1.5


def test_density_is_the_jacobian_of_the_distribution_functions():
    target = real("made", (2, 3), components=3)

    def distribution(rows):
        y = (rows - target.network.mean) / target.network.std
        logits, means, scales = target.network._mixture(target.network.backbone(y))
        return (logits.softmax(-1) * torch.sigmoid((y[..., None] - means) / scales)).sum(-1)

    x = target.draw(3, noise(3))
    for row in x.flatten(1):
        jacobian = torch.autograd.functional.jacobian(lambda r: distribution(r[None])[0], row)
        torch.testing.assert_close(
            torch.linalg.slogdet(jacobian)[1], target.log_prob(row.reshape(1, 2, 3))[0]
        )


def test_a_uniform_that_float32_rounds_to_one_gives_a_finite_site():
    network = real("made").network.float()
    u = torch.full((3, 2), 1 - 2.0**-40, dtype=torch.float64)
    assert bool((u.float() == 1).all())
    assert bool(torch.isfinite(network.site(torch.zeros(3, 2, dtype=torch.float64), 0, u)).all())


def test_far_points_and_constant_sites_are_finite():
    field = real("made")
    x = torch.tensor([[1e4, -1e4], [0.0, 1e6]], dtype=torch.float64)
    assert bool(torch.isfinite(field.log_prob(x)).all())
    data = torch.cat(
        [torch.ones(64, 1), torch.randn(64, 1, generator=torch.Generator().manual_seed(0))], 1
    )
    stored = networks.MADE.train(data, steps=30, bin=0.0, width=8)
    assert all(bool(torch.isfinite(w).all()) for w in stored.weights.values())


# Training and files


def data_of(name, shape=(1, 2, 3), n=40):
    """Sites that have much in common."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, *[1] * len(shape), generator=generator) + 0.5 * torch.randn(
        n, *shape, generator=generator
    )
    return (rows > 0).float() if name in BINARY else 3 * rows + 10


@pytest.mark.parametrize(
    ("shape", "name"),
    slow_rows_but(
        [(shape, name) for shape in ((2,), (1, 2, 3)) for name in MODELS],
        *(((2,), name) for name in MODELS),
        *(((1, 2, 3), name) for name in ("digits-pixelcnn",)),
    ),
)
def test_a_short_training_on_any_event_shape_round_trips(name, shape, tmp_path):
    model, data = MODELS[name], data_of(name, shape)
    settings = {"steps": 3} | ({} if name == "digits-fvsbn" else {"width": 8})
    stored, again = (model.train(data, **settings) for _ in range(2))
    assert all(torch.equal(stored.weights[key], again.weights[key]) for key in stored.weights)
    stored.save(tmp_path / "w.safetensors")
    field, same = (build(SPECS[name], weights=tmp_path / "w.safetensors") for _ in range(2))
    assert field.event_shape == shape
    assert torch.equal(field.log_prob(data), same.log_prob(data))
    x = field.draw(5, stk.Noise(0, 5))
    assert x.shape == (5, *shape)
    assert bool(torch.isfinite(field.log_prob(x)).all())
    command = read_weights(tmp_path / "w.safetensors", name).notes["command"]
    assert command.startswith(f"scoretk fit {name} --data FILE --seed 0 --set steps=3")


@pytest.mark.slow
def test_training_raises_the_likelihood():
    for name in MODELS:
        reports = []
        MODELS[name].train(data_of(name, (2, 2), 400), steps=15, report=reports.append)
        assert reports[-1].held_out < reports[0].held_out - 0.01, name


@pytest.mark.parametrize(
    "bad",
    [torch.tensor([[0.5], [1.0]]), torch.randn(9, 2, generator=torch.Generator().manual_seed(0))],
)
@pytest.mark.parametrize("name", BINARY)
def test_binary_models_refuse_what_is_not_binary(name, bad):
    with pytest.raises(stk.InvalidArgument, match="data"):
        MODELS[name].train(bad, steps=1)


@pytest.mark.parametrize(
    "bad", [torch.ones(9, 2), torch.ones(1, 2), torch.full((9, 2), math.nan), torch.ones(4), "x"]
)
@pytest.mark.parametrize("name", MODELS)
def test_training_refuses_bad_data(name, bad):
    with pytest.raises(stk.InvalidArgument, match="data"):
        MODELS[name].train(bad, steps=1)


@pytest.mark.parametrize(
    "setting", [{"bin": -0.1}, {"bin": math.nan}, {"width": 0}, {"components": 0}, {"dropout": 1.0}]
)
@pytest.mark.parametrize("name", REAL)
def test_training_refuses_bad_settings(name, setting):
    with pytest.raises(stk.InvalidArgument, match=next(iter(setting))):
        MODELS[name].train(data_of(name), steps=1, **setting)


def test_weights_of_another_model_are_refused():
    with pytest.raises(stk.InvalidArgument, match="digits-nade"):
        networks.FVSBN.build(shipped("digits-nade"))


# The shipped models


@pytest.fixture(scope="module")
def shipped_models():
    return {name: build(spec) for name, spec in SPECS.items()}


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but(MODELS, "digits-fvsbn"))
def test_shipped_models_obey_the_laws_and_claim_what_they_offer(name, shipped_models):
    field = shipped_models[name]
    assert field.provides == SPECS[name].provides
    results = checked(field)
    assert [r for r in results if r.status == "failed"] == []


def test_shipped_weights_are_small_and_made_with_the_default_settings():
    assert sum(shipped(name).stat().st_size for name in MODELS) < 400_000
    for name, model in MODELS.items():
        made, default = read_weights(shipped(name), name).notes, model.train.__kwdefaults__
        assert made["command"].startswith(f"scoretk fit {name} --seed 0 --set steps=")
        assert {
            key: value for key, value in default.items() if key not in ("report", "checkpoint")
        }.items() <= made.items()


def assert_less(a, b):
    """The mean of a over the images is below that of b, beyond what images by chance make of it."""
    difference = (b - a).double()
    assert float(difference.mean() / difference.std() * math.sqrt(len(difference))) > z_limit()


class OfVectors:
    """A field of vectors as one of images."""

    event_shape, provides = (1, 8, 8), frozenset({"log_prob"})

    def __init__(self, field):
        self.field = field

    def log_prob(self, x):
        return self.field.log_prob(x.flatten(1))


def test_binary_likelihoods_rank_as_published(shipped_models, digits):
    """Larochelle, Murray (2011): NADE is likelier than FVSBN, and both than sites apart."""
    train, test = ((x > -1).double().flatten(1) for x in (digits.train, digits.test))
    share = (train.sum(0) + 0.5) / (len(train) + 1)
    apart = -(test * share.log() + (1 - test) * torch.log1p(-share)).sum(1)
    images = (digits.test > -1).float()
    fvsbn, nade = (shipped_models[name].energy(images).detach().double() for name in BINARY)
    assert_less(fvsbn, apart - 5)
    assert_less(nade, fvsbn)
    assert float(nade.mean()) < 15.5


@pytest.mark.parametrize("name", REAL)
def test_real_likelihoods_beat_the_gaussian_with_the_datas_covariance(name, shipped_models, digits):
    bits = partial(
        stk.bits_per_dim, x=((digits.test + 1) * 8).round(), levels=17, interval=(-1.0625, 1.0625)
    )
    rows = digits.train.double().flatten(1)
    covariance = rows.T.cov(correction=0) + networks.MADE.train.__kwdefaults__[
        "bin"
    ] ** 2 / 12 * torch.eye(64)
    normal = torch.distributions.MultivariateNormal(rows.mean(0).float(), covariance.float())
    gaussian = bits(OfVectors(stk.fields.from_distribution(normal))).value
    assert 2.8 < float(gaussian.mean()) < 3.1
    found = bits(shipped_models[name]).value
    assert_less(found, gaussian - 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(MODELS, "digits-made"))
def test_samples_are_near_test_digits_of_all_classes_and_no_copies(name, shipped_models, digits):
    train, test = ((x > -1).float() if name in BINARY else x for x in (digits.train, digits.test))
    x = shipped_models[name].draw(720, stk.Noise(1, 720))
    generator = torch.Generator().manual_seed(0)
    real = (train[torch.randperm(len(train), generator=generator)[:360]] for _ in range(10))
    floor = sum(sliced_wasserstein(r, test, seed=i) for i, r in enumerate(real)) / 10
    assert (
        sum(sliced_wasserstein(part, test, seed=i) for i, part in enumerate(x.split(360))) / 2
        < NEAR[name] * floor
    )
    assert Classifier(train, digits.train_labels).judge(x).balance > 0.97
    assert copies(x, train, test).share < 0.1
