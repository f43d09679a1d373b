"""Models of Pyro as fields of named variables: names and supports of its sites, its log density.

The log density of many chains is one evaluation, by `torch.func.vmap`, where the model allows it;
otherwise the chains are asked one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, transform_to
from torch.distributions.utils import lazy_property

from scoretk.adapters.law_supports import (
    bare_support,
    check_density,
    check_supports,
    is_angle,
    supports_within,
)
from scoretk.adapters.owned import called, check_repeats, generators_kept, is_flat, no_start
from scoretk.core.dependencies import required
from scoretk.core.modules import asked
from scoretk.core.rows import row_sum
from scoretk.errors import InvalidArgument
from scoretk.fields.foreign import unfit
from scoretk.fields.layout import Variable, variable_name
from scoretk.fields.variables import variables_of
from scoretk.fields.wrappers import Energy

__all__ = ["from_pyro"]

RUNS = 4
"""How often a model is run before it is believed that its sites and supports are always the same."""


def from_pyro(model: Callable[..., Any], /, *args: Any, **options: Any) -> Energy:
    """A field over named variables from a model of Pyro.

    Args:
        model: A function, or module, with `pyro.sample` statements.
        args: The model's arguments, its data among them.
        options: The model's arguments by name.

    Returns:
        The field of its latent sites, by their names and under their supports. Solvers work in free
        space; draws are the sites' values.

    Raises:
        InvalidArgument: It has no latent site, a discrete one, one with a point mass, or one whose
            support depends on another's value; its sites are not always the same; it takes
            mini-batches of its data,
            or draws random numbers beside its sites; or it does not run.
        MissingDependency: Pyro is not installed.
    """
    poutine, starts = (
        required(f"pyro.{name}", "pyro", "A model of Pyro")
        for name in ("poutine", "infer.autoguide.initialization")
    )
    started = starts.InitMessenger(_value)
    first, *others = (
        _latent(poutine, model, started, (args, options), seed) for seed in range(RUNS)
    )
    if not first:
        raise unfit(model, "pyro")
    _check_laws(first, lambda site: list(supports_within(site["fn"])))
    for other in others:
        _check_sites(first.keys(), other.keys())
        for name, site in first.items():
            ours, theirs = (list(supports_within(s["fn"])) for s in (site, other[name]))
            if not _alike(ours, theirs):
                raise InvalidArgument(
                    "model",
                    f"site {name!r}, whose support depends on other sites",
                    "sites and supports that are always the same",
                    "Sample a site of a fixed support, and transform it",
                )
    specs = {name: _variable(name, site) for name, site in first.items()}
    _check_laws(first, lambda site: site["fn"].log_prob(site["value"]))
    one = _OnePoint(poutine, model, args, options, frozenset(first))
    values = {n: torch.stack([run[n]["value"] for run in (first, *others)]) for n in first}
    points = {n: rows[:2] for n, rows in values.items()}
    with generators_kept(), torch.no_grad():  # it may draw, and is refused then
        try:
            check_repeats("model", lambda: one({name: rows[0] for name, rows in points.items()}))
        except InvalidArgument:
            raise
        except Exception as error:  # the model's, where its sites have values that are given
            raise unfit(model, "pyro", error) from error
    energy = _Together(one) if _is_mapped(one, points) else _OneByOne(one)
    made = _Flat(energy) if _is_constant(energy, values) else energy
    return Energy(made, variables=variables_of(specs, variable_name))  # type: ignore[arg-type]


def _check_laws(sites: dict[str, Any], ask: Callable[[Any], Any]) -> None:
    """Check that the laws of sites answer what they are asked.

    Raises:
        InvalidArgument: One can be drawn only.
    """
    for name, site in sites.items():
        try:
            with torch.no_grad():
                ask(site)
        except NotImplementedError as error:
            raise InvalidArgument(
                "model",
                f"site {name!r}, of a law that can be drawn and not evaluated "
                f"({type(site['fn']).__name__})",
                "sites whose laws have a support and a log_prob",
                "Give it a law with both: of what is drawn by rejection a TransformedDistribution, or "
                "the law that is proposed with pyro.factor(name, log_accept) beside it",
            ) from error


def _is_mapped(one: _OnePoint, points: dict[str, Tensor]) -> bool:
    """Whether `torch.func.vmap` takes a model, and says of each chain what it is alone."""
    try:
        with torch.no_grad():
            together = torch.func.vmap(one)(points)
    except RuntimeError:  # control flow that depends on the data, writes in place
        return False
    with torch.no_grad():
        alone = _OneByOne(one)(**points)
    return torch.allclose(together, alone, rtol=1e-4, atol=1e-4, equal_nan=True)


def _is_constant(energy: _Together | _OneByOne, points: dict[str, Tensor]) -> bool:
    """Whether a density has no gradient since it is the same at all points."""
    with torch.enable_grad():
        found = energy(**{name: rows.detach().requires_grad_() for name, rows in points.items()})
    return not found.requires_grad and bool((found == found[0]).all())


def _latent(poutine: Any, model: Any, started: Any, given: Any, seed: int) -> dict[str, Any]:
    """The latent sites of a model, from one run of it.

    Raises:
        InvalidArgument: It does not run; or a plate holds a mini-batch: the log density is another
            one for each batch.
    """
    with generators_kept(), torch.no_grad():
        torch.manual_seed(seed)
        try:
            trace = poutine.trace(started(model)).get_trace(*given[0], **given[1])
        except InvalidArgument:
            raise
        except Exception as error:  # whatever a user's model raises, or the library that it is of
            raise unfit(model, "pyro", error) from error
    for name, site in trace.nodes.items():
        if _is_plate(site) and len(site["value"]) != site["fn"].size:
            raise InvalidArgument(
                "model",
                f"the plate {name!r} with {len(site['value'])} of its {site['fn'].size} rows",
                "plates of all their rows",
                "Leave subsample_size and subsample out, and give the model all data",
            )
    return _sampled(trace)


def _value(site: Any) -> Tensor:
    """A value of a latent site: a draw, or of one that is flat any point of its support.

    Raises:
        InvalidArgument: It has no draws, and no such point is known.
    """
    law = site["fn"]
    if not is_flat(law):
        drawn: Tensor = law(*site["args"], **site["kwargs"])
        return drawn
    try:
        onto = transform_to(law.support)
        free = torch.rand(onto.inverse_shape(law.shape())) - 1 / 2
        value: Tensor = onto(free)
    except (NotImplementedError, ValueError) as error:  # of a support without a bijection
        raise no_start(site) from error
    return value


def _is_plate(site: Any) -> bool:
    return site["type"] == "sample" and type(site["fn"]).__name__ == "_Subsample"


def _sampled(trace: Any) -> dict[str, Any]:
    """The sites of a run whose values were drawn."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not _is_plate(site)
    }


