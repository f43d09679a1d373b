"""Amortised posteriors: simulators and exact posteriors of the tasks, and the classifier that judges."""

import math

import pytest
import torch

import scoretk as stk
from scoretk.bench import amortised as bench
from scoretk.bench.amortised import TASKS, Plan, c2st, learned
from scoretk.bench.rows import Asked
from tests.evidence import z_limit

DOUBLE = {"dtype": torch.float64}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def crescent(theta, x):
    """Radius and angle of p about (1/4, 0), which x is made of."""
    right = x[:, 0] + (theta[:, 0] + theta[:, 1]).abs() / 2**0.5 - 0.25
    up = x[:, 1] - (theta[:, 1] - theta[:, 0]) / 2**0.5
    return torch.hypot(right, up), torch.atan2(up, right)


def log_density(name, theta, x):
    """The log of prior times likelihood, up to a constant, `(batch,)`; a second writing of the tasks."""
    if name == "gaussian-linear":
        return -5 * theta.square().sum(1) - 5 * (x - theta).square().sum(1)
    radius, angle = crescent(theta, x)
    inside = (angle.abs() < math.pi / 2) & (theta.abs() <= 1).all(1)
    value = -((radius - 0.1) ** 2) / (2 * 0.01**2) - radius.log()  # polar: da dr = dp / r
    return torch.where(inside, value, -torch.inf)


@pytest.mark.parametrize("name", TASKS)
def test_exact_draws_have_the_same_law_given_x_as_truths(name):
    """Of pairs (truth, x) and (exact draw given x, x): means of products and squares."""
    task, n = TASKS[name], 4000
    truth, x = task.simulated(n, generator())
    drawn = torch.cat([task.exact(one, 1, generator(i)) for i, one in enumerate(x)])
    tests = [
        lambda t: t,
        lambda t: t.square(),
        lambda t: t * x[:, : t.shape[1]],
        lambda t: t[:, :1] * t[:, 1:2],
        lambda t: t[:, :1] * t[:, 1:2] * x[:, :1],
        lambda t: t.abs() * x[:, 1:2],
    ]
    moved = torch.cat([f(truth) - f(drawn) for f in tests], 1)
    z = moved.mean(0) / (moved.std(0) / math.sqrt(n))
    assert float(z.abs().max()) < z_limit(len(z))


@pytest.mark.parametrize("name", TASKS)
def test_exact_draws_follow_the_density(name):
    """The score of the density of draws has mean 0, and its product with theta mean -1 (in R^d); of the moons, a grid."""
    task = TASKS[name]
    x = task.simulated(1, generator(5))[1][0]
    drawn = task.exact(x, 20_000, generator(1))
    assert bool(log_density(name, drawn, x[None]).isfinite().all())
    if name == "gaussian-linear":
        z = (drawn.mean(0) - x / 2) / (math.sqrt(0.05 / 20_000))
        assert float(z.abs().max()) < z_limit(10)
        ratio = drawn.var(0) / 0.05 - 1
        assert float(ratio.abs().max()) < z_limit(10) * math.sqrt(2 / 20_000)
        return
    at = torch.linspace(-1, 1, 1601, **DOUBLE)
    grid = torch.cartesian_prod(at, at)
    weight = log_density(name, grid, x[None]).exp()
    weight = weight / weight.sum()
    for f in (lambda t: t, lambda t: t.square(), lambda t: t[:, :1] * t[:, 1:], lambda t: t**3):
        exact = weight @ f(grid)
        error = f(drawn).std(0) / math.sqrt(20_000)
        assert float(((f(drawn).mean(0) - exact).abs() / (error + 2e-5)).max()) < z_limit(10)


def test_moons_are_as_thick_as_they_are_said_to_be():
    """Of simulations, and of exact draws given an x that not every p leads to (for most `x_1 > p_1`)."""
    truth, x = TASKS["two-moons"].simulated(4000, generator())
    near = torch.tensor([[0.33, 0.0]], **DOUBLE)
    drawn = TASKS["two-moons"].exact(near[0], 4000, generator())
    for theta, given in ((truth, x), (drawn, near)):
        radius, angle = crescent(theta, given)
        z = (radius - 0.1) / 0.01
        assert float(z.abs().max()) < 7
        assert float(angle.abs().max()) < math.pi / 2
    radius, angle = crescent(truth, x)
    z = (radius - 0.1) / 0.01
    assert abs(float(z.mean())) < z_limit(4) / math.sqrt(4000)
    assert abs(float(z.var()) - 1) < z_limit(4) * math.sqrt(2 / 4000)
    share = angle / math.pi + 0.5
    assert abs(float(share.mean()) - 0.5) < z_limit(4) / math.sqrt(12 * 4000)
    assert abs(float(share.var()) * 12 - 1) < z_limit(4) * math.sqrt(0.8 / 4000)


