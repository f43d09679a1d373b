"""What is asked in parts, in another order or form, or in company is what it is alone."""

import contextlib
import dataclasses
import io
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import distributions as td
from torch import nn
from torch.distributions import constraints

import scoretk as stk
from scoretk.conformance.bench import bench_for
from scoretk.core.identity import Identity
from scoretk.core.modules import modules_of, outermost_modules
from scoretk.core.noise import Noise
from scoretk.fields.posterior import POSTERIOR_METHODS
from scoretk.fields.protocols import is_timed, offers
from scoretk.fields.resolve import resolve
from scoretk.learn.fitting import Recipe, fit
from scoretk.models.targets.mixture import GaussianMixture
from scoretk.ode.registry import every_method
from scoretk.run import ranks
from tests.laws.test_conditions import FIELDS, TAKING
from tests.laws.test_recorded_parts import coded
from tests.odd import network, or_its_error, public, quadratic, some
from tests.recorded import or_error, randn, recorded
from tests.stand_ins import ByLevels, azula, layer, nflows, posterior_of_sbi, scheduler

X = randn(4, 2)
Y = randn(4, 2, seed=1)
PULLED = stk.Energy(lambda x, y: (x - y).square().sum(1) / 2, (2,))
MOVED = stk.Diffusion(lambda x, t, y: x.sin() * y, (2,))
JOINS = {
    "a product": (stk.product, False),
    "a product, second": (lambda a, b: stk.product(b, a), False),
    "a bridge": (lambda a, b: stk.bridge(a, b, 0.25), False),
    "a product in time": (stk.product, True),
    "a product in time, second": (lambda a, b: stk.product(b, a), True),
    "guided by it": (lambda a, b: stk.guided(b, 2.0, a), True),
}
"""Ways to join two fields, static ones or in time."""


def answers(field, timed, **cond):
    for name in ("energy", "score", "denoise", "velocity"):
        if name in offers(field):
            ask = getattr(field, name)
            yield name, ask(X, *([0.5] if timed else []), **cond)


@pytest.mark.parametrize("join", JOINS)
def test_a_field_that_takes_no_condition_is_joined_with_one_that_does(join):
    """Whatever it is: it is not handed what it would refuse, and answers as beside a field without conditions."""
    joined, timed = JOINS[join]
    told = 0
    for name, field in FIELDS.items():
        of_two = tuple(getattr(field, "event_shape", ())) == (2,)
        if (
            not of_two
            or is_timed(field) is not timed
            or "states" in offers(field)
            or "hands" in name
        ):
            continue
        bound = (
            stk.Diffusion(lambda x, t: x.sin() * Y[: len(x)], (2,))
            if timed
            else stk.Energy(lambda x: (x - Y[: len(x)]).square().sum(1) / 2, (2,))
        )
        try:
            alone = joined(field, bound)
            both = joined(field, MOVED if timed else PULLED)
        except stk.ScoretkError:
            continue
        for (which, expected), (_, found) in zip(
            answers(alone, timed), answers(both, timed, y=Y), strict=True
        ):
            told += 1
            torch.testing.assert_close(found, expected, msg=f"{name}: {which}")
    assert told


def of_adapters():
    yield "sbi", stk.from_sbi(posterior_of_sbi(NORMAL)), {"x_o": Y.float()}
    yield "sbi at one", stk.from_sbi(posterior_of_sbi(NORMAL), Y[0].float()), {}
    yield "nflows", stk.from_flow(nflows(layer("nflows", "Affine", "affine", 0.5, 0.25))), {}
    made = scheduler("EulerDiscreteScheduler", ByLevels)
    yield "diffusers", stk.from_diffusers(made.exact(), made, (2,)), {}
    yield "azula", stk.from_azula(azula(), (2,)), {}


NORMAL = td.Independent(td.Normal(torch.zeros(2), 1.0), 1)
ASKED = {
    **{name: (field, {}) for name, field in FIELDS.items()},
    **{f"{name}, y": (field, {"y": Y}) for name, field in TAKING.items()},
    **{name: (field, cond) for name, field, cond in of_adapters()},
}


