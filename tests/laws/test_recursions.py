"""Small parts whose results follow from an exact recursion or count, each beside wrong versions that it tells apart."""

import pytest
import torch

import scoretk as stk
from scoretk.learn import Recipe, fit
from scoretk.models.targets.mixture import gaussian
from tests.evidence import assert_mean, assert_second_moment, mean_z, z_limit

TEMPERATURES = (8.0, 3.0, 1.0, 0.5)


def annealed(std, mean, size, steps, drift=lambda t: 1 / TEMPERATURES[-1]):
    """Mean and variance of N(mean, std^2) after annealed Langevin from N(0, 1), one axis."""
    m, v = 0.0, 1.0
    for temperature in TEMPERATURES:
        for _ in range(steps):
            gain = 1 - size * drift(temperature) / std**2
            m, v = mean + gain * (m - mean), gain**2 * v + 2 * size * temperature / TEMPERATURES[-1]
    return m, v


def test_annealed_langevin_over_temperatures_follows_its_recursion():
    std, mean, size, steps = 0.8, 1.5, 0.02, 6
    solver = stk.AnnealedLangevin(TEMPERATURES, steps, step_size=size)
    draws = stk.sample(
        gaussian(2, mean, std), solver, chains=20_000, seed=4, dtype=torch.float64
    ).final
    m, v = annealed(std, mean, size, steps)
    assert_mean(draws, [m] * 2)
    assert_second_moment(draws, m, [v] * 2)
    for wrong in (lambda t: 1.0, lambda t: 1 / t, lambda t: t / TEMPERATURES[-1]):
        m, v = annealed(std, mean, size, steps, wrong)
        assert mean_z((draws - m).square(), [v] * 2).abs().max() > 3 * z_limit(2), (
            "a drift of another temperature"
        )


@pytest.mark.parametrize(
    "solver", [stk.HMC(0.3, leapfrogs=3, metric="none"), stk.NUTS(0.3, metric="none"), stk.ULA(0.1)]
)
def test_a_resumed_run_has_counted_what_an_undisturbed_one_counts(tmp_path, solver):
    field, file = gaussian(2), tmp_path / "run.ckpt"
    whole = stk.sample(field, solver, chains=5, steps=30, seed=1)
    first = stk.sample(field, solver, chains=5, steps=12, seed=1, checkpoint=file)
    again = stk.sample(field, solver, chains=5, steps=30, seed=1, checkpoint=file)
    assert again.cost == whole.cost
    assert first.cost.total < whole.cost.total
    assert stk.sample(field, solver, chains=5, steps=30, seed=1, checkpoint=file).cost == whole.cost


def test_the_averaged_weights_follow_their_recursion():
    """Gradient descent on `(w - 3)^2 / 2` with a constant rate, whose average is kept where nothing is held out."""

    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    steps, rate, decay = 40, 0.05, 0.8
    recipe = Recipe(
        steps,
        batch=4,
        decay=decay,
        held_out=0.0,
        schedule="constant",
        clip=1e9,
        optimiser=lambda parameters: torch.optim.SGD(parameters, lr=rate),
    )
    module = One()
    done = fit(module, lambda rows, _: (module.w - 3).square() / 2, torch.zeros(8, 1), recipe)

    def average(share):
        w = a = 0.0
        for k in range(steps):
            w = w - rate * recipe.rate(k) * (w - 3)
            d = share(k)
            a = d * a + (1 - d) * w
        return a

    found = float(done.weights["w"])
    right = average(lambda k: min(decay, (k + 1) / (k + 10)))
    assert found == pytest.approx(right, rel=1e-12)
    for wrong in (
        lambda k: decay if k > 9 else 0.0,
        lambda k: 0.0,
        lambda k: min(decay / 2, (k + 1) / (k + 10)),
    ):
        assert abs(found - average(wrong)) > 1e-6


def draws_with_energies(low, chains=100, steps=200):
    """Independent draws, and energies that in so many of the chains go a small part of their range a step."""
    generator = torch.Generator().manual_seed(0)
    energy = torch.randn(chains, steps, generator=generator)
    energy[:low] = energy[:low].cumsum(1) / 5 + energy[:low] * 0.01
    x = torch.randn(chains, steps, 2, generator=generator)
    status = torch.zeros(chains, dtype=torch.int64)
    return stk.Draws(
        x=x, final=x[:, -1], status=status, failed_at=status - 1, stats={"hamiltonian": energy}
    )


@pytest.mark.parametrize(("low", "told"), [(0, False), (5, False), (6, True), (60, True)])
def test_slow_energies_are_told_where_more_than_a_twentieth_of_the_chains_have_them(low, told):
    found = [
        f.problem for f in draws_with_energies(low).summary().findings if "E-BFMI" in f.problem
    ]
    assert bool(found) == told
    assert not told or f"in {low} of 100 chains" in found[0]
