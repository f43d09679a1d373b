"""Velocity models of torchcfm as fields.

Its time is this package's, and a model is called by `model(t, x, y)` (the UNets) or on the rows
`(x, t)` put together (its MLP). Which path x_t follows says the matcher that it was trained with:

    ConditionalFlowMatcher(sigma)          t x_1 + (1 - t) x_0 + sigma eps
    TargetConditionalFlowMatcher(sigma)    t x_1 + (1 - (1 - sigma) t) x_0
    VariancePreservingConditional...       sin(pi t / 2) x_1 + cos(pi t / 2) x_0

With x_0 ~ N(0, I) drawn by itself these are Gaussian paths, and the velocity gives score and
denoiser. Where x_0 was coupled with the data, by optimal transport or a bridge, it gives none.

References:
    Tong, Fatras, Malkin, Huguet, Zhang, Rector-Brooks, Wolf, Bengio, "Improving and generalizing
    flow-based generative models with minibatch optimal transport" (2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from scoretk.adapters.schedules import Scheduled
from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.core.arguments import function
from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument
from scoretk.fields.foreign import answered, owners, within
from scoretk.fields.paths import Cosine, GaussianPath, Linear
from scoretk.fields.wrappers import Diffusion, Velocity

__all__ = ["from_torchcfm"]

COUPLED = ("ExactOptimalTransportConditionalFlowMatcher", "SchrodingerBridgeConditionalFlowMatcher")


@explained
def from_torchcfm(
    model: Any,
    event_shape: Sequence[int],
    matcher: Any = None,
    base: object = None,
    *,
    autocast: torch.dtype | None = None,
) -> Diffusion | Velocity:
    """A field in time from a velocity model of torchcfm.

    Args:
        model: An MLP or a UNet of torchcfm, or what is called as `model(t, x, **cond)`; the classes
            of a UNet are the condition "y".
        event_shape: The shape of one x.
        matcher: The flow matcher of torchcfm that it was trained with; None for
            `ConditionalFlowMatcher(sigma=0)`.
        base: The law of x_0 as in `scoretk.Velocity`, where that is not N(0, I).
        autocast: As in `scoretk.Energy`.

    Returns:
        A field that predicts the velocity; with a base, or a matcher that couples x_0 with the
        data, that is all it has.

    Raises:
        InvalidArgument: The matcher is not known, or an argument does not fit.
    """
    shape = as_event_shape(event_shape)
    flat = ("torchcfm", "MLP") in owners(within(model))
    function("model", model, "model(rows)" if flat else "model(t, x, **cond)")
    net: Callable[..., Tensor] = _OnRows(model) if flat else _TimeFirst(model)
    path = _path(matcher)
    if base is not None:
        return Velocity(net, shape, base, autocast=autocast)
    if path is None:
        normal = td.Independent(td.Normal(torch.zeros(shape), torch.ones(shape)), len(shape))
        return Velocity(net, shape, normal, autocast=autocast)
    return Diffusion(net, shape, path, "velocity", autocast=autocast)


def _path(matcher: Any) -> GaussianPath | None:
    """The Gaussian path of a matcher; None where x_0 is coupled with the data."""
    kinds = [name for package, name in owners(matcher) if package == "torchcfm"]
    if matcher is None:
        return Linear()
    own = [name for name in FORMULAS if kinds and not _of_torchcfm(getattr(matcher, name, None))]
    if own:
        raise InvalidArgument(
            "matcher",
            type(matcher),
            "a matcher with the path of torchcfm's own class",
            f"It has {', '.join(own)} of its own. With another Gaussian path: "
            f"scoretk.Diffusion(net, event_shape, path, 'velocity'); of a velocity alone: "
            f"from_torchcfm(model, event_shape, base=...)",
        )
    if kinds and kinds[0] in COUPLED:
        return None
    sigma = float(getattr(matcher, "sigma", 0.0))
    if kinds[:1] == ["VariancePreservingConditionalFlowMatcher"] and sigma == 0:
        return Cosine()
    if kinds[:1] == ["TargetConditionalFlowMatcher"]:
        return Scheduled(_Target(sigma))
    if kinds[:1] == ["ConditionalFlowMatcher"]:
        return Scheduled(_Blurred(sigma)) if sigma else Linear()
    raise InvalidArgument(
        "matcher",
        type(matcher),
        "a ConditionalFlowMatcher, TargetConditionalFlowMatcher, one of optimal transport or of a "
        "bridge, or VariancePreservingConditionalFlowMatcher(sigma=0) of torchcfm",
    )


FORMULAS = ("compute_mu_t", "compute_sigma_t", "sample_xt", "compute_conditional_flow")
"""The methods by which a matcher says its path."""


def _of_torchcfm(method: Any) -> bool:
    """Whether a method is of torchcfm's own code."""
    return str(getattr(method, "__module__", "")).partition(".")[0] == "torchcfm"


@dataclass(frozen=True, eq=False)
class _Blurred:
    """`alpha = t`, `sigma^2 = (1 - t)^2 + s^2`: a line with noise of its own."""

    s: float

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, ((1 - t) ** 2 + self.s**2).sqrt()


@dataclass(frozen=True, eq=False)
class _Target:
    """`alpha = t`, `sigma = 1 - (1 - s) t`."""

    s: float

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, 1 - (1 - self.s) * t


@dataclass(frozen=True, eq=False)
class _TimeFirst:
    """A model that takes the time before x."""

    net: Any

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        velocity: Tensor = answered(lambda: self.net(t, x, **cond), self.net, x, cond)
        return velocity


@dataclass(frozen=True, eq=False)
class _OnRows:
    """A model of flat rows, with the time as their last entry."""

    net: Any

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        rows = torch.cat([x.flatten(1), t[:, None]], 1)
        velocity: Tensor = answered(lambda: self.net(rows), self.net, x, {})
        return velocity.reshape(x.shape)
