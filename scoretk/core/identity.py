"""What tells one field, or one solver, from another: everything that decides its answers, as text.

An `Identity` is a map from paths to values. A path (`way` in the code) is how the walk
(`scoretk.core.anatomy`) first reaches an object, such as `field.fn.scale`; the value is what the
object is apart from its parts: a number as it is, of an array dtype, shape and SHA-256, of a
function its code (instructions, names and constants; no file names or line numbers), of a container
its kind and keys. No entry depends on the process that made it: neither addresses nor hashes of
objects count, and the items of sets are put in order. Known classes and functions (torch's,
numpy's, ...) are their names. Of what cannot be looked into (locks, files, handles of C libraries,
random generators) only the kind counts; differences within show only in the field's own answers,
which a checkpoint compares as well.

Some of what a field is made of may change while a run goes on: a count of its calls, a list of what
it has seen, a cache. What a run itself has changed does not tell its field from another;
`Identity.changing` finds it, and it is left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from scoretk.core.anatomy import MANY, PLAIN, ModuleView, Part, is_array, is_known, key_of, parts
from scoretk.core.marks import marks, whole_tensor
from scoretk.core.moved import first_path

__all__ = [
    "Identity",
    "differences",
    "is_among",
    "is_summary",
    "numbers_as_bytes",
    "stable_text",
    "tensor_digest",
    "tensor_value",
    "tensor_values",
    "weights_digest",
]

SHOWN = 60
"""Characters of a value that are kept as they are; of a longer one the beginning and a digest."""

KEPT = 256
"""Entries of a summary that are kept one by one, the nearest; the others share a digest for each
object that they are parts of.
"""

FEW = 4
"""How many numbers of an array are shown."""

NAMED = 5
"""How many differences are named."""

_CONTAINERS = (Mapping, list, tuple, set, frozenset, deque)
_WRITTEN = (
    bytearray,
    range,
    slice,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    np.dtype,
)
"""Objects that are what their repr says."""

_KNOWN: Any = WeakTensorKeyDictionary()
"""What tensors are in words, each with a mark of what it was then."""

_PACKAGE = __name__.partition(".")[0]
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_STRINGS = re.compile(r"\{('[^'{}]*'(?:, '[^'{}]*')+)\}")
"""A set of strings as it is shown."""
_MANGLED = re.compile(r"___torch_mangle_\d+\.")


@dataclass(frozen=True)
class _Same:
    """An object met again, by the path on which it was met first."""

    way: str


class Identity:
    """What some named things are made of.

    Args:
        things: The things by name: a field, a solver.

    Attributes:
        values: Text by path, the nearest first.
    """

    def __init__(self, **things: Any) -> None:
        self._things = things
        found = _found(things)
        tensors = [item for _, item in found if isinstance(item, Tensor)]
        known = dict(zip(map(id, tensors), tensor_values(tensors), strict=True))
        self.values = {
            way: known[id(item)] if isinstance(item, Tensor) else _value(item)
            for way, item in found
        }
        self._marks = {way: _mark(item) for way, item in found}

    def changing(self) -> list[str]:
        """The paths of what has changed since this was made.

        Of containers, and of what is new, the path ends in `*` and means all that lies within.
        """
        found = dict(_found(self._things))
        changed = [
            way + "*" if isinstance(item, _CONTAINERS) else way
            for way, item in found.items()
            if way in self._marks
            and _mark(item) != self._marks[way]
            and _value(item) != self.values[way]
        ]
        return _outermost(changed + [way + "*" for way in found if way not in self._marks])

    def summary(self, changing: Iterable[str] = ()) -> dict[str, Any]:
        """Plain values of bounded size.

        Args:
            changing: The paths to leave out, as `changing` gives them.

        Returns:
            `digest`, of every entry that is not left out; `parts`, the nearest entries by path, and
            digests of the others; `changing`, what was left out.
        """
        ways = sorted(changing)
        kept = [(way, value) for way, value in self.values.items() if not is_among(way, ways)]
        digest = _digest(json.dumps([sorted(kept), ways]).encode())
        rest: dict[str, list[str]] = {}
        for way, value in kept[KEPT:]:
            rest.setdefault(".".join(way.split(".")[:2])[:SHOWN], []).append(f"{way}: {value}")
        summed = {
            f"within {way}": _digest("\n".join(values).encode())
            for way, values in list(rest.items())[:KEPT]
        }
        return {
            "digest": digest,
            "parts": {_short(way): value for way, value in kept[:KEPT]} | summed,
            "changing": ways,
        }


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """The entries in which two summaries differ.

    Args:
        theirs: The summary of a checkpoint.
        ours: The summary of the present run.

    Returns:
        Lines `path: value there, value here`, a few at most; none where the summaries are equal.
    """
    if theirs == ours:
        return []
    there, here = theirs["parts"], ours["parts"]
    ways = [way for way in {**here, **there} if there.get(way) != here.get(way)]
    found = [
        f"{way}: {there.get(way, 'nothing')} there, {here.get(way, 'nothing')} here" for way in ways
    ]
    more = len(found) - NAMED
    return [*found[:NAMED], *([f"and {more} more"] if more > 0 else [])] or [
        "what it is made of, deeper than is kept by name"
    ]


def is_summary(value: Any) -> bool:
    """Whether a value has the form of `Identity.summary`."""
    if not isinstance(value, dict) or value.keys() != {"digest", "parts", "changing"}:
        return False
    texts = value["changing"]
    return (
        isinstance(value["parts"], dict)
        and isinstance(texts, list)
        and all(isinstance(way, str) for way in texts)
    )


def stable_text(text: str) -> str:
    """A text that is the same in every process: without addresses (` at 0x...`), sets of strings in order.

    In what order Python shows a set of strings differs from process to process.
    """
    return _STRINGS.sub(
        lambda found: f"{{{', '.join(sorted(found[1].split(', ')))}}}", _ADDRESS.sub("", text)
    )


def _found(things: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """All objects by the path on which they are first met, the nearest first.

    An object that is met again is a `_Same`.
    """
    found, seen = list(things.items()), {key_of(item): name for name, item in things.items()}
    # The list grows on the way; it holds all that was seen, so that no id is used twice.
    for way, item in found:
        for label, part in [] if type(item) in PLAIN or type(item) is _Same else _in_order(item):
            there = way + label
            if type(part) in PLAIN:
                found.append((there, part))
            elif (key := key_of(part)) in seen:
                found.append((there, _Same(seen[key])))
            else:
                seen[key] = there
                found.append((there, part))
    return found


def _in_order(item: Any) -> list[Part]:
    """The parts of an object, in an order that does not depend on the process."""
    found = parts(item)
    if isinstance(item, set | frozenset):
        members = sorted((Identity(item=part).summary()["digest"], part) for _, part in found)
        return [(f"[{i}]", part) for i, (_, part) in enumerate(members)]
    return sorted(found, key=lambda part: part[0])


def is_among(way: str, ways: Iterable[str]) -> bool:
    """Whether a way is one of these, or within one that ends with `*`."""
    return any(
        way == other or (other.endswith("*") and _is_within(way, other[:-1])) for other in ways
    )


def _is_within(way: str, whole: str) -> bool:
    return way == whole or (way.startswith(whole) and way[len(whole)] in ".[(")


def _outermost(ways: Iterable[str]) -> list[str]:
    """The paths without those that lie within another of them."""
    found: list[str] = []
    for way in sorted(set(ways), key=len):
        if not is_among(way.removesuffix("*"), [other for other in found if other != way]):
            found.append(way)
    return sorted(found)


# --- what one object is, apart from its parts


def _mark(item: Any) -> Any:
    """A cheap mark of an object that changes when it does: a tensor's version, else its value."""
    if isinstance(item, Tensor) and not item.is_inference():
        return id(item), item._version
    return _value(item)


