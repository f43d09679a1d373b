"""Objectives against closed forms of Gaussian families: values, gradients, minimisers, in 1, 2 and 8 dimensions.

In several dimensions, so that a factor of 1/d cannot hide. Means of estimates lie within 4 standard errors of the truth,
which an honest program misses in one of 16000 numbers; wrong variants of each objective miss it by at least twice that.
"""

import math
import sys

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import distributions as td

import scoretk as stk
from scoretk.core.rows import row_dot, row_sum
from scoretk.fields.convert import PREDICTIONS
from scoretk.learn.adversarial import (
    DIVERGENCES,
    f_gan_critic,
    f_gan_generator,
    gradient_penalty,
    wasserstein_critic,
    wasserstein_generator,
)
from scoretk.learn.couplings import COUPLINGS, optimal_coupling
from scoretk.learn.likelihoods import (
    log_weights,
    negative_elbo,
    negative_iwae,
    negative_log_likelihood,
    reparametrised,
)
from scoretk.learn.losses import (
    denoising_score_matching,
    flow_matching,
    noise_prediction,
    prediction_error,
)
from scoretk.learn.noise_contrastive import flow_contrastive, noise_contrastive
from scoretk.learn.sampler_divergence import nearest_neighbour_entropy, sampler_divergence
from scoretk.learn.score_matching import implicit_score_matching, sliced_score_matching
from scoretk.learn.weightings import WEIGHTINGS, weighting
from scoretk.models.targets.mixture import GaussianMixture, gaussian
from tests.marks import in_turn

DIMS = (1, 2, 8)
LIMIT = 4.0
N = 20_000


def noise(n, *shape, seed=0, kind="normal"):
    return getattr(stk.Noise(seed, n, dtype=torch.float64), kind)(0, stk.Stream.USER, shape)


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def z_of(rows, truth=0.0):
    """The largest deviation of a mean in standard errors; of what has no spread but rounding, in units of 1e-9."""
    off = rows.reshape(len(rows), -1) - truth
    return float((off.mean(0).abs() / (off.std(0) / math.sqrt(len(off)) + 1e-9)).max())


def expanded(n, *parameters):
    """Parameters with a copy for each row, so that one backward pass gives each row's own gradient."""
    return [p.detach().double().expand(n, *p.shape).clone().requires_grad_() for p in parameters]


def with_gradient(values, rows):
    """Each row's value and gradient, `(n, 1 + p)`."""
    slopes = torch.autograd.grad(values.sum(), rows, allow_unused=True, materialize_grads=True)
    return torch.cat([values.detach()[:, None], *(s.reshape(len(s), -1) for s in slopes)], 1)


def by_row(loss, parameters, *rows):
    """As `with_gradient`, for a loss that gives one number: of batches of one row each, `rows[...][i]` with a batch axis."""
    f = torch.func.vmap(torch.func.grad_and_value(loss), (None, *[0] * len(rows)))
    gradient, value = f(parameters, *rows)
    return torch.cat([value[:, None], gradient.flatten(1)], 1)


def exactly(f, parameters):
    """The value and gradient of a known function, `(1 + p,)`."""
    leaf = parameters.clone().requires_grad_()
    value = f(leaf)
    return torch.cat([value.detach()[None], torch.autograd.grad(value, leaf)[0]])


def expectation(f, mean):
    """`E f(u)` for u ~ N(mean, 1), by the trapezoidal rule."""
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    return (f(mean + z) * torch.exp(-z.square() / 2)).sum() * (24 / 4000) / math.sqrt(2 * math.pi)


# score matching


def linear(d, seed=1):
    """A score `-P (x - mu)` with a matrix P that is neither diagonal nor symmetric."""
    return torch.eye(d, dtype=torch.float64) + 0.3 * noise(d, d, seed=seed), noise(d, seed=seed + 1)


def linear_score(p, mu):
    return lambda x: -((x - mu) @ p.mT)


def off_the_closed_form(objective, d):
    """Largest error of the values, of the gradient, and of the gradient at the minimiser, for a linear score."""
    x = 1.5 * noise(50, d) - 0.3
    p, mu = (a.requires_grad_() for a in linear(d))
    loss = objective(linear_score(p, mu), x)
    off, plain = x - mu.detach(), p.detach()
    errors = [loss.detach() - ((off @ plain.mT).square().sum(1) / 2 - plain.trace())]
    found = torch.autograd.grad(loss.mean(), [p, mu])
    errors += [
        found[0] - (plain @ off.mT @ off / 50 - torch.eye(d)),
        found[1] + plain.mT @ plain @ off.mean(0),
    ]
    best = [
        torch.linalg.inv(torch.cov(x.mT, correction=0).reshape(d, d)).requires_grad_(),
        x.mean(0).requires_grad_(),
    ]
    errors += torch.autograd.grad(objective(linear_score(*best), x).mean(), best)
    return max(float(e.abs().max()) for e in errors)


