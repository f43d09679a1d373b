"""Where the density of a normalizing flow lives, as its parts say, and whether it falls off there.

A density `p_base(f(x)) |det df/dx|` is normalised where f is one to one and its base is normalised.
Circular flows are one to one on one period only, and a base that says the same beyond its box, as
that of normflows for angles does, is none there: beyond, the formula goes on for ever. So what the
parts of a flow say of their domain is its support, and of the others a density that does not fall
off along an axis is found by asking.

References:
    Rezende, Papamakarios, Racaniere, Albergo, Kanwar, Shanahan, Cranmer, "Normalizing flows on tori
    and spheres" (2020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from scoretk.fields.foreign import owners

__all__ = ["first_domain", "flat_axis", "nflows_support", "normflows_support", "zuko_support"]

Support = constraints.Constraint | tuple[tuple[constraints.Constraint, int], ...]

FAR = (1e2, 1e6, 1e12, 1e18)
"""How far out a density is asked for; networks that stretch x least still show there that it falls."""
CORNERS = 4
"""How many corners of a box are led back besides the lowest and the highest."""
AXES = 16
"""The most axes along which it is asked for."""
FALLS = 30.0
"""What a log density falls by at least from the first distance to the last: a Cauchy's by 73. A
periodic one rises and falls by less.
"""


class Part(NamedTuple):
    """A map on the way from data to noise.

    Attributes:
        domain: Where its formula is one to one; None for everywhere.
        narrows: Whether what it leads to is a part of the space.
        forward: Towards the noise, of rows.
        inverse: Towards the data.
    """

    domain: constraints.Constraint | None
    narrows: bool
    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


def first_domain(parts: Sequence[Part], x: Tensor) -> Support | None:
    """Where x has to be for all parts to be defined: the domain of the first that is not so anywhere.

    What comes before that part moves its domain: it is led back to the data, where it is a box of x
    if these maps take each entry by itself, or put them into another order. What comes behind one
    that leads to a part of the space is taken to be made for that.

    Args:
        parts: The maps, from the data to the noise.
        x: One row.

    Returns:
        The constraint; None for all of R^d, and where it is not found.
    """
    for i, part in enumerate(parts):
        if part.domain is not None:
            return part.domain if i == 0 else _led_back(part.domain, parts[:i], x)
        if part.narrows:
            return None
    return None


def _led_back(
    domain: constraints.Constraint, before: Sequence[Part], x: Tensor
) -> constraints.Constraint | None:
    """A box behind some maps as a box of x; None where it is none."""
    low, high = (
        torch.as_tensor(getattr(domain, name, infinite), dtype=x.dtype, device=x.device)
        for name, infinite in (("lower_bound", -inf), ("upper_bound", inf))
    )
    try:
        with torch.no_grad():
            for part in before:
                x = part.forward(x.clone())
            ends = [end.expand(x.shape[1:]) for end in (low, high)]
            mixed = torch.rand((CORNERS, *x.shape[1:]), generator=_generator()).to(x) < 1 / 2
            y = torch.cat([torch.stack(ends), torch.where(mixed, ends[0], ends[1])])
            for part in reversed(before):
                y = part.inverse(y.clone())
    except Exception:  # noqa: BLE001 (whatever a module raises without its condition)
        return None
    low, high = y[:2].amin(0), y[:2].amax(0)
    if bool(y.isnan().any()) or not bool(((y == low) | (y == high)).all()):
        return None
    if bool(low.isinf().all()) and bool(high.isinf().all()):
        return None
    if bool(low.isinf().all()):
        return constraints.less_than(_one(high))
    if bool(high.isinf().all()):
        return constraints.greater_than(_one(low))
    return constraints.interval(_one(low), _one(high))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _one(bounds: Tensor) -> Any:
    """A bound as a number where it is the same for all entries."""
    same = bool((bounds == bounds.flatten()[0]).all())
    return float(bounds.flatten()[0]) if same else bounds


def zuko_support(part: Any, x: Tensor) -> Support | None:
    """The domain of a transform of zuko's, lazy or not; None for all of R^d.

    Args:
        part: A transform, or a lazy one.
        x: One row.
    """
    return first_domain([_zuko_part(leaf) for leaf in _zuko_leaves(part)], x)


def _zuko_leaves(part: Any) -> Iterator[Any]:
    """The transforms of a composed one, of zuko or torch, from the data to the noise."""
    inner = getattr(part, "transforms", None) or getattr(part, "parts", None)
    if inner is None:
        yield part
    else:
        for leaf in inner:
            yield from _zuko_leaves(leaf)


def _zuko_part(part: Any) -> Part:
    made = part if isinstance(part, Transform) else None
    meta = getattr(part, "meta", None)
    if isinstance(meta, partial):  # an autoregressive or coupling transform, of a lazy one
        part = getattr(meta.func, "__self__", part)
    if hasattr(part, "univariate") and hasattr(part, "shapes"):
        told = part.univariate(*(torch.zeros(2, *shape) for shape in part.shapes))
    else:
        told = _unconditional(part) if isinstance(part, torch.nn.Module) else part
        made = made or told
    ends = [_bounds(getattr(told, name, None)) for name in ("domain", "codomain")]
    here, back = (made, made.inv) if made is not None else (_Lazily(part), _Lazily(part, True))
    return Part(ends[0], ends[1] is not None, here, back)


def _bounds(space: Any) -> constraints.Constraint | None:
    """A constraint that bounds the entries; None for all others."""
    while isinstance(space, constraints.independent):
        space = space.base_constraint
    known = isinstance(space, constraints.Constraint)
    return space if known and space not in (constraints.real, constraints.real_vector) else None


@dataclass(frozen=True)
class _Lazily:
    """A lazy transform, made without a condition when it is asked; or its inverse."""

    lazy: Any
    inverted: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        made = self.lazy()
        y: Tensor = made.inv(x) if self.inverted else made(x)
        return y


def _unconditional(lazy: torch.nn.Module) -> Any:
    """The transform of a lazy one; None where it needs a condition."""
    try:
        return lazy()
    except Exception:  # noqa: BLE001 (whatever a module raises without its condition)
        return None


def nflows_support(flow: Any, x: Tensor) -> Support | None:
    """The domain of a flow of nflows; None for all of R^d."""
    return first_domain([_nflows_part(*leaf) for leaf in _nflows_leaves(flow._transform)], x)


def _nflows_leaves(part: Any, inverted: bool = False) -> Iterator[tuple[Any, bool]]:
    """The transforms of a composed one, from the data to the noise, and whether each is inverted."""
    if type(part).__name__ == "CompositeTransform":
        for leaf in reversed(part._transforms) if inverted else part._transforms:
            yield from _nflows_leaves(leaf, inverted)
    elif ("nflows", "InverseTransform") in owners(part):
        yield from _nflows_leaves(part._transform, not inverted)
    else:
        yield part, inverted


def _nflows_part(part: Any, inverted: bool) -> Part:
    kind = type(part).__name__
    bounded = kind.startswith(_SPLINES) and getattr(part, "tails", None) is None
    image = _UNIT if bounded else _IMAGES.get(kind)
    domain = image if bounded or inverted else None
    ways = (partial(_first, part.forward), partial(_first, part.inverse))
    forward, inverse = reversed(ways) if inverted else ways
    return Part(domain, image is not None and (bounded or not inverted), forward, inverse)


def _first(transform: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """The values of a transform, which gives the logarithm of its Jacobian beside them."""
    return transform(x)[0]


_UNIT, _AROUND = constraints.interval(0.0, 1.0), constraints.interval(-1.0, 1.0)
_IMAGES = {"Sigmoid": _UNIT, "CauchyCDF": _UNIT, "Tanh": _AROUND}
"""What functions of nflows lead to, by class: their inverses begin there."""
_SPLINES = ("MaskedPiecewise", "Piecewise")
"""Splines of nflows, from (0, 1) to itself unless they have tails."""


def normflows_support(flow: Any, x: Tensor) -> Support | None:
    """The box of a flow of normflows with circular layers, or a logit; None for all of R^d.

    Its circular splines and wraps map the box of their base onto itself, and lead all that is
    beyond their bound to one point, along the other entries too.
    """
    layers = [part for part in flow.flows if type(part).__name__.startswith(_CIRCULAR)]
    base = flow.q0
    if not layers or type(base).__name__ not in ("Uniform", "UniformGaussian"):
        return first_domain([_normflows_part(layer) for layer in reversed(flow.flows)], x)
    if type(base).__name__ == "Uniform":
        return constraints.interval(base.low.detach(), base.high.detach())
    reach = torch.stack([_reach(part, base.ndim) for part in layers]).amin(0)
    reach[base.ind] = base.scale[base.ind].detach().cpu() / 2
    runs = [(bound, len(list(run))) for bound, run in groupby(reach.tolist())]
    return tuple(
        (constraints.real if bound == inf else constraints.interval(-bound, bound), n)
        for bound, n in runs
    )


def _normflows_part(layer: Any) -> Part:
    """A layer of normflows, which leads from the noise to the data."""
    domain = None
    if type(layer).__name__ == "Logit":  # logit(alpha + (1 - 2 alpha) x)
        beta = 1 - 2 * layer.alpha
        domain = constraints.interval(-layer.alpha / beta, (1 - layer.alpha) / beta)
    forward, inverse = partial(_first, layer.inverse), partial(_first, layer.forward)
    return Part(domain, False, forward, inverse)


_CIRCULAR = ("Circular", "Periodic")


def _reach(layer: Any, size: int) -> Tensor:
    """How far from 0 a layer of normflows is one to one, by entry; inf where everywhere."""
    reach = torch.full((size,), inf)
    spline = getattr(layer, "mprqat", getattr(layer, "prqct", None))
    if spline is None:  # a wrap or a shift, of some entries
        return reach
    rest = getattr(spline, "unconditional_transform", None)
    for part, names in ((spline, "transform_features"), (rest, "identity_features")):
        if part is not None:
            reach[getattr(spline, names, slice(None))] = torch.as_tensor(
                part.tail_bound, dtype=reach.dtype
            ).cpu()
    return reach


def flat_axis(log_prob: Callable[[Tensor], Tensor], origin: Tensor) -> int | None:
    """An entry of x along which a log density does not fall off; None where none is found.

    Args:
        log_prob: Takes x `(batch, *event_shape)` to `(batch,)`.
        origin: One row x = 0.
    """
    size = origin[0].numel()
    axes = torch.linspace(0, size - 1, min(size, AXES)).long().unique()
    units = torch.zeros(len(axes), size).to(origin)
    units[range(len(axes)), axes] = 1.0
    far = torch.tensor(FAR).to(origin)
    rows = (far[:, None, None] * units).reshape(-1, *origin.shape[1:])
    try:
        with torch.no_grad():
            found = torch.cat([log_prob(side * rows).reshape(len(FAR), -1) for side in (1, -1)])
    except Exception:  # noqa: BLE001 (what a flow raises that far out says nothing of it)
        return None
    fine = found.isfinite().all(0) & (found.amax(0) - found.amin(0) < FALLS)
    flat = fine.nonzero().flatten()
    return int(axes[flat[0]]) if len(flat) else None
