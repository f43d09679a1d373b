"""Verdicts that can be trusted: nothing is found in well-mixed runs, something in every broken one, and by the right test."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import scoretk as stk
from scoretk.diagnostics import judging, mixing, verdict
from scoretk.diagnostics.judging import RATE
from scoretk.diagnostics.verdict import Sampler
from scoretk.errors import Status
from scoretk.models.targets.mixture import gaussian
from tests.marks import slow_but
from tests.recorded import recorded
from tests.verdicts import (
    BROKEN,
    REAL,
    SYNTHETIC,
    Run,
    autoregressive,
    drawn,
    independent,
    normal,
    ornstein,
    rate,
)

BY_NAME = {run.name: run for run in BROKEN}
DRIFTS, DIFFERS = "ULA on its way to 100", "half of the chains at twice the spread"


def small(run: Run) -> bool:
    return " 300" not in run.name and " 500" not in run.name and "1000)" not in run.name


def kinds(run: Run, seed: int = 0) -> set[str]:
    return {finding.kind for finding in run.summary(seed).findings}


@pytest.mark.parametrize(
    "run", [run for run in SYNTHETIC if small(run)][::2], ids=lambda run: run.name
)
def test_nothing_is_found_in_a_well_mixed_run(run):
    summary = run.summary(7)
    assert summary.ok, summary.verdict
    recorded(f"summary of: {run.name}, 7", (summary, str(summary)))


@pytest.mark.slow
def test_nothing_is_found_in_a_thousand_coordinates():
    assert drawn(independent(3, 64, 60, 1000)).summary(most=1).ok


@pytest.mark.parametrize(
    "run",
    [run for run in REAL if run.name in ("ULA", "probability flow")],
    ids=lambda run: run.name,
)
def test_nothing_is_found_in_a_real_run(run):
    assert run.summary(1).ok, run.summary(1).verdict


@pytest.mark.slow
def test_the_rate_of_false_alarms():
    """Over more than 200 well-mixed runs, of each table and of both, at most 2 % raise a finding."""
    for runs, seeds in ((SYNTHETIC, range(4)), (REAL, range(9))):
        flagged, total, names = rate(runs, seeds)
        assert total > 200
        assert flagged <= 0.02 * total, names


CHEAP = [
    run
    for run in BROKEN
    if small(run) and not (run.name.startswith(("HMC", "MALA", "underdamped")))
]


ALIKE = ("ULA on its way to sd 10", "ULA on its way to 100, warmup 200")
"""As a run that is cheaper."""


def test_the_tables_are_as_large_as_they_say():
    assert len(BROKEN) > 50
    assert len(CHEAP) > 25


@pytest.mark.parametrize(
    "run",
    slow_but(CHEAP, *(run for run in CHEAP if run.name not in ALIKE)),
    ids=lambda run: run.name,
)
def test_every_broken_run_is_found(run):
    summary = run.summary(0)
    assert not summary.ok
    recorded(f"summary of: {run.name}", (summary, str(summary)))


@pytest.mark.slow
@pytest.mark.parametrize("run", BROKEN, ids=lambda run: run.name)
def test_every_broken_run_is_found_from_other_seeds(run):
    assert not any(run.summary(seed).ok for seed in (1, 2))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (DRIFTS, "drift"),
        (DRIFTS, "disagree"),
        ("the spread grows", "drift"),
        (DIFFERS, "disagree"),
        (DIFFERS, "memory"),
        ("one chain of 64 at twice the spread", "apart"),
        ("half of the chains freeze half-way", "stuck"),
        ("a coordinate that never moves", "stuck"),
        ("an infinite draw", "broken"),
        ("a clamp at 1", "clamp"),
        ("the edge of float32", "clamp"),
        ("kept in bfloat16", "grid"),
        ("chains that are copies", "copies"),
        ("bits that alternate from one start", "period"),
        ("bits that alternate, thinned, from one start", "period"),
        ("AIS in too few levels", "weights"),
        ("three draws of each chain", "unjudged"),
    ],
)
def test_what_is_found_is_the_cause(name, kind):
    assert kind in kinds(BY_NAME[name])


def test_r_hat_is_said_by_itself_where_the_chains_drift_together():
    problems = [finding.problem for finding in BY_NAME[DRIFTS].summary(1).findings]
    assert any("R-hat of x[0] is 1.67" in problem for problem in problems)
    assert not any("alternate" in problem for problem in problems)


# ---- the tests behind it ------------------------------------------------------------------------------------------------


def whitened(**size):
    return mixing.normal_scores(autoregressive(5, **size).double().movedim(2, 0).numpy())


@pytest.mark.parametrize(
    "size",
    [
        {"chains": 16, "n": 50, "keep": 0.0},
        {"chains": 64, "n": 100, "keep": 0.7},
        {"chains": 4, "n": 400, "keep": 0.5},
        {"chains": 256, "n": 8, "keep": 0.0},
        {"chains": 64, "n": 100, "keep": -0.7},
    ],
    ids=str,
)
def test_deviates_are_standard_normal_where_chains_agree(size):
    """Of 300 independent coordinates, for autocorrelation times to n / 18: Kolmogorov-Smirnov at 1e-6 each."""
    x = whitened(d=300, **size)
    smooth = np.zeros(300, bool)
    for z in (mixing.drift(x, smooth)[0], mixing.alternation(x, smooth)[0], mixing.memory(x)[0]):
        if not np.isnan(z).all():
            assert stats.kstest(z, "norm").pvalue > 1e-6
            assert abs(z).max() < 5.2
    assert (mixing.between(mixing.split(x), judging.SLACK) < 4.5).all()
    limit = -stats.norm.ppf(math.sqrt(RATE / (4 * 300 * x.shape[1])))
    assert not mixing.outlying(x, limit).any()


def test_few_values_that_differ_alike_by_chance_are_no_drift():
    """Four chains of a rare event: all differences of halves may be equal, which Student's t takes for infinitely improbable."""
    x = (normal(0, 4, 100, 500) > 2.6).double().movedim(2, 0).numpy()
    plain = mixing.drift(x, np.zeros(500, bool))[0]
    bounded = mixing.drift(x, np.ones(500, bool))[0]
    assert np.nanmax(abs(plain)) > 10
    assert np.nanmax(abs(bounded)) <= 2


