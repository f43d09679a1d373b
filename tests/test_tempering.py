"""Parallel tempering: the joint law of all places is kept, with mutants; far modes get their weights; the ladder evens out."""

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, norm
from torch.nn.functional import one_hot, pad

import scoretk as stk
from scoretk.core.streams import Stream
from scoretk.fields import Bridge, resolve
from scoretk.models.targets.analytic import Semicircle
from scoretk.models.targets.lattices import Ising, Potts
from scoretk.models.targets.mixture import GaussianMixture, gaussian, ring_mixture
from scoretk.run.moment import begin
from scoretk.solvers.tempering import ParallelTempering, swap_log_ratio
from scoretk.solvers.warmup.ladder import even_ladder, window_ends
from scoretk.solvers.warmup.tuned import StepTunedState
from tests.evidence import FALSE_ALARM, assert_mean, mean_z, z_limit
from tests.marks import in_turn, slow_but, slow_rows_but
from tests.test_discrete import all_states, distance, law

CHAINS = 40_000
LADDER = (1.0, 2.0, 5.0)
FAR = GaussianMixture(
    torch.tensor([[-5.0], [5.0]]), torch.tensor([1.0, 1.0]), torch.tensor([0.3, 0.7])
)
SMALL = {"leapfrogs": 2, "metric": "none"}
LINES = {
    "gaussian": (gaussian(dim=1), stk.HMC(0.9, **SMALL), 40.0),
    "two modes": (GaussianMixture(FAR.means / 3, FAR.stds, FAR.weights), stk.MALA(0.5), 40.0),
    "nuts": (gaussian(dim=1), stk.NUTS(0.9, metric="none", max_depth=3), 40.0),
    "semicircle": (Semicircle(), stk.HMC(0.3, **SMALL), 1.0),
}
LATTICES = {
    "ising": (lambda b: Ising(3, 0.4 * b, 0.1 * b), stk.GibbsWithGradients()),
    "potts": (lambda b: Potts(2, 3, 0.8 * b), stk.DiscreteLangevin(2.0)),
}


@functools.cache
def tempered_cdf(field, b, end):
    """The distribution function of `p^b` on [-end, end]: its values at a fine grid."""
    x = np.linspace(-end, end, 200_001)[1:-1]
    density = np.exp(-b * field.energy(torch.from_numpy(x)[:, None]).numpy())
    mass = np.append(0.0, np.cumsum((density[1:] + density[:-1]) / 2))
    return x, mass / mass[-1]


def one_step_from(solver, field, replicas, first, seed=7):
    """All replicas after the step of this number."""
    noise = stk.Noise(seed, len(replicas), dtype=torch.float64)
    bound = resolve(field, solver.needs, timed=False)
    state = begin(solver, bound, replicas[:, 0], noise).state
    energy, grad = bound.energy_and_grad(replicas.flatten(0, 1))
    state = state._replace(
        x=replicas[:, 0],
        replicas=replicas,
        energy=energy.reshape_as(state.energy),
        grad=grad.reshape_as(replicas),
        step=torch.tensor(first),
    )
    return solver.step(bound, state, noise)[0]


def line_distance(name, first, kernel=None, ladder=LADDER):
    """How far, in limits, exact draws of all places are from exact after a step: below 1 is a pass.

    Compared are the law of each place (Kolmogorov-Smirnov) and the correlations of neighbours, which are independent.
    """
    field, own, end = LINES[name]
    laws = [tempered_cdf(field, 1 / t, end) for t in ladder]
    u = stk.Noise(3, CHAINS, dtype=torch.float64).uniform(0, Stream.USER, (len(ladder),))
    start = torch.stack(
        [torch.from_numpy(np.interp(v, c, x)) for v, (x, c) in zip(u.T.numpy(), laws, strict=True)],
        1,
    )
    solver = ParallelTempering(kernel or own, temperatures=ladder)
    x = one_step_from(solver, field, start[..., None], first).replicas[..., 0].numpy()
    u = np.stack([np.interp(column, *law) for column, law in zip(x.T, laws, strict=True)], 1)
    together = mean_z(
        torch.from_numpy((u[:, 1:] - 0.5) * (u[:, :-1] - 0.5)), torch.zeros(len(ladder) - 1)
    )
    p = [kstest(column, "uniform").pvalue for column in u.T] + (
        2 * norm.sf(together.abs().numpy())
    ).tolist()
    return math.log(max(min(p), 1e-300)) / math.log(FALSE_ALARM / len(p))


