"""Boltzmann machines: the shipped one against its promises, its log Z against enumeration, tempered sweeps against their law."""

import math

import pytest
import torch
from scipy.stats import chi2

import scoretk as stk
from scoretk.diagnostics import Classifier, sliced_wasserstein
from scoretk.models.digits import boltzmann
from scoretk.models.digits.boltzmann import NEGATIVES, Tempered, TemperedDivergence
from scoretk.models.digits.data import binarised, load_digits
from scoretk.models.specs import digits_rbm
from scoretk.models.targets.lattices import RBM, IndependentUnits, ising, potts, rbm
from scoretk.plugins.models import build
from tests.evidence import FALSE_ALARM, assert_mean, mean_z, z_limit
from tests.lawful import checked
from tests.marks import slow_but
from tests.test_discrete import all_states, distance, law
from tests.test_langevin import one_step_from_exact
from tests.test_partition import z_score


def machine(visible=(1, 2, 3), hidden=4, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameters = [
        torch.randn(s, generator=generator)
        for s in ((math.prod(visible), hidden), visible, (hidden,))
    ]
    return RBM(scale * parameters[0], parameters[1] - 1, parameters[2])


TINY = machine((3,), 2)
UNITS = IndependentUnits(torch.tensor([0.3, -1.0, 0.5]))
WIDE = machine((1, 8, 8), 12, 0.5)


def test_log_z_is_the_same_over_visible_and_over_hidden_units():
    for small in (machine(), machine((3, 2), 9)):
        over_visible = float(torch.logsumexp(-small.energy(all_states(small)), 0))
        mirrored = RBM(small.weights.T, small.hidden_bias, small.visible_bias.flatten())
        over_hidden = float(torch.logsumexp(-mirrored.energy(all_states(mirrored)), 0))
        assert over_visible == pytest.approx(over_hidden, abs=1e-9)
        assert small.exact_log_partition() == pytest.approx(over_visible, abs=1e-9)
    with pytest.raises(stk.MissingCapability, match="exact_log_partition"):
        machine((30,), 30).exact_log_partition()


def test_independent_units_are_normalised_and_drawn_by_their_rates():
    assert float(UNITS.log_prob(all_states(UNITS)).exp().sum()) == pytest.approx(1, abs=1e-6)
    x = UNITS.draw(40_000, stk.Noise(0, 40_000))
    assert_mean(x, torch.sigmoid(UNITS.bias))
    data = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(
        torch.sigmoid(IndependentUnits.of(data).bias), torch.tensor([3 / 4, 2 / 4])
    )


@pytest.mark.parametrize(
    "target", [rbm(), ising(2, 0.3, 0.2), potts(2, 3, 0.4)], ids=lambda f: type(f).__name__
)
def test_the_way_from_the_uniform_law_ends_at_the_field_and_begins_level(target):
    x = all_states(target)
    base = stk.fields.base.plain_base(target)
    torch.testing.assert_close(target.between(base, 1.0).energy(x), target.energy(x))
    start = target.between(base, 0.0).energy(x)
    torch.testing.assert_close(start, start[:1].expand_as(start))
    assert target.between(stk.fields.NormalBase(target.event_shape), 0.5) is None


def test_the_way_from_independent_units_begins_at_their_law():
    x = all_states(TINY)
    gap = TINY.between(UNITS, 0.0).energy(x) - UNITS.energy(x)
    torch.testing.assert_close(gap, gap[:1].expand_as(gap))


RUNS = {
    "units": (WIDE, {"base": IndependentUnits(WIDE.visible_bias), "kernel": stk.BlockGibbs()}),
    "uniform": (WIDE, {"kernel": stk.BlockGibbs()}),
    "islands": (WIDE, {"kernel": stk.BlockGibbs(), "method": "smc"}),
    "langevin": (
        WIDE,
        {"base": IndependentUnits(WIDE.visible_bias), "kernel": stk.DiscreteLangevin(0.5)},
    ),
    "gradients": (machine(), {"kernel": stk.GibbsWithGradients()}),
    "lattice": (ising(4, 0.4, 0.1), {"kernel": stk.BlockGibbs()}),
    "colours": (potts(2, 3, 0.8), {"kernel": stk.BlockGibbs()}),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but(RUNS, "units", "islands", "gradients", "lattice"))
def test_log_z_is_right_for_discrete_states(name):
    target, run = RUNS[name]
    estimate = stk.log_partition(target, seed=1, chains=512, pilot=64, **run)
    assert abs(z_score(estimate, target.exact_log_partition())) < z_limit(len(RUNS))
    assert estimate.stderr < 0.15


@pytest.mark.slow
def test_the_standard_error_of_sweeps_is_calibrated():
    target, units = machine((1, 3, 4), 5), IndependentUnits(torch.zeros(1, 3, 4))
    run = {"base": units, "kernel": stk.BlockGibbs(), "chains": 256, "pilot": 32, "levels": 12}
    z = [
        z_score(stk.log_partition(target, seed=s, **run), target.exact_log_partition())
        for s in range(6)
    ]
    assert chi2.ppf(FALSE_ALARM, 6) < sum(v * v for v in z) < 1.2 * chi2.isf(FALSE_ALARM, 6)


class FromTheEnd(RBM):
    """Every machine on the way is the last one: the sweeps are not those of the level."""

    def between(self, base, weight):
        way = super().between(base, weight)
        object.__setattr__(way, "gibbs", self.gibbs)
        return way


@pytest.mark.thorough
def test_log_z_catches_sweeps_of_the_wrong_level():
    wrong = FromTheEnd(**vars(WIDE))
    run = {
        "base": IndependentUnits(WIDE.visible_bias),
        "kernel": stk.BlockGibbs(),
        "levels": 40,
        "pilot": 64,
    }
    estimate = stk.log_partition(wrong, seed=1, chains=1024, **run)
    assert abs(z_score(estimate, WIDE.exact_log_partition())) > 2 * z_limit()


def test_sweeps_without_a_way_are_refused_with_the_bridge():
    with pytest.raises(stk.MissingCapability, match="between"):
        stk.log_partition(WIDE, other_base(WIDE), kernel=stk.BlockGibbs())
    with pytest.raises(stk.MissingCapability, match="between"):
        stk.sample(WIDE, stk.AIS(base=other_base(WIDE), kernel=stk.BlockGibbs()), chains=2)


def other_base(target):
    class Base:
        event_shape = target.event_shape
        energy, draw = staticmethod(target.energy), staticmethod(target.initial)

    return Base()


def test_tempered_sweeps_keep_their_law():
    target = Tempered(TINY, UNITS, 3)
    torch.testing.assert_close(
        target.laws[0].energy(all_states(TINY)), TINY.energy(all_states(TINY))
    )
    assert distance(one_step_from_exact(stk.BlockGibbs(), target, seed=3), target, law(target)) < 1


class AlwaysSwaps(Tempered):
    """Swaps whatever the energies say."""

    def gibbs(self, x, u):
        return super().gibbs(
            x, torch.cat([u[:, : -self.replicas + 1], 0 * u[:, -self.replicas + 1 :]], 1)
        )


def test_the_law_catches_swaps_without_a_decision():
    wrong = AlwaysSwaps(TINY, UNITS, 3)
    assert distance(one_step_from_exact(stk.BlockGibbs(), wrong, seed=3), wrong, law(wrong)) > 2


FIELDS = {
    "tempered": lambda: Tempered(TINY, UNITS, 3),
    "units": lambda: UNITS,
    "machine": machine,
    "shipped": lambda: build(digits_rbm),
}


@pytest.mark.parametrize("name", slow_but(FIELDS, "tempered", "units"))
def test_tempered_fields_and_machines_of_any_shape_obey_the_laws(name):
    field = FIELDS[name]()
    assert [r for r in checked(field) if r.status == "failed"] == []


def test_tempered_negatives_follow_a_machine_that_stays():
    divergence = TemperedDivergence(UNITS, chains=4000, sweeps=20, replicas=4, seed=0)
    x = divergence(TINY, torch.zeros(2, 3)).negatives
    expected = torch.from_numpy(law(TINY)) @ all_states(TINY).double()
    assert_mean(x, expected)
    assert mean_z(x, torch.sigmoid(UNITS.bias)).abs().max() > 2 * z_limit(3)


def test_tempered_chains_go_on_from_their_state_and_parts_have_noise_of_their_own():
    def made():
        return TemperedDivergence(UNITS, chains=50, sweeps=2, replicas=3, seed=0)

    def negatives(divergence):
        return divergence(TINY, torch.zeros(2, 3)).negatives

    whole, late, part = made(), made(), made()
    part.for_part(1)
    assert not torch.equal(negatives(whole), negatives(part))
    for divergence in (whole, part):
        late.load_state_dict(divergence.state_dict())
        for _ in range(2):
            assert torch.equal(negatives(divergence), negatives(late))


@pytest.mark.slow
@pytest.mark.parametrize("method", slow_but(NEGATIVES, "persistent"))
def test_training_learns_the_law_of_tiny_data_and_round_trips(method, tmp_path):
    states = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]).reshape(
        4, 2, 2
    )
    data = states[torch.arange(256) % 4]  # pixels in equal pairs: four of sixteen states
    train = {
        "hidden": 6,
        "steps": 400,
        "chains": 64,
        "replicas": 3,
        "sweeps": 2,
        "learning_rate": 0.05,
        "decay": 0.0,
    }
    stored = boltzmann.train(data, method=method, **train)
    stored.save(tmp_path / "w.safetensors")
    field = boltzmann.build(tmp_path / "w.safetensors")
    assert field.event_shape == (2, 2)
    torch.testing.assert_close(field.weights, stored.weights["weights"].half().float())
    assert -float(field.log_prob(data).mean()) < 0.5 * (math.log(4) + math.log(16))


