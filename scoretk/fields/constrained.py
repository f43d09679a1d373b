r"""Constrained parameters sampled in free space: positive, interval, simplex, ordered and any other torch constraint.

With `T = biject_to(constraint)` from free z to the user's x, the energy that a solver sees is

    E(z) = E_user(T(z)) - log |det dT/dz|.

The draws that `sample` returns, and the moments and the start that it is given, are in the user's space.

Reference: Carpenter, Gelman, Hoffman, Lee, Goodrich, Betancourt, Brubaker, Guo, Li, Riddell, "Stan: a probabilistic programming
language" (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transforms

from scoretk.arguments import count
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.gradient import grad_energy
from scoretk.fields.protocols import NoiseSource, field_name, is_timed, offers
from scoretk.fields.wrapped import Kind, Wrapped

__all__ = ["Constrained", "constrained", "ordered"]


class _Ordered(constraints.Constraint):
    """Vectors whose entries increase strictly."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Which vectors `(..., k)` increase, `(...)` of bool."""
        return (value[..., 1:] > value[..., :-1]).all(-1)


ordered = _Ordered()
"""Strictly increasing vectors, as a constraint beside those of `torch.distributions.constraints`."""


class OrderedTransform(transforms.Transform):
    """`x_1 = z_1, x_k = x_(k-1) + exp(z_k)`."""

    domain = constraints.real_vector
    codomain = ordered
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OrderedTransform)

    __hash__ = transforms.Transform.__hash__

    def _call(self, z: Tensor) -> Tensor:
        return torch.cat([z[..., :1], z[..., 1:].exp()], -1).cumsum(-1)

    def _inverse(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., :1], x.diff(dim=-1).log()], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x[..., 1:].sum(-1)


@biject_to.register(_Ordered)
def _ordered_transform(constraint: _Ordered) -> OrderedTransform:
    return OrderedTransform()


class Joined:
    """Bijections side by side on a vector: each maps so many free entries to so many of the user's, not always as many.

    Arguments: pairs of a constraint and how many entries of the user's vector it holds.
    """

    def __init__(self, parts: Sequence[tuple[constraints.Constraint, int]]) -> None:
        self.transforms = [biject_to(constraint) for constraint, _ in parts]
        self.lengths = [length for _, length in parts]
        shapes = [made.inverse_shape(torch.Size([n])) for made, n in zip(self.transforms, self.lengths, strict=True)]
        self.free = [int(shape[0]) for shape in shapes]

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Of vectors of the user's length, the shape in free space. Raises `ValueError` for others."""
        if tuple(shape) != (sum(self.lengths),):
            raise ValueError(f"the parts hold {sum(self.lengths)} entries")
        return torch.Size([sum(self.free)])

    def __call__(self, z: Tensor) -> Tensor:
        return torch.cat([made(part) for made, part in zip(self.transforms, z.split(self.free, -1), strict=True)], -1)

    def inv(self, x: Tensor) -> Tensor:
        """Back to free space."""
        return torch.cat(
            [made.inv(part) for made, part in zip(self.transforms, x.split(self.lengths, -1), strict=True)], -1
        )

    def log_abs_det_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        """Summed over the parts, `(batch,)`."""
        pairs = zip(self.transforms, z.split(self.free, -1), x.split(self.lengths, -1), strict=True)
        found = [made.log_abs_det_jacobian(a, b) for made, a, b in pairs]
        return torch.stack([part.reshape(len(z), -1).sum(1) for part in found]).sum(0)


def _inside(constraint: Any, x: Tensor) -> bool:
    """Whether all rows satisfy a constraint, or pairs of them."""
    if isinstance(constraint, tuple):
        parts = x.split([length for _, length in constraint], -1)
        return all(_inside(one, part) for (one, _), part in zip(constraint, parts, strict=True))
    try:
        return bool(constraint.check(x).all())
    except RuntimeError:  # torch's `cat` of constraints on entries and on vectors
        made = biject_to(constraint)
        return torch.allclose(made(made.inv(x)), x, rtol=1e-4, atol=0.0)


