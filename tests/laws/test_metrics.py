"""The metric "auto": a Cholesky factor where coordinates are strongly correlated, else the diagonal to the bit.

The laws are of every solver that has it, found by its signature.
"""

import inspect
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributions import constraints

import scoretk as stk
from scoretk.solvers.parts.leapfrog import is_factor, stretch, unstretch
from scoretk.solvers.warmup import length, scales
from scoretk.solvers.warmup.learning import Lesson

KERNELS = {
    name: kernel
    for name, kernel in ((name, getattr(stk, name)) for name in sorted(stk.__all__))
    if inspect.isclass(kernel) and getattr(kernel, "metric", None) == "auto"
}


def made(name, metric="auto"):
    """The kernel; trees of NUTS are short, as its first steps are."""
    return KERNELS[name](metric=metric, **({"max_depth": 4} if name == "NUTS" else {}))


def correlated(rho, dim=5):
    """A normal all of whose coordinates are correlated by rho, on scales from .1 to 10."""
    covariance = rho * torch.ones(dim, dim).double() + (1 - rho) * torch.eye(dim).double()
    deviations = torch.logspace(-1, 1, dim).double()
    covariance = covariance * deviations * deviations[:, None]
    precision = torch.linalg.inv(covariance)
    return covariance, stk.Energy(lambda x: ((x @ precision.to(x)) * x).sum(1) / 2, (dim,))


def run_of(solver, field, **options):
    settings = {"chains": 24, "steps": 3, "warmup": 80, "seed": 1, "dtype": torch.float64}
    return stk.sample(field, solver, **(settings | options))


def test_these_have_it_by_default():
    assert set(KERNELS) == {
        "HMC",
        "ChEES",
        "NUTS",
        "PreconditionedLangevin",
        "MCLMC",
        "AdjustedMCLMC",
    }


@pytest.mark.parametrize("name", KERNELS)
def test_strong_correlations_are_taken_out(name):
    """A factor L of the covariance: the law in scaled space is a standard normal. A mutant: the diagonal leaves it long."""
    covariance, field = correlated(0.99)
    tuned = run_of(made(name), field).tuned

    def elongation(scale):
        within = torch.linalg.solve(scale, torch.linalg.solve(scale, covariance).T)
        values = torch.linalg.eigvalsh(within)
        return math.sqrt(float(values[-1] / values[0]))

    assert tuned["scale"].shape == (5, 5)
    assert elongation(tuned["scale"]) < 2
    assert elongation(run_of(made(name, "diagonal"), field).tuned["scale"].diag()) > 10


@pytest.mark.parametrize("name", KERNELS)
def test_otherwise_it_is_the_diagonal_to_the_bit(name):
    field = correlated(0.2, 3)[1]
    short = {"chains": 16, "warmup": 40, "steps": 2}
    draws, diagonal = (
        run_of(made(name, metric), field, **short) for metric in ("auto", "diagonal")
    )
    assert torch.equal(draws.x, diagonal.x)
    assert all(torch.equal(draws.tuned[k], diagonal.tuned[k]) for k in diagonal.tuned)


def window_with(covariance, draws):
    """A window whose covariance is exactly this, so that nothing is left to chance."""
    return scales.Window(
        torch.tensor(float(draws), dtype=torch.float64),
        torch.zeros(len(covariance), dtype=torch.float64),
        covariance.diagonal() * (draws - 1),
        covariance * (draws - 1),
    )


def half_of(rho, draws=10_000, dim=5):
    """Half of the chains of `correlated`: the covariance of the gradients of a normal law is its precision."""
    covariance = correlated(rho, dim)[0]
    return scales.Half(
        *(window_with(matrix, draws) for matrix in (covariance, torch.linalg.inv(covariance)))
    )


def both_halves(half):
    return scales.Halves(half.positions._replace(products=torch.zeros(0, 0)), half, half)


