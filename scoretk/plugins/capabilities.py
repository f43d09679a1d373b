"""What a field can offer: the one list, and how it is read from a field."""

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
    """The names in `CAPABILITIES` that a field offers.

    Its own `provides` where it has one, else the capabilities that it has as attributes.
    """
    declared = getattr(field, "provides", None)
    if declared is not None:
        return frozenset(declared)
    return frozenset(name for name in CAPABILITIES if getattr(field, name, None) is not None)
