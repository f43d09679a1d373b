"""A network of diffusers as a function of x, its time and conditions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.errors import InvalidArgument
from scoretk.fields.foreign import answered, owners, within

ADDED = ("text_embeds", "time_ids", "image_embeds")
"""Conditions that a UNet takes in a dictionary of its own, `added_cond_kwargs`."""
PREDICT_BESIDE = ("transformer_2", "unet_2", "controlnet", "adapter")
"""Parts of pipelines that predict together with the network, or in its place at some times."""


@dataclass(frozen=True, eq=False)
class _Network:
    """A network of diffusers, called by this package's time.

    Attributes:
        network: The network.
        convention: How it is asked.
        keyword: The name of its time; None where that is its second argument.
        grouped: Whether it takes some conditions in `added_cond_kwargs`.
    """

    network: Any
    convention: Any
    keyword: str | None
    grouped: bool

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        prediction: Tensor = self.convention.predict(lambda y, k: self._ask(y, k, cond), x, t)
        return prediction

    def _ask(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        state = x.dtype
        inner = within(self.network)
        x, *rows = _as_taken(inner, x, *cond.values())
        cond = dict(zip(cond, rows, strict=True))
        if not any(package == "diffusers" for package, _ in owners(inner)):
            (time,) = _as_taken(inner, time)  # (those embed it in float32: bfloat16 has no 999)
        given: dict[str, Any] = {n: v for n, v in cond.items() if not (self.grouped and n in ADDED)}
        added = {n: v for n, v in cond.items() if n not in given}
        if added:
            given["added_cond_kwargs"] = added
        args = (x,) if self.keyword else (x, time)
        if self.keyword:
            given[self.keyword] = time
        found = answered(lambda: self.network(*args, **given), inner, x, cond)
        found = getattr(found, "sample", found)
        found = found[0] if isinstance(found, tuple | list) else found
        if isinstance(found, Tensor) and found.shape[1:2] == (2 * x.shape[1],):
            found = found[:, : x.shape[1]]  # what follows is the variance
        output: Tensor = found.to(state) if isinstance(found, Tensor) else found
        return output


def _as_taken(network: Any, *given: Tensor) -> list[Tensor]:
    """Floating-point tensors in the dtype of a network that has one."""
    dtype = getattr(network, "dtype", None)
    if not isinstance(dtype, torch.dtype):
        own = network.parameters() if isinstance(network, torch.nn.Module) else ()
        dtype = next((p.dtype for p in own if p.is_floating_point()), None)
    if dtype is None:
        return list(given)
    return [v.to(dtype) if v.is_floating_point() else v for v in given]


def _network_of(pipeline: Any) -> Any:
    more = next((n for n in PREDICT_BESIDE if getattr(pipeline, n, None) is not None), None)
    if more is not None:
        raise InvalidArgument(
            "model",
            type(pipeline),
            f"a pipeline of which one network predicts; this one has {more!r} beside it",
            "Give the one network and the scheduler: from_diffusers(pipeline.unet, pipeline.scheduler)",
        )
    found = [
        part
        for part in (getattr(pipeline, name, None) for name in ("unet", "transformer"))
        if part is not None
    ]
    if len(found) != 1:
        raise InvalidArgument(
            "model", type(pipeline), "a pipeline with one unet or transformer", "Give the network"
        )
    return found[0]


def _shape_of(network: Any) -> tuple[int, ...]:
    config = getattr(within(network), "config", {})
    channels, size = (
        config.get(name) if isinstance(config, Mapping) else None
        for name in ("in_channels", "sample_size")
    )
    if channels is None or size is None:
        raise InvalidArgument(
            "event_shape", None, "the shape of one x, which this network does not say"
        )
    axes = 1 if "1D" in type(within(network)).__name__ else 2
    return (channels, *((size,) * axes if isinstance(size, int) else size))


def _called(network: Any) -> tuple[str | None, bool]:
    """By which name a network takes its time, and whether it takes conditions in a dictionary."""
    network = within(network)  # whose wrappers take any arguments
    function = network.forward if isinstance(network, torch.nn.Module) else network
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None, False
    keyword = next((n for n in ("timestep", "timesteps") if n in names[1:]), None)
    return keyword, "added_cond_kwargs" in names
