"""Microcanonical samplers: the turn against its textbook form, exact invariance with mutants, bias of second order, tuning."""

import math
from dataclasses import dataclass

import pytest
import torch

import scoretk as stk
from scoretk.core.rows import select_rows
from scoretk.core.streams import Stream
from scoretk.fields import resolve
from scoretk.models.targets.analytic import Funnel
from scoretk.models.targets.mixture import gaussian, ring_mixture
from scoretk.run.moment import begin
from scoretk.solvers import mclmc
from scoretk.solvers.hmc import Point
from scoretk.solvers.mclmc import INTEGRATORS, MCLMC, AdjustedMCLMC, direction, isokinetic, turn
from tests.evidence import assert_distribution, assert_mean, ks_p, mean_z, z_limit
from tests.marks import slow_but, slow_rows_but
from tests.test_langevin import one_step_from_exact, ring_statistics

CHAINS = 40_000
DOUBLE = {"dtype": torch.float64}
ILL = stk.Energy(lambda x: (x.square() * torch.logspace(0, 4, 20, dtype=x.dtype)).sum(1) / 2, (20,))
UNEQUAL = stk.Energy(lambda x: (x.square() * torch.tensor([1.0, 9.0, 4.0]).to(x)).sum(1) / 2, (3,))


@dataclass(frozen=True)
class Disc:
    """`p(x) ~ sqrt(1 - |x|^2)` on the unit disc, the shadow of a uniform ball; outside the energy is NaN."""

    event_shape = (2,)

    def energy(self, x):
        return -torch.log1p(-x.square().sum(1)) / 2

    def draw(self, n, noise):
        u = noise.uniform(0, Stream.START, (2,))
        radius, angle = (1 - u[:, 0] ** (2 / 3)).sqrt(), 2 * math.pi * u[:, 1]
        return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def radius_law(r):
    return 1 - (1 - r**2) ** 1.5


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def unit_rows(u):
    return u / u.norm(dim=1, keepdim=True)


def textbook_turn(u, g, t):
    """With hyperbolic functions, as published."""
    dim, norm = u.shape[1], g.norm(dim=1, keepdim=True)
    e, delta = -g / norm, t * norm / (u.shape[1] - 1)
    along = (e * u).sum(1, keepdim=True)
    stretch = delta.cosh() + along * delta.sinh()
    turned = (u + e * (delta.sinh() + along * (delta.cosh() - 1))) / stretch
    return turned, (dim - 1) * stretch.log()[:, 0]


def test_the_turn_is_the_published_one_and_undone_by_its_reverse():
    u, g, t = unit_rows(some(50, 4)), some(50, 4, seed=1), torch.tensor(0.7, **DOUBLE)
    turned, change = turn(u, g, t, 4)
    expected, expected_change = textbook_turn(u, g, t)
    torch.testing.assert_close(turned, expected)
    torch.testing.assert_close(change, expected_change)
    back, undone = turn(-turned, g, t, 4)
    torch.testing.assert_close(back, -u)
    torch.testing.assert_close(undone, -change)


