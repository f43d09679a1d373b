r"""Kernels on discrete states: proposals from the score of a continuous relaxation, block Gibbs.

Site i of x takes one of the states v_1, .., v_k: numbers, or the one-hot rows of the last event
axis. The energy is that of a field on the real numbers around them, whose score s = grad log p
estimates by how much log p changes when site i takes state k:

    d_ik = <v_k - x_i, s_i>,        (v_k - x_i) s_i for numbers, s_ik - <x_i, s_i> for one-hot rows

    Gibbs with gradients, one site
        q(i, k | x; s) = softmax of d_ik / (2 T) over all i, k with v_k != x_i
    discrete Langevin, all sites
        q_i(k | x)     = softmax over k of d_ik / (2 T) - |v_k - x_i|^2 / (2 alpha)

    accept with probability min(1, r),    log r = (E(x) - E(x')) / T + log q(x | x') - log q(x' | x)

Gibbs with gradients always changes something. Where the law is nearly flat it would have period
two: after an even number of steps only half of the states could be reached. So it makes one change
or, with equal probability, two, the second from where the first led and with the same score, x -> y
-> x', where x' may be x again; and r is that of this path and its reverse,

    q(x' | x) = q(y | x; s(x)) q(x' | y; s(x)),    q(x | x') = q(y | x'; s(x')) q(x | y; s(x')).

Discrete Langevin alternates between two states where the relaxation overrates what changes at all
sites are worth, as `c |x|^2` does on states of equal |x|. So it decides in part by Barker's rule
(`scoretk.solvers.parts.metropolis`).

Both are exact for `p^(1/T)` on the states, however good or bad the relaxation is. Unadjusted
discrete Langevin is biased; where E is quadratic the bias vanishes with alpha. A solver reads the
states from the field's attribute `states`: a tuple of numbers, or "one-hot". A step of block Gibbs
is a sweep of the field's own, `gibbs(x, u)` with uniforms u `(chains, *gibbs_shape)`.

References:
    Grathwohl, Swersky, Hashemi, Duvenaud, Maddison, "Oops I took a gradient: scalable sampling for
    discrete distributions" (2021).
    Sun, Dai, Xia, Ramamurthy, "Path auxiliary proposal for MCMC in discrete space" (2022), for
    several changes with one score.
    Zhang, Liu, Liu, "A Langevin-like sampler for discrete distributions" (2022).
    Sun, Dai, Schuurmans, "Optimal scaling for locally balanced proposals in discrete spaces"
    (2022), for the acceptance.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import flags, positive
from scoretk.core.arrays import aligned
from scoretk.core.rows import across
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import StaticField
from scoretk.fields.states import (
    ONE_HOT,
    States,
    by_site,
    check_states,
    labels,
    pick,
    place,
    values,
    weigh,
)
from scoretk.solvers.base import Info
from scoretk.solvers.parts.metropolis import metropolis
from scoretk.solvers.warmup.step_size import first_step_size, number
from scoretk.solvers.warmup.tuned import StepTuned, StepTunedState

__all__ = ["BlockGibbs", "DiscreteLangevin", "GibbsWithGradients", "start_on_states"]

TWICE = 0.5
"""How often Gibbs with gradients makes two changes; design.md has what else was measured."""
BARKER = 0.25
"""The share of Barker's rule in discrete Langevin: at most an eighth of its moves, and no
eigenvalue near -1 (below -3/4).
"""


def _changes(grad: Tensor, label: Tensor, states: States) -> Tensor:
    """First-order changes of log p, `d_ik`: `(chains, sites, k)`, 0 for the site's own state."""
    worth = weigh(-grad, states)
    return worth - worth.gather(-1, label[..., None])


def _distances(x: Tensor, states: States) -> Tensor:
    """Squared distances `|v_k - x_i|^2` from each site to each state, `(chains, sites, k)`."""
    x = by_site(x, states)
    return (
        2 * (1 - x) if isinstance(states, str) else (values(states, x.dtype, x.device) - x).square()
    )


def start_on_states(field: StaticField, x: Tensor) -> Tensor:
    """The start x with each site exactly in one of the field's states; synchronises the device.

    Raises:
        InvalidArgument: Where a site of x is further than rounding from every state.
    """
    native = field.native
    states = check_states(native.states, field.event_shape)
    nearest = place(labels(x, states), states, field.event_shape, x.dtype)
    if not torch.allclose(nearest, x, atol=1e-6):
        if states == ONE_HOT:
            expected = "one-hot rows on the last axis"
        else:
            expected = f"every site in one of the states {states}"
        raise InvalidArgument(
            "x", x, expected, "Start from the field's own `initial`, or give init such states"
        )
    return nearest


