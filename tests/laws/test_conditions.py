"""Conditions have names: what a field does not take is refused by whatever it is, and what it asks for and is not given too."""

import contextlib

import pytest
import torch
from torch.distributions import MultivariateNormal, constraints

import scoretk as stk
from scoretk.fields.conditions import taken
from scoretk.fields.protocols import is_timed, offers
from scoretk.fields.resolve import StaticField, resolve
from scoretk.fields.wrappers import At
from scoretk.models.targets.mixture import GaussianMixture

MIXTURE = GaussianMixture(torch.zeros(1, 2), torch.ones(1), torch.ones(1))
ENERGY = stk.Energy(lambda x: x.square().sum(1), (2,))
DIFFUSION = stk.Diffusion(lambda x, t: x, (2,))
LINEAR = stk.LinearGaussian(torch.ones(1, 2), torch.ones(1), 0.5)


class Plain:
    """A field of someone else's, without a wrapper."""

    event_shape = (2,)

    def energy(self, x):
        return x.square().sum(1)


class Handing(torch.nn.Module):
    """A network that hands on what it is told to one that does not take it."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(2, 2)

    def forward(self, x, t, **cond):
        return self.inner(x, **cond)


FIELDS = {
    "energy": ENERGY,
    "score": stk.Score(lambda x: -x, (2,)),
    "diffusion": DIFFUSION,
    "velocity": stk.Velocity(lambda x, t: x, (2,)),
    "of another class": Plain(),
    "a network that hands them on": stk.Diffusion(Handing(), (2,)),
    "mixture of Gaussians": MIXTURE,
    "noised": MIXTURE.noised(stk.VP()),
    "noised, at a time": MIXTURE.noised(stk.VP()).at(0.9),
    "at a time": DIFFUSION.at(0.9),
    "tempered": stk.tempered(ENERGY, 2.0),
    "product": stk.product(ENERGY, ENERGY),
    "mixture": stk.mixture([MIXTURE, MIXTURE], [0.5, 0.5]),
    "smoothed": stk.smoothed(ENERGY, stk.VP()),
    "discrete": stk.Discrete(ENERGY, (-1.0, 1.0)),
    "guided": stk.guided(DIFFUSION, 2.0, DIFFUSION),
    "constrained": stk.constrained(ENERGY, constraints.positive),
    "distribution": MultivariateNormal(torch.zeros(2), torch.eye(2)),
    "posterior": stk.posterior(ENERGY, lambda x: -x.square().sum(1)),
    "posterior in time": stk.posterior(DIFFUSION, LINEAR),
    "lattice": stk.load("ising"),
    "funnel": stk.load("funnel"),
    "diffusion of digits": stk.load("digits-diffusion"),
}


def sampled(field, cond):
    timed = is_timed(field)
    discrete = getattr(field, "states", None) is not None
    static = stk.GibbsWithGradients() if discrete else stk.ULA(1e-3)
    solver, steps = (stk.ReverseSDE(steps=2), None) if timed else (static, 1)
    return stk.sample(field, solver, chains=2, steps=steps, cond=cond, progress=False)


@pytest.mark.parametrize("name", FIELDS)
def test_a_condition_that_a_field_does_not_take_is_refused(name):
    with pytest.raises(stk.InvalidArgument, match=r"cond: .*strange"):
        sampled(FIELDS[name], {"strange": torch.ones(2, 1)})


@pytest.mark.parametrize(
    "field",
    [
        stk.Energy(lambda x, y: (x * y).sum(1), (2,)),
        stk.Score(lambda x, *, y: -x * y, (2,)),
        stk.Diffusion(lambda x, t, y: x * y, (2,)),
        stk.Diffusion(lambda x, t, y: x * y, (2,)).at(0.9),
        stk.tempered(stk.Energy(lambda x, y: (x * y).sum(1), (2,)), 2.0),
    ],
)
def test_a_condition_that_is_not_given_is_asked_for(field):
    with pytest.raises(stk.InvalidArgument, match=r"cond: .*asks for: 'y', got 'none'"):
        sampled(field, None)
    assert bool(sampled(field, {"y": torch.ones(2, 1)}).ok.all())


class Own:
    """A field of someone else's with attributes that posteriors of this package have."""

    event_shape, prior, likelihood = (2,), None, None

    def energy(self, x, y):
        return (x - y).square().sum(1)


class Swept:
    """Its sweep alone takes a condition."""

    event_shape, states, gibbs_shape = (2,), (-1.0, 1.0), (2,)

    def energy(self, x):
        return 0 * x.sum(1)

    def gibbs(self, x, u, y):
        return torch.where(u < y, 1.0, -1.0)


