"""The kit for authors of models: the laws that a field is held to, as a report and as pytest tests."""

from scoretk.conformance.kit import CHECKS, Check, CheckResult, check_model, parametrize_with_checks
from scoretk.conformance.subject import NotApplicable, Violation

__all__ = [
    "CHECKS",
    "Check",
    "CheckResult",
    "NotApplicable",
    "Violation",
    "check_model",
    "parametrize_with_checks",
]
