"""Checkpoints: the whole moment of a run in one sealed file (`core.sealed`), written atomically.

No pickle is used. The header holds the settings of the run, which tell it from others, and its
position. A file that is damaged, truncated, of another kind, or does not fit the run that resumes
it is refused and left untouched: nothing is written before all of it is checked.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from scoretk.core.arguments import positive
from scoretk.core.files import as_path, file_to_write
from scoretk.core.keywords import explained_class
from scoretk.core.sealed import Stored, Unreadable, open_sealed, read_sealed, write_sealed
from scoretk.errors import CheckpointError

__all__ = [
    "MANIFEST",
    "Checkpoint",
    "another",
    "check_settings",
    "is_shared",
    "load",
    "opened",
    "unfit",
    "write",
]

ADVICE = "It is left untouched: move it away or name another path to start afresh"

MANIFEST = "manifest.safetensors"
"""The file of a folder that is a checkpoint, beside one a batch (`run.archive`)."""


@dataclass
class Checkpoint:
    """Where and how often a run is saved.

    Args:
        path: The path of the file, in a folder that exists. Where the file exists the run goes on
            from it. Inside `distributed` it is a folder, with a file for each batch.
        every: The seconds between two writes. Slow writes lengthen it, so that saving takes at most
            a twentieth of the time.
    """

    path: str | os.PathLike[str]
    every: float = 30.0
    _due: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        expected = "the path of a file (or a scoretk.Checkpoint)"
        if not is_shared(as_path("checkpoint", self.path, expected)):
            file_to_write("checkpoint", self.path, expected)
        positive("every", self.every)

    @property
    def file(self) -> Path:
        """The path, as a `Path`."""
        return Path(os.fsdecode(self.path))

    def begin(self) -> None:
        """Start to count the seconds to the first write."""
        self._due = time.monotonic() + self.every

    def due(self) -> bool:
        """Whether it is time for the next write."""
        return time.monotonic() >= self._due

    def save(
        self,
        tensors: dict[str, Tensor],
        header: dict[str, Any],
        path: Path | None = None,
        kind: str = "run",
    ) -> None:
        """Write, and set the time of the next write.

        Args:
            tensors: By name.
            header: Plain values.
            path: A file in a folder that is the checkpoint; None for the checkpoint itself.
            kind: What is in it.

        Raises:
            CheckpointError: Where that fails; the old file stays.
        """
        started = time.monotonic()
        write(self.file if path is None else path, tensors, header, kind)
        self._due = time.monotonic() + max(self.every, 20 * (time.monotonic() - started))


explained_class(Checkpoint)


def is_shared(path: Path) -> bool:
    """Whether a path is the folder of a run that several processes share."""
    try:
        return (path / MANIFEST).is_file()
    except OSError:  # such as for a name that is too long
        return False


def write(
    path: Path, tensors: dict[str, Tensor], header: dict[str, Any], kind: str = "run"
) -> None:
    """Write a checkpoint of a kind, "run" or "fit".

    Raises:
        CheckpointError: Where that cannot be done; what was there before stays.
    """
    try:
        write_sealed(path, kind, tensors, header)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {error}. An older one there is untouched"
        ) from error


def load(path: Path, kind: str = "run") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a checkpoint of any run; the file is only read.

    Raises:
        CheckpointError: Where it is damaged, or no checkpoint of this kind.
    """
    try:
        return read_sealed(path, kind)
    except Unreadable as error:
        raise _unreadable(path, kind, error) from error


def opened(path: Path, kind: str = "run") -> tuple[dict[str, Stored], dict[str, Any]]:
    """As `load`, with tensors that are still to be read.

    Raises:
        CheckpointError: As `load`.
    """
    try:
        return open_sealed(path, kind)
    except Unreadable as error:
        raise _unreadable(path, kind, error) from error


def _unreadable(path: Path, kind: str, why: Unreadable) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read as the checkpoint of a {kind}: {why}. {ADVICE}")


def check_settings(
    path: Path, theirs: dict[str, Any], ours: dict[str, Any], more: Iterable[str] = ()
) -> None:
    """Refuse a checkpoint with other settings.

    Args:
        path: The file.
        theirs: The settings in it.
        ours: The settings of this run.
        more: Other differences, as text.

    Raises:
        CheckpointError: Where there are differences, which it names.
    """
    ours = json.loads(json.dumps(ours))  # tuples become lists, as in a file
    other = [*_differences(theirs, ours), *more]
    if other:
        raise another(path, other)


def another(path: Path, differences: Iterable[str]) -> CheckpointError:
    """The error for another run's checkpoint."""
    return CheckpointError(f"{path} belongs to another run ({'; '.join(differences)}). {ADVICE}")


def unfit(path: Path, why: object) -> CheckpointError:
    """The error for a checkpoint that is whole but not what this run could have written."""
    return CheckpointError(f"{path} does not fit this run: {why}. {ADVICE}")


def _differences(theirs: Any, ours: Any, name: str = "") -> Iterator[str]:
    """Where two plain values differ, entry by entry, as text.

    1, 1.0 and True differ; NaN is equal to itself.
    """
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in [*ours, *sorted(theirs.keys() - ours.keys())]:
            entry = f"{name}.{key}" if name else key
            if key in theirs and key in ours:
                yield from _differences(theirs[key], ours[key], entry)
            else:
                yield f"{entry}: {_shown(theirs, key)} there, {_shown(ours, key)} here"
    elif json.dumps(theirs, sort_keys=True) != json.dumps(ours, sort_keys=True):
        yield f"{name}: {theirs!r:.200} there, {ours!r:.200} here"


def _shown(settings: dict[str, Any], name: str) -> str:
    return f"{settings[name]!r:.200}" if name in settings else "nothing"
