"""The energy-based digits models: a classifier read as a density, what steadies training, and normalised densities."""

import math

import pytest
import torch

import scoretk as stk
from scoretk.diagnostics import Classifier, sliced_wasserstein
from scoretk.inference.partition import Normalised
from scoretk.models.digits import energy as digits_energy
from scoretk.models.digits import jem
from scoretk.models.digits.data import load_digits
from scoretk.models.digits.networks import ConfinedEnergy, EnergyMLP, fresh, principal_axes
from scoretk.models.specs import digits_jem
from scoretk.models.targets.mixture import gaussian
from scoretk.plugins.models import build
from tests.evidence import z_limit
from tests.lawful import checked
from tests.marks import slow_but

FLOOR = 0.061
LABELS = torch.arange(10)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def shipped_jem():
    return build(digits_jem)


def random_jem(classes=3):
    data = torch.randn(50, 2, generator=generator())
    network = ConfinedEnergy(
        fresh(lambda: EnergyMLP(2, 8, 1, classes), generator()), principal_axes(data, 0.1)
    ).double()
    torch.nn.init.normal_(network.backbone.leave.weight, generator=generator(1))
    return jem.JEM(network, (2,))


@torch.no_grad()
def test_the_classifier_is_bayes_rule_of_the_energies():
    field, x = random_jem(), torch.randn(7, 2, generator=generator(2)).double()
    of_class = torch.stack([-field.energy(x, torch.full((7,), y)) for y in range(3)], 1)
    torch.testing.assert_close(of_class.softmax(1), field.classify(x).softmax(1))
    torch.testing.assert_close(of_class.logsumexp(1), -field.energy(x))


def test_logits_are_of_the_dtype_of_x(shipped_jem):
    x = torch.zeros(2, 1, 8, 8)
    for dtype in (torch.float32, torch.float64):
        assert (
            shipped_jem.classify(x.to(dtype)).dtype
            == shipped_jem.energy(x.to(dtype)).dtype
            == dtype
        )


@torch.no_grad()
def test_a_label_of_no_class_has_no_density_and_each_row_needs_one():
    field, x = random_jem(), torch.zeros(2, 2).double()
    assert field.energy(x, torch.tensor([3, 0])).isposinf().tolist() == [True, False]
    with pytest.raises(stk.InvalidArgument, match="label"):
        field.energy(x, torch.tensor([1]))


@pytest.mark.parametrize("cond", [None, {"label": LABELS}], ids=["without labels", "with labels"])
@pytest.mark.parametrize("weights", slow_but(["random", "shipped"], "random"))
def test_jem_obeys_the_laws_with_and_without_labels(shipped_jem, weights, cond):
    field = shipped_jem if weights == "shipped" else random_jem(10)
    assert [r for r in checked(field, cond=cond) if r.status == "failed"] == []


def test_a_short_training_round_trips_and_repeats(tmp_path):
    data, labels = 3 * torch.randn(64, 1, 2, 3, generator=generator()) + 10, torch.arange(64) % 4
    runs = [jem.train(data, labels, steps=3, width=8, chains=32, chain_steps=2) for _ in range(2)]
    assert all(
        torch.equal(runs[0].weights[name], runs[1].weights[name]) for name in runs[0].weights
    )
    runs[0].save(tmp_path / "w.safetensors")
    field = jem.build(tmp_path / "w.safetensors")
    assert field.event_shape == (1, 2, 3)
    assert field.classify(data).shape == (64, 4)
    network = runs[0].into(lambda: ConfinedEnergy(EnergyMLP(6, 8, 1, 4), runs[0].spread))
    as_trained = jem.JEM(network, (1, 2, 3)).energy(data)
    torch.testing.assert_close(
        field.energy(data), as_trained, rtol=1e-2, atol=1e-2
    )  # stored in half precision


@pytest.mark.parametrize(
    "bad", [None, torch.zeros(3), torch.full((5,), -1), torch.full((5,), 0.5), "x"]
)
def test_training_refuses_labels_that_do_not_fit(bad):
    with pytest.raises(stk.InvalidArgument, match="labels"):
        jem.train(torch.randn(5, 2, generator=generator()), bad, steps=1)


def test_the_shipped_jem_classifies_held_out_digits(shipped_jem, digits):
    with torch.no_grad():
        right = (shipped_jem.classify(digits.test).argmax(1) == digits.test_labels).double().mean()
        turned = (
            (shipped_jem.classify(digits.test.flip(2)).argmax(1) == digits.test_labels)
            .double()
            .mean()
        )
    assert right > 0.95
    assert turned < 0.8  # the test can fail


