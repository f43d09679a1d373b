r"""Small networks for the trained families, and the Gaussian answer that each of them starts from.

Data with mean m and covariance `U diag(s^2) U^T` seen through a Gaussian path, `x_t = alpha x_1 + sigma eps`, have the linear
predictors (Wiener's; exact for Gaussian data)

    D = m + U [alpha s^2 / w^2] U^T (x_t - alpha m),    e = U [sigma / w^2] U^T (x_t - alpha m),    w^2 = alpha^2 s^2 + sigma^2

What is left of data and noise once these are taken away is one and the same unit-variance vector, scaled:

    x_1 - D = U [s sigma / w] F,    eps - e = -U [alpha s / w] F,    F = (sigma n - alpha s eps) / w,   n = U^T (x_1 - m) / s

So a network that predicts F serves noise, data and velocity alike, is well scaled at every time, and before training
already samples the Gaussian with the data's mean and covariance. With one s for all directions this is the
preconditioning of Karras et al.

Reference: Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative models" (2022).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["ConfinedEnergy", "PathNetwork", "ResidualMLP", "Spread", "initialise", "spread_of"]

FULL_COVARIANCE = 1024
"""Up to this many dimensions the covariance is used whole; beyond, its diagonal."""

FREQUENCIES = 8
"""Harmonics of the time's angle that the networks see."""


class Spread(NamedTuple):
    """A Gaussian: mean `(d,)`, principal directions as columns `(d, d)` or None for the axes, and stds `(d,)`."""

    mean: Tensor
    basis: Tensor | None
    std: Tensor


def spread_of(data: Tensor, floor: float = 0.0) -> Spread:
    """Mean and covariance of data `(n, *event_shape)` with `floor^2` added to every variance."""
    rows = data.detach().reshape(len(data), -1).to("cpu", torch.float64)
    mean, d = rows.mean(0), rows.shape[1]
    if d > FULL_COVARIANCE or len(rows) <= d:
        return Spread(mean.float(), None, (rows.var(0, correction=0) + floor**2).sqrt().float())
    values, basis = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    return Spread(mean.float(), basis.float(), (values.clamp(min=0) + floor**2).sqrt().float())


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Fan-in uniform weights and zero biases for every linear layer, by this generator; `zero_start` layers all zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            bound = 0.0 if getattr(layer, "zero_start", False) else math.sqrt(3 / layer.in_features)
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound, generator=generator)
                if layer.bias is not None:
                    layer.bias.zero_()