def _value(item: Any) -> str:
    """An object in words that mean the same in every process."""
    kind = type(item)
    if kind is torch.device:  # of several ranks each has its own
        return _short(repr(torch.device(item.type)))
    if kind in PLAIN:
        return _short(repr(item))
    if kind is _Same:
        return f"the same as {_short(item.way)}"
    if kind is ModuleView:
        return f"module {item.module.__name__}"
    if isinstance(item, Tensor):
        return tensor_value(item)
    if isinstance(item, memoryview):
        return f"memoryview {item.format} {item.shape} {_digest(item.tobytes())}"
    if isinstance(item, np.ndarray | np.generic):
        return _of_array(np.asarray(item))
    if is_array(kind):
        return _of_foreign(item)
    if isinstance(item, FunctionType):
        name = f"{first_path(str(item.__globals__.get('__name__')))}.{item.__code__.co_qualname}"
        return f"function {name}" if is_known(item) else _of_code(item.__code__)
    if isinstance(item, CodeType):
        return _of_code(item)
    if isinstance(item, type):
        return f"class {_name(item)}" if is_known(item) else "class"
    if isinstance(item, BuiltinFunctionType | np.ufunc | ModuleType):
        return f"{kind.__name__} {_name(item)}"
    if isinstance(item, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        return f"{kind.__name__} {_digest(_script(item).encode())}"
    return f"{_name(kind) if is_known(kind) else 'object'}{_content(item)}"


def _content(item: Any) -> str:
    """The length, keys and plain items of a container, as text; "" for anything else."""
    if isinstance(item, Mapping):
        if len(item) > MANY and _are_plain([*item.keys(), *item.values()]):
            return f" of {len(item)}: {_short(repr(dict(item)))}"
        return (
            f" of {len(item)} with keys "
            f"{_short(', '.join(repr(k) if type(k) in PLAIN else 'object' for k in item))}"
        )
    if isinstance(item, nn.Module):
        return f" of {_short(', '.join(item._modules))}" if item._modules else ""
    if isinstance(item, set | frozenset):
        return f" of {len(item)}" + (
            f": {_short(', '.join(sorted(map(repr, item))))}" if _are_plain(item) else ""
        )
    if isinstance(item, list | tuple | deque):
        return f" of {len(item)}" + (f": {_short(repr(list(item)))}" if _are_plain(item) else "")
    if isinstance(item, _WRITTEN):
        return f" {_short(stable_text(repr(item)))}"
    return ""


def _are_plain(items: Iterable[Any]) -> bool:
    return {*map(type, items)} <= PLAIN


def _name(item: Any) -> str:
    """A name that tells one known object from another.

    A class of this package is named without its module, so that a run can be continued after the
    module has moved. Functions keep theirs: some (`build`, a lambda) have the same name in several
    modules; where a folder moved with all that is in it, that is the path which they had before.
    """
    owner = getattr(item, "__objclass__", None) or getattr(item, "__self__", None)
    home = getattr(item, "__module__", None) or (type(owner).__name__ if owner is not None else "")
    if isinstance(item, type) and home.partition(".")[0] == _PACKAGE:
        home = _PACKAGE
    return f"{home}.{getattr(item, '__qualname__', None) or getattr(item, '__name__', '')}"


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {_digest(text.encode())}"


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _of_code(code: CodeType) -> str:
    """The digest of a code object, with its numbers and strings in readable form."""
    constants = [c for c in code.co_consts if type(c) in PLAIN and c is not None]
    return (
        f"code {_digest(repr(_code(code)).encode())[:16]} with "
        f"{_short(', '.join(map(repr, constants)) or 'no constants')}"
    )


def _code(code: CodeType) -> tuple[Any, ...]:
    """The attributes of a code object that decide what it does, with those nested in it."""
    return (
        code.co_code,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        code.co_argcount,
        code.co_flags,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_exceptiontable,
        *map(_constant, code.co_consts),
    )


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, tuple):
        return tuple(map(_constant, value))
    if isinstance(value, frozenset):
        return "frozenset", *sorted(repr(_constant(v)) for v in value)
    return repr(value)


