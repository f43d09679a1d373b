"""The shipped digits models, by name, against held-out digits: sliced Wasserstein, class balance, and no copies."""

import pytest
import torch

import scoretk as stk
from scoretk.diagnostics import Classifier, sliced_wasserstein
from scoretk.families.digits_data import load_digits

SEEDS = range(5)


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def floor(digits):
    """Train against test, several draws of 360 training images."""
    generator = torch.Generator().manual_seed(0)
    picks = (torch.randperm(len(digits.train), generator=generator)[:360] for _ in range(10))
    return sum(float(sliced_wasserstein(digits.train[p], digits.test, seed=i)) for i, p in enumerate(picks)) / 10


def distance(x, digits):
    return sum(float(sliced_wasserstein(x[s], digits.test, seed=i)) for i, s in enumerate(SEEDS)) / len(SEEDS)


@pytest.mark.parametrize("name", ["digits-flow", "digits-diffusion"])
def test_samples_are_as_near_to_test_digits_as_the_promise(name, digits):
    solver = stk.ProbabilityFlow("heun", steps=20)
    x = {s: stk.sample(name, solver, chains=360, seed=s).final for s in SEEDS}
    limit = 1.3 * min(floor(digits), 0.061)
    assert distance(x, digits) < limit
    blurred = {s: v + 0.35 * torch.randn(v.shape, generator=torch.Generator().manual_seed(s)) for s, v in x.items()}
    assert distance(blurred, digits) > limit  # the test can fail
    judge = Classifier(digits.train, digits.train_labels).judge
    real, ours = judge(digits.test), judge(torch.cat(list(x.values())))
    assert ours.balance > 0.98
    assert abs(ours.confidence - real.confidence) < 0.06
