"""
A diffusion, from noise to digits
=================================

A denoiser trained on 8 x 8 digits ships with the package. The probability flow takes noise (t = 0)
to data (t = 1); with 16 evaluations it is nearly as good as with hundreds.
"""

import scoretk as stk

field = stk.load("digits-diffusion")
draws = stk.sample(field, stk.ProbabilityFlow(steps=16), chains=64)
figure = stk.plot.samples(draws, columns=16)

# %%
# The way of four of them: noise until late, then digits.

way = stk.sample(field, stk.ProbabilityFlow(steps=16), chains=4, keep="all")
figure = stk.plot.samples(way.x[:, 1::2].flatten(0, 1), columns=8)

# %%
# The stochastic side of the same diffusion.

noisy = stk.sample(field, stk.ReverseSDE("ancestral", steps=64), chains=64)
figure = stk.plot.samples(noisy, columns=16)
