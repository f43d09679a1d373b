"""Paths, conversions, bases and noised fields against their closed forms, written down a second time."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import distributions as td

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.alike import alike
from scoretk.fields.base import EmpiricalBase, NormalBase, UniformStates
from scoretk.fields.bridge import Bridge, Stretched
from scoretk.fields.conditions import own
from scoretk.fields.convert import PREDICTIONS, convert
from scoretk.fields.derivatives import check_derivative, check_no_steps, value_and_pullback
from scoretk.fields.discrete import Discrete
from scoretk.fields.freelaws import free_law, log_density, support_of, unvalidated
from scoretk.fields.gradient import grad_energy, score_of_energy
from scoretk.fields.paths import EDM, VE, VP, Cosine, Interpolant, Linear, SubVP, Tabulated
from scoretk.fields.protocols import is_timed, offers
from scoretk.fields.resolve import resolve
from scoretk.fields.states import check_states, labels, pick, uniform_states
from scoretk.fields.supports import bijection, ordered
from scoretk.models.targets.mixture import GaussianMixture, gaussian

TIMES = (0.07, 0.31, 0.47, 0.83)
BETAS = (0.3, 12.0)
TABLE = torch.tensor([0.99, 0.93, 0.8, 0.55, 0.2, 0.03], dtype=torch.float64)


def vp_alpha(t):
    s = 1 - t
    low, high = BETAS
    return math.exp(-(low * s + (high - low) * s**2 / 2) / 2)


PATHS = {
    "linear": (Linear(), lambda t: t, lambda t: 1 - t),
    "interpolant": (Interpolant(1.7), lambda t: t, lambda t: math.hypot(1 - t, 1.7 * t * (1 - t))),
    "cosine": (Cosine(), lambda t: math.sin(math.pi * t / 2), lambda t: math.cos(math.pi * t / 2)),
    "vp": (VP(*BETAS), vp_alpha, lambda t: math.sqrt(1 - vp_alpha(t) ** 2)),
    "subvp": (SubVP(*BETAS), vp_alpha, lambda t: 1 - vp_alpha(t) ** 2),
    "ve": (VE(0.02, 30.0), lambda t: 1.0, lambda t: 30.0 ** (1 - t) * 0.02**t),
    "edm": (
        EDM(0.01, 40.0, 5.0),
        lambda t: 1.0,
        lambda t: (40.0**0.2 + t * (0.01**0.2 - 40.0**0.2)) ** 5,
    ),
}
ALL_PATHS = [path for path, *_ in PATHS.values()] + [Tabulated(TABLE)]


@pytest.mark.parametrize("name", PATHS)
def test_a_path_is_its_closed_form(name):
    path, alpha, sigma = PATHS[name]
    for t in TIMES:
        assert float(path.alpha(t)) == pytest.approx(alpha(t), rel=1e-12)
        assert float(path.sigma(t)) == pytest.approx(sigma(t), rel=1e-12)


@pytest.mark.parametrize("path", ALL_PATHS, ids=repr)
def test_slopes_and_inverse_are_those_of_the_path(path):
    h = 1e-5
    for t in TIMES:
        for f, slope in ((path.alpha, path.dalpha), (path.sigma, path.dsigma)):
            found = float(f(t + h) - f(t - h)) / (2 * h)
            assert float(slope(t)) == pytest.approx(found, rel=1e-6, abs=1e-8)
        product = float(path.sigma(t + h) ** 2 - path.sigma(t - h) ** 2) / (4 * h)
        assert float(path.sigma_dsigma(t)) == pytest.approx(product, rel=1e-6)
        assert float(path.t(path.log_snr(t))) == pytest.approx(t, abs=1e-9)


def test_a_table_is_met_at_its_timesteps():
    path, n = Tabulated(TABLE), len(TABLE)
    for k, square in enumerate(TABLE.tolist()):
        t = 1 - (k + 1) / n
        assert float(path.timestep(t)) == pytest.approx(k)
        assert float(path.alpha(t)) ** 2 == pytest.approx(square, rel=1e-12)


@pytest.mark.parametrize("path", ALL_PATHS, ids=repr)
def test_every_prediction_becomes_every_other(path):
    """At `x = alpha x_1 + sigma eps` every prediction is known, and so what each becomes."""
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    times = torch.tensor(TIMES, dtype=torch.float64)
    alpha, sigma, dalpha, dsigma = (v[:, None] for v in path(times))
    x = alpha * data + sigma * noise
    known = {
        "data": data,
        "noise": noise,
        "score": -noise / sigma,
        "velocity": dalpha * data + dsigma * noise,
        "v": alpha * noise - sigma * data,
    }
    assert set(known) == set(PREDICTIONS)
    for source, target in itertools.product(PREDICTIONS, PREDICTIONS):
        found = convert(known[source], x, times, path, source, target)
        torch.testing.assert_close(found, known[target], rtol=1e-8, atol=1e-8)
        one = convert(known[source][:1], x[:1], TIMES[0], path, source, target)
        torch.testing.assert_close(one, known[target][:1], rtol=1e-8, atol=1e-8)


def energy(x):
    return (x**4 / 4 + x**2 * torch.tensor([0.5, 2.0], dtype=x.dtype)).sum(-1) + x.prod(-1)


def test_score_and_energy_of_bases_bridges_and_stretched_fields_agree():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    base, end, w = NormalBase((2,), 1.7), stk.Energy(energy, (2,)), 0.3
    fields = [
        (base, lambda y: (y**2).sum(-1) / (2 * 1.7**2)),
        (Bridge(base, end, w), lambda y: (1 - w) * (y**2).sum(-1) / (2 * 1.7**2) + w * energy(y)),
        (Bridge(None, end, w), lambda y: w * energy(y)),
        (Stretched(end, 2.5), lambda y: energy(2.5 * y)),
    ]
    for field, closed in fields:
        y = x.clone().requires_grad_()
        value = closed(y)
        (slope,) = torch.autograd.grad(value.sum(), y)
        torch.testing.assert_close(field.energy(x), value.detach())
        torch.testing.assert_close(field.score(x), -slope)
        if hasattr(field, "energy_and_grad"):
            found = field.energy_and_grad(x)
            torch.testing.assert_close(found[0], value.detach())
            torch.testing.assert_close(found[1], slope)
    density = torch.distributions.Normal(0.0, 1.7).log_prob(x).sum(-1)
    torch.testing.assert_close(base.log_prob(x), density)


def test_enumerated_states_have_their_law():
    states, sites = (-1.0, 0.5, 2.0), 3
    field = Discrete(
        stk.Energy(lambda x: (x * x.roll(1, 1)).sum(1) / 2 + x[:, 0], (sites,)), states
    )
    every = torch.tensor(list(itertools.product(states, repeat=sites)), dtype=torch.float64)
    logs = -field.energy(every)
    assert field.exact_log_partition() == pytest.approx(float(logs.logsumexp(0)), rel=1e-12)
    torch.testing.assert_close(field.log_prob(every), logs.log_softmax(0))
    noise = Noise(3, 500, dtype=torch.float64)
    u = noise.uniform(0, Stream.START, (), torch.float64)
    cdf = logs.softmax(0).cumsum(0)
    expected = every[torch.searchsorted(cdf, u, right=True)]
    assert torch.equal(field.draw(500, noise), expected)


def test_a_velocity_in_reversed_time_points_the_other_way():
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    net = lambda x, s: x * s[:, None]  # noqa: E731
    back = stk.from_reversed_time(net, (2,))
    torch.testing.assert_close(back.velocity(x, 0.3), -0.7 * x)
    noise = stk.from_reversed_time(net, (2,), VP(), "noise")
    torch.testing.assert_close(noise.noise(x, 0.3), 0.7 * x)


def left_out(weights, values):
    """Mean, and the jackknife's variance of it: each antithetic pair left out once."""
    share = weights / weights.sum()
    mean, pairs = share @ values, len(values) // 2
    moved = []
    for p in range(pairs):
        kept = [k for k in range(2 * pairs) if k % pairs != p]
        moved.append((weights[kept] / weights[kept].sum()) @ values[kept] - mean)
    return mean, (pairs - 1) / pairs * np.square(moved).sum(0)


