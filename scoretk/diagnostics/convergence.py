"""Diagnostics of chains, of all coordinates at once, for tensors `(chains, draws, *event_shape)`.

Draws in a store (`draws.x` of `keep=scoretk.Zarr(path)`) are taken as well, some coordinates at a time.

Each agrees with that of ArviZ to rounding, where ArviZ has it.

References:
    Vehtari, Gelman, Simpson, Carpenter, Bürkner, "Rank-normalization, folding, and localization: an
    improved R-hat for assessing convergence of MCMC" (2021).
    Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari, Gelman, "Nested R-hat: assessing the
    convergence of Markov chain Monte Carlo when running many short chains" (2024).
    Betancourt, "Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo" (2016),
    for E-BFMI.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from scoretk.core.arguments import count, option
from scoretk.core.devices import wide
from scoretk.core.keywords import explained
from scoretk.diagnostics import mixing
from scoretk.errors import InvalidArgument

__all__ = ["bfmi", "ess", "mcse", "nested_rhat", "rhat"]

CHUNK = 1 << 22


@explained
def ess(x: Tensor | Readable | HasMoments, method: str = "bulk") -> Tensor:
    """Effective sample size of each coordinate.

    Args:
        x: Draws, `(chains, draws, *event_shape)`, at least four of each chain; or what `sample`
            returned, where draws are kept.
        method: "bulk" (of normal scores), "tail" (of the 5 % and the 95 % quantile, the fewer),
            "mean" or "sd".

    Returns:
        `event_shape`, float64.

    Raises:
        InvalidArgument: For other draws.
        UnknownName: For an unknown method.
    """
    measures = {
        "bulk": lambda v: mixing.effective(mixing.normal_scores(mixing.split(v))),
        "tail": mixing.tail_effective,
        "mean": lambda v: mixing.effective(mixing.split(v)),
        "sd": lambda v: mixing.effective(
            mixing.split(np.square(v - v.mean((1, 2), keepdims=True)))
        ),
    }
    return _each(x, measures[option("method", method, tuple(measures))])


@explained
def rhat(x: Tensor | Readable | HasMoments) -> Tensor:
    """Rank-normalised split R-hat of each coordinate: the larger of the plain and the folded one.

    Args:
        x: Draws, `(chains, draws, *event_shape)`, at least four of each chain; or what `sample`
            returned, where draws are kept.

    Returns:
        `event_shape`, float64.
    """

    def measure(v: Any) -> Any:
        halves = mixing.split(v)
        folded = mixing.r_hat(mixing.normal_scores(mixing.fold(halves)))
        return np.fmax(mixing.r_hat(mixing.normal_scores(halves)), folded)

    return _each(x, measure)


@runtime_checkable
class HasMoments(Protocol):
    """Draws, in memory, in a store, or of which moments were kept."""

    def moments(self) -> tuple[Tensor, Tensor]: ...


@explained
def nested_rhat(x: Tensor | HasMoments, superchains: int) -> Tensor:
    """Nested R-hat of each coordinate, `sqrt(1 + B / W)`, for chains in superchains.

    B is the variance of the superchains' means, W the mean over superchains of the variance of
    their chains' means plus the variance within these. Where the chains of a superchain start at
    one point it tells whether they have forgotten it. Where all chains start independently it only
    says how well a superchain's mean is known, about `sqrt(1 + tau / (M n))` for M chains of n
    draws; `summary` then groups chains by where their first half was.

    Args:
        x: Draws, `(chains, draws, *event_shape)`; or what `sample` returned, as the means and the
            variances of chains are enough, which `keep="moments"` has of any number of processes.
        superchains: How many superchains there are, at least two, each of equally many neighbouring
            chains, at least two.

    Returns:
        `event_shape`, float64.

    Raises:
        InvalidArgument: Where the chains do not divide so.
    """
    k = count("superchains", superchains, least=2)

    def groups(v: Any) -> Any:
        chains = v.shape[1]
        if chains % k or chains < 2 * k:
            expected = f"a divisor of the {chains} chains, with two chains at least in each"
            raise InvalidArgument("superchains", k, expected)
        return np.broadcast_to(np.arange(chains) // (chains // k), v.shape[:2])

    if isinstance(x, Tensor) or not isinstance(x, HasMoments):
        return _each(x, lambda v: mixing.nested_r_hat(v, groups(v)), least=1)
    mean, var = x.moments()
    means, inside = (_by_entry(value) for value in (mean, var.nan_to_num(0.0)))
    found = mixing.nested_r_hat_of(means, inside, groups(means))
    return torch.from_numpy(found).reshape(mean.shape[1:])


def _by_entry(value: Tensor) -> Any:
    """Numbers `(chains, *event_shape)` as an array `(d, chains)`."""
    return value.detach().cpu().double().flatten(1).T.contiguous().numpy()


@explained
def mcse(x: Tensor | Readable | HasMoments, of: str = "mean") -> Tensor:
    """Monte-Carlo standard error of each coordinate's mean or standard deviation.

    Args:
        x: Draws, `(chains, draws, *event_shape)`, at least four of each chain; or what `sample`
            returned, where draws are kept.
        of: "mean" or "sd".

    Returns:
        `event_shape`, float64, in units of x.
    """
    return _each(
        x, {"mean": mixing.mcse_mean, "sd": mixing.mcse_sd}[option("of", of, ("mean", "sd"))]
    )


@explained
def bfmi(energy: Tensor) -> Tensor:
    """Energy Bayesian fraction of missing information (E-BFMI) of each chain.

    Args:
        energy: The total energy at the start of each trajectory, `draws.stats["hamiltonian"]`,
            `(chains, draws)`, at least three draws.

    Returns:
        `(chains,)`; values below about 0.3 say that the energy explores slowly.
    """
    if not isinstance(energy, Tensor) or energy.ndim != 2 or energy.shape[1] < 3:
        raise InvalidArgument("energy", energy, "a tensor (chains, draws) of at least three draws")
    energy = wide(energy)
    return energy.diff(dim=1).square().mean(1) / energy.var(1)


@runtime_checkable
class Readable(Protocol):
    """Draws on the disk, `(chains, draws, *event_shape)`, of which some coordinates are read at a time."""

    shape: torch.Size

    def entries(self, some: slice) -> Tensor: ...


def _each(given: object, measure: Callable[[Any], Any], least: int = 4) -> Tensor:
    """The measure, of arrays `(d, chains, draws)`, of all coordinates, a few at a time."""
    x: Any = given
    if not isinstance(given, Tensor | Readable) and isinstance(given, HasMoments):
        x = x.x  # which says so where moments alone are kept
    known = isinstance(x, Tensor | Readable) and len(x.shape) >= 2
    if not known or x.shape[0] == 0 or x.shape[1] < least:
        expected = (
            f"draws (chains, draws, *event_shape) of a chain or more, at least {least} of each"
        )
        raise InvalidArgument("x", x, expected)
    d = math.prod(x.shape[2:])
    size = max(1, CHUNK // max(1, x.shape[0] * x.shape[1]))
    some = (slice(i, min(i + size, d)) for i in range(0, d, size))
    if isinstance(x, Tensor):
        flat = rearrange(x.detach().cpu(), "chains draws ... -> chains draws (...)")
        parts = (flat[:, :, part] for part in some)
    else:
        parts = (x.entries(part) for part in some)
    leading = (rearrange(part, "chains draws d -> d chains draws").double() for part in parts)
    found = [measure(part.contiguous().numpy()) for part in leading]
    return torch.from_numpy(np.concatenate(found)).reshape(x.shape[2:])
