"""What changes nothing, or what it says: the axes of an event, a constant in an energy, a condition that is built in, the
precision of numbers, the order of rows, units. Of everything that takes events, fields or draws.
"""

import math
from collections import Counter
from unittest import mock

import pytest
import torch
from torch import distributions as td
from torch.utils._pytree import tree_leaves

import scoretk as stk
from scoretk import diagnostics, learn
from scoretk.core.streams import Stream
from scoretk.fields.posterior import POSTERIOR_METHODS
from scoretk.fields.protocols import is_timed
from scoretk.fields.resolve import resolve
from scoretk.fields.smoothed import smoothed
from scoretk.inference import beginning
from scoretk.solvers import EXAMPLES, SOLVERS
from scoretk.solvers.base import adapts, is_grid
from scoretk.solvers.warmup.approach import Place, begins_far
from tests.recorded import randn

D, SHAPES = 4, ((4,), (2, 2), (1, 4, 1))
SCALES = torch.tensor([0.4, 1.0, 2.0, 0.7], dtype=torch.float64)
T = torch.tensor([0.31, 0.74, 0.12], dtype=torch.float64)
A, Y = randn(2, D), randn(2, seed=1)


def flat(x):
    return x.reshape(len(x), D)


def energy(x):
    u = flat(x) / SCALES.to(x)
    return u.square().sum(1) / 2 + torch.cos(2 * u).sum(1) + u[:, 0] * u[:, 3] / 4


def network(x, t):
    u = flat(x)
    return (torch.sin((1 + 3 * t)[:, None] * u + u.roll(1, 1)) * (2 - t)[:, None]).reshape(x.shape)


def measured(x):
    return flat(x) @ A.T.to(x)


def prior(shape):
    return stk.Diffusion(network, shape, stk.VP(), "noise")


def half(shape):
    return stk.Diffusion(lambda x, t: network(x, t) / 2, shape, stk.VP(), "noise")


def normal(shape, mean=0.0):
    return td.Independent(
        td.Normal(torch.full(shape, mean).double(), SCALES.reshape(shape)), len(shape)
    )


def posterior(shape, method):
    back = {"adjoint": lambda w: (w @ A.to(w)).reshape(len(w), *shape)}
    return stk.posterior(prior(shape), stk.LinearGaussian(measured, Y, 0.5, **back), method)


FIELDS = {
    "energy": lambda s: stk.Energy(energy, s),
    "tempered": lambda s: stk.tempered(stk.Energy(energy, s), 2.0),
    "product": lambda s: stk.product(stk.Energy(energy, s), stk.from_distribution(normal(s))),
    "mixture": lambda s: stk.mixture(
        [stk.from_distribution(normal(s, m)) for m in (0.0, 1.0)], [0.3, 0.7]
    ),
    "bridge": lambda s: stk.bridge(stk.from_distribution(normal(s)), stk.Energy(energy, s), 0.4),
    "distribution": lambda s: stk.from_distribution(normal(s)),
    "constrained": lambda s: stk.constrained(stk.Energy(energy, s), td.constraints.positive),
    "in an interval": lambda s: stk.constrained(
        stk.Energy(energy, s), td.constraints.interval(-1.0, 2.0)
    ),
    "posterior": lambda s: stk.posterior(
        stk.Energy(energy, s), lambda x: -measured(x).square().sum(1)
    ),
    "noise": prior,
    "velocity": lambda s: stk.Velocity(network, s),
    "velocity from samples": lambda s: stk.Velocity(network, s, randn(7, *s)),
    "tempered in time": lambda s: stk.tempered(prior(s), 2.0),
    "product in time": lambda s: stk.product(prior(s), prior(s)),
    "guided": lambda s: stk.guided(prior(s), 3.0, half(s)),
    "guided and rescaled": lambda s: stk.guided(prior(s), 3.0, half(s), rescale=0.6),
    "classifier": lambda s: stk.classifier_guided(prior(s), lambda x, t: -energy(x), 2.0),
    "smoothed": lambda s: smoothed(stk.Energy(energy, s), stk.VP(), samples=8),
    "smoothed by steps": lambda s: smoothed(
        stk.Energy(energy, s), stk.VP(), "langevin", samples=8, steps=3
    ),
    **{f"posterior, {m}": lambda s, m=m: posterior(s, m) for m in POSTERIOR_METHODS},
    "posterior of any likelihood": lambda s: stk.posterior(
        prior(s), lambda x: -measured(x).square().sum(1)
    ),
}


