"""Bijections from free space onto supports, precise at both ends of a support.

A bijection T takes free z to x in the user's space. torch's own (`biject_to`) clamp at `1 - eps`
where 0 resolves to 1e-38, so that mass at one end is kept and at the other cut; here each x is
computed from the nearer end, on a simplex and for correlations from logarithms:

    x > a               a + exp(z)
    a < x < b           a + (b - a) s(z) for z < 0, else b - (b - a) s(-z)
    simplex             log x = log softmax(V z), V orthonormal, its columns orthogonal to
                        (1, .., 1): symmetric in the entries
    Cholesky factors    L_ii = exp(z_ii); of correlations
                        L_ij = tanh(z_ij) prod_(k<j) sech(z_ik), the last without tanh
    positive definite   x = L L^T
    ordered             x_k = x_(k-1) + exp(z_k)

with `s(z) = 1 / (1 + exp(-z))`. What rounds onto an end is moved to the last number inside, and what
rounds onto the entry before it to the next number, so that x is always in the support.

References:
    Carpenter, Gelman, Hoffman, Lee, Goodrich, Betancourt, Brubaker, Guo, Li, Riddell, "Stan: a
    probabilistic programming language" (2017).
    Egozcue, Pawlowsky-Glahn, Mateu-Figueras, Barcelo-Vidal, "Isometric logratio transformations for
    compositional data analysis" (2003).
    Lewandowski, Kurowicka, Joe, "Generating random correlation matrices based on vines and extended
    onion method" (2009).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transforms
from torch.nn.functional import logsigmoid

from scoretk.core.devices import constant_like
from scoretk.errors import InvalidArgument

__all__ = [
    "REAL",
    "Above",
    "Below",
    "Between",
    "Bijection",
    "Joined",
    "Real",
    "Simplex",
    "bijection",
    "ordered",
    "trailing_sum",
]

Bound = float | Tensor
Shape = tuple[int, ...]


class Bijection(Protocol):
    """A map from free z `(batch, .., *free)` onto x `(batch, .., *event)`.

    An event has `event_dim` axes; the axes before it are kept.
    """

    @property
    def event_dim(self) -> int: ...

    def free_shape(self, shape: Shape) -> Shape:
        """The shape of z for x of this shape, both without the batch axis.

        Raises:
            ValueError: No such x is in the support.
        """
        ...

    def constrain(self, z: Tensor) -> Tensor: ...

    def unconstrain(self, x: Tensor) -> Tensor: ...

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        """`log |det dx/dz|`, `(batch, ..)`, at z and `x = T(z)`."""
        ...

    def clamped(self, x: Tensor) -> Tensor:
        """`x`, or where it has rounded onto an end of the support, the last number inside."""
        ...

    def contains(self, x: Tensor) -> Tensor:
        """Which x are in the support, `(batch, ..)` of bool."""
        ...


@dataclass(frozen=True)
class Real:
    """All numbers: x = z."""

    event_dim = 0

    def free_shape(self, shape: Shape) -> Shape:
        return shape

    def constrain(self, z: Tensor) -> Tensor:
        return z

    def unconstrain(self, x: Tensor) -> Tensor:
        return x

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.zeros_like(z)

    def clamped(self, x: Tensor) -> Tensor:
        return x.clamp(torch.finfo(x.dtype).min, torch.finfo(x.dtype).max)

    def contains(self, x: Tensor) -> Tensor:
        return ~x.isnan()


REAL = Real()


def _nexts(bound: Bound, upwards: bool) -> dict[torch.dtype, float]:
    """The next number after a bound, by dtype.

    Empty for a tensor, whose next number is found when it is needed.
    """
    if isinstance(bound, Tensor):
        return {}
    return {
        dtype: float(_next(torch.tensor(bound, dtype=dtype), upwards))
        for dtype in (torch.float32, torch.float64)
    }


def _next(bound: Tensor, upwards: bool) -> Tensor:
    """The next number of the dtype after a bound; after zero the smallest normal number.

    Some devices flush smaller ones to zero.
    """
    tiny = torch.finfo(bound.dtype).tiny
    beyond = torch.nextafter(bound, torch.full_like(bound, math.inf if upwards else -math.inf))
    return torch.where(bound == 0, tiny if upwards else -tiny, beyond)


def _at_least(x: Tensor, bound: Bound, nexts: dict[torch.dtype, float]) -> Tensor:
    """`x`, but at least the next number after the bound."""
    if isinstance(bound, Tensor):
        return torch.maximum(x, _next(constant_like(bound, x), True))
    return x.clamp(min=nexts[x.dtype])


def _at_most(x: Tensor, bound: Bound, nexts: dict[torch.dtype, float]) -> Tensor:
    if isinstance(bound, Tensor):
        return torch.minimum(x, _next(constant_like(bound, x), False))
    return x.clamp(max=nexts[x.dtype])


def _as(bound: Bound, like: Tensor) -> Bound:
    return constant_like(bound, like) if isinstance(bound, Tensor) else bound


def _plain(bound: Bound) -> Bound:
    """A bound as a number where it is one and the same for all entries."""
    if not isinstance(bound, Tensor):
        return float(bound)
    first = bound.flatten()[:1]
    return float(first) if len(first) and bool((bound == first).all()) else bound


@dataclass(frozen=True, eq=False)
class Above:
    """Numbers above a bound: `x = a + exp(z)`.

    Args:
        lower: a, a number or a tensor that broadcasts over x.
    """

    lower: Bound
    event_dim = 0
    _low: ClassVar[dict[torch.dtype, float]]

    @property
    def alike_by(self) -> dict[str, Bound]:
        """As `scoretk.fields.alike` says: bounds by their values, be they numbers or tensors."""
        return {"lower": _plain(self.lower)}

    def __post_init__(self) -> None:
        object.__setattr__(self, "_low", _nexts(self.lower, True))

    def free_shape(self, shape: Shape) -> Shape:
        return shape

    def constrain(self, z: Tensor) -> Tensor:
        if not isinstance(self.lower, Tensor) and self.lower == 0:
            return self.clamped(z.exp())
        return self.clamped(_as(self.lower, z) + z.exp())

    def clamped(self, x: Tensor) -> Tensor:
        most = torch.finfo(x.dtype).max
        if isinstance(self.lower, Tensor):
            return _at_least(x, self.lower, self._low).clamp(max=most)
        return x.clamp(self._low[x.dtype], most)

    def unconstrain(self, x: Tensor) -> Tensor:
        return (x - _as(self.lower, x)).log()

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return z

    def contains(self, x: Tensor) -> Tensor:
        return x >= _as(self.lower, x)


@dataclass(frozen=True, eq=False)
class Below:
    """Numbers below a bound: `x = b - exp(z)`.

    Args:
        upper: b, a number or a tensor that broadcasts over x.
    """

    upper: Bound
    event_dim = 0
    _high: ClassVar[dict[torch.dtype, float]]

    @property
    def alike_by(self) -> dict[str, Bound]:
        """As `scoretk.fields.alike` says: bounds by their values, be they numbers or tensors."""
        return {"upper": _plain(self.upper)}

    def __post_init__(self) -> None:
        object.__setattr__(self, "_high", _nexts(self.upper, False))

    def free_shape(self, shape: Shape) -> Shape:
        return shape

    def constrain(self, z: Tensor) -> Tensor:
        return self.clamped(_as(self.upper, z) - z.exp())

    def clamped(self, x: Tensor) -> Tensor:
        return _at_most(x, self.upper, self._high).clamp(min=torch.finfo(x.dtype).min)

    def unconstrain(self, x: Tensor) -> Tensor:
        return (_as(self.upper, x) - x).log()

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return z

    def contains(self, x: Tensor) -> Tensor:
        return x <= _as(self.upper, x)


@dataclass(frozen=True, eq=False)
class Between:
    """Numbers between two bounds, each x computed from the nearer one.

    Args:
        lower: a, a number or a tensor that broadcasts over x.
        upper: b, likewise.
    """

    lower: Bound
    upper: Bound
    event_dim = 0
    _low: ClassVar[dict[torch.dtype, float]]
    _high: ClassVar[dict[torch.dtype, float]]

    @property
    def alike_by(self) -> dict[str, Bound]:
        """As `scoretk.fields.alike` says: bounds by their values, be they numbers or tensors."""
        return {"lower": _plain(self.lower), "upper": _plain(self.upper)}

    def __post_init__(self) -> None:
        object.__setattr__(self, "_low", _nexts(self.lower, True))
        object.__setattr__(self, "_high", _nexts(self.upper, False))

    def free_shape(self, shape: Shape) -> Shape:
        return shape

    def constrain(self, z: Tensor) -> Tensor:
        low, high = _as(self.lower, z), _as(self.upper, z)
        width = high - low
        return self.clamped(
            torch.where(z < 0, low + width * torch.sigmoid(z), high - width * torch.sigmoid(-z))
        )

    def clamped(self, x: Tensor) -> Tensor:
        return _at_most(_at_least(x, self.lower, self._low), self.upper, self._high)

    def unconstrain(self, x: Tensor) -> Tensor:
        return (x - _as(self.lower, x)).log() - (_as(self.upper, x) - x).log()

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        width = _as(self.upper, z) - _as(self.lower, z)
        return (
            logsigmoid(z)
            + logsigmoid(-z)
            + (width.log() if isinstance(width, Tensor) else math.log(width))
        )

    def contains(self, x: Tensor) -> Tensor:
        return (x >= _as(self.lower, x)) & (x <= _as(self.upper, x))


@dataclass(frozen=True)
class Simplex:
    """Positive numbers on the last axis that add up to one.

    The density is with respect to all entries but the last.
    """

    event_dim = 1

    def free_shape(self, shape: Shape) -> Shape:
        if not shape or shape[-1] < 2:
            raise ValueError("a simplex has at least two entries")
        return (*shape[:-1], shape[-1] - 1)

    def log_x(self, z: Tensor) -> Tensor:
        """`log softmax(V z)`.

        Column j of V is `(1, .., 1, -j, 0, .., 0) / sqrt(j (j + 1))`, j ones.
        """
        j = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
        share = z / (j * (j + 1)).sqrt()
        zero = torch.zeros_like(z[..., :1])
        after = torch.cat([share.flip(-1).cumsum(-1).flip(-1), zero], -1)
        return torch.log_softmax(after - torch.cat([zero, j * share], -1), -1)

    def constrain(self, z: Tensor) -> Tensor:
        return self.clamped(self.log_x(z).exp())

    def clamped(self, x: Tensor) -> Tensor:
        return x.clamp(min=torch.finfo(x.dtype).tiny)

    def unconstrain(self, x: Tensor) -> Tensor:
        y = x.log()
        j = torch.arange(1, x.shape[-1], dtype=x.dtype, device=x.device)
        return (y[..., :-1].cumsum(-1) - j * y[..., 1:]) / (j * (j + 1)).sqrt()

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return self.log_x(z).sum(-1) + 0.5 * math.log(z.shape[-1] + 1)

    def contains(self, x: Tensor) -> Tensor:
        rounding = max(1e-6, 8 * torch.finfo(x.dtype).eps * x.shape[-1])
        return (x >= 0).all(-1) & ((x.sum(-1) - 1).abs() < rounding)


def _side(entries: int, diagonal: bool) -> int:
    """The side of the square whose lower triangle has so many entries."""
    side = (math.isqrt(8 * entries + 1) + (-1 if diagonal else 1)) // 2
    assert side * (side + (1 if diagonal else -1)) // 2 == entries
    return side


def _square(shape: Shape) -> int:
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ValueError("square matrices on the last two axes")
    return shape[-1]


def _filled(entries: Tensor, diagonal: bool) -> Tensor:
    """Lower triangles `(.., n, n)` with these entries, row after row."""
    n = _side(entries.shape[-1], diagonal)
    rows, columns = torch.tril_indices(n, n, 0 if diagonal else -1, device=entries.device)
    matrix = entries.new_zeros((*entries.shape[:-1], n, n))
    matrix[..., rows, columns] = entries
    return matrix


def _taken(matrix: Tensor, diagonal: bool) -> Tensor:
    rows, columns = torch.tril_indices(
        matrix.shape[-2], matrix.shape[-1], 0 if diagonal else -1, device=matrix.device
    )
    return matrix[..., rows, columns]


def _checked(constraint: Any, x: Tensor) -> Tensor:
    """Where x is within one of torch's constraints."""
    within: Tensor = constraint.check(x)
    return within


