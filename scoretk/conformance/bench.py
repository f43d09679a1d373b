"""The fields on which solvers are tried: exact laws, an exact timed field, all watched.

A watched field counts the rows of which each method is asked, and can have an edge beyond which all
its answers are NaN.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from scoretk.core.rows import across
from scoretk.core.streams import Stream
from scoretk.fields.paths import VP
from scoretk.fields.protocols import NoiseSource
from scoretk.models.targets.lattices import ising
from scoretk.models.targets.mixture import GaussianMixture, gaussian

__all__ = ["Watched", "bench_for", "steep_for"]

METHODS = ("energy", "score", "gibbs", "velocity", "denoise")
MODES = GaussianMixture(
    torch.tensor([[-1.2, 0.0], [1.2, 0.4]]), torch.tensor([0.8, 0.6]), torch.tensor([0.4, 0.6])
)


@dataclass
class Watched:
    """A field with exactly the methods that a solver needs, whose evaluations are counted.

    Args:
        inner: An exact law, with `draw` where it is static.
        provides: The methods that the solver needs.
        edge: Where the first entry of x is larger, all answers are NaN.
        asked: How many rows each method was asked for.
        met: The numbers of the chains that were answered with NaN, where the condition `row` tells
            them.
    """

    inner: Any
    provides: frozenset[str]
    edge: float = math.inf
    asked: Counter[str] = field(default_factory=Counter)
    met: set[int] = field(default_factory=set)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in METHODS or name in HIDDEN:
            raise AttributeError(name)
        return getattr(self.inner, name)

    def energy(self, x: Tensor, *t: Any, row: Tensor | None = None) -> Tensor:
        """The energy of `inner`, counted, and NaN beyond the edge; so are all other methods."""
        return self._answer("energy", row, x, *t)

    def score(self, x: Tensor, *t: Any, row: Tensor | None = None) -> Tensor:
        return self._answer("score", row, x, *t)

    def velocity(self, x: Tensor, t: Any, row: Tensor | None = None) -> Tensor:
        return self._answer("velocity", row, x, t)

    def denoise(self, x: Tensor, t: Any, row: Tensor | None = None) -> Tensor:
        return self._answer("denoise", row, x, t)

    def gibbs(self, x: Tensor, u: Tensor, row: Tensor | None = None) -> Tensor:
        return self._answer("gibbs", row, x, u)

    def _answer(self, name: str, row: Tensor | None, x: Tensor, *rest: Any) -> Tensor:
        self.asked[name] += len(x)
        sound = getattr(self.inner, name)(x, *rest)
        beyond = x.reshape(len(x), -1)[:, 0] > self.edge
        if row is not None:
            self.met.update(row[beyond].tolist())
        return torch.where(across(beyond, sound), torch.nan, sound)


HIDDEN = ("predict", "predicts", "energy_and_grad", "between", "log_prob", "noised", "initial")
"""Attributes of `inner` that could answer in place of the watched methods."""


@dataclass(frozen=True)
class Enumerated:
    """A discrete law of few states with exact draws, by enumeration of the states."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    @cached_property
    def _all(self) -> tuple[Tensor, Tensor]:
        states = torch.tensor(self.inner.states, dtype=torch.float64)
        sites = math.prod(self.inner.event_shape)
        x = torch.cartesian_prod(*[states] * sites).reshape(-1, *self.inner.event_shape)
        return x, torch.softmax(-self.inner.energy(x), 0)

    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact draws, `(n, *event_shape)`."""
        x, probability = self._all
        u = noise.uniform(0, Stream.START, (), torch.float64)
        return x[torch.searchsorted(probability.cumsum(0), u).clamp(max=len(x) - 1)]


def bench_for(solver: Any, edge: float = math.inf) -> list[Watched]:
    """The fields on which a solver is tried, by the fields that it says it serves."""
    if solver.timed is True:
        inner: tuple[Any, ...] = (MODES.noised(VP()),)
    elif solver.needs & {"states", "gibbs"}:
        inner = (Enumerated(ising(2, 0.4, 0.2)),)
    else:
        inner = (gaussian(dim=2), MODES)
    return [_watched(solver, law, edge) for law in inner]


def steep_for(solver: Any) -> list[Watched]:
    """Static laws so narrow that a kernel whose step fits the others is mostly rejected."""
    if solver.timed is True:
        return []
    discrete = solver.needs & {"states", "gibbs"}
    return [_watched(solver, Enumerated(ising(2, 3.0, 1.0)) if discrete else gaussian(2, std=0.05))]


def _watched(solver: Any, law: Any, edge: float = math.inf) -> Watched:
    return Watched(law, frozenset(solver.needs) | _extras(solver, law), edge)


def _extras(solver: Any, law: Any) -> frozenset[str]:
    return frozenset({"base"}) if solver.timed is True else frozenset({"states"} & solver.needs)
