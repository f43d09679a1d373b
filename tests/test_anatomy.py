"""The walk over what a field is made of: wherever a network hides it is found, held in eval mode and left as found."""

# ruff: noqa: B008, PLW0108 (defaults and calls behind which a network hides are what is tested)
import collections
import contextlib
import contextvars
import functools
import operator
import pickle
import statistics
import sys
import time
import types
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.core import anatomy, modules

TABLE = torch.linspace(0.9999, 0.01, 50, dtype=torch.float64)


def network(dtype=torch.float32):
    net = torch.nn.Sequential(
        torch.nn.utils.skip_init(torch.nn.Linear, 2, 2), torch.nn.Dropout(0.5)
    ).to(dtype)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.5, -0.3], [0.2, 0.7]]))
        net[0].bias.fill_(0.1)
    return net


class Slotted:
    __slots__ = ("__hidden", "empty", "net")

    def __init__(self, net):
        self.net = self.__hidden = net

    def __call__(self, x):
        return self.__hidden(x)


class Slots(Slotted):
    __slots__ = ("more",)


class Unregistered(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.parts = [{"net": (net,)}]

    def forward(self, x):
        return self.parts[0]["net"][0](x)


@dataclass(frozen=True)
class Holder:
    net: object

    def __call__(self, x):
        return self.net(x)

    def method(self, x):
        return self.net(x)


class Mapped(collections.UserDict):
    def __call__(self, x):
        return self.data["net"](x)


def of_class(net):
    class Model:
        unet = net

        @classmethod
        def run(cls, x):
            return cls.unet(x)

        def __call__(self, x):
            return self.run(x)

    return Model()


def of_property(net):
    class Model:
        @property
        def unet(self):
            return net

        def __call__(self, x):
            return self.unet(x)

    return Model()


def of_module(net):
    helpers = types.ModuleType("helpers_of_a_test")
    helpers.inner = types.ModuleType("helpers_of_a_test.inner")
    helpers.inner.net = net
    return lambda x: helpers.inner.net(x)


def of_import(net):
    sys.modules["imported_by_a_test"] = module = types.ModuleType("imported_by_a_test")
    module.net = net

    def call(x):
        import imported_by_a_test

        return imported_by_a_test.net(x)

    return call


def of_globals(net):
    names = {"net": net, "__name__": "elsewhere"}
    exec("def inner(x): return [net(y) for y in [x]][0]\ndef call(x): return inner(x)", names)
    return names["call"]


def of_default(net):
    return lambda x, net=net: net(x)


def of_keyword_default(net):
    def call(x, *, net=net):
        return net(x)

    return call


def wrapped(net):
    @functools.wraps(torch.nn.functional.relu)
    def call(x):
        return net(x)

    return call


def remembered(net):
    @functools.lru_cache(maxsize=1)
    def get():
        return net

    return lambda x: get()(x)


def in_a_cell_that_is_empty_too(net):
    def call(x):
        return net(x) if net is not None else never(x)

    if net is None:
        never = 1
    return call


class _Cyclic:
    def __init__(self, net):
        self.net, self.me = net, [self]

    def __call__(self, x):
        return self.me[0].net(x)


def partial_method(net):
    class Model:
        def run(self, net, x):
            return net(x)

        go = functools.partialmethod(run, net)

        def __call__(self, x):
            return self.go(x)

    return Model()


def compiled(net):
    return torch.compile(net, backend="eager")


def hooked(net):
    outer = torch.nn.Identity()
    outer.register_forward_hook(lambda module, given, out: net(out))
    return outer


def deep(net):
    call = net
    for _ in range(3000):
        call = Holder(call)
    return lambda x: functools.reduce(lambda c, _: c.net, range(3000), call)(x)


HIDING = {
    "attribute": Holder,
    "a namespace": lambda n: functools.partial(
        lambda s, x: s.unet(x), types.SimpleNamespace(unet=n)
    ),
    "slots": Slotted,
    "inherited slots": Slots,
    "unregistered": Unregistered,
    "mapping": lambda n: Mapped(net=n),
    "class": of_class,
    "property": of_property,
    "module": of_module,
    "import": of_import,
    "globals": of_globals,
    "default": of_default,
    "keyword default": of_keyword_default,
    "wraps": wrapped,
    "lru_cache": remembered,
    "empty cell": in_a_cell_that_is_empty_too,
    "cycle": _Cyclic,
    "partialmethod": partial_method,
    "bound method": lambda n: Holder(n).method,
    "call": lambda n: n.__call__,
    "builtin method": lambda n: lambda x, get={"net": n}.get: get("net")(x),
    "deque": lambda n: lambda x, q=collections.deque([n]): q[0](x),
    "key": lambda n: lambda x, d={n: 1}: next(iter(d))(x),
    "set": lambda n: lambda x, s=frozenset([n]): next(iter(s))(x),
    "weakref": lambda n: lambda x, keep=[weakref.ref(n)]: keep[0]()(x),
    "proxy": lambda n: lambda x, p=weakref.proxy(n): p(x),
    "decorator": lambda n: torch.enable_grad()(lambda x: n(x)),
    "vmap": lambda n: torch.func.vmap(lambda x: n(x), randomness="same"),
    "compiled": compiled,
    "hook": hooked,
    "array of objects": lambda n: lambda x, a=np.array([n, None], dtype=object)[:1]: a[0](x),
    "attrgetter": lambda n: functools.partial(
        lambda g, o, x: g(o)(x), operator.attrgetter("net"), Holder(n)
    ),
    "deep": deep,
}


def energy_of(call):
    return stk.Energy(lambda x: call(x).square().sum(1) + x.square().sum(1), (2,))


def draws_of(field):
    return stk.sample(field, stk.ULA(0.01), chains=4, steps=3, seed=1).x


@pytest.mark.parametrize(
    "hiding",
    [pytest.param(h, marks=pytest.mark.compiled) if h == "compiled" else h for h in HIDING],
)
def test_a_network_is_held_in_eval_mode_wherever_it_is(hiding):
    net = network()
    field = energy_of(HIDING[hiding](net))
    assert torch.equal(draws_of(field), draws_of(field))
    assert all(m.training for m in net.modules())
    assert all(p.requires_grad for p in net.parameters())


def of_network(net):
    return set(map(anatomy.key_of, anatomy.walk(net)))


WRAPPED = {"compiled": compiled, "referred to": weakref.ref, "stood for": weakref.proxy}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_wraps_a_network_is_made_of_that_alone(name):
    """Not of what the wrapper remembers of a process, so that a checkpoint is taken up by another."""
    net = network()
    outer = WRAPPED[name](net)
    assert of_network(outer) - {anatomy.key_of(outer)} == of_network(net)


CORRECTED = stk.ReverseSDE("ancestral", 3, corrector=1)
"""A solver in time for all fields: without corrections powers and products are refused."""
TOO_FEW = pytest.mark.filterwarnings("ignore:ReverseSDE. with 1 corrections")
"""For tests of what a run is made of: one correction is too few for the law of a power or a product."""


@TOO_FEW
def test_the_issues_pipeline_behind_nested_fields():
    net = network()
    pipe = types.SimpleNamespace(unet=net)
    f = stk.from_timesteps(lambda x, k: pipe.unet(x), TABLE, (2,))
    field = stk.product(f, stk.tempered(stk.product(f, f), 2.0))

    def ends():
        return stk.sample(field, CORRECTED, chains=3).final

    assert torch.equal(ends(), ends())
    assert net.training


class TestMutants:
    """Walks that stop where they must not."""

    def found(self, monkeypatch, name, mutant, hiding):
        for module in (anatomy, modules):
            monkeypatch.setattr(module, name, mutant, raising=module is anatomy)
        net = network()
        return net in modules.modules_of(energy_of(HIDING[hiding](net)))

    def test_a_walk_of_six_layers_misses_what_is_deep(self, monkeypatch):
        def six(value):
            found, layer = [], [value]
            for _ in range(6):
                found, layer = (
                    found + layer,
                    [part for item in layer for _, part in anatomy.parts(item)],
                )
            return found

        assert self.found(monkeypatch, "walk", six, "attribute")
        assert not self.found(monkeypatch, "walk", six, "deep")

    def test_a_walk_without_slots_misses_them(self, monkeypatch):
        monkeypatch.setattr(anatomy, "_SPLITTERS", weakref.WeakKeyDictionary())
        monkeypatch.setattr(anatomy, "_pickled", lambda value: [])
        assert not self.found(monkeypatch, "_slots", lambda kind: (), "slots")

    def test_a_walk_that_takes_no_names_from_code_misses_globals_and_modules(self, monkeypatch):
        none = anatomy.Names((), (), frozenset())
        for hiding in ("globals", "module", "import"):
            assert not self.found(monkeypatch, "names_in", lambda code: none, hiding)

    def test_a_walk_that_remembers_its_findings_misses_what_is_bound_anew(self, monkeypatch):
        monkeypatch.setattr(modules, "walk", functools.cache(anatomy.walk))
        holder, new = types.SimpleNamespace(net=network()), network()
        field = energy_of(lambda x: holder.net(x))
        modules.modules_of(field)
        holder.net = new
        assert new not in modules.modules_of(field)


def test_what_is_bound_anew_is_found():
    holder, new = types.SimpleNamespace(net=network()), network()
    field = energy_of(lambda x: holder.net(x))
    draws_of(field)
    holder.net = new
    assert torch.equal(draws_of(field), draws_of(field))


def test_modes_are_left_as_found_when_the_model_fails():
    net = network()
    net[1].eval()
    net[0].weight.requires_grad_(False)

    def energy(x):
        assert not net.training
        raise ValueError("the model's own")

    with pytest.raises(ValueError, match="own"):
        draws_of(stk.Energy(lambda x: energy(net(x)), (2,)))
    assert net.training
    assert net[0].training
    assert not net[1].training
    assert [p.requires_grad for p in net.parameters()] == [False, True]


SEEN = {
    "a tensor": torch.ones(2),
    "a parameter": torch.nn.Parameter(torch.ones(2)),
    "a module": torch.nn.Identity(),
    "an array": np.ones(2),
}


@pytest.mark.parametrize("inside", [False, True], ids=["by the user's code", "by its own code"])
@pytest.mark.parametrize("kind", SEEN)
def test_data_of_an_installed_package_is_followed_whoever_names_it(kind, inside, monkeypatch):
    package = types.ModuleType("installed_for_a_test")
    package.__file__ = "/site-packages/installed_for_a_test.py"
    package.item, package.number = SEEN[kind], 2.5
    exec("def inner(): return item, number", vars(package))
    monkeypatch.setitem(sys.modules, package.__name__, package)

    names = {"package": package, "__name__": "elsewhere"}
    called = "package.inner()" if inside else "package.item, package.number"
    exec(f"def outer(): return {called}", names)
    found = anatomy.walk(names["outer"])
    assert any(part is package.item for part in found)
    reached = [part for item in found for _, part in anatomy.parts(item)]
    assert any(part is package.number for part in reached)


def test_each_object_is_seen_once_and_cycles_end():
    loop: list = []
    loop.append({"loop": loop, "again": loop})
    found = anatomy.walk(loop)
    assert len({id(item) for item in found}) == len(found) == 2


def test_code_of_torch_and_the_standard_library_is_not_walked_into():
    found = anatomy.walk(
        stk.Energy(lambda x: torch.nn.functional.softplus(x).sum(1) + collections.Counter(), (2,))
    )
    assert not any(
        isinstance(item, types.ModuleType) or getattr(item, "__module__", "") == "collections.abc"
        for item in found
    )
    assert len(found) < 12


FLOAT64 = torch.eye(2, dtype=torch.float64)


class WithBuffer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 2)
        self.register_buffer("betas", TABLE.clone())

    def forward(self, x, t=None):
        return self.net(x)


