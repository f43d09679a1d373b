"""The probability flow against exact maps: values, orders, adaptive tolerance, end points, and rows left alone."""

import functools
import itertools
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

import scoretk as stk
from scoretk.models.targets.mixture import gaussian, ring_mixture
from scoretk.ode import grids, tableaus
from scoretk.ode.grids import GRIDS
from tests.marks import in_turn, slow_but, slow_rows_but
from tests.test_fields import PATHS

FIXED = tuple(tableaus.GRID_RULES)
ORDER = {name: rule.order for name, rule in tableaus.GRID_RULES.items()}
ENDS = torch.tensor([[80.0, 0.0], [-5.0, 7.0]], dtype=torch.float64)
MAPPED = torch.tensor([[1.97292973, 0.0], [-0.92075927, 1.05419250]], dtype=torch.float64)


@pytest.mark.thorough
@pytest.mark.parametrize("path", [stk.VE(0.002, 80.0), stk.EDM()], ids=repr)
def test_known_values_on_the_ring(path):
    solver = stk.ProbabilityFlow("dopri5", rtol=1e-9, atol=1e-9)
    draws = stk.sample(ring_mixture().noised(path), solver, init=ENDS)
    torch.testing.assert_close(draws.final, MAPPED, rtol=0, atol=2e-7)


def test_errors_on_the_ring_are_those_of_the_best():
    """Median error of 64 points by evaluations, on the rho = 7 grid .002..80 then 0, at most that of the best peers."""
    field = ring_mixture().noised(stk.EDM())
    x = 80 * torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = stk.sample(
        field, stk.ProbabilityFlow("dopri8", rtol=1e-11, atol=1e-11, denoise=True), init=x
    ).final
    for method, steps, evaluations, error in (
        ("heun", 18, 35, 0.042),
        ("heun", 36, 71, 8e-3),
        ("trapezoid", 18, 35, 2.5e-3),
        ("trapezoid", 36, 71, 7e-4),
        ("rk4", 10, 37, 1e-4),
        ("dpmpp_2m", 18, 18, 0.069),
        ("dpmpp_2m", 36, 36, 0.0115),
        ("euler", 18, 18, 0.115),
        ("adams_3", 10, 10, 0.011),
        ("adams_3", 20, 20, 7e-4),
        ("adams_3", 36, 36, 1e-4),
        ("adams_3", 72, 72, 1.5e-5),
        ("adams_4", 20, 20, 6e-4),
    ):
        draws = stk.sample(field, stk.ProbabilityFlow(method, steps=steps, denoise=True), init=x)
        assert draws.cost["velocity"] == 64 * evaluations
        assert float((draws.final - exact).norm(dim=1).median()) < error


def linear_velocity(x, t):
    """The ring's velocity D - e on the linear path, also where there is no noise left."""
    alpha, sigma = t[:, None, None], 1 - t[:, None, None]
    means = ring_mixture().means
    off = x[:, None] - alpha * means
    variance = (0.25 * alpha) ** 2 + sigma**2
    shares = torch.softmax(-off.square().sum(-1, keepdim=True) / (2 * variance), 1)
    return (shares * (means + (0.25**2 * alpha - sigma) / variance * off)).sum(1)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "most"),
    slow_rows_but([("rk4_38", 3e-6), ("ralston_4", 1.5e-6)], ("ralston_4", 1.5e-6)),
)
def test_four_stages_keep_their_order_to_the_end(method, most, monkeypatch):
    """72 evaluations on the linear path, to sigma = 0, of a velocity and of a denoiser, which is not asked there."""
    ring, field = ring_mixture().noised(stk.Linear()), stk.Velocity(linear_velocity, (2,))
    x = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = stk.sample(ring, stk.ProbabilityFlow("dopri5", rtol=1e-11, atol=1e-11), init=x).final

    def error(field):
        tableaus._along.cache_clear()
        draws = stk.sample(field, stk.ProbabilityFlow(method, steps=18, grid="uniform"), init=x)
        return float((draws.final - exact).norm(dim=1).median()), draws.cost

    kept, cost = error(field)
    assert kept < most
    assert cost["velocity"] == 64 * 72
    assert error(ring)[0] == pytest.approx(kept, rel=1e-3)
    heun = tableaus.RungeKutta(
        3, tableaus.LINEAR, (0.0, 1 / 3, 2 / 3), ((1 / 3,), (0.0, 2 / 3), (1 / 4, 0.0, 3 / 4))
    )
    lowered = replace(tableaus.GRID_RULES[method], closing=heun)
    monkeypatch.setitem(
        tableaus.GRID_RULES, method, lowered
    )  # mutant: a closing step of third order with a larger error
    assert error(ring)[0] > 5 * kept
    tableaus._along.cache_clear()


