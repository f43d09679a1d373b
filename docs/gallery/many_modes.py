"""
Modes that a chain does not leave
=================================

Eight Gaussians on a ring, with almost nothing between them. A chain of Langevin steps stays where it
has begun, and its verdict says so; parallel tempering lets chains of higher temperature carry draws
across.
"""

import scoretk as stk

ring = stk.load("ring-mixture")
stuck = stk.sample(ring, stk.MALA(step_size=0.02), chains=16, steps=200)
print(stuck.summary().verdict)

# %%
# The way of six chains: each sees one mode.

figure = stk.plot.field(ring, draws=stuck[:6])

# %%
# The same six chains by parallel tempering.

mixed = stk.sample(ring, stk.ParallelTempering(), chains=16, steps=200)
figure = stk.plot.field(ring, draws=mixed[:6])
