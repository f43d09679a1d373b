r"""Calibration of samplers of posteriors: whether a truth looks like one more draw.

For simulations i = 1 .. n let theta_i be a draw of the prior, y_i data given theta_i, and theta_i1 ..
theta_iL independent draws of a sampler that was shown y_i alone. Where these are of the posterior,
theta_i and the L draws are exchangeable given y_i, so that for any function f of theta and y the rank

    r_i = #{l : f(theta_il, y_i) < f(theta_i, y_i)}

is uniform on 0 .. L (simulation-based calibration, SBC; here f is each coordinate). With the distance
from a reference point as f,

    r_i = #{l : |theta_il - rho_i| < |theta_i - rho_i|}

and r_i / L is the credibility at which a ball about rho_i just holds the truth (tests of accuracy with
random points, TARP): its distribution function is the expected coverage. Both are tested by how far
out of its binomial law the distribution function of the ranks goes anywhere,

    T = max over values and coordinates of -log(2 min(P(B <= c), P(B >= c))),  B ~ Bin(n, z / (L + 1))

with c the number of ranks below z. The null law of T comes from what exchangeability says: in each
simulation any of the L + 1 points may stand for the truth. The p-value is exact at any n and L, for
coordinates that depend on each other and for ties, which are broken at random.

What is blind: a sampler that ignores the data and draws from the prior is calibrated in every
function of theta alone. References that depend on the data (`references=`), or a function of both
such as the log likelihood as one more coordinate, see it.

References:
    Cook, Gelman, Rubin, "Validation of software for Bayesian models using posterior quantiles"
    (2006).
    Talts, Betancourt, Simpson, Vehtari, Gelman, "Validating Bayesian inference algorithms with
    simulation-based calibration" (2018).
    Säilynoja, Bürkner, Vehtari, "Graphical test for discrete uniformity and its applications in
    goodness-of-fit evaluation and multiple sample comparison" (2022), for the bands.
    Lemos, Coogan, Hezaveh, Perreault-Levasseur, "Sampling-based accuracy testing of posterior
    estimators for general inference" (2023).
    Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman, Vehtari, "Simulation-based calibration
    checking for Bayesian computation: the choice of test quantities shapes sensitivity" (2023).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import count
from scoretk.core.keywords import explained
from scoretk.diagnostics.discrepancies import TestResult, _check, _compared, _least, _rank
from scoretk.diagnostics.distances import _generator, sample_rows
from scoretk.errors import InvalidArgument

__all__ = ["RankBand", "rank_band", "sbc_ranks", "sbc_test", "tarp_ranks", "tarp_test"]

MOST_VALUES = 200
"""The largest number of values at which a distribution function of ranks is looked at."""
BLOCK = 2**20
"""How many ranks are counted at a time."""


class RankBand(NamedTuple):
    """The region in which the distribution function of uniform ranks lies as a whole.

    Args:
        below: The values z, `(values,)` of int64: the function is the share of ranks below z.
        low: The lower ends, shares, `(values,)`.
        high: The upper ends, shares, `(values,)`.
    """

    below: Tensor
    low: Tensor
    high: Tensor


@explained
def sbc_ranks(truth: Tensor, draws: Tensor, *, seed: int = 0) -> Tensor:
    """The rank of each coordinate of the truth among the draws of its posterior.

    Args:
        truth: Draws of the prior, `(n, *event_shape)`.
        draws: For each the draws of a sampler given its data, independent, `(n, L, *event_shape)`:
            `draws.x` of one chain a simulation, thinned.
        seed: The seed of the choice among ties.

    Returns:
        Ranks in 0 .. L, `(n, *event_shape)` of int64; uniform where the sampler is right.

    Raises:
        InvalidArgument: For shapes that do not fit, or numbers that are not finite.
    """
    pool = _pool(truth, draws)
    return _ranks(pool, _generator(seed))[:, 0].reshape(truth.shape)


@explained
def sbc_test(
    truth: Tensor, draws: Tensor, *, level: float = 0.05, permutations: int = 500, seed: int = 0
) -> TestResult:
    """Simulation-based calibration: test whether the ranks of all coordinates are uniform.

    A posterior that is too narrow, too wide, shifted or skewed in a coordinate is found; correlations
    between coordinates, and whether the data were used at all, are not seen. Functions of theta and
    the data can be given as further coordinates.

    Args:
        truth: Draws of the prior, at least two, `(n, *event_shape)`.
        draws: For each the draws of a sampler given its data, independent, `(n, L, *event_shape)`.
        level: The rate of false alarms, over all coordinates together.
        permutations: How many choices of who stands for the truth make the null law, at least
            `1 / level - 1`.
        seed: The seed of ties and permutations.

    Returns:
        A `TestResult`; the statistic is T of the module.

    Raises:
        InvalidArgument: For shapes that do not fit, or numbers that are not finite.
    """
    pool = _pool(truth, draws)
    _check(level, "permutations", permutations)
    generator = _generator(seed)
    return _uniform(_ranks(pool, generator), level, permutations, generator)


@explained
def tarp_ranks(
    truth: Tensor, draws: Tensor, *, references: Tensor | None = None, seed: int = 0
) -> Tensor:
    """The rank of the truth among the draws by distance from a reference point.

    Distances are Euclidean, with coordinates in units of their standard deviation over all truths and
    draws.

    Args:
        truth: Draws of the prior, at least two, `(n, *event_shape)`.
        draws: For each the draws of a sampler given its data, independent, `(n, L, *event_shape)`.
        references: The reference points, like truth; they may depend on the data but not on truth or
            draws. By default each is a random point of another simulation.
        seed: The seed of references and ties.

    Returns:
        Ranks in 0 .. L, `(n,)` of int64. The share of ranks below `a (L + 1)` is the expected
        coverage at credibility a, which is a where the sampler is right.

    Raises:
        InvalidArgument: For shapes that do not fit, or numbers that are not finite.
    """
    generator = _generator(seed)
    return _ranks(_distances(truth, draws, references, generator), generator)[:, 0, 0]


@explained
def tarp_test(
    truth: Tensor,
    draws: Tensor,
    *,
    references: Tensor | None = None,
    level: float = 0.05,
    permutations: int = 500,
    seed: int = 0,
) -> TestResult:
    """Tests of accuracy with random points: test whether balls cover the truth as often as they say.

    In contrast to `sbc_test` it looks at all coordinates at once, correlations among them.

    Args:
        truth: As in `tarp_ranks`.
        draws: As in `tarp_ranks`.
        references: As in `tarp_ranks`. Points that depend on the data, such as a rough estimate of
            theta, see a sampler that does not use them; the default does not.
        level: The rate of false alarms.
        permutations: How many choices of who stands for the truth make the null law, at least
            `1 / level - 1`.
        seed: The seed of references, ties and permutations.

    Returns:
        A `TestResult`; the statistic is T of the module.

    Raises:
        InvalidArgument: For shapes that do not fit, or numbers that are not finite.
    """
    _check(level, "permutations", permutations)
    generator = _generator(seed)
    distances = _distances(truth, draws, references, generator)
    return _uniform(_ranks(distances, generator), level, permutations, generator)


@explained
def rank_band(
    n: int, draws: int, *, level: float = 0.05, simulations: int = 2000, seed: int = 0
) -> RankBand:
    """The band that the distribution function of n uniform ranks leaves with probability `level`.

    It holds for all values together: a plot of one coordinate's ranks that leaves it is a rejection
    at that level. It is that of the statistic of `sbc_test`, its null law simulated.

    Args:
        n: How many ranks there are.
        draws: L, the largest rank.
        level: The rate of false alarms of the band as a whole.
        simulations: How many sets of uniform ranks make the null law, at least `1 / level - 1`.
        seed: Their seed.

    Returns:
        A `RankBand`.

    Raises:
        InvalidArgument: For numbers out of range.
    """
    n, most = count("n", n, least=2), count("draws", draws, least=1)
    _check(level, "simulations", simulations)
    below, tails = _values(most), _tails(n, most)
    generator = _generator(seed)
    ranks = torch.randint(most + 1, (simulations, n, 1), generator=generator)
    null = torch.cat([_statistics(part, below, tails) for part in ranks.split(_block(n, 1))])
    # the largest statistic that is no rejection
    limit = float(null.sort(descending=True).values[_rank(level, simulations) - 1])
    inside = tails < limit - 1e-9
    counts = torch.arange(n + 1)
    low = torch.where(inside, counts, n).amin(1)
    high = torch.where(inside, counts, 0).amax(1)
    return RankBand(below, low / n, high / n)


def _pool(truth: Tensor, draws: Tensor) -> Tensor:
    """Truths and draws as `(n, 1 + L, d)` in float64, the truth first."""
    theta = sample_rows("truth", truth)
    _least("truth", theta, 2)
    rows = sample_rows("draws", draws)
    if draws.ndim < 2 or draws.shape[:1] + draws.shape[2:] != truth.shape:
        expected = f"L draws for each truth, ({len(truth)}, L, *event_shape) with event shape "
        raise InvalidArgument("draws", draws, f"{expected}{tuple(truth.shape[1:])}")
    n, d = theta.shape
    return torch.cat([theta[:, None], rows.reshape(n, -1, d)], 1)


def _distances(
    truth: Tensor, draws: Tensor, references: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Distances of all points of each simulation from its reference, `(n, 1 + L, 1)`."""
    pool = _pool(truth, draws)
    n, points, d = pool.shape
    if references is None:
        # any point of another simulation, the truth no likelier than a draw: so chosen, references
        # say nothing of which is which
        other = (torch.arange(n) + torch.randint(1, n, (n,), generator=generator)) % n
        near = pool[other, torch.randint(points, (n,), generator=generator)]
    else:
        near = sample_rows("references", references)
        if references.shape != truth.shape:
            raise InvalidArgument("references", references, f"the shape of truth, {truth.shape}")
    # by powers of two, which change no bit: squares of large numbers would overflow
    exponent = -torch.frexp(pool.reshape(-1, d).abs().amax(0))[1]
    pool, near = torch.ldexp(pool, exponent), torch.ldexp(near, exponent)
    unit = pool.reshape(-1, d).std(0)
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))
    distances: Tensor = ((pool - near[:, None]) / unit).norm(dim=2, keepdim=True)
    return distances


