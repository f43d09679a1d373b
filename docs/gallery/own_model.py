"""
A model of your own, held to the laws
=====================================

Any class with an `event_shape` and an energy, a score or a velocity is a field. `check_model` holds
it to the laws that solvers rely on, and says where it breaks one: here a gradient that was derived by
hand, with a factor forgotten.
"""

import torch
from matplotlib.figure import Figure

import scoretk as stk
from scoretk.conformance import check_model


class Torus:
    """A ring of radius 2, with the gradient of its energy written out."""

    event_shape = (2,)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * (x.norm(dim=1) - 2) ** 2

    def score(self, x: torch.Tensor) -> torch.Tensor:
        radius = x.norm(dim=1, keepdim=True)
        return -self.factor * (radius - 2) * x / radius


wrong, right = Torus(3.0), Torus(6.0)
for result in check_model(wrong):
    if result.status == "failed":
        print(f"{result.check}: {result.detail}")

# %%
# Nor does a run begin with it.

try:
    stk.sample(wrong, stk.ULA(0.02), chains=64, steps=200)
except stk.InvalidArgument as error:
    print(error)

# %%
# What the mistake would have done: Langevin steps that know the score alone, and no energy that could
# disagree, draw from twice the temperature.

figure = Figure(figsize=(8, 4), layout="constrained")
for axes, torus in zip(figure.subplots(1, 2), (wrong, right), strict=True):
    draws = stk.sample(
        stk.Score(torus.score, (2,)), stk.ULA(0.02), chains=256, steps=200, keep="last"
    )
    stk.plot.field(right, draws=draws, bounds=(-3.5, 3.5, -3.5, 3.5), axes=axes)
    axes.set_title(f"factor {torus.factor:g}")
