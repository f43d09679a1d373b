"""Checks of arguments.

Each takes the name of the argument and its value, returns the value in plain form, and raises
`InvalidArgument`, whose message has the name, what was got and what was expected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from inspect import Parameter, signature
from numbers import Real
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretk.core.arrays import aligned
from scoretk.errors import InvalidArgument, UnknownName

__all__ = [
    "a_row_each",
    "conditions",
    "count",
    "counts",
    "device",
    "event_shape",
    "finite",
    "flag",
    "flags",
    "float_dtype",
    "fraction",
    "function",
    "integer",
    "is_integer",
    "names",
    "numbers",
    "option",
    "pair",
    "positive",
    "tensor_like",
]


MOST = torch.finfo(torch.float32).max


UNREADABLE = (TypeError, ValueError, RuntimeError, OverflowError)
"""What torch raises for a value of which it makes no tensor."""


LARGE = 2**32
"""From here on a bound of integers is a power of two, and is written as one."""


def is_integer(value: Any) -> bool:
    """Whether a value is one integer: Python's, numpy's, or a tensor or array of no dimension.

    Booleans are not.
    """
    if (
        isinstance(value, bool)
        or getattr(value, "ndim", 0) != 0
        or getattr(value, "dtype", None) is torch.bool
    ):
        return False
    if isinstance(value, int):  # the compiler cannot take `index` of a member of an enumeration
        return True
    try:
        index(value)
    except (TypeError, RuntimeError):  # torch's for a tensor without a value, such as one on "meta"
        return False
    return True


def integer(name: str, value: Any, least: int = 0, below: int = 2**63) -> int:
    """A plain integer in [least, below)."""
    if not is_integer(value) or not least <= (number := int(value)) < below:
        end = f"2**{below.bit_length() - 1}" if below >= LARGE else str(below)
        raise InvalidArgument(name, value, f"an integer in [{least}, {end})")
    return number


def count(name: str, value: Any, *, least: int = 0) -> int:
    """A plain integer in [least, 2^63)."""
    if not is_integer(value) or not least <= (number := index(value)) < 2**63:
        raise InvalidArgument(name, value, f"an integer of at least {least}")
    return number


def counts(owner: Any, **least: int) -> None:
    """Make attributes of a frozen dataclass plain integers, in its `__post_init__`.

    Args:
        owner: The dataclass object.
        least: The least value of each, by the attribute's name.
    """
    for name, bound in least.items():
        object.__setattr__(owner, name, count(name, getattr(owner, name), least=bound))


def finite(name: str, value: Any) -> float:
    """A finite real number, as a float."""
    number = real(value)
    if number is None or not math.isfinite(number):
        raise InvalidArgument(name, value, "a finite number")
    return number


def positive(name: str, value: Any) -> float:
    """A positive real number that float32 can hold, as a float."""
    number = real(value)
    if number is None or not 0 < number < MOST:
        raise InvalidArgument(name, value, "a positive finite number")
    return number


def fraction(name: str, value: Any, interval: str = "[0, 1]") -> float:
    """A number between 0 and 1, as a float; `interval` says whether the ends are allowed."""
    number = real(value)
    ends = {0.0: interval[0] == "[", 1.0: interval[-1] == "]"}
    if number is None or not ends.get(number, 0 < number < 1):
        raise InvalidArgument(name, value, f"a number in {interval}")
    return number


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise InvalidArgument(name, value, "True or False")
    return value


def flags(owner: Any, *names: str) -> None:
    """Check that attributes of a dataclass are True or False, in its `__post_init__`."""
    for name in names:
        flag(name, getattr(owner, name))


def device(name: str, value: Any) -> torch.device:
    """A device of this machine on which tensors hold numbers (not "meta")."""
    try:
        found = torch.device(value)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InvalidArgument(
            name, value, "a torch device of this machine", str(error).split("\n")[0]
        ) from error
    if found.type == "meta":
        raise InvalidArgument(name, value, "a device that holds numbers")
    return found


def names(argument: str, value: Any) -> frozenset[str]:
    """One name, or several, as a set."""
    found = [value] if isinstance(value, str) else value
    try:
        several = frozenset(found)
    except TypeError:  # nothing to go through, or things that have no hash
        several = frozenset([None])
    if not all(isinstance(name, str) for name in several):
        raise InvalidArgument(argument, value, "a name, or names")
    return several


def conditions(value: Any, rows: int | None = None) -> dict[str, Tensor]:
    """Condition values: tensors by name, one row a chain.

    Args:
        value: A mapping, or None for no conditions.
        rows: How many rows each has; None for any number.

    Returns:
        A dict of tensors.

    Raises:
        InvalidArgument: It is no mapping of names to dense tensors of so many rows.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InvalidArgument("cond", value, "a mapping of names to tensors")
    for name, given in value.items():
        if isinstance(given, Tensor):  # first, as nested tensors have no shape
            numbers(f"cond[{name!r}]", given)
        if not isinstance(given, Tensor) or (rows is not None and given.shape[:1] != (rows,)):
            raise InvalidArgument(
                f"cond[{name!r}]",
                given,
                f"a tensor of {'rows' if rows is None else f'{rows} rows'}",
                _shared(given, rows),
            )
    return dict(value)