def lattice_distance(name, first):
    """As `line_distance`: the largest chi-square distance of the places."""
    at, kernel = LATTICES[name]
    start = torch.stack(
        [
            at(1 / t).draw(CHAINS, stk.Noise(i, CHAINS, dtype=torch.float64)).double()
            for i, t in enumerate(LADDER)
        ],
        1,
    )
    x = one_step_from(
        ParallelTempering(kernel, temperatures=LADDER, kernel_steps=2), at(1.0), start, first
    ).replicas
    return max(distance(x[:, k], at(1.0), law(at(1 / t))) for k, t in enumerate(LADDER))


@pytest.mark.parametrize(("name", "first"), in_turn(LINES, [0, 1]))
def test_exact_draws_of_all_places_stay_exact(name, first):
    assert line_distance(name, first) < 1


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "first"), slow_rows_but([(name, k) for name in LATTICES for k in (0, 1)], ("potts", 1))
)
def test_exact_draws_of_discrete_states_stay_exact(name, first):
    assert lattice_distance(name, first) < 1


def test_two_places_swap_at_every_step():
    for first in (0, 1):
        assert line_distance("gaussian", first, ladder=(1.0, 3.0)) < 1


WRONG_SWAPS = {
    "always": lambda energy, beta: 0 * swap_log_ratio(energy, beta),
    "sign": lambda energy, beta: -swap_log_ratio(energy, beta),
    "without the difference of b": lambda energy, beta: energy[:, :-1] - energy[:, 1:],
    "tempered energies": lambda energy, beta: -(beta * energy).diff(dim=1),
    "twice": lambda energy, beta: 2 * swap_log_ratio(energy, beta),
}


@pytest.mark.parametrize("wrong", WRONG_SWAPS)
def test_invariance_catches_wrong_swaps(monkeypatch, wrong):
    monkeypatch.setattr("scoretk.solvers.tempering.swap_log_ratio", WRONG_SWAPS[wrong])
    assert line_distance("gaussian", 0) > 2


@pytest.mark.thorough
@pytest.mark.parametrize("wrong", slow_but(WRONG_SWAPS, "sign"))
def test_invariance_catches_wrong_swaps_of_any_target(monkeypatch, wrong):
    monkeypatch.setattr("scoretk.solvers.tempering.swap_log_ratio", WRONG_SWAPS[wrong])
    assert line_distance("two modes", 0) > 2
    assert lattice_distance("ising", 0) > 2


def test_invariance_catches_copies_in_place_of_swaps(monkeypatch):
    """The hotter replica of a pair stays where it is: each place keeps its law, but neighbours are now alike."""
    monkeypatch.setattr("scoretk.solvers.tempering.pad", lambda v, by: pad(v, by) * (by == (0, 1)))
    assert line_distance("gaussian", 0) > 2


@pytest.mark.parametrize("wrong", ["b in the wrong order", "unscaled score"])
def test_invariance_catches_a_kernel_at_the_wrong_temperature(monkeypatch, wrong):
    def mixed(start, end, weight):
        return Bridge(start, end, weight.unflatten(0, (-1, len(LADDER))).roll(1, 1).flatten())

    def unscaled(start, end, weight):
        return Bridge(start, end, weight**0)

    monkeypatch.setattr(
        "scoretk.solvers.tempering.Bridge", mixed if wrong == "b in the wrong order" else unscaled
    )
    assert line_distance("gaussian", 0, stk.MALA(0.9)) > 2


def marked(solver, value):
    """In how many of 30 steps the first place held a replica whose energy, `value`, is no number to go by."""
    noise, bound = stk.Noise(1, 50, dtype=torch.float64), resolve(gaussian(dim=1), solver.needs)
    state = begin(solver, bound, noise.normal(0, Stream.START, (1,)), noise).state
    state.replicas[:, -1], state.energy[:, -1] = 77.0, value
    found = 0
    for _ in range(30):
        state, _ = solver.step(bound, state, noise)
        found += int((state.x == 77.0).any())
    return found


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_comes_to_the_first_place(value):
    assert marked(ParallelTempering(stk.HMC(0.5, **SMALL), temperatures=LADDER), value) == 0


