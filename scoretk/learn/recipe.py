"""How to fit: the recipe, the players of a game, the progress that is reported and the outcome."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from scoretk.core.arguments import counts, finite, option, positive
from scoretk.errors import InvalidArgument

__all__ = ["Fit", "Loss", "MakeOptimiser", "Numbers", "Player", "Progress", "Recipe"]

Numbers = Mapping[str, float | Tensor]
Loss = Callable[[Tensor, torch.Generator], Tensor | tuple[Tensor, Numbers]]
MakeOptimiser = Callable[[list[nn.Parameter]], Optimizer]


class Progress(NamedTuple):
    """One evaluation: steps done, mean training loss since the last one, held-out value (None
    without held-out data).

    `health`: means since the last evaluation of the gradient's norm before clipping and of what the
    loss tells.
    """

    step: int
    loss: float
    held_out: float | None
    health: Mapping[str, float] = MappingProxyType({})

    def __str__(self) -> str:
        chosen = "" if self.held_out is None else f"  held-out {self.held_out:.5g}"
        health = "".join(f"  {name} {value:.3g}" for name, value in self.health.items())
        return f"step {self.step}  loss {self.loss:.5g}{chosen}{health}"


@dataclass(frozen=True)
class Recipe:
    """How to optimise.

    Args:
        steps: How many.
        batch: Rows a step.
        learning_rate: At its highest.
        betas: Of AdamW.
        weight_decay: Of AdamW.
        clip: The largest gradient norm.
        decay: Of the averaged weights.
        held_out: The share of the rows kept for choosing the weights, 0 for none.
        repeats: Draws of the loss's randomness for each held-out row.
        evaluations: How many, evenly spaced.
        optimiser: What makes one of a list of parameters, such as
            `functools.partial(torch.optim.SGD, lr=0.1)`, None for AdamW.
        schedule: Of the optimiser's learning rate after 2 % of the steps as warmup: "cosine", to a
            fiftieth, or "constant".
        patience: Stop after so many evaluations without a lower held-out value.
        parts: Slices a batch is computed in, a multiple of the number of processes, None for that
            number.
    """

    steps: int
    batch: int = 256
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    decay: float = 0.999
    held_out: float = 0.1
    repeats: int = 8
    evaluations: int = 20
    optimiser: MakeOptimiser | None = None
    schedule: str = "cosine"
    patience: int | None = None
    parts: int | None = None

    def __post_init__(self) -> None:
        counts(self, steps=1, batch=1, repeats=1, evaluations=1)
        for name in ("learning_rate", "clip"):
            positive(name, getattr(self, name))
        for name in ("decay", "held_out"):
            if not 0 <= finite(name, getattr(self, name)) < 1:
                raise InvalidArgument(name, getattr(self, name), "a share in [0, 1)")
        option("schedule", self.schedule, ("cosine", "constant"))
        for name in ("patience", "parts"):
            if getattr(self, name) is not None:
                counts(self, **{name: 1})
        if self.patience is not None and self.held_out == 0:
            raise InvalidArgument("patience", self.patience, "None where no rows are held out")

    def rate(self, step: int) -> float:
        """The learning rate of a step, over the optimiser's own."""
        warmup = min(1.0, (step + 1) / max(1, self.steps // 50))
        if self.schedule == "constant":
            return warmup
        return warmup * (0.02 + 0.98 * (1 + math.cos(math.pi * step / self.steps)) / 2)

    def make(self, parameters: list[nn.Parameter]) -> Optimizer:
        """The optimiser of these parameters."""
        if self.optimiser is not None:
            return self.optimiser(parameters)
        return AdamW(
            parameters, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class Player:
    """One of those who take turns in a step.

    Args:
        name: The name.
        module: Whose parameters this player moves, a part of the module that is fitted.
        loss: As in `fit`.
        steps: Of its optimiser in each turn, each on a fresh batch.
        optimiser: As in `Recipe`, None for the recipe's.
    """

    name: str
    module: nn.Module
    loss: Loss
    steps: int = 1
    optimiser: MakeOptimiser | None = None

    def __post_init__(self) -> None:
        counts(self, steps=1)


@dataclass
class Fit:
    """The outcome: `weights`, a state dict; `step`, how many steps they had.

    `history`, one `Progress` an evaluation.
    """

    weights: dict[str, Tensor]
    step: int
    history: list[Progress] = field(default_factory=list)
