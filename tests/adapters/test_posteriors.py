"""Eight schools, written in Pyro, numpyro, PyMC, JAX and (a fake of) bridgestan: names, supports, densities, gradients."""

import datetime
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributions as td
from torch.distributions import constraints

import scoretk as stk
from scoretk.core.identity import Identity
from scoretk.errors import InvalidArgument

BRINGS = [
    (
        "a log density of JAX",
        "stk.from_jax(logp, example)",
        "eight schools in torch, density and gradient, float32 and float64; the "
        "posterior against reference draws (`slow`)",
        "jax==0.10.2",
        [
            "test_names_supports_density_and_gradient_are_the_models",
            "test_schools.test_the_posterior_is_the_references",
        ],
    ),
    (
        "a model of numpyro",
        "stk.from_numpyro(model, *args)",
        "the same",
        "numpyro==0.22.0",
        [
            "test_names_supports_density_and_gradient_are_the_models",
            "test_schools.test_the_posterior_is_the_references",
        ],
    ),
    (
        "a model of Pyro",
        "stk.from_pyro(model, *args)",
        "the same; all chains in one call of the model",
        "pyro-ppl==1.9.2",
        [
            "test_names_supports_density_and_gradient_are_the_models",
            "test_schools.test_the_posterior_is_the_references",
            "TestPyro.test_many_chains_are_one_call_of_the_model",
        ],
    ),
    (
        "a model of PyMC",
        "stk.from_pymc(model)",
        "the same (`slow`), with JAX and without",
        "pymc==5.28.5",
        [
            "test_names_supports_density_and_gradient_are_the_models",
            "test_schools.test_the_posterior_is_the_references",
            "TestPymc.test_without_jax_it_is_pymcs_own_function",
        ],
    ),
    (
        "a model of Stan, by bridgestan",
        "stk.from_stan(model)",
        "the same, in a stand-in for its documented interface; Stan 2.35 itself, every type of parameter, "
        "behind bridgestan's class (`slow`, where httpstan is)",
        "bridgestan==2.9.0",
        [
            "test_names_supports_density_and_gradient_are_the_models",
            "test_schools.test_the_posterior_is_the_references",
            "test_stan.test_names_and_orders_are_stans",
            "test_stan.test_draws_of_float32_are_points_to_start_from",
        ],
    ),
]

Y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
SIGMA = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
ROOT = Path(__file__).parents[2]
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
        if not np.isfinite(row).all():
            raise RuntimeError("Exception: normal_lpdf: Location parameter is nan")
        z, value = self._log_density(row, jacobian)
        return float(value.detach()), torch.autograd.grad(value, z)[0].numpy()

    def param_constrain(self, row):
        return np.concatenate([row[:9], np.exp(row[9:])])

    def param_unconstrain(self, row):
        if not row[9] > 0:
            raise RuntimeError("lb_free: Lower bounded variable is -1, but must be >= 0")
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


def test_a_repr_is_short_and_says_where_it_is_from(field):
    text = repr(field)
    assert re.search(r"from_\w+\(\w+\)", text)
    assert len(text) < 120
    assert "object at" not in text


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


@pytest.mark.parametrize("other", ["pyro", "numpyro"])
def test_a_model_of_another_library_is_told_its_adapter(other):
    library, dist = importing(other), importing(f"{other}.distributions")
    importing("pyro" if other == "numpyro" else "numpyro")

    def model():
        library.sample("mu", dist.Normal(0.0, 1.0))

    wrong = stk.from_numpyro if other == "pyro" else stk.from_pyro
    with pytest.raises(InvalidArgument, match=rf"a {other} model: scoretk\.from_{other}\("):
        wrong(model)


@pytest.mark.parametrize("library", ["pyro", "numpyro"])
def test_what_a_model_raises_is_told(library):
    importing(library)

    def model(y):
        raise KeyError("no such column")

    adapter = getattr(stk, f"from_{library}")
    with pytest.raises(InvalidArgument, match=r"TypeError: .* missing 1 required"):
        adapter(model)
    with pytest.raises(InvalidArgument, match="KeyError: 'no such column'"):
        adapter(model, 1.0)


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
        with pytest.raises(InvalidArgument, match=r"scoretk\.constrained"):
            stk.from_jax(lambda x: -(x**2).sum(), jnp.zeros(3), {"a": constraints.positive})
        with pytest.raises(InvalidArgument, match="of the example's shapes"):
            stk.from_jax(lambda p: p["a"].sum(), {"a": jnp.zeros(2)}, {"b": (3,)})
        with pytest.raises(InvalidArgument, match=r"scoretk\.from_jax"):
            stk.sample(jax.jit(lambda x: -(x**2).sum()), chains=2)

    @pytest.mark.parametrize("kind", [constraints.positive, constraints.simplex])
    def test_a_bare_constraint_is_of_values_of_the_examples_shape(self, kind):
        importing("jax")
        import jax.numpy as jnp

        field = stk.from_jax(
            lambda p: jnp.log(p["a"]).sum() - p["b"] ** 2,
            {"a": jnp.ones(3), "b": jnp.zeros(())},
            {"a": kind},
        )
        assert {**field.variables.layout.shapes} == {"a": (3,), "b": ()}
        draws = stk.sample(field, stk.MALA(0.3), chains=4, steps=3)
        assert bool((draws["a"] > 0).all())
        if kind is constraints.simplex:
            torch.testing.assert_close(draws["a"].sum(-1), torch.ones(4, 3))

    def test_tensors_where_jax_is_not_are_refused_with_the_fix(self):
        importing("jax")
        import jax.numpy as jnp

        field = stk.from_jax(lambda x: -(x**2).sum(), jnp.zeros(3))
        with pytest.raises(InvalidArgument, match=r"where JAX is, .* on meta.*device='cpu'"):
            field.energy(torch.zeros(2, 3, device="meta"))

    def test_a_log_density_by_chance_is_refused(self):
        importing("jax")
        import jax.numpy as jnp

        rng = np.random.default_rng(0)
        with pytest.raises(InvalidArgument, match="a function of the point"):
            stk.from_jax(lambda x: -(x**2).sum() * rng.uniform(), jnp.zeros(3))

    def test_data_in_float64_are_asked_in_it_whatever_the_rows(self):
        jax = importing("jax")
        import jax.numpy as jnp

        before = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", True)
        try:
            data = jnp.linspace(0, 1, 8)
            field = stk.from_jax(lambda x: -((x - data) ** 2).sum(), jnp.zeros(8))
            draws = stk.sample(field, stk.MALA(0.1), chains=2, steps=2)
            x = draws.final
            expected = (x - torch.linspace(0, 1, 8)).square().sum(1)
            torch.testing.assert_close(field.energy(x), expected)
            assert x.dtype == torch.float32
        finally:
            jax.config.update("jax_enable_x64", before)


