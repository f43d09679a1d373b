"""How the networks of diffusers that flow on lines count time, and which way they point.

A scheduler of a flow on lines, `x = s noise + (1 - s) data`, says a timestep `k = N s` for each of
its steps. What its network is called with is not the scheduler's to say: the pipelines of one
architecture hand over k, those of another k / 1000, or 1 - k / N, and some networks predict
data - noise, which their pipelines negate. Nothing in a network's configuration tells these apart
(but Sana's `timestep_scale`), so that they are written down here, by architecture.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import nn

from scoretk.core.arguments import finite
from scoretk.core.modules import modules_of
from scoretk.errors import InvalidArgument
from scoretk.fields.foreign import owners, within

__all__ = ["CLOCKS", "Clock", "clock_of"]


@dataclass(frozen=True)
class Clock:
    """A network's time is `start + rate k` of the scheduler's timestep k.

    Attributes:
        start: Its time at k = 0.
        rate: How fast it runs; None for 1 / N, against `start` = 1 for -1 / N.
        negated: Whether it predicts data - noise.
    """

    start: float = 0.0
    rate: float | None = 1.0
    negated: bool = False

    def at(self, steps: int) -> tuple[float, float]:
        """Start and rate for a scheduler of N timesteps."""
        if self.rate is not None:
            return self.start, self.rate
        return self.start, (-1.0 if self.start else 1.0) / steps


_TIMESTEP, _THOUSANDTH, _SHARE = Clock(), Clock(rate=1e-3), Clock(rate=None)
_TO_DATA = Clock(1.0, None, negated=True)

_BY_CLOCK: tuple[tuple[Clock, tuple[str, ...]], ...] = (
    (
        _TIMESTEP,
        (
            "AllegroTransformer3DModel",
            "BriaFiboTransformer2DModel",
            "BriaTransformer2DModel",
            "ChronoEditTransformer3DModel",
            "CogVideoXTransformer3DModel",
            "CogView3PlusTransformer2DModel",
            "CogView4Transformer2DModel",
            "ConsisIDTransformer3DModel",
            "DiTTransformer2DModel",
            "EasyAnimateTransformer3DModel",
            "ErnieImageTransformer2DModel",
            "HunyuanDiT2DModel",
            "HunyuanImageTransformer2DModel",
            "HunyuanVideo15Transformer3DModel",
            "HunyuanVideoFramepackTransformer3DModel",
            "HunyuanVideoTransformer3DModel",
            "JoyImageEditTransformer3DModel",
            "Kandinsky5Transformer3DModel",
            "LTXVideoTransformer3DModel",
            "LatteTransformer3DModel",
            "MochiTransformer3DModel",
            "MotifVideoTransformer3DModel",
            "OmniGenTransformer2DModel",
            "PixArtTransformer2DModel",
            "SD3Transformer2DModel",
            "SanaTransformer2DModel",
            "SanaVideoTransformer3DModel",
            "SkyReelsV2Transformer3DModel",
            "StableAudio3DiTModel",
            "UNet1DModel",
            "UNet2DConditionModel",
            "UNet2DModel",
            "UNet3DConditionModel",
            "WanAnimateTransformer3DModel",
            "WanTransformer3DModel",
        ),
    ),
    (
        _THOUSANDTH,
        (
            "AuraFlowTransformer2DModel",
            "BriaFibo2Transformer2DModel",
            "ChromaTransformer2DModel",
            "Flux2Transformer2DModel",
            "FluxTransformer2DModel",
            "LongCatImageTransformer2DModel",
            "OvisImageTransformer2DModel",
            "QwenImage21Transformer2DModel",
            "QwenImageTransformer2DModel",
        ),
    ),
    (_SHARE, ("Krea2Transformer2DModel", "LongCatAudioDiTTransformer", "PRXTransformer2DModel")),
    (Clock(rate=None, negated=True), ("NucleusMoEImageTransformer2DModel",)),
    (Clock(negated=True), ("HiDreamImageTransformer2DModel",)),
    (Clock(-1.0), ("GlmImageTransformer2DModel",)),
    (
        _TO_DATA,
        (
            "Ideogram4Transformer2DModel",
            "Lumina2Transformer2DModel",
            "LuminaNextDiT2DModel",
            "ZImageTransformer2DModel",
        ),
    ),
)

CLOCKS: Mapping[str, Clock] = MappingProxyType(
    {name: clock for clock, names in _BY_CLOCK for name in names}
)
"""The clock of each architecture of diffusers, by its class: what its pipelines hand over."""


def clock_of(
    network: Any, steps: int, time_scale: float | None = None
) -> tuple[float, float, bool]:
    """How a network on a line counts time.

    A network that is not of diffusers is called with the scheduler's timesteps, as UNets are.

    Args:
        network: The network.
        steps: N, the timesteps of the scheduler.
        time_scale: Its time at k = N, of which it has none at k = 0, where it is not what the
            pipelines hand over.

    Returns:
        Its time at k = 0; how far that goes until k = N; whether it predicts data - noise.

    Raises:
        InvalidArgument: It is, or holds, an architecture of diffusers whose time is not the
            scheduler's timestep, or is not known, and no scale is given.
    """
    inner = within(network)
    clock = _clock(inner)
    if time_scale is not None:
        scale = finite("time_scale", time_scale)
        if scale == 0:
            raise InvalidArgument("time_scale", time_scale, "a number other than 0")
        return 0.0, scale, clock is not None and clock.negated
    if clock is None:
        clock = _TIMESTEP
        held = next((m for m in _asked(inner) if _clock(m) != clock), None)
        if held is not None:
            raise _unknown(held, inner)
    if "SanaTransformer2DModel" in _names(inner):
        clock = Clock(rate=float(inner.config.get("timestep_scale", 1.0)))
    start, rate = clock.at(steps)
    return start, rate * steps, clock.negated


def _names(network: Any) -> list[str]:
    return [name for package, name in owners(network) if package == "diffusers"]


def _clock(network: Any) -> Clock | None:
    return next((CLOCKS[name] for name in _names(network) if name in CLOCKS), None)


def _asked(network: Any) -> list[nn.Module]:
    """The models of diffusers that a network is or holds, which take a time, but for their parts."""
    found = [m for m in modules_of(network) if "ModelMixin" in _names(m)]
    parts = {id(part) for m in found for part in m.modules() if part is not m}
    times = {"t", "timestep", "timesteps"}
    return [
        m
        for m in found
        if id(m) not in parts and times & {*inspect.signature(m.forward).parameters}
    ]


def _unknown(held: Any, network: Any) -> InvalidArgument:
    name = type(held).__name__
    if held is network:
        expected = "an architecture whose time on a line is known, or time_scale="
    else:
        expected = f"a network that says how it counts time, as it holds a {name}: time_scale="
    return InvalidArgument(
        "model",
        type(network),
        expected,
        "time_scale=1000 where it is called with the scheduler's timesteps, time_scale=1 where with "
        "timestep / 1000. Where its time runs to the data, from 0 to 1, and it predicts data - "
        "noise: scoretk.Diffusion(net, event_shape, scoretk.Linear(), 'velocity')",
    )
