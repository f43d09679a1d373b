"""`torch.compile` for functions that many different runs share."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from sysconfig import get_path
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch

from scoretk.errors import ScoretkError

__all__ = ["Uncompilable", "compiled"]

KEPT = 64
LIMIT_HIT = "FailOnRecompileLimitHit"  # by name: importing its home takes a second
COMPILER = ("torch._dynamo", "torch._functorch", "torch._inductor", "torch._subclasses", "torch.fx")
"""The modules of the compiler's own errors. What a model raises while it is traced becomes one of
them too.
"""
OWN = (str(Path(__file__).parent), *torch.__path__)
STANDARD, INSTALLED = (get_path(name) for name in ("stdlib", "purelib"))
FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')

_copies: OrderedDict[Hashable, CodeType] = OrderedDict()


class Uncompilable(ScoretkError, RuntimeError):
    """The compiler cannot take a function: the message says why, and at which line of user code."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"{_place(error)}: {_reason(error)}")


def compiled(method: Any, key: Hashable) -> Callable[..., Any]:
    """A bound method compiled for static shapes, in one graph.

    The compiler caches by code object, and takes a small number of variants of each. So each kind
    of run has its own copy of the code: equal runs find their compiled function again, and
    different ones do not use up each other's limit. A kind that reaches the limit all the same is
    compiled anew, once. The last 64 kinds are remembered.

    Args:
        method: A bound method.
        key: What tells one kind of run from another.

    Returns:
        A function of the same arguments. Where the compiler fails, calling it raises
        `Uncompilable`; where the model fails while it is traced, `Uncompilable` as well, and the
        method itself raises the model's own error.
    """
    full_key = (method.__func__, key)
    function, afresh = _compile(method, full_key), False

    def run(*arguments: Any) -> Any:
        nonlocal function, afresh
        try:
            return function(*arguments)
        except Exception as error:
            if type(error).__name__ == LIMIT_HIT and not afresh:
                _copies.pop(full_key, None)
                function, afresh = _compile(method, full_key), True
                return run(*arguments)
            if not any(kind.__module__.startswith(COMPILER) for kind in type(error).__mro__):
                raise
            raise Uncompilable(error) from error

    return run


def _compile(method: Any, key: Hashable) -> Callable[..., Any]:
    code = _copies.pop(key, None) or method.__code__.replace()
    _copies[key] = code
    while len(_copies) > KEPT:
        _copies.popitem(last=False)
    own = FunctionType(code, method.__globals__, method.__name__, closure=method.__closure__)
    return torch.compile(MethodType(own, method.__self__), fullgraph=True, dynamic=False)


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
