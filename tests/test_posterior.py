"""Posteriors against exact ones: the linear-Gaussian problem at every time of every path, mixtures, operators, rows, digits."""

import math
import re
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

import scoretk as stk
from scoretk.fields import GaussianPathField, standard_normal
from scoretk.fields.operators import Blur, Downsample, LinearGaussian, Mask, Matrix
from scoretk.fields.posterior import DPS, MMPS, POSTERIOR_METHODS, PiGDM, Replacement, posterior
from scoretk.models.digits.data import load_digits
from scoretk.models.targets.mixture import GaussianMixture, gaussian, ring_mixture
from tests.evidence import mean_z, z_limit
from tests.marks import in_turn, slow_but, slow_unless
from tests.test_fields import OF_EACH_KIND, PATHS, TIMES, mixture

# the problem of NUMBERS: prior N(0, diag(1, 4)), y = x_1 + x_2 + .5 e, y = 2
COVARIANCE = torch.tensor([1.0, 4.0], dtype=torch.float64).diag()
ROW = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
Y = torch.tensor([2.0], dtype=torch.float64)
MEAN_Y = torch.tensor([0.3809524, 1.5238095], dtype=torch.float64)
COVARIANCE_Y = torch.tensor([[0.8095238, -0.7619048], [-0.7619048, 0.9523810]], dtype=torch.float64)
SUM = LinearGaussian(ROW, Y, 0.5)


ORIGIN = torch.zeros(2, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class GaussianField(GaussianPathField):
    """N(mean, covariance) in the plane on a path: `D = mean + alpha C (alpha^2 C + sigma^2)^-1 (x - alpha mean)`."""

    covariance: torch.Tensor
    path: object
    mean: torch.Tensor = ORIGIN
    event_shape: tuple = (2,)
    predicts: str = "data"

    @property
    def base(self):
        return standard_normal((2,), float(self.path.sigma(0.0)))

    def predict(self, x, t, **cond):
        alpha, sigma = (
            f(torch.as_tensor(t, dtype=torch.float64)).to(x)
            for f in (self.path.alpha, self.path.sigma)
        )
        alpha, sigma = alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)
        noised = alpha**2 * self.covariance + sigma**2 * torch.eye(2, dtype=x.dtype)
        gain = alpha * self.covariance @ torch.linalg.inv(noised)
        return self.mean + ((x - alpha[..., 0] * self.mean)[:, None] @ gain.mT)[:, 0]


def exact_posterior(covariance=COVARIANCE, std=0.5):
    """Mean and covariance, by the information form."""
    precision = torch.linalg.inv(covariance) + ROW.T @ ROW / std**2
    return torch.linalg.solve(precision, ROW.T @ Y / std**2), torch.linalg.inv(precision)


def points(shape, n=5, scale=1.0, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn((n, *shape), generator=generator, dtype=torch.float64)


def test_the_exact_posterior_is_that_of_numbers():
    mean, covariance = exact_posterior()
    torch.testing.assert_close(mean, MEAN_Y, rtol=0, atol=1e-7)
    torch.testing.assert_close(covariance, COVARIANCE_Y, rtol=0, atol=1e-7)


@dataclass(frozen=True)
class Mutant:
    """MMPS with something wrong, `change(likelihood, prior) -> likelihood, prior`."""

    change: object
    differentiates = True

    def shift(self, likelihood, prior, cond):
        likelihood, prior = self.change(likelihood, prior)
        return MMPS().shift(likelihood, prior, cond)


def scaled(factor):
    """V times a factor of alpha and sigma."""

    def change(likelihood, prior):
        f = factor(prior.alpha, prior.sigma).to(prior.data)
        return likelihood, prior._replace(covariance=lambda u: f * prior.covariance(u))

    return Mutant(change)


MUTANTS = {
    "no alpha": scaled(lambda alpha, sigma: alpha),
    "alpha squared": scaled(lambda alpha, sigma: 1 / alpha),
    "sigma for sigma^2": scaled(lambda alpha, sigma: 1 / sigma),
    "std for std^2": Mutant(
        lambda lik, prior: (LinearGaussian(lik.operator, lik.y, math.sqrt(lik.std)), prior)
    ),
    "no noise in y": Mutant(lambda lik, prior: (LinearGaussian(lik.operator, lik.y, 1e-3), prior)),
}


def applicable(path):
    """The mutants that differ from the right thing: where alpha is 1 throughout a missing alpha is none."""
    return [name for name in MUTANTS if "alpha" not in name or float(path.alpha(0.5)) != 1]


def denoiser_error(path, t, method, prior=COVARIANCE):
    """The largest error of the conditional denoiser in float64, relative to 1."""
    field = posterior(GaussianField(prior, path), SUM, method)
    x = points((2,), scale=float((path.alpha(t) ** 2 + path.sigma(t) ** 2).sqrt()))
    mean, covariance = exact_posterior(prior)
    exact = GaussianField(covariance, path, mean)
    return float((field.denoise(x, t) - exact.denoise(x, t)).abs().max())


EXACT = slow_but([MMPS(), PiGDM(0.7), Replacement(0.7)], PiGDM(0.7), Replacement(0.7))


@pytest.mark.parametrize("path", slow_unless(PATHS, OF_EACH_KIND), ids=lambda p: type(p).__name__)
class TestLinearGaussian:
    def test_mmps_is_exact_at_every_time(self, path):
        """At alpha = 0 to the root of the rounding, elsewhere to 1e-8; the score likewise, where sigma is not 0."""
        for t in TIMES if isinstance(path, stk.VP) else TIMES[::2]:
            assert denoiser_error(path, t, "mmps") < (
                2e-7 if float(path.alpha(t)) == 0 else 1e-8
            ), t
            if float(path.sigma(t)) == 0:
                continue
            x = points((2,), scale=float(path.sigma(t)))
            mean, covariance = exact_posterior()
            ours = posterior(GaussianField(COVARIANCE, path), SUM).score(x, t)
            exact = GaussianField(covariance, path, mean).score(x, t)
            torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-8)

    def test_mutants_are_seen(self, path):
        for name in applicable(path):
            mutant = MUTANTS[name]
            assert any(denoiser_error(path, t, mutant) > 1e-3 for t in (0.31, 0.77)), name

    def test_one_time_a_row(self, path):
        """A tensor of times, scalar times and the ends agree; a batch of mixed times holds each row's own."""
        field = posterior(GaussianField(COVARIANCE, path), SUM)
        x = points((2,), len(TIMES))
        together = field.denoise(x, torch.tensor(TIMES, dtype=torch.float64))
        for i, t in enumerate(TIMES):
            torch.testing.assert_close(
                field.denoise(x[i : i + 1], t)[0], together[i], rtol=0, atol=1e-10
            )

    @pytest.mark.thorough
    @pytest.mark.parametrize("method", EXACT, ids=lambda m: type(m).__name__)
    def test_isotropic_gaussians_are_exact_for_three_methods(self, path, method):
        prior = 0.49 * torch.eye(2, dtype=torch.float64)
        for t in TIMES:
            assert denoiser_error(path, t, method, prior) < (
                2e-7 if float(path.alpha(t)) == 0 else 1e-8
            ), t
        if not isinstance(method, MMPS):
            assert (
                max(denoiser_error(path, t, type(method)(spread=1.0), prior) for t in TIMES) > 1e-3
            )


