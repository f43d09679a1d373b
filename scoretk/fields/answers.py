"""Checks of what a field returns: its shape, its numbers, and that the input was left as it was.

A complex energy has no order, an integer one no gradient, and a field that writes into its x moves
the chain: none of these fails by itself, all of them sample something else. The checks look at
shapes, dtypes and torch's count of writes, and at values only the first time a method is called, so
that a run does not stall; in compiled code they are made when it is traced, and writes are not
seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretk.core.modules import field_tensors
from scoretk.errors import InvalidArgument, ScoretkError

__all__ = [
    "BY_HAND",
    "ENERGY",
    "check_asked",
    "check_energy",
    "check_rows",
    "noted",
    "unwritten",
    "written_into",
]

ARRAYS = (np.ndarray, np.generic)  # a union is not traced by the compiler
HALVES = frozenset({torch.bfloat16, torch.float16})
DTYPES_DIFFER = re.compile(
    r"same dtype|scalar type|input type.*weight type|index.*dtypes match", re.IGNORECASE
)
"""What torch says of tensors whose dtypes it does not bring together."""
_APART = (
    "torch says: {}. The state has the dtype of the network's parameters unless dtype= says other: "
    "leave it out, or convert what the model holds, .to(dtype)"
)

_HALF = (
    "torch says: {}. The state of a network in {half} is float32: give autocast={half} to the "
    "field, or let the network take x.to({half})"
)
BY_HAND = (
    "Give its gradient: scoretk.Energy(fn, event_shape, grad=g), where both may be functions of "
    "numpy arrays"
)
"""What to do with an energy that autograd does not see."""
_SINGULAR = (
    "Chains pass points where a matrix is singular to rounding: sample in dtype=torch.float64, and "
    "use torch.linalg.cholesky_ex, with an energy of torch.inf where its second answer is not 0"
)
"""What to do about a matrix that has no factors somewhere."""
ENERGY = (
    "An energy gives one number a row: sum over the event axes, keep the batch axis; of a function "
    "of one point torch.vmap(fn) is one of rows"
)
"""What the answer of an energy is to be, for errors."""
_AT_ONCE = "scoretk: {} is given all chains at once, in torch tensors: {}"
_TIMES = "One time (or sigma, or timestep) a row: t.reshape({}) goes with x"

_CLOSELY: ContextVar[bool | None] = ContextVar("closely", default=None)
"""Whether the values of an input are compared before and after; None outside of an evaluation."""


def check_asked(x: object, event_shape: tuple[int, ...]) -> None:
    """Check that a field is asked for rows of its event shape.

    Another shape that broadcasts is answered, by most models, for points that nobody meant.

    Args:
        x: What it is asked for.
        event_shape: The field's.

    Raises:
        InvalidArgument: It is no tensor `(batch, *event_shape)`.
    """
    if isinstance(x, Tensor) and x.ndim and x.shape[1:] == event_shape:
        return
    one = isinstance(x, Tensor) and x.shape == event_shape
    wanted = f"(batch, {', '.join(map(str, event_shape))})" if event_shape else "(batch,)"
    raise InvalidArgument(
        "x", x, f"a tensor of rows, {wanted}", "One point is a row: x[None]" if one else ""
    )


def check_rows(
    what: str,
    got: object,
    shape: torch.Size | tuple[int, ...],
    hint: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A model's answer, if it is a tensor of this shape and of real floating-point numbers.

    Args:
        what: What it is, such as "energy", for the message.
        got: The answer.
        shape: The shape that it has to have.
        hint: What to do about another shape.
        dtype: That of what is returned; None for the answer's own.

    Returns:
        The answer, as it is where it has the dtype.

    Raises:
        InvalidArgument: It is anything else.
    """
    if not isinstance(got, Tensor) and isinstance(got, ARRAYS):
        tensor = "Make a tensor of the array: torch.from_numpy(answer).to(x)"
        by_hand = f"{tensor}, which has no gradient. {BY_HAND}" if what == "energy" else tensor
        hint = by_hand if got.shape == shape else f"{hint}. {by_hand}"
    if not isinstance(got, Tensor) or got.shape != shape:
        raise InvalidArgument(what, got, f"a tensor of shape {tuple(shape)}", hint)
    if got.layout is not torch.strided or got.is_meta:
        kind = "a meta tensor" if got.is_meta else f"a tensor of layout {got.layout}"
        raise InvalidArgument(what, kind, "a dense tensor with values: tensor.to_dense()")
    if not got.is_floating_point():
        raise InvalidArgument(
            what,
            got,
            "real floating numbers",
            "Of complex numbers take .real, or the modulus; of whole numbers .to(x.dtype), where x "
            "is meant to have no gradient",
        )
    return got if dtype is None or got.dtype is dtype else got.to(dtype)


def check_energy(got: object, x: Tensor) -> Tensor:
    """An energy at x, if it is one number a row, `(batch,)`, in the dtype of x.

    Raises:
        InvalidArgument: It is anything else.
    """
    return check_rows("energy", got, x.shape[:1], ENERGY, x.dtype)


