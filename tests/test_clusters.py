"""Cluster moves against enumerated laws, with mutants; clusters against a search; log Z of lattices that are known."""

import itertools
import math

import pytest
import torch

import scoretk as stk
from scoretk.fields.bridge import Bridge
from scoretk.fields.protocols import offers
from scoretk.fields.resolve import resolve
from scoretk.models.targets.lattices import Ising, Potts, rbm
from scoretk.solvers import clusters as module
from scoretk.solvers.clusters import SwendsenWang, clusters
from tests.evidence import assert_mean, z_limit
from tests.test_discrete import distance, law
from tests.test_langevin import one_step_from_exact

CHAINS = 30_000
QUIET = {"progress": False}


class Triples(stk.fields.DiscreteField):
    """Four sites of three uneven numbers: bonds of either sign, weights, and an energy of triples besides."""

    states, event_shape = (-1.5, 0.0, 2.0), (4,)
    numbers = torch.tensor(states)
    couplings = stk.Couplings(
        torch.tensor([0, 1, 2, 0, 0]),
        torch.tensor([1, 2, 3, 3, 1]),
        torch.tensor([0.9, -0.7, 1.2, -0.4, 0.3], dtype=torch.float64),
        torch.tensor([[0.3, 0.0, -0.4]] * 3 + [[0.0, 0.8, 0.0]], dtype=torch.float64),
    )
    triple = 0.5

    def energy(self, x):
        label = (x[..., None] - self.numbers.to(x)).abs().argmin(-1)
        return self.couplings.energy(label, x) + self.triple * (x[:, 0] * x[:, 1] * x[:, 2]).tanh()

    @property
    def provides(self):
        return super().provides - {"score"} | {"couplings"}


TARGETS = {
    "ising": Ising(3, 0.4, 0.1),
    "frustrated": Ising(3, -0.4, 0.2),
    "potts": Potts(2, 3, 0.6),
    "antiferromagnetic potts": Potts(2, 3, -0.5),
    "triples": Triples(),
}


def far(target):
    return distance(
        one_step_from_exact(SwendsenWang(), target, seed=3, chains=CHAINS), target, law(target)
    )


@pytest.mark.parametrize("name", TARGETS)
def test_exact_draws_stay_exact(name):
    assert far(TARGETS[name]) < 1


def half_the_bonds(bonds, label, u):
    strength = bonds.strength.to(u)
    return (bonds.equal(label) == (strength > 0)) & (u < -torch.expm1(-strength.abs() / 2))


def bonds_of_any_states(bonds, label, u):
    return u < -torch.expm1(-bonds.strength.to(u).abs())


def no_weights(bonds, label, root, u, k):
    return (u * k).long()


def decided_by_nothing(current, proposed, log_ratio, step, noise):
    return proposed, log_ratio


@pytest.mark.parametrize(
    ("name", "part", "wrong"),
    [
        ("ising", "_on", half_the_bonds),
        ("frustrated", "_on", bonds_of_any_states),
        ("ising", "_shifts", no_weights),
        ("triples", "_shifts", no_weights),
        ("triples", "metropolis", decided_by_nothing),
    ],
)
def test_invariance_catches_wrong_moves(monkeypatch, name, part, wrong):
    monkeypatch.setattr(module, part, wrong)
    assert far(TARGETS[name]) > 2


def searched(there, first, second, sites):
    """The least site that each is connected to, by widening sets until they stay."""
    least = list(range(sites))
    for _ in range(sites):
        for on, a, b in zip(there, first, second, strict=True):
            if on:
                least[a] = least[b] = min(least[a], least[b])
    return least


def test_clusters_are_the_connected_components():
    generator = torch.Generator().manual_seed(0)
    for sites, edges in ((7, 5), (12, 14), (9, 30)):
        ends = torch.randint(sites, (2, edges), generator=generator)
        there = torch.rand(40, edges, generator=generator) < 0.6
        found = clusters(there, *ends, sites)
        assert found.tolist() == [searched(row, *ends.tolist(), sites) for row in there.tolist()]
    chain = torch.arange(99)
    assert not clusters(
        torch.ones(1, 99, dtype=torch.bool), chain.flip(0) + 1, chain.flip(0), 100
    ).any()
    assert (
        clusters(torch.zeros(2, 0, dtype=torch.bool), chain[:0], chain[:0], 3).tolist()
        == [[0, 1, 2]] * 2
    )


def test_couplings_are_all_of_a_lattice_s_energy():
    for field in (Ising(3, 0.3, -0.2), Ising(2, -0.5), Potts(2, 4, 0.7)):
        x = field.initial(20, stk.Noise(0, 20, dtype=torch.float64))
        label = stk.fields.states.labels(x, field.states)
        rest = field.energy(x) - field.couplings.energy(label, x)
        torch.testing.assert_close(rest, rest[:1].expand(20))
        draws = stk.sample(field, SwendsenWang(), chains=20, steps=5, **QUIET)
        assert float((draws.stats["accept"] - 1).abs().max()) < 1e-4
        assert draws.cost["energy"] == 20 * 6


def test_a_long_run_has_the_law_and_a_triple_that_is_no_bond_costs_proposals():
    field = Triples()
    draws = stk.sample(
        field,
        SwendsenWang(),
        chains=5000,
        steps=12,
        keep="last",
        seed=2,
        dtype=torch.float64,
        **QUIET,
    )
    assert distance(draws.final, field, law(field)) < 1
    accept = float(draws.stats["accept"].mean())
    assert 0.5 < accept < 0.95