def _log_sech(z: Tensor) -> Tensor:
    return math.log(2) - z.abs() - torch.log1p(torch.exp(-2 * z.abs()))


@dataclass(frozen=True)
class CorrelationCholesky:
    """Cholesky factors of correlation matrices: rows of unit length.

    The density is with respect to the entries below the diagonal.
    """

    event_dim = 2

    def free_shape(self, shape: Shape) -> Shape:
        if (n := _square(shape)) < 2:
            raise ValueError("a correlation needs two entries")
        return (*shape[:-2], n * (n - 1) // 2)

    def _log_rest(self, partial: Tensor) -> Tensor:
        """`sum_(k<j) log sech(z_ik)`, `(.., n, n)`.

        Half the logarithm of what the entries before the j-th leave of the unit length of row i.
        """
        steps = _log_sech(partial)
        return steps.cumsum(-1) - steps

    def log_diagonal(self, z: Tensor) -> Tensor:
        """`log L_ii`, `(.., n)`."""
        return self._log_rest(_filled(z, diagonal=False)).diagonal(dim1=-2, dim2=-1)

    def constrain(self, z: Tensor) -> Tensor:
        partial = _filled(z, diagonal=False)
        rest = self._log_rest(partial).exp().clamp(min=torch.finfo(z.dtype).tiny)
        return torch.tanh(partial) * rest + torch.diag_embed(rest.diagonal(dim1=-2, dim2=-1))

    def unconstrain(self, x: Tensor) -> Tensor:
        # The squared length of the entries from j on, added up from the diagonal, the small end. Above
        # the diagonal it is 0, where a root has no slope.
        rest = _taken(x.square().flip(-1).cumsum(-1).flip(-1)[..., 1:], diagonal=False)
        return torch.asinh(_taken(x[..., :-1], diagonal=False) / rest.sqrt())

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        partial = _filled(z, diagonal=False)
        return _taken(2 * _log_sech(partial) + self._log_rest(partial), diagonal=False).sum(-1)

    def clamped(self, x: Tensor) -> Tensor:
        return x

    def contains(self, x: Tensor) -> Tensor:
        return _checked(constraints.corr_cholesky, x)


@dataclass(frozen=True)
class LowerCholesky:
    """Lower triangular matrices with a positive diagonal.

    The density is with respect to the entries that are not zero.
    """

    event_dim = 2

    def free_shape(self, shape: Shape) -> Shape:
        n = _square(shape)
        return (*shape[:-2], n * (n + 1) // 2)

    def constrain(self, z: Tensor) -> Tensor:
        return self._factor(z)

    def _factor(self, z: Tensor) -> Tensor:
        free, limits = _filled(z, diagonal=True), torch.finfo(z.dtype)
        return free.tril(-1) + torch.diag_embed(
            self.log_diagonal(z).exp().clamp(limits.tiny, limits.max)
        )

    def log_diagonal(self, z: Tensor) -> Tensor:
        """`log L_ii`, `(.., n)`."""
        return _filled(z, diagonal=True).diagonal(dim1=-2, dim2=-1)

    def unconstrain(self, x: Tensor) -> Tensor:
        diagonal = x.diagonal(dim1=-2, dim2=-1)
        return _taken(x.tril(-1) + torch.diag_embed(diagonal.log()), diagonal=True)

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return self.log_diagonal(z).sum(-1)

    def clamped(self, x: Tensor) -> Tensor:
        return x

    def contains(self, x: Tensor) -> Tensor:
        return _checked(constraints.lower_cholesky, x)


@dataclass(frozen=True)
class PositiveDefinite:
    """Symmetric positive definite matrices `L L^T`.

    The density is with respect to the entries on and below the diagonal.
    """

    event_dim = 2
    factor = LowerCholesky()

    def free_shape(self, shape: Shape) -> Shape:
        return self.factor.free_shape(shape)

    def constrain(self, z: Tensor) -> Tensor:
        low = self.factor.constrain(z)
        return (low[..., :, None, :] * low[..., None, :, :]).sum(-1)

    def unconstrain(self, x: Tensor) -> Tensor:
        low, failed = torch.linalg.cholesky_ex(x)
        return self.factor.unconstrain(torch.where(failed[..., None, None] == 0, low, torch.nan))

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        logs = self.factor.log_diagonal(z)
        n = logs.shape[-1]
        return n * math.log(2) + (
            logs * torch.arange(n + 1, 1, -1, dtype=z.dtype, device=z.device)
        ).sum(-1)

    def clamped(self, x: Tensor) -> Tensor:
        return x

    def contains(self, x: Tensor) -> Tensor:
        return _checked(constraints.positive_definite, x)


class _Ordered(constraints.Constraint):
    """Vectors whose entries increase strictly."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Which vectors `(..., k)` increase, `(...)` of bool."""
        return (value[..., 1:] > value[..., :-1]).all(-1)


ordered = _Ordered()
"""The constraint of strictly increasing vectors, for use as those of torch."""


WHOLE: Mapping[torch.dtype, torch.dtype] = MappingProxyType(
    {torch.float16: torch.int16, torch.bfloat16: torch.int16}
    | {torch.float32: torch.int32, torch.float64: torch.int64}
)
"""The whole numbers that have the bits of a dtype."""


@dataclass(frozen=True)
class Ordered:
    """`x_1 = z_1, x_k = x_(k-1) + exp(z_k)`.

    Where a gap is lost beside a large number, x_k is the next number after x_(k-1).
    """

    event_dim = 1

    def free_shape(self, shape: Shape) -> Shape:
        if not shape:
            raise ValueError("vectors on the last axis")
        return shape

    def constrain(self, z: Tensor) -> Tensor:
        return self.clamped(torch.cat([z[..., :1], z[..., 1:].exp()], -1).cumsum(-1))

    def unconstrain(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., :1], x.diff(dim=-1).log()], -1)

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return z[..., 1:].sum(-1)

    def clamped(self, x: Tensor) -> Tensor:
        found = x.detach()
        bits = found.view(WHOLE[x.dtype])
        place = torch.arange(x.shape[-1], dtype=bits.dtype, device=x.device)
        rank = (_mirrored(bits) - place).cummax(-1).values + place
        lifted = _mirrored(rank).view(x.dtype)
        return torch.where(lifted > found, x + (lifted - found), x)

    def contains(self, x: Tensor) -> Tensor:
        return ordered.check(x)


