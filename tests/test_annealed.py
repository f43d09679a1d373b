"""NCSN and NCSNv2: levels and step size from the data, against closed forms and published numbers; the run's exact moments."""

import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scipy.stats import norm

import scoretk as stk
from scoretk.fields.combine.powers import exponents
from scoretk.fields.resolve import resolve
from scoretk.models.digits.data import load_digits
from scoretk.models.targets.mixture import gaussian, ring_mixture
from scoretk.solvers import annealed
from scoretk.solvers.annealed import (
    AnnealedLangevin,
    largest_distance,
    ncsnv2_ladder,
    ncsnv2_overlap,
    ncsnv2_ratio,
    ncsnv2_step_size,
    unconditional,
)
from tests.evidence import assert_mean, assert_second_moment, mean_z, z_limit

CHAINS = 20_000


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mutant(old, new):
    """The module with a piece of its text replaced."""
    text = Path(annealed.__file__).read_text()
    assert text.count(old) == 1, old
    module = ModuleType(annealed.__name__)
    exec(compile(text.replace(old, new), "mutant", "exec"), module.__dict__)
    return module


# --- technique 1


def test_the_largest_distance_is_that_of_all_pairs(monkeypatch):
    """Also of points far from 0, in blocks that the farthest pair does not share."""
    monkeypatch.setattr(annealed, "BLOCK", 64)
    points = normal(300, 2, 5)
    truth = float(torch.pdist(points.flatten(1)).max())
    assert largest_distance(points) == pytest.approx(truth, rel=1e-12)
    assert largest_distance((points + 1e4).float()) == pytest.approx(truth, rel=1e-3)
    first, last = (
        normal(300, 3) / 100,
        torch.tensor([[-7.0, 0, 0], [0, 0, 24.0]], dtype=torch.float64),
    )
    assert largest_distance(torch.cat([last[:1], first, last[1:]])) == pytest.approx(25.0, rel=1e-9)


def test_mutant_of_blocks_is_caught(monkeypatch):
    made = mutant("for b in blocks[i:]", "for b in blocks[i : i + 1]")
    made.BLOCK = 64
    ends = torch.tensor([[-7.0, 0, 0], [0, 0, 24.0]], dtype=torch.float64)
    assert made.largest_distance(torch.cat([ends[:1], normal(300, 3) / 100, ends[1:]])) < 24.9


# --- technique 2


@pytest.mark.parametrize("dim", [5, 64, 3072, 12288])
def test_the_ratio_solves_its_equation(dim):
    gamma, root = ncsnv2_ratio(dim), math.sqrt(2 * dim)
    assert norm.cdf(root * (gamma - 1) + 3 * gamma) - norm.cdf(
        root * (gamma - 1) - 3 * gamma
    ) == pytest.approx(0.5, abs=1e-9)
    assert gamma == pytest.approx(root / (root - 3), rel=1e-3)  # where the first term is 1


def test_the_overlap_is_that_of_radii_about_a_point():
    """In 3072 dimensions |z| is close to N(sqrt(D), 1/2): the share of a level in the shell that holds the level before."""
    gamma, d = 1.03, 3072
    radius = normal(4000, d).norm(dim=1)
    inside = ((radius - gamma * math.sqrt(d)).abs() < 3 * gamma / math.sqrt(2)).double()
    assert abs(float(mean_z(inside[:, None], [ncsnv2_overlap(gamma, d)]))) < z_limit()


def test_the_published_ladders_have_one_overlap():
    """CIFAR-10: 50 to .01 in 232 levels; CelebA 64: 90 to .01 in 500. Both overlap by .567: the equation's "about a half"."""
    for high, n, d in ((50.0, 232, 3072), (90.0, 500, 12288)):
        gamma = (high / 0.01) ** (1 / (n - 1))
        assert ncsnv2_overlap(gamma, d) == pytest.approx(0.567, abs=1e-3)
        for overlap, levels in ((0.5669, n), (0.5, {232: 221, 500: 474}[n])):
            points = torch.zeros(2, d)
            points[1, 0] = high
            assert abs(len(ncsnv2_ladder(points, overlap=overlap)) - levels) <= 1


