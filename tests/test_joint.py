r"""Kernels on whole models: prior, data, posterior. Geweke's joint test and simulation-based calibration, with mutants.

Both compare what two programs say that ought to agree: one that draws parameters from the prior and data given these, and one
that knows an energy only. Thousands of chains run at once, each with data of its own as its row of `cond`.

Geweke's test. From exact draws of the joint law `p(x) p(y | x)` one may go on for ever by drawing y anew given x and moving x by
a kernel that leaves `p(x | y)` as it is: the law stays the joint law. Moments of these draws, with the kernel's move as the last,
are compared with those of others that are drawn directly. (Looked at after data are drawn, a kernel would pass that samples the
prior.) A kernel that does not move would pass as well, so it is also looked at how far chains have come.

Calibration. Where x is drawn from the prior and y given x, the rank of x among independent draws of `p(x | y)` is uniform, and so
is that of `log p(y | x)`, which shows what the parameters' own ranks cannot: a posterior that does not look at the data.

References: Geweke, "Getting it right: joint distribution tests of posterior simulators" (2004); Talts, Betancourt, Simpson,
Vehtari, Gelman, "Validating Bayesian inference algorithms with simulation-based calibration" (2018); Modrak, Moon, Kim, Buerkner,
Huurre, Faltejskova, Gelman, Vehtari, "Simulation-based calibration checking for Bayesian computation: the choice of test
quantities shapes sensitivity" (2023), for the likelihood's rank.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from scipy.stats import chisquare
from torch.distributions import constraints

import scoretk as stk
from scoretk.core.streams import Stream
from scoretk.fields import Constrained, resolve
from scoretk.solvers import nuts
from scoretk.solvers.parts import leapfrog, metropolis
from tests.evidence import FALSE_ALARM, z_limit
from tests.marks import slow_but, slow_rows_but
from tests.test_nuts import ignores_weights

PRIOR, DATA = Stream.USER, Stream.USER + 1


def normal(x, mean, scale):
    """The log density without its constant."""
    return -((x - mean) / scale).square() / 2 - torch.as_tensor(scale).log()


@dataclass(frozen=True)
class Hierarchy:
    """`mu ~ N(0, 1), s ~ Gamma(5, 5), a_j ~ N(mu, s^2), y_j ~ N(a_j, 1)`, j = 1, 2, 3, and x = (mu, s, a).

    A `scale` other than 1 is a mutant: the energy's prior of mu is not that from which mu is drawn.
    """

    scale: float = 1.0

    event_shape: ClassVar = (5,)
    constraint: ClassVar = constraints.cat(
        [constraints.real, constraints.positive, constraints.real], dim=-1, lengths=[1, 1, 3]
    )

    def draw(self, noise):
        z, u = noise.normal(0, PRIOR, (4,)), noise.uniform(0, PRIOR, (5,))
        mu, s = z[:, :1], -u.log().sum(1, keepdim=True) / 5
        return torch.cat([mu, s, mu + s * z[:, 1:]], 1)

    def data(self, x, noise, step):
        return x[:, 2:] + noise.normal(step, DATA, (3,))

    def log_prior(self, x):
        mu, s = x[..., 0], x[..., 1]
        return (
            normal(mu, 0, self.scale)
            + 4 * s.log()
            - 5 * s
            + normal(x[..., 2:], mu[..., None], s[..., None]).sum(-1)
        )

    def log_likelihood(self, x, y):
        return normal(y, x[..., 2:], 1).sum(-1)

    def summary(self, y):
        return y


@dataclass(frozen=True)
class Mixture:
    """`w ~ Beta(2, 2), m_1 < m_2` two draws of N(0, 2^2) in order, `y_i ~ w N(m_1, 1) + (1 - w) N(m_2, 1)`, i = 1..4; x = (w, m).

    A `scale` other than 1 is a mutant, as in `Hierarchy`: that of the means' prior.
    """

    scale: float = 1.0

    event_shape: ClassVar = (3,)
    constraint: ClassVar = constraints.cat(
        [constraints.unit_interval, stk.ordered], dim=-1, lengths=[1, 2]
    )

    def draw(self, noise):
        w = noise.uniform(0, PRIOR, (3,)).median(1, keepdim=True).values
        return torch.cat([w, 2 * noise.normal(0, PRIOR, (2,)).sort(1).values], 1)

    def data(self, x, noise, step):
        first = noise.uniform(step, DATA, (4,)) < x[:, :1]
        return torch.where(first, x[:, 1:2], x[:, 2:]) + noise.normal(step, DATA, (4,))

    def log_prior(self, x):
        w = x[..., 0]
        return w.log() + (-w).log1p() + normal(x[..., 1:], 0, 2 * self.scale).sum(-1)

    def log_likelihood(self, x, y):
        w, first, second = x[..., None].unbind(-2)
        return torch.logaddexp(
            w.log() + normal(y, first, 1), (-w).log1p() + normal(y, second, 1)
        ).sum(-1)

    def summary(self, y):
        return torch.stack([y.mean(1), y.square().mean(1)], 1)


class WithoutJacobian(Constrained):
    def _jacobian(self, z, x):
        return torch.zeros_like(z[:, 0])


def posterior(model):
    """The model's posterior in free space, given `cond={"y": data}`."""
    energy = stk.Energy(
        lambda x, y: -model.log_prior(x) - model.log_likelihood(x, y), model.event_shape
    )
    return stk.constrained(energy, model.constraint)


