"""Held-out likelihoods: one number a model and way to compute it, so that two ways can be seen to agree.

Digits are judged in bits a dimension of their 17 grey levels (a uniform guess is log2 17 = 4.09), by uniform dequantisation;
binary digits in bits a pixel (a uniform guess is 1); everything else in nats an event, by its own exact draws.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoretk.fields.paths import VP
from scoretk.fields.protocols import is_timed, offers
from scoretk.likelihood import bits_per_dim, log_prob
from scoretk.partition import Normalised, log_partition

__all__ = ["Likelihood", "likelihoods"]

LEVELS = 17
INTERVAL = (-1 - 1 / (LEVELS - 1), 1 + 1 / (LEVELS - 1))
"""Cells of width 1/8 around the grey levels k / 8 - 1."""

CHAINS = 256
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Likelihood:
    """One number: the mean over held-out rows, its standard error over them, and the method's own for these rows, by which
    alone two methods differ; NaN, and a note why, where there is no method.
    """

    model: str
    method: str
    value: float
    rows_error: float
    own_error: float
    unit: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.model}  {self.method}  {self.value:.3f} ± {self.rows_error:.3f} {self.unit}"


def likelihoods(name: str, model: Any, rows: Tensor, digits: bool) -> Iterator[Likelihood]:
    """Every way in which this model's density can be had here, at held-out rows `(n, *event_shape)`.

    Arguments: name; model; rows; digits, whether they are images.
    """
    density = getattr(model, "marginal", model)
    unit = "nats" if not digits else "bits/pixel" if "states" in offers(density) else "bits/dim"
    ways = list(_ways(density))
    if not ways:
        yield Likelihood(name, "none", math.nan, math.nan, math.nan, unit, _why_not(density))
    for way in ways:
        in_unit = 1 / (math.log(2) * rows[0].numel()) if digits else 1.0  # of a nat
        if unit == "bits/dim":
            cells = ((rows + 1) * (LEVELS - 1) / 2).round()
            found = bits_per_dim(way.field, cells, levels=LEVELS, interval=INTERVAL, rtol=TOLERANCE, atol=TOLERANCE)
            value, own = found.value.double(), found.stderr.double()
        else:
            found = log_prob(way.field, rows, rtol=TOLERANCE, atol=TOLERANCE, probes=4)
            sign = -in_unit if digits else 1.0
            value, own = sign * found.value.double(), in_unit * found.stderr.double()
        yield Likelihood(
            name, way.method or found.method, float(value.mean()), float(value.std() / math.sqrt(len(value))),
            math.hypot(float(own.square().sum().sqrt()) / len(rows), way.constant_error * in_unit), unit, way.warning,
        )  # fmt: skip


@dataclass(frozen=True)
class _Way:
    """What the method is called, a field whose `log_prob` it is, the error of a constant in it in nats, and any warning."""

    method: str
    field: Any
    constant_error: float = 0.0
    warning: str = ""


def _ways(density: Any) -> Iterator[_Way]:
    has = offers(density)
    if is_timed(density):
        if callable(getattr(density.base, "log_prob", None)):
            yield _Way("probability flow", density)
        return
    if "log_prob" in has or callable(getattr(density, "estimate_log_prob", None)):
        yield _Way("exact" if "log_prob" in has else "", density)
    if callable(getattr(density, "noised", None)):
        yield _Way("probability flow", density.noised(VP()))
    if "energy" in has and "decode" not in has:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            log_z = log_partition(density, chains=CHAINS)
        warning = " ".join(str(w.message) for w in caught)
        yield _Way(
            "annealed importance sampling", Normalised(density, float(log_z.value)), float(log_z.stderr), warning
        )


def _why_not(density: Any) -> str:
    if "decode" in offers(density):
        return "the density of what is decoded is not known"
    return "the base of the flow has no density" if is_timed(density) else "no energy to normalise"
