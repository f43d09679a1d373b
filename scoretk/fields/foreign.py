"""Objects of other libraries, and the adapter that makes a field of each.

An object is known by the name of its class or of one that this derives from, and by the package
that has it: nothing of another library is imported to ask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from functools import partial
from inspect import getclosurevars, unwrap
from os import PathLike
from traceback import walk_tb
from types import FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, TypeVar

from torch import Tensor, nn

from scoretk.core.arguments import function
from scoretk.core.modules import asked
from scoretk.errors import InvalidArgument, ScoretkError

__all__ = [
    "ADAPTERS",
    "FUNCTIONS",
    "NEAREST",
    "PARTS",
    "adapter_of",
    "answered",
    "library_of",
    "misfit",
    "nearest",
    "no_field",
    "owners",
    "part_of",
    "unfit",
    "user_function",
    "ways",
    "within",
]

ADAPTERS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("torch", "Distribution"): "from_distribution",
        ("zuko", "LazyDistribution"): "from_flow",
        ("zuko", "NormalizingFlow"): "from_flow",
        ("nflows", "Flow"): "from_flow",
        ("normflows", "NormalizingFlow"): "from_flow",
        ("normflows", "ClassCondFlow"): "from_flow",
        ("normflows", "MultiscaleFlow"): "from_flow",
        ("FrEIA", "SequenceINN"): "from_flow",
        ("FrEIA", "GraphINN"): "from_flow",
        ("sklearn", "BaseEstimator"): "from_sklearn",
        ("diffusers", "ModelMixin"): "from_diffusers",
        ("jaxlib", "PjitFunction"): "from_jax",
        ("pymc", "Model"): "from_pymc",
        ("transformers", "PreTrainedModel"): "from_language_model",
        ("sbi", "NeuralPosterior"): "from_sbi",
        ("sbi", "BasePotential"): "from_sbi",
        ("bridgestan", "StanModel"): "from_stan",
        ("pyro", "PyroModule"): "from_pyro",
        ("numpyro", "Messenger"): "from_numpyro",
        ("azula", "Denoiser"): "from_azula",
        ("flow_matching", "ModelWrapper"): "from_flow_matching",
        ("torchcfm", "MLP"): "from_torchcfm",
        ("torchcfm", "UNetModel"): "from_torchcfm",
        ("k_diffusion", "Denoiser"): "from_k_diffusion",
        ("k_diffusion", "VDenoiser"): "from_k_diffusion",
        ("k_diffusion", "DiscreteSchedule"): "from_k_diffusion",
        ("diffusers", "DiffusionPipeline"): "from_diffusers",
    }
)
"""The adapter of a library's class and of those that derive from it, by package and class."""


_FLOW = "from_flow takes the flow"
_STAN = "from_stan takes a bridgestan.StanModel"
_JAX = "from_jax takes the log density, a function of one point"
NEAREST: Mapping[str, str] = MappingProxyType(
    {
        "pyro": "from_pyro takes the model, a function with pyro.sample",
        "numpyro": "from_numpyro takes the model, a function with numpyro.sample",
        "pymc": "from_pymc takes the pymc.Model",
        "bridgestan": _STAN,
        "cmdstanpy": _STAN,
        "stan": _STAN,
        "jax": _JAX,
        "jaxlib": _JAX,
        "blackjax": _JAX,
        "sbi": "from_sbi takes a posterior, or its potential_fn",
        "diffusers": "from_diffusers takes a network with its scheduler, or a pipeline",
        "transformers": "from_language_model takes a causal or masked language model",
        "zuko": _FLOW,
        "nflows": _FLOW,
        "normflows": _FLOW,
        "FrEIA": _FLOW,
        "azula": "from_azula takes a denoiser",
        "flow_matching": "from_flow_matching takes a ModelWrapper, or its velocity",
        "torchcfm": "from_torchcfm takes the velocity's network",
        "scipy": "Energy takes its density and the gradient, where it is one of all rows: "
        "scoretk.Energy(lambda x: -d.logpdf(x), event_shape, grad=g)",
        "k_diffusion": "from_k_diffusion takes a wrapped model: k_diffusion.layers.Denoiser(model, "
        "sigma_data), or one of k_diffusion.external",
    }
)
"""What the adapter for a library takes, for other objects of this library."""

PARTS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("nflows", "Distribution"): "{0} is a distribution of nflows, the base of a flow: "
        "scoretk.from_flow(nflows.flows.Flow(nflows.transforms.IdentityTransform(), distribution), "
        "event_shape)",
        ("nflows", "Transform"): "{0} is a transform of nflows: scoretk.from_flow takes "
        "nflows.flows.Flow(transform, distribution)",
        (
            "numpyro",
            "Distribution",
        ): "{0} is a distribution of numpyro: scoretk.from_numpyro(lambda: "
        "numpyro.sample('x', distribution))",
        ("scipy", "multivariate_normal_frozen"): "{0}: scoretk.from_distribution takes "
        "torch.distributions.MultivariateNormal(mean, cov), of tensors",
        ("scipy", "gaussian_kde"): "{0}: scoretk.from_sklearn takes "
        "sklearn.neighbors.KernelDensity(bandwidth=...).fit(rows); or give the gradient, "
        "scoretk.Energy(lambda x: -kde.logpdf(x.T), event_shape, grad=g)",
        ("nflows", "MADE"): "{0} is the network of a flow: scoretk.from_flow takes the flow",
    }
)
"""What to do with a part of what an adapter takes, by package and class; {0} is the class."""

