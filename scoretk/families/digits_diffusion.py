r"""digits-diffusion: noise prediction on scikit-learn's handwritten digits.

A network that predicts the noise on the variance-preserving path. Its loss is weighted and its times are drawn so that
every noise level counts alike for data of standard deviation s: with `a = atan2(alpha s, sigma)` uniform on (0, pi / 2),

    E_a [(1 + sigma^2 / (alpha s)^2) |net(alpha x + sigma eps, t) - eps|^2]

which for s = 1 is the mean square error of v (Salimans and Ho). The recipe serves any array of real numbers; the shipped
weights are its outcome on the digits' training images.

References: Ho, Jain, Abbeel, "Denoising diffusion probabilistic models" (2020); Salimans, Ho, "Progressive distillation
for fast sampling of diffusion models" (2022).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoretk.families.digits_data import load_digits
from scoretk.families.networks import PathNetwork, TimeMLP, fresh
from scoretk.families.stored import Stored, read_weights, shipped
from scoretk.families.training import notes, prepare
from scoretk.fields import VP, Diffusion
from scoretk.learn.fitting import Progress, Recipe, fit
from scoretk.learn.losses import noise_prediction, stratified

__all__ = ["build", "default_data", "train"]

MODEL = "digits-diffusion"
PATH = VP()


def build(weights: str | os.PathLike[str] | None = None) -> Diffusion:
    """The diffusion model with these weights, by default the shipped ones.

    Raises: `InvalidArgument` where the file holds no weights of this model.
    """
    stored = read_weights(shipped(MODEL) if weights is None else weights, MODEL)
    settings = stored.settings
    network = stored.into(lambda: PathNetwork(_backbone(settings), PATH, "noise", stored.spread))
    return Diffusion(network, tuple(settings["event_shape"]), path=PATH, predicts="noise")


def default_data() -> Tensor:
    """What the shipped weights were trained on: the digits' training images, `(1437, 1, 8, 8)`."""
    return load_digits().train


def train(
    data: Tensor | None = None, *, seed: int = 0, steps: int = 6000, smoothing: float = 0.06, width: int = 256,
    blocks: int = 3, dropout: float = 0.3, report: Callable[[Progress], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Stored:  # fmt: skip
    """Fit the diffusion model to data.

    Arguments: data `(n, *event_shape)`, None for the digits; seed; steps of the optimiser; smoothing, the standard
        deviation of the noise that is put on the data (against their discreteness, and against learning them by heart)
        over their own; width, blocks and dropout of the network; report, called after each evaluation;
        checkpoint, a file to save to and to go on from.
    Returns: the weights of the lowest loss on a held-out tenth of the rows.
    Raises: `InvalidArgument`, `FitFailure`, `CheckpointError`.
    """
    ready = prepare(default_data() if data is None else data, smoothing)
    settings = {"event_shape": list(ready.rows.shape[1:]), "width": width, "blocks": blocks, "dropout": dropout}
    backbone = fresh(lambda: _backbone(settings), torch.Generator().manual_seed(seed))
    network = PathNetwork(backbone, PATH, "noise", ready.spread)

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        x = ready.blurred(rows, generator)
        noise = torch.randn(x.shape, generator=generator)
        t, weight = _levels(stratified(len(x), generator), float(ready.spread.std.square().mean().sqrt()))
        return weight * noise_prediction(network, x, t, noise, PATH)

    made = notes(
        MODEL, data is None, seed, steps=steps, smoothing=smoothing, width=width, blocks=blocks, dropout=dropout
    )
    done = fit(network, loss, ready.rows, Recipe(steps), seed=seed, report=report, checkpoint=checkpoint, settings=made)
    return Stored(MODEL, settings, done.weights, made)


def _levels(u: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Times at which the angle `atan2(alpha s, sigma)` is `pi u / 2`, and the loss's weights there; u in [0, 1)."""
    ratio = torch.tan(torch.pi / 2 * u.double().clamp(0.002, 0.998))  # the path's own ends are not at 0 and 1
    t = PATH.t(2 * torch.log(ratio / scale)).clamp(0, 1)
    alpha, sigma = PATH.alpha(t), PATH.sigma(t)
    return t.to(u), (1 + (sigma / (alpha * scale)).square()).to(u)


def _backbone(settings: dict[str, Any]) -> TimeMLP:
    dim = math.prod(settings["event_shape"])
    return TimeMLP(dim, settings["width"], settings["blocks"], settings["dropout"])
