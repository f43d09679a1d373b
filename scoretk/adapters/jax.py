"""Log densities of JAX as fields: arrays pass by dlpack, gradients are JAX's.

`jax.vmap` takes a function of one point to one of all chains, `jax.jit` compiles it once for each
number of them; float64 rows are computed in float64. The function is taken as it is when the field
is made: what it closes over may change afterwards, the field does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.utils.dlpack import from_dlpack

from scoretk.adapters.jaxprs import Program, import_jax, program
from scoretk.adapters.owned import Both, Owned, called, check_repeats, inner, of_variables
from scoretk.core.identity import Identity
from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument
from scoretk.fields.constrained import Constrained
from scoretk.fields.foreign import answered
from scoretk.fields.layout import Layout, Variable, variable_name
from scoretk.fields.variables import variables_of
from scoretk.fields.wrappers import Energy

__all__ = ["InJax", "from_jax", "in_jax"]


@explained
def from_jax(
    logp: Callable[[Any], Any], example: Any, variables: Mapping[str, Any] | None = None
) -> Energy | Constrained:
    """A field from a log density of JAX.

    Args:
        logp: `logp(x)`, the log density of one point up to a constant; a dictionary of arrays where
            the example is one.
        example: One point, which tells its shape: an array, or a dictionary of named arrays, of
            floating-point numbers.
        variables: By name, for a dictionary: a constraint of values of the example's shape, or a
            `scoretk.Variable` with dims and coords, in place of all real numbers.

    Returns:
        A static field: of x of the shape of the array, or of named variables.

    Raises:
        InvalidArgument: An argument does not fit, or the log density is no number, or another one
            each time.
        MissingDependency: JAX is not installed.
    """
    jax = import_jax()
    if not callable(logp):
        raise InvalidArgument("logp", logp, "a function logp(x) of one point")
    example = _point(example)
    found = _found(logp, example, jax)
    if found.shape != () or not jax.numpy.issubdtype(found.dtype, jax.numpy.floating):
        raise InvalidArgument(
            "logp",
            f"a value of shape {found.shape}, {found.dtype}",
            "a log density that is one number a point, shape (), real and of floating point",
        )
    if not isinstance(example, Mapping):
        if variables is not None:
            raise InvalidArgument(
                "variables",
                variables,
                "None with an example that is an array",
                "scoretk.constrained(field, constraint) has its support",
            )
        event = tuple(jax.numpy.shape(example))
        owned = in_jax(logp, event, _dtype(example))
        near = jax.numpy.asarray(inner(*event)[0].numpy() + example)
        check_repeats("logp", lambda: logp(near))
        return Energy(Owned(owned.value, owned.both, called("from_jax", logp)), event)
    shapes = {name: tuple(jax.numpy.shape(value)) for name, value in example.items()}
    given = {
        name: Variable(shapes[name], spec)
        if name in shapes and isinstance(spec, constraints.Constraint)
        else spec
        for name, spec in (variables or {}).items()
    }
    space = variables_of(shapes | given, variable_name)
    if space.layout.shapes != shapes:
        raise InvalidArgument(
            "variables", variables, f"variables of the example's shapes, {shapes}"
        )
    owned = in_jax(logp, space.layout, max(map(_dtype, example.values()), key=_bits))
    some = _to_jax(space.constrain(inner(*space.free_shape((space.layout.size,))))[0].float())
    check_repeats("logp", lambda: owned.of_row(some))
    return of_variables(Owned(owned.value, owned.both, called("from_jax", logp)), space)


def _point(example: Any) -> Any:
    """An example as floating-point arrays of numpy, by name where it is a dictionary.

    Raises:
        InvalidArgument: It is no array of real numbers, and no dictionary of such.
    """
    if isinstance(example, Mapping):
        return {name: _array(f"example[{name!r}]", value) for name, value in example.items()}
    return _array("example", example)


def _array(argument: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    known = value is not None and not isinstance(value, str | bytes | Sequence | Mapping)
    array = np.asarray(value) if known else None
    kind = "" if array is None else str(array.dtype)
    if array is None or not kind.startswith(_REAL):
        raise InvalidArgument(
            argument,
            value,
            "one point of logp, an array of real numbers or a dictionary of such by name",
            "Real and imaginary parts side by side are real numbers"
            if kind.startswith("complex")
            else "logp gets one array, jax.numpy.asarray(example), or a dictionary {name: array}, "
            "no tuple, list or tree",
        )
    if kind.startswith(_WHOLE):
        raise InvalidArgument(
            argument,
            f"{value!r}, of {kind}",
            "real numbers of floating point, as x is asked for between whole numbers",
            "What is a count, a label or a switch is no variable that a gradient moves: sum it out, or "
            "hold it fixed within logp. Of real numbers that are written as whole ones: 1.0 for 1, "
            "jax.numpy.zeros(3), or array.astype(float)",
        )
    return array.astype(np.float64 if array.dtype == np.float64 else np.float32)


_WHOLE = ("int", "uint", "bool")
_REAL = ("float", "bfloat", *_WHOLE)
"""How the names of dtypes of real numbers begin; a half precision is JAX's own."""


