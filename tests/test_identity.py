"""Whose checkpoint it is: another model's is refused with what differs, an equal run's is taken up, also in a fresh process."""

# ruff: noqa: B008, PLW0108, RUF043 (numbers in defaults and in lambdas are what is told apart)
import ast
import collections
import contextvars
import datetime
import functools
import inspect
import itertools
import json
import os
import subprocess
import sys
import threading
import types
from dataclasses import dataclass
from enum import Enum, IntFlag
from pathlib import Path

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.core import anatomy, identity
from scoretk.core.identity import Identity, tensor_value, weights_digest
from scoretk.demo.bench.partition import many_well
from scoretk.run import resume as runs
from tests.processes import environment

ROOT = Path(__file__).parent.parent
TORCHS_OWN = (
    "ignore::DeprecationWarning",
    "ignore:torch.quantize",
    "ignore:The PyTorch API of nested tensors",
)


def squares(x):
    return x.square().sum(1) / 2


def energy(fn):
    return stk.Energy(fn, (2,))


def code(text, **names):
    """The function f of a text."""
    names["__name__"] = "elsewhere"
    exec(text, names)
    return names["f"]


@dataclass(frozen=True)
class Scaled:
    scale: object

    def __call__(self, x):
        return squares(x) * torch.as_tensor(self.scale).to(x).sum()

    def method(self, x):
        return self(x)


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return squares(x) * self.scale


class Net(torch.nn.Module):
    def __init__(self, scale=1.0, offset=0.0):
        super().__init__()
        self.net = torch.nn.utils.skip_init(torch.nn.Linear, 2, 2)
        self.net.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        self.register_buffer("offset", torch.tensor(offset))
        self.scale, self.unregistered = scale, [torch.ones(2)]

    def forward(self, x, t=None):
        return (self.net(x) - self.offset) * self.scale


class Sign(Net):
    def forward(self, x, t=None):
        return (self.net(x) + self.offset) * self.scale


def net_with(change):
    net = Net()
    change(net)
    return energy(lambda x: squares(net(x)))


class Gone(Exception):
    """What another library raises of an array that it has deleted."""


class Lent:
    """An array of another library, which reads it for numpy or raises."""

    def __init__(self, array, error=None):
        self.array, self.error = array, error
        self.dtype, self.shape = array.dtype, array.shape

    def __dlpack__(self): ...

    def __array__(self, dtype=None, copy=None):
        if self.error is not None:
            raise self.error("deleted")
        return self.array


class Mode(Enum):
    FLAT = 1
    STEEP = 2


def with_class_attribute(value):
    kind = type(
        "Model", (Scaled,), {"factor": value, "__call__": lambda self, x: squares(x) * self.factor}
    )
    return kind(1.0)


def as_module(value):
    module = types.ModuleType("helpers_of_identity")
    module.scale = value
    return code("def f(x): return x.square().sum(1) * helpers.scale", helpers=module)


def nested(value):
    call = Scaled(value)
    for _ in range(12):
        call = functools.partial(lambda inner, x: inner(x), types.SimpleNamespace(run=call).run)
    return call


def diffusion(path=None, predicts="data", net=None):
    return stk.Diffusion(net or (lambda x, t: 0.5 * x), (2,), path or stk.VP(), predicts)


def distribution(loc, scale=1.0):
    return torch.distributions.Independent(
        torch.distributions.Normal(torch.tensor([loc, 0.0]), scale), 1
    )