def sampled(rho, draws, seed, dim=5):
    """Half of chains of `correlated` that hardly move: of fifty draws that follow each other one is independent."""
    covariance = correlated(rho, dim)[0]
    z = torch.randn(draws, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = (z @ torch.linalg.cholesky(covariance).T).repeat(50, 1)
    seen = (x, x @ torch.linalg.inv(covariance))
    return scales.Half(*(scales.accumulate(scales.begin_window(v, True), v) for v in seen))


ONES = torch.ones(5, dtype=torch.float64)


@pytest.mark.parametrize("dim", [2, 5, 40])
@pytest.mark.parametrize(("off", "right"), [(0.97, False), (1.03, True)])
def test_a_factor_pays_from_how_much_shorter_trajectories_are(dim, off, right):
    """`(1 + (d - 1) rho) / (1 - rho)` is the square of how many times as long as narrow the law is."""
    square = (off * scales.SHORTER) ** 2
    both = half_of((square - 1) / (square + dim - 1), 10**7, dim)
    small = torch.full((dim,), 1e-6, dtype=torch.float64)
    assert scales.pays(both, both, small) == right
    after, spread = scales.Scales("auto")._found(both_halves(both), small)
    assert is_factor(after, (dim,)) == right
    assert after is spread


@pytest.mark.parametrize("dim", [2, 5, 40])
@pytest.mark.parametrize(("off", "right"), [(0.97, False), (1.03, True)])
def test_a_factor_pays_from_how_much_steeper_gradients_are_where_the_law_is_narrow(dim, off, right):
    """Of gradients with the covariance `t C^-1 + (1 - t) I`: modes far apart for t = 0, a normal law for t = 1."""
    covariance = correlated(0.99, dim)[0]
    covariance = covariance / torch.outer(covariance.diagonal(), covariance.diagonal()).sqrt()
    long, steep, square = 1 + (dim - 1) * 0.99, 1 / (1 - 0.99), (off * scales.STEEPER) ** 2
    share = long * (square - 1) / (long * (steep - 1) + square * (long - 1))
    gradients = share * torch.linalg.inv(covariance) + (1 - share) * torch.eye(dim)
    both = scales.Half(*(window_with(matrix, 10**7) for matrix in (covariance, gradients)))
    assert scales.pays(both, both, torch.full((dim,), 1e-6, dtype=torch.float64)) == right


@pytest.mark.parametrize("name", KERNELS)
def test_conditions_of_each_chains_own_make_no_factor(name, monkeypatch):
    """Each chain's law is the same in all directions, that of all chains long. A mutant: gradients are not asked."""
    field = stk.Energy(lambda x, y: (x - y).square().sum(1) / 2, (4,))
    y = 20 * torch.randn(24, 1, generator=torch.Generator().manual_seed(0)).double().repeat(1, 4)

    def found():
        return run_of(made(name), field, cond={"y": y}).tuned["scale"]

    assert found().shape == (4,)
    monkeypatch.setattr(scales, "STEEPER", 0.0)
    assert found().shape == (4, 4)


@pytest.mark.parametrize("rho", [0.2, 0.99])
def test_windows_of_a_device_without_float64_find_what_others_do(rho):
    """Its sums are float32, which no product takes beside float64."""
    halves = both_halves(half_of(rho))
    narrow = scales._each(halves, lambda v: v.float() if v.ndim else v)
    found, expected = (
        scales.Scales("auto")._found(windows, ONES.float())[0] for windows in (narrow, halves)
    )
    assert is_factor(found, (5,)) == (rho > 0.5)
    torch.testing.assert_close(found, expected)


def test_a_factor_pays_where_both_halves_of_the_chains_say_so():
    strong, other, none = half_of(0.99), half_of(-0.2), scales.emptied(half_of(0.99))
    assert scales.pays(strong, strong, ONES)
    less = half_of(
        0.9
    )  # its factor shortens trajectories of the strong ones, and not the other way round
    unlike = [(strong, other), (other, strong), (strong, less), (less, strong)]
    for halves in (*unlike, (other, other), (strong, none), (none, strong)):
        assert not scales.pays(*halves, ONES)


@pytest.mark.parametrize("draws", [6, 10, 40])
def test_chance_makes_no_factor_and_a_law_does_by_as_few_draws(draws):
    """A mutant: half of the chains judged by themselves find a factor for independent coordinates."""
    by_chance, by_law, itself = (
        [
            scales.pays(sampled(rho, draws, seed), sampled(rho, draws, seed + more), ONES)
            for seed in range(40)
        ]
        for rho, more in ((0.0, 1000), (0.9999, 1000), (0.0, 0))
    )
    assert not any(by_chance)
    assert all(by_law)
    assert any(itself) == (draws == 6)


def test_each_half_of_the_chains_has_windows_and_a_single_one_has_none():
    g = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 7, 3, generator=g, dtype=torch.float64)
    for chains, first in ((7, 4), (2, 1), (1, 1)):
        here = SimpleNamespace(x=x[:chains], grad=grad[:chains], scale=ONES[:3])
        memory = scales.Scales("auto").begin(None, None, here, None, None)[1]
        lesson = Lesson(here, None, torch.ones(chains).bool(), None, 30, 100, all_alive=True)
        pooled, one, two = scales.Scales("auto").learn(here, memory, lesson)[1]
        counts = [chains, first, first, chains - first, chains - first]
        assert [float(w.draws) for w in (pooled, *one, *two)] == counts
        torch.testing.assert_close(one.positions.mean, x[:first].mean(0))
        torch.testing.assert_close(one.gradients.mean, grad[:first].mean(0))
        torch.testing.assert_close(pooled.mean, x[:chains].mean(0))


