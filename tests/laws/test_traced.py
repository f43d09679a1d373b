"""What the compiler traces of noise and of fields is what is computed: plain tensors take the branches for graphs here."""

import functools

import pytest
import torch
from torch.utils._pytree import tree_leaves

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.fields.resolve import offers
from tests.laws import test_rows_alone
from tests.laws.test_rows_alone import FIELDS, LABEL, STATIC, TIMES, X

pytestmark = pytest.mark.usefixtures("compiler_begun")


def traced(monkeypatch, ask):
    """The answer as it is, and as it is where the compiler traces it."""
    plain = ask()
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        return plain, ask()


def same(one, other):
    ours, theirs = (
        [v for v in tree_leaves(answer) if isinstance(v, torch.Tensor)] for answer in (one, other)
    )
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["normal", "uniform", "rademacher"])
def test_noise(monkeypatch, kind, dtype):
    """To the bit: of odd and even numbers of entries, and of none; of steps that are numbers and tensors."""
    for shape in ((), (1,), (3,), (2, 5), (0,)):
        for step in (3, torch.tensor(3)):

            def ask(shape=shape, step=step):
                return getattr(Noise(7, 4, dtype=dtype), kind)(step, 2, shape)

            plain, graph = traced(monkeypatch, ask)
            assert graph.dtype == plain.dtype == dtype
            assert torch.equal(plain, graph), shape


WRONG = {
    "half precision": {"dtype": torch.float16},
    "whole numbers": {"dtype": torch.int64},
    "a word": {"dtype": "float32"},
    "fewer than none": {"shape": (-1,)},
    "a flag": {"shape": (True,)},
    "a number": {"shape": 3},
    "a stream before the first": {"stream": -1},
}


@pytest.mark.parametrize("kind", ["normal", "uniform", "rademacher"])
@pytest.mark.parametrize("what", WRONG)
def test_what_is_refused_is_refused_in_a_graph(monkeypatch, kind, what):
    """In the same words."""

    def ask():
        given = {"step": torch.tensor(3), "stream": 2, "shape": (3,)} | WRONG[what]
        with pytest.raises(stk.ScoretkError) as told:
            getattr(Noise(7, 4), kind)(**given)
        return str(told.value)

    plain, graph = traced(monkeypatch, ask)
    assert plain == graph


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_in_time(monkeypatch, name):
    make, cond = FIELDS[name]

    def ask():
        field = make()
        return [getattr(field, a)(X, TIMES, **cond) for a in ("denoise", "score", "velocity")]

    same(*traced(monkeypatch, ask))


@pytest.mark.parametrize("name", [*FIELDS, *STATIC])
def test_a_graph_holds_nothing_that_is_done_once(monkeypatch, name):
    """What is looked at when a field is first asked would be looked at in each turn of a graph."""
    asked = []

    def counted(function):
        @functools.wraps(function)
        def asking(*given, **named):
            asked.append(function)
            return function(*given, **named)

        return asking

    for part in ("network", "energy", "log_prob", "log_likelihood", "network_in_steps"):
        monkeypatch.setattr(test_rows_alone, part, counted(getattr(test_rows_alone, part)))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    make, cond = FIELDS[name] if name in FIELDS else (STATIC[name], {"label": LABEL})
    field, times = make(), [TIMES] if name in FIELDS else []
    answer = getattr(field, "denoise" if times else "score")
    found = []
    for _ in range(2):
        asked.clear()
        answer(X[:1], *(t[:1] for t in times), **{k: v[:1] for k, v in cond.items()})
        found.append(len(asked))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", [*STATIC, "named variables"])
def test_a_static_field(monkeypatch, name):
    def ask():
        field = (STATIC | {"named variables": variables})[name]()
        has = [a for a in ("energy", "score", "energy_and_grad") if a in offers(field)]
        return [getattr(field, a)(X, label=LABEL) for a in has]

    same(*traced(monkeypatch, ask))


def variables():
    """A field of named variables, one of them in a simplex."""
    space = {"mu": (2,), "share": stk.Variable((2,), torch.distributions.constraints.simplex)}
    return stk.Energy(
        lambda mu, share, label: mu.square().sum(1) + label * share[:, 0], variables=space
    )
