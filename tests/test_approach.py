"""Warmup arrives from N(0, I): at reference posteriors as a user writes them first, and at targets with scales far apart."""

import math
from dataclasses import replace

import pytest
import torch

import scoretk as stk
from scoretk.fields import resolve
from scoretk.models.targets.analytic import EightSchools, Funnel
from scoretk.solvers.hmc import Point, leapfrog, unstretch
from scoretk.solvers.warmup.adaptation import Approach
from scoretk.solvers.warmup.approach import (
    OwnSettings,
    Place,
    _log_secant,
    approach_step,
    begins_far,
    common_settings,
    first_settings,
    lengths,
)
from scoretk.solvers.warmup.length import SquaredJumps, TimedTrajectory
from tests.evidence import z_limit
from tests.posteriors import POSTERIORS

FAR = 3.0


def arrived(posterior, form, draws):
    """Whether all chains are where the reference draws are, and their mean and spread agree with these."""
    x = draws.x.double() if form == "constrained" else posterior.user(draws.x.double())
    off = (x - posterior.known("mean")) / posterior.known("sd")
    if draws.failures or float(off.mean(1).abs().max()) > FAR:
        return False
    z = []
    for value, error, truth in [
        (off, posterior.known("mean_error") / posterior.known("sd"), 0.0),
        (off.square(), posterior.known("square_error"), 1.0),
    ]:
        of_chains = value.mean(1)
        z.append(
            (of_chains.mean(0) - truth)
            / (of_chains.var(0) / len(of_chains) + error.square()).sqrt()
        )
    return float(torch.cat(z).abs().max()) < z_limit(2 * x.shape[-1])


def run(name, form="log", solver=None, seed=1, dtype=torch.float64, **options):
    settings = {"chains": 32, "steps": 200, "seed": seed, "dtype": dtype} | options
    return POSTERIORS[name], stk.sample(POSTERIORS[name].field(form), solver, **settings)


SHORT = {"warmup": 200, "steps": 60}
QUICK = [
    ("sblrc", "constrained", torch.float32, 1),
    pytest.param("arma", "log", torch.float64, 1, marks=pytest.mark.slow),
]
ALL = [
    (name, form, dtype, seed)
    for name in POSTERIORS
    for form in ("constrained", "log")
    for dtype in (torch.float32, torch.float64)
    for seed in (1, 2)
]
MOST_GRADIENTS = {"arma": 4000, "gp": 3000, "kilpisjarvi": 8000, "mesquite": 3000, "sblrc": 3000}


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "form", "dtype", "seed"), QUICK)
def test_the_default_reaches_reference_posteriors_soon(name, form, dtype, seed):
    posterior, draws = run(name, form, seed=seed, dtype=dtype, **SHORT)
    assert arrived(posterior, form, draws)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form", "dtype", "seed"), ALL)
def test_the_default_reaches_reference_posteriors(name, form, dtype, seed):
    posterior, draws = run(name, form, seed=seed, dtype=dtype)
    assert arrived(posterior, form, draws)
    assert draws.cost["score"] / 32 < MOST_GRADIENTS[name]


class Near(Approach):
    def begins_far(self, field, state, noise, alive, tunes):
        return torch.zeros_like(alive), 0


class Together(stk.ChEES):
    """The mutant: the first steps of warmup have one step size for all chains and no scales, as they had."""

    @property
    def adaptation(self):
        return replace(super().adaptation, approach=Near(self.metric))


@pytest.mark.slow
def test_with_one_step_size_chains_stay_where_they_began():
    posterior, draws = run("arma", solver=Together(), **SHORT)
    assert not arrived(posterior, "log", draws)
    assert not draws.summary().ok


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kilpisjarvi", "sblrc"])
def test_with_one_step_size_it_does_not_arrive_or_takes_ten_times_as_long(name):
    posterior, draws = run(name, solver=Together())
    assert not arrived(posterior, "log", draws) or draws.cost["score"] / 32 > MOST_GRADIENTS[name]


KERNELS = [
    stk.HMC(),
    stk.HMC(leapfrogs=5, metric="dense"),
    stk.NUTS(),
    stk.PreconditionedLangevin(),
    stk.MCLMC(),
    stk.AdjustedMCLMC(),
]


@pytest.mark.slow
@pytest.mark.parametrize("solver", KERNELS, ids=repr)
def test_every_tuned_kernel_arrives(solver):
    for name in ("sblrc", "arma"):
        posterior, draws = run(name, solver=solver, steps=400)
        x = posterior.user(draws.x.double())
        off = (x - posterior.known("mean")) / posterior.known("sd")
        assert off.mean(1).abs().max() < FAR
        assert (off.mean((0, 1)).abs() < 0.15).all()
        assert ((off.square().mean((0, 1)) - 1).abs() < 0.25).all()


