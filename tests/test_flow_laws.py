"""Which combinations of fields in time a flow follows: the right law, or a refusal, of every combination by every solver."""

import pytest
import torch

import scoretk as stk
from scoretk.errors import MissingCapability
from scoretk.fields import wrapped
from scoretk.fields.combine.mixtures import MixtureTimed
from scoretk.fields.combine.powers import PoweredTimed
from scoretk.models.targets.mixture import gaussian
from tests.evidence import assert_second_moment, z_limit

STD = 0.5
STATIC = gaussian(dim=1, std=STD)
F = STATIC.noised(stk.VP())
G = gaussian(dim=1, std=STD).noised(stk.VP())
NEAR = stk.LinearGaussian(lambda x: x, torch.zeros(1), 1.0)
CHAINS = 2048

POWERS = {
    "tempered": (stk.tempered(F, 2.0), STD * 2**0.5),
    "product": (stk.product(F, G), STD / 2**0.5),
    "product of the field itself": (stk.product(F, F), STD / 2**0.5),
    "product within temperature 1": (stk.tempered(stk.product(F, G), 1.0), STD / 2**0.5),
    "tempered in a product of one": (stk.product(stk.tempered(F, 2.0)), STD * 2**0.5),
}
"""Fields in time that no flow follows, each with the standard deviation of its law."""
WITHIN = {
    "guided": stk.guided(stk.tempered(F, 2.0), 1.5, stk.tempered(G, 1.0)),
    "guided by": stk.guided(stk.tempered(F, 1.0), 1.5, stk.product(F, G)),
    "posterior": stk.posterior(stk.product(F, G), NEAR),
    "by a classifier": stk.classifier_guided(stk.tempered(F, 2.0), lambda x, t: -x.square().sum(1)),
    "mixture": MixtureTimed((F, stk.tempered(G, 2.0)), (-0.7, -0.7)),
    "four deep": stk.guided(
        stk.posterior(stk.guided(stk.product(F), 2.0, stk.product(F, G)), NEAR), 1.5, F
    ),
}
KEPT = {
    "tempered by 1": (stk.tempered(F, 1.0), STD),
    "product of one": (stk.product(F), STD),
    "both": (stk.product(stk.tempered(F, 1.0)), STD),
    "mixture": (stk.mixture([F, G], [1, 3]), STD),
    "guided between equals": (stk.guided(F, 3.0, G), STD),
    "posterior": (stk.posterior(F, NEAR), (STD**-2 + 1) ** -0.5),
    "posterior of a product of one": (stk.posterior(stk.product(F), NEAR), (STD**-2 + 1) ** -0.5),
    "tempered, then noised": (
        stk.smoothed(stk.tempered(STATIC, 2.0), reference=(0.0, 0.8), samples=64),
        STD * 2**0.5,
    ),
    "multiplied, then noised": (
        stk.smoothed(stk.product(STATIC, STATIC), reference=(0.0, 0.4), samples=64),
        STD / 2**0.5,
    ),
    "tempered at a time, then noised": (
        stk.smoothed(stk.tempered(F, 2.0).at(1.0), reference=(0.0, 0.8), samples=64),
        STD * 2**0.5,
    ),
}
"""Fields in time whose flow ends in their law, each with the standard deviation of that."""
X = torch.zeros(2, 1)


def flown(field, solver):
    return stk.sample(field, solver, init=X)


FLOWS = {
    "the default": lambda f: flown(f, None),
    "a table": lambda f: flown(f, stk.ProbabilityFlow("rk4", 4)),
    "a multistep rule": lambda f: flown(f, stk.ProbabilityFlow(steps=4)),
    "an adaptive pair": lambda f: flown(f, stk.ProbabilityFlow("dopri5")),
    "the adjoint": lambda f: stk.sample(f, stk.ProbabilityFlow("tsit5"), init=X, grad="adjoint"),
    "a reverse SDE": lambda f: flown(f, stk.ReverseSDE(steps=4)),
    "DDPM": lambda f: flown(f, stk.ReverseSDE("ancestral", 4)),
    "a corrector that has no level": lambda f: flown(
        f, stk.ReverseSDE("ancestral", 1, corrector=5)
    ),
    "half the noise": lambda f: flown(f, stk.ReverseSDE("ddim", 4, eta=0.5)),
    "encode": lambda f: stk.encode(f, X),
    "log_prob": lambda f: stk.log_prob(f, X),
    "bits_per_dim": lambda f: stk.bits_per_dim(f, X, levels=4),
}
LADDER = torch.logspace(0.3, -1.3, 10, dtype=torch.float64)
CORRECTED = {
    "corrector": stk.ReverseSDE("ancestral", 20, corrector=10, snr=0.4),
    "annealed": stk.AnnealedLangevin(
        tuple(LADDER.tolist()), 30, 0.2 * float(LADDER[-1]) ** 2, denoise=False
    ),
}
BIAS = 0.15
"""What the size of so few Langevin steps may leave of the variance, in parts of it; flows leave 0.99, or 400."""


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("name", [*POWERS, *WITHIN])
def test_what_no_flow_follows_is_refused_with_the_way_out(name, flow):
    field = POWERS[name][0] if name in POWERS else WITHIN[name]
    with pytest.raises(
        MissingCapability, match=r"AnnealedLangevin.*corrector=n.*field\.at\(t\).*smoothed"
    ):
        FLOWS[flow](field)


