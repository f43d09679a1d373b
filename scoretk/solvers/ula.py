r"""The unadjusted Langevin algorithm.

    x' = x - h grad E(x) + sqrt(2 h T) z,    z ~ N(0, I)

The Euler-Maruyama discretisation of Langevin dynamics at temperature T, whose target is `p^(1/T)`. It is biased by the
step size: on N(0, 1) at T = 1 its stationary variance is `1 / (1 - h / 2)`.

Reference: Roberts, Tweedie, "Exponential convergence of Langevin distributions and their discrete approximations" (1996).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.arguments import positive
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import StaticField
from scoretk.solvers.base import Info
from scoretk.streams import Stream

__all__ = ["ULA"]


class ULAState(NamedTuple):
    """Position and its score, both `(chains, *event_shape)`; the index of the next step."""

    x: Tensor
    score: Tensor
    step: Tensor


@dataclass(frozen=True)
class ULA:
    """Unadjusted Langevin: `x' = x - h grad E + sqrt(2 h T) z`.

    Arguments: step_size h > 0, in squared units of x; temperature T > 0.
    """

    step_size: float
    temperature: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"score"})
    timed: ClassVar[bool | None] = False
    capturable: ClassVar[bool] = True
    init_cost: ClassVar[dict[str, int]] = {"score": 1}
    step_cost: ClassVar[dict[str, int]] = {"score": 1}

    def __post_init__(self) -> None:
        positive("step_size", self.step_size)
        positive("temperature", self.temperature)

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> ULAState:
        return ULAState(x, field.score(x), torch.zeros((), dtype=torch.int64))

    def step(self, field: StaticField, state: ULAState, noise: NoiseSource) -> tuple[ULAState, Info]:
        z = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        drifted = torch.add(state.x, state.score, alpha=self.step_size)
        x = torch.add(drifted, z, alpha=sqrt(2 * self.step_size * self.temperature))
        return ULAState(x, field.score(x), state.step + 1), {}
