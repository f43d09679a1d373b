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

from collections.abc import Callable
from functools import partial
from itertools import groupby
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from scoretk.fields.foreign import owners

__all__ = ["flat_axis", "nflows_support", "normflows_support", "zuko_support"]

Support = constraints.Constraint | tuple[tuple[constraints.Constraint, int], ...]

FAR = (1e2, 1e6, 1e12, 1e18)
"""How far out a density is asked for; networks that stretch x least still show there that it falls."""
AXES = 16
"""The most axes along which it is asked for."""
FALLS = 30.0
"""What a log density falls by at least from the first distance to the last: a Cauchy's by 73. A
periodic one rises and falls by less.
"""


def zuko_support(part: Any) -> Support | None:
    """The domain of the first transform of zuko's, lazy or not; None for all of R^d.

    Args:
        part: A transform, or a lazy one.
    """
    parts = getattr(part, "transforms", None)
    if parts is not None:
        return zuko_support(next(iter(parts))) if len(parts) else None
    meta = getattr(part, "meta", None)
    if isinstance(meta, partial):  # an autoregressive or coupling transform, of a lazy one
        part = getattr(meta.func, "__self__", part)
    if hasattr(part, "univariate") and hasattr(part, "shapes"):
        part = part.univariate(*(torch.zeros(2, *shape) for shape in part.shapes))
    elif isinstance(part, torch.nn.Module):
        part = _unconditional(part)
    domain = getattr(part, "domain", None)
    while isinstance(domain, constraints.independent):
        domain = domain.base_constraint
    known = isinstance(domain, constraints.Constraint) and domain is not constraints.real
    return domain if known and domain is not constraints.real_vector else None


def _unconditional(lazy: torch.nn.Module) -> Any:
    """The transform of a lazy one; None where it needs a condition."""
    try:
        return lazy()
    except Exception:  # noqa: BLE001 (whatever a module raises without its condition)
        return None


def nflows_support(flow: Any) -> Support | None:
    """The domain of the first transform of a flow of nflows; None for all of R^d."""
    part, inverted = flow._transform, False
    while True:
        kind = type(part).__name__
        if kind == "CompositeTransform" and len(part._transforms):
            part = part._transforms[-1 if inverted else 0]
        elif ("nflows", "InverseTransform") in owners(part):
            part, inverted = part._transform, not inverted
        elif kind.startswith(_SPLINES) and getattr(part, "tails", None) is None:
            return _UNIT
        else:
            return _IMAGES.get(kind) if inverted else None


_UNIT, _AROUND = constraints.interval(0.0, 1.0), constraints.interval(-1.0, 1.0)
_IMAGES = {"Sigmoid": _UNIT, "CauchyCDF": _UNIT, "Tanh": _AROUND}
"""What functions of nflows lead to, by class: their inverses begin there."""
_SPLINES = ("MaskedPiecewise", "Piecewise")
"""Splines of nflows, from (0, 1) to itself unless they have tails."""


def normflows_support(flow: Any) -> Support | None:
    """The box of a flow of normflows with circular layers; None for all of R^d.

    Its circular splines and wraps map the box of their base onto itself, and lead all that is
    beyond their bound to one point, along the other entries too.
    """
    layers = [part for part in flow.flows if type(part).__name__.startswith(_CIRCULAR)]
    base = flow.q0
    if not layers or type(base).__name__ not in ("Uniform", "UniformGaussian"):
        return None
    if type(base).__name__ == "Uniform":
        return constraints.interval(base.low.detach(), base.high.detach())
    reach = torch.stack([_reach(part, base.ndim) for part in layers]).amin(0)
    reach[base.ind] = base.scale[base.ind].detach().cpu() / 2
    runs = [(bound, len(list(run))) for bound, run in groupby(reach.tolist())]
    return tuple(
        (constraints.real if bound == inf else constraints.interval(-bound, bound), n)
        for bound, n in runs
    )


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
