r"""Hamiltonian Monte Carlo with a tuned step size, tuned scales and, over many chains, a tuned trajectory length.

With scales S (a diagonal or a Cholesky factor), momentum p ~ N(0, I) and H(x, p) = E(x) + |p|^2 / 2, L leapfrog steps of

    p <- p - eps/2 S^T grad E(x),    x <- x + eps S p,    p <- p - eps/2 S^T grad E(x)

(neighbouring half steps joined: one gradient a step), and then x is accepted with probability min(1, exp(H - H')).

`HMC` takes L steps; with `jitter` each chain's step size is multiplied by a uniform factor at each trajectory, so that no
period of the target is met for ever. `ChEES` takes ceil(u_n T / eps), u_n between 0 and 2 the n-th point of Halton's sequence,
the same for all chains, and tunes T in warmup by stochastic ascent (Adam) on the change in the estimator of expected squares
along the slowest direction v, for the time that it takes:

    C(T) / T,    C = mean_c a_c G_c^2 / 4,    G_c = <v, x'_c - m'>^2 - <v, x_c - m>^2,
    its gradient in log T ~ mean_c a_c (t_n G_c <v, x'_c - m'> <v, p'_c> - G_c^2 / 4),

x' the proposals of the chains c, a_c their acceptance probabilities, m and m' means over chains, t_n = u_n T, v the first
principal component (by power iteration over the steps), all in scaled space.

References: Duane, Kennedy, Pendleton, Roweth, "Hybrid Monte Carlo" (1987); Neal, "MCMC using Hamiltonian dynamics" (2011);
Hoffman, Radul, Sountsov, "An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian Monte Carlo" (2021);
Sountsov, Hoffman, "Focusing on difficult directions for learning HMC trajectory lengths" (2021), for the rate and the direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import counts, finite, option, positive
from scoretk.core.rows import across, row_dot, select_rows
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import StaticField
from scoretk.solvers.base import Info
from scoretk.solvers.parts.metropolis import decide
from scoretk.solvers.warmup.approach import Place, Stride, begins_far, beside, common_stride, stride
from scoretk.solvers.warmup.tuned import Tunable
from scoretk.solvers.warmup.tuning import (
    METRICS,
    PATIENCE,
    Following,
    Tuning,
    accumulate,
    approach,
    begin_following,
    begin_tuning,
    first_step_size,
    harmonic_acceptance,
    next_idle,
    next_step_size,
    pooled_acceptance,
    restart,
    scales,
    shortening,
    window_end,
)

__all__ = ["HMC", "ChEES", "HMCState", "Hamiltonian", "Point", "Stepping", "Trajectory", "leapfrog"]

DIVERGENCE = 1000.0
MEMORY = 0.9
STRIDE = 4
"""How many steps a compiled part takes at once, where there are so many."""
STRETCH = 1.4
"""How much longer trajectories are after warmup than at the maximum of the criterion. It sees squares only; along a Gaussian
direction means and squares together have the most effective draws a gradient at 1.4 times that length.
"""
FIRST_LEAPFROGS = 2
"""How long trajectories are at first after an approach, in steps, before their length is tuned."""
SHARED = frozenset({"step", "step_size", "scale", "length"})


class Point(NamedTuple):
    """What a proposal replaces: position, energy `(chains,)` and gradient of the energy."""

    x: Tensor
    energy: Tensor
    grad: Tensor


class HMCState(NamedTuple):
    """A point, the index of the next step, and what warmup tunes: step size `()`, scale, trajectory length `()`."""

    x: Tensor
    energy: Tensor
    grad: Tensor
    step: Tensor
    step_size: Tensor
    scale: Tensor
    length: Tensor

    @property
    def shared(self) -> frozenset[str]:
        """Leaves that are not the chains' own."""
        return SHARED


class Trajectory(NamedTuple):
    """The end of a trajectory: the point, its momentum, and the error of the total energy `(chains,)`."""

    point: Point
    momentum: Tensor
    error: Tensor


def stretch(scale: Tensor, p: Tensor, dense: bool) -> Tensor:
    """`S p`."""
    return (p.reshape(len(p), -1) @ scale.T).reshape(p.shape) if dense else scale * p


def pull(scale: Tensor, gradient: Tensor, dense: bool) -> Tensor:
    """`S^T g`."""
    return (gradient.reshape(len(gradient), -1) @ scale).reshape(gradient.shape) if dense else scale * gradient


