r"""Hamiltonian Monte Carlo with tuned step size, scales and, over many chains, trajectory length.

With scales S (a diagonal or a Cholesky factor), momentum p ~ N(0, I) and H(x, p) = E(x) + |p|^2 /
2, L leapfrog steps of

    p <- p - eps/2 S^T grad E(x),    x <- x + eps S p,    p <- p - eps/2 S^T grad E(x)

(neighbouring half kicks joined: one gradient a step) end in x', which is accepted with probability
min(1, exp(H - H')).

`HMC` makes L steps; with `jitter` each chain's step size is multiplied by a uniform factor in each
trajectory, so that trajectories do not stay in phase with a period of the target. `ChEES` makes
ceil(u_n T / eps) steps in the n-th trajectory, the same for all chains, u_n in (0, 2) being twice
the n-th point of Halton's sequence; warmup tunes T (`warmup.length.SquaredJumps`).

References:
    Duane, Kennedy, Pendleton, Roweth, "Hybrid Monte Carlo" (1987).
    Neal, "MCMC using Hamiltonian dynamics" (2011).
    Hoffman, Radul, Sountsov, "An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian
    Monte Carlo" (2021).
    Sountsov, Hoffman, "Focusing on difficult directions for learning HMC trajectory lengths"
    (2021), for the rate and the direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import counts, fraction, option, positive
from scoretk.core.rows import across
from scoretk.core.scalars import is_zero
from scoretk.core.streams import Stream
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import StaticField
from scoretk.solvers.base import Info
from scoretk.solvers.parts.leapfrog import (
    Point,
    Trajectory,
    inner_steps,
    last_step_and_decision,
    leapfrog,
    paces,
    unstretch,
)
from scoretk.solvers.warmup.adaptation import Adaptation, Approach
from scoretk.solvers.warmup.learning import Part, Trial
from scoretk.solvers.warmup.length import SquaredJumps, TimedTrajectory
from scoretk.solvers.warmup.plan import takes_pilot
from scoretk.solvers.warmup.scales import METRICS, Scales, first_scales, other_shapes
from scoretk.solvers.warmup.step_size import DualAveraging, number
from scoretk.solvers.warmup.tuned import Tunable

__all__ = [
    "HMC",
    "ChEES",
    "HMCState",
    "Hamiltonian",
    "Point",
    "Stepping",
    "Trajectory",
    "leapfrog",
    "unstretch",
]

SHARED = frozenset({"step", "step_size", "scale", "length"})


class HMCState(NamedTuple):
    """The state of Hamiltonian kernels.

    Position x, its energy `(chains,)` and the gradient of its energy, like x; the index of the next
    step; and what warmup tunes: step size `()`, scales like an event or `(d, d)`, and trajectory
    length `()`.
    """

    x: Tensor
    energy: Tensor
    grad: Tensor
    step: Tensor
    step_size: Tensor
    scale: Tensor
    length: Tensor

    @property
    def shared(self) -> frozenset[str]:
        """Names of the leaves that all chains share."""
        return SHARED


class Hamiltonian(Tunable):
    """What `HMC` and `ChEES` share: start, one trajectory with its decision, and tuning."""

    step_size: float | None
    metric: str
    accept: float

    needs: ClassVar[frozenset[str]] = frozenset({"energy", "score"})
    timed: ClassVar[bool | None] = False
    init_cost: ClassVar[Mapping[str, int]] = {"energy": 1, "score": 1}
    varying: ClassVar[tuple[str, ...]] = ("score",)

    def _check(self) -> None:
        if self.step_size is not None:
            positive("step_size", self.step_size)
        option("metric", self.metric, METRICS)
        fraction("accept", self.accept, "(0, 1)")

    @property
    def _eps(self) -> float | None:
        """The leapfrog step size, None where warmup tunes it."""
        return self.step_size

    def reshaped(self, x: Tensor) -> Mapping[str, tuple[int, ...]]:
        """As `scoretk.solvers.base.Traits` says: scales may become a Cholesky factor."""
        return other_shapes(self.metric, x)

    def _start(self, field: StaticField, x: Tensor, length: float) -> HMCState:
        scale = first_scales(self.metric, x)
        size = number(0.1 if self._eps is None else self._eps)
        step = torch.zeros((), dtype=torch.int64)
        return HMCState(x, *field.energy_and_grad(x), step, size, scale, number(length))

    def _trajectory(
        self, field: StaticField, state: HMCState, noise: NoiseSource, eps: Any, steps: int | Tensor
    ) -> tuple[HMCState, Info, Trajectory]:
        momentum = noise.normal(
            state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype
        )
        u = noise.uniform(state.step, Stream.ACCEPT, (), state.x.dtype)
        start = Point(state.x, state.energy, state.grad)
        along = paces(eps, state.scale, state.x)
        here = inner_steps(field, start, momentum, along, steps, state.scale)
        chosen, info, end = last_step_and_decision(
            field, start, momentum, here, along, u, scale=state.scale
        )
        return (
            HMCState(*chosen, state.step + 1, state.step_size, state.scale, state.length),
            info,
            end,
        )

    @property
    def adaptation(self) -> Adaptation:
        """What is tuned: all that is not given.

        Where the step size is tuned, chains that start far off begin as in `warmup.approach`.
        """
        step_size = () if self._eps is not None else (self._step_size_part(),)
        lengths = self._length_parts()
        tuned = ("step_size",) * len(step_size) + ("length",) * len(lengths)
        scales = () if self.metric == "none" else (Scales(self.metric, tuned),)
        approach = Approach(self.metric) if self._eps is None else None
        return Adaptation((*step_size, *lengths, *scales), approach)

    def _step_size_part(self) -> Part:
        """The part of warmup that tunes the step size."""
        return DualAveraging(self.accept)

    def _length_parts(self) -> tuple[Part, ...]:
        """The part of warmup that tunes the length of trajectories, if any does."""
        return ()


class Stepping(Hamiltonian):
    """Hamiltonian kernels whose step is a function `_stepped` of the step size."""

    untuned: ClassVar[frozenset[str]] = frozenset({"length"})

    def _stepped(
        self, field: StaticField, state: HMCState, noise: NoiseSource, eps: Any
    ) -> tuple[HMCState, Info]:
        """A step with step size eps, `()` or `(chains,)`."""
        raise NotImplementedError

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> HMCState:
        return self._start(field, x, 0.0)

    def step(
        self, field: StaticField, state: HMCState, noise: NoiseSource
    ) -> tuple[HMCState, Info]:
        return self._stepped(field, state, noise, state.step_size.to(state.x.dtype))


@takes_pilot
@dataclass(frozen=True)
class HMC(Stepping):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps.

    Reports "accept", "energy", "hamiltonian" (at the start of the trajectory) and "diverging" (an
    error of the total energy above 1000, or NaN). A trajectory that ends in NaN or infinity is
    rejected.

    Args:
        step_size: eps > 0, in scaled space; None to tune it in warmup.
        leapfrogs: L, the number of leapfrog steps in a trajectory.
        jitter: The half width, in [0, 1), of the uniform factor about 1 that multiplies each
            trajectory's step size.
        metric: "auto", "diagonal", "fisher", "dense" or "none": the scales learned in warmup
            (`warmup.scales`); "auto" is dense where coordinates are strongly correlated, and else
            diagonal.
        accept: The mean acceptance, in (0, 1), that warmup tunes the step size to. (At .651, which
            is best in many dimensions, the jitter carries steps past the stability limit in a few.)
    """

    step_size: float | None = None
    leapfrogs: int = 10
    jitter: float = 0.25
    metric: str = "auto"
    accept: float = 0.8

    reports: ClassVar[tuple[str, ...]] = ("accept", "energy", "hamiltonian", "diverging")
    capturable: ClassVar[bool] = True
    as_data: ClassVar[tuple[str, ...]] = ("step_size", "jitter", "accept")

    def __post_init__(self) -> None:
        self._check()
        counts(self, leapfrogs=1)
        fraction("jitter", self.jitter, "[0, 1)")

    @property
    def step_cost(self) -> Mapping[str, int]:
        """One gradient a leapfrog step, and the energy at the end."""
        return {"energy": 1, "score": self.leapfrogs}

    def _stepped(
        self, field: StaticField, state: HMCState, noise: NoiseSource, eps: Any
    ) -> tuple[HMCState, Info]:
        """As `Stepping._stepped`; eps is the step size before jitter."""
        if not is_zero(self.jitter):
            u = noise.uniform(state.step, Stream.LENGTH, (), state.x.dtype)
            eps = (1 - self.jitter) * eps + u * (2 * self.jitter * eps)
        eps = across(eps, state.x) if eps.ndim else eps
        new, info, _ = self._trajectory(field, state, noise, eps, self.leapfrogs)
        return new, info


