"""From what a field offers to what a solver needs: the one place where missing methods are derived.

A field implements its native methods only. `resolve` wraps it in a `StaticField` or `TimedField`
that has the methods asked for, derived where mathematics allows (score from energy by autograd, any
prediction from any other on a Gaussian path), binds the condition rows, and refuses the rest with
the bridge that would help. The inputs of the native methods are `aligned` in memory, wherever a
solver took them from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from scoretk.core.arguments import conditions
from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.core.arrays import aligned, aligned_values
from scoretk.core.compiling import part
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.answers import ENERGY, check_rows, unwritten
from scoretk.fields.base import base_of
from scoretk.fields.conditions import taken
from scoretk.fields.convert import convert, prediction_name, row_coefficients
from scoretk.fields.distribution import in_free_space
from scoretk.fields.foreign import no_field
from scoretk.fields.gradient import ByAutograd, grad_energy, score_of_energy, slope_of_energy
from scoretk.fields.paths import GaussianPath
from scoretk.fields.protocols import field_name, is_field, is_timed, offers, optional, without_law
from scoretk.fields.validation import rejecting, told
from scoretk.fields.wrapped import Wrapped

__all__ = [
    "Bound",
    "StaticField",
    "TimedField",
    "gaussian_path",
    "of_rows",
    "prediction",
    "resolve",
    "static",
]

_LIKE = "It is shaped like x"
_NATIVE_OF = {"velocity": "velocity", "denoise": "data", "score": "score"}


@dataclass(frozen=True, eq=False)
class StaticField:
    """A static field as a solver receives it, the condition rows bound.

    It has `energy`, `score` and `energy_and_grad`.

    Attributes:
        native: The field itself.
        cond: The condition rows by name.
        asked: The methods that have been called before (`scoretk.fields.answers.unwritten`).
        views: Those of what was made of it, by name (`view`).
    """

    native: Any
    cond: dict[str, Tensor] = dataclass_field(default_factory=dict)
    asked: set[str] = dataclass_field(default_factory=set, repr=False)
    views: dict[str, set[str]] = dataclass_field(default_factory=dict, repr=False)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.native.event_shape)

    def view(self, native: Any, name: str) -> StaticField:
        """Another field that is made of this one again and again, such as a bridge at each step.

        What is asked of a field for the first time is compared with care, for which a device waits;
        all views of one name are one field in this.
        """
        return StaticField(native, {}, self.views.setdefault(name, set()), self.views)

    def _ask(
        self,
        what: str,
        evaluate: Callable[..., Any],
        x: Tensor,
        cond: dict[str, Tensor],
        *refused: float,
    ) -> Any:
        rows = self.cond | cond
        return unwritten(
            what, lambda y: rejecting(evaluate, y, rows, *refused), x, asked=self.asked, beside=rows
        )

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`E(x)`, `(batch,)`."""
        x = aligned(x)
        energy = self._ask("energy", self.native.energy, x, cond, torch.inf)
        return check_rows("energy", energy, x.shape[:1], ENERGY)

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`grad log p(x)`, like x: the field's own score, else `-grad E` by autograd."""
        if "score" in offers(self.native):
            x = aligned(x)
            score = self._ask("score", self.native.score, x, cond, torch.nan)
            return check_rows("score", score, x.shape, _LIKE, x.dtype)
        return score_of_energy(lambda y: self.energy(y, **cond), x, self.native)

    def passing_score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """As `score`, like x, at points between two ends that a Metropolis decision compares.

        A score that is autograd's of an energy is NaN where the energy is not finite, for which the
        energy has to be computed beside its gradient. In passing it is whatever autograd makes of it.
        """
        own = getattr(type(self.native), "score", None)
        if "score" in offers(self.native) and own is not ByAutograd.score:
            return self.score(x, **cond)
        ask = partial(self.energy, **cond)
        return slope_of_energy(ask, aligned(x), -1.0, self.native)[1]

    def energy_and_grad(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`E(x)`, `(batch,)`, and `grad E(x)`, like x; in one evaluation where the field can."""
        bound = StaticField(self.native, self.cond | cond, self.asked) if cond else self
        return _energy_and_grad(bound, x)


@part
def _energy_and_grad(field: StaticField, x: Tensor) -> tuple[Tensor, Tensor]:
    own = getattr(field.native, "energy_and_grad", None)
    if own is not None:
        x = aligned(x)
        energy, gradient = field._ask("energy_and_grad", own, x, {}, torch.inf, torch.nan)
        gradient = check_rows("gradient", gradient, x.shape, _LIKE, x.dtype)
        return check_rows("energy", energy, x.shape[:1], ENERGY), gradient
    if "score" in offers(field.native):
        return field.energy(x), -field.score(x)
    return grad_energy(field.energy, aligned(x), field.native)


@dataclass(frozen=True, eq=False)
class TimedField:
    """A timed field as a solver receives it, the condition rows bound.

    It has every prediction that its path allows. Everywhere x is `(batch, *event_shape)`, t a
    scalar or one time a row.

    Attributes:
        native: The field itself.
        path: Its Gaussian path; None where it has none: then only its native methods answer.
        cond: The condition rows by name.
        asked: The methods that have been called before (`scoretk.fields.answers.unwritten`).
        source: The name of the prediction that the field makes natively.
    """

    native: Any
    path: GaussianPath | None
    cond: dict[str, Tensor] = dataclass_field(default_factory=dict)
    asked: set[str] = dataclass_field(default_factory=set, repr=False)
    source: str = dataclass_field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", prediction(self.native)[0])

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.native.event_shape)

    @property
    def base(self) -> Any:
        """The law at t = 0, or None where the field does not say and its path does not either."""
        return base_of(self.native)

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The native prediction, which `source` names, like x."""
        return _predict(self, x, t)

    def to(self, target: str, x: Tensor, t: float | Tensor) -> Tensor:
        """A prediction by name.

        Args:
            target: "data", "noise", "score", "velocity" or "v".
            x: `(batch, *event_shape)`.
            t: A scalar or one time a row.

        Returns:
            Like x.
        """
        value = self.predict(x, t)
        if self.source == target:
            return value
        return convert(value, x, t, gaussian_path(self.native, target), self.source, target)

    def denoise(self, x: Tensor, t: float | Tensor) -> Tensor:
        """`E[x_1 | x_t = x]`, like x."""
        return self.to("data", x, t)

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        """`grad log p_t(x)`, like x."""
        return self.to("score", x, t)

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        """`dx/dt` of the probability flow, like x."""
        return self.to("velocity", x, t)

    def velocities(self, times: Tensor, dtype: torch.dtype) -> list[Callable[[Tensor], Tensor]]:
        """The velocity at several times, as functions of x; what depends on the times alone is
        computed once.

        Args:
            times: `(k, batch)`.
            dtype: That of x.

        Returns:
            k functions of x `(batch, *event_shape)`, with values like x.
        """
        if self.source == "velocity":
            return [partial(self.predict, t=t) for t in times]
        path = gaussian_path(self.native, "velocity")
        shape = (*times.shape, *(1 for _ in self.event_shape))
        rates, shifts = (
            c.reshape(shape) for c in row_coefficients(path, times, self.source, "velocity", dtype)
        )
        return [
            partial(self._velocity_by, *parts) for parts in zip(times, rates, shifts, strict=True)
        ]

    def _velocity_by(self, t: Tensor, rate: Tensor, shift: Tensor, x: Tensor) -> Tensor:
        return rate * self.predict(x, t) + shift * x


@part
def _predict(field: TimedField, x: Tensor, t: float | Tensor) -> Tensor:
    x, t = aligned(x), aligned(t) if isinstance(t, Tensor) else t
    ask = optional(field.native, "predict")
    if ask is None:
        ask = getattr(
            field.native, next(m for m, name in _NATIVE_OF.items() if name == field.source)
        )
    value = unwritten(
        field.source,
        lambda y: told(ask, y, t, cond=field.cond),
        x,
        asked=field.asked,
        beside={"t": t, **field.cond},
    )
    return check_rows(field.source, value, x.shape, _LIKE, x.dtype)


Bound = StaticField | TimedField
"""A field as a solver receives it."""


def static(field: object) -> StaticField:
    """The static field as solvers see it, without conditions."""
    return field if isinstance(field, StaticField) else StaticField(field)


F = TypeVar("F", bound=Bound)


def of_rows(field: F, rows: Tensor) -> F:
    """The field for some rows of its batch, with the conditions of these.

    Args:
        field: As a solver receives it.
        rows: Their numbers `(k,)`.
    """
    return replace(field, cond={name: value[rows] for name, value in field.cond.items()})


def prediction(field: Any) -> tuple[str, GaussianPath | None]:
    """What a timed field natively predicts, and its Gaussian path (None where it has none).

    Raises:
        MissingCapability: It has none of `velocity`, `score` and `denoise`.
        UnknownName: What it says that it predicts is no prediction.
    """
    path = optional(field, "path")
    named = optional(field, "predicts")
    if named is not None and callable(optional(field, "predict")):
        return prediction_name(named), path
    for method, name in _NATIVE_OF.items():
        if method in offers(field):
            return name, path
    raise MissingCapability(
        field_name(field),
        offers(field),
        {"velocity", "score", "denoise"},
        "A timed field implements at least one of velocity(x, t), score(x, t) and denoise(x, t)",
    )


def gaussian_path(field: Any, purpose: str) -> GaussianPath:
    """The field's Gaussian path.

    Args:
        field: A field in time.
        purpose: What needs the path, for the message.

    Returns:
        The path.

    Raises:
        MissingCapability: The field has no Gaussian path.
    """
    path = optional(field, "path")
    if isinstance(path, GaussianPath):
        return path
    raise MissingCapability(
        field_name(field),
        offers(field),
        {purpose},
        "Conversions need a Gaussian path: give the field a `path` attribute (a GaussianPath such "
        "as scoretk.Linear()), or, for a velocity from a base other than N(0, I), use a solver "
        "that needs the velocity only",
    )


def resolve(
    field: object,
    needs: Iterable[str],
    cond: Mapping[str, Tensor] | None = None,
    *,
    timed: bool | None = None,
) -> Bound:
    """What a solver receives for a field: the methods that it needs, derived where possible.

    Args:
        field: A field, or a torch distribution, which is taken in free space where it has a
            support.
        needs: Names among energy, score, velocity, denoise, states, gibbs, couplings.
        cond: Condition values by name, one row a chain.
        timed: Whether the solver works in time; None: as the field does.

    Returns:
        A `TimedField` for a solver in time, else a `StaticField`.

    Raises:
        MissingCapability: The field cannot serve; the message says what it offers, what is needed
            and what would bridge the two.
        InvalidArgument: It is no field, or has no name for a condition.
    """
    field = in_free_space(field)
    wanted, rows = frozenset(needs), conditions(cond)
    if not is_field(field):
        if not isinstance(field, type) and hasattr(field, "event_shape"):
            as_event_shape(field.event_shape)  # raises, with what a shape is
        raise no_field(
            "field",
            field,
            "a field (something with event_shape and energy, score or velocity)",
            "Wrap a callable: scoretk.Energy(fn, event_shape), Score, Diffusion or Velocity",
        )
    rows = aligned_values(rows)
    takes = taken(field) if rows else None
    if takes is not None and not rows.keys() <= takes:
        raise InvalidArgument(
            "cond",
            ", ".join(sorted(rows)),
            f"the conditions that {field_name(field)} takes: {', '.join(sorted(takes)) or 'none'}",
            "Those of a likelihood are named where it is made: posterior(..., measured=('y',))"
            if isinstance(field, Wrapped) and field.own_conditions is not None
            else "",
        )
    if timed is None:
        timed = is_timed(field)
    if timed:
        return _resolve_timed(field, wanted, rows)
    return _resolve_static(field, wanted, rows)


def _resolve_static(field: Any, needs: frozenset[str], cond: dict[str, Tensor]) -> StaticField:
    has = offers(field)
    if is_timed(field):
        raise MissingCapability(
            field_name(field),
            {f"{name}(x, t)" for name in has},
            {f"{name}(x)" for name in needs},
            "It is a field in time: field.at(t) is its static field at time t, near 1 for the "
            "data; or use a solver that works in time, such as ProbabilityFlow or AnnealedLangevin",
        )
    absent = {
        name for name in has & {"energy", "score"} if not callable(getattr(field, name, None))
    }
    if absent:
        hint = (
            "A spec is no model yet: scoretk.load(its name) makes one; else give the class what "
            "its `provides` says"
        )
        raise MissingCapability(
            field_name(field), has - absent, needs, f"It claims {', '.join(sorted(absent))}. {hint}"
        )
    derivable = has | ({"score"} if "energy" in has else frozenset())
    if not needs <= derivable:
        bridge = {
            "energy": "A score alone does not give an energy: use a solver that needs the score "
            "only, such as ULA"
            if "score" in has
            else without_law(has),
            "score": without_law(has),
            "states": "State them: scoretk.Discrete(field, states), the numbers that every site "
            "can take or 'one-hot'",
            "gibbs": "A field sweeps with gibbs(x, u) and says the shape of a chain's uniforms u "
            "in `gibbs_shape`; "
            "GibbsWithGradients and DiscreteLangevin need an energy only",
            "couplings": "A field whose energy couples pairs of sites alone says so: couplings = "
            "scoretk.Couplings(first, second, strength, weights); GibbsWithGradients and DiscreteLangevin "
            "need an energy only",
        }.get(
            next(iter(sorted(needs - derivable))),
            "A field in time is needed: Diffusion or Velocity",
        )
        raise MissingCapability(field_name(field), has, needs - derivable, bridge)
    if "states" in has and not needs & {"states", "gibbs"}:
        raise MissingCapability(
            field_name(field),
            has,
            needs,
            "Its law is one of discrete states, which this solver would leave: use "
            "GibbsWithGradients, DiscreteLangevin, BlockGibbs or SwendsenWang, alone or as the kernel= of "
            "ParallelTempering, AIS or SMC",
        )
    return StaticField(field, cond)


def _resolve_timed(field: Any, needs: frozenset[str], cond: dict[str, Tensor]) -> TimedField:
    if not is_timed(field):
        raise MissingCapability(
            field_name(field),
            offers(field),
            {f"{name}(x, t)" for name in needs},
            "It is a static field: sample it with a kernel such as MALA or ULA, or with "
            "AnnealedLangevin over a tempering ladder; scoretk.smoothed(field, scoretk.VP()) is a "
            "field in time whose end it is",
        )
    path = prediction(field)[1]
    has = offers(field)
    if path is None and not needs <= has:
        gaussian_path(field, ", ".join(sorted(needs - has)))
    return TimedField(field, path, cond)
