"""Draws of parts of a run, made apart, as those of the whole run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scoretk.core.cost import Cost
from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument
from scoretk.run.draws import BY_CHAIN, Draws
from scoretk.run.stored import StoredDraws

__all__ = ["concatenate"]

OF_A_PART = {"chains", "batch", "init", "cond", "device"}
"""What parts of a run may differ in: all else in their provenance decides the draws."""

TUNED = "what was tuned"
PILOT = (
    "A part tunes by the chains of the run's pilot that are below its end: let the first part have "
    "all of them, by warmup=scoretk.Warmup(..., pilot=) of no more chains than it has, or tune once and "
    "give it to all by tuned_by. Then the same call, seed and field with another"
)


@explained
def concatenate(parts: Iterable[Draws]) -> Draws:
    """The draws of one run, made in parts by `sample(chains=range(a, b))`, in the order of their ids.

    For runs whose parts know nothing of one another: tasks of an array of jobs, of Dask or Ray. Where
    warmup tunes, each part has run the pilot too, and the cost is the sum of what was spent.

    Draws in stores stay there: what is joined is read when it is asked for.

    Draws know the settings of their run, and the name and the tensors of its field; not its code, in
    which fields may differ that are told apart by a checkpoint.

    Args:
        parts: The draws of the parts, in any order, on one device; all in memory, or all in stores.

    Raises:
        InvalidArgument: They are not of one run, or have chains in common.
    """
    every = list(parts) if isinstance(parts, Iterable) else []
    if not every or not all(isinstance(part, Draws) for part in every):
        raise InvalidArgument("parts", parts, "draws of one part of a run or more")
    first, stored = every[0], [part for part in every if isinstance(part, StoredDraws)]
    if 0 < len(stored) < len(every):
        hint = "Those of a store come into memory by in_memory()"
        raise InvalidArgument("parts", every, "draws in memory, or draws in stores", hint)
    for number, part in enumerate(every[1:], 1):
        if other := _differences(first, part):
            hint = (
                PILOT if other.startswith(TUNED) else "The same call, seed and field with another"
            )
            raise InvalidArgument(
                f"parts[{number}]",
                other,
                "draws of the same run as parts[0]",
                f"{hint} range of chains= makes a part",
            )
    ids = torch.cat([part.chains.cpu() for part in every])
    order = torch.argsort(ids, stable=True)
    if bool((ids[order].diff() == 0).any()):
        twice = ids[order][1:][ids[order].diff() == 0].tolist()
        raise InvalidArgument("parts", twice[:10], "every chain once", "These are there twice")
    cost = Cost()
    for part in every:
        for kind, spent in part.cost.items():
            cost[kind] = cost.get(kind, 0) + spent
    provenance = {**first.provenance, "chains": _told(ids[order])}
    held = [name for name in BY_CHAIN if not (stored and name == "x")]
    joined = {name: _joined([vars(part)[name] for part in every], order) for name in held}
    common = {**joined, "cost": cost, "provenance": provenance}
    if stored:
        own = {"tuned": first.tuned, "layout": first.layout}
        return StoredDraws.joined(stored, order, **common, **own)
    stats = {name: _joined([part.stats[name] for part in every], order) for name in first.stats}
    return replace(first, **common, stats=stats)


def _differences(one: Draws, other: Draws) -> str:
    """In what draws differ that parts of a run have in common."""
    found = [
        f"{name}: {one.provenance.get(name)!r:.80} there, {other.provenance.get(name)!r:.80} here"
        for name in {**one.provenance, **other.provenance}
        if name not in OF_A_PART
        and _plain(one.provenance.get(name)) != _plain(other.provenance.get(name))
    ]
    found += [
        f"{name}: {_form(vars(one)[name])} there, {_form(vars(other)[name])} here"
        for name in BY_CHAIN
        if _form(vars(one)[name]) != _form(vars(other)[name])
    ]
    for name in ("stats", "tuned"):
        there, here = (sorted(getattr(draws, name)) for draws in (one, other))
        if there != here:
            found.append(f"{name}: {there} there, {here} here")
    if not found:
        found = [
            f"{TUNED}: {name}"
            for name, value in one.tuned.items()
            if not torch.equal(value, other.tuned[name])
        ]
    return "; ".join(found)


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)


def _form(value: Tensor | None) -> Any:
    return None if value is None else (tuple(value.shape[1:]), value.dtype, value.device)


def _joined(values: list[Any], order: Tensor) -> Any:
    return None if values[0] is None else torch.cat(values)[order.to(values[0].device)]


def _told(ids: Tensor) -> int | str:
    """Ids as `sample` takes them: how many, or a range; else their list."""
    if not len(ids):
        return 0
    first, count = int(ids[0]), len(ids)
    step = int(ids[1]) - first if count > 1 else 1
    if not torch.equal(ids, torch.arange(first, first + count * step, step)):
        return repr(ids.tolist())
    found = range(first, int(ids[-1]) + 1, step)
    return count if found == range(count) else repr(found)
