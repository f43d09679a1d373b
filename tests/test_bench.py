"""Benchmarks: the truths of targets, what is counted, and what a reader is told."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributions as D
from torch.nn.functional import softplus

import scoretk as stk
from scoretk.cli import main
from scoretk.demo.bench import (
    cox,
    evidence,
    gym,
    inverse,
    known,
    low_error,
    partition,
    peers,
    recursion,
    spreads,
    tables,
)
from scoretk.demo.bench.evidence import Evidence, evidence_of
from scoretk.demo.bench.inverse import (
    Calibration,
    Distances,
    Problem,
    calibrated,
    calibration,
    distances,
)
from scoretk.demo.bench.low_error import (
    Crossing,
    Errors,
    Plan,
    Reached,
    crossing,
    gradients_to_low_error,
)
from scoretk.demo.bench.low_error import reached as reached_by
from scoretk.demo.bench.page import write_report
from scoretk.demo.bench.target import Moments, Target
from scoretk.fields.resolve import resolve
from scoretk.plugins.targets import BUILT_IN_TARGETS, list_targets, load_target
from tests import accelerator

DOUBLE = {"dtype": torch.float64}


def double(value):
    """A parameter to whose dtype torch's distributions cast what they are asked."""
    return torch.tensor(value, **DOUBLE)


def normals(*shape, seed=0):
    return torch.randn(*shape, **DOUBLE, generator=torch.Generator().manual_seed(seed))


# Data in the form of the Inference Gym's, small and made up.

STUDENTS, QUESTIONS, DAYS = 5, 3, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    seen = rng.normal(size=30)
    seen[10:20] = np.nan
    pairs = np.array(
        [(i, j) for i in range(STUDENTS) for j in range(QUESTIONS) if (i, j) != (2, 1)]
    )
    np.savez(
        made / "datasets.npz",
        **{
            "brownian_motion_missing_middle_observations/OBSERVED_LOC": seen,
            "german_credit_numeric/X": rng.normal(3, 2, size=(20, 24)),
            "german_credit_numeric/y": rng.integers(1, 3, size=20).astype(float),
            "synthetic_item_response_theory/STUDENT_IDS": pairs[:, 0],
            "synthetic_item_response_theory/QUESTION_IDS": pairs[:, 1],
            "synthetic_item_response_theory/CORRECT": rng.integers(0, 2, size=len(pairs)),
            "sp500_closing_prices/CLOSING_PRICES": np.exp(rng.normal(size=DAYS + 1).cumsum() / 50),
        },
    )
    sizes = {
        "brownian_motion_unknown_scales_missing_middle_observations": {
            "INNOVATION_NOISE_SCALE": (),
            "OBSERVATION_NOISE_SCALE": (),
            "LOCS": (30,),
        },
        "german_credit_numeric_sparse_logistic_regression": {
            "GLOBAL_SCALE": (),
            "LOCAL_SCALES": (25,),
            "UNSCALED_WEIGHTS": (25,),
        },
        "synthetic_item_response_theory": {
            "MEAN_STUDENT_ABILITY": (),
            "QUESTION_DIFFICULTY": (QUESTIONS,),
            "CENTERED_STUDENT_ABILITY": (STUDENTS,),
        },
        "stochastic_volatility_log_sp500": {
            "PERSISTENCE_OF_VOLATILITY": (),
            "MEAN_LOG_VOLATILITY": (),
            "WHITE_NOISE_SHOCK_SCALE": (),
            "LOG_VOLATILITY": (DAYS,),
        },
    }
    kinds = ("MEAN", "MEAN_STANDARD_ERROR", "STANDARD_DEVIATION")
    truth = {
        f"{name}/IDENTITY_{part}_{kind}": rng.uniform(0.5, 1.5, size=size)
        for name, parts in sizes.items()
        for part, size in parts.items()
        for kind in kinds
    }
    np.savez(made / "ground_truth.npz", **truth)
    return made


NEED_DATA = ("brownian", "german-credit", "item-response", "volatility")


SMOOTH = [n for n in BUILT_IN_TARGETS if not n.startswith(("ising", "cox"))]


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_those_of_finite_differences(name, folder):
    target = load_target(name, folder)
    x = normals(3, target.dim, seed=1) / 2
    score, h = stk.Energy(target.field.energy, (target.dim,)), 1e-5
    got = torch.autograd.grad(score.energy(x.requires_grad_()).sum(), x)[0]
    x = x.detach()
    for i in range(target.dim):
        step = torch.zeros_like(x)
        step[:, i] = h
        slope = (target.field.energy(x + step) - target.field.energy(x - step)) / (2 * h)
        assert torch.allclose(got[:, i], slope, rtol=1e-5, atol=1e-5), (name, i)


def brownian(field, u):
    s, r, x = softplus(u[:, 0]), softplus(u[:, 1]), u[:, 2:]
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    there = ~field.seen.isnan()
    return (
        D.LogNormal(0, 2.0).log_prob(torch.stack([s, r])).sum(0)
        + D.Normal(before, s[:, None]).log_prob(x).sum(1)
        + D.Normal(x[:, there], r[:, None]).log_prob(field.seen[there]).sum(1)
        + u[:, :2].sigmoid().log().sum(1)
    )


def german_credit(field, u):
    scales, w = u[:, :26].exp(), u[:, 26:]
    logits = (scales[:, :1] * scales[:, 1:] * w) @ field.features.T
    return (
        D.Gamma(double(0.5), double(0.5)).log_prob(scales).sum(1)
        + u[:, :26].sum(1)
        + D.Normal(0, 1.0).log_prob(w).sum(1)
        + D.Bernoulli(logits=logits).log_prob(field.labels).sum(1)
    )


