"""Rows that integrate by themselves, against exact flows: order, tolerance, bits, cost, and every way to fail."""

import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.utils._python_dispatch import TorchDispatchMode

import scoretk as stk
from scoretk.errors import InvalidArgument, Status, UnknownName
from scoretk.fields.resolve import resolve
from scoretk.models.targets.mixture import ring_mixture
from scoretk.ode import rowwise
from scoretk.ode.adaptive import integrate
from scoretk.ode.rowwise import PAIRS, integrate_rows
from tests.marks import slow_but

METHODS = tuple(PAIRS)
OK, NONFINITE, DIVERGED, MAX_STEPS = (
    int(s) for s in (Status.OK, Status.NONFINITE, Status.DIVERGED, Status.MAX_STEPS)
)


def mutant(*changes):
    """The module with these pieces of its text replaced."""
    text = Path(rowwise.__file__).read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    module = ModuleType("mutant")
    exec(compile(text, "mutant", "exec"), module.__dict__)
    return module


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def pendulum(x, t):
    """Nonlinear, and with a time of its own: wrong nodes are seen as well as wrong weights."""
    return torch.stack([x[:, 1], -torch.sin(x[:, 0]) + torch.cos(3 * t)], 1)


def pendulum_at(x, times):
    """Its exact states `(rows, times, 2)` from x at time 0."""
    states = [
        solve_ivp(
            lambda t, y: [y[1], -math.sin(y[0]) + math.cos(3 * t)],
            (0, times[-1]),
            row,
            "DOP853",
            times,
            rtol=1e-13,
            atol=1e-13,
        ).y.T
        for row in x.tolist()
    ]
    return torch.tensor(np.stack(states))


def decay(rates):
    """dx/dt = -rate (x - 1), a rate a row, as `(velocity, select)`."""

    def select(rows):
        return lambda x, t: -rates[rows].reshape(-1, *[1] * (x.ndim - 1)) * (x - 1)

    return select(torch.arange(len(rates))), select


def decayed(x, rates, t):
    return 1 + (x - 1) * torch.exp(-rates * t).reshape(-1, *[1] * (x.ndim - 1))


def spy(velocity, seen):
    def spied(x, t):
        assert t.shape == x.shape[:1]
        seen.append(t.clone())
        return velocity(x, t)

    return spied


# --- the pairs


def errors_at(pair, h):
    """One step of six pendulums: the error of the state after it, that of the quartic on the way, and the estimate."""
    x, one = normal(6, 2), torch.ones(6, dtype=torch.float64)
    shared = rowwise.Integration(
        pair, torch.tensor(pair.nodes, dtype=torch.float64)[:, None], 0.0, 1.0
    )
    active = rowwise.ActiveRows(
        torch.arange(6), x, pendulum(x, 0 * one), 0 * one, h * one, one, 0 * x + 1e-30, 0 * x + 1
    )
    step = rowwise._attempt(shared, pendulum, active)
    wanted = torch.tensor([0.3, 0.6], dtype=torch.float64) * h
    found = rowwise._unsolved(x, 0 * one, wanted)
    rowwise._report(pair, found, active.rows, step, wanted, rowwise._met(shared, step, wanted), 12)
    exact = pendulum_at(x, [0.3 * h, 0.6 * h, h])
    return [
        (step.x_after - exact[:, 2]).norm(),
        (found.states - exact[:, :2]).norm(),
        step.error.double().norm(),
    ]


def slopes(pair):
    hs = torch.tensor([0.16, 0.12, 0.09, 0.07, 0.05], dtype=torch.float64)
    logs = torch.stack([torch.stack(errors_at(pair, float(h))) for h in hs]).log()
    centered = hs.log() - hs.log().mean()
    return ((centered[:, None] * logs).sum(0) / centered.square().sum()).tolist()


@pytest.mark.parametrize("method", METHODS)
def test_orders_of_the_state_the_quartic_and_the_estimate(method):
    """Local errors, one power above the order: 6, 5, 5 for the pairs of order 5, and 4, 4, 3 for the one of order 3."""
    p = PAIRS[method].order
    found, expected = slopes(PAIRS[method]), [p + 1, 5 if p == 5 else 4, p]
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 0.3, found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("part", "which"), [("weights", 0), ("nodes", 0), ("bend", 1), ("error", 2)]
)
def test_a_wrong_number_costs_order(method, part, which):
    pair = PAIRS[method]
    if part == "weights":
        last = list(pair.weights[-2])
        wrong = (*pair.weights[:-2], (last[0] + 0.01, *last[1:]), pair.weights[-1])
    else:
        a, b, *rest = getattr(pair, part)
        wrong = (a, b + 0.01, *rest)
    right, broken = slopes(pair)[which], slopes(pair._replace(**{part: wrong}))[which]
    assert broken < right - 0.5