BITS = torch.tensor([True, False])
CASES = {
    "temperature": (lambda v: stk.tempered(energy(squares), v), 1.0, 25.0),
    "temperature of a timed field": (lambda v: stk.tempered(diffusion(), v), 1.0, 2.0),
    "support": (
        lambda v: stk.constrained(energy(squares), v),
        torch.distributions.constraints.positive,
        torch.distributions.constraints.unit_interval,
    ),
    "bounds of a support": (
        lambda v: stk.constrained(energy(squares), torch.distributions.constraints.greater_than(v)),
        0.0,
        1.0,
    ),
    "constant": (lambda v: energy(code(f"f = lambda x: x.square().sum(1) / {v}")), 2, 50),
    "constant of another type": (
        lambda v: energy(code(f"f = lambda x: x.square().sum(1) / {v}")),
        2,
        2.0,
    ),
    "constant in a comprehension": (
        lambda v: energy(code(f"f = lambda x: sum([y * {v} for y in x.square().T])")),
        2,
        50,
    ),
    "constant in a nested function": (
        lambda v: energy(
            code(
                f"def f(x):\n def g(y): return (lambda z: z * {v})(y)\n return g(x.square().sum(1))"
            )
        ),
        2,
        50,
    ),
    "operator": (
        lambda v: energy(code(f"f = lambda x: (x.square() {v} x.abs()).sum(1)")),
        "+",
        "*",
    ),
    "method asked for": (lambda v: energy(code(f"f = lambda x: x.{v}().sum(1)")), "square", "cosh"),
    "closure": (lambda v: energy(lambda x: squares(x) * v), 1.0, 25.0),
    "closure over a tensor": (
        lambda v: energy(lambda x: squares(x * v)),
        torch.tensor([1.0, 2.0]),
        torch.tensor([2.0, 1.0]),
    ),
    "closure over an array": (
        lambda v: energy(lambda x: squares(x) * float(v.sum())),
        np.arange(3.0),
        np.arange(3.0) + 1e-12,
    ),
    "closure over a string": (lambda v: energy(lambda x: squares(x) * len(v)), "one", "three"),
    "closure over an enum": (
        lambda v: energy(lambda x: squares(x) * v.value),
        Mode.FLAT,
        Mode.STEEP,
    ),
    "closure over a function": (lambda v: energy(lambda x: v(x).sum(1)), torch.cosh, torch.square),
    "closure over a builtin": (lambda v: energy(lambda x: squares(x) * v(1, 2)), max, min),
    "closure over a set": (
        lambda v: energy(lambda x: squares(x) * len(v)),
        {"a", "b", (1, "c")},
        {"a", "b", (1, "d")},
    ),
    "closure over a dict": (
        lambda v: energy(lambda x: squares(x) * v["a"]),
        {"a": 1.0, "b": 2},
        {"a": 2.0, "b": 1},
    ),
    "order of a dict": (
        lambda v: energy(lambda x: squares(x) * next(iter(v.values()))),
        {"a": 1.0, "b": 2.0},
        {"b": 2.0, "a": 1.0},
    ),
    "long list": (
        lambda v: energy(lambda x: squares(x) * v[7]),
        list(range(5000)),
        [*range(4999), -1],
    ),
    "global": (
        lambda v: energy(code("f = lambda x: x.square().sum(1) * scale", scale=v)),
        1.0,
        25.0,
    ),
    "global array": (
        lambda v: energy(code("f = lambda x: (x * scale).square().sum(1)", scale=v)),
        torch.ones(2),
        torch.tensor([1.0, 2.0]),
    ),
    "global function": (
        lambda v: energy(code("f = lambda x: g(x)", g=v)),
        squares,
        lambda x: squares(x) * 2,
    ),
    "global module": (lambda v: energy(as_module(v)), 1.0, 25.0),
    "default": (lambda v: energy(lambda x, scale=v: squares(x) * scale), 1.0, 25.0),
    "keyword default": (
        lambda v: energy(
            functools.partial(code("def f(x, *, scale=s): return x.square().sum(1) * scale", s=v))
        ),
        1.0,
        25.0,
    ),
    "partial": (
        lambda v: energy(functools.partial(lambda scale, x: squares(x) * scale, v)),
        1.0,
        25.0,
    ),
    "partial keyword": (
        lambda v: energy(functools.partial(lambda x, scale: squares(x) * scale, scale=v)),
        1.0,
        25.0,
    ),
    "attribute": (lambda v: energy(Scaled(v)), 1.0, 25.0),
    "attribute of attributes": (lambda v: energy(nested(v)), 1.0, 25.0),
    "slot": (lambda v: energy(Slotted(v)), 1.0, 25.0),
    "bound method": (lambda v: energy(Scaled(v).method), 1.0, 25.0),
    "class attribute": (lambda v: energy(with_class_attribute(v)), 1.0, 25.0),
    "weight": (lambda v: net_with(lambda n: n.net.weight.data.fill_(v)), 1.0, 1.0000001),
    "weights in another order": (
        lambda v: net_with(lambda n: n.net.weight.data.copy_(v)),
        torch.eye(2),
        torch.eye(2).flip(0),
    ),
    "buffer": (lambda v: energy(lambda x, n=Net(offset=v): squares(n(x))), 0.0, 1.0),
    "attribute of a module": (lambda v: energy(lambda x, n=Net(v): squares(n(x))), 1, 3),
    "unregistered tensor": (lambda v: net_with(lambda n: n.unregistered[0].fill_(v)), 1.0, 2.0),
    "class of a module": (lambda v: energy(lambda x, n=v(): squares(n(x))), Net, Sign),
    "hook": (
        lambda v: net_with(lambda n: n.register_forward_hook(lambda m, i, out, s=v: out * s)),
        1.0,
        2.0,
    ),
    "replaced method": (
        lambda v: net_with(lambda n: setattr(n, "forward", v)),
        lambda x: x,
        lambda x: 2 * x,
    ),
    "order of modules": (
        lambda v: energy(
            lambda x, n=torch.nn.Sequential(collections.OrderedDict(v)): squares(n(x))
        ),
        [("a", torch.nn.Tanh()), ("b", torch.nn.ReLU())],
        [("b", torch.nn.ReLU()), ("a", torch.nn.Tanh())],
    ),
    **{
        f"tensor of {dtype}": (
            lambda v, dtype=dtype: energy(
                lambda x, a=torch.tensor(v).to(dtype): (
                    squares(x) * a.to(torch.complex64).abs().sum()
                )
            ),
            [0, 1],
            [1, 1],
        )
        for dtype in (
            torch.bfloat16,
            torch.float16,
            torch.float64,
            torch.int8,
            torch.int64,
            torch.bool,
            torch.complex64,
            torch.uint8,
        )
    },
    "sparse tensor": (
        lambda v: energy(lambda x, a=torch.tensor(v).to_sparse(): squares(x) * a.to_dense().sum()),
        [0.0, 1.0],
        [1.0, 0.0],
    ),
    "quantised tensor": (
        lambda v: energy(
            lambda x, a=torch.quantize_per_tensor(torch.ones(2), v, 0, torch.qint8): (
                squares(x) * a.dequantize().sum()
            )
        ),
        0.1,
        0.2,
    ),
    "distribution": (lambda v: stk.from_distribution(distribution(v)), 0.0, 3.0),
    "scale of a distribution": (lambda v: stk.from_distribution(distribution(0.0, v)), 1.0, 3.0),
    "path": (lambda v: diffusion(v), stk.VP(), stk.Linear()),
    "path's parameter": (lambda v: diffusion(stk.VP(beta_max=v)), 20.0, 10.0),
    "predicts": (lambda v: diffusion(predicts=v), "data", "v"),
    "timesteps": (
        lambda v: stk.from_timesteps(
            lambda x, k: 0.5 * x, torch.linspace(0.99, v, 20), (2,), "data"
        ),
        0.01,
        0.02,
    ),
    "guidance": (
        lambda v: stk.guided(diffusion(), v, diffusion(net=lambda x, t: 0.4 * x)),
        1.0,
        3.0,
    ),
    "observation": (
        lambda v: stk.posterior(
            diffusion(), stk.LinearGaussian(torch.tensor([[1.0, 0.0]]), torch.tensor([v]), 0.1)
        ),
        1.0,
        2.0,
    ),
    "std of an observation": (
        lambda v: stk.posterior(
            diffusion(), stk.LinearGaussian(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]), v)
        ),
        0.1,
        0.2,
    ),
    "factors of a product": (lambda v: stk.product(energy(squares), energy(Scaled(v))), 1.0, 2.0),
    "scripted": (lambda v: energy(lambda x, s=torch.jit.script(Script(v)): s(x)), 1.0, 2.0),
}