FUNCTIONS: Mapping[str, str] = MappingProxyType(
    {"numpyro": "from_numpyro", "pyro": "from_pyro", "jax": "from_jax"}
)
"""The adapters that take functions, by the library whose names these use; the first that is used
decides, as models of numpyro use JAX beside it."""
_WAYS = (
    "If the function is a model of numpyro or Pyro: scoretk.from_numpyro(model, *args), "
    "scoretk.from_pyro(model, *args); a log density of JAX: scoretk.from_jax(fn, example)"
)


_NAMED = (
    "scoretk.load(name) makes a registered model, as `scoretk list` names them; "
    "scoretk.load_pretrained(name) reads a folder or a repository of the Hub; a language model of "
    "transformers: scoretk.from_language_model(lm, length), of the loaded model"
)
"""What to do with a name, or a path, in place of an object."""


def adapter_of(value: object) -> str | None:
    """The name of the adapter that makes a field of an object; None where none is known.

    The nearest class decides: zuko's flows are torch distributions too. Of a wrapper it is that of
    what it holds.
    """
    return next((ADAPTERS[owner] for owner in owners(within(value)) if owner in ADAPTERS), None)


def within(network: Any) -> Any:
    """The object within wrappers of Python and torch that pass all arguments on.

    Such as `partial`, what `torch.compile` returns, and `DataParallel`.
    """
    while True:
        if isinstance(network, partial):
            network = network.func
            continue
        of_torch = isinstance(network, nn.Module) and type(network).__module__.startswith("torch.")
        inner = getattr(network, "_orig_mod", getattr(network, "module", None))
        if not of_torch or not isinstance(inner, nn.Module):
            return network
        network = inner


def owners(value: object) -> list[tuple[str, str]]:
    """Package and class of an object and of all that its class derives from, the nearest first."""
    return _lineage(type(value))


