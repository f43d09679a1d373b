"""Wrapped models of k-diffusion as fields.

All its wrappers are denoisers `D(x, sigma)` in variance-exploding coordinates, `x = x_1 + sigma
eps`, whatever the model within predicts. A wrapper of a model on a table says the levels of its
ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.core.keywords import explained
from scoretk.fields.adapters import from_sigmas
from scoretk.fields.foreign import adapter_of, answered, misfit, within
from scoretk.fields.paths import EDM, VE
from scoretk.fields.wrappers import Diffusion

__all__ = ["from_k_diffusion"]


@explained
def from_k_diffusion(
    denoiser: Any,
    event_shape: Sequence[int],
    path: EDM | VE | None = None,
    *,
    autocast: torch.dtype | None = None,
) -> Diffusion:
    """A field in time from a wrapped model of k-diffusion.

    Args:
        denoiser: A `Denoiser`, `VDenoiser`, or a wrapper of a model on a discrete schedule, called
            as `denoiser(x, sigma, **cond)`.
        event_shape: The shape of one x.
        path: The levels; None for `EDM` between the ends of the schedule, or EDM's own.
        autocast: As in `scoretk.Energy`.

    Returns:
        A field that predicts the data. `scoretk.grids.table(field.path, levels)` has the times of a
        list of levels such as `get_sigmas_karras` makes, without its last, which is 0. The step to
        that one is `ProbabilityFlow(..., denoise=True)`.

    Raises:
        InvalidArgument: It is no such wrapper, or an argument does not fit.
    """
    if adapter_of(denoiser) != "from_k_diffusion":
        raise misfit(
            "denoiser",
            denoiser,
            "a wrapped model of k-diffusion, a Denoiser or a VDenoiser or of a discrete schedule",
        )
    own = within(denoiser)
    if path is None and hasattr(own, "sigmas"):
        path = EDM(float(own.sigma_min), float(own.sigma_max))
    return from_sigmas(_Denoised(denoiser), event_shape, path, autocast=autocast)


@dataclass(frozen=True, eq=False)
class _Denoised:
    """A denoiser of k-diffusion, whose errors are told in this package's words."""

    denoiser: Any

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        data: Tensor = answered(
            lambda: self.denoiser(x, sigma, **cond), self.denoiser, x, {"sigma": sigma, **cond}
        )
        return data
