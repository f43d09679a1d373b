"""A run of many chains: batch after batch through the one loop, saved on the way, and resumed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretk.core.compiling import Uncompilable
from scoretk.core.identity import Identity, differences, is_summary
from scoretk.core.sealed import check_header, is_count
from scoretk.errors import CheckpointError, Status
from scoretk.fields.protocols import offers
from scoretk.fields.resolve import StaticField
from scoretk.fields.validation import refuses
from scoretk.run.begun import warn_of_base
from scoretk.run.capture import CALL
from scoretk.run.checkpoint import Checkpoint, another, check_settings, load, unfit
from scoretk.run.drive import drive
from scoretk.run.independence import check_rows_apart
from scoretk.run.moment import Loop, Moment, begin, failures, outcome
from scoretk.run.outwards import check_grows
from scoretk.run.progress import ProgressBar
from scoretk.run.record import Record, Recorder
from scoretk.run.schedule import Schedule
from scoretk.run.slopes import check_slopes
from scoretk.run.state import state_leaves, tuned_leaves, with_leaves
from scoretk.run.witness import contradiction, witness
from scoretk.solvers.base import adapts, is_grid, is_tuned

__all__ = ["Batch", "Finished", "Saving", "run_batches"]


@dataclass(frozen=True)
class Batch:
    """What is a batch's own.

    Args:
        bound: The field with the condition rows of its chains bound.
        noise: The noise of its chains.
        start: Makes the positions at the start, `(chains, *event_shape)`.
        schedule: Which steps it makes, and which are kept.
        recorder: What is kept of them.
        restart: Makes another attempt at a start, by its number from 1; None where the user has given
            the start.
        drawn: Whether the start is drawn for the run, not given by the user.
    """

    bound: Any
    noise: Any
    start: Callable[[], Tensor]
    schedule: Schedule
    recorder: Recorder
    restart: Callable[[int], Tensor] | None = None
    drawn: bool = False


@dataclass
class Finished:
    """The outcome of a batch.

    Args:
        final: The last positions, as they are kept, `(rows, *event_shape)`, of the chains that are
            asked for.
        status: The `Status` code of each chain, `(chains,)`.
        failed_at: The step at which each failed, as users count it, or -1, `(chains,)`.
        record: What was kept, of the chains that are asked for.
        evaluations: How many evaluations its steps reported.
        restarts: How many starts of chains were made again.
        tuned: What warmup has tuned, by name.
    """

    final: Tensor
    status: Tensor
    failed_at: Tensor
    record: Record
    evaluations: int
    restarts: int
    tuned: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class _Run:
    """A run that is going on.

    Args:
        moments: The moments of batches by number, from their beginning as long as they are needed.
        changed: Names of parts of the field that the run had changed before it was resumed.
    """

    moments: dict[int, Moment] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Saving:
    """Where a run is saved, and what tells it from others.

    Args:
        checkpoint: Where it is saved, and how often.
        settings: The settings of the run, plain values.
        identity: The identity of field and solver.
        extends: Whether a checkpoint of fewer steps may be extended; not where the solver's grid
            decides how many there are.
    """

    checkpoint: Checkpoint
    settings: dict[str, Any]
    identity: Identity
    extends: bool


def run_batches(
    batches: list[Batch],
    solver: Any,
    *,
    compiled: bool,
    recompute: bool,
    on_failure: str,
    saving: Saving | None,
    progress: bool | None,
) -> list[Finished]:
    """Run every batch to its end.

    With a checkpoint the run is saved when due, at its end, and when anything stops it (Ctrl-C, a
    model's error); where the file exists already the run goes on from it.

    Args:
        batches: The batches, of which the first tunes the solver.
        solver: The solver.
        compiled: Whether steps are compiled.
        recompute: As in `drive`.
        on_failure: As in `drive`.
        saving: How the run is saved, None for not at all.
        progress: Whether a progress line is shown, None for on a terminal.

    Returns:
        The outcomes, one for each batch.

    Raises:
        ChainFailure: As `drive`.
        CheckpointError: Where the checkpoint is damaged, another run's, or cannot be written.
    """
    run = _resume(batches, solver, saving)
    total, finished, lost = sum(b.schedule.total for b in batches), list[Finished](), 0
    compiler = _Compiler(compiled)
    with ProgressBar(progress, total) as shown, _saved_on_exit(run, solver, batches, saving):
        for i, batch in enumerate(batches):
            if i not in run.moments:
                run.moments[i] = _begin(solver, batch, finished[0].tuned if finished else None)
                if finished and adapts(solver) and bool((finished[0].failed_at == 0).all()):
                    run.moments[i] = _untuned(run.moments[i])
                if i == 0:
                    x = run.moments[i].state.x
                    check_rows_apart(batch.bound, solver.needs, x, total)
                    check_grows(batch.bound, x, total)
                    check_slopes(batch.bound, solver, x, total)
                    if batch.drawn and is_grid(solver):
                        warn_of_base(batch.bound, x, total)
            if compiler.used and not i:
                compiler.used = _compilable(batch.bound, run.moments[i].state.x)
            for moment in _driven(
                run, i, solver, batch, compiler, recompute=recompute, on_failure=on_failure
            ):
                run.moments[i] = moment
                done = sum(b.schedule.total for b in batches[:i]) + moment.step
                shown.update(done, lost + moment.failed)
                if saving and saving.checkpoint.due():
                    _save(run, batches, saving, _asked(run, solver, batches))
            finished.append(_finish(run.moments[i], batch, is_tuned(solver)))
            lost += failures(finished[-1].status)
            batch.noise.forget()
            if saving is None:
                del run.moments[i]  # and with it the memory of its state
    return finished


@dataclass
class _Compiler:
    """Whether the run is compiled, until the compiler fails."""

    used: bool


def _compilable(bound: Any, x: Tensor) -> bool:
    """Whether a compiled run samples the law that an eager one does; warns where it does not.

    The compiler leaves out the checks of `torch.distributions`, which say where a density is zero.
    """
    if not isinstance(bound, StaticField) or "states" in offers(bound.native):
        return True
    ask, refused = bound.energy if "energy" in offers(bound.native) else bound.score, None
    with suppress(Exception):  # what a model raises, the run will
        refused = refuses(ask, x.detach())
    if refused is not None:
        warnings.warn(
            "compile=True: not compiled, the run goes on eagerly. The field is made of "
            "distributions with a support, whose checks the compiler leaves out: chains would "
            f"leave it. {refused[:300]}. Put the field under its support, scoretk.constrained, or "
            "let it say where its energy is infinite",
            stacklevel=4,
        )
    return refused is None


def _driven(
    run: _Run,
    i: int,
    solver: Any,
    batch: Batch,
    compiler: _Compiler,
    *,
    recompute: bool,
    on_failure: str,
) -> Iterator[Moment]:
    """The moments of a batch, from that of the run on.

    Where the compiler cannot take the field it warns, and the batch goes on eagerly.
    """
    loop = Loop(solver, batch.bound, batch.noise, batch.schedule, batch.recorder)
    while True:
        try:
            yield from drive(
                loop,
                run.moments[i],
                compiled=compiler.used,
                recompute=recompute,
                on_failure=on_failure,
            )
            return
        except Uncompilable as failure:
            compiler.used = False
            warnings.warn(
                f"compile=True: not compiled, the run goes on eagerly. {failure}", stacklevel=4
            )


def _begin(solver: Any, batch: Batch, tuned: dict[str, Tensor] | None) -> Moment:
    """The first moment of a batch, which tunes the solver where `tuned` is None and it has to be.

    Other batches take over what the first one has tuned.
    """
    warms = adapts(solver) and batch.schedule.warmup > 0
    tunes, taken = warms and tuned is None, tuned if warms else None
    return begin(
        solver,
        batch.bound,
        batch.start(),
        batch.noise,
        tunes=tunes,
        tuned=taken,
        restart=batch.restart,
    )


def _untuned(moment: Moment) -> Moment:
    """A batch whose pilot failed at its start, every chain: there is nothing to run it with."""
    return replace(
        moment,
        status=torch.full_like(moment.status, int(Status.NONFINITE)),
        failed_at=torch.zeros_like(moment.failed_at),
        failed=len(moment.status),
    )


def _finish(moment: Any, batch: Batch, tuned: bool) -> Finished:
    schedule, recorder = batch.schedule, batch.recorder
    kept = schedule.kept_before(schedule.total)
    status, failed_at = outcome(moment)
    if schedule.milestones is not None:
        as_intervals = [schedule.interval(s) if s >= 0 else -1 for s in failed_at.tolist()]
        failed_at = torch.tensor(as_intervals, dtype=failed_at.dtype, device=failed_at.device)
    record = recorder.filled(moment.record, kept)
    leaves = tuned_leaves(moment.state) if tuned else {}
    return Finished(
        recorder.position(moment.state.x),
        status,
        failed_at,
        record,
        int(moment.evaluations),
        moment.restarts,
        leaves,
    )


@contextmanager
def _saved_on_exit(
    run: _Run, solver: Any, batches: list[Batch], saving: Saving | None
) -> Iterator[None]:
    """A context that saves the run at its end, and when an exception stops it, which is raised on."""
    if saving is None:
        yield
        return
    saving.checkpoint.begin()
    try:
        yield
    except BaseException as error:
        if not isinstance(error, CheckpointError):
            try:
                _save(run, batches, saving, _asked_at_last(run, solver, batches))
                error.add_note(
                    f"The run so far is in {saving.checkpoint.path}: the same call goes on from "
                    f"there."
                )
            except CheckpointError as second:
                error.add_note(str(second))
        raise
    _save(run, batches, saving, _asked_at_last(run, solver, batches))


def _asked(run: _Run, solver: Any, batches: list[Batch]) -> dict[str, Tensor]:
    """What the field answers at the last moment; a model's own errors are raised on."""
    if not run.moments:
        return {}
    i, moment = max(run.moments.items(), key=lambda item: item[0])
    return witness(batches[i].bound, solver.needs, moment.state.x)


def _asked_at_last(run: _Run, solver: Any, batches: list[Batch]) -> dict[str, Tensor]:
    """As `_asked` when the run is over: a model that fails then does not keep it from being saved."""
    try:
        return _asked(run, solver, batches)
    except Exception:  # noqa: BLE001 (whatever a model raises)
        return {}


def _save(run: _Run, batches: list[Batch], saving: Saving, said: dict[str, Tensor]) -> None:
    """Write all moments by the numbers of their batches, and what the field answered at the last."""
    tensors = {f"witness/{name}": value for name, value in said.items()}
    for i, m in run.moments.items():
        batch = batches[i]
        record = batch.recorder.filled(m.record, batch.schedule.kept_before(m.step))
        parts = {"state": state_leaves(m.state), "record": record.flat()}
        if m.tuning is not None and m.step < batch.schedule.warmup:
            parts["tuning"] = state_leaves(m.tuning)
        tensors |= {
            f"{i}/{kind}/{name}": v for kind, part in parts.items() for name, v in part.items()
        }
        tensors |= {f"{i}/status": m.status, f"{i}/failed_at": m.failed_at}
        if m.looks is not None:
            tensors[f"{i}/looks"] = m.looks
    saving.checkpoint.save(
        tensors,
        {
            "settings": saving.settings,
            "identity": saving.identity.summary({*run.changed, *saving.identity.changing()}),
            "batches": [
                {"step": m.step, "evaluations": int(m.evaluations)} for m in run.moments.values()
            ],
        },
    )


def _resume(batches: list[Batch], solver: Any, saving: Saving | None) -> _Run:
    """The run as a checkpoint has it, or a new one; the file is only read.

    All of the checkpoint is compared with what this run could have written before it is used.

    Raises:
        CheckpointError: Where it is damaged, another run's, or does not fit.
    """
    if saving is None or not saving.checkpoint.file.exists():
        return _Run()
    path = saving.checkpoint.file
    tensors, header = load(path)
    run = _Run()
    try:
        check_header(
            header,
            settings=lambda v: isinstance(v, dict),
            identity=is_summary,
            batches=lambda v: isinstance(v, list) and len(v) <= len(batches),
        )
        _check_whose(path, header, saving)
        run.changed = header["identity"]["changing"]
        saved = _Saved(tensors)
        said = saved.under("witness/").left
        for i, (batch, position) in enumerate(zip(batches, header["batches"], strict=False)):
            most = min(
                batch.schedule.total, header["settings"]["steps"] + header["settings"]["warmup"]
            )
            check_header(position, step=partial(is_count, most=most), evaluations=is_count)
            tuned = tuned_leaves(run.moments[0].state) if i else None
            run.moments[i] = _read_moment(saved.under(f"{i}/"), solver, batch, tuned, **position)
        saved.nothing_left()
        other = (
            contradiction(batch.bound, solver.needs, _held(said, run.moments[i].state.x))
            if run.moments
            else None
        )
    except (ValueError, KeyError, TypeError) as error:
        raise unfit(path, error) from error
    if other is not None:
        raise another(path, [other])
    return run


def _check_whose(path: Path, header: dict[str, Any], saving: Saving) -> None:
    """Refuse a checkpoint with other settings, of another field or solver, or of a longer run.

    Raises:
        CheckpointError: In that case.
    """
    theirs, ours, shorter = dict(header["settings"]), saving.settings, list[str]()
    before, asked = theirs.get("steps"), ours["steps"]
    if saving.extends and is_count(before) and before != asked:
        if before > asked:
            shorter = [
                f"it is of a run of {before} steps, and steps={asked} asks for fewer: a run can be "
                f"extended, not shortened"
            ]
        loose = [
            b["step"]
            for b in header["batches"]
            if b["step"] % CALL and b["step"] == before + theirs["warmup"]
        ]
        if ours["compile"] and loose:
            raise CheckpointError(
                f"{path} ends after {loose[0]} steps: a compiled run is extended from a multiple "
                f"of {CALL} steps, since the "
                "last few are not made by compiled code. Start afresh at another path"
            )
        theirs["steps"] = asked
    if _is_device(theirs.get("device")):
        theirs["device"] = ours["device"]  # the noise is the same on all, and the rest to rounding
    summary = saving.identity.summary(header["identity"]["changing"])
    check_settings(path, theirs, ours, [*shorter, *differences(header["identity"], summary)])


def _is_device(kind: Any) -> bool:
    """Whether it is the type of a device, such as "cuda"."""
    try:
        return isinstance(kind, str) and torch.device(kind).type == kind
    except RuntimeError:
        return False


def _held(said: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The answers of a field in a checkpoint, checked to be of the form of such answers.

    Raises:
        ValueError: Where they are not.
    """
    if not said:
        return said
    rows, at = said.get("rows"), said.get("x")
    if rows is None or at is None or rows.dtype != torch.int64:
        raise ValueError("what the field has answered is not there as a whole")
    if at.dtype != x.dtype or at.shape != (len(rows), *x.shape[1:]):
        raise ValueError("what the field has answered is not kept as it should be")
    if not bool(((rows >= 0) & (rows < len(x))).all()):
        raise ValueError("what the field has answered is of chains that there are not")
    return {name: value.to(x.device) for name, value in said.items()}


class _Saved:
    """The tensors of a checkpoint, each taken once, in the shape and dtype that it must have.

    Args:
        tensors: By name.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.left = dict(tensors)

    def under(self, prefix: str) -> _Saved:
        """Take those whose names begin with a prefix, by the rest of their names."""
        names = [name for name in self.left if name.startswith(prefix)]
        return _Saved({name[len(prefix) :]: self.left.pop(name) for name in names})

    def take(self, name: str, like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
        """Take one tensor.

        Args:
            name: Its name.
            like: A tensor with its dtype, on the device where it will be.
            shape: Its shape, None for that of `like`.

        Raises:
            ValueError: Where it is missing, or has another dtype or shape.
        """
        if name not in self.left:
            raise ValueError(f"it has no {name}")
        value, shape = self.left.pop(name), tuple(like.shape) if shape is None else shape
        if value.dtype != like.dtype or tuple(value.shape) != shape:
            raise ValueError(
                f"{name} is {value.dtype} of shape {tuple(value.shape)}, not {like.dtype} of "
                f"{shape}"
            )
        return value.to(like.device)

    def take_all(
        self, chains: int, axes: tuple[int, ...], device: torch.device
    ) -> dict[str, Tensor]:
        """Take all that is left, by name, each with the chains on one of these axes.

        Raises:
            ValueError: Where one has not.
        """
        for name, value in self.left.items():
            if not any(value.ndim > axis and value.shape[axis] == chains for axis in axes):
                raise ValueError(f"{name} has shape {tuple(value.shape)}, for {chains} chains")
        taken, self.left = {name: value.to(device) for name, value in self.left.items()}, {}
        return taken

    def nothing_left(self) -> None:
        if self.left:
            raise ValueError(
                f"it holds {', '.join(sorted(self.left)[:3])} beside what belongs into it"
            )


def _read_outcome(saved: _Saved, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
    """The status and the step of failure of every chain of a batch after so many steps.

    Raises:
        ValueError: Where they hold codes or steps that do not exist.
    """
    status, failed_at = (saved.take(name, batch.noise.chains) for name in ("status", "failed_at"))
    known = torch.tensor([int(code) for code in Status], device=status.device)
    if not bool(torch.isin(status, known).all()):
        raise ValueError("status holds a code that there is not")
    if not bool(((failed_at >= -1) & (failed_at <= steps)).all()):
        raise ValueError("failed_at holds a step that there is not")
    return status, failed_at


def _read_record(saved: _Saved, batch: Batch, chains: int, kept: int) -> Record:
    """What was kept of a batch: draws `(kept, chains, *event)`, the last one or moments, and stats.

    Args:
        saved: What is there.
        batch: The batch.
        chains: How many of its chains are asked for.
        kept: How many draws.

    Raises:
        ValueError: Where it is none of these.
    """
    record = Record.from_flat(saved.take_all(chains, (0, 1), batch.noise.chains.device))
    if not record.tensors.keys() <= {"x", "mean", "m2"}:
        raise ValueError(f"it keeps {', '.join(sorted(record.tensors))}")
    x = record.tensors.get("x")
    if x is not None and (x.ndim < 2 or x.shape[1] != chains or len(x) not in (1, kept)):
        raise ValueError(
            f"it keeps draws of shape {tuple(x.shape)} of {chains} chains, where {kept} are kept"
        )
    return record


def _read_moment(
    saved: _Saved,
    solver: Any,
    batch: Batch,
    tuned: dict[str, Tensor] | None,
    step: int,
    evaluations: int,
) -> Moment:
    """The moment of a batch, checked to have the form that a run of this field and solver has.

    Raises:
        ValueError: Where it has not.
    """
    if step < batch.schedule.warmup:
        template = _begin(solver, batch, tuned)
    else:
        template = begin(solver, batch.bound, batch.start(), batch.noise, restart=batch.restart)
    status, failed_at = _read_outcome(saved, batch, step)
    looks = None if template.looks is None else saved.take("looks", template.looks)
    like, kept = batch.recorder.position(template.state.x), batch.schedule.kept_before(step)
    record = _read_record(saved.under("record/"), batch, len(like), kept)
    state, tuning = saved.under("state/"), saved.under("tuning/")
    leaves = {name: state.take(name, value) for name, value in state_leaves(template.state).items()}
    restored = None
    if template.tuning is not None and tuning.left:
        parts = state_leaves(template.tuning)
        restored = with_leaves(
            template.tuning, {name: tuning.take(name, value) for name, value in parts.items()}
        )
    for part in (saved, state, tuning):
        part.nothing_left()
    _check_positions(record, like)
    return replace(
        template,
        state=with_leaves(template.state, leaves),
        status=status,
        failed_at=failed_at,
        failed=failures(status),
        step=step,
        record=batch.recorder.restored(
            record, kept, batch.schedule.kept_before(batch.schedule.total)
        ),
        evaluations=evaluations,
        tuning=restored,
        looks=looks,
    )


def _check_positions(record: Record, like: Tensor) -> None:
    """Check that all positions that are kept have the dtype and the event shape of `like`.

    Raises:
        ValueError: Where one has not.
    """
    for name, value in record.tensors.items():
        # moments are in float64 where the device has it
        rows = value.flatten(0, 1) if name == "x" else value
        fits = rows.dtype == like.dtype if name == "x" else rows.is_floating_point()
        if not fits or rows.shape[1:] != like.shape[1:]:
            raise ValueError(
                f"it keeps {rows.dtype} of shape {tuple(rows.shape)} where x is {like.dtype} of "
                f"{tuple(like.shape)}"
            )