def _mirrored(bits: Tensor) -> Tensor:
    """From the bits of floating-point numbers to integers in the same order, and back."""
    return torch.where(bits >= 0, bits, torch.iinfo(bits.dtype).min - bits)


class Joined:
    """Bijections side by side on a vector.

    Each maps its share of the free entries to its share of the user's, which need not be as many.

    Args:
        parts: Pairs of a constraint and how many entries of the user's vector it holds.
    """

    event_dim = 1

    def __init__(self, parts: Sequence[tuple[constraints.Constraint, int]]) -> None:
        self.parts = [bijection(constraint) for constraint, _ in parts]
        self.lengths = [length for _, length in parts]
        self.free = [
            math.prod(part.free_shape((n,)))
            for part, n in zip(self.parts, self.lengths, strict=True)
        ]

    def free_shape(self, shape: Shape) -> Shape:
        if not shape or shape[-1] != sum(self.lengths):
            raise ValueError(f"the parts hold {sum(self.lengths)} entries")
        return (*shape[:-1], sum(self.free))

    def constrain(self, z: Tensor) -> Tensor:
        split = z.split(self.free, -1)
        return torch.cat(
            [part.constrain(one) for part, one in zip(self.parts, split, strict=True)], -1
        )

    def unconstrain(self, x: Tensor) -> Tensor:
        split = x.split(self.lengths, -1)
        return torch.cat(
            [part.unconstrain(one) for part, one in zip(self.parts, split, strict=True)], -1
        )

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        pairs = zip(self.parts, z.split(self.free, -1), x.split(self.lengths, -1), strict=True)
        found = [trailing_sum(part.log_jacobian(a, b), 1 - part.event_dim) for part, a, b in pairs]
        return torch.stack(found).sum(0)

    def clamped(self, x: Tensor) -> Tensor:
        split = x.split(self.lengths, -1)
        return torch.cat(
            [part.clamped(one) for part, one in zip(self.parts, split, strict=True)], -1
        )

    def contains(self, x: Tensor) -> Tensor:
        pairs = zip(self.parts, x.split(self.lengths, -1), strict=True)
        found = [part.contains(one) for part, one in pairs]
        return torch.stack(
            [
                inside if part.event_dim else inside.all(-1)
                for part, inside in zip(self.parts, found, strict=True)
            ]
        ).all(0)


