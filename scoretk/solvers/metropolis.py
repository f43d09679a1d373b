"""The Metropolis-Hastings decision, written once for every adjusted kernel."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from scoretk.fields.protocols import NoiseSource
from scoretk.rows import finite_rows, select_rows
from scoretk.streams import Stream

__all__ = ["decide", "metropolis"]

S = TypeVar("S", bound=tuple[Tensor, ...])


def metropolis(current: S, proposed: S, log_ratio: Tensor, step: Tensor, noise: NoiseSource) -> tuple[S, Tensor]:
    """Row by row the proposed state with probability `min(1, exp(log_ratio))`, else the current one.

    A proposal with anything non-finite in it (position, energy, gradient or log ratio) is rejected, and the current
    state is kept as it was, cached energy and gradient included: nothing is clamped or replaced.

    Arguments: current and proposed, NamedTuples of tensors with the chains on axis 0 (leaves without axes are taken
    from `proposed`); log_ratio `(chains,)`; step, the index under which the ACCEPT stream is read.
    Returns: the state, and the acceptance probability `(chains,)`, 0 where the proposal was not finite.
    """
    return decide(current, proposed, log_ratio, noise.uniform(step, Stream.ACCEPT, (), log_ratio.dtype))


def decide(current: S, proposed: S, log_ratio: Tensor, u: Tensor) -> tuple[S, Tensor]:
    """As `metropolis`, from the uniforms u `(chains,)`."""
    usable = ~log_ratio.isnan()
    for leaf in proposed:
        if leaf.ndim and leaf.is_floating_point():
            usable = usable & finite_rows(leaf)
    accept = usable & (u.log() < log_ratio)
    chosen = (select_rows(accept, new, old) if new.ndim else new for new, old in zip(proposed, current, strict=True))
    probability = torch.where(usable, log_ratio.clamp(max=0.0).exp(), 0.0)
    make = getattr(type(proposed), "_make")  # noqa: B009  (NamedTuple's constructor, unknown to the tuple type)
    return make(chosen), probability
