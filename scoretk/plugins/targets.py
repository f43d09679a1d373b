"""Targets of benchmarks by name: this package's own, and those of the group `scoretk.targets`.

An entry point's value points at a function `build(data)`, which gets the folder of data that the
user has named, a `pathlib.Path`, or None, and returns a `scoretk.demo.bench.Target`: a field and what is
known of its law.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scoretk.plugins.catalog import Catalog, pointed_at
from scoretk.plugins.discovery import Broken, Entry

__all__ = ["BUILT_IN_TARGETS", "list_targets", "load_target"]

BUILT_IN_TARGETS: Mapping[str, str] = MappingProxyType(
    {
        "banana": "scoretk.demo.bench.known:banana",
        "ill-conditioned": "scoretk.demo.bench.known:ill_conditioned",
        "rosenbrock": "scoretk.demo.bench.known:rosenbrock",
        "bimodal": "scoretk.demo.bench.known:bimodal",
        "funnel-20": "scoretk.demo.bench.known:funnel",
        "brownian": "scoretk.demo.bench.gym:brownian",
        "german-credit": "scoretk.demo.bench.gym:german_credit",
        "item-response": "scoretk.demo.bench.gym:item_response",
        "volatility": "scoretk.demo.bench.gym:volatility",
        "many-well": "scoretk.demo.bench.partition:many_well",
        "funnel-10": "scoretk.demo.bench.partition:funnel",
        "gaussians-25": "scoretk.demo.bench.partition:gaussians",
        "gaussians-40": "scoretk.demo.bench.partition:gaussians_40",
        "cox": "scoretk.demo.bench.cox:cox",
        "cox-whitened": "scoretk.demo.bench.cox:cox_whitened",
        "ising-8": "scoretk.demo.bench.partition:ising_8",
        "ising-16": "scoretk.demo.bench.partition:ising_16",
        "ising-16-warm": "scoretk.demo.bench.partition:ising_16_warm",
        "ising-16-cold": "scoretk.demo.bench.partition:ising_16_cold",
        "ising-24": "scoretk.demo.bench.partition:ising_24",
        "ising-32": "scoretk.demo.bench.partition:ising_32",
    }
)
"""This package's targets by name, in the order in which they are shown."""

_TARGETS = Catalog("scoretk.targets", "target", BUILT_IN_TARGETS)


def list_targets() -> list[Entry | Broken]:
    """All registered targets, this package's first, from metadata alone.

    Returns:
        An `Entry` for each; a `Broken` as in `list_models`.
    """
    own = {f"scoretk/{name}": place for place, name in enumerate(BUILT_IN_TARGETS)}
    return sorted(_TARGETS.listing(), key=lambda e: (own.get(e.id, len(own)), e.id))


def load_target(name: str, data: str | Path | None = None) -> Any:
    """The target of this name.

    Args:
        name: A full id ("my-package/my-target") or a short name ("banana").
        data: The user's folder of data, for targets that need one.

    Returns:
        The `scoretk.demo.bench.Target`.

    Raises:
        UnknownName: Nothing has this name.
        AmbiguousName: Targets of several packages have this short name.
        BrokenPlugin: It cannot be imported or built.
        InvalidArgument: It needs data that the folder has not.
    """
    entry = _TARGETS.find(name)
    folder = None if data is None else Path(data)
    with _TARGETS.isolated(entry, "load", {"data": folder}):
        return pointed_at(entry.value)(folder)
