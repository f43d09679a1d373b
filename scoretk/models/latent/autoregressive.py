r"""Autoregressive models, whose density and draws are exact.

The sites of an event, in row-major order, are given by those before them:

    log p(x) = sum_i log p(x_i | a_i),    a_i = a_i(x_1, .., x_{i-1}),    x_i = F^-1(u_i | a_i)

A backbone gives the numbers a_i of all sites in one pass, its connections masked so that a_i
depends on no site from i on; a draw takes a pass for each site. Binary sites have `p(x_i = 1) =
sigmoid(a_i)`, tokens, which are one-hot rows, `p(x_i = k) = softmax(a_i)_k`; their energies hold for
real x as well, so that a score exists. Real sites have `p(x_i) = sum_k w_k logistic(x_i; m_k, s_k)`.

References:
    Larochelle, Murray, "The neural autoregressive distribution estimator" (2011).
    Salimans, Karpathy, Chen, Kingma, "PixelCNN++: improving the PixelCNN with discretized logistic
    mixture likelihood and other modifications" (2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, one_hot, softplus

from scoretk.core.streams import Stream
from scoretk.fields import NoiseSource
from scoretk.fields.discrete import DiscreteField
from scoretk.fields.gradient import grad_energy
from scoretk.fields.protocols import drawn
from scoretk.fields.states import pick

__all__ = [
    "Autoregressive",
    "Backbone",
    "Bernoullis",
    "BinaryAutoregressive",
    "Categoricals",
    "Logistics",
    "TokenAutoregressive",
]

SCALES = 7.0
"""The largest magnitude of a logistic's log scale, in standard deviations of the data, so that
densities are bounded.
"""


# Fields


class _Ancestral:
    """What the fields share: density, energy and score of all sites, and draws site by site."""

    network: Any  # Bernoullis, Categoricals or Logistics
    shape: tuple[int, ...]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def in_a_row(self) -> tuple[int, ...]:
        """The shape of an event whose sites stand in a row."""
        return (math.prod(self.event_shape),)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density `sum_i log p(x_i | x_<i)`, normalised, `(batch,)`."""
        return self.network.log_prob(x.reshape(len(x), *self.in_a_row)).to(x.dtype)

    def energy(self, x: Tensor) -> Tensor:
        """The energy `-log p(x)`, `(batch,)`."""
        return -self.log_prob(x)

    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The energy and its gradient, for the price of one of each."""
        return grad_energy(self.energy, x)

    def score(self, x: Tensor) -> Tensor:
        """The score `-grad E(x)`, like x."""
        return -self.energy_and_grad(x)[1]

    @torch.no_grad()
    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact samples by inverse cdf, `(n, *event_shape)`, without gradients.

        They take as many passes as there are sites.
        """
        sites = self.in_a_row[0]
        u = noise.uniform(0, Stream.START, (sites, self.network.uniforms))
        x = u.new_zeros(n, *self.in_a_row)
        for i in range(sites):
            x[:, i] = self.network.site(x, i, u[:, i])
        return x.reshape(n, *self.event_shape)


@dataclass(frozen=True, eq=False)
class Autoregressive(_Ancestral):
    """The static field of real sites, each given those before it.

    Args:
        network: The conditional laws of the sites.
        shape: The shape of an event.
    """

    network: Logistics
    shape: tuple[int, ...]

    provides = frozenset({"energy", "score", "log_prob", "draw"})


@dataclass(frozen=True, eq=False)
class BinaryAutoregressive(_Ancestral, DiscreteField):
    """The static field of sites that are 0 or 1, each given those before it.

    Args:
        network: The conditional laws of the sites.
        shape: The shape of an event.
    """

    network: Bernoullis
    shape: tuple[int, ...]

    states = (0.0, 1.0)
    provides = frozenset({"energy", "score", "states", "log_prob", "draw"})

    def exact_log_partition(self) -> float:
        """0: the energy is normalised, however many states there are."""
        return 0.0


@dataclass(frozen=True, eq=False)
class TokenAutoregressive(_Ancestral, DiscreteField):
    """The static field of tokens, each given those before it: a language model's law.

    Args:
        network: The conditional laws of the tokens.
        shape: The shape of an event, `(*sites, vocabulary)`.
    """

    network: Categoricals
    shape: tuple[int, ...]

    states = "one-hot"
    provides = frozenset({"energy", "score", "states", "log_prob", "draw", "decode"})

    @property
    def in_a_row(self) -> tuple[int, ...]:
        return math.prod(self.event_shape[:-1]), self.event_shape[-1]

    def exact_log_partition(self) -> float:
        """0: the energy is normalised, however many states there are."""
        return 0.0

    def decode(self, x: Tensor) -> Tensor:
        """The tokens as levels from -1 to 1, `(batch, *event_shape) -> (batch, *sites)`."""
        return 2 * x.argmax(-1).to(x.dtype) / (x.shape[-1] - 1) - 1


