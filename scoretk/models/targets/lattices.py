r"""Discrete targets: Ising and Potts models on a periodic square lattice, and Boltzmann machines.

    Ising   E(x) = -J sum_<ij> x_i x_j - h sum_i x_i,             x_i = -1 or 1
    Potts   E(x) = -J sum_<ij> <x_i, x_j>,                        x_i a one-hot row
    RBM     E(v) = -b . v - sum_j log(1 + exp(c_j + (v W)_j)),    v_i = 0 or 1

In the restricted Boltzmann machine the hidden units are summed out. The formulas hold for real x as
well, so that a score exists; the law is that of the states alone. Every site of the lattice has a
bond with its right and with its lower neighbour, 2 size^2 in all: at size 2 both bonds of a pair
count. Where there are at most 2^20 states the law is enumerated, and `log_prob` and `draw` are
exact.

Annealing goes from the uniform law, or for the machine from independent units, to the model along
models of the same kind, which have the same Gibbs sweep: couplings are multiplied by w, and biases
interpolated between those of the start and the model.

References:
    Ising, "Beitrag zur Theorie des Ferromagnetismus" (1925).
    Potts, "Some generalized order-disorder transformations" (1952).
    Smolensky, "Information processing in dynamical systems: foundations of harmony theory" (1986).
    Salakhutdinov, Murray, "On the quantitative analysis of deep belief networks" (2008), for
    independent units as a start.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from scoretk.core.arguments import count, counts, finite, tensor_like
from scoretk.core.devices import constant_like, wide
from scoretk.core.rows import row_dot
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields import NoiseSource
from scoretk.fields.base import UniformStates
from scoretk.fields.couplings import Couplings
from scoretk.fields.discrete import DiscreteField
from scoretk.fields.protocols import drawn, field_name
from scoretk.fields.states import labels, pick, place, weigh

__all__ = ["RBM", "IndependentUnits", "Ising", "Potts", "ising", "potts", "rbm"]


MOST_HIDDEN = 20
"""Up to this many hidden units the log Z of a Boltzmann machine is computed by enumerating them."""


@lru_cache(maxsize=8)
def _bonded(size: int) -> tuple[Tensor, Tensor]:
    """The sites at both ends of the bonds to right and to lower neighbours, `(2 size^2,)` each."""
    site = torch.arange(size**2).reshape(size, size)
    neighbours = torch.cat([site.roll(-1, axis).flatten() for axis in (1, 0)])
    return site.flatten().repeat(2), neighbours


class _Lattice(DiscreteField):
    """A periodic square lattice in a field, with an energy `-coupling <x_i, x_j>` for each bond."""

    size: int
    coupling: float
    field: float

    # equal lattices have equal laws
    _log_weights = lru_cache(maxsize=4)(DiscreteField._log_weights)

    def score(self, x: Tensor) -> Tensor:
        """The score, J times the sum of the four neighbours plus h, like x.

        Products with a site's states are their log odds given all other sites.
        """
        rows, columns = (x.roll(1, axis) + x.roll(-1, axis) for axis in (1, 2))
        return self.coupling * (rows + columns) + self.field

    def energy(self, x: Tensor) -> Tensor:
        """The energy E(x), `(batch,)`."""
        return self._energy(x, self.score(x))

    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The energy and its gradient, from one sum over the neighbours."""
        score = self.score(x)
        return self._energy(x, score), -score

    def _energy(self, x: Tensor, score: Tensor) -> Tensor:
        # <x, score> has every bond twice, the field once
        return -row_dot(x, score + self.field) / 2

    @property
    def provides(self) -> frozenset[str]:
        """What `DiscreteField` provides, couplings, and at even sizes a Gibbs sweep."""
        gibbs = frozenset() if self.size % 2 else frozenset({"gibbs"})
        return super().provides | {"couplings"} | gibbs

    def _bonds(self, strength: float, weights: Tensor | None) -> Couplings:
        """The couplings of bonds of one strength, and of the weights `(k,)` of a site's states."""
        first, second = _bonded(self.size)
        return Couplings(
            first,
            second,
            torch.full(first.shape, strength, dtype=torch.float64),
            None if weights is None else weights.expand(self.size**2, -1),
        )

    def between(self, base: Any, weight: float) -> _Lattice | None:
        """The lattice with its energy times `weight`, on the way from the uniform law.

        None for any other base.
        """
        if not isinstance(base, UniformStates):
            return None
        return self._scaled(weight)

    def _scaled(self, weight: float) -> _Lattice:
        raise NotImplementedError

    @property
    def gibbs_shape(self) -> tuple[int, ...]:
        """One uniform for each site.

        Raises:
            MissingCapability: At odd sizes.
        """
        if self.size % 2:
            bridge = "On a periodic lattice of odd size the sites of a checkerboard's colour have bonds: take an even one"
            raise MissingCapability(field_name(self), self.provides, {"gibbs"}, bridge)
        return (self.size, self.size)

    def gibbs(self, x: Tensor, u: Tensor) -> Tensor:
        """A Gibbs sweep: both colours of the checkerboard in turn, each given the other.

        Args:
            x: `(batch, *event_shape)`.
            u: Uniforms, `(batch, size, size)`.

        Returns:
            The new x.

        Raises:
            MissingCapability: At odd sizes, where sites of one colour have bonds.
        """
        side = torch.arange(self.gibbs_shape[0], device=x.device)
        colour = (side[:, None] + side).flatten() % 2
        for now in (0, 1):
            drawn = pick(weigh(self.score(x), self.states), u.flatten(1))
            label = torch.where(colour == now, drawn, labels(x, self.states))
            x = place(label, self.states, self.event_shape, x.dtype)
        return x


