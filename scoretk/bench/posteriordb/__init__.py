"""Posteriors of posteriordb: models as energies of named variables, data and reference draws as found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from scoretk.bench.posteriordb.archive import Archived, archived
from scoretk.bench.posteriordb.counts import COUNTS
from scoretk.bench.posteriordb.dynamics import DYNAMICS
from scoretk.bench.posteriordb.hierarchies import HIERARCHIES
from scoretk.bench.posteriordb.model import Arrays, Model
from scoretk.bench.posteriordb.regressions import REGRESSIONS
from scoretk.bench.posteriordb.series import SERIES
from scoretk.bench.target import Reference, Target
from scoretk.errors import InvalidArgument
from scoretk.fields.variables import variables_of

__all__ = ["MODELS", "Archived", "Model", "archived", "known_posteriors", "target_of"]

MODELS: Mapping[str, Callable[[Arrays], Model]] = MappingProxyType(
    {**REGRESSIONS, **SERIES, **HIERARCHIES, **COUNTS, **DYNAMICS}
)
"""Models from data, by the names of posteriordb."""


def known_posteriors(folder: Path | None) -> Mapping[str, Archived]:
    """The posteriors of the user's folder whose models are here, by name."""
    return {name: found for name, found in archived(folder).items() if found.model in MODELS}


def target_of(found: Archived) -> Target:
    """A posterior of the user's folder as a target with reference draws.

    Raises:
        InvalidArgument: A file is missing, has not the data that the model takes, or has draws of
            other parameters.
    """
    data = found.data()
    try:
        model = MODELS[found.model](data)
        named = variables_of(model.variables)
        free = torch.zeros(2, named.free.size, dtype=torch.float64)
        values = named.layout.split(named.constrain(free))
        model.energy(**values)
    except (KeyError, IndexError, RuntimeError) as error:
        expected = f"those that {found.model} takes ({error})"
        raise InvalidArgument(f"the data of {found.name}", sorted(data), expected) from error
    reference = Reference(found.draws(), model.parameters)
    reference.numbers(values)  # refused before hours of sampling
    return Target(found.name, model.field(), reference=reference)