@pytest.mark.thorough
def test_ends_are_finite_in_float32():
    for path in PATHS:
        for method in POSTERIOR_METHODS:
            field = posterior(
                mixture((2,)).noised(path), LinearGaussian(ROW.float(), Y.float(), 0.1), method
            )
            for t in (0.0, 1.0):
                data = field.denoise(points((2,)).float(), t)
                assert data.dtype == torch.float32
                assert bool(data.isfinite().all()), (path, method, t)


def test_float32_agrees_at_alpha_zero():
    """To the root of its rounding, 3e-4, times the scale of the problem, here a variance of 4."""
    field = posterior(GaussianField(COVARIANCE.float(), stk.Linear(), torch.zeros(2)), SUM)
    x = points((2,)).float()
    assert float((field.denoise(x, 0.0) - MEAN_Y).abs().max()) < 4 * 3.5e-4


def moments_z(draws):
    """The largest z of mean and second moment about the exact mean, of x_1, x_2 and x_1 + x_2: six comparisons."""
    seen = torch.cat([torch.eye(2, dtype=torch.float64), ROW])
    off = (draws.double() - MEAN_Y) @ seen.T
    variance = (seen @ COVARIANCE_Y @ seen.T).diagonal()
    return torch.cat([mean_z(off, torch.zeros(3)), mean_z(off.square(), variance)]).abs().max()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "path", slow_but([stk.Linear(), stk.VP(), stk.EDM()], stk.VP()), ids=lambda p: type(p).__name__
)
def test_draws_by_the_probability_flow_are_those_of_the_posterior(path):
    prior, solver = GaussianField(COVARIANCE, path), stk.ProbabilityFlow(steps=64)
    draws = stk.sample(posterior(prior, SUM), solver, chains=8192, dtype=torch.float64)
    assert moments_z(draws.final) < z_limit(6)
    for name in {"no alpha", "std for std^2"} & set(applicable(path)):
        wrong = stk.sample(
            posterior(prior, SUM, MUTANTS[name]), solver, chains=8192, dtype=torch.float64
        )
        assert moments_z(wrong.final) > z_limit(6), name


STATIC = stk.Energy(
    lambda x: (x.square() / COVARIANCE.diagonal()).sum(1) / 2 + math.log(4 * math.pi), (2,)
)


def test_static_energy_is_exact():
    """`-E = log p(x) + log p(y | x)`, so that `E + log p(x | y) = -log p(y)`, constant; as is the gradient."""
    field, x = posterior(STATIC, SUM), points((2,))
    conditional = MultivariateNormal(*exact_posterior())
    evidence = MultivariateNormal(
        torch.zeros(1).double(), ROW @ COVARIANCE @ ROW.T + 0.25
    ).log_prob(Y)
    torch.testing.assert_close(
        -field.energy(x) - conditional.log_prob(x), evidence.expand(5), rtol=0, atol=1e-10
    )
    mean, covariance = exact_posterior()
    score = -(x - mean) @ torch.linalg.inv(covariance)
    torch.testing.assert_close(field.score(x), score, rtol=0, atol=1e-10)
    energy, gradient = field.energy_and_grad(x)
    torch.testing.assert_close((energy, -gradient), (field.energy(x), score), rtol=0, atol=1e-10)


def test_likelihoods_of_three_kinds_agree():
    x = points((2,))
    static = stk.Energy(lambda z: -SUM.log_likelihood(z), (2,))
    for likelihood in (SUM.log_likelihood, static):
        torch.testing.assert_close(
            posterior(STATIC, likelihood).energy(x), posterior(STATIC, SUM).energy(x)
        )
    torch.testing.assert_close(
        posterior(
            STATIC,
            lambda z, y: LinearGaussian(ROW, "y", 0.5).log_likelihood(z, y=y),
            measured={"y"},
        ).energy(x, y=Y.expand(5, 1)),
        posterior(STATIC, SUM).energy(x),
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    "solver", [stk.MALA(0.2), stk.HMC(0.3, 5, metric="none")], ids=lambda s: type(s).__name__
)
def test_kernels_keep_the_posterior(solver):
    """From exact draws, 25 steps on: each chain is still a draw. With std for std^2 it is one of something else."""
    z = points((2,), 4000, seed=7)
    mean, covariance = exact_posterior()
    start = mean + z @ torch.linalg.cholesky(covariance).T
    draws = stk.sample(posterior(STATIC, SUM), solver, steps=25, warmup=0, init=start, keep="last")
    assert moments_z(draws.final) < z_limit(6)
    wrong = posterior(STATIC, LinearGaussian(ROW, Y, math.sqrt(0.5)))
    assert moments_z(
        stk.sample(wrong, solver, steps=25, warmup=0, init=start, keep="last").final
    ) > z_limit(6)


def test_a_prior_held_at_a_time_is_static():
    prior, x = GaussianField(COVARIANCE, stk.Linear()).at(0.7), points((2,))
    field = posterior(prior, SUM)
    assert field.provides == {"score"}
    torch.testing.assert_close(field.score(x), prior.score(x) + (Y - x @ ROW.T) @ ROW / 0.25)
    with pytest.raises(stk.MissingCapability, match="does not give an energy"):
        field.energy(x)


def conditional_mixture(prior, likelihood, path, x, t):
    """`E[x_1 | x_t, y]` of a mixture in the plane: each component conditioned on x_t, then on y."""
    alpha, sigma = (float(f(t)) for f in (path.alpha, path.sigma))
    s2 = prior.stds.square()[None, :, None]
    total = alpha**2 * s2 + sigma**2
    off = x[:, None] - alpha * prior.means
    a, variance = likelihood.operator.matrix[0], sigma**2 * s2 / total
    mean = prior.means + alpha * s2 / total * off
    evidence = likelihood.std**2 + variance[..., 0] * a.square().sum()
    r = likelihood.y - mean @ a
    logits = prior.weights.log() - off.square().sum(-1) / (2 * total[..., 0]) - total[..., 0].log()
    shares = torch.softmax(logits - r.square() / (2 * evidence) - evidence.log() / 2, 1)
    return (shares[..., None] * (mean + variance * a * (r / evidence)[..., None])).sum(1)


@pytest.mark.thorough
def test_conditional_mean_on_the_ring():
    """Where p(x_1 | x_t) is no Gaussian MMPS is close: root mean square error over x_t of the conditional denoiser at most .4 (on
    a ring of radius 2), .1 from t = .7 on, .002 at .9; unconditioned, 1.05, .31 and .037. The others are further off."""
    prior, path = ring_mixture(), stk.Linear()
    likelihood = LinearGaussian(
        torch.tensor([[1.0, 0.5]]).double(), torch.tensor([1.2]).double(), 0.3
    )
    clean, noise = posterior_draws(prior, likelihood, 400), points((2,), 400, seed=5)
    spread = math.sqrt(2 + 0.25**2)  # of a coordinate
    for t, bound in ((0.1, 0.4), (0.3, 0.4), (0.5, 0.3), (0.7, 0.1), (0.9, 0.002)):
        x = t * clean + (1 - t) * noise
        exact = conditional_mixture(prior, likelihood, path, x, t)
        error = [
            float(
                (posterior(prior.noised(path), likelihood, m).denoise(x, t) - exact)
                .square()
                .sum(1)
                .mean()
                .sqrt()
            )
            for m in (MMPS(), PiGDM(spread), DPS(1.0, spread), MUTANTS["no alpha"])
        ]
        assert error[0] < bound, (t, error)
        assert error[0] < min(error[1:]), (t, error)


def posterior_draws(prior, likelihood, n):
    """Draws of a mixture given y: prior draws kept by weight, with fixed random numbers."""
    generator = torch.Generator().manual_seed(11)
    k = torch.randint(len(prior.means), (400 * n,), generator=generator)
    x = prior.means[k] + prior.stds[k, None] * torch.randn(
        (400 * n, 2), generator=generator, dtype=torch.float64
    )
    weight = likelihood.log_likelihood(x).exp()
    return x[torch.multinomial(weight, n, replacement=True, generator=generator)]


IMAGE = (2, 4, 6)
KERNEL = torch.tensor([[0.0, 0.1, 0.3], [0.2, 0.4, 0.1], [0.0, 0.05, 0.0]], dtype=torch.float64)
OPERATORS = {
    "mask": Mask(points(IMAGE, 1)[0] > 0),
    "downsample": Downsample(2),
    "blur": Blur(KERNEL),
    "matrix": Matrix(points((48,), 7)),
    "callable": lambda x: x.cumsum(-1)[..., 1:],
}


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoints(name):
    """`<A x, w> = <x, A^T w>`, and A^T is the transpose of the matrix that A maps the unit images to."""
    operator = OPERATORS[name]
    x = points(IMAGE, 3)
    image = operator(x)
    likelihood = LinearGaussian(operator, torch.zeros_like(image[0]), 0.1)
    w = points(image.shape[1:], 3, seed=8)
    back = likelihood.adjoint(w, x)
    assert back.shape == x.shape
    torch.testing.assert_close(
        (image * w).flatten(1).sum(1), (x * back).flatten(1).sum(1), rtol=1e-12, atol=1e-12
    )
    dense = operator(torch.eye(48, dtype=torch.float64).reshape(48, *IMAGE)).flatten(1)
    torch.testing.assert_close(back.flatten(1), w.flatten(1) @ dense.T, rtol=1e-12, atol=1e-12)


def test_what_the_operators_do():
    x = torch.arange(48.0).reshape(1, *IMAGE)
    mask = OPERATORS["mask"].mask
    assert torch.equal(OPERATORS["mask"](x)[0], x[0][mask])
    assert float(Downsample(2)(x)[0, 0, 0, 0]) == (0 + 1 + 6 + 7) / 4
    assert float(Blur(KERNEL)(x)[0, 1, 1, 2]) == pytest.approx(
        sum(float(KERNEL[i, j]) * float(x[0, 1, i, 1 + j]) for i in range(3) for j in range(3))
    )


@pytest.mark.parametrize("name", OPERATORS)
def test_isotropic_images_are_exact(name):
    """N(0, .7^2 I) images under every operator, by the dense formula; MMPS with as many iterations as there are entries."""
    path, t, std = stk.VP(), 0.6, 0.2
    alpha, sigma = (float(f(t)) for f in (path.alpha, path.sigma))
    white = GaussianMixture(
        torch.zeros(1, *IMAGE), torch.tensor([0.7], dtype=torch.float64), torch.ones(1)
    )
    prior, x = white.noised(path), points(IMAGE, 3)
    dense = OPERATORS[name](torch.eye(48, dtype=torch.float64).reshape(48, *IMAGE)).flatten(1).T
    y = points(OPERATORS[name](x).shape[1:], 1)[0]
    variance = sigma**2 * 0.49 / (alpha**2 * 0.49 + sigma**2)
    data = prior.denoise(x, t).flatten(1)
    system = variance * dense @ dense.T + std**2 * torch.eye(len(dense)).double()
    exact = data + variance * torch.linalg.solve(system, (y.flatten() - data @ dense.T).T).T @ dense
    for method in (MMPS(48), PiGDM(0.7), Replacement(0.7)):
        field = posterior(prior, LinearGaussian(OPERATORS[name], y, std), method)
        torch.testing.assert_close(field.denoise(x, t).flatten(1), exact, rtol=0, atol=1e-8)


@dataclass(frozen=True)
class BatchWideDPS:
    """DPS with the norm of the whole batch."""

    differentiates = True

    def shift(self, likelihood, prior, cond):
        residual = likelihood.residual(prior.data, **cond)
        return prior.covariance(likelihood.adjoint(residual, prior.data)) / residual.norm()


class Barely:
    """A method that says nothing of itself but what it adds: nothing."""

    def shift(self, likelihood, prior, cond):
        return 0 * prior.data


class OfLinear(Barely):
    differentiates, linear = False, True


def test_a_method_is_one_by_what_it_says_of_itself(monkeypatch):
    """No class is known beforehand: a name is a line in the table, and who is for linear measurements says so."""
    prior, seen = (
        mixture((2,)).noised(stk.Linear()),
        LinearGaussian(Matrix(torch.eye(2).double()), [0.0, 0.0], 0.5),
    )
    monkeypatch.setitem(POSTERIOR_METHODS, "linear", OfLinear)
    x = points((2,))
    for method in (Barely(), OfLinear(), "linear"):
        torch.testing.assert_close(
            posterior(prior, seen, method).denoise(x, 0.5), prior.denoise(x, 0.5)
        )
    posterior(prior, lambda x: -x.square().sum(1), Barely())
    for method in (OfLinear(), "linear", "mmps", "pigdm", "tmpd", "replacement", "diffpir", MMPS()):
        with pytest.raises(stk.InvalidArgument, match="no LinearGaussian"):
            posterior(prior, lambda x: -x.square().sum(1), method)


@pytest.mark.parametrize(
    ("method", "shape"), in_turn(POSTERIOR_METHODS, [(3,), (), (2, 4, 4)]), ids=str
)
def test_a_row_is_alone_as_in_any_batch(method, shape):
    """And one measurement a chain, through `cond`, is that measurement for its chain."""
    prior, x = mixture(shape).noised(stk.Linear()), points(shape, 3)
    operator = (lambda z: 2 * z) if shape == () else Matrix(points((math.prod(shape),), 2))
    y = points(operator(x).shape[1:], 3, scale=3.0, seed=9)
    field = posterior(prior, LinearGaussian(operator, "y", 0.3), method)
    for t in (0.0, 0.4, 1.0):
        together = field.denoise(x, t, y=y)
        for i in range(3):
            alone = field.denoise(x[i : i + 1], t, y=y[i : i + 1])[0]
            shared = posterior(prior, LinearGaussian(operator, y[i], 0.3), method).denoise(
                x[i : i + 1], t
            )[0]
            torch.testing.assert_close(alone, together[i], rtol=1e-12, atol=1e-12)
            assert torch.equal(alone, shared)
    wrong = posterior(prior, LinearGaussian(operator, "y", 0.3), BatchWideDPS())
    assert (wrong.denoise(x, 0.4, y=y)[:1] - wrong.denoise(x[:1], 0.4, y=y[:1])).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:DPS.*the data's own")
def test_dps_is_pigdm_on_a_residual_of_the_expected_size_and_no_stronger_on_a_larger_one():
    """With m entries of y, `K = k I` and `|r|^2 = m k`; tenfold the residual and the shift is what it was."""
    prior, path, t = gaussian(dim=3, std=0.7), stk.Linear(), 0.4
    x, field = torch.zeros(1, 3, dtype=torch.float64), prior.noised(path)
    k = 0.6**2 * 0.49 / (0.4**2 * 0.49 + 0.6**2) + 0.2**2
    direction = torch.nn.functional.normalize(points((3,), 1)[0], dim=0)

    def shift(method, size):
        y = size * math.sqrt(3 * k) * direction
        return posterior(field, LinearGaussian(lambda z: z, y, 0.2), method).denoise(x, t)

    torch.testing.assert_close(shift(DPS(1.0, 0.7), 1), shift(PiGDM(0.7), 1), rtol=1e-10, atol=0)
    torch.testing.assert_close(
        shift(DPS(1.0, 0.7), 10), shift(DPS(1.0, 0.7), 1), rtol=1e-10, atol=0
    )
    torch.testing.assert_close(
        shift(DPS(0.5, 0.7), 1), shift(DPS(1.0, 0.7), 1) / 2, rtol=1e-10, atol=0
    )
    assert float(shift(DPS(), 0).abs().max()) == 0


def test_dps_of_any_likelihood_steps_to_the_maximum_on_its_line():
    """`D_y = D + s V g` with `s = g V g / (g V g + p H p)`: V of the Gaussian field known, of a quadratic log L g and H too."""
    path, x, t = stk.VP(), points((2,)), 0.6
    alpha, sigma = (float(f(t)) for f in (path.alpha, path.sigma))
    covariance = torch.linalg.inv(
        torch.linalg.inv(COVARIANCE) + (alpha / sigma) ** 2 * torch.eye(2).double()
    )
    prior, curvature = (
        GaussianField(COVARIANCE, path),
        torch.tensor([[300.0, 40.0], [40.0, 20.0]]).double(),
    )
    field = posterior(prior, lambda z, c: -c * ((z @ curvature) * z).sum(1) / 2, measured=("c",))
    c, data = (
        torch.rand(5, generator=torch.Generator().manual_seed(0)).double(),
        prior.denoise(x, t),
    )
    gradient = -c[:, None] * data @ curvature
    p = gradient @ covariance
    rise, bend = (gradient * p).sum(1), c * ((p @ curvature) * p).sum(1)
    exact = data + (rise / (rise + bend))[:, None] * p
    torch.testing.assert_close(field.denoise(x, t, c=c), exact, rtol=1e-8, atol=1e-10)


def test_the_measured_pixels_are_replaced():
    """As std goes to 0 the masked entries of D_y are y, and the others are those of D."""
    prior, mask, x = (
        mixture((2, 3)).noised(stk.Linear()),
        torch.tensor([[True, False, True]] * 2),
        points((2, 3)),
    )
    y = torch.arange(4.0).double()
    field = posterior(prior, LinearGaussian(Mask(mask), y, 1e-6), "replacement")
    data = field.denoise(x, 0.4)
    torch.testing.assert_close(data[:, mask], y.expand(5, 4), rtol=0, atol=1e-9)
    assert torch.equal(data[:, ~mask], prior.denoise(x, 0.4)[:, ~mask])


@pytest.mark.parametrize("method", POSTERIOR_METHODS)
def test_gradients_pass(method):
    """In x and in the measurements, against finite differences."""
    field = posterior(
        mixture((3,)).noised(stk.Linear()), LinearGaussian(points((3,), 2), "y", 0.3), method
    )
    x, y = points((3,), 2).requires_grad_(), points((2,), 2, seed=9).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: field.denoise(a, 0.4, y=b), (x, y))
    assert not field.denoise(x.detach(), 0.4, y=y.detach()).requires_grad


def test_solvers_serve_it_and_measurements_split_with_the_batch():
    y = points((1,), 7, seed=9)
    field = posterior(mixture((3,)).noised(stk.Linear()), LinearGaussian(points((3,), 1), "y", 0.3))
    solver = stk.ProbabilityFlow("dpmpp_2m", steps=8)
    whole = stk.sample(field, solver, chains=7, cond={"y": y}, seed=3)
    parts = stk.sample(field, solver, chains=7, cond={"y": y}, seed=3, batch=3)
    torch.testing.assert_close(whole.final, parts.final, rtol=1e-10, atol=1e-10)
    assert bool((whole.status == 0).all())
    with pytest.raises(stk.InvalidArgument, match="values for y"):
        stk.sample(field, solver, chains=7)


@pytest.mark.slow
def test_inpainting_digits():
    """The lower halves of 100 held-out digits from the upper: the mean of 4 draws is nearer than the mean of the training images
    by more than the false-alarm rate allows over the images, and the measured half is met to about the noise."""
    digits, std = load_digits(), 0.1
    images, mask = digits.test[:100], torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    y = Mask(mask)(images)
    y = y + std * points(y.shape[1:], 100).float()
    field = posterior(stk.load("digits-diffusion"), LinearGaussian(Mask(mask), "y", std))
    draws = stk.sample(
        field, stk.ProbabilityFlow("dpmpp_2m", steps=16), cond={"y": y.repeat(4, 1)}, chains=400
    )
    assert bool((draws.status == 0).all())
    restored = draws.final.unflatten(0, (4, 100)).mean(0)

    def error(guess):
        return (guess - images)[:, ~mask].square().mean(1)

    gain = error(digits.train.mean(0)) - error(restored)
    assert mean_z(gain[:, None], 0.0) > z_limit()
    assert float(error(restored).mean().sqrt()) < 0.8 * float(
        error(digits.train.mean(0)).mean().sqrt()
    )
    residual = (Mask(mask)(draws.final) - y.repeat(4, 1)) / std
    assert 0.7 < float(residual.square().mean().sqrt()) < 1.3