@dataclass(frozen=True)
class Ising(_Lattice):
    """The Ising model of spins -1 and 1, event shape `(size, size)`.

    Args:
        size: The number of rows and of columns, at least 2.
        coupling: J.
        field: h.
    """

    size: int = 4
    coupling: float = 0.3
    field: float = 0.0

    states = (-1.0, 1.0)

    def __post_init__(self) -> None:
        counts(self, size=2)
        finite("coupling", self.coupling)
        finite("field", self.field)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.size, self.size)

    @property
    def couplings(self) -> Couplings:
        """Bonds of `2 J`, as `x_i x_j = 2 [x_i = x_j] - 1`, and weights `h x_i`."""
        h = torch.tensor(self.states, dtype=torch.float64) * self.field
        return self._bonds(2 * self.coupling, h if self.field else None)

    def _scaled(self, weight: float) -> Ising:
        return replace(self, coupling=weight * self.coupling, field=weight * self.field)


@dataclass(frozen=True)
class Potts(_Lattice):
    """The Potts model of one-hot rows, event shape `(size, size, colours)`.

    Args:
        size: The number of rows and of columns, at least 2.
        colours: The number of states of a site, at least 2.
        coupling: J.
    """

    size: int = 4
    colours: int = 3
    coupling: float = 0.5

    states = "one-hot"
    field = 0.0

    def __post_init__(self) -> None:
        counts(self, size=2, colours=2)
        finite("coupling", self.coupling)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.size, self.size, self.colours)

    @property
    def couplings(self) -> Couplings:
        """Bonds of J."""
        return self._bonds(self.coupling, None)

    def _scaled(self, weight: float) -> Potts:
        return replace(self, coupling=weight * self.coupling)


@dataclass(frozen=True, eq=False)
class IndependentUnits(DiscreteField):
    """Units that are 1 or 0 independently of each other, `p(v_i = 1) = sigmoid(b_i)`.

    Density and draws are exact at any size.

    Args:
        bias: b, of the event shape.
    """

    bias: Tensor

    states = (0.0, 1.0)
    provides = frozenset({"energy", "score", "states", "log_prob", "draw"})

    @classmethod
    def of(cls, data: Tensor) -> IndependentUnits:
        """Units that are as often 1 as in data `(n, *event_shape)`.

        A 0 and a 1 are added to the data of each unit, so that no rate is 0 or 1.
        """
        return cls(torch.logit((data.sum(0) + 1) / (len(data) + 2)))

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.bias.shape)

    def energy(self, x: Tensor) -> Tensor:
        """The energy `-b . v`, `(batch,)`."""
        return -row_dot(x, constant_like(self.bias, x).expand_as(x))

    def score(self, x: Tensor) -> Tensor:
        """The score b, like x."""
        return constant_like(self.bias, x).expand_as(x)

    def exact_log_partition(self) -> float:
        """The value of log Z, `sum_i log(1 + exp(b_i))`."""
        return float(softplus(wide(self.bias)).sum())

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability of states, `(batch,)`."""
        return -self.energy(x) - self.exact_log_partition()

    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact samples `(n, *event_shape)`, from one uniform a unit."""
        u = noise.uniform(0, Stream.START, self.event_shape)
        return (u < torch.sigmoid(constant_like(self.bias, u))).to(u)


