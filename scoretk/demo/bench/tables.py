"""Tables of benchmarks: which rows they have, and how a row is made.

A table is an entry of `TABLES`, a `scoretk.demo.bench.rows.Table`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scoretk.demo.bench.amortised import AMORTISED
from scoretk.demo.bench.evidence import SURPRISE, Evidence, evidence_of
from scoretk.demo.bench.few_steps import FEW_STEPS
from scoretk.demo.bench.inverse import (
    CONTESTANTS,
    PROBLEMS,
    Calibration,
    Distances,
    calibration,
    distances,
)
from scoretk.demo.bench.low_error import LOW, Plan, Reached, gradients_to_low_error, reached
from scoretk.demo.bench.mnist.table import MNIST
from scoretk.demo.bench.peers import PEERS, begun, serves
from scoretk.demo.bench.posteriordb import archived, target_of
from scoretk.demo.bench.published import COLUMNS
from scoretk.demo.bench.reference import CHAINS, Found, against_reference
from scoretk.demo.bench.rows import Asked, Measured, Row, Table
from scoretk.demo.bench.target import Target
from scoretk.errors import InvalidArgument, ScoretkError, UnknownName
from scoretk.plugins import load_solver
from scoretk.plugins.targets import BUILT_IN_TARGETS, load_target
from scoretk.solvers import HMC, MCLMC, NUTS, AdjustedMCLMC, ChEES

__all__ = ["TABLES"]

EVIDENCE_TARGETS = (
    "many-well",
    "funnel-10",
    "gaussians-25",
    "gaussians-40",
    "cox",
    "cox-whitened",
    "ising-8",
    "ising-16",
    "ising-16-warm",
    "ising-16-cold",
    "ising-24",
    "ising-32",
)
LOW_ERROR_TARGETS = tuple(name for name in BUILT_IN_TARGETS if name not in EVIDENCE_TARGETS)
QUICK_REFERENCE = ("mesquite-logmesquite", "sblrc-blr")
QUICK_EVIDENCE, METHODS = ("gaussians-25", "ising-8"), ("ais", "smc")
SEEDS, QUICK_SEEDS = 20, 2
"""How often log Z is found."""
LONG_SEEDS: Mapping[str, int] = MappingProxyType({"cox": 2, "cox-whitened": 2})
"""The same where a seed takes a quarter of an hour and more."""
INSTANCES, QUICK_PROBLEMS = 10, 2
"""How many inverse problems of a kind there are."""
SIMULATIONS, QUICK_SIMULATIONS = 200, 50
"""How many truths of the prior calibration is found by."""
NEAR = 1.5
"""How many times the distance of exact draws counts as right."""
QUICK_TARGETS, QUICK_SOLVERS = ("banana", "ill-conditioned"), ("mclmc", "chees-unscaled")
SOLVERS: dict[str, tuple[Any, int | None]] = {
    "mclmc": (MCLMC(), None),
    "mclmc-fisher": (MCLMC(metric="fisher"), None),
    "mclmc-fisher-coarse": (MCLMC(metric="fisher", energy_variance=1e-3), 300),
    "mclmc-unscaled": (MCLMC(metric="none"), None),
    "adjusted-mclmc": (AdjustedMCLMC(), None),
    "adjusted-mclmc-spread": (
        AdjustedMCLMC(leapfrogs=8, spread=5.0, accept=0.65, metric="none"),
        120,
    ),
    "adjusted-mclmc-leapfrog": (
        AdjustedMCLMC(leapfrogs=4, integrator="leapfrog", accept=0.92, metric="none"),
        120,
    ),
    "chees": (ChEES(), None),
    "chees-dense": (ChEES(metric="dense"), 150),
    "chees-fisher": (ChEES(metric="fisher"), 150),
    "chees-unscaled": (ChEES(metric="none"), 150),
    "hmc-fisher": (HMC(leapfrogs=18, metric="fisher"), 100),
    "nuts": (NUTS(), None),
}
"""The solvers of "low-error" and their steps of warmup, None for the default; others go by name."""
MOST_TUNING = 2000
"""Gradients of warmup a chain beyond which a row is not counted as reached."""
PATIENCE, UNKNOWN_BUDGET = 1.5, 1e6
"""A run is given up at so many times the best published number, or at a million gradients."""
COMPILED_FROM = 2.5e5
"""From what budget on steps are compiled, which takes minutes and makes gradients ten times faster."""


def low_error(asked: Asked) -> Iterator[Row]:
    """The rows of "low-error": targets by solvers."""
    targets = asked.targets or (QUICK_TARGETS if asked.quick else LOW_ERROR_TARGETS)
    solvers = asked.solvers or (QUICK_SOLVERS if asked.quick else (*SOLVERS, *PEERS))
    contestants = [(n, *((n, None) if n in PEERS else _contestant(n))) for n in solvers]
    for name in targets:
        try:
            target = _target(name, asked.data)
        except InvalidArgument as error:  # of its data: the others' rows are made all the same
            if asked.targets:
                raise
            yield _row(name, "", None, None, str(error))
            continue
        if target.moments is None:
            continue
        best = target.published.best
        budget = UNKNOWN_BUDGET if best is None else PATIENCE * best
        for label, solver, warmup in contestants:
            if label in PEERS and not serves(name):
                continue
            plan = Plan(warmup=warmup, budget=budget, seed=asked.seed, device=asked.device)
            try:
                if label in PEERS:
                    made = _by_peer(target, label, plan)
                else:
                    compiled = budget >= COMPILED_FROM and solver.capturable
                    made = gradients_to_low_error(target, solver, replace(plan, compile=compiled))
            except ScoretkError as error:
                yield _row(name, label, target, None, str(error))
            else:
                yield _row(name, label, target, made, _cause(target, made))


def _by_peer(target: Target, peer: str, plan: Plan) -> Reached:
    return reached(target, lambda: begun(peer, target.name, target.dim, plan), plan)


def evidence(asked: Asked) -> Iterator[Row]:
    """The rows of "evidence": targets by methods."""
    for name in asked.targets or (QUICK_EVIDENCE if asked.quick else EVIDENCE_TARGETS):
        seeds = QUICK_SEEDS if asked.quick else LONG_SEEDS.get(name, SEEDS)
        try:
            target = _target(name, asked.data)
        except InvalidArgument as error:  # of its data: the others' rows are made all the same
            if asked.targets:
                raise
            yield _evidence_row(name, "", None, None, str(error))
            continue
        if target.log_z is None:
            continue
        for label, base in _beginnings(target):
            for method in METHODS:
                solver = f"{method}{label}"
                if asked.solvers and solver not in asked.solvers:
                    continue
                try:
                    made = evidence_of(
                        target, method, seeds, asked.seed, base=base, device=asked.device
                    )
                except ScoretkError as error:
                    yield _evidence_row(name, solver, target, None, str(error))
                else:
                    yield _evidence_row(name, solver, target, made, _doubt(made))


def _beginnings(target: Target) -> tuple[tuple[str, Any], ...]:
    """Where annealing begins, and what that is called beside the method."""
    told = (("/base", target.base),) if target.base is not None else ()
    return (("", None), *told)


def _evidence_row(
    name: str, method: str, target: Target | None, made: Evidence | None, cause: str
) -> Row:
    return {
        "target": name,
        "solver": method,
        "log Z": None if target is None else _known(target),
        "found": None if made is None else Measured(made.value[0], made.stderr[0]),
        "seeds": None if made is None else len(made.z),
        "mean of z": None if made is None else f"{sum(made.z) / len(made.z):.2f}",
        "mean of z^2": None if made is None else f"{made.mean_square:.2f}",
        "evaluations": None if made is None else made.evaluations,
        "reached": "no" if cause else "yes",
        "cause": cause,
        "seconds": None if made is None else made.seconds,
    }


def _known(target: Target) -> str:
    if target.log_z_error:
        return f"{target.log_z:.1f} (the literature's)"
    return f"{target.log_z:.6f}"


def _doubt(made: Evidence) -> str:
    """Why evidence is not reached, empty where it is."""
    if made.trusted < len(made.z):
        return f"{len(made.z) - made.trusted} of {len(made.z)} are said not to be trusted"
    if not made.chance >= SURPRISE:
        return f"errors as large as these have a chance of {made.chance:.1g}"
    return ""


def posteriors(asked: Asked) -> Iterator[Row]:
    """The rows of "posteriors": inverse problems by methods; none where targets are asked for."""
    if asked.targets:
        return
    for problem in ("mixture-2",) if asked.quick else PROBLEMS:
        for name in CONTESTANTS:
            if not asked.solvers or name in asked.solvers:
                count = QUICK_PROBLEMS if asked.quick else INSTANCES
                started = time.perf_counter()
                made = distances(problem, name, count, asked.seed)
                seconds = (time.perf_counter() - started) / count
                truths = QUICK_SIMULATIONS if asked.quick else SIMULATIONS
                ranks = calibration(problem, name, truths, asked.seed)
                yield _posterior_row(problem, name, made, ranks, seconds)


def _posterior_row(
    problem: str, name: str, made: Distances, ranks: Calibration, seconds: float
) -> Row:
    mean, spread = (f(made.found) for f in (statistics.fmean, statistics.stdev))
    ratio = mean / statistics.fmean(made.floor)
    cause = _apart(ratio, ranks)
    return {
        "target": problem,
        "solver": name,
        "sliced W2": Measured(mean, spread / math.sqrt(len(made.found))),
        "floor": f"{statistics.fmean(made.floor):.3f}",
        "times the floor": f"{ratio:.2f}",
        "mean z^2 of log p(y)": f"{statistics.fmean(z**2 for z in made.z):.2f}" if made.z else None,
        "SBC, p": f"{ranks.sbc:.4f}",
        "TARP, p": f"{ranks.tarp:.4f}",
        "reached": "no" if cause else "yes",
        "cause": cause,
        "seconds": seconds,
    }


def _apart(ratio: float, ranks: Calibration) -> str:
    """Why a sampler of posteriors is not right, empty where nothing is seen."""
    causes = [f"more than {NEAR} times the floor"] if not ratio <= NEAR else []
    tests = {"SBC": ranks.sbc, "TARP": ranks.tarp}
    causes += [f"not calibrated by {n} (p {p:.1g})" for n, p in tests.items() if not p > SURPRISE]
    return "; ".join(causes)


def reference(asked: Asked) -> Iterator[Row]:
    """The rows of "reference": posteriors of the user's folder, and targets with reference draws."""
    found = tuple(name for name, one in archived(asked.data).items() if one.referenced)
    if not found and not asked.targets:
        wanted = "the folder of posteriordb, or of its files as .npz"
        error = InvalidArgument("data", asked.data, wanted, "Name it: scoretk bench --data FOLDER")
        yield _reference_row("posteriordb", "", None, str(error))
        return
    chosen = tuple(n for n in found if n in QUICK_REFERENCE) if asked.quick else found
    for name in asked.targets or chosen:
        for solver in asked.solvers or ("",):
            try:
                target = _target(name, asked.data)
                if target.reference is None:
                    break
                kernel = load_solver(solver) if solver else None
                made = against_reference(target, kernel, asked.seed)
            except ScoretkError as error:
                if asked.targets and isinstance(error, UnknownName):
                    raise
                yield _reference_row(name, solver, None, str(error))
            else:
                yield _reference_row(name, solver, made, made.cause)


