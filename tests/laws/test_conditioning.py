"""Posteriors, guidance and mixtures on a Gaussian prior, where each formula can be written down in matrices."""

import math

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.errors import first_line
from scoretk.fields.operators import Mask
from scoretk.fields.paths import VE, VP
from scoretk.fields.posterior import DPS, MMPS, TMPD, DiffPIR, PiGDM, Replacement
from scoretk.fields.posterior.systems import conjugate_gradients

D, M, STD, SPREAD, SCALE = 3, 2, 0.7, 1.6, 0.8
_rng = np.random.default_rng(0)
_root = _rng.normal(size=(D, D))
C, MEAN = _root @ _root.T / 2 + np.eye(D) / 4, _rng.normal(size=D)
A, Y = _rng.normal(size=(M, D)), _rng.normal(size=M)
X = _rng.normal(size=(2, D))
PATH, T = VP(0.2, 8.0), 0.45
ALPHA, SIGMA = float(PATH.alpha(T)), float(PATH.sigma(T))
GAIN = ALPHA * C @ np.linalg.inv(ALPHA**2 * C + SIGMA**2 * np.eye(D))
DATA = MEAN + (X - ALPHA * MEAN) @ GAIN.T
"""`E[x_1 | x]` of the prior N(MEAN, C)."""
V = SIGMA**2 / ALPHA * GAIN
"""Its covariance given x."""


def tensor(value):
    return torch.tensor(np.asarray(value), dtype=torch.float64)


def denoiser(x, t, **cond):
    alpha, sigma = PATH.alpha(t)[:, None, None], PATH.sigma(t)[:, None, None]
    c, eye = tensor(C), torch.eye(D, dtype=x.dtype)
    gain = alpha * c @ torch.linalg.inv(alpha**2 * c + sigma**2 * eye)
    off = x - alpha[:, 0] * tensor(MEAN)
    return tensor(MEAN) + (gain @ off[..., None])[..., 0]


PRIOR = stk.Diffusion(denoiser, (D,), PATH, "data")


def shifts(method, likelihood=None):
    """What a method adds to the denoiser of the prior, `(rows, D)`."""
    likelihood = stk.LinearGaussian(tensor(A), tensor(Y), STD) if likelihood is None else likelihood
    field = stk.posterior(PRIOR, likelihood, method)
    return field.denoise(tensor(X), T).numpy() - DATA


def test_the_prior_is_what_is_written_down():
    np.testing.assert_allclose(PRIOR.denoise(tensor(X), T).numpy(), DATA, rtol=1e-10)


def test_mmps_solves_with_the_covariance_of_the_prior():
    system = STD**2 * np.eye(M) + A @ V @ A.T
    right = (Y - DATA @ A.T) @ np.linalg.inv(system) @ A @ V
    np.testing.assert_allclose(shifts(MMPS(iterations=M)), right, rtol=1e-8)


def isotropic():
    """The spread of PiGDM, v, and the solution of `(s^2 + v A A^T) w = y - A D`, pulled back."""
    v = SIGMA**2 * SPREAD**2 / (ALPHA**2 * SPREAD**2 + SIGMA**2)
    system = STD**2 * np.eye(M) + v * A @ A.T
    return v, (Y - DATA @ A.T) @ np.linalg.inv(system) @ A


def test_pigdm_and_replacement_solve_with_an_isotropic_one():
    v, pulled = isotropic()
    np.testing.assert_allclose(shifts(PiGDM(SPREAD)), pulled @ V, rtol=1e-8)
    np.testing.assert_allclose(shifts(Replacement(SPREAD)), v * pulled, rtol=1e-8)


def test_tmpd_divides_by_row_sums_of_the_covariance_of_y():
    """Negative sums are none; and the diagonal alone, or the whole matrix, is something else."""
    covariance = A @ V @ A.T
    pulled = (Y - DATA @ A.T) / (STD**2 + covariance.sum(1).clip(0)) @ A @ V
    np.testing.assert_allclose(shifts(TMPD()), pulled, rtol=1e-8)
    wrong = (Y - DATA @ A.T) / (STD**2 + np.diag(covariance)) @ A @ V
    assert np.abs(wrong / pulled - 1).max() > 0.01
    assert np.abs(shifts(MMPS(iterations=M)) / pulled - 1).max() > 0.01