def same(made, shapes=SHAPES):
    """What is made of each shape is what is made of the first, whatever its axes."""
    first, *others = (leaves(made(shape)) for shape in shapes)
    assert first
    for other in others:
        assert len(other) == len(first)
        for a, b in zip(other, first, strict=True):
            if isinstance(b, torch.Tensor):
                torch.testing.assert_close(
                    a.reshape(b.shape), b, rtol=1e-6, atol=1e-9, equal_nan=True
                )
            else:
                assert a == b


def leaves(answer):
    if isinstance(answer, dict):
        return [leaf for value in answer.values() for leaf in leaves(value)]
    if isinstance(answer, list | tuple):
        return [leaf for value in answer for leaf in leaves(value)]
    return [answer]


@pytest.mark.filterwarnings("ignore:.*the data's own")  # a network of noise has no scale
@pytest.mark.parametrize("name", FIELDS)
def test_a_field_answers_alike(name):
    def answers(shape):
        field = FIELDS[name](shape)
        x = randn(3, *shape, seed=5)
        names = ("energy", "score", "velocity", "denoise", "log_prob")
        has = [
            n for n in names if n in field.provides or (n == "score" and "energy" in field.provides)
        ]
        when = {n: [T] if is_timed(field) and n != "log_prob" else [] for n in has}
        draws = (
            [field.draw(3, stk.Noise(0, 3, dtype=torch.float64))]
            if "draw" in field.provides
            else []
        )
        return [getattr(field, n)(x, *when[n]) for n in has], draws

    same(answers)


def drawn(field, solver, **options):
    steps = {} if is_grid(solver) else {"steps": 3, "warmup": 8 * adapts(solver)}
    run = {"chains": getattr(solver, "island", 4), "seed": 3, "keep": "all", "dtype": torch.float64}
    draws = stk.sample(field, solver, **run | steps | options)
    told = {n: v for n, v in draws.stats.items() if v.ndim == 2}
    return draws.x.reshape(*draws.x.shape[:2], -1), draws.status, told, dict(draws.cost)


STATIC = {n: s for n, s in EXAMPLES.items() if s.timed is False and s.needs <= {"energy", "score"}}
TUNES = {f"{n}, tuned": kind() for n, kind in SOLVERS.items() if n in ("chees", "mclmc", "mala")}
TIMED = {n: s for n, s in EXAMPLES.items() if s.timed is not False}


@pytest.mark.parametrize("name", [*STATIC, *TUNES])
def test_a_kernel_makes_the_same_draws(name):
    solver = (STATIC | TUNES)[name]
    same(lambda shape: drawn(stk.Energy(energy, shape), solver), SHAPES[:2])


@pytest.mark.parametrize("name", TUNES)
def test_a_kernel_that_begins_far_makes_the_same_draws(name):
    """Some chains far and some near, which go there by steps of their own."""
    far = torch.tensor([40.0, 0.5, -25.0, 1.0], dtype=torch.float64)

    def made(shape):
        init = far.reshape(4, *[1] * len(shape)) + randn(4, *shape, seed=9)
        return drawn(stk.Energy(energy, shape), TUNES[name], init=init, warmup=24)

    same(made, SHAPES[:2])


def test_which_chains_begin_far_is_the_same():
    """Of chains from the mass to far away, some are."""

    def made(shape):
        noise = stk.Noise(3, 64, dtype=torch.float64)
        away = torch.linspace(0, 12, 64, dtype=torch.float64).reshape(64, *[1] * len(shape))
        x = away + 0.1 * randn(64, *shape, seed=9)
        field = resolve(stk.Energy(energy, shape), {"energy"}, timed=False)
        place = Place(x, *field.energy_and_grad(x))
        return begins_far(field, place, noise, torch.tensor(0))

    far, _ = made(SHAPES[0])
    assert 0 < int(far.sum()) < 64
    same(made)


