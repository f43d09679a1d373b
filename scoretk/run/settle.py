"""One step of all chains, and what becomes of each chain after it.

A chain that was well and whose new state is finite moves on; a chain whose new state is not finite
keeps its last finite one, is marked with a `Status` and the step, and stays there; a chain marked
earlier stays where it is. On a grid, whose run has no acceptance that could turn it back, so does a
chain that leaves every scale that the path and its own start know
(`scoretk.run.moment.reach_of`). Solvers need no code for any of this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoretk.errors import Status
from scoretk.run.record import masked
from scoretk.run.state import all_finite, finite_chains, select_state
from scoretk.solvers.base import Info

__all__ = ["make_step", "settle", "settled"]


def make_step(
    solver: Any,
    bound: Any,
    noise: Any,
    moment: tuple[Any, Tensor, Tensor, Tensor | None],
    step: Any,
    probe: bool,
) -> tuple[Any, ...]:
    """One step and its settling: (state, status, failed_at, stats, evaluations)."""
    new, info = solver.step(bound, moment[0], noise)
    return settled(new, info, moment, step, probe)


def settled(
    new: Any, info: Info, moment: tuple[Any, Tensor, Tensor, Tensor | None], step: Any, probe: bool
) -> tuple[Any, ...]:
    """A step that was made, settled; as `make_step`.

    Args:
        new: the state after it.
        info: what it reports.
        moment: state, status, failed_at and reach before it.
        step: its index.
        probe: whether to look first if all is well, which spares the masks but waits for the
            device; for runs on the CPU in which all chains are.
    """
    old, status, failed_at, reach = moment
    evaluations = info.get("evaluations")
    if (
        probe
        and "status" not in info
        and all_finite(new)
        and (reach is None or bool(within(new.x, reach).all()))
    ):
        stats = (
            {n: v for n, v in info.items() if n != "evaluations"}
            if evaluations is not None
            else info
        )
        return new, status, failed_at, stats, evaluations
    return (*settle(new, old, info, status, failed_at, step, reach), evaluations)


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