def item_response(field, u):
    m, b, a = u[:, 0], u[:, 1 : 1 + QUESTIONS], u[:, 1 + QUESTIONS :]
    logits = m[:, None, None] + a[:, :, None] - b[:, None]
    told = D.Bernoulli(logits=logits).log_prob(field.right) * field.asked
    return (
        D.Normal(0.75, 1.0).log_prob(m)
        + D.Normal(0, 1.0).log_prob(u[:, 1:]).sum(1)
        + told.sum((1, 2))
    )


def volatility(field, u):
    b, m, s, z = u[:, 0].sigmoid(), u[:, 1], softplus(u[:, 2]), u[:, 3:]
    phi = 2 * b - 1
    h = [s * z[:, 0] / (1 - phi**2).sqrt()]
    for t in range(1, DAYS):
        h.append(phi * h[-1] + s * z[:, t])
    log_variance = m[:, None] + torch.stack(h, 1)
    return (
        D.Beta(20.0, 1.5).log_prob(b)
        + (b * (1 - b)).log()
        + D.Cauchy(0, 5.0).log_prob(m)
        + D.HalfCauchy(double(2.0)).log_prob(s)
        + u[:, 2].sigmoid().log()
        + D.Normal(0, 1.0).log_prob(z).sum(1)
        + D.Normal(0, (log_variance / 2).exp()).log_prob(field.returns).sum(1)
    )


@pytest.mark.parametrize("law", [brownian, german_credit, item_response, volatility])
def test_posteriors_are_what_torch_says_of_their_laws(law, folder):
    """Up to a constant; written step by step, where the target has a filter, masks and sums."""
    field = getattr(gym, law.__name__)(folder).field
    u = normals(6, *field.event_shape, seed=2) / 2
    off = field.energy(u) + law(field, u)
    assert torch.allclose(off, off.mean().expand(6), rtol=0, atol=1e-9)


def test_a_volatility_whose_persistence_rounds_to_one_has_an_energy(folder):
    field = gym.volatility(folder).field
    u = normals(6, *field.event_shape, seed=2) / 2
    for end in (-30.0, 30.0):
        u[:, 0] = end
        torch.testing.assert_close(
            field.energy(u.float()).double(), field.energy(u), rtol=1e-3, atol=0
        )


def test_the_score_of_answers_is_that_of_their_energy(folder):
    field = gym.item_response(folder).field
    u = (normals(6, *field.event_shape, seed=2) / 2).requires_grad_()  # more than one part of rows
    (slope,) = torch.autograd.grad(field.energy(u).sum(), u)
    torch.testing.assert_close(field.score(u.detach()), -slope, rtol=0, atol=1e-10)


def test_a_volatility_of_another_filter_would_be_found(folder, monkeypatch):
    monkeypatch.setattr(recursion, "pad", lambda h, by: torch.nn.functional.pad(h, by).roll(1, 1))
    field = gym.volatility(folder).field
    u = normals(6, *field.event_shape, seed=2) / 2
    off = field.energy(u) + volatility(field, u)
    assert not torch.allclose(off, off.mean().expand(6), rtol=0, atol=1e-3)


def test_judged_are_the_parameters(folder):
    for name in NEED_DATA:
        target = load_target(name, folder)
        u = normals(4, target.dim, seed=3)
        y = target.moments.of(u)
        assert y.shape == (4, len(target.moments.mean_square)), name
    u = normals(4, 3 + DAYS, seed=3)
    y = load_target("volatility", folder).moments.of(u)
    assert torch.allclose(y[:, 0], 2 * u[:, 0].sigmoid() - 1)
    assert torch.allclose(y[:, 2], softplus(u[:, 2]))


def summed_over_scales(field, second=1.0):
    """E and Var of the squares by the field's energy: x is normal given both scales, its mode the mean there."""
    n = len(field.seen)
    logs = torch.linspace(-12, 6, 121, **DOUBLE)
    s = torch.cartesian_prod(logs, logs).exp()
    u = s + (-torch.expm1(-s)).log()
    jacobian = (s / u.sigmoid()).log().sum(1)
    s2, r2 = s.square().unbind(1)
    step = torch.eye(n, **DOUBLE) - torch.eye(n, **DOUBLE).roll(1, 0).tril()
    there = (~field.seen.isnan()).double()
    precision = step.T @ step / s2[:, None, None] + torch.diag(there) / r2[:, None, None]
    covariance = torch.linalg.inv(precision)
    mean = (covariance @ (there * field.seen.nan_to_num(0.0))) / r2[:, None]
    energy = field.energy(torch.cat([u, mean], 1))
    share = (torch.logdet(covariance) / 2 - energy + jacobian).softmax(0)
    variance = covariance.diagonal(dim1=1, dim2=2)
    square = share @ torch.cat([s**2, mean**2 + second * variance], 1)
    power = share @ torch.cat([s**4, mean**4 + 6 * mean**2 * variance + 3 * variance**2], 1)
    return square, power - square**2


def test_moments_of_the_brownian_motion_are_those_of_its_energy():
    seen = normals(12, seed=5).cumsum(0)
    seen[4:8] = torch.nan
    field = gym.Brownian(seen)
    found, (square, variance) = field.moments(), summed_over_scales(field)
    torch.testing.assert_close(found.mean_square, square, rtol=1e-7, atol=0)
    torch.testing.assert_close(found.var_square, variance, rtol=1e-7, atol=0)
    wrong = summed_over_scales(field, 1.001)[0]
    assert not torch.allclose(found.mean_square, wrong, rtol=1e-5, atol=0)


def exact_draws(name, n):
    z = normals(n, 60, seed=4)
    if name == "banana":
        first = 10 * z[:, 0]
        return torch.stack([first, 0.03 * (first**2 - 100) + z[:, 1]], 1)
    if name == "rosenbrock":
        x = 1 + z[:, :18]
        return torch.cat([x, x**2 + 0.1**0.5 * z[:, 18:36]], 1)
    if name == "bimodal":
        narrow = z[:, 50:51] < D.Normal(0, 1.0).icdf(torch.tensor(0.25))
        return torch.where(narrow, 0.6 * z[:, :50] + 4 * torch.eye(50, **DOUBLE)[0], z[:, :50])
    if name == "funnel-20":
        return torch.cat([3 * z[:, :1], (1.5 * z[:, :1]).exp() * z[:, 1:20]], 1)
    return normals(n, 100, seed=4) * torch.logspace(-0.5, 0.5, 100, **DOUBLE)


