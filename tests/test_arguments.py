"""Arguments that no function can serve are refused by name: numbers beyond every range, tensors without numbers, odd ladders."""

import math
import re
from typing import NamedTuple

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.core.arguments import (
    conditions,
    count,
    finite,
    float_dtype,
    integer,
    numbers,
    positive,
    tensor_like,
)
from scoretk.core.noise import Noise, derive
from scoretk.errors import InvalidArgument
from scoretk.fields.base import NormalBase
from scoretk.inference.partition import Normalised
from scoretk.learn import Recipe
from scoretk.learn.contrastive import ReplayBuffer
from scoretk.models.targets.mixture import GaussianMixture
from scoretk.ode.rowwise import integrate_rows

HUGE = 10**400
FIELD = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
TIMED = stk.Diffusion(lambda x, t: x, (2,), stk.VP(), "data")


def quick(**options):
    return stk.sample(FIELD, stk.ULA(0.1), **({"chains": 2, "steps": 2} | options))


@pytest.mark.parametrize(
    "value",
    [
        HUGE,
        -HUGE,
        pytest.param(10**5000, id="5000 digits"),
        math.nan,
        math.inf,
        "1",
        None,
        1j,
        True,
        [1],
    ],
)
@pytest.mark.parametrize("check", [count, finite, positive])
def test_a_number_is_finite_and_of_a_size_that_tensors_count(check, value):
    with pytest.raises(stk.InvalidArgument, match=r"^n: expected"):
        check("n", value)


@pytest.mark.parametrize(
    "make",
    [
        *(
            lambda n=n: quick(**{n: HUGE})
            for n in ("chains", "steps", "warmup", "thin", "batch", "seed")
        ),
        lambda: stk.ULA(HUGE),
        lambda: stk.HMC(leapfrogs=HUGE),
        lambda: stk.VP(HUGE, HUGE),
        lambda: stk.tempered(FIELD, HUGE),
        lambda: stk.ProbabilityFlow(steps=HUGE),
        lambda: stk.grids.logistic(PATH, 4, exponent=HUGE),
        lambda: stk.AnnealedLangevin(levels=(1e300,)),
        lambda: stk.AnnealedLangevin(levels=(1.0, 1e-200)),
        lambda: stk.Checkpoint("c", every=HUGE),
        lambda: stk.ReplayBuffer(HUGE),
        lambda: stk.ReplayBuffer(8, refresh=HUGE),
        lambda: quick(init=HUGE),
        lambda: quick(init=[[HUGE, 1]]),
    ],
)
def test_an_integer_beyond_every_range_is_an_invalid_argument(make):
    with pytest.raises(stk.InvalidArgument):
        make()


NOT_DENSE = {  # made where they are asked for: the last imports torch's compiler
    "sparse": lambda: torch.eye(2).to_sparse(),
    "meta": lambda: torch.zeros(2, 2, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2)] * 2, layout=torch.jagged),
    "nested in strides": lambda: torch.nested.nested_tensor([torch.ones(2)] * 2),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested", "ignore:torch.quantize")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", NOT_DENSE)
def test_a_tensor_holds_its_numbers_one_by_one(kind):
    value = NOT_DENSE[kind]()
    for make in (
        lambda: quick(init=value),
        lambda: quick(cond={"a": value}),
        lambda: tensor_like("x", value, (2, 2)),
    ):
        with pytest.raises(stk.InvalidArgument):
            make()
    with pytest.raises(stk.InvalidArgument, match="a dense tensor with values"):
        numbers("x", value)


@pytest.mark.parametrize(
    "make",
    [
        *(
            lambda v=v: stk.Ladder(v)
            for v in (True, None, 3, "01", (0, 1, 1), (0, math.nan, 1), (0.1, 1), (), (0, HUGE))
        ),
        *(
            lambda v=v: stk.Ladder((0, 1), step_sizes=v)
            for v in (1.0, (0.0,), (1.0, 2.0), ("a",), torch.ones(1))
        ),
        *(lambda v=v: stk.Ladder((0, 1), moves=v) for v in (1, (True,), (0,), (1, 2), (1.5,))),
        *(
            lambda v=v: stk.Ladder((0, 1), scales=v)
            for v in (1.0, torch.ones(2, 2), torch.zeros(1, 2), NOT_DENSE["meta"]())
        ),
        lambda: stk.Ladder.plain(0),
        lambda: stk.Ladder.plain(True),
        lambda: stk.Ladder.plain(HUGE),
    ],
)
def test_a_ladder_rises_and_has_one_of_all_a_level(make):
    with pytest.raises(stk.InvalidArgument):
        make()


