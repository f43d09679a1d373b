"""The arguments of `sample`, checked: field, solver, chains and their batches, place, start, conditions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from scoretk.core.devices import has_float64
from scoretk.core.modules import network_dtype, state_like
from scoretk.errors import InvalidArgument, UnknownName
from scoretk.fields.distribution import in_free_space
from scoretk.fields.protocols import field_name, is_field, is_timed, offers, optional
from scoretk.fields.resolve import resolve
from scoretk.fields.variables import named
from scoretk.ode.registry import has_method
from scoretk.plugins import as_solver, find_model, find_solver, load
from scoretk.plugins.catalog import BUILT_IN
from scoretk.plugins.solvers import check_attributes
from scoretk.run.checkpoint import Checkpoint
from scoretk.run.draws import Draws
from scoretk.run.ranks import shares
from scoretk.run.record import RECORDERS
from scoretk.run.store import Zarr
from scoretk.solvers import ChEES, GibbsWithGradients, ProbabilityFlow
from scoretk.solvers.base import Solver, adapts, is_grid, traits
from scoretk.solvers.warmup.plan import Warmup, planned

__all__ = [
    "BatchAsked",
    "StatePlace",
    "batches_asked",
    "by_adjoint",
    "chain_ids",
    "check_apart",
    "check_modes",
    "check_pilot",
    "check_temperature",
    "condition_rows",
    "default_batch",
    "default_solver",
    "event_shape_of",
    "free_start",
    "keep_asked",
    "loaded_model",
    "named_solver",
    "packages_of",
    "place_of",
    "start_by_name",
    "warmup_plan",
]

DEFAULT_CHAINS = 1024
DEFAULT_WARMUP = Warmup.steps
MOST_CHAINS = 2**32
SHARED_CHAINS, SHARED_BATCHES = 256, 64
"""Of batches that ranks share, by default: the fewest chains of one, and the most batches."""


@dataclass(frozen=True)
class BatchAsked:
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
class StatePlace:
    """The device and the dtype of the state."""

    device: torch.device
    dtype: torch.dtype


def loaded_model(field: Any) -> tuple[Any, str]:
    """The field and where it came from."""
    if isinstance(field, str):
        return load(field), find_model(field).id
    if not is_field(field):
        resolve(field, ())  # raises, with the way to wrap it
    return in_free_space(field), field_name(field)


def packages_of(field: Any, solver: Any) -> dict[str, str]:
    """The versions of the other packages whose plugins are asked for by name."""
    asked = ((find_model, field), (find_solver, solver))
    entries = [find(name) for find, name in asked if isinstance(name, str)]
    return {e.distribution: e.version for e in entries if e.distribution != BUILT_IN}


def event_shape_of(model: Any) -> tuple[int, ...]:
    """The shape of one position of a field, as whole numbers."""
    return tuple(int(n) for n in model.event_shape)


def check_temperature(model: Any, solver: Any) -> None:
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


def default_solver(model: Any) -> Solver:
    """The default solver of a field."""
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


def named_solver(solver: Any) -> Solver:
    """The solver that an argument means; for an ODE method's name the error names its solver."""
    try:
        found: Solver = as_solver("solver", solver)
    except UnknownName as error:
        if not has_method(error.name):
            raise
        hint = f"It is a method: ProbabilityFlow({error.name!r})"
        raise UnknownName("solver", error.name, error.known, hint) from error
    check_attributes("solver", found)
    return found


def chain_ids(chains: int | range | None, start: Tensor | None) -> range:
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


def _how_many(chains: int | range | None) -> int | None:
    """The number of chains, None where it is not given."""
    return len(chains) if isinstance(chains, range) else chains


def batches_asked(ids: range, batch: int, tuning: int) -> list[BatchAsked]:
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
            BatchAsked(
                pilot,
                slice(first, first + (begun - 1) * ids.step + 1 if begun else first, ids.step),
                slice(0, begun),
            )
        )
    for i in range(begun, len(ids), batch):
        j = min(i + batch, len(ids))
        parts.append(BatchAsked(ids[i:j], slice(0, j - i), slice(i, j)))
    return parts