class DiscreteState(NamedTuple):
    """The state of `GibbsWithGradients`.

    Position x, its energy `(chains,)` and the gradient of its energy, like x; the index of the next
    step.
    """

    x: Tensor
    energy: Tensor
    grad: Tensor
    step: Tensor


class SweepState(NamedTuple):
    """The state of `BlockGibbs`: position, and the index of the next step."""

    x: Tensor
    step: Tensor


@dataclass(frozen=True)
class GibbsWithGradients:
    """Gibbs with gradients: one change or two a step, likelier where the score favours them.

    Reports "accept", the acceptance probability, and "energy". A proposal with NaN or infinite
    energy or gradient is rejected.

    Args:
        temperature: T > 0, the target being `p^(1/T)`.
    """

    temperature: float = 1.0

    reports: ClassVar[tuple[str, ...]] = ("accept", "energy")
    needs: ClassVar[frozenset[str]] = frozenset({"energy", "score", "states"})
    timed: ClassVar[bool | None] = False
    capturable: ClassVar[bool] = True
    as_data: ClassVar[tuple[str, ...]] = ("temperature",)
    init_cost: ClassVar[dict[str, int]] = {"energy": 1, "score": 1}
    step_cost: ClassVar[dict[str, int]] = {"energy": 1, "score": 1}

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> DiscreteState:
        x = start_on_states(field, x)
        return DiscreteState(x, *field.energy_and_grad(x), torch.zeros((), dtype=torch.int64))

    def step(
        self, field: StaticField, state: DiscreteState, noise: NoiseSource
    ) -> tuple[DiscreteState, Info]:
        states, shape, dtype = field.native.states, field.event_shape, state.x.dtype
        here = labels(state.x, states)
        first, second, coin = noise.uniform(state.step, Stream.PROPOSAL, (3,), dtype).unbind(1)
        between, there_by = self._changed(state.grad, here, first, states)
        beyond, further_by = self._changed(state.grad, between, second, states)
        twice = coin < TWICE
        there = torch.where(twice[:, None], beyond, between)
        x = place(there, states, shape, dtype)
        proposed = DiscreteState(x, *field.energy_and_grad(x), state.step + 1)
        back_by = self._log_q_of(proposed.grad, there, between, states)
        home_by = self._log_q_of(proposed.grad, between, here, states)
        gain = home_by - there_by + torch.where(twice, back_by - further_by, 0.0)
        log_ratio = (state.energy - proposed.energy) / self.temperature + gain
        chosen, probability = metropolis(state, proposed, log_ratio, state.step, noise)
        return chosen, {"accept": probability, "energy": chosen.energy}

    def log_q(self, grad: Tensor, label: Tensor, states: States) -> Tensor:
        """Log probabilities of single changes, `log q(i, j | x)`.

        Args:
            grad: Gradient of the energy at x, `(chains, *event_shape)`.
            label: The index of each site's state, `(chains, sites)`.
            states: The k states of a site.

        Returns:
            `(chains, sites * k)`, state j of site i at entry `i k + j`, -inf for staying.
        """
        logits = _changes(grad, label, states) / (2 * self.temperature)
        return torch.log_softmax(logits.scatter(-1, label[..., None], -inf).flatten(1), -1)

    def _changed(
        self, grad: Tensor, label: Tensor, u: Tensor, states: States
    ) -> tuple[Tensor, Tensor]:
        """The labels after a change drawn with uniforms u `(chains,)`, and its log probability."""
        log_q = self.log_q(grad, label, states)
        k = log_q.shape[1] // label.shape[1]
        entry = pick(log_q, u)[:, None]
        return label.scatter(1, entry // k, entry % k), log_q.gather(1, entry).squeeze(1)

    def _log_q_of(self, grad: Tensor, label: Tensor, target: Tensor, states: States) -> Tensor:
        """The log probability `(chains,)` of a change to labels that differ at one site.

        It is -inf where they do not differ.
        """
        log_q = self.log_q(grad, label, states)
        k = log_q.shape[1] // label.shape[1]
        site = (label != target).byte().argmax(1, keepdim=True)
        return log_q.gather(1, site * k + target.gather(1, site)).squeeze(1)


@dataclass(frozen=True)
class DiscreteLangevin(StepTuned):
    """The discrete Langevin proposal: every site may change at each step, independently given x.

    Reports "energy", and "accept" where adjusted. A proposal with NaN or infinite energy or
    gradient is rejected; unadjusted it ends the chain.

    Args:
        step_size: alpha > 0, in squared units of the states, None to tune it in warmup (where it is
            adjusted).
        adjusted: Whether a Metropolis decision makes it exact.
        temperature: T > 0, the target being `p^(1/T)`.
        accept: The mean acceptance, in (0, 1), that warmup tunes the step size to; .574 is best, as
            for Langevin dynamics. (Where sites are all but independent the acceptance is above that
            at any step size.)
    """

    step_size: float | None = None
    adjusted: bool = True
    temperature: float = 1.0
    accept: float = 0.574

    needs: ClassVar[frozenset[str]] = frozenset({"energy", "score", "states"})
    timed: ClassVar[bool | None] = False
    capturable: ClassVar[bool] = True
    as_data: ClassVar[tuple[str, ...]] = ("step_size", "temperature", "accept")
    goes_alone: ClassVar[bool] = False  # discrete states have no leapfrog steps to approach by
    init_cost: ClassVar[dict[str, int]] = {"energy": 1, "score": 1}
    step_cost: ClassVar[dict[str, int]] = {"energy": 1, "score": 1}

    @property
    def exact(self) -> bool:
        """Whether it leaves its target as it is."""
        return self.adjusted

    @property
    def reports(self) -> tuple[str, ...]:
        """The names of its statistics."""
        return ("accept", "energy") if self.adjusted else ("energy",)

    def __post_init__(self) -> None:
        flags(self, "adjusted")
        self._check_step()
        positive("temperature", self.temperature)
        if self.step_size is None and not self.adjusted:
            raise InvalidArgument(
                "step_size",
                None,
                "a number: proposals that are all accepted show no acceptance to tune it by",
            )

    def first_step(
        self, field: StaticField, state: StepTunedState, noise: NoiseSource, alive: Tensor
    ) -> tuple[float, int]:
        """As `Tunable.first_step`, but from this kernel's own steps instead of leapfrog steps."""
        tried = 0

        def accept(size: float) -> float:
            nonlocal tried
            tried += 1
            return float(
                self.step(field, state._replace(step_size=number(size)), noise)[1]["accept"][
                    alive
                ].mean()
            )

        return first_step_size(accept, self.accept), tried

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> StepTunedState:
        x = start_on_states(field, x)
        return StepTunedState(x, *field.energy_and_grad(x), torch.zeros((), dtype=torch.int64))

    def step(
        self, field: StaticField, state: StepTunedState, noise: NoiseSource
    ) -> tuple[StepTunedState, Info]:
        states, shape, dtype = field.native.states, field.event_shape, state.x.dtype
        here = labels(state.x, states)
        size = self.size(state)
        forward = self.log_q(state.x, state.grad, here, states, size)
        there = pick(
            forward, noise.uniform(state.step, Stream.PROPOSAL, tuple(here.shape[1:]), dtype)
        )
        x = place(there, states, shape, dtype)
        proposed = StepTunedState(x, *field.energy_and_grad(x), state.step + 1, state.step_size)
        if not self.adjusted:
            return proposed, {"energy": proposed.energy}
        backward = self.log_q(x, proposed.grad, there, states, size)
        gain = backward.gather(-1, here[..., None]) - forward.gather(-1, there[..., None])
        log_ratio = (state.energy - proposed.energy) / self.temperature + gain.flatten(1).sum(1)
        chosen, probability = metropolis(state, proposed, log_ratio, state.step, noise, BARKER)
        return chosen, {"accept": probability, "energy": chosen.energy}

    def log_q(
        self, x: Tensor, grad: Tensor, label: Tensor, states: States, size: float | Tensor
    ) -> Tensor:
        """Log probabilities `log q_i(k | x)` of each site's next state.

        Args:
            x: Position, `(chains, *event_shape)`.
            grad: Gradient of the energy at x, like x.
            label: The index of each site's state, `(chains, sites)`.
            states: The k states of a site.
            size: The step size alpha: a number, or a tensor shaped to multiply x.

        Returns:
            `(chains, sites, k)`.
        """
        distances = _distances(x, states)
        if isinstance(size, Tensor) and size.ndim:  # one a chain
            size = across(size.flatten(), distances)
        near = distances / (2 * size)
        return torch.log_softmax(_changes(grad, label, states) / (2 * self.temperature) - near, -1)


@dataclass(frozen=True)
class BlockGibbs:
    """Block Gibbs: each step is one sweep of exact conditional draws, the field's `gibbs(x, u)`."""

    needs: ClassVar[frozenset[str]] = frozenset({"gibbs", "states"})
    timed: ClassVar[bool | None] = False
    capturable: ClassVar[bool] = True
    init_cost: ClassVar[dict[str, int]] = {}
    step_cost: ClassVar[dict[str, int]] = {"gibbs": 1}

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> SweepState:
        return SweepState(start_on_states(field, x), torch.zeros((), dtype=torch.int64))

    def step(
        self, field: StaticField, state: SweepState, noise: NoiseSource
    ) -> tuple[SweepState, Info]:
        u = noise.uniform(
            state.step, Stream.PROPOSAL, tuple(field.native.gibbs_shape), state.x.dtype
        )
        return SweepState(
            field.native.gibbs(aligned(state.x), aligned(u), **field.cond), state.step + 1
        ), {}