def _found(logp: Callable[[Any], Any], example: Any, jax: Any) -> Any:
    """Shape and dtype of the log density at an example."""
    try:
        found = jax.eval_shape(logp, example)
        return found if hasattr(found, "shape") else jax.numpy.asarray(found)
    except Exception as error:  # whatever a user's function raises
        raise InvalidArgument(
            "logp", logp, "a log density of points such as the example", _said(error)
        ) from error


def _said(error: Exception) -> str:
    return f"It raised {type(error).__name__}: {error}"


def in_jax(logp: Callable[[Any], Any], over: Layout | tuple[int, ...], dtype: torch.dtype) -> InJax:
    """A function of one point in JAX, as it is now, for rows in torch.

    Args:
        logp: The log density of one point, an array or a dictionary of such.
        over: The shape of the point; where it is a dictionary, which entries of a row are whose.
        dtype: A dtype of rows that it can be asked for; what it raises then is raised.
    """
    wide = bool(import_jax().config.jax_enable_x64)
    row = torch.empty(over.size if isinstance(over, Layout) else over, dtype=dtype)
    made = _traced(logp, over, row, wide)
    owned = InJax(logp, over, dtype, wide, *made.content)
    _COMPILED[owned] = {dtype: made}
    return owned


@dataclass(frozen=True, eq=False)
class InJax:
    """A function of one point in JAX, for rows in torch.

    Attributes:
        logp: The log density of one point.
        over: The shape of the point; where it is a dictionary, which entries of a row are whose.
        dtype: The dtype of rows that it was traced for when it was made.
        wide: Whether JAX had float64 then: it is on for rows of other dtypes too, as the data may
            be of it.
        texts: The operations of the log density and of its gradient, as they were traced.
        constants: The arrays in these.
    """

    logp: Callable[[Any], Any]
    over: Layout | tuple[int, ...]
    dtype: torch.dtype
    wide: bool
    texts: tuple[str, ...]
    constants: tuple[Any, ...]

    def of_row(self, x: Any) -> Any:
        """The log density of one point, an array of JAX."""
        return _of_row(self.logp, self.over, x)

    def value(self, x: Tensor) -> Tensor:
        """`log p(x)`, `(batch,)`."""
        with self._precision(x):
            rows = _to_jax(x)
            found = answered(lambda: self._compiled(x).values(rows)[0], self.logp, x, {}, _POINT)
            return _to_torch(found, x)

    def both(self, x: Tensor) -> Both:
        """`log p(x)` and its gradient, like x."""
        with self._precision(x):
            rows = _to_jax(x)
            value, gradient = answered(
                lambda: self._compiled(x).gradients(rows), self.logp, x, {}, _DIFFERENTIABLE
            )
            return _to_torch(value, x), _to_torch(gradient, x)

    def _precision(self, x: Tensor) -> Any:
        return import_jax().enable_x64(self._is_wide(x))

    def _is_wide(self, x: Tensor) -> bool:
        return self.wide or x.dtype == torch.float64

    def _compiled(self, x: Tensor) -> _Traced:
        """The log density for rows of a dtype.

        Raises:
            InvalidArgument: It has not been traced for the dtype yet, and is not any more what it
                was when the field was made.
        """
        known = _COMPILED.setdefault(self, {})
        if x.dtype not in known:
            now = _traced(
                self.logp, self.over, x.new_empty(x.shape[1:], dtype=self.dtype), self.wide
            )
            if _digest(now.content) != _digest((self.texts, self.constants)):
                raise InvalidArgument(
                    "x",
                    f"the first rows of {x.dtype}, of data or code that have changed since",
                    f"rows of {', '.join(map(str, known or [self.dtype]))}",
                    "The field is of the log density as it was when it was made: make it anew",
                )
            known[x.dtype] = _traced(
                self.logp, self.over, x.new_empty(x.shape[1:]), self._is_wide(x)
            )
        return known[x.dtype]


