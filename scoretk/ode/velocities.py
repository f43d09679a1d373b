"""What solvers of differential equations are given, and what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["Select", "Solved", "Velocity"]

Velocity = Callable[[Tensor, Any], Tensor]
"""`(x, t) -> like x`: x `(rows, *event)`, t a number, or `(rows,)` where every row has a time of
its own.
"""

Select = Callable[[Tensor], Velocity]
"""The velocity of some of the rows, by their indices `(k,)`."""

Solved = tuple[Tensor, Tensor, Tensor]
"""Position at the end, `(rows, *event)`; `Status` codes and evaluations, `(rows,)`."""
