"""What is given has the same meaning in each of its forms: a shape, a row of numbers, and a function, whatever takes it.

Every public argument of these kinds is in a table here, or said not to be, and why.
"""

import functools
import inspect

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk import diagnostics, fields, grids, learn, plot
from scoretk.fields.protocols import is_timed
from scoretk.fields.resolve import resolve

LABEL = torch.tensor([0.5, -1.0, 2.0])
X = torch.tensor([[0.3, -0.2], [1.1, 0.4], [-0.7, 0.9]])
T = torch.tensor([0.2, 0.5, 0.8])


def net(x, t):
    return torch.sin(3 * x) * (1 + t)[:, None]


def quadratic(x):
    return x.square().flatten(1).sum(1) / 2


def of_mu(mu):
    return quadratic(mu)


WELL = stk.Energy(quadratic, (2,))
WAVE = stk.Diffusion(net, (2,), stk.VP(), "noise")
LADDER = (4.0, 2.0, 1.0, 0.5)


# --- shapes ------------------------------------------------------------------------------------------------------

SHAPED = {
    "Energy event_shape": lambda s: stk.Energy(quadratic, s),
    "Score event_shape": lambda s: stk.Score(lambda x: -x, s),
    "Diffusion event_shape": lambda s: stk.Diffusion(net, s, stk.VP(), "noise"),
    "Velocity event_shape": lambda s: stk.Velocity(net, s),
    "from_reversed_time event_shape": lambda s: stk.from_reversed_time(net, s),
    "from_timesteps event_shape": lambda s: stk.from_timesteps(net, [0.9, 0.5, 0.1], s),
    "from_sigmas event_shape": lambda s: stk.from_sigmas(net, s),
    "unconditional event_shape": lambda s: stk.unconditional(lambda x: -x, s, stk.VE()),
    "standard_normal event_shape": fields.standard_normal,
    "Variable shape": lambda s: stk.Energy(of_mu, variables={"mu": stk.Variable(s)}),
    "variables": lambda s: stk.Energy(of_mu, variables={"mu": s}),
}
SHAPES = ((2,), [2], torch.Size([2]), (np.int64(2),), range(2, 3))


@pytest.mark.parametrize("what", SHAPED)
def test_a_shape_is_taken_in_each_form_and_nothing_else_is(what):
    for form in SHAPES:
        found = SHAPED[what](form).event_shape
        assert found == (2,), form
        assert type(found) is tuple
        assert [type(n) for n in found] == [int]
    for wrong in (2, "2", (2.0,), (0,), (-2,), (True,), {2}, None):
        with pytest.raises(stk.InvalidArgument):
            SHAPED[what](wrong)


# --- rows of numbers ---------------------------------------------------------------------------------------------


def flowed(solver, field=WAVE):
    return stk.sample(field, solver, chains=2, seed=1).x


NUMBERS = {
    "AnnealedLangevin levels": (
        LADDER,
        lambda v: flowed(stk.AnnealedLangevin(levels=v, steps_per_level=1)),
    ),
    "DAPS grid": ((0.1, 0.5, 0.9), lambda v: stk.DAPS(grid=v).grid),
    "ProbabilityFlow grid": (
        (0.0, 0.5, 1.0),
        lambda v: flowed(stk.ProbabilityFlow("euler", grid=v)),
    ),
    "ReverseSDE grid": ((0.0, 0.5, 1.0), lambda v: flowed(stk.ReverseSDE(grid=v))),
    "TwistedSMC grid": ((0.0, 0.5, 1.0), lambda v: stk.TwistedSMC(grid=v).grid),
    "LinearGaussian operator": (
        ((2.0, 1.0), (0.5, -1.0)),
        lambda v: stk.posterior(WAVE, stk.LinearGaussian(v, X[0], 0.5)).score(X, T),
    ),
    "LinearGaussian y": (
        (0.5, -1.0),
        lambda v: stk.posterior(WAVE, stk.LinearGaussian(torch.eye(2), v, 0.5)).score(X, T),
    ),
    "encode grid": ((0.0, 0.5, 1.0), lambda v: stk.encode(WAVE, X, method="rk4", grid=v).x),
    "log_prob grid": ((0.0, 0.5, 1.0), lambda v: stk.log_prob(WAVE, X, method="rk4", grid=v).value),
    "mixture weights": ((1.0, 3.0), lambda v: stk.mixture([NORMAL, SHIFTED], v).energy(X)),
    "mixture log_partition": (
        (0.5, 2.0),
        lambda v: stk.mixture([WELL, WELL], [1, 1], log_partition=v).energy(X),
    ),
    "from_timesteps alphas_cumprod": (
        (0.75, 0.5, 0.25),
        lambda v: stk.from_timesteps(net, v, (2,)).score(X, T),
    ),
    "ncsnv2_step_size sigmas": (LADDER, lambda v: stk.ncsnv2_step_size(v, 8)),
    "grid spec": ((0.0, 0.25, 1.0), lambda v: grids.grid(v, stk.VP(), 2)),
    "table given": (LADDER, lambda v: grids.table(stk.VE(), v)),
    "Tabulated table": ((0.75, 0.5, 0.25), lambda v: stk.Tabulated(v).alpha(T)),
    "ParallelTempering temperatures": (
        (1.0, 2.0, 4.0),
        lambda v: stk.ParallelTempering(stk.MALA(0.1), temperatures=v).temperatures,
    ),
    "Ladder levels": ((0.0, 0.5, 1.0), lambda v: stk.Ladder(v).levels),
    "guided interval": ((0.5, 2.0), lambda v: stk.guided(WAVE, 2.0, WAVE, interval=v).score(X, T)),
}


