"""Whose derivatives have been looked at.

Each likelihood's and each prior's once, at the first call.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch

__all__ = ["DERIVATIVE_ROWS", "EXAMINED", "is_new"]


DERIVATIVE_ROWS = 8
"""In how many rows the derivatives of the prior and of the likelihood are looked at."""


EXAMINED: WeakSet[Any] = WeakSet()
"""The likelihoods and posteriors whose derivatives have been looked at."""


def is_new(value: Any) -> bool:
    """Whether the derivatives of a likelihood or posterior are still to be looked at."""
    return value not in EXAMINED and not torch.compiler.is_compiling()
