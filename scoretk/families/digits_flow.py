r"""digits-flow: flow matching on scikit-learn's handwritten digits.

A velocity on the straight path `x_t = t x_1 + (1 - t) eps`, fitted by conditional flow matching. The recipe serves any
array of real numbers; the shipped weights are its outcome on the digits' training images.
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
from scoretk.fields import Linear, Velocity
from scoretk.learn.fitting import Progress, Recipe, fit
from scoretk.learn.losses import flow_matching, stratified

__all__ = ["build", "default_data", "train"]

MODEL = "digits-flow"


def build(weights: str | os.PathLike[str] | None = None) -> Velocity:
    """The flow with these weights, by default the shipped ones.

    Raises: `InvalidArgument` where the file holds no weights of this model.
    """
    stored = read_weights(shipped(MODEL) if weights is None else weights, MODEL)
    settings = stored.settings
    network = stored.into(lambda: PathNetwork(_backbone(settings), Linear(), "velocity", stored.spread))
    return Velocity(network, tuple(settings["event_shape"]))


def default_data() -> Tensor:
    """What the shipped weights were trained on: the digits' training images, `(1437, 1, 8, 8)`."""
    return load_digits().train


def train(
    data: Tensor | None = None, *, seed: int = 0, steps: int = 6000, smoothing: float = 0.06, width: int = 256,
    blocks: int = 3, dropout: float = 0.3, report: Callable[[Progress], Any] | None = None,
) -> Stored:  # fmt: skip
    """Fit the flow to data.

    Arguments: data `(n, *event_shape)`, None for the digits; seed; steps of the optimiser; smoothing, the standard
        deviation of the noise that is put on the data (against their discreteness, and against learning them by heart)
        over their own; width, blocks and dropout of the network; report, called after each evaluation.
    Returns: the weights of the lowest loss on a held-out tenth of the rows.
    Raises: `InvalidArgument`, `FitFailure`.
    """
    ready = prepare(default_data() if data is None else data, smoothing)
    settings = {"event_shape": list(ready.rows.shape[1:]), "width": width, "blocks": blocks, "dropout": dropout}
    backbone = fresh(lambda: _backbone(settings), torch.Generator().manual_seed(seed))
    network = PathNetwork(backbone, Linear(), "velocity", ready.spread)

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        x = ready.blurred(rows, generator)
        start = torch.randn(x.shape, generator=generator)
        return flow_matching(network, x, stratified(len(x), generator), start)

    done = fit(network, loss, ready.rows, Recipe(steps), seed=seed, report=report)
    made = notes(
        MODEL, data is None, seed, steps=steps, smoothing=smoothing, width=width, blocks=blocks, dropout=dropout
    )
    return Stored(MODEL, settings, done.weights, made)


def _backbone(settings: dict[str, Any]) -> TimeMLP:
    dim = math.prod(settings["event_shape"])
    return TimeMLP(dim, settings["width"], settings["blocks"], settings["dropout"])
