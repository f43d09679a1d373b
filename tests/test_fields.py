"""Paths, conversions, wrappers and combinators against the exact mixture, in float64, at both ends."""

import math

import pytest
import torch

import scoretk as stk
from scoretk.errors import InvalidArgument
from scoretk.fields import PREDICTIONS, GaussianPath, coefficients, convert, resolve
from scoretk.models.targets.mixture import GaussianMixture, ring_mixture
from tests.marks import in_turn, named

PATHS = [
    stk.Linear(),
    stk.Interpolant(),
    stk.Cosine(),
    stk.VP(),
    stk.SubVP(),
    stk.VE(0.01, 50.0),
    stk.EDM(),
    stk.Tabulated(torch.linspace(0.999, 0.005, 50, dtype=torch.float64)),
]
OF_EACH_KIND = (stk.Interpolant, stk.VP, stk.VE, stk.Tabulated)
"""Paths that end in noise alone, all but so, and that grow, and one with seams."""
TIMES = (0.0, 0.013, 0.31, 0.77, 0.995, 1.0)
SHAPES = {"vectors, batch equal to d": (4, (4,)), "images": (3, (2, 3, 3)), "scalars": (5, ())}


def mixture(shape):
    generator = torch.Generator().manual_seed(1)
    means = torch.randn((3, *shape), generator=generator, dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.3, 0.5, 0.7]), torch.tensor([0.2, 0.3, 0.5]))


def truth(field, x, t):
    """All five predictions of the exact field, by their definitions, where they have a finite value."""
    path, data = field.path, field.denoise(x, t)
    alpha, sigma, dalpha, _ = (float(c) for c in path(t))
    score = field.score(x, t)
    noise = -sigma * score
    values = {"data": data, "score": score, "noise": noise, "v": alpha * noise - sigma * data}
    # sigma' e = -sigma sigma' score, finite also where sigma' is not
    values["velocity"] = dalpha * data - float(path.sigma_dsigma(t)) * score
    return values


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
class TestPaths:
    def test_derivatives(self, path):
        t = torch.tensor(
            [0.013, 0.11, 0.31, 0.51, 0.77, 0.97], dtype=torch.float64
        )  # between the tabulated knots
        h = 1e-6
        point = path(t)
        for name in ("alpha", "sigma"):
            f = getattr(path, name)
            numeric = (f(t + h) - f(t - h)) / (2 * h)
            torch.testing.assert_close(getattr(point, f"d{name}"), numeric, rtol=1e-6, atol=1e-7)
        product = (path.sigma(t + h) ** 2 - path.sigma(t - h) ** 2) / (4 * h)
        torch.testing.assert_close(path.sigma_dsigma(t), product, rtol=1e-6, atol=1e-7)

    def test_inverse(self, path):
        t = torch.tensor([0.013, 0.1, 0.31, 0.5, 0.77, 0.97], dtype=torch.float64)
        torch.testing.assert_close(path.t(path.log_snr(t)), t, rtol=0, atol=1e-9)

    def test_ends(self, path):
        alpha, sigma, *_ = path(1.0)
        assert float(alpha) == pytest.approx(1.0, abs=1e-12)
        if not isinstance(path, stk.VE | stk.EDM):
            assert float(sigma) == 0.0
        assert float(path.log_snr(0.2)) < float(path.log_snr(0.8))


@pytest.mark.parametrize(("path", "shape"), in_turn(PATHS, SHAPES), ids=named)
def test_every_conversion_is_exact_or_says_that_it_is_singular(path, shape):
    batch, event = SHAPES[shape]
    exact = mixture(event).noised(path)
    generator = torch.Generator().manual_seed(2)
    singular = 0
    for t in TIMES:
        x = torch.randn((batch, *event), generator=generator, dtype=torch.float64)
        if float(path.alpha(t)) == 0:
            x = x * float(path.sigma(t))
        values = truth(exact, x, t)
        for source in PREDICTIONS:
            for target in PREDICTIONS:
                a, b = coefficients(path, t, source, target)
                if not bool(a.isfinite() & b.isfinite()):
                    singular += 1
                    assert t in (0.0, 1.0)
                    with pytest.raises(stk.SingularConversion):
                        convert(values[source], x, t, path, source, target)
                    continue
                got = convert(values[source], x, t, path, source, target)
                scale = 1 + values[target].abs().max()
                torch.testing.assert_close(
                    got / scale,
                    values[target] / scale,
                    rtol=0,
                    atol=2e-8,
                    msg=f"{source}->{target} at {t}",
                )
                rows = torch.full((batch,), t, dtype=torch.float64)
                by_rows = convert(values[source], x, rows, path, source, target)
                torch.testing.assert_close(by_rows / scale, got / scale, rtol=0, atol=1e-9)
    ends = [c for t in (0.0, 1.0) for c in (float(path.alpha(t)), float(path.sigma(t)))]
    assert (singular > 0) == (0.0 in ends)


