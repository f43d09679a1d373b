"""NUTS: exact invariance with mutants, the trajectories of the papers' recursion, tuning, and chains that stay themselves."""

import math

import pytest
import torch

import scoretk as stk
from scoretk.core.streams import Stream
from scoretk.fields import resolve
from scoretk.models.targets.analytic import EightSchools, Funnel, Semicircle
from scoretk.models.targets.mixture import gaussian, ring_mixture
from scoretk.run.moment import begin
from scoretk.solvers import nuts
from scoretk.solvers.nuts import NUTS, End
from tests.evidence import assert_second_moment, mean_z, z_limit
from tests.marks import slow_but, slow_rows_but
from tests.test_hamiltonian import CHAINS, CORRELATED, ILL, TARGETS, correlated, steep
from tests.test_langevin import one_step_from_exact


def invariance(name, factor):
    """How far, in limits, one step from exact draws is from exact: below 1 is a pass."""
    target, size, distance = TARGETS[name]
    return distance(one_step_from_exact(NUTS(factor * size, metric="none"), target, seed=3))


@pytest.mark.parametrize(
    ("name", "factor"),
    slow_rows_but(
        [(name, factor) for name in TARGETS for factor in (1.0, 1.5)],
        *((name, 1.5) for name in TARGETS),
        ("semicircle", 1.0),
        ("funnel", 1.0),
    ),
)
def test_exact_draws_stay_exact(name, factor):
    assert invariance(name, factor) < 1


# --- wrong in one place each: the function of the module that is replaced, and by what -----------------------------


def ignores_weights(right):
    def extend(tree, subtree, end, n):
        tree, new = right(tree, subtree, end, n)
        point = nuts.select(subtree.log_u[:, n - 1] < -math.log(n), end.point, subtree.point)
        return tree, new._replace(
            point=point, log_weight=torch.full_like(new.log_weight, math.log(n))
        )

    return "extend", extend


def takes_the_last_point(right):
    def extend(tree, subtree, end, n):
        tree, new = right(tree, subtree, end, n)
        return tree, new._replace(point=end.point)

    return "extend", extend


def accepts_nan(right):
    def extend(tree, subtree, end, n):
        x, *rest = (value.nan_to_num() for value in end.point)
        return right(tree, subtree, End(type(end.point)(x, *rest), end.momentum.nan_to_num()), n)

    return "extend", extend


def checks_no_parts_within(right):
    def extend(tree, subtree, end, n):
        new, subtree = right(tree, subtree, end, n)
        return new._replace(growing=tree.growing & ~new.found.diverging), subtree

    return "extend", extend


def keeps_from_a_dropped_branch(right):
    def extend(tree, subtree, end, n):
        new, subtree = right(tree, subtree, end, n)
        turned = (
            tree.growing
            & ~new.growing
            & ~new.found.diverging
            & (subtree.log_weight > tree.log_weight)
        )
        point = nuts.select(turned, subtree.point, new.found.point)
        return new._replace(found=new.found._replace(point=point)), subtree

    return "extend", extend


def biased_the_wrong_way(right):
    def merge(tree, subtree, log_u, size):
        new = right(
            tree, subtree._replace(log_weight=2 * tree.log_weight - subtree.log_weight), log_u, size
        )
        return new._replace(log_weight=torch.logaddexp(tree.log_weight, subtree.log_weight))

    return "merge", merge


def always_moves_on(right):
    return "merge", lambda tree, subtree, log_u, size: right(tree, subtree, log_u - 1e9, size)


def grows_forward_only(right):
    return "empty_subtree", lambda tree, eps, log_u: right(tree, eps.abs(), log_u)


def looks_at_one_end(right):
    return "turns", lambda part: nuts.row_dot(part.last, part.total) <= 0


WRONG = [
    *slow_rows_but(
        [
            (name, mutant, 1.5)
            for mutant in (ignores_weights, biased_the_wrong_way, always_moves_on)
            for name in ("gaussian", "ring", "funnel", "in space")
        ],
        *(
            (name, mutant, 1.5)
            for mutant in (ignores_weights, biased_the_wrong_way, always_moves_on)
            for name in ("ring",)
        ),
    ),
    ("gaussian", takes_the_last_point, 1.0),
    ("in space", takes_the_last_point, 1.5),
    *slow_rows_but(
        [(name, checks_no_parts_within, 1.0) for name in ("gaussian", "semicircle", "funnel")],
        ("gaussian", checks_no_parts_within, 1.0),
    ),
    ("funnel", keeps_from_a_dropped_branch, 1.0),
    *slow_rows_but(
        [(name, grows_forward_only, 1.0) for name in ("gaussian", "semicircle")],
        ("gaussian", grows_forward_only, 1.0),
    ),
    ("gaussian", looks_at_one_end, 1.5),
    ("semicircle", accepts_nan, 1.0),
]


