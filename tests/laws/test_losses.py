"""Objectives of learning against their formulas, written out row by row."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import distributions as td

import scoretk as stk
from scoretk.core.noise import Noise, derive
from scoretk.core.streams import Stream
from scoretk.fields.paths import VP, Linear
from scoretk.learn import Player, Recipe, fit
from scoretk.learn.adversarial import (
    DIVERGENCES,
    f_gan_critic,
    f_gan_generator,
    gradient_penalty,
    wasserstein_critic,
)
from scoretk.learn.contrastive import ContrastiveDivergence, ReplayBuffer
from scoretk.learn.couplings import optimal_coupling
from scoretk.learn.likelihoods import log_weights, negative_elbo, negative_iwae
from scoretk.learn.losses import (
    denoising_score_matching,
    flow_matching,
    prediction_error,
    stratified,
)
from scoretk.learn.noise_contrastive import flow_contrastive, noise_contrastive
from scoretk.learn.resume import packed, unpacked
from scoretk.learn.sampler_divergence import nearest_neighbour_entropy, sampler_divergence
from scoretk.learn.score_matching import implicit_score_matching, sliced_score_matching
from scoretk.learn.states import States
from scoretk.learn.weightings import WEIGHTINGS, weighting

N, D = 5, 3


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MATRIX = randn(D, D, seed=9)


def score(x):
    return x @ MATRIX.T - x**3 / 3


def jacobian(x):
    return MATRIX - torch.diag(x**2)


def test_implicit_and_sliced_score_matching():
    x, probes = randn(N, D), randn(4, N, D, seed=1)
    with torch.no_grad():
        found = implicit_score_matching(score, x)
        sliced = sliced_score_matching(score, x, probes)
        plain = sliced_score_matching(score, x, probes, variance_reduced=False)
    for i in range(N):
        s, j, v = score(x[i]), jacobian(x[i]), probes[:, i]
        curvature = torch.stack([w @ j @ w for w in v]).mean()
        assert float(found[i]) == pytest.approx(float(s @ s / 2 + j.trace()))
        assert float(sliced[i]) == pytest.approx(float(s @ s / 2 + curvature))
        assert float(plain[i]) == pytest.approx(float((v @ s).square().mean() / 2 + curvature))


@pytest.mark.parametrize("loss", ["implicit", "reduced", "plain"])
def test_a_score_may_be_the_same_everywhere(loss):
    """It has no curvature, and its parameters a gradient: of a constant with one and without, in x alone of some entries."""
    x, probes = randn(N, D), randn(4, N, D, seed=1)
    asks = {
        "implicit": lambda s: implicit_score_matching(s, x),
        "reduced": lambda s: sliced_score_matching(s, x, probes),
        "plain": lambda s: sliced_score_matching(s, x, probes, variance_reduced=False),
    }
    for learned in (True, False):
        level = torch.linspace(-1, 1, D, dtype=torch.float64).requires_grad_(learned)
        found = asks[loss](lambda x, level=level: level.expand_as(x))
        square = level.square().sum().expand(N)
        if loss == "plain":
            square = (probes @ level).square().mean(0)
        torch.testing.assert_close(found, square / 2)
        if learned:
            (slope,) = torch.autograd.grad(found.sum(), level)
            (expected,) = torch.autograd.grad(square.sum() / 2, level)
            torch.testing.assert_close(slope, expected)


def net(x, t):
    return torch.tanh(x) * (1 + t[:, None])


def test_regressions_of_every_prediction():
    path, x, noise = VP(0.2, 9.0), randn(N, D), randn(N, D, seed=1)
    t = torch.linspace(0.15, 0.85, N, dtype=torch.float64)
    alpha, sigma, dalpha, dsigma = (v[:, None] for v in path(t))
    there = alpha * x + sigma * noise
    targets = {
        "data": x,
        "noise": noise,
        "score": -noise / sigma,
        "velocity": dalpha * x + dsigma * noise,
        "v": alpha * noise - sigma * x,
    }
    plain = prediction_error(net, x, t, noise, path, "noise")
    for name, target in targets.items():
        right = (net(there, t) - target).square().mean(1)
        torch.testing.assert_close(prediction_error(net, x, t, noise, path, name), right)
        # an error e of the noise, as an error of this prediction
        shifted = {
            "data": -sigma / alpha,
            "noise": torch.ones_like(alpha),
            "score": -1 / sigma,
            "velocity": dsigma - dalpha * sigma / alpha,
            "v": alpha + sigma**2 / alpha,
        }[name]
        torch.testing.assert_close(weighting(name, path, t), shifted[:, 0].square())
    assert plain.shape == (N,)
    snr = (alpha / sigma)[:, 0] ** 2
    h = 1e-6
    growth = (path.log_snr(t + h) - path.log_snr(t - h)) / (2 * h)
    torch.testing.assert_close(weighting("likelihood", path, t), growth / 2, rtol=1e-6, atol=0)
    capped = torch.minimum(snr, torch.tensor(5.0)) / snr
    torch.testing.assert_close(weighting("min-snr", path, t), capped)
    torch.testing.assert_close(weighting("edm", path, t), (1 / snr + 0.25) / 0.25)
    assert set(WEIGHTINGS) == {*targets, "likelihood", "min-snr", "edm"}


def test_flow_matching_and_denoising_score_matching():
    x, start, t = randn(N, D), randn(N, D, seed=1), torch.linspace(0.1, 0.9, N, dtype=torch.float64)
    along = (1 - t[:, None]) * start + t[:, None] * x
    right = (net(along, t) - (x - start)).square().mean(1)
    torch.testing.assert_close(flow_matching(net, x, t, start), right)
    short = flow_matching(net, x.float(), t, start.float())  # times of another type than the data
    torch.testing.assert_close(short, right.float(), check_dtype=False)
    for sigma in (0.7, torch.linspace(0.2, 2.0, N, dtype=torch.float64)):
        s = torch.as_tensor(sigma, dtype=torch.float64).expand(N)[:, None]
        right = (s * score(x + s * start) + start).square().mean(1)
        torch.testing.assert_close(denoising_score_matching(score, x, start, sigma), right)


def test_stratified_times_are_one_in_each_part():
    generator = torch.Generator().manual_seed(0)
    for n in (1, 7, 64):
        t = stratified(n, generator)
        assert torch.equal((t * n).floor(), torch.arange(n).float())
    several = torch.stack([stratified(4, generator) * 4 % 1 for _ in range(200)])
    assert float(several.std(0).min()) > 0.2


def energy(x):
    return (x @ MATRIX).square().sum(1) / 2


def test_noise_contrastive_estimation_weighs_noise_by_its_share():
    x, y, log_z = randn(N, D), randn(3 * N - 1, D, seed=2), torch.tensor(0.7, dtype=torch.float64)
    law = td.Independent(td.Normal(torch.zeros(D).double(), 1.3), 1)
    nu = len(y) / len(x)
    ours, noise = (
        (torch.exp(-energy(v) - log_z) for v in (x, y)),
        (law.log_prob(v).exp() for v in (x, y)),
    )
    (px, py), (qx, qy) = ours, noise
    right = -(px / (px + nu * qx)).log().mean() - nu * (nu * qy / (py + nu * qy)).log().mean()
    torch.testing.assert_close(noise_contrastive(energy, log_z, law.log_prob, x, y), right)


def test_conjugates_of_divergences_are_suprema():
    """`conjugate(v) = sup_u u a - f(u)` at `a = activation(v)`: f-GAN's bound is made of the two."""
    u = torch.logspace(-5, 4, 200_001, dtype=torch.float64)
    v = torch.tensor([-1.3, -0.4, 0.2], dtype=torch.float64)
    for name, d in DIVERGENCES.items():
        found = torch.stack([(u * a - d.f(u)).max() for a in d.activation(v)])
        torch.testing.assert_close(d.conjugate(v), found, rtol=1e-4, atol=1e-4, msg=name)
        zero = -2 * math.log(2) if name == "gan" else 0.0
        assert float(d.f(torch.ones(1, dtype=torch.float64))) == pytest.approx(zero)


