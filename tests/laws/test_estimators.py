"""Diagnostics and likelihoods against their definitions, with loops in place of clever algebra."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

import scoretk as stk
from scoretk.diagnostics import convergence, discrepancies, distances, mixing, quality, summary
from scoretk.diagnostics.verdict import Sampler, findings
from scoretk.diagnostics.weights import kish, weights
from scoretk.fields.base import NormalBase
from scoretk.fields.paths import VE
from scoretk.fields.resolve import resolve
from scoretk.inference import beginning, likelihood, pilot
from scoretk.inference.encoding import Flow, corrected_end, interpolate, short_of_the_end
from scoretk.inference.partition import LARGE, _doubts, _families, _log_mean
from scoretk.inference.pilot import MOST_MOVES, Aims, Population, _stretched, find_ladder
from scoretk.inference.sbi import _spread
from scoretk.solvers.importance import Ladder, resampled

RNG = np.random.default_rng(0)


def chains(d=3, c=4, n=61, rho=(0.0, 0.7, -0.4)):
    x = np.zeros((d, c, n))
    for i in range(d):
        for t in range(n):
            x[i, :, t] = rho[i] * x[i, :, t - 1] * (t > 0) + RNG.normal(size=c)
    return x + np.arange(c)[:, None] * 0.05


def plain_time(x):
    """Geyer's initial monotone sequence, lag by lag: `tau = 1 + 2 sum_k rho_k` as far as its pairs are positive."""
    c, n = x.shape
    about = x - x.mean(1, keepdims=True)
    within = x.var(1, ddof=1).mean()
    total = (n - 1) / n * within + (x.mean(1).var(ddof=1) if c > 1 else 0.0)

    def rho(k):
        covariance = sum((about[j, : n - k] * about[j, k:]).sum() for j in range(c)) / (c * n)
        return 1 - (within - covariance) / total if k else 1.0

    tau, least, t = -1.0, math.inf, 0
    most = max(1, (n - 1) // 2)
    while t < most - 1 and rho(2 * t) + rho(2 * t + 1) > 0:
        least = min(least, rho(2 * t) + rho(2 * t + 1))
        tau += 2 * least
        t += 1
    tau += max(rho(2 * t), 0.0)
    return max(tau, 1 / math.log10(c * n))


def test_the_autocorrelation_time_is_geyers():
    x = chains()
    found = mixing.autocorrelation_time(x)
    np.testing.assert_allclose(found, [plain_time(v) for v in x], rtol=1e-9)
    np.testing.assert_allclose(mixing.effective(x), x[0].size / found)
    slow = chains(1, 3, 400, (0.97,))
    assert mixing.autocorrelation_time(slow)[0] == pytest.approx(plain_time(slow[0]), rel=1e-9)
    assert found[0] == pytest.approx(1.0, abs=0.5)
    assert found[2] < 1 < found[1]


def test_r_hat_is_its_definition():
    x = chains()
    n = x.shape[2]
    for value, found in zip(x, mixing.r_hat(x), strict=True):
        within = value.var(1, ddof=1).mean()
        v = (n - 1) / n * within + value.mean(1).var(ddof=1)
        assert found == pytest.approx(math.sqrt(v / within), rel=1e-12)
    draws = torch.tensor(x).permute(1, 2, 0)
    halves = np.concatenate([x[:, :, : n // 2], x[:, :, n - n // 2 :]], 1)
    for i, found in enumerate(convergence.rhat(draws).tolist()):
        values = [ranked(halves[i]), ranked(np.abs(halves[i] - np.median(halves[i])))]
        assert found == pytest.approx(max(mixing.r_hat(v[None])[0] for v in values))


def ranked(x):
    ranks = stats.rankdata(x.ravel())
    return stats.norm.ppf((ranks - 3 / 8) / (x.size + 1 / 4)).reshape(x.shape)


def test_normal_scores_share_the_mean_rank_of_ties():
    x = chains()
    x[1] = np.round(x[1])
    np.testing.assert_allclose(
        mixing.normal_scores(x), np.stack([ranked(v) for v in x]), atol=1e-12
    )


def test_monte_carlo_errors():
    x = chains()
    for i in range(3):
        halves = mixing.split(x[i : i + 1])
        error = x[i].std(ddof=1) / math.sqrt(mixing.effective(halves)[0])
        assert mixing.mcse_mean(x)[i] == pytest.approx(error)
        squares = np.square(x[i] - x[i].mean())
        worth = mixing.effective(mixing.split(squares[None]))[0]
        error = math.sqrt(squares.var() / worth) / (2 * math.sqrt(squares.mean()))
        assert mixing.mcse_sd(x)[i] == pytest.approx(error)
        edges = np.quantile(x[i], [0.05, 0.95])
        tails = [mixing.effective(mixing.split((x[i : i + 1] <= q) * 1.0))[0] for q in edges]
        assert mixing.tail_effective(x)[i] == pytest.approx(min(tails))


def test_nested_r_hat_compares_superchains():
    x, k = chains(2, 6, 9, (0.0, 0.5)), 3
    found = convergence.nested_rhat(torch.tensor(x).permute(1, 2, 0), k)
    for i in range(2):
        groups = x[i].reshape(k, 2, 9)
        means = groups.mean(2)
        between = means.mean(1).var(ddof=1)
        within = means.var(1, ddof=1).mean() + groups.var(2, ddof=1).mean()
        assert float(found[i]) == pytest.approx(math.sqrt(1 + between / within))


def test_deviates_of_t_and_f_are_near_their_quantiles():
    for degrees in (3, 10, 40):
        for p in (1e-4, 0.01, 0.3):
            t, z = stats.t.isf(p, degrees), stats.norm.isf(p)
            assert float(mixing.t_deviate(np.array(t), degrees)) == pytest.approx(z, rel=0.05)
            assert float(mixing.t_deviate(np.array(-t), degrees)) == pytest.approx(-z, rel=0.05)
            f = stats.f.isf(p, degrees, 30)
            assert float(mixing.f_deviate(np.array(f), degrees, 30)) == pytest.approx(
                z, rel=0.06, abs=0.02
            )


def test_drift_alternation_and_memory():
    d, c, n = 2, 24, 40
    x = chains(d, c, n, (0.3, 0.6))
    x[1, :, n // 2 :] += 1.5
    lattice = np.zeros(d, bool)
    z, by = mixing.drift(x, lattice)
    for i in range(d):
        change = x[i, :, n // 2 :].mean(1) - x[i, :, : n // 2].mean(1)
        t = change.mean() / (change.std(ddof=1) / math.sqrt(c))
        assert by[i] == pytest.approx(change.mean())
        assert z[i] == pytest.approx(float(mixing.t_deviate(np.array(t), c - 1)))
    signs = np.where(np.arange(n) % 2, -1.0, 1.0)
    turning = chains(1, c, n, (0.2,)) + 0.9 * signs
    z, by = mixing.alternation(turning, lattice[:1])
    assert by[0] == pytest.approx(0.9, abs=0.3)
    trend = np.arange(n)[None, None] * 1.0 + 0 * turning
    assert mixing.alternation(trend, lattice[:1])[1][0] == pytest.approx(0, abs=1e-9)
    z, nested = mixing.memory(x)
    for i in range(d):
        order = x[i, :, : n // 2].mean(1).argsort().argsort() * 4 // c
        late = x[i, :, n - n // 4 :]
        groups = [late[order == g].mean(1) for g in range(4)]
        f = stats.f_oneway(*groups).statistic
        assert z[i] == pytest.approx(float(mixing.f_deviate(np.array(f), 3, c - 4)))
        assert nested[i] > 1


def test_chains_that_vary_more_than_their_draws_allow():
    c, n, slack = 6, 80, 2.0
    x = chains(1, c, n, (0.5,))
    variance, tau, pairs = mixing._initial_sequence(x, pooled=False)
    about = x[0] - x[0].mean(1, keepdims=True)
    assert variance[0] == pytest.approx((about**2).sum() / (c * n))
    lost = (4 * pairs[0] + 1) / n
    apart = x[0].mean(1).var(ddof=1)
    f = apart * n * (1 - lost) / (slack * variance[0] * tau[0])
    right = float(mixing.f_deviate(np.array(f), c - 1, c * n / (3 * tau[0])))
    assert mixing.between(x, slack)[0] == pytest.approx(right)
    off = np.square(x[0].mean(1) - 0.4).mean()
    f = off * n * (1 - lost) / (slack * variance[0] * tau[0])
    right = float(mixing.f_deviate(np.array(f), c, c * n / (3 * tau[0])))
    assert mixing.between(x, slack, 0.4)[0] == pytest.approx(right)
    assert mixing.z_limit(1e-3, 50) == pytest.approx(stats.norm.isf(1e-3 / 50))


def test_the_largest_of_many_comparisons_is_held_to_the_limit_of_many():
    """Of three hundred coordinates of independent draws some exceed what one alone would not, and nothing is told."""
    x = np.random.default_rng(13).normal(size=(24, 20, 300))
    scores = mixing.normal_scores(np.ascontiguousarray(x.transpose(2, 0, 1)))
    z = np.abs(mixing.drift(scores, np.zeros(300, bool))[0]).max()
    assert z > mixing.z_limit(1e-3, 2)
    well, names = torch.zeros(24, dtype=torch.int64), [f"x[{i}]" for i in range(300)]
    found = findings(x, names, well, well - 1, {}, Sampler())
    assert [f.problem for f in found if f.kind != "few"] == []
    x[:, 10:, 3] += 1.2
    kinds = {f.kind for f in findings(x[:, :, :5], names[:5], well, well - 1, {}, Sampler())}
    assert "drift" in kinds


def test_the_fraction_of_energy_that_a_step_renews():
    e = torch.tensor(RNG.normal(size=(3, 50)).cumsum(1))
    for row, found in zip(e.numpy(), convergence.bfmi(e).tolist(), strict=True):
        assert found == pytest.approx(np.square(np.diff(row)).mean() / row.var(ddof=1))


def test_weighted_draws_have_the_moments_of_their_weights():
    values, logs = RNG.normal(size=40), RNG.normal(size=40)
    found = summary._row(values, 10, weights({"log_weight": logs}, 40))
    w = np.exp(logs) / np.exp(logs).sum()
    worth, mean = 1 / (w**2).sum(), w @ values
    squares = (values - mean) ** 2
    variance = w @ squares * worth / (worth - 1)
    assert found["mean"] == pytest.approx(mean)
    assert found["ess_bulk"] == found["ess_tail"] == pytest.approx(worth)
    assert found["sd"] == pytest.approx(math.sqrt(variance))
    assert found["mcse_mean"] == pytest.approx(math.sqrt((w**2) @ squares))
    kurtosis = w @ squares**2 - (w @ squares) ** 2
    assert found["mcse_sd"] == pytest.approx(
        math.sqrt(kurtosis / worth) / (2 * math.sqrt(variance))
    )
    equal = summary._row(values, 10, weights({}, 40))
    assert equal["sd"] == pytest.approx(values.std(ddof=1))
    assert equal["mcse_mean"] == pytest.approx(values.std() / math.sqrt(40))


def test_draws_of_one_start_have_the_error_of_their_sums():
    """Where each is alone it is as without families, up to what the mean takes of its own draws."""
    values, logs = RNG.normal(size=24), RNG.normal(size=24)
    ancestor = np.array([7, 7, 7, 2, 9, 9] * 4)
    weighed = weights({"log_weight": logs, "ancestor": ancestor}, 24)
    w = np.exp(logs) / np.exp(logs).sum()
    mean = w @ values
    of = [ancestor == one for one in (2, 7, 9)]
    taken = sum(w[a].sum() ** 2 for a in of)
    sums = sum((w[a] @ (values[a] - mean)) ** 2 for a in of)
    assert weighed.error(values) == pytest.approx(math.sqrt(sums / (1 - taken)))
    assert weighed.families == pytest.approx(1 / taken)
    found = summary._row(values, 10, weighed)
    squares = (values - mean) ** 2
    variance = w @ squares * weighed.worth / (weighed.worth - 1)
    assert found["mean"] == pytest.approx(mean)
    assert found["sd"] == pytest.approx(math.sqrt(variance))
    assert found["mcse_mean"] == pytest.approx(weighed.error(values))
    assert found["mcse_sd"] == pytest.approx(weighed.error(squares) / 2 / math.sqrt(variance))
    expected = min(weighed.worth, variance / weighed.error(values) ** 2)
    assert found["ess_bulk"] == found["ess_tail"] == pytest.approx(expected)
    alone = weights({"log_weight": logs, "ancestor": np.arange(24)}, 24)
    assert alone.family is None
    plain = summary._row(values, 10, alone)["mcse_mean"]
    assert alone.error(values) == pytest.approx(plain / math.sqrt(1 - 1 / alone.worth))
    assert math.isnan(weights({"ancestor": np.ones(24)}, 24).error(values))


def test_errors_of_resampled_draws_are_those_of_their_means():
    """Of starts resampled three times with moves between; as if all were independent they are too small by half."""
    rng, n = np.random.default_rng(3), 300
    means, errors, alone = [], [], []
    for _ in range(400):
        x, ancestor = rng.normal(size=n), np.arange(n)
        for _ in range(3):
            w = np.exp(x / 2)
            chosen = rng.choice(n, n, p=w / w.sum())
            x, ancestor = x[chosen] * 0.95 + rng.normal(size=n) * 0.0975**0.5, ancestor[chosen]
        means.append(x.mean())
        errors.append(weights({"ancestor": ancestor}, n).error(x))
        alone.append(summary._row(x, 10, weights({}, n))["mcse_mean"])
    ratio = np.std(means) / math.sqrt(np.square(errors).mean())
    assert (
        0.8 < ratio < 1.25
    )  # of 400 runs it has a standard error of .035, and few starts a bias of .1
    assert np.std(means) > 1.5 * np.mean(alone)


def test_weights_compare_draws_of_one_measurement():
    """One that is likelier by itself does not count for more than another."""
    logs = np.array([0.0, math.log(3.0), -900.0, -900.0, -900.0, -np.inf])
    measurement = np.array([1.0, 1.0, 2.5, 2.5, 2.5, 3.0])
    found = weights({"log_weight": logs, "measurement": measurement}, 6)
    np.testing.assert_allclose(found.share, [1 / 12, 1 / 4, 1 / 6, 1 / 6, 1 / 6, 1 / 6])


def test_few_starts_are_told():
    x, stats = RNG.normal(size=(64, 1, 1)), {"log_weight": np.zeros(64)}
    status, sampler = torch.zeros(64, dtype=torch.int64), Sampler("SMC(levels=4)")

    def kinds(ancestor):
        told = stats | {"ancestor": ancestor}
        return {f.kind for f in findings(x, ["x"], status, status - 1, told, sampler)}

    assert "families" in kinds(np.arange(64) // 16)
    assert not kinds(np.arange(64) // 8)
    assert not kinds(np.arange(64))


def test_distances_between_samples_are_those_of_their_pairs():
    x, y = torch.tensor(RNG.normal(size=(6, 1))), torch.tensor(RNG.normal(size=(4, 1)) + 1)
    a, b = (np.repeat(np.sort(v[:, 0].numpy()), k) for v, k in ((x, 4), (y, 6)))
    found = distances.sliced_wasserstein(x, y, directions=3)
    assert found == pytest.approx(math.sqrt(np.square(a - b).mean()))
    width = 0.8

    def kernel(u, v):
        return math.exp(-float((u - v).square().sum()) / (2 * width**2))

    within = [
        np.mean([kernel(s[i], s[j]) for i, j in itertools.permutations(range(len(s)), 2)])
        for s in (x, y)
    ]
    across = np.mean([kernel(u, v) for u in x for v in y])
    assert distances.mmd(x, y, width) == pytest.approx(sum(within) - 2 * across)
    test = discrepancies.mmd_test(x, y, bandwidth=width, permutations=60)
    assert test.statistic == pytest.approx(sum(within) - 2 * across)
    counts = [3, 1, 0, 4]
    shares = np.array([3, 1, 4]) / 8
    assert quality.balance(counts) == pytest.approx(-(shares * np.log(shares)).sum() / math.log(4))


def test_steins_discrepancy_is_the_mean_of_its_kernel():
    """Langevin's Stein operator on both sides of `(1 + |x - y|^2)^(-1/2)`, by autograd."""
    x = torch.tensor(RNG.normal(size=(7, 2)) * 1.5 + 0.3)

    def slope(v):
        return -v - v**3 / 5

    scale = float(torch.pdist(x).median())
    z = (x - x.mean(0)) / scale

    def kernel(u, v):
        return (1 + (u - v).square().sum()).rsqrt()

    total = 0.0
    for i, j in itertools.permutations(range(7), 2):
        u, v = z[i].clone().requires_grad_(), z[j].clone().requires_grad_()
        k = kernel(u, v)
        gu, gv = torch.autograd.grad(k, (u, v), create_graph=True)
        trace = sum(torch.autograd.grad(gu[m], v, retain_graph=True)[0][m] for m in range(2))
        s, t = slope(x[i]) * scale, slope(x[j]) * scale
        total += float((k * (s @ t) + s @ gv + t @ gu + trace).detach())
    found = discrepancies.kernel_stein_discrepancy(x, slope, bootstraps=40)
    assert found.statistic == pytest.approx(total / 42, rel=1e-8)


def test_p_values_count_the_observed_one():
    null = torch.tensor([0.1, 0.5, 0.3, 0.9, 0.2, 0.7, 0.4, 0.6, 0.8], dtype=torch.float64)
    found = discrepancies._compared(0.75, null, 0.2)
    assert found.p_value == pytest.approx((1 + 2) / 10)
    assert found.threshold == pytest.approx(0.8)
    assert not found.rejected
    best = discrepancies._compared(2.0, null, 0.2)
    assert best.p_value == pytest.approx(1 / 10)
    assert best.rejected
    tails = discrepancies._hypergeometric_tails(6, 9, 7)
    right = [stats.hypergeom.sf(h - 1, 15, 6, 7) for h in range(7)]
    np.testing.assert_allclose(tails.numpy(), right, rtol=1e-9)


def test_copies_are_nearer_than_held_out_rows_are():
    train, held = torch.arange(10.0)[:, None] * 10, torch.arange(10.0)[:, None] * 10 + 3
    x = torch.tensor([[0.0], [10.0], [25.0], [37.0]])
    found = quality.copies(x, train, held, quantile=0.5)
    assert found.distance == pytest.approx((0 + 0 + 5 + 3) / 4)
    assert found.held_out_distance == pytest.approx(3.0)
    assert found.share == pytest.approx(2 / 4)


# Likelihoods and latents.

PATH = VE(0.05, 3.0)
MEAN, STD = torch.tensor([0.4, -1.0]).double(), torch.tensor([0.6, 1.4]).double()


def gaussian_denoiser(x, t):
    alpha, sigma = PATH.alpha(t)[:, None], PATH.sigma(t)[:, None]
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


FIELD = stk.Diffusion(gaussian_denoiser, (2,), PATH, "data")
X = torch.tensor(RNG.normal(size=(5, 2)))


def test_the_density_of_a_noised_gaussian_is_known():
    """Between times a Gaussian is stretched about its mean: the flow's own density at the data follows from the base's."""
    found = stk.log_prob(FIELD, X, rtol=1e-6, atol=1e-6)
    (alpha, sigma), (end, left) = ((float(PATH.alpha(t)), float(PATH.sigma(t))) for t in (0.0, 1.0))
    spread = (alpha**2 * STD**2 + sigma**2).sqrt() / (end**2 * STD**2 + left**2).sqrt()
    latents = alpha * MEAN + spread * (X - end * MEAN)
    base = torch.distributions.Normal(0.0, sigma).log_prob(latents).sum(1)
    right = base + spread.log().sum()
    torch.testing.assert_close(found.value, right, rtol=1e-4, atol=1e-4)
    assert float(found.stderr.abs().max()) == 0
    there = stk.encode(FIELD, X, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(there.x, latents, rtol=1e-4, atol=1e-4)


def test_the_rate_in_the_angle_is_the_velocity_in_time():
    flow = Flow(resolve(FIELD, {"velocity"}, timed=True))
    t, h = 0.4, 1e-6
    path = PATH
    angle = math.atan2(float(path.alpha(t)), float(path.sigma(t)))
    turn = (
        math.atan2(float(path.alpha(t + h)), float(path.sigma(t + h)))
        - math.atan2(float(path.alpha(t - h)), float(path.sigma(t - h)))
    ) / (2 * h)
    rho = math.hypot(float(path.alpha(t)), float(path.sigma(t)))
    stretch = (
        math.hypot(float(path.alpha(t + h)), float(path.sigma(t + h)))
        - math.hypot(float(path.alpha(t - h)), float(path.sigma(t - h)))
    ) / (2 * h)
    z = X / rho
    right = (FIELD.velocity(X, t) - stretch * z) / rho / turn
    torch.testing.assert_close(flow.rate(z, angle), right, rtol=1e-6, atol=1e-8)
    rows = flow.rate(z, torch.full((5,), angle, dtype=torch.float64))
    torch.testing.assert_close(rows, right, rtol=1e-6, atol=1e-8)


def test_ends_are_crossed_by_the_trapezoid_and_the_midpoint_rule():
    y = torch.tensor([[2.0]], dtype=torch.float64)

    def rate(y, phi):
        return y * phi + 1

    found = corrected_end(rate, y, (1.5, 1.3))
    assert float(found) == pytest.approx(2 + (1.3 - 1.5) / 2 * (2 * 1.3 + 1))
    found = short_of_the_end(rate, y, (1.5, 1.3))
    half = -0.1
    middle = 2 + half * (2 * 1.3 + 1)
    assert float(found) == pytest.approx(2 + 2 * half * (middle * 1.4 + 1))


def test_interpolation_turns_evenly_and_stretches_evenly():
    a, b = torch.tensor([[3.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    found = interpolate(a, b, 5)[0]
    for i, point in enumerate(found):
        w = i / 4
        angle, length = w * math.pi / 2, 3 + w * (1 - 3)
        expected = [length * math.cos(angle), length * math.sin(angle)]
        np.testing.assert_allclose(point.numpy(), expected, atol=1e-12)


def test_bits_per_dimension_are_means_over_dequantisations():
    cells = torch.tensor([[0.0, 3.0], [2.0, 1.0]], dtype=torch.float64)
    levels, low, high = 4, -2.0, 1.0
    seen = []

    class Law:
        event_shape = (2,)
        provides = frozenset({"log_prob"})

        def log_prob(self, x):
            seen.append(x)
            return torch.distributions.Normal(0.3, 0.9).log_prob(x).sum(1)

    found = stk.bits_per_dim(Law(), cells, levels=levels, interval=(low, high), draws=3)
    width = (high - low) / levels
    assert not torch.equal(seen[0], seen[1])
    each = []
    for x in seen[:3]:
        u = (x - low) / width - cells
        assert bool(((u >= 0) & (u < 1)).all())
        each.append(-(Law().log_prob(x) + 2 * math.log(width)) / (2 * math.log(2)))
    each = torch.stack(each)
    torch.testing.assert_close(found.value, each.mean(0))
    torch.testing.assert_close(found.stderr, each.std(0) / math.sqrt(3))


def test_traces_of_a_linear_velocity():
    """Exactly, in the mean over probes, and by Hutch++, which is exact where its range is all there is."""
    matrix = torch.tensor(RNG.normal(size=(4, 4)))
    x = torch.tensor(RNG.normal(size=(3, 4)))

    def velocity(y, t):
        return y @ matrix.T

    exact = likelihood.divergence(velocity, x, 0.0, None)[1]
    torch.testing.assert_close(exact, matrix.trace().expand(1, 3))
    probes = torch.tensor(RNG.normal(size=(5, 3, 4)))
    found = likelihood.divergence(velocity, x, 0.0, probes)[1]
    right = torch.einsum("kbi,ij,kbj->kb", probes, matrix, probes)
    torch.testing.assert_close(found, right)
    sketch, rest = probes[:2], probes[2:]
    found = likelihood.divergence(velocity, x, 0.0, rest, sketch)[1]
    for b in range(3):
        seen = matrix.T @ sketch[:, b].T
        q = torch.linalg.qr(seen).Q
        beyond = torch.eye(4).double() - q @ q.T
        g = beyond @ rest[:, b].T
        each = torch.stack([v @ matrix @ v for v in g.T])
        norms = g.square().sum(0)
        known = 2.0
        for k in range(3):
            others = [j for j in range(3) if j != k]
            slope = each[others].sum() / norms[others].sum()
            value = (q.T @ matrix @ q).trace() + each[k] - slope * (norms[k] - known)
            assert float(found[k, b]) == pytest.approx(float(value))


def test_a_mean_of_weights_and_its_error():
    logs = torch.tensor(RNG.normal(size=30))
    value, stderr, worth = _log_mean(logs)
    w = logs.exp()
    assert float(value) == pytest.approx(float(w.mean().log()))
    assert float(stderr) == pytest.approx(float(w.std() / w.mean() / math.sqrt(30)))
    assert worth == pytest.approx(float(w.sum() ** 2 / w.square().sum()))
    families = _families(logs, torch.tensor([0] * 10 + [7] * 20))
    assert float(families[0]) == pytest.approx(float(logs[:10].logsumexp(0)))
    assert float(families[7]) == pytest.approx(float(logs[10:].logsumexp(0)))
    assert bool((families[torch.arange(30) % 7 != 0] == -torch.inf).all())
    assert float(_log_mean(families)[0]) == pytest.approx(float(value))


def test_a_ladder_is_stretched_evenly_in_its_levels():
    ladder = Ladder((0.0, 0.1, 0.5, 1.0), (0.3, 0.2, 0.1), None, (1, 2, 3))
    found = _stretched(ladder, 6)
    np.testing.assert_allclose(found.weights, [0, 0.05, 0.1, 0.3, 0.5, 0.75, 1])
    assert found.step_sizes == (0.3, 0.3, 0.2, 0.2, 0.1, 0.1)
    assert found.moves == (1, 1, 2, 2, 3, 3)


def test_log_z_of_known_laws():
    """A Gaussian with another scale and constant, from a base whose own constant counts."""
    field = stk.Energy(lambda x: (x**2).sum(1) / (2 * 0.8**2) + 1.7, (2,))
    base = NormalBase((2,), 1.3)
    found = stk.log_partition(field, base, chains=256, pilot=128, check=False, dtype=torch.float64)
    right = 2 * math.log(0.8 * math.sqrt(2 * math.pi)) - 1.7
    assert abs(float(found.value) - right) < 6 * float(found.stderr)
    assert float(found.stderr) < 0.1
    assert found.method.startswith("AIS (")


def test_a_chain_that_failed_leaves_no_estimate(monkeypatch):
    """Its last weight is one of a state that was not reached by the law."""

    def failing(*run, **options):
        draws = stk.sample(*run, **options)
        draws.status[3] = int(stk.Status.NONFINITE)
        return draws

    monkeypatch.setattr("scoretk.inference.partition.sample", failing)
    field = stk.Energy(lambda x: (x**2).sum(1) / 2, (2,))
    for method in ("ais", "smc"):
        run = {"chains": 64, "pilot": 64, "check": False, "levels": 3, "method": method}
        with pytest.warns(UserWarning, match="log_partition"):
            found = stk.log_partition(field, NormalBase((2,), 1.3), **run)
        assert found.status == stk.Status.NONFINITE
        assert math.isnan(found.value)


def test_draws_worth_less_than_a_hundred_or_half_of_them_are_told():
    """The first of n draws has a weight w, the others 1: they are worth `(w + n - 1)^2 / (w^2 + n - 1)`."""
    sampler = Sampler("AIS(levels=4)")
    for n, limit in ((1000, 100.0), (60, 30.0)):
        x = RNG.normal(size=(n, 1, 1))
        for w in np.geomspace(1.0, n, 30):
            worth = (w + n - 1) ** 2 / (w**2 + n - 1)
            logs = np.log(np.where(np.arange(n) == 0, w, 1.0))[:, None]
            well = torch.zeros(n, dtype=torch.int64)
            told = findings(x, ["x"], well, well - 1, {"log_weight": logs}, sampler)
            assert [f.kind for f in told] == (["weights"] if worth < limit else [])


def test_a_ladder_has_a_level_wherever_the_weights_lose_a_tenth():
    """From N(0, 1) to N(0, s^2), both known: at each level of the pilot the weights keep about nine tenths of their number."""
    s, d = 0.2, 3
    field = stk.Energy(lambda x: (x**2).sum(1) / (2 * s**2), (d,))
    kernel = stk.MALA(0.3)
    ladder, *_ = find_ladder(
        field,
        NormalBase((d,), 1.0),
        kernel,
        Population(512, seed=0, dtype=torch.float64),
        moves=1,
        levels=None,
        aims=Aims(),
    )
    precision = [1 + w * (1 / s**2 - 1) for w in ladder.weights]
    shares = []
    for before, after in itertools.pairwise(precision):
        step = after - before  # of the weights exp(-step x^2 / 2) under N(0, 1 / before)
        mean, square = (1 + step / before) ** (-d / 2), (1 + 2 * step / before) ** (-d / 2)
        shares.append(mean**2 / square)
    assert len(shares) > 5
    assert all(abs(share - 0.9) < 0.04 for share in shares[:-1])
    assert shares[-1] > 0.86


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_row_of_which_any_dequantisation_failed_has_failed(failing):
    calls = itertools.count()

    class Law:
        event_shape, provides = (2,), frozenset({"log_prob"})

        def log_prob(self, x):
            found = -x.square().sum(1)
            return (
                found.index_fill(0, torch.tensor([1]), math.nan)
                if next(calls) == failing
                else found
            )

    cells = torch.tensor([[0.0, 3.0], [2.0, 1.0]], dtype=torch.float64)
    found = stk.bits_per_dim(Law(), cells, levels=4, draws=3)
    assert found.status.tolist() == [int(stk.Status.OK), int(stk.Status.NONFINITE)]
    assert found.value.isnan().tolist() == [False, True]


def test_every_reason_to_doubt_a_partition_function_is_told():
    """From its limit on: a level where the kernel made all the moves that there are, and had not forgotten."""
    rising = (0.0, 0.5, 1.0)
    for moves, slow in (((1, MOST_MOVES - 1), 0), ((1, MOST_MOVES), 1), ((MOST_MOVES,) * 2, 2)):
        told = _doubts(0.05, 0.5, Ladder(rising, moves=moves))
        assert [f"at {slow} of 2 levels" in doubt for doubt in told] == [True] * (slow > 0)
    plain = Ladder(rising)
    assert _doubts(LARGE, 1.0, plain) == []
    for stderr, apart, n in (
        (LARGE * 1.01, 0.5, 1),
        (math.nan, 0.5, 1),
        (0.05, 1.01, 1),
        (1, 2, 2),
    ):
        assert len(_doubts(stderr, apart, plain)) == n
        assert len(_doubts(stderr, apart, plain, blind=True)) == n + 1


def test_the_effective_size_of_a_standard_deviation_is_that_of_squares_about_the_common_mean():
    x = torch.tensor(chains())
    rows = x.permute(1, 2, 0)
    squares = (x - x.mean((1, 2), keepdim=True)).square().permute(1, 2, 0)
    torch.testing.assert_close(convergence.ess(rows, "sd"), convergence.ess(squares, "mean"))


def test_of_independent_draws_the_last_one_is_judged_with_its_own_reports():
    """Of all levels that were kept, draws, weights and all: the summary is that of the last alone."""
    x, logs = torch.tensor(RNG.normal(size=(80, 6, 2))), torch.tensor(RNG.normal(size=(80, 6)))
    well = torch.zeros(80, dtype=torch.int64)
    whole, last = (
        summary.summarise(x[:, part], well, well - 1, {"log_weight": w}, solver="AIS(levels=6)")
        for part, w in ((slice(None), logs), (slice(5, 6), logs[:, 5]))
    )
    assert whole.rows == last.rows
    w = torch.softmax(logs[:, 5], 0)
    assert whole.rows["x[1]"]["mean"] == pytest.approx(float(w @ x[:, 5, 1]))
    assert whole.draws == 1


class Counted:
    """N(0, I) by its energy and gradient, with the rows that each was asked for."""

    event_shape = (2,)

    def __init__(self):
        self.asked = {"energy": 0, "score": 0}

    def energy(self, x):
        self.asked["energy"] += len(x)
        return (x**2).sum(1) / 2

    def score(self, x):
        self.asked["score"] += len(x)
        return -x

    def energy_and_grad(self, x):
        return self.energy(x), -self.score(x)


AT_START = 40
"""What may be asked before a run, which its cost leaves out: few rows, of `run.independence`, `run.outwards`, `run.slopes`."""


@pytest.mark.parametrize(
    "options",
    [
        {"method": "ais", "check": True},
        {"method": "smc", "check": False},
        {"kernel": stk.MALA(0.3), "moves": 7, "check": False},
    ],
    ids=["with a look", "smc", "moves"],
)
def test_a_partition_function_costs_what_it_asks(options, monkeypatch):
    """The pilot, the run, and the Hamiltonian run beside them. (That run's approach counts gradients, not energies.)"""
    for name in ("LOOK_STEPS", "LOOK_WARMUP"):
        monkeypatch.setattr(beginning, name, 20)
    field = Counted()
    found = stk.log_partition(field, NormalBase((2,), 1.3), chains=32, pilot=32, **options)
    for kind in ["score"] if options["check"] else ["energy", "score"]:
        assert 0 <= field.asked[kind] - found.cost[kind] <= AT_START, kind


class Saying:
    """A classifier that says of each row whether its number is in a list."""

    found = ()

    def __init__(self, **settings):
        pass

    def fit(self, rows, labels):
        pass

    def predict(self, rows):
        return np.isin(np.arange(len(rows)), self.found)


@pytest.mark.parametrize(("n", "m"), [(20, 8), (9, 31)])
@pytest.mark.parametrize("right", [0.0, 0.7])
def test_a_classifier_is_judged_by_its_shares_of_either_sample(n, m, right, monkeypatch):
    """Their mean, so that saying the larger sample of all is no better than chance; its p-value is hypergeometric."""
    monkeypatch.setattr("sklearn.linear_model.LogisticRegression", Saying)
    half, other = n // 2, m // 2
    ours, wrong = round(right * half), round((1 - right) * other)
    monkeypatch.setattr(Saying, "found", [*range(ours), *range(half, half + wrong)])
    x, y = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)), torch.ones(m, 2)
    found = discrepancies.classifier_test(x, y, level=0.2)
    shares = ours / half, 1 - wrong / other
    assert found.statistic == pytest.approx(sum(shares) / 2)
    called = ours + wrong
    tail = stats.hypergeom(half + other, half, called).sf
    assert found.p_value == pytest.approx(tail(ours - 1))
    limit = max(k for k in range(half + 1) if tail(k - 1) > 0.2)
    assert found.threshold == pytest.approx((limit / half + 1 - (called - limit) / other) / 2)


@pytest.mark.parametrize(("n", "m"), [(400, 400), (400, 40), (40, 400)])
def test_a_classifier_learns_either_sample_alike_whatever_their_sizes(n, m):
    """Laws two deviations apart overlap by 16 %: of either sample about that share is called the other."""
    pytest.importorskip("sklearn")
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 1, generator=generator), 2 + torch.randn(m, 1, generator=generator)
    found = discrepancies.classifier_test(x, y)
    right = float(stats.norm.cdf(1))
    error = math.sqrt(right * (1 - right) * (1 / (n // 2) + 1 / (m // 2))) / 2
    assert abs(found.statistic - right) < 3 * error + 0.02  # the rule is fitted to as many


@pytest.mark.parametrize("known", [(0, 1, 2), (0, 2, 3), (1, 4)])
def test_a_class_keeps_its_number_where_others_have_no_row(known):
    pytest.importorskip("sklearn")
    labels = torch.tensor(known).repeat(20)
    noise = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(0))
    x = 0.1 * noise + torch.stack([labels, -2.0 * labels], 1)
    judge = quality.Classifier(x, labels)
    shares = judge.probabilities(x)
    assert shares.shape == (len(x), max(known) + 1)
    torch.testing.assert_close(shares.sum(1), torch.ones(len(x), dtype=torch.float64))
    assert torch.equal(shares.argmax(1), labels)
    assert judge.accuracy(x, labels) == 1
    assert judge.judge(x).counts.tolist() == torch.bincount(labels).tolist()


def test_the_median_distance_of_many_rows_is_that_of_all(monkeypatch):
    """Of few of them, evenly spaced: whatever their order is, as those of two samples that are joined."""
    monkeypatch.setattr(discrepancies, "MEDIAN_ROWS", 60)
    near, far = np.linspace(0, 1, 300), np.linspace(40, 90, 300)
    for rows in (np.concatenate([near, far]), np.concatenate([far, near])):
        found = discrepancies._median_distance("x", rows, torch.tensor(rows)[:, None])
        right = float(torch.pdist(torch.tensor(rows)[:, None]).median())
        assert found == pytest.approx(right, rel=0.1)


@pytest.mark.parametrize("shift", [-1e5, -700.0, 0.0, 700.0, 1e5])
def test_log_weights_have_a_common_constant_that_says_nothing(shift):
    """Neither what they are worth, nor moments, nor who goes on; a log mean moves by it."""
    logs = RNG.normal(size=24)
    values, u = RNG.normal(size=24), torch.full((2,), 0.3).double()
    moved = logs + shift
    assert kish(moved) == pytest.approx(np.exp(logs).sum() ** 2 / np.exp(2 * logs).sum())
    pairs = [
        (
            list(summary._weighted(values, weights({"log_weight": w}, 24)).values()),
            resampled(torch.tensor(w).reshape(2, 12), u),
        )
        for w in (logs, moved)
    ]
    np.testing.assert_allclose(pairs[0][0], pairs[1][0], rtol=1e-8)
    assert torch.equal(pairs[0][1][0], pairs[1][1][0])
    torch.testing.assert_close(pairs[0][1][1], pairs[1][1][1])
    one, two = (_log_mean(torch.tensor(w)) for w in (logs, moved))
    assert float(two[0] - one[0]) == pytest.approx(shift)
    assert [float(v) for v in two[1:]] == pytest.approx([float(v) for v in one[1:]])
    assert pilot._variance(torch.tensor(moved)) == pytest.approx(
        pilot._variance(torch.tensor(logs))
    )
    families = _families(torch.tensor(moved), torch.arange(24) // 4 * 4)
    assert float(families.logsumexp(0)) == pytest.approx(
        float(torch.tensor(logs).logsumexp(0)) + shift
    )


def test_chains_that_stay_at_places_of_their_own_are_worth_no_more_than_they_are_many():
    """Only where all chains are at one place is every draw as good as any other."""
    for count in (2, 5, 9):
        apart = np.repeat(np.arange(float(count))[None, :, None], 60, 2)
        assert mixing.effective(apart)[0] <= count
        assert mixing.effective(apart * 0)[0] == count * 60


@pytest.mark.parametrize("most", [50, 1000])
def test_ranks_are_of_few_draws_and_errors_of_all(most):
    """However few draws of a long run are ranked."""
    values = chains()[1]
    found = summary._of_chains(values, most)
    few = values[None, :, :: math.ceil(values.size / most)]
    assert found["mcse_mean"] == mixing.mcse_mean(values[None])[0]
    assert found["mcse_sd"] == mixing.mcse_sd(values[None])[0]
    assert found["ess_bulk"] == mixing.effective(mixing.normal_scores(mixing.split(few)))[0]
    assert found["ess_tail"] == mixing.tail_effective(few)[0]


@pytest.mark.parametrize("n", [1, 3, 7, 15])
def test_draws_for_who_asks_for_a_number_come_evenly_from_all_chains(n):
    x = torch.arange(15).reshape(3, 5, 1)
    found = _spread(x, n)[:, 0]
    assert len(found.unique()) == n
    counts = (found // 5).bincount(minlength=3)
    assert counts.max() - counts.min() <= 1
    with pytest.raises(stk.InvalidArgument, match="at most 15 draws"):
        _spread(x, 16)
