"""Wrappers keep what their fields are: every combinator over every kind of field has the right law, or is refused.

The truth is a log density in the user's space, written down beside each field. Over discrete states it is compared on all of
them, under a constraint on a grid, with the Jacobian of the map from autograd.
"""

import ast
import math
import random
import re
from pathlib import Path

import pytest
import torch
from torch import distributions as td
from torch.distributions import constraints

import scoretk as stk
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields import CAPABILITIES, NormalBase, offers, resolve, standard_normal, wrapped
from scoretk.fields.base import base_of
from scoretk.fields.protocols import OPTIONAL, optional
from scoretk.fields.wrapped import RULES, Kind, Rule, Wrapped
from scoretk.inference.partition import Normalised
from scoretk.models.targets.lattices import Ising
from scoretk.models.targets.mixture import gaussian
from tests.evidence import assert_mean, z_limit
from tests.marks import slow_but

POSITIVE, SHAPE = constraints.positive, (1,)
STATES = (0.0, 1.0, 2.5)
ON_STATES = torch.tensor([[a, b] for a in STATES for b in STATES], dtype=torch.float64)
ON_LINE = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]


# Kinds of fields: `around(energy)` makes one of a function of the user's x; `points` are in the solver's space


def on_states(energy, shape=(2,)):
    return stk.Discrete(stk.Energy(energy, shape), STATES)


def under_constraint(energy, shape=SHAPE):
    return stk.constrained(stk.Energy(energy, shape), POSITIVE)


KINDS = {"discrete": (on_states, ON_STATES), "constrained": (under_constraint, ON_LINE)}


def gamma(a, b):
    return lambda x: (b * x - (a - 1) * torch.log(x + 0.01)).sum(1)


def likelihood(x):
    return -(x - 1.5).square().sum(1)


# Combinators of fields, and of their log densities up to a constant

F, G = gamma(3.0, 2.0), gamma(2.0, 0.5)
WEIGHTS, CONSTANTS = (0.3, 0.7), (0.4, -0.2)


def mixed(f, g):
    return torch.logaddexp(math.log(0.3) - f - CONSTANTS[0], math.log(0.7) - g - CONSTANTS[1])


COMBINATORS = {
    "tempered": (lambda f, g: stk.tempered(f, 2.5), lambda f, g, x: -f / 2.5),
    "product": (stk.product, lambda f, g, x: -f - g),
    "mixture": (lambda f, g: stk.mixture([f, g], WEIGHTS, CONSTANTS), lambda f, g, x: mixed(f, g)),
    "guided": (lambda f, g: stk.guided(f, 1.7, g), lambda f, g, x: -g - 1.7 * (f - g)),
    "posterior": (lambda f, g: stk.posterior(f, likelihood), lambda f, g, x: -f + likelihood(x)),
    "posterior, a field": (stk.posterior, lambda f, g, x: -f - g),
    "bridge": (lambda f, g: stk.bridge(f, g, 0.3), lambda f, g, x: -0.7 * f - 0.3 * g),
    "normalised": (lambda f, g: Normalised(f, 0.8), lambda f, g, x: -f),
}


def in_users_space(field, z):
    """x and the log of the map's Jacobian, of one coordinate; z itself where there is no map."""
    if getattr(field, "constrain", None) is None:
        return z, torch.zeros(len(z), dtype=z.dtype)
    z = z.clone().requires_grad_()
    x = field.constrain(z)
    return x.detach(), torch.autograd.grad(x.sum(), z)[0].log().sum(1)


