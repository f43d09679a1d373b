"""ODE methods against the order conditions of their tables and against loops in plain numbers."""

import itertools
import math

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk import grids
from scoretk.core.noise import Noise
from scoretk.fields.base import standard_normal
from scoretk.fields.paths import EDM, VE, VP, Linear
from scoretk.models.targets.mixture import gaussian
from scoretk.ode.adaptive import TORCHDIFFEQ, integrate, largest_row_rms
from scoretk.ode.rowwise import PAIRS, integrate_rows
from scoretk.ode.tableaus import GRID_RULES, Multistep, RungeKutta
from tests.marks import slow_but


def conditions(order, c, a, s=1.0):
    """Rooted trees up to an order: for weights b the products of these with b, and what they must be at the time s."""
    ac = a @ c
    known = [(1, np.ones_like(c), s), (2, c, s**2 / 2), (3, c**2, s**3 / 3), (3, ac, s**3 / 6)]
    known += [
        (4, c**3, s**4 / 4),
        (4, c * ac, s**4 / 8),
        (4, a @ c**2, s**4 / 12),
        (4, a @ ac, s**4 / 24),
    ]
    known += [
        (5, c**4, 1 / 5),
        (5, c**2 * ac, 1 / 10),
        (5, ac**2, 1 / 20),
        (5, c * (a @ c**2), 1 / 15),
        (5, a @ c**3, 1 / 20),
        (5, c * (a @ ac), 1 / 30),
        (5, a @ (c * ac), 1 / 40),
        (5, a @ a @ c**2, 1 / 60),
        (5, a @ a @ ac, 1 / 120),
    ]
    return [(v, goal) for power, v, goal in known if power <= order]


def matrix(nodes, rows):
    a = np.zeros((len(nodes), len(nodes)))
    for i, row in enumerate(rows, 1):
        if i < len(nodes):
            a[i, : len(row)] = row
    return a


def rules():
    """All Runge-Kutta rules of the registry and their closing ones."""
    found = {name: rule for name, rule in GRID_RULES.items() if isinstance(rule, RungeKutta)}
    return found | {f"{n} closing": r.closing for n, r in found.items() if r.closing is not None}


@pytest.mark.parametrize("name", rules())
def test_a_rule_meets_the_conditions_of_its_order_and_no_more(name):
    rule = rules()[name]
    c, a, b = np.array(rule.nodes), matrix(rule.nodes, rule.weights), np.array(rule.weights[-1])
    np.testing.assert_allclose(a.sum(1), c, atol=1e-12)
    for v, goal in conditions(rule.order, c, a):
        assert b @ v == pytest.approx(goal, abs=1e-12)
    assert rule.order >= 4 or any(
        abs(b @ v - g) > 1e-6 for v, g in conditions(rule.order + 1, c, a)
    )


@pytest.mark.parametrize("name", rules())
def test_stages_follow_one_another_and_a_closing_rule_asks_inside_only(name):
    rule = rules()[name]
    assert list(rule.nodes) == sorted(rule.nodes)
    if rule.nodes[-1] == 1:
        assert rule.closing is not None
        assert max(rule.closing.nodes) < 1
    if name == "ralston_4":
        assert rule.closing.nodes[:3] == rule.nodes[:3]


def continuous(pair, s):
    """The weights of the slopes at a share s of the step: Hermite's cubic, and what bends it once more."""
    b, bend = np.array([*pair.weights[-1], 0.0]), np.array(pair.bend)
    first, last = np.eye(len(b))[0], np.eye(len(b))[-1]
    rise, fall = first - b, 2 * b - first - last
    return s * (b + (1 - s) * (rise + s * (fall + (1 - s) * bend)))


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_has_two_orders_and_a_continuous_one_between(name):
    pair = PAIRS[name]
    c = np.array([0.0, *pair.nodes])
    a = matrix(c, pair.weights)
    b, e = np.array([*pair.weights[-1], 0.0]), np.array(pair.error)
    np.testing.assert_allclose(a.sum(1), c, atol=1e-12)
    assert pair.nodes[-1] == 1, "the last stage is the next step's first"
    np.testing.assert_allclose(a[-1], b)
    for v, goal in conditions(pair.order, c, a):
        assert b @ v == pytest.approx(goal, abs=1e-12)
    for v, _ in conditions(pair.order - 1, c, a):
        assert e @ v == pytest.approx(0, abs=1e-12)
    assert any(abs(e @ v) > 1e-6 for v, _ in conditions(pair.order, c, a)), (
        "no estimate of the error"
    )
    for s in (0.3, 0.8):
        weights = continuous(pair, s)
        for v, goal in conditions(min(pair.order, 4), c, a, s):
            assert weights @ v == pytest.approx(goal, abs=1e-9)