NORMAL, SHIFTED = (
    stk.from_distribution(
        torch.distributions.Independent(
            torch.distributions.Normal(m * torch.ones(2), torch.ones(2)), 1
        )
    )
    for m in (0.0, 1.0)
)


@pytest.mark.parametrize("what", NUMBERS)
def test_numbers_in_a_row_are_taken_in_each_form(what):
    values, ask = NUMBERS[what]
    found = [
        torch.as_tensor(ask(form), dtype=torch.float64)
        for form in (values, list(values), [*map(np.float64, values)])
    ]
    for other in found[1:]:
        assert torch.equal(other, found[0])


# --- numbers -----------------------------------------------------------------------------------------------------

ONE = {
    "sigma of a loss": lambda v: learn.denoising_score_matching(torch.sin, X, X + 1, v),
    "temperature": lambda v: stk.tempered(WELL, v).energy(X),
    "temperature in time": lambda v: stk.tempered(WAVE, v).score(X, T),
    "weight of guidance": lambda v: stk.guided(WAVE, v, WAVE).score(X, T),
    "weight of a classifier": lambda v: stk.classifier_guided(
        WAVE, lambda x, t: -quadratic(x), v
    ).score(X, T),
    "weight of a bridge": lambda v: stk.bridge(WELL, NORMAL, v).energy(X),
    "std of a measurement": lambda v: stk.posterior(
        WAVE, stk.LinearGaussian(torch.eye(2), torch.ones(2), v)
    ).score(X, T),
    "step size": lambda v: stk.sample(WELL, stk.ULA(v), chains=3, steps=2).x,
    "friction": lambda v: stk.sample(WELL, stk.GHMC(0.1, friction=v), chains=3, steps=2).x,
    "beta": lambda v: stk.VP(v, 2.0).alpha(T),
    "bulge": lambda v: stk.Interpolant(v).sigma(T),
    "width of a kernel": lambda v: torch.as_tensor(diagnostics.mmd(X, X + 1, v)),
    "slope of a penalty": lambda v: learn.gradient_penalty(quadratic, X, v),
    "rho of a grid": lambda v: grids.karras(stk.VE(), 3, v),
    "ratio of levels": lambda v: torch.tensor(stk.ncsnv2_overlap(1 + v, 8)),
}
TENSORS = {"sigma of a loss"}
"""Of these, what may be a tensor without axes, or of one number a row."""


@pytest.mark.parametrize("what", ONE)
def test_a_number_is_taken_in_each_form(what):
    usual = ONE[what](0.5)
    forms = [np.float64(0.5), np.float32(0.5)]
    forms += [torch.tensor(0.5), torch.full((len(X),), 0.5)] if what in TENSORS else []
    for form in forms:
        assert torch.equal(ONE[what](form), usual), form


# --- functions ---------------------------------------------------------------------------------------------------


class Silent:
    """A callable that does not tell what it takes, as some of C do not."""

    __signature__ = "none"

    def __init__(self, f):
        self.f = f

    def __call__(self, *args, **kwargs):
        return self.f(*args, **kwargs)


