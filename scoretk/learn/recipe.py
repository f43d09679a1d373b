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

from scoretk.core.arguments import counts, finite, fraction, option, positive
from scoretk.errors import InvalidArgument

__all__ = ["Fit", "Loss", "MakeOptimiser", "Numbers", "Player", "Progress", "Recipe"]

Numbers = Mapping[str, float | Tensor]
Loss = Callable[[Tensor, torch.Generator], Tensor | tuple[Tensor, Numbers]]
MakeOptimiser = Callable[[list[nn.Parameter]], Optimizer]


class Progress(NamedTuple):
    """The report of one evaluation.

    Args:
        step: How many steps were made.
        loss: The mean training loss since the last evaluation.
        held_out: The value on held-out rows, None without such rows.
        health: Means since the last evaluation of the gradient's norm before clipping, "gradient",
            and of the numbers that the loss returns beside its value.
        of: How many steps there are to be, None where that is not known.
    """

    step: int
    loss: float
    held_out: float | None
    health: Mapping[str, float] = MappingProxyType({})
    of: int | None = None

    def __str__(self) -> str:
        chosen = "" if self.held_out is None else f"  held-out {self.held_out:.5g}"
        health = "".join(f"  {name} {value:.3g}" for name, value in self.health.items())
        whole = "" if self.of is None else f" of {self.of}"
        return f"step {self.step}{whole}  loss {self.loss:.5g}{chosen}{health}"


@dataclass(frozen=True)
class Recipe:
    """How to optimise.

    Args:
        steps: How many steps are made.
        batch: How many rows a step takes.
        learning_rate: The highest learning rate of AdamW.
        betas: The decay rates of AdamW's moments.
        weight_decay: The decoupled weight decay of AdamW.
        clip: The largest norm of the gradient, to which it is clipped.
        decay: The decay of the averaged weights, in [0, 1).
        held_out: The share of the rows that is kept for choosing the weights, in [0, 1), 0 for
            none.
        repeats: How often held-out rows are evaluated, each time with other random numbers.
        evaluations: How many evaluations there are, evenly spaced.
        optimiser: Makes an optimiser of a list of parameters, such as
            `functools.partial(torch.optim.SGD, lr=0.1)`; None for AdamW.
        schedule: How the optimiser's learning rate goes on after it has risen linearly over 2 % of
            the steps: "cosine", down to a fiftieth, or "constant".
        patience: After how many evaluations without a lower held-out value to stop, None for never.
        parts: How many slices a batch is computed in, a multiple of the number of processes; None
            for that number.
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
            fraction(name, getattr(self, name), "[0, 1)")
        betas = self.betas if isinstance(self.betas, tuple | list) else ()
        if len(betas) != 2 or not all(0 <= finite("betas", beta) < 1 for beta in betas):
            raise InvalidArgument("betas", self.betas, "two shares in [0, 1)")
        if finite("weight_decay", self.weight_decay) < 0:
            raise InvalidArgument("weight_decay", self.weight_decay, "at least 0")
        option("schedule", self.schedule, ("cosine", "constant"))
        for name in ("patience", "parts"):
            if getattr(self, name) is not None:
                counts(self, **{name: 1})
        if self.patience is not None and self.held_out == 0:
            raise InvalidArgument("patience", self.patience, "None where no rows are held out")

    def rate(self, step: int) -> float:
        """The learning rate of a step, as a share of the optimiser's own."""
        warmup = min(1.0, (step + 1) / max(1, self.steps // 50))
        if self.schedule == "constant":
            return warmup
        return warmup * (0.02 + 0.98 * (1 + math.cos(math.pi * step / self.steps)) / 2)

    def make(self, parameters: list[nn.Parameter]) -> Optimizer:
        """An optimiser of these parameters."""
        if self.optimiser is not None:
            return self.optimiser(parameters)
        return AdamW(
            parameters, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class Player:
    """One player of a game, such as a critic: its parameters, its loss and its optimiser.

    Args:
        name: The prefix of its numbers in `Progress.health`.
        module: The parameters that this player moves, a part of the module that is fitted.
        loss: Its loss, as in `fit`.
        steps: How many steps of its optimiser it makes in each turn, each on a batch of its own.
        optimiser: Makes its optimiser, as in `Recipe`; None for the recipe's.
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
    """The outcome of a fit.

    Args:
        weights: The weights that are kept, a state dict.
        step: After how many steps they were.
        history: One `Progress` for each evaluation.
    """

    weights: dict[str, Tensor]
    step: int
    history: list[Progress] = field(default_factory=list)

    def __repr__(self) -> str:
        last = f", {self.history[-1]}" if self.history else ""
        return f"Fit(weights of {len(self.weights)} tensors after step {self.step}{last})"
