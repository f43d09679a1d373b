"""What a field is made of: one walk over its parts, to any depth, each object once.

A field is a graph of Python objects. Its *parts* are what its evaluation can reach: attributes
(`__dict__` and `__slots__`), the items and keys of containers, what a partial, a bound method or a
wrapper holds, a function's closure, defaults and code, the globals that the code names (of modules,
the attributes that it names), and an object's class with its methods and attributes. `walk` visits
them breadth first and without recursion: depth has no limit, and each object is known by the
shortest way to it.

The walk finds the networks that are held in eval mode, the device and dtype of the state
(`scoretk.core.modules`), and what tells one field from another (`scoretk.core.identity`).

Where it ends: code of torch, numpy, JAX, the standard library and this package is *known*. It is
identified by its name, and what it refers to is not followed; but what it holds (closures,
defaults, bound arguments, attributes) is the user's and is followed. An installed package is
followed within itself. What cannot be looked into (locks, files, handles of C libraries) has no
parts.

The walk keeps nothing it finds for the next one: attributes may be rebound, and to see that none
was takes as long as to walk again. It keeps only what cannot change: the names in a code object,
and how objects of a class are taken apart.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import sys
import sysconfig
import warnings
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import (
    AsyncGeneratorType,
    BuiltinFunctionType,
    CellType,
    ClassMethodDescriptorType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    GenericAlias,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    TracebackType,
    UnionType,
    WrapperDescriptorType,
)
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scoretk.core.ranks import Ranks

__all__ = [
    "ATOMS",
    "MANY",
    "PLAIN",
    "ModuleView",
    "Names",
    "is_array",
    "is_known",
    "key_of",
    "names_in",
    "parts",
    "walk",
]

PLAIN: frozenset[type] = frozenset({type(None), bool, int, float, complex, str, bytes, type(...)})
"""Types whose values are compared by value and have no parts."""

_DESCRIPTORS = (GetSetDescriptorType, MemberDescriptorType)
ATOMS: tuple[type, ...] = (
    *PLAIN,
    bytearray,
    range,
    slice,
    type(NotImplemented),
    torch.dtype,
    torch.device,
    torch.Size,
    torch.layout,
    torch.memory_format,
    torch.Generator,
    np.dtype,
    np.generic,
    np.ufunc,
    np.random.Generator,
    np.random.RandomState,
    Random,
    memoryview,
    CodeType,
    *_DESCRIPTORS,
    WrapperDescriptorType,
    MethodDescriptorType,
    ClassMethodDescriptorType,
    GenericAlias,
    UnionType,
    GeneratorType,
    CoroutineType,
    AsyncGeneratorType,
    FrameType,
    TracebackType,
    Ranks,
)
"""Types without parts, `PLAIN` among them."""

MANY = 256
"""Dictionaries of plain values with more entries than this have no parts: they count as a whole."""

Part = tuple[str, Any]
"""How a part is reached from its whole, much as in code (`.weight`, `[3]`), and the part."""

_PACKAGES = frozenset({"torch", "numpy", "functorch", "scoretk", "jax", "jaxlib"})
_HANDLES = frozenset(
    {
        "_asyncio",
        "_io",
        "_thread",
        "asyncio",
        "concurrent",
        "ctypes",
        "io",
        "logging",
        "mmap",
        "multiprocessing",
        "queue",
        "selectors",
        "socket",
        "subprocess",
        "tempfile",
        "threading",
        "unittest",
    }
)
"""Modules of the standard library whose objects belong to the process (files, locks, sockets)."""

_UNLOOKED = frozenset(
    {
        "__abstractmethods__",
        "__annotate__",
        "__annotate_func__",
        "__annotations__",
        "__annotations_cache__",
        "__classcell__",
        "__dataclass_fields__",
        "__dataclass_params__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__match_args__",
        "__module__",
        "__orig_bases__",
        "__parameters__",
        "__qualname__",
        "__slots__",
        "__static_attributes__",
        "__type_params__",
        "__weakref__",
        "_abc_impl",
    }
)
"""Entries in the namespace of a class that do not affect what its objects do."""

_REGISTERS = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_TORCHS = frozenset(nn.Module().__dict__)
"""The attributes that torch gives to each module: registers, hooks, `training`."""

_COMPILED = "_torchdynamo_orig_callable"
_STATED = ("__reduce_ex__", "__reduce__", "__getnewargs_ex__", "__getnewargs__")
"""Methods by which a class says what its objects are made of."""


class Names(NamedTuple):
    """What a code object, with those nested in it, refers to.

    Attributes:
        globals: The globals that it loads.
        imports: The modules that it imports.
        attributes: The names of attributes that it may ask for, those in strings (for `getattr`)
            among them.
    """

    globals: tuple[str, ...]
    imports: tuple[str, ...]
    attributes: frozenset[str]


_NOTHING = Names((), (), frozenset())
_NAMES: weakref.WeakKeyDictionary[CodeType, Names] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class ModuleView:
    """A module as some code sees it: its parts are those of its attributes that the code names."""

    module: ModuleType
    names: frozenset[str]


# --- whose code it is, and what it names


def is_known(value: Any) -> bool:
    """Whether a class or function is torch's, numpy's, JAX's, Python's own or this package's."""
    return _whose(_home(value)) == "known"


