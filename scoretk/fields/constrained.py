"""Constrained parameters sampled in free space: positive, interval, simplex, ordered and others.

With T the bijection from free z to the user's x (`scoretk.fields.supports`), the energy that a
solver sees is

    E(z) = E_user(T(z)) - log |det dT/dz|.

The draws that `sample` returns, and the moments and the start that it is given, are in the user's
space.

References:
    Carpenter, Gelman, Hoffman, Lee, Goodrich, Betancourt, Brubaker, Guo, Li, Riddell, "Stan: a
    probabilistic programming language" (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from scoretk.core.arguments import count
from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.foreign import no_field
from scoretk.fields.gradient import ByAutograd, followed
from scoretk.fields.protocols import (
    NoiseSource,
    drawn,
    field_name,
    is_field,
    is_timed,
    offers,
    optional,
    way_to_energy,
)
from scoretk.fields.supports import Bijection, bijection, ordered, trailing_sum
from scoretk.fields.variables import Named, Variables, named, variables_of
from scoretk.fields.wrapped import Kind, Wrapped

__all__ = ["Constrained", "constrained", "ordered", "users_shape"]


@dataclass(frozen=True, eq=False)
class Constrained(ByAutograd, Wrapped):
    """A static field in free space; `constrain` and `unconstrain` lead to the user's space and
    back.

    Attributes:
        field: The field in the user's space.
        transform: The bijection from free space to the user's.
        event_shape: The shape of one free z.
        constraint: The constraint that the user's x satisfies.
        log_density: The log density of z, `(batch,)`, where it is known better than through x,
            which near an edge of the support has no digits left; else None.
        direct: The energy of z with fewer operations than through x; else None.
    """

    field: Any
    transform: Bijection
    event_shape: tuple[int, ...] = dataclass_field()
    constraint: Any
    log_density: Callable[[Tensor], Tensor] | None = None
    direct: Callable[..., Tensor] | None = None

    kind = Kind.MOVED

    def __repr__(self) -> str:
        names = self.variables
        under = self.constraint if names is None else names.layout.told()
        return f"constrained({self.field!r}, {under})"

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.field,)

    @property
    def computed(self) -> frozenset[str]:
        """An energy and its score; `log_prob` and `draw` where the user's field has them."""
        return frozenset({"energy", "score"}) | (offers(self.field) & {"log_prob", "draw"})

    def around(self, field: Any) -> Constrained:
        """Another field of the user's space, under the same map."""
        return replace(self, field=field, log_density=None, direct=None)

    @property
    def variables(self) -> Named | None:
        """The names of what the user's x holds; None where it has none."""
        return self.transform if isinstance(self.transform, Variables) else named(self.field)

    @property
    def constrained_shape(self) -> tuple[int, ...]:
        """The event shape in the user's space."""
        return tuple(self.field.event_shape)

    def constrain(self, z: Tensor) -> Tensor:
        """`T(z)`, `(batch, *event_shape) -> (batch, *constrained_shape)`."""
        return self.transform.constrain(z)

    def unconstrain(self, x: Tensor) -> Tensor:
        """`T^-1(x)`, `(batch, *constrained_shape) -> (batch, *event_shape)`.

        Raises:
            InvalidArgument: A row is outside the constraint.
        """
        z = self.transform.unconstrain(x)
        if not bool(self.transform.contains(x).all()) or not bool(torch.isfinite(z).all()):
            raise InvalidArgument("x", x, f"points inside the constraint {self.constraint}")
        return z

    def _jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        jacobian = self.transform.log_jacobian(z, x)
        return trailing_sum(jacobian, jacobian.ndim - 1)

    def energy(self, z: Tensor, /, **cond: Tensor) -> Tensor:
        """`E_user(T(z)) - log |det dT/dz|`, `(batch,)`."""
        if self.log_density is not None:
            return -self.log_density(z)
        if self.direct is not None:
            return self.direct(z, **cond)
        x = self.transform.constrain(z)
        energy: Tensor = self.field.energy(x, **cond)
        return followed(energy, z) - self._jacobian(z, x)

    def log_prob(self, z: Tensor, /, **cond: Tensor) -> Tensor:
        """Normalised log density in free space, `(batch,)`."""
        self._must_offer("log_prob")
        if self.log_density is not None:
            return self.log_density(z)
        x = self.transform.constrain(z)
        log_prob: Tensor = self.field.log_prob(x, **cond)
        return log_prob + self._jacobian(z, x)

    def users_energy(self, x: Tensor, /, **cond: Tensor) -> Tensor:
        """The energy of the user's field, `(batch,)`; `inf` outside the constraint."""
        return torch.where(self._contains(x), self.field.energy(x, **cond), torch.inf)

    def users_log_prob(self, x: Tensor, /, **cond: Tensor) -> Tensor:
        """Normalised log density in the user's space, `(batch,)`; `-inf` outside the constraint."""
        self._must_offer("log_prob")
        return torch.where(self._contains(x), self.field.log_prob(x, **cond), -torch.inf)

    def _contains(self, x: Tensor) -> Tensor:
        inside = self.transform.contains(x)
        return inside.flatten(1).all(1) if inside.ndim > 1 else inside

    @drawn
    def draw(self, n: int, noise: NoiseSource, /, **cond: Tensor) -> Tensor:
        """Exact samples in free space, `(n, *event_shape)`."""
        self._must_offer("draw")
        x: Tensor = self.field.draw(n, noise, **cond)
        return self.transform.unconstrain(x)

    def _must_offer(self, name: str) -> None:
        if name not in offers(self.field):
            bridge = "The field in the user's space must offer it"
            raise MissingCapability(field_name(self.field), offers(self.field), {name}, bridge)

    @property
    def initial(self) -> Callable[[int, NoiseSource], Tensor] | None:
        """The start of the user's field, mapped to free space; None where it has none."""
        own = optional(self.field, "initial")
        return None if own is None else lambda n, noise: self.transform.unconstrain(own(n, noise))


