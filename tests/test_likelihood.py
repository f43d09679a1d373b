"""log_prob and bits_per_dim against closed forms: every path and solve, exact trace and probes with their exact moments."""

import itertools
import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch

import scoretk as stk
from scoretk.inference import likelihood
from scoretk.inference.likelihood import bits_per_dim, divergence, products
from scoretk.models.targets.mixture import GaussianMixture, gaussian, ring_mixture
from scoretk.ode.registry import find_method
from tests.evidence import assert_mean, assert_second_moment, mean_z, z_limit
from tests.marks import slow_but, slow_rows_but, slow_unless
from tests.test_fields import PATHS

A = torch.tensor([[1.0, 0.5], [0.2, 2.0]], dtype=torch.float64)
RING = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
RING_LOG_PROB = torch.tensor([-3.7808546294, -3.4390567908, -3.4056976966], dtype=torch.float64)


def blob(shape, s=0.5, m=0.3):
    """N(m, s^2) in every coordinate."""
    return GaussianMixture(torch.full((1, *shape), m), torch.tensor([s]), torch.ones(1))


def blob_log_prob(path, x, s=0.5, m=0.3):
    """The flow is linear, and so is all that differs from the data's own density: the base at t = 0, and sigma(1)."""
    a0, s0, a1, s1 = (float(v) for t in (0.0, 1.0) for v in path(t)[:2])
    before, after = math.hypot(a0 * s, s0), math.hypot(a1 * s, s1)
    start = (a0 * m + (x - a1 * m) * before / after).reshape(len(x), -1)
    base = torch.distributions.Normal(0.0, s0).log_prob(start).sum(1)
    return base + start.shape[1] * math.log(before / after)


def rows_of(shape, n=3, s=0.5, m=0.3):
    return (
        torch.randn((n, *shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        * s
        + m
    )


def linear_flow(matrix=A, base=None):
    """dx/dt = A x: `log p(x) = log p_0(expm(-A) x) - tr A`, and every probe's integral is e^T A e."""
    return stk.Velocity(lambda x, t: x @ matrix.T.to(x), (len(matrix),), base=base)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "path",
    slow_unless(PATHS, (stk.VP, stk.VE, stk.Linear, stk.Tabulated)),
    ids=lambda p: type(p).__name__,
)
@pytest.mark.parametrize("shape", slow_but([(2,), (1, 2, 2), ()], (1, 2, 2)), ids=str)
def test_gaussian_data_under_every_path(path, shape):
    x = rows_of(shape)
    steps = 64 if isinstance(path, stk.Tabulated) else 32
    got = stk.log_prob(blob(shape).noised(path), x, method="rk4", steps=steps)
    torch.testing.assert_close(got.value, blob_log_prob(path, x), rtol=0, atol=2e-4)
    assert got.value.shape == got.stderr.shape == got.status.shape == (3,)
    assert not bool(got.stderr.any() or got.status.any())


@pytest.mark.thorough
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, marks=() if isinstance(path, stk.VP | stk.Interpolant) else pytest.mark.slow
        )
        for path in PATHS
    ],
    ids=lambda p: type(p).__name__,
)
def test_gaussian_data_closely(path):
    x = rows_of((1, 2, 2))
    got = stk.log_prob(blob((1, 2, 2)).noised(path), x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(got.value, blob_log_prob(path, x), rtol=0, atol=2e-6)
    assert not bool(got.stderr.any() or got.status.any())


DETERMINATE = [(stk.VP(), p) for p in ("noise", "score", "velocity", "v")] + [
    (stk.Cosine(), p) for p in ("velocity", "v")
]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("path", "predicts"),
    slow_rows_but(DETERMINATE, (stk.VP(), "score"), (stk.VP(), "velocity"), (stk.Cosine(), "v")),
    ids=str,
)
def test_predictions_that_determine_the_rate_start_at_the_data_themselves(path, predicts):
    exact = blob((2,)).noised(path)

    def net(x, t):
        score = exact.score(x, t)
        alpha, sigma, dalpha, _ = (c[:, None].to(x) for c in path(t.double()))
        noise, data = -sigma * score, exact.denoise(x, t)
        drift = dalpha * data - path.sigma_dsigma(t.double())[:, None] * score
        return {
            "noise": noise,
            "score": score,
            "velocity": drift,
            "v": alpha * noise - sigma * data,
        }[predicts]

    x = rows_of((2,))
    got = stk.log_prob(stk.Diffusion(net, (2,), path, predicts), x, rtol=1e-8, atol=1e-8)
    assert "end corrected" not in got.method
    torch.testing.assert_close(got.value, blob_log_prob(path, x), rtol=0, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("s", "settings", "bound"),
    [
        pytest.param(0.01, {"rtol": 1e-8, "atol": 1e-8}, 2e-4, marks=pytest.mark.slow),
        (0.1, {"method": "rk4", "steps": 64}, 1e-4),
    ],
    ids=["dopri5", "rk4"],
)
def test_the_end_correction(s, settings, bound, monkeypatch):
    """Narrow data: the error without the correction, of second order in sigma of the first angle, is seen at once."""
    path = stk.VP()
    field, x = blob((2,), s).noised(path), rows_of((2,), s=s)
    truth = blob_log_prob(path, x, s)

    def error():
        return float((stk.log_prob(field, x, **settings).value - truth).abs().max())

    assert error() < bound
    monkeypatch.setattr("scoretk.inference.encoding.corrected_end", lambda rate, y, angles: y)
    assert error() > 20 * bound


