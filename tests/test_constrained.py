"""Constrained fields: right laws in the user's space, by every way that draws are kept, and mutants that are caught."""

import math

import pytest
import torch
from torch import distributions as td
from torch.distributions import constraints

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.fields import Constrained
from tests.evidence import assert_mean, mean_z, z_limit
from tests.lawful import checked
from tests.marks import slow_but

ALPHA = torch.tensor([2.0, 3.0, 4.0])
DIRICHLET = td.Dirichlet(ALPHA)
ORDER_MEAN = 1 / math.sqrt(math.pi)  # of the larger of two standard normals
td.Distribution.set_default_validate_args(
    False
)  # a mutant's walk to infinity is to be seen here, not in torch's own checks
CASES = {
    "positive": (
        td.Independent(td.Gamma(torch.tensor([3.0, 5.0]), torch.tensor([2.0, 1.0])), 1),
        constraints.independent(constraints.positive, 1),
        [1.5, 5.0],
        [0.75, 5.0],
    ),
    "interval": (
        td.Independent(td.Beta(torch.tensor([2.0]), torch.tensor([3.0])), 1),
        constraints.independent(constraints.interval(0, 1), 1),
        [0.4],
        [0.04],
    ),
    "simplex": (
        DIRICHLET,
        constraints.simplex,
        (DIRICHLET.mean).tolist(),
        DIRICHLET.variance.tolist(),
    ),
    "ordered": (
        td.Independent(td.Normal(torch.zeros(2), 1.0, validate_args=False), 1),
        stk.ordered,
        [-ORDER_MEAN, ORDER_MEAN],
        [1 - 1 / math.pi] * 2,
    ),
    "simplex beside positive": (
        None,
        [(constraints.positive, 1), (constraints.simplex, 3)],
        [3.0, *DIRICHLET.mean.tolist()],
        [3.0, *DIRICHLET.variance.tolist()],
    ),
    "scalar": (td.Gamma(torch.tensor(3.0), torch.tensor(2.0)), constraints.positive, [1.5], [0.75]),
    "several": (
        td.Independent(td.Normal(torch.zeros(3), 1.0, validate_args=False), 1),
        constraints.cat([constraints.positive, stk.ordered], dim=-1, lengths=[1, 2]),
        [math.sqrt(2 / math.pi), -ORDER_MEAN, ORDER_MEAN],
        [1 - 2 / math.pi, 1 - 1 / math.pi, 1 - 1 / math.pi],
    ),
}


def of(name):
    law, constraint, _, _ = CASES[name]
    if law is None:  # Gamma(3, 1) beside the Dirichlet
        energy = stk.Energy(
            lambda x: x[:, 0] - 2 * x[:, 0].log() - ((ALPHA - 1) * x[:, 1:].log()).sum(1), (4,)
        )
        return stk.constrained(energy, constraint)
    return stk.constrained(
        stk.Energy(lambda x: -law.log_prob(x), tuple(law.event_shape)), constraint
    )


def moment_z(draws, mean, variance):
    """The largest z-score of means and second moments over chains, each chain's average a number; inf where chains fail."""
    if not draws.ok.all():
        return math.inf
    x = draws.x.double().reshape(*draws.x.shape[:2], -1)
    mean = torch.tensor(mean, dtype=torch.float64)
    deviations = [x - mean, (x - mean).square() - torch.tensor(variance, dtype=torch.float64)]
    worst = torch.cat([mean_z(d.mean(1), torch.zeros_like(mean)) for d in deviations]).abs().max()
    return float(worst.nan_to_num(math.inf, math.inf))


@pytest.mark.parametrize("name", slow_but(CASES, "positive", "simplex", "several"))
def test_draws_follow_the_law_in_the_users_space(name):
    draws = stk.sample(of(name), chains=128, steps=150, warmup=150, seed=5)
    assert draws.ok.all()
    assert of(name).unconstrain(draws.x).isfinite().all()
    assert moment_z(draws, *CASES[name][2:]) < z_limit(6)


BOUNDED = stk.ChEES(most=16)  # a mutant's law may have no end, and no trajectory then a good length


class WithoutJacobian(Constrained):
    def _jacobian(self, z, x):
        return torch.zeros(len(z))


class WithHalfTheJacobian(Constrained):
    def _jacobian(self, z, x):
        return super()._jacobian(z, x) / 2


@pytest.mark.parametrize(
    "wrong", slow_but([WithoutJacobian, WithHalfTheJacobian], WithHalfTheJacobian)
)
@pytest.mark.parametrize("name", slow_but(CASES, "positive"))
def test_a_wrong_jacobian_is_caught(name, wrong):
    right = of(name)
    draws = stk.sample(
        wrong(right.field, right.transform, right.event_shape, right.constraint),
        BOUNDED,
        chains=128,
        steps=150,
        warmup=150,
        seed=5,
    )
    assert moment_z(draws, *CASES[name][2:]) > z_limit(6)


@pytest.mark.parametrize("name", CASES)
def test_the_jacobian_is_that_of_the_map(name):
    field = of(name)
    z = Noise(1, 5, dtype=torch.float64).normal(0, 0, field.event_shape, torch.float64)
    x = field.constrain(z)
    gap = (field.energy(z) - field.field.energy(x)).double()
    for row, difference in zip(z, gap, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: field.constrain(v[None])[0], row)
        square = jacobian.reshape(x[0].numel(), -1)[
            : z[0].numel()
        ]  # a simplex comes last: its first k - 1 coordinates
        assert float(-square.det().abs().log()) == pytest.approx(float(difference), abs=1e-5)
    assert torch.allclose(field.unconstrain(x), z)


