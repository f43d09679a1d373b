"""Discrete samplers against enumerated laws, state by state, with mutants; the models against sums over all states."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import chi2

import scoretk as stk
from scoretk.fields import Discrete
from scoretk.fields.states import labels, pick
from scoretk.models.targets.lattices import RBM, Ising, Potts, ising, potts, rbm
from scoretk.solvers import discrete
from scoretk.solvers.discrete import BlockGibbs, DiscreteLangevin, GibbsWithGradients
from tests.evidence import FALSE_ALARM, assert_mean, mean_z, z_limit
from tests.lawful import checked
from tests.marks import slow_but, slow_rows_but
from tests.test_langevin import one_step_from_exact

CHAINS = 40_000
MORE = 60_000
FORBIDDEN = {"infinite": math.inf, "nan": math.nan}


def uneven(x):
    """Far from quadratic, so that the score misjudges changes; states are unevenly spaced numbers."""
    return (x.pow(4) / 4 - x.square() + 0.4 * x * x.roll(1, 1)).sum(1)


def hard_core(beyond):
    """Particles on a ring of 6 that no two neighbours hold at once: there the energy is not finite."""

    def energy(x):
        touching = (x * x.roll(1, 1)).sum(1) > 0.5
        return torch.where(touching, beyond, -0.5 * x.sum(1))

    return Discrete(stk.Energy(energy, (6,)), (0.0, 1.0))


def votes(x):
    """Three sites of four categories, not linear in the rows."""
    return (x.sum(1).square() * x.new_tensor([0.2, 0.4, 0.6, -0.3])).sum(1)


TARGETS = {
    "ising": (Ising(3, 0.4, 0.1), 1.5),
    "potts": (Potts(2, 3, 0.4), 2.0),
    "rbm": (rbm(), 0.6),
    "uneven": (Discrete(stk.Energy(uneven, (4,)), (-1.5, 0.0, 0.5, 2.0)), 1.0),
    "votes": (Discrete(stk.Energy(votes, (3, 4)), "one-hot"), 1.0),
    "hard core": (hard_core(math.inf), 0.6),
}
ROLLED = Ising(2, 0.3, 0.1)


def solvers(size):
    return {"gradients": GibbsWithGradients(), "langevin": DiscreteLangevin(size)}


def all_states(field):
    """Every x, in the order of `numbers`: `(N, *event_shape)`."""
    one_hot = field.states == "one-hot"
    states = torch.eye(field.event_shape[-1]).tolist() if one_hot else field.states
    sites = math.prod(field.event_shape) // (field.event_shape[-1] if one_hot else 1)
    return torch.tensor(list(itertools.product(states, repeat=sites)), dtype=torch.float64).reshape(
        -1, *field.event_shape
    )


def numbers(x, field):
    """Which of `all_states` each row is."""
    label = labels(x, field.states)
    k = len(field.states) if isinstance(field.states, tuple) else field.event_shape[-1]
    return (label * k ** torch.arange(label.shape[1] - 1, -1, -1)).sum(1)


def law(field):
    """Probabilities of `all_states`."""
    return torch.softmax(-field.energy(all_states(field)), 0).numpy()


def distance(x, field, probability):
    """How far, in limits, draws are from these probabilities: chi-square over all states, the rare ones as one."""
    seen = np.bincount(numbers(x, field).numpy(), minlength=len(probability))
    if seen[probability == 0].any():
        return math.inf
    rare = len(x) * probability < 10
    seen, expected = (np.append(v[~rare], v[rare].sum()) for v in (seen, len(x) * probability))
    seen, expected = seen[expected > 0], expected[expected > 0]
    p = chi2.sf(((seen - expected) ** 2 / expected).sum(), len(seen) - 1)
    return math.log(max(p, 1e-300)) / math.log(FALSE_ALARM)


@pytest.mark.parametrize("kernel", solvers(1.0))
@pytest.mark.parametrize("name", TARGETS)
def test_exact_draws_stay_exact(name, kernel):
    target, size = TARGETS[name]
    x = one_step_from_exact(solvers(size)[kernel], target, seed=3, chains=MORE)
    assert distance(x, target, law(target)) < 1


@pytest.mark.parametrize(
    "target", [ROLLED, Potts(2, 3, 0.4), rbm()], ids=lambda f: type(f).__name__
)
def test_a_sweep_keeps_exact_draws_exact(target):
    assert distance(one_step_from_exact(BlockGibbs(), target, seed=3), target, law(target)) < 1


class AtOnce(Ising):
    """Both colours of the checkerboard given the old state."""

    def gibbs(self, x, u):
        drawn = pick(discrete.weigh(self.score(x), self.states), u.flatten(1))
        return discrete.place(drawn, self.states, self.event_shape, x.dtype)


class MeanField(RBM):
    """The visible units given the mean of the hidden ones."""

    def gibbs(self, x, u):
        hidden = torch.sigmoid(self._hidden(x))
        return (u[:, len(self.hidden_bias) :] < torch.sigmoid(self._visible(hidden))).to(x)


@pytest.mark.parametrize(
    "wrong", [AtOnce(2, 0.3, 0.1), MeanField(**vars(rbm()))], ids=lambda f: type(f).__name__
)
def test_invariance_catches_wrong_sweeps(wrong):
    assert distance(one_step_from_exact(BlockGibbs(), wrong, seed=3), wrong, law(wrong)) > 2


class Energies:
    """Decides by the energies alone, as if the proposal were symmetric."""

    def apply(self, patch):
        right = discrete.metropolis
        patch.setattr(
            discrete, "metropolis", lambda a, b, r, *rest: right(a, b, a.energy - b.energy, *rest)
        )


class StaleGradient:
    """The way back is judged with the gradient of the way there."""

    def apply(self, patch):
        right, first = discrete._changes, []

        def changes(grad, label, states):
            first.append(grad)
            return right(first[0], label, states)

        patch.setattr(discrete, "_changes", changes)


class MissingHalf:
    """Proposes by exp(d), and says that it was exp(d / 2)."""

    def apply(self, patch):
        right = discrete.pick
        patch.setattr(discrete, "pick", lambda logits, u: right(2 * logits, u))


class AcceptsNaN:
    """Takes a ratio that is not a number for a yes."""

    def apply(self, patch):
        def metropolis(current, proposed, ratio, step, noise, *rest):
            u = noise.uniform(step, stk.Stream.ACCEPT, (), ratio.dtype)
            x = torch.where(~(u.log() >= ratio)[:, None], proposed.x, current.x)
            return proposed._replace(x=x), ratio

        patch.setattr(discrete, "metropolis", metropolis)


@pytest.mark.parametrize("mutant", [Energies, StaleGradient, MissingHalf])
@pytest.mark.parametrize("kernel", solvers(1.0))
@pytest.mark.parametrize(
    "name", slow_but([n for n in TARGETS if n != "hard core"], "uneven")
)  # whose gradient is the same everywhere
def test_invariance_catches_wrong_kernels(monkeypatch, name, kernel, mutant):
    mutant().apply(monkeypatch)
    target, size = TARGETS[name]
    x = one_step_from_exact(solvers(size)[kernel], target, seed=3, chains=MORE)
    assert distance(x, target, law(target)) > 2


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kernel", "beyond"),
    slow_rows_but(
        [(kernel, beyond) for kernel in ("gradients", "langevin") for beyond in FORBIDDEN],
        ("langevin", "infinite"),
    ),
)
def test_what_is_not_finite_is_a_rejection(monkeypatch, kernel, beyond):
    kernel, beyond = solvers(0.6)[kernel], FORBIDDEN[beyond]
    target = hard_core(math.inf)
    noise = stk.Noise(5, CHAINS, dtype=torch.float64)
    run = {"init": target.draw(CHAINS, noise).double(), "steps": 1, "warmup": 10, "seed": 1}
    draws = stk.sample(hard_core(beyond), kernel, **run)
    assert draws.failures == {}
    assert distance(draws.final, target, law(target)) < 1
    AcceptsNaN().apply(monkeypatch)
    state = kernel.init(stk.fields.resolve(hard_core(math.nan), kernel.needs), run["init"], noise)
    wrong = kernel.step(stk.fields.resolve(hard_core(math.nan), kernel.needs), state, noise)[0].x
    assert distance(wrong, target, law(target)) > 2


@pytest.mark.parametrize(
    "kernel",
    [GibbsWithGradients(temperature=2.5), DiscreteLangevin(1.5, temperature=2.5)],
    ids=repr,
)
def test_at_temperature_the_target_is_tempered(kernel):
    cold, hot = Ising(3, 0.5, 0.25), Ising(3, 0.2, 0.1)
    noise = stk.Noise(2, CHAINS, dtype=torch.float64)
    draws = stk.sample(cold, kernel, init=hot.draw(CHAINS, noise).double(), steps=1, seed=2)
    assert distance(draws.final, hot, law(hot)) < 1


def moves(field, x, energy):
    """`(E(x) - E(x')) / 2` for the x' that differ from x in the state of one site, `(sites, k)`: one at a time."""
    k = len(field.states) if isinstance(field.states, tuple) else field.event_shape[-1]
    here = labels(x[None], field.states)
    gains = np.zeros((here.shape[1], k))
    for i, state in itertools.product(range(here.shape[1]), range(k)):
        there = here.clone()
        there[0, i] = state
        moved = discrete.place(there, field.states, field.event_shape, x.dtype)
        gains[i, state] = float(energy(x[None]) - energy(moved)) / 2
    return gains, here[0].numpy()


