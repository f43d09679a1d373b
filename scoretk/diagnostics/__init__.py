"""Diagnostics: convergence, distances between samples, tests, calibration, quality of samples."""

from scoretk.diagnostics.calibration import (
    RankBand,
    rank_band,
    sbc_ranks,
    sbc_test,
    tarp_ranks,
    tarp_test,
)
from scoretk.diagnostics.convergence import bfmi, ess, mcse, nested_rhat, rhat
from scoretk.diagnostics.discrepancies import (
    TestResult,
    classifier_test,
    kernel_stein_discrepancy,
    mmd_test,
    sliced_wasserstein_test,
)
from scoretk.diagnostics.distances import mmd, sliced_wasserstein
from scoretk.diagnostics.halves import split_rhat
from scoretk.diagnostics.quality import Classifier, Copies, Verdict, balance, copies

__all__ = [
    "Classifier",
    "Copies",
    "RankBand",
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
    "rank_band",
    "rhat",
    "sbc_ranks",
    "sbc_test",
    "sliced_wasserstein",
    "sliced_wasserstein_test",
    "split_rhat",
    "tarp_ranks",
    "tarp_test",
]


def __dir__() -> list[str]:
    """The public names alone: the modules beside them have nothing to call."""
    return sorted(__all__)
