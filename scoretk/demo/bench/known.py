"""Targets whose moments are known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoretk.demo.bench.published import BANANA, BIMODAL, FUNNEL, ILL_CONDITIONED, ROSENBROCK
from scoretk.demo.bench.target import Moments, Target
from scoretk.models.targets.analytic import Funnel

__all__ = ["Banana", "Rosenbrock", "banana", "bimodal", "funnel", "ill_conditioned", "rosenbrock"]


@dataclass(frozen=True)
class Banana:
    """A bent normal: `x_0 ~ N(0, 100), x_1 ~ N(.03 (x_0^2 - 100), 1)`.

    References:
        Haario, Saksman, Tamminen, "Adaptive proposal distribution for random walk Metropolis
        algorithm" (1999).
    """

    event_shape = (2,)

    def energy(self, x: Tensor) -> Tensor:
        """The energy, `(batch,)`."""
        bend = x[:, 1] - 0.03 * (x[:, 0].square() - 100)
        return x[:, 0].square() / 200 + bend.square() / 2


@dataclass(frozen=True)
class Rosenbrock:
    """Independent pairs `x_i ~ N(1, 1), y_i ~ N(x_i^2, .1)`, all x before all y."""

    pairs: int = 18

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (2 * self.pairs,)

    def energy(self, x: Tensor) -> Tensor:
        """The energy, `(batch,)`."""
        first, second = x[:, : self.pairs], x[:, self.pairs :]
        valley = (second - first.square()).square() / 0.1
        return ((first - 1).square() + valley).sum(1) / 2


@dataclass(frozen=True)
class Bimodal:
    """Two normals, `3/4 N(0, I) + 1/4 N(4 e_0, .6^2 I)`."""

    dim: int = 50

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def energy(self, x: Tensor) -> Tensor:
        """The energy, `(batch,)`."""
        shifted = torch.cat([x[:, :1] - 4, x[:, 1:]], 1)
        wide = math.log(0.75) - x.square().sum(1) / 2
        narrow = math.log(0.25) - shifted.square().sum(1) / (2 * 0.36) - self.dim * math.log(0.6)
        return -torch.logaddexp(wide, narrow)


@dataclass(frozen=True)
class Normal:
    """A centred normal with these variances, `(d,)`."""

    variance: Tensor

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.variance.shape)

    def energy(self, x: Tensor) -> Tensor:
        """The energy, `(batch,)`."""
        return (x.square() / self.variance.to(x)).sum(1) / 2


def _exact(mean_square: list[float], var_square: list[float]) -> Moments:
    return Moments(_row(mean_square), _row(var_square), "exact")


def _row(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def banana(data: Path | None) -> Target:
    """`Banana`: E x_1^2 = 1 + .0009 Var x_0^2, and x_1 has the fourth moment 4971."""
    return Target("banana", Banana(), _exact([100, 19], [20000, 4971 - 19**2]), BANANA)


def rosenbrock(data: Path | None) -> Target:
    """`Rosenbrock`: E y^2 = E x^4 + .1 = 10.1, E y^4 = E x^8 + .6 E x^4 + .03 = 770.03."""
    field = Rosenbrock()
    means, variances = [2.0] * field.pairs, [6.0] * field.pairs
    means += [10.1] * field.pairs
    variances += [770.03 - 10.1**2] * field.pairs
    return Target("rosenbrock", field, _exact(means, variances), ROSENBROCK)


def bimodal(data: Path | None) -> Target:
    """`Bimodal`: moments of a mixture of normals."""
    field, weight, centre, var = Bimodal(), 0.25, 4.0, 0.6**2
    second = [1 - weight + weight * (c**2 + var) for c in (centre, 0.0)]
    fourth = [
        3 * (1 - weight) + weight * (c**4 + 6 * c**2 * var + 3 * var**2) for c in (centre, 0.0)
    ]
    spread = [four - two**2 for two, four in zip(second, fourth, strict=True)]
    means, variances = (v[:1] + v[1:] * (field.dim - 1) for v in (second, spread))
    return Target("bimodal", field, _exact(means, variances), BIMODAL)


def ill_conditioned(data: Path | None) -> Target:
    """A normal of 100 dimensions, its variances from .1 to 10, evenly in their logarithm."""
    variance = torch.logspace(-1, 1, 100, dtype=torch.float64)
    truth = Moments.gaussian(variance, "exact")
    return Target("ill-conditioned", Normal(variance), truth, ILL_CONDITIONED)


def funnel(data: Path | None) -> Target:
    """Neal's funnel, 20 coordinates, judged where it is standard normal: x_0 / 3, x_i e^(-x_0/2)."""
    field = Funnel(dim=20)
    truth = Moments.gaussian(torch.ones(20, dtype=torch.float64), "exact", _straightened)
    return Target("funnel-20", field, truth, FUNNEL)


def _straightened(x: Tensor) -> Tensor:
    return torch.cat([x[:, :1] / 3, x[:, 1:] * (-x[:, :1] / 2).exp()], 1)
