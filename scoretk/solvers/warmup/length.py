r"""What warmup learns of the length of trajectories.

`SquaredJumps` tunes the length T by stochastic ascent (Adam) on the squared change of a bounded
square along the slowest direction v, a unit of time:

    C(T) / T,    C = mean_c a_c G_c^2 / 4,    G_c = F(<v, x'_c - m'>) - F(<v, x_c - m>),

    F(y) = y^2 / (1 + y^2 / (5 s^2)),

whose gradient in log T is proportional to

    mean_c a_c (t_n G_c F'(<v, x'_c - m'>) <v, p'_c> / 2 - G_c^2 / 4).

Here x_c and x'_c are the positions and the proposals of the chains c, p'_c the momenta at the
proposals, a_c the acceptance probabilities, m and m' means over chains, t_n the time of the n-th
trajectory, and v the first principal component (by power iteration over the steps), s^2 the
variance of the chains along it, all in scaled space. (The literature has F(y) = y^2, where the few
chains far out in a heavy tail are nearly all of the mean, and trajectories as long as theirs are
what all take: on Neal's funnel many times as long as serves the neck.) `Spread` takes the length
from the root of the summed variances, `Multiple` from the step size.

`Decorrelation` takes it from how soon positions decorrelate. In a window of T steps of size eps let
V_i be the variance of coordinate i, and B_i the variance over chains of its mean in the window:

    tau_i = T B_i / V_i,    tau = k / (k + 6) sum_i tau_i^4 / sum_i tau_i^3,
    L <- min(sqrt(L factor eps max(1, tau)), 3 R)

tau_i is the autocorrelation time in steps where T is much longer, and T at most: chains that hardly
move make no length beyond `factor` times their own path. tau is nearly that of the slowest
coordinate, for which a run has to last. (B_i of k + 1 chains scatters as chi-square with k degrees
of freedom, which makes the ratio of sums (k + 6) / k times too large.) The root is taken because the
length in which positions decorrelate falls as L grows, as 1 / L where chains diffuse: without it L
would leap to and fro from window to window. R is the root of the summed variances, as `Spread` has
it: where chains stay in modes nothing would bound L otherwise. The first window, before which L is a
guess, ends with R.

References:
    Hoffman, Radul, Sountsov, "An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian
    Monte Carlo" (2021).
    Sountsov, Hoffman, "Focusing on difficult directions for learning HMC trajectory lengths"
    (2021), for the rate and the direction.
    Robnik, Seljak, "Fluctuation without dissipation: microcanonical Langevin Monte Carlo" (2024),
    for the spread, and for a share of the length in which positions decorrelate (there .4 of the
    mean over coordinates).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk.core.devices import wide, widest
from scoretk.fields.protocols import NoiseSource
from scoretk.solvers.parts.leapfrog import Trajectory, is_factor, stretch, unstretch
from scoretk.solvers.warmup.learning import Change, Lesson, Nothing, PartDefaults, counted_of
from scoretk.solvers.warmup.scales import mean_growth, variances, window_end
from scoretk.solvers.warmup.step_size import number

__all__ = [
    "Ascent",
    "Decorrelation",
    "Multiple",
    "Spread",
    "SquaredJumps",
    "TimedTrajectory",
    "Wandering",
]

MEMORY = 0.9
STRETCH = 1.44
"""How much longer trajectories are after warmup than at the maximum of the criterion. That looks at
squares only, and bounded ones, which decorrelate sooner; along a Gaussian direction means and
squares together have the most effective draws a gradient at 1.44 times that length.
"""
BOUND = 5.0
"""The bound of the square, in variances.

Much below it hides what is slow along a bent valley, far above it a heavy tail decides.
"""
OF_DEVIATION = 0.76
"""The criterion's maximum along a Gaussian direction, over the standard deviation there."""
MOST_WIDTHS = 3.0
"""How many times the root of the summed variances a length by decorrelation is at most."""
FIRST_LEAPFROGS = 2
"""The length, in steps, of the first trajectories after an approach."""


class Ascent(NamedTuple):
    """What `SquaredJumps` remembers.

    `ascent` `(4,)`: Adam's first and second moment, the number of its steps, and the average of log
    T. `slowest` `(d,)`: the direction of the largest variance in scaled space, its norm being that
    variance.
    """

    ascent: Tensor
    slowest: Tensor


