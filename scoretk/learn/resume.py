"""A training's whole moment in one file: nested plain values and tensors, through `scoretk.checkpoint`, never pickle.

Dicts, lists, tuples, tensors, None, booleans, numbers and strings come back as they were, so that any optimiser's state fits.
The structure is JSON; it is kept among the tensors, which the checkpoint's checksum covers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from scoretk.checkpoint import Checkpoint, read, write
from scoretk.errors import CheckpointError

__all__ = ["checkpoint_file", "from_tensors", "packed", "read_moment", "to_tensors", "unpacked", "write_moment"]

STRUCTURE = "structure"


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """The path, checked: a file in a folder that exists. Raises `InvalidArgument`."""
    return Checkpoint(path).file


def write_moment(path: Path, moment: Any, settings: dict[str, Any]) -> None:
    """Write a moment atomically; settings, plain values, tell the run from others. Raises `CheckpointError`."""
    write(path, to_tensors(moment), {"settings": _plain(settings)})


def read_moment(path: Path, settings: dict[str, Any]) -> Any:
    """What `write_moment` wrote. Raises `CheckpointError` as `scoretk.checkpoint.read`; the file is only read."""
    tensors, _ = read(path, _plain(settings))
    try:
        return from_tensors(tensors)
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} holds no moment of a training. It is left untouched") from error


def packed(value: Any) -> bytes:
    """A nested value as bytes."""
    return to_bytes({name: t.detach().to("cpu", copy=True).contiguous() for name, t in to_tensors(value).items()})


def unpacked(content: bytes) -> Any:
    """The inverse of `packed`."""
    return from_tensors(from_bytes(content))


def to_tensors(value: Any) -> dict[str, Tensor]:
    """A nested value as named tensors: its own, numbered, and one of bytes for its structure."""
    tensors: list[Tensor] = []
    structure = json.dumps(_skeleton(value, tensors)).encode()
    found = {str(i): tensor for i, tensor in enumerate(tensors)}
    return found | {STRUCTURE: torch.frombuffer(bytearray(structure), dtype=torch.uint8)}


def from_tensors(tensors: dict[str, Tensor]) -> Any:
    """The inverse of `to_tensors`."""
    return _whole(json.loads(tensors[STRUCTURE].numpy().tobytes()), tensors)


def _skeleton(value: Any, tensors: list[Tensor]) -> Any:
    """JSON of a nested value: leaves as they are, all else as [kind, content]; tensors are put into the list."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors.append(value)
        return ["tensor", len(tensors) - 1]
    if isinstance(value, dict):
        return ["dict", [[_skeleton(k, tensors), _skeleton(v, tensors)] for k, v in value.items()]]
    if isinstance(value, list | tuple):
        return ["tuple" if isinstance(value, tuple) else "list", [_skeleton(v, tensors) for v in value]]
    raise CheckpointError(f"a value of type {type(value).__name__} cannot be put into a checkpoint: {value!r:.80}")


def _whole(json_value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(json_value, list):
        return json_value
    kind, content = json_value
    if kind == "tensor":
        return tensors[str(content)]
    if kind == "dict":
        return {_whole(k, tensors): _whole(v, tensors) for k, v in content}
    return (tuple if kind == "tuple" else list)(_whole(v, tensors) for v in content)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings, default=repr))  # tuples become lists, as in a header that was read