def normal_log(u, mean, spread):
    return -np.square(u - mean).sum(-1) / (2 * spread**2)


@pytest.mark.parametrize("estimator", ["monte-carlo", "langevin"])
def test_a_noised_field_is_its_weighted_mean(estimator):
    """Samples, weights and standard error as the docstring has them, with every density in full."""
    m, s, h, steps = 0.5, 1.25, 0.08, 3
    path, t = VP(), 0.55
    field = stk.smoothed(
        stk.Energy(energy, (2,)),
        path,
        estimator,
        samples=12,
        steps=steps,
        step_size=h,
        reference=(m, s),
        seed=5,
    )
    x = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
    total = alpha**2 + (sigma / s) ** 2
    mu, r = (alpha * x[0].numpy() + (sigma / s) ** 2 * m) / total, sigma / math.sqrt(total)

    def g(u):
        y = torch.tensor(mu + r * u, requires_grad=True)
        value = energy(y) - ((y - m) / s).square().sum(-1) / 2
        (slope,) = torch.autograd.grad(value.sum(), y)
        return value.detach().numpy(), r * slope.numpy()

    both = [np.concatenate([z, -z]) for z in field.directions.double().numpy()]
    u, a, spread = both[0], math.exp(-h), math.sqrt(1 - math.exp(-2 * h))
    log_w = 0 * u[:, 0]
    if estimator == "langevin":
        for step in range(1, steps + 1):
            b = step / steps
            there = a * u - (1 - a) * b * g(u)[1] + spread * both[step]
            back = a * there - (1 - a) * b * g(there)[1]
            on = a * u - (1 - a) * b * g(u)[1]
            log_w = log_w + normal_log(u, back, spread) - normal_log(there, on, spread)
            u = there
        log_w = log_w - (u**2).sum(-1) / 2 + (both[0] ** 2).sum(-1) / 2
    weights = np.exp(log_w - g(u)[0])
    mean, variance = left_out(weights, u)
    found = field.estimate(x, t)
    np.testing.assert_allclose(found.mean[0].numpy(), mu + r * mean, rtol=1e-8)
    assert float(found.stderr) == pytest.approx(math.sqrt((r**2 * variance).sum()), rel=1e-8)
    share = weights / weights.sum()
    assert float(found.effective) == pytest.approx(1 / np.square(share).sum(), rel=1e-8)


def test_draws_of_distributions_are_transforms_of_their_noise():
    """Of a low-rank normal `m + W z + sqrt(D) e`, of a mixture the component whose part of [0, 1) the uniform is in."""
    noise = Noise(2, 400, dtype=torch.float64)
    loc, factor, diagonal = (
        torch.randn(*s, generator=torch.Generator().manual_seed(1)) for s in ((3,), (3, 2), (3,))
    )
    law = td.LowRankMultivariateNormal(loc, factor, diagonal.exp())
    low = noise.normal(0, Stream.START, (2,), torch.float32)
    full = noise.normal(1, Stream.START, (3,), torch.float32)
    right = loc + low @ factor.T + diagonal.exp().sqrt() * full
    torch.testing.assert_close(stk.from_distribution(law).draw(400, noise), right)
    shares, means = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([-5.0, 0.0, 7.0])
    law = td.MixtureSameFamily(td.Categorical(shares), td.Normal(means, 0.1))
    z = noise.normal(0, Stream.START, (3,), torch.float32)
    u = noise.uniform(1, Stream.START, (), torch.float32)
    chosen = (u > 0.2).long() + (u > 0.7).long()
    right = (means + 0.1 * z)[torch.arange(400), chosen]
    torch.testing.assert_close(stk.from_distribution(law).draw(400, noise), right)


