"""Models of Stan, by bridgestan, as fields of named variables in Stan's own free coordinates.

Stan knows the log density of its free coordinates z, with and without the Jacobian of its map T to
the parameters, and its gradient; T itself only as numbers. So a field is sampled and weighed by
Stan's log density, and draws are Stan's parameters; what has to combine it with other laws of the
parameters (`scoretk.tempered`, `product`) would need the derivative of T, and is refused.

bridgestan's interface is of one point: chains are asked one by one. Where Stan refuses values, by a
`RuntimeError`, the density is 0, and there are no free coordinates.

Stan takes a simplex, a unit vector or the rows of a correlation's Cholesky factor for such only to 1e-8,
which float32 does not resolve. What the parameters tie among their numbers is found at a few points, and
values that miss it by such a rounding are led onto it.

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
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from scoretk.adapters.owned import Both, Owned, called, check_repeats, inner
from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument
from scoretk.fields.constrained import Constrained
from scoretk.fields.foreign import misfit
from scoretk.fields.layout import Layout, Variable, layout_of, variable_name
from scoretk.fields.variables import outside, rows_by_name

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
    owner, free = _Stan(type(model), *_told(model)), (int(model.param_unc_num()),)
    _MODELS[owner] = model
    if free == (0,):
        raise InvalidArgument("model", model, "a model with parameters")
    layout, order = _layout(model.param_names())
    to_parameters = _StansMap(owner, order, layout, {})
    to_parameters = replace(to_parameters, ties=_ties(to_parameters, free[0]))
    energy = Owned(owner.value, owner.both, called("from_stan", model))
    check_repeats("model", lambda: owner.value(inner(*free)))
    users = _OfParameters(owner, layout, to_parameters)
    return Constrained(users, to_parameters, free, TOLD, direct=energy)


@dataclass(frozen=True, eq=False)
class _Stan:
    """The functions of a Stan model, of rows.

    The model is no part of this, as it holds places in memory: what tells models apart is said.

    Attributes:
        kind: Its class.
        data: Its data, as it has them.
        seed: That of its random numbers in transformed data.
        library: A digest of what was compiled.
    """

    kind: type
    data: str
    seed: str
    library: str

    def __deepcopy__(self, memo: Any) -> _Stan:
        return self

    @property
    def model(self) -> Any:
        """The `bridgestan.StanModel`."""
        return _MODELS[self]

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


_MODELS: WeakKeyDictionary[_Stan, Any] = WeakKeyDictionary()


def _told(model: Any) -> tuple[str, str, str]:
    """What tells a Stan model from another: its data, its seed, a digest of its library."""
    library = Path(str(getattr(model, "lib_path", "")))
    digest = sha256(library.read_bytes()).hexdigest() if library.is_file() else ""
    return str(getattr(model, "data", "")), str(getattr(model, "seed", "")), digest


TIES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "symmetric": lambda v: (v + v.mT) / 2,
        "rows of sum 1": lambda v: v / v.sum(-1, keepdim=True),
        "columns of sum 1": lambda v: v / v.sum(-2, keepdim=True),
        "rows of norm 1": lambda v: v / v.norm(dim=-1, keepdim=True),
        "rows of sum 0": lambda v: v - v.mean(-1, keepdim=True),
        "columns of sum 0": lambda v: v - v.mean(-2, keepdim=True),
    }
)
"""What leads values onto a tie that Stan's types have, and leaves those that hold it as they are."""
TOLD = "the parameters of Stan"
"""What messages call their supports, which Stan does not name."""
ROUNDED = 1e-6
"""How far from a tie values of float32 may be, in units of the largest."""
HOLDS = 1e-10
"""How far from a tie Stan's own numbers are at most."""


def _ties(over: _StansMap, free: int) -> dict[str, tuple[str, ...]]:
    """What Stan's parameters tie among their numbers, by name, found at a few points."""
    x = over.constrain(_few_points(free))
    values = over.layout.split(x[x.isfinite().all(-1)])
    found = {name: tuple(tie for tie in TIES if _holds(tie, v)) for name, v in values.items()}
    return {name: ties for name, ties in found.items() if ties}


