"""The decoder of a pipeline's latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.fields.foreign import answered


@dataclass(frozen=True, eq=False)
class _Decoder:
    """From latents to images by a variational autoencoder: `vae.decode(std z / scale + mean)`.

    Attributes:
        vae: The autoencoder.
        scale: Its `scaling_factor`.
        mean: What its latents are shifted by: `shift_factor`, or `latents_mean` of each channel.
        std: The `latents_std` of each channel; 1 without.
    """

    vae: Any
    scale: float
    mean: Tensor
    std: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        dtype = getattr(self.vae, "dtype", z.dtype)
        mean, std = (self._across(v, z) for v in (self.mean, self.std))
        given = (std * z / self.scale + mean).to(dtype)
        found = answered(lambda: self.vae.decode(given), self.vae, z, {})
        found = getattr(found, "sample", found)
        image: Tensor = found[0] if isinstance(found, tuple) else found
        return image.to(z.dtype)

    def _across(self, each: Tensor, z: Tensor) -> Tensor:
        return each.to(z).reshape(-1, *(1 for _ in z.shape[2:]))


def _decoder(pipeline: Any) -> _Decoder | None:
    vae = getattr(pipeline, "vae", None)
    if vae is None:
        return None
    config = vae.config
    mean, std = (
        config.get(name) if config.get(name) is not None else getattr(vae, name, None)
        for name in ("latents_mean", "latents_std")
    )
    if mean is None or std is None:
        mean, std = float(config.get("shift_factor") or 0), 1.0
    scale = float(config.get("scaling_factor") or 1)
    return _Decoder(vae, scale, *(torch.as_tensor(v, dtype=torch.float64) for v in (mean, std)))