@dataclass(frozen=True, eq=False)
class Constrained(Wrapped):
    """A static field in free space; `constrain` and `unconstrain` go to the user's space and back.

    Attributes: field, in the user's space; transform, from free space to it; event_shape, of free z; constraint.
    """

    field: Any
    transform: Any
    event_shape: tuple[int, ...] = dataclass_field()
    constraint: Any

    kind = Kind.MOVED

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.field,)

    @property
    def computed(self) -> frozenset[str]:
        """An energy and its score; `log_prob` and `draw` where the user's field has them."""
        return frozenset({"energy", "score"}) | (offers(self.field) & {"log_prob", "draw"})

    def around(self, field: Any) -> Constrained:
        """Another field of the user's space, seen through the same map."""
        return replace(self, field=field)

    @property
    def constrained_shape(self) -> tuple[int, ...]:
        """The event shape in the user's space."""
        return tuple(self.field.event_shape)

    def constrain(self, z: Tensor) -> Tensor:
        """`T(z)`, `(batch, *event_shape) -> (batch, *constrained_shape)`."""
        return self.transform(z)

    def unconstrain(self, x: Tensor) -> Tensor:
        """`T^-1(x)`. Raises `InvalidArgument` where a row is outside the constraint."""
        z = self.transform.inv(x)
        if not _inside(self.constraint, x) or not bool(torch.isfinite(z).all()):
            raise InvalidArgument("x", x, f"points inside the constraint {self.constraint}")
        return z

    def _jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        jacobian = self.transform.log_abs_det_jacobian(z, x)
        return jacobian.flatten(1).sum(1) if jacobian.ndim > 1 else jacobian

    def energy(self, z: Tensor, **cond: Tensor) -> Tensor:
        """`E_user(T(z)) - log |det dT/dz|`, `(batch,)`."""
        x = self.transform(z)
        return self.field.energy(x, **cond) - self._jacobian(z, x)

    def energy_and_grad(self, z: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`E(z)` and `grad E(z)` for the price of one of each."""
        return grad_energy(lambda y: self.energy(y, **cond), z)

    def score(self, z: Tensor, **cond: Tensor) -> Tensor:
        """`-grad E(z)`, like z."""
        return -self.energy_and_grad(z, **cond)[1]

    def log_prob(self, z: Tensor, **cond: Tensor) -> Tensor:
        """Normalised log density in free space, `(batch,)`."""
        self._must_offer("log_prob")
        x = self.transform(z)
        return self.field.log_prob(x, **cond) + self._jacobian(z, x)

    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact samples in free space, `(n, *event_shape)`."""
        self._must_offer("draw")
        return self.transform.inv(self.field.draw(n, noise))

    def _must_offer(self, name: str) -> None:
        if name not in offers(self.field):
            bridge = "The field in the user's space must offer it"
            raise MissingCapability(field_name(self.field), offers(self.field), {name}, bridge)

    @property
    def initial(self) -> Callable[[int, NoiseSource], Tensor] | None:
        """The start of the user's field, taken to free space; None where it has none."""
        own = getattr(self.field, "initial", None)
        return None if own is None else lambda n, noise: self.transform.inv(own(n, noise))


def constrained(
    field: Any, constraint: constraints.Constraint | Sequence[tuple[constraints.Constraint, int]]
) -> Constrained:
    """A field whose constrained parameters are sampled in free space and come back in their own.

    Arguments: field, static with an energy, defined where `constraint` holds, its `event_shape` in the user's space;
    constraint, of `torch.distributions.constraints` (`positive`, `interval(a, b)`, `simplex`, ...) or `scoretk.ordered`; for a
    vector of several kinds of parameters, pairs of a constraint and how many entries it holds, such as
    `[(positive, 2), (simplex, 3)]`. (In an energy made of `torch.distributions`, pass them `validate_args=False`: a draw far out
    may round to the edge of its support.)
    Raises: `InvalidArgument` where there is no bijection to the constraint, or it does not fit the field.
    """
    if not hasattr(field, "event_shape") or is_timed(field) or "energy" not in offers(field):
        raise InvalidArgument(
            "field", field_name(field), "a static field with an energy", "Such as scoretk.Energy(fn, event_shape)"
        )
    kinds = _kinds(constraint)
    shape = torch.Size(field.event_shape)
    try:
        transform: Any = Joined(kinds) if isinstance(kinds, tuple) else biject_to(kinds)
        free = transform.inverse_shape(shape)
        fits = transform(torch.zeros((1, *free))).shape == (1, *shape)
    except (NotImplementedError, ValueError, RuntimeError, AssertionError, IndexError) as error:
        raise InvalidArgument(
            "constraint", constraint, f"one with a bijection onto events of shape {tuple(shape)}", str(error)
        ) from error
    if not fits:
        raise InvalidArgument("constraint", constraint, f"one of events of shape {tuple(shape)}")
    return Constrained(field, transform, tuple(free), kinds)


def _kinds(constraint: Any) -> Any:
    """A constraint, or a tuple of pairs. Raises `InvalidArgument` for anything else."""
    if isinstance(constraint, constraints.Constraint):
        return constraint
    if isinstance(constraint, Sequence) and not isinstance(constraint, str) and constraint:
        pairs = [pair for pair in constraint if isinstance(pair, Sequence) and len(pair) == 2]
        if len(pairs) == len(constraint) and all(isinstance(one, constraints.Constraint) for one, _ in pairs):
            return tuple((one, count("constraint", length, least=1)) for one, length in pairs)
    raise InvalidArgument(
        "constraint", constraint, "a constraint, or pairs of one and how many entries it holds",
        "Such as torch.distributions.constraints.positive",
    )  # fmt: skip
