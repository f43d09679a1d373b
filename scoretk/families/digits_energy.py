r"""digits-energy: an energy-based model of scikit-learn's handwritten digits, by persistent contrastive divergence.

    E(x) = |s^-1 U^T (x - m)|^2 / 2 + f(x),      loss = mean E(x+) - mean E(x-) + decay (mean f(x+)^2 + mean f(x-)^2)

with x+ the data, noise of standard deviation `smoothing` put on them so that they have a density, and x- the chains of a
replay buffer under Langevin dynamics at temperature 1: no lowered temperature, no clipped gradient, nothing that the chains
of a later run would not have. Sample it with `ULA(0.005)` or `MALA(0.005)`; a chain from N(0, I) needs about 1000 steps.

References: Tieleman, "Training restricted Boltzmann machines using approximations to the likelihood gradient" (2008); Du,
Mordatch, "Implicit generation and modeling with energy-based models" (2019); Nijkamp, Hill, Zhu, Wu, "On the anatomy of
MCMC-based maximum likelihood learning of energy-based models" (2020).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scoretk.families.digits_data import load_digits
from scoretk.families.networks import ConfinedEnergy, EnergyMLP, fresh
from scoretk.families.stored import Stored, read_weights, shipped
from scoretk.families.training import notes, prepare
from scoretk.fields import Energy
from scoretk.learn.contrastive import ContrastiveDivergence, ReplayBuffer
from scoretk.learn.fitting import Progress, Recipe, fit
from scoretk.solvers import ULA

__all__ = ["build", "default_data", "train"]

MODEL = "digits-energy"


def build(weights: str | os.PathLike[str] | None = None) -> Energy:
    """The energy with these weights, by default the shipped ones.

    Raises: `InvalidArgument` where the file holds no weights of this model.
    """
    stored = read_weights(shipped(MODEL) if weights is None else weights, MODEL)
    settings = stored.settings
    network = stored.into(lambda: ConfinedEnergy(_backbone(settings), stored.spread))
    return Energy(network, tuple(settings["event_shape"]))


def default_data() -> Tensor:
    """What the shipped weights were trained on: the digits' training images, `(1437, 1, 8, 8)`."""
    return load_digits().train


def train(
    data: Tensor | None = None, *, seed: int = 0, steps: int = 5000, smoothing: float = 0.28, width: int = 256, blocks: int = 1,
    chain_steps: int = 20, step_size: float = 0.017, chains: int = 2000, refresh: float = 0.001, decay: float = 1e-3,
    report: Callable[[Progress], Any] | None = None, checkpoint: str | os.PathLike[str] | None = None,
) -> Stored:  # fmt: skip
    """Fit the energy to data.

    Arguments: data `(n, *event_shape)`, None for the digits; seed; steps of the optimiser; smoothing, the standard
        deviation of the noise that is put on the data, over their own; width and blocks of the network; chain_steps,
        Langevin steps before each step of the optimiser, of step_size times the data's variance; chains, slots of the
        replay buffer; refresh, the share of the chains that start anew from N(0, I) when read; decay, of f; report,
        called after each evaluation; checkpoint, a file to save to and to go on from.
    Returns: the averaged weights of the last step.
    Raises: `InvalidArgument`, `FitFailure`; `CheckpointError`; `ChainFailure` where every chain failed.
    """
    ready = prepare(default_data() if data is None else data, smoothing)
    shape = tuple(ready.rows.shape[1:])
    settings = {"event_shape": list(shape), "width": width, "blocks": blocks}
    network = ConfinedEnergy(fresh(lambda: _backbone(settings), torch.Generator().manual_seed(seed)), ready.spread)
    field = Energy(network, shape)
    h = step_size * (ready.std / smoothing) ** 2
    recipe = Recipe(steps, learning_rate=3e-4, betas=(0.5, 0.99), weight_decay=0.0, clip=10.0, held_out=0.0)
    recipe = replace(recipe, batch=min(recipe.batch, chains))
    divergence = ContrastiveDivergence(ULA(h), chain_steps, ReplayBuffer(chains, refresh), seed)

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x = ready.blurred(rows, generator)
        gap, negatives = divergence(field, x)
        held = network.correction(x).square().mean() + network.correction(negatives).square().mean()
        return gap + decay * held, divergence.last

    made = notes(
        MODEL, data is None, seed, steps=steps, smoothing=smoothing, width=width, blocks=blocks,
        chain_steps=chain_steps, step_size=step_size, chains=chains, refresh=refresh, decay=decay,
    )  # fmt: skip
    done = fit(
        network, loss, ready.rows, recipe, seed=seed, report=report, checkpoint=checkpoint, state=divergence, settings=made,
    )  # fmt: skip
    return Stored(MODEL, settings, done.weights, made)


def _backbone(settings: dict[str, Any]) -> EnergyMLP:
    return EnergyMLP(math.prod(settings["event_shape"]), settings["width"], settings["blocks"])
