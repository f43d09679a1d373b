r"""The first steps of warmup from far off, with a step size and scales of each chain's own.

A chain may start where the energy is 1e8, and steeper in one coordinate than in another by as much,
and other chains start elsewhere: no step size and no scales serve all of them, nor one chain for
long. So until the windows begin each chain has its own step size eps and scales S = h^(-1/2), where
h_i estimates the curvature along coordinate i from the chain's own leapfrog steps dx, with dg the
change of the gradient of the energy:

    log h_i <- log h_i + w (log |dg_i| - log |dx_i| - log h_i).

Secants bound the step also where the chain is only passing, when its spread says nothing, and in
logarithms they keep up with a curvature that falls by a factor e a step. A difference that rounding
hides is an upper bound on h, and may only lower it. The step size follows the acceptance a: log eps
<- log eps + gamma (a - .8).

Trajectories are Hamiltonian, each with a new momentum. The kinetic energy K that is gained on the
way down is not kept: it counts up to c = (sqrt(d) + 3)^2 / 2, about the largest of a momentum drawn
from N(0, I). With U = E + min(K, c) the acceptance is

    a = min(1, exp(U - U')),

which is Metropolis' rule where the target has its mass, and elsewhere accepts what leads down,
whatever the error of the integrator (a relative error of 1e-6 is an error of 100 where the energy
is 1e8, and in float32 rounding alone is 10).

The first trajectory is long and keeps the energy that it gains: within a box of half width 4 (1 +
|x|) about its start it leaves steep places. (Where the energy grows like x^400, as that of a moving
average which cannot be inverted, short steps end on the floor of a valley 1e-8 wide and do not
leave it. A long orbit spends its time where the energy is flat.) Then each step of warmup has
`LEAPFROGS` gradients: first as single leapfrog steps, which adapt fastest, then as trajectories of
2, 4 and 8.

These steps do not leave the target as it is: as a step learns from where it leads, chains gather
where steps are long. (In the mouth of Neal's funnel: x_0 had a mean of 1.6 after them, of a
standard deviation of 3.) So they are only for chains that steps with common settings would not
bring to the mass: those that lose `FAR` of their energy a coordinate, or more, in 24 single steps,
tried first and not kept; that is about 8 standard deviations off. Chains that tune take such steps
all or none, by their majority; a chain that follows is judged by itself.

As what a chain learns is its own, chains that tune and chains that follow arrive alike. At the end
the common tuning begins with the medians over chains of log eps and log S.

References:
    Hoffman, Gelman, "The No-U-Turn sampler" (2014), for the acceptance aimed at.
    Barzilai, Borwein, "Two-point step size gradient methods" (1988), for secants in place of
    curvatures.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk.core.devices import wide
from scoretk.core.rows import across, finite_rows, row_dot, select_rows
from scoretk.core.streams import Stream
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import StaticField
from scoretk.solvers.base import traits

__all__ = [
    "LEAPFROGS",
    "OwnSettings",
    "Place",
    "Report",
    "approach_step",
    "begins_far",
    "beside",
    "common_settings",
    "first_settings",
]

LEAPFROGS = 8
FIRST = 3
BOX = 4.0
MEMORY = 0.2
FIRST_MEMORY = 3.0
GAIN, ACCEPT = 0.5, 0.8
JITTER = 0.25
PROBE = 1e-3
ROUNDING = 16
TRIALS = 3
FAR = 32.0


class Place(NamedTuple):
    """Where chains are: positions, their energies `(chains,)` and the gradients of these."""

    x: Tensor
    energy: Tensor
    grad: Tensor


class OwnSettings(NamedTuple):
    """The settings of each chain's own: log eps, `(chains,)`, and log curvatures log h, like x."""

    log_size: Tensor
    log_curvature: Tensor


class Trajectories(NamedTuple):
    """How a step of the approach is made.

    Args:
        number: How many trajectories follow each other.
        leapfrogs: How many leapfrog steps each has.
        memory: w, how fast the curvatures follow.
        box: Like x, how far each coordinate may go from its start: where it would go further the
            trajectory ends; None for no bound.
    """

    number: int
    leapfrogs: int
    memory: float = MEMORY
    box: Tensor | None = None


class Report(NamedTuple):
    """What a step reports.

    Acceptance and change of U of its last trajectory, each `(chains,)`, and how many gradients a
    chain it evaluated.
    """

    accept: Tensor
    error: Tensor
    gradients: int


