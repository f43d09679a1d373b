"""Holding a solver to its laws: for a report, and as parametrised tests."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from scoretk.conformance.kit import CheckResult
from scoretk.conformance.solver_laws import SOLVER_LAWS, SolverLaw
from scoretk.conformance.subject import NotApplicable, Violation
from scoretk.core.keywords import explained
from scoretk.plugins.containment import contained
from scoretk.plugins.solvers import as_solver, describe_solver
from scoretk.solvers import EXAMPLES

__all__ = ["SOLVER_CHECKS", "SolverCheck", "check_solver", "parametrize_with_solver_checks"]


@dataclass(frozen=True)
class SolverCheck:
    """One law as a test: called with a solver, it raises `Violation` where the law does not hold."""

    run: SolverLaw

    @property
    def name(self) -> str:
        """The check's name in reports."""
        return self.run.__name__

    @property
    def law(self) -> str:
        """The law in words."""
        return (self.run.__doc__ or "").strip()

    def __call__(self, solver: Any) -> None:
        """Hold a solver, given as an object or by name, to the law.

        Raises:
            Violation: Where the law does not hold.
            NotApplicable: Where it says nothing about this solver.
        """
        made = _opened(solver)
        with contained(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tuned runs are short here, and warn
            try:
                self.run(made)
            except (NotApplicable, Violation):
                raise
            except Exception as error:  # whatever a solver raises is a finding
                raise Violation(f"{type(error).__name__}: {error}") from error

    def result(self, solver: Any) -> CheckResult:
        """As a call, with the outcome as a record."""
        record = partial(CheckResult, check=self.name, law=self.law)
        try:
            self(solver)
        except NotApplicable as silent:
            return record(status="skipped", detail=str(silent))
        except Violation as violation:
            return record(status="failed", detail=str(violation))
        return record(status="passed")


SOLVER_CHECKS: tuple[SolverCheck, ...] = tuple(map(SolverCheck, SOLVER_LAWS))


@explained
def check_solver(solver: Any) -> list[CheckResult]:
    """Hold a solver to the laws of solvers, on exact targets of unit scale.

    Some laws say nothing about some solvers: the law that exact draws stay exact says nothing about
    those with a grid of their own, and those that say `exact = False`. Give a solver settings that
    suit targets of unit scale.

    Args:
        solver: A solver object, or the name of a registered one. By name it has its defaults; a
            solver of this package that lacks some is taken from `scoretk.solvers.EXAMPLES`.

    Returns:
        One result for each check, in the order of `SOLVER_CHECKS`.

    Raises:
        InvalidArgument: For what is no solver, or a name whose class has settings without defaults.
        UnknownName: As `scoretk.load_solver`; likewise AmbiguousName and BrokenPlugin.
    """
    made = _opened(solver)
    return [check.result(made) for check in SOLVER_CHECKS]


@explained
def parametrize_with_solver_checks(solvers: Iterable[Any]) -> Any:
    """A pytest decorator for a test that takes `solver` and `check`.

    The test calls `check(solver)`::

        @parametrize_with_solver_checks([MyKernel(0.3), "my-package/my-kernel"])
        def test_laws(solver, check):
            check(solver)

    Args:
        solvers: Solvers or names, as in `check_solver`. A law that says nothing about a solver is a
            skipped test.
    """
    import pytest

    params = [
        pytest.param(
            solver,
            check,
            id=f"{solver if isinstance(solver, str) else type(solver).__name__}-{check.name}",
        )
        for solver in solvers
        for check in SOLVER_CHECKS
    ]
    return pytest.mark.parametrize(("solver", "check"), params)


def _opened(solver: Any) -> Any:
    if isinstance(solver, str):
        spec = describe_solver(solver)
        distribution, _, name = spec.id.partition("/")
        if spec.required and distribution == "scoretk":
            return EXAMPLES[name]
    return as_solver("solver", solver)