def test_a_nan_taken_for_a_number_would_come_there(monkeypatch):
    monkeypatch.setattr(
        "scoretk.solvers.tempering.swap_log_ratio", lambda *a: swap_log_ratio(*a).nan_to_num(0.0)
    )
    assert marked(ParallelTempering(stk.HMC(0.5, **SMALL), temperatures=LADDER), math.nan) > 0


@pytest.mark.parametrize(
    "kernel", [stk.HMC(0.4, **SMALL), stk.MALA(0.3), stk.NUTS(0.4, metric="none")]
)
def test_energies_and_gradients_are_those_of_the_positions(kernel):
    noise, bound = (
        stk.Noise(9, 50, dtype=torch.float64),
        resolve(ring_mixture(), {"energy", "score"}),
    )
    solver = ParallelTempering(kernel, replicas=4, kernel_steps=2)
    state = begin(solver, bound, noise.normal(0, Stream.START, (2,)), noise).state
    for _ in range(20):
        state, info = solver.step(bound, state, noise)
    energy, grad = bound.energy_and_grad(state.replicas.flatten(0, 1))
    torch.testing.assert_close(state.energy.flatten(), energy)
    torch.testing.assert_close(state.grad.flatten(0, 1), grad)
    assert torch.equal(state.x, state.replicas[:, 0])
    assert torch.equal(info["energy"], state.energy[:, 0])


@dataclass(frozen=True)
class Fresh:
    """Exact draws of N(0, I): in stretched coordinates a normal is that at every temperature."""

    needs: ClassVar[frozenset[str]] = frozenset({"energy", "score"})
    timed: ClassVar[bool] = False
    capturable: ClassVar[bool] = False
    init_cost: ClassVar[dict[str, int]] = {"energy": 1, "score": 1}
    step_cost: ClassVar[dict[str, int]] = {"energy": 1, "score": 1}

    def init(self, field, x, noise):
        return StepTunedState(x, *field.energy_and_grad(x), torch.zeros((), dtype=torch.int64))

    def step(self, field, state, noise):
        y = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        return StepTunedState(y, *field.energy_and_grad(y), state.step + 1), {
            "accept": torch.ones(len(y), dtype=y.dtype)
        }


@pytest.mark.thorough
@pytest.mark.parametrize("k", slow_but([2, 3, 6], 2, 3))
def test_swaps_and_round_trips_are_as_often_as_theory_says(k):
    """In the plane E / T is exponential: neighbours with temperatures of ratio R swap with probability 2 / (1 + R)."""
    ratio = 1.8
    solver = ParallelTempering(Fresh(), temperatures=tuple(ratio**i for i in range(k)))
    draws = stk.sample(
        gaussian(),
        solver,
        chains=500,
        steps=200,
        warmup=50,
        seed=2,
        dtype=torch.float64,
        keep="moments",
    )
    assert_mean(draws.stats["swap"], 2 / (1 + ratio), "swap")
    rate = (
        1 / (2 + (k - 1) * (ratio - 1)) if k > 2 else 2 / (1 + ratio)
    )  # of two places each swap ends a trip
    assert_mean(draws.stats["round_trips"], rate, "round trips")
    if k > 2:  # pairs of a random parity would make this many
        reversible = 1 / (2 * (k - 1) + (k - 1) * (ratio - 1))
        assert mean_z(draws.stats["round_trips"], reversible).abs() > 2 * z_limit()


def test_the_even_ladder_of_a_normal_is_geometric():
    beta = torch.linspace(1, 0.05, 8, dtype=torch.float64)
    for _ in range(8):
        ratio = beta[:-1] / beta[1:]
        beta = even_ladder(beta, (ratio - 1) / (ratio + 1))
    torch.testing.assert_close(
        beta, 20 ** -torch.linspace(0, 1, 8, dtype=torch.float64), rtol=1e-2, atol=0
    )
    still = even_ladder(beta, torch.zeros(7, dtype=torch.float64))
    torch.testing.assert_close(still, beta)


