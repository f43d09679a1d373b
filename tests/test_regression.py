"""The regressions and the examples against torch.distributions, autograd, exact posteriors, and the truth of simulated data."""

import importlib.util
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.distributions import Bernoulli, HalfNormal, MultivariateNormal, Normal

import scoretk as stk
from scoretk.conformance import parametrize_with_checks
from scoretk.models.targets import regression
from scoretk.models.targets.regression import linear_regression, logistic_regression
from tests.evidence import mean_z, z_limit
from tests.marks import slow_but

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
BOTH = pytest.mark.parametrize(
    "target", [linear_regression(), logistic_regression()], ids=lambda f: type(f).__name__
)


def points(n, d, seed=0):
    return 0.5 * torch.randn(
        n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def data(name, x):
    return regression._data(name, x)


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same_up_to_a_constant(energy, log_prob):
    total = energy + log_prob
    torch.testing.assert_close(
        total, total[:1].expand_as(total), rtol=0, atol=1e-9 * float(energy.abs().max())
    )


# -------------------------------------------------------------------------------------------------------- the built-in two


@BOTH
def test_gradients_are_those_of_the_energy(target):
    x = points(6, *target.event_shape)
    value, gradient = target.energy_and_grad(x)
    assert torch.equal(value, target.energy(x))
    assert torch.equal(-gradient, target.score(x))
    torch.testing.assert_close(
        gradient, -stk.Energy(target.energy, target.event_shape).score(x), rtol=1e-10, atol=1e-10
    )
    assert torch.autograd.gradcheck(target.energy, x[:2].requires_grad_(), atol=1e-4)
    assert torch.autograd.gradcheck(
        target.score, x[:2].detach().requires_grad_(), atol=1e-4
    )  # a Hessian, for grad=True


@BOTH
def test_float32_agrees_with_float64(target):
    x = points(6, *target.event_shape)
    for single, double in zip(
        target.energy_and_grad(x.float()), target.energy_and_grad(x), strict=True
    ):
        assert single.dtype is torch.float32
        torch.testing.assert_close(
            single.double(), double, rtol=1e-5, atol=1e-5 * float(double.abs().max())
        )


def test_the_logistic_energy_is_the_posterior():
    x = points(6, 31)
    design, labels = data("breast_cancer", x)
    assert design.shape == (569, 31)
    assert int((labels == 1).sum()) == 357  # benign
    likelihood = Bernoulli(logits=x @ design.T).log_prob((labels + 1) / 2).sum(1)
    assert_same_up_to_a_constant(
        logistic_regression().energy(x), likelihood + Normal(0, 1).log_prob(x).sum(1)
    )


def test_the_linear_energy_is_the_posterior():
    x = points(6, 12)
    design, response = data("diabetes", x)
    assert design.shape == (442, 11)
    w, sigma = x[:, :-1], x[:, -1].exp()
    likelihood = Normal(w @ design.T, sigma[:, None]).log_prob(response).sum(1)
    prior = (
        Normal(0, 1).log_prob(w).sum(1) + HalfNormal(1).log_prob(sigma) + x[:, -1]
    )  # with |d sigma / d log sigma|
    assert_same_up_to_a_constant(linear_regression().energy(x), likelihood + prior)
    found = linear_regression().parameters(x[None])
    assert torch.equal(torch.cat([found.intercept[..., None], found.slopes], -1), w[None])
    assert torch.equal(found.sigma, sigma[None])


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes"])
def test_data_are_standardised_and_kept(name):
    x = points(1, 2).float()
    found = data(name, x)
    assert data(name, x) is found
    assert bool((found.design[:, 0] == 1).all())
    features = (
        found.design[:, 1:]
        if name == "breast_cancer"
        else torch.cat([found.design[:, 1:], found[1][:, None]], 1)
    )
    assert float(features.mean(0).abs().max()) < 1e-6
    assert float((features.square().mean(0) - 1).abs().max()) < 1e-5


def test_data_first_asked_for_in_inference_mode_serve_autograd_later(monkeypatch):
    monkeypatch.setattr(regression, "_KEPT", {})
    target = linear_regression()
    with torch.inference_mode():
        target.energy(points(2, 12))
    assert stk.Energy(target.energy, (12,)).score(points(2, 12)).shape == (2, 12)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(regression, "_KEPT", {})
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(stk.MissingDependency, match=re.escape("pip install 'scoretk[demo]'")):
        linear_regression().energy(torch.zeros(1, 12))


@pytest.mark.usefixtures("fewer_cases")
@parametrize_with_checks([linear_regression(), logistic_regression()])
def test_laws(model, check):
    check(model)


def exact_linear_moments(jacobian=True):
    """Mean and variance `(12,)` by quadrature over log sigma: given sigma the coefficients are Gaussian.

    `w | sigma ~ N(P^-1 b, P^-1)` with `P = A^T A / sigma^2 + I` and `b = A^T y / sigma^2`.
    """
    design, response = data("diabetes", torch.zeros((), dtype=torch.float64))
    log_sigma = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    precision = (2 * -log_sigma).exp()[:, None, None]
    cov = torch.linalg.inv(precision * (design.T @ design) + torch.eye(11, dtype=torch.float64))
    b = precision[..., 0] * (design.T @ response)
    mean = (cov @ b[..., None])[..., 0]
    log_p = (
        torch.logdet(cov) / 2
        - len(response) * log_sigma
        - (2 * log_sigma).exp() / 2
        + jacobian * log_sigma
    )
    log_p = log_p - (precision[:, 0, 0] * response.square().sum() - (b * mean).sum(1)) / 2
    weights = torch.softmax(log_p, 0)[:, None]
    assert float(weights[[0, -1]].max()) < 1e-12  # the grid holds all of it
    first = torch.cat([mean, log_sigma[:, None]], 1)
    second = torch.cat([mean**2 + cov.diagonal(dim1=1, dim2=2), log_sigma[:, None] ** 2], 1)
    return (weights * first).sum(0), (weights * second).sum(0) - (weights * first).sum(0) ** 2


@pytest.mark.thorough
def test_linear_posterior_is_exact():
    draws = stk.sample(linear_regression(), chains=256, steps=400, warmup=120, seed=1)
    assert draws.failures == {}
    mean, variance = exact_linear_moments()
    x = draws.x.double()
    assert (
        mean_z(x.mean(1), mean).abs().max() < 4
    )  # chains are independent: of their means, the error is known
    assert mean_z((x - mean).square().mean(1), variance).abs().max() < 4
    wrong = exact_linear_moments(jacobian=False)[0]
    assert mean_z(x.mean(1), wrong).abs().max() > z_limit(12)  # so fine is the comparison


def importance_means(target, n):
    """Posterior means `(d,)` and their standard errors: from a Student t at the mode, then one of the moments found there."""
    mean, cov = laplace(target)
    generator = torch.Generator().manual_seed(0)
    for degrees in (5, 10):
        normals = torch.randn(n, degrees + len(mean), generator=generator, dtype=torch.float64)
        z = normals[:, degrees:] / normals[:, :degrees].square().mean(1, keepdim=True).sqrt()
        x = mean + z @ torch.linalg.cholesky(cov).T
        log_weights = -torch.cat([target.energy(part) for part in x.split(10_000)])
        log_weights = log_weights + (degrees + len(mean)) / 2 * torch.log1p(
            z.square().sum(1) / degrees
        )
        weights = torch.softmax(log_weights, 0)
        mean = weights @ x
        cov = ((x - mean) * weights[:, None]).T @ (x - mean)
    assert float(1 / weights.square().sum()) > 0.1 * n  # effective draws
    return mean, (weights.square() @ (x - mean).square()).sqrt()


def laplace(target):
    """Mode `(d,)` and inverse Hessian there, by Newton's method."""
    design, labels = data("breast_cancer", torch.zeros((), dtype=torch.float64))
    mode = torch.zeros(1, 31, dtype=torch.float64)
    for _ in range(20):
        p = torch.sigmoid(mode @ design.T * labels)[0]
        cov = torch.linalg.inv(
            torch.eye(31, dtype=torch.float64) + design.T @ ((p * (1 - p))[:, None] * design)
        )
        mode = mode + target.score(mode) @ cov
    assert float(target.score(mode).abs().max()) < 1e-9
    return mode[0], cov


@pytest.mark.slow
def test_logistic_posterior_agrees_with_importance_sampling():
    target = logistic_regression()
    draws = stk.sample(target, chains=128, steps=40, warmup=120, seed=1)
    assert draws.failures == {}
    reference, error = importance_means(target, 20_000)
    of_chains = draws.x.double().mean(1)
    mcse = of_chains.std(0) / math.sqrt(len(of_chains))
    assert (
        (of_chains.mean(0) - reference) / (mcse.square() + error.square()).sqrt()
    ).abs().max() < 4
    assert float(draws.x[..., 1:].mean((0, 1)).abs().max()) > 10 * float(
        error.max()
    )  # what is compared is not noise


# ------------------------------------------------------------------------------------------------------------ the examples


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["ar5", "garch", "gaussian_process", "mixture"], "ar5"))
def test_examples_recover_the_truth(name, capsys):
    example(name).main(steps=60, warmup=120)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(rows) in (3, 5, 7)
    for label, *numbers in rows:
        truth, mean, sd = map(float, numbers)
        assert 0 < sd < max(0.6, truth), label
        assert abs(mean - truth) < 3 * sd, label


