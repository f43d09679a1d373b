"""Velocity models of flow_matching as fields.

Its time is this package's: t = 0 is noise, t = 1 the data, and a model is called by
`model(x=x, t=t, **extras)`. On an affine path, `x_t = alpha(t) x_1 + sigma(t) x_0` with independent
x_0 ~ N(0, I), the velocity gives all other predictions; its scheduler is read for alpha and sigma.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.adapters.schedules import Scheduled, each_time
from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.core.arguments import function
from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument
from scoretk.fields.foreign import answered, misfit, owners, within
from scoretk.fields.wrappers import Diffusion, Velocity

__all__ = ["from_flow_matching"]


@explained
def from_flow_matching(
    model: Any,
    event_shape: Sequence[int],
    path: Any = None,
    base: object = None,
    *,
    autocast: torch.dtype | None = None,
) -> Diffusion | Velocity:
    """A field in time from a velocity model of flow_matching.

    Args:
        model: A `ModelWrapper`, or what is called as `model(x=x, t=t, **extras)`; extras are
            conditions.
        event_shape: The shape of one x.
        path: The `AffineProbPath` (or `CondOTProbPath`) that it was trained on; None for the
            straight one.
        base: The law of x_0 as in `scoretk.Velocity`, where that is not N(0, I) or was coupled with
            the data: then the velocity is all that the field has.
        autocast: As in `scoretk.Energy`.

    Returns:
        A field that predicts the velocity.

    Raises:
        InvalidArgument: The path is not affine, or an argument does not fit.
    """
    shape = as_event_shape(event_shape)
    net = _Named(function("model", model, "model(**arguments), which are x, t and conditions"))
    if path is not None and ("flow_matching", "AffineProbPath") not in owners(path):
        raise misfit("path", path, "an AffineProbPath of flow_matching, or None")
    if path is None or base is not None:
        return Velocity(net, shape, base, autocast=autocast)
    return Diffusion(net, shape, Scheduled(_Scales(path.scheduler)), "velocity", autocast=autocast)


@dataclass(frozen=True, eq=False)
class _Named:
    """A model called by its argument names.

    flow_matching's solver asks with one time, of shape `()`, and its training with one a row: where
    a model does not take the latter, or is one that takes it for numbers of x, each time is asked.
    As many times as there are entries along an axis of x would be taken for these, without an error:
    then there are rows more, which are thrown away.
    """

    net: Any

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        if ("flow_matching", "ScheduleTransformedModel") in owners(within(self.net)):
            return each_time(self._at, x, t, cond)
        rows = len(x)
        more = rows if rows < 2 else next(n for n in itertools.count(rows) if n not in x.shape[1:])
        wider = torch.arange(more, device=x.device).clamp(max=rows - 1)
        try:
            if more == rows:
                return self._at(x, t, cond)
            told = {name: value[wider] for name, value in cond.items()}
            return self._at(x[wider], t[wider], told)[:rows]
        except InvalidArgument as error:
            try:
                return each_time(self._at, x, t, cond)
            except InvalidArgument:
                raise error from error.__cause__

    def _at(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        velocity: Tensor = answered(lambda: self.net(x=x, t=t, **cond), self.net, x, cond)
        return velocity


@dataclass(frozen=True, eq=False)
class _Scales:
    """The two scales of a scheduler of flow_matching."""

    scheduler: Any

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        found = self.scheduler(t)
        return found.alpha_t, found.sigma_t
