"""R-hat from moments: of chains of which no draw was kept, as of the draws themselves.

Law: `split_rhat` and `nested_rhat` of keep="moments" are those of keep="all", by the textbook's formula, however the run
was made: in batches, thinned, in parts, taken up, saved and loaded, on many ranks (tests/test_distributed.py).
"""

import dataclasses

import numpy as np
import pytest
import torch
from torch.distributions import constraints

import scoretk as stk
from scoretk.diagnostics import ess, nested_rhat, rhat, split_rhat
from scoretk.diagnostics.halves import RATE, Halves, summarise_halves
from scoretk.diagnostics.mixing import paired, z_limit
from scoretk.run import draws as draws_module

FIELD = stk.Energy(lambda x: x.square().sum(1) / 2, (3,))
BOXED = stk.Energy(
    lambda tau: (tau - tau.log()).sum(1),
    variables={"tau": stk.Variable((2,), constraints.positive)},
)
RUN = {"chains": 8, "steps": 24, "seed": 3, "batch": 3}
NEAR = {"rtol": 1e-9, "atol": 1e-12}


def drawn(field=FIELD, solver=None, **changes):
    return stk.sample(field, solver or stk.MALA(0.8), **(RUN | changes))


def textbook(x):
    """Split R-hat of draws `(chains, draws, ...)`, each half a chain."""
    x = x.double().numpy()
    half = x.shape[1] // 2
    parts = np.concatenate([x[:, :half], x[:, half:]])
    within, between = parts.var(1, ddof=1).mean(0), parts.mean(1).var(0, ddof=1)
    return np.sqrt((half - 1) / half + between / within)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"thin": 3},
        {"field": BOXED},
        {"solver": stk.HMC(leapfrogs=2), "warmup": stk.Warmup(8, pilot=4), "chains": range(2, 10)},
    ],
    ids=["plain", "thinned", "constrained", "pilot"],
)
def test_moments_have_the_r_hat_of_the_draws(changes):
    every, kept = (drawn(keep=keep, **changes) for keep in ("all", "moments"))
    np.testing.assert_allclose(split_rhat(kept), textbook(every.x), **NEAR)
    for one, other in ((kept, every), (kept, every.x)):
        torch.testing.assert_close(split_rhat(one), split_rhat(other), **NEAR)
        torch.testing.assert_close(nested_rhat(one, 2), nested_rhat(other, 2), **NEAR)
    table = kept.summary().rows
    assert [row["r_hat"] for row in table.values()] == pytest.approx(split_rhat(kept).tolist())
    ours, theirs = (draws.halves() for draws in (kept, every))
    for name in ("mean", "var", "draws"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), **NEAR)


def test_of_an_odd_number_of_draws_the_second_half_is_longer():
    every, kept = (drawn(keep=keep, steps=25) for keep in ("all", "moments"))
    assert kept.half_draws.tolist() == [[12, 13]] * 8
    torch.testing.assert_close(split_rhat(kept), split_rhat(every), **NEAR)


@pytest.mark.parametrize("wrong", ["without the gap of the means", "all of the draws"])
def test_mutants_are_caught(wrong, monkeypatch):
    made = draws_module.halves_from

    def mutant(whole, first, draws):
        found = made(whole, first, draws)
        mean, var, (n, k) = found.mean.clone(), found.var.clone(), draws[0].tolist()
        if wrong == "all of the draws":
            mean[:, 1], var[:, 1] = whole
        else:
            var[:, 1] += (mean[:, 1] - mean[:, 0]).square() * n * k / (n + k) / (k - 1)
        return Halves(mean, var, draws)

    every, kept = drawn(), drawn(keep="moments")
    np.testing.assert_allclose(split_rhat(kept), textbook(every.x), rtol=1e-3)
    monkeypatch.setattr(draws_module, "halves_from", mutant)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(split_rhat(kept), textbook(every.x), rtol=1e-3)


