"""Odd arguments for all that takes any, by their annotations, and what becomes of them as texts and numbers.

`asked(function, usual)` gives arguments: each of a kind's values for all parameters of that kind together, and for each
parameter alone beside the first ones. `outcome` is what a function makes of them: an answer or, as an answer too, an error; of
errors that are not the package's only that there is one, as their kinds and words are of other libraries.
"""

import contextlib
import copy
import dataclasses
import functools
import importlib
import inspect
import io
import math
import re
import types
import warnings
from itertools import islice

import numpy as np
import torch
from torch import distributions as td
from torch import nn

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.fields.protocols import is_field, is_timed, offers
from tests.recorded import randn

MOST = 10
"""How much of what is given one by one is taken."""
FEW = 4


def some(*shape, seed=0):
    """Numbers that each machine has to the bit."""
    return (64 * randn(*shape, seed=seed)).round() / 64


def bad(x):
    x = x.clone()
    for i, value in enumerate((math.nan, math.inf, -math.inf)):
        x.view(-1)[i + 1] = value
    return x


PLAIN = some(4, 3)
TENSORS = [
    PLAIN,
    PLAIN.float(),
    bad(PLAIN),
    PLAIN.new_tensor(0.3),
    some(4, seed=1).abs(),
    some(4, 2, 3, seed=2).abs() + 0.125,
    PLAIN[:0],
    torch.arange(12).reshape(4, 3) - 3,
    PLAIN > 0,
    torch.zeros(4, 3).double(),
    torch.stack([PLAIN, PLAIN], -1)[..., 0],
    PLAIN.clone().requires_grad_(),
    1e200 * PLAIN,
]
ARRAYS = [
    randn(3, 6, 9).numpy(),
    randn(2, 1, 20, seed=1).numpy().cumsum(2),
    randn(2, 20, 30, seed=2).numpy(),
    np.round(randn(2, 20, 16, seed=3).numpy()),
    np.ones((2, 4, 8)),
    bad(randn(2, 18, 12, seed=4)).numpy(),
    randn(2, 17, 4, seed=5).numpy(),
    randn(1, 3, 2, seed=6).numpy(),
    randn(12, seed=7).numpy(),
    randn(5, 8, seed=8).numpy(),
    np.array([True, False, True]),
]


def quadratic(x):
    return x.square().flatten(1).sum(1) / 2 + x.flatten(1)[:, 0].sin()


def fussy(x):
    """A function that refuses some numbers in words of its own."""
    if bool((x > 1).any()):
        raise ValueError("theirs: a number above 1")
    return x.flatten(1).sum(1)


def checked(x):
    """A function that torch's own check refuses outside (0, inf)."""
    return td.Exponential(x.new_tensor(1.0), validate_args=True).log_prob(x).flatten(1).sum(1)


def network(x, t):
    return torch.sin(3 * x) * (1 + torch.as_tensor(t)).reshape(-1, *[1] * (x.ndim - 1))


class Shapeless:
    """A field whose shape is a number."""

    event_shape = 3.5

    def score(self, x):
        return -x

    def __repr__(self):
        return "Shapeless()"


class Plain:
    """What holds three things and says nothing."""

    event_shape = (3,)

    def __init__(self):
        self.one, self.net, self.many = torch.ones(2), nn.Linear(1, 1), {"k": [1, 2.5]}
        with torch.no_grad():
            self.net.weight.fill_(0.5)
            self.net.bias.fill_(-1.0)

    def __repr__(self):
        return "Plain()"