class Module(torch.nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f


class Bound:
    def __init__(self, f):
        self.f = f


def with_signature_of(f, cls, name):
    """A method of these names that calls f, so that each form tells what f takes."""
    names = [p.name for p in inspect.signature(f).parameters.values()]
    space = {}
    exec(f"def {name}(self, {', '.join(names)}):\n    return self.f({', '.join(names)})", space)
    return type(cls.__name__, (cls,), {name: space[name]})(f)


def by_keyword(f):
    """The last argument by its name alone."""
    *first, last = inspect.signature(f).parameters
    space = {"f": f}
    exec(
        f"def made({', '.join(first)}, *, {last}):\n    return f({', '.join(first)}, {last})", space
    )
    return space["made"]


def passing(f):
    def passed(*args, **kwargs):
        return f(*args, **kwargs)

    return passed


FORMS = {
    "a partial": functools.partial,
    "a bound method": lambda f: with_signature_of(f, Bound, "ask").ask,
    "an object": lambda f: with_signature_of(f, Bound, "__call__"),
    "a module": lambda f: with_signature_of(f, Module, "forward"),
    "wrapped": lambda f: functools.wraps(f)(passing(f)),
    "anything by name": passing,
    "by keyword": by_keyword,
    "one that does not tell": Silent,
}


def energy(x, label):
    return quadratic(x - label[:, None])


def slope(x, label):
    return label[:, None] - x


def labelled(x, t, label):
    return net(x, t) + label[:, None]


def by_name(mu, label):
    return quadratic(mu - label[:, None])


FUNCTIONS = {
    "Energy fn": (energy, lambda f: stk.Energy(f, (2,))),
    "Energy grad": (lambda x, label: -slope(x, label), lambda f: stk.Energy(energy, (2,), grad=f)),
    "Energy of variables": (by_name, lambda f: stk.Energy(f, variables={"mu": (2,)})),
    "Energy of a positive variable": (
        by_name,
        lambda f: stk.Energy(
            f, variables={"mu": stk.Variable((2,), torch.distributions.constraints.positive)}
        ),
    ),
    "Score fn": (slope, lambda f: stk.Score(f, (2,))),
    "Diffusion net": (labelled, lambda f: stk.Diffusion(f, (2,), stk.VP(), "noise")),
    "Velocity net": (labelled, lambda f: stk.Velocity(f, (2,))),
    "classifier_guided log_prob": (
        lambda x, t, label: -energy(x, label),
        lambda f: stk.classifier_guided(WAVE, f, measured="label"),
    ),
    "posterior likelihood": (
        lambda x, label: -energy(x, label),
        lambda f: stk.posterior(WELL, f, measured="label"),
    ),
    "posterior likelihood in time": (
        lambda x, label: -energy(x, label),
        lambda f: stk.posterior(WAVE, f, "dps", measured="label"),
    ),
    "unconditional net": (slope, lambda f: stk.unconditional(f, (2,), stk.VE())),
    "from_reversed_time net": (labelled, lambda f: stk.from_reversed_time(f, (2,))),
    "from_sigmas net": (labelled, lambda f: stk.from_sigmas(f, (2,))),
    "from_timesteps net": (labelled, lambda f: stk.from_timesteps(f, [0.75, 0.5, 0.25], (2,))),
}


def answers(field):
    """A field's answers with a condition, asked by hand and by a run."""
    cond, timed = {"label": LABEL}, is_timed(field)
    bound = resolve(field, {"velocity" if timed else "score"}, cond, timed=timed)
    asked = bound.velocity(X, T) if timed else bound.score(X)
    solver = stk.ProbabilityFlow("euler", steps=1) if timed else stk.ULA(0.1)
    steps = {} if timed else {"steps": 1}
    return asked, stk.sample(field, solver, chains=3, cond=cond, **steps).final


@pytest.mark.parametrize("what", FUNCTIONS)
def test_a_function_is_taken_in_each_form(what):
    f, make = FUNCTIONS[what]
    usual = answers(make(f))
    for form, change in FORMS.items():
        for found, before in zip(answers(make(change(f))), usual, strict=True):
            assert torch.equal(found, before), form


# --- none is left out --------------------------------------------------------------------------------------------

ELSEWHERE = {
    "adapters": (
        "from_azula",
        "from_diffusers",
        "from_flow",
        "from_flow_matching",
        "from_k_diffusion",
    ),
    "of others' libraries": ("from_jax", "from_numpyro", "from_pyro", "from_sbi", "from_torchcfm"),
    "of tokens": ("from_language_model",),
    "names in an error": ("AmbiguousName", "MissingCapability", "UnknownArgument", "UnknownName"),
    "what is made by others of these": ("Constrained", "NormalBase", "as_base", "Lazy", "resolve"),
    "of what is kept": ("concatenate",),
    "losses, whose functions take one tensor": (
        "denoising_score_matching",
        "negative_log_likelihood",
        "sampler_divergence",
        "kernel_stein_discrepancy",
    ),
    "what is told of": ("fit", "train"),
}
"""Public names whose arguments of these kinds are asked about elsewhere, or are no such."""
OTHERS = {
    "classifier_guided measured": "names",
    "posterior measured": "names",
    "Variable dims": "names",
    "constrained constraint": "constraints",
    "mixture fields": "fields",
    "samples shape": "a shape that is shown",
    "field bounds": "what is shown",
}
KINDS = ("Sequence[float]", "Sequence[int]", "Callable", "Iterable", "Sequence[")


def test_every_argument_of_these_kinds_is_asked_about():
    known = {*SHAPED, *NUMBERS, *FUNCTIONS, *OTHERS}
    elsewhere = {name for names in ELSEWHERE.values() for name in names}
    left = []
    for module in (stk, diagnostics, grids, learn, fields, plot):
        for name in getattr(module, "__all__", dir(module)):
            made = getattr(module, name)
            if name in elsewhere or not callable(made) or name.startswith("_"):
                continue
            for p in _parameters(made):
                kind = str(p.annotation)
                asked = p.name in ("event_shape", "shape") or any(k in kind for k in KINDS)
                if asked and f"{name} {p.name}" not in known:
                    left.append(f"{name} {p.name}")
    assert left == []


def _parameters(made):
    try:
        return inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return ()