class TestPyro:
    def test_many_chains_are_one_call_of_the_model(self):
        """Under the checks of values that pyro makes by default, which stay as they were."""
        pyro = importing("pyro")
        import pyro.distributions as dist

        calls = []

        def model(y):
            calls.append(None)
            scale = pyro.sample("scale", dist.HalfNormal(1.0))
            with pyro.plate("row", 3):
                pyro.sample("y", dist.Normal(0.0, scale), obs=y)

        y = torch.tensor([1.0, -2.0, 0.5])
        with pyro.validation_enabled(True):
            field = stk.from_pyro(model, y)
            scale = torch.linspace(0.5, 2.0, 50)
            calls.clear()
            found = field.field.energy(scale[:, None])
            assert len(calls) == 1
            assert pyro.poutine.is_validation_enabled()
            assert pyro.distributions.is_validation_enabled()
        expected = -td.HalfNormal(1.0).log_prob(scale)
        expected -= td.Normal(0.0, scale[:, None]).log_prob(y).sum(1)
        torch.testing.assert_close(found, expected)

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

        def within():
            high = pyro.sample("high", dist.Exponential(1.0))
            pyro.sample("x", dist.Uniform(torch.zeros(2), 1 + 1e-6 * high).to_event(1))

        for model in (moving, within):
            with pytest.raises(InvalidArgument, match=r"'x'.*depends on other sites"):
                stk.from_pyro(model)
        with pytest.raises(InvalidArgument, match="discrete latent site 'k'"):
            stk.from_pyro(discrete)
        with pytest.raises(InvalidArgument, match="latent site"):
            stk.from_pyro(lambda: None)

    def test_a_scale_that_moves_is_no_support_that_does(self):
        pyro = importing("pyro")
        import pyro.distributions as dist

        def model(low):
            scale = pyro.sample("scale", dist.Exponential(1.0))
            pyro.sample("x", dist.HalfNormal(scale))
            pyro.sample("u", dist.Uniform(low, low + 1))

        field = stk.from_pyro(model, torch.tensor(2.0))
        assert bool((stk.sample(field, stk.MALA(0.3), chains=4, steps=3)["u"] > 2).all())

    @pytest.mark.parametrize("how", ["size", "indices", "in turn"])
    def test_mini_batches_are_refused(self, how):
        pyro = importing("pyro")
        import pyro.distributions as dist

        def model(y):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            if how == "in turn":
                for i in pyro.plate("data", len(y), subsample_size=3):
                    pyro.sample(f"y_{i}", dist.Normal(mu, 1.0), obs=y[i])
                return
            given = {"size": {"subsample_size": 3}, "indices": {"subsample": torch.arange(3)}}
            with pyro.plate("data", len(y), **given[how]) as rows:
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

        with pytest.raises(InvalidArgument, match="'data' with 3 of its 9 rows"):
            stk.from_pyro(model, torch.zeros(9))

    def test_all_rows_of_a_plate_are_no_mini_batch(self):
        pyro = importing("pyro")
        import pyro.distributions as dist

        def model(y):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y), subsample_size=len(y)) as rows:
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

        field = stk.from_pyro(model, torch.ones(4))
        torch.testing.assert_close(
            field.score(torch.tensor([[0.0], [1.0]])), torch.tensor([[4.0], [-1.0]])
        )

    @pytest.mark.parametrize("extra_first", [True, False])
    def test_sites_that_come_and_go_are_refused(self, extra_first):
        pyro = importing("pyro")
        import pyro.distributions as dist

        calls = []

        def model():
            calls.append(0)
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            if (len(calls) == 1) == extra_first:
                pyro.sample("extra", dist.Normal(x, 1.0))

        with pytest.raises(InvalidArgument, match="come and go: extra"):
            stk.from_pyro(model)

    def test_a_site_that_comes_late_is_refused_where_it_comes(self):
        pyro = importing("pyro")
        import pyro.distributions as dist

        def model():
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            if float(x.detach()) > 50:
                pyro.sample("extra", dist.Normal(x, 1.0))

        field = stk.from_pyro(model)
        assert bool(field.energy(torch.zeros(2, 1)).isfinite().all())
        with torch.random.fork_rng(), pytest.raises(InvalidArgument, match="come and go: extra"):
            field.energy(torch.full((2, 1), 60.0))

    def test_a_log_density_by_chance_is_refused(self):
        pyro = importing("pyro")
        import pyro.distributions as dist

        def model():
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.factor("noise", x * torch.rand(()))

        with pytest.raises(InvalidArgument, match="a function of the point"):
            stk.from_pyro(model)

    def test_names_that_no_function_takes(self, tmp_path):
        pyro = importing("pyro")
        import pyro.distributions as dist

        def model():
            pyro.sample("linear.weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("lambda", dist.Exponential(1.0))

        draws = stk.sample(stk.from_pyro(model), stk.MALA(0.3), chains=4, steps=3)
        loaded = stk.Draws.load(draws.save(tmp_path / "draws.safetensors"))
        for name in ("linear.weight", "lambda"):
            assert torch.equal(loaded[name], draws[name])

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

    @pytest.mark.parametrize("expanded", [False, True])
    def test_a_transformed_law_that_says_to_be_everywhere_is_refused(self, expanded):
        """Of `1 + 2 u`, u exponential, torch's density rises for ever below 1."""
        pyro = importing("pyro")
        import pyro.distributions as dist

        def of(base, transform):
            law = dist.TransformedDistribution(base, [transform])
            law = law.expand([2]).to_event(1) if expanded else law
            return lambda: pyro.sample("a", law)

        for base in (dist.Exponential(1.0), dist.Gamma(1.0, 1.0)):
            with pytest.raises(InvalidArgument, match="say where they live"):
                stk.from_pyro(of(base, torch.distributions.AffineTransform(1.0, 2.0)))
        stk.from_pyro(of(dist.Normal(0.0, 1.0), torch.distributions.ExpTransform()))
        laws = (dist.Pareto(1.0, 3.0), dist.LogNormal(0.0, 1.0), dist.Weibull(1.0, 2.0))
        for law in (*laws, dist.InverseGamma(1.0, 2.0), dist.Gumbel(0.0, 1.0)):
            stk.from_pyro(lambda law=law: pyro.sample("a", law))

    def test_a_law_that_does_not_live_where_it_says_is_refused(self):
        pyro = importing("pyro")
        import pyro.distributions as dist

        td = torch.distributions
        normal, unit = dist.Normal(0.0, 1.0), dist.Uniform(0.0, 1.0)
        of = dist.TransformedDistribution
        choice = dist.Categorical(torch.ones(2))
        boxes = dist.Uniform(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0]))
        for law in (
            of(normal, [td.ExpTransform(), td.AffineTransform(1.0, 2.0)]),
            of(normal, [td.SigmoidTransform(), td.ExpTransform()]),
            of(unit, [td.PowerTransform(torch.tensor(2.0))]),
            of(normal, [td.PowerTransform(torch.tensor(2.0))]),
            of(normal, [td.AbsTransform()]),
            of(normal, [dist.transforms.ELUTransform()]),  # said to be positive, down to -1
            of(
                normal,
                [td.ComposeTransform([td.SigmoidTransform(), td.AffineTransform(-1.0, 3.0)])],
            ),
            dist.MixtureSameFamily(choice, boxes),
        ):
            with pytest.raises(InvalidArgument, match=r"site .a., .*Sample"):
                stk.from_pyro(lambda law=law: pyro.sample("a", law))
        for law in (
            of(unit, [td.SigmoidTransform().inv, td.AffineTransform(1.0, 2.0)]),
            of(dist.Exponential(1.0), [td.PowerTransform(torch.tensor(2.0))]),
            of(dist.Normal(torch.zeros(3), 1.0).to_event(1), [td.StickBreakingTransform()]),
            of(normal, [td.TanhTransform(), td.TanhTransform().inv]),
            of(dist.Normal(torch.zeros(3), 1.0).to_event(1), [td.CorrCholeskyTransform()]),
            of(normal, [dist.transforms.LeakyReLUTransform()]),
            dist.FoldedDistribution(normal),
        ):
            stk.from_pyro(lambda law=law: pyro.sample("a", law))

    def test_outside_a_laws_parameters_and_support_there_is_nothing(self):
        """Pyro refuses to evaluate there; torch's formulas go on, and rise for ever."""
        pyro = importing("pyro")
        import pyro.distributions as dist

        y = torch.tensor([0.5, 1.2])

        def site():
            return pyro.sample("a", dist.Uniform(-2.0, 2.0))

        def shifted(a):
            moved = torch.distributions.AffineTransform(a, 1.0)
            return dist.TransformedDistribution(dist.Exponential(torch.ones(2)), [moved])

        x = torch.tensor([-1.7, -0.3, 0.4, 1.3])
        for made, inside in (
            (lambda a: dist.Gamma(a, 1.0).expand([2]), x > 0),
            (lambda a: dist.Pareto(a.exp(), 1.0).expand([2]), x.exp() < 0.5),
            (
                lambda a: dist.MixtureSameFamily(
                    dist.Categorical(torch.ones(2)), dist.Gamma(torch.stack([a, 1 + a * a]), 1.0)
                ).expand([2]),
                x > 0,
            ),
            (shifted, x < 0.5),
            (lambda a: shifted(a).to_event(1), x < 0.5),
        ):
            with pyro.validation_enabled(False):  # where the runs that look at the model begin
                field = stk.from_pyro(lambda made=made: pyro.sample("y", made(site()), obs=y))
            found = field.field.energy(x[:, None])
            law = [made(a).log_prob(y).sum() + torch.tensor(0.25).log() for a in x[inside]]
            torch.testing.assert_close(found[inside], -torch.stack(law))
            assert bool(found[~inside].isposinf().all())

    def test_a_law_that_is_drawn_alone_is_refused(self):
        pyro = importing("pyro")
        import pyro.distributions as dist

        law = dist.Rejector(
            dist.Normal(0.0, 1.0), torch.nn.functional.logsigmoid, torch.tensor(-0.7)
        )
        with pytest.raises(
            InvalidArgument, match=r"'a', of a law that .*\(Rejector\).*pyro.factor"
        ):
            stk.from_pyro(lambda: pyro.sample("a", law))

    def test_an_angle_is_of_one_period(self):
        pyro = importing("pyro")
        import pyro.distributions as dist

        field = stk.from_pyro(lambda: pyro.sample("a", dist.VonMises(0.0, 0.1)))
        draws = stk.sample(field, stk.MALA(1.0), chains=8, steps=20)
        assert bool((draws["a"].abs() <= torch.pi).all())

    def test_laws_that_are_made_of_angles_are_of_one_period_too(self):
        pyro = importing("pyro")
        import pyro.distributions as dist

        zero, one = torch.tensor(0.0), torch.tensor(1.0)
        one_angle, normal = dist.VonMises(zero, one), dist.Normal(zero, one)
        both = dist.SineBivariateVonMises(zero, zero, one, one, 0.1 * one)
        choice = dist.Categorical(torch.ones(2))
        for law in (
            both,
            dist.SineSkewed(both, torch.tensor([0.1, 0.1])),
            dist.MaskedMixture(torch.tensor(True), one_angle, one_angle),
            dist.MixtureSameFamily(choice, dist.VonMises(torch.zeros(2), torch.ones(2))),
        ):
            field = stk.from_pyro(lambda law=law: pyro.sample("a", law))
            draws = stk.sample(field, stk.MALA(1.0), chains=8, steps=20)
            assert bool((draws["a"].abs() <= torch.pi).all())
        for law in (
            dist.TransformedDistribution(
                one_angle, [torch.distributions.AffineTransform(5.0, 2.0)]
            ),
            dist.MaskedMixture(torch.tensor(True), one_angle, normal),
        ):
            with pytest.raises(InvalidArgument, match=r"site .a., .*angles.*Sample the angle"):
                stk.from_pyro(lambda law=law: pyro.sample("a", law))

    def test_a_mixture_is_taken_where_its_components_live(self):
        pyro = importing("pyro")
        import pyro.distributions as dist

        choice = dist.Categorical(torch.tensor([1.0, 3.0]))
        law = dist.MixtureSameFamily(choice, dist.HalfNormal(torch.tensor([1.0, 4.0])))
        field = stk.from_pyro(lambda: pyro.sample("a", law))
        draws = stk.sample(field, stk.MALA(0.5), chains=4, steps=3)
        x = draws["a"].reshape(-1, 1)
        assert bool((x > 0).all())
        torch.testing.assert_close(field.field.energy(x), -law.log_prob(x[:, 0]))

    def test_laws_with_point_masses_in_them_are_refused(self):
        pyro = importing("pyro")
        import pyro.distributions as dist

        normal, spike = (dist.Normal(torch.tensor(0.0), 1.0), dist.Delta(torch.tensor(0.0)))
        for law in (
            dist.ZeroInflatedDistribution(normal, gate=torch.tensor(0.5)),
            dist.MaskedMixture(torch.tensor(True), normal, spike),
            dist.Empirical(torch.arange(3.0), torch.zeros(3)),
        ):
            with pytest.raises(InvalidArgument, match=r"site .a., .*point mass \("):
                stk.from_pyro(lambda law=law: pyro.sample("a", law))