def test_a_chain_is_of_the_same_half_whichever_others_fail():
    x = torch.arange(1.0, 7.0, dtype=torch.float64)[:, None].repeat(1, 2)
    here = SimpleNamespace(x=x, grad=-x, scale=ONES[:2])
    part = scales.Scales("auto")
    memory = part.begin(None, None, here, None, None)[1]
    for step, failed in ((30, ()), (31, (0, 1))):
        alive = torch.tensor([i not in failed for i in range(6)])
        memory = part.learn(here, memory, Lesson(here, None, alive, None, step, 100))[1]
    assert [float(w.draws) for w in (memory.pooled, *memory.first, *memory.second)] == [
        10,
        4,
        4,
        6,
        6,
    ]
    assert float(memory.first.positions.mean[0]) == (1 + 2 + 3 + 3) / 4
    assert float(memory.second.gradients.mean[0]) == -5


def test_what_halves_have_seen_is_what_all_have():
    """By NumPy, of as many and of fewer chains in the second half."""
    g = torch.Generator().manual_seed(0)
    for counts in ((6, 6), (5, 2), (4, 0), (0, 0)):
        pieces = [torch.randn(n, 3, generator=g).double() + n for n in counts]
        windows = [scales.accumulate(scales.begin_window(ONES[None, :3], True), v) for v in pieces]
        halves = scales.Halves(windows[0], *(scales.Half(w, w) for w in windows))
        x = torch.cat(pieces).numpy()
        by_hand = (x - x.mean(0)).T @ (x - x.mean(0)) if len(x) else np.zeros((3, 3))
        np.testing.assert_allclose(halves.products.numpy(), by_hand, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1e160, 1e-170])
@pytest.mark.parametrize("metric", scales.METRICS)
def test_what_no_square_holds_leaves_scales_as_they_are(metric, size):
    """Neither infinite nor zero scales, nor an error of the decomposition, come of lengths beyond the root of all numbers."""
    field = stk.Energy(lambda x: (x / size).square().sum(1) / 2, (3,))
    start = size * torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).double()
    for kernel in (stk.HMC, stk.ChEES):
        draws = run_of(kernel(metric=metric), field, chains=None, init=start, warmup=40)
        assert draws.tuned["scale"].isfinite().all()
        diagonal = (
            draws.tuned["scale"].flatten() if metric != "dense" else draws.tuned["scale"].diagonal()
        )
        assert (diagonal > 0).all()
        assert not draws.failures


@pytest.mark.parametrize(("dim", "looks"), [(1, False), (2, True), (256, True), (257, False)])
def test_correlations_of_few_coordinates_are_looked_at(dim, looks):
    x = torch.zeros(3, dim)
    state = SimpleNamespace(x=x, scale=x[0] + 1)
    pooled, *halves = scales.Scales("auto").begin(None, None, state, None, None)[1]
    assert pooled.products.shape == (0, 0)
    for window in (*halves[0], *halves[1]):
        assert window.products.shape == ((dim, dim) if looks else (0, 0))
    assert scales.begin_window(torch.zeros(3, 2, 2), True).products.shape == (4, 4)


def factor_of(seed, dim=4):
    rng = np.random.default_rng(seed)
    return np.linalg.cholesky(
        np.cov(rng.normal(size=(dim, 3 * dim)) * np.arange(1, dim + 1)[:, None])
    )


SCALES = {
    "diagonal": lambda seed: np.exp(np.random.default_rng(seed).normal(size=4)),
    "factor": factor_of,
}


