"""The draws of a run, from what its batches kept."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from scoretk.core.cost import Cost
from scoretk.core.rows import across
from scoretk.fields.variables import Derived, named
from scoretk.inference.asked import BatchAsked
from scoretk.inference.planned import PlannedRun
from scoretk.run.batch import Batch
from scoretk.run.batches import Finished
from scoretk.run.draws import Draws
from scoretk.run.record import Record
from scoretk.run.stored import stored_draws
from scoretk.solvers.base import traits

__all__ = ["draws_of"]

CHUNK = 1 << 22
"""For how many numbers of x the variables are computed at a time."""
BY_CHAIN = "draws chains ... -> chains draws ..."


def draws_of(
    run: PlannedRun,
    parts: list[BatchAsked],
    batches: list[Batch],
    done: list[Finished],
    settings: dict[str, Any],
) -> Draws:
    """The result of `sample`: draws, statistics, how each chain ended, and the cost."""
    ids = run.ids
    asked = [
        (f, part.returned) for f, part in zip(done, parts, strict=True) if part.ids[part.returned]
    ]
    kept = batches[-1].schedule.kept_before(batches[-1].schedule.total)
    record = _whole(run, [f.record for f, _ in asked])
    stats = {
        name: rearrange(value, BY_CHAIN) if run.keep == "all" else value / kept
        for name, value in record.stats.items()
    }
    common: dict[str, Any] = {
        "final": torch.cat([f.final for f, _ in asked]),
        "status": torch.cat([f.status[rows] for f, rows in asked]),
        "failed_at": torch.cat([f.failed_at[rows] for f, rows in asked]),
        "cost": _cost(run.solver, parts, batches, done),
        "provenance": settings,
        "tuned": done[0].tuned,
        "chains": torch.arange(ids.start, ids.stop, ids.step),
    }
    if run.store is not None:
        return stored_draws(run.store, **common)
    x = rearrange(record.tensors["x"], BY_CHAIN) if "x" in record.tensors else None
    return Draws(
        x=x,  # type: ignore[arg-type]  # None where moments were kept
        stats=stats,
        **(common | _moments(record.tensors, kept)),
        **_variables(run.model, x),
    )


def _cost(solver: Any, parts: list[BatchAsked], batches: list[Batch], done: list[Finished]) -> Cost:
    """The evaluations of all batches, by kind."""
    cost: dict[str, int] = {}
    for batch, part, finished in zip(batches, parts, done, strict=True):
        for kind, n in solver.init_cost.items():
            cost[kind] = cost.get(kind, 0) + (len(part.ids) + finished.restarts) * n
        for kind, n in solver.step_cost.items():
            cost[kind] = cost.get(kind, 0) + len(part.ids) * n * batch.schedule.total
    varying = sum(f.evaluations for f in done)
    if varying:
        for kind in traits(solver).varying:
            cost[kind] = cost.get(kind, 0) + varying
    if energies := sum(f.energies for f in done):
        cost["energy"] = cost.get("energy", 0) + energies
    return Cost(cost)


def _moments(joined: dict[str, Tensor], kept: int) -> dict[str, Tensor]:
    """The mean and the variance of so many draws of each chain, and of the first half of these."""
    if "mean" not in joined:
        return {}
    mean = joined["mean"]
    # in place, as nobody else has them; of one draw it is NaN: it has none
    found = {"mean": mean, "var": joined["m2"].div_(kept - 1)}
    if kept < 4:
        return found
    count = joined["half_draws"]
    few = count[:1] if bool((count == count[0]).all()) else count  # one number for all chains
    return found | {
        "half_mean": joined["half_mean"],
        "half_var": joined["half_m2"].div_(across(few, mean) - 1),
        "half_draws": torch.stack([few, kept - few], 1).expand(len(count), 2),
    }


def _whole(run: PlannedRun, records: list[Record]) -> Record:
    """What was kept of all batches, with their chains side by side.

    What they wrote into the run's room is there; all else is joined, and let go there, so that one
    tensor at a time is in memory twice.
    """
    if run.store is not None:
        return Record()
    if run.room.tensors:
        return Record.from_flat(run.room.tensors)
    flat = [record.flat() for record in records]
    for record in records:
        record.tensors, record.stats = {}, {}
    if len(flat) == 1:
        return Record.from_flat(flat[0])
    by_draw = {"x"} if run.keep != "all" else set(flat[0])
    return Record.from_flat(
        {n: torch.cat([f.pop(n) for f in flat], int(n in by_draw)) for n in list(flat[0])}
    )


def _variables(model: Any, x: Tensor | None) -> dict[str, Any]:
    """The entries of `Draws` for named variables: layout, and values that x does not hold."""
    names = named(model)
    if names is None:
        return {}
    if not isinstance(names, Derived):
        return {"layout": names.layout}
    return {} if x is None else {"layout": names.layout, "named": _values(names, x)}


def _values(names: Derived, x: Tensor) -> Tensor:
    """The variables at draws `(chains, kept, *event)`, a piece of them at a time.

    So that beside draws and variables there is room for little else. A graph is of all at once.
    """
    if x.requires_grad:
        return names.values(x)
    values = x.new_empty((*x.shape[:2], names.layout.size))
    for i in range(0, x.shape[1], size := max(1, CHUNK // max(1, x[:, 0].numel()))):
        values[:, i : i + size] = names.values(x[:, i : i + size])
    return values
