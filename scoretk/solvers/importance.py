r"""Annealed importance sampling and sequential Monte Carlo: weighted draws of any energy.

They lead from a base that can be drawn from along the bridge `E_b = (1 - b) E_base + b E`, with 0 =
b_0 < b_1 < ... < b_n = 1. Each chain begins with a draw of the base; at level k its weight grows
and then it moves under a kernel that leaves `exp(-E_(b_k))` as it is:

    log w <- log w + (b_k - b_(k-1)) (E_base(x) - E(x)),    x <- kernel_(b_k)(x)

The mean weight is an unbiased estimate of `Z / Z_base`, whatever the number of levels, and weighted
draws follow the target. A field may have a path of its own: `between(base, b)`, a field for each b
(None for a base that it has no path from). The weight then grows by `E_(b_(k-1))(x) - E_(b_k)(x)`,
and where those fields have a Gibbs sweep or couplings, `BlockGibbs` or `SwendsenWang` can be the kernel. Where the target's
density is 0 (the energy infinite, or NaN as outside a support) the weight is 0.

`SMC` also resamples (systematically) within *islands*, groups of neighbouring chains, whenever an
island's weights have become uneven: chains with small weights go on from where others are. The mean
weight of an island stays unbiased, and islands are independent of each other.

References:
    Neal, "Annealed importance sampling" (2001).
    Del Moral, Doucet, Jasra, "Sequential Monte Carlo samplers" (2006).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import count, counts, finite, fraction, positive, tensor_like
from scoretk.core.devices import wide, widest
from scoretk.core.rows import select_rows
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.base import plain_base
from scoretk.fields.bridge import Bridge, Stretched, states_of
from scoretk.fields.protocols import NoiseSource, field_name, offers, optional
from scoretk.fields.resolve import StaticField
from scoretk.solvers.base import Info, check_settled, traits
from scoretk.solvers.hmc import HMC
from scoretk.solvers.parts.jumps import check_quantiles, energies_of_jumps, jump
from scoretk.solvers.parts.nested import NestedNoise, as_kernel, with_step_size

__all__ = [
    "AIS",
    "SMC",
    "Ladder",
    "Resampling",
    "check_islands",
    "check_path",
    "kernel_at",
    "law_at",
    "log_gain",
    "move",
    "offered_between",
    "resample_islands",
    "resampled",
    "rising",
]

POWER = 3.0
"""How a ladder that nobody has tuned crowds towards the base: `b_k = (k / n)^3`."""
OF_A_PATH = frozenset({"gibbs", "couplings"})
"""What kernels need of each law on the way, and a geometric bridge of two fields does not have."""


@dataclass(frozen=True, eq=False)
class Ladder:
    """The levels of an annealing run and how the kernel moves at each.

    Args:
        weights: b_0 = 0 < b_1 < ... < b_n = 1.
        step_sizes: n step sizes of the kernel, for levels 1 to n, or None for the kernel's own.
        scales: `(n, *event_shape)`, positive: the units of x in which the kernel moves at each
            level, or None for those of x.
        moves: n numbers, how many steps the kernel makes at each level, or None for the solver's
            `moves`.
        quantiles: `(n, intervals + 1, *event_shape)`, rising: at each level the ends of intervals
            of each coordinate that are about equally likely, to which chains jump after the
            kernel's steps; or None.
        jumps: How many jumps there are at each level.

    Raises:
        InvalidArgument: Where the weights do not rise from 0 to 1, or the others do not fit them.
    """

    weights: tuple[float, ...]
    step_sizes: tuple[float, ...] | None = None
    scales: Tensor | None = None
    moves: tuple[int, ...] | None = None
    quantiles: Tensor | None = None
    jumps: int = 0

    def __post_init__(self) -> None:
        b = tuple(finite("weights", w) for w in _several("weights", self.weights))
        rises = len(b) > 1 and all(lower < upper for lower, upper in pairwise(b))
        if not rises or b[0] != 0 or b[-1] != 1:
            raise InvalidArgument("weights", self.weights, "numbers that rise from 0 to 1")
        object.__setattr__(self, "weights", b)
        for name, check in (("step_sizes", positive), ("moves", partial(count, least=1))):
            given = getattr(self, name)
            if given is None:
                continue
            values = tuple(check(name, value) for value in _several(name, given))
            if len(values) != self.levels:
                raise InvalidArgument(name, given, f"None or one a level, {self.levels}")
            object.__setattr__(self, name, values)
        if self.scales is not None:
            scales = self.scales
            shape = tuple(scales.shape) if isinstance(scales, Tensor) else ()
            if shape[:1] != (self.levels,) or not bool(
                (tensor_like("scales", scales, shape) > 0).all()
            ):
                raise InvalidArgument(
                    "scales", scales, f"None or positive numbers ({self.levels}, *event_shape)"
                )
        if self.quantiles is not None:
            check_quantiles("quantiles", self.quantiles, self.levels)
        if count("jumps", self.jumps, least=0) and self.quantiles is None:
            raise InvalidArgument("jumps", self.jumps, "0 where there are no quantiles")

    def __repr__(self) -> str:
        digest = hashlib.sha256(repr((self.weights, self.step_sizes, self.moves)).encode())
        if self.jumps:
            digest.update(repr(self.jumps).encode())
        for held in (self.scales, self.quantiles if self.jumps else None):
            if held is not None:
                digest.update(held.detach().cpu().double().numpy().tobytes())
        return f"Ladder(levels={len(self.weights) - 1}, id={digest.hexdigest()[:8]})"

    @property
    def levels(self) -> int:
        """n, the number of levels, the base not counted."""
        return len(self.weights) - 1

    @staticmethod
    def plain(levels: int) -> Ladder:
        """The levels `b_k = (k / levels)^3`, for the kernel's own step size and number of steps."""
        count("levels", levels, least=1)
        return Ladder(tuple((k / levels) ** POWER for k in range(levels + 1)))


