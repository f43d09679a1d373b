r"""digits-jem: one network as a classifier and an energy-based model of handwritten digits.

The logits f(x)_y of a classifier are read as a joint density of images and labels, with the energy
q of a Gaussian that confines it:

    p(x, y) = exp(-q(x) + f(x)_y) / Z,    q(x) = |s^-1 U^T (x - m)|^2 / 2
    E(x) = q(x) - logsumexp_y f(x)_y,     E(x | y) = q(x) - f(x)_y + const
    p(y | x) = softmax f(x)

Both factors of p(x, y) are fitted, `-log p(y | x)` as a classifier and `-log p(x)` by persistent
contrastive divergence:

    loss = mean E(x+) - mean E(x-) - weight mean log p(y+ | x+)
           + decay (mean f(x+)^2 + mean f(x-)^2)

Sample it with `ULA(0.005)`; one class with `cond={"label": labels}`, one whole number a chain.

References:
    Grathwohl, Wang, Jacobsen, Duvenaud, Norouzi, Swersky, "Your classifier is secretly an energy
    based model and you should treat it like one" (2020).
    Tieleman, "Training restricted Boltzmann machines using approximations to the likelihood
    gradient" (2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from scoretk.core.identity import tensor_digest
from scoretk.errors import InvalidArgument
from scoretk.fields.gradient import grad_energy
from scoretk.learn.contrastive import ContrastiveDivergence, ReplayBuffer
from scoretk.models.digits.networks import ConfinedEnergy, EnergyMLP, fresh
from scoretk.models.digits.stored import Stored, read_weights
from scoretk.models.digits.training import (
    File,
    Report,
    TrainingRequest,
    contrastive_recipe,
    labelled,
)
from scoretk.solvers import ULA

__all__ = ["JEM", "build", "train"]

MODEL = "digits-jem"


@dataclass(frozen=True, eq=False)
class JEM:
    """A classifier as a static field: the energy of x, or of x given a label.

    Args:
        network: q and f: its correction is f, `(batch, *event_shape) -> (batch, classes)`.
        event_shape: The shape of an image.
    """

    network: ConfinedEnergy
    event_shape: tuple[int, ...]

    provides = frozenset({"energy", "score"})

    def classify(self, x: Tensor) -> Tensor:
        """The logits f(x), `(batch, *event_shape) -> (batch, classes)`.

        `log p(y | x)` is their `log_softmax`.
        """
        return self.network.correction(x).to(x.dtype)

    def energy(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """The energy `E(x)`, or `E(x | y)` given labels.

        Args:
            x: `(batch, *event_shape)`.
            label: Whole numbers, `(batch,)`, or None.

        Returns:
            `(batch,)`, infinite for a label of no class.

        Raises:
            InvalidArgument: Where there is not one label a row.
        """
        logits = self.classify(x)
        if label is not None:
            if label.shape != x.shape[:1]:
                raise InvalidArgument("label", label, f"one whole number a row, shape ({len(x)},)")
            chosen = torch.arange(logits.shape[1], device=x.device) == label[:, None]
            logits = torch.where(chosen, logits, -torch.inf)
        return (self.network.confinement(x) - logits.logsumexp(1)).to(x.dtype)

    def score(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """The score `-grad E`, like x; label as in `energy`."""
        return -self.energy_and_grad(x, label)[1]

    def energy_and_grad(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The energy and its gradient in x, for the price of one of each."""
        return grad_energy(lambda y: self.energy(y, label), x, self)


def build(weights: File | None = None) -> JEM:
    """The model with these weights, by default the shipped ones.

    Raises:
        InvalidArgument: Where the file holds no weights of this model.
    """
    stored = read_weights(weights, MODEL)
    settings = stored.settings
    network = stored.into(lambda: ConfinedEnergy(_backbone(settings), stored.spread))
    return JEM(network, tuple(settings["event_shape"]))  # type: ignore[arg-type]


def train(
    data: Tensor | None = None,
    labels: Tensor | File = None,
    *,
    seed: int = 0,
    steps: int = 3000,
    smoothing: float = 0.28,
    width: int = 256,
    blocks: int = 1,
    chain_steps: int = 10,
    step_size: float = 0.017,
    chains: int = 2000,
    refresh: float = 0.001,
    weight: float = 1.0,
    decay: float = 1e-3,
    report: Report = None,
    checkpoint: File = None,
) -> Stored:
    """Fit the model to labelled data.

    Args:
        data: The data, `(n, *event_shape)`; None, together with the labels, for the digits.
        labels: Their classes, whole numbers from 0, `(n,)`, or a file of them such as `scoretk fit
            --data` takes.
        seed: The seed of the random numbers.
        steps: How many steps the optimiser makes.
        smoothing: The standard deviation of the noise that is put on the data, over their own.
        width: The width of the network's hidden layers.
        blocks: The number of its residual blocks.
        chain_steps: How many Langevin steps are made before each step of the optimiser.
        step_size: The size of these steps, in units of the data's variance.
        chains: The number of chains in the replay buffer.
        refresh: The share of the chains that start anew from N(0, I) when read.
        weight: The weight of the classifier's loss.
        decay: The weight of the squared logits in the loss.
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
    ready, classes = labelled(data, labels, smoothing)
    shape = tuple(ready.rows.shape[1:])
    settings = {
        "event_shape": list(shape),
        "width": width,
        "blocks": blocks,
        "classes": int(classes.max()) + 1,
    }
    network = ConfinedEnergy(
        fresh(lambda: _backbone(settings), torch.Generator().manual_seed(seed)), ready.spread
    )
    field = JEM(network, shape)
    h = step_size * (ready.std / smoothing) ** 2
    divergence = ContrastiveDivergence(ULA(h), chain_steps, ReplayBuffer(chains, refresh), seed)

    def loss(numbers: Tensor, generator: torch.Generator) -> Tensor:
        rows = numbers.long()
        x = ready.blurred(ready.rows[rows], generator)
        gap, negatives = divergence(field, x)
        real, made = field.classify(x), field.classify(negatives)
        return (
            gap
            + weight * cross_entropy(real, classes[rows])
            + decay * (real.square().mean() + made.square().mean())
        )

    asked = {
        "steps": steps,
        "smoothing": smoothing,
        "width": width,
        "blocks": blocks,
        "chain_steps": chain_steps,
        "step_size": step_size,
        "chains": chains,
        "refresh": refresh,
        "weight": weight,
        "decay": decay,
        **({} if data is None else {"labels": "FILE"}),
    }
    training = TrainingRequest(MODEL, data is None, seed, report, checkpoint, asked)
    done = training.fit(
        network,
        loss,
        torch.arange(len(ready.rows)).double(),
        contrastive_recipe(steps, chains),
        state=divergence,
        tell={"data": tensor_digest({"rows": ready.rows, "labels": classes})},
    )
    return training.stored(settings, done.weights)


def _backbone(settings: dict[str, Any]) -> EnergyMLP:
    return EnergyMLP(
        math.prod(settings["event_shape"]),
        settings["width"],
        settings["blocks"],
        settings["classes"],
    )
