"""Whether a field answers row by row, found out at the start of a run.

Every row of x is a chain of its own, and a field `f` is one of rows:

    f([a, b, c])_i = f([a', b, c'])_i = f([a, b])_i    for the row i that stays in its place.

A sum over the wrong axis has the right shape where there are as many chains as coordinates; a norm
of the whole batch, a batch normalisation that learns, a division by `len(x)` have it always. None
of them fails, all of them sample another law. So a few rows are asked for three times: as they
are, with others in the places beside them, and in a smaller batch.

Rounding is no dependence: the first two questions have one size, so that the same sums are made in
the same order, and what is left (another size, a solver within the field that stops when the batch
has converged) is held to a hundredth of how far the answers lie apart, and to what the last digits
of x move. A field that draws numbers of its own, or changes from call to call, is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scoretk.core.modules import field_tensors
from scoretk.core.rows import finite_rows, select_rows
from scoretk.errors import InvalidArgument
from scoretk.fields.constrained import users_shape
from scoretk.fields.derivatives import probes
from scoretk.fields.protocols import offers
from scoretk.fields.resolve import Bound, TimedField, of_rows
from scoretk.fields.variables import named

__all__ = ["check_rows_apart"]

ROWS, FEWER = 4, 2
ASKED = 2 * ROWS + FEWER
"""How many rows a question takes."""
SHARE = 20
"""A question is to cost no more than an evaluation of all chains, or this part of a run's steps."""
TIME = 0.5
"""Where a field in time is asked: away from the ends, where a prediction may have no answer."""
CLEAR, ROUNDINGS = 1e-2, 64.0
"""What counts as another answer: so much of how far answers lie apart, and of their rounding."""
COARSE = 2.0**-5
"""What a batch of another size may differ by: a model may compute within in bfloat16, whose sums
depend on the size, and show nothing of it. A mean over rows or a division by their number differs
by more.
"""
TF32 = 2.0**-10
"""The unit of rounding of products that CUDA may make of float32."""

Question = Callable[[Tensor, Tensor], Tensor]


