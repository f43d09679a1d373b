"""A field from a `torch.distributions.Distribution`: energy, score, `log_prob`, and `draw` where it can be exact.

`draw` must be a pure function of this package's noise, so it exists only where the distribution is an explicit
transform of uniforms and normals: location-scale families, everything with an inverse distribution function, and
mixtures, transforms and reinterpretations of those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.gradient import grad_energy
from scoretk.fields.protocols import NoiseSource
from scoretk.rows import across, row_sum
from scoretk.streams import Stream

__all__ = ["DistributionField", "from_distribution"]


@dataclass(frozen=True, eq=False)
class DistributionField:
    """The static field of a distribution. Outside the support the energy is `inf`, never an exception."""

    distribution: td.Distribution
    provides: frozenset[str]
    _inside: Tensor | None = field(default=None, repr=False)  # a point of the support; None where that is all of R^d

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.distribution.event_shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Normalised log density, `(batch, *event_shape) -> (batch,)`; `-inf` outside the support."""
        if len(x) == 0:  # which torch's own support checks cannot take
            return row_sum(x)
        if self._inside is None:
            return self.distribution.log_prob(x)
        inside = self.distribution.support.check(x)  # type: ignore[union-attr]
        # the point put in for rows outside keeps NaN out of the gradient of the rows inside
        y = torch.where(across(inside, x), x, self._inside.to(x))
        density = self.distribution.log_prob(y) + 0 * row_sum(y)  # so that a constant density has a gradient: zero
        return torch.where(inside, density, -torch.inf)

    def energy(self, x: Tensor) -> Tensor:
        """`-log_prob(x)`, `(batch,)`."""
        return -self.log_prob(x)

    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`E(x)` and `grad E(x)` for the price of one of each."""
        return grad_energy(self.energy, x)

    def score(self, x: Tensor) -> Tensor:
        """`grad log p(x)`, like x."""
        return -self.energy_and_grad(x)[1]

    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact samples, `(n, *event_shape)`. Raises `MissingCapability` where no explicit transform is known."""
        if "draw" not in self.provides:
            raise MissingCapability(
                type(self.distribution).__name__, self.provides, {"draw"},
                "It is no explicit transform of uniforms and normals: sample it with a kernel such as MALA",
            )  # fmt: skip
        return _transform(self.distribution, _Draws(noise))


def from_distribution(distribution: td.Distribution) -> DistributionField:
    """A field with energy, score and `log_prob` from a torch distribution, and `draw` where an explicit transform exists.

    Arguments: distribution, continuous, with `batch_shape == ()`; its `event_shape` is the field's.
    Raises: `InvalidArgument` for anything else, with the wrapping that makes it right.
    """
    if not isinstance(distribution, td.Distribution):
        raise InvalidArgument("distribution", distribution, "a torch.distributions.Distribution")
    if distribution.batch_shape:
        raise InvalidArgument(
            "distribution", distribution, "an empty batch_shape",
            f"Wrap it: Independent(distribution, {len(distribution.batch_shape)}) makes the batch one event",
        )  # fmt: skip
    if distribution.support is None or distribution.support.is_discrete:
        raise InvalidArgument("distribution", distribution, "a continuous distribution with a support")
    provides = {"energy", "score", "log_prob"} | ({"draw"} if _explicit(distribution) else set())
    return DistributionField(distribution, frozenset(provides), _interior(distribution))


def _interior(distribution: td.Distribution) -> Tensor | None:
    """A point inside the support, None where every point is."""
    if isinstance(distribution, td.MixtureSameFamily):
        return _interior_of(distribution.component_distribution.support, distribution.event_shape)
    return _interior_of(distribution.support, distribution.event_shape)


def _interior_of(support: Any, event_shape: torch.Size) -> Tensor | None:
    base = support
    while hasattr(base, "base_constraint"):
        base = base.base_constraint
    if base in (td.constraints.real, td.constraints.real_vector):
        return None
    to_support = td.biject_to(support)
    return to_support(torch.zeros(to_support.inverse_shape(event_shape)))


class _Draws:
    """Hands out fresh uniforms and normals of the START stream: the n-th request is the n-th step of that stream."""

    def __init__(self, noise: NoiseSource) -> None:
        self._noise, self._count = noise, -1

    def _next(self, kind: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        self._count += 1
        return kind(self._count, Stream.START, shape, torch.get_default_dtype())

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return self._next(self._noise.normal, shape)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        return self._next(self._noise.uniform, shape)


def _explicit(d: td.Distribution) -> bool:
    if isinstance(d, td.Independent):
        return _explicit(d.base_dist)
    if isinstance(d, td.TransformedDistribution):
        return _explicit(d.base_dist)
    if isinstance(d, td.MixtureSameFamily):
        return _explicit(d.component_distribution)
    return _transform.dispatch(type(d)) is not _transform.dispatch(td.Distribution) or (
        type(d).icdf is not td.Distribution.icdf
    )


@singledispatch
def _transform(d: td.Distribution, draws: _Draws) -> Tensor:
    """`(n, *batch_shape, *event_shape)` from the noise; by default through the inverse distribution function."""
    return d.icdf(draws.uniform(tuple(d.batch_shape + d.event_shape)))


@_transform.register
def _(d: td.Normal, draws: _Draws) -> Tensor:
    return d.loc + d.scale * draws.normal(tuple(d.batch_shape))


@_transform.register
def _(d: td.MultivariateNormal, draws: _Draws) -> Tensor:
    z = draws.normal(tuple(d.batch_shape + d.event_shape))
    return d.loc + (d._unbroadcasted_scale_tril @ z.unsqueeze(-1)).squeeze(-1)


@_transform.register
def _(d: td.LowRankMultivariateNormal, draws: _Draws) -> Tensor:
    factor = d._unbroadcasted_cov_factor
    low = draws.normal((*d.batch_shape, factor.shape[-1]))
    full = draws.normal(tuple(d.batch_shape + d.event_shape))
    return d.loc + (factor @ low.unsqueeze(-1)).squeeze(-1) + d._unbroadcasted_cov_diag.sqrt() * full


@_transform.register
def _(d: td.Independent, draws: _Draws) -> Tensor:
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