@pytest.mark.slow
def test_what_does_not_mix_is_told():
    """With diagonal scales the intercept and slope of Kilpisjarvi, correlated to -.99999, take hundreds of leapfrog steps."""
    posterior, draws = run("kilpisjarvi", solver=stk.HMC(leapfrogs=10, metric="diagonal"))
    assert not arrived(posterior, "log", draws)
    assert not draws.summary().ok


@pytest.mark.slow
def test_chains_that_follow_arrive_too():
    posterior, draws = run(
        "sblrc", solver=stk.ChEES(), **(SHORT | {"warmup": stk.Warmup(SHORT["warmup"], pilot=16)})
    )
    assert arrived(posterior, "log", draws)


def gaussian(sd, mean):
    return stk.Energy(lambda x: ((x - mean) / sd.to(x)).square().sum(1) / 2, (len(sd),)), mean, sd


def normal_data(centre, spread):
    """Mean and log standard deviation of 50 numbers: under flat priors the mean is Student's t with 49 degrees."""
    y = centre + spread * torch.randn(
        50, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
    )

    def energy(z):
        return ((y.to(z) - z[:, :1]) * (-z[:, 1:]).exp()).square().sum(1) / 2 + 50 * z[:, 1]

    return stk.Energy(energy, (2,)), y.mean()[None], (y.std() * math.sqrt(49 / 47 / 50))[None]


def regression(scales, centre=0.0):
    """Slopes of predictors of these scales, the noise unknown: under flat priors Student's t about least squares."""
    generator = torch.Generator().manual_seed(3)
    design = (
        torch.randn(100, len(scales), dtype=torch.float64, generator=generator)
        * torch.tensor(scales)
        + centre
    )
    slopes = 1 / torch.tensor(scales, dtype=torch.float64)
    y = design @ slopes + torch.randn(100, dtype=torch.float64, generator=generator)

    def energy(z):
        residual = (y.to(z) - z[:, :-1] @ design.to(z).T) * (-z[:, -1:]).exp()
        return residual.square().sum(1) / 2 + 100 * z[:, -1]

    inverse = torch.linalg.inv(design.T @ design)
    best, freedom = inverse @ design.T @ y, 100 - len(scales)
    variance = (y - design @ best).square().sum() / (freedom - 2) * inverse.diagonal()
    return stk.Energy(energy, (len(scales) + 1,)), best, variance.sqrt()


TARGETS = {
    "scales of 1e-4 to 1e4": lambda: gaussian(torch.logspace(-4, 4, 20, dtype=torch.float64), 0.0),
    "far off": lambda: gaussian(torch.ones(4, dtype=torch.float64), 1e5),
    "large data": lambda: normal_data(3e5, 1e5),
    "small data": lambda: normal_data(3e-4, 1e-4),
    "predictors of 1e4 and 1e-4": lambda: regression([1e4, 1.0, 1e-4]),
    "predictors far from 0": lambda: regression([1.0, 1.0, 1.0], 30.0),
}
# A condition of 3 * 30^2 that diagonal scales leave: a quarter turn of the slowest direction takes 80 steps of the fastest.
GRADIENTS = {"predictors far from 0": 40_000}
BRIEF = ["scales of 1e-4 to 1e4"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "dtype", "options"),
    [(name, torch.float32, SHORT) for name in BRIEF]
    + [
        pytest.param(name, dtype, {"steps": 200}, marks=pytest.mark.slow)
        for name in TARGETS
        for dtype in (torch.float32, torch.float64)
    ],
)
def test_the_default_reaches_scales_far_apart(name, dtype, options):
    field, mean, sd = TARGETS[name]()
    draws = stk.sample(field, chains=32, seed=1, dtype=dtype, **options)
    off = (draws.x.double()[..., : len(sd)] - mean) / sd
    assert draws.failures == {}
    assert draws.cost["score"] / 32 < GRADIENTS.get(name, 12_000)
    for value, truth in ((off, 0.0), (off.square(), 1.0)):
        of_chains = value.mean(1)
        assert off.mean(1).abs().max() < FAR
        z = (of_chains.mean(0) - truth) / (of_chains.std(0) / math.sqrt(len(of_chains)))
        assert z.abs().max() < z_limit(2 * len(sd))