WRONG_COMBINATIONS = {
    "no half": lambda square, trace, d: square + trace,
    "sign of the trace": lambda square, trace, d: square / 2 - trace,
    "mean over the event": lambda square, trace, d: (square / 2 + trace) / d,
    "mean in the trace": lambda square, trace, d: square / 2 + trace / d,
}


def wrongly(combine, objective):
    def wrong(score, x, *probes):
        square = row_dot(score(x), score(x))
        return combine(square, objective(score, x, *probes) - square / 2, x.shape[1])

    return wrong


@pytest.mark.parametrize("d", DIMS)
def test_implicit_score_matching_is_exact(d):
    assert off_the_closed_form(implicit_score_matching, d) < 1e-9
    for name, combine in WRONG_COMBINATIONS.items():
        if d > 1 or "mean" not in name:
            assert off_the_closed_form(wrongly(combine, implicit_score_matching), d) > 0.1, name


def test_implicit_score_matching_takes_the_trace_of_any_score_and_event():
    means = noise(3, 2, 4)
    mixture = GaussianMixture(means, double(0.8, 1.0, 1.2), double(1, 2, 3))
    x = noise(5, 2, 4, seed=2)
    hessians = [
        torch.autograd.functional.hessian(lambda y: mixture.log_prob(y[None])[0], row) for row in x
    ]
    laplacian = torch.stack([h.reshape(8, 8).trace() for h in hessians])
    exact = row_sum(mixture.score(x).square()) / 2 + laplacian
    torch.testing.assert_close(implicit_score_matching(mixture.score, x), exact)
    torch.testing.assert_close(
        implicit_score_matching(stk.Energy(mixture.energy, (2, 4)).score, x), exact
    )
    constant = implicit_score_matching(torch.ones_like, x)
    assert constant.tolist() == [4.0] * 5
    with torch.no_grad():
        found = implicit_score_matching(mixture.score, x)
    assert not found.requires_grad
    torch.testing.assert_close(found, exact)


@pytest.mark.thorough
@pytest.mark.parametrize(("d", "kind"), in_turn(DIMS, ["normal", "rademacher"]))
def test_sliced_score_matching_is_unbiased_in_value_and_gradient(d, kind):
    x, probes = 1.5 * noise(N, d) - 0.3, noise(N, 2, d, seed=5, kind=kind).movedim(1, 0)

    def error(objective):
        p, mu = expanded(N, *linear(d))

        def score(y):
            return -torch.einsum("nij,nj->ni", p, y - mu)

        exact = with_gradient(implicit_score_matching(score, x), [p, mu])
        return with_gradient(objective(score, x, probes), [p, mu]) - exact

    def plain(score, x, probes):
        return sliced_score_matching(score, x, probes, variance_reduced=False)

    reduced, full = error(sliced_score_matching), error(plain)
    for rows in (reduced, full):
        assert z_of(rows) < LIMIT
    assert reduced[:, 0].var() <= full[:, 0].var()
    if d > 1:
        assert reduced[:, 0].var() < 0.7 * full[:, 0].var()
    for name, combine in WRONG_COMBINATIONS.items():
        if d > 1 or "mean" not in name:
            assert z_of(error(wrongly(combine, sliced_score_matching))) > 2 * LIMIT, name


@pytest.mark.parametrize("d", DIMS)
def test_denoising_score_matching_has_the_expected_value_and_gradient(d):
    m, v = 0.7, 0.25
    x, eps = m + math.sqrt(v) * noise(N, d), noise(N, d, seed=3)

    def expected(sigma2, theta):
        mu, tau = theta
        return sigma2 * ((m - mu) ** 2 + v) / tau**2 + (1 - sigma2 / tau) ** 2

    def found(objective, sigma, theta):
        (p,) = expanded(N, theta)
        return with_gradient(objective(lambda y: -(y - p[:, :1]) / p[:, 1:], x, eps, sigma), [p])

    sigma, theta, best = 0.6, double(0.2, 0.9), double(m, v + 0.36)
    truth = exactly(lambda p: expected(sigma**2, p), theta)
    assert z_of(found(denoising_score_matching, sigma, theta), truth) < LIMIT
    minimum = exactly(lambda p: expected(sigma**2, p), best)
    assert float(minimum[1:].abs().max()) < 1e-9
    assert z_of(found(denoising_score_matching, sigma, best), minimum) < LIMIT
    levels = torch.where(torch.arange(N) % 2 == 0, 0.3, 0.9).double()
    both = exactly(lambda p: (expected(0.09, p) + expected(0.81, p)) / 2, theta)
    assert z_of(found(denoising_score_matching, levels, theta), both) < LIMIT
    wrong = {
        "score of the clean data": lambda s, x, e, sigma: (sigma * s(x) + e).square().mean(1),
        "sign": lambda s, x, e, sigma: (sigma * s(x + sigma * e) - e).square().mean(1),
        "unweighted": lambda s, x, e, sigma: (s(x + sigma * e) + e / sigma).square().mean(1),
        "sum": lambda s, x, e, sigma: d * denoising_score_matching(s, x, e, sigma),
    }
    for name, objective in wrong.items():
        if d > 1 or name != "sum":
            assert z_of(found(objective, sigma, theta), truth) > 2 * LIMIT, name


