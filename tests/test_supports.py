"""Distributions and supports: laws in free space, both ends of a support, refusals as rejections, starts inside."""

import contextlib
import math
import pickle

import pytest
import torch
from scipy import stats
from torch import distributions as td
from torch.autograd.functional import jacobian
from torch.distributions import biject_to, constraints

import scoretk as stk
from scoretk.fields import freelaws
from scoretk.fields.distribution import in_free_space
from scoretk.fields.resolve import resolve
from scoretk.fields.supports import bijection, trailing_sum
from scoretk.fields.validation import refuses, rejecting
from tests.evidence import FALSE_ALARM, ks_p, mean_z, z_limit

BRINGS = [
    (
        "a distribution of torch",
        "stk.sample(distribution)",
        "its `log_prob`",
        "",
        ["test_the_law_in_free_space_is_the_distribution"],
    )
]


def t(*values):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


def mixed(components):
    return td.MixtureSameFamily(td.Categorical(t(0.3, 0.7)), components)


class Folded(td.TransformedDistribution):
    """The size of a normal number, scaled: one of its maps is no bijection, and its density is its own."""

    support = td.constraints.nonnegative

    def __init__(self, mean, std, scale):
        self.scale = scale
        super().__init__(td.Normal(mean, std), [td.AbsTransform(), td.AffineTransform(0.0, scale)])

    def log_prob(self, x):
        both = self.base_dist.log_prob(x / self.scale).logaddexp(
            self.base_dist.log_prob(-x / self.scale)
        )
        return torch.where(x >= 0, both - self.scale.log(), -torch.inf)