def test_windows_double_and_leave_the_end_alone():
    assert [s + 1 for s in range(400) if window_ends(s, 400)] == [2, 4, 9, 18, 37, 75, 150, 300]
    assert [s + 1 for s in range(3) if window_ends(s, 3)] == [1, 2]


@pytest.mark.thorough
def test_far_modes_get_their_weights_and_the_kernel_alone_stays():
    run = {
        "init": torch.full((400, 1), -5.0, dtype=torch.float64),
        "steps": 60,
        "warmup": 60,
        "seed": 1,
    }
    kernel = stk.HMC(1.0, leapfrogs=5, metric="none")
    alone = stk.sample(FAR, kernel, **(run | {"steps": 50}))
    assert bool((alone.x < 0).all())
    draws = stk.sample(FAR, ParallelTempering(kernel), **run)
    assert draws.failures == {}
    assert_mean((draws.final > 0).double(), 0.7, "weight")
    x, cdf = tempered_cdf(FAR, 1.0, 12.0)
    assert kstest(draws.final[:, 0].numpy(), lambda v: np.interp(v, x, cdf)).pvalue > FALSE_ALARM
    assert float(draws.stats["round_trips"].mean()) > 0.1


@pytest.mark.slow
def test_eight_narrow_modes_from_one():
    """Barriers of more than a hundred: a hotter end than the usual one."""
    start = torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(160, 2)
    solver = ParallelTempering(stk.HMC(leapfrogs=3, metric="none"), hottest=200.0)
    draws = stk.sample(ring_mixture(std=0.05), solver, init=start, steps=100, warmup=50, seed=1)
    sector = (torch.atan2(draws.final[:, 1], draws.final[:, 0]) / (math.pi / 4)).round().long() % 8
    assert_mean(one_hot(sector, 8).double(), torch.full((8,), 1 / 8), "sectors")
    assert_mean(draws.final.square().sum(1), 4 + 2 * 0.05**2, "mean square")
    assert draws.x.abs().max() < 2.5
    assert (
        0.55 < float(draws.stats["accept"].mean()) < 0.85
    )  # one step size, tuned over all temperatures


COLD = Ising(4, 0.8)
SPINS = stk.GibbsWithGradients()


@pytest.mark.slow
def test_a_cold_ising_model_turns_over():
    """Counts of each energy and sign of the magnetisation against the sum over all states."""
    start = torch.ones(400, 4, 4)
    alone = stk.sample(COLD, SPINS, init=start, steps=300, seed=1, keep="last")
    assert alone.final.sum((1, 2)).min() > 0
    solver = ParallelTempering(SPINS, replicas=6, hottest=6.0, kernel_steps=2)
    draws = stk.sample(COLD, solver, init=start, steps=100, warmup=50, seed=1, keep="last")
    states, probability = all_states(COLD), law(COLD)

    def kinds(x):
        return torch.stack(
            [(COLD.energy(x.double()) > -25.5).double(), x.double().sum((1, 2)).sign()], 1
        )

    cells, of_state = kinds(states).unique(dim=0, return_inverse=True)
    expected = np.bincount(of_state.numpy(), probability) * len(draws.final)
    seen = (kinds(draws.final)[:, None] == cells).all(2).sum(0).numpy()
    kept = expected > 5
    assert expected[~kept].sum() < 5
    assert (
        chisquare(seen[kept], expected[kept] * seen[kept].sum() / expected[kept].sum()).pvalue
        > FALSE_ALARM
    )
    assert math.isnan(float(draws.tuned["step_size"]))


def swaps_of(temperatures, steps=80):
    """The rejections of all neighbours, each chain's mean, and round trips, at these temperatures from exact draws."""
    solver, n = ParallelTempering(SPINS, temperatures=temperatures, kernel_steps=2), 200
    noise, bound = stk.Noise(5, n, dtype=torch.float64), resolve(COLD, solver.needs)
    state = begin(solver, bound, COLD.draw(n, noise).double(), noise).state
    seen, trips = [], []
    for step in range(2 * steps):
        state, info = solver.step(bound, state, noise)
        if step >= steps:
            seen.append(
                1 - swap_log_ratio(state.energy, state.inverse_temperatures).clamp(max=0).exp()
            )
            trips.append(info["round_trips"])
    return torch.stack(seen).mean((0, 1)), torch.stack(trips).mean(0)