# weights of noise prediction

PATHS = [stk.Linear(), stk.Cosine(), stk.VP(), stk.VE()]


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_weighted_noise_prediction_is_the_regression_that_it_is_named_for(path):
    x, eps, t = noise(40, 3), noise(40, 3, seed=1), 0.1 + 0.8 * noise(40, seed=2, kind="uniform")
    guess = noise(40, 3, seed=3)
    alpha, sigma, dalpha, dsigma = (c[:, None] for c in path(t))
    data = (alpha * x + sigma * (eps - guess)) / alpha  # the datum that the guessed noise leaves
    direct = {
        "noise": guess - eps,
        "score": guess / sigma - eps / sigma,
        "data": data - x,
        "velocity": (dalpha * data + dsigma * guess) - (dalpha * x + dsigma * eps),
        "v": (alpha * guess - sigma * data) - (alpha * eps - sigma * x),
        "min-snr": (data - x) * (alpha / sigma).clamp(max=math.sqrt(5)),
        "edm": (data - x) * (sigma**2 + alpha**2 / 4).sqrt() / (sigma / 2),
    }
    loss = noise_prediction(lambda y, s: guess, x, t, eps, path)
    for name, error in direct.items():
        torch.testing.assert_close(
            weighting(name, path, t) * loss, error.square().mean(1), msg=name
        )
        if name in PREDICTIONS:
            exact = {
                "noise": guess,
                "score": -guess / sigma,
                "data": data,
                "v": alpha * guess - sigma * data,
                "velocity": dalpha * data + dsigma * guess,
            }[name]
            found = prediction_error(lambda y, s, exact=exact: exact, x, t, eps, path, name)
            torch.testing.assert_close(found, error.square().mean(1), msg=name)
    assert set(direct) | {"likelihood"} == set(WEIGHTINGS)
    with pytest.raises(stk.UnknownName, match="noise"):
        prediction_error(lambda y, s: guess, x, t, eps, path, "nose")
    with pytest.raises(stk.UnknownName, match="likelihood"):
        weighting("likelyhood", path, t)


@pytest.mark.parametrize("d", DIMS)
def test_likelihood_weighting_integrates_to_information(d):
    """`dI / d snr = mmse / 2` (Guo, Shamai, Verdu 2005), and a Gaussian's information is `d/2 log(1 + v snr)`."""
    path, v, (low, high) = stk.VP(), 0.25, (0.2, 0.9)
    t = low + (high - low) * noise(N, seed=1, kind="uniform")
    x, eps = math.sqrt(v) * noise(N, d), noise(N, d, seed=2)
    field = gaussian(dim=d, std=math.sqrt(v)).noised(path)
    loss = d * weighting("likelihood", path, t) * noise_prediction(field.noise, x, t, eps, path)
    ends = torch.log1p(v * path.log_snr(double(low, high)).exp())
    truth = float(d / 2 * (ends[1] - ends[0])) / (high - low)
    assert z_of(loss, truth) < LIMIT
    assert z_of(2 * loss, truth) > 2 * LIMIT
    assert d == 1 or z_of(loss / d, truth) > 2 * LIMIT


# noise contrast


def log_normal(rows, mean):
    return -(rows - mean).square().sum(1) / 2 - rows.shape[1] / 2 * math.log(2 * math.pi)


@pytest.mark.parametrize("nu", [1, 3])
@pytest.mark.parametrize("d", DIMS)
def test_noise_contrast_has_the_expected_value_and_gradient_and_learns_log_z(d, nu):
    m, log_z = 0.3, d / 2 * math.log(2 * math.pi)
    x, y = m + noise(N, 1, d), noise(N, nu, d, seed=1)

    def loss(theta, x, y, *, energy_scale=1.0, normalised=True, balance=1.0):
        def energy(rows):
            return energy_scale * (rows - theta[0]).square().sum(1) / 2

        z = theta[1] if normalised else theta[1] * 0 + log_z
        return noise_contrastive(
            energy, z, lambda rows: log_normal(rows, 0) + math.log(balance), x, y
        )

    def exact(theta):  # the log odds depend on x along the diagonal only
        def log_odds(u):
            return (
                math.sqrt(d) * theta[0] * u
                - d * theta[0] ** 2 / 2
                + log_z
                - theta[1]
                - math.log(nu)
            )

        data = expectation(lambda u: torch.nn.functional.softplus(-log_odds(u)), math.sqrt(d) * m)
        return data + nu * expectation(lambda u: torch.nn.functional.softplus(log_odds(u)), 0.0)

    best, away = double(m, log_z), double(0.05, log_z + 0.4)
    assert float(exactly(exact, best)[1:].abs().max()) < 1e-9
    for theta in (best, away):
        assert z_of(by_row(loss, theta, x, y), exactly(exact, theta)) < LIMIT
    wrong = {
        "log Z left out": {"normalised": False},
        "log nu left out": {"balance": 1 / nu},
        "1/d": {"energy_scale": 1 / d},
    }
    for name, change in wrong.items():
        if (d > 1 or name != "1/d") and (nu > 1 or name != "log nu left out"):
            rows = by_row(
                lambda theta, x, y, change=change: loss(theta, x, y, **change), away, x, y
            )
            assert z_of(rows, exactly(exact, away)) > 2 * LIMIT, name