@pytest.mark.parametrize(("name", "mutant", "factor"), WRONG)
def test_invariance_catches_wrong_kernels(monkeypatch, name, mutant, factor):
    replaced, _ = mutant(None)
    monkeypatch.setattr(nuts, replaced, mutant(getattr(nuts, replaced))[1])
    assert invariance(name, factor) > 1.5


@pytest.mark.parametrize("metric", ["diagonal", "dense"])
def test_scales_leave_the_target_as_it_is(metric):
    target, noise = gaussian(dim=2), stk.Noise(2, CHAINS, dtype=torch.float64)
    solver, field = NUTS(0.8, metric), resolve(gaussian(dim=2), {"energy", "score"})
    state = begin(solver, field, target.draw(CHAINS, noise).double(), noise).state
    scale = torch.tensor([[0.6, 0.0], [0.5, 1.2]], dtype=torch.float64)
    state = state._replace(scale=scale if metric == "dense" else scale.diagonal())
    assert_second_moment(solver.step(field, state, noise)[0].x, 0.0, 1.0)


# --- against the algorithm as the papers write it: one chain, by recursion -----------------------------------------


def recursive(field, x, p, eps, signs, log_swap, log_leaf):
    """x, accept, leapfrogs, depth and diverging of one chain; the noise is that of `NUTS`."""
    energy, grad = field.energy_and_grad(x[None])
    start = float(energy[0] + p.dot(p) / 2)
    seen = {"accept": 0.0, "leapfrogs": 0, "diverging": False}

    def turned(first, last, total):
        return bool(first.dot(total) <= 0 or last.dot(total) <= 0)

    def turns_in(a, b):
        return (
            turned(a[0], b[1], a[2] + b[2])
            or turned(a[0], b[0], a[2] + b[0])
            or turned(a[1], b[1], a[1] + b[2])
        )

    def build(at, eps, level, subtree):
        """First, last and total momentum and the end of 2^level points from here on; None where they are dropped."""
        if level == 0:
            x, p, grad = at
            p = p - eps / 2 * grad
            x = x + eps * p
            energy, grad = field.energy_and_grad(x[None])
            p = p - eps / 2 * grad[0]
            error = float(energy[0] + p.dot(p) / 2) - start
            seen["leapfrogs"] += 1
            if not (math.isfinite(error) and error < 1000):
                seen["diverging"] = True
                return None
            seen["accept"] += math.exp(min(-error, 0))
            subtree["sum"] += math.exp(-error)
            if math.exp(log_leaf[subtree["next"]]) < math.exp(-error) / subtree["sum"]:
                subtree["x"] = x
            subtree["next"] += 1
            return p, p, p, (x, p, grad[0])
        a = build(at, eps, level - 1, subtree)
        b = a and build(a[3], eps, level - 1, subtree)
        return None if b is None or turns_in(a, b) else (a[0], b[1], a[2] + b[2], b[3])

    ends = {+1: (x, p, grad[0]), -1: (x, p, grad[0])}
    total, chosen, weight, depth = p, x, 1.0, 0
    while depth < len(signs):
        sign, subtree = int(signs[depth]), {"sum": 0.0, "next": 1 << depth, "x": x}
        new = build(ends[sign], sign * eps, depth, subtree)
        if new is None:
            break
        if float(log_swap[depth]) < math.log(subtree["sum"] / weight):
            chosen = subtree["x"]
        stop = turns_in((ends[-sign][1], ends[sign][1], total), new)
        ends[sign], total, weight, depth = (
            new[3],
            total + new[2],
            weight + subtree["sum"],
            depth + 1,
        )
        if stop:
            break
    return chosen, seen["accept"] / seen["leapfrogs"], seen["leapfrogs"], depth, seen["diverging"]


class Stretched:
    """A normal with standard deviations from 1 to 1/20, on whose trajectories the joints of halves matter."""

    event_shape = (4,)
    deviations = torch.tensor([1.0, 1 / 3, 1 / 10, 1 / 20], dtype=torch.float64)

    def energy(self, x):
        return (x / self.deviations).square().sum(1) / 2

    def draw(self, n, noise):
        return noise.normal(0, Stream.START, (4,)) * self.deviations


