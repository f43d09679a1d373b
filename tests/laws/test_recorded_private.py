"""Private functions answer to odd arguments as they did (`tests/recorded.py`), those that are on record.

Most wrong lines are in functions that the public ones call, with few of the arguments that they may meet. One that is new, or
has another name, is held to nothing until it is recorded anew; so a record here is no promise to anybody: it says that a
function whose text has not changed on purpose has not changed what it does.
"""

import importlib
import inspect
import pkgutil

import numpy as np
import pytest
import torch
from torch import distributions as td

import scoretk as stk
from scoretk.diagnostics.judging import judge
from scoretk.ode.tableaus import knots
from tests import recorded as records
from tests.laws import test_recorded_functions as public_ones
from tests.laws.test_recorded_parts import FACTOR, GRIDS, KINDS_OF, coded, of_models, usual_of
from tests.odd import ARRAYS, PLAIN, asked, bad, outcomes, quadratic, some

ROOMS = {
    "core": public_ones.APART["core"]
    | {"arrayfiles", "containment", "dependencies", "files", "locks", "ranks", "once"},
    "fields": {"pretrained"},
    "diagnostics": {"plot"},
    "plugins": {"containment", "discovery", "models", "catalog"},
    "ode": set(),
    "solvers": set(),
    "learn": {"resume", "processes"},
    "inference": {"storing"},
    "conformance": set(),
    "models": {"digits"},
    "adapters": {"stan", "pymc", "numpyro", "jax", "jaxprs"},
    "run": {
        *(
            "archive",
            "batches",
            "capture",
            "checkpoint",
            "group",
            "heartbeat",
            "messages",
            "parts",
            "progress",
            "ranks",
            "replay",
        ),
        *("resume", "store", "stored", "streaming", "tape", "teams", "writer", "drive"),
    },
}
"""Rooms, and the modules of each whose functions open files, ask other processes or say what this machine has."""
APART = {
    "fields.layout._in_order",  # slow
    "inference.partition._in_free_space",
    "adapters.flows.law._fails",
    "adapters.flows.supports._unconditional",
    "adapters.law_supports._apart",  # texts that hold addresses, abridged
    "adapters.law_supports._bounds",
    "conformance.on_data._is_far",
    "core.anatomy._attributes",
    "core.anatomy._of_class",
    "core.columns._like_rows",
    "core.devices._copied_in_trace",
    "core.identity._in_order",
    "core.identity._mark",
    "diagnostics.discrepancies._median_distance",
    "fields.alike._parts",
    "fields.wrapped._rules",
}
"""Functions whose answers hang on what was asked before, or that draw."""

LAWS = public_ones.LAWS
CHAINS = [
    judge(a.transpose(1, 2, 0), [f"x[{i}]" for i in range(a.shape[0])], None) for a in ARRAYS[:7]
]
KNOTS = [k for grid in GRIDS for k in knots(stk.VP(), grid, False)] + knots(None, GRIDS[1], True)
TIMES = [0.4, 0.0, 1.0, torch.tensor([0.1, 0.5, 0.9, 0.0]).double()]
BOUNDS = [0.0, -1.5, some(3).abs(), torch.tensor([0.25, 1.0, 2.0])]
OF_KIND = KINDS_OF | {
    "Time": TIMES,
    "Bound": BOUNDS,
    "Chains": CHAINS,
    "list[Chains]": [CHAINS[:1], CHAINS[1:3]],
    "Knot": KNOTS,
    "td.Distribution": LAWS,
    "Names": [None, frozenset(), frozenset({"y"})],
    "Iterable[Names]": [[frozenset({"y"}), frozenset()], [None, frozenset({"y"})], []],
    "Sequence[Tensor]": [[PLAIN, -PLAIN], [PLAIN], [PLAIN.float(), PLAIN.float() + 1]],
    "VAE": [coded(), coded((0.0, 1.0))],
    "Sequence[Knot]": [KNOTS[:3], KNOTS[1:2]],
    "RuntimeError": [
        RuntimeError("size of tensor a"),
        RuntimeError("expected scalar type Float but found Double"),
    ],
    "ValueError": [ValueError("of theirs")],
    "TypeError": [
        TypeError("quadratic() got an unexpected keyword argument 'y'"),
        TypeError("theirs"),
    ],
    "BaseException": [ValueError("of theirs"), KeyError("y")],
    "BaseException | None": [None, ValueError("of theirs")],
    "Action": [lambda v: 2 * v],
}
"""What is given for annotations."""
MATRICES = [FACTOR, FACTOR @ FACTOR.T, torch.stack([FACTOR, 2 * FACTOR])]
WEIGHTS = [some(4).abs(), torch.ones(4).double(), bad(some(4))]
OF_NAME = {
    **dict.fromkeys(("d", "law", "distribution", "component"), LAWS),
    **dict.fromkeys(("matrix", "factor"), MATRICES),
    **dict.fromkeys(("weights", "shares"), WEIGHTS),
    "log_w": [some(5, 4), torch.zeros(5, 4).double(), torch.full((5, 4), -torch.inf).double()],
    "alpha": [torch.tensor([0.9, 0.5, 0.0, 1.0]).double()],
    "sigma": [torch.tensor([0.1, 0.5, 1.0, 0.0]).double()],
    "knots": [torch.tensor([0.0, 0.5, 2.0, 2.5]).double(), some(5).abs().cumsum(0)],
    "at": [torch.tensor([0.1, 0.7]).double(), 0.5],
    "fn": [quadratic, torch.sin, len],
    "solver": [*stk.solvers.EXAMPLES.values()][::5],
    "field": [*public_ones.FIELDS],
    "model": [*public_ones.FIELDS],
    "path": [stk.VP(), stk.VE(), stk.Linear()],
    "given": [{}, {"y": PLAIN}],
    "mean": [some(3, 6).numpy(), some(3, 6, 2, seed=1).numpy()],
    "var": [some(3, 6, seed=2).square().numpy(), some(3, 6, 2, seed=3).square().numpy()],
    "draws": [np.full((3, 6), 9.0), np.arange(1.0, 19).reshape(3, 6)],
    "chunk": [100],
    "permutations": [20],
}
"""What is given for names, where nothing is for the kind."""


