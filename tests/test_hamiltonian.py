"""HMC and ChEES: exact invariance with mutants, tuning that reaches its aims and is frozen, and chains that stay themselves."""

import math

import pytest
import torch
from scipy.stats import norm, semicircular

import scoretk as stk
from scoretk.core.streams import Stream
from scoretk.fields import resolve
from scoretk.models.targets.analytic import EightSchools, Funnel, Semicircle
from scoretk.models.targets.mixture import gaussian, ring_mixture
from scoretk.run import capture, tape
from scoretk.run.drive import drive, engine_of
from scoretk.run.moment import Loop, begin
from scoretk.run.record import RECORDERS
from scoretk.run.schedule import Schedule
from scoretk.run.tape import Tape
from scoretk.solvers.hmc import Point, halton, halton_points, leapfrog
from scoretk.solvers.warmup.scales import accumulate, begin_window, deviations, factor, window_end
from scoretk.solvers.warmup.step_size import (
    Averaging,
    DualAveraging,
    first_step_size,
    harmonic_acceptance,
    next_step_size,
    pooled_acceptance,
    restart,
)
from tests import mutants
from tests.evidence import assert_distribution, assert_second_moment, ks_p, mean_z, z_limit
from tests.marks import slow_but, slow_rows_but
from tests.test_langevin import one_step_from_exact, ring_statistics

CHAINS = 40_000
ILL = stk.Energy(lambda x: (x.square() * torch.logspace(0, 4, 20, dtype=x.dtype)).sum(1) / 2, (20,))
CORRELATED = torch.tensor([[2.0, 1.9], [1.9, 2.0]], dtype=torch.float64)


def correlated(x):
    return ((x @ torch.linalg.inv(CORRELATED).to(x)) * x).sum(1) / 2


TARGETS = {
    "gaussian": (
        gaussian(dim=1),
        0.9,
        lambda x: math.log(max(ks_p(x[:, 0], norm.cdf), 1e-300)) / math.log(1e-6),
    ),
    "semicircle": (
        Semicircle(),
        0.3,
        lambda x: math.log(max(ks_p(x[:, 0], semicircular.cdf), 1e-300)) / math.log(1e-6),
    ),
    "ring": (
        ring_mixture(),
        0.25,
        lambda x: float(mean_z(*ring_statistics(x)).abs().max() / z_limit(11)),
    ),
    "funnel": (
        Funnel(3, 1.0),
        0.4,
        lambda x: float(
            mean_z(
                torch.stack([x[:, 0], x[:, 0] ** 2, x[:, 1] ** 2 * torch.exp(-x[:, 0])], 1),
                [0, 1, 1],
            )
            .abs()
            .max()
            / z_limit(3)
        ),
    ),
    "in space": (
        gaussian(dim=3),
        0.9,
        lambda x: float(mean_z(x.square(), [1, 1, 1]).abs().max() / z_limit(3)),
    ),
}


def kernels(size):
    return {
        "hmc": stk.HMC(size, leapfrogs=4, jitter=0, metric="none"),
        "jittered": stk.HMC(size, leapfrogs=3, jitter=0.5, metric="none"),
        "chees": stk.ChEES(size, length=1.5 * size, metric="none"),
    }


@pytest.mark.parametrize("kernel", kernels(1.0))
@pytest.mark.parametrize("name", TARGETS)
def test_exact_draws_stay_exact(name, kernel):
    target, size, distance = TARGETS[name]
    assert distance(one_step_from_exact(kernels(size)[kernel], target, seed=3)) < 1


WRONG = [
    (name, *case)
    for case in [
        (mutants.NoEnergyCheck, 1.5, 1),
        (mutants.ForgottenMomentum, 1.0, 2),
        (mutants.OneSided, 1.5, 3),
    ]
    for name in ("gaussian", "ring", "funnel", "in space")
    if (name, case[0])
    != ("ring", mutants.OneSided)  # whose error the ring's symmetry hides from these statistics
]


