"""The summary of a run: means with Monte-Carlo errors, effective draws, R-hat, and a verdict.

The columns are those of ArviZ, to rounding, over the chains that are well. Draws of a solver that
reports "log_weight" are weighted: means are sums over `w_i / sum w`, effective draws `(sum w)^2 /
sum w^2`, or fewer by the errors of those that descend from one start (`diagnostics.weights`). Draws
of a solver with a grid of its own are independent, whatever else was kept: the last one of each
chain is judged, and all are effective.

References:
    Vehtari, Gelman, Simpson, Carpenter, Bürkner, "Rank-normalization, folding, and localization: an
    improved R-hat for assessing convergence of MCMC" (2021).
    Betancourt, "Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo" (2016),
    for E-BFMI.

What is judged, by which test and at which rate of false alarms: `verdict` and docs/diagnostics.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor

from scoretk.diagnostics.mixing import (
    effective,
    fold,
    mcse_mean,
    mcse_sd,
    normal_scores,
    r_hat,
    split,
    tail_effective,
)
from scoretk.diagnostics.verdict import Finding, Sampler, as_r_hat, counted, findings
from scoretk.diagnostics.weights import Weights, weights
from scoretk.errors import Status

__all__ = ["COLUMNS", "Finding", "Summary", "divergent_draws", "entry_names", "summarise"]

COLUMNS = ("mean", "sd", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat")

MOST = 100
VALUES = 1 << 23
"""The largest number of values, in all rows, whose ranks are taken. Of more, the ranks are those of
evenly spaced steps of each chain, and effective draws are at most as many. Monte-Carlo errors are
of all draws.
"""


@dataclass(frozen=True)
class Summary:
    """The summary of a run, which prints as a table and a verdict.

    Args:
        rows: The table, `rows[name][column]` for the columns in `COLUMNS`.
        findings: What was found wrong, empty where nothing was.
        chains: How many chains are counted.
        draws: How many draws of each.
        left_out: How many coordinates have no row; they are judged all the same.
        independent: Whether the draws are independent instead of chains.
        of_moments: Whether moments alone were kept, which show less.
    """

    rows: dict[str, dict[str, float]]
    findings: tuple[Finding, ...]
    chains: int
    draws: int
    left_out: int = 0
    independent: bool = False
    of_moments: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.findings

    @property
    def verdict(self) -> str:
        """One line for each problem with its fix, or one that says there is none.

        A fix that several problems share is said with the first of them.
        """
        if self.ok and self.independent:
            return (
                "Independent draws, in which no problem was found. Whether the solver's steps are "
                "enough they do not show: compare with those of more steps."
            )
        if self.ok and self.of_moments:
            return (
                "No problem found in the moments of the chains' halves. Autocorrelation, tails and "
                "spread they do not show: keep='all', or scoretk.Zarr(path), does."
            )
        if self.ok:
            return "No problem found: the chains agree, and there are effective draws enough."
        said: set[str] = set()
        lines = []
        for finding in self.findings:
            lines.append(
                f"- {finding.problem}, likewise" if finding.fix in said else f"- {finding}"
            )
            said.add(finding.fix)
        return "\n".join(lines)

    def __str__(self) -> str:
        head = ("", *COLUMNS)
        lines = [
            (name, *(_shown(column, row[column]) for column in COLUMNS))
            for name, row in self.rows.items()
        ]
        widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
        table = [
            "  ".join(
                text.ljust(w) if i == 0 else text.rjust(w)
                for i, (text, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in (head, *lines)
        ]
        more = [f"... and {counted(self.left_out, 'coordinate')} more"] if self.left_out else []
        return "\n".join(
            [
                *table,
                *more,
                f"{counted(self.chains, 'chain')} of {counted(self.draws, 'draw')}",
                self.verdict,
            ]
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The table and the verdict, for notebooks."""
        head = "".join(f"<th>{column}</th>" for column in ("", *COLUMNS))
        body = "".join(
            f"<tr><th>{escape(name)}</th>"
            + "".join(f"<td>{_shown(column, row[column])}</td>" for column in COLUMNS)
            + "</tr>"
            for name, row in self.rows.items()
        )
        more = (
            f"<p>... and {counted(self.left_out, 'coordinate')} more</p>" if self.left_out else ""
        )
        size = f"{counted(self.chains, 'chain')} of {counted(self.draws, 'draw')}"
        verdict = "<br>".join(map(escape, self.verdict.split("\n")))
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
        return f"{table}<p>{size}</p><p>{verdict}</p>"


