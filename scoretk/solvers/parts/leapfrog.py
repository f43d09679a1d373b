r"""The leapfrog integrator in a space that scales make, and Metropolis' decision at its end.

With scales S, a diagonal or a Cholesky factor, and H(x, p) = E(x) + |p|^2 / 2, steps of

    p <- p - eps/2 S^T grad E(x),    x <- x + eps S p,    p <- p - eps/2 S^T grad E(x)

neighbouring half steps joined: one gradient a step.

So L steps are half a kick, L - 1 drifts with a kick after each (`inner_steps`), and a last drift
with half a kick (`last_step`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk.core.compiling import iterate, part
from scoretk.core.rows import row_dot
from scoretk.fields.resolve import StaticField
from scoretk.solvers.base import Info
from scoretk.solvers.parts.metropolis import decide

__all__ = [
    "DIVERGENCE",
    "Point",
    "Trajectory",
    "inner_steps",
    "last_step",
    "last_step_and_decision",
    "leapfrog",
    "pull",
    "stretch",
    "unstretch",
]

DIVERGENCE = 1000.0


class Point(NamedTuple):
    """What a proposal replaces: position, energy `(chains,)` and gradient of the energy."""

    x: Tensor
    energy: Tensor
    grad: Tensor


class Trajectory(NamedTuple):
    """The end of a trajectory.

    The point, its momentum, and the error of the total energy `(chains,)`.
    """

    point: Point
    momentum: Tensor
    error: Tensor


def stretch(scale: Tensor, p: Tensor, dense: bool) -> Tensor:
    """`S p`."""
    return (p.reshape(len(p), -1) @ scale.T).reshape(p.shape) if dense else scale * p


def pull(scale: Tensor, gradient: Tensor, dense: bool) -> Tensor:
    """`S^T g`."""
    return (
        (gradient.reshape(len(gradient), -1) @ scale).reshape(gradient.shape)
        if dense
        else scale * gradient
    )


def unstretch(scale: Tensor, x: Tensor, dense: bool) -> Tensor:
    """`S^-1 x`."""
    if not dense:
        return x / scale
    columns: Tensor = torch.linalg.solve_triangular(scale, x.reshape(len(x), -1).T, upper=False)
    return columns.T.reshape(x.shape)


def inner_steps(
    field: StaticField,
    start: Point,
    momentum: Tensor,
    eps: Any,
    steps: int,
    scale: Tensor,
    dense: bool,
) -> tuple[Tensor, Tensor]:
    """So many leapfrog steps but for the last drift and what follows it.

    Position, and momentum half a step on.
    """
    here = start.x, momentum - (eps / 2) * pull(scale, start.grad, dense)
    return iterate(drift_and_kick, field, here, steps - 1, eps, scale=scale, dense=dense)


def drift_and_kick(
    field: StaticField, here: tuple[Tensor, Tensor], eps: Any, *, scale: Tensor, dense: bool
) -> tuple[Tensor, Tensor]:
    """A drift, and a whole kick after it, of position and momentum."""
    x, p = here
    x = x + eps * stretch(scale, p, dense)
    return x, p + eps * pull(scale, field.score(x), dense)


@part
def last_step(
    field: StaticField,
    start: Point,
    momentum: Tensor,
    x: Tensor,
    p: Tensor,
    eps: Any,
    *,
    scale: Tensor,
    dense: bool,
) -> Trajectory:
    """The last drift and half kick, and the error of the total energy since the start."""
    x = x + eps * stretch(scale, p, dense)
    energy, gradient = field.energy_and_grad(x)
    p = p - (eps / 2) * pull(scale, gradient, dense)
    error = energy - start.energy + (row_dot(p, p) - row_dot(momentum, momentum)) / 2
    return Trajectory(Point(x, energy, gradient), p, error)


def leapfrog(
    field: StaticField,
    start: Point,
    momentum: Tensor,
    eps: Any,
    steps: int,
    scale: Tensor,
    dense: bool,
) -> Trajectory:
    """So many leapfrog steps.

    Args:
        eps: A number, a 0-d tensor, or one value a chain shaped to multiply x.
    """
    x, p = inner_steps(field, start, momentum, eps, steps, scale, dense)
    return last_step(field, start, momentum, x, p, eps, scale=scale, dense=dense)


@part
def last_step_and_decision(
    field: StaticField,
    start: Point,
    momentum: Tensor,
    x: Tensor,
    p: Tensor,
    eps: Any,
    u: Tensor,
    *,
    scale: Tensor,
    dense: bool,
) -> tuple[Point, Info, Trajectory]:
    """The end of a trajectory, the point that Metropolis chooses with uniforms u, and what there is
    to report.
    """
    end = last_step(field, start, momentum, x, p, eps, scale=scale, dense=dense)
    chosen, probability = decide(start, end.point, -end.error, u)
    info = {
        "accept": probability,
        "energy": chosen.energy,
        "hamiltonian": start.energy + row_dot(momentum, momentum) / 2,
        "diverging": ~(end.error.abs() < DIVERGENCE),
    }
    return chosen, info, end
