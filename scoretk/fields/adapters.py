"""Foreign conventions, converted once at the edge: integer timesteps, sigma as time, time that runs the other way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoretk.errors import InvalidArgument
from scoretk.fields.paths import EDM, VE, GaussianPath, Tabulated
from scoretk.fields.wrappers import Diffusion, Velocity

__all__ = ["from_reversed_time", "from_sigmas", "from_timesteps"]


def from_timesteps(
    net: Callable[..., Tensor],
    alphas_cumprod: Tensor | Sequence[float],
    event_shape: Sequence[int],
    predicts: str = "noise",
    *,
    integer: bool = True,
) -> Diffusion:
    """A DDPM-style network on integer timesteps k = N - 1 (noise) ... 0 (data) as a `Diffusion` on its own schedule.

    Timestep k sits at `t = 1 - (k + 1) / N`, so a uniform grid of N steps meets every timestep exactly, and t = 1 is one
    step below k = 0: the data themselves.

    Arguments: net, called as `net(x, k, **cond)` with k of shape `(batch,)`, int64 (rounded to the nearest timestep, and
    never below 0), or in the dtype of x and unrounded where `integer=False`; alphas_cumprod `(N,)`; event_shape; predicts.
    """
    path = Tabulated(torch.as_tensor(alphas_cumprod))

    def adapted(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        k = path.timestep(t)
        return net(x, k.round().long().clamp(0, path.steps - 1) if integer else k, **cond)

    return Diffusion(adapted, tuple(event_shape), path, predicts)


def from_sigmas(
    net: Callable[..., Tensor],
    event_shape: Sequence[int],
    path: GaussianPath | None = None,
    predicts: str = "data",
) -> Diffusion:
    """A network that takes the noise level sigma for time (EDM, NCSN, k-diffusion) as a `Diffusion`.

    Arguments: net, called as `net(x, sigma, **cond)` with sigma of shape `(batch,)`; path, variance exploding
    (`EDM()` by default, or `VE(...)`); predicts, "data" for an EDM denoiser, "score" for an NCSN.
    """
    path = EDM() if path is None else path
    if not isinstance(path, EDM | VE):
        raise InvalidArgument("path", path, "a variance-exploding path, EDM or VE, on which sigma is the noise level")

    def adapted(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return net(x, path.sigma(t), **cond)

    return Diffusion(adapted, tuple(event_shape), path, predicts)


def from_reversed_time(
    net: Callable[..., Tensor],
    event_shape: Sequence[int],
    path: GaussianPath | None = None,
    predicts: str = "velocity",
    base: object = None,
) -> Diffusion | Velocity:
    """A network whose time s runs from data (s = 0) to noise (s = 1), as a field in this package's time t = 1 - s.

    A velocity changes its sign with the direction, `dx/dt = -dx/ds`; the other predictions do not.

    Arguments: net, called as `net(x, s, **cond)`; path, in this package's time (None, with predicts "velocity", for a
    `Velocity` from `base`); predicts; base.
    """
    sign = -1.0 if predicts == "velocity" else 1.0

    def adapted(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return sign * net(x, 1 - t, **cond)

    if path is None:
        if predicts != "velocity":
            raise InvalidArgument("path", path, f"the Gaussian path on which the network predicts {predicts}")
        return Velocity(adapted, tuple(event_shape), base)
    return Diffusion(adapted, tuple(event_shape), path, predicts)
