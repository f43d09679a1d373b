"""The networks and tensors that a field is made of: their mode, where they are, and in what dtype."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from scoretk.core.anatomy import walk
from scoretk.core.arguments import device as as_device
from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument

__all__ = [
    "as_networks_take",
    "asked",
    "check_place",
    "field_tensors",
    "learning",
    "left_as_found",
    "modules_of",
    "network_dtype",
    "outermost_modules",
    "state_like",
    "to_device",
]

_Answer = TypeVar("_Answer")

_AS_THEY_ARE: ContextVar[bool] = ContextVar("as_they_are", default=False)
"""Whether modules that are asked have the mode that they are meant to have."""
_FOUND: weakref.WeakKeyDictionary[object, list[weakref.ref[nn.Module]]] = (
    weakref.WeakKeyDictionary()
)
"""The modules that a walk has found, by what is made of them."""


def modules_of(value: Any) -> list[nn.Module]:
    """All torch modules that a field calls or holds, with those within them."""
    return [item for item in walk(value) if isinstance(item, nn.Module)]


def outermost_modules(value: Any) -> list[nn.Module]:
    """The torch modules of a field that are not within another of them."""
    modules = modules_of(value)
    parts = {id(part) for m in modules for part in m._modules.values()}
    return [m for m in modules if id(m) not in parts]


@explained
def to_device(field: Any, device: torch.device | str) -> Any:
    """A field with its modules moved to a device, in place.

    It is for a field that was loaded or made of modules: a model that `sample` is given by name
    moves to the run's device by itself. Constants that are not in a module are copied to where x
    is.

    Args:
        field: A field.
        device: Where to.

    Returns:
        The field itself.

    Raises:
        InvalidArgument: There is no such device.
    """
    place = as_device("device", device)
    for module in outermost_modules(field):
        module.to(place)
    return field


def check_place(field: Any, device: torch.device) -> None:
    """Check that a field's modules are on a device.

    A module that is spread over several devices, this one among them, is left to do its own copies.

    Args:
        field: A field.
        device: Where the state is.

    Raises:
        InvalidArgument: All floating-point tensors of a module are on other devices; the message
            says on which.
    """
    found = []
    for module in outermost_modules(field):
        own = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
        places = {_place_of(t.device) for t in own}
        if places and _place_of(device) not in places:
            found.append(f"{type(module).__name__} on {', '.join(sorted(places))}")
    if found:
        raise InvalidArgument(
            "field",
            ", ".join(found),
            f"modules on {_place_of(device)}, where the state is",
            f"Move them with module.to('{device}'), or scoretk.to_device(field, '{device}')",
        )


def _place_of(device: torch.device) -> str:
    """The name of a device, with its number: that of the current device where it has none."""
    if device.index is None and device.type not in ("cpu", "meta"):
        device = torch.empty(0, device=device).device
    return str(device)


def field_tensors(value: Any) -> list[Tensor]:
    """The floating-point tensors of a field: its modules' parameters, their buffers, then all
    others.
    """
    return [tensor for group in _tensors(walk(value)) for tensor in group]


def _tensors(found: list[Any]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The floating-point tensors found: parameters, buffers of modules, others."""
    floating = {
        id(item): item for item in found if isinstance(item, Tensor) and item.is_floating_point()
    }
    buffers = {
        id(b) for item in found if isinstance(item, nn.Module) for b in item._buffers.values()
    }
    groups: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for key, tensor in floating.items():
        groups[0 if isinstance(tensor, nn.Parameter) else 1 if key in buffers else 2].append(tensor)
    return groups


