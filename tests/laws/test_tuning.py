"""What warmup learns, each part against its recursion in plain numbers."""

import math
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.fields.resolve import resolve
from scoretk.solvers import EXAMPLES
from scoretk.solvers.parts.leapfrog import Point, Trajectory
from scoretk.solvers.warmup import approach, halving, ladder, length, scales, step_size
from scoretk.solvers.warmup.adaptation import Adaptation, Approach, WarmupStep
from scoretk.solvers.warmup.learning import Change, Lesson, Trial


def lesson(step=0, warmup=100, usual=None, before=None, seen=None, alive=None, **info):
    accept = info.pop("accept", torch.ones(1))
    alive = torch.ones(len(accept), dtype=torch.bool) if alive is None else alive
    usual = torch.ones(len(accept), dtype=torch.bool) if usual is None else usual
    trial = Trial(info.pop("state", None), info, accept, seen)
    return Lesson(before, trial, alive, usual, step, warmup)


class State(SimpleNamespace):
    def _replace(self, **new):
        return State(**{**vars(self), **new})


def averaged(rates, target, start):
    """Hoffman and Gelman's dual averaging, gamma .2, delay 10, kappa 3/4: the steps and, last, their average."""
    mu = average = math.log(start)
    error, sizes = 0.0, []
    for n, rate in enumerate(rates, 1):
        error = (1 - 1 / (n + 10)) * error + (target - rate) / (n + 10)
        log_step = mu - math.sqrt(n) / 0.2 * error
        average = n**-0.75 * log_step + (1 - n**-0.75) * average
        sizes.append(math.exp(average if n == len(rates) else log_step))
    return sizes


def test_the_step_size_kept_is_the_dual_average():
    rng = np.random.default_rng(0)
    rates, target, start = rng.uniform(0.2, 1.0, size=30), 0.8, 0.3
    part = step_size.DualAveraging(target)
    state = State(step_size=torch.tensor(start, dtype=torch.float64))
    state, memory = part.changed(state, None, Change())
    found = []
    for step, rate in enumerate(rates):
        accept = torch.tensor([rate, 0.0, rate], dtype=torch.float64)
        usual = torch.tensor([True, False, True])
        now = lesson(step, len(rates), usual, accept=accept)
        state, memory, change = part.learn(state, memory, now)
        assert change is None
        found.append(float(state.step_size))
    expected = averaged(rates, target, start)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert abs(found[-1] / averaged([*rates, 0.5], target, start)[-2] - 1) > 0.05, "the last step"


def test_a_run_keeps_the_average_of_its_steps():
    """The acceptance of every warmup step is seen, and the tuned step size follows from it."""
    solver, rates = stk.MALA(), []
    field = stk.Energy(lambda x: (x**2).sum(1) / 2, (2,))

    class Told(step_size.DualAveraging):
        def learn(self, state, memory, now):
            rates.append((*now.read(self, memory)[1], float(memory.averaging[0])))
            return super().learn(state, memory, now)

    part = Told(0.574)
    adaptation = Adaptation((part,))
    noise = Noise(0, 16, dtype=torch.float64)
    bound = resolve(field, solver.needs, timed=False)
    state = solver.init(bound, noise.normal(0, Stream.START, (2,)), noise)
    alive = torch.ones(16, dtype=torch.bool)
    state, learned, _ = adaptation.begin(solver, bound, state, noise, alive)
    start = math.exp(float(learned.parts[0].averaging[0]))
    for step in range(25):
        at = WarmupStep(solver, bound, noise, alive, step, 25)
        state, _, learned = adaptation.update(at, state, learned)
    expected = averaged([r for r, _ in rates], 0.574, start)
    assert float(state.step_size) == pytest.approx(expected[-1], rel=1e-12)


def test_pooled_acceptances_are_means_of_the_usual_chains():
    accept = torch.tensor([0.9, 0.002, 0.5, 0.8], dtype=torch.float64)
    usual = torch.tensor([True, True, True, False])
    diverging = torch.tensor([False, False, True, False])
    assert float(step_size.pooled_acceptance(accept, usual)) == pytest.approx(
        (0.9 + 0.002 + 0.5) / 3
    )
    harmonic = 2 / 3 / np.mean([1 / 0.9, 1 / 0.01])
    assert float(step_size.harmonic_acceptance(accept, usual, diverging)) == pytest.approx(harmonic)
    other = step_size.harmonic_acceptance(accept, usual, ~diverging)
    assert float(other) == pytest.approx(1 / 3 * 0.5)


def test_the_first_step_size_is_the_first_on_the_other_side_of_its_aim():
    sizes = []

    def accept(size):
        sizes.append(size)
        return math.exp(-size)

    assert step_size.first_step_size(accept, 0.3) == pytest.approx(1.6)
    assert sizes == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])
    sizes.clear()
    assert step_size.first_step_size(accept, 0.96) == pytest.approx(0.025)
    assert sizes == pytest.approx([0.1, 0.05, 0.025])


def test_the_energy_error_sets_the_step_by_its_sixth_root():
    d, variance, size = 4, 5e-4, 0.7
    part = step_size.EnergyError(variance)
    energy = torch.tensor([3.0, 5.0, 9.0], dtype=torch.float32)
    error = torch.tensor([0.05, 0.2, 0.3])
    state = State(
        step_size=torch.tensor(size, dtype=torch.float64), x=torch.zeros(3, d), energy=energy
    )
    memory = step_size.Counting(torch.tensor(0.0, dtype=torch.float64))
    accept = torch.tensor([1.0, 1.0, 0.0])
    for n in range(1, 4):
        state, memory, _ = part.learn(
            state, memory, lesson(accept=accept, state=state, energy_error=error)
        )
        rounding = (np.spacing(np.array([3.0, 5.0, 9.0], np.float32)).astype(float)) ** 2 / 6
        rounding = rounding / (variance * d)
        xi = np.array([0.05, 0.2, np.inf], np.float32).astype(float) ** 2 / (variance * d)
        pooled = (np.minimum(xi, 64 + rounding) - rounding).mean()
        size *= (1 + max(2 / (n + 1), 1 / 75) * (pooled - 1)) ** (-1 / 6)
        assert float(state.step_size) == pytest.approx(size, rel=1e-9)
    rounded = torch.tensor([4.0, 4.0], dtype=torch.float64)
    pooled = step_size.pooled_error(0 * rounded, rounded, rounded > 0)
    assert [float(mean) for mean in pooled] == [-4.0, 4.0]
    assert step_size.resized(9, -4.0, 4.0, 2.0) == pytest.approx(2.0), "all of it rounding"
    assert step_size.resized(9, 0.0, 0.0, 2.0) > 2.0


