"""A run of many chains: batch after batch through the one loop, saved on the way, and resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from scoretk.core.compiling import Uncompilable
from scoretk.core.warned import warn
from scoretk.errors import InvalidArgument, Status
from scoretk.fields.protocols import offers
from scoretk.fields.resolve import Bound, StaticField
from scoretk.fields.validation import refuses
from scoretk.run.archive import Archive, archive_of
from scoretk.run.batch import Batch, begin_batch
from scoretk.run.begun import warn_of_base, warn_of_time
from scoretk.run.drive import BLOCK_SECONDS, drive
from scoretk.run.independence import check_rows_apart
from scoretk.run.moment import Loop, Moment, failures, outcome
from scoretk.run.outwards import check_grows
from scoretk.run.progress import ProgressBar
from scoretk.run.ranks import Share
from scoretk.run.record import Received, Record
from scoretk.run.resume import Saving
from scoretk.run.slopes import check_seen, check_slopes
from scoretk.run.state import tuned_leaves
from scoretk.run.witness import ROWS, contradiction, witness
from scoretk.solvers.base import adapts, is_grid, is_tuned, traits

__all__ = ["Finished", "run_batches"]

SAID = 1 << 20
"""About how many bytes of positions are published for all ranks, with what the field answers there."""


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
        energies: How many energies besides.
        restarts: How many starts of chains were made again.
        tuned: What warmup has tuned, by name.
    """

    final: Tensor
    status: Tensor
    failed_at: Tensor
    record: Record
    evaluations: int
    energies: int
    restarts: int
    tuned: dict[str, Tensor] = field(default_factory=dict)

    def flat(self) -> dict[str, Tensor]:
        """All of it as tensors by name, for other processes."""
        counts = torch.tensor([self.evaluations, self.energies, self.restarts])
        own = {"final": self.final, "status": self.status, "failed_at": self.failed_at}
        return {
            **own,
            "counts": counts,
            **{f"record/{name}": value for name, value in self.record.flat().items()},
            **{f"tuned/{name}": value for name, value in self.tuned.items()},
        }

    @staticmethod
    def from_flat(flat: Mapping[str, Tensor], batch: Batch) -> Finished:
        """The outcome of a batch that another process has run."""
        record, tuned = (
            {name.removeprefix(kind): v for name, v in flat.items() if name.startswith(kind)}
            for kind in ("record/", "tuned/")
        )
        received = {name: Received(value) for name, value in record.items()}
        kept = batch.schedule.kept_before(batch.schedule.total)
        evaluations, energies, restarts = flat["counts"].tolist()
        return Finished(
            flat["final"],
            flat["status"],
            flat["failed_at"],
            batch.recorder.restored(received, kept, kept, flat["final"].device),
            evaluations,
            energies,
            restarts,
            tuned,
        )