@pytest.mark.parametrize("event", [(), (2,)], ids=str)
@pytest.mark.parametrize("batch", [(), (4,), (3, 4)], ids=str)
def test_each_mixture_of_a_batch_picks_by_its_own_uniform_and_its_own_shares(batch, event):
    """Three components far apart, so that a draw tells which one it is of."""
    noise = Noise(2, 50, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    shares = torch.rand(*batch, 3, generator=generator) + 0.1
    shares = shares / shares.sum(-1, keepdim=True)
    means = torch.tensor([-100.0, 0.0, 100.0]).reshape(3, *(1 for _ in event))
    components = td.Independent(td.Normal(means.expand(*batch, 3, *event), 1.0), len(event))
    law = td.MixtureSameFamily(td.Categorical(shares), components)
    if batch:
        law = td.Independent(law, len(batch))
    x = stk.from_distribution(law).draw(50, noise)
    u = noise.uniform(1, Stream.START, batch, torch.float32)
    chosen = (u[..., None] > shares.cumsum(-1)[..., :2]).sum(-1)
    found = (x / 100).round() + 1
    assert torch.equal(found, chosen.reshape(50, *batch, *(1 for _ in event)).expand_as(x).to(x))
    assert len(chosen.unique()) == 3


def test_fields_are_alike_where_their_numbers_and_dtypes_are():
    x = torch.tensor([1.0, 2.0])
    assert alike(x, x.clone())
    assert not alike(x, x.double())
    assert not alike(x, x + 1)


def test_states_are_different_and_begin_evenly():
    with pytest.raises(InvalidArgument, match="different"):
        check_states((0.0, 1.0, 1.0), (2,))
    noise, states = Noise(3, 50), (-1.0, 0.5, 2.0)
    u = noise.uniform(0, Stream.START, (4,))
    right = torch.tensor(states)[(u * 3).long()].reshape(50, 2, 2)
    assert torch.equal(uniform_states(states, (2, 2), noise), right)
    assert set(right.flatten().tolist()) == set(states)


@pytest.mark.parametrize(
    ("constraint", "shape"),
    [
        (td.constraints.corr_cholesky, (3, 3)),
        (td.constraints.lower_cholesky, (2, 2)),
        (td.constraints.positive_definite, (2, 2)),
        (td.constraints.simplex, (4,)),
        (
            td.constraints.interval(
                torch.tensor([-1.0, 0.0]).double(), torch.tensor([3.0, 0.5]).double()
            ),
            (2,),
        ),
        (td.constraints.interval(-1.0, 2.5), (2,)),
        (td.constraints.greater_than(0.5), (2,)),
        (ordered, (3,)),
    ],
    ids=str,
)
def test_the_jacobian_of_a_constraint_is_that_of_its_map(constraint, shape):
    """The determinant of the derivative by autograd, onto the entries that are free."""
    space = bijection(constraint)
    free = space.free_shape(shape)
    z = torch.randn(1, *free, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def entries(z):
        x = space.constrain(z[None])[0]
        if constraint is td.constraints.simplex:
            return x[:-1]
        if x.ndim == 2:
            diagonal = 0 if constraint is not td.constraints.corr_cholesky else -1
            return x[tuple(torch.tril_indices(*x.shape, diagonal))]
        return x

    matrix = torch.autograd.functional.jacobian(entries, z[0]).reshape(-1, z[0].numel())
    found = space.log_jacobian(z, space.constrain(z))
    right = float(torch.linalg.slogdet(matrix)[1])
    assert float(found.sum()) == pytest.approx(right, rel=1e-8)
    torch.testing.assert_close(space.unconstrain(space.constrain(z)), z)


ENDS = {
    "real": (td.constraints.real, (2,)),
    "positive": (td.constraints.positive, (2,)),
    "above": (td.constraints.greater_than(0.5), (2,)),
    "above several": (td.constraints.greater_than(torch.tensor([0.0, 2.0])), (2,)),
    "below": (td.constraints.less_than(-0.5), (2,)),
    "below several": (td.constraints.less_than(torch.tensor([0.0, 2.0])), (2,)),
    "between": (td.constraints.interval(-1.0, 2.5), (2,)),
    "between several": (
        td.constraints.interval(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 5.0])),
        (2,),
    ),
    "unit": (td.constraints.unit_interval, (2,)),
    "simplex": (td.constraints.simplex, (3,)),
    "triangle": (td.constraints.lower_cholesky, (2, 2)),
    "correlations": (td.constraints.corr_cholesky, (3, 3)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ENDS)
def test_however_far_out_a_free_point_is_its_image_is_a_number_inside(name, dtype):
    constraint, shape = ENDS[name]
    space = bijection(constraint)
    free = space.free_shape(shape)
    z = torch.stack([torch.full(free, far) for far in (-1e30, -1e3, -50, 0, 50, 1e3, 1e30)])
    x = space.constrain(z.to(dtype))
    assert bool(x.isfinite().all())
    assert bool(space.contains(x).all())


def test_the_rounding_of_a_long_sum_leaves_no_simplex():
    """The entries of each row add up to 1 within what float32 loses of so many, and to no more."""
    z = 3 * torch.randn(8, 99_999, generator=torch.Generator().manual_seed(0))
    space = bijection(td.constraints.simplex)
    x = space.constrain(z)
    assert float((x.sum(-1) - 1).abs().max()) > 1e-6
    assert bool(space.contains(x).all())
    assert not bool(space.contains(1.2 * x).any())


@pytest.mark.parametrize(("low", "high", "side"), [(0.0, 3.0, -1), (-3.0, 0.0, 1)])
def test_a_number_between_two_is_computed_from_the_nearer_one(low, high, side):
    """Beside an end at 0 it has all digits, where from the other end it would have none."""
    z = side * torch.linspace(0, 80, 9)
    x = bijection(td.constraints.interval(low, high)).constrain(z[None])[0]
    right = -side * 3 * torch.sigmoid(-z.abs().double())
    torch.testing.assert_close(x.double(), right, rtol=1e-5, atol=0)


def test_a_table_that_ends_at_0_has_no_seam():
    """Alpha and its slope go on through the end of the first cell, and alpha is the table's there."""
    table = torch.linspace(0.98, 0.0, 12, dtype=torch.float64)
    path, seam, h = Tabulated(table), 1 / len(table), 1e-7
    before, at, after = (float(path.alpha(t)) for t in (seam - h, seam, seam + h))
    assert at == pytest.approx(math.sqrt(float(table[-2])), rel=1e-6)
    assert before == pytest.approx(at, abs=1e-4)
    assert (at - before) / h == pytest.approx((after - at) / h, rel=1e-3)
    for t in (0.3 * seam, 0.7 * seam, 1.3 * seam):
        slope = (float(path.alpha(t + h)) - float(path.alpha(t - h))) / (2 * h)
        assert float(path.dalpha(t)) == pytest.approx(slope, rel=1e-4)


def test_the_support_of_a_mixture_is_what_its_components_span():
    """From the least of their lower ends to the greatest of their upper ones, in any order."""
    low, high = torch.tensor([-2.0, 0.5, -1.0]).double(), torch.tensor([0.0, 3.0, 1.0]).double()
    weights = torch.tensor([0.2, 0.3, 0.5]).double()
    for order in itertools.permutations(range(3)):
        i = list(order)
        law = td.MixtureSameFamily(td.Categorical(weights[i]), td.Uniform(low[i], high[i]))
        ends = support_of(law).constrain(torch.tensor([-40.0, 0.0, 40.0]).double())
        torch.testing.assert_close(ends, torch.tensor([-2.0, 0.5, 3.0]).double())
    above = td.MixtureSameFamily(td.Categorical(weights), td.Pareto(low + 3, high + 1))
    least = support_of(above).constrain(torch.tensor(-40.0).double())
    assert float(least) == pytest.approx(1.0)  # the least scale
    z = torch.linspace(-30, 30, 60001, dtype=torch.float64)
    density = free_law(unvalidated(law)).log_density(z).exp()
    assert float(torch.trapezoid(density, z)) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("event", [(), (2,), (2, 4)], ids=str)
@pytest.mark.parametrize("batch", [(), (5,), (5, 4)], ids=str)
def test_supports_of_mixtures_are_spanned_along_their_components(batch, event):
    """By plain loops over the places of mixtures and events, whose axes stand on either side of the components'."""
    shape = (*batch, 3, *event)
    low = torch.from_numpy(np.random.default_rng(0).uniform(-1, 0, shape))
    high = low + torch.from_numpy(np.random.default_rng(1).uniform(1, 2, shape))
    weights = td.Categorical(torch.ones(*batch, 3, dtype=torch.float64))
    for part in (td.Uniform(low, high), td.Pareto(low + 2, high)):
        components = td.Independent(part, len(event)) if event else part
        space = support_of(td.MixtureSameFamily(weights, components))
        ends = [space.constrain(torch.full((*batch, *event), z).double()) for z in (-60.0, 60.0)]
        for i in np.ndindex(*batch):
            for j in np.ndindex(*event):
                least = min(float(low[(*i, k, *j)]) for k in range(3))
                most = max(float(high[(*i, k, *j)]) for k in range(3))
                is_pareto = isinstance(part, td.Pareto)
                assert float(ends[0][(*i, *j)]) == pytest.approx(least + 2 * is_pareto)
                assert is_pareto or float(ends[1][(*i, *j)]) == pytest.approx(most)


VECTORS = {
    "logistic normal": lambda a: td.LogisticNormal(a - 1, a),
    "broken sticks": lambda a: td.TransformedDistribution(
        td.Independent(td.Normal(a, 1.0), 1), [td.transforms.StickBreakingTransform()]
    ),
    "Dirichlet": td.Dirichlet,
    "relaxed categories": lambda a: td.RelaxedOneHotCategorical(torch.tensor(0.7).double(), a),
    "normals": lambda a: td.MultivariateNormal(a, torch.eye(3).double()),
    "exponentials of normals": lambda a: td.Independent(td.LogNormal(a, 1.0), 1),
    "intervals": lambda a: td.Independent(td.Uniform(-a, a), 1),
    "factors of correlations": lambda a: td.LKJCholesky(3, a[..., 0]),
    "matrices": lambda a: td.Wishart(a[..., 0] + 3, torch.diag_embed(a)),
}


@pytest.mark.parametrize("name", VECTORS)
def test_the_law_of_several_is_that_of_each(name):
    """Of an array `(2, 4)` of laws: its support, and its density in free space, are those of its members."""
    a = torch.from_numpy(np.random.default_rng(3).uniform(0.5, 2, (2, 4, 3)))
    many = td.Independent(VECTORS[name](a), 2)
    space, law = support_of(many), free_law(unvalidated(many))
    shape = space.free_shape(tuple(many.event_shape))
    z = torch.from_numpy(np.random.default_rng(4).normal(size=(5, *shape)))
    x, density = space.constrain(z), torch.zeros(5, dtype=torch.float64)
    for i, j in np.ndindex(2, 4):
        one = VECTORS[name](a[i, j])
        torch.testing.assert_close(x[:, i, j], support_of(one).constrain(z[:, i, j]))
        density += free_law(unvalidated(one)).log_density(z[:, i, j])
    torch.testing.assert_close(law.log_density(z), density)


NUMBERS = {
    "Normal": lambda a, b: td.Normal(a - 1, b),
    "Uniform": lambda a, b: td.Uniform(-a, b),
    "Exponential": lambda a, b: td.Exponential(a),
    "Gamma": td.Gamma,
    "Chi2": lambda a, b: td.Chi2(a),
    "InverseGamma": td.InverseGamma,
    "Beta": td.Beta,
    "Kumaraswamy": td.Kumaraswamy,
    "Cauchy": lambda a, b: td.Cauchy(a - 1, b),
    "HalfCauchy": lambda a, b: td.HalfCauchy(a),
    "HalfNormal": lambda a, b: td.HalfNormal(a),
    "Laplace": lambda a, b: td.Laplace(a - 1, b),
    "Gumbel": lambda a, b: td.Gumbel(a - 1, b),
    "LogNormal": lambda a, b: td.LogNormal(a - 1, b),
    "Pareto": td.Pareto,
    "GeneralizedPareto, light and heavy": lambda a, b: td.GeneralizedPareto(a, b, a - 1.2),
    "GeneralizedPareto, exponential too": lambda a, b: td.GeneralizedPareto(
        a, b, torch.where(a > 1.2, 0.0, a - 1.2)
    ),
    "StudentT": lambda a, b: td.StudentT(a + 2, a - 1, b),
    "FisherSnedecor": lambda a, b: td.FisherSnedecor(a + 1, b + 1),
    "Weibull": td.Weibull,
    "VonMises": lambda a, b: td.VonMises(a - 1, b),
    "ContinuousBernoulli": lambda a, b: td.ContinuousBernoulli(a / 3),
    "RelaxedBernoulli": lambda a, b: td.RelaxedBernoulli(torch.tensor(0.7).double(), a / 3),
    "an exponential, stretched": lambda a, b: td.TransformedDistribution(
        td.Exponential(a), [td.transforms.AffineTransform(a, b)]
    ),
    "a mixture": lambda a, b: td.MixtureSameFamily(
        td.Categorical(torch.stack([a, b], -1)), td.Gamma(torch.stack([a, b], -1), 1.0)
    ),
}
"""Laws of one number, by two positive parameters."""


@pytest.mark.parametrize("name", NUMBERS)
def test_the_law_of_several_numbers_is_that_of_each(name):
    """Its support, its density there and in free space, and where a number is outside, whatever its neighbours are."""
    a, b = torch.from_numpy(np.random.default_rng(3).uniform(0.5, 2, (2, 5)))
    many, each = NUMBERS[name](a, b), [NUMBERS[name](u, v) for u, v in zip(a, b, strict=True)]
    law = free_law(unvalidated(td.Independent(many, 1)))
    z = 2 * torch.from_numpy(np.random.default_rng(4).normal(size=(7, 5)))
    x = support_of(many).constrain(z)
    far = torch.cat([x, x + 3.0, x - 3.0])
    told, free = log_density(unvalidated(many), far), law.log_density(z)
    for i, one in enumerate(each):
        torch.testing.assert_close(x[:, i], support_of(one).constrain(z[:, i]))
        torch.testing.assert_close(told[:, i], log_density(unvalidated(one), far[:, i]))
        inside = support_of(one).contains(far[:, i])
        assert torch.equal(support_of(many).contains(far)[:, i], inside)
        assert bool((told[~inside, i] == -torch.inf).all())
        free = free - free_law(unvalidated(one)).log_density(z[:, i])
    torch.testing.assert_close(free, torch.zeros_like(free), atol=1e-9, rtol=0)


def test_every_law_that_is_written_for_free_points_is_asked_about():
    asked = {type(make(torch.ones(1), torch.ones(1))) for make in NUMBERS.values()}
    asked |= {type(make(torch.ones(3))) for make in VECTORS.values()}
    asked |= {td.Independent, td.TransformedDistribution, td.MixtureSameFamily, object}
    assert {kind.__name__ for kind in free_law.registry} <= {kind.__name__ for kind in asked}


@pytest.mark.parametrize("of", [grad_energy, score_of_energy])
@pytest.mark.parametrize(
    "energy",
    [
        lambda x: x.square().sum(1),
        lambda x: torch.where(x[:, 0] > 0, math.inf, 1.0) + x.square().sum(1),
        lambda x: x.square().sum(1) - torch.where(x[:, 0] > 0, math.inf, 1.0),
        lambda x: x.square().sum(1) + torch.where(x[:, 0] > 0, math.nan, 1.0),
        lambda x: x.sqrt().sum(1),
    ],
)
def test_a_gradient_is_as_finite_as_its_energy_in_a_graph_too(of, energy, as_traced):
    """The compiler's way is another: a slope that autograd makes beside an energy of inf or NaN is none."""
    x = torch.tensor([[0.3, 0.7], [-0.2, 0.5], [0.9, 0.1]], dtype=torch.float64)
    found = []
    for traced in (False, True):
        as_traced(traced)
        answer = of(energy, x)
        found.append(answer if isinstance(answer, tuple) else (answer,))
    for eager, graph in zip(*found, strict=True):
        torch.testing.assert_close(graph, eager, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert torch.equal(found[0][-1].isfinite().all(1), energy(x).isfinite())


@pytest.mark.parametrize("traced", [False, True])
def test_a_score_in_passing_is_the_score_where_energies_are_finite(traced, as_traced):
    """Elsewhere it is what autograd makes of the branch; a score of the field's own stays as it is."""
    energy = lambda x: torch.where(x[:, 0] > 0, math.nan, x.square().sum(1))  # noqa: E731

    class Own(stk.Energy):
        def score(self, x):
            return torch.full_like(x, 7.0)

    x = torch.tensor([[0.3, 0.7], [-0.2, 0.5]], dtype=torch.float64)
    plain, own = (resolve(kind(energy, (2,)), {"score"}) for kind in (stk.Energy, Own))
    as_traced(traced)
    torch.testing.assert_close(plain.passing_score(x)[1], plain.score(x)[1], rtol=0, atol=0)
    assert plain.passing_score(x)[0].tolist() == [0, 0]
    assert bool(plain.score(x)[0].isnan().all())
    assert own.passing_score(x).tolist() == [[7, 7], [7, 7]]


@pytest.mark.parametrize("differentiable", [False, True])
def test_there_is_no_gradient_where_the_energy_is_not_finite(differentiable):
    """Whatever autograd makes of the branch, and in the row alone that has such an energy."""
    x = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [0.5, -3.0]]).double()
    x.requires_grad_(differentiable)
    for wrong in (torch.nan, torch.inf, -torch.inf):
        field = stk.Energy(lambda y: torch.where(y[:, 0] > 0, y.square().sum(1), wrong), (2,))  # noqa: B023
        energy, gradient = grad_energy(field.energy, x)
        torch.testing.assert_close(gradient[[0, 2]], 2 * x[[0, 2]])
        assert gradient[1].isnan().all()
        assert not energy[1].isfinite()