def test_a_sound_ladder_is_taken():
    made = stk.Ladder([0, 0.5, 1], step_sizes=(1, 2), scales=torch.ones(2, 3), moves=[1, 2])
    assert made.weights == (0.0, 0.5, 1.0)
    assert made.step_sizes == (1.0, 2.0)
    assert made.levels == len(stk.Ladder.plain(2).weights) - 1 == 2


PATH = stk.VP()
TIMED = stk.Diffusion(lambda x, t: x, (2,), PATH, "noise")


@pytest.mark.parametrize(
    "make",
    {
        "fn": lambda c: stk.Energy(c, (2,)),
        "score": lambda c: stk.Score(c, (2,)),
        "net": lambda c: stk.Diffusion(c, (2,), PATH, "noise"),
        "velocity": lambda c: stk.Velocity(c, (2,)),
        "timesteps": lambda c: stk.from_timesteps(c, torch.linspace(0.99, 0.01, 5), (2,)),
        "sigmas": lambda c: stk.from_sigmas(c, (2,)),
        "likelihood": lambda c: stk.posterior(FIELD, c),
        "operator": lambda c: stk.LinearGaussian(c, torch.zeros(2), 0.1),
        "adjoint": lambda c: stk.LinearGaussian(torch.eye(2), torch.zeros(2), 0.1, adjoint=c),
        "classifier": lambda c: stk.classifier_guided(TIMED, c, 1.0),
    }.values(),
)
@pytest.mark.parametrize("kind", [int, torch.nn.Linear, stk.Energy])
def test_a_class_is_no_function_of_x(make, kind):
    """A module's class in place of the module: told at once, not by what its constructor raises."""
    with pytest.raises(stk.InvalidArgument, match="callable"):
        make(kind)


class Misshapen:
    """A field but for its shape."""

    def __init__(self, shape):
        self.event_shape = shape

    def energy(self, x):
        return x.square().sum(1)


@pytest.mark.parametrize("shape", ["two", 2, None, (2.0,), (-1,), ("a", "b"), {2: 3}])
def test_what_has_no_shape_of_events_is_no_field(shape):
    wrong, likelihood = Misshapen(shape), stk.LinearGaussian(torch.ones(1, 2), torch.zeros(1), 1.0)
    for make in (
        lambda: stk.sample(wrong, stk.ULA(0.1), steps=2),
        lambda: stk.posterior(wrong, likelihood),
        lambda: stk.posterior(FIELD, wrong),
        lambda: stk.product(FIELD, wrong),
        lambda: stk.tempered(wrong, 2.0),
        lambda: stk.bridge(wrong, FIELD, 0.5),
        lambda: stk.smoothed(wrong, PATH),
        lambda: stk.constrained(wrong, torch.distributions.constraints.positive),
        lambda: stk.Discrete(wrong, (0.0, 1.0)),
        lambda: stk.log_prob(wrong, torch.zeros(1, 2)),
        lambda: stk.log_partition(wrong),
    ):
        with pytest.raises(stk.InvalidArgument):
            make()


class Foreign:
    """A third-party field that names what it predicts."""

    event_shape, path = (2,), PATH

    def __init__(self, predicts):
        self.predicts = predicts

    def at(self, t):
        return self

    def predict(self, x, t):
        return x


def test_an_unknown_prediction_is_none_of_the_known_ones():
    run = {"init": torch.ones(2, 2)}
    known = stk.sample(Foreign("velocity"), stk.ProbabilityFlow("euler", steps=4), **run).final
    assert known.isfinite().all()
    with pytest.raises(stk.UnknownName, match="drift"):
        stk.sample(Foreign("drift"), stk.ProbabilityFlow("euler", steps=4), **run)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 0.0, -1.0])
def test_settings_of_grids_and_bases_are_positive_numbers(wrong):
    for make in (
        lambda: stk.grids.logistic(PATH, 4, exponent=wrong),
        lambda: stk.grids.karras(PATH, 4, rho=wrong),
        lambda: NormalBase((2,), wrong),
        lambda: stk.Velocity(lambda x, t: x, (2,), torch.full((3, 2), math.nan)),
        lambda: stk.grids.table(PATH, ["a", "b"]),
        lambda: stk.grids.table(PATH, "abc"),
    ):
        with pytest.raises(stk.InvalidArgument):
            make()


