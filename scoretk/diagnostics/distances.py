r"""Distances between two sets of samples, deterministic by an explicit seed.

With theta uniform on the unit sphere and W_2 the Wasserstein distance of the projections, which on
the line is the distance of the quantile functions,

    SW_2(x, y)^2 = E_theta W_2(<theta, x>, <theta, y>)^2
    W_2(a, b)^2  = int_0^1 (F_a^-1(u) - F_b^-1(u))^2 du

and, with a kernel k, without bias and so at times below zero,

    MMD^2(x, y) = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

References:
    Bonneel, Rabin, Peyré, Pfister, "Sliced and Radon Wasserstein barycenters of measures" (2015).
    Gretton, Borgwardt, Rasch, Schölkopf, Smola, "A kernel two-sample test" (2012).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoretk.core.arguments import count, positive
from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument

__all__ = ["mmd", "sample_rows", "sliced_wasserstein"]


@explained
def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = 256, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance `SW_2(x, y)`.

    The distances of projections are exact for any two numbers of samples; the sphere is sampled.
    Two samples of one law are not at distance 0, and their distance falls with the numbers of
    samples: compare with that of two sets of real data of the same sizes.

    Args:
        x: Samples, `(n, *event_shape)`.
        y: Other samples, `(m, *event_shape)`.
        directions: How many directions theta are drawn.
        seed: The seed of the directions.

    Returns:
        The distance, in units of x.

    Raises:
        InvalidArgument: For empty, unequal or non-finite samples.
    """
    a, b = _pair(x, y)
    count("directions", directions, least=1)
    normals = torch.randn(directions, a.shape[1], generator=_generator(seed), dtype=torch.float64)
    axes = normals / normals.norm(dim=1, keepdim=True)
    i, j, mass = _matching(len(a), len(b))
    gaps = (a @ axes.T).sort(0).values[i] - (b @ axes.T).sort(0).values[j]
    return float((mass[:, None] * gaps.square()).sum(0).mean().sqrt())


@explained
def mmd(x: Tensor, y: Tensor, bandwidth: float | None = None) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel, an unbiased estimate.

    The kernel is `k(a, b) = exp(-|a - b|^2 / (2 bandwidth^2))`.

    Args:
        x: Samples, `(n, *event_shape)`, at least two.
        y: Other samples, `(m, *event_shape)`, at least two.
        bandwidth: The length scale of the kernel, in units of x; by default the median distance
            between points of x and y together.

    Returns:
        MMD^2, near 0 (on either side) for samples of one law.

    Raises:
        InvalidArgument: For empty, unequal or non-finite samples; where no bandwidth is given and
            the median distance is 0.
    """
    a, b = _pair(x, y)
    if min(len(a), len(b)) < 2:
        raise InvalidArgument("x, y", (len(a), len(b)), "at least two samples each")
    within_a, within_b, across = torch.pdist(a), torch.pdist(b), torch.cdist(a, b).flatten()
    if bandwidth is None:
        bandwidth = float(torch.cat([within_a, within_b, across]).median())
    width = positive("bandwidth", bandwidth)
    means = [torch.exp(-d.square() / (2 * width**2)).mean() for d in (within_a, within_b, across)]
    return float(means[0] + means[1] - 2 * means[2])


def sample_rows(name: str, value: Any) -> Tensor:
    """Samples as a float64 matrix `(n, d)` on the CPU.

    Args:
        name: The argument that they were given as.
        value: Samples, `(n, *event_shape)`.

    Raises:
        InvalidArgument: Where there are none, or not all are real and finite.
    """
    if not isinstance(value, Tensor) or value.ndim == 0 or value.numel() == 0 or value.is_complex():
        raise InvalidArgument(name, value, "a real tensor of samples, (n, *event_shape) with n > 0")
    rows = value.detach().to("cpu", torch.float64).reshape(len(value), -1)
    if not bool(torch.isfinite(rows).all()):
        raise InvalidArgument(
            name, value, "finite samples", "Leave out failed chains first: x[draws.status == 0]"
        )
    return rows


def _pair(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    a, b = sample_rows("x", x), sample_rows("y", y)
    if x.shape[1:] != y.shape[1:]:
        raise InvalidArgument("y", y, f"the event shape of x, {tuple(x.shape[1:])}")
    return a, b


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(count("seed", seed))


def _matching(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The optimal plan on the line between n points and m points, each of equal mass.

    Returns:
        For each piece of mass the index of its point among the n sorted ones, that among the m, and
        the mass. The indices are computed in integers, exactly.
    """
    levels = torch.cat([torch.arange(n + 1) * m, torch.arange(1, m) * n]).unique()
    left, right = levels[:-1], levels[1:]
    return left // m, left // n, (right - left).double() / (n * m)
