r"""Microcanonical Langevin Monte Carlo, unadjusted and adjusted.

The velocity has length one, and the gradient only changes its direction. In d dimensions, with
scales S, the position x moves along S u, |u| = 1. A constant gradient turns u by a closed form:
over a time t, with g = S^T grad E(x), e = -g / |g|, c = <e, u> and delta = t |g| / (d - 1),

    u' = (u + e (sinh delta + c (cosh delta - 1))) / D,    D = cosh delta + c sinh delta

which shrinks volume on the sphere by D^(d-1). So the flow keeps p(x) times the uniform law of u,
and a discretised trajectory misses it by the error of the total energy,

    W = E(x') - E(x) + (d - 1) sum log D,    the sum being over the turns.

The code's form neither overflows nor cancels, in the unstable direction u = -e included: with q =
exp(-delta), s = u + e and a = |s|^2 / 4 = (1 + c) / 2,

    u' ~ q s + e (a (1 - q)^2 - q^2),    log D = delta + log(a + (1 - a) q^2).

A strong gradient turns velocities of all kinds to its own direction, but for rounding. Where the
next turn is straight against that, a is rounding too: in W it counts as the square of `ROUNDING`
units in the last place at least, so that W is too large there and not too small.

A step of size eps alternates turns of u with drifts of x, symmetrically; `INTEGRATORS` has the
shares of eps.

`MCLMC` makes one step at a time and turns u a little at random before each, so that it forgets its
direction over a length L,

    u <- (k u + sqrt((1 - k^2) / d) z) / |...|,    k = exp(-eps / L),    z ~ N(0, I)

Its bias is of order eps^2 and bounded, on a Gaussian, by the variance of W per dimension, which
warmup brings to `energy_variance` (`warmup.step_size.EnergyError`).

`AdjustedMCLMC` draws u anew, makes N steps and accepts x' with probability min(1, exp(-W)): exact
at any step size, so that each trajectory may draw its own: eps (1 + j v) r^v, v uniform in (-1, 1).

No decision takes back a step that is too long. New scales make one so: those of a window in which
chains have hardly moved are how far apart these began, and may be 40 times as wide as what the step
size suits. The energy of draws varies by sqrt(d / 2) where they are normal; a step of warmup whose
W is above `STRAY` sqrt(d) is not made, and the step size shrinks.

At unit speed a chain that starts far off would take all of warmup to arrive, and where the energy
is large its error W is rounding. So, where eps is tuned in a warmup of at least 20 steps, the steps
before the windows are Hamiltonian, with settings of each chain's own (`warmup.approach`). Then eps
begins at their step size times sqrt(d) times the number of drifts in a step.

References:
    Robnik, De Luca, Silverstein, Seljak, "Microcanonical Hamiltonian Monte Carlo" (2023).
    Robnik, Seljak, "Fluctuation without dissipation: microcanonical Langevin Monte Carlo" (2024).
    Robnik, Cohn-Gordon, Seljak, "Metropolis adjusted microcanonical Hamiltonian Monte Carlo"
    (2025).
    Omelyan, Mryglod, Folk, "Symplectic analytically integrable decomposition algorithms" (2003),
    for the minimal norm.
    Ver Steeg, Galstyan, "Hamiltonian dynamics with non-Newtonian momentum for rapid sampling"
    (2021), for the dynamics.
    Robnik, Seljak, "Controlling the asymptotic bias of the unadjusted (microcanonical) Hamiltonian
    and Langevin Monte Carlo" (2024), for the bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from scoretk.core.arguments import counts, finite, fraction, option, positive
from scoretk.core.rows import across, finite_rows, log_add_exp, row_dot, select_rows
from scoretk.core.scalars import is_zero
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import StaticField
from scoretk.solvers.base import Info
from scoretk.solvers.hmc import SHARED, HMCState
from scoretk.solvers.parts.leapfrog import DIVERGENCE, Point, pull, stretch
from scoretk.solvers.parts.metropolis import metropolis
from scoretk.solvers.warmup.adaptation import Adaptation, Approach
from scoretk.solvers.warmup.learning import Part, Trial
from scoretk.solvers.warmup.length import Decorrelation, Multiple, Spread
from scoretk.solvers.warmup.plan import takes_pilot
from scoretk.solvers.warmup.scales import METRICS, Scales, first_scales, other_shapes
from scoretk.solvers.warmup.step_size import DualAveraging, EnergyError, number
from scoretk.solvers.warmup.tuned import Tunable

__all__ = ["INTEGRATORS", "MCLMC", "AdjustedMCLMC"]

NORM = 0.1931833275037836
INTEGRATORS: dict[str, tuple[float, ...]] = {
    "leapfrog": (1 / 2, 1.0, 1 / 2),
    "minimal-norm": (NORM, 1 / 2, 1 - 2 * NORM, 1 / 2, NORM),
}
"""Shares of the step size: turn, drift, turn, ... Each drift costs a gradient."""

QUARTER = math.pi / 2
"""A quarter of a Gaussian's period, over the root of its summed variances."""
FIRST_STEPS = 10
"""Steps of an adjusted trajectory before its length is known."""
ROUNDING = 16
"""How many units in the last place directions and energies are off by at most."""
STRAY = 10.0
"""The largest error W over sqrt(d) of a step that is kept in warmup."""


