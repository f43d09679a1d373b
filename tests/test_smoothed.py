"""Smoothed static fields against exact noised mixtures: in reported standard errors, which are themselves held to the truth."""

import math
from dataclasses import fields as dataclass_fields

import pytest
import torch

import scoretk as stk
from scoretk.fields.smoothed import Smoothed, smoothed
from scoretk.models.targets.analytic import Semicircle
from scoretk.models.targets.mixture import GaussianMixture, gaussian, ring_mixture
from tests.evidence import assert_mean, mean_z, z_limit
from tests.marks import slow_but

GAUSSIAN, RING = gaussian(dim=2, mean=[0.7, -0.3], std=0.5), ring_mixture()
PATHS = [stk.VP(), stk.Linear(), stk.VE(0.01, 20.0)]
KINDS = {"monte-carlo": {"samples": 512}, "langevin": {"samples": 128, "steps": 16}}


class NoEnergy(Smoothed):
    """Mutant: the weights without the energy."""

    def _propose(self, target):
        return (
            *super()._propose(target)[:1],
            torch.zeros(len(target.center), dtype=torch.float64),
            None,
        )


class NoAlpha(Smoothed):
    """Mutant: the likelihood N(x; x_1, sigma^2), without alpha."""

    def _posterior(self, x, t):
        unscaled = stk.VE(0.01, 1.0)
        return Smoothed._posterior(
            _with(self, Smoothed, path=unscaled),
            x,
            float(unscaled.t(-2 * self.path.sigma(t).log())),
        )


class NoReversal(Smoothed):
    """Mutant: Langevin steps that the weights leave out."""

    def _anneal(self, target):
        u, _, pull = super()._anneal(target)
        return u, torch.zeros(len(u), dtype=torch.float64), pull


def _with(field, kind, **changes):
    return kind(
        **{f.name: changes.get(f.name, getattr(field, f.name)) for f in dataclass_fields(Smoothed)}
    )


def noisy(target, path, t, n, seed=7):
    """Exact draws of `p_t`."""
    noise = stk.Noise(seed, n, dtype=torch.float64)
    x = target.draw(n, noise).double()
    return path.alpha(t) * x + path.sigma(t) * noise.normal(0, stk.Stream.PROBE, target.event_shape)


def worst_z(field, target, times=(0.05, 0.5, 0.8, 0.97), n=24):
    """The largest error of the denoiser in reported standard errors."""
    zs = []
    for t in times:
        x = noisy(target, field.path, t, n)
        estimate = field.estimate(x, t)
        zs.append(
            (estimate.mean - target.noised(field.path).denoise(x, t)).flatten(1).norm(dim=1)
            / estimate.stderr
        )
    return float(torch.cat(zs).max())


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [GAUSSIAN, RING], ids=["gaussian", "ring"])
def test_the_denoiser_is_right_within_its_reported_error(target, kind, path):
    reference = (0.0, 1.5) if target is RING else ([0.0, 0.0], [1.0, 0.8])
    reference = tuple(torch.tensor(v) if isinstance(v, list) else v for v in reference)
    assert worst_z(smoothed(target, path, kind, reference=reference, **KINDS[kind]), target) < 5


@pytest.mark.parametrize(
    ("mutant", "kind"),
    [(NoEnergy, "monte-carlo"), (NoAlpha, "monte-carlo"), (NoReversal, "langevin")],
)
def test_wrong_weights_and_wrong_likelihoods_are_caught(mutant, kind):
    """Langevin steps without their weight are caught where they are too few to arrive."""
    right = smoothed(GAUSSIAN, stk.VP(), kind, samples=512, steps=2)
    assert worst_z(right, GAUSSIAN) < 5
    assert worst_z(_with(right, mutant), GAUSSIAN) > 7


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_reported_error_is_that_of_many_seeds(kind):
    """Mean over seeds of squared error less its report: none. A report of half the error is caught."""
    x, t, truth = noisy(RING, stk.VP(), 0.8, 6), 0.8, RING.noised(stk.VP())
    exact, off, reported = truth.denoise(x, t), [], []
    for seed in range(60):
        settings = {"samples": 1024} if kind == "monte-carlo" else {"samples": 256, "steps": 8}
        estimate = smoothed(
            RING, stk.VP(), kind, seed=seed, reference=(0.0, 1.5), **settings
        ).estimate(x, t)
        off.append((estimate.mean - exact).square().sum(1).mean())
        reported.append(estimate.stderr.square().mean())
    off, reported = torch.stack(off)[:, None], torch.stack(reported)[:, None]
    assert mean_z(off - reported, 0.0).abs() < z_limit()
    assert mean_z(off - reported / 4, 0.0).abs() > z_limit()


