"""Memory in which all chains of a coordinate lie side by side, for the loops of a graph.

The rows of a batch are contiguous, `(chains, d)`. A graph of a few coordinates so computes with
vector registers that are mostly empty, ten of sixteen numbers in a law of ten, and adds across
them. Where the chains of each coordinate lie side by side, registers are full whatever d, and sums
over coordinates are sums of registers. The compiler keeps the order of memory that it finds, and
makes its own values as rows: so what a loop carries is turned by hand (`Turned`), and a new position
is told to lie so (`in_columns`) before a model is asked there. What a model sees is the same tensor:
the order of memory is the compiler's alone.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

__all__ = ["Turned", "apart", "in_columns", "lies_in_columns", "tell_the_compiler"]

MOST = 32
"""The most coordinates for which memory is turned: more fill the registers as rows."""


@torch.library.custom_op("scoretk::in_columns", mutates_args=())
def _in_columns(x: Tensor) -> Tensor:
    """A copy of x, as an operation may not hand back what it was given."""
    return x.clone(memory_format=torch.contiguous_format)


@_in_columns.register_fake
def _like_rows(x: Tensor) -> Tensor:
    """To what traces the graph x is rows, so that a model may take it for such."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_TOLD = False
"""Whether the compiler knows what `in_columns` asks for; not every torch can be told."""


def tell_the_compiler() -> None:
    """Tell torch's compiler what `in_columns` asks for, before a graph with it is made."""
    global _TOLD  # noqa: PLW0603
    if _TOLD:
        return
    with suppress(ImportError, AttributeError):
        from torch._inductor import ir
        from torch._inductor.lowering import register_lowering

        require = ir.ExternKernel.require_stride_order

        @register_lowering(torch.ops.scoretk.in_columns.default, type_promotion_kind=None)
        def lowered(x: Any) -> Any:
            return require(x, [0, 1])

        _TOLD = True


def lies_in_columns(x: Any) -> bool:
    """Whether memory of such values `(chains, d)` is turned in a graph: of a few coordinates, on the CPU."""
    return (
        isinstance(x, Tensor)
        and x.ndim == 2
        and 1 < x.shape[1] <= MOST
        and x.device.type == "cpu"
        and _TOLD
    )


def in_columns(x: Tensor) -> Tensor:
    """The values in a graph, computed into memory in which the chains of a coordinate lie side by side.

    Not under a gradient, which does not pass. Outside of a graph, and where nothing is gained, x.
    """
    if torch.compiler.is_compiling() and lies_in_columns(x):
        turned: Tensor = torch.ops.scoretk.in_columns(x)
        return turned
    return x


class Turned:
    """Tensors as a loop carries them, in columns where they lie so, and as they are again.

    Args:
        values: The tensors of the first turn, or what is no tensor.
    """

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.which = [lies_in_columns(value) for value in values]

    def carried(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Each in memory of its own, as a loop needs it; what is no tensor as it is."""
        return tuple(
            apart(value.T if turned else value) if isinstance(value, Tensor) else value
            for value, turned in zip(values, self.which, strict=True)
        )

    def back(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """What was carried, in the shape that it had, and to what traces the graph rows again."""
        return tuple(
            in_columns(value.T) if turned else value
            for value, turned in zip(values, self.which, strict=True)
        )


def apart(x: Tensor) -> Tensor:
    """The values in memory of their own, in one order, as what a loop carries has to be."""
    return x.clone(memory_format=torch.contiguous_format)
