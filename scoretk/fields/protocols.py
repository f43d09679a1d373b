"""What a model offers: structural protocols. A third-party class needs no scoretk base class.

A *static* field has `energy(x)` or `score(x)` (or both); a *timed* one has `at(t)` and any of
`velocity(x, t)`, `score(x, t)`, `denoise(x, t)`. All have `event_shape`. Condition values reach
every method as keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from scoretk.core.arguments import count, is_integer
from scoretk.errors import InvalidArgument
from scoretk.fields.foreign import PARTS, adapter_of, owners
from scoretk.plugins.capabilities import CAPABILITIES, offers

__all__ = [
    "CAPABILITIES",
    "OPTIONAL",
    "Drawable",
    "Field",
    "HasEnergy",
    "HasLogProb",
    "HasScore",
    "NoiseSource",
    "Timed",
    "drawn",
    "field_name",
    "is_field",
    "is_timed",
    "offers",
    "optional",
    "way_to_energy",
    "without_law",
]


@runtime_checkable
class Field(Protocol):
    """Anything with an `event_shape`; its other methods say what it can do."""

    @property
    def event_shape(self) -> tuple[int, ...]: ...


@runtime_checkable
class HasEnergy(Field, Protocol):
    """`energy(x) = -log p(x) + const`, `(batch, *event_shape) -> (batch,)`."""

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor: ...


@runtime_checkable
class HasScore(Field, Protocol):
    """`score(x) = grad log p(x)`, like x."""

    def score(self, x: Tensor, **cond: Tensor) -> Tensor: ...


@runtime_checkable
class HasLogProb(Field, Protocol):
    """`log_prob(x)`, normalised, `(batch, *event_shape) -> (batch,)`."""

    def log_prob(self, x: Tensor, **cond: Tensor) -> Tensor: ...


@runtime_checkable
class Timed(Field, Protocol):
    """A field in time: `at(t)` is the static field of that time; its methods take `(x, t)`."""

    def at(self, t: float | Tensor) -> Field: ...


class NoiseSource(Protocol):
    """What `draw` and the solvers use of `scoretk.core.noise.Noise`."""

    @property
    def chains(self) -> Tensor: ...

    def normal(
        self,
        step: int | Tensor,
        stream: int,
        shape: tuple[int, ...],
        dtype: torch.dtype | None = None,
    ) -> Tensor: ...

    def uniform(
        self,
        step: int | Tensor,
        stream: int,
        shape: tuple[int, ...],
        dtype: torch.dtype | None = None,
    ) -> Tensor: ...

    def rademacher(
        self,
        step: int | Tensor,
        stream: int,
        shape: tuple[int, ...],
        dtype: torch.dtype | None = None,
    ) -> Tensor: ...


@runtime_checkable
class Drawable(Field, Protocol):
    """An exact sampler: `draw(n, noise)` is `(n, *event_shape)`, an explicit transform of the
    noise.
    """

    def draw(self, n: int, noise: NoiseSource) -> Tensor: ...


def is_field(value: object) -> bool:
    """Whether something is a field: an object, no class, with the shape of an event.

    An object of another library that has such a shape too, as its distributions have, is one only
    where it has a method of a field.
    """
    shape = getattr(value, "event_shape", None)
    return (
        isinstance(shape, Sequence)
        and not isinstance(shape, str)
        and not isinstance(value, type)
        and all(is_integer(n) and n > 0 for n in shape)
        and (not _is_foreign(value) or bool(offers(value) & _OF_A_FIELD))
    )


def _is_foreign(value: object) -> bool:
    """Whether something is known as another library's, or as a part of one of these."""
    return adapter_of(value) is not None or any(owner in PARTS for owner in owners(value))


_OF_A_FIELD = frozenset({"energy", "score", "velocity", "denoise"})


