r"""What chains tell about themselves, all d coordinates at once.

Of float64 arrays `(d, chains, n)`, in `(d,)` each.

*Normal scores* of a coordinate are `Phi^-1((rank - 3/8) / (N + 1/4))` over all its N draws, ties
sharing their mean rank; *folded* ones are those of `|x - median|`, so that chains that agree in
place and not in spread differ in them.

    effective draws   N / tau,  tau = 1 + 2 sum_k rho_k  over Geyer's initial monotone sequence, rho of all (split) chains
    R-hat             sqrt(V / W),  V = (n - 1)/n W + var(chain means),  W the mean variance within chains

Chains are independent of each other, whatever each does within itself. So what becomes of a
statistic of one chain, of length n, is compared *across* chains, and no autocorrelation time has to
be known:

    drift        D_c, the mean of chain c's second half less that of its first:  t = mean D / sqrt(var D / C),  C - 1 degrees
    alternation  the same of the mean over t of (-1)^t x_ct, which a chain of period two keeps and others lose
    memory       chains are put into K superchains by their first half; the means of the last quarter of these differ by
                 F = MS between / MS within, (K - 1, C - K) degrees, where chains have forgotten where they were
    outlying     a chain whose halves both lie so many standard deviations (over chains) on one side

Where chains are few the variance of a chain's mean is taken from within instead, and what R-hat is
made of is compared with it:

    F = var(chain means) / (V / n),    V = (sum of autocovariances within chains, out to lag m) / (1 - (2 m + 1) / n)

the divisor because each autocovariance about a chain's own mean is V / n too small.

All statistics become standard normal deviates z, by approximations good to a few percent of z in
the tails that are used.

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
    "normal_scores",
    "outlying",
    "r_hat",
    "split",
    "tail_effective",
    "z_limit",
]

Array = Any
DIRECT = 16
"""Lags that are summed one by one before all are computed by a Fourier transform: chains that mix
need no more.
"""
SUPERCHAINS = 4
FEWEST = 4 * SUPERCHAINS
"""Chains from which on superchains of them are compared."""
MOST_LOST = 0.75
"""The largest share of V that is taken to be missing in autocovariances about chains' own means."""
TRUST = 3.0
"""An autocorrelation time estimated from N / tau effective draws is taken for one of N / (3 tau)
degrees of freedom.
"""


def z_limit(rate: float, comparisons: int) -> float:
    """The normal deviate that the largest of so many exceeds with this probability, by Bonferroni's
    bound.
    """
    return NormalDist().inv_cdf(1 - rate / max(comparisons, 1))


def split(x: Array) -> Array:
    """Each chain as two, its halves (of an odd number of draws the middle one is left out).

    `(d, 2 chains, n // 2)`.
    """
    half = x.shape[2] // 2
    return np.concatenate([x[:, :, :half], x[:, :, x.shape[2] - half :]], 1)


def normal_scores(x: Array) -> Array:
    """Normal scores over all draws of a coordinate, ties at their mean rank; of the shape of x."""
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
    """`|x - median|`, the median over all draws of a coordinate."""
    return np.abs(x - np.median(x.reshape(len(x), -1), 1)[:, None, None])


def r_hat(x: Array) -> Array:
    """R-hat of the chains as they are: split them first, and take normal scores.

    NaN where all are constant at one value.
    """
    within = x.var(2, ddof=1).mean(1)
    n = x.shape[2]
    with np.errstate(all="ignore"):
        return np.sqrt((n - 1) / n + x.mean(2).var(1, ddof=1) / within)


def autocorrelation_time(x: Array) -> Array:
    """Tau of all chains together, at least `1 / log10 N`; NaN where there is no variance."""
    total, tau, _ = _initial_sequence(x, pooled=True)
    return np.where(total > 0, np.maximum(tau, 1 / math.log10(max(x[0].size, 2))), np.nan)