class TestNumpyro:
    def test_laws_with_point_masses_in_them_are_refused(self):
        numpyro = importing("numpyro")
        import jax.numpy as jnp
        import numpyro.distributions as dist

        normal, choice = dist.Normal(0.0, 1.0), dist.Categorical(jnp.array([0.5, 0.5]))
        for law in (
            dist.MixtureGeneral(choice, [normal, dist.Delta(0.0)], support=dist.constraints.real),
            dist.MixtureSameFamily(choice, dist.Delta(jnp.zeros(2))),
        ):
            with pytest.raises(InvalidArgument, match=r"site .a., .*point mass \("):
                stk.from_numpyro(lambda law=law: numpyro.sample("a", law))

    def test_a_law_that_does_not_live_where_it_says_is_refused(self):
        numpyro = importing("numpyro")
        import jax.numpy as jnp
        import numpyro.distributions as dist

        t, real, positive = dist.transforms, dist.constraints.real, dist.constraints.positive
        normal, unit = dist.Normal(0.0, 1.0), dist.Uniform(0.0, 1.0)
        choice = dist.Categorical(jnp.array([0.5, 0.5]))
        affine, of = t.AffineTransform, dist.TransformedDistribution
        boxes = [unit, dist.Uniform(2.0, 3.0)]
        several = of(dist.Uniform(jnp.zeros(2), 1.0), affine(1.0, 2.0))
        for law in (
            of(normal, [t.ExpTransform(), affine(1.0, 2.0)]),
            of(normal, [t.SigmoidTransform(), t.ExpTransform()]),
            of(unit, t.PowerTransform(2.0)),
            of(normal, t.PowerTransform(2.0)),
            of(normal, t.AbsTransform()),
            of(normal, t.ComposeTransform([t.SigmoidTransform(), affine(-1.0, 3.0)])),
            of(dist.HalfNormal(1.0), affine(1.0, 2.0, domain=dist.constraints.unit_interval)),
            dist.MixtureGeneral(choice, boxes),
            dist.MixtureGeneral(choice, boxes, support=real),
            dist.MixtureGeneral(choice, [normal, normal], support=positive),
            dist.MixtureSameFamily(choice, several),
        ):
            with pytest.raises(InvalidArgument, match=r"site .a., .*Sample"):
                stk.from_numpyro(lambda law=law: numpyro.sample("a", law))
        for law in (
            of(normal, [t.ExpTransform(), affine(1.0, 2.0, domain=positive)]),
            of(
                normal,
                [t.SigmoidTransform(), t.ExpTransform(domain=dist.constraints.unit_interval)],
            ),
            of(dist.Exponential(1.0), t.PowerTransform(0.5)).expand([3]).to_event(1),
            dist.MixtureGeneral(choice, [normal, dist.HalfNormal(1.0)], support=real),
            dist.MixtureSameFamily(choice, dist.HalfNormal(jnp.ones(2))),
            dist.FoldedDistribution(dist.Normal(1.0, 1.0)),
        ):
            stk.from_numpyro(lambda law=law: numpyro.sample("a", law))

    def test_a_latent_site_of_what_is_censored_is_refused(self):
        """Its density is a probability, which integrates to no number."""
        numpyro = importing("numpyro")
        import jax.numpy as jnp
        import numpyro.distributions as dist

        normal = dist.Normal(0.0, 1.0)
        for law in (
            dist.LeftCensoredDistribution(normal, censored=jnp.array(1)),
            dist.RightCensoredDistribution(normal, censored=jnp.array(1)),
        ):
            with pytest.raises(InvalidArgument, match=r"site .a., of a law of censored.*Sample"):
                stk.from_numpyro(lambda law=law: numpyro.sample("a", law))

    def test_components_that_move_are_refused(self):
        numpyro = importing("numpyro")
        import jax.numpy as jnp
        import numpyro.distributions as dist

        def model():
            high = numpyro.sample("high", dist.Exponential(1.0))
            parts = [dist.Uniform(0.0, high), dist.Normal(0.0, 1.0)]
            choice = dist.Categorical(jnp.array([0.5, 0.5]))
            numpyro.sample("x", dist.MixtureGeneral(choice, parts, support=dist.constraints.real))

        with pytest.raises(InvalidArgument, match="depends on other sites: x"):
            stk.from_numpyro(model)

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

    @pytest.mark.parametrize("expanded", [False, True])
    def test_a_transformed_law_that_says_to_be_everywhere_is_refused(self, expanded):
        """numpyro takes `1 + 2 u` of a uniform u to be on all of R, and flat there."""
        numpyro = importing("numpyro")
        import numpyro.distributions as dist

        def of(base, transform):
            law = dist.TransformedDistribution(base, transform)
            law = law.expand([2]).to_event(1) if expanded else law
            return lambda: numpyro.sample("a", law)

        affine = dist.transforms.AffineTransform
        for base, transform in (
            (dist.Uniform(0.0, 1.0), affine(1.0, 2.0)),
            (dist.HalfNormal(1.0), dist.transforms.ExpTransform()),
        ):
            with pytest.raises(InvalidArgument, match="say where they live"):
                stk.from_numpyro(of(base, transform))
        unit = dist.constraints.unit_interval
        field = stk.from_numpyro(of(dist.Uniform(0.0, 1.0), affine(1.0, 2.0, domain=unit)))
        draws = stk.sample(field, stk.MALA(0.5), chains=8, steps=5)
        assert bool(((draws["a"] >= 1) & (draws["a"] <= 3)).all())
        for law in (dist.LogUniform(1.0, 2.0), dist.Pareto(1.0, 3.0), dist.LogNormal(0.0, 1.0)):
            stk.from_numpyro(lambda law=law: numpyro.sample("a", law))

    def test_supports_that_move_are_refused(self):
        numpyro = importing("numpyro")
        import jax.numpy as jnp
        import numpyro.distributions as dist

        of_high = {
            "bound": lambda high: dist.Uniform(0.0, high),
            "within": lambda high: dist.Uniform(jnp.zeros(2), 1 + 1e-6 * high).to_event(1),
            "truncated": lambda high: dist.TruncatedNormal(0.0, 1.0, low=high),
            "a choice": lambda high: dist.Uniform(0.0, jnp.where(high > 50.0, 1.0, 2.0)),
            "a count": lambda high: dist.Uniform(0.0, 1.0 + jnp.floor(high).astype(int)),
        }
        for law in of_high.values():

            def model(law=law):
                numpyro.sample("x", law(numpyro.sample("high", dist.Exponential(1.0))))

            with pytest.raises(InvalidArgument, match="depends on other sites: x"):
                stk.from_numpyro(model)

    def test_a_scale_that_moves_is_no_support_that_does(self):
        numpyro = importing("numpyro")
        import jax.numpy as jnp
        import numpyro.distributions as dist

        def model(low):
            scale = numpyro.sample("scale", dist.Exponential(1.0))
            numpyro.sample("x", dist.HalfNormal(scale))
            numpyro.sample("u", dist.Uniform(low, low + 1))

        field = stk.from_numpyro(model, jnp.array(2.0))
        assert bool((stk.sample(field, stk.MALA(0.3), chains=4, steps=3)["u"] > 2).all())

    def test_mini_batches_and_chance_are_refused(self):
        numpyro = importing("numpyro")
        import jax.numpy as jnp
        import numpyro.distributions as dist

        def batched(y, size):
            mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
            with numpyro.plate("data", len(y), subsample_size=size) as rows:
                numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

        with pytest.raises(InvalidArgument, match="'data' with 3 of its 9 rows"):
            stk.from_numpyro(batched, jnp.zeros(9), 3)
        whole = stk.from_numpyro(batched, jnp.ones(4), 4)
        torch.testing.assert_close(
            whole.score(torch.tensor([[0.0], [1.0]])), torch.tensor([[4.0], [-1.0]])
        )
        rng = np.random.default_rng(0)

        def by_chance():
            numpyro.factor("noise", numpyro.sample("x", dist.Normal(0.0, 1.0)) * rng.uniform())

        with pytest.raises(InvalidArgument, match="a function of the point"):
            stk.from_numpyro(by_chance)

        def keyed():
            x = numpyro.sample("x", dist.Normal(0.0, 1.0))
            numpyro.factor("noise", x * dist.Uniform().sample(numpyro.prng_key()))

        with pytest.raises(InvalidArgument, match="draws nothing"):
            stk.from_numpyro(keyed)
        calls = []

        def changing():
            calls.append(0)
            x = numpyro.sample("x", dist.Normal(0.0, 1.0))
            if len(calls) == 2:
                numpyro.sample("extra", dist.Normal(x, 1.0))

        with pytest.raises(InvalidArgument, match="come and go: extra"):
            stk.from_numpyro(changing)

    def test_names_of_scopes(self):
        numpyro = importing("numpyro")
        import numpyro.distributions as dist

        def model():
            numpyro.sample("x", dist.Normal(0.0, 1.0))

        with pytest.raises(InvalidArgument, match=r"divider='\.'"):
            stk.from_numpyro(numpyro.handlers.scope(model, prefix="a"))
        field = stk.from_numpyro(numpyro.handlers.scope(model, prefix="a", divider="."))
        assert stk.sample(field, stk.MALA(0.3), chains=4, steps=2)["a.x"].shape == (4, 2)


