"""Combinators against exact mixtures in float64: guidance, mixtures, and products made right by Langevin corrections."""

import math

import pytest
import torch

import scoretk as stk
from scoretk.conformance import parametrize_with_checks
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields import resolve
from scoretk.fields.combine import classifier, classifier_guided, guided, mixture, product, tempered
from scoretk.fields.combine.powers import PoweredTimed
from scoretk.fields.convert import PREDICTIONS, convert
from scoretk.fields.gradient import grad_energy
from scoretk.models.targets.mixture import GaussianMixture, gaussian
from tests.evidence import mean_z, z_limit
from tests.marks import in_turn, named
from tests.test_fields import PATHS

SHAPES = [(), (2,), (1, 3, 2)]
TIMES = [0.0, 0.37, 0.9]


def close(got, truth, tolerance=1e-9):
    torch.testing.assert_close(got, truth, rtol=tolerance, atol=tolerance)


def points(shape, n=5, seed=0):
    return torch.randn(
        n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def some_mixture(shape, seed, components=2):
    weights = torch.arange(1.0, components + 1)
    return GaussianMixture(points(shape, components, seed), 0.4 + 0.2 * weights, weights)


def together(mixtures, weights):
    """The mixture of mixtures, as one."""
    return GaussianMixture(
        torch.cat([m.means for m in mixtures]),
        torch.cat([m.stds for m in mixtures]),
        torch.cat([w / sum(weights) * m.weights for m, w in zip(mixtures, weights, strict=True)]),
    )


def multiplied(f, g):
    """The normalised product of two mixtures: `N(m, a) N(n, b) = N(m; n, a + b) N((b m + a n) / (a + b), ab / (a + b))`."""
    dim = math.prod(f.event_shape)
    a, b = f.stds.square()[:, None], g.stds.square()[None]
    m, n = f.means.reshape(-1, 1, dim), g.means.reshape(1, -1, dim)
    weights = (
        f.weights[:, None]
        * g.weights
        * (a + b) ** (-dim / 2)
        * torch.exp(-(m - n).square().sum(2) / (2 * (a + b)))
    )
    means = (b[..., None] * m + a[..., None] * n) / (a + b)[..., None]
    return GaussianMixture(
        means.reshape(-1, *f.event_shape), (a * b / (a + b)).sqrt().flatten(), weights.flatten()
    )


# Mixtures


@pytest.mark.parametrize("shape", SHAPES)
def test_a_static_mixture_is_the_mixture(shape):
    parts, weights, x = (
        [some_mixture(shape, 1), some_mixture(shape, 2, 3)],
        [3.0, 1.0],
        points(shape),
    )
    truth, ours = together(parts, weights), mixture(parts, weights)
    unnormalised = [
        stk.Energy(lambda x, f=f, z=z: f.energy(x) + z, shape)
        for f, z in zip(parts, (5.0, -2.0), strict=True)
    ]
    told = mixture(unnormalised, weights, log_partition=[-5.0, 2.0])
    for field in (ours, told):
        assert field.event_shape == shape
        close(field.log_prob(x), truth.log_prob(x))
        close(field.energy(x), truth.energy(x))
        close(field.score(x), truth.score(x))
        for got, exact in zip(
            field.energy_and_grad(x), (truth.energy(x), -truth.score(x)), strict=True
        ):
            close(got, exact)
    wrong = mixture(
        unnormalised, weights, log_partition=[0.0, 0.0]
    )  # what mixing by energies alone would be
    assert float((wrong.score(x) - truth.score(x)).abs().max()) > 0.1


@pytest.mark.parametrize(("path", "shape"), in_turn(PATHS, SHAPES), ids=named)
def test_a_timed_mixture_is_the_noised_mixture(path, shape):
    parts, weights, x = (
        [some_mixture(shape, 1), some_mixture(shape, 2, 3)],
        [3.0, 1.0],
        points(shape),
    )
    truth, ours = (
        together(parts, weights).noised(path),
        mixture([m.noised(path) for m in parts], weights),
    )
    nested = mixture([mixture([parts[0].noised(path)], [2.0]), parts[1].noised(path)], weights)
    for t in (*TIMES, 1.0, torch.linspace(0, 1, len(x), dtype=torch.float64)):
        for field in (ours, nested):
            close(field.denoise(x, t), truth.denoise(x, t))
            close(field.score(x, t), truth.score(x, t))
            close(field.log_prob_at(x, t), truth.log_prob_at(x, t))
            close(field.at(t).energy(x), -truth.log_prob_at(x, t))
    fixed = sum(w / 4 * m.noised(path).score(x, 0.9) for m, w in zip(parts, weights, strict=True))
    assert float((fixed - truth.score(x, 0.9)).abs().max()) > 0.1  # weights in place of shares


def test_a_component_without_a_share_may_be_infinite():
    def box(x):
        return torch.where((x.abs() < 1).all(1), 0.0 * x.sum(1), math.inf)

    field = mixture(
        [stk.Energy(box, (2,)), gaussian()],
        [1.0, 1.0],
        log_partition=[math.log(4), math.log(2 * math.pi)],
    )
    x = torch.tensor([[2.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    close(field.score(x)[0], gaussian().score(x)[0])
    assert bool(field.score(x).isfinite().all())


def test_a_component_of_which_only_log_prob_is_known():
    class Known:
        event_shape = (2,)

        def log_prob(self, x):
            return gaussian().log_prob(x)

    x = points((2,))
    close(
        mixture([Known(), gaussian(mean=1.0)], [1, 1]).score(x),
        mixture([gaussian(), gaussian(mean=1.0)], [1, 1]).score(x),
    )


# Products: what they are at each time, and what they are not


@pytest.mark.parametrize("shape", SHAPES)
def test_combinations_commute_with_time(shape):
    f, g, x = some_mixture(shape, 1), some_mixture(shape, 2, 3), points(shape)
    close(multiplied(f, g).score(x), product(f, g).score(x))
    noised = [m.noised(stk.VP()) for m in (f, g)]
    for field, energy in (
        (product(*noised), lambda p, q: p + q),
        (tempered(noised[0], 2.5), lambda p, q: p / 2.5),
        (guided(noised[0], 3.0, noised[1]), lambda p, q: q + 3 * (p - q)),
    ):
        for t in (0.37, torch.linspace(0.1, 0.9, len(x), dtype=torch.float64)):
            truth = energy(*(-m.log_prob_at(x, t) for m in noised))
            close(field.at(t).energy(x), truth)
            close(stk.Energy(field.at(t).energy, shape).score(x), field.score(x, t))
            close(
                resolve(field.at(t), {"energy", "score"}).energy_and_grad(x)[1], -field.score(x, t)
            )


def test_products_start_from_the_product_of_the_bases():
    """Where x_0 is noise alone the score at t = 0 is that of the base."""
    f, g, x = (
        gaussian(mean=0.3).noised(stk.Linear()),
        gaussian(std=0.2).noised(stk.Linear()),
        points((2,)),
    )
    for field, std in (
        (product(f, g), 0.5**0.5),
        (tempered(f, 4.0), 2.0),
        (mixture([f, g], [1, 1]), 1.0),
    ):
        assert field.base.std == pytest.approx(std)
        close(field.base.score(x), field.score(x, 0.0))


WIDE = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], [0.6, 0.6], [0.5, 0.5])
TILTED = GaussianMixture([[-1.0, 0.8], [1.2, -0.4]], [0.5, 0.8], [0.7, 0.3])
PATH = stk.VP()
EXPERTS = product(WIDE.noised(PATH), TILTED.noised(PATH))
CHAINS = 4000


def statistics(x):
    """First and second moments of the plane and the share of a half-plane, `(n, 6)`."""
    a, b = x.unbind(1)
    return torch.stack([a, b, a * a, a * b, b * b, (a > 0).to(x)], 1)


def product_truth():
    """The exact product's statistics from its components."""
    exact = multiplied(WIDE, TILTED)
    w, m, s = exact.weights, exact.means, exact.stds[:, None] * torch.eye(2).double().flatten()
    second = (m[:, :, None] * m[:, None]).reshape(-1, 4) + exact.stds[:, None] * s
    share = torch.special.ndtr(m[:, 0] / exact.stds)
    per = torch.stack([m[:, 0], m[:, 1], second[:, 0], second[:, 1], second[:, 3], share], 1)
    return (w[:, None] * per).sum(0)


def off(x):
    """z scores of the statistics against the exact product."""
    return mean_z(statistics(x), product_truth()).abs()


def shortfall(solver):
    """How much of the exact variance along the first axis a solver's draws miss, and four of its standard errors."""
    x = stk.sample(EXPERTS, solver, chains=CHAINS, seed=1, dtype=torch.float64).final[:, 0]
    truth = product_truth()
    square = (x - truth[0]).square() / (truth[2] - truth[0] ** 2)
    return float(1 - square.mean()), z_limit(3) * float(square.std()) / CHAINS**0.5


def test_the_product_s_truth():
    exact = multiplied(WIDE, TILTED)
    draws = exact.draw(CHAINS, stk.Noise(7, CHAINS, dtype=torch.float64))
    assert off(draws).max() < z_limit(6)


LEVELS = torch.logspace(math.log10(20), -1, 20, dtype=torch.float64)


def walked(field, steps=10, chains=CHAINS):
    """MALA at each level from noise to data, each from the draws of the one before, and at t = 1."""
    x = field.base.draw(chains, stk.Noise(3, chains, dtype=torch.float64))
    for i, t in enumerate([*PATH.t(-2 * LEVELS.log()).tolist(), 1.0]):
        alpha, sigma = (float(v) for v in PATH(t)[:2])
        kernel = stk.MALA(0.4 * (0.15 * alpha**2 + sigma**2 / 2))
        x = stk.sample(field.at(t), kernel, init=x, steps=steps, keep="last", seed=10 + i).final
    return x


@pytest.fixture
def unchecked(monkeypatch):
    """Flows of products, which are refused, as they would be."""
    monkeypatch.setattr(PoweredTimed, "flows", True)


@pytest.mark.thorough
@pytest.mark.usefixtures("unchecked")
def test_metropolis_corrections_on_the_energies_of_each_time_make_a_product_right():
    """Six statistics within the limit of a false-alarm rate of 1e-6; plain sampling is more than two limits off."""
    assert off(walked(EXPERTS)).max() < z_limit(6)
    for plain in (stk.ProbabilityFlow(steps=32), stk.ReverseSDE("ancestral", steps=100)):
        draws = stk.sample(EXPERTS, plain, chains=CHAINS, seed=1, dtype=torch.float64).final
        assert off(draws).max() > 2 * z_limit(6), plain


@pytest.mark.thorough
@pytest.mark.parametrize(
    "wrong", ["mean of the experts", pytest.param("one expert", marks=pytest.mark.slow)]
)
def test_the_walk_catches_another_density(wrong):
    field = tempered(EXPERTS, 2.0) if wrong == "mean of the experts" else EXPERTS.fields[0]
    assert off(walked(field)).max() > 2 * z_limit(6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.slow
def test_langevin_corrections_move_the_draws_to_the_exact_product():
    """Plain sampling misses a quarter of the variance; ten corrections at each level all but what the step size accounts for."""
    plain, error = shortfall(stk.ReverseSDE("ancestral", steps=50))
    few, few_error = shortfall(stk.ReverseSDE("ancestral", steps=50, corrector=2, snr=0.3))
    many, many_error = shortfall(stk.ReverseSDE("ancestral", steps=50, corrector=10, snr=0.3))
    assert plain - error > 0.2
    assert few + few_error < plain - error
    assert abs(many) + many_error < 0.12
    annealed, annealed_error = shortfall(
        stk.AnnealedLangevin(
            tuple(LEVELS.tolist()), steps_per_level=12, step_size=0.25 * float(LEVELS[-1]) ** 2
        )
    )
    assert abs(annealed) + annealed_error < 0.15


# Guidance


def network(x, t, label=None):
    return torch.sin(3 * x) + (
        0 if label is None else label.reshape(-1, *[1] * (x.ndim - 1)) * torch.cos(x)
    )


def model(shape, path=PATH):
    return stk.Diffusion(network, shape, path, "noise")


LABEL = torch.linspace(-1, 2, 5, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_guidance_acts_in_its_interval_and_nowhere_else(shape):
    field, x = model(shape), points(shape)
    always = guided(field, 4.0, null={"label": None})
    within = guided(field, 4.0, null={"label": None}, interval=(0.5, 2.0))
    levels = torch.tensor([4.0, 2.0 - 1e-6, 1.0, 0.5 - 1e-6, 0.1], dtype=torch.float64)
    times = PATH.t(-2 * levels.log())
    got, on, plain = (f.predict(x, times, label=LABEL) for f in (within, always, field))
    inside = torch.tensor([False, True, True, False, False])
    assert torch.equal(got[inside], on[inside])
    assert torch.equal(got[~inside], plain[~inside])
    assert not torch.equal(plain[inside], on[inside])
    for i, t in enumerate(
        times.tolist()
    ):  # one time for all, without the unconditional model where it has no say
        one = within.predict(x[i : i + 1], t, label=LABEL[i : i + 1])
        close(one, got[i : i + 1])


def counted(shape):
    """`model`, with a value for no condition, and the sizes of the batches that it has been called with."""
    sizes, own = [], model(shape)

    def network(x, t, label):
        sizes.append(len(x))
        return own.net(x, t, label=label)

    return sizes, stk.Diffusion(network, shape, PATH, "noise")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("limited", [False, True])
def test_one_model_is_asked_once_on_a_batch_of_twice_the_size(shape, limited):
    """And never three times where some rows are in the interval, which two models are asked for twice."""
    sizes, field = counted(shape)
    ends = torch.tensor([0.6, 0.4], dtype=torch.float64)
    interval = tuple((PATH.sigma(ends) / PATH.alpha(ends)).tolist()) if limited else None
    apart = stk.Diffusion(
        lambda x, t: field.net(x, t, torch.full_like(t, 0.7)), shape, PATH, "noise"
    )
    both = guided(field, 4.0, null={"label": 0.7}, interval=interval)
    two = guided(field, 4.0, apart, interval=interval)
    x, times = points(shape), torch.linspace(0.3, 0.7, 5, dtype=torch.float64)
    for t in (0.5, times):
        for ask in ("predict", "score", "denoise"):
            sizes.clear()
            got = getattr(both, ask)(x, t, label=LABEL)
            assert sizes == [10]
            close(got, getattr(two, ask)(x, t, label=LABEL))
            assert sizes == [10, 5, 5]
        sizes.clear()
        close(both.at(t).score(x, label=LABEL), two.at(t).score(x, label=LABEL))
        assert sum(sizes) == 20


def test_a_static_field_is_asked_once_too():
    sizes = []

    def energy(x, label):
        sizes.append(len(x))
        return ((x - label[:, None]) ** 2).sum(1) / 2

    field, x = stk.Energy(energy, (2,)), points((2,))
    got = guided(field, 3.0, null={"label": 0.5}).score(x, label=LABEL)
    assert sizes == [10]
    close(got, -(x - 0.5 - 3 * (LABEL[:, None] - 0.5)))


@pytest.mark.parametrize("path", [stk.VP(), stk.Linear(), stk.EDM()], ids=named)
def test_models_that_predict_different_things_guide_each_other(path):
    """As if both predicted what the first does, of which a rescaled one depends on it."""
    x, t = points((3,)), torch.tensor([0.2, 0.5, 0.8, 0.35, 0.6], dtype=torch.float64)
    c, u = (gaussian(dim=3, mean=m, std=s).noised(path) for m, s in ((0.5, 0.7), (0.0, 2.0)))

    def told(field, predicts):
        return stk.Diffusion(
            lambda x, t: convert(field.predict(x, t), x, t, path, "data", predicts),
            (3,),
            path,
            predicts,
        )

    for first in PREDICTIONS:
        alike = guided(told(c, first), 2.5, told(u, first), rescale=0.3)
        for other in PREDICTIONS:
            field = guided(told(c, first), 2.5, told(u, other), rescale=0.3)
            close(field.denoise(x, t), alike.denoise(x, t))
            close(field.denoise(x, 0.4), alike.denoise(x, 0.4))
    seen = stk.LinearGaussian(torch.eye(3, dtype=torch.float64), x[0], 0.5)
    flow = told(u, "velocity")  # guidance by a measurement of a model of velocities
    posterior = stk.posterior(flow, seen)
    got = guided(posterior, 2.5, flow).denoise(x, t)
    close(got, flow.denoise(x, t) + 2.5 * (posterior.denoise(x, t) - flow.denoise(x, t)))


def test_outside_the_interval_the_unconditional_model_is_not_asked():
    def refuse(x, t):
        raise AssertionError

    field = guided(
        model((2,)), 4.0, stk.Diffusion(refuse, (2,), PATH, "noise"), interval=(0.5, 2.0)
    )
    field.predict(points((2,)), float(PATH.t(torch.tensor(-2 * math.log(3.0)))), label=LABEL)
    with pytest.raises(AssertionError):
        field.predict(points((2,)), float(PATH.t(torch.tensor(0.0))), label=LABEL)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_rescaled_guidance_has_the_conditional_s_standard_deviation(shape):
    field, x = model(shape), points(shape)

    def spread(phi):
        return (
            guided(field, 4.0, null={"label": None}, rescale=phi)
            .predict(x, 0.4, label=LABEL)
            .flatten(1)
            .std(1)
        )

    conditional = field.predict(x, 0.4, label=LABEL).flatten(1).std(1)
    close(spread(1.0), conditional)
    close(spread(0.3), 0.3 * conditional + 0.7 * spread(0.0))
    assert float((spread(0.0) - conditional).abs().min()) > 1e-3
    batch_wide = (
        spread(0.0)
        * field.predict(x, 0.4, label=LABEL).std()
        / guided(field, 4.0, null={"label": None}).predict(x, 0.4, label=LABEL).std()
    )
    assert (
        float((batch_wide - conditional).abs().max()) > 1e-2
    )  # what one norm for all rows would give


def test_rescaling_a_constant_leaves_it():
    flat = stk.Diffusion(
        lambda x, t, k=None: torch.ones_like(x) * (1 if k is None else 2), (3,), PATH, "noise"
    )
    got = guided(flat, 3.0, null={"k": None}, rescale=1.0).predict(points((3,)), 0.5, k=LABEL)
    assert torch.equal(got, torch.full_like(got, 4.0))


# A classifier that is exact: components of a mixture


def labelled(shape, path):
    """A mixture of two, its noised classes, and the exact `log p(class 1 or 0 | x_t)` by a label a row."""
    parts = [some_mixture(shape, 1), some_mixture(shape, 2, 3)]
    classes = [m.noised(path) for m in parts]
    whole = mixture(classes, [0.7, 0.3])

    def log_prob(x, t, label):
        assert t.shape == x.shape[:1]
        each = (
            torch.stack([c.log_prob_at(x, t) for c in classes], 1)
            + torch.tensor([0.7, 0.3], dtype=torch.float64).log()
        )
        return torch.log_softmax(each, 1).gather(1, label[:, None])[:, 0]

    return classes, whole, log_prob


ROWS = torch.tensor([0, 1, 1, 0, 1])


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_exact_classifier_gives_the_exact_class(path, shape):
    """Denoisers to the posterior's own error of 1e-8 near alpha = 0, on every path, at both ends, t a number or one a row."""
    classes, whole, log_prob = labelled(shape, path)
    field, x = classifier_guided(whole, log_prob, measured="label"), points(shape)
    for t in (*TIMES, 1.0, torch.linspace(0, 1, len(x), dtype=torch.float64)):
        scale = float(path.sigma(torch.as_tensor(t, dtype=torch.float64)).max().clamp(min=1))
        truth = torch.stack([c.denoise(scale * x, t) for c in classes], 1)[
            torch.arange(len(x)), ROWS
        ]
        close(field.denoise(scale * x, t, label=ROWS), truth, 1e-6)
    score, slope = whole.score(x, 0.6), classes[1].score(x, 0.6) - whole.score(x, 0.6)
    for weight in (0.0, 2.5):
        heavy = classifier_guided(whole, log_prob, weight, measured=["label"])
        close(heavy.score(x, 0.6, label=torch.ones(5, dtype=torch.int64)), score + weight * slope)


def test_classifier_guidance_in_an_interval_and_conditions_of_the_field():
    def aware(x, t, y):
        return -(x.sum(1) - y).square()

    field, x = model((2,)), points((2,))
    within = classifier_guided(field, aware, 2.0, measured={"y"}, interval=(0.5, 2.0))
    times = PATH.t(-2 * torch.tensor([4.0, 1.9, 1.0, 0.4, 0.1], dtype=torch.float64).log())
    cond = {"label": LABEL, "y": LABEL.flip(0)}
    plain = field.score(x, times, label=LABEL)
    pushed = plain - 4 * (x.sum(1) - cond["y"])[:, None]
    truth = torch.where(torch.tensor([0, 1, 1, 0, 0]).bool()[:, None], pushed, plain)
    close(within.score(x, times, **cond), truth)
    with pytest.raises(InvalidArgument, match="values for y"):
        within.score(x, 0.5, label=LABEL)


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["right", "half the gradient", "wrong sign"])
def test_draws_of_each_class_and_mutants(monkeypatch, method):
    """Chains of both classes in one run against each class's mean and mean square (limit for 1e-6)."""
    classes = [gaussian(mean=(1.0, 0.5), std=0.5), gaussian(mean=(-0.6, 0.0), std=0.7)]
    noised = [c.noised(PATH) for c in classes]

    def log_prob(x, t, label):
        each = torch.stack([c.log_prob_at(x, t) for c in noised], 1)
        return torch.log_softmax(each, 1).gather(1, label[:, None])[:, 0]

    if method == "half the gradient":
        monkeypatch.setattr(
            classifier, "grad_energy", lambda e, x: (None, grad_energy(e, x)[1] / 2)
        )
    if method == "wrong sign":
        monkeypatch.setattr(classifier, "grad_energy", lambda e, x: (None, -grad_energy(e, x)[1]))
    label = torch.arange(3000) % 2
    field = classifier_guided(mixture(noised, [0.5, 0.5]), log_prob, measured="label")
    draws = stk.sample(
        field,
        stk.ReverseSDE(steps=60),
        chains=3000,
        cond={"label": label},
        seed=2,
        dtype=torch.float64,
    )
    worst = 0.0
    for k, c in enumerate(classes):
        x, second = draws.final[label == k], c.means[0].square() + c.stds.square()
        z = mean_z(torch.cat([x, x.square()], 1), torch.cat([c.means[0], second]))
        worst = max(worst, float(z.abs().max()) / z_limit(8))
    assert worst < 1 if method == "right" else worst > 2


# Rows on their own, laws, errors


def combinations(shape):
    classes, whole, log_prob = labelled(shape, PATH)
    free = {"null": {"label": None}}
    static = [some_mixture(shape, 1), some_mixture(shape, 2, 3)]
    return {
        "static mixture": (mixture(static, [0.2, 0.8]), {}),
        "timed mixture": (whole, {}),
        "product": (product(*classes), {}),
        "guided": (guided(model(shape), 3.0, **free), {"label": LABEL}),
        "interval": (guided(model(shape), 3.0, **free, interval=(0.2, 1.5)), {"label": LABEL}),
        "classifier": (classifier_guided(whole, log_prob, 2.0, measured="label"), {"label": ROWS}),
    } | (
        {}
        if shape == ()
        else {"rescaled": (guided(model(shape), 3.0, **free, rescale=0.7), {"label": LABEL})}
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_no_row_depends_on_its_neighbours(shape):
    x, times = points(shape), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    for name, (field, cond) in combinations(shape).items():
        static = name.startswith("static")

        def score(rows, field=field, cond=cond, static=static):
            when = () if static else (times[rows],)
            return field.score(x[rows], *when, **{k: v[rows] for k, v in cond.items()})

        whole = score(slice(None))
        assert whole.shape == x.shape
        for i in range(5):
            torch.testing.assert_close(score([i])[0], whole[i], rtol=1e-12, atol=1e-12, msg=name)
        torch.testing.assert_close(
            score([3, 1, 4]), whole[[3, 1, 4]], rtol=1e-12, atol=1e-12, msg=name
        )


def test_conditions_are_split_with_the_batch():
    for name in ("guided", "interval", "rescaled", "classifier"):
        field, cond = combinations((2,))[name]
        run = {"chains": 5, "cond": cond, "seed": 3, "dtype": torch.float64}
        whole = stk.sample(field, stk.ReverseSDE(steps=8), **run)
        parts = stk.sample(field, stk.ReverseSDE(steps=8), batch=2, **run)
        torch.testing.assert_close(parts.final, whole.final, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.usefixtures("fewer_cases")
@parametrize_with_checks([f for n, (f, c) in combinations((2,)).items() if not c])
def test_combinations_obey_the_laws(model, check):
    check(model)


def log_none(x, t):
    return x


TIMED, STATIC = gaussian().noised(PATH), gaussian()
WRONG = {
    "fields": [
        lambda: mixture([], []),
        lambda: mixture([STATIC, gaussian(dim=3)], [1, 1]),
        lambda: mixture([3], [1]),
        lambda: mixture([STATIC, TIMED], [1, 1]),
        product,
        lambda: product("text"),
        lambda: mixture([TIMED, gaussian().noised(stk.Linear())], [1, 1]),
    ],
    "weights": [
        lambda: mixture([STATIC], [1, 2]),
        lambda: mixture([STATIC], [-1]),
        lambda: mixture([STATIC], 1.0),
        lambda: mixture([STATIC], [math.inf]),
    ],
    "log_partition": [
        lambda: mixture([STATIC], [1], [math.nan]),
        lambda: mixture([TIMED], [1], [0.0]),
    ],
    "interval": [
        lambda: guided(TIMED, 2, TIMED, interval=(1, 1)),
        lambda: guided(TIMED, 2, TIMED, interval=(-1, 1)),
        lambda: guided(TIMED, 2, TIMED, interval=3),
        lambda: guided(TIMED, 2, TIMED, interval=("a", "b")),
        lambda: guided(STATIC, 2, STATIC, interval=(0, 1)),
    ],
    "rescale": [
        lambda: guided(TIMED, 2, TIMED, rescale=1.5),
        lambda: guided(TIMED, 2, TIMED, rescale=None),
        lambda: guided(STATIC, 2, STATIC, rescale=0.5),
        lambda: guided(model(()), 2, model(()), rescale=0.5),
    ],
    "unconditional": [
        lambda: guided(TIMED, 2, gaussian(dim=3).noised(PATH)),
        lambda: guided(TIMED, 2),
        lambda: guided(TIMED, 2, STATIC),
        lambda: guided(TIMED, 2, gaussian().noised(stk.Linear())),
    ],
    "field": [lambda: classifier_guided(STATIC, log_none)],
    "log_prob": [
        lambda: classifier_guided(TIMED, 3),
        lambda: classifier_guided(TIMED, log_none).score(points((2,)), 0.5),
    ],
    "weight": [
        lambda: classifier_guided(TIMED, log_none, math.nan),
        lambda: guided(TIMED, "2", TIMED),
    ],
}


@pytest.mark.parametrize(
    ("name", "call"), [(n, call) for n, calls in WRONG.items() for call in calls]
)
def test_errors_name_the_argument(name, call):
    with pytest.raises(InvalidArgument, match=name):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: mixture([stk.Energy(lambda x: x.square().sum(1), (2,)), STATIC], [1, 1]),
        lambda: mixture([stk.Score(lambda x: -x, (2,))], [1], [0.0]),
        lambda: mixture([TIMED, model((2,))], [1, 1]),
        lambda: mixture([product(TIMED, TIMED)], [1]),
    ],
)
def test_what_has_no_normalised_density_is_refused_with_the_reason(call):
    with pytest.raises(MissingCapability, match="normalised densities"):
        call()


def test_a_product_of_scores_has_no_energy_at_any_time():
    field = product(TIMED, model((2,)))
    assert "energy" not in stk.fields.offers(field.at(0.5))
    with pytest.raises(MissingCapability, match="energy"):
        field.at(0.5).energy(points((2,)))
    with pytest.raises(MissingCapability, match="Gaussian path"):
        classifier_guided(stk.Velocity(torch.sin, (2,), base=points((2,))), log_none)
