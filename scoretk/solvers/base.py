"""What a solver is.

Two pure functions and a few attributes that say what it needs and what it costs.

    state       = solver.init(field, x, noise)
    state, info = solver.step(field, state, noise)

`state` is a NamedTuple of tensors (or tuples of tensors) whose field `x` is the position. Leaves
have the chains on axis 0, except those with no axis and those named in the state's `shared` set:
step counters and constant tables, which live on the CPU in eager mode, so that reading them never
stalls a device, and on the device when compiled.

`info` is a dict of per-chain tensors, `(chains,)`. Two names mean something to the driver: "status"
(a `Status` code to freeze the chain with) and "evaluations" (where the cost varies from chain to
chain and step to step).

`Solver` is what every solver has; `GridSolver` and `TunedSolver` are what some have besides;
`Traits` is what a solver may say of itself, and what holds where it says nothing. The rest of the
code asks a solver for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from scoretk.errors import InvalidArgument
from scoretk.fields.protocols import NoiseSource

__all__ = [
    "GridSolver",
    "Info",
    "Solver",
    "State",
    "Traits",
    "TunedSolver",
    "adapts",
    "check_settled",
    "is_grid",
    "is_planned",
    "is_tuned",
    "read_row",
    "traits",
]

Info = dict[str, Tensor]


class State(Protocol):
    """A NamedTuple of tensors with the position `x`; see the module's docstring."""

    @property
    def x(self) -> Tensor: ...


@runtime_checkable
class Solver(Protocol):
    """A kernel: something that can make one step after another for ever."""

    @property
    def needs(self) -> frozenset[str]:
        """The field's methods that it calls."""

    @property
    def timed(self) -> bool | None:
        """Whether it works on fields in time (True), on static ones (False) or on both (None)."""

    @property
    def init_cost(self) -> Mapping[str, int]:
        """Evaluations a chain that `init` makes, by kind."""

    @property
    def step_cost(self) -> Mapping[str, int]:
        """Evaluations a chain that each `step` makes, by kind."""

    @property
    def capturable(self) -> bool:
        """Whether `step` can be compiled or captured.

        No synchronisation, no data-dependent control flow.
        """

    def init(self, field: Any, x: Tensor, noise: NoiseSource) -> Any:
        """The state at position x, `(chains, *event_shape)`."""

    def step(self, field: Any, state: Any, noise: NoiseSource) -> tuple[Any, Info]:
        """The next state and what happened on the way."""


@runtime_checkable
class TunedSolver(Solver, Protocol):
    """A kernel that warmup tunes.

    What it tunes are leaves of its state that are not the chains' own (`shared`).

    `scoretk.solvers.warmup.tuned.Tunable` has all of it but `adaptation`.
    """

    @property
    def adaptation(self) -> Any:
        """What of it warmup learns.

        A `scoretk.solvers.warmup.adaptation.Adaptation`, without parts where that is nothing.
        """

    def trial(self, field: Any, state: Any, noise: NoiseSource, shorter: Tensor) -> Any:
        """A step of warmup, a `scoretk.solvers.warmup.learning.Trial`.

        Shorter, a factor on each chain's step size.
        """

    def first_step(
        self, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[float, int]:
        """A step size to begin with, and the evaluations a chain that this took."""

    def of_leapfrog(self, size: float, dim: int) -> float:
        """The step size in `dim` dimensions that goes with a leapfrog step of size `size`."""


@runtime_checkable
class PlannedSolver(Solver, Protocol):
    """A kernel whose steps differ in length, in a way known ahead once warmup is over.

    `capturable` for a given length.
    """

    def ahead(self, state: Any) -> Callable[[int], int]:
        """How long a step is, by its index, from this state on."""

    def taking(self, length: int) -> Any:
        """What has a `step` of that length, which can be captured."""


@runtime_checkable
class GridSolver(Solver, Protocol):
    """A solver that carries its own grid and ends."""

    def milestones(self, field: Any) -> tuple[bool, ...]:
        """One entry a step.

        Whether that step completes an interval of the grid (so that its x is on the way).
        """


def _unmoved(field: Any, x: Tensor, noise: NoiseSource) -> Tensor:
    return x


@dataclass(frozen=True)
class Traits:
    """What a solver may say of itself, as attributes of these names.

    Here is what holds where it says nothing.

    Args:
        exact: whether a step leaves the target's law as it is. Only such kernels run inside other solvers.
        temperature: T of the law `p^(1/T)` that it ends with.
        varying: the kinds of evaluations that `info["evaluations"]` counts, each as often; by default the first of `needs`.
        island: how many neighbouring chains go together: chains and batches are whole multiples of it.
        given_back: whether what its chains share was tuned by the warmup of another run.
        with_adjoint: `with_adjoint() -> solver`, the same solver with gradients by the adjoint equation, which `grad="adjoint"`
            asks for; None where its steps are all that could be differentiated.
        start: `start(field, x, noise) -> x`, where the chains start that have no `init`, from where the field would start
            them; by default there.
    """

    varying: tuple[str, ...]
    exact: bool = True
    temperature: float = 1.0
    island: int = 1
    given_back: bool = False
    with_adjoint: Callable[[], Any] | None = None
    start: Callable[[Any, Tensor, NoiseSource], Tensor] = _unmoved


def traits(solver: Any) -> Traits:
    """What the solver says of itself, and the defaults for the rest."""
    said = {f.name: getattr(solver, f.name) for f in fields(Traits) if hasattr(solver, f.name)}
    return Traits(**{"varying": (min(solver.needs),)} | said)


def is_grid(solver: Any) -> bool:
    """Whether the solver carries its own grid, and so takes no steps, warmup or thin."""
    return callable(getattr(solver, "milestones", None))


def is_planned(solver: Any) -> bool:
    """Whether steps of given length may stand for its `step`.

    Not where a subclass has a `step` of its own beside them.
    """
    if not isinstance(solver, PlannedSolver):
        return False
    kinds = type(solver).__mro__
    step, taking = (
        next((kind for kind in kinds if name in vars(kind)), kinds[0])
        for name in ("step", "taking")
    )
    return issubclass(taking, step)


def adapts(solver: Any) -> bool:
    """Whether warmup tunes the solver."""
    return isinstance(solver, TunedSolver) and bool(solver.adaptation.parts)


def check_settled(name: str, solver: Any) -> None:
    """Raises `InvalidArgument` for a solver that warmup would have to tune.

    Where there is none, its settings mean nothing.
    """
    if adapts(solver):
        raise InvalidArgument(
            name,
            solver,
            "one with nothing to tune, as there is no warmup here",
            "Give it what warmup would find: its step_size (and length) and metric='none', as in "
            "HMC(0.3, metric='none')",
        )


def is_tuned(solver: Any) -> bool:
    """Whether what its chains share was tuned.

    By this run's warmup, or by another's that was given back to it.
    """
    return adapts(solver) or traits(solver).given_back


def read_row(table: Tensor, index: Tensor) -> Any:
    """Row `index` of a constant table `(rows, columns)`.

    Floats in eager mode, 0-d tensors where the step is compiled.

    In eager mode table and index are on the CPU, so that reading them waits for nothing.
    """
    if torch.compiler.is_compiling() or index.device.type != "cpu":
        return table.index_select(0, index.reshape(1)).squeeze(0).unbind(0)
    return table[index].tolist()
