"""The loop of warmup, once for every kernel.

A kernel has `init` and `step`, and says by its `adaptation` what of it can be learned: a tuple of
parts (`learning.Part`), and whether chains that begin far off first take steps with settings of
their own (`approach`). A step of warmup is one with the common settings, from which each part
learns. What parts learn are leaves of the state that all chains share. The chains that tune learn
together; chains that follow take over what these ended with. All of them halve their own steps
where they do not move (`halving`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk.core.devices import all_and_any, flags_like, wide
from scoretk.core.rows import across, select_rows
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import StaticField
from scoretk.solvers.base import Info
from scoretk.solvers.parts.leapfrog import DIVERGENCE
from scoretk.solvers.warmup.approach import (
    OwnSettings,
    Place,
    approach_step,
    begins_far,
    beside,
    common_settings,
    first_settings,
)
from scoretk.solvers.warmup.halving import PATIENCE, next_idle, shortening
from scoretk.solvers.warmup.learning import Change, Lesson, Part
from scoretk.solvers.warmup.scales import approach_steps
from scoretk.solvers.warmup.step_size import number

__all__ = ["Adaptation", "Approach", "Learned", "WarmupStep"]


class OwnWay(NamedTuple):
    """Which chains first take steps with settings of their own, `(chains,)`, and the settings."""

    far: Tensor
    log_size: Tensor
    log_curvature: Tensor


class Learned(NamedTuple):
    """What warmup remembers from step to step.

    `idle` `(chains,)` counts the steps on end in which each chain was unlikely to move (`halving`);
    `way` is the chains' `OwnWay`, empty without an approach; `parts` are what the parts of the
    adaptation remember, empty for chains that follow.
    """

    idle: Tensor
    way: tuple[Tensor, ...]
    parts: tuple[Any, ...]


class WarmupStep(NamedTuple):
    """A step of warmup that is to be made.

    Args:
        kernel: The solver whose settings are learned.
        field: The field, bound to the chains.
        noise: The noise of the chains.
        alive: `(chains,)` of bool, the chains that are well.
        number: The number of this step, from 0.
        warmup: How many steps warmup has.
        all_alive: Whether the host knows that all chains are well.
    """

    kernel: Any
    field: Any
    noise: NoiseSource
    alive: Tensor
    number: int
    warmup: int
    all_alive: bool = False


@dataclass(frozen=True)
class Approach:
    """The first steps of warmup, with settings of each chain's own for those that begin far off.

    See `warmup.approach`.

    Args:
        metric: The metric of the kernel's scales, which the approach sets at its end; "none" where
            the kernel has none.
        always: Whether chains that begin near take these steps as well.
    """

    metric: str
    always: bool = False

    def begins_far(
        self, field: StaticField, state: Any, noise: NoiseSource, alive: Tensor, tunes: bool
    ) -> tuple[Tensor, int]:
        """Which chains take steps of their own.

        Args:
            field: The field, bound to the chains.
            state: The kernel's state at the start.
            noise: The noise of the chains.
            alive: `(chains,)` of bool, the chains that are well.
            tunes: Whether the chains tune. Then all take such steps or none, by the majority of
                those that are well; chains that follow are judged one by one.

        Returns:
            `(chains,)` of bool, and how many gradients a chain it took to find out.
        """
        if self.always:
            return flags_like(alive, True), 0
        far, spent = begins_far(field, Place(state.x, state.energy, state.grad), noise, state.step)
        if tunes:
            far = flags_like(far, bool(2 * (far & alive).sum() > alive.sum()))
        return far, spent


@dataclass(frozen=True)
class Adaptation:
    """The adaptation of a kernel: what warmup learns, and how chains arrive.

    Args:
        parts: What is learned. The parts learn in this order from each step, each from the state
            as those before it have left it.
        approach: How chains come from far off, None for kernels without such steps.
    """

    parts: tuple[Part, ...] = ()
    approach: Approach | None = None

    def begin(
        self, kernel: Any, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[Any, Learned, int]:
        """Begin warmup of chains that tune.

        Args:
            kernel: The solver that this is the adaptation of.
            field: The field, bound to the chains.
            state: The kernel's state at the start.
            noise: The noise of the chains.
            alive: `(chains,)` of bool, the chains that are well.

        Returns:
            The state with first values of what is tuned, what is remembered, and how many
            evaluations a chain this took.
        """
        memories, spent = [], 0
        for part in self.parts:
            state, memory, more = part.begin(kernel, field, state, noise, alive)
            memories.append(memory)
            spent += more
        return state, self.follow(state)._replace(parts=tuple(memories)), spent

    def follow(self, state: Any) -> Learned:
        """Begin warmup of chains that take over what others have tuned, which is in their state."""
        idle = torch.zeros_like(state.energy, dtype=torch.int64)
        none = torch.zeros(len(state.x), device=state.x.device)
        return Learned(
            idle, () if self.approach is None else OwnWay(none > 0, *first_settings(state.x)), ()
        )

    def update(self, at: WarmupStep, state: Any, learned: Learned) -> tuple[Any, Info, Learned]:
        """Make a step of warmup and learn from it.

        Args:
            at: The step, of the kernel that this is the adaptation of.
            state: The state before it.
            learned: What is remembered.

        Returns:
            The state after the step, its report, and what is remembered.
        """
        if self.approach is None or at.number >= approach_steps(at.warmup):
            return self._together(at, state, learned)
        spent = 0
        if at.number == 0:
            tunes = bool(learned.parts)
            far, spent = self.approach.begins_far(at.field, state, at.noise, at.alive, tunes)
            learned = learned._replace(way=learned.way._replace(far=far))  # type: ignore[attr-defined]
        everyone, anyone = all_and_any(learned.way[0])
        if everyone:
            state, info, learned = self._alone(at, state, learned)
        elif not anyone:
            state, info, learned = self._together(at, state, learned)
        else:
            state, info, learned = self._mixed(at, state, learned)
        return state, _also(info, at.kernel, spent, at.alive) if spent else info, learned

    def _together(self, at: WarmupStep, state: Any, learned: Learned) -> tuple[Any, Info, Learned]:
        """As `update`, for a step with the settings that all chains share."""
        shorter = shortening(learned.idle, state.x.dtype)
        trial = at.kernel.trial(at.field, state, at.noise, shorter)
        usual = across(at.alive, learned.idle) & (learned.idle <= PATIENCE)
        learned = learned._replace(idle=next_idle(learned.idle, trial.accept))
        if not learned.parts:
            return trial.state, trial.info, learned
        lesson = Lesson(state, trial, at.alive, usual, at.number, at.warmup, at.all_alive)
        memories, measured = self._measured(learned.parts, lesson)
        state = trial.state
        for i, (part, numbers) in enumerate(zip(self.parts, measured, strict=True)):
            told = replace(lesson, measured=numbers)
            state, memories[i], change = part.learn(state, memories[i], told)
            if change is not None:
                state, memories = self._changed(state, memories, change)
        return state, trial.info, learned._replace(parts=tuple(memories))

    def _measured(
        self, memories: tuple[Any, ...], lesson: Lesson
    ) -> tuple[list[Any], list[tuple[float, ...]]]:
        """The memories after all parts have measured a step, and their numbers, in one read."""
        after, asked = [], []
        for part, memory in zip(self.parts, memories, strict=True):
            memory, numbers = part.measure(memory, lesson)
            after.append(memory)
            asked.append([wide(number) for number in numbers])
        flat = [number for numbers in asked for number in numbers]
        read = iter(torch.stack(flat).tolist() if flat else ())
        return after, [tuple(islice(read, len(numbers))) for numbers in asked]

    def _changed(self, state: Any, memories: list[Any], change: Change) -> tuple[Any, list[Any]]:
        """State and memories after every part has been told of a change."""
        after = []
        for part, memory in zip(self.parts, memories, strict=True):
            state, heard = part.changed(state, memory, change)
            after.append(heard)
        return state, after

    def _alone(self, at: WarmupStep, state: Any, learned: Learned) -> tuple[Any, Info, Learned]:
        """As `update`, for a step with settings of each chain's own.

        The last such step sets the step size and the scales that all chains share from then on.
        """
        assert self.approach is not None
        far, *own = learned.way
        here, steps = Place(state.x, state.energy, state.grad), approach_steps(at.warmup)
        place, settings, report = approach_step(
            at.field, here, OwnSettings(*own), at.noise, state.step, at.number, steps
        )
        state = state._replace(**place._asdict(), step=state.step + 1)
        info = {
            "accept": report.accept,
            "energy": place.energy,
            "diverging": ~(report.error.abs() < DIVERGENCE),
            **beside(at.kernel, report.gradients, at.alive),
        }
        learned = learned._replace(way=OwnWay(far, *settings))
        if not learned.parts or at.number < steps - 1:
            return state, info, learned
        metric = self.approach.metric
        before = state.x.new_ones(()) if metric == "none" else state.scale
        size, scale = common_settings(settings, at.alive, metric, before)
        dim, kept = state.x.shape[1:].numel(), {} if metric == "none" else {"scale": scale}
        state = state._replace(step_size=number(at.kernel.of_leapfrog(size, dim)), **kept)
        state, memories = self._changed(state, list(learned.parts), Change(arrived=True))
        return state, info, learned._replace(parts=tuple(memories))

    def _mixed(self, at: WarmupStep, state: Any, learned: Learned) -> tuple[Any, Info, Learned]:
        """As `update`, for chains that follow and of which only some have settings of their own.

        Each chain does what it would in a batch of its kind.
        """
        own, ours, after = self._alone(at, state, learned)
        common, theirs, idle = self._together(at, state, learned)
        far = learned.way[0]
        place = {
            name: select_rows(far, getattr(own, name), getattr(common, name))
            for name in Place._fields
        }
        info = {
            name: torch.where(far, ours[name], theirs[name]) for name in ours.keys() & theirs.keys()
        }
        # all that the common step took
        declared, told = beside(at.kernel, 0, at.alive), _also(theirs, at.kernel, 0, at.alive)
        info |= {name: ours[name] + told[name] - none for name, none in declared.items()}
        return (
            common._replace(**place),
            info,
            after._replace(idle=torch.where(far, learned.idle, idle.idle)),
        )


def _also(info: Info, kernel: Any, gradients: int, like: Tensor) -> Info:
    """The report with so many gradients more for every chain, `like` being `(chains,)`.

    An energy goes with each.
    """
    none = torch.zeros_like(like, dtype=torch.int64)
    return info | {name: info.get(name, none) + gradients for name in beside(kernel, 0, like)}