def first_settings(x: Tensor) -> OwnSettings:
    """Settings to begin with: step sizes and curvatures of 1."""
    return OwnSettings(x.new_zeros(len(x)), torch.zeros_like(x))


def common_settings(
    own: OwnSettings, alive: Tensor, metric: str, before: Tensor
) -> tuple[float, Tensor]:
    """The step size and the scales that all chains share next: medians over those that are well.

    Args:
        own: The settings of each chain's own.
        alive: `(chains,)` of bool, the chains that are well.
        metric: "diagonal", "fisher", "dense", or "none" for scales that stay as they are; then the step size
            is that of the narrowest coordinate.
        before: The scales so far, which also stay where no chain is well.

    Returns:
        The leapfrog step size, and the scales, like an event or `(d, d)`.
    """
    usable = alive & finite_rows(own.log_curvature) & own.log_size.isfinite()
    if not bool(usable.any()):
        return 1.0, before
    log_size, log_curvature = (wide(v[usable]).median(0).values for v in own)
    size, scale = float(log_size.exp()), (-log_curvature / 2).exp()
    if metric == "none":
        return size * float(scale.min()), before
    return size, (torch.diag(scale.flatten()) if metric == "dense" else scale).to(before.dtype)


def beside(solver: Any, gradients: int, like: Tensor) -> dict[str, Tensor]:
    """What a step with so many gradients reports beyond what the solver's `step_cost` has.

    An energy goes with each gradient: "warmup_energies" are those, where "evaluations" have them not.

    Returns:
        By name, each `(chains,)`; may be < 0.
    """
    kinds = {"evaluations": "score"}
    if "energy" not in traits(solver).varying:
        kinds["warmup_energies"] = "energy"
    return {
        name: torch.full_like(
            like, gradients - int(solver.step_cost.get(kind, 0)), dtype=torch.int64
        )
        for name, kind in kinds.items()
    }


