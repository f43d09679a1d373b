"""The laws of a solver, each a function of a solver that raises `Violation`.

The docstring of a law is the law in words, as reports show it. Statistical laws have a false-alarm
rate of 1e-6 each, and fixed seeds: what passes once passes always.
"""

from __future__ import annotations

import copy
import math
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretk.conformance.bench import Watched, bench_for, steep_for
from scoretk.conformance.subject import NotApplicable, demand
from scoretk.core.noise import Noise
from scoretk.core.rows import finite_rows
from scoretk.errors import Status
from scoretk.fields.protocols import CAPABILITIES, is_timed
from scoretk.fields.resolve import resolve
from scoretk.inference.sampling import sample
from scoretk.plugins.solvers import SOLVER_PROTOCOL
from scoretk.run.draws import Draws
from scoretk.solvers.base import DRIVERS, adapts, is_grid, traits

__all__ = ["SOLVER_LAWS", "SolverLaw"]

SolverLaw = Callable[[Any], None]

FALSE_ALARM = 1e-6
MANY, MOVES = 20_000, 4
"""How many chains, and steps of each, invariance is judged by."""
FEW, STEPS, WARMUP = 16, 6, 8
EDGE = 0.8
"""The edge of watched fields: a fifth of N(0, 1) lies beyond it, and one of two spin states."""


def protocol(solver: Any) -> None:
    """It has what every solver has, and says of itself what can be said"""
    for name in SOLVER_PROTOCOL:
        demand(hasattr(solver, name), f"it has no {name}")
    asks = ("energy", "score", "velocity", "denoise", "gibbs")
    demand(
        isinstance(solver.needs, frozenset) and bool(solver.needs),
        f"needs: {solver.needs!r} is no frozenset of names",
    )
    for name in sorted(solver.needs):
        demand(
            name in CAPABILITIES,
            f"needs: {name!r} is no capability of fields, which are {', '.join(CAPABILITIES)}",
        )
    demand(
        solver.timed in (True, False, None), f"timed: {solver.timed!r} is not True, False or None"
    )
    demand(
        isinstance(solver.capturable, bool),
        f"capturable: {solver.capturable!r} is not True or False",
    )
    for name in ("init_cost", "step_cost"):
        cost = getattr(solver, name)
        known = isinstance(cost, Mapping) and all(
            k in asks and type(n) is int and n >= 0 for k, n in cost.items()
        )
        demand(known, f"{name}: {cost!r} is no mapping of {', '.join(asks)} to whole numbers")
    said = traits(solver)
    demand(isinstance(said.exact, bool), f"exact: {said.exact!r} is not True or False")
    demand(said.temperature > 0, f"temperature: {said.temperature!r} is no positive number")
    demand(set(said.varying) <= set(asks), f"varying: {said.varying!r} is not of {', '.join(asks)}")


def tensors(solver: Any) -> None:
    """Its state is a NamedTuple of tensors with the position x, the same kind after each step"""
    for field, x in _starts(solver):
        noise, bound = _noise(FEW), _bound(field, solver)
        state = solver.init(bound, x, noise)
        kind = _kind(state)
        demand(
            tuple(state.x.shape[1:]) == tuple(field.event_shape),
            f"x has shape {tuple(state.x.shape)}",
        )
        for _ in range(_length(solver, bound, 2)):
            state, info = solver.step(bound, state, noise)
            demand(_kind(state) == kind, f"the state was {kind} and is {_kind(state)} after a step")
            demand(isinstance(info, dict), f"info is a {type(info).__name__}, no dict")
            for name, value in info.items():
                fits = isinstance(value, Tensor) and tuple(value.shape) == (FEW,)
                demand(fits, f"info[{name!r}] is no tensor of shape (chains,)")


