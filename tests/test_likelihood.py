"""log_prob by the probability flow against closed forms: every path, several shapes, exact trace and probes."""

import math

import pytest
import torch

import scoretk as stk
from scoretk.families.mixture import GaussianMixture, gaussian, ring_mixture
from scoretk.likelihood import divergence
from tests.test_fields import PATHS


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("shape", [(2,), (1, 2, 2), ()], ids=str)
def test_gaussian_data_under_every_path(path, shape):
    """N(m, s^2) data: the flow is linear, and so is all that differs from the truth, the base at t = 0."""
    s, m = 0.5, 0.3
    field = GaussianMixture(torch.full((1, *shape), m), torch.tensor([s]), torch.ones(1)).noised(path)
    x = torch.randn((3, *shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * s + m
    got = stk.log_prob(field, x, rtol=1e-8, atol=1e-8)
    a0, s0, a1, s1 = (float(v) for t in (0.0, 1.0) for v in path(t)[:2])
    before, after = math.sqrt((a0 * s) ** 2 + s0**2), math.sqrt((a1 * s) ** 2 + s1**2)
    start = a0 * m + (x - a1 * m) * before / after
    dims = math.prod(shape)
    base = torch.distributions.Normal(0.0, s0)
    exact = base.log_prob(start).reshape(3, -1).sum(1) + dims * math.log(before / after)
    torch.testing.assert_close(got.value, exact, rtol=0, atol=2e-4)
    assert got.value.shape == got.stderr.shape == (3,)
    assert not bool(got.stderr.any())


def test_ring_mixture_smoothed():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    field = ring_mixture().noised(stk.VE(1.0, 2000.0))  # so wide that the base is the marginal to 1e-6
    exact = torch.tensor([-3.7808546294, -3.4390567908, -3.4056976966], dtype=torch.float64)
    got = stk.log_prob(field, x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(got.value, exact, rtol=0, atol=1e-4)
    probed = stk.log_prob(field, x, trace="hutchinson", probes=64, seed=1)
    z = (probed.value - exact) / probed.stderr.clamp(min=1e-3)
    assert bool((z.abs() < 5).all())
    assert "64 Rademacher probes" in probed.method


def test_divergence_and_its_estimators():
    """v = A x: trace 3; the variance of one Rademacher probe is .49 exactly."""
    a = torch.tensor([[1.0, 0.5], [0.2, 2.0]], dtype=torch.float64)
    x = torch.ones(3, 2, dtype=torch.float64)
    value, exact = divergence(lambda y, t: y @ a.T, x, 0.0, None)
    torch.testing.assert_close(exact, torch.full((1, 3), 3.0, dtype=torch.float64))
    torch.testing.assert_close(value, x @ a.T)
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)[:, None].expand(4, 3, 2)
    _, estimates = divergence(lambda y, t: y @ a.T, x, 0.0, signs)
    assert float(estimates[:, 0].var(unbiased=False)) == pytest.approx(0.49)
    torch.testing.assert_close(estimates.mean(0), torch.full((3,), 3.0, dtype=torch.float64))


def test_exact_where_the_family_has_it():
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    got = stk.log_prob(gaussian(dim=2), x)
    assert got.method == "exact"
    torch.testing.assert_close(got.value, torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1))


def test_rows_that_fail_are_nan_with_a_status():
    field = stk.Velocity(lambda x, t: torch.where(x > 3, torch.nan, -x), (1,))
    got = stk.log_prob(field, torch.tensor([[0.5], [9.0]], dtype=torch.float64))
    assert bool(torch.isfinite(got.value[0]))
    assert bool(torch.isnan(got.value[1]))
    assert got.status.tolist() == [0, int(stk.Status.NONFINITE)]


def test_what_has_no_density_says_so():
    with pytest.raises(stk.MissingCapability, match="constant only"):
        stk.log_prob(stk.Energy(lambda x: x.square().sum(1), (2,)), torch.zeros(2, 2))
    with pytest.raises(stk.MissingCapability, match="base has no density"):
        stk.log_prob(stk.Velocity(lambda x, t: x, (2,), base=torch.zeros(3, 2)), torch.zeros(2, 2))
    with pytest.raises(stk.InvalidArgument, match="x: expected"):
        stk.log_prob(gaussian(dim=2), torch.zeros(2, 3))