def trajectories(n, d, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(n, d)), rng.normal(size=(n, d))


def test_the_slope_of_chees_is_weighted_by_acceptance():
    """In the direction v: `t G F'(b) p / 2 - G^2 / 4`, G = F(b) - F(a), a and b about the means; weighted by what is accepted."""
    n, d, time = 7, 3, 0.9
    x, ahead, p = trajectories(n, d)
    scale = np.array([0.5, 1.0, 2.0])
    accept = np.array([0.9, 0.2, 1.0, 0.4, 0.05, 0.7, 0.6])
    usual = np.array([True] * 6 + [False])
    slowest = np.array([1.0, -0.5, 0.3])
    before = State(x=torch.tensor(x), scale=torch.tensor(scale))
    end = Trajectory(Point(torch.tensor(ahead), None, None), torch.tensor(p), None)
    memory = length.Ascent(torch.zeros(4, dtype=torch.float64), torch.tensor(slowest))
    part = length.SquaredJumps(0.025, 1000)
    after, slope = part.slope(
        memory, before, length.TimedTrajectory(end, time), torch.tensor(accept), torch.tensor(usual)
    )
    v = slowest / np.linalg.norm(slowest)
    rows, w = x[usual] / scale, accept[usual]
    there = ahead[usual] / scale
    rows, there = rows - rows.mean(0), there - there.mean(0)
    a, b = rows @ v, there @ v
    variance = (a**2).mean()
    gain = b**2 / (1 + b**2 / (5 * variance)) - a**2 / (1 + a**2 / (5 * variance))
    rise = time * gain * b / (1 + b**2 / (5 * variance)) ** 2 * (p[usual] @ v) - gain**2 / 4
    slope = float(slope)
    assert slope == pytest.approx((w * rise).sum() / w.sum(), rel=1e-12)
    assert abs(slope / rise.mean() - 1) > 0.05, "as if all counted alike"
    expected = 0.9 * slowest + 0.1 * (rows.T @ a / 6)
    np.testing.assert_allclose(after.slowest.numpy(), expected, rtol=1e-12)


def test_the_slope_of_chees_is_that_of_its_criterion():
    """A quarter of the mean square change of the projection's bounded square, per time: differentiated by hand it is the rise."""
    n, d = 400, 2
    x, _, p = trajectories(n, d, 3)
    v = np.array([0.6, 0.8])

    def criterion(t):
        """Harmonic trajectories: `x cos t + p sin t`, whose velocity is the momentum at the end."""
        there = x * math.cos(t) + p * math.sin(t)
        a, b = (x - x.mean(0)) @ v, (there - there.mean(0)) @ v
        variance = (a**2).mean()
        gain = b**2 / (1 + b**2 / (5 * variance)) - a**2 / (1 + a**2 / (5 * variance))
        return (gain**2 / 4).mean() / t

    t, h = 0.8, 1e-5
    there, momentum = x * math.cos(t) + p * math.sin(t), p * math.cos(t) - x * math.sin(t)
    momentum = momentum - momentum.mean(0)
    before = State(x=torch.tensor(x), scale=torch.ones(d, dtype=torch.float64))
    end = Trajectory(Point(torch.tensor(there), None, None), torch.tensor(momentum), None)
    memory = length.Ascent(torch.zeros(4, dtype=torch.float64), torch.tensor(v))
    ones = torch.ones(n, dtype=torch.float64)
    part = length.SquaredJumps(0.025, 1000)
    slope = part.slope(memory, before, length.TimedTrajectory(end, t), ones, ones.bool())[1]
    found = (criterion(t + h) - criterion(t - h)) / (2 * h)
    assert float(slope) == pytest.approx(found * t**2, rel=1e-6)


def test_the_length_ascends_by_adam_and_its_average_is_kept():
    slopes, rate, size, most = [0.7, -0.2, 1.4, 0.0, 0.5, math.nan, -2.0], 0.1, 0.3, 8
    part = length.SquaredJumps(rate, most)
    start = math.log(size)
    memory = length.Ascent(torch.tensor([0, 0, 0, start], dtype=torch.float64), torch.ones(1))
    long, first, second, n, average = size, 0.0, 0.0, 0, start
    for i, slope in enumerate(slopes):
        last = i == len(slopes) - 1
        memory, found = part._ascend(memory, slope, size, long, last)
        if slope and not math.isnan(slope):
            n += 1
            first, second = 0.9 * first + 0.1 * slope, 0.95 * second + 0.05 * slope**2
            rise = first / (1 - 0.9**n) / math.sqrt(second / (1 - 0.95**n))
            log = math.log(long) + rate * rise
            log = min(max(log, math.log(size / 2)), math.log(size * most / 2))
            weight = (n + 1) ** -0.5
            average = (1 - weight) * average + weight * log
            long = math.exp(log)
        stretched = 1.44 * (math.exp(average) + size / 2) - size / 2
        assert found == pytest.approx(stretched if last else long, rel=1e-9)


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_trajectories_are_of_one_step_at_least_and_of_the_most_at_most(slope):
    """The mean length goes from half a step to half of the longest trajectory, as the times are up to twice the mean."""
    size, most, long = 0.3, 9, 0.7
    part = length.SquaredJumps(0.5, most)
    start = torch.tensor([0, 0, 0, math.log(long)], dtype=torch.float64)
    memory = length.Ascent(start, torch.ones(1))
    for _ in range(20):
        memory, long = part._ascend(memory, slope, size, long, False)
    assert long == pytest.approx(size * most / 2 if slope > 0 else size / 2, rel=1e-12)


def test_what_chees_has_learned_goes_into_new_units():
    """Projections scale by the square of the stretch, slopes by its fourth power: Adam's moments with them."""
    part = length.SquaredJumps(0.025, 1000)
    before, after = torch.tensor([1.0, 2.0]).double(), torch.tensor([0.5, 0.5]).double()
    slowest = torch.tensor([0.3, 0.4], dtype=torch.float64)
    memory = length.Ascent(torch.tensor([2.0, 5.0, 7.0, 0.1], dtype=torch.float64), slowest)
    found = part.rescaled(memory, before, after, before.shape)
    turned = np.array([0.6, 0.8]) * np.array([2.0, 4.0])
    factor = (turned**2).sum()
    np.testing.assert_allclose(found.ascent.numpy(), [2 * factor**2, 5 * factor**4, 7.0, 0.1])
    np.testing.assert_allclose(found.slowest.numpy(), turned * 0.5 * math.sqrt(factor))


