"""Which entries of a flat x are whose: named variables with shapes, dims and coords."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from itertools import product
from numbers import Real as RealNumber
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.errors import InvalidArgument

__all__ = ["Layout", "Shape", "Variable", "layout_of", "variable_name"]

Shape = tuple[int, ...]
LABELS = (str, RealNumber, np.datetime64, date)
"""What labels along an axis are; Python's dates and pandas's time stamps are of `date`."""
RESERVED = ("chain", "draw")
"""Names of the axes that all draws have, in ArviZ and in tables."""


@dataclass(frozen=True, eq=False)
class Variable:
    """One named variable: its shape, where it lives, and what its axes are called.

    Args:
        shape: The shape of one value.
        constraint: Of `torch.distributions.constraints`, or `scoretk.ordered`: one of numbers, which
            holds for each entry, or one of vectors or matrices, such as `simplex`, which holds for
            the last axes. Bounds may be tensors that broadcast to the shape.
        dims: The names of its axes, which ArviZ and netCDF keep; a string is the name of one. By
            default `name_dim_0` and so on.
        coords: The labels along axes, by the names of these.

    Raises:
        InvalidArgument: An argument does not fit.
    """

    shape: Shape = ()
    constraint: Any = constraints.real
    dims: Sequence[str] | str | None = None
    coords: Mapping[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = as_event_shape(self.shape, "shape")
        if not isinstance(self.constraint, constraints.Constraint):
            if isinstance(self.constraint, Distribution):
                hint = "Its support is .support"
            else:
                hint = "Such as torch.distributions.constraints.positive"
            raise InvalidArgument("constraint", self.constraint, "a constraint", hint)
        dims = (self.dims,) if isinstance(self.dims, str) else self.dims
        if dims is not None:
            dims = _dims(dims, len(shape))
        coords = _coords(self.coords, dict(zip(dims or (), shape, strict=False)))
        for name, value in (("shape", shape), ("dims", dims), ("coords", coords)):
            object.__setattr__(self, name, value)


def _dims(dims: Any, axes: int) -> tuple[str, ...]:
    """Names of axes, one for each.

    Raises:
        InvalidArgument: They are not so many different names.
    """
    fits = (
        isinstance(dims, Sequence)
        and len(dims) == axes == len(set(map(str, dims)))
        and all(isinstance(d, str) and d and "/" not in d and d not in RESERVED for d in dims)
    )
    if not fits:
        raise InvalidArgument(
            "dims",
            dims,
            f"{axes} different names, one for each axis, none of them {' or '.join(RESERVED)}",
        )
    return tuple(dims)


def _coords(coords: Any, sizes: Mapping[str, int]) -> dict[str, list[Any]]:
    """Labels by axis: strings, numbers and dates.

    Raises:
        InvalidArgument: An axis does not exist, or has another number of labels.
    """
    if not isinstance(coords, Mapping) or not coords.keys() <= sizes.keys():
        raise InvalidArgument(
            "coords",
            coords,
            f"labels by the names of axes: {', '.join(sizes) or 'none, as dims names none'}",
        )
    return {name: _labels(name, values, sizes[name]) for name, values in coords.items()}


def _labels(name: str, values: Any, size: int) -> list[Any]:
    dates = isinstance(values, np.ndarray) and values.dtype.kind == "M"
    numbers = isinstance(values, np.ndarray | Tensor) and not dates
    columns = dates or getattr(values, "ndim", None) == 1  # pandas' index too
    listed = values.tolist() if numbers else list(values) if columns else values
    if (
        not isinstance(listed, Sequence)
        or isinstance(listed, str)
        or len(listed) != size
        or not all(isinstance(label, LABELS) for label in listed)
        or any(isinstance(label, int) and abs(label) >= 2**63 for label in listed)
    ):
        raise InvalidArgument(
            f"coords[{name!r}]",
            values,
            f"{size} labels, strings, numbers (integers of 64 bits) or dates, one an entry",
        )
    return [_label(name, label) for label in listed]


def _label(name: str, label: Any) -> Any:
    if isinstance(label, str):
        return label
    if isinstance(label, RealNumber):
        return int(label) if float(label).is_integer() else float(label)  # type: ignore[call-overload]
    if isinstance(label, datetime) and label.tzinfo is not None:
        raise InvalidArgument(f"coords[{name!r}]", label, "dates without a time zone", "Or strings")
    day = np.datetime64(label)
    kept = day.astype("datetime64[ns]")  # as tables and files have them
    if np.isnat(day) or kept.astype(day.dtype) != day:
        raise InvalidArgument(f"coords[{name!r}]", label, "dates from 1678 to 2261", "Or strings")
    return kept


@dataclass(frozen=True)
class Layout:
    """Which entries of a flat x are whose: names, shapes, dims and coords.

    Attributes:
        shapes: The shape of each variable, by name, in their order.
        dims: The names of the axes of each.
        coords: The labels along axes, by the names of these.
        names: The variables in their order, which is part of what a layout is.
        sizes: How many entries each variable has.
    """

    shapes: Mapping[str, Shape]
    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, list[Any]] = field(default_factory=dict)
    names: tuple[str, ...] = field(init=False)
    sizes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        # All at once: what a field is made of does not change by being used.
        object.__setattr__(self, "names", tuple(self.shapes))
        object.__setattr__(self, "sizes", [math.prod(shape) for shape in self.shapes.values()])

    @property
    def size(self) -> int:
        """How many entries they have together."""
        return sum(self.sizes)

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """The variables `(.., *shape)` by name, views of x `(.., size)`."""
        lead = x.shape[:-1]
        parts = zip(self.shapes.items(), x.split(self.sizes, -1), strict=True)
        return {name: part.reshape(*lead, *shape) for (name, shape), part in parts}

    def joined(self, values: Mapping[str, Tensor]) -> Tensor:
        """The x `(.., size)` of the variables `(.., *shape)` by name: the inverse of `split`."""
        parts = [_flat(values[name], len(shape)) for name, shape in self.shapes.items()]
        return torch.cat(parts, -1)

    @property
    def labels(self) -> list[str]:
        """What each entry is called: "mu", "theta[3]", "L[1, 0]"."""
        return [name + index for name, shape in self.shapes.items() for index in _indices(shape)]

    def told(self) -> str:
        """The variables in a line: "mu, tau, theta[8]"."""
        return ", ".join(f"{n}{list(shape) if shape else ''}" for n, shape in self.shapes.items())

    def plain(self) -> dict[str, Any]:
        """Itself in plain values, for the header of a file, in which mappings have no order."""
        variables = [
            {"name": name, "shape": list(shape), "dims": list(self.dims[name])}
            for name, shape in self.shapes.items()
        ]
        coords = {d: [_plain_label(label) for label in self.coords[d]] for d in self.coords}
        return {"variables": variables, "coords": coords}

    @staticmethod
    def from_plain(value: Any) -> Layout:
        """The inverse of `plain`.

        Raises:
            InvalidArgument: It is no layout.
        """
        try:
            specs = {
                variable_name(v["name"]): Variable(tuple(v["shape"]), dims=tuple(v["dims"]))
                for v in _in_order(value["variables"])
            }
            known = {
                d: n for v in specs.values() for d, n in zip(v.dims or (), v.shape, strict=True)
            }
            labels = {d: [_from_plain(label) for label in n] for d, n in value["coords"].items()}
            coords = _coords(labels, known)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, InvalidArgument):
                raise
            raise InvalidArgument("variables", value, "the layout of named variables") from error
        return replace(layout_of(specs), coords=coords)


def _in_order(variables: Any) -> Any:
    """The variables of a file in their order.

    Raises:
        InvalidArgument: It is of the time when files had them by name, sorted: whose numbers are
            whose is not known where there are several.
    """
    if not isinstance(variables, Mapping):
        return variables
    if len(variables) > 1:
        raise InvalidArgument(
            "variables",
            ", ".join(variables),
            "variables in their order, which files of earlier versions did not keep",
            "Sample them again, or load with the version that saved them and save as .nc",
        )
    return [{"name": name, **v} for name, v in variables.items()]


def _plain_label(label: Any) -> Any:
    return {"date": str(label)} if isinstance(label, np.datetime64) else label


def _from_plain(label: Any) -> Any:
    return np.datetime64(label["date"]) if isinstance(label, Mapping) else label


def _flat(value: Tensor, axes: int) -> Tensor:
    """A value `(.., *shape)` as `(.., size)`; `axes` is how many the shape has."""
    return value.flatten(-axes) if axes else value.unsqueeze(-1)


def _check_entries(specs: Mapping[str, Variable]) -> None:
    """Check that no variable has the name of another's entry, which tables would mix up.

    Raises:
        InvalidArgument: One has, as "theta[1]" beside theta of two entries.
    """
    for name in specs:
        stem, bracket, index = name.partition("[")
        other = specs.get(stem)
        if bracket and other is not None and f"[{index}" in _indices(other.shape):
            raise InvalidArgument(
                "variables", name, f"another name: it is that of an entry of {stem!r}"
            )


def _indices(shape: Shape) -> list[str]:
    """What the entries of a variable have after its name: "" of a number, "[3]", "[1, 0]"."""
    indices = product(*map(range, shape))
    return [f"[{', '.join(map(str, index))}]" if index else "" for index in indices]


def layout_of(specs: Mapping[str, Variable]) -> Layout:
    """The layout of variables whose axes and labels agree.

    Raises:
        InvalidArgument: An axis has two sizes or two sets of labels, or the name of a variable; or
            a variable has the name of another's entry.
    """
    dims = {
        name: tuple(v.dims)
        if v.dims is not None
        else tuple(f"{name}_dim_{i}" for i in range(len(v.shape)))
        for name, v in specs.items()
    }
    _check_entries(specs)
    sizes: dict[str, int] = {}
    coords: dict[str, list[Any]] = {}
    for name, v in specs.items():
        for dim, size in zip(dims[name], v.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise InvalidArgument(
                    f"variables[{name!r}]",
                    f"{size} entries along {dim!r}",
                    f"{sizes[dim]}, as others have along it",
                    "Axes of one name have one size: give one of them another name in dims",
                )
            if dim in specs:
                raise InvalidArgument(
                    f"variables[{name!r}]", f"the dim {dim!r}", "one that is no variable's name"
                )
        for dim, labels in v.coords.items():
            if coords.setdefault(dim, labels) != labels:
                raise InvalidArgument(
                    f"variables[{name!r}]", labels, f"the labels that others have along {dim!r}"
                )
    return Layout({name: v.shape for name, v in specs.items()}, dims, coords)


def variable_name(name: Any) -> str:
    """A name that draws can hold a variable by, and files can keep: "tau", "linear.weight".

    Raises:
        InvalidArgument: It is no text, a path, or the name of an axis of all draws.
    """
    if not isinstance(name, str) or not name.isprintable() or not name.strip() or name == ".":
        raise InvalidArgument("variables", name, "names that are texts, such as 'tau'")
    if "/" in name:
        raise InvalidArgument(
            "variables",
            name,
            "names without '/', which files of draws keep for groups",
            "Such as 'scope.tau': numpyro's scope takes divider='.'",
        )
    if name in RESERVED:
        raise InvalidArgument("variables", name, "another name: it is that of an axis of all draws")
    return name
