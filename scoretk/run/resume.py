"""What a file holds of a run of many chains, and how it is taken up again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretk.core.identity import Identity, differences, is_summary
from scoretk.core.sealed import Stored, check_header, is_count
from scoretk.errors import CheckpointError, Status
from scoretk.run.batch import Batch, begin_batch
from scoretk.run.capture import CALL
from scoretk.run.checkpoint import MANIFEST, Checkpoint, another, check_settings, opened, unfit
from scoretk.run.moment import Moment, begin, failures
from scoretk.run.state import state_leaves, tuned_leaves, with_leaves
from scoretk.run.witness import contradiction
from scoretk.solvers.base import traits

__all__ = ["Saving", "awaited_store", "check_whose", "contents", "header_of", "read_moments"]

SINCE = {"alone": True, "energies": 0}
"""What files of before 2026-11-29 do not say of a batch, and what it was."""
HALF = ("half_mean", "half_m2", "half_draws")
"""What a record of moments has beside them, from half of the draws on."""


@dataclass(frozen=True)
class Saving:
    """Where a run is saved, and the settings and identity that tell it from others.

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


def contents(
    moments: dict[int, Moment],
    batches: list[Batch],
    saving: Saving,
    changed: Iterable[str],
    said: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a file with moments, by the numbers of their batches.

    Args:
        moments: The moments.
        batches: All batches of the run.
        saving: How the run is saved.
        changed: Names of parts of the field that the run had changed before it was resumed.
        said: What the field answers at the last moment.
    """
    tensors = {f"witness/{name}": value for name, value in said.items()}
    for i, m in moments.items():
        batch = batches[i]
        kept = batch.schedule.kept_before(m.step)
        batch.recorder.flushed(m.record, kept, m.status, m.failed_at)
        record = batch.recorder.filled(m.record, kept)
        parts = {"state": state_leaves(m.state), "record": record.flat()}
        if m.tuning is not None and m.step < batch.schedule.warmup:
            parts["tuning"] = state_leaves(m.tuning)
        tensors |= {
            f"{i}/{kind}/{name}": v for kind, part in parts.items() for name, v in part.items()
        }
        tensors |= {f"{i}/status": m.status, f"{i}/failed_at": m.failed_at}
        if m.looks is not None:
            tensors[f"{i}/looks"] = m.looks
    header = header_of(saving, changed)
    header["batches"] = [
        {
            "step": m.step,
            "evaluations": int(m.evaluations),
            "energies": int(m.energies),
            "alone": m.alone,
        }
        for m in moments.values()
    ]
    return tensors, header


def header_of(saving: Saving, changed: Iterable[str]) -> dict[str, Any]:
    """The settings of a run, and the identity of its field and solver."""
    summary = saving.identity.summary({*changed, *saving.identity.changing()})
    return {"settings": saving.settings, "identity": summary}


def read_moments(
    path: Path,
    kind: str,
    numbers: Sequence[int],
    batches: list[Batch],
    solver: Any,
    saving: Saving,
    tuned: dict[str, Tensor] | None = None,
) -> tuple[dict[int, Moment], list[str]]:
    """The moments in a checkpoint, by the numbers of their batches; the file is only read.

    All of the checkpoint is compared with what this run could have written before it is used.

    Args:
        path: The file.
        kind: What has to be in it.
        numbers: The numbers of the batches that may be in it; the first ones are.
        batches: All batches of the run.
        solver: The solver.
        saving: How the run is saved.
        tuned: What the pilot has tuned, where it is in another file.

    Returns:
        The moments, and the names of parts of the field that the run had changed.

    Raises:
        CheckpointError: Where it is damaged, another run's, or does not fit.
    """
    tensors, header = opened(path, kind)
    moments = dict[int, Moment]()
    try:
        check_header(
            header,
            settings=lambda v: isinstance(v, dict),
            identity=is_summary,
            batches=lambda v: isinstance(v, list),
        )
        check_whose(path, header, saving)
        if len(header["batches"]) > len(numbers):
            raise ValueError(f"it has {len(header['batches'])} batches, not {len(numbers)}")
        saved = _Saved(tensors)
        said = saved.under("witness/").read()
        for i, position in zip(numbers, header["batches"], strict=False):
            batch = batches[i]
            most = min(
                batch.schedule.total, header["settings"]["steps"] + header["settings"]["warmup"]
            )
            position = SINCE | position
            taken = partial(_is_taken, solver, batch)
            check_header(
                position,
                step=partial(is_count, most=most),
                evaluations=taken,
                energies=taken,
                alone=_is_switch,
            )
            told = tuned_leaves(moments[0].state) if i and 0 in moments else tuned
            moments[i] = _read_moment(saved.under(f"{i}/"), solver, batch, told, **position)
        saved.nothing_left()
        if moments:
            other = contradiction(batch.bound, solver.needs, _held(said, moments[i].state.x))
        else:
            other = None
    except (ValueError, KeyError, TypeError) as error:
        raise unfit(path, error) from error
    if other is not None:
        raise another(path, [other])
    return moments, list(header["identity"]["changing"])


def awaited_store(saved: Path, kept_before: Callable[[int], int]) -> str | None:
    """The number of the store that a run waits for that was saved before its first draw.

    A store is made at the first draw: a run that was killed in its warmup has none yet.

    Args:
        saved: The checkpoint, a file or a folder.
        kept_before: How many draws a batch has after so many steps.

    Returns:
        None where there are draws, which are to be in a store, or where nothing can be read.
    """
    kinds = {saved: "run"} if saved.is_file() else {saved / MANIFEST: "manifest"}
    kinds |= dict.fromkeys(saved.glob("batch-*.safetensors"), "batch")
    try:
        headers = {path: opened(path, kind)[1] for path, kind in kinds.items()}
        steps = [b["step"] for p, h in headers.items() if p.name != MANIFEST for b in h["batches"]]
        waits = all(kept_before(step) == 0 for step in steps)
        return str(next(iter(headers.values()))["settings"]["store"]) if waits else None
    except (CheckpointError, KeyError, TypeError):  # told when the run is taken up
        return None


def check_whose(path: Path, header: dict[str, Any], saving: Saving) -> None:
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
            if b.get("alone", True) and b["step"] % CALL and b["step"] == before + theirs["warmup"]
        ]
        if ours["compile"] and loose:
            raise CheckpointError(
                f"{path} ends after {loose[0]} steps, the last few of which were not made by compiled "
                f"code: such a run is extended from a multiple of {CALL} steps. Start afresh at "
                "another path"
            )
        theirs["steps"] = asked
    if _is_device(theirs.get("device")):
        theirs["device"] = ours["device"]  # the noise is the same on all, and the rest to rounding
    summary = saving.identity.summary(header["identity"]["changing"])
    check_settings(path, theirs, ours, [*shorter, *differences(header["identity"], summary)])


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


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

    def __init__(self, tensors: Mapping[str, Stored]) -> None:
        self.left = dict(tensors)

    def read(self) -> dict[str, Tensor]:
        """All of them, by name, on the CPU."""
        return {name: value.read(torch.device("cpu")) for name, value in self.left.items()}

    def under(self, prefix: str) -> _Saved:
        """Take those whose names begin with a prefix, by the rest of their names."""
        names = [name for name in self.left if name.startswith(prefix)]
        return _Saved({name[len(prefix) :]: self.left.pop(name) for name in names})

    def take(self, name: str, like: Tensor, other: tuple[int, ...] | None = None) -> Tensor:
        """Take one tensor.

        Args:
            name: Its name.
            like: A tensor with its dtype and shape, on the device where it will be.
            other: Another shape that it may have.

        Raises:
            ValueError: Where it is missing, or has another dtype or shape.
        """
        if name not in self.left:
            raise ValueError(f"it has no {name}")
        value, shape = self.left.pop(name), tuple(like.shape)
        if value.dtype != like.dtype or tuple(value.shape) not in (shape, other):
            raise ValueError(
                f"{name} is {value.dtype} of shape {tuple(value.shape)}, not {like.dtype} of {shape}"
            )
        return value.read(like.device)

    def take_all(self, chains: int, axes: tuple[int, ...]) -> dict[str, Stored]:
        """Take all that is left, by name, to be read later, each with the chains on one of these axes.

        Raises:
            ValueError: Where one has not.
        """
        for name, value in self.left.items():
            if not any(value.ndim > axis and value.shape[axis] == chains for axis in axes):
                raise ValueError(f"{name} has shape {tuple(value.shape)}, for {chains} chains")
        taken, self.left = self.left, {}
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


def _saved_record(saved: _Saved, chains: int, kept: int) -> dict[str, Stored]:
    """What was kept of a batch: draws `(kept, chains, *event)`, the last one or moments, and stats.

    Args:
        saved: What is there.
        chains: How many chains of the batch are asked for.
        kept: How many draws.

    Returns:
        The tensors by the names of `Record.flat`.

    Raises:
        ValueError: It is none of these.
    """
    record = saved.take_all(chains, (0, 1))
    kinds = {name for name in record if not name.startswith("stats/")}
    if not kinds <= {"x", "mean", "m2", *HALF}:
        raise ValueError(f"it keeps {', '.join(sorted(kinds))}")
    half = [record[name] for name in HALF if name in record]
    if half and not kinds >= {"mean", "m2", *HALF}:
        raise ValueError(f"it keeps {', '.join(sorted(kinds))}")
    if half and (half[-1].dtype != torch.int64 or half[-1].shape != (chains,)):
        raise ValueError("it does not say of how many draws the half is")
    x = record.get("x")
    if x is not None and (x.ndim < 2 or x.shape[1] != chains or len(x) not in (1, kept)):
        raise ValueError(
            f"it keeps draws of shape {tuple(x.shape)} of {chains} chains, where {kept} are kept"
        )
    return record


def _is_taken(solver: Any, batch: Batch, value: Any) -> bool:
    """Whether steps can have taken so many evaluations beyond what the solver declares them to cost.

    Those of an approach take fewer than are declared where trajectories are long.
    """
    declared = batch.schedule.warmup * max((0, *solver.step_cost.values()))
    return type(value) is int and is_count(value + len(batch.noise.chains) * declared)


def _read_moment(
    saved: _Saved,
    solver: Any,
    batch: Batch,
    tuned: dict[str, Tensor] | None,
    step: int,
    evaluations: int,
    energies: int,
    alone: bool,
) -> Moment:
    """The moment of a batch, checked to have the form that a run of this field and solver has.

    Raises:
        ValueError: Where it has not.
    """
    if step < batch.schedule.warmup:
        template = begin_batch(solver, batch, tuned)
    else:
        template = begin(solver, batch.bound, batch.start(), batch.noise, restart=batch.restart)
    status, failed_at = _read_outcome(saved, batch, step)
    looks = None if template.looks is None else saved.take("looks", template.looks)
    like, kept = batch.recorder.position(template.state.x), batch.schedule.kept_before(step)
    record = _saved_record(saved.under("record/"), len(like), kept)
    state, tuning = saved.under("state/"), saved.under("tuning/")
    other = traits(solver).reshaped(template.state.x)
    leaves = {
        name: state.take(name, value, other.get(name))
        for name, value in state_leaves(template.state).items()
    }
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
            record, kept, batch.schedule.kept_before(batch.schedule.total), like.device
        ),
        evaluations=evaluations,
        energies=energies,
        tuning=restored,
        looks=looks,
        alone=alone,
    )


def _check_positions(record: Mapping[str, Stored], like: Tensor) -> None:
    """Check that all positions that are kept have the dtype and the event shape of `like`.

    Raises:
        ValueError: Where one has not.
    """
    for name, value in record.items():
        if name.startswith("stats/") or name == "half_draws":
            continue
        # moments are in float64 where the device has it
        shape = value.shape[1:] if name == "x" else value.shape
        fits = value.dtype == like.dtype if name == "x" else value.dtype.is_floating_point
        if not fits or shape[1:] != like.shape[1:]:
            raise ValueError(
                f"it keeps {value.dtype} of shape {tuple(shape)} where x is {like.dtype} of "
                f"{tuple(like.shape)}"
            )