def test_the_spread_and_the_multiple_are_lengths():
    spread, after = torch.tensor([2.0, 3.0]).double(), torch.tensor([1.0, 0.5]).double()
    state = State(
        x=torch.zeros(1, 2), length=None, step_size=torch.tensor(0.3, dtype=torch.float64)
    )
    found = length.Spread(1.5).changed(state, None, Change(after=after, spread=spread))[0]
    assert float(found.length) == pytest.approx(1.5 * math.sqrt(4 + 36))
    assert float(length.Multiple(5).changed(state, None, Change())[0].length) == pytest.approx(1.5)


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("of", ["diagonal", "factor"])
@pytest.mark.parametrize("by", ["diagonal", "factor"])
def test_the_extent_of_a_law_is_the_root_of_its_summed_variances_in_scaled_space(of, by, image):
    generator = torch.Generator().manual_seed(2)

    def matrix(kind):
        lower = torch.randn(6, 6, generator=generator, dtype=torch.float64).tril(-1)
        own = torch.rand(6, generator=generator, dtype=torch.float64).add(0.5).diag()
        return own + lower if kind == "factor" else own

    root, scale = matrix(of), matrix(by)
    inverse = torch.linalg.inv(scale)
    expected = (inverse @ root @ root.T @ inverse.T).trace().sqrt()
    shape = torch.Size((2, 3) if image else (6,))
    root, scale = (
        m if kind == "factor" else m.diag().reshape(shape) for m, kind in ((root, of), (scale, by))
    )
    assert length.extent(root, scale, shape) == pytest.approx(float(expected))


def wandering(x, alive=None, windows=1):
    """The length after a window with these positions, `(75, chains, 2 n)`, at a step size of .3 and a length of .25.

    The scales grow from (1, 2) to (.5, .5) with its end; so many windows have ended before.
    """
    warmup, pairs = 100, x.shape[2] // 2
    before, after = torch.tensor([1.0, 2.0] * pairs), torch.tensor([0.5, 0.5] * pairs)
    alive = torch.ones(x.shape[1], dtype=torch.bool) if alive is None else torch.tensor(alive)
    state = State(x=x[0], step_size=0.3, length=torch.tensor(0.25).double())
    part = length.Decorrelation()
    state, memory, spent = part.begin(None, None, state, None, alive)
    memory = memory._replace(windows=memory.windows + windows)
    assert spent == 0
    for step in range(warmup):
        ends = scales.window_end(step, warmup)[1]
        state.x = x[min(max(step - 15, 0), len(x) - 1)]
        lesson = Lesson(None, None, alive, alive, step, warmup)
        state, memory, change = part.learn(state, memory, lesson)
        assert change is None
        if ends:
            pooled = x[:, alive].flatten(0, 1)
            told = Change(before, after, pooled.std(0))
            state, memory = part.changed(state, memory, told)
            assert not memory.sums.any()
            assert not float(memory.steps)
            assert float(memory.windows) == windows + 1
    return float(state.length)


def autoregressive(rho, chains=400, steps=75, pairs=1):
    """Stationary chains of N(0, 1) with this correlation from step to step in each coordinate of pairs."""
    rng = np.random.default_rng(7)
    rho = np.resize(rho, 2 * pairs)
    x = [rng.normal(size=(chains, 2 * pairs))]
    for _ in range(steps - 1):
        x.append(rho * x[-1] + np.sqrt(1 - rho**2) * rng.normal(size=(chains, 2 * pairs)))
    return torch.tensor(np.stack(x))


def autocorrelation_time(found):
    """That of which a length is made: the root of .25 and of .7 of the length, in scales that have grown."""
    return (found * np.sqrt(0.5 * 0.25)) ** 2 / (0.25 * 0.7 * 0.3)


def exact_time(rho, n=75):
    """T times the variance of the mean of T numbers."""
    k = np.arange(1, n)
    return 1 + 2 * ((1 - k / n) * rho**k).sum()


@pytest.mark.parametrize(("rho", "fast"), [(0.0, 0.0), (0.5, 0.5), (0.9, 0.9), (0.9, 0.3)])
def test_a_length_follows_that_in_which_the_slowest_position_decorrelates(rho, fast):
    """To four standard errors of a coordinate's variance over chains. A mutant: the mean over coordinates."""
    found = autocorrelation_time(wandering(autoregressive((rho, fast))))
    assert found == pytest.approx(exact_time(rho), rel=4 * np.sqrt(2 / 400))
    mean = (exact_time(rho) + exact_time(fast)) / 2
    assert (found == pytest.approx(mean, rel=4 * np.sqrt(2 / 400))) == (rho == fast)


@pytest.mark.parametrize("chains", [2, 3, 8])
def test_few_chains_find_no_longer_time_than_many(chains):
    """Of equally slow coordinates none is the slowest, by whatever chance. A mutant: 7, 4 or 1.9 times that."""
    found = autocorrelation_time(wandering(autoregressive(0.5, chains, pairs=4000)))
    assert found == pytest.approx(exact_time(0.5), rel=0.15)


def test_a_length_has_bounds_for_chains_that_stay_and_chains_that_leap():
    """Of the chains' own path in a window where they stay, a step where they leap to and fro."""
    start = torch.tensor(np.random.default_rng(1).normal(size=(50, 2)))
    one_less = (75 * 50 - 1) / (75 * (50 - 1))  # of the pooled variance, over that of 50
    stay = autocorrelation_time(wandering(start.expand(75, -1, -1)))
    assert stay == pytest.approx(75 * one_less * 49 / 55)
    leaps = start * (-1.0) ** torch.arange(75)[:, None, None]
    assert autocorrelation_time(wandering(leaps)) == pytest.approx(1)


def test_a_length_is_three_times_the_root_of_the_summed_variances_at_most():
    """Chains that stay in modes never decorrelate. A mutant: a bound by the scales of before."""
    x = autoregressive(0.5, chains=50, pairs=20)
    x[:, :, 0] = 10.0 * (-1.0) ** torch.arange(50)
    x = x / 12  # in scaled space a sixth wide, so that 75 steps of .3 are longer than that
    x[:, :, 0] *= 0.1
    expected = 3 * (x.flatten(0, 1).std(0) / 0.5).square().sum().sqrt()
    assert wandering(x) == pytest.approx(float(expected))