WITHOUT_JAX = """
import sys
sys.modules["jax"] = None
import torch
from tests.adapters import test_posteriors as these
field, true = these.in_pymc(), these.TRUE
z, truth = (f.unconstrain(f.variables.point(these.values())) for f in (field, true))
for dtype in (torch.float64, torch.float32):
    (found, gradient), (expected, ours) = field.energy_and_grad(z.to(dtype)), true.energy_and_grad(truth.to(dtype))
    gap = found - expected
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), rtol=1e-4, atol=1e-4)
    assert found.dtype == gradient.dtype == dtype
    named = [f.variables.layout.split(g) for f, g in ((field, gradient), (true, ours))]
    for name in named[0]:
        torch.testing.assert_close(named[0][name], named[1][name], rtol=1e-4, atol=1e-4)
draws = these.stk.sample(field, these.stk.MALA(0.02), chains=3, steps=3, init={n: v[:3] for n, v in these.values().items()})
assert draws.failures == {} and draws["theta"].shape == (3, 3, 8)
assert "pymc.sampling.jax" not in sys.modules
"""


@pytest.mark.slow
class TestPymc:
    @pytest.mark.filterwarnings("ignore:No safe default transform")
    def test_laws_with_point_masses_in_them_are_refused(self):
        pm, pt = importing("pymc"), importing("pytensor.tensor")
        normal, own = pm.Normal.dist, pm.CustomDist
        for make in (
            lambda: pm.Censored("a", normal(0, 1), lower=-0.5, upper=0.5),
            lambda: pm.HurdleGamma("a", psi=0.5, alpha=2, beta=1),
            lambda: pm.Mixture(
                "a", w=[0.5, 0.5], comp_dists=[pm.DiracDelta.dist(0.0), normal(0, 1)]
            ),
            lambda: own("a", dist=lambda size: pt.clip(normal(0, 1, size=size), 0, 1)),
            lambda: own("a", dist=lambda size: pt.round(normal(0, 1, size=size))),
        ):
            with pm.Model() as model:
                make()
            with pytest.raises(InvalidArgument, match=r"a, a law with point masses \("):
                stk.from_pymc(model)

    @pytest.mark.filterwarnings("ignore:No JAX implementation")
    def test_what_is_clipped_or_censored_beside_a_law_is_taken(self):
        pm, pt = importing("pymc"), importing("pytensor.tensor")
        with pm.Model() as model:
            mu = pm.Normal("mu")
            pm.CustomDist("b", pt.clip(mu, 0, 1), dist=lambda m, size: 2 * pm.Normal.dist(m, 1))
            pm.Censored("y", pm.Normal.dist(mu, 1), lower=-1, upper=1, observed=[1.0, 0.3])
        assert stk.from_pymc(model).constraint.names == ("mu", "b")

    @pytest.mark.filterwarnings("ignore:No safe default transform")
    def test_an_angle_is_of_one_period(self):
        pm = importing("pymc")
        laws = [pm.VonMises.dist(0.0, 1.0), pm.VonMises.dist(1.0, 0.1)]
        for make in (
            lambda: pm.VonMises("a", 0.0, 0.1),
            lambda: pm.VonMises("a", 0.0, 0.1, default_transform=None),
            lambda: pm.Mixture("a", w=[0.5, 0.5], comp_dists=laws),
        ):
            with pm.Model() as model:
                make()
            draws = stk.sample(stk.from_pymc(model), stk.MALA(1.0), chains=8, steps=20)
            assert bool((draws["a"].abs() <= torch.pi).all())
        beside = [laws[0], pm.Normal.dist(0.0, 1.0)]
        for make in (
            lambda: pm.Mixture("a", w=[0.5, 0.5], comp_dists=beside),
            lambda: pm.CustomDist("a", dist=lambda size: 5 + 2 * pm.VonMises.dist(0, 1, size=size)),
        ):
            with pm.Model() as model:
                make()
            with pytest.raises(InvalidArgument, match=r"a, made of a law of angles.*Sample the"):
                stk.from_pymc(model)

    def test_an_interval_of_the_users_own_is_where_a_variable_lives(self):
        pm = importing("pymc")
        with pm.Model() as model:
            pm.Normal("a", transform=pm.distributions.transforms.Interval(0, 2))
        draws = stk.sample(stk.from_pymc(model), stk.MALA(1.0), chains=8, steps=20)
        assert bool(((draws["a"] >= 0) & (draws["a"] <= 2)).all())

    def test_outside_a_laws_parameters_there_is_nothing(self):
        """PyTensor leaves PyMC's conditions out in JAX, where a Gamma's formula goes on below 0."""
        pm = importing("pymc")
        with pm.Model() as model:
            pm.Gamma("y", pm.Normal("a"), 1.0, observed=[0.5, 1.2])
        field, x = stk.from_pymc(model), torch.tensor([-1.7, -0.3, 0.4, 1.3])
        own = model.compile_logp()
        expected = torch.tensor([float(own({"a": np.array(a)})) for a in x.double().tolist()])
        assert bool(expected[:2].isneginf().all())
        torch.testing.assert_close(field.energy(x[:, None]), -expected)

    @pytest.mark.filterwarnings("ignore:No safe default transform")
    def test_a_model_without_a_derived_density_or_gradient_is_told(self):
        pm = importing("pymc")
        normal = pm.Normal.dist
        for make, said in (
            (lambda: pm.Normal("a", normal(0, 1)), r"name what is drawn"),
            (
                lambda: pm.CustomDist(
                    "a", dist=lambda size: normal(0, 1, size=size) + normal(0, 1, size=size)
                ),
                r"pm.CustomDist its logp=",
            ),
            (
                lambda: pm.CustomDist(
                    "a", random=lambda rng=None, size=None: rng.normal(size=size)
                ),
                r"pm.CustomDist its logp=",
            ),
        ):
            with pm.Model() as model:
                make()
            with pytest.raises(InvalidArgument, match=f"(?s)PyMC does not derive.*{said}"):
                stk.from_pymc(model)

    def test_without_jax_it_is_pymcs_own_function(self):
        importing("pymc")
        told = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", WITHOUT_JAX],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.returncode == 0, told.stderr[-2000:]

    def test_what_jax_does_not_know_is_asked_of_pymc_itself(self):
        pm, y = importing("pymc"), torch.tensor([-1.0, -0.3, 0.4, 1.0]).double().numpy()
        with pm.Model() as model:
            mu = pm.Normal("mu")
            pm.Censored("y", pm.Normal.dist(mu, 1.0), lower=-1, upper=1, observed=y)
        with pytest.warns(UserWarning, match="PyMC's own function is asked, chain by chain"):
            field = stk.from_pymc(model)
        x = torch.tensor([[0.3], [-1.2]]).double()
        expected = [-float(model.compile_logp()({"mu": v})) for v in x[:, 0].numpy()]
        torch.testing.assert_close(field.energy(x), torch.tensor(expected).double())
        assert field.score(x).shape == x.shape

    def test_a_covariances_factor_has_its_own_density(self):
        """Packed row by row, its diagonal positive: PyMC's density in free coordinates, whose map is the same."""
        pm = importing("pymc")
        with pm.Model() as model:
            chol, _, _ = pm.LKJCholeskyCov("c", n=3, eta=2.0, sd_dist=pm.Exponential.dist(1.0))
            pm.MvNormal("y", np.zeros(3), chol=chol, observed=np.array([0.3, -1.0, 0.5]))
        field = stk.from_pymc(model)
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(5, 6, generator=generator, dtype=torch.float64)
        own, name = model.compile_logp(), model.value_vars[0].name
        expected = torch.tensor([-float(own({name: row.numpy()})) for row in z]).double()
        torch.testing.assert_close(field.energy(z), expected, rtol=1e-6, atol=1e-6)
        draws = stk.sample(field, stk.MALA(0.05), chains=4, steps=5)
        assert draws.failures == {}
        assert bool((draws["c"][..., [0, 2, 5]] > 0).all())

    def test_supports_without_a_bijection_name_what_has_the_same_law(self):
        pm = importing("pymc")
        transforms, laws = importing("pymc.distributions.transforms"), {}
        for name, make, way in (
            ("LKJCorr", lambda: pm.LKJCorr("a", n=3, eta=2.0), r"pm\.LKJCholeskyCov\(name, n, eta"),
            (
                "ZeroSumNormal",
                lambda: pm.ZeroSumNormal("a", 2.0, shape=5),
                r"ZeroSumTransform\(\[-1\]",
            ),
            (
                "Normal",
                lambda: pm.Normal("a", transform=transforms.log_exp_m1),
                "Leave out its trans",
            ),
        ):
            with pm.Model() as model:
                make()
            with pytest.raises(InvalidArgument, match=rf"a, of {name} under.*{way}"):
                stk.from_pymc(model)
            laws[name] = model
        with pm.Model() as model:  # as the message says: the covariance is 4 (1 - 1/5)
            free = pm.Normal("a", 0, 2.0, shape=4)
            pm.Deterministic("b", transforms.ZeroSumTransform([-1]).backward(free))
        x = torch.tensor([[0.3, -1.0, 0.7, 2.0]]).double()
        values = model["b"].eval({model["a"]: x[0].numpy()})
        assert abs(values.sum()) < 1e-12
        theirs = laws["ZeroSumNormal"].compile_logp(jacobian=False)
        at = float(theirs({laws["ZeroSumNormal"].value_vars[0].name: x[0].numpy()}))
        assert float(-stk.from_pymc(model).energy(x)) == pytest.approx(at, rel=1e-6)

    def test_a_mini_batch_is_refused(self):
        pm = importing("pymc")
        part = pm.Minibatch(torch.zeros(8).double().numpy(), batch_size=3)
        with pm.Model() as model:
            pm.Normal("y", pm.Normal("mu"), 1.0, observed=part, total_size=8)
        with pytest.raises(InvalidArgument, match=r"no pm\.Minibatch"):
            stk.from_pymc(model)

    def test_supports_that_move_are_refused(self):
        pm = importing("pymc")

        def models():
            yield lambda high: pm.Uniform("x", 0, high)
            yield lambda high: pm.Uniform("x", 0, 1 + high**2, shape=3)
            yield lambda high: pm.TruncatedNormal("x", 0, 1, lower=high)
            yield lambda high: pm.Pareto("x", 2.0, m=high)
            yield lambda high: pm.Truncated("x", pm.Normal.dist(0, 1), lower=high)
            yield lambda high: pm.Uniform("x", 0, pm.Exponential.dist(1.0))

        for law in models():
            with pm.Model() as model:
                law(pm.Exponential("high", 1.0))
            with pytest.raises(InvalidArgument, match="x, whose support depends"):
                stk.from_pymc(model)

    def test_bounds_of_data_are_the_support(self):
        pm = importing("pymc")
        with pm.Model() as model:
            low = pm.Data("low", np.array([1.0, 2.0]))
            pm.Uniform("x", low, low + 1, shape=2)
            pm.TruncatedNormal("y", 0, 1, lower=-np.inf, upper=np.inf)
            pm.HalfNormal("z", pm.Exponential("scale", 1.0))
        draws = stk.sample(stk.from_pymc(model), stk.MALA(0.3), chains=4, steps=3)
        x = draws["x"] - torch.tensor([1.0, 2.0])
        assert bool(((x > 0) & (x < 1)).all())

    def test_starts_of_the_models_own_change_nothing_and_stay(self):
        pm = importing("pymc")

        def model(**start):
            with pm.Model() as made:
                x = pm.Normal("x", [0.0, 1.0], 1.0, **start)
                pm.Normal("y", x.sum(), 0.5, observed=2.0)
            return made

        plain, started = model(), model(initval=np.array([3.0, 4.0]))
        before = dict(started.rvs_to_initial_values)
        x = torch.tensor([[0.0, 0.0], [1.0, -2.0]], dtype=torch.float64)
        found, expected = (stk.from_pymc(m).energy(x) for m in (started, plain))
        torch.testing.assert_close(found, expected)
        assert dict(started.rvs_to_initial_values) == before

    def test_a_log_density_by_chance_is_refused(self):
        pm = importing("pymc")
        with pm.Model() as model:
            x = pm.Normal("x", 0, 1)
            pm.Potential("noise", x * pm.Normal.dist(0, 1))
        with pytest.raises(InvalidArgument, match=r"not of \.dist\(\)"):
            stk.from_pymc(model)

    def test_labels_of_all_kinds(self, tmp_path):
        pm = importing("pymc")
        days = np.array(["2024-01-01", "2024-01-02"], dtype="datetime64[D]")
        coords = {
            "day": days,
            "month": [datetime.date(2024, 1, 1), datetime.date(2024, 2, 1)],
            "pair": [("a", 1), ("b", 2)],
            "known": [True, False],
            "zoned": [datetime.datetime(2024, 1, d, tzinfo=datetime.UTC) for d in (1, 2)],
            "step": [0.5, 1],
        }
        with pm.Model(coords=coords) as model:
            for dim in coords:
                pm.Normal(f"of_{dim}", 0, 1, dims=dim)
        draws = stk.sample(stk.from_pymc(model), stk.MALA(0.3), chains=4, steps=3)
        loaded = stk.Draws.load(draws.save(tmp_path / "draws.safetensors"))
        for found in (draws, loaded):
            posterior = found.to_arviz().posterior
            assert list(posterior.day.values.astype("datetime64[D]")) == list(days)
            assert posterior.of_day.sel(day="2024-01-02").shape == (4, 3)
            assert posterior.of_month.sel(month="2024-02").shape[:2] == (4, 3)
            assert posterior.of_pair.sel(pair="('b', 2)").shape == (4, 3)
            assert list(posterior.known.values) == ["True", "False"]
            assert list(posterior.step.values) == [0.5, 1.0]
            assert posterior.sizes["zoned"] == 2


