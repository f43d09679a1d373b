"""A posterior by named variables, and the parts that energies of posteriors are made of.

All energies are negative log densities up to a constant; parameters come with a row for each chain,
`(batch, *shape)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from scoretk.demo.bench.target import Arrays, unchanged
from scoretk.fields.wrappers import Energy

__all__ = ["Arrays", "Model", "bernoulli", "cauchy", "gaussian", "ones_beside", "student"]


@dataclass(frozen=True, eq=False)
class Model:
    """A posterior.

    Args:
        variables: Its variables, as `scoretk.Energy` takes them.
        energy: Their energy, `(batch,)`, by keyword.
        parameters: What reference draws hold, by name, from variables by name; rows on axis 0.
    """

    variables: Mapping[str, Any]
    energy: Callable[..., Tensor]
    parameters: Callable[[Arrays], Arrays] = unchanged

    def field(self) -> Any:
        """The field that is sampled."""
        return Energy(self.energy, variables=dict(self.variables))


def gaussian(residual: Tensor, scale: Tensor | float) -> Tensor:
    """Of residuals with the law N(0, scale^2), summed.

    Args:
        residual: `(batch, n)`.
        scale: A number, one a row `(batch,)`, or one a residual `(batch, n)`.
    """
    if not isinstance(scale, Tensor):
        return (residual / scale).square().sum(1) / 2
    wide = scale[:, None] if scale.ndim == 1 else scale
    return ((residual / wide).square() / 2 + wide.log()).sum(1)


def cauchy(x: Tensor, scale: float) -> Tensor:
    """Of a (half) Cauchy law about 0, like x."""
    return (x / scale).square().log1p()


def student(x: Tensor, freedom: float, scale: float) -> Tensor:
    """Of a (half) Student law about 0, like x."""
    return (freedom + 1) / 2 * ((x / scale).square() / freedom).log1p()


def bernoulli(logits: Tensor, y: Tensor) -> Tensor:
    """Of outcomes of 0 or 1, summed.

    Args:
        logits: `(batch, n)`.
        y: The outcomes, `(n,)`.
    """
    return softplus(logits).sum(1) - logits @ y


def ones_beside(*columns: Tensor) -> Tensor:
    """A design, `(n, 1 + len(columns))`, whose first column is of ones."""
    return torch.stack([torch.ones_like(columns[0]), *columns], 1)