@pytest.mark.parametrize("value", [np.zeros(2), torch.zeros(2), [0, 0], {}, ()], ids=repr)
def test_what_is_no_name_is_not_compared_with_names(value):
    """An array compared with a string is an array, which is neither true nor false."""
    rows, run = torch.zeros(2, 2), {"chains": 2, "steps": 2}
    for make in (
        lambda: stk.sample(FIELD, value),
        lambda: stk.sample(FIELD, stk.ULA(0.1), grad=value, **run),
        lambda: stk.sample(FIELD, stk.ULA(0.1), keep=value, **run),
        lambda: stk.log_prob(TIMED, rows, method=value),
        lambda: stk.log_prob(TIMED, rows, trace=value),
        lambda: stk.log_prob(TIMED, rows, trace="hutchinson", probe_law=value),
        lambda: stk.log_partition(FIELD, method=value),
        lambda: stk.smoothed(FIELD, PATH, estimator=value),
        lambda: stk.Diffusion(TIMED.net, (2,), PATH, value),
        lambda: stk.from_timesteps(TIMED.net, torch.linspace(0.99, 0.01, 5), (2,), value),
        lambda: stk.from_sigmas(TIMED.net, (2,), predicts=value),
        lambda: stk.from_reversed_time(TIMED.net, (2,), PATH, value),
        lambda: stk.ProbabilityFlow(value),
        lambda: stk.ReverseSDE(value),
        lambda: stk.HMC(metric=value),
    ):
        with pytest.raises(stk.ScoretkError):
            make()


@pytest.mark.parametrize("value", [(HUGE, 1.0), [HUGE], HUGE, ((HUGE,),), ("a",), (None, 1.0)])
def test_what_is_no_list_of_numbers_is_named(value):
    for make in (
        lambda: stk.AnnealedLangevin(levels=value),
        lambda: stk.ParallelTempering(temperatures=value),
        lambda: stk.grids.table(PATH, value),
        lambda: stk.sample(TIMED, stk.ProbabilityFlow("euler", grid=value), chains=2),
        lambda: stk.from_timesteps(TIMED.net, value, (2,)),
        lambda: stk.LinearGaussian(torch.eye(2), value, 1.0),
        lambda: stk.guided(TIMED, 2.0, null={"y": 0}, interval=value),
        lambda: stk.Discrete(FIELD, value),
        lambda: stk.bits_per_dim(TIMED, torch.zeros(2, 2), interval=value),
        lambda: stk.Velocity(TIMED.net, (2,), value),
        lambda: GaussianMixture(value, value, value),
        lambda: integrate_rows(TIMED.net, torch.zeros(2, 2), 0.0, 1.0, at=value),
    ):
        with pytest.raises(stk.InvalidArgument):
            make()


@pytest.mark.parametrize(
    ("make", "form", "has"),
    [
        (lambda: stk.Energy(lambda: 0.0, (2,)), "fn(x, **cond)", 0),
        (lambda: stk.Velocity(lambda x, *, t: x, (2,)), "net(x, t, **cond)", 1),
        (lambda: stk.Velocity(torch.nn.Identity(), (2,)), "net(x, t, **cond)", 1),
        (lambda: stk.classifier_guided(TIMED, lambda x: x.sum(1)), "log_prob(x, t)", 1),
    ],
)
def test_a_function_takes_what_it_will_be_given(make, form, has):
    with pytest.raises(stk.InvalidArgument, match=f"{re.escape(form)}.*{has} positional"):
        make()


@pytest.mark.parametrize(
    "net", [lambda x, t: -x, lambda *given: -given[0], lambda x, t, y=None: -x, torch.mul]
)
def test_a_function_may_take_more_or_not_tell(net):
    stk.Velocity(net, (2,))


class Turned(torch.nn.Module):
    def forward(self, t, x):
        return -x * t.reshape(-1, 1)


TAKERS_OF_TIME = [
    lambda net: stk.Velocity(net, (2,)),
    lambda net: stk.Diffusion(net, (2,)),
    lambda net: stk.from_sigmas(net, (2,)),
    lambda net: stk.from_timesteps(net, [0.9, 0.5, 0.1], (2,)),
    lambda net: stk.from_reversed_time(net, (2,)),
    lambda net: stk.classifier_guided(TIMED, net),
]


