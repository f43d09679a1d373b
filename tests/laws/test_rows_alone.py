"""Rows with times and conditions of their own: each is what it is alone, at its time as a number, under its condition."""

import pytest
import torch

import scoretk as stk
from scoretk.fields.posterior import POSTERIOR_METHODS
from scoretk.fields.smoothed import smoothed
from scoretk.models.targets.mixture import GaussianMixture

D, M, ROWS = 3, 2, 4
_generator = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, generator=_generator, dtype=torch.float64)


X, LABEL, MEASURED, A = randn(ROWS, D), randn(ROWS), randn(ROWS, M), randn(M, D)
TIMES = torch.tensor([0.31, 0.74, 0.12, 0.55], dtype=torch.float64)
PATH = stk.VP(0.2, 8.0)


def network(x, t, label=None):
    """Of the time, the label and x, so that none can be another row's unseen."""
    shift = 0.0 if label is None else label[:, None]
    return torch.sin((1 + 3 * t)[:, None] * x + shift) * (2 - t)[:, None]


def network_in_steps(x, k, label):
    return network(x, k.to(x.dtype) / 20, label)


def energy(x, label):
    return ((x - label[:, None]) ** 2).sum(1) / 2 + torch.cos(2 * x).sum(1)


def log_prob(x, t, label):
    return -(((1 + t)[:, None] * x - label[:, None]) ** 2).sum(1)


def log_likelihood(x, y):
    return -((x[:, :M] - y) ** 2).sum(1)


def model(predicts="noise", path=PATH):
    return stk.Diffusion(network, (D,), path, predicts)


def apart():
    return stk.Diffusion(lambda x, t: network(x, t) / 2, (D,), PATH, "noise")


def gaussians(seed):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(2, D, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.4, 0.8]), torch.tensor([0.3, 0.7]))


def measured(method=None):
    return stk.posterior(model(), stk.LinearGaussian(A, "y", 0.5), method)


def noised(estimator, **options):
    return smoothed(stk.Energy(energy, (D,)), PATH, estimator, samples=8, **options)


LABELLED = {
    **{p: lambda p=p: model(p) for p in ("data", "noise", "score", "velocity", "v")},
    "a variance-exploding path": lambda: model("data", stk.VE(0.02, 10.0)),
    "a table": lambda: model("v", stk.Tabulated(torch.linspace(0.99, 0.02, 20))),
    "velocity alone": lambda: stk.Velocity(network, (D,)),
    "reversed time": lambda: stk.from_reversed_time(network, (D,), PATH, "v"),
    "sigmas": lambda: stk.from_sigmas(network, (D,)),
    "timesteps": lambda: stk.from_timesteps(network_in_steps, torch.linspace(0.99, 0.02, 20), (D,)),
    "tempered": lambda: stk.tempered(model(), 2.0),
    "product": lambda: stk.product(model(), model("data")),
    "guided, one model once": lambda: stk.guided(model(), 3.0, null={"label": 0.3}),
    "guided, one model twice": lambda: stk.guided(model(), 3.0, null={"label": None}),
    "guided, two models": lambda: stk.guided(model(), 3.0, apart()),
    "guided in an interval": lambda: stk.guided(
        model(), 3.0, null={"label": 0.3}, interval=(0.5, 1.5)
    ),
    "guided and rescaled": lambda: stk.guided(model(), 3.0, null={"label": 0.3}, rescale=0.6),
    "classifier": lambda: stk.classifier_guided(apart(), log_prob, 2.0, measured="label"),
    "classifier in an interval": lambda: stk.classifier_guided(
        apart(), log_prob, 2.0, measured="label", interval=(0.5, 1.5)
    ),
    "monte carlo": lambda: noised("monte-carlo"),
    "langevin": lambda: noised("langevin", steps=3),
}
OTHERS = {
    **{method: lambda m=method: measured(m) for method in POSTERIOR_METHODS},
    "any likelihood": lambda: stk.posterior(model(), log_likelihood, measured="y"),
}
WITHOUT = {
    "mixture": lambda: stk.mixture(
        [gaussians(1).noised(PATH), gaussians(2).noised(PATH)], [0.3, 0.7]
    )
}
FIELDS = {
    **{name: (make, {"label": LABEL}) for name, make in LABELLED.items()},
    **{name: (make, {"label": LABEL, "y": MEASURED}) for name, make in OTHERS.items()},
    **{name: (make, {}) for name, make in WITHOUT.items()},
}