WELL = stk.Energy(quadratic, (3,))
WAVE = stk.Diffusion(network, (3,), stk.VP(), "noise")
LINEAR = stk.LinearGaussian(torch.eye(3)[:2], torch.ones(2), 0.5)
THINGS = [
    WELL,
    WAVE,
    stk.Velocity(network, (3,)),
    stk.Score(lambda x: -x, (3,)),
    stk.Discrete(WELL, (0.0, 1.0)),
    stk.constrained(WELL, td.constraints.positive),
    stk.tempered(WAVE, 2.0),
    stk.from_distribution(td.Independent(td.Gamma(torch.ones(3), 2.0), 1)),
    td.Normal(torch.zeros(3), 2.0),
    td.constraints.positive,
    Plain(),
    Plain,
    LINEAR,
    PLAIN,
    PLAIN.numpy(),
    quadratic,
    None,
    True,
    3,
    -1,
    2.5,
    math.nan,
    "two",
    "",
    "score",
    b"two",
    (2, 3),
    [2, 0.5],
    (3,),
    {"mu": (2,), "k": 1},
    {"one": PLAIN},
    {3},
    object,
    torch.float64,
    "cpu",
    ValueError("of theirs"),
    range(2, 4),
    np.float32(2.5),
    np.int64(3),
    Shapeless,
    Shapeless(),
]
CONDITIONS = [
    {},
    {"label": PLAIN[:, 0]},
    {"y": PLAIN, "k": torch.arange(4)},
    {"one": PLAIN[:1]},
    {"none": PLAIN[:0]},
]
KINDS = {
    "Tensor": TENSORS,
    "Array": ARRAYS,
    "np.ndarray": ARRAYS,
    "Any": THINGS,
    "object": THINGS,
    "int": [2, 0, 1, 3, -1, 8, True],
    "float": [0.5, 0.0, 1.0, -0.3, 2.5, math.inf, math.nan, 1e-9, 1e9],
    "float | Tensor": [
        0.5,
        0.0,
        1.0,
        torch.tensor(0.3).double(),
        torch.linspace(0, 1, 4).double(),
        torch.linspace(0.1, 0.9, 4),
    ],
    "bool": [False, True],
    "str": ["score", "data", "noise", "x", "", "velocity", "a[0]", "Theirs 2"],
    "str | None": ["x", None, "data"],
    "torch.device": [torch.device("cpu")],
    "torch.device | str": ["cpu"],
    "torch.dtype": [torch.float64, torch.float32, torch.float16, torch.int64],
    "torch.dtype | None": [None, torch.float32],
    "GaussianPath": [stk.VP(), stk.VE(), stk.Linear(), stk.EDM(), stk.SubVP(), stk.Cosine()],
    "NoiseSource": [Noise(3, 4, dtype=torch.float64), Noise(3, range(2, 6), dtype=torch.float32)],
    "dict[str, Tensor]": CONDITIONS,
    "Mapping[str, Tensor]": CONDITIONS,
    "Mapping[str, Any]": [{}, {"x": PLAIN, "k": 2}, {"x": "other", "k": 3, "z": None}],
    "Callable[[Tensor], Tensor]": [
        quadratic,
        torch.sin,
        fussy,
        checked,
        lambda x: x.detach(),
        lambda x: x.sum(),
        lambda x: 3.0,
        lambda x: x[:, :1] / 0,
    ],
    "Callable[[], _Answer]": [lambda: PLAIN, lambda: 3 / 0],
    "States": [(0.0, 1.0), "one-hot", (-1.0, 0.0, 2.5)],
    "tuple[float, ...]": [(0.0, 1.0), (-1.0, 0.5, 2.5), ()],
    "list[str]": [["x[0]", "x[1]", "x[2]"], ["a", "b", "c", "d", "e"], []],
    "list[Tensor]": [[PLAIN], [PLAIN[0], PLAIN.float()], []],
    "Sequence[Any]": [THINGS[:1], THINGS[1:2] * 2, [WELL, WAVE], [], [3]],
    "Sequence[object]": [[WELL, WELL], [WAVE, WAVE], [WELL, WAVE], []],
    "Iterable[str]": [("energy",), ("score", "data"), (), ("no such",)],
    "Sequence[int]": [(2, 3), (), (1,), [4], (0,), (2.5,)],
    "Exception": [ValueError("of theirs"), RuntimeError("size of x"), KeyError("k")],
    "Sampler": [
        importlib.import_module("scoretk.diagnostics.verdict").Sampler(text)
        for text in ("", "MALA(step_size=0.1)", "Gibbs()", "HMC(leapfrog_steps=4)")
    ],
    "LinearGaussian": [LINEAR],
    "Mapping[str, Array]": [
        {},
        {"accept": np.full((6, 9), 0.05), "diverging": np.ones((6, 9))},
        {"log_weight": np.linspace(-3, 0, 6), "ancestor": np.arange(6) // 2},
        {"log_weight": np.arange(6.0), "measurement": np.arange(6) % 2, "ancestor": np.arange(6)},
        {"log_weight": np.full(6, -np.inf)},
    ],
}
ALIKE = {
    "Shape": "Sequence[int]",
    "torch.Size": "Sequence[int]",
    "tuple[int, ...]": "Sequence[int]",
    "tuple[int | None, ...]": "Sequence[int]",
    "Conditions": "Mapping[str, Tensor]",
    "Map": "Callable[[Tensor], Tensor]",
    "Callable[..., Any]": "Callable[[Tensor], Tensor]",
    "Callable[..., Tensor]": "Callable[[Tensor], Tensor]",
    "Callable[[Tensor], Any]": "Callable[[Tensor], Tensor]",
    "Callable[[Tensor, float], Tensor]": "Callable[[Tensor], Tensor]",
    "td.Distribution": "Any",
    "Collection[str]": "Iterable[str]",
    "Sequence[float]": "tuple[float, ...]",
}
"""Kinds that are given what another is."""
BAR = re.compile(r" \| (?![^\[]*\])")


def values_of(kind):
    """What is given for an annotation: for a union, what its parts are given."""
    if kind in KINDS:
        return KINDS[kind]
    parts = [ALIKE.get(part, part) for part in BAR.split(ALIKE.get(kind, kind))]
    known = [value for part in parts for value in KINDS.get(part, [])]
    return [*([None] if "None" in parts else []), *(known or THINGS)]


OFTEN = {"argument": ["x"], "name": ["x", "two"], "what": ["score"], "hint": ["", "Do it"]}
"""Values of parameters that many functions have."""


NUMBERS = ("int", "float")


def asked(function, usual, few=True):
    """Arguments: values of all parameters together, and of each beside the first.

    Args:
        function: What takes them.
        usual: Values by the names of parameters, which come first.
        few: Whether little of what is odd is given beside what is usual.
    """
    parameters = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind is not p.VAR_KEYWORD
        and not (p.kind is p.VAR_POSITIONAL and str(p.annotation) == "Any")
    ]
    values = []
    for p in parameters:
        kind = str(p.annotation)
        odd = values_of(kind)
        first = usual.get(p.name) or OFTEN.get(p.name) if kind not in NUMBERS else usual.get(p.name)
        # where fields are made the usual ones are many, and what is odd is refused alike
        given = [*first, *(odd[-FEW:] if few else odd)] if first else odd
        values.append(copy.deepcopy(given))  # some write into what they are given, or remember it
    for k in range(max(map(len, values), default=0)):
        yield parameters, [v[k % len(v)] for v in values]
    for i, of in enumerate(values if len(values) > 1 else ()):
        for value in of[1:MOST]:
            yield parameters, [value if i == j else v[0] for j, v in enumerate(values)]