def test_what_stan_refuses_is_outside():
    """By a RuntimeError, as bridgestan's: there is no such point, and its density is 0."""
    field = stk.from_stan(StanModel())
    good = field.variables.point(values())
    bad = good.clone()
    bad[1, 9] = -1
    with pytest.raises(InvalidArgument, match="inside the constraint the parameters of Stan"):
        field.unconstrain(bad)
    assert field.users_energy(bad).isinf().tolist() == [False, True, False, False]
    init = values() | {"tau": torch.tensor([1.0, -1.0, 1.0, 1.0])}
    with pytest.raises(InvalidArgument):
        stk.sample(field, stk.MALA(0.1), chains=4, steps=1, init=init)
    energy, gradient = field.energy_and_grad(torch.full((2, 10), math.nan, dtype=torch.float64))
    assert bool(energy.isinf().all())
    assert bool(gradient.isnan().all())


class OfNames(StanModel):
    """Free numbers under the names that Stan has for them, a normal each, of variance 1, 2, 3, ..."""

    NAMES = ("lambda", "m.1.1", "m.2.1", "m.1.2", "m.2.2", "m.1.3", "m.2.3", "z.real", "z.imag")
    NAMES += ("pair:1", "pair:2.1", "pair:2.2", "c.1.real", "c.1.imag", "c.2.real", "c.2.imag")

    def param_names(self):
        return list(self.NAMES)

    def param_num(self):
        return len(self.NAMES)

    param_unc_num = param_num

    def _log_density(self, row, jacobian):
        z = torch.tensor(row, requires_grad=True)
        return z, -(z.square() / torch.arange(1, len(row) + 1)).sum() / 2

    def param_constrain(self, row):
        return row.copy()

    param_unconstrain = param_constrain