@pytest.mark.parametrize("name", [n for n in tables.LOW_ERROR_TARGETS if n not in NEED_DATA])
def test_moments_are_those_of_exact_draws(name):
    """Means of squares to 6 standard errors; their variances to a tenth, as they have heavy tails."""
    target, n = load_target(name), 40_000
    squares = target.moments.of(exact_draws(name, n)).square()
    error = (target.moments.var_square / n).sqrt()
    assert ((squares.mean(0) - target.moments.mean_square).abs() < 6 * error).all()
    wrong = (squares.mean(0) - 1.1 * target.moments.mean_square).abs() > 6 * error
    assert wrong.any(), "a truth a tenth off would not be seen"
    ratio = squares.var(0).median() / target.moments.var_square.median()
    assert 0.8 < ratio < 1.25


# What is counted.


def unit(k=1):
    return Moments.gaussian(torch.ones(k, **DOUBLE), "exact")


def test_conditional_moments_are_those_of_the_prior_in_the_mean():
    """Over effects of the prior they average to E l^2 = 3, E w^2 = 1, E l^4 = 105 and E w^4 = 3."""
    generator = torch.Generator().manual_seed(0)
    n = 40_000
    normals = torch.randn((n, 2), generator=generator, dtype=torch.float64)
    scales, weights = (
        normals[:, :1].square(),
        normals[:, 1:],
    )  # chi^2 of one degree is Gamma(1/2, 1/2)
    squares, fourths = spreads.given_effects(scales * weights)
    raw = torch.cat([scales, weights], 1)
    for found, power, truth in ((squares, 2, (3.0, 1.0)), (fourths, 4, (105.0, 3.0))):
        error = found.std(0) / n**0.5
        assert ((found.mean(0) - torch.tensor(truth)).abs() < 4.5 * error).all()
        assert (found.std(0) < raw.pow(power).std(0)).all()  # conditional means vary less


def test_conditional_moments_by_quadrature():
    """Of one effect, against a finer and wider sum in l itself."""
    b = torch.tensor([[0.3]], dtype=torch.float64)
    squares, fourths = spreads.given_effects(b)
    scale = torch.linspace(1e-3, 150, 3_000_000, dtype=torch.float64)
    density = scale**-1.5 * (-scale / 2 - 0.3**2 / (2 * scale**2)).exp()
    for found, power in ((squares, 2), (fourths, 4)):
        right = torch.stack([(density * scale**k).sum() for k in (power, -power)]) / density.sum()
        right[1] *= 0.3**power
        torch.testing.assert_close(found[0], right, rtol=1e-5, atol=0)


@pytest.mark.parametrize("cached", [1, 40, 1000, low_error.CACHED])
def test_errors_do_not_depend_on_how_draws_come_in_blocks(monkeypatch, cached):
    monkeypatch.setattr(low_error, "CACHED", cached)
    x = normals(3, 700, 2, seed=5)
    whole, parts = Errors.of(unit(2), 3), Errors.of(unit(2), 3)
    whole.add(x, 0.0, 1400.0)
    for cut in (slice(0, 1), slice(1, 64), slice(64, 65), slice(65, 700)):
        parts.add(x[:, cut], 2.0 * cut.start, 2.0 * cut.stop)
    assert parts.at == pytest.approx(whole.at)
    assert whole.at[:3] == [2.0, 4.0, 6.0]
    for one, other in zip(whole.worst + whole.mean, parts.worst + parts.mean, strict=True):
        assert torch.allclose(one, other)
    n = int(whole.at[-1] / 2)
    off = (x[:, :n].square().mean(1) - 1).square() / 2
    assert torch.allclose(whole.worst[-1], off.amax(1))
    assert torch.allclose(whole.mean[-1], off.mean(1))


def test_a_crossing_lasts():
    at = torch.arange(1.0, 7.0)
    error = torch.tensor([1.0, 0.005, 0.02, 0.004, 0.003, 0.002])[:, None].expand(6, 8)
    assert crossing(at, error) == Crossing(4.0, 0.0)
    assert math.isinf(crossing(at, error.flip(0)).value)
    assert crossing(at, 0 * error).value == 1.0


def test_independent_draws_cross_where_they_should():
    """The median of b^2 is .455 / n: at n = 45.5, the median of chi^2_1 over .01."""
    errors = Errors.of(unit(), 400)
    errors.add(normals(400, 150, 1, seed=6), 0.0, 150.0)
    found = crossing(torch.tensor(errors.at), torch.stack(errors.worst))
    assert abs(found.value - 45.5) < 6 * max(found.stderr, 1.0)
    assert 0 < found.stderr < 15


def test_failed_chains_are_never_low():
    at, error = torch.arange(1.0, 4.0), torch.full((3, 5), 1e-4)
    error[:, :3] = math.nan
    assert math.isinf(crossing(at, error).value)


NORMAL = Target("normal", stk.Energy(lambda x: x.square().sum(1) / 2, (2,)), unit(2))


@pytest.mark.thorough
def test_gradients_are_counted_and_those_of_warmup_apart():
    solver = stk.HMC(step_size=0.5, leapfrogs=3, metric="none")
    made = gradients_to_low_error(NORMAL, solver, Plan(chains=32, budget=1500))
    steps = low_error.LEAST
    assert made.failed == 0
    assert made.run >= 3 * steps
    assert made.run % 3 <= 2
    assert 100 < made.worst.value < 1500
    assert made.mean.value <= made.worst.value
    assert made.tuning <= 6
    tuned = gradients_to_low_error(NORMAL, stk.MCLMC(), Plan(chains=32, warmup=30, budget=300))
    assert 60 <= tuned.tuning < 400