def check_rows_apart(bound: Bound, needs: frozenset[str], x: Tensor, steps: int) -> None:
    """Refuse a field whose answer for a row depends on the other rows, or on how many there are.

    Ten rows of each question are asked for. A run that would pay more than a `SHARE` for them is
    looked at only where there are as many chains as the event, or a named variable, has entries
    along an axis, and the axes can be mistaken. Where the field takes no such few rows, the whole is asked twice.

    Args:
        bound: The field as a solver receives it, with condition rows for the rows of x.
        needs: What that solver asks of it.
        x: `(chains, *event_shape)`, where the chains are.
        steps: How many steps the run makes.

    Raises:
        InvalidArgument: Saying what was seen.
    """
    questions = _questions(bound, needs)
    worth = len(x) * max(steps // SHARE, 1) > ASKED * len(questions)
    if len(x) > 1 and (worth or len(x) in _sides(bound.native, x)):
        with torch.no_grad():
            for name in questions:
                _check(name, bound, x.detach())


def _sides(field: Any, x: Tensor) -> set[int]:
    """How many entries there are along the axes of an event, as solvers and users see it."""
    names = named(field)
    by_name = [] if names is None else names.layout.shapes.values()
    return {*x.shape[1:], *users_shape(field)}.union(*by_name)


def _questions(bound: Bound, needs: frozenset[str]) -> list[str]:
    """What is asked of the field itself; what is derived from it needs no question."""
    if isinstance(bound, TimedField):
        return ["predict"]
    asked = {"energy"} | (needs & {"score"})  # a sum of energies hides from a score what it couples
    return sorted(asked & offers(bound.native))


def _check(name: str, bound: Bound, x: Tensor) -> None:
    ask = _question(name, bound)
    few = torch.arange(min(ROWS, len(x)), device=x.device)
    try:
        _compare(name, ask, bound, x[few], few, smaller=True)
    except _Refused:
        whole = torch.arange(len(x), device=x.device)  # made for so many rows, it may be right
        with suppress(_Refused):  # and what it raises then, the run will
            _compare(name, ask, bound, x, whole, smaller=False)


class _Refused(Exception):
    """The field takes no batch of this size."""


def _question(name: str, bound: Bound) -> Question:
    """A method of the field as a function of x and the rows whose conditions hold."""

    def ask(x: Tensor, rows: Tensor) -> Tensor:
        here = replace(of_rows(bound, rows), asked=set())
        method: Callable[..., Tensor] = getattr(here, name)
        answer = method(x, TIME) if name == "predict" else method(x)
        return answer.detach().flatten(1) if answer.ndim > 1 else answer.detach()[:, None]

    return ask


def _compare(
    name: str, ask: Question, bound: Bound, x: Tensor, rows: Tensor, *, smaller: bool
) -> None:
    def asked(x: Tensor, rows: Tensor) -> Tensor:
        try:
            return ask(x, rows)
        except Exception as error:  # whatever a model raises
            raise _Refused from error

    before, fine = asked(x, rows), ROUNDINGS * _resolution(bound, x)
    seen = []
    for stay in _staying(before):
        others, places = _exchanged(bound, x, stay)
        beside = asked(others, rows[places])[stay]
        seen.append(("beside other rows", before[stay], beside, fine))
    if smaller:
        size = min(FEWER, len(x) - 1)
        fewer = asked(x[:size], rows[:size])
        seen.append((f"in a batch of {size}", before[:size], fewer, max(fine, COARSE)))
    for how, one, other, rounding in seen:
        row = _differing(one, other, before, rounding)
        if row is not None and not _unsteady(asked, bound, x, rows, before, one - other):
            raise InvalidArgument(
                bound.source if isinstance(bound, TimedField) else name,
                _shown(other[row]),
                f"{_shown(one[row])} for a row {how}, as it has it in a batch of {len(x)}: what a "
                f"field says of a row depends on that row alone",
                "Sum and average over the event axes (dim=1 and further), never over axis 0, which "
                "holds the chains, nor divide by their number; no batch normalisation in training "
                "mode, no norm of the whole batch; of a function of one point torch.vmap(fn) is one of "
                "rows",
            )


def _staying(before: Tensor) -> list[Tensor]:
    """Which rows keep their places: of finite ones the second smallest and the second largest.

    What hangs on the largest of a batch, on the smallest or on the one between, then moves. Of
    three rows or two each by itself, as one answer may be the same by chance.
    """
    fine = finite_rows(before).nonzero().flatten()
    size = before[fine].abs().sum(1) if before.shape[1] > 1 else before[fine, 0]
    order = fine[size.argsort()]
    places = torch.arange(len(before), device=before.device)
    kept = [torch.stack([order[1], order[-2]])] if len(order) > 3 else list(order[:, None])
    return [torch.isin(places, some) for some in kept]


def _exchanged(bound: Bound, x: Tensor, stay: Tensor) -> tuple[Tensor, Tensor]:
    """A batch in which only some rows stay, and the number of the row in each place.

    In the other places are copies of the rows that stay. Where all rows are equal, they are points
    of N(0, I) instead, unless the field is on discrete states.
    """
    kept, own = stay.nonzero().flatten(), torch.arange(len(x), device=x.device)
    places = torch.where(stay, own, kept[own % len(kept)])
    others = x[places]
    if bool((x == x[:1]).all()) and "states" not in offers(bound.native):
        others = select_rows(stay, x, probes(x, len(x), 4))
    return others, places


def _differing(one: Tensor, other: Tensor, before: Tensor, rounding: float) -> int | None:
    """The first row of which the two answers differ by more than rounding; None where there is none.

    Args:
        one: Answers `(k, entries)`.
        other: The others, of the same rows.
        before: The answers to the whole question, `(rows, entries)`.
        rounding: How much of the largest of these is none.
    """
    fine = finite_rows(one) & finite_rows(other)
    known = before[finite_rows(before)]
    if not len(known):
        return None
    apart = (known - known.mean(0)).abs().max()
    limit = CLEAR * apart + rounding * known.abs().max()
    wrong = (fine & ((one - other).abs().amax(1) > limit)).nonzero().flatten()
    return int(wrong[0]) if len(wrong) else None


def _resolution(bound: Bound, x: Tensor) -> float:
    """The largest unit of rounding of all that may be computed with for x."""
    kinds = {x.dtype} | {t.dtype for t in field_tensors(bound.native) if t.is_floating_point()}
    if torch.is_autocast_enabled(x.device.type):
        kinds.add(torch.get_autocast_dtype(x.device.type))
    eps = max(torch.finfo(kind).eps for kind in kinds)
    return max(eps, TF32) if x.is_cuda else eps


def _unsteady(
    asked: Question, bound: Bound, x: Tensor, rows: Tensor, before: Tensor, difference: Tensor
) -> bool:
    """Whether the difference is no sign of dependence.

    That is, where equal questions have different answers, or where a change of x in its last digit
    changes the answer about as much as `difference`.
    """
    if any(not torch.equal(asked(x, rows).nan_to_num(), before.nan_to_num()) for _ in range(3)):
        return True
    if "states" in offers(bound.native):
        return False
    digit = 2 * _resolution(bound, x) * x.abs().clamp(min=1.0)
    moved = [
        (asked(y, rows) - before).nan_to_num(0.0, 0.0, 0.0).abs().max()
        for y in (x + digit, x - digit)
    ]
    return bool(difference.nan_to_num(0.0, 0.0, 0.0).abs().max() < ROUNDINGS * max(moved))


def _shown(answer: Tensor) -> float | list[float]:
    few = [float(f"{v:.6g}") for v in answer[:3].tolist()]
    return few[0] if len(few) == 1 else few