# Conditionals: what the numbers a_i of a site mean


class Backbone(nn.Module):
    """A module `(batch, d) -> (batch, d, outputs)` whose numbers of site i depend on sites before i.

    Where sites are tokens it takes `(batch, d, vocabulary)`.
    """

    def at(self, x: Tensor, i: int) -> Tensor:
        """The numbers of site i alone, `(batch, outputs)`, from x as above."""
        return self(x)[:, i]


class Bernoullis(nn.Module):
    """Conditional laws of binary sites, `p(x_i = 1 | x_<i) = sigmoid(a_i)`.

    Args:
        backbone: Gives a, `(batch, d) -> (batch, d, 1)`.
    """

    uniforms = 1

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def log_prob(self, rows: Tensor) -> Tensor:
        """The log probability `sum_i x_i a_i - log(1 + exp a_i)`, `(batch, d) -> (batch,)`."""
        rows = rows.to(next(self.parameters()).dtype)
        a = self.backbone(rows).squeeze(2)
        return (rows * a - softplus(a)).sum(1)

    def site(self, rows: Tensor, i: int, u: Tensor) -> Tensor:
        """A draw of site i given those before it, `(batch,)`, from uniforms u `(batch, 1)`."""
        a = self.backbone.at(rows.to(next(self.parameters()).dtype), i)
        return (u < torch.sigmoid(a)).squeeze(1).to(rows)


class Categoricals(nn.Module):
    """Conditional laws of tokens, `p(x_i = k | x_<i) = softmax(a_i)_k`.

    Args:
        backbone: Gives a, `(batch, d, vocabulary)` of one-hot rows to the same shape.
    """

    uniforms = 1

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def log_prob(self, rows: Tensor) -> Tensor:
        """The log probability `sum_i x_i . log softmax(a_i)`, `(batch, d, k) -> (batch,)`."""
        rows = rows.to(next(self.parameters()).dtype)
        return (rows * self.backbone(rows).log_softmax(-1)).sum((1, 2))

    def site(self, rows: Tensor, i: int, u: Tensor) -> Tensor:
        """A draw of token i given those before it, one-hot `(batch, k)`, from u `(batch, 1)`."""
        a = self.backbone.at(rows.to(next(self.parameters()).dtype), i)
        return one_hot(pick(a, u[:, 0].to(a)), a.shape[-1]).to(rows)


class Logistics(nn.Module):
    """Conditional laws of real sites: mixtures of logistics in `y_i = (x_i - mean) / std`.

    Args:
        backbone: Gives weights, means and scales of k components, `(batch, d) -> (batch, d, 3 k)`.
        mean: The mean of the data over all sites, `()`.
        std: Their standard deviation, `()`.
    """

    uniforms = 2
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def log_prob(self, rows: Tensor) -> Tensor:
        """The log density `sum_i log sum_k w_k logistic(x_i; m_k, s_k)`, `(batch, d) -> (batch,)`."""
        y = (rows.to(self.mean.dtype) - self.mean) / self.std
        logits, means, scales = self._mixture(self.backbone(y))
        z = (y[..., None] - means) / scales
        each = logits.log_softmax(-1) + logsigmoid(z) + logsigmoid(-z) - scales.log()
        return (each.logsumexp(-1) - self.std.log()).sum(1)

    def site(self, rows: Tensor, i: int, u: Tensor) -> Tensor:
        """A draw of site i given those before it, `(batch,)`, from uniforms u `(batch, 2)`.

        The first uniform picks the component.
        """
        logits, means, scales = self._mixture(
            self.backbone.at((rows.to(self.mean.dtype) - self.mean) / self.std, i)
        )
        k = pick(logits, u[:, 0].to(logits))[:, None]
        # the logit before the cast: in a narrower dtype a u below 1 could round to 1
        y = means.gather(1, k) + scales.gather(1, k) * torch.logit(u[:, 1:]).to(logits)
        return (self.mean + self.std * y).squeeze(1).to(rows)

    def _mixture(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The logits of the weights, the means and the scales, `(..., k)` each, from `(..., 3 k)`.

        Where the backbone says 0 the means are one apart, so that components differ.
        """
        logits, means, scales = numbers.chunk(3, -1)
        k = logits.shape[-1]
        apart = torch.arange(k, device=numbers.device) - (k - 1) / 2
        return logits, means + apart, (SCALES * torch.tanh(scales / SCALES)).exp()
