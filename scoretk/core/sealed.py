"""Tensors and a header of plain values in one safetensors file with a checksum; never pickle.

A safetensors file is a length, a JSON text that says where each tensor lies, and the tensors'
bytes. The metadata here have one entry,

    {"format": 1, "kind": "run", "seal": SHA-256, "header": {...}}

where the seal is the checksum of the whole file, with zeros in place of its own 64 digits. So no
bit of the file can change unnoticed: a changed seal does not fit the rest, and a change of anything
else does not fit the seal. Tensors are read into fresh memory (`core.arrays`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from scoretk.core.arrays import fresh
from scoretk.core.files import is_regular, write_atomically

__all__ = [
    "Unreadable",
    "check_header",
    "from_bytes",
    "is_count",
    "plain_json",
    "read_sealed",
    "to_bytes",
    "write_sealed",
]

FORMAT = 1
METADATA = "scoretk"
KEYS = {"format", "kind", "seal", "header"}
BLANK = b"0" * 64
LONGEST_JSON = 100_000_000
"""Bytes: the most that the reader of safetensors takes."""

CHUNK = 1 << 24

_DAMAGE = (
    SafetensorError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RuntimeError,
    MemoryError,
)
"""What reading a malformed file may raise (`RecursionError` is a `RuntimeError`)."""


class Unreadable(ValueError):
    """A file is damaged, unreadable, or not of the kind asked for; the message says which."""


def write_sealed(
    path: Path, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write a file atomically (`core.files`): what was there stays until the new one is whole.

    Args:
        path: Where to.
        kind: What is in it, such as "run".
        tensors: By name.
        header: Plain values, ready for JSON.

    Raises:
        OSError: The disk refuses.
        ValueError: The tensors or the header cannot be put into such a file.
    """
    # Random, so that it is found again in the text whatever else is in it.
    placeholder = hashlib.sha256(os.urandom(32)).hexdigest()
    try:
        about = {"format": FORMAT, "kind": kind, "seal": placeholder, "header": dict(header)}
        content = to_bytes(tensors, {METADATA: json.dumps(about, sort_keys=True)})
    except (SafetensorError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    end = 8 + int.from_bytes(content[:8], "little")
    body = memoryview(content)[end:]
    text = content[:end].replace(placeholder.encode(), BLANK)
    digest = hashlib.sha256(text)
    digest.update(body)
    sealed = content[:end].replace(placeholder.encode(), digest.hexdigest().encode())
    write_atomically(path, sealed, body)


def read_sealed(
    path: Path, kind: str, unsealed: Callable[[Mapping[str, str]], dict[str, Any]] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file that `write_sealed` wrote.

    Args:
        path: The file, which is only read.
        kind: What has to be in it, such as "run".
        unsealed: For files from before there were seals: makes their header from their metadata, or
            raises `ValueError` where they are not such a file. None refuses them.

    Returns:
        The tensors by name, in fresh memory on the CPU, and the header.

    Raises:
        Unreadable: The file is damaged, cannot be read, or is not of this kind.
    """
    try:
        if not is_regular(path):
            raise Unreadable("it is no file")
        with open(path, "rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if length > min(LONGEST_JSON, os.fstat(file.fileno()).st_size):
                raise Unreadable("it is no safetensors file, or truncated")
            text = file.read(length)
            header, seal = _header(text, kind, unsealed)
            if seal is not None:
                digest = hashlib.sha256(head + text.replace(seal, BLANK))
                while part := file.read(CHUNK):
                    digest.update(part)
                if text.count(seal) != 1 or digest.hexdigest().encode() != seal:
                    raise Unreadable("it is damaged: its checksum does not fit")
        with safe_open(path, framework="pt") as opened:
            return {name: fresh(opened.get_tensor(name)) for name in sorted(opened.keys())}, header
    except Unreadable:
        raise
    except _DAMAGE as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def to_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Tensors by name as the bytes of a safetensors file without a seal.

    Raises:
        SafetensorError: Where they cannot be put into one; also ValueError or RuntimeError.
    """
    return save({name: fresh(value.to("cpu")) for name, value in tensors.items()}, metadata)


def from_bytes(content: bytes) -> dict[str, Tensor]:
    """The tensors that `to_bytes` was given, in fresh memory on the CPU."""
    return {name: fresh(value) for name, value in load(content).items()}


def check_header(found: Any, **checks: Callable[[Any], bool]) -> dict[str, Any]:
    """The header `found`, checked to be a dict with these keys alone and values that pass.

    Raises:
        ValueError: Where it is not.
    """
    if not isinstance(found, dict) or found.keys() != checks.keys():
        keys = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"expected the entries {sorted(checks)}, got {keys}")
    for name, holds in checks.items():
        if not holds(found[name]):
            raise ValueError(f"{name} cannot be {found[name]!r:.80}")
    return found


def is_count(value: Any, most: int = 2**63 - 1) -> bool:
    """Whether a value is an integer from 0 to `most`."""
    return type(value) is int and 0 <= value <= most


def plain_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is no JSON, or an object in it has a key twice.
    """
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key stands twice in one JSON object")
    return made


def _header(
    text: bytes, kind: str, unsealed: Callable[[Mapping[str, str]], dict[str, Any]] | None
) -> tuple[dict[str, Any], bytes | None]:
    """The header and the seal; the seal is None in a file from before there were seals."""
    metadata = plain_json(text).get("__metadata__", {})
    about = plain_json(metadata[METADATA]) if set(metadata) == {METADATA} else None
    if not isinstance(about, dict) or set(about) != KEYS:
        if unsealed is None:
            raise Unreadable(f"it is a safetensors file but holds no {kind} that scoretk wrote")
        return unsealed(metadata), None
    if type(about["format"]) is not int or about["format"] != FORMAT:
        raise Unreadable(f"it has format {about['format']!r:.40}, this version reads {FORMAT}")
    if about["kind"] != kind:
        raise Unreadable(f"it belongs to another run: it holds {about['kind']!r:.40}, not {kind!r}")
    seal, header = about["seal"], about["header"]
    if not isinstance(seal, str) or len(seal) != 64 or not isinstance(header, dict):
        raise Unreadable("its metadata are not those of a sealed file")
    return header, seal.encode()
