"""Fields on finitely many states: what they share, and a wrapper for any static field.

With at most 2^20 states the law is enumerated, and `log_prob` and `draw` are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import torch
from torch import Tensor

from scoretk.core.modules import network_dtype
from scoretk.core.streams import Stream
from scoretk.errors import MissingCapability
from scoretk.fields.foreign import no_field
from scoretk.fields.protocols import (
    NoiseSource,
    drawn,
    field_name,
    is_field,
    is_timed,
    offers,
    way_to_energy,
)
from scoretk.fields.resolve import StaticField
from scoretk.fields.states import States, check_states, layout, place, uniform_states
from scoretk.fields.wrapped import Kind, Wrapped, check_within

__all__ = ["Discrete", "DiscreteField"]

ENUMERABLE = 2**20
CHUNK = 2**15


class DiscreteField:
    """The methods of every field on finitely many states.

    A subclass gives `event_shape`, `states` and `energy(x)`.
    """

    states: Any

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one x."""
        raise NotImplementedError  # abstract: this class is a mixin for frozen dataclasses

    def energy(self, x: Tensor) -> Tensor:
        """`E(x) = -log p(x) + const`, `(batch,)`, differentiable in real x."""
        raise NotImplementedError

    @property
    def provides(self) -> frozenset[str]:
        """An energy, its score and states; where the states can be enumerated, `log_prob` and
        `draw`.
        """
        return frozenset({"energy", "score", "states"}) | (
            {"log_prob", "draw"} if self._enumerable else frozenset()
        )

    def initial(self, n: int, noise: NoiseSource) -> Tensor:
        """Every site uniform over the states, `(n, *event_shape)`."""
        return uniform_states(self.states, self.event_shape, noise)

    def exact_log_partition(self) -> float:
        """`log sum_x exp(-E(x))` over all states.

        Raises:
            MissingCapability: There are more than 2^20 states.
        """
        self._must_enumerate("exact_log_partition")
        return float(self._log_weights().logsumexp(0))

    def log_prob(self, x: Tensor) -> Tensor:
        """The log probability of states, `(batch,)`.

        Raises:
            MissingCapability: There are more than 2^20 states.
        """
        self._must_enumerate("log_prob")
        return -self.energy(x) - self.exact_log_partition()

    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact samples `(n, *event_shape)`, by the inverse distribution function of one uniform
        each.

        Raises:
            MissingCapability: There are more than 2^20 states.
        """
        self._must_enumerate("draw")
        u = noise.uniform(0, Stream.START, (), torch.float64)
        cdf = self._log_weights().softmax(0).cumsum(0).to(u)
        # As u < 1, also the rounded u cdf[-1] is below cdf[-1].
        state = torch.searchsorted(cdf, u * cdf[-1], right=True)
        return self._numbered(state, noise.uniform(0, Stream.START, ()).dtype)

    @property
    def _enumerable(self) -> bool:
        sites, k = layout(self.states, self.event_shape)
        return bool(k**sites <= ENUMERABLE)

    def _must_enumerate(self, name: str) -> None:
        if not self._enumerable:
            sites, k = layout(self.states, self.event_shape)
            bridge = (
                f"It enumerates 2^20 states at most, not {k}^{sites}: take a smaller model, or "
                "sample it"
            )
            raise MissingCapability(field_name(self), self.provides, {name}, bridge)

    def _numbered(self, number: Tensor, dtype: torch.dtype) -> Tensor:
        """The states of these numbers, the first site being the most significant digit.

        Args:
            number: `(n,)` of int64, below `k^sites`.
            dtype: That of the states.

        Returns:
            `(n, *event_shape)`.
        """
        sites, k = layout(self.states, self.event_shape)
        powers = k ** torch.arange(sites - 1, -1, -1, device=number.device)
        return place(number[:, None] // powers % k, self.states, self.event_shape, dtype)

    @torch.no_grad()
    def _log_weights(self) -> Tensor:
        """`-E` of all states in the order of their numbers, in float64 on the CPU.

        They are asked in the dtype of the field's networks, where it has any.
        """
        sites, k = layout(self.states, self.event_shape)
        parts = torch.arange(k**sites).split(CHUNK)
        dtype = network_dtype(self) or torch.float64
        return torch.cat([-self.energy(self._numbered(part, dtype)).double() for part in parts])


@dataclass(frozen=True, eq=False)
class Discrete(DiscreteField, Wrapped):
    """A static field whose sites take these states only: `Discrete(Energy(fn, (5,)), (0.0, 1.0))`.

    Args:
        field: Static, with an energy.
        states: The numbers that every site can take, a tuple, list, range or tensor, which are
            kept as a tuple; or "one-hot" where the last event axis is a category.

    Raises:
        InvalidArgument: The field is no static field with an energy, or the states do not fit its
            shape.
    """

    field: Any
    states: States = dataclass_field()

    kind = Kind.RESTRICTED
    provides = Wrapped.provides

    @property
    def computed(self) -> frozenset[str]:
        return super().provides

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.field,)

    def __post_init__(self) -> None:
        if not is_field(self.field) or is_timed(self.field) or "energy" not in offers(self.field):
            way = way_to_energy(self.field, "Such as scoretk.Energy")
            raise no_field("field", self.field, "a static field with an energy", way)
        super().__post_init__()
        states = check_states(self.states, tuple(self.field.event_shape))
        object.__setattr__(self, "states", states)
        check_within("field", self.field, self)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The event shape of the field."""
        return tuple(self.field.event_shape)

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """The field's energy, `(batch,)`."""
        energy: Tensor = self.field.energy(x, **cond)
        return energy

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """The field's score, like x."""
        return StaticField(self.field).score(x, **cond)

    def energy_and_grad(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """The energy, `(batch,)`, and its gradient, like x; in one evaluation where the field
        can.
        """
        return StaticField(self.field).energy_and_grad(x, **cond)

    def log_prob(self, x: Tensor, **cond: Tensor) -> Tensor:
        """The log probability of states, `(batch,)`.

        Raises:
            MissingCapability: There are more than 2^20 states, or condition values, with which each
                row has a law of its own.
        """
        if cond:
            bridge = "One law is enumerated, not one a row: bind the condition in the energy"
            raise MissingCapability(
                field_name(self), self.provides, {"log_prob under conditions"}, bridge
            )
        return super().log_prob(x)
