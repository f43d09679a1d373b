"""Discrete kernels do not alternate: exact transition matrices over all states, and the laws of thinned draws.

The matrices are written down from the published proposals, independently of the solvers; one step of a solver from every
state is held to them, and then their eigenvalues can be asked. The mutants are the kernels as they were published.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

import scoretk as stk
from scoretk.fields import Discrete, resolve
from scoretk.models.targets.lattices import Ising
from scoretk.run.moment import begin
from scoretk.solvers import discrete
from scoretk.solvers.discrete import BlockGibbs, DiscreteLangevin, GibbsWithGradients
from tests.evidence import FALSE_ALARM, assert_mean, mean_z, z_limit

SIGNS = (-1.0, 1.0)
COPIES = 2000


def chain_of(x, coupling=0.3):
    return -coupling * (x[:, 1:] * x[:, :-1]).sum(1)


def free_end(x):
    """All sites but the first are held: only that one is free."""
    return -4 * x[:, 1:].sum(1)


TARGETS = {
    "flat": Discrete(stk.Energy(lambda x: 0 * x.sum(1), (6,)), SIGNS),
    "one site": Discrete(stk.Energy(lambda x: 0 * x.sum(1), (1,)), SIGNS),
    "flat, its relaxation convex": Discrete(
        stk.Energy(lambda x: 4 * x.square().sum(1), (5,)), SIGNS
    ),
    "nearly flat": Discrete(stk.Energy(lambda x: chain_of(x, 0.1), (6,)), SIGNS),
    "coupled": Discrete(stk.Energy(chain_of, (5,)), SIGNS),
    "three states": Discrete(stk.Energy(lambda x: 0.3 * x.sum(1), (3,)), (0.0, 1.0, 3.0)),
    "free end": Discrete(stk.Energy(free_end, (5,)), SIGNS),
}
KERNELS = [GibbsWithGradients(), DiscreteLangevin(2.0), DiscreteLangevin(100.0)]


class Enumerated:
    """A field on few states: all of them, their labels, law and the gains d_ik."""

    def __init__(self, field):
        self.field, self.values = field, np.array(field.states)
        self.k, self.sites = len(self.values), field.event_shape[0]
        self.labels = np.array(list(itertools.product(range(self.k), repeat=self.sites)))
        x = torch.from_numpy(self.values[self.labels]).requires_grad_()
        energy = field.energy(x)
        (grad,) = torch.autograd.grad(energy.sum(), x)
        self.x, self.energy, self.slope = x.detach(), energy.detach().numpy(), -grad.numpy()
        self.law = np.exp(-self.energy + self.energy.min())
        self.law /= self.law.sum()
        self.place = self.k ** np.arange(self.sites - 1, -1, -1)

    def number(self, labels):
        return labels @ self.place

    def changes(self, state, label):
        """Gibbs with gradients' one change from `label` with the score of `state`: `[(labels, probability)]`."""
        found = []
        for i, v in itertools.product(range(self.sites), range(self.k)):
            if v != label[i]:
                there = label.copy()
                there[i] = v
                found.append(
                    (there, (self.values[v] - self.values[label[i]]) * self.slope[state, i] / 2)
                )
        weights = np.array([w for _, w in found])
        weights = np.exp(weights - weights.max())
        return [(there, w) for (there, _), w in zip(found, weights / weights.sum(), strict=True)]


def gradients_matrix(space, twice):
    """One change, or with probability `twice` two, each path decided by itself."""
    n = len(space.law)
    by = {}

    def step(state, label):
        key = state, tuple(label)
        if key not in by:
            by[key] = {space.number(there): (there, p) for there, p in space.changes(state, label)}
        return by[key]

    matrix = np.zeros((n, n))
    for a, here in enumerate(space.labels):
        for m, (middle, p) in step(a, here).items():
            ratio = math.exp(space.energy[a] - space.energy[m]) * step(m, middle)[a][1] / p
            matrix[a, m] += (1 - twice) * p * min(1, ratio)
            for b, (_, q) in step(a, middle).items():
                back = step(b, space.labels[b])[m][1] * step(b, middle)[a][1]
                ratio = math.exp(space.energy[a] - space.energy[b]) * back / (p * q)
                matrix[a, b] += twice * p * q * min(1, ratio)
    return filled(matrix)


def langevin_matrix(space, alpha, barker):
    """All sites at once, a share of the decisions by Barker's rule."""
    gains = (space.values - space.values[space.labels][..., None]) * space.slope[..., None] / 2
    logits = gains - (space.values - space.values[space.labels][..., None]) ** 2 / (2 * alpha)
    logits -= np.logaddexp.reduce(logits, 2)[..., None]
    log_q = sum(logits[:, i][:, space.labels[:, i]] for i in range(space.sites))
    log_ratio = space.energy[:, None] - space.energy[None] + log_q.T - log_q
    ratio = np.exp(np.clip(log_ratio, -700, 700))
    return filled(
        np.exp(log_q) * ((1 - barker) * np.minimum(1, ratio) + barker * ratio / (1 + ratio))
    )


def filled(matrix):
    """What is not accepted stays."""
    np.fill_diagonal(matrix, matrix.diagonal() + 1 - matrix.sum(1))
    return matrix


def exact(kernel, space):
    if isinstance(kernel, GibbsWithGradients):
        return gradients_matrix(space, discrete.TWICE)
    return langevin_matrix(space, kernel.step_size, discrete.BARKER)