@cache
def solved_closely(path):
    """Log densities of the smoothed ring, to ten digits."""
    return stk.log_prob(
        ring_mixture(std=1.0).noised(path), rows_of((2,), 6), rtol=1e-10, atol=1e-10
    ).value


ORDERS = {"euler": 1, "heun": 2, "rk4": 4}
WAYS = [stk.VE(1.0, 200.0), stk.VP(), stk.Linear()]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("path", "method"),
    slow_rows_but(
        [(path, method) for path in WAYS for method in ORDERS],
        (WAYS[0], "rk4"),
        (WAYS[1], "euler"),
        (WAYS[2], "heun"),
    ),
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_fixed_grids_converge_with_their_order(path, method):
    field, x = ring_mixture(std=1.0).noised(path), rows_of((2,), 6)
    truth = solved_closely(path)
    errors = [
        float((stk.log_prob(field, x, method=method, steps=n).value - truth).abs().mean())
        for n in (24, 48)
    ]
    assert abs(math.log2(errors[0] / errors[1]) - ORDERS[method]) < 0.3, errors
    stages = find_method(method).stages
    cost = stk.log_prob(field, x, method=method, steps=10).cost
    solved = 1 + 9 * stages if isinstance(path, stk.VP | stk.Linear) else 10 * stages
    assert cost == {"velocity": (solved + 1) * 6, "vjp": solved * 6 * 2}