def test_each_member_of_a_combination_gets_the_conditions_that_it_has_names_for():
    """One that none has a name for goes to all, which refuse it: it is not dropped."""
    given = {}

    def labelled(y, label):
        given["label"] = label
        return y.square().sum(1) * label

    x, label = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.arange(3.0)
    first, second = stk.Energy(labelled, (2,)), stk.Energy(lambda y: y.square().sum(1), (2,))
    for made in (
        stk.product(first, second),
        stk.mixture([first, second], [1, 2], [0.0, 0.0]),
        stk.bridge(second, first, 0.5),
    ):
        made.energy(x, label=label)
        assert torch.equal(given["label"], label)
        for method in (made.energy, made.score):
            with pytest.raises(InvalidArgument, match="lable"):
                method(x, label=label, lable=label)
    assert own([frozenset({"a"}), frozenset()], {"a": x, "b": x}) == [{"a": x, "b": x}, {"b": x}]
    assert own([frozenset({"a"}), None], {"a": x, "b": x}) == [{"a": x}, {"a": x, "b": x}]


@pytest.mark.parametrize(
    ("f", "steps"),
    [
        (lambda y: y.square().sum(1), False),
        (lambda y: y.relu().sum(1), False),  # flat in half of the places
        (lambda y: (y.abs() - 1).clamp(min=0, max=1).sum(1), False),
        (lambda y: y[:, 0].square(), False),  # flat in the second coordinate
        (lambda y: y.round().sum(1), True),
        (lambda y: y[:, 0].square() + y[:, 1].sign(), True),
    ],
)
def test_a_function_goes_in_steps_where_it_changes_and_has_a_derivative_nowhere(f, steps):
    def check():
        check_no_steps(f, torch.zeros(1, 2, dtype=torch.float64), "f", f, "a hint")

    if not steps:
        check()
        return
    with pytest.raises(InvalidArgument, match="in steps"):
        check()


