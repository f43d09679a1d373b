"""Limits of what is asked: numbers that are searched for, ends that a path sets, weights that say nothing, chains that failed,
two things of which either may be the odd one, things that hold themselves, small rows, what does not depend on a part.
"""

import copy
import dataclasses
import math
from functools import partial, wraps
from types import MethodType

import numpy as np
import pytest
import torch
from torch import distributions as td

import scoretk as stk
from scoretk import diagnostics, learn
from scoretk.core import devices
from scoretk.core.devices import on
from scoretk.diagnostics import summary
from scoretk.diagnostics.weights import weights
from scoretk.fields.alike import alike
from scoretk.fields.base import plain_base
from scoretk.fields.derivatives import check_derivative
from scoretk.fields.fingerprint import APART as APART_BY_DEVICE
from scoretk.fields.fingerprint import CLOSE, FLOOR, closeness, same
from scoretk.fields.foreign import library_of
from scoretk.fields.resolve import resolve
from scoretk.inference import beginning, likelihood, partition
from tests.laws.test_fields import ALL_PATHS, Bag
from tests.recorded import randn

# --- what is searched for is found -------------------------------------------------------------------------------


OTHER_PATHS = [
    stk.Tabulated(torch.linspace(0.98, 0.0, 12, dtype=torch.float64)),
    stk.Tabulated(torch.tensor([0.9, 0.2, 0.0], dtype=torch.float64)),
    *(stk.Interpolant(0.0), stk.VP(2.0, 2.0), stk.EDM(0.01, 9.0, 1.0), stk.SubVP(0.01, 30.0)),
]


@pytest.mark.parametrize("path", [*ALL_PATHS, *OTHER_PATHS], ids=repr)
def test_the_time_of_a_level_has_all_digits(path):
    """Near both ends too: the level of the time that is found is the one that was asked for."""
    t = torch.linspace(0.002, 0.998, 499, dtype=torch.float64)
    level = path.log_snr(t)
    torch.testing.assert_close(path.log_snr(path.t(level)), level, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.stack([path.t(v) for v in level[::50]]), path.t(level)[::50], rtol=0, atol=0
    )


