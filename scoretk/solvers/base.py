"""What a solver is: two pure functions, and attributes that say what it needs and what it costs.

    state       = solver.init(field, x, noise)
    state, info = solver.step(field, state, noise)

`state` is a NamedTuple of tensors (or tuples of tensors) whose field `x` is the position. Leaves
have the chains on axis 0, except those with no axis and those named in the state's `shared` set:
step counters and constant tables, which live on the CPU in eager mode, so that reading them never
stalls a device, and on the device when compiled.

`info` is a dict of per-chain tensors, `(chains,)`. Three names mean something to the driver: "status"
(a `Status` code to freeze the chain with), "evaluations" (where the cost varies from chain to chain
and step to step), and of warmup "warmup_energies" (those beyond what steps are declared to cost).

`Solver` is what every solver has; `GridSolver` and `TunedSolver` are what some have besides;
`Traits` is what a solver may say of itself, and what holds where it says nothing. The rest of the
code asks a solver for nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from scoretk.errors import InvalidArgument
from scoretk.fields.protocols import NoiseSource

__all__ = [
    "DRIVERS",
    "GridSolver",
    "Info",
    "Solver",
    "State",
    "Steps",
    "TableState",
    "Traits",
    "TunedSolver",
    "adapts",
    "as_data",
    "check_settled",
    "has_step_size",
    "is_grid",
    "is_tuned",
    "read_row",
    "traits",
]

Info = dict[str, Tensor]
DRIVERS = frozenset({"status", "evaluations", "warmup_energies"})
"""The names of an `Info` that are the driver's, and no statistics."""


class State(Protocol):
    """A solver's state: a NamedTuple of tensors with the position `x` (see the module)."""

    @property
    def x(self) -> Tensor: ...


class Steps(Protocol):
    """What type checkers see of a solver where it is handed over: its two functions.

    The attributes of `Solver` are class variables of some solvers and properties of others, and no
    protocol admits both to every type checker; they are looked at when a run begins.
    """

    def init(self, field: Any, x: Tensor, noise: NoiseSource) -> Any:
        """The state at position x, `(chains, *event_shape)`."""

    def step(self, field: Any, state: Any, noise: NoiseSource) -> tuple[Any, Any]:
        """The next state and what happened on the way."""


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
        """Whether `step` can be compiled or captured whole.

        That is, whether it is free of synchronisation and of control flow that depends on data.
        What can be captured of a step that cannot is said by `Traits.capturable_ahead`, and by the
        parts that it is made of (`scoretk.core.compiling.part`).
        """

    def init(self, field: Any, x: Tensor, noise: NoiseSource) -> Any:
        """The state at position x, `(chains, *event_shape)`."""

    def step(self, field: Any, state: Any, noise: NoiseSource) -> tuple[Any, Info]:
        """The next state and what happened on the way."""