@pytest.mark.parametrize(
    ("source", "target"), [("data", "velocity"), ("noise", "data"), ("score", "data")]
)
def test_singular_ends_of_the_linear_path(source, target):
    t = 1.0 if source == "data" else 0.0
    x = torch.ones(2, 2)
    with pytest.raises(stk.SingularConversion, match=f"{target} is not determined by {source}"):
        convert(x, x, t, stk.Linear(), source, target)


@pytest.mark.parametrize("path", PATHS[:5], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_diffusion_of_any_prediction_is_the_same_field(path, predicts):
    exact = ring_mixture().noised(path)
    field = stk.Diffusion(lambda x, t: truth(exact, x, float(t[0]))[predicts], (2,), path, predicts)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = truth(exact, x, 0.4)
    for name, method in (
        ("data", "denoise"),
        ("score", "score"),
        ("velocity", "velocity"),
        ("noise", "noise"),
        ("v", "v"),
    ):
        torch.testing.assert_close(
            getattr(field, method)(x, 0.4), values[name], rtol=1e-6, atol=1e-7
        )
    torch.testing.assert_close(field.at(0.4).score(x), values["score"], rtol=1e-6, atol=1e-7)


def test_ring_numbers():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    ring = ring_mixture()
    expected = torch.tensor([-31.0652883442, -1.1447298714, -3.8898923862], dtype=torch.float64)
    torch.testing.assert_close(ring.log_prob(x), expected, rtol=0, atol=1e-9)
    smoothed = ring.noised(stk.VE(1.0, 80.0))
    expected = torch.tensor([-3.7808546294, -3.4390567908, -3.4056976966], dtype=torch.float64)
    torch.testing.assert_close(smoothed.log_prob_at(x, 1.0), expected, rtol=0, atol=1e-9)
    point = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(
        smoothed.denoise(point, 1.0),
        torch.tensor([[0.8297117380, 0.0]], dtype=torch.float64),
        rtol=0,
        atol=1e-9,
    )


def test_energy_and_score_agree():
    ring = ring_mixture()
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(stk.Energy(ring.energy, (2,)).score(x), ring.score(x))
    assert not stk.Energy(ring.energy, (2,)).score(x).requires_grad


def test_tempered_and_product():
    ring, other = ring_mixture(), ring_mixture(components=3)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(stk.tempered(ring, 2.5).energy(x), ring.energy(x) / 2.5)
    torch.testing.assert_close(stk.tempered(ring, 2.5).score(x), ring.score(x) / 2.5)
    both = stk.product(ring, other)
    torch.testing.assert_close(both.energy(x), ring.energy(x) + other.energy(x))
    torch.testing.assert_close(both.score(x), ring.score(x) + other.score(x))
    timed = stk.product(ring.noised(stk.VP()), other.noised(stk.VP()))
    torch.testing.assert_close(
        timed.score(x, 0.5),
        ring.noised(stk.VP()).score(x, 0.5) + other.noised(stk.VP()).score(x, 0.5),
    )
    with pytest.raises(stk.MissingCapability, match="energy"):
        stk.product(ring, stk.Score(ring.score, (2,))).energy(x)
    with pytest.raises(stk.InvalidArgument, match="one Gaussian path"):
        stk.product(ring.noised(stk.VP()), ring.noised(stk.Linear()))
    with pytest.raises(stk.InvalidArgument, match="temperature"):
        stk.tempered(ring, 0.0)


def test_guidance_weight_one_means_none():
    path = stk.VP()

    def net(x, t, label=None):
        return -x + (0 if label is None else label[:, None].to(x))

    field = stk.Diffusion(net, (2,), path, "noise")
    x, label = torch.ones(3, 2), torch.tensor([0.0, 1.0, 2.0])
    conditional, free = field.score(x, 0.3, label=label), field.score(x, 0.3)
    for weight in (0.0, 1.0, 3.0):
        guided = stk.guided(field, weight, null={"label": None})
        torch.testing.assert_close(
            guided.score(x, 0.3, label=label), free + weight * (conditional - free)
        )
    apart = stk.guided(
        field, 3.0, unconditional=stk.Diffusion(lambda x, t: -x, (2,), path, "noise")
    )
    torch.testing.assert_close(apart.score(x, 0.3, label=label), free + 3 * (conditional - free))


def test_from_timesteps_sees_integers_and_the_right_ones():
    seen = []
    steps = 10
    table = torch.linspace(0.99, 0.01, steps)

    def net(x, k):
        seen.append(int(k[0]))
        assert k.dtype == torch.int64
        return torch.zeros_like(x)

    field = stk.from_timesteps(net, table, (2,))
    stk.sample(field, stk.ProbabilityFlow("euler", steps=steps), chains=3)
    assert seen == list(range(steps - 1, -1, -1))
    for k in (0, 4, 9):
        assert float(field.path.alpha(1 - (k + 1) / steps)) == pytest.approx(
            math.sqrt(float(table[k])), rel=1e-6
        )


def test_reversed_time_and_sigma_adapters_give_the_same_flow():
    exact = ring_mixture().noised(stk.VE(0.01, 20.0))
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    by_sigma = stk.from_sigmas(
        lambda x, sigma: ring_mixture()._denoise(x, torch.ones_like(sigma), sigma),
        (2,),
        stk.VE(0.01, 20.0),
    )
    torch.testing.assert_close(by_sigma.velocity(x, 0.4), exact.velocity(x, 0.4))
    backwards = stk.from_reversed_time(
        lambda x, s: -exact.velocity(x, 1 - s), (2,), stk.VE(0.01, 20.0)
    )
    torch.testing.assert_close(backwards.velocity(x, 0.4), exact.velocity(x, 0.4))


class TestFromDistribution:
    def test_energy_score_and_draws_agree(self):
        mixture = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.tensor([0.25, 0.75])),
            torch.distributions.MultivariateNormal(
                torch.tensor([[0.0, 1.0], [4.0, 5.0]]), torch.eye(2).expand(2, 2, 2)
            ),
        )
        field = stk.from_distribution(mixture)
        n = 20_000
        x = field.draw(n, stk.Noise(0, n))
        assert (
            abs(float((x[:, 0] < 2).float().mean()) - 0.25)
            < 5 * math.sqrt(0.25 * 0.75 / n) + 0.03 * 0.25
        )
        stein = (field.score(x) * x).sum(1)
        assert abs(float(stein.mean()) + 2) < 5 * float(stein.std()) / math.sqrt(n)
        torch.testing.assert_close(field.energy(x), -mixture.log_prob(x))

    @pytest.mark.parametrize(
        "distribution",
        [
            torch.distributions.Gamma(2.0, 1.0),
            torch.distributions.Uniform(-1.0, 2.0),
            torch.distributions.Beta(2.0, 3.0),
        ],
        ids=lambda d: type(d).__name__,
    )
    def test_outside_the_support_the_energy_is_infinite_and_the_inside_keeps_its_gradient(
        self, distribution
    ):
        field = stk.from_distribution(distribution)
        x = torch.tensor([0.5, -7.0])
        assert field.energy(x)[1] == torch.inf
        assert bool(torch.isfinite(field.score(x)[0]))
        torch.testing.assert_close(field.energy(x)[0], -distribution.log_prob(torch.tensor(0.5)))

    def test_a_batch_of_distributions_is_refused_with_the_fix(self):
        with pytest.raises(stk.InvalidArgument, match=r"Independent\(distribution, 1\)"):
            stk.from_distribution(torch.distributions.Normal(torch.zeros(3), torch.ones(3)))


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.bool])
@pytest.mark.parametrize("array", [False, True], ids=["tensors", "arrays"])
@pytest.mark.parametrize("whose", ["fn", "grad"])
def test_an_answer_of_whole_numbers_is_refused_whoever_gives_it(whose, array, kind):
    """A gradient that was cut to integers is no gradient."""

    def whole(found):
        found = torch.as_tensor(found).to(kind)
        return found.numpy() if array else found

    functions = {"fn": lambda x: (x**2).sum(1) / 2, "grad": lambda x: x}
    own = functions[whose]
    functions[whose] = lambda x: whole(own(x))
    field = stk.Energy(functions["fn"], (2,), grad=functions["grad"])
    with pytest.raises(stk.InvalidArgument, match=str(kind)):
        field.score(torch.ones(4, 2))


