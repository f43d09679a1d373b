r"""Statistics of how chains mix, all d coordinates at once.

Arrays are float64 `(d, chains, n)`, statistics `(d,)`, unless said otherwise.

*Normal scores* of a coordinate are `Phi^-1((rank - 3/8) / (N + 1/4))` over all its N draws, ties
sharing their mean rank. *Folded* scores are those of `|x - median|`, in which chains differ that
agree in place and not in spread.

    effective draws   N / tau,    tau = 1 + 2 sum_k rho_k over Geyer's initial monotone sequence,
                      rho_k the autocorrelation of all (split) chains together at lag k
    R-hat             sqrt(V / W),    V = (n - 1)/n W + var(chain means),
                      W the mean variance within chains

The C chains are independent of each other, whatever each does within itself. So a statistic of
single chains is compared *across* chains, and no autocorrelation time has to be known:

    drift         t = mean D / sqrt(var D / C), of C - 1 degrees of freedom, where D_c is the mean of
                  chain c's second half less that of its first.
    alternation   The same with D_c the mean over t of (-1)^t x_ct, which a chain of period two keeps
                  and others lose.
    memory        Chains are put into K superchains by the means of their first halves. Where they
                  have forgotten these, F = MS between / MS within the superchains, of the means of
                  the last quarters, has (K - 1, C - K) degrees of freedom.
    outlying      A chain whose halves both lie so many standard deviations (over chains) off on one
                  side.

Where chains are few, the variance of chain means is instead compared with what the correlations
within chains make it, out to lag m:

    F = var(chain means) / (V / n),
    V = (sum of autocovariances within chains, out to lag m) / (1 - (2 m + 1) / n)

with the divisor because each autocovariance about a chain's own mean is V / n too small.

All these statistics are turned into standard normal deviates z, by approximations good to a few
percent of z in the tails that are used.

References:
    Vehtari, Gelman, Simpson, Carpenter, Bürkner, "Rank-normalization, folding, and localization: an
    improved R-hat for assessing convergence of MCMC" (2021).
    Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari, Gelman, "Nested R-hat: assessing the
    convergence of Markov chain Monte Carlo when running many short chains" (2024).
    Geyer, "Practical Markov chain Monte Carlo" (1992).
    Geweke, "Evaluating the accuracy of sampling-based approaches to the calculation of posterior
    moments" (1992), for parts of a chain compared.
    Wallace, "Bounds on normal approximations to Student's and the chi-square distributions" (1959),
    and Paulson, "An approximate normalization of the analysis of variance distribution" (1942), for
    t and F as normal deviates.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

__all__ = [
    "alternation",
    "autocorrelation_time",
    "between",
    "drift",
    "effective",
    "fold",
    "mcse_mean",
    "mcse_sd",
    "memory",
    "nested_r_hat",
    "nested_r_hat_of",
    "normal_scores",
    "outlying",
    "paired",
    "r_hat",
    "split",
    "tail_effective",
    "z_limit",
]

Array = Any
DIRECT = 16
"""How many lags are summed one by one, which is enough for chains that mix well, before all are
computed by a Fourier transform.
"""
SUPERCHAINS = 4
FEWEST = 4 * SUPERCHAINS
"""The smallest number of chains of which superchains are compared."""
MOST_LOST = 0.75
"""The largest share of V that is taken to be missing in autocovariances about chains' own means."""
TRUST = 3.0
"""An autocorrelation time from N / tau effective draws counts as an estimate of N / (3 tau) degrees
of freedom.
"""


def z_limit(rate: float, comparisons: int) -> float:
    """The normal deviate that the largest of several exceeds with probability `rate` at most.

    Args:
        rate: The rate of false alarms of all comparisons together.
        comparisons: How many there are (Bonferroni's bound).
    """
    return NormalDist().inv_cdf(1 - rate / max(comparisons, 1))


def split(x: Array) -> Array:
    """Each chain as two, its halves: `(d, 2 chains, n // 2)`.

    Of an odd number of draws the middle one is left out.
    """
    half = x.shape[2] // 2
    return np.concatenate([x[:, :, :half], x[:, :, x.shape[2] - half :]], 1)


