"""Diagnostics: convergence of chains, distances between samples, tests, and quality of samples."""

from scoretk.diagnostics.convergence import bfmi, ess, mcse, nested_rhat, rhat
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
    "bfmi",
    "classifier_test",
    "copies",
    "ess",
    "kernel_stein_discrepancy",
    "mcse",
    "mmd",
    "mmd_test",
    "nested_rhat",
    "rhat",
    "sliced_wasserstein",
    "sliced_wasserstein_test",
]