@pytest.mark.parametrize(("name", "mutant", "factor", "leapfrogs"), WRONG)
def test_invariance_catches_wrong_kernels(name, mutant, factor, leapfrogs):
    target, size, distance = TARGETS[name]
    solver = mutant(factor * size, leapfrogs=leapfrogs, jitter=0, metric="none")
    assert distance(one_step_from_exact(solver, target, seed=3)) > 1.5


@pytest.mark.parametrize("metric", ["diagonal", "dense"])
def test_scales_leave_the_target_as_it_is(metric):
    target, noise = gaussian(dim=2), stk.Noise(2, CHAINS, dtype=torch.float64)
    solver, field = stk.HMC(0.8, 3, metric=metric), resolve(gaussian(dim=2), {"energy", "score"})
    state = begin(solver, field, target.draw(CHAINS, noise).double(), noise).state
    scale = torch.tensor([[0.6, 0.0], [0.5, 1.2]], dtype=torch.float64)
    state = state._replace(scale=scale if metric == "dense" else scale.diagonal())
    assert_second_moment(solver.step(field, state, noise)[0].x, 0.0, 1.0)


def test_the_leapfrog_is_reversible_and_of_second_order():
    field = resolve(ring_mixture(), {"energy", "score"})
    generator = torch.Generator().manual_seed(0)
    x, p = (torch.randn(6, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    scale = torch.tensor([0.7, 1.3], dtype=torch.float64)
    start = Point(x, *field.energy_and_grad(x))
    end = leapfrog(field, start, p, 0.05, 7, scale)
    back = leapfrog(field, end.point, -end.momentum, 0.05, 7, scale)
    torch.testing.assert_close(back.point.x, x, rtol=1e-9, atol=1e-9)
    errors = [
        leapfrog(field, start, p, 0.1 / n, 2 * n, scale).log_ratio.abs().max() for n in (8, 16)
    ]
    assert 3.5 < float(errors[0] / errors[1]) < 4.5


def test_one_gradient_a_leapfrog_step():
    calls = []

    def energy(x):
        calls.append(len(x))
        return x.square().sum(1) / 2

    draws = stk.sample(
        stk.Energy(energy, (2,)), stk.HMC(0.1, leapfrogs=7, metric="none"), chains=3, steps=5
    )
    assert sum(calls) == draws.cost["score"] == 3 * (1 + 5 * 7)
    calls.clear()
    draws = stk.sample(stk.Energy(energy, (2,)), stk.ChEES(), chains=3, steps=5, warmup=30)
    assert sum(calls) == draws.cost["score"]


def test_windows_are_stans():
    ends = [step + 1 for step in range(1000) if window_end(step, 1000)[1]]
    assert ends == [100, 150, 250, 450, 950]
    counted = [step for step in range(1000) if window_end(step, 1000)[0]]
    assert (counted[0], counted[-1], len(counted)) == (75, 949, 875)
    assert [step for step in range(100) if window_end(step, 100)[1]] == [89]
    assert not any(any(window_end(step, 19)) for step in range(19))


def test_pooled_scales_are_the_covariance_of_all_that_was_seen():
    x = torch.randn(
        12, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ) * torch.tensor([1.0, 5.0, 0.1])
    for metric in ("diagonal", "dense"):
        window = begin_window(x[0], metric == "dense")
        for rows in x:
            window = accumulate(window, rows)
        before = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)
        cov = x.reshape(-1, 3).T.cov()
        cov = (60 * cov + 3 * torch.diag(cov.diagonal())) / 63
        cov = (60 * cov + 5e-3 * torch.diag(before.square())) / 65
        found = (
            factor(window, torch.diag(before)) if metric == "dense" else deviations(window, before)
        )
        expected = torch.linalg.cholesky(cov) if metric == "dense" else cov.diagonal().sqrt()
        torch.testing.assert_close(found, expected)


def test_dual_averaging_finds_the_step_size_of_its_target():
    def rate(size):
        return 1 / (1 + size**2)

    size = first_step_size(rate, 0.8)
    assert 0.25 <= size <= 1
    memory = Averaging(restart(size))
    for step in range(2000):
        memory, size = next_step_size(memory, rate(size), 0.8, step == 1999)
    assert size == pytest.approx(0.5, rel=0.02)


@pytest.mark.thorough
@pytest.mark.parametrize("accept", slow_but([0.574, 0.8], 0.8))
def test_acceptance_reaches_its_target(accept):
    """One leapfrog step, whose acceptance falls smoothly with the step size: near the limit of stability it does not."""
    solver = stk.HMC(leapfrogs=1, jitter=0, accept=accept)
    draws = stk.sample(ILL, solver, chains=64, steps=100, warmup=400, seed=2)
    assert abs(float(draws.stats["accept"].mean()) - accept) < 0.04
    assert draws.failures == {}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "solver",
    [pytest.param(stk.HMC(metric="diagonal"), marks=pytest.mark.slow), stk.ChEES()],
    ids=repr,
)
def test_scales_are_learned(solver):
    draws = stk.sample(ILL, solver, chains=64, steps=20, warmup=400, seed=1, dtype=torch.float64)
    torch.testing.assert_close(
        draws.tuned["scale"], torch.logspace(0, -2, 20, dtype=torch.float64), rtol=0.1, atol=0
    )
    z = mean_z(draws.final.square() * torch.logspace(0, 4, 20, dtype=torch.float64), torch.ones(20))
    assert z.abs().max() < z_limit(20)