@dataclass(frozen=True, eq=False)
class OfTorch:
    """Any other constraint for which torch has a bijection.

    Attributes:
        constraint: One of torch's constraints.
        transform: torch's transform onto its support.
    """

    constraint: Any
    transform: Any

    @property
    def event_dim(self) -> int:
        return int(self.transform.codomain.event_dim)

    def free_shape(self, shape: Shape) -> Shape:
        free = tuple(self.transform.inverse_shape(torch.Size(shape)))
        if self.transform(torch.zeros((1, *free))).shape != (1, *shape):
            raise ValueError(f"no events of shape {shape}")
        return free

    def constrain(self, z: Tensor) -> Tensor:
        x: Tensor = self.transform(z)
        return x

    def unconstrain(self, x: Tensor) -> Tensor:
        z: Tensor = self.transform.inv(x)
        return z

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        of = self.transform
        if isinstance(
            of, transforms.StackTransform
        ):  # whose own has the parts of vectors before the rows
            parts = zip(of.transforms, z.unbind(of.dim), x.unbind(of.dim), strict=True)
            found = [part.log_abs_det_jacobian(a, b) for part, a, b in parts]
            return torch.stack([trailing_sum(each, each.ndim - 1) for each in found]).sum(0)
        log_jacobian: Tensor = of.log_abs_det_jacobian(z, x)
        return log_jacobian

    def clamped(self, x: Tensor) -> Tensor:
        return x

    def contains(self, x: Tensor) -> Tensor:
        of = self.constraint
        if isinstance(of, constraints.stack):  # as in log_jacobian
            found = [_checked(c, v) for c, v in zip(of.cseq, x.unbind(of.dim), strict=True)]
            lead = x.ndim - self.event_dim
            return torch.stack(
                [each.flatten(lead).all(-1) if each.ndim > lead else each for each in found]
            ).all(0)
        try:
            return _checked(self.constraint, x)
        except RuntimeError:  # torch's `cat` of constraints on entries and on vectors
            back = self.transform(self.transform.inv(x))
            near = torch.isclose(back, x, rtol=1e-4, atol=0.0)
            return near.flatten(-self.event_dim).all(-1) if self.event_dim else near