ENDLESS = {
    "velocity": None,
    "base": torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1),
}
OF_VELOCITY = [name for name, method in tableaus.GRID_RULES.items() if method.of_velocity]


@pytest.mark.parametrize("base", ENDLESS)
@pytest.mark.parametrize(
    "method", [*OF_VELOCITY, "dopri5", "tsit5", "bosh3", "dopri8", "fehlberg2", "adaptive_heun"]
)
def test_a_velocity_without_a_value_at_the_end_is_not_asked_there(method, base, monkeypatch):
    """`(data - x) / (1 - t)`, as a model of the data makes it: on the linear path, and from a base of its own."""
    latest = []

    def velocity(x, t):
        latest.append(float(t.max()))
        return (0.5 - x) / (1 - t[:, None])

    field = stk.Velocity(velocity, (2,), ENDLESS[base])
    solver = (
        stk.ProbabilityFlow(method, 8)
        if method in tableaus.GRID_RULES
        else stk.ProbabilityFlow(method)
    )
    draws = stk.sample(field, solver, chains=5)
    assert draws.failures == {}
    assert max(latest) < 1
    torch.testing.assert_close(draws.final, torch.full((5, 2), 0.5))
    if base == "base" and getattr(tableaus.GRID_RULES.get(method), "closing", None):
        tableaus._along.cache_clear()
        monkeypatch.setitem(
            tableaus.GRID_RULES, method, replace(tableaus.GRID_RULES[method], closing=None)
        )
        assert stk.sample(field, solver, chains=5).failures == {
            "NONFINITE": 5
        }  # mutant: the last step is like the others
        tableaus._along.cache_clear()


@pytest.mark.parametrize("method", ["trapezoid", "rk4", "rk4_38", "ralston_4", "heun", "adams_3"])
def test_a_velocity_model_is_denoised_where_the_grid_ends_early(method):
    field, options = stk.Velocity(linear_velocity, (2,)), {"grid": (0.0, 0.3, 0.6, 0.8)}
    plain, denoised = (
        stk.sample(
            field,
            stk.ProbabilityFlow(method, denoise=d, **options),
            chains=4,
            seed=1,
            dtype=torch.float64,
        )
        for d in (False, True)
    )
    assert denoised.cost["velocity"] > plain.cost["velocity"]
    assert not torch.equal(denoised.final, plain.final)


def gaussian_map(path, x, mean, s, t0, t1):
    """The exact flow of N(mean, s^2) data, from x at t0 to t1."""
    a0, s0, a1, s1 = (float(v) for t in (t0, t1) for v in path(t)[:2])
    gain = math.sqrt((a1**2 * s**2 + s1**2) / (a0**2 * s**2 + s0**2))
    return a1 * mean + (x - a0 * mean) * gain


HIGH, LOW = 50.0, 0.05


@pytest.fixture(scope="module")
def flow_of_the_ring():
    """16 positions `x/alpha` at sigma/alpha = 50 and, by DOP853 in sigma/alpha, at .05: the same on every path."""
    ring, one = ring_mixture(), torch.ones((), dtype=torch.float64)
    start = HIGH * torch.randn(
        16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )

    def slope(level, y):
        y = torch.from_numpy(y).reshape(16, 2)
        return ((y - ring._denoise(y, one, level * one)) / level).flatten().numpy()

    solved = solve_ivp(
        slope, (HIGH, LOW), start.flatten().numpy(), method="DOP853", rtol=3e-14, atol=1e-13
    )
    return start, torch.from_numpy(solved.y[:, -1]).reshape(16, 2)


def solved(field, method, steps, start):
    """`x/alpha` at sigma/alpha = .05, on a smooth grid in `w` with short first steps, which are of low order."""
    a, b = 1 / (1 + HIGH), 1 / (1 + LOW)
    w = a + (b - a) * torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 1.5
    times = field.path.t(2 * (torch.log(w) - torch.log1p(-w)))
    x = field.path.alpha(times[0]) * start
    return stk.sample(
        field, stk.ProbabilityFlow(method, grid=times), init=x
    ).final / field.path.alpha(times[-1])


def order(method, flow, field, counts=(160, 320)):
    start, end = flow
    errors = [float((solved(field, method, n, start) - end).square().mean().sqrt()) for n in counts]
    return -_slope(counts, errors), errors


WITH_MUTANTS = ("dpmpp_2m", "adams_3", "multistep_3", "noise_multistep_2", "unipc_2")


OF_EACH_KIND = ("heun", "rk4", "dpmpp_2m", "noise_multistep_2", "adams_pc_3")


