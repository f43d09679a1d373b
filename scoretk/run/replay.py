"""Compiled calls that a CUDA device makes again by itself.

Small steps are bound by their launches, which the host makes one by one. A CUDA graph is the kernels
of many calls, recorded once and then played by one launch. It reads and writes the memory that these
calls had, whatever has happened since: so what a call is given is copied to where the graph reads
it, and what it gives back is copied from where the graph writes it.

What a graph would do wrong without a word is looked for: a number of the host's that was recorded
with it, random numbers, memory that another has by now. What is played the first times has to be
what calling gives, to the bit; else there is a warning, and calls are made as before. A model may
write into its tensors while a run goes on, but not put others in their place.

References:
    Nguyen, Carilli, Eryilmaz, Singh, Lin, Gimelshein, Desmaison, Yang, "Accelerating PyTorch with
    CUDA graphs" (PyTorch, 2021).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from warnings import catch_warnings, filterwarnings

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from scoretk.core.devices import copies_noted
from scoretk.core.warned import warn

__all__ = ["Replayed", "can_play", "recorded"]

WORTH = 0.1
"""Seconds that calls have to take together before they are recorded, which takes about as long."""

LOOKS = 2
"""How many of the first replays are compared with calls."""

Call = Callable[..., Any]


def can_play(device: torch.device) -> bool:
    """Whether a device makes recorded calls again by itself; AMD's drop what they cannot hold."""
    return device.type == "cuda" and torch.version.hip is None


class Replayed:
    """A function of tensors on a CUDA device, of the same shapes at each call.

    It is called until that has taken `WORTH` seconds, recorded then, and played from then on.

    Args:
        function: What is called with, and gives back, nests of tensors.
    """

    def __init__(self, function: Call) -> None:
        self.function = function
        self._player: _Player | None = None
        self._called, self._gave_up, self._spent, self._left = False, False, 0.0, LOOKS

    def __call__(self, *arguments: Any) -> Any:
        if self._player is not None and not self._player.is_of_now():
            self._player, self._left = None, LOOKS
        if self._player is not None and not self._left:
            return self._player(*arguments)
        started = time.perf_counter()
        answer = self.function(*arguments)
        if self._called:  # the first call is the compiler's
            self._spent += time.perf_counter() - started
        self._called = True
        if self._player is not None:
            self._left -= 1
            if not _same(self._player(*arguments), answer):
                self._give_up(
                    "they give other numbers (are there random numbers in the model, or sums in any order?)"
                )
        elif not self._gave_up and self._spent >= WORTH:
            self._record(arguments)
        return answer

    def _record(self, arguments: tuple[Any, ...]) -> None:
        try:
            self._player = _Player(self.function, arguments)
        except RuntimeError as error:
            self._give_up(str(error).strip().partition("\n")[0])

    def _give_up(self, why: str) -> None:
        self._player, self._gave_up = None, True
        warn(
            f"compile=True: steps are launched one by one, as a CUDA graph does not hold them: {why}"
        )


class _Player:
    """A function as one launch.

    Args:
        function: As in `Replayed`.
        arguments: What it is called with, of which all later arguments have the shapes.

    Raises:
        RuntimeError: As `recorded`.
    """

    def __init__(self, function: Call, arguments: tuple[Any, ...]) -> None:
        held = tree_map(_own, arguments)
        self.read = _by_dtype(held)
        device = next(iter(self.read.values()))[0].device
        with copies_noted() as self.copies:
            self.written, self.play = recorded(partial(function, *held), device)

    def is_of_now(self) -> bool:
        """Whether the constants of the host that are in it, as copies, are what they were."""
        return all(constant._version == version for constant, version, _ in self.copies)

    def __call__(self, *arguments: Any) -> Any:
        given = _by_dtype(arguments)
        for dtype, memory in self.read.items():
            torch._foreach_copy_(memory, given[dtype])
        self.play()
        return tree_map(_own, self.written)


def recorded(function: Call, device: torch.device) -> tuple[Any, Callable[[], None]]:
    """A CUDA graph of what a function does.

    Args:
        function: What is called twice: once as it is, once to be recorded.
        device: Where its tensors are.

    Returns:
        What it gave back, which each replay writes anew, and what makes a replay.

    Raises:
        RuntimeError: It asks for something that a graph does not hold, such as a copy from the host's
            memory, or an answer that the host waits for.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    now = torch.cuda.current_stream(device)
    with torch.cuda.stream(now):  # which is the current one again, even where recording fails
        stream.wait_stream(now)
        with torch.cuda.stream(stream):  # libraries take their memory of this stream now
            function()
        now.wait_stream(stream)
        # other threads, such as one that copies draws, are free to wait for the device
        with catch_warnings():
            filterwarnings("ignore", "The CUDA Graph is empty")  # of one that was given up
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                written = function()
    return written, graph.replay


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _tensors(nest: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor)]


def _by_dtype(nest: Any) -> dict[torch.dtype, list[Tensor]]:
    """The tensors of a nest by dtype, as one kernel copies those of one."""
    found: dict[torch.dtype, list[Tensor]] = {}
    for value in _tensors(nest):
        found.setdefault(value.dtype, []).append(value)
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether two nests are equal to the bit."""
    return all(
        torch.equal(a.isnan(), b.isnan())
        and torch.equal(*(v.nan_to_num(0.0, torch.inf, -torch.inf) for v in (a, b)))
        for a, b in zip(_tensors(one), _tensors(other), strict=True)
    )