def unwritten(
    what: str,
    evaluate: Callable[[Tensor], Any],
    x: Tensor,
    *,
    asked: set[str] | None = None,
    beside: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """`evaluate(x)`, if that does not write into x.

    Writes by torch, which counts them, are seen at every call. Others (by numpy on x's memory, by
    `x.data`) show in the values alone, which are compared at the first call of each method, for x
    and for whatever is made of it and passed on meanwhile.

    Args:
        what: The method, such as "energy".
        evaluate: A function of x.
        x: Its argument.
        asked: The methods that were called before; this one is added. None compares no values.
        beside: What the model is given beside x, by name, for the note of an error: "t" a time.

    Returns:
        What `evaluate` returns.

    Raises:
        InvalidArgument: The evaluation has written into x.
    """
    if torch.compiler.is_compiling():
        return evaluate(x)
    if asked is None or _CLOSELY.get() is not None:  # what is asked in turn follows the outermost
        return _watched(what, evaluate, x, beside)
    first = what not in asked
    asked.add(what)
    closely = _CLOSELY.set(first)
    try:
        return _watched(what, evaluate, x, beside)
    finally:
        _CLOSELY.reset(closely)


def _watched(
    what: str, evaluate: Callable[[Tensor], Any], x: Tensor, beside: Mapping[str, Any]
) -> Any:
    kept = x.detach().clone() if _CLOSELY.get() else None
    before = _writes(x)
    try:
        answer = evaluate(x)
    except Exception as error:
        if isinstance(error, RuntimeError) and not isinstance(error, ScoretkError):
            _refuse_elsewhere(what, evaluate, x, error)
            _refuse_dtype(evaluate, x, error)
        noted(error, "the network" if "t" in beside else what, {"x": x, **beside})
        raise
    if _writes(x) != before or not (kept is None or _same(kept, x.detach())):
        raise _written(what, x)
    return answer


def noted(error: Exception, what: str, given: Mapping[str, Any]) -> None:
    """Add to an error of a user's function what this was given: all chains, in tensors.

    An error that has such a note, from nearer to the function, keeps it, and those of this package
    need none.

    Args:
        error: What was raised.
        what: What the note calls the function.
        given: Its arguments, by name; a time is "t".
    """
    known = any(note.startswith("scoretk: ") for note in getattr(error, "__notes__", ()))
    if known or isinstance(error, ScoretkError):
        return
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    told = ", ".join(f"{name} of shape {tuple(value.shape)}" for name, value in tensors.items())
    way = ""
    if isinstance(error, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        way = _SINGULAR
    elif what == "energy" and isinstance(error, AttributeError | TypeError):
        way = BY_HAND
    elif "x" in tensors and "t" in tensors and tensors["t"].ndim:
        way = _TIMES.format(", ".join(["-1"] + ["1"] * (given["x"].ndim - 1)))
    error.add_note(_AT_ONCE.format(what, told) + (f". {way}" if way else ""))


def _refuse_dtype(evaluate: Callable[[Tensor], Any], x: Tensor, error: RuntimeError) -> None:
    """Say what to do about dtypes, if these are why torch has refused to compute.

    Args:
        evaluate: What was called.
        x: Its argument.
        error: torch's error.

    Raises:
        InvalidArgument: The error is about dtypes.
    """
    if not DTYPES_DIFFER.search(str(error)):
        return
    halves = {tensor.dtype for tensor in field_tensors(evaluate)} & HALVES
    hint = _HALF.format(error, half=min(halves, key=str)) if halves else _APART.format(error)
    raise InvalidArgument(
        "dtype", x.dtype, "that of all that the model computes with", hint
    ) from error


def _refuse_elsewhere(
    what: str, evaluate: Callable[[Tensor], Any], x: Tensor, error: RuntimeError
) -> None:
    """Say where a field's tensors are, if that is why torch has refused to compute with them.

    Args:
        what: The method, such as "energy".
        evaluate: What was called.
        x: Its argument.
        error: torch's error.

    Raises:
        InvalidArgument: The error is about devices, and the field has tensors on others than x's.
    """
    places = {str(t.device) for t in field_tensors(evaluate)} - {str(x.device)}
    if places and "device" in str(error):
        raise InvalidArgument(
            what,
            f"tensors on {', '.join(sorted(places))}",
            f"those that it computes with on {x.device}, where x is",
            "Move them there, or let the field take them along: tensor.to(x.device)",
        ) from error


def _writes(x: Tensor) -> int:
    """How often x has been written into, as torch counts it for autograd; 0 where it does not."""
    return 0 if x.is_inference() else x._version


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def written_into(what: str, evaluate: Callable[[Tensor], Any], x: Tensor) -> InvalidArgument | None:
    """The error for an evaluation that writes into its x, None for any other.

    It is called where autograd has refused an evaluation.

    Args:
        what: The method, such as "energy".
        evaluate: A function of x.
        x: Its argument; the evaluation is repeated on a copy.
    """
    spare = x.detach().clone()
    with suppress(Exception), torch.no_grad():  # what matters is whether it wrote before it failed
        evaluate(spare)
    return _written(what, x) if _writes(spare) else None


def _written(what: str, x: Tensor) -> InvalidArgument:
    return InvalidArgument(
        what,
        x,
        "an x that is left as it was",
        "The field changes its input in place: let it work on x.clone()",
    )
