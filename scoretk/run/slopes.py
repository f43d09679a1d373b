"""Whether the gradient of an energy is that of its values, found out at the start of a run.

An energy that takes a part of x out of the graph (`detach`, `.data`, numpy) has a gradient that
lacks this part; one that comes with a gradient of its own can come with another's. Neither fails:
kernels that follow the gradient alone then sample another law. So beside a few of the chains'
places the gradient along a random direction is held against a difference quotient of the values,
by the rule of `scoretk.fields.derivatives`, which leaves alone what has kinks or noise of its own.
(Beside them, as all chains may start on a kink, where the quotients of all steps agree.)

A kernel that accepts or rejects is right with any gradient, though slow with a wrong one: there it
is warned of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoretk.core.warned import warn
from scoretk.errors import InvalidArgument
from scoretk.fields.derivatives import check_derivative, probes
from scoretk.fields.protocols import offers
from scoretk.fields.resolve import Bound, StaticField, TimedField, of_rows
from scoretk.run.asking import affordable
from scoretk.solvers.base import traits

__all__ = ["check_seen", "check_slopes"]

ROWS = 4
ASKED = 6 * ROWS
"""How many rows the question takes where nothing is wrong."""
BESIDE = 2.0**-4
"""How far from a chain's place it is asked, in units of x."""
COARSE = 2.0**-5
"""The step, in units of x, at which a network's own coarseness is no longer seen."""
_HINT = (
    "Write the energy in torch from end to end; where the field has a gradient or a score of its "
    "own, let it be this energy's: score = -grad energy"
)
_GRAPH = (
    "grad=True differentiates through it: it must not detach x, nor run under no_grad or in numpy"
)


def check_slopes(bound: Bound, solver: Any, x: Tensor, steps: int) -> None:
    """Refuse a static energy whose gradient, as a solver receives it, is not that of its values.

    Args:
        bound: The field as a solver receives it, with condition rows for the rows of x.
        solver: The solver; where it is exact whatever the gradient, a warning is all.
        x: `(chains, *event_shape)`, where the chains are.
        steps: How many steps the run makes, as in `affordable`.

    Raises:
        InvalidArgument: At more than half of a few places the two differ by far more than
            difference quotients do among themselves.
    """
    if not isinstance(bound, StaticField) or "score" not in solver.needs or not x.numel():
        return
    offered = offers(bound.native)
    if "energy" not in offered or "states" in offered or not affordable(ASKED, x, steps):
        return
    few = torch.arange(min(ROWS, len(x)), device=x.device)
    here, places = replace(of_rows(bound, few), asked=set()), x.detach()[few]
    size = places.square().mean().sqrt()
    size = torch.where((size > 0) & size.isfinite(), size, 1.0)
    gradient = _asked(lambda z: here.energy_and_grad(z)[1])
    try:
        check_derivative(
            _asked(here.energy),
            places + BESIDE * size * probes(places, len(places), 6),
            "energy",
            bound.native,
            _HINT,
            gradient,
            COARSE,
        )
    except _Unanswered:  # it takes no such few rows, or no such place: the run will tell
        return
    except InvalidArgument as error:
        if not traits(solver).exact:
            raise
        warn(f"{type(solver).__name__} is slow here, though exact. {error}")


def check_seen(bound: Bound, solver: Any, x: Tensor) -> None:
    """Refuse a field that autograd does not see through, where a run's steps are differentiated.

    Args:
        bound: The field as a solver receives it, with condition rows for the rows of x.
        solver: The solver.
        x: `(chains, *event_shape)`, where the chains are.

    Raises:
        InvalidArgument: The derivative of its score, or of what it predicts, is not that of its
            values: it leaves the graph on its way, or is known as numbers.
    """
    few = torch.arange(min(ROWS, len(x)), device=x.device)
    here = replace(of_rows(bound, few), asked=set())
    ask: Callable[[Tensor], Tensor]
    if isinstance(here, TimedField):
        what, ask = here.source, partial(here.predict, t=0.5)
    elif "score" in solver.needs:
        what, ask = "score", partial(here.score)
    else:
        return
    try:
        check_derivative(_asked(ask), x.detach()[few], what, bound.native, _GRAPH)
    except _Unanswered:
        return


class _Unanswered(Exception):
    """The field does not answer here."""


def _asked(evaluate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def ask(x: Tensor) -> Tensor:
        try:
            return evaluate(x)
        except Exception as error:  # whatever a model raises
            raise _Unanswered from error

    return ask