def _of_array(array: np.ndarray) -> str:
    what = f"array {array.dtype.str} {array.shape}"
    if array.dtype == object:
        return what if parts(array) else f"{what} {_short(repr(array.ravel().tolist()))}"
    shown = (
        f" {array.ravel().tolist()!r}" if array.size <= FEW and array.dtype.kind in "biufc" else ""
    )
    return f"{what}{_short(shown)} {_digest(np.ascontiguousarray(array).tobytes())}"


def _of_foreign(item: Any) -> str:
    """An array of another library, by the numbers that numpy reads of it."""
    try:
        return _of_array(np.asarray(item))
    except Exception:  # noqa: BLE001 (of a library of any kind: deleted, or not on this machine)
        return f"array {item.dtype} {tuple(item.shape)} without numbers that can be read"


def tensor_values(tensors: list[Tensor]) -> list[str]:
    """`tensor_value` of each. Large ones are read as a whole once, and again when they have changed."""
    found = []
    for tensor, mark in zip(tensors, marks(tensors), strict=True):
        known = None if mark is None else _KNOWN.get(tensor)
        if known is None or known[0] != mark:
            known = mark, tensor_value(tensor)
            if mark is not None:
                _KNOWN[tensor] = known
        found.append(known[1])
    return found


def tensor_value(tensor: Tensor) -> str:
    """The dtype, shape and digest of a tensor, and its numbers where they are few."""
    # A nested tensor has no shape, or one that counts tensors; its rows' lengths are among its
    # numbers.
    if tensor.is_nested:
        shape: tuple[Any, ...] = (
            "nested",
            tensor.shape[0] if tensor.layout is torch.jagged else tensor.size(0),
        )
    else:
        shape = tuple(tensor.shape)
    what = f"{str(tensor.dtype).removeprefix('torch.')} {shape}"
    try:
        held = [_bytes(part) for part in _strided(tensor.detach())]
        plain = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_nested
        few = plain and tensor.numel() <= FEW
        shown = f" {tensor.detach().tolist()!r}" if few else ""
    except (RuntimeError, NotImplementedError, TypeError):
        return f"{what} without numbers that can be read"
    return f"{what}{_short(shown)} {_digest(b''.join(held))}"


