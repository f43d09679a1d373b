"""The probability flow against exact maps: values, orders, adaptive tolerance, end points, and rows left alone."""

import math

import pytest
import torch

import scoretk as stk
from scoretk.families.mixture import gaussian, ring_mixture
from scoretk.grids import GRIDS, grid
from scoretk.solvers import tableaus
from tests.test_fields import PATHS

FIXED = ("euler", "heun", "dpmpp_2m")
ORDER = {"euler": 1, "heun": 2, "dpmpp_2m": 2}
ENDS = torch.tensor([[80.0, 0.0], [-5.0, 7.0]], dtype=torch.float64)
MAPPED = torch.tensor([[1.97292973, 0.0], [-0.92075927, 1.05419250]], dtype=torch.float64)


@pytest.mark.parametrize("path", [stk.VE(0.002, 80.0), stk.EDM()], ids=repr)
def test_known_values_on_the_ring(path):
    solver = stk.ProbabilityFlow("dopri5", rtol=1e-9, atol=1e-9)
    draws = stk.sample(ring_mixture().noised(path), solver, init=ENDS)
    torch.testing.assert_close(draws.final, MAPPED, rtol=0, atol=2e-7)


def test_errors_on_the_ring_are_those_of_the_best():
    """Median error of 64 points by evaluations, on the rho = 7 grid .002..80 then 0, at most that of the best peers."""
    field = ring_mixture().noised(stk.EDM())
    x = 80 * torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = stk.sample(field, stk.ProbabilityFlow("dopri8", rtol=1e-11, atol=1e-11, denoise=True), init=x).final
    for method, steps, evaluations, error in (
        ("heun", 18, 35, 0.042), ("heun", 36, 71, 8e-3), ("dpmpp_2m", 18, 18, 0.069), ("dpmpp_2m", 36, 36, 0.0115),
        ("euler", 18, 18, 0.115),
    ):  # fmt: skip
        draws = stk.sample(field, stk.ProbabilityFlow(method, steps=steps, denoise=True), init=x)
        assert draws.cost["velocity"] == 64 * evaluations
        assert float((draws.final - exact).norm(dim=1).median()) < error


def gaussian_map(path, x, mean, s, t0, t1):
    """The exact flow of N(mean, s^2) data, from x at t0 to t1."""
    a0, s0, a1, s1 = (float(v) for t in (t0, t1) for v in path(t)[:2])
    gain = math.sqrt((a1**2 * s**2 + s1**2) / (a0**2 * s**2 + s0**2))
    return a1 * mean + (x - a0 * mean) * gain


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("method", FIXED)
def test_order_of_convergence(path, method):
    """Slope of log error against log step count on Gaussian data, whose flow is known, between sigma/alpha 50 and .05."""
    if isinstance(path, stk.Tabulated):
        path = stk.Tabulated(torch.linspace(0.9999, 2e-4, 1000, dtype=torch.float64))
    mean, s = 0.7, 0.5
    field = gaussian(dim=1, mean=mean, std=s).noised(path)
    counts = (20, 40, 80, 160, 320)
    errors = []
    for steps in counts:
        level = torch.linspace(50 ** (1 / 7), 0.05 ** (1 / 7), steps + 1, dtype=torch.float64) ** 7
        times = path.t(-2 * level.log())
        t0, t1 = float(times[0]), float(times[-1])
        x = float(path.sigma(t0)) * torch.tensor([[-1.3], [0.4], [2.1]], dtype=torch.float64)
        final = stk.sample(field, stk.ProbabilityFlow(method, grid=times.tolist()), init=x).final
        errors.append(float((final - gaussian_map(path, x, mean, s, t0, t1)).abs().max()))
    slope = -_slope(counts, errors)
    assert abs(slope - ORDER[method]) < 0.25, (slope, errors)


def _slope(counts, errors):
    a, b = torch.tensor(counts).double().log(), torch.tensor(errors).double().log()
    return float(((a - a.mean()) * (b - b.mean())).sum() / ((a - a.mean()) ** 2).sum())