@pytest.mark.parametrize("name", ASKED)
def test_a_field_is_the_same_after_it_was_asked(name):
    """What it holds and what that is made of: nothing of a question stays."""
    field, cond = ASKED[name]
    if isinstance(field, td.Distribution):
        field = stk.from_distribution(field)
    x = randn(4, *field.event_shape, seed=3)
    x = x.float() if "x_o" in cond or "sbi" in name else x

    def ask(k):
        for answer in ("energy", "score", "velocity", "denoise", "log_prob", "energy_and_grad"):
            if callable(getattr(field, answer, None)):
                given = {n: v + k for n, v in cond.items()}
                or_its_error(
                    getattr(field, answer), x, *([0.5] if is_timed(field) else []), **given
                )

    ask(0)  # what is remembered of the first question may be
    before = Identity(field=field).values
    ask(1)
    assert Identity(field=field).values == before


# constraints

CONSTRAINTS = {
    name: made
    for name, made in vars(constraints).items()
    if isinstance(made, constraints.Constraint)
} | {
    "greater_than": constraints.greater_than(0.5),
    "greater_than_eq": constraints.greater_than_eq(torch.tensor([0.5, 1.0, 2.0])),
    "less_than": constraints.less_than(0.5),
    "interval": constraints.interval(-1.0, torch.tensor([0.5, 1.0, 2.0])),
    "half_open_interval": constraints.half_open_interval(-1.0, 2.0),
    "integer_interval": constraints.integer_interval(0, 3),
    "multinomial": constraints.multinomial(3),
    "independent": constraints.independent(constraints.positive, 1),
    "independent of two": constraints.independent(constraints.positive, 2),
    "cat": constraints.cat([constraints.positive, constraints.real], -1, [1, 2]),
    "stack": constraints.stack(
        [constraints.positive, constraints.real, constraints.unit_interval], -1
    ),
    "stack first": constraints.stack([constraints.positive, constraints.real]),
    "mixture": constraints.MixtureSameFamilyConstraint(constraints.positive),
    "a pair": [(constraints.positive, 1), (constraints.simplex, 2)],
    "pairs too many": [(constraints.positive, 1), (constraints.real, 4)],
    "names": {"a": (2,), "b": constraints.positive},
}
"""All constraints of torch, and the forms that several of them have together."""


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_each_constraint_is_a_space_or_is_refused(name):
    """On events of each number of axes, with what it makes of free points."""
    found = []
    for shape in ((3,), (), (3, 3), (2, 3), (1,)):
        field = stk.Energy(lambda x: x.flatten(1).sum(1), shape)
        made, said = or_error(lambda f=field: stk.constrained(f, CONSTRAINTS[name]))
        if isinstance(made, str):
            found.append((made, said))
            continue
        z = randn(4, *made.event_shape, seed=3)
        found.append(
            (made.event_shape, or_its_error(made.energy, z), or_its_error(made.constrain, z), said)
        )
    recorded(f"constraint of torch, {name}", found)


# modes


MATRIX = randn(2, 2, seed=2)


def forward(x):
    return x @ MATRIX.T


def backward(w):
    return w @ MATRIX