@pytest.mark.parametrize(
    ("target", "size", "divergent"),
    [
        (ring_mixture(), 0.1, False),
        (Stretched(), 0.05, False),
        (Funnel(3, 3.0), 0.7, True),
        (Semicircle(), 0.2, True),
    ],
    ids=["ring", "stretched", "funnel", "semicircle"],
)
def test_same_as_by_recursion(target, size, divergent):
    chains, deep = 40, 6
    noise = stk.Noise(11, chains, dtype=torch.float64)
    solver, field = NUTS(size, metric="none", max_depth=deep), resolve(target, {"energy", "score"})
    x = target.draw(chains, noise).double()
    state, info = solver.step(field, begin(solver, field, x, noise).state, noise)
    momentum = noise.normal(0, Stream.PROPOSAL, tuple(x.shape[1:]))
    signs = noise.rademacher(0, Stream.LENGTH, (deep,))
    swap, leaf = (
        noise.uniform(0, *asked).log()
        for asked in ((Stream.ACCEPT, (deep,)), (Stream.PROPOSAL, (1 << deep,)))
    )
    for c in range(chains):
        chosen, *rest = recursive(field, x[c], momentum[c], size, signs[c], swap[c], leaf[c])
        torch.testing.assert_close(state.x[c], chosen, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            [float(info[name][c]) for name in ("accept", "leapfrogs", "depth", "diverging")],
            [float(v) for v in rest],
            rtol=1e-5,
            atol=1e-5,
        )
    assert len(info["depth"].unique()) > 1
    assert bool(info["diverging"].any()) is divergent


@pytest.mark.thorough
def test_leapfrogs_and_depth_agree():
    draws = stk.sample(
        gaussian(dim=10),
        NUTS(0.1, metric="none"),
        chains=200,
        steps=10,
        seed=1,
        dtype=torch.float64,
    )
    leapfrogs, depth = draws.stats["leapfrogs"], draws.stats["depth"]
    assert bool((leapfrogs >= 2**depth - 1).all() & (leapfrogs <= 2 ** (depth + 1) - 1).all())
    # a harmonic oscillator turns back after half a period: pi / 0.1 = 31 steps, so a whole of 31 points or 63
    assert 4.5 < float(depth.mean()) < 5.5
    short = stk.sample(
        gaussian(dim=10),
        NUTS(1e-3, metric="none", max_depth=3),
        chains=20,
        steps=2,
        dtype=torch.float64,
    )
    assert short.stats["depth"].unique().tolist() == [3.0]
    assert short.stats["leapfrogs"].unique().tolist() == [7.0]


def test_evaluations_are_counted(monkeypatch):
    calls = []

    def energy(x):
        calls.append(len(x))
        return x.square().sum(1) / 2

    field = stk.Energy(energy, (2,))
    draws = stk.sample(field, NUTS(0.2, metric="none"), chains=20, steps=10)
    needed = 20 + int(draws.stats["leapfrogs"].sum())
    assert sum(calls) == draws.cost["score"]
    assert needed < draws.cost["score"] < 1.2 * needed
    calls.clear()
    draws = stk.sample(field, NUTS(), chains=9, steps=5, warmup=30)
    assert sum(calls) == draws.cost["score"]
    monkeypatch.setattr(nuts, "CROWD", 1.0)
    assert stk.sample(field, NUTS(0.2, metric="none"), chains=20, steps=10).cost["score"] == needed


# --- chains that stay themselves -----------------------------------------------------------------------------------


@pytest.mark.thorough
def test_chains_do_not_depend_on_the_batch():
    field = stk.Energy(
        lambda x: (x.square() * torch.tensor([1.0, 9.0, 25.0]).to(x)).sum(1) / 2, (3,)
    )
    run = {
        "chains": 13,
        "steps": 5,
        "warmup": stk.Warmup(12, pilot=5),
        "seed": 6,
        "dtype": torch.float64,
    }
    solver = NUTS(metric="none")
    whole, parts = stk.sample(field, solver, **run), stk.sample(field, solver, batch=4, **run)
    assert torch.equal(whole.x, parts.x)
    assert len(whole.stats["leapfrogs"][:, 0].unique()) > 2
    fewer = stk.sample(field, solver, **(run | {"chains": 7}))
    assert torch.equal(whole.x[:7], fewer.x)
    assert all(torch.equal(whole.stats[name][:7], fewer.stats[name]) for name in whole.stats)
    assert torch.equal(whole.tuned["step_size"], parts.tuned["step_size"])


