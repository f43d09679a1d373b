"""encode against the closed form of linear flows and its own way back; interpolation on the sphere."""

import math

import pytest
import torch
from scipy.stats import norm

import scoretk as stk
from scoretk.fields import resolve
from scoretk.inference.encoding import encode, interpolate
from scoretk.models.targets.mixture import GaussianMixture, gaussian, ring_mixture
from tests.evidence import assert_distribution, ks_p
from tests.marks import slow_but, slow_unless
from tests.test_fields import PATHS


def blob(shape, s=0.5, m=0.3):
    return GaussianMixture(torch.full((1, *shape), m), torch.tensor([s]), torch.ones(1))


def rows_of(shape, n=3):
    return (
        torch.randn((n, *shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        * 0.5
        + 0.3
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    "path", slow_unless(PATHS, (stk.VP, stk.VE, stk.Interpolant)), ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("shape", slow_but([(2,), (1, 2, 2), ()], (1, 2, 2)), ids=str)
def test_gaussian_data_under_every_path(path, shape):
    """`x_0 = alpha_0 m + (x - alpha_1 m) sqrt((alpha_0^2 s^2 + sigma_0^2) / (alpha_1^2 s^2 + sigma_1^2))`."""
    s, m, x = 0.5, 0.3, rows_of(shape)
    (a0, s0), (a1, s1) = (map(float, path(t)[:2]) for t in (0.0, 1.0))
    truth = a0 * m + (x - a1 * m) * math.hypot(a0 * s, s0) / math.hypot(a1 * s, s1)
    scale = s0  # of the latents
    closely = ({"rtol": 1e-8, "atol": 1e-8}, 1e-7)
    steps = 64 if isinstance(path, stk.Tabulated) else 32
    for settings, bound in (
        *([closely] if isinstance(path, stk.VP) else []),
        ({"method": "rk4", "steps": steps}, 1e-4),
    ):
        found = encode(blob(shape, s, m).noised(path), x, **settings)
        torch.testing.assert_close(found.x / scale, truth / scale, rtol=0, atol=bound)
        assert bool(found.ok.all())
    single = encode(blob(shape, s, m).noised(path), x.float())
    assert single.x.dtype == torch.float32
    torch.testing.assert_close(single.x.double() / scale, truth / scale, rtol=0, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "path",
    slow_but([stk.Linear(), stk.VP(), stk.VE(0.01, 50.0)], stk.VP()),
    ids=lambda p: type(p).__name__,
)
def test_data_become_noise_and_come_back(path):
    """Latents of the ring's own samples follow the base, by Kolmogorov and Smirnov, and the flow leads back to the data."""
    data = ring_mixture().draw(3000, stk.Noise(1, 3000, dtype=torch.float64)).double()
    field = ring_mixture().noised(path)
    found = encode(field, data, method="rk4", steps=64)
    scale = field.base.std
    for axis in found.x.T:
        assert_distribution(axis / scale, norm.cdf)
    assert ks_p(found.x[:, 0] / (1.2 * scale), norm.cdf) < 1e-6
    latents = encode(field, data[:50], rtol=1e-7, atol=1e-7)
    back = stk.sample(field, stk.ProbabilityFlow("dopri5", rtol=1e-7, atol=1e-7), init=latents.x)
    torch.testing.assert_close(back.final, data[:50], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.x[:50] / scale, latents.x / scale, rtol=0, atol=5e-3)


def test_a_flow_without_a_path_and_its_conditions():
    """dx/dt = c x from a uniform base: x_0 = exp(-c) x."""
    base = torch.distributions.Independent(
        torch.distributions.Uniform(-torch.ones(2), torch.ones(2)), 1
    )
    field = stk.Velocity(lambda x, t, c: c[:, None] * x, (2,), base=base)
    x, c = rows_of((2,)), torch.tensor([0.1, -0.5, 2.0], dtype=torch.float64)
    for settings in ({"rtol": 1e-9, "atol": 1e-9}, {"method": "rk4", "steps": 64}):
        found = encode(field, x, cond={"c": c}, **settings)
        torch.testing.assert_close(found.x, x * (-c).exp()[:, None], rtol=0, atol=1e-6)
    solver = stk.ProbabilityFlow("dopri5", rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        stk.sample(field, solver, init=found.x, cond={"c": c}).final, x, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("method", ["dopri5", "heun"])
def test_rows_that_fail_are_nan_with_a_status(method):
    field = stk.Velocity(
        lambda x, t: torch.where((x > 3).any(1, keepdim=True), torch.nan, -x), (2,)
    )
    x = torch.tensor([[0.5, 0.1], [9.0, 0.1]], dtype=torch.float64)
    found = encode(field, x, method=method)
    assert found.status.tolist() == [0, int(stk.Status.NONFINITE)]
    assert found.ok.tolist() == [True, False]
    assert found.x.isnan().all(1).tolist() == [False, True]
    torch.testing.assert_close(
        found.x[:1], encode(field, x[:1], method=method).x, rtol=1e-4, atol=1e-4
    )


def test_cost_and_refusals():
    field, x = blob((2,)).noised(stk.VE()), rows_of((2,))
    assert encode(field, x, method="heun", steps=10).cost == {"velocity": 2 * 10 * 3}
    with pytest.raises(stk.MissingCapability, match="static field"):
        encode(gaussian(dim=2), x)
    with pytest.raises(stk.InvalidArgument, match="x: expected"):
        encode(field, torch.zeros(3, 3))
    with pytest.raises(stk.InvalidArgument, match="chooses its own steps"):
        encode(field, x, steps=3)
    with pytest.raises(stk.UnknownName):
        encode(field, x, method="dopri")
    assert resolve(field, {"velocity"}).velocity(x, 0.5).shape == x.shape  # left as found


@pytest.mark.parametrize("shape", [(5,), (1, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_interpolation_on_the_sphere(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn((6, *shape), generator=generator, dtype=dtype) for _ in range(2))
    points = interpolate(a, b, 9)
    assert points.shape == (6, 9, *shape)
    assert points.dtype == dtype
    torch.testing.assert_close(points[:, 0], a)
    torch.testing.assert_close(points[:, -1], b)
    flat = points.reshape(6, 9, -1)
    norms = flat.norm(dim=2)
    torch.testing.assert_close(
        norms.diff(dim=1), (norms[:, -1:] - norms[:, :1]).expand(-1, 8) / 8, rtol=1e-4, atol=1e-5
    )
    units = flat / norms[..., None]
    turns = (units[:, 1:] * units[:, :-1]).sum(2).acos()
    torch.testing.assert_close(turns, turns.mean(1, keepdim=True).expand(-1, 8), rtol=2e-3, atol=0)
    torch.testing.assert_close(
        turns.sum(1), (units[:, 0] * units[:, -1]).sum(1).acos(), rtol=1e-3, atol=0
    )
    assert (
        int(torch.linalg.matrix_rank(flat[0].double(), rtol=1e-5)) == 2
    )  # in the plane of a and b
    same = interpolate(a, b / b.flatten(1).norm(dim=1).reshape(-1, *[1] * len(shape)), 3)
    torch.testing.assert_close(interpolate(a, 2 * a, 3)[:, 1], 1.5 * a)
    torch.testing.assert_close(interpolate(a, a, 4), a[:, None].expand(-1, 4, *shape))
    assert bool(same.isfinite().all())
    torch.testing.assert_close(interpolate(a[:1], b[:1], 9), points[:1])


def test_interpolation_refuses_what_has_no_way():
    a = torch.tensor([[1.0, 0.0]])
    for other in (-a, torch.zeros(1, 2)):
        with pytest.raises(stk.InvalidArgument, match="opposite"):
            interpolate(a, other, 3)
    with pytest.raises(stk.InvalidArgument, match="b: expected"):
        interpolate(a, torch.ones(1, 3), 3)
    with pytest.raises(stk.InvalidArgument, match="n: expected"):
        interpolate(a, a, 1)
    torch.testing.assert_close(
        interpolate(torch.tensor([1.0, -2.0]), torch.tensor([3.0, -1.0]), 3)[:, 1],
        torch.tensor([2.0, -1.5]),
    )