def without_jacobian(model):
    right = posterior(model)
    return WithoutJacobian(right.field, right.transform, right.event_shape, right.constraint)


def without_data(model):
    return stk.constrained(
        stk.Energy(lambda x, y: -model.log_prior(x), model.event_shape), model.constraint
    )


def narrow_prior(model):
    return posterior(type(model)(scale=0.5))


def without_correction(monkeypatch):
    """Every finite proposal is taken, though the right probability reported; NUTS chooses among its points without weights."""
    right = metropolis.choose

    def choose(current, proposed, log_ratio, u, *barker):
        return right(current, proposed, log_ratio * 0, u, *barker)[0], right(
            current, proposed, log_ratio, u, *barker
        )[1]

    for module in (metropolis, leapfrog):
        monkeypatch.setattr(module, "choose", choose)
    monkeypatch.setattr(nuts, *ignores_weights(nuts.extend))


MODELS = {"hierarchy": Hierarchy(), "mixture": Mixture()}

# ---------------------------------------------------------------------------------------------------------- Geweke's test

CHAINS, ROUNDS, MOVES = 6000, 10, 3
FEWER = 2000
"""Of the default run: the mutants of its cases are caught by more than 1.6 limits with these."""
SIZES = {"hierarchy": 0.6, "mixture": 1.0}


def kernels(size):
    return {
        "mala": stk.MALA(size**2 / 2),
        "hmc": stk.HMC(size, leapfrogs=2, metric="none"),
        "nuts": stk.NUTS(size, metric="none", max_depth=3),
        "ghmc": stk.GHMC(size),
        "adjusted-mclmc": stk.AdjustedMCLMC(1.2, leapfrogs=2, metric="none", integrator="leapfrog"),
    }


def case(model, name, kernel):
    """By default every kernel meets one model; the other is met in the tests below."""
    quick = model == "hierarchy"
    return pytest.param(
        MODELS[model],
        kernel,
        FEWER if quick else CHAINS,
        id=f"{model}-{name}",
        marks=() if quick else pytest.mark.slow,
    )


GEWEKE = [case(m, name, kernel) for m in MODELS for name, kernel in kernels(SIZES[m]).items()]


def joint(model, noise):
    """Independent draws of the joint law: parameters in free space, and data."""
    x = model.draw(noise)
    return posterior(model).unconstrain(x), model.data(x, noise, 0)


def successive(model, field, solver, start, noise):
    """Draws of the joint law moved by rounds of: data given parameters, parameters given data."""
    z, y = start
    state = solver.init(resolve(field, solver.needs, {"y": y}), z, noise)
    for step in range(1, ROUNDS + 1):
        y = model.data(field.constrain(state.x), noise, step)
        bound = resolve(field, solver.needs, {"y": y})
        energy, grad = bound.energy_and_grad(
            state.x
        )  # of the new data; whatever else a kernel remembers is kept
        state = state._replace(energy=energy, grad=grad)
        for _ in range(MOVES):
            state, _ = solver.step(bound, state, noise)
    return state.x, y


def moments(model, z, y):
    """First and second moments of free parameters and data together, `(chains, k)`."""
    v = torch.cat([z, model.summary(y)], 1)
    row, column = torch.triu_indices(v.shape[1], v.shape[1])
    return torch.cat([v, v[:, row] * v[:, column]], 1)


