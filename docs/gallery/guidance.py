"""
Guidance: more of a class than the data have
============================================

A conditional diffusion knows ten classes of digits and, by a null label, none. Classifier-free
guidance of weight w follows `(1 - w) score(x) + w score(x | label)`: 1 means no guidance. Method: Ho,
Salimans, "Classifier-free diffusion guidance" (2022).
"""

import torch

import scoretk as stk

field = stk.load("digits-class-diffusion")
labels = torch.arange(10).repeat(3)
name = next(iter(field.null))

# %%
# Weight 1: the model's own conditional law, three of each class.

plain = stk.sample(field, stk.ProbabilityFlow(steps=16), chains=30, cond={name: labels})
figure = stk.plot.samples(plain, columns=10, title="weight 1")

# %%
# Weight 3, from the same noise: clearer, and more alike.

strong = stk.guided(field, 3.0)
guided = stk.sample(strong, stk.ProbabilityFlow(steps=16), chains=30, cond={name: labels})
figure = stk.plot.samples(guided, columns=10, title="weight 3")