def _reference_row(name: str, solver: str, made: Found | None, cause: str) -> Row:
    return {
        "target": name,
        "solver": solver or "default",
        "worst z": None if made is None else f"{made.agreement.z[0]:.2f} ({made.agreement.z[1]})",
        "worst z of squares": None
        if made is None
        else f"{made.agreement.spread[0]:.2f} ({made.agreement.spread[1]})",
        "ratio of deviations": None if made is None else f"{made.agreement.ratio:.3f}",
        "gradients a chain": None if made is None else made.gradients,
        "gradients an effective draw": None if made is None else f"{made.per_draw:.1f}",
        "verdict": None if made is None else ("not to be trusted" if made.problems else "clean"),
        "reached": "no" if cause else "yes",
        "cause": cause,
        "seconds": None if made is None else made.seconds,
    }


def _contestant(name: str) -> tuple[Any, int | None]:
    """A solver and its steps of warmup, by its name here or among solvers."""
    return SOLVERS[name] if name in SOLVERS else (load_solver(name), None)


def _target(name: str, data: Path | None) -> Target:
    """A target of the user's posteriordb, or a plugin."""
    found = archived(data)
    if name in found:
        return target_of(found[name])
    target = load_target(name, data)
    if not isinstance(target, Target):
        raise InvalidArgument("target", target, f"a scoretk.demo.bench.Target from {name!r}")
    return target