def test_the_turns_volume_is_its_jacobian_on_the_sphere():
    """In the plane the sphere is an angle, and `d angle' / d angle = 1 / D`."""
    angle = torch.linspace(0.1, 6.2, 40, **DOUBLE).requires_grad_()
    u = torch.stack([angle.cos(), angle.sin()], 1)
    g = torch.tensor([[0.8, -0.5]], **DOUBLE).expand(40, 2)
    turned, change = turn(u, g, torch.tensor(0.9, **DOUBLE), 2)
    (slope,) = torch.autograd.grad(torch.atan2(turned[:, 1], turned[:, 0]).sum(), angle)
    torch.testing.assert_close(-slope.log(), change.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_turn_holds_at_its_limits(dtype):
    """No gradient, a huge one across and straight against the velocity, and one that is off it by a hair: then, with the angles
    from e before and after, tan(b / 2) = tan(a / 2) exp(-delta) and D = sin a / sin b.
    """
    hair, e = 1e-5, torch.tensor([1.0, 0.0, 0.0], dtype=dtype)
    u = torch.stack([e, e.roll(1), -e, torch.tensor([-1.0, hair, 0.0], dtype=dtype)])
    strengths = torch.tensor([0.0, 1e5, 1e5, 20.0], dtype=dtype)
    turned, change = turn(u, -e * strengths[:, None], torch.tensor(1.0, dtype=dtype), 3)
    torch.testing.assert_close(turned[:3], torch.stack([e, e, -e]))
    expected = torch.tensor([0.0, 1e5 - 2 * math.log(2), -1e5], dtype=dtype)
    torch.testing.assert_close(change[:3], expected)
    after = 2 * math.atan(math.exp(-10) / math.tan(hair / 2))
    assert math.atan2(turned[3, 1], turned[3, 0]) == pytest.approx(after, rel=1e-4)
    assert float(change[3]) == pytest.approx(2 * math.log(hair / math.sin(after)), rel=1e-4)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_integrator_is_reversible_of_second_order_and_keeps_the_velocitys_length(integrator):
    field = resolve(ring_mixture(), {"energy", "score"})
    x, u, scale = some(6, 2), unit_rows(some(6, 2, seed=1)), torch.tensor([0.7, 1.3], **DOUBLE)
    start = Point(x, *field.energy_and_grad(x))

    def along(start, u, eps, steps):
        return isokinetic(field, start, u, torch.tensor(eps, **DOUBLE), steps, scale, integrator)

    end = along(start, u, 0.05, 7)
    torch.testing.assert_close(
        end.velocity.norm(dim=1), torch.ones(6, **DOUBLE), rtol=0, atol=1e-14
    )
    back = along(end.point, -end.velocity, 0.05, 7)
    torch.testing.assert_close(back.point.x, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back.velocity, -u, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back.error, -end.error, rtol=1e-9, atol=1e-9)
    one_by_one, error = along(start, u, 0.05, 1), 0.0
    for _ in range(6):
        error = error + one_by_one.error
        one_by_one = along(one_by_one.point, one_by_one.velocity, 0.05, 1)
    torch.testing.assert_close(one_by_one.point.x, end.point.x)
    torch.testing.assert_close(error + one_by_one.error, end.error)
    errors = [along(start, u, 0.1 / n, 2 * n).error.abs().max() for n in (8, 16)]
    assert 3.5 < float(errors[0] / errors[1]) < 4.5


def distance_of(values, truth, comparisons=None):
    return float(mean_z(values, truth).abs().max() / z_limit(comparisons or values.shape[1]))


def disc_distance(x):
    law = math.log(max(ks_p(x.norm(dim=1), radius_law), 1e-300)) / math.log(1e-6)
    return max(law, distance_of(x, [0, 0]))


TARGETS = {
    "gaussian": (
        gaussian(dim=3),
        1.5,
        lambda x: distance_of(torch.cat([x, x.square()], 1), [0, 0, 0, 1, 1, 1]),
    ),
    "ring": (ring_mixture(), 0.35, lambda x: distance_of(*ring_statistics(x))),
    "funnel": (
        Funnel(3, 1.0),
        0.8,
        lambda x: distance_of(
            torch.stack([x[:, 0], x[:, 0] ** 2, x[:, 1] ** 2 * torch.exp(-x[:, 0])], 1), [0, 1, 1]
        ),
    ),
    "disc": (Disc(), 0.3, disc_distance),
}


def kernels(size):
    return {
        "fixed": AdjustedMCLMC(size, leapfrogs=3, jitter=0, metric="none"),
        "jittered": AdjustedMCLMC(
            size, leapfrogs=2, jitter=0.5, metric="none", integrator="leapfrog"
        ),
        "by length": AdjustedMCLMC(size, length=1.5 * size, metric="none"),
    }


@pytest.mark.parametrize("kernel", kernels(1.0))
@pytest.mark.parametrize("name", TARGETS)
def test_exact_draws_stay_exact(name, kernel):
    target, size, distance = TARGETS[name]
    assert distance(one_step_from_exact(kernels(size)[kernel], target, seed=3)) < 1


def no_kinetic_term(velocity, gradient, time, dim, least):
    turned, change = turn(velocity, gradient, time, dim, least)
    return turned, torch.zeros_like(change)


def dimension_not_less_one(velocity, gradient, time, dim, least):
    """d in place of d - 1, in the turn and in the volume."""
    return turn(velocity, gradient, time, dim + 1, least)


def volume_of_d(velocity, gradient, time, dim, least):
    """d in place of d - 1, in the volume alone."""
    turned, change = turn(velocity, gradient, time, dim, least)
    return turned, change * dim / (dim - 1)


def half_the_sphere(step, stream, x, noise):
    u = direction(step, stream, x, noise)
    return u * u[:, :1].sign()


def nan_accepted_where_it_began(current, proposed, log_ratio, step, noise):
    """NaN positions are replaced by 0 and accepted."""
    right, probability = METROPOLIS(current, proposed, log_ratio, step, noise)
    nan = log_ratio.isnan()
    return Point(*(select_rows(nan, torch.zeros_like(v), v) for v in right)), probability


METROPOLIS = mclmc.metropolis
WRONG = [
    *((name, "turn", no_kinetic_term) for name in TARGETS),
    *((name, "turn", dimension_not_less_one) for name in TARGETS),
    *(
        (name, "turn", volume_of_d) for name in TARGETS if name != "ring"
    ),  # where next to nothing is rejected for it
    *((name, "direction", half_the_sphere) for name in ("gaussian", "funnel", "disc")),
    ("disc", "metropolis", nan_accepted_where_it_began),
]


@pytest.mark.parametrize(("name", "part", "mutant"), WRONG)
def test_invariance_catches_wrong_kernels(monkeypatch, name, part, mutant):
    monkeypatch.setattr(mclmc, part, mutant)
    target, size, distance = TARGETS[name]
    assert distance(one_step_from_exact(kernels(size)["fixed"], target, seed=3)) > 1.5


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_that_are_far_too_long_are_rejected(dtype, integrator):
    """A gradient turns velocities of all kinds to its own direction; what is left of the difference is rounding.

    Half of the chains were taken to where the density is e^-700 and less.
    """
    for dim, steps in [(2, 1), (2, 2), (3, 1), (20, 1)]:
        x = some(512, dim).to(dtype)
        for size in (10.0, 30.0, 100.0, 1e3):
            kernel = AdjustedMCLMC(size, leapfrogs=steps, metric="none", integrator=integrator)
            draws = stk.sample(gaussian(dim=dim), kernel, init=x, steps=1, warmup=0, seed=1)
            assert draws.x.dtype is dtype
            assert float(draws.final.square().sum(1).max()) / 2 < dim / 2 + 40, (dim, steps, size)


def test_scales_leave_the_target_as_it_is():
    target, noise = gaussian(dim=3), stk.Noise(2, CHAINS, **DOUBLE)
    solver, field = AdjustedMCLMC(1.2, leapfrogs=3), resolve(gaussian(dim=3), {"energy", "score"})
    state = begin(solver, field, target.draw(CHAINS, noise).double(), noise).state
    state = state._replace(scale=torch.tensor([0.5, 1.4, 0.9], **DOUBLE))
    assert TARGETS["gaussian"][2](solver.step(field, state, noise)[0].x) < 1


@pytest.mark.thorough
def test_the_disc_keeps_its_law_over_many_steps():
    draws = stk.sample(
        Disc(),
        AdjustedMCLMC(0.3, leapfrogs=4, metric="none"),
        init=torch.zeros(10_000, 2),
        steps=40,
        seed=2,
    )
    assert draws.failures == {}
    assert_distribution(draws.final.norm(dim=1), radius_law)


def second_moments(eps, chains=5000, dim=4, steps=60, **options):
    """The mean square per dimension of an unadjusted run on N(0, I) that began there, and its standard error."""
    noise = stk.Noise(7, chains, **DOUBLE)
    solver = MCLMC(eps, length=2.0, metric="none", **options)
    draws = stk.sample(
        gaussian(dim=dim),
        solver,
        init=gaussian(dim=dim).draw(chains, noise),
        steps=steps,
        warmup=20,
        seed=1,
        thin=4,
        **DOUBLE,
    )
    of_chains = draws.x.square().mean((1, 2))
    return float(of_chains.mean()), float(of_chains.std()) / math.sqrt(chains)


@pytest.mark.slow
def test_the_unadjusted_bias_is_of_second_order(monkeypatch):
    """Halving a step of the leapfrog takes three quarters of its bias; a turn for another dimension keeps its own."""
    (coarse, error), (fine, _) = (second_moments(eps, integrator="leapfrog") for eps in (1.6, 0.8))
    assert coarse - 1 > 10 * error
    assert abs((fine - 1) - (coarse - 1) / 4) < 5 * error
    careful, error = second_moments(0.8)
    assert abs(careful - 1) < abs(fine - 1) / 4 + 5 * error
    monkeypatch.setattr(mclmc, "turn", dimension_not_less_one)
    wrong, error = second_moments(0.8)
    assert abs(wrong - 1) > 20 * error


@pytest.mark.parametrize("solver", [MCLMC(1.0, length=0.7), MCLMC(1.0, length=30.0)], ids=repr)
def test_the_velocity_forgets_its_direction_over_the_length(solver):
    """On a flat target only the noise turns: the velocity stays of length one and is forgotten as predicted."""
    dim, chains = 50, 2000
    flat, noise = (
        resolve(stk.Energy(lambda x: 0 * x.sum(1), (dim,)), solver.needs),
        stk.Noise(1, chains, **DOUBLE),
    )
    state = begin(solver, flat, torch.zeros(chains, dim, **DOUBLE), noise).state
    first = state.velocity
    assert_mean(first.square(), 1 / dim)
    for _ in range(3):
        state, info = solver.step(flat, state, noise)
    assert float(info["energy_error"].abs().max()) < 1e-12
    torch.testing.assert_close(state.velocity.norm(dim=1), torch.ones(chains, **DOUBLE))
    kept = (first * state.velocity).sum(1).mean()
    assert abs(float(kept) - math.exp(-3 / solver.length)) < 0.02


def calls_of(solver, **run):
    calls = []

    def energy(x):
        calls.append(len(x))
        return x.square().sum(1) / 2

    draws = stk.sample(stk.Energy(energy, (2,)), solver, chains=3, steps=5, **run)
    return sum(calls), draws.cost["score"]


@pytest.mark.parametrize(
    ("solver", "each"),
    [
        (MCLMC(0.1, 1.0, "none"), 2),
        (MCLMC(0.1, 1.0, "none", integrator="leapfrog"), 1),
        (AdjustedMCLMC(0.1, leapfrogs=7, metric="none"), 14),
        (AdjustedMCLMC(0.1, length=0.35, metric="none", integrator="leapfrog"), 4),
    ],
)
def test_evaluations_are_counted(solver, each):
    made, counted = calls_of(solver)
    assert made == counted == 3 * (1 + 5 * each)


@pytest.mark.parametrize("solver", [MCLMC(), AdjustedMCLMC(), AdjustedMCLMC(leapfrogs=3)], ids=repr)
def test_evaluations_of_tuning_are_counted(solver):
    made, counted = calls_of(solver, warmup=40)
    assert made == counted


TUNED = [MCLMC(), AdjustedMCLMC(), AdjustedMCLMC(leapfrogs=3)]


@pytest.mark.parametrize("solver", slow_but(TUNED, TUNED[0]), ids=repr)
def test_chains_do_not_depend_on_the_batch(solver):
    run = {"chains": 13, "steps": 4, "warmup": stk.Warmup(25, pilot=5), "seed": 6, **DOUBLE}
    whole, parts = stk.sample(UNEQUAL, solver, **run), stk.sample(UNEQUAL, solver, batch=4, **run)
    assert torch.equal(whole.x, parts.x)
    assert all(
        torch.equal(whole.tuned[name], parts.tuned[name])
        for name in ("step_size", "scale", "length")
    )
    fewer = stk.sample(UNEQUAL, solver, **(run | {"chains": 7}))
    assert torch.equal(whole.x[:7], fewer.x)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("solver", "stop"),
    slow_rows_but(
        [(s, stop) for s in (MCLMC(), AdjustedMCLMC(leapfrogs=1)) for stop in (10, 35, 55)],
        (MCLMC(), 55),
        (AdjustedMCLMC(leapfrogs=1), 35),
    ),
    ids=repr,
)
def test_resumed_in_warmup_or_after_it_ends_with_the_same_bits(tmp_path, solver, stop):
    class Stop(Exception):
        pass

    calls = [0, -1]

    def energy(x):
        calls[0] += 1
        if calls[0] == calls[1]:
            raise Stop
        return (x.square() * torch.tensor([1.0, 9.0]).to(x)).sum(1) / 2

    run = {
        "chains": 6,
        "steps": 20,
        "warmup": stk.Warmup(40, pilot=4),
        "seed": 6,
        "batch": 2,
        **DOUBLE,
    }
    field, path = stk.Energy(energy, (2,)), tmp_path / "run.ckpt"
    undisturbed = stk.sample(field, solver, **run)
    calls[:] = 0, 2 * stop + 10
    with pytest.raises(Stop):
        stk.sample(field, solver, checkpoint=stk.Checkpoint(path, every=1e-9), **run)
    calls[1] = -1
    resumed = stk.sample(field, solver, checkpoint=path, **run)
    assert torch.equal(resumed.x, undisturbed.x)
    assert all(torch.equal(resumed.tuned[name], value) for name, value in undisturbed.tuned.items())


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, on its way through the compiler
@pytest.mark.parametrize(
    "solver", [MCLMC(0.3, 1.5, "none"), AdjustedMCLMC(0.3, leapfrogs=1, metric="none")], ids=repr
)
def test_compiled_agrees_with_eager(solver):
    eager, compiled = (
        stk.sample(UNEQUAL, solver, chains=3, steps=16, seed=1, compile=c, **DOUBLE)
        for c in (False, True)
    )
    torch.testing.assert_close(compiled.x, eager.x, rtol=1e-6, atol=1e-8)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("metric", "variance"),
    [
        ("diagonal", 5e-4),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("none", 5e-4), ("diagonal", 5e-3))
        ),
    ],
)
def test_the_energy_error_reaches_its_target(metric, variance):
    solver = MCLMC(metric=metric, energy_variance=variance)
    target = gaussian(dim=30, std=3.0)
    draws = stk.sample(target, solver, chains=256, steps=60, warmup=300, seed=2)
    reached = float(draws.stats["energy_error"].double().square().mean()) / 30
    assert reached == pytest.approx(variance, rel=0.2)  # over seeds it varies by 4 %
    assert draws.failures == {}
    known = {"diagonal": 3.0, "none": 1.0}[metric]
    assert float(draws.tuned["scale"].mean()) == pytest.approx(known, rel=0.05)


