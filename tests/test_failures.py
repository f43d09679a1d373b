"""Nothing silent: every injected failure is flagged or rejected, by every solver, and no chain is anywhere it did not go.

The fields are N(0, I) in the plane, or on some of its points, with an injury: where or when it shows, energy and score are other
numbers. What a chain does beside it is known to the bit: what the same solver does from the same state on the sound field. So
each step is made on both, and the law is: a chain that did not meet the injury in a step is where the sound field leads it, a
chain that did is where it was.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import scoretk as stk
from scoretk.core.rows import across
from scoretk.fields import resolve
from scoretk.run import batches
from scoretk.run.moment import begin
from scoretk.run.settle import settle
from scoretk.solvers import EXAMPLES, SOLVERS, is_grid
from tests import mutants
from tests.marks import in_turn, slow_but

CHAINS, STEPS, SEED, EDGE = 48, 24, 3, 1.5
NAN, INF = float("nan"), float("inf")

EVERY = {name: solver for name, solver in EXAMPLES.items() if solver.timed is not True}
UNADJUSTED = {
    "preconditioned-langevin unadjusted": stk.PreconditionedLangevin(
        0.2, metric="none", adjusted=False
    ),
    "discrete-langevin unadjusted": stk.DiscreteLangevin(1.0, adjusted=False),
} | {
    name: EVERY[name]
    for name in ("ula", "underdamped", "mclmc", "annealed-langevin", "block-gibbs")
}
WEIGHTED = {name: EVERY[name] for name in ("ais", "smc")}
METROPOLIS = {name: solver for name, solver in EVERY.items() if name not in UNADJUSTED | WEIGHTED}
EVERY = EVERY | UNADJUSTED
DISCRETE = [name for name, solver in EVERY.items() if "states" in solver.needs]
PARTLY = ["nuts", "parallel-tempering"]  # of whose trajectories or replicas a part may be sound
LATE = [
    "annealed-langevin",
    "block-gibbs",
]  # which look at a place only when they leave it, or never
TUNED = {
    "hmc": stk.HMC(),
    "chees": stk.ChEES(),
    "nuts": stk.NUTS(max_depth=5),
    "preconditioned-langevin": stk.PreconditionedLangevin(),
    "mclmc": stk.MCLMC(),
    "adjusted-mclmc": stk.AdjustedMCLMC(),
    "parallel-tempering": stk.ParallelTempering(replicas=3),
}


def test_no_solver_is_left_out():
    static = {name for name, solver in SOLVERS.items() if solver.timed is not True}
    assert static == {name.split()[0] for name in EVERY}


@dataclass
class Injured:
    """N(0, I), but `there`, (energy, score), beyond an edge, or from a call on; None is the sound value. `met`: which did."""

    there: tuple[float | None, float | None] = (None, None)
    edge: float = EDGE
    sound_calls: float = INF
    calls: int = 0

    def __post_init__(self):
        self.met = torch.zeros(CHAINS, dtype=torch.bool)

    event_shape = (2,)
    provides = frozenset({"energy", "score"})

    def energy(self, x, row):
        return self._or_there(x.square().sum(1) / 2, self.there[0], x, row)

    def score(self, x, row):
        return self._or_there(-x, self.there[1], x, row)

    def _or_there(self, sound, there, x, row):
        if self.there == (None, None):
            return sound
        self.calls += 1
        bad = (x[:, 0] > self.edge) | (self.calls > self.sound_calls)
        self.met[row[bad]] = True
        return sound if there is None else torch.where(across(bad, sound), there, sound)


def alone(weights):
    """Couplings without bonds."""
    none = torch.zeros(0, dtype=torch.int64)
    return stk.Couplings(none, none, none.double(), weights)


@dataclass
class InjuredStates(Injured):
    """The same on the points of a grid, with sweeps that end in NaN where the energy is not sound."""

    states = (-2.0, -1.0, 1.0, 2.0)
    gibbs_shape = (2,)
    provides = frozenset({"energy", "score", "states", "gibbs", "couplings"})
    couplings = alone(torch.tensor(states).square().div(-2).expand(2, -1))

    def gibbs(self, x, u, row):
        weights = torch.tensor(self.states, dtype=x.dtype).square().div(-2).softmax(0)
        x = torch.tensor(self.states, dtype=x.dtype)[
            torch.searchsorted(weights.cumsum(0), u).clamp(max=3)
        ]
        return self._or_there(x, NAN if self.there != (None, None) else None, x, row)


INJURIES = {
    "NaN": {"there": (NAN, NAN)},
    "infinite energy": {"there": (INF, NAN)},
    "energy of minus infinity": {"there": (-INF, NAN)},
    "infinite gradient": {"there": (None, INF)},
    "NaN gradient": {"there": (None, NAN)},
    "NaN after 20 calls": {"there": (NAN, NAN), "edge": INF, "sound_calls": 20},
}


@pytest.fixture(autouse=True)
def unasked(monkeypatch):
    """Injuries by the number of a call count the run's own, not what is asked before its first step."""
    for question in ("check_rows_apart", "check_grows", "check_slopes", "warn_of_base"):
        monkeypatch.setattr(batches, question, lambda *run: None)