Pair = collections.namedtuple("Pair", "scale name")


class Numbers(list):
    pass


class Options(dict):
    pass


CASES |= {
    "named tuple": (
        lambda v: energy(lambda x: squares(x) * v.scale),
        Pair(1.0, "a"),
        Pair(25.0, "a"),
    ),
    "list of one's own": (
        lambda v: energy(lambda x: squares(x) * v[0]),
        Numbers([1.0]),
        Numbers([25.0]),
    ),
    "dict of one's own": (
        lambda v: energy(lambda x: squares(x) * v["a"]),
        Options(a=1.0),
        Options(a=25.0),
    ),
    "memo": (lambda v: energy(functools.lru_cache(lambda x: squares(x) * v)), 1.0, 25.0),
    "dispatch": (lambda v: energy(dispatched(v)), 1.0, 25.0),
    "cached property": (lambda v: energy(Lazy(v)), 1.0, 25.0),
    "property": (lambda v: energy(lambda x: squares(x) * of_property(v).scale), 1.0, 25.0),
    "vmap": (lambda v: energy(torch.func.vmap(lambda x: x.square().sum() * v)), 1.0, 25.0),
    "field of one's own": (lambda v: own_field(v), 1.0, 25.0),
    "likelihood": (
        lambda v: stk.posterior(diffusion(), lambda x: -(x - v).square().sum(1)),
        1.0,
        2.0,
    ),
    "smoothing": (lambda v: stk.smoothed(energy(squares), stk.VP(beta_max=v)), 20.0, 10.0),
    "base": (lambda v: stk.Velocity(lambda x, t: -x, (2,), torch.full((3, 2), v)), 1.0, 2.0),
}


class Number(float):
    pass


class Word(str):
    pass


class Day(datetime.date):
    pass


class Bits(IntFlag):
    LOW = 1
    HIGH = 2


class Marked(torch.Tensor):
    pass


def with_metaclass(value):
    class Kind(type):
        scale = value

    class Model(metaclass=Kind):
        def __call__(self, x):
            return squares(x) * type(self).scale

    return Model()


def marked(tensor, value):
    tensor.scale = value
    return tensor


def with_backward_hook(value):
    net = Net()
    net.register_full_backward_hook(lambda module, into, out: (into[0] * value,))
    return net


def patched(module, value):
    """A module of another's, in which something was put."""
    module.put_by_a_test = value
    return code("def f(x): return x.square().sum(1) * helpers.put_by_a_test", helpers=module)


def with_function(module, value):
    module.put_by_a_test = lambda x: squares(x) * value
    return module


def exported(value):
    class Halves(torch.nn.Module):
        def forward(self, x):
            return x.square().sum(1) * value

    sizes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(Halves(), (torch.zeros(3, 2),), dynamic_shapes=sizes).module()


CASES |= {
    "number of one's own": (lambda v: energy(lambda x: squares(x) * v), Number(1.0), Number(25.0)),
    "string of one's own": (lambda v: energy(lambda x: squares(x) * len(v)), Word("a"), Word("bc")),
    "date of one's own": (
        lambda v: energy(lambda x: squares(x) * v.day),
        Day(2000, 1, 1),
        Day(2000, 1, 2),
    ),
    "flag": (lambda v: energy(lambda x: squares(x) * int(v)), Bits.LOW, Bits.HIGH),
    "view of memory": (
        lambda v: energy(lambda x: squares(x) * v[0]),
        memoryview(b"a"),
        memoryview(b"b"),
    ),
    "default of a dict": (
        lambda v: energy(lambda x, d=collections.defaultdict(lambda: v): squares(x) * d["a"]),
        1.0,
        25.0,
    ),
    "context variable": (
        lambda v: energy(lambda x, c=contextvars.ContextVar("c", default=v): squares(x) * c.get()),
        1.0,
        25.0,
    ),
    "metaclass": (lambda v: energy(with_metaclass(v)), 1.0, 25.0),
    "attribute of a tensor": (
        lambda v: energy(lambda x, t=marked(torch.ones(2), v): squares(x) * t.scale),
        1.0,
        25.0,
    ),
    "attribute of a tensor of one's own": (
        lambda v: energy(
            lambda x, t=marked(torch.ones(2).as_subclass(Marked), v): squares(x) * t.scale
        ),
        1.0,
        25.0,
    ),
    "nested tensor": (
        lambda v: energy(
            lambda x, t=torch.nested.nested_tensor([torch.ones(2), torch.full((3,), v)]): (
                squares(x) * t.unbind()[1].sum()
            )
        ),
        1.0,
        25.0,
    ),
    "numbers of eight bits": (
        lambda v: energy(
            lambda x, t=torch.full((2,), v).to(torch.float8_e4m3fn): squares(x) * t.float().sum()
        ),
        1.0,
        2.0,
    ),
    "traced": (
        lambda v: energy(torch.jit.trace(lambda x: x.square().sum(1) * v, torch.zeros(3, 2))),
        1.0,
        25.0,
    ),
    "exported": (lambda v: energy(exported(v)), 1.0, 25.0),
    "backward hook": (lambda v: energy(lambda x, n=with_backward_hook(v): squares(n(x))), 1.0, 2.0),
    "number put into torch": (lambda v: energy(patched(torch, v)), 1.0, 25.0),
    "function put into torch": (
        lambda v: energy(
            code("def f(x): return F.put_by_a_test(x)", F=with_function(torch.nn.functional, v))
        ),
        1.0,
        25.0,
    ),
}


def dispatched(scale):
    @functools.singledispatch
    def fn(x):
        raise NotImplementedError

    fn.register(torch.Tensor, lambda x: squares(x) * scale)
    return fn


class Lazy:
    def __init__(self, scale):
        self.given = scale

    @functools.cached_property
    def scale(self):
        return torch.tensor(self.given)

    def __call__(self, x):
        return squares(x) * self.scale


def of_property(value):
    class Model:
        @property
        def scale(self):
            return value

    return Model()


def own_field(value):
    class Base:
        event_shape = (2,)

        def energy(self, x):
            return squares(x) * self.scale()

    class Field(Base):
        def scale(self):
            return value

    return Field()


