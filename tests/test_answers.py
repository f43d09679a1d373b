"""What a field answers is checked where it enters, messages are bounded, and parts are compared by value."""

import pickle
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.distributions import constraints

import scoretk as stk
from scoretk.errors import LONGEST, SHOWN, InvalidArgument, UnknownName
from scoretk.fields.alike import alike
from scoretk.fields.answers import check_rows, noted, unwritten


def overwritten(x):
    x[:, 0] = 0
    return x.square().sum(1)


def shifted(x):
    with torch.no_grad():
        x.mul_(1.5)
    return x.square().sum(1)


def through_numpy(x):
    x.detach().numpy()[:] *= 0.5
    return x.square().sum(1)


def through_data(x):
    x.data.mul_(0.5)
    return x.square().sum(1)


def another_memory(x):
    x.data = x.data * 0.5
    return x.square().sum(1)


class Raw:
    """A field of somebody's own, with an energy of whatever kind."""

    event_shape = (2,)

    def __init__(self, energy):
        self.energy = energy


ENERGIES = {
    "complex": lambda x: x.square().sum(1).to(torch.complex64),
    "whole": lambda x: (x > 0).sum(1),
    "bool": lambda x: (x > 0).any(1),
    "one for all": lambda x: x.square().sum(),
    "one an entry": lambda x: x.square(),
    "a column": lambda x: x.square().sum(1, keepdim=True),
    "a list": lambda x: [0.0] * len(x),
    "nothing": lambda x: None,
    "overwrites x": overwritten,
    "shifts x": shifted,
    "on no device": lambda x: torch.zeros(len(x), device="meta"),
    "shifts x through numpy": through_numpy,
    "shifts x.data": through_data,
    "has another x.data": another_memory,
}
WRONG = {
    f"{kind} {name}": make(fn)
    for kind, make in (("energy", lambda fn: stk.Energy(fn, (2,))), ("raw", Raw))
    for name, fn in ENERGIES.items()
} | {
    "complex score": stk.Score(lambda x: -x.to(torch.complex64), (2,)),
    "whole score": stk.Score(lambda x: -x.long(), (2,)),
    "score one for all": stk.Score(lambda x: -x.sum(0), (2,)),
    "score overwrites x": stk.Score(lambda x: x.neg_(), (2,)),
    "network overwrites x": stk.Diffusion(lambda x, t: x.mul_(0.5), (2,)),
    "complex network": stk.Diffusion(lambda x, t: x.to(torch.complex64), (2,)),
    "velocity overwrites x": stk.Velocity(lambda x, t: x.mul_(0.5), (2,)),
}


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, on its way through the compiler
@pytest.mark.parametrize(
    "compile", [False, pytest.param(True, marks=[pytest.mark.compiled, pytest.mark.slow])]
)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_refused(name, compile):
    field = WRONG[name]
    run = {"steps": 3, "chains": 4, "compile": compile}
    if stk.fields.is_timed(field):
        solver, run = stk.ProbabilityFlow(steps=3), {"chains": 4, "compile": compile}
    else:
        solver = stk.ULA(0.01) if isinstance(field, stk.Score) else stk.HMC(0.1, metric="none")
    with pytest.raises(InvalidArgument):
        stk.sample(field, solver, **run)


WRITERS = (shifted, through_numpy, through_data, another_memory)
NORMAL = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
AROUND = {
    "nothing": lambda fn: stk.Energy(fn, (2,)),
    "tempered": lambda fn: stk.tempered(stk.Energy(fn, (2,)), 2.0),
    "product": lambda fn: stk.product(NORMAL, stk.Energy(fn, (2,))),
    "constrained": lambda fn: stk.constrained(stk.Energy(fn, (2,)), constraints.positive),
    "likelihood": lambda fn: stk.posterior(NORMAL, lambda x: -fn(x)),
}


