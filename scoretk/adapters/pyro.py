"""Models of Pyro as fields of named variables: names and supports of its sites, its log density.

The log density of many chains is one evaluation, by `torch.func.vmap`, where the model allows it;
otherwise the chains are asked one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from scoretk.core.dependencies import required
from scoretk.errors import InvalidArgument
from scoretk.fields.layout import Variable
from scoretk.fields.wrappers import Energy

__all__ = ["from_pyro"]


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
        InvalidArgument: It has no latent site, a discrete one, or one whose support depends on
            another's value.
        MissingDependency: Pyro is not installed.
    """
    poutine = required("pyro.poutine", "pyro", "A model of Pyro")
    sites, again = (_latent(poutine, model, args, options, seed) for seed in (0, 1))
    if not sites:
        raise InvalidArgument("model", model, "a model with a latent site", "All of it is observed")
    for name, site in sites.items():
        other = again.get(name)
        if other is None or not _alike(site["fn"].support, other["fn"].support):
            raise InvalidArgument(
                "model",
                f"site {name!r}, whose support depends on other sites",
                "sites and supports that are always the same",
                "Sample a site of a fixed support, and transform it",
            )
    one = _OnePoint(poutine, model, args, options)
    points = {name: _two_points(site, again[name]) for name, site in sites.items()}
    try:
        with torch.no_grad():
            torch.func.vmap(one)(points)
        energy: Any = _Together(one)
    except RuntimeError:  # control flow that depends on the data, writes in place
        energy = _OneByOne(one)
    return Energy(energy, variables={name: _variable(name, s) for name, s in sites.items()})


def _latent(poutine: Any, model: Any, args: Any, options: Any, seed: int) -> dict[str, Any]:
    """The latent sites of a model, from one run of it."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        trace = poutine.trace(model).get_trace(*args, **options)
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and type(site["fn"]).__name__ != "_Subsample"
    }


def _alike(a: Any, b: Any) -> bool:
    return repr(a) == repr(b) and all(
        torch.equal(torch.as_tensor(u), torch.as_tensor(v))
        for u, v in zip(_bounds(a), _bounds(b), strict=True)
    )


def _bounds(support: Any) -> list[Any]:
    return [vars(support)[n] for n in ("lower_bound", "upper_bound") if n in vars(support)]


def _two_points(site: Any, other: Any) -> Tensor:
    return torch.stack([site["value"], other["value"]])


def _variable(name: str, site: Any) -> Variable:
    support, shape = site["fn"].support, tuple(site["value"].shape)
    if support.is_discrete:
        raise InvalidArgument(
            "model", f"a discrete latent site {name!r}", "continuous ones", "Sum it out"
        )
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return Variable(shape, support)


@dataclass(frozen=True, eq=False)
class _OnePoint:
    """Minus the log density of a model at one value of each latent site.

    Attributes:
        poutine: Pyro's effect handlers.
        model: The model.
        args: Its arguments.
        options: Its arguments by name.
    """

    poutine: Any
    model: Any
    args: tuple[Any, ...]
    options: dict[str, Any]

    def __call__(self, values: dict[str, Tensor]) -> Tensor:
        with _unchecked():
            held = self.poutine.condition(self.model, data=values)
            trace = self.poutine.trace(held).get_trace(*self.args, **self.options)
            log_prob: Tensor = trace.log_prob_sum()
        return -log_prob


@dataclass(frozen=True, eq=False)
class _Together:
    """The energy of all chains in one evaluation."""

    one: _OnePoint

    def __call__(self, **values: Tensor) -> Tensor:
        energy: Tensor = torch.func.vmap(self.one)(values)
        return energy


@dataclass(frozen=True, eq=False)
class _OneByOne:
    """The energy of the chains, one by one."""

    one: _OnePoint

    def __call__(self, **values: Tensor) -> Tensor:
        n = len(next(iter(values.values())))
        return torch.stack([self.one({k: v[i] for k, v in values.items()}) for i in range(n)])


@contextmanager
def _unchecked() -> Iterator[None]:
    """Without the checks of distributions, which look at values; the supports hold by the map."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
