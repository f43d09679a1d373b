"""Files on the disk.

Paths that are checked before anything is spent, and writing that is whole or not at all.

A file is written beside its place, as `.NAME.PID.tmp`, flushed to the disk and then put there, so
that a kill at any moment leaves one whole file. What a killed process leaves beside is cleared by
the next one that writes there. A symbolic link is followed: what it points at is replaced, and the
link stays. Permissions are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scoretk.errors import InvalidArgument

__all__ = ["as_path", "file_to_read", "file_to_write", "is_regular", "write_atomically"]

LONGEST_NAME = 200
"""Bytes of a file's name that still go into the name of the file beside it: most file systems take
names of 255.
"""

Buffer = bytes | bytearray | memoryview


def as_path(argument: str, path: Any, expected: str = "the path of a file") -> Path:
    """A path that the file system can be asked about.

    Raises `InvalidArgument`, which names the argument.
    """
    if not isinstance(path, str | os.PathLike):
        raise InvalidArgument(argument, path, expected)
    try:
        text = os.fsdecode(path)
        encoded = os.fsencode(text)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(argument, repr(path), expected, str(error)) from error
    if b"\0" in encoded or not text:
        raise InvalidArgument(
            argument, text, expected, "A path has characters, and no NUL among them"
        )
    if text.endswith(("/", os.sep)):
        raise InvalidArgument(argument, text, f"{expected}, not of a folder")
    return Path(text)


def file_to_read(argument: str, path: Any, expected: str = "the path of a file") -> Path:
    """The path of a regular file that is there.

    Raises `InvalidArgument`: a FIFO or device is not waited for.
    """
    file = as_path(argument, path, expected)
    try:
        regular = is_regular(file)
    except OSError as error:
        raise InvalidArgument(argument, str(file), expected, str(error)) from error
    if not regular:
        raise InvalidArgument(argument, str(file), expected, f"{_what(file)} is there")
    return file


def file_to_write(argument: str, path: Any, expected: str = "the path of a file") -> Path:
    """The path of a regular file, or of one that can be made.

    Raises `InvalidArgument`, before anything is spent.
    """
    file = as_path(argument, path, expected)
    try:
        if not is_regular(file):
            raise InvalidArgument(
                argument,
                str(file),
                f"{expected}, not of a folder or device",
                f"{_what(file)} is there",
            )
    except FileNotFoundError:  # it is to be made
        pass
    except OSError as error:
        raise InvalidArgument(argument, str(file), expected, str(error)) from error
    folder = Path(os.path.realpath(file)).parent
    if not folder.is_dir():
        raise InvalidArgument(argument, str(file), f"{expected} in a folder that exists")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidArgument(argument, str(file), f"{expected} in a folder that can be written to")
    return file


def is_regular(path: Path) -> bool:
    """Whether a regular file is there, links followed. Raises `OSError` where nothing is."""
    return stat.S_ISREG(os.stat(path).st_mode)


def write_atomically(path: Path, *parts: Buffer) -> None:
    """Put the parts, one behind the other, at `path` in one step, on the disk when this returns.

    Raises `OSError`.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(f"{_what(target)} is there, not a file")
    stem = _stem(target.name)
    _clear(target.parent, stem)
    beside = target.with_name(f".{stem}.{os.getpid()}.tmp")
    try:
        _write(beside, parts, None if mode is None else stat.S_IMODE(mode))
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system lets a folder be flushed
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write(path: Path, parts: Iterable[Buffer], mode: int | None) -> None:
    with open(path, "wb") as file:
        for part in parts:
            file.write(part)
        if mode is not None:
            os.chmod(path, mode)
        file.flush()
        os.fsync(file.fileno())


def _stem(name: str) -> str:
    encoded = os.fsencode(name)
    return name if len(encoded) <= LONGEST_NAME else hashlib.sha256(encoded).hexdigest()


def _clear(folder: Path, stem: str) -> None:
    """Remove what processes that are no more have left: `.STEM.PID.tmp`.

    That of a process that lives is its own.
    """
    left = re.compile(rf"\.{re.escape(stem)}\.([1-9][0-9]*)\.tmp")
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            found = left.fullmatch(name)
            if found is not None and not _lives(int(found[1])):
                (folder / name).unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Whether another process of this number runs; where that cannot be asked, yes."""
    if process == os.getpid() or os.name != "posix":
        return process != os.getpid()
    try:
        os.kill(process, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _what(path: Path) -> str:
    mode = os.stat(path).st_mode
    kinds = {"a folder": stat.S_ISDIR, "a FIFO": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((kind for kind, holds in kinds.items() if holds(mode)), "a device")
