"""One job at a time: a lock beside what a job writes, which a crash releases.

The lock is the kernel's (`flock`) on a file `.NAME.lock` beside the path: it ends with the process
that holds it, however that ends, so nothing has to be found stale. The processes of one job hold it
together: the first takes it alone and then shares it, so that it is free when the last of them has
ended. The file says whose it is, for the message, and for those who share. Where a file system
knows no locks, the process that the file names is asked for: one of this machine that is gone has
left the file behind, and one of another machine is believed.
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

__all__ = ["held", "held_with_others", "lock_of"]

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What a file system without locks says."""
_HELD: set[Path] = set()
"""The locks of this process."""
_OPEN: set[int] = set()
"""Their files, each opened once."""


def lock_of(path: str | os.PathLike[str]) -> Path:
    """The lock file of a path."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{stem_of(target.name)}.lock")


@contextmanager
def held(
    path: str | os.PathLike[str], patience: float = 0.0, job: str | None = None
) -> Iterator[None]:
    """A context in which this process alone, and in it this caller alone, writes to a path.

    Args:
        path: What is written: a file or a folder, there or not.
        patience: The seconds that it is waited for another job to end.
        job: The number of a job whose other processes may hold it too (`held_with_others`).

    Raises:
        Busy: Another job holds it.
    """
    lock, over = lock_of(path), time.monotonic() + patience
    try:
        while (descriptor := _free(lock, path, over, job)) is None:
            time.sleep(0.1)
        if job is not None:
            _share(descriptor, lock, path, job)
    except OSError as error:
        raise Busy(f"{path} cannot be locked: {error}") from error
    _HELD.add(lock)
    _OPEN.add(descriptor)
    try:
        yield
    finally:
        _HELD.discard(lock)
        _leave(descriptor, lock)


@contextmanager
def held_with_others(path: str | os.PathLike[str], job: str) -> Iterator[None]:
    """A context in which this process writes to a path that the first one of its job holds.

    So one that outlives the first keeps other jobs away until it has ended.

    Args:
        path: As in `held`.
        job: The number of the job.

    Raises:
        Busy: Another job holds it.
    """
    lock = lock_of(path)
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        _share(descriptor, lock, path, job)
    except OSError as error:
        raise Busy(f"{path} cannot be locked: {error}") from error
    _OPEN.add(descriptor)
    try:
        yield
    finally:
        _leave(descriptor, lock)


def _share(descriptor: int, lock: Path, path: object, job: str) -> None:
    """Hold the lock together with others of a job; closes the file where that fails.

    Raises:
        Busy: Another job holds it.
    """
    try:
        others = _flock(descriptor, "LOCK_SH") and _owner(descriptor).get("job") != job
    except BlockingIOError:
        others = True
    if others:
        busy = _busy(descriptor, lock, path)
        os.close(descriptor)
        raise busy


def _leave(descriptor: int, lock: Path) -> None:
    """Let go, and remove the file, unless others of this job hold it still, or it is a parent's.

    Where there are no locks, who has written it removes it.
    """
    if descriptor not in _OPEN:
        return
    _OPEN.discard(descriptor)
    with contextlib.suppress(OSError):
        if _flock(descriptor, "LOCK_EX") or _owner(descriptor).get("pid") == os.getpid():
            lock.unlink()  # while it is held, so that nobody else's is
    os.close(descriptor)


def _forget() -> None:
    """Close the files that a process has from its parent, whose locks they are.

    Else one that outlives it would hold them on, and one that leaves its contexts let go of them.
    """
    while _OPEN:
        os.close(_OPEN.pop())
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _flock(descriptor: int, kind: str) -> bool:
    """Take the kernel's lock, or as another kind, at once; False where there is none.

    Raises:
        BlockingIOError: Another one is in the way.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, getattr(fcntl, kind) | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return False


def _free(lock: Path, path: object, over: float, job: str | None) -> int | None:
    """As `_taken`; None where another job holds it and there is time left."""
    try:
        return _taken(lock, path, job)
    except Busy:
        if time.monotonic() >= over:
            raise
        return None


def _taken(lock: Path, path: object, job: str | None) -> int:
    """The lock's file, opened and held."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _claim(descriptor, lock, path)
            if not _is(descriptor, lock):  # its holder has removed it meanwhile
                os.close(descriptor)
                continue
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
            owner |= {} if job is None else {"job": job}
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
        if _flock(descriptor, "LOCK_EX"):
            return
    except BlockingIOError as error:
        raise _busy(descriptor, lock, path) from error
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
    if owner:
        who = f"process {owner['pid']} on {owner.get('host')}, since {owner.get('since')}"
    else:
        who = "another process"
    return Busy(
        f"{path} is being written by another job ({who}; {lock.name} beside it). Wait for it, end "
        f"it, or name another path"
    )
