r"""Inverse problems whose posteriors are known: a mixture of normals, seen by a linear measurement.

The prior has 25 components N(m_k, s^2 I) of random weights, their means on a square that all pairs of
coordinates share, scaled so that coordinates have variances near 1. Seen is `y = A x + r e` of a draw
x, with A of normal entries of variance 1 / d. With `S = s^2 A A^T + r^2 I` and `G = s^2 A^T S^-1` the
posterior is a mixture again,

    weights  w_k N(y; A m_k, S),    means  m_k + G (y - A m_k),    covariance  s^2 (I - G A)

whose weights sum to p(y). How far a sampler is from it is the sliced Wasserstein distance to exact draws,
of which another set is the *floor*.

References:
    Cardoso, Janati El Idrissi, Le Corff, Moulines, "Monte Carlo guided denoising diffusion models for
    Bayesian linear inverse problems" (2024), for the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from scoretk.core.noise import derive
from scoretk.diagnostics.distances import sliced_wasserstein
from scoretk.fields.operators import LinearGaussian, Matrix
from scoretk.fields.paths import VP
from scoretk.fields.posterior import posterior
from scoretk.inference.partition import log_evidence
from scoretk.inference.sampling import sample
from scoretk.models.targets.mixture import GaussianMixture
from scoretk.solvers import ReverseSDE, TwistedSMC

__all__ = ["CONTESTANTS", "PROBLEMS", "Distances", "Problem", "distances"]

DRAWS, NOISE = 1024, 0.1
STD = 1 / math.sqrt(128)
"""The standard deviation of a component: 1 where means are 8 apart."""
PROBLEMS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"mixture-2": (2, 1), "mixture-8": (8, 1), "mixture-80": (80, 4)}
)
"""Coordinates and measurements."""
CONTESTANTS: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        **{name: (ReverseSDE("ancestral", 200), name) for name in ("mmps", "pigdm", "dps")},
        "replacement": (ReverseSDE("ancestral", 200), "replacement"),
        "twisted-mmps": (TwistedSMC(200, island=DRAWS), "mmps"),
        "twisted-dps": (TwistedSMC(200, island=DRAWS), "dps"),
    }
)
"""Solvers and methods, all with as many evaluations."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A prior and what was measured.

    Args:
        prior: Components of one standard deviation.
        operator: A, `(m, d)`.
        y: The measurement, `(m,)`.
        noise: r.
    """

    prior: GaussianMixture
    operator: Tensor
    y: Tensor
    noise: float

    @staticmethod
    def made(dim: int, measurements: int, seed: int) -> Problem:
        """One of the table's kind.

        Args:
            dim: d, even.
            measurements: m.
            seed: Of weights, operator and measurement.
        """
        generator = torch.Generator().manual_seed(seed)

        def normals(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        along = torch.linspace(-2, 2, 5, dtype=torch.float64) / math.sqrt(2)
        means = torch.cartesian_prod(along, along).repeat(1, dim // 2)
        weights = 0.1 + torch.rand(25, generator=generator, dtype=torch.float64)
        operator = normals(measurements, dim) / math.sqrt(dim)
        drawn = int(torch.multinomial(weights, 1, generator=generator))
        x = means[drawn] + STD * normals(dim)
        y = operator @ x + NOISE * normals(measurements)
        prior = GaussianMixture(means, means.new_full((25,), STD), weights)
        return Problem(prior, operator, y, NOISE)

    def exact(self, n: int, seed: int) -> tuple[Tensor, float]:
        """Draws of the posterior `(n, d)`, and log p(y)."""
        generator = torch.Generator().manual_seed(seed)
        prior, a, variance = self.prior, self.operator, float(self.prior.stds[0]) ** 2
        seen = variance * a @ a.T + self.noise**2 * torch.eye(len(a), dtype=a.dtype)
        gain = variance * torch.linalg.solve(seen, a).T
        residual = self.y - prior.means @ a.T
        log_weight = (
            (prior.weights / prior.weights.sum()).log()
            - (residual * torch.linalg.solve(seen, residual.T).T).sum(1) / 2
            - torch.logdet(2 * math.pi * seen) / 2
        )
        covariance = variance * (torch.eye(a.shape[1], dtype=a.dtype) - gain @ a)
        root = torch.linalg.cholesky((covariance + covariance.T) / 2)
        which = torch.multinomial(log_weight.softmax(0), n, True, generator=generator)
        z = torch.randn(n, a.shape[1], generator=generator, dtype=a.dtype)
        means = prior.means + residual @ gain.T
        return means[which] + z @ root.T, float(log_weight.logsumexp(0))


@dataclass(frozen=True)
class Distances:
    """What a contestant reached on some problems of a kind.

    Args:
        found: The sliced Wasserstein distance of its draws to exact ones, one a problem.
        floor: That of other exact draws.
        z: The errors of log p(y) in their own standard errors, empty where it is not asked.
    """

    found: tuple[float, ...]
    floor: tuple[float, ...]
    z: tuple[float, ...]


def distances(problem: str, contestant: str, count: int, seed: int = 0) -> Distances:
    """Hold a contestant to exact posteriors.

    Args:
        problem: A name in `PROBLEMS`.
        contestant: A name in `CONTESTANTS`.
        count: How many problems.
        seed: From which those of the problems and of draws are derived.
    """
    solver, method = CONTESTANTS[contestant]
    found, floor, z = [], [], []
    for i in range(count):
        made = Problem.made(*PROBLEMS[problem], derive(seed, i))
        exact, log_evidence_of_y = made.exact(DRAWS, derive(seed, i, 1))
        field = posterior(
            made.prior.noised(VP()),
            LinearGaussian(Matrix(made.operator), made.y, made.noise),
            method,
        )
        draws = sample(
            field,
            solver,
            DRAWS,
            seed=derive(seed, i, 2),
            keep="last",
            dtype=torch.float64,
            progress=False,
        )
        found.append(sliced_wasserstein(exact, draws.final))
        floor.append(sliced_wasserstein(exact, made.exact(DRAWS, derive(seed, i, 3))[0]))
        if isinstance(solver, TwistedSMC):
            told = log_evidence(draws)
            z.append((float(told.value) - log_evidence_of_y) / float(told.stderr))
    return Distances(tuple(found), tuple(floor), tuple(z))
