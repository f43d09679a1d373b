"""A run of many chains: batch after batch through the one loop, saved on the way, and resumed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from scoretk.core.compiling import Uncompilable
from scoretk.errors import Status
from scoretk.fields.protocols import offers
from scoretk.fields.resolve import StaticField
from scoretk.fields.validation import refuses
from scoretk.run.batch import Batch, begin_batch
from scoretk.run.begun import warn_of_base
from scoretk.run.drive import drive
from scoretk.run.independence import check_rows_apart
from scoretk.run.moment import Loop, Moment, failures, outcome
from scoretk.run.outwards import check_grows
from scoretk.run.progress import ProgressBar
from scoretk.run.record import Record
from scoretk.run.resume import Run, Saving, asked, resumed, save_run, saved_on_exit
from scoretk.run.slopes import check_slopes
from scoretk.run.state import tuned_leaves
from scoretk.solvers.base import adapts, is_grid, is_tuned

__all__ = ["Finished", "run_batches"]


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
    run = resumed(batches, solver, saving)
    total, finished, lost = sum(b.schedule.total for b in batches), list[Finished](), 0
    compiler = _Compiler(compiled)
    with ProgressBar(progress, total) as shown, saved_on_exit(run, solver, batches, saving):
        for i, batch in enumerate(batches):
            if i not in run.moments:
                run.moments[i] = begin_batch(solver, batch, finished[0].tuned if finished else None)
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
                    save_run(run, batches, saving, asked(run, solver, batches))
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
    run: Run,
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