def test_a_length_is_of_the_chains_that_are_well():
    x, alive = autoregressive(0.5, chains=9), [True] * 6 + [False] * 3
    lost = x.clone()
    lost[:, 6:] = torch.nan
    assert wandering(lost, alive=alive) == wandering(x[:, :6])


@pytest.mark.parametrize(("chains", "windows"), [(1, 1), (400, 0)])
def test_a_single_chain_and_the_first_window_have_the_length_of_the_spread(chains, windows):
    x = autoregressive(0.5, chains)
    expected = (x.flatten(0, 1).std(0) / 0.5).square().sum().sqrt()
    assert wandering(x, windows=windows) == pytest.approx(float(expected))


@pytest.mark.parametrize("dense", [False, True])
def test_scales_are_the_shrunk_moments_of_a_window(dense):
    rng = np.random.default_rng(1)
    pieces = [
        rng.normal(size=(n, 3)) @ rng.normal(size=(3, 3)) + i for i, n in enumerate((4, 0, 7, 2))
    ]
    window = scales.begin_window(torch.zeros(1, 3), dense)
    for piece in pieces:
        window = scales.accumulate(window, torch.tensor(piece))
    rows = np.concatenate(pieces)
    n, d = rows.shape
    covariance = np.cov(rows.T)
    weight, own = n / (n + 5), n / (n + d)
    if dense:
        before = np.array([[1.0, 0, 0], [0.5, 2.0, 0], [0, 0.3, 0.7]])
        covariance = own * covariance + (1 - own) * np.diag(np.diag(covariance))
        expected = weight * covariance + (1 - weight) * 1e-3 * np.diag(np.diag(before @ before.T))
    else:
        before = np.array([1.0, 2.0, 0.7])
        expected = weight * np.diag(covariance) + (1 - weight) * 1e-3 * before**2
    found = (scales.factor if dense else scales.deviations)(window, torch.tensor(before)).numpy()
    np.testing.assert_allclose(found @ found.T if dense else found**2, expected, rtol=1e-9)


def fisher_of(part, curvature, n=4000):
    """The squared scales that a part learns from draws of a normal with this curvature, and their gradients."""
    precision = torch.tensor(curvature, dtype=torch.float64)
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(precision).T, z.T, upper=True).T + 5
    scale = torch.tensor([1.0, 30.0], dtype=torch.float64)
    state, warmup = State(x=x, grad=(x - 5) @ precision, scale=scale), 40
    memory = part.begin(None, None, state, None, None)[1]
    for step in range(warmup):
        state, memory, told = part.learn(state, memory, lesson(step, warmup, accept=torch.ones(n)))
        if told is not None:
            change = told
    return change.after.square().numpy(), change.spread.square().numpy()


@pytest.mark.parametrize("curvature", [[[4.0, 0.0], [0.0, 0.01]], [[4.0, 1.9], [1.9, 1.0]]])
def test_scales_of_least_fisher_divergence(curvature):
    """s^4 = Var x / Var g = (C^-1)_ii / C_ii, C the curvature: the variance where coordinates are independent."""
    covariance = np.linalg.inv(curvature)
    right = np.sqrt(np.diag(covariance) / np.diag(curvature))
    found, spread = fisher_of(scales.Scales("fisher"), curvature)
    np.testing.assert_allclose(found, right, rtol=0.1)
    np.testing.assert_allclose(spread, np.diag(covariance), rtol=0.1)
    plain = fisher_of(scales.Scales("diagonal"), curvature)[0]
    assert np.allclose(plain, right, rtol=0.1) == (curvature[0][1] == 0), (
        "a mutant: without gradients"
    )


def test_few_draws_and_gradients_are_shrunk_each_towards_its_own_scale():
    """Var x towards a thousandth of S^2 and Var g of S^-2, each as five draws: no unit is preferred."""
    generator = torch.Generator().manual_seed(1)
    x, grad = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    before = torch.tensor([0.1, 2.0, 30.0], dtype=torch.float64)
    window = scales.accumulate(
        scales.begin_window(torch.stack([x, grad], 1), products=False), torch.stack([x, grad], 1)
    )
    found, spread = scales.fisher_scales(window, before)
    of_x = (6 * x.var(0) + 5e-3 * before**2) / 11
    of_g = (6 * grad.var(0) + 5e-3 / before**2) / 11
    torch.testing.assert_close(found**4, of_x / of_g)
    torch.testing.assert_close(spread**2, of_x)
    torch.testing.assert_close(  # in other units of x
        scales.fisher_scales(
            window._replace(deviations=window.deviations * torch.tensor([[49.0], [1 / 49]])),
            7 * before,
        )[0],
        7 * found,
    )


def test_scales_of_least_fisher_divergence_are_positive_numbers():
    part, warmup = scales.Scales("fisher"), 40
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = torch.tensor([2.0, 3.0], dtype=torch.float64)
    state = State(x=x, grad=torch.stack([x[:, 0], x[:, 1] * torch.inf], 1), scale=scale)
    memory = part.begin(None, None, state, None, None)[1]
    for step in range(warmup):
        state, memory, _ = part.learn(state, memory, lesson(step, warmup, accept=torch.ones(64)))
    assert 0 < float(state.scale[0]) < 2
    assert float(state.scale[1]) == 3.0


def test_lengths_keep_what_they_are_when_scales_change():
    """At the end of a window the step size and the length are divided by what the scales have grown."""
    part, warmup = scales.Scales("diagonal", ("step_size", "length")), 40
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    one = torch.ones((), dtype=torch.float64)
    state = State(x=x, scale=torch.tensor([1.0, 0.5]).double(), step_size=2 * one, length=6 * one)
    memory, change = part.begin(None, None, state, None, None)[1], None
    for step in range(warmup):
        after, memory, told = part.learn(state, memory, lesson(step, warmup, accept=torch.ones(64)))
        if told is not None:
            change = told
            grown = float((after.scale / state.scale).log().mean().exp())
            assert grown > 2
            assert float(after.step_size) == pytest.approx(2 / grown)
            assert float(after.length) == pytest.approx(6 / grown)
            assert torch.equal(told.before, state.scale)
            assert torch.equal(told.after, after.scale)
    assert change is not None


