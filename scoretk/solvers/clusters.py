r"""Cluster moves of Swendsen and Wang, for discrete fields whose energy couples pairs of sites.

With states s and bonds of strength J (`scoretk.fields.couplings`) a factor `exp(J [s_i = s_j])` of
the density is, up to a constant, the sum over b = 0, 1 of

    J >= 0:   1    for b = 0,    (e^J - 1) [s_i = s_j]       for b = 1
    J < 0:    e^J  for b = 0,    (1 - e^J) [s_i != s_j]      for b = 1

so that s is the marginal law of (s, b), of which a step draws in turn

    b given s:  a bond that its two states satisfy is on with probability 1 - exp(-|J|), all others off
    s given b:  each cluster of sites that are connected by bonds is shifted, s_i -> s_i + c mod k for
                all its sites, with probability in proportion to exp(sum_i h_i(s_i + c))

A common shift keeps each bond satisfied. Where no J is negative a cluster has one state, and the
shift draws it exactly; for two states also where J has any sign. In a critical Ising model on the
32 x 32 torus a step forgets what sweeps of single sites take hundreds for. Where bonds are frustrated
(no state satisfies all) clusters grow beyond what moves, and single sites are faster.

Such a step leaves the law of the couplings as it is, E_c, and is reversible. What else is in the field's energy
is decided by Metropolis, `log r = (E - E_c)(s) - (E - E_c)(s')`: so that the step is exact for
any energy, and accepts all but rounding where the couplings are all of it.

References:
    Fortuin, Kasteleyn, "On the random-cluster model" (1972).
    Swendsen, Wang, "Nonuniversal critical dynamics in Monte Carlo simulations" (1987).
    Edwards, Sokal, "Generalization of the Fortuin-Kasteleyn-Swendsen-Wang representation and Monte
    Carlo algorithm" (1988), for the joint law of states and bonds.
    Shiloach, Vishkin, "An O(log n) parallel connectivity algorithm" (1982), for the clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.core.devices import constant_like, on
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.couplings import Couplings
from scoretk.fields.protocols import NoiseSource, field_name, optional
from scoretk.fields.resolve import StaticField
from scoretk.fields.states import labels, layout, pick, place
from scoretk.solvers.base import Info
from scoretk.solvers.discrete import start_on_states
from scoretk.solvers.parts.metropolis import metropolis

__all__ = ["SwendsenWang", "clusters"]


class ClusterState(NamedTuple):
    """The state of `SwendsenWang`.

    Position x, its energy and that of its couplings, each `(chains,)`; the index of the next step.
    """

    x: Tensor
    energy: Tensor
    bonded: Tensor
    step: Tensor


@dataclass(frozen=True)
class SwendsenWang:
    """Swendsen-Wang: each step draws bonds given the states, then new states of whole clusters.

    It serves fields with `couplings`, lattices among them; exact, with nothing to tune. Reports "accept",
    the acceptance probability, 1 where the couplings are all of the energy; "energy"; and "clusters", how
    many there were.
    """

    reports: ClassVar[tuple[str, ...]] = ("accept", "energy", "clusters")
    needs: ClassVar[frozenset[str]] = frozenset({"couplings", "energy", "states"})
    timed: ClassVar[bool | None] = False
    capturable: ClassVar[bool] = False  # how many rounds find the clusters shows as they are found
    varying: ClassVar[tuple[str, ...]] = ("energy",)
    init_cost: ClassVar[dict[str, int]] = {"energy": 1}
    step_cost: ClassVar[dict[str, int]] = {"energy": 1}

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> ClusterState:
        x = start_on_states(field, x)
        bonds = _couplings(field)
        bonded = bonds.energy(labels(x, field.native.states), x)
        return ClusterState(x, field.energy(x), bonded, torch.zeros((), dtype=torch.int64))

    def step(
        self, field: StaticField, state: ClusterState, noise: NoiseSource
    ) -> tuple[ClusterState, Info]:
        bonds, states = _couplings(field), field.native.states
        sites, k = layout(states, field.event_shape)
        parts = [len(bonds.strength), sites]
        u = noise.uniform(state.step, Stream.PROPOSAL, (sum(parts),), state.x.dtype)
        of_bonds, of_sites = u.split(parts, 1)
        label = labels(state.x, states)
        root = clusters(_on(bonds, label, of_bonds), bonds.first, bonds.second, sites)
        there = (label + _shifts(bonds, label, root, of_sites, k).gather(1, root)) % k
        x = place(there, states, field.event_shape, state.x.dtype)
        proposed = ClusterState(x, field.energy(x), bonds.energy(there, x), state.step + 1)
        log_ratio = (state.energy - state.bonded) - (proposed.energy - proposed.bonded)
        chosen, probability = metropolis(state, proposed, log_ratio, state.step, noise)
        number = (root == torch.arange(sites, device=root.device)).sum(1).to(x)
        return chosen, {"accept": probability, "energy": chosen.energy, "clusters": number}


def _couplings(field: StaticField) -> Couplings:
    """The field's couplings.

    Raises:
        InvalidArgument: They are none, or of other sites or states than the field.
    """
    bonds = optional(field.native, "couplings")
    sites, k = layout(field.native.states, field.event_shape)
    if not isinstance(bonds, Couplings) or not bonds.fits(sites, k):
        raise InvalidArgument(
            "field",
            field_name(field.native),
            f"as its `couplings` a scoretk.Couplings of {sites} sites of {k} states",
        )
    return bonds


def _on(bonds: Couplings, label: Tensor, u: Tensor) -> Tensor:
    """Which bonds are on given the states, `(chains, bonds)` of bool."""
    strength = constant_like(bonds.strength, u)
    return (bonds.equal(label) == (strength > 0)) & (u < -torch.expm1(-strength.abs()))


def _shifts(bonds: Couplings, label: Tensor, root: Tensor, u: Tensor, k: int) -> Tensor:
    """The shift that each site would give the cluster of which it is the root, `(chains, sites)`."""
    if bonds.weights is None:
        return (u * k).long().clamp(max=k - 1)
    turned = (label[..., None] + torch.arange(k, device=label.device)) % k
    worth = constant_like(bonds.weights, u).expand(len(label), -1, -1).gather(2, turned)
    entry = root[..., None].expand_as(worth)
    return pick(torch.zeros_like(worth).scatter_add_(1, entry, worth), u)


def clusters(there: Tensor, first: Tensor, second: Tensor, sites: int) -> Tensor:
    """The connected components of graphs with the same possible edges.

    Each site points at one of at most its own number. In a round, each edge lets the larger of the
    roots at its ends point at the smaller, and then all point at their root again; edges within a tree
    are left out of the next round. It synchronises the device.

    Args:
        there: Which edges there are, `(graphs, edges)` of bool.
        first: The site at one end of each edge, `(edges,)` of int64.
        second: That at the other end.
        sites: How many sites there are.

    Returns:
        The least site of the component of each site, `(graphs, sites)` of int64.
    """
    entry = there.flatten().nonzero().squeeze(1)
    graph, edge = entry // there.shape[1], entry % there.shape[1]
    a, b = (graph * sites + on(end, entry.device).index_select(0, edge) for end in (first, second))
    parent = torch.arange(len(there) * sites, device=entry.device)
    while len(a):
        parent = parent.scatter_reduce(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(parent, further := parent.index_select(0, parent)):
            parent = further
        a, b = parent.index_select(0, a), parent.index_select(0, b)
        apart = a != b
        a, b = a[apart], b[apart]
    return (parent % sites).reshape(len(there), sites)