def test_a_field_without_a_path_of_its_own_is_annealed_with_its_couplings():
    field = Triples()
    assert not hasattr(field, "between")
    assert "couplings" in offers(Bridge(None, field, 0.5))
    half = Bridge(None, field, 0.5).couplings
    torch.testing.assert_close(half.strength, field.couplings.strength / 2)
    torch.testing.assert_close(half.weights, field.couplings.weights / 2)
    found = stk.log_partition(field, chains=256, pilot=64, dtype=torch.float64, progress=False)
    z = (float(found.value) - field.exact_log_partition()) / float(found.stderr)
    assert abs(z) < z_limit()
    assert set(found.cost) == {"energy"}


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["ais", "smc"])
def test_log_z_of_a_small_lattice(method):
    field = Ising(4, 0.44, 0.1)
    found = stk.log_partition(field, method=method, chains=256, pilot=64, progress=False)
    assert abs(float(found.value) - field.exact_log_partition()) < z_limit() * float(found.stderr)
    assert float(found.stderr) < 0.15


KNOWN = {
    (8, 0.44068679): 60.1417807891,
    (16, 0.44068679): 238.642256635,
    (32, 0.44068679): 952.648079549,
    (16, 0.28): 198.935419021,
    (16, 0.6): 310.48703859,
}
"""log Z of the Ising model on a torus, by Kaufman's formula."""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "coupling"), KNOWN)
def test_log_z_of_the_torus(size, coupling):
    found = stk.log_partition(Ising(size, coupling), chains=256, progress=False)
    assert int(found.status) == stk.Status.OK
    assert abs(float(found.value) - KNOWN[size, coupling]) < 3 * float(found.stderr)


@pytest.mark.slow
def test_the_energy_a_spin_of_the_critical_lattice():
    """Exact: -1.453064853 at 16 x 16. In 60 steps from states at random single sites are far from it."""
    run = {"chains": 200, "steps": 60, "keep": "last", **QUIET}
    field = Ising(16, 0.44068679)
    finals = [
        stk.sample(field, solver, **run).final
        for solver in (SwendsenWang(), stk.GibbsWithGradients())
    ]
    own, other = (field.energy(x) / (256 * field.coupling) for x in finals)
    assert_mean(own, -1.453064853)
    with pytest.raises(AssertionError):
        assert_mean(other, -1.453064853)


def test_what_has_no_couplings_is_told_of_them():
    for field in (
        rbm(),
        stk.tempered(Ising(3), 2.0),
        stk.Discrete(stk.Energy(lambda x: x.sum(1), (3,)), (0.0, 1.0)),
    ):
        with pytest.raises(stk.MissingCapability, match="couplings"):
            stk.sample(field, SwendsenWang(), chains=2, steps=2, **QUIET)
    with pytest.raises(stk.InvalidArgument, match="energy and grad"):
        stk.sample(Ising(3), stk.ParallelTempering(SwendsenWang()), chains=2, steps=2, **QUIET)


ENDS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: stk.Couplings(ENDS, ENDS, torch.ones(2)),
        lambda: stk.Couplings(ENDS, ENDS + 1, torch.ones(3)),
        lambda: stk.Couplings(ENDS, ENDS.double() + 1, torch.ones(2)),
        lambda: stk.Couplings(ENDS, ENDS + 1, torch.full((2,), math.nan)),
        lambda: stk.Couplings(ENDS, ENDS + 1, torch.ones(2), torch.ones(3)),
    ],
)
def test_couplings_that_do_not_fit_together_are_refused(make):
    with pytest.raises(stk.InvalidArgument):
        make()


@pytest.mark.parametrize(
    "couplings",
    [
        stk.Couplings(ENDS, ENDS + 3, torch.ones(2)),
        stk.Couplings(ENDS - 1, ENDS + 1, torch.ones(2)),
        stk.Couplings(ENDS, ENDS + 1, torch.ones(2), torch.zeros(4, 2)),
        (ENDS, ENDS + 1, torch.ones(2)),
    ],
)
def test_couplings_of_another_field_are_refused(couplings):
    field = Triples()
    field.couplings = couplings
    with pytest.raises(stk.InvalidArgument, match="4 sites of 3 states"):
        stk.sample(field, SwendsenWang(), chains=2, steps=2, init=torch.zeros(2, 4), **QUIET)


def test_chains_do_not_depend_on_the_batch():
    for field in (Ising(4, 0.4, 0.2), Potts(3, 3, 0.8)):
        run = {"chains": 13, "steps": 10, "seed": 6, **QUIET}
        whole, parts, few = (
            stk.sample(field, SwendsenWang(), **(run | part))
            for part in ({}, {"batch": 4}, {"chains": 5})
        )
        assert torch.equal(whole.x, parts.x)
        assert torch.equal(whole.x[:5], few.x)
        assert bool((whole.x[:, 1:] != whole.x[:, :-1]).flatten(1).any(1).all())


def test_every_state_is_reached():
    """From any state: cluster moves alone, of bonds that none satisfies at once, are ergodic."""
    field = Ising(2, -0.3)
    bound, noise = resolve(field, SwendsenWang.needs), stk.Noise(0, 4000, dtype=torch.float64)
    start = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4))[3], dtype=torch.float64)
    state = SwendsenWang().init(bound, start.reshape(1, 2, 2).expand(4000, 2, 2), noise)
    assert len(SwendsenWang().step(bound, state, noise)[0].x.flatten(1).unique(dim=0)) == 16
