"""Where a model has no value: a velocity `(D - x) / (1 - t)` at the data, and the noise's end of a table that ends at 0."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

import scoretk as stk
from scoretk.errors import InvalidArgument, SingularConversion
from scoretk.solvers.probability_flow import ProbabilityFlow
from tests.marks import slow_but

MEAN, STD = 1.5, 0.4
BASES = {"gaussian path": None, "no path": Independent(Normal(torch.zeros(2), torch.ones(2)), 1)}


def straight(asked, std=STD):
    """The velocity of N(MEAN, std^2) on the linear path, as a model of the data makes it; it writes down when it is asked."""

    def velocity(x, t):
        asked.append(float(t.max()))
        t = t[:, None]
        alpha, sigma = t, 1 - t
        data = (std**2 * alpha * x + sigma**2 * MEAN) / (std**2 * alpha**2 + sigma**2)
        return (data - x) / (1 - t)

    return velocity


def start(dtype=torch.float64):
    return torch.tensor([[-1.0, 0.3], [1.0, 2.0], [0.0, -2.5]], dtype=dtype)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "method",
    slow_but(["dopri5", "tsit5", "bosh3", "dopri8", "fehlberg2", "adaptive_heun"], "dopri5"),
)
def test_adaptive_methods_do_not_ask_a_velocity_at_the_data(method, dtype, base):
    """Of data with a spread, and of a single point; to the tolerance, and to the law's own map."""
    for std, tolerance in (
        (STD, 1e-5),
        (0.0, 1e-5),
        (STD, 1e-9 if dtype is torch.float64 and method != "fehlberg2" else 1e-6),
    ):
        asked = []
        field = stk.Velocity(straight(asked, std), (2,), base=BASES[base])
        solver = ProbabilityFlow(method, rtol=tolerance, atol=tolerance, max_steps=100_000)
        draws = stk.sample(field, solver, init=start(dtype))
        assert not draws.failures
        assert max(asked) < 1
        error = (draws.final - (MEAN + std * start(dtype))).abs().max()
        assert float(error) < max(20 * tolerance, 3e-6 if dtype is torch.float32 else 0)


@pytest.mark.parametrize(
    "method", ["heun", "trapezoid", "midpoint", "adams_3", "adams_pc_3", "euler"]
)
def test_grids_without_a_path_do_not_ask_there_either(method):
    asked = []
    field = stk.Velocity(straight(asked), (2,), base=BASES["no path"])
    draws = stk.sample(field, ProbabilityFlow(method, 64), init=start())
    assert not draws.failures
    assert max(asked) < 1
    assert float((draws.final - (MEAN + STD * start())).abs().max()) < (
        0.1 if method == "euler" else 0.01
    )


@pytest.mark.thorough
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", slow_but(["dopri5", "rk4", "heun"], "dopri5", "heun"))
def test_the_way_back_does_not_ask_there(method, base):
    """Latents and densities, which are NaN where it does."""
    asked = []
    field = stk.Velocity(straight(asked), (2,), base=BASES[base])
    x, settings = (
        MEAN + STD * start(),
        {"rtol": 1e-8, "atol": 1e-8} if method == "dopri5" else {"steps": 200},
    )
    latents = stk.encode(field, x, method=method, **settings)
    found = stk.log_prob(field, x, method=method, **settings)
    assert max(asked) < 1
    near = 2e-3 if method == "heun" else 2e-6
    torch.testing.assert_close(latents.x, start(), rtol=0, atol=near)
    torch.testing.assert_close(
        found.value, Normal(MEAN, STD).log_prob(x).sum(1), rtol=0, atol=10 * near
    )


def test_asking_there_flags_every_chain(monkeypatch):
    """The mutant: the closing step is left out."""
    monkeypatch.setattr(ProbabilityFlow, "_closes_apart", lambda *_: False)
    draws = stk.sample(stk.Velocity(straight([]), (2,)), ProbabilityFlow("dopri5"), init=start())
    assert len(draws.failures) == 1
    assert sum(draws.failures.values()) == 3


# Tables that end at 0

STEPS = 100
CUMPROD = torch.cumprod(1 - torch.linspace(1e-4, 0.1, STEPS, dtype=torch.float64), 0)


def rescaled(table):
    """Lin et al. (2024): the square roots shifted so that the last is 0, and scaled so that the first stays."""
    root = table.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