def _initial_sequence(x: Array, *, pooled: bool) -> tuple[Array, Array, Array]:
    """The variance, tau by Geyer's initial monotone sequence, and how many pairs of lags that has.

    Each `(d,)`.

    Args:
        pooled: Whether what chains' means differ by counts as variance and as correlation.
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
    """Effective draws of the (split) chains together; all of them where a coordinate is constant."""
    size = x.shape[1] * x.shape[2]
    constant = (x == x[:, :1, :1]).all((1, 2))
    return np.where(constant, size, size / autocorrelation_time(x))


def tail_effective(x: Array) -> Array:
    """The fewer of the effective draws of `x <= q` for the 5 % and the 95 % quantile q.

    Chains not split yet.
    """
    low, high = np.quantile(x.reshape(len(x), -1), [0.05, 0.95], axis=1)
    both = [effective(split((x <= q[:, None, None]).astype(np.float64))) for q in (low, high)]
    return np.minimum(*both)


def mcse_mean(x: Array) -> Array:
    """Monte-Carlo standard error of the mean over all draws; chains not split yet."""
    return x.reshape(len(x), -1).std(1, ddof=1) / np.sqrt(effective(split(x)))


def mcse_sd(x: Array) -> Array:
    """That of the standard deviation, by the delta method; chains not split yet."""
    squares = np.square(x - x.mean((1, 2), keepdims=True))
    variance = squares.mean((1, 2))
    with np.errstate(all="ignore"):
        of_variance = (np.square(squares).mean((1, 2)) - variance**2) / effective(split(squares))
        return np.sqrt(of_variance / variance / 4)


def drift(x: Array, lattice: Array) -> tuple[Array, Array]:
    """Z of the paired test of halves across chains, and by how much the second half's mean is
    larger.

    Args:
        lattice: `(d,)` of bool, coordinates of few values, for which `_paired` has a bound of its
            own.
    """
    half = x.shape[2] // 2
    with np.errstate(all="ignore"):
        return _paired(x[:, :, x.shape[2] - half :].mean(2) - x[:, :, :half].mean(2), lattice)


def alternation(x: Array, lattice: Array) -> tuple[Array, Array]:
    """As `drift`, of the draws at even places less those at odd ones, halved.

    A linear trend cancels: the ends count half.
    """
    turned = flipped(x)[:, :, : (x.shape[2] - 1) // 2 * 2 + 1]
    return _paired(
        (turned.sum(2) - (turned[:, :, 0] + turned[:, :, -1]) / 2) / (turned.shape[2] - 1), lattice
    )


def flipped(x: Array) -> Array:
    """`(-1)^t x_t`: where x has period two this has none, and where x mixes it has mean 0."""
    return x * np.where(np.arange(x.shape[2]) % 2, -1.0, 1.0)


def nested_r_hat(x: Array, superchains: Array) -> Array:
    """Nested R-hat, `sqrt(1 + B / W)`.

    B the variance of the superchains' means, W the variance within superchains.

    Args:
        superchains: `(d, chains)`, the number of each chain's, from 0 on.
    """
    between_groups, _, sizes = _groups(x.mean(2), superchains)
    inside = x.var(2, ddof=1) if x.shape[2] > 1 else np.zeros(x.shape[:2])
    means = x.mean(2)
    _, within_groups, _ = _groups(means, superchains)
    with np.errstate(all="ignore"):
        return np.sqrt(1 + between_groups / sizes / (within_groups + inside.mean(1)))


def memory(x: Array) -> tuple[Array, Array]:
    """Z that superchains put together by their chains' first half differ in the last quarter, and
    their nested R-hat there.

    NaN where there are fewer than `FEWEST` chains or 4 draws, or where so few chains' means differ
    (of rare events) that F says nothing.
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
    """Which chains have both halves further than `limit` standard deviations (over chains) from the
    mean on one side.

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
    """Z that chains' means vary by more than `slack` times what those of chains of one law would,
    as correlated as these are.

    With `(K - 1, N / (3 tau))` degrees of freedom for K (split) chains. Infinite where each chain
    is constant and they differ.

    Args:
        centre: The mean that chains of one law have where it is known: then all may be off it
            together.
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


def _paired(difference: Array, lattice: Array) -> tuple[Array, Array]:
    """Z of the mean over chains of `(d, chains)`, and that mean.

    NaN for one chain, and where all are 0.

    Few values make few differences, which may all be equal by chance: there z is at most `|sum D| /
    sqrt(sum D^2)`, which differences of either sign, equally probable, exceed with probability 2
    exp(-z^2 / 2) at most (Hoeffding).
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
