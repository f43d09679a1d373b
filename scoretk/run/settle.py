"""One step of all chains, and what becomes of each chain after it.

A chain that was well and whose new state is finite moves on; a chain whose new state is not finite
keeps its last finite one, is marked with a `Status` and the step, and stays there; a chain marked
earlier stays where it is. On a grid, whose run has no acceptance that could turn it back, so does a
chain that leaves every scale that the path and its own start know
(`scoretk.run.moment.reach_of`). Solvers need no code for any of this.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk.errors import Status
from scoretk.run.record import masked
from scoretk.run.state import all_finite, finite_chains, select_state
from scoretk.solvers.base import Info

__all__ = ["Made", "Now", "make_step", "settle", "settled", "within"]


class Now(NamedTuple):
    """What a step finds: the solver's state, and for each chain its `Status`, the step where it
    failed or -1, and how far it may go (`scoretk.run.moment.reach_of`), `(chains,)`.
    """

    state: Any
    status: Tensor
    failed_at: Tensor
    reach: Tensor | None


class Made(NamedTuple):
    """What a step leaves: what the next one finds, what is reported, and the evaluations of each
    chain, `(chains,)`, where they vary.
    """

    now: Now
    stats: Info
    evaluations: Tensor | None


def make_step(
    solver: Any, field: Any, noise: Any, now: Now, step: int | Tensor, probe: bool
) -> Made:
    """One step and its settling, as `settled`."""
    new, info = solver.step(field, now.state, noise)
    return settled(new, info, now, step, probe)


def settled(new: Any, info: Info, now: Now, step: int | Tensor, probe: bool) -> Made:
    """A step that was made, settled.

    Args:
        new: the state after it.
        info: what it reports.
        now: what it found.
        step: its index.
        probe: whether the host looks first if all is well, which spares the masks; for runs on the
            CPU in which all chains are well.
    """
    evaluations = info.get("evaluations")
    if probe and "status" not in info and all_finite(new) and _are_within(new.x, now.reach):
        stats = {n: v for n, v in info.items() if n != "evaluations"}
        return Made(now._replace(state=new), stats, evaluations)
    state, status, failed_at, stats = settle(
        new, now.state, info, now.status, now.failed_at, step, now.reach
    )
    return Made(Now(state, status, failed_at, now.reach), stats, evaluations)


def settle(
    new: Any,
    old: Any,
    info: Info,
    status: Tensor,
    failed_at: Tensor,
    step: int | Tensor,
    reach: Tensor | None = None,
) -> tuple[Any, ...]:
    """Row by row accept the new state or keep the old one; see the module's docstring.

    No synchronisation.
    """
    alive, finite = status == int(Status.OK), finite_chains(new)
    code = info.get("status", torch.zeros_like(status)).to(status.dtype)
    code = torch.where(finite | (code != int(Status.OK)), code, int(Status.NONFINITE))
    sound = finite
    if reach is not None:
        sound = finite & within(new.x, reach)
        code = torch.where(sound | (code != int(Status.OK)), code, int(Status.DIVERGED))
    failed = alive & (code != int(Status.OK))
    state = select_state(alive & sound, new, old)
    stats = masked(
        {n: v for n, v in info.items() if n not in ("status", "evaluations")}, alive & ~failed
    )
    return state, torch.where(failed, code, status), torch.where(failed, step, failed_at), stats


def within(x: Tensor, reach: Tensor) -> Tensor:
    """Which chains are within reach, `(chains,)` of bool; those that are not finite are not."""
    return x.reshape(len(x), -1).abs().amax(1) <= reach


def _are_within(x: Tensor, reach: Tensor | None) -> bool:
    return reach is None or bool(within(x, reach).all())
