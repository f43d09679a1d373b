"""Twisted sequential Monte Carlo against the law that it is exact for, at few steps and by any guidance; and the posterior."""

import math
from itertools import pairwise

import pytest
import torch

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.diagnostics import sliced_wasserstein
from scoretk.fields.resolve import resolve
from scoretk.models.targets.mixture import GaussianMixture, gaussian
from scoretk.solvers import twisted as module
from scoretk.solvers.twisted import TwistedSMC
from tests.evidence import z_limit

OPERATOR = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
STD, Y = 0.4, torch.tensor([0.6], dtype=torch.float64)
PRIOR = GaussianMixture(
    torch.tensor([[-1.5, 0.0], [1.0, 1.0], [0.5, -1.5]], dtype=torch.float64),
    torch.tensor([0.4, 0.6, 0.3], dtype=torch.float64),
    torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64),
)
TIMED = PRIOR.noised(stk.VP())
ISLAND = 16
RUN = {"dtype": torch.float64, "progress": False}


def linear(y=Y):
    return stk.LinearGaussian(stk.fields.Matrix(OPERATOR), y, STD)


def log_likelihood(x):
    """Of the distance from the origin: no linear measurement."""
    return -((x.square().sum(1) - 1.0) ** 2) / (2 * 0.5**2)


class Astray:
    """Guidance that is wrong in direction and size."""

    def shift(self, likelihood, prior, cond):
        return 0.1 * (prior.data.roll(1, 1) + 1)

    differentiates = False


CASES = {
    "mmps": (linear(), "mmps"),
    "pigdm": (linear(), "pigdm"),
    "dps": (linear(), "dps"),
    "replacement": (linear(), "replacement"),
    "tmpd": (linear(), "tmpd"),
    "diffpir": (linear(), "diffpir"),
    "astray": (linear(), Astray()),
    "any": (log_likelihood, "dps"),
}


def per_island(draws, statistic):
    """The mean over each island of its weighted statistic: unbiased for `E[L(x) statistic(x)]` over prior draws."""
    weight = draws.stats["log_weight"].reshape(len(draws.final), -1)[:, -1].exp()
    return (weight * statistic).reshape(-1, ISLAND).mean(1)


def gaps(case, steps, islands=600, prior_draws=60_000):
    likelihood, method = CASES[case]
    return gaps_of(stk.posterior(TIMED, likelihood, method), steps, islands, prior_draws)


def gaps_of(field, steps, islands, prior_draws):
    """z of the evidence, and of the weighted means of x and of |x|^2, against weighted draws of the prior's own steps."""
    own = stk.sample(
        field, TwistedSMC(steps, island=ISLAND), chains=ISLAND * islands, seed=1, keep="last", **RUN
    )
    prior = stk.sample(
        TIMED,
        stk.ReverseSDE("ancestral", steps=steps),
        chains=prior_draws,
        seed=2,
        keep="last",
        **RUN,
    ).final
    chance = field.log_likelihood(prior).exp()
    found = []
    for f in (lambda x: 1.0, lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x.square().sum(1)):
        a, b = per_island(own, f(own.final)), chance * f(prior)
        error = math.hypot(float(a.std()) / len(a) ** 0.5, float(b.std()) / len(b) ** 0.5)
        found.append(float(a.mean() - b.mean()) / error)
    return torch.tensor(found).abs().max()


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c in ("mmps", "any") else pytest.mark.slow) for c in CASES]
)
def test_weighted_draws_have_the_law_of_the_prior_s_steps_times_the_likelihood(case):
    assert gaps(case, 5) < z_limit(4)


def twice(a="mmps", b="dps"):
    """Measured twice, once linearly."""
    return stk.posterior(stk.posterior(TIMED, linear(), a), log_likelihood, b)


def test_all_measurements_of_a_posterior_of_a_posterior_are_weighed():
    """The inner one alone by its guidance would leave log p(y) that of the outer one given it."""
    field, x = twice(), torch.tensor([[0.3, -1.0], [1.0, 0.6]], dtype=torch.float64)
    both = linear().log_likelihood(x) + log_likelihood(x)
    torch.testing.assert_close(field.log_likelihood(x), both)
    assert gaps_of(field, 5, 400, 60_000) < z_limit(4)


