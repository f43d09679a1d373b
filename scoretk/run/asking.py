"""What a question at the start of a run may cost."""

from __future__ import annotations

from torch import Tensor

__all__ = ["affordable"]

SHARE = 20


def affordable(asked: int, x: Tensor, steps: int, share: int = SHARE) -> bool:
    """Whether a question costs less than a part of the run's own evaluations.

    Args:
        asked: How many rows the question takes.
        x: `(chains, *event_shape)`, where the chains are.
        steps: How many steps the run makes.
        share: One part in so many steps.
    """
    return len(x) * (steps // share) > asked
