"""The posterior of a static prior: energies, or scores, add up, and nothing is approximated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoretk.errors import MissingCapability
from scoretk.fields.posterior.likelihoods import Likelihood, split
from scoretk.fields.protocols import field_name, offers
from scoretk.fields.resolve import static
from scoretk.fields.wrapped import Kind, Wrapped

__all__ = ["StaticPosterior"]


@dataclass(frozen=True, eq=False)
class StaticPosterior(Wrapped):
    """`E(x) - log L(x)`, E the prior's energy.

    Attributes:
        prior: A static field.
        likelihood: Its likelihood.
    """

    prior: Any
    likelihood: Likelihood

    kind = Kind.TILT

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.prior,)

    @property
    def own_conditions(self) -> frozenset[str]:
        """The names of the likelihood's conditions."""
        return self.likelihood.measured

    @property
    def computed(self) -> frozenset[str]:
        """A score, and an energy where the prior has one."""
        return frozenset({"score"}) | (offers(self.prior) & {"energy"})

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`E(x) - log L(x)`, `(batch,)`.

        Raises:
            MissingCapability: The prior has no energy.
        """
        if "energy" not in self.provides:
            bridge = (
                "A score alone does not give an energy: use a solver that needs the score only, "
                "such as ULA"
            )
            raise MissingCapability(field_name(self.prior), offers(self.prior), {"energy"}, bridge)
        own, others = split(cond, self.likelihood.measured)
        return static(self.prior).energy(x, **others) - self.likelihood.log_likelihood(x, **own)

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`score(x) + grad log L(x)`, like x."""
        own, others = split(cond, self.likelihood.measured)
        return static(self.prior).score(x, **others) + self.likelihood.slope(x, **own)[1]

    def energy_and_grad(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """The energy, `(batch,)`, and its gradient, like x; prior and likelihood evaluated once."""
        own, others = split(cond, self.likelihood.measured)
        energy, gradient = static(self.prior).energy_and_grad(x, **others)
        value, slope = self.likelihood.slope(x, **own)
        return energy - value, gradient - slope