@pytest.mark.slow
def test_the_shipped_jem_draws_good_digits_of_all_and_of_each_class(shipped_jem, digits):
    draws = stk.sample(shipped_jem, stk.ULA(0.005), chains=360, steps=1000, keep="last", seed=1)
    assert not draws.failures
    assert sliced_wasserstein(draws.final, digits.test) < 1.5 * FLOOR
    noise = torch.randn(360, 1, 8, 8, generator=generator())
    assert sliced_wasserstein(noise, digits.test) > 1.5 * FLOOR
    judge = Classifier(digits.train, digits.train_labels)
    assert judge.judge(draws.final).balance > 0.95
    label = LABELS.repeat_interleave(20)
    of_class = stk.sample(
        shipped_jem, stk.ULA(0.005), chains=200, steps=1000, keep="last", cond={"label": label}
    ).final
    assert judge.accuracy(of_class, label) > 0.75
    assert judge.accuracy(of_class, label.roll(20)) < 0.3


SMALL = {"steps": 30, "width": 16, "chains": 64, "chain_steps": 2}


def rows():
    """Two far modes, so that f has something to learn."""
    return (
        torch.randn(64, 2, generator=generator())
        + 5 * torch.tensor([-1.0, 1.0]).repeat(32)[:, None]
    )


@pytest.mark.thorough
def test_spectral_norm_holds_the_hidden_layers_and_leaves_plain_weights(tmp_path):
    stored = digits_energy.train(rows(), spectral=True, **SMALL)
    for name in ("backbone.enter.weight", "backbone.blocks.0.weight"):
        assert float(torch.linalg.matrix_norm(stored.weights[name], 2)) == pytest.approx(
            1, abs=0.02
        )
    plain = digits_energy.train(rows(), **SMALL)
    assert plain.weights.keys() == stored.weights.keys()
    assert float(
        torch.linalg.matrix_norm(plain.weights["backbone.enter.weight"], 2)
    ) != pytest.approx(1, abs=0.1)
    stored.save(tmp_path / "w.safetensors")
    assert digits_energy.build(tmp_path / "w.safetensors").energy(rows()).isfinite().all()


def slope(stored):
    network = stored.into(lambda: ConfinedEnergy(EnergyMLP(2, 16, 1), stored.spread))
    return float(digits_energy._slope(network.correction, rows()).detach())


@pytest.mark.thorough
def test_the_penalty_is_the_mean_squared_slope_and_lowers_it():
    x, w = torch.randn(5, 2, 3, generator=generator()), torch.arange(6.0).reshape(2, 3)
    assert float(digits_energy._slope(lambda y: (w * y).flatten(1).sum(1), x)) == pytest.approx(
        55.0
    )
    free, held = (digits_energy.train(rows(), penalty=p, decay=0.0, **SMALL) for p in (0.0, 1e4))
    assert slope(held) < 0.5 * slope(free)


def test_bad_settings_are_named():
    with pytest.raises(stk.InvalidArgument, match="penalty"):
        digits_energy.train(rows(), penalty=-1.0, **SMALL)
    with pytest.raises(stk.InvalidArgument, match="decay"):
        digits_energy.train(rows(), ema=1.0, **SMALL)


@pytest.mark.thorough
def test_the_average_of_the_weights_can_be_chosen():
    last, slow = (
        digits_energy.train(rows(), ema=d, **SMALL).weights["backbone.leave.weight"]
        for d in (0.0, 0.99)
    )
    assert not torch.equal(last, slow)


@pytest.mark.thorough
def test_normalised_fields_have_densities():
    known = gaussian(2, std=0.5)
    field = Normalised(
        stk.Energy(lambda x: x.square().sum(1) * 2 + 3, (2,)), math.log(math.pi / 2) - 3
    )
    x = torch.randn(5, 2, generator=generator())
    torch.testing.assert_close(field.log_prob(x), known.log_prob(x))
    torch.testing.assert_close(stk.log_prob(field, x).value, known.log_prob(x))
    assert [r for r in checked(field) if r.status == "failed"] == []
    coin = Normalised(stk.load("rbm"), stk.load("rbm").exact_log_partition())
    assert [r for r in checked(coin) if r.status == "failed"] == []
    assert stk.sample(coin, stk.GibbsWithGradients(), chains=3, steps=5).final.shape == (3, 6)
    with pytest.raises(stk.InvalidArgument, match="log_z"):
        Normalised(known, math.nan)
    with pytest.raises(stk.MissingCapability):
        Normalised(stk.Score(lambda x: -x, (2,)), 0.0)


@pytest.mark.slow
def test_the_shipped_energy_has_one_log_z_by_two_ways_and_its_bits(digits):
    field = digits_energy.build()
    ais = stk.log_partition(field, chains=256, pilot=128, seed=1)
    smc = stk.log_partition(field, method="smc", chains=1024, island=32, pilot=128, moves=2, seed=2)
    stderr = torch.hypot(ais.stderr, smc.stderr)
    assert stderr < 0.4
    assert abs(float((ais.value - smc.value) / stderr)) < z_limit()
    cells, quantised = (
        ((digits.test + 1) * 8).round(),
        {"levels": 17, "interval": (-1.0625, 1.0625)},
    )
    bits = stk.bits_per_dim(Normalised(field, float(ais.value)), cells, **quantised)
    assert float(bits.value.mean()) + float(ais.stderr) / (64 * math.log(2)) < 3.05