def unmutated(solver: Any) -> None:
    """Neither its start nor a state that it was given is changed"""
    for field, x in _starts(solver):
        noise, bound, before = _noise(FEW), _bound(field, solver), x.clone()
        state = solver.init(bound, x, noise)
        demand(torch.equal(x, before), "init changed its x")
        for _ in range(_length(solver, bound, 2)):
            was = [leaf.clone() for leaf in _leaves(state)]
            new, _ = solver.step(bound, state, noise)
            changed = [
                n
                for n, (a, b) in enumerate(zip(was, _leaves(state), strict=True))
                if not _same(a, b)
            ]
            demand(not changed, f"step changed the state that it was given: leaves {changed}")
            state = new


def quiet(solver: Any) -> None:
    """The global random generators are neither used nor set"""
    for field, x in _starts(solver):
        noise, bound = _noise(FEW), _bound(field, solver)
        with torch.random.fork_rng([]):
            before = _generators()
            state = solver.init(bound, x, noise)
            solver.step(bound, state, noise)
            after = _generators()
        demand(
            before == after,
            "a global random generator was used or set: take all noise from `noise`",
        )


def seeded(solver: Any) -> None:
    """The same seed gives the same draws, and its state is all that a step remembers"""
    for field, x in _starts(solver):
        ends = []
        fresh = copy.deepcopy(solver)
        for made, interrupted in ((solver, False), (fresh, False), (copy.deepcopy(solver), True)):
            bound, noise, used = _bound(field, solver), _noise(FEW), made
            state = used.init(bound, x, noise)
            for k in range(_length(solver, bound)):
                if interrupted and k:  # as after a resume: another object, the same state
                    used, noise = copy.deepcopy(solver), _noise(FEW)
                    state = pickle.loads(pickle.dumps(state))
                state, _ = used.step(bound, state, noise)
            ends.append(list(_leaves(state)))
        demand(_all_same(ends[0], ends[1]), "two runs of the same seed differ")
        demand(
            _all_same(ends[0], ends[2]),
            "a run that was taken up from its state differs: something else is remembered",
        )


def batched(solver: Any) -> None:
    """Chain c is the same chain, to the bit, whatever the batch"""
    size = max(4, traits(solver).island)
    for field in (*bench_for(solver), *steep_for(solver)):
        whole, parts = (_run(field, solver, chains=4 * size, batch=b) for b in (None, size))
        demand(
            _all_same([whole.x, whole.status], [parts.x, parts.status]),
            f"chains differ in batches of {size} and alone",
        )
        for name, value in whole.stats.items():
            demand(
                _same(value, parts.stats[name]), f"{name} differs in batches of {size} and alone"
            )


def flagged(solver: Any) -> None:
    """A chain that meets NaN is rejected or flagged.

    None goes on in a region where the field says nothing
    """
    for field in bench_for(solver, EDGE):
        size = max(16, traits(solver).island)
        rows = torch.arange(4 * size)
        draws = _run(field, solver, chains=4 * size, steps=16, cond={"row": rows})
        demand(bool(finite_rows(draws.final).all()), "a chain ends at NaN or infinity")
        known = draws.status == int(Status.OK)  # chains that are not flagged
        if "log_weight" in draws.stats:
            known &= draws.stats["log_weight"][:, -1] > -math.inf
        # on a timed field each answer counts; a kernel may evaluate the field beyond the edge and
        # reject, but not stay there (at its last point it may not have evaluated it yet)
        met = torch.isin(rows, torch.tensor(sorted(field.met), dtype=rows.dtype))
        lost = met if is_timed(field) else (draws.x[:, 1:-1].flatten(2)[..., 0] > EDGE).any(1)
        said = f"{int((lost & known).sum())} of {len(known)} chains were beyond the edge, where all is NaN"
        demand(not bool((lost & known).any()), f"{said}, and are not flagged")