@pytest.mark.parametrize("event_shape", [(4,), (2, 2)])
@pytest.mark.parametrize("after", SCALES)
@pytest.mark.parametrize("before", SCALES)
def test_what_is_learned_goes_from_one_kind_of_scales_into_another(before, after, event_shape):
    """By NumPy: growth is the root of the determinants' ratio, a direction v becomes `S'^-1 S v`."""

    def matrix(kind, seed):
        return np.diag(SCALES[kind](seed)) if kind == "diagonal" else SCALES[kind](seed)

    def scale(kind, seed):
        value = torch.tensor(SCALES[kind](seed))
        return value.reshape(event_shape) if kind == "diagonal" else value

    old, new = matrix(before, 1), matrix(after, 2)
    given = scale(before, 1), scale(after, 2)
    grown = (np.linalg.det(new) / np.linalg.det(old)) ** (1 / 4)
    assert scales.mean_growth(*given, torch.Size(event_shape)) == pytest.approx(grown)
    slowest = torch.tensor([3.0, 0.0, 4.0, 1.0], dtype=torch.float64)
    memory = length.Ascent(torch.tensor([0.1, 0.2, 5.0, 0.3], dtype=torch.float64), slowest)
    moved = length.SquaredJumps(0.025, 1000).rescaled(memory, *given, torch.Size(event_shape))
    variance = float(slowest.norm())
    turned = np.linalg.solve(new, old @ (slowest.numpy() / variance))
    np.testing.assert_allclose(moved.slowest.numpy(), turned * variance * np.linalg.norm(turned))
    np.testing.assert_allclose(
        moved.ascent.numpy()[:2], [0.1 * (turned @ turned) ** 2, 0.2 * (turned @ turned) ** 4]
    )
    x = torch.randn(3, *event_shape, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(unstretch(given[0], stretch(given[0], x)), x)
    by_hand = x.flatten(1).numpy() @ old.T
    np.testing.assert_allclose(stretch(given[0], x).flatten(1).numpy(), by_hand)
    variances = scales.variances(given[0], torch.Size(event_shape))
    assert variances.shape == event_shape
    np.testing.assert_allclose(variances.flatten().numpy(), np.diag(old @ old.T))


@pytest.mark.parametrize("name", KERNELS)
def test_a_factor_is_kept_given_back_and_taken_up(name, tmp_path):
    """Saved with the draws; the run goes on by it; chains do not hang on the batch."""
    field = correlated(0.99)[1]
    solver = made(name)
    first = run_of(solver, field, chains=12, warmup=stk.Warmup(60, pilot=8))
    assert first.tuned["scale"].shape == (5, 5)
    parts = run_of(solver, field, chains=12, warmup=stk.Warmup(60, pilot=8), batch=4)
    assert torch.equal(parts.x, first.x)
    path = tmp_path / "draws.safetensors"
    first.save(path)
    again = solver.tuned_by(stk.Draws.load(path))
    options = {"init": first.final, "warmup": 0, "seed": 2, "chains": None}
    on = run_of(again, field, **options)
    assert torch.equal(on.x, run_of(solver.tuned_by(first), field, **options).x)
    assert torch.equal(on.tuned["scale"], first.tuned["scale"])
    with pytest.raises(stk.InvalidArgument, match="tuned values of shapes"):
        run_of(solver.tuned_by(first), correlated(0.5, 4)[1], warmup=0)


def neighbours(dim):
    """Neighbours are close to one another. Each row is computed by itself."""

    def energy(x):
        steps = 100 * (x[:, 1:] - x[:, :-1]).square().sum(1)
        return steps + x.square().square().sum(1) / 4

    return stk.Energy(energy, (dim,))


@pytest.mark.parametrize(("dim", "batch"), [(5, 1), (21, 3)])
@pytest.mark.parametrize("name", KERNELS)
def test_a_factor_makes_no_chain_hang_on_those_beside_it(name, dim, batch):
    """To the bit, as with a diagonal. A mutant: plain products of matrices."""
    options = {"chains": 14, "warmup": stk.Warmup(20, pilot=9), "steps": 3}
    solver = made(name, "dense")
    whole, parts = (run_of(solver, neighbours(dim), batch=b, **options) for b in (None, batch))
    assert torch.equal(parts.x, whole.x)


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
@pytest.mark.parametrize("metric", ["diagonal", "dense"])
@pytest.mark.parametrize("name", KERNELS)
def test_scales_are_a_change_of_coordinates(name, metric, shape):
    """A chain with scales S is S times the chain without, on E(S y) and by the same noise. Mutants: S for S^T, either way."""
    generator = torch.Generator().manual_seed(4)
    scale = torch.rand(6, generator=generator, dtype=torch.float64).add(0.5).diag()
    if metric == "dense":
        scale = scale + torch.randn(6, 6, generator=generator, dtype=torch.float64).tril(-1)

    def stretched(y):
        return (y.flatten(1) @ scale.T).reshape(y.shape)

    def energy(x):
        x = x.flatten(1)
        return (x.square() / 2 + x.pow(4) / 20).sum(1) + (x[:, 0] * x[:, 1]).sin()

    field = stk.Energy(energy, shape)
    within = stk.Energy(lambda y: energy(stretched(y)), shape)
    solver = made(name, metric).tuned_by(run_of(made(name, metric), field, chains=4, warmup=30))
    short = {k: torch.full_like(v, 0.3) for k, v in solver.values.items() if k != "scale"}
    values = short | {"scale": scale if metric == "dense" else scale.diag().reshape(shape)}
    ones = short | {"scale": torch.ones(shape, dtype=torch.float64)}
    init = torch.randn(8, *shape, generator=generator, dtype=torch.float64)
    x, y = (
        run_of(
            replace(solver, solver=made(name, kind), values=known),
            law,
            init=start,
            chains=None,
            warmup=0,
            steps=5,
        ).x
        for kind, known, law, start in (
            (metric, values, field, stretched(init)),
            ("diagonal", ones, within, init),
        )
    )
    assert len(x[:, -1].unique(dim=0)) == 8
    assert not torch.equal(x[:, 0], x[:, -1])
    np.testing.assert_allclose(x.flatten(0, 1), stretched(y.flatten(0, 1)), rtol=1e-8, atol=1e-9)


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("metric", "stop"), [("auto", 0.4), ("auto", 0.97), ("dense", 0.97)])
def test_a_run_stopped_before_or_after_a_factor_was_found_ends_with_the_same_bits(
    name, metric, stop, tmp_path
):
    precision = torch.linalg.inv(correlated(0.99)[0])
    calls = [0, math.inf]

    def energy(x):
        calls[0] += 1
        if calls[0] >= calls[1]:
            raise Stop
        return ((x @ precision) * x).sum(1) / 2

    field, solver = stk.Energy(energy, (5,)), made(name, metric)
    options = {"chains": 8, "warmup": 60, "steps": 4}
    undisturbed = run_of(solver, field, **options)
    assert undisturbed.tuned["scale"].shape == (5, 5)
    calls[:] = 0, stop * calls[0]
    path = tmp_path / "run"
    with pytest.raises(Stop):
        run_of(solver, field, checkpoint=stk.Checkpoint(path, every=1e-9), **options)
    calls[1] = math.inf
    resumed = run_of(solver, field, checkpoint=path, **options)
    assert torch.equal(resumed.x, undisturbed.x)
    assert torch.equal(resumed.tuned["scale"], undisturbed.tuned["scale"])


