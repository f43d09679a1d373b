"""One job at a time: a lock beside what a job writes, which a crash releases.

The lock is the kernel's (`flock`) on a file `.NAME.lock` beside the path: it ends with the process
that holds it, however that ends, so nothing has to be found stale. The file says whose it is, for
the message. Where a file system knows no locks, the process that the file names is asked for: one
of this machine that is gone has left the file behind, and one of another machine is believed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scoretk.core.files import lives, stem_of
from scoretk.errors import Busy

fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None
"""What Windows does not have."""

__all__ = ["held", "lock_of"]

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What a file system without locks says."""
_HELD: set[Path] = set()
"""The locks of this process."""


def lock_of(path: str | os.PathLike[str]) -> Path:
    """The lock file of a path."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{stem_of(target.name)}.lock")


@contextmanager
def held(path: str | os.PathLike[str], patience: float = 0.0) -> Iterator[None]:
    """A context in which this process alone, and in it this caller alone, writes to a path.

    Args:
        path: What is written: a file or a folder, there or not.
        patience: The seconds that it is waited for another job to end.

    Raises:
        Busy: Another job holds it.
    """
    lock, over = lock_of(path), time.monotonic() + patience
    try:
        while (descriptor := _free(lock, path, over)) is None:
            time.sleep(0.1)
    except OSError as error:
        raise Busy(f"{path} cannot be locked: {error}") from error
    _HELD.add(lock_of(path))
    try:
        yield
    finally:
        _HELD.discard(lock_of(path))
        with contextlib.suppress(OSError):  # removed while it is held, so that nobody else's is
            lock.unlink()
        os.close(descriptor)


def _free(lock: Path, path: object, over: float) -> int | None:
    """As `_taken`; None where another job holds it and there is time left."""
    try:
        return _taken(lock, path)
    except Busy:
        if time.monotonic() >= over:
            raise
        return None


def _taken(lock: Path, path: object) -> int:
    """The lock's file, opened and held."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _claim(descriptor, lock, path)
            if not _is(descriptor, lock):  # its holder has removed it meanwhile
                os.close(descriptor)
                continue
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
        return descriptor


def _claim(descriptor: int, lock: Path, path: object) -> None:
    """Take the kernel's lock, or, where there is none, what a process that is gone has left.

    Raises:
        Busy: Another job holds it.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
    except BlockingIOError as error:
        raise _busy(descriptor, lock, path) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    owner = _owner(descriptor)
    here = owner.get("host") == socket.gethostname()
    gone = here and not lives(int(owner["pid"]))
    if lock in _HELD or (owner and not gone):
        raise _busy(descriptor, lock, path)


def _is(descriptor: int, lock: Path) -> bool:
    """Whether the path still leads to this file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(lock))
    except FileNotFoundError:
        return False


def _owner(descriptor: int) -> dict[str, Any]:
    """Whose lock it is, as far as the file says."""
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return owner if isinstance(owner, dict) and isinstance(owner.get("pid"), int) else {}
    except ValueError:
        return {}


def _busy(descriptor: int, lock: Path, path: object) -> Busy:
    owner = _owner(descriptor)
    who = (
        f"process {owner['pid']} on {owner.get('host')}, since {owner.get('since')}"
        if owner
        else "another process"
    )
    return Busy(
        f"{path} is being written by another job ({who}; {lock.name} beside it). Wait for it, end "
        f"it, or name another path"
    )
