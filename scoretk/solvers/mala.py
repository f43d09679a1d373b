r"""The Metropolis-adjusted Langevin algorithm.

    x' = x - h grad E(x) + sqrt(2 h T) z,                         z ~ N(0, I)
    log q(x' | x) = -|x' - x + h grad E(x)|^2 / (4 h T) + const
    accept with probability min(1, exp((E(x) - E(x')) / T + log q(x | x') - log q(x' | x)))

Exact for `p^(1/T)` at any step size; in high dimension most efficient at an acceptance of .574.

References:
    Roberts, Tweedie, "Exponential convergence of Langevin distributions and their discrete
    approximations" (1996).
    Roberts, Rosenthal, "Optimal scaling of discrete approximations to Langevin diffusions" (1998).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoretk.core.arguments import positive
from scoretk.core.rows import add_scaled, row_dot
from scoretk.core.scalars import root
from scoretk.core.streams import Stream
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import StaticField
from scoretk.solvers.base import Info
from scoretk.solvers.parts.metropolis import metropolis
from scoretk.solvers.warmup.tuned import StepTuned, StepTunedState

__all__ = ["MALA"]


@dataclass(frozen=True)
class MALA(StepTuned):
    """Metropolis-adjusted Langevin: exact at any step size.

    Reports "accept", the acceptance probability, and "energy". A proposal with NaN or infinite
    energy or gradient is rejected.

    Args:
        step_size: h > 0, in squared units of x; None to tune it in warmup.
        temperature: T > 0; the target is `p^(1/T)`.
        accept: The mean acceptance, in (0, 1), that warmup tunes the step size to.
    """

    step_size: float | None = None
    temperature: float = 1.0
    accept: float = 0.574

    reports: ClassVar[tuple[str, ...]] = ("accept", "energy")
    needs: ClassVar[frozenset[str]] = frozenset({"energy", "score"})
    timed: ClassVar[bool | None] = False
    capturable: ClassVar[bool] = True
    as_data: ClassVar[tuple[str, ...]] = ("step_size", "temperature", "accept")
    init_cost: ClassVar[dict[str, int]] = {"energy": 1, "score": 1}
    step_cost: ClassVar[dict[str, int]] = {"energy": 1, "score": 1}

    def __post_init__(self) -> None:
        self._check_step()
        positive("temperature", self.temperature)

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> StepTunedState:
        return StepTunedState(x, *field.energy_and_grad(x), torch.zeros((), dtype=torch.int64))

    def of_leapfrog(self, size: float, dim: int) -> float:
        """The step size h = eps^2 / (2 T) that goes with a leapfrog step of size eps."""
        return size**2 / (2 * self.temperature)

    def step(
        self, field: StaticField, state: StepTunedState, noise: NoiseSource
    ) -> tuple[StepTunedState, Info]:
        h, heat = self.size(state), self.temperature
        z = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        x = add_scaled(add_scaled(state.x, state.grad, -h), z, root(2 * h * heat))
        proposed = StepTunedState(x, *field.energy_and_grad(x), state.step + 1, state.step_size)
        # |x - x' + h g'|^2 - |x' - x + h g|^2 = h^2 <g' + g - 2 sqrt(2 T / h) z, g' + g>, the right
        # side without cancellation; g and g' are the gradients at x and x'
        both = proposed.grad + state.grad
        backward = row_dot(add_scaled(both, z, -2 * root(2 * heat / h)), both)
        of_row = h.reshape(-1 if h.ndim else ()) if isinstance(h, Tensor) else h
        drop = (state.energy - proposed.energy) / heat
        log_ratio = add_scaled(drop, backward, -of_row / (4 * heat))
        chosen, probability = metropolis(state, proposed, log_ratio, state.step, noise)
        return chosen, {"accept": probability, "energy": chosen.energy}