def _check_sites(known: Set[str], found: Set[str]) -> None:
    """Check that two runs of a model have the same latent sites.

    Raises:
        InvalidArgument: One has a site that the other has not.
    """
    if known != found:
        raise InvalidArgument(
            "model",
            f"sites that come and go: {', '.join(sorted(known ^ found))}",
            "the same sites at each call",
            "Sample them all, and choose among their values",
        )


def _alike(a: Any, b: Any) -> bool:
    """Whether two supports are one: of the same class, with the same parts."""
    if isinstance(a, constraints.Constraint):
        ours, theirs = vars(a), vars(b)
        return (
            type(a) is type(b)
            and ours.keys() == theirs.keys()
            and all(_alike(part, theirs[name]) for name, part in ours.items())
        )
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    return bool(a == b)


def _variable(name: str, site: Any) -> Variable:
    support, shape = bare_support(site["fn"].support), tuple(site["value"].shape)
    check_density(name, site["fn"])
    check_supports(f"site {name!r}", site["fn"])
    if support.is_discrete:
        raise InvalidArgument(
            "model", f"a discrete latent site {name!r}", "continuous ones", "Sum it out"
        )
    if is_angle(f"site {name!r}", site["fn"]):
        support = constraints.interval(-math.pi, math.pi)
    return Variable(shape, support)