def test_the_ladder_of_digits():
    """All 1797 digits: pixels in [-1, 1], 64 of them. Farthest pair 9.6299, gamma 1.3608, 24 levels, eps 2.368e-5."""
    digits = torch.cat(load_digits()[:2])
    ladder = ncsnv2_ladder(digits)
    assert float(ladder[0]) == pytest.approx(
        float(torch.pdist(digits.flatten(1).double()).max()), rel=1e-6
    )
    assert float(ladder[0]) == pytest.approx(9.6299, abs=1e-4)
    assert float(ladder[-1]) == pytest.approx(0.01, rel=1e-12)
    assert len(ladder) == 24
    ratios = ladder[:-1] / ladder[1:]
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))
    assert float(ratios[0]) <= ncsnv2_ratio(64) == pytest.approx(1.36085, abs=1e-5)
    assert ncsnv2_step_size(ladder, 5) == pytest.approx(2.368e-5, rel=1e-3)
    solver = AnnealedLangevin.ncsnv2(digits)
    assert solver == AnnealedLangevin(ladder, 5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("math.sqrt(2 * dim) * (ratio - 1)", "math.sqrt(dim) * (ratio - 1)"),
        ("(shift - 3 * ratio)", "(shift - 3)"),
        ("1 + max(1, math.ceil(", "max(1, math.ceil("),
    ],
)
def test_mutants_of_the_ladder_are_caught(old, new):
    made, digits = mutant(old, new), torch.cat(load_digits()[:2])
    gamma, root = made.ncsnv2_ratio(64), math.sqrt(128)
    off = norm.cdf(root * (gamma - 1) + 3 * gamma) - norm.cdf(root * (gamma - 1) - 3 * gamma) - 0.5
    assert abs(off) > 1e-3 or float(
        torch.Tensor.div(*made.ncsnv2_ladder(digits)[:2])
    ) > ncsnv2_ratio(64)


# --- technique 3


def test_one_network_serves_all_levels():
    """score(x, sigma) = net(x) / sigma, with conditions, on both paths; the run that it makes."""
    x = normal(6, 2)
    for path in (stk.VE(0.01, 5.0), stk.EDM(0.01, 5.0)):
        field = unconditional(lambda x, shift: torch.tanh(x) + shift, (2,), path)
        for t in (0.0, 0.3, 1.0):
            found = field.score(x, t, shift=2.0)
            torch.testing.assert_close(found, (torch.tanh(x) + 2) / float(path.sigma(t)))
        assert (
            stk.sample(
                field, AnnealedLangevin(4, 2), chains=3, cond={"shift": torch.zeros(3, 1)}
            ).failures
            == {}
        )
    with pytest.raises(stk.InvalidArgument, match="variance-exploding"):
        unconditional(torch.tanh, (2,), stk.VP())


# --- technique 4


@pytest.mark.parametrize(
    ("high", "levels", "published"), [(50.0, 232, 6.18e-6), (90.0, 500, 3.34e-6)]
)
def test_the_step_size_is_the_published_one(high, levels, published):
    assert ncsnv2_step_size(
        torch.logspace(math.log10(high), -2, levels, dtype=torch.float64), 5
    ) == pytest.approx(published, rel=2e-3)


def left_over(eps, ladder, steps):
    """Variance after each level on data at one point, over the level's own: T steps of y' = (1 - q) y + sqrt(2 q) s z."""
    q, v, ratios = eps / float(ladder[-1]) ** 2, float(ladder[0] ** 2 / ladder[1]) ** 2, []
    for level in ladder.tolist():
        for _ in range(steps):
            v = (1 - q) ** 2 * v + 2 * q * level**2
        ratios.append(v / level**2)
    return (torch.tensor(ratios) - 1).abs()


@pytest.mark.parametrize(
    ("steps", "first", "settled"), [(5, 0.0555, 0.1286), (100, 0.0108, 0.0112)]
)
def test_the_noise_left_at_a_level_is_nearest_to_the_level_s(steps, first, settled):
    """No eps leaves exactly the level's own: with this ladder the best is 5.6 % above after 5 steps, and settles at 12.9 %."""
    ladder = torch.logspace(math.log10(50.0), -2, 232, dtype=torch.float64)
    eps = ncsnv2_step_size(ladder, steps)
    left = left_over(eps, ladder, steps)
    assert float(left[0]) == pytest.approx(first, abs=1e-4)
    assert float(left[-1]) == pytest.approx(settled, abs=1e-4)
    for wrong in (0.95 * eps, 1.05 * eps):
        assert left_over(wrong, ladder, steps)[0] > left[0]


# --- the runs