class MCLMCState(NamedTuple):
    """The state of `MCLMC`.

    Position x and velocity of length one, each `(chains, *event_shape)`; energy `(chains,)` and its
    gradient, like x; the index of the next step; and what warmup tunes, as in `HMCState`: step size
    `()`, scales like an event or `(d, d)`, length `()`.
    """

    x: Tensor
    velocity: Tensor
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


S = TypeVar("S", MCLMCState, HMCState)


class MicrocanonicalTrajectory(NamedTuple):
    """The end of a trajectory: point, velocity, and the error W of the total energy `(chains,)`."""

    point: Point
    velocity: Tensor
    error: Tensor


def polar(v: Tensor, otherwise: Tensor) -> tuple[Tensor, Tensor]:
    """The norm of each row, `(chains,)`, and `v / |v|`, like v, or `otherwise` where v is 0."""
    norm = row_dot(v, v).sqrt()
    return norm, torch.where(across(norm, v) == 0, otherwise, v / across(norm, v))


def direction(step: int | Tensor, stream: Stream, x: Tensor, noise: NoiseSource) -> Tensor:
    """A velocity for each chain, uniform on the unit sphere, like x."""
    z = noise.normal(step, stream, tuple(x.shape[1:]), x.dtype)
    return polar(z, z)[1]