def functions(room):
    """The private functions of a room's modules, by module and name."""
    package = importlib.import_module(f"scoretk.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"scoretk.{room}."):
        short = module.name.removeprefix("scoretk.")
        if short.split(".")[1] in ROOMS[room]:
            continue
        try:
            part = importlib.import_module(module.name)
        except ImportError:  # of a library that is not here
            continue
        for name, made in sorted(vars(part).items()):
            own = inspect.isfunction(made) and made.__module__ == module.name
            if own and name.startswith("_") and f"{short}.{name}" not in APART:
                yield f"{short}.{name}", made


def given(function):
    usual = {}
    for p in inspect.signature(function).parameters.values():
        found = OF_KIND.get(str(p.annotation)) or OF_NAME.get(p.name)
        if found:
            usual[p.name] = found
    return usual


def objects():
    """Objects of public classes, by kind and number."""
    for kind, make in public_ones.OBJECTS.items():
        if kind == "fields in time":  # whose answers the public methods give
            continue
        for i, made in enumerate(make()):
            yield f"{kind} {i}", made, public_ones.OF_METHODS
    for i, made in enumerate(of_models()):
        yield f"models {i}", made, usual_of(made)


def private_methods(made):
    for name in dir(type(made)):
        kind = inspect.getattr_static(type(made), name)
        of_package = str(getattr(kind, "__module__", "")).startswith("scoretk.")
        if (
            name.startswith("_")
            and not name.startswith("__")
            and inspect.isfunction(kind)
            and of_package
        ):
            yield name, getattr(made, name)


ALIKE = [
    ((1, 2), (1,)),
    ([1], [1, 2]),
    ([], [0]),
    ({"a": 1}, {"a": 1, "b": 2}),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    (PLAIN, PLAIN.clone()),
    (PLAIN, PLAIN[:3]),
    (PLAIN, PLAIN.float()),
    (PLAIN, PLAIN.numpy()),
    (td.constraints.interval(0.0, 1.0), td.constraints.interval(0.0, 2.0)),
    (td.constraints.positive, td.constraints.greater_than(0.0)),
    (stk.VP(), stk.VP()),
    ("a", "ab"),
    (1, True),
    (None, 0),
    (0.0, -0.0),
    (torch.nan, torch.nan),
]
"""Things that are nearly the same, for functions of two."""


def questions(function, values):
    """As `asked`, and of a function of two things alike what is nearly the same, either way round."""
    yield from asked(function, values)
    parameters = [*inspect.signature(function).parameters.values()]
    kinds = [str(p.annotation) for p in parameters]
    if len(kinds) == 2 and kinds[0] == kinds[1] in ("Any", "object"):
        for a, b in ALIKE:
            yield parameters, [a, b]
            yield parameters, [b, a]


def without_torchs(found):
    """An outcome without what torch itself warns of once in a process."""
    if not is_answer(found):
        return found
    answer, warned = found
    return answer, [text for text in warned if "Triggered internally" not in text]


def is_answer(found):
    return found != "an error" and not (
        isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], str)
    )


@pytest.mark.parametrize("room", ROOMS)
def test_functions(room):
    known, held = records.known(), 0
    for name, function in functions(room):
        key = f"private {name}"
        if not records.RECORDS and key not in known:
            continue
        with torch.random.fork_rng(enabled=records.RECORDS):  # those that are not kept may draw
            found = outcomes(function, questions(function, given(function)))
        told = [without_torchs(v) for v in found]
        if records.RECORDS and sum(map(is_answer, told)) < 2:
            continue
        held += 1
        records.recorded(key, told)
    assert held


def test_methods():
    known, held = records.known(), 0
    for which, made, usual in objects():
        for name, method in private_methods(made):
            key = f"private method {name} of {which}"
            if (
                not records.RECORDS and key not in known
            ) or f"{type(made).__name__}.{name}" in APART:
                continue
            values = usual | {n: v for n, v in given(method).items() if n not in usual}
            with torch.random.fork_rng(enabled=records.RECORDS):
                told = [without_torchs(v) for v in outcomes(method, asked(method, values))]
            if records.RECORDS and sum(map(is_answer, told)) < 2:
                continue
            held += 1
            records.recorded(key, told)
    assert held
