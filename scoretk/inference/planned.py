"""A run as it is asked for, with its arguments checked."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arguments import count
from scoretk.core.arrays import aligned
from scoretk.core.identity import stable_text, tensor_digest, weights_digest
from scoretk.core.modules import field_tensors
from scoretk.core.noise import Noise, derive
from scoretk.core.versions import versions
from scoretk.errors import InvalidArgument
from scoretk.fields.constrained import Constrained
from scoretk.fields.protocols import is_timed, optional
from scoretk.fields.resolve import Bound, resolve
from scoretk.fields.variables import Derived, named
from scoretk.inference.asked import BatchAsked, StatePlace, event_shape_of
from scoretk.inference.starts import Later, initial, spread_of, step_by_step, tracked
from scoretk.run.batch import Batch
from scoretk.run.fits import Kept
from scoretk.run.record import RECORDERS, Constraining, KeepAll, OfRows, Recorder, Room
from scoretk.run.schedule import Schedule
from scoretk.run.store import TRUTHS, Store
from scoretk.run.streaming import Streaming
from scoretk.solvers.base import adapts, is_grid, traits

__all__ = ["PlannedRun"]


@dataclass(frozen=True)
class PlannedRun:
    """A run as it is asked for, with its arguments checked.

    Args:
        origin: Where the field came from.
        packages: The versions of the other packages whose plugins were asked for by name.
        model: The field, in free space.
        solver: The solver.
        ids: The ids of the chains that are asked for.
        seed: The user's seed.
        continues: How many runs with this seed went before, whose noise is not read again.
        start: Where the chains start, in the space that the solver works in; None where nothing is
            given.
        rows: The conditions, one row a chain.
        place: The device and the dtype of the state.
        lengths: `steps`, `warmup` and `thin`; None where they are not given, or a grid has its own.
        keep: What is kept of the draws.
        batch: How many chains run together.
        pilot: How many chains tune the solver; None where nothing is tuned.
        compiled: Whether steps are compiled.
        room: The memory of the draws.
        streamed: Whether they go to a store instead.
        store: The store, as soon as it is known what goes there.
    """

    origin: str
    packages: Mapping[str, str]
    model: Any
    solver: Any
    ids: range
    seed: int
    continues: int
    start: Tensor | None
    rows: dict[str, Tensor]
    place: StatePlace
    lengths: tuple[int | None, int | None, int | None]
    keep: str
    batch: int
    pilot: int | None
    compiled: bool
    room: Room
    streamed: bool
    store: Store | None = None

    def bound(self, chains: slice) -> Bound:
        """The field, bound to the condition rows of some chains."""
        rows = {name: value[chains] for name, value in self.rows.items()}
        return resolve(self.model, self.solver.needs, rows, timed=self.solver.timed)

    def schedule(self) -> Schedule:
        """Which steps the run makes, and which it keeps."""
        return _schedule(self.solver, self.bound(slice(0, 1)), *self.lengths, self.keep)

    def batch_of(self, part: BatchAsked, schedule: Schedule) -> Batch:
        """A batch of chains, with the field bound to their rows."""
        seed = derive(self.seed, self.continues) if self.continues else self.seed
        noise = Noise(seed, part.ids, device=self.place.device, dtype=self.place.dtype)
        bound = self.bound(part.given)

        def begin_at(attempt: int = 0) -> Tensor:
            if self.start is not None:
                return tracked(aligned(self.start[part.given]))
            drawn: Any = noise if attempt == 0 else Later(step_by_step(noise), attempt)
            x = initial(self.model, drawn, self.place, spread_of(attempt))
            return tracked(traits(self.solver).start(bound, x, drawn))

        if not part.ids[part.returned]:  # these only tune
            schedule = Schedule(schedule.warmup, schedule.warmup, schedule.thin)
        restart = begin_at if self.start is None and not is_timed(self.model) else None
        drawn = self.start is None
        return Batch(bound, noise, begin_at, schedule, self.recorder(part), restart, drawn)

    def recorder(self, part: BatchAsked) -> Recorder:
        """The recorder of a batch's draws, which keeps them in the user's space."""
        kept: Recorder = RECORDERS[self.keep]
        if self.store is not None:
            kept = Streaming(self.store, part.given)
        elif self.keep == "all":
            kept = KeepAll(self.room, part.given)
        every = len(part.ids[part.returned]) == len(part.ids)
        recorder = kept if every else OfRows(kept, part.returned)
        constrain = optional(self.model, "constrain")
        return recorder if constrain is None else Constraining(recorder, constrain)

    def what_is_kept(self, schedule: Schedule) -> Kept:
        """How much the run keeps."""
        model, names = self.model, named(self.model)
        shape = optional(model, "constrained_shape") or event_shape_of(model)
        final = math.prod(int(n) for n in shape)
        more = names.layout.size if isinstance(names, Derived) else 0
        draws, streamed = schedule.kept_before(schedule.total), self.streamed
        chains, place = len(self.ids), self.place
        numbers = final + more, final, len({*traits(self.solver).reports} - TRUTHS)
        return Kept(self.keep, chains, draws, *numbers, place.dtype, place.device, streamed)

    def settings(self, schedule: Schedule) -> dict[str, Any]:
        """The settings that tell one run from another.

        A checkpoint is resumed only by a run with equal settings.
        """
        ids, place = self.ids, self.place
        told = {
            "pilot": self.pilot,
            "continues": self.continues or None,
            "packages": dict(self.packages) or None,
        }
        return {
            "model": self.origin,
            "exact_ends": (
                isinstance(self.model, Constrained) and self.model.log_density is not None
            ),
            "weights": weights_digest(field_tensors(self.model))[:16],
            "event_shape": list(event_shape_of(self.model)),
            "solver": stable_text(repr(self.solver)),
            "chains": len(ids) if ids == range(len(ids)) else repr(ids),
            "seed": self.seed,
            "steps": schedule.total - schedule.warmup,
            "warmup": schedule.warmup,
            **{name: value for name, value in told.items() if value is not None},
            "thin": schedule.thin,
            "keep": f"{self.keep}, streamed" if self.streamed else self.keep,
            "batch": self.batch,
            "device": place.device.type,
            "dtype": str(place.dtype).removeprefix("torch."),
            "compile": self.compiled,
            "init": None if self.start is None else tensor_digest({"init": self.start})[:16],
            "cond": tensor_digest(self.rows)[:16] if self.rows else None,
            "torch_state": _torch_state(place.device.type),
            **versions(),
            "python": platform.python_version(),
        }


def _schedule(
    solver: Any, bound: Bound, steps: int | None, warmup: int | None, thin: int | None, keep: str
) -> Schedule:
    if is_grid(solver):
        for name, value in (("steps", steps), ("warmup", warmup), ("thin", thin)):
            if value is not None:
                raise InvalidArgument(
                    name,
                    value,
                    f"nothing: {type(solver).__name__} carries its own grid",
                    f"Set it on the solver, or leave {name} out",
                )
        milestones = tuple(solver.milestones(bound))
        last = (False,) * (len(milestones) - 1) + (True,)
        return Schedule(
            len(milestones), kept=last if keep == "last" else milestones, milestones=milestones
        )
    n = 1000 if steps is None else count("steps", steps, least=1)
    tunes = adapts(solver)
    first = warmup or 0
    if tunes and first == 0:
        raise InvalidArgument(
            "warmup",
            0,
            f"at least one step, in which {type(solver).__name__} tunes itself",
            "Or give the solver its step_size (and length) and metric='none'",
        )
    every = 1 if thin is None else count("thin", thin, least=1)
    if every > n:
        raise InvalidArgument("thin", every, f"at most steps = {n}, so that a draw is kept")
    if keep == "last":
        return Schedule(first + n, first, kept=(False,) * (first + n - 1) + (True,))
    return Schedule(first + n, first, every)


def _torch_state(device: str) -> dict[str, Any]:
    """The settings of torch that change what a model computes.

    (The number of threads changes the last bits only.)
    """
    half = torch.is_autocast_enabled(device) if torch.amp.is_autocast_available(device) else False
    return {
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "autocast": str(torch.get_autocast_dtype(device)).removeprefix("torch.") if half else None,
        "float32_matmul": torch.get_float32_matmul_precision(),
    }
