"""Posteriors in time within a field: whose measurements a sampler does not see from outside."""

from __future__ import annotations

from typing import Any

from scoretk.fields.protocols import is_timed, optional
from scoretk.fields.wrapped import Wrapped

__all__ = ["posterior_within"]


def posterior_within(field: Any, *, apart_from_chains: bool = False) -> Any:
    """The first posterior in time inside a field, which may be one itself; None where there is none.

    Args:
        field: A field in time, or a solver's view of one.
        apart_from_chains: Whether a posterior that is itself the prior of one does not count, and so
            on: what is weighed by the outermost one, which knows all of their likelihoods.
    """
    return _found(getattr(field, "native", field), outermost=True, chains=apart_from_chains)


def _found(field: Any, *, outermost: bool, chains: bool) -> Any:
    if not isinstance(field, Wrapped) or not is_timed(field):
        return None
    posterior = callable(optional(field, "twist"))
    if posterior and not outermost:
        return field
    below = (_found(f, outermost=posterior and chains, chains=chains) for f in field.inner)
    return next((found for found in below if found is not None), None)
