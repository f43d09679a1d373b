"""Log densities of JAX as fields: arrays pass by dlpack, gradients are JAX's.

`jax.vmap` takes a function of one point to one of all chains, `jax.jit` compiles it once for each
number of them; float64 rows are computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from scoretk.adapters.owned import Both, Owned, of_variables
from scoretk.core.dependencies import required
from scoretk.errors import InvalidArgument
from scoretk.fields.constrained import Constrained
from scoretk.fields.layout import Layout
from scoretk.fields.variables import variables_of
from scoretk.fields.wrappers import Energy

__all__ = ["InJax", "from_jax", "import_jax"]


def import_jax(purpose: str = "A function of JAX") -> Any:
    """The module jax.

    Raises:
        MissingDependency: It is not installed.
    """
    return required("jax", "jax", purpose)


def from_jax(
    logp: Callable[[Any], Any], example: Any, variables: Mapping[str, Any] | None = None
) -> Energy | Constrained:
    """A field from a log density of JAX.

    Args:
        logp: `logp(x)`, the log density of one point up to a constant; a dictionary of arrays where
            the example is one.
        example: One point, which tells its shape: an array, or a dictionary of named arrays.
        variables: By name, for a dictionary: a constraint, or a `scoretk.Variable` with dims and
            coords, in place of all real numbers of the shape in the example.

    Returns:
        A static field: of x of the shape of the array, or of named variables.

    Raises:
        InvalidArgument: An argument does not fit, or the log density is no number.
        MissingDependency: JAX is not installed.
    """
    jax = import_jax()
    if not callable(logp):
        raise InvalidArgument("logp", logp, "a function logp(x) of one point")
    shape = _shape_of(logp, example, jax)
    if shape != ():
        raise InvalidArgument("logp", shape, "a log density that is one number a point, shape ()")
    if not isinstance(example, Mapping):
        if variables is not None:
            raise InvalidArgument("variables", variables, "None with an example that is an array")
        owned = InJax(logp)
        return Energy(Owned(owned.value, owned.both), tuple(jax.numpy.shape(example)))
    shapes = {name: tuple(jax.numpy.shape(value)) for name, value in example.items()}
    space = variables_of(shapes | dict(variables or {}))
    if space.layout.shapes != shapes:
        raise InvalidArgument(
            "variables", variables, f"variables of the example's shapes, {shapes}"
        )
    owned = InJax(logp, space.layout)
    return of_variables(Owned(owned.value, owned.both), space)


def _shape_of(logp: Callable[[Any], Any], example: Any, jax: Any) -> Any:
    try:
        return jax.eval_shape(logp, example).shape
    except Exception as error:  # whatever a user's function raises
        raise InvalidArgument(
            "example", example, "one point of logp, an array or a dictionary of arrays", str(error)
        ) from error


@dataclass(frozen=True, eq=False)
class InJax:
    """A function of one point in JAX, for rows in torch.

    Attributes:
        logp: The log density of one point.
        layout: Which entries of a row are which argument's; None for a point that is an array.
    """

    logp: Callable[[Any], Any]
    layout: Layout | None = field(default=None)

    def _of_row(self, x: Any) -> Any:
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
        return jax.jit(jax.vmap(self._of_row))

    @cached_property
    def _gradients(self) -> Any:
        jax = import_jax()
        return jax.jit(jax.vmap(jax.value_and_grad(self._of_row)))

    def value(self, x: Tensor) -> Tensor:
        """`log p(x)`, `(batch,)`."""
        with import_jax().enable_x64(x.dtype == torch.float64):
            return _to_torch(self._values(_to_jax(x)), x)

    def both(self, x: Tensor) -> Both:
        """`log p(x)` and its gradient, like x."""
        with import_jax().enable_x64(x.dtype == torch.float64):
            value, gradient = self._gradients(_to_jax(x))
            return _to_torch(value, x), _to_torch(gradient, x)


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _to_jax(x: Tensor) -> Any:
    return import_jax().dlpack.from_dlpack(x.detach().contiguous())


def _to_torch(value: Any, x: Tensor) -> Tensor:
    found: Tensor = from_dlpack(value)
    return found.to(x, copy=True)  # JAX's memory is not to be written into