# --- accuracy


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.5), (1.5, 0.0), (-0.7, 0.4)])
def test_linear_flows_in_either_direction(method, start, end):
    x = normal(6, 3)
    found = integrate_rows(
        lambda x, t: -2 * t[:, None] * x, x, start, end, method=method, rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close(found.x, x * math.exp(start**2 - end**2), rtol=3e-7, atol=1e-7)
    assert found.status.tolist() == [OK] * 6
    assert found.t.tolist() == [end] * 6


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dopri5", pytest.param("tsit5", marks=pytest.mark.slow)])
def test_the_probability_flow_of_the_ring_against_dop853(method):
    field = resolve(ring_mixture().noised(stk.EDM()), {"velocity"}, timed=True)
    x = 80 * normal(8, 2)

    def together(t, y):
        return field.velocity(torch.tensor(y).reshape(8, 2), float(t)).flatten().numpy()

    start = x.flatten().numpy()
    exact = solve_ivp(together, (0, 1), start, "DOP853", rtol=1e-11, atol=1e-11).y[:, -1]
    exact = torch.tensor(exact).reshape(8, 2)
    errors = {}
    for tolerance in (1e-4, 1e-6, 1e-8):
        found = integrate_rows(
            field.velocity, x, 0.0, 1.0, method=method, rtol=tolerance, atol=tolerance
        )
        errors[tolerance] = float((found.x - exact).norm(dim=1).max())
        assert errors[tolerance] < 30 * tolerance
    back = integrate_rows(field.velocity, found.x, 1.0, 0.0, method=method, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back.x, x, rtol=1e-5, atol=0)


def test_each_row_has_its_own_tolerance():
    x = normal(1, 2).expand(3, 2)
    exact = pendulum_at(x, [5.0])[:, 0]
    tolerance = torch.tensor([1e-3, 1e-6, 1e-9], dtype=torch.float64)
    found = integrate_rows(pendulum, x, 0.0, 5.0, rtol=tolerance, atol=tolerance)
    error = (found.x - exact).norm(dim=1)
    assert bool((error < 20 * tolerance).all())
    assert bool((error[:-1] > 20 * error[1:]).all())
    assert bool((found.evaluations.diff() > 0).all())
    for i in range(3):
        alone = integrate_rows(
            pendulum, x[:1], 0.0, 5.0, rtol=float(tolerance[i]), atol=float(tolerance[i])
        )
        assert torch.equal(alone.x[0], found.x[i])


def test_float32_against_float64():
    """Within the tolerance, which float32 can keep."""
    x = normal(32, 2)
    double = integrate_rows(pendulum, x, 0.0, 3.0, rtol=1e-5, atol=1e-5)
    single = integrate_rows(
        lambda x, t: pendulum(x, t.to(x)), x.float(), 0.0, 3.0, rtol=1e-5, atol=1e-5
    )
    assert single.x.dtype == torch.float32
    torch.testing.assert_close(single.x.double(), double.x, rtol=0, atol=1e-4)
    assert float((single.evaluations - double.evaluations).abs().max()) <= 12


@pytest.mark.parametrize("shape", [(), (1,), (3, 4, 5)])
def test_events_of_any_shape(shape):
    x, rates = normal(5, *shape), torch.tensor([0.1, 3.0, 1.0, 40.0, 2.0]).double()
    velocity, select = decay(rates)
    found = integrate_rows(
        velocity, x, 0.0, 1.0, rtol=1e-7, atol=1e-7, at=[0.25, 1.0], select=select
    )
    torch.testing.assert_close(found.x, decayed(x, rates, 1.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.states[:, 0], decayed(x, rates, 0.25), rtol=0, atol=1e-6)
    flat = integrate_rows(velocity, x.reshape(5, -1), 0.0, 1.0, rtol=1e-7, atol=1e-7, select=select)
    assert torch.equal(flat.x.reshape(x.shape), found.x)


# --- rows on their own


def thirty():
    rates = torch.cat([torch.linspace(0.1, 2.0, 29), torch.tensor([1500.0])]).double()
    return normal(30, 2), rates


def check_a_stiff_neighbour(module):
    x, rates = thirty()
    velocity, select = decay(rates)
    seen = []

    def spied(rows):
        return spy(select(rows), seen)

    together = module.integrate_rows(
        spy(velocity, seen), x, 0.0, 1.0, rtol=1e-6, atol=1e-6, select=spied
    )
    made = sum(map(len, seen))
    alone = [
        module.integrate_rows(
            select(torch.tensor([i])), x[i : i + 1], 0.0, 1.0, rtol=1e-6, atol=1e-6
        )
        for i in range(30)
    ]
    assert together.status.tolist() == [OK] * 30
    torch.testing.assert_close(together.x, decayed(x, rates, 1.0), rtol=0, atol=1e-5)
    assert made <= 1.05 * sum(int(one.evaluations) for one in alone)
    assert made == int(together.evaluations.sum())
    assert together.evaluations.tolist() == [int(one.evaluations) for one in alone]
    assert torch.equal(together.x, torch.cat([one.x for one in alone]))
    assert int(together.evaluations[:-1].max()) * 10 < int(together.evaluations[-1])


@pytest.mark.thorough
def test_a_stiff_neighbour_costs_the_others_nothing():
    check_a_stiff_neighbour(rowwise)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "change",
    [
        ("return square.mean(1, dtype=", "return square.mean().expand(len(square)).to(dtype="),
        pytest.param(
            ("over = arrived |", "over = arrived.all().expand(len(arrived)) |"),
            marks=pytest.mark.slow,
        ),
        ("else select(active.rows)", "else velocity"),
        pytest.param(
            ("_rows(active, stay)", "_rows(active, stay.flip(0))._replace(rows=active.rows[stay])"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("    active, spent = _started(", "    active, spent = _shared("),
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        "norm of the batch",
        "all wait for the last",
        "conditions not gathered",
        "rows confused",
        "first step shared",
    ],
)
def test_the_test_of_neighbours_catches(change):
    module = mutant(change)

    def shared(*arguments):
        active = module._started(*arguments)
        return active._replace(h=active.h.min().expand(len(active.h)))

    module._shared = shared
    with pytest.raises((AssertionError, RuntimeError)):
        check_a_stiff_neighbour(module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 2, 7, 300])
def test_bits_do_not_depend_on_the_batch(dtype, d):
    """Whatever the batch size does to vectorised loops and sums."""
    x = normal(37, d, dtype=dtype)
    whole = integrate_rows(
        lambda x, t: -(x * x * x) * (1 + t.to(x)[:, None]), x, 0.0, 2.0, at=[0.7]
    )
    for rows in (slice(0, 1), slice(36, 37), slice(3, 8), slice(5, 21)):
        part = integrate_rows(
            lambda x, t: -(x * x * x) * (1 + t.to(x)[:, None]), x[rows], 0.0, 2.0, at=[0.7]
        )
        for a, b in zip(part, whole, strict=True):
            assert torch.equal(a, b[rows])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (-0.3, 0.1), (0.1, -0.3)])
