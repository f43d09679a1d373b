"""Which conditions a field takes, by the signature of its callable.

Of several fields that are combined each gets those that it takes: a product of a conditional and an
unconditional expert is given the first one's conditions, for which the second has no names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from scoretk.core.arguments import keyword_names
from scoretk.fields.distribution import DistributionField, in_free_space
from scoretk.fields.gradient import OwnGradient
from scoretk.fields.protocols import is_timed, offers, optional
from scoretk.fields.wrapped import Kind, Wrapped
from scoretk.fields.wrappers import Diffusion, Energy, Score, Velocity

__all__ = ["Names", "own", "taken"]


Names = frozenset[str] | None
"""Names of conditions; None where any may be taken."""

_MEMBERS = (
    Kind.SAME,
    Kind.POWER,
    Kind.BLEND,
    Kind.MIXTURE,
    Kind.MOMENT,
    Kind.NOISED,
    Kind.RESTRICTED,
    Kind.MOVED,
)
"""Kinds of wrappers that hand the conditions to their fields, and use none themselves."""


def taken(field: Any) -> Names:
    """The names of the conditions that a field takes; None where it takes all, or does not say."""
    field = in_free_space(field)  # an energy of named variables takes these by name as well
    if isinstance(field, DistributionField):
        return frozenset()
    if isinstance(field, Energy | Score):
        return _of_function(field.fn, 1)
    if isinstance(field, Diffusion | Velocity):
        return _of_function(field.net, 2)
    if isinstance(field, Wrapped) and field.kind in _MEMBERS:
        return _union(map(taken, field.inner))
    if isinstance(field, Wrapped) and field.own_conditions is not None:
        return _union([*map(taken, field.inner), field.own_conditions])
    return None if isinstance(field, Wrapped) else _of_methods(field)


def own(takes: Iterable[Names], cond: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The conditions for each of several fields.

    What none of them takes goes to all, so that an unknown name raises an error instead of being
    dropped.

    Args:
        takes: The names that each field takes, None for all.
        cond: All conditions, by name.

    Returns:
        For each field its conditions.
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


def _of_methods(field: Any) -> Names:
    """By the signatures of the methods that a solver asks; of a field in time those take t too.

    Of a field that has a density alone it is that one's, as a mixture asks it.
    """
    predict = optional(field, "predict")
    native = offers(field) & {"energy", "score", "velocity", "denoise"}
    native = native or offers(field) & {"log_prob"}
    methods = [getattr(field, name) for name in native] if predict is None else [predict]
    asked = [(method, 1 + is_timed(field)) for method in methods]
    asked.append((optional(field, "gibbs"), 2))
    return _union(keyword_names(method, n) for method, n in asked if callable(method))


def _of_function(function: Callable[..., Any], positional: int) -> Names:
    return keyword_names(function.fn if isinstance(function, OwnGradient) else function, positional)
