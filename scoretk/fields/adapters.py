"""Models of other conventions as fields: integer timesteps, sigma as time, reversed time.

What calls a network in its own convention is a small object, not a local function, so that the
fields can be pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.core.arguments import numbers
from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument
from scoretk.fields.convert import prediction_name
from scoretk.fields.foreign import user_function
from scoretk.fields.paths import EDM, VE, GaussianPath, Tabulated
from scoretk.fields.wrappers import Diffusion, Velocity

__all__ = ["from_reversed_time", "from_sigmas", "from_timesteps"]


@dataclass(frozen=True, eq=False)
class _OnTimesteps:
    """A network called with the timestep of t: `net(x, k(t))`."""

    net: Callable[..., Tensor]
    path: Tabulated
    integer: bool

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        k = self.path.timestep(t)
        return self.net(
            x, k.round().long().clamp(0, self.path.steps - 1) if self.integer else k, **cond
        )


@dataclass(frozen=True, eq=False)
class _OnSigmas:
    """A network called with the noise level of t: `net(x, sigma(t))`."""

    net: Callable[..., Tensor]
    path: EDM | VE

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return self.net(x, self.path.sigma(t), **cond)


@dataclass(frozen=True, eq=False)
class _OnReversedTime:
    """A network called with reversed time: `sign net(x, 1 - t)`."""

    net: Callable[..., Tensor]
    sign: float

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        answer = self.net(x, 1 - t, **cond)
        # what is no tensor is named by who asks
        return self.sign * answer if isinstance(answer, Tensor) else answer


@explained
def from_timesteps(
    net: Callable[..., Tensor],
    alphas_cumprod: Tensor | Sequence[float],
    event_shape: Sequence[int],
    predicts: str = "noise",
    *,
    integer: bool = True,
    null: Mapping[str, Any] | None = None,
    autocast: torch.dtype | None = None,
) -> Diffusion:
    """A DDPM-style network on integer timesteps as a `Diffusion` on its own schedule.

    Timestep k, from N - 1 (noise) to 0 (data), sits at `t = 1 - (k + 1) / N`, so a uniform grid of
    N steps meets every timestep exactly, and t = 1 is one step below k = 0: the data themselves.

    Args:
        net: Called as `net(x, k, **cond)` with k of shape `(batch,)`.
        alphas_cumprod: alpha^2 of each timestep, `(N,)`, decreasing.
        event_shape: The shape of one x.
        predicts: What the network predicts: "data", "noise", "score", "velocity" or "v".
        integer: Whether k is int64, rounded to the nearest timestep and never below 0; otherwise it
            is unrounded, in the dtype of x.
        null: As in `Diffusion`.
        autocast: As in `Energy`.

    Returns:
        A field in time on the schedule's own path, `Tabulated`.

    Raises:
        InvalidArgument: An argument does not fit; also noise or score with a table that ends at 0,
            where they hold no information on the data.
        UnknownName: `predicts` is none of these.
    """
    if not isinstance(integer, bool):
        raise InvalidArgument("integer", integer, "True or False")
    path = Tabulated(numbers("alphas_cumprod", alphas_cumprod))
    predicts = prediction_name(predicts)
    if predicts in ("noise", "score") and float(path.alpha(0.0)) == 0:
        raise InvalidArgument(
            "predicts",
            predicts,
            "'data', 'v' or 'velocity' with alphas_cumprod that end at 0: there x_t is all noise",
            "A model of the noise was trained on a table that ends above 0: give that one",
        )
    user_function("net", net, "net(x, k, **cond)")
    adapted = _OnTimesteps(net, path, integer)
    return Diffusion(adapted, as_event_shape(event_shape), path, predicts, null, autocast=autocast)


@explained
def from_sigmas(
    net: Callable[..., Tensor],
    event_shape: Sequence[int],
    path: GaussianPath | None = None,
    predicts: str = "data",
    *,
    null: Mapping[str, Any] | None = None,
    autocast: torch.dtype | None = None,
) -> Diffusion:
    """A network whose time is the noise level sigma (EDM, NCSN, k-diffusion) as a `Diffusion`.

    Args:
        net: Called as `net(x, sigma, **cond)` with sigma of shape `(batch,)`.
        event_shape: The shape of one x.
        path: Variance exploding: `VE(...)`, or `EDM(...)`; None for `EDM()`.
        predicts: What the network predicts: "data" for an EDM denoiser, "score" for an NCSN.
        null: As in `Diffusion`.
        autocast: As in `Energy`.

    Returns:
        A field in time on that path.

    Raises:
        InvalidArgument: An argument does not fit.
        UnknownName: `predicts` is no prediction.
    """
    path = EDM() if path is None else path
    if not isinstance(path, EDM | VE):
        raise InvalidArgument(
            "path", path, "a variance-exploding path, EDM or VE, on which sigma is the noise level"
        )
    return Diffusion(
        _OnSigmas(user_function("net", net, "net(x, sigma, **cond)"), path),
        as_event_shape(event_shape),
        path,
        predicts,
        null,
        autocast=autocast,
    )


@explained
def from_reversed_time(
    net: Callable[..., Tensor],
    event_shape: Sequence[int],
    path: GaussianPath | None = None,
    predicts: str = "velocity",
    base: object = None,
    *,
    null: Mapping[str, Any] | None = None,
    autocast: torch.dtype | None = None,
) -> Diffusion | Velocity:
    """A network whose time s runs from data (s = 0) to noise (s = 1), in this package's t = 1 - s.

    A velocity changes its sign with the direction, `dx/dt = -dx/ds`; the other predictions do not.

    Args:
        net: Called as `net(x, s, **cond)` with s of shape `(batch,)`.
        event_shape: The shape of one x.
        path: The Gaussian path in this package's time; None, with predicts "velocity", for a
            `Velocity` from `base`.
        predicts: What the network predicts: "data", "noise", "score", "velocity" or "v".
        base: The law at s = 1, as in `Velocity`; None for N(0, I).
        null: As in `Diffusion`.
        autocast: As in `Energy`.

    Returns:
        A field in time: a `Velocity` without a path, else a `Diffusion`.

    Raises:
        InvalidArgument: An argument does not fit, or there is no path and no velocity.
        UnknownName: `predicts` is none of these.
    """
    user_function("net", net, "net(x, s, **cond)")
    predicts = prediction_name(predicts)
    adapted = _OnReversedTime(net, -1.0 if predicts == "velocity" else 1.0)
    if path is None:
        if predicts != "velocity":
            raise InvalidArgument(
                "path", path, f"the Gaussian path on which the network predicts {predicts}"
            )
        return Velocity(adapted, as_event_shape(event_shape), base, null=null, autocast=autocast)
    return Diffusion(adapted, as_event_shape(event_shape), path, predicts, null, autocast=autocast)
