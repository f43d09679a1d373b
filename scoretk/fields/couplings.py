r"""The bonds of a field on discrete states, where pairs of sites are all that its energy couples.

With s_i the number of site i's state,

    E(x) = const - sum_e J_e [s_i = s_j] - sum_i h_i(s_i),      bond e between sites i and j

as of Ising models (a bond `-J x_i x_j` of spins is 2 J for equal ones) and of Potts models. A field
offers it as `couplings`, for solvers that move clusters of bonded sites. They may be a part of its
energy: solvers decide by all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoretk.core.devices import constant_like, on
from scoretk.errors import InvalidArgument

__all__ = ["Couplings"]


@dataclass(frozen=True, eq=False)
class Couplings:
    """Bonds between sites, and weights of single sites.

    Sites are numbered as x has them, flattened (without the axis of one-hot rows); states as the
    field's `states` lists them.

    Args:
        first: The site at one end of each bond, `(bonds,)` of int64.
        second: That at the other end. Several bonds of a pair add up.
        strength: J, by how much a bond lowers the energy where both sites are in the same state,
            `(bonds,)`; below 0 it raises it.
        weights: h, by how much a state of a site lowers the energy, `(sites, states)`; None for 0.

    Raises:
        InvalidArgument: The shapes do not fit together, a bond leads from a site to itself, or a number is
            not finite.
    """

    first: Tensor
    second: Tensor
    strength: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("first", "second", "strength", "weights"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) and (name != "weights" or value is not None):
                raise InvalidArgument(name, value, "a tensor")
        shape = self.first.shape
        for name in ("first", "second"):
            sites = getattr(self, name)
            if sites.dtype != torch.int64 or sites.shape != shape or sites.ndim != 1:
                raise InvalidArgument(
                    name, sites, "the sites at an end of each bond, (bonds,) of int64"
                )
        if bool((self.first == self.second).any()):
            raise InvalidArgument("second", self.second, "for each bond another site than in first")
        if self.strength.shape != shape or not bool(self.strength.isfinite().all()):
            raise InvalidArgument(
                "strength", self.strength, f"a finite number a bond, {tuple(shape)}"
            )
        h = self.weights
        if h is not None and (h.ndim != 2 or not bool(h.isfinite().all())):
            raise InvalidArgument("weights", h, "None or finite numbers (sites, states)")

    def fits(self, sites: int, k: int) -> bool:
        """Whether they are of sites below `sites`, and weights of `sites` times k states."""
        ends = torch.cat([self.first, self.second])
        within = not len(ends) or (int(ends.min()) >= 0 and int(ends.max()) < sites)
        return within and (self.weights is None or self.weights.shape == (sites, k))

    def equal(self, label: Tensor) -> Tensor:
        """Whether the two sites of each bond are in the same state, `(batch, bonds)` of bool."""
        ends = (label.index_select(1, on(end, label.device)) for end in (self.first, self.second))
        return torch.eq(*ends)

    def energy(self, label: Tensor, like: Tensor) -> Tensor:
        """The energy of states, without its constant.

        Args:
            label: The number of each site's state, `(batch, sites)` of int64.
            like: A tensor of the dtype and on the device of the result.

        Returns:
            `(batch,)`.
        """
        gain = (self.equal(label) * constant_like(self.strength, like)).sum(1)
        if self.weights is not None:
            h = constant_like(self.weights, like).expand(len(label), -1, -1)
            gain = gain + h.gather(2, label[..., None]).sum((1, 2))
        return -gain

    def __mul__(self, factor: float) -> Couplings:
        """Those of the energy times a factor."""
        weights = None if self.weights is None else factor * self.weights
        return Couplings(self.first, self.second, factor * self.strength, weights)
