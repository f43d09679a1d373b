"""Distributions in free space.

Free space is coordinates z in R^d in which a law is smooth and its density loses no digits.

A `FreeLaw` is a bijection T from z to x and the log density of z itself. Where mass is near an edge
of the support, x has no digits left to say how near: in float32 nothing lies between 1 - 6e-8 and
1, but a tenth of the draws of Beta(.1, .1) do. So the density is not that of x times a Jacobian
but, where the family allows, a function of z:

    Beta(a, b)          z = log(x / (1 - x))   a log s(z) + b log s(-z) - log B(a, b)
    Gamma(a, b)         z = log x              a log b + a z - b exp(z) - log Gamma(a)
    Dirichlet(a)        x = softmax(V z)       sum a_i log x_i - log B(a) + log(k) / 2
    T(y), y of a law    z of y                 that of y
    mixtures            z of all components    the mixture of theirs, where one T serves all

and so on, with `s(z) = 1 / (1 + exp(-z))`. All others have the density of x and the Jacobian of the
bijection onto their support (`scoretk.fields.supports`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.nn.functional import logsigmoid

from scoretk.core.devices import on
from scoretk.fields.supports import (
    REAL,
    Above,
    Between,
    Bijection,
    CorrelationCholesky,
    PositiveDefinite,
    Real,
    Shape,
    Simplex,
    bijection,
    trailing_sum,
)

__all__ = ["FreeLaw", "free_law", "log_density", "moved", "support_of", "unvalidated"]


@dataclass(frozen=True, eq=False)
class FreeLaw:
    """A distribution in free space.

    Attributes:
        space: The bijection from z `(n, *batch, *free)` to x `(n, *batch, *event)`.
        log_density: The log density of z, `(n, *batch)`.
    """

    space: Bijection
    log_density: Callable[[Tensor], Tensor]


def unvalidated(distribution: Any) -> Any:
    """A copy of a distribution, and of those that it is made of, without torch's checks of values.

    Their tensors are shared.
    """
    made = copy.copy(distribution)
    made._validate_args = False
    for name, value in vars(distribution).items():
        if isinstance(value, td.Distribution):
            setattr(made, name, unvalidated(value))
    return made


def moved(part: Any, device: torch.device) -> Any:
    """A distribution, transform or constraint with all its tensors on a device."""
    if isinstance(part, Tensor):
        return on(part, device)
    if isinstance(part, td.Distribution | td.Transform | td.constraints.Constraint):
        made = copy.copy(part)
        made.__dict__.update({n: moved(v, device) for n, v in vars(part).items()})
        return made
    if isinstance(part, list | tuple) and type(part) in (list, tuple):
        return type(part)(moved(v, device) for v in part)
    return part


def support_of(d: Any) -> Bijection:
    """The bijection from free space onto a distribution's support.

    Args:
        d: A distribution.

    Returns:
        The bijection.

    Raises:
        ValueError: There is none.
        NotImplementedError: There is none.
    """
    if isinstance(d, td.Independent):
        return support_of(d.base_dist)
    if type(d) is td.TransformedDistribution and all(t.bijective for t in d.transforms):
        # torch takes the last transform's codomain, which is too large where the base lives on a
        # part of the domain.
        return _Image(support_of(d.base_dist), tuple(d.transforms))
    if isinstance(d, td.MixtureSameFamily):
        return _hull(d.component_distribution)
    if isinstance(d, td.VonMises):
        return Between(-math.pi, math.pi)
    if isinstance(d, td.GeneralizedPareto):
        return _tail(d)
    return bijection(d.support)


def _hull(component: Any) -> Bijection:
    """The support of a mixture: what those of its components, along the last batch axis, span."""
    space, axis = support_of(component), -1 - len(component.event_shape)
    if isinstance(space, Above) and isinstance(space.lower, Tensor):
        return Above(_over(space.lower, component, torch.amin, axis))
    if isinstance(space, Between) and isinstance(space.lower, Tensor):
        low, high = (
            _over(b, component, f, axis)
            for b, f in ((space.lower, torch.amin), (space.upper, torch.amax))
        )
        return Between(low, high)
    if not _is_shared(space, component):
        raise ValueError("the components of a mixture need one support")
    return space


def _is_shared(space: Any, component: Any) -> bool:
    """Whether a bijection is the same along the last batch axis of a distribution."""
    free = space.free_shape(tuple(component.batch_shape + component.event_shape))
    axis = -1 - len(component.event_shape)
    for value in (0.0, 0.5):
        x = space.constrain(torch.full((1, *free), value))
        if not bool((x == x.select(axis, 0).unsqueeze(axis)).all()):
            return False
    return True


def _over(bound: Any, component: Any, reduce: Callable[..., Tensor], axis: int) -> Tensor:
    full = torch.as_tensor(bound).expand(component.batch_shape + component.event_shape)
    return reduce(full, axis)


def log_density(d: Any, x: Tensor) -> Tensor:
    """`log p(x)`; `-inf` outside the support, whatever the distribution itself says there.

    Args:
        d: An `unvalidated` distribution.
        x: `(n, *batch, *event)`.

    Returns:
        `(n, *batch)`.
    """
    if isinstance(d, td.Independent):
        return trailing_sum(log_density(d.base_dist, x), d.reinterpreted_batch_ndims)
    if isinstance(d, td.MixtureSameFamily):
        each = log_density(d.component_distribution, x.unsqueeze(-1 - len(d.event_shape)))
        return torch.logsumexp(each + torch.log_softmax(d.mixture_distribution.logits, -1), -1)
    if type(d) is td.TransformedDistribution and all(t.bijective for t in d.transforms):
        return _pulled_back(d, x)
    space = support_of(d)
    inside = space.contains(x)
    for _ in range(inside.ndim - (x.ndim - len(d.event_shape))):
        inside = inside.all(-1)
    # A point inside in place of what is outside keeps NaN out of the gradients of the others.
    lead = len(d.event_shape)
    spread = inside.reshape(*inside.shape, *(1 for _ in range(lead)))
    middle = space.constrain(x.new_zeros(space.free_shape(tuple(x.shape))))
    y = torch.where(spread, x, middle)
    # torch's own generalised Pareto takes no float64
    own = _tail(d).log_density(y) if isinstance(d, td.GeneralizedPareto) else d.log_prob(y)
    value = own + 0 * trailing_sum(y, lead)  # so that a constant density has a gradient: 0
    return torch.where(inside, value, -torch.inf)


def _pulled_back(d: Any, x: Tensor) -> Tensor:
    """The log density of a transformed distribution by that of its base.

    It is `-inf` where the inverse leaves the base's support.
    """
    event = len(d.event_shape)
    jacobian, y = x.new_zeros(()), x
    for transform in reversed(d.transforms):
        before = transform.inv(y)
        event += transform.domain.event_dim - transform.codomain.event_dim
        jacobian = jacobian + trailing_sum(
            transform.log_abs_det_jacobian(before, y), event - transform.domain.event_dim
        )
        y = before
    base = log_density(d.base_dist, y)
    base = trailing_sum(base, event - len(d.base_dist.event_shape))
    return torch.where(base == -torch.inf, base, base - jacobian)


@dataclass(frozen=True, eq=False)
class _Image:
    """A bijection followed by torch's transforms; what rounds out of `within` comes back to its
    end.

    Attributes:
        inner: The bijection.
        transforms: torch's transforms, in the order in which they are applied.
        within: The support of the result.
    """

    inner: Bijection
    transforms: tuple[Any, ...]
    within: Bijection = REAL

    @property
    def event_dim(self) -> int:
        return self._event_dims()[-1]

    def _event_dims(self) -> list[int]:
        """How many axes an event has before each of the transforms, and at the end."""
        ends = [(t.domain.event_dim, t.codomain.event_dim) for t in self.transforms]
        last: int = self.inner.event_dim
        for before, after in ends:
            last = max(last, before) + after - before
        dims = [last]
        for before, after in reversed(ends):
            dims.append(dims[-1] + before - after)
        return dims[::-1]

    def free_shape(self, shape: Shape) -> Shape:
        for transform in reversed(self.transforms):
            shape = tuple(transform.inverse_shape(torch.Size(shape)))
        return self.inner.free_shape(shape)

    def constrain(self, z: Tensor) -> Tensor:
        x = self.inner.constrain(z)
        for transform in self.transforms:
            if isinstance(transform, td.transforms.StickBreakingTransform):
                x = _stick_breaking(x)
            else:
                x = transform(x)
        return self.clamped(x)

    def clamped(self, x: Tensor) -> Tensor:
        return self.within.clamped(x)

    def _before(self, x: Tensor) -> list[Tensor]:
        """The values before each of the transforms, in their order, and x at the end."""
        steps = [x]
        for transform in reversed(self.transforms):
            steps.append(transform.inv(steps[-1]))
        return steps[::-1]

    def unconstrain(self, x: Tensor) -> Tensor:
        return self.inner.unconstrain(self._before(x)[0])

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        steps = [y := self.inner.constrain(z)]
        for transform in self.transforms:
            steps.append(y := transform(y))
        dims = self._event_dims()
        total = trailing_sum(self.inner.log_jacobian(z, steps[0]), dims[0] - self.inner.event_dim)
        for transform, dim, (a, b) in zip(self.transforms, dims, pairwise(steps), strict=False):
            own = dim - transform.domain.event_dim
            total = total + trailing_sum(transform.log_abs_det_jacobian(a, b), own)
        return total

    def contains(self, x: Tensor) -> Tensor:
        inside = self.inner.contains(self._before(x)[0])
        for _ in range(self._event_dims()[0] - self.inner.event_dim):
            inside = inside.all(-1)
        return inside


def _stick_breaking(y: Tensor) -> Tensor:
    """`x_i = s(u_i) prod_(j<i) s(-u_j)` with `u_i = y_i - log(k - i)`.

    It is computed by logarithms, as torch's own ends at 1 - eps.
    """
    left = torch.arange(y.shape[-1], 0, -1, dtype=y.dtype, device=y.device)
    u = y - left.log()
    zero = torch.zeros_like(y[..., :1])
    logs = torch.cat([logsigmoid(u), zero], -1) + torch.cat([zero, logsigmoid(-u).cumsum(-1)], -1)
    return logs.exp()


@singledispatch
def free_law(d: Any) -> FreeLaw:
    """A distribution in free space.

    Args:
        d: An `unvalidated` distribution.

    Returns:
        The bijection onto its support, and its log density in free space.

    Raises:
        ValueError: There is no bijection onto its support.
        NotImplementedError: There is no bijection onto its support.
    """
    return _by_x(d)


def _by_x(d: Any) -> FreeLaw:
    """The law by the density of x and the Jacobian of the bijection onto its support."""
    space = support_of(d)
    if isinstance(space, Real):
        return FreeLaw(REAL, lambda z: log_density(d, z))

    def density(z: Tensor) -> Tensor:
        x = space.constrain(z)
        jacobian = trailing_sum(space.log_jacobian(z, x), len(d.event_shape) - space.event_dim)
        return log_density(d, x) + jacobian

    return FreeLaw(space, density)


@free_law.register(td.Independent)
def _(d: td.Independent[Any]) -> FreeLaw:
    base = free_law(d.base_dist)
    return FreeLaw(
        base.space, lambda z: trailing_sum(base.log_density(z), d.reinterpreted_batch_ndims)
    )


@free_law.register
def _(d: td.TransformedDistribution) -> FreeLaw:
    if isinstance(support := support_of(d), Real) or not all(t.bijective for t in d.transforms):
        return _by_x(d)
    base = free_law(d.base_dist)
    within = REAL if isinstance(support, _Image) else support
    extra = len(d.base_dist.batch_shape) - len(d.batch_shape)
    return FreeLaw(
        _Image(base.space, tuple(d.transforms), within),
        lambda z: trailing_sum(base.log_density(z), extra),
    )


@free_law.register
def _(d: td.MixtureSameFamily) -> FreeLaw:
    each, axis = free_law(d.component_distribution), -1 - len(d.event_shape)
    if isinstance(each.space, Real):
        return FreeLaw(REAL, lambda z: log_density(d, z))
    if not _is_shared(each.space, d.component_distribution):
        return _by_x(d)
    components = d.mixture_distribution.logits.shape[-1]
    free_axis = -len(each.space.free_shape((components, *d.event_shape)))

    def density(z: Tensor) -> Tensor:
        logs = each.log_density(z.unsqueeze(free_axis))
        return torch.logsumexp(logs + torch.log_softmax(d.mixture_distribution.logits, -1), -1)

    return FreeLaw(_Component(each.space, components, axis, free_axis), density)


@dataclass(frozen=True, eq=False)
class _Component:
    """The bijection of a mixture's first component, where those of all components are the same.

    Attributes:
        each: The bijection of all components together.
        components: How many there are.
        axis: The components' axis in x.
        free_axis: The components' axis in z.
    """

    each: Bijection
    components: int
    axis: int
    free_axis: int

    @property
    def event_dim(self) -> int:
        return self.each.event_dim

    def free_shape(self, shape: Shape) -> Shape:
        of_all = list(shape)
        of_all.insert(len(shape) + 1 + self.axis, self.components)
        free = list(self.each.free_shape(tuple(of_all)))
        del free[self.free_axis]
        return tuple(free)

    def constrain(self, z: Tensor) -> Tensor:
        return self.each.constrain(z.unsqueeze(self.free_axis)).select(self.axis, 0)

    def unconstrain(self, x: Tensor) -> Tensor:
        return self.each.unconstrain(x.unsqueeze(self.axis)).select(self.free_axis, 0)

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        jacobian = self.each.log_jacobian(z.unsqueeze(self.free_axis), x.unsqueeze(self.axis))
        return jacobian.select(self.axis + self.event_dim, 0)

    def clamped(self, x: Tensor) -> Tensor:
        return x

    def contains(self, x: Tensor) -> Tensor:
        inside = self.each.contains(x.unsqueeze(self.axis))
        return inside.select(self.axis + self.event_dim, 0)


@free_law.register
def _(d: td.Beta) -> FreeLaw:
    a, b = d.concentration1, d.concentration0
    log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    return FreeLaw(Between(0.0, 1.0), lambda z: a * logsigmoid(z) + b * logsigmoid(-z) - log_beta)


@free_law.register
def _(d: td.Uniform) -> FreeLaw:
    return FreeLaw(Between(d.low, d.high), lambda z: logsigmoid(z) + logsigmoid(-z))


@free_law.register
def _(d: td.Gamma) -> FreeLaw:
    a, rate = d.concentration, d.rate
    constant = a * rate.log() - torch.lgamma(a)
    return FreeLaw(Above(0.0), lambda z: a * z - rate * z.exp() + constant)


@free_law.register
def _(d: td.Exponential) -> FreeLaw:
    return FreeLaw(Above(0.0), lambda z: z - d.rate * z.exp() + d.rate.log())


@free_law.register
def _(d: td.FisherSnedecor) -> FreeLaw:
    a, b = d.df1 / 2, d.df2 / 2
    log_ratio = (a / b).log()
    log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    return FreeLaw(
        Above(0.0), lambda z: a * (z + log_ratio) - (a + b) * -logsigmoid(-z - log_ratio) - log_beta
    )


@dataclass(frozen=True, eq=False)
class _Tail:
    """The generalised Pareto law, from an exponential variable `w = e^z`.

    `x = loc + scale (e^(c w) - 1) / c`, and `loc + scale w` for c = 0. Its density is
    `exp(-(1 + c) w) / scale`, for c < 0 on an interval that ends at `loc - scale / c`.
    """

    loc: Tensor
    scale: Tensor
    c: Tensor
    event_dim = 0

    def _parts(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`loc`, `scale`, whether c is 0, and c.

        Where c is 0 another number stands for it, so that no branch of a `where` divides by 0.
        """
        loc, scale, c = (value.to(like) for value in (self.loc, self.scale, self.c))
        return loc, scale, c == 0, torch.where(c == 0, 1.0, c)

    def _within(self, like: Tensor) -> Between:
        loc, scale, flat, c = self._parts(like)
        return Between(loc, torch.where(flat | (c > 0), torch.inf, loc - scale / c))

    def free_shape(self, shape: Shape) -> Shape:
        return shape

    def constrain(self, z: Tensor) -> Tensor:
        loc, scale, flat, c = self._parts(z)
        w = z.exp()
        y = torch.where(flat, w, torch.expm1(c * torch.where(flat, 0.0, w)) / c)
        return self.clamped(loc + scale * y)

    def w(self, x: Tensor) -> Tensor:
        """The exponential variable of x."""
        loc, scale, flat, c = self._parts(x)
        y = (x - loc) / scale
        return torch.where(flat, y, torch.log1p(c * torch.where(flat, 0.0, y)) / c)

    def unconstrain(self, x: Tensor) -> Tensor:
        return self.w(x).log()

    def log_density(self, x: Tensor) -> Tensor:
        """The log density of x in the support."""
        return -self.scale.to(x).log() - (1 + self.c.to(x)) * self.w(x)

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return z + self.scale.to(z).log() + self.c.to(z) * z.exp()

    def clamped(self, x: Tensor) -> Tensor:
        return self._within(x).clamped(x)

    def contains(self, x: Tensor) -> Tensor:
        return self._within(x).contains(x)