@pytest.mark.filterwarnings("ignore:.*the data's own")  # what these fields are of has no scale
@pytest.mark.parametrize("name", FIELDS)
def test_a_row_has_its_own_time_and_condition(name):
    """Of every field in time, in all that it answers; at(times) is a static field of as many laws."""
    make, cond = FIELDS[name]
    field = make()
    for answer in ("denoise", "score", "velocity"):
        ask = getattr(field, answer)
        whole = ask(X, TIMES, **cond)
        for i, t in enumerate(TIMES.tolist()):
            own = {key: value[i : i + 1] for key, value in cond.items()}
            alone = ask(X[i : i + 1], t, **own)
            torch.testing.assert_close(whole[i], alone[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        field.at(TIMES).score(X, **cond), field.score(X, TIMES, **cond), rtol=1e-9, atol=1e-9
    )


IN_STEPS = {("timesteps", "t")}
"""Fields whose network is asked at whole steps of time alone."""


def differentiated(ask, given, name, by):
    """The sum of an answer's waves, the derivative of that along `by`, and what it is by two values."""
    h = 3e-8
    asked = {key: value.clone() for key, value in given.items()}
    asked["x"].requires_grad_()  # slopes are differentiable where their x is
    asked[name].requires_grad_()

    def total(some):
        own = dict(some)
        return torch.cos(X * ask(own.pop("x"), own.pop("t"), **own)).sum()

    with torch.enable_grad():
        told = total(asked)
        (slope,) = torch.autograd.grad(told, asked[name])
    ends = [float(total(given | {name: given[name] + s * by})) for s in (-h, h)]
    return float((slope * by).sum()), (ends[1] - ends[0]) / (2 * h)


@pytest.mark.parametrize("name", FIELDS)
def test_every_answer_is_differentiable_in_all_that_it_is_asked_with(name):
    """In x, the time (one for all, or one a row) and each condition: the derivative is that of its values."""
    make, cond = FIELDS[name]
    field, times = make(), TIMES + 0.013  # of a table the velocity has a bend at each of its times
    for answer in ("denoise", "score", "velocity"):
        for t in (times[0], times):
            given = {"x": X, "t": t, **cond}
            for key in given if answer == "denoise" and t.ndim else ["t"]:
                if (name, key) not in IN_STEPS:
                    by = torch.ones_like(given[key])
                    told, found = differentiated(getattr(field, answer), given, key, by)
                    assert told == pytest.approx(found, rel=1e-4, abs=1e-5), (answer, key, t.ndim)


def static():
    return stk.Energy(energy, (D,))


def flat(x, label=None):
    return (x**4).sum(1) / 4 + (0.0 if label is None else label * x[:, 0])


STATIC = {
    "energy": static,
    "score": lambda: stk.Score(lambda x, label: -x * label[:, None], (D,)),
    "tempered": lambda: stk.tempered(static(), 2.0),
    "product": lambda: stk.product(static(), stk.Energy(flat, (D,))),
    "bridge": lambda: stk.bridge(stk.Energy(flat, (D,)), static(), 0.4),
    "mixture": lambda: stk.mixture(
        [static(), stk.Energy(flat, (D,))], [0.3, 0.7], log_partition=[0.1, -0.2]
    ),
    "guided, one model once": lambda: stk.guided(static(), 3.0, null={"label": 0.3}),
    "guided, one model twice": lambda: stk.guided(
        stk.Energy(flat, (D,)), 3.0, null={"label": None}
    ),
    "constrained": lambda: stk.constrained(static(), torch.distributions.constraints.positive),
    "states": lambda: stk.Discrete(static(), (-1.0, 0.5, 2.0)),
}


@pytest.mark.parametrize("name", STATIC)
def test_a_row_has_its_own_condition(name):
    field = STATIC[name]()
    asked = [a for a in ("energy", "score", "energy_and_grad") if callable(getattr(field, a, None))]
    for answer in asked:
        ask = getattr(field, answer)
        whole = ask(X, label=LABEL)
        for i in range(ROWS):
            alone = ask(X[i : i + 1], label=LABEL[i : i + 1])
            pairs = zip(whole, alone, strict=True) if isinstance(whole, tuple) else [(whole, alone)]
            for some, one in pairs:
                torch.testing.assert_close(some[i], one[0], rtol=1e-9, atol=1e-9)


EVERY = {
    **{name: (make, (TIMES,), cond) for name, (make, cond) in FIELDS.items()},
    **{f"static, {name}": (make, (), {"label": LABEL}) for name, make in STATIC.items()},
}


@pytest.mark.parametrize("name", EVERY)
def test_a_row_without_a_number_has_no_answer_and_the_others_have_theirs(name):
    """NaN in, NaN out: no field makes a number, a density of 0 or a place of it."""
    make, when, cond = EVERY[name]
    field, x = make(), X.clone()
    x[2] = torch.nan
    kept = torch.arange(ROWS) != 2
    for answer in ("denoise", "score", "velocity") if when else ("energy", "score"):
        ask = getattr(field, answer, None)
        if ask is not None:
            gone, whole = ask(x, *when, **cond), ask(X, *when, **cond)
            assert bool(gone[2].isnan().all()), answer
            torch.testing.assert_close(gone[kept], whole[kept], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*FIELDS, *STATIC])
def test_the_first_question_may_be_of_no_rows(name):
    """Of a field that nobody has asked before: there is no answer, and the next is the usual one."""
    make, cond = FIELDS[name] if name in FIELDS else (STATIC[name], {"label": LABEL})
    field, asked = make(), make()
    for answer in ("denoise", "score", "velocity") if name in FIELDS else ("score",):
        at = (TIMES,) if name in FIELDS else ()
        none = {key: value[:0] for key, value in cond.items()}
        found = getattr(field, answer)(X[:0], *(t[:0] for t in at), **none)
        assert found.shape == (0, D)
        again, usual = (getattr(f, answer)(X, *at, **cond) for f in (field, asked))
        assert torch.equal(again, usual)


UNSEEN = {
    "a likelihood": lambda: stk.posterior(
        model(), lambda x, y: log_likelihood(x, y) - x.detach().square().sum(1), measured="y"
    ),
    "a likelihood that is a field": lambda: stk.posterior(
        model(),
        stk.Energy(lambda x, y: -log_likelihood(x, y) + x.detach().square().sum(1), (D,)),
        measured="y",
    ),
    "a prior": lambda: stk.posterior(
        stk.Diffusion(lambda x, t, label: network(x, t, label) + x.detach(), (D,), PATH, "noise"),
        stk.LinearGaussian(A, "y", 0.5),
        "dps",
    ),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_autograd_does_not_see_is_told_also_after_a_question_of_no_rows(name):
    field = UNSEEN[name]()
    cond = {"label": LABEL, "y": MEASURED}
    field.denoise(X[:0], TIMES[:0], **{key: value[:0] for key, value in cond.items()})
    with pytest.raises(stk.InvalidArgument, match=r"autograd|derivative|gradient"):
        field.denoise(X, TIMES, **cond)