def test_deviates_of_t_and_f():
    for p in (1e-3, 1e-5, 1e-7):
        z = stats.norm.isf(p)
        for degrees in (7, 15, 63, 1000):
            assert 0.98 * z < mixing.t_deviate(stats.t.isf(p, degrees), degrees) <= z
        for above, below in ((3, 15), (3, 63), (3, 1000), (127, 2000)):
            assert 0.94 * z < mixing.f_deviate(stats.f.isf(p, above, below), above, below) <= z


def test_nested_r_hat_is_that_of_its_definition():
    x = normal(1, 12, 40, 2).double()
    x[:6, :, 0] += 1
    by_superchain = x[..., 0].reshape(3, 4, 40)
    means = by_superchain.mean((1, 2))
    within = (by_superchain.var(2).mean(1) + by_superchain.mean(2).var(1)).mean()
    expected = math.sqrt(1 + float(means.var() / within))
    assert float(stk.diagnostics.nested_rhat(x, 3)[0]) == pytest.approx(expected, rel=1e-12)
    assert (
        float(stk.diagnostics.nested_rhat(x, 2)[0])
        > 1.1
        > float(stk.diagnostics.nested_rhat(x, 2)[1])
    )
    for superchains in (5, 1, 12):
        with pytest.raises(stk.InvalidArgument, match="superchains"):
            stk.diagnostics.nested_rhat(x, superchains)


@pytest.mark.parametrize(("n", "keep"), [(40, 0.5), (2000, 0.97), (9, 0.0)])
def test_many_coordinates_at_once_are_each_by_itself(n, keep):
    x = autoregressive(2, 3, n, 7, keep)
    for measure in (stk.diagnostics.ess, stk.diagnostics.rhat, stk.diagnostics.mcse):
        together = measure(x)
        assert torch.equal(together, torch.stack([measure(x[..., i]) for i in range(7)]))


# ---- what else is said --------------------------------------------------------------------------------------------------


def test_antithetic_chains_are_not_blamed():
    summary = drawn(autoregressive(0, 64, 300, 2, -0.9)).summary()
    assert summary.ok, summary.verdict
    assert summary.rows["x[0]"]["ess_bulk"] > 64 * 300


def test_constants_of_structure_are_no_finding():
    """The zeros of a Cholesky factor, a coordinate at one value in every chain; but not all of them."""
    summary = drawn(torch.tril(independent(0, 64, 100, 9).unflatten(2, (3, 3)))).summary()
    assert summary.ok, summary.verdict
    assert not drawn(torch.zeros(64, 100, 9)).summary().ok


def test_advice_names_settings_that_the_solver_has():
    for solver in (
        stk.ULA(0.1),
        stk.MALA(0.1),
        stk.HMC(),
        stk.ChEES(),
        stk.GibbsWithGradients(),
        stk.BlockGibbs(),
        stk.Underdamped(0.1),
        stk.ParallelTempering(),
        stk.AIS(),
    ):
        sampler = Sampler(repr(solver))
        assert sampler.settings == set(vars(solver)), solver
        advice = sampler.smaller_steps + sampler.tempering
        named = {name for name in ("step_size", "accept", "replicas", "hottest") if name in advice}
        assert named <= sampler.settings | sampler.kernel.settings, (solver, named)
    assert Sampler(repr(stk.AIS())).independent
    assert not Sampler(repr(stk.NUTS())).independent
    assert Sampler(repr(stk.ParallelTempering(stk.GibbsWithGradients()))).discrete


