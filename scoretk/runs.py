"""A run of many chains: batch after batch through the one loop, saved on the way, resumed where it stopped."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoretk.checkpoint import Checkpoint, check_header, is_count, read, unfit
from scoretk.compiling import Uncompilable
from scoretk.drive import Moment, Schedule, begin, drive, state_leaves, tuned_leaves, with_leaves
from scoretk.errors import CheckpointError, Status
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
    again: Callable[[int], Tensor] | None = None
    """Another attempt at a start, by its number from 1; None where chains that cannot start there are the user's."""


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
    run = _resume(batches, solver, recorder, checkpoint, settings)
    total = sum(b.schedule.total for b in batches)
    compiler = _Compiler(compiled)
    with Progress(progress, total) as shown, _saved_on_exit(run, recorder, batches, checkpoint, settings):
        for batch in batches[len(run.done) :]:
            run.moment = run.moment or _begin(solver, batch, run.done)
            before = sum(b.schedule.total for b in batches[: len(run.done)])
            for moment in _driven(run, solver, batch, recorder, compiler, recompute=recompute, on_failure=on_failure):
                run.moment = moment
                shown.update(before + moment.step, _failed(run))
                if checkpoint and checkpoint.due():
                    _save(run, recorder, batches, checkpoint, settings)
            run.done, run.moment = [*run.done, _finish(run.moment, batch.schedule, recorder, adapts(solver))], None
    return run.done


@dataclass
class _Compiler:
    """Whether the run is compiled, until the compiler fails."""

    used: bool


def _driven(
    run: _Run, solver: Any, batch: Batch, recorder: Recorder, compiler: _Compiler, *, recompute: bool, on_failure: str
) -> Iterator[Moment]:
    """The moments of a batch from the run's own on. Where the compiler cannot take the field, a warning, and eagerly on."""
    how: dict[str, Any] = {"recompute": recompute, "on_failure": on_failure}
    while True:
        assert run.moment is not None
        try:
            yield from drive(
                solver, batch.bound, batch.noise, run.moment, batch.schedule, recorder, compiled=compiler.used, **how
            )
            return
        except Uncompilable as failure:
            compiler.used = False
            warnings.warn(f"compile=True: not compiled, the run goes on eagerly. {failure}", stacklevel=4)


def _begin(solver: Any, batch: Batch, done: list[Finished]) -> Moment:
    """The first batch of a solver that warmup tunes learns; the others take over what it has learned."""
    warms = adapts(solver) and batch.schedule.warmup > 0
    tuned = done[0].tuned if warms and done else None
    return begin(
        solver, batch.bound, batch.start(), batch.noise, tunes=warms and not done, tuned=tuned, again=batch.again
    )


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


def _resume(
    batches: list[Batch], solver: Any, recorder: Recorder, checkpoint: Checkpoint | None, settings: dict[str, Any]
) -> _Run:
    """The run as a checkpoint has it; all of it is held to what this run could have written before any of it is used.

    Raises: `CheckpointError`; the file is only read.
    """
    if checkpoint is None or not checkpoint.file.exists():
        return _Run()
    tensors, header = read(checkpoint.file, settings)
    try:
        evaluations, now = _positions(header, batches)
        saved = _Saved(tensors)
        done = [
            _read_finished(saved.under(f"done/{i}/"), batch, spent)
            for i, (batch, spent) in enumerate(zip(batches, evaluations, strict=False))
        ]
        run, batch = _Run(done), batches[0]
        if now is None:
            template = begin(solver, batch.bound, batch.start(), batch.noise)
        else:
            batch = batches[len(done)]
            template = _begin(solver, batch, done)  # for its structure, shapes and devices
            run.moment = _read_moment(saved.under("now/"), batch, template, **now)
        saved.nothing_left()
        _check_positions(run, recorder.position(template.state.x))
    except (ValueError, KeyError, TypeError) as error:
        raise unfit(checkpoint.file, error) from error
    return run


def _check_positions(run: _Run, like: Tensor) -> None:
    """Hold every position that a run keeps to the dtype and event shape of one, x. Raises `ValueError`."""
    records = [f.record.tensors for f in run.done] + ([run.moment.record.tensors] if run.moment else [])
    positions = [f.final for f in run.done] + [t["x"].flatten(0, 1) for t in records if "x" in t]
    moments = [value for t in records for name, value in t.items() if name != "x"]  # in float64 where the device has it
    wrong = [x for x in positions if x.dtype != like.dtype] + [x for x in moments if not x.is_floating_point()]
    wrong += [x for x in positions + moments if x.shape[1:] != like.shape[1:]]
    for x in wrong:
        raise ValueError(f"it keeps {x.dtype} of shape {tuple(x.shape)} where x is {like.dtype} of {tuple(like.shape)}")


