"""Solvers of third parties: an entry point in `scoretk.solvers` points at a solver class."""

from __future__ import annotations

from typing import Any

from scoretk.plugins.catalog import Catalog, pointed_at
from scoretk.plugins.discovery import Broken, Entry

__all__ = ["list_solvers", "load_solver_class"]

_SOLVERS = Catalog("scoretk.solvers", "solver")


def list_solvers() -> list[Entry | Broken]:
    """All registered solvers sorted by id, from metadata alone; `Broken` as in `list_models`."""
    return _SOLVERS.listing()


def load_solver_class(name: str) -> type[Any]:
    """The class of a registered solver, by its full id or its short name.

    Raises: `UnknownName`, `AmbiguousName`; `BrokenPlugin` where it cannot be imported or is no solver class.
    """
    entry = _SOLVERS.find(name)
    with _SOLVERS.isolated(entry, "load"):
        solver = pointed_at(entry.value)
        if not isinstance(solver, type):
            raise TypeError(f"{entry.value} is of type {type(solver).__name__}, not a solver class")
        lacking = [method for method in ("init", "step") if not callable(getattr(solver, method, None))]
        if lacking:
            raise TypeError(f"{entry.value} is no solver class: it has no {' and no '.join(lacking)}")
    return solver
