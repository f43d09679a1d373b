r"""What warmup learns of a step size: by dual averaging on the acceptance, or from energy errors.

With the acceptance a_m of warmup step m, pooled over chains, and the target delta,

    H_m = (1 - 1/(m + 10)) H_(m-1) + (delta - a_m) / (m + 10),    log eps_m = mu - sqrt(m) / .2 H_m,
    log eps = m^-.75 log eps_m + (1 - m^-.75) log eps

with mu = log eps_0. The averaged eps is kept after warmup. (The usual .05 and mu = log(10 eps_0)
suit the noise of one chain. Here they made the step size vary so much that, fifty steps after a
window, an acceptance of .574 was missed by .18; these miss by .02.)

A kernel without a Metropolis decision is tuned to an error of its energy, `EnergyError`. As this
error W ~ eps^3, with xi_n the mean over chains of W^2 / (energy_variance d) in step n of a window,

    eps <- eps (1 + w_n (xi_n - 1))^(-1/6),    w_n = max(2 / (n + 1), 1 / 75).

A chain's part of xi_n counts as 64 at most, so that eps at most halves. The part of W^2 that
rounding makes, two energies being known to half a unit in the last place each, does not count.

References:
    Hoffman, Gelman, "The No-U-Turn sampler" (2014).
    Robnik, De Luca, Silverstein, Seljak, "Microcanonical Hamiltonian Monte Carlo" (2023), for the
    error of the energy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk.core.devices import wide
from scoretk.fields.protocols import NoiseSource
from scoretk.solvers.warmup.learning import Change, Lesson, mean_where

__all__ = [
    "Averaging",
    "DualAveraging",
    "EnergyError",
    "first_step_size",
    "harmonic_acceptance",
    "next_step_size",
    "number",
    "pooled_acceptance",
    "restart",
]

GAMMA, DELAY, DECAY = 0.2, 10.0, 0.75
LEAST = 0.01
MEMORY, MOST_CHANGE = 75, 64.0
FIRST, TRIES = 0.1, 30
"""The first step size tried, and how often it is doubled or halved at most."""


class Averaging(NamedTuple):
    """What `DualAveraging` remembers: `(5,)`, the values mu, log eps_m, log eps, H_m and m."""

    averaging: Tensor


class Counting(NamedTuple):
    """What `EnergyError` remembers: how many steps of the window have changed the step size."""

    steps: Tensor


def number(value: float) -> Tensor:
    """A value that all chains share, as a float64 scalar on the CPU."""
    return torch.tensor(value, dtype=torch.float64)


def restart(step_size: float) -> Tensor:
    """The memory of dual averaging at its beginning, `(5,)`, from this step size."""
    start = math.log(step_size)
    return torch.tensor([start, start, start, 0.0, 0.0], dtype=torch.float64)


def next_step_size(
    memory: Averaging, accept: float, target: float, last: bool
) -> tuple[Averaging, float]:
    """One step of dual averaging.

    Args:
        memory: The memory before it.
        accept: a_m, the pooled acceptance; counts as 0 where it is not finite.
        target: delta.
        last: Whether this is the last step of warmup.

    Returns:
        The memory after it, and the step size to go on with: eps_m, or the averaged eps after the
        last step.
    """
    mu, log_step, average, error, count = memory.averaging.tolist()
    count += 1
    share = 1 / (count + DELAY)
    error = (1 - share) * error + share * (target - (accept if math.isfinite(accept) else 0.0))
    log_step = mu - math.sqrt(count) / GAMMA * error
    weight = count**-DECAY
    average = weight * log_step + (1 - weight) * average
    averaging = torch.tensor([mu, log_step, average, error, count], dtype=torch.float64)
    return Averaging(averaging), math.exp(average if last else log_step)


def pooled_acceptance(accept: Tensor, usual: Tensor) -> Tensor:
    """The mean acceptance over the usual chains, `()`; 0 where there is none, or one has none.

    Args:
        accept: The acceptance, `(chains,)` or `(chains, K)`.
        usual: Like it, of bool: the chains that are well and took a step of the common size.
    """
    return mean_where(accept, usual).nan_to_num(0.0)


def harmonic_acceptance(accept: Tensor, usual: Tensor, diverging: Tensor) -> Tensor:
    """The harmonic mean acceptance, `()`, in which chains that are seldom accepted weigh more.

    The mean is over the usual chains that did not diverge, whose acceptance counts as `LEAST` at
    least, times their share of the usual chains: diverged chains count as 0, as in the plain mean,
    because a law that ends at an edge has some at any step size.

    Args:
        accept: The acceptance, `(chains,)`.
        usual: `(chains,)` of bool, as in `pooled_acceptance`.
        diverging: `(chains,)` of bool.
    """
    sound = usual & ~diverging
    slowness = wide(mean_where(1 / accept.clamp(min=LEAST), sound))
    return (wide(sound.sum()) / wide(usual.sum()) / slowness).nan_to_num(0.0)


def first_step_size(accept: Callable[[float], float], target: float) -> float:
    """A step size within a factor of two of that at which the acceptance is the target.

    Args:
        accept: The acceptance at a step size, a falling function.
        target: The acceptance aimed at.
    """
    size, rising = FIRST, accept(FIRST) > target
    for _ in range(TRIES):
        size = size * 2 if rising else size / 2
        if (accept(size) > target) != rising:
            break
    return size


def pooled_error(xi: Tensor, rounding: Tensor, usual: Tensor) -> tuple[Tensor, Tensor]:
    """The means over the usual chains of xi without its part of rounding, and of that, each `()`.

    Args:
        xi: W^2 / (energy_variance d) of each chain, `(chains,)`.
        rounding: The part of each that rounding makes, `(chains,)`.
        usual: `(chains,)` of bool, as in `pooled_acceptance`.
    """
    sound = torch.minimum(xi, MOST_CHANGE + rounding) - rounding
    return mean_where(sound, usual), mean_where(rounding, usual)


def resized(count: float, pooled: float, rounding: float, size: float) -> float:
    """The step size after a step of a window, by the error of the energy.

    Where the error is mostly rounding the step size does not grow, as its effect cannot be seen.

    Args:
        count: n, the number of the step in the window, from 1.
        pooled: The mean of xi, of `pooled_error`.
        rounding: That of its part of rounding.
        size: The step size before.
    """
    pooled = max(pooled, 1.0 if rounding > 1 else 1 / MOST_CHANGE)
    growth: float = (1 + max(2 / (count + 1), 1 / MEMORY) * (pooled - 1)) ** (-1 / 6)
    return size * growth


def _rounding(energy: Tensor) -> Tensor:
    """The mean square that rounding makes in the difference of two energies of this size."""
    size = energy.abs()
    return wide(torch.nextafter(size, torch.full_like(size, torch.inf)) - size).square() / 6


@dataclass(frozen=True)
class DualAveraging:
    """Learns the state's `step_size` from the acceptance.

    Args:
        target: The acceptance aimed at, in (0, 1).
        pooled: How the acceptance is pooled over chains: "mean", or "harmonic", in which chains in
            narrow places weigh more, where a step size that suits the others is rejected.
    """

    target: float
    pooled: str = "mean"

    def begin(
        self, kernel: Any, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[Any, Averaging, int]:
        """As `Part.begin`: the kernel's own first step size."""
        size, spent = kernel.first_step(field, state, noise, alive)
        return state._replace(step_size=number(size)), Averaging(restart(size)), spent

    def measure(self, memory: Averaging, lesson: Lesson) -> tuple[Averaging, tuple[Tensor, ...]]:
        """As `Part.measure`: the acceptance, pooled over the chains."""
        accept = lesson.trial.accept
        if self.pooled == "harmonic":
            told = harmonic_acceptance(accept, lesson.usual, lesson.trial.info["diverging"])
        else:
            told = pooled_acceptance(accept, lesson.usual)
        return memory, (told,)

    def learn(
        self, state: Any, memory: Averaging, lesson: Lesson
    ) -> tuple[Any, Averaging, Change | None]:
        """As `Part.learn`."""
        memory, (rate,) = lesson.read(self, memory)
        memory, size = next_step_size(memory, rate, self.target, lesson.last)
        return state._replace(step_size=number(size)), memory, None

    def changed(self, state: Any, memory: Averaging, change: Change) -> tuple[Any, Averaging]:
        """As `Part.changed`: averaging begins anew from the state's step size."""
        return state, Averaging(restart(float(state.step_size)))