SET = re.compile(r"frozenset\(\{([^{}]*)\}\)")


def in_order(text):
    """A text with what it shows of sets in order."""
    return SET.sub(lambda found: str(sorted(found[1].split(", "))), text)


def shown(made):
    """The text of an object; empty where it tells where the object lies."""
    text = in_order(repr(made))
    return "" if "at 0x" in text else text


def answers_of(field):
    """What a field on three numbers answers at a few points, and at both ends of time."""
    noise = Noise(5, 4, dtype=torch.float64)
    for name in ("energy", "score", "velocity", "denoise", "log_prob", "draw", "initial"):
        ask = getattr(field, name, None)
        if callable(ask):
            of = (4, noise) if name in ("draw", "initial") else (PLAIN,)
            for t in (0.0, 0.4, 1.0) if is_timed(field) and len(of) < 2 else (None,):
                yield name, t, or_its_error(ask, *of, *([] if t is None else [t]))


def or_its_error(ask, *given, **named):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return told(ask(*given, **named), 2)
    except stk.ScoretkError as error:
        return type(error).__name__, str(error)
    except Exception:  # noqa: BLE001 (of what is called for its own)
        return "an error"


def told(answer, depth=0):
    """What can be kept of an answer: numbers and texts, of others their kind."""
    if isinstance(answer, torch.Tensor) and not answer.is_contiguous():
        return "strided", answer.stride(), answer
    if isinstance(answer, str):
        return in_order(answer)
    if isinstance(answer, torch.Tensor | np.ndarray | np.generic | bool | int | float | None):
        return answer
    if isinstance(answer, types.GeneratorType | map | zip):
        return [told(v, depth) for v in islice(answer, MOST)]
    if isinstance(answer, dict):
        return {str(k): told(v, depth + 1) for k, v in answer.items()}
    if isinstance(answer, set | frozenset):
        return sorted(str(told(v, depth + 1)) for v in answer)
    if isinstance(answer, list | tuple):
        return [type(answer).__name__, *(told(v, depth + 1) for v in answer)]
    if isinstance(answer, BaseException):
        return type(answer).__name__, str(answer)
    if isinstance(answer, type | torch.dtype | torch.device):
        return str(answer)
    if depth < 2 and is_field(answer):
        return type(answer).__name__, sorted(offers(answer)), tuple(answers_of(answer))
    if dataclasses.is_dataclass(answer) and depth < 3:
        parts = {
            f.name: getattr(answer, f.name, None) for f in dataclasses.fields(answer) if f.repr
        }
        return type(answer).__name__, {n: told(v, depth + 1) for n, v in parts.items()}
    return type(answer).__name__