def test_a_function_with_noise_of_its_own_is_not_said_to_go_in_steps():
    """Flat in one coordinate, it differs there as it does where nothing has changed."""
    generator = torch.Generator().manual_seed(0)

    def noisy(y):
        noise = torch.randn(len(y), generator=generator, dtype=y.dtype)
        return y[:, 0].square() + noise

    check_no_steps(noisy, torch.zeros(1, 2, dtype=torch.float64), "f", noisy, "a hint")


class Answering:
    """A static field whose answers are as they should be, but for one."""

    event_shape, provides = (2,), frozenset({"energy", "score"})

    def __init__(self, wrong, made):
        self.wrong, self.made = wrong, made

    def told(self, name, value):
        return self.made(value) if name == self.wrong else value

    def energy(self, x):
        return self.told("energy", x.square().sum(1) / 2)

    def score(self, x):
        return self.told("score", -x)

    def energy_and_grad(self, x):
        energy, gradient = x.square().sum(1) / 2, x.clone()
        return self.told("energy of both", energy), self.told("gradient of both", gradient)


MADE = {
    "of one row": lambda v: v[:1],
    "with an axis more": lambda v: v[..., None],
    "of whole numbers": lambda v: v.round().long(),
    "complex": lambda v: v.to(torch.complex64),
    "in numpy": lambda v: v.numpy(),
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("wrong", ["energy", "score", "energy of both", "gradient of both"])
def test_every_answer_of_a_field_is_looked_at(wrong, made):
    """One that fits x by broadcasting alone would sample another law without a word."""
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    right, field = (resolve(Answering(w, MADE[made]), {"energy", "score"}) for w in ("", wrong))
    ask = {
        "energy": lambda f: f.energy(x),
        "score": lambda f: f.score(x),
        "energy of both": lambda f: f.energy_and_grad(x),
        "gradient of both": lambda f: f.energy_and_grad(x),
    }
    for name, asked in ask.items():
        asked(right)
        if name.split()[-1] == wrong.split()[-1]:
            with pytest.raises(InvalidArgument, match=wrong.split()[0]):
                asked(field)
        else:
            asked(field)


@pytest.mark.parametrize("path", ALL_PATHS, ids=repr)
def test_a_field_on_a_path_starts_from_its_noise_alone(path):
    """`N(0, sigma(0)^2 I)`, the law of alpha(0) x_1 left out, where alpha(0) is small or sigma is large."""
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    std = float(path.sigma(0.0))
    right = td.Normal(0.0, std).log_prob(std * x).sum(1)
    base = stk.Diffusion(lambda y, t: y, (2,), path).base
    torch.testing.assert_close(base.log_prob(std * x), right)
    noise = Noise(4, 5, dtype=torch.float64)
    normals = noise.normal(0, Stream.START, (2,), torch.float64)
    torch.testing.assert_close(base.draw(5, noise), std * normals)


class Even:
    """Noise whose uniforms are spread evenly over the chains, and whose normals are 0."""

    def __init__(self, chains):
        self.chains = torch.arange(chains)

    def uniform(self, step, stream, shape, dtype=torch.float32):
        u = ((self.chains + 0.5) / len(self.chains)).to(dtype)
        return u.reshape(-1, *(1 for _ in shape)).expand(-1, *shape)

    def normal(self, step, stream, shape, dtype=torch.float32):
        return torch.zeros(len(self.chains), *shape, dtype=dtype)


SAMPLES, LAW = torch.tensor([[-2.0], [0.0], [1.0], [5.0]]), torch.tensor([0.1, 0.4, 0.3, 0.2])
ON_SAMPLES = stk.Energy(lambda x: -(((x - SAMPLES.T.to(x)) == 0) * LAW.log().to(x)).sum(1), (1,))
PICKED = {
    "samples of a base": (0.25, stk.Velocity(lambda x, t: x, (1,), SAMPLES).base.draw),
    "states to begin with": (
        0.25,
        lambda n, noise: Discrete(ON_SAMPLES, (-2.0, 0.0, 1.0, 5.0)).initial(n, noise),
    ),
    "one-hot states": (
        0.25,
        lambda n, noise: uniform_states("one-hot", (1, 4), noise)[:, 0] @ SAMPLES,
    ),
    "enumerated states": (
        LAW,
        lambda n, noise: Discrete(ON_SAMPLES, (-2.0, 0.0, 1.0, 5.0)).draw(n, noise),
    ),
    "a category": (
        LAW,
        lambda n, noise: SAMPLES[pick(LAW.log().expand(n, 4), noise.uniform(0, 0, ()))],
    ),
    "a component of a distribution": (
        LAW,
        lambda n, noise: stk.from_distribution(
            td.MixtureSameFamily(td.Categorical(LAW), td.Normal(SAMPLES[:, 0], 0.1))
        ).draw(n, noise)[:, None],
    ),
    "a component of a mixture": (
        LAW,
        lambda n, noise: GaussianMixture(SAMPLES, torch.full((4,), 0.1), LAW).draw(n, noise),
    ),
}


@pytest.mark.parametrize("name", PICKED)
def test_what_is_picked_by_a_uniform_is_picked_in_proportion(name):
    """Uniforms that are spread evenly pick each of several as often as its share says, one more or one less."""
    share, draw = PICKED[name]
    found = draw(200, Even(200))
    counts = torch.stack([(found == value).all(1).sum() for value in SAMPLES])
    assert counts.sum() == 200
    assert (counts - 200 * torch.as_tensor(share)).abs().max() <= 1


def rises(x):
    return (x.diff(dim=-1) > 0).all(-1)


INSIDE = {
    "positive": (td.constraints.positive, (3,)),
    "nonnegative": (td.constraints.nonnegative, (2, 2)),
    "greater than": (td.constraints.greater_than(-0.5), (3,)),
    "less than": (td.constraints.less_than(0.5), (3,)),
    "interval": (td.constraints.interval(-1.0, 2.5), (3,)),
    "simplex": (td.constraints.simplex, (4,)),
    "ordered": (ordered, (4,)),
    "lower triangles": (td.constraints.lower_cholesky, (3, 3)),
    "positive definite": (td.constraints.positive_definite, (3, 3)),
    "correlations": (td.constraints.corr_cholesky, (3, 3)),
    "several": ([(td.constraints.positive, 2), (td.constraints.less_than(0.5), 2)], (4,)),
    "at least": (td.constraints.greater_than_eq(0.2), (3,)),
    "half open": (td.constraints.half_open_interval(-1.0, 2.0), (3,)),
    "the unit interval": (td.constraints.unit_interval, (2,)),
    "joined": (
        td.constraints.cat([td.constraints.positive, td.constraints.simplex], -1, [2, 3]),
        (5,),
    ),
    "rows apart": (
        td.constraints.cat([td.constraints.positive, td.constraints.less_than(0.5)], -2, [1, 2]),
        (3, 2),
    ),
    "columns apart": (
        td.constraints.stack([td.constraints.positive, td.constraints.less_than(0.5)], -1),
        (3, 2),
    ),
    "ordered rows": (td.constraints.stack([ordered, ordered], -2), (2, 3)),
}


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("name", INSIDE)
def test_an_energy_in_free_space_has_the_determinant_of_its_map(name, rows):
    """One a row, of as many rows as the map has parts too; found anew by autograd, where the map is onto as many entries."""
    constraint, shape = INSIDE[name]
    field = stk.constrained(stk.Energy(lambda x: (x**2).flatten(1).sum(1) / 2, shape), constraint)
    z = torch.randn(
        rows, *field.event_shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    x = field.constrain(z)
    found = field.users_energy(x) - field.energy(z)
    assert found.shape == (rows,)
    if field.event_shape != shape or "triangles" in name:
        return
    for i in range(rows):
        slope = torch.autograd.functional.jacobian(lambda one: field.constrain(one[None])[0], z[i])
        expected = torch.linalg.slogdet(slope.reshape(z[i].numel(), -1)).logabsdet
        torch.testing.assert_close(found[i], expected)


@pytest.mark.parametrize("name", INSIDE)
def test_a_point_is_inside_where_all_of_it_is(name):
    """In the user's space the energy is finite where torch's own check of the constraint says so: points of
    which any one entry is moved, and those that are not."""
    constraint, shape = INSIDE[name]
    field = stk.constrained(stk.Energy(lambda x: (x**2).flatten(1).sum(1) / 2, shape), constraint)
    generator = torch.Generator().manual_seed(3)
    x = field.constrain(torch.randn(5, *field.event_shape, generator=generator).double())
    moved = [x]
    for i in range(x[0].numel()):
        for off in (-3.0, 3.0):
            moved.append(x.clone())
            moved[-1].flatten(1)[:, i] += off
    x = torch.cat(moved)
    parts = [(constraint, x)]
    if name == "several":
        parts = zip([one for one, _ in constraint], x.split(2, 1), strict=True)
    elif name == "joined":
        parts = zip(constraint.cseq, x.split(constraint.lengths, 1), strict=True)
    elif name == "ordered rows":
        parts = [(ordered, x)]
    inside = torch.stack(
        [
            (rises(v) if one is ordered else one.check(v)).reshape(len(x), -1).all(1)
            for one, v in parts
        ]
    ).all(0)
    assert bool(inside[:5].all())
    assert not bool(inside.all())
    assert torch.equal(field.users_energy(x).isfinite(), inside)
    for row in x[~inside][:: max(1, len(x) // 20)]:
        with pytest.raises(InvalidArgument, match="inside the constraint"):
            field.unconstrain(row[None])


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.Tensor.float, torch.Tensor.clone])
def test_a_table_is_kept_as_its_path_uses_it(form):
    """Whatever it was given as: equal tables are alike, and their numbers are those of float64."""
    given = torch.tensor([0.75, 0.5, 0.25], dtype=torch.float64)
    path = Tabulated(
        form(given) if form in (torch.Tensor.float, torch.Tensor.clone) else form(given.tolist())
    )
    assert path.alphas_cumprod.dtype is torch.float64
    assert torch.equal(path.alphas_cumprod, given)
    assert alike(path, Tabulated(given))
    assert path.steps == 3


class Only:
    """A third-party field on a path that has one answer of its own."""

    def __init__(self, name, path):
        self.event_shape, self.path, self.asked = (2,), path, 0
        setattr(self, name, self.answer)

    def answer(self, x, t):
        self.asked += 1
        return torch.sin(x) * (1 + t.reshape(-1, 1) if isinstance(t, torch.Tensor) else 1 + t)

    def at(self, t):
        raise NotImplementedError


@pytest.mark.parametrize("name", ["denoise", "velocity", "score"])
@pytest.mark.parametrize("join", [lambda f: stk.tempered(f, 2.0), lambda f: stk.product(f, f)])
def test_a_combination_asks_a_field_for_the_answer_that_it_has(name, join):
    path, x = VP(), torch.randn(3, 2, generator=torch.Generator().manual_seed(1)).double()
    field, t = Only(name, path), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    joined = join(field)
    source = {"denoise": "data"}.get(name, name)
    right = convert(field.answer(x, t), x, t, path, source, "score")
    found = joined.score(x, t)
    ratio = 2.0 if len(joined.fields) == 2 else 0.5
    torch.testing.assert_close(found, ratio * right, rtol=1e-9, atol=1e-9)
    if name == "score":  # its own, also where a conversion has none
        torch.testing.assert_close(joined.score(x, 1.0), ratio * field.answer(x, 1.0))


COUPLED = {
    "lattice": lambda field, w: field,
    "bridge": lambda field, w: stk.bridge(flat(field), field, w),
    "bridge without a start": lambda field, w: Bridge(None, field, w),
}


def flat(field):
    return stk.Energy(lambda x: x.flatten(1).sum(1) * 0, tuple(field.event_shape))


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("name", COUPLED)
def test_couplings_say_the_energy_but_for_a_constant(name, weight):
    """At any weight: what they left out, a cluster's new state would be refused for."""
    lattice = stk.load("ising")
    field = COUPLED[name](lattice, weight)
    noise = Noise(0, 12, dtype=torch.float64)
    x = uniform_states(lattice.states, tuple(lattice.event_shape), noise)
    label = labels(x, lattice.states)
    rest = field.energy(x) - field.couplings.energy(label, x)
    torch.testing.assert_close(rest, rest[:1].expand(12))
    assert float(field.energy(x).std()) > 0.1


JOINS = {
    "tempered": (lambda f: stk.tempered(f, 2.0), 0.5),
    "product": (lambda f: stk.product(f, f), 2.0),
    "product of one": (stk.product, 1.0),
    "mixture": (lambda f: stk.mixture([f, f], [1, 3]), 1.0),
}


@pytest.mark.parametrize("path", [VP(), Linear()], ids=repr)
@pytest.mark.parametrize("name", JOINS)
def test_a_combination_has_a_score_at_the_data_where_its_fields_have_one(name, path):
    """Though they predict something else, of which no conversion is left at sigma = 0."""
    join, ratio = JOINS[name]
    field = gaussian(2, [1.0, -2.0], 0.5).noised(path)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1)).double()
    assert field.predicts != "score"
    torch.testing.assert_close(join(field).score(x, 1.0), ratio * field.score(x, 1.0))


