"""Models of PyMC as fields of named variables: names, dims, coords and supports, its log density.

The model is taken without its value transforms, so that the log density is that of the variables
themselves; the bijections are this package's. It is evaluated by JAX for many chains at once where
JAX is installed, else by PyMC's compiled function, chain by chain.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from scoretk.adapters.jax import InJax
from scoretk.adapters.owned import Both, Owned, of_variables
from scoretk.core.dependencies import required
from scoretk.errors import InvalidArgument
from scoretk.fields.constrained import Constrained, ordered
from scoretk.fields.layout import Variable
from scoretk.fields.variables import Variables, variables_of

__all__ = ["from_pymc"]


def from_pymc(model: Any) -> Constrained:
    """A field over named variables from a model of PyMC.

    Args:
        model: A `pymc.Model`.

    Returns:
        The field of its free variables, by their names, under their supports, with its dims and
        coords. Solvers work in free space; draws are the variables' values.

    Raises:
        InvalidArgument: It is no such model, has a discrete variable, or one of a support without a
            known bijection.
        MissingDependency: PyMC is not installed.
    """
    pymc, conditioning = (
        required(f"pymc{name}", "pymc", "A model of PyMC")
        for name in ("", ".model.transform.conditioning")
    )
    if not isinstance(model, pymc.Model):
        raise InvalidArgument("model", type(model), "a pymc.Model")
    if model.discrete_value_vars:
        names = ", ".join(v.name for v in model.discrete_value_vars)
        raise InvalidArgument("model", names, "continuous variables alone", "Marginalise them")
    start = model.initial_point(random_seed=0)
    space = variables_of({rv.name: _variable(model, rv, start) for rv in model.free_RVs})
    plain = conditioning.remove_value_transforms(model)
    if importlib.util.find_spec("jax") is not None:
        return of_variables(_by_jax(plain, space), space)
    compiled = _Compiled(plain.logp_dlogp_function(ravel_inputs=False), space)
    compiled.function.set_extra_values({})
    return of_variables(Owned(compiled.value, compiled.both), space)


def _by_jax(plain: Any, space: Variables) -> Owned:
    from pymc.sampling.jax import get_jaxified_graph

    function = get_jaxified_graph(inputs=plain.value_vars, outputs=[plain.logp()])
    order = [variable.name for variable in plain.value_vars]

    def logp(point: Any) -> Any:
        return function(*(point[name] for name in order))[0]

    wide = _Wide(InJax(logp, space.layout))
    return Owned(wide.value, wide.both)


@dataclass(frozen=True, eq=False)
class _Wide:
    """A function in JAX that is asked in float64, the dtype of PyMC's graphs, whatever x has."""

    function: InJax

    def value(self, x: Tensor) -> Tensor:
        """`log p(x)`, `(batch,)`."""
        return self.function.value(x.double())

    def both(self, x: Tensor) -> Both:
        """`log p(x)` and its gradient, like x."""
        return self.function.both(x.double())


@dataclass(frozen=True, eq=False)
class _Compiled:
    """PyMC's compiled log density and gradient, one chain at a time.

    Attributes:
        function: Its `ValueGradFunction`, of a point by name.
        space: The variables.
    """

    function: Any
    space: Variables

    def value(self, x: Tensor) -> Tensor:
        """`log p(x)`, `(batch,)`."""
        return self.both(x)[0]

    def both(self, x: Tensor) -> Both:
        """`log p(x)` and its gradient, like x."""
        rows = x.detach().double().cpu()
        found = [self._at(row) for row in rows]
        values = torch.stack([v for v, _ in found]) if found else rows.sum(1)
        gradients = torch.stack([g for _, g in found]) if found else rows
        return values.to(x), gradients.to(x)

    def _at(self, row: Tensor) -> Both:
        point = {n: v[0].numpy() for n, v in self.space.layout.split(row[None]).items()}
        value, gradient = self.function(point)
        by_name, start = {}, 0
        for variable in self.function._grad_vars:
            size = point[variable.name].size
            by_name[variable.name] = torch.as_tensor(gradient[start : start + size])
            start += size
        joined = torch.cat([by_name[name].reshape(-1) for name in self.space.names])
        return torch.tensor(float(value), dtype=torch.float64), joined


def _variable(model: Any, rv: Any, start: Any) -> Variable:
    transform = model.rvs_to_transforms[rv]
    value = model.rvs_to_values[rv]
    free = torch.as_tensor(start[value.name])
    kind = "real" if transform is None else type(transform).__name__
    known: dict[str, Callable[[], Any]] = {
        "real": lambda: constraints.real,
        "LogTransform": lambda: constraints.positive,
        "LogOddsTransform": lambda: constraints.unit_interval,
        "Interval": lambda: _interval(transform, rv),
        "IntervalTransform": lambda: _interval(transform, rv),
        "SimplexTransform": lambda: constraints.simplex,
        "Ordered": lambda: ordered,
    }
    if kind not in known:
        raise InvalidArgument(
            "model", f"{rv.name} under {kind}", f"variables under {', '.join(known)}"
        )
    shape = tuple(free.shape)
    if kind == "SimplexTransform":
        shape = (*shape[:-1], shape[-1] + 1)
    dims = model.named_vars_to_dims.get(rv.name)
    coords = {d: list(model.coords[d]) for d in dims or () if model.coords.get(d) is not None}
    return Variable(shape, known[kind](), dims=dims, coords=coords)


def _interval(transform: Any, rv: Any) -> Any:
    low, high = (None if b is None else _number(b) for b in transform.args_fn(*rv.owner.inputs))
    if low is None:
        return constraints.less_than(high)
    return constraints.greater_than(low) if high is None else constraints.interval(low, high)


def _number(bound: Any) -> Tensor:
    """The value of a bound that does not depend on other variables."""
    try:
        value = bound.eval()
    except Exception as error:  # pytensor's, of a graph with free inputs
        raise InvalidArgument(
            "model", str(bound), "bounds that depend on no other variable"
        ) from error
    return torch.as_tensor(value, dtype=torch.float64)
