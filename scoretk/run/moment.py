"""A run: what stays the same, all that it is at a moment, and the moment before its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from scoretk.core.noise import Noise
from scoretk.core.rows import select_rows
from scoretk.core.warned import warn
from scoretk.errors import Status
from scoretk.fields.resolve import Bound, TimedField
from scoretk.run.record import Record, Recorder
from scoretk.run.schedule import Schedule
from scoretk.run.state import checked_start, finite_chains
from scoretk.solvers.base import is_grid, traits

__all__ = [
    "Loop",
    "Moment",
    "begin",
    "extent",
    "failures",
    "is_free",
    "looked_at",
    "outcome",
    "reach_of",
]

BEYOND_PATH, BEYOND_START = 1e7, 1e15
"""How far beyond the scales of its path and its start a chain is `DIVERGED`; where there is no
path, how far beyond its start.

1e7 units of noise are what float32 resolves of it: farther out a state on a path says nothing of
its noise.
"""
GROWN = 100.0
"""A chain without acceptance is `DIVERGED` this factor farther out than at the last look but one."""
ATTEMPTS = 100
"""How often a chain is started anew whose energy or score is not finite."""


@dataclass(frozen=True, eq=False)
class Loop:
    """The constant part of a run: what does not change from moment to moment.

    Args:
        solver: The solver that makes the steps.
        field: What `resolve` returned for it, bound to the chains.
        noise: The noise of the chains.
        schedule: Which steps there are.
        recorder: What is kept of them.
    """

    solver: Any
    field: Bound
    noise: Noise
    schedule: Schedule
    recorder: Recorder


@dataclass
class Moment:
    """The complete state of a run after `step` steps.

    Args:
        state: The solver's state.
        status: The `Status` code of each chain, `(chains,)`.
        failed_at: The step at which each failed, or -1, `(chains,)`.
        step: The number of steps made, and so the index of the next.
        record: What was kept of them.
        failed: How many chains have failed.
        evaluations: The evaluations that the solver reported, summed over chains; a tensor `()`
            where the device has counted them.
        energies: The energies beyond these and what steps are declared to cost, of warmup, like them.
        tuning: The state of the adaptation; None where warmup does not tune.
        reach: The largest magnitude that x may have, `(chains,)` (see `reach_of`); None for any.
        restarts: The number of starts made again, counting all chains at each attempt.
        looks: The largest magnitudes of x at the last two looks (`Schedule.next_look`),
            `(2, chains)`, of a solver with neither acceptance nor grid (see `outcome`), NaN where
            there was none; None for other solvers.
        alone: Whether the last steps were made one by one, where others are made by compiled calls.
    """

    state: Any
    status: Tensor
    failed_at: Tensor
    step: int = 0
    record: Record = field(default_factory=Record)
    failed: int = 0
    evaluations: int | Tensor = 0
    energies: int | Tensor = 0
    tuning: Any = None
    reach: Tensor | None = None
    restarts: int = 0
    looks: Tensor | None = None
    alone: bool = False


def begin(
    solver: Any,
    bound: Bound,
    x: Tensor,
    noise: Noise,
    *,
    tunes: bool = False,
    tuned: dict[str, Tensor] | None = None,
    restart: Callable[[int], Tensor] | None = None,
) -> Moment:
    """The moment before the first step.

    A chain whose energy or score is not finite at the start is `NONFINITE`, at step 0.

    Args:
        solver: The solver.
        bound: The field, bound to the chains.
        x: The positions at the start, `(chains, *event_shape)`.
        noise: The noise of the chains.
        tunes: Whether warmup is to tune the solver.
        tuned: What other chains have tuned for these, by name.
        restart: Makes the start of an attempt, by its number, for chains whose energy or score was
            not finite before; None to take x as it is.
    """
    state = checked_start(solver.init(bound, x, noise), x)
    finite, attempts = finite_chains(state), 0
    while restart is not None and attempts < ATTEMPTS and not bool(finite.all()):
        attempts += 1
        x = select_rows(finite, x, restart(attempts))
        state = solver.init(bound, x, noise)
        finite = finite_chains(state)
    if attempts == ATTEMPTS and not bool(finite.all()):
        warn(
            f"{int((~finite).sum())} of {len(x)} chains found no start with a finite energy and "
            f"score in {ATTEMPTS} attempts, and are flagged; give them one: init="
        )
    status = torch.where(finite, int(Status.OK), int(Status.NONFINITE))
    moment = Moment(
        state,
        status,
        torch.where(finite, -1, 0),
        failed=failures(status),
        reach=reach_of(solver, bound, state.x),
        restarts=attempts * len(x),
        looks=torch.full_like(extent(state.x), torch.nan).repeat(2, 1) if is_free(solver) else None,
    )
    if tunes and moment.failed < len(x):
        moment.state, moment.tuning, spent = solver.adaptation.begin(
            solver, bound, state, noise, finite
        )
        moment.evaluations += spent * len(x)
        if "energy" not in traits(solver).varying:  # there they are counted
            moment.energies += spent * len(x)
    if tuned is not None:
        moment.state = state._replace(**{name: value.clone() for name, value in tuned.items()})
        moment.tuning = solver.adaptation.follow(state)
    return moment


def failures(status: Tensor) -> int:
    """How many chains of this status, `(chains,)`, have failed."""
    return int((status != int(Status.OK)).sum())


def reach_of(solver: Any, bound: Bound, x: Tensor) -> Tensor | None:
    """The largest entry, `(chains,)`, that x may have on a grid that starts at x.

    None where the solver has no grid.

    On a path `x_t = alpha x_1 + sigma eps` of a field in time, `BEYOND_PATH` times the largest of
    alpha, sigma and |x|.
    """
    if not is_grid(solver):
        return None
    scale = extent(x).clamp(min=1.0)
    if not isinstance(bound, TimedField):
        return BEYOND_START * scale
    if bound.path is None:
        known = []
    else:
        known = [float(f(t)) for f in (bound.path.alpha, bound.path.sigma) for t in (0.0, 1.0)]
    return BEYOND_PATH * scale.clamp(min=max(known, default=1.0))


def extent(x: Tensor) -> Tensor:
    """The largest magnitude of each row, `(chains,)`; 0 where it is not finite."""
    return x.detach().reshape(len(x), -1).abs().amax(1).nan_to_num(0.0, posinf=0.0)


def is_free(solver: Any) -> bool:
    """Whether neither a Metropolis decision nor a grid bounds how far chains may go."""
    return not is_grid(solver) and not traits(solver).exact


def looked_at(moment: Moment) -> Moment:
    """The moment, with the largest magnitude of each chain noted in `looks`."""
    assert moment.looks is not None
    return replace(moment, looks=torch.stack([moment.looks[1], extent(moment.state.x)]))


def outcome(moment: Moment) -> tuple[Tensor, Tensor]:
    """Status and step of failure of each chain when the run is over.

    Where the step of a kernel without acceptance is too long, |x| grows by a factor each step, and
    a run may end before anything overflows. A stable chain diffuses or nears its target: from the
    last look but one, after a quarter to a half of the run, to its end |x| grows by about two. So a
    chain is `DIVERGED`, at the last step, where |x| is above `GROWN` times the largest of 1, its
    own value then and the chains' median then.
    This is tested at the end of a run only, so that a run that is resumed is as one never stopped.
    """
    if moment.looks is None:
        return moment.status, moment.failed_at
    earlier = moment.looks[0].nan_to_num(torch.inf)  # without a look nothing has grown
    before = torch.maximum(earlier, earlier.median()).clamp(min=1.0)
    gone = (extent(moment.state.x) > GROWN * before) & (moment.status == int(Status.OK))
    return (
        torch.where(gone, int(Status.DIVERGED), moment.status),
        torch.where(gone, moment.step, moment.failed_at),
    )