def test_training_repeats_and_refuses_what_is_not_binary():
    data = (torch.rand(32, 2, 3, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    runs = [boltzmann.train(data, steps=3, hidden=4, chains=8).weights for _ in range(2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    for bad in (data - 0.5, data[:1], data[0, 0, 0], "x", torch.full((4, 2), math.nan)):
        with pytest.raises(stk.InvalidArgument, match="data"):
            boltzmann.train(bad, steps=1)
    with pytest.raises(stk.UnknownName, match="method"):
        boltzmann.train(data, method="exact", steps=1)
    with pytest.raises(stk.InvalidArgument, match="replicas"):
        boltzmann.train(data, replicas=1, steps=1)
    with pytest.raises(stk.InvalidArgument, match="visible_bias"):
        RBM(torch.zeros(6, 2), torch.zeros(1, 5), torch.zeros(2))


@pytest.mark.slow
def test_the_shipped_machine_is_a_good_model_of_held_out_digits():
    field, digits = build(digits_rbm), load_digits()
    seen, held_out = binarised(digits.train), binarised(digits.test)
    units = IndependentUnits.of(seen)
    log_z = stk.log_partition(field, base=units, kernel=stk.BlockGibbs(), chains=512)
    nats = float((field.energy(held_out) + log_z.value).mean())
    assert log_z.stderr < 0.15
    assert nats < 15.2
    assert nats < -float(units.log_prob(held_out).mean()) - 9
    x = stk.sample(field, stk.BlockGibbs(), chains=720, steps=1000, keep="last", seed=1).final
    floor = sliced_wasserstein(seen[:360], held_out)
    assert sum(sliced_wasserstein(part, held_out) for part in x.split(360)) / 2 < 1.3 * floor
    assert sliced_wasserstein(units.draw(360, stk.Noise(0, 360)), held_out) > 1.3 * floor
    assert Classifier(seen, digits.train_labels).judge(x).balance > 0.97
