"""What solvers that warmup tunes have in common, and solvers that are given back what it tuned.

What warmup tunes are leaves of the state that all chains share
(`scoretk.solvers.base.TunedSolver`); draws carry them as `draws.tuned`. `solver.tuned_by(draws)` is
the solver with these leaves in place of its own: it has nothing left to tune, and so runs without
warmup, as in `stk.sample(field, solver.tuned_by(draws), init=draws.final, warmup=0)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import fraction, positive
from scoretk.core.rows import across
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.protocols import NoiseSource
from scoretk.solvers.base import Info, Solver, traits
from scoretk.solvers.parts.leapfrog import Point, is_factor, leapfrog
from scoretk.solvers.parts.metropolis import metropolis
from scoretk.solvers.warmup.adaptation import Adaptation, Approach
from scoretk.solvers.warmup.learning import Trial
from scoretk.solvers.warmup.step_size import DualAveraging, first_step_size

__all__ = ["GIVEN", "Before", "StepTuned", "StepTunedState", "Tunable", "Tuned"]


GIVEN = torch.tensor(torch.nan, dtype=torch.float64)
"""Stands in a state for a step size that its kernel was given as a number."""
FIRST_ACCEPT = 0.8
"""The acceptance of single leapfrog steps at which the first step size is chosen."""


class Tunable:
    """What solvers that warmup tunes have in common.

    Their state holds `x`, `energy`, `grad`, `step` and `step_size`, and what is tuned as leaves
    that all chains share.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[Any, Info]]

    @property
    def adaptation(self) -> Adaptation:
        """What warmup learns of the solver."""
        raise NotImplementedError

    @property
    def adapts(self) -> bool:
        """Whether warmup learns anything."""
        return bool(self.adaptation.parts)

    def trial(self, field: Any, state: Any, noise: NoiseSource, shorter: Tensor) -> Trial:
        """A step of warmup.

        Args:
            field: The field, bound to the chains.
            state: The state before the step.
            noise: The noise of the chains.
            shorter: `(chains,)`, a factor on each chain's step size.
        """
        size = state.step_size.to(state.x.dtype) * shorter
        new, info = self.step(field, state._replace(step_size=size), noise)
        return Trial(new._replace(step_size=state.step_size), info, info["accept"])

    def of_leapfrog(self, size: float, dim: int) -> float:
        """This solver's step size in `dim` dimensions that goes with a leapfrog step size."""
        return size

    def first_step(
        self, field: Any, state: Any, noise: NoiseSource, alive: Tensor
    ) -> tuple[float, int]:
        """A step size to begin with, from the acceptance of single leapfrog steps.

        Args:
            field: The field, bound to the chains.
            state: The state at the start, with `x`, `energy` and `grad`.
            noise: The noise of the chains.
            alive: `(chains,)` of bool, the chains that are well.

        Returns:
            The step size, and how many leapfrog steps were tried: as many evaluations a chain.
        """
        here, shape, tried = Point(state.x, state.energy, state.grad), tuple(state.x.shape[1:]), 0

        def accept(size: float) -> float:
            nonlocal tried
            tried += 1
            momentum = noise.normal(state.step, Stream.PROPOSAL, shape, state.x.dtype)
            end = leapfrog(field, here, momentum, size, 1, state.x.new_ones(shape))
            rates = metropolis(here, end.point, end.log_ratio, state.step, noise)[1]
            return float(rates[alive].mean())

        return self.of_leapfrog(
            first_step_size(accept, FIRST_ACCEPT), state.x.shape[1:].numel()
        ), tried

    def tuned_by(self, draws: Any) -> Tuned:
        """This solver with the values that another run's warmup tuned, so that it needs no warmup.

        The tuned values replace the solver's own step size, length and scales; all else is as the
        solver says.

        Args:
            draws: The draws of a run of a solver of this class on events of the same shape, or
                their `tuned`. They may be of a run with values given back, and may have been saved
                and loaded. A run from `init=draws.final` with their seed has other noise than they
                had.

        Raises:
            InvalidArgument: Where nothing was tuned, or another class of solver; where the shapes
                do not fit, at the start of a run.
        """
        values, provenance = getattr(draws, "tuned", None), getattr(draws, "provenance", None)
        if not isinstance(values, Mapping) or not isinstance(provenance, Mapping):
            raise InvalidArgument(
                "draws", draws, "draws, as scoretk.sample returns them, or draws.tuned"
            )
        theirs, own = str(provenance.get("solver", "")).partition("(")[0], type(self).__name__
        wanted = f"draws of a {own} whose warmup has tuned something"
        if not values:
            hint = "What a solver is given, such as its step_size, is not tuned"
            raise InvalidArgument("draws", f"draws of {theirs}, with nothing tuned", wanted, hint)
        if theirs != own:
            raise InvalidArgument(
                "draws",
                f"{', '.join(sorted(values))} tuned for {theirs or 'no solver'}",
                wanted,
                "A step size means another thing to another solver: let each tune its own",
            )
        for name, value in values.items():
            if not isinstance(value, Tensor) or not bool(value.isfinite().all()):
                raise InvalidArgument(f"draws.tuned[{name!r}]", value, "a tensor of finite numbers")
            _check_positive(name, value, _may_be_factor(value))
        before = Before(
            int(provenance.get("seed", 0)),
            int(provenance.get("continues", 0)),
            row_marks(draws.final),
        )
        solver: Any = self  # all of `Solver` but what a kernel itself says
        return Tuned(solver, dict(values), before)