@pytest.mark.parametrize("around", AROUND)
def test_what_is_written_into_is_seen_within_wrappers_too(around, monkeypatch):
    for fn in WRITERS:
        with pytest.raises(InvalidArgument, match="in place"):
            stk.sample(AROUND[around](fn), stk.ULA(0.01), steps=3, chains=4)
    with monkeypatch.context() as mutant:  # whose questions are all as if put before
        resolve = import_module("scoretk.fields.resolve")
        mutant.setattr(
            resolve, "unwritten", lambda what, evaluate, x, **_: unwritten(what, evaluate, x)
        )
        for fn in (
            WRITERS[1:] if around != "likelihood" else ()
        ):  # whose derivative is looked at beside
            assert stk.sample(AROUND[around](fn), stk.ULA(0.01), steps=3, chains=4).ok.all()


def test_the_mutant_that_does_not_look_at_x_walks_off(monkeypatch):
    """What the count of writes prevents: a run that accepts a field which moves its chains."""
    field = stk.Energy(shifted, (2,))
    for module in ("resolve", "wrappers"):
        home = import_module(f"scoretk.fields.{module}")
        monkeypatch.setattr(home, "unwritten", lambda what, evaluate, x, **_: evaluate(x))
    stk.sample(field, stk.HMC(0.1, metric="none"), steps=3, chains=4)
    monkeypatch.undo()
    with pytest.raises(InvalidArgument, match="in place"):
        stk.sample(field, stk.HMC(0.1, metric="none"), steps=3, chains=4)


def test_a_start_that_is_not_finite_is_no_write():
    answered = unwritten("energy", lambda x: x.sum(1), torch.full((2, 2), torch.nan), asked=set())
    assert answered.isnan().all()


def test_half_precision_is_an_answer_and_inference_mode_a_place_to_ask():
    field = stk.Score(lambda x: -x.half(), (2,))
    assert stk.sample(field, stk.ULA(0.01), steps=2, chains=3).ok.all()
    with torch.inference_mode():
        assert stk.fields.resolve(field, {"score"}).score(torch.ones(3, 2)).dtype == torch.float32


def test_a_sparse_answer_is_refused():
    with pytest.raises(InvalidArgument, match="energy"):
        check_rows("energy", torch.zeros(3).to_sparse(), (3,), "")


# Messages


class Unspeakable:
    def __repr__(self):
        raise RuntimeError("not even its name")


@pytest.mark.parametrize(
    "value",
    [
        list(range(10**6)),
        "a" * 10**6,
        10**5000,
        Unspeakable(),
        {"a": torch.zeros(10**5)},
        [["b" * 99] * 99] * 99,
    ],
    ids=["list", "text", "integer", "unspeakable", "tensor", "nested"],
)
def test_a_message_shows_the_beginning_of_a_value(value):
    assert len(str(InvalidArgument("x", value, "something else"))) < SHOWN + 40


@pytest.mark.parametrize("length", [10, 60, 100, 5000])
def test_of_a_long_path_the_end_is_shown(length):
    """Its name says most. A mutant: texts cut at their end."""
    shown = str(InvalidArgument("path", f"/{'folder/' * length}draws.nc", "a path"))
    assert "got '/folder/" in shown
    assert shown.endswith("draws.nc'")


def test_no_message_is_long():
    for error in (
        InvalidArgument("x", 3, "y" * 10**5, "z" * 10**5),
        UnknownName("model", "x", map(str, range(10**4))),
    ):
        assert len(str(error)) <= LONGEST
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    table = torch.linspace(0.9999, 0.01, 1000)
    f, g = (stk.from_timesteps(lambda x, k: x, t, (2,)) for t in (table, table * 0.999))
    for call in (
        lambda: stk.product(f, g),
        lambda: stk.guided(f, 2.0, g),
        lambda: stk.mixture([f, g], [1, 1]),
    ):
        with pytest.raises(InvalidArgument) as caught:
            call()
        assert len(str(caught.value)) < 300


# Equal by value


def tables():
    """Tables whose reprs are equal, as torch shows a long tensor's ends only, and whose middles are not."""
    one = torch.linspace(0.9999, 0.01, 2000, dtype=torch.float64)
    other = one.clone()
    other[1000] = (one[999] + one[1000]) / 2
    assert repr(stk.Tabulated(one)) == repr(stk.Tabulated(other))
    return one, other


def on(table):
    return stk.from_timesteps(lambda x, k: x, table, (2,))


