r"""What warmup learns of a step size.

By dual averaging on the acceptance, or from the error of the energy.

With the acceptance a_m of warmup step m, pooled over chains, and the target delta,

    H_m = (1 - 1/(m + 10)) H_(m-1) + (delta - a_m) / (m + 10),    log eps_m = mu - sqrt(m) / .2 H_m,
    log eps = m^-.75 log eps_m + (1 - m^-.75) log eps

the last being what is kept, mu = log eps_0. (The usual .05 and mu = log(10 eps_0) suit the noise of
one chain. Here they threw the step size about so much that, fifty steps after a window, an
acceptance of .574 was missed by .18; these miss by .02.)

A kernel without a Metropolis decision is held to an error of its energy, `EnergyError`: as this
error W ~ eps^3, with xi_n the mean over chains of W^2 / (energy_variance d) in step n of a window,

    eps <- eps (1 + w_n (xi_n - 1))^(-1/6),    w_n = max(2 / (n + 1), 1 / 75),    each chain's part at most 64: eps at most halves

What rounding alone makes of W, two energies being known to half a unit in the last place each, does
not count.

References:
    Hoffman, Gelman, "The No-U-Turn sampler" (2014).
    Robnik, De Luca, Silverstein, Seljak, "Microcanonical Hamiltonian Monte Carlo" (2023), for the
    error of the energy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.fields.protocols import NoiseSource
from scoretk.solvers.warmup.learning import Change, Lesson

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


class Averaging(NamedTuple):
    """What dual averaging remembers: `(5,)` mu, log eps_m, log eps, H, m."""

    averaging: Tensor


class Counting(NamedTuple):
    """How many steps of the window have changed the step size."""

    steps: Tensor


def number(value: float) -> Tensor:
    """A value that all chains share."""
    return torch.tensor(value, dtype=torch.float64)


def restart(step_size: float) -> Tensor:
    """Dual averaging at its beginning, from this step size."""
    start = math.log(step_size)
    return torch.tensor([start, start, start, 0.0, 0.0], dtype=torch.float64)


def next_step_size(
    memory: Averaging, accept: float, target: float, last: bool
) -> tuple[Averaging, float]:
    """One step of dual averaging.

    The step size to go on with, the averaged one after the last step of warmup.
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


def pooled_acceptance(accept: Tensor, usual: Tensor) -> float:
    """The mean acceptance of the chains that are well and took the common step.

    0 where there is none.
    """
    counted = accept[usual]
    return float(counted.mean()) if len(counted) else 0.0


def harmonic_acceptance(accept: Tensor, usual: Tensor, diverging: Tensor) -> float:
    """As `pooled_acceptance`, by the harmonic mean, in which chains that are seldom accepted count
    for more.

    Those that diverged count as they do in the plain mean, as 0: a law that ends at an edge has
    some at any step size. The acceptance of the others counts as `LEAST` at least.
    """
    sound = accept[usual & ~diverging]
    if not len(sound):
        return 0.0
    return len(sound) / int(usual.sum()) / float((1 / sound.clamp(min=LEAST)).mean())


def first_step_size(
    accept: Callable[[float], float], target: float, start: float = 0.1, tries: int = 30
) -> float:
    """A step size within a factor of two of the one accepted as often as the target, from doubling
    or halving.
    """
    size, rising = start, accept(start) > target
    for _ in range(tries):
        size = size * 2 if rising else size / 2
        if (accept(size) > target) != rising:
            break
    return size


def resized(count: float, xi: Tensor, rounding: Tensor, size: float) -> float:
    """The next step size after the count-th step of a window, from this one.

    Where the error is mostly rounding the step does not grow: how long it may be cannot be seen.

    Args:
        count: n, from 1.
        xi: of the chains that took the step, `(n,)`, not empty.
        rounding: what rounding adds to each, `(n,)`.
        size: this step size.
    """
    pooled = float((torch.minimum(xi, MOST_CHANGE + rounding) - rounding).mean())
    pooled = max(pooled, 1.0 if float(rounding.mean()) > 1 else 1 / MOST_CHANGE)
    growth: float = (1 + max(2 / (count + 1), 1 / MEMORY) * (pooled - 1)) ** (-1 / 6)
    return size * growth


def _rounding(energy: Tensor) -> Tensor:
    """The mean square of the error that rounding two energies of this size makes in their
    difference.
    """
    size = energy.abs()
    return (torch.nextafter(size, torch.full_like(size, torch.inf)) - size).double().square() / 6


@dataclass(frozen=True)
class DualAveraging:
    """Learns the state's `step_size` from the acceptance.

    Args:
        target: the acceptance aimed at.
        pooled: how it is pooled over the chains, a name in `POOLS`: "mean", or "harmonic", in which chains in a narrow place
            count, whose proposals the step size of the others has rejected.
    """

    target: float
    pooled: str = "mean"

    POOLS: ClassVar[tuple[str, ...]] = ("mean", "harmonic")

    def begin(
        self, kernel: Any, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[Any, Averaging, int]:
        """As `Part.begin`: the kernel's own first step size."""
        size, spent = kernel.first_step(field, state, noise, alive)
        return state._replace(step_size=number(size)), Averaging(restart(size)), spent

    def learn(
        self, state: Any, memory: Averaging, lesson: Lesson
    ) -> tuple[Any, Averaging, Change | None]:
        """As `Part.learn`."""
        memory, size = next_step_size(memory, self.rate(lesson), self.target, lesson.last)
        return state._replace(step_size=number(size)), memory, None

    def rate(self, lesson: Lesson) -> float:
        """The acceptance of a step, pooled."""
        accept = lesson.trial.accept
        if self.pooled == "harmonic":
            return harmonic_acceptance(accept, lesson.usual, lesson.trial.info["diverging"])
        return pooled_acceptance(accept, lesson.usual)

    def changed(self, state: Any, memory: Averaging, change: Change) -> tuple[Any, Averaging]:
        """As `Part.changed`: it begins anew from the step size that there is."""
        return state, Averaging(restart(float(state.step_size)))


@dataclass(frozen=True)
class EnergyError:
    """Learns the state's `step_size` from the error W of the energy that a step reports,
    "energy_error".

    Args:
        variance: the mean square of W per dimension aimed at.
    """

    variance: float

    def begin(
        self, kernel: Any, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[Any, Counting, int]:
        """As `Part.begin`: the kernel's own first step size."""
        size, spent = kernel.first_step(field, state, noise, alive)
        return state._replace(step_size=number(size)), Counting(number(0.0)), spent

    def learn(
        self, state: Any, memory: Counting, lesson: Lesson
    ) -> tuple[Any, Counting, Change | None]:
        """As `Part.learn`.

        A step after which the chain stayed, as its end was not finite, has an infinite error.
        """
        usual, aim = lesson.usual, self.variance * state.x.shape[1:].numel()
        if not bool(usual.any()):
            return state, memory, None
        error = lesson.trial.info["energy_error"].double()
        xi = torch.where(lesson.trial.accept > 0, error.square() / aim, torch.inf)
        steps = memory.steps + 1
        size = resized(
            float(steps), xi[usual], _rounding(state.energy)[usual] / aim, float(state.step_size)
        )
        return state._replace(step_size=number(size)), Counting(steps), None

    def changed(self, state: Any, memory: Counting, change: Change) -> tuple[Any, Counting]:
        """As `Part.changed`: it counts anew."""
        return state, Counting(number(0.0))
