"""Derivatives that are known once: who asks for theirs is told, and not given that of a constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoretk.errors import InvalidArgument

__all__ = ["known_once"]


def known_once(derivative: Tensor, *of: Tensor) -> Tensor:
    """A first derivative, as the backward of an `autograd.Function` returns it, that has none itself.

    `torch.autograd.function.once_differentiable` takes a derivative for a constant where the slopes
    that it is given are constants, as those of `autograd.grad(y.sum(), x, create_graph=True)` are.

    Args:
        derivative: Its values.
        of: What it depends on: the slopes, and the inputs at which it was computed.

    Returns:
        The same values. Where autograd records, a derivative of them raises InvalidArgument.
    """
    found: Tensor = _KnownOnce.apply(derivative.detach(), *of)  # type: ignore[no-untyped-call]
    return found


class _KnownOnce(torch.autograd.Function):
    @staticmethod
    def forward(derivative: Tensor, *of: Tensor) -> Tensor:
        return derivative.view_as(derivative)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        raise InvalidArgument(
            "gradient",
            "a second one",
            "first derivatives only",
            "A gradient of one's own (Energy(grad=...)), another library's and that of grad='adjoint' "
            "are numbers, which have none: an energy in torch has, and grad=True through its steps",
        )