def test_conditions_of_someone_elses_fields_reach_them():
    assert bool(sampled(Own(), {"y": torch.zeros(2, 2)}).ok.all())
    y = torch.tensor([[0.0], [1.0]])
    init = -torch.ones(2, 2)
    swept = stk.sample(Swept(), stk.BlockGibbs(), chains=2, steps=1, init=init, cond={"y": y})
    assert torch.equal(swept.final, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))


def helper(x, scale):
    return scale * x


def test_a_mistake_in_the_users_own_call_is_theirs():
    field = stk.Energy(lambda x: helper(x).sum(1), (2,))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'scale'"):
        sampled(field, None)


def drawn_to(x, y=0.5):
    return (x - y).square().sum(1)


class Answering:
    """A law about y, that answers what its kind says and nothing else."""

    event_shape = (2,)

    def __init__(self, *answers):
        self.provides = frozenset(answers)
        for name in answers:
            setattr(self, name, getattr(self, f"_{name}"))

    def _energy(self, x, y=0.5):
        return drawn_to(x, y) / 2

    def _score(self, x, y=0.5):
        return y - x

    def _log_prob(self, x, y=0.5):
        return -drawn_to(x, y) / 2

    def _draw(self, n, noise):
        return noise.normal(0, stk.Stream.START, (2,))


class AnsweringInTime(Answering):
    """The same in time."""

    def at(self, t):
        return At(self, t)

    def _log_prob_at(self, x, t, y=0.5):
        return -drawn_to(x, t * y) / 2

    def _velocity(self, x, t, y=0.5):
        return x * y

    def _score(self, x, t, y=0.5):
        return t * y - x

    def _denoise(self, x, t, y=0.5):
        return x * y


ANSWERS = {"energy", "score", "log_prob", "denoise", "velocity"}
KINDS = (
    ("energy",),
    ("score",),
    ("log_prob",),
    ("energy", "log_prob"),
    ("score", "log_prob"),
    ("energy", "score"),
)
KINDS_IN_TIME = (("score",), ("score", "log_prob_at"), ("score", "velocity"), ("score", "denoise"))
JOINED = {
    "itself": lambda f: f,
    "tempered": lambda f: stk.tempered(f, 2.0),
    "product": lambda f: stk.product(ENERGY, f),
    "mixture": lambda f: stk.mixture([MIXTURE, f], [0.5, 0.5]),
    "constrained": lambda f: stk.constrained(f, constraints.positive),
    "discrete": lambda f: stk.Discrete(f, (-1.0, 1.0)),
    "posterior": lambda f: stk.posterior(f, lambda x: -x.square().sum(1)),
    "bridge": lambda f: stk.bridge(f, ENERGY, 0.5),
    "bridge to": lambda f: stk.bridge(ENERGY, f, 0.5),
    "smoothed": lambda f: stk.smoothed(f, stk.VP()),
}
JOINED_IN_TIME = {
    "itself": lambda f: f,
    "at": lambda f: f.at(0.7),
    "tempered": lambda f: stk.tempered(f, 2.0),
    "product": lambda f: stk.product(DIFFUSION, f),
    "guided": lambda f: stk.guided(f, 2.0, DIFFUSION),
    "posterior": lambda f: stk.posterior(f, LINEAR),
}


def joined(ways, kinds, made):
    """Every way to join with every kind of field for which there is one."""
    for way, join in ways.items():
        for kind in kinds:
            with contextlib.suppress(stk.ScoretkError):
                found = join(made(*kind))
                if offers(found) & ANSWERS:
                    yield f"{way} of {', '.join(kind)}", found


PULLED = stk.Energy(drawn_to, (2,))
MOVED = stk.Diffusion(lambda x, t, y=0.5: x * y, (2,))
TAKING = {
    "energy": PULLED,
    "energy with a gradient": stk.Energy(drawn_to, (2,), grad=lambda x, y=0.5: 2 * (x - y)),
    "score": stk.Score(lambda x, y=0.5: y - x, (2,)),
    "diffusion": MOVED,
    "velocity": stk.Velocity(lambda x, t, y=0.5: x * y, (2,)),
    "at a time": MOVED.at(0.7),
    "tempered": stk.tempered(PULLED, 2.0),
    "tempered in time": stk.tempered(MOVED, 2.0),
    "product": stk.product(ENERGY, PULLED),
    "smoothed": stk.smoothed(PULLED, stk.VP()),
    "discrete": stk.Discrete(PULLED, (-1.0, 1.0)),
    "guided": stk.guided(MOVED, 2.0, DIFFUSION),
    "constrained": stk.constrained(PULLED, constraints.positive),
    "posterior": stk.posterior(PULLED, lambda x: -x.square().sum(1)),
    "posterior in time": stk.posterior(MOVED, LINEAR),
    "bridge": stk.bridge(PULLED, ENERGY, 0.5),
    **dict(joined(JOINED, KINDS, Answering)),
    **dict(joined(JOINED_IN_TIME, KINDS_IN_TIME, AnsweringInTime)),
}
"""Fields, all of whose answers hang on y, and that have one of their own where none is given."""