def unstretch(scale: Tensor, x: Tensor, dense: bool) -> Tensor:
    """`S^-1 x`."""
    if not dense:
        return x / scale
    return torch.linalg.solve_triangular(scale, x.reshape(len(x), -1).T, upper=False).T.reshape(x.shape)


def depart(
    field: StaticField, start: Point, momentum: Tensor, eps: Any, steps: int, scale: Tensor, dense: bool
) -> tuple[Tensor, Tensor]:
    """So many leapfrog steps but for the last drift and what follows it: position, and momentum half a step on."""
    x, p, left = start.x, momentum - (eps / 2) * pull(scale, start.grad, dense), steps - 1
    while left:
        n = left if not field.fuses else STRIDE if left >= STRIDE else 1
        x, p = field.fused(advance, x, p, eps, n, scale, dense)
        left -= n
    return x, p


def advance(
    field: StaticField, x: Tensor, p: Tensor, eps: Any, steps: int, scale: Tensor, dense: bool
) -> tuple[Tensor, Tensor]:
    """So many drifts, each with a whole kick after it."""
    for _ in range(steps):
        x = x + eps * stretch(scale, p, dense)
        p = p + eps * pull(scale, field.score(x), dense)
    return x, p


def arrive(
    field: StaticField, start: Point, momentum: Tensor, x: Tensor, p: Tensor, eps: Any, scale: Tensor, dense: bool
) -> Trajectory:
    """The last drift and half kick, and the error of the total energy since the start."""
    x = x + eps * stretch(scale, p, dense)
    energy, gradient = field.energy_and_grad(x)
    p = p - (eps / 2) * pull(scale, gradient, dense)
    error = energy - start.energy + (row_dot(p, p) - row_dot(momentum, momentum)) / 2
    return Trajectory(Point(x, energy, gradient), p, error)


def leapfrog(
    field: StaticField, start: Point, momentum: Tensor, eps: Any, steps: int, scale: Tensor, dense: bool
) -> Trajectory:
    """So many leapfrog steps. Arguments: eps, a number, a 0-d tensor, or one value a chain shaped to multiply x."""
    x, p = depart(field, start, momentum, eps, steps, scale, dense)
    return field.fused(arrive, start, momentum, x, p, eps, scale, dense)


def arrive_and_decide(
    field: StaticField, start: Point, momentum: Tensor, x: Tensor, p: Tensor, eps: Any, scale: Tensor, dense: bool, u: Tensor
) -> tuple[Point, Info, Trajectory]:  # fmt: skip
    """The end of a trajectory, the point that Metropolis chooses with uniforms u, and what there is to report."""
    end = arrive(field, start, momentum, x, p, eps, scale, dense)
    chosen, probability = decide(start, end.point, -end.error, u)
    info = {
        "accept": probability,
        "energy": chosen.energy,
        "hamiltonian": start.energy + row_dot(momentum, momentum) / 2,
        "diverging": ~(end.error.abs() < DIVERGENCE),
    }
    return chosen, info, end


