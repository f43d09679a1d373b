r"""Barker's proposal: a gradient-based kernel that bears a step size which is too large.

Each coordinate proposes a jump z of symmetric law and takes it forwards or backwards, forwards
where the density rises:

    x' = x + b z,    z ~ N(0, 2 h T I),
    b_i = +1 with probability 1 / (1 + exp(z_i grad_i E(x) / T)), else -1

With mu the density of z and y = x' - x, the density of the proposal is

    q(x' | x) = prod_i 2 mu_i(y_i) / (1 + exp(y_i grad_i E(x) / T))

and mu is symmetric, so that

    log q(x | x') - log q(x' | x)
        = sum_i log(1 + exp(y_i grad_i E(x) / T)) - log(1 + exp(-y_i grad_i E(x') / T))

and x' is accepted with probability

    min(1, exp((E(x) - E(x')) / T + log q(x | x') - log q(x' | x))).

To first order in h the jump has mean -h grad E and variance 2 h T, as MALA's. But it is never
longer than z, however steep E is, where MALA's grows with the gradient: a step size that is too
large, or scales that differ, cost acceptance and not ergodicity. In high dimension it is most
efficient at an acceptance of .57, as are all locally balanced proposals.

References:
    Barker, "Monte Carlo calculations of the radial distribution functions for a proton-electron
    plasma" (1965).
    Livingstone, Zanella, "The Barker proposal: combining robustness and efficiency in
    gradient-based MCMC" (2022).
    Vogrinc, Livingstone, Zanella, "Optimal design of the Barker proposal and other locally balanced
    Metropolis-Hastings algorithms" (2023), for the acceptance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoretk.core.arguments import positive
from scoretk.core.rows import row_sum, sigmoid, softplus
from scoretk.core.scalars import root
from scoretk.core.streams import Stream
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import StaticField
from scoretk.solvers.base import Info
from scoretk.solvers.parts.metropolis import metropolis
from scoretk.solvers.warmup.tuned import StepTuned, StepTunedState

__all__ = ["Barker"]


@dataclass(frozen=True)
class Barker(StepTuned):
    """Barker's proposal with a Metropolis decision.

    Exact at any step size, and robust to one that is too large.

    Reports "accept", the acceptance probability, and "energy". A proposal with NaN or infinite
    energy or gradient is rejected.

    Args:
        step_size: h > 0, in squared units of x, as MALA's: z has variance 2 h T. None to tune it
            in warmup.
        temperature: T > 0; the target is `p^(1/T)`.
        accept: The mean acceptance, in (0, 1), that warmup tunes the step size to.
    """

    step_size: float | None = None
    temperature: float = 1.0
    accept: float = 0.57

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
        """The state at x, `(chains, *event_shape)`."""
        return StepTunedState(x, *field.energy_and_grad(x), torch.zeros((), dtype=torch.int64))

    def of_leapfrog(self, size: float, dim: int) -> float:
        """The step size h = eps^2 / (2 T) that goes with a leapfrog step of size eps."""
        return size**2 / (2 * self.temperature)

    def step(
        self, field: StaticField, state: StepTunedState, noise: NoiseSource
    ) -> tuple[StepTunedState, Info]:
        """One proposal and its decision."""
        shape, dtype, heat = tuple(state.x.shape[1:]), state.x.dtype, self.temperature
        length = root(2 * self.size(state) * heat)
        z = noise.normal(state.step, Stream.PROPOSAL, shape, dtype) * length
        u = noise.uniform(state.step, Stream.CORRECTION, shape, dtype)
        jump = torch.where(u < sigmoid(-z * state.grad / heat), z, -z)
        x = state.x + jump
        proposed = StepTunedState(x, *field.energy_and_grad(x), state.step + 1, state.step_size)
        gain = softplus(jump * state.grad / heat) - softplus(-jump * proposed.grad / heat)
        log_ratio = (state.energy - proposed.energy) / heat + row_sum(gain)
        chosen, probability = metropolis(state, proposed, log_ratio, state.step, noise)
        return chosen, {"accept": probability, "energy": chosen.energy}