@pytest.mark.parametrize("name", KEPT)
def test_flows_that_are_kept_end_in_the_law(name):
    field, std = KEPT[name]
    chains = CHAINS if "noised" not in name else CHAINS // 4
    draws = stk.sample(
        field, stk.ProbabilityFlow(steps=20), chains=chains, seed=2, dtype=torch.float64
    ).final
    assert_second_moment(draws, 0.0, std**2, name)


def test_a_field_in_other_clothes_has_its_own_flow():
    field, x = KEPT["both"][0], torch.tensor([[0.3], [-1.2]], dtype=torch.float64)
    fixed = {"method": "rk4", "steps": 16}
    for ask in (lambda f: stk.encode(f, x, **fixed).x, lambda f: stk.log_prob(f, x, **fixed).value):
        torch.testing.assert_close(ask(field), ask(F), rtol=1e-3, atol=1e-3)


def excess(draws, std):
    """The variance beyond the law's, in parts of it, and what sampling alone may leave of it."""
    square = draws.double().square() / std**2
    return float(square.mean() - 1), z_limit() * float(square.std()) / len(draws) ** 0.5


@pytest.mark.parametrize("name", ["tempered", "product"])
@pytest.mark.parametrize("solver", CORRECTED)
def test_langevin_steps_at_every_level_reach_the_law(name, solver):
    field, std = POWERS[name]
    draws = stk.sample(
        field, CORRECTED[solver], chains=CHAINS // 2, seed=4, dtype=torch.float64
    ).final
    found, error = excess(draws, std)
    assert abs(found) < error + BIAS


def test_a_kernel_on_the_density_of_a_time_reaches_the_law():
    for field, std in (POWERS["tempered"], POWERS["product"]):
        draws = stk.sample(
            field.at(1.0), stk.MALA(std**2), chains=CHAINS, steps=20, keep="last", seed=5
        ).final
        assert_second_moment(draws, 0.0, std**2)


class TestMutants:
    """Without the rule, or with half of it, runs end far off, and nothing says so."""

    def test_without_the_rule(self, monkeypatch):
        monkeypatch.setattr(PoweredTimed, "flows", True)
        ends = {}
        for name, (field, std) in POWERS.items():
            run = stk.sample(field, stk.ProbabilityFlow(), chains=512, dtype=torch.float64)
            assert bool(run.ok.all())
            ends[name] = float(run.final.std())
            assert abs(excess(run.final, std)[0]) > 0.5
        assert ends["tempered"] > 10
        assert ends["product"] < 0.1

    def test_a_rule_that_looks_at_the_field_alone(self, monkeypatch):
        monkeypatch.setattr(
            wrapped, "without_flow", lambda f: None if getattr(f, "flows", True) else f
        )
        with pytest.raises(MissingCapability):
            FLOWS["encode"](POWERS["tempered"][0])
        for name in ("guided", "guided by", "posterior", "by a classifier", "four deep"):
            FLOWS["a multistep rule"](WITHIN[name])

    def test_a_rule_that_looks_into_static_fields_refuses_what_is_right(self, monkeypatch):
        monkeypatch.setattr(wrapped, "is_timed", lambda field: True)
        with pytest.raises(MissingCapability):
            FLOWS["encode"](KEPT["tempered, then noised"][0])


def test_a_wrapper_of_powers_made_elsewhere_is_refused_by_its_kind():
    class Cubed(PoweredTimed):
        flows = wrapped.Wrapped.flows

    assert not Cubed((F,), 1.0).flows
    with pytest.raises(MissingCapability, match="flow"):
        flown(Cubed((F,), 1 / 3), stk.ProbabilityFlow(steps=2))