PAIR = torch.tensor([[0.3, 1.0, 2.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
LAWS = {
    "Beta": td.Beta(t(0.3), t(2.0)),
    "Chi2": td.Chi2(t(3.0)),
    "ContinuousBernoulli": td.ContinuousBernoulli(t(0.3)),
    "Dirichlet": td.Dirichlet(t(0.3, 1.0, 2.0)),
    "Exponential": td.Exponential(t(2.0)),
    "FisherSnedecor": td.FisherSnedecor(t(3.0), t(5.0)),
    "Gamma": td.Gamma(t(0.4), t(2.0)),
    "HalfCauchy": td.HalfCauchy(t(2.0)),
    "HalfNormal": td.HalfNormal(t(2.0)),
    "InverseGamma": td.InverseGamma(t(2.0), t(1.0)),
    "Kumaraswamy": td.Kumaraswamy(t(0.5), t(2.0)),
    "LKJCholesky": td.LKJCholesky(4, t(0.7)),
    "LogisticNormal": td.LogisticNormal(t(0.0, 1.0), t(1.0, 2.0)),
    "LogNormal": td.LogNormal(t(0.5), t(2.0)),
    "Pareto": td.Pareto(t(2.0), t(1.5)),
    "RelaxedBernoulli": td.RelaxedBernoulli(t(0.7), logits=t(0.3)),
    "RelaxedOneHotCategorical": td.RelaxedOneHotCategorical(t(0.7), logits=t(0.3, 1.0, 2.0)),
    "Uniform": td.Uniform(t(10.0), t(11.0)),
    "VonMises": td.VonMises(t(3.0), t(2.0)),
    "Weibull": td.Weibull(t(2.0), t(0.7)),
    "Wishart": td.Wishart(
        t(4.0), covariance_matrix=torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)
    ),
    "independent": td.Independent(td.Beta(t(0.3, 2.0), t(2.0, 1.0)), 1),
    "independent simplices": td.Independent(td.Dirichlet(PAIR), 1),
    "moved": td.TransformedDistribution(
        td.Gamma(t(2.0), t(1.0)), [td.AffineTransform(t(5.0), t(2.0))]
    ),
    "turned": td.Independent(
        td.TransformedDistribution(
            td.Gamma(t(2.0, 3.0), t(1.0)), [td.AffineTransform(t(5.0), t(-2.0))]
        ),
        1,
    ),
    "mixture": mixed(td.Beta(t(0.3, 2.0), t(2.0, 1.0))),
    "mixture of simplices": mixed(td.Dirichlet(PAIR)),
    "mixture of vectors": mixed(td.Independent(td.LogNormal(PAIR, t(1.0)), 1)),
    "mixture of transforms apart": mixed(td.Weibull(t(0.3, 2.0), t(2.0, 1.0))),
    "mixture of supports apart": mixed(td.Pareto(t(1.0, 2.0), t(2.0, 1.0))),
    "folded and scaled": Folded(t(0.0), t(1.0), t(2.0)),
    "mixture on the circle": mixed(td.VonMises(t(1.0, 2.0), t(2.0, 4.0))),
}
INTERVALS = mixed(
    td.Uniform(t(1.0, 1.5), t(2.0, 4.0))
)  # whose density torch itself refuses where only one component has any
REAL = {
    "Normal": td.Normal(t(0.0), t(1.0)),
    "Gumbel": td.Gumbel(t(0.0), t(1.0)),
    "StudentT": td.StudentT(t(3.0)),
    "Laplace": td.Laplace(t(0.0), t(1.0)),
    "Cauchy": td.Cauchy(t(0.0), t(1.0)),
}


def coordinates(name, x):
    """Of one event, the entries that its density is one of."""
    if name == "LKJCholesky":
        return torch.ones(x.shape).tril(-1).bool()
    if name == "Wishart":
        return torch.ones(x.shape).tril().bool()
    chosen = torch.ones(x.shape, dtype=torch.bool)
    if name in ("Dirichlet", "LogisticNormal", "RelaxedOneHotCategorical") or "simplices" in name:
        chosen[..., -1] = False
    return chosen


def gaps(name, law, z, energy):
    """By how much the energy at z is not that of the density in the user's space and the determinant of the map, found anew."""
    view, found = in_free_space(law), []
    for row in z:
        x = view.constrain(row[None])[0]
        slopes = jacobian(lambda v: view.constrain(v[None])[0], row)[coordinates(name, x)]
        truth = law.log_prob(x) + slopes.reshape(row.numel(), -1).det().abs().log()
        found.append(float(-energy(row[None])[0] - truth))
    return torch.tensor(found)


def points(law, rows=4):
    return stk.Noise(7, rows, dtype=torch.float64).normal(0, 0, in_free_space(law).event_shape)


@pytest.mark.parametrize("name", LAWS)
def test_the_law_in_free_space_is_the_distribution(name):
    law = LAWS[name]
    view, z = in_free_space(law), points(law)
    x = view.constrain(z)
    assert torch.allclose(view.unconstrain(x), z, rtol=1e-9, atol=1e-9)
    assert gaps(name, law, z, view.energy).abs().max() < 1e-9
    assert (
        gaps(
            name,
            law,
            z,
            lambda v: (
                stk.from_distribution(law).energy(x0 := view.constrain(v)) - view._jacobian(v, x0)
            ),
        )
        .abs()
        .max()
        < 1e-9
    )
    assert torch.allclose(stk.log_prob(law, x).value, law.log_prob(x))
    without = gaps(
        name, law, z, lambda v: stk.from_distribution(law).energy(view.constrain(v))
    )  # mutant: no Jacobian
    assert without.abs().max() > 1e-3


@pytest.mark.parametrize("name", LAWS)
def test_a_field_of_a_distribution_can_be_pickled(name):
    law = LAWS[name]
    field = stk.from_distribution(law)
    again, bare = (pickle.loads(pickle.dumps(f)) for f in (field, field.bare()))
    z = points(law)
    assert torch.equal(in_free_space(again).energy(z), in_free_space(law).energy(z))
    assert again.support is not None
    assert bare.support is None
    with pytest.raises(
        (AttributeError, pickle.PicklingError)
    ):  # mutant: part by part, with its functions
        pickle.dumps(vars(field))


@pytest.mark.parametrize(
    "transform", [td.transforms.AbsTransform(), td.transforms.SoftmaxTransform()], ids=repr
)
def test_a_distribution_without_a_density_is_refused_when_the_field_is_made(transform):
    law = td.TransformedDistribution(td.Independent(td.Normal(t(0.0, 1.0), t(1.0)), 1), [transform])
    with pytest.raises(
        NotImplementedError
    ):  # mutant: without the look at one point, torch's error in the middle of a run
        law.log_prob(t(0.3, 0.7))
    with pytest.raises(stk.InvalidArgument, match="a density"):
        stk.sample(law, chains=4, steps=2)


@pytest.mark.parametrize("c", [0.5, 1e-3, 0.0, -0.3])
def test_generalised_pareto_laws_of_every_tail(c):
    """Against scipy's, as torch's own density takes no float64; in free space its logarithm is the Jacobian more."""
    law, truth = td.GeneralizedPareto(t(1.0), t(2.0), t(c)), stats.genpareto(c, 1.0, 2.0)
    view, z = in_free_space(law), points(law, 8)
    x = view.constrain(z).requires_grad_()
    value = stk.from_distribution(law).log_prob(x)
    assert value.detach().numpy() == pytest.approx(truth.logpdf(x.detach().numpy()), abs=1e-9)
    assert torch.autograd.grad(value.sum(), x)[0].isfinite().all()
    slope = torch.func.vmap(torch.func.grad(view.constrain))(z)
    assert torch.allclose(-view.energy(z), value + slope.log())
    assert torch.allclose(view.unconstrain(x), z)
    assert not torch.allclose(-view.energy(z), value)  # mutant: no Jacobian


@pytest.mark.parametrize("name", REAL)
def test_a_distribution_of_all_numbers_is_sampled_as_it_is(name):
    field = stk.from_distribution(REAL[name])
    assert in_free_space(field) is field
    assert field.energy(t(math.nan, 0.0)).isfinite().tolist() == [False, True]


def test_outside_the_support_the_density_is_zero_whatever_torch_makes_of_it():
    outside = {
        "Exponential": -1.0,
        "Gamma": -1.0,
        "Pareto": 1.0,
        "Uniform": 9.0,
        "moved": 4.0,
        "Beta": 2.0,
        "VonMises": 4.0,
        "HalfNormal": -1.0,
        "Weibull": -1.0,
    }
    for name, x in outside.items():
        assert float(stk.log_prob(LAWS[name], t(x)[None]).value) == -torch.inf, name
    found = stk.log_prob(INTERVALS, t(0.5, 1.2, 1.8, 2.5)).value
    assert torch.allclose(found.exp(), t(0.0, 0.3, 0.3 + 0.7 / 2.5, 0.7 / 2.5))
    # between the edges of two components only one of them has density
    inside = stk.log_prob(LAWS["mixture of supports apart"], t(1.5)[None]).value
    assert float(inside) == pytest.approx(
        math.log(0.3) + float(td.Pareto(t(1.0), t(2.0)).log_prob(t(1.5)))
    )


@pytest.mark.parametrize("name", LAWS)
def test_where_a_density_is_zero_its_slope_is_too_whatever_torch_makes_of_it(name):
    """Else one component of a mixture, or one row, makes NaN of the gradients of the others."""
    law = LAWS[name]
    x = t(-7.0, -1.3, 31.0).reshape(-1, *(1 for _ in law.event_shape))
    x = x.expand(-1, *law.event_shape).clone().requires_grad_()
    values = freelaws.log_density(freelaws.unvalidated(law), x)
    (slope,) = torch.autograd.grad(values.sum(), x)
    nowhere = values == -torch.inf
    assert nowhere.any()
    assert (slope[nowhere] == 0).all()


class Sides(td.Distribution):
    """An exponential in each of its entries, whose support is said of an entry."""

    arg_constraints, support = {}, constraints.positive

    def __init__(self):
        super().__init__(event_shape=(2,), validate_args=False)

    def log_prob(self, x):
        return -x.sum(-1)


def test_an_event_is_inside_where_all_of_its_entries_are():
    x = torch.cartesian_prod(t(-1.0, 0.5), t(-2.0, 0.7))
    found = freelaws.log_density(Sides(), x)
    assert found.tolist() == [-math.inf] * 3 + [pytest.approx(-1.2)]


def test_what_cannot_be_sampled_is_refused_with_the_way_out():
    cases = [
        (td.Bernoulli(0.3), "Discrete"),
        (td.Poisson(3.0), "Discrete"),
        (td.Normal(torch.zeros(3), 1.0), "Independent"),
        (td.Gamma(torch.ones(2, 2), 1.0), r"Independent\(distribution, 2\)"),
    ]
    for law, way in cases:
        for call in (stk.sample, stk.from_distribution, stk.log_partition):
            with pytest.raises(stk.ScoretkError, match=way):
                call(law)


def test_combinations_of_distributions_act_in_the_users_space():
    gamma, beta = td.Gamma(t(3.0), t(2.0)), LAWS["Beta"]
    x = t(0.3, 0.7)
    wall = stk.Energy(lambda v: torch.where(v < 1.0, v, torch.inf), ())
    cases = {
        "tempered": (stk.tempered(gamma, 2.0), lambda v: gamma.log_prob(v) / 2),
        "product with an energy": (stk.product(gamma, wall), lambda v: gamma.log_prob(v) - v),
        "product of two": (
            stk.product(gamma, LAWS["LogNormal"]),
            lambda v: gamma.log_prob(v) + LAWS["LogNormal"].log_prob(v),
        ),
        "mixture": (stk.mixture([beta, LAWS["Kumaraswamy"]], [0.5, 0.5]), None),
        "posterior": (
            stk.posterior(gamma, lambda v: -((v - 1) ** 2)),
            lambda v: gamma.log_prob(v) - (v - 1) ** 2,
        ),
    }
    for name, (field, log_density) in cases.items():
        assert bool(field.constrain(t(-3.0, 3.0)).gt(0).all()), name  # sampled in free space
        if log_density is not None:
            z = field.unconstrain(x)
            jacobian_ = field.transform.log_jacobian(z, x)
            assert torch.allclose(-field.energy(z), log_density(x) + jacobian_), name
    apart = stk.mixture([gamma, td.Normal(t(0.0), t(1.0))], [0.5, 0.5])  # a law of all numbers
    both = (gamma.log_prob(t(1.0)).exp() + td.Normal(t(0.0), t(1.0)).log_prob(t(1.0)).exp()) / 2
    assert torch.allclose(apart.log_prob(t(-1.0, 1.0)).exp()[1], both)
    assert bool(apart.log_prob(t(-1.0, 1.0)).isfinite().all())
    with pytest.raises(stk.InvalidArgument, match="constrain"):
        stk.product(gamma, beta)


NESTED = {
    "positive": [LAWS["Gamma"], LAWS["LogNormal"], td.Exponential(t(1.5))],
    "in an interval": [LAWS["Beta"], LAWS["Kumaraswamy"], td.Beta(t(2.0), t(3.0))],
    "of all numbers": [
        td.Normal(t(0.0), t(1.0)),
        td.Laplace(t(1.0), t(2.0)),
        td.Cauchy(t(0.0), t(1.0)),
    ],
}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", NESTED)
def test_a_mixture_within_a_mixture_is_the_mixture_of_all(name, order):
    """Also where one of the two is a field under its support already, and the other a law that has one."""
    laws, z = NESTED[name], t(-1.2, 0.3, 1.7)
    inner = (stk.mixture(laws[:2], (0.25, 0.75)), 0.4)
    fields, weights = zip(*[inner, (laws[2], 0.6)][::order], strict=True)
    found, right = stk.mixture(fields, weights), stk.mixture(laws, (0.1, 0.3, 0.6))
    torch.testing.assert_close(found.log_prob(z), right.log_prob(z))
    torch.testing.assert_close(found.score(z), right.score(z))


LOSES_AXES = {
    "of a correlation": (td.LKJCholesky(3, t(1.5)), [td.CorrCholeskyTransform().inv]),
    "of a simplex": (td.Dirichlet(t(1.0, 2.0, 3.0)), [td.StickBreakingTransform().inv]),
    "of a row": (td.Independent(td.Normal(t(0.0)[None], 1.0), 1), [td.ReshapeTransform((1,), ())]),
}


@pytest.mark.parametrize(
    "after", [(), (td.TanhTransform(), td.AffineTransform(2.0, -0.7))], ids=["last", "first"]
)
@pytest.mark.parametrize("name", LOSES_AXES)
def test_the_jacobian_of_a_map_that_loses_axes_is_one_number_a_row(name, after):
    base, maps = LOSES_AXES[name]
    law = td.TransformedDistribution(base, [*maps, *after])
    space = freelaws.support_of(freelaws.unvalidated(law))
    shape = space.free_shape((4, *law.event_shape))
    z = torch.linspace(-1.3, 1.7, math.prod(shape), dtype=torch.float64).reshape(shape).sin()
    each = [jacobian(lambda row: space.constrain(row[None])[0], row) for row in z]
    size = math.prod(law.event_shape)
    right = torch.stack([j.reshape(size, -1).slogdet().logabsdet for j in each])
    x = space.constrain(z)
    found = trailing_sum(space.log_jacobian(z, x), len(law.event_shape) - space.event_dim)
    torch.testing.assert_close(found, right)
    inside = space.contains(x)
    assert inside.ndim == x.ndim - space.event_dim
    assert inside.all()


@pytest.mark.parametrize("name", LOSES_AXES)
def test_a_law_whose_map_loses_axes_on_its_way_has_rows_of_their_own(name):
    base, maps = LOSES_AXES[name]
    law = td.TransformedDistribution(base, [*maps, td.TanhTransform(), td.AffineTransform(2, -0.7)])
    field = stk.tempered(law, 2.0)
    z = torch.linspace(-1.3, 1.7, 4 * math.prod(field.event_shape), dtype=torch.float64)
    z = z.reshape(4, *field.event_shape).sin()
    rows = torch.cat([field.energy(row[None]) for row in z])
    torch.testing.assert_close(field.energy(z), rows)


# --- edges ---------------------------------------------------------------------------------------------------------------


def grid_mass(density, z):
    """The integral of a density over a line, by the trapezoid rule."""
    return float(torch.trapezoid(density, z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("a", "b"), [(0.1, 0.1), (0.05, 0.3)])
def test_mass_at_both_ends_is_there_in_every_dtype(a, b, dtype):
    """Of Beta(a, b) all of the mass, and the right share below 1/2, also in float32, which ends at 1 - 6e-8."""
    law = td.Beta(torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype))
    z = torch.linspace(-400, 400, 80_001, dtype=dtype)
    view = in_free_space(law)
    density = torch.exp(-view.energy(z)).double()
    assert grid_mass(density, z.double()) == pytest.approx(1, abs=1e-4)
    below = grid_mass(torch.where(z < 0, density, 0.0), z.double())
    assert below == pytest.approx(float(stats.beta(a, b).cdf(0.5)), abs=1e-3)
    x = view.constrain(z)
    assert bool(((x > 0) & (x < 1)).all())
    # mutant: torch's own sigmoid and the density of x
    own, last = biject_to(constraints.unit_interval), 1 - torch.finfo(dtype).eps
    y = own(z)
    cut = torch.exp(
        law.log_prob(y.clamp(torch.finfo(dtype).tiny, last)) + own.log_abs_det_jacobian(z, y)
    ).double()
    if dtype is torch.float32:
        assert abs(grid_mass(cut, z.double()) - 1) > 0.01


@pytest.mark.parametrize(
    "constraint",
    [
        constraints.positive,
        constraints.unit_interval,
        constraints.interval(10.0, 11.0),
        constraints.less_than(3.0),
        constraints.simplex,
        constraints.corr_cholesky,
        constraints.lower_cholesky,
        constraints.positive_definite,
        stk.ordered,
        constraints.greater_than(torch.tensor([1.0, 2.0, 3.0])),
    ],
    ids=lambda c: type(c).__name__,
)
def test_far_out_draws_are_inside(constraint):
    shape = (3, 3) if constraint.event_dim == 2 else (3,)
    field = stk.constrained(stk.Energy(lambda x: x.flatten(1).square().sum(1), shape), constraint)
    spread = (
        1.0 if constraint is constraints.positive_definite else 30.0
    )  # beyond, a product of factors is singular
    z = spread * stk.Noise(3, 256).normal(0, 0, field.event_shape)
    x = field.constrain(z)
    assert bool(constraint.check(x).all())
    assert bool(x.isfinite().all())
    assert bool(field.unconstrain(field.constrain(z / spread)).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("first", [1.0, 1e4, -1.0, -1e4, -1e-3, 0.0])
def test_entries_whose_gap_is_lost_rise_by_one_number(first, dtype):
    """Of an ordered vector: the next numbers in turn, also across 0, and what is far enough stays as it was."""
    gaps = [-90.0, -90.0, -6.0, -90.0, 2.0]
    z = torch.tensor([[first, *gaps]], dtype=dtype)
    x = bijection(stk.ordered).constrain(z)[0]
    above = torch.full((), torch.inf, dtype=dtype)
    assert bool((x.diff() > 0).all())
    plain = torch.tensor([first, *torch.tensor(gaps, dtype=dtype).exp()], dtype=dtype).cumsum(0)
    if first:
        assert torch.equal(x[1], torch.nextafter(x[0], above))
        assert torch.equal(x[2], torch.nextafter(x[1], above))
        assert torch.equal(x[4], torch.nextafter(x[3], above))
    torch.testing.assert_close(x, plain, rtol=4 * torch.finfo(dtype).eps, atol=0)
    apart = plain.diff() > 1e-4 * plain[1:].abs()
    assert torch.equal(x[1:][apart][-1:], plain[1:][apart][-1:])


def test_what_lifts_an_entry_has_no_part_in_its_slope():
    z = torch.tensor([[1.0, -90.0, -90.0, 0.5]], requires_grad=True)
    x = bijection(stk.ordered).constrain(z)
    (slope,) = torch.autograd.grad(x.sum(), z)
    torch.testing.assert_close(slope, torch.tensor([[4.0, 0.0, 0.0, math.exp(0.5)]]))
    jacobian = torch.func.vmap(torch.func.jacrev(bijection(stk.ordered).constrain))(z.detach())
    torch.testing.assert_close(jacobian[0].sum(0), slope[0])


def test_what_is_not_finite_is_left_so():
    z = torch.tensor([[0.0, 100.0, 0.0], [-torch.inf, 0.0, 0.0], [0.0, torch.nan, 0.0]])
    x = bijection(stk.ordered).constrain(z)
    assert x[0].tolist() == [0.0, torch.inf, torch.inf]
    assert not bool(x[1:, 1:].isfinite().any())
    assert not bool(stk.ordered.check(x).any())


def test_draws_whose_gaps_are_lost_are_starts():
    """Of a law that lies where float32 does not resolve the gaps: a run goes on from what it drew."""
    far = stk.Energy(lambda x: (x - 1e6).square().sum(1) / 0.02, (3,))
    field = stk.constrained(far, stk.ordered)
    init = torch.tensor([1e6, 1e6 + 0.0625, 1e6 + 0.125]).expand(16, 3)
    draws = stk.sample(field, stk.ULA(1e-3), chains=16, steps=40, init=init)
    assert draws.failures == {}
    assert bool((draws.x.diff(dim=-1) > 0).all())
    assert bool((draws.x.diff(dim=-1) == 0.0625).any())
    assert stk.sample(field, stk.ULA(1e-3), chains=16, steps=2, init=draws.final).failures == {}


def test_entries_of_a_simplex_are_alike():
    """Dirichlet(.1, .1, .1): each permutation of the entries has the same density in free space, and torch's own way has not."""
    law = td.Dirichlet(torch.full((3,), 0.1))
    view = in_free_space(law)
    x = torch.tensor([[1e-20, 1e-12, 1.0], [1.0, 1e-20, 1e-12], [1e-12, 1.0, 1e-20]])
    z = view.unconstrain(x)
    assert torch.allclose(view.constrain(z), x)
    assert float(view.energy(z).std()) < 1e-4
    torchs = biject_to(constraints.simplex)
    again = torchs(torchs.inv(x))
    assert not torch.allclose(again[:, :2], x[:, :2], rtol=0.1)  # the mutant


# --- refusals ------------------------------------------------------------------------------------------------------------


def refusing(x):
    """Two distributions that refuse other rows, one a parameter and one a value."""
    scale = td.Exponential(1.0).log_prob(x[:, 0]) + td.Normal(0.0, x[:, 1]).log_prob(x[:, 0])
    return -scale


ROWS = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -2.0], [math.nan, 1.0], [2.0, 3.0]])