def test_fields_on_equal_tables_go_together_and_others_do_not():
    one, other = tables()
    for make in (stk.product, lambda f, g: stk.guided(f, 2.0, g)):
        make(on(one), on(one.clone()))
        with pytest.raises(InvalidArgument):
            make(on(one), on(other))
    with pytest.raises(InvalidArgument):
        stk.product(on(one), on(one.float()[:1000]))
    stk.product(stk.Diffusion(torch.sin, (2,), stk.VP()), stk.Diffusion(torch.cos, (2,), stk.VP()))


class Slow(stk.VP):
    """A path whose repr is that of another, and which is not it."""

    def __repr__(self):
        return repr(stk.VP())


def test_a_path_is_not_what_it_is_called():
    with pytest.raises(InvalidArgument):
        stk.product(
            stk.Diffusion(torch.sin, (2,), stk.VP()), stk.Diffusion(torch.sin, (2,), Slow())
        )


def test_alike():
    with torch.random.fork_rng():
        layer, other, table = nn.Linear(2, 2), nn.Linear(2, 2), torch.arange(3.0)
    for a, b, same in (
        (table, table.clone(), True),
        (table, table.double(), False),
        (table, table + 1, False),
        (constraints.interval(0, 1), constraints.interval(0, 1), True),
        (constraints.interval(0, 1), constraints.interval(0, 2), False),
        (constraints.positive, constraints.nonnegative, False),
        ((constraints.simplex, 3), (constraints.simplex, 3), True),
        (stk.Tabulated(1 - table / 4 - 0.1), stk.Tabulated(1 - table / 4 - 0.1), True),
        (stk.VP(), stk.SubVP(), False),
        (layer, layer, True),
        (layer, other, False),
        (layer.forward, layer.forward, True),
        ({"a": table}, {"a": table.clone()}, True),
        ({"a": table}, {"b": table}, False),
        ([1, 2], [1, 2, 3], False),
        (1, 1.0, False),
        (None, None, True),
        (table.numpy(), table.numpy().copy(), True),
        (len, len, True),
        (len, max, False),
    ):
        assert alike(a, b) is same, (a, b)
    loop = [1]
    loop.append(loop)
    again = [1]
    again.append(again)
    assert alike(loop, again)


# Nulls are rows