@pytest.mark.parametrize("off", [0.0, 0.5])
@pytest.mark.parametrize("d", DIMS)
def test_flow_contrast_has_the_expected_value_and_gradient_in_the_flow(d, off):
    """With the best energy (off = 0) the flow's loss is twice the Jensen-Shannon divergence from the data, minus log 4."""
    m, log_z, theta = 0.3, d / 2 * math.log(2 * math.pi), double(-0.2)
    x, z = m + noise(N, 1, d), noise(N, 1, d, seed=1)

    def energy(rows):
        return (rows - m - off).square().sum(1) / 2

    def flow_loss(theta, x, z, *, draws=True, density=True):
        y = (theta[0] if draws else theta[0].detach()) + z
        mean = theta[0] if density else theta[0].detach()
        return -flow_contrastive(
            energy, torch.tensor(log_z), lambda rows: log_normal(rows, mean), x, y
        )

    def exact(theta):  # the log odds depend on x along the diagonal only
        def log_odds(u):
            return (
                (u - math.sqrt(d) * theta[0]).square() - (u - math.sqrt(d) * (m + off)).square()
            ) / 2

        data = expectation(lambda u: torch.nn.functional.softplus(-log_odds(u)), math.sqrt(d) * m)
        return -data - expectation(
            lambda u: torch.nn.functional.softplus(log_odds(u)), math.sqrt(d) * theta[0]
        )

    truth = exactly(exact, theta)
    if not off:
        torch.testing.assert_close(
            truth, exactly(lambda a: jensen_shannon(math.sqrt(d) * (m - a[0])) - math.log(4), theta)
        )
    assert z_of(by_row(flow_loss, theta, x, z), truth) < LIMIT
    assert z_of(by_row(flow_loss, theta, x, z) / 2, truth) > 2 * LIMIT
    for held in (
        ("draws", "density") if off else ("draws",)
    ):  # against the best energy the density's part is 0
        rows = by_row(
            lambda theta, x, z, held=held: flow_loss(theta, x, z, **{held: False}), theta, x, z
        )
        assert z_of(rows, truth) > 2 * LIMIT, held


def test_noise_contrast_refuses_what_does_not_fit():
    def energy(rows):
        return rows.square().sum(1)

    x, zero = noise(4, 2), double(0)[0]
    with pytest.raises(stk.InvalidArgument, match="y:"):
        noise_contrastive(energy, zero, energy, x, x[:, :1])
    with pytest.raises(stk.InvalidArgument, match="as many rows"):
        flow_contrastive(energy, zero, energy, x, x[:2])
    with pytest.raises(stk.InvalidArgument, match="one number a row"):
        noise_contrastive(lambda rows: rows.sum(1, keepdim=True), zero, energy, x, x)


# couplings


@pytest.mark.parametrize("d", DIMS)
def test_flow_matching_has_the_expected_value_and_gradient(d):
    m, v = 0.7, 0.25
    x, start, t = (
        m + math.sqrt(v) * noise(N, d),
        noise(N, d, seed=1),
        noise(N, seed=2, kind="uniform"),
    )
    (b,) = expanded(N, torch.full((d,), 0.2, dtype=torch.float64))
    rows = with_gradient(flow_matching(lambda y, s: b, x, t, start), [b])
    truth = torch.cat(
        [double((m - 0.2) ** 2 + v + 1), torch.full((d,), 2 * (0.2 - m) / d, dtype=torch.float64)]
    )
    assert z_of(rows, truth) < LIMIT
    assert d == 1 or min(z_of(d * rows, truth), z_of(rows / d, truth)) > 2 * LIMIT
    field = gaussian(dim=d, mean=m, std=math.sqrt(v)).noised(stk.Linear())
    left = v / (t.square() * v + (1 - t).square())  # Var[x_1 - x_0 | x_t], a coordinate
    assert z_of(flow_matching(field.velocity, x, t, start) - left) < LIMIT


@pytest.mark.parametrize("name", COUPLINGS)
@pytest.mark.parametrize("d", DIMS)
def test_couplings_keep_both_ends(d, name):
    """The best constant velocity is the difference of the means, however the ends are coupled."""
    m, batches, n = 0.7, 300, 32
    x, start = m + noise(batches, n, d), noise(batches, n, d, seed=1)
    pairs = [(a, COUPLINGS[name](s, a)) for a, s in zip(x, start, strict=True)]
    shifts = torch.stack([(a - s).mean(0) for a, s in pairs])
    assert z_of(shifts, torch.full((d,), m)) < LIMIT
    for (_, coupled), s in zip(pairs[:5], start, strict=False):
        assert torch.equal(coupled[coupled[:, 0].argsort()], s[s[:, 0].argsort()])
    spread = torch.stack([(a - s - m).square().mean() for a, s in pairs])
    assert (z_of(spread, 2.0) < LIMIT) == (name == "independent")


