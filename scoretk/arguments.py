"""Checks of arguments. Each raises `InvalidArgument`, which names the argument, what it got and what was expected."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from operator import index
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arrays import aligned
from scoretk.errors import InvalidArgument, UnknownName

__all__ = ["count", "counts", "finite", "integer", "is_integer", "option", "positive", "tensor_like"]


def is_integer(value: Any) -> bool:
    """Whether this is one integer: Python's, numpy's, or a tensor or an array of no dimension. Truth values are none."""
    if isinstance(value, bool) or getattr(value, "ndim", 0) != 0 or getattr(value, "dtype", None) is torch.bool:
        return False
    try:
        index(value)
    except (TypeError, RuntimeError):  # torch's for a tensor without a value, such as one on "meta"
        return False
    return True


def integer(name: str, value: Any, least: int = 0, below: int = 2**63) -> int:
    """A plain integer in [least, below), from any that `is_integer` knows."""
    if not is_integer(value) or not least <= (number := index(value)) < below:
        raise InvalidArgument(name, value, f"an integer in [{least}, 2**{below.bit_length() - 1})")
    return number


def count(name: str, value: Any, *, least: int = 0) -> int:
    """A plain integer of at least `least`, and of 64 bits as tensors count."""
    if not is_integer(value) or not least <= (number := index(value)) < 2**63:
        raise InvalidArgument(name, value, f"an integer of at least {least}")
    return number


def counts(owner: Any, **least: int) -> None:
    """The attributes of these names, of a frozen dataclass in `__post_init__`, become plain integers of at least so much."""
    for name, bound in least.items():
        object.__setattr__(owner, name, count(name, getattr(owner, name), least=bound))


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