class Together:
    """An energy and its gradient in one call, the latter in float64 whatever x is, as NumPy's often are."""

    provides = frozenset({"energy"})
    event_shape = (3,)

    def energy(self, x):
        return x.square().sum(1) / 2

    def energy_and_grad(self, x):
        return self.energy(x), x.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_has_the_type_of_x_whatever_the_fields_own_has(dtype):
    x = torch.arange(6, dtype=dtype).reshape(2, 3)
    fields = Together(), stk.Energy(Together().energy, (3,), grad=lambda y: y.double())
    for field in fields:
        energy, gradient = resolve(field, {"energy", "score"}).energy_and_grad(x)
        assert (energy.dtype, gradient.dtype) == (dtype, dtype)
        assert torch.equal(gradient, x)


def _samples(shape):
    return torch.arange(5.0 * math.prod(shape)).reshape(5, *shape)


BASES = {
    "normal": lambda shape: NormalBase(shape, 2.0),
    "samples": lambda shape: EmpiricalBase(_samples(shape)),
    "samples of a velocity": lambda shape: (
        stk.Velocity(lambda x, t: x, shape, _samples(shape)).base
    ),
    "distribution": lambda shape: (
        stk.Velocity(
            lambda x, t: x, shape, td.Independent(td.Normal(_samples(shape)[1], 1.0), len(shape))
        ).base
    ),
    "states": lambda shape: UniformStates(stk.Discrete(_flat(shape), (0.0, 1.0))),
    "of a path": lambda shape: stk.Diffusion(lambda x, t: x, shape, stk.VE()).base,
    "stretched": lambda shape: Stretched(NormalBase(shape), 2.0),
    "tempered": lambda shape: stk.tempered(NormalBase(shape), 2.0),
    "bridge": lambda shape: stk.bridge(NormalBase(shape), _flat(shape), 0.5),
    "product": lambda shape: stk.product(NormalBase(shape), _flat(shape)),
    "constrained": lambda shape: stk.constrained(_flat(shape), td.constraints.positive),
    "smoothed": lambda shape: stk.smoothed(_flat(shape), VP()),
    "noised": lambda shape: stk.Diffusion(lambda x, t: x, shape, VP()).at(0.5),
}


