"""`draws.summary()` finds what is wrong and only that; `to_arviz` speaks ArviZ's language."""

import math
import re

import arviz as az
import matplotlib
import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.diagnostics.summary import COLUMNS, summarise
from scoretk.models.targets.mixture import gaussian
from tests.marks import slow_rows_but

matplotlib.use("Agg")


def made(x, *, status=None, **stats):
    """Draws as a run would return them."""
    status = torch.zeros(len(x), dtype=torch.int64) if status is None else status
    failed_at = torch.where(status == 0, -1, 3)
    return stk.Draws(x=x, final=x[:, -1], status=status, failed_at=failed_at, stats=stats)


def independent(chains=16, steps=200, d=3, seed=0):
    return torch.randn(chains, steps, d, generator=torch.Generator().manual_seed(seed))


def problems(draws):
    return [finding.problem for finding in draws.summary().findings]


@pytest.mark.parametrize("draws", [4, 7, 40])
def test_chains_that_outnumber_their_draws_have_every_number(monkeypatch, draws):
    """Ranks are then of a part of the draws of each chain, of which there are halves all the same."""
    x = independent(chains=64, steps=draws)
    whole = made(x).summary().rows
    monkeypatch.setattr("scoretk.diagnostics.summary.VALUES", 64)
    for name, row in made(x).summary().rows.items():
        assert all(math.isfinite(row[column]) for column in COLUMNS), row
        assert row["r_hat"] == pytest.approx(whole[name]["r_hat"], abs=0.1)


def test_independent_draws_have_no_problem_and_the_numbers_of_arviz():
    x = independent()
    summary = made(x).summary()
    assert summary.ok, summary
    assert "No problem" in str(summary)
    assert list(summary.rows) == ["x[0]", "x[1]", "x[2]"]
    values = x[:, :, 1].double().numpy()
    row = summary.rows["x[1]"]
    assert list(row) == list(COLUMNS)
    assert row["ess_bulk"] == pytest.approx(float(az.ess(values, method="bulk")))
    assert row["r_hat"] == pytest.approx(float(az.rhat(values)))
    assert row["mcse_mean"] == pytest.approx(float(az.mcse(values)))


@pytest.mark.thorough
@pytest.mark.parametrize(("chains", "steps"), [(4, 1000), (64, 60), (512, 20)])
def test_a_healthy_run_is_called_healthy_however_its_draws_are_divided(chains, steps):
    alarms = [not made(independent(chains, steps, 2, seed)).summary().ok for seed in range(20)]
    assert sum(alarms) <= 1


def test_chains_in_different_modes_are_found():
    x = independent()
    x[:8] += 5
    found = problems(made(x))
    assert any("disagree" in p for p in found)
    assert any("few effective" in p for p in found)


@pytest.mark.parametrize("chains", [4, 64, 1024])
def test_many_chains_that_never_change_mode_are_found(chains):
    generator = torch.Generator().manual_seed(0)
    modes = torch.where(torch.rand(chains, 1, 1, generator=generator) < 0.5, -1.0, 1.0)
    assert any("disagree" in p for p in problems(made(modes + independent(chains, 100, 1))))


def autoregressive(chains, steps, keep, seed):
    noise = independent(chains, steps, 1, seed)
    x = [noise[:, 0]]
    for t in range(1, steps):
        x.append(keep * x[-1] + math.sqrt(1 - keep**2) * noise[:, t])
    return torch.stack(x, 1)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("keep", "steps", "runs"),
    slow_rows_but(
        [(0.5, 50, 10), (0.9, 400, 10), (0.95, 1000, 2), (0.95, 1000, 10)],
        (0.5, 50, 10),
        (0.95, 1000, 2),
    ),
)
def test_correlated_chains_that_agree_are_not_blamed(keep, steps, runs):
    found = [
        p
        for seed in range(runs)
        for p in problems(made(autoregressive(256, steps, keep, seed)))
        if "disagree" in p
    ]
    assert found == []


def test_what_cannot_be_judged_is_not_called_fine():
    constant = torch.full((1, 100, 1), 0.1)
    apart = 5 * torch.arange(64.0)[:, None, None] + independent(64, 1, 1)
    for x in (constant, independent(4, 3, 1), apart):
        assert not made(x).summary().ok
    stuck = (
        torch.full((4, 50, 1), 0.1, dtype=torch.float64)
        + 0.01 * torch.arange(4.0)[:, None, None].double()
    )
    assert any("4 chains never moved" in p for p in problems(made(stuck)))


