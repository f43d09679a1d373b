"""Values that `torch.distributions` refuses are points outside a support: their rows are rejected.

torch's distributions check what they are given, parameters and values, and raise `ValueError` for
the whole batch where one row of it is NaN or outside a support: a proposal far out, a scale that
has underflowed. The density there is zero. So where an evaluation is refused, the rows at fault are
replaced by a row that is not, the batch is evaluated again, and they get what zero density means.

Turning the checks off instead would change laws: `Exponential(1.0).log_prob(-1.0)` is then 1, and
rises for ever. For the same reason the checks are on while a field is evaluated, also where the
default has been turned off, as any use of `torch.compile` does for the whole process; a
distribution that was given `validate_args=False` stays as it is.

A compiled evaluation has no checks. So before a run is compiled its field is asked here and there
whether it refuses anything (`refuses`), and if so the run is not compiled.

An evaluation that is refused is repeated, once for each distribution that refuses; what a run
counts is the evaluations that its solver asked for. An error that does not come from x (data
outside a support, a scale that is negative for every x) is the user's, and is raised; where
conditions are at fault, by their names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from scoretk.core.anatomy import walk
from scoretk.core.rows import across, row_sum
from scoretk.errors import InvalidArgument
from scoretk.fields.derivatives import probes

__all__ = ["refuses", "rejecting", "told"]

_SEEN: ContextVar[list[ValueError] | None] = ContextVar("seen", default=None)
"""The errors for which rows were rejected, while `refuses` collects them; else None."""

_STRANGE = re.compile(r"(\S+\(\)) got an unexpected keyword argument '(\w+)'")
_MISSING = re.compile(
    r"(\S+\(\)) missing \d+ required (?:positional|keyword-only) arguments?: (.+)"
)

REACH = (0.0, 1.0, 10.0, 100.0)
"""How far around a point, in each coordinate, `refuses` looks."""


def told(evaluate: Callable[..., Any], *given: Any, cond: Mapping[str, Tensor]) -> Any:
    """`evaluate(*given, **cond)`, with an error that names conditions which are not those it takes.

    Raises:
        InvalidArgument: A condition has a name that it does not take, or one is missing.
    """
    if torch.compiler.is_compiling():
        return evaluate(*given, **cond)
    try:
        return evaluate(*given, **cond)
    except TypeError as error:
        strange = _STRANGE.search(str(error))
        missing = _MISSING.search(str(error))
        got = ", ".join(sorted(cond)) or "none"
        if strange is not None and strange[2] in cond:
            expected = f"conditions that {_short(strange[1])} takes, which has no {strange[2]!r}"
        elif missing is not None and _is_called_here(error):
            expected = f"all conditions that {_short(missing[1])} asks for: {missing[2]}"
        else:
            raise
        raise InvalidArgument("cond", got, expected, "cond={name: one row a chain}") from error


def _is_called_here(error: TypeError) -> bool:
    """Whether the call that failed was this package's, or a module's of torch, and no user's own."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    caller = "" if traceback is None else traceback.tb_frame.f_globals.get("__name__", "")
    return caller.partition(".")[0] in ("scoretk", "torch")


def _short(function: str) -> str:
    """A function's name, without where it was defined."""
    return function.rpartition("<locals>.")[2]


def rejecting(
    evaluate: Callable[..., Any], x: Tensor, cond: Mapping[str, Tensor], *refused: float
) -> Any:
    """`evaluate(x, **cond)`, with the rows that torch's distributions refuse filled in.

    Args:
        evaluate: A function of independent rows; gives a tensor or a tuple of tensors, one row a
            row.
        x: `(batch, *event_shape)`.
        cond: Condition values, one row a row of x.
        refused: What the refused rows get: a number for each tensor.

    Returns:
        What `evaluate` returns.
    """
    if torch.compiler.is_compiling():  # which leaves the checks out
        return evaluate(x, **cond)
    with _checking():
        try:
            return told(evaluate, x, cond=cond)
        except ValueError as error:
            seen = _SEEN.get()
            if seen is not None:
                seen.append(error)
            outside, made = _without_refused(evaluate, x, cond, error)
    if made is None:  # each row is refused
        made = tuple(row_sum(x) if k == 0 else torch.zeros_like(x) for k in range(len(refused)))
    parts = made if isinstance(made, tuple) else (made,)
    filled = tuple(
        torch.where(across(outside, v), r, v) for v, r in zip(parts, refused, strict=True)
    )
    return filled if len(refused) > 1 else filled[0]