OPTIONAL: Mapping[str, str] = MappingProxyType(
    {
        "path": "the Gaussian path of a field in time, from noise to data",
        "predicts": "the name of what `predict` returns, one of `convert.PREDICTIONS`",
        "predict": "`predict(x, t) -> like x`, the native prediction of a field in time",
        "base": "the law at t = 0, a field with `draw`: where chains of a field in time start",
        "initial": "`initial(n, noise) -> (n, *event_shape)`, where chains of a static field start",
        "states": "the values that an entry of x may take, or 'one-hot': a field on discrete states",
        "gibbs": "`gibbs(x, noise, step) -> x`, an exact sweep over blocks of sites",
        "gibbs_shape": "the shape of the state that `gibbs` sweeps over, where that is not x's",
        "couplings": "a `Couplings`: bonds of pairs of sites and weights of single ones, all of the energy",
        "between": "`between(base, weight)`, a path of the field's own from a base to itself",
        "constrain": "`constrain(z) -> x`, from free space to the user's: a field under a constraint",
        "unconstrain": "`unconstrain(x) -> z`, the way back",
        "constrained_shape": "the event shape in the user's space",
        "constraint": "what `constrain` leads to",
        "variables": "the names of what draws hold, a `fields.variables.Named`",
        "around": "`around(field)`, another field of the user's space seen through the same map",
        "support": "the constraint on which the field lives while it is not yet in free space",
        "in_free_space": "`in_free_space()`, the field as it is sampled",
        "decode": "`decode(x)`, what a latent stands for",
        "null": "the condition values that stand for no condition, by name",
        "draw": "`draw(n, noise) -> (n, *event_shape)`, exact samples",
        "log_prob": "`log_prob(x) -> (batch,)`, the normalised log density",
        "log_prob_at": "`log_prob_at(x, t) -> (batch,)`, that of `p_t`",
        "estimate_log_prob": "an unbiased estimate of the density, with its standard error",
        "exact_log_partition": "log Z by enumeration",
        "twist": "`twist(x, t)`, of a posterior in time: a `Twist`, guidance and how likely y is from there",
        "log_likelihood": "`log_likelihood(x) -> (batch,)`, of a posterior: log L of data x",
        "separated": "`separated(**cond)`, of a posterior in time: a `Separated`, its prior and its likelihood",
        "noised": "`noised(path)`, the exact field in time of which this is the end",
        "marginal": "the field in data space of a model whose x is a latent",
        "observe": "`observe(x, noise)`, data drawn given a latent",
    }
)
"""What a field may have beside the methods of its kind, all of it optional; read by `optional`.

What becomes of each under a wrapper says `fields.wrapped.RULES`.
"""


def optional(field: object, name: str) -> Any:
    """One of `OPTIONAL` as the field has it; None where it has not.

    Raises:
        KeyError: The name is none of `OPTIONAL`.
    """
    if name not in OPTIONAL:
        raise KeyError(name)
    return getattr(field, name, None)


_Draw = TypeVar("_Draw", bound=Callable[..., Tensor])


def drawn(draw: _Draw) -> _Draw:
    """A method `draw(n, noise)` of a field, which is refused where the noise is not of n chains."""

    @wraps(draw)
    def checked(self: Any, n: int, noise: Any, **cond: Tensor) -> Tensor:
        many = count("n", n)
        chains = getattr(noise, "chains", None)
        if not isinstance(chains, Tensor) or len(chains) != many:
            got = noise if chains is None else f"noise of {len(chains)} chains"
            hint = f"Such as scoretk.Noise(0, {many}), whose seed is 0"
            raise InvalidArgument("noise", got, f"noise of n = {many} chains", hint)
        return draw(self, many, noise, **cond)

    return checked  # type: ignore[return-value]  # whose signature is the method's


def is_timed(field: object) -> bool:
    """Whether the field's methods take a time."""
    return callable(getattr(field, "at", None))


def without_law(has: frozenset[str]) -> str:
    """What to do with a static field that offers these, and neither an energy nor a score."""
    if "log_prob" in has:
        return (
            "Minus its log density is an energy: scoretk.Energy(lambda x: -model.log_prob(x), "
            "event_shape)"
        )
    if has & {"velocity", "denoise"}:
        return (
            "A field in time is made of such a method: scoretk.Velocity(model.velocity, "
            "event_shape), scoretk.Diffusion(model.denoise, event_shape, path, 'data')"
        )
    return (
        "Give it energy(x), minus a log density, or score(x); of a function "
        "scoretk.Energy(fn, event_shape) makes a field"
    )


def way_to_energy(field: Any, otherwise: str = "") -> str:
    """What to do with what is no static field with an energy: of one with a log density the way."""
    law = is_field(field) and not is_timed(field) and "log_prob" in offers(field)
    return without_law(frozenset({"log_prob"})) if law else otherwise


_MADE_BY = {
    "At": "field.at(t)",
    "Classified": "a field guided by a classifier",
    "Constrained": "a field over its support (constrained, or of a distribution)",
    "DiscreteField": "Discrete(...)",
    "Diffusion": "Diffusion",
    "DistributionField": "from_distribution(...)",
    "Energy": "Energy",
    "Guided": "guided(...)",
    "GuidedStatic": "guided(...)",
    "Mixture": "mixture(...)",
    "MixtureTimed": "mixture(...)",
    "Powered": "a tempered field or a product of fields",
    "PoweredTimed": "a tempered field or a product of fields in time",
    "Score": "Score",
    "Smoothed": "smoothed(...)",
    "StaticPosterior": "posterior(...)",
    "Steered": "guided(...)",
    "TimedPosterior": "posterior(...)",
}
"""What users call the fields that have no public class of their own."""


def field_name(field: object) -> str:
    """What messages call a field: how it is made, its repr where that is short, else its type."""
    kind = type(field)
    if kind.__name__ in _MADE_BY and kind.__module__.startswith("scoretk."):
        return _MADE_BY[kind.__name__]
    text = repr(field)
    return text if len(text) <= 60 and "\n" not in text else kind.__name__