def test_one_chain_that_drifts_is_found():
    x = independent(1, 400, 1) + torch.linspace(0, 4, 400)[None, :, None]
    assert any("disagree" in p for p in problems(made(x)))


def test_a_drift_is_found():
    assert not made(independent() + torch.linspace(0, 4, 200)[None, :, None]).summary().ok


def test_failures_are_left_out_and_named():
    x = independent()
    x[5] = 1e9
    status = torch.zeros(16, dtype=torch.int64)
    status[5] = int(stk.Status.NONFINITE)
    draws = made(x, status=status)
    assert any("1 of 16 chains are NONFINITE, the first at step 3" in p for p in problems(draws))
    assert abs(draws.summary().rows["x[0]"]["mean"]) < 0.2


def test_divergences_are_found_where_they_are():
    x = independent()
    diverging = x[:, :, 2] > 2.5
    draws = made(x, diverging=diverging)
    (found,) = (p for p in problems(draws) if "diverged" in p)
    assert "where x[2] is" in found
    assert torch.equal(draws.divergent, x[diverging])
    assert made(x).divergent.shape == (0, 3)


def test_slow_energies_bad_rates_and_stuck_chains_are_found():
    x = independent()
    slow = torch.cumsum(independent(d=1, seed=1)[..., 0], 1)
    assert any("E-BFMI" in p for p in problems(made(x, hamiltonian=slow)))
    assert not problems(made(x, hamiltonian=independent(d=1, seed=1)[..., 0]))
    assert any("accepted" in p for p in problems(made(x, accept=torch.full((16, 200), 0.01))))
    x[3] = x[3, :1]
    assert any("1 chain never moved" in p for p in problems(made(x)))


@pytest.mark.thorough
def test_a_real_run_of_each_kind():
    good = stk.sample(gaussian(dim=2), stk.NUTS(), chains=32, steps=100, warmup=100, seed=1)
    assert good.summary().ok, good.summary()
    assert not stk.sample("ring-mixture", stk.MALA(0.001), chains=8, steps=50).summary().ok
    assert any(
        "NONFINITE" in p
        for p in problems(stk.sample("semicircle", stk.ULA(0.2), chains=16, steps=50))
    )


@pytest.mark.parametrize("shape", [(), (2,), (1, 2, 2)])
def test_any_event_shape_and_few_rows(shape):
    x = torch.randn(4, 50, *shape, generator=torch.Generator().manual_seed(0))
    summary = made(x).summary(most=2)
    n = math.prod(shape)
    assert len(summary.rows) == min(2, n)
    assert summary.left_out == max(n - 2, 0)
    assert f"{summary.left_out} coordinate" in str(summary) or not summary.left_out


def test_one_chain_or_a_few_draws_give_what_they_can():
    row = made(independent(1, 100)).summary().rows["x[0]"]
    assert 0.9 < row["r_hat"] < 1.2
    assert row["ess_bulk"] > 20
    assert math.isnan(made(independent(5, 2)).summary().rows["x[0]"]["ess_bulk"])
    nothing = made(independent(2, 9), status=torch.ones(2, dtype=torch.int64)).summary()
    assert not nothing.ok


def test_without_draws_it_says_so():
    draws = stk.sample(gaussian(), stk.ULA(0.1), chains=4, steps=3, keep="moments")
    for ask in (draws.summary, lambda: draws.divergent):
        with pytest.raises(stk.InvalidArgument, match="keep"):
            ask()
    with pytest.raises(stk.InvalidArgument, match="most"):
        made(independent()).summary(most=0)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of ArviZ, by matplotlib
def test_arviz_names_and_functions():
    draws = stk.sample("eight-schools", stk.NUTS(), chains=4, steps=60, warmup=60, seed=0)
    data = draws.to_arviz()
    names = {
        "lp",
        "energy",
        "acceptance_rate",
        "n_steps",
        "tree_depth",
        "diverging",
        "status",
        "failed_at",
    }
    assert names <= set(data.sample_stats.data_vars)
    assert data.sample_stats.diverging.dtype == bool
    assert np.allclose(data.sample_stats.lp, -draws.stats["energy"])
    assert az.summary(data).shape[0] == 10
    assert len(az.bfmi(data)) == 4
    az.plot_trace(data, compact=True)
    az.plot_energy(data)
    matplotlib.pyplot.close("all")