class TestResolve:
    def test_missing_capabilities_say_what_would_bridge(self):
        ring = ring_mixture()
        cases = [
            (stk.Score(ring.score, (2,)), stk.MALA(0.1), "ULA"),
            (ring.noised(stk.VP()), stk.ULA(0.1), r"field.at\(t\)"),
            (ring, stk.ProbabilityFlow(), "static field"),
            (
                stk.Velocity(lambda x, t: x, (2,), base=torch.zeros(4, 2)),
                stk.ProbabilityFlow("dpmpp_2m"),
                "Gaussian path",
            ),
        ]
        for field, solver, bridge in cases:
            with pytest.raises(stk.MissingCapability, match=bridge):
                stk.sample(field, solver, chains=2)

    def test_a_plain_object_is_a_field(self):
        class Theirs:
            event_shape = (2,)

            def energy(self, x):
                return x.square().sum(1) / 2

        torch.testing.assert_close(
            resolve(Theirs(), {"score"}).score(torch.ones(3, 2)), -torch.ones(3, 2)
        )

    def test_condition_rows_reach_the_model(self):
        field = stk.Energy(lambda x, center: (x - center).square().sum(1) / 2, (2,))
        center = torch.arange(6.0)[:, None].expand(6, 2) * 10
        draws = stk.sample(
            field, stk.MALA(0.5), chains=6, steps=200, warmup=200, cond={"center": center}, batch=4
        )
        assert float((draws.x.mean(1) - center).abs().max()) < 1.0