def test_stuck_modes_point_to_tempering():
    fixes = {
        finding.kind: finding.fix
        for finding in BY_NAME["modes that never change"].summary().findings
    }
    assert "ParallelTempering" in fixes["disagree"]
    assert "times the steps or the chains" not in fixes["few"]


def test_independent_draws_are_not_taken_for_chains():
    draws = stk.sample(gaussian(2), stk.SMC(30), chains=256, seed=1, keep="all")
    summary = draws.summary()
    assert summary.ok, summary.verdict
    assert "No problem found" not in summary.verdict
    assert (summary.draws, summary.chains) == (1, 256)
    assert summary.rows["x[0]"]["mcse_mean"] == pytest.approx(1 / 16, rel=0.3)


def test_weighted_draws_are_weighted():
    target = ornstein(2, 0.7)
    draws = stk.sample(target, stk.AIS(30), chains=2000, seed=3)
    row = draws.summary().rows["x[0]"]
    assert abs(row["mean"] - 2) < 4.5 * row["mcse_mean"]
    assert abs(row["sd"] - 0.7) < 4.5 * row["mcse_sd"]
    weight = draws.stats["log_weight"].softmax(0)
    assert row["ess_bulk"] == pytest.approx(float(1 / weight.square().sum()))


def test_copies_among_resampled_draws_are_found():
    x = normal(0, 512, 1, 3)
    draws = drawn(x[torch.arange(512) % 20])
    draws.provenance["solver"] = repr(stk.SMC())
    assert [finding.kind for finding in draws.summary().findings] == ["copies"]


def test_equal_states_are_no_copies():
    spins = (
        torch.randint(2, (200, 16), generator=torch.Generator().manual_seed(0))
        .mul(2)
        .sub(1)
        .numpy()
    )
    assert verdict.different(spins[:, :4].astype(np.float32)) is None
    assert verdict.different(0.3 * spins[:, :4]) is None
    assert verdict.different(normal(0, 20, 3)[torch.arange(200) % 20].numpy()) == 20


def test_a_last_draw_of_each_chain_is_not_called_fine():
    assert not stk.sample(gaussian(2), stk.ULA(0.1), chains=64, steps=50, keep="last").summary().ok


