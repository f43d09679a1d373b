"""What a field can offer: the one list, and how a field's own answer to it is read."""

from __future__ import annotations

__all__ = ["CAPABILITIES", "offers"]

CAPABILITIES = (
    "energy",
    "score",
    "velocity",
    "denoise",
    "log_prob",
    "draw",
    "decode",
    "base",
    "states",
    "gibbs",
)
"""What a field can offer, in the order in which it is shown."""


def offers(field: object) -> frozenset[str]:
    """Names in `CAPABILITIES` that the field offers.

    Its own `provides` where it has one, else what it has.
    """
    declared = getattr(field, "provides", None)
    if declared is not None:
        return frozenset(declared)
    return frozenset(name for name in CAPABILITIES if getattr(field, name, None) is not None)