def target(name, injury=None):
    """The field for a solver, with an injury or sound."""
    return (InjuredStates if name in DISCRETE else Injured)(
        **({} if injury is None else INJURIES[injury])
    )


def start(name):
    """From N(0, I), of which one in fifteen is beyond the edge, or anywhere on the grid, one in four."""
    noise = stk.Noise(SEED, CHAINS, dtype=torch.float64)
    if name in DISCRETE:
        return torch.tensor(InjuredStates.states, dtype=torch.float64)[
            (4 * noise.uniform(0, 0, (2,))).long()
        ]
    return noise.normal(0, 0, (2,))


def sample(field, solver, init, **options):
    run = {} if is_grid(solver) else {"steps": STEPS}
    return stk.sample(
        field,
        solver,
        init=init,
        seed=SEED,
        cond={"row": torch.arange(len(init))},
        keep="all",
        **(run | options),
    )


@cache
def drawn(name, injury, solver):
    """What a solver draws on an injured field; asked for by two laws."""
    return sample(target(name, injury), solver, start(name))


class Made(NamedTuple):
    """A step, row by row: x before, where the sound field leads, x after; who met the injury; who was well before and after."""

    before: Tensor
    led: Tensor
    after: Tensor
    met: Tensor
    was_well: Tensor
    is_well: Tensor
    info: dict[str, Tensor]


def replay(solver, injured, sound, init):
    """The run of `sample`, made step by step."""
    noise, row = stk.Noise(SEED, CHAINS, dtype=torch.float64), torch.arange(CHAINS)
    bound, beside = (resolve(f, solver.needs, {"row": row}) for f in (injured, sound))
    moment = begin(solver, bound, init, noise)
    state, status, failed_at = moment.state, moment.status, moment.failed_at
    for step in range(STEPS):
        injured.met.zero_()
        led = solver.step(beside, state, noise)[0].x
        new, info = solver.step(bound, state, noise)
        before, was_well = state.x, status == 0
        state, status, failed_at, _ = settle(new, state, info, status, failed_at, step)
        yield Made(before, led, state.x, injured.met.clone(), was_well, status == 0, info)


def hold_to_the_law(name, injury, solver):
    """The steps of a run, all of which are as the module's docstring says, and those of `sample`."""
    init, draws = start(name), drawn(name, injury, solver)
    steps = list(replay(solver, target(name, injury), target(name), init))
    assert torch.equal(draws.x, torch.stack([step.after for step in steps], 1))
    assert torch.equal(draws.ok, steps[-1].is_well)
    assert any(bool((step.met & step.was_well).any()) for step in steps)
    for step in steps:
        free = step.is_well & ~step.met
        assert torch.equal(step.after[free], step.led[free])
        if name not in PARTLY:
            assert torch.equal(step.after[~free], step.before[~free])
    return steps


@pytest.mark.parametrize(
    ("name", "injury"),
    in_turn([name for name in EVERY if name != "smc"], INJURIES, "infinite gradient"),
)  # without the solver whose chains go on from where others are
def test_a_chain_is_where_the_sound_field_leads_it_or_where_it_was(name, injury):
    if unseen(name, injury):
        assert torch.equal(
            drawn(name, injury, EVERY[name]).x, sample(target(name), EVERY[name], start(name)).x
        )
        return
    for step in hold_to_the_law(name, injury, EVERY[name]):
        if name in UNADJUSTED:
            assert torch.equal(step.is_well, step.was_well & ~step.met)
        elif name in METROPOLIS:
            assert torch.equal(step.is_well, step.was_well)
        if name in METROPOLIS and name not in PARTLY:
            assert bool((step.info["accept"][step.met] == 0).all())


def unseen(name, injury):
    """Whether an injury is of a gradient, which this solver does not ask for."""
    return "gradient" in injury and EVERY[name].needs <= {"couplings", "energy", "states"}


class Forgiving(stk.ULA):
    """Takes a score that is not a number for 0."""

    def _drift(self, field, x):
        return field.score(x).nan_to_num()


@pytest.mark.parametrize(
    ("name", "mutant"), [("mala", mutants.NaNIsReplaced(0.3)), ("ula", Forgiving(0.2))]
)
def test_the_law_catches_made_up_places(name, mutant):
    with pytest.raises(AssertionError):
        hold_to_the_law(name, "NaN", mutant)


@pytest.mark.parametrize(("name", "injury"), in_turn(EVERY, INJURIES, "NaN"))
def test_flags_tell_all(name, injury):
    """Who starts beyond the edge is flagged, or weightless; who fails stays; `on_failure="raise"` raises what is flagged."""
    init, edge = start(name), INJURIES[injury].get("edge", EDGE)
    draws, far = drawn(name, injury, EVERY[name]), init[:, 0] > edge
    failed = draws.failed_at
    assert bool(draws.x.isfinite().all())
    assert torch.equal(draws.ok, failed == -1)
    if unseen(name, injury):
        assert draws.ok.all()
    elif name not in LATE and name not in WEIGHTED:
        assert bool((failed[far] == 0).all())
        assert torch.equal((draws.x[..., 0] > edge).any(1), far)
    for chain in (failed >= 0).nonzero().flatten().tolist():
        at = int(failed[chain])
        last = draws.x[chain, at - 1] if at else init[chain]
        assert torch.equal(draws.x[chain, at:], last.expand(STEPS - at, 2))
    if draws.ok.all():
        again = sample(target(name, injury), EVERY[name], init, on_failure="raise")
        assert torch.equal(again.x, draws.x)
        return
    with pytest.raises(stk.ChainFailure) as raised:
        sample(target(name, injury), EVERY[name], init, on_failure="raise")
    which = raised.value.chains
    assert draws.status[which].tolist() == raised.value.status
    assert failed[which].tolist() == raised.value.failed_at
    assert min(raised.value.failed_at) == failed[failed >= 0].min()


@pytest.mark.parametrize("name", WEIGHTED)
def test_where_the_target_has_no_density_the_weight_is_zero(name):
    init = start(name)
    for injury in ("NaN", "infinite energy"):
        draws = sample(target(name, injury), EVERY[name], init)
        assert torch.equal(draws.stats["log_weight"][:, -1] == -INF, draws.final[:, 0] > EDGE)
    draws = sample(target(name, "NaN after 20 calls"), EVERY[name], init)
    assert bool((draws.stats["log_weight"][:, -1] == -INF).all())
    infinite = sample(target(name, "energy of minus infinity"), EVERY[name], init)
    assert torch.equal(infinite.ok, init[:, 0] <= EDGE)


@pytest.mark.parametrize("name", METROPOLIS)
def test_no_chain_stays_where_it_may_go_on(name):
    draws = sample(target(name, "infinite energy"), EVERY[name], start(name))
    moves = (draws.x[:, 1:] != draws.x[:, :-1]).any(2).double().mean(1)
    assert bool((moves[draws.ok] > 0.1).all())
    assert not bool((draws.x == 0).any())


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but(TUNED, "hmc", "mclmc", "parallel-tempering"))
def test_tuning_hides_no_failure(name):
    """Among chains of which some start beyond the edge: those are flagged, the others sample and never go there."""
    init = start(name)
    draws, far = (
        sample(target(name, "infinite energy"), TUNED[name], init, warmup=100, steps=200),
        init[:, 0] > EDGE,
    )
    assert bool(draws.x.isfinite().all())
    assert torch.equal((draws.x[..., 0] > EDGE).any(1), far)
    assert bool((draws.failed_at[far] == 0).all())
    if (
        name == "mclmc"
    ):  # unadjusted: in warmup it stays inside, afterwards it fails where it leaves
        assert bool((draws.failed_at[~far & ~draws.ok] > 99).all())
    else:
        assert torch.equal(draws.ok, ~far)
        assert bool((draws.x[draws.ok].var(1) > 0).all())


# -------------------------------------------------------------------------------------------------------------- neighbours


