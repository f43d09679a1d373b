"""A run from N(0, sigma(0)^2 I) warns where that is not where the model's path begins."""

import math
import warnings

import pytest
import torch

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.errors import Status
from scoretk.fields.resolve import resolve
from scoretk.run import batches, begun
from scoretk.solvers.base import traits


def of_gaussian(path, mean, std):
    """The field in time of data N(mean, std^2), exact, in two dimensions."""

    def denoise(x, t):
        a, s = (f(t.double())[:, None] for f in (path.alpha, path.sigma))
        gain = a * std**2 / (a**2 * std**2 + s**2)
        return (mean + gain * (x.double() - a * mean)).to(x)

    return stk.Diffusion(denoise, (2,), path, "data")


FAR = {
    "vp, far": (stk.VP(), 3e4, 1e4),
    "edm, far": (stk.EDM(sigma_max=80), 3e4, 1.0),
    "edm, wide": (stk.EDM(sigma_max=80), 0.0, 500.0),
    "edm, twice as wide": (stk.EDM(sigma_max=80), 0.0, 200.0),
    "ve, far": (stk.VE(0.01, 10.0), 100.0, 1.0),
}
NEAR = {
    "vp": (stk.VP(), 1.0, 2.0),
    "vp, pixels": (stk.VP(), 30.0, 20.0),
    "edm": (stk.EDM(sigma_max=80), 3.0, 20.0),
    "linear, far": (stk.Linear(), 3e4, 1e4),
    "cosine, far": (stk.Cosine(), 3e3, 1e3),
}
SOLVERS = [stk.ProbabilityFlow("heun", steps=20), stk.ReverseSDE(steps=40)]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("name", FAR)
def test_noise_that_does_not_cover_the_data_is_told(name, solver):
    path, mean, std = FAR[name]
    with pytest.warns(UserWarning, match="not where the model's path begins"):
        draws = stk.sample(of_gaussian(path, mean, std), solver, chains=64)
    off = (draws.final.mean() - mean).abs() / std, (draws.final.std() / std - 1).abs()
    assert max(off) > 0.5  # it was another law


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("name", NEAR)
def test_no_alarm_where_it_covers_them(name, solver):
    stk.sample(of_gaussian(*NEAR[name]), solver, chains=64)


LATER = [
    lambda g: stk.ProbabilityFlow("heun", grid=g),
    lambda g: stk.ProbabilityFlow("dopri5", grid=g),
    lambda g: stk.ReverseSDE(grid=g),
    lambda g: stk.ReverseSDE("ancestral", grid=g),
    lambda g: stk.TwistedSMC(grid=g),
    lambda g: stk.DAPS(grid=g),
]
"""Solvers with a grid of times, of which the first may be later than 0."""
PATHS = [stk.VP(), stk.Linear(), stk.Cosine(), stk.EDM(), stk.VE(0.01, 50.0), stk.SubVP()]


def beginning_at(path, level):
    """Times from that of a level to 1."""
    first = float(path.t(-2 * math.log(level)))
    return (first, *(first + (1 - first) * i / 12 for i in range(1, 12)), 1.0)


@pytest.mark.parametrize("solver", LATER, ids=lambda make: repr(make((0.0, 1.0))))
def test_a_grid_that_begins_later_begins_with_the_noise_of_its_time(solver):
    """On EDM the flow began at level 5 with the noise of level 80: draws had 250 times the variance, without a word."""
    for path in PATHS:
        field = resolve(of_gaussian(path, 0.0, 1.0), {"denoise"}, timed=True)
        made = solver(beginning_at(path, 5.0))
        x = torch.ones(64, 2, dtype=torch.float64)
        first = traits(made).start(field, x, Noise(0, 64)) * float(path.sigma(0.0))
        expected = torch.full_like(x, float(path.sigma(made.times(field)[0])))
        torch.testing.assert_close(first, expected)


def test_without_a_path_there_is_no_level_to_begin_at():
    law = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 3.0), 1)
    bound = resolve(stk.Velocity(lambda x, t: -x, (2,), base=law), {"velocity"}, timed=True)
    x = torch.ones(64, 2)
    assert torch.equal(
        stk.ProbabilityFlow("heun", grid=(0.5, 1.0)).start(bound, x, Noise(0, 64)), x
    )