def rate(x, t):
    return -1.5 * x + math.sin(9 * t) * 4 + 30 * math.exp(-((t - 0.6) ** 2) * 400)


def rms(v):
    return float(np.float32(abs(v)))


def walked(pair, x, start, end, rtol, atol):
    """One row by itself, in plain numbers: Hairer's first step, then the proportional-integral controller.

    Where it arrives, the evaluations, how many steps were rejected, which keep their first slope, and the steps taken.
    """
    p, span = pair.order, end - start
    u = rate(x, start)
    scale = atol + rtol * abs(x)
    size, speed = rms(x / scale), rms(u / scale) * abs(span)
    trial = min(0.01 * size / speed, 1.0)
    turn = rate(x + trial * span * u, start + trial * span) - u
    bend = rms(turn / scale) * abs(span) / trial
    share = (0.01 / max(speed, bend)) ** (1 / p)
    h = float(np.float32(max(min(share, 100 * trial), 0.001 * trial))) * span
    t, before, calls, rejected, taken = start, 1.0, 2, 0, []
    while t != end:
        last = 1.01 * h / (end - t) >= 1
        after = end if last else t + h
        h = after - t
        k = [u]
        for c, row in zip(pair.nodes, pair.weights, strict=True):
            ahead = x + h * sum(w * s for w, s in zip(row, k, strict=True))
            k.append(rate(ahead, t + c * h))
        calls += len(pair.nodes)
        scale = atol + rtol * max(abs(x), abs(ahead))
        error = rms(h * sum(w * s for w, s in zip(pair.error, k, strict=True)) / scale)
        if error <= 1:
            taken.append((t, h, x, np.array(k)))
        factor = 0.9 * error ** (-0.7 / p) * before ** (0.4 / p)
        h *= min(max(float(np.float32(factor)), 0.2), 10.0)
        if error <= 1:
            x, u, t, before = ahead, k[-1], after, max(error, 1e-4)
        else:
            rejected += 1
    return x, calls, rejected, taken


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("back", [False, True])
def test_an_adaptive_solve_is_its_loop(name, back):
    start, end = (1.0, 0.0) if back else (0.0, 1.0)
    pair = PAIRS[name]
    x, calls, rejected, taken = walked(pair, 2.0, start, end, 1e-4, 1e-6)
    inner = taken[3][0] + taken[3][1]  # also the very end of a step
    wanted = [start, 0.31, 0.6, inner, 0.62, end]
    found = integrate_rows(
        lambda y, t: torch.tensor([[rate(float(y), float(t))]], dtype=torch.float64),
        torch.tensor([[2.0]], dtype=torch.float64),
        start,
        end,
        method=name,
        rtol=1e-4,
        atol=1e-6,
        at=wanted,
    )
    assert rejected, "nothing was rejected"
    for time, state in zip(wanted[1:], found.states[0, 1:, 0].tolist(), strict=True):
        shares = [((time - t) / h, t, h, y, k) for t, h, y, k in taken]
        s, _, h, y, k = next(v for v in shares if 0 < v[0] <= 1 + 1e-12)
        assert state == pytest.approx(y + h * continuous(pair, s) @ k, rel=1e-8)
    assert float(found.states[0, 0]) == 2.0
    assert int(found.evaluations) == calls
    assert float(found.x) == pytest.approx(x, rel=1e-9)


@pytest.mark.parametrize("ratio", [0.995, 1.0, 1.005, 3.0])
def test_a_step_that_nearly_reaches_the_end_ends_there(ratio):
    """A constant velocity whose first step, `(0.01 / speed)^(1/5)`, is about as long as the interval."""
    atol, speed = 1e-3, 0.01 / ratio**5
    rate = torch.full((1, 1), speed * atol, dtype=torch.float64)
    found = integrate_rows(
        lambda x, t: rate, torch.full((1, 1), 10 * atol).double(), 0.0, 1.0, rtol=1e-12, atol=atol
    )
    assert int(found.status) == 0
    assert int(found.evaluations) == 2 + 6
    assert float(found.x) == pytest.approx((10 + speed) * atol, rel=1e-6)


