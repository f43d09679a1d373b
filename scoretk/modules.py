"""Models are left as found: the modules behind a field, held in eval mode and without parameter gradients for a while."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["field_tensors", "left_as_found", "modules_of"]

_DEPTH = 6


def _parts(value: Any) -> Iterator[Any]:
    """What a field or callable is made of: attributes, items, closure cells, referenced globals, bound arguments."""
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # a cell that is still empty
                continue
        try:
            yield from inspect.getclosurevars(value).globals.values()
        except (TypeError, ValueError):
            return
        yield from value.__defaults__ or ()
    elif isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not inspect.ismodule(value):
        yield from vars(value).values()


def _reachable(value: Any) -> Iterator[Any]:
    """Everything within a few steps of a field, each thing once."""
    seen: set[int] = set()
    layer = [value]
    for _ in range(_DEPTH):
        following: list[Any] = []
        for item in layer:
            if id(item) in seen or isinstance(item, str | int | float | bool | torch.dtype | type(None)):
                continue
            seen.add(id(item))
            yield item
            if not isinstance(item, nn.Module | Tensor):
                following += _parts(item)
        layer = following


def modules_of(field: Any) -> list[nn.Module]:
    """The torch modules that a field calls, found through attributes, closures, partials and referenced globals."""
    return [item for item in _reachable(field) if isinstance(item, nn.Module)]


def field_tensors(field: Any) -> list[Tensor]:
    """The floating tensors that a field holds, those of its modules first: they tell its device and dtype."""
    found = [t for m in modules_of(field) for t in (*m.parameters(), *m.buffers())]
    found += [item for item in _reachable(field) if isinstance(item, Tensor)]
    return [t for t in found if t.is_floating_point()]


@contextmanager
def left_as_found(field: Any, grad: bool = False) -> Iterator[None]:
    """Hold the field's modules in eval mode, their parameters without gradients (unless `grad`), and restore both after."""
    modules = [m for top in modules_of(field) for m in top.modules()]
    training = [(m, m.training) for m in modules]
    wanting = [] if grad else [p for m in modules for p in m.parameters(recurse=False) if p.requires_grad]
    try:
        for m in modules:
            m.training = False
        for p in wanting:
            p.requires_grad_(False)
        yield
    finally:
        for m, was in training:
            m.training = was
        for p in wanting:
            p.requires_grad_(True)
