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
        """Hold a solver, or that of a name, to the law.

        Raises:
            Violation: the law does not hold. NotApplicable: it says nothing about this solver.
        """
        made = _opened(solver)
        with contained(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tuned runs, which are short here
            try:
                self.run(made)
            except (NotApplicable, Violation):
                raise
            except Exception as error:  # whatever a solver raises is a finding
                raise Violation(f"{type(error).__name__}: {error}") from error

    def result(self, solver: Any) -> CheckResult:
        """The same as a record."""
        record = partial(CheckResult, check=self.name, law=self.law)
        try:
            self(solver)
        except NotApplicable as silent:
            return record(status="skipped", detail=str(silent))
        except Violation as violation:
            return record(status="failed", detail=str(violation))
        return record(status="passed")


SOLVER_CHECKS: tuple[SolverCheck, ...] = tuple(map(SolverCheck, SOLVER_LAWS))


def check_solver(solver: Any) -> list[CheckResult]:
    """Hold a solver to the laws of solvers, on exact targets of unit scale.

    A law says nothing about some solvers: that exact draws stay exact, of those with a grid of
    their own and of those that say `exact = False`. One with settings that suit other scales is
    given here with settings for this one.

    Args:
        solver: a solver object, or the name of a registered one: with its defaults, or, where this package's own lacks
            some, as `scoretk.solvers.EXAMPLES` has it.

    Returns:
        One result a check, in the order of `SOLVER_CHECKS`.

    Raises:
        InvalidArgument: what is no solver, or a name whose class has settings without defaults.
        UnknownName, AmbiguousName, BrokenPlugin: as `scoretk.load_solver`.
    """
    made = _opened(solver)
    return [check.result(made) for check in SOLVER_CHECKS]


def parametrize_with_solver_checks(solvers: Iterable[Any]) -> Any:
    """A pytest decorator for a test that takes `solver` and `check`, and calls `check(solver)`.

        @parametrize_with_solver_checks([MyKernel(0.3), "my-package/my-kernel"])
        def test_laws(solver, check):
            check(solver)

    Args:
        solvers: as in `check_solver`. A law that says nothing about a solver is a skipped test.
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