def log_kernel(field, alpha):
    """Discrete Langevin's `log q(x' | x)` between all states, for an energy linear in each site: `(N, N)`."""
    xs = all_states(field)
    there = labels(xs, field.states).numpy()
    rows = []
    for x in xs:
        gains, here = moves(field, x, field.energy)
        apart = 2.0 if field.states == "one-hot" else (field.states[1] - field.states[0]) ** 2
        logits = gains - (np.arange(gains.shape[1]) != here[:, None]) * apart / (2 * alpha)
        log_q = logits - logsumexp(logits, 1, keepdims=True)
        rows.append(log_q[np.arange(len(here)), there].sum(1))
    return np.stack(rows)


SMALL = [Ising(2, 0.3, 0.2), Potts(2, 2, 0.6)]


@pytest.mark.parametrize("target", SMALL, ids=repr)
def test_one_unadjusted_step_has_the_published_law(target):
    """Independent of the solver's own proposal: energies of single changes, of which the score is exact here."""
    x = one_step_from_exact(DiscreteLangevin(1.3, adjusted=False), target, seed=4)
    assert distance(x, target, law(target) @ np.exp(log_kernel(target, 1.3))) < 1
    assert distance(x, target, law(target) @ np.exp(log_kernel(target, 2.6))) > 2