@pytest.mark.parametrize(
    ("net", "named"),
    [
        (Turned(), "t, x"),
        (lambda t, x: x, "t, x"),
        (lambda sigma, noisy: noisy, "sigma, noisy"),
        (lambda timesteps, sample, y=None: sample, "timesteps, sample"),
    ],
)
@pytest.mark.parametrize("make", TAKERS_OF_TIME)
def test_a_network_of_time_and_x_is_told_to_be_turned(make, net, named):
    """Other packages' velocities are v(t, x): where shapes broadcast they would be sampled to another law."""
    with pytest.raises(stk.InvalidArgument, match=rf"{named}\), the other way round: lambda x, "):
        make(net)


@pytest.mark.parametrize(
    "net", [lambda x, t: x, lambda a, b: a, lambda t, sigma: t, lambda x, k: x]
)
@pytest.mark.parametrize("make", TAKERS_OF_TIME)
def test_other_names_of_arguments_are_taken(make, net):
    make(net)


class Answer(NamedTuple):
    sample: torch.Tensor


@pytest.mark.parametrize(
    ("answer", "way"),
    [
        (Answer, r"net\(x, t, \*\*cond\)\.sample$"),
        (lambda x: (x,), r"net\(x, t, \*\*cond\)\[0\]$"),
        (lambda x: "x", "shaped like x$"),
    ],
)
@pytest.mark.parametrize("make", TAKERS_OF_TIME[:5])
def test_an_answer_that_holds_a_tensor_is_told(make, answer, way):
    with pytest.raises(stk.InvalidArgument, match=way):
        stk.sample(make(lambda x, t: answer(x)), chains=2)


def test_tables_and_grids_say_what_would_fit():
    betas = torch.linspace(1e-4, 0.02, 1000)
    with pytest.raises(stk.InvalidArgument, match=r"of betas, \(1 - betas\)\.cumprod\(0\)"):
        stk.Tabulated(betas)
    table = stk.Tabulated((1 - betas).cumprod(0))
    assert repr(table) == "Tabulated(alphas_cumprod=0.9999 ... 4.036e-05, of 1000 timesteps)"
    with pytest.raises(stk.InvalidArgument, match=r"scoretk\.grids\.table\(path, levels\)"):
        stk.ProbabilityFlow("heun", grid=torch.linspace(80.0, 0.0, 5))


@pytest.mark.parametrize("make", [stk.ProbabilityFlow, stk.ReverseSDE, stk.DAPS])
def test_a_grid_is_refused_where_the_solver_is_made(make):
    with pytest.raises(stk.UnknownName, match="did you mean 'karras'"):
        make(grid="karas")
    assert make(grid="karras").grid == "karras"
    assert make(grid=[0.0, 0.5, 1.0]).grid == (0.0, 0.5, 1.0)


def test_fields_in_a_list_are_told_to_be_given_each_by_itself():
    with pytest.raises(stk.InvalidArgument, match=r"Each by itself: product\(\*fields\)"):
        stk.product([FIELD, FIELD])


META, SPARSE = torch.empty(4, 2, device="meta"), torch.eye(2).to_sparse()


@pytest.mark.parametrize("odd", [META, SPARSE], ids=["meta", "sparse"])
@pytest.mark.parametrize(
    "make",
    [
        lambda odd: stk.AnnealedLangevin(levels=odd),
        lambda odd: stk.ProbabilityFlow(grid=odd),
        lambda odd: stk.Velocity(lambda x, t: x, (2,), base=odd),
        lambda odd: stk.guided(TIMED, 2.0, null={"y": odd}),
        lambda odd: stk.log_prob(TIMED, torch.zeros(4, 2), rows=odd),
    ],
)
def test_numbers_are_dense_tensors_with_values(make, odd):
    with pytest.raises(stk.InvalidArgument):
        make(odd)


def test_what_no_square_or_list_of_names_or_device_can_be():
    with pytest.raises(stk.InvalidArgument, match="finite square"):
        stk.ReverseSDE(eta=1e300)
    for odd in (np.array(3.0), torch.tensor(1), [[]], 5):
        with pytest.raises(stk.InvalidArgument, match="a name, or names"):
            stk.classifier_guided(TIMED, lambda x, t: x.sum(1), measured=odd)
    for odd in ("cuda:99", range(0), torch.nn.Identity(), "meta"):
        with pytest.raises(stk.InvalidArgument, match=r"^device"):
            stk.to_device(torch.nn.Identity(), odd)
    with pytest.raises(stk.InvalidArgument, match=r"^rows"):
        stk.log_prob(TIMED, torch.zeros(2, 2), rows=torch.tensor(0.5))


