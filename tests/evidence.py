"""Statistical tests in standard errors, with thresholds that follow from a stated false-alarm rate.

Every threshold here is for a false alarm of 1e-6 a test, divided by the number of comparisons in it. Seeds are fixed, so a
test that passes passes always; the rate says how likely it was that an honest program would have failed.
"""

import math

import torch
from scipy.stats import kstest, norm

FALSE_ALARM = 1e-6


def z_limit(comparisons: int = 1) -> float:
    return float(norm.isf(FALSE_ALARM / (2 * comparisons)))


def assert_mean(draws: torch.Tensor, truth, what: str = "mean") -> None:
    """Independent rows `(n, ...)` have this mean."""
    z = mean_z(draws, truth)
    assert z.abs().max() < z_limit(z.numel()), (
        f"{what}: |z| = {z.abs().max():.2f} > {z_limit(z.numel()):.2f}"
    )


def mean_z(draws: torch.Tensor, truth) -> torch.Tensor:
    rows = draws.double().reshape(len(draws), -1)
    truth = torch.as_tensor(truth, dtype=torch.float64).reshape(-1)
    return (rows.mean(0) - truth) / (rows.std(0) / math.sqrt(len(rows)))


def assert_second_moment(draws: torch.Tensor, mean, variance, what: str = "variance") -> None:
    """Independent rows have this variance about this (known) mean."""
    assert_mean(
        (draws.double() - torch.as_tensor(mean, dtype=torch.float64)).square(), variance, what
    )


def assert_distribution(values: torch.Tensor, cdf, what: str = "distribution") -> None:
    """Independent numbers follow this distribution function (Kolmogorov-Smirnov)."""
    p = ks_p(values, cdf)
    assert p > FALSE_ALARM, f"{what}: Kolmogorov-Smirnov p = {p:.1e}"


def ks_p(values: torch.Tensor, cdf) -> float:
    return float(kstest(values.double().cpu().numpy(), cdf).pvalue)
