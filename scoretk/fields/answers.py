"""What a field answers, checked where it enters: shape, numbers, and that the question was left as it was.

A complex energy has no order, an integer one no gradient, and a field that writes into its x moves the chain: none of them fails
by itself, all of them sample something else. The checks look at shapes, dtypes and torch's count of writes, never at values, so
that they cost no synchronisation; in compiled code they are made when it is traced, and writes are not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from scoretk.errors import InvalidArgument

__all__ = ["check_rows", "check_unwritten", "writes", "written_into"]


def check_rows(what: str, got: object, shape: torch.Size | tuple[int, ...], hint: str) -> Tensor:
    """The model's answer, refused with a clear error where it is no tensor of this shape, or not of real floating numbers."""
    if not isinstance(got, Tensor) or got.shape != shape or got.layout is not torch.strided:
        raise InvalidArgument(what, got, f"a tensor of shape {tuple(shape)}", hint)
    if not got.is_floating_point():
        raise InvalidArgument(
            what, got, "real floating numbers",
            "Of complex numbers take .real, or the modulus; of whole numbers .to(x.dtype), where x is meant to have no gradient",
        )  # fmt: skip
    return got


def writes(x: Tensor) -> int:
    """How often x has been written into, as torch counts it for autograd; 0 where it does not count."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


def check_unwritten(what: str, x: Tensor, before: int) -> None:
    """Raise `InvalidArgument` where x has been written into since `writes(x)` was `before`."""
    if writes(x) != before:
        raise _written(what, x)


def written_into(what: str, evaluate: Callable[[Tensor], Any], x: Tensor) -> InvalidArgument | None:
    """The error for an evaluation that writes into its x, None for any other: asked where autograd has refused one."""
    spare = x.detach().clone()
    with suppress(Exception), torch.no_grad():  # what matters is whether it wrote before it failed
        evaluate(spare)
    return _written(what, x) if writes(spare) else None


def _written(what: str, x: Tensor) -> InvalidArgument:
    return InvalidArgument(
        what, x, "an x that is left as it was", "The field changes its input in place: let it work on x.clone()"
    )