def trailing_sum(values: Tensor, axes: int) -> Tensor:
    """The sum over so many of the last axes."""
    return values if axes <= 0 else values.flatten(-axes).sum(-1)


def _between(lower: Any, upper: Any) -> Any:
    """The bijection onto an interval, of which an end may be infinite, of all entries alike.

    Raises:
        InvalidArgument: It is of some entries only.
    """
    ends = [
        torch.as_tensor(bound) == end for bound, end in ((lower, -torch.inf), (upper, torch.inf))
    ]
    open_below, open_above = (bool(end.all()) for end in ends)
    if [bool(end.any()) for end in ends] != [open_below, open_above]:
        raise InvalidArgument(
            "constraint",
            constraints.interval(lower, upper),
            "ends that are finite or infinite in all entries alike",
            "Join entries of two kinds: constraints.stack",
        )
    if open_below and open_above:
        return REAL
    if open_above:
        return Above(lower)
    return Below(upper) if open_below else Between(lower, upper)


_MADE: dict[type, Any] = {
    constraints.greater_than: lambda c: Above(c.lower_bound),
    constraints.greater_than_eq: lambda c: Above(c.lower_bound),
    constraints.less_than: lambda c: Below(c.upper_bound),
    constraints.interval: lambda c: _between(c.lower_bound, c.upper_bound),
    constraints.half_open_interval: lambda c: _between(c.lower_bound, c.upper_bound),
    constraints.independent: lambda c: bijection(c.base_constraint),
    type(constraints.real): lambda c: REAL,
    type(constraints.simplex): lambda c: Simplex(),
    type(constraints.corr_cholesky): lambda c: CorrelationCholesky(),
    type(constraints.lower_cholesky): lambda c: LowerCholesky(),
    type(constraints.positive_definite): lambda c: PositiveDefinite(),
    _Ordered: lambda c: Ordered(),
}