def run_batches(
    batches: list[Batch],
    solver: Any,
    *,
    compiled: bool,
    recompute: bool,
    on_failure: str,
    saving: Saving | None,
    progress: bool | None,
    share: Share,
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
        share: This process's share of the run: it runs batches that it claims, and is told what
            became of the others.

    Returns:
        The outcomes, one for each batch.

    Raises:
        ChainFailure: As `drive`.
        CheckpointError: Where the checkpoint is damaged, another run's, or cannot be written.
        InvalidArgument: Where the field answers otherwise than on another rank.
    """
    total, mine = sum(b.schedule.total for b in batches), dict[int, Finished]()
    with (
        ProgressBar(progress if share.first else False, total) as shown,
        archive_of(saving, batches, solver, share) as archive,
    ):
        running = _Running(
            solver,
            share,
            archive,
            shown,
            _Compiler(compiled),
            _Alike(share, batches[0].bound, solver.needs),
            {"recompute": recompute, "on_failure": on_failure},
        )
        for i in share.claims(len(batches)):
            mine[i] = running.run_one(i, batches[i], total)
        outcomes = {i: (f if i == 0 else replace(f, tuned={})).flat() for i, f in mine.items()}
        told = share.collected(outcomes, len(batches), batches[0].noise.chains.device)
        return [
            mine[i] if i in mine else Finished.from_flat(outcome, batch)
            for i, (outcome, batch) in enumerate(zip(told, batches, strict=True))
        ]


@dataclass
class _Running:
    """What the batches of a run that this process makes have in common.

    Args:
        solver: The solver.
        share: This process's share of the run.
        archive: Where the run is saved, with the moment of each batch.
        shown: The progress line.
        compiler: Whether steps are compiled.
        alike: Whether the field is that of the other ranks.
        settings: `recompute` and `on_failure`, as in `drive`.
        lost: How many chains have failed in the batches that are over.
    """

    solver: Any
    share: Share
    archive: Archive
    shown: ProgressBar
    compiler: _Compiler
    alike: _Alike
    settings: dict[str, Any]
    lost: int = 0

    def run_one(self, i: int, batch: Batch, steps: int) -> Finished:
        """Run batch i to its end, in a run of so many steps in all."""
        share, archive, moments = self.share, self.archive, self.archive.moments
        pilot = _Pilot.of(share, i, self.solver, batch.noise.chains.device)
        archive.take_up(i, pilot.tuned)
        if i not in moments:
            moments[i] = _begun(self.solver, batch, pilot)
            if i == 0:
                _look_over(batch, self.solver, moments[i].state.x, steps)
        self.alike.settle(i, moments[i].state.x)
        self.compiler.settle(share, i, batch.bound, moments[i].state.x)
        pilot.publish(share, moments[i], batch)
        share.pulse(i, moments[i].step, moments[i].step)
        loop = Loop(self.solver, batch.bound, batch.noise, batch.schedule, batch.recorder)
        seconds = 0.0 if share.steady else BLOCK_SECONDS
        for moment in _driven(moments[i], loop, self.compiler, seconds=seconds, **self.settings):
            made, moments[i] = moment.step - moments[i].step, moment
            done = share.pulse(i, moment.step, made)
            pilot.publish(share, moment, batch)
            self.shown.update(done, self.lost + moment.failed)
            if archive.due():
                archive.save(i)
        finished = _finish(moments[i], batch, self.solver)
        self.lost += failures(finished.status)
        moments[i] = replace(moments[i], record=finished.record)
        batch.noise.forget()
        archive.over(i)
        return finished


@dataclass
class _Pilot:
    """What a batch knows of the one that tunes the solver.

    Args:
        tuned: What it has tuned, by name; None where this batch is the one, or there is none.
        failed: Whether all its chains failed at the start.
        asked: Whether others wait for it.
    """

    tuned: dict[str, Tensor] | None = None
    failed: bool = False
    asked: bool = False

    @staticmethod
    def of(share: Share, i: int, solver: Any, place: torch.device) -> _Pilot:
        """What batch i knows; waits for the end of the first one's warmup."""
        if not adapts(solver):
            return _Pilot()
        if i == 0:
            return _Pilot(asked=True)
        tuned = dict(share.fetch("pilot", place))
        failed = bool(tuned.pop(""))
        return _Pilot(tuned, failed)

    def publish(self, share: Share, moment: Moment, batch: Batch) -> None:
        """Tell the other batches what this one has tuned, once its warmup is over."""
        if self.asked and moment.step >= batch.schedule.warmup:
            failed = (moment.failed_at == 0).all()
            share.publish("pilot", {"": failed, **tuned_leaves(moment.state)})
            self.asked = False


def _begun(solver: Any, batch: Batch, pilot: _Pilot) -> Moment:
    """The first moment of a batch; without a pilot there is nothing to run it with."""
    moment = begin_batch(solver, batch, pilot.tuned)
    return _untuned(moment) if pilot.failed else moment


def _look_over(batch: Batch, solver: Any, x: Tensor, steps: int) -> None:
    """What is asked of a field at the start of a run of so many steps, at the chains' positions."""
    check_rows_apart(batch.bound, solver.needs, x, steps)
    check_grows(batch.bound, x, steps)
    check_slopes(batch.bound, solver, x, steps)
    if torch.is_grad_enabled():
        check_seen(batch.bound, solver, x)
    if batch.drawn and is_grid(solver):
        times = traits(solver).times
        warn_of_base(
            batch.bound, x, steps, float(times(batch.bound)[0]) if callable(times) else 0.0
        )


class _Alike:
    """Whether the field is the same on every rank, by what it answers where the first batch begins.

    No walk over a field sees all that it depends on: an environment variable, a file, what a library has.

    Args:
        share: This process's share of the run.
        bound: The field as the first batch has it.
        needs: As in `witness`.
    """

    def __init__(self, share: Share, bound: Bound, needs: frozenset[str]) -> None:
        self.share, self.bound, self.needs = share, bound, needs
        self.known = share.alone

    def settle(self, i: int, x: Tensor) -> None:
        """Say what the field answers, or compare it with what was said, at this rank's first batch.

        Raises:
            InvalidArgument: It is another field.
        """
        if self.known:
            return
        self.known = True
        if i == 0:
            said = dict[str, Tensor]()
            with suppress(Exception):  # what a model for batches of one size says of four rows
                most = max(1, min(ROWS, SAID // max(1, x[0].nbytes)))
                once = witness(self.bound, self.needs, x, most)
                alike = contradiction(self.bound, self.needs, once) is None
                said = once if alike else {}  # of one that has other answers each time, nothing
            self.share.publish("answers", said)
            return
        said = dict(self.share.fetch("answers", x.device))
        if other := contradiction(self.bound, self.needs, said, "the start of the first batch"):
            hint = "It depends on more than it is made of: an environment variable, a file, a library's state"
            raise InvalidArgument(
                "distributed",
                "another field here than where the first batch runs",
                "a field that answers alike on every rank",
                f"{other}. {hint}",
            )


@dataclass
class _Compiler:
    """Whether the run is compiled, until the compiler fails."""

    used: bool

    def settle(self, share: Share, i: int, bound: Bound, x: Tensor) -> None:
        """Do without where the first batch is not to be compiled."""
        if not self.used:
            return
        if i == 0:
            self.used = _compilable(bound, x)
            share.publish("compiled", {"": torch.tensor(self.used)})
        else:
            self.used = bool(share.fetch("compiled")[""])


def _compilable(bound: Bound, x: Tensor) -> bool:
    """Whether a compiled run samples the law that an eager one does; warns where it does not.

    The compiler leaves out the checks of `torch.distributions`, which say where a density is zero.
    """
    if not isinstance(bound, StaticField) or "states" in offers(bound.native):
        return True
    ask, refused = bound.energy if "energy" in offers(bound.native) else bound.score, None
    with suppress(Exception):  # what a model raises, the run will
        refused = refuses(ask, x.detach())
    if refused is not None:
        warn(
            "compile=True: not compiled, the run goes on eagerly. The field is made of "
            "distributions with a support, whose checks the compiler leaves out: chains would "
            f"leave it. {refused[:300]}. Put the field under its support, scoretk.constrained, or "
            "let it say where its energy is infinite"
        )
    return refused is None


def _driven(
    moment: Moment,
    loop: Loop,
    compiler: _Compiler,
    *,
    recompute: bool,
    on_failure: str,
    seconds: float,
) -> Iterator[Moment]:
    """The moments of a batch, from one on.

    Where the compiler cannot take the field it warns, and the batch goes on eagerly.
    """
    while True:
        try:
            for moment in drive(  # noqa: B020 (on goes what has come so far)
                loop,
                moment,
                compiled=compiler.used,
                recompute=recompute,
                on_failure=on_failure,
                seconds=seconds,
            ):
                yield moment
            return
        except Uncompilable as failure:
            compiler.used = False
            warn(f"compile=True: not compiled, the run goes on eagerly. {failure}")


def _untuned(moment: Moment) -> Moment:
    """A batch whose pilot failed at its start, every chain: there is nothing to run it with."""
    return replace(
        moment,
        status=torch.full_like(moment.status, int(Status.NONFINITE)),
        failed_at=torch.zeros_like(moment.failed_at),
        failed=len(moment.status),
    )


def _finish(moment: Any, batch: Batch, solver: Any) -> Finished:
    schedule, recorder = batch.schedule, batch.recorder
    kept = schedule.kept_before(schedule.total)
    status, failed_at = outcome(moment)
    failed_at = schedule.intervals(failed_at)
    recorder.ended(moment.record, kept, status, failed_at)
    record = recorder.filled(moment.record, kept)
    warn_of_time(batch.bound, moment.state.x, status, failed_at)
    leaves = tuned_leaves(moment.state) if is_tuned(solver) else {}
    leaves = {n: value for n, value in leaves.items() if n not in traits(solver).untuned}
    return Finished(
        recorder.position(moment.state.x),
        status,
        failed_at,
        record,
        int(moment.evaluations),
        int(moment.energies),
        moment.restarts,
        leaves,
    )