class Script(torch.nn.Module):
    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().sum(1) * self.scale


def sampled(field, path, solver=None, **options):
    timed = hasattr(field, "at")
    usual = (
        stk.ProbabilityFlow(steps=3)
        if isinstance(field, stk.Velocity)
        else stk.ReverseSDE("ancestral", 3, corrector=1)
    )
    solver = solver or (usual if timed else stk.ULA(0.01))
    run = {"chains": 3} | ({} if timed else {"steps": 4}) | options
    return stk.sample(field, solver, checkpoint=path, **run)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings(*TORCHS_OWN)
def test_another_models_checkpoint_is_refused_and_an_equal_ones_taken_up(tmp_path, case):
    make, one, other = CASES[case]
    first = sampled(make(one), tmp_path / "c")
    content = (tmp_path / "c").read_bytes()
    with pytest.raises(stk.CheckpointError, match="there, .* here"):
        sampled(make(other), tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == content
    assert torch.equal(sampled(make(one), tmp_path / "c").final, first.final)


def digests():
    return {
        name: identity.Identity(field=make(one)).summary()["digest"]
        for name, (make, one, _) in CASES.items()
    }


def in_a_fresh_process(script, *arguments):
    """What a script prints, in a process whose hashes of strings are others."""
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    changed = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=changed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


GOES_ON = """
import sys, torch, scoretk as stk
names, calls = {"b", "a", (1, "c")}, []
def run(path, steps):
    def energy(x, scale=torch.tensor(2.0)):
        calls.append(len(x))
        return x.square().sum(1) * scale * len(names)
    return stk.sample(stk.Energy(energy, (2,)), stk.HMC(leapfrogs=2), chains=4, steps=steps, warmup=30, seed=3, checkpoint=path).x
"""


THEN = """
x = run(sys.argv[1], 20); again = len(calls); y = run(sys.argv[1], 40)
print(x.double().sum().item().hex(), again, y.double().sum().item().hex())
import json; from tests import test_identity as t; print(json.dumps(t.digests()))
"""


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """A run of 20 steps, one of 40, and the lines of a fresh process that goes on with the first and tells its digests."""
    folder, names = tmp_path_factory.mktemp("apart"), {"__name__": "__main__"}
    exec(GOES_ON, names)
    first, whole = names["run"](folder / "c", 20), names["run"](folder / "d", 40)
    return first, whole, in_a_fresh_process(GOES_ON + THEN, str(folder / "c")).splitlines()


@pytest.mark.thorough
@pytest.mark.filterwarnings(*TORCHS_OWN)
def test_equal_models_have_one_identity_in_every_process(apart):
    assert json.loads(apart[2][1]) == digests()


def test_a_run_goes_on_and_is_extended_in_a_fresh_process(apart):
    first, whole, told = apart
    x, again, y = told[0].split()
    assert x == first.double().sum().item().hex()
    assert int(again) < 10  # it was not run again
    assert y == whole.double().sum().item().hex()


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("temperature", r"field\.temperature: 1\.0 there, 25\.0 here"),
        ("closure", r"field\.fn\.v: 1\.0 there, 25\.0 here"),
        ("global", r"field\.fn\.scale: 1\.0 there, 25\.0 here"),
        ("attribute", r"field\.fn\.scale: 1\.0 there"),
        ("constant", r"with 1, 2 there, .*with 1, 50 here"),
        ("path's parameter", r"field\.path\.beta_max: 20\.0 there, 10\.0 here"),
        ("predicts", r"field\.predicts: 'data' there, 'v' here"),
        ("observation", r"\[1\.0\].* there, .*\[2\.0\].* here"),
        ("attribute of a module", r"scale: 1 there, 3 here"),
    ],
)
def test_the_error_says_what_differs(tmp_path, case, said):
    make, one, other = CASES[case]
    sampled(make(one), tmp_path / "c")
    with pytest.raises(stk.CheckpointError, match=said):
        sampled(make(other), tmp_path / "c")


class MySolver:
    """A solver of one's own, with a function in its closure."""

    needs, timed, init_cost, step_cost, capturable = (
        frozenset({"score"}),
        False,
        {"score": 1},
        {"score": 1},
        False,
    )

    def __init__(self, rule):
        self.rule, self.inner = rule, stk.ULA(0.01)

    def init(self, field, x, noise):
        return self.inner.init(field, x, noise)

    def step(self, field, state, noise):
        state, info = self.inner.step(field, state, noise)
        return state._replace(x=self.rule(state.x)), info


SOLVERS = {
    "temperature": (lambda v: stk.ULA(0.01, temperature=v), 1.0, 2.0),
    "step size": (stk.ULA, 0.01, 0.02),
    "one's own": (lambda v: MySolver(lambda x: x * v), 1.0, 0.5),
    "kernel": (lambda v: stk.ParallelTempering(stk.MALA(v)), 0.1, 0.2),
}


@pytest.mark.parametrize("case", SOLVERS)
def test_another_solvers_checkpoint_is_refused(tmp_path, case):
    make, one, other = SOLVERS[case]
    run = functools.partial(sampled, energy(squares), tmp_path / "c")
    first = run(make(one))
    assert torch.equal(run(make(one)).x, first.x)
    with pytest.raises(stk.CheckpointError, match="there, .* here"):
        run(make(other))


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({"init": torch.zeros(3, 2)}, {"init": torch.ones(3, 2)}),
        ({"seed": 1}, {"seed": 2}),
        ({}, {"dtype": torch.float64}),
        ({"cond": {"c": torch.tensor([1, 2, 3])}}, {"cond": {"c": torch.tensor([1, 3, 2])}}),
        ({}, {"chains": range(1, 4)}),
        ({"cond": {"c": torch.tensor([1, 2, 3])}}, {"cond": {"d": torch.tensor([1, 2, 3])}}),
    ],
)
def test_other_settings_are_refused(tmp_path, options, other):
    field = energy(lambda x, c=None, d=None: squares(x) * (1 if c is None else c.to(x)))
    sampled(field, tmp_path / "c", **options)
    with pytest.raises(stk.CheckpointError, match="there, .* here"):
        sampled(field, tmp_path / "c", **(options | other))


