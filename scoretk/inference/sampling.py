"""`sample`: check what is asked for, run the batches, hand back the draws."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from scoretk.core.anatomy import walk
from scoretk.core.arguments import count, integer, option
from scoretk.core.identity import Identity, stable_text
from scoretk.core.keywords import explained
from scoretk.core.modules import check_place, left_as_found, to_device
from scoretk.inference.asked import (
    batches_asked,
    by_adjoint,
    chain_ids,
    check_apart,
    check_modes,
    check_pilot,
    check_temperature,
    condition_rows,
    default_batch,
    default_solver,
    free_start,
    keep_asked,
    loaded_model,
    named_solver,
    packages_of,
    place_of,
    start_by_name,
    warmup_plan,
)
from scoretk.inference.outcome import draws_of
from scoretk.inference.planned import PlannedRun
from scoretk.inference.storing import finish, hold, opened_store, saving_of
from scoretk.run.batches import run_batches
from scoretk.run.checkpoint import Checkpoint
from scoretk.run.draws import Draws
from scoretk.run.fits import check_fits
from scoretk.run.group import of_machine
from scoretk.run.ranks import check_team, shared_call, shares, unshared
from scoretk.run.record import Room
from scoretk.run.store import Zarr
from scoretk.solvers.base import Steps, adapts, is_grid
from scoretk.solvers.warmup.plan import Warmup

__all__ = ["sample"]


@explained
def sample(
    field: Any,
    solver: Steps | str | None = None,
    chains: int | range | None = None,
    steps: int | None = None,
    warmup: int | Warmup | None = None,
    thin: int | None = None,
    seed: int = 0,
    init: Tensor | Mapping[str, Tensor] | None = None,
    cond: Mapping[str, Tensor] | None = None,
    keep: str | Zarr | None = None,
    grad: bool | str = False,
    batch: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    compile: bool = False,
    checkpoint: str | PathLike[str] | Checkpoint | None = None,
    progress: bool | None = None,
    on_failure: str = "flag",
) -> Draws:
    """Sample from a field with a solver.

    Chain c is the same chain whatever the batch, the chunking or the device, and after a resume:
    its noise is a pure function of the seed and its number. The model is left as found, and torch's
    global RNG is not touched.

    Args:
        field: A field, the name of a registered model, or a `torch.distributions.Distribution`,
            which is sampled in free space where it has a support.
        solver: Such as `HMC()`, `ULA(step_size=0.01)` or `ProbabilityFlow(steps=32)`; or the name
            of a registered one, "hmc" or "my-package/my-kernel", which means its class with the
            defaults. By default `ChEES()` for an energy, which tunes itself, `GibbsWithGradients()`
            for discrete states, and `ProbabilityFlow()` for a field in time.
        chains: How many, or which: `range(8, 16)` gives chains 8 to 15 of a run of 16. By default
            as many as `init` has rows, else 1024. Where warmup tunes the solver, the first chains
            of that run do (`Warmup.pilot`), in the range or not.
        steps: How many steps a kernel makes after warmup (default 1000). Solvers with a grid of
            their own take neither steps nor warmup nor thin.
        warmup: How many steps a kernel makes before, in which solvers that tune themselves do so: a
            number (default 500 for these, else 0), or a `Warmup`.
        thin: How many steps there are from one kept draw to the next (default 1): steps // thin
            draws are kept.
        seed: The seed of all random numbers, in [0, 2^64).
        init: Where the chains start, a row for each chain asked for, `(chains, *event_shape)`, for
            a `constrained` field in the user's space; of named variables also a dict, each
            `(chains, *shape)`. By default a timed field's `base`, a static field's own
            `initial(n, noise)`, else N(0, I), or uniform over its states. Chains that so get an infinite energy start again, up
            to 100 times, from N(0, s^2 I) of smaller and larger s; those that `init` starts there
            are flagged.
        cond: Condition values by name, one row a chain; they reach the model as keyword arguments.
        keep: "all" (kernels' default; for a grid the way as well), "last" (a grid's default) or
            "moments"; `scoretk.Zarr(path)` streams draws to the disk, from where they are read when
            they are asked for. What memory does not hold is refused.
        grad: Whether gradients flow through the run (from `init`, `cond` and the model's parameters
            to the draws), with what warmup learns held constant; "checkpoint" keeps the states only
            and computes each step again on the way back: the same gradients in less memory;
            "adjoint", for adaptive methods of
            `ProbabilityFlow`, keeps the ends of the grid's intervals only and solves the adjoint
            equation on the way back: the gradients to the solver's tolerance.
        batch: Chains at a time, for memory; the draws are the same. The chains that tune a solver,
            the pilot, run together. By default all; inside `distributed`, where ranks share the
            batches, at most 64 batches of at least 256 chains.
        device: Of the state; by default that of `init`, else of the model. A model given by its
            name goes there; the modules of any other field have to be there.
        dtype: Of the state, float32 or float64; by default that of the parameters of the field's
            networks, else of `init`, else of the model's other tensors. What is given is cast.
        compile: Whether to compile the step with torch.compile. Where the compiler cannot take the
            field (data-dependent control flow, a call to other libraries), a warning names the
            line, and the run goes on as without.
        checkpoint: A path, or a `Checkpoint`, to save the run to and to go on from.
        progress: True, False, or None for a progress line on a terminal or in a notebook.
        on_failure: "flag" marks failed chains in `draws.status`; "raise" stops with `ChainFailure`.

    Returns:
        The draws, with the status of each chain and what the solver reported.

    Raises:
        InvalidArgument: For wrong arguments.
        UnknownName: For the name of a model or solver that is not registered, or an unknown option.
        MissingCapability: Where the field lacks what the solver needs.
        CheckpointError: Where the checkpoint is damaged or another run's.
        OutputExists: Where there is a store at the path already, which is not to be taken up.
        StoreError: Where the store cannot be written or is another run's.
        Busy: Where another job writes to the checkpoint or the store.
        ChainFailure: Where a chain fails, with on_failure="raise".
    """
    model, origin = loaded_model(field)
    asked, solver = solver, default_solver(model) if solver is None else named_solver(solver)
    check_temperature(model, solver)
    streamed, keep = keep_asked(keep, solver)
    option("on_failure", on_failure, ("flag", "raise"))
    check_modes(grad=grad, compile=compile, checkpoint=checkpoint, streamed=streamed)
    solver = by_adjoint(solver) if grad == "adjoint" else solver
    init = start_by_name(model, init, chains) if isinstance(init, Mapping) else init
    place = place_of(model, init, device, dtype)
    model = to_device(model, place.device) if isinstance(field, str) else model
    check_place(model, place.device)
    start = free_start(model, init, place, chains)
    ids = chain_ids(chains, start)
    rows = condition_rows(cond, len(ids), place)
    size = default_batch(len(ids)) if batch is None else count("batch", batch, least=1)
    plan = warmup_plan(solver, warmup)
    parts = batches_asked(ids, size, plan.pilot if adapts(solver) else 0)
    check_pilot(parts, solver, start, rows)
    saved = checkpoint if isinstance(checkpoint, Checkpoint | None) else Checkpoint(checkpoint)
    check_apart(saved, streamed)
    before = getattr(solver, "before", None)
    continues = 0 if before is None else before.continued_by(seed, init)

    run = PlannedRun(
        origin=stable_text(origin),
        packages=packages_of(field, asked),
        model=model,
        solver=solver,
        ids=ids,
        seed=integer("seed", seed, below=2**64),
        continues=continues,
        start=start,
        rows=rows,
        place=place,
        lengths=(steps, None if warmup is None and is_grid(solver) else plan.steps, thin),
        keep=keep,
        batch=min(size, len(ids)),
        pilot=plan.pilot if adapts(solver) else None,
        compiled=compile,
        room=Room(len(ids)),
        streamed=streamed is not None,
    )

    own = unshared() if grad else nullcontext()  # a graph is a process's own
    with (
        left_as_found(model, bool(grad)),
        torch.set_grad_enabled(bool(grad)),
        own,
        ExitStack() as ends,
    ):
        schedule = run.schedule()
        # before there is memory for every chain
        check_fits(run.what_is_kept(schedule), of_machine() if shares() else 1)
        batches = [run.batch_of(part, schedule) for part in parts]
        settings = run.settings(schedule)
        check_team(walk(model))
        known = saved is not None or shares()
        identity = Identity(field=model, solver=solver) if known else None
        call = {**settings, "on_failure": on_failure, "checkpoint": saved and str(saved.path)}
        call |= {} if streamed is None else {"store": str(streamed.path), "draws": streamed.draws}
        with shared_call(call, identity) as share:
            written = [saved.file] if saved is not None else []
            written += [streamed.folder] if streamed is not None else []
            hold(written, share, ends)
            if streamed is not None:
                store = opened_store(run, streamed, parts, identity, schedule, saved, share)
                run = replace(run, store=store)
                ends.callback(store.close)
                batches = [
                    replace(batch, recorder=run.recorder(part))
                    for batch, part in zip(batches, parts, strict=True)
                ]
            done = run_batches(
                batches,
                solver,
                compiled=compile,
                recompute=grad == "checkpoint",
                on_failure=on_failure,
                saving=saving_of(run, settings, identity, saved),
                progress=progress,
                share=share,
            )
            draws = draws_of(run, parts, batches, done, settings)
            if run.store is not None:  # over for nobody before it can be loaded
                finish(run.store, draws, share)
            ends.close()
            if written:  # the next call may be one for the same paths
                share.meet("with its files closed")
    return draws
