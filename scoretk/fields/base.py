"""The law of a field in time at t = 0: something to draw from and, where it can be, evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.core.arguments import numbers, positive
from scoretk.core.devices import on
from scoretk.core.rows import row_sum
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.alike import alike
from scoretk.fields.distribution import DistributionField, from_distribution
from scoretk.fields.paths import GaussianPath
from scoretk.fields.protocols import Drawable, NoiseSource, drawn, is_timed, optional
from scoretk.fields.states import layout, uniform_states
from scoretk.fields.wrapped import RULES, Rule, Wrapped, defines

__all__ = [
    "Base",
    "EmpiricalBase",
    "NormalBase",
    "UniformStates",
    "as_base",
    "base_of",
    "plain_base",
    "standard_normal",
]


@runtime_checkable
class Base(Protocol):
    """A law to start from.

    `draw(n, noise)` gives `(n, *event_shape)`, from the noise's START stream and chain ids.
    """

    @property
    def event_shape(self) -> tuple[int, ...]: ...

    def draw(self, n: int, noise: NoiseSource) -> Tensor: ...


@dataclass(frozen=True)
class NormalBase:
    """N(0, std^2 I).

    Args:
        event_shape: The shape of one x.
        std: The standard deviation of each entry.
    """

    event_shape: tuple[int, ...]
    std: float = 1.0

    provides = frozenset({"energy", "score", "log_prob", "draw"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "event_shape", as_event_shape(self.event_shape))
        positive("std", self.std)

    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """`std z`, `(n, *event_shape)`."""
        return self.std * noise.normal(0, Stream.START, self.event_shape)

    def energy(self, x: Tensor) -> Tensor:
        """`|x|^2 / (2 std^2)`, `(batch,)`."""
        return row_sum(x * x) / (2 * self.std**2)

    def score(self, x: Tensor) -> Tensor:
        """`-x / std^2`, like x."""
        return -x / self.std**2

    def log_prob(self, x: Tensor) -> Tensor:
        """The normalised log density, `(batch,)`."""
        return -self.energy(x) - math.prod(self.event_shape) * math.log(
            self.std * math.sqrt(2 * math.pi)
        )


@dataclass(frozen=True, eq=False)
class EmpiricalBase:
    """The rows of a data set, drawn with replacement.

    Args:
        samples: `(n, *event_shape)`.
    """

    samples: Tensor

    provides = frozenset({"draw"})

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.samples.shape[1:])

    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Rows of the data picked by the noise, `(n, *event_shape)`."""
        u = noise.uniform(0, Stream.START, (), torch.float64)
        rows = (u * len(self.samples)).long().clamp(max=len(self.samples) - 1)
        return on(self.samples, rows.device)[rows]


@dataclass(frozen=True)
class UniformStates:
    """The uniform law over a discrete field's states, as the base of an annealing run.

    Args:
        field: The discrete field.
    """

    field: Any

    provides = frozenset({"energy", "score", "log_prob", "draw"})

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.field.event_shape)

    def energy(self, x: Tensor) -> Tensor:
        """0, `(batch,)`."""
        return x.new_zeros(len(x))

    def score(self, x: Tensor) -> Tensor:
        """0, like x."""
        return torch.zeros_like(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Minus the logarithm of the number of states, `(batch,)`."""
        sites, kinds = layout(self.field.states, self.event_shape)
        return x.new_full((len(x),), -sites * math.log(kinds))

    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Every site uniform over the states, `(n, *event_shape)`; the field's own `initial` has no
        say.
        """
        return uniform_states(self.field.states, self.event_shape, noise)


def standard_normal(event_shape: tuple[int, ...], std: float = 1.0) -> NormalBase:
    """N(0, std^2 I) over `event_shape`, as a base."""
    return NormalBase(event_shape, std)


def base_of(field: Any) -> Any:
    """The law at t = 0 of a field in time; None where there is none.

    The field's own `base`; of one that says nothing of it, and has a Gaussian path, N(0, sigma(0)^2 I); of
    a wrapper that keeps the base of its fields theirs.
    """
    own = optional(field, "base")
    if own is not None or not is_timed(field):
        return own
    if isinstance(field, Wrapped):
        bases = [base_of(f) for f in field.inner]
        keeps = RULES["base"][field.kind] is Rule.SHARE and not defines(type(field), "base")
        return bases[0] if keeps and all(alike(bases[0], b) for b in bases) else None
    path = optional(field, "path")
    if not isinstance(path, GaussianPath):
        return None
    return standard_normal(tuple(field.event_shape), float(path.sigma(0.0)))


def plain_base(field: Any) -> NormalBase | UniformStates:
    """The default base of annealing.

    N(0, I), or for a discrete field the uniform law over its states.
    """
    native = getattr(field, "native", field)
    if optional(native, "states") is None:
        return standard_normal(tuple(native.event_shape))
    return UniformStates(native)


def as_base(value: object, event_shape: tuple[int, ...]) -> Base:
    """A base from a distribution, a field with `draw`, or a tensor of samples.

    Args:
        value: A torch distribution, a field with `draw`, or a tensor `(n, *event_shape)` of
            samples.
        event_shape: The event shape that it has to have.

    Returns:
        A field with `draw`.

    Raises:
        InvalidArgument: It is none of these or has another event shape.
    """
    base: object = value
    if isinstance(value, torch.distributions.Distribution):
        base = from_distribution(value)
        if "draw" not in base.provides:
            raise InvalidArgument(
                "base", value, "a distribution with an explicit transform of standard noise"
            )
    elif isinstance(value, Tensor):
        samples = numbers("base", value)
        if samples.ndim == 0 or len(samples) == 0 or not bool(samples.isfinite().all()):
            raise InvalidArgument(
                "base", value, f"at least one sample, and finite ones: a tensor (n, *{event_shape})"
            )
        base = EmpiricalBase(samples)
    if not isinstance(base, Drawable | DistributionField):
        raise InvalidArgument(
            "base",
            value,
            "None, a torch distribution, a field with draw(n, noise), or a tensor of samples",
        )
    if tuple(base.event_shape) != event_shape:
        raise InvalidArgument(
            "base", value, f"event shape {event_shape}, but it has {tuple(base.event_shape)}"
        )
    return base