@pytest.mark.parametrize("target", SMALL, ids=repr)
def test_gibbs_with_gradients_proposes_as_published(target):
    field = stk.fields.resolve(target, {"energy", "score", "states"})
    for x in all_states(target)[::3]:
        gains, here = moves(target, x, target.energy)
        gains[np.arange(len(here)), here] = -np.inf
        grad = field.energy_and_grad(x[None])[1]
        log_q = GibbsWithGradients().log_q(grad, labels(x[None], target.states), target.states)
        np.testing.assert_allclose(log_q[0].numpy(), (gains - logsumexp(gains)).ravel(), atol=1e-12)


@pytest.mark.thorough
def test_the_bias_of_unadjusted_langevin_is_there_and_vanishes():
    target, exact = SMALL[0], law(SMALL[0])

    def reached(alpha):
        return np.linalg.matrix_power(np.exp(log_kernel(target, alpha)), 2**20)[0]

    bias = [np.abs(reached(alpha) - exact).sum() / 2 for alpha in (2.0, 1.0, 0.5, 0.25)]
    assert bias[0] > 0.02
    assert all(later < earlier / 2 for earlier, later in itertools.pairwise(bias))
    assert bias[-1] < 1e-3
    run = {"chains": CHAINS, "steps": 1, "warmup": 25, "seed": 1, "dtype": torch.float64}
    unadjusted = stk.sample(target, DiscreteLangevin(2.0, adjusted=False), **run).final
    assert distance(unadjusted, target, reached(2.0)) < 1
    assert distance(unadjusted, target, exact) > 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    slow_but([GibbsWithGradients(), DiscreteLangevin(1.0), BlockGibbs()], BlockGibbs()),
    ids=repr,
)
def test_long_runs_reach_the_exact_moments(kernel):
    """Magnetisation and energy of a lattice with 65536 states, from a uniform start."""
    target = ising(4, 0.3, 0.05)
    xs, p = all_states(target), torch.from_numpy(law(target))

    def moments(x):
        m = x.mean((1, 2))
        return torch.stack([m, m.square(), m.abs(), target.energy(x)], 1)

    draws = stk.sample(
        target, kernel, chains=1500, steps=1, warmup=100, seed=2, keep="last", dtype=torch.float64
    )
    truth = p @ moments(xs)
    assert_mean(moments(draws.final), truth)
    start = target.initial(1500, stk.Noise(2, 1500, dtype=torch.float64))
    assert mean_z(moments(start), truth).abs().max() > 2 * z_limit(4)


