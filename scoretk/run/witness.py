"""What a field answers at a few points, kept in checkpoints and compared when a run is resumed.

Ranks that share a run compare it when they begin.

It adds to the identity of a run (`scoretk.core.identity`) what no walk over a field can see, such
as numbers within a C library. Equal fields give equal answers to the bit on one machine, and to
rounding elsewhere, so that answers are compared to the root of their dtype's precision, relative to
the largest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoretk.core.rows import finite_rows
from scoretk.fields.protocols import offers
from scoretk.fields.resolve import Bound, StaticField, of_rows

__all__ = ["ROWS", "contradiction", "witness"]

ROWS = 4
TIMES = (0.3, 0.7)
"""Times at which a timed field is evaluated, away from the ends, where it may have no value."""

ASKED = ("energy", "score", "denoise", "velocity")


def witness(bound: Bound, needs: frozenset[str], x: Tensor, most: int = ROWS) -> dict[str, Tensor]:
    """Some rows of x and what the field answers there, as tensors by name.

    Args:
        bound: The field as a solver receives it, with condition rows for the rows of x.
        needs: The methods that this solver needs.
        x: `(chains, *event_shape)`.
        most: The most rows.
    """
    rows = finite_rows(x).nonzero().flatten()[:most]
    return {"rows": rows, "x": x[rows].clone(), **_answers(bound, needs, x[rows].clone(), rows)}


def contradiction(
    bound: Bound, needs: frozenset[str], said: dict[str, Tensor], where: str = "the saved state"
) -> str | None:
    """In what the field does not answer as in `said`, which `witness` made; None where it does.

    Args:
        bound: As in `witness`.
        needs: As in `witness`.
        said: What it answered.
        where: What the points are called in the message.
    """
    if not said:
        return None
    answers = _answers(bound, needs, said["x"], said["rows"])
    if {*said} - {*answers} != {"rows", "x"}:
        return (
            f"what it was asked: {', '.join(sorted(said))} there, {', '.join(sorted(answers))} here"
        )
    for name, value in answers.items():
        before = said[name]
        if before.dtype != value.dtype:
            return f"{name} at {where}: {before.dtype} there, {value.dtype} here"
        limit = torch.finfo(value.dtype).eps ** 0.5 * float(
            before.nan_to_num(0.0, 0.0, 0.0).abs().max() if len(before) else 0
        )
        if before.shape != value.shape or not torch.allclose(
            before, value, rtol=0.0, atol=limit, equal_nan=True
        ):
            return f"{name} at {where}: {_few(before)} there, {_few(value)} here"
    return None


def _answers(bound: Bound, needs: frozenset[str], x: Tensor, rows: Tensor) -> dict[str, Tensor]:
    bound = of_rows(bound, rows)
    asked = [name for name in ASKED if name in needs] or [
        name for name in ASKED if name in offers(bound.native)
    ][:1]
    if not len(x):
        return {}
    if isinstance(bound, StaticField):
        return {name: getattr(bound, name)(x).detach() for name in asked}
    return {name: torch.cat([getattr(bound, name)(x, t).detach() for t in TIMES]) for name in asked}


def _few(value: Tensor) -> list[float]:
    return [float(f"{v:.6g}") for v in value.flatten()[:2].tolist()]