@pytest.mark.thorough
def test_the_length_is_seven_tenths_of_that_in_which_the_runs_own_draws_decorrelate():
    """With a step size that is given, as another has another autocorrelation; to four standard errors of both.

    All coordinates are as slow, so that the slowest's time is the mean one.
    """
    field, size, n = gaussian(dim=30, std=3.0), 6.0, 200
    draws = stk.sample(field, MCLMC(size, metric="none"), chains=256, steps=n, warmup=450, seed=2)
    steps = n * float((draws.x.mean(1).var(0) / draws.x.flatten(0, 1).var(0)).mean())
    error = math.sqrt(2 / 255 / 30)
    assert steps > 1.2
    assert float(draws.tuned["length"]) == pytest.approx(
        0.7 * size * steps, rel=4 * math.sqrt(2) * error
    )


@pytest.mark.slow  # as with HMC, by default
@pytest.mark.parametrize("accept", [0.9, 0.7])
def test_the_acceptance_reaches_its_target(accept):
    solver = AdjustedMCLMC(leapfrogs=2, accept=accept)
    draws = stk.sample(ILL, solver, chains=64, steps=100, warmup=400, seed=2)
    assert abs(float(draws.stats["accept"].mean()) - accept) < 0.04
    assert draws.failures == {}
    assert float(draws.tuned["length"]) == pytest.approx(2 * float(draws.tuned["step_size"]))


