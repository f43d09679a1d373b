"""
An inverse problem: the lower half of a digit
=============================================

A prior in time and a measurement make a posterior. Here a digit's upper half is seen, with a little
noise, and its lower half is drawn: several answers agree with what was seen.
"""

import torch

import scoretk as stk

prior = stk.load("digits-diffusion")
truth = stk.sample(prior, stk.ProbabilityFlow(steps=16), chains=range(100, 104)).final

upper = torch.zeros(1, 8, 8, dtype=torch.bool)
upper[:, :4] = True

# %%
# Each measurement is a row of the condition "y"; seven chains have the same one.


def seen(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The log likelihood of `y = x[upper] + 0.1 noise`, `(batch,)`."""
    return -(x[:, upper] - y).square().sum(1) / (2 * 0.1**2)


field = stk.posterior(prior, seen, "dps", measured="y")
y = truth[:, upper].repeat_interleave(7, 0)
draws = stk.sample(field, stk.ProbabilityFlow(steps=32), chains=28, cond={"y": y})

# %%
# A row a digit: the truth on the left, seven draws of the posterior beside it.

rows = torch.cat([truth[:, None], draws.final.reshape(4, 7, 1, 8, 8)], 1)
figure = stk.plot.samples(rows.flatten(0, 1), columns=8)
