"""What ranks tell one another through the store of their process group: questions that are answered in time, and errors."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from queue import SimpleQueue
from typing import Any

from scoretk.errors import RankFailure
from scoretk.run.group import dist

__all__ = ["Answering", "StoreThread", "lost", "packed", "unpacked"]

RAISED = "It was raised on rank"
STILL = 10.0
"""Seconds of silence of a process that its own error speaks of."""
LARGEST = 4 << 20
"""The most bytes of an error that is told whole, such as one with a tensor in it: a store takes 8 MiB at once."""
PARTS = 4
"""Of a wait, so that a process that is stopped itself, for however long, loses one of them and not all."""


class StoreThread:
    """Asks a store in a thread of its own, so that its silence is an error and no wait without end.

    A process that is stopped, or a machine that is gone, leaves its connections open.

    Args:
        timeout: The seconds within which it has to answer.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout, self._dead = timeout, False
        self._questions = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]()
        threading.Thread(target=self._serve, name="scoretk-store", daemon=True).start()

    def _serve(self) -> None:
        while (asked := self._questions.get()) is not None:
            answer, question = asked
            try:
                answer.set_result(question())
            except BaseException as error:  # noqa: BLE001 (raised where it was asked)
                answer.set_exception(error)

    def ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """What the store answers.

        Raises:
            DistStoreError: It does not, or cannot be reached.
        """
        answer = Future[Any]()
        if not self._dead:
            self._questions.put((answer, partial(question, *arguments)))
            for _ in range(PARTS):
                if wait([answer], self.timeout / PARTS).done:
                    return answer.result()
            self._dead = True
        raise dist.DistStoreError(f"it has not answered for {self.timeout:g} s")

    def close(self) -> None:
        """End the thread, when it has its answer."""
        self._questions.put(None)


class Answering:
    """A store, asked in a thread where there is one.

    Args:
        store: The store.
        thread: The thread.
    """

    def __init__(self, store: Any, thread: StoreThread | None) -> None:
        self._store, self._thread = store, thread

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._store, name)
        return own if self._thread is None else partial(self._thread.ask, own)


def lost(error: BaseException, silence: float = 0.0) -> RankFailure:
    """An error of torch.distributed that says that another process is gone, as one of this package.

    Args:
        error: The error, of which `is_lost`.
        silence: The seconds since this process's own last heartbeat.
    """
    found = RankFailure(
        f"another process, or the store that torchrun or rank 0 keeps, cannot be reached: {error}"
    )
    for note in _notes(error):
        found.add_note(note)
    if silence > STILL:
        found.add_note(f"This process itself had no heartbeat for {silence:.0f} s before that.")
    return found


def packed(error: BaseException, rank: int) -> bytes:
    """An error for other processes; as text alone where it cannot be pickled, or is too large."""
    text = f"{type(error).__name__}: {error}"[:LARGEST]
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:  # noqa: BLE001 (whatever a class of errors does there)
        content = b""
    if not 0 < len(content) <= LARGEST:
        content = pickle.dumps(RankFailure(text))
    return pickle.dumps((rank, content))


def unpacked(told: bytes, rank: int, own: BaseException | None = None) -> BaseException:
    """The error of some rank as this one raises it, `own` where it is its own, or both leave.

    As torch.distributed does for objects, it is unpickled: the ranks of a job trust one another.
    """
    whose, content = pickle.loads(told)
    if whose == rank and own is not None:
        return own
    try:
        error: BaseException = pickle.loads(content)
    except Exception as failure:  # noqa: BLE001 (a class that is not here)
        error = RankFailure(f"an error that cannot be told here: {failure}")
    if isinstance(error, SystemExit) and isinstance(own, SystemExit):
        return own
    if isinstance(error, SystemExit):  # it was that rank's own end: here it would look like success
        error = RankFailure(f"rank {whose} of the job has left it: SystemExit: {error.code}")
    if not any(note.startswith(RAISED) for note in _notes(error)):  # passed on by one who was told
        error.add_note(f"{RAISED} {whose}.")
    return error


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))