@pytest.mark.thorough
def test_a_dense_metric_learns_the_correlation():
    field = stk.Energy(correlated, (2,))
    draws = stk.sample(
        field, stk.HMC(metric="dense"), chains=64, steps=1, warmup=250, seed=1, dtype=torch.float64
    )
    torch.testing.assert_close(
        draws.tuned["scale"], torch.linalg.cholesky(CORRELATED), rtol=0.15, atol=0.1
    )


@pytest.mark.thorough
def test_without_a_solver_an_energy_tunes_itself():
    draws = stk.sample(ILL, chains=64, steps=100, warmup=400, seed=4)
    assert draws.provenance["solver"].startswith("ChEES(")
    assert draws.failures == {}
    assert 0 < float(draws.tuned["step_size"]) < 2
    spread = (draws.x.double().square() * torch.logspace(0, 4, 20)).mean((0, 1))
    assert float((spread - 1).abs().max()) < 0.1
    assert stk.sample("digits-flow", chains=2).provenance["solver"].startswith("ProbabilityFlow(")
    with pytest.raises(stk.InvalidArgument, match="solver"):
        stk.sample(stk.Score(lambda x: -x, (2,)))


@pytest.mark.slow  # by default in `test_approach`, against more of its moments
def test_eight_schools_by_default():
    draws = stk.sample("eight-schools", chains=128, steps=300, seed=1, dtype=torch.float64)
    mu, tau, theta = EightSchools().parameters(draws.x)
    known = [
        (mu, 4.4105, 3.3091),
        (tau, 3.6021, 3.1983),
        (theta[..., 0], 6.1505, 5.6156),
        (theta[..., 7], 4.8840, 5.3174),
    ]
    for value, mean, sd in known:
        of_chains = value.mean(
            1
        )  # chains are independent: their means give an honest standard error
        error = math.hypot(
            float(of_chains.std()) / math.sqrt(len(of_chains)), sd / 100
        )  # and the 10,000 reference draws
        assert abs(float(of_chains.mean()) - mean) < 5 * error


class PlainMean(stk.ChEES):
    """The mutant: a mean that overlooks the few chains in the neck."""

    def _step_size_part(self):
        return DualAveraging(self.accept)


@pytest.mark.slow  # by what mean, and over which chains, is held below
def test_the_default_reaches_the_neck_of_the_funnel():
    found = {}
    for solver in (stk.ChEES(), PlainMean(accept=0.8)):
        neck = (
            stk.sample(Funnel(3, 3.0), solver, chains=144, steps=200, warmup=300, seed=2)
            .x[..., 0]
            .double()
            .mean(1)
        )
        found[type(solver)] = abs(float(neck.mean() / neck.std() * 12))
    assert found[stk.ChEES] < 4.0  # false alarms in one of 10,000 seeds, as t with 143 degrees
    assert found[PlainMean] > 8