SHAPES = {
    "a number": stk.Energy(lambda x: x**2 / 2, ()),
    "one entry": stk.Energy(lambda x: x.square().sum(1) / 2, (1,)),
    "an image": stk.Energy(
        lambda x: 50 * (x.sum((1, 2)) - 1) ** 2 + x.square().sum((1, 2)), (2, 2)
    ),
    "as many numbers as a side of the matrix that they are": stk.constrained(
        stk.Energy(lambda x: 50 * (x[:, 1, 0] - x[:, 2, 0]) ** 2, (3, 3)), constraints.corr_cholesky
    ),
    "fewer numbers than draws have": stk.constrained(
        stk.Energy(lambda x: 1e3 * (x[:, 0] - x[:, 1]) ** 2, (4,)), constraints.simplex
    ),
}


@pytest.mark.parametrize("metric", ["auto", "dense", "diagonal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_scales_are_given_back_for_events_of_any_shape(shape, metric):
    """Whether they are a factor is told in the solver's own space, in which draws are not."""
    field, solver = SHAPES[shape], stk.HMC(metric=metric, leapfrogs=3)
    first = run_of(solver, field, chains=8, warmup=40, steps=2)
    more = run_of(solver.tuned_by(first), field, chains=None, init=first.final, warmup=0, seed=2)
    assert torch.equal(more.tuned["scale"], first.tuned["scale"])


@pytest.mark.parametrize("metric", ["diagonal", "dense"])
def test_scales_that_are_not_positive_are_not_given_back(metric):
    """Nor those of an image that look like a factor."""
    first = run_of(stk.HMC(metric=metric, leapfrogs=3), SHAPES["an image"], chains=8, warmup=40)
    first.tuned["scale"] = first.tuned["scale"].tril()
    first.tuned["scale"][1, 1] *= -1 if metric == "dense" else 1
    with pytest.raises(stk.InvalidArgument, match="positive numbers"):
        run_of(stk.HMC(metric=metric).tuned_by(first), SHAPES["an image"], warmup=0)
