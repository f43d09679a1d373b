"""Models of Stan, by bridgestan, as fields of named variables in Stan's own free coordinates.

Stan knows the log density of its free coordinates z, with and without the Jacobian of its map T to
the parameters, and its gradient; T itself only as numbers. So a field is sampled and weighed by
Stan's log density, and draws are Stan's parameters; what has to combine it with other laws of the
parameters (`scoretk.tempered`, `product`) would need the derivative of T, and is refused.

bridgestan's interface is of one point: chains are asked one by one.

References:
    Roualdes, Ward, Carpenter, Seyboldt, Axen, "BridgeStan: efficient in-memory access to the methods
    of a Stan model" (2023).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from scoretk.adapters.owned import Both, Owned
from scoretk.core.arguments import tensor_like
from scoretk.errors import InvalidArgument
from scoretk.fields.constrained import Constrained
from scoretk.fields.layout import Layout, Variable, layout_of

__all__ = ["from_stan"]


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
        raise InvalidArgument(
            "model",
            type(model),
            "a bridgestan.StanModel",
            "Such as bridgestan.StanModel('model.stan', data)",
        )
    owner = _Stan(model)
    users = _OfParameters(owner, _layout(model.param_names()))
    free = (int(model.param_unc_num()),)
    energy = Owned(owner.value, owner.both)
    return Constrained(users, _StansMap(owner), free, "the parameters of Stan", direct=energy)


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
        """A function of one point, for rows: `(batch, size)`."""
        found = np.array([np.array(ask(row)) for row in _rows(x)])
        return torch.as_tensor(found).reshape(len(x), size).to(x)


def _rows(x: Tensor) -> Any:
    return np.ascontiguousarray(x.detach().double().cpu().numpy())


@dataclass(frozen=True, eq=False)
class _StansMap:
    """Stan's bijection from free coordinates to parameters."""

    stan: _Stan
    event_dim = 1

    def free_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (int(self.stan.model.param_unc_num()),)

    def constrain(self, z: Tensor) -> Tensor:
        lead, model = z.shape[:-1], self.stan.model
        size = int(model.param_num())
        return self.stan.each(model.param_constrain, z.reshape(-1, z.shape[-1]), size).reshape(
            *lead, size
        )

    def unconstrain(self, x: Tensor) -> Tensor:
        model = self.stan.model
        return self.stan.each(model.param_unconstrain, x, int(model.param_unc_num()))

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return self.stan.value(z) - self.stan.value(z, jacobian=False)

    def clamped(self, x: Tensor) -> Tensor:
        return x

    def contains(self, x: Tensor) -> Tensor:
        return x.isfinite().all(-1)  # Stan refuses others where they are unconstrained


@dataclass(frozen=True, eq=False)
class _OfParameters:
    """The law of the parameters, in their own space, and their names."""

    stan: _Stan
    layout: Layout

    provides = frozenset({"energy"})

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.layout.size,)

    @property
    def variables(self) -> _Parameters:
        """The names of the parameters."""
        return _Parameters(self.layout)

    def energy(self, x: Tensor) -> Tensor:
        """Minus Stan's log density of the parameters, `(batch,)`; autograd does not see into it."""
        z = _StansMap(self.stan).unconstrain(x)
        return -self.stan.value(z, jacobian=False)


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


def _layout(names: list[str]) -> Layout:
    """Variables from Stan's names of numbers, `theta.1`, `theta.2`, ...

    Of several axes Stan runs through the first fastest, a tensor through the last: those are kept as
    one axis, in Stan's order.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        stem, *indices = re.split(r"[.:]", name)
        seen = shapes.get(stem, (0,) * len(indices))
        shapes[stem] = tuple(max(a, int(i)) for a, i in zip(seen, indices, strict=True))
    several = [stem for stem, shape in shapes.items() if sum(n > 1 for n in shape) > 1]
    flat = {stem: (int(np.prod(shape)),) for stem, shape in shapes.items() if stem in several}
    return layout_of({n: Variable(flat.get(n, s), constraints.real) for n, s in shapes.items()})