def test_refused_values_are_rejections_of_their_rows(monkeypatch):
    monkeypatch.setattr(
        td.Distribution, "_validate_args", True
    )  # which the compiler turns off for its process
    field = stk.Energy(refusing, (2,))
    energy, gradient = field.energy_and_grad(ROWS)
    alone = [field.energy_and_grad(ROWS[i : i + 1]) for i in (0, 4)]
    assert energy.isfinite().tolist() == [True, False, False, False, True]
    assert energy[1:4].tolist() == [math.inf] * 3
    assert torch.equal(energy[[0, 4]], torch.cat([e for e, _ in alone]))
    assert torch.equal(gradient[[0, 4]], torch.cat([g for _, g in alone]))
    assert bool(gradient[1:4].isnan().all())
    with pytest.raises(ValueError, match="found invalid values"):  # the mutant: nothing caught
        refusing(ROWS)
    assert field.energy(ROWS[1:4]).tolist() == [math.inf] * 3  # every row


def test_where_a_check_does_not_tell_the_rows_they_are_found_by_halves():
    def turned(x):  # the rows on the last axis
        return -td.Independent(td.Exponential(torch.ones(1, 1)), 0).log_prob(x.T).sum(0)

    def uniform(x):
        return -td.Uniform(torch.zeros(len(x)), x[:, 1]).log_prob(torch.zeros(len(x)))

    x = torch.tensor(
        [[1.0, 1.0], [-1.0, 1.0], [3.0, 2.0], [1.0, -1.0], [0.5, 0.5], [1.0, 1.0], [1.0, 2.0]]
    )
    assert stk.Energy(turned, (2,)).energy(x).isfinite().tolist() == [
        True,
        False,
        True,
        False,
        True,
        True,
        True,
    ]
    assert stk.Energy(uniform, (2,)).energy(x).isfinite().tolist() == [
        True,
        True,
        True,
        False,
        True,
        True,
        True,
    ]