def bonds(size):
    sites = list(itertools.product(range(size), repeat=2))
    return [
        ((i, j), other) for i, j in sites for other in (((i + 1) % size, j), (i, (j + 1) % size))
    ]


def ising_energy(target, x):
    return (
        -sum(target.coupling * x[i] * x[j] for i, j in bonds(target.size)) - target.field * x.sum()
    )


def potts_energy(target, x):
    return -sum(target.coupling * (x[i].argmax() == x[j].argmax()) for i, j in bonds(target.size))


def rbm_energy(target, x):
    """From the joint law, the hidden units summed one configuration after another."""
    w, b, c = (
        v.double().numpy() for v in (target.weights, target.visible_bias, target.hidden_bias)
    )
    hidden = np.array(list(itertools.product([0.0, 1.0], repeat=len(c))))
    return -logsumexp(x @ b + hidden @ c + hidden @ (x @ w))


@pytest.mark.parametrize(
    ("target", "energy"),
    [
        (Ising(2, 0.3, 0.2), ising_energy),
        (Ising(3, -0.4, 0.1), ising_energy),
        (Potts(2, 3, 0.4), potts_energy),
        (Potts(3, 2, 0.7), potts_energy),
        (rbm(5, 3, 2), rbm_energy),
    ],
)
def test_the_law_is_that_of_a_sum_over_all_states(target, energy):
    xs = all_states(target)
    energies = np.array([energy(target, x.numpy()) for x in xs])
    np.testing.assert_allclose(target.energy(xs).numpy(), energies, atol=1e-12)
    assert target.exact_log_partition() == pytest.approx(logsumexp(-energies), abs=1e-12)
    np.testing.assert_allclose(
        target.log_prob(xs).numpy(), -energies - logsumexp(-energies), atol=1e-12
    )
    draws = target.draw(CHAINS, stk.Noise(1, CHAINS, dtype=torch.float64))
    assert distance(draws, target, np.exp(-energies - logsumexp(-energies))) < 1
    start = target.initial(CHAINS, stk.Noise(1, CHAINS, dtype=torch.float64))
    assert distance(start, target, np.full(len(xs), 1 / len(xs))) < 1


FIELDS = [
    Ising(3),
    Ising(8),
    Potts(2),
    Potts(4),
    rbm(),
    Discrete(stk.Energy(uneven, (3,)), (0.0, 1.0, 3.0)),
]


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f"{type(f).__name__}{f.event_shape}")
def test_the_fields_obey_the_laws(field):
    failed = [result for result in checked(field) if result.status == "failed"]
    assert failed == []


def test_too_many_states_are_not_enumerated():
    assert {"log_prob", "draw"} <= ising(4).provides
    large, noise = ising(5), stk.Noise(0, 2)
    assert large.provides == {"couplings", "energy", "score", "states"}
    for ask in (
        lambda: large.log_prob(large.initial(2, noise)),
        lambda: large.draw(2, noise),
        large.exact_log_partition,
    ):
        with pytest.raises(stk.MissingCapability, match=r"2\^25"):
            ask()
    assert potts(3).provides > {"draw"}


def test_factories_are_deterministic():
    assert torch.equal(rbm(seed=3).weights, rbm(seed=3).weights)
    assert not torch.equal(rbm(seed=3).weights, rbm(seed=4).weights)
    assert rbm(4, 3).event_shape == (4,)
    assert potts() == Potts()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_picks_follow_the_probabilities_and_never_the_impossible(dtype):
    logits = torch.tensor([-math.inf, 0.3, -math.inf, -1.0, 1.2, -200.0, -math.inf], dtype=dtype)
    u = stk.Noise(0, CHAINS, dtype=dtype).uniform(0, stk.Stream.USER, ())
    seen = torch.bincount(pick(logits.expand(CHAINS, -1), u), minlength=7)
    z = (seen - CHAINS * logits.softmax(0)) / (CHAINS * logits.softmax(0)).sqrt().clamp(min=1)
    assert z.abs().max() < z_limit(7)
    ends = torch.tensor(
        [0.0, torch.finfo(dtype).tiny, 1 - torch.finfo(dtype).eps / 2, 1.0], dtype=dtype
    )
    assert pick(logits.expand(4, -1), ends).tolist()[:2] == [1, 1]
    assert set(pick(logits.expand(4, -1), ends).tolist()) <= {1, 3, 4}
    many = torch.randn(50, 4001, generator=torch.Generator().manual_seed(0), dtype=dtype)
    many[:, 1::2] = -math.inf
    for end in ends:
        assert not bool((pick(many, end.expand(50)) % 2).any())


