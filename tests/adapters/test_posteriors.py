"""Eight schools, written in Pyro, numpyro, PyMC, JAX and (a fake of) bridgestan: names, supports, densities, gradients."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import distributions as td
from torch.distributions import constraints

import scoretk as stk
from scoretk.errors import InvalidArgument

Y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
SIGMA = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def importing(name):
    with warnings.catch_warnings():  # of the library itself, at its first import
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def energy(mu, tau, theta):
    prior = td.Normal(0.0, 5.0).log_prob(mu) + td.HalfCauchy(5.0).log_prob(tau)
    schools = td.Normal(mu[:, None], tau[:, None]).log_prob(theta).sum(1)
    return -prior - schools - td.Normal(theta, torch.tensor(SIGMA)).log_prob(torch.tensor(Y)).sum(1)


TRUE = stk.Energy(energy, variables={"mu": (), "tau": constraints.positive, "theta": (8,)})


def in_pyro():
    pyro = importing("pyro")
    import pyro.distributions as dist

    def model(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("school", 8):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, torch.tensor(SIGMA)), obs=y)

    return stk.from_pyro(model, torch.tensor(Y))


def in_numpyro():
    numpyro = importing("numpyro")
    import jax.numpy as jnp
    import numpyro.distributions as dist

    def model(y=None):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("school", 8):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, jnp.array(SIGMA)), obs=y)

    return stk.from_numpyro(model, y=jnp.array(Y))


def in_jax():
    importing("jax")
    import jax.numpy as jnp
    from jax.scipy.stats import cauchy, norm

    def logp(p):
        log_p = norm.logpdf(p["mu"], 0, 5) + cauchy.logpdf(p["tau"], 0, 5)
        log_p += norm.logpdf(p["theta"], p["mu"], p["tau"]).sum()
        return log_p + norm.logpdf(jnp.array(Y), p["theta"], jnp.array(SIGMA)).sum()

    example = {"mu": jnp.zeros(()), "tau": jnp.ones(()), "theta": jnp.zeros(8)}
    return stk.from_jax(logp, example, {"tau": constraints.positive})


def in_pymc():
    pm = importing("pymc")
    with pm.Model(coords={"school": list("ABCDEFGH")}) as model:
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        theta = pm.Normal("theta", mu, tau, dims="school")
        pm.Normal("y", theta, np.array(SIGMA), observed=np.array(Y))
    return stk.from_(model)


class StanModel:
    """bridgestan's documented interface, computed in torch in place of Stan: theta, mu, tau = exp(z)."""

    def _at(self, row):
        z = torch.tensor(row, requires_grad=True)
        return z, z[9].exp()

    def param_names(self):
        return [*(f"theta.{i}" for i in range(1, 9)), "mu", "tau"]

    def param_num(self):
        return 10

    param_unc_num = param_num

    def _log_density(self, row, jacobian):
        z, tau = self._at(row)
        value = -energy(z[8:9], tau[None], z[None, :8])[0]
        return z, value + z[9] if jacobian else value

    def log_density(self, row, *, propto=True, jacobian=True):
        if not np.isfinite(row).all():
            raise RuntimeError("Exception: normal_lpdf: Location parameter is nan")
        return float(self._log_density(row, jacobian)[1].detach())

    def log_density_gradient(self, row, *, propto=True, jacobian=True):
        z, value = self._log_density(row, jacobian)
        return float(value.detach()), torch.autograd.grad(value, z)[0].numpy()

    def param_constrain(self, row):
        return np.concatenate([row[:9], np.exp(row[9:])])

    def param_unconstrain(self, row):
        with np.errstate(invalid="ignore"):
            return np.concatenate([row[:9], np.log(row[9:])])


StanModel.__module__ = "bridgestan.model"

SCHOOLS = {
    "pyro": in_pyro,
    "numpyro": in_numpyro,
    "jax": in_jax,
    "pymc": pytest.param(in_pymc, marks=pytest.mark.slow),
    "stan": lambda: stk.from_(StanModel()),
}
EACH = [p if not callable(p) else pytest.param(p, id=n) for n, p in SCHOOLS.items()]


