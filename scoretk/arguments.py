"""Checks of arguments. Each raises `InvalidArgument`, which names the argument, what it got and what was expected."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arrays import aligned
from scoretk.errors import InvalidArgument, UnknownName

__all__ = ["count", "finite", "option", "positive", "tensor_like"]


def count(name: str, value: Any, *, least: int = 0) -> int:
    """An integer of at least `least`, and of 64 bits as tensors count."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) < 2**63:
        raise InvalidArgument(name, value, f"an integer of at least {least}")
    return int(value)


def finite(name: str, value: Any) -> float:
    """A finite real number."""
    number = _real(value)
    if number is None or not math.isfinite(number):
        raise InvalidArgument(name, value, "a finite number")
    return number


def positive(name: str, value: Any) -> float:
    """A positive finite real number."""
    number = _real(value)
    if number is None or not 0 < number < math.inf:
        raise InvalidArgument(name, value, "a positive finite number")
    return number


def _real(value: Any) -> float | None:
    """A real number as a float, None where it is none; infinite beyond the range of floats."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def option(name: str, value: Any, known: Iterable[str]) -> str:
    """One of the known strings."""
    names = list(known)
    if not isinstance(value, str):
        raise InvalidArgument(name, value, f"one of {', '.join(map(repr, names))}")
    if value not in names:
        raise UnknownName(name, value, names)
    return value


def tensor_like(name: str, value: Any, shape: tuple[int | None, ...]) -> Tensor:
    """A real floating tensor of this shape (None: any size there), finite throughout. Integers become float32.

    It is `aligned`, so that no result depends on where in memory the caller's numbers lie.
    """
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(name, value, "a tensor or something that becomes one", str(error)) from error
    fits = tensor.ndim == len(shape) and all(s in (None, n) for s, n in zip(shape, tensor.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise InvalidArgument(name, value, f"shape ({wanted})")
    if tensor.is_complex() or tensor.dtype is torch.bool:
        raise InvalidArgument(name, value, "real numbers")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidArgument(name, value, "finite numbers", "It holds NaN or infinity")
    return aligned(tensor)