def recursion(solver, field, v, data):
    """Variance of each coordinate after a run on N(0, data) from variance v, step by step."""
    ladder = solver.ladder(field)
    eps = solver.step_size or ncsnv2_step_size(ladder, solver.steps_per_level)
    for level in ladder.tolist():
        a = eps * (level / float(ladder[-1])) ** 2
        for _ in range(solver.steps_per_level):
            v = (1 - a / (data + level**2)) ** 2 * v + 2 * a
    last = float(ladder[-1]) ** 2
    return v * (data / (data + last)) ** 2 if solver.denoise else v


def test_ncsn_has_the_published_settings():
    """Ten levels from 1 to .01, T = 100, and a = 2e-5 s^2 / s_L^2 in x + a/2 score + sqrt(a) z."""
    solver, field = (
        AnnealedLangevin.ncsn(),
        resolve(gaussian(dim=2, std=0.5).noised(stk.VE(0.01, 1.0)), {"score"}),
    )
    ladder = solver.ladder(field)
    torch.testing.assert_close(ladder, torch.logspace(0, -2, 10, dtype=torch.float64))
    table = solver.init(field, normal(1, 2), None).table
    assert len(table) == len(solver.milestones(field)) == 1000
    published = 2e-5 * ladder.repeat_interleave(100) ** 2 / 0.01**2
    torch.testing.assert_close(table[:, 2], published / 2)
    torch.testing.assert_close(table[:, 3], published.sqrt())


@pytest.mark.slow
def test_ncsn_follows_its_exact_recursion():
    field = gaussian(dim=4, std=0.3).noised(stk.VE(0.01, 1.0))
    draws = stk.sample(field, AnnealedLangevin.ncsn(), chains=4000, seed=2, dtype=torch.float64)
    v = recursion(AnnealedLangevin.ncsn(), field, 1.0, 0.3**2)
    assert v == pytest.approx(
        0.3**2 + 0.01**2, rel=0.6
    )  # it has not settled: eps is small for data this wide
    assert_mean(draws.final, [0.0] * 4)
    assert_second_moment(draws.final, 0.0, [v] * 4)


def ladder_run(solver, std, dim):
    ladder = solver.ladder(None)
    field = gaussian(dim=dim, std=std).noised(stk.VE(float(ladder[-1]), float(ladder[0])))
    return field, stk.sample(field, solver, chains=CHAINS, seed=3, dtype=torch.float64)


@pytest.mark.thorough
def test_ncsnv2_gives_gaussian_data_their_moments():
    """Ladder and step size from 2000 draws of N(0, .02^2) in 16 dimensions: the run follows its exact recursion, and the same
    test refuses a variance 5 % off, or that of a run without its closing step."""
    std, dim = 0.02, 16
    solver = AnnealedLangevin.ncsnv2(std * normal(2000, dim), 0.01, ratio=1.4)
    field, draws = ladder_run(solver, std, dim)
    v = recursion(solver, field, float(solver.ladder(None)[0]) ** 2, std**2)
    assert_mean(draws.final, [0.0] * dim)
    assert_second_moment(draws.final, 0.0, [v] * dim)
    for wrong in (
        v / 1.05,
        recursion(AnnealedLangevin(solver.levels, 5, denoise=False), field, 1.0, std**2),
    ):
        with pytest.raises(AssertionError):
            assert_second_moment(draws.final, 0.0, [wrong] * dim)


@pytest.mark.slow
def test_ncsnv2_gives_the_ring_its_modes():
    """Eight modes of std 1/4 at radius 2: equal shares, mean 0, and the mean square radius, up to what discrete steps add."""
    ring = ring_mixture()
    data = ring.means[torch.arange(2000) % 8] + 0.25 * normal(2000, 2)
    ladder = ncsnv2_ladder(data, 0.1, ratio=1.25)
    assert 4 < float(ladder[0]) < 7
    field = ring.noised(stk.VE(0.1, float(ladder[0])))
    draws = stk.sample(
        field, AnnealedLangevin(ladder, 20), chains=4000, seed=4, dtype=torch.float64
    ).final
    sector = (torch.atan2(draws[:, 1], draws[:, 0]) / (math.pi / 4)).round().long() % 8
    assert_mean(torch.nn.functional.one_hot(sector, 8).double(), [1 / 8] * 8, "share of each mode")
    assert_mean(draws, [0.0, 0.0])
    spread = float((draws.norm(dim=1) - 2.0).square().mean().sqrt())
    assert spread == pytest.approx(0.25, rel=0.15)


# --- refusals