@pytest.mark.parametrize("d", DIMS)
def test_the_optimal_coupling_is_the_cheapest_permutation(d):
    x, start = 2 * noise(60, d) + 1, noise(60, d, seed=1)
    found = optimal_coupling(start, x)
    rows, columns = linear_sum_assignment(torch.cdist(x, start).square())
    assert rows.tolist() == list(range(60))
    assert torch.equal(found, start[torch.as_tensor(columns)])
    if d == 1:
        assert torch.equal(found[x[:, 0].argsort(), 0], start[:, 0].sort().values)
    images = optimal_coupling(start.reshape(60, 1, d).float(), x.reshape(60, 1, d))
    assert torch.equal(images.reshape(60, d), found.float())


def test_couplings_refuse_what_does_not_fit(monkeypatch):
    x = noise(4, 2)
    assert optimal_coupling(x[:0], x[:0]).shape == (0, 2)
    assert optimal_coupling(x.requires_grad_(), x).requires_grad
    for coupling in COUPLINGS.values():
        with pytest.raises(stk.InvalidArgument, match="start"):
            coupling(x[:3], x)
    with pytest.raises(stk.InvalidArgument, match="finite"):
        optimal_coupling(x.detach() / 0, x)
    monkeypatch.setitem(sys.modules, "ot.lp", None)
    with pytest.raises(stk.MissingDependency, match="POT"):
        optimal_coupling(x, x)


# likelihoods


@pytest.mark.parametrize("d", DIMS)
def test_maximum_likelihood_has_the_exact_gradient_and_minimum(d):
    x = 1.3 * noise(50, d) - 0.2

    def found(theta):
        leaf = theta.clone().requires_grad_()
        normal = td.Independent(td.Normal(leaf[0].expand(d), leaf[1].expand(d)), 1)
        return torch.autograd.grad(negative_log_likelihood(normal.log_prob, x).mean(), leaf)[0]

    off = x - 0.1
    exact = double(
        -float(off.sum(1).mean()) / 0.81, d / 0.9 - float(off.square().sum(1).mean()) / 0.9**3
    )
    torch.testing.assert_close(found(double(0.1, 0.9)), exact)
    best = double(float(x.mean()), float(x.std(correction=0)))
    assert float(found(best).abs().max()) < 1e-9


class LinearGaussian:
    """`z ~ N(0, I)` in two dimensions, `x | z ~ N(W z + b, s^2 I)` in d; parameters with a copy a row of data."""

    prior = td.Independent(
        td.Normal(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)), 1
    )

    def __init__(self, d, n):
        self.d, self.x = d, 1.2 * noise(n, d) + 0.4
        self.w, self.b, self.log_s = expanded(
            n, noise(d, 2, seed=7), noise(d, seed=8), double(-0.2)[0]
        )
        self.shift, self.log_std = expanded(n, double(0.3, -0.2), double(-0.5, -0.3))
        self.decoder_parameters = [self.w, self.b, self.log_s]
        self.parameters = [*self.decoder_parameters, self.shift, self.log_std]

    def decode(self, rows):
        z = rows.reshape(-1, len(self.x), 2)
        loc = torch.einsum("nij,knj->kni", self.w, z) + self.b
        scale = self.log_s.exp()[:, None].expand_as(loc)
        return td.Independent(td.Normal(loc.flatten(0, 1), scale.flatten(0, 1)), 1)

    def log_prob(self):
        covariance = self.w @ self.w.mT + torch.eye(self.d) * (2 * self.log_s).exp()[:, None, None]
        return td.MultivariateNormal(self.b, covariance).log_prob(self.x)

    def posterior(self):
        s2 = (2 * self.log_s).exp()[:, None, None]
        precision = self.w.mT @ self.w / s2 + torch.eye(2)
        loc = torch.linalg.solve(precision, self.w.mT @ (self.x - self.b)[..., None] / s2)[..., 0]
        return td.MultivariateNormal(loc, precision_matrix=precision)

    def encoder(self):
        """An approximate posterior: off by a shift, and without correlations."""
        center = self.posterior().loc.detach() + self.shift
        return td.Independent(td.Normal(center, self.log_std.exp()), 1)


@pytest.mark.parametrize("d", DIMS)
def test_with_the_exact_posterior_every_bound_is_the_log_likelihood(d):
    model, eps = LinearGaussian(d, 30), noise(30, 4, 2, seed=9).movedim(1, 0)
    posterior = model.posterior()
    for bound in (negative_elbo, negative_iwae):
        torch.testing.assert_close(
            -bound(model.x, posterior, model.decode, model.prior, eps), model.log_prob()
        )


@pytest.mark.parametrize("d", DIMS)
def test_reparametrised_draws_have_the_mean_and_covariance_asked_for(d):
    factor, loc, eps = linear(d)[0].tril(), noise(d, seed=5), noise(N, d, seed=6)
    covariance, scale = factor @ factor.mT, factor.diagonal().abs()
    for q, expected in (
        (td.MultivariateNormal(loc, covariance), covariance),
        (td.Independent(td.Normal(loc, scale), 1), torch.diag(scale.square())),
    ):
        off = reparametrised(q, eps) - loc
        products = (off[:, :, None] * off[:, None]).flatten(1)
        assert z_of(torch.cat([off, products], 1), torch.cat([0 * loc, expected.flatten()])) < LIMIT