def test_tmpd_takes_a_negative_sum_for_none():
    """Two measurements of one thing with opposed signs: the sum of one row is below 0, and counts as 0."""
    opposed = np.stack([A[0], -3 * A[0]])
    sums = (opposed @ V @ opposed.T).sum(1)
    assert sums[0] < 0 < sums[1]
    pulled = (Y - DATA @ opposed.T) / (STD**2 + np.array([0.0, sums[1]])) @ opposed @ V
    likelihood = stk.LinearGaussian(tensor(opposed), tensor(Y), STD)
    np.testing.assert_allclose(shifts(TMPD(), likelihood), pulled, rtol=1e-8)


def test_tmpd_is_exact_for_one_measured_number():
    one = stk.LinearGaussian(tensor(A[:1]), tensor(Y[:1]), STD)
    np.testing.assert_allclose(shifts(TMPD(), one), shifts(MMPS(), one), rtol=1e-10)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_diffpir_is_the_minimum_of_both_distances(weight):
    """By the normal equations; as the limit of `Replacement` for wide data where the weight is 1."""
    system = A.T @ A / STD**2 + weight * ALPHA**2 / SIGMA**2 * np.eye(D)
    right = (Y - DATA @ A.T) @ A / STD**2 @ np.linalg.inv(system)
    np.testing.assert_allclose(shifts(DiffPIR(weight)), right, rtol=1e-8)
    wide = shifts(Replacement(1e4))
    close = np.allclose(wide, right, rtol=1e-5)
    assert close == (weight == 1.0)


def test_diffpir_is_replacement_where_its_weight_makes_up_for_the_spread():
    weight = 1 + SIGMA**2 / (ALPHA * SPREAD) ** 2
    np.testing.assert_allclose(shifts(DiffPIR(weight)), shifts(Replacement(SPREAD)), rtol=1e-8)


def dps(entries):
    """DPS: a step up the likelihood of a length that its norm and so many entries set."""
    residual = Y - DATA @ A.T
    pulled = residual @ A
    v = isotropic()[0]
    norm = np.sqrt(STD**2 * np.square(residual).sum(1) + v * np.square(pulled).sum(1))
    return SCALE * math.sqrt(entries) / norm[:, None] * pulled @ V


def test_dps_is_scaled_by_the_number_of_measurements():
    found = shifts(DPS(SCALE, SPREAD))
    np.testing.assert_allclose(found, dps(M), rtol=1e-8)
    assert np.abs(found / dps(D) - 1).min() > 0.1, "the dimension of x"


def test_dps_climbs_a_likelihood_that_is_no_linear_one_by_a_newton_step_along_its_slope():
    def log_likelihood(x):
        return -((x @ tensor(A).T - tensor(Y)) ** 2).sum(1) / (2 * STD**2)

    slope = (Y - DATA @ A.T) @ A / STD**2
    p = slope @ V
    rise = (slope * p).sum(1)
    bend = np.square(p @ A.T).sum(1) / STD**2
    right = SCALE * (rise / (rise + bend))[:, None] * p
    np.testing.assert_allclose(shifts(DPS(SCALE, SPREAD), log_likelihood), right, rtol=1e-6)


def test_dps_looks_as_far_as_the_prior_spreads_and_cuts_a_step_to_quarters():
    """Of a likelihood that goes up and down the curvature is a secant over the reach, and a step too long is cut."""

    def log_likelihood(x):
        return 30 * torch.cos(3 * x).sum(1)

    def value(x):
        return 30 * np.cos(3 * x).sum(1)

    def gradient(x):
        return -90 * np.sin(3 * x)

    g = gradient(DATA)
    p = g @ V
    rise, length = (g * p).sum(1), np.sqrt(np.square(p).sum(1))
    reach = math.sqrt(isotropic()[0] * D)
    part = np.minimum(reach / length, 1.0)
    bend = ((g - gradient(DATA + part[:, None] * p)) * p).sum(1) / part
    share = rise / (rise + np.maximum(bend, 0.0))
    kept = np.ones(2)
    for _ in range(12):
        s = kept * share
        gain = value(DATA + s[:, None] * p) - value(DATA) - s**2 * rise / 2
        kept = np.where(gain >= 0, kept, kept / 4)
    assert kept.min() < 1
    right = (kept * share)[:, None] * p
    np.testing.assert_allclose(shifts(DPS(1.0, SPREAD), log_likelihood), right, rtol=1e-6)