def test_wrong_shapes_from_a_model_are_named():
    with pytest.raises(stk.InvalidArgument, match="energy: expected a tensor of shape"):
        stk.sample(stk.Energy(lambda x: x.sum(), (2,)), stk.ULA(0.1), chains=3, steps=2)
    with pytest.raises(stk.InvalidArgument, match="noise: expected a tensor of shape"):
        stk.sample(
            stk.Diffusion(lambda x, t: x[:, :1], (2,)), stk.ProbabilityFlow(steps=2), chains=3
        )


@pytest.mark.parametrize(
    "table",
    [[0.9, 0.1], [0.99, 0.98, 0.2, 0.19, 1e-5], torch.linspace(0.9999, 2e-4, 1000).double()],
)
def test_a_table_is_met_exactly_and_smooth_between(table):
    path = stk.Tabulated(table)
    known = torch.as_tensor(table, dtype=torch.float64)
    k = torch.arange(len(known))
    at = 1 - (k + 1).double() / len(known)
    torch.testing.assert_close(path.alpha(at) ** 2, known, rtol=1e-12, atol=0)
    assert float(path.sigma(1.0)) == 0
    t = torch.linspace(0, 1, 2003, dtype=torch.float64)
    assert bool((path.alpha(t).diff() > 0).all()), "monotone, whatever the table"
    inside = t[1:-1]
    h = 1e-6
    torch.testing.assert_close(
        (path.alpha(inside + h) - path.alpha(inside - h)) / (2 * h),
        path.dalpha(inside),
        rtol=1e-5,
        atol=1e-6,
    )
    log_snr = 2 * (path.alpha(inside).log() - path.sigma(inside).log())
    torch.testing.assert_close(path.t(log_snr), inside, rtol=0, atol=1e-11)
    knots = at[at > 0]
    jump = path.dalpha(knots + 1e-9) - path.dalpha(knots - 1e-9)
    assert float(jump.abs().max()) < 1e-4 * float(
        path.dalpha(t).max()
    )  # a table of straight pieces jumps


def offering(*names):
    """An object with an event shape and these methods alone, each of which would answer."""
    methods = {name: lambda self, x, *t: x for name in names}
    return type("Own", (), {"event_shape": (2,), **methods})()


WITHOUT_A_LAW = {
    (): r"energy\(x\), minus a log density, or score\(x\)",
    ("log_prob",): r"Energy\(lambda x: -model\.log_prob\(x\), event_shape\)",
    ("draw", "log_prob"): r"Energy\(lambda x: -model\.log_prob\(x\), event_shape\)",
    ("velocity",): r"scoretk\.Velocity\(model\.velocity, event_shape\)",
    ("denoise",): r"scoretk\.Diffusion\(model\.denoise, event_shape, path, 'data'\)",
}
ASKED_FOR_A_LAW = {
    "sample": lambda field: stk.sample(field, chains=2),
    "sample by a score": lambda field: stk.sample(field, stk.ULA(0.1), chains=2),
    "sample by an energy": lambda field: stk.sample(field, stk.MALA(0.1), chains=2),
    "log_partition": stk.log_partition,
    "log_prob": lambda field: stk.log_prob(field, torch.zeros(2, 2)),
    "posterior": lambda field: stk.posterior(field, lambda x: x.sum(1)),
}