@pytest.mark.thorough
def test_taking_ended_chains_out_changes_nothing(monkeypatch):
    """Each chain's condition goes with it."""
    field = stk.Energy(lambda x, width: ((x / width).square().sum(1)) / 2, (2,))
    width = torch.logspace(-1, 0.3, 40, dtype=torch.float64)[:, None]
    run = {"cond": {"width": width}, "init": width.expand(-1, 2), "steps": 4, "seed": 2}
    draws = []
    for crowd in (0.0, 0.75, 1.0):
        monkeypatch.setattr(nuts, "CROWD", crowd)
        draws.append(stk.sample(field, NUTS(0.1, metric="none"), **run))
    assert float(draws[0].stats["leapfrogs"].std(0).min()) > 5
    for other in draws[1:]:
        assert torch.equal(other.x, draws[0].x)
        assert all(torch.equal(other.stats[name], draws[0].stats[name]) for name in other.stats)
    assert draws[0].cost["score"] > draws[1].cost["score"] > draws[2].cost["score"]


@pytest.mark.thorough
def test_inside_another_solver_each_chain_keeps_its_condition():
    field = stk.Energy(lambda x, width: ((x / width).square().sum(1)) / 2, (2,))
    width = torch.logspace(-1, 1, 9, dtype=torch.float64)[:, None]
    solver = stk.AIS(kernel=NUTS(0.3, metric="none", max_depth=5), levels=3)
    together = stk.sample(
        field, solver, cond={"width": width}, chains=9, seed=1, dtype=torch.float64
    )
    apart = stk.sample(
        field, solver, cond={"width": width}, chains=9, seed=1, dtype=torch.float64, batch=1
    )
    assert torch.equal(together.final, apart.final)


@pytest.mark.thorough
@pytest.mark.parametrize("stop", slow_but([5, 18, 28], 18))
def test_resumed_in_warmup_or_after_it_ends_with_the_same_bits(tmp_path, stop):
    class Stop(Exception):
        pass

    calls = [0, -1]

    def energy(x):
        calls[0] += 1
        if calls[0] == calls[1]:
            raise Stop
        return (x.square() * torch.tensor([1.0, 9.0]).to(x)).sum(1) / 2

    run = {
        "chains": 6,
        "steps": 10,
        "warmup": stk.Warmup(20, pilot=4),
        "seed": 6,
        "dtype": torch.float64,
        "batch": 2,
    }
    solver, field = NUTS(), stk.Energy(energy, (2,))
    undisturbed = stk.sample(field, solver, **run)
    path = tmp_path / "run.ckpt"
    calls[:] = 0, calls[0] * stop // 30
    with pytest.raises(Stop):
        stk.sample(field, solver, checkpoint=stk.Checkpoint(path, every=1e-9), **run)
    calls[1] = -1
    resumed = stk.sample(field, solver, checkpoint=path, **run)
    assert torch.equal(resumed.x, undisturbed.x)
    assert torch.equal(resumed.tuned["scale"], undisturbed.tuned["scale"])
    assert resumed.cost == undisturbed.cost


def test_failures_are_flagged_and_divergences_counted():
    field = stk.Energy(lambda x: torch.where(x[:, 0] > 0, x.square().sum(1) / 2, torch.nan), (1,))
    start = torch.tensor([[1.0], [-1.0], [0.5]])
    draws = stk.sample(field, NUTS(0.5, metric="none"), init=start, steps=50)
    assert draws.failures == {"NONFINITE": 1}
    assert draws.status.tolist() == [0, 1, 0]
    assert bool((draws.x[[0, 2]] > 0).all())
    assert float(draws.stats["diverging"].double()[[0, 2]].sum()) > 0
    wild = stk.sample(gaussian(dim=2), NUTS(50.0, metric="none"), chains=4, steps=5)
    assert bool(wild.stats["diverging"].bool().all())
    assert wild.failures == {}
    assert wild.stats["leapfrogs"].unique().tolist() == [1.0]


class Bottomless:
    """Half a normal; where x < 0 the energy is minus infinity, with a gradient as if nothing were wrong."""

    event_shape = (1,)

    def energy(self, x):
        return torch.where(x[:, 0] > 0, x.square().sum(1) / 2, -torch.inf)

    def score(self, x):
        return -x


def test_minus_infinity_is_never_chosen():
    draws = stk.sample(Bottomless(), NUTS(0.5, metric="none"), init=torch.ones(2000, 1), steps=10)
    assert draws.failures == {}
    assert bool((draws.x > 0).all())
    assert bool(draws.stats["diverging"].bool().any())
    assert_second_moment(draws.final, 0.0, 1.0)