def test_what_makes_no_ladder_is_refused():
    points = normal(50, 3)
    with pytest.raises(stk.InvalidArgument, match=r"dim.*at least 5"):
        ncsnv2_ladder(points)
    with pytest.raises(stk.InvalidArgument, match=r"sigma_min.*largest distance"):
        ncsnv2_ladder(points, 100.0, ratio=1.2)
    with pytest.raises(stk.InvalidArgument, match="ratio"):
        ncsnv2_ladder(points, ratio=0.9)
    with pytest.raises(stk.InvalidArgument, match="overlap"):
        ncsnv2_ratio(64, 0.95)
    with pytest.raises(stk.InvalidArgument, match=r"data.*finite"):
        ncsnv2_ladder(points * math.nan, ratio=1.2)


# --- how many steps: the excess of the variance, for laws and their powers


def diffused(path, std=0.5):
    def mean(x, t):
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x

    return stk.Diffusion(mean, (2,), path, "data")


POWERS = {
    "itself": (1.0, lambda f: f),
    "tempered by 2": (0.5, lambda f: stk.tempered(f, 2.0)),
    "tempered by 10": (0.1, lambda f: stk.tempered(f, 10.0)),
    "tempered by a half": (2.0, lambda f: stk.tempered(f, 0.5)),
    "of two": (2.0, lambda f: stk.product(f, f)),
    "of three, tempered": (1.5, lambda f: stk.tempered(stk.product(f, f, f), 2.0)),
    "one tempered": (1.5, lambda f: stk.product(f, stk.tempered(f, 2.0))),
}


def end_of(path, power, weight, steps=None, std=0.5):
    """The exact standard deviation at the end of a run, in units of the right one."""
    field = resolve(power(diffused(path, std)), {"score"})
    solver = AnnealedLangevin(steps_per_level=steps, denoise=False)
    v, rows = float(solver.ladder(field)[0]) ** 2 / weight, solver._table(field)
    levels = (path.sigma(rows[:, 0]) / rows[:, 1]).square().tolist()
    for level, (_, alpha, drift, noise) in zip(levels, rows.tolist(), strict=True):
        v = (1 - drift / alpha * weight / (std**2 + level)) ** 2 * v + noise**2
    return math.sqrt(v * weight) / std


@pytest.mark.parametrize("path", [stk.VP(), stk.Linear(), stk.VE()], ids=repr)
def test_the_default_steps_bring_laws_and_their_powers_to_their_width(path):
    for weight, power in POWERS.values():
        for std in (0.5, 2.0):
            assert 1 < end_of(path, power, weight, std=std) < 1.03


@pytest.mark.parametrize("name", POWERS)
def test_the_step_is_one_that_the_sum_of_the_powers_takes(name):
    """The score of a product is the sum of its factors': the step at a level is to be smaller by as much."""
    weight, power = POWERS[name]
    field, one = (resolve(f(diffused(stk.VP())), {"score"}) for f in (power, lambda f: f))
    solver = AnnealedLangevin([1.0, 0.1], denoise=False)
    ladder = solver.ladder(one)
    expected = solver._size(one, ladder) / max(1.0, weight)
    assert solver._size(field, ladder) == pytest.approx(expected)


def test_steps_that_do_not_know_the_power_are_caught(monkeypatch):
    """The mutant: as many for a power as for the law itself."""
    monkeypatch.setattr(annealed, "exponents", lambda field: (1.0, 1.0))
    for name in ("tempered by 2", "tempered by 10"):
        weight, power = POWERS[name]
        assert end_of(stk.VP(), power, weight) > 1.03


def seen_by_a_classifier(std, path=stk.VP()):  # noqa: B008 (frozen)
    """`log p(y | x_t)` of y = 0, measured of the first entry with this error, of data N(0, 2^2)."""

    def log_prob(x, t):
        alpha, sigma = path.alpha(t.double()), path.sigma(t.double())
        total = alpha**2 * 4 + sigma**2
        mean, variance = alpha * 4 / total * x[:, 0].double(), 4 * sigma**2 / total + std**2
        return -(mean**2) / (2 * variance)

    return log_prob


