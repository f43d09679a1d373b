"""Running the laws of a field: over examples by hypothesis, for a report, and as pytest tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoretk.conformance.laws import LAWS, Law
from scoretk.conformance.subject import Case, NotApplicable, Subject, Violation
from scoretk.core.dependencies import required
from scoretk.core.keywords import explained
from scoretk.core.modules import left_as_found
from scoretk.fields.foreign import no_field
from scoretk.fields.protocols import is_field, offers
from scoretk.plugins import ModelSpec, describe, find_model, load
from scoretk.plugins.models import build

__all__ = ["CHECKS", "Check", "CheckResult", "check_model", "parametrize_with_checks"]

EXAMPLES = 12

Conditions = Mapping[str, Tensor]


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check.

    Args:
        check: The name of the check.
        status: "passed", "failed" or "skipped" (the law says nothing about this model).
        law: The law in words.
        detail: What was found, where it failed.
    """

    check: str
    status: str
    law: str
    detail: str = ""


@dataclass(frozen=True)
class Check:
    """One law as a test: called with a model, it raises `Violation` where the law does not hold."""

    run: Law

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def law(self) -> str:
        return (self.run.__doc__ or "").strip()

    def __call__(self, model: Any, cond: Conditions | None = None) -> None:
        """Hold a model to the law; arguments are those of `check_model`.

        Raises:
            Violation: Where the law does not hold.
            NotApplicable: Where it says nothing about this model.
            MissingDependency: Where hypothesis is not installed.
        """
        self.hold(*_opened(model), cond)

    def hold(self, field: Any, claims: frozenset[str], cond: Conditions | None = None) -> None:
        """Hold a field, of which these capabilities are claimed, to the law."""
        with left_as_found(field), torch.no_grad():  # as in `sample`
            for subject in Subject.all_of(field, claims, dict(cond or {})):
                _explore(self.run, subject)

    def result(
        self, field: Any, claims: frozenset[str], cond: Conditions | None = None
    ) -> CheckResult:
        """As `hold`, with the outcome as a record."""
        record = partial(CheckResult, check=self.name, law=self.law)
        try:
            self.hold(field, claims, cond)
        except NotApplicable:
            return record(status="skipped")
        except Violation as violation:
            return record(status="failed", detail=str(violation))
        return record(status="passed")


CHECKS: tuple[Check, ...] = tuple(map(Check, LAWS))


@explained
def check_model(model: Any, *, cond: Conditions | None = None) -> list[CheckResult]:
    """Hold a model to the laws of a field.

    Args:
        model: The name of a registered model, a `ModelSpec` or a field.
        cond: Condition values by name for a model that needs them, of shape `(rows, ...)`: a batch
            takes the rows in turn.

    Returns:
        One result for each check, the first of which is "loads"; where that fails it is the only
        one.

    Raises:
        MissingDependency: Where hypothesis is not installed.
        InvalidArgument: For what is no model.
        UnknownName: For a name that is not registered; AmbiguousName for one that is so twice.
    """
    _check_argument(model)
    loads = partial(CheckResult, check="loads", law="the model can be loaded")
    try:
        field, claims = _opened(model)
    except Exception as error:  # noqa: BLE001 (whatever a plugin raises is a finding)
        return [loads(status="failed", detail=_text(error))]
    return [loads(status="passed"), *(check.result(field, claims, cond) for check in CHECKS)]


@explained
def parametrize_with_checks(models: Iterable[Any], cond: Conditions | None = None) -> Any:
    """A pytest decorator for a test that takes `model` and `check`.

    The test calls `check(model)`::

        @parametrize_with_checks(["my-model", other_spec, a_field])
        def test_laws(model, check):
            check(model)

    Args:
        models: Names, specs or fields, as in `check_model`. A law that says nothing about a model
            is a skipped test.
        cond: As in `check_model`, for all of them.
    """
    import pytest

    params = [
        pytest.param(model, partial(check, cond=cond), id=f"{_label(model)}-{check.name}")
        for model in models
        for check in CHECKS
    ]
    return pytest.mark.parametrize(("model", "check"), params)


def _explore(law: Law, subject: Subject) -> None:
    """Hold the subject to the law in `EXAMPLES` cases.

    Raises:
        Violation: Where a case fails. It is shrunk to the simplest one, which the message names.
        MissingDependency: Where hypothesis is not installed.
    """
    required("hypothesis", "check", "Checking a model")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    cases = st.builds(
        Case,
        rows=st.integers(1, 6),
        seed=st.integers(0, 99),
        scale=st.sampled_from([1.0, 0.3, 2.0]),
        t=st.sampled_from([0.5, 0.1, 0.3, 0.7, 0.9]),
    )
    last = Case()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(cases)
    def run(case: Case) -> None:
        nonlocal last
        last = case
        law(subject, case)

    try:
        run()
    except NotApplicable:
        raise
    except Exception as error:  # whatever a model raises is a finding
        raise Violation(f"{_text(error)} [{last}, {subject.dtype}]") from error


def _check_argument(model: Any) -> None:
    if isinstance(model, str):
        find_model(model)
    elif not isinstance(model, ModelSpec) and (not is_field(model)):
        raise no_field(
            "model", model, "a registered model's name, a ModelSpec, or a field with event_shape"
        )


def _opened(model: Any) -> tuple[Any, frozenset[str]]:
    """The field and what is claimed of it."""
    _check_argument(model)
    if isinstance(model, str):
        return load(model), frozenset(describe(model).provides)
    if isinstance(model, ModelSpec):
        return build(model), frozenset(model.provides)
    return model, offers(model)


def _label(model: Any) -> str:
    if isinstance(model, ModelSpec):
        return model.name
    return model if isinstance(model, str) else type(model).__name__


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, Violation) else f"{type(error).__name__}: {error}"
