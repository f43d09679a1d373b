"""Samplers that alternate, against their laws: in linear-Gaussian problems every step is affine, and so is a run.

What a run makes of its start and of its noise is read off by giving it unit vectors for either, so that mean and
covariance of its draws are numbers without error; the same is written a second time in plain numbers, and in
closed form where there is one.
"""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.core.streams import Stream
from scoretk.fields.posterior import apart
from scoretk.fields.posterior.apart import drawn_near
from scoretk.fields.resolve import resolve
from scoretk.ode.tableaus import Knot
from scoretk.solvers import DAPS, SplitGibbs
from tests.evidence import assert_mean, assert_second_moment

OPERATOR = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.8, -0.4]], dtype=torch.float64)
STD, Y = 0.5, torch.tensor([1.2, -0.7], dtype=torch.float64)
MEAN = torch.tensor([0.4, -0.3, 0.2], dtype=torch.float64)
ROUND, LONG = torch.full((3,), 0.64, dtype=torch.float64), torch.tensor([1.5, 0.4, 0.1]).double()
"""Variances of a prior: the same along all axes, and others."""
DIM, SEEN = 3, 2
RUN = {"dtype": torch.float64, "progress": False}


def prior(variance=LONG, path=None):
    """N(MEAN, diag(variance)) in time, by its own denoiser."""
    path = stk.VP() if path is None else path

    def denoised(x, t):
        alpha, sigma = (c(t.double()).to(x)[:, None] for c in (path.alpha, path.sigma))
        v = variance.to(x)
        mean = MEAN.to(x)
        return mean + alpha * v * (x - alpha * mean) / (alpha**2 * v + sigma**2)

    return stk.Diffusion(denoised, (DIM,), path, predicts="data")


def linear(y=Y):
    return stk.LinearGaussian(OPERATOR, y, STD)


def measured(variance=LONG, path=None):
    return stk.posterior(prior(variance, path), linear())


def posterior_of(variance, noise):
    """Mean and covariance given a measurement with this covariance of its noise."""
    a = OPERATOR.numpy()
    c = np.diag(variance.numpy())
    gain = c @ a.T @ np.linalg.inv(a @ c @ a.T + noise)
    mean = MEAN.numpy() + gain @ (Y.numpy() - a @ MEAN.numpy())
    return mean, c - gain @ a @ c


WHITE = STD**2 * np.eye(SEEN)
"""The covariance of the measurement's noise."""


def widened(rho):
    """That of a measurement that is coupled by rho."""
    return WHITE + rho**2 * (OPERATOR @ OPERATOR.T).numpy()


class Units:
    """For noise: in each row 1 in one entry of one draw, and 0 elsewhere; the first row has none."""

    def __init__(self, rows):
        self.rows, self.next, self.chains = rows, 1, torch.arange(rows)

    def normal(self, step, stream, shape, dtype=None):
        assert stream in (Stream.PROPOSAL, Stream.CORRECTION)
        width = math.prod(shape)
        drawn = torch.zeros(self.rows, width, dtype=torch.float64)
        for i in range(width):
            if self.next < self.rows:
                drawn[self.next, i] = 1.0
            self.next += 1
        return drawn.reshape(-1, *shape)


def affine(solver, field):
    """M, c and Q of a run `x -> M x + c + N(0, Q)`, x as the solver's `init` takes it."""
    bound = resolve(field, solver.needs, timed=True)
    steps = len(solver.milestones(bound))
    rows = 1 + DIM + steps * (2 * DIM + SEEN)
    noise = Units(rows)
    x = torch.zeros(rows, DIM, dtype=torch.float64)
    x[1 : 1 + DIM] = torch.eye(DIM, dtype=torch.float64)
    noise.next = 1 + DIM
    with torch.no_grad():
        state = solver.init(bound, x, noise)
        for _ in range(steps):
            state, info = solver.step(bound, state, noise)
            assert not info
    assert noise.next <= rows
    found = state.x.numpy()
    columns = (found[1:] - found[0]).T
    return columns[:, :DIM], found[0], columns[:, DIM:] @ columns[:, DIM:].T


def stationary(m, c, q):
    """Mean and covariance of the law that `x -> M x + c + N(0, Q)` leaves as it is."""
    eye = np.eye(len(c))
    covariance = np.linalg.solve(np.eye(len(c) ** 2) - np.kron(m, m), q.ravel()).reshape(q.shape)
    return np.linalg.solve(eye - m, c), covariance


