r"""What warmup learns of the target's scales: from its moments in windows that double in length.

In the first steps chains only approach the target, those that begin far off with settings of their
own (`warmup.approach`). Then there are windows as Stan's: the covariance C of a window's n draws,
pooled over chains (by Chan's update), gives the scales for the next window as a root of
`(n C + 5e-3 S^2) / (n + 5)`, S being the scales so far; then the step size starts anew. The last
steps tune the step size alone.

With "auto" the scales are a Cholesky factor where halves of the chains agree that trajectories get
much shorter by it, and else a diagonal (so of a single chain): in units of its standard deviations a law of
correlated coordinates is many times as long as narrow. How narrow it is where chains are, gradients tell:
modes far apart, or chains with conditions of their own, make a law long and no place of it narrow.

With "fisher" gradients g of the energy count as much as draws. Of all diagonals that which makes the
Fisher divergence of a normal law from the target least, `E |s g|^2 + E |(x - m) / s|^2`, is

    s^4 = Var x / Var g

where each variance is shrunk as above (towards those of the scales so far). For independent normal
coordinates s is the standard deviation. It is less where they are correlated or bent: the geometric
mean of how long a valley is along a coordinate and how wide.

References:
    Stan development team, "Stan reference manual" (warmup windows and shrinkage).
    Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979).
    Seyboldt, Carlson, Carpenter, "Preconditioning Hamiltonian Monte Carlo by minimizing Fisher
    divergence" (2026), for the diagonal of both variances.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk.core.devices import wide, widest
from scoretk.fields.protocols import NoiseSource
from scoretk.solvers.parts.leapfrog import is_factor
from scoretk.solvers.warmup.learning import Change, Lesson, PartDefaults

__all__ = [
    "METRICS",
    "Half",
    "Halves",
    "Scales",
    "Window",
    "accumulate",
    "approach_steps",
    "begin_window",
    "deviations",
    "emptied",
    "factor",
    "first_scales",
    "fisher_scales",
    "mean_growth",
    "other_shapes",
    "pays",
    "window_end",
]

METRICS = ("none", "auto", "diagonal", "fisher", "dense")
"""The names of metrics."""

SHRINK, FLOOR = 5.0, 1e-3
MOST_DENSE = 256
"""Up to how many coordinates "auto" looks at correlations."""
SHORTER = 2.5
"""How many times as long trajectories with a diagonal are, by the law, where "auto" takes a factor."""
STEEPER = 1.5
"""And how many times by gradients."""


class Window(NamedTuple):
    """What a window has seen.

    The number of draws, their mean and the sum of their squared deviations, each like an event, and
    the sum of the outer products of these, `(d, d)`, or `(0, 0)` where nobody asks for it.
    """

    draws: Tensor
    mean: Tensor
    deviations: Tensor
    products: Tensor


class Half(NamedTuple):
    """Windows of half of the chains: of their positions, and of the gradients of their energies."""

    positions: Window
    gradients: Window


class Halves(NamedTuple):
    """What "auto" remembers: the window of all chains, without outer products, and those of halves."""

    pooled: Window
    first: Half
    second: Half

    @property
    def products(self) -> Tensor:
        """The sum of the outer products of the deviations of all draws: of both halves, by Chan's update."""
        (a, _), (b, _) = self.first, self.second
        shift, of_both = (b.mean - a.mean).flatten(), float(a.draws * b.draws)
        weight = of_both / max(float(a.draws + b.draws), 1)
        return a.products + b.products + torch.outer(shift, shift) * weight

    def are_numbers(self) -> bool:
        """Whether no square in windows of halves has overflown."""
        windows = (*self.first, *self.second)
        return all(bool(window.products.isfinite().all()) for window in windows)


def first_scales(metric: str, x: Tensor) -> Tensor:
    """The scales 1 before any are learned: like an event of x, or `(d, d)` with "dense"."""
    shape = x.shape[1:]
    if metric == "dense":
        return torch.eye(shape.numel(), dtype=x.dtype, device=x.device)
    return x.new_ones(shape)


def other_shapes(metric: str, x: Tensor) -> Mapping[str, tuple[int, ...]]:
    """The shape that scales may become in warmup besides their first one: `Traits.reshaped`."""
    d = x.shape[1:].numel()
    return {"scale": (d, d)} if metric == "auto" else {}


def approach_steps(warmup: int) -> int:
    """How many of the first steps of warmup only approach the target.

    0 where warmup is too short for windows.
    """
    if warmup < 20:
        return 0
    return 75 if warmup >= 150 else int(0.15 * warmup)


def window_end(step: int, warmup: int) -> tuple[bool, bool]:
    """Whether this step of warmup counts for the scales, and whether a window ends with it."""
    if warmup < 20:
        return False, False
    last, length = (50, 25) if warmup >= 150 else (int(0.1 * warmup), warmup)
    start, end = approach_steps(warmup), warmup - last
    if not start <= step < end:
        return False, False
    # a window takes all that is left where that is too short for another of twice its length
    while start + 3 * length <= end and start + length <= step:
        start, length = start + length, 2 * length
    stop = start + length if start + 3 * length <= end else end
    return True, step == stop - 1


