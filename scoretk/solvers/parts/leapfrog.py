r"""The leapfrog integrator with scales, and the Metropolis decision at its end.

With scales S, a diagonal or a Cholesky factor, and H(x, p) = E(x) + |p|^2 / 2, a step is

    p <- p - eps/2 S^T grad E(x),    x <- x + eps S p,    p <- p - eps/2 S^T grad E(x)

and neighbouring half kicks are joined: one gradient a step.

So L steps are half a kick, L - 1 drifts with a kick after each (`inner_steps`), and a last drift
with half a kick (`last_step`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk.core.columns import in_columns
from scoretk.core.compiling import iterate, part
from scoretk.core.rows import nan_unless_finite, row_dot, row_product, row_sum
from scoretk.fields.resolve import StaticField
from scoretk.solvers.base import Info
from scoretk.solvers.parts.metropolis import choose, rejected_if_nan

__all__ = [
    "DIVERGENCE",
    "Point",
    "Trajectory",
    "inner_steps",
    "is_factor",
    "last_step",
    "last_step_and_decision",
    "leapfrog",
    "one_step",
    "paces",
    "pull",
    "stretch",
    "unstretch",
]

DIVERGENCE = 1000.0


class Point(NamedTuple):
    """What a proposal replaces: position, energy `(chains,)` and its gradient, like x."""

    x: Tensor
    energy: Tensor
    grad: Tensor


class Trajectory(NamedTuple):
    """The end of a trajectory: point, momentum, and the total energy lost on the way, `(chains,)`.

    That is the log ratio of densities at its end and start, NaN where something was not finite.
    """

    point: Point
    momentum: Tensor
    log_ratio: Tensor


def is_factor(scale: Tensor, event_shape: Sequence[int]) -> bool:
    """Whether scales are a Cholesky factor `(d, d)` instead of a diagonal, like an event."""
    return tuple(scale.shape) != tuple(event_shape)


def stretch(scale: Tensor, p: Tensor) -> Tensor:
    """The velocity `S p` of a momentum p, like it."""
    if not is_factor(scale, p.shape[1:]):
        return scale * p
    return row_product(p.reshape(len(p), -1), scale.T).reshape(p.shape)


def paces(eps: Any, scale: Tensor, x: Tensor) -> Tensor:
    """What each entry of a velocity and of a kick is multiplied by, like x: eps times the scales.

    Where the scales are a Cholesky factor, eps alone: `turned` and `pulled` then take the factor.
    """
    along: Tensor = eps * (x.new_ones(()) if is_factor(scale, x.shape[1:]) else scale)
    return along.expand(x.shape)


def turned(scale: Tensor, p: Tensor) -> Tensor:
    """The velocity of a momentum p but for its paces, like it."""
    return stretch(scale, p) if is_factor(scale, p.shape[1:]) else p


def pulled(scale: Tensor, gradient: Tensor) -> Tensor:
    """The gradient `S^T g` in scaled space of a gradient g but for its paces, like it."""
    if not is_factor(scale, gradient.shape[1:]):
        return gradient
    return row_product(gradient.reshape(len(gradient), -1), scale).reshape(gradient.shape)


def pull(scale: Tensor, gradient: Tensor) -> Tensor:
    """The gradient `S^T g` in scaled space of a gradient g, like it."""
    if not is_factor(scale, gradient.shape[1:]):
        return scale * gradient
    return pulled(scale, gradient)


def unstretch(scale: Tensor, x: Tensor) -> Tensor:
    """The position `S^-1 x` in scaled space of a position x, like it."""
    if not is_factor(scale, x.shape[1:]):
        return x / scale
    columns: Tensor = torch.linalg.solve_triangular(scale, x.reshape(len(x), -1).T, upper=False)
    return columns.T.reshape(x.shape)


def inner_steps(
    field: StaticField,
    start: Point,
    momentum: Tensor,
    along: Tensor,
    steps: int | Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """All of a trajectory but its last drift and half kick.

    Arguments are those of `leapfrog`, with `along` the `paces` in place of eps.

    Returns:
        The position, and the momentum half a step later.
    """
    pull = pulled(scale, start.grad)
    here = start.x, torch.addcmul(momentum, along, pull, value=-0.5)
    return iterate(drift_and_kick, field, here, steps - 1, along, scale=scale)


def drift_and_kick(
    field: StaticField, here: tuple[Tensor, Tensor], along: Tensor, *, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Position and momentum after a drift and a whole kick."""
    x, p = here
    x = in_columns(torch.addcmul(x, along, turned(scale, p)))
    return x, torch.addcmul(p, along, pulled(scale, field.passing_score(x)))


