"""How models and solvers of other packages are found, without importing them or torch."""

from scoretk.plugins.capabilities import CAPABILITIES, offers
from scoretk.plugins.discovery import Broken, Entry
from scoretk.plugins.models import (
    describe,
    describe_all,
    find_model,
    list_models,
    load,
    train,
    verify,
)
from scoretk.plugins.solvers import (
    SolverSpec,
    as_solver,
    describe_solver,
    find_solver,
    list_solvers,
    load_solver,
    load_solver_class,
    verify_solvers,
)
from scoretk.plugins.spec import INTERFACES, ModelSpec

__all__ = [
    "CAPABILITIES",
    "INTERFACES",
    "Broken",
    "Entry",
    "ModelSpec",
    "SolverSpec",
    "as_solver",
    "describe",
    "describe_all",
    "describe_solver",
    "find_model",
    "find_solver",
    "list_models",
    "list_solvers",
    "load",
    "load_solver",
    "load_solver_class",
    "offers",
    "train",
    "verify",
    "verify_solvers",
]