def begin_window(x: Tensor, products: bool) -> Window:
    """An empty window for positions x, `(chains, *event_shape)`, with outer products or without."""
    shape = x.shape[1:]
    d = shape.numel() if products else 0
    sums = (x.new_zeros(size, dtype=widest(x.device)) for size in (shape, shape, (d, d)))
    return Window(torch.zeros((), dtype=torch.float64), *sums)


def accumulate(window: Window, x: Tensor) -> Window:
    """The window with the positions x, `(n, *event_shape)`, added."""
    n = len(x)
    if n == 0:
        return window
    rows = wide(x.detach())
    centre = rows.mean(0)
    about, shift, before = rows - centre, centre - window.mean, float(window.draws)
    total = before + n
    products = window.products
    if len(products):
        flat, off = about.reshape(n, -1), shift.flatten()
        products = products + (flat.T @ flat + torch.outer(off, off) * (before * n / total))
    return Window(
        torch.tensor(total, dtype=torch.float64),
        window.mean + shift * (n / total),
        window.deviations + (about.square().sum(0) + shift.square() * (before * n / total)),
        products,
    )


def on_host(windows: Any) -> Any:
    """A window, or nested tuples of windows, on the CPU and in its widest dtype."""
    return _each(windows, lambda value: wide(value.cpu()))


def emptied(windows: Any) -> Any:
    """An empty window of the same kind, or nested tuples of such."""
    return _each(windows, torch.zeros_like)