def test_the_error_of_a_batch_is_that_of_its_hardest_row():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert float(largest_row_rms(rows)) == pytest.approx(math.sqrt(12.5))


def test_a_borrowed_method_asks_inside_its_interval_only():
    from scoretk.ode.adaptive import integrate

    asked = []

    def velocity(x, t):
        asked.append(float(t))
        return -x

    for end in (0.75, 0.251, 0.249):  # of a short one the first trial step is longer
        asked.clear()
        integrate(velocity, torch.ones(2, 1), 0.25, end, rtol=1e-3, atol=1e-3)
        assert min(asked) >= min(0.25, end)
        assert max(asked) <= max(0.25, end)


# A denoiser that is neither linear nor even, in tensors and in numbers.


def data(x, t):
    return np.tanh(1.3 * x + 0.4) * (0.5 + t)


def net(x, t):
    return torch.tanh(1.3 * x + 0.4) * (0.5 + t[:, None])


def flowed(path, method, times, **options):
    """The end of the flow from fixed starts."""
    field = stk.Diffusion(net, (3,), path, "data")
    start = Noise(0, 4, dtype=torch.float64).normal(0, 0, (3,))
    solver = stk.ProbabilityFlow(method, grid=times, **options)
    return start.numpy(), stk.sample(field, solver, init=start).final.numpy()


def levels(path, times):
    return [float(path.alpha(t)) for t in times], [float(path.sigma(t)) for t in times]


PATH = VP(0.3, 9.0)
GRID = (0.05, 0.22, 0.41, 0.66, 0.9)


def test_euler_is_ddim():
    alpha, sigma = levels(PATH, GRID)
    x, found = flowed(PATH, "euler", GRID)
    for i in range(len(GRID) - 1):
        d = data(x, GRID[i])
        x = alpha[i + 1] * d + sigma[i + 1] * (x - alpha[i] * d) / sigma[i]
    np.testing.assert_allclose(found, x, rtol=1e-9)


def test_dpmpp_2m_is_that_of_its_paper():
    """Lu et al. (2022), algorithm 2: `D = (1 + 1/2r) D_i - 1/2r D_(i-1)`, r the ratio of steps in log(alpha/sigma)."""
    alpha, sigma = levels(PATH, GRID)
    x, found = flowed(PATH, "dpmpp_2m", GRID)
    lam = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
    before = None
    for i in range(len(GRID) - 1):
        d, h = data(x, GRID[i]), lam[i + 1] - lam[i]
        mixed = d
        if before is not None:
            r = (lam[i] - lam[i - 1]) / h
            mixed = (1 + 1 / (2 * r)) * d - before / (2 * r)
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * math.expm1(-h) * mixed
        before = d
    np.testing.assert_allclose(found, x, rtol=1e-9)


def test_heun_is_that_of_karras():
    """Algorithm 1 of Karras et al. (2022) without churn: Heun's rule in sigma, Euler's on the step to 0."""
    path, times = EDM(0.02, 5.0, 3.0), (0.0, 0.3, 0.55, 0.8, 1.0)
    x, found = flowed(path, "heun", times, denoise=True)
    sigma = [*(float(path.sigma(t)) for t in times), 0.0]
    asked = [*times, 1.0]
    for i in range(len(sigma) - 1):
        h = sigma[i + 1] - sigma[i]
        d = (x - data(x, asked[i])) / sigma[i]
        ahead = x + h * d
        if sigma[i + 1]:
            d = (d + (ahead - data(ahead, asked[i + 1])) / sigma[i + 1]) / 2
        x = x + h * d
    np.testing.assert_allclose(found, x, rtol=1e-9)


def slope(x, t):
    """The velocity on the linear path."""
    return (data(x, t) - x) / (1 - t)


def test_trapezoid_and_classical_runge_kutta_on_the_linear_path():
    times = (0.0, 0.3, 0.5, 0.8)
    for method in ("trapezoid", "midpoint", "rk4"):
        x, found = flowed(Linear(), method, times)
        for t, after in itertools.pairwise(times):
            h = after - t
            k1 = slope(x, t)
            if method == "trapezoid":
                x = x + h / 2 * (k1 + slope(x + h * k1, after))
            elif method == "midpoint":
                x = x + h * slope(x + h / 2 * k1, t + h / 2)
            else:
                k2 = slope(x + h / 2 * k1, t + h / 2)
                k3 = slope(x + h / 2 * k2, t + h / 2)
                x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3, after))
        np.testing.assert_allclose(found, x, rtol=1e-9)