def test_the_conditions_of_both_measurements_reach_them():
    field = stk.posterior(stk.posterior(TIMED, linear("y"), "mmps"), linear("z"), "pigdm")
    x = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    cond = {"y": Y[None], "z": 2 * Y[None]}
    both = linear().log_likelihood(x) + linear(2 * Y).log_likelihood(x)
    torch.testing.assert_close(field.log_likelihood(x, **cond), both)
    there = stk.posterior(stk.posterior(TIMED, linear(), "mmps"), linear(2 * Y), "pigdm")
    for found, known in zip(field.twist(x, 0.6, **cond), there.twist(x, 0.6), strict=True):
        torch.testing.assert_close(found, known)
    rows = {name: value.expand(16, 1) for name, value in cond.items()}
    draws = stk.sample(field, TwistedSMC(4, island=16), chains=16, cond=rows, **RUN)
    alike = stk.sample(there, TwistedSMC(4, island=16), chains=16, **RUN)
    torch.testing.assert_close(draws.final, alike.final)


MEASURED = stk.posterior(TIMED, linear(), "mmps")
WITHIN = {
    "guided": stk.guided(MEASURED, 2.0, TIMED),
    "away from it": stk.guided(TIMED, 2.0, MEASURED),
    "by a classifier": stk.classifier_guided(MEASURED, lambda x, t: -x.square().sum(1)),
    "a posterior of one guided": stk.posterior(stk.guided(MEASURED, 2.0, TIMED), linear(), "pigdm"),
}
"""Fields with a measurement inside that no weight would know: log p(y) was 0, or that of the outer one, without a word."""


@pytest.mark.parametrize("of", WITHIN)
@pytest.mark.parametrize("solver", [TwistedSMC(2, island=2), stk.SplitGibbs(), stk.DAPS()])
def test_measurements_that_would_be_left_to_guidance_are_refused(of, solver):
    match = r"field: expected no posterior inside .* left to its guidance\. Measure last"
    with pytest.raises(stk.InvalidArgument, match=match):
        stk.sample(WITHIN[of], solver, chains=2, **RUN)


@pytest.mark.parametrize("solver", [stk.SplitGibbs(), stk.DAPS()])
def test_draws_by_a_measurement_are_by_one(solver):
    field = stk.posterior(MEASURED, linear(), "mmps")
    with pytest.raises(
        stk.InvalidArgument, match=r"no posterior inside .* of all rows, each divid"
    ):
        stk.sample(field, solver, chains=2, **RUN)


def gaussian_gaps(method, y=2.0, std=0.5, steps=16, islands=250):
    """z of the evidence and the first two moments, of N(0, 1) measured once: by the steps' linear recursion."""
    prior = GaussianMixture(
        *(torch.tensor(v, dtype=torch.float64) for v in ([[0.0]], [1.0], [1.0]))
    )
    field = prior.noised(stk.VP())
    solver = TwistedSMC(steps, island=ISLAND)
    x, noise = torch.ones(ISLAND, 1, dtype=torch.float64), Noise(0, ISLAND, dtype=torch.float64)
    resolved = resolve(field, {"denoise"}, timed=True)
    variance = 1.0
    for row in solver.init(resolved, x, noise).table:
        t, a, b, _, spread, _ = row.tolist()
        factor = a + b * float(field.denoise(x, t)[0])
        variance = factor**2 * variance + spread**2
    total = variance + std**2
    evidence = math.exp(-(y**2) / (2 * total)) / math.sqrt(2 * math.pi * total)
    mean, left = variance / total * y, variance * std**2 / total
    seen = stk.LinearGaussian(
        torch.eye(1, dtype=torch.float64), torch.tensor([y], dtype=torch.float64), std
    )
    draws = stk.sample(
        stk.posterior(field, seen, method), solver, chains=ISLAND * islands, keep="last", **RUN
    )
    z = []
    for f, truth in (
        (1.0, 1.0),
        (draws.final[:, 0], mean),
        (draws.final[:, 0] ** 2, mean**2 + left),
    ):
        values = per_island(draws, f) / evidence - truth
        z.append(float(values.mean() / values.std() * islands**0.5))
    return torch.tensor(z).abs().max()