@pytest.mark.parametrize("warmup", [20, 60, 150, 500, 1000])
def test_windows_double_and_leave_room_for_the_step_size(warmup):
    """Of 150 steps and more: 75 for the approach, windows of 25, 50, ..., 50 at the end; of fewer 15 % and 10 %."""
    first, last, size = (
        (75, 50, 25) if warmup >= 150 else (int(0.15 * warmup), int(0.1 * warmup), warmup)
    )
    ends, at = [], first
    while at < warmup - last:
        stop = at + size if at + 3 * size <= warmup - last else warmup - last
        ends.append(stop - 1)
        at, size = stop, 2 * size
    told = [scales.window_end(step, warmup) for step in range(warmup)]
    assert [step for step, (_, ends_here) in enumerate(told) if ends_here] == ends
    assert [step for step, (counts, _) in enumerate(told) if counts] == list(
        range(first, warmup - last)
    )
    assert scales.approach_steps(warmup) == first


def test_chains_that_hardly_move_halve_their_steps_after_three_and_come_back():
    idle = torch.zeros(1, dtype=torch.int64)
    seen = []
    for accept in [0.01] * 6 + [0.9] * 4:
        seen.append(float(halving.shortening(idle, torch.float64)))
        idle = halving.next_idle(idle, torch.tensor([accept]))
    assert seen == [1, 1, 1, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 4, 1 / 2, 1]
    assert float(halving.shortening(torch.tensor([100]), torch.float64)) == 2.0**-97
    for _ in range(60):
        idle = halving.next_idle(idle, torch.tensor([0.0]))
    assert int(idle) == 33


def test_a_ladder_of_even_rejections_stays_and_others_are_evened():
    beta = torch.tensor([1.0, 0.5, 0.2, 0.05], dtype=torch.float64)
    even = torch.full((3,), 0.4, dtype=torch.float64)
    torch.testing.assert_close(ladder.even_ladder(beta, even), beta)
    rejection = torch.tensor([0.6, 0.1, 0.2], dtype=torch.float64)
    found = ladder.even_ladder(beta, rejection)
    barrier = np.cumsum([0, 0.6, 0.1, 0.2])
    logs = np.interp(np.linspace(0, 0.9, 4), barrier, np.log(beta.numpy()))
    np.testing.assert_allclose(found.numpy(), np.exp(logs), rtol=1e-12)


def test_the_ladder_learns_from_rejections_of_chains_that_are_well():
    part, warmup = ladder.TemperatureLadder(), 16
    beta = torch.tensor([1.0, 0.4, 0.1], dtype=torch.float64)
    state = State(inverse_temperatures=beta)
    memory = part.begin(None, None, state, None, None)[1]
    alive = torch.tensor([True, True, False])
    seen, ends = [], []
    rng = np.random.default_rng(0)
    for step in range(warmup):
        swap = rng.uniform(size=(3, 2))
        seen.append(1 - swap[:2].mean(0))
        now = lesson(step, warmup, seen=torch.tensor(swap), alive=alive, accept=torch.ones(3))
        state, memory, change = part.learn(state, memory, now)
        if change is not None:
            ends.append(step + 1)
            expected = ladder.even_ladder(beta, torch.tensor(np.mean(seen, 0)))
            torch.testing.assert_close(state.inverse_temperatures, expected)
            beta, seen = state.inverse_temperatures, []
    assert ends == [1, 3, 6, 12]


def quartic(x):
    return (torch.tensor([1.0, 30.0], dtype=x.dtype) * x**2 / 2 + x**4 / 10).sum(1)


def test_an_approach_is_its_recursion():
    """Single leapfrog steps, each chain with its own size and curvatures from secants."""
    place_x = torch.tensor([[40.0, -4.0]] * 6 + [[3.0, 2.0], [0.1, 0.2]], dtype=torch.float64)
    field = resolve(stk.Energy(quartic, (2,)), {"energy", "score"}, timed=False)
    noise = Noise(4, 8, dtype=torch.float64)
    place = approach.Place(place_x, *field.energy_and_grad(place_x))
    own = approach.OwnSettings(
        torch.tensor([-2.9, -2.7, -2.6, -2.5, -2.4, -2.3, -0.4, 0.2], dtype=torch.float64),
        torch.full((8, 2), 0.5, dtype=torch.float64),
    )
    step, steps, index = 1, 20, torch.tensor(7)
    found, learned, report = approach.approach_step(field, place, own, noise, index, step, steps)
    k = np.array([1.0, 30.0])

    def e(x):
        return (k * x**2 / 2 + x**4 / 10).sum(-1)

    def g(x):
        return k * x + 0.4 * x**3

    n = 8
    momenta = noise.normal(index, Stream.PROPOSAL, (n, 2), torch.float64).numpy()
    factors = 1 + 0.25 * (2 * noise.uniform(index, Stream.LENGTH, (n,), torch.float64).numpy() - 1)
    u = noise.uniform(index, Stream.ACCEPT, (n,), torch.float64).numpy()
    most, capped = (math.sqrt(2) + 3) ** 2 / 2, 0
    x, log_size, log_h = (
        place_x.numpy().copy(),
        own.log_size.numpy().copy(),
        own.log_curvature.numpy().copy(),
    )
    for i in range(n):
        for row in range(8):
            eps, s, p = (
                math.exp(log_size[row]) * factors[row, i],
                np.exp(-log_h[row] / 2),
                momenta[row, i],
            )
            half = p - eps / 2 * s * g(x[row])
            there = x[row] + eps * s * half
            after = half - eps / 2 * s * g(there)
            secant = np.log(np.abs(g(there) - g(x[row]))) - np.log(np.abs(there - x[row]))
            counted = [min(v @ v / 2, most) for v in (p, after)]
            accept = math.exp(min(e(x[row]) - e(there) + counted[0] - counted[1], 0))
            whole = e(x[row]) - e(there) + (p @ p - after @ after) / 2
            capped += accept > 0.9 and whole < -1
            if u[row, i] < accept:
                x[row], log_h[row] = there, log_h[row] + 0.2 * (secant - log_h[row])
            log_size[row] += 0.5 * (accept - 0.8)
    np.testing.assert_allclose(found.x.numpy(), x, rtol=1e-8)
    np.testing.assert_allclose(learned.log_size.numpy(), log_size, rtol=1e-7)
    np.testing.assert_allclose(learned.log_curvature.numpy(), log_h, rtol=1e-7)
    assert report.gradients == 8
    assert capped, "nothing was gained on the way down"


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_curvatures_are_found_by_a_small_step_at_the_start(unit):
    """Of a bowl its own, however far off it begins."""
    k = torch.tensor([1.0, 30.0, 1e4], dtype=torch.float64) / unit**2
    bowl = stk.Energy(lambda x: (k * (x - 90 * unit) ** 2).sum(1) / 2, (3,))
    field = resolve(bowl, {"energy"}, timed=False)
    noise = Noise(4, 5, dtype=torch.float64)
    x = unit * 50 * noise.normal(0, Stream.USER, (3,), torch.float64)
    place = approach.Place(x, *field.energy_and_grad(x))
    found = approach._probed(field, place, noise, torch.tensor(0))
    torch.testing.assert_close(found, k.log().expand(5, 3), rtol=0, atol=1e-4)