class TestParts:
    """Moments of halves are rows of chains, as all else."""

    def test_saved_joined_and_chosen(self, tmp_path):
        whole = drawn(keep="moments", batch=8)
        again = stk.Draws.load(whole.save(tmp_path / "d.safetensors"))
        parts = [drawn(keep="moments", batch=8, chains=ids) for ids in (range(5, 8), range(5))]
        joined = stk.concatenate(parts)
        for other in (again, joined):
            torch.testing.assert_close(split_rhat(other), split_rhat(whole), **NEAR)
        assert torch.equal(whole[2:6].half_mean, whole.half_mean[2:6])
        assert str(again.summary()) == str(whole.summary())

    def test_a_file_without_them_says_so(self, tmp_path):
        """As files of versions before have none."""
        old = dataclasses.replace(
            drawn(keep="moments"), x=None, half_mean=None, half_var=None, half_draws=None
        )
        again = stk.Draws.load(old.save(tmp_path / "d.safetensors"))
        with pytest.raises(stk.InvalidArgument, match="four draws"):
            again.summary()
        torn = dataclasses.replace(drawn(keep="moments"), x=None, half_var=None)
        with pytest.raises(stk.InvalidArgument, match="a part of the moments of halves"):
            stk.Draws.load(torn.save(tmp_path / "e.safetensors"))

    @pytest.mark.thorough
    @pytest.mark.parametrize("steps", [48, 60, 30])
    def test_a_run_that_is_extended(self, steps, tmp_path):
        """To the bits of one that never stopped; to less than twice its length halves keep their cut."""
        drawn(keep="moments", checkpoint=tmp_path / "c")
        longer = drawn(keep="moments", steps=steps, checkpoint=tmp_path / "c")
        straight, every = (drawn(keep=keep, steps=steps) for keep in ("moments", "all"))
        for name in ("mean", "var", "final"):
            assert torch.equal(getattr(longer, name), getattr(straight, name))
        cut = steps // 2 if steps >= 48 else 12
        assert longer.half_draws.tolist() == [[cut, steps - cut]] * 8
        if steps >= 48:
            assert torch.equal(longer.half_mean, straight.half_mean)
            assert torch.equal(longer.half_var, straight.half_var)
        torch.testing.assert_close(longer.half_mean, every.x[:, :cut].double().mean(1))
        halves = longer.halves()
        torch.testing.assert_close(halves.mean[:, 1], every.x[:, cut:].double().mean(1))
        torch.testing.assert_close(halves.var[:, 1], every.x[:, cut:].double().var(1))

    def test_a_run_that_was_stopped_on_its_way(self, tmp_path):
        calls = [0]

        def energy(x):
            calls[0] += 1
            if calls[0] == 60:
                raise KeyboardInterrupt
            return x.square().sum(1) / 2

        stopped = stk.Energy(energy, (3,))
        saved = stk.Checkpoint(tmp_path / "c", every=1e-9)
        with pytest.raises(KeyboardInterrupt):
            drawn(stopped, keep="moments", checkpoint=saved)
        again = drawn(stopped, keep="moments", checkpoint=saved)
        assert torch.equal(again.half_var, drawn(keep="moments").half_var)


def of(x, solver="ULA(0.1)", stats=None, status=None):
    """The summary of draws of which moments are known."""
    halves = stk.Draws(x, x[:, -1], torch.zeros(len(x)), torch.zeros(len(x))).halves()
    status = torch.zeros(len(x), dtype=torch.int64) if status is None else status
    return summarise_halves(halves, status, status - 1, stats or {}, solver=solver)


