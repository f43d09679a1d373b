"""
Infilling text with given letters
=================================

A language model's texts are discrete states: one-hot rows over an alphabet. Here the model is one of
letter pairs, counted in a sentence; letters that are given stay, and Gibbs steps with gradients fill
in the others. `stk.from_language_model` does the same with a model of transformers.
"""

import torch
from matplotlib.figure import Figure

import scoretk as stk

TEXT = "a model offers a field and one solver layer samples from it whatever the model may be "
LETTERS = sorted(set(TEXT))
ids = torch.tensor([LETTERS.index(letter) for letter in TEXT])
pairs = torch.full((len(LETTERS), len(LETTERS)), 0.02)
pairs.index_put_((ids[:-1], ids[1:]), torch.ones(len(ids) - 1), accumulate=True)
log_next = (pairs / pairs.sum(1, keepdim=True)).log()

given = {0: "m", 3: "e", 8: "f", 12: "d"}


def energy(x: torch.Tensor) -> torch.Tensor:
    """Minus the log probability of texts `(batch, length, letters)`; 8 nats for a wrong given one."""
    log_p = torch.einsum("bli,ij,blj->b", x[:, :-1], log_next, x[:, 1:])
    held = sum(x[:, place, LETTERS.index(letter)] for place, letter in given.items())
    return -log_p - 8 * held


field = stk.Discrete(stk.Energy(energy, (13, len(LETTERS))), "one-hot")
draws = stk.sample(field, stk.GibbsWithGradients(), chains=12, steps=800, keep="last")
for row in draws.final.argmax(2):
    print("".join(LETTERS[i] for i in row))

# %%
# How often each letter stands in each place: the given ones always.

many = stk.sample(field, stk.GibbsWithGradients(), chains=32, steps=800, keep="moments")
figure = Figure(figsize=(6, 5), layout="constrained")
axes = figure.subplots()
axes.imshow(many.mean.mean(0).T.numpy(), cmap="Blues")
axes.set(xlabel="place", yticks=range(len(LETTERS)), yticklabels=LETTERS)