@pytest.mark.parametrize("method", ["mmps", "dps", Astray()])
def test_a_gaussian_posterior_and_its_evidence_are_exact(method):
    assert gaussian_gaps(method) < z_limit(3)


def test_the_twist_of_a_single_step_is_paid(monkeypatch):
    """A mutant whose steps forget the twist before them has another evidence."""
    weighed = module._weighed
    monkeypatch.setattr(
        module,
        "_weighed",
        lambda state, log_twist: weighed(state._replace(log_twist=0 * log_twist), log_twist),
    )
    assert gaps("mmps", 5, 1000, 50_000) > 1.5 * z_limit(4)


def test_a_proposal_that_is_not_weighed_is_seen(monkeypatch):
    monkeypatch.setattr(module, "row_sum", lambda x: torch.zeros(len(x), dtype=x.dtype))
    assert gaps("astray", 5, 400, 50_000) > 2 * z_limit(4)


def exact(n, seed):
    """Draws of the posterior of the linear measurement, a mixture again."""
    generator = torch.Generator().manual_seed(seed)
    variance = PRIOR.stds**2
    s = variance * OPERATOR.square().sum() + STD**2
    residual = Y - (PRIOR.means @ OPERATOR.T)[:, 0]
    log_weight = PRIOR.weights.log() - residual**2 / (2 * s) - s.log() / 2
    evidence = (log_weight - math.log(2 * math.pi) / 2).logsumexp(0) - PRIOR.weights.sum().log()
    gain = variance[:, None] * OPERATOR / s[:, None]
    means = PRIOR.means + gain * residual[:, None]
    which = torch.multinomial(log_weight.softmax(0), n, True, generator=generator)
    covariance = (
        torch.diag_embed(variance[:, None].expand(-1, 2))
        - gain[..., None] * (variance[:, None] * OPERATOR)[:, None]
    )
    root = torch.linalg.cholesky(covariance)
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return means[which] + (root[which] @ z[..., None])[..., 0], float(evidence)


@pytest.mark.slow
def test_it_is_the_posterior_and_its_guidance_alone_is_not():
    n = 4096
    truth, evidence = exact(n, 0)
    field = stk.posterior(TIMED, linear(), "mmps")
    draws = stk.sample(field, TwistedSMC(100, island=n), chains=n, keep="last", **RUN)
    plain = stk.sample(field, stk.ReverseSDE("ancestral", steps=100), chains=n, keep="last", **RUN)
    floor = sliced_wasserstein(truth, exact(n, 1)[0])
    assert sliced_wasserstein(truth, draws.final) < 3 * floor
    assert sliced_wasserstein(truth, plain.final) > 4 * floor
    found = stk.log_evidence(draws)
    assert abs(float(found.value) - evidence) < 4 * float(found.stderr) + 0.01
    assert int(found.status) == stk.Status.OK


def test_a_prior_whose_likelihood_is_flat_has_equal_weights():
    field = stk.posterior(TIMED, lambda x: 0 * x.sum(1), "dps")
    draws = stk.sample(field, TwistedSMC(4, island=8), chains=16, **RUN)
    assert torch.equal(draws.stats["log_weight"].flatten(), torch.zeros(16, dtype=torch.float64))
    found = stk.log_evidence(draws)
    assert float(found.value) == 0.0
    plain = stk.sample(TIMED, TwistedSMC(4, island=8), chains=16, **RUN)
    same = stk.sample(TIMED, stk.ReverseSDE("ancestral", steps=4), chains=16, **RUN)
    torch.testing.assert_close(plain.final, same.final)