class Told(nn.Module):
    """A network that looks at what it is told, row by row."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t, y=None):
        self.seen.append(y)
        return x if y is None else x + y.reshape(len(x), -1)[:, :1].to(x)


def told(null, cond):
    net = Told()
    field = stk.guided(stk.Diffusion(net, (2,)), 2.0, null=null)
    chains = 5 if cond is None else None
    run = {} if cond is None else {"cond": {"y": cond}}
    stk.sample(field, stk.ProbabilityFlow("euler", steps=1), chains=chains or len(cond), **run)
    # both in one call, or c first
    return net.seen[0].chunk(2)[1] if len(net.seen) == 1 else net.seen[1]


DTYPES = [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_null_is_put_in_as_rows_of_the_condition_s_dtype(dtype):
    cond = torch.arange(5).to(dtype)
    seen = told({"y": 10}, cond)
    assert seen.shape == (5,)
    assert seen.dtype == (dtype if not dtype.is_floating_point else torch.float32)
    assert seen.tolist() == [10] * 5
    for null in (10.0, torch.tensor(10), torch.tensor([10])):
        assert told({"y": null}, cond).tolist() == [10] * 5


def test_nulls_of_other_shapes():
    cond = torch.ones(5, 3)
    assert told({"y": torch.arange(3)}, cond).tolist() == [[0.0, 1.0, 2.0]] * 5
    assert told({"y": torch.arange(3)[None]}, cond).tolist() == [[0.0, 1.0, 2.0]] * 5
    assert told({"y": 0}, cond).shape == (5, 3)
    assert told({"y": True}, torch.zeros(5, dtype=torch.bool)).tolist() == [True] * 5
    assert told({"y": None}, cond) is None
    assert told({"y": 3}, None).tolist() == [3] * 5  # c is told nothing, u is
    assert told({"y": 0.5}, None).dtype == torch.float32


@pytest.mark.parametrize(
    ("null", "cond"),
    [
        ({"y": 1.5}, torch.ones(5, dtype=torch.int64)),
        ({"y": 300}, torch.ones(5, dtype=torch.uint8)),
        ({"y": -1}, torch.ones(5, dtype=torch.uint8)),
        ({"y": torch.zeros(3)}, torch.ones(5)),
        ({"y": torch.zeros(5)}, torch.ones(5)),  # rows, which another batch would not have
        ({"y": torch.zeros(5, 3)}, torch.ones(5, 3)),
        ({"y": "none"}, torch.ones(5)),
        ("y", torch.ones(5)),
        ({1: 2}, torch.ones(5)),
    ],
)
def test_a_null_that_the_condition_cannot_hold_is_refused(null, cond):
    with pytest.raises(InvalidArgument, match="null"):
        told(null, cond)


# --- messages in the user's words


def test_no_message_names_a_private_class():
    """Every class of fields that is not public has words for what users make it with."""
    from scoretk.fields import protocols
    from scoretk.fields.wrapped import Wrapped

    found, kinds = set(), [Wrapped]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind.__module__.startswith("scoretk.fields"):
            found.add(kind.__name__)
    inner = {"Wrapped", "Members", "OfMany", "SamePath", "_Blend", "Bridge", "Stretched"}
    public = {name for name in found if hasattr(stk, name)}
    assert found - public - inner <= protocols._MADE_BY.keys()


@pytest.mark.thorough
def test_refusals_say_how_a_field_was_made():
    positive = stk.constrained(stk.Energy(lambda x: x.sum(1), (2,)), constraints.positive)
    gamma = torch.distributions.Independent(torch.distributions.Gamma(torch.ones(2), 1.0), 1)
    timed = stk.Diffusion(lambda x, t: 0.5 * x, (2,), stk.Linear(), "data")
    table = torch.eye(3)
    looked_up = stk.Discrete(
        stk.Energy(lambda x: table[x[:, 0].long(), x[:, 1].long()], (2,)), (0.0, 1.0, 2.0)
    )
    corrected = stk.ReverseSDE("ancestral", corrector=2, steps=4)
    cases = {
        "a tempered field or a product of fields in time offers": lambda: stk.sample(
            stk.tempered(timed, 2.0), chains=2
        ),
        "a field over its support.*Gamma, Beta and Dirichlet cannot. Leave base": lambda: (
            stk.log_partition(positive, base=gamma, chains=8)
        ),
        r"one-hot rows \(scoretk.Discrete": lambda: stk.sample(looked_up, chains=2, steps=2),
        r"alpha\(0\) is 0.*AnnealedLangevin\(\), or a path": lambda: stk.sample(
            stk.tempered(timed, 2.0), corrected, chains=2
        ),
        "mixture|guided": lambda: stk.sample(
            stk.guided(timed, 2.0, unconditional=timed), stk.HMC(0.1), chains=2
        ),
    }
    for said, call in cases.items():
        with pytest.raises(stk.ScoretkError, match=f"(?s){said}"):
            call()
    draws = stk.sample(timed, corrected, chains=2)  # which predicts the data
    assert draws.ok.all()


@pytest.mark.parametrize("others", [[], ["first"], ["first", "second"]])
def test_an_error_is_noted_once_whoever_else_noted_it(others):
    error = RuntimeError("of the user's")
    for _ in range(2):
        noted(error, "energy", {"x": torch.zeros(2, 3)})
        for other in others:
            error.add_note(other)
    ours = [note for note in error.__notes__ if note not in others]
    assert len(ours) == 1
    assert "x of shape (2, 3)" in ours[0]


NARROW = {  # networks that take a time, or a level of noise, for one that has the axes of x
    "Diffusion": stk.Diffusion,
    "Velocity": stk.Velocity,
    "from_sigmas": stk.from_sigmas,
    "from_reversed_time": stk.from_reversed_time,
}


@pytest.mark.parametrize("shape", [(2,), (1, 2, 3)])
@pytest.mark.parametrize("name", NARROW)
def test_a_network_that_fails_is_told_the_shapes_of_all_that_it_gets(name, shape):
    field = NARROW[name](lambda x, t, y: x * (t + y), shape)
    with pytest.raises(RuntimeError, match="must match") as raised:
        stk.sample(field, chains=4, cond={"y": torch.zeros(4)})
    (note,) = raised.value.__notes__
    axes = ", ".join(["-1"] + ["1"] * len(shape))
    for said in (f"x of shape {(4, *shape)}", "t of shape (4,)", "y of shape (4,)"):
        assert said in note
    assert f"t.reshape({axes}) goes with x" in note


def labelled(x, t, label=0.0):
    return x * 0 + (label if isinstance(label, float) else label[:, None])


NULLED = {
    **NARROW,
    "from_timesteps": lambda net, shape, **options: stk.from_timesteps(
        net, torch.linspace(0.9, 0.1, 5), shape, **options
    ),
}


@pytest.mark.parametrize("name", NULLED)
def test_whatever_makes_a_field_of_a_network_takes_what_stands_for_no_condition(name):
    """`u + 2 (c - u)`, for c = 1 and u = .5, is 1.5 of what the network predicts."""
    field = NULLED[name](labelled, (2,), null={"label": 0.5})
    x, one = torch.ones(3, 2), torch.ones(3)
    told = stk.guided(field, 2.0).predict(x, 0.5, label=one)
    assert torch.equal(told, field.predict(x, 0.5, label=1.5 * one))
    with pytest.raises(InvalidArgument, match=r"null=\{name: value\} is what"):
        stk.guided(NULLED[name](labelled, (2,)), 2.0)


@pytest.mark.parametrize("named", [True, False])
def test_a_matrix_without_factors_is_told_with_what_to_do(named):
    """A Gaussian process whose inputs are as good as equal, in float32."""

    def energy(x):
        return torch.linalg.cholesky(torch.ones(3, 3).expand(len(x), 3, 3)).sum((1, 2)) + x

    wrapped = stk.Energy(energy, variables={"x": ()}) if named else stk.Energy(energy, ())
    with pytest.raises(torch.linalg.LinAlgError) as told:
        stk.sample(wrapped, chains=4, steps=10)
    (note,) = [note for note in told.value.__notes__ if note.startswith("scoretk: ")]
    assert "dtype=torch.float64" in note
    assert "cholesky_ex" in note


class Odd(Exception):
    """An error of the user's own."""