def turn(
    velocity: Tensor, gradient: Tensor, time: Tensor, dim: int, least: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The velocity after a turn by a constant gradient, and the energy that the turn takes.

    Args:
        velocity: u, of length one, `(chains, *event_shape)`.
        gradient: g = S^T grad E, like it.
        time: t, `()` or `(chains,)`.
        dim: d, at least 2.
        least: What a counts as at least in the energy, where u is known to rounding alone.

    Returns:
        u', like the velocity, and `(d - 1) log D`, `(chains,)`.
    """
    slope, uphill = polar(gradient, torch.zeros_like(gradient))
    delta = time * slope / (dim - 1)
    q, both = (-delta).exp(), velocity - uphill
    a = row_dot(both, both) / 4
    turned = across(q, both) * both + across(q**2 - a * (1 - q) ** 2, both) * uphill
    kept = (1 - a).clamp(min=0).log() - 2 * delta
    log_shrinkage = delta + log_add_exp(a.clamp(min=least).log(), kept)
    return polar(turned, velocity)[1], (dim - 1) * log_shrinkage


def isokinetic(
    field: StaticField,
    start: Point,
    velocity: Tensor,
    eps: Tensor,
    steps: int,
    scale: Tensor,
    integrator: str,
) -> MicrocanonicalTrajectory:
    """A trajectory of several steps.

    Turns that follow one another at the same place are joined.

    Args:
        field: A static field with energy and score.
        start: The first point, with its energy and gradient.
        velocity: u, of length one, `(chains, *event_shape)`.
        eps: The step size, `()` or `(chains,)`.
        steps: How many steps.
        scale: S, like an event, or a Cholesky factor `(d, d)`.
        integrator: A name in `INTEGRATORS`.
    """
    shares, dim = INTEGRATORS[integrator], start.x.shape[1:].numel()
    turns, drifts = shares[::2], shares[1::2] * steps
    inner = (*turns[1:-1], turns[-1] + turns[0]) * (steps - 1)
    least = (ROUNDING * torch.finfo(start.x.dtype).eps) ** 2
    x, (u, kinetic) = start.x, turn(velocity, pull(scale, start.grad), turns[0] * eps, dim, least)
    for drift, share in zip(drifts[:-1], inner + turns[1:-1], strict=True):
        x = x + across(drift * eps, x) * stretch(scale, u)
        u, change = turn(u, -pull(scale, field.passing_score(x)), share * eps, dim, least)
        kinetic = kinetic + change
    x = x + across(drifts[-1] * eps, x) * stretch(scale, u)
    energy, gradient = field.energy_and_grad(x)
    u, change = turn(u, pull(scale, gradient), turns[-1] * eps, dim, least)
    return MicrocanonicalTrajectory(
        Point(x, energy, gradient), u, energy - start.energy + kinetic + change
    )


class _Isokinetic(Tunable):
    """What `MCLMC` and `AdjustedMCLMC` share: the start, and what warmup tunes.

    Scales and length come from the moments of warmup's windows.
    """

    step_size: float | None
    length: float | None
    metric: str
    integrator: str

    needs: ClassVar[frozenset[str]] = frozenset({"energy", "score"})
    timed: ClassVar[bool | None] = False
    init_cost: ClassVar[Mapping[str, int]] = {"energy": 1, "score": 1}
    varying: ClassVar[tuple[str, ...]] = ("score",)

    def _check(self) -> None:
        for name in ("step_size", "length"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        option("metric", self.metric, METRICS)
        option("integrator", self.integrator, INTEGRATORS)

    def reshaped(self, x: Tensor) -> Mapping[str, tuple[int, ...]]:
        """As `scoretk.solvers.base.Traits` says: scales may become a Cholesky factor."""
        return other_shapes(self.metric, x)

    @property
    def _gradients(self) -> int:
        """How many gradients a step of the integrator costs: one a drift."""
        return len(INTEGRATORS[self.integrator]) // 2

    def _tunables(self, x: Tensor, length: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The state's leaves that chains share: step index 0, step size, scale and length.

        They are the solver's own where it was given them, else first guesses, `length` among them.

        Raises:
            InvalidArgument: Where an event has fewer than two dimensions.
        """
        shape = x.shape[1:]
        if shape.numel() < 2:
            raise InvalidArgument(
                "event_shape",
                tuple(shape),
                "at least two dimensions: on a line a velocity of length one cannot turn",
                "Use HMC or MALA",
            )
        size = self.step_size if self.step_size is not None else math.sqrt(shape.numel()) / 4
        length = self.length if self.length is not None else length
        scale = first_scales(self.metric, x)
        return torch.zeros((), dtype=torch.int64), number(size), scale, number(length)

    def of_leapfrog(self, size: float, dim: int) -> float:
        """The step size whose drifts are each as long as a leapfrog step: |momentum| ~ sqrt(dim)."""
        return size * (math.sqrt(dim) * self._gradients)

    @property
    def adaptation(self) -> Adaptation:
        """What is tuned: all that is not given.

        Where the step size is tuned, all chains begin with the steps of `warmup.approach`.
        """
        tuned = self.step_size is None
        step_size = (self._step_size_part(),) if tuned else ()
        parts = (
            *step_size,
            *self._length_parts(),
            Scales(self.metric, ("step_size",) if tuned else ()),
            *self._multiple_parts(),
        )
        if self._learns:
            return Adaptation(parts, Approach(self.metric, always=True) if tuned else None)
        return Adaptation()

    def _step_size_part(self) -> Part:
        """The part of warmup that tunes the step size."""
        raise NotImplementedError

    @property
    def _learns(self) -> bool:
        """Whether there is anything to learn."""
        return self.step_size is None or self.length is None or self.metric != "none"

    def _length_parts(self) -> tuple[Part, ...]:
        """The part of warmup that tunes the length, if any does."""
        raise NotImplementedError

    def _multiple_parts(self) -> tuple[Part, ...]:
        """The part of warmup that keeps the length at a multiple of the step size, if any does."""
        return ()


@takes_pilot
@dataclass(frozen=True)
class MCLMC(_Isokinetic):
    """Microcanonical Langevin Monte Carlo, unadjusted.

    For many dimensions, where a Metropolis decision makes steps small.

    Reports "energy" and "energy_error", W of the step. A chain that leaves the target's support is
    `NONFINITE`, except in warmup, where it stays and the step size shrinks, as it does where W is
    above 10 sqrt(d).

    Args:
        step_size: eps > 0, a length in scaled space; None to tune it in warmup.
        length: L > 0, over which the direction is forgotten, a length in scaled space; None to
            bring it in warmup to .7 of the length in which the slowest position decorrelates
            (`warmup.length.Decorrelation`).
        metric: "auto", "diagonal", "fisher", "dense" or "none": the scales learned in warmup
            (`warmup.scales`); "auto" is dense where coordinates are strongly correlated, and else
            diagonal.
        integrator: "minimal-norm" (two gradients a step) or "leapfrog" (one).
        energy_variance: The mean square of W per dimension that warmup tunes the step size to: the
            smaller, the less bias.

    Raises:
        InvalidArgument: At the start of a run on events of fewer than two dimensions.
    """

    step_size: float | None = None
    length: float | None = None
    metric: str = "auto"
    integrator: str = "minimal-norm"
    energy_variance: float = 5e-4

    exact: ClassVar[bool] = False
    reports: ClassVar[tuple[str, ...]] = ("energy", "energy_error")
    capturable: ClassVar[bool] = True
    as_data: ClassVar[tuple[str, ...]] = ("step_size", "length", "metric", "energy_variance")

    def __post_init__(self) -> None:
        self._check()
        positive("energy_variance", self.energy_variance)

    @property
    def step_cost(self) -> Mapping[str, int]:
        """One gradient a drift, and the energy at the end."""
        return {"energy": 1, "score": self._gradients}

    def _step_size_part(self) -> Part:
        return EnergyError(self.energy_variance)

    def _length_parts(self) -> tuple[Part, ...]:
        return (Decorrelation(),) if self.length is None else ()

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> MCLMCState:
        tunables = self._tunables(x, math.sqrt(x.shape[1:].numel()))
        return MCLMCState(
            x, direction(0, Stream.MOMENTUM, x, noise), *field.energy_and_grad(x), *tunables
        )

    def step(
        self, field: StaticField, state: MCLMCState, noise: NoiseSource
    ) -> tuple[MCLMCState, Info]:
        return self._stepped(field, state, noise, state.step_size.to(state.x.dtype))

    def _stepped(
        self, field: StaticField, state: MCLMCState, noise: NoiseSource, eps: Tensor
    ) -> tuple[MCLMCState, Info]:
        """A step of size eps, `()` or `(chains,)`."""
        x, shape = state.x, tuple(state.x.shape[1:])
        z = noise.normal(state.step, Stream.PROPOSAL, shape, x.dtype)
        decay = across(-eps / state.length.to(x.dtype), x)
        nu = (-torch.expm1(2 * decay) / math.prod(shape)).sqrt()
        _, u = polar(decay.exp() * state.velocity + nu * z, state.velocity)
        here = Point(x, state.energy, state.grad)
        end = isokinetic(field, here, u, eps, 1, state.scale, self.integrator)
        # not finite where a gradient was too long to be turned by
        energy = end.point.energy + (end.error - end.error)
        new = state._replace(
            **end.point._replace(energy=energy)._asdict(),
            velocity=end.velocity,
            step=state.step + 1,
        )
        return new, {"energy": new.energy, "energy_error": end.error}

    def trial(
        self, field: StaticField, state: MCLMCState, noise: NoiseSource, shorter: Tensor
    ) -> Trial:
        """As `Tunable.trial`.

        A chain whose step would not end at finite numbers, or with an error W above `STRAY` times
        sqrt(d) that is not rounding, stays where it is, with acceptance 0.
        """
        eps = state.step_size.to(state.x.dtype) * shorter
        new, info = self._stepped(field, state, noise, eps)
        own, error = ("x", "velocity", "energy", "grad"), info["energy_error"]
        sound = torch.stack([finite_rows(v) for v in (*new[: len(own)], error)]).all(0)
        rounding = ROUNDING * torch.finfo(error.dtype).eps * state.energy.abs()
        moved = sound & (error <= STRAY * math.sqrt(state.x.shape[1:].numel()) + rounding)
        held = {name: select_rows(moved, getattr(new, name), getattr(state, name)) for name in own}
        new = new._replace(**held)
        return Trial(new, {"energy": new.energy, "energy_error": error}, moved.to(eps.dtype))


@takes_pilot
@dataclass(frozen=True)
class AdjustedMCLMC(_Isokinetic):
    """Microcanonical Hamiltonian Monte Carlo with a Metropolis decision: exact at any step size.

    Reports "accept", "energy" and "diverging" (an error of the total energy above 1000, or NaN). A
    trajectory that meets NaN or infinity is rejected.

    Args:
        step_size: eps > 0, a length in scaled space; None to tune it in warmup.
        length: The length of a trajectory in scaled space; None to take it in warmup as a quarter
            of a Gaussian's period, pi/2 times the root of the summed variances.
        leapfrogs: N, a fixed number of steps of the integrator in place of a length (only then can
            the step be compiled).
        jitter: The half width, in [0, 1), of the uniform factor about 1 that multiplies each
            trajectory's step size.
        metric: "auto", "diagonal", "fisher", "dense" or "none": the scales learned in warmup
            (`warmup.scales`); "auto" is dense where coordinates are strongly correlated, and else
            diagonal.
        integrator: "minimal-norm" (two gradients a step) or "leapfrog" (one).
        accept: The mean acceptance, in (0, 1), that warmup tunes the step size to.
        most: The largest number of steps in a trajectory.
        spread: A factor r, at least 1: each trajectory's step size is multiplied by one between 1/r
            and r as well, uniform in its logarithm. For laws that are narrow here and wide there,
            such as Neal's funnel, where a step size that suits the neck does not cross the mouth.

    Raises:
        InvalidArgument: Where both length and leapfrogs are given; at the start of a run on events
            of fewer than two dimensions.
    """

    step_size: float | None = None
    length: float | None = None
    leapfrogs: int | None = None
    jitter: float = 0.25
    metric: str = "auto"
    integrator: str = "minimal-norm"
    accept: float = 0.9
    _: KW_ONLY
    most: int = 1000
    spread: float = 1.0

    reports: ClassVar[tuple[str, ...]] = ("accept", "energy", "diverging")
    as_data: ClassVar[tuple[str, ...]] = (
        "step_size",
        "length",
        "jitter",
        "metric",
        "accept",
        "most",
    )

    def __post_init__(self) -> None:
        self._check()
        if self.leapfrogs is not None:
            counts(self, leapfrogs=1)
            if self.length is not None:
                raise InvalidArgument(
                    "length",
                    self.length,
                    "None together with leapfrogs, which makes it N times eps",
                )
        fraction("jitter", self.jitter, "[0, 1)")
        fraction("accept", self.accept, "(0, 1)")
        if finite("spread", self.spread) < 1:
            raise InvalidArgument("spread", self.spread, "a factor of at least 1")
        counts(self, most=1)

    @property
    def capturable(self) -> bool:
        """Whether the number of steps is fixed."""
        return self.leapfrogs is not None

    @property
    def step_cost(self) -> Mapping[str, int]:
        """The energy at the end, and one gradient a drift, which `step` reports where they vary."""
        if self.leapfrogs is None:
            return {"energy": 1}
        return {"energy": 1, "score": self.leapfrogs * self._gradients}

    @property
    def _learns(self) -> bool:
        return (
            self.step_size is None
            or self.metric != "none"
            or (self.length is None and self.leapfrogs is None)
        )

    def _step_size_part(self) -> Part:
        return DualAveraging(self.accept)

    def _length_parts(self) -> tuple[Part, ...]:
        return (Spread(QUARTER),) if self.length is None and self.leapfrogs is None else ()

    def _multiple_parts(self) -> tuple[Part, ...]:
        return () if self.leapfrogs is None else (Multiple(self.leapfrogs),)

    @property
    def _first_steps(self) -> int:
        """The number of steps in a trajectory before its length is known."""
        return min(FIRST_STEPS, self.most)

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> HMCState:
        tunables = self._tunables(x, 0.0)  # not known: trajectories have FIRST_STEPS steps
        return HMCState(x, *field.energy_and_grad(x), *tunables)

    def step(
        self, field: StaticField, state: HMCState, noise: NoiseSource
    ) -> tuple[HMCState, Info]:
        return self._stepped(field, state, noise, state.step_size.to(state.x.dtype))

    def _stepped(
        self, field: StaticField, state: HMCState, noise: NoiseSource, eps: Tensor
    ) -> tuple[HMCState, Info]:
        """A trajectory and its decision; eps `()` or `(chains,)` is the step size before jitter."""
        if self.leapfrogs is not None:
            return self._trajectory(field, state, noise, eps, self.leapfrogs)
        length = float(state.length)
        if length:
            steps = min(math.ceil(length / float(state.step_size)), self.most)
        else:
            steps = self._first_steps
        return self._trajectory(field, state, noise, eps, steps)

    def _trajectory(
        self, field: StaticField, state: HMCState, noise: NoiseSource, eps: Tensor, steps: int
    ) -> tuple[HMCState, Info]:
        if self.spread > 1 or not is_zero(self.jitter):
            v = 2 * noise.uniform(state.step, Stream.LENGTH, (), state.x.dtype) - 1
            eps = eps * (1 + self.jitter * v) * (math.log(self.spread) * v).exp()
        here = Point(state.x, state.energy, state.grad)
        velocity = direction(state.step, Stream.PROPOSAL, state.x, noise)
        end = isokinetic(field, here, velocity, eps, steps, state.scale, self.integrator)
        chosen, probability = metropolis(here, end.point, -end.error, state.step, noise)
        new = state._replace(**chosen._asdict(), step=state.step + 1)
        return new, self._reported(new, probability, end.error, steps * self._gradients)

    def _reported(self, state: HMCState, accept: Tensor, error: Tensor, gradients: int) -> Info:
        """The report of a step, with the number of gradients only where it varies."""
        info = {"accept": accept, "energy": state.energy, "diverging": ~(error.abs() < DIVERGENCE)}
        if self.leapfrogs is not None:
            return info
        return info | {
            "evaluations": torch.full_like(info["diverging"], gradients, dtype=torch.int64)
        }

    def trial(
        self, field: StaticField, state: HMCState, noise: NoiseSource, shorter: Tensor
    ) -> Trial:
        """As `Tunable.trial`; all chains' trajectories have the same number of steps."""
        state, info = self._stepped(
            field, state, noise, state.step_size.to(state.x.dtype) * shorter
        )
        return Trial(state, info, info["accept"])
