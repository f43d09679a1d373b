"""Sites that are flat on a support and cannot be drawn: the posterior is that of the data."""

import math

import pytest
import torch
from torch import distributions as td

import scoretk as stk
from scoretk.errors import InvalidArgument
from tests.adapters.test_flows import importing

Y = torch.tensor([1.0, 2.0, 3.0, 2.5])
POINTS = {
    "mu": torch.tensor([0.5, 2.0, -1.0]),
    "s": torch.tensor([0.4, 1.5, 3.0]),
    "w": torch.tensor([[0.2, -0.5], [1.5, 0.0], [0.9, 1.9]]),
}
"""mu is real, s positive, w of two numbers in (-1, 2)."""


def of_numpyro():
    numpyro, jnp = importing("numpyro"), importing("jax").numpy
    dist = importing("numpyro.distributions")

    def model():
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        s = numpyro.sample("s", dist.ImproperUniform(dist.constraints.positive, (), ()))
        with numpyro.plate("two", 2):
            box = dist.constraints.interval(-1.0, 2.0)
            w = numpyro.sample("w", dist.ImproperUniform(box, (), ()).mask(True))
        numpyro.factor("of w", -jnp.square(w).sum())
        numpyro.sample("y", dist.Normal(mu, s).expand([4]).to_event(1), obs=jnp.array(Y.numpy()))

    return stk.from_numpyro(model)


def of_pyro():
    pyro, dist = importing("pyro"), importing("pyro.distributions")

    def model():
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        s = pyro.sample("s", dist.ImproperUniform(dist.constraints.positive, (), ()))
        box = dist.constraints.interval(-1.0, 2.0)
        w = pyro.sample("w", dist.ImproperUniform(box, (2,), ()).to_event(1))
        pyro.factor("of w", -w.square().sum())
        pyro.sample("y", dist.Normal(mu, s).expand([4]).to_event(1), obs=Y)

    return stk.from_pyro(model)


def of_pymc():
    pymc = importing("pymc")
    with pymc.Model() as model:
        mu, s = pymc.Flat("mu"), pymc.HalfFlat("s")
        w = pymc.Uniform("w", -1.0, 2.0, shape=2)
        pymc.Potential("of w", -(w**2).sum())
        pymc.Normal("y", mu, s, observed=Y.double().numpy())
    return stk.from_pymc(model)


def log_density(mu, s, w):
    """Of the data and of w, up to a constant, `(batch,)`."""
    return td.Normal(mu[:, None], s[:, None]).log_prob(Y).sum(1) - w.square().sum(1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [of_numpyro, of_pyro, of_pymc], ids=lambda make: make.__name__)
def test_a_flat_site_has_its_support_and_no_density_of_its_own(make):
    field = make().in_free_space() if make is of_pyro else make()
    x = field.transform.point(POINTS)
    found, expected = -field.users_energy(x), log_density(**POINTS)
    torch.testing.assert_close(
        found - found[0], expected - expected[0], rtol=1e-4, atol=1e-4, check_dtype=False
    )
    mutant = expected + td.Normal(0.0, 10.0).log_prob(POINTS["mu"])  # a law that is nearly flat
    assert float(((found - found[0]) - (mutant - mutant[0])).abs().max()) > 1e-2
    draws = stk.sample(field, stk.MALA(0.1), chains=8, steps=20, seed=1)
    assert draws.failures == {}
    assert float(draws["s"].min()) > 0
    assert bool(((draws["w"] > -1) & (draws["w"] < 2)).all())


@pytest.mark.parametrize(
    ("library", "said"),
    [
        ("numpyro", r"known bijection.*'x', a flat one.*Sample the site"),
        ("pyro", r"'x'.*a constraint with a bijection.*Sphere"),
    ],
)
def test_a_flat_site_without_a_bijection_is_told(library, said):
    owner, dist = importing(library), importing(f"{library}.distributions")
    odd = dist.constraints.sphere

    def model():
        owner.sample("x", dist.ImproperUniform(odd, (), (3,)))

    with pytest.raises(InvalidArgument, match=said):
        getattr(stk, f"from_{library}")(model)


def test_the_posterior_of_a_mean_with_a_flat_prior_is_known():
    """`mu | y ~ N(mean(y), 1 / n)` of unit normals."""
    numpyro, jnp = importing("numpyro"), importing("jax").numpy
    dist = importing("numpyro.distributions")

    def model():
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(mu, 1.0).expand([4]).to_event(1), obs=jnp.array(Y.numpy()))

    field = stk.from_numpyro(model)
    x = torch.linspace(0, 4, 9)[:, None]
    gap = -field.energy(x) - td.Normal(Y.mean(), 1 / math.sqrt(len(Y))).log_prob(x[:, 0])
    torch.testing.assert_close(gap, gap[:1].expand(9), rtol=1e-4, atol=1e-4)


def test_a_model_of_pyro_that_is_flat_in_its_sites_is_sampled():
    """Uniforms without data: the density is known, and its gradient is 0."""
    pyro = importing("pyro")

    def model():
        pyro.sample("a", pyro.distributions.Uniform(2.0, 6.0))
        pyro.sample("b", pyro.distributions.Uniform(torch.zeros(2), 1.0).to_event(1))

    field = stk.from_pyro(model)
    x = torch.tensor([[3.0, 0.2, 0.9], [5.0, 0.5, 0.1]])
    inner = field.field
    torch.testing.assert_close(inner.energy(x), torch.full((2,), 4.0).log())
    assert bool((inner.score(x) == 0).all())
    draws = stk.sample(field, "nuts", chains=8, steps=20, warmup=20)
    assert draws.failures == {}
    assert bool(((draws["a"] > 2) & (draws["a"] < 6)).all())


def test_a_density_that_is_detached_from_its_sites_is_still_refused():
    pyro = importing("pyro")

    def model():
        a = pyro.sample("a", pyro.distributions.Uniform(0.0, 1.0))
        pyro.factor("away", -(a.detach() ** 2))

    with pytest.raises(InvalidArgument, match="that torch can differentiate"):
        stk.from_pyro(model).score(torch.zeros(2, 1))
