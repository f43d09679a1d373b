"""What a run's draws are worth: means with their Monte-Carlo error, effective sample sizes, R-hat, and a plain verdict.

Effective sample sizes, rank-normalised split R-hat and Monte-Carlo standard errors are ArviZ's, over the chains that are well.
R-hat is above 1.01 also where many chains agree that are short; they are said to disagree where, besides, their means vary more
than twice as much as those of chains of one law would that are as correlated within themselves.

References: Vehtari, Gelman, Simpson, Carpenter, Bürkner, "Rank-normalization, folding, and localization: an improved R-hat for
assessing convergence of MCMC" (2021), also for the thresholds; Betancourt, "Diagnosing suboptimal cotangent disintegrations in
Hamiltonian Monte Carlo" (2016), for E-BFMI.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Any

import numpy as np
from torch import Tensor

from scoretk.errors import MissingDependency, Status

__all__ = ["COLUMNS", "Finding", "Summary", "arviz", "divergent_draws", "summarise"]

COLUMNS = ("mean", "sd", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat")

HIGH_R_HAT, APART = 1.01, 1.0
FEW_EFFECTIVE = 400
LOW_BFMI = 0.3
LOW_ACCEPT, HIGH_ACCEPT = 0.1, 0.995
MOST = 100


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, and the most likely fix."""

    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.problem}: {self.fix}"


@dataclass(frozen=True)
class Summary:
    """The table, `rows[name][column]` for the columns in `COLUMNS`, and what was found wrong. Printed, it is both.

    Attributes: rows; findings, empty where nothing is; chains, how many are counted; draws, of each; left_out, how many
    coordinates have no row.
    """

    rows: dict[str, dict[str, float]]
    findings: tuple[Finding, ...]
    chains: int
    draws: int
    left_out: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.findings

    @property
    def verdict(self) -> str:
        """One line for each problem with its fix, or one that says there is none."""
        if self.ok:
            return "No problem found: the chains agree, and there are effective draws enough."
        return "\n".join(f"- {finding}" for finding in self.findings)

    def __str__(self) -> str:
        head = ("", *COLUMNS)
        lines = [(name, *(_shown(column, row[column]) for column in COLUMNS)) for name, row in self.rows.items()]
        widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
        table = [
            "  ".join(
                text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in (head, *lines)
        ]
        more = [f"... and {self.left_out} coordinates more"] if self.left_out else []
        return "\n".join([*table, *more, f"{self.chains} chains of {self.draws} draws", self.verdict])

    __repr__ = __str__


def arviz(purpose: str) -> Any:
    """The ArviZ module. Raises `MissingDependency`."""
    try:
        import arviz as module
    except ImportError as error:
        raise MissingDependency("arviz", "arviz", purpose) from error
    return module


def summarise(x: Tensor, status: Tensor, failed_at: Tensor, stats: Mapping[str, Tensor], most: int = MOST) -> Summary:
    """The summary of draws x `(chains, draws, *event_shape)`.

    Arguments: status and failed_at `(chains,)`; stats by name, `(chains, draws)`; most, how many
    coordinates get a row: evenly spaced ones where there are more.
    """
    az = arviz("draws.summary")
    well = (status == int(Status.OK)).cpu().numpy()
    values = x.detach().cpu().numpy()[well]
    names = _names(tuple(x.shape[2:]))
    flat = values.reshape(*values.shape[:2], len(names)).astype(np.float64)
    chosen = np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int))
    rows = {names[i]: _row(az, flat[:, :, i]) for i in chosen} if flat.size else {}
    apart = {names[i]: _disagreement(flat[:, :, i]) for i in chosen} if flat.size else {}
    kept = {name: value.detach().cpu().numpy()[well] for name, value in stats.items() if value.ndim == 2}
    findings = (
        *_failures(status, failed_at),
        *_movement(flat, kept),
        *_mixing(rows, apart, len(flat)),
        *_hamiltonian(flat, names, kept),
    )
    return Summary(rows, findings, len(flat), flat.shape[1], len(names) - len(chosen))


def divergent_draws(x: Tensor, stats: Mapping[str, Tensor]) -> Tensor:
    """The draws at which a trajectory diverged, `(n, *event_shape)`; none where the kernel reports none."""
    diverging = stats.get("diverging")
    return x[:0].flatten(0, 1) if diverging is None or diverging.ndim != 2 else x[diverging.bool()]


def _names(shape: tuple[int, ...]) -> list[str]:
    return [f"x[{', '.join(map(str, index))}]" for index in product(*map(range, shape))] if shape else ["x"]


def _row(az: Any, values: Any) -> dict[str, float]:
    """One coordinate's row from `(chains, draws)`; NaN where there is too little to tell."""
    found = {"mean": values.mean(), "sd": values.std(ddof=1) if values.size > 1 else math.nan}
    if values.shape[1] < 4 or (values == values[0, 0]).all():
        return {column: float(found.get(column, math.nan)) for column in COLUMNS}
    halves = values.shape[1] // 2
    split = values if len(values) > 1 else np.stack([values[0, :halves], values[0, -halves:]])
    with np.errstate(all="ignore"):
        found |= {
            "mcse_mean": az.mcse(values, method="mean"),
            "mcse_sd": az.mcse(values, method="sd"),
            "ess_bulk": az.ess(values, method="bulk"),
            "ess_tail": az.ess(values, method="tail"),
            "r_hat": az.rhat(split),
        }
    return {column: float(found[column]) for column in COLUMNS}


