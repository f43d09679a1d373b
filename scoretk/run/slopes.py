"""Whether the gradient of an energy is that of its values, found out at the start of a run.

An energy that takes a part of x out of the graph (`detach`, `.data`, numpy) has a gradient that
lacks this part; one that comes with a gradient of its own can come with another's. Neither fails:
kernels that follow the gradient alone then sample another law. So at a few of the chains' places
the gradient along a random direction is held against a difference quotient of the values, by the
rule of `scoretk.fields.derivatives`, which leaves alone what has kinks or noise of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scoretk.fields.derivatives import check_derivative
from scoretk.fields.protocols import offers
from scoretk.fields.resolve import StaticField, of_rows

__all__ = ["check_slopes"]

ROWS, SHARE = 4, 20
ASKED = 6 * ROWS
"""How many rows the question takes where nothing is wrong."""
COARSE = 2.0**-5
"""The step, in units of x, at which a network's own coarseness is no longer seen."""
_HINT = (
    "Write the energy in torch from end to end; where the field has a gradient or a score of its "
    "own, let it be this energy's: score = -grad energy"
)


def check_slopes(bound: Any, needs: frozenset[str], x: Tensor, steps: int) -> None:
    """Refuse a static energy whose gradient, as a solver receives it, is not that of its values.

    Args:
        bound: The field as a solver receives it, with condition rows for the rows of x.
        needs: What that solver asks of it.
        x: `(chains, *event_shape)`, where the chains are.
        steps: How many steps the run makes; a run that would pay more than a `SHARE` of them for
            the question is not asked.

    Raises:
        InvalidArgument: At more than half of a few places the two differ by far more than
            difference quotients do among themselves.
    """
    if not isinstance(bound, StaticField) or "score" not in needs or not x.numel():
        return
    offered = offers(bound.native)
    if "energy" not in offered or "states" in offered or len(x) * (steps // SHARE) <= ASKED:
        return
    few = torch.arange(min(ROWS, len(x)), device=x.device)
    here = replace(of_rows(bound, few), asked=set())
    check_derivative(
        here.energy,
        x.detach()[few],
        "energy",
        bound.native,
        _HINT,
        lambda z: here.energy_and_grad(z)[1],
        COARSE,
    )