def _home(value: Any) -> str:
    """The module whose code a class or function is.

    A function that wraps another bears the other's name, but has globals of its own.
    """
    if isinstance(value, FunctionType):
        module = value.__globals__.get("__name__")
    else:
        module = getattr(value, "__module__", None)
    return module if isinstance(module, str) else ""


def _top(module: str) -> str:
    return module.partition(".")[0]


def _whose(module: Any) -> str:
    """Whose the code of a module of this name is: "known", "installed" or "own"."""
    top = _top(module) if isinstance(module, str) else ""
    return _whose_package(top, getattr(sys.modules.get(top), "__file__", None))


@functools.lru_cache(maxsize=4096)
def _whose_package(top: str, file: str | None) -> str:
    if top in _PACKAGES:
        return "known"
    # Also where the program that was started is an installed one: a notebook, a test runner.
    if top == "__main__":
        return "own"
    folders = Path(file).parents if isinstance(file, str) else ()
    if any(folder.name in ("site-packages", "dist-packages") for folder in folders):
        return "installed"
    standard = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    if top in sys.stdlib_module_names and (file is None or standard & {*folders}):
        return "known"
    return "own"


def names_in(code: CodeType) -> Names:
    """What a code object refers to by name."""
    known = _NAMES.get(code)
    if known is None:
        nested = [code]
        for inner in nested:  # comprehensions, lambdas, functions and classes within
            nested += [constant for constant in inner.co_consts if isinstance(constant, CodeType)]
        steps = [step for inner in nested for step in dis.get_instructions(inner)]
        loaded = dict.fromkeys(s.argval for s in steps if s.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
        imported = dict.fromkeys(s.argval for s in steps if s.opname == "IMPORT_NAME")
        texts = (
            c
            for inner in nested
            for c in inner.co_consts
            if isinstance(c, str) and c.isidentifier()
        )
        attributes = frozenset((*(n for inner in nested for n in inner.co_names), *texts))
        known = _NAMES[code] = Names(tuple(loaded), tuple(imported), attributes)
    return known


# --- the parts of one object

Splitter = Callable[[Any], list[Part]]


def parts(value: Any) -> list[Part]:
    """What one object is directly made of, each part with how it is reached.

    Lists of plain values alone have no parts.
    """
    kind = type(value)
    return (_SPLITTERS.get(kind) or _splitter(kind))(value)


def _none(value: Any) -> list[Part]:
    return []


def _attributes(value: Any) -> list[Part]:
    return [
        ("." + str(name), item) for name, item in object.__getattribute__(value, "__dict__").items()
    ]


def _slots_of(names: tuple[str, ...]) -> Splitter:
    def split(value: Any) -> list[Part]:
        found = []
        for name in names:
            with suppress(AttributeError):  # a slot that is still empty
                found.append(("." + name, object.__getattribute__(value, name)))
        return found

    return split


def _slots(kind: type) -> tuple[str, ...]:
    """The names of a class's slots: attributes of its objects that are not in their `__dict__`."""
    return tuple(
        name
        for base in kind.__mro__
        if "__slots__" in vars(base)
        for name, value in vars(base).items()
        if isinstance(value, MemberDescriptorType)
    )


def _of_mapping(value: Mapping[Any, Any]) -> list[Part]:
    pairs = list(value.items())
    if len(pairs) > MANY and {type(v) for pair in pairs for v in pair} <= PLAIN:
        return []
    found = []
    for i, (key, item) in enumerate(pairs):
        plain = type(key) in PLAIN
        found.append((f"[{key!r}]" if plain else f"[{i}]", item))
        if not plain:
            found.append((f".keys()[{i}]", key))
    return found


def _of_items(value: Iterable[Any]) -> list[Part]:
    items = list(value)
    return (
        [] if {*map(type, items)} <= PLAIN else [(f"[{i}]", item) for i, item in enumerate(items)]
    )


def _of_array(value: np.ndarray) -> list[Part]:
    return _of_items(value.ravel()) if value.dtype == object else []


def is_array(kind: type) -> bool:
    """Whether objects of a class are arrays of another library (JAX, TensorFlow, ...).

    What counts of them is their numbers, as numpy reads them.
    """
    return (
        not issubclass(kind, Tensor | np.ndarray)
        and hasattr(kind, "__dlpack__")
        and hasattr(kind, "__array__")
    )


def _of_tensor(value: Tensor) -> list[Part]:
    # The sizes of nested tensors count those of the process.
    return [] if value.is_nested else _attributes(value)


def _of_proxy(value: Any) -> list[Part]:
    try:
        return [("()", value.__repr__.__self__)]  # of which Python has no other way to ask
    except ReferenceError:
        return []


def _pickled(value: Any) -> list[Part]:
    """The pieces from which an object of C code can be made again; none where it does not say."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reduce = copyreg.dispatch_table.get(type(value))
            made = reduce(value) if reduce is not None else value.__reduce_ex__(2)
    except Exception:  # noqa: BLE001 (whatever its author raises: it cannot be taken apart)
        return []
    if isinstance(made, tuple):
        return [(f".__reduce__()[{i}]", piece) for i, piece in enumerate(made)]
    return []


def _of_default(value: defaultdict[Any, Any]) -> list[Part]:
    return [(".default_factory", value.default_factory), *_of_mapping(value)]


def _of_variable(value: ContextVar[Any]) -> list[Part]:
    try:
        return [(".get()", value.get())]
    except LookupError:  # it has no value here
        return []


def _of_cell(value: CellType) -> list[Part]:
    try:
        return [(".cell_contents", value.cell_contents)]
    except ValueError:  # still empty
        return []


def _of_function(value: FunctionType) -> list[Part]:
    """Closure, defaults, attributes, and the globals that the code names.

    Of the user's own code all of these, of an installed package's those within the package.
    """
    attributes, code, home = vars(value), value.__code__, value.__globals__
    if _COMPILED in attributes:  # the rest is the compiler's
        return [("." + _COMPILED, attributes[_COMPILED])]
    whose = _whose(home.get("__name__"))
    names = names_in(code) if whose != "known" else _NOTHING
    found: list[Part] = []
    for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
        found += [("." + name, _seen_by(names, content)) for _, content in _of_cell(cell)]
    found += [(f".__defaults__[{i}]", v) for i, v in enumerate(value.__defaults__ or ())]
    found += [(f".__kwdefaults__[{k!r}]", v) for k, v in (value.__kwdefaults__ or {}).items()]
    found += [("." + str(k), v) for k, v in attributes.items()]
    for name in names.globals:
        if name in home and (whose == "own" or _within(home["__name__"], home[name])):
            found.append(("." + name, _seen_by(names, home[name])))
    if whose == "own":
        found += [
            ("." + name, ModuleView(sys.modules[name], names.attributes))
            for name in names.imports
            if name in sys.modules
        ]
    return found


def _within(package: str, value: Any) -> bool:
    """Whether what an installed package's code names is followed: data, and its own code."""
    if isinstance(value, FunctionType | type):
        return _top(_home(value)) == _top(package)
    return isinstance(value, nn.Module | Tensor | np.ndarray) or type(value) in PLAIN


def _seen_by(names: Names, value: Any) -> Any:
    return ModuleView(value, names.attributes) if isinstance(value, ModuleType) else value


def _of_seen(value: ModuleView) -> list[Part]:
    """The attributes of a module that some code names.

    Of the user's own modules all of them. Of others only data, functions where the package is
    followed, and what is the user's and was put there.
    """
    module, held = value.module.__name__, vars(value.module)
    whose = _whose(module)
    found: list[Part] = []
    for name in sorted(name for name in value.names if name in held):
        item = held[name]
        if isinstance(item, ModuleType):
            found.append(("." + name, ModuleView(item, value.names)))
        elif whose == "own" or _is_followed(item, module if whose == "installed" else None):
            found.append(("." + name, item))
    return found


def _is_followed(value: Any, package: str | None) -> bool:
    """Whether what a module of others holds is followed.

    Args:
        value: What it holds.
        package: The installed package whose own functions are followed; None where they are known.
    """
    if isinstance(value, FunctionType | type):
        return _whose(_home(value)) == "own" or (
            package is not None
            and isinstance(value, FunctionType)
            and _top(_home(value)) == _top(package)
        )
    return isinstance(value, nn.Module | Tensor | np.ndarray) or type(value) in PLAIN


def _of_class(value: type) -> list[Part]:
    if _whose(value.__module__) == "known":
        return []
    own, meta = vars(value), type(value)
    found = [
        ("." + name, item)
        for name, item in own.items()
        if name not in _UNLOOKED and type(item) not in _DESCRIPTORS
    ]
    found += [
        (f".__mro__[{i}]", base) for i, base in enumerate(value.__mro__) if i and base is not object
    ]
    return found if _whose(meta.__module__) == "known" else [*found, (".__class__", meta)]


def _of_nn_module(value: nn.Module) -> list[Part]:
    own = value.__dict__
    found = [("." + name, item) for name, item in own.items() if name not in _TORCHS]
    for register in _REGISTERS:
        found += [("." + name, item) for name, item in own[register].items() if item is not None]
    for name in _HOOKS:
        if own.get(name):
            # Hooks by their order: their keys are counters of the process.
            found += [(f".{name}[{i}]", hook) for i, hook in enumerate(own[name].values())]
    return found


def _of_compiled_module(value: nn.Module) -> list[Part]:
    return [("._orig_mod", value._modules["_orig_mod"])]


def _of_jitted(value: Any) -> list[Part]:
    """Of a function that JAX compiles (`jax.jit`): the function; the rest says where it was written."""
    return [(".__wrapped__", value.__wrapped__)]


def _of_traced(value: Any) -> list[Part]:
    """Of a `torch.fx.GraphModule`: its code, which is among the attributes, stands for its graph.

    The ranges of sizes that an export noted decide nothing, and the dictionaries of their symbols
    are in the order of hashes.
    """
    return [
        part
        for part in _of_nn_module(value)
        if part[0] not in ("._graph", ".meta", ".range_constraints")
    ]


def _of_script(value: Any) -> list[Part]:
    held = {
        name: item
        for register in _REGISTERS
        for name, item in getattr(value, register).items()
        if item is not None
    }
    kind = value._concrete_type
    others = [name for name in kind.get_attributes() if name not in held and name != "training"]
    found = held | {name: getattr(value, name, None) for name in others} | kind.get_constants()
    return [("." + name, item) for name, item in found.items()]


def _splitter(kind: type) -> Splitter:
    """How objects of a class are taken apart, found once for each class."""
    split = next((_KINDS[base] for base in kind.__mro__ if base in _KINDS), None)
    known = _whose(kind.__module__) == "known"
    if split is _none and not known:
        split = None  # one's own kind of a number
    if kind.__module__ == "torch._dynamo.eval_frame" and issubclass(kind, nn.Module):
        split = _of_compiled_module
    elif issubclass(kind, torch.jit.ScriptModule):
        split = _of_script
    elif is_array(kind):
        split = _none
    elif kind.__name__ == "PjitFunction" and known:
        split = _of_jitted
    elif issubclass(kind, type):
        split = _of_class
    elif known and _top(kind.__module__) in _HANDLES:
        split = _none
    elif split is None and issubclass(kind, Mapping):
        split = _of_mapping
    elif split is None and not known and _is_stated(kind):
        split = _pickled
    whole = _with_attributes(kind, split)
    _SPLITTERS[kind] = whole
    return whole


def _is_stated(kind: type) -> bool:
    """Whether a known base of the user's own class says how its objects are made again.

    `float` does, for objects of a subclass.
    """
    for name in _STATED:
        owner = next(base for base in kind.__mro__ if name in vars(base) or base is object)
        if owner is not object:
            return _whose(owner.__module__) == "known"
    return False


def _with_attributes(kind: type, split: Splitter | None) -> Splitter:
    """What takes an object apart by its base, its attributes and, unless that is known, its
    class.
    """
    if kind in _KINDS or split in _WHOLE:
        return split or _none
    if kind.__module__.startswith("torch.distributed.") and not issubclass(
        kind, nn.Module | Tensor
    ):  # how modules lie on processes, such as this one's share, which others do not have
        return _none
    also: list[Splitter] = [] if split is None else [split]
    slots = _slots(kind)
    if kind.__dictoffset__ and not issubclass(kind, nn.Module | Tensor):
        also.append(_attributes)
    known_tensor = issubclass(kind, Tensor) and _whose(kind.__module__) == "known"
    if slots and not known_tensor:  # torch's tell their numbers: of DTensor all, in whatever parts
        also.append(_slots_of(slots))
    if not also:
        also.append(_pickled)
    if _whose(kind.__module__) != "known":
        also.append(lambda v: [(".__class__", type(v))])
    return (
        also[0] if len(also) == 1 else lambda value: [part for one in also for part in one(value)]
    )


_WHOLE = (_none, _of_class, _of_compiled_module, _of_jitted, _of_script)
"""Ways to take objects apart besides which there are no attributes."""

_KINDS: dict[type, Splitter] = {
    **dict.fromkeys(ATOMS, _none),
    Tensor: _of_tensor,
    ModuleType: _none,
    np.ndarray: _of_array,
    nn.Module: _of_nn_module,
    torch.fx.GraphModule: _of_traced,
    dict: _of_mapping,
    MappingProxyType: _of_mapping,
    defaultdict: _of_default,
    list: _of_items,
    tuple: _of_items,
    set: _of_items,
    frozenset: _of_items,
    deque: _of_items,
    functools.partial: lambda v: [
        (".func", v.func),
        (".args", v.args),
        (".keywords", v.keywords),
        *_attributes(v),
    ],
    functools.partialmethod: lambda v: [
        (".func", v.func),
        (".args", v.args),
        (".keywords", v.keywords),
    ],
    CellType: _of_cell,
    ContextVar: _of_variable,
    FunctionType: _of_function,
    MethodType: lambda v: [(".__self__", v.__self__), (".__func__", v.__func__)],
    BuiltinFunctionType: lambda v: (
        [] if isinstance(v.__self__, ModuleType | None) else [(".__self__", v.__self__)]
    ),
    MethodWrapperType: lambda v: [(".__self__", v.__self__)],
    property: lambda v: [(".fget", v.fget)],
    classmethod: lambda v: [(".__func__", v.__func__)],
    staticmethod: lambda v: [(".__func__", v.__func__)],
    weakref.ReferenceType: lambda v: [("()", v())],
    weakref.ProxyType: _of_proxy,
    weakref.CallableProxyType: _of_proxy,
    ModuleView: _of_seen,
}
_SPLITTERS: weakref.WeakKeyDictionary[type, Splitter] = weakref.WeakKeyDictionary()


# --- the walk


def walk(value: Any) -> list[Any]:
    """Everything that a value is made of: itself first, the nearest before the farther, each once.

    Plain values (`PLAIN`) are left out, unless the value is one.
    """
    found, seen = [value], {key_of(value)}
    # The list grows on the way; it holds all that was seen, so that no id is used twice.
    for item in found:
        kind = type(item)
        for _, part in (_SPLITTERS.get(kind) or _splitter(kind))(item):
            if type(part) not in PLAIN and (key := key_of(part)) not in seen:
                seen.add(key)
                found.append(part)
    return found


def key_of(part: Any) -> Any:
    """A key that tells a part from others as long as both are alive."""
    return id(part) if type(part) is not ModuleView else (id(part.module), part.names)
