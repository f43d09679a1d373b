"""Models of numpyro as fields of named variables: names and supports of its sites, its log density.

The log density is numpyro's, of all sites in their own space; observed sites are data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributions import constraints

from scoretk.adapters.jax import InJax, import_jax
from scoretk.adapters.owned import Owned, of_variables
from scoretk.core.dependencies import required
from scoretk.errors import InvalidArgument
from scoretk.fields.constrained import Constrained, ordered
from scoretk.fields.layout import Variable
from scoretk.fields.variables import variables_of

__all__ = ["from_numpyro"]


def from_numpyro(model: Callable[..., Any], /, *args: Any, **options: Any) -> Constrained:
    """A field over named variables from a model of numpyro.

    Args:
        model: A function with `numpyro.sample` statements.
        args: The model's arguments, its data among them.
        options: The model's arguments by name.

    Returns:
        The field of its latent sites, by their names and under their supports. Solvers work in free
        space; draws are the sites' values.

    Raises:
        InvalidArgument: It has no latent site, a discrete one, or one of a support without a known
            bijection.
        MissingDependency: numpyro is not installed.
    """
    jax = import_jax("A model of numpyro")
    handlers, infer = (
        required(f"numpyro.{name}", "numpyro", "A model of numpyro")
        for name in ("handlers", "infer.util")
    )
    traced = handlers.trace(handlers.seed(model, jax.random.PRNGKey(0)))
    sites = {
        name: site
        for name, site in traced.get_trace(*args, **options).items()
        if site["type"] == "sample" and not site["is_observed"]
    }
    if not sites:
        raise InvalidArgument("model", model, "a model with a latent site", "All of it is observed")
    space = variables_of({name: _variable(name, site) for name, site in sites.items()})

    def logp(point: Any) -> Any:
        return infer.log_density(model, args, options, point)[0]

    owned = InJax(logp, space.layout)
    return of_variables(Owned(owned.value, owned.both), space)


def _variable(name: str, site: Any) -> Variable:
    support, shape = site["fn"].support, tuple(site["value"].shape)
    while type(support).__name__ == "_IndependentConstraint":
        support = support.base_constraint
    if support.is_discrete:
        raise InvalidArgument(
            "model", f"a discrete latent site {name!r}", "continuous ones", "Sum it out"
        )
    return Variable(shape, _constraint(name, support))


_CONSTRAINTS = {
    "_Real": constraints.real,
    "_Positive": constraints.positive,
    "_SoftplusPositive": constraints.positive,
    "_Nonnegative": constraints.nonnegative,
    "_UnitInterval": constraints.unit_interval,
    "_Simplex": constraints.simplex,
    "_OrderedVector": ordered,
    "_CorrCholesky": constraints.corr_cholesky,
    "_LowerCholesky": constraints.lower_cholesky,
    "_SoftplusLowerCholesky": constraints.lower_cholesky,
    "_PositiveDefinite": constraints.positive_definite,
    "_RealVector": constraints.real,
    "_RealMatrix": constraints.real,
}
"""torch's constraint of numpyro's, by the name of its class; those with bounds are `_BOUNDED`."""

_BOUNDED: dict[str, Callable[[Any], Any]] = {
    "_Interval": lambda c: constraints.interval(_bound(c.lower_bound), _bound(c.upper_bound)),
    "_GreaterThan": lambda c: constraints.greater_than(_bound(c.lower_bound)),
    "_GreaterThanEq": lambda c: constraints.greater_than_eq(_bound(c.lower_bound)),
    "_LessThan": lambda c: constraints.less_than(_bound(c.upper_bound)),
}


def _bound(value: Any) -> Any:
    return torch.tensor(float(value)) if getattr(value, "ndim", 0) == 0 else torch.tensor(value)


def _constraint(name: str, support: Any) -> Any:
    kind = type(support).__name__
    if kind in _CONSTRAINTS:
        return _CONSTRAINTS[kind]
    if kind in _BOUNDED:
        return _BOUNDED[kind](support)
    raise InvalidArgument(
        "model",
        f"site {name!r} on {support}",
        f"sites on {', '.join(sorted(k.strip('_') for k in (*_CONSTRAINTS, *_BOUNDED)))}",
    )