def _ranks(pool: Tensor, generator: torch.Generator) -> Tensor:
    """The rank of each point among the others of its simulation, by coordinate, like pool.

    Ties are broken at random.
    """
    shuffle = torch.rand(pool.shape[:2], generator=generator).argsort(1)[..., None].expand_as(pool)
    order = pool.gather(1, shuffle).argsort(dim=1, stable=True)
    places = torch.arange(pool.shape[1])[None, :, None].expand_as(order)
    shuffled = torch.empty_like(order).scatter_(1, order, places)
    return torch.empty_like(order).scatter_(1, shuffle, shuffled)


def _values(most: int) -> Tensor:
    """The values z at which distribution functions of ranks in 0 .. most are looked at."""
    return torch.linspace(1, most, min(most, MOST_VALUES), dtype=torch.float64).round().long()


def _tails(n: int, most: int) -> Tensor:
    """-log(2 min(P(B <= c), P(B >= c))), at least 0, for c = 0 .. n at each z, `(values, n + 1)`."""
    share = (_values(most).double() / (most + 1))[:, None]
    c = torch.arange(n + 1, dtype=torch.float64)
    ways = math.lgamma(n + 1) - torch.lgamma(c + 1) - torch.lgamma(n - c + 1)
    log_mass = ways + c * share.log() + (n - c) * torch.log1p(-share)
    lower = log_mass.logcumsumexp(1)
    upper = log_mass.flip(1).logcumsumexp(1).flip(1)
    return (-math.log(2) - torch.minimum(lower, upper)).clamp(min=0)