# Each rule's own conditions of order, and steps, are in `tests/laws/test_rules.py`.
@pytest.mark.thorough
@pytest.mark.parametrize("method", slow_but(FIXED, *OF_EACH_KIND, *WITH_MUTANTS))
def test_order_of_convergence(method, flow_of_the_ring):
    """Slope of log error against log step count on the ring, between sigma/alpha 50 and .05."""
    # multistep_4 falls faster at first
    counts = (160, 320, 640) if method == "multistep_4" else (160, 320)
    found, errors = order(method, flow_of_the_ring, ring_mixture().noised(stk.Linear()), counts)
    assert abs(found - ORDER[method]) < 0.25, (found, errors)


@functools.cache
def on_the_linear_path(method, flow):
    return solved(ring_mixture().noised(stk.Linear()), method, 24, flow[0])


# Every method on one path, and one of each kind of step on every path.
@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param(
            method,
            path,
            id=f"{method}-{type(path).__name__}",
            marks=() if isinstance(path, stk.VP) or method == kind else pytest.mark.slow,
        )
        for path, kind in zip(PATHS, itertools.cycle(OF_EACH_KIND), strict=False)
        for method in FIXED
    ],
)
def test_the_error_is_the_same_on_every_path(path, method, flow_of_the_ring):
    """In `x/alpha`, between the same levels, all paths are one problem: what holds on the linear one holds on each."""
    if isinstance(path, stk.Tabulated):
        path = stk.Tabulated(torch.linspace(0.9999, 2e-4, 1000, dtype=torch.float64))
    here = solved(ring_mixture().noised(path), method, 24, flow_of_the_ring[0])
    there = on_the_linear_path(method, flow_of_the_ring)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-9)


def _slope(counts, errors):
    a, b = torch.tensor(counts).double().log(), torch.tensor(errors).double().log()
    return float(((a - a.mean()) * (b - b.mean())).sum() / ((a - a.mean()) ** 2).sum())


def sigma_of_the_wrong_time(self, now, after):
    return self.scale(after) / self.scale(now), (
        after.alpha - now.alpha
    ) * after.sigma / self.scale(now)


def no_history(nodes, now, after, form):
    return [1.0] + [0.0] * (len(nodes) - 1)


class Backwards:
    """A field whose time runs the wrong way between two levels."""

    def __init__(self, field):
        self.field, self.path, self.event_shape, self.predicts = (
            field,
            field.path,
            field.event_shape,
            "data",
        )

    def at(self, t):
        return self.field.at(t)

    def predict(self, x, t, **cond):
        return self.field.predict(x, 1 - t)


@pytest.mark.thorough
@pytest.mark.parametrize("method", slow_but(WITH_MUTANTS, "dpmpp_2m"))
def test_the_order_test_catches_wrong_variants(method, flow_of_the_ring, monkeypatch):
    """sigma of one time where the other's belongs; no history; a field whose time runs backwards."""
    field = ring_mixture().noised(stk.Linear())
    assert abs(order(method, flow_of_the_ring, Backwards(field))[0] - ORDER[method]) > 0.5
    tableaus._along.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(tableaus.Form, "step", sigma_of_the_wrong_time)
        assert not abs(order(method, flow_of_the_ring, field)[0] - ORDER[method]) < 0.5
    wrong = replace(tableaus.GRID_RULES[method], mean=no_history)
    monkeypatch.setitem(tableaus.GRID_RULES, method, wrong)
    tableaus._along.cache_clear()
    assert abs(order(method, flow_of_the_ring, field)[0] - ORDER[method]) > 0.5
    tableaus._along.cache_clear()


KUTTA = {"rk4_38": (1 / 3, 2 / 3), "ralston_4": (0.4, (14 - 3 * math.sqrt(5)) / 16)}


def kutta(c2, c3):
    """All rules of fourth order with four stages at 0, c2, c3, 1: `(a32, a42, a43)` and the weights of the step."""
    both = 6 * c2 * c3 - 4 * (c2 + c3) + 3
    a32 = c3 * (c3 - c2) / (2 * c2 * (1 - 2 * c2))
    a42 = (1 - c2) * (c2 + c3 - 1 - (2 * c3 - 1) ** 2) / (2 * c2 * (c3 - c2) * both)
    a43 = (1 - 2 * c2) * (1 - c2) * (1 - c3) / (c3 * (c3 - c2) * both)
    nodes = np.array([0, c2, c3, 1])
    return (a32, a42, a43), np.linalg.solve(
        np.vander(nodes, increasing=True).T, [1, 1 / 2, 1 / 3, 1 / 4]
    )