def test_what_torch_has_been_told_belongs_to_the_run(tmp_path):
    field = energy(lambda x: squares(x) + 0 * torch.ones(1).to(x))
    sampled(field, tmp_path / "c", dtype=torch.float32)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(
            stk.CheckpointError, match="default_dtype: 'float32' there, 'float64' here"
        ):
            sampled(field, tmp_path / "c", dtype=torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(stk.CheckpointError, match="autocast: None there, 'bfloat16'"),
    ):
        sampled(field, tmp_path / "c")


class TestWhatChanges:
    """What a run itself changes does not tell it from another, and hides nothing else."""

    def field(self, scale=1.0):
        calls, state, cache = [], types.SimpleNamespace(count=0, scale=scale), {}

        def fn(x):
            calls.append(len(x))
            state.count += 1
            cache[state.count % 5] = x
            state.lazily = torch.ones(1)
            return squares(x) * state.scale

        return energy(fn)

    def test_counts_and_caches_do_not_matter(self, tmp_path):
        field = self.field()
        first = sampled(field, tmp_path / "c")
        assert torch.equal(sampled(field, tmp_path / "c").x, first.x)
        assert torch.equal(sampled(self.field(), tmp_path / "c").x, first.x)

    def test_what_stands_beside_them_does(self, tmp_path):
        sampled(self.field(), tmp_path / "c")
        with pytest.raises(stk.CheckpointError, match=r"state\.scale: 1\.0 there, 2\.0 here"):
            sampled(self.field(2.0), tmp_path / "c")

    def test_a_network_that_is_met_by_another_way_is_still_held_to(self, tmp_path):
        def made(scale):
            holder = types.SimpleNamespace(net=Net(scale))

            def fn(x):
                holder.again = holder.net  # a way that was not there before, and comes first
                return squares(holder.net(x))

            return energy(fn)

        sampled(made(1), tmp_path / "c")
        with pytest.raises(stk.CheckpointError, match="1 there, 3 here"):
            sampled(made(3), tmp_path / "c")


def hidden(scale):
    """A field whose scale no walk can see."""
    box = threading.local()
    box.scale = scale
    return energy(lambda x: squares(x) * box.scale)


class TestNamesOfThePackagesOwn:
    """A class of this package is named without its module."""

    def elsewhere(self, monkeypatch):
        for moved in (stk.Diffusion, stk.VP, stk.ReverseSDE):
            monkeypatch.setattr(moved, "__module__", "scoretk.other.place")

    def test_a_run_goes_on_after_modules_have_been_moved(self, tmp_path, monkeypatch):
        first = sampled(diffusion(), tmp_path / "c")
        self.elsewhere(monkeypatch)
        assert torch.equal(sampled(diffusion(), tmp_path / "c").final, first.final)

    def test_a_name_with_its_module_would_make_it_a_stranger(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            identity, "_name", lambda item: f"{item.__module__}.{item.__qualname__}"
        )
        sampled(diffusion(), tmp_path / "c")
        self.elsewhere(monkeypatch)
        with pytest.raises(stk.CheckpointError, match="other.place"):
            sampled(diffusion(), tmp_path / "c")

    def test_a_function_is_named_as_before_its_folder_moved(self):
        """Checkpoints of runs begun then have that name."""
        assert identity._value(many_well) == "function scoretk.bench.partition.many_well"
        assert identity._value(inspect.unwrap(stk.from_timesteps)) == (
            "function scoretk.fields.adapters.from_timesteps"
        )

    def test_another_class_is_another_and_so_is_another_packages_of_the_same_name(self):
        assert identity.Identity(f=stk.VP()).values != identity.Identity(f=stk.SubVP()).values
        assert identity._name(type("Energy", (), {"__module__": "torch.nn"})) == "torch.nn.Energy"
        assert identity._name(stk.Energy) == "scoretk.Energy"
        assert (
            identity._name(type("Inner", (), {"__module__": "scoretkit.fields"}))
            == "scoretkit.fields.Inner"
        )

    def test_no_two_classes_of_what_fields_and_solvers_are_made_of_share_a_name(self):
        """Of tuples the numbers are what counts, and of protocols there are no objects."""
        rooms = ("fields", "ode", "solvers", "run", "models")
        root = Path(stk.__file__).parent
        trees = [
            ast.parse(file.read_text()) for room in rooms for file in (root / room).rglob("*.py")
        ]
        kinds = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
        names = [
            kind.name
            for kind in kinds
            if not {"NamedTuple", "Protocol"} & {*map(ast.unparse, kind.bases)}
        ]
        assert not {name for name, times in collections.Counter(names).items() if times > 1}
        assert {"Energy", "HMC", "GaussianMixture", "StaticPosterior"} <= {*names}