class TestVerdict:
    def normal(self, chains=32, n=200, d=3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(chains, n, d, generator=generator, dtype=torch.float64)

    def kinds(self, x, **more):
        return {finding.kind for finding in of(x, **more).findings}

    def test_chains_of_one_law_raise_nothing(self):
        """At the rate of 1e-3 a kind, three kinds of finding in 60 runs: two alarms in 1e2 suites."""
        for seed in range(60):
            shape = [(32, 200, 3), (4, 50, 1), (400, 8, 2)][seed % 3]
            assert not of(self.normal(*shape, seed=seed)).findings
        assert "do not show" in of(self.normal()).verdict

    def test_what_is_wrong_is_found(self):
        x = self.normal()
        steps = torch.linspace(0, 1, 200)[:, None]
        assert "drift" in self.kinds(x + steps)
        apart = x + 3.0 * (torch.arange(32) % 2)[:, None, None]
        assert "disagree" in self.kinds(apart)
        assert "disagree" in self.kinds(apart[:2])
        slow = x.cumsum(1) / 14
        assert {"disagree", "few"} <= self.kinds(slow)
        broken = x.clone()
        broken[3, 5, 1] = torch.inf
        assert "broken" in self.kinds(broken)
        still = x.clone()
        still[7] = still[7, 0]
        assert "stuck" in self.kinds(still)
        assert "stuck" not in self.kinds(still, solver="GibbsWithGradients()")
        low = {"accept": torch.full((32,), 0.02), "diverging": torch.full((32,), 0.1)}
        assert {"accept", "diverging"} <= self.kinds(x, stats=low)
        status = torch.zeros(32, dtype=torch.int64)
        status[2] = int(stk.Status.NONFINITE)
        assert self.kinds(x, status=status) == {"failed"}
        assert self.kinds(x, status=status.clamp(min=1)) == {"failed", "nothing"}

    def test_a_drift_up_or_down_in_any_coordinate_is_told_beyond_their_common_limit(self):
        """Of three coordinates that may go either way, with 16 chains: six comparisons."""
        gaps = self.normal(16, 1, 3)[:, 0]
        gaps = (gaps - gaps.mean(0)) / gaps.std(0)

        def drifts(z):
            low, high = 0.0, 100.0
            for _ in range(60):  # the shift whose deviate is z
                shift = (low + high) / 2
                found = float(paired((gaps + shift).T.numpy(), np.zeros(3, bool))[0][1])
                low, high = (low, shift) if found > z else (shift, high)
            mean = torch.zeros(16, 2, 3, dtype=torch.float64)
            mean[:, 1] = gaps
            mean[:, 1, 1] -= high
            draws = torch.full((16, 2), 100)
            halves = Halves(mean, torch.full_like(mean, 1e4), draws)
            ok = torch.zeros(16, dtype=torch.int64)
            found = summarise_halves(halves, ok, ok - 1, {}, solver="ULA(0.1)")
            return "drift" in {finding.kind for finding in found.findings}

        limit = z_limit(RATE, 6)
        assert not drifts(0.995 * limit)
        assert drifts(1.005 * limit)

    @pytest.mark.parametrize(("unlikely", "stuck"), [(0.9, True), (1.1, False)])
    def test_a_chain_is_stuck_where_the_others_acceptance_does_not_explain_that_it_stayed(
        self, unlikely, stuck
    ):
        """Not to move in 199 steps has, in any of 32 chains, a probability just below or above the rate of alarms."""
        still = self.normal()
        still[7] = still[7, 0]
        accept = torch.full((32,), 1 - (unlikely * RATE / 32) ** (1 / 199), dtype=torch.float64)
        accept[7] = 0.0
        assert ("stuck" in self.kinds(still, stats={"accept": accept})) == stuck

    def test_in_units_of_x_the_table_is_that_of_all_draws(self):
        x = self.normal(seed=4) * 5 + 7
        (row, *_) = of(x).rows.values()
        assert row["mean"] == pytest.approx(float(x[:, :, 0].mean()))
        assert row["sd"] == pytest.approx(float(x[:, :, 0].std()))
        assert row["mcse_mean"] == pytest.approx(float(x[:, :, 0].mean(1).std() / 32**0.5))
        assert np.isnan(of(x[:8]).rows["x[0]"]["mcse_mean"])
        assert np.isnan(row["ess_bulk"])

    def test_what_cannot_be_judged_is_refused(self):
        for steps in (1, 3):
            with pytest.raises(stk.InvalidArgument, match="four draws"):
                drawn(keep="moments", steps=steps).summary()
        flow = stk.Velocity(lambda x, t: -x, (2,))
        ends = stk.sample(flow, stk.ProbabilityFlow(steps=8), chains=6, keep="moments")
        with pytest.raises(stk.InvalidArgument, match="keep='last'"):
            ends.summary()
        assert "Draws(" in ends._repr_html_()
        for bad in (torch.zeros(3), torch.zeros(3, 2), [1.0], None):
            with pytest.raises(stk.InvalidArgument):
                split_rhat(bad)


@pytest.mark.thorough
def test_r_hats_of_draws_in_a_store(tmp_path, monkeypatch):
    """Rank-normalised ones too, some coordinates at a time."""
    pytest.importorskip("zarr")
    monkeypatch.setattr("scoretk.diagnostics.convergence.CHUNK", 8 * 24 * 2)
    monkeypatch.setattr("scoretk.run.stored.CHUNK", 1)
    there, here = drawn(keep=stk.Zarr(tmp_path / "d", draws=5)), drawn()
    assert torch.equal(rhat(there.x), rhat(here.x))
    assert torch.equal(ess(there.x, "tail"), ess(here.x, "tail"))
    for one in (there, there.x):
        torch.testing.assert_close(split_rhat(one), split_rhat(here), **NEAR)
        torch.testing.assert_close(nested_rhat(one, 4), nested_rhat(here, 4), **NEAR)


def test_halves_make_the_whole():
    x = torch.randn(4, 9, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean, var = stk.Draws(x, x[:, -1], torch.zeros(4), torch.zeros(4)).halves().whole
    torch.testing.assert_close(mean, x.mean(1))
    torch.testing.assert_close(var, x.var(1))
    one = Halves(x[:, :2], torch.full((4, 2, 2), torch.nan), torch.ones(4, 2, dtype=torch.int64))
    torch.testing.assert_close(one.whole[1], x[:, :2].var(1))