def _several(name: str, values: Any) -> Sequence[Any]:
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return values
    raise InvalidArgument(name, values, "a tuple of numbers")


class AISState(NamedTuple):
    """The state of `AIS` and `SMC`.

    Position `(chains, *event_shape)`; log weight, whether the weight is 0 (`dead`) and the chain
    that this one descends from (`ancestor`), each `(chains,)`; the index of the next step.
    """

    x: Tensor
    log_weight: Tensor
    dead: Tensor
    ancestor: Tensor
    step: Tensor


def law_at(field: StaticField, base: Any, weight: float) -> StaticField:
    """The law at level `weight`: of the field's own path from this base, else geometric."""
    own = None if field.cond else optional(field.native, "between")
    law = None if own is None else own(base, weight)
    return field.view(Bridge(base, field, weight) if law is None else law, "between")


def kernel_at(field: StaticField, base: Any, weight: float, scale: Tensor | float) -> StaticField:
    """The field on which the kernel moves at level `weight`.

    It is `law_at` that level; where x is continuous, in coordinates y with `x = scale y`.
    """
    law = law_at(field, base, weight)
    return law if states_of(field) is not None else field.view(Stretched(law, scale), "stretched")


def offered_between(field: StaticField, base: Any) -> frozenset[str]:
    """Which of `OF_A_PATH` the laws between base and field offer."""
    return OF_A_PATH & offers(law_at(field, base, 0.5).native)


def check_path(kernel: Any, field: StaticField, base: Any) -> None:
    """Refuse a kernel that needs a capability which the laws between base and field lack.

    Raises:
        MissingCapability: In that case.
    """
    if not OF_A_PATH & kernel.needs <= offered_between(field, base):
        raise MissingCapability(
            field_name(field.native),
            offers(field.native),
            {"between"},
            f"{type(kernel).__name__} anneals along a path of the field's own, `between(base, weight)`, "
            "which there is none of from this base: "
            "use GibbsWithGradients or DiscreteLangevin, or leave out the base",
        )