def _may_be_factor(scale: Tensor) -> bool:
    """Whether scales may be a Cholesky factor; positions in the solver's own space tell whether they are.

    Draws do not tell: they are in the user's space, where three numbers may be a matrix `(3, 3)`.
    """
    return scale.ndim == 2 and torch.equal(scale, scale.tril())


def _check_positive(name: str, value: Tensor, by_diagonal: bool) -> None:
    """Check a tuned step size, or tuned scales: of a Cholesky factor the diagonal.

    Raises:
        InvalidArgument: It is not positive throughout.
    """
    if name == "scale" and by_diagonal:
        value = value.diagonal()
    if name in ("step_size", "scale") and not bool((value > 0).all()):
        raise InvalidArgument(f"draws.tuned[{name!r}]", value, "positive numbers")


@dataclass(frozen=True, eq=False)
class Before:
    """The run that tuned a solver: its seed, and how many earlier runs with that seed it continued.

    `ends` `(chains,)` are the `row_marks` of where its chains ended.
    """

    seed: int
    continues: int
    ends: Tensor

    def continued_by(self, seed: int, init: Any) -> int:
        """How many runs a run with this seed and start continues: 0, or one more than this one did.

        Chains that go on where these ended, with the seed that led them there, would be moved by
        the same noise once more; so their noise is that of another seed,
        `derive(seed, that number)`.
        """
        if init is None or seed != self.seed:
            return 0
        goes_on = torch.isin(row_marks(torch.as_tensor(init)), self.ends).any()
        return self.continues + 1 if bool(goes_on) else 0


def row_marks(x: Tensor) -> Tensor:
    """A checksum of each row of `(n, *event_shape)`, `(n,)` in float64."""
    rows = x.detach().cpu().float().double().reshape(len(x), -1)
    return (rows * torch.linspace(1, 2, rows.shape[1], dtype=torch.float64)).sum(1)


class StepTunedState(NamedTuple):
    """The state of a kernel of which warmup tunes the step size alone.

    Position x, its energy `(chains,)` and the gradient of its energy, like x; the index of the next
    step; the step size, `GIVEN` where it is a number.
    """

    x: Tensor
    energy: Tensor
    grad: Tensor
    step: Tensor
    step_size: Tensor = GIVEN

    @property
    def shared(self) -> frozenset[str]:
        """Names of the leaves that all chains share."""
        return frozenset({"step", "step_size"})


