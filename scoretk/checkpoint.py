"""Checkpoints: a run's whole moment in one safetensors file with a checksum, written atomically; never pickle.

The file's metadata hold one JSON header: format, fingerprint of the run's settings, position, SHA-256 of the tensors.
A new checkpoint is written beside the old one, flushed to the disk and then put in its place, so that a kill at any
moment leaves one whole file. A damaged, truncated or foreign file is refused and left untouched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from scoretk.arguments import positive
from scoretk.errors import CheckpointError, InvalidArgument

__all__ = ["Checkpoint", "read", "tensor_digest", "weights_digest", "write", "write_atomically"]

FORMAT = 1

_KNOWN: Any = WeakTensorKeyDictionary()
"""Digests of weights, with what they looked like then."""


@dataclass
class Checkpoint:
    """Where and how often a run is saved.

    Arguments: path of the file, its folder existing; every, seconds between writes (a write that is slow widens it, so
    that saving never takes more than a twentieth of the time). A run given a checkpoint that exists goes on from there.
    """

    path: str | os.PathLike[str]
    every: float = 30.0
    _due: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike):
            raise InvalidArgument("checkpoint", self.path, "a path or a scoretk.Checkpoint")
        positive("every", self.every)
        if self.file.is_dir():
            raise InvalidArgument("checkpoint", str(self.path), "the path of a file, not of a folder")
        if not self.file.parent.is_dir():
            raise InvalidArgument("checkpoint", str(self.path), "a path in a folder that exists")

    @property
    def file(self) -> Path:
        """The path, as a `Path`."""
        return Path(self.path)

    def begin(self) -> None:
        """Start the clock."""
        self._due = time.monotonic() + self.every

    def due(self) -> bool:
        """Whether it is time for the next write."""
        return time.monotonic() >= self._due

    def save(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Write and set the time of the next write. Raises `CheckpointError` where that fails; the old file stays."""
        started = time.monotonic()
        write(self.file, tensors, header)
        self._due = time.monotonic() + max(self.every, 20 * (time.monotonic() - started))


def tensor_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu")
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        flat = value.new_empty(value.numel()).copy_(value.reshape(-1))  # of stride 1, which an expanded value is not
        digest.update(flat.view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()


def weights_digest(weights: Iterable[Tensor]) -> str:
    """SHA-256 over tensors that live long, such as a model's weights: each is read whole once, and again when it has changed."""
    digest = hashlib.sha256()
    for tensor in weights:
        if tensor.is_inference():  # of those torch does not count the changes
            digest.update(tensor_digest({"": tensor}).encode())
            continue
        # the sum sees what the counter does not: changes by way of `.data`
        mark = (tensor._version, tensor.data_ptr(), float(tensor.detach().sum()))
        known = _KNOWN.get(tensor)
        if known is None or known[0] != mark:
            known = _KNOWN[tensor] = (mark, tensor_digest({"": tensor}))
        digest.update(known[1].encode())
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step: whole or not at all, on the disk when this returns. Raises `OSError`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system lets a folder be flushed
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write a checkpoint. Raises `CheckpointError` where the disk refuses; what was there before stays."""
    plain = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    full = header | {"format": FORMAT, "sha256": tensor_digest(plain)}
    try:
        write_atomically(path, to_bytes(plain, {"scoretk": json.dumps(full, sort_keys=True)}))
    except OSError as error:
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {error}. An older one there is untouched"
        ) from error


def read(path: Path, settings: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a checkpoint of the run with these settings.

    Raises: `CheckpointError` where the file is damaged, truncated, no checkpoint, or another run's, with the settings
    in which they differ. The file is only read.
    """
    advice = "It is left untouched: move it away or name another path to start afresh"
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("scoretk", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}. {advice}") from error
    if not isinstance(header, dict) or "settings" not in header:
        raise CheckpointError(f"{path} is a safetensors file but no checkpoint of a scoretk run. {advice}")
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {header.get('format')}, this version reads {FORMAT}. {advice}"
        )
    if tensor_digest(tensors) != header.get("sha256"):
        raise CheckpointError(f"{path} is damaged: its checksum does not fit. {advice}")
    theirs = header["settings"]
    other = [f"{k}: {theirs.get(k)!r} there, {v!r} here" for k, v in settings.items() if theirs.get(k) != v]
    if other:
        raise CheckpointError(f"{path} belongs to another run ({'; '.join(other)}). {advice}")
    return tensors, header
