"""What `scoretk.load` calls. A trained model reads its weights here, from a safetensors file."""

from torch import Tensor

import scoretk as stk


def build(barrier: float) -> stk.Energy:
    def energy(x: Tensor) -> Tensor:  # (batch, 2) -> (batch,)
        return barrier * (x[:, 0] ** 2 - 1) ** 2 + x[:, 1] ** 2 / 2

    return stk.Energy(energy, event_shape=(2,))
