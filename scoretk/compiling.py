"""torch.compile for functions that many different runs share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch

__all__ = ["compiled"]

KEPT = 64


def compiled(method: Any, key: Hashable) -> Callable[..., Any]:
    """The bound method compiled for static shapes, in one graph.

    The compiler keeps what it has made, and a small limit on how much, by code object. So each key (what tells one kind of
    run from another) has a copy of the code of its own: equal runs find their compiled function again, and different
    ones do not use up each other's limit. The last 64 kinds are remembered.
    """
    own = FunctionType(_copy(method.__code__, key), method.__globals__, method.__name__, closure=method.__closure__)
    return torch.compile(MethodType(own, method.__self__), fullgraph=True, dynamic=False)


@lru_cache(KEPT)
def _copy(code: CodeType, key: Hashable) -> CodeType:
    return code.replace()