def given(parameters, values):
    positional = [
        v for p, v in zip(parameters, values, strict=True) if p.kind is not p.KEYWORD_ONLY
    ]
    named = {p.name: v for p, v in zip(parameters, values, strict=True) if p.kind is p.KEYWORD_ONLY}
    return positional, named


@contextlib.contextmanager
def checked_laws():
    """With the checks of torch's distributions, which a library that another test imports may have switched off."""
    before = td.Distribution._validate_args
    td.Distribution.set_default_validate_args(True)
    try:
        yield
    finally:
        td.Distribution.set_default_validate_args(before)


def outcome(function, parameters, values):
    positional, named = given(parameters, values)
    out = io.StringIO()
    try:
        with (
            warnings.catch_warnings(record=True) as warned,
            contextlib.redirect_stdout(out),
            checked_laws(),
        ):
            warnings.simplefilter("always")
            answer = told(function(*positional, **named))
        return answer, [str(w.message) for w in warned if w.category is not RuntimeWarning]
    except stk.ScoretkError as error:
        return type(error).__name__, str(error)
    except Exception:  # noqa: BLE001 (of what is called for its own)
        return "an error"


def outcomes(function, questions):
    """What a function makes of each question, and that none of the tensors and arrays that it was given was written into."""
    before, told = {}, []
    for parameters, values in questions:
        for value in values:
            if isinstance(value, torch.Tensor | np.ndarray) and id(value) not in before:
                with torch.no_grad():
                    before[id(value)] = (
                        value,
                        copy.deepcopy(value.detach() if isinstance(value, torch.Tensor) else value),
                    )
        told.append(outcome(function, parameters, values))
    for value, first in before.values():
        now = value.detach() if isinstance(value, torch.Tensor) else value
        np.testing.assert_array_equal(np.asarray(now), np.asarray(first), str(function))
    return told


def public(made):
    """The public methods and values of an object, in the order of their names."""
    for name in dir(type(made)):
        kind = inspect.getattr_static(type(made), name)
        if name.startswith("_"):
            continue
        if isinstance(kind, property | functools.cached_property):
            yield name, None
        elif inspect.isfunction(kind) or isinstance(kind, classmethod | staticmethod):
            yield name, getattr(made, name)
