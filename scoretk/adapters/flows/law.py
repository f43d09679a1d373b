"""What a flow of any library is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from scoretk.adapters.flows.supports import Support
from scoretk.core.modules import state_like
from scoretk.core.rows import row_sum
from scoretk.core.streams import Stream
from scoretk.fields.protocols import NoiseSource

Cond = dict[str, Tensor]


class _Flow(Protocol):
    """What a library's flow is asked for."""

    @property
    def flow(self) -> Any:
        """The library's own."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the conditions that it may take."""

    def conditional(self, shape: tuple[int, ...]) -> bool:
        """Whether it has to be given its conditions."""

    def shape(self) -> tuple[int, ...]:
        """The event shape; raises anything where the flow does not say."""

    def support(self, shape: tuple[int, ...]) -> Support | None:
        """Where x lives, as the flow's parts say; None for all of R^d, or where they do not."""

    def some_conditions(self, rows: int) -> Cond | None:
        """Conditions to ask it with, which it has to be given; None where it does not say their shape."""

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        """`log p(x | c)`, `(batch,)`."""

    @property
    def discrete(self) -> bool:
        """Whether its base is a law of counts or classes."""

    @property
    def explicit(self) -> bool:
        """Whether its base is a known transform of the noise."""

    def base(self, noise: NoiseSource, cond: Cond) -> Tensor:
        """Draws of the base, `(chains, ...)`."""

    def inverse(self, z: Tensor, cond: Cond) -> Tensor:
        """`f^-1(z; c)`, `(chains, *event_shape)`."""

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        """`f(x; c)`, like z."""

    def gap(self, z: Tensor, other: Tensor) -> Tensor:
        """How far two noises are apart, like z."""


def _fails(evaluate: Callable[[], Any]) -> bool:
    """Whether a flow cannot be asked without a condition."""
    try:
        with torch.no_grad():
            evaluate()
    except Exception:  # noqa: BLE001 (torch's errors of shapes, a library's own of a missing context)
        return True
    return False


def _like(module: Any) -> Tensor:
    """A tensor of the dtype and on the device of a module, or of a distribution."""
    held = (
        (*module.parameters(), *module.buffers())
        if isinstance(module, torch.nn.Module)
        else state_like(module)
    )
    return next((t for t in held if t.is_floating_point()), torch.zeros(()))


def _normal(noise: NoiseSource, shape: Sequence[int], module: torch.nn.Module) -> Tensor:
    """Standard normals of the START stream, `(chains, *shape)`, as the module takes them."""
    return noise.normal(0, Stream.START, tuple(shape)).to(_like(module).dtype)


def _log_normal(z: Tensor) -> Tensor:
    """`log N(z; 0, I)`, `(batch,)`."""
    return -row_sum(z * z) / 2 - z[0].numel() * math.log(2 * math.pi) / 2


class _OnAllOfSpace:
    """What the flows of most libraries have in common."""

    @property
    def discrete(self) -> bool:
        return False

    def some_conditions(self, rows: int) -> Cond | None:
        return None

    def gap(self, z: Tensor, other: Tensor) -> Tensor:
        return (z - other).abs()
