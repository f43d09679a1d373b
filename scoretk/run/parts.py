"""The compiled parts of steps that cannot be captured whole.

Each part is compiled once for all numbers of rows: where a step goes on with some of the chains,
copies of the last row fill the batch up to all chains, and their results are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from scoretk.core.compiling import compiled

__all__ = ["CompiledParts", "native_of"]

T = TypeVar("T")
UNROLLED = 4
"""The number of repetitions in one compiled function of `CompiledParts.iterate`."""


@dataclass(frozen=True, eq=False)
class CompiledParts:
    """Compiles the parts of the steps of a run (`scoretk.core.compiling.PartCompiler`).

    Each part has one function for each shape of an event and each setting, whatever the number of
    rows: fewer than `chains` are filled up with copies of the last. Floats are passed as tensors,
    so that one function serves all their values.

    Args:
        field: The run's field.
        chains: The number of chains, and so of rows of a full batch.
        made: The functions made so far, by part and setting.
    """

    field: Any
    chains: int
    made: dict[Hashable, Callable[..., Any]] = field(default_factory=dict, repr=False)

    def serves(self, field: Any) -> bool:
        """Whether the field is that of the run, be it for some of the rows only."""
        return native_of(field) is native_of(self.field)

    def call(self, function: Callable[..., T], field: Any, *rows: Any, **same: Any) -> T:
        """As `scoretk.core.compiling.part`."""
        rows, same = (_mapped(_as_data, value) for value in (rows, same))
        n = next(len(v) for v in _leaves(rows) if isinstance(v, Tensor) and v.ndim)
        fewer = 0 < n < self.chains
        if fewer:
            rows, cond = (_mapped(self._filled, value) for value in (rows, field.cond))
            field = replace(field, cond=cond)
        settings = tuple(map(_setting, _leaves((rows, same))))
        key = (function, type(native_of(field)), tuple(same), settings)
        if key not in self.made:
            self.made[key] = compiled(function, key[1:])
        answer: T = self.made[key](field, *rows, **same)
        return _mapped(lambda v: v[:n] if v.ndim else v, answer) if fewer else answer

    def iterate(
        self, body: Callable[..., T], field: Any, carry: T, times: int, *rows: Any, **same: Any
    ) -> T:
        """As `scoretk.core.compiling.iterate`, in functions of `UNROLLED` repetitions and of one."""
        while times:
            n = UNROLLED if times >= UNROLLED else 1
            carry = self.call(_repeated, field, carry, *rows, body=body, times=n, **same)
            times -= n
        return carry

    def _filled(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        return torch.cat([value, value[-1:].expand(self.chains - len(value), *value.shape[1:])])


def _repeated(
    field: Any, carry: T, *rows: Any, body: Callable[..., T], times: int, **same: Any
) -> T:
    for _ in range(times):
        carry = body(field, carry, *rows, **same)
    return carry


def native_of(field: Any) -> Any:
    """The field beneath a bound one."""
    return getattr(field, "native", field)


def _as_data(value: Any) -> Any:
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else value


def _setting(value: Any) -> Hashable:
    """What a function is compiled for: a tensor's shape, dtype and device; other values as such."""
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value


def _leaves(nest: Any) -> list[Any]:
    if isinstance(nest, dict):
        nest = tuple(nest.values())
    return [leaf for v in nest for leaf in _leaves(v)] if isinstance(nest, tuple) else [nest]


def _mapped(function: Callable[[Any], Any], nest: Any) -> Any:
    """Nested tuples and dicts with the function applied to each leaf."""
    if isinstance(nest, dict):
        return {name: _mapped(function, value) for name, value in nest.items()}
    if not isinstance(nest, tuple):
        return function(nest)
    values = (_mapped(function, value) for value in nest)
    return type(nest)(*values) if hasattr(nest, "_fields") else tuple(values)
