"""Functions of a number, or of a tensor `()` in its place.

A setting of a solver is a number. Within a graph it is a tensor, so that one graph serves all its
values (`scoretk.solvers.base.Traits.as_data`).
"""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["exponential", "is_zero", "root"]


def root(value: float | Tensor) -> float | Tensor:
    """The square root."""
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def exponential(value: float | Tensor) -> float | Tensor:
    """Euler's number to this power."""
    return value.exp() if isinstance(value, Tensor) else math.exp(value)


def is_zero(value: float | Tensor) -> bool:
    """Whether this is the number 0, by which something is left out; a tensor is not looked at."""
    return not isinstance(value, Tensor) and value == 0
