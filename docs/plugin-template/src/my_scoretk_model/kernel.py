"""What `scoretk.sample(field, "random-walk")` means. scoretk's `docs/solvers.md` has all that a solver may have."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk import Stream


class State(NamedTuple):
    """Chains on axis 0; what has no axis all chains share."""

    x: Tensor
    energy: Tensor
    step: Tensor


@dataclass(frozen=True)
class RandomWalk:
    """Metropolis with normal jumps of this length."""

    length: float = 1.0

    needs: ClassVar = frozenset({"energy"})
    timed: ClassVar = False
    capturable: ClassVar = True
    init_cost: ClassVar = {"energy": 1}
    step_cost: ClassVar = {"energy": 1}

    def init(self, field: Any, x: Tensor, noise: Any) -> State:
        return State(x, field.energy(x), torch.zeros((), dtype=torch.int64))

    def step(self, field: Any, state: State, noise: Any) -> tuple[State, dict[str, Tensor]]:
        x = state.x + self.length * noise.normal(
            state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype
        )
        energy = field.energy(x)
        u = noise.uniform(state.step, Stream.ACCEPT, (), energy.dtype)
        accept = u.log() < state.energy - energy  # never where the energy is NaN
        moved = accept.reshape(-1, *[1] * (x.ndim - 1))
        chosen = State(
            torch.where(moved, x, state.x),
            torch.where(accept, energy, state.energy),
            state.step + 1,
        )
        return chosen, {"accept": accept.to(x.dtype)}