TABLES = {
    "rescaled": rescaled(CUMPROD),
    "three": torch.tensor([0.9, 0.5, 0.0]),
    "steep": torch.tensor([0.9, 1e-5, 0.0]),
    "flat": torch.tensor([0.9, 0.89, 0.0]),
    "uneven": torch.tensor([0.99, 0.98, 0.5, 0.499, 0.0]),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_ends_at_0_is_a_path(name):
    """Through the table, monotone, with the slopes it says, and an inverse that holds at every time."""
    table = TABLES[name].double()
    path, t = stk.Tabulated(table), torch.linspace(0, 1, 3001, dtype=torch.float64)
    k = torch.arange(len(table), dtype=torch.float64)
    torch.testing.assert_close(
        path.alpha(1 - (k + 1) / len(table)).square(), table, rtol=1e-10, atol=1e-15
    )
    assert bool((path.alpha(t).diff() > 0).all())
    assert path(0.0)[:2] == (0, 1)
    assert path(1.0)[:2] == (1, 0)
    inner, h = t[1:-1], 1e-7
    torch.testing.assert_close(path.t(path.log_snr(inner)), inner, rtol=0, atol=1e-11)
    slope = (path.alpha(inner + h) - path.alpha(inner - h)) / (2 * h)
    torch.testing.assert_close(
        slope, path.dalpha(inner), rtol=0, atol=1e-5 * float(path.dalpha(inner).max())
    )
    assert bool(path.dalpha(t[:-1]).isfinite().all())


def model(predicts, table=CUMPROD):
    """N(MEAN, STD^2) by timesteps, the noise's part infinite where there is no signal left."""

    def net(x, k):
        alpha2 = table.to(x)[k][:, None]
        alpha, sigma = alpha2.sqrt(), (1 - alpha2).sqrt()
        data = MEAN + alpha * STD**2 / (alpha2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        noise = (x - alpha * data) / sigma
        return {"data": data, "v": alpha * noise - sigma * data, "noise": noise}[predicts]

    return stk.from_timesteps(net, table, (2,), predicts)


@pytest.mark.parametrize("predicts", ["data", "v"])
@pytest.mark.parametrize(
    ("solver", "near"),
    [
        (stk.ProbabilityFlow("euler", STEPS), 0.1),
        (stk.ProbabilityFlow("adams_3", STEPS), 0.02),
        (stk.ProbabilityFlow("heun", STEPS), 0.02),
        (stk.ReverseSDE("ancestral", STEPS, eta=0.0), 0.1),
        (stk.ReverseSDE("dpmpp_2m", STEPS, eta=0.0), 0.05),
    ],
    ids=repr,
)
def test_such_tables_are_right_for_data_and_v(predicts, solver, near):
    """A run is a line in its start, whose slope is the final std: on the timesteps, and to their spacing."""
    ends = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    draws = stk.sample(model(predicts, rescaled(CUMPROD)), solver, init=ends)
    assert not draws.failures
    torch.testing.assert_close(draws.final, MEAN + STD * ends, rtol=0, atol=near)


@pytest.mark.slow
@pytest.mark.parametrize("predicts", slow_but(["data", "v"], "v"))
def test_reverse_sdes_and_densities_from_such_tables(predicts):
    field = model(predicts, rescaled(CUMPROD))
    draws = stk.sample(field, stk.ReverseSDE("dpmpp_2m", STEPS), chains=4000, seed=1)
    assert not draws.failures
    assert float(draws.final.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(draws.final.std()) == pytest.approx(STD, rel=0.15)
    x = MEAN + STD * start()
    found = stk.log_prob(field, x, method="rk4", steps=STEPS).value
    assert float((found - Normal(MEAN, STD).log_prob(x).sum(1)).abs().max()) < 0.2


def test_noise_and_score_of_such_tables_are_refused_and_no_others():
    """With the way out; a table that ends above 0 takes them, as before."""
    for predicts in ("noise", "score"):
        with pytest.raises(InvalidArgument, match="all noise"):
            stk.from_timesteps(lambda x, k: x, rescaled(CUMPROD), (2,), predicts)
    by_hand = stk.Diffusion(lambda x, t: x, (2,), stk.Tabulated(rescaled(CUMPROD)), "noise")
    with pytest.raises(SingularConversion):
        stk.sample(by_hand, stk.ProbabilityFlow("adams_3", 10), chains=2)
    assert not stk.sample(model("noise"), stk.ProbabilityFlow("adams_3", STEPS), chains=4).failures
    for table in (
        [0.9, 0.0],
        [0.9, 0.5, -0.1],
        [0.9, 0.0, 0.0],
        [1.0, 0.5, 0.0],
        [math.nan, 0.0, 0.0],
    ):
        with pytest.raises(InvalidArgument, match="alphas_cumprod"):
            stk.Tabulated(table)