@pytest.mark.thorough
@pytest.mark.parametrize("exact_kl", [False, True])
@pytest.mark.parametrize("d", DIMS)
def test_the_elbo_falls_short_by_the_divergence_from_the_posterior(d, exact_kl):
    model, eps = LinearGaussian(d, N), noise(N, 2, 2, seed=9).movedim(1, 0)
    q = model.encoder()
    as_normal = td.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    held = (
        model.posterior()
    )  # a function of the decoder's parameters, as the bound's gradient in them is
    exact = with_gradient(td.kl_divergence(as_normal, held) - model.log_prob(), model.parameters)

    def error(change):
        q = model.encoder()
        bound = negative_elbo(model.x, q, model.decode, model.prior, eps, exact_kl=exact_kl)
        return with_gradient(bound + change(q), model.parameters) - exact

    assert z_of(error(lambda q: 0.0)) < LIMIT
    assert (
        z_of(error(lambda q: td.kl_divergence(q, model.prior))) > 2 * LIMIT
    )  # the prior's term twice
    assert z_of(error(lambda q: q.entropy())) > 2 * LIMIT  # no entropy
    assert z_of(error(lambda q: -td.kl_divergence(q, model.prior))) > 2 * LIMIT  # not at all


@pytest.mark.thorough
@pytest.mark.parametrize("d", DIMS)
def test_importance_weights_are_unbiased_in_value_and_gradient(d):
    """`E exp(IWAE) = p(x)` for any encoder, so its gradient is the likelihood's in the decoder and 0 in the encoder."""
    model, eps = LinearGaussian(d, N), noise(N, 5, 2, seed=9).movedim(1, 0)
    level = model.log_prob().detach()

    def error(bound):
        ratio = torch.exp(-bound(model.x, model.encoder(), model.decode, model.prior, eps) - level)
        exact = torch.exp(model.log_prob() - level)
        return with_gradient(ratio, model.parameters) - with_gradient(exact, model.parameters)

    assert z_of(error(negative_iwae)) < LIMIT
    assert z_of(error(lambda *a: -log_weights(*a).logsumexp(0))) > 2 * LIMIT  # no log k
    assert z_of(error(negative_elbo)) > 2 * LIMIT  # the mean of the logs
    elbo, iwae = (
        f(model.x, model.encoder(), model.decode, model.prior, eps)
        for f in (negative_elbo, negative_iwae)
    )
    assert bool((iwae <= elbo + 1e-12).all())
    one = negative_iwae(model.x, model.encoder(), model.decode, model.prior, eps[:1])
    torch.testing.assert_close(
        one, negative_elbo(model.x, model.encoder(), model.decode, model.prior, eps[:1])
    )


def test_latent_bounds_take_images_and_refuse_what_does_not_fit():
    x, eps = (noise(6, 1, 3, 3) > 0).double(), noise(6, 4, 2, seed=1).movedim(1, 0)
    q = td.Independent(td.Normal(noise(6, 2, seed=2), torch.ones(6, 2, dtype=torch.float64)), 1)

    def decode(rows):
        assert rows.shape == (24, 2)
        return td.Independent(
            td.Bernoulli(logits=rows.sum(1)[:, None, None, None].expand(-1, 1, 3, 3)), 3
        )

    prior = LinearGaussian.prior
    z = q.mean + eps
    by_hand = torch.stack([decode(z.flatten(0, 1)).log_prob(x.repeat(4, 1, 1, 1)).reshape(4, 6)])[0]
    by_hand = by_hand + prior.log_prob(z) - q.log_prob(z)
    torch.testing.assert_close(log_weights(x, q, decode, prior, eps), by_hand)
    with pytest.raises(stk.InvalidArgument, match="Independent"):
        negative_elbo(x, q.base_dist, decode, prior, eps)
    with pytest.raises(stk.InvalidArgument, match="noise"):
        negative_elbo(x, q, decode, prior, eps[0])
    with pytest.raises(stk.InvalidArgument, match="posterior"):
        negative_iwae(x, td.Independent(td.Gumbel(q.mean, 1.0), 1), decode, prior, eps)
    with pytest.raises(stk.InvalidArgument, match="prior"):
        negative_elbo(x, q, decode, gaussian(dim=2), eps, exact_kl=True)
    torch.testing.assert_close(
        negative_elbo(x, q, decode, gaussian(dim=2), eps), negative_elbo(x, q, decode, prior, eps)
    )


# adversarial


def jensen_shannon(gap):
    """Twice the divergence of two unit normals at this distance."""
    first = expectation(lambda u: -torch.nn.functional.softplus(-(gap * u - gap**2 / 2)), gap)
    return (
        first
        + expectation(lambda u: -torch.nn.functional.softplus(gap * u - gap**2 / 2), 0.0)
        + math.log(4)
    )


