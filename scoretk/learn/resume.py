"""The whole moment of a training in one file, through `scoretk.run.checkpoint`, never pickle.

A moment is a nested value: dicts, lists, tuples, tensors, None, booleans, numbers and strings come
back as they were, so that any optimiser's state fits. Its structure is JSON, kept among the
tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretk.core.files import file_to_write
from scoretk.core.identity import Identity, differences, is_among, is_summary
from scoretk.core.sealed import check_header, from_bytes, plain_json, to_bytes
from scoretk.errors import CheckpointError
from scoretk.run.checkpoint import check_settings, load, unfit, write

__all__ = [
    "Whose",
    "checkpoint_file",
    "from_tensors",
    "packed",
    "read_moment",
    "to_tensors",
    "unpacked",
    "write_moment",
]

STRUCTURE = "structure"
KINDS = {"list": list, "tuple": tuple}


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file in a folder that exists.

    Raises:
        InvalidArgument: For any other path.
    """
    return file_to_write("checkpoint", path)


@dataclass(frozen=True)
class Whose:
    """What tells a training from others.

    Args:
        settings: Plain values.
        code: What its losses, its measure and its optimisers are made of.
        apart: The ways in `code` to what the training itself changes.
    """

    settings: dict[str, Any]
    code: Identity
    apart: tuple[str, ...]

    def summary(self, changing: Iterable[str] = ()) -> dict[str, Any]:
        """That of `code`, without what training changes."""
        return self.code.summary({*self.apart, *changing})

    def changing(self) -> list[str]:
        """The ways to what has changed since the start, the modules' weights left out."""
        return [
            way for way in self.code.changing() if not is_among(way.removesuffix("*"), self.apart)
        ]


def write_moment(path: Path, moment: Any, whose: Whose, changed: Iterable[str] = ()) -> None:
    """Write a moment atomically.

    Args:
        path: The file.
        moment: A nested value.
        whose: What tells the training from others.
        changed: The ways to what it had changed before it was taken up.

    Raises:
        CheckpointError: Where the moment holds a value of another type, or writing fails.
    """
    made = whose.summary({*changed, *whose.changing()})
    write(path, to_tensors(moment), {"settings": _plain(whose.settings), "made": made}, "fit")


def read_moment(path: Path, whose: Whose) -> tuple[Any, list[str]]:
    """The moment that `write_moment` wrote, and the ways to what that training had changed.

    The file is only read.

    Raises:
        CheckpointError: Where the file is damaged, or another training's: with all that differs.
    """
    tensors, header = load(path, "fit")
    try:
        check_header(header, settings=lambda v: isinstance(v, dict), made=is_summary)
        changed = header["made"]["changing"]
        other = differences(header["made"], whose.summary(changed))
        check_settings(path, header["settings"], _plain(whose.settings), other)
        return from_tensors(tensors), changed
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise unfit(path, f"it holds no moment of a training ({error})") from error


def packed(value: Any) -> bytes:
    """A nested value as bytes, for other processes."""
    return to_bytes(to_tensors(value))


def unpacked(content: bytes) -> Any:
    """The inverse of `packed`."""
    return from_tensors(from_bytes(content))


def to_tensors(value: Any) -> dict[str, Tensor]:
    """A nested value as named tensors: its own, by number, and one of bytes for its structure.

    Raises:
        CheckpointError: Where it holds a value of a type that cannot be kept.
    """
    tensors: list[Tensor] = []
    structure = json.dumps(_skeleton(value, tensors)).encode()
    found = {str(i): tensor for i, tensor in enumerate(tensors)}
    return found | {STRUCTURE: torch.frombuffer(bytearray(structure), dtype=torch.uint8)}


def from_tensors(tensors: dict[str, Tensor]) -> Any:
    """The inverse of `to_tensors`.

    Raises:
        ValueError: For anything else; also KeyError or TypeError.
    """
    structure = tensors[STRUCTURE]
    if structure.dtype != torch.uint8 or structure.ndim != 1:
        raise ValueError("its structure is no text")
    left = {name: value for name, value in tensors.items() if name != STRUCTURE}
    value = _whole(plain_json(structure.numpy().tobytes()), left)
    if left:
        raise ValueError(f"its structure does not name {', '.join(sorted(left)[:3])}")
    return value


def _skeleton(value: Any, tensors: list[Tensor]) -> Any:
    """The structure of a nested value as JSON: plain values as they are, else [kind, content].

    A tensor becomes ["tensor", its number], and is appended to `tensors`.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors.append(value)
        return ["tensor", len(tensors) - 1]
    if isinstance(value, dict):
        return ["dict", [[_skeleton(k, tensors), _skeleton(v, tensors)] for k, v in value.items()]]
    if isinstance(value, list | tuple):
        return [
            "tuple" if isinstance(value, tuple) else "list",
            [_skeleton(v, tensors) for v in value],
        ]
    raise CheckpointError(
        f"a value of type {type(value).__name__} cannot be put into a checkpoint: {value!r:.80}"
    )


def _whole(json_value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(json_value, list):
        return json_value
    kind, content = json_value
    if kind == "tensor":
        return tensors.pop(str(content))
    if kind == "dict":
        return {_whole(k, tensors): _whole(v, tensors) for k, v in content}
    return KINDS[kind](_whole(v, tensors) for v in content)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    # tuples become lists, as in a header that was read
    return json.loads(json.dumps(settings, default=repr))