def test_scales_and_length_are_learned_and_the_target_met():
    draws = stk.sample(ILL, AdjustedMCLMC(), chains=64, steps=60, warmup=300, seed=1, **DOUBLE)
    precisions = torch.logspace(0, 4, 20, **DOUBLE)
    torch.testing.assert_close(draws.tuned["scale"], precisions.rsqrt(), rtol=0.15, atol=0)
    assert float(draws.tuned["length"]) == pytest.approx(math.pi / 2 * math.sqrt(20))
    assert mean_z(draws.final.square() * precisions, torch.ones(20)).abs().max() < z_limit(20)


@pytest.mark.thorough
@pytest.mark.parametrize("solver", [MCLMC(), AdjustedMCLMC()], ids=repr)
def test_what_is_tuned_is_frozen_after_warmup(solver):
    """The draws after warmup are those of a solver that was given what was tuned."""
    seen = []

    @dataclass(frozen=True)
    class Watched(type(solver)):
        def step(self, field, state, noise):
            seen.append((float(state.step_size), float(state.length), float(state.scale.sum())))
            return super().step(field, state, noise)

    draws = stk.sample(UNEQUAL, Watched(), chains=8, steps=30, warmup=40, seed=1)
    assert len(seen) == 30
    assert set(seen) == {
        tuple(float(draws.tuned[name].sum()) for name in ("step_size", "length", "scale"))
    }