def test_both_moons_are_drawn_and_only_within_the_square():
    drawn = TASKS["two-moons"].exact(torch.zeros(2, **DOUBLE), 2000, generator())
    share = float((drawn.sum(1) > 0).double().mean())
    assert abs(share - 0.5) < z_limit(1) * 0.5 / math.sqrt(2000)
    corner = TASKS["two-moons"].exact(torch.tensor([-1.0, 0.0], **DOUBLE), 500, generator())
    assert bool((corner.abs() <= 1).all())
    assert len(corner) == 500


@pytest.mark.slow
def test_a_classifier_tells_laws_apart_and_not_one_from_itself():
    x, y = (torch.randn(1500, 2, **DOUBLE, generator=generator(s)) for s in (0, 1))
    assert abs(c2st(x, y) - 0.5) < 5 / math.sqrt(3000)
    assert c2st(x, y + 1) > 0.62  # the best there is: Phi(sqrt(2) / 2) = .76
    assert c2st(x, y + 6) > 0.99
    assert c2st(x, y) == c2st(x, y)


@pytest.mark.slow
def test_a_learned_posterior_moves_with_its_measurement():
    """The linear task's mean is x / 2; of a network trained for seconds."""
    theta, x = TASKS["gaussian-linear"].simulated(2000, generator())
    posterior = learned(theta, x, Plan(steps=400, hidden=64, layers=2))
    for sign in (1, -1):
        given = torch.full((10,), 0.5 * sign, **DOUBLE)
        drawn = posterior.drawn(given, 500)
        assert drawn.shape == (500, 10)
        assert drawn.dtype == torch.float64
        assert float((drawn.mean() - 0.25 * sign).abs()) < 0.05
        assert 0.5 < float(drawn.std(0).mean()) / math.sqrt(0.05) < 1.5
    assert torch.equal(posterior.drawn(given, 8, 3), posterior.drawn(given, 8, 3))
    assert not torch.equal(posterior.drawn(given, 8, 3), posterior.drawn(given, 8, 4))


@pytest.mark.thorough
def test_rows_say_how_far_they_are(monkeypatch):
    monkeypatch.setattr(bench, "QUICK", (Plan(1), 500, 2))
    monkeypatch.setattr(bench, "learned", lambda *_: Exactly())
    rows = list(bench.amortised(Asked(targets=("two-moons",))))
    assert [r["simulations"] for r in rows] == [1000]
    assert rows[0]["cause"] == "a classifier of 500 draws, where the published had 10,000"
    assert abs(rows[0]["C2ST"].value - 0.5) < 5 / math.sqrt(2 * 2 * 500)
    monkeypatch.setattr(bench, "learned", lambda *_: Exactly(0.3))
    (row,) = bench.amortised(Asked(targets=("two-moons",)))
    assert row["reached"] == "no"
    assert "above the published number" in row["cause"]
    assert bench._cause(0.6, 0.7, 10_000) == ""
    assert bench._cause(0.7, 0.6, 10_000) == "0.100 above the published number"
    assert not list(bench.amortised(Asked(targets=("banana",))))
    assert not list(bench.amortised(Asked(solvers=("mclmc",))))


class Exactly:
    """The linear task's posterior, moved."""

    def __init__(self, by=0.0):
        self.by = by

    def drawn(self, x, n, seed=0):
        return TASKS["two-moons"].exact(x, n, generator(seed % 2**63)) + self.by


def test_the_global_generator_is_left_alone():
    theta, x = TASKS["two-moons"].simulated(100, generator())
    first, second = (learned(theta, x, Plan(3, 8, 1), seed=s) for s in (0, 0))
    assert torch.equal(first.drawn(x[0], 4), second.drawn(x[0], 4))
    assert isinstance(first.field, stk.Velocity)
