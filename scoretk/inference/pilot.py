"""The pilot of an annealed run: a population on its way from a base to a field, which finds a ladder.

It is resampled at every level. Found are each next weight, such that the effective share of the
population stays at .9, the kernel's step size at each level by its acceptance, its units by the
population's spread, and the number of its moves by how soon the gains of log weights decorrelate; in
a field that is narrow here and wide there, units by gradients as well, and moves by how soon each
coordinate does (`Aims`).

Reference:
    Zhou, Johansen, Aston, "Toward automatic model comparison: an adaptive sequential Monte Carlo
    approach" (2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import count
from scoretk.core.cost import Cost
from scoretk.core.devices import wide
from scoretk.core.modules import check_place, left_as_found, state_like
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.bridge import Bridge, states_of
from scoretk.fields.protocols import field_name
from scoretk.fields.resolve import StaticField, resolve
from scoretk.solvers.base import has_step_size, traits
from scoretk.solvers.importance import (
    Ladder,
    check_path,
    kernel_at,
    law_at,
    log_gain,
    move,
    resampled,
    rising,
)
from scoretk.solvers.parts.jumps import energies_of_jumps, jump, quantiles_of
from scoretk.solvers.parts.nested import NestedNoise, with_step_size

__all__ = ["MOST_MOVES", "Aims", "Found", "Population", "find_ladder"]

SHARE = 0.9
SPREAD = 0.5
"""The variance of log weights to which the ladder of annealed importance sampling is refined."""
NOTHING = -10.0
PILOT_MOVES = 5
MOST_LEVELS = 5000
MOST_MOVES = 20
FORGOTTEN, EACH_FORGOTTEN = 0.5, 0.25
"""The largest correlation of the log weights' gains before and after the moves at a level, and of each
coordinate: a quarter is four standard errors of a pilot of 256 chains.
"""
EXACT = 1e-3
"""How exactly a level on a path of the field's own is found, as a share of its distance from the one
before.
"""
TARGET_ACCEPT = 0.8
NARROWEST = 1e-6
"""The least unit in which a kernel moves."""


class Aims(NamedTuple):
    """The targets that a ladder is tuned to.

    Args:
        refine: Whether its levels are divided further until the variance of the log weights of
            chains that are not resampled is about `SPREAD`.
        accept: The mean acceptance that the step size is tuned to.
        metric: The units in which the kernel moves: "diagonal" for standard deviations, or "fisher"
            for the root of these over the gradient's (`solvers.warmup.scales`), which are smaller
            where a coordinate is narrow here and wide there.
        every: Whether each coordinate is to be forgotten at a level, and not the gains of log
            weights alone.
    """

    refine: bool = False
    accept: float = TARGET_ACCEPT
    metric: str = "diagonal"
    every: bool = False

    @property
    def forgotten(self) -> float:
        """The largest autocorrelation that the moves at a level may leave."""
        return EACH_FORGOTTEN if self.every else FORGOTTEN


class Population(NamedTuple):
    """The chains of a pilot.

    Args:
        chains: How many there are.
        seed: The seed of their noise.
        device: As in `sample`.
        dtype: As in `sample`.
    """

    chains: int
    seed: int
    device: torch.device | None = None
    dtype: torch.dtype | None = None

    def noise(self, field: Any) -> Noise:
        """The chains' noise, on the device and in the dtype of the field where none are given."""
        device, dtype = torch.device("cpu"), torch.get_default_dtype()
        for like in state_like(field)[:1]:
            device, dtype = like.device, like.dtype if like.is_floating_point() else dtype
        return Noise(
            self.seed,
            self.chains,
            device=device if self.device is None else self.device,
            dtype=dtype if self.dtype is None else self.dtype,
        )


class Found(NamedTuple):
    """The result of a pilot.

    Args:
        ladder: The ladder.
        cost: What it cost.
        x: Where its chains are at the field, `(chains, *event_shape)`.
    """

    ladder: Ladder
    cost: Cost
    x: Tensor


