"""Whether two things that fields are made of (paths, constraints, decoders, bases) are equal by
value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["alike"]


def alike(a: Any, b: Any) -> bool:
    """Whether a and b are the same object, or of one type and of equal parts.

    Tensors and arrays are equal where dtype, shape and all entries are; methods where they are the
    same of equal objects; modules, functions and types only where they are the same object. What an
    object has as `alike_by` stands for its parts. A `repr` decides nothing, as it may be abbreviated.
    """
    return _alike(a, b, set())


def _alike(a: Any, b: Any, open_pairs: set[tuple[int, int]]) -> bool:
    if a is b or (id(a), id(b)) in open_pairs:  # a pair that is being compared holds itself
        return True
    if type(a) is not type(b):
        return False
    open_pairs.add((id(a), id(b)))
    try:
        return _equal_parts(a, b, open_pairs)
    finally:
        open_pairs.discard((id(a), id(b)))


def _equal_parts(a: Any, b: Any, open_pairs: set[tuple[int, int]]) -> bool:
    if isinstance(a, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.device == b.device
        return same and torch.equal(a.detach(), b.detach())
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_alike(x, y, open_pairs) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_alike(a[key], b[key], open_pairs) for key in a)
    if isinstance(a, MethodType):
        return a.__func__ is b.__func__ and _alike(a.__self__, b.__self__, open_pairs)
    if callable(a) and not dataclasses.is_dataclass(a):
        return bool(a == b)
    parts = _parts(a)
    if parts is None:
        return bool(a == b)
    return _alike(parts, _parts(b), open_pairs)


def _parts(value: Any) -> dict[str, Any] | None:
    """What an object is made of, by name, without what it caches; None where it does not say."""
    compared = getattr(value, "alike_by", None)
    if isinstance(compared, dict):
        return compared
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return dict(vars(value)) if hasattr(value, "__dict__") else None
