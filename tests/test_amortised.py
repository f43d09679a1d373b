"""Amortised posteriors: simulators and exact posteriors of the tasks, and the classifier that judges."""

import math

import pytest
import torch

import scoretk as stk
from scoretk.core.dependencies import required
from scoretk.demo.bench import amortised as bench
from scoretk.demo.bench import slcp
from scoretk.demo.bench.amortised import TASKS, FlowPlan, Learner, Plan, c2st, learned, learned_flow
from scoretk.demo.bench.rows import Asked
from scoretk.diagnostics.convergence import ess
from scoretk.errors import MissingDependency
from tests.evidence import z_limit
from tests.marks import slow_but

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
    if name == "slcp":
        return log_density_of_points(theta, x)
    if name == "gaussian-linear":
        return -5 * theta.square().sum(1) - 5 * (x - theta).square().sum(1)
    radius, angle = crescent(theta, x)
    inside = (angle.abs() < math.pi / 2) & (theta.abs() <= 1).all(1)
    value = -((radius - 0.1) ** 2) / (2 * 0.01**2) - radius.log()  # polar: da dr = dp / r
    return torch.where(inside, value, -torch.inf)


def law_of_points(theta):
    """Of one of the four points, from torch's own."""
    one, two = theta[:, 2] ** 2, theta[:, 3] ** 2
    cross = theta[:, 4].tanh() * one * two
    covariance = torch.stack([one**2 + 1e-6, cross, cross, two**2 + 1e-6], 1).reshape(-1, 2, 2)
    return torch.distributions.MultivariateNormal(theta[:, :2], covariance)


def log_density_of_points(theta, x):
    law = law_of_points(theta.clamp(-3, 3))
    value = law.log_prob(x.reshape(-1, 4, 2).transpose(0, 1)).sum(0)
    return torch.where((theta.abs() <= 3).all(1), value, -torch.inf)


@pytest.fixture
def coarse(monkeypatch):
    """A grid of the posterior of points that is made at once, with as sure a rejection."""
    monkeypatch.setattr(slcp, "CELLS", 28)
    monkeypatch.setattr(slcp, "LARGEST", 8.0)


PAIRS = {"slcp": 120}


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("name", slow_but(TASKS, "two-moons", "gaussian-linear"))
def test_exact_draws_have_the_same_law_given_x_as_truths(name):
    """Of pairs (truth, x) and (exact draw given x, x): means of products and squares."""
    task, n = TASKS[name], PAIRS.get(name, 4000)
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


@pytest.mark.parametrize("name", ["two-moons", "gaussian-linear"])
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


MOMENTS = (
    lambda t: t[:, :2],
    lambda t: t[:, :2].square(),
    lambda t: t[:, 2:4].abs(),
    lambda t: t[:, 2:4],
    lambda t: t[:, 4:],
    lambda t: t[:, 2:3].abs() * t[:, 3:4].abs(),
    lambda t: t[:, 4:] * t[:, :1],
    lambda t: t[:, :1] * t[:, 1:2],
    lambda t: t[:, 2:3] * t[:, 3:4],
)
"""Of all coordinates, of those with a sign that is free and of their sizes, and of pairs."""
WIDE = torch.tensor([-0.5, 1.0, 2.5, -0.5, 0.4, 2.2, -2.8, -1.6], **DOUBLE)
"""A simulation whose posterior fills much of the box, and is cut by it."""


def moments(theta):
    return torch.cat([f(theta) for f in MOMENTS], 1)


def weighted_by_likelihood(x, n, seed):
    """Means of `moments` by draws of the prior with the likelihood as weights, and their standard errors."""
    theta = 3 * (2 * torch.rand(n, 5, **DOUBLE, generator=generator(seed)) - 1)
    share = log_density_of_points(theta, x[None]).softmax(0)
    values = moments(theta)
    mean = share @ values
    return mean, (share.square() @ (values - mean).square()).sqrt()