DTYPES = {
    "a plain function on timesteps": (
        stk.from_timesteps(lambda x, k: x, TABLE, (2,)),
        torch.float32,
    ),
    "that reads the table": (
        stk.from_timesteps(lambda x, k: x * TABLE[k].sqrt()[:, None], TABLE, (2,)),
        torch.float32,
    ),
    "as a numpy array": (stk.from_timesteps(lambda x, k: x, TABLE.numpy(), (2,)), torch.float32),
    "behind a product": (
        stk.tempered(stk.from_timesteps(lambda x, k: x, TABLE, (2,)), 2.0),
        torch.float32,
    ),
    "a float64 buffer beside float32 parameters": (energy_of(WithBuffer()), torch.float32),
    "a float64 table beside a float32 network": (
        stk.from_timesteps(WithBuffer(), TABLE, (2,)),
        torch.float32,
    ),
    "a float64 network": (energy_of(HIDING["slots"](network(torch.float64))), torch.float64),
    "a float64 network on timesteps": (
        stk.from_timesteps(lambda x, k, n=network(torch.float64): n(x), TABLE, (2,)),
        torch.float64,
    ),
    "a low precision beside a float64 buffer": (
        energy_of(
            lambda x, n=network(torch.bfloat16): n(x.bfloat16()).to(x.dtype) + 0 * TABLE[:1].float()
        ),
        torch.float32,
    ),
    "a closure over a float64 matrix": (
        stk.Energy(lambda x: (x @ FLOAT64 * x).sum(1), (2,)),
        torch.float64,
    ),
    "an attribute two objects deep": (
        energy_of(Holder(Holder(lambda x, a=FLOAT64: x @ a))),
        torch.float64,
    ),
    "a float64 numpy array": (
        energy_of(lambda x, a=np.eye(2): x @ torch.as_tensor(a).to(x)),
        torch.float32,
    ),
}


