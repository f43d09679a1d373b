r"""Tests with p-values: of draws against a score, and of two samples against one another.

With k(x, y) = (1 + |x - y|^2)^(-1/2), lengths in units of the median distance, and s = grad log p,
the mean over draws of p is 0 of

    KSD^2 = mean_{i != j} u(x_i, x_j),
    u(x, y) = s(x).s(y) k + s(x).grad_y k + s(y).grad_x k + tr grad_x grad_y k

whose null law is that of the same mean of w_i w_j u(x_i, x_j) with random signs w (the wild
bootstrap). The two-sample tests compare a statistic T(x, y) with its values where the labels of the
pooled samples are permuted,

    p = (1 + #{b : T_b >= T}) / (1 + #b)

which is exact at any size. A small p is evidence of a difference; a large one is none of equality:
each test has blind spots, and its docstring names them. All take the draws as independent: thin
chains first.

References:
    Liu, Lee, Jordan, "A kernelized Stein discrepancy for goodness-of-fit tests" (2016).
    Chwialkowski, Strathmann, Gretton, "A kernel test of goodness of fit" (2016).
    Gorham, Mackey, "Measuring sample quality with kernels" (2017).
    Gretton, Borgwardt, Rasch, Schölkopf, Smola, "A kernel two-sample test" (2012).
    Lopez-Paz, Oquab, "Revisiting classifier two-sample tests" (2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arguments import count, function, option, positive
from scoretk.core.dependencies import required
from scoretk.core.keywords import explained
from scoretk.diagnostics.distances import _generator, _matching, _pair, sample_rows
from scoretk.errors import InvalidArgument

__all__ = [
    "TestResult",
    "classifier_test",
    "kernel_stein_discrepancy",
    "mmd_test",
    "sliced_wasserstein_test",
]

BLOCK = 512
"""How many rows of a kernel matrix are in memory at a time."""
MEDIAN_ROWS = 2000
"""The largest number of rows, evenly spaced, among which the median distance is taken."""


@dataclass(frozen=True)
class TestResult:
    """The result of a test.

    Args:
        statistic: The statistic of the test.
        threshold: The quantile at `1 - level` of the statistic under the null hypothesis.
        p_value: The p-value.
        level: The rate of false alarms.
    """

    __test__ = False  # for pytest, which would collect it by its name

    statistic: float
    threshold: float
    """The quantile at `1 - level` of the statistic under the null hypothesis."""
    p_value: float
    level: float

    @property
    def rejected(self) -> bool:
        """Whether `p_value <= level`, that is whether the statistic is above the threshold."""
        return self.p_value <= self.level


@explained
def kernel_stein_discrepancy(
    x: Tensor,
    score: Callable[[Tensor], Tensor] | Tensor,
    *,
    kernel: str = "imq",
    level: float = 0.05,
    bootstraps: int = 1000,
    seed: int = 0,
) -> TestResult:
    """Test whether draws follow the density with a given score, by the unbiased `KSD^2`.

    It is blind to the weights of modes that lie far apart, as the score is: a missing mode may
    pass.

    Args:
        x: At least two independent draws, floating, `(n, *event_shape)`.
        score: `grad log p`, a callable `(n, *event_shape) -> (n, *event_shape)` or its values at x.
        kernel: "imq", the inverse multiquadric.
        level: The rate of false alarms.
        bootstraps: How many vectors of random signs make the null law, at least `1 / level - 1`.
        seed: The seed of the signs.

    Returns:
        A `TestResult`, its statistic near 0 (on either side) where x are draws of p.

    Raises:
        InvalidArgument: Where x or score has the wrong shape or is not finite, or all draws
            coincide.
        UnknownName: For another kernel.
    """
    rows = sample_rows("x", x)
    _least("x", rows, 2)
    if not x.is_floating_point():
        raise InvalidArgument("x", x, "a floating tensor of samples")
    values = function("score", score, "score(x), like x")(x.detach()) if callable(score) else score
    slopes = sample_rows("score", values)
    if values.shape != x.shape:
        raise InvalidArgument("score", values, f"the shape of x, {tuple(x.shape)}")
    option("kernel", kernel, ["imq"])
    _check(level, "bootstraps", bootstraps)
    width = _median_distance("x", x, rows)
    points, slopes = (rows - rows.mean(0)) / width, slopes * width
    n, d = points.shape
    inner = (points * slopes).sum(1)

    def stein(part: slice) -> Tensor:
        a, s = points[part], slopes[part]
        square = torch.cdist(a, points).square()
        k = (1 + square).rsqrt()
        drift = inner[part, None] + inner - s @ points.T - a @ slopes.T  # (s(x) - s(y)) . (x - y)
        return k * (s @ slopes.T) + k**3 * (drift + d) - 3 * k**5 * square

    signs = (
        torch.randint(2, (n, bootstraps), generator=_generator(seed), dtype=torch.int8) * 2.0 - 1
    )
    weights = torch.cat([torch.ones(n, 1, dtype=torch.float64), signs.double()], 1)
    means = (weights * _times(stein, weights)).sum(0) / (n * (n - 1))
    return _compared(float(means[0]), means[1:], level)


@explained
def mmd_test(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float | None = None,
    level: float = 0.05,
    permutations: int = 500,
    seed: int = 0,
) -> TestResult:
    """Two-sample test by permutations of `MMD^2(x, y)`, the statistic of `mmd`.

    It is weak against a difference at lengths far below the bandwidth, and in many dimensions.

    Args:
        x: At least two independent draws, `(n, *event_shape)`.
        y: At least two other ones, `(m, *event_shape)`.
        bandwidth: The length scale of the Gaussian kernel, in units of x; by default the median
            distance between points of x and y together (beyond 2000 points, of 2000 of them).
        level: The rate of false alarms.
        permutations: How many permutations make the null law, at least `1 / level - 1`.
        seed: The seed of the permutations.

    Returns:
        A `TestResult`.

    Raises:
        InvalidArgument: For empty, unequal or non-finite samples; where no bandwidth is given and
            all points coincide.
    """
    a, b = _pair(x, y)
    _least("x", a, 2)
    _least("y", b, 2)
    _check(level, "permutations", permutations)
    pooled = torch.cat([a, b])
    if bandwidth is None:
        bandwidth = _median_distance("x, y", (len(a), len(b)), pooled)
    width = positive("bandwidth", bandwidth)

    def gaussian(part: slice) -> Tensor:
        return torch.exp(-torch.cdist(pooled[part], pooled).square() / (2 * width**2))

    ours = _labels(len(a), len(b), permutations, _generator(seed)).double()
    product = _times(gaussian, torch.cat([torch.ones_like(ours[:, :1]), ours], 1))
    # sums of the kernel over all pairs, and over those that begin in x
    every, touching = product[:, 0].sum(), product[:, 1:].sum(0)
    within = (ours * product[:, 1:]).sum(0)
    n, m = len(a), len(b)
    across = touching - within
    values = (
        within / (n * (n - 1)) + (every - touching - across) / (m * (m - 1)) - 2 * across / (n * m)
    )
    return _compared(float(values[0]), values[1:], level)


@explained
def sliced_wasserstein_test(
    x: Tensor,
    y: Tensor,
    *,
    directions: int = 128,
    level: float = 0.05,
    permutations: int = 500,
    seed: int = 0,
) -> TestResult:
    """Two-sample test by permutations of `SW_2(x, y)`.

    The statistic is that of `sliced_wasserstein` with the same seed. It is weak against a
    difference in few of many coordinates, of which a random direction sees little. It depends on
    units: scale the coordinates to like spreads first.

    Args:
        x: Independent draws, `(n, *event_shape)`.
        y: Other ones, `(m, *event_shape)`.
        directions: How many directions are drawn, the same for every permutation.
        level: The rate of false alarms.
        permutations: How many permutations make the null law, at least `1 / level - 1`.
        seed: The seed of directions and permutations.

    Returns:
        A `TestResult`, statistic and threshold in units of x.

    Raises:
        InvalidArgument: For empty, unequal or non-finite samples.
    """
    a, b = _pair(x, y)
    count("directions", directions, least=1)
    _check(level, "permutations", permutations)
    generator = _generator(seed)
    normals = torch.randn(directions, a.shape[1], generator=generator, dtype=torch.float64)
    axes = normals / normals.norm(dim=1, keepdim=True)
    values, order = (axes @ torch.cat([a, b]).T).sort(1)
    i, j, mass = _matching(len(a), len(b))

    def distance(ours: Tensor) -> float:
        mine = ours[order]  # a part of sorted values is sorted
        gaps = values[mine].view(directions, -1)[:, i] - values[~mine].view(directions, -1)[:, j]
        return float((gaps.square() @ mass).mean().sqrt())

    found = [distance(ours) for ours in _labels(len(a), len(b), permutations, generator).T]
    return _compared(found[0], torch.tensor(found[1:], dtype=torch.float64), level)


@explained
def classifier_test(x: Tensor, y: Tensor, *, level: float = 0.05, seed: int = 0) -> TestResult:
    """Two-sample test by the held-out accuracy of a classifier that tells the samples apart.

    The classifier is trained on one half of each sample. It is a logistic regression on the
    coordinates and their squares, so it sees means and variances of the coordinates, and is blind
    to correlations. The accuracy is the mean of the shares of x and of y that are classified
    rightly, so that chance is at 1/2 for any sizes. Given the classifier, the held-out labels are
    exchangeable under the null hypothesis, and the number of rows of x that it finds is
    hypergeometric: the p-value is exact. (Folds of a cross-validation would train on one another's
    rows, and the binomial law of their accuracy gives too many false alarms.)

    Args:
        x: At least four independent draws, `(n, *event_shape)`.
        y: At least four other ones, `(m, *event_shape)`.
        level: The rate of false alarms.
        seed: The seed of the split into halves.

    Returns:
        A `TestResult`, statistic and threshold in [0, 1].

    Raises:
        InvalidArgument: For too few, unequal or non-finite samples.
        MissingDependency: Where scikit-learn is not installed.
    """
    linear_model = required("sklearn.linear_model", "demo", "classifier_test")
    a, b = _pair(x, y)
    _least("x", a, 4)
    _least("y", b, 4)
    _check(level)
    features = _standard(torch.cat([a, b]))
    features = torch.cat([features, _standard(features.square())], 1)
    ours = torch.arange(len(features)) < len(a)
    generator = _generator(seed)
    parts = [
        len(a) * k + torch.randperm(size, generator=generator)
        for k, size in enumerate((len(a), len(b)))
    ]
    train, test = (
        torch.cat([half[k] for half in (p.tensor_split(2) for p in parts)]) for k in (0, 1)
    )
    model = linear_model.LogisticRegression(max_iter=5000, class_weight="balanced")
    model.fit(features[train].numpy(), ours[train].numpy())
    said, true = torch.from_numpy(model.predict(features[test].numpy())), ours[test]
    n, m, called = int(true.sum()), int((~true).sum()), int(said.sum())
    right, tails = torch.arange(n + 1), _hypergeometric_tails(n, m, called)

    def accuracy(found: int) -> float:
        return (found / n + 1 - (called - found) / m) / 2

    found = int((said & true).sum())
    threshold = int(right[tails > level].max())
    return TestResult(accuracy(found), accuracy(threshold), float(tails[found]), float(level))


def _check(level: Any, name: str = "", repeats: Any = None) -> None:
    if positive("level", level) >= 1:
        raise InvalidArgument("level", level, "a number between 0 and 1")
    if name and _rank(level, count(name, repeats, least=1)) < 1:
        raise InvalidArgument(
            name, repeats, f"at least {math.ceil(1 / level) - 1}, or no p-value is below {level}"
        )


def _rank(level: float, repeats: int) -> int:
    """The largest r with `r / (1 + repeats) <= level`, up to rounding."""
    return math.floor(level * (1 + repeats) + 1e-9)


def _least(name: str, rows: Tensor, least: int) -> None:
    if len(rows) < least:
        raise InvalidArgument(name, rows, f"at least {least} samples")


def _median_distance(name: str, got: Any, rows: Tensor) -> float:
    median = float(torch.pdist(rows[:: math.ceil(len(rows) / MEDIAN_ROWS)]).median())
    if not median > 0:
        raise InvalidArgument(
            name, got, "samples that differ from one another", "Their median distance is 0"
        )
    return median


def _times(kernel: Callable[[slice], Tensor], weights: Tensor) -> Tensor:
    """The kernel matrix with zeros on its diagonal times weights `(n, k)`, in blocks of rows."""
    product = torch.empty_like(weights)
    for start in range(0, len(weights), BLOCK):
        part = slice(start, start + BLOCK)
        block = kernel(part)
        block.diagonal(start).zero_()
        torch.mm(block, weights, out=product[part])
    return product


def _labels(n: int, m: int, permutations: int, generator: torch.Generator) -> Tensor:
    """Which of n + m pooled rows count as x, `(n + m, 1 + permutations)` of bool.

    Column 0 has the rows as they are, each other column a random choice of n.
    """
    keys = torch.rand(n + m, 1 + permutations, generator=generator, dtype=torch.float64)
    keys[:, 0] = torch.arange(n + m)
    return keys.argsort(0) < n


def _compared(observed: float, null: Tensor, level: float) -> TestResult:
    """The result for an observed value and draws of its null law.

    A slack counts values as ties that differ by rounding alone.
    """
    slack = 1e-9 * float(null.abs().max())
    above = int((null >= observed - slack).sum())
    threshold = float(null.sort(descending=True).values[_rank(level, len(null)) - 1])
    return TestResult(observed, threshold, (1 + above) / (1 + len(null)), float(level))


def _standard(rows: Tensor) -> Tensor:
    spread = rows.std(0)
    return (rows - rows.mean(0)) / torch.where(spread > 0, spread, torch.ones_like(spread))


def _hypergeometric_tails(n: int, m: int, called: int) -> Tensor:
    """The tails P(H >= h) of a hypergeometric law for h = 0 .. n, `(n + 1,)`.

    H is the number of rows of x among `called` rows that are drawn from n of x and m of y.
    """
    h = torch.arange(n + 1, dtype=torch.float64)

    def log_choose(size: int, k: Tensor) -> Tensor:
        inside = (k >= 0) & (k <= size)
        k = k.clamp(0, size)
        value = math.lgamma(size + 1) - torch.lgamma(k + 1) - torch.lgamma(size - k + 1)
        return torch.where(inside, value, torch.full_like(value, -math.inf))

    mass = torch.softmax(log_choose(n, h) + log_choose(m, called - h), 0)
    return mass.flip(0).cumsum(0).flip(0).clamp(max=1)
