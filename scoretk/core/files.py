"""Files on disk: paths that are checked before anything is spent, and atomic writing.

A file is written beside its place, as `.NAME.PID.tmp`, flushed to the disk and then renamed, so
that a kill at any moment leaves one whole file, the old or the new. What a killed process leaves
behind is removed by the next one that writes there. A symbolic link is followed: its target is
replaced, and the link stays. Permissions are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from scoretk.errors import InvalidArgument

__all__ = [
    "as_path",
    "file_to_read",
    "file_to_write",
    "folder_to_write",
    "is_regular",
    "lives",
    "replace_folder",
    "stem_of",
    "write_atomically",
]

LONGEST_NAME = 200
"""Bytes; a longer file name goes into the name of the temporary file as a digest, as most file
systems take names of 255.
"""

Buffer = bytes | bytearray | memoryview


def as_path(argument: str, path: Any, expected: str = "the path of a file") -> Path:
    """A path that the file system can be asked about.

    Args:
        argument: The argument that errors name.
        path: What the user gave: a string or a path object.
        expected: What errors say was expected.

    Returns:
        The path.

    Raises:
        InvalidArgument: It is no path, is empty, holds a NUL, or names a folder.
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
    """The path of a regular file that exists.

    A FIFO or a device is refused, so that nothing waits for one.

    Args:
        argument: The argument that errors name.
        path: What the user gave.
        expected: What errors say was expected.

    Returns:
        The path.

    Raises:
        InvalidArgument: No regular file is there.
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
    """The path of a regular file, or of one that can be created.

    Args:
        argument: The argument that errors name.
        path: What the user gave.
        expected: What errors say was expected.

    Returns:
        The path.

    Raises:
        InvalidArgument: Something else is there, or its folder does not exist or cannot be written
            to.
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
    _check_around(argument, file, expected)
    return file


def _check_around(argument: str, path: Path, expected: str) -> None:
    """Refuse a path in whose folder nothing can be made."""
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise InvalidArgument(argument, str(path), f"{expected} in a folder that exists")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidArgument(argument, str(path), f"{expected} in a folder that can be written to")


def folder_to_write(argument: str, path: Any, marks: Iterable[str]) -> Path:
    """The path of a folder that can be created, or of one of this kind.

    Args:
        argument: The argument that errors name.
        path: What the user gave.
        marks: Files of which one at least is in each folder of the kind.

    Returns:
        The path.

    Raises:
        InvalidArgument: Something else is there, or the place cannot be written to.
    """
    folder = as_path(argument, path)
    if folder.exists() and not any((folder / mark).is_file() for mark in marks):
        raise InvalidArgument(
            argument, str(folder), f"a new folder, or one with {' or '.join(marks)} in it"
        )
    _check_around(argument, folder, "the path of a folder")
    return folder


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Put a folder at `path`, in place of the one that is there.

    It is made beside its place, as `.NAME.PID.1.tmp`. What fails leaves the old one where it was; a
    kill between two renamings leaves it beside, as `.NAME.PID.2.tmp`.

    Args:
        path: Where to, links followed.
        write: Makes the folder at the path that it is given.

    Raises:
        OSError: The folder cannot be written.
    """
    target = Path(os.path.realpath(path))
    name = stem_of(target.name)
    _clear(target.parent, name)
    beside, old = (target.with_name(f".{name}.{os.getpid()}.{k}.tmp") for k in (1, 2))
    try:
        write(beside)
        if target.exists():
            os.replace(target, old)
        os.replace(beside, target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def is_regular(path: Path) -> bool:
    """Whether a regular file is there, links followed.

    Raises:
        OSError: Nothing is there.
    """
    return stat.S_ISREG(os.stat(path).st_mode)


def write_atomically(path: Path, parts: Iterable[Buffer]) -> None:
    """Put the parts, one after the other, at `path` in one step; flushed when this returns.

    Args:
        path: Where to, links followed.
        parts: The bytes of the file, each asked for when those before it are written.

    Raises:
        OSError: The file cannot be written, or what is there is no regular file.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(f"{_what(target)} is there, not a file")
    stem = stem_of(target.name)
    _clear(target.parent, stem)
    beside = target.with_name(f".{stem}.{os.getpid()}.tmp")
    try:
        _write(beside, parts, None if mode is None else stat.S_IMODE(mode))
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system can flush a folder
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


def stem_of(name: str) -> str:
    """A name to which something can be added: itself, or its hash where it is too long for that."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= LONGEST_NAME else hashlib.sha256(encoded).hexdigest()


def _clear(folder: Path, stem: str) -> None:
    """Remove the files `.STEM.PID.tmp` and folders `.STEM.PID.1.tmp` of processes that no longer run."""
    left = re.compile(rf"\.{re.escape(stem)}\.([1-9][0-9]*)(\.1)?\.tmp")
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            found = left.fullmatch(name)
            if found is None or lives(int(found[1])):
                continue
            if found[2]:
                shutil.rmtree(folder / name, ignore_errors=True)
            else:
                (folder / name).unlink(missing_ok=True)


def lives(process: int) -> bool:
    """Whether another process of this number runs; True where the system cannot say."""
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