def drift_and_half_kick(
    field: StaticField, here: tuple[Tensor, Tensor], along: Tensor, *, scale: Tensor
) -> tuple[Point, Tensor]:
    """The point after a drift, and the momentum there after half a kick."""
    x, p = here
    x = torch.addcmul(x, along, turned(scale, p))
    point = Point(x, *field.energy_and_grad(x))
    return point, torch.addcmul(p, along, pulled(scale, point.grad), value=-0.5)


@part
def one_step(
    field: StaticField, start: Point, momentum: Tensor, along: Tensor, *, scale: Tensor
) -> tuple[Point, Tensor]:
    """A single leapfrog step: point and momentum after it. Arguments are those of `inner_steps`."""
    here = inner_steps(field, start, momentum, along, 1, scale)
    return drift_and_half_kick(field, here, along, scale=scale)


@part
def last_step(
    field: StaticField,
    start: Point,
    kinetic: Tensor,
    here: tuple[Tensor, Tensor],
    along: Tensor,
    *,
    scale: Tensor,
) -> Trajectory:
    """The last drift and half kick, and the total energy lost since the start.

    Arguments are those of `inner_steps`, with `here` what that has returned, and `kinetic`
    `(chains,)` the square of the momentum at the start.
    """
    point, p = drift_and_half_kick(field, here, along, scale=scale)
    # 0 inf is NaN: a position that is not finite is told by the kinetic energy beside it
    lost = kinetic - row_sum(torch.add(p * p, point.x, alpha=0))
    log_ratio = torch.add(start.energy - point.energy, lost, alpha=0.5)
    return Trajectory(point, p, nan_unless_finite(log_ratio, point.energy))


def leapfrog(
    field: StaticField, start: Point, momentum: Tensor, eps: Any, steps: int, scale: Tensor
) -> Trajectory:
    """A trajectory of several leapfrog steps.

    Args:
        field: A static field with energy and score.
        start: The first point, with its energy and gradient.
        momentum: The momentum there, like x.
        eps: The step size: a number, a 0-d tensor, or one value a chain shaped to multiply x.
        steps: How many steps.
        scale: S, like an event, or a Cholesky factor `(d, d)`.
    """
    along = paces(eps, scale, start.x)
    here = inner_steps(field, start, momentum, along, steps, scale)
    kinetic = row_dot(momentum, momentum)
    return last_step(field, start, kinetic, here, along, scale=scale)


@part
def last_step_and_decision(
    field: StaticField,
    start: Point,
    momentum: Tensor,
    here: tuple[Tensor, Tensor],
    along: Tensor,
    u: Tensor,
    *,
    scale: Tensor,
) -> tuple[Point, Info, Trajectory]:
    """As `last_step`, with the Metropolis decision by uniforms u `(chains,)`.

    Returns:
        The chosen point, the report of the step, and the end of the trajectory.
    """
    kinetic = row_dot(momentum, momentum)
    end = last_step(field, start, kinetic, here, along, scale=scale)
    # a gradient that is not finite has made the momentum so, whose square is in the ratio
    log_ratio = rejected_if_nan(end.log_ratio)
    chosen, probability = choose(start, end.point, log_ratio, u)
    info = {
        "accept": probability,
        "energy": chosen.energy,
        "hamiltonian": torch.add(start.energy, kinetic, alpha=0.5),
        "diverging": log_ratio.abs() >= DIVERGENCE,
    }
    return chosen, info, end
