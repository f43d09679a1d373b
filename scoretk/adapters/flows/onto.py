"""Whether a flow leads onto all of its base's space, and back: else its density is not normalised."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from scoretk.adapters.flows.field import LOST, FlowField, _gaps
from scoretk.adapters.flows.law import Cond, _like
from scoretk.adapters.flows.supports import flat_axis
from scoretk.core.noise import Noise
from scoretk.errors import InvalidArgument

ASKED = 64
"""How many draws of a base are led to the data and back before a density is believed."""


def _check_falls_off(field: FlowField) -> None:
    """Check that a density falls off along the axes.

    Raises:
        InvalidArgument: It does not: it is normalised on a part of the space only.
    """
    axis = flat_axis(field.log_prob, _like(field.flow.flow).new_zeros((1, *field.event_shape)))
    if axis is not None:
        raise InvalidArgument(
            "support",
            None,
            "where x lives, as this flow's density does not fall off along all axes",
            f"Along entry {axis} it is periodic, or the same however far out. Say on which part it "
            f"is normalised, such as scoretk.from_flow(flow, support="
            f"torch.distributions.constraints.interval(-math.pi, math.pi))",
        )


def _asked_onto(field: FlowField, cond: Cond) -> FlowField:
    """A flow that leads onto all of the space of its base, and from all around the data.

    A density `p_base(f(x)) |det df/dx|` has the mass that the base has where f leads to: with a
    sigmoid before N(0, 1) a third. There is no x then for other noise. An inverse by bisection does
    not get far enough out either, but then f leads nearer to the noise from farther out.

    Returns:
        The field; without `draw` where the flow has no inverse.

    Raises:
        InvalidArgument: It does not, or its density is not computed, or by chance.
    """
    flow, noise = field.flow, Noise(0, ASKED, device=_like(field.flow.flow).device)
    try:
        z = flow.base(noise, cond).detach()
        if z[0].numel() != math.prod(field.event_shape):
            return field  # which is told where it is asked
        # with gradients: some layers find their Jacobian by them
        x = flow.inverse(z, cond).detach().reshape(ASKED, *field.event_shape)
    except Exception as error:  # what a transform raises of noise to which nothing leads
        if type(error).__name__ in NO_INVERSE:
            return replace(field, provides=field.provides - {"draw"})
        raise _not_onto(field, error) from error
    if not bool(x.isfinite().all()):
        raise _not_onto(field)
    _check_density(field, x, cond)
    near = _gaps(field, z, x, cond)
    lost = ~(near <= LOST)
    if bool(lost.any()):
        middle = x.median(0).values
        farther = [middle + reach * (x - middle) for reach in FARTHER]
        best = torch.stack([_gaps(field, z, y, cond).nan_to_num(torch.inf) for y in farther])
        if bool((best.amin(0)[lost] > near[lost] / 2).all()) and float(lost.double().mean()) > CUT:
            raise _not_onto(field)
        field = replace(field, provides=field.provides - {"draw"})
    if field.support is None:
        _check_defined(field, x, cond)
    return field


def _check_density(field: FlowField, x: Tensor, cond: Cond) -> None:
    """Check that a flow has a density, which is a function of x.

    Raises:
        InvalidArgument: A layer leads only from the noise to the data, or draws numbers of its own.
    """
    try:
        first, again = (
            torch.cat([field.flow.log_prob(x, cond), field.flow.forward(x, cond).flatten()])
            for _ in range(2)
        )
    except Exception as error:
        if type(error).__name__ not in NO_INVERSE:
            return  # which is told where it is asked
        raise InvalidArgument(
            "flow",
            type(field.flow.flow),
            "a flow that leads from the data to the noise too, by which its density is computed",
            f"One of its layers has no such way: {error}",
        ) from error
    if not torch.allclose(first, again, rtol=1e-4, atol=1e-4, equal_nan=True):
        raise InvalidArgument(
            "flow",
            type(field.flow.flow),
            "a log density that is a function of the point",
            "A layer draws numbers of its own, as those of stochastic normalizing flows do: such a "
            "flow has no density",
        )


NO_INVERSE = ("NotImplementedError", "InverseNotAvailable")
"""What libraries raise where a transform leads one way only."""
CUT = 0.2
"""The share of a base's draws that do not come back above which a flow is taken to lead to a part of
the space: below, its inverse may be one by bisection that ends too early.
"""
FARTHER = (1.5, 4.0, 16.0, 64.0, 1e3, 1e6)
"""How much farther from the middle of some data a flow is asked, where their noise is not reached."""


def _not_onto(field: FlowField, error: Exception | None = None) -> InvalidArgument:
    said = f". It raised {type(error).__name__}: {error}" if error else ""
    return InvalidArgument(
        "flow",
        type(field.flow.flow),
        "a flow from the data onto all of the space of its base",
        "There is no x for some of the base's noise, so that the density does not integrate to 1: a "
        "layer, such as a last sigmoid, leads to a part of the space. Leave that layer out, or "
        "give the flow a base of that part. For data on a part of the space the inverse of such a "
        f"layer, a logit, is the first{said}",
    )


def _check_defined(field: FlowField, x: Tensor, cond: Cond) -> None:
    """Check that a flow without a support has a density a few standard deviations around its data.

    Raises:
        InvalidArgument: It raises there, or says NaN.
    """
    middle, spread = x.median(0).values, (x - x.median(0).values).abs().median(0).values
    for side in (-AROUND, AROUND):
        rows = (middle + side * spread).expand(len(x), *middle.shape)
        try:
            found = field.log_prob(rows, **cond)
        except InvalidArgument as error:
            found, cause = None, error.__cause__
        if found is None or bool(found.isnan().any()):
            raise InvalidArgument(
                "support",
                None,
                "where x lives, as this flow has no density everywhere",
                "Such as scoretk.from_flow(flow, support=torch.distributions.constraints.interval"
                "(0.0, 1.0)), of a flow that begins with a logit",
            ) from (cause if found is None else None)


AROUND = 6.0
"""Where a density is asked for around its data, in their median absolute deviations."""
