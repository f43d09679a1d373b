"""R-hat and a summary of chains of which moments alone are known, of each half of the draws.

For C chains whose halves have means m_ch and variances s_ch^2 (divisor n - 1, n draws in a half):

    split R-hat    sqrt((n - 1)/n + var(m_ch) / mean(s_ch^2))    over all 2 C halves
    drift          m_c2 - m_c1, compared across chains

Nothing here needs more than sums over draws, so that it can be had of any number of chains, of any
number of processes, and in constant memory. What it takes the draws themselves for is not judged:
normal scores, autocorrelation, tails, period two.

References:
    Gelman et al., "Bayesian data analysis", 3rd ed. (2013), section 11.4, for split R-hat.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from scoretk.core.devices import wide
from scoretk.core.keywords import explained
from scoretk.diagnostics.judging import RATE
from scoretk.diagnostics.mixing import FEWEST, f_deviate, paired, z_limit
from scoretk.diagnostics.summary import COLUMNS, MOST, Summary, entry_names
from scoretk.diagnostics.verdict import (
    FEW_EFFECTIVE,
    FEW_R_HAT,
    HIGH_R_HAT,
    STRAY,
    Finding,
    Sampler,
    as_r_hat,
    broken,
    counted,
    failures,
    listed,
    low_acceptance,
)
from scoretk.errors import InvalidArgument, Status

__all__ = ["Halves", "halves_from", "halves_of", "split_rhat", "summarise_halves"]

Array = Any


@dataclass(frozen=True)
class Halves:
    """Moments of the first and of the second half of each chain's draws.

    Args:
        mean: Means, `(chains, 2, *event_shape)`.
        var: Variances (divisor n - 1), like it.
        draws: Of how many draws, `(chains, 2)`.
    """

    mean: Tensor
    var: Tensor
    draws: Tensor

    @property
    def whole(self) -> tuple[Tensor, Tensor]:
        """The mean and the variance of all draws of each chain, `(chains, *event_shape)`.

        References:
            Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
            variances" (1979).
        """
        n = self.draws.to(self.mean).reshape(*self.draws.shape, *(1,) * (self.mean.ndim - 2))
        total = n.sum(1)
        mean = (self.mean * n).sum(1) / total
        squares = (self.var.nan_to_num(0.0) * (n - 1)).sum(1)
        squares = squares + ((self.mean - mean[:, None]).square() * n).sum(1)
        return mean, squares / (total - 1)


@runtime_checkable
class HasHalves(Protocol):
    """Draws, in memory, in a store, or of which moments were kept."""

    def halves(self) -> Halves: ...


def halves_of(x: Tensor) -> Halves:
    """The moments of halves of draws `(chains, draws, *event_shape)`; of an odd number the second is longer."""
    x = wide(x)
    cut = x.shape[1] // 2
    parts = (x[:, :cut], x[:, cut:])
    return Halves(
        torch.stack([part.mean(1) for part in parts], 1),
        torch.stack([part.var(1) for part in parts], 1),
        torch.tensor([part.shape[1] for part in parts]).expand(len(x), 2),
    )


def halves_from(
    whole: tuple[Tensor, Tensor], first: tuple[Tensor, Tensor], draws: Tensor
) -> Halves:
    """The moments of both halves, from those of all draws and of the first half.

    The second half is what is left of all without the first: with n, k draws of the halves, means
    m, m_1, m_2 and sums of squared deviations M, M_1, M_2,

        m_2 = m + (m - m_1) n / k        M_2 = M - M_1 - (m_2 - m_1)^2 n k / (n + k).

    Args:
        whole: Mean and variance of all draws of each chain, `(chains, *event_shape)`.
        first: Those of the first half.
        draws: Of how many draws the halves are, `(chains, 2)`.

    References:
        Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances" (1979).
    """
    (mean, var), (first_mean, first_var) = whole, first
    n, k = draws.to(mean).reshape(*draws.shape, *(1,) * (mean.ndim - 1)).unbind(1)
    second = mean + (mean - first_mean) * (n / k)
    squares = var * (n + k - 1) - first_var * (n - 1)
    squares = squares - (second - first_mean).square() * (n * k / (n + k))
    return Halves(
        torch.stack([first_mean, second], 1),
        torch.stack([first_var, squares.clamp(min=0.0) / (k - 1)], 1),
        draws,
    )


@explained
def split_rhat(draws: Tensor | HasHalves) -> Tensor:
    """Split R-hat of each coordinate, from the moments of each chain's halves.

    Without normal scores: it sees that chains differ in place, not in spread, and is of use where
    they have a variance. Of draws whose moments were kept it is all there is; of others `rhat` sees
    more.

    Args:
        draws: What `sample` returned, with any `keep=` but "last"; or draws
            `(chains, draws, *event_shape)`, at least four of each chain. Chains that failed count.

    Returns:
        `event_shape`, float64; NaN where no draw differs from another.

    Raises:
        InvalidArgument: There are fewer draws, or moments of halves were not kept.
    """
    shape = getattr(draws, "shape", (0, 4))
    if len(shape) < 2 or shape[1] < 4:
        expected = "draws (chains, draws, *event_shape), at least four of each chain"
        raise InvalidArgument("draws", draws, expected)
    if isinstance(draws, Tensor):
        found = halves_of(draws)
    elif isinstance(draws, HasHalves):
        found = draws.halves()
    else:
        raise InvalidArgument("draws", draws, "what sample returned, or a tensor of draws")
    mean, var, n = _flat(found)
    return torch.from_numpy(_r_hat(mean, var, n)).reshape(found.mean.shape[2:])


def _flat(halves: Halves) -> tuple[Array, Array, Array]:
    """As arrays `(chains, 2, d)`, and the numbers of draws."""
    mean, var = (v.detach().cpu().double().flatten(2).numpy() for v in (halves.mean, halves.var))
    return mean, var, halves.draws.cpu().numpy()


def _r_hat(mean: Array, var: Array, draws: Array) -> Array:
    """Split R-hat `(d,)` of halves `(chains, 2, d)`."""
    n = draws.mean()
    means = mean.reshape(-1, mean.shape[2])
    with np.errstate(all="ignore"):
        return np.sqrt((n - 1) / n + means.var(0, ddof=1) / var.mean((0, 1)))


def summarise_halves(
    halves: Halves,
    status: Tensor,
    failed_at: Tensor,
    stats: Mapping[str, Tensor],
    most: int = MOST,
    solver: str = "",
    labels: Sequence[str] | None = None,
) -> Summary:
    """The summary of chains from the moments of their halves.

    The columns that need draws are NaN. The Monte-Carlo error of a mean is that of the mean of so
    many independent chains, where these are `FEWEST` or more.

    Args:
        halves: The moments.
        status: As in `summarise`.
        failed_at: As in `summarise`.
        stats: What the solver reported, averaged over draws, `(chains,)`.
        most: As in `summarise`.
        solver: As in `summarise`.
        labels: As in `summarise`.
    """
    sampler, well = Sampler(solver), (status == int(Status.OK)).cpu()
    names = entry_names(tuple(halves.mean.shape[2:])) if labels is None else list(labels)
    some = Halves(*(value.cpu()[well] for value in (halves.mean, halves.var, halves.draws)))
    reported = {name: value.cpu()[well].numpy() for name, value in stats.items()}
    found = [*failures(status, failed_at, sampler)]
    table: dict[str, dict[str, float]] = {}
    draws = int(halves.draws[0].sum()) if len(halves.draws) else 0
    if not len(some.mean):
        found.append(
            Finding("there are no draws to judge", "see above why the chains failed", "nothing")
        )
    else:
        judged = _Judged.of(some)
        chosen = np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)
        table = {names[i]: judged.row(i) for i in np.unique(chosen)}
        found += judged.findings(names, reported, sampler)
    left_out = len(names) - len(table) if table else 0
    return Summary(table, tuple(found), len(some.mean), draws, left_out, of_moments=True)


@dataclass(frozen=True)
class _Judged:
    """Numbers of each coordinate, `(d,)`, from halves `(chains, 2, d)`.

    Args:
        halves: Means and variances of halves, and the mean and the variance of each whole chain.
        mean: The mean of all draws.
        sd: Their standard deviation.
        error: The standard error of the mean; NaN of few chains.
        r_hat: Split R-hat.
        draws: How many draws a chain has.
    """

    halves: tuple[Array, Array, Array, Array]
    mean: Array
    sd: Array
    error: Array
    r_hat: Array
    draws: float

    @staticmethod
    def of(halves: Halves) -> _Judged:
        means, variances, draws = _flat(halves)
        mean, var = (v.double().flatten(1).numpy() for v in halves.whole)
        n, chains = float(draws[0].sum()), len(mean)
        with np.errstate(all="ignore"):
            squares = (var * (n - 1) + np.square(mean - mean.mean(0)) * n).sum(0)
            error = mean.std(0, ddof=1) / math.sqrt(chains) if chains >= FEWEST else None
            return _Judged(
                (means, variances, mean, var),
                mean.mean(0),
                np.sqrt(squares / (chains * n - 1)),
                np.full(mean.shape[1], np.nan) if error is None else error,
                _r_hat(means, variances, draws),
                n,
            )

    def row(self, i: int) -> dict[str, float]:
        """A row of the table."""
        known = {
            "mean": self.mean[i],
            "sd": self.sd[i],
            "mcse_mean": self.error[i],
            "r_hat": self.r_hat[i],
        }
        return {column: float(known.get(column, math.nan)) for column in COLUMNS}

    def findings(
        self, names: list[str], stats: Mapping[str, Array], sampler: Sampler
    ) -> Iterator[Finding]:
        """What is wrong, at a rate of false alarms of `RATE` a kind.

        R-hat above `FEW_R_HAT` is a finding without a test: each half of a chain is then worth few
        draws, and moments do not tell chains that are short from chains that disagree.
        """
        means, _, mean, var = self.halves
        lost = ~(np.isfinite(mean) & np.isfinite(var))
        yield from broken(lost.sum(0), names, "moments")
        judged = ~lost.any(0)
        still = (var == 0).all(1)
        if still.any() and self._stuck(still, stats, sampler):
            yield Finding(
                f"{counted(int(still.sum()), 'chain')} never moved",
                f"use a longer warmup, another start, or {sampler.smaller_steps}",
                "stuck",
            )
        yield from low_acceptance(stats, sampler)
        stray = stats.get("diverging")
        if stray is not None and float(np.nanmean(stray)) > STRAY:
            yield Finding(
                f"{float(np.nanmean(stray)):.2%} of the trajectories diverged",
                "keep draws, keep='all', which show where; write the model in coordinates without "
                "narrow parts",
                "diverging",
            )
        gap = (means[:, 1] - means[:, 0]).T
        lattice = np.full(len(gap), bool(sampler.discrete))
        z, by = paired(np.where(judged[:, None], gap, 0.0), lattice)
        drifting = judged & (
            np.abs(np.nan_to_num(z, posinf=1e300, neginf=-1e300))
            > z_limit(RATE, 2 * int(judged.sum()))
        )
        if drifting.any():
            worst = int(np.where(drifting, np.abs(z), 0).argmax())
            yield Finding(
                f"the chains drift together in their mean: from the first half of the draws to the "
                f"second by {by[worst]:+.2g} in {listed(names, drifting, worst)} "
                f"(z = {abs(z[worst]):.3g})",
                "they are on their way still: use a longer warmup and more steps",
                "drift",
            )
        apart = judged & ((self.r_hat > FEW_R_HAT) | (self.r_hat > HIGH_R_HAT) & drifting)
        if apart.any():
            worst = int(np.where(apart, self.r_hat, 0).argmax())
            more = f" ({int(apart.sum())} coordinates)" if apart.sum() > 1 else ""
            yield Finding(
                f"the chains disagree, or are too short to tell: split R-hat of {names[worst]} is "
                f"{as_r_hat(self.r_hat[worst])}{more}",
                "use more warmup and steps, or keep draws, keep='all', which tell one from the "
                "other",
                "disagree",
            )
        yield from self._few(names, judged, bool(drifting.any() or apart.any()))

    def _stuck(self, still: Array, stats: Mapping[str, Array], sampler: Sampler) -> bool:
        """Whether chains stand still that chance does not keep in place; of discrete ones, all."""
        if still.all() or sampler.discrete:
            return bool(still.all())
        accept = stats.get("accept")
        if accept is None or not np.isfinite(accept).any():
            return True
        stays = 1 - float(np.clip(np.nanmean(accept[~still]), 0, 1))
        return bool(len(still) * stays ** (self.draws - 1) < RATE)

    def _few(self, names: list[str], judged: Array, troubled: bool) -> Iterator[Finding]:
        """The finding that the chains' means vary more than those of `FEW_EFFECTIVE` draws would."""
        chains = len(self.halves[2])
        if chains < FEWEST:
            return
        with np.errstate(all="ignore"):
            worth = np.square(self.sd / self.error)
            z = f_deviate(FEW_EFFECTIVE / worth, chains - 1, 1e9)
        few = judged & (z > z_limit(RATE, int(judged.sum())))
        if few.any():
            worst = int(np.where(few, worth, np.inf).argmin())
            yield Finding(
                f"few effective draws, those of {names[worst]} are worth {worth[worst]:.0f}",
                "more of the same does not help before what is said above is mended"
                if troubled
                else f"use about {math.ceil(FEW_EFFECTIVE / max(worth[worst], 1))} times the steps "
                f"or the chains",
                "few",
            )
