"""`tempered` and `product`: `p^(1/T)`, and the product of experts `p_f p_g ...`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from torch import Tensor

from scoretk.core.arguments import positive
from scoretk.core.keywords import explained
from scoretk.errors import MissingCapability
from scoretk.fields.base import Base, NormalBase, base_of, standard_normal
from scoretk.fields.combine.members import Members, OfMany, check_laws, fitting
from scoretk.fields.distribution import in_one_space
from scoretk.fields.gradient import grad_energy
from scoretk.fields.protocols import field_name, is_timed, offers
from scoretk.fields.resolve import TimedField, static
from scoretk.fields.wrapped import Kind, Wrapped, shared_map

__all__ = ["Powered", "PoweredTimed", "exponents", "product", "tempered"]


@explained
def tempered(field: object, temperature: float) -> object:
    """The field of `p^(1/T)`: energy and score divided by T.

    Args:
        field: Static, or timed on a Gaussian path; then its scores are tempered, with the caveat of
            `scoretk.fields.combine`.
        temperature: T > 0. `tempered(field, 1)` has the law of the field itself.

    Returns:
        A field, timed or static as the given one is.

    Raises:
        InvalidArgument: It is no field, or T is not positive.
        MissingCapability: A timed field has no Gaussian path.
    """
    temperature = positive("temperature", temperature)
    (field,) = in_one_space((field,))
    if not fitting("field", (field,), "tempered"):
        check_laws((field,))
    space = shared_map("field", (field,))
    if space is not None:
        return space.around(tempered(space.field, temperature))
    return (
        PoweredTimed((field,), temperature) if is_timed(field) else Powered((field,), temperature)
    )


@explained
def product(*fields: object) -> object:
    """The product of experts: energies and scores add up.

    Args:
        fields: All static or all timed on one and the same Gaussian path (with the caveat of
            `scoretk.fields.combine`), of one event shape.

    Returns:
        A field, timed or static as its experts are.

    Raises:
        InvalidArgument: The fields do not fit together.
        MissingCapability: A timed field has no Gaussian path.

    References:
        Hinton, "Training products of experts by minimizing contrastive divergence" (2002).
    """
    fields = in_one_space(fields)
    if fitting("fields", fields, "product"):
        return PoweredTimed(fields, 1.0)
    check_laws(fields)
    space = shared_map("fields", fields)
    if space is not None:
        return space.around(product(*(f.field for f in fields)))  # type: ignore[attr-defined]
    return Powered(fields, 1.0)


@dataclass(frozen=True, eq=False)
class Powered(Members):
    """`power * sum of energies` with the power 1 / T; scores likewise.

    Attributes:
        fields: The experts.
        temperature: T.
    """

    fields: tuple[Any, ...]
    temperature: float

    kind = Kind.POWER

    @property
    def power(self) -> float:
        """`1 / T`."""
        return 1 / self.temperature

    @property
    def computed(self) -> frozenset[str]:
        shared = frozenset.intersection(*(offers(f) for f in self.fields)) & {"energy", "score"}
        return shared | (
            {"score"} if all(offers(f) & {"energy", "score"} for f in self.fields) else frozenset()
        )

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`power sum_i E_i(x)`, `(batch,)`.

        Raises:
            MissingCapability: One of the fields has no energy.
        """
        if "energy" not in self.provides:
            f = next(f for f in self.fields if "energy" not in offers(f))
            raise MissingCapability(
                field_name(f), offers(f), {"energy"}, "A score alone does not give an energy."
            )
        total: Tensor = reduce(add, (f.energy(x, **own) for f, own in self.told(cond)))
        return self.power * total

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`power sum_i score_i(x)`, like x."""
        return self.power * reduce(add, (static(f).score(x, **own) for f, own in self.told(cond)))

    def energy_and_grad(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`E(x)`, `(batch,)`, and its gradient, like x, in one evaluation."""
        return grad_energy(lambda y: self.energy(y, **cond), x, self)


@dataclass(frozen=True, eq=False)
class PoweredTimed(OfMany):
    """`power * sum of scores` at each time, with the power 1 / T.

    Attributes:
        fields: The experts.
        temperature: T.
    """

    fields: tuple[Any, ...]
    temperature: float

    kind = Kind.POWER
    predicts = "score"

    @property
    def flows(self) -> bool:
        """Only where it is one field at T = 1."""
        return self.power == 1 and len(self.fields) == 1

    @property
    def power(self) -> float:
        """`1 / T`."""
        return 1 / self.temperature

    @property
    def base(self) -> Base | None:
        """The power of the product of the bases.

        Of bases N(0, s_i^2) it is N(0, 1 / (power sum_i 1 / s_i^2)); of others None.
        """
        bases: list[Base | None] = [base_of(f) for f in self.fields]
        if self.power == 1 and len(bases) == 1:
            return bases[0]
        normal = [b for b in bases if isinstance(b, NormalBase)]
        if len(normal) < len(bases):
            return None
        return standard_normal(
            self.event_shape, (self.power * sum(b.std**-2 for b in normal)) ** -0.5
        )

    @property
    def computed(self) -> frozenset[str]:
        return super().computed | (frozenset() if self.base is None else frozenset({"base"}))

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """`power sum_i score_i(x, t)`, like x."""
        return self.power * reduce(add, (_score_at(f, x, t) for f in self.views(cond)))

    def exponents(self, parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
        """The power times the least of its fields, and times the sum of them all."""
        least, sums = min(least for least, _ in parts), [most for _, most in parts]
        return self.power * least, self.power * sum(sums)

    def at(self, t: float | Tensor) -> Powered:  # type: ignore[override]
        """The static combination at time t, with an energy where the fields have one."""
        return Powered(tuple(f.at(t) for f in self.fields), self.temperature)


def _score_at(field: TimedField, x: Tensor, t: float | Tensor) -> Tensor:
    # The field's own is exact at sigma = 0, where a conversion is not.
    own = getattr(field.native, "score", None)
    return field.score(x, t) if own is None else own(x, t, **field.cond)


def exponents(field: Any) -> tuple[float, float]:
    """The least exponent above 0 in `prod p_i^(a_i)`, and the sum of all above 0, of a field in time.

    The first tells how slowly Langevin steps forget, the second how curved the densities are: at most so many
    times as one that is noised. A field that is no power, product or guidance counts as one law, of exponent
    1; of other wrappers around several fields the extremes are taken.
    """
    field = getattr(field, "native", field)
    if not isinstance(field, Wrapped) or not is_timed(field):
        return 1.0, 1.0
    return field.exponents([exponents(p) for p in field.inner if is_timed(p)] or [(1.0, 1.0)])
