"""Values that a public function may be handed: plausible ones by the name of the argument, and hostile ones for any of them."""

import datetime
import decimal
import fractions
import io
import math
import pathlib

import numpy as np
import torch

import scoretk as stk

FIELD = stk.Energy(lambda x: x.square().reshape(len(x), -1).sum(1) / 2, (2,))
SCORE = stk.Score(lambda x: -x, (2,))
PATH = stk.VP()
TIMED = stk.Diffusion(lambda x, t: x, (2,), PATH, "noise")
FLOW = stk.Velocity(lambda x, t: -x, (2,))
SPINS = stk.Discrete(stk.Energy(lambda x: x.sum(1), (2,)), (0.0, 1.0))
LIKELIHOOD = stk.LinearGaussian(torch.ones(1, 2), torch.zeros(1), 1.0)

FIELDS = (FIELD, SCORE, TIMED, FLOW, SPINS)
SOLVERS = (
    stk.ULA(0.1),
    stk.MALA(0.1),
    stk.HMC(0.1, metric="none"),
    stk.AnnealedLangevin(2, 1, 0.1),
    stk.ProbabilityFlow(steps=2),
    stk.ReverseSDE(steps=2),
    stk.AIS(2),
    stk.SMC(2, island=2),
    stk.GibbsWithGradients(),
    stk.DiscreteLangevin(0.1),
)

SMALL = (1, 2, 3, 4)
POINTS = (torch.zeros(4, 2), torch.ones(4, 2, dtype=torch.float64))

PLAUSIBLE = {
    "field": FIELDS,
    "fields": FIELDS,
    "prior": FIELDS,
    "base": (*FIELDS, None),
    "start": FIELDS,
    "end": FIELDS,
    "unconditional": FIELDS,
    "model": FIELDS,
    "solver": SOLVERS,
    "kernel": SOLVERS,
    "name": ("ring-mixture", "ising", "nobody"),
    "x": POINTS,
    "init": POINTS,
    "data": POINTS,
    "batch": (*POINTS, *SMALL),
    "y": (torch.zeros(1),),
    "a": POINTS,
    "b": POINTS,
    "path": (PATH, stk.VE(), stk.Linear()),
    "event_shape": ((2,), (), (1, 2)),
    "predicts": ("noise", "data", "v"),
    "fn": (FIELD.fn, SCORE.fn),
    "net": (TIMED.net, FLOW.net),
    "operator": (torch.ones(1, 2), lambda x: x[:, :1]),
    "likelihood": (LIKELIHOOD, lambda x: -x.square().sum(1)),
    "log_prob": (lambda x, t: x.sum(1),),
    "seed": SMALL,
    "cond": (None, {}, {"y": torch.zeros(4)}),
    "constraint": (torch.distributions.constraints.positive,),
    "distribution": (torch.distributions.Normal(0.0, 1.0),),
    "weights": ((0.5, 0.5), (0.0, 0.5, 1.0)),
    "alphas_cumprod": (torch.linspace(0.99, 0.01, 10),),
    "states": ((0.0, 1.0), "one-hot"),
    "mask": (torch.ones(2),),
    "matrix": (torch.ones(1, 2),),
    "method": ("euler", "dopri5", "ais", "smc"),
    "sigmas": ((1.0, 0.1),),
    "grid": (None,),
    "step_size": (0.1, None),
    "temperature": (1.0, 2.0),
    "weight": (0.5, 1.0),
    "std": (1.0,),
    "dtype": (torch.float32,),
    "keep": ("all", "last", "moments"),
    "null": (None, {"y": 0}),
    "interval": (None, (0.1, 1.0)),
    "ladder": (None,),
}
COUNTS = {
    "steps",
    "warmup",
    "thin",
    "chains",
    "levels",
    "leapfrogs",
    "moves",
    "replicas",
    "draws",
    "probes",
    "samples",
    "n",
    "dim",
    "island",
    "pilot",
    "max_depth",
    "max_steps",
    "iterations",
    "factor",
    "corrector",
    "kernel_steps",
    "steps_per_level",
    "size",
}


class Odd:
    """An object of nobody's."""


class Liar:
    """Says that it has a shape."""

    event_shape = "two"


def _hostile():
    """Things that fit nowhere, or almost."""
    sparse = torch.eye(2).to_sparse()
    return (
        None,
        True,
        False,
        0,
        -1,
        3,
        2.5,
        -0.0,
        math.nan,
        math.inf,
        -math.inf,
        1e300,
        1e-300,
        10**400,
        -(10**400),
        1j,
        "",
        "a",
        "a\0b",
        "n" * 300,
        "\x1b[31m",
        b"x",
        bytearray(b"x"),
        (),
        [],
        {},
        set(),
        frozenset({1}),
        {"a": 1},
        {1: "a"},
        [1, 2],
        [[1], [2, 3]],
        ["a"],
        [None],
        (2,),
        (0,),
        (-1,),
        (1.5,),
        (True,),
        ("a",),
        (10**400,),
        range(3),
        range(0),
        range(3, 0, -1),
        slice(2),
        ...,
        NotImplemented,
        Odd(),
        Odd,
        Liar(),
        Liar,
        int,
        torch,
        len,
        lambda: None,
        lambda x: x,
        lambda *a, **k: "text",
        lambda *a, **k: None,
        lambda *a, **k: torch.zeros(7),
        iter([1]),
        io.BytesIO(b"x"),
        pathlib.Path("/nowhere/at/all"),
        datetime.date(2020, 1, 1),
        decimal.Decimal("0.1"),
        fractions.Fraction(1, 3),
        np.int64(3),
        np.float32(0.5),
        np.bool_(True),
        np.zeros(2),
        np.zeros((4, 2)),
        np.array("a"),
        np.array([1, None]),
        np.zeros(0),
        np.array(1j),
        torch.tensor(1),
        torch.tensor(0.5),
        torch.tensor(math.nan),
        torch.tensor(True),
        torch.zeros(0),
        torch.zeros(2),
        torch.zeros(4, 2),
        torch.zeros(4, 0),
        torch.zeros(0, 2),
        torch.zeros(4, 3),
        torch.zeros(4, 2, 1),
        torch.full((4, 2), math.nan),
        torch.full((4, 2), math.inf),
        torch.zeros(4, 2, dtype=torch.int64),
        torch.zeros(4, 2, dtype=torch.bool),
        torch.zeros(4, 2, dtype=torch.complex64),
        torch.zeros(4, 2, dtype=torch.float16),
        torch.zeros(4, 2, dtype=torch.bfloat16),
        torch.zeros(4, 2, device="meta"),
        torch.zeros(4, 2, requires_grad=True),
        sparse,
        torch.zeros(2, 4).T,
        torch.zeros(1, 2).expand(4, 2),
        torch.nn.Linear(2, 2),
        torch.nn.Parameter(torch.zeros(4, 2)),
        torch.float16,
        torch.device("cpu"),
        "cuda:99",
        "meta",
        torch.Generator(),
        torch.Size([2]),
        *FIELDS,
        *SOLVERS[:3],
        PATH,
        stk.ULA,
        stk.Energy,
        stk.Status.OK,
        stk.InvalidArgument("a", 1, "b"),
    )


with torch.random.fork_rng():  # a network's weights are drawn
    HOSTILE = _hostile()
