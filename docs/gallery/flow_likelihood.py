"""
A flow's likelihood, against the exact one
==========================================

The probability flow turns noise into data by an ordinary differential equation, so that the log
density of data follows by the change of variables: the integral of the divergence along the way
(Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations", 2018). For a
mixture on a ring both are known.
"""

import torch
from matplotlib.figure import Figure

import scoretk as stk

ring = stk.load("ring-mixture")
field = ring.noised(stk.Linear())

# %%
# The flow's ways.

figure = stk.plot.field(field, chains=150)

# %%
# The log density of 60 points by the flow, over the exact one.

x = ring.draw(60, stk.Noise(seed=1, chains=60))
x = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
estimate = stk.log_prob(field, x)
exact = ring.log_prob(x)
print(f"largest difference: {float((estimate.value - exact).abs().max()):.1e} nats")

figure = Figure(figsize=(4, 4), layout="constrained")
axes = figure.subplots()
axes.axline((-3, -3), slope=1, color="gray", linewidth=0.8)
axes.scatter(exact, estimate.value, s=10)
axes.set(xlabel="exact log density", ylabel="by the flow")
