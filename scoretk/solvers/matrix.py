"""Which solver serves which model, by what models provide and what solvers need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scoretk.plugins import ModelSpec
from scoretk.solvers import SOLVERS

__all__ = ["CONTRASTIVE", "Use", "matrix", "matrix_text", "use"]

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


def matrix(specs: Mapping[str, ModelSpec]) -> dict[str, dict[str, Use]]:
    """The whole matrix: `matrix(specs)[solver][model]`, the models named as in `specs`."""
    rows = [*SOLVERS, CONTRASTIVE]
    return {
        solver: {name: use(frozenset(spec.provides), solver) for name, spec in specs.items()}
        for solver in rows
    }


def matrix_text(specs: Mapping[str, ModelSpec]) -> str:
    """The matrix as text: a line a solver, a column a model, and what the signs mean."""
    table = matrix(specs)
    reasons = dict.fromkeys(
        u.reason for row in table.values() for u in row.values() if u.way is None
    )
    signs = {reason: chr(ord("A") + i) for i, reason in enumerate(reasons)}
    width = max(map(len, table))
    labels = [f"{name} ({spec.family})" for name, spec in specs.items()]
    lines = [f"{'':{width}}  {'| ' * i}{label}" for i, label in enumerate(labels)]
    for solver, row in table.items():
        lines.append(
            f"{solver:{width}}  " + " ".join(u.way or signs[u.reason] for u in row.values())
        )
    lines += ["", *(f"{sign}  {meaning}" for sign, meaning in MEANINGS.items())]
    lines += [f"{sign}  not: {reason}" for reason, sign in signs.items()]
    return "\n".join(lines)