def find_ladder(
    field: Any,
    base: Any,
    kernel: Any,
    population: Population,
    *,
    moves: int,
    jumps: int = 0,
    levels: int | None,
    aims: Aims,
) -> Found:
    """Find the ladder by a pilot.

    Args:
        field: As in `log_partition`.
        base: As in `log_partition`, a field.
        kernel: As in `log_partition`, a solver.
        population: The pilot's chains.
        moves: As in `log_partition`.
        jumps: As in `log_partition`.
        levels: How many levels there are to be, None for as many as it takes.
        aims: What the ladder is tuned to.

    Returns:
        The ladder, what the pilot cost, and where its chains came to.
    """
    if levels is not None:
        count("levels", levels, least=1)
    noise = population.noise(field)
    check_place(field, noise.chains.device)
    with left_as_found(field), torch.no_grad():
        bound = resolve(field, kernel.needs, timed=False)
        assert isinstance(bound, StaticField)
        check_path(kernel, bound, base)
        pilot = _Pilot(bound, base, kernel, moves, noise, jumps, aims)
        pilot.run()
    found, among = pilot.ladder(), 1.0
    if levels is not None:
        among = max(1.0, levels / found.levels)
    elif aims.refine:
        levels = min(found.levels * max(1, math.ceil(pilot.variance / SPREAD)), MOST_LEVELS)
    ladder = found if levels is None else _stretched(found, levels)
    return Found(_moving(ladder, moves, among), Cost(pilot.cost), pilot.x)


class _Pilot:
    """The pilot: a population on its way from the base to the field, and what it has found."""

    def __init__(
        self,
        field: StaticField,
        base: Any,
        kernel: Any,
        moves: int,
        noise: Noise,
        jumps: int,
        aims: Aims,
    ) -> None:
        self.field, self.base, self.kernel, self.noise = field, base, kernel, noise
        self.x = base.draw(len(noise.chains), noise).to(noise.chains.device, noise.dtype)
        self.least, self.moves, self.jumps, self.aims = moves, [0], jumps, aims
        self.quantiles: list[Tensor] = []
        self.own_path = not isinstance(law_at(field, base, 0.5).native, Bridge)
        self.discrete = states_of(field) is not None
        self.size = traits(kernel).step_size if has_step_size(kernel) else None
        self.weights, self.sizes, self.scales = [0.0], [], []  # type: ignore[var-annotated]
        self.variance, self.cost = 0.0, {}  # type: ignore[var-annotated]

    def run(self) -> None:
        while self.weights[-1] < 1:
            if len(self.weights) > MOST_LEVELS:
                raise InvalidArgument(
                    "base",
                    field_name(self.base),
                    f"a base from which the field is reached in {MOST_LEVELS} levels; this one got "
                    f"to {self.weights[-1]:.3g}",
                )
            self._level(len(self.weights) - 1)

    def _level(self, k: int) -> None:
        gain = rising(self.field, self.base, self.x, self.weights[-1])
        dead = gain(1.0)[1]
        if bool(dead.all()):
            raise InvalidArgument(
                "base",
                field_name(self.base),
                "a base with some of its draws where the field has density",
            )
        upper = self._upper(gain, dead)
        log_weight = torch.where(dead, -torch.inf, wide(gain(upper)[0]))
        self.variance += _variance(log_weight[~dead])
        u = self.noise.uniform(k, Stream.SWAP, (), torch.float64)[:1]
        self.x = self.x[resampled(log_weight[None], u)[0][0]]
        self.weights.append(1.0 if upper > 1 - 1e-9 else upper)
        scale = self._scale()
        before, made = self._known(), 0
        while made < max(self.least, PILOT_MOVES) or (
            made < MOST_MOVES and self._correlation(before) > self.aims.forgotten
        ):
            inner = NestedNoise(self.noise, k * MOST_MOVES + made)
            target = kernel_at(self.field, self.base, self.weights[-1], scale)
            self.x, accept, spent = move(
                with_step_size(self.kernel, self.size), target, self.x, scale, inner, 1
            )
            self._count({name: int(spent.sum()) for name in traits(self.kernel).varying})
            if self.size is not None:
                self.size *= math.exp((float(accept.mean()) - self.aims.accept) / (1 + made))
            made += 1
        # a correlation r after the moves made is r^(m / made) after m moves
        left = max(self._correlation(before), 1e-3) ** (1 / made)
        wanted = math.ceil(math.log(self.aims.forgotten) / math.log(min(left, 0.999)))
        self.moves.append(wanted)
        n = len(self.x)
        self._count({"energy": n})  # of the gain on the way to this level
        for known in (self.kernel.init_cost, self.kernel.step_cost):
            self._count({name: each * n * made for name, each in known.items()})
        self.sizes.append(self.size)
        self.scales.append(scale)
        if self.jumps:
            law, ends = law_at(self.field, self.base, self.weights[-1]), quantiles_of(self.x)
            if not bool(ends.isfinite().all()):
                raise InvalidArgument(
                    "field",
                    field_name(self.field.native),
                    "one that falls far out: exp(-E) has no integral where chains go on without end",
                )
            self.x = jump(law, self.x, ends, self.noise, k * self.jumps, self.jumps)
            self.quantiles.append(ends)
            self._count({"energy": n * energies_of_jumps(self.jumps)})

    def _scale(self) -> Tensor:
        """The units in which the kernel moves at the level, like an event."""
        if self.discrete:
            return torch.ones_like(self.x[0])
        spread: Tensor = self.x.std(0).clamp(min=NARROWEST)
        if self.aims.metric == "diagonal":
            return spread
        law = law_at(self.field, self.base, self.weights[-1])
        self._count({"score": len(self.x)})
        steepness = law.score(self.x).std(0)
        found: Tensor = (spread / steepness).sqrt()
        return torch.where(found.isfinite() & (found > 0), found, spread).clamp(min=NARROWEST)

    def _whole_gain(self) -> Tensor:
        """The gains of log weights on the whole way, `(chains,)`, by which moves are judged."""
        self._count({"energy": len(self.x)})
        return wide(log_gain(self.field, self.base, self.x)[0])

    def _known(self) -> Tensor:
        """The quantities that the moves must decorrelate, `(1, chains)` or `(1 + d, chains)`."""
        gain = self._whole_gain()[None]
        if not self.aims.every:
            return gain
        return torch.cat([gain, wide(self.x.reshape(len(self.x), -1).T)])

    def _correlation(self, before: Tensor) -> float:
        """The largest correlation over the population of these quantities before the moves and now."""
        a, b = (each - each.mean(1, keepdim=True) for each in (before, self._known()))
        found: Tensor = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
        return float(found.nan_to_num(0.0, 0.0, 0.0).max())

    def _upper(self, gain: Callable[[float], tuple[Tensor, Tensor]], dead: Tensor) -> float:
        """The highest next weight at which the effective share is `SHARE`, by bisection."""

        def share(upper: float) -> float:
            w = torch.softmax(torch.where(dead, -torch.inf, wide(gain(upper)[0])), 0)
            return float(1 / (w.square().sum() * (~dead).sum()))

        if share(1.0) >= SHARE:
            return 1.0
        low, high = self.weights[-1], 1.0
        for _ in range(60):
            if self.own_path and high - low <= EXACT * (low - self.weights[-1]):
                break  # each look takes the energies of two laws
            middle = (low + high) / 2
            low, high = (middle, high) if share(middle) >= SHARE else (low, middle)
        return max(low, self.weights[-1] + 1e-12)

    def _count(self, more: Mapping[str, int]) -> None:
        for name, n in more.items():
            self.cost[name] = self.cost.get(name, 0) + n

    def ladder(self) -> Ladder:
        sizes = None if self.size is None else tuple(self.sizes)
        scales = None if self.discrete else torch.stack(self.scales)
        ends = torch.stack(self.quantiles) if self.jumps else None
        return Ladder(tuple(self.weights), sizes, scales, tuple(self.moves[1:]), ends, self.jumps)


