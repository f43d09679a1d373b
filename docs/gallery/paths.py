"""
Paths: what becomes of data under noise
=======================================

A Gaussian path is `x_t = alpha(t) x_1 + sigma(t) eps`. Its marginals, for data at -1 and 1, on four
paths; noise is at t = 0, the data at t = 1.
"""

import torch
from matplotlib.figure import Figure

import scoretk as stk

data = torch.tensor([-1.0, -1.0, 1.0])
paths = (stk.Linear(), stk.VP(), stk.Cosine(), stk.VE(sigma_min=0.01, sigma_max=3.0))
figure = Figure(figsize=(9, 6), layout="constrained")
for axes, path in zip(figure.subplots(2, 2).ravel(), paths, strict=True):
    stk.plot.path(path, data, axes=axes)

# %%
# Their coefficients.

figure = Figure(figsize=(9, 5), layout="constrained")
for axes, path in zip(figure.subplots(2, 2).ravel(), paths, strict=True):
    stk.plot.path(path, axes=axes)

# %%
# In two dimensions: a spiral.

angle = torch.linspace(2, 12, 600)
spiral = torch.stack([angle * angle.cos(), angle * angle.sin()], 1) / 3
figure = stk.plot.path(stk.Linear(), spiral)