def halton(n: int) -> float:
    """Point n = 0, 1, ... of Halton's sequence in base 2, in (0, 1): 1/2, 1/4, 3/4, 1/8, ..."""
    n, value, digit = n + 1, 0.0, 0.5
    while n:
        value, digit, n = value + digit * (n & 1), digit / 2, n >> 1
    return value


def halton_points(n: Tensor) -> Tensor:
    """As `halton`, for indices in [0, 2^32), like n in float64: the bits of n + 1, reversed."""
    places = torch.arange(33, device=n.device)
    bits = (n + 1).unsqueeze(-1).bitwise_right_shift(places) & 1
    return bits.bitwise_left_shift(32 - places).sum(-1).double() * 2.0**-33


@takes_pilot
@dataclass(frozen=True)
class ChEES(Hamiltonian):
    """Hamiltonian Monte Carlo that tunes step size, scales and trajectory length over many chains.

    The default for energies. Use 16 chains or more: the length is learned from how they differ.

    Reports what `HMC` does, and "leapfrogs", the number of leapfrog steps.

    Args:
        step_size: eps > 0, in scaled space; None to tune it in warmup.
        length: T > 0, the mean time of a trajectory, in scaled space; None to tune it in warmup.
        metric: "auto", "diagonal", "fisher", "dense" or "none": the scales learned in warmup
            (`warmup.scales`); "auto" is dense where coordinates are strongly correlated, and else
            diagonal.
        accept: The harmonic mean acceptance over chains, times the share of those that did not
            diverge, that warmup tunes the step size to. (In the harmonic mean chains in narrow
            places weigh more, where a step size that suits the others is rejected. With the plain
            mean, at .8, the neck of Neal's funnel was out of reach, and its mean wrong by .4
            standard deviations.)
        learning_rate: The learning rate of Adam on log T.
        most: The largest number of leapfrog steps in a trajectory.
    """

    step_size: float | None = None
    length: float | None = None
    metric: str = "auto"
    accept: float = 0.651
    _: KW_ONLY
    learning_rate: float = 0.025
    most: int = 1000

    reports: ClassVar[tuple[str, ...]] = (
        "accept",
        "energy",
        "hamiltonian",
        "diverging",
        "leapfrogs",
    )
    capturable: ClassVar[bool] = False
    as_data: ClassVar[tuple[str, ...]] = ("step_size", "length", "accept", "learning_rate", "most")
    step_cost: ClassVar[Mapping[str, int]] = {"energy": 1}

    def __post_init__(self) -> None:
        self._check()
        if self.length is not None:
            positive("length", self.length)
        positive("learning_rate", self.learning_rate)
        counts(self, most=1)

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> HMCState:
        return self._start(field, x, self.length if self.length is not None else 1.0)

    def step(
        self, field: StaticField, state: HMCState, noise: NoiseSource
    ) -> tuple[HMCState, Info]:
        if torch.compiler.is_compiling():
            return self._captured_step(field, state, noise)
        return self._halton_step(field, state, noise)[:2]

    def trial(
        self, field: StaticField, state: HMCState, noise: NoiseSource, shorter: Tensor
    ) -> Trial:
        """As `Tunable.trial`; `Trial.seen` is the trajectory, of as many steps for all chains."""
        state, info, end, time = self._halton_step(field, state, noise, shorter)
        return Trial(state, info, info["accept"], TimedTrajectory(end, time))

    def _step_size_part(self) -> Part:
        return DualAveraging(self.accept, "harmonic")

    def _length_parts(self) -> tuple[Part, ...]:
        if self.length is not None:
            return ()
        return (SquaredJumps(self.learning_rate, self.most),)

    def _halton_step(
        self, field: StaticField, state: HMCState, noise: NoiseSource, shorter: Tensor | None = None
    ) -> tuple[HMCState, Info, Trajectory, float]:
        """A step, with its trajectory and the time of that.

        In warmup `shorter` `(chains,)` are factors on the step size.
        """
        size, time = float(state.step_size), 2 * halton(int(state.step)) * float(state.length)
        eps = size if shorter is None else across(size * shorter, state.x)
        leapfrogs = self._leapfrogs(time, size)
        return *self._counted(field, state, noise, eps, leapfrogs), leapfrogs * size

    def _leapfrogs(self, time: float, size: float) -> int:
        return min(max(math.ceil(time / size), 1), self.most)

    def _captured_step(
        self, field: StaticField, state: HMCState, noise: NoiseSource
    ) -> tuple[HMCState, Info]:
        """As `step`, within a graph: the number of leapfrog steps is read when it runs."""
        time = 2 * halton_points(state.step) * state.length
        steps = (time / state.step_size).ceil().clamp(min=1).clamp(max=self.most).to(torch.int64)
        eps = state.step_size.to(state.x.dtype)
        return self._counted(field, state, noise, eps, steps)[:2]

    def _counted(
        self, field: StaticField, state: HMCState, noise: NoiseSource, eps: Any, steps: int | Tensor
    ) -> tuple[HMCState, Info, Trajectory]:
        new, info, end = self._trajectory(field, state, noise, eps, steps)
        taken = torch.zeros_like(info["diverging"], dtype=torch.int64) + steps
        return new, info | {"evaluations": taken, "leapfrogs": taken.to(state.x.dtype)}, end

    @property
    def capturable_as_loop(self) -> bool:
        """As `scoretk.solvers.base.Traits` says, but for a subclass with a step of its own."""
        return type(self).step is ChEES.step

    @property
    def capturable_ahead(self) -> Callable[[HMCState], Callable[[int], Counted]] | None:
        """As `scoretk.solvers.base.Traits` says; None where a subclass has a step of its own, which
        this knows nothing of.
        """
        return self._ahead if type(self).step is ChEES.step else None

    def _ahead(self, state: HMCState) -> Callable[[int], Counted]:
        """The numbers of leapfrog steps follow from step size and length, which after warmup stay."""
        size, length = float(state.step_size), float(state.length)
        return lambda step: Counted(self, self._leapfrogs(2 * halton(step) * length, size))


@dataclass(frozen=True)
class Counted:
    """`ChEES` after warmup with a number of leapfrog steps that is given, so that its step can be
    captured.
    """

    sampler: ChEES
    leapfrogs: int

    def step(
        self, field: StaticField, state: HMCState, noise: NoiseSource
    ) -> tuple[HMCState, Info]:
        """As `ChEES.step`."""
        eps = state.step_size.to(state.x.dtype)
        return self.sampler._counted(field, state, noise, eps, self.leapfrogs)[:2]
