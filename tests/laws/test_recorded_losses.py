"""Losses and trainings are what they were (`tests/recorded.py`)."""

import pytest
import torch
from torch import distributions as td

import scoretk as stk
from scoretk import learn
from scoretk.fields.convert import PREDICTIONS
from tests.laws.test_rows_alone import D
from tests.recorded import or_error, randn, recorded


def network(x, t):
    return torch.sin(3 * x) * (1 + t)[:, None]


def sample_of(seed, shift=0.0):
    return randn(40, 2, seed=seed) + shift


def per_row(x):
    return x.square().sum(1)


def critic(x):
    return torch.sin(x).sum(1)


T = torch.tensor([0.2, 0.5, 0.7, 0.9], dtype=torch.float64)


ROWS, OTHER = randn(4, D), randn(4, D, seed=1)


POSTERIOR = td.Independent(td.Normal(randn(4, 2), 1 + randn(4, 2, seed=1).abs()), 1)


STANDARD = td.Independent(td.Normal(torch.zeros(2).double(), torch.ones(2).double()), 1)


def decoder(z):
    return td.Independent(td.Normal(torch.cat([z, z[..., :1]], -1), torch.ones(D).double()), 1)


LOSSES = {
    "denoising_score_matching": lambda: learn.denoising_score_matching(torch.sin, ROWS, OTHER, 0.3),
    "flow_matching": lambda: learn.flow_matching(network, ROWS, T, OTHER),
    "noise_prediction": lambda: learn.noise_prediction(network, ROWS, T, OTHER, stk.VP()),
    "prediction_error": lambda: [
        learn.prediction_error(network, ROWS, T, OTHER, stk.VP(), p) for p in PREDICTIONS
    ],
    "f_gan": lambda: [
        (
            learn.f_gan_critic(critic, ROWS, OTHER, d),
            learn.f_gan_generator(critic, OTHER, d),
            learn.f_gan_generator(critic, OTHER, d, saturating=True),
        )
        for d in learn.DIVERGENCES
    ],
    "wasserstein": lambda: (
        learn.wasserstein_critic(critic, ROWS, OTHER, T, 3.0),
        learn.wasserstein_generator(critic, OTHER),
        [learn.gradient_penalty(critic, ROWS, s) for s in (0.0, 1.0)],
    ),
    "contrastive": lambda: (
        learn.noise_contrastive(per_row, torch.tensor(0.3), lambda x: -per_row(x), ROWS, OTHER[:2]),
        learn.flow_contrastive(per_row, torch.tensor(0.3), lambda x: -per_row(x), ROWS, OTHER),
    ),
    "score matching": lambda: (
        learn.implicit_score_matching(torch.sin, ROWS),
        learn.sliced_score_matching(torch.sin, ROWS, randn(2, 4, D, seed=5)),
        learn.sliced_score_matching(
            torch.sin, ROWS, randn(2, 4, D, seed=5), variance_reduced=False
        ),
    ),
    "bounds": lambda: (
        learn.negative_elbo(ROWS, POSTERIOR, decoder, STANDARD, randn(5, 4, 2)),
        learn.negative_elbo(ROWS, POSTERIOR, decoder, STANDARD, randn(5, 4, 2), exact_kl=True),
        learn.negative_iwae(ROWS, POSTERIOR, decoder, STANDARD, randn(5, 4, 2)),
        learn.log_weights(ROWS, POSTERIOR, decoder, STANDARD, randn(5, 4, 2)),
    ),
    "negative_log_likelihood": lambda: learn.negative_log_likelihood(lambda x: -per_row(x), ROWS),
    "couplings": lambda: (
        learn.independent_coupling(ROWS, OTHER),
        learn.optimal_coupling(randn(9, 2), randn(9, 2, seed=1)),
    ),
    "reparametrised": lambda: [
        or_error(lambda d=d: learn.reparametrised(d, randn(*d.batch_shape, *d.event_shape)))
        for d in (
            POSTERIOR,
            td.Laplace(T, T),
            td.Uniform(T, 2 * T),
            td.LogNormal(T, T),
            td.Gamma(T, T),
            td.MultivariateNormal(T[:2], torch.tensor([[2.0, 0.3], [0.3, 1.0]]).double()),
        )
    ],
    "sampler_divergence": lambda: (
        learn.sampler_divergence(per_row, ROWS, OTHER),
        learn.nearest_neighbour_entropy(ROWS, OTHER),
    ),
    "stratified": lambda: learn.stratified(6, torch.Generator().manual_seed(2)),
    "weightings": lambda: [
        learn.weighting(name, path, T)
        for name in learn.WEIGHTINGS
        for path in (stk.VP(), stk.Linear())
    ],
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    recorded(f"loss {name}", or_error(LOSSES[name]))


class Straight(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x):
        return (x - self.weight).square().sum(1)


TRAININGS = {
    "as it comes": {},
    "constant": {"schedule": "constant", "evaluations": 3},
    "no decay, no held-out rows": {"decay": 0.0, "held_out": 0.0, "weight_decay": 0.0},
    "patient": {"patience": 1, "evaluations": 6, "learning_rate": 2.0},
    "in parts": {"parts": 2, "clip": 0.01},
    "sgd": {"optimiser": lambda p: torch.optim.SGD(p, 0.1), "betas": (0.5, 0.9)},
}


@pytest.mark.parametrize("name", TRAININGS)
def test_trainings(name):
    module = Straight()

    def loss(x, generator):
        return (module(x) * (1 + torch.rand(len(x), generator=generator))).mean()

    recipe = learn.Recipe(12, 16, **{"learning_rate": 0.05} | TRAININGS[name])
    made = or_error(lambda: learn.fit(module, loss, sample_of(0).float(), recipe, seed=3))
    recorded(f"training {name}", made)