def _flat(shape):
    return stk.Energy(lambda x: x.flatten(1).square().sum(1), shape)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (1, 3, 2), (2, 1)], ids=str)
@pytest.mark.parametrize("name", BASES)
def test_events_have_all_axes_of_their_field(name, shape):
    field = BASES[name](shape)
    assert tuple(field.event_shape) == shape
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    has = offers(field)
    if "draw" in has:
        assert field.draw(4, Noise(0, 4)).shape == x.shape
    if not is_timed(field):
        for answer in has & {"energy", "log_prob"}:
            assert getattr(field, answer)(x).shape == (4,)
        if "score" in has:
            assert field.score(x).shape == x.shape


THETA = torch.ones((), requires_grad=True)
APART = {
    "a number": lambda x: x.new_ones(len(x)),
    "parameters": lambda x: THETA * x.new_ones(len(x)),
    "nought times x": lambda x: 0 * x.sum(1),
    "x left out": lambda x: THETA * x.detach().new_ones(len(x)),
}
SLOPES = {
    "pullback": lambda f, x: value_and_pullback(f, x, keep=False)[1](torch.ones(len(x))),
    "pullback that is kept": lambda f, x: value_and_pullback(f, x, keep=True)[1](
        torch.ones(len(x))
    ),
    "looked for": lambda f, x: check_derivative(f, x, "f", f, "") or torch.zeros_like(x),
}