def _each(windows: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """All tensors of nested tuples, changed."""
    if isinstance(windows, Tensor):
        return change(windows)
    return type(windows)(*(_each(part, change) for part in windows))


def deviations(window: Window, before: Tensor) -> Tensor:
    """The standard deviations that a window has found, like an event.

    Args:
        window: The window.
        before: The scales so far. A thousandth of their squares counts as five draws, so that no
            unit is preferred.
    """
    variance = window.deviations / max(float(window.draws) - 1, 1)
    known = variances(before.to(variance), variance.shape)
    return _shrunk(window, variance, known).sqrt().to(before.dtype)


def factor(window: Window, before: Tensor) -> Tensor:
    """The Cholesky factor `(d, d)` of the covariance that a window has found.

    Arguments are those of `deviations`. Covariances are shrunk towards 0 as well, by as many draws as
    there are dimensions.
    """
    n, d = float(window.draws), len(window.products)
    covariance = window.products / max(n - 1, 1)
    own = n / (n + d)
    covariance = own * covariance + (1 - own) * torch.diag(covariance.diagonal())
    known = torch.diag(variances(before.to(covariance), window.deviations.shape).flatten())
    found = torch.linalg.cholesky(_shrunk(window, covariance, known))
    as_read: Tensor = found.to(before.dtype).contiguous()  # products hang on it, in their last bits
    return as_read


def _shrunk(window: Window, found: Tensor, known: Tensor) -> Tensor:
    """Found variances or covariances, shrunk towards a thousandth of known ones."""
    n = float(window.draws)
    weight = n / (n + SHRINK)
    return weight * found + (1 - weight) * FLOOR * known


def variances(scale: Tensor, event_shape: torch.Size) -> Tensor:
    """The variance of each coordinate by scales, like an event."""
    if not is_factor(scale, event_shape):
        return scale.square()
    known: Tensor = scale @ scale.T
    return known.diagonal().reshape(event_shape)


def pays(first: Half, second: Half, before: Tensor) -> bool:
    """Whether trajectories by a factor would be much shorter than by a diagonal.

    Each half of the chains finds both for the other half: what they do not have in common is chance.
    (A half without draws has the scales so far for both.) A trajectory has as many leapfrog steps as
    the law is longer than narrow in scaled space. Along narrow directions gradients are steep, so it
    has as many as the product of the law's length and the largest root mean square of a gradient too:
    of a normal law the same, of laws with wide gaps less. A factor pays where both say so.

    Args:
        first: The windows of half of the chains.
        second: Those of the other half.
        before: The scales so far.
    """

    def shorter(found: Half, of: Half) -> bool:
        law = factor(of.positions, before)
        diagonal = deviations(found.positions, before).flatten().diag()
        root = factor(found.positions, before)
        lengths, slopes = [], []
        for scale in (diagonal, root):
            within = torch.linalg.solve_triangular(scale, law, upper=False)
            lengths.append(torch.linalg.svdvals(wide(within)))
            slopes.append(_steepness(of.gradients, wide(scale)))
        narrower = float(_elongation(lengths[0]) / _elongation(lengths[1]))
        steeper = float(lengths[0][0] * slopes[0] / (lengths[1][0] * slopes[1]))
        return narrower > SHORTER and steeper > STEEPER

    return shorter(first, second) and shorter(second, first)


def _elongation(lengths: Tensor) -> Tensor:
    """How many times as long as narrow a law is, `()`, by the singular values of a root of its covariance."""
    return lengths[0] / lengths[-1]


def _steepness(gradients: Window, scale: Tensor) -> Tensor:
    """The largest root mean square of gradients in a scaled space, `()`, but for what is common to all scales."""
    squares: Tensor = torch.linalg.eigvalsh(scale.T @ gradients.products @ scale)
    return squares[-1].sqrt()


def fisher_scales(window: Window, before: Tensor) -> tuple[Tensor, Tensor]:
    """The scales of least Fisher divergence that a window of draws and gradients has found.

    Args:
        window: The window, of draws `(x, grad)` side by side, `(n, 2, *event_shape)`.
        before: The scales so far, which stay where these would be no positive numbers.

    Returns:
        The scales, and the standard deviations, like an event.
    """
    spread, steepness = deviations(window, torch.stack([before, 1 / before]))
    found = (spread / steepness).sqrt()
    return _where_positive(found, before), spread


def _where_positive(found: Tensor, before: Tensor) -> Tensor:
    """Scales that were found, and those so far where they are no positive numbers: too large for a square."""
    return torch.where(found.isfinite() & (found > 0), found, before)


def mean_growth(before: Tensor, after: Tensor, event_shape: torch.Size) -> float:
    """The geometric mean of how much longer scales became: of a factor, by its diagonal."""
    entries = (
        scale.diagonal().reshape(event_shape) if is_factor(scale, event_shape) else scale
        for scale in (after, before)
    )
    return float(torch.div(*entries).log().mean().exp())


@dataclass(frozen=True)
class Scales(PartDefaults):
    """Learns the state's `scale`, a diagonal or a Cholesky factor.

    Args:
        metric: A name in `METRICS`; "fisher" needs the state's `grad`. With "auto" scales are a
            factor where that `pays`. With "none" the standard deviations are measured, for other
            parts to learn from, and the scales stay as they are.
        lengths: The names of the state's leaves that are lengths in scaled space, which are divided
            by the mean growth of the scales.
    """

    metric: str
    lengths: tuple[str, ...] = ()

    def begin(
        self, kernel: Any, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[Any, Halves, int]:
        """As `Part.begin`."""
        d, seen = state.x.shape[1:].numel(), self._seen(state)
        half = begin_window(seen, self.metric == "auto" and 1 < d <= MOST_DENSE)
        both = Half(half, half)
        return state, Halves(begin_window(seen, self.metric == "dense"), both, both), 0

    def learn(
        self, state: Any, memory: Halves, lesson: Lesson
    ) -> tuple[Any, Halves, Change | None]:
        """As `Part.learn`."""
        counts, ends = window_end(lesson.step, lesson.warmup)
        if not counts:
            return state, memory, None
        memory = self._accumulated(memory, state, lesson)
        if not ends:
            return state, memory, None
        before = state.scale
        after, spread = self._found(memory, before)
        grown = mean_growth(before, after, state.x.shape[1:])
        shrunk = {name: getattr(state, name) / grown for name in self.lengths}
        change = Change(before, after, spread)
        return state._replace(scale=after, **shrunk), emptied(memory), change

    def _accumulated(self, memory: Halves, state: Any, lesson: Lesson) -> Halves:
        """The memory with a step added. A chain is of the same half whichever others have failed."""
        memory = memory._replace(pooled=accumulate(memory.pooled, lesson.living(self._seen(state))))
        if not len(memory.first.positions.products):
            return memory
        by_half = zip(
            *(v.tensor_split(2) for v in (state.x, state.grad, lesson.alive)), strict=True
        )
        halves = (
            Half(
                *(
                    accumulate(w, v if lesson.all_alive else v[alive])
                    for w, v in zip(half, seen, strict=True)
                )
            )
            for half, (*seen, alive) in zip(memory[1:], by_half, strict=True)
        )
        return Halves(memory.pooled, *halves)

    def _found(self, memory: Halves, before: Tensor) -> tuple[Tensor, Tensor]:
        """The scales after a window, and those that it has found, which with "none" are others."""
        if self.metric == "fisher":
            return fisher_scales(memory.pooled, before)
        root = self._root(memory, before)
        if root is not None:
            return root, root
        known = variances(before, memory.pooled.mean.shape).sqrt()
        spread = _where_positive(deviations(memory.pooled, before), known)
        return before if self.metric in ("none", "dense") else spread, spread

    def _root(self, memory: Halves, before: Tensor) -> Tensor | None:
        """The Cholesky factor that a window has found, None where scales are to be none."""
        memory, known = (
            on_host(memory),
            before.cpu(),
        )  # some devices have no decompositions or float64
        window, (_, first, second) = memory.pooled, memory
        if len(first.positions.products) and memory.are_numbers() and pays(first, second, known):
            window = window._replace(products=memory.products)
        if not len(window.products) or not bool(window.products.isfinite().all()):
            return None
        return factor(window, known).to(before.device)

    def _seen(self, state: Any) -> Tensor:
        """What windows are made of: the draws, and with "fisher" the gradients beside them."""
        return torch.stack([state.x, state.grad], 1) if self.metric == "fisher" else state.x