def refuses(evaluate: Callable[[Tensor], Any], x: Tensor) -> str | None:
    """What torch's distributions refuse at x or around it, while `evaluate` evaluates a field.

    Args:
        evaluate: A function of x that evaluates a field.
        x: `(rows, *event_shape)`.

    Returns:
        The first complaint; None where there is none.
    """
    noted: list[ValueError] = []
    token = _SEEN.set(noted)
    try:
        for reach in REACH:
            evaluate(x + reach * probes(x, len(x), 5))
            if noted:
                return " ".join(str(noted[0]).split("but found")[0].split())
    finally:
        _SEEN.reset(token)
    return None


@contextmanager
def _checking() -> Iterator[None]:
    before = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def _without_refused(
    evaluate: Callable[..., Any], x: Tensor, cond: Mapping[str, Tensor], error: ValueError
) -> tuple[Tensor, Any]:
    """Find the rows that are refused, and evaluate with others in their place.

    Returns:
        Which rows are refused, `(batch,)` of bool, and the evaluation; None where all are refused.

    Raises:
        ValueError: The given error, where it does not come from x.
    """
    outside = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    while True:
        found = _rows_at_fault(error, len(x))
        if found is None or not bool((found & ~outside).any()):
            found = _found_by_halves(evaluate, x, cond, (~outside).nonzero().flatten())
        outside = outside | found.to(outside.device)
        if bool(outside.all()):
            _raise_unless_of_x(evaluate, x, cond, error)
            return outside, None
        try:
            return outside, _evaluated_elsewhere(evaluate, x, cond, outside)
        except ValueError as another:
            error = another


def _check_of(error: ValueError) -> dict[str, Any] | None:
    """The local variables (`value`, `valid`) of the check of torch's that raised an error, else
    None.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not str(trace.tb_frame.f_globals.get("__name__")).startswith(
        "torch.distributions."
    ):
        return None
    known = trace.tb_frame.f_locals
    general = trace.tb_frame.f_globals["__name__"] == Distribution.__module__
    return known if "valid" in known or not general else None  # else it is about shapes


def _rows_at_fault(error: ValueError, rows: int) -> Tensor | None:
    """Which rows a check has refused, `(rows,)` of bool; None where it does not tell.

    Raises:
        ValueError: The given error, where it is no such check's.
    """
    known = _check_of(error)
    if known is None:
        raise error
    valid = known.get("valid")
    if not isinstance(valid, Tensor) or valid.ndim == 0 or len(valid) != rows:
        return None
    return ~valid.reshape(rows, -1).all(1)


def _found_by_halves(
    evaluate: Callable[..., Any], x: Tensor, cond: Mapping[str, Tensor], rows: Tensor
) -> Tensor:
    """Which of these rows are refused, `(batch,)` of bool, by evaluating parts of the batch."""
    outside = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    parts = [rows]
    while parts:
        part = parts.pop()
        try:
            evaluate(x[part], **{name: value[part] for name, value in cond.items()})
        except ValueError as error:
            if _check_of(error) is None:
                raise
            if len(part) == 1:
                outside[part] = True
            else:
                parts += part.tensor_split(2)
    return outside


def _evaluated_elsewhere(
    evaluate: Callable[..., Any], x: Tensor, cond: Mapping[str, Tensor], outside: Tensor
) -> Any:
    """The evaluation with the first row that is inside in place of those outside."""
    first = int((~outside).nonzero()[0])

    def moved(values: Tensor) -> Tensor:
        return torch.where(across(outside, values), values[first].detach(), values)

    return evaluate(moved(x), **{name: moved(value) for name, value in cond.items()})


def _raise_unless_of_x(
    evaluate: Callable[..., Any], x: Tensor, cond: Mapping[str, Tensor], error: ValueError
) -> None:
    """Raise the error unless what is refused, or what it has to satisfy, depends on x."""
    with torch.enable_grad():
        try:
            evaluate(x.detach().requires_grad_(), **cond)
        except ValueError as refusal:
            known = _check_of(refusal) or {}
            checked = (known.get(name) for name in ("value", "constraint", "support"))
            of_check = [*(checked if "value" in known else known.values())]
            if any(isinstance(part, Tensor) and part.requires_grad for part in walk(of_check)):
                return
    raise error
