"""`sample`: load the model, get the field that the solver needs, start, drive."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import torch
from einops import rearrange
from torch import Tensor

from scoretk.core.anatomy import (
    check_place,
    field_tensors,
    left_as_found,
    network_dtype,
    state_like,
    to_device,
    walk,
)
from scoretk.core.arguments import (
    a_row_each,
    conditions,
    count,
    flag,
    float_dtype,
    integer,
    option,
    tensor_like,
)
from scoretk.core.arguments import device as as_device
from scoretk.core.arrays import aligned
from scoretk.core.cost import Cost
from scoretk.core.devices import has_float64
from scoretk.core.identity import Identity, stable_text, tensor_digest, weights_digest
from scoretk.core.keywords import explained
from scoretk.core.locks import held, held_with_others
from scoretk.core.noise import Noise, derive
from scoretk.core.rows import across
from scoretk.core.streams import Stream
from scoretk.core.versions import versions
from scoretk.core.warned import warn
from scoretk.errors import InvalidArgument, UnknownName
from scoretk.fields.constrained import Constrained
from scoretk.fields.distribution import in_free_space
from scoretk.fields.protocols import field_name, is_field, is_timed, offers, optional
from scoretk.fields.resolve import StaticField, TimedField, resolve
from scoretk.fields.states import check_states, uniform_states
from scoretk.fields.variables import Derived, named
from scoretk.ode.registry import has_method
from scoretk.plugins import as_solver, find_model, load
from scoretk.plugins.solvers import check_attributes
from scoretk.run.batch import Batch
from scoretk.run.batches import Finished, run_batches
from scoretk.run.checkpoint import Checkpoint
from scoretk.run.draws import Draws
from scoretk.run.fits import Kept, check_fits
from scoretk.run.group import of_machine
from scoretk.run.ranks import Share, check_team, shared_call, shares, unshared
from scoretk.run.record import RECORDERS, Constraining, KeepAll, OfRows, Record, Recorder, Room
from scoretk.run.resume import Saving, awaited_store
from scoretk.run.schedule import Schedule
from scoretk.run.store import TRUTHS, Contents, Store, Streaming, Zarr, chains_a_chunk
from scoretk.run.stored import stored_draws
from scoretk.solvers import ChEES, GibbsWithGradients, ProbabilityFlow
from scoretk.solvers.base import Solver, Steps, adapts, is_grid, traits
from scoretk.solvers.warmup.plan import Warmup, planned

__all__ = ["sample"]

DEFAULT_CHAINS = 1024
DEFAULT_WARMUP = Warmup.steps
MOST_CHAINS = 2**32
SHARED_CHAINS, SHARED_BATCHES = 256, 64
"""Of batches that ranks share, by default: the fewest chains of one, and the most batches."""
FEW_CHAINS, MANY_CHUNKS = 16, 1000
"""Of a store: fewer chains a chunk are told where more chunks than that lie side by side."""
PATIENCE = 3.0
"""Seconds that a job of many waits for the one before, whose ranks need about two to see its end."""
STEPS_A_START = 1 << 16
"""Steps of the noise's START stream that an attempt at a start may take."""
CHUNK = 1 << 22
"""Of how many numbers of draws the variables are computed at a time."""
BY_CHAIN = "draws chains ... -> chains draws ..."


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
    model, origin = _model(field)
    solver = _default_solver(model) if solver is None else _named(solver)
    _check_temperature(model, solver)
    streamed, keep = _kept(keep, solver)
    option("on_failure", on_failure, ("flag", "raise"))
    _check_modes(grad=grad, compile=compile, checkpoint=checkpoint, streamed=streamed)
    solver = _by_adjoint(solver) if grad == "adjoint" else solver
    init = _by_name(model, init, chains) if isinstance(init, Mapping) else init
    place = _place(model, init, device, dtype)
    model = to_device(model, place.device) if isinstance(field, str) else model
    check_place(model, place.device)
    start = _start(model, init, place, chains)
    ids = _chains(chains, start)
    rows = _condition_rows(cond, len(ids), place)
    size = _default_batch(len(ids)) if batch is None else count("batch", batch, least=1)
    plan = _plan(solver, warmup)
    parts = _parts(ids, size, plan.pilot if adapts(solver) else 0)
    _check_pilot(parts, solver, start, rows)
    saved = checkpoint if isinstance(checkpoint, Checkpoint | None) else Checkpoint(checkpoint)
    _check_apart(saved, streamed)
    before = getattr(solver, "before", None)
    continues = 0 if before is None else before.continued_by(seed, _given(init))

    run = _Run(
        origin=stable_text(origin),
        model=model,
        solver=solver,
        ids=ids,
        seed=integer("seed", seed, below=2**64),
        continues=continues,
        start=start,
        rows=rows,
        place=place,
        lengths=(steps, None if warmup is None else plan.steps, thin),
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
        asked = saved is not None or shares()
        check_team(walk(model))
        identity = Identity(field=model, solver=solver) if asked else None
        call = {**settings, "on_failure": on_failure, "checkpoint": saved and str(saved.path)}
        call |= {} if streamed is None else {"store": str(streamed.path), "draws": streamed.draws}
        with shared_call(call, identity) as share:
            written = [saved.file] if saved is not None else []
            written += [streamed.folder] if streamed is not None else []
            _hold(written, share, ends)
            if streamed is not None:
                made_of = identity if saved is not None else None
                told = _told_to_a_store(settings, made_of)
                store = _store(run, streamed, parts, told, schedule, saved, share)
                run = replace(run, store=store)
                ends.callback(store.close)
                batches = [
                    replace(batch, recorder=run.recorder(part))
                    for batch, part in zip(batches, parts, strict=True)
                ]
            saving = None
            if saved is not None and identity is not None:
                # the weights are in the identity
                told = {name: value for name, value in settings.items() if name != "weights"}
                told |= {} if run.store is None else {"store": run.store.id}
                saving = Saving(saved, told, identity, extends=not is_grid(solver))
            done = run_batches(
                batches,
                solver,
                compiled=compile,
                recompute=grad == "checkpoint",
                on_failure=on_failure,
                saving=saving,
                progress=progress,
                share=share,
            )
            draws = _draws(run, parts, batches, done, settings)
            if run.store is not None:  # over for nobody before it can be loaded
                tuned = {f"tuned/{name}": value for name, value in draws.tuned.items()}
                outcome, store = {"final": draws.final, **tuned}, run.store
                share.once("outcome", lambda: store.finish(outcome, draws.cost))
            ends.close()
            if written:  # the next call may be one for the same paths
                share.meet("with its files closed")
    return draws


@dataclass(frozen=True)
class _Batch:
    """A batch of chains.

    Args:
        ids: The ids of its chains.
        returned: Which of its rows are asked for.
        given: Which rows of `init` and the conditions belong to these.
    """

    ids: range
    returned: slice
    given: slice


@dataclass(frozen=True)
class _Place:
    """The device and the dtype of the state."""

    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class _Run:
    """A run as it is asked for, with its arguments checked.

    Args:
        origin: Where the field came from.
        model: The field, in free space.
        solver: The solver.
        ids: The ids of the chains that are asked for.
        seed: The user's seed.
        continues: How many runs with this seed went before, whose noise is not read again.
        start: Where the chains start, in the space that the solver works in; None where nothing is
            given.
        rows: The conditions, one row a chain.
        place: The device and the dtype of the state.
        lengths: `steps`, `warmup` and `thin`, None where they are not given.
        keep: What is kept of the draws.
        batch: How many chains run together.
        pilot: How many chains tune the solver; None where nothing is tuned.
        compiled: Whether steps are compiled.
        room: The memory of the draws.
        streamed: Whether they go to a store instead.
        store: The store, as soon as it is known what goes there.
    """

    origin: str
    model: Any
    solver: Any
    ids: range
    seed: int
    continues: int
    start: Tensor | None
    rows: dict[str, Tensor]
    place: _Place
    lengths: tuple[int | None, int | None, int | None]
    keep: str
    batch: int
    pilot: int | None
    compiled: bool
    room: Room
    streamed: bool
    store: Store | None = None

    def bound(self, chains: slice) -> StaticField | TimedField:
        """The field, bound to the condition rows of some chains."""
        rows = {name: value[chains] for name, value in self.rows.items()}
        return resolve(self.model, self.solver.needs, rows, timed=self.solver.timed)

    def schedule(self) -> Schedule:
        """Which steps the run makes, and which it keeps."""
        return _schedule(self.solver, self.bound(slice(0, 1)), *self.lengths, self.keep)

    def batch_of(self, part: _Batch, schedule: Schedule) -> Batch:
        """A batch of chains, with the field bound to their rows."""
        seed = derive(self.seed, self.continues) if self.continues else self.seed
        noise = Noise(seed, part.ids, device=self.place.device, dtype=self.place.dtype)
        bound = self.bound(part.given)

        def begin_at(attempt: int = 0) -> Tensor:
            if self.start is not None:
                return _tracked(aligned(self.start[part.given]))
            drawn: Any = noise if attempt == 0 else Later(_step_by_step(noise), attempt)
            x = _initial(self.model, drawn, self.place, _spread(attempt))
            return _tracked(traits(self.solver).start(bound, x, drawn))

        if not part.ids[part.returned]:  # these only tune
            schedule = Schedule(schedule.warmup, schedule.warmup, schedule.thin)
        restart = begin_at if self.start is None and not is_timed(self.model) else None
        drawn = self.start is None
        return Batch(bound, noise, begin_at, schedule, self.recorder(part), restart, drawn)

    def recorder(self, part: _Batch) -> Recorder:
        """What keeps a batch's draws: in the user's space where the solver works in another."""
        kept: Recorder = RECORDERS[self.keep]
        if self.store is not None:
            kept = Streaming(self.store, part.given)
        elif self.keep == "all":
            kept = KeepAll(self.room, part.given)
        every = len(part.ids[part.returned]) == len(part.ids)
        recorder = kept if every else OfRows(kept, part.returned)
        constrain = optional(self.model, "constrain")
        return recorder if constrain is None else Constraining(recorder, constrain)

    def what_is_kept(self, schedule: Schedule) -> Kept:
        """What the run keeps, in numbers."""
        model, names = self.model, named(self.model)
        shape = optional(model, "constrained_shape") or _event_shape(model)
        final = math.prod(int(n) for n in shape)
        more = names.layout.size if isinstance(names, Derived) else 0
        draws, streamed = schedule.kept_before(schedule.total), self.streamed
        chains, place = len(self.ids), self.place
        numbers = final + more, final, len({*traits(self.solver).reports} - TRUTHS)
        return Kept(self.keep, chains, draws, *numbers, place.dtype, place.device, streamed)

    def settings(self, schedule: Schedule) -> dict[str, Any]:
        """What tells one run from another.

        A checkpoint is resumed only by a run with equal settings.
        """
        ids, place = self.ids, self.place
        told = {"pilot": self.pilot, "continues": self.continues or None}
        return {
            "model": self.origin,
            "exact_ends": (
                isinstance(self.model, Constrained) and self.model.log_density is not None
            ),
            "weights": weights_digest(field_tensors(self.model))[:16],
            "event_shape": list(_event_shape(self.model)),
            "solver": stable_text(repr(self.solver)),
            "chains": len(ids) if ids == range(len(ids)) else repr(ids),
            "seed": self.seed,
            "steps": schedule.total - schedule.warmup,
            "warmup": schedule.warmup,
            **{name: value for name, value in told.items() if value is not None},
            "thin": schedule.thin,
            "keep": f"{self.keep}, streamed" if self.streamed else self.keep,
            "batch": self.batch,
            "device": place.device.type,
            "dtype": str(place.dtype).removeprefix("torch."),
            "compile": self.compiled,
            "init": None if self.start is None else tensor_digest({"init": self.start})[:16],
            "cond": tensor_digest(self.rows)[:16] if self.rows else None,
            "torch_state": _torch_state(place.device.type),
            **versions(),
            "python": platform.python_version(),
        }


def _model(field: Any) -> tuple[Any, str]:
    """The field and where it came from."""
    if isinstance(field, str):
        return load(field), find_model(field).id
    if not is_field(field):
        resolve(field, ())  # raises, with the way to wrap it
    return in_free_space(field), field_name(field)


def _event_shape(model: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in model.event_shape)


def _check_temperature(model: Any, solver: Any) -> None:
    """Refuse a solver's temperature on a constrained field.

    As the solver works in free space, it would sample `(p(x) |dx/dz|)^(1/T)`.
    """
    if is_timed(model) or optional(model, "constrain") is None:
        return
    if traits(solver).temperature != 1:
        raise InvalidArgument(
            "solver",
            solver,
            "a solver that ends at temperature 1, as the field is sampled in free space",
            "Temper the field, in the user's space: scoretk.tempered(field, temperature)",
        )


def _default_solver(model: Any) -> Solver:
    if is_timed(model):
        return ProbabilityFlow()
    if "states" in offers(model) and "energy" in offers(model):
        return GibbsWithGradients()
    if "energy" in offers(model):
        return ChEES()
    if "score" not in offers(model):
        resolve(model, {"energy"})  # raises, with what it offers
    raise InvalidArgument(
        "solver",
        None,
        f"a solver: for {field_name(model)}, a score without an energy, none tunes itself",
        "Such as scoretk.ULA(step_size=0.01)",
    )


def _parts(ids: range, batch: int, tuning: int) -> list[_Batch]:
    """The batches of a run.

    Args:
        ids: The ids of the chains that are asked for.
        batch: How many chains a batch has.
        tuning: How many chains tune the solver: the first ones of the run, asked for or not.
    """
    parts, begun = [], 0
    if tuning:
        pilot = range(min(ids[-1] + 1, tuning))
        begun = len(range(ids.start, min(ids.stop, pilot.stop), ids.step))
        first = min(ids.start, pilot.stop)
        parts.append(
            _Batch(
                pilot,
                slice(first, first + (begun - 1) * ids.step + 1 if begun else first, ids.step),
                slice(0, begun),
            )
        )
    for i in range(begun, len(ids), batch):
        j = min(i + batch, len(ids))
        parts.append(_Batch(ids[i:j], slice(0, j - i), slice(i, j)))
    return parts


def _default_batch(chains: int) -> int:
    """How many chains run together where nobody says so: all, or enough batches for many ranks.

    However many ranks there are, since the last bits of matrix products depend on it. A multiple of
    the least, so that a store's chunks have so many chains.
    """
    return (
        max(1, -(-chains // (SHARED_CHAINS * SHARED_BATCHES))) * SHARED_CHAINS
        if shares()
        else chains
    )


def _plan(solver: Solver, warmup: int | Warmup | None) -> Warmup:
    """The plan of the warmup."""
    if isinstance(warmup, Warmup):
        return warmup
    if warmup is None:
        return planned(solver, DEFAULT_WARMUP if adapts(solver) else 0)
    if isinstance(warmup, Draws | Mapping):
        given = f"What was tuned is given to the solver: {type(solver).__name__}().tuned_by(draws)"
        raise InvalidArgument("warmup", warmup, "a number of steps, or a Warmup", given)
    return planned(solver, count("warmup", warmup))


def _check_pilot(
    parts: list[_Batch], solver: Solver, start: Tensor | None, rows: dict[str, Tensor]
) -> None:
    """Refuse `init` or `cond` where chains that are not asked for tune, and would need them too."""
    first = parts[0]
    if len(first.ids) == len(first.ids[first.returned]) or (start is None and not rows):
        return
    raise InvalidArgument(
        "init" if start is not None else "cond",
        start if start is not None else rows,
        f"none with chains that others tune for: {type(solver).__name__} is tuned by chains 0 to "
        f"{len(first.ids) - 1}",
        "Give the rows of all, with chains from 0 on, or the solver its step_size (and length) and "
        "metric='none'",
    )


def _kept(keep: Any, solver: Solver) -> tuple[Zarr | None, str]:
    """The store that draws go to, or None, and what is kept of them."""
    streamed = keep if isinstance(keep, Zarr) else None
    asked = keep.keep if isinstance(keep, Zarr) else keep
    asked = ("last" if is_grid(solver) else "all") if asked is None else asked
    if isinstance(asked, str | os.PathLike) and os.fsdecode(asked).endswith(".zarr"):
        hint = f"A store is keep=scoretk.Zarr({os.fsdecode(asked)!r})"
        raise InvalidArgument("keep", asked, f"one of {', '.join(RECORDERS)}", hint)
    return streamed, option("keep", asked, RECORDERS)


def _check_apart(saved: Checkpoint | None, streamed: Zarr | None) -> None:
    """Refuse a checkpoint at the place of the store, or in it."""
    if saved is None or streamed is None:
        return
    file, folder = (Path(os.path.realpath(path)) for path in (saved.file, streamed.folder))
    if file.is_relative_to(folder):
        raise InvalidArgument(
            "checkpoint", str(saved.path), f"a path outside of the store {streamed.folder}"
        )


def _hold(paths: list[Path], share: Share, ends: ExitStack) -> None:
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


def _told_to_a_store(settings: dict[str, Any], identity: Identity | None) -> dict[str, Any]:
    """What a store says of its run, by which it is known where no checkpoint knows it.

    Settings do not tell fields apart whose code differs: without an identity, that of a run with a
    checkpoint, a store is nobody's to begin anew in.
    """
    told = {name: value for name, value in settings.items() if name != "steps"}
    made_of = None if identity is None else identity.summary()["digest"]
    return told | {"what field and solver are made of": made_of}


def _store(
    run: _Run,
    asked: Zarr,
    parts: list[_Batch],
    told: dict[str, Any],
    schedule: Schedule,
    saved: Checkpoint | None,
    share: Share,
) -> Store:
    """The store of a run with this schedule, which the first of its processes looks for."""
    names = named(run.model)
    contents = Contents(
        run.ids,
        schedule.kept_before(schedule.total),
        None if names is None else names.layout,
        names.values if isinstance(names, Derived) else None,
        told,
        run.settings(schedule),
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


def _check_modes(
    *, grad: bool | str, compile: bool, checkpoint: object, streamed: Zarr | None
) -> None:
    flag("compile", compile)
    if not isinstance(grad, bool) and not (
        isinstance(grad, str) and grad in ("checkpoint", "adjoint")
    ):
        raise InvalidArgument("grad", grad, "True, False, 'checkpoint' or 'adjoint'")
    if grad and (compile or checkpoint is not None):
        raise InvalidArgument(
            "grad", grad, "grad=False together with compile or checkpoint: neither keeps a graph"
        )
    if grad and streamed is not None:
        raise InvalidArgument("grad", grad, "grad=False where draws go to a store, without a graph")


def _by_adjoint(solver: Solver) -> Solver:
    with_adjoint = traits(solver).with_adjoint
    if with_adjoint is not None:
        adjoint: Solver = with_adjoint()
        return adjoint
    raise InvalidArgument(
        "grad",
        "adjoint",
        f"True or 'checkpoint' with {solver!r}: its steps are the map to be differentiated",
        "The adjoint equation is that of an ODE solved to a tolerance: ProbabilityFlow('dopri5') "
        "and its like",
    )


def _place(model: Any, init: object, device: Any, dtype: Any) -> _Place:
    """Device and dtype of the state.

    As asked, else as `init`, else as the model, else torch's defaults; the dtype of a network's
    parameters goes before that of `init`, which is cast.
    """
    hints = ([init] if isinstance(init, Tensor) else []) + state_like(model)
    found = as_device(
        "device", device if device is not None else (hints[0].device if hints else "cpu")
    )
    usable = (torch.float32, torch.float64)
    if dtype is None:
        dtype = network_dtype(model)
    if dtype is None:
        kinds = [t.dtype for t in hints if t.dtype in usable]
        dtype = kinds[0] if kinds else (torch.get_default_dtype() if not hints else torch.float32)
        dtype = dtype if has_float64(found.type) else torch.float32
    advice = "The network may compute in a lower precision; a chain's state stalls in it"
    if float_dtype("dtype", dtype, advice) == torch.float64 and not has_float64(found.type):
        raise InvalidArgument("dtype", dtype, f"torch.float32: {found.type} has no float64")
    return _Place(found, dtype)


def _by_name(model: Any, init: Mapping[str, Tensor], chains: int | range | None) -> Tensor:
    """Where the chains start, in the space of draws, from values by name."""
    names = named(model)
    if names is None:
        hint = "Names: scoretk.Energy(fn, variables={...})"
        raise InvalidArgument("init", init, "a tensor: the field has no named variables", hint)
    if is_timed(model):
        raise InvalidArgument(
            "init", init, "a tensor of latents, from which a field in time starts"
        )
    for name, shape in names.layout.shapes.items():
        if name in init:
            a_row_each(f"init[{name!r}]", init[name], shape, _how_many(chains))
    return names.point(init)


def _how_many(chains: int | range | None) -> int | None:
    """How many chains are asked for, where that is said."""
    return len(chains) if isinstance(chains, range) else chains


def _start(
    model: Any, init: Tensor | None, place: _Place, chains: int | range | None
) -> Tensor | None:
    """Where the user wants the chains to start, in the space that the solver works in."""
    if init is None:
        return None
    # a flow starts from latents, which are in its own space
    free = is_timed(model) or optional(model, "unconstrain") is None
    shape = _event_shape(model) if free else tuple(model.constrained_shape)
    a_row_each("init", init, shape, _how_many(chains))
    given = tensor_like("init", init, (None, *shape)).to(place.device, place.dtype)
    if free:
        return given
    return tensor_like("init", model.unconstrain(given), (None, *_event_shape(model)))


def _named(solver: Any) -> Solver:
    """The solver of an argument; of an ODE method's name it is said which solver has it."""
    try:
        found: Solver = as_solver("solver", solver)
    except UnknownName as error:
        if not has_method(error.name):
            raise
        hint = f"It is a method: ProbabilityFlow({error.name!r})"
        raise UnknownName("solver", error.name, error.known, hint) from error
    check_attributes("solver", found)
    return found


def _given(init: Any) -> Tensor | None:
    """Where the user wants the chains to start, in the user's space."""
    return None if init is None else torch.as_tensor(init)


def _chains(chains: int | range | None, start: Tensor | None) -> range:
    """The ids of the chains."""
    if isinstance(chains, range):
        if not chains or chains.step < 0 or chains.start < 0 or chains[-1] >= MOST_CHAINS:
            raise InvalidArgument(
                "chains", chains, "a rising range of ids in [0, 2**32), not empty"
            )
        ids = chains
    elif chains is None:
        ids = range(DEFAULT_CHAINS if start is None else len(start))
    else:
        ids = range(integer("chains", chains, 1, MOST_CHAINS))
    if not ids:
        raise InvalidArgument("init", start, "at least one row")
    if start is not None and len(start) != len(ids):
        raise InvalidArgument(
            "init",
            start,
            f"one row a chain, {len(ids)} rows for chains={chains}",
            "One for all chains: init.expand(chains, ...)" if len(start) == 1 else "",
        )
    return ids


def _condition_rows(
    cond: Mapping[str, Tensor] | None, chains: int, place: _Place
) -> dict[str, Tensor]:
    rows = {}
    for name, value in conditions(cond, chains).items():
        rows[name] = value.to(
            place.device, place.dtype if value.is_floating_point() else value.dtype
        )
    return rows


@dataclass(frozen=True)
class Later:
    """The noise of chains for another attempt at a start, from steps of its own."""

    noise: Noise
    attempt: int

    @property
    def chains(self) -> Tensor:
        return self.noise.chains

    def _step(self, step: int | Tensor) -> int | Tensor:
        return self.attempt * STEPS_A_START + step

    def normal(
        self, step: int | Tensor, stream: int, shape: tuple[int, ...], dtype: Any = None
    ) -> Tensor:
        """As `Noise.normal`, of the attempt's own steps."""
        return self.noise.normal(self._step(step), stream, shape, dtype)

    def uniform(
        self, step: int | Tensor, stream: int, shape: tuple[int, ...], dtype: Any = None
    ) -> Tensor:
        """As `Noise.uniform`."""
        return self.noise.uniform(self._step(step), stream, shape, dtype)

    def rademacher(
        self, step: int | Tensor, stream: int, shape: tuple[int, ...], dtype: Any = None
    ) -> Tensor:
        """As `Noise.rademacher`."""
        return self.noise.rademacher(self._step(step), stream, shape, dtype)


def _step_by_step(noise: Noise) -> Noise:
    """The same noise, made for one step at a time: attempts are far apart."""
    own = noise.select(slice(None))
    own.window = 1
    return own


def _spread(attempt: int) -> float:
    """The standard deviation of an attempt at a start: 1, 1/2, 2, 1/4, 4, ..., 2^-8, 2^8, 1, ..."""
    power = (attempt % 17 + 1) // 2
    return 2.0 ** (power if attempt % 17 % 2 == 0 else -power)


def _tracked(x: Tensor) -> Tensor:
    """The start, requiring gradients where autograd is on.

    The score of an energy is differentiable only where its x requires gradients.
    """
    return x.detach().requires_grad_() if torch.is_grad_enabled() and not x.requires_grad else x


def _initial(model: Any, noise: Noise | Later, place: _Place, spread: float = 1.0) -> Tensor:
    """Where chains without `init` start, `(chains, *event_shape)`.

    `spread` is the standard deviation of a start from normals.
    """
    x: Tensor
    n, shape = len(noise.chains), _event_shape(model)
    if is_timed(model):
        base = optional(model, "base")
        if base is None:
            raise InvalidArgument(
                "init", None, f"a start: {field_name(model)} is a timed field without a base"
            )
        x = base.draw(n, noise)
    elif callable(optional(model, "initial")):
        x = model.initial(n, noise)
    elif "states" in offers(model):
        x = uniform_states(check_states(model.states, shape), shape, noise)
    else:
        x = noise.normal(0, Stream.START, shape, place.dtype)
        x = x if spread == 1 else spread * x
    if x.shape != (n, *shape):
        raise InvalidArgument("init", x, f"shape {(n, *shape)} from the field's own start")
    return x.to(place.device, place.dtype)


def _schedule(
    solver: Any,
    bound: StaticField | TimedField,
    steps: int | None,
    warmup: int | None,
    thin: int | None,
    keep: str,
) -> Schedule:
    if is_grid(solver):
        for name, value in (("steps", steps), ("warmup", warmup), ("thin", thin)):
            if value is not None:
                raise InvalidArgument(
                    name,
                    value,
                    f"nothing: {type(solver).__name__} carries its own grid",
                    f"Set it on the solver, or leave {name} out",
                )
        milestones = tuple(solver.milestones(bound))
        last = (False,) * (len(milestones) - 1) + (True,)
        return Schedule(
            len(milestones), kept=last if keep == "last" else milestones, milestones=milestones
        )
    n = 1000 if steps is None else count("steps", steps, least=1)
    tunes = adapts(solver)
    first = (DEFAULT_WARMUP if tunes else 0) if warmup is None else warmup
    if tunes and first == 0:
        raise InvalidArgument(
            "warmup",
            0,
            f"at least one step, in which {type(solver).__name__} tunes itself",
            "Or give the solver its step_size (and length) and metric='none'",
        )
    every = 1 if thin is None else count("thin", thin, least=1)
    if every > n:
        raise InvalidArgument("thin", every, f"at most steps = {n}, so that a draw is kept")
    if keep == "last":
        return Schedule(first + n, first, kept=(False,) * (first + n - 1) + (True,))
    return Schedule(first + n, first, every)


def _torch_state(device: str) -> dict[str, Any]:
    """The settings of torch that change what a model computes.

    (The number of threads changes the last bits only.)
    """
    half = torch.is_autocast_enabled(device) if torch.amp.is_autocast_available(device) else False
    return {
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "autocast": str(torch.get_autocast_dtype(device)).removeprefix("torch.") if half else None,
        "float32_matmul": torch.get_float32_matmul_precision(),
    }


def _draws(
    run: _Run,
    parts: list[_Batch],
    batches: list[Batch],
    done: list[Finished],
    settings: dict[str, Any],
) -> Draws:
    ids, solver, keep = run.ids, run.solver, run.keep
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
    asked = [
        (f, part.returned) for f, part in zip(done, parts, strict=True) if part.ids[part.returned]
    ]
    kept = batches[-1].schedule.kept_before(batches[-1].schedule.total)
    record = _whole(run, [f.record for f, _ in asked])
    joined, stats = (
        record.tensors,
        {
            name: rearrange(value, BY_CHAIN) if keep == "all" else value / kept
            for name, value in record.stats.items()
        },
    )
    common: dict[str, Any] = {
        "final": torch.cat([f.final for f, _ in asked]),
        "status": torch.cat([f.status[rows] for f, rows in asked]),
        "failed_at": torch.cat([f.failed_at[rows] for f, rows in asked]),
        "cost": Cost(cost),
        "provenance": settings,
        "tuned": done[0].tuned,
        "chains": torch.arange(ids.start, ids.stop, ids.step),
    }
    if run.store is not None:
        return stored_draws(run.store, **common)
    x = rearrange(joined["x"], BY_CHAIN) if "x" in joined else None
    return Draws(
        x=x,  # type: ignore[arg-type]  # None where moments were kept
        stats=stats,
        **(common | _moments(joined, kept)),
        **_variables(run.model, x),
    )


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


def _whole(run: _Run, records: list[Record]) -> Record:
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
    """What draws say of named variables; the values of those that x does not hold itself."""
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