def summarise(
    x: Tensor,
    status: Tensor,
    failed_at: Tensor,
    stats: Mapping[str, Tensor],
    most: int = MOST,
    solver: str = "",
    exact_ends: bool = False,
    labels: Sequence[str] | None = None,
) -> Summary:
    """The summary of draws.

    Args:
        x: Draws, `(chains, draws, *event_shape)`.
        status: The `Status` code of each chain, `(chains,)`.
        failed_at: The step at which each chain failed, -1 where it did not, `(chains,)`.
        stats: What the solver reported, by name: `(chains, draws)`, or `(chains,)` where only the
            last draw was kept.
        most: How many coordinates get a row: evenly spaced ones where there are more.
        solver: The solver's `repr`, so that advice names its own settings.
        exact_ends: Whether x was made in finer coordinates and then rounded to its dtype.
        labels: What the coordinates are called; by default "x[0]" and so on.
    """
    sampler = Sampler(solver)
    well = (status == int(Status.OK)).cpu()
    everyone = bool(well.all())
    names = entry_names(tuple(x.shape[2:])) if labels is None else list(labels)
    kept = x.detach().cpu().reshape(*x.shape[:2], len(names))
    kept = kept if everyone else kept[well]
    known = {name: value.detach().cpu() for name, value in stats.items()}
    reported = {name: (value if everyone else value[well]).numpy() for name, value in known.items()}
    if sampler.independent:
        kept = kept[:, -1:]
        reported = {
            name: value[:, -1] if value.ndim == 2 else value for name, value in reported.items()
        }
    flat = kept.numpy()
    chosen = np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int))
    weighed = weights(reported, len(flat)) if sampler.independent else None
    rows = {
        names[i]: _row(flat[:, :, i].astype(np.float64), VALUES // len(chosen), weighed)
        for i in (chosen if flat.size else ())
    }
    found = findings(flat, names, status, failed_at, reported, sampler, exact_ends)
    return Summary(
        rows, found, len(flat), flat.shape[1], len(names) - len(chosen), sampler.independent
    )


def divergent_draws(x: Tensor, stats: Mapping[str, Tensor]) -> Tensor:
    """The draws at which a trajectory diverged, `(n, *event_shape)`; n = 0 without such reports.

    Args:
        x: Draws, `(chains, draws, *event_shape)`.
        stats: What the solver reported, by name.
    """
    diverging = stats.get("diverging")
    return x[:0].flatten(0, 1) if diverging is None or diverging.ndim != 2 else x[diverging.bool()]


def entry_names(shape: Sequence[int]) -> list[str]:
    """What the entries of an x without names are called: "x[0, 1]", or "x"."""
    if shape:
        return [f"x[{', '.join(map(str, index))}]" for index in product(*map(range, shape))]
    return ["x"]


def _row(values: Any, most: int, weighed: Weights | None) -> dict[str, float]:
    """One coordinate's row of the table; NaN where there are too few draws to tell.

    Args:
        values: `(chains, draws)`.
        most: Of how many of them at most ranks are taken.
        weighed: The weights of independent draws; None of chains.
    """
    with np.errstate(all="ignore"):
        found = _of_chains(values, most) if weighed is None else _weighted(values.ravel(), weighed)
    return {column: float(found.get(column, math.nan)) for column in COLUMNS}


def _of_chains(values: Any, most: int) -> dict[str, float]:
    found = {"mean": values.mean(), "sd": values.std(ddof=1) if values.size > 1 else math.nan}
    if values.shape[1] < 4 or (values == values[0, 0]).all() or not np.isfinite(values).all():
        return found
    thin = min(math.ceil(values.size / most), values.shape[1] // 4)
    ranked = values[None, :, ::thin]
    halves = split(ranked)
    scores = normal_scores(halves)
    return found | {
        "mcse_mean": mcse_mean(values[None])[0],
        "mcse_sd": mcse_sd(values[None])[0],
        "ess_bulk": effective(scores)[0],
        "ess_tail": tail_effective(ranked)[0],
        "r_hat": np.fmax(r_hat(scores), r_hat(normal_scores(fold(halves))))[0],
    }


def _weighted(values: Any, weighed: Weights) -> dict[str, float]:
    """The columns for independent draws `(n,)`."""
    share, worth = weighed.share, weighed.worth
    mean = (share * values).sum()
    squares = np.square(values - mean)
    variance = (share * squares).sum() * worth / (worth - 1) if worth > 1 else math.nan
    if weighed.family is not None:
        error, of_squares = weighed.error(values), weighed.error(squares)
        own = min(worth, variance / error**2)
        return {
            "mean": mean,
            "sd": np.sqrt(variance),
            "mcse_mean": error,
            "mcse_sd": of_squares / np.sqrt(variance) / 2,
            "ess_bulk": own,
            "ess_tail": own,
        }
    kurtosis = (share * np.square(squares)).sum() - (share * squares).sum() ** 2
    return {
        "mean": mean,
        "sd": np.sqrt(variance),
        "mcse_mean": np.sqrt((np.square(share) * squares).sum()) if worth > 1 else math.nan,
        "mcse_sd": np.sqrt(kurtosis / worth / variance / 4),
        "ess_bulk": worth,
        "ess_tail": worth,
    }


def _shown(column: str, value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return (
        f"{value:.0f}"
        if column.startswith("ess")
        else as_r_hat(value)
        if column == "r_hat"
        else f"{value:.4g}"
    )