def test_examples_are_short():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name


def test_the_autoregression_is_the_posterior():
    ar5 = example("ar5")
    x, y = points(5, 7), ar5.SERIES.double()
    ar5.NOW, ar5.PAST = ar5.NOW.double(), ar5.PAST.double()
    sigma, log_prob = x[:, 6].exp(), 0.0
    for t in range(5, len(y)):
        mean = x[:, 0] + sum(x[:, k] * y[t - k] for k in range(1, 6))
        log_prob = log_prob + Normal(mean, sigma).log_prob(y[t])
    log_prob = (
        log_prob + Normal(0, 1).log_prob(x[:, :6]).sum(1) + HalfNormal(1).log_prob(sigma) + x[:, 6]
    )
    assert_same_up_to_a_constant(ar5.energy(x), log_prob)


def test_garch_is_the_posterior():
    garch = example("garch")
    garch.SQUARES, garch.FIRST, garch.LAGGED = (
        garch.SQUARES.double(),
        garch.FIRST.double(),
        garch.LAGGED.double(),
    )
    x = points(5, 3)
    omega, alpha, beta = garch.parameters(x).T
    h, variances = garch.FIRST, []
    for square in garch.SQUARES[:-1]:
        h = omega + alpha * square + beta * h
        variances.append(h)
    h = torch.stack(variances, 1)
    torch.testing.assert_close(garch.variances(x), h)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(garch.parameters, row).det() for row in x]
    ).log()
    likelihood = Normal(0, h.sqrt()).log_prob(garch.SQUARES[1:].sqrt()).sum(1)
    assert_same_up_to_a_constant(
        garch.energy(x), likelihood + HalfNormal(1).log_prob(omega) + jacobian
    )
    assert bool((alpha + beta < 1).all())


def test_the_gaussian_process_is_the_posterior():
    gp = example("gaussian_process")
    x = points(5, 3)
    likelihood = MultivariateNormal(torch.zeros_like(gp.VALUES), gp.covariance(x)).log_prob(
        gp.VALUES
    )
    assert_same_up_to_a_constant(gp.energy(x), likelihood + Normal(0, 1).log_prob(x).sum(1))
    singular = torch.tensor([[0.0, 0.0, 0.0], [9.0, 5.0, -40.0]], dtype=torch.float64)
    assert gp.energy(singular).isfinite().tolist() == [True, False]