def rising(
    field: StaticField, base: Any, x: Tensor, lower: float
) -> Callable[[float], tuple[Tensor, Tensor]]:
    """The gain of log weights from level `lower` to any other level, at x.

    Args:
        field: The target, a static field with an energy.
        base: The field at level 0.
        x: `(batch, *event_shape)`.
        lower: The level that the weights are of, in [0, 1].

    Returns:
        A function of the level `upper` with two values, each `(batch,)`: the gain `E_lower(x) -
        E_upper(x)`, in float64 where the device has it, and whether the density is 0 at x. On the
        geometric bridge it evaluates no energy again.
    """

    def split(gain: Tensor) -> tuple[Tensor, Tensor]:
        dead = gain.isnan() | (gain == -torch.inf)
        return torch.where(dead, 0.0, gain), dead

    law = law_at(field, base, lower or 0.5)
    if isinstance(law.native, Bridge):
        whole = wide(base.energy(x) - field.energy(x))
        return lambda upper: split((upper - lower) * whole)
    x = wide(x)
    below = base.energy(x) if lower == 0 else law.energy(x)
    return lambda upper: split(below - law_at(field, base, upper).energy(x))


def log_gain(field: StaticField, base: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gain `E_base(x) - E(x)` of log weights on the whole way, and where the density is 0.

    Both `(batch,)`; see `rising`.
    """
    return rising(field, base, x, 0.0)(1.0)


def move(
    kernel: Any,
    field: StaticField,
    x: Tensor,
    scale: Tensor | float,
    noise: NoiseSource,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Move chains by some steps of a kernel.

    Args:
        kernel: A solver whose step leaves the law of `field` as it is.
        field: The law of y, where `x = scale y`.
        x: Position, `(chains, *event_shape)`.
        scale: The unit in which the kernel moves: a number, or like an event.
        noise: The noise of the chains.
        steps: How many steps.

    Returns:
        The new x, the mean acceptance of the steps `(chains,)`, and the evaluations that they
        reported in all `(chains,)`.
    """
    state = kernel.init(field, x / scale, noise)
    accept = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    evaluations = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for _ in range(steps):
        state, info = kernel.step(field, state, noise)
        accept = accept + info.get("accept", 1.0) / steps
        evaluations = evaluations + info.get("evaluations", 0)
    return scale * state.x, accept, evaluations


def resampled(log_weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Systematic resampling within islands.

    Args:
        log_weight: `(islands, n)`, -inf for a weight of 0; at least one of each island is finite.
        u: `(islands,)`, uniform on (0, 1).

    Returns:
        The chain of its island that each chain goes on from, `(islands, n)`; and the effective
        number of weights over n, `1 / (n sum w^2)` for weights w with sum 1, `(islands,)`.
    """
    n = log_weight.shape[1]
    share, u = torch.softmax(wide(log_weight), 1), wide(u)
    points = (torch.arange(n, dtype=u.dtype, device=u.device) + u[:, None]) / n
    chosen = torch.searchsorted(share.cumsum(1), points).clamp(max=n - 1)
    return chosen, 1 / (n * share.square().sum(1))


class Resampling(NamedTuple):
    """Which chains go on from which.

    Args:
        source: The row that each goes on from, `(chains,)` of int64; its own where it is not resampled.
        renewed: Which chains' islands are resampled, `(chains,)` of bool.
        log_weight: The log weights after it, `(chains,)`.
    """

    source: Tensor
    renewed: Tensor
    log_weight: Tensor


def resample_islands(
    log_weight: Tensor, dead: Tensor, island: int, threshold: float, u: Tensor
) -> Resampling:
    """Resample the islands whose weights are uneven, and give all chains of each its mean weight.

    Args:
        log_weight: `(chains,)`.
        dead: Which weights are 0, `(chains,)` of bool. An island without another stays as it is.
        island: How many neighbouring chains make an island.
        threshold: The share of effective chains below which an island is resampled.
        u: `(chains,)`, uniform on (0, 1); the first of each island is used.

    Returns:
        A `Resampling`.
    """
    n = island
    of_islands = torch.where(dead, -torch.inf, log_weight).reshape(-1, n)
    hopeless = (of_islands == -torch.inf).all(1)
    of_islands = torch.where(hopeless[:, None], 0.0, of_islands)
    chosen, share = resampled(of_islands, u.reshape(-1, n)[:, 0])
    due = (share < threshold) & ~hopeless
    source = torch.where(due[:, None], chosen, torch.arange(n, device=chosen.device))
    rows = (source + n * torch.arange(len(source), device=chosen.device)[:, None]).flatten()
    mean = of_islands.logsumexp(1, keepdim=True) - torch.log(
        torch.tensor(float(n), dtype=log_weight.dtype)
    )
    renewed = due.repeat_interleave(n)
    kept = torch.where(renewed, mean.expand(-1, n).flatten(), log_weight)
    return Resampling(rows, renewed, kept)


def check_islands(island: int, x: Tensor, noise: NoiseSource) -> None:
    """Refuse chains that are no whole islands.

    Raises:
        InvalidArgument: In that case.
    """
    if len(x) % island:
        expected = f"whole islands: a multiple of island = {island}, as is batch"
        raise InvalidArgument("chains", len(x), expected)
    first = noise.chains[::island, None]
    whole = first + torch.arange(island, device=first.device)
    if bool((first % island).any()) or not torch.equal(noise.chains, whole.flatten()):
        expected = f"whole islands: chains {island} i to {island} (i + 1) - 1"
        raise InvalidArgument("chains", noise.chains, expected)


@dataclass(frozen=True)
class Annealing(ABC):
    """What `AIS` and `SMC` share: the way from draws of a base to the target, with weights.

    Its settings are those of `AIS`.
    """

    levels: int = 100
    base: Any = None
    kernel: Any = dataclass_field(default_factory=lambda: HMC(0.3, leapfrogs=2, metric="none"))
    moves: int = 1
    ladder: Ladder | None = None

    reports: ClassVar[tuple[str, ...]] = ("log_weight", "accept", "ancestor")
    timed: ClassVar[bool | None] = False
    capturable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        counts(self, levels=1, moves=1)
        object.__setattr__(self, "kernel", as_kernel(self.kernel, sweeps=True))
        check_settled("kernel", self.kernel)
        if self.ladder is not None and not isinstance(self.ladder, Ladder):
            raise InvalidArgument("ladder", self.ladder, "a Ladder, or None")
        if self.base is not None and not {"energy", "draw"} <= offers(self.base):
            raise InvalidArgument("base", field_name(self.base), "a field with energy and draw")

    @property
    def needs(self) -> frozenset[str]:
        """What the weights and the kernel need."""
        needs: frozenset[str] = self.kernel.needs
        return needs | {"energy"}

    @property
    def varying(self) -> tuple[str, ...]:
        """The kinds of the evaluations that the kernel reports."""
        return traits(self.kernel).varying

    @property
    def _ladder(self) -> Ladder:
        return self.ladder if self.ladder is not None else Ladder.plain(self.levels)

    @property
    def init_cost(self) -> Mapping[str, int]:
        """The cost of all kernel steps, where the ladder has its own number of them a level."""
        moves = 0 if self.ladder is None or self.ladder.moves is None else sum(self.ladder.moves)
        return {name: moves * each for name, each in self.kernel.step_cost.items()} if moves else {}

    @property
    def step_cost(self) -> Mapping[str, int]:
        """The cost of a level: an energy for the weight, and the kernel's `init` and steps.

        On a path of the field's own the weight takes two energies, of which one is counted.
        """
        kinds = {"energy", *self.kernel.init_cost, *self.kernel.step_cost}
        start, each = self.kernel.init_cost, self.kernel.step_cost
        # the moves of a ladder that has its own are counted in `init_cost`
        moves = self.moves if self.ladder is None or self.ladder.moves is None else 0
        energies = {
            "energy": 1 + energies_of_jumps(0 if self.ladder is None else self.ladder.jumps)
        }
        return {
            n: energies.get(n, 0) + start.get(n, 0) + moves * each.get(n, 0) for n in sorted(kinds)
        }

    def milestones(self, field: Any) -> tuple[bool, ...]:
        """Each level is a step of the grid."""
        return (True,) * self._ladder.levels

    def start(self, field: StaticField, x: Tensor, noise: NoiseSource) -> Tensor:
        """Draws of the base."""
        drawn: Tensor = self._base(field).draw(len(x), noise)
        return drawn.to(x.device, x.dtype)

    def _base(self, field: StaticField) -> Any:
        return self.base if self.base is not None else plain_base(field)

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> AISState:
        self._check_jumps(field)
        if tuple(self._base(field).event_shape) != field.event_shape:
            raise InvalidArgument(
                "base", field_name(self.base), f"a field of event shape {field.event_shape}"
            )
        check_path(self.kernel, field, self._base(field))
        log_weight = torch.zeros(len(x), dtype=widest(x.device), device=x.device)
        dead = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return AISState(
            x, log_weight, dead, noise.chains.to(x.device), torch.zeros((), dtype=torch.int64)
        )

    def _check_jumps(self, field: StaticField) -> None:
        if self.ladder is None or not self.ladder.jumps:
            return
        assert self.ladder.quantiles is not None
        if tuple(self.ladder.quantiles.shape[2:]) != field.event_shape or states_of(field):
            raise InvalidArgument(
                "ladder",
                self.ladder,
                f"quantiles of continuous events of shape {field.event_shape}",
            )

    def step(
        self, field: StaticField, state: AISState, noise: NoiseSource
    ) -> tuple[AISState, Info]:
        k, ladder, base = int(state.step), self._ladder, self._base(field)
        lower, upper = ladder.weights[k : k + 2]
        gain, dead = rising(field, base, state.x, lower)(upper)
        log_weight = state.log_weight + gain
        weighed = self._resample(
            state._replace(log_weight=log_weight, dead=state.dead | dead), noise
        )
        scale = 1.0 if ladder.scales is None else ladder.scales[k].to(state.x)
        kernel = with_step_size(
            self.kernel, None if ladder.step_sizes is None else ladder.step_sizes[k]
        )
        moves = self.moves if ladder.moves is None else ladder.moves[k]
        inner = NestedNoise(noise, k * max(self.moves, *(ladder.moves or (1,))))
        x, accept, spent = move(
            kernel, kernel_at(field, base, upper, scale), weighed.x, scale, inner, moves
        )
        if ladder.jumps:
            assert ladder.quantiles is not None
            ends, jumps = ladder.quantiles[k].to(x), ladder.jumps
            x = jump(law_at(field, base, upper), x, ends, noise, k * jumps, jumps)
        shown = torch.where(weighed.dead, -torch.inf, weighed.log_weight)
        info = {
            "log_weight": shown,
            "accept": accept,
            "ancestor": weighed.ancestor,
            "evaluations": spent,
        }
        return weighed._replace(x=x, step=state.step + 1), info

    @abstractmethod
    def _resample(self, state: AISState, noise: NoiseSource) -> AISState:
        """The chains that go on from a level, with their weights."""


@dataclass(frozen=True)
class AIS(Annealing):
    """Annealed importance sampling: weighted draws of a static energy, from draws of a base.

    Reports "log_weight" (at the last level that of the final draw), "accept", the mean acceptance
    of the kernel at the level, and "ancestor", the chain whose first draw this one descends from
    (its own number, unless it was resampled).

    Args:
        levels: n, the number of levels, spaced as `(k/n)^3` where no `ladder` is given.
        base: A static field with `energy` and `draw`; by default N(0, I), or uniform over discrete
            states.
        kernel: An exact kernel with nothing left to tune, or its name.
        moves: How many steps the kernel makes at each level.
        ladder: A `Ladder`, in place of `levels`, such as `log_partition` tunes; or None.
    """

    def _resample(self, state: AISState, noise: NoiseSource) -> AISState:
        return state


@dataclass(frozen=True)
class SMC(Annealing):
    """Sequential Monte Carlo: annealed importance sampling, its chains resampled within islands.

    Reports what `AIS` does.

    Args:
        levels: As in `AIS`.
        base: As in `AIS`.
        kernel: As in `AIS`.
        moves: As in `AIS`.
        ladder: As in `AIS`.
        island: How many chains make an island; chains and batches hold whole islands.
        threshold: In [0, 1]: an island is resampled, and its weights made equal, where their
            effective number falls below this share of the chains.
    """

    island: int = 64
    threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        counts(self, island=2)
        fraction("threshold", self.threshold)

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> AISState:
        check_islands(self.island, x, noise)
        return super().init(field, x, noise)

    def _resample(self, state: AISState, noise: NoiseSource) -> AISState:
        u = noise.uniform(state.step, Stream.SWAP, (), torch.float64)
        found = resample_islands(state.log_weight, state.dead, self.island, self.threshold, u)
        renewed = found.renewed
        return AISState(
            select_rows(renewed, state.x[found.source], state.x),
            found.log_weight,
            state.dead & ~renewed,
            torch.where(renewed, state.ancestor[found.source], state.ancestor),
            state.step,
        )