@pytest.mark.filterwarnings("ignore:log_evidence")
def test_islands_are_of_one_measurement():
    field = stk.posterior(TIMED, linear("y"), "mmps")
    y = torch.tensor([[0.6], [-1.0]], dtype=torch.float64)
    run = {"chains": 32, "keep": "last", **RUN}
    draws = stk.sample(
        field, TwistedSMC(6, island=16), cond={"y": y.repeat_interleave(16, 0)}, **run
    )
    first, second = (stk.log_evidence(draws[part]) for part in (slice(0, 16), slice(16, 32)))
    assert float(first.value) != float(second.value)
    with pytest.raises(stk.InvalidArgument, match="one measurement"):
        stk.log_evidence(draws)
    with pytest.raises(stk.InvalidArgument, match="equal rows within each island"):
        stk.sample(field, TwistedSMC(6, island=16), cond={"y": y.repeat(16, 1)}, **run)
    alone = stk.sample(
        field, TwistedSMC(6, island=16), cond={"y": y[:1].expand(16, 1)}, **run | {"chains": 16}
    )
    assert torch.equal(alone.final, draws.final[:16])
    with pytest.raises(stk.InvalidArgument, match="which have weights"):
        stk.log_evidence(stk.sample(TIMED, stk.ReverseSDE(steps=4), chains=4, **RUN))


@pytest.mark.filterwarnings("ignore:log_evidence")
def test_measurements_that_hold_the_same_numbers_are_told_apart():
    pair = stk.LinearGaussian(stk.fields.Matrix(torch.eye(2, dtype=torch.float64)), "y", STD)
    y = torch.tensor([[0.6, -1.0], [-1.0, 0.6]], dtype=torch.float64).repeat_interleave(16, 0)
    draws = stk.sample(
        stk.posterior(TIMED, pair, "mmps"),
        TwistedSMC(6, island=16),
        chains=32,
        cond={"y": y},
        **RUN,
    )
    stk.log_evidence(draws[:16])
    with pytest.raises(stk.InvalidArgument, match="one measurement"):
        stk.log_evidence(draws)


