r"""The Metropolis-Hastings decision, written once for every adjusted kernel.

Of a proposal with Hastings' ratio r it is accepted with probability

    (1 - c) min(1, r) + c r / (1 + r),

Metropolis' rule with probability 1 - c and Barker's with probability c: exact for every c, and best
at c = 0 (Peskun). Barker's takes half of the proposals with r = 1, so that a kernel which would
otherwise go to and fro between two states of equal density for ever stays where it is with
probability c / 2: no eigenvalue of what it does there is below c - 1.

References:
    Barker, "Monte Carlo calculations of the radial distribution functions for a proton-electron
    plasma" (1965).
    Hastings, "Monte Carlo sampling methods using Markov chains and their applications" (1970).
    Peskun, "Optimum Monte-Carlo sampling using Markov chains" (1973).
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from scoretk.core.rows import finite_rows, select_rows, sigmoid
from scoretk.core.streams import Stream
from scoretk.fields.protocols import NoiseSource

__all__ = ["decide", "metropolis"]

S = TypeVar("S", bound=tuple[Tensor, ...])


def metropolis(
    current: S,
    proposed: S,
    log_ratio: Tensor,
    step: Tensor,
    noise: NoiseSource,
    barker: float = 0.0,
) -> tuple[S, Tensor]:
    """Row by row the proposed state with probability `min(1, exp(log_ratio))`, else the current
    one.

    A proposal with anything non-finite in it (position, energy, gradient or log ratio) is rejected,
    and the current state is kept as it was, cached energy and gradient included: nothing is clamped
    or replaced.

    Args:
        current: NamedTuples of tensors with the chains on axis 0 (leaves without axes are taken
            from `proposed`).
        proposed: NamedTuples of tensors with the chains on axis 0 (leaves without axes are taken
            from `proposed`).
        log_ratio: `(chains,)`.
        step: The index under which the ACCEPT stream is read.
        barker: c in [0, 1], the share of Barker's rule.

    Returns:
        the state, and the acceptance probability `(chains,)`, 0 where the proposal was not finite.
    """
    return decide(
        current,
        proposed,
        log_ratio,
        noise.uniform(step, Stream.ACCEPT, (), log_ratio.dtype),
        barker,
    )


def decide(
    current: S, proposed: S, log_ratio: Tensor, u: Tensor, barker: float = 0.0
) -> tuple[S, Tensor]:
    """As `metropolis`, from the uniforms u `(chains,)`."""
    usable = ~log_ratio.isnan()
    for leaf in proposed:
        if leaf.ndim and leaf.is_floating_point():
            usable = usable & finite_rows(leaf)
    probability = log_ratio.clamp(max=0.0).exp()
    if barker:
        probability = (1 - barker) * probability + barker * sigmoid(log_ratio)
        accept = usable & (u < probability)
    else:
        accept = usable & (u.log() < log_ratio)  # resolves what exp rounds to 1 and to 0
    chosen = (
        select_rows(accept, new, old) if new.ndim else new
        for new, old in zip(proposed, current, strict=True)
    )
    probability = torch.where(usable, probability, 0.0)
    make = getattr(type(proposed), "_make")  # noqa: B009  (NamedTuple's constructor, unknown to the tuple type)
    return make(chosen), probability