def test_ways_of_keeping_draws_agree_and_resume(tmp_path):
    field, run = of("ordered"), {"chains": 6, "steps": 40, "warmup": 20, "seed": 2, "batch": 4}
    whole = stk.sample(field, stk.MALA(0.1), **run)
    moments = stk.sample(field, stk.MALA(0.1), keep="moments", **run)
    assert torch.equal(whole.final, moments.final)
    assert torch.equal(whole.x[:, -1], whole.final)
    assert torch.allclose(moments.mean, whole.x.double().mean(1))
    assert torch.allclose(moments.var, whole.x.double().var(1))
    again = stk.sample(field, stk.MALA(0.1), checkpoint=tmp_path / "run.ckpt", **run)
    assert torch.equal(again.x, whole.x)


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, on its way through the compiler
def test_compiled_agrees_with_eager():
    run = {"chains": 6, "steps": 16, "seed": 2}
    eager, compiled = (
        stk.sample(of("ordered"), stk.MALA(0.1), compile=c, **run).x for c in (False, True)
    )
    assert torch.allclose(compiled, eager, atol=1e-4)


def test_a_start_is_given_in_the_users_space():
    field = of("simplex")
    init = torch.tensor([[0.2, 0.3, 0.5]]).repeat(3, 1)
    draws = stk.sample(field, stk.ULA(1e-12), chains=3, steps=1, init=init)
    assert torch.allclose(draws.x[:, 0], init, atol=1e-4)
    with pytest.raises(stk.InvalidArgument, match="inside the constraint"):
        stk.sample(field, stk.ULA(1e-3), init=init + 1)
    with pytest.raises(stk.InvalidArgument, match="init"):
        stk.sample(field, stk.ULA(1e-3), init=init[:, :2])
    narrow = stk.constrained(stk.Energy(lambda x: x.sum(1), (1,)), constraints.interval(0.0, 1.0))
    for outside in (1.00001, -1e-6):
        with pytest.raises(stk.InvalidArgument, match="inside the constraint"):
            stk.sample(narrow, stk.ULA(1e-3), init=torch.tensor([[outside]]))


def test_density_and_exact_draws_of_the_users_field_are_taken_along():
    field = stk.constrained(
        stk.from_distribution(td.LogNormal(torch.tensor(0.5), torch.tensor(2.0))),
        constraints.positive,
    )
    z = field.draw(20_000, Noise(3, 20_000))
    assert_mean(z, 0.5)
    assert_mean((z - 0.5) ** 2, 4.0)
    assert torch.allclose(field.log_prob(z[:9]), td.Normal(0.5, 2.0).log_prob(z[:9]), atol=1e-5)


class Shifted:
    """exp(N(c, 1)), by the user's own density and draws."""

    event_shape = (1,)

    def log_prob(self, x, c):
        return (-((x.log() - c[:, None]) ** 2) / 2 - x.log() - math.log(2 * math.pi) / 2).sum(1)

    def energy(self, x, c):
        return -self.log_prob(x, c)

    def draw(self, n, noise, c):
        return (c[:, None] + noise.normal(0, 0, (1,))).exp()


def test_exact_draws_have_the_conditions_of_the_density():
    field = stk.constrained(Shifted(), constraints.positive)
    c = torch.arange(8.0)
    z = field.draw(8, Noise(3, 8), c=c)
    torch.testing.assert_close(z[:, 0], c + Noise(3, 8).normal(0, 0, (1,))[:, 0])
    torch.testing.assert_close(
        field.log_prob(z, c=c), td.Normal(c, 1.0).log_prob(z[:, 0]), rtol=1e-4, atol=1e-4
    )


def test_log_prob_takes_what_draws_hold():
    field = stk.constrained(stk.from_distribution(DIRICHLET), constraints.simplex)
    x = stk.sample(field, stk.MALA(0.05), chains=4, steps=3, seed=1).final
    assert torch.allclose(stk.log_prob(field, x).value, DIRICHLET.log_prob(x), rtol=1e-4)
    assert bool((stk.log_prob(field, x + 0.1).value == -torch.inf).all())


def test_conformance():
    gamma = stk.constrained(
        stk.Energy(lambda x: (x - 2 * x.log()).sum(1), (2,)), constraints.positive
    )
    assert {result.status for result in checked(gamma)} == {"passed", "skipped"}


def test_what_does_not_fit_is_refused():
    field = stk.Energy(lambda x: x.square().sum(1), (3,))
    for bad in ("positive", constraints.integer_interval(0, 3), constraints.lower_cholesky):
        with pytest.raises(stk.InvalidArgument, match="constraint"):
            stk.constrained(field, bad)
    for bad in (
        [(constraints.positive, 2)],
        [(constraints.positive, 0)],
        [],
        [(3, 3)],
        [constraints.positive],
    ):
        with pytest.raises(stk.InvalidArgument, match="constraint"):
            stk.constrained(field, bad)
    for bad in (stk.Score(lambda x: x, (2,)), stk.load("digits-flow"), 3):
        with pytest.raises(stk.InvalidArgument, match="field"):
            stk.constrained(bad, constraints.positive)