@pytest.mark.filterwarnings("ignore:.*what was measured is")  # the network has no scale
@pytest.mark.parametrize("method", POSTERIOR_METHODS)
def test_what_answers_in_inference_mode_is_as_what_answers_elsewhere(method):
    """A user's operator that switches autograd off for itself, where its adjoint is given."""
    found = []
    for mode in (lambda f: f, torch.no_grad(), torch.inference_mode()):
        operator, back = mode(forward), mode(backward)
        likelihood = stk.LinearGaussian(operator, torch.ones(2).double(), 0.5, adjoint=back)
        prior = stk.Diffusion(network, (2,), stk.VP(), "noise")
        field = stk.posterior(prior, likelihood, method)
        x = X.clone().requires_grad_()
        score = field.score(x, 0.4)
        found.append(score.detach())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_a_measurement_says_may_be_part_of_a_graph(mode):
    """Each of its answers where its adjoint is given, with a graph of x and without."""
    operator, back = mode()(forward), mode()(backward)
    likelihood = stk.LinearGaussian(operator, torch.ones(2).double(), 0.5, adjoint=back)
    for x in (X, X.clone().requires_grad_()):
        for ask in (
            likelihood.forward,
            likelihood.residual,
            likelihood.log_likelihood,
            lambda x: likelihood.slope(x)[1],
            lambda x: likelihood.adjoint(Y, x),
        ):
            answer, weight = ask(x), torch.ones((), requires_grad=True, dtype=torch.float64)
            (answer * weight).sum().backward()
            assert weight.grad is not None


# costs and parts


def of_rows():
    """What costs something a row, by name: `(x, rows) -> Estimate`."""
    in_time = stk.Diffusion(network, (3,), stk.VP(), "noise")
    marginal, bits = coded().marginal, coded((0.0, 1.0)).marginal
    few = {"method": "euler", "steps": 3}
    yield "a flow", lambda x, rows: stk.log_prob(in_time, x, rows=rows, **few)
    yield (
        "a flow by probes",
        lambda x, rows: stk.log_prob(in_time, x, rows=rows, trace="hutchinson", probes=2, **few),
    )
    yield "latents", lambda x, rows: stk.encode(in_time, x, **few)
    yield "an autoencoder", lambda x, rows: stk.log_prob(marginal, x, rows=rows)
    yield "an autoencoder of bits", lambda x, rows: stk.log_prob(bits, (x > 0).double(), rows=rows)


@pytest.mark.parametrize(
    ("name", "ask"), [*of_rows()], ids=lambda v: v if isinstance(v, str) else ""
)
def test_rows_cost_together_what_they_cost_apart(name, ask):
    x = randn(4, 3)
    whole, first, last = ask(x, range(4)), ask(x[:1], range(1)), ask(x[1:], range(1, 4))
    kinds = {*whole.cost, *first.cost, *last.cost}
    assert kinds
    for kind in kinds:
        assert whole.cost[kind] == first.cost[kind] + last.cost[kind], (name, kind)


@pytest.mark.parametrize("keep", ["all", "last"])
def test_a_store_holds_all_that_draws_hold(keep, tmp_path):
    pytest.importorskip("zarr")
    run = {"chains": range(3, 7), "steps": 5, "warmup": 4, "dtype": torch.float64}
    field = stk.Energy(quadratic, (2,))
    in_memory = stk.sample(field, stk.MALA(), keep=keep, **run)
    for draws in (
        stk.sample(field, stk.MALA(), keep=stk.Zarr(tmp_path / "d", keep=keep), **run),
        stk.Draws.load(tmp_path / "d"),
    ):
        for f in dataclasses.fields(stk.Draws):
            ours, theirs = getattr(in_memory, f.name), getattr(draws, f.name)
            if isinstance(ours, torch.Tensor):
                assert torch.equal(ours, torch.as_tensor(np.asarray(theirs))), f.name
            elif f.name in ("cost", "tuned", "chains"):
                assert str(ours) == str(theirs), f.name


# orders and forms


@pytest.mark.parametrize("kind", [set, frozenset])
def test_a_set_is_the_same_whatever_came_first(kind):
    """As texts, whose order in a set is of the process, and as numbers, whose order is of how they came."""
    texts = [*map(str, range(40))]
    for one, other in (((0, 8), (8, 0)), ((1, 9, 17), (17, 9, 1)), (texts, texts[::-1])):
        same = [Identity(field={"held": kind(v)}).values for v in (one, other)]
        assert same[0] == same[1]
    shown = Identity(field={"held": kind(["b", "a", "c", "d"])}).values["field['held']"]
    assert shown.endswith("'a', 'b', 'c', 'd'")


