"""Models of numpyro as fields of named variables: names and supports of its sites, its log density.

The log density is numpyro's, of all sites in their own space; observed sites are data. The supports
have to be the same at all values of the other sites: their bounds are looked for in a trace of the
model under `jax.vmap`, where all that depends on a site's value is an array with a row of values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.distributions import constraints

from scoretk.adapters.jax import in_jax
from scoretk.adapters.jaxprs import import_jax
from scoretk.adapters.law_supports import (
    bare_support,
    check_density,
    check_supports,
    supports_within,
)
from scoretk.adapters.owned import (
    Owned,
    called,
    check_repeats,
    generators_kept,
    is_flat,
    no_start,
    of_variables,
)
from scoretk.core.dependencies import required
from scoretk.errors import InvalidArgument
from scoretk.fields.constrained import Constrained, ordered
from scoretk.fields.foreign import nearest, unfit
from scoretk.fields.layout import Variable, variable_name
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
        InvalidArgument: It has no latent site, a discrete one, or one of a support that depends on
            other sites or has no known bijection; it takes mini-batches of its data, or does not
            run.
        MissingDependency: numpyro is not installed.
    """
    jax = import_jax("A model of numpyro")
    if not callable(model):
        raise InvalidArgument("model", model, "a function with numpyro.sample", nearest(model))
    handlers, infer, starts = (
        required(f"numpyro.{name}", "numpyro", "A model of numpyro")
        for name in ("handlers", "infer.util", "infer.initialization")
    )
    of_data = partial(model, *args, **options)
    of_flat = partial(_of_no_law, starts)

    def run(seed: int) -> Any:
        seeded = handlers.seed(of_data, jax.random.PRNGKey(seed))
        return handlers.trace(handlers.substitute(seeded, substitute_fn=of_flat)).get_trace()

    try:
        with generators_kept():  # a model of Pyro, which is refused, draws from them
            first, again = (run(seed) for seed in (0, 1))
    except InvalidArgument:
        raise
    except Exception as error:  # whatever a user's model raises, or the library that it is of
        raise unfit(model, "numpyro", error) from error
    _check_plates(first)
    sites, others = _latent(first), _latent(again)
    if not sites:
        raise unfit(model, "numpyro")
    if sites.keys() != others.keys():
        odd = ", ".join(sorted(sites.keys() ^ others.keys()))
        raise InvalidArgument("model", f"sites that come and go: {odd}", "sites always the same")
    specs = {name: _variable(name, site) for name, site in sites.items()}
    points = {
        name: jax.numpy.stack([site["value"], others[name]["value"]])
        for name, site in sites.items()
    }
    moving = _moving(jax, handlers, of_data, points)
    if moving:
        raise InvalidArgument(
            "model",
            f"sites whose support depends on other sites: {', '.join(moving)}",
            "supports that are always the same",
            "Sample a site of a fixed support, and transform it",
        )
    space = variables_of(specs, variable_name)

    def logp(point: Any) -> Any:
        return infer.log_density(of_data, (), {}, point)[0]

    start = {name: site["value"] for name, site in sites.items()}
    try:
        check_repeats("model", lambda: logp(start))
    except InvalidArgument:
        raise
    except Exception as error:  # numpyro's and the model's, of a random key that there is not
        raise InvalidArgument(
            "model", model, "a model that is a function of its sites, and draws nothing", str(error)
        ) from error
    try:
        owned = in_jax(
            logp, space.layout, torch.float64 if jax.config.jax_enable_x64 else torch.float32
        )
    except Exception as error:  # JAX's and the model's, of values that are traced
        raise unfit(model, "numpyro", error) from error
    return of_variables(Owned(owned.value, owned.both, called("from_numpyro", model)), space)


def _of_no_law(starts: Any, site: Any) -> Any:
    """A value of a site that has a support and no law to draw it from, such as an `ImproperUniform`.

    Its density is flat, and the model is run at a point of the support to see its sites; None for
    all others, which are drawn.

    Raises:
        InvalidArgument: No such point is known.
    """
    latent = site["type"] == "sample" and not site["is_observed"] and site["value"] is None
    if not latent or not is_flat(site["fn"]):
        return None
    try:
        return starts.init_to_uniform(site)
    except Exception as error:  # numpyro's, of a support without a bijection
        raise no_start(site) from error


def _latent(trace: Any) -> dict[str, Any]:
    return {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


def _check_plates(trace: Any) -> None:
    """Check that no plate holds a mini-batch.

    Raises:
        InvalidArgument: One does: its log density is another one for each batch.
    """
    for name, site in trace.items():
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            size, part = site["args"]
            raise InvalidArgument(
                "model",
                f"the plate {name!r} with {part} of its {size} rows",
                "plates of all their rows",
                "Leave subsample_size out, and give the model all data",
            )


def _moving(jax: Any, handlers: Any, model: Any, points: dict[str, Any]) -> list[str]:
    """The sites whose support depends on the values of sites."""
    found: dict[str, bool] = {}

    def at(point: Any) -> int:
        held = handlers.substitute(handlers.seed(model, jax.random.PRNGKey(0)), data=point)
        for name, site in _latent(handlers.trace(held).get_trace()).items():
            bounds = jax.tree_util.tree_leaves(list(supports_within(site["fn"])))
            found[name] = any(isinstance(bound, jax.core.Tracer) for bound in bounds)
        return 0

    try:
        jax.vmap(at, out_axes=None)(points)
    except Exception as error:  # whatever a user's model raises
        raise InvalidArgument(
            "model", model, "a model that JAX runs for many chains at once (jax.vmap)", str(error)
        ) from error
    return [name for name, moves in found.items() if moves]


def _variable(name: str, site: Any) -> Variable:
    support, shape = bare_support(site["fn"].support), np.shape(site["value"])
    check_density(name, site["fn"])
    check_supports(f"site {name!r}", site["fn"])
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
    "_Circular": lambda c: constraints.interval(-math.pi, math.pi),
    "_GreaterThan": lambda c: constraints.greater_than(_bound(c.lower_bound)),
    "_GreaterThanEq": lambda c: constraints.greater_than_eq(_bound(c.lower_bound)),
    "_LessThan": lambda c: constraints.less_than(_bound(c.upper_bound)),
    "_LessThanEq": lambda c: constraints.less_than(_bound(c.upper_bound)),
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