def _tail(d: td.GeneralizedPareto) -> _Tail:
    return _Tail(d.loc, d.scale, d.concentration)


@free_law.register
def _(d: td.GeneralizedPareto) -> FreeLaw:
    return FreeLaw(_tail(d), lambda z: z - z.exp())


@free_law.register
def _(d: td.Dirichlet) -> FreeLaw:
    a, space = d.concentration, Simplex()
    constant = torch.lgamma(a.sum(-1)) - torch.lgamma(a).sum(-1) + 0.5 * math.log(a.shape[-1])
    return FreeLaw(space, lambda z: (a * space.log_x(z)).sum(-1) + constant)


@free_law.register
def _(d: td.RelaxedOneHotCategorical) -> FreeLaw:
    space, k = Simplex(), d.event_shape[-1]

    def density(z: Tensor) -> Tensor:
        score = torch.log_softmax(d.logits - d.temperature * space.log_x(z), -1).sum(-1)
        return (
            score
            + math.lgamma(k)
            + (k - 1) * torch.as_tensor(d.temperature).to(z).log()
            + 0.5 * math.log(k)
        )

    return FreeLaw(space, density)


@free_law.register
def _(d: td.LKJCholesky) -> FreeLaw:
    space, n = CorrelationCholesky(), d.dim
    order = torch.arange(2, n + 1, dtype=d.concentration.dtype, device=d.concentration.device)
    order = 2 * (d.concentration.unsqueeze(-1) - 1) + n - order
    middle = torch.eye(n, dtype=order.dtype, device=order.device).expand(*d.batch_shape, n, n)
    constant: Tensor = d.log_prob(middle)  # where all the logarithms below are 0

    def density(z: Tensor) -> Tensor:
        return (
            (order * space.log_diagonal(z)[..., 1:]).sum(-1) + space.log_jacobian(z, z) + constant
        )

    return FreeLaw(space, density)


