r"""A masked network under many masks: one set of weights, an autoregressive law for each order.

A mask has an order of the sites and the place up to which each hidden unit sees, both drawn by a
seed. A step of the optimiser takes one mask; the model is the mixture of all K with equal weights,

    p(x) = 1/K sum_k prod_i p(x_i | x_j of the sites j before i in order k)

which is normalised, and whose draws take one order each.

References:
    Germain, Gregor, Murray, Larochelle, "MADE: masked autoencoder for distribution estimation"
    (2015).
    Uria, Murray, Larochelle, "A deep and tractable density estimator" (2014), for the orders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from scoretk.core.devices import on
from scoretk.core.streams import Stream
from scoretk.fields import NoiseSource
from scoretk.fields.discrete import DiscreteField
from scoretk.fields.gradient import grad_energy
from scoretk.fields.protocols import drawn
from scoretk.models.digits.autoregressive import Mask, MaskedMLP

__all__ = ["ManyMasks", "OrderMixture"]


class ManyMasks(nn.Module):
    """A masked MLP of binary sites with K masks.

    Args:
        dim: d, the number of sites.
        width: The width of the hidden layers.
        layers: Their number.
        masks: K; their seeds are 0 to K - 1.
        dropout: The share of hidden units dropped in training.
    """

    def __init__(self, dim: int, width: int, layers: int, masks: int, dropout: float) -> None:
        super().__init__()
        self.net = MaskedMLP(dim, width, layers, 1, dropout)
        self.masks = [_mask(dim, width, k) for k in range(masks)]

    def log_prob(self, rows: Tensor, k: int) -> Tensor:
        """The log probability under mask k, `(batch, d) -> (batch,)`."""
        a = self.net.masked(rows, self._mask(k, rows)).squeeze(2)
        return (rows * a - softplus(a)).sum(1)

    def mixed_log_prob(self, rows: Tensor, first: int | None = None) -> Tensor:
        """The log probability under the mixture of the first masks, by default of all."""
        each = [self.log_prob(rows, k) for k in range(len(self.masks))[:first]]
        return torch.stack(each).logsumexp(0) - math.log(len(each))

    def draw(self, rows: int, u: Tensor, k: int) -> Tensor:
        """Draws in order k from uniforms u `(rows, d)`, `(rows, d)`."""
        x, mask = torch.zeros_like(u), self._mask(k, u)
        for place, site in enumerate(mask.place.argsort().tolist()):
            a = self.net.masked(x, mask, slice(site, site + 1))[:, 0, 0]
            x[:, site] = (u[:, place] < torch.sigmoid(a)).to(x)
        return x

    def _mask(self, k: int, like: Tensor) -> Mask:
        return Mask(*(on(part, like.device) for part in self.masks[k]))


@dataclass(frozen=True, eq=False)
class OrderMixture(DiscreteField):
    """The static field of a network with many masks; density and draws are exact.

    Args:
        network: The network.
        shape: The shape of an event.
    """

    network: ManyMasks
    shape: tuple[int, ...]

    states = (0.0, 1.0)
    provides = frozenset({"energy", "score", "states", "log_prob", "draw"})

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.shape

    def exact_log_partition(self) -> float:
        """0: the energy is normalised, however many states there are."""
        return 0.0

    def log_prob(self, x: Tensor) -> Tensor:
        """The log probability log p(x), `(batch,)`."""
        dtype = next(self.network.parameters()).dtype
        return self.network.mixed_log_prob(x.flatten(1).to(dtype)).to(x.dtype)

    def energy(self, x: Tensor) -> Tensor:
        """The energy `-log p(x)`, `(batch,)`."""
        return -self.log_prob(x)

    def score(self, x: Tensor) -> Tensor:
        """The score `-grad E(x)`, like x."""
        return -grad_energy(self.energy, x)[1]

    @torch.no_grad()
    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact samples, `(n, *event_shape)`: an order for each, then its sites in that order."""
        u = noise.uniform(0, Stream.START, (1 + math.prod(self.shape),))
        masks = len(self.network.masks)
        order = (u[:, 0] * masks).long().clamp(max=masks - 1)
        x = torch.zeros_like(u[:, 1:])
        for k in order.unique().tolist():
            own = order == k
            x[own] = self.network.draw(int(own.sum()), u[own, 1:], k)
        return x.reshape(n, *self.shape)


def _mask(dim: int, width: int, k: int) -> Mask:
    """Mask k: a permutation of the places, and as even a choice of what units see as there is."""
    generator = torch.Generator("cpu").manual_seed(k)
    place = torch.randperm(dim, generator=generator, device="cpu")
    last = torch.randperm(width, generator=generator, device="cpu") % max(1, dim - 1)
    return Mask(place, last)