@pytest.mark.parametrize("name", EVERY)
def test_a_failing_chain_leaves_no_trace_in_its_neighbours(name):
    """Whether one chain is well or not: the others (of SMC, in other islands) are the same to the bit."""
    sick, island, runs = 20, getattr(EVERY[name], "island", 1), []
    alone = torch.arange(CHAINS) // island != sick // island
    for place in (-1.0, 2.0):
        init = start(name)
        init[sick] = place
        runs.append(sample(target(name, "NaN"), EVERY[name], init))
    well, ill = runs
    assert name in (*LATE, *WEIGHTED) or (well.failed_at[sick] != 0 and ill.failed_at[sick] == 0)
    assert torch.equal(well.x[alone], ill.x[alone])
    assert torch.equal(well.failed_at[alone], ill.failed_at[alone])
    for stat, values in well.stats.items():
        assert torch.equal(values[alone].nan_to_num(), ill.stats[stat][alone].nan_to_num()), stat


@pytest.mark.parametrize("name", slow_but(TUNED, "chees", "mclmc", "parallel-tempering"))
def test_what_is_tuned_is_what_it_would_be_without_the_failing_chain(name):
    init = start(name)
    init[-1] = 2.0
    whole, without = (
        sample(target(name, "NaN"), TUNED[name], part, warmup=30, steps=4)
        for part in (init, init[:-1])
    )
    assert whole.failed_at[-1] == 0
    assert torch.equal(whole.x[:-1], without.x)
    for leaf, value in without.tuned.items():
        assert torch.equal(whole.tuned[leaf], value), leaf


# -------------------------------------------------------------------------------------------------- steps that are too large


QUARTIC = stk.Energy(lambda x, row: x.pow(4).sum(1) / 4, (2,))
WILD = {  # without the microcanonical solvers, whose steps have the length that they are given
    "ula": stk.ULA(5.0),
    "preconditioned-langevin unadjusted": stk.PreconditionedLangevin(
        5.0, metric="none", adjusted=False
    ),
    "underdamped": stk.Underdamped(5.0),
    "annealed-langevin": stk.AnnealedLangevin(
        levels=(2.0, 1.0), steps_per_level=STEPS // 2, step_size=5.0
    ),
    "mala": stk.MALA(5.0),
    "preconditioned-langevin": stk.PreconditionedLangevin(5.0, metric="none"),
    "ghmc": stk.GHMC(5.0),
    "hmc": stk.HMC(5.0, leapfrogs=3, metric="none"),
    "chees": stk.ChEES(5.0, length=15.0, metric="none"),
    "nuts": stk.NUTS(5.0, metric="none", max_depth=4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", WILD)
def test_a_step_too_large_is_flagged_or_rejected(name, dtype):
    init = torch.full((4, 2), 30.0, dtype=dtype)
    draws = sample(QUARTIC, WILD[name], init)
    assert bool(draws.x.isfinite().all())
    if name in UNADJUSTED:
        beyond = (
            stk.Status.DIVERGED.name if name == "annealed-langevin" else "NONFINITE"
        )  # which a grid may be before
        assert sum(draws.failures.values()) == 4
        assert set(draws.failures) <= {beyond, "NONFINITE"}
        assert bool((draws.final.abs() >= 30).all())
    else:
        assert draws.failures == {}
        assert torch.equal(draws.x, init[:, None].expand_as(draws.x))
        assert bool((draws.stats["accept"] == 0).all())
        if "diverging" in draws.stats:
            assert bool(draws.stats["diverging"].bool().all())


def test_a_gradient_whose_norm_overflows_is_flagged():
    """In float32 above 1.8e19: no direction can be had from it."""
    steep = stk.Energy(lambda x, row: x.pow(20).sum(1), (2,))
    draws = sample(steep, UNADJUSTED["mclmc"], torch.full((4, 2), 30.0))
    assert draws.failures == {"NONFINITE": 4}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [1e300, 1e-300])
@pytest.mark.parametrize("name", [name for name, s in EXAMPLES.items() if hasattr(s, "step_size")])
def test_a_step_size_that_the_dtype_does_not_hold_is_refused_or_told(name, size):
    """A float that float32 has no room for: a named error or draws, and no error of torch's; far steps are not OK draws."""
    field = stk.Energy(lambda x: x.square().sum(1) / 2, (3,))
    states = "states" in EXAMPLES[name].needs
    length = {} if is_grid(EXAMPLES[name]) else {"steps": 3, "warmup": 0}
    try:
        draws = stk.sample(
            stk.Discrete(field, (-1.0, 0.5, 2.0)) if states else field,
            replace(EXAMPLES[name], step_size=size),
            chains=4,
            **length,
        )
    except stk.ScoretkError:
        return
    assert draws.final.isfinite().all()
    assert draws.final.abs().max() < 1e3 or draws.failures