KERNELS = [
    (GibbsWithGradients(), Ising(4)),
    (DiscreteLangevin(1.0), Potts(4)),
    (DiscreteLangevin(0.5, adjusted=False), FIELDS[-1]),
    (BlockGibbs(), Potts(4)),
]


@pytest.mark.parametrize(("kernel", "field"), KERNELS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("dtype", slow_but([torch.float32, torch.float64], torch.float32))
def test_chains_do_not_depend_on_the_batch(kernel, field, dtype):
    run = {"chains": 13, "steps": 40, "seed": 6, "dtype": dtype}
    whole, parts, few = (
        stk.sample(field, kernel, **(run | part)) for part in ({}, {"batch": 4}, {"chains": 5})
    )
    assert torch.equal(whole.x, parts.x)
    assert torch.equal(whole.x[:5], few.x)
    assert whole.x.dtype == dtype
    assert bool((whole.x[:, 1:] != whole.x[:, :-1]).flatten(1).any(1).all())


@pytest.mark.compiled
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, on its way through the compiler
@pytest.mark.parametrize(
    ("kernel", "field"),
    slow_rows_but(KERNELS, KERNELS[0], KERNELS[3]),
    ids=lambda value: type(value).__name__,
)
def test_a_step_is_one_graph(kernel, field):
    """Traced without a break, so without a look at the host; the graph run as it is gives the same state."""
    noise, bound = stk.Noise(0, 7, dtype=torch.float64), stk.fields.resolve(field, kernel.needs)
    state = kernel.init(bound, field.initial(7, noise), noise)
    graph = torch.compile(
        lambda now: kernel.step(bound, now, noise)[0], fullgraph=True, backend="aot_eager"
    )
    for _ in range(3):
        state, traced = kernel.step(bound, state, noise)[0], graph(state)
        assert torch.equal(traced.x, state.x)


@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("kernel", "field"), KERNELS, ids=lambda value: type(value).__name__)
def test_compiled_agrees_with_eager(kernel, field):
    run = {"chains": 3, "steps": 16, "seed": 1, "dtype": torch.float64}
    eager, compiled = (stk.sample(field, kernel, compile=c, **run) for c in (False, True))
    assert torch.equal(compiled.x, eager.x)


@pytest.mark.parametrize(
    "kernel", [GibbsWithGradients(), DiscreteLangevin(1.0), DiscreteLangevin(1.0, adjusted=False)]
)
def test_one_gradient_a_step_and_cached_values_are_those_of_the_position(kernel):
    calls = []

    def energy(x):
        calls.append(len(x))
        return uneven(x)

    field = Discrete(stk.Energy(energy, (4,)), (-1.5, 0.0, 0.5, 2.0))
    draws = stk.sample(field, kernel, chains=5, steps=7, seed=1)
    assert sum(calls) == draws.cost["score"] == draws.cost["energy"] == 5 * 8
    noise = stk.Noise(0, 50, dtype=torch.float64)
    bound = stk.fields.resolve(field, kernel.needs)
    state = kernel.init(bound, field.initial(50, noise), noise)
    for _ in range(5):
        state, info = kernel.step(bound, state, noise)
    energies, grad = bound.energy_and_grad(state.x)
    assert torch.equal(state.energy, energies)
    assert torch.equal(state.grad, grad)
    assert torch.equal(info["energy"], energies)
    assert ("accept" in info) is getattr(kernel, "adjusted", True)


def test_a_sweep_is_counted():
    assert dict(stk.sample(Ising(4), BlockGibbs(), chains=5, steps=7).cost) == {"gibbs": 35}