@pytest.mark.slow  # how it learns is held in `tests/laws/test_tuning.py`
def test_the_ladder_evens_rejections_out_and_round_trips_rise():
    """Across the transition of the Ising model; 200 chains know a rejection rate to .01 or so."""
    solver = ParallelTempering(SPINS, replicas=6, hottest=6.0, kernel_steps=2)
    tuned = stk.sample(COLD, solver, chains=200, steps=1, warmup=200, seed=3).tuned[
        "inverse_temperatures"
    ]
    assert tuned[0] == 1
    assert float(tuned[-1]) == pytest.approx(1 / 6)
    even, often = swaps_of(tuple((1 / tuned).tolist()))
    geometric, seldom = swaps_of(tuple(6 ** (i / 5) for i in range(6)))
    assert float(even.max() - even.min()) < 0.06 < 0.2 < float(geometric.max() - geometric.min())
    assert mean_z(often - seldom, 0.0) > z_limit()


class Elementwise:
    """Arithmetic of single elements, whose bits are the same in any batch."""

    event_shape = (2,)
    provides = frozenset({"energy", "score"})

    def energy(self, x):
        return (x[:, 0] * x[:, 0] - 1) ** 2 + x[:, 1] * x[:, 1]

    def score(self, x):
        return torch.stack([-4 * x[:, 0] * (x[:, 0] * x[:, 0] - 1), -2 * x[:, 1]], 1)


@pytest.mark.parametrize(
    "kernel",
    [
        stk.HMC(**SMALL),
        pytest.param(stk.NUTS(metric="none", max_depth=3), marks=pytest.mark.slow),
        pytest.param(stk.MALA(0.2), marks=pytest.mark.slow),
    ],
)
def test_chains_do_not_depend_on_the_batch(kernel):
    solver = ParallelTempering(kernel, replicas=3)
    run = {
        "chains": 13,
        "steps": 12,
        "warmup": stk.Warmup(30, pilot=5),
        "seed": 6,
        "dtype": torch.float64,
    }
    whole, parts = (stk.sample(Elementwise(), solver, **run, batch=batch) for batch in (None, 4))
    assert torch.equal(whole.x, parts.x)
    fewer = stk.sample(Elementwise(), solver, **(run | {"chains": 7}))
    assert torch.equal(whole.x[:7], fewer.x)
    for name in ("step_size", "inverse_temperatures"):
        assert torch.equal(whole.tuned[name], parts.tuned[name])
    assert whole.cost == parts.cost


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
        return (x[:, 0] ** 2 - 1) ** 2 + x[:, 1] ** 2

    run = {
        "chains": 6,
        "steps": 20,
        "warmup": stk.Warmup(40, pilot=4),
        "seed": 6,
        "dtype": torch.float64,
        "batch": 2,
    }
    solver = ParallelTempering(stk.HMC(**SMALL), replicas=3)
    field = stk.Energy(energy, (2,))
    undisturbed = stk.sample(field, solver, **run)
    path = tmp_path / "run.ckpt"
    calls[:] = 0, 2 * stop + 10
    with pytest.raises(Stop):
        stk.sample(field, solver, checkpoint=stk.Checkpoint(path, every=1e-9), **run)
    calls[1] = -1
    resumed = stk.sample(field, solver, checkpoint=path, **run)
    assert torch.equal(resumed.x, undisturbed.x)
    for name in resumed.tuned:
        assert torch.equal(resumed.tuned[name], undisturbed.tuned[name])
    assert torch.equal(resumed.stats["round_trips"], undisturbed.stats["round_trips"])


