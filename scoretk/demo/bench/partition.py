r"""Targets whose log Z is known, by a closed formula or a sum in one dimension.

For the Ising model on a torus of L x L spins, `E = -K sum s s'`, with
`cosh g_k = cosh 2K coth 2K - cos(pi k / L)` and `g_0 = 2K + log tanh K`,

    Z = (2 sinh 2K)^(L^2 / 2) / 2 (C_odd + S_odd + C_even + S_even),
    C = prod_k 2 cosh(L g_k / 2),    S = prod_k 2 sinh(L g_k / 2)

over the odd and the even k below 2L.

References:
    Kaufman, "Crystal statistics II: partition function evaluated by spinor analysis" (1949).
    Noé, Olsson, Köhler, Wu, "Boltzmann generators" (2019), for wells of this kind; Midgley and
    others, "Flow annealed importance sampling bootstrap" (2023), for the many of them.
    Zhang, Chen, "Path integral sampler" (2022), for the 25 Gaussians.
    Midgley and others again for the 40: `fab-torch`, `fab/target_distributions/gmm.py`, as its
    experiments make them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from scoretk.demo.bench.target import Target
from scoretk.models.targets.analytic import Funnel
from scoretk.models.targets.lattices import Ising
from scoretk.models.targets.mixture import GaussianMixture

__all__ = [
    "ManyWell",
    "funnel",
    "gaussians",
    "gaussians_40",
    "ising_8",
    "ising_16",
    "ising_16_cold",
    "ising_16_warm",
    "ising_24",
    "ising_32",
    "kaufman",
    "many_well",
]

CRITICAL = math.log(1 + math.sqrt(2)) / 2
"""The coupling of the transition on an infinite lattice."""


@dataclass(frozen=True)
class ManyWell:
    """Pairs of a double well and a normal: `E = sum x^4 - 6 x^2 - x / 2 + y^2 / 2`, x and y in turns."""

    pairs: int = 16

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (2 * self.pairs,)

    def energy(self, x: Tensor) -> Tensor:
        """The energy, `(batch,)`."""
        well, rest = x[:, ::2], x[:, 1::2]
        return (well**4 - 6 * well.square() - well / 2 + rest.square() / 2).sum(1)


def many_well(data: Path | None) -> Target:
    """`ManyWell` of 32 coordinates, 2^16 modes: one well by a sum over a fine grid."""
    field = ManyWell()
    x = torch.linspace(-6, 6, 4801, dtype=torch.float64)
    well = float((x / 2 + 6 * x.square() - x**4).logsumexp(0)) + math.log(12 / 4800)
    log_z = field.pairs * (well + math.log(2 * math.pi) / 2)
    return Target("many-well", field, log_z=log_z)


def funnel(data: Path | None) -> Target:
    """Neal's funnel of ten coordinates: `log Z = d / 2 log 2 pi + log 3`."""
    field = Funnel()
    return Target(
        "funnel-10", field, log_z=field.dim / 2 * math.log(2 * math.pi) + math.log(field.scale)
    )


def gaussians(data: Path | None) -> Target:
    """25 normals of variance .3 at the places {-10, -5, 0, 5, 10}^2, normalised."""
    along = torch.linspace(-10, 10, 5, dtype=torch.float64)
    means = torch.cartesian_prod(along, along)
    field = GaussianMixture(means, means.new_full((25,), math.sqrt(0.3)), means.new_ones(25))
    return Target("gaussians-25", field, log_z=0.0)


def gaussians_40(data: Path | None) -> Target:
    """40 normals, their means uniform in [-40, 40]^2 by torch's generator at seed 0, normalised.

    The literature's: in float32, standard deviations softplus(1). So many modes are out of sight of
    where chains start; the literature tells its methods the scale, N(0, 40^2 I).
    """
    generator = torch.Generator().manual_seed(0)
    means = ((torch.rand(40, 2, generator=generator) - 0.5) * 2 * 40).double()
    std = math.log1p(math.e)
    field = GaussianMixture(means, means.new_full((40,), std), means.new_ones(40))
    wide = Independent(Normal(torch.zeros(2), torch.full((2,), 40.0)), 1)
    return Target("gaussians-40", field, log_z=0.0, base=wide)


def kaufman(size: int, coupling: float) -> float:
    """The log Z of the Ising model on a torus, see the module's docstring.

    Args:
        size: L.
        coupling: K, positive.
    """
    wave = torch.arange(2 * size, dtype=torch.float64) * math.pi / size
    gamma = torch.acosh(math.cosh(2 * coupling) / math.tanh(2 * coupling) - wave.cos())
    gamma[0] = 2 * coupling + math.log(math.tanh(coupling))
    half = size * gamma / 2
    logs, signs = [], []
    for parity in (half[1::2], half[::2]):
        for value in (2 * parity.cosh(), 2 * parity.sinh()):
            logs.append(value.abs().log().sum())
            signs.append(value.sign().prod())
    largest = torch.stack(logs).max()
    total = (torch.stack(signs) * (torch.stack(logs) - largest).exp()).sum()
    front = size**2 / 2 * math.log(2 * math.sinh(2 * coupling)) - math.log(2)
    return front + float(largest + total.log())


def _ising(name: str, size: int, coupling: float) -> Target:
    return Target(name, Ising(size, coupling), log_z=kaufman(size, coupling))


def ising_8(data: Path | None) -> Target:
    """8 x 8 spins at the transition."""
    return _ising("ising-8", 8, CRITICAL)


def ising_16(data: Path | None) -> Target:
    """16 x 16 spins at the transition."""
    return _ising("ising-16", 16, CRITICAL)


def ising_16_warm(data: Path | None) -> Target:
    """16 x 16 spins, hotter than the transition."""
    return _ising("ising-16-warm", 16, 0.28)


def ising_16_cold(data: Path | None) -> Target:
    """16 x 16 spins, colder than the transition."""
    return _ising("ising-16-cold", 16, 0.6)


def ising_24(data: Path | None) -> Target:
    """24 x 24 spins at the transition."""
    return _ising("ising-24", 24, CRITICAL)


def ising_32(data: Path | None) -> Target:
    """32 x 32 spins at the transition."""
    return _ising("ising-32", 32, CRITICAL)
