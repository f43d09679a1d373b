"""The files of a run: who may write to them, and the store that draws go to."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import torch

from scoretk.core.identity import Identity
from scoretk.core.locks import held, held_with_others
from scoretk.core.warned import warn
from scoretk.fields.variables import Derived, named
from scoretk.inference.asked import BatchAsked
from scoretk.inference.planned import PlannedRun
from scoretk.run.checkpoint import Checkpoint
from scoretk.run.draws import Draws
from scoretk.run.ranks import Share
from scoretk.run.resume import Saving, awaited_store
from scoretk.run.schedule import Schedule
from scoretk.run.store import Contents, Store, Zarr, chains_a_chunk
from scoretk.solvers.base import is_grid

__all__ = ["finish", "hold", "opened_store", "saving_of"]

FEW_CHAINS, MANY_CHUNKS = 16, 1000
"""Of a store: fewer chains a chunk are told where more chunks than that lie side by side."""
PATIENCE = 3.0
"""Seconds that a job of many waits for the one before, whose ranks need about two to see its end."""


def hold(paths: list[Path], share: Share, ends: ExitStack) -> None:
    """Have this job alone write to some paths, until its last process has left the stack of contexts.

    Raises:
        Busy: Another job does.
    """
    if not paths:
        return
    if share.alone:
        for path in paths:
            ends.enter_context(held(path))
    elif share.first:
        job = uuid4()
        for path in paths:
            ends.enter_context(held(path, PATIENCE, job.hex))
        share.publish("job", {"": torch.tensor(list(job.bytes))})
    else:
        job = UUID(bytes=bytes(share.fetch("job")[""].tolist()))
        for path in paths:
            ends.enter_context(held_with_others(path, job.hex))


def saving_of(
    run: PlannedRun, settings: dict[str, Any], identity: Identity | None, saved: Checkpoint | None
) -> Saving | None:
    """How a run is saved to its checkpoint; None where it has none.

    Args:
        run: The run, with its store.
        settings: What tells it from others.
        identity: What field and solver are made of.
        saved: The checkpoint.
    """
    if saved is None or identity is None:
        return None
    # the weights are in the identity
    told = {name: value for name, value in settings.items() if name != "weights"}
    told |= {} if run.store is None else {"store": run.store.id}
    return Saving(saved, told, identity, extends=not is_grid(run.solver))


def _told_to_a_store(
    settings: dict[str, Any], identity: Identity | None, saved: Checkpoint | None
) -> dict[str, Any]:
    """The settings in a store by which its run is recognised where there is no checkpoint.

    Settings do not tell fields apart whose code differs: without the identity of a run with a
    checkpoint a store is nobody's to begin anew in.
    """
    told = {name: value for name, value in settings.items() if name != "steps"}
    made_of = None if identity is None or saved is None else identity.summary()["digest"]
    return told | {"what field and solver are made of": made_of}


def opened_store(
    run: PlannedRun,
    asked: Zarr,
    parts: list[BatchAsked],
    identity: Identity | None,
    schedule: Schedule,
    saved: Checkpoint | None,
    share: Share,
) -> Store:
    """The store of a run with this schedule, which the first of its processes looks for."""
    names, settings = named(run.model), run.settings(schedule)
    contents = Contents(
        run.ids,
        schedule.kept_before(schedule.total),
        None if names is None else names.layout,
        names.values if isinstance(names, Derived) else None,
        _told_to_a_store(settings, identity, saved),
        settings,
    )
    sizes = [n for part in parts if (n := len(part.ids[part.returned]))]
    few = chains_a_chunk(sizes, 1)
    if few < FEW_CHAINS and len(run.ids) > MANY_CHUNKS * few:
        warn(
            f"keep=Zarr: a chunk has {few} of {len(run.ids)} chains, which makes very many small files: "
            f"it holds chains of one batch, and the batches (batch={run.batch}, pilot={run.pilot}) end "
            f"at multiples of {few} alone. Give batch= and Warmup(pilot=) multiples of 256"
        )
    file = None if saved is None else saved.file
    if share.first:
        waits = file is not None and file.exists() and not asked.folder.exists()
        known = awaited_store(file, schedule.kept_before) if file is not None and waits else None
        store = Store(asked, contents, sizes, file, known, share.once, share.leads)
        share.publish("store", {"id": torch.tensor(list(bytes.fromhex(store.id)))})
        return store
    known = bytes(share.fetch("store")["id"].tolist()).hex()
    return Store(asked, contents, sizes, file, known, share.once, share.leads)


def finish(store: Store, draws: Draws, share: Share) -> None:
    """Say in the store that its run is over, with what its arrays do not hold."""
    tuned = {f"tuned/{name}": value for name, value in draws.tuned.items()}
    outcome = {"final": draws.final, **tuned}
    share.once("outcome", lambda: store.finish(outcome, draws.cost))
