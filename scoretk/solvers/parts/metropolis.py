r"""The Metropolis-Hastings decision, written once for every adjusted kernel.

A proposal with Hastings' ratio r is accepted with probability

    (1 - c) min(1, r) + c r / (1 + r),

that is by Metropolis' rule with probability 1 - c and by Barker's with probability c: exact for
every c, and most efficient at c = 0 (Peskun). Barker's rule accepts half of the proposals with r =
1. So a kernel that would otherwise alternate for ever between two states of equal density stays
with probability c / 2, and its eigenvalues there are at least c - 1.

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

from scoretk.core.rows import nan_unless_finite, select_rows, sigmoid
from scoretk.core.streams import Stream
from scoretk.fields.protocols import NoiseSource

__all__ = ["choose", "decide", "metropolis", "rejected_if_nan"]

S = TypeVar("S", bound=tuple[Tensor, ...])


def metropolis(
    current: S,
    proposed: S,
    log_ratio: Tensor,
    step: Tensor,
    noise: NoiseSource,
    barker: float = 0.0,
) -> tuple[S, Tensor]:
    """Decide row by row between the current and the proposed state.

    A proposal with anything non-finite in it (position, energy or gradient), or with a log ratio
    that is NaN, is rejected, and the current state is kept as it was, cached energy and gradient
    included: nothing is clamped or replaced.

    Args:
        current: A NamedTuple of tensors with the chains on axis 0. Leaves without axes are taken
            from `proposed`.
        proposed: A NamedTuple like it.
        log_ratio: log r, `(chains,)`.
        step: The index under which the noise's ACCEPT stream is read.
        noise: The noise of the chains.
        barker: c in [0, 1], the share of Barker's rule; 0 for Metropolis' alone.

    Returns:
        The chosen state, and the acceptance probability `(chains,)`, 0 where the proposal was not
        finite.
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
    """As `metropolis`, with uniforms u `(chains,)` in place of the noise."""
    leaves = [leaf for leaf in proposed if leaf.ndim and leaf.is_floating_point()]
    log_ratio = nan_unless_finite(log_ratio, *leaves)
    return choose(current, proposed, rejected_if_nan(log_ratio), u, barker)


def rejected_if_nan(log_ratio: Tensor) -> Tensor:
    """The log ratio, minus infinity in place of NaN: there the proposal is rejected."""
    return log_ratio.nan_to_num(-torch.inf, torch.inf, -torch.inf)


def choose(
    current: S, proposed: S, log_ratio: Tensor, u: Tensor, barker: float = 0.0
) -> tuple[S, Tensor]:
    """As `decide`, with a log ratio that is minus infinity where a proposal is not finite."""
    probability = log_ratio.clamp(max=0.0).exp()
    if barker:
        probability = (1 - barker) * probability + barker * sigmoid(log_ratio)
        accept = u < probability
    else:
        accept = u.log() < log_ratio  # resolves what exp rounds to 1 and to 0
    chosen = (
        select_rows(accept, new, old) if new.ndim else new
        for new, old in zip(proposed, current, strict=True)
    )
    # NamedTuple's constructor, which the type `tuple` does not have
    make = getattr(type(proposed), "_make")  # noqa: B009
    return make(chosen), probability