def test_what_is_given_is_not_tuned():
    draws = stk.sample(
        UNEQUAL, MCLMC(step_size=0.2, length=1.1), chains=8, steps=5, warmup=40, seed=1
    )
    assert (float(draws.tuned["step_size"]), float(draws.tuned["length"])) == (0.2, 1.1)
    assert not MCLMC(0.2, 1.1, "none").adapts
    assert MCLMC(0.2, 1.1).adapts


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("solver", "shape"),
    slow_rows_but(
        [(solver, shape) for solver in TUNED[:2] for shape in ((2,), (1, 3), (1, 4, 4))],
        (TUNED[0], (1, 4, 4)),
        (TUNED[1], (1, 3)),
    ),
    ids=repr,
)
def test_events_of_any_shape(shape, solver):
    dim = math.prod(shape)
    field = stk.Energy(lambda x: x.square().flatten(1).sum(1) / 2, shape)
    draws = stk.sample(field, solver, chains=8, steps=4, warmup=25, seed=1)
    assert draws.x.shape == (8, 4, *shape)
    assert draws.failures == {}
    flat = stk.sample(
        stk.Energy(lambda x: x.square().sum(1) / 2, (dim,)),
        solver,
        chains=8,
        steps=4,
        warmup=25,
        seed=1,
    )
    assert torch.equal(draws.x.reshape(8, 4, dim), flat.x)


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
@pytest.mark.parametrize("solver", [MCLMC(), AdjustedMCLMC()], ids=repr)
def test_one_dimension_is_refused(shape, solver):
    with pytest.raises(stk.InvalidArgument, match="two dimensions"):
        stk.sample(
            stk.Energy(lambda x: x.square().flatten(1).sum(1), shape), solver, chains=2, steps=2
        )


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: MCLMC(step_size=-1.0), "step_size"),
        (lambda: MCLMC(length=0.0), "length"),
        (lambda: MCLMC(metric="full"), "metric"),
        (lambda: MCLMC(integrator="euler"), "integrator"),
        (lambda: MCLMC(energy_variance=0.0), "energy_variance"),
        (lambda: AdjustedMCLMC(leapfrogs=0), "leapfrogs"),
        (lambda: AdjustedMCLMC(leapfrogs=3, length=1.0), "length"),
        (lambda: AdjustedMCLMC(jitter=1.0), "jitter"),
        (lambda: AdjustedMCLMC(accept=1.0), "accept"),
        (lambda: AdjustedMCLMC(most=0), "most"),
    ],
)
def test_wrong_arguments_are_named(make, named):
    with pytest.raises(stk.ScoretkError, match=named):
        make()