def values(n=4):
    draw = torch.linspace(-1, 1, n, dtype=torch.float64)
    return {
        "mu": 3 * draw,
        "tau": (1 + draw).exp(),
        "theta": torch.outer(draw, torch.linspace(-2, 9, 8, dtype=torch.float64)) + 4,
    }


@pytest.fixture(params=EACH)
def field(request):
    return request.param()


def test_names_supports_density_and_gradient_are_the_models(field):
    layout = field.variables.layout
    assert {**layout.shapes} == {"mu": (), "tau": (), "theta": (8,)}
    z, truth = (f.unconstrain(f.variables.point(values())) for f in (field, TRUE))
    for dtype, close in (
        (torch.float64, {"rtol": 1e-6, "atol": 1e-6}),
        (torch.float32, {"rtol": 1e-4, "atol": 1e-4}),
    ):
        found, expected = field.energy_and_grad(z.to(dtype)), TRUE.energy_and_grad(truth.to(dtype))
        gap = found[0] - expected[0]
        torch.testing.assert_close(gap, gap[:1].expand_as(gap), **close)
        assert found[0].dtype == found[1].dtype == dtype
        ours, theirs = (
            f.variables.layout.split(g) if g.shape[1] == 10 else None
            for f, g in ((TRUE, expected[1]), (field, found[1]))
        )
        for name, gradient in ours.items():
            torch.testing.assert_close(theirs[name], gradient, **close)
    x = field.constrain(z)
    for name, value in layout.split(x).items():
        torch.testing.assert_close(value, values()[name])
    torch.testing.assert_close(field.energy(z), field.energy_and_grad(z)[0])


def test_draws_and_starts_have_the_names(field):
    draws = stk.sample(field, stk.MALA(0.02), chains=4, steps=3, init=values(), dtype=torch.float64)
    assert draws.failures == {}
    assert draws["theta"].shape == (4, 3, 8)
    assert bool((draws["tau"] > 0).all())
    expected = stk.sample(
        TRUE, stk.MALA(0.02), chains=4, steps=3, init=values(), dtype=torch.float64
    )
    if tuple(field.variables.layout.shapes) == tuple(
        TRUE.variables.layout.shapes
    ):  # the same noise
        torch.testing.assert_close(draws["theta"], expected["theta"])


def test_a_tempered_model_is_tempered_in_its_own_space(field):
    z = field.unconstrain(field.variables.point(values()))
    if type(field.transform).__name__ == "_StansMap":
        with pytest.raises(InvalidArgument, match="differentiate"):
            stk.tempered(field, 2.0).score(z)
        return
    truth = TRUE.unconstrain(TRUE.variables.point(values()))
    ours, theirs = stk.tempered(field, 2.0).score(z), stk.tempered(TRUE, 2.0).score(truth)
    named = [f.variables.layout.split(s) for f, s in ((field, ours), (TRUE, theirs))]
    for name in named[0]:
        torch.testing.assert_close(named[0][name], named[1][name])


class TestJax:
    def test_an_array_in_the_dtype_of_x(self):
        importing("jax")
        import jax.numpy as jnp

        field = stk.from_jax(lambda x: -(x**4).sum() / 4 - jnp.cos(x[0]), jnp.zeros(3))
        x = torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(4, 3)
        y = x.clone().requires_grad_()
        expected = (y**4).sum(1) / 4 + y[:, 0].cos()
        torch.testing.assert_close(field.energy(x), expected.detach(), rtol=1e-12, atol=1e-12)
        (gradient,) = torch.autograd.grad(expected.sum(), y)
        torch.testing.assert_close(field.score(x), -gradient, rtol=1e-12, atol=1e-12)
        assert field.energy(x.float()).dtype == torch.float32
        draws = stk.sample(field, stk.MALA(0.1), chains=4, steps=3)
        assert draws.failures == {}

    def test_what_does_not_fit_is_refused(self):
        importing("jax")
        import jax
        import jax.numpy as jnp

        with pytest.raises(InvalidArgument, match="one number a point"):
            stk.from_jax(lambda x: -(x**2), jnp.zeros(3))
        with pytest.raises(InvalidArgument, match="example"):
            stk.from_jax(lambda x: x["a"], jnp.zeros(3))
        with pytest.raises(InvalidArgument, match="of the example's shapes"):
            stk.from_jax(lambda p: p["a"].sum(), {"a": jnp.zeros(2)}, {"b": (3,)})
        with pytest.raises(InvalidArgument, match=r"scoretk\.from_jax"):
            stk.sample(jax.jit(lambda x: -(x**2).sum()), chains=2)