@dataclass(frozen=True)
class EnergyError:
    """Learns the state's `step_size` from the error W of the energy that a step reports.

    The report has it as "energy_error", `(chains,)`.

    Args:
        variance: The mean square of W per dimension aimed at.
    """

    variance: float

    def begin(
        self, kernel: Any, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[Any, Counting, int]:
        """As `Part.begin`: the kernel's own first step size."""
        size, spent = kernel.first_step(field, state, noise, alive)
        return state._replace(step_size=number(size)), Counting(number(0.0)), spent

    def measure(self, memory: Counting, lesson: Lesson) -> tuple[Counting, tuple[Tensor, ...]]:
        """As `Part.measure`: the means of `pooled_error`, and how many chains they are of.

        Where a chain stayed, as its step would not end at finite numbers, its error is infinite.
        """
        trial, usual = lesson.trial, lesson.usual
        aim = self.variance * trial.state.x.shape[1:].numel()
        error = wide(trial.info["energy_error"])
        xi = torch.where(trial.accept > 0, error.square() / aim, torch.inf)
        pooled = pooled_error(xi, _rounding(trial.state.energy) / aim, usual)
        return memory, (*pooled, usual.sum())

    def learn(
        self, state: Any, memory: Counting, lesson: Lesson
    ) -> tuple[Any, Counting, Change | None]:
        """As `Part.learn`."""
        memory, (pooled, rounding, chains) = lesson.read(self, memory)
        if not chains:
            return state, memory, None
        steps = memory.steps + 1
        size = resized(float(steps), pooled, rounding, float(state.step_size))
        return state._replace(step_size=number(size)), Counting(steps), None

    def changed(self, state: Any, memory: Counting, change: Change) -> tuple[Any, Counting]:
        """As `Part.changed`: the count of steps begins anew."""
        return state, Counting(number(0.0))