def least_eigenvalue(matrix, law):
    root = np.sqrt(law)
    return float(np.linalg.eigvalsh(root[:, None] * matrix / root).min())


def one_step(kernel, space, seed):
    """Counts of one step from every state, `(N, N)`."""
    x = space.x.repeat_interleave(COPIES, 0)
    noise = stk.Noise(seed, len(x), dtype=torch.float64)
    bound = resolve(space.field, kernel.needs)
    reached = kernel.step(bound, begin(kernel, bound, x, noise).state, noise)[0].x
    labels = (reached[..., None] - torch.from_numpy(space.values)).abs().argmin(-1).numpy()
    pairs = np.repeat(np.arange(len(space.law)), COPIES) * len(space.law) + space.number(labels)
    return np.bincount(pairs, minlength=len(space.law) ** 2).reshape(len(space.law), -1)


def misfit(counts, matrix):
    """In limits: chi-square of each row of counts against the matrix, what is rare in a row taken as one."""
    total, freedom = 0.0, 0
    for seen, p in zip(counts, matrix, strict=True):
        rare = COPIES * p < 10
        seen, p = np.append(seen[~rare], seen[rare].sum()), np.append(p[~rare], p[rare].sum())
        if p[-1] < 1e-9:
            assert seen[-1] == 0
            seen, p = seen[:-1], p[:-1]
        total, freedom = (
            total + ((seen - COPIES * p) ** 2 / (COPIES * p)).sum(),
            freedom + len(p) - 1,
        )
    return math.log(max(chi2.sf(total, max(freedom, 1)), 1e-300)) / math.log(FALSE_ALARM)


def as_published(patch):
    """The mutant: always one change, and Metropolis' rule alone."""
    patch.setattr(discrete, "TWICE", 0.0)
    patch.setattr(discrete, "BARKER", 0.0)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize(
    "name", ["coupled", "three states", "free end", "one site", "flat, its relaxation convex"]
)
def test_one_step_from_every_state_has_the_exact_law(monkeypatch, name, kernel):
    space = Enumerated(TARGETS[name])
    assert misfit(one_step(kernel, space, seed=1), exact(kernel, space)) < 1
    if name == "coupled":
        right = exact(kernel, space)
        as_published(monkeypatch)
        assert misfit(one_step(kernel, space, seed=1), right) > 2


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("name", TARGETS)
def test_no_eigenvalue_is_near_minus_one(name, kernel):
    space = Enumerated(TARGETS[name])
    matrix = exact(kernel, space)
    np.testing.assert_allclose(space.law @ matrix, space.law, atol=1e-12)
    flow = space.law[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, atol=1e-12)
    assert least_eigenvalue(matrix, space.law) > (
        -0.5 if isinstance(kernel, GibbsWithGradients) else -0.75
    )


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("flat", KERNELS[0]),
        ("nearly flat", KERNELS[0]),
        ("free end", KERNELS[0]),
        ("flat, its relaxation convex", KERNELS[2]),
    ],
)
def test_as_published_they_alternate(monkeypatch, name, kernel):
    as_published(monkeypatch)
    space = Enumerated(TARGETS[name])
    assert least_eigenvalue(exact(kernel, space), space.law) < -0.85


def test_sweeps_of_two_blocks_do_not_alternate():
    """Each half is a projection; a product of two has no negative eigenvalue."""
    space = Enumerated(
        Discrete(stk.Energy(lambda x: Ising(2, 0.2).energy(x.reshape(-1, 2, 2)), (4,)), SIGNS)
    )
    lattice, x = Ising(2, 0.2), space.x.reshape(-1, 2, 2).repeat_interleave(COPIES, 0)
    noise = stk.Noise(2, len(x), dtype=torch.float64)
    bound = resolve(lattice, {"gibbs", "states"})
    reached = BlockGibbs().step(bound, BlockGibbs().init(bound, x, noise), noise)[0].x.flatten(1)
    pairs = np.repeat(np.arange(16), COPIES) * 16 + space.number((reached > 0).long().numpy())
    matrix = np.bincount(pairs, minlength=256).reshape(16, 16) / COPIES
    assert np.linalg.eigvals(matrix).real.min() > -0.1


def parity(x):
    return (x.prod(-1) < 0).double()


FLAT = Discrete(stk.Energy(lambda x: 0 * x.sum(1), (200,)), SIGNS)
THINNED = [
    (TARGETS["flat"], GibbsWithGradients(), 10),
    (TARGETS["flat, its relaxation convex"], DiscreteLangevin(100.0), 10),
    pytest.param(FLAT, GibbsWithGradients(), 10, marks=pytest.mark.slow),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("field", "kernel", "thin"), THINNED)
def test_thinned_draws_forget_the_parity_of_the_start(monkeypatch, field, kernel, thin):
    """All chains start with all sites 1; one draw a chain after warmup of whole periods, so that draws are independent."""
    chains = 2000
    run = {
        "init": torch.ones(chains, *field.event_shape),
        "steps": thin,
        "thin": thin,
        "warmup": 4 * thin,
        "seed": 1,
    }
    x = stk.sample(field, kernel, **run).x
    assert_mean(parity(x[:, 0]), 0.5, "parity")
    as_published(monkeypatch)
    wrong = parity(stk.sample(field, kernel, **run).x[:, 0])
    assert wrong.std() == 0 or mean_z(wrong, 0.5).abs() > 2 * z_limit()
