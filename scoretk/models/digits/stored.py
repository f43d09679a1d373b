"""Trained weights in safetensors files, with how to build their network and how they were made.

Parameters are stored as float16 and used as float32; what a model takes from the data (statistics,
rows to start from) stays float32. No pickle is ever loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoretk.core.files import file_to_read, file_to_write
from scoretk.core.sealed import Unreadable, check_header, plain_json, read_sealed, write_sealed
from scoretk.errors import InvalidArgument
from scoretk.models.digits.networks import PrincipalAxes

__all__ = ["SHIPPED", "Stored", "read_weights", "shipped", "write_weights"]

SHIPPED = Path(__file__).parent / "weights"
"""The folder of the weights that come with the package."""

KIND = "weights"


@dataclass(frozen=True)
class Stored:
    """A trained network.

    Args:
        model: The name of the model.
        settings: Plain values that build the network.
        weights: Its state dict.
        notes: How the weights were made.
    """

    model: str
    settings: dict[str, Any]
    weights: dict[str, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def spread(self) -> PrincipalAxes:
        """The Gaussian of the data, which the network starts from."""
        return PrincipalAxes(*(self.weights.get(name) for name in PrincipalAxes._fields))  # type: ignore[arg-type]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file that the model's parameter `weights` takes, atomically.

        Raises:
            InvalidArgument: Where the file cannot be written.
        """
        write_weights(path, self)

    def into(self, make: Callable[[], nn.Module]) -> nn.Module:
        """The module that `make` builds, in eval mode and with these weights.

        Raises:
            InvalidArgument: Where the weights do not fit it.
        """
        with torch.device("meta"):  # no memory, no random numbers
            module = make()
        try:
            module.load_state_dict(self.weights, assign=True)
        except RuntimeError as error:
            raise InvalidArgument(
                "weights", sorted(self.weights), f"weights of {self.model}", str(error)
            ) from error
        return module.eval()


def shipped(model: str) -> Path:
    """The file of a built-in model's weights."""
    return SHIPPED / f"{model}.safetensors"


def write_weights(path: str | os.PathLike[str], stored: Stored) -> None:
    """Write a network's weights, atomically.

    Raises:
        InvalidArgument: Where the file cannot be written.
    """
    half = {name: t.half() if _is_parameter(name) else t for name, t in stored.weights.items()}
    header = {"model": stored.model, "settings": stored.settings, "notes": stored.notes}
    file = file_to_write("path", path)
    try:
        write_sealed(file, KIND, half, header)
    except (OSError, ValueError) as error:
        raise InvalidArgument(
            "path", str(file), "a place that can be written", str(error)
        ) from error


def read_weights(path: str | os.PathLike[str] | None, model: str) -> Stored:
    """Read what `write_weights` wrote.

    Args:
        path: The file, None for the weights that come with the package.
        model: The name of the model.

    Raises:
        InvalidArgument: Where the file does not exist, is no such file, or holds the weights of
            another model.
    """
    expected = f"the path of weights of {model}"
    path = shipped(model) if path is None else path
    file = file_to_read("weights", path, expected)
    try:
        tensors, header = read_sealed(file, KIND, _unsealed)
        check_header(
            header,
            model=lambda v: isinstance(v, str),
            settings=lambda v: isinstance(v, dict),
            notes=lambda v: isinstance(v, dict),
        )
        weights = {name: value.float() for name, value in tensors.items()}
    except (Unreadable, ValueError) as error:
        raise InvalidArgument(
            "weights", str(path), expected, f"{type(error).__name__}: {error}"
        ) from error
    stored = Stored(header["model"], header["settings"], weights, header["notes"])
    if stored.model != model:
        raise InvalidArgument(
            "weights", str(path), expected, f"These are weights of {stored.model}"
        )
    return stored


def _is_parameter(name: str) -> bool:
    return name not in (*PrincipalAxes._fields, "start")


def _unsealed(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The header of a file that was written before files had checksums.

    Raises:
        Unreadable: Where it has none.
    """
    if set(metadata) != {"scoretk"}:
        raise Unreadable("it holds no weights")
    return plain_json(metadata["scoretk"])