def test_the_harmonic_mean_and_what_is_left_out_of_it():
    accept = torch.tensor([1.0, 0.5, 0.25, 0.0, 0.001, 0.9, 0.9])
    usual = torch.tensor([True] * 5 + [False] * 2)
    diverging = torch.tensor([False, False, False, True, False, False, False])
    found = float(harmonic_acceptance(accept, usual, diverging))
    assert found == pytest.approx(4 / 5 * 4 / (1 + 2 + 4 + 100))
    assert harmonic_acceptance(accept, usual, torch.ones(7, dtype=torch.bool)) == 0
    assert float(pooled_acceptance(accept, usual)) == pytest.approx(1.751 / 5)
    assert stk.ChEES().adaptation.parts[0] == DualAveraging(stk.ChEES().accept, "harmonic")


@pytest.mark.thorough
def test_an_edge_costs_the_default_no_small_steps():
    draws = stk.sample(Semicircle(), chains=64, steps=60, warmup=200, seed=1)
    assert draws.stats["leapfrogs"].mean() < 6
    assert draws.x.var() == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize(
    "solver", slow_but([stk.HMC(), stk.ChEES()], stk.HMC()), ids=lambda s: type(s).__name__
)
def test_chains_do_not_depend_on_the_batch(solver):
    field = stk.Energy(lambda x: (x.square() * torch.tensor([1.0, 9.0]).to(x)).sum(1) / 2, (2,))
    run = {
        "chains": 13,
        "steps": 6,
        "warmup": stk.Warmup(25, pilot=5),
        "seed": 6,
        "dtype": torch.float64,
    }
    whole, parts = stk.sample(field, solver, **run), stk.sample(field, solver, batch=4, **run)
    assert torch.equal(whole.x, parts.x)
    fewer = stk.sample(field, solver, **(run | {"chains": 7}))
    assert torch.equal(whole.x[:7], fewer.x)
    assert torch.equal(whole.tuned["step_size"], parts.tuned["step_size"])


@pytest.mark.thorough
@pytest.mark.parametrize("stop", slow_but([10, 35, 55], 35))
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
        "steps": 20,
        "warmup": stk.Warmup(40, pilot=4),
        "seed": 6,
        "dtype": torch.float64,
        "batch": 2,
    }
    solver = stk.HMC(leapfrogs=3)
    field = stk.Energy(energy, (2,))
    undisturbed = stk.sample(field, solver, **run)
    path = tmp_path / "run.ckpt"
    calls[:] = 0, 3 * stop + 10
    with pytest.raises(Stop):
        stk.sample(field, solver, checkpoint=stk.Checkpoint(path, every=1e-9), **run)
    calls[1] = -1
    resumed = stk.sample(field, solver, checkpoint=path, **run)
    assert torch.equal(resumed.x, undisturbed.x)
    assert torch.equal(resumed.tuned["scale"], undisturbed.tuned["scale"])


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, on its way through the compiler
def test_compiled_agrees_with_eager():
    run = {"chains": 4, "steps": 10, "warmup": 30, "seed": 2, "dtype": torch.float64}
    eager, compiled = (
        stk.sample(ring_mixture(), stk.HMC(leapfrogs=3), compile=c, **run) for c in (False, True)
    )
    torch.testing.assert_close(compiled.x[:, 0], eager.x[:, 0])


def in_wall(x):
    """Where the fields of the next tests have no law."""
    return (x[..., 0] - 1.2).abs() < 0.2


def walled(value):
    """A normal law with a wall; autograd has a slope of 0 in it."""
    return stk.Energy(lambda x: torch.where(in_wall(x), value, x.square().sum(1) / 2), (2,))


