"""Reverse SDEs against textbook recursions to 1e-10, exact moments and their orders, the SDE's own moments, exact draws."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument, MissingCapability, UnknownName
from scoretk.fields import GaussianPath, resolve
from scoretk.fields.combine.powers import exponents
from scoretk.models.targets.mixture import gaussian, ring_mixture
from scoretk.solvers import reverse_sde
from scoretk.solvers.reverse_sde import ReverseSDE
from tests.evidence import mean_z, z_limit
from tests.marks import in_turn, named, slow_but, slow_rows_but
from tests.test_fields import PATHS

METHODS = ("euler", "ancestral", "ddim", "dpmpp_2m")
ORDER = {"euler": 1, "ancestral": 1, "ddim": 1, "dpmpp_2m": 2}
MEAN, STD = 0.7, 0.5
DATA = gaussian(dim=1, mean=MEAN, std=STD)


def name(value):
    return type(value).__name__ if isinstance(value, GaussianPath) else str(value)


# The textbooks' steps from (alpha, sigma) to (a, s), each in its own notation


def ddpm(alpha, sigma, a, s, x, data, z, eta=1.0):
    """Ho et al. (2020): the product of N(x'; a x_1, s^2) and of N(x; (alpha/a) x', w^2), normalised."""
    if s == 0:
        return a * data
    w2 = sigma**2 - (alpha / a * s) ** 2
    precision = 1 / s**2 + (alpha / a) ** 2 / w2
    return (a * data / s**2 + alpha / a * x / w2) / precision + z / math.sqrt(precision)


def ddim(alpha, sigma, a, s, x, data, z, eta):
    """Song, Meng, Ermon (2021), equations 12 and 16."""
    e = (x - alpha * data) / sigma
    tau = eta * s / sigma * math.sqrt(sigma**2 - (alpha / a * s) ** 2)
    return a * data + math.sqrt(s**2 - tau**2) * e + tau * z


def scaled_euler_maruyama(alpha, sigma, a, s, x, data, z, eta):
    """Euler-Maruyama for `dy = (1 + eta^2) / 2 (y - D) dv / v + eta dW_v`, v = (sigma/alpha)^2 falling, from D on, in units of
    sqrt(v); then divided by the standard deviation that it gives a unit of noise, which is to be one unit of the new level."""
    elapsed = 1 - (s * alpha / (sigma * a)) ** 2
    kept, new = 1 - (1 + eta**2) / 2 * elapsed, eta * math.sqrt(elapsed)
    e = (x - alpha * data) / sigma
    return a * data + s * (kept * e + new * z) / math.sqrt(kept**2 + new**2)


def sde_dpmpp_2m(alpha, sigma, a, s, x, data, z, eta, before=None, old=None):
    """Lu et al. (2022), SDE-DPM-Solver++(2M) in lambda = log(alpha/sigma); eta^2 h where they have h in the noise."""
    if s == 0:
        return a * data
    h = math.log(a / s) - math.log(alpha / sigma) if alpha > 0 else math.inf
    if before is not None and before[0] > 0:
        r = (math.log(alpha / sigma) - math.log(before[0] / before[1])) / h
        data = data + (data - old) / (2 * r)
    n = eta**2 * h
    return (
        s / sigma * math.exp(-n) * x
        - a * math.expm1(-h - n) * data
        + s * math.sqrt(-math.expm1(-2 * n)) * z
    )


TEXTBOOK = {
    "euler": scaled_euler_maruyama,
    "ancestral": ddpm,
    "ddim": ddim,
    "dpmpp_2m": sde_dpmpp_2m,
}
CASES = [
    ("euler", 1.0),
    ("euler", 0.6),
    ("euler", 0.0),
    ("ancestral", 1.0),
    ("ddim", 1.0),
    ("ddim", 0.6),
    ("dpmpp_2m", 1.0),
    ("dpmpp_2m", 0.6),
]


def levels(path, solver):
    field = resolve(DATA.noised(path), solver.needs, timed=True)
    times = solver.times(field)
    found = list(zip(path.alpha(times).tolist(), path.sigma(times).tolist(), strict=True))
    return times.tolist(), found + (
        [(found[-1][0], 0.0)] if solver.denoise and found[-1][1] > 0 else []
    )


def recursion(path, solver, x, seed, formula):
    """The whole way by a textbook's formula with the run's own noise."""
    times, knots = levels(path, solver)
    field, noise, way, old = DATA.noised(path), Noise(seed, len(x), dtype=torch.float64), [], None
    for k in range(len(knots) - 1):
        data = field.denoise(x, times[k])
        memory = (
            {"before": knots[k - 1] if k else None, "old": old} if formula is sde_dpmpp_2m else {}
        )
        z = noise.normal(k, Stream.PROPOSAL, (1,))
        x, old = formula(*knots[k], *knots[k + 1], x, data, z, eta=solver.eta, **memory), data
        way.append(x)
    return torch.stack(way, 1)


@pytest.mark.parametrize("path", PATHS, ids=name)
@pytest.mark.parametrize(("method", "eta"), CASES)
def test_every_step_is_the_textbook_s(path, method, eta):
    solver = ReverseSDE(method, steps=9, eta=eta, denoise=True)
    x = float(path.sigma(0.0)) * torch.tensor([[-1.3], [0.4], [2.1]], dtype=torch.float64)
    draws = stk.sample(DATA.noised(path), solver, init=x, seed=4, keep="all")
    assert draws.x.shape == (3, 9, 1)
    torch.testing.assert_close(
        draws.x, recursion(path, solver, x, 4, TEXTBOOK[method]), rtol=1e-10, atol=1e-10
    )


def each_path_with(eta, etas):
    """Every path with one eta, and one path with every eta; the other pairs with `-m slow`."""
    pairs = [(path, e) for path in PATHS for e in etas]
    quick = [
        (path, e)
        for path, e in pairs
        if isinstance(path, stk.VP) or (e == eta and not isinstance(path, stk.Tabulated))
    ]
    return slow_rows_but(pairs, *quick)


@pytest.mark.parametrize(("path", "eta"), each_path_with(0.3, [0.0, 0.3, 1.0, 1.7]), ids=name)
def test_ancestral_is_the_solution_of_the_sde_in_t_while_the_prediction_stays(path, eta):
    """Mean and variance of `dx = (u + a^2/2 score) dt + a dW` with D fixed, integrated numerically in t."""
    start, end, x, data = 0.42, 0.55, 1.3, 0.4

    def moments(t, m):
        alpha, sigma, dalpha, dsigma = (float(v) for v in path(float(t)))
        a2 = eta**2 * 2 * sigma**2 * (dalpha / alpha - dsigma / sigma)
        slope = dsigma / sigma - a2 / (2 * sigma**2)  # of the drift in x
        return [dalpha * data + slope * (m[0] - alpha * data), 2 * slope * m[1] + a2]

    mean, variance = solve_ivp(
        moments, (start, end), [x, 0.0], rtol=1e-11, atol=1e-13, method="DOP853"
    ).y[:, -1]
    solver = ReverseSDE("ancestral", grid=(start, end), eta=eta)
    field = resolve(DATA.noised(path), solver.needs, timed=True)
    _, a, b, _, spread, _ = solver.init(field, torch.zeros(1, 1), None).table[0].tolist()
    assert a * x + b * data == pytest.approx(mean, rel=1e-7)
    assert spread**2 == pytest.approx(variance, rel=1e-7, abs=1e-10)


# Exact moments of a whole run on Gaussian data, from the rows that the solver reads: no Monte Carlo


def exact_moments(solver, path, rows=slice(None), start=None, data=(MEAN, STD)):
    """Mean and variance of x after the rows, from the exact law at time `start` (the first row's): the recursion of
    `(x, D_before)`, whose moments are m, l, Var x, Cov(x, D_before), Var D_before."""
    mean, std = data
    field = resolve(gaussian(dim=1, mean=mean, std=std).noised(path), solver.needs, timed=True)
    table = solver.init(field, torch.zeros(1, 1), None).table[rows]
    times = torch.cat(
        [table[:1, 0] if start is None else torch.tensor([start], dtype=torch.float64), table[:, 0]]
    )
    (alpha, *alphas), (sigma, *sigmas) = path.alpha(times).tolist(), path.sigma(times).tolist()
    m, last, xx, xl, ll = alpha * mean, 0.0, (alpha * std) ** 2 + sigma**2, 0.0, 0.0
    for (_, a, b, c, spread, _), alpha, sigma in zip(table.tolist(), alphas, sigmas, strict=True):
        gain = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)  # D = gain x + shift
        shift = (1 - gain * alpha) * mean
        g = a + b * gain
        m, last = g * m + b * shift + c * last, gain * m + shift
        xx, xl, ll = (
            g**2 * xx + 2 * g * c * xl + c**2 * ll + spread**2,
            gain * (g * xx + c * xl),
            gain**2 * xx,
        )
    return m, xx


COUNTS = (20, 40, 80, 160, 320)


def variance_errors(make, path):
    """Errors of the output's variance by step count, from sigma/alpha = 50 to .05 on a rho = 7 grid; the mean's is nil."""
    errors = []
    for steps in COUNTS:
        level = torch.linspace(50 ** (1 / 7), 0.05 ** (1 / 7), steps + 1, dtype=torch.float64) ** 7
        times = path.t(-2 * level.log()).tolist()
        mean, variance = exact_moments(make(times), path)
        alpha, sigma = (float(v) for v in path(times[-1])[:2])
        assert mean == pytest.approx(alpha * MEAN, abs=1e-10)
        errors.append(abs(variance - (alpha * STD) ** 2 - sigma**2))
    return errors


def slope(errors, counts=COUNTS):
    """The fitted rate at which the errors fall with the steps."""
    a, b = torch.tensor(counts).double().log(), torch.tensor(errors).double().abs().log()
    return -float(((a - a.mean()) * (b - b.mean())).sum() / ((a - a.mean()) ** 2).sum())


def has_order(errors, order):
    """The rate, and the constant: at 320 steps the variance .25 is right to 6 % (first order) or .1 % (second)."""
    return abs(slope(errors) - order) < 0.25 and errors[-1] < {1: 0.015, 2: 0.00025}[order]


def steep(path):
    """The table's own noise must reach beyond sigma/alpha = 50."""
    return (
        stk.Tabulated(torch.linspace(0.9999, 2e-4, 1000, dtype=torch.float64))
        if isinstance(path, stk.Tabulated)
        else path
    )


@pytest.mark.parametrize(("path", "eta"), each_path_with(0.5, [0.5, 1.0]), ids=name)
@pytest.mark.parametrize("method", METHODS)
def test_weak_order(path, method, eta):
    errors = variance_errors(lambda times: ReverseSDE(method, grid=times, eta=eta), steep(path))
    assert has_order(errors, ORDER[method]), (slope(errors), errors)


def _old_sigma(now, after, kept):
    gain = after.sigma / now.sigma * kept
    return gain, after.alpha - now.alpha * gain, 0.0, now.sigma * math.sqrt(1 - kept**2)


def _no_root(now, after, kept):
    gain = after.sigma / now.sigma * kept
    return gain, after.alpha - now.alpha * gain, 0.0, after.sigma * (1 - kept**2)


def _noise_not_made_room_for(now, after, kept):
    gain = after.sigma / now.sigma
    return gain, after.alpha - now.alpha * gain, 0.0, after.sigma * math.sqrt(1 - kept**2)


WRONG_STEPS = [_old_sigma, _no_root, _noise_not_made_room_for]


@pytest.mark.parametrize("mutant", WRONG_STEPS)
def test_the_textbook_catches_wrong_steps(monkeypatch, mutant):
    path, solver = stk.VP(), ReverseSDE("ancestral", steps=9)
    x = torch.ones(3, 1, dtype=torch.float64)
    monkeypatch.setattr(reverse_sde, "_renewed", mutant)
    way = stk.sample(DATA.noised(path), solver, init=x, seed=4, keep="all").x
    assert float((way - recursion(path, solver, x, 4, ddpm)).abs().max()) > 0.1


def _euler_maruyama(before, now, after, eta):
    """As it stands in the clock s^2: with eta = 1 the reverse diffusion sampler of Song et al."""
    if now.alpha == 0 or after.sigma == 0:
        return reverse_sde._ancestral(before, now, after, eta)
    elapsed, scale = (
        1 - (after.sigma * now.alpha / (now.sigma * after.alpha)) ** 2,
        after.alpha / now.alpha,
    )
    gone = (1 + eta**2) / 2 * elapsed
    return scale * (1 - gone), after.alpha * gone, 0.0, scale * now.sigma * eta * math.sqrt(elapsed)


def test_the_noise_of_the_old_level_makes_ancestral_the_reverse_diffusion_sampler(monkeypatch):
    """Why no rate can tell that mutant of a first-order method where alpha(0) > 0: it is another method. (With a memory it is
    wrong.)"""
    monkeypatch.setattr(reverse_sde, "_renewed", _old_sigma)
    monkeypatch.setitem(reverse_sde.SDE_STEPS, "euler", _euler_maruyama)
    errors = [
        variance_errors(lambda times, m=m: ReverseSDE(m, grid=times), stk.EDM())
        for m in ("ancestral", "euler")
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)


# The right law as steps grow, from the path's own start, on the grids that users get

MANY = (200, 400, 800)
FROM_ALPHA_0 = [path for path in PATHS if float(path.alpha(0.0)) == 0]
WIDER = (1.5, 0.4)
"""Mean and standard deviation of the data."""


def final_errors(make, path, data=WIDER, counts=MANY):
    """Relative errors of the final variance by step count; the mean is exact."""
    alpha, sigma, errors = float(path.alpha(1.0)), float(path.sigma(1.0)), []
    for steps in counts:
        mean, variance = exact_moments(make(steps), path, data=data)
        assert mean == pytest.approx(alpha * data[0], abs=1e-10)
        errors.append(variance / ((alpha * data[1]) ** 2 + sigma**2) - 1)
    return errors


def converges(errors, order, counts=MANY):
    """At the stated rate, to 5 % (first order) or .5 % (second) at 800 steps, which leaves grids not made for it some room."""
    return slope(errors, counts) > order - 0.3 and abs(errors[-1]) < {1: 0.05, 2: 0.005}[order]


def law(method, path, eta, grid=None):
    return final_errors(lambda steps: ReverseSDE(method, steps, grid=grid, eta=eta), path)


@pytest.mark.parametrize(("path", "eta"), each_path_with(0.3, [0.0, 0.3, 1.0]), ids=name)
@pytest.mark.parametrize("method", METHODS)
def test_the_final_law_is_right_as_steps_grow(path, method, eta):
    errors = law(method, path, eta)
    assert converges(errors, ORDER[method]), (slope(errors, MANY), errors)


@pytest.mark.parametrize("path", FROM_ALPHA_0, ids=name)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("eta", [0.0, 0.03, 0.3, 1.0])
def test_the_final_law_is_right_after_equal_steps_from_alpha_0(path, method, eta):
    """The first levels then are in the ratios 0, 1/2, 2/3, ... whatever the number of steps: second order but for a logarithm."""
    errors = law(method, path, eta, "uniform")
    if ORDER[method] == 2:
        errors = [error / math.log(n) for error, n in zip(errors, MANY, strict=True)]
    assert converges(errors, ORDER[method]), (slope(errors, MANY), errors)


@pytest.mark.parametrize("method", METHODS[:3])
@pytest.mark.parametrize("path", FROM_ALPHA_0, ids=name)
def test_a_run_of_the_toolkit_has_that_law(path, method):
    """With eta = 0 a run is a line in its start, whose slope is the final standard deviation: no Monte Carlo."""
    field = gaussian(dim=1, mean=WIDER[0], std=WIDER[1]).noised(path)
    ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    low, high = (
        stk.sample(field, ReverseSDE(method, 400, eta=0.0), init=ends).final.flatten().tolist()
    )
    assert (low + high) / 2 == pytest.approx(WIDER[0], abs=1e-9)
    assert (high - low) / 2 == pytest.approx(WIDER[1], rel=0.01)


def _first_step_of_another_scale(before, now, after, eta):
    a, b, c, spread = reverse_sde._ancestral(before, now, after, eta)
    return (1.1 * a, b, c, spread) if now.alpha == 0 else (a, b, c, spread)


def _noise_off_by_sqrt_2(before, now, after, eta):
    a, b, c, spread = reverse_sde._ancestral(before, now, after, eta)
    return a, b, c, math.sqrt(2) * spread


@pytest.mark.parametrize(
    ("wrong", "eta"),
    [
        (_euler_maruyama, 0.0),
        (_euler_maruyama, 0.3),
        (_first_step_of_another_scale, 0.0),
        (_noise_off_by_sqrt_2, 0.3),
        (_noise_off_by_sqrt_2, 1.0),
    ],
)
def test_the_final_law_catches_wrong_scales_of_the_noise(monkeypatch, wrong, eta):
    monkeypatch.setitem(reverse_sde.SDE_STEPS, "ancestral", wrong)
    caught = [
        not converges(law("ancestral", stk.Linear(), eta, grid), 1) for grid in (None, "uniform")
    ]
    assert any(caught), caught


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_corrections_leave_the_final_law_their_own_share(eta):
    """However many steps: within r^2 / (1 - r^2) of the variance, and what the steps themselves leave."""
    snr = 0.16
    corrected, plain = (
        final_errors(
            lambda n, c=c: ReverseSDE("ancestral", n, eta=eta, corrector=c, snr=snr),
            stk.Linear(),
            counts=(800, 3200),
        )
        for c in (1, 0)
    )
    for with_it, without in zip(corrected, plain, strict=True):
        assert abs(with_it) < snr**2 / (1 - snr**2) + abs(without)


@pytest.mark.parametrize(
    ("method", "mutant"),
    [
        ("dpmpp_2m", _old_sigma),
        *((m, w) for m in ("ancestral", "ddim", "dpmpp_2m") for w in WRONG_STEPS[1:]),
    ],
)
def test_the_order_test_catches_wrong_steps(monkeypatch, method, mutant):
    monkeypatch.setattr(reverse_sde, "_renewed", mutant)
    errors = variance_errors(lambda times: ReverseSDE(method, grid=times), stk.EDM())
    assert not has_order(errors, ORDER[method]), (slope(errors), errors)


def test_the_order_test_catches_a_lost_memory_and_one_of_the_wrong_sign(monkeypatch):
    right = reverse_sde.SDE_STEPS["dpmpp_2m"]

    def backwards(before, now, after, eta):
        a, b, c, spread = right(before, now, after, eta)
        return a, b + 2 * c, -c, spread

    for wrong in (reverse_sde.SDE_STEPS["ancestral"], backwards):
        monkeypatch.setitem(reverse_sde.SDE_STEPS, "dpmpp_2m", wrong)
        errors = variance_errors(lambda times: ReverseSDE("dpmpp_2m", grid=times), stk.VP())
        assert not has_order(errors, 2), (slope(errors), errors)


class Reversed(ReverseSDE):
    """Asks the field at 1 - t."""

    def init(self, field, x, noise):
        state = super().init(field, x, noise)
        state.table[:, 0] = 1 - state.table[:, 0]
        return state


@pytest.mark.parametrize("path", PATHS, ids=name)
@pytest.mark.parametrize("method", METHODS)
def test_without_noise_it_is_the_probability_flow(path, method):
    twin = "dpmpp_2m" if method == "dpmpp_2m" else "euler"
    field = ring_mixture().noised(path)
    ours = stk.sample(
        field, ReverseSDE(method, 12, eta=0.0, denoise=True), chains=6, dtype=torch.float64
    ).final
    flow = stk.sample(
        field, stk.ProbabilityFlow(twin, 12, denoise=True), chains=6, dtype=torch.float64
    ).final
    if twin == "euler":
        assert torch.equal(ours, flow)
    torch.testing.assert_close(ours, flow, rtol=1e-12, atol=1e-12)


# A nonlinear field: samples against the exact law


def ring_z(x):
    """z scores of squared distances to the nearest mean (2 std^2 but for 1e-8), of squared radii and of each mode's share."""
    ring = ring_mixture()
    distance, mode = torch.cdist(x.double(), ring.means).min(1)
    shares = [mean_z((mode == k).double()[:, None], 1 / 8) for k in range(8)]
    near = mean_z(distance.square()[:, None], 2 * 0.25**2)
    radius = mean_z(x.square().sum(1)[:, None], 4 + 2 * 0.25**2)
    return torch.cat([near, radius, *shares])


@pytest.mark.thorough
@pytest.mark.parametrize(
    "path", slow_but([stk.VP(), stk.Linear(), stk.EDM()], stk.Linear()), ids=name
)
@pytest.mark.parametrize("method", slow_but(METHODS, "ancestral", "dpmpp_2m"))
def test_ring_after_200_steps(path, method):
    """4000 samples resolve 8 % of a mode's variance, in which the first-order methods are off by 4 at 200 steps."""
    solver = ReverseSDE(method, steps=200, denoise=True)
    draws = stk.sample(
        ring_mixture().noised(path), solver, chains=4000, seed=1, dtype=torch.float64
    )
    assert not draws.failures
    z = ring_z(draws.final)
    assert z.abs().max() < z_limit(len(z)), z


@pytest.mark.thorough
@pytest.mark.parametrize(
    "mutant", [pytest.param(m, marks=pytest.mark.slow) for m in WRONG_STEPS[1:]] + [Reversed]
)
def test_the_ring_catches_wrong_steps(monkeypatch, mutant):
    solver = ReverseSDE("ancestral", steps=200)
    if mutant is Reversed:
        solver = Reversed("ancestral", steps=200)
    else:
        monkeypatch.setattr(reverse_sde, "_renewed", mutant)
    draws = stk.sample(
        ring_mixture().noised(stk.VP()), solver, chains=4000, seed=1, dtype=torch.float64
    )
    z = ring_z(draws.final)
    assert z.abs().max() > 2 * z_limit(len(z)), z


# The corrector


def corrected_share(snr, corrections=2000, level=0.55):
    """By how much of itself the variance changes in corrections from the exact law, on Gaussian data, exactly."""
    solver = ReverseSDE("ancestral", grid=(0.5, level), corrector=corrections, snr=snr)
    path = stk.VP()
    alpha, sigma = (float(v) for v in path(level)[:2])
    exact = (alpha * STD) ** 2 + sigma**2
    mean, variance = exact_moments(solver, path, slice(1, None), start=level)
    assert mean == pytest.approx(alpha * MEAN, abs=1e-10)
    return variance / exact - 1


def test_corrections_leave_the_law_and_their_step_size_s_error():
    """The share is at most h / (2 s^2 - h), ULA's at the largest curvature, and falls with r^2."""
    for snr in (0.04, 0.08, 0.16):
        assert 0 < corrected_share(snr) < snr**2 / (1 - snr**2)
    assert corrected_share(0.08) / corrected_share(0.04) == pytest.approx(4, rel=0.1)


def test_corrections_mend_a_wrong_law():
    path, corrections = stk.VP(), 50
    for rule in ("level", "sample"):
        solver = ReverseSDE("ancestral", steps=12, corrector=corrections, snr=0.16, rule=rule)
        rough = ReverseSDE("ancestral", steps=12)
        field = gaussian(dim=64, mean=MEAN, std=STD).noised(path)
        mended, plain = (
            stk.sample(field, s, chains=50, dtype=torch.float64).final.var(0).mean()
            for s in (solver, rough)
        )
        assert abs(mended / STD**2 - 1) < 0.5 * abs(plain / STD**2 - 1)


# Corrections that are too few for a power


def standard(path):
    """A field whose data are N(0, 1)."""
    return gaussian(dim=1).noised(path)


POWERS = {
    "tempered by 2": lambda f: stk.tempered(f, 2.0),
    "tempered by 4": lambda f: stk.tempered(f, 4.0),
    "of two": lambda f: stk.product(f, f),
    "of six": lambda f: stk.product(*[f] * 6),
    "of one tempered": lambda f: stk.product(f, stk.tempered(f, 4.0)),
    "in guidance": lambda f: stk.guided(stk.tempered(f, 4.0), 1.0, stk.tempered(f, 2.0)),
}
FEW_AND_MANY = {"few": (1, 0.16), "some": (6, 0.16), "many": (60, 0.16), "too large": (3, 0.7)}


def read_off(path, solver, power):
    """The variance at the end of a run for a power of N(0, 1), in units of the right one, by what steps make of a unit."""
    field = resolve(stk.tempered(standard(path), 1 / power), {"denoise"}, timed=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    v = field.base.std**2 * float(solver.start(field, one, None)) ** 2
    for first, *corrections in solver._intervals(field):
        for t, a, b, _, spread, _ in (first, *corrections[:1]):
            square = float(a * one + b * field.denoise(one, t)) ** 2
            for _ in range(1 if (t, a) == first[:2] else len(corrections)):
                v = square * v + spread**2
    return v * power


@pytest.mark.parametrize("path", [stk.VP(), stk.EDM()], ids=name)
@pytest.mark.parametrize("of", POWERS)
def test_corrections_that_leave_another_width_are_told(of, path, recwarn):
    """Without a word the variance of a power ended 3 times too large with one correction a level, or 200 times."""
    for corrector, snr in FEW_AND_MANY.values():
        solver = ReverseSDE("ancestral", steps=24, corrector=corrector, snr=snr)
        field = POWERS[of](standard(path))
        off = [read_off(path, solver, power) for power in {*exponents(field)}]
        bound = resolve(field, {"denoise"}, timed=True)
        x = torch.zeros(1, 1, dtype=torch.float64)
        recwarn.clear()
        solver.init(bound, x, Noise(0, 1, dtype=torch.float64))
        told = [str(w.message) for w in recwarn]
        assert bool(told) == any(not 0.75 < v < 1.25 for v in off), (corrector, snr, off)
        assert all("the variance of this power or product of fields ends wrong" in t for t in told)


@pytest.mark.filterwarnings("ignore:ReverseSDE")
@pytest.mark.parametrize("of", ["tempered by 4", "of two"])
def test_the_width_by_steps_of_the_sample_s_own_size(of):
    solver = ReverseSDE("ancestral", steps=10, corrector=4, rule="sample")
    field, n = POWERS[of](gaussian(dim=256).noised(stk.VP())), 16
    power = exponents(field)[1]
    draws = stk.sample(field, solver, chains=n, dtype=torch.float64).final
    bound = resolve(field, {"denoise"}, timed=True)
    rows = [row for rows in solver._intervals(bound) for row in rows]
    found = float(draws.square().mean()) * power
    assert found == pytest.approx(solver._width(bound, rows, power), rel=0.15)


def moved(solver, field, x, seed=0):
    """Positions at the grid's last level moved by its corrections."""
    noise = Noise(seed, len(x), dtype=torch.float64)
    bound = resolve(field, solver.needs, timed=True)
    state = solver.init(bound, x, noise)
    state = state._replace(step=state.step + 1)
    for _ in range(solver.corrector):
        state, _ = solver.step(bound, state, noise)
    return state.x


def level_draws(mixture, path, t, n, seed=5):
    noise = Noise(seed, n, dtype=torch.float64)
    alpha, sigma = (float(v) for v in path(t)[:2])
    return alpha * mixture.draw(n, noise) + sigma * noise.normal(
        1, Stream.USER, mixture.event_shape
    )


def excess(x, path, t):
    """By how much of itself the variance about the exact mean differs from the exact one."""
    alpha, sigma = (float(v) for v in path(t)[:2])
    return float((x - alpha * MEAN).square().mean() / ((alpha * STD) ** 2 + sigma**2) - 1)


@pytest.mark.thorough
@pytest.mark.parametrize(("rule", "n", "allowed"), [("level", 2, 0.01), ("sample", 256, 0.02)])
def test_exact_draws_stay_exact_under_corrections(rule, n, allowed):
    """With 30 of them, within the share that the step size and, for "sample", 2/n of the variance account for."""
    path, t = stk.Cosine(), 0.6
    data = gaussian(dim=n, mean=MEAN, std=STD)
    solver = ReverseSDE("ancestral", grid=(0.5, t), corrector=30, snr=0.1, rule=rule)
    x = level_draws(data, path, t, 120_000 // n)
    before, after = excess(x, path, t), excess(moved(solver, data.noised(path), x), path, t)
    noise = z_limit() * math.sqrt(2 / x.numel())
    assert abs(before) < noise
    assert abs(after) < allowed + noise
    doubled = Loud("ancestral", grid=(0.5, t), corrector=30, snr=0.1, rule=rule)
    assert abs(excess(moved(doubled, data.noised(path), x), path, t)) > 3 * (allowed + noise)


class Loud(ReverseSDE):
    """Corrections with sqrt(4 h) z where sqrt(2 h) z belongs."""

    def _correction(self, at, entries):
        t, a, b, c, spread, reach = super()._correction(at, entries)
        return t, a, b, c, math.sqrt(2) * spread, reach


class BatchNorm(ReverseSDE):
    """The step size of the whole batch: Song et al.'s own code."""

    def step(self, field, state, noise):
        t, a, b, c, spread, reach = reverse_sde.read_row(state.table, state.step)
        x, z = (
            state.x,
            noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype),
        )
        mean = a * x + b * field.denoise(x, t) + c * state.last
        part = (reach / (mean - x).square().sum(1).mean()).clamp(max=1)
        return state._replace(
            x=torch.lerp(x, mean, part) + part.sqrt() * spread * z, step=state.step + 1
        ), {}


def test_a_correction_s_step_size_is_the_sample_s_own():
    """One step of the rule "sample" as it is written, in y and with the score, here with a bound that one row meets."""
    path, t, snr = stk.VP(), 0.6, 0.3
    alpha, sigma = (float(v) for v in path(t)[:2])
    s, field = sigma / alpha, gaussian(dim=3, mean=MEAN, std=STD).noised(path)
    x = alpha * MEAN + torch.tensor(
        [[0.01, 0.0, 0.02], [1.0, -0.5, 2.0], [-3.0, 2.0, 0.1]], dtype=torch.float64
    )
    solver = ReverseSDE("ancestral", grid=(0.5, t), corrector=1, snr=snr, rule="sample")
    z, y, score = (
        Noise(0, 3, dtype=torch.float64).normal(1, Stream.PROPOSAL, (3,)),
        x / alpha,
        alpha * field.score(x, t),
    )
    h = 2 * snr**2 * 3 / score.square().sum(1, keepdim=True)
    assert (h > s**2).flatten().tolist() == [True, False, False]
    h = h.clamp(max=s**2)
    torch.testing.assert_close(
        moved(solver, field, x),
        alpha * (y + h * score + torch.sqrt(2 * h) * z),
        rtol=1e-10,
        atol=1e-10,
    )


ELEMENTWISE = stk.Diffusion(lambda x, t: torch.tanh(x), (2, 3, 3), stk.VP(), "data")
VARIANTS = [
    *(ReverseSDE(m, steps=7) for m in METHODS),
    *(ReverseSDE("ancestral", steps=7, corrector=2, rule=r) for r in ("level", "sample")),
]


def independent(solver):
    whole = stk.sample(ELEMENTWISE, solver, chains=9, seed=3).final
    parts = [stk.sample(ELEMENTWISE, solver, chains=9, seed=3, batch=b).final for b in (1, 4)]
    return all(torch.equal(whole, p) for p in parts)


@pytest.mark.parametrize("solver", VARIANTS, ids=repr)
def test_a_sample_is_the_same_alone_and_in_any_batch(solver):
    assert independent(solver)


def test_a_norm_over_the_batch_is_caught():
    assert not independent(BatchNorm("ancestral", steps=7, corrector=2, rule="sample"))


@pytest.mark.parametrize(("path", "shape"), in_turn(PATHS, [(), (3,), (1, 4, 4)]), ids=named)
def test_ends_are_finite_and_the_last_step_is_the_denoised_mean(path, shape):
    field = stk.Diffusion(lambda x, t: torch.tanh(x), shape, path, "data")
    for solver in VARIANTS:
        solver = ReverseSDE(
            solver.method, 7, corrector=solver.corrector, rule=solver.rule, denoise=True
        )
        draws = stk.sample(field, solver, chains=4, keep="all", dtype=torch.float64)
        assert draws.x.shape == (4, 7, *shape)
        assert not draws.failures
        assert bool(draws.x.isfinite().all())
        scale = float(path.alpha(1.0))
        torch.testing.assert_close(
            draws.final, scale * torch.tanh(draws.x[:, -2]), rtol=1e-13, atol=0
        )


@pytest.mark.parametrize("solver", VARIANTS, ids=repr)
def test_float32_against_float64(solver):
    field = ring_mixture().noised(stk.VP())
    a, b = (
        stk.sample(field, solver, chains=64, dtype=d).final for d in (torch.float32, torch.float64)
    )
    assert float((a - b).abs().median()) < 1e-5


class Given:
    """The same noise at every step."""

    def __init__(self, z):
        self.z = z

    def normal(self, step, stream, shape, dtype):
        return self.z


@pytest.mark.compiled
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, on its way through the compiler
@pytest.mark.parametrize("solver", [VARIANTS[3], VARIANTS[5]], ids=repr)
def test_one_compiled_step_serves_every_row(solver):
    bound = resolve(ELEMENTWISE, solver.needs, timed=True)
    noise = Given(Noise(0, 4).normal(0, Stream.PROPOSAL, (2, 3, 3)))
    compiled = torch.compile(
        lambda state: solver.step(bound, state, noise)[0], fullgraph=True, dynamic=False
    )
    eager = solver.init(bound, noise.z, noise)
    state = eager
    with torch.no_grad():
        for _ in solver.milestones(bound):
            eager, state = solver.step(bound, eager, noise)[0], compiled(state)
    torch.testing.assert_close(state.x, eager.x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", [VARIANTS[3], VARIANTS[5]], ids=repr)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, solver):
    left = [5]

    def net(x, t):
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("stopped")
        return torch.tanh(x)

    field, saved = stk.Diffusion(net, (4,), stk.VP(), "data"), tmp_path / "run.ckpt"
    with pytest.raises(RuntimeError, match="stopped"):
        stk.sample(field, solver, chains=6, checkpoint=saved)
    resumed = stk.sample(field, solver, chains=6, checkpoint=saved).final
    assert torch.equal(resumed, stk.sample(field, solver, chains=6).final)


def test_evaluations_are_counted_and_stay_inside_the_interval():
    seen = []
    field = stk.Diffusion(lambda x, t: (seen.append(t), -x)[1], (2,), stk.VP(), "noise")
    for solver in VARIANTS:
        seen.clear()
        draws = stk.sample(field, solver, chains=3)
        times = torch.stack(seen)
        assert draws.cost["denoise"] == times.numel() == 3 * (7 + 6 * solver.corrector)
        assert 0 <= float(times.min()) <= float(times.max()) <= 1


def test_a_row_that_fails_is_flagged_and_the_others_go_on():
    field = stk.Diffusion(
        lambda x, t, bad: torch.where(bad[:, None] & (t[:, None] > 0.5), torch.nan, torch.tanh(x)),
        (2,),
        stk.VP(),
        "data",
    )
    bad = torch.tensor([False, True, False])
    for solver in VARIANTS:
        draws = stk.sample(field, solver, chains=3, cond={"bad": bad})
        well = stk.sample(field, solver, chains=3, cond={"bad": torch.zeros(3, dtype=torch.bool)})
        assert draws.status.tolist() == [0, int(stk.Status.NONFINITE), 0]
        assert bool(draws.final.isfinite().all())
        assert torch.equal(draws.final[[0, 2]], well.final[[0, 2]])


def test_a_grid_that_starts_later_starts_from_less_noise():
    path = stk.VE(0.01, 50.0)
    draws = stk.sample(
        DATA.noised(path), ReverseSDE(grid=(0.5, 0.75, 1.0)), chains=3, seed=2, dtype=torch.float64
    )
    start = stk.Noise(2, 3, dtype=torch.float64).normal(0, Stream.START, (1,)) * float(
        path.sigma(0.5)
    )
    again = stk.sample(DATA.noised(path), ReverseSDE(grid=(0.5, 0.75, 1.0)), init=start, seed=2)
    torch.testing.assert_close(draws.final, again.final, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (UnknownName, {"method": "heun"}),
        (UnknownName, {"rule": "batch"}),
        (InvalidArgument, {"steps": 0}),
        (InvalidArgument, {"eta": -0.1}),
        (InvalidArgument, {"eta": math.nan}),
        (InvalidArgument, {"snr": 0.0}),
        (InvalidArgument, {"method": "ddim", "eta": 1.1}),
        (InvalidArgument, {"corrector": 1}),
        (InvalidArgument, {"snr": 1.0}),
        (InvalidArgument, {"grid": (0.5, 0.2)}),
    ],
)
def test_wrong_arguments(error, arguments):
    with pytest.raises(error):
        ReverseSDE(**arguments)


def test_a_velocity_without_a_path_is_refused():
    field = stk.Velocity(lambda x, t: -x, (2,), base=torch.zeros(1, 2))
    with pytest.raises(MissingCapability):
        stk.sample(field, ReverseSDE(), chains=2)
    with pytest.raises(InvalidArgument, match="closing"):
        stk.sample(DATA.noised(stk.EDM()), ReverseSDE(steps=1, denoise=True), chains=2)