def test_the_order_test_catches_a_wrong_symbol(monkeypatch):
    """sigma of the old time where the new one belongs, and no history in the multistep rule."""
    path, counts = stk.EDM(), (40, 80, 160, 320)
    field = gaussian(dim=1, mean=0.7, std=0.5).noised(path)
    x = torch.tensor([[80.0]], dtype=torch.float64)
    exact = gaussian_map(path, x, 0.7, 0.5, 0.0, 1.0)

    def slope():
        return -_slope(counts, [
            float((stk.sample(field, stk.ProbabilityFlow("dpmpp_2m", steps=n), init=x).final - exact).abs()) for n in counts
        ])  # fmt: skip

    right = slope()
    monkeypatch.setitem(tableaus.METHODS, "dpmpp_2m", tableaus.METHODS["euler"])
    assert abs(right - 2) < 0.25
    assert slope() < 1.5


SMOOTH = [(m, p) for m in ("dopri5", "bosh3") for p in PATHS]


@pytest.mark.parametrize(("method", "path"), SMOOTH, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_adaptive_methods_follow_the_exact_gaussian_flow(method, path):
    field = gaussian(dim=2, mean=0.7, std=0.5).noised(path)
    x = float(path.sigma(0.0)) * torch.tensor([[-1.3, 0.2], [0.4, 1.0]], dtype=torch.float64)
    draws = stk.sample(field, stk.ProbabilityFlow(method, rtol=1e-7, atol=1e-7), init=x)
    torch.testing.assert_close(draws.final, gaussian_map(path, x, 0.7, 0.5, 0.0, 1.0), rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", [*FIXED, "dopri5", "adaptive_heun"])
@pytest.mark.parametrize("predicts", ["data", "velocity"])
def test_no_evaluation_outside_the_interval(method, predicts):
    times = []
    exact = ring_mixture().noised(stk.Linear())

    def net(x, t):
        times.append((float(t.min()), float(t.max())))
        return exact.denoise(x, float(t[0])) if predicts == "data" else exact.denoise(x, float(t[0])) - x

    draws = stk.sample(stk.Diffusion(net, (2,), stk.Linear(), predicts), stk.ProbabilityFlow(method, steps=7), chains=5)
    assert bool(torch.isfinite(draws.final).all())
    assert min(low for low, _ in times) >= 0
    assert max(high for _, high in times) <= 1


def test_a_stiff_neighbour_does_not_spoil_the_accuracy():
    """Each row meets the tolerance: the error norm is the largest over rows, not their mean."""

    def net(x, t, rate):
        return -rate[:, None] * (x - 1)

    field = stk.Velocity(net, (1,), base=torch.zeros(1, 1))
    rate = torch.cat([torch.full((99,), 0.1), torch.tensor([60.0])]).double()
    draws = stk.sample(
        field, stk.ProbabilityFlow("dopri5", rtol=1e-6, atol=1e-6), init=torch.full((100, 1), 3.0, dtype=torch.float64),
        cond={"rate": rate},
    )  # fmt: skip
    exact = 1 + 2 * torch.exp(-rate)
    assert float((draws.final[:, 0] - exact).abs().max()) < 1e-5
    by_mean = _with_batch_wide_norm(net, rate)
    assert float((by_mean[:, 0] - exact).abs()[-1]) > 3 * float((draws.final[:, 0] - exact).abs()[-1])


def _with_batch_wide_norm(net, rate):
    from torchdiffeq import odeint

    x = torch.full((100, 1), 3.0, dtype=torch.float64)
    return odeint(lambda t, y: net(y, t, rate), x, torch.tensor([0.0, 1.0]).double(), rtol=1e-6, atol=1e-6)[-1]


def test_a_row_that_fails_is_flagged_and_the_others_go_on():
    def net(x, t, bad):
        return torch.where(bad[:, None] & (t[:, None] > 0.5), torch.nan, -x)

    field = stk.Velocity(net, (2,), base=torch.zeros(1, 2))
    bad = torch.tensor([False, True, False])
    x = torch.ones(3, 2, dtype=torch.float64)
    for method in ("dopri5", "euler", "heun"):
        draws = stk.sample(field, stk.ProbabilityFlow(method, steps=64), init=x, cond={"bad": bad})
        assert draws.status.tolist() == [0, int(stk.Status.NONFINITE), 0]
        assert draws.failed_at.tolist()[0] == -1
        assert 31 <= draws.failed_at.tolist()[1] <= 33
        assert bool(torch.isfinite(draws.final).all())
        torch.testing.assert_close(draws.final[0], torch.full((2,), math.exp(-1)).double(), rtol=0.02, atol=0)


def test_running_out_of_steps_is_a_status():
    field = ring_mixture().noised(stk.EDM())
    draws = stk.sample(field, stk.ProbabilityFlow("dopri5", max_steps=3, rtol=1e-9, atol=1e-9), chains=4)
    assert draws.status.tolist() == [int(stk.Status.MAX_STEPS)] * 4


@pytest.mark.parametrize("method", FIXED)
def test_keep_all_is_the_way_there(method):
    field = ring_mixture().noised(stk.Linear())
    draws = stk.sample(field, stk.ProbabilityFlow(method, steps=9), chains=3, keep="all")
    assert draws.x.shape == (3, 9, 2)
    torch.testing.assert_close(draws.x[:, -1], draws.final)


@pytest.mark.parametrize("method", FIXED)
def test_float32_against_float64(method):
    field = ring_mixture().noised(stk.VP())
    a = stk.sample(field, stk.ProbabilityFlow(method, steps=32), chains=64, dtype=torch.float32).final
    b = stk.sample(field, stk.ProbabilityFlow(method, steps=32), chains=64, dtype=torch.float64).final
    assert float((a - b).abs().median()) < 1e-5


def test_flow_between_two_data_sets():
    cats, shift = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([3.0, -1.0])
    field = stk.Velocity(lambda x, t: shift.expand_as(x), (2,), base=cats)
    draws = stk.sample(field, stk.ProbabilityFlow("heun", steps=4), chains=20)
    back = draws.final - shift
    assert float(torch.cdist(back, cats, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max()) < 1e-5


def test_gradients_flow_through_a_solve_when_asked():
    field = gaussian(dim=1, mean=0.7, std=0.5).noised(stk.EDM())
    x = torch.tensor([[3.0]], dtype=torch.float64, requires_grad=True)
    final = stk.sample(field, stk.ProbabilityFlow("heun", steps=20), init=x, grad=True).final
    (slope,) = torch.autograd.grad(final.sum(), x)
    ahead, behind = (
        stk.sample(field, stk.ProbabilityFlow("heun", steps=20), init=x.detach() + d).final for d in (1e-4, -1e-4)
    )
    torch.testing.assert_close(slope, (ahead - behind) / 2e-4, rtol=1e-6, atol=1e-9)
    assert not stk.sample(field, stk.ProbabilityFlow("heun", steps=2), init=x).final.requires_grad


@pytest.mark.parametrize("path", [p for p in PATHS if not isinstance(p, stk.Tabulated)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_increasing_times_from_end_to_end(path, name):
    for steps in (3, 20):
        times = grid(name, path, steps)
        assert times.shape == (steps + 1,)
        assert float(times[0]) == 0
        assert float(times[-1]) == 1
        assert bool((times.diff() > 0).all())


def test_the_logistic_grid_spaces_the_levels_as_it_says():
    path = stk.VP()
    times = grid("logistic", path, 12)
    spaced = 1 / (1 + (path.sigma(times) / path.alpha(times)) ** 0.8)
    torch.testing.assert_close(spaced.diff(), spaced.diff().mean().expand(12), rtol=1e-8, atol=0)


@pytest.mark.parametrize(("method", "limits"), [("heun", (0.12, 0.02)), ("dpmpp_2m", (0.05, 0.01))])
@pytest.mark.parametrize(
    "path", [stk.VP(), stk.Linear(), stk.Cosine(), stk.EDM(0.002, 80.0)], ids=lambda p: type(p).__name__
)
def test_the_default_grid_is_accurate_on_the_ring(path, method, limits):
    """Median error at 18 and 36 evaluations; Karras' grid with rho = 7 misses all of the first and most of the second."""
    field = ring_mixture().noised(path)
    denoise = isinstance(path, stk.EDM)
    start = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = float(path.sigma(0.0)) * start
    exact = stk.sample(field, stk.ProbabilityFlow("dpmpp_2m", 3000, "karras", denoise=denoise), init=start).final
    for evaluations, limit in zip((18, 36), limits, strict=True):
        steps = evaluations if method == "dpmpp_2m" else evaluations // 2
        errors = {}
        for name in (None, "karras"):
            x = stk.sample(field, stk.ProbabilityFlow(method, steps, name, denoise=denoise), init=start).final
            errors[name] = float((x - exact).norm(dim=1).median())
        assert errors[None] < limit
        assert errors[None] < errors["karras"]
