"""
Noise makes modes meet: annealed Langevin
=========================================

Langevin steps do not cross between modes, but under much noise there is one mode. Annealed Langevin
follows the score from much noise to none (Song, Ermon, "Generative modeling by estimating gradients
of the data distribution", 2019).
"""

from matplotlib.figure import Figure

import scoretk as stk

ring = stk.load("ring-mixture")
field = ring.noised(stk.VE(sigma_min=0.01, sigma_max=4.0))

# %%
# The density at four times, and the velocity of the flow that leads from one to the next.

figure = Figure(figsize=(12, 3.2), layout="constrained")
for axes, t in zip(figure.subplots(1, 4), (0.1, 0.4, 0.6, 0.9), strict=True):
    stk.plot.field(field, t, bounds=(-6, 6, -6, 6), axes=axes)

# %%
# Draws by annealed Langevin: all eight modes.

draws = stk.sample(field, stk.AnnealedLangevin(), chains=200)
figure = stk.plot.samples(draws)