def test_errors_that_do_not_come_from_x_are_raised():
    wrong = {
        "satisfy": lambda x: -td.Normal(0.0, -1.0).log_prob(x).sum(1),
        "within the support": lambda x: x.sum(1) - td.Exponential(1.0).log_prob(torch.tensor(-1.0)),
        "broadcastable": lambda x: -td.Normal(torch.zeros(3), 1.0).log_prob(x).sum(1),
        "mine": lambda x: raises(ValueError("mine")),
    }
    for words, fn in wrong.items():
        with pytest.raises(ValueError, match=words):
            stk.sample(stk.Energy(fn, (2,)), stk.MALA(0.1), chains=4, steps=2)


def raises(error):
    raise error


def test_checks_are_on_in_a_run_whatever_the_default_and_as_they_were_afterwards():
    before = td.Distribution._validate_args
    try:
        for default in (True, False):  # torch.compile turns it off for a whole process
            td.Distribution.set_default_validate_args(default)
            assert (
                float(
                    stk.Energy(lambda x: -td.Exponential(1.0).log_prob(x)[:, 0], (1,)).energy(
                        -torch.ones(1, 1)
                    )
                )
                == math.inf
            )
            assert td.Distribution._validate_args is default
    finally:
        td.Distribution.set_default_validate_args(before)


