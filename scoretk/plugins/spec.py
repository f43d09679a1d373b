"""What a plugin says about its model, in an object that costs nothing to import."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields
from functools import partial
from types import MappingProxyType
from typing import Any, Self

from scoretk.errors import InvalidArgument, near_match
from scoretk.plugins.capabilities import CAPABILITIES

__all__ = ["INTERFACES", "ModelSpec"]

INTERFACES = range(1, 2)
"""The plugin interfaces that this version of scoretk serves. Within one, changes only add."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model as its plugin registers it.

    Enough to list, describe and load it, and free of heavy imports.

    Args:
        name: Equal to the entry point's key.
        family: Such as "energy-based", "diffusion", "flow matching".
        factory: "module:callable"; called with the parameters as keyword arguments, it returns the
            field.
        provides: Names in `CAPABILITIES` that the field offers.
        event_shape: The shape of one x with the default parameters; None where only loading tells.
        summary: One line.
        parameters: The parameters of the factory and their defaults: None, booleans, numbers,
            strings and sequences of these. Lists become tuples.
        trainer: "module:callable" for a model that can be trained, else None. It is called as
            `trainer(data, seed=..., report=..., **settings)`, data a tensor `(n, *event_shape)` or
            None for the model's own, and returns an object with `save(path)`; the factory's
            parameter `weights` takes the path of that file. A trainer may have a parameter
            `checkpoint`, None by default: the path of a file to save the training to and to
            continue it from.
        interface: The plugin interface that the plugin is written for, one of `INTERFACES`.

    Raises:
        InvalidArgument: A value does not fit; the message names it.
    """

    name: str
    family: str
    factory: str
    provides: AbstractSet[str]
    event_shape: tuple[int, ...] | None
    summary: str
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    trainer: str | None = None
    interface: int = 1

    def __new__(cls, *, interface: int = 1, **_: object) -> Self:
        # Here and not in __post_init__: a spec for a newer interface may have fields that __init__
        # does not know, and its users should read what to upgrade, not of an unexpected keyword.
        _check_interface(interface)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        _matches(
            "name", self.name, _NAME, "letters, digits and . _ -, starting with a letter or digit"
        )
        _matches("factory", self.factory, _FACTORY, "a string such as 'my_package.models:build'")
        if self.trainer is not None:
            _matches(
                "trainer",
                self.trainer,
                _FACTORY,
                "None or a string such as 'my_package.models:train'",
            )
        _line("family", self.family)
        _line("summary", self.summary)
        for name, convert in (
            ("provides", _provides),
            ("event_shape", _shape),
            ("parameters", _parameters),
        ):
            object.__setattr__(self, name, convert(getattr(self, name)))
        if self.trainer is not None and "weights" not in self.parameters:
            raise InvalidArgument(
                "parameters", dict(self.parameters), "a parameter 'weights', as there is a trainer"
            )

    def as_dict(self) -> dict[str, Any]:
        """The spec in plain values, ready for JSON, its capabilities in the order of
        `CAPABILITIES`.
        """
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["provides"] = [name for name in CAPABILITIES if name in self.provides]
        plain["event_shape"] = None if self.event_shape is None else list(self.event_shape)
        plain["parameters"] = dict(self.parameters)
        return plain

    def __reduce__(self) -> tuple[partial[ModelSpec], tuple[()]]:
        # By plain values, as a read-only mapping cannot be pickled or copied.
        return partial(type(self), **self.as_dict()), ()


def _check_interface(value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidArgument("interface", value, "a positive integer")
    if value in INTERFACES:
        return
    older = "The plugin was written for an older scoretk: upgrade the plugin"
    newer = "The plugin was written for a newer scoretk: pip install --upgrade scoretk"
    expected = " or ".join(map(str, INTERFACES))
    raise InvalidArgument(
        "interface", value, expected, older if value < INTERFACES.start else newer
    )


def _matches(name: str, value: object, pattern: re.Pattern[str], expected: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InvalidArgument(name, value, expected)


def _line(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip() or len(value.splitlines()) > 1:
        raise InvalidArgument(name, value, "one line of text")


def _provides(value: Any) -> frozenset[str]:
    if not isinstance(value, (set, frozenset, list, tuple)) or not value:
        raise InvalidArgument("provides", value, "a set of capabilities such as {'energy'}")
    for name in sorted(value, key=str):
        if name not in CAPABILITIES:
            known = f"capabilities among {', '.join(CAPABILITIES)}"
            raise InvalidArgument("provides", name, f"{known}{near_match(str(name), CAPABILITIES)}")
    return frozenset(value)


def _shape(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not all(type(n) is int and n > 0 for n in value):
        raise InvalidArgument(
            "event_shape", value, "a tuple of positive integers such as (2,) or (1, 8, 8), or None"
        )
    return tuple(value)


def _parameters(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidArgument(
            "parameters", value, "a mapping of names to defaults such as {'width': 64}"
        )
    for name in value:
        if not isinstance(name, str) or not name.isidentifier():
            raise InvalidArgument("parameters", name, "names that can be keyword arguments")
    return MappingProxyType({name: _plain(name, default) for name, default in value.items()})


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(_plain(name, item) for item in value)
    raise InvalidArgument(
        f"parameters[{name!r}]", value, "None, a boolean, number or string, or a sequence of these"
    )