FORMS = {
    "a tuple": tuple,
    "a queue": deque,
    "one by one": iter,
    "as they are made": lambda parts: (part for part in parts),
}
RUN = {"steps": 3, "dtype": torch.float64}
ITERABLES = {
    "parts of a run": lambda form: (
        stk.concatenate(
            form(
                [
                    stk.sample(
                        stk.Energy(quadratic, (2,)), stk.MALA(0.3), chains=range(*ends), **RUN
                    )
                    for ends in ((0, 2), (2, 5))
                ]
            )
        ).x
    ),
    "names that are measured": lambda form: stk.posterior(
        stk.Energy(quadratic, (2,)),
        lambda x, y, z: -(x * y * z).square().sum(1),
        measured=form(["y", "z"]),
    ).energy(X, y=Y, z=Y),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", ITERABLES)
def test_what_is_iterated_over_is_taken_in_each_form(what, form):
    ask = ITERABLES[what]
    torch.testing.assert_close(ask(FORMS[form]), ask(list))


WHOLE = {"int": int, "numpy": np.int64, "numpy, small": np.uint8, "a flag": bool}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("name", ["init_cost", "step_cost"])
def test_a_cost_is_a_whole_number_of_any_kind(kind, name):
    """Of a solver of someone else's, whose run tells the same cost."""
    field = stk.Energy(quadratic, (2,))

    class Theirs:
        def __init__(self):
            self.inner = stk.ULA(0.1)

        def __getattr__(self, asked):
            if asked == "inner":
                raise AttributeError(asked)
            found = getattr(self.inner, asked)
            return {k: WHOLE[kind](n) for k, n in found.items()} if asked == name else found

    theirs, ours = (stk.sample(field, s, chains=3, steps=2) for s in (Theirs(), stk.ULA(0.1)))
    assert dict(theirs.cost) == dict(ours.cost)


# company


CALL = {"seed": 3, "steps": 5, "keep": "all", "chains": [0, 4]}
OTHERS = {
    "the same": (CALL, CALL),
    "in another order": (CALL, dict(reversed(CALL.items()))),
    **{f"another {name}": (CALL, {**CALL, name: "another"}) for name in CALL},
    "one more there": ({**CALL, "pilot": 256}, CALL),
    "one more here": (CALL, {**CALL, "pilot": 256}),
    "none here": (CALL, {}),
    "none there": ({}, CALL),
    "a number of another kind": (CALL, {**CALL, "steps": 5.0}),
}
"""The settings of a call on the rank that came first, and on another."""


@pytest.mark.parametrize("name", OTHERS)
def test_ranks_make_one_call(name):
    there, here = OTHERS[name]
    kept = {}

    def compare_set(key, expected, value):
        return kept.setdefault(key, value)

    field = stk.Energy(quadratic, (2,))
    for rank, settings in enumerate((there, here)):
        share = ranks._Shared.__new__(ranks._Shared)
        share.rank, share.store = rank, SimpleNamespace(compare_set=compare_set)
        share.job, share.heartbeat = (
            SimpleNamespace(changed=()),
            SimpleNamespace(begin=lambda: None),
        )
        same = rank == 0 or name in ("the same", "in another order")
        with (
            contextlib.nullcontext()
            if same
            else pytest.raises(stk.InvalidArgument, match="same call")
        ):
            share.check(settings, Identity(field=field))
    share.rank = 2
    with pytest.raises(stk.InvalidArgument, match="same call"):
        share.check(there, Identity(field=stk.Energy(lambda x: x.sum(1), (2,))))


def test_a_watched_field_remembers_all_whom_it_met():
    (watched, *_) = bench_for(stk.MALA(0.3), 0.0)
    far = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])
    watched.energy(far, row=torch.arange(3))
    watched.score(far[1:], row=torch.tensor([7, 8]))
    watched.energy(-far.abs(), row=torch.arange(20, 23))
    watched.energy(far)
    assert watched.met == {0, 2, 8}
    assert watched.asked == {"energy": 9, "score": 2}