def failing(error):
    def fails(x, *_, **__):
        raise error("of the user's")

    return fails


def whole(x):
    return x.square().sum(1)


NET = stk.Diffusion(lambda x, t: x, (2,), stk.VP(), "noise")
ASKED = {
    "energy": lambda f: stk.Energy(f, (2,)),
    "gradient": lambda f: stk.Energy(whole, (2,), grad=f),
    "score": lambda f: stk.Score(f, (2,)),
    "prediction": lambda f: stk.Diffusion(f, (2,), stk.VP(), "noise"),
    "velocity": lambda f: stk.Velocity(f, (2,)),
    "denoiser of sigmas": lambda f: stk.from_sigmas(f, (2,)),
    "tempered": lambda f: stk.tempered(stk.Energy(f, (2,)), 2.0),
    "of a product": lambda f: stk.product(stk.Energy(whole, (2,)), stk.Energy(f, (2,))),
    "constrained": lambda f: stk.constrained(
        stk.Energy(f, (2,)), torch.distributions.constraints.positive
    ),
    "likelihood": lambda f: stk.posterior(stk.Energy(whole, (2,)), f),
    "likelihood in time": lambda f: stk.posterior(NET, f),
    "variables": lambda f: stk.Energy(lambda mu: f(mu.clone()), variables={"mu": (2,)}),
}
"""Fields that ask a function of the user's."""


def asked(field):
    if stk.fields.is_timed(field):
        return stk.sample(field, stk.ReverseSDE(steps=2), chains=4)
    return stk.sample(field, stk.ULA(0.1), chains=4, steps=2)


@pytest.mark.parametrize(
    "error", [RuntimeError, ValueError, TypeError, KeyError, ZeroDivisionError, AssertionError, Odd]
)
@pytest.mark.parametrize("name", ASKED)
def test_an_error_of_any_kind_says_once_what_the_function_was_given(name, error):
    with pytest.raises(error) as raised:
        asked(ASKED[name](failing(error)))
    (note,) = [note for note in raised.value.__notes__ if note.startswith("scoretk: ")]
    assert f"{'mu' if name == 'variables' else 'x'} of shape (4, 2)" in note