def violations(field, kind, log_density):
    """What is wrong with a field of this kind whose log density in the user's space is this function, up to a constant."""
    z = KINDS[kind][1]
    keeps = {
        "discrete": field.states if hasattr(field, "states") else None,
        "constrained": getattr(field, "constrain", None),
    }
    if keeps[kind] is None:
        return ["it does not say where it lives"]
    found = []
    x, jacobian = in_users_space(field, z)
    gap = field.energy(z) + log_density(x) + jacobian
    if not torch.allclose(gap, gap[:1].expand_as(gap), atol=1e-9):
        found.append("another law")
    energy, gradient = resolve(
        field, {"energy"} | ({"states"} if kind == "discrete" else set())
    ).energy_and_grad(z)
    if not torch.allclose(energy, field.energy(z)):
        found.append("another energy beside the gradient")
    if kind == "constrained":
        y = z.clone().requires_grad_()
        if not torch.allclose(
            torch.autograd.grad(field.energy(y).sum(), y)[0], gradient, atol=1e-8
        ):
            found.append("another gradient")
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COMBINATORS)
def test_combinators_have_the_right_law(name, kind):
    make, truth = COMBINATORS[name]
    around = KINDS[kind][0]
    shape = around(F).field.event_shape
    field = make(around(F, shape), around(G, shape))
    assert violations(field, kind, lambda x: truth(F(x), G(x), x)) == []
    if kind == "discrete":
        assert field.states == STATES
        with pytest.raises(MissingCapability, match="discrete states"):
            stk.sample(field, stk.HMC(0.1, metric="none"), chains=2, steps=1)
    else:
        assert field.unconstrain(torch.tensor([[1.5]])).isfinite().all()
        assert tuple(field.constrained_shape) == SHAPE
        with pytest.raises(InvalidArgument, match="inside the constraint"):
            field.unconstrain(torch.tensor([[-1.5]]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrapper_that_drops_where_its_field_lives_is_caught(kind, monkeypatch):
    """The mutant: as it was, a wrapper in free space that says nothing of states, or of the map."""
    around = KINDS[kind][0]
    name = {"discrete": "states", "constrained": "constrain"}[kind]
    monkeypatch.setattr(wrapped, "RULES", RULES | {name: dict.fromkeys(Kind, Rule.REFUSE)})
    monkeypatch.setattr("scoretk.fields.combine.powers.shared_map", lambda argument, fields: None)
    field = stk.tempered(around(F), 2.5)
    assert violations(field, kind, lambda x: -F(x) / 2.5) == ["it does not say where it lives"]


def test_a_wrapper_that_tempers_the_jacobian_is_caught(monkeypatch):
    monkeypatch.setattr(
        wrapped,
        "RULES",
        RULES | {n: dict.fromkeys(Kind, Rule.KEEP) for n in ("constrain", "unconstrain")},
    )
    monkeypatch.setattr("scoretk.fields.combine.powers.shared_map", lambda argument, fields: None)
    assert "another law" in violations(
        stk.tempered(under_constraint(F), 2.5), "constrained", lambda x: -F(x) / 2.5
    )


# Compositions to any depth


def grown(rng, depth, kind, plain):
    """A random composition and its log density in the user's space; of fields that are not yet of this kind where `plain`."""
    around = KINDS[kind][0]
    shape = (2,) if kind == "discrete" else SHAPE
    if depth == 0:
        energy = gamma(rng.uniform(1.0, 3.0), rng.uniform(0.2, 2.0))
        return (stk.Energy(energy, shape) if plain else around(energy, shape)), lambda x: -energy(x)
    if not plain and rng.random() < 0.3:
        field, log_density = grown(rng, depth - 1, kind, True)
        made = (
            stk.Discrete(field, STATES) if kind == "discrete" else stk.constrained(field, POSITIVE)
        )
        return made, log_density
    name = rng.choice([n for n in COMBINATORS if n != "normalised"])
    make, truth = COMBINATORS[name]
    (f, log_f), (g, log_g) = (grown(rng, depth - 1, kind, plain) for _ in range(2))
    return make(f, g), lambda x: truth(-log_f(x), -log_g(x), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", slow_but(range(60), *range(6)))
def test_random_compositions_have_the_right_law(kind, seed):
    rng = random.Random(seed)
    field, log_density = grown(rng, rng.choice([2, 3, 4]), kind, False)
    assert violations(field, kind, log_density) == []


# Draws in the user's space


def powered_gamma(temperature):
    """Gamma(3, 2) to the power 1/T, and its mean."""
    law = td.Gamma(1 + 2 / temperature, 2 / temperature)
    field = stk.constrained(stk.Energy(lambda x: (2 * x - 2 * x.log()).sum(1), SHAPE), POSITIVE)
    return field, law


def test_draws_of_a_tempered_constrained_law():
    field, law = powered_gamma(3.0)
    draws = stk.sample(
        stk.tempered(field, 3.0),
        stk.HMC(0.4, leapfrogs=6, metric="none"),
        chains=256,
        steps=60,
        warmup=40,
    )
    assert draws.x.min() > 0
    assert_mean(draws.x.mean(1), law.mean)
    assert_mean((draws.x - law.mean).square().mean(1), law.variance)
    start = torch.full((2, 1), 0.5)
    near = stk.sample(stk.tempered(field, 3.0), stk.ULA(1e-12), steps=1, init=start).final
    torch.testing.assert_close(near, start, rtol=1e-4, atol=0)


def test_a_likelihood_is_asked_in_the_users_space():
    field, seen = powered_gamma(1.0)[0], []

    def log_likelihood(x):
        seen.append(float(x.detach().min()))
        return -x.sum(1)

    draws = stk.sample(
        stk.posterior(field, log_likelihood), stk.MALA(0.1), chains=256, steps=150, warmup=50
    )
    assert min(seen) > 0
    assert_mean(draws.x.mean(1), 1.0)  # Gamma(3, 3)


@pytest.mark.parametrize("solver", [stk.AIS(levels=40), stk.SMC(levels=40)], ids=["AIS", "SMC"])
def test_annealing_over_a_constraint(solver):
    field, _ = powered_gamma(1.0)
    draws = stk.sample(field, solver, chains=2048, seed=2)
    log_w = draws.stats["log_weight"].reshape(-1, 64).double()  # islands, or as if they were
    means = (log_w.logsumexp(1) - math.log(64)).exp() * math.sqrt(2 * math.pi)
    assert draws.final.min() > 0
    assert_mean(means, math.gamma(3) / 2**3)


def test_tempering_over_a_constraint():
    field, law = powered_gamma(1.0)
    kernel = stk.HMC(0.5, leapfrogs=4, metric="none")
    draws = stk.sample(
        field,
        stk.ParallelTempering(kernel, temperatures=(1.0, 3.0)),
        chains=128,
        steps=80,
        warmup=20,
    )
    assert draws.x.min() > 0
    assert_mean(draws.x.mean(1), law.mean)


@pytest.mark.slow
def test_log_partition_over_a_constraint():
    field, _ = powered_gamma(1.0)
    for f, power in ((field, 1.0), (stk.tempered(field, 2.0), 2.0)):
        found = stk.log_partition(f, seed=1)
        a, b = 1 + 2 / power, 2 / power
        assert abs(float(found.value) - (math.lgamma(a) - a * math.log(b))) < z_limit(2) * float(
            found.stderr
        )


def test_draws_of_a_tempered_lattice():
    lattice = Ising(2, 0.4, 0.2)
    draws = stk.sample(stk.tempered(lattice, 2.0), chains=512, steps=60, warmup=40)
    assert set(draws.x.unique().tolist()) == {-1.0, 1.0}
    states = lattice._numbered(torch.arange(16), torch.float64)
    p = torch.softmax(-lattice.energy(states) / 2, 0)
    assert_mean(draws.x.flatten(2).mean(2).mean(1), float((p * states.flatten(1).mean(1)).sum()))


def test_a_solvers_temperature_would_temper_the_jacobian():
    field, _ = powered_gamma(1.0)
    for solver in (
        stk.ULA(0.01, temperature=2.0),
        stk.MALA(0.1, temperature=2.0),
        stk.AnnealedLangevin([4.0, 2.0], 3, 0.01),
    ):
        with pytest.raises(InvalidArgument, match="in the user's space"):
            stk.sample(field, solver, chains=2)
    stk.sample(field, stk.AnnealedLangevin([4.0, 1.0], 3, 0.01), chains=2)


# Fields that do not go together, and what is not kept


def test_laws_of_different_spaces_are_refused():
    f, g = under_constraint(F), stk.Energy(G, SHAPE)
    other = stk.constrained(g, constraints.interval(0.0, 3.0))
    spins, wide = on_states(F), stk.Discrete(stk.Energy(G, (2,)), (0.0, 1.0))
    for a, b in ((f, g), (f, other), (spins, wide)):
        for make in (
            stk.product,
            lambda a, b: stk.mixture([a, b], [1, 1], [0, 0]),
            lambda a, b: stk.guided(a, 2.0, b),
            stk.posterior,
        ):
            with pytest.raises(InvalidArgument):
                make(a, b)
    for call in (
        lambda: stk.bridge(other, f, 0.5),
        lambda: stk.bridge(f, g, 0.5),
        lambda: stk.mixture([spins, stk.Energy(G, (2,))], [1, 1], [0, 0]),
        lambda: stk.posterior(stk.Energy(G, (2,)), spins),
        lambda: stk.Discrete(f, STATES),
        lambda: stk.Discrete(spins, (0.0, 1.0)),
        lambda: stk.constrained(spins, POSITIVE),
        lambda: stk.constrained(f, POSITIVE),
        lambda: stk.smoothed(spins),
        lambda: stk.tempered(stk.smoothed(f), 2.0),
        lambda: stk.tempered(Normalised(f, 0.0), 2.0),
        lambda: stk.posterior(stk.smoothed(f), likelihood),
    ):
        with pytest.raises(InvalidArgument):
            call()
    stk.product(f, stk.constrained(g, constraints.greater_than(0.0)))  # one constraint, said twice
    stk.product(spins, stk.Energy(G, (2,)))  # an energy of x serves on the states too


def test_a_bridge_from_a_base_is_one_of_free_space():
    field = under_constraint(F)
    bridge = stk.bridge(standard_normal(SHAPE), field, 0.25)
    torch.testing.assert_close(
        bridge.energy(ON_LINE), 0.75 * ON_LINE.square().sum(1) / 2 + 0.25 * field.energy(ON_LINE)
    )
    assert bridge.constrain(ON_LINE).min() > 0


def test_smoothing_a_constrained_law_gives_draws_in_the_users_space():
    field, law = powered_gamma(1.0)
    smooth = stk.smoothed(field, stk.VP(), samples=64)
    draws = stk.sample(smooth, stk.ProbabilityFlow(steps=16), chains=256, seed=1)
    assert draws.final.min() > 0
    assert abs(float(draws.final.mean()) / float(law.mean) - 1) < 0.2
    again = stk.sample(
        smooth,
        stk.ProbabilityFlow(steps=16),
        init=stk.encode(smooth, field.unconstrain(draws.final)).x,
    )
    torch.testing.assert_close(again.final, draws.final, rtol=0.1, atol=0.05)


class Latent:
    """A field of latents that decodes, starts where it likes, and knows more than a wrapper can keep."""

    event_shape = (2,)
    null = {"y": 0.0}  # noqa: RUF012

    def energy(self, x, y=None):
        return x.square().sum(1) / 2 + (0 if y is None else y * x[:, 0])

    def initial(self, n, noise):
        return torch.full((n, 2), 0.25)

    def decode(self, x):
        return 2 * x

    def log_prob(self, x):
        return -self.energy(x) - math.log(2 * math.pi)

    def draw(self, n, noise):
        return noise.normal(0, 0, (2,))

    def estimate_log_prob(self, x, seed=0):
        raise AssertionError("of another law")

    def between(self, base, weight):
        raise AssertionError("of another law")

    def gibbs(self, x, u):
        raise AssertionError("of another law")

    gibbs_shape = (2,)


LATENT = Latent()
OVER_LATENTS = {
    "tempered": stk.tempered(LATENT, 2.0),
    "product": stk.product(LATENT, stk.Energy(lambda x, **cond: x.square().sum(1), (2,))),
    "guided": stk.guided(LATENT, 2.0),
    "posterior": stk.posterior(LATENT, likelihood),
    "bridge": stk.bridge(standard_normal((2,)), LATENT, 0.5),
    "tempered posterior": stk.tempered(stk.posterior(LATENT, likelihood), 2.0),
    "guided tempered": stk.guided(stk.tempered(LATENT, 2.0), 1.5),
}


@pytest.mark.parametrize("name", OVER_LATENTS)
def test_starts_decoders_and_nulls_are_kept_and_other_laws_refused(name):
    field = OVER_LATENTS[name]
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(field.decode(x), 2 * x)
    assert torch.equal(field.initial(3, None), torch.full((3, 2), 0.25))
    assert "decode" in offers(field)
    if name != "bridge":
        assert field.null == {"y": 0.0}
    for lost in (
        "log_prob",
        "draw",
        "estimate_log_prob",
        "between",
        "gibbs",
        "gibbs_shape",
        "exact_log_partition",
    ):
        assert not hasattr(field, lost)
        assert lost not in offers(field)
        with pytest.raises(MissingCapability, match=lost):
            getattr(field, lost)
    with pytest.raises(MissingCapability):
        stk.log_prob(field, x)
    with pytest.raises(MissingCapability):
        stk.sample(field, stk.BlockGibbs(), chains=2, steps=1)
    y = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    if "guided" not in name and name != "bridge":  # the condition reaches the field
        assert not torch.allclose(field.energy(x, y=y), field.energy(x))
    draws = stk.sample(field, stk.ULA(1e-9), chains=2, steps=1)
    assert float((draws.final - 0.25).abs().max()) < 1e-3


def test_the_same_law_keeps_all():
    field = Normalised(LATENT, 1.0)
    kept = {n for n in RULES if hasattr(field, n)}
    assert kept == {
        "initial",
        "decode",
        "null",
        "draw",
        "log_prob",
        "gibbs",
        "gibbs_shape",
        "between",
    }
    lattice = Normalised(Ising(2), 1.0)
    assert lattice.states == Ising(2).states
    assert {"states", "gibbs", "draw", "log_prob"} <= offers(lattice)


def test_decoders_that_differ_are_refused_where_asked():
    class Other(Latent):
        def decode(self, x):
            return 3 * x

    assert torch.equal(stk.product(LATENT, LATENT).decode(ON_STATES), 2 * ON_STATES)
    field = stk.product(LATENT, Other())
    assert "decode" not in offers(field)
    with pytest.raises(MissingCapability, match="decode"):
        field.decode(ON_STATES)
    assert torch.equal(
        stk.constrained(LATENT, POSITIVE).decode(ON_STATES), 2 * ON_STATES
    )  # of draws, in the user's space


def test_fields_in_time_keep_their_base_or_say_that_they_have_none():
    f = gaussian().noised(stk.VP())
    for field, std in (
        (stk.tempered(f, 4.0), 2.0),
        (stk.product(f, f), 0.5**0.5),
        (stk.guided(f, 2.0, f), 1.0),
        (stk.mixture([f, f], [1, 1]), 1.0),
        (stk.posterior(f, likelihood), 1.0),
        (stk.classifier_guided(f, lambda x, t: x.sum(1)), 1.0),
    ):
        assert isinstance(field.base, NormalBase)
        assert field.base.std == pytest.approx(std, rel=1e-4)
        assert "base" in offers(field)

    class Elsewhere(type(f)):
        base = stk.from_distribution(td.Independent(td.Laplace(torch.zeros(2), torch.ones(2)), 1))
        provides = frozenset({"denoise", "score", "velocity", "base"})

    odd = Elsewhere(f.mixture, f.path)
    assert stk.tempered(odd, 1.0).base is odd.base
    assert stk.posterior(odd, likelihood).base is odd.base
    for field in (
        stk.tempered(odd, 2.0),
        stk.product(odd, odd),
        stk.product(f, odd),
        stk.mixture([f, odd], [1, 1]),
        stk.guided(f, 2.0, odd),
    ):
        assert "base" not in offers(field)
        with pytest.raises(InvalidArgument, match="without a base"):
            stk.sample(field, stk.ProbabilityFlow(steps=2), chains=2)
    flow = stk.Velocity(
        lambda x, t: x, (2,), base=td.Independent(td.Laplace(torch.zeros(2), torch.ones(2)), 1)
    )
    for make in (
        lambda f: stk.tempered(f, 2.0),
        lambda f: stk.product(f, f),
        lambda f: stk.guided(f, 2.0, f),
        lambda f: stk.mixture([f, f], [1, 1]),
        lambda f: stk.posterior(f, likelihood),
    ):
        with pytest.raises(MissingCapability, match="Gaussian path"):
            make(flow)


def test_a_component_is_absent_where_it_is_undefined():
    """The semicircle is NaN outside (-1, 1), where the other component is not: the mixture goes on there."""
    other = gaussian(1, std=2.0)
    field = stk.mixture([stk.load("semicircle"), other], [0.5, 0.5])
    x = torch.tensor([[0.5], [3.0], [math.nan]], dtype=torch.float64)
    assert float(field.log_prob(x)[1]) == pytest.approx(float(other.log_prob(x)[1]) - math.log(2))
    torch.testing.assert_close(field.score(x)[1], other.score(x)[1])
    assert bool(field.log_prob(x)[2].isnan())


def test_annealing_from_uniform_states_ignores_where_a_field_likes_to_start():
    class Stubborn(stk.Discrete):
        def initial(self, n, noise):
            return torch.ones(n, 2)

    field = Stubborn(stk.Energy(lambda x: x.sum(1), (2,)), (0.0, 1.0))
    draws = stk.sample(field, stk.AIS(levels=4, kernel=stk.GibbsWithGradients()), chains=2048)
    assert_mean(draws.stats["log_weight"].exp(), (1 + math.exp(-1)) ** 2 / 4)


# The table is whole


def every_wrapper():
    found, due = [], list(Wrapped.__subclasses__())
    while due:
        cls = due.pop()
        due += cls.__subclasses__()
        if cls.__module__.startswith("scoretk.") and hasattr(cls, "kind"):
            found.append(cls)
    return found


def test_every_wrapper_says_what_it_does():
    names = {cls.__name__ for cls in every_wrapper()}
    expected = {
        "Powered",
        "PoweredTimed",
        "Mixture",
        "MixtureTimed",
        "Guided",
        "GuidedStatic",
        "Classified",
        "StaticPosterior",
        "TimedPosterior",
        "Bridge",
        "Stretched",
        "Constrained",
        "Discrete",
        "Smoothed",
        "At",
        "Normalised",
        "Evaluated",
    }
    assert expected <= names
    assert all(rules.keys() == set(Kind) for rules in RULES.values())


def test_a_class_cannot_define_what_its_kind_refuses():
    with pytest.raises(TypeError, match="estimate_log_prob"):
        type("Wrong", (Wrapped,), {"kind": Kind.POWER, "estimate_log_prob": lambda self, x: x})


NATIVE = frozenset(
    {
        "at",
        "constraint",
        "denoise",
        "energy",
        "energy_and_grad",
        "event_shape",
        "native",
        "path",
        "predict",
        "predicts",
        "provides",
        "score",
        "transform",
        "velocity",
    }
)
"""What makes a field a field, and a map a map: a wrapper has its own, and keeps none by a rule."""
NOT_OF_FIELDS = frozenset(
    {
        # of a network's answer, as diffusers gives it
        "sample",
        # of Python's objects, arrays and modules
        "Stream",
        "__dict__",
        "_pilot",
        "__file__",
        "device_mesh",
        "placements",
        "process_group",
        "__module__",
        "__name__",
        "__notes__",
        "__qualname__",
        "__wrapped__",
        "__self__",
        "_fields",
        "_make",
        "_orig_mod",  # of wrappers of torch and of functools
        "fn",
        "module",
        "x",  # of a solver's state
        "base_constraint",
        "chains",  # of noise
        "dtype",
        "load_state_dict",
        "names",  # of the variables of a map
        "ndim",
        "real_stack",
        "save",
        "shape",
        "state_dict",
        "steers",
        "variable",
        "zero_start",
        # of solvers, their states, methods and losses
        "adapts",
        "exact",
        "for_part",
        "before",
        "given_back",
        "init",
        "kind",
        "milestones",
        "shared",
        "shift",
        "spread",
        "start",
        "step",
        "step_size",
        "temperature",
        "trial",
        "tuned_by",
        "twisted",
        "varying",
        "weight",
        "provenance",
        "tuned",  # of draws
        "cond",  # of the view of a field that solvers have
        "prior",  # the demo's, of built-in models
    }
)
"""Names that the package asks of what is no field."""


NO_FIELDS = {"core", "adapters", "containment.py", "discovery.py", "cli"}
NO_FIELDS |= {"fingerprint.py", "sbi.py"}  # which ask networks and posteriors of another library
NO_FIELDS |= {"alike.py"}  # which asks paths, constraints and bases
"""Rooms, folders and files that ask no field of anything."""


def asked():
    """Names that `getattr` and `hasattr` ask of anything in the package, and those that are read off a `native` field."""
    root = Path(stk.__file__).parent
    for path in (
        p for p in sorted(root.rglob("*.py")) if not NO_FIELDS & set(p.relative_to(root).parts)
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "hasattr", "optional")
            ):
                if isinstance(node.args[1], ast.Constant):
                    yield node.args[1].value, path.relative_to(root)
            elif isinstance(node, ast.Attribute) and "native" in (
                getattr(node.value, "id", None),
                getattr(node.value, "attr", None),
            ):
                yield node.attr, path.relative_to(root)


@pytest.mark.thorough
def test_what_is_asked_of_fields_is_in_the_table():
    found = set(asked())
    unknown = {
        (name, str(path)) for name, path in found if name not in {*RULES, *NATIVE, *NOT_OF_FIELDS}
    }
    assert not unknown, (
        "a capability that wrappers know nothing of: give it its rules in fields/wrapped.py"
    )
    assert set(CAPABILITIES) <= {*RULES, *NATIVE}
    assert {"constrain", "between", "null", "gibbs_shape", "estimate_log_prob"} <= {
        name for name, _ in found
    }


def test_optional_capabilities_are_written_down_and_asked_in_one_way():
    """The protocol of a field is `OPTIONAL`: nothing of it is found by `getattr` elsewhere."""
    assert set(RULES) | {"path", "predict", "predicts", "constraint"} == set(OPTIONAL)
    root, apart = Path(stk.__file__).parent, {"protocols.py", "wrapped.py", "witness.py"}
    for path in root.rglob("*.py"):
        if not NO_FIELDS & set(path.relative_to(root).parts) and path.name not in apart:
            found = re.findall(r'(?:getattr|hasattr)\([^()]+, "(\w+)"', path.read_text())
            assert not OPTIONAL.keys() & set(found), path
    with pytest.raises(KeyError, match="nul"):
        optional(stk.VP(), "nul")


# --- conditions: of several fields each is told its own


def pulled(x, y):
    return (x - y[:, None]).square().sum(1) / 2


class Pulled(torch.nn.Module):
    def forward(self, x, y):
        return pulled(x, y)


def free(x):
    return x.square().sum(1) / 2


COND = {"y": torch.tensor([1.0, -2.0, 0.5])}
TOLD = {
    "product": lambda e, f: (stk.product(e, f), lambda a, b: a + b),
    "product of products": lambda e, f: (
        stk.product(stk.tempered(e, 2.0), stk.product(f, f)),
        lambda a, b: a / 2 + 2 * b,
    ),
    "bridge": lambda e, f: (stk.bridge(f, e, 0.3), lambda a, b: 0.3 * a + 0.7 * b),
    "mixture": lambda e, f: (
        stk.mixture([e, f], [0.5, 0.5], log_partition=[0.0, 0.0]),
        lambda a, b: math.log(2) - torch.logaddexp(-a, -b),
    ),
}


@pytest.mark.parametrize("fn", [pulled, Pulled()], ids=["function", "module"])
@pytest.mark.parametrize("case", TOLD)
def test_each_field_is_told_the_conditions_that_it_takes(case, fn):
    e, f = stk.Energy(fn, (2,)), stk.Energy(free, (2,))
    x = torch.linspace(-1, 2, 6).reshape(3, 2)
    field, law = TOLD[case](e, f)
    torch.testing.assert_close(field.energy(x, **COND), law(pulled(x, **COND), free(x)))
    bound = resolve(field, {"energy", "score"}, COND)
    slope = torch.func.grad(lambda z: law(pulled(z, **COND), free(z)).sum())(x)
    torch.testing.assert_close(bound.score(x), -slope)
    torch.testing.assert_close(bound.energy_and_grad(x)[1], slope)


def test_all_told_all_is_the_mutant(monkeypatch):
    monkeypatch.setattr("scoretk.fields.combine.members.taken", lambda field: None)
    field = stk.product(stk.Energy(pulled, (2,)), stk.Energy(free, (2,)))
    with pytest.raises(InvalidArgument, match="which has no 'y'"):
        field.energy(torch.zeros(3, 2), **COND)


@pytest.mark.parametrize(
    "make", [lambda f: f, lambda f: stk.product(f, f), lambda f: td.Normal(0.0, 1.0)]
)
def test_conditions_that_no_field_takes_are_refused(make):
    field = make(stk.Energy(free, (2,)))
    with pytest.raises(
        stk.InvalidArgument, match=r"cond: expected the conditions that .* takes: none, got 'y'"
    ):
        stk.sample(field, stk.MALA(0.1), chains=3, steps=1, cond=COND)
    assert resolve(stk.Energy(lambda x, **cond: free(x), (2,)), {"energy"}, COND).energy(
        torch.zeros(3, 2)
    ).shape == (3,)


class OfLogProb:
    """A law of which the log density alone is known."""

    event_shape = (2,)

    def log_prob(self, x):
        return -x.abs().sum(1) - 2 * math.log(2.0)


class OfNothing:
    """A shape, of which nothing is known."""

    event_shape = (2,)


_FLAT = stk.Energy(lambda x: 0 * x.sum(1), (2,))
OF_AN_ENERGY = {
    "tempered": lambda f: stk.tempered(f, 2.0),
    "product": lambda f: stk.product(_FLAT, f),
    "the first of a product": lambda f: stk.product(f, _FLAT),
    "a bridge's start": lambda f: stk.bridge(f, _FLAT, 0.5),
    "a bridge's end": lambda f: stk.bridge(_FLAT, f, 0.5),
    "a prior": lambda f: stk.posterior(f, lambda x: -(x**2).sum(1)),
    "a likelihood": lambda f: stk.posterior(_FLAT, f),
    "constrained": lambda f: stk.constrained(f, td.constraints.positive),
    "smoothed": stk.smoothed,
    "discrete": lambda f: stk.Discrete(f, (0.0, 1.0)),
}


@pytest.mark.parametrize("name", OF_AN_ENERGY)
def test_what_has_no_energy_is_refused_where_it_is_combined_with_what_makes_one(name):
    with pytest.raises((MissingCapability, InvalidArgument)) as told:
        OF_AN_ENERGY[name](OfLogProb())
    assert "Minus its log density is an energy" in str(told.value)
    with pytest.raises((MissingCapability, InvalidArgument)):
        OF_AN_ENERGY[name](OfNothing())
    made = OF_AN_ENERGY[name](stk.Energy(lambda x: -OfLogProb().log_prob(x), (2,)))  # as it says
    assert offers(made) & {"energy", "velocity"}


class PlainInTime:
    """A field in time of somebody's own, that says nothing of where chains start."""

    event_shape = (2,)

    def __init__(self, path):
        self.path = path

    def denoise(self, x, t):
        alpha, sigma = (row(x.dtype) for row in (self.path.alpha(t).to, self.path.sigma(t).to))
        alpha, sigma = (a.expand(len(x))[:, None] for a in (alpha, sigma))
        return (alpha * x + 1.5 * sigma**2) / (alpha**2 + sigma**2)  # of data N(1.5, 1)

    def at(self, t):
        return stk.Score(lambda x: resolve(self, {"score"}).score(x, t), self.event_shape)


SEEN = stk.LinearGaussian(torch.ones(1, 2), torch.tensor([2.0]), std=0.5)
OF_A_BASE = {
    "itself": lambda f: f,
    "guided": lambda f: stk.guided(f, 2.0, f),
    "by a classifier": lambda f: stk.classifier_guided(f, lambda x, t: -(x**2).sum(1)),
    "posterior": lambda f: stk.posterior(f, SEEN),
    "tempered": lambda f: stk.tempered(f, 2.0),
    "product": lambda f: stk.product(f, f),
    "guided twice": lambda f: stk.guided(stk.guided(f, 2.0, f), 0.5, f),
}


@pytest.mark.parametrize("path", [stk.Linear(), stk.EDM(0.01, 20.0), stk.VP()], ids=str)
@pytest.mark.parametrize("name", OF_A_BASE)
def test_a_field_in_time_starts_where_its_path_does(name, path):
    own = PlainInTime(path)
    known = stk.Diffusion(own.denoise, (2,), path, predicts="data")
    kept, said = base_of(OF_A_BASE[name](own)), base_of(OF_A_BASE[name](known))
    assert isinstance(kept, NormalBase)
    assert (kept.event_shape, kept.std) == (said.event_shape, said.std)
    noise = stk.Noise(0, 4)
    x = kept.draw(4, noise)
    assert torch.equal(x, said.draw(4, noise))


@pytest.mark.parametrize("solver", [stk.ProbabilityFlow(steps=4), stk.ReverseSDE(steps=4)])
def test_a_field_of_ones_own_in_time_is_sampled_as_the_same_network_is(solver):
    own = PlainInTime(stk.Linear())
    known = stk.Diffusion(own.denoise, (2,), own.path, predicts="data")
    torch.testing.assert_close(*(stk.sample(f, solver, chains=3).final for f in (own, known)))
    x = torch.tensor([[0.5, 1.0], [2.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(*(stk.log_prob(f, x).value for f in (own, known)))


def test_a_base_that_is_none_of_ones_own_is_not_made_up():
    class WithoutPath(PlainInTime):
        def velocity(self, x, t):
            return -x

    assert base_of(WithoutPath(None)) is None
    with pytest.raises(InvalidArgument, match=r"without a base.*Or give the field a `base`"):
        stk.sample(WithoutPath(None), stk.ProbabilityFlow("rk4", steps=2), chains=2)
    ends = PlainInTime(stk.EDM(0.01, 20.0)), PlainInTime(stk.EDM(0.01, 20.0))
    ends[0].base = standard_normal((2,), 3.0)
    assert base_of(stk.guided(ends[0], 2.0, ends[1])) is None  # two that differ