def bijection(constraint: Any) -> Bijection:
    """The bijection onto a constraint's support.

    Args:
        constraint: A constraint; or a tuple of pairs of a constraint and a number of entries, side
            by side on a vector.

    Returns:
        The bijection.

    Raises:
        ValueError: There is none.
        NotImplementedError: There is none.
    """
    if isinstance(constraint, tuple):
        return Joined(constraint)
    if isinstance(constraint, constraints.cat) and constraint.dim == -1:
        return Joined(list(zip(constraint.cseq, constraint.lengths, strict=True)))
    made = _MADE.get(type(constraint))
    return made(constraint) if made is not None else OfTorch(constraint, biject_to(constraint))


@biject_to.register(_Ordered)  # type: ignore[untyped-decorator]  # torch's
def _for_torch(constraint: _Ordered) -> transforms.Transform:
    return _OrderedTransform()


class _OrderedTransform(transforms.Transform):
    """`Ordered` for torch's own combinations of constraints."""

    domain, codomain, bijective = constraints.real_vector, ordered, True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _OrderedTransform)

    __hash__ = transforms.Transform.__hash__

    def _call(self, z: Tensor) -> Tensor:
        return Ordered().constrain(z)

    def _inverse(self, x: Tensor) -> Tensor:
        return Ordered().unconstrain(x)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return Ordered().log_jacobian(x, y)