@dataclass(frozen=True, eq=False)
class RBM(DiscreteField):
    """A restricted Boltzmann machine as the law of its visible units, 0 or 1.

    Args:
        weights: W, `(visible, hidden)`.
        visible_bias: b, of the event shape, with as many entries as W has rows.
        hidden_bias: c, `(hidden,)`.

    Raises:
        InvalidArgument: Where the shapes do not fit one another.
    """

    weights: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor

    states = (0.0, 1.0)

    def __post_init__(self) -> None:
        weights = tensor_like("weights", self.weights, (None, None))
        shape = tuple(getattr(self.visible_bias, "shape", (None,)))
        bias = tensor_like("visible_bias", self.visible_bias, shape)
        if bias.numel() != len(weights):
            raise InvalidArgument(
                "visible_bias", bias, f"{len(weights)} entries, one a row of weights"
            )
        hidden = tensor_like("hidden_bias", self.hidden_bias, (weights.shape[1],))
        for name, value in (("weights", weights), ("visible_bias", bias), ("hidden_bias", hidden)):
            object.__setattr__(self, name, value)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.visible_bias.shape)

    @property
    def provides(self) -> frozenset[str]:
        """What `DiscreteField` provides, and a Gibbs sweep."""
        return super().provides | {"gibbs"}

    @property
    def gibbs_shape(self) -> tuple[int, ...]:
        """One uniform for each hidden unit, then one for each visible unit."""
        return (sum(self.weights.shape),)

    def energy(self, x: Tensor) -> Tensor:
        """The free energy E(v), hidden units summed out, `(batch,)`."""
        return -(x.flatten(1) @ constant_like(self.visible_bias, x).flatten()) - softplus(
            self._hidden(x)
        ).sum(1)

    def score(self, x: Tensor) -> Tensor:
        """The score `b + W sigmoid(c + v W)`, like x."""
        return self._visible(torch.sigmoid(self._hidden(x)))

    def gibbs(self, x: Tensor, u: Tensor) -> Tensor:
        """A Gibbs sweep: hidden units given the visible ones, then visible units given the hidden.

        Args:
            x: `(batch, *event_shape)`.
            u: Uniforms, `(batch, hidden + visible)`.

        Returns:
            The new x.
        """
        of_hidden, of_visible = u.tensor_split([len(self.hidden_bias)], 1)
        hidden = (of_hidden < torch.sigmoid(self._hidden(x))).to(x)
        return (of_visible.reshape(x.shape) < torch.sigmoid(self._visible(hidden))).to(x)

    def between(self, base: Any, weight: float) -> RBM | None:
        """The machine at w = `weight` of the way from independent units or the uniform law.

        Its parameters are `w W`, `(1 - w) b_base + w b` and `w c`. None for any other base.
        """
        if not isinstance(base, IndependentUnits | UniformStates):
            return None
        start = base.bias.to(self.visible_bias) if isinstance(base, IndependentUnits) else 0.0
        machine = copy(
            self
        )  # of checked parts: to look at all weights again takes as long as a sweep
        for name, value in (
            ("weights", weight * self.weights),
            ("visible_bias", (1 - weight) * start + weight * self.visible_bias),
            ("hidden_bias", weight * self.hidden_bias),
        ):
            object.__setattr__(machine, name, value)
        return machine

    def exact_log_partition(self) -> float:
        """The value of log Z, by enumerating the visible or the hidden units, whichever are fewer.

        The others are summed out.

        Raises:
            MissingCapability: Where there are more than 20 of both.
        """
        hidden, visible = len(self.hidden_bias), self.visible_bias.numel()
        if hidden < visible and hidden <= MOST_HIDDEN:
            return RBM(
                self.weights.T, self.hidden_bias, self.visible_bias.flatten()
            ).exact_log_partition()
        return super().exact_log_partition()

    def _hidden(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ constant_like(self.weights, x) + constant_like(self.hidden_bias, x)

    def _visible(self, hidden: Tensor) -> Tensor:
        return (hidden @ constant_like(self.weights, hidden).T).reshape(
            -1, *self.event_shape
        ) + constant_like(self.visible_bias, hidden)


def ising(size: int = 4, coupling: float = 0.3, field: float = 0.0) -> Ising:
    """The Ising model on a periodic square lattice."""
    return Ising(size, coupling, field)


def potts(size: int = 4, colours: int = 3, coupling: float = 0.5) -> Potts:
    """The Potts model on a periodic square lattice."""
    return Potts(size, colours, coupling)


def rbm(visible: int = 6, hidden: int = 4, seed: int = 0) -> RBM:
    """A restricted Boltzmann machine with normal parameters, weights of scale 1 and biases of 1/2.

    Args:
        visible: The number of visible units.
        hidden: The number of hidden units.
        seed: The seed of the parameters.
    """
    count("visible", visible, least=1)
    count("hidden", hidden, least=1)
    rng = np.random.default_rng(count("seed", seed))
    shapes = {"weights": (visible, hidden), "visible_bias": (visible,), "hidden_bias": (hidden,)}
    scale = {"weights": 1.0}
    return RBM(
        **{
            n: torch.from_numpy(scale.get(n, 0.5) * rng.standard_normal(s)).float()
            for n, s in shapes.items()
        }
    )