@free_law.register
def _(d: td.Wishart) -> FreeLaw:
    space, n = PositiveDefinite(), d.event_shape[-1]
    root, df = d._unbroadcasted_scale_tril, d.df
    half_log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant: Tensor = -df * (n * math.log(2) / 2 + half_log_det) - torch.mvlgamma(df / 2, n)

    def density(z: Tensor) -> Tensor:
        factor = space.factor.constrain(z)
        spread: Tensor = (
            torch.linalg.solve_triangular(root.expand(factor.shape), factor, upper=False)
            .square()
            .sum((-2, -1))
        )
        log_det: Tensor = 2 * space.factor.log_diagonal(z).sum(-1)
        return (df - n - 1) / 2 * log_det - spread / 2 + constant + space.log_jacobian(z, factor)

    return FreeLaw(space, density)


@dataclass(frozen=True, eq=False)
class _Circle:
    """The circle without the point opposite to `loc`.

    `x = loc + pi (2 s(z) - 1)`, brought to [-pi, pi).
    """

    loc: Tensor
    event_dim = 0

    def free_shape(self, shape: Shape) -> Shape:
        return shape

    def constrain(self, z: Tensor) -> Tensor:
        x = self.loc.to(z) + math.pi * torch.tanh(z / 2)
        return torch.remainder(x + math.pi, 2 * math.pi) - math.pi

    def unconstrain(self, x: Tensor) -> Tensor:
        apart = torch.remainder(x - self.loc.to(x) + math.pi, 2 * math.pi)
        return apart.log() - (2 * math.pi - apart).log()

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return logsigmoid(z) + logsigmoid(-z) + math.log(2 * math.pi)

    def clamped(self, x: Tensor) -> Tensor:
        return x

    def contains(self, x: Tensor) -> Tensor:
        return Between(-math.pi, math.pi).contains(x)


