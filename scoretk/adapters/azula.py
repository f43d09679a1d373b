"""Denoisers of azula as fields.

azula's time runs from data (0) to noise (1), `x_t = alpha_t x + sigma_t eps` with a schedule of the
denoiser's own; a denoiser gives the posterior of x, whose mean is what a field needs. Here the time
is `1 - t`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.adapters.schedules import Scheduled, each_time
from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.core.keywords import explained
from scoretk.fields.foreign import answered, misfit, owners, within
from scoretk.fields.wrappers import Diffusion

__all__ = ["from_azula"]


@explained
def from_azula(
    denoiser: Any, event_shape: Sequence[int], *, autocast: torch.dtype | None = None
) -> Diffusion:
    """A field in time from a denoiser of azula, on the path of its schedule.

    Args:
        denoiser: An `azula.denoise.Denoiser`; keyword arguments of its call are conditions.
        event_shape: The shape of one x.
        autocast: As in `scoretk.Energy`.

    Returns:
        A field that predicts the data.

    Raises:
        InvalidArgument: It is no such denoiser, or an argument does not fit.
    """
    if ("azula", "Denoiser") not in owners(within(denoiser)):
        raise misfit("denoiser", denoiser, "an azula.denoise.Denoiser")
    path = Scheduled(_Reversed(within(denoiser).schedule))
    net = _Mean(denoiser)
    return Diffusion(net, as_event_shape(event_shape), path, "data", autocast=autocast)


@dataclass(frozen=True, eq=False)
class _Reversed:
    """A schedule of azula in this package's time."""

    schedule: Any

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule(1 - t)
        return alpha, sigma


@dataclass(frozen=True, eq=False)
class _Mean:
    """The mean of a denoiser's posterior.

    azula's own samplers ask with one time for all rows, and its Gaussian one takes no other.
    """

    denoiser: Any

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        one = len(t) > 0 and bool((t == t[0]).all())
        if one or ("azula", "GaussianDenoiser") in owners(within(self.denoiser)):
            return each_time(self._at, x, t, cond)
        return self._at(x, t, cond)

    def _at(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        found = answered(lambda: self.denoiser(x, 1 - t, **cond), self.denoiser, x, cond)
        mean: Tensor = found.mean
        return mean