@pytest.mark.parametrize("solver", LATER, ids=lambda make: repr(make((0.0, 1.0))))
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_grid_that_begins_where_data_are_in_x_is_told(solver, path):
    field = of_gaussian(path, 0.0, 1.0)
    with pytest.warns(UserWarning, match=r"where the grid begins, data are in x: begin at 0, or"):
        stk.sample(field, solver(beginning_at(path, 0.8)), chains=512)
    stk.sample(field, solver(beginning_at(path, 4.0)), chains=512)
    x = of_gaussian(path, 0.0, 1.0).base.draw(512, Noise(3, 512))
    t = float(beginning_at(path, 0.8)[0])
    given = x / float(path.sigma(0.0)) * math.hypot(float(path.alpha(t)), float(path.sigma(t)))
    stk.sample(field, solver(beginning_at(path, 0.8)), init=given)


def test_none_of_a_start_that_is_given_or_drawn_of_the_path():
    path, mean, std = FAR["edm, far"]
    field = of_gaussian(path, mean, std)
    x = mean + 80 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    draws = stk.sample(field, SOLVERS[0], init=x)
    assert (draws.final.mean() - mean).abs() < 1


def test_none_where_chains_begin_at_another_level():
    """The published ladder begins at 1, where chains are, though the path goes on to 2."""
    field = of_gaussian(stk.VE(0.01, 2.0), 0.0, 1.0)
    draws = stk.sample(field, stk.AnnealedLangevin.ncsn(), chains=128)
    assert abs(float(draws.final.std()) - 1) < 0.3


def test_without_the_look_it_is_another_law_without_a_word(monkeypatch):
    """The mutant."""
    monkeypatch.setattr(batches, "warn_of_base", lambda *run: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws = stk.sample(of_gaussian(*FAR["vp, far"]), SOLVERS[0], chains=64)
    assert draws.ok.all()


def test_a_model_that_takes_no_few_rows_is_run_unasked():
    asked = []

    def denoise(x, t):
        asked.append(len(x))
        if len(x) != 256:
            raise RuntimeError("made for 256 rows")
        return x / 2

    field = stk.Diffusion(denoise, (2,), stk.VP(), "data")
    assert stk.sample(field, SOLVERS[0], chains=256).ok.all()
    assert set(asked) > {256}


def of_sigma(x, sigma):
    """The noise in draws of N(0, I), as a network of log sigma knows it."""
    level = sigma[:, None]
    return x * level / (1 + level**2) + 0 * level.log()


@pytest.mark.parametrize("around", [lambda f: f, lambda f: stk.guided(f, 2.0, f)])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_network_of_sigma_that_is_given_our_time_is_told_of_it(solver, around):
    field = around(stk.Diffusion(of_sigma, (2,), stk.EDM(), predicts="epsilon"))
    with pytest.warns(UserWarning, match=r"t in \[0, 1\].*from_sigmas.*from_timesteps"):
        draws = stk.sample(field, solver, chains=8)
    assert draws.failures == {"NONFINITE": 8}
    right = stk.from_sigmas(of_sigma, (2,), predicts="epsilon")
    assert stk.sample(right, solver, chains=8).ok.all()


@pytest.mark.parametrize(
    "net",
    [
        lambda x, t: torch.where(x[:, :1] > 0, torch.nan, x),  # some chains are well
        lambda x, t: torch.where(t[:, None] > 0.5, torch.nan, x),  # later on
        lambda x, t: torch.full_like(x, 3e38) * (1 + t[:, None]),  # the model does answer at 0
    ],
)
def test_other_failures_are_not_called_one_of_time(net):
    draws = stk.sample(stk.Velocity(net, (2,)), stk.ProbabilityFlow("heun", steps=8), chains=32)
    assert not draws.ok.all()


@pytest.mark.parametrize(
    ("status", "failed_at", "told"),
    [
        ((Status.NONFINITE, Status.NONFINITE), (0, 0), True),
        ((Status.NONFINITE, Status.NONFINITE), (0, 1), False),
        ((Status.NONFINITE, Status.OK), (0, -1), False),
        ((Status.NONFINITE, Status.DIVERGED), (0, 0), False),
    ],
)
def test_of_time_is_told_where_all_chains_failed_in_the_first_interval(status, failed_at, told):
    field = resolve(stk.Diffusion(of_sigma, (2,), stk.EDM(), predicts="epsilon"), {"denoise"})
    codes = torch.tensor([int(one) for one in status])
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        begun.warn_of_time(field, torch.ones(2, 2), codes, torch.tensor(failed_at))
    assert [("t = 0" in str(one.message)) for one in met] == [True] * told