@runtime_checkable
class TunedSolver(Solver, Protocol):
    """A kernel that warmup tunes.

    What is tuned are leaves of its state that all chains share (`shared`).
    `scoretk.solvers.warmup.tuned.Tunable` has all of this protocol but `adaptation`.
    """

    @property
    def adaptation(self) -> Any:
        """What warmup tunes: a `scoretk.solvers.warmup.adaptation.Adaptation`.

        It has no parts where there is nothing to tune.
        """

    def trial(self, field: Any, state: Any, noise: NoiseSource, shorter: Tensor) -> Any:
        """A step of warmup.

        Args:
            field: The field, bound to the chains.
            state: The state before the step.
            noise: The noise of the chains.
            shorter: `(chains,)`, a factor on each chain's step size.

        Returns:
            A `scoretk.solvers.warmup.learning.Trial`.
        """

    def first_step(
        self, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[float, int]:
        """A step size to begin with, and how many evaluations a chain it took to find it.

        `alive` `(chains,)` of bool says which chains are well.
        """

    def of_leapfrog(self, size: float, dim: int) -> float:
        """This kernel's step size in `dim` dimensions that goes with a leapfrog step size."""


@runtime_checkable
class GridSolver(Solver, Protocol):
    """A solver that carries its own grid and ends."""

    def milestones(self, field: Any) -> tuple[bool, ...]:
        """For each step, whether it completes an interval of the grid.

        The x after such a step is a point of the trajectory, which `keep="all"` keeps.
        """


def _unmoved(field: Any, x: Tensor, noise: NoiseSource) -> Tensor:
    return x


def _none(x: Tensor) -> Mapping[str, tuple[int, ...]]:
    return {}


@dataclass(frozen=True)
class Traits:
    """What a solver may say of itself, as attributes of these names, and the defaults.

    Args:
        varying: The kinds of evaluations that `info["evaluations"]` counts, each as often; by
            default the first of `needs` in alphabetical order.
        reports: The names of its statistics, all that is in `info` but what is the driver's:
            whether a run fits into memory is asked before its first step. Of a solver that says
            nothing they are not counted.
        exact: Whether a step leaves the target's law as it is. Only such kernels run inside other
            solvers.
        temperature: T of the law `p^(1/T)` that the chains end with.
        island: How many neighbouring chains belong together: chains and batches are whole multiples
            of it.
        given_back: Whether what the chains share was tuned by the warmup of another run.
        untuned: Names of what the chains share that warmup does not tune, and `draws.tuned` leaves
            out.
        with_adjoint: `with_adjoint() -> solver`, the same solver with gradients by the adjoint
            equation, which `grad="adjoint"` asks for; None where only its steps can be
            differentiated.
        capturable_ahead: For a solver that is not `capturable`, but whose steps are where the
            length of each is known: `capturable_ahead(state)(i)` makes step i, from this state on
            and as long as warmup changes nothing, by a `step(field, state, noise)` that can be
            captured. Equal ones make equal steps. None where nothing is known ahead.
        as_data: Settings that a graph of `step` is not compiled for. There those that are numbers,
            or tuples of numbers, are tensors `()` (but for 0, which may leave something out); others
            named here `step` does not read.
        capturable_as_loop: For a solver that is not `capturable`: whether `step` is where a graph can
            hold loops whose length it reads when it runs (`scoretk.core.compiling.iterate`).
        step_size: What a kernel that has a step size says of it, None where warmup tunes it; NaN
            where it has none.
        start: `start(field, x, noise) -> x`, which turns the field's start of chains without `init`
            into the solver's; by default it is left as it is.
        times: `times(field)`, of a solver in time that has a grid: its times, of which the first is
            where chains start; None for 0.
        reshaped: `reshaped(x)`, the shapes, by name, that warmup may give leaves of the state that
            chains share, in place of those that `init` gives them; by default none.
    """

    varying: tuple[str, ...]
    reports: tuple[str, ...] = ()
    exact: bool = True
    temperature: float = 1.0
    island: int = 1
    given_back: bool = False
    untuned: frozenset[str] = frozenset()
    with_adjoint: Callable[[], Any] | None = None
    capturable_ahead: Callable[[Any], Callable[[int], Any]] | None = None
    capturable_as_loop: bool = False
    as_data: tuple[str, ...] = ()
    step_size: float | None = math.nan
    start: Callable[[Any, Tensor, NoiseSource], Tensor] = _unmoved
    times: Callable[[Any], Tensor] | None = None
    reshaped: Callable[[Tensor], Mapping[str, tuple[int, ...]]] = _none


def traits(solver: Any) -> Traits:
    """What the solver says of itself, and the defaults for the rest."""
    said = {f.name: getattr(solver, f.name) for f in fields(Traits) if hasattr(solver, f.name)}
    return Traits(**{"varying": (min(solver.needs),)} | said)


def as_data(solver: Any) -> tuple[str, ...]:
    """The settings that are data to the solver's step (`Traits.as_data`).

    None are where a subclass has a step of its own, of which that knows nothing.
    """
    classes = type(solver).__mro__
    said, step = (
        next((i for i, c in enumerate(classes) if name in vars(c)), len(classes))
        for name in ("as_data", "step")
    )
    return traits(solver).as_data if said <= step else ()


def has_step_size(solver: Any) -> bool:
    """Whether the solver has a step size, be it a number or one that warmup tunes."""
    size = traits(solver).step_size
    return size is None or not math.isnan(size)


def is_grid(solver: Any) -> bool:
    """Whether the solver carries its own grid, and so takes no steps, warmup or thin."""
    return callable(getattr(solver, "milestones", None))


def adapts(solver: Any) -> bool:
    """Whether warmup tunes the solver."""
    # one name first: to ask for all of a protocol takes twenty times as long
    is_one = hasattr(solver, "trial") and isinstance(solver, TunedSolver)
    return is_one and bool(solver.adaptation.parts)


def check_settled(name: str, solver: Any) -> None:
    """Refuse a solver that warmup would have to tune, where there is no warmup.

    Args:
        name: The argument that the solver was given as.
        solver: The solver.

    Raises:
        InvalidArgument: Where the solver has anything left to tune.
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
    """Whether what the chains share is tuned, by this run's warmup or by another's given back."""
    return adapts(solver) or traits(solver).given_back


class TableState(NamedTuple):
    """The state of solvers that keep nothing but where chains are, in steps set by a constant table.

    Position x, `(chains, *event_shape)`, in the solver's own coordinates; the table of the steps; the
    index of its next row.
    """

    x: Tensor
    table: Tensor
    step: Tensor

    @property
    def shared(self) -> frozenset[str]:
        """Names of the leaves that all chains share."""
        return frozenset({"table", "step"})


def read_row(table: Tensor, index: Tensor) -> Any:
    """Row `index` of a constant table `(rows, columns)`.

    In eager mode table and index are on the CPU, so that reading them waits for no device.

    Returns:
        One value a column: floats in eager mode, 0-d tensors where the step is compiled.
    """
    if torch.compiler.is_compiling() or index.device.type != "cpu":
        return table.index_select(0, index.reshape(1)).squeeze(0).unbind(0)
    return table[int(index)].tolist()