class TestTheSecondNet:
    def test_answers_are_compared_where_nothing_else_differs(self, tmp_path):
        first = sampled(hidden(1.0), tmp_path / "c")
        assert torch.equal(sampled(hidden(1.0), tmp_path / "c").x, first.x)
        with pytest.raises(
            stk.CheckpointError, match=r"score at the saved state: .* there, .* here"
        ):
            sampled(hidden(2.0), tmp_path / "c")

    @pytest.mark.parametrize(
        "solver",
        [stk.MALA(0.1), stk.HMC(leapfrogs=2), stk.ParallelTempering(stk.MALA(0.1), replicas=2)],
    )
    def test_with_every_kind_of_state(self, tmp_path, solver):
        sampled(hidden(1.0), tmp_path / "c", solver, warmup=10)
        with pytest.raises(stk.CheckpointError, match="at the saved state"):
            sampled(hidden(1.01), tmp_path / "c", solver, warmup=10)

    def test_a_timed_field_with_conditions(self, tmp_path):
        def field(scale):
            box = threading.local()
            box.scale = scale
            return stk.Diffusion(
                lambda x, t, c: 0.5 * x * c[:, None] * box.scale, (2,), predicts="data"
            )

        cond = {"c": torch.tensor([1.0, 2.0, 3.0])}
        first = sampled(field(1.0), tmp_path / "c", cond=cond)
        assert torch.equal(sampled(field(1.0), tmp_path / "c", cond=cond).final, first.final)
        with pytest.raises(stk.CheckpointError, match="denoise at the saved state"):
            sampled(field(0.9), tmp_path / "c", cond=cond)

    def test_rounding_is_no_difference(self, tmp_path):
        first = sampled(hidden(1.0), tmp_path / "c")
        assert torch.equal(sampled(hidden(1.0 + 1e-6), tmp_path / "c").x, first.x)

    def test_without_it_another_models_draws_come_back(self, tmp_path, monkeypatch):
        """The mutant: the net is off."""
        monkeypatch.setattr(runs, "contradiction", lambda *_: None)
        first = sampled(hidden(1.0), tmp_path / "c")
        assert torch.equal(sampled(hidden(25.0), tmp_path / "c").x, first.x)

    def test_a_model_that_fails_takes_nothing_with_it(self, tmp_path):
        left = [9]

        def fn(x):
            left[0] -= 1
            if left[0] < 0:
                raise ValueError("out of order")
            return squares(x)

        with pytest.raises(ValueError, match="out of order"):
            sampled(energy(fn), tmp_path / "c", steps=50)
        left[0] = 1000
        assert torch.equal(
            sampled(energy(fn), tmp_path / "c", steps=50).x,
            sampled(energy(squares), tmp_path / "d", steps=50).x,
        )


class TestMutants:
    """An identity that leaves something out lets another model pass; the second net is asked to look away."""

    @pytest.mark.filterwarnings(*TORCHS_OWN)
    @pytest.mark.parametrize(
        ("place", "name", "mutant", "case"),
        [
            (identity, "_constant", lambda value: "constant", "constant of another type"),
            (identity, "_of_array", lambda array: "array", "closure over an array"),
            (identity, "tensor_value", lambda tensor: "tensor", "tensor of torch.int64"),
            (identity, "_content", lambda item: "", "order of a dict"),
            (anatomy, "_seen_by", lambda names, value: None, "global"),
            (anatomy, "_within", lambda *_: False, None),
            (anatomy, "_is_followed", lambda *_: False, "number put into torch"),
            (identity, "_held_constants", lambda graph: [], "traced"),
        ],
        ids=lambda v: v if isinstance(v, str) else "",
    )
    def test_it_would_be_seen(self, monkeypatch, place, name, mutant, case):
        if case is None:
            return
        make, one, other = CASES[case]

        def same():
            return not identity.differences(
                *(identity.Identity(field=make(v)).summary() for v in (one, other))
            )

        assert not same()
        monkeypatch.setattr(place, name, mutant)
        if name == "_constant":
            monkeypatch.setattr(
                identity,
                "_of_code",
                lambda code: identity._digest(repr(identity._code(code)).encode()),
            )
        assert same()


@pytest.mark.thorough
def test_a_summary_is_bounded_and_covers_all():
    many = {f"name {i}": [float(i), {"deep": torch.tensor(float(i))}] for i in range(3000)}
    one = identity.Identity(field=many).summary()
    assert len(json.dumps(one)) < 100_000
    many["name 2999"][1]["deep"] = torch.tensor(0.5)
    other = identity.Identity(field=many).summary()
    assert one["digest"] != other["digest"]
    assert identity.differences(one, other)


def test_a_part_that_changes_takes_what_lies_within_it_along_and_nothing_that_is_named_like_it():
    inside = ["field.net", "field.net.weight", "field.net[0]", "field.net(x)"]
    beside = ["field.net2", "field.network.weight", "field.ne", "field", "fields.net"]
    for way in inside + beside:
        assert identity.is_among(way, ["solver", "field.net*"]) is (way in inside)
        assert identity.is_among(way, ["solver", "field.net"]) is (way == "field.net")


IN_A_PROCESS = """
import sys, torch, scoretk as stk
base = stk.from_distribution(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)))
field = stk.Energy(lambda x: x.square().sum(1), (2,))
stk.sample(field, stk.AIS(levels=4, base=base), chains=4, checkpoint=sys.argv[1])
"""


@pytest.mark.thorough
def test_a_checkpoint_is_taken_up_whatever_order_a_process_has_sets_in(tmp_path):
    # the order of a set of strings depends on the seed of their hashes, another one in each process
    (tmp_path / "run.py").write_text(IN_A_PROCESS)
    for seed in "123":
        subprocess.run(
            [sys.executable, tmp_path / "run.py", tmp_path / "saved"],
            env=environment(PYTHONHASHSEED=seed),
            check=True,
            timeout=120,
        )


def test_ranks_are_no_part_of_a_field():
    """Each has its own, and asks it for its device; what else a field makes of it, its answers show."""

    def made(ranks):
        return Identity(field=lambda x: x.to(ranks.device).square().sum(1)).summary()

    here, there = stk.Ranks(0, 2), stk.Ranks(1, 2, torch.device("cuda", 1))
    assert made(here) == made(there)
    assert made(here) != made("cpu")


def test_weights_are_read_once(monkeypatch):
    """And again when they have changed: in place, by way of `.data`, or of memory that numpy has too."""
    read = []
    monkeypatch.setattr(identity, "tensor_value", lambda t: read.append(len(t)) or tensor_value(t))
    weights = [torch.zeros(1 << 14), torch.zeros(1 << 15, dtype=torch.int32)]
    field = stk.Energy(lambda x: (x + weights[0].sum() + weights[1].sum()).sum(1), (3,))

    def made():
        read.clear()
        return Identity(field=field).summary()["digest"]

    seen = {made()}
    assert sorted(read) == [1 << 14, 1 << 15]
    assert made() in seen
    assert weights_digest(weights) == weights_digest(weights)
    assert read == []
    for change in (
        lambda: weights[0].add_(1),
        lambda: weights[0].data.mul_(2),
        lambda: weights[1].numpy().__setitem__(7, 1),
        lambda: weights[0].detach()[:2].copy_(torch.tensor([5.0, 6.0])),
        lambda: weights[0].data[:2].copy_(torch.tensor([6.0, 5.0])),
    ):
        change()
        seen.add(made())
        assert len(read) == 1
    assert len(seen) == 6
    weights[0] = torch.full((1 << 14,), 3.0)
    assert made() not in seen


