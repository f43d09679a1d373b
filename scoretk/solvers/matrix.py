"""Which solver serves which model, by what models provide and what solvers need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scoretk.plugins import ModelSpec
from scoretk.solvers import SOLVERS

__all__ = ["CONTRASTIVE", "Use", "matrix", "matrix_text", "solver_names", "use"]

CONTRASTIVE = "contrastive divergence"

DIRECT, NESTED, AT, SMOOTHED = "+", "k", "t", "s"
MEANINGS = {
    DIRECT: "as it is",
    NESTED: "with kernel=GibbsWithGradients()",
    AT: "one time of it, model.at(t)",
    SMOOTHED: "given a Gaussian path, scoretk.smoothed(model)",
}


@dataclass(frozen=True)
class Use:
    """How a solver serves a model.

    Args:
        way: A key of `MEANINGS`, or None where the solver cannot serve the model.
        reason: Why not, in terms of the mathematics.
    """

    way: str | None
    reason: str = ""


def use(provides: frozenset[str], solver: str) -> Use:
    """How a solver, or contrastive divergence, serves a model.

    Args:
        provides: What the model provides, as `ModelSpec.provides`.
        solver: A name in `SOLVERS`, or `CONTRASTIVE`.
    """
    timed = bool(provides & {"velocity", "denoise"})
    has = provides | ({"score"} if "energy" in provides else frozenset())
    discrete = "states" in has
    if solver == CONTRASTIVE:
        return Use(DIRECT) if "energy" in has else Use(None, "no energy to learn")
    kind: Any = SOLVERS[solver]
    needs = kind().needs if isinstance(kind.needs, property) else kind.needs
    if discrete and "kernel" in kind.__dataclass_fields__:
        return Use(NESTED)
    if discrete and not needs & {"states", "gibbs"}:
        return Use(None, "discrete states, which it would leave")
    if timed and kind.timed is False:
        return Use(AT) if needs <= has & {"score"} else Use(None, _lack(needs - (has & {"score"})))
    if not timed and kind.timed is True:
        return Use(SMOOTHED) if has & {"energy", "score"} else Use(None, "no score to smooth")
    if needs <= has:
        return Use(DIRECT)
    return Use(None, _lack(needs - has))


def _lack(missing: frozenset[str]) -> str:
    return "no " + " and no ".join(
        "discrete states" if name == "states" else name for name in sorted(missing)
    )


def solver_names() -> list[str]:
    """The rows of the matrix: all solvers, and contrastive divergence."""
    return [*SOLVERS, CONTRASTIVE]


def matrix(
    specs: Mapping[str, ModelSpec], solvers: Iterable[str] | None = None
) -> dict[str, dict[str, Use]]:
    """The whole matrix: `matrix(specs)[solver][model]`, the models named as in `specs`.

    Args:
        specs: What the models say of themselves.
        solvers: Of `solver_names`; None for all.
    """
    return {
        solver: {name: use(frozenset(spec.provides), solver) for name, spec in specs.items()}
        for solver in (solver_names() if solvers is None else solvers)
    }


def matrix_text(specs: Mapping[str, ModelSpec], solvers: Iterable[str] | None = None) -> str:
    """The matrix as text: a line a model, a column a solver, and what the signs mean.

    Of one model or one solver each line says in words what there is.

    Args:
        specs: As in `matrix`.
        solvers: As in `matrix`.
    """
    table = matrix(specs, solvers)
    if len(specs) == 1 or len(table) == 1:
        words = {
            solver if len(specs) == 1 else model: one
            for solver, row in table.items()
            for model, one in row.items()
        }
        width = max(map(len, words))
        return "\n".join(f"{name:{width}}  {_in_words(one)}" for name, one in words.items())
    reasons = dict.fromkeys(
        u.reason for row in table.values() for u in row.values() if u.way is None
    )
    signs = {reason: chr(ord("A") + i) for i, reason in enumerate(reasons)}
    width = max(map(len, specs))
    text = [f"{'':{width}}  {'| ' * i}{solver}" for i, solver in enumerate(table)]
    for model, spec in specs.items():
        column = (row[model] for row in table.values())
        said = " ".join(u.way or signs[u.reason] for u in column)
        text.append(f"{model:{width}}  {said}  {spec.family}")
    text += ["", *(f"{sign}  {meaning}" for sign, meaning in MEANINGS.items())]
    text += [f"{sign}  not: {reason}" for reason, sign in signs.items()]
    return "\n".join(text)


def _in_words(one: Use) -> str:
    return f"{one.way}  {MEANINGS[one.way]}" if one.way else f"-  not: {one.reason}"
