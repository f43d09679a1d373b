r"""Mixtures of isotropic Gaussians, known exactly at every time of every Gaussian path.

    p(x)   = sum_k w_k N(x; m_k, s_k^2 I)
    p_t(x) = sum_k w_k N(x; alpha m_k, (alpha^2 s_k^2 + sigma^2) I)
    E[x_1 | x_t = x] = sum_k r_k(x) (m_k + alpha s_k^2 / (alpha^2 s_k^2 + sigma^2) (x - alpha m_k))

with `r_k(x)` the posterior weights of the components. Solvers are tested against them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretk.core.arguments import floats, positive
from scoretk.core.devices import constant_like, precise
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields import GaussianPath, GaussianPathField, NoiseSource, NormalBase, standard_normal
from scoretk.fields.protocols import drawn

__all__ = ["GaussianMixture", "NoisedMixture", "gaussian", "ring_mixture"]


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A mixture `sum_k w_k N(m_k, s_k^2 I)` as a static field.

    Args:
        means: m_k, `(k, *event_shape)`.
        stds: s_k, positive, `(k,)`.
        weights: Proportional to w_k, positive, `(k,)`; they are normalised.

    Raises:
        InvalidArgument: Where the shapes do not fit, or a std or a weight is not positive.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    provides = frozenset({"energy", "score", "log_prob", "draw"})

    def __post_init__(self) -> None:
        for name in ("means", "stds", "weights"):
            object.__setattr__(self, name, floats(name, getattr(self, name), "numbers"))
        k = len(self.means)
        if self.stds.shape != (k,) or self.weights.shape != (k,):
            raise InvalidArgument(
                "stds, weights", (self.stds, self.weights), f"shape ({k},), one a component"
            )
        if not bool((self.stds > 0).all() and (self.weights > 0).all()):
            raise InvalidArgument("stds, weights", (self.stds, self.weights), "positive numbers")
        object.__setattr__(self, "weights", self.weights / self.weights.sum())

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.means.shape[1:])

    def log_prob(self, x: Tensor) -> Tensor:
        """Normalised log density, `(batch,)`."""
        return self._log_prob(x, *self._components(x))

    def energy(self, x: Tensor) -> Tensor:
        """The energy `-log p(x)`, `(batch,)`."""
        return -self.log_prob(x)

    def score(self, x: Tensor) -> Tensor:
        """The score `grad log p(x)`, like x."""
        return self._score(x, *self._components(x))

    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact samples `m_k + s_k z` with k drawn by the weights, `(n, *event_shape)`."""
        u = noise.uniform(0, Stream.START, (), torch.float64)
        k = (u[:, None] > constant_like(self.weights, u).cumsum(0)[:-1]).sum(1)
        z = noise.normal(0, Stream.START, self.event_shape)
        return (
            constant_like(self.means, z)[k]
            + constant_like(self.stds, z)[k].reshape(-1, *[1] * (z.ndim - 1)) * z
        )

    def noised(self, path: GaussianPath) -> NoisedMixture:
        """The exact timed field of this density on a Gaussian path."""
        return NoisedMixture(self, path)

    # Only what is asked for is computed: a mixture is so small that the cost of a solver's step on it
    # is given by the number of operations.

    def _components(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The means `(1, k, d)` and the variances `(1, k)` of the components, in the dtype of x."""
        flat = (1, len(self.means), math.prod(self.event_shape))
        return constant_like(self.means, x).reshape(flat), constant_like(self.stds, x).square()[
            None
        ]

    def _noised_components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The components of `alpha x_1 + sigma z`, with alpha and sigma scalars or one value a row.

        Returns:
            Their means `(batch or 1, k, d)` and their variances `(batch or 1, k)`.
        """
        means, s2 = self._components(x)
        a, s = alpha.reshape(-1, 1), sigma.reshape(-1, 1)
        return a[..., None] * means, a**2 * s2 + s**2

    def _logits(self, x: Tensor, means: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """The terms `log w_k N(x; m_k, v_k I)`, `(batch, k)`, and `x - m_k`, `(batch, k, d)`."""
        d = means.shape[-1]
        off = x.reshape(-1, 1, d) - means
        logits = constant_like(self.weights, x).log() - off.square().sum(-1) / (2 * variance)
        return logits - d / 2 * torch.log(2 * math.pi * variance), off

    def _log_prob(self, x: Tensor, means: Tensor, variance: Tensor) -> Tensor:
        return torch.logsumexp(self._logits(x, means, variance)[0], 1)

    def _score(self, x: Tensor, means: Tensor, variance: Tensor) -> Tensor:
        logits, off = self._logits(x, means, variance)
        shares = torch.softmax(logits, 1)[..., None]
        return -(shares * off / variance[..., None]).sum(1).reshape(x.shape)

    def _denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The denoiser `E[x_1 | x]`, like x; alpha and sigma are scalars or one value a row."""
        means, s2 = self._components(x)
        a, s = alpha.reshape(-1, 1), sigma.reshape(-1, 1)
        variance = a**2 * s2 + s**2
        logits, off = self._logits(x, a[..., None] * means, variance)
        shares = torch.softmax(logits, 1)[..., None]
        moves = (a * s2 / variance)[..., None]  # how E[x_1 | x] of each component goes with x
        return (shares * (means + moves * off)).sum(1).reshape(x.shape)


@dataclass(frozen=True, eq=False)
class NoisedMixture(GaussianPathField):
    """The exact timed field of a mixture on a Gaussian path, also where alpha or sigma is 0."""

    mixture: GaussianMixture
    path: GaussianPath
    predicts: str = "data"

    provides = frozenset({"denoise", "score", "velocity", "base"})

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.mixture.event_shape

    @property
    def base(self) -> NormalBase:
        """The law at t = 0, N(0, sigma(0)^2 I)."""
        return standard_normal(self.event_shape, float(self.path.sigma(0.0)))

    # without conditions, by their signatures: beside a field that takes some it is not handed them

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:  # type: ignore[override]
        """The denoiser `E[x_1 | x_t = x]`, like x."""
        return self.mixture._denoise(x, *self._at(x, t))

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:  # type: ignore[override]
        """The score `grad log p_t(x)`, like x."""
        return self.mixture._score(x, *self._noised(x, t))

    def log_prob_at(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The log density `log p_t(x)`, `(batch,)`."""
        return self.mixture._log_prob(x, *self._noised(x, t))

    def _at(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """The path's alpha and sigma at t in the dtype of x, computed in float64."""
        exact = precise(t)
        return self.path.alpha(exact).to(x), self.path.sigma(exact).to(x)

    def _noised(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        return self.mixture._noised_components(x, *self._at(x, t))


def ring_mixture(components: int = 8, radius: float = 2.0, std: float = 0.25) -> GaussianMixture:
    """Equal Gaussians on a circle in the plane, by default 8 of std 0.25 at radius 2."""
    positive("radius", radius)
    positive("std", std)
    angle = 2 * math.pi * torch.arange(components, dtype=torch.float64) / components
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(means, torch.full((components,), std), torch.ones(components))


def gaussian(
    dim: int = 2, mean: float | Sequence[float] = 0.0, std: float = 1.0
) -> GaussianMixture:
    """The Gaussian N(mean, std^2 I) in `dim` dimensions."""
    positive("std", std)
    center = torch.as_tensor(mean, dtype=torch.float64).expand(dim)
    return GaussianMixture(center[None].clone(), torch.tensor([std]), torch.ones(1))
