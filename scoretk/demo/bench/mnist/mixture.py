r"""A mixture of products of Bernoulli laws, fitted by expectation and maximisation.

    p(x) = sum_k w_k prod_i m_ki^x_i (1 - m_ki)^(1 - x_i)
    r_nk = w_k p(x_n | k) / p(x_n)                                      expectation
    w_k  = mean_n r_nk,   m_ki = (sum_n r_nk x_ni + a c_i) / (sum_n r_nk + a)   maximisation

with c the rates of the whole data: the mode under a Beta law of strength a about c for each rate, by
which no component forgets a pixel.

References:
    Dempster, Laird, Rubin, "Maximum likelihood from incomplete data via the EM algorithm" (1977).
    Larochelle, Murray, "The neural autoregressive distribution estimator" (2011), for its row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretk.core.devices import constant_like
from scoretk.core.streams import Stream
from scoretk.fields import NoiseSource
from scoretk.fields.discrete import DiscreteField
from scoretk.fields.protocols import drawn
from scoretk.fields.states import pick

__all__ = ["BernoulliMixture", "expectation_maximisation"]

STRENGTH = 1.0
"""a, in images."""
SPREAD = 0.25
"""How far the first rates are on the way from those of the whole data to those of an image."""
CHUNK = 5000


@dataclass(frozen=True, eq=False)
class BernoulliMixture(DiscreteField):
    """The static field of a mixture of products of Bernoulli laws; density and draws are exact.

    Args:
        log_shares: The log of w, `(k,)`, normalised.
        logits: The logits of m, `(k, *event_shape)`.
    """

    log_shares: Tensor
    logits: Tensor

    states = (0.0, 1.0)
    provides = frozenset({"energy", "score", "states", "log_prob", "draw"})

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.logits.shape[1:])

    def joint(self, x: Tensor) -> Tensor:
        """The values `log w_k + log p(x | k)`, `(batch, k)`."""
        logits = constant_like(self.logits, x).flatten(1)
        none = torch.nn.functional.softplus(logits).sum(1)
        return constant_like(self.log_shares, x) - none + x.flatten(1) @ logits.T

    def log_prob(self, x: Tensor) -> Tensor:
        """The log probability `log p(x)`, `(batch,)`."""
        return self.joint(x).logsumexp(1)

    def energy(self, x: Tensor) -> Tensor:
        """The energy `-log p(x)`, `(batch,)`."""
        return -self.log_prob(x)

    def score(self, x: Tensor) -> Tensor:
        """The score `sum_k r_k logit m_k`, like x."""
        logits = constant_like(self.logits, x).flatten(1)
        return (self.joint(x).softmax(1) @ logits).reshape(x.shape)

    def exact_log_partition(self) -> float:
        """0: the energy is normalised."""
        return 0.0

    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact draws, `(n, *event_shape)`: of a component, and then of each site."""
        u = noise.uniform(0, Stream.START, (1 + math.prod(self.event_shape),))
        k = pick(constant_like(self.log_shares, u).expand(n, -1), u[:, 0])
        rates = torch.sigmoid(constant_like(self.logits, u)[k])
        return (u[:, 1:].reshape(rates.shape) < rates).to(u)


def expectation_maximisation(
    data: Tensor, components: int, generator: torch.Generator
) -> Iterator[BernoulliMixture]:
    """The mixtures after ever more iterations, without end.

    Args:
        data: Rows of 0 and 1, `(n, *event_shape)`.
        components: The number of components k; each begins near an image of its own.
        generator: The generator that picks these.

    Yields:
        The mixture after each iteration.
    """
    rows = data.flatten(1)
    overall = (rows.sum(0) + 0.5) / (len(rows) + 1)
    picked = torch.randint(len(rows), (components,), generator=generator)
    rates = overall + SPREAD * (rows[picked] - overall)
    mixture = _mixture(overall.new_full((components,), 1 / components), rates, data)
    while True:
        held, seen = overall.new_zeros(components), torch.zeros_like(rates)
        for part in rows.split(CHUNK):
            share = mixture.joint(part).softmax(1)
            held, seen = held + share.sum(0), seen + share.T @ part
        shares = held / len(rows)
        rates = (seen + STRENGTH * overall) / (held + STRENGTH)[:, None]
        mixture = _mixture(shares, rates, data)
        yield mixture


def _mixture(shares: Tensor, rates: Tensor, data: Tensor) -> BernoulliMixture:
    logits = torch.logit(rates).unflatten(1, tuple(data.shape[1:]))
    floor = torch.finfo(shares.dtype).tiny  # a component that holds nothing
    return BernoulliMixture(shares.clamp(min=floor).log(), logits)