@TOO_FEW
@pytest.mark.parametrize("case", DTYPES)
def test_the_dtype_of_the_state(case):
    field, dtype = DTYPES[case]
    solver = CORRECTED if hasattr(field, "at") else stk.ULA(0.01)
    more = {} if hasattr(field, "at") else {"steps": 2}
    assert stk.sample(field, solver, chains=2, **more).final.dtype is dtype


def test_a_schedule_that_counts_as_a_hint_would_be_seen(monkeypatch):
    monkeypatch.setattr(modules, "_steers", lambda item: False)
    for case in ("a plain function on timesteps", "that reads the table", "behind a product"):
        assert modules.state_like(DTYPES[case][0])[0].dtype is torch.float64


def best_of(call, times):
    spent = []
    for _ in range(times):
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
    return min(spent)


def test_a_plain_energy_is_walked_in_less_than_a_fifth_of_a_millisecond():
    field = stk.Energy(lambda x: (x**2).sum(1) / 2, (2,))

    def held():
        with modules.left_as_found(field):
            modules.state_like(field)

    held()
    assert best_of(lambda: [held() for _ in range(20)], 5) / 20 < 2e-4


@pytest.mark.thorough
def test_a_large_pipeline_costs_little_beside_one_evaluation_of_it():
    blocks = [torch.nn.Sequential(*network()[:1], torch.nn.SiLU()) for _ in range(500)]
    net = torch.nn.Sequential(*blocks)
    field, x = stk.Energy(lambda x: net(x).sum(1), (2,)), torch.zeros(1, 2)
    walked = best_of(lambda: anatomy.walk(field), 5)
    assert walked < 3 * best_of(lambda: field.score(x), 5)