def users_shape(field: Any) -> tuple[int, ...]:
    """The event shape of a field's draws: that in the user's space where it is constrained."""
    return tuple(optional(field, "constrained_shape") or field.event_shape)


@explained
def constrained(
    field: Any,
    constraint: constraints.Constraint
    | Sequence[tuple[constraints.Constraint, int]]
    | Mapping[str, Any],
) -> Constrained:
    """A field whose constrained parameters are sampled in free space and come back in their own.

    Args:
        field: Static with an energy, defined where `constraint` holds, its `event_shape` in the
            user's space.
        constraint: Of `torch.distributions.constraints` (`positive`, `interval(a, b)`, `simplex`,
            ...) or `scoretk.ordered`; for a vector of several kinds of parameters, pairs of a
            constraint and how many entries it holds, such as `[(positive, 2), (simplex, 3)]`; or
            named variables that x holds side by side, as in `scoretk.Energy`.

    Returns:
        The field in free space.

    Raises:
        InvalidArgument: There is no bijection onto the constraint's support, or it does not fit the
            field.
    """
    if not is_field(field) or is_timed(field) or "energy" not in offers(field):
        raise no_field(
            "field",
            field,
            "a static field with an energy",
            way_to_energy(field, "Such as scoretk.Energy(fn, event_shape)"),
        )
    kinds = _kinds(constraint)
    shape = tuple(field.event_shape)
    if isinstance(kinds, Variables) and named(field) is not None:
        raise InvalidArgument(
            "constraint", kinds, f"no names beside those that {field_name(field)} has of its own"
        )
    try:
        transform = kinds if isinstance(kinds, Variables) else bijection(kinds)
        free = transform.free_shape(shape)
        fits = transform.constrain(torch.zeros((1, *free))).shape == (1, *shape)
    except (NotImplementedError, ValueError, RuntimeError, AssertionError, IndexError) as error:
        raise InvalidArgument(
            "constraint",
            constraint,
            f"one with a bijection onto events of shape {shape}",
            str(error),
        ) from error
    if not fits:
        raise InvalidArgument("constraint", constraint, f"one of events of shape {shape}")
    return Constrained(field, transform, free, kinds)


def _kinds(constraint: Any) -> Any:
    """A constraint, a tuple of pairs of a constraint and a number of entries, or `Variables`.

    Raises:
        InvalidArgument: It is none of these.
    """
    if isinstance(constraint, constraints.Constraint):
        return constraint
    if isinstance(constraint, Mapping | Variables):
        return variables_of(constraint)
    if isinstance(constraint, Sequence) and not isinstance(constraint, str) and constraint:
        pairs = [pair for pair in constraint if isinstance(pair, Sequence) and len(pair) == 2]
        if len(pairs) == len(constraint) and all(
            isinstance(one, constraints.Constraint) for one, _ in pairs
        ):
            return tuple((one, count("constraint", length, least=1)) for one, length in pairs)
    raise InvalidArgument(
        "constraint",
        constraint,
        "a constraint, pairs of one and how many entries it holds, or variables by name",
        "Such as torch.distributions.constraints.positive",
    )