def test_a_methods_name_is_no_solvers():
    for name in ("dopri5", "heun"):
        with pytest.raises(stk.UnknownName, match=rf"ProbabilityFlow\('{name}'\)"):
            stk.sample(TIMED, name)
    with pytest.raises(stk.UnknownName, match="did you mean 'nuts'"):
        stk.sample(FIELD, "NUTS")


def interval_of(ends):
    return stk.bits_per_dim(Normalised(FIELD, 0.0), torch.zeros(1, 2), interval=ends)


FLOW = stk.Velocity(lambda x, t: x, (2,))
WIDE = [torch.float32, torch.float64]
NARROW = [
    torch.float16,
    torch.bfloat16,
    torch.float8_e5m2,
    torch.int64,
    torch.complex64,
    torch.bool,
]
ENDS = {
    "interval of pixels": (interval_of, [(0.0, 1.0), (-1.0, -0.5)], [(1.0, 1.0), (1.0, 0.0)]),
    "box": (lambda v: stk.ULA(0.1, box=v), [(0.0, 1.0)], [(1.0, 1.0), (1.0, 0.0)]),
    "interval of levels": (
        lambda v: stk.guided(TIMED, 2.0, null={"y": 0}, interval=v),
        [(0.0, 1.0)],
        [(1.0, 1.0), (1.0, 0.5), (-0.1, 1.0)],
    ),
    "jitter": (lambda v: stk.HMC(0.1, jitter=v), [0.0, 0.999], [1.0, -1e-9]),
    "jitter of trajectories": (
        lambda v: stk.AdjustedMCLMC(0.1, jitter=v),
        [0.0, 0.999],
        [1.0, -1e-9],
    ),
    "spread of step sizes": (
        lambda v: stk.AdjustedMCLMC(0.1, spread=v),
        [1.0, 30.0],
        [0.999, float("inf")],
    ),
    "accept": (lambda v: stk.ChEES(accept=v), [1e-3, 0.999], [0.0, 1.0]),
    "accept of a step": (lambda v: stk.MALA(accept=v), [1e-3, 0.999], [0.0, 1.0]),
    "accept of trajectories": (lambda v: stk.AdjustedMCLMC(accept=v), [1e-3, 0.999], [0.0, 1.0]),
    "threshold": (lambda v: stk.SMC(threshold=v), [0.0, 1.0], [-1e-9, 1 + 1e-9]),
    "hottest": (lambda v: stk.ParallelTempering(hottest=v), [1.001], [1.0, 0.5]),
    "temperatures": (
        lambda v: stk.ParallelTempering(temperatures=v),
        [(1.0, 1.5)],
        [(1.0, 1.0), (1.5, 1.0), (1.0,)],
    ),
    "levels": (
        lambda v: stk.AnnealedLangevin(levels=v),
        [(1.0, 0.5), (1.0,)],
        [(1.0, 1.0), (1.0, 0.0)],
    ),
    "eta": (lambda v: stk.ReverseSDE("ddim", eta=v), [0.0, 1.0], [-1e-9, 1 + 1e-9]),
    "snr": (lambda v: stk.ReverseSDE("euler", snr=v), [0.5**0.5, 1e-6], [0.0, 0.708]),
    "betas": (lambda v: stk.VP(*v), [(0.1, 0.1), (0.1, 2.0)], [(0.0, 1.0), (1.0, 0.9)]),
    "sigmas": (lambda v: stk.VE(*v), [(0.1, 0.2)], [(0.1, 0.1), (0.0, 1.0), (1.0, 0.9)]),
    "bulge": (stk.Interpolant, [0.0, 3.0], [-1e-9]),
    "bridge": (lambda v: stk.bridge(FIELD, FIELD, v), [0.0, 1.0], [-1e-9, 1 + 1e-9]),
    "held out": (lambda v: Recipe(5, held_out=v), [0.0, 0.99], [1.0, -1e-9]),
    "decay": (lambda v: Recipe(5, decay=v), [0.0, 0.99], [1.0, -1e-9]),
    "refresh": (lambda v: ReplayBuffer(5, v), [0.0, 1.0], [-1e-9, 1 + 1e-9]),
    "level": (
        lambda v: stk.diagnostics.mmd_test(ROWS, ROWS + 1, level=v, permutations=40),
        [0.05, 0.999],
        [0.0, 1.0],
    ),
    "points of an interpolation": (lambda v: stk.interpolate(ROWS, ROWS + 1, v), [2, 3], [1, 0]),
    "seed": (lambda v: Noise(v, 1), [0, 2**64 - 1], [-1, 2**64]),
    "seed of a run": (
        lambda v: stk.sample(FIELD, stk.ULA(0.1), chains=1, steps=1, seed=v),
        [0, 2**64 - 1],
        [-1, 2**64],
    ),
    "chains": (lambda v: Noise(0, range(v, v + 1)), [0, 2**32 - 1], [-1, 2**32]),
    "index of a seed": (lambda v: derive(0, v), [0, 2**64 - 1], [-1, 2**64]),
    "step": (lambda v: Noise(0, 1).normal(v, 0, ()), [0, 2**32 - 1], [-1, 2**32]),
    "id of a row": (
        lambda v: stk.log_prob(FLOW, ROWS[:1], rows=v, method="euler", steps=1),
        [0, 2**32 - 1],
        [-1, 2**32],
    ),
    "step of numpy's": (
        lambda v: Noise(0, 1).normal(np.int64(v), 0, ()),
        [0, 2**32 - 1],
        [-1, 2**32],
    ),
    "step in a tensor": (
        lambda v: Noise(0, 1).normal(torch.tensor(v), 0, ()),
        [0, 2**32 - 1],
        [-1],
    ),
    "stream": (lambda v: Noise(0, 1).normal(0, v, ()), [0, 2**24 - 1], [-1, 2**24]),
    "dtype": (lambda v: float_dtype("dtype", v), WIDE, NARROW),
    "dtype of noise": (lambda v: Noise(0, 1, dtype=v), WIDE, NARROW),
    "dtype of values": (lambda v: Noise(0, 1).uniform(0, 0, (), v), WIDE, NARROW),
    "dtype of a run": (
        lambda v: stk.sample(FIELD, stk.ULA(0.1), chains=1, steps=1, dtype=v),
        WIDE,
        NARROW,
    ),
}
ROWS = torch.arange(8.0).reshape(4, 2) + 1


