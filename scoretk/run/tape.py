"""The noise of many steps, made before they are.

A graph of several steps is to hold the steps' own arithmetic alone. (A compiler that sees several
steps with their noise computes each step again within the next; noise that is read from memory
prevents this.) What a step asks for is found by recording the requests of two steps (`listen`). A
`Tape` answers those for the step's own index; all others go to the noise itself and are computed in
the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scoretk.core.compiling import compiled
from scoretk.core.noise import DerivedNoise, Noise
from scoretk.fields.resolve import Bound
from scoretk.run.state import state_leaves

__all__ = ["Heard", "Request", "Tape", "TapedNoise", "listen"]

COMPILED_NOISE = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether a CPU makes noise faster by a compiled function. Where its registers do not multiply
64-bit integers, NumPy is as fast, has the bits of an eager run, and ten seconds less to compile.
"""
WINDOW_VALUES = 1 << 19
"""About how many values a tape computes ahead for a request, in at most 128 reads."""


class Request(NamedTuple):
    """A request to the noise: its method, and its arguments but for the step's index."""

    method: str
    stream: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Heard(NamedTuple):
    """What `listen` finds.

    `asked` are a step's requests to the noise for its own index; `is_all` is whether it makes no
    other; `operations` is the number of its operations without those of the noise; `kept` names the
    leaves of the state that it hands on as they are.
    """

    asked: tuple[Request, ...]
    is_all: bool
    operations: int
    kept: frozenset[str] = frozenset()


class _Asking(DerivedNoise):
    """A source of noise with the attributes of another one."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.noise, name)

    def _own(
        self, method: str, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None
    ) -> Tensor:
        """What the noise itself answers."""
        values: Tensor = getattr(self.noise, method)(step, stream, shape, dtype)
        return values


class _Operations(TorchDispatchMode):
    """Counts torch's operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class _Listener(_Asking):
    """Records each request with its step, and does not count the operations of the noise."""

    def __init__(self, noise: Noise, operations: _Operations) -> None:
        super().__init__(noise)
        self.heard: list[tuple[int, Request]] = []
        self.operations = operations

    def _ask(
        self, method: str, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None
    ) -> Tensor:
        self.heard.append(
            (int(step), Request(method, int(stream), tuple(shape), dtype or self.noise.dtype))
        )
        before = self.operations.count
        values = self._own(method, step, stream, shape, dtype)
        self.operations.count = before
        return values


class TapedNoise(_Asking):
    """The noise of one step: from a tape where that holds the request, else from the noise."""

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
        return self._own(method, step, stream, shape, dtype)


def listen(solver: Any, bound: Bound, state: Any, noise: Noise, step: int) -> Heard:
    """The requests of a step to the noise, and its operations, from two steps that are dropped.

    A request that is also made for another step's index, or in only one of the two steps, is left
    to the graph. The operations are those of the second step, as the first may compute what later
    steps reuse.

    Args:
        solver: The solver whose step it is.
        bound: The field, bound to its conditions.
        state: The state before the first of the two steps.
        noise: The run's noise.
        step: The index of that step.

    Returns:
        The requests and the number of operations.
    """
    heard: list[list[tuple[int, Request]]] = []
    before = state_leaves(state)
    for _ in range(2):
        with _Operations() as operations:
            listener = _Listener(noise, operations)
            state, _ = solver.step(bound, state, listener)
        heard.append(listener.heard)
    own = [
        {request for index, request in of_step if index == step + ahead}
        for ahead, of_step in enumerate(heard)
    ]
    other = {
        request
        for ahead, of_step in enumerate(heard)
        for index, request in of_step
        if index != step + ahead
    }
    served = (own[0] & own[1]) - other
    everything = {request for of_step in heard for _, request in of_step}
    kept = frozenset(n for n, leaf in state_leaves(state).items() if leaf is before[n])
    return Heard(tuple(sorted(served, key=repr)), served == everything, operations.count, kept)


class Tape:
    """The answers to some requests for windows of steps, by one compiled function where that pays.

    Args:
        noise: The noise of the run, for all of its chains.
        asked: The requests, as in `Heard.asked`.
        length: The number of steps that are read at a time.
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
        as_on_cpu = noise.chains.device.type == "cpu" and not COMPILED_NOISE
        self._compiled = None if as_on_cpu else compiled(self._window, (asked, self.steps))

    def _window(self, steps: Tensor) -> list[Tensor]:
        return [self.noise.ahead(r.method, steps, r.stream, r.shape, r.dtype) for r in self.asked]

    def _make(self, start: int) -> list[Tensor]:
        """The values of the window that begins at this step."""
        if self._compiled is not None:
            at = torch.arange(start, start + self.steps, device=self.noise.chains.device)
            values: list[Tensor] = self._compiled(at)
            return values
        steps = range(start, start + self.steps)
        return [self.noise.at_once(r.method, steps, r.stream, r.shape, r.dtype) for r in self.asked]

    def read(self, step: int) -> list[Tensor]:
        """For each request its values at `[step, step + length)`, `(length, chains, *shape)`."""
        values, at = self._window_of(step)
        return [value[at : at + self.length] for value in values]

    def read_most(self, step: int, most: int) -> tuple[list[Tensor], int]:
        """As `read`, for as many steps as the window has, at most so many; and how many these are.

        They lie in memory of their own: a graph is for tensors at the start of theirs, or for others.
        """
        values, at = self._window_of(step)
        count = min(most, self.steps - at)
        return [value[at : at + count].clone() for value in values], count

    def _window_of(self, step: int) -> tuple[list[Tensor], int]:
        """The values of the window that a step is in, and where it is there."""
        start = step - step % self.steps
        if self.asked and start != self._start:
            # windows start at multiples of their length: a resumed run makes the same ones
            self._start, self._values = start, self._make(start)
        return self._values, step - start

    def at(self, values: Sequence[Tensor], index: int) -> TapedNoise:
        """The noise of step `index` of those whose values were read."""
        return TapedNoise(self.noise, self.asked, [value[index] for value in values])