@dataclass(frozen=True, eq=False)
class _OnePoint:
    """Minus the log density of a model at one value of each latent site.

    Attributes:
        poutine: Pyro's effect handlers.
        model: The model.
        args: Its arguments.
        options: Its arguments by name.
        names: Those of its latent sites.
    """

    poutine: Any
    model: Any
    args: tuple[Any, ...]
    options: dict[str, Any]
    names: frozenset[str]

    def __call__(self, values: dict[str, Tensor]) -> Tensor:
        return asked(lambda: self._energy(values), self.model)

    def _energy(self, values: dict[str, Tensor]) -> Tensor:
        with _unchecked(self.poutine):
            held = self.poutine.condition(self.model, data=values)
            trace = self.poutine.trace(held).get_trace(*self.args, **self.options)
            _check_sites(self.names, (trace.nodes.keys() & self.names) | _sampled(trace).keys())
            energy: Tensor = -trace.log_prob_sum()
            for site in trace.nodes.values():
                for fits in _fitting(site, latent=site["name"] in self.names):
                    energy = torch.where(fits, energy, torch.inf)
        return energy


def _fitting(site: Any, latent: bool) -> Iterator[Tensor]:
    """Whether parameters and observed values are where a site's law has a density.

    These are the checks of distributions that Pyro makes when it is asked for a density, as answers
    and not as errors: the formulas go on beyond (a Gamma's at negative concentrations, an
    exponential's below 0).

    Args:
        site: A site of a trace.
        latent: Whether its value comes from free space, and is in the support.
    """
    if site["type"] != "sample" or site["mask"] is not None or _is_plate(site):
        return
    law, value = site["fn"], site["value"]
    while law is not None and type(law).__name__ != "MaskedDistribution":
        for name, constraint in (_said(law, "arg_constraints") or {}).items():
            lazy = isinstance(getattr(type(law), name, None), lazy_property)
            if not (constraints.is_dependent(constraint) or (lazy and name not in vars(law))):
                yield constraint.check(getattr(law, name)).all()
        support = None if latent else _said(law, "support")
        if support is not None and not constraints.is_dependent(support):
            yield support.check(value).all()
        for transform in () if latent else reversed(getattr(law, "transforms", ())):
            value = transform.inv(value)
        within = getattr(law, "base_dist", None)
        latent = latent or within is None  # a component may have no density at a mixture's value
        law = getattr(law, "component_distribution", None) if within is None else within


def _said(law: Any, name: str) -> Any:
    """What a law says of itself; None where it does not."""
    try:
        return getattr(law, name)
    except NotImplementedError:
        return None


@dataclass(frozen=True, eq=False)
class _Together:
    """The energy of all chains in one evaluation."""

    one: _OnePoint

    def __repr__(self) -> str:
        return called("from_pyro", self.one.model)

    def __call__(self, **values: Tensor) -> Tensor:
        energy: Tensor = torch.func.vmap(self.one)(values)
        return energy


@dataclass(frozen=True, eq=False)
class _OneByOne:
    """The energy of the chains, one by one."""

    one: _OnePoint

    def __repr__(self) -> str:
        return called("from_pyro", self.one.model)

    def __call__(self, **values: Tensor) -> Tensor:
        n = len(next(iter(values.values())))
        return torch.stack([self.one({k: v[i] for k, v in values.items()}) for i in range(n)])


@dataclass(frozen=True, eq=False)
class _Flat:
    """The energy of a model whose density is constant in its sites: its gradient is 0, not absent."""

    energy: _Together | _OneByOne

    def __repr__(self) -> str:
        return repr(self.energy)

    def __call__(self, **values: Tensor) -> Tensor:
        slopes = torch.stack([0.0 * row_sum(value) for value in values.values()]).sum(0)
        return self.energy(**values) + slopes


@contextmanager
def _unchecked(poutine: Any) -> Iterator[None]:
    """Without the checks of distributions and traces, which look at values, as no map over chains can.

    The supports hold by the map from free space, and what is not finite is the run's to say.
    """
    traces, values = poutine.is_validation_enabled(), Distribution._validate_args
    poutine.enable_validation(False)
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        poutine.enable_validation(traces)
        Distribution.set_default_validate_args(values)