def test_no_block_has_the_noise_of_another(monkeypatch):
    seeds = []

    def spied(*arguments, seed, **others):
        seeds.append(seed)
        return stk.sample(*arguments, seed=seed, **others)

    monkeypatch.setattr(low_error, "sample", spied)
    made = gradients_to_low_error(NORMAL, stk.ULA(0.05), Plan(chains=4, budget=300))
    assert made.run >= 300
    assert len(set(seeds)) == len(seeds) >= 3


def test_steps_after_warmup_are_compiled_where_the_plan_says_so(monkeypatch):
    asked = []

    def spied(*arguments, compile=False, **others):
        asked.append((arguments[4], compile))
        return stk.sample(*arguments, **others)

    monkeypatch.setattr(low_error, "sample", spied)
    for compiled in (False, True):
        asked.clear()
        plan = Plan(chains=4, warmup=20, budget=150, compile=compiled)
        gradients_to_low_error(NORMAL, stk.HMC(leapfrogs=1, metric="none"), plan)
        assert asked[0] == (20, False)
        assert set(asked[1:]) == {(0, compiled)}


def test_a_target_without_moments_is_refused():
    with pytest.raises(stk.InvalidArgument, match="moments"):
        gradients_to_low_error(Target("none", NORMAL.field), stk.ULA(0.1), Plan())


# Peers.


@pytest.mark.parametrize("name", peers.ENERGIES)
def test_energies_of_peers_are_those_of_targets(name):
    target = load_target(name)
    x = 3 * normals(5, target.dim, seed=11)
    theirs = torch.tensor([float(peers.ENERGIES[name](row)) for row in x.numpy()], **DOUBLE)
    torch.testing.assert_close(theirs, target.field.energy(x), rtol=1e-6, atol=0)


class Independent:
    """Chains that draw from the law itself, seven gradients a draw, of which some fail."""

    def __init__(self, failing=0):
        self.tuning, self.failed, self.blocks = 70.0, torch.zeros(32, dtype=torch.bool), 0
        self.failing = failing

    def block(self, steps):
        self.blocks += 1
        self.failed[: self.failing] = True
        return normals(32, 50, 2, seed=self.blocks), 7.0 * 50


def test_gradients_of_any_chains_are_counted():
    """Of independent draws of two normals: the median of the larger b^2 is below .01 after about a hundred."""
    made = reached_by(NORMAL, Independent, Plan(chains=32, budget=7e3))
    assert made.tuning == 70
    assert made.failed == 0
    assert made.run % 350 == 0
    assert 7 * 50 < made.worst.value < 7 * 250
    some = reached_by(NORMAL, lambda: Independent(20), Plan(chains=32, budget=7e3))
    assert some.failed == 20
    assert math.isinf(some.worst.value)
    none = Target("none", NORMAL.field)
    with pytest.raises(stk.InvalidArgument, match="moments"):
        reached_by(none, Independent, Plan())


def test_chains_of_a_peer_that_leave_the_numbers_have_failed():
    run = peers.NUTSRun(None, 0.0, torch.tensor([False, True, False]))
    x = np.zeros((3, 4, 2), np.float32)
    x[2, 1, 0] = np.nan
    assert peers._taken(run, x).shape == (3, 4, 2)
    assert run.failed.tolist() == [False, True, True]


def test_a_peer_that_is_not_installed_is_a_row_that_says_so(monkeypatch):
    def absent(*_):
        raise stk.MissingDependency("blackjax", "peers", "blackjax-mclmc")

    monkeypatch.setattr(peers, "PEERS", {"blackjax-mclmc": absent})
    (row,) = tables.low_error(tables.Asked(targets=("banana",), solvers=("blackjax-mclmc",)))
    assert row["reached"] == "no"
    assert "scoretk[peers]" in row["cause"]
    assert row["gradients"] is None
    assert row["published: NUTS"] == 9789


def test_peers_have_rows_of_the_targets_that_they_know(monkeypatch):
    monkeypatch.setattr(tables, "gradients_to_low_error", lambda *_: reached())
    monkeypatch.setattr(tables, "_by_peer", lambda *_: reached())
    for target in ("banana", "rosenbrock"):
        rows = tables.low_error(tables.Asked(quick=False, targets=(target,)))
        found = [row["solver"] for row in rows]
        assert found == [*tables.SOLVERS, *(peers.PEERS if target == "banana" else ())]
    with pytest.raises(stk.InvalidArgument, match="ill-conditioned"):
        peers.begun("numpyro-nuts", "rosenbrock", 36, Plan())


def test_long_rows_are_compiled_where_steps_can_be_captured(monkeypatch):
    def compiled(target, solver):
        plans = []
        monkeypatch.setattr(
            tables, "gradients_to_low_error", lambda *made: plans.append(made[2]) or reached()
        )
        list(tables.low_error(tables.Asked(targets=(target,), solvers=(solver,))))
        return [plan.compile for plan in plans]

    assert compiled("funnel-20", "mclmc") == [True]
    assert compiled("bimodal", "adjusted-mclmc-leapfrog") == [True]
    assert compiled("funnel-20", "nuts") == [False]
    assert compiled("banana", "mclmc") == [False]