OfNames.__module__ = "bridgestan.model"


def test_stans_arrays_and_names_are_kept(tmp_path):
    field = stk.from_(OfNames())
    shapes = {"lambda": (), "m": (2, 3), "z.real": (), "z.imag": (), "pair:1": (), "pair:2": (2,)}
    assert {**field.variables.layout.shapes} == shapes | {"c.real": (2,), "c.imag": (2,)}
    z = torch.arange(16.0, dtype=torch.float64).repeat(2, 1)
    x = field.constrain(z)
    parts = field.variables.layout.split(x)
    assert parts["m"][0].tolist() == [[1, 3, 5], [2, 4, 6]]
    assert parts["c.imag"][0].tolist() == [13, 15]
    torch.testing.assert_close(field.unconstrain(x), z)
    torch.testing.assert_close(field.users_energy(x), field.energy(z))
    draws = stk.sample(field, stk.MALA(0.3), chains=4, steps=3)
    loaded = stk.Draws.load(draws.save(tmp_path / "draws.safetensors"))
    for name in field.variables.layout.names:
        assert torch.equal(loaded[name], draws[name])


class ByChance(OfNames):
    def __init__(self):
        self.rng = np.random.default_rng(0)

    def log_density(self, row, *, propto=True, jacobian=True):
        return self.rng.uniform()