def _shared(given: Any, rows: int | None) -> str:
    """A hint on how to repeat a single row for all chains; "" where it is no single row."""
    if rows is None:
        return ""
    if isinstance(given, int | float):
        return f"One for all chains: torch.full(({rows},), {given})"
    if not isinstance(given, Tensor):
        return "Such as torch.as_tensor(value)" if isinstance(given, list | tuple) else ""
    one = given.shape[:1] == (1,)
    if given.ndim > 1 and not one:
        return ""
    sizes = ", ".join(map(str, (rows, *given.shape[one:])))
    of = "" if one or not given.ndim else f", if it is one condition of {len(given)} numbers"
    return f"One for all chains{of}: value.expand({sizes})"


def real(value: Any) -> float | None:
    """A real number as a float, infinite beyond its range; None where it is no real number."""
    # A Fraction is a Real, but torch does not take it.
    if isinstance(value, bool) or not isinstance(value, Real) or isinstance(value, Fraction):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def float_dtype(name: str, value: Any, advice: str = "") -> torch.dtype:
    """torch.float32 or torch.float64; `advice` says what to do about any other."""
    if not isinstance(value, torch.dtype) or value not in (torch.float32, torch.float64):
        raise InvalidArgument(name, value, "torch.float32 or torch.float64", advice)
    return value


def option(name: str, value: Any, known: Iterable[str]) -> str:
    """One of the known strings.

    Raises:
        InvalidArgument: It is no string.
        UnknownName: It is another string; the message has the nearest.
    """
    names = list(known)
    if not isinstance(value, str):
        raise InvalidArgument(name, value, f"one of {', '.join(map(repr, names))}")
    if value not in names:
        raise UnknownName(name, value, names)
    return value


def function(name: str, value: Any, form: str) -> Any:
    """Something that can be called as `form` shows, such as `net(x, t, **cond)`, and no class.

    Where its signature is known it takes as many positional arguments as the form has, and its
    time, where one of two is called so, at the form's place.
    """
    if not callable(value) or isinstance(value, type):
        raise InvalidArgument(name, value, f"a callable {form}")
    shown = re.match(r"\w+\(([^)]*)\)", form)
    given = [a for a in shown[1].split(", ") if not a.startswith("*")] if shown else []
    taken = _positional(value)
    if taken is not None and len(taken) < len(given):
        raise InvalidArgument(
            name, value, f"a callable {form}", f"It has {len(taken)} positional parameters"
        )
    if len(given) == 2 and taken and "x" in given and _turned(given, taken[:2]):
        first, second = given
        raise InvalidArgument(
            name,
            value,
            f"a callable {form}",
            f"It takes ({', '.join(taken[:2])}), the other way round: "
            f"lambda {first}, {second}, **cond: {name}({second}, {first}, **cond)",
        )
    return value


_TIMES = frozenset({"t", "time", "times", "timestep", "timesteps", "sigma", "sigmas"})
"""Names of a network's time parameter."""


def _turned(given: Sequence[str], taken: Sequence[str]) -> bool:
    """Whether of two parameters the one with the name of a time stands where x is passed."""
    named = [parameter.lower() in _TIMES for parameter in taken]
    return named.count(True) == 1 and named.index(True) == given.index("x")


def keyword_names(function: Any, positional: int) -> frozenset[str] | None:
    """The parameters of a function, or of a module, that can be given by name, without the first.

    Args:
        function: What is called.
        positional: How many come first, such as x and t.

    Returns:
        Their names; None where any may be given, or nothing is known.
    """
    called = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        parameters = list(signature(called).parameters.values())
    except (TypeError, ValueError):  # C code does not say
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(
        p.name
        for p in parameters[positional:]
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )


def _positional(value: Any) -> list[str] | None:
    """The positional parameters that a callable takes; None for any number, or unknown."""
    try:
        taken = signature(value.forward if isinstance(value, torch.nn.Module) else value).parameters
    except (AttributeError, TypeError, ValueError):
        return None
    if any(p.kind is Parameter.VAR_POSITIONAL for p in taken.values()):
        return None
    by_place = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in taken.values() if p.kind in by_place]


def event_shape(value: Any, name: str = "event_shape") -> tuple[int, ...]:
    """The shape of one event: a tuple of positive sizes, of as many numbers as a tensor can have."""
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(is_integer(n) and n > 0 for n in value)
    ):
        raise InvalidArgument(
            name, value, "a tuple of positive integers, such as (2,) or (1, 8, 8)"
        )
    shape = tuple(map(index, value))
    if math.prod(shape) >= 2**63:
        raise InvalidArgument(name, value, "a shape of fewer than 2**63 numbers")
    return shape


def pair(name: str, value: Any) -> tuple[float, float]:
    """Two finite numbers, the first below the second."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise InvalidArgument(name, value, "two numbers (low, high)")
    low, high = (finite(name, end) for end in value)
    if not low < high:
        raise InvalidArgument(name, value, "(low, high) with low < high")
    return low, high


def numbers(name: str, value: Any) -> Tensor:
    """A dense tensor with values, of any dtype and shape, from whatever torch makes one of."""
    try:
        arrays = isinstance(value, list | tuple) and any(isinstance(v, np.ndarray) for v in value)
        tensor = torch.as_tensor(
            np.stack(value) if arrays else value
        )  # torch warns of arrays in lists
    except UNREADABLE as error:
        way = f"Of draws: {name}=draws.final" if hasattr(value, "final") else str(error)
        raise InvalidArgument(name, value, "a tensor or something that becomes one", way) from error
    if (
        tensor.layout is not torch.strided
        or tensor.is_nested
        or tensor.is_meta
        or tensor.is_quantized
    ):
        raise InvalidArgument(
            name,
            value,
            "a dense tensor with values, neither sparse, nested nor quantised, nor on 'meta'",
        )
    return tensor


def floats(name: str, value: Any, expected: str) -> Tensor:
    """The numbers as a tensor of float64, where they are; `expected` says what they should be."""
    try:
        return numbers(name, torch.as_tensor(value, dtype=torch.float64))
    except UNREADABLE as error:
        raise InvalidArgument(name, value, expected) from error


def a_row_each(name: str, value: Any, shape: tuple[int, ...], rows: int | None) -> None:
    """Refuse a value with the shape of a single row, as where the axis of chains was forgotten.

    Args:
        name: The argument's name.
        value: What torch can make a tensor of.
        shape: The shape of one row.
        rows: How many rows are expected; None for any number.

    Raises:
        InvalidArgument: It has as many axes as one row.
    """
    if numbers(name, value).ndim == len(shape):
        sizes = ", ".join(map(str, ("chains" if rows is None else rows, *shape)))
        raise InvalidArgument(
            name,
            value,
            f"a tensor of {'' if rows is None else f'{rows} '}rows, one a chain",
            f"One for all chains: torch.as_tensor(value).expand({sizes})",
        )


def tensor_like(name: str, value: Any, shape: tuple[int | None, ...]) -> Tensor:
    """A real floating-point tensor, finite throughout.

    Args:
        name: The argument's name.
        value: What torch can make a tensor of; integers become torch's default dtype.
        shape: Its shape; None for any size of an axis.

    Returns:
        The tensor, `aligned`, so that no result depends on where in memory the caller's numbers
        lie.
    """
    tensor = numbers(name, value)
    fits = tensor.ndim == len(shape) and all(
        s in (None, n) for s, n in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        one = tensor.ndim > len(shape) and tensor.shape[1:] == shape
        raise InvalidArgument(
            name,
            value,
            f"shape ({wanted}{',' * (len(shape) == 1)})",
            f"One of its rows: {name}[0]" if one else "",
        )
    if tensor.is_complex() or tensor.dtype is torch.bool:
        raise InvalidArgument(name, value, "real numbers")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidArgument(name, value, "finite numbers", "It holds NaN or infinity")
    return aligned(tensor)