def plain_conjugate_gradients(matrix, b, iterations):
    """Hestenes and Stiefel's, all iterates and their residuals."""
    w, r, p = np.zeros_like(b), b.copy(), b.copy()
    iterates = [w]
    for _ in range(iterations):
        step = (r @ r) / (p @ matrix @ p)
        w, after = w + step * p, r - step * matrix @ p
        p, r = after + (after @ after) / (r @ r) * p, after
        iterates.append(w)
    return iterates


def test_conjugate_gradients_return_the_iterate_of_least_residual():
    """Residuals do not fall steadily where a system is ill-conditioned: the best so far is what counts."""
    spectrum, n = np.geomspace(1e-2, 1e2, 8), 8
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(n, n)))[0]
    matrix, b = turn @ np.diag(spectrum) @ turn.T, turn @ np.geomspace(1e-1, 1.0, n)[::-1]
    iterates = plain_conjugate_gradients(matrix, b, 6)
    sizes = [np.linalg.norm(b - matrix @ w) for w in iterates]
    rising = 0
    for k in range(1, 7):
        best = int(np.argmin(sizes[: k + 1]))
        rising += best != k
        found = conjugate_gradients(lambda w: w @ tensor(matrix), tensor(b)[None], k, 1e-4)[
            0
        ].numpy()
        np.testing.assert_allclose(found, iterates[best], rtol=1e-6, atol=1e-12)
    assert rising, "the last iterate would pass"


def test_a_posterior_before_its_earliest_time_is_asked_at_that_time():
    """`x alpha / sigma^2` is what x says of the data: it is kept where the prior is asked later."""
    path = VP(0.1, 60.0)
    prior = stk.Diffusion(lambda x, t: x * t[:, None], (2,), path, "data")
    likelihood = stk.LinearGaussian(torch.eye(2, dtype=torch.float64), torch.ones(2).double(), 1e3)
    field = stk.posterior(prior, likelihood, "replacement")
    x, t = torch.tensor([[0.4, -1.1]], dtype=torch.float64), 0.0
    later = float(path.t(math.log(torch.finfo(torch.float64).eps) / 2))
    assert later > 0
    tilt = [float(path.alpha(s)) / float(path.sigma(s)) ** 2 for s in (t, later)]
    moved = x * tilt[0] / tilt[1]
    torch.testing.assert_close(field.denoise(x, t), field.denoise(moved, later), rtol=1e-9, atol=0)


def predicting(value):
    return lambda x, t, **cond: value.expand_as(x) * (1 + x)


def test_guidance_goes_from_the_unconditional_field_through_the_other():
    c, u, w, rescale = tensor([2.0, -1.0, 0.5]), tensor([0.3, 0.7, -0.2]), 2.5, 0.4
    fields = [stk.Diffusion(predicting(v), (3,), VE(0.1, 10.0), "noise") for v in (c, u)]
    x = tensor(X)
    g = u * (1 + x) + w * (c * (1 + x) - u * (1 + x))
    torch.testing.assert_close(stk.guided(fields[0], w, fields[1]).noise(x, 0.4), g)
    ratio = ((c * (1 + x)).std(1) / g.std(1))[:, None]
    found = stk.guided(fields[0], w, fields[1], rescale=rescale).noise(x, 0.4)
    torch.testing.assert_close(found, rescale * g * ratio + (1 - rescale) * g)


NULLS = {
    "a whole number": (10, None, torch.int64),
    "a whole number for another kind": (10, torch.int32, torch.int32),
    "a whole number for a float": (10, torch.float32, torch.float32),
    "a number": (0.25, None, torch.float64),
    "a number of a kind": (torch.tensor(0.25), None, torch.float32),
    "a number for another kind": (0.25, torch.float32, torch.float32),
}