def _statistics(ranks: Tensor, below: Tensor, tails: Tensor) -> Tensor:
    """T of sets of ranks `(sets, n, d)`: the largest of `tails` at the counts below each value."""
    sets, _, d = ranks.shape
    # a rank r counts below every value above it: it enters at the first of them
    enters = torch.searchsorted(below, ranks, right=True)
    first = (len(below) + 1) * torch.arange(sets * d).reshape(sets, 1, d)
    entries = torch.bincount((first + enters).flatten(), minlength=sets * d * (len(below) + 1))
    counts = entries.reshape(sets, d, -1).cumsum(2)[..., : len(below)]
    return tails[torch.arange(len(below)), counts].amax((1, 2))


def _uniform(
    ranks: Tensor, level: float, permutations: int, generator: torch.Generator
) -> TestResult:
    """The test of ranks `(n, 1 + L, d)`, of which those of the truths come first."""
    n, points, d = ranks.shape
    below, tails, rows = _values(points - 1), _tails(n, points - 1), torch.arange(n)
    stand = torch.randint(points, (permutations, n), generator=generator)
    stand = torch.cat([torch.zeros(1, n, dtype=torch.int64), stand])
    found = [_statistics(ranks[rows, part], below, tails) for part in stand.split(_block(n, d))]
    observed, *null = torch.cat(found)
    return _compared(float(observed), torch.stack(null), level)


def _block(n: int, d: int) -> int:
    """How many sets of ranks `(n, d)` are in memory at a time."""
    return max(1, BLOCK // (n * d))
