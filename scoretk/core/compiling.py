"""`torch.compile` for functions that many different runs share, and for parts of a step.

A step that cannot be compiled whole, because what it does next depends on data, has *parts* that
can: functions of a field and of tensors. They are marked by `part`, and what a step does over and
over goes through `iterate`. Both are plain calls until a run says who compiles them
(`parts_compiled_by`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from sysconfig import get_path
from types import CodeType, FunctionType, MethodType
from typing import Any, Protocol, TypeVar

import torch

from scoretk.errors import ScoretkError

__all__ = ["PartCompiler", "Uncompilable", "compiled", "iterate", "part", "parts_compiled_by"]

KEPT = 64
LIMIT_HIT = "FailOnRecompileLimitHit"  # by name: importing its home takes a second
COMPILER = ("torch._dynamo", "torch._functorch", "torch._inductor", "torch._subclasses", "torch.fx")
"""The modules of the compiler's own errors. What a model raises while it is traced becomes one of
them too.
"""
OWN = (str(Path(__file__).parent), *torch.__path__)
STANDARD, INSTALLED = (get_path(name) for name in ("stdlib", "purelib"))
FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')

T = TypeVar("T")

_copies: OrderedDict[Hashable, CodeType] = OrderedDict()


class Uncompilable(ScoretkError, RuntimeError):
    """The compiler cannot take a function: the message says why, and at which line of user code."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"{_place(error)}: {_reason(error)}")


def compiled(function: Any, key: Hashable) -> Callable[..., Any]:
    """A function or a bound method compiled for static shapes, in one graph.

    The compiler caches by code object, and takes a small number of variants of each. So each kind
    of run has its own copy of the code: equal runs find their compiled function again, and
    different ones do not use up each other's limit. A kind that reaches the limit all the same is
    compiled anew, once. The last 64 kinds are remembered.

    Args:
        function: A function or a bound method.
        key: What tells one kind of run from another.

    Returns:
        A function of the same arguments. Where the compiler fails, calling it raises
        `Uncompilable`; where the model fails while it is traced, `Uncompilable` as well, and the
        function itself raises the model's own error.
    """
    full_key = (getattr(function, "__func__", function), key)
    made, afresh = _compile(function, full_key), False

    def run(*arguments: Any, **named: Any) -> Any:
        nonlocal made, afresh
        try:
            return made(*arguments, **named)
        except Exception as error:
            if type(error).__name__ == LIMIT_HIT and not afresh:
                _copies.pop(full_key, None)
                made, afresh = _compile(function, full_key), True
                return run(*arguments, **named)
            if not any(kind.__module__.startswith(COMPILER) for kind in type(error).__mro__):
                raise
            raise Uncompilable(error) from error

    return run


def _compile(function: Any, key: Hashable) -> Callable[..., Any]:
    plain = getattr(function, "__func__", function)
    code = _copies.pop(key, None) or plain.__code__.replace()
    _copies[key] = code
    while len(_copies) > KEPT:
        _copies.popitem(last=False)
    own = FunctionType(
        code, plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__
    )
    own.__kwdefaults__ = plain.__kwdefaults__
    bound = own if plain is function else MethodType(own, function.__self__)
    return torch.compile(bound, fullgraph=True, dynamic=False)


class PartCompiler(Protocol):
    """Who compiles the parts of the steps of a run."""

    def serves(self, field: Any) -> bool:
        """Whether parts with this field are of the run's steps.

        Those of a field inside the run's own are not: they are within a part, or called on their
        own.
        """

    def call(self, function: Callable[..., T], field: Any, *rows: Any, **same: Any) -> T:
        """As `part`."""

    def iterate(
        self, body: Callable[..., T], field: Any, carry: T, times: int, *rows: Any, **same: Any
    ) -> T:
        """As `iterate`."""


_PARTS: ContextVar[PartCompiler | None] = ContextVar("parts", default=None)


@contextmanager
def parts_compiled_by(compiler: PartCompiler | None) -> Iterator[None]:
    """Within this, parts are compiled by this one; by None they are plain calls."""
    token = _PARTS.set(compiler)
    try:
        yield
    finally:
        _PARTS.reset(token)


def _compiler_of(field: Any) -> PartCompiler | None:
    if torch.compiler.is_compiling():  # the part is inside a larger graph
        return None
    compiler = _PARTS.get()
    return compiler if compiler is not None and compiler.serves(field) else None


def part(function: Callable[..., T]) -> Callable[..., T]:
    """Mark a function `(field, *rows, **same)` as one that can be compiled on its own.

    It does not synchronise, and what it does depends on shapes and settings alone. What is given by
    position are tensors with the chains on axis 0, tensors without an axis, numbers, and tuples of
    these, and so is what it returns, dicts among it; the rows are independent of each other. What
    is given by name is the same for all chains: tensors, and settings.
    """

    @wraps(function)
    def run(field: Any, *rows: Any, **same: Any) -> T:
        compiler = _compiler_of(field)
        if compiler is None:
            return function(field, *rows, **same)
        return compiler.call(function, field, *rows, **same)

    return run


def iterate(body: Callable[..., T], field: Any, carry: T, times: int, *rows: Any, **same: Any) -> T:
    """`carry <- body(field, carry, *rows, **same)`, so many times.

    The one place for what a step does over and over, so that whoever compiles it may cut it, or
    make one loop of it.

    Args:
        body: as what `part` marks.
        field: the field.
        carry: a tuple of tensors with the chains on axis 0.
        times: how often.
        rows: the further arguments of the body, as in `part`.
        same: the further arguments of the body, as in `part`.
    """
    compiler = _compiler_of(field)
    if compiler is not None:
        return compiler.iterate(body, field, carry, times, *rows, **same)
    for _ in range(times):
        carry = body(field, carry, *rows, **same)
    return carry


def _place(error: Exception) -> str:
    """The last line of the user's among those that were being traced, else the last of any."""
    known = getattr(error, "real_stack", None) or ()
    frames: list[Any] = [(f.filename, f.lineno, f.name) for f in known] or FRAME.findall(str(error))
    theirs = [frame for frame in frames if not _ours(str(frame[0]))]
    if not frames:
        return "the compiler"
    file, line, name = (theirs or frames)[-1]
    return f"{file}:{line} in {name}"


def _ours(file: str) -> bool:
    """Whether this file is torch's, this package's, or Python's own."""
    return file.startswith(OWN) or (file.startswith(STANDARD) and not file.startswith(INSTALLED))


def _reason(error: Exception) -> str:
    """The first line of the compiler's message that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