def test_adams_methods_on_the_linear_path():
    """Bashforth's and Moulton's coefficients on even steps; the first steps are corrected."""
    n, h = 6, 0.1
    times = tuple(i * h for i in range(n + 1))
    predict = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12]}
    correct = {
        2: [1 / 2, 1 / 2],
        3: [5 / 12, 8 / 12, -1 / 12],
        4: [9 / 24, 19 / 24, -5 / 24, 1 / 24],
    }
    for method, points, always in (
        ("adams_2", 2, 0),
        ("adams_3", 3, 0),
        ("adams_pc_2", 2, 1),
        ("adams_pc_3", 3, 1),
    ):
        x, found = flowed(Linear(), method, times)
        slopes, before = [], None
        for i in range(n):
            slopes.insert(0, slope(x, times[i]))
            if before is not None and (always or i < points):
                base, weights, had = before
                order = min(len(slopes), points + always)
                x = base + h * sum(w * s for w, s in zip(correct[order], slopes, strict=False))
                assert had or weights
            weights = predict[min(len(slopes), points)]
            before = (x, weights, True)
            x = x + h * sum(w * s for w, s in zip(weights, slopes, strict=False))
        np.testing.assert_allclose(found, x, rtol=1e-9, err_msg=method)


@pytest.mark.parametrize("order", [2, 3])
def test_unipc_predicts_and_corrects_with_exact_integrals(order):
    """Polynomials in `w = alpha / (alpha + sigma)` through D, integrated over alpha/sigma, by quadrature of high order."""
    alpha, sigma = levels(PATH, GRID)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    nodes, weights = (nodes + 1) / 2, weights / 2

    def mean(at, i):
        """Of the Lagrange polynomials through these points over the step from i."""
        u = (1 - nodes) * alpha[i] / sigma[i] + nodes * alpha[i + 1] / sigma[i + 1]
        w = u / (1 + u)
        v = [alpha[j] / (alpha[j] + sigma[j]) for j in at]
        return [
            weights @ np.prod([(w - b) / (a - b) for b in v if b != a] or [np.ones_like(w)], 0)
            for a in v
        ]

    def step(x, i, at, known):
        rate = sigma[i + 1] * (alpha[i + 1] / sigma[i + 1] - alpha[i] / sigma[i])
        average = sum(m * known[j] for m, j in zip(mean(at, i), at, strict=True))
        return sigma[i + 1] / sigma[i] * x + rate * average

    x, found = flowed(PATH, f"unipc_{order}", GRID)
    known, base = {}, None
    for i in range(len(GRID) - 1):
        known[i] = data(x, GRID[i])
        if i:
            x = step(base, i - 1, list(range(i, max(i - order, 0) - 1, -1))[: order + 1], known)
        base = x
        x = step(x, i, list(range(i, max(i - order, -1), -1))[:order], known)
    np.testing.assert_allclose(found, x, rtol=1e-7)


def shares(at, now, after):
    """The Lagrange polynomials of these times, in the mean over a step."""
    t, w = np.polynomial.legendre.leggauss(20)
    t = now + (t + 1) / 2 * (after - now)
    return [
        w @ np.prod([(t - b) / (a - b) for b in at if b != a] or [0 * t + 1], 0) / 2 for a in at
    ]


@pytest.mark.parametrize(
    ("method", "points", "corrected", "times", "lowers", "leaves"),
    [
        ("adams_3", 3, 0, (0.0, 0.01, 0.02, 0.5, 0.9), 1, 0),
        ("adams_pc_2", 2, 1, (0.0, 0.3, 0.5, 0.9, 0.95), 0, 1),
        ("adams_pc_3", 3, 1, (0.0, 0.2, 0.4, 0.84, 0.9, 0.99), 0, 0),
    ],
)
def test_multistep_rules_hold_back_where_steps_are_long(
    method, points, corrected, times, lowers, leaves
):
    """No weights above ten in absolute sum; no correction of a step over which the noise falls by more than four."""
    x, found = flowed(Linear(), method, times)
    slopes, before, lowered, left = [], None, 0, 0

    def weights(i, most, now, after):
        nonlocal lowered
        for n in range(most, 0, -1):
            w = shares(times[i::-1][:n], now, after)
            if n == 1 or sum(map(abs, w)) <= 10:
                return w
            lowered += 1

    for i, (now, after) in enumerate(itertools.pairwise(times)):
        slopes.insert(0, slope(x, now))
        if before is not None and (corrected or i < points):
            base, since = before
            if 1 - since <= 4 * (1 - now):
                w = weights(i, min(i + 1, points + corrected), since, now)
                x = base + (now - since) * sum(v * s for v, s in zip(w, slopes, strict=False))
            else:
                left += 1
        before = (x, now)
        w = weights(i, min(i + 1, points), now, after)
        x = x + (after - now) * sum(v * s for v, s in zip(w, slopes, strict=False))
    assert bool(lowered) == bool(lowers)
    assert left == leaves
    np.testing.assert_allclose(found, x, rtol=1e-8)


