"""The kit for authors of models and solvers: the laws they are held to, as reports and as tests."""

from scoretk.conformance.kit import CHECKS, Check, CheckResult, check_model, parametrize_with_checks
from scoretk.conformance.on_data import check_on_data
from scoretk.conformance.solver_kit import (
    SOLVER_CHECKS,
    SolverCheck,
    check_solver,
    parametrize_with_solver_checks,
)
from scoretk.conformance.subject import NotApplicable, Violation

__all__ = [
    "CHECKS",
    "SOLVER_CHECKS",
    "Check",
    "CheckResult",
    "NotApplicable",
    "SolverCheck",
    "Violation",
    "check_model",
    "check_on_data",
    "check_solver",
    "parametrize_with_checks",
    "parametrize_with_solver_checks",
]


def __dir__() -> list[str]:
    """The public names alone: the modules beside them have nothing to call."""
    return sorted(__all__)
