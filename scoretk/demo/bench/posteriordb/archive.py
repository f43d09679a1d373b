"""Posteriors in the user's folder: names, data and reference draws.

Two layouts are read. A checkout of posteriordb, or its folder `posterior_database`, has

    posteriors/NAME.json                       which model, data and reference draws belong together
    data/data/DATA.json.zip                    the data, one JSON object
    reference_posteriors/draws/draws/REFERENCE.json.zip
                                               a list of chains, each an object `{"beta[1]": [..], ..}`

and a folder of files `DATA-MODEL.npz` has arrays `data/y` and `draws/beta[1]`, `(chains, draws)`.
Either may lie in a folder `posteriordb` of the user's. Nothing of them is part of this package.

References:
    Magnusson, Torgander, Bürkner, Zhang, Carpenter, Vehtari, "posteriordb: testing, benchmarking and
    developing Bayesian inference algorithms" (2025).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretk.demo.bench.posteriordb.model import Arrays
from scoretk.errors import InvalidArgument

__all__ = ["Archived", "archived"]

DATABASE, FOLDER = "posterior_database", "posteriordb"


@dataclass(frozen=True)
class Archived:
    """A posterior of the user's folder, not read yet.

    Args:
        name: Its name, "DATA-MODEL".
        model: The name of its model.
        place: The file that describes it.
        referenced: Whether it has reference draws.
    """

    name: str
    model: str
    place: Path
    referenced: bool = True

    def data(self) -> Arrays:
        """The data by name, float64.

        Raises:
            InvalidArgument: The file is not there, or is not what it should be.
        """
        if self.place.suffix == ".npz":
            return _part(self.place, "data/")
        root, told = self.place.parents[1], _described(self.place)
        values = _json(root / "data" / "data", told.get("data_name"))
        if not isinstance(values, dict):
            raise InvalidArgument("data", values, f"one JSON object, the data of {self.name}")
        return {name: _tensor(f"{self.name}: {name}", value) for name, value in values.items()}

    def draws(self) -> Arrays:
        """Reference draws by the names of scalar parameters, `(chains, draws)` each, float64.

        Raises:
            InvalidArgument: There are none, or they are not what they should be.
        """
        if self.place.suffix == ".npz":
            return _part(self.place, "draws/")
        root, told = self.place.parents[1], _described(self.place)
        name = told.get("reference_posterior_name")
        if name is None:
            raise InvalidArgument("target", self.name, "a posterior with reference draws")
        chains = _json(root / "reference_posteriors" / "draws" / "draws", name)
        if not (isinstance(chains, list) and chains and all(isinstance(c, dict) for c in chains)):
            raise InvalidArgument("draws", type(chains).__name__, f"the chains of {name}")
        if any(chain.keys() != chains[0].keys() for chain in chains):
            raise InvalidArgument("draws", name, "the same parameters in every chain")
        return {n: _tensor(f"{name}: {n}", [chain[n] for chain in chains]) for n in chains[0]}


def archived(folder: Path | None) -> Mapping[str, Archived]:
    """The posteriors of a folder by name, in their order.

    Args:
        folder: The user's folder of data; None has none.

    Raises:
        InvalidArgument: A file that should describe a posterior does not.
    """
    if folder is None:
        return {}
    found: dict[str, Archived] = {}
    for root in (folder, folder / FOLDER):
        for place in (root / "posteriors", root / DATABASE / "posteriors"):
            for file in sorted(place.glob("*.json")):
                told = _described(file)
                referenced = told.get("reference_posterior_name") is not None
                made = Archived(file.stem, str(told.get("model_name")), file, referenced)
                found.setdefault(file.stem, made)
        for file in sorted(root.glob("*-*.npz")):
            found.setdefault(file.stem, Archived(file.stem, file.stem.partition("-")[2], file))
    return found


def _described(file: Path) -> Mapping[str, Any]:
    told = _read(file, lambda: json.loads(file.read_text(encoding="utf-8")))
    if not isinstance(told, dict):
        raise InvalidArgument("data", str(file), "a JSON object that describes a posterior")
    return told


def _json(folder: Path, name: Any) -> Any:
    """What a JSON file holds, by itself or in a zip archive."""
    packed, bare = folder / f"{name}.json.zip", folder / f"{name}.json"
    if packed.is_file():
        return _read(packed, lambda: json.loads(_only(packed)))
    if bare.is_file():
        return _read(bare, lambda: json.loads(bare.read_text(encoding="utf-8")))
    raise InvalidArgument("data", str(folder), f"a folder with {packed.name} or {bare.name}")


def _only(packed: Path) -> bytes:
    """The one JSON file of an archive."""
    with zipfile.ZipFile(packed) as archive:
        names = [n for n in archive.namelist() if n.endswith(".json") and "__MACOSX" not in n]
        if len(names) != 1:
            raise ValueError(f"{len(names)} JSON files in it")
        return archive.read(names[0])


def _part(file: Path, prefix: str) -> Arrays:
    """The arrays of an npz file whose names begin so."""

    def read() -> dict[str, Any]:
        with np.load(file) as arrays:
            return {n: arrays[n] for n in arrays.files if n.startswith(prefix)}

    values = _read(file, read)
    if not values:
        raise InvalidArgument("data", str(file), f"a file with arrays {prefix}NAME")
    return {n.removeprefix(prefix): _tensor(f"{file.name}: {n}", v) for n, v in values.items()}


def _read(file: Path, read: Callable[[], Any]) -> Any:
    """What a file holds.

    Raises:
        InvalidArgument: It cannot be read, or its form is wrong.
    """
    try:
        return read()
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InvalidArgument("data", str(file), f"a whole file of its kind ({error})") from error


def _tensor(name: str, value: Any) -> Tensor:
    """Numbers as a tensor of float64.

    Raises:
        InvalidArgument: They are no numbers, or rows of different lengths.
    """
    try:
        return torch.from_numpy(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InvalidArgument(name, type(value).__name__, "numbers in equal rows") from error
