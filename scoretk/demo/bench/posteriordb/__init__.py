"""Posteriors of posteriordb: models as energies of named variables, data and reference draws as found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from scoretk.demo.bench.posteriordb.archive import Archived, archived
from scoretk.demo.bench.posteriordb.counts import COUNTS
from scoretk.demo.bench.posteriordb.dynamics import DYNAMICS
from scoretk.demo.bench.posteriordb.hierarchies import HIERARCHIES
from scoretk.demo.bench.posteriordb.model import Arrays, Model
from scoretk.demo.bench.posteriordb.regressions import REGRESSIONS
from scoretk.demo.bench.posteriordb.series import SERIES
from scoretk.demo.bench.target import Reference, Target
from scoretk.errors import InvalidArgument
from scoretk.fields.variables import variables_of

__all__ = ["MODELS", "Archived", "Model", "archived", "target_of"]

MODELS: Mapping[str, Callable[[Arrays], Model]] = MappingProxyType(
    {**REGRESSIONS, **SERIES, **HIERARCHIES, **COUNTS, **DYNAMICS}
)
"""Models from data, by the names of posteriordb."""


def target_of(found: Archived) -> Target:
    """A posterior of the user's folder as a target with reference draws.

    Raises:
        InvalidArgument: Its model is not here; a file is missing, has not the data that the model
            takes, or has draws of other parameters.
    """
    if found.model not in MODELS:
        hint = "Write it as a target of your own: the group scoretk.targets"
        raise InvalidArgument(
            "model", found.model, "a model of scoretk.demo.bench.posteriordb", hint
        )
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
