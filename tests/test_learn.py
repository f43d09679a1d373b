"""Losses whose minimum is known, and a fit loop that leaves nothing behind."""

import math

import pytest
import torch
from torch import nn

import scoretk as stk
from scoretk.learn.fitting import Recipe, fit
from scoretk.learn.losses import (
    denoising_score_matching,
    flow_matching,
    noise_prediction,
    stratified,
)
from scoretk.learn.states import States
from scoretk.models.targets.mixture import gaussian
from tests.evidence import assert_mean, mean_z, z_limit

N, MEAN, STD = 200_000, 0.7, 0.5


def draws(seed):
    generator = torch.Generator().manual_seed(seed)
    x = MEAN + STD * torch.randn(N, 1, generator=generator, dtype=torch.float64)
    other = torch.randn(N, 1, generator=generator, dtype=torch.float64)
    return x, torch.rand(N, generator=generator, dtype=torch.float64), other


def exact(path):
    return gaussian(dim=1, mean=MEAN, std=STD).noised(path)


def test_noise_prediction_at_its_minimum_is_the_posterior_variance():
    path, (x, t, noise) = stk.Cosine(), draws(0)
    alpha2, sigma2 = path.alpha(t) ** 2, path.sigma(t) ** 2
    left = alpha2 * STD**2 / (alpha2 * STD**2 + sigma2)  # Var[eps | x_t]
    field = exact(path)
    assert_mean(noise_prediction(field.noise, x, t, noise, path) - left, 0.0)
    off = noise_prediction(lambda y, s: 1.5 * field.noise(y, s), x, t, noise, path) - left
    assert mean_z(off, 0.0) > 2 * z_limit()


def test_flow_matching_at_its_minimum_is_the_conditional_variance():
    x, t, start = draws(1)
    left = STD**2 / ((t * STD) ** 2 + (1 - t) ** 2)  # Var[x_1 - x_0 | x_t]
    field = exact(stk.Linear())
    assert_mean(flow_matching(field.velocity, x, t, start) - left, 0.0)
    backwards = flow_matching(lambda y, s: field.velocity(y, 1 - s), x, t, start) - left
    assert mean_z(backwards, 0.0) > 2 * z_limit()


def test_denoising_score_matching_at_its_minimum():
    (x, _, noise), sigma = draws(2), 0.4
    left = STD**2 / (STD**2 + sigma**2)
    smoothed = gaussian(dim=1, mean=MEAN, std=math.hypot(STD, sigma))
    assert_mean(denoising_score_matching(smoothed.score, x, noise, sigma), left)
    sharp = denoising_score_matching(gaussian(dim=1, mean=MEAN, std=STD).score, x, noise, sigma)
    assert mean_z(sharp, left) > 2 * z_limit()


def test_losses_average_over_the_event_and_refuse_what_does_not_fit():
    x, t = torch.ones(4, 2, 3), torch.rand(4, generator=torch.Generator().manual_seed(0))
    assert (
        noise_prediction(lambda y, s: torch.zeros_like(y), x, t, x, stk.VP()).tolist() == [1.0] * 4
    )
    assert flow_matching(lambda y, s: torch.zeros_like(y), x[:0], t[:0], x[:0]).shape == (0,)
    with pytest.raises(stk.InvalidArgument, match="t:"):
        flow_matching(lambda y, s: y, x, t[:3], x)
    with pytest.raises(stk.InvalidArgument, match="noise"):
        noise_prediction(lambda y, s: y, x, t, x[:, :1], stk.VP())


def test_stratified_times_fill_each_slice_once():
    u = stratified(100, torch.Generator().manual_seed(0))
    assert (u * 100).floor().tolist() == list(range(100))


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        return x @ self.weight


def line_data(n=400):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(3))


def squared(line, truth=(2.0, -1.0)):
    return lambda rows, generator: (line(rows) - rows @ torch.tensor(truth)).square()


@pytest.mark.thorough
def test_fit_finds_the_minimum_keeps_the_best_weights_and_ends_in_eval_mode():
    line, seen = Line(), []
    done = fit(
        line,
        squared(line),
        line_data(),
        Recipe(600, learning_rate=0.05, weight_decay=0.0),
        report=seen.append,
    )
    torch.testing.assert_close(line.weight.detach(), torch.tensor([2.0, -1.0]), atol=0.02, rtol=0)
    assert not line.training
    assert torch.equal(done.weights["weight"], line.weight)
    assert done.history == seen
    assert len(seen) == 20
    assert done.step == min(seen, key=lambda p: p.held_out).step


def test_equal_seeds_fit_equal_weights():
    found = []
    for seed in (0, 0, 1):
        line = Line()
        fit(line, squared(line), line_data(), Recipe(30), seed=seed)
        found.append(line.weight.detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_loss_that_becomes_nan_stops_with_the_last_good_weights():
    line, calls = Line(), []

    def loss(rows, generator):
        calls.append(1)
        value = squared(line)(rows, generator)
        return value * math.nan if len(calls) == 8 else value

    with pytest.raises(stk.FitFailure, match="step 7") as caught:
        fit(line, loss, line_data(), Recipe(50, held_out=0.0))
    assert caught.value.step == 7
    assert bool(torch.isfinite(line.weight).all())
    assert torch.equal(line.weight, caught.value.weights["weight"])
    assert not line.training


def test_held_out_rows_are_not_trained_on():
    line, data, trained = Line(), line_data(50), set()

    def loss(rows, generator):
        if line.training:
            trained.update(map(tuple, rows.tolist()))
        return squared(line)(rows, generator)

    fit(line, loss, data, Recipe(200, batch=16, held_out=0.2))
    assert len(trained) == 40


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"held_out": 1.0}, {"learning_rate": -1.0}, {"decay": 2.0}]
)
def test_recipes_refuse_nonsense(wrong):
    with pytest.raises(stk.InvalidArgument):
        Recipe(**({"steps": 10} | wrong))


class KeepsWhatItIsGiven:
    """A loss's memory that takes over the tensors it is loaded with, and adds to them in place."""

    def __init__(self):
        self.total = torch.zeros(2)

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state["total"]

    def for_part(self, number):
        self.total = self.total + number


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("copied", [True, False])
def test_what_an_evaluation_adds_to_a_state_is_gone_after_it(monkeypatch, parts, copied):
    """And so is what one part adds for another; the mutant hands over the tensors that are kept."""
    if not copied:
        monkeypatch.setattr(
            States,
            "_set",
            lambda self, kept: [
                o.load_state_dict(s) for o, s in zip(self.objects, kept, strict=True)
            ],
        )
    memory = KeepsWhatItIsGiven()
    states = States([memory], parts)
    for _ in range(2):
        with states.unchanged():
            memory.total += 7
    ends = []
    for part in range(parts):
        with states.of(part):
            ends.append(memory.total.tolist())
    assert (ends == [[float(part)] * 2 for part in range(parts)]) is copied
