"""Calibration of samplers of posteriors: the rate of false alarms, power beside it, ranks and bands against their definitions."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2

import scoretk as stk
from scoretk.diagnostics import calibration, rank_band, sbc_ranks, sbc_test, tarp_ranks, tarp_test
from scoretk.errors import InvalidArgument
from tests.evidence import FALSE_ALARM

LEVEL = 0.05
PRIOR = torch.tensor([[1.0, 0.8, 0.0], [0.8, 1.0, 0.3], [0.0, 0.3, 2.0]], dtype=torch.float64)
NOISE = 0.5


def simulations(n, draws, seed, wrong=""):
    """Draws of a correlated normal prior, data with noise, and draws of the exact posterior, or of a wrong one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root = torch.linalg.cholesky(PRIOR)
    theta = normal(n, 3) @ root.T
    y = theta + NOISE * normal(n, 3)
    gain = PRIOR @ torch.linalg.inv(PRIOR + NOISE**2 * torch.eye(3))
    covariance = PRIOR - gain @ PRIOR
    mean = y @ gain.T
    spread = torch.linalg.cholesky(covariance)
    deviations = covariance.diagonal().sqrt()
    if wrong == "prior":
        mean, spread = torch.zeros_like(mean), root
    if wrong == "shifted":
        mean = mean + 0.4 * deviations
    if wrong == "one coordinate":
        mean = mean + torch.tensor([0.0, 0.0, 0.6]) * deviations
    factor = {"narrow": 0.7, "wide": 1.4}.get(wrong, 1.0)
    return theta, mean[:, None] + factor * normal(n, draws, 3) @ spread.T, y


TESTS = {"sbc": sbc_test, "tarp": tarp_test}


def limits(repeats):
    """Rejections between which a test at the level stays, but for a share FALSE_ALARM of honest ones."""
    return binom.ppf(FALSE_ALARM / 2, repeats, LEVEL), binom.isf(FALSE_ALARM / 2, repeats, LEVEL)


def rejections(name, repeats, n, draws, prepare=lambda theta, x: (theta, x)):
    found = [
        TESTS[name](*prepare(*simulations(n, draws, s)[:2]), permutations=99, seed=s)
        for s in range(repeats)
    ]
    assert all(r.rejected == (r.statistic > r.threshold) for r in found)
    return sum(r.rejected for r in found)


@pytest.mark.thorough
@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize(
    ("repeats", "n", "draws"), [(100, 40, 9), pytest.param(600, 150, 63, marks=pytest.mark.slow)]
)
def test_an_exact_posterior_is_rejected_at_the_level(name, repeats, n, draws):
    low, high = limits(repeats)
    assert low <= rejections(name, repeats, n, draws) <= high
    # the bounds have power: the truth of another simulation is no draw of this one's posterior
    assert rejections(name, repeats, n, draws, lambda theta, x: (theta.roll(1, 0), x)) > high


def test_ties_are_no_false_alarm_and_no_blindness():
    low, high = limits(50)
    coarse = lambda theta, x: ((4 * theta).round(), (4 * x).round())  # noqa: E731
    assert low <= rejections("sbc", 50, 40, 9, coarse) <= high
    theta, x, _ = simulations(400, 63, 0, "narrow")
    assert sbc_test(*coarse(theta, x)).p_value == 1 / 501


@pytest.mark.parametrize(
    ("wrong", "sbc", "tarp"),
    [
        ("", False, False),
        ("narrow", True, True),
        ("wide", True, True),
        ("shifted", True, True),
        ("one coordinate", True, False),
    ],
)
def test_which_wrong_posteriors_are_found_by_which_test(wrong, sbc, tarp):
    theta, x, _ = simulations(400, 63, 3, wrong)
    for rejected, result in ((sbc, sbc_test(theta, x)), (tarp, tarp_test(theta, x))):
        assert result.p_value == 1 / 501 if rejected else not result.rejected