def _positions(header: dict[str, Any], batches: list[Batch]) -> tuple[list[int], dict[str, int] | None]:
    """The evaluations of each batch that is done, and where the one in flight is. Raises `ValueError`."""
    check_header(
        header,
        settings=lambda value: True,
        evaluations=lambda value: isinstance(value, list) and len(value) <= len(batches) and all(map(is_count, value)),
        now=lambda value: value is None or isinstance(value, dict),
    )
    evaluations, now = header["evaluations"], header["now"]
    if now is None:
        return evaluations, None
    if len(evaluations) == len(batches):
        raise ValueError("all batches are done and one is in flight")
    total = batches[len(evaluations)].schedule.total
    return evaluations, check_header(now, step=lambda value: is_count(value, total), evaluations=is_count)


class _Saved:
    """The tensors of a checkpoint: each is taken once, in the shape and dtype that it has to have."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.left = dict(tensors)

    def under(self, prefix: str) -> _Saved:
        """Those whose names begin with a prefix, by the rest of their names; they are taken from here."""
        names = [name for name in self.left if name.startswith(prefix)]
        return _Saved({name[len(prefix) :]: self.left.pop(name) for name in names})

    def take(self, name: str, like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
        """One tensor, with the dtype and on the device of another, and with its shape unless another is named."""
        if name not in self.left:
            raise ValueError(f"it has no {name}")
        value, shape = self.left.pop(name), tuple(like.shape) if shape is None else shape
        if value.dtype != like.dtype or tuple(value.shape) != shape:
            raise ValueError(f"{name} is {value.dtype} of shape {tuple(value.shape)}, not {like.dtype} of {shape}")
        return value.to(like.device)

    def take_all(self, chains: int, axes: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
        """All that is left, by name, each with the chains on one of these axes."""
        for name, value in self.left.items():
            if not any(value.ndim > axis and value.shape[axis] == chains for axis in axes):
                raise ValueError(f"{name} has shape {tuple(value.shape)}, for {chains} chains")
        taken, self.left = {name: value.to(device) for name, value in self.left.items()}, {}
        return taken

    def nothing_left(self) -> None:
        if self.left:
            raise ValueError(f"it holds {', '.join(sorted(self.left)[:3])} beside what belongs into it")


def _read_outcome(saved: _Saved, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
    """Status and step of failure of every chain of a batch of which so many steps are done."""
    status, failed_at = (saved.take(name, batch.noise.chains) for name in ("status", "failed_at"))
    known = torch.tensor([int(code) for code in Status], device=status.device)
    if not bool(torch.isin(status, known).all()):
        raise ValueError("status holds a code that there is not")
    if not bool(((failed_at >= -1) & (failed_at <= steps)).all()):
        raise ValueError("failed_at holds a step that there is not")
    return status, failed_at


def _read_record(saved: _Saved, batch: Batch, kept: int) -> Record:
    """What was kept of a batch: draws `(kept, chains, *event)`, or the last, or moments; and statistics."""
    chains, device = len(batch.noise.chains), batch.noise.chains.device
    record = Record.from_flat(saved.take_all(chains, (0, 1), device))
    if not record.tensors.keys() <= {"x", "mean", "m2"}:
        raise ValueError(f"it keeps {', '.join(sorted(record.tensors))}")
    x = record.tensors.get("x")
    if x is not None and (x.ndim < 2 or x.shape[1] != chains or len(x) not in (1, kept)):
        raise ValueError(f"it keeps draws of shape {tuple(x.shape)} of {chains} chains, where {kept} are kept")
    return record


def _read_finished(saved: _Saved, batch: Batch, evaluations: int) -> Finished:
    chains, device, total = len(batch.noise.chains), batch.noise.chains.device, batch.schedule.total
    status, failed_at = _read_outcome(saved, batch, total)
    record = _read_record(saved.under("record/"), batch, batch.schedule.kept_before(total))
    tuned = {name: value.to(device) for name, value in saved.under("tuned/").left.items()}
    final = saved.take_all(chains, (0,), device)
    if final.keys() != {"final"}:
        raise ValueError(f"a batch that is done has {', '.join(sorted(final)) or 'no final position'}")
    return Finished(final["final"], status, failed_at, record, evaluations, tuned)


def _read_moment(saved: _Saved, batch: Batch, template: Moment, step: int, evaluations: int) -> Moment:
    status, failed_at = _read_outcome(saved, batch, step)
    record = _read_record(saved.under("record/"), batch, batch.schedule.kept_before(step))
    state, tuning = saved.under("state/"), saved.under("tuning/")
    leaves = {name: state.take(name, value) for name, value in state_leaves(template.state).items()}
    restored = None
    if template.tuning is not None and tuning.left:
        like = state_leaves(template.tuning)
        restored = with_leaves(template.tuning, {name: tuning.take(name, value) for name, value in like.items()})
    for part in (saved, state, tuning):
        part.nothing_left()
    return Moment(
        with_leaves(template.state, leaves), status, failed_at, step, _with_room(record, batch.schedule, step),
        evaluations, restored, template.reach,
    )  # fmt: skip


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