def textbook(method, levels, x, mean, std):
    """Every method on N(mean, std^2) data on a VE path, in floats, from its own equations: x at the last level.

    Multistep: the polynomial in `w = 1/(1 + s)` through past predictions, integrated by adaptive quadrature in log s.
    """

    def data(y, s):
        return mean + (y - mean) * std**2 / (std**2 + s**2)

    def noise(y, s):
        return (y - data(y, s)) / s

    def in_w(position, w):  # X = x / (1 + s) and its slope D - e in w
        s = (1 - w) / w
        return data(position / w, s) - noise(position / w, s)

    rule = tableaus.GRID_RULES[method]
    if isinstance(rule, tableaus.RungeKutta):
        for s, s_after in pairwise(levels):
            if method == "heun":
                k1 = noise(x, s)
                x += (s_after - s) * (k1 + noise(x + (s_after - s) * k1, s_after)) / 2
                continue
            w, h = 1 / (1 + s), 1 / (1 + s_after) - 1 / (1 + s)
            y = x * w
            k1 = in_w(y, w)
            if method == "trapezoid":
                y += h * (k1 + in_w(y + h * k1, w + h)) / 2
            elif method == "midpoint":
                y += h * in_w(y + h * k1 / 2, w + h / 2)
            elif method in KUTTA:
                c2, c3 = KUTTA[method]
                (a32, a42, a43), b = kutta(c2, c3)
                k2 = in_w(y + h * c2 * k1, w + h * c2)
                k3 = in_w(y + h * ((c3 - a32) * k1 + a32 * k2), w + h * c3)
                k4 = in_w(y + h * ((1 - a42 - a43) * k1 + a42 * k2 + a43 * k3), w + h)
                y += h * (b @ np.array([k1, k2, k3, k4]))
            elif method == "rk4":
                k2 = in_w(y + h * k1 / 2, w + h / 2)
                k3 = in_w(y + h * k2 / 2, w + h / 2)
                y += h * (k1 + 2 * k2 + 2 * k3 + in_w(y + h * k3, w + h)) / 6
            else:  # by its own numbers, which `test_registry` holds to the order conditions
                slopes = [k1]
                for c, weights in zip(rule.nodes[1:], rule.weights, strict=False):
                    slopes.append(in_w(y + h * np.dot(weights, slopes), w + h * c))
                y += h * np.dot(rule.weights[-1], slopes)
            x = y / (w + h)
        return x
    if method == "dpmpp_2m":
        old = None
        for i, (s, s_after) in enumerate(pairwise(levels)):
            now = data(x, s)
            h = math.log(s / s_after)
            r = math.log(levels[i - 1] / s) / h if i else 1.0
            used = now if old is None else (1 + 1 / (2 * r)) * now - old / (2 * r)
            x, old = s_after / s * x - math.expm1(-h) * used, now
        return x
    form, corrected = method.rpartition("_")[0], "pc" in method
    k = int(method[-1]) if method != "euler" else 1

    def advanced(y, s, s_after, history):
        """y at s taken to s_after with the polynomial through `history`, pairs (level, prediction)."""
        w = np.array([1 / (1 + level) for level, _ in history])
        fit = np.linalg.solve(np.vander(w - w[0]), [value for _, value in history])

        def at(v):
            return float(np.polyval(fit, 1 / (1 + math.exp(v)) - w[0]))

        ends, exact = (math.log(s), math.log(s_after)), {"epsabs": 1e-14, "epsrel": 1e-13}
        if form in ("multistep", "unipc", ""):  # d(y/s) = D d(1/s)
            return s_after * (y / s + quad(lambda v: -at(v) * math.exp(-v), *ends, **exact)[0])
        if form == "noise_multistep":  # dy = e ds
            return y + quad(lambda v: at(v) * math.exp(v), *ends, **exact)[0]
        change = quad(lambda v: -at(v) * math.exp(v) / (1 + math.exp(v)) ** 2, *ends, **exact)[0]
        return (y / (1 + s) + change) * (1 + s_after)

    predict = {"noise_multistep": noise, "adams": lambda y, s: data(y, s) - noise(y, s)}
    predict["adams_pc"] = predict["adams"]
    history, before = [], None
    for i, (s, s_after) in enumerate(pairwise(levels)):
        history.insert(0, (s, predict.get(form, data)(x, s)))
        if i and (corrected or i < k):  # the step before once more, from where it began
            x = advanced(before, levels[i - 1], s, history[: k + corrected])
        before, x = x, advanced(x, s, s_after, history[:k])
    return x