def test_ring_mixture_smoothed():
    field = ring_mixture().noised(
        stk.VE(1.0, 2000.0)
    )  # so wide that the base is the marginal to 1e-6
    got = stk.log_prob(field, RING, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(got.value, RING_LOG_PROB, rtol=0, atol=1e-4)
    fixed = stk.log_prob(field, RING, method="heun", steps=200)
    torch.testing.assert_close(fixed.value, RING_LOG_PROB, rtol=0, atol=2e-3)
    single = stk.log_prob(field, RING.float())
    assert single.value.dtype == torch.float32
    torch.testing.assert_close(single.value.double(), RING_LOG_PROB, rtol=0, atol=2e-3)
    for settings in (
        {"trace": "hutchinson"},
        {"trace": "hutch++"},
        {"trace": "hutchinson", "probe_law": "gaussian"},
    ):
        probed = stk.log_prob(field, RING, probes=64, seed=1, **settings)
        z = (probed.value - RING_LOG_PROB) / probed.stderr.clamp(min=1e-3)
        assert bool((z.abs() < z_limit(3)).all()), settings
    assert "64 Gaussian probes" in probed.method


def test_ring_mixture_itself():
    exact = torch.tensor([-31.0652883442, -1.1447298714, -3.8898923862], dtype=torch.float64)
    got = stk.log_prob(ring_mixture().noised(stk.VE(1e-3, 2000.0)), RING, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(got.value, exact, rtol=0, atol=2e-3)


def test_a_flow_from_another_base():
    """dx/dt = A x from a Laplace law: expm(-A) takes x back, and the divergence is tr A."""
    base = torch.distributions.Independent(
        torch.distributions.Laplace(torch.zeros(2).double(), 1.0), 1
    )
    x = rows_of((2,))
    truth = base.log_prob(x @ torch.linalg.matrix_exp(-A).T) - 3.0
    for settings in ({"rtol": 1e-9, "atol": 1e-9}, {"method": "rk4", "steps": 64}):
        got = stk.log_prob(linear_flow(base=base), x, **settings)
        torch.testing.assert_close(got.value, truth, rtol=0, atol=1e-6)
    outside = torch.distributions.Independent(
        torch.distributions.Uniform(torch.zeros(2).double(), torch.ones(2)), 1
    )
    got = stk.log_prob(
        linear_flow(torch.zeros(2, 2).double(), outside),
        torch.tensor([[0.5, 0.5], [2.0, 0.5]]).double(),
    )
    assert got.value.tolist() == [0.0, -math.inf]
    assert got.status.tolist() == [0, 0]


def quadratic_forms(sets, weights=None, sketch=None):
    """Mean and variance of a probe's estimate of tr A over sets of directions `(n, k, 2)` that exhaust the law's moments."""
    x = torch.ones(len(sets), 2, dtype=torch.float64)
    aside = None if sketch is None else sketch[:, None].expand(-1, *x.shape)
    values = divergence(lambda y, t: y @ A.T, x, 0.0, sets.movedim(1, 0), aside)[1]
    weights = torch.full_like(values[0], 1 / len(sets)) if weights is None else weights
    mean = (weights * values).sum(1).mean()
    return float(mean), float((weights * (values - mean).square()).sum(1).mean())


def pairs(directions):
    return torch.stack([torch.stack(pair) for pair in itertools.product(directions, repeat=2)])


SIGNS = torch.tensor(list(itertools.product((1.0, -1.0), repeat=2)), dtype=torch.float64)
NODES = torch.tensor(
    list(itertools.product((-math.sqrt(3), 0.0, math.sqrt(3)), repeat=2)), dtype=torch.float64
)
NODE_WEIGHTS = torch.outer(
    *2 * [torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)]
).flatten()


def test_probes_have_their_exact_mean_and_variance():
    """Signs are exhausted by 4; a normal's moments up to the fifth are those of Gauss and Hermite's three nodes."""
    assert quadratic_forms(SIGNS[:, None]) == (pytest.approx(3.0), pytest.approx(0.49))
    assert quadratic_forms(NODES[:, None], NODE_WEIGHTS) == (
        pytest.approx(3.0),
        pytest.approx(10.49),
    )
    x = torch.ones(3, 2, dtype=torch.float64)
    value, exact = divergence(lambda y, t: y @ A.T, x, 0.0, None)
    torch.testing.assert_close(exact, torch.full((1, 3), 3.0, dtype=torch.float64))
    torch.testing.assert_close(value, x @ A.T)


@pytest.mark.parametrize(("law", "variance"), [("rademacher", 0.49), ("gaussian", 10.49)])
def test_drawn_probes_and_their_standard_error(law, variance, monkeypatch):
    """Every row has probes of its own: its error has variance v/k, and so has, on average, its squared standard error."""
    rows, k = 20_000, 4
    settings = {
        "method": "heun",
        "steps": 3,
        "trace": "hutchinson",
        "probes": k,
        "probe_law": law,
        "seed": 5,
    }
    field, x = (
        linear_flow(base=torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))),
        torch.ones(rows, 2).double(),
    )
    exact = stk.log_prob(field, x[:1], method="heun", steps=3).value
    got = stk.log_prob(field, x, **settings)
    assert_mean(got.value - exact, 0.0)
    assert_second_moment(got.value - exact, 0.0, variance / k)
    assert_mean(got.stderr.square(), variance / k)

    # a wrong sign of the divergence, and probes drawn anew at every evaluation, do not pass
    monkeypatch.setattr(likelihood, "_inner", lambda a, b: -(a * b).flatten(2).sum(2))
    assert mean_z(stk.log_prob(field, x, **settings).value - exact, 0.0).abs() > 2 * z_limit()
    monkeypatch.undo()
    seeds, fixed = itertools.count(), likelihood.divergence

    def redrawn(u, y, t, directions, sketch=None):
        return fixed(
            u, y, t, likelihood._probes(stk.Noise(next(seeds), len(y), dtype=y.dtype), y, k, law)[0]
        )

    monkeypatch.setattr(likelihood, "divergence", redrawn)
    wrong = stk.log_prob(field, x, **settings)
    assert mean_z((wrong.value - exact).square(), variance / k).abs() > 2 * z_limit()