@pytest.mark.parametrize("method", ["dopri5", "torchdiffeq/dopri5", "euler"])
def test_a_closing_step_takes_the_denoised_data_at_the_scale_of_its_time(method):
    times = (0.05, 0.4, 0.8)
    _, there = flowed(PATH, method, times)
    _, found = flowed(PATH, method, times, denoise=True)
    np.testing.assert_allclose(found, float(PATH.alpha(0.8)) * data(there, 0.8), rtol=1e-4)


def test_every_rule_states_its_order():
    for name, rule in GRID_RULES.items():
        if isinstance(rule, Multistep):
            assert rule.order == rule.points + rule.corrected
            assert rule.corrected == name.startswith(("unipc", "adams_pc"))


def test_grids_are_even_in_what_they_say():
    path, n = VE(0.05, 20.0), 7
    even = np.arange(n + 1) / n
    high, low = 20.0, 0.05
    expected = {
        "log_snr": high ** (1 - even) * low**even,
        "karras": (high ** (1 / 7) + even * (low ** (1 / 7) - high ** (1 / 7))) ** 7,
        "cosine": np.tan(np.arctan(high) + even * (np.arctan(low) - np.arctan(high))),
    }
    ends = 1 / (1 + np.array([high, low]) ** 0.8)
    expected["logistic"] = (1 / (ends[0] + even * (ends[1] - ends[0])) - 1) ** (1 / 0.8)
    for name, levels in expected.items():
        times = getattr(grids, name)(path, n)
        np.testing.assert_allclose(path.sigma(times).numpy(), levels, rtol=1e-9, err_msg=name)
    wide = EDM(1e-4, 300.0)
    found = wide.sigma(grids.edm(wide, 6)).numpy()
    inner = np.arange(5) / 4
    between = (80 ** (1 / 7) + inner * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(found, [300.0, *between, 1e-4], rtol=1e-9)


def test_an_adapted_grid_is_even_in_its_density_of_errors():
    """Of `dx/dt = exp(a t)` that density is `exp(a t / (order + 1))`; half of the grid's is the default's, even here."""
    a, order, n = 8.0, 3, 16
    field = stk.Velocity(
        lambda x, t: torch.exp(a * t)[:, None].expand_as(x),
        (1,),
        base=torch.linspace(-2, 2, 50, dtype=torch.float64)[:, None],
    )
    times = grids.adapt(field, n, order=order).numpy()
    b = a / (order + 1)
    reached = ((np.exp(b * times) - 1) / (math.exp(b) - 1) + times) / 2
    np.testing.assert_allclose(reached, np.arange(n + 1) / n, atol=0.02)


def test_the_trajectories_of_an_adapted_grid_are_of_second_order_on_uneven_times():
    """A normal's flow is `x_t = x_0 spread_t / spread_0`; half as long steps leave a quarter of the error."""
    path, std = VP(), 0.6
    field = gaussian(2, std=std).noised(path)

    def error(n):
        times = torch.linspace(0, 0.95, n + 1, dtype=torch.float64) ** 1.3
        alpha, sigma = path.alpha(times), path.sigma(times)
        spread = torch.sqrt(alpha**2 * std**2 + sigma**2)
        x = grids._trajectories(field, times, 3, 0, None)[1] * (alpha + sigma)[:, None, None]
        return float((x / x[0] * spread[0] / spread[:, None, None] - 1).abs().max())

    assert 3.5 < error(50) / error(100) < 4.5


def test_the_adjoint_of_a_linear_flow_is_its_matrix():
    """`dx/dt = a (k x + b)`: the end is linear in x and has a closed form in k."""
    k = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.k = k

        def forward(self, x, t):
            return self.k * x + 1

    x = torch.tensor([[0.4], [-1.3]], dtype=torch.float64, requires_grad=True)
    field = stk.Velocity(Net(), (1,), base=torch.zeros(1, 1))
    solver = stk.ProbabilityFlow("dopri5", rtol=1e-9, atol=1e-9)
    end = stk.sample(field, solver, init=x, grad="adjoint").final
    weight = torch.tensor([[3.0], [500.0]], dtype=torch.float64)
    (end * weight).sum().backward()
    y, w = x.detach().clone().requires_grad_(), k.detach().clone().requires_grad_()
    closed = torch.exp(w) * y + torch.expm1(w) / w
    (closed * weight).sum().backward()
    torch.testing.assert_close(end, closed, rtol=1e-7, atol=0)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-6, atol=0)
    torch.testing.assert_close(k.grad, w.grad, rtol=1e-6, atol=0)