def counted(solver: Any) -> None:
    """Evaluations are counted: what it declares and reports is what the field was asked, a row each"""
    for field, x in _starts(solver):
        noise, bound = _noise(FEW), _bound(field, solver)
        field.asked.clear()
        state = solver.init(bound, x, noise)
        _compare(field, "init", {name: FEW * n for name, n in solver.init_cost.items()})
        for _ in range(_length(solver, bound, 2)):
            field.asked.clear()
            state, info = solver.step(bound, state, noise)
            said = {name: FEW * n for name, n in solver.step_cost.items()}
            for name in traits(solver).varying if "evaluations" in info else ():
                said[name] = said.get(name, 0) + int(info["evaluations"].sum())
            _compare(field, "a step", said)
            reported, known = info.keys() - DRIVERS, {*traits(solver).reports}
            wrong = f"reports: {sorted(known)}, where a step reports {sorted(reported)}"
            demand(not known or known == reported, wrong)


def invariant(solver: Any) -> None:
    """Exact draws stay exact: a step leaves the target's law as it is"""
    said = traits(solver)
    if is_grid(solver) or solver.timed is True:
        raise NotApplicable("it ends: what leaves a law as it is can run for ever")
    if not said.exact or said.temperature != 1:
        raise NotApplicable(
            "it says of itself that it leaves the law by its step size, or has a temperature"
        )
    for field in bench_for(solver):
        tuned = _settled(field, solver)
        x = field.draw(MANY, _noise(MANY, seed=11)).double()
        draws = sample(
            field, tuned, init=x, steps=MOVES, warmup=0, seed=12, keep="last", progress=False
        )
        demand(
            bool(draws.ok.all()),
            f"{int((~draws.ok).sum())} of {MANY} chains failed on {_law(field)}",
        )
        demand(not torch.equal(draws.final, x), "no chain moves")
        gained = _features(field, draws.final) - _features(field, x)
        z = gained.mean(0) / (gained.std(0) / math.sqrt(MANY)).clamp(min=1e-300)
        worst = float(z.abs().max())
        limit = -NormalDist().inv_cdf(FALSE_ALARM / (2 * z.numel()))
        demand(
            worst < limit,
            f"after {MOVES} steps from exact draws of {_law(field)} a moment is {worst:.1f} "
            f"standard errors off, where {limit:.1f} has a chance of {FALSE_ALARM:g}",
        )


def foreseen(solver: Any) -> None:
    """What it says ahead of a step, so that this can be captured, makes the same step"""
    ahead = traits(solver).capturable_ahead
    if ahead is None:
        return
    for field, x in _starts(solver):
        noise, bound = _noise(FEW), _bound(field, solver)
        state = solver.init(bound, x, noise)
        kind_at = ahead(state)
        for k in range(_length(solver, bound)):
            kind, repeated = kind_at(k), ahead(state)(k)
            demand(
                kind == repeated and hash(kind) == hash(repeated),
                f"step {k} is of two kinds, as its kind, asked twice, is not equal to itself",
            )
            said, told = kind.step(bound, state, noise)
            state, info = solver.step(bound, state, noise)
            demand(
                _close(list(_leaves(said)), list(_leaves(state))) and told.keys() == info.keys(),
                f"step {k} is not the one that was said ahead",
            )


SOLVER_LAWS: tuple[SolverLaw, ...] = (
    protocol,
    tensors,
    unmutated,
    quiet,
    seeded,
    batched,
    flagged,
    counted,
    foreseen,
    invariant,
)


def _features(field: Watched, x: Tensor) -> Tensor:
    """Functions of x whose means a wrong kernel changes, `(n, features)`.

    They are first and second moments, products of coordinates, the energy, and waves.
    """
    flat = x.reshape(len(x), -1).double()
    pairs = [flat[:, i] * flat[:, j] for i in range(flat.shape[1]) for j in range(i + 1)]
    waves = [torch.cos(2 * flat.sum(1)), torch.sin(2 * flat[:, 0])]
    return torch.stack([*flat.unbind(1), *pairs, *waves, field.inner.energy(x)], 1)