@pytest.mark.parametrize("apart", APART)
@pytest.mark.parametrize("slope", SLOPES)
def test_what_does_not_depend_on_x_has_the_slope_0(slope, apart):
    """Whatever else of it is in the graph."""
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(SLOPES[slope](APART[apart], x), torch.zeros(3, 2))


class Bag:
    def __init__(self, **held):
        vars(self).update(held)

    def ask(self, x):
        return x


@dataclasses.dataclass(frozen=True)
class Noted:
    """With parts that its own `==` does not look at, or that are not shown."""

    first: object = 1.0
    second: object = dataclasses.field(default=2.0, compare=False)
    third: object = dataclasses.field(default=3.0, repr=False, hash=False, compare=False)


HELD = {
    "list": list,
    "tuple": tuple,
    "dictionary": lambda some: dict(zip("abc", some, strict=True)),
    "keys": lambda some: {str(s): 0 for s in some},
    "attributes": lambda some: Bag(**dict(zip("abc", some, strict=True))),
    "dataclass": lambda some: Noted(*some),
    "method": lambda some: Bag(held=some).ask,
    "within": lambda some: [{"a": Bag(held=(some,))}],
}


class Scaled:
    """A map that equals another of the same factor."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x

    def __eq__(self, other):
        return isinstance(other, Scaled) and self.factor == other.factor

    def __hash__(self):
        return hash(self.factor)

    def __repr__(self):
        return f"Scaled({self.factor})"


DIFFERENT = {
    "number": (1.5, 2.5),
    "type of a number": (1, 1.0),
    "string": ("a", "b"),
    "tensor": (torch.ones(2), torch.zeros(2)),
    "shape": (torch.ones(2), torch.ones(1, 2)),
    "dtype": (torch.ones(2), torch.ones(2, dtype=torch.float64)),
    "array": (np.ones(2), np.zeros(2)),
    "dtype of an array": (np.ones(2), np.ones(2, np.float32)),
    "length": ([1, 2], [1, 2, 3]),
    "nothing": (None, 0),
    "a callable that says what it equals": (Scaled(1.0), Scaled(2.0)),
    "a function": (math.sin, math.cos),
    "a method": ("a b".split, "a c".split),
    "a type": (int, float),
}


@pytest.mark.parametrize("what", DIFFERENT)
@pytest.mark.parametrize("held", HELD)
def test_things_are_alike_where_each_of_their_parts_is(held, what):
    """Each part alone; made anew from equal parts they are alike."""
    one, other = DIFFERENT[what]
    some = [one, copy.deepcopy(one), one]
    assert alike(HELD[held](some), HELD[held](copy.deepcopy(some)))
    for i in range(3):
        changed = [other if k == i else s for k, s in enumerate(some)]
        if held == "keys" and ({*map(str, changed)} == {*map(str, some)}):
            continue
        assert not alike(HELD[held](some), HELD[held](changed))
        assert not alike(HELD[held](changed), HELD[held](some))


class OfOneAnswer:
    """Another's field in time that has one answer, and says more."""

    event_shape, path = (2,), VP()
    base = NormalBase((2,))

    def __init__(self, answer, **said):
        setattr(self, answer, self._of)
        vars(self).update(said)

    def at(self, t):
        raise NotImplementedError

    def _of(self, x, t):
        return torch.sin(2 * x + torch.as_tensor(t).reshape(-1, 1))


SAID = {
    "a prediction without its method": {"predicts": "noise"},
    "a prediction whose method is none": {"predicts": "data", "predict": None},
    "a decoder that is none": {"decode": None},
    "other answers that are none": {"energy": None, "log_prob": None},
}


@pytest.mark.parametrize("what", SAID)
@pytest.mark.parametrize("answer", ["velocity", "score", "denoise"])
def test_what_a_field_says_and_does_not_have_is_not_asked(answer, what):
    """It is what it would be without a word."""
    x, t = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).double(), 0.4
    found, plain = (resolve(OfOneAnswer(answer, **said), {"velocity"}) for said in (SAID[what], {}))
    assert found.source == plain.source
    for name in ("velocity", "score", "denoise"):
        assert torch.equal(getattr(found, name)(x, t), getattr(plain, name)(x, t))


def test_what_is_made_of_a_field_again_and_again_is_looked_at_once():
    """All views of one name are one field in this, views of another name and of views are others."""
    bound = resolve(stk.Energy(lambda x: x.square().sum(1), (2,)), {"energy"})
    others = [gaussian(dim=2), gaussian(dim=2)]
    first, again = (bound.view(other, "bridge") for other in others)
    assert first.native is others[0]
    assert again.native is others[1]
    assert first.asked is again.asked
    within, stretched = first.view(others[0], "bridge"), bound.view(others[0], "stretched")
    assert first.view(others[1], "stretched").asked is stretched.asked
    assert within.asked is first.asked
    assert stretched.asked is not first.asked
    assert first.asked is not bound.asked
    first.energy(torch.ones(3, 2))
    assert first.asked == again.asked == {"energy"}
    assert not stretched.asked
    assert not bound.asked
