"""Held-out likelihoods, one number for each model and method, so that methods can be compared.

The unit is bits per dimension of the 17 grey levels for digits, by uniform dequantisation (a
uniform guess has log2 17 = 4.09); bits per pixel for binary digits (a uniform guess has 1); and
nats per event for all else, at the model's own exact draws.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any

from torch import Tensor

from scoretk.demo.quality import as_events
from scoretk.fields.paths import VP
from scoretk.fields.protocols import is_timed, offers, optional
from scoretk.inference.likelihood import Estimate, bits_per_dim, log_prob
from scoretk.inference.partition import Normalised, log_partition

__all__ = ["Likelihood", "compared", "likelihoods"]

LEVELS = 17
INTERVAL = (-1 - 1 / (LEVELS - 1), 1 + 1 / (LEVELS - 1))
"""The range of the data: cells of width 1/8 around the grey levels k / 8 - 1."""

TOLERANCE = 1e-3
PROBES = 4
FEW = 4
CONTRADICTS = 3.0
CHECKED = frozenset({"digits-flow", "digits-fvsbn", "digits-nice", "digits-vae"})
"""Trained models with which every method is shown, as with those that are not trained."""


@dataclass(frozen=True)
class Likelihood:
    """One number of the table.

    The numbers are None, with a note why, where there is no method.

    Args:
        model: The name of the model.
        method: The name of the method.
        value: The mean over held-out rows, without those that failed.
        rows_error: Its standard error over rows, which methods on one model share.
        own_error: The standard error of the method itself, by which methods may differ.
        unit: The unit of the numbers.
        note: How many rows failed, and warnings.
    """

    model: str
    method: str
    value: float | None
    rows_error: float | None
    own_error: float | None
    unit: str
    note: str = ""


def compared(found: Iterable[Likelihood]) -> list[Likelihood]:
    """Likelihoods of one model, with a note at each that another of the same rows contradicts.

    That one is the method with the least error of its own, or the first of them; of two whose
    values differ by more than `CONTRADICTS` of their own errors not both are right.
    """
    found = list(found)
    by_rows: dict[str, list[Likelihood]] = {}
    for one in found:
        if one.value is not None:
            by_rows.setdefault(one.method.partition(" (")[2].rpartition(",")[2], []).append(one)
    best = {id(one): min(group, key=_own) for group in by_rows.values() for one in group}
    return [_beside(one, best[id(one)]) if id(one) in best else one for one in found]


def _own(one: Likelihood) -> float:
    return one.own_error or 0.0


def _beside(one: Likelihood, other: Likelihood) -> Likelihood:
    error = math.hypot(_own(one), _own(other))
    off = abs((one.value or 0.0) - (other.value or 0.0))
    if one is other or off <= CONTRADICTS * error or not error:
        return one
    told = f"{off / error:.1f} errors off {other.method}"
    return replace(one, note="; ".join(filter(None, (told, one.note))))


def likelihoods(
    name: str, model: Any, rows: Tensor, digits: bool, chains: int = 256, seed: int = 0
) -> Iterator[Likelihood]:
    """Compute a model's log density at held-out rows, by one method or by all that there are.

    Args:
        name: The name of the model.
        model: The model.
        rows: Held-out rows, `(n, *event_shape)`.
        digits: Whether they are images of digits.
        chains: How many chains annealed importance sampling has.
        seed: The seed of all that the methods draw.

    Yields:
        One likelihood for each method, or one without numbers where there is none.
    """
    density = optional(model, "marginal") or model
    unit = "nats" if not digits else "bits/pixel" if "states" in offers(density) else "bits/dim"
    in_unit = 1 / (math.log(2) * rows[0].numel()) if digits else 1.0  # of a nat
    rows = as_events(density, rows) if digits else rows
    ways = list(_ways(density, rows, not digits or name in CHECKED, chains, seed))
    if not ways:
        yield Likelihood(name, "none", None, None, None, unit, _why_not(density))
    for way in ways:
        x = rows[: way.rows]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if unit == "bits/dim":
                cells = ((x + 1) * (LEVELS - 1) / 2).round()
                found = bits_per_dim(
                    way.field, cells, levels=LEVELS, interval=INTERVAL, seed=seed, **way.options
                )
                value, own = found.value.double(), found.stderr.double()
            else:
                found = log_prob(way.field, x, seed=seed, **way.options)
                sign = -in_unit if digits else 1.0
                value, own = sign * found.value.double(), in_unit * found.stderr.double()
        told = dict.fromkeys(filter(None, (way.warning, *(str(w.message) for w in caught))))
        yield _summed(name, replace(way, warning=" ".join(told)), value, own, in_unit, unit)


def _summed(
    name: str, way: _Way, value: Tensor, own: Tensor, in_unit: float, unit: str
) -> Likelihood:
    """The mean over the rows that are well, from their values and the method's errors `(rows,)`."""
    well = value.isfinite()
    n = int(well.sum())
    lost = f"{int((~well).sum())} of {len(well)} rows failed" if not bool(well.all()) else ""
    note = "; ".join(filter(None, (lost, way.warning)))
    if n < 2:
        return Likelihood(name, way.method, None, None, None, unit, note)
    own_error = math.hypot(float(own[well].square().sum().sqrt()) / n, way.constant_error * in_unit)
    return Likelihood(
        name,
        way.method,
        float(value[well].mean()),
        float(value[well].std() / math.sqrt(n)),
        own_error,
        unit,
        note,
    )


