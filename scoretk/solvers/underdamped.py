r"""Underdamped (kinetic) Langevin dynamics: BAOAB, and generalised Hamiltonian Monte Carlo.

    dx = v dt,    dv = -grad E(x) dt - gamma v dt + sqrt(2 gamma T) dW

has the stationary density exp(-E(x)/T - |v|^2/(2 T)). BAOAB splits a step h into kicks B, drifts A
and the exact Ornstein-Uhlenbeck solution O, with c = exp(-gamma h):

    B   v <- v - h/2 grad E(x)
    A   x <- x + h/2 v
    O   v <- c v + sqrt((1 - c^2) T) z
    A   x <- x + h/2 v
    B   v <- v - h/2 grad E(x)

The gradient of the last kick is that of the next step's first: one gradient a step. On a Gaussian
target the law of x is exact at every stable step size; elsewhere its bias is of order h^2 (h^4 at
high friction).

`GHMC` refreshes the velocity in part, v <- c v + sqrt(1 - c^2) z, makes one leapfrog step, and
accepts it with probability min(1, exp(H - H')); a rejection turns the velocity round. It is exact
at any step size.

References:
    Leimkuhler, Matthews, "Rational construction of stochastic numerical methods for molecular
    sampling" (2013).
    Horowitz, "A generalized guided Monte Carlo algorithm" (1991).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import positive
from scoretk.core.rows import add_scaled, row_dot
from scoretk.core.scalars import exponential, root
from scoretk.core.streams import Stream
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import StaticField
from scoretk.solvers.base import Info
from scoretk.solvers.parts.metropolis import metropolis
from scoretk.solvers.warmup.tuned import GIVEN, StepTuned

__all__ = ["GHMC", "Underdamped"]


class UnderdampedState(NamedTuple):
    """The state of `Underdamped`.

    Position, velocity and score, each `(chains, *event_shape)`; the index of the next step.
    """

    x: Tensor
    velocity: Tensor
    score: Tensor
    step: Tensor


class GHMCState(NamedTuple):
    """The state of `GHMC`.

    Position x, its energy `(chains,)`, the gradient of its energy and the velocity, both like x;
    the index of the next step; the step size h that warmup tunes.
    """

    x: Tensor
    energy: Tensor
    grad: Tensor
    velocity: Tensor
    step: Tensor
    step_size: Tensor = GIVEN

    @property
    def shared(self) -> frozenset[str]:
        """Names of the leaves that all chains share."""
        return frozenset({"step", "step_size"})


def _velocity(x: Tensor, noise: NoiseSource, temperature: float) -> Tensor:
    return sqrt(temperature) * noise.normal(0, Stream.MOMENTUM, tuple(x.shape[1:]), x.dtype)


@dataclass(frozen=True)
class Underdamped:
    """Underdamped Langevin by BAOAB, one gradient a step.

    The step size is not tuned: without a Metropolis decision there is no acceptance, and a field
    with a score alone has no energy whose error could be seen. `GHMC` tunes its own.

    Args:
        step_size: h > 0, a time: in units of x, as velocities are of order 1 (where ULA's is in
            squared units of x).
        friction: gamma > 0, in units of 1/h.
        temperature: T > 0, the target being `p^(1/T)`.
    """

    step_size: float
    friction: float = 1.0
    temperature: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"score"})
    timed: ClassVar[bool | None] = False
    exact: ClassVar[bool] = False
    capturable: ClassVar[bool] = True
    as_data: ClassVar[tuple[str, ...]] = ("step_size", "friction", "temperature")
    init_cost: ClassVar[dict[str, int]] = {"score": 1}
    step_cost: ClassVar[dict[str, int]] = {"score": 1}

    def __post_init__(self) -> None:
        for name in ("step_size", "friction", "temperature"):
            positive(name, getattr(self, name))

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> UnderdampedState:
        start = torch.zeros((), dtype=torch.int64)
        return UnderdampedState(x, _velocity(x, noise, self.temperature), field.score(x), start)

    def step(
        self, field: StaticField, state: UnderdampedState, noise: NoiseSource
    ) -> tuple[UnderdampedState, Info]:
        h, kept = self.step_size, exponential(-self.friction * self.step_size)
        z = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        v = add_scaled(state.velocity, state.score, h / 2)
        x = add_scaled(state.x, v, h / 2)
        v = add_scaled(v * kept, z, root((1 - kept**2) * self.temperature))
        x = add_scaled(x, v, h / 2)
        score = field.score(x)
        return UnderdampedState(x, add_scaled(v, score, h / 2), score, state.step + 1), {}


@dataclass(frozen=True)
class GHMC(StepTuned):
    """Generalised Hamiltonian Monte Carlo.

    Underdamped Langevin with a Metropolis decision, exact at any step size.

    Reports "accept", "energy" and "hamiltonian" (at the start of the step).

    Args:
        step_size: h > 0, as in `Underdamped`; None to tune it in warmup.
        friction: gamma > 0, in units of 1/h.
        accept: The mean acceptance, in (0, 1), that warmup tunes the step size to. It is high, as
            each rejection turns the chain back.
    """

    step_size: float | None = None
    friction: float = 1.0
    accept: float = 0.9

    reports: ClassVar[tuple[str, ...]] = ("accept", "energy", "hamiltonian")
    needs: ClassVar[frozenset[str]] = frozenset({"energy", "score"})
    timed: ClassVar[bool | None] = False
    capturable: ClassVar[bool] = True
    as_data: ClassVar[tuple[str, ...]] = ("step_size", "friction", "accept")
    init_cost: ClassVar[dict[str, int]] = {"energy": 1, "score": 1}
    step_cost: ClassVar[dict[str, int]] = {"energy": 1, "score": 1}

    def __post_init__(self) -> None:
        self._check_step()
        positive("friction", self.friction)

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> GHMCState:
        start = torch.zeros((), dtype=torch.int64)
        return GHMCState(x, *field.energy_and_grad(x), _velocity(x, noise, 1.0), start)

    def step(
        self, field: StaticField, state: GHMCState, noise: NoiseSource
    ) -> tuple[GHMCState, Info]:
        h = self.size(state)
        kept = exponential(-self.friction * h)
        z = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        before = add_scaled(state.velocity * kept, z, root(1 - kept**2))
        v = add_scaled(before, state.grad, -h / 2)
        x = add_scaled(state.x, v, h)
        energy, grad = field.energy_and_grad(x)
        v = add_scaled(v, grad, -h / 2)
        start = state.energy + row_dot(before, before) / 2
        turned = state._replace(velocity=-before)
        proposed = GHMCState(x, energy, grad, v, state.step + 1, state.step_size)
        log_ratio = start - energy - row_dot(v, v) / 2
        chosen, probability = metropolis(turned, proposed, log_ratio, state.step, noise)
        return chosen, {"accept": probability, "energy": chosen.energy, "hamiltonian": start}