def normal_scores(x: Array) -> Array:
    """Normal scores over all draws of each coordinate, ties at their mean rank; like x."""
    flat = x.reshape(len(x), -1)
    n = flat.shape[1]
    order = flat.argsort(1)
    ordered = np.take_along_axis(flat, order, 1)
    fresh = ordered[:, 1:] != ordered[:, :-1]
    table = _score_table(n)
    by_rank = np.broadcast_to(table[::2], flat.shape).copy()
    tied = ~fresh.all(1)
    if tied.any():
        at, edge = np.arange(n), np.ones((int(tied.sum()), 1), bool)
        first = np.maximum.accumulate(np.where(np.concatenate([edge, fresh[tied]], 1), at, 0), 1)
        last = np.where(np.concatenate([fresh[tied], edge], 1), at, n)[:, ::-1]
        by_rank[tied] = table[first + np.minimum.accumulate(last, 1)[:, ::-1]]
    scores = np.empty_like(flat)
    np.put_along_axis(scores, order, by_rank, 1)
    return scores.reshape(x.shape)


@lru_cache(4)
def _score_table(n: int) -> Array:
    """The scores of ranks 1, 3/2, 2, ..., n among n."""
    half_ranks = torch.arange(2 * n - 1, dtype=torch.float64) / 2 + 1
    return torch.special.ndtri((half_ranks - 0.375) / (n + 0.25)).numpy()


def fold(x: Array) -> Array:
    """The distances `|x - median|` from each coordinate's median over all draws, like x."""
    return np.abs(x - np.median(x.reshape(len(x), -1), 1)[:, None, None])


def r_hat(x: Array) -> Array:
    """R-hat of the chains as they are: split them first, and take normal scores.

    NaN where all draws have one value.
    """
    within = x.var(2, ddof=1).mean(1)
    n = x.shape[2]
    with np.errstate(all="ignore"):
        return np.sqrt((n - 1) / n + x.mean(2).var(1, ddof=1) / within)


def autocorrelation_time(x: Array) -> Array:
    """The autocorrelation time tau of all chains together; NaN where there is no variance.

    It is at least `1 / log10 N`, which bounds the effective draws of antithetic chains.
    """
    total, tau, _ = _initial_sequence(x, pooled=True)
    return np.where(total > 0, np.maximum(tau, 1 / math.log10(max(x[0].size, 2))), np.nan)


