"""Diagnostics of chains, of all coordinates at once, for tensors `(chains, draws, *event_shape)`.

Those of ArviZ to rounding.

References:
    Vehtari, Gelman, Simpson, Carpenter, Bürkner, "Rank-normalization, folding, and localization: an
    improved R-hat for assessing convergence of MCMC" (2021).
    Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari, Gelman, "Nested R-hat: assessing the
    convergence of Markov chain Monte Carlo when running many short chains" (2024).
    Betancourt, "Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo" (2016),
    for E-BFMI.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretk.core.arguments import count, option
from scoretk.diagnostics import mixing
from scoretk.errors import InvalidArgument

__all__ = ["bfmi", "ess", "mcse", "nested_rhat", "rhat"]

CHUNK = 1 << 22


def ess(x: Tensor, method: str = "bulk") -> Tensor:
    """Effective sample size of each coordinate, `event_shape`.

    Method, "bulk", "tail", "mean" or "sd".
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


def rhat(x: Tensor) -> Tensor:
    """Rank-normalised split R-hat of each coordinate, or where it is larger the folded one,
    `event_shape`.
    """

    def measure(v: Any) -> Any:
        halves = mixing.split(v)
        folded = mixing.r_hat(mixing.normal_scores(mixing.fold(halves)))
        return np.fmax(mixing.r_hat(mixing.normal_scores(halves)), folded)

    return _each(x, measure)


def nested_rhat(x: Tensor, superchains: int) -> Tensor:
    """Nested R-hat of each coordinate, `event_shape`, for chains of which equally many after each
    other make a superchain.

    `sqrt(1 + B / W)`: B is the variance of the superchains' means, W the mean over superchains of
    the variance of their chains' means and within these. It tells whether chains have forgotten
    their start where those of a superchain start at one point; where all chains start independently
    it only says how well a superchain's mean is known, about `sqrt(1 + tau / (M n))` for M chains
    of n draws, and `summary` groups chains by where their first half was instead.

    Args:
        superchains: How many, at least two; they divide the number of chains, and each has two
            chains at least.
    """
    k = count("superchains", superchains, least=2)
    if isinstance(x, Tensor) and x.ndim >= 2 and (len(x) % k or len(x) < 2 * k):
        raise InvalidArgument(
            "superchains", k, f"a divisor of the {len(x)} chains, with two chains at least in each"
        )
    return _each(
        x,
        lambda v: mixing.nested_r_hat(
            v, np.broadcast_to(np.arange(len(x)) // (len(x) // k), v.shape[:2])
        ),
        least=1,
    )


def mcse(x: Tensor, of: str = "mean") -> Tensor:
    """Monte-Carlo standard error of the "mean" or the "sd" of each coordinate, `event_shape`."""
    return _each(
        x, {"mean": mixing.mcse_mean, "sd": mixing.mcse_sd}[option("of", of, ("mean", "sd"))]
    )


def bfmi(energy: Tensor) -> Tensor:
    """Energy Bayesian fraction of missing information of each chain, from
    `draws.stats["hamiltonian"]`, `(chains,)`.
    """
    if not isinstance(energy, Tensor) or energy.ndim != 2 or energy.shape[1] < 3:
        raise InvalidArgument("energy", energy, "a tensor (chains, draws) of at least three draws")
    return energy.double().diff(dim=1).square().mean(1) / energy.double().var(1)


def _each(x: Tensor, measure: Callable[[Any], Any], least: int = 4) -> Tensor:
    """A measure of arrays `(d, chains, draws)`, a few coordinates at a time."""
    if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[1] < least:
        raise InvalidArgument(
            "x", x, f"draws (chains, draws, *event_shape), at least {least} of each chain"
        )
    flat = x.detach().cpu().reshape(*x.shape[:2], -1)
    parts = flat.split(max(1, CHUNK // max(1, flat[:, :, 0].numel())), 2)
    found = [measure(part.permute(2, 0, 1).double().contiguous().numpy()) for part in parts]
    return torch.from_numpy(np.concatenate(found)).reshape(x.shape[2:])