def test_correlations_are_seen_by_distances_and_not_by_coordinates():
    """Of two numbers their sum is known: the posterior is a narrow line, the product of its marginals a disc."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    theta, variance = normal(400, 2), 0.1**2
    y = theta.sum(1, keepdim=True) + math.sqrt(variance) * normal(400, 1)
    gain = 1 / (2 + variance)
    covariance = torch.eye(2, dtype=torch.float64) - gain
    exact = (gain * y)[:, None] + normal(400, 63, 2) @ torch.linalg.cholesky(covariance).T
    apart = (gain * y)[:, None] + normal(400, 63, 2) * math.sqrt(1 - gain)
    assert not sbc_test(theta, exact).rejected
    assert not tarp_test(theta, exact).rejected
    assert not sbc_test(theta, apart).rejected
    assert tarp_test(theta, apart).p_value == 1 / 501


def test_a_sampler_that_ignores_the_data_is_seen_by_what_depends_on_them():
    theta, x, y = simulations(400, 63, 4, "prior")
    assert not sbc_test(theta, x).rejected
    assert not tarp_test(theta, x).rejected
    assert tarp_test(theta, x, references=y).p_value == 1 / 501
    distances = [(values - at).square().sum(-1) for values, at in ((theta, y), (x, y[:, None]))]
    assert sbc_test(*distances).p_value == 1 / 501


def test_ranks_are_their_definitions():
    theta, x, y = simulations(30, 12, 5)
    expected = (x < theta[:, None]).sum(1)
    assert torch.equal(sbc_ranks(theta, x), expected)
    shaped = sbc_ranks(theta.reshape(30, 3, 1), x.reshape(30, 12, 3, 1))
    assert torch.equal(shaped, expected[..., None])
    unit = torch.cat([theta[:, None], x], 1).reshape(-1, 3).std(0)
    far = [((values - at) / unit).norm(dim=-1) for values, at in ((theta, y), (x, y[:, None]))]
    assert torch.equal(tarp_ranks(theta, x, references=y), (far[1] < far[0][:, None]).sum(1))
    # among equal ones a rank is any of those that it may have
    ranks = sbc_ranks(torch.zeros(900), torch.zeros(900, 2))
    counts = torch.bincount(ranks, minlength=3)
    assert float((counts - 300).square().sum() / 300) < chi2.isf(FALSE_ALARM, 2)


def test_the_statistic_is_how_far_out_of_its_binomial_law_the_count_of_ranks_is():
    generator = torch.Generator().manual_seed(6)
    for draws in (1, 5, 250):
        ranks = torch.randint(draws + 1, (23, 4), generator=generator)
        below, tails = calibration._values(draws), calibration._tails(23, draws)
        expected = 0.0
        for z in below.tolist():
            c = (ranks < z).sum(0).numpy()
            law = 23, z / (draws + 1)
            tail = np.minimum(binom.cdf(c, *law), binom.sf(c - 1, *law))
            expected = max(expected, float(-np.log(2 * tail.min())))
        found = calibration._statistics(torch.stack([ranks.flip(0), ranks]), below, tails)
        assert found.tolist() == pytest.approx([expected] * 2)
    assert below.tolist() == sorted(set(below.tolist()))
    assert (int(below[0]), int(below[-1]), len(below)) == (1, 250, calibration.MOST_VALUES)


def left(band, n, draws, repeats, generator):
    """How many sets of uniform ranks leave a band."""
    out = 0
    for _ in range(repeats):
        ranks = torch.randint(draws + 1, (n,), generator=generator)
        share = (ranks[:, None] < band.below).double().mean(0)
        out += bool(((share < band.low - 1e-12) | (share > band.high + 1e-12)).any())
    return out


def test_a_band_holds_all_values_together():
    generator = torch.Generator().manual_seed(7)
    n, draws, repeats = 120, 30, 600
    band = rank_band(n, draws, level=LEVEL)
    # the statistic has few values here, so the exact rate is somewhat below the level
    low, high = limits(repeats)
    assert low <= left(band, n, draws, repeats, generator) <= high
    middle = band.below.double() / (draws + 1)
    assert ((band.low <= middle) & (middle <= band.high)).all()
    one_by_one = [
        torch.from_numpy(binom.ppf(q, n, middle.numpy())) / n for q in (LEVEL / 2, 1 - LEVEL / 2)
    ]
    pointwise = band._replace(low=one_by_one[0], high=one_by_one[1])
    assert left(pointwise, n, draws, repeats, generator) > high


@pytest.mark.slow
def test_a_sampler_of_this_package_is_calibrated_chain_by_chain():
    """One chain a simulation, the condition of each its own data; without a Metropolis decision it is not."""
    theta, _, y = simulations(150, 1, 8)
    precision = torch.linalg.inv(PRIOR)

    def energy(x, y):
        prior = torch.einsum("ni,ij,nj->n", x, precision, x) / 2
        return prior + (x - y).square().sum(-1) / (2 * NOISE**2)

    def p_value(solver):
        draws = stk.sample(
            stk.Energy(energy, (3,)), solver, chains=150, steps=190, thin=10,
            cond={"y": y}, init=theta, dtype=torch.float64, progress=False,
        )  # fmt: skip
        return sbc_test(theta, draws.x).p_value

    assert p_value(stk.HMC(0.35, leapfrogs=4)) > 1e-2
    assert p_value(stk.ULA(0.16)) == 1 / 501


@pytest.mark.parametrize(
    ("mutant", "wrong"),
    [
        # counts compared with another law than that of a rank among L + 1 points
        ("_values", torch.arange),
        # the truth counted among the points twice, as in r <= instead of r <
        ("_ranks", lambda pool, generator: (pool[:, None] <= pool[:, :, None]).sum(2)),
    ],
)
def test_what_a_wrong_rank_would_do_is_seen(monkeypatch, mutant, wrong):
    law = {
        "_ranks": test_ranks_are_their_definitions,
        "_values": test_the_statistic_is_how_far_out_of_its_binomial_law_the_count_of_ranks_is,
    }[mutant]
    monkeypatch.setattr(calibration, mutant, wrong)
    with pytest.raises(AssertionError):
        law()


def test_a_null_law_that_forgets_the_dependence_of_coordinates_has_another_level(monkeypatch):
    """Uniform ranks, drawn for each coordinate by itself, in place of exchanged points: copies count as evidence."""
    theta, x, _ = simulations(60, 9, 9)
    same = theta[:, :1].expand(60, 20), x[..., :1].expand(60, 9, 20)
    alone = sbc_test(theta[:, :1], x[..., :1])
    assert abs(sbc_test(*same).p_value - alone.p_value) < 0.1

    def independent(ranks, level, permutations, generator):
        n, points, d = ranks.shape
        drawn = torch.randint(points, (n, permutations, d), generator=generator)
        return calibration_uniform(
            torch.cat([ranks[:, :1], drawn], 1), level, permutations, generator
        )

    calibration_uniform = calibration._uniform
    monkeypatch.setattr(calibration, "_uniform", independent)
    assert abs(sbc_test(*same).p_value - alone.p_value) > 0.1


@pytest.mark.parametrize(
    "call",
    [
        lambda: sbc_test(torch.zeros(5, 2), torch.zeros(5, 3)),
        lambda: sbc_test(torch.zeros(5, 2), torch.zeros(4, 3, 2)),
        lambda: sbc_test(torch.zeros(1, 2), torch.zeros(1, 3, 2)),
        lambda: sbc_ranks(torch.zeros(5), torch.zeros(5)),
        lambda: sbc_test(torch.zeros(5, 2), torch.full((5, 3, 2), torch.nan)),
        lambda: sbc_test(torch.zeros(5, 2), torch.zeros(5, 3, 2), permutations=10),
        lambda: sbc_test(torch.zeros(5, 2), torch.zeros(5, 3, 2), level=1.0),
        lambda: tarp_test(torch.zeros(5, 2), torch.zeros(5, 3, 2), references=torch.zeros(5, 3)),
        lambda: tarp_ranks(torch.zeros(5, 2), torch.zeros(5, 3, 2), seed=-1),
        lambda: rank_band(1, 10),
        lambda: rank_band(10, 0),
        lambda: rank_band(10, 10, simulations=5),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(InvalidArgument):
        call()


def test_tarp_sees_numbers_of_any_size():
    """Whose squares overflow, or vanish: by powers of two the result is the same to the bit."""
    truth, draws, *_ = simulations(60, 20, 1)
    usual = tarp_test(truth, draws / 4)
    for exponent in (-1000, 900):
        size = 2.0**exponent
        assert tarp_test(truth * size, draws / 4 * size) == usual
    assert usual.rejected
