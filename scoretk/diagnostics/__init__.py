"""Diagnostics: distances between samples, tests of whether samples follow a law, and quality beside labelled or training data."""

from scoretk.diagnostics.discrepancies import (
    TestResult,
    classifier_test,
    kernel_stein_discrepancy,
    mmd_test,
    sliced_wasserstein_test,
)
from scoretk.diagnostics.distances import mmd, sliced_wasserstein
from scoretk.diagnostics.quality import Classifier, Copies, Verdict, balance, copies

__all__ = [
    "Classifier",
    "Copies",
    "TestResult",
    "Verdict",
    "balance",
    "classifier_test",
    "copies",
    "kernel_stein_discrepancy",
    "mmd",
    "mmd_test",
    "sliced_wasserstein",
    "sliced_wasserstein_test",
]
