"""What the trained families share: data made ready for training, and notes on how weights were made."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk._version import __version__
from scoretk.core.arguments import finite, tensor_like
from scoretk.core.arrayfiles import read_array
from scoretk.errors import InvalidArgument
from scoretk.models.digits.data import load_digits
from scoretk.models.digits.networks import Spread, spread_of

__all__ = ["Prepared", "dequantised", "labelled", "notes", "prepare"]


class Prepared(NamedTuple):
    """Data `(n, *event_shape)` in float32, the standard deviation of the noise to put on them, and their spread with it."""

    rows: Tensor
    std: float
    spread: Spread

    def blurred(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Rows with fresh noise on them."""
        return rows + self.std * torch.randn(rows.shape, generator=generator)


def prepare(data: Any, smoothing: float) -> Prepared:
    """Check the data and measure their spread.

    Arguments: data `(n, *event_shape)` with at least two rows that differ; smoothing, the standard deviation of the noise
    over that of the data (the root of their mean variance), above 0.
    """
    shape = tuple(getattr(data, "shape", ()))
    if len(shape) < 2 or shape[0] < 2:
        raise InvalidArgument("data", data, "at least two rows, shape (n, *event_shape)")
    rows = tensor_like("data", data, (None, *shape[1:])).detach().to("cpu", torch.float32)
    if not finite("smoothing", smoothing) > 0:
        raise InvalidArgument("smoothing", smoothing, "a positive number")
    own = float(rows.double().var(0, correction=0).mean().sqrt())
    if own == 0:
        raise InvalidArgument("data", data, "rows that differ")
    return Prepared(rows, smoothing * own, spread_of(rows, smoothing * own))


def dequantised(rows: Tensor, bin: float, generator: torch.Generator) -> Tensor:
    """Rows, each number spread evenly over a bin of this width around it; rows as they are where it is 0."""
    return rows + bin * (torch.rand(rows.shape, generator=generator) - 0.5) if bin else rows


def labelled(data: Any, labels: Any, smoothing: float, *, least: int = 0) -> tuple[Prepared, Tensor]:
    """Labelled data: checked and measured, and one label a row, int64, of which the classes are 0 and above.

    Arguments: data and smoothing as for `prepare`; labels, whole numbers from `least`, `(n,)`, or a file of them such as
    `scoretk fit --data` takes. Data and labels None: the digits.
    """
    if data is None and labels is None:
        digits = load_digits()
        data, labels = digits.train, digits.train_labels
    if data is None:
        raise InvalidArgument("data", None, "rows (n, *event_shape), as labels are given")
    ready = prepare(data, smoothing)
    n, unknown = len(ready.rows), "" if least == 0 else f", or {least} where unknown"
    found = read_array(labels, argument="labels", axes=1) if isinstance(labels, str | os.PathLike) else labels
    known = torch.as_tensor(found) if hasattr(found, "shape") else torch.empty(0)
    known = known.squeeze(1) if known.shape == (n, 1) else known  # a column of a table
    whole = known.long()
    if known.shape != (n,) or not torch.equal(whole.to(known), known) or whole.min() < least or whole.max() < 0:
        raise InvalidArgument("labels", labels, f"a whole number from 0{unknown}, for each of the {n} rows of data")
    return ready, whole


def notes(model: str, own: bool, seed: int, **settings: Any) -> dict[str, Any]:
    """What to remember of a training: the command that repeats it, and the versions in use.

    Arguments: model, its name; own, whether the data are the model's own; seed; settings of the trainer.
    """
    chosen = [f"--set {name}={value}" for name, value in settings.items()]
    command = " ".join([f"scoretk fit {model}", *([] if own else ["--data FILE"]), f"--seed {seed}", *chosen])
    versions = {"scoretk": __version__, "torch": str(torch.__version__)}
    return {"command": command, "seed": seed, **settings, **versions}
