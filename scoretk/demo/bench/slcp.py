r"""A simple likelihood with a complex posterior (SLCP), and exact draws of it.

Parameters theta ~ U(-3, 3)^5 are the mean and the covariance of four points of the plane, side by side in x:

    x_1 .. x_4 ~ N((theta_1, theta_2), C),    C_11 = theta_3^4 + e,    C_22 = theta_4^4 + e,
    C_12 = tanh(theta_5) theta_3^2 theta_4^2,    e = 1e-6

Given x, with the points' mean m and their scatter S = sum_i (x_i - m)(x_i - m)^T, the posterior is

    p(theta_3, theta_4, theta_5 | x)  ~  |C|^(-3/2) exp(-tr(C^-1 S) / 2),
    (theta_1, theta_2) | C, x  ~  N(m, C / 4),

both within the square: draws of the means outside of it are dropped, and C with them. The signs of theta_3 and
theta_4 are free, four modes. What is left has three coordinates, and is drawn by cells of a grid, evenly within a cell, with a
rejection that makes up for what the density changes there (`LARGEST` times that of the centre at most). The grid is even in
asinh(theta_3 / .02), as scales go over decades; it is made again of the part that has all but `LEAST` of the mass,
so that cells are small where the posterior is narrow.

References:
    Papamakarios, Sterratt, Murray, "Sequential neural likelihood" (2019).
    Lueckmann, Boelts, Greenberg, Gonçalves, Macke, "Benchmarking simulation-based inference" (2021), for
    the task; its `sbibm/tasks/slcp/task.py` has e.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["slcp", "slcp_exact"]

SIDE, POINTS = 3.0, 4
JITTER = 1e-6
LINEAR = 0.02
"""Below this scales are even on the grid, above their logarithms."""
CELLS = 96
LEAST = 1e-9
ZOOMS = 2
LARGEST = 3.0
LEAST_TRIES = 1024
"""So many at a time at least, of which some hundredths may be kept."""


def slcp(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Parameters of the prior and their simulations: `(n, 5)` and `(n, 8)`, float64.

    Args:
        n: How many.
        generator: The source of randomness.
    """
    theta = SIDE * (2 * torch.rand(n, 5, generator=generator, dtype=torch.float64) - 1)
    z = torch.randn(n, POINTS, 2, generator=generator, dtype=torch.float64)
    return theta, (theta[:, None, :2] + _spread(z, theta)).flatten(1)


def slcp_exact(x: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draws of the posterior, `(n, 5)`.

    Args:
        x: A simulation, `(8,)`.
        n: How many.
        generator: The source of randomness.
    """
    points = x.reshape(POINTS, 2)
    mean = points.mean(0)
    scatter = (points - mean).T @ (points - mean)
    edges = _edges(scatter)
    total = _cells(edges, scatter)[0].flatten().exp().cumsum(0)
    kept, tries = list[Tensor](), max(n, LEAST_TRIES)
    while sum(map(len, kept)) < n:
        shape = torch.Size(len(e) - 1 for e in edges)
        drawn = torch.rand(tries, generator=generator, dtype=torch.float64) * total[-1]
        cell = torch.unravel_index(torch.searchsorted(total, drawn), shape)
        low, high = (
            torch.stack([e[i + k] for e, i in zip(edges, cell, strict=True)], 1) for k in (0, 1)
        )
        share = torch.rand(tries, 3, generator=generator, dtype=torch.float64)
        at = low + share * (high - low)
        change = _log_density(at, scatter) - _log_density((low + high) / 2, scatter)
        sure = torch.rand(tries, generator=generator, dtype=torch.float64).log()
        z = torch.randn(tries, 2, generator=generator, dtype=torch.float64)
        sign = 2 * torch.randint(2, (tries, 2), generator=generator) - 1
        free = torch.cat([z, sign * LINEAR * at[:, :2].sinh(), at[:, 2:]], 1)
        means = mean + _spread(z[:, None], free)[:, 0] / math.sqrt(POINTS)
        accepted = (sure < change - math.log(LARGEST)) & (means.abs() <= SIDE).all(1)
        kept.append(torch.cat([means, free[:, 2:]], 1)[accepted])
    return torch.cat(kept)[:n]


def _covariance(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C_11, C_22 and C_12 of the last three coordinates, `(...)` each."""
    one, two, angle = theta[..., -3:].unbind(-1)
    cross = angle.tanh() * one.square() * two.square()
    return one**4 + JITTER, two**4 + JITTER, cross


def _spread(z: Tensor, theta: Tensor) -> Tensor:
    """Normals `(n, k, 2)` turned into those of covariance C, theta `(n, 5)`."""
    first, second, cross = (v[:, None] for v in _covariance(theta))
    along = cross / first.sqrt()
    rest = (second - along.square()).clamp(min=0).sqrt()
    return torch.stack([first.sqrt() * z[..., 0], along * z[..., 0] + rest * z[..., 1]], -1)


def _log_density(at: Tensor, scatter: Tensor) -> Tensor:
    """The log density in the grid's coordinates without the square of the means, `(...)`."""
    scales = LINEAR * at[..., :2].sinh()
    first, second, cross = _covariance(torch.cat([scales, at[..., 2:]], -1))
    determinant = first * second - cross.square()
    trace = scatter[0, 0] * second - 2 * scatter[0, 1] * cross + scatter[1, 1] * first
    jacobian = at[..., :2].cosh().log().sum(-1)
    return jacobian - 1.5 * determinant.log() - trace / (2 * determinant)


def _cells(edges: list[Tensor], scatter: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The log mass of cells, the largest 0, and that of their slices along each axis."""
    centres = [(e[1:] + e[:-1]) / 2 for e in edges]
    at = torch.stack(torch.meshgrid(*centres, indexing="ij"), -1)
    log_mass = _log_density(at, scatter)
    log_mass = log_mass - log_mass.max()
    mass = log_mass.exp()
    return log_mass, [mass.sum([j for j in range(3) if j != i]) for i in range(3)]


def _edges(scatter: Tensor) -> list[Tensor]:
    """The edges of cells along each axis of the grid, where the mass is."""
    reach = math.asinh(SIDE / LINEAR)
    ends = [(0.0, reach), (0.0, reach), (-SIDE, SIDE)]
    for _ in range(ZOOMS):
        edges = [torch.linspace(*e, CELLS + 1, dtype=torch.float64) for e in ends]
        ends = []
        for e, slices in zip(edges, _cells(edges, scatter)[1], strict=True):
            there = (slices > LEAST * slices.sum()).nonzero()[:, 0]
            low, high = max(int(there[0]) - 1, 0), min(int(there[-1]) + 2, CELLS)
            ends.append((float(e[low]), float(e[high])))
    return [torch.linspace(*e, CELLS + 1, dtype=torch.float64) for e in ends]