KNOWN = {
    "kl": lambda gap: gap**2 / 2,
    "reverse-kl": lambda gap: gap**2 / 2,
    "pearson": lambda gap: torch.expm1(gap**2),
    "hellinger": lambda gap: -2 * torch.expm1(-(gap**2) / 8),
    "js": jensen_shannon,
    "gan": lambda gap: jensen_shannon(gap) - math.log(4),
}
BEST = {
    "kl": lambda r: 1 + r,
    "pearson": lambda r: 2 * torch.expm1(r),
    "hellinger": lambda r: r / 2,
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_conjugates_are_conjugates(name):
    """`f*(t) = max_u (u t - f(u))` at `t = g_f(v)`, and a best critic has `g_f(V) = f'(u)` at the density ratio u."""
    d, v = DIVERGENCES[name], torch.linspace(-1.5, 1.5, 13, dtype=torch.float64)
    u = torch.linspace(-8, 8, 200_001, dtype=torch.float64).exp()
    torch.testing.assert_close(
        d.conjugate(v),
        torch.stack([(u * t - d.f(u)).max() for t in d.activation(v)]),
        atol=1e-6,
        rtol=1e-6,
    )
    ratio = torch.linspace(0.2, 4, 9, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(d.f(ratio).sum(), ratio)
    torch.testing.assert_close(
        d.activation(BEST.get(name, lambda r: r)(ratio.detach().log())), slope
    )


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("d", DIMS)
def test_the_best_critic_measures_the_divergence_and_gives_its_gradient(d, name):
    m, theta = 0.1, double(0.0, -0.1)
    x, z = m + noise(N, 1, d), noise(N, 1, d, seed=1)
    best = BEST.get(name, lambda r: r)

    def critic(rows, tilt=0.0, scale=1.0):  # at theta: held while the generator moves
        ratio = log_normal(rows, m) - log_normal(rows, float(theta[1]))
        return best(scale * ratio) + tilt * rows.sum(1)

    def loss(p, x, z, scale=1.0):
        return f_gan_critic(lambda rows: critic(rows, p[0], scale), x, p[1] + z, name)

    def exact(p):
        return -KNOWN[name](math.sqrt(d) * (m - p[1])) + 0 * p[0]

    truth = exactly(exact, theta)
    rows = by_row(loss, theta, x, z)
    assert z_of(rows, truth) < LIMIT
    assert z_of(-rows, truth) > 2 * LIMIT
    assert d == 1 or z_of(by_row(lambda *a: loss(*a, 1 / d), theta, x, z), truth) > 2 * LIMIT
    for saturating, function in (
        (True, DIVERGENCES[name].conjugate),
        (False, DIVERGENCES[name].activation),
    ):
        part = by_row(
            lambda p, z, s=saturating: f_gan_generator(critic, p[1] + z, name, saturating=s),
            theta,
            z,
        )

        def along(p, function=function):  # the critic depends on x along the diagonal only
            def value(u):
                first, second = (-(u - math.sqrt(d) * a).square() / 2 for a in (m, float(theta[1])))
                return -function(best(first - second))

            return expectation(value, math.sqrt(d) * p[1]) + 0 * p[0]

        assert z_of(part, exactly(along, theta)) < LIMIT
        if saturating:
            torch.testing.assert_close(exactly(along, theta)[2], -truth[2])


@pytest.mark.parametrize("shape", [(1,), (2,), (8,), (2, 4)])
def test_the_gradient_penalty_and_its_gradient_are_exact(shape):
    x, y, u = noise(30, *shape) + 0.5, noise(30, *shape, seed=1), noise(30, seed=2, kind="uniform")
    a, weight = double(0.7)[0].requires_grad_(), 10.0
    between = (u * x.flatten(1).T + (1 - u) * y.flatten(1).T).T
    length = between.norm(dim=1)

    def critic(rows):
        return a * rows.square().flatten(1).sum(1) / 2

    loss = wasserstein_critic(critic, x, y, u, weight)
    gap = (y.square().sum() - x.square().sum()) / (2 * len(x))
    torch.testing.assert_close(loss, a * gap + weight * (a * length - 1).square().mean())
    (found,) = torch.autograd.grad(loss, a)
    torch.testing.assert_close(
        found, gap + weight * (2 * (a.detach() * length - 1) * length).mean()
    )
    torch.testing.assert_close(wasserstein_generator(critic, y), -critic(y).mean())
    wrong = {
        "at the data": x.flatten(1).norm(dim=1),
        "mixed the other way": ((1 - u) * x.flatten(1).T + u * y.flatten(1).T).T.norm(dim=1),
        "root mean square": length / math.sqrt(math.prod(shape)),
    }
    for name, other in wrong.items():
        if shape != (1,) or "mean" not in name:
            mean = (a * other - 1).square().mean() - gradient_penalty(critic, between).mean()
            assert mean.detach().abs() > 1e-2, name


@pytest.mark.parametrize("d", DIMS)
def test_the_best_linear_wasserstein_critic_has_the_known_slope(d):
    """`-w (mean x - mean y) + L (|w| - 1)^2` is least at the unit vector along the means' difference, longer by `|.| / 2L`."""
    x, y, u = noise(40, d) + 0.5, noise(40, d, seed=1), noise(40, seed=2, kind="uniform")
    gap = x.mean(0) - y.mean(0)
    best = ((1 / gap.norm() + 1 / 20) * gap).requires_grad_()
    (slope,) = torch.autograd.grad(wasserstein_critic(lambda rows: rows @ best, x, y, u), best)
    assert float(slope.abs().max()) < 1e-9
    flat = torch.zeros(d, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(lambda rows: rows @ flat, x)
    assert penalty.tolist() == [1.0] * 40
    assert bool(torch.isfinite(torch.autograd.grad(penalty.sum(), flat)[0]).all())
    with torch.no_grad():
        assert not gradient_penalty(lambda rows: rows @ best, x).requires_grad


def test_adversarial_losses_refuse_what_does_not_fit():
    x = noise(4, 2)
    with pytest.raises(stk.UnknownName, match="hellinger"):
        f_gan_critic(lambda r: r.sum(1), x, x, "helinger")
    with pytest.raises(stk.InvalidArgument, match="one number a row"):
        f_gan_generator(lambda r: r, x)
    with pytest.raises(stk.InvalidArgument, match="mix"):
        wasserstein_critic(lambda r: r.sum(1), x, x, x)


# the sampler's own divergence


@pytest.mark.parametrize("d", DIMS)
def test_the_energy_of_the_negatives_has_the_gradient_through_the_sampler_alone(d):
    a, v, h = 0.5, 0.7, 0.3
    x, z, others = a + math.sqrt(v) * noise(N, d), noise(N, d, seed=1), noise(3, d, seed=2)
    theta = double(-0.4, 0.1)  # mean and log std of the energy

    def rows(held):
        (p,) = expanded(N, theta)

        def energy(y):
            mu, log_s = (p if not held else p.detach()).unsqueeze(-1).unbind(1)
            return ((y - mu).square() / (2 * (2 * log_s).exp())).sum(1)

        negatives = x - h * (x - p[:, :1]) / (2 * p[:, 1:]).exp() + math.sqrt(2 * h) * z
        loss = sampler_divergence(energy, negatives, others) + nearest_neighbour_entropy(
            negatives, others
        )
        return with_gradient(loss if held is None else energy(negatives), [p])

    def exact(p):
        keep = 1 - h / (2 * p[1]).exp()
        mean, variance = keep * a + (1 - keep) * p[0], keep**2 * v + 2 * h
        return d * ((mean - theta[0]) ** 2 + variance) / (2 * (2 * theta[1]).exp())

    truth = exactly(exact, theta)
    assert z_of(rows(None), truth) < LIMIT
    torch.testing.assert_close(rows(None), rows(True))
    assert z_of(rows(False), truth) > 2 * LIMIT  # the energy not held
    assert d == 1 or z_of(rows(None) / d, truth) > 2 * LIMIT


@pytest.mark.parametrize("d", DIMS)
def test_the_entropy_of_nearest_neighbours(d):
    """Exact for draws uniform on a cube, seen from its centre; and it grows by `d log s` where all is stretched by s."""
    center, s = torch.full((1, d), 0.5, dtype=torch.float64), 3.0
    draws = noise(200, 1000, d, kind="uniform")
    found = torch.cat([nearest_neighbour_entropy(center, o) for o in draws])
    stretched = torch.cat([nearest_neighbour_entropy(s * center, s * o) for o in draws])
    assert z_of(found) < LIMIT
    torch.testing.assert_close(stretched, found + d * math.log(s))
    if d > 1:
        ball = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)
        assert z_of((found - ball) / d + ball) > 2 * LIMIT  # without the factor d
    y = noise(20, d, seed=3).requires_grad_()
    (slope,) = torch.autograd.grad(nearest_neighbour_entropy(y, draws[0]).sum(), y)
    nearest = draws[0][torch.cdist(y.detach(), draws[0]).argmin(1)]
    off = y.detach() - nearest
    torch.testing.assert_close(slope, d * off / off.square().sum(1, keepdim=True))
    with pytest.raises(stk.InvalidArgument, match="others"):
        nearest_neighbour_entropy(y, draws[0][:0])


def test_what_is_no_law_or_no_function_is_told_what_is_meant():
    x, noise = torch.zeros(4, 2), torch.zeros(1, 4, 2)
    normal = td.Independent(td.Normal(torch.zeros(4, 2), 1.0), 1)
    for loss in (log_weights, negative_elbo, negative_iwae):
        with pytest.raises(stk.InvalidArgument, match=r"^posterior: .* encoder\(x\)"):
            loss(x, lambda rows: normal, lambda z: normal, normal, noise)
    for density in (normal, stk.from_distribution(td.MultivariateNormal(x[0], torch.eye(2)))):
        with pytest.raises(stk.InvalidArgument, match=rf"{type(density).__name__}\.log_prob$"):
            negative_log_likelihood(density, x)