def test_the_public_function_takes_what_a_run_has():
    draws = stk.sample(gaussian(), stk.HMC(), chains=8, steps=30, warmup=30)
    assert str(summarise(draws.x, draws.status, draws.failed_at, draws.stats)) == str(
        draws.summary()
    )


def test_the_functions_are_arviz_for_tensors():
    x = torch.randn(6, 80, 2, 3, generator=torch.Generator().manual_seed(2))
    flat = x.double().numpy()
    assert stk.diagnostics.ess(x, "tail").shape == (2, 3)
    assert float(stk.diagnostics.ess(x)[1, 2]) == pytest.approx(float(az.ess(flat[:, :, 1, 2])))
    assert float(stk.diagnostics.rhat(x)[0, 1]) == pytest.approx(float(az.rhat(flat[:, :, 0, 1])))
    assert float(stk.diagnostics.mcse(x, "sd")[0, 1]) == pytest.approx(
        float(az.mcse(flat[:, :, 0, 1], method="sd"))
    )
    energy = x[..., 0, 0]
    assert np.allclose(stk.diagnostics.bfmi(energy), az.bfmi(flat[..., 0, 0]))
    for wrong in (lambda: stk.diagnostics.ess(x[:, :2]), lambda: stk.diagnostics.bfmi(x)):
        with pytest.raises(stk.InvalidArgument):
            wrong()
    with pytest.raises(stk.UnknownName, match="method"):
        stk.diagnostics.ess(x, "most")


def test_nested_r_hat_is_that_of_arviz_1():
    """The number is ArviZ 1.x's too, in tests/torchfree, which runs where that is installed."""
    chains, steps = np.meshgrid(np.arange(12), np.arange(40), indexing="ij")
    draws = np.sin(1.3 * chains * steps + chains) + 0.4 * (chains // 3)
    found = stk.diagnostics.nested_rhat(torch.from_numpy(draws), 4)
    assert float(found) == pytest.approx(1.253166100370746, rel=1e-12)


def test_a_fix_is_said_once_and_numbers_are_as_long_as_they_say_something():
    """Chains in two modes far from each other: disagreement, memory and spread have one fix."""
    x = torch.where(torch.arange(16)[:, None, None] % 2 == 0, 1e6, -1e6)
    noise = stk.Noise(0, 16).normal(0, 0, (200, 2))
    draws = stk.Draws(x + noise, (x + noise)[:, -1], torch.zeros(16).long(), torch.full((16,), -1))
    summary = draws.summary()
    assert len({f.fix for f in summary.findings}) < len(summary.findings) > 2
    for finding in summary.findings:
        assert summary.verdict.count(finding.problem) == summary.verdict.count(finding.fix) == 1
    assert not re.search(r"\d{5}\.\d", str(summary))  # an R-hat of 6 digits and three places
    assert "1 chain of 200 draws" in str(
        stk.Draws(draws.x[:1], draws.final[:1], draws.status[:1], draws.failed_at[:1]).summary()
    )


def test_draws_of_no_chain_are_empty_or_refused():
    field = stk.Energy(lambda mu, th: mu**2 + th.square().sum(1), variables={"mu": (), "th": (3,)})
    draws = stk.sample(field, stk.MALA(0.1), chains=3, steps=8)
    none = draws[[]]
    assert none.to_pandas().shape == (0, 4)
    assert len(stk.concatenate([none, none])) == 0
    assert torch.equal(stk.concatenate([none, draws]).x, draws.x)
    for judge in (stk.diagnostics.rhat, stk.diagnostics.ess, stk.diagnostics.mcse):
        with pytest.raises(stk.InvalidArgument, match="of a chain or more"):
            judge(none.x)
    with pytest.raises(stk.InvalidArgument, match="well"):
        none.plot()


@pytest.mark.parametrize("name", ["rhat", "ess", "mcse"])
def test_measures_take_what_sample_returned(name):
    measure = getattr(stk.diagnostics, name)
    field = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
    draws = stk.sample(field, stk.MALA(0.5), chains=8, steps=20)
    assert torch.equal(measure(draws), measure(draws.x))
    moments = stk.sample(field, stk.MALA(0.5), chains=8, steps=20, keep="moments")
    with pytest.raises(stk.InvalidArgument, match="keep='all'"):
        measure(moments)
    with pytest.raises(stk.InvalidArgument, match=r"Of draws: init=draws\.final"):
        stk.sample(field, init=draws)
