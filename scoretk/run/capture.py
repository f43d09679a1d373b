"""The noise of many steps made ahead of a compiled graph, which then holds the step's own
arithmetic and nothing else.

With the noise inside the graph a compiler that sees several steps recomputes each in the next; read
from memory it does not. What a step asks for is found by listening to two steps: a tape serves
requests for the step's own index, and passes any other on to the noise itself, to be computed in
the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk.core.compiling import compiled
from scoretk.core.noise import Noise

__all__ = ["Request", "Tape", "requests"]

WINDOW_VALUES = 1 << 18


class Request(NamedTuple):
    """One thing that a step asks of the noise: which method, with which arguments beside the step."""

    method: str
    stream: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class _Asking:
    """A noise source with its three methods as one; the rest is the noise's own."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.noise, name)

    def _ask(
        self, method: str, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None
    ) -> Tensor:
        raise NotImplementedError

    def normal(
        self, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None = None
    ) -> Tensor:
        """As `Noise.normal`."""
        return self._ask("normal", step, stream, shape, dtype)

    def uniform(
        self, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None = None
    ) -> Tensor:
        """As `Noise.uniform`."""
        return self._ask("uniform", step, stream, shape, dtype)

    def rademacher(
        self, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None = None
    ) -> Tensor:
        """As `Noise.rademacher`."""
        return self._ask("rademacher", step, stream, shape, dtype)


class _Listener(_Asking):
    """Notes every request with the step that it is for."""

    def __init__(self, noise: Noise) -> None:
        super().__init__(noise)
        self.heard: list[tuple[int, Request]] = []

    def _ask(
        self, method: str, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None
    ) -> Tensor:
        self.heard.append(
            (int(step), Request(method, int(stream), tuple(shape), dtype or self.noise.dtype))
        )
        return getattr(self.noise, method)(step, stream, shape, dtype)


class _Player(_Asking):
    """One step's view of a tape: answers in the order of the requests."""

    def __init__(self, noise: Noise, asked: tuple[Request, ...], values: Sequence[Tensor]) -> None:
        super().__init__(noise)
        self.asked, self.values = asked, values

    def _ask(
        self, method: str, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None
    ) -> Tensor:
        wanted = Request(method, int(stream), tuple(shape), dtype or self.noise.dtype)
        for request, value in zip(self.asked, self.values, strict=True):
            if request == wanted:
                return value
        return getattr(self.noise, method)(step, stream, shape, dtype)


def requests(
    solver: Any, bound: Any, state: Any, noise: Noise, step: int
) -> tuple[tuple[Request, ...], bool]:
    """What a step asks of the noise for its own index, found out by making two steps, whose results
    are dropped.

    A request that also comes for another step's index, or in one of the two steps only, is left to
    the graph.

    Returns:
        the requests; whether they are all that is asked.
    """
    heard: list[list[tuple[int, Request]]] = []
    for _ in range(2):
        listener = _Listener(noise)
        state, _ = solver.step(bound, state, listener)
        heard.append(listener.heard)
    own = [
        {request for index, request in part if index == step + ahead}
        for ahead, part in enumerate(heard)
    ]
    other = {
        request
        for ahead, part in enumerate(heard)
        for index, request in part
        if index != step + ahead
    }
    served = (own[0] & own[1]) - other
    everything = {request for part in heard for _, request in part}
    return tuple(sorted(served, key=repr)), served == everything


class Tape:
    """The answers to some requests for windows of steps, computed by one compiled function.

    Args:
        noise: The noise.
        asked: From `requests`.
        length: The steps that a reader takes at a time.
    """

    def __init__(self, noise: Noise, asked: tuple[Request, ...], length: int) -> None:
        self.noise, self.asked, self.length = noise, asked, length
        size = max(
            [len(noise.chains) * max(1, torch.Size(r.shape).numel()) for r in asked], default=1
        )
        self.steps = length * max(
            1, min(1 << max(WINDOW_VALUES // (size * length), 1).bit_length() - 1, 128)
        )
        self._start, self._values = -1, list[Tensor]()
        self._make = compiled(self._window, (asked, len(noise.chains), self.steps))

    def _window(self, steps: Tensor) -> list[Tensor]:
        return [self.noise.ahead(r.method, steps, r.stream, r.shape, r.dtype) for r in self.asked]

    def read(self, step: int) -> list[Tensor]:
        """For each request the values of the steps `[step, step + length)`: `(length, chains,
        *shape)`.
        """
        start = step - step % self.steps
        if self.asked and start != self._start:
            # windows start at multiples of their length, so that a resumed run computes
            # them in the same way
            steps = torch.arange(start, start + self.steps, device=self.noise.chains.device)
            self._start, self._values = start, self._make(steps)
        at = step - start
        return [value[at : at + self.length] for value in self._values]

    def player(self, values: Sequence[Tensor], index: int) -> _Player:
        """The noise of one step among those read."""
        return _Player(self.noise, self.asked, [value[index] for value in values])