@free_law.register
def _(d: td.VonMises) -> FreeLaw:
    def density(z: Tensor) -> Tensor:
        log_density: Tensor = d.log_prob(d.loc.to(z) + math.pi * torch.tanh(z / 2))
        return log_density + space.log_jacobian(z, z)

    space = _Circle(d.loc)
    return FreeLaw(space, density)


@dataclass(frozen=True, eq=False)
class _Powers:
    """The inverse distribution function of Kumaraswamy's law, `x = (1 - u^(1/b))^(1/a)`, u =
    s(z).
    """

    a: Tensor
    b: Tensor
    event_dim = 0

    def free_shape(self, shape: Shape) -> Shape:
        return shape

    def constrain(self, z: Tensor) -> Tensor:
        return self.clamped((_log_one_minus_exp(logsigmoid(z) / self.b) / self.a).exp())

    def clamped(self, x: Tensor) -> Tensor:
        return Between(0.0, 1.0).clamped(x)

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        log_power = logsigmoid(z) / self.b
        log_rest = _log_one_minus_exp(log_power)
        return (
            log_rest / self.a - self.a.log() + log_power - log_rest + logsigmoid(-z) - self.b.log()
        )

    def unconstrain(self, x: Tensor) -> Tensor:
        log_u = self.b * _log_one_minus_exp(self.a * x.log())
        return log_u - _log_one_minus_exp(log_u)

    def contains(self, x: Tensor) -> Tensor:
        return Between(0.0, 1.0).contains(x)


def _log_one_minus_exp(y: Tensor) -> Tensor:
    """`log(1 - exp(y))` for y < 0."""
    near = y > -math.log(2)
    one = -math.log(2)
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, y, one))),
        torch.log1p(-torch.exp(torch.where(near, one, y))),
    )


@free_law.register
def _(d: td.Kumaraswamy) -> FreeLaw:
    return FreeLaw(
        _Powers(d.concentration1, d.concentration0), lambda z: logsigmoid(z) + logsigmoid(-z)
    )
