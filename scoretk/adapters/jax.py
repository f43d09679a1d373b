"""Log densities of JAX as fields: arrays pass by dlpack, gradients are JAX's.

`jax.vmap` takes a function of one point to one of all chains, `jax.jit` compiles it once for each
number of them; float64 rows are computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.utils.dlpack import from_dlpack

from scoretk.adapters.owned import Both, Owned, called, check_repeats, inner, of_variables
from scoretk.core.dependencies import required
from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument
from scoretk.fields.constrained import Constrained
from scoretk.fields.foreign import answered
from scoretk.fields.layout import Layout, Variable, variable_name
from scoretk.fields.variables import variables_of
from scoretk.fields.wrappers import Energy

__all__ = ["InJax", "from_jax", "import_jax"]


def import_jax(purpose: str = "A function of JAX") -> Any:
    """The module jax.

    Raises:
        MissingDependency: It is not installed.
    """
    return required("jax", "jax", purpose)


@explained
def from_jax(
    logp: Callable[[Any], Any], example: Any, variables: Mapping[str, Any] | None = None
) -> Energy | Constrained:
    """A field from a log density of JAX.

    Args:
        logp: `logp(x)`, the log density of one point up to a constant; a dictionary of arrays where
            the example is one.
        example: One point, which tells its shape: an array, or a dictionary of named arrays.
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
        owned, event = InJax(logp), tuple(jax.numpy.shape(example))
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
    owned = InJax(logp, space.layout)
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
    return array.astype(np.float64 if array.dtype == np.float64 else np.float32)


_REAL = ("float", "int", "uint", "bool", "bfloat")
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


@dataclass(frozen=True, eq=False)
class InJax:
    """A function of one point in JAX, for rows in torch.

    Attributes:
        logp: The log density of one point.
        layout: Which entries of a row are which argument's; None for a point that is an array.
    """

    logp: Callable[[Any], Any]
    layout: Layout | None = field(default=None)

    def of_row(self, x: Any) -> Any:
        """The log density of one point, an array of JAX."""
        if self.layout is None:
            return self.logp(x)
        point, start = {}, 0
        for name, shape in self.layout.shapes.items():
            stop = start + _size(shape)
            point[name] = x[start:stop].reshape(shape)
            start = stop
        return self.logp(point)

    @cached_property
    def _values(self) -> Any:
        jax = import_jax()
        return jax.jit(jax.vmap(self.of_row))

    @cached_property
    def _gradients(self) -> Any:
        jax = import_jax()
        return jax.jit(jax.vmap(jax.value_and_grad(self.of_row)))

    def value(self, x: Tensor) -> Tensor:
        """`log p(x)`, `(batch,)`."""
        with _precision(x):
            return _to_torch(
                answered(lambda: self._values(_to_jax(x)), self.logp, x, {}, PRECISIONS), x
            )

    def both(self, x: Tensor) -> Both:
        """`log p(x)` and its gradient, like x."""
        with _precision(x):
            value, gradient = answered(
                lambda: self._gradients(_to_jax(x)), self.logp, x, {}, _DIFFERENTIABLE
            )
            return _to_torch(value, x), _to_torch(gradient, x)


PRECISIONS = (
    "logp takes one point, of the example's shape, in the run's dtype. JAX traces arrays of numpy "
    "in the precision of the first call: for float64 and float32 in one process, make data "
    "jax.numpy arrays, or begin with jax.config.update('jax_enable_x64', True)"
)
_DIFFERENTIABLE = f"{PRECISIONS}. The gradient of logp is jax.grad's, in reverse mode"


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _precision(x: Tensor) -> Any:
    """float64 for rows of it; and where the user has it on, as the data may be of it then."""
    jax = import_jax()
    return jax.enable_x64(x.dtype == torch.float64 or bool(jax.config.jax_enable_x64))


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
