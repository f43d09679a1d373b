"""How long a family is trained: as its recipe says, or as far as minutes or steps go."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from scoretk.demo.bench.mnist.data import Split
from scoretk.learn.fitting import fit
from scoretk.learn.recipe import Loss, Progress, Recipe

__all__ = ["Plan", "Point", "Stopwatch", "Task", "Trained", "fitted", "limited", "looks", "timed"]

TRIAL, TRIED = 5, 0.02
"""How many steps tell what a step takes at least, and which share of the minutes they take: a few short
steps on a machine with other work said five times too much.
"""
FITTING = 0.9
"""The share of the minutes that is for steps; the others are for evaluations."""


@dataclass(frozen=True)
class Plan:
    """How far to train.

    Args:
        minutes: The time for one family's training, None for its recipe's steps.
        steps: The number of steps, which repeats a run on any machine; None for `minutes`.
        seed: The seed.
    """

    minutes: float | None = None
    steps: int | None = None
    seed: int = 0

    def of(self, most: int, step: Callable[[], float]) -> int:
        """The number of steps, at most `most` where it is found by time.

        Args:
            most: The recipe's.
            step: Tells how many seconds a step takes; called only where minutes are given.
        """
        if self.steps is not None:
            return self.steps
        return most if self.minutes is None else limited(most, self.minutes, step())


class Point(NamedTuple):
    """A point of a curve: nats on images that are not trained on, after steps and seconds."""

    step: int
    nats: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """A model, and how it came about.

    Args:
        field: The model.
        steps: How many steps were made.
        of: How many its recipe has.
        curve: Nats on images for choosing.
        recipe: The settings, in words.
    """

    field: Any
    steps: int
    of: int
    curve: tuple[Point, ...]
    recipe: str


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def __float__(self) -> float:
        return time.perf_counter() - self.started


class Task(NamedTuple):
    """A network with the weights that it starts from, and what is fitted.

    Args:
        network: The network.
        loss: Its loss, as in `scoretk.learn.fit`.
        nats: Nats on images for choosing, from the progress at an evaluation.
    """

    network: nn.Module
    loss: Loss
    nats: Callable[[Progress], float]


def fitted(
    start: Callable[[], Task], data: Split, valid: Tensor | None, recipe: Recipe, plan: Plan
) -> tuple[nn.Module, int, tuple[Point, ...]]:
    """Fit a network as far as the plan goes; its schedule ends with the last step that is made.

    Args:
        start: Makes the task, the same at every call: one is tried for a few steps, for their time.
        data: The images.
        valid: Those that choose the weights, None for the averaged weights of the last step.
        recipe: The recipe.
        plan: The plan.

    Returns:
        The network, the number of steps, and the curve.
    """

    def step() -> float:
        tried, task = replace(recipe, steps=1, evaluations=1, held_out=0.0), start()
        fit(task.network, task.loss, data.train, tried)  # what is made once is not a step's
        return timed(
            lambda n: fit(task.network, task.loss, data.train, replace(tried, steps=n)), plan
        )

    steps, task, watch = plan.of(recipe.steps, step), start(), Stopwatch()
    curve: list[Point] = []
    fit(
        task.network,
        task.loss,
        data.train,
        replace(recipe, steps=steps),
        seed=plan.seed,
        report=lambda p: curve.append(Point(p.step, task.nats(p), float(watch))),
        held_out=valid,
    )
    return task.network, steps, tuple(curve)


def timed(steps: Callable[[int], object], plan: Plan) -> float:
    """How many seconds a step takes, from steps that take `TRIED` of the plan's minutes.

    Args:
        steps: Makes so many steps.
        plan: The plan, with minutes.
    """
    wanted, n = TRIED * 60 * (plan.minutes or 0.0), TRIAL
    while True:
        watch = Stopwatch()
        steps(n)
        seconds = float(watch)
        if seconds >= wanted:
            return seconds / n
        n *= 2


def limited(steps: int, minutes: float, each: float) -> int:
    """How many steps of so many seconds each the minutes allow, at least one and at most `steps`."""
    return max(1, min(steps, int(FITTING * 60 * minutes / each)))


def looks(steps: int, most: int) -> set[int]:
    """After which steps to look, at most `most` times, the last included."""
    every = -(-steps // most)
    return {*range(every, steps + 1, every), steps}
