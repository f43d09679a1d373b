"""The shipped digits models, by name, against held-out digits: sliced Wasserstein, class balance, and no copies."""

import pytest
import torch

import scoretk as stk
from scoretk.diagnostics import Classifier, copies, sliced_wasserstein
from scoretk.models.digits.data import load_digits
from tests.marks import slow_but

SEEDS = range(5)


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def floor(digits):
    """Train against test, several draws of 360 training images."""
    generator = torch.Generator().manual_seed(0)
    picks = (torch.randperm(len(digits.train), generator=generator)[:360] for _ in range(10))
    return (
        sum(
            float(sliced_wasserstein(digits.train[p], digits.test, seed=i))
            for i, p in enumerate(picks)
        )
        / 10
    )


def distance(draws, digits):
    return sum(sliced_wasserstein(x, digits.test, seed=i) for i, x in enumerate(draws)) / len(draws)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["digits-flow", "digits-diffusion"], "digits-flow"))
def test_samples_are_as_near_to_test_digits_as_the_promise(name, digits):
    solver = stk.ProbabilityFlow("heun", steps=12)
    x = [stk.sample(name, solver, chains=360, seed=s).final for s in SEEDS]
    limit = 1.3 * min(floor(digits), 0.061)
    assert distance(x, digits) < limit
    blurred = [
        v + 0.35 * torch.randn(v.shape, generator=torch.Generator().manual_seed(0)) for v in x
    ]
    assert distance(blurred, digits) > limit  # the test can fail
    judge = Classifier(digits.train, digits.train_labels).judge
    real, ours = judge(digits.test), judge(torch.cat(x))
    assert ours.balance > 0.98
    assert abs(ours.confidence - real.confidence) < 0.06


@pytest.mark.slow
@pytest.mark.parametrize("longer", [0, 3600])
def test_energy_samples_are_good_and_long_chains_no_worse(digits, longer):
    limit = 2 * min(floor(digits), 0.061)
    x = stk.sample("digits-energy", stk.ULA(0.005), chains=720, steps=400, keep="last", seed=1)
    y = (
        stk.sample("digits-energy", stk.ULA(0.005), init=x.final, steps=longer, keep="last", seed=2)
        if longer
        else x
    )
    assert not x.failures
    assert not y.failures
    early, late = (distance(draws.final.split(360), digits) for draws in (x, y))
    assert early < limit
    assert late < early + 0.1 * limit  # two draws of 720 differ by less than a tenth of it
    noise = torch.randn(360, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert distance([noise], digits) > limit
    assert Classifier(digits.train, digits.train_labels).judge(y.final).balance > 0.97


@pytest.mark.parametrize(
    "name", slow_but(["digits-energy", "digits-flow", "digits-diffusion"], "digits-flow")
)
def test_samples_are_no_copies(name, digits):
    if name == "digits-energy":
        x = stk.sample(name, stk.ULA(0.005), chains=200, steps=500, keep="last").final
    else:
        x = stk.sample(name, stk.ProbabilityFlow("heun", steps=16), chains=200).final
    assert copies(x, digits.train, digits.test).share < 0.1
    near = digits.train[:200] + 0.05 * torch.randn(
        200, 1, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    assert copies(near, digits.train, digits.test).share > 0.9
