"""The states of discrete fields, and the ways between x, state numbers and weights.

Site i of x takes one of the states v_1, .., v_k: numbers, or the one-hot rows of the last event
axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretk.core.arguments import real
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument

__all__ = [
    "ONE_HOT",
    "States",
    "by_site",
    "check_states",
    "labels",
    "layout",
    "pick",
    "place",
    "uniform_states",
    "values",
    "weigh",
]

States = tuple[float, ...] | str
"""The numbers that every site can take, or `ONE_HOT`."""
ONE_HOT = "one-hot"


def check_states(states: Any, event_shape: tuple[int, ...]) -> States:
    """States that fit an event shape.

    Args:
        states: At least two different numbers, in a tuple, list, range, tensor of one axis or
            array; or "one-hot".
        event_shape: The shape of one x.

    Returns:
        The states, the numbers as a tuple.

    Raises:
        InvalidArgument: They are neither, or the last axis has fewer than two categories.
    """
    if isinstance(states, str) and states == ONE_HOT:
        if not event_shape or event_shape[-1] < 2:
            raise InvalidArgument(
                "event_shape",
                event_shape,
                "at least two categories on the last axis for one-hot rows",
            )
        return ONE_HOT
    listed = states.tolist() if isinstance(states, Tensor | np.ndarray) else states
    numbers = (
        isinstance(listed, Sequence)
        and not isinstance(listed, str | bytes)
        and all((number := real(v)) is not None and isfinite(number) for v in listed)
    )
    if not numbers or len(set(listed)) < max(2, len(listed)):
        raise InvalidArgument(
            "states",
            states,
            "at least two different numbers, or 'one-hot'",
            "Such as (0, 1) or tuple(range(30))",
        )
    return tuple(listed)


def layout(states: States, event_shape: tuple[int, ...]) -> tuple[int, int]:
    """How many sites there are, and how many states each can take."""
    if isinstance(states, str):
        return prod(event_shape[:-1]), event_shape[-1]
    return prod(event_shape), len(states)


def uniform_states(states: States, event_shape: tuple[int, ...], noise: Any) -> Tensor:
    """Every site uniform over the states.

    Args:
        states: As `check_states` gives them.
        event_shape: The shape of one x.
        noise: The noise of the chains, one a row; its START stream at step 0 is used.

    Returns:
        `(chains, *event_shape)`.
    """
    sites, k = layout(states, event_shape)
    u = noise.uniform(0, Stream.START, (sites,))
    return place((u * k).long().clamp(max=k - 1), states, event_shape, u.dtype)


def weigh(s: Tensor, states: States) -> Tensor:
    """`<v_k, s_i>`: what a linear function of slope s is at each state of each site.

    Args:
        s: The slope, `(chains, *event_shape)`.
        states: As `check_states` gives them.

    Returns:
        `(chains, sites, k)`.
    """
    s = by_site(s, states)
    return s if isinstance(states, str) else s * values(states, s.dtype, s.device)


def labels(x: Tensor, states: States) -> Tensor:
    """The number of the state nearest to each site: `(chains, sites)` of int64."""
    x = by_site(x, states)
    if isinstance(states, str):
        return x.argmax(-1)
    return (x - values(states, x.dtype, x.device)).abs().argmin(-1)


def place(
    label: Tensor, states: States, event_shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """The x with these labels.

    Args:
        label: `(chains, sites)` of int64.
        states: As `check_states` gives them.
        event_shape: The shape of one x.
        dtype: That of x.

    Returns:
        `(chains, *event_shape)`.
    """
    if isinstance(states, str):
        x = (label[..., None] == torch.arange(event_shape[-1], device=label.device)).to(dtype)
    else:
        x = values(states, dtype, label.device)[label]
    return x.reshape(len(label), *event_shape)


def pick(logits: Tensor, u: Tensor) -> Tensor:
    """One category a row, by the inverse distribution function.

    The first category whose cumulative probability exceeds u, and the last possible one where
    rounding leaves none. Never a category of probability 0, in whatever order a device adds up.

    Args:
        logits: `(..., k)`, unnormalised log probabilities.
        u: Uniforms in (0, 1), `(...)`.

    Returns:
        `(...)` of int64.
    """
    probability = torch.softmax(logits, -1)
    total = torch.where(probability > 0, probability.cumsum(-1), -1.0)
    exceeds = (total > u[..., None]) | (total == total.amax(-1, keepdim=True))
    return exceeds.byte().argmax(-1)


def by_site(x: Tensor, states: States) -> Tensor:
    """The entries of x by its sites: `(chains, sites, k)` of one-hot rows, `(chains, sites, 1)` of
    numbers.
    """
    sites, k = layout(states, tuple(x.shape[1:]))
    return x.reshape(len(x), sites, k if isinstance(states, str) else 1)


def values(states: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The states as a tensor `(k,)`, filled on the device.

    Copying a list to an accelerator would make the host wait.
    """
    return torch.stack([torch.full((), v, dtype=dtype, device=device) for v in states])