@pytest.mark.parametrize("method", FIXED)
def test_every_method_is_its_textbook_recursion_on_gaussian_data(method):
    """Scalar events, uneven steps, a mean: to 1e-10, so that no error of a distribution can hide."""
    levels = [
        1 / w - 1 for w in (0.05, 0.12, 0.2, 0.27, 0.36, 0.44, 0.53, 0.6, 0.69, 0.77, 0.84, 0.9)
    ]
    path, mean, std = stk.VE(0.1, 20.0), 0.7, 0.5
    field = stk.Diffusion(
        lambda x, t: mean + (x - mean) * std**2 / (std**2 + path.sigma(t) ** 2), (), path, "data"
    )
    times = path.t(-2 * torch.tensor(levels, dtype=torch.float64).log()).clamp(0, 1)
    x = torch.tensor([-21.0, 4.0, 0.3], dtype=torch.float64)
    final = stk.sample(field, stk.ProbabilityFlow(method, grid=times), init=x).final
    exact = torch.tensor(
        [textbook(method, levels, v, mean, std) for v in x.tolist()], dtype=torch.float64
    )
    torch.testing.assert_close(final, exact, rtol=0, atol=1e-10)


@functools.cache
def from_end_to_end(path):
    """Eight starts on the ring's flow, and where they end."""
    x = float(path.sigma(0.0)) * torch.randn(
        8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    solver = stk.ProbabilityFlow("adams_pc_3", 400, denoise=True)
    return x, stk.sample(ring_mixture().noised(path), solver, init=x).final


@pytest.mark.parametrize("method", FIXED)
def test_ends_are_ordinary_points(method):
    """From alpha = 0, to sigma = 0, with tiny and with very long steps: finite, and (where the method can) near the truth."""
    uneven = [0.0, 1e-9, 2e-9, 0.3, 0.3 + 1e-12, 0.6, 0.9, 0.99, 1 - 1e-7, 1.0]
    for path in (stk.Linear(), stk.VP(), stk.EDM())[: 3 if method in OF_EACH_KIND else 1]:
        field, x, exact = ring_mixture().noised(path), *from_end_to_end(path)
        for grid, steps, bound in (
            ("logistic", 24, 0.1),
            (uneven, None, 2.0),
            ([0.0, 1.0], None, 4.0),
        ):
            final = stk.sample(
                field, stk.ProbabilityFlow(method, steps, grid, denoise=True), init=x
            ).final
            assert bool(final.isfinite().all())
            if (
                method != "heun" or grid == "logistic"
            ):  # Heun's method in sigma/alpha is not made for such long steps
                assert float((final - exact).norm(dim=1).max()) < bound, (path, grid)


@pytest.mark.parametrize("path", slow_but(PATHS, stk.Linear()), ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("method", slow_but(FIXED, *OF_EACH_KIND, *WITH_MUTANTS))
def test_the_final_law_is_right_from_the_path_s_own_start(path, method):
    """Equal steps, from alpha = 0 too: on Gaussian data a run is a line in its start, its slope the final std. No Monte Carlo."""
    mean, std = 1.5, 0.4
    (a0, s0), (a1, s1) = ((float(v) for v in path(t)[:2]) for t in (0.0, 1.0))
    start = a0 * mean + math.hypot(a0 * std, s0) * torch.tensor(
        [[-1.0], [1.0]], dtype=torch.float64
    )
    field = gaussian(dim=1, mean=mean, std=std).noised(path)
    low, high = (
        stk.sample(field, stk.ProbabilityFlow(method, 100, "uniform"), init=start)
        .final.flatten()
        .tolist()
    )
    assert (low + high) / 2 == pytest.approx(a1 * mean, abs=1e-9)
    assert (high - low) / 2 == pytest.approx(
        math.hypot(a1 * std, s1), rel={1: 0.08, 2: 0.03}.get(ORDER[method], 0.02)
    )


def second_order_to_the_end(nodes, now, after, form):
    """`midpoint_mean` without first order on the step to sigma = 0, which it takes to end at a small level."""
    after = after._replace(sigma=max(after.sigma, 1e-9))
    return (
        [1.0]
        if len(nodes) == 1 or nodes[1].alpha == 0
        else tableaus.midpoint_mean(nodes, now, after, form)
    )


@pytest.mark.thorough
def test_order_is_lowered_on_long_steps_and_at_the_end(monkeypatch):
    """Without it the step to sigma = 0, and one from a middling level, put a wild extrapolation into the sample."""

    def error(method, grid):
        field = ring_mixture().noised(stk.Linear())
        x = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        exact = stk.sample(field, stk.ProbabilityFlow("adams_pc_3", 400), init=x).final
        tableaus._along.cache_clear()
        final = stk.sample(field, stk.ProbabilityFlow(method, 48, grid), init=x).final
        tableaus._along.cache_clear()
        return float((final - exact).norm(dim=1).median())

    long_last = [*torch.linspace(0, 0.4, 40).tolist(), 1.0]
    right = [error("dpmpp_2m", "logistic"), error("multistep_4", long_last)]
    monkeypatch.setattr(tableaus, "LARGEST_WEIGHTS", math.inf)
    monkeypatch.setitem(
        tableaus.GRID_RULES,
        "dpmpp_2m",
        replace(tableaus.GRID_RULES["dpmpp_2m"], mean=second_order_to_the_end),
    )
    wrong = [error("dpmpp_2m", "logistic"), error("multistep_4", long_last)]
    assert wrong[0] > 5 * right[0]
    assert wrong[1] > 5 * right[1]


@pytest.mark.parametrize("method", FIXED)
def test_a_row_is_the_same_alone_and_in_a_batch(method):
    """Bit for bit, where the field treats rows alone; on images."""
    field = stk.Diffusion(lambda x, t: torch.tanh(x), (2, 3, 3), stk.VP(), "data")
    solver = stk.ProbabilityFlow(method, steps=9)
    x = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    together = stk.sample(field, solver, init=x).final
    for i in range(5):
        assert torch.equal(stk.sample(field, solver, init=x[i : i + 1]).final[0], together[i])


@pytest.mark.parametrize("method", [m for m in FIXED if tableaus.GRID_RULES[m].of_velocity])
def test_a_velocity_without_a_path_is_solved_in_t(method):
    """dx/dt = x cos(3 t) x 3 from x_0: order in t, which is w of the linear path."""
    field = stk.Velocity(
        lambda x, t: 3 * torch.cos(3 * t)[:, None] * x, (1,), base=torch.ones(1, 1)
    )
    x, counts = torch.ones(1, 1, dtype=torch.float64), (60, 120)
    if method == "adams_4":  # whose first steps are of lower order
        counts = (60, 120, 240)
    errors = []
    for n in counts:
        times = torch.linspace(0, 1, n + 1, dtype=torch.float64) ** 1.5
        final = stk.sample(field, stk.ProbabilityFlow(method, grid=times), init=x).final
        errors.append(float((final - math.exp(math.sin(3.0))).abs()))
    assert abs(-_slope(counts, errors) - ORDER[method]) < 0.3, errors


SMOOTH = slow_rows_but(
    [(m, p) for m in ("dopri5", "bosh3") for p in PATHS],
    *(("dopri5", p) for p in PATHS),
    *(("bosh3", p) for p in PATHS if isinstance(p, stk.VP)),
)


@pytest.mark.parametrize(
    ("method", "path"), SMOOTH, ids=lambda v: v if isinstance(v, str) else type(v).__name__
)
def test_adaptive_methods_follow_the_exact_gaussian_flow(method, path):
    field = gaussian(dim=2, mean=0.7, std=0.5).noised(path)
    x = float(path.sigma(0.0)) * torch.tensor([[-1.3, 0.2], [0.4, 1.0]], dtype=torch.float64)
    draws = stk.sample(field, stk.ProbabilityFlow(method, rtol=1e-7, atol=1e-7), init=x)
    # between a table's knots the velocity has one continuous derivative only, which no error estimate of order 5 allows for
    limit = 1e-4 if isinstance(path, stk.Tabulated) else 2e-5
    torch.testing.assert_close(
        draws.final, gaussian_map(path, x, 0.7, 0.5, 0.0, 1.0), rtol=0, atol=limit
    )


@pytest.mark.parametrize(
    ("method", "predicts"), in_turn([*FIXED, "dopri5", "adaptive_heun"], ["data", "velocity"])
)
def test_no_evaluation_outside_the_interval(method, predicts):
    times = []
    exact = ring_mixture().noised(stk.Linear())

    def net(x, t):
        times.append((float(t.min()), float(t.max())))
        return (
            exact.denoise(x, float(t[0]))
            if predicts == "data"
            else exact.denoise(x, float(t[0])) - x
        )

    draws = stk.sample(
        stk.Diffusion(net, (2,), stk.Linear(), predicts),
        stk.ProbabilityFlow(method, steps=7),
        chains=5,
    )
    assert bool(torch.isfinite(draws.final).all())
    assert min(low for low, _ in times) >= 0
    assert max(high for _, high in times) <= 1


def test_a_stiff_neighbour_does_not_spoil_the_accuracy():
    """Each row meets the tolerance: the error norm is the largest over rows, not their mean."""

    def net(x, t, rate):
        return -rate[:, None] * (x - 1)

    field = stk.Velocity(net, (1,), base=torch.zeros(1, 1))
    rate = torch.cat([torch.full((99,), 0.1), torch.tensor([60.0])]).double()
    draws = stk.sample(
        field,
        stk.ProbabilityFlow("dopri5", rtol=1e-6, atol=1e-6),
        init=torch.full((100, 1), 3.0, dtype=torch.float64),
        cond={"rate": rate},
    )
    exact = 1 + 2 * torch.exp(-rate)
    assert float((draws.final[:, 0] - exact).abs().max()) < 1e-5
    by_mean = _with_batch_wide_norm(net, rate)
    assert float((by_mean[:, 0] - exact).abs()[-1]) > 3 * float(
        (draws.final[:, 0] - exact).abs()[-1]
    )


def _with_batch_wide_norm(net, rate):
    from torchdiffeq import odeint

    x = torch.full((100, 1), 3.0, dtype=torch.float64)
    return odeint(
        lambda t, y: net(y, t, rate), x, torch.tensor([0.0, 1.0]).double(), rtol=1e-6, atol=1e-6
    )[-1]


@pytest.mark.thorough
def test_a_row_that_fails_is_flagged_and_the_others_go_on():
    def net(x, t, bad):
        return torch.where(bad[:, None] & (t[:, None] > 0.5), torch.nan, -x)

    field = stk.Velocity(net, (2,), base=torch.zeros(1, 2))
    bad = torch.tensor([False, True, False])
    x = torch.ones(3, 2, dtype=torch.float64)
    for method in ("dopri5", "euler", "trapezoid"):
        draws = stk.sample(field, stk.ProbabilityFlow(method, steps=64), init=x, cond={"bad": bad})
        assert draws.status.tolist() == [0, int(stk.Status.NONFINITE), 0]
        assert draws.failed_at.tolist()[0] == -1
        assert 31 <= draws.failed_at.tolist()[1] <= 33
        assert bool(torch.isfinite(draws.final).all())
        torch.testing.assert_close(
            draws.final[0], torch.full((2,), math.exp(-1)).double(), rtol=0.02, atol=0
        )


def test_running_out_of_steps_is_a_status():
    field = ring_mixture().noised(stk.EDM())
    draws = stk.sample(
        field, stk.ProbabilityFlow("dopri5", max_steps=3, rtol=1e-9, atol=1e-9), chains=4
    )
    assert draws.status.tolist() == [int(stk.Status.MAX_STEPS)] * 4


@pytest.mark.parametrize("method", FIXED)
def test_keep_all_is_the_way_there(method):
    field = ring_mixture().noised(stk.Linear())
    draws = stk.sample(field, stk.ProbabilityFlow(method, steps=9), chains=3, keep="all")
    assert draws.x.shape == (3, 9, 2)
    torch.testing.assert_close(draws.x[:, -1], draws.final)


@pytest.mark.parametrize("method", slow_but(FIXED, *OF_EACH_KIND))
def test_float32_against_float64(method):
    field = ring_mixture().noised(stk.VP())
    a = stk.sample(
        field, stk.ProbabilityFlow(method, steps=32), chains=64, dtype=torch.float32
    ).final
    b = stk.sample(
        field, stk.ProbabilityFlow(method, steps=32), chains=64, dtype=torch.float64
    ).final
    assert float((a - b).abs().median()) < 1e-5


def test_flow_between_two_data_sets():
    cats, shift = (
        torch.randn(50, 2, generator=torch.Generator().manual_seed(0)),
        torch.tensor([3.0, -1.0]),
    )
    field = stk.Velocity(lambda x, t: shift.expand_as(x), (2,), base=cats)
    draws = stk.sample(field, stk.ProbabilityFlow("trapezoid", steps=4), chains=20)
    back = draws.final - shift
    assert (
        float(
            torch.cdist(back, cats, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max()
        )
        < 1e-5
    )


def test_gradients_flow_through_a_solve_when_asked():
    field = gaussian(dim=1, mean=0.7, std=0.5).noised(stk.EDM())
    x = torch.tensor([[3.0]], dtype=torch.float64, requires_grad=True)
    final = stk.sample(field, stk.ProbabilityFlow("trapezoid", steps=20), init=x, grad=True).final
    (slope,) = torch.autograd.grad(final.sum(), x)
    ahead, behind = (
        stk.sample(field, stk.ProbabilityFlow("trapezoid", steps=20), init=x.detach() + d).final
        for d in (1e-4, -1e-4)
    )
    torch.testing.assert_close(slope, (ahead - behind) / 2e-4, rtol=1e-6, atol=1e-9)
    assert not stk.sample(
        field, stk.ProbabilityFlow("trapezoid", steps=2), init=x
    ).final.requires_grad


@pytest.mark.parametrize(
    "path", [p for p in PATHS if not isinstance(p, stk.Tabulated)], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_increasing_times_from_end_to_end(path, name):
    for steps in (3, 20):
        times = grids.grid(name, path, steps)
        assert times.shape == (steps + 1,)
        assert float(times[0]) == 0
        assert float(times[-1]) == 1
        assert bool((times.diff() > 0).all())


def test_the_logistic_grid_spaces_the_levels_as_it_says():
    path = stk.VP()
    times = grids.grid("logistic", path, 12)
    spaced = 1 / (1 + (path.sigma(times) / path.alpha(times)) ** 0.8)
    torch.testing.assert_close(spaced.diff(), spaced.diff().mean().expand(12), rtol=1e-8, atol=0)


def test_grids_are_what_they_say():
    path = stk.Cosine()
    torch.testing.assert_close(grids.cosine(path, 9), grids.uniform(9), rtol=0, atol=1e-12)
    torch.testing.assert_close(grids.karras(stk.EDM(), 9), grids.uniform(9), rtol=0, atol=1e-12)
    torch.testing.assert_close(grids.edm(stk.EDM(), 9), grids.uniform(9), rtol=0, atol=1e-12)
    vp = stk.VP()
    inner = grids.levels(vp, grids.edm(vp, 11))[1:-1]
    torch.testing.assert_close(inner, stk.EDM().sigma(grids.uniform(9)), rtol=1e-9, atol=0)
    given = [math.inf, 14.6, 3.2, 0.9, 0.1, 0.0]
    torch.testing.assert_close(
        grids.levels(path, grids.table(path, given))[1:-1], torch.tensor(given[1:-1]).double()
    )
    resampled = grids.levels(path, grids.table(path, [16.0, 4.0, 1.0], steps=4))
    torch.testing.assert_close(resampled, torch.tensor([16.0, 8.0, 4.0, 2.0, 1.0]).double())
    for wrong in ([1.0, 2.0], [1.0], [2.0, -1.0]):
        with pytest.raises(stk.InvalidArgument):
            grids.table(path, wrong)


@pytest.mark.parametrize("scale", slow_but([0.1, 1.0, 10.0], 0.1))
def test_an_adapted_grid_fits_the_field(scale):
    """On data of a tenth and ten times the unit scale, for which the default grid is not made; as good on unit scale."""
    field = ring_mixture(radius=2 * scale, std=0.25 * scale).noised(stk.Linear())
    x = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = stk.sample(field, stk.ProbabilityFlow("adams_pc_3", 500), init=x).final

    def error(grid):
        return float(
            (stk.sample(field, stk.ProbabilityFlow("adams_2", 24, grid), init=x).final - exact)
            .norm(dim=1)
            .median()
        )

    times = grids.adapt(field, 24, order=2)
    assert times.shape == (25,)
    assert times.dtype == torch.float64
    assert torch.equal(times, grids.adapt(field, 24, order=2))
    assert error(times) < (0.75 if scale == 1 else 0.3) * error(None)


def test_an_adapted_grid_serves_a_velocity_without_a_path():
    """A velocity that changes fast in the first tenth of the time gets most of its steps there."""
    field = stk.Velocity(
        lambda x, t: torch.exp(-40 * t)[:, None] * 40 + x,
        (1,),
        base=torch.linspace(-2, 2, 50)[:, None],
    )
    times = grids.adapt(field, 20)
    assert float(times[0]) == 0
    assert float(times[-1]) == 1
    assert bool((times.diff() > 0).all())
    assert int((times < 0.15).sum()) > 6


@functools.cache
def well_solved(path):
    """64 starts on the ring's flow, and where they end."""
    x = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = float(path.sigma(0.0)) * x
    solver = stk.ProbabilityFlow("dpmpp_2m", 1000, "karras", denoise=isinstance(path, stk.EDM))
    return x, stk.sample(ring_mixture().noised(path), solver, init=x).final


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "limits"), [("trapezoid", (0.12, 0.02)), ("dpmpp_2m", (0.05, 0.01))]
)
@pytest.mark.parametrize(
    "path",
    slow_but(
        [stk.VP(), stk.Linear(), stk.Cosine(), stk.EDM(0.002, 80.0)], stk.VP(), stk.EDM(0.002, 80.0)
    ),
    ids=lambda p: type(p).__name__,
)
def test_the_default_grid_is_accurate_on_the_ring(path, method, limits):
    """Median error at 18 and 36 evaluations; Karras' grid with rho = 7 misses all of the first and most of the second."""
    field = ring_mixture().noised(path)
    denoise = isinstance(path, stk.EDM)
    start, exact = well_solved(path)
    for evaluations, limit in zip((18, 36), limits, strict=True):
        steps = evaluations if method == "dpmpp_2m" else evaluations // 2
        errors = {}
        for name in (None, "karras"):
            x = stk.sample(
                field, stk.ProbabilityFlow(method, steps, name, denoise=denoise), init=start
            ).final
            errors[name] = float((x - exact).norm(dim=1).median())
        assert errors[None] < limit
        assert errors[None] < errors["karras"]
