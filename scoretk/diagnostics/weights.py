r"""Weights of independent draws: what a draw counts, and which of them hang together.

With shares `w_i`, which add up to 1, the mean of f is `m = sum_i w_i f_i`. Draws that were resampled
are not independent, as those that descend from one start have most of their way in common: many
are copies. Starts are independent. So the error of the mean is that of the sums over *families*,
all draws that descend from one start,

    error^2 = sum_g (sum_{i in g} w_i (f_i - m))^2 / (1 - sum_g W_g^2),    W_g = sum_{i in g} w_i,

the denominator for what m takes of its own families. Where several measurements have draws of
their own, weights compare draws of one measurement, and each measurement counts as much as it has
draws.

References:
    Chan, Lai, "A general theory of particle filters in hidden Markov models and some applications"
    (2013).
    Lee, Whiteley, "Variance estimation in the particle filter" (2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Weights", "kish", "measured_alike", "weights"]

Array = Any
ONE = 1e-12
"""What is left of 1 by rounding."""


class Weights(NamedTuple):
    """Shares of independent draws, and the families that they are of.

    Args:
        share: w, `(n,)`, which sum to 1.
        family: The number of each draw's family, `(n,)`; None where each draw is one.
    """

    share: Array
    family: Array | None

    @property
    def worth(self) -> float:
        """How many equally weighted draws they are worth, by their shares alone."""
        return float(1 / np.square(self.share).sum())

    @property
    def families(self) -> float:
        """How many equally weighted families they are worth, each draw being one without families."""
        if self.family is None:
            return self.worth
        return float(1 / np.square(np.bincount(self.family, self.share)).sum())

    def error(self, values: Array) -> float:
        """The standard error of the weighted mean of values `(n,)`; NaN where all are of one family."""
        family = np.arange(len(values)) if self.family is None else self.family
        mean = (self.share * values).sum()
        sums = np.bincount(family, self.share * (values - mean))
        rest = 1 - 1 / self.families
        return float(np.sqrt(np.square(sums).sum() / rest)) if rest > ONE else np.nan


def kish(log_weight: Array) -> float:
    """The effective number of weighted draws, `(sum w)^2 / sum w^2` (Kish); 0 where all w are 0."""
    flat = np.asarray(log_weight, dtype=np.float64).ravel()
    top = flat.max(initial=-np.inf)
    if not np.isfinite(top):
        return 0.0
    w = np.exp(flat - top)
    return float(w.sum() ** 2 / np.square(w).sum())


def weights(stats: Mapping[str, Array], n: int) -> Weights:
    """The weights of n draws, by what their solver reported of the last of each chain.

    Args:
        stats: "log_weight", "measurement" and "ancestor", each `(n,)`, where they are reported.
        n: How many draws there are.
    """
    log_weight = stats.get("log_weight")
    logs = np.zeros(n) if log_weight is None else np.asarray(log_weight, dtype=np.float64).ravel()
    share = np.zeros(n)
    for of in measured_alike(stats, n):
        top = logs[of].max(initial=-np.inf)
        w = np.exp(logs[of] - top) if np.isfinite(top) else np.ones(int(of.sum()))
        share[of] = w / w.sum() * len(w) / n
    ancestor = stats.get("ancestor")
    if ancestor is None:
        return Weights(share, None)
    kinds, family = np.unique(np.ravel(ancestor), return_inverse=True)
    return Weights(share, family if len(kinds) < n else None)


def measured_alike(stats: Mapping[str, Array], n: int) -> list[Array]:
    """Which of n draws are of one measurement, a mask `(n,)` for each; of solvers that measure nothing, all."""
    seen = stats.get("measurement")
    if seen is None:
        return [np.ones(n, dtype=bool)]
    return [np.ravel(seen) == one for one in np.unique(seen)]
