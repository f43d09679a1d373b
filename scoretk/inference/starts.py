"""Where chains start that nobody gives a start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.core.noise import DerivedNoise, Noise
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.base import base_of
from scoretk.fields.protocols import field_name, is_timed, offers, optional
from scoretk.fields.states import check_states, uniform_states
from scoretk.inference.asked import StatePlace, event_shape_of

__all__ = ["Later", "initial", "spread_of", "step_by_step", "tracked"]

STEPS_A_START = 1 << 16
"""Steps of the noise's START stream that an attempt at a start may take."""


@dataclass(frozen=True)
class Later(DerivedNoise):
    """The noise of chains for another attempt at a start, from steps of its own."""

    noise: Noise
    attempt: int

    @property
    def chains(self) -> Tensor:
        return self.noise.chains

    def _ask(
        self, method: str, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None
    ) -> Tensor:
        own = self.attempt * STEPS_A_START + step
        values: Tensor = getattr(self.noise, method)(own, stream, shape, dtype)
        return values


def step_by_step(noise: Noise) -> Noise:
    """The same noise, made for one step at a time: attempts are far apart."""
    own = noise.select(slice(None))
    own.window = 1
    return own


def spread_of(attempt: int) -> float:
    """The standard deviation of an attempt at a start: 1, 1/2, 2, 1/4, 4, ..., 2^-8, 2^8, 1, ..."""
    power = (attempt % 17 + 1) // 2
    return 2.0 ** (power if attempt % 17 % 2 == 0 else -power)


def tracked(x: Tensor) -> Tensor:
    """The start, requiring gradients where autograd is on.

    The score of an energy is differentiable only where its x requires gradients.
    """
    return x.detach().requires_grad_() if torch.is_grad_enabled() and not x.requires_grad else x


def initial(model: Any, noise: Noise | Later, place: StatePlace, spread: float = 1.0) -> Tensor:
    """Where chains without `init` start, `(chains, *event_shape)`.

    `spread` is the standard deviation of a start from normals.
    """
    x: Tensor
    n, shape = len(noise.chains), event_shape_of(model)
    if is_timed(model):
        base = base_of(model)
        if base is None:
            expected = f"a start: {field_name(model)} is a timed field without a base"
            hint = "Or give the field a `base`, such as scoretk.from_distribution(law)"
            raise InvalidArgument("init", None, expected, hint)
        x = base.draw(n, noise)
    elif callable(optional(model, "initial")):
        x = model.initial(n, noise)
    elif "states" in offers(model):
        x = uniform_states(check_states(model.states, shape), shape, noise)
    else:
        x = noise.normal(0, Stream.START, shape, place.dtype)
        x = x if spread == 1 else spread * x
    if x.shape != (n, *shape):
        raise InvalidArgument("init", x, f"shape {(n, *shape)} from the field's own start")
    return x.to(place.device, place.dtype)