@pytest.mark.parametrize(
    "solver",
    [
        stk.HMC(5.0, leapfrogs=5, metric="none"),
        stk.NUTS(2.0, metric="none"),
        stk.ParallelTempering(
            temperatures=(1.0, 4.0), kernel=stk.HMC(2.0, leapfrogs=3, metric="none")
        ),
    ],
    ids=lambda s: type(s).__name__,
)
def test_runs_outlive_refusals(solver):
    """A prior from torch beside a wall, and an energy that checks its values, under steps that leave every support."""
    pyro = stk.Energy(
        lambda x: -td.Normal(0.0, 1.0).log_prob(x).sum(1) - td.HalfNormal(1.0).log_prob(x[:, 0]),
        (2,),
    )
    wall = stk.Energy(lambda x: torch.where(x[:, 0] < 1, x.square().sum(1), torch.inf) * 1e20, (2,))
    prior = stk.from_distribution(td.Independent(td.Normal(torch.zeros(2), 1.0), 1))
    for field in (pyro, stk.product(prior, wall)):
        draws = stk.sample(
            field, solver, chains=16, steps=10, seed=2, init=torch.full((16, 2), 0.5)
        )
        assert draws.ok.all()
        assert bool(draws.x.isfinite().all())


# --- starts --------------------------------------------------------------------------------------------------------------


