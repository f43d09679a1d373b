"""Which conditions a field takes, as its callable's signature says.

Of several fields each gets those that are its own.

A product of a conditional and an unconditional expert is given the first one's conditions, which
the second has no names for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from scoretk.fields.distribution import DistributionField
from scoretk.fields.wrapped import Kind, Wrapped
from scoretk.fields.wrappers import Diffusion, Energy, Score, Velocity

__all__ = ["Names", "own", "taken"]

Names = frozenset[str] | None
"""Names of conditions; None where any may be taken."""

_MEMBERS = (Kind.POWER, Kind.MIXTURE, Kind.MOVED)
"""Wrappers that ask their fields, and no one else, with the conditions."""


def taken(field: Any) -> Names:
    """The conditions that a field takes, where its callable says so.

    None where it takes all, or does not say.
    """
    if isinstance(field, DistributionField):
        return frozenset()
    if isinstance(field, Energy | Score):
        return _named(field.fn, 1)
    if isinstance(field, Diffusion | Velocity):
        return _named(field.net, 2)
    if isinstance(field, Wrapped) and field.kind in _MEMBERS:
        return _union(map(taken, field.inner))
    return None


def own(takes: Iterable[Names], cond: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The conditions of each field.

    What none of them takes goes to all, so that it is not left out without a word.
    """
    listed = list(takes)
    known = _union(listed)
    strange = set() if known is None else cond.keys() - known
    return [
        cond if n is None else {k: v for k, v in cond.items() if k in n or k in strange}
        for n in listed
    ]


def _union(several: Iterable[Names]) -> Names:
    found: frozenset[str] = frozenset()
    for names in several:
        if names is None:
            return None
        found |= names
    return found


def _named(function: Callable[..., Any], positional: int) -> Names:
    """The parameters of a function that can be given by name, but for the first, which are x and t."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):  # of C code, which does not say
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(
        p.name
        for p in parameters[positional:]
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )
