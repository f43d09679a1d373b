"""Densities of scikit-learn: equal to its own, normalised, with draws that have them."""

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.adapters import sklearn as adapter
from scoretk.core.noise import Noise
from scoretk.errors import InvalidArgument, MissingCapability
from tests.evidence import assert_distribution, assert_mean, assert_second_moment

BRINGS = [
    (
        "a mixture of scikit-learn",
        "stk.from_sklearn(gm)",
        "its `score_samples`, every type of covariance",
        "scikit-learn==1.9.1",
        ["test_a_mixtures_density_is_its_own"],
    ),
    (
        "a kernel density estimate of scikit-learn",
        "stk.from_sklearn(kde)",
        "its `score_samples`, every kernel",
        "scikit-learn==1.9.1",
        ["test_an_estimates_density_is_its_own"],
    ),
]

mixture = pytest.importorskip("sklearn.mixture")
neighbors = pytest.importorskip("sklearn.neighbors")

KERNELS = ("gaussian", "tophat", "epanechnikov", "exponential", "linear", "cosine")


def data(d, n=60):
    rng = np.random.default_rng(d)
    return np.concatenate([rng.normal(0, 1, (n, d)), rng.normal(3, 0.5, (n, d))])


def fitted(kind, d=2):
    return mixture.GaussianMixture(3, covariance_type=kind, random_state=0).fit(data(d))


def at(array):
    return torch.as_tensor(array)


def estimate(kernel, d=2, **options):
    return neighbors.KernelDensity(bandwidth=0.8, kernel=kernel).fit(data(d), **options)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_a_mixtures_density_is_its_own(kind, d):
    gm = fitted(kind, d)
    field, x = stk.from_(gm), data(d)[::7] + 0.1
    found = field.log_prob(torch.as_tensor(x))
    np.testing.assert_allclose(found, gm.score_samples(x), rtol=1e-10)


def test_a_mixtures_draws_have_its_moments():
    gm, n = fitted("full"), 20_000
    x = stk.from_sklearn(gm).draw(n, Noise(2, n))
    mean = gm.weights_ @ gm.means_
    assert_mean(x, mean)
    spread = np.einsum("k,kii->i", gm.weights_, gm.covariances_)
    assert_second_moment(x, mean, spread + gm.weights_ @ (gm.means_ - mean) ** 2)


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("kernel", KERNELS)
def test_an_estimates_density_is_its_own(kernel, d):
    kde = estimate(kernel, d)
    field, x = stk.from_(kde), data(d)[::9] + 0.05
    found = field.log_prob(torch.as_tensor(x)).numpy()
    assert np.isfinite(found).any()
    if kernel == "cosine" and d % 2 == 0:  # its own is not normalised there
        found = found + (kde.score_samples(data(d)[:1]) - field.log_prob(at(data(d)[:1])).numpy())
    np.testing.assert_allclose(found, kde.score_samples(x), rtol=1e-9, atol=1e-12)
    assert field.log_prob(torch.full((1, d), 50.0)).item() < -50


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_estimate_integrates_to_one_in_two_dimensions(kernel):
    kde = neighbors.KernelDensity(bandwidth=0.8, kernel=kernel).fit([[0.1, 0.2], [0.7, -0.4]])
    width = 0.05 if kernel != "exponential" else 0.2
    reach = torch.arange(-8, 8, width, dtype=torch.float64) * (4 if kernel == "exponential" else 1)
    cell = float(reach[1] - reach[0]) ** 2
    density = stk.from_sklearn(kde).log_prob(torch.cartesian_prod(reach, reach)).exp()
    assert abs(float(density.sum()) * cell - 1) < 0.02


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_weights_of_the_data_count(kernel):
    weights = np.linspace(0.1, 2, len(data(2)))
    kde, x = estimate(kernel, sample_weight=weights), data(2)[::9]
    found = stk.from_sklearn(kde).log_prob(torch.as_tensor(x))
    np.testing.assert_allclose(found, kde.score_samples(x), rtol=1e-9)
    plain = stk.from_sklearn(estimate(kernel)).log_prob(torch.as_tensor(x))
    assert (plain - found).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", ["tophat", "epanechnikov", "linear", "cosine"])
def test_outside_a_bounded_support_there_is_nothing(kernel, dtype):
    fitted = neighbors.KernelDensity(kernel=kernel, bandwidth=0.5).fit(np.zeros((1, 2)))
    radius = torch.tensor([0.499, 0.501, 0.6, 50.0, 1e6], dtype=dtype)
    x = torch.stack([radius, torch.zeros_like(radius)], 1)
    found = stk.log_prob(stk.from_sklearn(fitted), x).value
    assert found.isfinite().tolist() == [True, False, False, False, False]
    assert torch.equal(found[1:], torch.full((4,), -torch.inf, dtype=found.dtype))


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "tophat"])
def test_the_score_is_the_gradient_in_finite_differences(kernel):
    field = stk.from_sklearn(estimate(kernel))
    x = torch.as_tensor(data(2)[::11] + 0.03)
    steps = 1e-6 * torch.eye(2, dtype=torch.float64)
    numeric = torch.stack(
        [(field.log_prob(x + h) - field.log_prob(x - h)) / 2e-6 for h in steps], 1
    )
    torch.testing.assert_close(field.score(x), numeric, rtol=1e-4, atol=1e-4)


def test_what_a_kernel_does_not_allow_is_refused():
    tophat, cosine = (stk.from_sklearn(estimate(k)) for k in ("tophat", "cosine"))
    assert "score" not in tophat.provides
    assert "draw" not in cosine.provides
    for solver in (stk.MALA(0.1), stk.ULA(0.1)):
        with pytest.raises(MissingCapability, match="constant within balls"):
            stk.sample(tophat, solver, chains=2, steps=2, warmup=0)
    with pytest.raises(MissingCapability, match="no closed form"):
        cosine.draw(3, Noise(0, 3))


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "cosine"])
def test_draws_of_an_estimate_have_its_distribution(kernel):
    """In one dimension, by the distribution function from its own density; in three by the second moment of the kernel."""
    n = 3_000
    field = stk.from_sklearn(estimate(kernel, 1))
    grid = torch.linspace(-14, 14, 5_601, dtype=torch.float64)
    density = field.log_prob(grid[:, None]).exp()
    steps = torch.cat([density.new_zeros(1), (density[1:] + density[:-1]) / 2]).cumsum(0)
    cdf = (steps * float(grid[1] - grid[0])).numpy()
    assert abs(cdf[-1] - 1) < 1e-3
    x = field.draw(n, Noise(3, n))[:, 0]
    assert_distribution(x, lambda v: np.interp(v, grid.numpy(), cdf))
    # E|u|^2 of the kernels in d = 3
    of_kernel = {
        "gaussian": 3.0, "tophat": 3 / 5, "epanechnikov": 3 / 7, "exponential": 12.0, "linear": 2 / 5
    }[kernel]  # fmt: skip
    kde = neighbors.KernelDensity(bandwidth=0.8, kernel=kernel).fit([[1.0, -2.0, 0.5]])
    apart = stk.from_sklearn(kde).draw(n, Noise(4, n)) - torch.tensor([1.0, -2.0, 0.5])
    assert_mean(apart.square().sum(1, keepdim=True), [0.8**2 * of_kernel])


def test_a_wrong_norm_or_radius_would_be_found(monkeypatch):
    """Mutants: the ball's volume of one dimension less; distances without the power of the dimension."""
    true = adapter._log_norm
    monkeypatch.setattr(adapter, "_log_norm", lambda kernel, d: true(kernel, d + 1))
    with pytest.raises(AssertionError):
        test_an_estimates_density_is_its_own("linear", 5)
    monkeypatch.setattr(adapter, "_log_norm", true)
    monkeypatch.setattr(adapter, "_RADII", {**adapter._RADII, "tophat": lambda u: u[:, 0]})
    with pytest.raises(AssertionError):
        test_draws_of_an_estimate_have_its_distribution("tophat")


def test_what_is_no_density_is_refused_with_the_way():
    with pytest.raises(InvalidArgument, match=r"fit\(data\)"):
        stk.from_(mixture.GaussianMixture(2))
    with pytest.raises(InvalidArgument, match="BayesianGaussianMixture"):
        stk.from_(mixture.BayesianGaussianMixture(n_components=2).fit(data(2)))
    with pytest.raises(InvalidArgument, match="euclidean"):
        stk.from_(neighbors.KernelDensity(metric="manhattan").fit(data(2)))
    weighted = {"p": 2, "w": [1.0, 9.0]}  # which scikit-learn normalises as if it had no weights
    with pytest.raises(InvalidArgument, match="euclidean"):
        stk.from_(neighbors.KernelDensity(metric="minkowski", metric_params=weighted).fit(data(2)))
    with pytest.raises(InvalidArgument, match=r"scoretk\.from_sklearn"):
        stk.sample(fitted("full"), chains=2)


HALF_CHANGED = {
    "weights that do not sum to 1": lambda gm: setattr(gm, "weights_", gm.weights_ * 1.1),
    "weights below 0": lambda gm: setattr(gm, "weights_", [1.5, 0.5, -1.0]),
    "other covariances": lambda gm: setattr(gm, "covariances_", gm.covariances_ * 1.1),
    "other precisions": lambda gm: setattr(
        gm, "precisions_cholesky_", gm.precisions_cholesky_ * 1.1
    ),
    "less means": lambda gm: setattr(gm, "means_", gm.means_[:1]),
    "less covariances": lambda gm: setattr(gm, "covariances_", gm.covariances_[:1]),
    "no covariances": lambda gm: delattr(gm, "covariances_"),
}


@pytest.mark.parametrize("change", HALF_CHANGED.values(), ids=HALF_CHANGED)
@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_a_mixture_that_was_changed_in_part_is_refused(kind, change):
    """Its `score_samples` is of the precisions and the weights as they are, its `sample` of the covariances."""
    gm = fitted(kind)
    change(gm)
    with pytest.raises(InvalidArgument, match=r"agree with each other.*fit it anew"):
        stk.from_sklearn(gm)


@pytest.mark.parametrize(("before", "after"), [("diag", "tied"), ("tied", "diag")])
def test_a_mixture_under_another_type_of_covariance_is_refused(before, after):
    gm = mixture.GaussianMixture(2, covariance_type=before, random_state=0).fit(data(2))
    gm.covariance_type = after
    with pytest.raises(InvalidArgument, match="agree with each other"):
        stk.from_sklearn(gm)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_a_mixture_that_was_changed_as_a_whole_is_its_own(kind):
    gm, x = fitted(kind), data(2)[::7]
    gm.means_, gm.weights_ = gm.means_ + 1e4, np.array([0.2, 0.3, 0.5])
    gm.covariances_, gm.precisions_cholesky_ = gm.covariances_ * 4, gm.precisions_cholesky_ / 2
    found = stk.from_sklearn(gm).log_prob(torch.as_tensor(x + 1e4))
    np.testing.assert_allclose(found, gm.score_samples(x + 1e4), rtol=1e-5)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_a_mixture_of_single_precision_and_of_named_columns_is_taken(kind):
    frame = pytest.importorskip("pandas").DataFrame(data(2).astype("float32"), columns=["a", "b"])
    frame["c"] = frame["a"] + np.linspace(0, 0.1, len(frame), dtype="float32")
    gm = mixture.GaussianMixture(2, covariance_type=kind, random_state=0).fit(frame)
    found = stk.from_sklearn(gm).log_prob(torch.as_tensor(gm.means_).double())
    np.testing.assert_allclose(
        found, gm.score_samples(frame.from_records(gm.means_, columns=frame.columns)), atol=0.1
    )


@pytest.mark.parametrize("options", [{"metric": "manhattan"}, {"metric_params": {"p": 3}}])
def test_a_metric_set_after_the_fit_is_not_that_of_the_density(options):
    kde = neighbors.KernelDensity(metric="minkowski").set_params(**options).fit(data(2))
    kde.set_params(metric="euclidean", metric_params=None)
    with pytest.raises(InvalidArgument, match="fitted with metric='euclidean'"):
        stk.from_sklearn(kde)


def test_what_the_next_fit_will_have_does_not_count():
    kde, x = estimate("gaussian"), data(2)[::9]
    kde.set_params(metric="manhattan", bandwidth=3.0)
    found = stk.from_sklearn(kde).log_prob(torch.as_tensor(x))
    np.testing.assert_allclose(found, kde.score_samples(x), rtol=1e-9)


def test_a_solver_samples_them():
    for made in (fitted("diag"), estimate("epanechnikov")):
        field = stk.from_sklearn(made)
        start = field.draw(4, Noise(0, 4))
        draws = stk.sample(field, stk.MALA(0.01), chains=4, steps=5, init=start)
        assert draws.x.dtype == torch.float64
        assert draws.failures == {}
