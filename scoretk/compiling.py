"""torch.compile for functions that many different runs share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch

__all__ = ["compiled"]

KEPT = 64
LIMIT_HIT = "FailOnRecompileLimitHit"  # by name: importing its home takes a second

_copies: OrderedDict[Hashable, CodeType] = OrderedDict()


def compiled(method: Any, key: Hashable) -> Callable[..., Any]:
    """The bound method compiled for static shapes, in one graph.

    The compiler keeps what it has made, and a small limit on how much, by code object. So each key (what tells one kind of
    run from another) has a copy of the code of its own: equal runs find their compiled function again, and different ones do
    not use up each other's limit. A kind that reaches it all the same starts afresh. The last 64 kinds are remembered.
    """
    full_key = (method.__func__, key)
    function = _compile(method, full_key)

    def run(*arguments: Any) -> Any:
        nonlocal function
        try:
            return function(*arguments)
        except Exception as error:
            if type(error).__name__ != LIMIT_HIT:
                raise
            _copies.pop(full_key, None)
            function = _compile(method, full_key)
            return function(*arguments)

    return run


def _compile(method: Any, key: Hashable) -> Callable[..., Any]:
    code = _copies.pop(key, None) or method.__code__.replace()
    _copies[key] = code
    while len(_copies) > KEPT:
        _copies.popitem(last=False)
    own = FunctionType(code, method.__globals__, method.__name__, closure=method.__closure__)
    return torch.compile(MethodType(own, method.__self__), fullgraph=True, dynamic=False)
