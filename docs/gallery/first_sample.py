"""
A first sample, and whether to believe it
=========================================

An energy is minus a log density, up to a constant: one number for each row of x. That is all a
sampler needs.
"""

import torch

import scoretk as stk


def valley(x: torch.Tensor) -> torch.Tensor:
    """A bent valley, `(batch, 2) -> (batch,)`."""
    return x[:, 0] ** 2 / 2 + 2 * (x[:, 1] - x[:, 0] ** 2 / 2) ** 2


target = stk.Energy(valley, (2,))

# %%
# No solver is named: for an energy that is ChEES, Hamiltonian Monte Carlo that tunes itself.

draws = stk.sample(target, chains=64, steps=200, warmup=300)
print(draws.summary())

# %%
# The density, the score's arrows, and the draws.

figure = stk.plot.field(target, draws=draws[:16])
