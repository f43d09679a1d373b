"""Which numbers each setting takes, alone and beside another, are those that were written down (`tests/recorded.py`).

Every public class that is made of settings is among `MADE`, so that each end of each range is on record.
"""

import dataclasses
import inspect
import itertools
import math
import warnings

import pytest

import scoretk as stk
from scoretk import conformance, diagnostics, fields, learn, solvers
from scoretk.solvers import EXAMPLES
from tests.laws.test_settings import SETTINGS
from tests.recorded import recorded

NUMBERS = (
    *(-math.inf, -2, -1, -1e-9, 0, 1e-9, 0.25, 0.5, 0.7, 0.708, 1 - 1e-9, 1, 1.0, 1 + 1e-9, 1.5),
    *(2, 2.0, 3, 4, 5, 8, 9, 1e9, math.inf, math.nan, None, True, "2"),
)
BESIDE = ((0.5, 0.5), (0.5, 0.6), (0.6, 0.5), (2, 2), (2, 3), (3, 2))
"""Two values for two settings that may have to agree."""


MADE = [
    *(solver for solver, _ in SETTINGS),
    *EXAMPLES.values(),
    *(stk.VP(), stk.VE(), stk.EDM(), stk.SubVP(), stk.Interpolant()),
    *(stk.DPS(), stk.DiffPIR(), stk.MMPS(), stk.PiGDM(), stk.Replacement()),
    *(stk.ContrastiveDivergence(stk.MALA(0.1)), stk.Downsample(2), stk.Warmup(100)),
    stk.Ladder((0.0, 0.5, 1.0)),
    stk.Checkpoint("a file"),
    stk.Zarr("a folder"),
    learn.Recipe(5),
    fields.standard_normal((2,)),
]
NOT_MADE = {
    "found or told": {"Fit", "Summary", "TestResult", "Lazy", "Ranks"},
    "of tensors and fields": {
        "Bridge",
        "LinearGaussian",
        "Energy",
        "Score",
        "Diffusion",
        "Constrained",
        "Smoothed",
        "Stretched",
    },
    "in `test_unfit`": {"ModelSpec", "Player"},
}
"""Public classes with numbers that nobody sets, by why."""


def of_numbers(kind):
    """The settings that may be a number."""
    return [
        f.name
        for f in dataclasses.fields(kind)
        if f.init and any(n in str(f.type) for n in ("int", "float")) and not f.name.startswith("_")
    ]


def takes(made, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataclasses.replace(made, **settings)
        except stk.ScoretkError:
            return False
    return True


CASES = {type(made).__name__: made for made in reversed(MADE) if of_numbers(type(made))}


@pytest.mark.parametrize("name", CASES)
def test_a_setting_takes_these_numbers(name):
    """Refused in the package's own words, each of the others."""
    made = CASES[name]
    names = of_numbers(type(made))
    for setting in names:
        taken = " ".join(repr(v) for v in NUMBERS if takes(made, **{setting: v}))
        recorded(f"ranges: {name} {setting}", taken)
    pairs = [
        f"{a} {u} {b} {v}"
        for a, b in itertools.combinations(names, 2)
        for u, v in BESIDE
        if takes(made, **{a: u, b: v})
    ]
    recorded(f"ranges: {name} pairs", " ".join(pairs))


def test_every_class_with_numbers_is_asked_about():
    known = {type(made).__name__ for made in MADE} | {n for some in NOT_MADE.values() for n in some}
    left = {
        name
        for module in (stk, learn, fields, solvers, diagnostics, conformance)
        for name in getattr(module, "__all__", dir(module))
        if inspect.isclass(kind := getattr(module, name))
        and dataclasses.is_dataclass(kind)
        and of_numbers(kind)
    }
    assert left <= known


def test_an_end_that_has_moved_is_found():
    @dataclasses.dataclass(frozen=True)
    class Open:
        size: float = 0.5

        def __post_init__(self):
            if not 0 < self.size < 1:
                raise stk.InvalidArgument("size", self.size, "a share below 1")

    @dataclasses.dataclass(frozen=True)
    class Closed(Open):
        def __post_init__(self):
            if not 0 < self.size <= 1:
                raise stk.InvalidArgument("size", self.size, "a share of at most 1")

    told = [[v for v in NUMBERS[:-3] if takes(kind(), size=v)] for kind in (Open, Closed)]
    assert told[0] != told[1]