@pytest.mark.slow
def test_the_bias_falls_as_the_samples_grow():
    """Self-normalisation biases by O(1/K): with 16 times the samples well under a quarter of it is left."""
    target = gaussian(dim=1, mean=1.2, std=0.4)
    x, t = torch.tensor([[0.5]], dtype=torch.float64), 0.4
    exact = target.noised(stk.VP()).denoise(x, t)

    def errors(k):
        return torch.cat(
            [smoothed(target, samples=k, seed=s).denoise(x, t) - exact for s in range(300)]
        )

    few, many = errors(4), errors(64)
    assert mean_z(few, 0.0).abs() > z_limit()
    noise = float(many.std()) / math.sqrt(len(many))
    assert many.mean().abs() < few.mean().abs() / 4 + z_limit() * noise


def test_one_sample_with_all_the_weight_is_not_reported_as_certain():
    """A narrow target far from the reference: the delta method would say 0, the jackknife says how little is known."""
    target = gaussian(dim=2, mean=3.0, std=0.05)
    x = torch.zeros(5, 2, dtype=torch.float64)
    estimate = smoothed(target, samples=64).estimate(x, 0.0)
    assert bool((estimate.effective < 1.1).all())
    assert bool((estimate.stderr > 0.1).all())


@pytest.mark.parametrize("kind", KINDS)
def test_end_points(kind):
    field = smoothed(GAUSSIAN, stk.Linear(), kind, samples=512, steps=8)
    x = torch.tensor([[0.3, -1.7], [2.0, 0.1]], dtype=torch.float64)
    assert torch.equal(field.denoise(x, 1.0), x)
    assert torch.equal(field.error(x, 1.0), torch.zeros(2, dtype=torch.float64))
    at_noise = field.estimate(x, 0.0)
    assert torch.equal(at_noise.mean[0], at_noise.mean[1])  # of the data alone
    assert (at_noise.mean[0] - GAUSSIAN.means[0]).norm() < 5 * at_noise.stderr[0]
    assert bool(field.velocity(x, 0.0).isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (1, 2, 3)], ids=["scalars", "images"])