def tensor_digest(tensors: dict[str, Tensor]) -> str:
    """The SHA-256 of tensors: of their names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu")
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(numbers_as_bytes(value))
    return digest.hexdigest()


def weights_digest(weights: Iterable[Tensor]) -> str:
    """The SHA-256 of tensors that live long, such as a model's weights."""
    return hashlib.sha256("\n".join(tensor_values(list(weights))).encode()).hexdigest()


def _strided(tensor: Tensor) -> list[Tensor]:
    """The strided tensors that a tensor of any layout consists of."""
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.is_quantized:
        by_channel = (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
        if tensor.qscheme() in by_channel:
            places = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
            return [tensor.int_repr(), *places]
        place = torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64)
        return [tensor.int_repr(), place]
    if tensor.layout is torch.sparse_coo:
        whole = tensor.coalesce()
        return [whole.indices(), whole.values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.to_dense() if tensor.layout is not torch.strided else tensor]


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.to("cpu").resolve_conj().resolve_neg()
    return f"{plain.dtype}{tuple(plain.shape)}".encode() + numbers_as_bytes(plain)


def numbers_as_bytes(x: Tensor) -> bytes:
    """The numbers of a strided tensor on the CPU as bytes, in order, of the `whole_tensor`."""
    x = whole_tensor(x)
    # in memory of stride 1, which an expanded tensor is not; as bytes, as numpy has no bfloat16
    flat = x.new_empty(x.numel()).copy_(x.reshape(-1))
    return flat.view(torch.uint8).numpy().tobytes()


def _script(item: Any) -> str:
    """The code of a scripted module or function, and the tensors that it names by number only.

    Numbers that count what was compiled before are left out.
    """
    methods = item._c._method_names() if isinstance(item, torch.jit.ScriptModule) else []
    made = [getattr(item, name) for name in sorted(methods)] or [item]
    texts = [_MANGLED.sub("", one.code) for one in made if hasattr(one, "code")]
    held = [
        _held_constants(one.graph if methods else one.inlined_graph)
        for one in made
        if hasattr(one, "code")
    ]
    return "\n".join([*texts, *(tensor_value(value) for values in held for value in values)])


def _held_constants(graph: Any) -> list[Tensor]:
    nodes = graph.findAllNodes("prim::Constant", recurse=True)
    return [
        node.t("value")
        for node in nodes
        if node.hasAttribute("value") and node.kindOf("value") == "t"
    ]