@pytest.mark.parametrize(
    "solver",
    [
        stk.HMC(leapfrogs=3),
        stk.ChEES(),
        stk.NUTS(max_depth=4),
        stk.PreconditionedLangevin(),
        stk.MCLMC(),
        stk.AdjustedMCLMC(),
        stk.AdjustedMCLMC(leapfrogs=3),
    ],
    ids=repr,
)
def test_gradients_are_counted(solver):
    calls = []

    def energy(x):
        calls.append(len(x))
        return x.square().sum(1) / 2

    draws = stk.sample(stk.Energy(energy, (2,)), solver, chains=6, steps=5, warmup=40)
    assert sum(calls) == draws.cost["score"]


def test_a_step_takes_as_many_gradients_however_they_are_grouped():
    assert lengths(0, 75) == (1, 225)
    assert {n * leapfrogs for n, leapfrogs in (lengths(step, 75) for step in range(1, 75))} == {8}
    assert [lengths(step, 75)[1] for step in (1, 29, 30, 44, 45, 59, 60, 74)] == [
        1,
        1,
        2,
        2,
        4,
        4,
        8,
        8,
    ]
    assert lengths(2, 3) == (2, 4)


def own_settings(chains):
    """Places and settings of these chains after three steps."""
    field = resolve(
        stk.Energy(
            lambda x: (x.square() * torch.tensor([1.0, 1e6]).to(x)).sum(1) / 2 + x[:, 0].cosh(),
            (2,),
        ),
        {"energy", "score"},
    )
    noise = stk.Noise(5, chains)
    x = noise.normal(0, 0, (2,), torch.float32)
    place, own = Place(x, *field.energy_and_grad(x)), first_settings(x)
    for step in range(3):
        place, own, _ = approach_step(field, place, own, noise, torch.tensor(step), step, 3)
    return place, own


def test_each_chain_goes_its_own_way():
    (whole, sizes), (part, own) = own_settings(range(7)), own_settings(range(2, 5))
    assert torch.equal(whole.x[2:5], part.x)
    for ours, theirs in zip(own, sizes, strict=True):
        assert torch.equal(ours, theirs[2:5])


def test_secants_are_curvatures_and_rounding_only_bounds_them():
    x, dx = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[1e-2, 1e-2, 1e-9]])
    h = torch.tensor([[4.0, 0.0, 1.0]])
    here = Place(x, torch.zeros(1), torch.tensor([[4.0, 7.0, 1.0]]))
    there = Place(x + dx, torch.zeros(1), here.grad + h * dx)
    known = torch.tensor([[0.0, 9.0, 2.0]])
    found = _log_secant(here, there, known)
    assert float(found[0, 0]) == pytest.approx(math.log(4), abs=1e-3)
    assert float(found[0, 1]) == pytest.approx(
        math.log(16 * torch.finfo(torch.float32).eps * 7 / 1e-2), abs=1e-3
    )
    assert float(found[0, 2]) == pytest.approx(
        0.0, abs=1e-6
    )  # as small a step is none: 16 units of both
    assert torch.equal(
        _log_secant(here, there, torch.full_like(x, -50.0))[0, 1:], torch.tensor([-50.0, -50.0])
    )


def test_the_common_settings_is_the_median_of_those_that_are_well():
    own = OwnSettings(
        torch.tensor([0.0, 1.0, 2.0, 9.0]),
        torch.tensor([[0.0, 2.0], [2.0, 4.0], [4.0, 6.0], [99.0, torch.nan]]),
    )
    alive, before = torch.tensor([True, True, True, True]), torch.ones(2)
    size, scale = common_settings(own, alive, "diagonal", before)
    assert size == pytest.approx(math.e)
    torch.testing.assert_close(scale, torch.tensor([math.exp(-1), math.exp(-2)]))
    torch.testing.assert_close(
        common_settings(own, alive, "dense", torch.eye(2))[1], torch.diag(scale)
    )
    assert common_settings(own, alive, "none", before) == (pytest.approx(math.exp(-1)), before)
    assert common_settings(own, ~alive, "diagonal", before) == (1.0, before)