def test_an_adapted_grid_has_the_seed_that_it_is_given():
    field = gaussian(dim=2, std=0.3).noised(stk.VP())
    one, same, other = (stk.grids.adapt(field, 6, chains=2, fine=32, seed=s) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.allclose(one, other, atol=0.2)


def test_a_row_that_failed_once_has_failed():
    """Its velocity is finite again later on: it stays where it started, and says so; others go on."""
    from scoretk.ode.adaptive import integrate

    def velocity(x, t):
        hole = 0.3 < t < 0.5
        return torch.where(hole & (x < 0), torch.nan, -x)

    x = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    for name in ("torchdiffeq/bosh3", "dopri8"):
        found = integrate(velocity, x, 0.0, 1.0, method=name, rtol=1e-4, atol=1e-4)
        assert found.status.tolist() == [int(stk.Status.OK), int(stk.Status.NONFINITE)], name
        assert float(found.x[0]) == pytest.approx(math.exp(-1), rel=1e-2)
        assert float(found.x[1]) == -2.0


def test_a_closing_step_that_is_not_finite_fails_its_row_alone():
    """The solve before it was well: the row stays where that ended, and says so."""
    atol = 1e-4
    level = 0.1 * math.sqrt(atol)  # how far from the end the closing step begins

    def net(x, t):
        late = t[:, None] > 1 - 0.7 * level  # only the middle of the closing step
        return torch.where(late & (x < 0), torch.nan, x)

    field = stk.Velocity(net, (1,), base=torch.zeros(1, 1))
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    found = stk.sample(field, stk.ProbabilityFlow("bosh3", rtol=1e-6, atol=atol), init=x)
    assert found.status.tolist() == [int(stk.Status.OK), int(stk.Status.NONFINITE)]
    grown = [math.e, -math.exp(1 - level)]
    np.testing.assert_allclose(found.final[:, 0], grown, rtol=1e-4)


@pytest.mark.parametrize("method", slow_but(TORCHDIFFEQ, *(set(TORCHDIFFEQ) - {"adaptive_heun"})))
@pytest.mark.parametrize("ends", [(0.1, 0.9), (0.9, 0.1)])
def test_an_equation_in_time_is_solved_either_way(method, ends):
    """`dx/dt = cos(3 t) x`, whose slope changes on the way."""
    start, end = ends
    x = torch.tensor([[0.7], [-2.0]], dtype=torch.float64)
    found = integrate(
        lambda x, t: math.cos(3 * t) * x, x, start, end, method=method, rtol=1e-5, atol=1e-5
    )
    closed = x * math.exp((math.sin(3 * end) - math.sin(3 * start)) / 3)
    torch.testing.assert_close(found.x, closed, rtol=2e-3, atol=0)


@pytest.mark.parametrize("find", ["adapt", "search"])
def test_a_grid_that_is_found_does_not_hang_on_the_units_of_the_data(find):
    """In units a power of two apart all numbers are the same but for their exponents."""

    def found(unit):
        def velocity(x, t):
            y = x / unit
            return unit * (torch.tanh(2 * y) * (1 + 3 * t**2)[:, None] - y)

        field = stk.Velocity(velocity, (2,), base=standard_normal((2,), unit))
        if find == "adapt":
            return grids.adapt(field, 5, chains=8, fine=32)
        return grids.search(field, 3, "euler", chains=8, tries=12)

    torch.testing.assert_close(found(2.0**-40), found(1.0), rtol=1e-6, atol=1e-8)
