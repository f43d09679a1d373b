"""Models of PyMC as fields of named variables: names, dims, coords and supports, its log density.

The model is taken without its value transforms, so that the log density is that of the variables
themselves; the bijections are this package's. It is evaluated by JAX for many chains at once where
JAX is installed, else by PyMC's compiled function, chain by chain.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Number
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from scoretk.adapters.jax import InJax, in_jax
from scoretk.adapters.jaxprs import import_jax
from scoretk.adapters.owned import Both, Owned, called, of_variables
from scoretk.core.dependencies import required
from scoretk.core.identity import stable_text
from scoretk.core.keywords import explained
from scoretk.core.warned import warn
from scoretk.errors import InvalidArgument
from scoretk.fields.constrained import Constrained, ordered
from scoretk.fields.foreign import misfit
from scoretk.fields.layout import LABELS, Variable, variable_name
from scoretk.fields.variables import Variables, variables_of

__all__ = ["from_pymc"]


@explained
def from_pymc(model: Any) -> Constrained:
    """A field over named variables from a model of PyMC.

    The model is taken as it is now: of data that `pymc.set_data` changes afterwards, make a field anew.

    Args:
        model: A `pymc.Model`.

    Returns:
        The field of its free variables, by their names, under their supports, with its dims and
        coords. Solvers work in free space; draws are the variables' values.

    Raises:
        InvalidArgument: It is no such model, has a discrete variable, one of a law with a point mass,
            made of angles that are transformed, or of a support that depends
            on other variables or has no known bijection, or a log density that draws numbers.
        MissingDependency: PyMC is not installed.
    """
    pymc, conditioning = (
        required(f"pymc{name}", "pymc", "A model of PyMC")
        for name in ("", ".model.transform.conditioning")
    )
    if not isinstance(model, pymc.Model):
        raise misfit("model", model, "a pymc.Model")
    if model.discrete_value_vars:
        names = ", ".join(v.name for v in model.discrete_value_vars)
        raise InvalidArgument("model", names, "continuous variables alone", "Marginalise them")
    start = model.initial_point(random_seed=0)
    specs = {rv.name: _variable(model, rv, start) for rv in model.free_RVs}
    space = variables_of(specs, variable_name)
    with _without_initial_values(model):
        plain = conditioning.remove_value_transforms(model)
    if _is_random(_derived(plain)):
        raise InvalidArgument(
            "model",
            "random numbers in its log density",
            "a log density that is a function of the variables",
            "Make what pm.Potential takes of named variables, and not of .dist(); and give the model "
            "all data, no pm.Minibatch",
        )
    if importlib.util.find_spec("jax") is not None:
        try:
            return of_variables(_by_jax(plain, space), space)
        except NotImplementedError as error:  # of an operation that JAX does not know
            warn(f"{error}: PyMC's own function is asked, chain by chain")
    try:
        function = plain.compile_fn(
            [plain.logp(), plain.dlogp()], inputs=plain.value_vars, point_fn=False
        )
    except NotImplementedError as error:
        raise InvalidArgument(
            "model",
            "a log density without a gradient",
            "one that PyTensor can differentiate",
            f"PyTensor said: {error}",
        ) from error
    arguments = tuple((v.name, str(v.dtype)) for v in plain.value_vars)
    compiled = _Compiled(arguments, space, *_written(plain.logp()))
    _COMPILED[compiled] = function
    return of_variables(Owned(compiled.value, compiled.both, called("from_pymc", model)), space)


def _derived(plain: Any) -> Any:
    """The log density of a model, as a graph of PyTensor.

    Raises:
        InvalidArgument: PyMC derives none for one of its variables, or finds another that has no
            name in the model.
    """
    try:
        return plain.logp()
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidArgument(
            "model",
            "a model whose log density PyMC does not derive",
            "one that has a density of its named variables",
            f"PyMC said {type(error).__name__}: {error}. Give a pm.CustomDist its logp=; name what is "
            f"drawn (pm.Normal('a') and not pm.Normal.dist()); sums and choices of random variables are "
            f"pm.Deterministic of these, or a pm.Mixture",
        ) from error


@contextmanager
def _without_initial_values(model: Any) -> Iterator[None]:
    """The model without starts of its own, with which PyMC copies none; they come back."""
    kept = dict(model.rvs_to_initial_values)
    model.rvs_to_initial_values.update(dict.fromkeys(kept))
    try:
        yield
    finally:
        model.rvs_to_initial_values.update(kept)


@contextmanager
def _wide_meanwhile() -> Iterator[None]:
    """64 bits in JAX, as PyTensor's graphs have; it turns them on for the whole process, when it first
    meets JAX alone. Its arrays would be rounded without them; the process's own default comes back.
    """
    jax = import_jax()
    config, before = jax.config, jax.config.jax_enable_x64
    try:
        with jax.enable_x64(True):
            yield
    finally:
        config.update("jax_enable_x64", before)


def _by_jax(plain: Any, space: Variables) -> Owned:
    with _wide_meanwhile():
        from pymc.sampling.jax import get_jaxified_graph

        function = get_jaxified_graph(inputs=plain.value_vars, outputs=[_checked(plain)])
        logp = _Jaxified(tuple(variable.name for variable in plain.value_vars))
        _FUNCTIONS[logp] = function
        wide = _Wide(in_jax(logp, space.layout, torch.float64))
    return Owned(wide.value, wide.both, "from_pymc(Model)")


def _checked(plain: Any) -> Any:
    """The log density of a model, -inf where parameters of its laws are none, as PyMC compiles it.

    The graph has these conditions as checks, which PyTensor leaves out in JAX: formulas go on beyond
    (a Gamma's at negative alpha).
    """
    from pymc.logprob.utils import local_check_parameter_to_ninf_switch
    from pytensor.graph.rewriting.basic import in2out
    from pytensor.graph.rewriting.utils import rewrite_graph

    switched = in2out(local_check_parameter_to_ninf_switch)
    return rewrite_graph(plain.logp(), include=(), custom_rewrite=switched)


@dataclass(frozen=True, eq=False)
class _Jaxified:
    """A log density that PyTensor has put into JAX.

    PyTensor's graph bears names that count what was made before it in the process. It is no part
    of this, so that models that are alike are one: what tells them apart is the program in JAX.

    Attributes:
        order: The names of the function's arguments.
    """

    order: tuple[str, ...]

    def __call__(self, point: Any) -> Any:
        return _FUNCTIONS[self](*(point[name] for name in self.order))[0]

    def __deepcopy__(self, memo: Any) -> _Jaxified:
        return self


_FUNCTIONS: WeakKeyDictionary[_Jaxified, Callable[..., Any]] = WeakKeyDictionary()


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

    The function, which takes one value of each argument to the log density and the gradient in
    them, side by side, is no part of this, as PyTensor's names count what was made before: what
    tells models apart is what is written of the graph.

    Attributes:
        arguments: The names and dtypes of the function's arguments, in their order.
        space: The variables.
        texts: The operations of the log density, each with the places of what it takes.
        constants: The arrays in it.
    """

    arguments: tuple[tuple[str, str], ...]
    space: Variables
    texts: tuple[str, ...]
    constants: tuple[Any, ...]

    def __deepcopy__(self, memo: Any) -> _Compiled:
        return self

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
        point = self.space.layout.split(row[None])
        given = [point[name][0].numpy().astype(dtype) for name, dtype in self.arguments]
        value, gradient = _COMPILED[self](*given)
        parts = torch.as_tensor(gradient).double().split([part.size for part in given])
        by_name = dict(zip((name for name, _ in self.arguments), parts, strict=True))
        joined = torch.cat([by_name[name] for name in self.space.names])
        return torch.tensor(float(value), dtype=torch.float64), joined


_COMPILED: WeakKeyDictionary[_Compiled, Callable[..., Any]] = WeakKeyDictionary()


def _written(*outputs: Any) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """What a graph of PyTensor computes, without the names that count what was made before.

    Args:
        outputs: Its results.

    Returns:
        A text for each variable, with the places of those that it is computed from; and the arrays
        of constants and of what is shared.
    """
    order = _in_order(outputs)
    places = {variable: i for i, variable in enumerate(order)}
    texts: list[str] = []
    arrays: list[Any] = []
    for variable in order:
        owner = variable.owner
        if owner is not None:
            taken = [places[v] for v in owner.inputs]
            texts.append(f"{variable.index} of {_of_operation(owner.op)} of {taken}")
            inside = getattr(owner.op, "fgraph", None)
            if inside is not None:
                inner, held = _written(*inside.outputs)
                texts.extend(inner)
                arrays.extend(held)
        elif hasattr(variable, "data") or hasattr(variable, "get_value"):
            texts.append(str(variable.type))
            arrays.append(variable.data if hasattr(variable, "data") else variable.get_value())
        else:
            texts.append(f"{variable.type} {variable.name}")
    texts.append(f"results {[places[v] for v in outputs]}")
    return tuple(texts), tuple(arrays)


def _in_order(outputs: Iterable[Any]) -> list[Any]:
    """The variables of a graph of PyTensor, each after those that it is computed from."""
    found: dict[Any, None] = {}
    left = [*outputs][::-1]
    while left:
        here = left[-1]
        taken = [] if here.owner is None else here.owner.inputs
        missing = [] if here in found else [v for v in taken if v not in found]
        if missing:
            left.extend(reversed(missing))
        else:
            found[left.pop()] = None
    return list(found)


def _of_operation(op: Any) -> str:
    """An operation of PyTensor in words: its class, what it says of itself, and its settings."""
    settings = {name: str(getattr(op, name, None)) for name in getattr(op, "__props__", None) or ()}
    return stable_text(f"{type(op).__name__} {op} {settings}")


def _variable(model: Any, rv: Any, start: Any) -> Variable:
    _check_density(rv)
    transform = model.rvs_to_transforms[rv]
    value = model.rvs_to_values[rv]
    free = torch.as_tensor(start[value.name])
    kind = "real" if transform is None else type(transform).__name__
    if kind in ("real", "CircularTransform") and _is_angle(rv):
        kind = "CircularTransform"  # without it too: its density is that of one period
    known: dict[str, Callable[[], Any]] = {
        "real": lambda: constraints.real,
        "LogTransform": lambda: constraints.positive,
        "LogOddsTransform": lambda: constraints.unit_interval,
        "CircularTransform": lambda: constraints.interval(-math.pi, math.pi),
        "Interval": lambda: _interval(transform, rv),
        "IntervalTransform": lambda: _interval(transform, rv),
        "SimplexTransform": lambda: constraints.simplex,
        "Ordered": lambda: ordered,
        "CholeskyCovPacked": lambda: _packed_factor(transform, free.shape[-1]),
    }
    if kind not in known:
        law = _operation(rv).removesuffix("RV")
        raise InvalidArgument(
            "model",
            f"{rv.name}, of {law} under {kind}",
            f"variables under {', '.join(known)}",
            INSTEAD.get(law, "Leave out its transform=, or give it one of these"),
        )
    shape = tuple(free.shape)
    if kind == "SimplexTransform":
        shape = (*shape[:-1], shape[-1] + 1)
    dims = model.named_vars_to_dims.get(rv.name)
    coords = {
        d: [_label(label) for label in model.coords[d]]
        for d in dims or ()
        if model.coords.get(d) is not None
    }
    return Variable(shape, known[kind](), dims=dims, coords=coords)


def _check_density(rv: Any) -> None:
    """Check that a variable's law has a density, and so does all that it is made of.

    Raises:
        InvalidArgument: It has a point mass: where that is, no chain ever is.
    """
    for variable in _law_of(rv):
        name = _operation(variable)
        rounded = name in ROUNDINGS and _is_random(variable.owner.inputs[0])
        if rounded or name in OF_POINTS:
            raise InvalidArgument(
                "model",
                f"{rv.name}, a law with point masses ({name.removesuffix('RV')})",
                "variables whose laws have a density",
                "Sample what is censored, clipped or rounded itself, and make a pm.Deterministic of it; "
                "of a spike and a slab the spike may be a narrow pm.Normal",
            )


def _is_angle(rv: Any) -> bool:
    """Whether a variable's law is of angles: its density goes on beyond their one period.

    Raises:
        InvalidArgument: It is one of these transformed, or beside another.
    """
    own = [_operation(rv), *map(_operation, rv.owner.inputs)]
    drawn = {name for name in own if name.endswith("RV") and name not in AROUND}
    if not any(_operation(variable) == ANGLE for variable in _law_of(rv)):
        return False
    if drawn != {ANGLE}:
        raise InvalidArgument(
            "model",
            f"{rv.name}, made of a law of angles, whose density is that of one period",
            "angles as they are, from -pi to pi",
            "Sample the angle itself, and transform it in a pm.Deterministic",
        )
    return True


def _law_of(rv: Any) -> Iterator[Any]:
    """The variables of pytensor that a law is made of: its own and its components', and what is within
    these; parameters that are named variables of the model, or computed from such, are not.
    """
    left = [rv]
    while left:
        here = left.pop()
        yield here
        inside = getattr(here.owner.op, "fgraph", None) if here.owner else None
        if inside is not None:
            yield from _in_order(inside.outputs)
        components = here.owner.inputs if here.owner else []
        left += [v for v in components if _operation(v).endswith("RV") and v.name is None]


def _operation(variable: Any) -> str:
    """The operation that a variable of pytensor comes from, by the name of its class."""
    if variable.owner is None:
        return ""
    op = variable.owner.op
    return type(getattr(op, "scalar_op", op)).__name__


INSTEAD = {
    "LKJCorr": "Sample the factor, chol, corr, stds = pm.LKJCholeskyCov(name, n, eta, "
    "sd_dist=pm.Exponential.dist(1)), whose corr has this law; stds need not be used",
    "ZeroSumNormal": "Sample what is free, free = pm.Normal(name, 0, sigma, shape=(..., n - 1)), and make the "
    "values of it, pm.Deterministic(other, pm.distributions.transforms.ZeroSumTransform([-1]).backward(free)), "
    "which have this law; the axes are n_zerosum_axes=, each of them one entry less",
}
"""What has the same law as one whose support has no bijection here, by its name in PyMC."""
OF_POINTS = ("CensoredRV", "DiracDeltaRV")
"""Laws of PyMC with point masses; hurdles are mixtures with one of the second."""
ROUNDINGS = ("Ceil", "Clip", "Floor", "RoundHalfAwayFromZero", "RoundHalfToEven", "Sign", "Trunc")
"""What makes point masses of a law of one's own, by what pytensor calls it."""
ANGLE, AROUND = "VonMisesRV", ("CategoricalRV", "MarginalMixtureRV", "MixtureRV")


def _label(label: Any) -> Any:
    """A label as named variables have it: others than texts, numbers and dates as texts."""
    if isinstance(label, bool | np.bool_) or not isinstance(label, LABELS):
        return str(label)
    if isinstance(label, str | Number):
        return label
    is_date = getattr(label, "tzinfo", None) is None and not np.isnat(np.datetime64(label))
    return label if is_date else str(label)


def _interval(transform: Any, rv: Any) -> Any:
    bounds = transform.args_fn(*rv.owner.inputs)
    low, high = (None if bound is None else _number(rv, bound) for bound in bounds)
    if low is None and high is None:
        return constraints.real
    if low is None:
        return constraints.less_than(high)
    return constraints.greater_than(low) if high is None else constraints.interval(low, high)


def _packed_factor(transform: Any, size: int) -> Any:
    """The support of a covariance's Cholesky factor, row by row: a positive diagonal."""
    diagonal = {*transform.diag_idxs.eval().tolist()}
    parts = [constraints.positive if i in diagonal else constraints.real for i in range(size)]
    return constraints.cat(parts, dim=-1, lengths=[1] * size)


def _number(rv: Any, bound: Any) -> Tensor | None:
    """The value of a bound, which depends on no other variable; None where it is infinite."""
    if hasattr(bound, "type") and _is_random(bound):
        raise InvalidArgument(
            "model",
            f"{rv.name}, whose support depends on other variables",
            "supports that are always the same",
            "Give it a fixed support, and transform it in a pm.Deterministic",
        )
    value = torch.tensor(np.asarray(bound.eval() if hasattr(bound, "eval") else bound)).double()
    infinite = value.isinf()
    if bool(infinite.any()) and not bool(infinite.all()):
        raise InvalidArgument(
            "model",
            f"{rv.name} with finite and infinite bounds",
            "bounds of one kind for all of its entries",
            "Make it two variables",
        )
    return None if bool(infinite.all()) else value


def _is_random(variable: Any) -> bool:
    """Whether a variable of pytensor is computed from one that is drawn."""
    left, seen = [variable], set()
    while left:
        here = left.pop()
        if any(base.__name__ == "RandomType" for base in type(here.type).__mro__):
            return True  # a generator, of which a mini-batch is drawn
        owner = getattr(here, "owner", None)
        if owner is None or owner in seen:
            continue
        seen.add(owner)
        kinds = {base.__name__ for base in type(owner.op).__mro__}
        if kinds & {"RandomVariable", "SymbolicRandomVariable"}:
            return True
        left.extend(owner.inputs)
    return False
