"""Which likelihoods and priors have had their derivatives checked: each once, at the first call."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch

__all__ = ["DERIVATIVE_ROWS", "EXAMINED", "is_new"]


DERIVATIVE_ROWS = 8
"""The number of rows in which the derivatives of prior and likelihood are checked."""


EXAMINED: WeakSet[Any] = WeakSet()
"""The likelihoods and posteriors whose derivatives have been checked."""


def is_new(value: Any) -> bool:
    """Whether the derivatives of a likelihood or posterior are still to be checked."""
    return value not in EXAMINED and not torch.compiler.is_compiling()
