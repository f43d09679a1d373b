"""A run of many chains: batch after batch through the one loop, saved on the way, resumed where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoretk.checkpoint import Checkpoint, read
from scoretk.drive import Moment, Schedule, begin, drive, state_leaves, tuned_leaves, with_leaves
from scoretk.errors import CheckpointError
from scoretk.progress import Progress
from scoretk.record import Record, Recorder
from scoretk.solvers.base import adapts

__all__ = ["Batch", "Finished", "run_batches"]


@dataclass(frozen=True)
class Batch:
    """What is one batch's own: its field with condition rows bound, its noise, and where it starts."""

    bound: Any
    noise: Any
    start: Callable[[], Tensor]
    schedule: Schedule


@dataclass
class Finished:
    """What is left of a batch when it has run."""

    final: Tensor
    status: Tensor
    failed_at: Tensor
    record: Record
    evaluations: int
    tuned: dict[str, Tensor] = field(default_factory=dict)

    def flat(self) -> dict[str, Tensor]:
        """All tensors by name."""
        own = {"final": self.final, "status": self.status, "failed_at": self.failed_at}
        tuned = {f"tuned/{n}": v for n, v in self.tuned.items()}
        return own | tuned | {f"record/{n}": v for n, v in self.record.flat().items()}


@dataclass
class _Run:
    """A run in flight: the batches that are done and the moment of the one that is not."""

    done: list[Finished] = field(default_factory=list)
    moment: Moment | None = None


def run_batches(
    batches: list[Batch],
    solver: Any,
    recorder: Recorder,
    *,
    compiled: bool,
    recompute: bool,
    on_failure: str,
    checkpoint: Checkpoint | None,
    settings: dict[str, Any],
    progress: bool | None,
) -> list[Finished]:
    """Run every batch to its end.

    With a checkpoint the run is saved when due, at its end, and when anything stops it (Ctrl-C, a model's error); where
    the file exists already the run goes on from it. Raises what `drive` and `checkpoint.read` raise.
    """
    run = _resume(batches, solver, checkpoint, settings)
    total = sum(b.schedule.total for b in batches)
    with Progress(progress, total) as shown, _saved_on_exit(run, recorder, batches, checkpoint, settings):
        for batch in batches[len(run.done) :]:
            run.moment = run.moment or _begin(solver, batch, run.done)
            before = sum(b.schedule.total for b in batches[: len(run.done)])
            for moment in drive(
                solver, batch.bound, batch.noise, run.moment, batch.schedule, recorder,
                compiled=compiled, recompute=recompute, on_failure=on_failure,
            ):  # fmt: skip
                run.moment = moment
                shown.update(before + moment.step, _failed(run))
                if checkpoint and checkpoint.due():
                    _save(run, recorder, batches, checkpoint, settings)
            run.done, run.moment = [*run.done, _finish(run.moment, batch.schedule, recorder, adapts(solver))], None
    return run.done


def _begin(solver: Any, batch: Batch, done: list[Finished]) -> Moment:
    """The first batch of a solver that warmup tunes learns; the others take over what it has learned."""
    warms = adapts(solver) and batch.schedule.warmup > 0
    tuned = done[0].tuned if warms and done else None
    return begin(solver, batch.bound, batch.start(), batch.noise, tunes=warms and not done, tuned=tuned)


def _finish(moment: Moment, schedule: Schedule, recorder: Recorder, tuned: bool) -> Finished:
    kept = schedule.kept_before(schedule.total)
    failed_at = moment.failed_at
    if schedule.milestones is not None:
        as_intervals = [schedule.interval(s) if s >= 0 else -1 for s in failed_at.tolist()]
        failed_at = torch.tensor(as_intervals, dtype=failed_at.dtype, device=failed_at.device)
    record = recorder.filled(moment.record, kept)
    leaves = tuned_leaves(moment.state) if tuned else {}
    return Finished(recorder.position(moment.state.x), moment.status, failed_at, record, moment.evaluations, leaves)


def _failed(run: _Run) -> int:
    now = int((run.moment.status != 0).sum()) if run.moment else 0
    return now + sum(int((f.status != 0).sum()) for f in run.done)