@pytest.mark.parametrize("name", ["steps", *(f.name for f in dataclasses.fields(Recipe))])
def test_each_setting_of_a_recipe_is_told_to_be_one(name):
    taken = fit.__wrapped__.__code__.co_varnames[
        : fit.__wrapped__.__code__.co_argcount + fit.__wrapped__.__code__.co_kwonlyargcount
    ]
    if name in taken:
        pytest.skip("fit has an argument of this name")
    with pytest.raises(stk.ScoretkError, match=rf"It is a setting: Recipe\({name}=\.\.\.\)"):
        fit(linear(), lambda m: m, torch.ones(2, 1), Recipe(steps=1), **{name: 1})


def linear():
    return nn.utils.skip_init(nn.Linear, 2, 2)


class Asked(nn.Module):
    def __init__(self, *inner):
        super().__init__()
        self.inner = nn.ModuleList(inner)

    def forward(self, x, t):
        return sum(m(x) for m in self.inner)


def test_the_outermost_modules_are_those_that_no_other_holds():
    a, b, c = Asked(linear()), Asked(linear(), linear()), linear()
    one, two = (stk.Diffusion(net, (2,)) for net in (a, b))
    static = stk.Energy(nn.Sequential(c, nn.Flatten(0)), (2,))
    for held, expected in (
        (one, [a]),
        (stk.product(one, two), [a, b]),
        (stk.guided(two, 2.0, one), [a, b]),
        (stk.product(one, one), [a]),
        ({"x": [a, (c, b)], "y": b.inner[0]}, [a, b, c]),
        (stk.tempered(static, 2.0), [static.fn]),
        (3, []),
    ):
        found = outermost_modules(held)
        assert {id(m) for m in found} == {id(m) for m in expected}
        assert len(found) == len(expected)
        inside = [m for m in modules_of(held) if all(m is not o for o in found)]
        assert all(any(m is part for o in found for part in o.modules()) for m in inside)


@pytest.mark.parametrize("keep", ["all", "moments"])
def test_coordinates_that_never_move_change_nothing_that_is_said_of_others(keep):
    """In number and in order: they are no comparisons."""
    told = []
    for n in (*range(40, 52), 60, 100, 140, 200):  # of independent draws, some 250 to 300 effective
        x = some(6, n, 1, seed=n) if n < 60 else some(6, n, 1, seed=n).cumsum(1) / 8
        still = torch.ones(6, n, 200).double() * torch.arange(200)
        texts = []
        for held in (x, torch.cat([x, still], 2)):
            if keep == "all":
                draws = stk.Draws(
                    x=held,
                    final=held[:, -1],
                    status=torch.zeros(6).long(),
                    failed_at=torch.full((6,), -1),
                )
            else:
                draws = of_moments(held)
            found = [f for f in draws.summary().findings if "one value" not in str(f)]
            texts.append([str(f).replace("x[0]", "x") for f in found])
        told.append(texts[0])
        assert texts[0] == texts[1], n
    assert len({str(t) for t in told}) > 2


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("lost", [False, True])
def test_what_is_said_of_draws_leaves_them_as_they_are(d, lost):
    """By all methods and properties that ask for nothing, and by all functions that take draws alone."""
    x = some(4, 20, d)
    if lost:
        x[1, 3, 0] = torch.nan
    status = torch.zeros(4).long()
    stats = {"accept": some(4, 20).abs(), "energy": some(4, 20, seed=1)}
    draws = stk.Draws(
        x=x, final=x[:, -1].clone(), status=status, failed_at=status - 1, stats=dict(stats)
    )
    before = [t.clone() for t in (x, draws.final, *stats.values())]
    for name, method in public(draws):
        ask = (lambda name=name: getattr(draws, name)) if method is None else method
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            or_its_error(ask)
    for function in (stk.diagnostics.rhat, stk.diagnostics.ess, stk.diagnostics.mcse):
        or_its_error(function, draws)
    now = x, draws.final, *draws.stats.values()
    torch.testing.assert_close(list(now), before, rtol=0, atol=0, equal_nan=True)


