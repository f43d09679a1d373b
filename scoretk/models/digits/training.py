"""What the trained families share: preparing data, the fit, and notes on how weights were made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoretk.core.arguments import finite, tensor_like
from scoretk.core.arrayfiles import read_array
from scoretk.core.versions import versions
from scoretk.errors import InvalidArgument
from scoretk.learn.fitting import Fit, Player, Progress, Recipe, fit
from scoretk.learn.recipe import Loss
from scoretk.models.digits.data import load_digits
from scoretk.models.digits.networks import PrincipalAxes, principal_axes
from scoretk.models.digits.stored import Stored

__all__ = [
    "File",
    "Prepared",
    "Report",
    "TrainingRequest",
    "contrastive_recipe",
    "dequantised",
    "labelled",
    "prepare",
]

File = str | os.PathLike[str] | None
Report = Callable[[Progress], Any] | None


class Prepared(NamedTuple):
    """Data that are ready for training.

    Args:
        rows: The data, `(n, *event_shape)` in float32 on the CPU.
        std: The standard deviation of the noise that is put on them, in units of the data.
        spread: The Gaussian with the mean and the covariance of the noised data.
    """

    rows: Tensor
    std: float
    spread: PrincipalAxes

    def blurred(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Rows with new noise of standard deviation `std` on them."""
        return rows + self.std * torch.randn(rows.shape, generator=generator)


def prepare(data: Any, smoothing: float) -> Prepared:
    """Check the data and measure their spread.

    Args:
        data: `(n, *event_shape)` with at least two rows that differ; None for the digits'.
        smoothing: The standard deviation of the noise over that of the data (the root of their mean
            variance), above 0.

    Raises:
        InvalidArgument: For other data or noise.
    """
    data = load_digits().train if data is None else data
    shape = tuple(getattr(data, "shape", ()))
    if len(shape) < 2 or shape[0] < 2:
        raise InvalidArgument("data", data, "at least two rows, shape (n, *event_shape)")
    rows = tensor_like("data", data, (None, *shape[1:])).detach().to("cpu", torch.float32)
    if not finite("smoothing", smoothing) > 0:
        raise InvalidArgument("smoothing", smoothing, "a positive number")
    own = float(rows.double().var(0, correction=0).mean().sqrt())
    if own == 0:
        raise InvalidArgument("data", data, "rows that differ")
    return Prepared(rows, smoothing * own, principal_axes(rows, smoothing * own))


def dequantised(rows: Tensor, bin: float, generator: torch.Generator) -> Tensor:
    """Rows with uniform noise: each number is spread evenly over a bin of width `bin` around it."""
    return rows + bin * (torch.rand(rows.shape, generator=generator) - 0.5) if bin else rows


def labelled(
    data: Any, labels: Any, smoothing: float, *, least: int = 0
) -> tuple[Prepared, Tensor]:
    """Check labelled data.

    Args:
        data: As in `prepare`; None, together with the labels, for the digits.
        labels: Whole numbers from `least`, `(n,)`, or a file of them such as `scoretk fit --data`
            takes. Classes are counted from 0.
        smoothing: As in `prepare`.
        least: The smallest label allowed; -1 where labels may be unknown.

    Returns:
        The prepared data, and one int64 label a row, `(n,)`.

    Raises:
        InvalidArgument: Where there is not one such label for each row of data.
    """
    if data is None and labels is None:
        digits = load_digits()
        data, labels = digits.train, digits.train_labels
    if data is None:
        raise InvalidArgument("data", None, "rows (n, *event_shape), as labels are given")
    ready = prepare(data, smoothing)
    n, unknown = len(ready.rows), "" if least == 0 else f", or {least} where unknown"
    if isinstance(labels, str | os.PathLike):
        found = read_array(labels, argument="labels", axes=1)
    else:
        found = labels
    known = torch.as_tensor(found) if hasattr(found, "shape") else torch.empty(0)
    known = known.squeeze(1) if known.shape == (n, 1) else known  # a column of a table
    whole = known.long()
    if (
        known.shape != (n,)
        or not torch.equal(whole.to(known), known)
        or whole.min() < least
        or whole.max() < 0
    ):
        raise InvalidArgument(
            "labels", labels, f"a whole number from 0{unknown}, for each of the {n} rows of data"
        )
    return ready, whole


@dataclass(frozen=True)
class TrainingRequest:
    """A training as its caller asks for it.

    Args:
        model: The name of the model.
        own: Whether the data are the model's default ones.
        seed: The seed of the random numbers.
        report: Called with the progress after each evaluation.
        checkpoint: The file to save to and to go on from, None for none.
        asked: The settings of the trainer, which repeat the training.
    """

    model: str
    own: bool
    seed: int
    report: Report
    checkpoint: File
    asked: Mapping[str, Any]

    @property
    def notes(self) -> dict[str, Any]:
        """Notes on the training: the command that repeats it, and the versions in use."""
        chosen = [f"--set {name}={value}" for name, value in self.asked.items()]
        data = [] if self.own else ["--data FILE"]
        command = " ".join([f"scoretk fit {self.model}", *data, f"--seed {self.seed}", *chosen])
        return {"command": command, "seed": self.seed, **self.asked, **versions()}

    def fit(
        self,
        network: nn.Module,
        loss: Loss | Sequence[Player],
        rows: Tensor,
        recipe: Recipe,
        *,
        state: Any = None,
        tell: Mapping[str, Any] = MappingProxyType({}),
    ) -> Fit:
        """Train by `scoretk.learn.fit`.

        Args:
            network: The module to fit.
            loss: The loss, or the players, as in `scoretk.learn.fit`.
            rows: The data, as there.
            recipe: How to optimise.
            state: An object that belongs to the training, as there.
            tell: Plain values that, beside the notes, tell this training's checkpoint from others'.
        """
        return fit(
            network,
            loss,
            rows,
            recipe,
            seed=self.seed,
            report=self.report,
            checkpoint=self.checkpoint,
            state=state,
            settings=self.notes | dict(tell),
        )

    def stored(self, settings: dict[str, Any], weights: dict[str, Tensor]) -> Stored:
        """What has been trained: weights, and the plain values that build the network."""
        return Stored(self.model, settings, weights, self.notes)


def contrastive_recipe(steps: int, chains: int, decay: float = Recipe.decay) -> Recipe:
    """How an energy is fitted by its own chains.

    Args:
        steps: How many steps the optimiser makes.
        chains: The number of chains in the replay buffer: no more rows are read at a time.
        decay: The decay of the averaged weights, in [0, 1).
    """
    return Recipe(
        steps,
        batch=min(Recipe.batch, chains),
        learning_rate=3e-4,
        betas=(0.5, 0.99),
        weight_decay=0.0,
        clip=10.0,
        held_out=0.0,
        decay=decay,
    )