@pytest.mark.parametrize("name", ENDS)
def test_a_range_has_the_ends_that_it_says_and_no_others(name):
    make, inside, outside = ENDS[name]
    for value in inside:
        make(value)
    for value in outside:
        with pytest.raises(stk.InvalidArgument):
            make(value)


def test_a_bound_of_integers_is_shown_as_it_is():
    for below, shown in ((30, "30)"), (5, "5)"), (2**32, "2**32)"), (2**64, "2**64)")):
        with pytest.raises(InvalidArgument, match=re.escape(f"an integer in [0, {shown}")):
            integer("n", -1, below=below)


@pytest.mark.parametrize(
    ("shape", "sizes"), [((1, 3), "8, 3"), ((3,), "8, 3"), ((), "8"), ((1, 2, 4), "8, 2, 4")]
)
def test_one_condition_for_all_chains_is_told_to_be_expanded(shape, sizes):
    value = torch.zeros(shape)
    with pytest.raises(InvalidArgument, match=re.escape(f"value.expand({sizes})")):
        conditions({"y": value}, 8)
    told = value.expand(*map(int, sizes.split(", ")))
    assert torch.equal(conditions({"y": told}, 8)["y"], told)
    with pytest.raises(InvalidArgument) as refused:
        conditions({"y": torch.zeros(7, 3)}, 8)
    assert "expand" not in str(refused.value)


def test_a_condition_that_is_no_row_a_chain_is_told_what_it_may_have_been():
    for given, said in (
        (3, r"torch\.full\(\(8,\), 3\)"),
        ([1.0, 2.0], r"torch\.as_tensor"),
        (torch.zeros(5), r"if it is one condition of 5 numbers: value\.expand\(8, 5\)"),
        ("a label", "got 'a label'$"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            conditions({"label": given}, 8)


def test_one_of_several_rows_is_told_to_be_taken():
    for rows in (1, 4):
        with pytest.raises(InvalidArgument, match=r"shape \(3,\), .*: x\[0\]"):
            tensor_like("x", torch.zeros(rows, 3), (3,))
    with pytest.raises(InvalidArgument, match=r"shape \(3,\), got Tensor of shape \(2, 4\)[^:]*$"):
        tensor_like("x", torch.zeros(2, 4), (3,))


@pytest.mark.parametrize("name", [1, None, ("y",), b"y"])
def test_conditions_have_texts_for_names(name):
    with pytest.raises(InvalidArgument, match="a mapping of names to tensors"):
        conditions({"x": torch.zeros(3), name: torch.zeros(3)}, 3)