@contextmanager
def _saved_on_exit(
    run: _Run,
    recorder: Recorder,
    batches: list[Batch],
    checkpoint: Checkpoint | None,
    settings: dict[str, Any],
) -> Iterator[None]:
    """Save at the end, and also when something stops the run; then that something goes on its way."""
    if checkpoint is None:
        yield
        return
    checkpoint.begin()
    try:
        yield
    except BaseException as error:
        if not isinstance(error, CheckpointError):
            try:
                _save(run, recorder, batches, checkpoint, settings)
                error.add_note(f"The run so far is in {checkpoint.path}: the same call goes on from there.")
            except CheckpointError as second:
                error.add_note(str(second))
        raise
    _save(run, recorder, batches, checkpoint, settings)


def _save(
    run: _Run, recorder: Recorder, batches: list[Batch], checkpoint: Checkpoint, settings: dict[str, Any]
) -> None:
    tensors = {f"done/{i}/{n}": v for i, f in enumerate(run.done) for n, v in f.flat().items()}
    header: dict[str, Any] = {
        "settings": settings,
        "evaluations": [f.evaluations for f in run.done],
        "now": None,
    }
    if run.moment is not None:
        m, schedule = run.moment, batches[len(run.done)].schedule
        record = recorder.filled(m.record, schedule.kept_before(m.step))
        tensors |= {f"now/state/{n}": v for n, v in state_leaves(m.state).items()}
        tensors |= {f"now/record/{n}": v for n, v in record.flat().items()}
        tensors |= {"now/status": m.status, "now/failed_at": m.failed_at}
        if m.tuning is not None:
            tensors |= {f"now/tuning/{n}": v for n, v in state_leaves(m.tuning).items()}
        header["now"] = {"step": m.step, "evaluations": m.evaluations}
    checkpoint.save(tensors, header)


def _resume(batches: list[Batch], solver: Any, checkpoint: Checkpoint | None, settings: dict[str, Any]) -> _Run:
    if checkpoint is None or not checkpoint.file.exists():
        return _Run()
    tensors, header = read(checkpoint.file, settings)
    done = []
    for i, evaluations in enumerate(header["evaluations"]):
        part = _under(tensors, f"done/{i}/", batches[i])
        record = Record.from_flat({n[7:]: v for n, v in part.items() if n.startswith("record/")})
        tuned = {n[6:]: v for n, v in part.items() if n.startswith("tuned/")}
        done.append(Finished(part["final"], part["status"], part["failed_at"], record, evaluations, tuned))
    if header["now"] is None:
        return _Run(done)
    batch = batches[len(done)]
    now = _under(tensors, "now/", batch)
    template = _begin(solver, batch, done)  # for its structure and its devices
    leaves = {n: now[f"state/{n}"].to(v.device) for n, v in state_leaves(template.state).items()}
    record = Record.from_flat({n[7:]: v for n, v in now.items() if n.startswith("record/")})
    moment = Moment(
        with_leaves(template.state, leaves), now["status"], now["failed_at"], header["now"]["step"],
        _with_room(record, batch.schedule, header["now"]["step"]), header["now"]["evaluations"],
        _restored(template.tuning, {n[7:]: v for n, v in now.items() if n.startswith("tuning/")}),
    )  # fmt: skip
    return _Run(done, moment)


def _restored(template: Any, leaves: dict[str, Tensor]) -> Any:
    if template is None or not leaves:
        return None
    return with_leaves(template, {n: leaves[n].to(v.device) for n, v in state_leaves(template).items()})


def _under(tensors: dict[str, Tensor], prefix: str, batch: Batch) -> dict[str, Tensor]:
    device = batch.noise.chains.device
    return {n[len(prefix) :]: v.to(device) for n, v in tensors.items() if n.startswith(prefix)}


def _with_room(record: Record, schedule: Schedule, step: int) -> Record:
    """A record of all draws, which was saved as far as it was filled, with room for the rest."""
    kept, total = schedule.kept_before(step), schedule.kept_before(schedule.total)
    if "x" not in record.tensors or len(record.tensors["x"]) != kept or "mean" in record.tensors or kept == total:
        return record
    return Record(*({n: _grown(v, total) for n, v in part.items()} for part in (record.tensors, record.stats)))


def _grown(value: Tensor, total: int) -> Tensor:
    room = value.new_empty((total, *value.shape[1:]))
    room[: len(value)] = value
    return room
