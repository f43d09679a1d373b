r"""Inverse problems whose posteriors are known: normals, seen by a linear measurement.

The prior is N(0, I), or has 25 components N(m_k, s^2 I) of random weights, their means on a square that all pairs of
coordinates share, scaled so that coordinates have variances near 1. Seen is `y = A x + r e` of a draw
x, with A of normal entries of variance 1 / d. With `S = s^2 A A^T + r^2 I` and `G = s^2 A^T S^-1` the
posterior is a mixture again,

    weights  w_k N(y; A m_k, S),    means  m_k + G (y - A m_k),    covariance  s^2 (I - G A)

whose weights sum to p(y). How far a sampler is from it is the sliced Wasserstein distance to exact draws,
of which another set is the *floor*.

Whether it is right on the whole, and not on some measurements alone, calibration says: of truths x_i of the
prior and their measurements y_i, each truth among a few draws of the sampler given y_i. Ranks are of all
coordinates and of the log likelihood (SBC), and of the distance from the least-squares estimate A^+ y
(TARP), so that a sampler that ignores y is seen too (`scoretk.diagnostics.calibration`).

References:
    Talts, Betancourt, Simpson, Vehtari, Gelman, "Validating Bayesian inference algorithms with
    simulation-based calibration" (2018).
    Lemos, Coogan, Hezaveh, Perreault-Levasseur, "Sampling-based accuracy testing of posterior
    estimators for general inference" (2023).
    Cardoso, Janati El Idrissi, Le Corff, Moulines, "Monte Carlo guided denoising diffusion models for
    Bayesian linear inverse problems" (2024), for the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from scoretk.core.noise import derive
from scoretk.diagnostics.calibration import sbc_test, tarp_test
from scoretk.diagnostics.distances import sliced_wasserstein
from scoretk.fields.operators import LinearGaussian, Matrix
from scoretk.fields.paths import VP
from scoretk.fields.posterior import POSTERIOR_METHODS, posterior
from scoretk.inference.partition import log_evidence
from scoretk.inference.sampling import sample
from scoretk.models.targets.mixture import GaussianMixture
from scoretk.solvers import DAPS, ReverseSDE, SplitGibbs, TwistedSMC

__all__ = [
    "CONTESTANTS",
    "PROBLEMS",
    "Calibration",
    "Distances",
    "Problem",
    "calibrated",
    "calibration",
    "distances",
]

DRAWS, NOISE = 1024, 0.1
RANKED, ISLAND, PERMUTATIONS = 15, 256, 4000
"""Draws for each truth; chains that are resampled together, of which these are some; permutations."""
STD = 1 / math.sqrt(128)
"""The standard deviation of a component: 1 where means are 8 apart."""
PROBLEMS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "gaussian-8": (8, 2, 1),
        "mixture-2": (2, 1, 25),
        "mixture-8": (8, 1, 25),
        "mixture-80": (80, 4, 25),
    }
)
"""Coordinates, measurements and components of the prior."""
CONTESTANTS: Mapping[str, tuple[Any, str | None]] = MappingProxyType(
    {
        **{name: (ReverseSDE("ancestral", 200), name) for name in POSTERIOR_METHODS},
        "twisted-mmps": (TwistedSMC(200, island=DRAWS), "mmps"),
        "twisted-dps": (TwistedSMC(200, island=DRAWS), "dps"),
        "split-gibbs": (SplitGibbs(sweeps=40, steps=5), None),
        "daps": (DAPS(40, steps=5), None),
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
    def made(dim: int, measurements: int, components: int, seed: int) -> Problem:
        """One of the table's kind.

        Args:
            dim: d, even.
            measurements: m.
            components: 25, or 1 for N(0, I).
            seed: Of weights, operator and measurement.
        """
        generator = torch.Generator().manual_seed(seed)

        def normals(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        along = torch.linspace(-2, 2, 5, dtype=torch.float64) / math.sqrt(2)
        std, places = (STD, along) if components > 1 else (1.0, torch.zeros_like(along[:1]))
        means = torch.cartesian_prod(places, places).repeat(1, dim // 2)
        weights = 0.1 + torch.rand(len(means), generator=generator, dtype=torch.float64)
        operator = normals(measurements, dim) / math.sqrt(dim)
        drawn = int(torch.multinomial(weights, 1, generator=generator))
        x = means[drawn] + std * normals(dim)
        y = operator @ x + NOISE * normals(measurements)
        prior = GaussianMixture(means, means.new_full((len(means),), std), weights)
        return Problem(prior, operator, y, NOISE)

    def simulated(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Truths of the prior `(n, d)`, and what is measured of each `(n, m)`."""
        generator = torch.Generator().manual_seed(seed)
        means, (m, d) = self.prior.means, self.operator.shape
        which = torch.multinomial(self.prior.weights, n, True, generator=generator)
        z = torch.randn(n, d + m, generator=generator, dtype=means.dtype)
        x = means[which] + self.prior.stds[0] * z[:, :d]
        return x, x @ self.operator.T + self.noise * z[:, d:]

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


@dataclass(frozen=True)
class Calibration:
    """How likely ranks as uneven as a contestant's are where it is right.

    Args:
        sbc: The p-value of simulation-based calibration.
        tarp: That of tests of accuracy with random points.
    """

    sbc: float
    tarp: float


def calibration(problem: str, contestant: str, simulations: int, seed: int = 0) -> Calibration:
    """Hold a contestant to truths of the prior.

    Args:
        problem: A name in `PROBLEMS`.
        contestant: A name in `CONTESTANTS`.
        simulations: How many truths.
        seed: From which those of the problem, of truths and of draws are derived.
    """
    solver, method = CONTESTANTS[contestant]
    made = Problem.made(*PROBLEMS[problem], derive(seed, 0))
    truth, y = made.simulated(simulations, derive(seed, 0, 4))
    weighs = isinstance(solver, TwistedSMC)
    each = ISLAND if weighs else RANKED
    draws = sample(
        posterior(
            made.prior.noised(VP()), LinearGaussian(Matrix(made.operator), "y", made.noise), method
        ),
        replace(solver, island=each) if weighs else solver,
        simulations * each,
        seed=derive(seed, 0, 5),
        keep="last",
        cond={"y": y.repeat_interleave(each, 0)},
        dtype=torch.float64,
        progress=False,
    )
    shown = draws.final.reshape(simulations, each, -1)[:, :: each // RANKED][:, :RANKED]
    return calibrated(made, truth, y, shown, seed)


def calibrated(
    problem: Problem, truth: Tensor, y: Tensor, draws: Tensor, seed: int = 0
) -> Calibration:
    """The p-values of both tests.

    Args:
        problem: The problem, whose own measurement does not matter.
        truth: Draws of the prior, `(n, d)`.
        y: What was measured of each, `(n, m)`.
        draws: Independent draws given each, `(n, L, d)`.
        seed: Of ties and permutations.
    """

    def with_likelihood(x: Tensor, y: Tensor) -> Tensor:
        missed = (y - x @ problem.operator.T).square().sum(-1, keepdim=True)
        return torch.cat([x, -missed], -1)

    sbc = sbc_test(
        with_likelihood(truth, y),
        with_likelihood(draws, y[:, None]),
        permutations=PERMUTATIONS,
        seed=seed,
    )
    estimate = y @ torch.linalg.pinv(problem.operator).T
    tarp = tarp_test(truth, draws, references=estimate, permutations=PERMUTATIONS, seed=seed)
    return Calibration(sbc.p_value, tarp.p_value)
