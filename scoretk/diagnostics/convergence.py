"""ArviZ's diagnostics of chains, coordinate by coordinate, for tensors `(chains, draws, *event_shape)`.

References: Vehtari, Gelman, Simpson, Carpenter, Bürkner, "Rank-normalization, folding, and localization: an improved R-hat for
assessing convergence of MCMC" (2021); Betancourt, "Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo"
(2016), for E-BFMI.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoretk.arguments import option
from scoretk.errors import InvalidArgument
from scoretk.summary import arviz

__all__ = ["bfmi", "ess", "mcse", "rhat"]


def ess(x: Tensor, method: str = "bulk") -> Tensor:
    """Effective sample size of each coordinate, `event_shape`; method, "bulk", "tail", "mean" or "sd"."""
    option("method", method, ("bulk", "tail", "mean", "sd"))
    return _each(x, lambda az, values: az.ess(values, method=method), "ess")


def rhat(x: Tensor) -> Tensor:
    """Rank-normalised split R-hat of each coordinate, `event_shape`. At least two chains."""
    return _each(x, lambda az, values: az.rhat(values), "rhat")


def mcse(x: Tensor, of: str = "mean") -> Tensor:
    """Monte-Carlo standard error of the "mean" or the "sd" of each coordinate, `event_shape`."""
    option("of", of, ("mean", "sd"))
    return _each(x, lambda az, values: az.mcse(values, method=of), "mcse")


def bfmi(energy: Tensor) -> Tensor:
    """Energy Bayesian fraction of missing information of each chain, from `draws.stats["hamiltonian"]`, `(chains,)`."""
    if not isinstance(energy, Tensor) or energy.ndim != 2 or energy.shape[1] < 3:
        raise InvalidArgument("energy", energy, "a tensor (chains, draws) of at least three draws")
    return energy.double().diff(dim=1).square().mean(1) / energy.double().var(1)


def _each(x: Tensor, measure: Callable[[Any, Any], Any], purpose: str) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[1] < 4:
        raise InvalidArgument("x", x, "draws (chains, draws, *event_shape), at least four of each chain")
    az = arviz(f"diagnostics.{purpose}")
    flat = x.detach().double().cpu().reshape(*x.shape[:2], -1).numpy()
    found = [float(measure(az, flat[:, :, i])) for i in range(flat.shape[2])]
    return torch.tensor(found, dtype=torch.float64).reshape(x.shape[2:])
