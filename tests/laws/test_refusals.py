"""What an argument cannot be is refused by the argument's name, of every option, setting, statistic and loss, and so is what is
out of place where it stands: a result or an error of another's would be taken for an answer."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

import scoretk as stk
from scoretk import diagnostics, grids, learn
from tests.laws import test_options as options
from tests.laws import test_settings as settings
from tests.recorded import randn, recorded


class Odd:
    """What nothing takes."""

    def __repr__(self):
        return "Odd()"


ODD = (Odd(), math.nan, -1, "no such", True)
TAKEN = {("classifier_guided", "weight"): (-1,), ("sample", "warmup"): ()}
"""Of these values, those that some options take."""
TRUE = {
    "check",
    "integer",
    "adjusted",
    "denoise",
    "force",
    "saturating",
    "exact_kl",
    "variance_reduced",
}
NAMED_ELSEWHERE = {"predicts": "prediction"}
PATHLESS = {"ProbabilityFlow", "ReverseSDE", "TwistedSMC", "DAPS"}
"""Solvers that learn of their grid's name when they have a path."""


def plausible(kind, name, odd):
    known = TAKEN.get((kind, name), ())
    return (
        (odd is True and name in TRUE)
        or any(odd is value for value in known)
        or (kind in PATHLESS and name == "grid" and odd == "no such")
    )


def refused(ask, name):
    """The kind and the text of the error that names the argument."""
    with pytest.raises(stk.ScoretkError) as found:
        ask()
    error, text = found.value, str(found.value)
    if isinstance(error, stk.InvalidArgument):
        starts = (name, NAMED_ELSEWHERE.get(name, name), "cond")
        assert text.startswith(starts), text
    return type(error).__name__, text


def all_refused(key, kind, ask, name):
    """Every odd value is refused, in the words that were written."""
    told = [refused(lambda v=v: ask(v), name) for v in ODD if not plausible(kind, name, v)]
    recorded(f"refusals: {key}", told)


OF_OPTIONS = [
    pytest.param(
        kind.__name__,
        partial(answer, **(usual or [{}])[0]),
        name,
        f"{kind.__name__} {name} {sorted((usual or [{}])[0])}",
        id=f"{kind.__name__}-{name}-{i}",
    )
    for i, (kind, answer, others, *usual) in enumerate(options.OPTIONS)
    for name in others
]


@pytest.mark.parametrize(("kind", "answer", "name", "key"), OF_OPTIONS)
def test_an_option_is_refused_by_its_name(kind, answer, name, key):
    all_refused(key, kind, lambda odd: answer(**{name: odd}), name)


@pytest.mark.parametrize(
    ("solver", "some"),
    settings.SETTINGS,
    ids=[f"{i}-{type(s).__name__}" for i, (s, _) in enumerate(settings.SETTINGS)],
)
def test_a_setting_is_refused_by_its_name(solver, some):
    for name in some:
        key = f"{name} of {solver!r}"
        all_refused(key, type(solver).__name__, lambda v, n=name: replace(solver, **{n: v}), name)


