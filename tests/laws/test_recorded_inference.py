"""What is inferred of each kind of field is what it was (`tests/recorded.py`): constants, evidences, densities and latents."""

import pytest
import torch
from torch import distributions as td

import scoretk as stk
from scoretk.fields.distribution import in_free_space
from scoretk.fields.resolve import offers
from scoretk.inference import partition
from tests.laws.test_recorded_runs import MEASURED, WELL, network
from tests.laws.test_rows_alone import FIELDS, X
from tests.laws.test_running import Bonded
from tests.recorded import or_error, randn, recorded

D = 3
POSITIVE = td.constraints.positive
FEW = {"chains": 8, "levels": 2, "pilot": 16, "check": False}


def quadratic(x):
    return (x.flatten(1) - 0.3).square().sum(1)


def normal(std=2.0, shape=(D,)):
    if not shape:
        return td.Normal(torch.zeros(()).double(), std)
    return td.Independent(td.Normal(torch.zeros(shape).double(), std), len(shape))


IMPROPER = stk.Energy(lambda x: -x.square().sum(1), (D,))
KINDS = {
    "an energy": WELL,
    "an energy of a matrix": stk.Energy(quadratic, (2, 2)),
    "an energy of a number": stk.Energy(lambda x: (x - 0.3).square(), ()),
    "a law": stk.from_distribution(normal(0.7)),
    "a law of positive numbers": td.Gamma(torch.tensor(2.0).double(), torch.tensor(1.0).double()),
    "a law on the simplex": td.Dirichlet(torch.tensor([0.7, 1.0, 2.0]).double()),
    "positive numbers": stk.constrained(stk.Energy(quadratic, (D,)), POSITIVE),
    "named variables": stk.Energy(
        lambda mu, tau: mu.square().sum(1) / (2 * tau) + tau,
        variables={"mu": (2,), "tau": POSITIVE},
    ),
    "tempered": stk.tempered(WELL, 2.0),
    "a product": stk.product(WELL, stk.from_distribution(normal())),
    "a mixture": stk.mixture([stk.from_distribution(normal(s)) for s in (0.5, 1.5)], [0.3, 0.7]),
    "a bridge": stk.bridge(stk.from_distribution(normal()), WELL, 0.4),
    "a posterior": stk.posterior(stk.from_distribution(normal()), lambda x: -quadratic(x)),
    "states": stk.Discrete(stk.Energy(quadratic, (D,)), (-1.0, 0.0, 1.0)),
    "states with sweeps and couplings": Bonded(),
    "a field in time": stk.Diffusion(network, (D,), stk.VP(), "noise"),
    "a time of it": stk.Diffusion(network, (D,), stk.VP(), "score").at(0.4),
    "a score": stk.Score(lambda x: -x, (D,)),
    "an energy without density": stk.Energy(lambda x: x.sum(1) * torch.nan, (D,)),
    "an energy that has no constant": IMPROPER,
}
BASES = {
    "a law": {"base": normal(1.5)},
    "a field": {"base": stk.from_distribution(normal(1.5))},
    "of positive numbers": {"base": td.Independent(td.LogNormal(torch.zeros(D).double(), 1.0), 1)},
    "without exact draws": {"base": td.Independent(td.Gamma(torch.ones(D).double(), 1.0), 1)},
    "of another shape": {"base": normal(shape=(2,))},
    "an energy": {"base": WELL},
}
KERNELS = {
    "found": {},
    "tuned": {"kernel": stk.MALA()},
    "settled": {"kernel": stk.MALA(0.2)},
    "of a length": {"kernel": stk.HMC(leapfrogs=2, metric="none")},
    "with a metric": {"kernel": stk.HMC()},
    "not exact": {"kernel": stk.ULA(0.1)},
    "a grid": {"kernel": stk.ProbabilityFlow()},
    "of states": {"kernel": stk.GibbsWithGradients()},
}


def of_estimate(found):
    return found.value, found.stderr, found.method, found.cost, found.status


def constant(field, **options):
    """From a base that is given, as one that is found begins with a run that another processor makes otherwise."""
    of_law = isinstance(field, td.Distribution)
    free = in_free_space(stk.from_distribution(field) if of_law else field)
    of_states = "states" in offers(free)
    base = {} if of_states or field is IMPROPER else {"base": normal(1.5, tuple(free.event_shape))}
    run = {"dtype": torch.float64} | base | FEW | options
    return or_error(lambda: of_estimate(stk.log_partition(field, **run)))


@pytest.mark.parametrize("name", KINDS)
def test_the_constant_of_each_kind(name):
    recorded(f"constant of {name}", constant(KINDS[name]))


@pytest.mark.parametrize("name", BASES)
def test_the_constant_from_each_base(name):
    told = [constant(KINDS[k], **BASES[name]) for k in ("an energy", "positive numbers")]
    recorded(f"constant from a base {name}", told)


@pytest.mark.parametrize("name", KERNELS)
def test_the_constant_by_each_kernel(name):
    told = [constant(KINDS[k], **KERNELS[name]) for k in ("an energy", "states")]
    recorded(f"constant by a kernel {name}", told)


def looked_at(shift, scale, lost=0):
    """Draws of a short run of six chains, of which the last ones have failed, about another place."""
    x = shift + scale * randn(6, 40, 2, seed=5) + torch.linspace(0, 1, 6)[:, None, None] / 9
    status = torch.where(torch.arange(6) < 6 - lost, 0, int(stk.Status.DIVERGED))
    return stk.Draws(x=x, final=x[:, -1], status=status, failed_at=torch.where(status > 0, 3, -1))


def test_how_far_weighted_draws_are_from_a_short_run():
    """Of one law or two, of weights alike or not, of ancestors alone or few, beside chains that failed."""
    final, told = randn(50, 2, seed=7), []
    status = torch.zeros(50, dtype=torch.int64)
    for ancestor in (torch.arange(50), torch.arange(50) // 10):
        for log_weight in (torch.zeros(50).double(), final[:, 0], 3 * final[:, 1]):
            stats = {"ancestor": torch.stack([torch.zeros(50).long(), ancestor], 1)}
            draws = stk.Draws(
                x=final[:, None], final=final, status=status, failed_at=status - 1, stats=stats
            )
            told += [
                partition._disagreement(looked_at(*look), draws, log_weight)
                for look in ((0.0, 1.0), (0.5, 1.0), (0.0, 2.0), (0.0, 1.0, 2), (0.0, 1.0, 5))
            ]
    recorded("how far weighted draws are from a short run", told)


@pytest.mark.parametrize("name", FIELDS)
def test_densities_and_latents_of_each_field_in_time(name):
    make, cond = FIELDS[name]
    field, run = make(), {"cond": cond, "method": "heun", "steps": 3}
    there = or_error(lambda: stk.encode(field, X, **run))
    latents = there if isinstance(there[0], str) else (there[0].x, there[0].cost, there[1])
    recorded(
        f"density of {name}",
        (or_error(lambda: of_estimate(stk.log_prob(field, X, **run))), latents),
    )


WEIGHED = stk.TwistedSMC(6, island=4)


@pytest.mark.parametrize("grid", ["usual", "short"])
def test_evidence(grid):
    solver = WEIGHED if grid == "usual" else stk.TwistedSMC(grid=(0.0, 0.5, 1.0), island=4)
    draws = stk.sample(MEASURED, solver, chains=8, seed=3, dtype=torch.float64)
    recorded(f"evidence, {grid}", or_error(lambda: of_estimate(stk.log_evidence(draws))))