@pytest.mark.parametrize("name", [*STATIC, *TUNES])
def test_a_kernel_begins_alike(name):
    """All that its state holds."""

    def made(shape):
        solver, noise = (STATIC | TUNES)[name], stk.Noise(3, 8, dtype=torch.float64)
        bound = resolve(stk.Energy(energy, shape), solver.needs, timed=False)
        state = solver.init(bound, randn(8, *shape, seed=5), noise)
        return [leaf for leaf in tree_leaves(tuple(state)) if isinstance(leaf, torch.Tensor)]

    same(made, SHAPES[:2])


@pytest.mark.parametrize("name", TIMED)
def test_a_solver_in_time_makes_the_same_draws(name):
    same(lambda shape: drawn(posterior(shape, "mmps"), TIMED[name]), SHAPES[:2])


@pytest.mark.parametrize("name", ["gibbs-with-gradients", "discrete-langevin"])
def test_a_kernel_on_states_makes_the_same_draws(name):
    same(
        lambda shape: drawn(
            stk.Discrete(stk.Energy(energy, shape), (-1.0, 0.5, 2.0)), EXAMPLES[name]
        )
    )


INFERRED = {
    "density": lambda s, x: stk.log_prob(prior(s), x, method="euler", steps=3).value,
    "density by probes": lambda s, x: (
        stk.log_prob(prior(s), x, method="euler", steps=3, trace="hutchinson", probes=4).value
    ),
    "density by a sketch": lambda s, x: (
        stk.log_prob(prior(s), x, method="euler", steps=3, trace="hutch++", probes=6).value
    ),
    "density of a flow": lambda s, x: (
        stk.log_prob(stk.Velocity(network, s, normal(s)), x, method="rk4", steps=2).value
    ),
    "code": lambda s, x: stk.encode(prior(s), x, method="euler", steps=3).x,
    "bits": lambda s, x: (
        stk.bits_per_dim(
            prior(s), (60 * x.abs()).clamp(max=255).round(), method="euler", steps=2
        ).value
    ),
    "interpolation": lambda s, x: stk.interpolate(x, x.flip(0), 4),
    "a wider law": lambda s, x: beginning._widened(normal(s), (30.0, 2.0)).stddev,
    "a law about points": lambda s, x: beginning._about(x).stddev,
    "partition": lambda s, x: partition(s, jumps=2),
    "partition without jumps": lambda s, x: partition(s, jumps=0),
    "partition by islands": lambda s, x: partition(s, method="smc", island=8),
}


def partition(shape, **options):
    field, base = stk.Energy(energy, shape), normal(shape)
    run = {"chains": 16, "pilot": 16, "levels": 3, "check": False, "dtype": torch.float64}
    found = stk.log_partition(field, base, **run | options)
    return found.value, found.stderr, dict(found.cost)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", INFERRED)
def test_what_is_inferred_is_the_same(name):
    same(lambda shape: INFERRED[name](shape, randn(3, *shape, seed=5)), SHAPES[:2])


def critic(x):
    return torch.sin(flat(x)).sum(1)