@pytest.mark.parametrize("name", TAKING)
def test_no_answer_leaves_out_a_condition_that_its_field_takes(name):
    field, x = TAKING[name], torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    when, told = (0.7,) if is_timed(field) else (), 0
    for answer in offers(field) & ANSWERS:
        found = []
        for y in (0.3, 0.9):
            with contextlib.suppress(stk.MissingCapability, stk.InvalidArgument):
                found.append(
                    getattr(field, answer)(x, *when, y=torch.full((2, 2), y, dtype=torch.float64))
                )
        if found:
            told += 1
            assert not torch.equal(*found), answer
    assert told


@pytest.mark.parametrize("name", [n for n in TAKING if {"energy", "score"} <= offers(TAKING[n])])
def test_all_answers_are_under_the_condition_that_is_given(name):
    """The score is the slope of the energy that is asked under the same condition."""
    field, x = TAKING[name], torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    for y in (0.3, 0.9):
        given, at = torch.full((2, 2), y, dtype=torch.float64), x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(field.energy(at, y=given).sum(), at)
        torch.testing.assert_close(field.score(x, y=given), -slope)


class Shifted:
    """A normal about two conditions, by autograd, by a score of its own, or by both answers at once."""

    event_shape = (2,)

    def __init__(self, *own):
        self.provides = frozenset({"energy", *own} - {"energy_and_grad"})
        for name in own:
            setattr(self, name, getattr(self, f"own_{name}"))

    def energy(self, x, *, a, b):
        return (x - a[:, None] - b[:, None]).square().sum(1) / 2

    def own_score(self, x, *, a, b):
        return a[:, None] + b[:, None] - x

    def own_energy_and_grad(self, x, **cond):
        return self.energy(x, **cond), -self.own_score(x, **cond)


@pytest.mark.parametrize("own", [(), ("score",), ("score", "energy_and_grad")], ids=str)
@pytest.mark.parametrize("bound", ["", "a", "ab"], ids=str)
def test_conditions_that_a_field_is_asked_with_come_beside_those_that_it_is_bound_to(own, bound):
    rows = {"a": torch.tensor([0.5, -1.0, 2.0]), "b": torch.tensor([3.0, 0.25, 1.0])}
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    native = Shifted(*own)
    field = StaticField(native, {name: rows[name] for name in bound})
    given = {name: value for name, value in rows.items() if name not in bound}
    energy, score = native.energy(x, **rows), native.own_score(x, **rows)
    torch.testing.assert_close(field.energy(x, **given), energy)
    torch.testing.assert_close(field.score(x, **given), score)
    both = field.energy_and_grad(x, **given)
    torch.testing.assert_close(both, (energy, -score))


def _of_one_method(name):
    def static(self, x, *, y): ...
    def timed(self, x, t, *, y): ...

    own = {"event_shape": (2,), "provides": frozenset({name}), name: static}
    if name in {"denoise", "velocity"}:
        own |= {name: timed, "path": stk.VP(), "at": lambda self, t: self}
    return type("Own", (), own)()


@pytest.mark.parametrize("name", ["energy", "score", "denoise", "velocity"])
def test_what_any_method_of_someone_elses_field_asks_for_is_a_condition(name):
    assert taken(_of_one_method(name)) == {"y"}


@pytest.mark.parametrize("join", [stk.product, lambda fields: stk.mixture(fields, (1, 1, 1))])
@pytest.mark.parametrize("odd", range(3))
def test_fields_that_are_joined_are_on_one_path_whichever_is_odd(join, odd):
    fields = [
        stk.Diffusion(lambda x, t: x, (2,), stk.Linear() if i == odd else stk.VP())
        for i in range(3)
    ]
    with pytest.raises(stk.InvalidArgument, match="on one Gaussian path"):
        join(fields) if join is not stk.product else join(*fields)


CLAIMS = [{"energy"}, {"score"}, {"energy", "score"}]


@pytest.mark.parametrize("has", [set(), {"energy"}, {"score"}])
@pytest.mark.parametrize("claims", CLAIMS, ids=lambda claims: " and ".join(sorted(claims)))
def test_what_a_field_claims_it_has(claims, has):
    class Claiming:
        event_shape, provides = (2,), frozenset(claims)

    for name in has:
        setattr(Claiming, name, lambda self, x: x.square().sum(1))
    lacking = claims - has
    needs = {"energy"} if "energy" in claims else {"score"}
    if not lacking:
        assert resolve(Claiming(), needs) is not None
        return
    with pytest.raises(stk.MissingCapability, match=f"It claims {', '.join(sorted(lacking))}"):
        resolve(Claiming(), needs)