def test_a_pair_that_always_swaps_counts_as_a_thousandth_of_a_barrier():
    """Else places without a barrier between them would all be one."""
    beta = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    found = ladder.even_ladder(beta, torch.tensor([0.0, 0.1], dtype=torch.float64))
    share = (0.101 / 2 - 0.001) / 0.1  # of the second gap
    assert float(found[1].log()) == pytest.approx(
        math.log(0.5) + share * (math.log(0.1) - math.log(0.5))
    )
    assert found[[0, 2]].tolist() == [1.0, 0.1]


def test_the_common_settings_are_medians():
    sizes = torch.tensor([0.5, 1.0, 3.0, 100.0], dtype=torch.float64)
    h = torch.tensor([[1.0, 4.0], [4.0, 16.0], [9.0, 64.0], [1e6, 1e6]], dtype=torch.float64)
    alive = torch.tensor([True, True, True, False])
    own, before = approach.OwnSettings(sizes.log(), h.log()), torch.ones(2, dtype=torch.float64)
    size, scale = approach.common_settings(own, alive, "diagonal", before)
    assert size == pytest.approx(1.0)
    np.testing.assert_allclose(scale.numpy(), [1 / 2, 1 / 4])
    assert approach.common_settings(own, alive, "none", before)[0] == pytest.approx(1 / 4)
    dense = approach.common_settings(own, alive, "dense", before)[1]
    np.testing.assert_allclose(dense.numpy(), np.diag([1 / 2, 1 / 4]))


def test_the_length_along_a_gaussian_direction_is_that_of_the_most_squares():
    """By quadrature: times are uniform up to 2 T, z' = z cos t + p sin t, and the rate is C(T) / T."""
    z, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    times = np.linspace(0, math.pi, 400)[1:]

    def at_most(square):
        ahead = z[:, None] * np.cos(times)[:, None, None] + z * np.sin(times)[:, None, None]
        jumps = (square(ahead) - square(z)[:, None]) ** 2
        rate = np.cumsum(np.einsum("tij,i,j->t", jumps, weights, weights)) / times**2
        return times[rate.argmax()] / 2

    def bounded(y):
        return length.bounded_square(torch.tensor(y), torch.tensor(length.BOUND)).numpy()

    assert at_most(bounded) == pytest.approx(length.OF_DEVIATION, abs=0.01)
    # squares that have no bound are at their most later; means and squares want 1.4 times that
    assert at_most(np.square) * 1.4 / at_most(bounded) == pytest.approx(length.STRETCH, abs=0.02)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    ("before", "turned", "common", "expected"),
    [
        (2.0, 0.25, 2.0, 0.76),  # the Gaussian length of the new deviation, between the two
        (6.0, 0.25, 6.0, 1.5),  # not below what the deviation makes of it
        (0.4, 0.25, 0.4, 0.4),  # not above what the mean growth makes of it
        (0.3, 8.0, 0.3, 2.4),  # nor above the deviation's, where it is the longer one
        (9.0, 2.0, 9.0, 9.0),
    ],
)
def test_the_length_of_trajectories_goes_into_new_scales(dense, before, turned, common, expected):
    """Two coordinates, the first of which is the slowest: its deviation becomes 1 or 8, and the mean growth is 1."""
    part = length.SquaredJumps(0.025, 1000)
    scale = torch.ones(2, dtype=torch.float64)
    after = torch.tensor([1 / turned, turned], dtype=torch.float64)
    variance = (1.0 if turned < 1 else 8.0) ** 2 / turned**2
    memory = length.Ascent(
        torch.tensor([0.1, 0.2, 5.0, math.log(before) - 0.3], dtype=torch.float64),
        torch.tensor([variance, 0.0], dtype=torch.float64),
    )
    change = Change(*((s.diag() if dense else s) for s in (scale, after, after)))
    state = State(x=torch.zeros(1, 2), length=torch.tensor(common, dtype=torch.float64))
    state, moved = part.changed(state, memory, change)
    assert float(state.length) == pytest.approx(expected, rel=1e-12)
    assert float(moved.ascent[3]) == pytest.approx(math.log(expected) - 0.3, rel=1e-9)
    assert float(moved.slowest.norm()) == pytest.approx(variance * turned**2)
    unlearned = memory._replace(ascent=torch.zeros(4, dtype=torch.float64))
    state = State(x=torch.zeros(1, 2), length=torch.tensor(common, dtype=torch.float64))
    assert float(part.changed(state, unlearned, change)[0].length) == common


@pytest.mark.parametrize("variance", [0.0, math.inf, math.nan])
def test_a_deviation_that_no_number_holds_leaves_the_length_to_the_mean_growth(variance):
    part, scale = length.SquaredJumps(0.025, 1000), torch.ones(2, dtype=torch.float64)
    memory = length.Ascent(
        torch.tensor([0.1, 0.2, 5.0, 0.3], dtype=torch.float64),
        torch.tensor([variance, 0.0], dtype=torch.float64),
    )
    state = State(x=torch.zeros(1, 2), length=torch.tensor(0.7, dtype=torch.float64))
    state, moved = part.changed(state, memory, Change(scale, 2 * scale, 2 * scale))
    assert float(state.length) == pytest.approx(0.7)
    assert float(moved.ascent[3]) == pytest.approx(0.3 - math.log(2))