def _few_points(free: int) -> Tensor:
    """Eight free points, `(8, free)`."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn((8, free), generator=generator, dtype=torch.float64)


def _holds(tie: str, values: Tensor) -> bool:
    """Whether a tie holds at all of several points `(points, *shape)`."""
    shape = values.shape[1:]
    square = len(shape) > 1 and shape[-1] == shape[-2] > 1
    possible = square if tie == "symmetric" else len(shape) > ("columns" in tie)
    if not (possible and len(values) and min(shape) > 0):
        return False
    return bool(((TIES[tie](values) - values).abs() <= HOLDS).all())


def _rows(x: Tensor) -> Any:
    return np.ascontiguousarray(x.detach().double().cpu().numpy())


@dataclass(frozen=True, eq=False)
class _StansMap:
    """Stan's bijection from free coordinates to parameters.

    Attributes:
        stan: The model.
        order: Where in Stan's order the parameters in the layout's are.
        layout: The parameters.
        ties: What each ties among its numbers, by name of the parameter.
    """

    stan: _Stan
    order: Tensor
    layout: Layout
    ties: Mapping[str, tuple[str, ...]]
    event_dim = 1

    def free_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (int(self.stan.model.param_unc_num()),)

    def constrain(self, z: Tensor) -> Tensor:
        found = self._each(self.stan.model.param_constrain, z, len(self.order))
        return found[..., self.order.to(z.device)]

    def unconstrain(self, x: Tensor) -> Tensor:
        model, back = self.stan.model, self.order.argsort().to(x.device)
        tied = self._tied(x.double())[..., back]
        return self._each(model.param_unconstrain, tied, int(model.param_unc_num())).to(x)

    def _tied(self, x: Tensor) -> Tensor:
        """Parameters led onto what ties them, where they miss it by roundings of float32."""
        values = self.layout.split(x)
        for name, ties in self.ties.items():
            given = values[name]
            led = given
            for tie in ties:
                led = TIES[tie](led)
            axes = tuple(range(x.ndim - 1, given.ndim))
            missed = (led - given).abs().amax(axes, keepdim=True)
            near = missed <= ROUNDED * given.abs().amax(axes, keepdim=True)
            values[name] = torch.where(near, led, given)
        return self.layout.joined(values)

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
        return _Parameters(self.layout, self.transform)

    def energy(self, x: Tensor) -> Tensor:
        """Minus Stan's log density of the parameters, `(batch,)`; autograd does not see into it."""
        return -self.stan.value(self.transform.unconstrain(x), jacobian=False)


@dataclass(frozen=True, eq=False)
class _Parameters:
    """What the draws of a Stan model hold."""

    layout: Layout
    transform: _StansMap

    def values(self, x: Tensor) -> Tensor:
        return x

    def point(self, values: Mapping[str, Any]) -> Tensor:
        x = self.layout.joined(rows_by_name(values, self.layout.shapes))
        if not bool(self.transform.contains(x).all()):
            name = self._outside(x)
            argument, value = (
                ("init", values) if name is None else (f"init[{name!r}]", values[name])
            )
            raise outside(argument, value, TOLD)
        return x

    def _outside(self, x: Tensor) -> str | None:
        """The parameter whose values Stan refuses beside others that it takes; None for none.

        Stan says of a whole point whether it is one, and bounds may depend on other parameters: of
        several that are refused it is the one without which the point is one, or else the first.
        """
        (free,) = self.transform.free_shape(())
        z = _few_points(free)
        tried = self.transform.constrain(torch.cat([z.new_zeros(1, free), z])).to(x)
        taken = tried[
            self.transform.contains(tried)
        ]  # 0 is none where a unit vector has no direction
        if not len(taken):
            return None
        good, given = (self.layout.split(y) for y in (taken[:1].expand_as(x), x))

        def is_one(values: Mapping[str, Tensor]) -> bool:
            return bool(self.transform.contains(self.layout.joined(values)).all())

        refused = [name for name in given if not is_one(good | {name: given[name]})]
        at_fault = (name for name in refused if is_one(given | {name: good[name]}))
        return next(chain(at_fault, refused), None)


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