def test_a_chain_that_stays_by_chance_is_not_stuck():
    """Five draws of chains that accept half of their proposals: one in sixteen never moves."""
    x = normal(0, 400, 5, 2)
    moved = torch.rand(400, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    for t in range(1, 5):
        x[:, t] = torch.where(moved[:, t, None], x[:, t], x[:, t - 1])
    assert "stuck" not in {finding.kind for finding in drawn(x).summary().findings}
    frozen = x.clone()
    frozen[:200] = x[:200, :1]
    assert "stuck" in {finding.kind for finding in drawn(frozen).summary().findings}


@pytest.mark.parametrize("chains", [200, 2000])
def test_of_many_chains_some_stay_for_long_by_chance(chains):
    """Half of the proposals are accepted, and some chain stays for a fifth of the run; one that stays for half of it is stuck."""
    generator = torch.Generator().manual_seed(5)
    x = normal(0, chains, 60, 1)
    moved = torch.rand(chains, 60, generator=generator) < 0.5
    for t in range(1, 60):
        x[:, t] = torch.where(moved[:, t, None], x[:, t], x[:, t - 1])
    assert (moved[:, 1:].unfold(1, 12, 1).sum(2) == 0).any()
    assert "stuck" not in {finding.kind for finding in drawn(x).summary().findings}
    x[7, 20:50] = x[7, 20]
    assert "stuck" in {finding.kind for finding in drawn(x).summary().findings}


# ---- mutants ------------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_summary_without_drift_misses_a_trend(monkeypatch):
    trend = Run(
        "trend",
        lambda seed: (
            autoregressive(seed, 256, 300, 2, 0.5) + torch.linspace(0, 0.25, 300)[None, :, None]
        ),
    )
    assert kinds(trend) == {"drift", "disagree"} or kinds(trend) == {"drift"}
    monkeypatch.setattr(judging, "drift", lambda x, lattice: (np.zeros(len(x)), np.zeros(len(x))))
    assert not kinds(trend)


def test_a_summary_without_folding_misses_what_is_in_the_spread(monkeypatch):
    monkeypatch.setattr(judging, "fold", lambda x: x)
    assert not kinds(BY_NAME[DIFFERS])


@pytest.mark.thorough
def test_a_summary_of_a_hundred_coordinates_misses_the_one(monkeypatch):
    run = Run("one of 300", lambda seed: autoregressive(seed, 32, 100, 300, 0.3) + drifting_at(218))
    assert "drift" in kinds(run)
    chosen = np.unique(np.linspace(0, 299, 100).round().astype(int))
    assert 218 not in chosen
    judge = verdict.judge
    monkeypatch.setattr(
        verdict,
        "judge",
        lambda x, names, discrete: (
            judge(x[:, :, chosen], [names[i] for i in chosen], discrete)
            if x.shape[2] == 300
            else judge(x, names, discrete)
        ),
    )
    assert not kinds(run)


def drifting_at(coordinate):
    by = torch.zeros(1, 100, 300)
    by[..., coordinate] = torch.linspace(0, 3, 100)
    return by


def test_a_summary_that_does_not_turn_misses_period_two(monkeypatch):
    monkeypatch.setattr(judging, "flipped", lambda x: x)
    monkeypatch.setattr(judging, "alternation", judging.drift)
    assert not kinds(BY_NAME["bits that alternate"])


def few_far_draws(seed: int) -> torch.Tensor:
    """Chains that have come from 50 standard deviations away within 1 % of the draws, with them the mean is .5 too large."""
    x = autoregressive(seed, 64, 300, 2, 0.5)
    x[:, :3] += 50
    return x


def test_a_few_draws_from_far_away_drift_in_their_mean_only(monkeypatch):
    """The mutant: by ranks alone nothing is found, and the mean's error is said to be .06."""
    found = drawn(few_far_draws(3)).summary()
    assert {f.kind for f in found.findings} == {"drift"}
    assert "their mean" in found.verdict
    monkeypatch.setattr(
        judging, "drift", lambda v, lattice: mixing.drift(mixing.normal_scores(v), lattice)
    )
    blind = drawn(few_far_draws(3)).summary()
    assert blind.ok
    assert blind.rows["x[0]"]["mean"] > 5 * blind.rows["x[0]"]["mcse_mean"]


@pytest.mark.parametrize(
    ("dtype", "far", "said"),
    [
        (torch.float32, 3e38, True),
        (torch.float32, -1e20, True),
        (torch.float32, 1e18, False),
        (torch.float64, 1e20, False),
        (torch.float64, 1e200, True),
        (torch.float32, -math.inf, True),
        (torch.float32, math.nan, True),
    ],
)
def test_numbers_whose_squares_the_dtype_does_not_hold_are_said(dtype, far, said):
    x = autoregressive(3, 8, 1000, 2, 0.5).to(dtype)
    x[0, 5, 1] = far
    assert ("broken" in {f.kind for f in drawn(x).summary().findings}) == said


@pytest.mark.thorough
def test_rounding_at_an_end_is_no_clamp_where_the_law_is_known_in_free_space():
    """Beta(.1, .1) has a tenth of its mass nearer to 1 than float32 tells: exact by the density of z, lost by that of x."""
    beta = torch.distributions.Beta(torch.tensor(0.1), torch.tensor(0.1))
    steady = stk.HMC(1.0, leapfrogs=4, metric="none")
    exact = stk.sample(beta, steady, chains=64, steps=120, warmup=50, seed=1)
    by_x = stk.constrained(
        stk.Energy(lambda x: -beta.log_prob(x), ()), torch.distributions.constraints.unit_interval
    )
    for draws, clamped in (
        (exact, False),
        (stk.sample(by_x, steady, chains=64, steps=120, warmup=50, seed=1), True),
    ):
        assert ("clamp" in {f.kind for f in draws.summary().findings}) == clamped
    exact.provenance["exact_ends"] = False
    assert "clamp" in {f.kind for f in exact.summary().findings}


@pytest.mark.filterwarnings("ignore:.*found no start")
def test_where_no_chain_starts_the_energy_is_to_be_checked_and_no_step_size():
    nowhere = stk.Energy(lambda x: x.sum(1) * float("nan"), (2,))
    said = stk.sample(nowhere, stk.NUTS(), chains=4, steps=4, warmup=4).summary().verdict
    assert "no finite start: check the energy" in said.lower()
    assert "init=" in said
    assert "step_size" not in said
    moved = torch.tensor([int(Status.NONFINITE), 0]), torch.tensor([3, -1])
    (later,) = verdict.failures(*moved, Sampler("MALA(step_size=0.1)"))
    assert "step_size" in later.fix


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_value_that_draws_pile_up_at_has_no_sign_where_it_is_zero(sign):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 200, 1, generator=generator).clamp(min=0.0)
    x = torch.where(x == 0, sign * 0.0, x)
    status = torch.zeros(16, dtype=torch.int64)
    draws = stk.Draws(x=x, final=x[:, -1], status=status, failed_at=status - 1, stats={})
    (told,) = [f for f in draws.summary().findings if f.kind == "clamp"]
    assert "lead to exactly 0 in" in str(told)