def lengths(step: int, steps: int) -> tuple[int, int]:
    """How many trajectories step `step` of `steps` has, and of how many leapfrog steps each."""
    if step == 0:
        return 1, FIRST * steps
    leapfrogs = 2 ** max(5 * step // steps - 1, 0)
    return LEAPFROGS // leapfrogs, leapfrogs


def approach_step(
    field: StaticField,
    place: Place,
    own: OwnSettings,
    noise: NoiseSource,
    index: Tensor,
    step: int,
    steps: int,
) -> tuple[Place, OwnSettings, Report]:
    """Make a step of the approach.

    Args:
        field: A static field with an energy.
        place: Where the chains are.
        own: The settings of each chain's own.
        noise: The noise of the chains.
        index: The step under which the noise is read.
        step: The number of this step of warmup, from 0.
        steps: How many steps the approach has.

    Returns:
        Places and settings after the step, and its report.
    """
    spent, made = 0, Trajectories(*lengths(step, steps))
    if step == 0:
        memory, box = min(MEMORY, FIRST_MEMORY / made.leapfrogs), BOX * (1 + place.x.abs())
        made = made._replace(memory=memory, box=box)
        own, spent = own._replace(log_curvature=_probed(field, place, noise, index)), 1
    place, own, accept, error = _moved(field, place, own, noise, index, made)
    return place, own, Report(accept, error, spent + made.number * made.leapfrogs)


def begins_far(
    field: StaticField, place: Place, noise: NoiseSource, index: Tensor
) -> tuple[Tensor, int]:
    """Whether each chain is far from where the target has its mass.

    A chain is far where single steps, tried and not kept, lower its energy by more than `FAR` a
    coordinate, or where the energy is not finite.

    Args:
        field: A static field with an energy.
        place: Where the chains are.
        noise: The noise of the chains.
        index: The step from which on the noise is read.

    Returns:
        `(chains,)` of bool, and how many gradients a chain it took to find out.
    """
    log_curvature = _probed(field, place, noise, index)
    there, own = place, first_settings(place.x)._replace(log_curvature=log_curvature)
    for i in range(TRIALS):
        there, own, *_ = _moved(field, there, own, noise, index + i, Trajectories(LEAPFROGS, 1))
    return ~(place.energy - there.energy <= FAR * place.x.shape[1:].numel()), 1 + TRIALS * LEAPFROGS


def _moved(
    field: StaticField,
    place: Place,
    own: OwnSettings,
    noise: NoiseSource,
    index: Tensor,
    made: Trajectories,
) -> tuple[Place, OwnSettings, Tensor, Tensor]:
    """Places and settings after some trajectories, and acceptance and change of U of the last.

    The last two are `(chains,)`. Arguments are as for `_trajectory`, with the step `index` under
    which the noise is read.
    """
    x, n = place.x, made.number
    momenta = noise.normal(index, Stream.PROPOSAL, (n, *x.shape[1:]), x.dtype)
    factors = 1 + JITTER * (2 * noise.uniform(index, Stream.LENGTH, (n,), x.dtype) - 1)
    u = noise.uniform(index, Stream.ACCEPT, (n,), x.dtype)
    for i in range(n):
        eps = own.log_size.exp() * factors[:, i]
        end, log_curvature, error = _trajectory(field, place, own, momenta[:, i], eps, made)
        accept = torch.where(error.isnan(), 0.0, (-error).clamp(max=0).exp())
        moved = u[:, i] < accept
        place = Place(*(select_rows(moved, new, old) for new, old in zip(end, place, strict=True)))
        log_curvature = select_rows(moved, log_curvature, own.log_curvature)
        own = OwnSettings(own.log_size + GAIN * (accept - ACCEPT), log_curvature)
    return place, own, accept, error


def _trajectory(
    field: StaticField,
    start: Place,
    own: OwnSettings,
    momentum: Tensor,
    eps: Tensor,
    made: Trajectories,
) -> tuple[Place, Tensor, Tensor]:
    """One trajectory of each chain.

    Args:
        field: A static field with an energy.
        start: Where the chains are.
        own: The settings of each chain's own, of which the curvatures are used.
        momentum: Like x.
        eps: `(chains,)`, the step sizes.
        made: How many leapfrog steps it has, how it learns and where it ends.

    Returns:
        The end, the log curvatures learned on the way, like x, and the change of U, `(chains,)`,
        NaN where the end is not finite.
    """
    scale, size = (-own.log_curvature / 2).exp(), across(eps, start.x)
    here, p, log_curvature, going = start, momentum, own.log_curvature, None
    for _ in range(made.leapfrogs):
        half = p - size / 2 * scale * here.grad
        x = here.x + size * scale * half
        there = Place(x, *field.energy_and_grad(x))
        after = half - size / 2 * scale * there.grad
        secant = _log_secant(here, there, log_curvature)
        learned = log_curvature + made.memory * (secant - log_curvature)
        if made.box is None:
            here, p, log_curvature = there, after, learned
            continue
        inside = ((x - start.x).abs() <= made.box).reshape(len(x), -1).all(1)
        going = inside if going is None else going & inside
        here = Place(*(select_rows(going, new, old) for new, old in zip(there, here, strict=True)))
        p, log_curvature = select_rows(going, after, p), select_rows(going, learned, log_curvature)
    error = here.energy - start.energy + _counted(p) - _counted(momentum)
    sound = finite_rows(here.x) & finite_rows(here.grad) & here.energy.isfinite()
    return here, log_curvature, torch.where(sound, error, torch.nan)


def _counted(p: Tensor) -> Tensor:
    """The kinetic energy that counts, `min(K, c)`, of momenta p: `(chains,)`."""
    most = (p.shape[1:].numel() ** 0.5 + 3) ** 2 / 2
    return (row_dot(p, p) / 2).nan_to_num(most).clamp(max=most)


def _log_secant(here: Place, there: Place, known: Tensor) -> Tensor:
    """The secant `log |dg| - log |dx|` between two places, like x.

    Where rounding hides dg or dx it is at most the log curvature `known` so far.
    """
    unit = ROUNDING * torch.finfo(here.x.dtype).eps
    rise, least_rise = (there.grad - here.grad).abs(), unit * here.grad.abs()
    run, least_run = (there.x - here.x).abs(), unit * here.x.abs()
    found = torch.maximum(rise, least_rise).log() - torch.maximum(run, least_run).log()
    found = torch.where((rise > least_rise) & (run > least_run), found, torch.minimum(found, known))
    return torch.where(found.isfinite(), found, known)


def _probed(field: StaticField, place: Place, noise: NoiseSource, index: Tensor) -> Tensor:
    """Log curvatures from a small step in a random direction, like x; 0 where rounding hides it."""
    x = place.x + PROBE * noise.normal(index, Stream.PROBE, tuple(place.x.shape[1:]), place.x.dtype)
    there = Place(x, *field.energy_and_grad(x))
    return _log_secant(place, there, torch.full_like(x, torch.inf)).nan_to_num(
        0.0, posinf=0.0, neginf=0.0
    )