@dataclass(frozen=True)
class _Way:
    """A method of computing a density.

    Args:
        method: Its name.
        field: The field to which `log_prob` is applied.
        options: Options of that.
        rows: How many rows it is applied to, None for all.
        constant_error: The standard error of a constant in it, such as log Z, in nats.
        warning: What it has warned of.
    """

    method: str
    field: Any
    options: dict[str, Any] = dataclass_field(default_factory=dict)
    rows: int | None = None
    constant_error: float = 0.0
    warning: str = ""


def _ways(density: Any, rows: Tensor, check: bool, chains: int, seed: int) -> Iterator[_Way]:
    """The methods for a density: all where they are to be compared, else the first one."""
    has, dim = offers(density), rows[0].numel()
    if tuple(density.event_shape) != tuple(rows.shape[1:]):
        return
    flow = {"rtol": TOLERANCE, "atol": TOLERANCE}
    if is_timed(density):
        if callable(optional(density.base, "log_prob")):
            yield _Way("probability flow", density, {**flow, "probes": PROBES})
            if check and dim > FEW:
                yield _Way(
                    f"probability flow ({FEW} rows)", density, {**flow, "probes": 4 * PROBES}, FEW
                )
                yield _Way(
                    f"probability flow, exact trace ({FEW} rows)",
                    density,
                    {**flow, "trace": "exact"},
                    FEW,
                )
        return
    known = "log_prob" in has
    if known:
        yield _Way("exact", density)
    if callable(optional(density, "estimate_log_prob")):
        yield _Way("importance weights", density)
        known = True
        if check:
            yield _Way(f"importance weights ({FEW} rows)", density, {}, FEW)
            annealed = _Annealed(density, max(2, chains // 4))
            yield _Way(f"annealed importance sampling ({FEW} rows)", annealed, {}, FEW)
    if callable(optional(density, "noised")):
        yield _Way("probability flow", density.noised(VP()), flow)
    if "energy" in has and (check or not known):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            log_z = log_partition(density, chains=chains, seed=seed)
        warning = " ".join(str(w.message) for w in caught)
        normalised = Normalised(density, float(log_z.value))
        yield _Way(
            "annealed importance sampling", normalised, {}, None, float(log_z.stderr), warning
        )


@dataclass(frozen=True)
class _Annealed:
    """The marginal of a latent-variable model, with its density by annealed importance sampling."""

    marginal: Any
    chains: int

    provides = frozenset[str]()

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.marginal.event_shape)

    def estimate_log_prob(
        self, x: Tensor, *, seed: int = 0, rows: int | range | Tensor | None = None
    ) -> Estimate:
        """An estimate of log p(x) for each row of x."""
        return self.marginal.annealed_log_prob(
            x, chains=self.chains, pilot=max(16, min(64, self.chains)), seed=seed, rows=rows
        )


def _why_not(density: Any) -> str:
    if "decode" in offers(density):
        return "the density of what is decoded is not known"
    return "the base of the flow has no density" if is_timed(density) else "no energy to normalise"