class OwnScore:
    """A normal law with a wall of energy minus infinity, in which its own score goes on."""

    event_shape, provides = (2,), frozenset({"energy", "score"})

    def energy(self, x):
        return torch.where(in_wall(x), -torch.inf, x.square().sum(1) / 2)

    def score(self, x):
        return -x


def walls(field, slope, leapfrogs=10, eps=0.25):
    """One step of normal momenta: the chosen positions, "accept" and "diverging"; then what they are by
    hand, with a slope `(chains, 2)` of positions: all on the way, and what is accepted at its end
    without walls.
    """
    solver, noise = stk.HMC(eps, leapfrogs, jitter=0.0, metric="none"), stk.Noise(4, 400)
    bound = resolve(field, solver.needs)
    x = torch.linspace(-0.9, 0.9, 800, dtype=torch.float64).reshape(400, 2)
    state = solver.init(bound, x, noise)
    new, info = solver.step(bound, state, noise)
    p, way, here = noise.normal(0, Stream.PROPOSAL, (2,), x.dtype), [], x
    start = (x.square() + p.square()).sum(1) / 2
    for _ in range(leapfrogs):
        half = p - eps / 2 * slope(here)
        here = here + eps * half
        p = half - eps / 2 * slope(here)
        way.append(here)
    accept = (start - (here.square() + p.square()).sum(1) / 2).clamp(max=0).exp()
    return x, new.x, info, torch.stack(way), accept


def judged_by_its_end(field, slope):
    """Ends in a wall are rejected; ways through one are accepted as others are."""
    x, new, info, way, accept = walls(field, slope)
    ends = in_wall(way[-1])
    through = in_wall(way).any(0) & ~ends
    assert min(int(ends.sum()), int(through.sum())) > 15
    assert bool((info["accept"][ends] == 0).all())
    assert bool(info["diverging"][ends].all())
    assert torch.equal(new[ends], x[ends])
    torch.testing.assert_close(info["accept"][~ends], accept[~ends])
    assert not bool(info["diverging"][~ends].any())


def outside_walls(x):
    """The slope of `walled`, by autograd."""
    return torch.where(in_wall(x).unsqueeze(-1), 0.0, x)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_way_through_a_wall_is_judged_by_its_end(value):
    """The decision is exact whatever the slope is on the way, as it is the same on the way back."""
    judged_by_its_end(walled(value), outside_walls)


def test_an_end_in_a_wall_is_rejected_whatever_the_score():
    judged_by_its_end(OwnScore(), lambda x: x)


@pytest.mark.parametrize(
    "solver",
    [stk.HMC(0.4, 6), stk.ChEES(0.4, 2.4), stk.AdjustedMCLMC(0.4, 2.4, metric="none")],
    ids=repr,
)
def test_a_law_on_both_sides_of_a_wall_is_right(solver):
    """Shares and squares of a normal law without what is in the wall, and both sides are reached."""
    draws = stk.sample(walled(torch.inf), solver, chains=300, steps=50, seed=3, dtype=torch.float64)
    x = draws.x[:, 10:, 0]
    normal = torch.distributions.Normal(0.0, 1.0)
    below, above = normal.cdf(torch.tensor(1.0)), 1 - normal.cdf(torch.tensor(1.4))
    share = (x > 1.2).double().mean(1)
    error = share.std() / len(share) ** 0.5
    assert abs(share.mean() - above / (above + below)) < 4 * error
    assert 0 < error < 0.02


