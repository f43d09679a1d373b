"""Where a run is while it goes on, and how it is saved: in memory, in one file, or in a folder.

A run of one process is one file with the moments of all its batches. Where ranks share the batches
the checkpoint is a folder, in which each batch has a file of its own, written by who runs it:

    manifest.safetensors        the settings, the identity of field and solver, how many batches
    batch-000000.safetensors    a batch's moment, what was kept of it, and settings and identity again
    lock                        held by the job that runs

So any number of ranks goes on from a folder, a plain process as well. Who takes over a batch reads
its file; files of batches that are over are only read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor

from scoretk.core.files import replace_folder
from scoretk.core.identity import is_summary
from scoretk.core.sealed import check_header, is_count
from scoretk.errors import CheckpointError, StoreError
from scoretk.run.batch import Batch
from scoretk.run.checkpoint import ADVICE, MANIFEST, is_shared, load, unfit
from scoretk.run.moment import Moment
from scoretk.run.ranks import Share
from scoretk.run.resume import Saving, check_whose, contents, header_of, read_moments
from scoretk.run.witness import witness

__all__ = ["Archive", "archive_of"]


class Archive(Protocol):
    """Where a run is while it goes on; a context that saves it at its end, whatever ends it.

    Attributes:
        moments: The moments of batches by number, from their beginning as long as they are needed.
    """

    moments: dict[int, Moment]

    def __enter__(self) -> Archive: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def take_up(self, i: int, tuned: dict[str, Tensor] | None) -> None:
        """Make what is saved of batch i its moment; do nothing where nothing is.

        Args:
            i: The number of the batch.
            tuned: What the pilot has tuned, None for the pilot.
        """

    def due(self) -> bool:
        """Whether it is time to save the run."""

    def save(self, i: int) -> None:
        """Save the run, of which batch i has moved."""

    def over(self, i: int) -> None:
        """Keep of batch i, which is over, what a longer run goes on from."""


def archive_of(saving: Saving | None, batches: list[Batch], solver: Any, share: Share) -> Archive:
    """The archive of a run.

    Args:
        saving: How the run is saved; None for not at all.
        batches: The batches of the run.
        solver: The solver.
        share: This process's share of the run.

    Raises:
        CheckpointError: A process by itself has saved the run in a file, which many cannot write.
    """
    if saving is None:
        return _InMemory(batches)
    if share.alone and not is_shared(saving.checkpoint.file):
        return _InFile(saving, batches, solver)
    if saving.checkpoint.file.is_file():
        raise CheckpointError(
            f"{saving.checkpoint.path} was written by a process outside of scoretk.distributed, "
            f"inside of which a checkpoint is a folder. {ADVICE}, or go on with it outside"
        )
    return _InFolder(saving, batches, solver, share)


UNSAVED = (
    "Of a run that is stopped only what went to keep=scoretk.Zarr(path) is kept. With checkpoint=path it is "
    "saved then, and the same call goes on from there."
)
"""What is noted where a run that is not saved is stopped from outside."""


class _InMemory:
    """A run that is not saved; what went to a store is there when an error ends it.

    Args:
        batches: The batches of the run.
    """

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.moments = batches, dict[int, Moment]()

    def __enter__(self) -> _InMemory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(StoreError):
            for i, m in self.moments.items():
                kept = self.batches[i].schedule.kept_before(m.step)
                self.batches[i].recorder.flushed(m.record, kept, m.status, m.failed_at)
        if isinstance(error, KeyboardInterrupt):
            _note(error, UNSAVED)

    def take_up(self, i: int, tuned: dict[str, Tensor] | None) -> None:
        return

    def due(self) -> bool:
        return False

    def save(self, i: int) -> None:
        return

    def over(self, i: int) -> None:
        del self.moments[i]  # and with it the memory of its state


class _InFile:
    """A run in one file, with every batch's moment.

    Args:
        saving: How it is saved.
        batches: The batches of the run.
        solver: The solver.
    """

    def __init__(self, saving: Saving, batches: list[Batch], solver: Any) -> None:
        self.saving, self.batches, self.solver = saving, batches, solver
        self.moments, self.changed = dict[int, Moment](), list[str]()

    def __enter__(self) -> _InFile:
        path, numbers = self.saving.checkpoint.file, range(len(self.batches))
        if path.exists():
            self.moments, self.changed = read_moments(
                path, "run", numbers, self.batches, self.solver, self.saving
            )
        self.saving.checkpoint.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # it could not be written a moment ago, or what was saved before fits what is in the store
        if isinstance(error, CheckpointError | StoreError):
            return
        with _noted(error, self.saving):
            self._write(_or_nothing(self._asked))

    def take_up(self, i: int, tuned: dict[str, Tensor] | None) -> None:
        return

    def due(self) -> bool:
        return self.saving.checkpoint.due()

    def save(self, i: int) -> None:
        self._write(self._asked())

    def over(self, i: int) -> None:
        return

    def _asked(self) -> dict[str, Tensor]:
        """What the field answers at the last moment; a model's own errors are raised on."""
        if not self.moments:
            return {}
        i = max(self.moments)
        return _asked(self.batches[i], self.solver, self.moments[i])

    def _write(self, said: dict[str, Tensor]) -> None:
        self.saving.checkpoint.save(
            *contents(self.moments, self.batches, self.saving, self.changed, said)
        )