def one_sweep(rho, steps, spread=math.inf):
    return SplitGibbs(rho, sweeps=1, steps=steps, first=rho, spread=spread)


def close(found, truth, tolerance=1e-9):
    for a, b in zip(found, truth, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# Draws near a point.


OPERATORS = {
    "matrix": stk.fields.Matrix(OPERATOR),
    "mask": stk.Mask(torch.tensor([True, False, True])),
    "complex": stk.fields.Matrix(OPERATOR * (1 - 0.7j)),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("width", [0.05, 0.4, 30.0])
def test_draws_near_a_point_have_the_closed_form_s_mean_and_covariance(name, width):
    operator = OPERATORS[name]
    image = operator(torch.eye(DIM, dtype=torch.float64))
    a = (torch.cat([image.real, image.imag], 1) if image.is_complex() else image).T
    y = torch.linspace(-1, 1, image.shape[1]).to(image.dtype)
    likelihood = stk.LinearGaussian(operator, y, STD)
    seen = (torch.view_as_real(y).T.flatten() if image.is_complex() else y).double()
    noises = DIM + len(a)
    units = torch.cat([torch.zeros(1, noises), torch.eye(noises)]).double()
    drawn = drawn_near(likelihood, {}, MEAN.expand(len(units), DIM), width, lambda n: units[:, :n])
    covariance = torch.linalg.inv(torch.eye(DIM).double() / width**2 + a.T @ a / STD**2)
    mean = covariance @ (MEAN / width**2 + a.T @ seen / STD**2)
    columns = (drawn[1:] - drawn[0]).T
    close((drawn[0], columns @ columns.T), (mean, covariance), 1e-8)


def test_a_row_whose_system_is_not_solved_has_no_draw(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    y = torch.zeros(3, 40, dtype=torch.float64)
    y[1] = torch.randn(40, generator=generator, dtype=torch.float64)
    likelihood = stk.LinearGaussian(stk.fields.Matrix(matrix), "y", 0.01)
    centre = torch.zeros(3, 40, dtype=torch.float64)

    def drawn():
        return drawn_near(likelihood, {"y": y}, centre, 1.0, lambda n: centre.new_zeros(3, n))

    assert bool(drawn().isfinite().all())
    monkeypatch.setattr(apart, "ITERATIONS", 3)
    assert drawn().isfinite().all(1).tolist() == [True, False, True]


# Split Gibbs.


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("rho", [0.1, 0.6])
def test_split_gibbs_leaves_the_posterior_of_a_noise_that_is_wider_by_the_coupling(steps, rho):
    """With a prior for which the reverse diffusion is exact, at any number of its steps."""
    found = stationary(*affine(one_sweep(rho, steps, spread=0.8), measured(ROUND)))
    close(found, posterior_of(ROUND, widened(rho)))
    right = posterior_of(ROUND, WHITE)[1]
    assert abs(found[1] - right).max() > 0.01 * rho**2


def sweep_by_hand(rho, steps, spread, variance):
    """M, c and Q of a sweep in plain numbers: the normal of z given x, then one step after another."""
    a, y = OPERATOR.numpy(), Y.numpy()
    precision = np.eye(DIM) / rho**2 + a.T @ a / STD**2
    q = np.linalg.inv(precision)
    m, c = q / rho**2, q @ a.T @ y / STD**2
    v, mean = variance.numpy(), MEAN.numpy()
    for i in range(steps):
        s, later = rho * (1 - i / steps), rho * (1 - (i + 1) / steps)
        kept = later**2 / s**2
        gain = v / (v + s**2)
        j = np.diag(kept + (1 - kept) * gain)
        left = s**2 if spread == math.inf else s**2 * spread**2 / (s**2 + spread**2)
        noise = later**2 * (1 - kept) + (1 - kept) ** 2 * left
        m, c, q = j @ m, j @ c + (1 - kept) * (1 - gain) * mean, j @ q @ j.T + noise * np.eye(DIM)
    return m, c, q


PATHS = {
    "vp": stk.VP(),
    "linear": stk.Linear(),
    "cosine": stk.Cosine(),
    "edm": stk.EDM(),
    "ve": stk.VE(),
}


@pytest.mark.parametrize("path", PATHS)
def test_a_sweep_is_the_same_in_plain_numbers_on_every_path(path):
    for spread in (math.inf, 0.7):
        found = affine(one_sweep(0.5, 3, spread), measured(LONG, PATHS[path]))
        close(found, sweep_by_hand(0.5, 3, spread, LONG), 1e-7)


def test_sweeps_follow_each_other_with_couplings_that_fall():
    solver = SplitGibbs(0.2, sweeps=4, steps=2, first=1.6, held=0.5)
    bound = resolve(measured(), solver.needs, timed=True)
    assert solver.couplings(bound) == pytest.approx([1.6, 1.6 / 8**0.5, 0.2, 0.2])
    m, c, q = np.eye(DIM), np.zeros(DIM), np.zeros((DIM, DIM))
    for rho in solver.couplings(bound):
        j, more, noise = sweep_by_hand(rho, 2, math.inf, LONG)
        m, c, q = j @ m, j @ c + more, j @ q @ j.T + noise
    close(affine(solver, measured()), (m, c, q), 1e-7)


def test_the_coupling_follows_the_measurement_s_noise():
    for field, first, last in (
        (measured(), 10.0, STD / 2),
        (measured(), 0.15, 0.15),
        (prior(), 10.0, 0.1),
        (stk.posterior(prior(), stk.LinearGaussian(OPERATOR, Y, 1e-3)), 10.0, 5e-4),
    ):
        bound = resolve(field, {"denoise"}, timed=True)
        assert SplitGibbs(first=first).couplings(bound)[-1] == pytest.approx(last)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_bias_goes_with_the_square_of_the_coupling(steps):
    """Of the coupling, and of the reverse diffusion at any number of steps, for a prior that it is not exact for."""
    mean, covariance = posterior_of(LONG, WHITE)
    apart_by = []
    for rho in (0.08, 0.04, 0.02):
        found = stationary(*affine(one_sweep(rho, steps), measured()))
        apart_by.append(abs(found[0] - mean).max() + abs(found[1] - covariance).max())
    assert apart_by[-1] < 0.005
    assert all(3.5 < before / after < 4.5 for before, after in pairwise(apart_by))


def test_ancestral_noise_leaves_a_law_that_is_too_narrow_at_any_coupling(monkeypatch):
    """Why the noise of a step is not DDPM's smaller one."""

    def ancestral(self, now: Knot, after: Knot):
        q2 = (after.sigma * now.alpha / (now.sigma * after.alpha)) ** 2
        noise = after.sigma * math.sqrt(1 - q2)
        return after.alpha / now.alpha * q2, after.alpha * (1 - q2), noise

    monkeypatch.setattr(SplitGibbs, "_weights", ancestral)
    for rho in (0.08, 0.02):
        _, covariance = stationary(*affine(one_sweep(rho, 5), measured()))
        assert np.trace(covariance) < 0.85 * np.trace(posterior_of(LONG, WHITE)[1])


def test_a_sweep_of_one_step_without_measurement_is_langevin():
    """x + rho^2 score + sqrt(2) rho z, to the order of rho^3: an eighth is left of the rest at half of rho."""
    field, rests = prior(), []
    for rho in (0.02, 0.01):
        m, c, q = affine(one_sweep(rho, 1), field)
        slope = -np.diag(1 / LONG.numpy())
        rests.append(
            abs(m - np.eye(DIM) - rho**2 * slope).max()
            + abs(c + rho**2 * slope @ MEAN.numpy()).max()
        )
        np.testing.assert_allclose(q, 2 * rho**2 * np.eye(DIM), atol=25 * rho**4)
    assert rests[1] < rests[0] / 8


@pytest.mark.thorough
def test_draws_of_split_gibbs_have_that_law():
    rho = 0.4
    solver = SplitGibbs(rho, sweeps=24, steps=2, first=3.0, held=0.5, spread=0.8)
    draws = stk.sample(measured(ROUND), solver, chains=20_000, seed=3, **RUN)
    mean, covariance = posterior_of(ROUND, widened(rho))
    assert draws.x.shape == (20_000, 1, DIM)
    assert_mean(draws.final, mean)
    assert_second_moment(draws.final, mean, np.diag(covariance).copy())
    exact = posterior_of(ROUND, WHITE)[1]
    with pytest.raises(AssertionError):
        assert_second_moment(draws.final, mean, np.diag(exact).copy())
    assert draws.cost["denoise"] == 20_000 * 24 * 2


def test_every_sweep_s_data_are_kept_on_request():
    solver = SplitGibbs(0.4, sweeps=5, steps=3, held=1.0)
    kept = stk.sample(measured(), solver, chains=4, keep="all", **RUN)
    assert kept.x.shape == (4, 5, DIM)
    shorter = stk.sample(measured(), replace(solver, sweeps=2), chains=4, **RUN)
    torch.testing.assert_close(kept.x[:, 1], shorter.final)


# Decoupled annealing.


def test_daps_is_exact_for_a_prior_of_the_spread_that_it_is_told():
    """In one step the flow leads to the mean given x_t, and the law of each level is right whatever the grid is."""
    truth = posterior_of(ROUND, WHITE)
    for solver in (DAPS(3, 1, spread=0.8), DAPS(12, 1, spread=0.8)):
        m, c, q = affine(solver, measured(ROUND))
        assert (
            abs(m).max() < 1e-3
        )  # what is left of the start, whose level is not that of pure noise
        close((c, q), truth, 1e-3)
    wrong = affine(DAPS(12, 1, spread=math.inf), measured(ROUND))
    assert abs(wrong[2] - truth[1]).max() > 0.02


def daps_by_hand(solver, path, variance):
    """M, c and Q in plain numbers, level by level, for x in units of data."""
    a, y, v, mean = OPERATOR.numpy(), Y.numpy(), variance.numpy(), MEAN.numpy()
    times = solver.times(resolve(prior(variance, path), solver.needs, timed=True))
    levels = [*(path.sigma(times) / path.alpha(times)).tolist()[:-1], 0.0]
    m, c, q = np.eye(DIM), np.zeros(DIM), np.zeros((DIM, DIM))
    for level, following in pairwise(levels):
        for i in range(solver.steps):
            s, later = (level * (1 - k / solver.steps) ** 2 for k in (i, i + 1))
            kept, gain = later / s, v / (v + s**2)
            j = np.diag(kept + (1 - kept) * gain)
            m, c, q = j @ m, j @ c + (1 - kept) * (1 - gain) * mean, j @ q @ j.T
        r2 = level**2 / (1 + level**2 / solver.spread**2)
        covariance = np.linalg.inv(np.eye(DIM) / r2 + a.T @ a / STD**2)
        j = covariance / r2
        m, c = j @ m, j @ c + covariance @ a.T @ y / STD**2
        q = j @ q @ j.T + covariance + following**2 * np.eye(DIM)
    return m / float(path.alpha(times[0])), c, q


@pytest.mark.parametrize("path", PATHS)
def test_daps_is_the_same_in_plain_numbers_on_every_path(path):
    for solver in (DAPS(4, 3), DAPS(4, 2, grid="cosine", spread=0.7)):
        found = affine(solver, measured(LONG, PATHS[path]))
        close(found, daps_by_hand(solver, PATHS[path], LONG), 1e-7)


def test_daps_without_measurement_is_too_wide():
    """By about twice the variance, as its docstring says."""
    with pytest.warns(UserWarning, match="DAPS: nothing is measured in .* twice the variance"):
        _, _, q = affine(DAPS(20, 5), prior(ROUND))
    assert 1.8 < q[0, 0] / float(ROUND[0]) < 2.2


@pytest.mark.filterwarnings("error:DAPS")
@pytest.mark.parametrize(
    ("solver", "field"),
    [
        (DAPS(3, 1, spread=0.8), prior),
        (DAPS(3, 2), measured),
        (SplitGibbs(0.2, sweeps=3, steps=2), prior),
    ],
)
def test_nothing_is_said_where_draws_are_of_the_law(solver, field):
    affine(solver, field(ROUND))


def test_draws_of_daps_have_that_law():
    draws = stk.sample(
        measured(ROUND), DAPS(8, 1, spread=0.8), chains=20_000, seed=4, keep="all", **RUN
    )
    mean, covariance = posterior_of(ROUND, WHITE)
    assert draws.x.shape == (20_000, 8, DIM)
    assert_mean(draws.final, mean)
    assert_second_moment(draws.final, mean, np.diag(covariance).copy())
    assert draws.cost["denoise"] == 20_000 * 8


# Either.


SOLVERS = (SplitGibbs(0.2, sweeps=3, steps=2), DAPS(3, 2))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_chains_have_measurements_of_their_own(solver):
    """A chain's draws are the same beside others, and follow from its own row."""
    field = stk.posterior(prior(), linear("y"))
    y = torch.linspace(-3, 3, 12, dtype=torch.float64).reshape(6, SEEN)
    all_of_them = stk.sample(field, solver, chains=6, cond={"y": y}, **RUN).final
    some = stk.sample(field, solver, chains=range(2, 5), cond={"y": y[2:5]}, **RUN).final
    torch.testing.assert_close(some, all_of_them[2:5], rtol=1e-12, atol=1e-12)
    alike = stk.sample(measured(), solver, chains=6, **RUN).final
    same = stk.sample(field, solver, chains=6, cond={"y": Y.expand(6, SEEN)}, **RUN).final
    torch.testing.assert_close(alike, same)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_the_prior_has_conditions_of_its_own(solver):
    """Labels reach the prior and measurements the likelihood."""

    def denoised(x, t, shift):
        return shift[:, None] + 0 * x

    field = stk.posterior(stk.Diffusion(denoised, (DIM,), predicts="data"), linear("y"))
    cond = {
        "y": Y.expand(4, SEEN),
        "shift": torch.tensor([0.0, 5.0, 0.0, 5.0], dtype=torch.float64),
    }
    final = stk.sample(field, solver, chains=4, cond=cond, **RUN).final
    assert bool((final[1] > final[0]).all())


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_velocities_of_flow_matching_serve(solver):
    def velocity(x, t):
        """Of N(0, I) on the linear path."""
        s = 1 - t[:, None]
        return (t[:, None] - s) * x / (t[:, None] ** 2 + s**2)

    flow = stk.Velocity(velocity, (DIM,))
    data = stk.Diffusion(lambda x, t: t[:, None] * x / (t[:, None] ** 2 + (1 - t[:, None]) ** 2),
                         (DIM,), stk.Linear(), predicts="data")  # fmt: skip
    a, b = (stk.sample(stk.posterior(f, linear()), solver, chains=8, **RUN) for f in (flow, data))
    assert bool(a.ok.all())
    torch.testing.assert_close(a.final, b.final)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_what_is_not_linear_is_refused_with_a_way_out(solver):
    field = stk.posterior(prior(), lambda x: -x.square().sum(1), "dps")
    with pytest.raises(stk.InvalidArgument, match=r"LinearGaussian.*TwistedSMC"):
        stk.sample(field, solver, chains=2, **RUN)
    with pytest.raises(stk.MissingCapability, match="Powers and products"):
        stk.sample(stk.posterior(stk.tempered(prior(), 2.0), linear()), solver, chains=2, **RUN)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_a_measurement_that_is_missing_fails_its_own_chain(solver):
    y = Y.repeat(3, 1)
    y[1, 0] = math.nan
    draws = stk.sample(stk.posterior(prior(), linear("y")), solver, chains=3, cond={"y": y}, **RUN)
    assert [stk.Status(int(s)).name for s in draws.status] == ["OK", "NONFINITE", "OK"]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SplitGibbs(0.0), "coupling"),
        (lambda: SplitGibbs(2.0, first=1.0), "at least the coupling"),
        (lambda: SplitGibbs(held=0.0), r"a number in \(0, 1"),
        (lambda: SplitGibbs(spread=0.0), "spread"),
        (lambda: SplitGibbs(steps=0), "steps"),
        (lambda: DAPS(0), "levels"),
        (lambda: DAPS(steps=0), "steps"),
        (lambda: DAPS(grid=(0.5, 0.2)), "grid"),
        (lambda: DAPS(spread=-1.0), "spread"),
    ],
)
def test_settings_out_of_range_are_refused(make, match):
    with pytest.raises(stk.InvalidArgument, match=match):
        make()


def test_couplings_are_levels_of_the_path():
    """VP begins near 150, EDM ends at .002."""
    with pytest.raises(stk.InvalidArgument, match=r"the level at which VP.* begins"):
        stk.sample(measured(), SplitGibbs(first=200.0), chains=2, **RUN)
    with pytest.raises(stk.InvalidArgument, match=r"the level at which EDM.* ends"):
        stk.sample(measured(LONG, stk.EDM()), SplitGibbs(0.002), chains=2, **RUN)


def test_a_run_starts_as_noise_of_its_first_level():
    field = resolve(measured(LONG, stk.Linear()), {"denoise"}, timed=True)
    x = torch.ones(1, DIM, dtype=torch.float64)
    for solver, factor in (
        (SplitGibbs(first=7.0), 7.0),
        (SplitGibbs(0.5, sweeps=4, held=1.0, first=7.0), 0.5),
        (DAPS(grid=(0.0, 0.4, 1.0)), 0.8),
        (DAPS(grid=(0.25, 1.0)), 0.75),
    ):
        assert solver.start(field, x, None).tolist()[0] == pytest.approx([factor] * DIM)