def test_chains_know_from_which_start_they_descend():
    """One of their own island and, from step to step, one of those whose line had not ended."""
    field = stk.posterior(TIMED, log_likelihood, "dps")
    solver = TwistedSMC(8, island=ISLAND)
    draws = stk.sample(field, solver, chains=range(64, 128), keep="all", **RUN)
    ancestor = draws.stats["ancestor"].long()
    assert torch.equal(ancestor // ISLAND, (torch.arange(64, 128) // ISLAND)[:, None].expand(64, 8))
    for island in ancestor.split(ISLAND):
        lines = [set(step.tolist()) for step in island.T]
        assert all(later <= earlier for earlier, later in pairwise(lines))
        assert len(lines[-1]) < ISLAND


@pytest.mark.filterwarnings("ignore:log_evidence")
def test_where_the_likelihood_is_zero_the_weight_is_zero():
    field = stk.posterior(
        TIMED, lambda x: torch.where(x[:, 0] > 0, -0.1 * x.square().sum(1), -torch.inf), "dps"
    )
    draws = stk.sample(field, TwistedSMC(6, island=64), chains=64, keep="last", **RUN)
    assert bool((draws.final[:, 0] > 0).all())
    assert bool(draws.ok.all())


NARROW = gaussian(dim=2, std=0.3).noised(stk.VP())


def failing(early, late, bound):
    """As `NARROW`, of a network that is not finite where the second entry is large, between two times."""

    def denoised(x, t):
        lost = (x[:, 1] > bound) & (t > early) & (t < late)
        return torch.where(lost[:, None], torch.nan, NARROW.denoise(x, t))

    return stk.Diffusion(denoised, (2,), predicts="data")


@pytest.mark.parametrize("where", [(0.4, 0.55, 0.8), (0.85, 1.0, 0.4)])
def test_no_chain_goes_on_from_one_that_has_failed(where):
    """Its position is of an earlier level, and was handed on in every resampling, to chains that were well."""
    row = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    seen = stk.LinearGaussian(row, torch.zeros(1, dtype=torch.float64), 1.0)
    solver = TwistedSMC(16, island=64, threshold=1.0)
    draws, right = (
        stk.sample(stk.posterior(field, seen, "replacement"), solver, chains=1024, **RUN)
        for field in (failing(*where), NARROW)
    )
    assert 0.02 < float((~draws.ok).double().mean()) < 0.5
    # what fails has nothing to do with the first entry, whose law stays as it is
    ratio = float(draws.final[draws.ok, 0].std() / right.final[:, 0].std())
    assert ratio == pytest.approx(1, abs=0.15)
    with pytest.warns(UserWarning, match="chains failed"):
        assert math.isnan(float(stk.log_evidence(draws).value))


@pytest.mark.parametrize(
    "make",
    [
        lambda: TwistedSMC(0),
        lambda: TwistedSMC(island=1),
        lambda: TwistedSMC(threshold=1.5),
        lambda: TwistedSMC(grid=(0.5, 0.2)),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(stk.InvalidArgument):
        make()


def test_evidence_of_what_has_none():
    """Moments hold the mean of the weights on the way; of failed chains, and of one, there is no error."""
    solver, run = TwistedSMC(6, island=16), {"chains": 32, **RUN}
    field = stk.posterior(TIMED, linear(), "mmps")
    with pytest.raises(stk.InvalidArgument, match="'all' or 'last': of moments"):
        stk.log_evidence(stk.sample(field, solver, keep="moments", **run))
    with pytest.warns(UserWarning, match="standard error is nan"):
        alone = stk.log_evidence(stk.sample(field, solver, **run)[3:4])
    assert math.isnan(float(alone.stderr))
    impossible = stk.posterior(TIMED, lambda x: 0 * x[:, 0] + math.nan, "dps")
    missing = stk.posterior(TIMED, linear("y"), "mmps")
    y = torch.full((32, 1), math.nan, dtype=torch.float64)
    for posterior, cond in ((impossible, None), (missing, {"y": y})):
        draws = stk.sample(posterior, solver, cond=cond, **run)
        with pytest.warns(UserWarning, match="32 of 32 chains failed"):
            found = stk.log_evidence(draws)
        assert stk.Status(int(found.status)) is stk.Status.NONFINITE
        assert math.isnan(float(found.value))


def test_conditions_of_a_posterior_have_names():
    prior = stk.Diffusion(lambda x, t: x / 2, (2,), predicts="data")
    field, y = stk.posterior(prior, linear("y"), "mmps"), torch.ones(16, 1, dtype=torch.float64)
    with pytest.raises(stk.InvalidArgument, match="takes: y, got 'y, z'"):
        stk.sample(field, stk.ReverseSDE(steps=2), chains=16, cond={"y": y, "z": y}, **RUN)
    static = stk.posterior(
        stk.Energy(lambda x: x.square().sum(1), (2,)), lambda x, y: -(x - y).square().sum(1)
    )
    with pytest.raises(stk.InvalidArgument, match=r"takes: none.*measured="):
        stk.sample(static, stk.ULA(0.1), chains=16, steps=2, cond={"y": y}, **RUN)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:log_evidence")
def test_evidence_by_opposed_measurements_is_not_too_low():
    """Where row sums of the covariance are too small for what entries of y say against each other: a twist made
    of them was so sure that no chain came where the weight was (13 errors too low in the sum of five runs).
    """
    operator = torch.tensor([[1.0, 0.9], [-0.8, -1.0], [0.9, -0.2]], dtype=torch.float64)
    y = torch.tensor([1.2, -1.3, 0.2], dtype=torch.float64)
    prior = stk.Diffusion(_denoised, (2,), predicts="data")
    apart = []
    for seed in range(5):
        tmpd, mmps = (
            stk.log_evidence(
                stk.sample(
                    stk.posterior(prior, stk.LinearGaussian(operator, y, 0.3), method),
                    TwistedSMC(24, island=128),
                    chains=512,
                    **RUN | {"seed": seed},
                )
            )
            for method in ("tmpd", "mmps")
        )
        apart.append(float((tmpd.value - mmps.value) / torch.hypot(tmpd.stderr, mmps.stderr)))
    assert abs(sum(apart)) / math.sqrt(len(apart)) < z_limit()


def _denoised(x, t):
    """The denoiser of N(0, diag(2, .4)) under VP."""
    path, variance = stk.VP(), torch.tensor([2.0, 0.4], dtype=x.dtype)
    alpha, sigma = (c(t.double()).to(x)[:, None] for c in (path.alpha, path.sigma))
    return alpha * variance * x / (alpha**2 * variance + sigma**2)
