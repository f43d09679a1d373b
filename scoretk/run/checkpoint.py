"""Checkpoints: the whole moment of a run in one sealed file (`core.sealed`), written atomically.

No pickle is used. The header holds the settings of the run, which tell it from others, and its
position. A file that is damaged, truncated, of another kind, or does not fit the run that resumes
it is refused and left untouched: nothing is written before all of it is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from scoretk.core.arguments import positive
from scoretk.core.files import as_path, file_to_write
from scoretk.core.identity import numbers_as_bytes, tensor_value, whole_tensor
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
    "tensor_digest",
    "unfit",
    "weights_digest",
    "write",
]

ADVICE = "It is left untouched: move it away or name another path to start afresh"

MANIFEST = "manifest.safetensors"
"""The file of a folder that is a checkpoint, beside one a batch (`run.archive`)."""

_KNOWN: Any = WeakTensorKeyDictionary()
"""Digests of weights, each with a mark of what the tensor was then."""


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


def is_shared(path: Path) -> bool:
    """Whether a path is the folder of a run that several processes share."""
    try:
        return (path / MANIFEST).is_file()
    except OSError:  # such as for a name that is too long
        return False


def tensor_digest(tensors: dict[str, Tensor]) -> str:
    """The SHA-256 of tensors: of their names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu")
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(numbers_as_bytes(value))
    return digest.hexdigest()


def weights_digest(weights: Iterable[Tensor]) -> str:
    """The SHA-256 of tensors that live long, such as a model's weights.

    Each is read as a whole once, and again when it has changed.
    """
    digest, tensors = hashlib.sha256(), list(weights)
    for tensor, mark in zip(tensors, _marks(tensors), strict=True):
        if mark is None:
            digest.update(tensor_value(tensor).encode())
            continue
        known = _KNOWN.get(tensor)
        if known is None or known[0] != mark:
            known = _KNOWN[tensor] = (mark, tensor_digest({"": tensor}))
        digest.update(known[1].encode())
    return digest.hexdigest()


def _marks(tensors: list[Tensor]) -> list[Any]:
    """Marks of tensors, each of which differs when its tensor has changed.

    None where torch does not count its changes, or it has no address or no sum. A device is waited
    for once, however many tensors are there.
    """
    sums = [_sum(tensor) for tensor in tensors]
    totals, devices = dict[int, int](), {s.device for s in sums if s is not None}
    for device in devices:
        here = [(i, s) for i, s in enumerate(sums) if s is not None and s.device == device]
        read = torch.stack([s for _, s in here]).tolist()
        totals |= {i: total for (i, _), total in zip(here, read, strict=True)}
    return [
        (tensor._version, tensor.data_ptr(), totals[i]) if i in totals else None
        for i, tensor in enumerate(tensors)
    ]


INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What numbers of so many bytes are read as, bit by bit."""
COLUMNS = 1024
ALONG, ACROSS, REST = 0x9E3779B97F4A7C1, 0xC2B2AE3D27D4EB5, 0x85EBCA77C2B2AE3
"""Odd numbers without a pattern, by which places are weighed."""


def _sum(tensor: Tensor) -> Tensor | None:
    """A sum that sees what torch's counter does not, changes by way of `.data`; None where there is none.

    Of the bits of all numbers as integers modulo 2^64, weighed by their places: unlike a sum of
    floats it is exact, and two numbers that change places change it.
    """
    if (
        tensor.is_inference()
        or tensor.is_meta
        or tensor.is_nested
        or tensor.is_complex()
        or tensor.layout is not torch.strided
    ):
        return None
    try:
        return _weighed(whole_tensor(tensor.detach()))
    except (RuntimeError, NotImplementedError):  # such as for packed numbers
        return None


def _weighed(x: Tensor) -> Tensor:
    """The weighed sum, large tensors eight bytes at a time, so that it costs about what reading them does."""
    bits = x.reshape(-1).view(INTEGERS[x.element_size()])
    row = COLUMNS * 8 // x.element_size()
    cut = bits.numel() // row * row
    if cut and x.storage_offset() * x.element_size() % 8 == 0:
        rows = bits[:cut].view(torch.int64).reshape(-1, COLUMNS)
        whole = _by_place(rows.sum(0), ACROSS, 1) + _by_place(rows.sum(1), ALONG, 2)
        return whole + _by_place(bits[cut:], REST, 1)
    return _by_place(bits, REST, 1)


def _by_place(values: Tensor, weight: int, first: int) -> Tensor:
    """Odd places where `first` is odd, and even ones, so that the weight of each number is odd in the end.

    An odd number times a change is no multiple of 2^64: the sign of a number, its highest bit, counts.
    """
    places = torch.arange(first, first + 2 * len(values), 2, device=values.device)
    return (places * weight * values).sum()


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