def test_failures_are_flagged():
    """Unadjusted, a step over the edge ends a chain; in warmup it shrinks the step. Adjusted, it is a rejection."""
    start = torch.tensor([[0.1, 0.2], [2.0, 0.0], [0.0, -0.3]])
    over = stk.sample(Disc(), MCLMC(0.5, 1.0, "none"), init=start, steps=50)
    assert over.failures == {"NONFINITE": 3}
    assert int(over.failed_at[1]) == 0
    adjusted = stk.sample(
        Disc(), AdjustedMCLMC(0.5, leapfrogs=3, metric="none"), init=start, steps=50
    )
    assert adjusted.status.tolist() == [0, 1, 0]
    assert bool((adjusted.x[[0, 2]].norm(dim=2) < 1).all())
    wild = stk.sample(
        gaussian(dim=2), AdjustedMCLMC(1e5, leapfrogs=2, metric="none"), chains=4, steps=5
    )
    assert bool(wild.stats["diverging"].bool().all())
    assert wild.failures == {}
    warmed = stk.sample(Disc(), MCLMC(), init=torch.zeros(64, 2), steps=1, warmup=100, seed=1)
    assert warmed.failures == {}
    assert float(warmed.tuned["step_size"] * warmed.tuned["scale"].mean()) < 0.2


