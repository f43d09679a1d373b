"""Differential equations whose solutions are seen with noise.

References:
    Carpenter, "Predator-prey population dynamics: the Lotka-Volterra model in Stan" (2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.distributions.constraints import positive

from scoretk.demo.bench.posteriordb.model import Arrays, Model, cauchy, gaussian
from scoretk.fields.layout import Variable

__all__ = ["DYNAMICS"]


def _runge_kutta(
    slope: Callable[[float, Tensor], Tensor], x: Tensor, times: list[float], most: float
) -> Tensor:
    """Solutions at rising times, the first that of x: steps of `most` at most, of order 4.

    Args:
        slope: `(t, x)` to dx/dt, like x.
        x: `(batch, k)`.
        times: The times.
        most: The longest step.

    Returns:
        `(batch, times - 1, k)`.
    """
    found, t = [], times[0]
    for end in times[1:]:
        steps = max(1, math.ceil((end - t) / most - 1e-9))
        h = (end - t) / steps
        for i in range(steps):
            at = t + i * h
            k1 = slope(at, x)
            k2 = slope(at + h / 2, x + h / 2 * k1)
            k3 = slope(at + h / 2, x + h / 2 * k2)
            k4 = slope(at + h, x + h * k3)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        t = end
        found.append(x)
    return torch.stack(found, 1)


YEAR = 0.1
"""The longest step of predators and prey, whose cycles last ten: the error of it is 1e-5."""


def lotka_volterra(data: Arrays) -> Model:
    """Hares and lynxes: `(log u)' = alpha - beta v`, `(log v)' = -gamma + delta u`."""
    times = [0.0, *data["ts"].tolist()]
    logs, first = data["y"].log(), data["y_init"].log()

    def energy(theta: Tensor, z_init: Tensor, sigma: Tensor) -> Tensor:
        growth = torch.stack([theta[:, 0], -theta[:, 2]], 1)
        effect = torch.stack([-theta[:, 1], theta[:, 3]], 1)
        start = z_init.log()
        path = _runge_kutta(lambda t, x: growth + effect * x.flip(1).exp(), start, times, YEAR)
        seen = torch.cat([(first - start)[:, None], logs - path], 1) / sigma[:, None]
        places = (
            (theta - theta.new_tensor([1, 0.05, 1, 0.05]))
            / theta.new_tensor([0.5, 0.05, 0.5, 0.05])
        ).square().sum(1) / 2
        scales = ((sigma.log() + 1).square() / 2 + sigma.log()).sum(1)
        starts = ((start - math.log(10)).square() / 2 + start).sum(1)
        spread = (len(logs) + 1) * sigma.log().sum(1)
        return seen.square().sum((1, 2)) / 2 + spread + places + scales + starts

    variables = {
        name: Variable((n,), positive) for name, n in (("theta", 4), ("z_init", 2), ("sigma", 2))
    }
    return Model(variables, energy)


DAY = 0.1
"""The longest step of concentrations, in days."""


def one_comp_mm_elim_abs(data: Arrays) -> Model:
    """A dose absorbed at the rate k_a and eliminated at one that saturates (Michaelis and Menten).

    C' = exp(-k_a t) D k_a / V - V_m / V C / (K_m + C),    C(t_0) = 0
    """
    times = [float(data["t0"]), *data["times"].tolist()]
    dose, volume, seen = data["D"], data["V"], data["C_hat"].flatten().log()

    def energy(k_a: Tensor, K_m: Tensor, V_m: Tensor, sigma: Tensor) -> Tensor:
        def slope(t: float, x: Tensor) -> Tensor:
            taken = (-k_a * t).exp() * dose * k_a / volume if t >= 0 else torch.zeros_like(k_a)
            return (taken - V_m / volume * x[:, 0] / (K_m + x[:, 0]))[:, None]

        path = _runge_kutta(slope, torch.zeros_like(k_a)[:, None], times, DAY)[..., 0]
        prior = cauchy(torch.stack([k_a, K_m, V_m, sigma], 1), 1).sum(1)
        return gaussian(seen - path.log(), sigma) + prior

    return Model(dict.fromkeys(("k_a", "K_m", "V_m", "sigma"), positive), energy)


DYNAMICS: Mapping[str, Callable[[Arrays], Model]] = MappingProxyType(
    {"lotka_volterra": lotka_volterra, "one_comp_mm_elim_abs": one_comp_mm_elim_abs}
)
"""By the names of posteriordb."""