def of_moments(x):
    half = x.shape[1] // 2
    first = x[:, :half]
    return stk.Draws(
        x=None,
        final=x[:, -1],
        status=torch.zeros(len(x)).long(),
        failed_at=torch.full((len(x),), -1),
        mean=x.mean(1),
        var=x.var(1),
        half_mean=first.mean(1),
        half_var=first.var(1),
        half_draws=torch.tensor([[x.shape[1], half]]).expand(len(x), 2),
        provenance={"kept": x.shape[1]},
    )


# what is told before a run


POWERS = {
    "itself": lambda f: f,
    "hot": lambda f: stk.tempered(f, 2.0),
    "cold": lambda f: stk.tempered(f, 0.25),
    "a product": lambda f: stk.product(f, f),
    "a product of powers": lambda f: stk.product(stk.tempered(f, 4.0), stk.tempered(f, 0.5)),
    "guided": lambda f: stk.guided(f, 3.0, f),
    "a posterior": lambda f: stk.posterior(f, stk.LinearGaussian(torch.eye(2), torch.ones(2), 0.5)),
    "by a classifier": lambda f: stk.classifier_guided(f, lambda x, t: -x.square().sum(1), 2.0),
}
LAW = GaussianMixture(torch.zeros(1, 2), torch.ones(1), torch.ones(1)).noised(stk.VE(0.05, 8.0))


@pytest.mark.parametrize("power", POWERS)
def test_what_annealing_tells_of_the_powers_of_a_field(power):
    field, found = or_error(lambda: POWERS[power](LAW))[0], []
    if not isinstance(field, str):
        bound = resolve(field, ("score",), {})
        for steps in (None, 1, 20):
            for levels in (5, (8.0, 2.0, 0.5, 0.1)):
                solver = stk.AnnealedLangevin(levels, steps)
                noise = Noise(3, 4, dtype=torch.float64)
                made = or_error(lambda s=solver, n=noise: s.init(bound, X, n))
                found.append((made, or_error(lambda s=solver: len(s.milestones(bound)))))
    recorded(f"annealing of {power}", found)


# names, and times


def spellings():
    """Each setting `method` of a solver, by its name and otherwise."""
    for solver in stk.solvers.EXAMPLES.values():
        name = getattr(solver, "method", None)
        if isinstance(name, str):
            for own in {name, *(m.name for m in every_method())}:
                for other in (
                    own.upper(),
                    own.title(),
                    own.replace("_", "-"),
                    own.replace("_", ""),
                ):
                    yield type(solver), own, other


def test_a_method_is_one_whichever_way_it_is_spelt():
    """As a solver too: it is equal, and shown by its name."""
    told = 0
    for kind, own, other in spellings():
        try:
            named, spelt = kind(own), kind(other)
        except stk.ScoretkError:
            continue
        told += other != own
        assert (spelt.method, repr(spelt)) == (named.method, repr(named)), (kind, other)
    assert told > 4


NARROW = [stk.VE(0.5, 2.0), stk.EDM(0.5, 2.0), stk.VP(0.5, 2.0)]


@pytest.mark.parametrize("path", NARROW, ids=str)
def test_no_model_is_asked_outside_of_its_time(path):
    """By posteriors of all methods, whatever looks at them first, on paths of few levels too."""
    for method in POSTERIOR_METHODS:
        seen = []

        def asked(x, t, seen=seen):
            seen.append(torch.as_tensor(t).detach().flatten().double())
            return network(x, t)

        field = stk.posterior(
            stk.Diffusion(asked, (2,), path, "data"),
            stk.LinearGaussian(torch.eye(2), torch.ones(2), 0.5),
            method,
        )
        flow = stk.ProbabilityFlow("heun", steps=2)
        or_error(lambda f=field, s=flow: stk.sample(f, s, chains=2, seed=1))
        times = torch.cat(seen)
        assert float(times.min()) >= 0
        assert float(times.max()) <= 1, method