def test_posterior_of_points_is_the_prior_times_the_likelihood():
    right, error = weighted_by_likelihood(WIDE, 400_000, 1)
    drawn = TASKS["slcp"].exact(WIDE, 20_000, generator(2))
    found = moments(drawn)
    assert bool((drawn.abs() <= 3).all())
    assert bool((drawn[:, :2].abs().amax(0) > 2.9).any())  # the box cuts it
    z = (found.mean(0) - right) / (error.square() + found.var(0) / len(found)).sqrt()
    assert float(z.abs().max()) < z_limit(len(z))
    wider = moments(1.1 * drawn)
    z = (wider.mean(0) - right) / (error.square() + wider.var(0) / len(wider)).sqrt()
    assert float(z.abs().max()) > z_limit(len(z)), "a tenth too wide would not be seen"


@pytest.mark.usefixtures("coarse")
def test_cells_that_are_coarser_make_other_draws_and_no_other_posterior(monkeypatch):
    """Within a cell the density changes a hundredfold where an axis has four: what is drawn evenly there is rejected."""
    monkeypatch.setattr(slcp, "LEAST_TRIES", 50_000)
    fine = moments(TASKS["slcp"].exact(WIDE, 8000, generator(9)))
    monkeypatch.setattr(slcp, "CELLS", 4)
    for largest, right in ((100.0, True), (1e-300, False)):  # the latter rejects nothing
        monkeypatch.setattr(slcp, "LARGEST", largest)
        found = moments(TASKS["slcp"].exact(WIDE, 3000, generator(2)))
        error = (found.var(0) / len(found) + fine.var(0) / len(fine)).sqrt()
        z = (found.mean(0) - fine.mean(0)) / error
        assert (float(z.abs().max()) < z_limit(len(z))) == right, (largest, z)


@pytest.mark.slow
def test_posterior_of_points_is_what_a_long_run_finds():
    """A Hamiltonian run in the box: another method, without grid or symmetry; of a scale's signs a chain sees one."""
    theta, x = TASKS["slcp"].simulated(1, generator(3))
    box = stk.Variable((5,), torch.distributions.constraints.interval(-3.0, 3.0))
    field = stk.Energy(
        lambda theta: -log_density_of_points(theta, x.to(theta)), variables={"theta": box}
    )
    solver, start = stk.HMC(step_size=0.2, leapfrogs=5), {"theta": theta.expand(64, -1)}
    run = stk.sample(field, solver, 64, 300, 150, seed=3, init=start, dtype=torch.float64)

    def of_sizes(t):
        t = torch.cat([t[..., :2], t[..., 2:4].abs(), t[..., 4:]], -1)
        return torch.cat([t, t.square(), t[..., 2:3] * t[..., 3:4], t[..., 4:] * t[..., :1]], -1)

    mine, exact = of_sizes(run["theta"]), of_sizes(TASKS["slcp"].exact(x[0], 20_000, generator(4)))
    error = mine.flatten(0, 1).var(0) / ess(mine) + exact.var(0) / len(exact)
    z = (mine.mean((0, 1)) - exact.mean(0)) / error.sqrt()
    assert float(ess(mine).min()) > 200
    assert float(z.abs().max()) < z_limit(len(z))


def test_simulated_points_are_of_their_law():
    """The squares of whitened points are chi-squared, and the parameters fill the box."""
    theta, x = TASKS["slcp"].simulated(4000, generator(6))
    law = law_of_points(theta)
    off = x.reshape(-1, 4, 2) - theta[:, None, :2]
    white = torch.linalg.solve_triangular(law.scale_tril, off.transpose(1, 2), upper=False)
    rows = white.transpose(1, 2).reshape(-1, 2)
    n = len(rows)
    found = torch.stack(
        [*rows.mean(0), *((rows.var(0) - 1) / 2**0.5), (rows[:, 0] * rows[:, 1]).mean()]
    )
    assert float(found.abs().max()) < z_limit(5) / n**0.5
    assert float(theta.abs().max()) <= 3
    assert float((theta.var(0) / 3 - 1).abs().max()) < z_limit(5) * (0.8 / 4000) ** 0.5