class Wandering(NamedTuple):
    """What `Decorrelation` remembers of a window.

    `sums` `(chains, *event_shape)`: the sum of each chain's positions; `steps` `()`: how many there
    are; `between`, like an event: once the window has ended T times the variance over chains of
    their means, NaN for a single chain; `chains` `()`: how many these are; `step_size` `()`: that of
    the window's end; `windows` `()`: how many have ended.
    """

    sums: Tensor
    steps: Tensor
    between: Tensor
    chains: Tensor
    step_size: Tensor
    windows: Tensor


class TimedTrajectory(NamedTuple):
    """What `SquaredJumps` sees of a step: the trajectory, and its time in scaled space."""

    end: Trajectory
    time: float


def _averaging(memory: Ascent, length: Tensor) -> Ascent:
    """The memory with this length as the average so far."""
    ascent = memory.ascent.clone()
    ascent[3] = math.log(float(length))
    return memory._replace(ascent=ascent)


def bounded_square(y: Tensor, bound: Tensor) -> Tensor:
    """y^2 where it is well below the bound, which it nowhere exceeds."""
    return y.square() / (1 + y.square() / bound)


@dataclass(frozen=True)
class SquaredJumps:
    """Learns the state's `length` from how the chains' proposals differ.

    The kernel gives these as `Trial.seen`, a `TimedTrajectory`.

    Args:
        learning_rate: The learning rate of Adam on log T.
        most: The largest number of leapfrog steps in a trajectory.
    """

    learning_rate: float
    most: int

    def begin(
        self, kernel: Any, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[Any, Ascent, int]:
        """As `Part.begin`: the first trajectories are of one or two leapfrog steps."""
        ascent = torch.tensor(
            [0.0, 0.0, 0.0, math.log(float(state.step_size))], dtype=torch.float64
        )
        slowest = torch.arange(
            1.0, state.x[0].numel() + 1, dtype=widest(state.x.device), device=state.x.device
        ).cos()
        return state._replace(length=state.step_size), Ascent(ascent, slowest), 0

    def measure(self, memory: Ascent, lesson: Lesson) -> tuple[Ascent, tuple[Tensor, ...]]:
        """As `Part.measure`: the slope."""
        usual = lesson.usual & (lesson.trial.accept > 0)
        memory, slope = self.slope(
            memory, lesson.before, lesson.trial.seen, lesson.trial.accept, usual
        )
        return memory, (slope,)

    def learn(
        self, state: Any, memory: Ascent, lesson: Lesson
    ) -> tuple[Any, Ascent, Change | None]:
        """As `Part.learn`."""
        memory, (slope,) = lesson.read(self, memory)
        size = float(lesson.before.step_size)
        memory, length = self._ascend(memory, slope, size, float(state.length), lesson.last)
        return state._replace(length=number(length)), memory, None

    def changed(self, state: Any, memory: Ascent, change: Change) -> tuple[Any, Ascent]:
        """As `Part.changed`.

        After an approach the length is `FIRST_LEAPFROGS` of the step size that this has found. One
        of which nothing was learned is its own average.
        """
        if change.arrived:
            state = state._replace(length=FIRST_LEAPFROGS * state.step_size)
            return state, _averaging(memory, state.length)
        if change.before is None or change.after is None:
            return state, memory
        event_shape = state.x.shape[1:]
        moved = self.rescaled(memory, change.before, change.after, event_shape)
        if not float(memory.ascent[2]):
            return state, _averaging(moved, state.length)
        before = float(state.length) * mean_growth(change.before, change.after, event_shape)
        length = self._in_new_scales(before, float(state.length), memory, moved)
        ascent = moved.ascent.clone()
        ascent[3] += math.log(length / before)
        return state._replace(length=number(length)), moved._replace(ascent=ascent)

    def _in_new_scales(self, before: float, common: float, memory: Ascent, moved: Ascent) -> float:
        """What T becomes in new scales.

        Between what the deviation along the slowest direction makes of it and what the mean growth
        of all does, as near as can be to what a Gaussian direction of that deviation would have:
        far from the criterion's maximum T says little yet, and at it the deviation is what counts.

        Args:
            before: T in the scales so far.
            common: That divided by the mean growth of the scales.
            memory: The memory in the scales so far.
            moved: The memory in the new scales.
        """
        variance = float(moved.slowest.norm())
        if not 0 < variance < math.inf:  # too small or too large for a square
            return common
        along = before * math.sqrt(variance / float(memory.slowest.norm()))
        least, most = sorted((along, common))
        return min(max(OF_DEVIATION * math.sqrt(variance), least), most)

    def rescaled(
        self, memory: Ascent, before: Tensor, after: Tensor, event_shape: torch.Size
    ) -> Ascent:
        """The memory in the space of new scales.

        The slowest direction is transformed, and so are Adam's moments, as the slope is of fourth
        order in lengths: else a first slope in units a hundred times too small would dominate the
        second moment for a thousand steps.

        Args:
            memory: The memory in the space of the scales so far.
            before: These scales, like an event or `(d, d)`.
            after: The new scales, like an event or `(d, d)`.
            event_shape: The shape of an event.
        """
        variance = memory.slowest.norm()
        along = (memory.slowest / variance).to(before.dtype).reshape(1, *event_shape)
        turned = unstretch(after, stretch(before, along)).flatten().to(memory.slowest)
        factor = float(turned.square().sum())
        first, second, n, average = memory.ascent.tolist()
        ascent = torch.tensor(
            [first * factor**2, second * factor**4, n, average], dtype=torch.float64
        )
        return Ascent(ascent, turned * variance * math.sqrt(factor))

    def slope(
        self, memory: Ascent, before: Any, seen: TimedTrajectory, accept: Tensor, usual: Tensor
    ) -> tuple[Ascent, Tensor]:
        """The memory with the slowest direction updated, and the criterion's gradient in log T, `()`.

        Args:
            memory: The memory before the step.
            before: The state before the step.
            seen: The trajectory of the step.
            accept: The acceptance, `(chains,)`.
            usual: `(chains,)` of bool, the chains that count; of fewer than two the gradient is 0.
        """
        if usual.device.type == "cpu" and int(usual.sum()) < 2:
            return memory, wide(accept.new_zeros(()))
        values = (before.x, seen.end.point.x, seen.end.momentum, accept)
        here, there, momentum, accept = (counted_of(v, usual) for v in values)
        usual = counted_of(usual, usual)
        n, chosen = usual.sum(), usual[:, None]

        def about_mean(places: Tensor) -> Tensor:
            rows = unstretch(before.scale, places).reshape(len(places), -1)
            centre = torch.where(chosen, rows, 0.0).sum(0) / n
            return torch.where(chosen, rows - centre, 0.0)

        x, ahead = about_mean(here), about_mean(there)
        along = (memory.slowest / memory.slowest.norm()).to(x)
        slowest = MEMORY * memory.slowest + (1 - MEMORY) * (x.T @ (x @ along) / n).to(
            memory.slowest
        )
        a, b, p = x @ along, ahead @ along, momentum.reshape(len(x), -1) @ along
        bound = BOUND * a.square().sum() / n
        gain = bounded_square(b, bound) - bounded_square(a, bound)
        steepness = b / (1 + b.square() / bound).square()  # half of the bounded square's slope
        rise = seen.time * gain * steepness * p - gain.square() / 4
        slope = (accept * rise).mean() / accept.mean()
        sound = slowest.isfinite().all() & (n > 1)
        memory = memory._replace(slowest=torch.where(sound, slowest, memory.slowest))
        return memory, wide(torch.where(n > 1, slope, 0.0))

    def _ascend(
        self, memory: Ascent, slope: float, size: float, length: float, last: bool
    ) -> tuple[Ascent, float]:
        """A step of Adam on log T: the memory after it, and T.

        A trajectory takes T and half a step in the mean, as its number of steps is rounded up. After
        the last step of warmup that is `STRETCH` times what it is for the averaged log T.
        """
        first, second, n, average = memory.ascent.tolist()
        if math.isfinite(slope) and slope:
            n += 1
            first, second = 0.9 * first + 0.1 * slope, 0.95 * second + 0.05 * slope**2
            rise = first / (1 - 0.9**n) / (math.sqrt(second / (1 - 0.95**n)) + 1e-300)
            log_length = math.log(length) + self.learning_rate * rise
            log_length = min(max(log_length, math.log(size / 2)), math.log(size * self.most / 2))
            weight = (n + 1) ** -0.5
            average = (1 - weight) * average + weight * log_length
            length = math.exp(log_length)
        ascent = torch.tensor([first, second, n, average], dtype=torch.float64)
        if last:
            length = STRETCH * (math.exp(average) + size / 2) - size / 2
        return memory._replace(ascent=ascent), length


def extent(root: Tensor, scale: Tensor, event_shape: torch.Size) -> float:
    """The root of a law's summed variances in scaled space.

    Args:
        root: A root of its covariance: standard deviations, like an event, or a Cholesky factor
            `(d, d)`.
        scale: S, of either form.
        event_shape: The shape of an event.
    """
    if not (is_factor(root, event_shape) or is_factor(scale, event_shape)):
        return float((root / scale).square().sum().sqrt())
    columns = root.T if is_factor(root, event_shape) else torch.diag(root.flatten())
    return float(unstretch(scale, columns.reshape(-1, *event_shape)).norm())


@dataclass(frozen=True)
class Spread(PartDefaults):
    """Learns the state's `length` as a multiple of the root of the summed variances.

    The variances are those that a window found, in scaled space.

    Args:
        factor: That on the root.
    """

    factor: float = 1.0

    def changed(self, state: Any, memory: Nothing, change: Change) -> tuple[Any, Nothing]:
        """As `Part.changed`."""
        if change.spread is None or change.after is None:
            return state, memory
        return state._replace(
            length=number(self.factor * extent(change.spread, change.after, state.x.shape[1:]))
        ), memory


@dataclass(frozen=True)
class Decorrelation(PartDefaults):
    """Learns the state's `length` from how soon positions decorrelate.

    A single chain has nothing to be compared with: its length is that of `Spread`.

    Args:
        factor: The length over that in which the slowest position decorrelates.
    """

    factor: float = 0.7

    def begin(
        self, kernel: Any, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[Any, Wandering, int]:
        """As `Part.begin`."""
        sums = torch.zeros_like(state.x, dtype=widest(state.x.device))
        none = number(0.0)
        between = torch.zeros_like(sums[0])
        return state, Wandering(sums, none, between, none, state.step_size, none), 0

    def learn(
        self, state: Any, memory: Wandering, lesson: Lesson
    ) -> tuple[Any, Wandering, Change | None]:
        """As `Part.learn`: nothing, until a window has ended."""
        counts, ends = window_end(lesson.step, lesson.warmup)
        if not counts:
            return state, memory, None
        sums, steps = memory.sums + wide(state.x), memory.steps + 1
        if not ends:
            return state, memory._replace(sums=sums, steps=steps), None
        means = lesson.living(sums) / float(steps)
        between = float(steps) * (means.var(0) if len(means) > 1 else torch.nan * sums[0])
        ended = memory._replace(
            sums=torch.zeros_like(sums),
            steps=number(0.0),
            between=between,
            chains=number(float(len(means))),
            step_size=state.step_size,
            windows=memory.windows + 1,
        )
        return state, ended, None

    def changed(self, state: Any, memory: Wandering, change: Change) -> tuple[Any, Wandering]:
        """As `Part.changed`: after a window the length follows what it found, in the new scales."""
        if change.before is None or change.after is None or change.spread is None:
            return state, memory
        shape = state.x.shape[1:]
        width = extent(change.spread, change.after, shape)
        steps = self._slowest(memory, variances(change.spread, shape))
        if float(memory.windows) < 2 or not math.isfinite(steps):
            return state._replace(length=number(width)), memory
        grown = mean_growth(change.before, change.after, shape)
        decorrelated = float(memory.step_size) * max(steps, 1.0)
        length = math.sqrt(float(state.length) * self.factor * decorrelated) / grown
        return state._replace(length=number(min(length, MOST_WIDTHS * width))), memory

    def _slowest(self, memory: Wandering, variance: Tensor) -> float:
        """The autocorrelation time in steps of nearly the slowest coordinate.

        Args:
            memory: The memory after a window.
            variance: The variances that the window found, like an event.
        """
        times, k = memory.between / wide(variance), float(memory.chains) - 1
        return float(times.pow(4).sum() / times.pow(3).sum()) * k / (k + 6)


@dataclass(frozen=True)
class Multiple(PartDefaults):
    """Keeps the state's `length` at a fixed number of steps.

    Args:
        steps: The number of steps, so that the length is `steps * step_size`.
    """

    steps: int

    def learn(
        self, state: Any, memory: Nothing, lesson: Lesson
    ) -> tuple[Any, Nothing, Change | None]:
        """As `Part.learn`."""
        return self.changed(state, memory, Change())[0], memory, None

    def changed(self, state: Any, memory: Nothing, change: Change) -> tuple[Any, Nothing]:
        """As `Part.changed`."""
        return state._replace(length=self.steps * state.step_size), memory