NARROW, WIDE = (diffused(stk.VP(), std) for std in (0.1, 2.0))
GUIDED = {
    "by 5": (lambda: stk.guided(NARROW, 5.0, WIDE), 5 / 0.1**2 - 4 / 2**2, 5.0),
    "by 30": (lambda: stk.guided(NARROW, 30.0, WIDE), 30 / 0.1**2 - 29 / 2**2, 30.0),
    "between": (lambda: stk.guided(NARROW, 0.5, WIDE), 0.5 / 0.1**2 + 0.5 / 2**2, 1.0),
    "near neither": (lambda: stk.guided(NARROW, 0.1, WIDE), 0.1 / 0.1**2 + 0.9 / 2**2, 1.0),
    "away": (lambda: stk.guided(WIDE, -4.0, NARROW), -4 / 2**2 + 5 / 0.1**2, 5.0),
    "a product of": (
        lambda: stk.product(stk.guided(NARROW, 5.0, WIDE), WIDE),
        5 / 0.1**2 - 3 / 2**2,
        6.0,
    ),
    "of a power": (
        lambda: stk.guided(stk.tempered(NARROW, 0.5), 4.0, stk.product(WIDE)),
        8 / 0.1**2 - 3 / 2**2,
        8.0,
    ),
    "a posterior of": (
        lambda: stk.posterior(
            stk.guided(NARROW, 5.0, WIDE), stk.LinearGaussian(torch.eye(2), torch.zeros(2), 0.2)
        ),
        5 / 0.1**2 - 4 / 2**2 + 1 / 0.2**2,
        5.0,
    ),
    "by a classifier": (
        lambda: stk.classifier_guided(WIDE, seen_by_a_classifier(0.1), 20.0),
        1 / 2**2 + 20 / 0.1**2,
        20.0,
    ),
    "away from a class": (
        lambda: stk.classifier_guided(WIDE, seen_by_a_classifier(3.0), -0.5),
        1 / 2**2 - 0.5 / 3**2,
        1.5,
    ),
}
"""Fields, the precision of the law of the first entry at the end, and the sum of the exponents above 0."""


def furthest_and_end(make, precision):
    """The largest variance of a run's first entry on its way, in units of that of the start, and the standard deviation
    at its end, in units of the right one: by what each step makes of a unit.
    """
    field, solver = resolve(make(), {"score"}), AnnealedLangevin(denoise=False)
    v = start = float(solver.ladder(field)[0]) ** 2
    most, unit = v, torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    rows, turns = solver._table(field).unique_consecutive(dim=0, return_counts=True)
    for (t, alpha, drift, noise), n in zip(rows.tolist(), turns.tolist(), strict=True):
        square = (1 + drift * float(field.score(unit * alpha, t)[0, 0])) ** 2
        for _ in range(n):
            v = square * v + noise**2
            most = max(most, v)
    return most / start, math.sqrt(v * precision)


@pytest.mark.parametrize("name", GUIDED)
def test_steps_under_guidance_are_stable_on_every_level(name):
    """Where one field is narrow beside a level and the other wide, the density is the weight times as curved."""
    make, precision, most = GUIDED[name]
    furthest, width = furthest_and_end(make, precision)
    assert furthest < 1.5
    assert 1 < width < 1.03
    assert exponents(make())[1] == pytest.approx(most)


def test_steps_that_do_not_know_the_weight_are_caught(monkeypatch):
    """The mutant: as large under guidance as without."""
    monkeypatch.setattr(annealed, "exponents", lambda field: (1.0, 1.0))
    for name in ("by 30", "away", "by a classifier"):
        assert furthest_and_end(*GUIDED[name][:2])[0] > 100


@pytest.mark.thorough
def test_a_run_of_a_power_has_its_width_and_one_of_few_steps_is_told():
    field = stk.tempered(diffused(stk.VP()), 2.0)
    levels = torch.logspace(0.5, -1, 12, dtype=torch.float64).tolist()
    draws = stk.sample(field, AnnealedLangevin(levels), chains=1500, seed=2)
    error = 1 / math.sqrt(2 * draws.final.numel())
    assert -5 * error < float(draws.final.square().mean().sqrt()) / 0.5**0.5 - 1 < 0.03 + 5 * error
    with pytest.warns(UserWarning, match="variance of this power or product of fields ends too"):
        stk.sample(field, AnnealedLangevin(steps_per_level=5), chains=4)


def test_a_step_size_that_needs_millions_of_steps_is_refused():
    field = stk.Diffusion(lambda x, t: x, (2,), stk.VP(), "noise")
    for tiny in (1e-300, 1e-12):
        with pytest.raises(stk.InvalidArgument, match=r"step_size: .*at each level"):
            stk.sample(field, AnnealedLangevin(step_size=tiny), chains=2)