def test_stan_refuses_points_and_says_what_it_is_not():
    with pytest.raises(InvalidArgument, match="a function of the point"):
        stk.from_stan(ByChance())
    field = stk.from_stan(StanModel())
    z = torch.full((2, 10), math.nan, dtype=torch.float64)
    assert bool(field.energy(z).isinf().all())
    with pytest.raises(InvalidArgument, match="bridgestan"):
        stk.from_stan(torch.nn.Identity())
    with pytest.raises(InvalidArgument, match="one value a chain of each of"):
        stk.sample(field, stk.MALA(0.1), chains=2, init={"mu": torch.zeros(2)})


class OfSimplex(OfNames):
    """A simplex as Stan has it, which takes a point for one to 1e-8."""

    NAMES = ("p.1", "p.2", "p.3", "mu")

    def param_num(self):
        return 4

    def param_unc_num(self):
        return 3

    def param_constrain(self, row):
        odds = np.exp([row[0], row[1], 0.0])
        return np.append(odds / odds.sum(), row[2])

    def param_unconstrain(self, row):
        if not abs(row[:3].sum() - 1) <= 1e-8:
            raise RuntimeError("simplex_free: Simplex variable is not a valid simplex.")
        return np.append(np.log(row[:2] / row[2]), row[3])


OfSimplex.__module__ = "bridgestan.model"


