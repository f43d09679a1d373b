"""
Eight schools: a posterior with names
=====================================

The parameters have names, shapes and supports (`tau` is positive), and so have the draws. Data:
Rubin, "Estimation in parallel randomized experiments" (1981).
"""

import torch
from torch.distributions import HalfCauchy, Normal, constraints

import scoretk as stk

effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def energy(mu, tau, raw):
    """mu `(batch,)`, tau `(batch,)`, raw `(batch, 8)`; the effects are `mu + tau raw`."""
    theta = mu[:, None] + tau[:, None] * raw
    prior = Normal(0.0, 5.0).log_prob(mu) + HalfCauchy(5.0).log_prob(tau)
    prior = prior + Normal(0.0, 1.0).log_prob(raw).sum(1)
    return -prior - Normal(theta, errors).log_prob(effects).sum(1)


school = stk.Variable((8,), dims="school", coords={"school": list("ABCDEFGH")})
field = stk.Energy(energy, variables={"mu": (), "tau": constraints.positive, "raw": school})
draws = stk.sample(field, chains=32, steps=200, warmup=200)
print(draws.summary())

# %%
# The mean effect and the spread between schools: what a small `tau` says of `mu` is seen here.

figure = draws.plot("pairs", ["mu", "tau"])

# %%
# Ranks of eight chains among all their draws: level rows are chains that agree.

figure = draws.plot("rank", ["mu", "tau"])