def _row(name: str, solver: str, target: Target | None, made: Reached | None, cause: str) -> Row:
    published: Mapping[str, float | None] = {} if target is None else target.published.values
    return {
        "target": name,
        "solver": solver,
        "gradients": None if made is None else Measured(made.worst.value, made.worst.stderr),
        "(mean over coordinates)": None
        if made is None
        else Measured(made.mean.value, made.mean.stderr),
        "tuning": None if made is None else made.tuning,
        "with tuning": None if made is None else made.worst.value + made.tuning,
        **{f"published: {column}": published.get(column) for column in COLUMNS},
        "reached": "yes" if made is not None and not cause else "no",
        "cause": cause,
        "seconds": None if made is None else made.seconds,
    }


def _cause(target: Target, made: Reached) -> str:
    """Why a row is not reached, empty where it is."""
    best, total = target.published.best, made.worst.value + made.tuning
    if made.failed:
        return f"{made.failed} chains failed"
    if not math.isfinite(total):
        return f"the median error is {made.last[0]:.2g} after {made.run:,.0f} gradients, not {LOW}"
    if made.tuning > MOST_TUNING:
        return f"more than {MOST_TUNING:,} gradients of tuning"
    if best is not None and total > best:
        return f"{total / best:.2f} times the best published number"
    return ""


