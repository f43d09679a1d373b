"""
Spins: an Ising model at three temperatures
===========================================

The entries of x are -1 and 1. Gradients of the energy, taken as if x were real, say which flips are
likely (Grathwohl, Swersky, Hashemi, Duvenaud, Maddison, "Oops I took a gradient: scalable sampling
for discrete distributions", 2021).
"""

import torch

import scoretk as stk

SIDE = 20


def lattice(coupling: float) -> stk.Discrete:
    """Spins on a torus, `E(x) = -coupling sum x_i x_j` over neighbours."""

    def energy(x: torch.Tensor) -> torch.Tensor:
        return -coupling * sum((x * x.roll(1, axis)).sum((1, 2)) for axis in (1, 2))

    return stk.Discrete(stk.Energy(energy, (SIDE, SIDE)), (-1.0, 1.0))


sheets = {}
for coupling in (0.2, 0.44, 0.8):
    draws = stk.sample(
        lattice(coupling), stk.GibbsWithGradients(), chains=6, steps=800, keep="last"
    )
    sheets[coupling] = draws

# %%
# Hot: neighbours hardly know of each other.

figure = stk.plot.samples(sheets[0.2], columns=6, title="coupling 0.2")

# %%
# Near the critical coupling, log(1 + sqrt 2) / 2 = 0.44: patches of every size.

figure = stk.plot.samples(sheets[0.44], columns=6, title="coupling 0.44")

# %%
# Cold: one sign in large parts.

figure = stk.plot.samples(sheets[0.8], columns=6, title="coupling 0.8")