@pytest.mark.parametrize(
    "kernel", [GibbsWithGradients(), DiscreteLangevin(1.0), BlockGibbs()], ids=repr
)
def test_starts_are_on_the_lattice(kernel):
    for field, off in [(Ising(4), 0.5), (Ising(4), math.nan), (Potts(4), 1.0)]:
        x = torch.full((2, *field.event_shape), off)
        with pytest.raises(stk.InvalidArgument, match=r"^x: .*(states|one-hot)"):
            kernel.init(stk.fields.resolve(field, kernel.needs), x, stk.Noise(0, 2))
    start = Ising(4).initial(2, stk.Noise(0, 2))
    assert torch.equal(
        stk.sample(Ising(4), kernel, init=start, steps=1).x.abs(), torch.ones(2, 1, 4, 4)
    )


def test_states_that_the_other_precision_rounded_are_taken_to_the_states():
    field = Discrete(stk.Energy(lambda x: x.sum(1), (2,)), (0.1, 0.7))
    init = torch.tensor([[0.1, 0.7]])
    x = stk.sample(field, GibbsWithGradients(), init=init, steps=20, dtype=torch.float64).x
    assert set(x.unique().tolist()) == {0.1, 0.7}


@pytest.mark.parametrize("kernel", [GibbsWithGradients(), DiscreteLangevin(1.0)], ids=repr)
def test_a_field_without_states_is_told_how_to_state_them(kernel):
    with pytest.raises(stk.MissingCapability, match="State them"):
        stk.sample(stk.Energy(uneven, (4,)), kernel, chains=2, steps=2)
    for field in (Discrete(stk.Energy(uneven, (4,)), (0.0, 1.0)), stk.tempered(Ising(4), 2.0)):
        assert stk.sample(field, kernel, chains=2, steps=2).failures == {}


def test_a_field_without_a_sweep_is_refused():
    with pytest.raises(stk.MissingCapability, match=r"gibbs\(x, u\)"):
        stk.sample(FIELDS[-1], BlockGibbs(), chains=2, steps=2)
    with pytest.raises(stk.MissingCapability, match="gibbs"):
        stk.sample(Ising(3), BlockGibbs(), chains=2, steps=2)


def test_condition_rows_reach_energy_and_sweep():
    field = Discrete(stk.Energy(lambda x, tilt: -(tilt[:, None] * x).sum(1), (3,)), (0.0, 1.0))
    tilt = torch.tensor([40.0, -40.0])
    draws = stk.sample(field, DiscreteLangevin(1.0), chains=2, steps=30, cond={"tilt": tilt})
    assert torch.equal(draws.final, torch.tensor([[1.0], [0.0]]).expand(2, 3))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: DiscreteLangevin(0.0), "step_size"),
        (lambda: DiscreteLangevin(1.0, adjusted=1), "adjusted"),
        (lambda: DiscreteLangevin(1.0, temperature=-1.0), "temperature"),
        (lambda: GibbsWithGradients(temperature=math.nan), "temperature"),
        (lambda: Ising(1), "size"),
        (lambda: Ising(4, math.inf), "coupling"),
        (lambda: Ising(4, 0.1, None), "field"),
        (lambda: Potts(4, 1), "colours"),
        (lambda: rbm(visible=0), "visible"),
        (lambda: rbm(seed=-1), "seed"),
        (lambda: RBM(torch.zeros(3, 2), torch.zeros(2), torch.zeros(2)), "visible_bias"),
        (lambda: RBM(torch.zeros(3, 2), torch.zeros(3), torch.full((2,), math.nan)), "hidden_bias"),
        (lambda: Discrete(uneven, (0.0, 1.0)), "field"),
        (lambda: Discrete(stk.Energy(uneven, (4,)), (1.0,)), "states"),
        (lambda: Discrete(stk.Energy(uneven, (4,)), (1.0, 1.0)), "states"),
        (lambda: Discrete(stk.Energy(uneven, (4,)), [[0.0, 1.0]]), "states"),
        (lambda: Discrete(stk.Energy(uneven, (4,)), "two"), "states"),
        (lambda: Discrete(stk.Energy(uneven, (1,)), "one-hot"), "event_shape"),
    ],
)
def test_wrong_arguments_are_named(make, named):
    with pytest.raises(stk.InvalidArgument, match=rf"^{named}"):
        make()