@pytest.mark.parametrize("dense", [False, True])
def test_new_scales_change_the_unit_of_the_slope_and_nothing_else(dense):
    """The slope of the criterion is of the fourth order in scaled lengths: what Adam remembers of it goes with the scales."""
    solver = stk.ChEES(metric="dense" if dense else "diagonal")
    field = resolve(stk.Energy(lambda x: x.square().sum(1) / 2, (2,)), {"energy", "score"})
    noise = stk.Noise(3, 64, dtype=torch.float64)
    x = noise.normal(0, 0, (2,), torch.float64) * torch.tensor(
        [3.0, 0.0]
    )  # one direction, whatever the scales
    state = solver.init(field, x, noise)
    old = torch.eye(2, dtype=torch.float64) if dense else torch.ones(2, dtype=torch.float64)
    new = 0.01 * old
    part = next(part for part in solver.adaptation.parts if isinstance(part, SquaredJumps))
    memory = part.begin(solver, field, state, noise, torch.ones(64, dtype=torch.bool))[1]
    memory = memory._replace(slowest=torch.tensor([9.0, 0.0], dtype=torch.float64))
    end = leapfrog(field, Point(x, state.energy, state.grad), torch.zeros_like(x), 0.2, 3, old)
    slopes = []
    for scale in (old, new):  # the same positions, and the momentum that leads through them
        there = end._replace(momentum=unstretch(scale, end.momentum))
        args = (
            state._replace(scale=scale),
            TimedTrajectory(there, 0.6),
            torch.ones(64, dtype=torch.float64),
            torch.ones(64, dtype=torch.bool),
        )
        slopes.append(float(part.slope(memory, *args)[1]))
    first = memory._replace(
        ascent=torch.tensor([slopes[0], slopes[0] ** 2, 1.0, 0.0], dtype=torch.float64)
    )
    moved = part.rescaled(first, old, new, x.shape[1:])
    assert moved.ascent[0] == pytest.approx(slopes[1], rel=1e-9)
    assert moved.ascent[1] == pytest.approx(slopes[1] ** 2, rel=1e-9)
    torch.testing.assert_close(moved.slowest, memory.slowest * 1e4)


def near(name):
    fields = {
        "funnel": Funnel(3, 3.0),
        "schools": EightSchools(),
        "gaussian": stk.Energy(
            lambda x: (x / torch.logspace(-1, 1, 100).to(x)).square().sum(1) / 2, (100,)
        ),
        "gp": POSTERIORS["gp"].field("log"),
    }
    return fields[name]


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["funnel", "schools"])
def test_where_common_steps_arrive_warmup_is_theirs_alone(name):
    run = {"chains": 24, "steps": 5, "warmup": 30, "seed": 2}
    draws, theirs = (stk.sample(near(name), solver, **run) for solver in (stk.ChEES(), Together()))
    assert torch.equal(draws.x, theirs.x)
    assert draws.cost["score"] == theirs.cost["score"] + 24 * 25


@pytest.mark.parametrize(
    ("field", "share"),
    [(near(name), (0.0, 0.2)) for name in ("funnel", "schools", "gaussian", "gp")]
    + [(target()[0], (0.8, 1.0)) for target in TARGETS.values()]
    + [
        (POSTERIORS[name].field("log"), (0.6, 1.0))
        for name in ("arma", "kilpisjarvi", "mesquite", "sblrc")
    ],
)
def test_which_targets_are_far(field, share):
    bound = resolve(field, {"energy", "score"})
    noise = stk.Noise(4, 64, dtype=torch.float64)
    x = noise.normal(0, 0, field.event_shape, torch.float64)
    far, gradients = begins_far(bound, Place(x, *bound.energy_and_grad(x)), noise, torch.tensor(0))
    assert gradients == 25
    assert share[0] <= far.double().mean() <= share[1]


MIXED = [
    stk.HMC(leapfrogs=3),
    pytest.param(stk.ChEES(), marks=pytest.mark.slow),
    pytest.param(stk.NUTS(max_depth=4), marks=pytest.mark.slow),
]


@pytest.mark.thorough
@pytest.mark.parametrize("solver", MIXED, ids=repr)
def test_followers_that_are_far_and_near_do_not_see_each_other(solver):
    """The pilot is near, of those that follow every other one is far: each has its draws in any batch."""
    calls = []

    def energy(x):
        calls.append(len(x))
        return (x.exp() - x).sum(1)

    init = torch.zeros((12, 2), dtype=torch.float64)
    init[5::2] = 12.0
    run = {
        "init": init,
        "steps": 4,
        "warmup": stk.Warmup(30, pilot=4),
        "seed": 1,
        "dtype": torch.float64,
    }
    whole = stk.sample(stk.Energy(energy, (2,)), solver, **run)
    assert sum(calls) == whole.cost["score"]
    parts = stk.sample(stk.Energy(energy, (2,)), solver, batch=1, **run)
    assert torch.equal(whole.x, parts.x)
    assert whole.x.max() < 8
