"""
Fields make fields: powers, products, posteriors
================================================

Every solver takes what is put together. Four laws of one energy.
"""

from matplotlib.figure import Figure

import scoretk as stk

wells = stk.Energy(lambda x: 4 * (x[:, 0] ** 2 - 1) ** 2 + 2 * (x[:, 1] - x[:, 0]) ** 2, (2,))
ball = stk.Energy(lambda x: x[:, 0] ** 2 + 6 * x[:, 1] ** 2, (2,))
laws = {
    "an energy": wells,
    "at temperature 4": stk.tempered(wells, 4.0),
    "times another": stk.product(wells, ball),
    "given x[0] + x[1] > 0": stk.posterior(wells, lambda x: 20 * (x.sum(1).clamp(max=0))),
}

figure = Figure(figsize=(12, 3.2), layout="constrained")
for axes, (title, law) in zip(figure.subplots(1, 4), laws.items(), strict=True):
    draws = stk.sample(law, stk.ParallelTempering(), chains=8, steps=40)
    stk.plot.field(law, draws=draws, bounds=(-2.2, 2.2, -2.5, 2.5), axes=axes)
    axes.set_title(title)