@pytest.mark.parametrize("ask", ASKED_FOR_A_LAW)
@pytest.mark.parametrize("names", WITHOUT_A_LAW, ids=str)
def test_an_object_without_energy_and_score_is_told_how_it_gets_one(names, ask):
    """And that what it has is a score is said of no object that has none."""
    if ask == "log_prob" and "log_prob" in names:
        return
    with pytest.raises(stk.MissingCapability, match=WITHOUT_A_LAW[names]) as raised:
        ASKED_FOR_A_LAW[ask](offering(*names))
    assert "score alone" not in str(raised.value)
    assert "score without" not in str(raised.value)


class Root(GaussianPath):
    """A path of somebody's own: alpha = t, sigma^2 = 1 - t."""

    dtype = torch.float64

    def _time(self, t):
        return t if isinstance(t, torch.Tensor) else torch.tensor(t, dtype=self.dtype)

    def alpha(self, t):
        return self._time(t)

    def sigma(self, t):
        return (1 - self._time(t)).sqrt()

    def dalpha(self, t):
        return torch.ones_like(self._time(t))

    def dsigma(self, t):
        return -0.5 / self.sigma(t)

    def t(self, log_snr):
        snr = self._time(log_snr).exp()
        return (torch.sqrt(snr**2 + 4 * snr) - snr) / 2


def test_a_path_of_ones_own_leads_to_the_data():
    path, deviation = Root(), 0.4

    def denoiser(x, t):
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return 1.5 + gain * (x - 1.5 * alpha)

    field = stk.Diffusion(denoiser, (2,), path, predicts="data")
    x = stk.sample(field, stk.ProbabilityFlow(steps=32), chains=64, dtype=torch.float64).final
    start = field.base.draw(64, stk.Noise(0, 64, dtype=torch.float64))
    torch.testing.assert_close(x, 1.5 + deviation * start, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: stk.Diffusion(lambda x, t: x, (2,), path),
        lambda path: stk.smoothed(stk.Energy(lambda x: (x**2).sum(1), (2,)), path),
        lambda path: stk.grids.karras(path, 8),
    ],
    ids=["diffusion", "smoothed", "grid"],
)
def test_a_path_of_ones_own_that_loses_digits_is_refused_and_what_is_none_told_the_way(make):
    class Single(Root):
        dtype = torch.float32

    make(Root())
    with pytest.raises(InvalidArgument, match=r"path.alpha\(0.5\): expected a tensor in float64"):
        make(Single())
    with pytest.raises(InvalidArgument, match=r"derives from scoretk.fields.GaussianPath"):
        make("vp")


IN_TIME = {
    "diffusion": stk.Diffusion(lambda x, t: x, (2,)),
    "velocity": stk.Velocity(lambda x, t: x, (2,)),
    "of another base": stk.Velocity(lambda x, t: x, (2,), base=torch.ones(3, 2)),
    "tempered": stk.tempered(stk.Diffusion(lambda x, t: x, (2,)), 2.0),
    "guided": stk.guided(
        stk.Velocity(lambda x, t: x, (2,)), 2.0, stk.Velocity(lambda x, t: -x, (2,))
    ),
    "smoothed": stk.smoothed(stk.Energy(lambda x: (x**2).sum(1), (2,))),
    "posterior": stk.posterior(
        stk.Diffusion(lambda x, t: x, (2,)),
        stk.LinearGaussian(torch.ones(1, 2), torch.ones(1), 0.5),
    ),
}


@pytest.mark.parametrize("name", IN_TIME)
@pytest.mark.parametrize("t", [-0.1, 1.5, 999, math.nan])
def test_a_number_that_is_no_time_is_refused(name, t):
    field, x = IN_TIME[name], torch.ones(3, 2)
    for ask in (lambda: field.velocity(x, t), lambda: field.at(t).score(x)):
        with pytest.raises(InvalidArgument, match=r"t: expected a time in \[0, 1\]"):
            ask()
    field.velocity(x, 0.5)
