"""Networks of FrEIA, whose base is N(0, I)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.adapters.flows.law import Cond, _like, _log_normal, _normal, _OnAllOfSpace
from scoretk.adapters.flows.supports import Support
from scoretk.fields.protocols import NoiseSource


@dataclass(frozen=True, eq=False)
class _FrEIA(_OnAllOfSpace):
    """An invertible network of FrEIA, which leads from data to N(0, I): it has no base of its own."""

    flow: Any
    explicit = True

    @property
    def names(self) -> tuple[str, ...]:
        used = self._used
        return ("c",) if used == [0] else tuple(f"c{i}" for i in used)

    @property
    def _used(self) -> list[int]:
        """The places, in the list of conditions, of those that a layer looks at."""
        nodes = getattr(self.flow, "condition_nodes", None)
        if nodes is not None:
            return [*range(len(nodes))]
        return sorted({i for i in self.flow.conditions if i is not None})

    def conditional(self, shape: tuple[int, ...]) -> bool:
        return bool(self._used)

    def _given(self, cond: Cond) -> list[Tensor | None] | None:
        if not cond:
            return None
        placed = dict(zip(self._used, (cond[name] for name in self.names), strict=True))
        return [placed.get(i) for i in range(max(placed) + 1)]

    def shape(self) -> tuple[int, ...]:
        (shape,) = self.flow.dims_in  # of one input
        return tuple(shape)

    def support(self, shape: tuple[int, ...]) -> Support | None:
        return None

    def some_conditions(self, rows: int) -> Cond | None:
        nodes = getattr(self.flow, "condition_nodes", None)
        if nodes is not None:
            shapes = [node.output_dims[0] for node in nodes]
        else:
            by_place = {
                i: layer.dims_c[0]
                for i, layer in zip(self.flow.conditions, self.flow.module_list, strict=True)
                if i is not None
            }
            shapes = [by_place[i] for i in self._used]
        like = _like(self.flow)
        return {n: like.new_zeros((rows, *s)) for n, s in zip(self.names, shapes, strict=True)}

    def _output_shapes(self) -> list[tuple[int, ...]]:
        shapes = getattr(self.flow, "global_out_shapes", None) or self.flow.shapes[-1:]
        return [tuple(shape) for shape in shapes]

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        z, log_det = self.flow(x, c=self._given(cond))
        parts = z if isinstance(z, tuple) else (z,)
        log_prob: Tensor = log_det + sum(map(_log_normal, parts))
        return log_prob

    def base(self, noise: NoiseSource, cond: Cond) -> Tensor:
        return _normal(noise, (sum(map(math.prod, self._output_shapes())),), self.flow)

    def inverse(self, z: Tensor, cond: Cond) -> Tensor:
        shapes = self._output_shapes()
        flat = z.split([math.prod(shape) for shape in shapes], 1)
        parts = [part.reshape(len(z), *shape) for part, shape in zip(flat, shapes, strict=True)]
        given = parts[0] if len(parts) == 1 else parts
        # with its Jacobian, as some layers answer otherwise without
        found = self.flow(given, c=self._given(cond), rev=True)[0]
        x: Tensor = found[0] if isinstance(found, tuple) else found
        return x

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        z = self.flow(x, c=self._given(cond))[0]
        return torch.cat([part.flatten(1) for part in (z if isinstance(z, tuple) else (z,))], 1)
