r"""digits-energy: an energy-based model of digits, by persistent contrastive divergence.

    E(x) = |s^-1 U^T (x - m)|^2 / 2 + f(x)
    loss = mean E(x+) - mean E(x-) + decay (mean f(x+)^2 + mean f(x-)^2)

with x+ the data, with noise on them so that they have a density, and x- the chains of a replay
buffer under Langevin dynamics at temperature 1, without clipped gradients, so that the chains of a
later run follow the same law. Sample it with `ULA(0.005)` or `MALA(0.005)`; a chain from N(0, I)
needs about 1000 steps. Its density, which `log_partition` normalises, is that of digits with the
training's noise on them.

Two means of the literature against unstable training can be switched on: a penalty on the gradient
of f, `penalty mean |grad f(x+)|^2` (Mescheder et al. 2018), and hidden layers of spectral norm 1
(Miyato et al. 2018).

References:
    Tieleman, "Training restricted Boltzmann machines using approximations to the likelihood
    gradient" (2008).
    Du, Mordatch, "Implicit generation and modeling with energy-based models" (2019).
    Nijkamp, Hill, Zhu, Wu, "On the anatomy of MCMC-based maximum likelihood learning of
    energy-based models" (2020).
    Mescheder, Geiger, Nowozin, "Which training methods for GANs do actually converge?" (2018).
    Miyato, Kataoka, Koyama, Yoshida, "Spectral normalization for generative adversarial networks"
    (2018).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from scoretk.core.arguments import finite
from scoretk.errors import InvalidArgument
from scoretk.fields import Energy
from scoretk.learn.contrastive import ContrastiveDivergence, ReplayBuffer
from scoretk.models.digits.networks import ConfinedEnergy, EnergyMLP, fresh
from scoretk.models.digits.stored import Stored, read_weights
from scoretk.models.digits.training import (
    File,
    Report,
    TrainingRequest,
    contrastive_recipe,
    prepare,
)
from scoretk.solvers import ULA

__all__ = ["build", "train"]

MODEL = "digits-energy"


def build(weights: str | os.PathLike[str] | None = None) -> Energy:
    """The energy with these weights, by default the shipped ones.

    Raises:
        InvalidArgument: Where the file holds no weights of this model.
    """
    stored = read_weights(weights, MODEL)
    settings = stored.settings
    network = stored.into(lambda: ConfinedEnergy(_backbone(settings), stored.spread))
    return Energy(network, tuple(settings["event_shape"]))


def train(
    data: Tensor | None = None,
    *,
    seed: int = 0,
    steps: int = 5000,
    smoothing: float = 0.28,
    width: int = 256,
    blocks: int = 1,
    chain_steps: int = 20,
    step_size: float = 0.017,
    chains: int = 2000,
    refresh: float = 0.001,
    decay: float = 1e-3,
    ema: float = 0.999,
    penalty: float = 0.0,
    spectral: bool = False,
    report: Report = None,
    checkpoint: File = None,
) -> Stored:
    """Fit the energy to data.

    Args:
        data: The data, `(n, *event_shape)`, None for the digits.
        seed: The seed of the random numbers.
        steps: How many steps the optimiser makes.
        smoothing: The standard deviation of the noise that is put on the data, over their own.
        width: The width of the network's hidden layers.
        blocks: The number of its residual blocks.
        chain_steps: How many Langevin steps are made before each step of the optimiser.
        step_size: The size of these steps, in units of the data's variance.
        chains: The number of chains in the replay buffer.
        refresh: The share of the chains that start anew from N(0, I) when read.
        decay: The weight of f^2 in the loss.
        ema: The decay of the averaged weights, in [0, 1).
        penalty: The weight of the squared gradient of f at the data, at least 0.
        spectral: Whether the hidden layers have spectral norm 1.
        report: Called with the progress after each evaluation.
        checkpoint: The file to save to and to go on from, None for none.

    Returns:
        The averaged weights of the last step.

    Raises:
        InvalidArgument: For data or settings that do not fit.
        FitFailure: Where loss, gradient or weights are no longer finite.
        CheckpointError: Where the checkpoint is damaged or another run's.
        ChainFailure: Where every chain failed.
    """
    if finite("penalty", penalty) < 0:
        raise InvalidArgument("penalty", penalty, "a number of at least 0")
    ready = prepare(data, smoothing)
    shape = tuple(ready.rows.shape[1:])
    settings = {"event_shape": list(shape), "width": width, "blocks": blocks}
    network = ConfinedEnergy(
        fresh(lambda: _backbone(settings), torch.Generator().manual_seed(seed)), ready.spread
    )
    hidden = _constrained(network, seed) if spectral else []
    field = Energy(network, shape)
    h = step_size * (ready.std / smoothing) ** 2
    divergence = ContrastiveDivergence(ULA(h), chain_steps, ReplayBuffer(chains, refresh), seed)

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x = ready.blurred(rows, generator)
        gap, negatives = divergence(field, x)
        held = decay * (
            network.correction(x).square().mean() + network.correction(negatives).square().mean()
        )
        return gap + held + (
            penalty * _slope(network.correction, x) if penalty else 0.0
        ), divergence.last

    asked = {
        "steps": steps,
        "smoothing": smoothing,
        "width": width,
        "blocks": blocks,
        "chain_steps": chain_steps,
        "step_size": step_size,
        "chains": chains,
        "refresh": refresh,
        "decay": decay,
        "ema": ema,
        "penalty": penalty,
        "spectral": spectral,
    }
    training = TrainingRequest(MODEL, data is None, seed, report, checkpoint, asked)
    recipe = contrastive_recipe(steps, chains, ema)
    training.fit(network, loss, ready.rows, recipe, state=divergence)
    for layer in hidden:
        parametrize.remove_parametrizations(layer, "weight")
    return training.stored(settings, network.state_dict())


def _constrained(network: ConfinedEnergy, seed: int) -> list[nn.Module]:
    """Give all linear layers but the last, whose scale is the energy's, spectral norm 1.

    Returns:
        These layers.
    """
    *hidden, _ = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    # the power iteration begins with random vectors of torch's global generator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [spectral_norm(layer) for layer in hidden]


def _slope(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The mean of `|grad f(x)|^2` over the rows, differentiable in f's parameters."""
    y = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(y).sum(), y, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def _backbone(settings: dict[str, Any]) -> EnergyMLP:
    return EnergyMLP(math.prod(settings["event_shape"]), settings["width"], settings["blocks"])