@pytest.mark.parametrize("most", [3, 1000])
@pytest.mark.parametrize("ratio", [0.3, 1.0, 4.7])
def test_the_time_of_a_trajectory_is_that_of_its_leapfrogs(ratio, most):
    solver = stk.ChEES(most=most)
    field = resolve(stk.Energy(lambda x: x.square().sum(1) / 2, (2,)), {"energy", "score"})
    noise = stk.Noise(3, 8, dtype=torch.float64)
    state = solver.init(field, noise.normal(0, 0, (2,), torch.float64), noise)
    size = torch.tensor(0.2, dtype=torch.float64)
    for step in range(6):
        now = state._replace(step_size=size, length=ratio * size, step=torch.tensor(step))
        trial = solver.trial(field, now, noise, torch.ones(8, dtype=torch.float64))
        assert trial.seen.time == pytest.approx(0.2 * float(trial.info["leapfrogs"][0]))


def test_trajectories_are_as_long_as_serves_whatever_the_tails_and_however_short_warmup_is():
    """The calculation's 1.1 standard deviations along Gaussian directions; on a funnel not the length of its mouth."""
    wide = stk.Energy(lambda x: (x / torch.logspace(-1, 1, 100)).square().sum(1) / 2, (100,))
    run = {"chains": 64, "steps": 1, "seed": 1}
    tuned = stk.sample(wide, "chees", warmup=150, **run).tuned
    assert 0.7 < float(tuned["length"] + tuned["step_size"] / 2) < 1.5
    tuned = stk.sample(stk.load("funnel"), "chees", warmup=150, **run).tuned
    assert float(tuned["length"]) < 3.0


def test_the_first_trajectories_after_an_approach_are_of_two_steps():
    state = State(length=None, step_size=torch.tensor(0.3, dtype=torch.float64))
    memory = length.Ascent(torch.zeros(4, dtype=torch.float64), torch.ones(2))
    part = length.SquaredJumps(0.025, 100)
    found, memory = part.changed(state, memory, Change(arrived=True))
    assert float(found.length) == pytest.approx(0.6)
    assert float(memory.ascent[3]) == pytest.approx(math.log(0.6))


def far_off(places, tunes):
    """Which chains of a normal take steps of their own; the last one has failed."""
    field = resolve(stk.Energy(lambda x: (x**2).sum(1) / 2, (2,)), {"energy", "score"}, timed=False)
    x = torch.tensor([[at, 0.3] for at in places], dtype=torch.float64)
    noise, alive = Noise(2, len(x), dtype=torch.float64), torch.ones(len(x), dtype=torch.bool)
    alive[-1] = False
    energy, grad = field.energy_and_grad(x)
    state = State(x=x, energy=energy, grad=grad, step=torch.tensor(0))
    return Approach("none").begins_far(field, state, noise, alive, tunes)[0].tolist()


def test_chains_that_tune_take_steps_of_their_own_all_or_none_by_the_majority_of_those_that_are_well():
    near, far = 0.5, 1e3
    assert far_off([near, far, near, far], tunes=False) == [False, True, False, True]
    assert far_off([near, far, near, far], tunes=True) == [False] * 4
    assert far_off([near, far, far, near], tunes=True) == [True] * 4
    assert far_off([near, far, math.nan, near], tunes=False) == [False, True, True, False]


TUNED = {name: s for name, s in EXAMPLES.items() if getattr(s, "adapts", False)} | {
    "hmc": stk.HMC(leapfrogs=2),
    "hmc, dense": stk.HMC(leapfrogs=2, metric="dense"),
    "nuts": stk.NUTS(max_depth=2),
    "chees": stk.ChEES(most=4),
    "mala": stk.MALA(),
    "mclmc": stk.MCLMC(),
    "adjusted": stk.AdjustedMCLMC(leapfrogs=2),
    "tempering": stk.ParallelTempering(temperatures=(1.0, 2.0, 4.0)),
}


def tuned(solver, ids, dead=(), steps=40):
    """What a warmup of these chains has learned, some of which are elsewhere and have failed."""
    field = resolve(stk.Energy(quartic, (2,)), solver.needs, timed=False)
    noise = Noise(5, torch.tensor(ids), dtype=torch.float64)
    alive = ~torch.isin(noise.chains, torch.tensor(dead, dtype=torch.int64))
    x = noise.normal(0, Stream.USER, (2,), torch.float64)
    x = torch.where(alive[:, None], x, 30 * x + 7)
    state = solver.init(field, x, noise)
    state, learned, _ = solver.adaptation.begin(solver, field, state, noise, alive)
    for step in range(steps):
        at = WarmupStep(solver, field, noise, alive, step, steps)
        state, _, learned = solver.adaptation.update(at, state, learned)
    return {name: getattr(state, name) for name in state.shared - {"step"}}


@pytest.mark.parametrize("name", TUNED)
def test_chains_that_have_failed_teach_nothing(name):
    solver, ids, dead = TUNED[name], list(range(12)), [0, 5, 11]
    found = tuned(solver, ids, dead)
    expected = tuned(solver, [i for i in ids if i not in dead])
    assert found
    for leaf, value in expected.items():
        torch.testing.assert_close(found[leaf], value, rtol=1e-6, atol=0, equal_nan=True)
    other = tuned(solver, ids)
    assert any(not torch.allclose(other[leaf], v, rtol=1e-3) for leaf, v in expected.items())


def followed(solver, ids, far, steps=30):
    """What becomes of chains that follow, some of which begin far off: their own leaves, and what is remembered."""
    field = resolve(stk.Energy(quartic, (2,)), solver.needs, timed=False)
    noise = Noise(5, torch.tensor(ids), dtype=torch.float64)
    x = noise.normal(0, Stream.USER, (2,), torch.float64)
    x = torch.where(torch.isin(noise.chains, torch.tensor(far))[:, None], 1e3 * (x.abs() + 1), x)
    state, alive = solver.init(field, x, noise), torch.ones(len(ids), dtype=torch.bool)
    state = state._replace(step_size=torch.tensor(0.4, dtype=torch.float64))
    learned, idle = solver.adaptation.follow(state), []
    for step in range(steps):
        at = WarmupStep(solver, field, noise, alive, step, steps)
        state, _, learned = solver.adaptation.update(at, state, learned)
        idle.append(learned.idle)
    own = {n: v for n, v in state._asdict().items() if n not in state.shared}
    return own | {"idle": torch.stack(idle, 1)}


