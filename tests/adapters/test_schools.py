"""Eight schools by each owner, sampled by many chains at once, against the reference draws of posteriordb."""

import warnings

import numpy as np
import pytest
import torch
from torch.distributions import constraints

import scoretk as stk
from tests.evidence import z_limit

Y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
SIGMA = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
MEANS = [4.4105, 3.6021, 6.1505, 4.9396, 3.9059, 4.7960, 3.6144, 4.0511, 6.3172, 4.8840]
SDS = [3.3091, 3.1983, 5.6156, 4.6453, 5.2804, 4.7707, 4.6145, 4.7960, 5.0026, 5.3174]
"""Of mu, tau, theta 1 to 8: sample moments of so many draws."""
REFERENCE = 10_000
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def importing(name):
    with warnings.catch_warnings():  # of the library itself, at its first import
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def in_pyro():
    pyro = importing("pyro")
    import pyro.distributions as dist

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("school", 8):
            raw = pyro.sample("raw", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * raw, torch.tensor(SIGMA)), obs=y)

    return stk.from_pyro(model, torch.tensor(Y))


def in_numpyro():
    numpyro = importing("numpyro")
    import jax.numpy as jnp
    import numpyro.distributions as dist

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("school", 8):
            raw = numpyro.sample("raw", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(mu + tau * raw, jnp.array(SIGMA)), obs=y)

    return stk.from_numpyro(model, jnp.array(Y))


def in_pymc():
    pm = importing("pymc")
    with pm.Model(coords={"school": list("ABCDEFGH")}) as model:
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        raw = pm.Normal("raw", 0, 1, dims="school")
        pm.Normal("y", mu + tau * raw, np.array(SIGMA), observed=np.array(Y))
    return stk.from_pymc(model)


def in_jax():
    importing("jax")
    import jax.numpy as jnp
    from jax.scipy.stats import cauchy, norm

    def logp(p):
        prior = norm.logpdf(p["mu"], 0, 5) + cauchy.logpdf(p["tau"], 0, 5)
        theta = p["mu"] + p["tau"] * p["raw"]
        likelihood = norm.logpdf(jnp.array(Y), theta, jnp.array(SIGMA)).sum()
        return prior + norm.logpdf(p["raw"]).sum() + likelihood

    example = {"mu": jnp.zeros(()), "tau": jnp.ones(()), "raw": jnp.zeros(8)}
    return stk.from_jax(logp, example, {"tau": constraints.positive})


class StanModel:
    """bridgestan's documented interface: mu, log tau and raw, the gradient by hand."""

    y, weight = np.array(Y), 1 / np.square(SIGMA)

    def param_names(self):
        return ["mu", "tau", *(f"raw.{i}" for i in range(1, 9))]

    def param_num(self):
        return 10

    param_unc_num = param_num

    def log_density_gradient(self, row, *, propto=True, jacobian=True):
        mu, tau, raw = row[0], np.exp(row[1]), row[2:]
        left = self.y - mu - tau * raw
        pull = left * self.weight
        value = -(mu**2) / 50 - np.log1p(tau**2 / 25) - (raw @ raw + left @ pull) / 2
        of_tau = raw @ pull - 2 * tau / (25 + tau**2)
        head = [pull.sum() - mu / 25, tau * of_tau + jacobian]
        return value + jacobian * row[1], np.concatenate([head, tau * pull - raw])

    def log_density(self, row, *, propto=True, jacobian=True):
        return self.log_density_gradient(row, jacobian=jacobian)[0]

    def param_constrain(self, row):
        return np.concatenate([row[:1], np.exp(row[1:2]), row[2:]])

    def param_unconstrain(self, row):
        return np.concatenate([row[:1], np.log(row[1:2]), row[2:]])


OWNERS = {
    "pyro": in_pyro,
    "numpyro": in_numpyro,
    "pymc": in_pymc,
    "jax": in_jax,
    "stan": lambda: stk.from_stan(StanModel()),
}


def parameters(field):
    """Draws of mu, tau and theta, `(chains, kept, 10)`."""
    draws = stk.sample(
        field, stk.NUTS(), chains=64, steps=150, warmup=150, seed=1, dtype=torch.float64
    )
    assert draws.failures == {}
    mu, tau, raw = (draws[name].double() for name in ("mu", "tau", "raw"))
    theta = mu[..., None] + tau[..., None] * raw
    return torch.cat([mu[..., None], tau[..., None], theta], -1)


def deviations(x):
    """Means and second moments about the reference means, in standard errors of ours and of theirs, `(20,)`.

    Chains are independent of one another: what they average to has their spread over the root of their number.
    """
    centred = x - torch.tensor(MEANS, dtype=torch.float64)
    found = torch.cat([centred, centred.square()], -1)
    truth = torch.cat([torch.zeros(10), torch.tensor(SDS).square()]).double()
    ours = found.mean(1).var(0) / len(found)
    theirs = found.flatten(0, 1).var(0) / REFERENCE
    return (found.mean((0, 1)) - truth) / (ours + theirs).sqrt()


@pytest.mark.parametrize("owner", OWNERS)
def test_the_posterior_is_the_references(owner):
    x = parameters(OWNERS[owner]())
    z = deviations(x)
    assert float(z.abs().max()) < z_limit(20), z
    swapped = x[..., [0, 1, *range(9, 1, -1)]]  # the schools the other way round
    assert float(deviations(swapped).abs().max()) > z_limit(20)