def test_tables_are_made_on_the_device_that_is_asked_for(monkeypatch, capsys, tmp_path):
    plans, places = [], []
    monkeypatch.setattr(
        tables, "gradients_to_low_error", lambda *made: plans.append(made[2]) or reached()
    )
    monkeypatch.setattr(
        tables, "evidence_of", lambda *_, device, **others: places.append(device) or found()
    )
    kind = accelerator.NAME
    with accelerator.pretend():
        rows = ["--target", "banana", "--solver", "mclmc", "--device", kind]
        assert main(["bench", "low-error", *rows, "-o", str(tmp_path)]) == 0
        asked = tables.Asked(targets=("gaussians-25",), device=kind)
        assert list(tables.evidence(asked))
        for words in (["bench"], ["bench", "low-error", "posteriors"]):
            assert main([*words, "--device", kind]) == 2
            assert "low-error, evidence, mnist" in capsys.readouterr().err
    assert [plan.device for plan in plans] == [kind]
    assert set(places) == {kind}
    assert f"--device {kind}" in (tmp_path / "bench.json").read_text()
    assert main(["bench", "low-error", "--device", "nowhere"]) == 2
    assert "a torch device of this machine" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_draw_from_the_law_and_count_their_gradients(name):
    """Where they are installed: of a normal, all within the error of their draws; fixed trees would be seen."""
    pytest.importorskip({"blackjax-mclmc": "blackjax", "numpyro-nuts": "numpyro"}[name])
    plan = Plan(chains=16, budget=4000)
    run = peers.PEERS[name](lambda x: (x**2).sum() / 2, 3, plan)
    x, gradients = run.block(64)
    squares = x.double().square().mean((0, 1))
    assert ((squares - 1).abs() < 0.2).all()
    assert not run.failed.any()
    assert gradients >= x.shape[1]
    assert 0 < run.tuning < 20_000
    if name == "blackjax-mclmc":
        assert (run.tuning, gradients) == (2000, 2 * peers.MCLMC_BLOCK)


# Evidence.


KNOWN = {
    (8, 0.44068679): 60.1417807891,
    (16, 0.44068679): 238.642256635,
    (24, 0.44068679): 536.144603524,
    (32, 0.44068679): 952.648079549,
    (16, 0.28): 198.935419021,
    (16, 0.6): 310.48703859,
}


@pytest.mark.parametrize(("size", "coupling"), KNOWN)
def test_log_z_of_the_torus(size, coupling):
    """As quoted for a coupling of eight digits, which L^2 spins make worth 1e-5 at most."""
    assert partition.kaufman(size, coupling) == pytest.approx(KNOWN[size, coupling], abs=1e-5)


def test_log_z_of_a_small_torus_is_a_sum_over_all_states():
    states = 2.0 * torch.cartesian_prod(*[torch.arange(2.0, **DOUBLE)] * 9).reshape(-1, 3, 3) - 1
    for coupling in (0.2, 0.44, 0.9):
        right = float((-stk.load("ising", size=3, coupling=coupling).energy(states)).logsumexp(0))
        assert partition.kaufman(3, coupling) == pytest.approx(right, abs=1e-10)


def test_log_z_of_wells_and_normals():
    assert load_target("many-well").log_z == pytest.approx(164.6956753, abs=1e-6)
    well = partition.ManyWell(1)
    x = torch.linspace(-8, 8, 401, **DOUBLE)
    for field, log_z in (
        (well, load_target("many-well").log_z / 16),
        (load_target("gaussians-25").field, 0.0),
    ):
        edge = x * (1 if field is well else 2)
        energy = field.energy(torch.cartesian_prod(edge, edge))
        found = float((-energy).logsumexp(0)) + 2 * math.log(float(edge[1] - edge[0]))
        assert found == pytest.approx(log_z, abs=1e-6)
    target = load_target("funnel-10")
    x = normals(5, 10, seed=7)
    of_law = D.Normal(0, 3.0).log_prob(x[:, 0]) + D.Normal(0, (x[:, :1] / 2).exp()).log_prob(
        x[:, 1:]
    ).sum(1)
    assert torch.allclose(-target.field.energy(x) - target.log_z, of_law)


def test_the_40_normals_are_those_of_the_literature():
    """The first, another and the last of their means, as other libraries have them written out; all weigh as much."""
    field = load_target("gaussians-40").field
    quoted = {0: (-0.2995, 21.4577), 1: (-32.9218, -29.4376), 7: (-16.4889, 1.4817)}
    for k, mean in quoted.items():
        assert field.means[k].tolist() == pytest.approx(mean, abs=5e-5)
    assert torch.equal(field.stds, softplus(torch.ones(40, **DOUBLE)))
    assert torch.equal(field.weights, torch.full((40,), 1 / 40, **DOUBLE))
    assert field.means.abs().max() < 40
    assert len(field.means.unique(dim=0)) == 40
    along = torch.linspace(-50, 50, 501, **DOUBLE)
    mass = (-field.energy(torch.cartesian_prod(along, along))).logsumexp(0) + 2 * math.log(0.2)
    assert float(mass) == pytest.approx(0, abs=1e-9)


PLACES = "0.01,0.02\n0.99,0.02\n1,1\n0.99,0.99\n0.51,0.26\n"


@pytest.fixture(scope="module")
def pines(tmp_path_factory):
    made = tmp_path_factory.mktemp("pines")
    (made / "finpines.csv").write_text(PLACES)
    return made


def test_places_are_counted_in_their_cells(pines):
    counts = cox._counts(pines)
    there = {(0, 0): 1, (39, 0): 1, (39, 39): 2, (20, 10): 1}
    assert counts.shape == (40, 40)
    assert {at: int(counts[at]) for at in there} == there
    assert int(counts.sum()) == 5


@pytest.mark.parametrize("whitened", [False, True])
def test_a_cox_process_is_a_normal_law_times_poisson_counts(whitened):
    """With torch's own laws; the likelihood leaves out what hangs on the counts and the cells' area alone."""
    counts = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [1.0, 0.0, 4.0]], **DOUBLE)
    at = torch.cartesian_prod(torch.arange(3.0, **DOUBLE), torch.arange(3.0, **DOUBLE))
    apart = (at[:, None] - at[None]).square().sum(-1).sqrt()
    covariance, mean = 1.91 * (-apart * 33 / 3).exp(), math.log(126) - 1.91 / 2
    factor = torch.linalg.cholesky(covariance)
    w = normals(4, 9, seed=9)
    f = mean + w @ factor.T
    seen = D.Poisson(f.exp() / 9).log_prob(counts.flatten())
    left_out = -counts.flatten() * math.log(9) - (counts.flatten() + 1).lgamma()
    prior = (
        D.Normal(0.0, 1.0).log_prob(w).sum(1)
        if whitened
        else D.MultivariateNormal(torch.full((9,), mean, **DOUBLE), covariance).log_prob(f)
    )
    right = prior + (seen - left_out).sum(1)
    field = cox.Cox.of(counts, whitened)
    torch.testing.assert_close(-field.energy(w if whitened else f), right, rtol=0, atol=1e-9)