def _initial_sequence(x: Array, *, pooled: bool) -> tuple[Array, Array, Array]:
    """The variance, tau by Geyer's initial monotone sequence, and the length of that in pairs.

    Args:
        x: `(d, chains, n)`.
        pooled: Whether differences between chains' means count as variance and as correlation.
    """
    d, chains, n = x.shape
    about = x - x.mean(2, keepdims=True)
    most = max(1, (n - 1) // 2)
    with np.errstate(all="ignore"):
        within = np.square(about).sum((1, 2)) / (chains * (n - 1))
        total = within * (n - 1) / n
        if pooled and chains > 1:
            total = total + x.mean(2).var(1, ddof=1)

        def pairs_of(covariances: Array, of: Array) -> tuple[Array, Array]:
            rho = 1 - (within[of, None] - covariances) / total[of, None]
            rho[:, 0] = 1.0
            pairs = rho.reshape(len(rho), -1, 2)
            return pairs[:, :, 0], pairs.sum(2)

        few = min(DIRECT // 2, most)
        even, pairs = np.full((d, most), -1.0), np.full((d, most), -1.0)
        direct = [
            np.einsum("dcn,dcn->d", about[:, :, : n - k], about[:, :, k:]) for k in range(2 * few)
        ]
        even[:, :few], pairs[:, :few] = pairs_of(np.stack(direct, 1) / (chains * n), np.arange(d))
        longer = np.flatnonzero((pairs[:, :few] > 0).all(1)) if few < most else np.arange(0)
        if len(longer):
            power = sum(
                np.abs(np.fft.rfft(about[longer, c], 2 * n, axis=1)) ** 2 for c in range(chains)
            )
            covariances = np.fft.irfft(power, axis=1)[:, : 2 * most] / (chains * n)
            even[longer], pairs[longer] = pairs_of(covariances, longer)
    ended = pairs <= 0
    end = np.where(ended.any(1), ended.argmax(1), most - 1)
    counted = np.arange(most) < end[:, None]
    last = np.maximum(np.take_along_axis(even, end[:, None], 1)[:, 0], 0.0)
    tau = -1 + 2 * np.where(counted, np.minimum.accumulate(pairs, 1), 0.0).sum(1) + last
    return total, tau, end


def effective(x: Array) -> Array:
    """The number of effective draws of all chains together; N where a coordinate is constant."""
    size = x.shape[1] * x.shape[2]
    constant = (x == x[:, :1, :1]).all((1, 2))
    return np.where(constant, size, size / autocorrelation_time(x))


def tail_effective(x: Array) -> Array:
    """The smaller of the effective draws of `x <= q` for the 5 % and the 95 % quantile q.

    The chains are split here.
    """
    low, high = np.quantile(x.reshape(len(x), -1), [0.05, 0.95], axis=1)
    both = [effective(split((x <= q[:, None, None]).astype(np.float64))) for q in (low, high)]
    return np.minimum(*both)


def mcse_mean(x: Array) -> Array:
    """The Monte-Carlo standard error of the mean over all draws; the chains are split here."""
    return x.reshape(len(x), -1).std(1, ddof=1) / np.sqrt(effective(split(x)))


def mcse_sd(x: Array) -> Array:
    """The Monte-Carlo standard error of the standard deviation, by the delta method.

    The chains are split here.
    """
    squares = np.square(x - x.mean((1, 2), keepdims=True))
    variance = squares.mean((1, 2))
    with np.errstate(all="ignore"):
        of_variance = (np.square(squares).mean((1, 2)) - variance**2) / effective(split(squares))
        return np.sqrt(of_variance / variance / 4)


def drift(x: Array, lattice: Array) -> tuple[Array, Array]:
    """The paired test of halves across chains.

    Args:
        x: `(d, chains, n)`.
        lattice: `(d,)` of bool, the coordinates of few values, for which `paired` has a bound.

    Returns:
        z, and by how much the mean of the second half is larger.
    """
    half = x.shape[2] // 2
    with np.errstate(all="ignore"):
        return paired(x[:, :, x.shape[2] - half :].mean(2) - x[:, :, :half].mean(2), lattice)


def alternation(x: Array, lattice: Array) -> tuple[Array, Array]:
    """As `drift`, for half the difference of the means of draws at even and at odd places.

    The first and the last draw count half, so that a linear trend cancels.
    """
    turned = flipped(x)[:, :, : (x.shape[2] - 1) // 2 * 2 + 1]
    return paired(
        (turned.sum(2) - (turned[:, :, 0] + turned[:, :, -1]) / 2) / (turned.shape[2] - 1), lattice
    )


def flipped(x: Array) -> Array:
    """The draws `(-1)^t x_t`, like x: of mean 0 where x mixes, without period two where x has it."""
    return x * np.where(np.arange(x.shape[2]) % 2, -1.0, 1.0)


def nested_r_hat(x: Array, superchains: Array) -> Array:
    """Nested R-hat, `sqrt(1 + B / W)`.

    B is the variance of the superchains' means, W the variance within superchains.

    Args:
        x: `(d, chains, n)`.
        superchains: `(d, chains)`, the number of each chain's superchain, from 0.
    """
    inside = x.var(2, ddof=1) if x.shape[2] > 1 else np.zeros(x.shape[:2])
    return nested_r_hat_of(x.mean(2), inside, superchains)


def nested_r_hat_of(means: Array, inside: Array, superchains: Array) -> Array:
    """As `nested_r_hat`, of the means and the variances of chains, each `(d, chains)`."""
    between_groups, within_groups, sizes = _groups(means, superchains)
    with np.errstate(all="ignore"):
        return np.sqrt(1 + between_groups / sizes / (within_groups + inside.mean(1)))


def memory(x: Array) -> tuple[Array, Array]:
    """The test that superchains, made by their chains' first halves, agree in the last quarter.

    Returns:
        z, and the nested R-hat of the last quarter. NaN where there are fewer than `FEWEST` chains
        or 4 draws; z also where the means of so few chains differ, as with rare events, that F says
        nothing.
    """
    d, chains, n = x.shape
    if chains < FEWEST or n < 4:
        return np.full(d, np.nan), np.full(d, np.nan)
    early = x[:, :, : n // 2].mean(2)
    rank = early.argsort(1, kind="stable").argsort(1, kind="stable")
    superchains = rank * SUPERCHAINS // chains
    late = x[:, :, n - n // 4 :]
    means = late.mean(2)
    between_groups, within_groups, _ = _groups(means, superchains)
    with np.errstate(all="ignore"):
        z = f_deviate(between_groups / within_groups, SUPERCHAINS - 1, chains - SUPERCHAINS)
    telling = (means != np.median(means, 1)[:, None]).sum(1) >= FEWEST
    return np.where(telling, z, np.nan), nested_r_hat(late, superchains)


def outlying(x: Array, limit: float) -> Array:
    """Which chains have both halves further from the mean than a limit, on one side.

    Args:
        x: `(d, chains, n)`.
        limit: In standard deviations over chains of the means of halves.

    Returns:
        `(d, chains)` of bool; False for a chain that is alone.
    """
    if x.shape[1] < 2:
        return np.zeros(x.shape[:2], bool)
    half = x.shape[2] // 2
    sides = []
    for part in (x[:, :, :half].mean(2), x[:, :, x.shape[2] - half :].mean(2)):
        with np.errstate(all="ignore"):
            sides.append((part - part.mean(1, keepdims=True)) / part.std(1, ddof=1, keepdims=True))
    return (np.minimum(*sides) > limit) | (np.maximum(*sides) < -limit)


def between(x: Array, slack: float, centre: float | None = None) -> Array:
    """The test that chains' means vary no more than those of chains of one law would.

    The chains of one law are taken to be as correlated as these are. F has `(K - 1, N / (3 tau))`
    degrees of freedom for K (split) chains.

    Args:
        x: `(d, chains, n)`.
        slack: The factor that the variance of the means may be larger by.
        centre: The mean of the law where it is known, and then also chains are found that are off
            it together; else None.

    Returns:
        z, infinite where each chain is constant and they differ.
    """
    _, chains, n = x.shape
    variance, tau, pairs = _initial_sequence(x, pooled=False)
    tau = np.maximum(tau, 1.0)
    lost = np.minimum((4 * pairs + 1) / n, MOST_LOST)
    means = x.mean(2)
    apart = means.var(1, ddof=1) if centre is None else np.square(means - centre).mean(1)
    degrees = chains - (centre is None)
    with np.errstate(all="ignore"):
        z = f_deviate(
            apart * n * (1 - lost) / (slack * variance * tau), degrees, chains * n / (TRUST * tau)
        )
    return np.where((variance <= 1e-20) & (apart > 1e-20), np.inf, z)


def paired(difference: Array, lattice: Array) -> tuple[Array, Array]:
    """The test that a difference D, `(d, chains)`, has mean 0 over chains.

    Draws of few values make few different D, which may all be equal by chance. There |z| is at most
    `|sum D| / sqrt(sum D^2)`, which exceeds z with probability 2 exp(-z^2 / 2) at most where both
    signs are equally probable (Hoeffding).

    Returns:
        z, NaN for one chain and where all D are 0; and the mean of D.
    """
    d, chains = difference.shape
    mean = difference.mean(1)
    if chains < 2:
        return np.full(d, np.nan), mean
    with np.errstate(all="ignore"):
        t = mean / (difference.std(1, ddof=1) / math.sqrt(chains))
        t = np.where((mean != 0) & ~np.isfinite(t), np.copysign(1e150, mean), t)
        bound = difference.sum(1) / np.sqrt(np.square(difference).sum(1))
    z = t_deviate(t, chains - 1)
    return np.where(lattice & (np.abs(bound) < np.abs(z)), bound, z), mean


def _groups(values: Array, group: Array) -> tuple[Array, Array, float]:
    """Mean squares between and within groups of `(d, chains)`, and the mean size of a group."""
    d, chains = values.shape
    number = int(group.max()) + 1
    where = group + number * np.arange(d)[:, None]
    sizes = np.bincount(where.ravel(), minlength=d * number).reshape(d, number)
    sums = np.bincount(where.ravel(), values.ravel(), d * number).reshape(d, number)
    means = sums / sizes
    between_groups = (sizes * np.square(means - values.mean(1, keepdims=True))).sum(1) / (
        number - 1
    )
    within_groups = np.square(values - np.take_along_axis(means, group, 1)).sum(1) / max(
        chains - number, 1
    )
    return between_groups, within_groups, chains / number


def t_deviate(t: Array, degrees: Array) -> Array:
    """The normal deviate as improbable as Student's t (Wallace)."""
    return (
        np.sign(t)
        * (8 * degrees + 1)
        / (8 * degrees + 3)
        * np.sqrt(degrees * np.log1p(np.square(t) / degrees))
    )


def f_deviate(f: Array, above: Array, below: Array) -> Array:
    """The normal deviate as improbable as F with these degrees of freedom (Paulson)."""
    a, b, root = 2 / (9 * above), 2 / (9 * below), np.cbrt(f)
    return ((1 - b) * root - (1 - a)) / np.sqrt(b * root**2 + a)