@pytest.mark.parametrize("name", NULLS)
def test_what_stands_for_no_condition_is_of_its_kind(name):
    """A label that a network looks up stays a whole number; a number is of the kind of x where the caller has none."""
    null, given, kind = NULLS[name]
    heard = []

    def net(x, t, *, label=None):
        heard.append(label)
        return x

    field = stk.guided(stk.Diffusion(net, (3,), VE(0.1, 10.0), "noise"), 2.0, null={"label": null})
    cond = {} if given is None else {"label": torch.ones(len(X), dtype=given)}
    field.noise(tensor(X), 0.4, **cond)
    free = heard[-1][-len(X) :]
    assert free.dtype == kind
    assert free.tolist() == [float(null)] * len(X)


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_what_stands_for_no_condition_is_one_row_however_many_there_are(rows):
    """Of as many entries as the batch has rows it was taken for an entry a row."""
    heard = []

    def net(x, t, *, emb=None):
        heard.append(emb)
        return x

    null = torch.tensor([1.0, 2.0, 3.0])
    field = stk.guided(stk.Diffusion(net, (3,), VE(0.1, 10.0), "noise"), 2.0, null={"emb": null})
    for cond in ({}, {"emb": torch.zeros(rows, 3)}):
        field.noise(tensor(X)[:1].expand(rows, 3), 0.4, **cond)
        assert torch.equal(heard[-1][-rows:], null.expand(rows, 3))


@pytest.mark.parametrize(
    ("t", "calls"), [(0.4, 1), (torch.tensor(0.4), 1), (torch.full((len(X),), 0.4), 2)]
)
def test_guidance_at_one_time_takes_one_call_of_twice_the_rows(t, calls):
    """A time a row is of so many rows, and no batch of another size can be asked for."""
    heard = []

    def net(x, t, *, label):
        heard.append(len(x))
        return x * label[:, None]

    field = stk.guided(stk.Diffusion(net, (3,), VE(0.1, 10.0), "noise"), 2.0, null={"label": 0.0})
    static = field.at(t)
    static.score(tensor(X), label=torch.ones(len(X), dtype=torch.float64))
    assert heard == ([2 * len(X)] if calls == 1 else [len(X)] * 2)


def test_guidance_acts_in_its_interval_of_noise_levels_its_upper_end_included():
    path = VE(0.5, 8.0)
    fields = [stk.Diffusion(predicting(tensor([v] * 3)), (3,), path, "noise") for v in (2.0, 1.0)]
    low, high = 1.0, float(path.sigma(0.25) / path.alpha(0.25))
    field = stk.guided(fields[0], 3.0, fields[1], interval=(float(path.sigma(0.75)), high))
    x, acts = tensor(X), []
    for t in (0.1, 0.25, 0.5, 0.75, 0.9):
        found = field.noise(x, t)
        rows = field.noise(x, torch.full((2,), t, dtype=torch.float64))
        torch.testing.assert_close(found, rows)
        acts.append(bool(torch.allclose(found, 4 * (1 + x))))
        assert acts[-1] or torch.allclose(found, 2 * (1 + x))
    assert acts == [False, True, True, False, False], low


def test_a_classifier_moves_the_denoiser_by_its_slope():
    w, a = 1.7, tensor([0.4, -1.2, 0.9])
    field = stk.classifier_guided(PRIOR, lambda x, t: (x @ a) * (1 + t), w)
    right = DATA + w * SIGMA**2 / ALPHA * (a.numpy() * (1 + T))
    np.testing.assert_allclose(field.denoise(tensor(X), T).numpy(), right, rtol=1e-9)


def test_powers_and_products_start_from_the_power_of_their_bases():
    temperature, path = 1.6, VE(0.1, 10.0)
    prior = stk.Diffusion(lambda x, t: 0 * x, (3,), path, "data")
    for field, count in ((stk.tempered(prior, temperature), 1), (stk.product(prior, prior), 2)):
        weight = (1 / temperature) if count == 1 else 1.0
        std = (weight * count / 10.0**2) ** -0.5
        assert field.base.std == pytest.approx(std)
        x = tensor(X)
        torch.testing.assert_close(field.score(x, 0.3), weight * count * prior.score(x, 0.3))