class _InFolder:
    """A run in a folder, with a file for each batch.

    Args:
        saving: How it is saved.
        batches: The batches of the run.
        solver: The solver.
        share: This process's share of the run.
    """

    def __init__(self, saving: Saving, batches: list[Batch], solver: Any, share: Share) -> None:
        self.saving, self.batches, self.solver, self.share = saving, batches, solver, share
        self.folder = saving.checkpoint.file
        self.moments, self.changed = dict[int, Moment](), set[str]()
        self._saved = dict[int, int]()

    def __enter__(self) -> _InFolder:
        if self.share.first:
            self._begin()
            self.share.publish("manifest", {})
        else:
            self.share.fetch("manifest")
            self._check()
        self.saving.checkpoint.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with _noted(error, self.saving):
            for i in [] if isinstance(error, StoreError) else self.moments:
                # where others hold the model too, they do not come to answer
                asked = partial(self._asked, i)
                self._write(i, {} if self.share.steady else _or_nothing(asked))
            if self.share.first and not {*self.saving.identity.changing()} <= self.changed:
                self._write_manifest(self._header(), self.folder / MANIFEST)

    def take_up(self, i: int, tuned: dict[str, Tensor] | None) -> None:
        path = self._file(i)
        if not path.exists():
            return
        moments, changed = read_moments(
            path, "batch", [i], self.batches, self.solver, self.saving, tuned
        )
        if i not in moments:
            raise unfit(path, "it has no batch")
        self.moments[i], self._saved[i] = moments[i], moments[i].step
        self.changed |= {*changed}

    def due(self) -> bool:
        return bool(self.share.agreed(self.saving.checkpoint.due()))

    def save(self, i: int) -> None:
        self._write(i, self._asked(i))

    def over(self, i: int) -> None:
        if self._saved.get(i) != self.moments[i].step:
            self._write(i, _or_nothing(partial(self._asked, i)))
        del self.moments[i]

    def _file(self, i: int) -> Path:
        return self.folder / f"batch-{i:06d}.safetensors"

    def _asked(self, i: int) -> dict[str, Tensor]:
        return _asked(self.batches[i], self.solver, self.moments[i])

    def _write(self, i: int, said: dict[str, Tensor]) -> None:
        moment = self.moments[i]
        self._saved[i] = moment.step  # on each rank of a team: `over` asks the field by it
        if not self.share.leads:
            return
        parts = contents({i: moment}, self.batches, self.saving, self.changed, said)
        self.saving.checkpoint.save(*parts, path=self._file(i), kind="batch")

    def _begin(self) -> None:
        """Write the manifest, unless the one that is there is this run's."""
        there = self.folder / MANIFEST
        if there.exists() and self._check()["settings"] == self._told():
            return
        if self.folder.exists():
            self._write_manifest(self._header(), there)
            return
        try:  # so that from the first moment on it is known for a run's
            replace_folder(self.folder, partial(self._make, self._header()))
        except OSError as error:
            raise CheckpointError(f"cannot write into {self.folder}: {error}") from error

    def _header(self) -> dict[str, Any]:
        """The header of the manifest, which says what the run has changed itself, as a counter."""
        return {**header_of(self.saving, self.changed), "batches": len(self.batches)}

    def _make(self, header: dict[str, Any], folder: Path) -> None:
        folder.mkdir()
        self._write_manifest(header, folder / MANIFEST)

    def _write_manifest(self, header: dict[str, Any], path: Path) -> None:
        self.saving.checkpoint.save({}, header, path=path, kind="manifest")

    def _told(self) -> Any:
        """The settings as a file has them: tuples become lists."""
        return json.loads(json.dumps(self.saving.settings))

    def _check(self) -> dict[str, Any]:
        """The header of the manifest, which is this run's or a shorter one's."""
        path = self.folder / MANIFEST
        _, header = load(path, "manifest")
        try:
            check_header(
                header,
                settings=lambda v: isinstance(v, dict),
                identity=is_summary,
                batches=is_count,
            )
        except ValueError as error:
            raise unfit(path, error) from error
        check_whose(path, {**header, "batches": []}, self.saving)
        self.changed |= {*header["identity"]["changing"]}
        return header


def _asked(batch: Batch, solver: Any, moment: Moment) -> dict[str, Tensor]:
    return witness(batch.bound, solver.needs, moment.state.x)


def _or_nothing(asked: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What the field answers when its run is over; an error of its own keeps nothing from being saved."""
    try:
        return asked()
    except Exception:  # noqa: BLE001 (whatever a model raises)
        return {}


@contextmanager
def _noted(error: BaseException | None, saving: Saving) -> Iterator[None]:
    """A context in which a run is saved at its end, or before an error, which is told where.

    An error in saving is noted at the one that was there before. After an error of saving nothing is
    to be noted, and what is written is not the less whole.
    """
    try:
        yield
    except (CheckpointError, StoreError) as second:
        if error is None:
            raise
        _note(error, str(second))
        return
    if error is not None and not isinstance(error, CheckpointError | StoreError):
        _note(
            error,
            f"The run so far is in {saving.checkpoint.path}: the same call goes on from there.",
        )


def _note(error: BaseException, text: str) -> None:
    """Add a note, unless the error says so already, here or on the rank that it comes from."""
    if text not in (str(error), *getattr(error, "__notes__", ())):
        error.add_note(text)