def test_hutch_pp_is_unbiased_for_every_sketch_and_exact_on_a_low_rank():
    both = torch.outer(NODE_WEIGHTS, NODE_WEIGHTS).flatten()
    for sketch in SIGNS:
        assert quadratic_forms(pairs(SIGNS), sketch=sketch[None])[0] == pytest.approx(3.0)
        assert quadratic_forms(pairs(NODES), both, sketch[None])[0] == pytest.approx(3.0)
    assert quadratic_forms(pairs(SIGNS), sketch=SIGNS[:2]) == (
        pytest.approx(3.0),
        pytest.approx(0.0, abs=1e-20),
    )

    d, x = 24, torch.zeros(400, 24, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    left, right = torch.randn((2, d, 2), generator=generator, dtype=torch.float64)
    level = 0.7 * torch.eye(d, dtype=torch.float64)
    small = 1e-3 * torch.randn((d, d), generator=generator, dtype=torch.float64)
    spread = {}
    for name, matrix in {
        "low rank": left @ right.T,
        "identity": level,
        "both": left @ right.T / d + small,
    }.items():
        for trace in ("hutchinson", "hutch++"):
            e, s = likelihood._probes(
                stk.Noise(3, len(x), dtype=x.dtype), x, 12, sketched=trace == "hutch++"
            )
            found = (
                divergence(lambda y, t, m=matrix: y @ m.T, x, 0.0, e, s)[1].mean(0) - matrix.trace()
            )
            spread[name, trace] = float(found.square().mean().sqrt())
            assert_mean(found, 0.0) if spread[name, trace] > 1e-9 else None
    assert spread["low rank", "hutch++"] < 1e-9 < 0.1 < spread["low rank", "hutchinson"]
    assert max(spread["identity", t] for t in ("hutch++", "hutchinson")) < 1e-9
    assert spread["both", "hutch++"] < spread["both", "hutchinson"] / 10


class Doubling(torch.autograd.Function):
    """An operation that cannot be vectorised: its backward pass looks at numbers."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        assert math.isfinite(float(grad.sum().item()))
        return 2 * grad


def test_products_vectorised_and_one_by_one_are_the_same():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn((1, 1, 3, 3), generator=generator, dtype=torch.float64)
    x = rows_of((1, 3, 4))

    def vectorised(y, t):
        return torch.nn.functional.conv2d(y, weight, padding=1).tanh() * 2

    def looped(y, t):
        return Doubling.apply(torch.nn.functional.conv2d(y, weight, padding=1).tanh())

    trace = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda r: vectorised(r[None], 0.0)[0], row)
            .reshape(12, 12)
            .trace()
            for row in x
        ]
    )
    for model in (vectorised, looped):
        torch.testing.assert_close(
            divergence(model, x, 0.0, None)[1][0], trace, rtol=1e-12, atol=1e-12
        )
    e, s = likelihood._probes(stk.Noise(0, len(x), dtype=x.dtype), x, 9, sketched=True)
    for sketch in (None, s):
        both = [divergence(model, x, 0.0, e, sketch)[1] for model in (vectorised, looped)]
        torch.testing.assert_close(*both, rtol=1e-12, atol=1e-12)
    y = x.clone().requires_grad_()
    assert products(vectorised(y, 0.0), y, e).shape == e.shape


@pytest.mark.parametrize("trace", ["exact", "hutchinson", "hutch++"])
def test_a_row_has_its_value_whatever_its_neighbours(trace):
    field, x = blob((1, 2, 2)).noised(stk.VP()), rows_of((1, 2, 2), 5)
    settings = {"method": "heun", "steps": 8, "trace": trace, "probes": 4, "seed": 2}
    together, alone = stk.log_prob(field, x, **settings), stk.log_prob(field, x[:1], **settings)
    torch.testing.assert_close(together.value[:1], alone.value, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(together.stderr[:1], alone.stderr, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("probes", [4, 9])
@pytest.mark.parametrize("method", ["heun", "dopri5"])
@pytest.mark.parametrize("trace", ["hutchinson", "hutch++"])
def test_products_are_counted_as_they_are_made(trace, method, probes, monkeypatch):
    made, own = [], likelihood.products

    def counted(u, y, directions, keep=False):
        made.append(directions.shape[0] * directions.shape[1])
        return own(u, y, directions, keep)

    monkeypatch.setattr(likelihood, "products", counted)
    field, x = blob((1, 2, 3)).noised(stk.VP()), rows_of((1, 2, 3))
    settings = {"steps": 4} if method == "heun" else {}
    found = stk.log_prob(field, x, method=method, trace=trace, probes=probes, **settings)
    assert sum(made) == found.cost["vjp"]


def test_conditions_reach_the_model():
    """dx/dt = c, from N(0, I): N(c, I)."""
    field = stk.Velocity(
        lambda x, t, c: c + 0 * x,
        (2,),
        base=torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)),
    )
    x, c = rows_of((2,)), rows_of((2,), 4)[1:]
    got = stk.log_prob(field, x, cond={"c": c})
    torch.testing.assert_close(
        got.value, torch.distributions.Normal(c, 1.0).log_prob(x).sum(1), rtol=0, atol=1e-6
    )


def test_exact_where_the_family_has_it():
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    got = stk.log_prob(gaussian(dim=2), x)
    assert got.method == "exact"
    torch.testing.assert_close(got.value, torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1))


@pytest.mark.parametrize("method", ["dopri5", "heun"])
@pytest.mark.parametrize("trace", ["exact", "hutchinson", "hutch++"])
def test_rows_that_fail_are_nan_with_a_status(method, trace):
    field = stk.Velocity(
        lambda x, t: torch.where((x > 3).any(1, keepdim=True), torch.nan, -x), (2,)
    )
    x = torch.tensor([[0.5, 0.1], [9.0, 0.1]], dtype=torch.float64)
    got = stk.log_prob(field, x, method=method, trace=trace)
    assert bool(torch.isfinite(got.value[0]) and torch.isfinite(got.stderr[0]))
    assert bool(torch.isnan(got.value[1]) and torch.isnan(got.stderr[1]))
    assert got.status.tolist() == [0, int(stk.Status.NONFINITE)]
    alone = stk.log_prob(field, x[:1], method=method, trace=trace)
    torch.testing.assert_close(got.value[:1], alone.value, rtol=1e-4, atol=1e-4)


def test_rows_that_fail_in_the_end_correction_or_run_out_of_steps():
    exact = blob((2,)).noised(stk.VP())
    field = stk.Diffusion(
        lambda x, t: exact.denoise(torch.where(x > 3, torch.nan, x), t), (2,), stk.VP(), "data"
    )
    got = stk.log_prob(field, torch.tensor([[0.5, 0.5], [9.0, 0.5]], dtype=torch.float64))
    assert got.status.tolist() == [0, int(stk.Status.NONFINITE)]
    assert got.value.isnan().tolist() == [False, True]
    short = stk.log_prob(exact, rows_of((2,)), rtol=1e-10, atol=1e-10, max_steps=3)
    assert short.status.tolist() == [int(stk.Status.MAX_STEPS)] * 3
    assert bool(short.value.isnan().all())


def test_bits_of_a_uniform_density_are_those_of_the_levels():
    """Whatever u is: 8 bits on [0, 1] and on [-1, 1], where the offset is 7 and the density 2^-d."""
    cells = torch.arange(8.0).reshape(2, 4) * 36
    for low, high, offset in ((0.0, 1.0, 8.0), (-1.0, 1.0, 7.0)):
        law = torch.distributions.Uniform(torch.full((4,), low), torch.full((4,), high))
        field = stk.from_distribution(torch.distributions.Independent(law, 1))
        got = bits_per_dim(field, cells, interval=(low, high))
        torch.testing.assert_close(got.value, torch.full((2,), 8.0))
        torch.testing.assert_close(got.stderr, torch.zeros(2))
        mid = low + (high - low) * (cells + 0.5) / 256
        torch.testing.assert_close(
            -stk.log_prob(field, mid).value / (4 * math.log(2)) + offset, got.value
        )


@pytest.mark.thorough
@pytest.mark.parametrize("timed", [False, True])
def test_bits_of_a_gaussian(timed):
    """-log p is quadratic, so its mean over u is known, and so is the size of the standard error."""
    levels, s, m, draws = 4, 0.4, 0.3, 16
    law = blob((3,), s, m)
    field = (
        law.noised(stk.Cosine()) if timed else law
    )  # at t = 0 alpha is 0: the base is the marginal
    cells = torch.arange(24, dtype=torch.float64).reshape(-1, 3) % levels
    cells = cells.repeat(12, 1)
    settings = {"method": "rk4", "steps": 16} if timed else {}
    got = bits_per_dim(field, cells, levels=levels, draws=draws, seed=3, **settings)
    middle = (cells + 0.5) / levels
    energy = ((middle - m).square() + 1 / (12 * levels**2)) / (2 * s**2) + math.log(
        s * math.sqrt(2 * math.pi)
    )
    truth = energy.mean(1) / math.log(2) + math.log2(levels)
    # u^2 has variance 1/180 about the middle, and is uncorrelated with u, of variance 1/12
    scale = 1 / (2 * s**2 * math.log(2) * 3)
    slope = (2 * (middle - m) / levels).square().sum(1) / 12
    variance = scale**2 * (slope + 3 / (180 * levels**4)) / draws
    assert_mean((got.value - truth) / variance.sqrt(), 0.0)
    assert_second_moment((got.value - truth) / variance.sqrt(), 0.0, 1.0)
    assert_mean(got.stderr.square() / variance, 1.0)
    assert "16 dequantisations to 4 levels" in got.method
    # a bound of the cells' probability: the integral of the density over the cell
    normal = torch.distributions.Normal(m, s)
    cell = (normal.cdf((cells + 1) / levels) - normal.cdf(cells / levels)).log2().mean(1)
    assert bool((truth > -cell).all())


def test_bits_of_failed_rows_and_wrong_data():
    field = stk.Velocity(lambda x, t: torch.where(x > 0.9, torch.nan, -x), (1,))
    got = bits_per_dim(field, torch.tensor([[3], [255]]), method="heun", steps=4, trace="exact")
    assert got.value.isnan().tolist() == got.stderr.isnan().tolist() == [False, True]
    assert got.status.tolist() == [0, int(stk.Status.NONFINITE)]
    assert got.value.dtype == torch.float32
    for wrong in (torch.tensor([[0.5]]), torch.tensor([[256]]), torch.tensor([[-1]])):
        with pytest.raises(stk.InvalidArgument, match="whole numbers from 0 to 255"):
            bits_per_dim(field, wrong)
    with pytest.raises(stk.InvalidArgument, match="low < high"):
        bits_per_dim(field, torch.tensor([[1]]), interval=(1.0, 0.0))
    with pytest.raises(stk.InvalidArgument, match="draws"):
        bits_per_dim(field, torch.tensor([[1]]), draws=1)


def test_what_has_no_density_says_so():
    with pytest.raises(stk.MissingCapability, match="constant only"):
        stk.log_prob(stk.Energy(lambda x: x.square().sum(1), (2,)), torch.zeros(2, 2))
    with pytest.raises(stk.MissingCapability, match="base has no density"):
        stk.log_prob(stk.Velocity(lambda x, t: x, (2,), base=torch.zeros(3, 2)), torch.zeros(2, 2))
    with pytest.raises(stk.InvalidArgument, match="x: expected"):
        stk.log_prob(gaussian(dim=2), torch.zeros(2, 3))


def test_wrong_settings_say_so():
    field, x = linear_flow(), torch.zeros(2, 2)
    for settings, message in (
        ({"steps": 3}, "chooses its own steps"),
        ({"method": "heun", "grid": [0.0, 0.5]}, "times from 0 to 1"),
        ({"trace": "hutch++", "probes": 3}, "at least 4"),
        ({"trace": "hutchinson", "probes": 1}, "at least 2"),
    ):
        with pytest.raises(stk.InvalidArgument, match=message):
            stk.log_prob(field, x, **settings)
    for settings in ({"trace": "hutchpp"}, {"probe_law": "normal"}, {"method": "heunn"}):
        with pytest.raises(stk.UnknownName):
            stk.log_prob(field, x, **settings)
    hidden = stk.Velocity(lambda x, t: x.detach() * 2, (2,))
    with pytest.raises(stk.InvalidArgument, match="differentiate"):
        stk.log_prob(hidden, x)


# Gradients


def of_x(f, x):
    """What autograd says of f at x, and central differences."""
    x = x.clone().requires_grad_()
    (told,) = torch.autograd.grad(f(x).sum(), x)
    seen, h = torch.zeros_like(told), 1e-5
    with torch.no_grad():
        for i in range(x[0].numel()):
            v = h * torch.eye(x[0].numel(), dtype=x.dtype)[i].reshape(x.shape[1:])
            seen[:, i] = (f(x + v) - f(x - v)) / (2 * h)
    return told, seen


@pytest.mark.thorough
@pytest.mark.parametrize(
    "path", slow_but([stk.VP(), stk.Linear(), stk.VE(0.01, 50.0)], stk.Linear()), ids=repr
)
def test_a_density_s_gradient_is_that_of_its_values(path):
    """By steps that do not depend on x exactly; by adaptive ones to their tolerance that of the model's density."""
    field, x = blob((2,), 0.7).noised(path), rows_of((2,), s=0.7, n=3)
    told, seen = of_x(lambda v: stk.log_prob(field, v, method="rk4", steps=16).value, x)
    torch.testing.assert_close(told, seen, rtol=1e-5, atol=1e-6)
    told, _ = of_x(lambda v: stk.log_prob(field, v, rtol=1e-8, atol=1e-8).value, x)
    _, exact = of_x(lambda v: blob_log_prob(path, v, 0.7), x)
    torch.testing.assert_close(told, exact, rtol=1e-5, atol=1e-5)


def test_gradients_of_latents_of_estimates_of_conditions_and_of_parameters():
    x, scale = (
        rows_of((2,), n=3),
        torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64, requires_grad=True),
    )
    weight = torch.nn.Parameter(torch.tensor([[0.3, 0.1], [-0.2, 0.4]], dtype=torch.float64))
    field = stk.Velocity(lambda x, t, c: c[:, None] * (x @ weight.T), (2,))
    told, seen = of_x(
        lambda v: stk.encode(field, v, cond={"c": scale}, method="rk4", steps=8).x.sum(1), x
    )
    torch.testing.assert_close(told, seen, rtol=1e-6, atol=1e-7)
    for trace in ("exact", "hutchinson"):
        told, seen = of_x(
            lambda v, t=trace: (
                stk.log_prob(field, v, cond={"c": scale}, method="rk4", steps=8, trace=t).value
            ),
            x,
        )
        torch.testing.assert_close(told, seen, rtol=1e-5, atol=1e-6)
    value = stk.log_prob(field, x, cond={"c": scale}, trace="hutch++", probes=6).value
    for gradient in torch.autograd.grad(value.sum(), (scale, weight)):
        assert bool((gradient.isfinite() & (gradient != 0)).all())
    assert weight.requires_grad


