"""Inverse problems on digits: the measures on a case known in full, the baselines, and what the demo promises."""

import json
import math
from unittest import mock

import pytest
import torch

import scoretk as stk
from scoretk.demo import inverse
from scoretk.demo.inverse import HEAD, PROBLEMS, agreement, linear_estimate, lines_of, run_inverse
from scoretk.models.digits.data import EVENT_SHAPE, load_digits
from scoretk.solvers import ReverseSDE
from tests.test_cli import run

DIM = math.prod(EVENT_SHAPE)


@pytest.fixture(scope="module")
def made(tmp_path_factory, coarse_pictures):
    """The demo on so few images, draws and steps that its files and rows are seen, not how good they are."""
    folder = tmp_path_factory.mktemp("inverse") / "made" / "here"
    with mock.patch.multiple(inverse, DRAWS=2, ReverseSDE=lambda method, _: ReverseSDE(method, 4)):
        return folder, run_inverse(folder, images=3, steps=2)


def gaussian(n, seed=0):
    """A law of images, N(mean, L L^T), and n draws of it, float64."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(EVENT_SHAPE, generator=generator, dtype=torch.float64)
    root = torch.randn(DIM, DIM, generator=generator, dtype=torch.float64) / DIM**0.5
    z = torch.randn(n, DIM, generator=generator, dtype=torch.float64)
    return mean, root @ root.T, mean + (z @ root.T).reshape(-1, *EVENT_SHAPE), generator


def posterior_draws(problem, y, mean, covariance, k, generator):
    """Exact draws of the Gaussian posteriors, `(n, k, 1, 8, 8)`: the estimate, plus noise of the posterior's covariance."""
    centre = linear_estimate(problem, y, mean, covariance)
    a = problem.operator(torch.eye(DIM, dtype=torch.float64).reshape(-1, *EVENT_SHAPE)).flatten(1).T
    gain = (
        covariance
        @ a.T
        @ torch.linalg.inv(a @ covariance @ a.T + problem.std**2 * torch.eye(len(a)))
    )
    left = covariance - gain @ a @ covariance
    values, vectors = torch.linalg.eigh((left + left.T) / 2)
    z = torch.randn(len(y), k, DIM, generator=generator, dtype=torch.float64)
    return centre[:, None] + (z * values.clamp(min=0).sqrt() @ vectors.T).reshape(
        len(y), k, *EVENT_SHAPE
    )


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_exact_draws_have_spread_and_fit_one_and_others_have_not(problem):
    mean, covariance, truth, generator = gaussian(400)
    y = problem.measure(truth)
    x = posterior_draws(problem, y, mean, covariance, 8, generator)
    good = agreement(problem, y, x, truth)
    assert good.spread == pytest.approx(
        1, abs=0.05
    )  # standard error below .01: 400 images of 64 pixels
    assert good.fit == pytest.approx(1, abs=0.05)
    assert good.single == pytest.approx(good.error * 4 / 3, rel=0.05)  # of 2 v and v (1 + 1/8)
    centre = linear_estimate(problem, y, mean, covariance)[:, None]
    assert agreement(problem, y, centre + (x - centre) / 2, truth).spread < 0.6  # sure of itself
    assert agreement(problem, y, x + 2 * problem.std, truth).fit > 1.5  # deaf to the measurement


@pytest.mark.thorough
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_the_linear_estimate_is_the_best_linear_one(problem):
    """Its error is orthogonal to every linear function of y, which no multiple of it has."""
    mean, covariance, truth, _ = gaussian(20_000)
    y = problem.measure(truth)
    found = linear_estimate(problem, y, mean, covariance)
    seen = (y - problem.operator(mean[None])).flatten(1)

    def largest(estimate):
        products = (truth - estimate).flatten(1)[:, :, None] * seen[:, None, :8]
        return float((products.mean(0) / products.std(0)).abs().max()) * len(truth) ** 0.5

    assert (
        largest(found) < 6
    )  # in standard errors, for up to 512 products: one false alarm in a million
    assert largest(mean + 1.1 * (found - mean)) > 12


def test_what_is_measured_is_always_the_same_and_of_the_stated_noise():
    truth = load_digits().test[:100]
    for problem in PROBLEMS:
        y = problem.measure(truth)
        assert torch.equal(y, problem.measure(truth))
        assert torch.equal(y[:10], problem.measure(truth[:10]))
        assert float((y - problem.operator(truth)).std()) == pytest.approx(problem.std, rel=0.1)
        assert problem.plain(y, truth.mean(0)).shape == truth.shape == problem.shown(y).shape


@pytest.mark.slow
def test_every_method_beats_the_plain_baseline_and_the_best_the_linear_one(tmp_path):
    rows = run_inverse(tmp_path, images=20, steps=25)
    for problem in PROBLEMS:
        ours = [r for r in rows if r.problem == problem.name]
        plain, linear = (r.agreement.error for r in ours if not r.model)
        drawn = {(r.model, r.method.split(",")[0]): r for r in ours if r.model}
        assert all(r.agreement.error < plain for r in drawn.values()), problem.name
        assert not any(r.failed for r in drawn.values())
        for method in (("digits-diffusion", "mmps"), ("digits-energy", "hmc")):
            found = drawn[method].agreement
            assert found.error < 0.95 * linear, (problem.name, method)
            assert 0.8 < found.spread < 1.35
            assert 0.9 < found.fit < 1.2
            assert drawn[method].single_accuracy > 0.7


@pytest.mark.thorough
def test_every_problem_is_met_by_every_method(made):
    _, rows = made
    assert {r.model for r in rows} == {"", "digits-diffusion", "digits-energy"}
    for problem in PROBLEMS:
        methods = {r.method.split(",")[0] for r in rows if r.problem == problem.name and r.model}
        assert methods == {"mmps", "pigdm", "dps", "replacement", "hmc", "mala"}


@pytest.mark.thorough
def test_files_and_lines(made):
    folder, rows = made
    table = json.loads((folder / "inverse.json").read_text())
    assert len(table["rows"]) == len(rows)
    for problem in PROBLEMS:
        assert (folder / f"{problem.name}.png").read_bytes().startswith(b"\x89PNG")
    assert all(len(line) == len(HEAD) for line in lines_of(rows))


def test_command(capsys, tmp_path):
    start = ("demo", "--inverse", "--models")
    (tmp_path / "file").touch()
    assert run(capsys, *start, "digits-energie", "-o", tmp_path / "d")[0] == 2
    assert run(capsys, *start, "digits-energy", "-o", tmp_path / "file")[0] == 2


def test_a_prior_that_is_none_of_these_images_is_refused(tmp_path):
    with pytest.raises(stk.ScoretkError), mock.patch.object(inverse, "PROBLEMS", PROBLEMS[:1]):
        run_inverse(tmp_path, models=["rbm"], images=10, steps=2)