class Tiny(torch.nn.Module):
    def forward(self, x, t):
        return x * 0.5


SIGMAS, STEPS = stk.from_sigmas(Tiny(), (2,)), stk.from_timesteps(Tiny(), TABLE, (2,))
ADAPTED = [
    STEPS,
    stk.from_timesteps(Tiny(), TABLE, (2,), integer=False),
    SIGMAS,
    stk.from_sigmas(Tiny(), (2,), stk.VE()),
    stk.from_reversed_time(Tiny(), (2,)),
    stk.from_reversed_time(Tiny(), (2,), stk.VP(), "noise"),
    stk.product(SIGMAS, SIGMAS),
    stk.tempered(STEPS, 2.0),
    stk.guided(SIGMAS, 2.0, stk.from_sigmas(Tiny(), (2,))),
]


@TOO_FEW
@pytest.mark.parametrize("field", ADAPTED)
def test_adapted_fields_go_through_pickle(field):
    again = pickle.loads(pickle.dumps(field))
    solver = CORRECTED
    assert torch.equal(
        stk.sample(again, solver, chains=3).final, stk.sample(field, solver, chains=3).final
    )


STANDARD = Path(statistics.__file__)
WHOSE = {
    "torch": ("torch", "/anywhere/torch/__init__.py", "known"),
    "of the standard library": ("statistics", str(STANDARD), "known"),
    "a folder of the standard library": ("email", str(STANDARD.parent / "email/a.py"), "known"),
    "built in": ("itertools", None, "known"),
    "one's own": ("model", "/home/me/model.py", "own"),
    "one's own of a standard name": ("statistics", "/home/me/statistics.py", "own"),
    "one's own beside the standard library": ("model", str(STANDARD.parent / "model.py"), "own"),
    "of no file": ("model", None, "own"),
    "installed": ("model", "/lib/site-packages/model/__init__.py", "installed"),
    "installed by the system": ("model", "/lib/dist-packages/model.py", "installed"),
    "installed under a standard name": (
        "statistics",
        "/lib/site-packages/statistics.py",
        "installed",
    ),
    "an installed program": ("__main__", "/lib/site-packages/runner/__main__.py", "own"),
}


@pytest.mark.parametrize("case", WHOSE)
def test_whose_code_it_is_is_told_by_its_name_and_its_file(case):
    """A file of one's own that bears the name of a module of the standard library is one's own."""
    top, file, whose = WHOSE[case]
    assert anatomy._whose_package(top, file) == whose