def test_the_number_of_a_device_is_no_part_of_a_field():
    """Ranks that share a run have the same field, each on its own GPU; a field on the CPU is another."""

    def made(place):
        device = torch.device(place)
        return Identity(field=lambda x: x.to(device).square().sum(1)).summary()

    assert made("cuda:0") == made("cuda:1") == made("cuda")
    assert made("cuda:0") != made("cpu")


def test_summaries_differ_in_something_where_they_are_not_equal():
    """Be it told by name, or by the digest of the whole alone."""
    parts = {"field.scale": "1.0", "field.net": "module"}
    summaries = [
        {"digest": digest, "parts": some}
        for digest in "ab"
        for some in ({}, parts, parts | {"field.scale": "2.0"}, {f"p{i}": str(i) for i in range(9)})
    ]
    for one, other in itertools.product(summaries, summaries):
        assert bool(identity.differences(one, other)) is (one != other)


FEW_NUMBERS = {
    "truth values": (bool, [True, False], "True"),
    "whole numbers": (np.int16, [3, -4], "-4"),
    "counts": (np.uint8, [3, 200], "200"),
    "numbers": (np.float64, [0.25, -1.5], "-1.5"),
    "narrow numbers": (np.float16, [0.25, -1.5], "-1.5"),
    "complex numbers": (np.complex64, [1j, 2.0], "1j"),
}


@pytest.mark.parametrize("size", [1, 2, identity.FEW, identity.FEW + 1])
@pytest.mark.parametrize("kind", FEW_NUMBERS)
@pytest.mark.parametrize(
    "make", [np.asarray, torch.as_tensor, Lent], ids=["numpy", "torch", "lent"]
)
def test_few_numbers_are_shown_and_many_are_told_by_their_digest(make, kind, size):
    """Of arrays and tensors of every type, so that an error can say in what they differ."""
    dtype, some, said = FEW_NUMBERS[kind]
    values = np.resize(np.asarray(some, dtype), size)
    told = identity._value(make(values))
    assert told == identity._value(make(values.copy()))
    assert told != identity._value(make(~values if dtype is bool else values + dtype(1)))
    numbers = told.partition("[")[2].partition("]")[0]
    assert numbers.count(",") == (size - 1 if size <= identity.FEW else 0)
    assert (said in numbers) is (2 <= size <= identity.FEW or (size == 1 and str(some[0]) == said))


@pytest.mark.parametrize("error", [RuntimeError, TypeError, ValueError, NotImplementedError, Gone])
def test_an_array_whose_numbers_cannot_be_read_is_told_by_its_form(error):
    told = [identity._value(Lent(np.zeros(n, np.float32), error)) for n in (2, 2, 3)]
    assert told[0] == told[1] != told[2]
    assert told[0] == "array float32 (2,) without numbers that can be read"


class OfItsOwn(datetime.date):
    """Without attributes, and with a way of its own to be made again."""

    __slots__ = ()

    def __reduce__(self):
        return OfItsOwn, (self.year, self.month, self.day)


ALONE = {name: case for name, case in CASES.items() if name != "exported"} | {
    "format of a view of memory": (
        lambda v: energy(lambda x: squares(x) * v[0]),
        memoryview(b"ab"),
        memoryview(b"ab").cast("b"),
    ),
    "shape of a view of memory": (
        lambda v: energy(lambda x: squares(x) * v[0]),
        memoryview(b"abcd"),
        memoryview(b"abcd").cast("B", (2, 2)),
    ),
    "what is made again in a way of its own": (
        lambda v: energy(lambda x: squares(x) * v.day),
        OfItsOwn(2000, 1, 1),
        OfItsOwn(2000, 1, 2),
    ),
    "which object is met again": (
        lambda v: energy(
            lambda x, some=(lambda a, b: [a, b, (a, b)[v]])([1.0, [2]], [3.0, [4]]): squares(x)
        ),
        0,
        1,
    ),
}


@pytest.mark.parametrize("case", ALONE)
@pytest.mark.filterwarnings(*TORCHS_OWN)
def test_the_identity_alone_tells_models_apart(case):
    """Without the answers that a checkpoint compares as well, and that would hide what it misses."""
    make, one, other = ALONE[case]
    told = [Identity(field=make(value)).summary() for value in (one, one, other)]
    assert told[0] == told[1] != told[2]
    assert identity.differences(told[0], told[2])


def of_hooks(register):
    def made(some):
        net = Net()
        for item in some:
            getattr(net, register)(lambda *_, item=item: None)
        return net

    return made


def of_register(register):
    def made(some):
        net = torch.nn.Module()
        for name, item in zip("abc", some, strict=True):
            getattr(net, register)(name, item)
        return net

    return made


def own_class(**names):
    return type("Own", (), {"__module__": "elsewhere"} | names)


def of_slots(some):
    made = own_class(__slots__=("a", "b", "c"))()
    for name, item in zip("abc", some, strict=True):
        setattr(made, name, item)
    return made


def of_cells(some):
    a, b, c = some
    return lambda: (a, b, c)


def of_names(some):
    return code(
        "def f(): return a, [b for _ in 'x'], (lambda: c)", **dict(zip("abc", some, strict=True))
    )


def of_function(some):
    def made():
        pass

    made.a, made.b, made.c = some
    return made


def of_module(some):
    module = types.ModuleType("elsewhere_in_a_test")
    module.a, module.b, module.c = some
    return code("def f(): return m.a, m.b, getattr(m, 'c')", m=module)


def of_metaclass(some):
    a, b, c = some
    meta = type("Meta", (type,), {"__module__": "elsewhere", "a": a})
    return meta("Model", (own_class(b=b),), {"__module__": "elsewhere", "c": c})()


def of_array_of_objects(some):
    made = np.empty(3, dtype=object)
    for i, item in enumerate(some):
        made[i] = item
    return made