def _lineage(kind: type) -> list[tuple[str, str]]:
    return [(base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__]


def _of_class(value: object) -> str:
    """What to do with a class in place of an object that an adapter takes; "" for all else."""
    if not isinstance(value, type):
        return ""
    adapter = next((ADAPTERS[owner] for owner in _lineage(value) if owner in ADAPTERS), None)
    if adapter is None:
        return ""
    return (
        f"{value.__name__} is a class: scoretk.{adapter} makes a field of an object, "
        f"{value.__name__}(...), with its weights or fitted"
    )


def nearest(value: object) -> str:
    """What the adapter for an object's library takes; "" where there is none."""
    if made := _of_class(value):
        return made
    if isinstance(value, str | PathLike):
        return _NAMED
    own = next((PARTS[owner] for owner in owners(value) if owner in PARTS), "")
    if own and not isinstance(value, type):
        return own.format(type(value).__name__)
    packages = [*(package for package, _ in owners(value)), library_of(value)]
    known = (NEAREST[package] for package in packages if package in NEAREST)
    return next((f"scoretk.{taken}" for taken in known), "")


def library_of(value: object) -> str:
    """The library of `FUNCTIONS` that a function, or a module, is of; "" where none shows.

    A function shows a library by its globals and what it closes over: the library's modules, or
    what it took out of these.
    """
    inner: Any = value
    while isinstance(inner, partial | MethodType):
        inner = inner.func if isinstance(inner, partial) else inner.__func__
    if not isinstance(inner, FunctionType):
        return next((package for package, _ in owners(inner) if package in FUNCTIONS), "")
    try:
        used = getclosurevars(unwrap(inner))
    except (TypeError, ValueError):  # a wrapper of no function, a cell that is empty yet
        return ""
    things = (*used.globals.values(), *used.nonlocals.values())
    return _first({_home(thing).partition(".")[0] for thing in things} | used.unbound)


def _first(packages: Set[str]) -> str:
    return next((library for library in FUNCTIONS if library in packages), "")


def _raised_within(error: BaseException | None) -> set[str]:
    """The packages whose code an error went through."""
    trace = walk_tb(error.__traceback__ if error else None)
    return {str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame, _ in trace}


def _home(thing: object) -> str:
    """The name of a module, or of the module that something is of."""
    home = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", "")
    return home if isinstance(home, str) else ""


def unfit(model: object, library: str, error: Exception | None = None) -> InvalidArgument:
    """The error for a function that a library cannot run as a model of its own.

    Args:
        model: The function.
        library: One of `FUNCTIONS`.
        error: What the library, or the model within it, raised; None where it found no site.
    """
    own = library_of(model) or _first(_raised_within(error) & {"numpyro", "pyro"} - {library})
    if own and own != library:
        said = f"This looks like a {own} model: scoretk.{FUNCTIONS[own]}(model, *args)"
    elif error is None:
        said = "All of it is observed"
    else:
        said = f"It raised {type(error).__name__}" + (f": {error}" if str(error) else "")
    expected = "with a latent site" if error is None else "that runs with its arguments"
    return InvalidArgument("model", model, f"a {library} model {expected}", said)


_Answer = TypeVar("_Answer")


def answered(
    ask: Callable[[], _Answer], taker: object, x: Tensor, cond: Mapping[str, Tensor], hint: str = ""
) -> _Answer:
    """What another library's model answers, in eval mode.

    Args:
        ask: Asks the model.
        taker: The model, whose class the message names.
        x: What it is asked for.
        cond: The conditions that it is given.
        hint: What to do; nothing for what the event shape and the conditions are to be.

    Returns:
        The answer.

    Raises:
        InvalidArgument: The model does not take these; the message has what it raised. What this
            package or torch's distributions refuse, and memory that is not there, is raised as it is.
    """
    try:
        return asked(ask, taker)
    except (ScoretkError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError" or _of_distributions(error):
            raise
        rows = {"x": x, **cond}
        got = ", ".join(f"{n} of shape {tuple(v.shape)}, {_dtype(v)}" for n, v in rows.items())
        way = hint or (
            "event_shape is the shape of one x, without the axis of the chains; each condition "
            "has one row a chain, of the width that the model was made for; and all are of the "
            "model's dtype, such as of model.float(), or of model.double() in a run with "
            "dtype=torch.float64"
        )
        said = f"It raised {type(error).__name__}: {error}"
        raise InvalidArgument(
            "x" if not cond else "cond",
            _Told(got),
            f"rows that {type(taker).__name__} takes",
            f"{way}. {said}",
        ) from error


def _dtype(value: object) -> str:
    return str(getattr(value, "dtype", "")).removeprefix("torch.")


class _Told(str):
    """Words that a message shows as they are."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _of_distributions(error: Exception) -> bool:
    """Whether one of torch's distributions refuses a value: its row is rejected."""
    trace = [frame for frame, _ in walk_tb(error.__traceback__)]
    home = str(trace[-1].f_globals.get("__name__", "")) if trace else ""
    return isinstance(error, ValueError) and home.startswith("torch.distributions.")


def part_of(value: object) -> str:
    """Which part of an estimator of scikit-learn is the density; "" where it is none of several."""
    kinds = {name for package, name in owners(value) if package == "sklearn"}
    if "BaseSearchCV" in kinds:
        return "The density is the one that was found: scoretk.from_sklearn(search.best_estimator_)"
    if "Pipeline" in kinds:
        return (
            "The density is of what the steps before make of x: scoretk.from_sklearn(pipeline[-1]), "
            "of pipeline[:-1].transform(x)"
        )
    return ""


def _told(value: object) -> str:
    """What to do with an object in place of another: what its adapter, or its library's, takes."""
    adapter, taken = adapter_of(value), nearest(value)
    if adapter is None or taken.startswith(f"scoretk.{adapter} "):
        return taken
    return f"{type(value).__name__}: scoretk.{adapter} makes a field of it"


def misfit(argument: str, value: Any, expected: str, hint: str = "") -> InvalidArgument:
    """The error for what is no object of the library that an adapter is for.

    Args:
        argument: The argument that the message names.
        value: What was given, of which the message shows the class: a repr may compute.
        expected: What was expected.
        hint: What to do, where nothing is known of the object.
    """
    shown = value if value is None or isinstance(value, type) else type(value)
    made = f"{value.__name__} is a class: make an object of it" if isinstance(value, type) else ""
    return InvalidArgument(argument, shown, expected, _told(value) or made or hint)


def no_field(argument: str, value: Any, expected: str, hint: str = "") -> InvalidArgument:
    """The error for what is no field, with the adapter that makes one of it where there is one.

    Args:
        argument: The argument that the message names.
        value: What was given.
        expected: What was expected.
        hint: What to do where no adapter is known.
    """
    adapter = adapter_of(value)
    if adapter is None:
        return InvalidArgument(argument, value, expected, nearest(value) or ways(value, hint))
    way = part_of(value) or f"{type(value).__name__}: scoretk.{adapter} makes a field of it"
    return InvalidArgument(argument, type(value), expected, way)  # (whose repr may compute)


def user_function(name: str, value: Any, form: str) -> Any:
    """As `scoretk.core.arguments.function`, with the adapter for what cannot be called.

    Args:
        name: The argument.
        value: The function.
        form: How it is called, such as `net(x, t, **cond)`.

    Returns:
        The function.

    Raises:
        InvalidArgument: It cannot be called so.
    """
    if not callable(value) or isinstance(value, type):
        raise no_field(name, value, f"a callable {form}")
    return function(name, value, form)


def ways(value: object, hint: str) -> str:
    """A hint, and to a function what else makes fields of functions."""
    if not isinstance(value, FunctionType | MethodType | partial):
        return hint
    return f"{hint}. {_WAYS}" if hint else _WAYS