class Hamiltonian(Tunable):
    """What `HMC` and `ChEES` share: start, one trajectory with its decision, and tuning."""

    step_size: float | None
    metric: str
    accept: float
    pilot: int

    needs: ClassVar[frozenset[str]] = frozenset({"energy", "score"})
    timed: ClassVar[bool | None] = False
    init_cost: ClassVar[Mapping[str, int]] = {"energy": 1, "score": 1}
    varying: ClassVar[tuple[str, ...]] = ("score",)

    def _check(self) -> None:
        if self.step_size is not None:
            positive("step_size", self.step_size)
        option("metric", self.metric, METRICS)
        if not 0 < finite("accept", self.accept) < 1:
            raise InvalidArgument("accept", self.accept, "a rate between 0 and 1")
        counts(self, pilot=1)

    @property
    def _dense(self) -> bool:
        return self.metric == "dense"

    @property
    def _eps(self) -> float | None:
        """The leapfrog step size that is given, None where it is to be tuned."""
        return self.step_size

    def _start(self, field: StaticField, x: Tensor, length: float) -> HMCState:
        shape = x.shape[1:]
        scale = torch.eye(shape.numel(), dtype=x.dtype, device=x.device) if self._dense else x.new_ones(shape)
        size = torch.tensor(self._eps if self._eps is not None else 0.1, dtype=torch.float64)
        step = torch.zeros((), dtype=torch.int64)
        return HMCState(x, *field.energy_and_grad(x), step, size, scale, torch.tensor(length, dtype=torch.float64))

    def _trajectory(
        self, field: StaticField, state: HMCState, noise: NoiseSource, eps: Any, steps: int
    ) -> tuple[HMCState, Info, Trajectory]:
        momentum = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        u = noise.uniform(state.step, Stream.ACCEPT, (), state.x.dtype)
        here = Point(state.x, state.energy, state.grad)
        x, p = depart(field, here, momentum, eps, steps, state.scale, self._dense)
        chosen: Point
        chosen, info, end = field.fused(arrive_and_decide, here, momentum, x, p, eps, state.scale, self._dense, u)
        return HMCState(*chosen, state.step + 1, state.step_size, state.scale, state.length), info, end

    def _first(self, field: StaticField, state: HMCState, noise: NoiseSource, alive: Tensor) -> tuple[float, int]:
        """A first step size, from single leapfrog steps, and how many of them were made."""
        if self._eps is not None:
            return self._eps, 0
        tried = 0

        def accept(size: float) -> float:
            nonlocal tried
            tried += 1
            rates = self._trajectory(field, state, noise, size, 1)[1]["accept"]
            return float(rates[alive].mean())

        return first_step_size(accept, 0.8), tried

    def begin_following(self, state: HMCState) -> Following:
        """Nothing learned: the others' step size, scales and length are there."""
        return begin_following(state.x)

    def adapt(
        self,
        field: StaticField,
        state: HMCState,
        tuning: Any,
        noise: NoiseSource,
        alive: Tensor,
        step: int,
        warmup: int,
    ) -> tuple[HMCState, Info, Any]:
        """Step `step` of `warmup`, and what is learned from it; alive `(chains,)`, the chains that are well."""
        arguments, spent = (noise, alive, step, warmup), 0
        if self._eps is not None or step >= approach(warmup):
            return self._adapted(field, state, tuning, *arguments)
        if step == 0:
            far, spent = self._begins_far(field, state, tuning, noise, alive)
            tuning = tuning._replace(far=far)
        if bool(tuning.far.all()):
            made = self._approach(field, state, tuning, *arguments)
        elif not bool(tuning.far.any()):
            made = self._adapted(field, state, tuning, *arguments)
        else:
            made = self._mixed(field, state, tuning, *arguments)
        return (made[0], self._also(made[1], spent), made[2]) if spent else made

    def _adapted(
        self,
        field: StaticField,
        state: HMCState,
        tuning: Any,
        noise: NoiseSource,
        alive: Tensor,
        step: int,
        warmup: int,
    ) -> tuple[HMCState, Info, Any]:
        """As `adapt`, with the step size and the scales that all chains have in common."""
        raise NotImplementedError

    def _begins_far(
        self, field: StaticField, state: HMCState, tuning: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[Tensor, int]:
        """Which chains go their own way, `(chains,)`: of those that tune all or none, by the majority of those that are well."""
        far, spent = begins_far(field, Place(state.x, state.energy, state.grad), noise, state.step)
        if not isinstance(tuning, Following):
            far = torch.full_like(far, bool(2 * (far & alive).sum() > alive.sum()))
        return far, spent

    def _mixed(
        self,
        field: StaticField,
        state: HMCState,
        tuning: Following,
        noise: NoiseSource,
        alive: Tensor,
        step: int,
        warmup: int,
    ) -> tuple[HMCState, Info, Following]:
        """A step of chains that follow, some of them in their own way, each as in a batch of its kind."""
        own, ours, learned = self._approach(field, state, tuning, noise, alive, step, warmup)
        common, theirs, idle = self._adapted(field, state, tuning, noise, alive, step, warmup)
        place = {name: select_rows(tuning.far, getattr(own, name), getattr(common, name)) for name in Place._fields}
        info = {name: torch.where(tuning.far, ours[name], theirs[name]) for name in ours.keys() & theirs.keys()}
        counted = self._also(theirs, 0)["evaluations"] - beside(self, 0, alive)  # all gradients of the common step
        info["evaluations"] = ours["evaluations"] + counted
        idle = torch.where(tuning.far, tuning.idle, idle.idle)
        return common._replace(**place), info, learned._replace(idle=idle)

    def _also(self, info: Info, gradients: int) -> Info:
        """So many gradients a chain more than a step reports."""
        known = info.get("evaluations", torch.zeros_like(info["accept"], dtype=torch.int64))
        return info | {"evaluations": known + gradients}

    def _approach(
        self,
        field: StaticField,
        state: HMCState,
        tuning: Any,
        noise: NoiseSource,
        alive: Tensor,
        step: int,
        warmup: int,
    ) -> tuple[HMCState, Info, Any]:
        """As `adapt`, each chain in its own way; with the last such step common step size and scales are there."""
        steps, own = approach(warmup), Stride(tuning.log_size, tuning.log_curvature)
        here = Place(state.x, state.energy, state.grad)
        place, own, report = stride(field, here, own, noise, state.step, step, steps)
        state = state._replace(**place._asdict(), step=state.step + 1)
        info = {
            "accept": report.accept,
            "energy": place.energy,
            "diverging": ~(report.error.abs() < DIVERGENCE),
            "evaluations": beside(self, report.gradients, alive),
        }
        tuning = tuning._replace(**own._asdict())
        if isinstance(tuning, Following) or step < steps - 1:
            return state, info, tuning
        size, scale = common_stride(own, alive, self.metric, state.scale)
        return state._replace(step_size=_number(size), scale=scale), info, tuning._replace(averaging=restart(size))

    def _pooled(self, tuning: Tuning, info: Info, alive: Tensor) -> float:
        """The acceptance that the step size is tuned by."""
        return pooled_acceptance(tuning.idle, info["accept"], alive)

    def _tuned(
        self, state: HMCState, tuning: Tuning, info: Info, alive: Tensor, step: int, warmup: int
    ) -> tuple[HMCState, Tuning]:
        """Step size and scales after a step of warmup."""
        last = step == warmup - 1
        if self._eps is None:
            tuning, size = next_step_size(tuning, self._pooled(tuning, info, alive), self.accept, last)
            state = state._replace(step_size=_number(size))
        tuning = tuning._replace(idle=next_idle(tuning.idle, info["accept"]))
        counts, ends = window_end(step, warmup)
        if self.metric == "none" or not counts:
            return state, tuning
        tuning = accumulate(tuning, state.x[alive], self._dense)
        if not ends:
            return state, tuning
        tuning, scale = scales(tuning, self.metric, state.scale)
        # in scaled space all lengths change by the factor by which the scales have grown
        grown = float((_diagonal(scale, self._dense) / _diagonal(state.scale, self._dense)).log().mean().exp())
        size = self._eps if self._eps is not None else float(state.step_size) / grown
        tuning = tuning._replace(averaging=restart(size))
        return state._replace(scale=scale, step_size=_number(size), length=state.length / grown), tuning


def _diagonal(scale: Tensor, dense: bool) -> Tensor:
    return scale.diagonal() if dense else scale


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


class Stepping(Hamiltonian):
    """What kernels share whose step, tuned or not, is one function `_stepped` of the step size."""

    def _stepped(self, field: StaticField, state: HMCState, noise: NoiseSource, eps: Any) -> tuple[HMCState, Info]:
        """A step with this step size, a 0-d tensor or one value a chain."""
        raise NotImplementedError

    @property
    def adapts(self) -> bool:
        """Whether warmup tunes anything."""
        return self.step_size is None or self.metric != "none"

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> HMCState:
        return self._start(field, x, 0.0)

    def step(self, field: StaticField, state: HMCState, noise: NoiseSource) -> tuple[HMCState, Info]:
        return self._stepped(field, state, noise, state.step_size.to(state.x.dtype))

    def begin_tuning(
        self, field: StaticField, state: HMCState, noise: NoiseSource, alive: Tensor
    ) -> tuple[HMCState, Tuning, int]:
        """The state with a first step size, nothing learned yet, and the evaluations that this took a chain."""
        size, spent = self._first(field, state, noise, alive)
        return state._replace(step_size=_number(size)), begin_tuning(state.x, size, self.metric), spent

    def _adapted(
        self,
        field: StaticField,
        state: HMCState,
        tuning: Tuning | Following,
        noise: NoiseSource,
        alive: Tensor,
        step: int,
        warmup: int,
    ) -> tuple[HMCState, Info, Tuning | Following]:
        """As `Hamiltonian._adapted`."""
        dtype = state.x.dtype
        eps = state.step_size.to(dtype) * shortening(tuning.idle, dtype)
        state, info = self._stepped(field, state, noise, eps)
        if isinstance(tuning, Following):
            return state, info, tuning._replace(idle=next_idle(tuning.idle, info["accept"]))
        state, tuning = self._tuned(state, tuning, info, alive, step, warmup)
        return state, info, tuning


@dataclass(frozen=True)
class HMC(Stepping):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps.

    Arguments: step_size, None to tune it in warmup; leapfrogs, L; jitter in [0, 1), the half width of the uniform factor on
    each trajectory's step size; metric, "diagonal", "dense" or "none": the scales learned in warmup; accept, the
    acceptance aimed at; pilot, how many chains (the first ones) tune for all.
    (At .651, best for many dimensions, the jitter carries steps past the stability limit in a few.)
    Reports "accept", "energy", "hamiltonian" (at the start of the trajectory) and "diverging" (an error of the total energy
    above 1000, or NaN). A trajectory that ends in NaN or infinity is rejected.
    """

    step_size: float | None = None
    leapfrogs: int = 10
    jitter: float = 0.25
    metric: str = "diagonal"
    accept: float = 0.8
    pilot: int = 256

    capturable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check()
        counts(self, leapfrogs=1)
        if not 0 <= finite("jitter", self.jitter) < 1:
            raise InvalidArgument("jitter", self.jitter, "a number in [0, 1)")

    @property
    def step_cost(self) -> Mapping[str, int]:
        """One gradient a leapfrog step, and the energy at the end."""
        return {"energy": 1, "score": self.leapfrogs}

    @property
    def weight(self) -> int:
        """How many evaluations long a step is, for unrolling compiled steps."""
        return self.leapfrogs

    def _stepped(self, field: StaticField, state: HMCState, noise: NoiseSource, eps: Any) -> tuple[HMCState, Info]:
        """As `Stepping._stepped`; the step size is that before the jitter."""
        if self.jitter:
            u = noise.uniform(state.step, Stream.LENGTH, (), state.x.dtype)
            eps = eps * (1 + self.jitter * (2 * u - 1))
        eps = across(eps, state.x) if eps.ndim else eps
        new, info, _ = self._trajectory(field, state, noise, eps, self.leapfrogs)
        return new, info


def halton(n: int) -> float:
    """Point n = 0, 1, ... of Halton's sequence in base 2, in (0, 1): 1/2, 1/4, 3/4, 1/8, ..."""
    n, value, digit = n + 1, 0.0, 0.5
    while n:
        value, digit, n = value + digit * (n & 1), digit / 2, n >> 1
    return value


class ChEESTuning(NamedTuple):
    """What `Tuning` holds; `ascent` `(4,)`, of the ascent on log T Adam's moments, its steps and the averaged value; `slowest`
    `(d,)`, the direction of the largest variance in scaled space, as long as that variance.
    """

    averaging: Tensor
    draws: Tensor
    mean: Tensor
    deviations: Tensor
    idle: Tensor
    far: Tensor
    log_size: Tensor
    log_curvature: Tensor
    ascent: Tensor
    slowest: Tensor


@dataclass(frozen=True)
class ChEES(Hamiltonian):
    """Hamiltonian Monte Carlo that tunes step size, scales and trajectory length over many chains: the default for energies.

    Arguments: step_size and length T, None to tune them in warmup; metric and pilot as in `HMC`; accept, the harmonic mean over
    chains of the acceptance aimed at (times the share of those that did not diverge); learning_rate of Adam on log T; most, the
    largest number of leapfrog steps in a trajectory.
    (In the harmonic mean a chain in a narrow place counts, whose proposals the step size of the others has rejected. With the
    plain one, at .8, the neck of Neal's funnel was out of reach, and its mean wrong by .4 standard deviations.)
    Reports what `HMC` does, and "leapfrogs". Use 16 chains or more: the length is learned from how they differ.
    """

    step_size: float | None = None
    length: float | None = None
    metric: str = "diagonal"
    accept: float = 0.651
    pilot: int = 256
    learning_rate: float = 0.025
    most: int = 1000

    capturable: ClassVar[bool] = False
    step_cost: ClassVar[Mapping[str, int]] = {"energy": 1}

    def __post_init__(self) -> None:
        self._check()
        if self.length is not None:
            positive("length", self.length)
        positive("learning_rate", self.learning_rate)
        counts(self, most=1)

    @property
    def adapts(self) -> bool:
        """Whether warmup tunes anything."""
        return self.step_size is None or self.length is None or self.metric != "none"

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> HMCState:
        return self._start(field, x, self.length if self.length is not None else 1.0)

    def step(self, field: StaticField, state: HMCState, noise: NoiseSource) -> tuple[HMCState, Info]:
        return self._halton_step(field, state, noise)[:2]

    def _pooled(self, tuning: Tuning, info: Info, alive: Tensor) -> float:
        return harmonic_acceptance(tuning.idle, info["accept"], alive, info["diverging"])

    def _halton_step(
        self, field: StaticField, state: HMCState, noise: NoiseSource, shorter: Tensor | None = None
    ) -> tuple[HMCState, Info, Trajectory, float]:
        """A step, its trajectory and the time that this takes; shorter `(chains,)`, factors on the step size in warmup."""
        size, time = float(state.step_size), 2 * halton(int(state.step)) * float(state.length)
        eps: Any = torch.tensor(size, dtype=state.x.dtype) if field.fuses else size
        eps = eps if shorter is None else across(size * shorter, state.x)
        return *self._counted(field, state, noise, eps, self._leapfrogs(time, size)), time

    def _leapfrogs(self, time: float, size: float) -> int:
        return min(max(math.ceil(time / size), 1), self.most)

    def _counted(
        self, field: StaticField, state: HMCState, noise: NoiseSource, eps: Any, steps: int
    ) -> tuple[HMCState, Info, Trajectory]:
        new, info, end = self._trajectory(field, state, noise, eps, steps)
        taken = torch.full_like(info["diverging"], steps, dtype=torch.int64)
        return new, info | {"evaluations": taken, "leapfrogs": taken.to(state.x.dtype)}, end

    def ahead(self, state: HMCState) -> Callable[[int], int]:
        """How many leapfrog steps each step takes, by its index, as long as warmup does not change the state's length."""
        size, length = float(state.step_size), float(state.length)
        return lambda step: self._leapfrogs(2 * halton(step) * length, size)

    def taking(self, leapfrogs: int) -> Counted:
        """The step that takes so many leapfrog steps."""
        return Counted(self, leapfrogs)

    def begin_tuning(
        self, field: StaticField, state: HMCState, noise: NoiseSource, alive: Tensor
    ) -> tuple[HMCState, ChEESTuning, int]:
        """As `HMC.begin_tuning`; the first trajectories are of one step or two."""
        size, spent = self._first(field, state, noise, alive)
        length = self.length if self.length is not None else size
        ascent = torch.tensor([0.0, 0.0, 0.0, math.log(length)], dtype=torch.float64)
        slowest = torch.arange(1.0, state.x[0].numel() + 1, dtype=torch.float64, device=state.x.device).cos()
        tuning = ChEESTuning(*begin_tuning(state.x, size, self.metric), ascent, slowest)
        return state._replace(step_size=_number(size), length=_number(length)), tuning, spent

    def _approach(
        self,
        field: StaticField,
        state: HMCState,
        tuning: Any,
        noise: NoiseSource,
        alive: Tensor,
        step: int,
        warmup: int,
    ) -> tuple[HMCState, Info, Any]:
        """As `Hamiltonian._approach`; the length starts with the step size that it has found."""
        state, info, tuning = super()._approach(field, state, tuning, noise, alive, step, warmup)
        if self.length is None and not isinstance(tuning, Following):
            state = state._replace(length=FIRST_LEAPFROGS * state.step_size)
        return state, info, tuning

    def _adapted(
        self, field: StaticField, state: HMCState, tuning: ChEESTuning | Following, noise: NoiseSource, alive: Tensor,
        step: int, warmup: int,
    ) -> tuple[HMCState, Info, ChEESTuning | Following]:  # fmt: skip
        """As `Hamiltonian._adapted`; also the trajectory length."""
        before = state
        state, info, end, time = self._halton_step(field, state, noise, shortening(tuning.idle, state.x.dtype))
        if isinstance(tuning, Following):
            return state, info, tuning._replace(idle=next_idle(tuning.idle, info["accept"]))
        if self.length is None:
            usual = alive & (info["accept"] > 0) & (tuning.idle <= PATIENCE)
            tuning, slope = self._slope(tuning, before, end, time, info["accept"], usual)
            tuning, length = self._ascend(
                tuning, slope, float(state.step_size), float(state.length), step == warmup - 1
            )
            state = state._replace(length=_number(length))
        known = state.scale
        state, tuning = self._tuned(state, tuning, info, alive, step, warmup)  # type: ignore[arg-type, assignment]
        came_far = bool(tuning.far.any()) and state.scale is not known
        return state, info, self._rescaled(tuning, known, state.scale) if came_far else tuning

    def _rescaled(self, tuning: ChEESTuning, before: Tensor, after: Tensor) -> ChEESTuning:
        """The slowest direction in the space of new scales, and Adam's moments, as the slope is of the fourth order in lengths.

        Else a first slope in units a hundred times too small would stand in the second moment for a thousand steps.
        """
        variance = tuning.slowest.norm()
        along = (tuning.slowest / variance).to(before.dtype).reshape(1, *self._shape(before))
        turned = unstretch(after, stretch(before, along, self._dense), self._dense).flatten().to(tuning.slowest)
        factor = float(turned.square().sum())
        first, second, n, average = tuning.ascent.tolist()
        ascent = torch.tensor([first * factor**2, second * factor**4, n, average], dtype=torch.float64)
        return tuning._replace(slowest=turned * variance * math.sqrt(factor), ascent=ascent)

    def _shape(self, scale: Tensor) -> tuple[int, ...]:
        """The shape of an event, or the number of its entries where scales are dense."""
        return tuple(scale.shape[:1]) if self._dense else tuple(scale.shape)

    def _slope(
        self, tuning: ChEESTuning, before: HMCState, end: Trajectory, time: float, accept: Tensor, usual: Tensor
    ) -> tuple[ChEESTuning, float]:
        """The slowest direction, and the criterion's gradient in log T along it, over the usual chains."""
        n = int(usual.sum())
        if n < 2:
            return tuning, 0.0
        x, ahead = (unstretch(before.scale, v[usual], self._dense).reshape(n, -1) for v in (before.x, end.point.x))
        x, ahead = x - x.mean(0), ahead - ahead.mean(0)
        along = (tuning.slowest / tuning.slowest.norm()).to(x)
        slowest = MEMORY * tuning.slowest + (1 - MEMORY) * (x.T @ (x @ along) / n).to(tuning.slowest)
        a, b, p = x @ along, ahead @ along, end.momentum[usual].reshape(n, -1) @ along
        gain = b.square() - a.square()
        rise = time * gain * b * p - gain.square() / 4
        slope = float((accept[usual] * rise).mean() / accept[usual].mean())
        return tuning._replace(slowest=slowest if bool(slowest.isfinite().all()) else tuning.slowest), slope

    def _ascend(
        self, tuning: ChEESTuning, slope: float, size: float, length: float, last: bool
    ) -> tuple[ChEESTuning, float]:
        """A step of Adam on log T; the average of log T after the last one."""
        first, second, n, average = tuning.ascent.tolist()
        if math.isfinite(slope) and slope:
            n += 1
            first, second = 0.9 * first + 0.1 * slope, 0.95 * second + 0.05 * slope**2
            rise = first / (1 - 0.9**n) / (math.sqrt(second / (1 - 0.95**n)) + 1e-300)
            log_length = math.log(length) + self.learning_rate * rise
            log_length = min(max(log_length, math.log(size)), math.log(size * self.most / 2))
            weight = (n + 1) ** -0.5
            average = (1 - weight) * average + weight * log_length
            length = math.exp(log_length)
        ascent = torch.tensor([first, second, n, average], dtype=torch.float64)
        return tuning._replace(ascent=ascent), STRETCH * math.exp(average) if last else length


@dataclass(frozen=True)
class Counted:
    """A step of `ChEES` after warmup whose number of leapfrog steps is given, so that it can be captured."""

    sampler: ChEES
    leapfrogs: int

    def step(self, field: StaticField, state: HMCState, noise: NoiseSource) -> tuple[HMCState, Info]:
        """As `ChEES.step`."""
        eps = state.step_size.to(state.x.dtype)
        return self.sampler._counted(field, state, noise, eps, self.leapfrogs)[:2]