def box(low, high, shape=(1,)):
    """A flat energy that is infinite outside an interval, with no constraint said."""
    return stk.Energy(lambda x: torch.where((x > low) & (x < high), 0 * x, torch.inf).sum(1), shape)


@pytest.mark.thorough
def test_chains_that_we_start_outside_start_again():
    for field in (box(3.0, 9.0), box(-0.01, 0.01), box(0.0, 5.0, (3,))):
        draws = stk.sample(field, stk.MALA(1e-6), chains=64, steps=1, seed=3)
        assert draws.ok.all()
    run = {"steps": 3, "seed": 3}
    whole = stk.sample(box(0.0, 5.0, (3,)), stk.MALA(0.01), chains=32, **run)
    parts = stk.sample(box(0.0, 5.0, (3,)), stk.MALA(0.01), chains=32, batch=5, **run)
    assert torch.equal(whole.x, parts.x)  # chain c is the same chain
    assert whole.cost["energy"] > 32 * (1 + 3)  # and what the starts took is counted
    sound = stk.sample(box(-50.0, 50.0), stk.MALA(0.01), chains=32, **run)
    assert sound.cost["energy"] == 32 * (1 + 3)


def test_starts_of_the_users_stay_flagged_and_hopeless_ones_are_told():
    init = torch.tensor([[10.5], [3.0], [10.2]])
    draws = stk.sample(box(10.0, 11.0), stk.MALA(1e-6), init=init, steps=2)
    assert draws.ok.tolist() == [True, False, True]
    with pytest.warns(UserWarning, match="init="):
        draws = stk.sample(
            stk.Energy(lambda x: x.sum(1) * math.inf, (2,)), stk.MALA(0.1), chains=3, steps=2
        )
    assert draws.ok.tolist() == [False] * 3


SAMPLED = {
    "Uniform": (td.Uniform(10.0, 11.0), stats.uniform(10, 1).cdf),
    "Beta": (
        td.Beta(t(0.1), t(0.1)),
        stats.beta(0.1, 0.1).cdf,
    ),  # in float32 a tenth of the draws are the last number
    "Gamma": (td.Gamma(0.5, 2.0), stats.gamma(0.5, scale=0.5).cdf),
    "HalfNormal": (td.HalfNormal(2.0), stats.halfnorm(scale=2).cdf),
    "Kumaraswamy": (
        td.Kumaraswamy(torch.tensor(0.5), torch.tensor(0.2)),
        lambda x: 1 - (1 - x**0.5) ** 0.2,
    ),
    "Weibull": (td.Weibull(1.0, 0.2), stats.weibull_min(0.2).cdf),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLED)
def test_draws_follow_the_distribution(name):
    law, cdf = SAMPLED[name]
    draws = stk.sample(law, stk.NUTS(), chains=1000, steps=60, warmup=200, seed=4, keep="last")
    assert draws.ok.all()
    assert ks_p(draws.final, cdf) > FALSE_ALARM


@pytest.mark.slow
def test_half_of_a_symmetric_law_is_below_its_middle_in_float32():
    draws = stk.sample(
        td.Beta(0.1, 0.1), stk.NUTS(), chains=1000, steps=60, warmup=200, seed=4, keep="last"
    )
    assert draws.final.dtype is torch.float32
    assert abs(mean_z((draws.final < 0.5).double(), 0.5)) < z_limit()


@pytest.mark.slow
def test_a_sparse_simplex_has_its_law_by_way_of_a_users_energy_too():
    law = td.Dirichlet(torch.full((3,), 0.1))
    for field in (
        law,
        stk.constrained(stk.Energy(lambda x: -law.log_prob(x), (3,)), constraints.simplex),
    ):
        draws = stk.sample(
            field, stk.NUTS(), chains=1000, steps=60, warmup=200, seed=4, keep="last"
        )
        assert mean_z(draws.final, torch.full((3,), 1 / 3)).abs().max() < z_limit(3)
        # an entry alone is Beta(.1, .2), and at most one of three is above .99
        cornered = (draws.final.amax(1) > 0.99).double()
        assert abs(mean_z(cornered, 3 * float(stats.beta(0.1, 0.2).sf(0.99)))) < z_limit()


# --- what the compiler leaves out

HALVES = {
    "Exponential": lambda x: -td.Exponential(1.0).log_prob(x).sum(1),
    "Uniform": lambda x: -td.Uniform(0.0, 3.0).log_prob(x).sum(1) + x.square().sum(1),
    "one coordinate": lambda x: x[:, 0].square() - td.HalfNormal(2.0).log_prob(x[:, 1]),
    "a parameter": lambda x: x.square().sum(1) - td.Bernoulli(x[:, 0]).log_prob(torch.ones(len(x))),
}
INSIDE = {
    "the line": stk.Energy(lambda x: -td.Normal(0.0, 2.0).log_prob(x).sum(1), (2,)),
    "by exp": stk.Energy(lambda x: -td.Gamma(2.0, 1.0).log_prob(x.exp()).sum(1), (2,)),
    "under its support": stk.constrained(
        stk.Energy(HALVES["Exponential"], (2,)), constraints.positive
    ),
    "a distribution": stk.from_distribution(td.Independent(td.Gamma(torch.ones(2), 2.0), 1)),
}


@pytest.mark.parametrize("name", HALVES)
def test_a_field_whose_checks_the_compiler_leaves_out_is_not_compiled(name):
    field, run = (
        stk.Energy(HALVES[name], (2,)),
        {"chains": 8, "steps": 8, "init": torch.full((8, 2), 0.5)},
    )
    kernel = stk.HMC(step_size=0.4, leapfrogs=3, metric="none")
    with pytest.warns(UserWarning, match="not compiled.*checks the compiler leaves out"):
        draws = stk.sample(field, kernel, compile=True, **run)
    assert torch.equal(draws.x, stk.sample(field, kernel, **run).x)