@pytest.mark.parametrize(
    "kernel", [stk.HMC(leapfrogs=4, metric="none"), stk.NUTS(metric="none"), stk.MALA(0.2)]
)
def test_every_evaluation_is_counted(kernel):
    rows = []

    def energy(x):
        rows.append(len(x))
        return x.square().sum(1) / 2

    solver = ParallelTempering(kernel, replicas=3, kernel_steps=2)
    draws = stk.sample(
        stk.Energy(energy, (2,)), solver, chains=5, steps=4, warmup=6, keep="moments"
    )
    assert sum(rows) == draws.cost["score"]
    assert draws.mean.shape == draws.var.shape == (5, 2)
    assert draws.stats["swap"].shape == (5,)


def test_each_replica_has_the_condition_of_its_chain():
    field = stk.Energy(lambda x, centre: (x - centre).square().sum(1) / 2, (1,))
    centre = torch.arange(8.0)[:, None] * 10
    solver = ParallelTempering(stk.HMC(1.0, **SMALL), replicas=3)
    draws = stk.sample(field, solver, cond={"centre": centre}, init=centre, steps=100, warmup=20)
    assert float((draws.x - centre[:, None]).abs().max()) < 6


def test_a_failed_start_is_flagged_and_the_others_go_on():
    field = stk.Energy(lambda x: torch.where(x[:, 0] > 0, x.square().sum(1) / 2, torch.nan), (1,))
    start = torch.tensor([[1.0], [-1.0], [0.5]])
    draws = stk.sample(field, ParallelTempering(replicas=3), init=start, steps=50, warmup=20)
    assert draws.status.tolist() == [0, int(stk.Status.NONFINITE), 0]
    assert bool((draws.x[1] == -1.0).all())
    assert bool((draws.x[[0, 2]] > 0).all())
    assert float(draws.x[[0, 2]].std(1).min()) > 0.1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"replicas": 1}, "replicas"),
        ({"hottest": 1.0}, "hottest"),
        ({"temperatures": (2.0, 4.0)}, "temperatures"),
        ({"temperatures": (1.0, 4.0, 4.0)}, "temperatures"),
        ({"temperatures": (1.0,)}, "temperatures"),
        ({"temperatures": 3.0}, "temperatures"),
        ({"kernel_steps": 0}, "kernel_steps"),
        ({"kernel": stk.ULA(0.1)}, "kernel"),
        ({"kernel": stk.HMC()}, "nothing to tune"),
        ({"kernel": stk.ChEES(0.1, metric="none")}, "nothing to tune"),
        ({"kernel": stk.MALA(0.1, temperature=2.0)}, "temperature 1"),
    ],
)
def test_what_is_wrong_is_named(options, named):
    with pytest.raises(stk.InvalidArgument, match=named):
        ParallelTempering(**options)


def test_a_kernel_that_keeps_no_gradient_is_refused():
    class Forgetful(Fresh):
        def init(self, field, x, noise):
            return type("S", (tuple,), {"_fields": ("x", "energy")})((x, field.energy(x)))

    with pytest.raises(stk.InvalidArgument, match="energy and grad"):
        stk.sample(
            gaussian(), ParallelTempering(Forgetful(), temperatures=LADDER), chains=2, steps=2
        )
    inner = ParallelTempering(Fresh(), temperatures=LADDER)  # holds those of all its replicas
    with pytest.raises(stk.InvalidArgument, match="energy and grad"):
        stk.sample(gaussian(), ParallelTempering(inner, temperatures=LADDER), chains=2, steps=2)
    with pytest.raises(stk.InvalidArgument, match="warmup"):
        stk.sample(gaussian(), ParallelTempering(), chains=2, steps=2, warmup=0)
    with pytest.raises(stk.MissingCapability):
        stk.sample(COLD, ParallelTempering(), chains=2, steps=2)


NESTING = {"ParallelTempering": stk.ParallelTempering, "AIS": stk.AIS, "SMC": stk.SMC}


@pytest.mark.parametrize("temperature", [0.5, 0.99, 2.0])
@pytest.mark.parametrize("name", NESTING)
def test_what_tempers_takes_kernels_at_temperature_one_alone(name, temperature):
    """Hotter ones and colder ones leave another law as it is."""
    kernel = stk.MALA(0.1, temperature=temperature)
    with pytest.raises(stk.InvalidArgument, match="at temperature 1"):
        NESTING[name](kernel=kernel)
    assert NESTING[name](kernel=stk.MALA(0.1)).kernel == stk.MALA(0.1)