def test_shapes_dtypes_conditions_and_rows_alone(shape, kind):
    generator = torch.Generator().manual_seed(1)
    means = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    target = GaussianMixture(means, torch.tensor([0.5, 0.7]), torch.tensor([0.4, 0.6]))
    field = smoothed(
        stk.Energy(lambda x, shift: target.energy(x) + shift, shape),
        stk.VP(),
        kind,
        samples=64,
        steps=4,
    )
    x, t = (
        noisy(target, stk.VP(), 0.7, 5),
        torch.tensor([0.1, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64),
    )
    rows = {"shift": torch.arange(5.0, dtype=torch.float64)}
    whole = field.estimate(x, t, **rows)
    assert [part.shape for part in whole] == [x.shape, (5,), (5,)]
    z = (whole.mean - target.noised(stk.VP()).denoise(x, t)).reshape(5, -1).norm(dim=1)[
        :4
    ] / whole.stderr[:4]
    assert z.max() < 5
    for i in range(5):
        alone = field.estimate(x[i : i + 1], float(t[i]), shift=rows["shift"][i : i + 1])
        for part, row in zip(whole, alone, strict=True):
            assert torch.equal(part[i : i + 1], row)
    single = field.estimate(x.float(), t, shift=rows["shift"].float())
    assert single.mean.dtype == torch.float32
    torch.testing.assert_close(single.mean.double(), whole.mean, rtol=0, atol=2e-4)
    assert field.denoise(x[:0], 0.5, shift=rows["shift"][:0]).shape == (0, *shape)


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_smooth_in_x(kind):
    """Its derivative by autograd, which `log_prob` traces, is that of finite differences: no accept jumps in between."""
    field = smoothed(GAUSSIAN, stk.VP(), kind, samples=32, steps=4)
    x = torch.tensor([[0.4, -0.2]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: field.denoise(y, 0.6), (x,), eps=1e-5, atol=1e-6)


def test_seeds_are_pure_and_apart():
    x = noisy(RING, stk.VP(), 0.6, 4)
    values = [smoothed(RING, seed=s, samples=32).denoise(x, 0.6) for s in (1, 1, 2)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_outside_the_support_there_is_no_weight():
    field = smoothed(Semicircle(), stk.Linear(), samples=2048, reference=(0.2, 0.5))
    estimate = field.estimate(torch.zeros(1, 1, dtype=torch.float64), 0.0)
    assert estimate.mean.abs() < 5 * estimate.stderr
    assert bool((estimate.effective < 2048).all())
    stepped = smoothed(
        Semicircle(), stk.Linear(), "langevin", samples=256, steps=8, reference=(0.2, 0.5)
    )
    at = stepped.estimate(torch.zeros(1, 1, dtype=torch.float64), 0.0)
    assert at.mean.abs() < 5 * at.stderr
    assert bool(
        field.denoise(torch.full((1, 1), 3.0), 1.0).isnan().all()
    )  # no density: no mean, and no number


class TestScoreOnly:
    def test_unadjusted_steps_find_the_posterior(self):
        """On a Gaussian the mean of the antithetic chains relaxes without noise; the report covers what is left of it."""
        truth, score = GAUSSIAN.noised(stk.VP()), stk.Score(GAUSSIAN.score, (2,))
        for t in (0.05, 0.5, 0.9, 0.99):
            x = noisy(GAUSSIAN, stk.VP(), t, 8)
            off = [
                (
                    smoothed(score, stk.VP(), "langevin", samples=32, steps=s).denoise(x, t)
                    - truth.denoise(x, t)
                ).norm()
                for s in (2, 40)
            ]
            assert off[1] < off[0]
            assert off[1] < 0.1
            short = smoothed(score, stk.VP(), "langevin", samples=32, steps=2).estimate(x, t)
            assert bool(
                ((short.mean - truth.denoise(x, t)).norm(dim=1) <= short.stderr * 1.01).all()
            )

    def test_a_score_that_is_nan_is_not_walked_over(self):
        field = smoothed(
            stk.Score(lambda x: torch.where(x > 1, torch.nan, -x), (1,)),
            stk.VP(),
            "langevin",
            samples=64,
            steps=4,
        )
        assert bool(field.denoise(torch.full((1, 1), 0.5), 0.5).isnan().all())


def flow_allowance(field, target, std, factor=2.0):
    """How far errors of the reported size move the flow's end, all in one direction, for data N(mean, std^2).

    In `y = x/alpha`, `l = sigma/alpha` it is `dy/dl = (y - D) / l`, and a change at level l reaches the end (l = 0)
    diminished by `sqrt(std^2 / (std^2 + l^2))`; `factor` times the root mean square over rows.
    """
    level = torch.logspace(-2, 1, 31, dtype=torch.float64)
    rms = []
    for t in field.path.t(-2 * level.log()).tolist():
        rms.append(float(field.error(noisy(target, field.path, t, 40), t).square().mean().sqrt()))
    reach = torch.tensor(rms) * (std**2 / (std**2 + level**2)).sqrt()
    return factor * float(torch.trapezoid(reach, level.log()))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "path", slow_but([stk.VP(), stk.Linear()], stk.VP()), ids=lambda p: type(p).__name__
)
def test_the_probability_flow_samples_a_static_energy(path):
    """Mean and root mean square, each off by at most the allowance (Minkowski) beside the draws' own standard error."""
    field = smoothed(stk.Energy(GAUSSIAN.energy, (2,)), path, samples=256, seed=3)
    allowance = flow_allowance(field, GAUSSIAN, 0.5)
    assert allowance < 0.25
    z = []
    for served in (field, _with(field, NoEnergy)):
        draws = stk.sample(
            served, stk.ProbabilityFlow("heun", steps=10), chains=300, seed=5, dtype=torch.float64
        )
        assert draws.failures == {}
        off = draws.final - GAUSSIAN.means[0]
        mean, size = off.mean(0).norm(), off.square().sum(1).mean().sqrt()
        noise = z_limit(4) * float(off.std()) * math.sqrt(2 / len(off))
        z.append(
            (
                float(mean) / (allowance + noise),
                abs(float(size) - 0.5 * math.sqrt(2)) / (allowance + noise),
            )
        )
    assert max(z[0]) < 1
    assert max(z[1]) > 1.3  # weights without the energy: draws of the reference


@pytest.mark.thorough
def test_annealed_langevin_samples_a_static_energy():
    """The root mean square radius of the ring, with the worst level's reported error as allowance."""
    path = stk.VP()
    solver = stk.AnnealedLangevin(
        levels=torch.logspace(0.7, -1.3, 9, dtype=torch.float64).tolist(), steps_per_level=4
    )
    field = smoothed(stk.Energy(RING.energy, (2,)), path, samples=256, reference=(0.0, 1.5), seed=2)
    allowance = max(
        float(field.error(noisy(RING, path, t, 40), t).square().mean().sqrt())
        for t in (0.05, 0.3, 0.6, 0.8, 0.9, 0.99)
    )
    assert allowance < 0.4
    radius = math.sqrt(4 + 2 / 16)
    missed = []
    for served in (field, _with(field, NoEnergy, std=torch.tensor(0.5, dtype=torch.float64))):
        draws = stk.sample(served, solver, chains=200, seed=8, dtype=torch.float64)
        assert draws.failures == {}
        size = draws.final.square().sum(1).mean().sqrt()
        missed.append(
            abs(float(size) - radius)
            / (allowance + z_limit(2) * float(draws.final.norm(dim=1).std()) / math.sqrt(200))
        )
    assert missed[0] < 1
    assert missed[1] > 1


class TestVelocityOnly:
    """A velocity alone, from the standard normal base, is served by Langevin through its score."""

    target = RING
    exact = RING.noised(stk.Linear())
    field = stk.Velocity(exact.velocity, (2,))

    def test_its_static_field_near_the_data_is_served_by_ula(self):
        """One step from exact draws at t = .98 leaves E|x|^2 where the step's own order h^2 allows; half the score does not."""
        t, h, n = 0.98, 2e-3, 20_000
        x = noisy(self.target, stk.Linear(), t, n)
        at = self.field.at(t)
        torch.testing.assert_close(
            at.score(x[:50]), self.exact.score(x[:50], t), rtol=1e-6, atol=1e-6
        )
        assert_mean((at.score(x) * x).sum(1), -2.0, "Stein: E[x . score] = -d")
        draws = stk.sample(at, stk.ULA(h), init=x, steps=1, seed=4)
        second_order = h**2 * float(at.score(x).square().sum(1).mean())
        gain = draws.final.square().sum(1) - x.square().sum(1)
        assert abs(float(gain.mean())) < second_order + z_limit() * float(gain.std()) / math.sqrt(n)
        assert mean_z((at.score(x) * x).sum(1) / 2, -2.0).abs() > z_limit()

    @pytest.mark.thorough
    def test_annealed_langevin_gives_the_ring(self):
        levels = torch.logspace(1.3, -2, 24, dtype=torch.float64).tolist()
        draws = stk.sample(
            self.field,
            stk.AnnealedLangevin(levels=levels, steps_per_level=6),
            chains=2000,
            seed=1,
            dtype=torch.float64,
        )
        assert draws.failures == {}
        sector = (
            torch.atan2(draws.final[:, 1], draws.final[:, 0]) / (math.pi / 4)
        ).round().long() % 8
        assert_mean(
            torch.nn.functional.one_hot(sector, 8).double(), [1 / 8] * 8, "share of each mode"
        )
        # the last level's steps are not exact: 3 per cent of the radius is what they may add
        assert abs(float(draws.final.norm(dim=1).mean()) - 2.0156) < 0.06


class TestRefused:
    def test_what_is_timed_or_has_too_little(self):
        with pytest.raises(stk.MissingCapability, match="timed already"):
            smoothed(RING.noised(stk.VP()))
        with pytest.raises(stk.MissingCapability, match="langevin"):
            smoothed(stk.Score(RING.score, (2,)))

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [
            ({"path": "VP"}, "path"),
            ({"samples": 7}, "samples"),
            ({"samples": 2}, "samples"),
            ({"samples": 8.0}, "samples"),
            ({"estimator": "langevin", "steps": 0}, "steps"),
            ({"step_size": 0.0}, "step_size"),
            ({"seed": -1}, "seed"),
            ({"reference": 3.0}, "reference"),
            ({"reference": (0.0, 0.0)}, "reference"),
            ({"reference": (0.0, -1.0)}, "reference"),
            ({"reference": torch.zeros(3)}, "reference"),
            ({"reference": torch.zeros(5, 2)}, "reference"),
            ({"reference": (torch.zeros(3), 1.0)}, "reference"),
            ({"reference": torch.zeros(1, 2)}, "reference"),
        ],
    )
    def test_bad_arguments(self, arguments, name):
        with pytest.raises(stk.InvalidArgument, match=name):
            smoothed(RING, **arguments)
        with pytest.raises(stk.UnknownName, match="langevin"):
            smoothed(RING, estimator="langevins")
        with pytest.raises(stk.InvalidArgument, match="static field"):
            smoothed(lambda x: x)


def test_a_reference_from_samples():
    data = GAUSSIAN.draw(4000, stk.Noise(1, 4000, dtype=torch.float64))
    field = smoothed(GAUSSIAN, reference=data)
    torch.testing.assert_close(field.mean, GAUSSIAN.means[0], rtol=0, atol=0.05)
    estimate = field.estimate(noisy(GAUSSIAN, stk.VP(), 0.1, 10), 0.1)
    assert bool((estimate.effective > 240).all())  # of 256: the reference is the data's law