def test_no_evaluation_outside_the_interval(method, start, end):
    seen, rates = [], torch.tensor([0.0, 0.1, 50.0]).double()
    _, select = decay(rates * math.copysign(1, end - start))
    integrate_rows(
        spy(select(torch.arange(3)), seen),
        torch.full((3, 1), 2.0, dtype=torch.float64),
        start,
        end,
        method=method,
        select=lambda rows: spy(select(rows), seen),
    )
    times = torch.cat(seen)
    assert float(times.min()) == min(start, end)
    assert float(times.max()) == max(start, end)


@pytest.mark.thorough
def test_each_step_waits_for_the_device_once():
    class Waits(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.made += any(
                name in str(function)
                for name in ("_local_scalar_dense", "nonzero", "masked_select", "equal.")
            )
            return function(*args, **(kwargs or {}))

    x, rates = normal(20, 2), torch.linspace(0.1, 100.0, 20).double()
    velocity, select = decay(rates)
    for at, others in (
        (None, 2),
        ([0.2, 0.5], 4),
    ):  # checks of the tolerances, and of the times and of what failed
        with Waits() as waits:
            found = integrate_rows(velocity, x, 0.0, 1.0, select=select, at=at)
        assert waits.made <= (int(found.evaluations.max()) - 2) // 6 + others


# --- cost against error


def check_cost(module):
    """Fewer evaluations a row than torchdiffeq's shared steps at no larger median error."""
    field = resolve(ring_mixture().noised(stk.VP()), {"velocity"}, timed=True)
    x = normal(64, 2)
    exact = integrate(field.velocity, x, 0.0, 0.999, method="dopri8", rtol=1e-11, atol=1e-11).x
    shared = integrate(
        field.velocity, x, 0.0, 0.999, method="torchdiffeq/dopri5", rtol=1e-5, atol=1e-5
    )
    own = module.integrate_rows(field.velocity, x, 0.0, 0.999, rtol=3e-6, atol=3e-6, max_steps=100)
    errors = [float((found.x - exact).norm(dim=1).median()) for found in (own, shared)]
    assert errors[0] <= errors[1]
    assert float(own.evaluations.double().mean()) < 0.95 * shared.evaluations
    assert float((own.x - exact).norm(dim=1).max()) < 1e-4


def check_relative_error(module):
    """Large numbers with a relative tolerance cost what small ones do."""
    found = module.integrate_rows(
        pendulum, 1e6 + normal(3, 2), 0.0, 1.0, rtol=1e-6, atol=1e-12, max_steps=50
    )
    assert found.status.tolist() == [OK] * 3


def check_accuracy(module):
    check_relative_error(module)
    check_cost(module)


@pytest.mark.slow
def test_cost_at_equal_error_is_below_that_of_shared_steps():
    check_accuracy(rowwise)


@pytest.mark.parametrize(
    "change",
    [
        (
            "torch.addcmul(active.atol, active.rtol, torch.maximum(x.abs(), ahead.abs()))",
            "active.atol",
        ),
        pytest.param(
            ("k, error, error <= 1)", "k, error, error < torch.inf)"), marks=pytest.mark.slow
        ),
        ("SAFETY * error **", "SAFETY / error **"),
        pytest.param(
            ("select_rows(step.accepted, step.k[-1], step.k[0])", "step.k[0]"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["error without rtol", "nothing rejected", "control reversed", "stale first stage"],
)
def test_the_tests_of_accuracy_catch(change):
    module = mutant(change)
    with pytest.raises(AssertionError):
        check_accuracy(module)


# --- states on the way


@pytest.mark.parametrize("method", slow_but(METHODS, "dopri5", "tsit5"))
@pytest.mark.parametrize("backwards", [False, True])
def test_states_on_the_way_cost_nothing(method, backwards):
    x = normal(4, 2)
    times = [0.0, 0.123, 1.0, 1.7, 2.9, 3.0]
    exact = pendulum_at(x, times)
    start, end = (3.0, 0.0) if backwards else (0.0, 3.0)
    begin = exact[:, -1] if backwards else x
    plain = integrate_rows(pendulum, begin, start, end, method=method, rtol=1e-7, atol=1e-7)
    found = integrate_rows(
        pendulum, begin, start, end, method=method, rtol=1e-7, atol=1e-7, at=times[::-1]
    )
    torch.testing.assert_close(found.states.flip(1), exact, rtol=0, atol=5e-6)
    assert torch.equal(found.x, plain.x)
    assert torch.equal(found.evaluations, plain.evaluations)
    assert torch.equal(found.states[:, -1 if backwards else 0], found.x)
    assert torch.equal(found.states[:, 0 if backwards else -1], begin)


# --- ends of other kinds


def test_running_out_of_steps_keeps_the_state():
    x, rates = thirty()
    velocity, select = decay(rates)
    found = integrate_rows(
        velocity, x, 0.0, 1.0, rtol=1e-6, atol=1e-6, max_steps=60, at=[0.001, 0.99], select=select
    )
    assert found.status.tolist() == [OK] * 29 + [MAX_STEPS]
    assert int(found.evaluations[-1]) == 2 + 60 * 6
    t = float(found.t[-1])
    assert 0.01 < t < 0.9
    torch.testing.assert_close(found.x[-1:], decayed(x[-1:], rates[-1:], t), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.states[:, 0], decayed(x, rates, 0.001), rtol=0, atol=1e-5)
    assert torch.equal(found.states[-1, 1], found.x[-1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_where_the_velocity_is_not_finite_the_row_stops(bad):
    """Rows walk at speeds 0, 1, 2, 3 to x = 1.5, behind which there is nothing."""
    x, speed = torch.zeros(4, 1).double(), torch.arange(4).double()

    def select(rows):
        return lambda x, t: torch.where(x > 1.5, bad, speed[rows, None] + 0 * x)

    found = integrate_rows(select(torch.arange(4)), x, 0.0, 1.0, select=select)
    assert found.status.tolist() == [OK, OK, NONFINITE, NONFINITE]
    torch.testing.assert_close(found.x[:, 0], torch.tensor([0.0, 1.0, 1.5, 1.5]).double())
    torch.testing.assert_close(found.t, torch.tensor([1.0, 1.0, 0.75, 0.5]).double())
    alone = integrate_rows(select(torch.arange(2)), x[:2], 0.0, 1.0, select=select)
    assert torch.equal(alone.x, found.x[:2])
    lost = integrate_rows(lambda x, t: x * bad, x + 1, 0.0, 1.0)
    assert lost.status.tolist() == [NONFINITE] * 4
    assert lost.x.tolist() == (x + 1).tolist()


def test_a_state_that_overflows_is_not_accepted():
    found = integrate_rows(
        lambda x, t: torch.full_like(x, 3e38), torch.full((1, 1), 3e38), 0.0, 1.0
    )
    assert found.status.tolist() == [NONFINITE]
    assert bool(found.x.isfinite().all())


def test_a_solution_without_a_future_diverges():
    """dx/dt = x^2 from 2 leaves every bound at t = 1/2."""
    found = integrate_rows(lambda x, t: x * x, torch.tensor([[2.0], [0.5]]).double(), 0.0, 1.0)
    assert found.status.tolist() == [DIVERGED, OK]
    assert abs(float(found.t[0]) - 0.5) < 1e-5
    assert float(found.x[0]) > 1e6
    torch.testing.assert_close(found.x[1], torch.tensor([1.0]).double(), rtol=0, atol=1e-4)


def test_nothing_to_do():
    x = normal(3, 2)
    still = integrate_rows(pendulum, x, 0.4, 0.4, at=[0.4])
    assert torch.equal(still.x, x)
    assert torch.equal(still.states[:, 0], x)
    assert still.status.tolist() == still.evaluations.tolist() == [0, 0, 0]
    none = integrate_rows(pendulum, x[:0], 0.0, 1.0, at=[0.5])
    assert none.x.shape == (0, 2)
    assert none.states.shape == (0, 1, 2)
    same = integrate_rows(lambda x, t: torch.zeros_like(x), x, 0.0, 1.0)
    assert torch.equal(same.x, x)
    assert int(same.evaluations.max()) < 40


def test_gradients_where_autograd_is_on():
    rates = torch.tensor([0.5, 3.0], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[2.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    velocity, select = decay(rates)
    found = integrate_rows(velocity, x, 0.0, 1.0, rtol=1e-9, atol=1e-9, at=[0.5], select=select)
    got = torch.autograd.grad(found.x.sum() + found.states.sum(), (x, rates))
    want = torch.autograd.grad((decayed(x, rates, 1.0) + decayed(x, rates, 0.5)).sum(), (x, rates))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-7)
    with torch.no_grad():
        assert not integrate_rows(velocity, x, 0.0, 1.0, select=select).x.requires_grad


@pytest.mark.parametrize(
    ("wrong", "error", "named"),
    [
        ({"method": "dopri6"}, UnknownName, "dopri5"),
        ({"rtol": 0.0}, InvalidArgument, "rtol"),
        ({"atol": torch.ones(2)}, InvalidArgument, "atol"),
        ({"max_steps": 0}, InvalidArgument, "max_steps"),
        ({"at": [0.5, 1.5]}, InvalidArgument, "at"),
        ({"end": math.nan}, InvalidArgument, "end"),
    ],
)
def test_wrong_arguments_are_named(wrong, error, named):
    with pytest.raises(error, match=named):
        integrate_rows(pendulum, **{"x": normal(3, 2), "start": 0.0, "end": 1.0} | wrong)