@pytest.mark.parametrize("name", INSIDE)
def test_what_never_leaves_its_support_is_compiled(name):
    bound = resolve(INSIDE[name], {"energy"})
    assert refuses(bound.energy, torch.zeros(4, 2)) is None


def test_asked_at_its_start_alone_a_field_is_compiled(monkeypatch):
    """The mutant: every chain starts inside."""
    monkeypatch.setattr("scoretk.fields.validation.REACH", (0.0,))
    bound = resolve(stk.Energy(HALVES["Exponential"], (2,)), {"energy"})
    assert refuses(bound.energy, torch.ones(4, 2)) is None


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, math.inf), (-math.inf, 2.0), (-math.inf, math.inf), (1.0, 2.0)], ids=str
)
@pytest.mark.parametrize("kind", ["interval", "half_open_interval"])
def test_an_interval_may_have_an_infinite_end(kind, low, high):
    """As torch's generalised Pareto law has it where its tail has no end."""
    onto = bijection(getattr(constraints, kind)(low, high))
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    x = onto.constrain(z)
    assert bool(((x > low) & (x < high)).all())
    torch.testing.assert_close(onto.unconstrain(x), z)
    slope = torch.func.vmap(torch.func.grad(onto.constrain))(z)
    torch.testing.assert_close(onto.log_jacobian(z, x), slope.abs().log())
    ends = onto.constrain(torch.tensor([-60.0, 60.0], dtype=torch.float64)).sort().values
    for end, bound in zip(ends.tolist(), (low, high), strict=True):
        assert abs(end) > 50 if math.isinf(bound) else abs(end - bound) < 1e-6


@pytest.mark.parametrize(
    "ends", [((0.0, 0.0), (1.0, math.inf)), ((-math.inf, 0.0), (1.0, 2.0))], ids=str
)
def test_an_end_that_is_infinite_in_some_entries_is_refused(ends):
    with pytest.raises(stk.InvalidArgument, match="in all entries alike"):
        bijection(constraints.interval(*map(torch.tensor, ends)))


SHARED = {
    "half line": lambda ones: td.Pareto(2 * ones, 3 + ones),
    "box": lambda ones: td.Uniform(ones, 3 * ones),
    "image": lambda ones: td.TransformedDistribution(
        td.Normal(ones, ones), [td.ExpTransform(), td.AffineTransform(ones, ones)]
    ),
    "rows": lambda ones: td.Independent(
        td.Pareto(ones[:, None].repeat(1, 2), torch.tensor(4.0)), 1
    ),
}


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("name", SHARED)
def test_a_mixture_of_one_support_has_the_shape_of_a_component(name, rows):
    """As the bounds are of all three components, which x has not."""
    law = td.MixtureSameFamily(td.Categorical(torch.ones(3)), SHARED[name](torch.ones(3)))
    field = in_free_space(stk.from_distribution(law))
    assert field.event_shape == law.event_shape
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = law.sample((rows,))
    z = field.unconstrain(x)
    torch.testing.assert_close(field.constrain(z), x)
    torch.testing.assert_close(field.users_log_prob(x), law.log_prob(x))
    assert (field.users_log_prob(torch.full_like(x, -9.0)) == -torch.inf).all()
    assert field.energy(z).shape == (rows,)