def critic(x):
    return (x @ MATRIX).sum(1) + x[:, 0] ** 2


def test_adversarial_losses():
    x, y, mix = randn(N, D), randn(N, D, seed=1), torch.linspace(0, 1, N, dtype=torch.float64)
    gan = f_gan_critic(critic, x, y, "gan")
    right = -torch.sigmoid(critic(x)).log().mean() - torch.sigmoid(-critic(y)).log().mean()
    torch.testing.assert_close(gan, right)
    torch.testing.assert_close(f_gan_generator(critic, y), -torch.sigmoid(critic(y)).log().mean())
    saturating = f_gan_generator(critic, y, saturating=True)
    torch.testing.assert_close(saturating, torch.sigmoid(-critic(y)).log().mean())
    between = (mix[:, None] * x + (1 - mix[:, None]) * y).requires_grad_()
    (g,) = torch.autograd.grad(critic(between).sum(), between)
    right = critic(y).mean() - critic(x).mean() + 7 * (g.norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(wasserstein_critic(critic, x, y, mix, 7.0), right)


def test_bounds_of_a_linear_gaussian_model():
    x, noise = randn(N, D), randn(6, N, 2, seed=1)
    root = torch.tensor([[1.0, 0.0], [0.5, 0.8]], dtype=torch.float64)
    mean = x[:, :2] * 0.4
    posterior = td.MultivariateNormal(mean, scale_tril=root.expand(N, 2, 2))
    weight = randn(D, 2, seed=4)

    def decoder(z):
        return td.Independent(td.Normal(z @ weight.T, 0.8), 1)

    prior = td.Independent(td.Normal(torch.zeros(2).double(), 1.0), 1)
    z = mean + noise @ root.T
    logs = torch.stack(
        [
            decoder(z[k]).log_prob(x) + prior.log_prob(z[k]) - posterior.log_prob(z[k])
            for k in range(6)
        ]
    )
    torch.testing.assert_close(log_weights(x, posterior, decoder, prior, noise), logs)
    torch.testing.assert_close(negative_elbo(x, posterior, decoder, prior, noise), -logs.mean(0))
    found = negative_iwae(x, posterior, decoder, prior, noise)
    torch.testing.assert_close(found, -logs.exp().mean(0).log())


def test_the_divergence_of_a_sampler_is_energy_less_entropy():
    rows, others = randn(N, D), randn(40, D, seed=3)
    ball = math.pi ** (D / 2) / math.gamma(D / 2 + 1)
    harmonic = sum(1 / k for k in range(1, 41))  # digamma(m + 1) - digamma(1)
    gaps = torch.cdist(rows, others).amin(1)
    entropy = D * gaps.log() + math.log(ball) + harmonic
    torch.testing.assert_close(nearest_neighbour_entropy(rows, others), entropy)
    x = rows.clone().requires_grad_()
    value = sampler_divergence(energy, x, others)
    torch.testing.assert_close(value.detach(), energy(rows) - entropy)
    y = rows.clone().requires_grad_()
    nearest = others[torch.cdist(rows, others).argmin(1)]
    closed = energy(y) - D * (y - nearest).norm(dim=1).log()
    torch.testing.assert_close(
        torch.autograd.grad(value.sum(), x)[0], torch.autograd.grad(closed.sum(), y)[0]
    )


CURVED = {"w": (D, D), "x": (N, D), "y": (N, D)}
"""Weights of an energy `sum (w x)^4 / 4 + ...`, data and other draws, of which each wants a gradient."""


def curved(w):
    return lambda x: ((x @ w) ** 4).sum(-1) / 4 + (x @ w).square().sum(-1)


def slope(w):
    return lambda x: -((x @ w) ** 3) @ w.T - x


SIGNS = torch.ones(2, N, D, dtype=torch.float64)
GRADIENTS = {
    "implicit score matching": (lambda w, x, y: implicit_score_matching(slope(w), x), "w"),
    "sliced score matching": (lambda w, x, y: sliced_score_matching(slope(w), x, SIGNS), "w"),
    "sampler divergence": (lambda w, x, y: sampler_divergence(curved(w), x, y), "x"),
    "entropy": (lambda w, x, y: nearest_neighbour_entropy(x, y), "x"),
    "penalty": (lambda w, x, y: gradient_penalty(curved(w), x), "w"),
    "penalty at 0": (lambda w, x, y: gradient_penalty(curved(w), x, 0.0), "w"),
    "critic": (lambda w, x, y: wasserstein_critic(curved(w), x, y, randn(N).sigmoid()), "wxy"),
    "generator": (lambda w, x, y: f_gan_generator(curved(w), y), "wy"),
    "flow contrastive": (
        lambda w, x, y: flow_contrastive(curved(w), w[0, 0], lambda v: -v.square().sum(-1), x, y),
        "wxy",
    ),
    "optimal coupling": (lambda w, x, y: optimal_coupling(x, y), "x"),
    "contrastive divergence": (
        lambda w, x, y: ContrastiveDivergence(stk.ULA(0.01), 2)(stk.Energy(curved(w), (D,)), x)[0],
        "wx",
    ),
    "negatives": (
        lambda w, x, y: ContrastiveDivergence(stk.ULA(0.01), 2)(stk.Energy(curved(w), (D,)), x)[1],
        "",
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_flow_where_a_loss_says_and_nowhere_else(name):
    """What is held, other draws or the parameters of an energy, gets none, and no graph is kept for it."""
    loss, through = GRADIENTS[name]
    given = {n: randn(*s, seed=i).requires_grad_() for i, (n, s) in enumerate(CURVED.items())}
    if name == "optimal coupling":
        pytest.importorskip("ot")
    value = loss(**given)
    assert value.requires_grad == bool(through)
    if not through:
        return
    found = torch.autograd.grad(value.square().sum(), list(given.values()), allow_unused=True)
    assert {n for n, g in zip(given, found, strict=True) if g is not None} == set(through)


def test_contrastive_divergence_is_the_gap_of_energies_after_its_steps():
    """Negatives are those of the solver from the data, with the noise of this call; the loss is their gap in energy."""
    data, field = randn(6, 2), stk.Energy(lambda x: (x**4).sum(1) / 4 + x[:, 0], (2,))
    cd = ContrastiveDivergence(stk.ULA(0.05), steps=2, seed=3, energy_decay=0.1)
    made = []
    for call in range(2):
        found = cd(field, data)
        noise = Noise(derive(3, call), 6, dtype=torch.float64)
        x = data
        for step in range(2):
            z = noise.normal(step, Stream.PROPOSAL, (2,), torch.float64)
            x = x - 0.05 * (x**3 + torch.tensor([1.0, 0.0])) + math.sqrt(0.1) * z
        torch.testing.assert_close(found.negatives, x)
        made.append(x)
        e, f = field.energy(data), field.energy(x)
        right = e.mean() - f.mean() + 0.1 * (e.square().mean() + f.square().mean())
        torch.testing.assert_close(found.loss, right)
        assert cd.last["energy_gap"] == pytest.approx(float(f.mean() - e.mean()))
    assert not torch.equal(*made)


def test_contrastive_divergence_leaves_out_negatives_that_failed():
    def wall(x):
        inside = torch.where(x[:, 0] > 1, torch.nan, 1.0)
        return (x**2).sum(1) / 2 * inside

    data = torch.tensor([[0.9, 0.0], [-1.0, 0.5], [0.95, 1.0], [0.3, 0.3]], dtype=torch.float64)
    field = stk.Energy(wall, (2,))
    cd = ContrastiveDivergence(stk.ULA(0.05), steps=3, seed=1)
    found = cd(field, data)
    noise, x, well = (
        Noise(derive(1, 0), 4, dtype=torch.float64),
        data,
        torch.ones(4, dtype=torch.bool),
    )
    for step in range(3):
        z = noise.normal(step, Stream.PROPOSAL, (2,), torch.float64)
        there = x - 0.05 * x + math.sqrt(0.1) * z
        well = well & (there[:, 0] <= 1)
        x = torch.where(well[:, None], there, x)
    assert 0 < int(well.sum()) < 4
    torch.testing.assert_close(found.negatives, x)
    right = field.energy(data).mean() - field.energy(x[well]).mean()
    torch.testing.assert_close(found.loss, right)
    assert cd.last["failed"] == 4 - int(well.sum())


class Begun:
    """A normal whose chain number 2 begins where it has no density."""

    event_shape, provides = (2,), frozenset({"energy"})

    def energy(self, x):
        return x.square().sum(1) / 2 + torch.where(x.abs().amax(1) > 50, torch.inf, 0.0)

    def initial(self, n, noise):
        x = noise.normal(0, Stream.USER, (2,), torch.float64)
        return torch.where(noise.chains[:, None] == 2, 100.0, x)


@pytest.mark.parametrize("solver", [stk.MALA(0.4), stk.HMC(1.0, 3, metric="none")], ids=repr)
def test_what_is_told_of_a_call_is_of_the_chains_that_are_well(solver):
    """As if the chain that failed, here the last, had not been there."""
    data = randn(3, 2)
    told = []
    for rows in (data, data[:2]):
        cd = ContrastiveDivergence(solver, steps=3, start="noise", seed=4)
        loss = cd(Begun(), rows).loss - Begun().energy(rows).mean()
        told.append((cd.last["accept"], float(loss), cd.last["failed"]))
    assert told[0][:2] == pytest.approx(told[1][:2])
    assert (told[0][2], told[1][2]) == (1, 0)


def test_a_replay_buffer_keeps_ages_and_lineages():
    size, refresh = 40, 0.25
    buffer = ReplayBuffer(size, refresh)
    started = 0

    def fresh(slots):
        nonlocal started
        started += len(slots)
        return torch.full((len(slots), 1), -1.0)

    renewed, reads = 0, 0
    for call in range(60):
        noise = Noise(derive(5, call), size)
        slots, x = buffer.read(10, fresh, noise)
        assert len(set(slots.tolist())) == 10
        anew = (x[:, 0] == -1).sum() if call else 0
        renewed, reads = renewed + int(anew), reads + (10 if call else 0)
        buffer.write(slots, torch.full((10, 1), float(call)))
        assert int(buffer.age[slots].min()) >= 1
        assert len(set(buffer.lineage.tolist())) == size
    never = sum((buffer.lineage < size).tolist())
    assert never < size
    touched = 60 * 10
    share = (started - size) / touched
    assert abs(share - refresh) < 5 * math.sqrt(refresh * (1 - refresh) / touched)


def test_slots_of_negatives_that_failed_are_made_anew():
    """With starts of 5 and a wall at 6: the others go on from where they came, and what failed starts again."""

    def wall(x):
        return torch.where(x[:, 0] > 6, torch.nan, -x[:, 0])  # a push of 1 a step towards the wall

    class Field(stk.Energy):
        def initial(self, n, noise):
            return 5 + 0.1 * noise.normal(0, Stream.START, (1,), torch.float64)

    buffer, data = ReplayBuffer(16, refresh=0.0), torch.zeros(16, 1, dtype=torch.float64)
    cd = ContrastiveDivergence(stk.ULA(0.35), steps=1, start=buffer, seed=2)
    cd(Field(wall, (1,)), data)
    failed = buffer.age == 0
    assert int(failed.sum()) == cd.last["failed"]
    assert 0 < int(failed.sum()) < 16
    assert set(buffer.lineage[failed].tolist()) == set(range(16, 16 + int(failed.sum())))
    assert buffer.lineage[~failed].tolist() == torch.arange(16)[~failed].tolist()


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))


def descended(rates, targets, share=0.0):
    w = a = 0.0
    found = []
    for k, (rate, target) in enumerate(zip(rates, targets, strict=True)):
        w = w - rate * (w - target)
        d = min(share, (k + 1) / (k + 10))
        a = d * a + (1 - d) * w
        found.append(a)
    return found


def test_the_best_average_on_held_out_rows_is_kept():
    """The target of training wanders off after a while, and the held-out one does not."""
    steps, rate = 20, 0.3
    recipe = Recipe(
        steps,
        batch=4,
        decay=0.5,
        held_out=0.25,
        repeats=1,
        schedule="constant",
        clip=1e9,
        evaluations=20,
        optimiser=lambda p: torch.optim.SGD(p, lr=rate),
    )
    module, turn = Model(), itertools.count()
    targets = [1.0] * 8 + [-5.0] * 12

    def loss(rows, _):
        return (module.w - targets[next(turn)]).square() / 2

    done = fit(
        module, loss, torch.zeros(8, 1), recipe, evaluate=lambda rows, _: (module.w - 1).square()
    )
    averages = descended([rate * recipe.rate(k) for k in range(steps)], targets, 0.5)
    best = int(np.argmin([(a - 1) ** 2 for a in averages]))
    assert 0 < best < steps - 1
    assert float(done.weights["w"]) == pytest.approx(averages[best], rel=1e-12)
    assert done.step == best + 1
    assert module.w.item() == done.weights["w"].item()  # the module ends with them, to be used
    assert not module.training
    held = [p.held_out for p in done.history]
    np.testing.assert_allclose(held, [(a - 1) ** 2 for a in averages], rtol=1e-9)


FALLING = {
    "cosine": lambda part: 0.02 + 0.98 * (1 + math.cos(math.pi * part)) / 2,
    "constant": lambda part: 1.0,
}


@pytest.mark.parametrize("schedule", FALLING)
@pytest.mark.parametrize("steps", [1, 60, 200])
def test_the_rate_of_a_recipe(schedule, steps):
    """It rises linearly over a fiftieth of the steps, whatever it does then."""
    recipe = Recipe(steps, schedule=schedule)
    for step in range(0, steps, max(1, steps // 50)):
        rise = min(1, (step + 1) / max(1, steps // 50))
        assert recipe.rate(step) == pytest.approx(rise * FALLING[schedule](step / steps))
    assert steps < 200 or recipe.rate(0) < 0.3


def test_the_parts_of_a_batch_count_by_their_rows():
    data = torch.arange(7.0, dtype=torch.float64)[:, None]
    found = []
    for parts in (None, 3):
        module = Model()
        recipe = Recipe(
            1,
            batch=7,
            parts=parts,
            held_out=0.0,
            decay=0.0,
            clip=1e9,
            schedule="constant",
            optimiser=lambda p: torch.optim.SGD(p, lr=1.0),
        )
        done = fit(module, lambda rows, _, m=module: m.w * rows[:, 0].square(), data, recipe)
        found.append(float(done.weights["w"]))
    assert found[1] == pytest.approx(found[0], rel=1e-12)


def test_the_parts_of_a_batch_have_noise_of_their_own():
    drawn = []

    def loss(rows, generator):
        drawn.append(torch.rand(len(rows), generator=generator))
        return module.w * rows[:, 0]

    module, recipe = Model(), Recipe(3, batch=8, parts=4, held_out=0.0)
    fit(module, loss, torch.ones(8, 1, dtype=torch.float64), recipe)
    assert len(torch.cat(drawn).unique()) == 3 * 8


def test_rows_held_out_are_not_trained_on():
    seen = {True: set(), False: set()}

    def loss(rows, _):
        seen[module.training].update(rows[:, 0].tolist())
        return module.w * rows[:, 0]

    module, data = Model(), torch.arange(20.0, dtype=torch.float64)[:, None]
    recipe = Recipe(40, batch=8, held_out=0.25, evaluations=2)
    fit(module, loss, data, recipe, evaluate=loss)
    assert len(seen[False]) == 5
    assert seen[True] == set(data[:, 0].tolist()) - seen[False]


def test_a_velocity_on_the_linear_path_is_flow_matching():
    x, start, t = randn(N, D), randn(N, D, seed=1), torch.linspace(0.1, 0.9, N, dtype=torch.float64)
    found = prediction_error(net, x, t, start, Linear(), "velocity")
    torch.testing.assert_close(found, flow_matching(net, x, t, start))


class Remembering:
    """A loss with a memory, which each part of a batch has for itself."""

    def __init__(self):
        self.seen = torch.zeros(2)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]

    def for_part(self, part):
        self.add(10 * (part + 1))

    def add(self, count):
        self.seen = self.seen + count


class InPlace(Remembering):
    """One that keeps the tensor that it is given, and writes into it."""

    def add(self, count):
        self.seen += count


@pytest.mark.parametrize("kind", [Remembering, InPlace])
@pytest.mark.parametrize("parts", [1, 3])
def test_what_losses_remember_is_of_each_part_and_not_of_evaluations(parts, kind):
    loss = kind()
    states = States([loss, torch.nn.Identity(), loss], parts)
    start = [10.0 * (p + 1) if parts > 1 else 0.0 for p in range(parts)]
    for turn in range(2):
        for part in range(parts):
            with states.of(part):
                assert loss.seen.tolist() == [start[part] + turn] * 2
                loss.add(1)
        before = states.moment()
        with states.unchanged():
            loss.add(100)
        after = states.moment()
        assert {p: s[0]["seen"].tolist() for p, s in after.items()} == {
            p: [start[p] + turn + 1] * 2 for p in range(parts)
        }
        states.restore(before)
    if parts == 1:
        assert loss.seen.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("kind", [Remembering, InPlace])
@pytest.mark.parametrize("evaluations", [1, 4])
def test_a_loss_that_remembers_has_seen_its_steps_however_often_it_is_evaluated(evaluations, kind):
    module, loss = Model(), kind()

    def remembered(rows, _):
        loss.add(1)
        return (module.w - loss.seen.sum()).square()

    recipe = Recipe(4, batch=4, held_out=0.25, decay=0.0, evaluations=evaluations)
    fit(module, remembered, torch.zeros(8, 1), recipe, state=loss)
    assert loss.seen.tolist() == [4.0, 4.0]


def test_of_equal_values_the_first_is_the_best_and_patience_counts_the_others():
    for patience, evaluations in ((None, 12), (3, 4)):
        module = Model()
        recipe = Recipe(12, batch=4, held_out=0.25, evaluations=12, patience=patience)
        done = fit(
            module,
            lambda rows, _, module=module: (module.w - 1).square(),
            torch.zeros(8, 1),
            recipe,
            evaluate=lambda rows, _: torch.ones(()),
        )
        assert done.step == 1
        assert len(done.history) == evaluations


def test_a_moment_of_a_training_comes_back_as_it_was():
    """Values and their types, to any depth: an optimiser may tell a tuple from a list."""
    moment = {
        "step": 3,
        "betas": (0.9, 0.999),
        "nested": [(1, [2.5, None]), {"a": (True, "b"), 7: ()}, [], {}],
        "state": {0: {"m": randn(2, 3), "ids": (torch.arange(3), torch.ones(()).bool())}},
    }

    def same(a, b):
        assert type(a) is type(b)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        elif isinstance(a, dict):
            assert list(a) == list(b)
            for name in a:
                same(a[name], b[name])
        elif isinstance(a, list | tuple):
            assert len(a) == len(b)
            for one, other in zip(a, b, strict=True):
                same(one, other)
        else:
            assert a == b

    same(unpacked(packed(moment)), moment)


class Heard:
    """A solver, with what each of its steps reported."""

    def __init__(self, solver):
        self.solver, self.accept = solver, []

    def __getattr__(self, name):
        return getattr(self.solver, name)

    def step(self, field, state, noise):
        state, info = self.solver.step(field, state, noise)
        self.accept.append(info["accept"])
        return state, info


@pytest.mark.parametrize(
    "solver", [stk.MALA(2.0), stk.GHMC(1.5), stk.HMC(1.5, leapfrogs=2, metric="none")], ids=repr
)
def test_contrastive_divergence_tells_of_all_of_its_steps(solver):
    """The mean acceptance of a call, which differs from step to step; and the mean age of the buffer's chains."""
    heard, buffer = Heard(solver), ReplayBuffer(12, refresh=0.0)
    cd = ContrastiveDivergence(heard, steps=4, start=buffer, seed=3)
    field = stk.Energy(lambda x: (x**4).sum(1) / 4, (2,))
    for call in range(1, 4):
        heard.accept.clear()
        cd(field, randn(6, 2))
        steps = torch.stack(heard.accept).mean(1)
        assert len(steps) == 4
        assert float(steps.std()) > 0.01
        assert cd.last["accept"] == pytest.approx(float(steps.mean()))
        assert cd.last["buffer_age"] == pytest.approx(6 * call / 12)
        assert cd.last["failed"] == 0


def noisy(module):
    def loss(rows, generator):
        return (module.w - torch.randn(len(rows), generator=generator, dtype=torch.float64)) ** 2

    return loss


def fitted(**options):
    module = Model()
    recipe = Recipe(12, batch=4, held_out=0.25, repeats=3, **options)
    return fit(module, noisy(module), torch.arange(16.0)[:, None], recipe, seed=4), module


def test_every_evaluation_has_the_same_random_numbers_and_leaves_the_training_its_own():
    """Of weights that do not move all are equal to the bit; and those that are trained do not depend on how many
    evaluations there were."""
    still, _ = fitted(evaluations=6, learning_rate=1e-30)
    values = {p.held_out for p in still.history}
    assert len(still.history) == 6
    assert len(values) == 1
    found = []
    for evaluations in (1, 3, 12):
        done, _ = fitted(evaluations=evaluations)
        assert len(done.history) == evaluations
        found.append([p.held_out for p in done.history][-1])
    assert found[0] == found[1] == found[2]


def test_a_report_is_of_the_steps_since_the_last_one():
    """Means of the loss and of the numbers beside it, of a player with several turns a step too."""
    steps, told = 10, {"a": [], "b": []}
    module = Model()

    def losing(name):
        def loss(rows, _):
            told[name].append(float(len(told[name]) ** 2))
            return module.w * 0 + told[name][-1], {"number": 2 * told[name][-1]}

        return loss

    players = [Player("a", module, losing("a"), steps=3), Player("b", module, losing("b"))]
    done = fit(
        module, players, torch.zeros(8, 1), Recipe(steps, held_out=0.0, evaluations=5, batch=4)
    )
    assert [p.step for p in done.history] == [2, 4, 6, 8, 10]
    for i, report in enumerate(done.history):
        a, b = told["a"][6 * i : 6 * i + 6], told["b"][2 * i : 2 * i + 2]
        assert report.loss == pytest.approx(np.mean(b))
        assert report.health["a loss"] == pytest.approx(np.mean(a))
        assert report.health["b number"] == pytest.approx(2 * np.mean(b))
