"""Flows of nflows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.adapters.flows.law import Cond, _fails, _like, _normal, _OnAllOfSpace
from scoretk.adapters.flows.supports import Support, nflows_support
from scoretk.fields.protocols import NoiseSource


@dataclass(frozen=True, eq=False)
class _NFlows(_OnAllOfSpace):
    """A flow of nflows: a transform from data to noise, a base, and an embedding of the context."""

    flow: Any
    names = ("context",)

    @property
    def discrete(self) -> bool:
        return type(self.flow._distribution).__name__ == "ConditionalIndependentBernoulli"

    def conditional(self, shape: tuple[int, ...]) -> bool:
        """Whether a part of it reads a context; many leave it out without a word where it is None."""
        return any(
            getattr(part, "context_features", None) or "context" in name
            for name, part in self.flow.named_modules()
        )

    def some_conditions(self, rows: int) -> Cond | None:
        parts = self.flow.named_modules()
        found = (getattr(part, "context_features", None) for _, part in parts)
        widths = {width for width in found if width is not None}
        plain = type(self.flow._embedding_net) is torch.nn.Identity
        if len(widths) != 1 or not plain:
            return None
        return {"context": _like(self.flow).new_zeros((rows, *widths))}

    def shape(self) -> tuple[int, ...]:
        """That of what comes of the base's zeros, where the inverse can be asked for it."""
        base = tuple(self.flow._distribution._shape)
        found: list[Tensor] = []

        def ask() -> None:
            with (
                warnings.catch_warnings()
            ):  # of functions of torch's that nflows calls by old names
                warnings.simplefilter("ignore")
                zeros = _like(self.flow).new_zeros((1, *base))
                found.append(self.flow._transform.inverse(zeros)[0])

        return base if _fails(ask) else tuple(found[0].shape[1:])

    def support(self, shape: tuple[int, ...]) -> Support | None:
        return nflows_support(self.flow, _like(self.flow).new_zeros((1, *shape)))

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        log_prob: Tensor = self.flow.log_prob(x, **cond)
        return log_prob

    @property
    def explicit(self) -> bool:
        return type(self.flow._distribution).__name__ in _NFLOWS_BASES

    def _embedded(self, cond: Cond) -> Tensor | None:
        context = cond.get("context")
        embedded: Tensor | None = None if context is None else self.flow._embedding_net(context)
        return embedded

    def base(self, noise: NoiseSource, cond: Cond) -> Tensor:
        base = self.flow._distribution
        z = _normal(noise, base._shape, self.flow)
        mean, log_std = _NFLOWS_BASES[type(base).__name__](base, self._embedded(cond))
        return mean + log_std.exp() * z

    def inverse(self, z: Tensor, cond: Cond) -> Tensor:
        x: Tensor = self.flow._transform.inverse(z, context=self._embedded(cond))[0]
        return x

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        z: Tensor = self.flow._transform(x, context=self._embedded(cond))[0]
        return z


_NFLOWS_BASES: dict[str, Callable[[Any, Tensor | None], tuple[Tensor, Tensor]]] = {
    "StandardNormal": lambda base, context: (torch.zeros(()), torch.zeros(())),
    "DiagonalNormal": lambda base, context: (
        base.mean_.reshape(1, *base._shape),
        base.log_std_.reshape(1, *base._shape),
    ),
    "ConditionalDiagonalNormal": lambda base, context: base._compute_params(context),
}
"""Mean and log standard deviation of the diagonal normals of nflows, by class."""
