r"""Gradients to low error: how many a chain takes until its average of squares is good for ever.

With the coordinates y_i of a target, the error of chain c after n draws is

    b_c^2(n) = max_i (1/n sum_m y_i(x_m)^2 - E y_i^2)^2 / Var y_i^2,

or the mean over i in its place. Independent draws have b^2 = 1/n a coordinate, so that .01 is what
a hundred of them reach. The number reported is that of the gradients a chain after which the median
of b^2 over chains stays below `LOW`; its standard error is that over bootstrapped chains.

Draws are made in blocks, by `sample` or by another library (`scoretk.demo.bench.peers`), of which only sums
are kept. Errors are looked at where the
number of draws has grown by `RATIO` or more, so that they cost neither time nor memory. The sums are on
the device of the draws, which waits at looks alone.

References:
    Hoffman, Sountsov, "Tuning-free generalized Hamiltonian Monte Carlo" (2022), for the error.
    Robnik, De Luca, Silverstein, Seljak, "Microcanonical Hamiltonian Monte Carlo" (2023), for the
    number of gradients.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from scoretk.core.arguments import count
from scoretk.core.devices import constant_like, on, wide
from scoretk.core.noise import derive
from scoretk.demo.bench.target import Moments, Target
from scoretk.errors import InvalidArgument
from scoretk.inference.sampling import sample
from scoretk.run.draws import Draws
from scoretk.solvers.base import adapts

__all__ = [
    "LOW",
    "Contestant",
    "Crossing",
    "Errors",
    "Plan",
    "Reached",
    "crossing",
    "gradients_to_low_error",
    "reached",
]

LOW = 0.01
RATIO = 1.005
FIRST_BLOCK, MOST_NUMBERS = 64, 1 << 25
MOST_NUMBERS_ACCELERATOR = 1 << 28
"""The most numbers of a block: a call of `sample` costs as much beside them on any device."""
CACHED = 1 << 17
"""How many numbers of draws are squared together on a CPU."""
LEAST = 64
"""The fewest draws before a run may end: fewer have low errors by chance alone."""
BOOTSTRAPS = 200
SURE = 1.25
"""A run ends where it is that much longer than the crossing, which then counts as lasting."""


@dataclass(frozen=True)
class Crossing:
    """After how many gradients the median error stays below `LOW`.

    Args:
        value: The gradients a chain, infinite where the error is not below at the end.
        stderr: The standard error over bootstrapped chains, NaN where one in twenty of these or
            more does not get there.
    """

    value: float
    stderr: float


@dataclass(frozen=True)
class Plan:
    """How a run is made.

    Args:
        chains: How many chains.
        warmup: How many steps of warmup, None for the solver's default.
        budget: At how many gradients a chain a run is given up, those of warmup not counted.
        seed: The seed.
        device: Where the chains are.
        compile: Whether steps after warmup are compiled, as `sample` does it: a minute that pays
            where gradients are a million.
    """

    chains: int = 128
    warmup: int | None = None
    budget: float = 1e6
    seed: int = 0
    device: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        count("chains", self.chains, least=2)


@dataclass(frozen=True)
class Reached:
    """What a solver reached on a target.

    Args:
        worst: Gradients until the largest error over coordinates is low.
        mean: Gradients until the mean error over coordinates is low.
        tuning: Gradients a chain in warmup.
        run: Gradients a chain in the run that was looked at.
        failed: How many chains failed; their errors count as infinite.
        last: The median error at the end, the largest over coordinates and the mean.
        seconds: How long it took.
    """

    worst: Crossing
    mean: Crossing
    tuning: float
    run: float
    failed: int
    last: tuple[float, float]
    seconds: float


@dataclass
class Errors:
    """The errors of chains along a run, from sums of squares.

    Args:
        moments: The truth.
        sums: The sums of the squares so far, `(chains, k)`, in the widest dtype of the draws' device.
        draws: How many draws are in them.
        at: Gradients a chain at each look.
        worst: The largest error over coordinates at each look, `(chains,)` each.
        mean: The mean error over coordinates, like it.
    """

    moments: Moments
    sums: Tensor
    draws: int = 0
    at: list[float] = field(default_factory=list)
    worst: list[Tensor] = field(default_factory=list)
    mean: list[Tensor] = field(default_factory=list)
    _next: int = 1

    @staticmethod
    def of(moments: Moments, chains: int) -> Errors:
        """No draws yet."""
        return Errors(moments, moments.mean_square.new_zeros(chains, len(moments.mean_square)))

    def add(self, x: Tensor, before: float, after: float) -> None:
        """Add a block of draws.

        Args:
            x: The draws, `(chains, n, *event_shape)`.
            before: Gradients a chain before the first of them.
            after: Gradients a chain after the last; those between are taken as even.
        """
        done, n = 0, x.shape[1]
        while done < n:
            stop = min(n, self._next - self.draws + done)
            more = self._squares(x[:, done:stop])
            self.sums = on(self.sums, more.device) + more
            self.draws += stop - done
            done = stop
            if self.draws == self._next:
                self._look(before + (after - before) * done / n)

    def _squares(self, x: Tensor) -> Tensor:
        """The sums of the squares of draws `(chains, n, *event_shape)`, `(chains, k)`."""
        sums = [
            sum(
                wide(self.moments.of(part.flatten(0, 1)))
                .square()
                .unflatten(0, part.shape[:2])
                .sum(1)
                for part in some.split(steps, 1)
            )
            for some, steps in _parts(x)
        ]
        return torch.cat(sums)

    def _look(self, gradients: float) -> None:
        mean, var = (
            constant_like(v, self.sums) for v in (self.moments.mean_square, self.moments.var_square)
        )
        error = (self.sums / self.draws - mean).square() / var
        worst, average = torch.stack([error.amax(1), error.mean(1)]).cpu()
        self.at.append(gradients)
        self.worst.append(worst)
        self.mean.append(average)
        self._next = max(self.draws + 1, math.ceil(self.draws * RATIO))


def crossing(at: Tensor, error: Tensor, seed: int = 0) -> Crossing:
    """After how many gradients the median error over chains stays low.

    Args:
        at: Gradients a chain at each look, `(looks,)`.
        error: The error of each chain there, `(looks, chains)`; not finite where a chain failed.
        seed: Of the bootstrap.
    """
    error = error.nan_to_num(nan=math.inf)
    chains = error.shape[1]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(chains, (BOOTSTRAPS, chains), generator=generator)
    found = torch.stack([_first_lasting(at, error[:, rows]) for rows in drawn])
    there = found.isfinite()
    many = float(there.double().mean()) > 0.95
    stderr = float(found[there].std()) if many else math.nan
    return Crossing(float(_first_lasting(at, error)), stderr)


def _first_lasting(at: Tensor, error: Tensor) -> Tensor:
    """The first of the looks from which on the median is low, infinite where it is not at the last."""
    median = error.median(1).values
    high = (median >= LOW).nonzero()
    after = int(high[-1]) + 1 if len(high) else 0
    return at[after] if after < len(at) else at.new_tensor(math.inf)


def _parts(x: Tensor) -> list[tuple[Tensor, int]]:
    """Some chains' draws, and of how many steps a part is that a processor's cache holds.

    On a device of many: each part is kernels of its own.
    """
    if x.device.type != "cpu":
        return [(x, x.shape[1])]
    draws = max(1, CACHED // x[0, 0].numel())
    steps = min(draws, x.shape[1])
    return [(some, steps) for some in x.split(draws // steps)]


class Contestant(Protocol):
    """Chains that are tuned and go on, block by block.

    Attributes:
        tuning: Gradients a chain in tuning.
        failed: Which chains have failed by now, `(chains,)`.
    """

    tuning: float
    failed: Tensor

    def block(self, steps: int) -> tuple[Tensor, float]:
        """Draws `(chains, n, *event_shape)`, n about `steps`, and the gradients a chain that they took."""


class _Ours:
    """Chains of `sample`, each block going on from the last with what was tuned."""

    def __init__(self, target: Target, solver: Any, plan: Plan) -> None:
        self.field, self.plan, self.blocks, self.solver = target.field, plan, 0, solver
        self.last = sample(
            target.field,
            solver,
            plan.chains,
            1,
            plan.warmup,
            seed=plan.seed,
            keep="last",
            device=plan.device,
        )
        self.tuning, self.failed = _gradients(self.last, plan.chains), ~self.last.ok

    def block(self, steps: int) -> tuple[Tensor, float]:
        self.blocks += 1
        block = sample(
            self.field,
            _tuned(self.solver, self.last),
            self.plan.chains,
            steps,
            0,
            seed=derive(self.plan.seed, self.blocks),  # with the seed of another it has its noise
            init=self.last.final,
            device=self.plan.device,
            compile=self.plan.compile,
        )
        assert block.x is not None  # all draws of a block are kept
        self.last, self.failed = block, self.failed | ~block.ok
        return block.x, _gradients(block, self.plan.chains)


def gradients_to_low_error(target: Target, solver: Any, plan: Plan) -> Reached:
    """How many gradients a chain a solver takes to a low error.

    Args:
        target: The target, with moments.
        solver: The solver, which tunes itself in warmup where it can.
        plan: How the run is made.

    Returns:
        As `reached`.

    Raises:
        InvalidArgument: The target's moments are not known, or the solver takes no gradients.
    """
    return reached(target, lambda: _Ours(target, solver, plan), plan)


def reached(target: Target, begun: Callable[[], Contestant], plan: Plan) -> Reached:
    """How many gradients a chain any chains take to a low error.

    Args:
        target: The target, with moments.
        begun: Makes the chains, after their tuning.
        plan: How the run is made.

    Returns:
        What they reached. A run ends where both errors have been low for long (`SURE`), or at the
        budget, or where all chains have failed.

    Raises:
        InvalidArgument: The target's moments are not known, or the chains take no gradients.
    """
    if target.moments is None:
        raise InvalidArgument("target", target.name, "a target whose moments are known")
    started = time.perf_counter()
    run = begun()
    errors, spent, steps = Errors.of(target.moments, plan.chains), 0.0, FIRST_BLOCK
    while spent < plan.budget and not (errors.draws >= LEAST and _settled(errors, spent)):
        x, more = run.block(steps)
        if more == 0:
            raise InvalidArgument("solver", run, "a kernel that takes gradients")
        errors.add(x, spent, spent + more)
        if bool(run.failed.all()):
            break
        spent += more
        most = MOST_NUMBERS if x.device.type == "cpu" else MOST_NUMBERS_ACCELERATOR
        steps = min(2 * steps, max(1, most // x[:, 0].numel()))
    at = torch.tensor(errors.at)
    worst, mean = (
        torch.stack(e).masked_fill(run.failed.cpu(), math.inf) for e in (errors.worst, errors.mean)
    )
    return Reached(
        crossing(at, worst, plan.seed),
        crossing(at, mean, plan.seed),
        run.tuning,
        spent,
        int(run.failed.sum()),
        (float(worst[-1].median()), float(mean[-1].median())),
        time.perf_counter() - started,
    )


def _gradients(draws: Draws, chains: int) -> float:
    return draws.cost.get("score", 0) / chains


def _tuned(solver: Any, draws: Draws) -> Any:
    """The solver with what a run has tuned, itself where nothing was."""
    return solver.tuned_by(draws) if adapts(solver) else solver


def _settled(errors: Errors, spent: float) -> bool:
    """Whether the median of the largest error has been low since `spent / SURE` gradients."""
    since = [m for at, m in zip(errors.at, errors.worst, strict=True) if at >= spent / SURE]
    return bool(since) and all(float(m.median()) < LOW for m in since)
