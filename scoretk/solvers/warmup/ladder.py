"""What warmup learns of temperatures: a ladder whose neighbours all swap equally often.

With b_k the inverse temperatures and r_k the mean rejection of the swap of places k and k + 1, the
barrier up to place k is L_k = r_1 + ... + r_(k-1). At the end of each window the places are put
where the barrier, interpolated linearly in log b, is even between the same ends.

References:
    Syed, Bouchard-Cote, Deligiannidis, Doucet, "Non-reversible parallel tempering: a scalable
    highly parallel MCMC scheme" (2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from scoretk.core.devices import wide
from scoretk.fields.protocols import NoiseSource
from scoretk.solvers.warmup.learning import Change, Lesson, PartDefaults, mean_where

__all__ = ["TemperatureLadder", "even_ladder", "window_ends"]

LEAST_REJECTION = 1e-3
"""The rejection counted for neighbours that always swap, so that the barrier rises everywhere."""


class Rejections(NamedTuple):
    """What a window has seen: the rejection of each pair of neighbours, summed over rounds.

    `rejections` is `(K - 1,)`, `rounds` the number of rounds of swaps.
    """

    rejections: Tensor
    rounds: Tensor


def even_ladder(beta: Tensor, rejection: Tensor) -> Tensor:
    """Inverse temperatures between the same ends, evenly spaced in the barrier.

    Args:
        beta: The inverse temperatures so far, `(K,)`, falling from 1.
        rejection: The mean rejection of the swaps of neighbours, `(K - 1,)`.

    Returns:
        `(K,)`.
    """
    barrier = pad(rejection.clamp(min=LEAST_REJECTION), (1, 0)).cumsum(0)
    even = np.interp(
        np.linspace(0, float(barrier[-1]), len(beta)), barrier.numpy(), beta.log().numpy()
    )
    return torch.cat([beta[:1], torch.from_numpy(even).exp()[1:-1], beta[-1:]])


def window_ends(step: int, warmup: int) -> bool:
    """Whether a window ends with this step of warmup.

    Windows end at 3/4 of warmup and at 1/2, 1/4, ... of that. The last quarter tunes the step size
    alone.
    """
    return step + 1 in {3 * warmup >> halvings for halvings in range(2, 10)}


@dataclass(frozen=True)
class TemperatureLadder(PartDefaults):
    """Learns the state's `inverse_temperatures` from the probabilities that neighbours swap.

    The kernel gives these, `(chains, K - 1)`, as `Trial.seen`.
    """

    def begin(
        self, kernel: Any, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[Any, Rejections, int]:
        """As `Part.begin`."""
        zeros = torch.zeros_like(state.inverse_temperatures)
        return state, Rejections(zeros[1:], zeros[0]), 0

    def measure(self, memory: Rejections, lesson: Lesson) -> tuple[Rejections, tuple[Tensor, ...]]:
        """As `Part.measure`: the mean rejection of each pair, NaN where no chain is well."""
        rejection = wide(1 - lesson.trial.seen)
        return memory, tuple(mean_where(pair, lesson.alive) for pair in rejection.unbind(1))

    def learn(
        self, state: Any, memory: Rejections, lesson: Lesson
    ) -> tuple[Any, Rejections, Change | None]:
        """As `Part.learn`."""
        memory, means = lesson.read(self, memory)
        if any(map(math.isnan, means)):
            return state, memory, None
        rejections = memory.rejections + torch.tensor(means, dtype=memory.rejections.dtype)
        memory = Rejections(rejections, memory.rounds + 1)
        if not window_ends(lesson.step, lesson.warmup):
            return state, memory, None
        ladder = even_ladder(state.inverse_temperatures, memory.rejections / memory.rounds)
        return (
            state._replace(inverse_temperatures=ladder),
            Rejections(*(0 * v for v in memory)),
            Change(),
        )