@pytest.mark.parametrize("name", ["hmc", "chees", "mala"])
def test_a_chain_that_follows_does_what_it_does_beside_its_like(name):
    """Near or far: it shows in no leaf what the others are, nor in how often it is said to have stayed."""
    solver, ids, far = TUNED[name], list(range(8)), [1, 2, 6]
    together = followed(solver, ids, far)
    for some in (far, [i for i in ids if i not in far]):
        for leaf, value in followed(solver, some, far).items():
            torch.testing.assert_close(together[leaf][some], value, msg=leaf)


@pytest.mark.parametrize("size", [1e-3, 0.3, 40.0])
def test_a_length_that_nothing_was_learned_of_is_that_of_a_step(size):
    """In whatever units x is: of one chain, or of a warmup of no step."""
    part, x = length.SquaredJumps(0.025, 1000), torch.zeros(1, 2, dtype=torch.float64)
    begun = State(x=x, step_size=torch.tensor(size, dtype=torch.float64))
    state, memory, _ = part.begin(None, None, begun, None, torch.ones(1, dtype=torch.bool))
    assert float(state.length) == pytest.approx(size)
    memory, found = part._ascend(memory, 0.0, size, float(state.length), True)
    assert found == pytest.approx((1.5 * length.STRETCH - 0.5) * size)


WITH_LENGTHS = {f"chees, {metric}": stk.ChEES(metric=metric) for metric in scales.METRICS} | {
    "mclmc": stk.MCLMC(),
    "adjusted": stk.AdjustedMCLMC(),
}


@pytest.mark.parametrize("chains", [1, 4])
@pytest.mark.parametrize("name", WITH_LENGTHS)
def test_the_units_of_the_target_do_not_make_trajectories_long(name, chains):
    """The number of steps in a length: of one chain, which nothing is learned of, as of several."""

    def steps(unit):
        field = stk.Energy(lambda x: (x / unit).square().sum(1) / 2, (2,))
        init = unit * torch.linspace(-1, 1, 2 * chains, dtype=torch.float64).reshape(chains, 2)
        run = stk.sample(field, WITH_LENGTHS[name], steps=1, warmup=40, init=init, seed=2)
        return float(run.tuned["length"] / run.tuned["step_size"])

    known = steps(1.0)
    for unit in (1e-3, 1e3):
        assert 1 / 3 < steps(unit) / known < 3


GIVEN = [
    *(stk.ChEES(length=1.5, metric=metric) for metric in scales.METRICS),
    stk.ChEES(step_size=0.3),
    stk.ChEES(step_size=0.3, length=1.5),
    stk.HMC(0.3, leapfrogs=3),
    stk.NUTS(0.3, max_depth=2),
    stk.MCLMC(length=1.5),
    stk.MCLMC(0.3),
    stk.AdjustedMCLMC(length=1.5),
    stk.AdjustedMCLMC(0.3, leapfrogs=3),
]


@pytest.mark.parametrize("solver", GIVEN, ids=repr)
def test_what_is_given_is_not_tuned_whatever_the_units_of_the_target(solver):
    """Step size and length are in the space of the scales, which are 1,000 times what they were."""
    field = stk.Energy(lambda x: (x / 1e3).square().sum(1) / 2, (2,))
    init = torch.linspace(-1e3, 1e3, 16, dtype=torch.float64).reshape(8, 2)
    found = stk.sample(field, solver, steps=1, warmup=30, init=init, seed=2).tuned
    given = {name: getattr(solver, name, None) for name in ("step_size", "length")}
    for name, value in given.items():
        assert value is None or float(found[name]) == value, name


class Kept(NamedTuple):
    """What a part that hands on all it is told remembers: who made it."""

    history: tuple[str, ...]


class Link:
    """A part that is told of everything, and wants what it remembered last."""

    def __init__(self, name, changes=False):
        self.name, self.changes, self.last, self.asked = name, changes, None, []
        self.own = torch.tensor(float(len(name)))

    def after(self, memory, what):
        assert memory is self.last, (self.name, what)
        self.asked.append(what)
        self.last = Kept((*memory.history, what) if memory else (what,))
        return self.last

    def begin(self, kernel, field, state, noise, alive):
        return state, self.after(None, "begin"), 0

    def measure(self, memory, lesson):
        return self.after(memory, "measure"), (torch.tensor(float(lesson.step)), self.own)

    def learn(self, state, memory, lesson):
        assert lesson.measured == (float(lesson.step), float(self.own))
        change = Change() if self.changes and lesson.step % 2 else None
        return state, self.after(memory, "learn"), change

    def changed(self, state, memory, change):
        return state, self.after(memory, "arrived" if change.arrived else "changed")


def tuned_by_links(approach, idle):
    """Four steps of warmup of HMC with three parts: what each was asked, and the common steps' sizes."""
    field = resolve(stk.Energy(lambda x: x.square().sum(1) / 2, (2,)), {"energy"})
    noise, alive = Noise(0, 3), torch.ones(3, dtype=torch.bool)
    kernel, shortened = stk.HMC(0.1, 2, metric="none"), []

    class Watched:
        def __getattr__(self, name):
            return getattr(kernel, name)

        def trial(self, field, state, noise, shorter):
            shortened.append(shorter.clone())
            return kernel.trial(field, state, noise, shorter)

    links = [Link("first"), Link("second", changes=True), Link("third")]
    of_links = Adaptation(tuple(links), approach)
    state = kernel.init(field, torch.ones(3, 2), noise)
    state, learned, _ = of_links.begin(Watched(), field, state, noise, alive)
    learned = learned._replace(idle=idle)
    for step in range(20):
        now = WarmupStep(Watched(), field, noise, alive, step, 20)
        state, _, learned = of_links.update(now, state, learned)
        assert [part.last for part in links] == list(learned.parts)
    return [link.asked for link in links], shortened


@pytest.mark.parametrize("approach", [None, Approach("none", always=True)])
def test_a_part_is_given_what_it_last_remembered(approach):
    """Whoever asks it: a step, a change that it or another part has made, or the end of an approach."""
    asked, shortened = tuned_by_links(approach, torch.tensor([0, 3, 5]))
    own = scales.approach_steps(20) if approach else 0
    before, after = (["begin"] + ["arrived"] * bool(approach) for _ in range(2))
    for step in range(own, 20):
        told = ["changed"] * (step % 2)  # by the second part, as the third is still to learn
        before, after = ([*before, "measure", "learn", *told], [*after, "measure", *told, "learn"])
    assert asked == [before, before, after]
    assert len(shortened) == 20 - own
    assert shortened[0].tolist() == [1.0, 1.0, 0.25]
