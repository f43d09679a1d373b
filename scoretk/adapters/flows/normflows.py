"""Flows of normflows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.adapters.flows.law import Cond, _like, _normal, _OnAllOfSpace
from scoretk.adapters.flows.supports import Support, normflows_support
from scoretk.fields.foreign import owners
from scoretk.fields.protocols import NoiseSource


@dataclass(frozen=True, eq=False)
class _NormFlows(_OnAllOfSpace):
    """A flow of normflows, whose layers lead from noise to data."""

    flow: Any

    @property
    def names(self) -> tuple[str, ...]:
        kinds = {name for _, name in owners(self.flow)}
        return ("context",) if "ConditionalNormalizingFlow" in kinds else ("y",) * self._by_class

    @property
    def _by_class(self) -> bool:
        return any(name in ("ClassCondFlow", "MultiscaleFlow") for _, name in owners(self.flow))

    def conditional(self, shape: tuple[int, ...]) -> bool:
        if self._by_class:
            return bool(getattr(self.flow, "class_cond", True))
        return bool(self.names)

    def shape(self) -> tuple[int, ...]:
        base = self.flow.q0
        sizes = (getattr(base, name, None) for name in ("ndim", "dim"))
        shape = getattr(base, "shape", None) or (next(size for size in sizes if size),)
        if self.names:
            return tuple(shape)
        with torch.no_grad():  # two rows, of which a layer may take the spread
            return tuple(self.flow.forward(_like(self.flow).new_zeros((2, *shape))).shape[1:])

    def support(self, shape: tuple[int, ...]) -> Support | None:
        return normflows_support(self.flow, _like(self.flow).new_zeros((1, *shape)))

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        if self._by_class:
            log_prob: Tensor = self.flow.log_prob(x, cond.get("y"))
        else:
            log_prob = self.flow.log_prob(x, **cond)
        return log_prob

    @property
    def explicit(self) -> bool:
        return type(self.flow.q0).__name__ in ("DiagGaussian", "ConditionalDiagGaussian")

    def base(self, noise: NoiseSource, cond: Cond) -> Tensor:
        base = self.flow.q0
        z = _normal(noise, base.shape, self.flow)
        if type(base).__name__ == "DiagGaussian":
            hotter = math.log(base.temperature or 1.0)
            drawn: Tensor = base.loc + (base.log_scale + hotter).exp() * z
            return drawn
        mean, log_scale = base.context_encoder(cond["context"]).chunk(2, -1)
        drawn = mean + log_scale.exp() * z
        return drawn

    def inverse(self, z: Tensor, cond: Cond) -> Tensor:
        x = z.clone()  # into which some layers write
        for layer in self.flow.flows:
            x = layer(x, **cond)[0]
        return x

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        z = x.clone()
        for layer in reversed(self.flow.flows):
            z = layer.inverse(z, **cond)[0]
        return z
