"""Every public name, called with whatever: each call ends in a result or in a `ScoretkError`, never in a raw exception."""

import inspect
import re
import traceback
import warnings
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

import scoretk as stk
from tests.hostile import COUNTS, HOSTILE, PLAUSIBLE, SMALL

CALLABLES = {name: getattr(stk, name) for name in stk.__all__ if callable(getattr(stk, name))}
EXCLUDED = {"train", "Status", "Stream", "ModelSpec"} | {
    n for n, o in CALLABLES.items() if isinstance(o, type) and issubclass(o, Exception)
}
"""A fit takes minutes where its arguments are right (tests/test_fit.py tries wrong ones); enumerations are Python's own."""
RECORDS = {"Draws", "StoredDraws", "Estimate", "Latents", "Finding", "Summary", "Broken", "Cost"}
"""What the package hands out, and nobody makes."""
NAMES = sorted(set(CALLABLES) - EXCLUDED - RECORDS)
CHEAP = {
    "chains": 4,
    "steps": 2,
    "warmup": 0,
    "levels": 2,
    "pilot": 16,
    "samples": 4,
    "max_steps": 20,
    "draws": 1,
    "progress": False,
    "moves": 1,
}
"""What keeps a call short where the fuzz does not choose the argument."""


def signature(name):
    target = CALLABLES[name]
    taken = [p for p in inspect.signature(target).parameters.values() if not p.name.startswith("_")]
    return [p for p in taken if p.kind not in (p.VAR_KEYWORD,)]


PILOTED = {"sample", "log_partition", "smoothed", "log_prob", "encode", "bits_per_dim"}
"""What takes minutes by its defaults."""


def plausible(p):
    return PLAUSIBLE.get(p.name, SMALL if p.name in COUNTS else (0.5, 1))


def called(name, values):
    """The call with these arguments, `{parameter: value}`, the needed ones plausible and the others cheap or left out."""
    positional, keywords = [], {}
    for p in signature(name):
        if p.name in values:
            value = values[p.name]
        elif p.default is p.empty:
            value = plausible(p)[0]
        elif p.name in CHEAP and name in PILOTED:
            value = CHEAP[p.name]
        else:
            continue
        if p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY):
            positional.append(value)
        else:
            keywords[p.name] = value
    return name, positional, keywords


@st.composite
def calls(draw):
    """A public name, with positional and keyword arguments for it."""
    name = draw(st.sampled_from(NAMES))
    taken = signature(name)
    odd = draw(st.integers(0, 2))  # how many are hostile; the others are plausible or left out
    chosen = set(draw(st.permutations(range(len(taken))))[:odd])
    values = {}
    for i, p in enumerate(taken):
        if i in chosen:
            values[p.name] = draw(st.sampled_from(HOSTILE))
        elif p.default is p.empty:
            values[p.name] = draw(st.sampled_from(plausible(p)))
    return called(name, values)


PACKAGE = Path(stk.__file__).parent
THEIRS = re.compile(r"\b(fn|net|operator|log_likelihood|evaluate)\(")


def of_the_caller(error):
    """Whether an error is that of a function that the caller passed, which is his to see as it is."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [i for i, frame in enumerate(frames) if PACKAGE in Path(frame.filename).parents]
    return bool(ours) and bool(THEIRS.search(frames[ours[-1]].line or ""))


def outcome(name, positional, keywords):
    """The result, or the error that is one of the package's own or of the caller's functions. Anything else is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return CALLABLES[name](*positional, **keywords)
        except stk.ScoretkError as error:
            told = error
        except Exception as error:
            if not of_the_caller(error):
                raise
            return error
    assert len(str(told)) < 2000, f"a message of {len(str(told))} characters"
    return told


def holds(call):
    name, positional, keywords = call
    made = outcome(name, positional, keywords)
    if hasattr(made, "event_shape") and not isinstance(
        made, Exception
    ):  # a field: it can be sampled, or says why not
        for solver in (None, stk.ULA(0.1), stk.ProbabilityFlow("euler", steps=2)):
            steps = (
                {} if solver is None or isinstance(solver, stk.ProbabilityFlow) else {"steps": 2}
            )
            if solver is not None:
                outcome(
                    "sample",
                    [],
                    {"field": made, "solver": solver, "chains": 4, "progress": False, **steps},
                )
    if callable(getattr(made, "step", None)):  # a solver: it samples something, or says why not
        for field in (PLAUSIBLE["field"][0], PLAUSIBLE["field"][2]):
            grid = callable(getattr(made, "milestones", None))
            run = {} if grid else {"steps": 2, "warmup": 2}
            outcome(
                "sample",
                [],
                {"field": field, "solver": made, "chains": 4, "progress": False, **run},
            )


SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(hypothesis.HealthCheck),
}


@pytest.mark.thorough
@hypothesis.settings(max_examples=400, **SETTINGS)
@hypothesis.given(calls())
def test_whatever_is_passed_ends_in_a_result_or_a_named_error(call):
    holds(call)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@hypothesis.settings(max_examples=50_000, **SETTINGS)
@hypothesis.given(calls())
def test_at_length(call):
    holds(call)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_each_argument_in_turn_is_whatever(name):
    """All that is hostile for every argument, where chance may leave out a pair."""
    for p in signature(name):
        for odd in HOSTILE:
            holds(called(name, {p.name: odd}))