class StepTuned(Tunable):
    """Kernels of which warmup tunes the step size alone, to an acceptance, where it is not given.

    Their state has a leaf `step_size`, which is `GIVEN` where the step size is a number.
    """

    step_size: float | None
    accept: float

    varying: ClassVar[tuple[str, ...]] = ("score",)
    goes_alone: ClassVar[bool] = True

    def _check_step(self) -> None:
        if self.step_size is not None:
            positive("step_size", self.step_size)
        fraction("accept", self.accept, "(0, 1)")

    @property
    def adaptation(self) -> Adaptation:
        """The step size, where it is not given."""
        if self.step_size is not None:
            return Adaptation()
        return Adaptation(
            (DualAveraging(self.accept),), Approach("none") if self.goes_alone else None
        )

    def size(self, state: Any) -> float | Tensor:
        """The step size: the number that was given, or the state's, shaped to multiply x."""
        if self.step_size is not None:
            return self.step_size
        return across(state.step_size.to(state.x.dtype), state.x)

    def tuned_by(self, draws: Any) -> Tuned:
        """As `Tunable.tuned_by`."""
        if self.step_size is None:
            return super().tuned_by(draws)
        kernel: Any = self
        tunable: Tunable = replace(kernel, step_size=None)
        return tunable.tuned_by(draws)


def _of_solver(name: str) -> Any:
    """The attribute of `Tuned` that is its solver's."""
    return property(lambda self: getattr(self.solver, name))


def _of_trait(name: str) -> Any:
    """The attribute of `Tuned` that is what its solver says of itself, or the default of `Traits`."""
    return property(lambda self: getattr(traits(self.solver), name))


@dataclass(frozen=True, eq=False, repr=False)
class Tuned:
    """A solver with tuned values: by name, the leaves of its state that a warmup tuned."""

    solver: Solver
    values: dict[str, Tensor]
    before: Before

    given_back: ClassVar[bool] = True

    def __repr__(self) -> str:
        shown = {
            n: f"{float(v):.6g}" if v.ndim == 0 else f"{tuple(v.shape)}"
            for n, v in sorted(self.values.items())
        }
        return f"{self.solver!r}.tuned_by({', '.join(f'{name}={value}' for name, value in shown.items())})"

    needs = _of_solver("needs")
    timed = _of_solver("timed")
    init_cost = _of_solver("init_cost")
    step_cost = _of_solver("step_cost")
    capturable = _of_solver("capturable")
    capturable_ahead = _of_trait("capturable_ahead")
    capturable_as_loop = _of_trait("capturable_as_loop")
    varying = _of_trait("varying")
    reports = _of_trait("reports")
    exact = _of_trait("exact")
    temperature = _of_trait("temperature")
    island = _of_trait("island")
    times = _of_trait("times")
    start = _of_trait("start")
    untuned = _of_trait("untuned")
    reshaped = _of_trait("reshaped")

    def init(self, field: Any, x: Tensor, noise: NoiseSource) -> Any:
        """The solver's state at x, with the tuned values.

        Raises:
            InvalidArgument: Where the shapes of these do not fit the state.
        """
        state = self.solver.init(field, x, noise)
        own = {
            name: getattr(state, name) for name in sorted(state.shared - {"step"} - self.untuned)
        }
        shapes = {name: tuple(value.shape) for name, value in own.items()}
        # files of before 2026-11-29 have the untuned too
        given = {n: tuple(v.shape) for n, v in self.values.items() if n not in self.untuned}
        if given not in (shapes, {**shapes, **traits(self.solver).reshaped(x)}):
            raise InvalidArgument(
                "tuned_by",
                given,
                f"tuned values of shapes {shapes}",
                "Give back those of a run on the same field, with the same metric",
            )
        for name, value in self.values.items():
            _check_positive(name, value, is_factor(value, x.shape[1:]))
        return state._replace(
            **{name: self.values[name].to(value, copy=True) for name, value in own.items()}
        )

    def step(self, field: Any, state: Any, noise: NoiseSource) -> tuple[Any, Info]:
        """The solver's own step, which reads what is tuned from the state."""
        return self.solver.step(field, state, noise)