def _settled(field: Watched, solver: Any) -> Any:
    """The solver with nothing left to tune, tuned by a run of its own where it must be."""
    if not adapts(solver):
        return solver
    if not callable(getattr(solver, "tuned_by", None)):
        raise NotApplicable("it tunes itself and cannot be given that back: give it its settings")
    return solver.tuned_by(_run(field, solver, chains=256, warmup=100))


def _starts(solver: Any) -> Iterator[tuple[Watched, Tensor]]:
    """Each field with a start for `FEW` chains, in float64."""
    for field in bench_for(solver):
        noise = _noise(FEW)
        x = (field.base if is_timed(field) else field).draw(FEW, noise).double()
        yield field, traits(solver).start(_bound(field, solver), x, noise)


def _run(
    field: Watched,
    solver: Any,
    *,
    chains: int,
    steps: int = STEPS,
    warmup: int = WARMUP,
    batch: int | None = None,
    cond: dict[str, Tensor] | None = None,
) -> Draws:
    own: dict[str, Any] = (
        {} if is_grid(solver) else {"steps": steps, "warmup": warmup if adapts(solver) else 0}
    )
    init = None if is_timed(field) else field.draw(chains, _noise(chains)).double()
    return sample(
        field,
        solver,
        chains=chains,
        init=init,
        seed=3,
        keep="all",
        batch=batch,
        cond=cond,
        dtype=torch.float64,
        progress=False,
        **own,
    )


def _bound(field: Watched, solver: Any) -> Any:
    return resolve(field, solver.needs, timed=solver.timed)


def _noise(chains: int, seed: int = 5) -> Any:
    return Noise(seed, chains, dtype=torch.float64)


def _length(solver: Any, bound: Any, most: int = STEPS) -> int:
    return min(most, len(solver.milestones(bound))) if is_grid(solver) else most


def _leaves(state: Any) -> Iterator[Tensor]:
    for value in state:
        if isinstance(value, Tensor):
            yield value
        else:
            yield from _leaves(value)


def _kind(state: Any) -> str:
    """The names, shapes and dtypes of the state's leaves, as text."""
    demand(
        isinstance(state, tuple) and hasattr(state, "_fields"),
        f"the state is a {type(state).__name__}, no NamedTuple",
    )
    demand("x" in state._fields, f"the state has no x, but {', '.join(state._fields)}")
    shared: frozenset[str] = getattr(state, "shared", frozenset())
    said = []
    for name, value in zip(state._fields, state, strict=True):
        for leaf in value if isinstance(value, tuple) else [value]:
            demand(
                isinstance(leaf, Tensor | tuple),
                f"the state's {name} is a {type(value).__name__}, no tensor",
            )
            if isinstance(leaf, Tensor):
                own = leaf.ndim == 0 or name in shared or len(leaf) == FEW
                demand(
                    own,
                    f"the state's {name} has shape {tuple(leaf.shape)}: chains on axis 0, no axis, "
                    f"or in `shared`",
                )
                said.append(f"{name} {tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}")
    return ", ".join(said)


def _compare(field: Watched, what: str, said: dict[str, int]) -> None:
    for name in sorted({*said, *field.asked}):
        asked, told = field.asked[name] / FEW, said.get(name, 0) / FEW
        demand(
            asked == told,
            f"{what} asked for {name} {asked:g} times a chain, and {told:g} are declared or "
            f"reported",
        )


def _same(a: Any, b: Any) -> bool:
    return a is b or (
        torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
    )


def _close(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        u.shape == v.shape and torch.allclose(u, v, equal_nan=True)
        for u, v in zip(a, b, strict=True)
    )


def _all_same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(map(_same, a, b))


def _generators() -> tuple[Any, ...]:
    return (
        torch.get_rng_state().numpy().tobytes(),
        pickle.dumps(np.random.get_state()),
        random.getstate(),
    )


def _law(field: Watched) -> str:
    return type(field.inner).__name__
