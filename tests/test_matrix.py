"""The matrix of models and solvers tells the truth: what it says works, what it says does not is refused."""

import json
import re
from dataclasses import replace
from functools import cache, partial

import pytest
import torch

import scoretk as stk
from scoretk.cli import main
from scoretk.solvers import EXAMPLES, SOLVERS, is_grid
from scoretk.solvers.matrix import CONTRASTIVE, matrix, matrix_text, use
from tests.marks import slow_but

MODELS = [
    "gaussian",
    "funnel",
    "ising",
    "rbm",
    "semicircle",
    "digits-flow",
    "digits-diffusion",
    "eight-schools",
    "digits-made",
    "digits-fvsbn",
    "digits-vae",
    "digits-realnvp",
    "digits-ffjord",
    "digits-gan",
    "digits-rbm",
    "digits-jem",
    "digits-ncsnv2",
]
SAME = {"digits-diffusion": "digits-flow", "digits-ncsnv2": "digits-flow", "digits-rbm": "rbm"}
"""Models that offer what another one does."""
OF_EACH_KIND = [model for model in MODELS if model not in SAME]
SMALL = {
    "ula": {"step_size": 1e-4},
    "annealed-langevin": {"step_size": 1e-4, "steps_per_level": 2},
    "underdamped": {"step_size": 1e-2},
    "mclmc": {"step_size": 1e-2},
    "ais": {"levels": 3},
    "smc": {"levels": 3, "island": 2},
    "nuts": {"max_depth": 3},
    "reverse-sde": {"steps": 4},
    "probability-flow": {"steps": 4},
}
"""What differs from the examples: fewer steps, and small ones for unadjusted kernels, whom those would throw out of an image."""


def solver(name, kernel=None):
    return replace(
        EXAMPLES[name], **SMALL.get(name, {}), **({"kernel": kernel} if kernel is not None else {})
    )


@cache
def table():
    return matrix({name: stk.describe(name) for name in MODELS})


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("model", slow_but(MODELS, *OF_EACH_KIND))
def test_what_it_says_works_and_what_not_is_refused(model, name):
    said, field = table()[name][model], stk.load(model)
    if (model, name) == ("ising", "block-gibbs"):
        pytest.skip("the spec says what holds at every size, and at even ones more is there")
    chains = getattr(EXAMPLES[name], "island", 4)  # a whole island, of solvers that have them
    run = partial(stk.sample, chains=chains, **({} if is_grid(solver(name)) else {"steps": 2}))
    if said.way is None:
        with pytest.raises(stk.MissingCapability):
            run(field, solver(name))
        return
    ways = {
        "+": lambda: field,
        "t": lambda: field.at(0.9),
        "s": lambda: stk.smoothed(field, samples=8),
        "k": lambda: field,
    }
    made = solver(name, stk.GibbsWithGradients() if said.way == "k" else None)
    if "mclmc" in name and tuple(field.event_shape) == (1,):
        pytest.skip("two dimensions at least")
    draws = run(ways[said.way](), made)
    assert draws.final.shape == (chains, *field.event_shape)
    assert draws.final.isfinite().all()
    assert not model.startswith("digits") or not draws.failures


def test_what_is_left_to_the_slow_run_offers_what_another_model_does():
    for model, other in SAME.items():
        assert stk.describe(model).provides == stk.describe(other).provides


def test_no_cell_is_empty_without_a_reason():
    for row in table().values():
        for cell in row.values():
            assert bool(cell.way) != bool(cell.reason)


def test_contrastive_divergence_needs_an_energy():
    assert use(frozenset({"energy"}), CONTRASTIVE).way
    assert not use(frozenset({"score"}), CONTRASTIVE).way
    with pytest.raises(stk.MissingCapability):
        stk.ContrastiveDivergence(stk.ULA(0.1), steps=1)(
            stk.Score(lambda x: -x, (2,)), torch.zeros(3, 2)
        )


def test_the_text_shows_in_each_place_what_the_matrix_says():
    """The sign of a way, or the letter under which the reason stands below."""
    specs = {name: stk.describe(name) for name in ("gaussian", "ising", "digits-diffusion")}
    names = ["mala", "probability-flow", "block-gibbs", "ula", CONTRASTIVE]
    text, said = matrix_text(specs, names), matrix(specs, names)
    reasons = dict(re.findall(r"^([A-Z])  not: (.+)$", text, re.MULTILINE))
    assert len(set(reasons.values())) == len(reasons) > 2
    for model, spec in specs.items():
        (line,) = re.findall(rf"^{model} +(.+?)  {re.escape(spec.family)}$", text, re.MULTILINE)
        for solver_name, shown in zip(names, line.split(), strict=True):
            one = said[solver_name][model]
            assert shown == one.way if one.way else reasons[shown] == one.reason
    assert {one.way for row in said.values() for one in row.values()} > {None, "+"}


@pytest.mark.thorough
def test_command(capsys):
    assert main(["list", "--matrix"]) == 0
    out = capsys.readouterr().out
    assert "probability-flow" in out
    assert re.search(r"^ising .* energy-based$", out, re.MULTILINE)
    assert "not: no energy" in out
    assert main(["list", "--matrix", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mala"]["gaussian"] == {"way": "+", "reason": ""}


@pytest.mark.parametrize("name", [n for n in SOLVERS if solver(n).timed is True])
def test_an_energy_or_a_score_is_all_that_smoothing_takes(name):
    energy = stk.Energy(lambda x: (x**2).sum(1), (2,))
    score = stk.Score(lambda x: -x, (2,))
    for kind, field, estimator in (("energy", energy, None), ("score", score, "langevin")):
        assert use(frozenset({kind}), name).way == "s"
        options = {} if estimator is None else {"estimator": estimator}
        smoothed = stk.smoothed(field, samples=4, **options)
        assert smoothed.denoise(torch.zeros(3, 2), 0.5).shape == (3, 2)
    assert use(frozenset({"gibbs", "states"}), name).way is None