def test_a_flat_law_is_written_as_its_refusal_says():
    """The uniform law on a disc, `E |x|^2 = 1/2`."""

    def within(value):
        return lambda x: torch.where(x.square().sum(1) < 1, value(x), torch.inf)

    solver, run = stk.HMC(0.3, 4, metric="none"), {"chains": 200, "steps": 60, "seed": 5}
    start = 0.3 * torch.randn(200, 2, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
    with pytest.raises(stk.InvalidArgument, match=r"inside, 0 \* x.sum\(1\), torch.inf"):
        stk.sample(stk.Energy(within(lambda x: 0.0), (2,)), solver, init=start, **run)
    draws = stk.sample(stk.Energy(within(lambda x: 0 * x.sum(1)), (2,)), solver, init=start, **run)
    squares = draws.x[:, 10:].square().sum(-1).mean(1)
    assert float(squares.std()) / 200**0.5 < 0.01
    assert abs(float(squares.mean()) - 0.5) < 4 * float(squares.std()) / 200**0.5


def test_large_energies_on_the_way_are_finite():
    """Whose sum is not: float32 holds 3e38."""
    field = stk.Energy(lambda x: 1e38 + x.square().sum(1) / 2, (2,))
    solver, noise = stk.HMC(0.1, metric="none"), stk.Noise(0, 8)
    bound = resolve(field, solver.needs)
    state = solver.init(bound, torch.zeros(8, 2), noise)
    assert bool((solver.step(bound, state, noise)[1]["accept"] == 1).all())


def test_walls_that_are_not_looked_at_are_seen(monkeypatch):
    """A mutant: energies of ends are not looked at."""
    monkeypatch.setattr(
        "scoretk.solvers.parts.leapfrog.nan_unless_finite", lambda values, energy: values
    )
    with pytest.raises(AssertionError):
        test_an_end_in_a_wall_is_rejected_whatever_the_score()


def test_failures_are_flagged_and_divergences_counted():
    field = stk.Energy(lambda x: torch.where(x[:, 0] > 0, x.square().sum(1) / 2, torch.nan), (1,))
    start = torch.tensor([[1.0], [-1.0], [0.5]])
    draws = stk.sample(field, stk.HMC(0.5, metric="none"), init=start, steps=50)
    assert draws.failures == {"NONFINITE": 1}
    assert draws.status.tolist() == [0, 1, 0]
    assert bool((draws.x[[0, 2]] > 0).all())
    assert float(draws.stats["diverging"].double()[[0, 2]].sum()) > 0
    wild = stk.sample(gaussian(dim=2), stk.HMC(50.0, metric="none"), chains=4, steps=5)
    assert bool(wild.stats["diverging"].bool().all())
    assert wild.failures == {}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"solver": stk.HMC(), "warmup": 0}, "warmup"),
        ({"solver": stk.ChEES(), "warmup": 0}, "warmup"),
    ],
)
def test_tuning_needs_warmup(options, named):
    with pytest.raises(stk.InvalidArgument, match=named):
        stk.sample(gaussian(dim=1), chains=2, steps=2, **options)


def test_saved_draws_keep_what_was_tuned(tmp_path):
    draws = stk.sample(gaussian(dim=2), stk.HMC(), chains=4, steps=5, warmup=30)
    draws.save(tmp_path / "x.safetensors")
    again = stk.Draws.load(tmp_path / "x.safetensors")
    assert torch.equal(again.tuned["scale"], draws.tuned["scale"])


def test_haltons_points():
    assert [halton(n) for n in range(5)] == [0.5, 0.25, 0.75, 0.125, 0.625]
    for first in (0, 10**6, 2**32 - 50):
        indices = range(first, first + 50)
        assert halton_points(torch.tensor(indices)).tolist() == [halton(n) for n in indices]


@pytest.mark.thorough
def test_default_solver_on_a_normal():
    draws = stk.sample(
        gaussian(dim=1), chains=4000, steps=1, warmup=200, seed=3, dtype=torch.float64
    )
    assert_distribution(draws.final[:, 0], norm.cdf)


def steep(x):
    """Light-tailed to the right: a start far out there has a gradient that no usual step survives."""
    return (x.exp() - x).sum(1)


PILOT = stk.Warmup(150, pilot=32)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("solver", "chain"),  # one of the pilot, and one that takes over what the pilot has tuned
    [
        (stk.HMC(), 7),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((stk.HMC(), 50), (stk.ChEES(), 7), (stk.ChEES(), 50))
        ),
    ],
    ids=lambda v: v if isinstance(v, int) else type(v).__name__,
)
def test_a_chain_that_starts_far_out_comes_along(solver, chain):
    draws = stk.sample(
        stk.Energy(steep, (2,)), solver, init=one_far_out(chain), steps=50, warmup=PILOT, seed=1
    )
    assert draws.x[chain].std(0).min() > 0.3
    assert draws.stats["accept"][chain].mean() > 0.3