def state_like(value: Any) -> list[Tensor]:
    """The tensors that tell the device and dtype of a field's state, where it holds any.

    They are the floating-point parameters of its networks; where it has none, the buffers of its
    modules; where it has none either, its other floating-point tensors. Schedules do not count:
    neither what is held by an object that has `steers = True` (a `GaussianPath`), nor a tensor of
    the same shape as one of those.
    """
    found = walk(value)
    parameters, buffers, others = _tensors(found)
    if parameters or buffers:
        return parameters or buffers
    schedules = {
        t.shape for item in found if _steers(item) for t in walk(item) if isinstance(t, Tensor)
    }
    return [t for t in others if t.shape not in schedules] if schedules else others


def network_dtype(value: Any) -> torch.dtype | None:
    """The dtype in which a field's networks take x: that of their floating-point parameters.

    None where there are none of float32 or float64: lower precisions are for the network's own
    arithmetic, not for the state.
    """
    parameters = _tensors(walk(value))[0]
    return next((p.dtype for p in parameters if p.dtype in (torch.float32, torch.float64)), None)


def as_networks_take(value: Any, *given: Any) -> tuple[Any, ...]:
    """Tensors, and dictionaries of them, as a field's networks take them.

    Args:
        value: The field.
        given: Tensors and mappings; anything else stays as it is.

    Returns:
        The same, with floating-point tensors in the field's `network_dtype`.
    """
    dtype = network_dtype(value)

    def cast(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {name: cast(part) for name, part in item.items()}
        fits = dtype is None or not isinstance(item, Tensor) or not item.is_floating_point()
        return item if fits else item.to(dtype)

    return tuple(map(cast, given))


def _steers(item: Any) -> bool:
    return getattr(type(item), "steers", False) is True


@contextmanager
def left_as_found(value: Any, grad: bool = False) -> Iterator[None]:
    """Hold a field's modules in eval mode, and restore them on leaving.

    Args:
        value: A field, or anything that is made of modules.
        grad: Whether the parameters keep asking for gradients; by default they do not.
    """
    modules = modules_of(value)
    training = [m for m in modules if m.training]
    held = [] if grad else [p for m in modules for p in m._parameters.values()]
    wanting = [p for p in held if p is not None and p.requires_grad]
    before = _AS_THEY_ARE.set(True)
    try:
        for m in training:
            m.training = False
        for p in wanting:
            p.requires_grad_(False)
        yield
    finally:
        _AS_THEY_ARE.reset(before)
        for m in training:
            m.training = True
        for p in wanting:
            p.requires_grad_(True)


@contextmanager
def learning() -> Iterator[None]:
    """Let `asked` leave modules as they are: in train mode they are meant to be, to learn."""
    before = _AS_THEY_ARE.set(True)
    try:
        yield
    finally:
        _AS_THEY_ARE.reset(before)


def asked(ask: Callable[[], _Answer], taker: object) -> _Answer:
    """What is answered with a model's modules in eval mode; their modes come back.

    It is for models of other libraries, asked in one call at a time: a model with dropout is no
    function of x, and one with batch normalisation couples rows and keeps what it was asked. Within
    `left_as_found` all are held already; within `learning` they stay as they are.

    Args:
        ask: Asks the model.
        taker: The model, or anything that is made of modules. What it is made of besides the
            modules that it has registered is looked up once.

    Returns:
        The answer.
    """
    if torch.compiler.is_compiling() or _AS_THEY_ARE.get():
        return ask()
    training = [m for m in _modules_known(taker) if m.training]
    if not training:
        return ask()
    try:
        for m in training:
            m.training = False
        return ask()
    finally:
        for m in training:
            m.training = True


def _modules_known(taker: object) -> list[nn.Module]:
    """The modules of a model: those that it has registered now, and those that a walk once found."""
    try:
        found = _FOUND.get(taker)
        if found is None:
            found = _FOUND[taker] = [weakref.ref(m) for m in modules_of(taker)]
    except TypeError:  # of a class without weak references, or without a hash
        return modules_of(taker)
    own = taker.modules() if isinstance(taker, nn.Module) else ()
    kept = (m for m in (ref() for ref in found) if m is not None)
    return [*{id(m): m for m in (*own, *kept)}.values()]