def test_a_mixture_shares_by_density():
    w, log_z = (0.25, 0.75), (0.3, -1.1)
    energies = [lambda x: (x**2).sum(1) / 2, lambda x: (x - 1).abs().pow(3).sum(1)]
    field = stk.mixture([stk.Energy(e, (3,)) for e in energies], w, log_z)
    x = tensor(X)
    parts = torch.stack(
        [wi * torch.exp(-e(x) - z) for wi, e, z in zip(w, energies, log_z, strict=True)]
    )
    torch.testing.assert_close(field.log_prob(x), parts.sum(0).log())
    y = x.clone().requires_grad_()
    value = sum(
        wi * torch.exp(-e(y) - z) for wi, e, z in zip(w, energies, log_z, strict=True)
    ).log()
    torch.testing.assert_close(field.score(x), torch.autograd.grad(value.sum(), y)[0])


def test_dps_goes_all_the_way_where_a_likelihood_curves_upwards():
    def log_likelihood(x):
        return (x**2).sum(1) / 50

    g = DATA / 25
    right = g @ V
    np.testing.assert_allclose(shifts(DPS(1.0, SPREAD), log_likelihood), right, rtol=1e-6)


def test_a_gaussian_likelihood_is_normalised():
    law = stk.LinearGaussian(tensor(A), tensor(Y), STD)
    right = torch.distributions.Normal(tensor(X) @ tensor(A).T, STD).log_prob(tensor(Y)).sum(1)
    torch.testing.assert_close(law.log_likelihood(tensor(X)), right)


def test_weights_of_a_mixture_are_shares():
    laws = [
        torch.distributions.Independent(torch.distributions.Normal(torch.full((3,), m), 1.0), 1)
        for m in (0.0, 2.0)
    ]
    x = tensor(X).float()
    found = stk.mixture([stk.from_distribution(v) for v in laws], (1, 3)).log_prob(x)
    right = (laws[0].log_prob(x).exp() / 4 + laws[1].log_prob(x).exp() * 3 / 4).log()
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3), (2, 3, 1)])
def test_a_mask_takes_events_of_its_own_shape_alone(shape):
    mask = Mask(torch.ones(2, 3, dtype=torch.bool))
    assert mask(torch.zeros(4, 2, 3)).shape == (4, 6)
    with pytest.raises(stk.InvalidArgument, match="shape of an event"):
        mask(torch.zeros(4, *shape))


@pytest.mark.parametrize("method", ["energy", "score"])
@pytest.mark.parametrize("support", [None, torch.distributions.constraints.positive])
def test_what_is_measured_goes_to_the_likelihood_alone_under_a_map_too(support, method):
    """A prior and a likelihood, each with a condition of its own."""

    def energy(x, scale):
        return x.square().sum(1) / scale

    def joint(x, scale, y):
        return energy(x, scale) + (x.sum(1) - y).square()

    def log_likelihood(x, y):
        return -(x.sum(1) - y).square()

    prior, whole = (
        field if support is None else stk.constrained(field, support)
        for field in (stk.Energy(fn, (3,)) for fn in (energy, joint))
    )
    found = stk.posterior(prior, log_likelihood, measured="y")
    x, cond = tensor(X).abs(), {"scale": tensor([1.5, 2.5]), "y": tensor([0.3, -0.4])}
    torch.testing.assert_close(getattr(found, method)(x, **cond), getattr(whole, method)(x, **cond))


def _failing(error):
    def fails(*_):
        raise error

    return fails


ERRORS = (RuntimeError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError)
OF_OPERATORS = {
    "operator": lambda f: stk.LinearGaussian(f, tensor(Y), STD),
    "adjoint": lambda f: stk.LinearGaussian(lambda x: x[:, :M], tensor(Y), STD, adjoint=f),
}


@pytest.mark.parametrize("text", ["", "\n", "of the user's", "of the user's\nin two lines"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", OF_OPERATORS)
def test_whatever_a_map_of_a_measurement_raises_is_told_by_its_name(name, error, text):
    """With what the error says, where it says anything."""
    with pytest.raises(stk.InvalidArgument, match=f"^{name}: expected") as raised:
        stk.posterior(PRIOR, OF_OPERATORS[name](_failing(error(text))))
    assert isinstance(raised.value.__cause__, error)
    assert text.strip().partition("\n")[0] in str(raised.value)


def test_the_first_line_of_an_error_is_what_it_says_or_its_type():
    for text, line in (
        ("a", "a"),
        ("a\nb", "a"),
        ("\n \nb", "b"),
        ("", "ValueError"),
        ("\n", "ValueError"),
    ):
        assert first_line(ValueError(text)) == line