SAMPLE, SHIFTED = randn(40, 2), randn(40, 2, seed=1)
CHAINS, RANKED = randn(4, 30, 2), randn(40, 9, 2, seed=3)
WAVE = stk.Diffusion(lambda x, t: torch.sin(3 * x), (2,), stk.VP(), "noise")
DRAWN = stk.sample(WAVE, stk.ProbabilityFlow("euler", steps=3), chains=3, keep="all")
FUNCTIONS = [
    (DRAWN.plot, {"kind": "trace", "names": "x[0]", "most": 1}),
    (DRAWN.summary, {"most": 2}),
    (DRAWN.save, {"path": "x.safetensors"}),
    (stk.plot.samples, {"draws": SAMPLE, "most": 3}),
    (stk.plot.path, {"path": stk.VP()}),
    (stk.plot.field, {"field": WAVE, "bounds": (-1.0, 1.0, -1.0, 1.0), "t": 0.5}),
    (diagnostics.ess, {"x": CHAINS, "method": "bulk"}),
    (diagnostics.mcse, {"x": CHAINS, "of": "mean"}),
    (diagnostics.rhat, {"x": CHAINS}),
    (diagnostics.nested_rhat, {"x": CHAINS, "superchains": 2}),
    (diagnostics.split_rhat, {"draws": CHAINS}),
    (diagnostics.bfmi, {"energy": CHAINS[..., 0]}),
    (diagnostics.copies, {"x": SAMPLE, "train": SHIFTED, "held_out": SHIFTED, "quantile": 0.1}),
    (diagnostics.mmd, {"x": SAMPLE, "y": SHIFTED, "bandwidth": 0.5}),
    (diagnostics.sliced_wasserstein, {"x": SAMPLE, "y": SHIFTED, "directions": 4, "seed": 0}),
    (
        diagnostics.mmd_test,
        {"x": SAMPLE, "y": SHIFTED, "bandwidth": 0.5, "level": 0.1, "permutations": 20, "seed": 0},
    ),
    (
        diagnostics.sliced_wasserstein_test,
        {"x": SAMPLE, "y": SHIFTED, "directions": 4, "level": 0.1, "permutations": 20, "seed": 0},
    ),
    (diagnostics.classifier_test, {"x": SAMPLE, "y": SHIFTED, "level": 0.1, "seed": 0}),
    (
        diagnostics.kernel_stein_discrepancy,
        {"x": SAMPLE, "score": -SAMPLE, "kernel": "imq", "level": 0.1, "bootstraps": 20, "seed": 0},
    ),
    (diagnostics.sbc_ranks, {"truth": SAMPLE, "draws": RANKED, "seed": 0}),
    (
        diagnostics.sbc_test,
        {"truth": SAMPLE, "draws": RANKED, "level": 0.1, "permutations": 20, "seed": 0},
    ),
    (diagnostics.tarp_ranks, {"truth": SAMPLE, "draws": RANKED, "references": SHIFTED, "seed": 0}),
    (
        diagnostics.tarp_test,
        {
            "truth": SAMPLE,
            "draws": RANKED,
            "references": SHIFTED,
            "level": 0.1,
            "permutations": 20,
            "seed": 0,
        },
    ),
    (diagnostics.rank_band, {"n": 20, "draws": 9, "level": 0.1, "simulations": 50, "seed": 0}),
    (grids.uniform, {"steps": 4}),
    *((make, {"path": stk.VP(), "steps": 4}) for make in (grids.cosine, grids.edm, grids.log_snr)),
    (grids.karras, {"path": stk.VP(), "steps": 4, "rho": 7.0}),
    (grids.logistic, {"path": stk.VP(), "steps": 4, "exponent": 0.8}),
    (grids.table, {"path": stk.VP(), "given": (9.0, 0.5, 0.1), "steps": 2}),
    (grids.adapt, {"field": WAVE, "steps": 4, "order": 3, "chains": 4, "fine": 32, "seed": 0}),
    (
        grids.search,
        {"field": WAVE, "steps": 4, "method": "euler", "chains": 4, "tries": 1, "seed": 0},
    ),
    (
        learn.Recipe,
        {
            "steps": 4,
            "batch": 2,
            "learning_rate": 0.1,
            "betas": (0.9, 0.9),
            "weight_decay": 0.1,
            "clip": 1.0,
            "decay": 0.9,
            "held_out": 0.1,
            "repeats": 2,
            "evaluations": 2,
            "schedule": "cosine",
            "patience": 2,
            "parts": 2,
        },
    ),
]


@pytest.mark.parametrize(
    ("function", "usual"), FUNCTIONS, ids=[f"{f.__module__}-{f.__name__}" for f, _ in FUNCTIONS]
)
def test_an_argument_of_a_function_is_refused_by_its_name(function, usual):
    for name in usual:
        key = f"{function.__name__} {name}"
        all_refused(key, "", lambda v, n=name: function(**usual | {n: v}), name)


def test_a_function_that_takes_what_it_cannot_use_is_found():
    def taking(x, level=0.1):
        return float(x) if isinstance(x, float) else None

    with pytest.raises(pytest.fail.Exception):
        test_an_argument_of_a_function_is_refused_by_its_name(taking, {"x": 1.0})