@pytest.mark.parametrize(
    "states", [range(3), [0, 1, 2], torch.arange(3), np.arange(3), torch.arange(3.0)], ids=str
)
def test_states_are_any_sequence_of_numbers_and_kept_as_a_tuple(states):
    field = stk.Discrete(stk.Energy(lambda x: x.sum(1), (2,)), states)
    assert field.states == (0, 1, 2)
    assert isinstance(field.states, tuple)
    assert stk.sample(field, stk.GibbsWithGradients(), chains=2, steps=2).failures == {}


@pytest.mark.parametrize(
    "states", ["01", (1,), (1, 1), [[0, 1]], torch.eye(2), {0: 1}, torch.ones(())]
)
def test_what_are_no_states_is_told_what_are(states):
    with pytest.raises(stk.InvalidArgument, match=r"\(0, 1\) or tuple\(range\(30\)\)"):
        stk.Discrete(stk.Energy(lambda x: x.sum(1), (2,)), states)


def test_a_solver_that_would_leave_the_states_is_told_so_and_not_what_is_there():
    field = stk.Discrete(stk.Energy(lambda x: x.sum(1), (2,)), (0, 1))
    with pytest.raises(stk.MissingCapability) as refused:
        stk.sample(field, stk.NUTS(), chains=2, steps=2)
    assert "is needed" not in str(refused.value)
    assert "GibbsWithGradients" in str(refused.value)
    score = stk.Score(lambda x: -x, (2,))
    with pytest.raises(stk.MissingCapability, match=r"offers score, but energy is needed"):
        stk.sample(score, stk.NUTS(), chains=2, steps=2)


class Bonds:
    """A class of a user's own: four sites in a row, with all that moves of discrete states ask for."""

    event_shape = (4,)
    gibbs_shape = (4,)
    couplings = stk.Couplings(torch.arange(3), torch.arange(1, 4), torch.full((3,), 1.4))

    def energy(self, x):
        return -0.7 * (x[:, 1:] * x[:, :-1]).sum(1)

    def gibbs(self, x, u):
        rows = list(x.unbind(1))
        for i in range(4):
            near = sum(rows[j] for j in (i - 1, i + 1) if 0 <= j < 4)
            up = torch.sigmoid(1.4 * near)
            rows[i] = torch.where(u[:, i] < up, torch.ones_like(up), -torch.ones_like(up))
        return torch.stack(rows, 1)


class Stated(Bonds):
    states = (-1.0, 1.0)


OWN = {
    "stated": Stated(),
    "Discrete": stk.Discrete(Bonds(), (-1.0, 1.0)),
    "tempered": stk.tempered(Stated(), 1.0),
}
MOVES = {
    "the default": None,
    "GibbsWithGradients": stk.GibbsWithGradients(),
    "BlockGibbs": stk.BlockGibbs(),
    "SwendsenWang": stk.SwendsenWang(),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("name", OWN)
def test_a_class_of_ones_own_has_a_start_and_all_its_moves(name, move):
    """tanh(.7) is the mean of a product of neighbours in a row."""
    if name == "tempered" and move in ("BlockGibbs", "SwendsenWang"):
        return  # a power has other conditional laws than its field
    draws = stk.sample(OWN[name], MOVES[move], chains=256, steps=60, warmup=20)
    pairs = (draws.x[..., 1:] * draws.x[..., :-1]).mean((1, 2))
    assert_mean(pairs, math.tanh(0.7))
    assert set(draws.x.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_states_of_a_network_are_enumerated_in_its_dtype(dtype):
    """Of three independent sites, whose log odds are twice the weights."""
    net = torch.nn.Linear(3, 1, bias=False, dtype=dtype, device="meta").to_empty(device="cpu")
    weights = torch.tensor([0.3, -0.2, 0.9], dtype=dtype)
    net.load_state_dict({"weight": weights[None]})
    field = Discrete(stk.Energy(lambda x: -net(x).squeeze(1), (3,)), (-1.0, 1.0))
    x = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
    expected = -torch.nn.functional.softplus(-2 * weights * x.to(dtype)).sum(1)
    assert torch.allclose(stk.log_prob(field, x).value, expected, atol=1e-6)
    drawn = field.draw(4000, stk.Noise(0, 4000)).to(torch.float64)
    assert_mean(drawn, torch.tanh(weights))