@pytest.mark.parametrize("overlap", [0.01, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("dim", [5, 64, 3072, 10**6])
def test_the_ratio_of_levels_has_the_overlap_that_was_asked_for(dim, overlap):
    assert stk.ncsnv2_overlap(stk.ncsnv2_ratio(dim, overlap), dim) == pytest.approx(
        overlap, rel=1e-9
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_ladder_of_levels_has_as_many_as_its_ratio_makes(dtype):
    """Where the last ratio is the one that was asked for, no level more by rounding; else one more of a smaller ratio."""
    data = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=dtype)
    for count in range(2, 40):
        for ratio in (1.1, 1.25, 2.0):
            low = 5.0 / ratio ** (count - 1)
            ladder = stk.ncsnv2_ladder(data, low, ratio=ratio)
            assert len(ladder) == count
            torch.testing.assert_close(ladder[:-1] / ladder[1:], torch.full_like(ladder[1:], ratio))
            assert len(stk.ncsnv2_ladder(data, low, ratio=ratio * 0.999)) == count + 1


# --- ends that a path sets ---------------------------------------------------------------------------------------

BOUNDED = {
    "VE": stk.VE(0.05, 5.0),
    "EDM": stk.EDM(0.05, 5.0, 3.0),
    "table": stk.Tabulated(torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)),
    "VP": stk.VP(),
    "linear": stk.Linear(),
}


def prior(path):
    return stk.Diffusion(lambda x, t: torch.sin(x), (2,), path, "noise")


def levels(path):
    """The highest and the lowest level of a path."""
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return (path.sigma(ends) / path.alpha(ends)).tolist()


@pytest.mark.parametrize("name", BOUNDED)
def test_levels_of_a_solver_are_from_the_paths_first_to_its_last(name):
    """The first itself, and none beyond; not the last itself."""
    field = prior(BOUNDED[name])
    highest, lowest = levels(BOUNDED[name])
    first, coupling = min(highest, 1e3), max(2 * lowest, 1e-3)

    def run(**settings):
        settings = {"first": first, "coupling": coupling, "sweeps": 2, "steps": 1} | settings
        return stk.sample(field, stk.SplitGibbs(**settings), chains=2, dtype=torch.float64)

    run()
    run(coupling=lowest * (1 + 1e-6) if lowest else 1e-6)
    refused = [{"first": highest * (1 + 1e-6)}] if math.isfinite(highest) else []
    refused += [{"coupling": v} for v in (lowest, lowest * (1 - 1e-6)) if lowest]
    for settings in refused:
        with pytest.raises(stk.InvalidArgument, match=f"^{next(iter(settings))}: expected"):
            run(**settings)


# --- weights -----------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=9)


def row(x, stats):
    return summary._row(x, 10, weights(stats, len(x)))


def weighted(log_weight):
    with np.errstate(all="raise"):
        return row(X, {} if log_weight is None else {"log_weight": log_weight})


@pytest.mark.parametrize(
    "given", [np.full(9, -np.inf), np.zeros(9), np.full(9, 700.0), np.full((9, 1), -3.0)]
)
def test_weights_that_are_all_alike_are_none(given):
    """However large, all 0 too: nothing is known of them that could be said of one draw and not of another."""
    found, plain = weighted(given), weighted(None)
    assert found == pytest.approx(plain, nan_ok=True)


@pytest.mark.parametrize("alone", range(9))
def test_draws_of_no_weight_are_no_draws(alone):
    """Of nine draws those that count are left, be it one or all but one."""
    for left in ([alone], [i for i in range(9) if i != alone]):
        given = np.full(9, -np.inf)
        given[left] = 0.3
        found = weighted(given)
        rest = row(X[left], {})
        assert found == pytest.approx(rest, nan_ok=True)
    assert weighted(np.where(np.arange(9) == alone, 0.3, -np.inf)) == pytest.approx(
        dict.fromkeys(summary.COLUMNS, math.nan)
        | {"mean": X[alone], "ess_bulk": 1.0, "ess_tail": 1.0},
        nan_ok=True,
    )


# --- chains that failed ------------------------------------------------------------------------------------------

FAILED = torch.tensor([1, 4, 6])


def quadratic(x):
    return x.square().flatten(1).sum(1) / 2


@pytest.fixture(scope="module")
def runs():
    """A run of eight chains, three of which have failed, with what these hold replaced in several ways."""
    draws = stk.sample(
        stk.Energy(quadratic, (2,)), stk.MALA(0.8), chains=8, steps=40, seed=3, dtype=torch.float64
    )
    made = []
    for held in (0.0, 1e6, -1e6, math.nan, math.inf):
        other = copy.deepcopy(draws)
        other.status[FAILED] = int(stk.Status.NONFINITE)
        other.failed_at[FAILED] = 5
        for part in (other.x, other.final, *other.stats.values()):
            part[FAILED] = held
        made.append(other)
    return made


LOOKED = {
    "jumps": beginning.usual_jumps,
    "the law about them": lambda look: (
        beginning._fitted(look).mean,
        beginning._fitted(look).stddev,
    ),
    "how the energy explores": beginning._explores_slowly,
    "how far weighted draws are": lambda look: partition._disagreement(
        look, WEIGHTED, torch.zeros(16)
    ),
    "summary": lambda look: str(look.summary()),
    "rows of a summary": lambda look: look.summary().rows,
    "failures": lambda look: look.failures,
    "chains that are well": lambda look: look[look.ok].x,
}
WEIGHTED = stk.sample(
    stk.Energy(quadratic, (2,)),
    stk.AIS(levels=3, kernel=stk.MALA(0.5)),
    chains=16,
    keep="all",
    dtype=torch.float64,
)


@pytest.mark.parametrize("name", LOOKED)
def test_what_a_failed_chain_holds_changes_nothing_that_is_said_of_the_others(name, runs):
    first, *others = (LOOKED[name](run) for run in runs)
    for other in others:
        torch.testing.assert_close(told(other), told(first), equal_nan=True)


def told(answer):
    """An answer as tensors and texts that can be compared."""
    if isinstance(answer, str | bool | int | float | torch.Tensor):
        return torch.as_tensor(answer) if not isinstance(answer, str) else [*map(ord, answer)]
    if isinstance(answer, dict):
        return {key: told(value) for key, value in answer.items()}
    return [told(value) for value in answer]


# --- two things, of which either may be the odd one --------------------------------------------------------------


def timed(n, path=None):
    return stk.Diffusion(lambda x, t: torch.sin(x), (n,), path or stk.VP(), "noise")


def well(n):
    return stk.Energy(quadratic, (n,))


def axis(n, labels=None):
    return stk.Variable((n,), dims=("k",), coords={} if labels is None else {"k": labels})


def of_variables(**specs):
    return stk.Energy(lambda **v: sum(x.flatten(1).sum(1) for x in v.values()), variables=specs)


PLAIN = of_variables(a=(2,), b=(3,))
PAIR = {
    "axes": lambda a, b: of_variables(u=axis(a), v=axis(b)),
    "three axes": lambda a, b: of_variables(u=axis(a), v=axis(a), w=axis(b)),
    "labels": lambda a, b: of_variables(u=axis(2, [0, a]), v=axis(2, [0, b])),
    "product": lambda a, b: stk.product(well(a), well(b)),
    "product in time": lambda a, b: stk.product(timed(a), timed(b)),
    "bridge": lambda a, b: stk.bridge(well(a), well(b), 0.5),
    "guided": lambda a, b: stk.guided(timed(a), 2.0, timed(b)),
    "base": lambda a, b: stk.Velocity(lambda x, t: x, (a,), torch.zeros(4, b)),
    "likelihood": lambda a, b: stk.posterior(well(a), well(b)),
    "measured": lambda a, b: stk.posterior(
        timed(a), stk.LinearGaussian(torch.eye(b), torch.ones(b), 0.5)
    ),
    "measured number": lambda a, b: stk.posterior(
        timed(2), stk.LinearGaussian(torch.ones(a, 2), torch.ones(b), 0.5)
    ),
    "rows of conditions": lambda a, b: stk.sample(
        stk.Energy(lambda x, u, v: quadratic(x), (2,)),
        stk.MALA(0.1),
        chains=a,
        steps=1,
        cond={"u": torch.zeros(a), "v": torch.zeros(b)},
    ),
    "rows of a start": lambda a, b: stk.sample(
        PLAIN, stk.MALA(0.1), steps=1, init={"a": torch.zeros(a, 2), "b": torch.zeros(b, 3)}
    ),
    "samples": lambda a, b: diagnostics.mmd(randn(9, a), randn(9, b)),
    "samples of a test": lambda a, b: diagnostics.sliced_wasserstein_test(randn(9, a), randn(9, b)),
    "events of one size": lambda a, b: diagnostics.mmd(randn(9, a, b), randn(9, b, a)),
    "events of one size, copies": lambda a, b: diagnostics.copies(
        randn(9, a, b), randn(9, a, b), randn(9, b, a)
    ),
    "events of one size, product": lambda a, b: stk.product(
        stk.Energy(quadratic, (a, b)), stk.Energy(quadratic, (b, a))
    ),
    "events of one size, base": lambda a, b: stk.Velocity(
        lambda x, t: x, (a, b), torch.zeros(4, b, a)
    ),
    "events of one size, ranks": lambda a, b: diagnostics.sbc_ranks(
        randn(9, a, b), randn(9, 5, b, a)
    ),
    "events of one size, interpolation": lambda a, b: stk.interpolate(
        randn(9, a, b), randn(9, b, a), 3
    ),
    "events of one size, loss": lambda a, b: learn.flow_matching(
        lambda x, t: x, randn(9, a, b), torch.ones(9), randn(9, b, a)
    ),
    "copies": lambda a, b: diagnostics.copies(randn(9, a), randn(9, b), randn(9, a)),
    "held out": lambda a, b: diagnostics.copies(randn(9, a), randn(9, a), randn(9, b)),
    "ranks": lambda a, b: diagnostics.sbc_ranks(randn(9, a), randn(9, 5, b)),
    "rows of ranks": lambda a, b: diagnostics.sbc_ranks(randn(a, 2), randn(b, 5, 2)),
    "references": lambda a, b: diagnostics.tarp_ranks(
        randn(9, a), randn(9, 5, a), references=randn(9, b)
    ),
    "couplings": lambda a, b: stk.Couplings(
        torch.zeros(a).long(), torch.ones(b).long(), torch.ones(a)
    ),
    "strengths": lambda a, b: stk.Couplings(
        torch.zeros(a).long(), torch.ones(a).long(), torch.ones(b)
    ),
    "noise of a loss": lambda a, b: learn.flow_matching(
        lambda x, t: x, randn(9, a), torch.ones(9), randn(9, b)
    ),
    "rows of a loss": lambda a, b: learn.flow_matching(
        lambda x, t: x, randn(a, 2), torch.ones(a), randn(b, 2)
    ),
    "times of a loss": lambda a, b: learn.flow_matching(
        lambda x, t: x, randn(a, 2), torch.ones(b), randn(a, 2)
    ),
    "ends of an interpolation": lambda a, b: stk.interpolate(randn(9, a), randn(9, b), 3),
    "rows of an interpolation": lambda a, b: stk.interpolate(randn(a, 2), randn(b, 2), 3),
    "weights of a mixture": lambda a, b: stk.mixture(
        [stk.from_distribution(td.Independent(td.Normal(torch.zeros(2), 1.0), 1))] * a, [1.0] * b
    ),
    "constants of a mixture": lambda a, b: stk.mixture(
        [well(2)] * a, [1.0] * a, log_partition=[0.0] * b
    ),
    "rows of ids": lambda a, b: stk.log_prob(
        timed(2), randn(a, 2), rows=range(b), steps=1, method="euler"
    ),
    "rows of a density": lambda a, b: stk.log_prob(
        stk.Velocity(lambda x, t, u: x, (2,)),
        randn(a, 2),
        cond={"u": torch.zeros(b)},
        steps=1,
        method="euler",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PAIR)
def test_what_does_not_agree_is_refused_whichever_comes_first(name):
    """And what agrees is taken, of either size."""
    for a, b in ((2, 3), (3, 2), (3, 4), (4, 3)):
        with pytest.raises(stk.InvalidArgument):
            PAIR[name](a, b)
    for n in (2, 3):
        PAIR[name](n, n)


def net_of(shape):
    return stk.Diffusion(lambda x, t: torch.sin(x), shape, stk.VP(), "noise")


def energy_of(shape):
    return stk.Energy(lambda x: x.flatten(1).square().sum(1), shape)


def law_of(shape):
    return stk.from_distribution(
        td.Independent(td.Normal(torch.zeros(shape), 1.0), len(shape)) if shape else td.Normal(0, 1)
    )


SHAPED = {
    "product": lambda a, b: stk.product(energy_of(a), energy_of(b)),
    "product in time": lambda a, b: stk.product(net_of(a), net_of(b)),
    "mixture": lambda a, b: stk.mixture([law_of(a), law_of(b)], [0.3, 0.7]),
    "bridge": lambda a, b: stk.bridge(energy_of(a), energy_of(b), 0.5),
    "guided": lambda a, b: stk.guided(net_of(a), 2.0, net_of(b)),
    "static guided": lambda a, b: stk.guided(energy_of(a), 2.0, energy_of(b)),
    "base of samples": lambda a, b: stk.Velocity(lambda x, t: x, a, torch.zeros(4, *b)),
    "base of a law": lambda a, b: stk.Velocity(lambda x, t: x, a, law_of(b)),
    "likelihood": lambda a, b: stk.posterior(energy_of(a), energy_of(b)),
    "start": lambda a, b: stk.sample(
        energy_of(a), stk.ULA(0.1), chains=3, steps=1, init=torch.zeros(3, *b)
    ),
    "density": lambda a, b: stk.log_prob(net_of(a), torch.zeros(3, *b), method="euler", steps=1),
    "latents": lambda a, b: stk.encode(net_of(a), torch.zeros(3, *b), method="euler", steps=1),
    "base of a ladder": lambda a, b: stk.sample(
        energy_of(a), stk.AIS(2, base=law_of(b), kernel=stk.MALA(0.1)), chains=4
    ),
    "partition": lambda a, b: stk.log_partition(
        energy_of(a),
        chains=4,
        levels=2,
        pilot=16,
        base=law_of(b),
        kernel=stk.MALA(0.1),
        check=False,
    ),
    "energies": lambda a, b: energy_of(a).energy(torch.zeros(3, *b)),
    "velocities": lambda a, b: net_of(a).velocity(torch.zeros(3, *b), 0.5),
    "negatives": lambda a, b: stk.ContrastiveDivergence(stk.ULA(0.1), 1)(
        energy_of(a), torch.zeros(3, *b)
    ),
    "samples": lambda a, b: diagnostics.mmd(torch.zeros(3, *a), torch.ones(3, *b)),
    "interpolation": lambda a, b: stk.interpolate(randn(3, *a), randn(3, *b, seed=1), 3),
}
SHAPES = (
    ((2, 2), (4,)),
    ((2, 2), (3, 2)),
    ((2, 2), (2, 3)),
    ((2,), (1, 2)),
    ((2,), (2, 1)),
    ((), (1,)),
)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SHAPED)
def test_event_shapes_agree_where_all_of_their_axes_do(name):
    """Those of one size, of one last axis or of one first axis are others, whichever comes first."""
    for one, other in SHAPES:
        for a, b in ((one, other), (other, one)):
            with pytest.raises(stk.InvalidArgument):
                SHAPED[name](a, b)
    for shape in ((2, 2), (3,)):
        SHAPED[name](shape, shape)


# --- things that hold themselves ---------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Cell:
    value: object
    next: object = None


def ring(kind, value):
    """A thing that holds itself in some way, and a value."""
    if kind == "list":
        made = [value]
        made.append(made)
    elif kind == "dictionary":
        made = {"value": value}
        made["self"] = made
    elif kind == "attributes":
        made = Bag(value=value)
        made.me = made
    elif kind == "dataclass":
        made = Cell(value)
        made.next = made
    elif kind == "two in turn":
        made = Cell(0, Cell(value))
        made.next.next = made
    elif kind == "method":
        made = Bag(value=value)
        made.bound = made.ask
    else:
        made = Bag(first=[], value=value)
        made.first.append({"a": (made,)})
    return made


RINGS = ("list", "dictionary", "attributes", "dataclass", "two in turn", "method", "within")


@pytest.mark.parametrize("kind", RINGS)
def test_what_holds_itself_is_alike_where_all_else_of_it_is(kind):
    one = ring(kind, torch.ones(2))
    assert alike(one, ring(kind, torch.ones(2)))
    assert alike(one, copy.deepcopy(one))
    assert not alike(one, ring(kind, torch.zeros(2)))
    assert not alike(ring(kind, torch.zeros(2)), one)
    for other in RINGS:
        if other != kind and {other, kind} - {"attributes", "method", "within"}:
            assert not alike(one, ring(other, torch.ones(2)))


def test_a_pair_that_is_being_compared_stands_for_itself_alone():
    """A ring beside a chain that is as the ring for a while, and ends."""
    for length in (1, 2, 3):
        one = Cell(0.0)
        one.next = [one]
        for last in (1.0, None):
            other = Cell(last)
            for _ in range(length):
                other = Cell(0.0, [other])
            assert not alike(one, other)
            assert not alike(other, one)


# --- rows that are small -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["answers", "answers.denoise", "answers.energy", "answers.path"])
@pytest.mark.parametrize("events", [0, 1, 2])
def test_an_answer_is_the_same_to_rounding_of_its_own_row(name, events):
    """The smaller row to the rounding of it; energies, which have a common constant, to that of the largest."""
    shape, close = (2, 3, 2)[: 1 + events], 1e-4
    stored = randn(*shape).sign() * (1 + randn(*shape, seed=1).abs())
    stored[0] *= 1e-2
    for row in range(2):
        for i in np.ndindex(*shape[1:]):
            place = (row, *i)
            by = name != "answers.energy" and (
                stored[place].abs()
                if name == "answers.path" or not events
                else stored[row].abs().max()
            )
            scale = float(stored.abs().max() if by is False else by)
            allowed = close * scale + FLOOR * float(stored.abs().max())
            for size, answer in ((0.99, True), (1.01, False)):
                found = stored.clone()
                found[place] += size * allowed
                assert same(name, found, stored, close, events) is answer


@pytest.mark.parametrize("name", ["answers", "answers.energy", "answers.path"])
@pytest.mark.parametrize("what", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_the_same_in_its_own_place_alone(name, what):
    for place in ((0, 0), (1, 2)):
        stored = randn(2, 3)
        stored[place] = what
        assert same(name, stored.clone(), stored, 1e-4, 1)
        others = (0.0, math.nan, math.inf, -math.inf)
        for other in others:
            found = stored.clone()
            found[place] = other
            assert same(name, found, stored, 1e-4, 1) is (str(other) == str(what))
        moved = randn(2, 3)
        moved[1 - place[0], place[1]] = what
        assert not same(name, moved, stored, 1e-4, 1)
    whole = torch.full((2, 3), what)
    assert same(name, whole.clone(), whole, 1e-4, 1)
    assert not same(name, None, whole, 1e-4, 1)
    assert not same(name, whole[:1], whole, 1e-4, 1)


DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn")


@pytest.mark.parametrize("one", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_answers_are_as_near_as_the_coarser_of_two_and_their_devices(one, other):
    def near(*told):
        return closeness(*({"dtype": d, "device": where} for d, where in told))

    alone = {d: near((d, "cpu"), (d, "cpu")) for d in (one, other)}
    assert near((one, "cpu"), (other, "cpu")) == max(alone.values())
    assert near((one, "cpu"), (other, "cuda")) == max(APART_BY_DEVICE, *alone.values())
    assert closeness(None, {"dtype": other, "device": "cpu"}) >= alone[other]
    assert alone[one] == CLOSE.get(one, APART_BY_DEVICE)


# --- what is no answer -------------------------------------------------------------------------------------------

NO_ANSWERS = {
    "a meta tensor": lambda a: a.to("meta"),
    "a tensor of layout": lambda a: a.to_sparse(),
    "real floating numbers": lambda a: a + 0j,
    "floating numbers": lambda a: a.long(),
    "a tensor of shape": lambda a: torch.stack([a, a]),
    "tensor": lambda a: a.tolist(),
}
"""What is said of them, and how they are made of a right answer."""
ANSWERING = {
    "energy": lambda f: well_of(f),  # noqa: PLW0108
    "score": lambda f: stk.Score(lambda x: f(-x), (2,)),
    "gradient": lambda f: stk.Energy(quadratic, (2,), grad=lambda x: f(x)),  # noqa: PLW0108
    "prediction": lambda f: stk.Diffusion(lambda x, t: f(torch.sin(x)), (2,), stk.VP(), "noise"),
    "velocity": lambda f: stk.Velocity(lambda x, t: f(torch.sin(x)), (2,)),
    "likelihood": lambda f: stk.posterior(well(2), lambda x: f(-quadratic(x))),
}


def well_of(spoil):
    return stk.Energy(lambda x: spoil(quadratic(x)), (2,))


@pytest.mark.parametrize("told", NO_ANSWERS)
@pytest.mark.parametrize("name", ANSWERING)
def test_what_is_no_answer_is_refused_as_what_it_is(name, told):
    field = ANSWERING[name](NO_ANSWERS[told])
    timed = hasattr(field, "at")
    solver = stk.ProbabilityFlow("euler", steps=1) if timed else stk.ULA(0.1)
    with pytest.raises(stk.InvalidArgument) as raised:
        stk.sample(field, solver, chains=3, **({} if timed else {"steps": 1}))
    # a gradient without values is compared with the energy's first
    assert told in str(raised.value) or (name, told) == ("gradient", "a meta tensor")


# --- most of the rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8])
def test_a_derivative_is_refused_where_most_rows_say_that_it_is_wrong(rows):
    """Not where half of them do, which may be at an edge."""

    def f(x):
        return torch.sin(2 * x).sum(1)

    for wrong in range(rows + 1):
        off = torch.where(torch.arange(rows) < wrong, 1.5, 1.0).double()

        def gradient(x, off=off):
            return 2 * torch.cos(2 * x) * off[: len(x), None]

        def ask(gradient=gradient):
            check_derivative(f, randn(rows, 3), "f", f, "", gradient)

        if 2 * wrong > rows:
            with pytest.raises(stk.InvalidArgument):
                ask()
        else:
            ask()


# --- what does not depend on a part ------------------------------------------------------------------------------

THETA = torch.ones((), dtype=torch.float64, requires_grad=True)
APART = {
    "parameters": lambda x, t: THETA * torch.ones_like(x),
    "numbers": lambda x, t: torch.ones_like(x),
    "another row's place": lambda x, t: THETA * torch.arange(x.numel()).reshape(x.shape).to(x),
    "the time": lambda x, t: THETA * torch.full_like(x, float(t)),
    "nought times x": lambda x, t: 0 * x,
}


@pytest.mark.parametrize("apart", APART)
@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("probes", ["exact", "hutchinson", "hutch++"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)], ids=str)
def test_what_does_not_depend_on_x_does_not_diverge(apart, differentiable, probes, shape):
    x = randn(4, *shape)
    if differentiable:
        x.requires_grad_()
    directions = None if probes == "exact" else randn(5, 4, *shape)
    sketch = randn(1, 4, *shape, seed=1) if probes == "hutch++" else None
    if sketch is not None and apart != "nought times x" and not shape:
        return
    u, divergence = likelihood.divergence(APART[apart], x, 0.3, directions, sketch)
    torch.testing.assert_close(u.detach(), APART[apart](x.detach(), 0.3).detach())
    torch.testing.assert_close(
        divergence.detach(), torch.zeros(1 if probes == "exact" else 5, 4).double()
    )


# --- what is wrapped, however often ------------------------------------------------------------------------------


def of_a_library(x, *more):
    """A function that closes over nothing and uses numpyro by its globals."""
    return numpyro(x)


numpyro = type("handlers", (), {"__module__": "numpyro.handlers"})


class Holder:
    ask = of_a_library


WRAPPED = {
    "itself": of_a_library,
    "a partial": partial(of_a_library, 1),
    "a partial of a partial": partial(partial(of_a_library, 1), k=2),
    "a method": Holder().ask,
    "a partial of a method": partial(Holder().ask, 1),
    "a method of a partial": MethodType(partial(of_a_library, 1), 3),
    "a wrapper": wraps(of_a_library)(lambda *given: given),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_library_of_a_function_is_seen_however_it_is_wrapped(name):
    assert library_of(WRAPPED[name]) == "numpyro"
    assert library_of(partial(partial(math.sin, 1), 2)) == ""


@pytest.mark.parametrize("form", [(), (4,), (4, 1, 1), (4, 6, 2)])
def test_where_trajectories_diverged_is_told_of_reports_a_draw_alone(form):
    """Of each draw one; of others, such as their mean a chain, no draw is."""
    x, status = randn(4, 6, 2), torch.zeros(4, dtype=torch.int64)
    every = (torch.arange(24).reshape(4, 6) % 5 == 0).double()

    def divergent(report):
        stats = {} if report is None else {"diverging": report}
        draws = stk.Draws(x=x, final=x[:, -1], status=status, failed_at=status - 1, stats=stats)
        return draws.divergent

    for report in (None, torch.ones(form)):
        assert divergent(report).shape == (0, 2)
    assert torch.equal(divergent(every), x[every > 0])


@pytest.mark.parametrize("states", [(0.0, 1.0), (-1.0, 0.0, 2.0), "one-hot"])
@pytest.mark.parametrize("shape", [(2,), (1, 3), (2, 2)])
def test_the_uniform_law_of_states_is_a_law(states, shape):
    """All states have one density, and these sum to 1; what is drawn is a state."""
    if states == "one-hot":
        each, sites = torch.eye(shape[-1]), shape[:-1]
    else:
        each, sites = torch.tensor(states), shape
    n = math.prod(sites)
    rows = torch.cartesian_prod(*[torch.arange(len(each))] * n).reshape(-1, n)
    x = each[rows].reshape(-1, *shape)
    if states == "one-hot" and shape[-1] < 2:
        return
    law = plain_base(stk.Discrete(energy_of(shape), states))
    assert law.energy(x).tolist() == [0.0] * len(x)
    assert torch.equal(law.score(x), torch.zeros_like(x))
    torch.testing.assert_close(law.log_prob(x).exp().sum(), torch.tensor(1.0))
    drawn = law.draw(50, stk.Noise(3, 50)).to(x)
    assert bool((drawn[:, None] == x).flatten(2).all(2).any(1).all())


class Wrong(Exception):
    """What a user's function raises."""


def failing(x, *t, k):
    raise Wrong("said so")


class Theirs:
    """A field of a user's class, which notes nothing itself."""

    event_shape = (2,)

    def energy(self, x, k):
        return failing(x, k=k)

    def score(self, x, k):
        return failing(x, k=k)


@pytest.mark.parametrize("answer", ["energy", "score"])
def test_an_error_of_a_users_class_tells_the_conditions_that_are_bound(answer):
    asked = resolve(Theirs(), {answer}, {"k": torch.ones(3, 5)})
    with pytest.raises(Wrong) as found:
        getattr(asked, answer)(torch.zeros(3, 2))
    assert "k of shape (3, 5)" in " ".join(found.value.__notes__)


@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize("answer", ["energy", "score", "velocity", "denoise"])
def test_an_error_tells_the_conditions_that_a_function_was_given(answer, bound):
    """Also those that are bound before it is asked."""
    x, given = torch.zeros(3, 2), {"k": torch.ones(3, 5)}
    if answer == "energy":
        field, at = stk.Energy(failing, (2,)), ()
    elif answer == "score":
        field, at = stk.Score(failing, (2,)), ()
    else:
        field, at = stk.Diffusion(failing, (2,), stk.VP(), "noise"), (0.5,)
    asked = resolve(field, {answer}, given) if bound else field
    with pytest.raises(Wrong) as found:
        getattr(asked, answer)(x, *at, **({} if bound else given))
    assert "k of shape (3, 5)" in " ".join(found.value.__notes__)


def test_copies_are_noted_within_the_context_alone():
    """Of each constant the count of writes to it and the copy; in another context within none of the first."""
    far, made = torch.device("meta"), [torch.ones(n) for n in (1, 2, 3, 4)]
    with devices.copies_noted() as first:
        on(made[0], far)
        with devices.copies_noted() as second:
            on(made[1], far)
        on(made[2], far)
    on(made[3], far)
    assert [len(constant) for constant, _, _ in first] == [1, 3]
    assert [len(constant) for constant, _, _ in second] == [2]
    assert all(copy.device == far and count == constant._version for constant, count, copy in first)