@pytest.mark.thorough
@pytest.mark.parametrize("chain", [7, pytest.param(50, marks=pytest.mark.slow)])
def test_with_the_common_step_it_would_stay_there(monkeypatch, chain):
    """The mutant: no chain halves its step, and none goes its own way."""
    monkeypatch.setattr("scoretk.solvers.warmup.halving.HALVINGS", 0)
    monkeypatch.setattr(
        "scoretk.solvers.warmup.adaptation.begins_far",
        lambda field, place, *_: (torch.zeros(len(place.x)) > 0, 0),
    )
    draws = stk.sample(
        stk.Energy(steep, (2,)), stk.HMC(), init=one_far_out(chain), steps=50, warmup=PILOT, seed=1
    )
    assert draws.x[chain].std(0).max() == 0


def one_far_out(chain):
    init = torch.zeros((64, 2))
    init[chain] = 12.0
    return init


@pytest.mark.compiled
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, on its way through the compiler
@pytest.mark.parametrize(
    "solver",
    [pytest.param(stk.ChEES(), marks=pytest.mark.slow), stk.NUTS(max_depth=4)],
    ids=["chees", "nuts"],
)
def test_what_cannot_be_captured_whole_is_compiled_in_parts(solver):
    field = stk.Energy(
        lambda x: (x.square() * torch.tensor([1.0, 9.0], dtype=x.dtype)).sum(1) / 2, (2,)
    )
    run = {"chains": 20, "steps": 6, "warmup": 40, "seed": 2, "dtype": torch.float64}
    eager, compiled = (stk.sample(field, solver, compile=c, **run) for c in (False, True))
    assert torch.allclose(eager.x, compiled.x, atol=1e-9)
    assert eager.cost == compiled.cost
    assert torch.equal(eager.stats["leapfrogs"], compiled.stats["leapfrogs"])


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, on its way through the compiler
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.compiled)])
def test_a_step_of_the_users_own_is_not_passed_over(compiled):
    class Mirrored(stk.ChEES):
        def step(self, field, state, noise):
            state, info = super().step(field, state, noise)
            return state, info | {"mirrored": torch.ones_like(info["accept"])}

    field = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
    draws = stk.sample(field, Mirrored(), chains=20, steps=30, warmup=40, compile=compiled)
    assert draws.stats["mirrored"].shape == (20, 30)


def hole(x):
    """A Gaussian with no law beyond 5 in its first coordinate."""
    energy = (x.square() * torch.tensor([1.0, 9.0], dtype=x.dtype)).sum(1) / 2
    return torch.where(x[:, 0] < 5, energy, torch.nan)


