"""A field from a `torch.distributions.Distribution`.

It has energy, score and `log_prob`, and `draw` where that can be exact.

The field is one of the user's space. Where the distribution lives on a part of it (a simplex,
positive numbers, correlations), solvers get it in free space (`in_free_space`), in coordinates that
lose no digits (`scoretk.fields.freelaws`), and draws come back in the user's.

`draw` must be a pure function of this package's noise, so it exists only where the distribution is
an explicit transform of uniforms and normals: location-scale families, everything with an inverse
distribution function, and mixtures, transforms and reinterpretations of those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch import distributions as td

from scoretk.core.keywords import explained
from scoretk.core.modules import state_like
from scoretk.core.rows import row_sum
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.answers import check_asked
from scoretk.fields.constrained import Constrained
from scoretk.fields.foreign import adapter_of, no_field
from scoretk.fields.freelaws import FreeLaw, free_law, log_density, moved, support_of, unvalidated
from scoretk.fields.gradient import ByAutograd
from scoretk.fields.protocols import NoiseSource, drawn, is_field, is_timed, optional
from scoretk.fields.supports import Bijection, Real

__all__ = [
    "DistributionField",
    "as_field",
    "draw_from",
    "explicit",
    "from_distribution",
    "in_free_space",
    "in_one_space",
]


@dataclass(frozen=True, eq=False)
class DistributionField(ByAutograd):
    """The static field of a distribution; made by `from_distribution`.

    Outside the support the energy is `inf`, never an exception.

    Attributes:
        distribution: torch's, of empty batch shape.
        provides: The capabilities of the field.
        support: The bijection from free space; None where the distribution lives on all of R^d.
    """

    distribution: td.Distribution
    provides: frozenset[str]
    support: Bijection | None = None
    _law: Any = field(default=None, repr=False)  # the distribution without torch's checks
    _free: FreeLaw | None = field(default=None, repr=False)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.distribution.event_shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """The normalised log density, `(batch, *event_shape) -> (batch,)`; `-inf` outside the
        support.
        """
        check_asked(x, self.event_shape)
        if len(x) == 0:  # torch's own support checks cannot take it
            return row_sum(x)
        return log_density(self.on(x.device)._law, x)

    def energy(self, x: Tensor) -> Tensor:
        """`-log_prob(x)`, `(batch,)`."""
        return -self.log_prob(x)

    @property
    def initial(self) -> Callable[[int, NoiseSource], Tensor] | None:
        """A start inside the support, N(0, I) in free space: `(n, noise) -> (n, *event_shape)`.

        It is None where the distribution lives on all of R^d.
        """
        if self._free is None:
            return None
        space, shape = _Following(self, self._free.space), self.event_shape
        return lambda n, noise: space.constrain(
            noise.normal(0, Stream.START, space.free_shape(shape))
        )

    def in_free_space(self) -> Any:
        """The field as solvers get it: in free space where it has a support of its own."""
        if self.support is None:
            return self
        assert self._free is not None
        space = _Following(self, self._free.space)
        shape = self._free.space.free_shape(self.event_shape)
        return Constrained(self.bare(), space, shape, self.distribution.support, space.log_density)

    def over_support(self) -> Constrained:
        """The field in free space, its density that of x and the bijection's."""
        assert self.support is not None
        free = self.support.free_shape(self.event_shape)
        return Constrained(self.bare(), self.support, free, self.distribution.support)

    def on(self, device: torch.device) -> DistributionField:
        """The field of the same distribution on a device; made at the first call for each device.

        A distribution cannot take tensors of another device than its own.
        """
        if torch.compiler.is_compiling():  # of what stands elsewhere the compiler says so
            return self
        held = state_like(self.distribution)
        if all(t.device == device for t in held):
            return self
        if any(t.requires_grad for t in held):  # a copy is of one graph
            return self._moved(device)
        copies = _ELSEWHERE.setdefault(self, {})
        written = tuple(t._version for t in held)
        found = copies.get(device)
        if found is None or found[0] != written:
            with torch.inference_mode(False), torch.no_grad():
                found = copies[device] = written, self._moved(device)
        return found[1]

    def _moved(self, device: torch.device) -> DistributionField:
        return _made_again(moved(self.distribution, device), self._free is None)

    def bare(self) -> DistributionField:
        """The same field without its support, to be the inner field of a `Constrained`."""
        return replace(self, support=None, _free=None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its distribution, from which the functions of the free law are made anew."""
        return _made_again, (self.distribution, self.support is None)

    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact samples: `field.draw(8, scoretk.Noise(0, 8))`.

        Args:
            n: How many.
            noise: Noise of as many chains, such as `scoretk.Noise(seed, n)`.

        Returns:
            `(n, *event_shape)`.

        Raises:
            MissingCapability: No explicit transform of noise is known.
        """
        if "draw" not in self.provides:
            raise MissingCapability(
                type(self.distribution).__name__,
                self.provides,
                {"draw"},
                "It is no explicit transform of uniforms and normals: sample it with a kernel such "
                "as MALA",
            )
        return draw_from(self.on(noise.chains.device).distribution, noise)


@runtime_checkable
class Supported(Protocol):
    """A field of the user's space that may have a support of its own."""

    @property
    def support(self) -> Bijection | None:
        """The bijection from free space onto the support; None for all of R^d."""
        ...

    def bare(self) -> Any:
        """The same field without its support."""
        ...

    def over_support(self) -> Constrained:
        """The field in free space, where it has a support."""
        ...


_ELSEWHERE: WeakKeyDictionary[
    DistributionField, dict[torch.device, tuple[tuple[int, ...], DistributionField]]
] = WeakKeyDictionary()
"""The fields on other devices of each field, with torch's count of writes to its tensors when they
were made.
"""


@dataclass(frozen=True, eq=False)
class _Following:
    """The bijection and log density of a distribution in free space, on whatever device z is.

    Attributes:
        field: The distribution's field.
        space: The bijection on the distribution's own device.
    """

    field: DistributionField
    space: Bijection

    @property
    def event_dim(self) -> int:
        return self.space.event_dim

    def free_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.space.free_shape(shape)

    def _free(self, like: Tensor) -> FreeLaw:
        free = self.field.on(like.device)._free
        assert free is not None
        return free

    def log_density(self, z: Tensor) -> Tensor:
        """The log density of z, `(batch,)`."""
        return self._free(z).log_density(z)

    def constrain(self, z: Tensor) -> Tensor:
        return self._free(z).space.constrain(z)

    def unconstrain(self, x: Tensor) -> Tensor:
        return self._free(x).space.unconstrain(x)

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return self._free(z).space.log_jacobian(z, x)

    def clamped(self, x: Tensor) -> Tensor:
        return self._free(x).space.clamped(x)

    def contains(self, x: Tensor) -> Tensor:
        return self._free(x).space.contains(x)


@explained
def from_distribution(distribution: td.Distribution) -> DistributionField:
    """A field with energy, score and `log_prob` from a torch distribution.

    It has `draw` where the distribution is an explicit transform of noise. Where it has a support
    it is sampled in free space: chains start inside, and draws are inside. A von Mises
    distribution, whose density is periodic, is taken on [-pi, pi].

    Args:
        distribution: Continuous, with `batch_shape == ()`; its `event_shape` is the field's.

    Returns:
        The field.

    Raises:
        InvalidArgument: It is anything else; the message has the wrapping that makes it right.
    """
    other = adapter_of(distribution) not in (None, "from_distribution")
    if other or not isinstance(distribution, td.Distribution):
        raise no_field("distribution", distribution, "a torch.distributions.Distribution")
    if distribution.batch_shape:
        raise InvalidArgument(
            "distribution",
            distribution,
            "an empty batch_shape",
            f"Wrap it: Independent(distribution, {len(distribution.batch_shape)}) makes the batch "
            f"one event",
        )
    if _discrete(distribution):
        raise InvalidArgument(
            "distribution",
            distribution,
            "a continuous distribution",
            "For discrete states: scoretk.Discrete(scoretk.Energy(lambda x: "
            "-distribution.log_prob(x), event_shape), states) with states such as (0, 1) or "
            "tuple(range(30))",
        )
    provides = {"energy", "score", "log_prob"} | ({"draw"} if explicit(distribution) else set())
    law = unvalidated(distribution)
    try:
        support, free = support_of(law), free_law(law)
        # A transform that is not bijective has no density: it fails here.
        free.log_density(_origin(distribution, free.space))
    except (NotImplementedError, ValueError, RuntimeError, TypeError, AssertionError) as error:
        raise InvalidArgument(
            "distribution",
            distribution,
            "a distribution with a density and a known bijection from free space onto its support",
            f"{str(error) or type(error).__name__}; or write its energy: "
            "scoretk.constrained(scoretk.Energy(fn, event_shape), constraint)",
        ) from error
    if isinstance(support, Real):
        return DistributionField(distribution, frozenset(provides), None, law)
    return DistributionField(distribution, frozenset(provides), support, law, free)


def _made_again(distribution: td.Distribution, bare: bool) -> DistributionField:
    made = from_distribution(distribution)
    return made.bare() if bare else made


def _origin(distribution: td.Distribution, space: Bijection) -> Tensor:
    """One row z = 0, where the distribution's own tensors are."""
    hint = next(iter(state_like(distribution)), torch.zeros(()))
    return torch.zeros(
        (1, *space.free_shape(tuple(distribution.event_shape))),
        dtype=hint.dtype,
        device=hint.device,
    )


def as_field(value: Any) -> Any:
    """A distribution as its field; a field, or what is nothing known, as it is.

    Raises:
        InvalidArgument: It is another library's object, of which an adapter makes a field.
    """
    if isinstance(value, td.Distribution):
        return from_distribution(value)
    if adapter_of(value) is not None and not is_field(value):
        raise no_field("field", value, "a field")
    return value


def in_free_space(value: Any) -> Any:
    """A field or distribution as solvers get it: in free space where it has a support.

    Raises:
        InvalidArgument: As `as_field`, and of a class in place of a field.
    """
    field = as_field(value)
    if isinstance(field, type):
        raise no_field("field", field, "a field")
    own = optional(field, "in_free_space")
    return own() if callable(own) else field


def in_one_space(fields: Sequence[Any], *, all_or_none: bool = False) -> tuple[Any, ...]:
    """Fields or distributions that are to be combined, in one space.

    Those without a support are put under the support of the others.

    Args:
        fields: The fields or distributions.
        all_or_none: Whether that happens only where all have a support. A mixture of laws with and
            without one lives where any of them does.

    Returns:
        The fields, in their order.
    """
    made = tuple(as_field(f) for f in fields)
    supported = [f for f in made if isinstance(f, Supported) and f.support is not None]
    moved = [f for f in made if callable(optional(f, "around"))]
    if not supported:
        return made
    if all_or_none and len(supported) + len(moved) < len(made):
        return tuple(f.bare() if f in supported else f for f in made)
    first: Any = supported[0]
    space = first.over_support()

    def put(f: Any) -> Any:
        if isinstance(f, Supported) and f.support is not None:
            return f.over_support()
        known = moved or is_timed(f) or tuple(getattr(f, "event_shape", ())) != first.event_shape
        return f if known else space.around(f)

    return tuple(put(f) for f in made)


def _discrete(distribution: td.Distribution) -> bool:
    try:
        support = distribution.support
    except NotImplementedError:
        return False
    return support is not None and bool(support.is_discrete)


class _Draws:
    """Fresh uniforms and normals of the START stream: the n-th request is its n-th step."""

    def __init__(self, noise: NoiseSource) -> None:
        self._noise, self._count = noise, -1

    def _next(self, kind: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        self._count += 1
        return kind(self._count, Stream.START, shape, torch.get_default_dtype())

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return self._next(self._noise.normal, shape)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        return self._next(self._noise.uniform, shape)


def draw_from(d: td.Distribution, noise: NoiseSource) -> Tensor:
    """Draws `(n, *batch_shape, *event_shape)` of an `explicit` distribution, from the noise."""
    return _transform(d, _Draws(noise))


def explicit(d: td.Distribution) -> bool:
    """Whether a distribution is a known transform of uniforms and normals."""
    if isinstance(d, td.Independent):
        return explicit(d.base_dist)
    if isinstance(d, td.TransformedDistribution):
        return explicit(d.base_dist)
    if isinstance(d, td.MixtureSameFamily):
        return explicit(d.component_distribution)
    return _transform.dispatch(type(d)) is not _transform.dispatch(td.Distribution) or (
        type(d).icdf is not td.Distribution.icdf
    )


@singledispatch
def _transform(d: td.Distribution, draws: _Draws) -> Tensor:
    """Draws `(n, *batch_shape, *event_shape)` from the noise.

    The default is the inverse distribution function; other families are registered below.
    """
    return d.icdf(draws.uniform(tuple(d.batch_shape + d.event_shape)))


@_transform.register
def _(d: td.Normal, draws: _Draws) -> Tensor:
    return d.loc + d.scale * draws.normal(tuple(d.batch_shape))


@_transform.register
def _(d: td.MultivariateNormal, draws: _Draws) -> Tensor:
    z = draws.normal(tuple(d.batch_shape + d.event_shape)).to(d.loc.dtype)
    return d.loc + (d._unbroadcasted_scale_tril @ z.unsqueeze(-1)).squeeze(-1)


@_transform.register
def _(d: td.LowRankMultivariateNormal, draws: _Draws) -> Tensor:
    factor = d._unbroadcasted_cov_factor
    low = draws.normal((*d.batch_shape, factor.shape[-1])).to(factor.dtype)
    full = draws.normal(tuple(d.batch_shape + d.event_shape))
    x: Tensor = d.loc + (factor @ low.unsqueeze(-1)).squeeze(-1)
    return x + d._unbroadcasted_cov_diag.sqrt() * full


@_transform.register(td.Independent)
def _(d: td.Independent[Any], draws: _Draws) -> Tensor:
    return _transform(d.base_dist, draws)


@_transform.register
def _(d: td.TransformedDistribution, draws: _Draws) -> Tensor:
    x = _transform(d.base_dist, draws)
    for transform in d.transforms:
        x = transform(x)
    return x


@_transform.register
def _(d: td.MixtureSameFamily, draws: _Draws) -> Tensor:
    components = _transform(d.component_distribution, draws)  # (n, *batch, k, *event)
    axis = 1 + len(d.batch_shape)
    cumulative = d.mixture_distribution.probs.cumsum(-1)[..., :-1]
    chosen = (draws.uniform(tuple(d.batch_shape)).unsqueeze(-1) > cumulative).sum(-1)
    index = chosen.reshape(chosen.shape + (1,) * (components.ndim - chosen.ndim))
    index = index.expand(*components.shape[:axis], 1, *components.shape[axis + 1 :])
    return components.gather(axis, index).squeeze(axis)