def _disagreement(values: Any) -> float:
    """How many times larger the variance of the chains' means is than chains of one law would have it, `(chains, draws)`.

    Of rank-normalised draws. What one law would give is the variance within chains over their own effective draws, from the
    autocorrelation pooled over chains (Geyer's initial positive sequence), which knows nothing of how chains differ.
    """
    chains, n = values.shape
    if chains < 2 or n < 4:
        return math.nan
    ranks = np.empty(values.size)
    ranks[values.ravel().argsort(kind="stable")] = np.arange(1, values.size + 1)
    z = np.array([NormalDist().inv_cdf(q) for q in np.linspace(0, 1, 1026)[1:-1]])
    scores = np.interp((ranks - 0.375) / (values.size + 0.25), np.linspace(0, 1, 1026)[1:-1], z).reshape(values.shape)
    about = scores - scores.mean(1, keepdims=True)
    power = np.abs(np.fft.rfft(about, 2 * n, axis=1)) ** 2
    covariance = np.fft.irfft(power, axis=1)[:, :n].mean(0) / n
    if covariance[0] <= 0:
        return math.inf
    pairs = (covariance[: n // 2 * 2] / covariance[0]).reshape(-1, 2).sum(1)
    last = int((pairs > 0).argmin()) if (pairs <= 0).any() else len(pairs)
    time = max(2 * pairs[:last].sum() - 1, 1.0)
    return float(scores.mean(1).var(ddof=1) / (covariance[0] * time / n))


def _shown(column: str, value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if column.startswith("ess") else f"{value:.3f}" if column == "r_hat" else f"{value:.4g}"


def _failures(status: Tensor, failed_at: Tensor) -> Iterator[Finding]:
    for code in Status:
        failed = status == int(code)
        if code is not Status.OK and bool(failed.any()):
            first = int(failed_at[failed].min())
            yield Finding(
                f"{int(failed.sum())} of {len(status)} chains are {code.name}, the first at step {first}",
                "they are left out here. Use a smaller step size, float64, or a start inside the support",
            )


def _movement(flat: Any, stats: Mapping[str, Any]) -> Iterator[Finding]:
    if flat.shape[1] > 1:
        stuck = int((flat.max(1) == flat.min(1)).all(1).sum()) if len(flat) else 0
        if stuck:
            yield Finding(f"{stuck} chains never moved", "use a longer warmup, a smaller step size or another start")
    if "accept" in stats and stats["accept"].size:
        rate = float(np.nanmean(stats["accept"]))
        if rate < LOW_ACCEPT:
            yield Finding(f"only {rate:.1%} of the proposals are accepted", "use a smaller step size")
        elif rate > HIGH_ACCEPT:
            yield Finding(f"{rate:.1%} of the proposals are accepted", "a larger step size would move further")


def _mixing(rows: Mapping[str, Mapping[str, float]], apart: Mapping[str, float], chains: int) -> Iterator[Finding]:
    unknown = [name for name, row in rows.items() if not math.isfinite(row["ess_bulk"])]
    if unknown:
        yield Finding(f"{unknown[0]} cannot be judged", "it is constant, or there are fewer than four draws: keep more")
    disagree = {
        name: row["r_hat"] for name, row in rows.items()
        if row["r_hat"] > HIGH_R_HAT and (chains < 2 or apart[name] > 1 + APART * max(1.0, 3 * math.sqrt(2 / chains)))
    }  # fmt: skip
    if disagree:
        worst = max(disagree, key=lambda name: disagree[name])
        yield Finding(
            f"the chains disagree, R-hat of {worst} is {disagree[worst]:.3f}",
            "use more warmup and steps; where they sit in different modes, ParallelTempering or SMC",
        )
    sizes = {(name, kind): row[kind] for name, row in rows.items() for kind in ("ess_bulk", "ess_tail")}
    sizes = {key: size for key, size in sizes.items() if math.isfinite(size)}
    if sizes and min(sizes.values()) < FEW_EFFECTIVE:
        name, kind = min(sizes, key=lambda key: sizes[key])
        least = sizes[name, kind]
        yield Finding(
            f"few effective draws, {kind} of {name} is {least:.0f}",
            f"use about {math.ceil(FEW_EFFECTIVE / max(least, 1))} times the steps or the chains",
        )


def _hamiltonian(flat: Any, names: list[str], stats: Mapping[str, Any]) -> Iterator[Finding]:
    if "diverging" in stats and stats["diverging"].any():
        diverging = stats["diverging"].astype(bool)
        there, spread = flat[diverging].mean(0), flat.std((0, 1)) + 1e-300
        far = np.abs(there - flat.mean((0, 1))) / spread
        most = int(far.argmax())
        yield Finding(
            f"{int(diverging.sum())} trajectories diverged ({diverging.mean():.2%}), about where {names[most]} is "
            f"{there[most]:.3g}",
            "aim at a higher acceptance (accept=0.9), or write the model in coordinates without such narrow parts",
        )
    energy = stats.get("hamiltonian")
    if energy is not None and energy.shape[1] > 2:
        bfmi = np.square(np.diff(energy, axis=1)).mean(1) / energy.var(axis=1)
        low = int((bfmi < LOW_BFMI).sum())
        if low > 0.05 * len(bfmi):
            yield Finding(
                f"the energy explores slowly, E-BFMI is below {LOW_BFMI} in {low} of {len(bfmi)} chains",
                "the tails are heavy: write the model in other coordinates",
            )