def test_what_misses_stans_types_by_a_rounding_is_led_there():
    field = stk.from_(OfSimplex())
    p = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
    assert bool(((p.double().sum(1) - 1).abs() > 1e-8).any())  # as float32 has them
    init = {"p": p, "mu": torch.zeros(2)}
    draws = stk.sample(field, stk.MALA(0.3), chains=2, steps=3, init=init)
    assert stk.sample(field, stk.MALA(0.3), chains=2, steps=3, init=draws.final).failures == {}
    point = field.variables.point(init)
    torch.testing.assert_close(field.constrain(field.unconstrain(point)), point)
    for wrong in (p + 1e-4, p * 1.001):
        with pytest.raises(InvalidArgument, match=r"init\['p'\].*the parameters of Stan"):
            stk.sample(field, stk.MALA(0.3), chains=2, steps=3, init=init | {"p": wrong})


GOOD = {"mu": torch.zeros(3), "tau": torch.ones(3), "theta": torch.zeros(3, 8)}
WRONG_STARTS = {
    "one is missing": {"mu": GOOD["mu"], "tau": GOOD["tau"]},
    "a name is mistyped": {"mu": GOOD["mu"], "tau": GOOD["tau"], "thetas": GOOD["theta"]},
    "no names": [1.0, 2.0],
    "another shape": GOOD | {"theta": torch.zeros(3, 7)},
    "other rows": GOOD | {"tau": torch.ones(2)},
    "no number": GOOD | {"mu": torch.full((3,), math.nan)},
    "infinite": GOOD | {"theta": torch.full((3, 8), math.inf)},
    "words": GOOD | {"mu": "zero"},
    "outside": GOOD | {"tau": torch.tensor([1.0, -1.0, 1.0])},
    "on the edge": GOOD | {"tau": torch.zeros(3)},
}


@pytest.mark.parametrize("case", WRONG_STARTS)
def test_a_start_by_names_is_refused_as_that_of_any_field(case):
    """With the words of named variables, of which Stan's supports have no names."""
    said = []
    for field in (stk.from_stan(StanModel()), TRUE):
        with pytest.raises(InvalidArgument) as told:
            field.variables.point(WRONG_STARTS[case])
        said.append(re.sub(", got .*|constraint.*", "", str(told.value)))
    ours, theirs = said
    order = ours.replace("theta, mu, tau", "mu, tau, theta")
    assert order.replace("init['theta'] has", "init['mu'] has") == theirs


class Apart(OfNames):
    """b above a: what the second may be hangs on the first."""

    NAMES = ("a", "b")

    def param_constrain(self, row):
        return np.array([row[0], row[0] + np.exp(row[1])])

    def param_unconstrain(self, row):
        if not row[1] > row[0]:
            raise RuntimeError("lb_free: Lower bounded variable is 0, but must be greater")
        return np.array([row[0], np.log(row[1] - row[0])])


Apart.__module__ = "bridgestan.model"


def test_a_start_of_parameters_that_do_not_fit_each_other_is_refused():
    field = stk.from_stan(Apart())
    point = field.variables.point
    assert point({"a": torch.tensor([5.0]), "b": torch.tensor([6.0])}).tolist() == [[5.0, 6.0]]
    with pytest.raises(InvalidArgument, match=r"init\['b'\]: expected values inside"):
        point({"a": torch.tensor([0.5]), "b": torch.tensor([-0.5])})
    with pytest.raises(InvalidArgument, match="init: expected values inside"):
        point({"a": torch.tensor([0.9]), "b": torch.tensor([0.8])})


def test_a_model_of_stan_is_its_data_and_library_and_no_place_in_memory(tmp_path):
    def made(data, place, library=b"code"):
        model = StanModel()
        model.data, model.seed, model.lib_path, model.model = data, 1, str(tmp_path / "a.so"), place
        (tmp_path / "a.so").write_bytes(library)
        return Identity(field=stk.from_(model)).summary()["digest"]

    assert made("{}", 17) == made("{}", 23)
    assert made("{}", 17) != made('{"y": 1}', 17)
    assert made("{}", 17) != made("{}", 17, b"other")


def of_pyro(make):
    pyro, dist = importing("pyro"), importing("pyro.distributions")
    return stk.from_pyro(lambda: pyro.sample("x", make(dist)))


BOXES = {
    "a tail": (lambda d: d.GeneralizedPareto(1.0, 2.0, 0.3), (), 1.0, math.inf),
    "an end": (lambda d: d.GeneralizedPareto(1.0, 2.0, -0.5), (), 1.0, 5.0),
    "equal boxes": (
        lambda d: d.MixtureSameFamily(
            d.Categorical(torch.ones(2)), d.Uniform(torch.zeros(2), torch.full((2,), 3.0))
        ),
        (),
        0.0,
        3.0,
    ),
    "a batch of them": (
        lambda d: d.MixtureSameFamily(
            d.Categorical(torch.ones(4, 2)), d.Uniform(torch.zeros(4, 2), torch.ones(4, 2))
        ).to_event(1),
        (4,),
        0.0,
        1.0,
    ),
    "of vectors": (
        lambda d: d.MixtureSameFamily(
            d.Categorical(torch.ones(2)), d.Uniform(torch.zeros(2, 3), torch.ones(2, 3)).to_event(1)
        ),
        (3,),
        0.0,
        1.0,
    ),
}


@pytest.mark.parametrize("name", BOXES)
def test_boxes_with_an_infinite_end_and_mixtures_of_one_box_have_their_density(name):
    make, shape, low, high = BOXES[name]
    law, field = make(importing("pyro.distributions")), of_pyro(make)
    size = math.prod(shape)
    z = torch.linspace(-2, 2, 8 * size, dtype=torch.float64).reshape(8, size)
    x = field.constrain(z)
    assert bool(((x > low) & (x < high)).all())
    expected = law.log_prob(x.reshape(8, *shape))
    slope = torch.func.vmap(torch.func.jacrev(lambda z: field.constrain(z[None])[0]))(z)
    jacobian = torch.linalg.slogdet(slope.reshape(8, size, size)).logabsdet
    torch.testing.assert_close(-field.energy(z), expected + jacobian, rtol=1e-5, atol=1e-5)


def test_angles_of_numpyro_are_of_one_period():
    numpyro, dist = importing("numpyro"), importing("numpyro.distributions")
    field = stk.from_numpyro(lambda: numpyro.sample("a", dist.VonMises(0.5, 0.1)))
    draws = stk.sample(field, stk.MALA(1.0), chains=8, steps=20)
    assert bool((draws["a"].abs() <= torch.pi).all())
    ends = torch.linspace(-torch.pi, torch.pi, 2001, dtype=torch.float64)[:, None]
    density = (-field.users_energy(ends[1:] - (ends[1] - ends[0]) / 2)).exp()
    assert float(density.sum() * (ends[1] - ends[0])) == pytest.approx(1, abs=1e-4)
    both = stk.from_numpyro(
        lambda: numpyro.sample("a", dist.SineBivariateVonMises(0.0, 0.0, 1.0, 1.0, 0.1))
    )
    draws = stk.sample(both, stk.MALA(1.0), chains=8, steps=20)
    assert draws["a"].shape == (8, 20, 2)
    assert bool((draws["a"].abs() <= torch.pi).all())
