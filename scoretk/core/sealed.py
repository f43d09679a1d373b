"""Tensors and a header of plain values in one safetensors file with a checksum; never pickle.

A safetensors file is a length, a JSON text that says where each tensor lies, and the tensors'
bytes. The metadata here have one entry,

    {"format": 1, "kind": "run", "seal": SHA-256, "header": {...}}

where the seal is the checksum of the whole file, with zeros in place of its own 64 digits. So no
bit of the file can change unnoticed: a changed seal does not fit the rest, and a change of anything
else does not fit the seal. Tensors are written piece by piece from where they are, so that a file
needs no memory of its own, and read into fresh memory (`core.arrays`), or, as `Stored`, into where
they belong.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from scoretk.core.arrays import as_bytes, fresh
from scoretk.core.files import is_regular, write_atomically

__all__ = [
    "Stored",
    "Unreadable",
    "check_header",
    "from_bytes",
    "is_count",
    "open_sealed",
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

CHUNK = 1 << 20
"""Bytes that are read at a time for a checksum, and copied between tensors and files."""
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What dtypes are called in safetensors files."""

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
        text = _text(tensors, {METADATA: json.dumps(about, sort_keys=True)})
        digest = hashlib.sha256(text.replace(placeholder.encode(), BLANK))
        for piece in _body(tensors):
            digest.update(piece)
    except (SafetensorError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    sealed = text.replace(placeholder.encode(), digest.hexdigest().encode())
    write_atomically(path, chain([sealed], _body(tensors)))


def _in_order(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The tensors in the order of such files: the widest numbers first, so that all are aligned."""
    return sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))


def _text(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The length and the JSON text that begin a file.

    Raises:
        ValueError: A tensor's numbers have no place in such a file.
    """
    about: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, value in _in_order(tensors):
        if value.dtype not in CODES or value.layout is not torch.strided or value.is_nested:
            raise ValueError(f"{name} is {value.dtype}, {value.layout}, which no file holds")
        begin, end = end, end + value.numel() * value.element_size()
        about[name] = {
            "dtype": CODES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _body(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of all tensors, a piece at a time."""
    for _, value in _in_order(tensors):
        yield from _pieces(value.detach())


def _pieces(value: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor in order, a piece at a time."""
    for part in _parts(value):
        yield _bytes(part)


def _parts(value: Tensor) -> Iterator[Tensor]:
    """A tensor in parts of about `CHUNK` bytes, in order."""
    size = value.numel() * value.element_size()
    if size <= CHUNK or not value.ndim:
        yield from [value] if size else []
    elif (rows := CHUNK * len(value) // size) < 2:
        for row in value:
            yield from _parts(row)
    else:
        yield from value.split(rows)


def _bytes(value: Tensor) -> memoryview:
    plain = value.to("cpu").resolve_conj().resolve_neg().contiguous()
    return as_bytes(plain).numpy().data


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, which is read to where it belongs.

    Args:
        path: The file.
        begin: Where its bytes begin.
        dtype: Its dtype.
        shape: Its shape.
    """

    path: Path
    begin: int
    dtype: torch.dtype
    shape: torch.Size

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def into(self, out: Tensor) -> Tensor:
        """Read it into a tensor of its shape, a piece at a time.

        Raises:
            ValueError: The file has become shorter, or the tensor has another shape or dtype.
        """
        if out.shape != self.shape or out.dtype != self.dtype:
            raise ValueError(f"{self.dtype} of shape {tuple(self.shape)} does not fit")
        with open(self.path, "rb") as file:
            file.seek(self.begin)
            for part in _parts(out):
                read = torch.empty(part.shape, dtype=part.dtype)
                if file.readinto(_bytes(read)) != read.numel() * read.element_size():
                    raise ValueError("the file has become shorter")
                part.copy_(read)
        return out

    def read(self, device: torch.device) -> Tensor:
        """The tensor, in memory of its own."""
        return self.into(torch.empty(self.shape, dtype=self.dtype, device=device))


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
        _, header = _checked(path, kind, unsealed)
        with safe_open(path, framework="pt") as opened:
            return {name: fresh(opened.get_tensor(name)) for name in sorted(opened.keys())}, header
    except Unreadable:
        raise
    except _DAMAGE as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def open_sealed(path: Path, kind: str) -> tuple[dict[str, Stored], dict[str, Any]]:
    """As `read_sealed`, with tensors that are still to be read.

    Args:
        path: The file.
        kind: What has to be in it.

    Returns:
        The tensors by name, and the header.

    Raises:
        Unreadable: As `read_sealed`.
    """
    try:
        text, header = _checked(path, kind, None)
        with safe_open(path, framework="pt") as opened:  # which refuses what is malformed
            names = sorted(opened.keys())
        about, begin = plain_json(text), 8 + len(text)
        dtypes = {code: dtype for dtype, code in CODES.items()}
        return {name: _stored(path, begin, about[name], dtypes) for name in names}, header
    except Unreadable:
        raise
    except _DAMAGE as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _stored(
    path: Path, begin: int, entry: dict[str, Any], dtypes: Mapping[str, torch.dtype]
) -> Stored:
    """A tensor of a file by its entry in the text, whose bytes end at `begin`."""
    start, shape = begin + entry["data_offsets"][0], torch.Size(entry["shape"])
    return Stored(path, start, dtypes[entry["dtype"]], shape)


def _checked(
    path: Path, kind: str, unsealed: Callable[[Mapping[str, str]], dict[str, Any]] | None
) -> tuple[bytes, dict[str, Any]]:
    """The text and the header of a file whose seal fits all of it."""
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
    return text, header


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