class Fixed(torch.nn.Module):
    """Its mode is not to be asked for, as of what `torch.export` has made."""

    def __init__(self, *inner):
        super().__init__()
        self.inner = torch.nn.ModuleList(inner)

    def train(self, mode=True):
        raise NotImplementedError(f"train({mode}) is not supported")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("wrap", [lambda net: net, Holder, lambda net: [net]])
@pytest.mark.parametrize("modes", ["111", "101", "110", "000", "011"])
def test_what_is_asked_of_modules_leaves_each_in_its_own_mode(modes, wrap, fails):
    """Whatever `train` and `eval` of theirs do; nothing but `training` is written."""
    net = Fixed(torch.nn.Dropout(0.5), Fixed(torch.nn.BatchNorm1d(2)))
    inner = [net, net.inner[0], net.inner[1].inner[0]]
    for module, mode in zip(inner, modes, strict=True):
        module.training = mode == "1"
    seen = []

    def ask():
        seen.append([m.training for m in net.modules()])
        if fails:
            raise ValueError("the model's own")
        return 5

    for held in (lambda: modules.asked(ask, wrap(net)), lambda: _held(ask, wrap(net))):
        with pytest.raises(ValueError, match="own") if fails else contextlib.nullcontext():
            assert held() == 5
        assert not any(seen.pop())
        assert [m.training for m in inner] == [mode == "1" for mode in modes]


def _held(ask, taker):
    with modules.left_as_found(taker):
        return ask()


@pytest.mark.parametrize("place", ["cpu", "meta", "cuda:0", "cuda:1", "xpu:3", "mps:0"])
def test_places_of_tensors_are_told_apart_by_their_number(place):
    """A network on the second GPU is not where a state on the first one is."""
    others = {"cpu", "meta", "cuda:0", "cuda:1", "xpu:3", "mps:0"} - {place}
    told = modules._place_of(torch.device(place))
    assert told == place
    assert told not in {modules._place_of(torch.device(other)) for other in others}


def test_what_is_empty_has_no_parts():
    """A variable without a value here, a cell that is not filled yet, slots that nothing is in."""
    empty = (
        contextvars.ContextVar("empty"),
        types.CellType(),
        Slots.__new__(Slots),
        Holder.__new__(Holder),
    )
    for item in empty:
        assert [part for name, part in anatomy.parts(item) if name != ".__class__"] == []
    filled = contextvars.ContextVar("filled", default=TABLE), types.CellType(TABLE), Slots(TABLE)
    for item in filled:
        assert any(part is TABLE for _, part in anatomy.parts(item))


MENTIONS = {
    "an attribute": "SOME.{0}",
    "an attribute by its text": 'getattr(SOME, "{0}")',
    "a method": "SOME.{0}()",
    "a global name": "{0}",
    "a call": "{0}(1)",
}
NESTS = {
    "plain": "def f(x):\n    return {0}",
    "a function": "def f(x):\n    def g():\n        return {0}\n    return g()",
    "two functions": "def f(x):\n    def g():\n        return lambda: {0}\n    return g()()",
    "a lambda": "f = lambda x: (lambda: {0})()",
    "a comprehension": "def f(x):\n    return [{0} for _ in x]",
    "a generator": "def f(x):\n    return sum({0} for _ in x)",
    "a class": "def f(x):\n    class C:\n        y = {0}\n    return C",
    "a default": "def f(x):\n    def g(y=lambda: {0}):\n        return y()\n    return g()",
}


@pytest.mark.parametrize("nest", NESTS)
@pytest.mark.parametrize("mention", MENTIONS)
def test_what_code_names_is_found_however_deep_it_is_named(nest, mention):
    space = {}
    exec(compile(NESTS[nest].format(MENTIONS[mention].format("named")), "theirs.py", "exec"), space)
    found = anatomy.names_in(space["f"].__code__)
    place = found.globals if "SOME" not in MENTIONS[mention] else found.attributes
    assert "named" in place
    assert "unnamed" not in (*found.globals, *found.attributes)
    assert ("SOME" in found.globals) == ("SOME" in MENTIONS[mention])


class Slotted:
    """Three places, of which some may be empty."""

    __slots__ = ("a", "b", "c")


@pytest.mark.parametrize("filled", ["", "a", "b", "c", "ab", "bc", "ac", "abc"])
def test_each_slot_that_is_filled_is_a_part(filled):
    made = Slotted()
    for name in filled:
        setattr(made, name, [name])
    found = [part for part in anatomy.parts(made) if part[0] != ".__class__"]
    assert found == [(f".{name}", [name]) for name in filled]