@pytest.mark.compiled
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, on its way through the compiler
@pytest.mark.parametrize(
    "kinds", [None, 6, 1, 0], ids=["a loop", "all lengths", "a length without function", "parts"]
)
def test_steps_of_known_length_are_compiled_whole(monkeypatch, kinds):
    if kinds is not None:  # as on a device
        monkeypatch.setattr(capture, "has_loop", lambda solver, x: False)
        monkeypatch.setattr(capture, "KINDS", kinds)
        monkeypatch.setattr(capture, "COVERED", 0.1)
    solver, init = (
        stk.ChEES(step_size=0.25, length=0.375, metric="none"),
        torch.zeros(6, 2, dtype=torch.float64),
    )
    init[2, 0] = 6.0
    bound, noise = (
        resolve(stk.Energy(hole, (2,)), solver.needs),
        stk.Noise(3, 6, dtype=torch.float64),
    )
    start = begin(solver, bound, init, noise)
    loop = Loop(solver, bound, noise, Schedule(20), RECORDERS["all"])
    (*_, eager) = drive(loop, start)
    found = []
    for blocks in ((20,), (3, 8, 9)):
        engine, moment = engine_of(loop, compiled=True), start
        for steps in blocks:
            moment = engine.block(moment, steps)
        if kinds is not None:
            assert len(engine._calls.functions) == min(kinds, 3)
        assert (engine._loop is None) is (kinds is not None)
        found.append(moment.record)
        assert torch.equal(moment.status, eager.status)
        assert torch.equal(moment.failed_at, eager.failed_at)
        assert moment.evaluations == eager.evaluations
        torch.testing.assert_close(
            moment.record.tensors["x"], eager.record.tensors["x"], rtol=0, atol=1e-9
        )
        torch.testing.assert_close(
            moment.record.stats, eager.record.stats, rtol=0, atol=1e-9, equal_nan=True
        )
    assert torch.equal(found[0].tensors["x"], found[1].tensors["x"])  # whatever the blocks
    assert eager.record.stats["leapfrogs"][:, 0].unique().tolist() == [1, 2, 3]
    kind_at, taken = solver.capturable_ahead(start.state), eager.record.stats["leapfrogs"][:, 0]
    assert [kind_at(i).leapfrogs for i in range(20)] == taken.tolist()
    assert (eager.record.tensors["x"][:, 2] == init[2]).all()
    assert eager.status.tolist() == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("blocks", [(21,), (5, 16), (1, 9, 11)], ids=str)
def test_compiled_calls_start_at_multiples_of_their_length_whatever_the_blocks(monkeypatch, blocks):
    starts, read = [], Tape.read
    monkeypatch.setattr(capture, "CALL", 4)
    for module in (capture, tape):  # it is about the engine's division of a run
        monkeypatch.setattr(module, "compiled", lambda function, key, options=None: function)
    monkeypatch.setattr(capture, "_length", lambda heard, values: 4)
    monkeypatch.setattr(capture, "has_loop", lambda solver, x: False)
    monkeypatch.setattr(Tape, "read", lambda self, step: (starts.append(step), read(self, step))[1])
    solver = stk.HMC(leapfrogs=2, step_size=0.3, metric="none")
    bound, noise = resolve(stk.Energy(hole, (2,)), solver.needs), stk.Noise(3, 6)
    moment = begin(solver, bound, torch.zeros(6, 2), noise)
    engine = engine_of(Loop(solver, bound, noise, Schedule(21), RECORDERS["all"]), compiled=True)
    for steps in blocks:
        moment = engine.block(moment, steps)
    assert starts[-1] == 16
    assert all(step % 4 == 0 for step in starts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "metric"),
    slow_rows_but(
        [(shape, metric) for shape in ((), (1,), (1, 2, 2)) for metric in ("dense", "diagonal")],
        ((), "diagonal"),
        ((1, 2, 2), "dense"),
    ),
)
def test_any_event_shape_with_any_metric(metric, shape):
    field = stk.Energy(lambda x: x.square().reshape(len(x), -1).sum(1) / 2, shape)
    for solver in (
        stk.HMC(metric=metric),
        stk.ChEES(metric=metric),
        stk.NUTS(metric=metric, max_depth=4),
    ):
        draws = stk.sample(field, solver, chains=32, steps=20, warmup=40, seed=4)
        assert draws.x.shape == (32, 20, *shape)
        assert 0.7 < float(draws.x.std()) < 1.3


@pytest.mark.slow
def test_no_unit_is_preferred():
    """Scales far below and above 1 are found as well as 1 is."""
    sd = torch.tensor([1e-4, 1.0, 1e4], dtype=torch.float64)
    field = stk.Energy(lambda x: (x / sd.to(x)).square().sum(1) / 2, (3,))
    draws = stk.sample(field, chains=64, steps=50, warmup=400, seed=3, dtype=torch.float64)
    assert torch.allclose(
        draws.tuned["scale"].double() / sd, torch.ones(3, dtype=torch.float64), rtol=0.2
    )
    assert torch.allclose(draws.x.std((0, 1)) / sd, torch.ones(3, dtype=torch.float64), rtol=0.1)