HINGING = {  # of parameters that are x: where these are none, x is refused
    "scale": (lambda v: td.Normal(0.0, v), 0.5, -1.0),
    "rate": (td.Exponential, 0.5, -1.0),
    "concentration": (lambda v: td.Gamma(v, 1.0), 0.5, -1.0),
    "degrees of freedom": (td.StudentT, 3.0, -1.0),
    "high": (lambda v: td.Uniform(0.0, v), 2.0, -1.0),
    "probability": (td.Bernoulli, 0.5, 1.5),
    "probability of a trial": (td.Geometric, 0.5, -0.5),
    "probability between": (lambda v: td.ContinuousBernoulli(v, validate_args=True), 0.3, 1.5),
    "covariance": (lambda v: td.MultivariateNormal(torch.zeros(1), v[..., None, None]), 0.5, -1.0),
    "support": (lambda v: td.Uniform(0.0, v), 2.0, 0.5),
    "rows of a support": (
        lambda v: td.Independent(td.Uniform(torch.zeros(len(v), 1), v[:, None]), 1),
        2.0,
        0.5,
    ),
    "value": (lambda v: None, 0.5, -1.0),
}


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", HINGING)
def test_rows_without_a_law_are_refused_and_the_others_have_theirs(name, rows):
    """Whichever check of torch's distributions it is, and however it says which rows these are."""
    law, right, wrong = HINGING[name]

    def energy(x):
        if name == "value":
            return -td.Exponential(1.0).log_prob(x)
        own = law(x)
        value = torch.ones(1) if own.event_shape else torch.tensor(1.0)
        return -own.log_prob(value).reshape(len(x))

    x = torch.full((rows,), right)
    x[rows // 2] = wrong
    found, gradient = stk.Energy(energy, ()).energy_and_grad(x)
    inside = torch.arange(rows) != rows // 2
    assert torch.equal(found.isfinite(), inside)
    assert torch.equal(found == math.inf, ~inside)
    assert torch.equal(gradient.isfinite(), inside)
    if rows > 1:
        torch.testing.assert_close(found[inside], energy(x[inside]))


THREE = torch.full((3,), 2.0, dtype=torch.float64)
SAME_SPACE = {
    "numbers and tensors": (td.Beta(THREE[0], THREE[0]), td.Uniform(0 * THREE[0], THREE[0] / 2)),
    "of many entries": tuple(
        td.Independent(law, 1) for law in (td.Beta(THREE, THREE), td.Uniform(0 * THREE, THREE / 2))
    ),
    "above": (td.Pareto(THREE[0], THREE[0]), td.Pareto(torch.tensor([2.0]).double()[0], 3.0)),
}


@pytest.mark.parametrize("name", SAME_SPACE)
def test_laws_of_one_support_are_mixed_however_its_bounds_are_given(name):
    """With the density of the mixture in the space that they have; product as well."""
    laws = SAME_SPACE[name]
    field = stk.mixture(list(laws), [0.3, 0.7])
    z = torch.linspace(-1, 1, 4, dtype=torch.float64)
    z = z.reshape(-1, *(1,) * len(field.event_shape)).expand(-1, *field.event_shape)
    x = field.constrain(z)
    dense = torch.logaddexp(
        *(law.log_prob(x) + math.log(w) for law, w in zip(laws, (0.3, 0.7), strict=True))
    )
    torch.testing.assert_close(-field.users_energy(x), dense)
    both = -stk.product(*laws).users_energy(x)
    torch.testing.assert_close(both - both[0], (d := sum(law.log_prob(x) for law in laws)) - d[0])


@pytest.mark.parametrize("other", [td.Uniform(0.0, 1.5), td.Uniform(0.1, 1.0), td.Exponential(1.0)])
def test_laws_of_other_supports_are_not_mixed(other):
    with pytest.raises(stk.InvalidArgument, match="one and the same constraint"):
        stk.mixture([td.Beta(2.0, 3.0), other], [0.5, 0.5])


def test_laws_whose_bounds_agree_in_the_first_entry_alone_are_not_mixed():
    up = torch.tensor([1.0, 2.0, 3.0])
    laws = [td.Independent(td.Uniform(0 * up, high), 1) for high in (up, up.flip(0) * 0 + 1)]
    with pytest.raises(stk.InvalidArgument, match="one and the same constraint"):
        stk.mixture(laws, [0.5, 0.5])


@pytest.mark.parametrize("name", [*LAWS, *REAL])
def test_where_an_energy_is_a_number_its_slope_is_one(name):
    """In free space and in the user's, in the middle and however far out."""
    law = (LAWS | REAL)[name]
    view, plain = in_free_space(law), stk.from_distribution(law)
    for scale in (0.0, 1e-9, 1.0, 150.0):
        z = scale * points(law)
        for field, x in ((view, z), (plain, getattr(view, "constrain", lambda z: z)(z))):
            told = field.energy(x).isfinite()
            assert bool(field.score(x)[told].isfinite().all()), (scale, field)


@pytest.mark.parametrize("name", [n for n, law in LAWS.items() if len(law.event_shape) < 2])
def test_where_a_map_has_a_number_its_slope_is_no_nan(name):
    """Into free space and back, in the middle and where x rounds to an end."""
    field = in_free_space(LAWS[name])
    if not hasattr(field, "unconstrain"):
        return
    for scale in (0.0, 1e-9, 1.0, 12.0, 37.0):
        z = scale * points(LAWS[name], 9)
        x = field.constrain(z)
        for ask, at in ((field.constrain, z), (field.unconstrain, x)):
            point = at.detach().requires_grad_()
            with contextlib.suppress(stk.InvalidArgument):  # what rounds to an end may be outside
                image = ask(point)
                (slope,) = torch.autograd.grad(image.sum(), point)
                held = image.abs().max() < 1e300  # what is clamped has overflowed on its way
                assert not (held and bool(slope.isnan().any())), (ask, scale)


def refused_at(value):
    return (
        td.Exponential(value.new_tensor(1.0), validate_args=True).log_prob(value).flatten(1).sum(1)
    )


REFUSALS = {
    "a value": refused_at,
    "a parameter": lambda x: td.Normal(x, x, validate_args=True).log_prob(x).sum(1),
    "a sum of all rows": lambda x: refused_at(x[None].amin(1).expand(1, x.shape[1])) + x.sum(1),
}


@pytest.mark.parametrize("check", REFUSALS)
@pytest.mark.parametrize("turn", range(8))
def test_an_error_of_the_users_own_is_theirs_however_late_it_comes(check, turn):
    """Where rows are looked for that a check of torch's refuses, the function is asked again."""
    asked = []

    def evaluate(x):
        asked.append(len(x))
        if len(asked) == turn + 1:
            raise ValueError("theirs")
        return REFUSALS[check](x)

    x = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 1.0], [-2.0, 1.0], [0.5, 0.5]]).double()
    try:
        rejecting(evaluate, x, {}, math.inf)
    except ValueError as error:
        found = error
    else:
        found = None
    assert len(asked) == turn + 1 if found else len(asked) <= turn
    assert "theirs" in str(found or "theirs")


BACK = {
    "positive": (constraints.positive, ()),
    "above": (constraints.greater_than(-2.0), (2,)),
    "below": (constraints.less_than(3.0), ()),
    "interval": (constraints.interval(-1.0, 4.0), (2,)),
    "simplex": (constraints.simplex, (4,)),
    "ordered": (stk.ordered, (3,)),
    "correlation": (constraints.corr_cholesky, (4, 4)),
    "lower": (constraints.lower_cholesky, (3, 3)),
    "positive definite": (constraints.positive_definite, (3, 3)),
}


@pytest.mark.parametrize("name", BACK)
def test_the_slope_of_the_way_back_undoes_that_of_the_way_there(name):
    constraint, shape = BACK[name]
    variables = {"a": stk.Variable(shape, constraint)}
    field = stk.Energy(lambda a: a.reshape(len(a), -1).square().sum(1), variables=variables)
    z = torch.linspace(-1.4, 1.2, 3 * field.event_shape[0], dtype=torch.float64).reshape(3, -1)
    there = torch.autograd.functional.jacobian(lambda y: field.constrain(y).sum(0), z)
    x = field.constrain(z).requires_grad_()
    (slope,) = torch.autograd.grad(field.unconstrain(x).square().sum() / 2, x)
    back = torch.einsum("xiz,ix->iz", there, slope)  # of |z|^2 / 2, by way of x
    torch.testing.assert_close(back, z)