PRIOR = gaussian(dim=2).noised(stk.Linear())
REFUSED = {
    "std": (lambda: LinearGaussian(ROW, Y, -1.0), "std: expected a positive"),
    "no noise": (lambda: LinearGaussian(ROW, Y, 0), r"std: expected a positive.* small beside"),
    "a std an entry": (
        lambda: LinearGaussian(ROW, Y, torch.ones(1)),
        r"std: expected one positive.*A\(x\) / std, y / std, 1\.0",
    ),
    "stds in a list": (lambda: LinearGaussian(ROW, Y, [0.1]), r"std: expected one .*y / std"),
    "nothing measured": (
        lambda: posterior(PRIOR, LinearGaussian(torch.zeros(0, 2), torch.zeros(0), 1.0)),
        r"operator: expected one that measures something.*\(0,\)",
    ),
    "nan": (lambda: LinearGaussian(ROW, torch.tensor([math.nan]), 1.0), "y: expected finite"),
    "operator": (lambda: LinearGaussian("mask", Y, 1.0), "operator: expected a callable x -> A x"),
    "shape of y": (
        lambda: posterior(PRIOR, LinearGaussian(ROW, torch.zeros(2), 1.0)),
        "y: expected the shape",
    ),
    "shape of x": (
        lambda: posterior(PRIOR, LinearGaussian(points((3,), 1), Y, 1.0)),
        "operator: expected a map of events",
    ),
    "affine": (
        lambda: posterior(PRIOR, LinearGaussian(lambda x: x + 1, Y.expand(2), 1.0)),
        "linear map",
    ),
    "relu": (lambda: posterior(PRIOR, LinearGaussian(torch.relu, Y.expand(2), 1.0)), "linear map"),
    "batch": (
        lambda: posterior(PRIOR, LinearGaussian(lambda x: x.flatten(), Y, 1.0)),
        "keeps the batch axis",
    ),
    "mask": (
        lambda: posterior(PRIOR, LinearGaussian(Mask(torch.tensor([True])), Y, 1.0)),
        "mask: expected the shape",
    ),
    "mask of floats": (lambda: Mask(torch.ones(2)), "mask: expected a tensor of bool"),
    "empty mask": (
        lambda: Mask(torch.zeros(2, dtype=torch.bool)),
        "mask: expected a tensor of bool",
    ),
    "factor": (lambda: Downsample(0), "factor: expected an integer of at least 1"),
    "divisor": (lambda: Downsample(3)(torch.zeros(1, 8, 8)), "factor: expected a divisor"),
    "kernel": (lambda: Blur(torch.ones(2, 3)), "kernel: expected odd"),
    "method": (lambda: posterior(PRIOR, SUM, "mpps"), "did you mean 'mmps'"),
    "method class": (lambda: posterior(PRIOR, SUM, MMPS), "method: expected a method"),
    "linear methods": (
        lambda: posterior(PRIOR, lambda x: x.sum(1), "mmps"),
        "'dps' for a likelihood",
    ),
    "static method": (lambda: posterior(STATIC, SUM, "mmps"), "None for a static prior"),
    "settings": (lambda: PiGDM(spread=-1.0), "spread: expected a positive"),
    "prior": (lambda: posterior(lambda x: x, SUM), "prior: expected a field"),
    "likelihood": (lambda: posterior(PRIOR, 3.0), "likelihood: expected"),
    "static likelihood": (lambda: posterior(PRIOR, gaussian(dim=3)), "event shape"),
    "one number a row": (
        lambda: posterior(STATIC, lambda x: x).energy(points((2,))),
        "log_likelihood: expected",
    ),
    "names twice": (lambda: posterior(PRIOR, SUM, measured="y"), "measured: expected nothing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(stk.ScoretkError, match=message):
        call()


def test_a_matrix_may_be_an_array_or_lists():
    x = points((2,), 3)
    for given in (ROW.numpy(), ROW.tolist()):
        assert torch.equal(LinearGaussian(given, Y, 0.5).forward(x), SUM.forward(x))


def test_noise_of_each_entry_is_a_matter_of_units():
    """The way out that the refusal of several stds tells of."""
    a, y, std = points((2,), 3), points((), 3), torch.tensor([0.2, 1.5, 0.7], dtype=torch.float64)
    x = points((2,), 5)
    found = LinearGaussian(lambda x: x @ a.T / std, y / std, 1.0).log_likelihood(x)
    normal = torch.distributions.Normal(x @ a.T, std)
    torch.testing.assert_close(found - std.log().sum(), normal.log_prob(y).sum(1))


def test_a_timed_prior_needs_a_path():
    flow = stk.Velocity(lambda x, t: x, (2,), base=torch.zeros(3, 2))
    with pytest.raises(stk.MissingCapability, match="Gaussian path"):
        posterior(flow, SUM)


# What autograd does not see. The prior's denoiser on VP is alpha x: N(0, I)

VP = stk.VP()
ONE = torch.tensor([2.0])


def first(x):
    return x[:, :1] * 1.0


def back(w):
    return torch.cat([w, torch.zeros_like(w)], 1)


class ReturnsNone(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return first(x)

    @staticmethod
    def backward(ctx, w):
        return None


def denoiser(x, t):
    return VP.alpha(t)[:, None] * x


def noise_of(x, t):
    return VP.sigma(t)[:, None] * x


def unit_prior(net=denoiser, predicts="data"):
    return stk.Diffusion(net, (2,), VP, predicts)


CUTS = {
    "no_grad": torch.no_grad(),
    "inference_mode": torch.inference_mode(),
    "detach": lambda f: lambda x, *t: f(x.detach(), *t),
    "data": lambda f: lambda x, *t: f(x.data, *t),
    "numpy": lambda f: lambda x, *t: f(torch.from_numpy(x.detach().numpy()), *t),
    "numpy of a graph": lambda f: lambda x, *t: f(torch.from_numpy(x.numpy()), *t),
    "one part": lambda f: lambda x, *t: f(torch.cat([x[:, :1].detach(), x[:, 1:]], 1), *t),
    "half": lambda f: lambda x, *t: f(x, *t) / 2 + f(x.detach(), *t) / 2,
}
WAYS_OUT = {
    "operator": "adjoint=f",
    "prior": "method='replacement'",
    "likelihood": "LinearGaussian",
}


def seen(x):
    return -(x[:, 0] - 2).square() / 0.02


def law_of_the_first(field, chains=2000, **options):
    """z scores of the first coordinate's mean and second moment against NUMBERS; the second is N(0, 1)."""
    draws = stk.sample(field, stk.ProbabilityFlow(**options), chains=chains)
    assert not draws.failures
    x = draws.final[:, :1].double()
    return torch.cat([mean_z(x, 1.980198), mean_z((x - 1.980198).square(), 0.0995037**2)])


@pytest.mark.parametrize("cut", CUTS)
def test_what_cuts_the_gradient_is_refused_with_the_way_out(cut):
    """An operator when the posterior is made; a prior and a callable likelihood, timed and static, at the first call."""
    wrap, x = CUTS[cut], points((2,)).float()
    static_prior, linear = (
        stk.Energy(lambda z: z.square().sum(1) / 2, (2,)),
        LinearGaussian(first, ONE, 0.1),
    )
    refused = {
        "operator": [
            lambda: posterior(unit_prior(), LinearGaussian(wrap(first), ONE, 0.1)),
            lambda: posterior(static_prior, LinearGaussian(wrap(first), ONE, 0.1)),
            lambda: posterior(unit_prior(), LinearGaussian(wrap(first), "y", 0.1)),
        ],
        "prior": [
            *(
                lambda m=m, n=n, p=p: posterior(unit_prior(wrap(n), p), linear, m).denoise(x, 0.3)
                for m in ("mmps", "pigdm", "dps")
                for n, p in ((denoiser, "data"), (noise_of, "noise"))
            ),
            lambda: posterior(unit_prior(wrap(denoiser)), seen).denoise(x, 0.3),
        ],
        "likelihood": [
            lambda: posterior(unit_prior(), wrap(seen)).denoise(x, 0.3),
            lambda: posterior(static_prior, wrap(seen)).score(x),
            lambda: stk.sample(posterior(static_prior, wrap(seen)), stk.HMC(), chains=4, steps=5),
        ],
    }
    for what, calls in refused.items():
        for call in calls:
            with pytest.raises(stk.InvalidArgument, match=f"(?s){what}: .*{WAYS_OUT[what]}"):
                call()


@pytest.mark.parametrize("method", POSTERIOR_METHODS)
def test_measurements_whose_squares_overflow_are_failures_and_not_the_prior(method):
    """float32 holds 1e20 and not its square; nor do conjugate gradients go on from a product that is infinite."""
    field = posterior(unit_prior(), LinearGaussian(first, torch.tensor([1e20]), 0.1), method)
    assert not bool(field.denoise(points((2,)).float(), 0.3).isfinite().all(1).any())
    assert stk.sample(field, stk.ProbabilityFlow("euler", 4), chains=3).failures == {"NONFINITE": 3}
    far = posterior(
        unit_prior(), LinearGaussian(lambda x: 1e20 * first(x), torch.tensor([1e20]), 1e19), method
    )
    assert stk.sample(far, stk.ProbabilityFlow("euler", 4), chains=3).failures == {"NONFINITE": 3}


def early(f):
    return lambda x, t: torch.where(t[:, None] < 0.5, f(x.detach(), t), f(x, t))


def late(f):
    return lambda x, t: torch.where(t[:, None] > 0.9, f(x.detach(), t), f(x, t))


def step(x):
    return (16 * x).round() / 16


STEPS = {
    "prior": lambda: posterior(
        unit_prior(lambda x, t: denoiser(step(x), t)), LinearGaussian(first, ONE, 0.1)
    ),
    "one coordinate of the prior": lambda: posterior(
        unit_prior(lambda x, t: denoiser(torch.cat([step(first(x)), x[:, 1:]], 1), t)),
        LinearGaussian(first, ONE, 0.1),
    ),
    "likelihood": lambda: posterior(unit_prior(), lambda x: seen(step(x))),
    "sign": lambda: posterior(unit_prior(), lambda x: 5 * x[:, 0].sign()),
    "one coordinate": lambda: posterior(unit_prior(), lambda x: seen(step(x)) - x[:, 1].square()),
    "field": lambda: posterior(
        unit_prior(), stk.Energy(lambda x: -seen(step(x)) + 0 * x.sum(1), (2,))
    ),
}


@pytest.mark.parametrize("kind", STEPS)
def test_what_goes_in_steps_has_no_derivative_to_follow(kind):
    """Autograd says 0 rightly, and the posterior would be the prior."""
    with pytest.raises(stk.InvalidArgument, match=r"(?s)(prior|likelihood): .*in steps"):
        STEPS[kind]().denoise(points((2,)).float(), 0.3)


def test_a_static_posterior_of_steps_is_that_of_its_energy():
    field = posterior(
        stk.Energy(lambda z: z.square().sum(1) / 2, (2,)),
        lambda x: 5 * x[:, 0].sign() + 0 * x.sum(1),
    )
    assert bool(field.score(points((2,)).float()).isfinite().all())


@pytest.mark.parametrize("cut", [early, late])
def test_a_prior_that_is_cut_at_some_times_is_refused(cut):
    with pytest.raises(stk.InvalidArgument, match="replacement"):
        posterior(unit_prior(cut(denoiser)), LinearGaussian(first, ONE, 0.1)).denoise(
            points((2,)).float(), 0.3
        )


def test_mutants_at_one_time_and_without_a_look_for_steps(monkeypatch):
    """Signal and noise alike tell nothing of other times; and steps then make the posterior the prior."""
    module = sys.modules["scoretk.fields.posterior.timed"]
    monkeypatch.setattr(module, "LOG_SNR", (0.0,))
    monkeypatch.setattr(module, "check_no_steps", lambda *_: None)
    for field in (
        STEPS["prior"](),
        posterior(unit_prior(late(denoiser)), LinearGaussian(first, ONE, 0.1)),
    ):
        assert law_of_the_first(field).abs().max() > 2 * z_limit(2)


class Misled(ReturnsNone):
    @staticmethod
    def backward(ctx, w):
        return torch.zeros(len(w), 2)


def test_the_energy_of_a_likelihood_is_held_to_its_gradient():
    """A field as likelihood, by autograd or by a gradient of its own."""
    wrong = stk.Energy(lambda x: (Misled.apply(x) - 2).square().sum(1) / 0.02, (2,))
    for prior in (unit_prior(), stk.Energy(lambda z: z.square().sum(1) / 2, (2,))):
        field = posterior(prior, wrong)
        with pytest.raises(stk.InvalidArgument, match="likelihood"):
            field.score(points((2,)).float(), *([0.3] if prior.provides >= {"base"} else []))


@pytest.mark.parametrize(
    "given",
    [lambda x: x.numpy()[:, :1], lambda x: [first(x)], lambda x: None, lambda x: x.astype("f4")],
)
@pytest.mark.parametrize("adjoint", [None, back])
def test_an_operator_that_gives_no_tensor_is_refused(given, adjoint):
    with pytest.raises(stk.InvalidArgument, match="operator"):
        posterior(unit_prior(), LinearGaussian(given, ONE, 0.1, adjoint=adjoint))


def test_a_function_without_a_backward_is_refused():
    with pytest.raises(stk.InvalidArgument, match="adjoint=f"):
        posterior(unit_prior(), LinearGaussian(ReturnsNone.apply, ONE, 0.1))
    with pytest.raises(stk.InvalidArgument, match=r"each row by itself|linear"):
        posterior(unit_prior(), LinearGaussian(lambda x: first(x) - first(x).mean(0), ONE, 0.1))


def test_reading_a_cut_as_zero_returns_the_prior(monkeypatch):
    """The mutant: without the dot-product test the posterior's mean is the prior's, without a word."""
    monkeypatch.setattr(LinearGaussian, "_check_adjoint", lambda *_: None)
    monkeypatch.setattr(LinearGaussian, "adjoint", lambda self, w, x: torch.zeros_like(x))
    field = posterior(unit_prior(), LinearGaussian(torch.no_grad()(first), ONE, 0.1))
    assert law_of_the_first(field).abs().max() > 10 * z_limit(2)


def network(activation):
    return torch.nn.Sequential(
        torch.nn.Linear(2, 64),
        activation,
        torch.nn.Linear(64, 64),
        activation,
        torch.nn.Linear(64, 2),
    )


GENERATOR = torch.Generator().manual_seed(0)


def noisy(x):
    return x + 0.1 * torch.rand(x.shape, generator=GENERATOR, dtype=x.dtype)


SEEN_THROUGH = {
    "relu": lambda: network(torch.nn.ReLU()),
    "gelu": lambda: network(torch.nn.GELU()),
    "max": lambda: lambda x: torch.maximum(x, -2 * x),
    "steep": lambda: lambda x: torch.tanh(100 * x),
    "noisy": lambda: noisy,
}


@pytest.mark.parametrize("net", SEEN_THROUGH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_false_alarm_where_nothing_is_cut(net, dtype):
    """Kinks, steep places; also noise of a function's own, of which differences tell nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        f = SEEN_THROUGH[net]()
    f = f.to(dtype) if isinstance(f, torch.nn.Module) else f
    field = posterior(unit_prior(lambda x, t: f(x)), LinearGaussian(first, ONE.to(dtype), 0.1))
    assert bool(field.denoise(points((2,)).to(dtype), 0.4).isfinite().all())
    field = posterior(gaussian(dim=2), lambda x: -f(x).square().sum(1) / 2)
    assert bool(field.score(points((2,)).to(dtype)).isfinite().all())


def test_a_prior_of_one_point_is_no_cut():
    field = posterior(unit_prior(lambda x, t: torch.ones_like(x)), LinearGaussian(first, ONE, 0.1))
    assert torch.equal(field.denoise(points((2,)).float(), 0.4), torch.ones(5, 2))


ADJOINTS = {
    "no_grad": (torch.no_grad()(first), back),
    "inference_mode": (torch.inference_mode()(first), torch.inference_mode()(back)),
    "numpy": (
        lambda x: torch.from_numpy(x.numpy()[:, :1] * 1.0),
        lambda w: torch.from_numpy(np.concatenate([w.numpy(), 0 * w.numpy()], 1)),
    ),
}


@pytest.mark.parametrize("kind", ADJOINTS)
@pytest.mark.parametrize("method", POSTERIOR_METHODS)
def test_an_adjoint_that_is_given_serves_in_place_of_autograd(kind, method):
    """Value and derivatives are to the bit, or to rounding, those of the operator that autograd sees through."""
    operator, adjoint = ADJOINTS[kind]
    plain = posterior(unit_prior(), LinearGaussian(first, "y", 0.1), method)
    given = posterior(unit_prior(), LinearGaussian(operator, "y", 0.1, adjoint=adjoint), method)
    results = []
    for field in (plain, given):
        x, y = points((2,), 3).requires_grad_(), points((1,), 3, seed=9).requires_grad_()
        value = field.denoise(x, 0.4, y=y)
        results.append((value, *torch.autograd.grad(value.square().sum(), (x, y))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    static_fields = [
        posterior(gaussian(dim=2), LinearGaussian(f, ONE.double(), 0.1, adjoint=a))
        for f, a in ((first, None), (operator, adjoint))
    ]
    for ours, theirs in zip(*(f.energy_and_grad(points((2,))) for f in static_fields), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_law_through_an_adjoint_and_of_a_callable_is_that_of_numbers():
    for likelihood in (LinearGaussian(torch.no_grad()(first), ONE, 0.1, adjoint=back), seen):
        assert law_of_the_first(
            posterior(unit_prior(), likelihood), steps=64
        ).abs().max() < z_limit(2)


def fourier(x):
    return torch.fft.fft(x.reshape(len(x), -1), norm="ortho")[:, 1:4]


def fourier_adjoint(w, sign=1):
    padded = torch.nn.functional.pad(w, (1, 5 - 4))
    return (torch.fft.ifft if sign > 0 else torch.fft.fft)(padded, norm="ortho").real


COMPLEX_Y = torch.tensor([1 + 2j, -0.5j, 0.3 + 0.1j], dtype=torch.complex128)


@pytest.mark.thorough
@pytest.mark.parametrize("operator", ["autograd", "adjoint", "matrix"])
def test_complex_measurements_are_pairs_of_real_ones(operator):
    """The posterior of a Gaussian prior from Fourier coefficients, by MMPS and statically, is that of the real 6 x 5 problem."""
    dense = fourier(torch.eye(5, dtype=torch.float64)).mT.contiguous()
    likelihood = {
        "autograd": lambda y: LinearGaussian(fourier, y, 0.3),
        "adjoint": lambda y: LinearGaussian(
            torch.no_grad()(fourier), y, 0.3, adjoint=fourier_adjoint
        ),
        "matrix": lambda y: LinearGaussian(dense, y, 0.3),
    }[operator]
    real = torch.view_as_real(dense).movedim(-1, 0).reshape(6, 5)
    pairs = LinearGaussian(real, torch.cat([COMPLEX_Y.real, COMPLEX_Y.imag]), 0.3)
    x, prior = points((5,)), gaussian(dim=5, std=0.7)
    for method in POSTERIOR_METHODS:
        ours = posterior(prior.noised(stk.Linear()), likelihood(COMPLEX_Y), method).denoise(x, 0.4)
        named = posterior(prior.noised(stk.Linear()), likelihood("y"), method).denoise(
            x, 0.4, y=COMPLEX_Y.expand(5, 3)
        )
        exact = posterior(prior.noised(stk.Linear()), pairs, method).denoise(x, 0.4)
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(named, exact, rtol=1e-9, atol=1e-9)
    ours, exact = (
        posterior(prior, law).energy_and_grad(x) for law in (likelihood(COMPLEX_Y), pairs)
    )
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)


def test_adjoints_that_are_not_and_numbers_of_the_wrong_kind_are_refused():
    cut, prior = torch.no_grad()(fourier), gaussian(dim=5)
    wrong = {
        "twice": lambda w: 2 * fourier_adjoint(w),
        "shape": lambda w: w.real,
        "no tensor": lambda w: None,
        "not conjugate": lambda w: fourier_adjoint(w, sign=-1),
        "imaginary": lambda w: fourier_adjoint(1j * w),
        "fails": lambda w: w @ w,
    }
    for adjoint in wrong.values():
        with pytest.raises(stk.InvalidArgument, match="adjoint: "):
            posterior(prior, LinearGaussian(cut, COMPLEX_Y, 0.3, adjoint=adjoint))
    for operator, y in ((fourier, COMPLEX_Y.real), (lambda x: fourier(x).real, COMPLEX_Y)):
        with pytest.raises(stk.InvalidArgument, match=r"y: expected (real|complex) numbers"):
            posterior(prior, LinearGaussian(operator, y, 0.3))
    named = posterior(prior, LinearGaussian(fourier, "y", 0.3))
    with pytest.raises(stk.InvalidArgument, match="y: expected complex numbers"):
        named.energy(points((5,)), y=COMPLEX_Y.real.expand(5, 3))
    with pytest.raises(stk.InvalidArgument, match="adjoint: expected a callable w -> A"):
        LinearGaussian(first, ONE, 0.1, adjoint=3)


CHECKED = {
    "right": (lambda x: 3 * x[:, :2], lambda w: 3 * torch.nn.functional.pad(w, (0, 3)), None),
    "an adjoint twice": (lambda x: x[:, :2], lambda w: torch.nn.functional.pad(2 * w, (0, 3)), "A"),
    "no adjoint": (lambda x: x[:, :2].detach(), None, "differentiate"),
    "a square": (lambda x: x[:, :2].square(), None, "linear"),
    "by the batch": (lambda x: x[:, :2] / len(x), None, "a map of each row"),
}


@pytest.mark.parametrize("unit", [1e-5, 1.0, 1e5])
@pytest.mark.parametrize("name", CHECKED)
def test_what_an_operator_has_to_be_does_not_hang_on_its_units(name, unit):
    operator, adjoint, told = CHECKED[name]
    law = LinearGaussian(
        lambda x: unit * operator(x),
        torch.zeros(2),
        unit,
        adjoint=None if adjoint is None else lambda w: unit * adjoint(w),
    )
    if told is None:
        law.check((5,))
        return
    with pytest.raises(stk.InvalidArgument, match=told):
        law.check((5,))


SOLVABLE = {
    "narrow": lambda x: -(x[:, 0] - 2).square() / (2 * 1e-3**2),
    "all entries": lambda x: -(x - 2).square().sum(1) / (2 * 1e-3**2),
    "squares": lambda x: -(x.square().sum(1) - 1).square() / (2 * 1e-2**2),
    "exponential": lambda x: -(x[:, 0].exp() - 5).square() / (2 * 1e-2**2),
    "Laplace": lambda x: -(x[:, 0] - 2).abs() / 1e-3,
    "wall": lambda x: torch.where(
        x[:, 0] > -5, -(x[:, 0] - 2).square() / (2 * 1e-3**2), -torch.inf
    ),
}
RESIDUAL = {
    "squares": lambda x: x.square().sum(1) - 1,
    "exponential": lambda x: x[:, 0] - math.log(5),
    "all entries": lambda x: (x - 2).abs().amax(1),
}


def residual_of(case, method, **options):
    draws = stk.sample(
        posterior(unit_prior(), SOLVABLE[case]),
        stk.ProbabilityFlow(method, 32, **options),
        chains=200,
    )
    return draws, RESIDUAL.get(case, lambda x: x[:, 0] - 2)(draws.final).abs()


@pytest.mark.thorough
@pytest.mark.parametrize("case", slow_but(SOLVABLE, "squares", "Laplace", "wall"))
def test_a_callable_likelihood_of_a_solvable_problem_is_met(case):
    """Whatever its scale: the step is that of its own curvature. The mutant, `V g` as it is, leaves every scale."""
    for method in ("adams_3", "euler", "dpmpp_2m"):
        draws, residual = residual_of(case, method)
        assert not draws.failures
        assert float(residual.median()) < 0.05
        assert float(residual.amax()) < 0.5


@pytest.mark.filterwarnings("ignore:the run starts from")
def test_a_gradient_that_is_not_normalised_leaves_every_scale(monkeypatch):
    def plain(likelihood, prior, spread, cond):
        return prior.covariance(likelihood.slope(prior.data, **cond)[1])

    monkeypatch.setattr(sys.modules[DPS.__module__], "_uphill", plain)
    draws, residual = residual_of("narrow", "adams_3")
    assert draws.failures or float(residual.amax()) > 1e3


def test_gradients_pass_through_a_callable_likelihood():
    field = posterior(
        mixture((3,)).noised(stk.Linear()),
        lambda z, y: -(z.cos() - y).square().sum(1),
        measured="y",
    )
    x, y = points((3,), 2).requires_grad_(), points((3,), 2, seed=9).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: field.denoise(a, 0.4, y=b), (x, y), atol=1e-4, rtol=1e-3
    )


def test_priors_by_name_are_told_to_be_one_energy():
    priors = {"mu": torch.distributions.Normal(0.0, 1.0)}
    with pytest.raises(stk.InvalidArgument, match=r"^prior: .* one energy: scoretk\.Energy"):
        stk.posterior(priors, lambda mu: -mu)


def of_scale(path, scale, dim):
    """The exact denoiser of N(0, scale^2 I)."""

    def net(x, t):
        alpha, sigma = (f(t).to(x)[:, None] for f in (path.alpha, path.sigma))
        return alpha * scale**2 * x / (alpha**2 * scale**2 + sigma**2)

    return stk.Diffusion(net, (dim,), path, predicts="data")


def measured_at(scale, n, dim, method, path, seed):
    """A posterior of data of a scale, of n numbers measured of a draw, and the chains' start."""
    generator = torch.Generator().manual_seed(seed)
    operator = torch.randn(n, dim, generator=generator)
    y = operator @ (scale * torch.randn(dim, generator=generator))
    seen = stk.LinearGaussian(operator, y, std=0.01 * scale)
    prior = of_scale(path, scale, dim)
    return stk.posterior(prior, seen, method), prior.base.draw(4, stk.Noise(seed, 4))


SPREADS = [stk.PiGDM, stk.DPS, stk.Replacement]


@pytest.mark.parametrize("path", [stk.Linear(), stk.VP(), stk.EDM()], ids=str)
@pytest.mark.parametrize("method", SPREADS)
@pytest.mark.parametrize(("scale", "n"), [(100.0, 1), (10.0, 20), (0.01, 20)])
def test_a_spread_that_is_not_the_data_s_is_told_once(method, path, scale, n):
    field, x = measured_at(scale, n, 24, method(), path, 3)
    name = method.__name__
    with pytest.warns(UserWarning, match=rf"{name}\(spread=1\): .* the data's own") as told:
        assert torch.equal(*(field.denoise(x, 0.0) for _ in range(2)))
    assert len(told) == 1
    near = re.search(rf"such as scoretk.{name}\(spread=(\S+)\)", str(told[0].message))
    assert 1 / 3 < float(near[1]) / scale < 3
    for right in (method(spread=scale), "mmps"):
        measured_at(scale, n, 24, right, path, 3)[0].denoise(x, 0.0)


@pytest.mark.parametrize("n", [1, 20])
@pytest.mark.parametrize("method", SPREADS)
def test_a_spread_that_is_the_data_s_is_not_spoken_of(method, n):
    # a normal number is 5 standard deviations off once in 2e6
    for seed in range(40):
        field, x = measured_at(3.0, n, 24, method(spread=3.0), stk.Linear(), seed)
        field.denoise(x, 0.0)