def test_an_infinite_position_is_never_chosen():
    """However finite its energy is, here that of a flat target at the end of the numbers."""
    flat = stk.Energy(lambda x: torch.atan(x).sum(1), (1,))
    draws = stk.sample(flat, NUTS(1e38, metric="none"), init=torch.full((20, 1), 3e38), steps=5)
    assert draws.failures == {}


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_any_event_shape(shape):
    field = stk.Energy(lambda x: x.reshape(len(x), -1).square().sum(1) / 2, shape)
    draws = stk.sample(
        field,
        NUTS(0.8, metric="none"),
        chains=2000,
        steps=1,
        warmup=10,
        seed=1,
        dtype=torch.float64,
    )
    assert draws.final.shape == (2000, *shape)
    assert_second_moment(draws.final, 0.0, torch.ones(shape))


# --- tuning --------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # as with ChEES, by default
def test_tuned_on_scales_from_1_to_a_hundredth():
    draws = stk.sample(
        ILL, NUTS(max_depth=5), chains=64, steps=50, warmup=250, seed=1, dtype=torch.float64
    )
    torch.testing.assert_close(
        draws.tuned["scale"], torch.logspace(0, -2, 20, dtype=torch.float64), rtol=0.1, atol=0
    )
    z = mean_z(draws.final.square() * torch.logspace(0, 4, 20, dtype=torch.float64), torch.ones(20))
    assert z.abs().max() < z_limit(20)
    assert abs(float(draws.stats["accept"].mean()) - 0.8) < 0.05
    assert draws.failures == {}


@pytest.mark.slow  # as with HMC, by default
def test_a_dense_metric_learns_the_correlation():
    field = stk.Energy(correlated, (2,))
    draws = stk.sample(
        field, NUTS(metric="dense"), chains=64, steps=1, warmup=160, seed=1, dtype=torch.float64
    )
    torch.testing.assert_close(
        draws.tuned["scale"], torch.linalg.cholesky(CORRELATED), rtol=0.15, atol=0.1
    )


@pytest.mark.slow  # as with HMC, by default
@pytest.mark.parametrize("pilot", [4, 64])
def test_a_chain_that_starts_far_out_comes_along(pilot):
    init = torch.zeros((16, 2))
    init[7] = 12.0
    draws = stk.sample(
        stk.Energy(steep, (2,)), NUTS(), init=init, steps=40, warmup=stk.Warmup(150, pilot), seed=1
    )
    assert draws.x[7].std(0).min() > 0.3
    assert draws.stats["accept"][7].mean() > 0.3


@pytest.mark.thorough
def test_what_was_tuned_is_frozen():
    run = {"chains": 16, "warmup": 40, "seed": 3, "dtype": torch.float64}
    short, long = (stk.sample(gaussian(dim=2), NUTS(), steps=steps, **run) for steps in (1, 50))
    assert all(torch.equal(short.tuned[name], long.tuned[name]) for name in short.tuned)
    assert torch.equal(short.x[:, 0], long.x[:, 0])


@pytest.mark.slow
def test_eight_schools():
    """Posteriordb's means and standard deviations, of 10,000 reference draws, whose own error counts too."""
    draws = stk.sample(
        "eight-schools", NUTS(), chains=128, steps=80, warmup=160, seed=1, dtype=torch.float64
    )
    mu, tau, theta = EightSchools().parameters(draws.x)
    known = [
        (4.4105, 3.3091),
        (3.6021, 3.1983),
        (6.1505, 5.6156),
        (4.9396, 4.6453),
        (3.9059, 5.2804),
        (4.7960, 4.7707),
        (3.6144, 4.6145),
        (4.0511, 4.7960),
        (6.3172, 5.0026),
        (4.8840, 5.3174),
    ]
    of_chains = torch.cat([mu[..., None], tau[..., None], theta], -1).mean(
        1
    )  # independent: an honest standard error
    mean, sd = torch.tensor(known, dtype=torch.float64).T
    error = (of_chains.var(0) / len(of_chains) + (sd / 100) ** 2).sqrt()
    assert float(((of_chains.mean(0) - mean) / error).abs().max()) < 4
    assert float(draws.stats["diverging"].double().mean()) < 0.01


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_depth": 0}, "max_depth"),
        ({"step_size": -1.0}, "step_size"),
        ({"metric": "round"}, "metric"),
    ],
)
def test_wrong_settings_are_named(settings, named):
    with pytest.raises((stk.InvalidArgument, stk.UnknownName), match=named):
        NUTS(**settings)