_POINT = "logp takes one point, of the example's shape, in the run's dtype"
_DIFFERENTIABLE = f"{_POINT}. The gradient of logp is jax.grad's, in reverse mode"


@dataclass(frozen=True, eq=False)
class _Traced:
    """A log density, and its gradient with it, of rows of one dtype.

    Attributes:
        content: The operations of both, and their arrays.
        values: Takes rows to a list of `log p(x)`.
        gradients: Takes rows to `log p(x)` and its gradient.
    """

    content: tuple[tuple[str, ...], tuple[Any, ...]]
    values: Callable[[Any], Any]
    gradients: Callable[[Any], Any]


_COMPILED: WeakKeyDictionary[InJax, dict[torch.dtype, _Traced]] = WeakKeyDictionary()
"""What was traced, by the dtype of the rows: no part of a field, which is the same for each."""


def _traced(
    logp: Callable[[Any], Any], over: Layout | tuple[int, ...], row: Tensor, wide: bool
) -> _Traced:
    """A log density and its gradient as they are now, for rows like one."""
    jax, wide = import_jax(), wide or row.dtype == torch.float64

    def of_row(x: Any) -> Any:
        return _of_row(logp, over, x)

    with jax.enable_x64(wide):
        point = _to_jax(row)
    value = program(of_row, point, wide)
    found = [value]
    try:
        found.append(program(jax.value_and_grad(of_row), point, wide))
        gradients = _of_rows(found[1])
    except Exception as error:  # noqa: BLE001 (JAX has many: no gradient in reverse mode, ...)
        gradients = partial(_raise, error)
    content = tuple(p.text for p in found), tuple(c for p in found for c in p.constants)
    return _Traced(content, _of_rows(value), gradients)


def _of_rows(program: Program) -> Callable[[Any], Any]:
    jax = import_jax()
    return jax.jit(jax.vmap(program.run))  # type: ignore[no-any-return]


def _raise(error: Exception, rows: Any) -> Any:
    raise error


def _digest(content: Any) -> Any:
    return Identity(content=content).summary()["digest"]


def _of_row(logp: Callable[[Any], Any], over: Layout | tuple[int, ...], x: Any) -> Any:
    if not isinstance(over, Layout):
        return logp(x)
    point, start = {}, 0
    for name, shape in over.shapes.items():
        stop = start + _size(shape)
        point[name] = x[start:stop].reshape(shape)
        start = stop
    return logp(point)


def _dtype(array: Any) -> torch.dtype:
    """The dtype of rows of points like an array, in the precision that JAX has now."""
    jax = import_jax()
    return (
        torch.float64 if jax.dtypes.canonicalize_dtype(array.dtype) == np.float64 else torch.float32
    )


def _bits(dtype: torch.dtype) -> int:
    return dtype.itemsize


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _to_jax(x: Tensor) -> Any:
    jax = import_jax()
    try:
        return jax.dlpack.from_dlpack(x.detach().contiguous())
    except (RuntimeError, BufferError, TypeError, ValueError) as error:  # of any of its versions
        devices = ", ".join(sorted({str(device) for device in jax.devices()}))
        raise InvalidArgument(
            "x",
            f"{x.dtype} on {x.device}",
            f"floating-point numbers where JAX is, on {devices}",
            "Sample with device='cpu', or install JAX for the device, such as 'jax[cuda12]'",
        ) from error


def _to_torch(value: Any, x: Tensor) -> Tensor:
    found: Tensor = from_dlpack(value)
    return found.to(x, copy=True)  # JAX's memory is not to be written into
