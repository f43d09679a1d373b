"""One step of all chains, and what becomes of each chain after it.

A chain that was well and whose new state is finite moves on; a chain whose new state is not finite
keeps its last finite one, is marked with a `Status` and the step, and stays there; a chain marked
earlier stays where it is. On a grid, whose run has no acceptance that could turn it back, so does a
chain that leaves every scale that the path and its own start know
(`scoretk.run.moment.reach_of`). Solvers need no code for any of this.

Nearly always all chains are well, and nothing of this has to be computed: somebody `Watching` sees
that they are. The CPU looks at each step (`AtOnce`). A host that looked would wait for its device,
so there it is asked once for many steps (`AtTheEnd`), and where a chain was not well these are made
once more, with masks: the same numbers, as what a step makes is a function of the state before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.linalg import vector_norm

from scoretk.core.devices import wide
from scoretk.errors import Status
from scoretk.run.record import masked
from scoretk.run.state import all_finite, checked_step, finite_chains, floating_leaves, select_state
from scoretk.solvers.base import DRIVERS, Info

__all__ = [
    "AtOnce",
    "AtTheEnd",
    "Made",
    "Now",
    "Watching",
    "make_step",
    "settle",
    "settled",
    "within",
]


TOGETHER = 1 << 22
"""About how many values are kept on a device to be added up in one kernel, small leaves of many steps
at once; a leaf of more than an eighth of that is added up by itself, as copying it would cost more.
"""


class Now(NamedTuple):
    """The part of a run that a step reads and replaces.

    Args:
        state: The solver's state.
        status: The `Status` code of each chain, `(chains,)`.
        failed_at: The step at which each failed, or -1, `(chains,)`.
        reach: How far each may go (`scoretk.run.moment.reach_of`), `(chains,)`; None for anywhere.
    """

    state: Any
    status: Tensor
    failed_at: Tensor
    reach: Tensor | None


class Made(NamedTuple):
    """What a step has made.

    Args:
        now: What the run is before the next step.
        stats: What is reported.
        evaluations: The evaluations of each chain, `(chains,)`, where they vary; else None.
        energies: The energies of each besides, `(chains,)`, if there are any; else None.
    """

    now: Now
    stats: Info
    evaluations: Tensor | None
    energies: Tensor | None = None


class Watching(Protocol):
    """Tests whether all chains are still well, in a run in which they were before the step."""

    def passes(self, new: Any, info: Info) -> bool:
        """Whether a step's state may be taken as it is: all of it finite and within reach, and no
        chain reported as failed.
        """


@dataclass(frozen=True)
class AtOnce:
    """Looks at each step, which is cheap on the CPU.

    Args:
        reach: How far out all chains may be.
    """

    reach: float

    def passes(self, new: Any, info: Info) -> bool:
        """As `Watching.passes`. A no may be wrong: then masks are computed, with the same bits."""
        if "status" in info:
            return False
        if self.reach == math.inf:
            return all_finite(new)
        return _all_within(new.x, self.reach) and all_finite(new, but=new.x)


@dataclass(frozen=True)
class AtTheEnd:
    """Lets every step pass, and notes on the device what the host asks for at the end of a block.

    Args:
        reach: How far each chain may be, `(chains,)`; None for anywhere.
        leaves: Floating-point leaves after the last steps, that are not added up yet.
        sums: The sums of all such leaves before, finite where all entries are (unless they overflow:
            then masks are computed, with the same bits).
        alarms: Whether a chain is out of reach, or was reported as failed, `()` of bool.
    """

    reach: Tensor | None
    leaves: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    alarms: list[Tensor] = field(default_factory=list)

    def passes(self, new: Any, info: Info) -> bool:
        """As `Watching.passes`, which `all_passed` answers."""
        for leaf in floating_leaves(new):
            if 8 * leaf.numel() > TOGETHER:
                self.sums.append(leaf.detach().sum())
            else:
                self.leaves.append(leaf.detach())
        if sum(leaf.numel() for leaf in self.leaves) > TOGETHER:
            self._add_up()
        if self.reach is not None:
            self.alarms.append(~within(new.x.detach(), self.reach).all())
        if "status" in info:
            self.alarms.append((info["status"] != int(Status.OK)).any())
        return True

    def _add_up(self) -> None:
        """The leaves that are kept, into their sum."""
        if self.leaves:
            self.sums.append(torch.cat([leaf.flatten() for leaf in self.leaves]).sum())
            self.leaves.clear()

    def all_passed(self) -> bool:
        """Whether all steps since the beginning were right to pass; the host waits, once."""
        self._add_up()
        finite = [wide(torch.stack(self.sums)).sum().isfinite()] if self.sums else []
        alarms = [*self.alarms, *(~known for known in finite)]
        return not (alarms and bool(torch.stack(alarms).any()))


def make_step(
    solver: Any, field: Any, noise: Any, now: Now, step: int | Tensor, watching: Watching | None
) -> Made:
    """Make a step and settle it; arguments are those of `settled`, with solver, field and noise."""
    new, info = checked_step(solver.step(field, now.state, noise), now.state)
    return settled(new, info, now, step, watching)


def settled(new: Any, info: Info, now: Now, step: int | Tensor, watching: Watching | None) -> Made:
    """Settle a step: decide for each chain whether it moves on, stays, or has failed.

    Args:
        new: The solver's state after the step.
        info: What the step reports.
        now: What the run was before it.
        step: The index of the step.
        watching: For runs in which all chains are well: who sees that they still are, so that there
            is no need for a mask. None where there is nobody.
    """
    counted = info.get("evaluations"), info.get("warmup_energies")
    if watching is not None and watching.passes(new, info):
        stats = {n: v for n, v in info.items() if n not in DRIVERS}
        return Made(Now(new, now.status, now.failed_at, now.reach), stats, *counted)
    state, status, failed_at, stats = settle(
        new, now.state, info, now.status, now.failed_at, step, now.reach
    )
    return Made(Now(state, status, failed_at, now.reach), stats, *counted)


def settle(
    new: Any,
    old: Any,
    info: Info,
    status: Tensor,
    failed_at: Tensor,
    step: int | Tensor,
    reach: Tensor | None = None,
) -> tuple[Any, ...]:
    """Row by row take the new state or keep the old one, without synchronisation (see the module).

    Returns:
        The state, the status and the step of failure of each chain, and the statistics.
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
    stats = masked({n: v for n, v in info.items() if n not in DRIVERS}, alive & ~failed)
    return state, torch.where(failed, code, status), torch.where(failed, step, failed_at), stats


def within(x: Tensor, reach: Tensor) -> Tensor:
    """Which chains are within reach, `(chains,)` of bool; those that are not finite are not."""
    return x.reshape(len(x), -1).abs().amax(1) <= reach


def _all_within(x: Tensor, reach: float) -> bool:
    """Whether no entry of x is farther out; one that is not finite is."""
    return not x.numel() or vector_norm(x, math.inf).item() <= reach