def geweke(model, field, solver, chains=FEWER):
    """How far, in limits, the two simulators are apart, below 1 being a pass; the parameters at the start and at the end."""
    apart, noise = (stk.Noise(seed, chains, dtype=torch.float64) for seed in (1, 2))
    start = joint(model, noise)
    end = successive(model, field, solver, start, noise)
    a, b = moments(model, *joint(model, apart)), moments(model, *end)
    z = (a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / chains).sqrt()
    return float(z.abs().nan_to_num(math.inf).max() / z_limit(len(z))), start[0], end[0]


@pytest.mark.thorough
@pytest.mark.parametrize(("model", "solver", "chains"), GEWEKE)
def test_the_joint_law_is_kept_on_a_long_way(model, solver, chains):
    distance, *ends = geweke(model, posterior(model), solver, chains)
    assert distance < 1
    for pair in zip(*(z.T for z in ends), strict=True):
        assert abs(float(torch.corrcoef(torch.stack(pair))[0, 1])) < 0.7


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "wrong"),
    slow_rows_but(
        [(name, w) for name in MODELS for w in (narrow_prior, without_jacobian, without_data)],
        ("hierarchy", narrow_prior),
        ("mixture", without_jacobian),
        ("hierarchy", without_data),
    ),
)
def test_the_joint_test_catches_a_wrong_energy(name, wrong):
    model, solver = MODELS[name], stk.HMC(0.4, leapfrogs=5, metric="none")
    assert geweke(model, wrong(model), solver)[0] > 1.5


@pytest.mark.parametrize(("model", "solver", "chains"), GEWEKE)
def test_the_joint_test_catches_a_missing_correction(monkeypatch, model, solver, chains):
    without_correction(monkeypatch)
    assert geweke(model, posterior(model), solver, chains)[0] > 1.5


# ------------------------------------------------------------------------------------------------------------- calibration

DATA_SETS, RANKS, WARMUP, THIN = (
    1024,
    4,
    100,
    12,
)  # as many steps from draw to draw as make them all but independent
BY_DEFAULT, HMC = None, stk.HMC(leapfrogs=6)
BOUNDED = stk.ChEES(most=16)  # a mutant's law may have no end, and no trajectory then a good length


def calibration(model, field, solver, pilot=stk.Warmup.pilot):
    """How far, in limits, the ranks of the parameters and of the likelihood are from uniform: all below 1 is a pass."""
    noise = stk.Noise(3, DATA_SETS, dtype=torch.float64)
    truth = model.draw(noise)
    y = model.data(truth, noise, 0)
    run = {
        "steps": (RANKS - 1) * THIN,
        "warmup": stk.Warmup(WARMUP, pilot),
        "thin": THIN,
        "seed": 4,
        "dtype": torch.float64,
    }
    draws = stk.sample(field, solver, chains=DATA_SETS, cond={"y": y}, **run)
    assert draws.failures == {}
    below = draws.x < truth[:, None]
    likelier = model.log_likelihood(draws.x, y[:, None]) < model.log_likelihood(truth, y)[:, None]
    ranks = torch.cat([below, likelier[..., None]], 2).sum(1)
    p = [chisquare(torch.bincount(column, minlength=RANKS)).pvalue for column in ranks.T]
    return [math.log(max(len(p) * value, 1e-300)) / math.log(FALSE_ALARM) for value in p]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_posteriors_are_calibrated_by_default(name):
    assert max(calibration(MODELS[name], posterior(MODELS[name]), BY_DEFAULT)) < 1


@pytest.mark.thorough
def test_posteriors_are_calibrated_by_hmc():
    assert max(calibration(MODELS["hierarchy"], posterior(MODELS["hierarchy"]), HMC, DATA_SETS)) < 1


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [narrow_prior, without_jacobian])
@pytest.mark.parametrize("name", MODELS)
def test_calibration_catches_a_wrong_energy(name, wrong):
    assert max(calibration(MODELS[name], wrong(MODELS[name]), BOUNDED)) > 1.5


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(MODELS, "mixture"))
def test_only_the_likelihoods_rank_shows_that_data_are_ignored(name):
    *parameters, likelihood = calibration(MODELS[name], without_data(MODELS[name]), BY_DEFAULT)
    assert max(parameters) < 1
    assert likelihood > 1.5


@pytest.mark.slow  # by default Geweke's test catches it, and calibration what Geweke's may miss
def test_calibration_catches_a_missing_correction(monkeypatch):
    without_correction(monkeypatch)
    assert (
        max(calibration(MODELS["hierarchy"], posterior(MODELS["hierarchy"]), HMC, DATA_SETS)) > 1.5
    )