def test_gradients_of_a_divergence_that_is_not_constant():
    """What linear fields do not show: the divergence of theirs is the same everywhere."""
    weight = torch.tensor([[0.9, -0.7], [0.4, 1.1]], dtype=torch.float64)
    field, x = stk.Velocity(lambda x, t: torch.tanh(2 * x @ weight.T), (2,)), rows_of((2,), n=3)
    for trace in ("exact", "hutchinson"):
        told, seen = of_x(
            lambda v, t=trace: stk.log_prob(field, v, method="rk4", steps=6, trace=t).value, x
        )
        torch.testing.assert_close(told, seen, rtol=1e-5, atol=1e-6)


def test_gradients_are_kept_only_where_asked_and_refused_where_there_are_none():
    known, x = blob((2,), 0.7), rows_of((2,), n=3)
    for field in (known, known.noised(stk.VP())):
        assert not stk.log_prob(field, x).value.requires_grad
        with torch.no_grad():
            assert not stk.log_prob(field, x.clone().requires_grad_()).value.requires_grad
    told, _ = of_x(lambda v: stk.log_prob(known, v).value, x)
    assert bool((told != 0).all())
    cut = stk.Velocity(torch.no_grad()(lambda x, t: -x), (2,))
    part = stk.Velocity(lambda x, t: torch.cat([-x[:, :1].detach(), -x[:, 1:]], 1), (2,))
    asking = x.clone().requires_grad_()
    for field in (cut, part):
        for call in (stk.log_prob, stk.encode):
            with pytest.raises(stk.InvalidArgument, match="differentiate"):
                call(field, asking)
        with pytest.raises(stk.InvalidArgument, match="differentiate"):
            stk.log_prob(field, x)


@dataclass(frozen=True, eq=False)
class Silent:
    """A density computed outside of the graph."""

    event_shape: tuple = (2,)
    provides = frozenset({"log_prob"})

    @torch.no_grad()
    def log_prob(self, x):
        return -x.square().sum(1)


def test_a_density_that_gives_no_gradient_says_so():
    with pytest.raises(stk.InvalidArgument, match=r"x\.detach"):
        stk.log_prob(Silent(), rows_of((2,), n=3).requires_grad_())
    assert stk.log_prob(Silent(), rows_of((2,), n=3)).value.shape == (3,)