LOSSES = {
    "score matching": lambda x, y, t: learn.implicit_score_matching(lambda z: -z * z.abs(), x),
    "sliced": lambda x, y, t: learn.sliced_score_matching(lambda z: -z * z.abs(), x, y[None]),
    "denoising": lambda x, y, t: learn.denoising_score_matching(torch.sin, x, y, t),
    "flow matching": lambda x, y, t: learn.flow_matching(network, x, t, y),
    "critic": lambda x, y, t: learn.wasserstein_critic(critic, x, y, t),
    "penalty": lambda x, y, t: learn.gradient_penalty(critic, x),
    "f-GAN": lambda x, y, t: learn.f_gan_critic(critic, x, y),
    "contrastive": lambda x, y, t: learn.noise_contrastive(critic, torch.zeros(()), energy, x, y),
    "noise prediction": lambda x, y, t: learn.noise_prediction(network, x, t, y, stk.VP()),
    "prediction": lambda x, y, t: learn.prediction_error(network, x, t, y, stk.VP(), "v"),
    "entropy": lambda x, y, t: learn.nearest_neighbour_entropy(x, y),
    "mmd": lambda x, y, t: diagnostics.mmd(x, y),
    "wasserstein": lambda x, y, t: diagnostics.sliced_wasserstein(x, y, 8),
    "copies": lambda x, y, t: tuple(diagnostics.copies(x, y, x + y)),
    "stein": lambda x, y, t: diagnostics.kernel_stein_discrepancy(x, -x, bootstraps=20).statistic,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_a_distance_are_the_same(name):
    same(lambda s: LOSSES[name](randn(3, *s, seed=5), randn(3, *s, seed=6), T))


CHAINS = {
    "ess": diagnostics.ess,
    "mcse": diagnostics.mcse,
    "rhat": diagnostics.rhat,
    "nested": lambda x: diagnostics.nested_rhat(x, 2),
    "split": diagnostics.split_rhat,
    "ranks": lambda x: diagnostics.sbc_ranks(x[:, 0], x[:, 1:]),
    "coverage": lambda x: diagnostics.tarp_ranks(x[:, 0], x[:, 1:]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_statistic_of_chains_is_the_same(name):
    same(lambda shape: CHAINS[name](randn(4, 20, *shape, seed=7)))


def test_a_number_alone_is_an_event_of_one():
    """Without axes too: draws, densities and statistics are those of an axis of one."""

    def square(x):
        return x.reshape(len(x)).square() / 2 + torch.cos(x.reshape(len(x)))

    for name, solver in STATIC.items():
        if "mclmc" in name:  # a velocity of length one needs a plane
            continue
        one, other = (drawn(stk.Energy(square, s), solver) for s in ((), (1,)))
        for a, b in zip(leaves(one), leaves(other), strict=True):
            if isinstance(a, torch.Tensor):
                torch.testing.assert_close(a.reshape(b.shape), b, equal_nan=True)
            else:
                assert a == b
    assert math.isfinite(float(one[0].sum()))


# --- random numbers ----------------------------------------------------------------------------------------------


def twice(run):
    """Which numbers a run has read more than once, `(law, stream, step)`, and how many it has read.

    Not those by which a field is looked at, which are the same each time.
    """
    seen = Counter()

    def logged(law):
        own = getattr(stk.Noise, law)

        def drawn_from(self, step, stream, shape, dtype=None):
            if stream != Stream.PROBE:
                seen[law, int(stream), int(step), self.seed, int(self.chains[0])] += 1
            return own(self, step, stream, shape, dtype)

        return drawn_from

    laws = {law: logged(law) for law in ("normal", "uniform", "rademacher")}
    with mock.patch.multiple(stk.Noise, **laws):
        run()
    return {key[:3] for key, n in seen.items() if n > 1}, len(seen)


@pytest.mark.parametrize("name", [*STATIC, *TIMED])
def test_no_random_number_of_a_run_is_used_twice(name):
    """But for that of a start, which annealing draws again, and of trees, whose prefix is read again."""
    solver = (STATIC | TIMED)[name]
    field = posterior((D,), "mmps") if name in TIMED else stk.Energy(energy, (D,))
    again, read = twice(lambda: drawn(field, solver))
    allowed = {"normal": {Stream.START}, "uniform": {Stream.PROPOSAL} if name == "nuts" else set()}
    assert read
    assert {key for key in again if key[1] not in allowed.get(key[0], ())} == set()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "options", [{"jumps": 2}, {"method": "smc", "island": 8, "jumps": 3}], ids=str
)
def test_no_random_number_of_a_partition_function_is_used_twice(options):
    again, read = twice(lambda: partition((D,), **options))
    assert read > 50
    assert again <= {("normal", Stream.START, 0)}


# --- a constant in the energy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*STATIC, *TUNES])
def test_a_constant_in_the_energy_changes_no_draw(name):
    """However large, and whatever is reported but for the energies themselves."""
    solver, made = (STATIC | TUNES)[name], []
    for constant in (0.0, -4096.0):  # whose sums round little
        field = stk.Energy(lambda x, c=constant: energy(x) + c, (D,))
        x, status, told, cost = drawn(field, solver)
        shifted = {"energy", "hamiltonian", "log_weight"}
        made.append((x, status, {k: v for k, v in told.items() if k not in shifted}, cost))
    first, *others = map(leaves, made)
    for other in others:
        for a, b in zip(other, first, strict=True):
            if isinstance(b, torch.Tensor):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
            else:
                assert a == b


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("method", ["ais", "smc"])
def test_a_constant_in_the_energy_is_one_in_the_partition_function(method):
    found = []
    for constant in (0.0, 3.5):
        field = stk.Energy(lambda x, c=constant: energy(x) + c, (D,))
        run = {"chains": 16, "pilot": 16, "levels": 3, "check": False, "dtype": torch.float64}
        found.append(stk.log_partition(field, normal((D,)), method=method, **run))
    torch.testing.assert_close(found[0].value - found[1].value, torch.tensor(3.5).double())
    torch.testing.assert_close(found[0].stderr, found[1].stderr)


# --- a condition that is built in --------------------------------------------------------------------------------


def of_label(x, label):
    return energy(x - label.to(x)[:, None])


def net_of_label(x, t, label):
    return network(x, t) + label.to(x)[:, None]


@pytest.mark.parametrize("name", [*STATIC, *TUNES, *TIMED])
def test_a_condition_is_as_one_that_is_built_in(name):
    solver = (STATIC | TUNES | TIMED)[name]
    chains = getattr(solver, "island", 8)
    label = torch.full((chains,), 0.75, dtype=torch.float64)

    def built(x, *t):
        own = torch.full((len(x),), 0.75, dtype=torch.float64)
        return net_of_label(x, *t, own) if t else of_label(x, own)

    if name in TIMED:
        pair = [
            stk.posterior(
                stk.Diffusion(net, (D,), stk.VP(), "noise"),
                stk.LinearGaussian(torch.eye(D).double(), randn(D), 0.5),
                "mmps",
            )
            for net in (net_of_label, built)
        ]
    else:
        pair = [stk.Energy(f, (D,)) for f in (of_label, built)]
    given, plain = (
        drawn(field, solver, chains=chains, cond=cond)
        for field, cond in zip(pair, ({"label": label}, None), strict=True)
    )
    given[2].pop("measurement", None)  # which of the conditions a chain has
    plain[2].pop("measurement", None)
    for a, b in zip(leaves(given), leaves(plain), strict=True):
        if isinstance(b, torch.Tensor):
            torch.testing.assert_close(a, b, equal_nan=True)
        else:
            assert a == b


SCORED = {
    "density": lambda f, x, c: stk.log_prob(f, x, cond=c, method="euler", steps=3).value,
    "density in batches": lambda f, x, c: (
        stk.log_prob(f, x, cond=c, method="euler", steps=3, batch=2).value
    ),
    "density by probes": lambda f, x, c: (
        stk.log_prob(f, x, cond=c, method="euler", steps=3, trace="hutchinson", probes=4).value
    ),
    "code": lambda f, x, c: stk.encode(f, x, cond=c, method="euler", steps=3).x,
    "code in batches": lambda f, x, c: stk.encode(f, x, cond=c, method="euler", steps=2, batch=2).x,
    "bits": lambda f, x, c: (
        stk.bits_per_dim(
            f, (60 * x.abs()).clamp(max=255).round(), cond=c, method="euler", steps=2
        ).value
    ),
}


@pytest.mark.parametrize("name", SCORED)
def test_a_condition_of_a_score_is_as_one_that_is_built_in(name):
    label, x = randn(3, seed=8), randn(3, D, seed=5)
    field = stk.Diffusion(net_of_label, (D,), stk.VP(), "noise")
    whole = SCORED[name](field, x, {"label": label})
    if name == "bits":  # whose noise is of the number of rows
        label, whole = label[:1].expand(3), SCORED[name](field, x, {"label": label[:1].expand(3)})
    for i in range(3):
        own = label[i]
        alone = stk.Diffusion(
            lambda z, t, own=own: net_of_label(z, t, own.expand(len(z))), (D,), stk.VP(), "noise"
        )
        torch.testing.assert_close(SCORED[name](alone, x, None)[i], whole[i])


# --- precision ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*the data's own")  # a network of noise has no scale
@pytest.mark.parametrize("name", FIELDS)
def test_an_answer_in_float32_is_that_in_float64(name):
    """In its dtype, and to its digits."""
    field = FIELDS[name]((D,))
    x = randn(3, D, seed=5)
    for answer in ("energy", "score", "velocity", "denoise", "log_prob"):
        if answer in field.provides or (answer == "score" and "energy" in field.provides):
            when = [T] if is_timed(field) and answer != "log_prob" else []
            ask = getattr(field, answer)
            exact, found = ask(x, *when), ask(x.float(), *(t.float() for t in when))
            wider = answer in ("energy", "log_prob")  # a sum may have the digits of the field's own
            assert found.dtype == torch.float32 or (wider and found.dtype == torch.float64)
            assert exact.dtype == torch.float64
            size = float(exact.abs().max().clamp(min=1))
            torch.testing.assert_close(found.double() / size, exact / size, rtol=0, atol=2e-4)


# --- order, signs and units of draws -----------------------------------------------------------------------------

OF_CHAINS = {
    **{m: lambda x, m=m: diagnostics.ess(x, m) for m in ("bulk", "tail", "mean", "sd")},
    "rhat": diagnostics.rhat,
    "split": diagnostics.split_rhat,
    "nested": lambda x: diagnostics.nested_rhat(x, 3),
    "error": lambda x: diagnostics.mcse(x) / x.flatten(0, 1).std(0),
    "error of the deviation": lambda x: diagnostics.mcse(x, "sd") / x.flatten(0, 1).std(0),
}


@pytest.mark.parametrize("name", OF_CHAINS)
def test_a_statistic_of_chains_has_no_order_and_no_units(name):
    """Chains in turn, coordinates, units and signs."""
    x = randn(6, 40, 3, seed=7).cumsum(1) / 6 + randn(6, 1, 3, seed=8)
    ask = OF_CHAINS[name]
    found = ask(x)
    turned = torch.arange(6).roll(2)  # superchains stay together
    for other in (x[turned], 3.5 * x + 40.0, -x):
        torch.testing.assert_close(ask(other), found, rtol=1e-6, atol=0)
    torch.testing.assert_close(ask(x.flip(2)), found.flip(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(ask(x[..., :1]), found[:1], rtol=1e-9, atol=0)


OF_SAMPLES = {
    "mmd": (diagnostics.mmd, 0),
    "mmd of a width": (lambda x, y: diagnostics.mmd(x, y, 2.0), None),
    "wasserstein": (lambda x, y: diagnostics.sliced_wasserstein(x, y, 16), 1),
}


@pytest.mark.parametrize("name", OF_SAMPLES)
def test_a_distance_of_samples_has_no_order_and_its_units(name):
    """Of rows, of the two, and a shift of both; units as a power of theirs."""
    ask, power = OF_SAMPLES[name]
    x, y = randn(12, 3, seed=1), 1.5 * randn(12, 3, seed=2) + 0.5
    found = torch.as_tensor(ask(x, y))
    order = torch.arange(12).flip(0)
    for a, b in ((x[order], y), (x, y[order]), (y, x), (x + 7.0, y + 7.0)):
        torch.testing.assert_close(torch.as_tensor(ask(a, b)), found, rtol=1e-6, atol=1e-9)
    if power is not None:
        other = torch.as_tensor(ask(4.0 * x, 4.0 * y))
        torch.testing.assert_close(other, found * 4.0**power, rtol=1e-6, atol=1e-9)
    assert float(torch.as_tensor(ask(x, x))) <= 1e-6 + float(found)