def _variance(log_weight: Tensor) -> float:
    """The variance of log weights, clamped below at `NOTHING` relative to their mean.

    How far weights that do not count are below it says nothing of the others.
    """
    if len(log_weight) < 2:
        return 0.0
    relative = log_weight - (log_weight.logsumexp(0) - math.log(len(log_weight)))
    return float(relative.clamp(min=NOTHING).var())


def _stretched(ladder: Ladder, levels: int) -> Ladder:
    """The ladder with another number of levels, spread evenly over its intervals."""
    old = torch.tensor(ladder.weights, dtype=torch.float64)
    place = torch.arange(levels + 1, dtype=torch.float64) * ladder.levels / levels
    below = place.floor().clamp(max=ladder.levels - 1).long()
    weights = (old[below] + (place - below) * (old[below + 1] - old[below])).tolist()
    at = [max(math.ceil(p) - 1, 0) for p in place.tolist()[1:]]
    sizes = None if ladder.step_sizes is None else tuple(ladder.step_sizes[i] for i in at)
    scales = None if ladder.scales is None else torch.stack([ladder.scales[i] for i in at])
    moves = None if ladder.moves is None else tuple(ladder.moves[i] for i in at)
    ends = None if ladder.quantiles is None else torch.stack([ladder.quantiles[i] for i in at])
    return replace(
        ladder,
        weights=(0.0, *weights[1:-1], 1.0),
        step_sizes=sizes,
        scales=scales,
        moves=moves,
        quantiles=ends,
    )


def _moving(ladder: Ladder, least: int, among: float) -> Ladder:
    """The ladder whose moves at a level are shared among so many levels in its place."""
    shared = (math.ceil(moves / among) for moves in ladder.moves or ())
    return replace(ladder, moves=tuple(min(max(least, m), MOST_MOVES) for m in shared))
