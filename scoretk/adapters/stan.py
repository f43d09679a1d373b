"""Models of Stan, by bridgestan, as fields of named variables in Stan's own free coordinates.

Stan knows the log density of its free coordinates z, with and without the Jacobian of its map T to
the parameters, and its gradient; T itself only as numbers. So a field is sampled and weighed by
Stan's log density, and draws are Stan's parameters; what has to combine it with other laws of the
parameters (`scoretk.tempered`, `product`) would need the derivative of T, and is refused.

bridgestan's interface is of one point: chains are asked one by one. Where Stan refuses values, by a
`RuntimeError`, the density is 0, and there are no free coordinates.

Stan names each number, `theta.1.2`, and runs through the first axis of an array fastest; a tensor
runs through the last, so that numbers are put into its order.

References:
    Roualdes, Ward, Carpenter, Seyboldt, Axen, "BridgeStan: efficient in-memory access to the methods
    of a Stan model" (2023).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretk.adapters.owned import Both, Owned, called, check_repeats, inner
from scoretk.core.arguments import tensor_like
from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument
from scoretk.fields.constrained import Constrained
from scoretk.fields.foreign import misfit
from scoretk.fields.layout import Layout, Variable, layout_of, variable_name

__all__ = ["from_stan"]


@explained
def from_stan(model: Any) -> Constrained:
    """A field over named variables from a compiled model of Stan.

    Args:
        model: A `bridgestan.StanModel`, with its data.

    Returns:
        The field in Stan's free coordinates; draws are its parameters, by their names.

    Raises:
        InvalidArgument: It is no such model.
    """
    asked = ("log_density", "log_density_gradient", "param_constrain", "param_unconstrain")
    if not all(callable(getattr(model, name, None)) for name in asked):
        raise misfit(
            "model",
            model,
            "a bridgestan.StanModel",
            "Such as bridgestan.StanModel('model.stan', data)",
        )
    owner = _Stan(model)
    layout, order = _layout(model.param_names())
    to_parameters = _StansMap(owner, order)
    free = (int(model.param_unc_num()),)
    energy = Owned(owner.value, owner.both, called("from_stan", model))
    check_repeats("model", lambda: owner.value(inner(*free)))
    users = _OfParameters(owner, layout, to_parameters)
    return Constrained(users, to_parameters, free, "the parameters of Stan", direct=energy)


@dataclass(frozen=True, eq=False)
class _Stan:
    """The functions of a Stan model, of rows."""

    model: Any

    def value(self, z: Tensor, jacobian: bool = True) -> Tensor:
        """The log density of z, `(batch,)`, up to a constant."""
        found = [self._log_density(row, jacobian) for row in _rows(z)]
        return torch.tensor(found, dtype=torch.float64).to(z)

    def _log_density(self, row: Any, jacobian: bool) -> float:
        try:
            return float(self.model.log_density(row, jacobian=jacobian))
        except RuntimeError:  # Stan's, of values that a distribution refuses
            return -np.inf

    def both(self, z: Tensor) -> Both:
        """The log density of z and its gradient, like z."""
        values, gradients = [], []
        for row in _rows(z):
            try:
                value, gradient = self.model.log_density_gradient(row)
            except RuntimeError:
                value, gradient = -np.inf, np.full(len(row), np.nan)
            values.append(float(value))
            gradients.append(np.array(gradient))
        shown = torch.as_tensor(np.array(gradients)).reshape(z.shape)
        return torch.tensor(values, dtype=torch.float64).to(z), shown.to(z)

    def each(self, ask: Callable[[Any], Any], x: Tensor, size: int) -> Tensor:
        """A function of one point, for rows: `(batch, size)`; NaN where Stan refuses a point."""
        found = np.full((len(x), size), np.nan)
        for place, row in zip(found, _rows(x), strict=True):
            with suppress(RuntimeError):
                place[:] = ask(row)
        return torch.as_tensor(found).to(x)


def _rows(x: Tensor) -> Any:
    return np.ascontiguousarray(x.detach().double().cpu().numpy())


@dataclass(frozen=True, eq=False)
class _StansMap:
    """Stan's bijection from free coordinates to parameters.

    Attributes:
        stan: The model.
        order: Where in Stan's order the parameters in the layout's are.
    """

    stan: _Stan
    order: Tensor
    event_dim = 1

    def free_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (int(self.stan.model.param_unc_num()),)

    def constrain(self, z: Tensor) -> Tensor:
        found = self._each(self.stan.model.param_constrain, z, len(self.order))
        return found[..., self.order.to(z.device)]

    def unconstrain(self, x: Tensor) -> Tensor:
        model, back = self.stan.model, self.order.argsort().to(x.device)
        return self._each(model.param_unconstrain, x[..., back], int(model.param_unc_num()))

    def _each(self, ask: Callable[[Any], Any], x: Tensor, size: int) -> Tensor:
        found = self.stan.each(ask, x.reshape(-1, x.shape[-1]), size)
        return found.reshape(*x.shape[:-1], size)

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return self.stan.value(z) - self.stan.value(z, jacobian=False)

    def clamped(self, x: Tensor) -> Tensor:
        return x

    def contains(self, x: Tensor) -> Tensor:
        return self.unconstrain(x).isfinite().all(-1)


@dataclass(frozen=True, eq=False)
class _OfParameters:
    """The law of the parameters, in their own space, and their names."""

    stan: _Stan
    layout: Layout
    transform: _StansMap

    provides = frozenset({"energy"})

    def __repr__(self) -> str:
        return called("from_stan", self.stan.model)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.layout.size,)

    @property
    def variables(self) -> _Parameters:
        """The names of the parameters."""
        return _Parameters(self.layout)

    def energy(self, x: Tensor) -> Tensor:
        """Minus Stan's log density of the parameters, `(batch,)`; autograd does not see into it."""
        return -self.stan.value(self.transform.unconstrain(x), jacobian=False)


@dataclass(frozen=True, eq=False)
class _Parameters:
    """What the draws of a Stan model hold."""

    layout: Layout

    def values(self, x: Tensor) -> Tensor:
        return x

    def point(self, values: Mapping[str, Any]) -> Tensor:
        shapes = self.layout.shapes
        if not isinstance(values, Mapping) or values.keys() != shapes.keys():
            raise InvalidArgument(
                "init", values, f"one value a chain of each of {', '.join(shapes)}"
            )
        return self.layout.joined(
            {
                name: tensor_like(f"init[{name!r}]", values[name], (None, *shape))
                for name, shape in shapes.items()
            }
        )


def _layout(names: list[str]) -> tuple[Layout, Tensor]:
    """Variables from Stan's names of numbers: `mu`, `theta.1.2`, `z.1.real`, `pair:2.1`.

    Args:
        names: One a number, in Stan's order.

    Returns:
        The variables, and where in Stan's order their numbers are, `(size,)`.
    """
    places: dict[str, dict[tuple[int, ...], int]] = {}
    for place, name in enumerate(names):
        parts = re.findall(r"^[^.:]+|[.:][^.:]+", name)
        index = tuple(int(part[1:]) for part in parts if _is_index(part))
        stem = "".join(part for part in parts if not _is_index(part))
        places.setdefault(variable_name(stem), {})[index] = place
    shapes = {stem: tuple(map(max, zip(*found, strict=True))) for stem, found in places.items()}
    # sorted, the last index runs fastest, as in a tensor
    order = [place for found in places.values() for _, place in sorted(found.items())]
    return layout_of({n: Variable(shape) for n, shape in shapes.items()}), torch.tensor(order)


def _is_index(part: str) -> bool:
    return part[0] == "." and part[1:].isdecimal()