TABLES: dict[str, Table] = {
    "low-error": Table(
        "Gradients to low error",
        "Gradients a chain until the median over 128 chains of max_i (mean x_i^2 - E x_i^2)^2 / "
        "Var x_i^2 stays below .01, with its standard error over bootstrapped chains; in the next "
        "column the mean over i in place of the largest. Tuning is what warmup took of each chain. "
        "Peers are other libraries' samplers with their own tuning, where they are installed. "
        "A row is reached where both together are at or below the best published number, which "
        f"leaves tuning out, with at most {MOST_TUNING:,} gradients of tuning.",
        low_error,
        anywhere=True,
    ),
    "evidence": Table(
        "Evidence",
        "log Z where it is known, by log_partition as it comes: that of the first seed with its "
        "standard error, and over seeds the errors z in their own standard errors, whose square is 1 "
        "in the mean where these are right. Evaluations are of gradients, or of energies where these are "
        "more, all chains together. ais/base and smc/base begin where the literature's methods do. "
        "A row is reached where every seed is trusted and the sum of "
        f"z^2 is no larger than chance makes it once in {1 / SURPRISE:,.0f} times.",
        evidence,
        anywhere=True,
    ),
    "posteriors": Table(
        "Posteriors of inverse problems",
        "The sliced Wasserstein distance between 1,024 draws and as many exact ones, the mean over "
        "problems with its standard error; the floor is that of other exact draws. Methods of "
        "guidance are sampled by 200 ancestral steps, twisted ones weigh 200 steps, and samplers that "
        "alternate make 40 turns of 5. z is the error "
        "of log p(y) in its own standard error. SBC and TARP are p-values of calibration: how often a "
        "sampler that is right has ranks as uneven, of truths among its draws. A row is reached where "
        f"the distance is at most {NEAR} times the floor and no p is {SURPRISE} or less.",
        posteriors,
    ),
    "reference": Table(
        "Reference posteriors",
        f"Posteriors of posteriordb by stk.sample(field) as it comes, {CHAINS} chains, in the "
        "parametrisation that one writes first. z are differences of means, and of mean squares about "
        "the reference's mean, in standard errors of both sides, the largest of all parameters; the "
        "ratio of standard deviations is the one farthest from 1. Gradients are those of warmup too. "
        "A row is reached where no z is larger than chance makes one of so many once in "
        f"{1 / SURPRISE:,.0f} times, and the verdict is clean.",
        reference,
    ),
    "mnist": MNIST,
    "few-steps": FEW_STEPS,
    "amortised": AMORTISED,
}