def test_whitened_or_not_log_z_is_the_same():
    """Of one cell, by sums over a grid, and by the normal law about its peak."""
    x = torch.linspace(-12, 12, 4001, **DOUBLE)[:, None]
    counts, found = torch.tensor([[126.0]], **DOUBLE), []
    for whitened, points in ((True, x), (False, 1.91**0.5 * x + math.log(126) - 1.91 / 2)):
        step = math.log(float(points[1] - points[0]))
        energy = cox.Cox.of(counts, whitened).energy(points)
        found.append(float((-energy).logsumexp(0)) + step)
    prior = D.Normal(math.log(126) - 1.91 / 2, 1.91**0.5).log_prob(double(math.log(126)))
    laplace = 126 * math.log(126) - 126 + float(prior) + math.log(2 * math.pi / 126) / 2
    assert found[0] == pytest.approx(found[1], abs=1e-9)
    assert found[0] == pytest.approx(laplace, abs=5e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["cox", "cox-whitened"])
def test_the_pines_have_1600_coordinates(name, pines):
    """Both energies at one f; the log Z of the literature has an error, which counts."""
    target = load_target(name, pines)
    assert (target.dim, target.log_z, target.log_z_error) == (1600, 501.806, 0.04)
    lower = load_target("cox-whitened", pines).field.factor
    w = normals(2, 1600, seed=3)
    f = math.log(126) - 1.91 / 2 + w @ lower.T
    right = w.square().sum(1) / 2 + 800 * math.log(2 * math.pi)
    right = right + (f.exp() / 1600).sum(1) - f @ cox._counts(pines).flatten().double()
    if name == "cox":
        right = right + lower.diagonal().log().sum()
    x = w if name == "cox-whitened" else f
    torch.testing.assert_close(target.field.energy(x), right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("text", ["1,2\n", "0.1\n0.2\n", "0.1,0.2,0.3\n", "x,y\n", "0.1,nan\n"])
def test_places_that_are_none_are_refused(text, tmp_path):
    with pytest.raises(stk.InvalidArgument, match=r"finpines\.csv"):
        load_target("cox", tmp_path)
    (tmp_path / "finpines.csv").write_text(text)
    with pytest.raises(stk.InvalidArgument, match="unit square"):
        load_target("cox", tmp_path)


def test_a_base_of_the_literature_has_rows_of_its_own(monkeypatch):
    bases = []

    def spied(*_, base, **others):
        bases.append(base)
        return found()

    monkeypatch.setattr(tables, "evidence_of", spied)
    rows = list(tables.evidence(tables.Asked(targets=("gaussians-40",))))
    assert [row["solver"] for row in rows] == ["ais", "smc", "ais/base", "smc/base"]
    assert bases[:2] == [None, None]
    assert bases[2] is bases[3]
    assert torch.equal(bases[2].mean, torch.zeros(2))
    assert torch.equal(bases[2].stddev, torch.full((2,), 40.0))
    (row,) = tables.evidence(tables.Asked(targets=("gaussians-40",), solvers=("smc/base",)))
    assert row["solver"] == "smc/base"


def test_the_base_is_where_annealing_begins(monkeypatch):
    given = []

    def spied(field, base, **_):
        given.append(base)
        return stk.Estimate(double(0.0), double(0.1), "", {}, torch.tensor(0))

    monkeypatch.setattr(evidence, "log_partition", spied)
    target = load_target("gaussians-40")
    evidence_of(target, "ais", 1)
    evidence_of(target, "ais", 1, base=target.base)
    assert given == [None, target.base]


def test_the_error_of_the_literature_is_in_z(monkeypatch):
    told = stk.Estimate(double(512.9), double(0.12), "", {}, torch.tensor(0))
    monkeypatch.setattr(evidence, "log_partition", lambda *_, **__: told)
    target = Target("some", NORMAL.field, log_z=512.6, log_z_error=0.05)
    assert evidence_of(target, "ais", 1).z == pytest.approx((0.3 / 0.13,))


def found(z=(0.5, -1.0), trusted=2):
    return Evidence((60.1, 60.2), (0.05, 0.06), z, trusted, 1000, 1.0)


@pytest.mark.parametrize(
    ("made", "cause"),
    [
        (found(), ""),
        (found((3.5, -2.5)), "a chance of 0.0001"),
        (found(trusted=1), "1 of 2 are said not to be trusted"),
        (found((math.nan, 0.0)), "a chance of nan"),
    ],
)
def test_evidence_that_is_off_says_so(made, cause, monkeypatch):
    monkeypatch.setattr(tables, "evidence_of", lambda *_, **__: made)
    (row,) = tables.evidence(tables.Asked(targets=("ising-8",), solvers=("ais",)))
    assert cause in row["cause"]
    assert (row["reached"] == "yes") == (not cause)
    assert str(row["found"]) == "60.100 ± 0.050"


def test_squares_of_normal_errors_are_no_surprise():
    """The share of surprises among sets of 20 normal z; with errors a half too small they are most."""
    z = normals(400, 20, seed=8)
    few, most = (
        sum(found(tuple(row.tolist())).chance < 0.05 for row in rows) for rows in (z, 2 * z)
    )
    assert 5 < few < 40
    assert most > 390


def test_evidence_of_a_target(monkeypatch):
    seeds = []

    def spied(*arguments, seed, **others):
        seeds.append(seed)
        return stk.log_partition(*arguments, seed=seed, chains=32, pilot=16, levels=3, **others)

    monkeypatch.setattr(evidence, "log_partition", spied)
    torus = Target("torus", stk.load("ising", size=3), log_z=partition.kaufman(3, 0.3))
    made = evidence_of(torus, "ais", 2)
    assert len(set(seeds)) == 2
    assert len(set(made.value)) == 2
    assert made.chance > 1e-6
    assert made.evaluations > 32
    with pytest.raises(stk.InvalidArgument, match="log Z"):
        evidence_of(Target("none", NORMAL.field), "ais", 1)


# Inverse problems.


@pytest.mark.thorough
@pytest.mark.parametrize("components", [1, 25])
@pytest.mark.parametrize("measurements", [1, 2])
def test_exact_posteriors_are_the_prior_times_the_likelihood(measurements, components):
    """By a sum over a grid: log p(y), and the means of draws and of their squares within six standard errors."""
    made = Problem.made(2, measurements, components, 3)
    draws, evidence_of_y = made.exact(20_000, 1)
    reach = 6.0 if components == 1 else 2.2
    along = torch.linspace(-reach, reach, 601, **DOUBLE)
    x = torch.cartesian_prod(along, along)
    off = made.y - x @ made.operator.T
    joint = made.prior.log_prob(x) + D.Normal(0, double(made.noise)).log_prob(off).sum(1)
    cell = 2 * math.log(float(along[1] - along[0]))
    assert evidence_of_y == pytest.approx(float(joint.logsumexp(0)) + cell, abs=1e-6)
    for statistic in (lambda v: v, torch.square):
        values = statistic(draws)
        gap = values.mean(0) - joint.softmax(0) @ statistic(x)
        assert (gap.abs() < 6 * values.std(0) / len(values) ** 0.5).all()
    moved = draws + 0.1 * made.operator[0]
    assert ((moved.mean(0) - joint.softmax(0) @ x).abs() > 6 * draws.std(0) / 141).any()


@pytest.mark.parametrize("name", inverse.CONTESTANTS)
def test_contestants_have_as_many_evaluations(name):
    solver, method = inverse.CONTESTANTS[name]
    made = Problem.made(2, 1, 25, 0)
    seen = stk.LinearGaussian(made.operator, made.y, made.noise)
    field = resolve(
        stk.posterior(made.prior.noised(stk.VP()), seen, method), solver.needs, timed=True
    )
    assert len(solver.milestones(field)) == 200
    assert solver.step_cost == {"denoise": 1}
    assert not solver.init_cost


@pytest.mark.thorough
def test_distances_tell_which_sampler_is_right(monkeypatch):
    monkeypatch.setattr(inverse, "DRAWS", 128)
    contestants = {
        "twisted": (stk.TwistedSMC(24, island=128), "mmps"),
        "deaf": (stk.ReverseSDE("ancestral", 24), stk.DPS(scale=1e-6)),
    }
    monkeypatch.setattr(inverse, "CONTESTANTS", contestants)
    twisted, deaf = (distances("mixture-2", name, 2) for name in contestants)
    assert len(twisted.z) == 2
    assert not deaf.z
    assert twisted.floor == deaf.floor
    assert sum(twisted.found) < 0.5 * sum(deaf.found)


WRONG = {
    "narrow": lambda x, prior: x.mean(1, True) + 0.6 * (x - x.mean(1, True)),
    "wide": lambda x, prior: x.mean(1, True) + 1.6 * (x - x.mean(1, True)),
    "shifted": lambda x, prior: x + 0.25,
    "deaf": lambda x, prior: prior,
}


@pytest.fixture(scope="module")
def simulated():
    """Truths of a prior, measurements, exact draws of each posterior, and draws of the prior."""
    problem = Problem.made(2, 1, 25, 1)
    truth, y = problem.simulated(100, 2)
    draws = [replace(problem, y=row).exact(inverse.RANKED, i)[0] for i, row in enumerate(y)]
    prior = problem.simulated(100 * inverse.RANKED, 3)[0].reshape(100, inverse.RANKED, 2)
    return problem, truth, y, torch.stack(draws), prior


def test_exact_posteriors_are_calibrated(simulated):
    problem, truth, y, draws, _ = simulated
    found = calibrated(problem, truth, y, draws)
    assert min(found.sbc, found.tarp) > 1e-3


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_calibrated_is_seen(wrong, simulated):
    """At the rate of false alarms by which the table judges: by SBC what is off, by both who does not listen."""
    problem, truth, y, draws, prior = simulated
    found = calibrated(problem, truth, y, WRONG[wrong](draws, prior))
    assert found.sbc <= tables.SURPRISE
    if wrong in ("wide", "deaf"):
        assert found.tarp <= tables.SURPRISE


@pytest.mark.parametrize("components", [1, 25])
def test_simulated_measurements_are_those_of_their_truths(components):
    problem = Problem.made(8, 2, components, 1)
    x, y = problem.simulated(4000, 5)
    off = (y - x @ problem.operator.T) / problem.noise
    assert abs(float(off.var()) - 1) < 6 * (2 / 8000) ** 0.5
    share, means = problem.prior.weights / problem.prior.weights.sum(), problem.prior.means
    assert ((x.mean(0) - share @ means).abs() < 6 * x.std(0) / 4000**0.5).all()
    squares = share @ (means.square() + problem.prior.stds[:, None] ** 2)
    assert ((x.square().mean(0) - squares).abs() < 6 * x.square().std(0) / 4000**0.5).all()


@pytest.mark.thorough
def test_calibration_tells_which_sampler_is_right(monkeypatch):
    monkeypatch.setattr(inverse, "ISLAND", 64)
    contestants = {
        "twisted": (stk.TwistedSMC(32), "mmps"),
        "deaf": (stk.ReverseSDE("ancestral", 24), stk.DPS(scale=1e-6)),
    }
    monkeypatch.setattr(inverse, "CONTESTANTS", contestants)
    twisted, deaf = (calibration("mixture-2", name, 50) for name in contestants)
    assert min(twisted.sbc, twisted.tarp) > 1e-3
    assert deaf.sbc <= 1e-3


@pytest.mark.parametrize(
    ("found", "ranks", "cause"),
    [
        ((0.1, 0.12), (0.4, 0.3), ""),
        ((0.4, 0.4), (0.4, 0.3), "1.5 times the floor"),
        ((0.1, 0.12), (1e-4, 0.3), "not calibrated by SBC (p 0.0001)"),
        ((0.1, 0.12), (0.4, 2e-4), "not calibrated by TARP"),
        ((0.1, 0.12), (math.nan, 0.5), "SBC"),
    ],
)
def test_rows_of_posteriors(found, ranks, cause, monkeypatch):
    told = Distances(found, (0.1, 0.1), (1.0, 2.0))
    monkeypatch.setattr(tables, "distances", lambda *_: told)
    monkeypatch.setattr(tables, "calibration", lambda *_: Calibration(*ranks))
    (row,) = tables.posteriors(tables.Asked(solvers=("twisted-mmps",)))
    assert row["mean z^2 of log p(y)"] == "2.50"
    assert cause in row["cause"]
    assert (row["reached"] == "yes") == (not cause)
    assert not list(tables.posteriors(tables.Asked(targets=("banana",))))


# What a reader is told.


def reached(worst=5000.0, tuning=1000.0, failed=0):
    last = (0.005, 0.004)
    return Reached(Crossing(worst, 90.0), Crossing(4000.0, 50.0), tuning, 7000.0, failed, last, 1.0)


@pytest.mark.parametrize(
    ("made", "cause"),
    [
        (reached(), ""),
        (reached(5600.0), "1.00 times the best"),
        (reached(tuning=2500.0), "more than 2,000"),
        (reached(math.inf), "the median error is 0.005 after 7,000"),
        (reached(failed=3), "3 chains failed"),
    ],
)
def test_what_is_not_reached_says_why(made, cause, monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "gradients_to_low_error", lambda *_: made)
    (row,) = tables.low_error(tables.Asked(targets=("banana",), solvers=("mclmc",)))
    assert cause in row["cause"]
    assert (row["reached"] == "yes") == (not cause)
    assert row["published: best unadjusted"] == 6580
    told, page = write_report(tmp_path, {"low-error": [row]}, {"seed": 0})
    values = json.loads(told.read_text(), parse_constant=pytest.fail)
    assert values["tables"]["low-error"][0]["cause"] == row["cause"]
    assert "6,580" in page.read_text()


def test_bench_by_the_command_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tables, "gradients_to_low_error", lambda *_: reached())
    monkeypatch.setattr(tables, "_by_peer", lambda *_: reached())
    monkeypatch.setattr(tables, "evidence_of", lambda *_, **__: found())
    monkeypatch.setattr(tables, "distances", lambda *_: Distances((0.1, 0.2), (0.1, 0.1), ()))
    monkeypatch.setattr(tables, "calibration", lambda *_: Calibration(0.5, 0.5))
    for name in ("few-steps", "amortised"):  # tests/test_few_steps.py, tests/test_amortised.py
        table = replace(tables.TABLES[name], rows=lambda _: iter(()))
        monkeypatch.setitem(tables.TABLES, name, table)
    assert main(["bench", "low-error", "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "bench done: 4 rows, 4 reached" in said
    assert (tmp_path / "out" / "index.html").exists()
    assert main(["bench", "--full", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["tables"]
    of_evidence = [(row["target"], row["solver"]) for row in made["evidence"]]
    methods = dict.fromkeys(tables.EVIDENCE_TARGETS, ("ais", "smc"))
    methods |= {"cox": ("",), "cox-whitened": ("",)}
    methods["gaussians-40"] = ("ais", "smc", "ais/base", "smc/base")
    assert of_evidence == [(t, m) for t, ms in methods.items() for m in ms]
    without = [row for row in made["evidence"] if not row["solver"]]
    assert all("finpines.csv" in row["cause"] and row["reached"] == "no" for row in without)
    assert len(made["posteriors"]) == len(inverse.PROBLEMS) * len(inverse.CONTESTANTS)
    rows = made["low-error"]
    assert {row["target"] for row in rows} == set(tables.LOW_ERROR_TARGETS)
    missing = [row for row in rows if row["target"] in NEED_DATA]
    assert len(missing) == len(NEED_DATA)
    assert all("--data" in row["cause"] and row["reached"] == "no" for row in missing)


@pytest.mark.parametrize(
    "words",
    [
        ["nothing"],
        ["--target", "nothing"],
        ["--solver", "nothing", "--target", "banana"],
        ["--data", "nothing-there"],
        ["--target", "brownian"],
        ["evidence", "--target", "cox"],
        ["evidence", "--target", "banana"],
        ["low-error", "--target", "ising-8"],
    ],
)
def test_wrong_words_are_refused(words, capsys):
    assert main(["bench", *words]) == 2
    assert "scoretk" in capsys.readouterr().err


def test_quick_and_full_exclude_each_other():
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "--quick", "--full"])


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(stk.InvalidArgument, match="ground_truth"):
        load_target("german-credit", tmp_path)


def test_targets_are_listed_as_they_are_shown():
    assert [e.name for e in list_targets()][: len(BUILT_IN_TARGETS)] == list(BUILT_IN_TARGETS)
    with pytest.raises(stk.UnknownName, match="banana"):
        load_target("bananna")
    assert known.banana(None).dim == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-o", "{file}"], "--output: expected a folder"),
        (["--seed", "-3"], "--seed: expected an integer"),
    ],
)
def test_what_would_fail_after_hours_is_refused_before_any_row(words, says, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    given = [word.format(file=file) for word in words]
    assert main(["bench", "low-error", "--target", "banana", *given]) == 2
    told = capsys.readouterr()
    assert says in told.err
    assert "banana" not in told.out
