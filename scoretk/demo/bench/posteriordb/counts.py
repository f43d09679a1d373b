"""Counts of shocks, hits and captures.

References:
    Gelman, Hill, "Data analysis using regression and multilevel/hierarchical models" (2006), for the
    dogs.
    Lee, Wagenmakers, "Bayesian cognitive modeling" (2014), for the rates.
    Kéry, Schaub, "Bayesian population analysis using WinBUGS" (2011), for the captures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.distributions.constraints import interval, unit_interval

from scoretk.demo.bench.posteriordb.model import Arrays, Model, bernoulli, gaussian

__all__ = ["COUNTS"]


def _earlier(y: Tensor) -> tuple[Tensor, Tensor]:
    """How often a dog had avoided the shock before each trial, and how often not."""
    shocks = y.cumsum(1) - y
    return torch.arange(y.shape[1], dtype=y.dtype) - shocks, shocks


def dogs(data: Arrays) -> Model:
    avoided, shocked = (x.flatten() for x in _earlier(data["y"]))
    design = torch.stack([torch.ones_like(avoided), avoided, shocked], 1)
    y = data["y"].flatten()

    def energy(beta: Tensor) -> Tensor:
        return gaussian(beta, 100.0) + bernoulli(beta @ design.T, y)

    return Model({"beta": (3,)}, energy)


def dogs_log(data: Arrays) -> Model:
    """Without an intercept; avoiding makes shocks rarer, shocks make them likelier."""
    design = torch.stack([x.flatten() for x in _earlier(data["y"])], 1)
    y = data["y"].flatten()

    def both(values: Arrays) -> Arrays:
        return {"beta": torch.stack([values["avoided"], values["shocked"]], -1)}

    def energy(avoided: Tensor, shocked: Tensor) -> Tensor:
        return bernoulli(torch.stack([avoided, shocked], 1) @ design.T, y)

    return Model({"avoided": interval(-100, 0), "shocked": interval(0, 100)}, energy, both)


def dogs_hierarchical(data: Arrays) -> Model:
    """A shock has the probability `a^shocks b^avoidances`, 1 at first."""
    y = data["y"].flatten()
    avoided, shocked = (x.flatten() for x in _earlier(data["y"]))
    later = avoided + shocked > 0  # what is certain has no density to speak of
    y, avoided, shocked = y[later], avoided[later], shocked[later]

    def energy(a: Tensor, b: Tensor) -> Tensor:
        log_shock = a.log()[:, None] * shocked + b.log()[:, None] * avoided
        return -(log_shock @ y) - (-torch.expm1(log_shock)).log() @ (1 - y)

    return Model({"a": unit_interval, "b": unit_interval}, energy)


def _binomial(theta: Tensor, hits: Tensor, trials: Tensor) -> Tensor:
    return -hits * theta.log() - (trials - hits) * torch.log1p(-theta)


def rate_1(data: Arrays) -> Model:
    return Model({"theta": unit_interval}, lambda theta: _binomial(theta, data["k"], data["n"]))


def rate_2(data: Arrays) -> Model:
    """Two rates and their difference."""

    def energy(theta1: Tensor, theta2: Tensor) -> Tensor:
        return _binomial(theta1, data["k1"], data["n1"]) + _binomial(theta2, data["k2"], data["n2"])

    def parameters(values: Arrays) -> Arrays:
        return {**values, "delta": values["theta1"] - values["theta2"]}

    return Model({"theta1": unit_interval, "theta2": unit_interval}, energy, parameters)


def rate_3(data: Arrays) -> Model:
    """One rate of two experiments."""
    hits, trials = data["k1"] + data["k2"], data["n1"] + data["n2"]
    return Model({"theta": unit_interval}, lambda theta: _binomial(theta, hits, trials))


def rate_4(data: Arrays) -> Model:
    """A rate beside another draw of its prior, which is uniform."""

    def energy(theta: Tensor, thetaprior: Tensor) -> Tensor:
        return _binomial(theta, data["k"], data["n"]) + 0 * thetaprior

    return Model({"theta": unit_interval, "thetaprior": unit_interval}, energy)


def m0_model(data: Arrays) -> Model:
    """Captures of animals, of which those never caught may not be there at all."""
    caught = data["y"].sum(1)
    occasions, seen = data["y"].shape[1], int((caught > 0).sum())

    def energy(omega: Tensor, p: Tensor) -> Tensor:
        there = _binomial(p, caught.sum(), caught.new_tensor(float(seen * occasions)))
        missed = torch.logaddexp(omega.log() + occasions * torch.log1p(-p), torch.log1p(-omega))
        return there - seen * omega.log() - (len(caught) - seen) * missed

    return Model({"omega": unit_interval, "p": unit_interval}, energy)


COUNTS: Mapping[str, Callable[[Arrays], Model]] = MappingProxyType(
    {
        "dogs": dogs,
        "dogs_log": dogs_log,
        "dogs_hierarchical": dogs_hierarchical,
        "Rate_1_model": rate_1,
        "Rate_2_model": rate_2,
        "Rate_3_model": rate_3,
        "Rate_4_model": rate_4,
        "Rate_5_model": rate_3,
        "M0_model": m0_model,
    }
)
"""By the names of posteriordb."""
