r"""What is wrong with a run's draws, and the most likely fix, at a stated rate of false alarms.

All coordinates are judged, by the tests that `judging` applies to each.

Where the kernel reports an energy, that is judged as one coordinate more. So is, for states of two
values, the parity of the number of sites in the second one. On chains of one law that forget their
start each kind of test (drift, disagreement, memory, outlying chains, alternation) raises a finding
with probability `RATE` at most, over all coordinates and ways together (Bonferroni).

Reversible chains can have period two, but no other: the eigenvalues of their transitions are real,
and -1 is the only one besides 1 that does not decay. Samplers that are antithetic on purpose raise
no finding, as their alternation decays along the chain.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from scoretk.diagnostics.judging import (
    ATOM,
    COINCIDENCE,
    PLACE,
    RATE,
    SPREAD,
    TURN,
    VALUE,
    Array,
    Chains,
    judge,
    not_held,
)
from scoretk.diagnostics.mixing import z_limit
from scoretk.diagnostics.weights import kish, measured_alike, weights
from scoretk.errors import Status
from scoretk.solvers import SOLVERS, is_grid

__all__ = [
    "FEW_EFFECTIVE",
    "HIGH_R_HAT",
    "Finding",
    "Sampler",
    "broken",
    "different",
    "failures",
    "findings",
    "listed",
    "low_acceptance",
]

HIGH_R_HAT, FEW_R_HAT = 1.01, 1.1
"""R-hat is too large above the first where a test says that chains of one law would not have it,
and above the second where there are few effective draws.
"""
FEW_EFFECTIVE = 400
SPREAD_OF_EFFECTIVE = 6.0
"""The relative variance of an estimate of effective draws times their number, of independent draws.
"""
LOW_BFMI = 0.3
STRAY = 0.002
"""The share of trajectories that may diverge without a finding."""
LOW_ACCEPT, HIGH_ACCEPT = 0.1, 0.995
STILL, CROWD = 0.2, 5.0
"""The share of a run for which a chain must stand still to be a finding; and by how many standard
deviations more chains than by chance must never move.
"""
FEW_WEIGHTS = 100
FEW_FAMILIES = 5
"""Of fewer families, with equal weights, an error is off by a factor of 1.5 more often than once in four times."""
DISCRETE = ("GibbsWithGradients", "DiscreteLangevin", "BlockGibbs", "SwendsenWang")


def counted(n: int, what: str) -> str:
    """A number of things, one of them in the singular."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def as_r_hat(value: float) -> str:
    """R-hat to three places, where it is near enough to 1 for them to say anything."""
    return f"{value:.3f}" if value < 100 else f"{value:.2g}"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Args:
        problem: What is wrong, with its numbers.
        fix: The most likely fix.
        kind: One word for the problem, such as "drift".
    """

    problem: str
    fix: str
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.problem}: {self.fix}"


@dataclass(frozen=True)
class Sampler:
    """The solver that made the draws, as far as its `repr` tells: its class, settings and kernel.

    Args:
        text: The `repr`, empty for a solver of which nothing is known.
    """

    text: str = ""

    @property
    def name(self) -> str:
        """The name of its class."""
        return self.text.split("(")[0]

    @property
    def settings(self) -> frozenset[str]:
        """The names of its own settings."""
        depth, names = 0, set[str]()
        for part in re.finditer(r"[(\[{]|[)\]}]|(\w+)=", self.text):
            depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(part.group(), 0)
            if part.group(1) and depth == 1:
                names.add(part.group(1))
        return frozenset(names)

    @property
    def kernel(self) -> Sampler:
        """The kernel inside it, where it has one."""
        found = re.search(r"\bkernel=(\w+\()", self.text)
        return Sampler(self.text[found.start(1) :]) if found else Sampler()

    @property
    def independent(self) -> bool:
        """Whether it carries its own grid, so that its draws are independent."""
        kind = next((kind for kind in SOLVERS.values() if kind.__name__ == self.name), None)
        return kind is not None and is_grid(kind)

    @property
    def discrete(self) -> bool | None:
        """Whether its states are discrete; None where that cannot be said."""
        if not self.text:
            return None
        return any(name in (self.name, self.kernel.name) for name in DISCRETE)

    @property
    def smaller_steps(self) -> str:
        """Advice for smaller steps, in terms of its settings."""
        if "step_size" in self.settings and "accept" in self.settings:
            return "a higher accept (.95) or a smaller step_size"
        if "step_size" in self.settings:
            return "a smaller step_size"
        if "step_size" in self.kernel.settings:
            return "a kernel with a smaller step_size"
        return "a smaller step size" if not self.text else "another solver"

    @property
    def finer(self) -> str:
        """Advice for a solver with a grid of its own to take smaller steps."""
        ways = [
            name
            for name in ("levels", "steps", "steps_per_level", "moves")
            if name in self.settings
        ]
        return f"more {' or '.join(ways)}" if ways else "a finer grid"

    @property
    def tempering(self) -> str:
        """Advice for what leads chains between modes."""
        if self.name == "ParallelTempering":
            return "more replicas, a hotter `hottest`, or more kernel_steps"
        if self.discrete:
            return "ParallelTempering(kernel=GibbsWithGradients()), or SMC with that kernel"
        return "ParallelTempering or SMC, or AnnealedLangevin where there is a score only"


def findings(
    x: Array,
    names: list[str],
    status: Tensor,
    failed_at: Tensor,
    stats: Mapping[str, Array],
    sampler: Sampler,
    exact_ends: bool = False,
) -> tuple[Finding, ...]:
    """The findings about the draws of the chains that did not fail.

    Args:
        x: Draws of these chains, `(chains, n, d)`.
        names: The d names of the coordinates.
        status: The `Status` code of all chains, the failed ones included.
        failed_at: The step at which each of all chains failed, or -1.
        stats: What the solver reported of the chains that are well, by name, `(chains, n)`.
        sampler: What made the draws.
        exact_ends: Whether x was made in finer coordinates and then rounded to its dtype: then
            equal values at an end of the range are rounding, and no mass is lost.
    """
    found = [*failures(status, failed_at, sampler)]
    if not x.size:
        return (
            *found,
            Finding("there are no draws to judge", "see above why the chains failed", "nothing"),
        )
    if sampler.independent:
        return (*found, *_independent(x, names, stats, sampler))
    if x.shape[1] < 4:
        found += broken(not_held(x), names)
        return (
            *found,
            Finding(
                f"{names[0]} cannot be judged, nor can others: {x.shape[1]} draws of a chain say "
                f"nothing about it",
                "keep at least four of each chain, with keep='all'",
                "unjudged",
            ),
        )
    own = judge(x, names, sampler.discrete)
    held = x[:, :, own.broken == 0] if own.broken.any() else x
    extra, extra_names = _extras(held, stats, sampler)
    others = [
        judge(value[:, :, None], [name], None)
        for name, value in zip(extra_names, extra, strict=True)
    ]
    all_judged = [own, *others]
    comparisons = 3 * sum(int(part.judged.sum()) for part in all_judged)
    found += broken(own.broken, names)
    if own.constant.all():
        found.append(
            Finding(
                f"{names[0]} cannot be judged: every coordinate is at one value in all draws",
                f"nothing has moved: use another start, or {sampler.smaller_steps}",
                "unjudged",
            )
        )
        return tuple(found)
    found += _movement(x, own, stats, sampler)
    found += _convergence(all_judged, z_limit(RATE, 2 * comparisons), sampler)
    found += _parity(extra_names, others)
    found += [] if exact_ends else _values(own, sampler)
    found += _copies(x, own)
    found += _few(own, bool(found), stats, sampler)
    found += _hamiltonian(x, names, stats, sampler)
    return tuple(found)


def _extras(
    x: Array, stats: Mapping[str, Array], sampler: Sampler
) -> tuple[list[Array], list[str]]:
    """What is judged besides the coordinates, `(chains, n)` each, with names."""
    values, names = [], []
    energy = stats.get("energy")
    if energy is not None and energy.ndim == 2 and np.isfinite(energy).all():
        values.append(energy)
        names.append("energy")
    if sampler.discrete is not False and x.shape[2] > 1:
        low, high = x[0].min(), x[0].max()
        if low < high and all(((chain == low) | (chain == high)).all() for chain in x):
            values.append(((x == high).sum(2) % 2).astype(np.float64))
            names.append("parity")
    return values, names


def failures(status: Tensor, failed_at: Tensor, sampler: Sampler) -> Iterator[Finding]:
    """Findings of chains that have failed, one for each kind of failure."""
    for code in Status:
        failed = status == int(code)
        if code is not Status.OK and bool(failed.any()):
            first = int(failed_at[failed].min())
            started = sampler.independent or bool((failed_at[failed] > 0).any())
            if code is Status.NONFINITE and not started:
                fix = "no finite start: check the energy at a point, or give a start, init="
            elif code is Status.MAX_STEPS:
                fix = "raise max_steps, or rtol and atol"
            else:
                steps = sampler.finer if sampler.independent else sampler.smaller_steps
                fix = f"use {steps}, float64, or a start inside the support"
            yield Finding(
                f"{int(failed.sum())} of {len(status)} chains are {code.name}, the first at step "
                f"{first}",
                f"they are left out here. {fix[0].upper()}{fix[1:]}",
                "failed",
            )


def broken(counts: Array, names: list[str], what: str = "draws") -> Iterator[Finding]:
    """The finding of numbers that are not finite, so many of each coordinate."""
    if counts.any():
        worst = int(counts.argmax())
        yield Finding(
            f"{int(counts.sum())} numbers among the {what} are not finite, or have squares that "
            f"are not, {int(counts[worst])} of them of {names[worst]}",
            "they are outside of what the dtype holds: use float64, other units, or a model that "
            "is bounded there",
            "broken",
        )


def _movement(
    x: Array, own: Chains, stats: Mapping[str, Array], sampler: Sampler
) -> Iterator[Finding]:
    same = np.ones((x.shape[0], x.shape[1] - 1), bool)
    for i in range(x.shape[2]):
        if not same.any():
            break
        same &= x[:, 1:, i] == x[:, :-1, i]
    run = _longest_run(same)
    moving = same[run < same.shape[1]]
    rate = float(moving.mean()) if moving.size else 1.0
    by_chance = same.size * rate**run if rate < 1 else np.where(run == same.shape[1], 0.0, 1.0)
    stuck = (run >= max(STILL * same.shape[1], 1)) & (by_chance < RATE)
    whole = run == same.shape[1]
    expected = len(x) * float(same.mean()) ** same.shape[1]
    # more than chance keeps in place in so few steps
    if whole.sum() > expected + CROWD * math.sqrt(expected) + 3:
        stuck |= whole
    # a discrete state may be so probable that chains stay there: only where all do it is a finding
    if own.lattice[own.judged].all():
        stuck &= whole.all()
    never = stuck & whole
    fix = f"use a longer warmup, another start, or {sampler.smaller_steps}"
    if never.any():
        yield Finding(f"{counted(int(never.sum()), 'chain')} never moved", fix, "stuck")
    if (stuck & ~never).any():
        longest = int(run[stuck & ~never].max())
        yield Finding(
            f"{counted(int((stuck & ~never).sum()), 'chain')} stood still, for up to {longest} draws at a time",
            fix,
            "stuck",
        )
    if own.still.any() and not never.all():
        yield Finding(
            f"{listed(own.names, own.still)} never moved in any chain, and chains differ there",
            "the solver does not move it: its gradient is 0 or its step too small for the dtype",
            "stuck",
        )
    yield from low_acceptance(stats, sampler)


def low_acceptance(stats: Mapping[str, Array], sampler: Sampler) -> Iterator[Finding]:
    """The finding of a low acceptance rate, from reports by draw or averages."""
    accept = stats.get("accept")
    if accept is not None and np.isfinite(accept).any() and float(np.nanmean(accept)) < LOW_ACCEPT:
        yield Finding(
            f"only {float(np.nanmean(accept)):.1%} of the proposals are accepted",
            f"use {sampler.smaller_steps}",
            "accept",
        )


def _longest_run(flags: Array) -> Array:
    """The longest run of true values in each row."""
    place = np.arange(1, flags.shape[1] + 1)
    return (place - np.maximum.accumulate(np.where(flags, 0, place), 1)).max(1)


class _Joined:
    """What the tests found in several parts, the coordinates side by side.

    Args:
        parts: The parts.
        limit: The normal deviate above which a test has found something.
    """

    def __init__(self, parts: list[Chains], limit: float) -> None:
        self.parts, self.limit = parts, limit
        self.names = [name for part in parts for name in part.names]
        self.judged = np.concatenate([part.judged for part in parts])
        effective = np.concatenate([np.fmin(part.bulk, part.tail) for part in parts])
        self.few = self.judged & (effective < FEW_EFFECTIVE)

    def of(self, kind: str, way: str) -> tuple[Array, Array]:
        """The deviates z of a kind of test, finite and 0 where nothing is judged; and its sizes."""
        z, size = (
            np.concatenate([getattr(part, kind)[way][i] for part in self.parts]) for i in (0, 1)
        )
        z = np.nan_to_num(z, nan=0.0, posinf=1e300, neginf=-1e300)
        return np.where(self.judged, z, 0.0), size

    def drifts(self, way: str) -> Array:
        """Which coordinates drift."""
        return np.abs(self.of("drift", way)[0]) > self.limit

    def remembers(self, way: str) -> Array:
        """In which coordinates chains have not forgotten where they were."""
        return self.of("memory", way)[0] > self.limit

    def disagrees(self, way: str) -> tuple[Array, Array]:
        """In which coordinates chains disagree, and R-hat."""
        z, value = self.of("between", way)
        value = np.where(
            np.isnan(value) & (z > self.limit), np.inf, np.where(np.isnan(value), 1.0, value)
        )
        told = (z > self.limit) | self.remembers(way) | self.drifts(way)
        found = (value > HIGH_R_HAT) & told | (value > FEW_R_HAT) & self.few
        return self.judged & found, value


def _convergence(parts: list[Chains], limit: float, sampler: Sampler) -> Iterator[Finding]:
    """Findings of drift, disagreement, memory, chains that stand apart, and alternation.

    `limit` is the normal deviate above which a test has found something.
    """
    joined = _Joined(parts, limit)
    drifts = [*_drifts(joined)]
    yield from drifts
    settled = (
        "where they are on their way, use more warmup and steps; where they sit in different "
        f"modes, more chains do not help: use {sampler.tempering}"
    )
    fix = "use more warmup and steps" if drifts else settled
    yield from _disagreements(joined, fix)
    apart = np.any([part.apart[way] for part in parts for way in (PLACE, SPREAD)], 0)
    if apart.any():
        yield Finding(
            f"{int(apart.sum())} of {len(apart)} chains stand apart from the others all along, the "
            f"first is chain {int(apart.argmax())}",
            fix,
            "apart",
        )
    yield from _alternation(joined, sampler)


def _drifts(joined: _Joined) -> Iterator[Finding]:
    """Findings of drift; that of the mean only where none of normal scores is found."""
    drifting = False
    for way, what, unit in (
        (PLACE, "where they are", " normal scores"),
        (SPREAD, "how widely they are spread", " normal scores"),
        (VALUE, "their mean", ""),
    ):
        found = joined.drifts(way)
        if found.any() and not (drifting and way == VALUE):
            z, by = joined.of("drift", way)
            drifting, worst = True, int(np.abs(z).argmax())
            yield Finding(
                f"the chains drift together in {what}: from the first half of the draws to the "
                f"second by {by[worst]:+.2g}{unit} "
                f"in {listed(joined.names, found, worst)} (z = {abs(z[worst]):.3g})",
                "they are on their way still: use a longer warmup and more steps",
                "drift",
            )


def _disagreements(joined: _Joined, fix: str) -> Iterator[Finding]:
    """Findings of chains that disagree, and of chains that remember their past."""
    names = joined.names
    for way, name, where in ((PLACE, "R-hat", ""), (SPREAD, "folded R-hat", " in spread")):
        found, value = joined.disagrees(way)
        if found.any():
            worst = int(np.where(found, value, 0).argmax())
            more = f" ({int(found.sum())} coordinates)" if found.sum() > 1 else ""
            yield Finding(
                f"the chains disagree{where}, {name} of {names[worst]} is {as_r_hat(value[worst])}{more}",
                fix,
                "disagree",
            )
        found = joined.remembers(way)
        if found.any():
            z, nested = joined.of("memory", way)
            worst = int(z.argmax())
            yield Finding(
                f"the chains have not forgotten where they were, nested {name} of "
                f"{listed(names, found, worst)} is {as_r_hat(nested[worst])} (z = {z[worst]:.3g})",
                fix,
                "memory",
            )


def _alternation(joined: _Joined, sampler: Sampler) -> Iterator[Finding]:
    """The finding of period two, where nothing else is wrong: else chains are not stationary."""
    deviates = [np.abs(joined.of("drift", TURN)[0])]
    deviates += [joined.of(kind, TURN)[0] for kind in ("between", "memory")]
    turning = np.max(deviates, 0) > joined.limit
    turning &= ~np.any([joined.drifts(way) for way in (PLACE, SPREAD, VALUE)], 0)
    for way in (PLACE, SPREAD):
        turning &= ~(joined.disagrees(way)[0] | joined.remembers(way))
    if turning.any():
        stays = sampler.discrete and sampler.name != "DiscreteLangevin"
        yield Finding(
            f"the chains alternate: draws at even and at odd places differ in "
            f"{listed(joined.names, turning)}",
            "the kernel has period two. Use one that may stay where it is"
            + (", such as DiscreteLangevin" if stays else ""),
            "period",
        )


def _parity(names: list[str], parts: list[Chains]) -> Iterator[Finding]:
    if any(
        name == "parity" and part.constant.all() for name, part in zip(names, parts, strict=True)
    ):
        yield Finding(
            "all draws have the same parity of sites in one state",
            "the kernel changes one site at each step and the thinning is even: use an odd thin, "
            "or a kernel that may stay",
            "period",
        )


def _values(own: Chains, sampler: Sampler) -> Iterator[Finding]:
    share, value = own.atom
    found = (share > ATOM) & own.judged & ~own.still
    if found.any():
        worst = int(np.where(found, share, 0).argmax())
        clamp = "a clamp (box) of the solver" if "box" in sampler.settings else "a clamp"
        yield Finding(
            f"{share[worst]:.1%} of the moves lead to exactly {value[worst] + 0.0:.6g} in "
            f"{listed(own.names, found, worst)}",
            f"{clamp}, or the edge of what the dtype resolves, beyond which mass is lost. Use "
            f"float64, or other coordinates",
            "clamp",
        )
    grid = (own.coincidence > COINCIDENCE) & own.judged & ~found
    if grid.any():
        yield Finding(
            f"draws of {listed(own.names, grid)} lie on a grid: two are equal with probability "
            f"{float(own.coincidence[grid].max()):.1e}",
            "the dtype does not resolve them, and chains stall there: use float64, or subtract "
            "what is large and constant",
            "grid",
        )


def _copies(x: Array, own: Chains) -> Iterator[Finding]:
    if len(x) > 1 and own.judged.any() and not own.lattice[own.judged].all():
        ones = different(x[:, -1])
        if ones is not None and ones <= len(x) / 2:
            yield Finding(
                f"the last draws of {len(x)} chains are {ones} different ones",
                "chains are copies of each other: give each its own start and number",
                "copies",
            )


def different(rows: Array) -> int | None:
    """How many of the rows `(n, ...)` are different.

    None where numbers lie on a lattice, so that rows may be equal by chance: where all are
    integers, or where there are more different rows than values of any coordinate.
    """
    flat = np.ascontiguousarray(rows.reshape(len(rows), -1))
    ones = len(np.unique(flat, axis=0))
    some = np.sort(flat[:, :64], axis=0)
    values = 1 + (some[1:] != some[:-1]).sum(0).max(initial=0)
    return None if ones > values or bool((some == np.round(some)).all()) else ones


def _few(
    own: Chains, troubled: bool, stats: Mapping[str, Array], sampler: Sampler
) -> Iterator[Finding]:
    sizes = np.where(own.judged & ~own.still, np.fmin(own.bulk, own.tail), np.inf)
    worst = int(sizes.argmin())
    least = float(sizes[worst])
    noise = z_limit(RATE, 2 * int(own.judged.sum())) * math.sqrt(
        SPREAD_OF_EFFECTIVE / FEW_EFFECTIVE
    )
    if least * (1 + noise) < FEW_EFFECTIVE:
        kind = "ess_bulk" if own.bulk[worst] <= own.tail[worst] else "ess_tail"
        fix = f"use about {math.ceil(FEW_EFFECTIVE / max(least, 1))} times the steps or the chains"
        if troubled:
            fix = "more of the same does not help before what is said above is mended"
        elif (
            "step_size" in sampler.settings
            and float(np.nanmean(stats.get("accept", np.zeros(1)))) > HIGH_ACCEPT
        ):
            fix += ", or a larger step_size: nearly all proposals are accepted"
        yield Finding(
            f"few effective draws, {kind} of {own.names[worst]} is {least:.0f}", fix, "few"
        )


def _hamiltonian(
    x: Array, names: list[str], stats: Mapping[str, Array], sampler: Sampler
) -> Iterator[Finding]:
    diverging = stats.get("diverging")
    if diverging is not None and diverging.ndim == 2 and diverging.mean() > STRAY:
        diverging = diverging.astype(bool)
        there = x[diverging].astype(np.float64).mean(0)
        with np.errstate(all="ignore"):
            far = np.abs(there - x.mean((0, 1), dtype=np.float64)) / (
                x.std((0, 1), dtype=np.float64) + 1e-300
            )
        most = int(np.nan_to_num(far).argmax())
        if "accept" in sampler.settings or not sampler.text:
            aim = "aim at a higher acceptance (accept=0.95), or "
        else:
            aim = ""
        aim = aim or (
            f"use {sampler.smaller_steps}, or " if "step_size" in sampler.settings else ""
        )
        yield Finding(
            f"{int(diverging.sum())} trajectories diverged ({diverging.mean():.2%}), about where "
            f"{names[most]} is {there[most]:.3g}",
            f"{aim}write the model in coordinates without such narrow parts",
            "diverging",
        )
    energy = stats.get("hamiltonian")
    if energy is not None and energy.ndim == 2 and energy.shape[1] > 2:
        with np.errstate(all="ignore"):
            bfmi = np.square(np.diff(energy, axis=1)).mean(1) / energy.var(axis=1)
        low = int((bfmi < LOW_BFMI).sum())
        if low > 0.05 * len(bfmi):
            yield Finding(
                f"the energy explores slowly, E-BFMI is below {LOW_BFMI} in {low} of {len(bfmi)} "
                f"chains",
                "the tails are heavy: write the model in other coordinates",
                "energy",
            )


def _independent(
    x: Array, names: list[str], stats: Mapping[str, Array], sampler: Sampler
) -> Iterator[Finding]:
    """Findings for independent draws: of numbers that are not finite, weights, and copies."""
    yield from broken(not_held(x), names)
    weight = stats.get("log_weight")
    if weight is not None:
        worth = sum(kish(np.ravel(weight)[of]) for of in measured_alike(stats, len(x)))
        if worth < min(FEW_WEIGHTS, len(x) / 2):
            yield Finding(
                f"the weights of {len(x)} draws are worth {worth:.1f} equally weighted ones",
                f"use {sampler.finer}, or a kernel that moves further at each",
                "weights",
            )
    weighed = weights(stats, len(x))
    if weighed.family is not None and weighed.families < min(FEW_FAMILIES, len(x) / 2):
        yield Finding(
            f"{len(x)} draws descend from {weighed.families:.1f} starts, so that their errors are not known",
            "use more chains, or more levels",
            "families",
        )
    ones = None if sampler.discrete or len(x) < 2 else different(x[:, -1])
    if ones is not None and ones <= len(x) / 2:
        yield Finding(
            f"{len(x)} draws are {ones} different ones, many times over",
            "they were resampled from a handful: use more levels, or moves between them",
            "copies",
        )


def listed(names: list[str], found: Array, worst: int | None = None) -> str:
    """The worst coordinate by name, and how many others, as text."""
    worst = int(found.argmax()) if worst is None else worst
    others = int(found.sum()) - 1
    if others < 1:
        return names[worst]
    return f"{names[worst]} and {others} other{'s' if others > 1 else ''}"