PLACES = {
    "list": list,
    "tuple": tuple,
    "deque": collections.deque,
    "list of one's own": Numbers,
    "values": lambda some: dict(enumerate(some)),
    "keys": lambda some: dict.fromkeys(some, 0),
    "keys and values": lambda some: {some[0]: some[1], "c": some[2]},
    "dictionary of one's own": lambda some: Options(zip("abc", some, strict=True)),
    "default of a dictionary": lambda some: collections.defaultdict(of_cells(some)),
    "view of a dictionary": lambda some: types.MappingProxyType(dict(enumerate(some))),
    "ordered": lambda some: collections.OrderedDict(enumerate(some)),
    "namespace": lambda some: types.SimpleNamespace(**dict(zip("abc", some, strict=True))),
    "slots": of_slots,
    "arguments": lambda some: functools.partial(max, *some),
    "keywords": lambda some: functools.partial(max, **dict(zip("abc", some, strict=True))),
    "function of a partial": lambda some: functools.partial(of_cells(some)),
    "method": lambda some: types.MethodType(lambda _: None, list(some)),
    "cells": of_cells,
    "defaults": lambda some: code("def f(x=s[0], y=s[1], z=s[2]): pass", s=some),
    "keyword defaults": lambda some: code("def f(*, x=s[0], y=s[1], z=s[2]): pass", s=some),
    "names": of_names,
    "attributes of a function": of_function,
    "module": of_module,
    "attributes of a class": lambda some: own_class(**dict(zip("abc", some, strict=True)))(),
    "bases": lambda some: type("Own", tuple(own_class(held=s) for s in some), {})(),
    "metaclass": of_metaclass,
    "array of objects": of_array_of_objects,
    "parameters": of_register("register_parameter"),
    "buffers": of_register("register_buffer"),
    "modules": lambda some: torch.nn.ModuleList(
        of_register("register_parameter")([s] * 3) for s in some
    ),
    "iterator": iter,
    "sets": lambda some: own_class(a={some[0]}, b=frozenset(some[1:]))(),
    "forward hooks": of_hooks("register_forward_hook"),
    "hooks before": of_hooks("register_forward_pre_hook"),
    "backward hooks": of_hooks("register_full_backward_hook"),
    "backward hooks before": of_hooks("register_full_backward_pre_hook"),
}


@pytest.mark.parametrize("place", PLACES)
def test_all_that_an_object_holds_is_followed_each_alone(place):
    """The first of several, the last and those between."""
    some = [torch.nn.Parameter(torch.full((2,), float(i))) for i in range(3)]
    found = {*map(anatomy.key_of, anatomy.walk(PLACES[place](some)))}
    assert {*map(id, some)} <= found

    def told(values):
        return Identity(field=PLACES[place](values)).summary()["digest"]

    assert told(some) == told([torch.nn.Parameter(s.detach().clone()) for s in some])
    for i in range(3):
        other = [torch.nn.Parameter(s + 0.5) if k == i else s for k, s in enumerate(some)]
        assert told(other) != told(some)


@pytest.mark.parametrize("entries", [1, 4, 5, 6, 7, 30])
def test_each_entry_of_a_summary_is_told_beside_its_digest(monkeypatch, entries):
    """Whether it is kept by name or summed with others; of bounded size."""
    monkeypatch.setattr(identity, "KEPT", 5)

    def parts_of(changed=None):
        made = Identity()
        made.values = {f"field.{i}.scale": str(i + (i == changed) / 2) for i in range(entries)}
        return made.summary()["parts"]

    assert len(parts_of()) == min(entries, 10)
    for i in range(min(entries, 10)):
        assert parts_of(i) != parts_of()


def test_what_is_ones_own_is_told_by_what_it_does_and_not_by_its_names():
    """A class, an object or a function that is defined in another module, or under another name."""

    def told(module, name):
        def call(self, x):
            return x * 2

        function = types.FunctionType(call.__code__, {"__name__": module}, name)
        kind = type(name, (), {"__module__": module, "__qualname__": name, "call": function})
        return [Identity(of=item).summary()["digest"] for item in (function, kind, kind())]

    assert told("elsewhere", "Model") == told("elsewhere.moved", "Model") == told("__main__", "Net")


HOLDING = {
    "a list": lambda v: [v],
    "a tuple": lambda v: (v,),
    "a dict": lambda v: {"k": v},
    "a key of a dict": lambda v: {v: 1},
    "a set": lambda v: {v},
    "a frozen set": lambda v: frozenset([v]),
    "a deque": lambda v: collections.deque([v]),
    "a namespace": lambda v: types.SimpleNamespace(k=v),
    "a view of a dict": lambda v: types.MappingProxyType({"k": v}),
    "a dict in order": lambda v: collections.OrderedDict(k=v),
    "a dict with a default": lambda v: collections.defaultdict(list, k=v),
    "a counter": lambda v: collections.ChainMap({"k": v}),
    "an array of objects": lambda v: object_array([v]),
    "an array of many objects": lambda v: object_array([v] * 40),
    "an array of arrays": lambda v: object_array([object_array([v]), 1]),
    "a partial": lambda v: functools.partial(squares, v),
    "a keyword of a partial": lambda v: functools.partial(squares, k=v),
    "a list in a list": lambda v: [[1, [v]]],
}
"""What may hold a plain value, of a model's own."""
PLAIN_PAIRS = (
    (1, 2),
    (1, 1.0),
    (1, True),
    (0, None),
    ("a", "b"),
    ("a", b"a"),
    (1.5, 1.5 + 1e-12),
    (2j, 3j),
    ((1, 2), (1, 3)),
    (0.0, -0.0),
)


def object_array(values):
    found = np.empty(len(values), object)
    for i, value in enumerate(values):
        found[i] = value
    return found


@pytest.mark.parametrize("where", HOLDING)
def test_plain_values_are_told_apart_whatever_holds_them(where):
    for pair in PLAIN_PAIRS:
        told = [
            Identity(field=energy(lambda x, own=HOLDING[where](value): squares(x))).summary()
            for value in (*pair, pair[0])
        ]
        assert told[0] == told[2] != told[1], pair