@pytest.mark.slow  # by default HMC and ChEES, whose warmup it shares
@pytest.mark.parametrize("solver", [MCLMC(), AdjustedMCLMC()], ids=repr)
def test_chains_that_start_far_out_come_along(solver):
    """One among those that tune, one among those that follow."""
    init = torch.zeros((64, 2))
    init[7], init[40] = 12.0, 12.0
    draws = stk.sample(
        stk.Energy(lambda x: (x.exp() - x).sum(1), (2,)),
        solver,
        init=init,
        steps=50,
        warmup=stk.Warmup(200, pilot=16),
        seed=1,
    )
    assert draws.failures == {}
    assert float(draws.x[[7, 40]].abs().max()) < 10
    assert float(draws.x[[7, 40]].std(1).min()) > 0.3


AFAR = [(0.0, 1e-3, 2)]
AFAR += [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in (
        (100.0, 1.0, 100),
        (100.0, 1.0, 2),
        (1e4, 1.0, 10),
        (0.0, 1e3, 10),
        (5.0, 1e-4, 50),
    )
]


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "std", "dim"), AFAR)
@pytest.mark.parametrize("solver", slow_but([MCLMC(), AdjustedMCLMC()], MCLMC()), ids=repr)
def test_warmup_arrives_from_afar(solver, mean, std, dim):
    """From N(0, I), wherever the target is and however small, also chains that do not tune.

    The bias of the unadjusted chain is at most 1 % of a variance.
    """
    field = stk.Energy(lambda x: ((x - mean) / std).square().sum(1) / 2, (dim,))
    draws = stk.sample(
        field, solver, chains=64, steps=100, warmup=stk.Warmup(300, pilot=16), seed=1
    )
    rows = ((draws.x - mean) / std).double()
    limit = z_limit(2 * dim)
    assert draws.failures == {}
    assert mean_z(rows.mean(1), torch.zeros(dim)).abs().max() < limit
    bias = 0.01 if isinstance(solver, MCLMC) else 0.0
    squares = rows.square().mean(1)
    assert ((squares.mean(0) - 1).abs() < bias + limit * squares.std(0) / 8).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "constant"), slow_rows_but([(20, 1e6), (20, 8e6), (2, 4e6), (2, 8e6)], (20, 8e6))
)
def test_rounding_of_the_energy_is_no_error(dim, constant):
    """A constant that costs float32 the digits below 1/16 to 1/2: no step that is far too short, and none that is too long."""
    field = stk.Energy(lambda x: x.square().sum(1) / 2 + constant, (dim,))
    run = {"chains": 192, "warmup": 120, "seed": 1}
    plain = stk.sample(gaussian(dim=dim), MCLMC(), steps=1, **run)
    draws = stk.sample(field, MCLMC(), steps=40, **run)
    assert 0.1 < float(draws.tuned["step_size"] / plain.tuned["step_size"]) < 1.5
    assert float(draws.x.var()) == pytest.approx(1, abs=0.06)