def default_batch(chains: int) -> int:
    """The default of `batch`: all chains, or enough batches for many ranks.

    However many ranks there are, since the last bits of matrix products depend on it. A multiple of
    the least, so that a store's chunks have so many chains.
    """
    if shares():
        return max(1, -(-chains // (SHARED_CHAINS * SHARED_BATCHES))) * SHARED_CHAINS
    return chains


def warmup_plan(solver: Solver, warmup: int | Warmup | None) -> Warmup:
    """The plan of the warmup."""
    if isinstance(warmup, Warmup):
        return warmup
    if warmup is None:
        return planned(solver, DEFAULT_WARMUP if adapts(solver) else 0)
    if isinstance(warmup, Draws | Mapping):
        given = f"What was tuned is given to the solver: {type(solver).__name__}().tuned_by(draws)"
        raise InvalidArgument("warmup", warmup, "a number of steps, or a Warmup", given)
    return planned(solver, count("warmup", warmup))


def check_pilot(
    parts: list[BatchAsked], solver: Solver, start: Tensor | None, rows: dict[str, Tensor]
) -> None:
    """Refuse `init` or `cond` where chains that are not asked for tune: their rows are missing."""
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


def keep_asked(keep: Any, solver: Solver) -> tuple[Zarr | None, str]:
    """The store that draws go to, or None; and which draws are kept."""
    streamed = keep if isinstance(keep, Zarr) else None
    asked = keep.keep if isinstance(keep, Zarr) else keep
    asked = ("last" if is_grid(solver) else "all") if asked is None else asked
    if isinstance(asked, str | os.PathLike) and os.fsdecode(asked).endswith(".zarr"):
        hint = f"A store is keep=scoretk.Zarr({os.fsdecode(asked)!r})"
        raise InvalidArgument("keep", asked, f"one of {', '.join(RECORDERS)}", hint)
    return streamed, option("keep", asked, RECORDERS)


def check_apart(saved: Checkpoint | None, streamed: Zarr | None) -> None:
    """Refuse a checkpoint at the place of the store, or in it."""
    if saved is None or streamed is None:
        return
    file, folder = (Path(os.path.realpath(path)) for path in (saved.file, streamed.folder))
    if file.is_relative_to(folder):
        raise InvalidArgument(
            "checkpoint", str(saved.path), f"a path outside of the store {streamed.folder}"
        )


def check_modes(
    *, grad: bool | str, compile: bool, checkpoint: object, streamed: Zarr | None
) -> None:
    """Refuse gradients together with what keeps no graph."""
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


def by_adjoint(solver: Solver) -> Solver:
    """The solver with gradients by the adjoint equation."""
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


def place_of(
    model: Any, init: object, device: torch.device | str | None, dtype: torch.dtype | None
) -> StatePlace:
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
    return StatePlace(found, dtype)


def start_by_name(model: Any, init: Mapping[str, Tensor], chains: int | range | None) -> Tensor:
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


def free_start(
    model: Any, init: Tensor | None, place: StatePlace, chains: int | range | None
) -> Tensor | None:
    """Where the user wants the chains to start, in the space that the solver works in."""
    if init is None:
        return None
    # a flow starts from latents, which are in its own space
    free = is_timed(model) or optional(model, "unconstrain") is None
    shape = event_shape_of(model) if free else tuple(model.constrained_shape)
    a_row_each("init", init, shape, _how_many(chains))
    given = tensor_like("init", init, (None, *shape)).to(place.device, place.dtype)
    if free:
        return given
    return tensor_like("init", model.unconstrain(given), (None, *event_shape_of(model)))


def condition_rows(
    cond: Mapping[str, Tensor] | None, chains: int, place: StatePlace
) -> dict[str, Tensor]:
    """The conditions on the state's device, floating-point ones in its dtype."""
    rows = {}
    for name, value in conditions(cond, chains).items():
        rows[name] = value.to(
            place.device, place.dtype if value.is_floating_point() else value.dtype
        )
    return rows