@pytest.mark.thorough
def test_cells_follow_a_narrow_posterior():
    """Of points a thousandth apart, with scales of .03 in a box of 3: the grid is of what has the mass."""
    x = WIDE / 3000
    points = x.reshape(4, 2)
    scatter = (points - points.mean(0)).T @ (points - points.mean(0))
    edges = slcp._edges(scatter)
    slices = slcp._cells(edges, scatter)[1]
    assert all(float(s.max() / s.sum()) < 0.1 for s in slices)
    drawn = slcp.slcp_exact(x, 4000, generator())
    assert float(drawn[:, 2:4].abs().mean()) < 0.1
    assert float((drawn[:, :2].mean(0) - points.mean(0)).abs().max()) < 1e-3


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
    learn = {"flow-matching": Learner(lambda *_: Exactly(), Plan(1), Plan(1))}
    monkeypatch.setattr(bench, "LEARNERS", learn)
    rows = list(bench.amortised(Asked(targets=("two-moons",))))
    assert [r["simulations"] for r in rows] == [1000]
    assert rows[0]["cause"] == "a classifier of 500 draws, where the published had 10,000"
    assert abs(rows[0]["C2ST"].value - 0.5) < 5 / math.sqrt(2 * 2 * 500)
    learn["flow-matching"] = Learner(lambda *_: Exactly(0.3), Plan(1), Plan(1))
    (row,) = bench.amortised(Asked(targets=("two-moons",)))
    assert row["reached"] == "no"
    assert "above the published number" in row["cause"]
    assert bench._cause(0.6, 0.7, 10_000) == ""
    assert bench._cause(0.7, 0.6, 10_000) == "0.100 above the published number"
    assert not list(bench.amortised(Asked(targets=("banana",))))
    assert not list(bench.amortised(Asked(solvers=("mclmc",))))


def test_rows_are_of_tasks_and_ways_to_learn(monkeypatch):
    made = []

    def spied(name, n, learner, asked):
        made.append((name, n, learner))
        return {}

    monkeypatch.setattr(bench, "_made", spied)
    list(bench.amortised(Asked(quick=False, targets=("slcp",))))
    list(bench.amortised(Asked(solvers=("spline-flow",))))
    ways = ("flow-matching", "spline-flow")
    right = [("slcp", n, way) for n in (1_000, 10_000) for way in ways]
    assert made == right + [(name, 1_000, "spline-flow") for name in TASKS]
    assert {name: dict(task.published) for name, task in TASKS.items()} == {
        "two-moons": {1_000: 0.725, 10_000: 0.606},
        "gaussian-linear": {1_000: 0.694, 10_000: 0.552},
        "slcp": {1_000: 0.975, 10_000: 0.901},
    }


def test_a_way_that_is_not_installed_says_so(monkeypatch):
    def absent(*_):
        raise MissingDependency("zuko", "flows", "a posterior by a normalizing flow")

    monkeypatch.setattr(bench, "LEARNERS", {"spline-flow": Learner(absent, Plan(1), Plan(1))})
    (row,) = bench.amortised(Asked(targets=("gaussian-linear",)))
    assert row["reached"] == "no"
    assert "zuko" in row["cause"]
    assert row["C2ST"] is None


@pytest.mark.thorough
def test_a_flow_learns_a_posterior_and_leaves_the_global_generator_alone():
    """The linear task's mean is x / 2; of a flow trained for seconds, the same by the same seed."""
    required("zuko", "flows", "this test")
    theta, x = TASKS["gaussian-linear"].simulated(2000, generator())
    before = torch.get_rng_state()
    posterior = learned_flow(theta[:, :2], x[:, :2], FlowPlan(120, 16, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for sign in (1, -1):
        drawn = posterior.drawn(torch.full((2,), 0.5 * sign, **DOUBLE), 2000)
        assert drawn.shape == (2000, 2)
        assert not drawn.requires_grad
        assert drawn.dtype == torch.float64
        assert float((drawn.mean(0) - 0.25 * sign).abs().max()) < 0.08
        assert 0.7 < float(drawn.std(0).mean()) / math.sqrt(0.05) < 1.3
    given = torch.zeros(2, **DOUBLE)
    assert torch.equal(posterior.drawn(given, 8, 3), posterior.drawn(given, 8, 3))
    assert not torch.equal(posterior.drawn(given, 8, 3), posterior.drawn(given, 8, 4))


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