class TestPyro:
    def test_a_model_that_vmap_does_not_take_is_asked_row_by_row(self):
        pyro = importing("pyro")
        import pyro.distributions as dist

        def model():
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            if float(x.detach()) > 0:  # a choice by the value
                pyro.factor("more", -x)

        field = stk.from_pyro(model)
        z = torch.tensor([[-1.0], [2.0]])
        expected = z[:, 0] ** 2 / 2 + 0.5 * math.log(2 * math.pi) + z[:, 0].clamp(min=0)
        torch.testing.assert_close(field.energy(z), expected)
        torch.testing.assert_close(field.score(z), torch.tensor([[1.0], [-3.0]]))

    def test_supports_that_move_and_discrete_sites_are_refused(self):
        pyro = importing("pyro")
        import pyro.distributions as dist

        def moving():
            high = pyro.sample("high", dist.Exponential(1.0))
            pyro.sample("x", dist.Uniform(0.0, high))

        def discrete():
            pyro.sample("k", dist.Bernoulli(0.5))

        with pytest.raises(InvalidArgument, match="depends on other sites"):
            stk.from_pyro(moving)
        with pytest.raises(InvalidArgument, match="discrete latent site 'k'"):
            stk.from_pyro(discrete)
        with pytest.raises(InvalidArgument, match="latent site"):
            stk.from_pyro(lambda: None)

    def test_supports_of_all_kinds(self):
        pyro = importing("pyro")
        import pyro.distributions as dist

        def model():
            pyro.sample("p", dist.Dirichlet(torch.ones(3)))
            pyro.sample("u", dist.Uniform(-1.0, 2.0).expand([2]).to_event(1))

        field = stk.from_pyro(model)
        draws = stk.sample(field, stk.MALA(0.3), chains=8, steps=5)
        torch.testing.assert_close(draws["p"].sum(-1), torch.ones(8, 5))
        assert bool((draws["u"].abs() <= 2).all())


class TestNumpyro:
    def test_supports_and_discrete_sites(self):
        numpyro = importing("numpyro")
        import jax.numpy as jnp
        import numpyro.distributions as dist

        def model():
            numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
            numpyro.sample("u", dist.Uniform(-1.0, 2.0).expand([2]).to_event(1))

        draws = stk.sample(stk.from_numpyro(model), stk.MALA(0.3), chains=8, steps=5)
        torch.testing.assert_close(draws["p"].sum(-1), torch.ones(8, 5))
        assert bool(((draws["u"] >= -1) & (draws["u"] <= 2)).all())
        with pytest.raises(InvalidArgument, match="discrete latent site 'k'"):
            stk.from_numpyro(lambda: numpyro.sample("k", dist.Bernoulli(0.5)))


def test_stan_refuses_points_and_says_what_it_is_not():
    field = stk.from_stan(StanModel())
    z = torch.full((2, 10), math.nan, dtype=torch.float64)
    assert bool(field.energy(z).isinf().all())
    with pytest.raises(InvalidArgument, match="bridgestan"):
        stk.from_stan(torch.nn.Identity())
    with pytest.raises(InvalidArgument, match="one value a chain of each of"):
        stk.sample(field, stk.MALA(0.1), chains=2, init={"mu": torch.zeros(2)})
