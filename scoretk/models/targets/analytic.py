"""Static targets with known answers: a funnel, a semicircle with an edge, and eight schools."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from scoretk.core.arguments import counts, positive
from scoretk.core.devices import constant_like
from scoretk.core.streams import Stream
from scoretk.fields import NoiseSource, Variable
from scoretk.fields.protocols import drawn
from scoretk.fields.variables import Derived, variables_of

__all__ = [
    "EightSchools",
    "Funnel",
    "Schools",
    "Semicircle",
    "eight_schools",
    "funnel",
    "semicircle",
]


@dataclass(frozen=True)
class Funnel:
    """Neal's funnel: `x_0 ~ N(0, scale^2)`, the others `N(0, exp(x_0))`.

    Args:
        dim: The number of coordinates, at least 2.
        scale: The standard deviation of x_0, above 0.

    References:
        Neal, "Slice sampling" (2003).
    """

    dim: int = 10
    scale: float = 3.0

    provides = frozenset({"energy", "log_prob", "draw"})

    def __post_init__(self) -> None:
        counts(self, dim=2)
        positive("scale", self.scale)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def energy(self, x: Tensor) -> Tensor:
        """The energy `x_0^2 / (2 scale^2) + exp(-x_0) |x_rest|^2 / 2 + (d - 1) x_0 / 2`, `(batch,)`."""
        neck, rest = x[:, 0], x[:, 1:]
        spread = torch.exp(-neck) * rest.square().sum(1)
        return neck.square() / (2 * self.scale**2) + spread / 2 + (self.dim - 1) * neck / 2

    def log_prob(self, x: Tensor) -> Tensor:
        """Normalised log density, `(batch,)`."""
        return -self.energy(x) - self.dim / 2 * math.log(2 * math.pi) - math.log(self.scale)

    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact samples, `(n, dim)`."""
        z = noise.normal(0, Stream.START, (self.dim,))
        neck = self.scale * z[:, :1]
        return torch.cat([neck, torch.exp(neck / 2) * z[:, 1:]], 1)


@dataclass(frozen=True)
class Semicircle:
    """The semicircle law, `p(x) = 2/pi sqrt(1 - x^2)` on (-1, 1).

    Outside the energy is NaN, as it is for many hand-written targets.
    """

    provides = frozenset({"energy", "log_prob", "draw"})

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (1,)

    def energy(self, x: Tensor) -> Tensor:
        """The energy `-log(1 - x^2) / 2`, `(batch,)`; NaN outside (-1, 1)."""
        return -torch.log1p(-x[:, 0].square()) / 2

    def log_prob(self, x: Tensor) -> Tensor:
        """Normalised log density, `(batch,)`; NaN outside (-1, 1)."""
        return math.log(2 / math.pi) - self.energy(x)

    def initial(self, n: int, noise: NoiseSource) -> Tensor:
        """Starts away from the edges, where gradients are infinite: uniform on (-1/2, 1/2), `(n, 1)`."""
        return noise.uniform(0, Stream.START, (1,)) - 0.5

    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact samples: the first coordinate of a uniform point of the disc, `(n, 1)`."""
        u = noise.uniform(0, Stream.START, (2,))
        return u[:, :1].sqrt() * torch.cos(2 * math.pi * u[:, 1:])


class Schools(NamedTuple):
    """The model's own parameters: mu and tau `(batch,)`, theta `(batch, 8)`."""

    mu: Tensor
    tau: Tensor
    theta: Tensor


@dataclass(frozen=True)
class EightSchools:
    """Eight schools, non-centred, in unconstrained coordinates `x = (mu, log tau, theta_raw_1..8)`.

        y_j ~ N(theta_j, s_j^2),    theta = mu + tau theta_raw
        theta_raw ~ N(0, 1),    mu ~ N(0, 5^2),    tau ~ half-Cauchy(5)

    References:
        Rubin, "Estimation in parallel randomized experiments" (1981), whose data these are.
    """

    provides = frozenset({"energy"})

    effects = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
    errors = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
    _effects, _errors = (torch.tensor(v, dtype=torch.float64) for v in (effects, errors))

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (10,)

    @property
    def variables(self) -> Derived:
        """The names of the parameters: draws["tau"]."""
        return _SCHOOLS

    def parameters(self, x: Tensor) -> Schools:
        """The parameters mu, tau and theta at positions `(..., 10)`."""
        mu, tau = x[..., 0], x[..., 1].exp()
        return Schools(mu, tau, mu[..., None] + tau[..., None] * x[..., 2:])

    def energy(self, x: Tensor) -> Tensor:
        """The negative log posterior up to a constant, `(batch,)`.

        It includes the Jacobian of `tau = exp(x_1)`.
        """
        mu, tau, theta = self.parameters(x)
        standard = (constant_like(self._effects, x) - theta) / constant_like(self._errors, x)
        likelihood = standard.square().sum(-1) / 2
        prior = mu.square() / 50 + torch.log1p(tau.square() / 25) + x[..., 2:].square().sum(-1) / 2
        return likelihood + prior - x[..., 1]


def _at(mu: Tensor, tau: Tensor, theta: Tensor) -> Tensor:
    """The position of these parameters: the inverse of `EightSchools.parameters`."""
    raw = (theta - mu[..., None]) / tau[..., None]
    return torch.cat([mu[..., None], tau.log()[..., None], raw], -1)


_SCHOOLS = Derived(
    variables_of(
        {
            "mu": (),
            "tau": constraints.positive,
            "theta": Variable((8,), dims="school", coords={"school": list("ABCDEFGH")}),
        }
    ),
    of=lambda x: EightSchools().parameters(x)._asdict(),
    at=_at,
)


def funnel(dim: int = 10, scale: float = 3.0) -> Funnel:
    """Neal's funnel."""
    return Funnel(dim, scale)


def semicircle() -> Semicircle:
    """The semicircle law."""
    return Semicircle()


def eight_schools() -> EightSchools:
    """The eight-schools posterior."""
    return EightSchools()
