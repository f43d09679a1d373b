r"""Annealed Langevin dynamics: unadjusted Langevin through falling noise levels or temperatures.

For noise levels `s_1 > ... > s_L` of a timed field, in the coordinates `y = x/alpha`, `s =
sigma/alpha`, the steps at level i are

    y' = y + a_i grad log p_i(y) + sqrt(2 a_i) z,    a_i = eps s_i^2 / s_L^2,

and the last one is `y + s_L^2 grad log p_L(y)`, the mean of the denoiser. For temperatures
`T_1 > ... > T_L` of a static field the rule is the same with the tempered score `score / T_i` (so
that the factor of the score is `eps / T_L` throughout and only the noise falls):

    a_i = eps T_i / T_L,          x' = x + (a_i / T_i) score(x) + sqrt(2 a_i) z

The ladder and eps can be computed from the data. In D dimensions the techniques of NCSNv2 are:

    1. s_1 is the largest distance between two data points, so that chains can pass between any two.
    2. s_i / s_(i+1) = gamma, such that half of what level i+1 adds to a point lies in the shell of
       radii (sqrt(D) +- 3 / sqrt(2)) s_i that holds what level i adds:
           Phi(sqrt(2 D) (gamma - 1) + 3 gamma) - Phi(sqrt(2 D) (gamma - 1) - 3 gamma) = 1/2.
    3. One network for all levels: score_i(x) = net(x) / s_i.
    4. eps is such that T steps at a level bring the variance from that of the level before as near
       as possible to its own.

The number of steps. Let the law be N(0, s_0^2), raised to the power w: at the level s the
stationary variance is `(s_0^2 + s^2) / w`. With T steps at each of levels whose ratio is gamma, and
`q = eps / s_L^2`, the variance v lags behind it. In u = v w / s_0^2 and z = s^2 / s_0^2

    du/dz = R w / (1 + z) (u - (1 + z)),    R = T q / log gamma,

and at the end u = R w / (R w - 1), whatever s_0 is: the relative excess is `1 / (R w - 1)`, .43 at
technique 4's eps of 32 levels with T = 5, and more for w < 1. By default T keeps it at `EXCESS`.

References:
    Song, Ermon, "Generative modeling by estimating gradients of the data distribution" (2019):
    NCSN.
    Song, Ermon, "Improved techniques for training score-based generative models" (2020): NCSNv2 and
    its techniques.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoretk.core.arguments import (
    count,
    counts,
    finite,
    flags,
    floats,
    function,
    is_integer,
    numbers,
    positive,
    tensor_like,
)
from scoretk.core.keywords import explained
from scoretk.core.streams import Stream
from scoretk.core.warned import warn
from scoretk.errors import InvalidArgument
from scoretk.fields.combine.powers import exponents
from scoretk.fields.paths import EDM, VE, GaussianPath
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import TimedField
from scoretk.fields.wrapped import without_flow
from scoretk.fields.wrappers import Diffusion
from scoretk.ode.grids import LARGEST_LEVEL, SMALLEST_LEVEL, levels
from scoretk.solvers.base import Info, TableState, read_row

__all__ = [
    "AnnealedLangevin",
    "largest_distance",
    "ncsnv2_ladder",
    "ncsnv2_overlap",
    "ncsnv2_ratio",
    "ncsnv2_step_size",
    "unconditional",
]

BLOCK = 2048
EXCESS, STEP = 0.04, 0.5
"""The relative excess of the variance that the default number of steps leaves, and the default size
of a step in units of the largest that is stable for the sum of powers.
"""
TOLD = 0.25
"""The relative excess of a power's variance above which a run warns of steps set by the user."""
FEWEST, MOST = 5, 1_000_000


@explained
def largest_distance(data: Tensor) -> float:
    """The largest Euclidean distance between two rows of data (NCSNv2's technique 1).

    Args:
        data: At least two rows, `(n, *event_shape)`. The work grows as n^2: give a sample of very
            many rows.

    Returns:
        The distance, in units of the data.
    """
    points = _rows(data).flatten(1)
    blocks = (points - points.mean(0)).split(BLOCK)
    return max(float(torch.cdist(a, b).max()) for i, a in enumerate(blocks) for b in blocks[i:])


def _rows(data: Any) -> Tensor:
    """Data with at least two rows and an axis beside that of the rows, in float32 or float64.

    Raises:
        InvalidArgument: For other data.
    """
    rows = tensor_like("data", data, (None,) * max(numbers("data", data).ndim, 2))
    if len(rows) < 2:
        raise InvalidArgument("data", data, "at least two rows")
    # distances are not taken in half precision
    return rows if rows.dtype is torch.float64 else rows.float()


@explained
def ncsnv2_overlap(ratio: float, dim: int) -> float:
    """How much neighbouring noise levels overlap, for NCSNv2's technique 2.

    It is `Phi(sqrt(2 D) (gamma - 1) + 3 gamma) - Phi(sqrt(2 D) (gamma - 1) - 3 gamma)`, which falls
    with gamma from near 1 at gamma = 1.

    Args:
        ratio: gamma >= 1, the ratio of neighbouring levels.
        dim: D, the number of entries of an event.
    """
    if finite("ratio", ratio) < 1:
        raise InvalidArgument("ratio", ratio, "a number of at least 1")
    count("dim", dim, least=1)
    shift = math.sqrt(2 * dim) * (ratio - 1)
    return (
        math.erf((shift + 3 * ratio) / math.sqrt(2)) - math.erf((shift - 3 * ratio) / math.sqrt(2))
    ) / 2


@explained
def ncsnv2_ratio(dim: int, overlap: float = 0.5) -> float:
    """The ratio gamma of neighbouring levels with a given overlap (NCSNv2's technique 2).

    Args:
        dim: D >= 5, the number of entries of an event. (In fewer dimensions levels of any ratio
            overlap.)
        overlap: The value of `ncsnv2_overlap`, in (0, .9].

    Raises:
        InvalidArgument: For other values.
    """
    if count("dim", dim, least=1) < 5:
        raise InvalidArgument(
            "dim",
            dim,
            "at least 5: in fewer dimensions levels of any ratio overlap",
            "Give the ratio yourself",
        )
    if not 0 < positive("overlap", overlap) <= 0.9:
        raise InvalidArgument("overlap", overlap, "a number in (0, .9]")
    low, high = 1.0, 1e3
    for _ in range(100):  # the overlap falls with gamma
        middle = (low + high) / 2
        low, high = (middle, high) if ncsnv2_overlap(middle, dim) > overlap else (low, middle)
    return (low + high) / 2


@explained
def ncsnv2_ladder(
    data: Tensor, sigma_min: float = 0.01, *, overlap: float = 0.5, ratio: float | None = None
) -> Tensor:
    """The levels of NCSNv2 for given data, by its techniques 1 and 2.

    Args:
        data: The data or a sample of them, `(n, *event_shape)`.
        sigma_min: The last level (.01 for pixels in [0, 1]), in units of the data.
        overlap: The overlap of neighbouring levels, in (0, .9].
        ratio: An upper limit of the ratio of neighbouring levels, above 1, in place of `overlap`.

    Returns:
        `(L,)`, float64, decreasing and geometric.

    Raises:
        InvalidArgument: Where the last level is not below the first, or the ratio not above 1.
    """
    data = _rows(data)
    high, low = largest_distance(data), positive("sigma_min", sigma_min)
    if not low < high:
        raise InvalidArgument(
            "sigma_min", low, f"less than {high:.3g}, the largest distance between two data points"
        )
    gamma = ncsnv2_ratio(data[0].numel(), overlap) if ratio is None else positive("ratio", ratio)
    if not gamma > 1:
        raise InvalidArgument("ratio", ratio, "a number above 1")
    return _geometric(
        high, low, 1 + max(1, math.ceil(math.log(high / low) / math.log(gamma) - 1e-9))
    )


@explained
def unconditional(
    net: Callable[..., Tensor], event_shape: Sequence[int], path: VE | EDM
) -> Diffusion:
    """A network without time as a timed field (NCSNv2's technique 3).

    Its score is `score(x, t) = net(x) / sigma(t)`.

    Args:
        net: Called as `net(x, **cond)`, gives a tensor like x.
        event_shape: The shape of one x, without the batch.
        path: A variance-exploding path, such as `VE(ladder[-1], ladder[0])`.

    Raises:
        InvalidArgument: For any other path.
    """
    if not isinstance(path, VE | EDM):
        raise InvalidArgument(
            "path", path, "a variance-exploding path, EDM or VE, on which sigma is the noise level"
        )
    function("net", net, "net(x, **cond), like x")

    def noise(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return -net(x, **cond)  # e = -sigma score

    return Diffusion(noise, event_shape, path, "noise")  # type: ignore[arg-type]


@explained
def ncsnv2_step_size(sigmas: Sequence[float] | Tensor, steps_per_level: int) -> float:
    r"""The step size eps for which T steps bring the noise to that of a level (technique 4).

    With `q = eps / s_L^2`, gamma the ratio of neighbouring levels and `k = 2 q / (1 - (1 - q)^2)`
    it minimises `|(1 - q)^(2T) (gamma^2 - k) + k - 1|`.

    Args:
        sigmas: The decreasing geometric ladder, `(L,)`.
        steps_per_level: T >= 1.

    Returns:
        eps, the step size at the last level.

    Raises:
        InvalidArgument: Where the ladder does not decrease, or a level is not positive.

    References:
        Song, Ermon, "Improved techniques for training score-based generative models" (2020).
    """
    ladder = tensor_like("sigmas", sigmas, (None,)).cpu().double()
    if not len(ladder) or not bool((ladder > 0).all()) or not bool((ladder.diff() < 0).all()):
        raise InvalidArgument("sigmas", sigmas, "a decreasing ladder of positive levels")
    steps = count("steps_per_level", steps_per_level, least=1)
    last = float(ladder[-1])
    gamma = float(ladder[-2] / ladder[-1]) if len(ladder) > 1 else 1.0
    q = torch.logspace(-8, 0, 200_001, dtype=torch.float64)[:-1]  # q = eps / s_L^2

    def off(q: Tensor) -> Tensor:
        k = 2 / (2 - q)
        return ((1 - q) ** (2 * steps) * (gamma**2 - k) + k - 1).abs()

    for _ in range(2):  # coarse over eight decades, then fine between the neighbours of the best
        best = int(off(q).argmin())
        low, high = q[max(best - 1, 0)], q[min(best + 1, len(q) - 1)]
        q = torch.linspace(float(low), float(high), 100_001, dtype=torch.float64)
    return float(q[int(off(q).argmin())]) * last**2


@dataclass(frozen=True)
class AnnealedLangevin:
    """Annealed Langevin over noise levels (timed fields) or temperatures (static fields).

    Args:
        levels: The number of levels (geometric between the path's ends, or from temperature 100 to
            1), or the decreasing levels themselves: sigma/alpha for a timed field, temperatures for
            a static one.
        steps_per_level: T, the number of steps at each level. None takes, for a timed field, as
            many as bring the law's width within 2 %, on powers and products of fields (`tempered`,
            `product`) and under guidance too; for a static one 5. (NCSNv2 takes 5, which leaves a Gaussian a fifth too
            wide.)
        step_size: eps, at the last level. None takes NCSNv2's technique 4 where `steps_per_level`
            is given, else half of the largest stable one, `sigma_L^2` for a single field and as many
            times smaller as exponents add up to for powers, products and guidance; a static
            field has no such rule and needs a number.
        denoise: Whether a timed field's run ends with the denoised mean, one evaluation more.

    `ncsn()` and `ncsnv2(data)` are the published settings.
    """

    levels: int | Sequence[float] = 32
    steps_per_level: int | None = None
    step_size: float | None = None
    denoise: bool = True

    needs: ClassVar[frozenset[str]] = frozenset({"score"})
    timed: ClassVar[bool | None] = None
    capturable: ClassVar[bool] = True
    as_data: ClassVar[tuple[str, ...]] = ("levels", "steps_per_level", "step_size", "denoise")
    init_cost: ClassVar[dict[str, int]] = {}
    step_cost: ClassVar[dict[str, int]] = {"score": 1}

    def __post_init__(self) -> None:
        flags(self, "denoise")
        if isinstance(self.levels, bool) or is_integer(self.levels):
            counts(self, levels=1)
        else:
            ladder = _ladder(self.levels)  # type: ignore[arg-type]
            object.__setattr__(self, "levels", tuple(ladder.tolist()))
        if self.steps_per_level is not None:
            counts(self, steps_per_level=1)
        if self.step_size is not None:
            positive("step_size", self.step_size)

    @classmethod
    def ncsn(cls) -> AnnealedLangevin:
        """The settings of NCSN, for pixels in [0, 1].

        Ten levels from 1 to .01, 100 steps at each, and no closing denoising step. Its eps is
        published as 2e-5 for steps `x + (a/2) score + sqrt(a) z`, which is 1e-5 here.
        """
        return cls(_geometric(1.0, 0.01, 10), 100, step_size=1e-5, denoise=False)  # type: ignore[arg-type]

    @classmethod
    def ncsnv2(
        cls, data: Tensor, sigma_min: float = 0.01, steps_per_level: int = 5, **options: Any
    ) -> AnnealedLangevin:
        """The settings of NCSNv2 for given data, by its techniques 1, 2 and 4.

        Args:
            data: As in `ncsnv2_ladder`.
            sigma_min: As in `ncsnv2_ladder`.
            steps_per_level: T, the number of steps at each level.
            options: Other arguments of `ncsnv2_ladder`.
        """
        return cls(ncsnv2_ladder(data, sigma_min, **options), steps_per_level)  # type: ignore[arg-type]

    @property
    def temperature(self) -> float:
        """The temperature at which a run on a static field ends."""
        return 1.0 if isinstance(self.levels, int) else float(self.levels[-1])

    def ladder(self, field: Any) -> Tensor:
        """The decreasing levels, `(L,)` in float64: sigma/alpha, or temperatures."""
        if not isinstance(self.levels, int):
            return torch.tensor(self.levels, dtype=torch.float64)
        high, low = (100.0, 1.0) if not isinstance(field, TimedField) else _span(field.path)
        return _geometric(high, low, self.levels)

    def milestones(self, field: Any) -> tuple[bool, ...]:
        """Every Langevin step counts as an interval, and so does the closing denoising step."""
        extra = 1 if self.denoise and isinstance(field, TimedField) else 0
        return (True,) * (len(self.ladder(field)) * self._steps(field, self.ladder(field)) + extra)

    def init(self, field: Any, x: Tensor, noise: NoiseSource) -> TableState:
        self._warn_of_excess(field)
        if isinstance(field, TimedField):
            path = _path(field.path)
            x = x / float(path.alpha(self._first(field, path)))
        return TableState(x, self._table(field), torch.zeros((), dtype=torch.int64))

    def step(self, field: Any, state: TableState, noise: NoiseSource) -> tuple[TableState, Info]:
        """One step, by the next row of the table: t, alpha, the weight of the score, the noise."""
        t, alpha, drift, spread = read_row(state.table, state.step)
        z = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        if isinstance(field, TimedField):
            score = field.score(state.x * alpha, t)
        else:
            score = field.score(state.x)
        return state._replace(x=state.x + drift * score + spread * z, step=state.step + 1), {}

    def start(self, field: Any, x: Tensor, noise: NoiseSource) -> Tensor:
        """A draw x of a timed field's base, brought from t = 0 to the first level."""
        if not isinstance(field, TimedField):
            return x
        path = _path(field.path)
        return x * float(path.sigma(self._first(field, path)) / path.sigma(0.0))

    def _first(self, field: Any, path: GaussianPath) -> float:
        return float(path.t(-2 * self.ladder(field)[0].log()).clamp(0, 1))

    def _table(self, field: Any) -> Tensor:
        ladder = self.ladder(field)
        size = self._size(field, ladder)
        if not isinstance(field, TimedField):
            drift = torch.full_like(ladder, size) / ladder[-1]
            spread = torch.sqrt(2 * size * ladder / ladder[-1])
            rows = torch.stack([torch.ones_like(ladder), torch.ones_like(ladder), drift, spread], 1)
            return rows.repeat_interleave(self._steps(field, ladder), 0)
        path = _path(field.path)
        t = path.t(-2 * ladder.log()).clamp(0, 1)
        alpha, a = path.alpha(t), size * (ladder / ladder[-1]) ** 2
        steps = self._steps(field, ladder)
        rows = torch.stack([t, alpha, a * alpha, torch.sqrt(2 * a)], 1)
        rows = rows.repeat_interleave(steps, 0)
        if self.denoise:
            last = torch.stack(
                [t[-1], alpha[-1], ladder[-1] ** 2 * alpha[-1], torch.zeros_like(t[-1])]
            )
            rows = torch.cat([rows, last[None]])
        return rows

    def _steps(self, field: Any, ladder: Tensor) -> int:
        """The number T of steps at each level (see the module)."""
        if self.steps_per_level is not None:
            return self.steps_per_level
        if not isinstance(field, TimedField):
            return FEWEST
        rate = (1 + 1 / EXCESS) / exponents(field)[0]
        size = self._size(field, ladder)
        steps = rate * _log_ratio(ladder) * float(ladder[-1]) ** 2 / size
        if not steps < MOST:
            raise InvalidArgument(
                "step_size",
                size,
                f"a step that needs fewer than {MOST:,} of its kind at each level: it takes {steps:.3g}",
                "Leave it out, or say steps_per_level",
            )
        return max(FEWEST, math.ceil(steps - 1e-9))

    def _size(self, field: Any, ladder: Tensor) -> float:
        """The step size eps at the last level."""
        if self.step_size is not None:
            return float(self.step_size)
        if not isinstance(field, TimedField):
            raise InvalidArgument(
                "step_size",
                None,
                "a positive number: over a tempering ladder there is no rule for it",
                "Start from a step size that ULA takes at temperature 1",
            )
        stable = float(ladder[-1]) ** 2 / max(1.0, exponents(field)[1])
        if self.steps_per_level is None:
            return STEP * stable
        return min(ncsnv2_step_size(ladder, self.steps_per_level), stable)

    def _warn_of_excess(self, field: Any) -> None:
        """Warn where a power of timed fields ends too wide, by settings of the user."""
        if self.steps_per_level is None or not isinstance(field, TimedField):
            return
        least, ladder = exponents(field)[0], self.ladder(field)
        q = self._size(field, ladder) / float(ladder[-1]) ** 2
        rate = (
            self.steps_per_level * q / _log_ratio(ladder) * least if len(ladder) > 1 else math.inf
        )
        if without_flow(field) is not None and rate < 1 + 1 / TOLD:
            wide = f"{rate / (rate - 1):.3g} times" if rate > 1 else "without a bound"
            warn(
                f"AnnealedLangevin: with {self.steps_per_level} steps at each of {len(ladder)} levels the "
                f"variance of this power or product of fields ends too large, {wide} for a Gaussian. "
                "Leave steps_per_level out, or set more of them"
            )


def _log_ratio(ladder: Tensor) -> float:
    """The logarithm of the largest ratio of neighbouring levels; 0 of a single level."""
    return float(-ladder.log().diff().min()) if len(ladder) > 1 else 0.0


def _geometric(high: float, low: float, n: int) -> Tensor:
    """Geometric levels from high to low, `(n,)` in float64; a single one is low."""
    if n > 1:
        steps = torch.linspace(0, 1, n, dtype=torch.float64)
    else:
        steps = torch.ones(1, dtype=torch.float64)
    return torch.exp(math.log(high) * (1 - steps) + math.log(low) * steps)


def _ladder(values: Sequence[float] | Tensor) -> Tensor:
    decreasing = "an integer, or decreasing positive numbers"
    ladder = floats("levels", values, decreasing).cpu().flatten()
    squares = ladder.square()  # which the steps are made of
    falling = len(ladder) > 0 and bool((ladder.diff() < 0).all()) and float(squares[-1]) > 0
    if not (falling and math.isfinite(squares[0])):
        raise InvalidArgument("levels", values, decreasing)
    return ladder


def _path(path: GaussianPath | None) -> GaussianPath:
    assert path is not None  # resolve has refused a timed field that has no score
    return path


def _span(path: GaussianPath | None) -> tuple[float, float]:
    high, low = levels(_path(path), torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    return min(high, LARGEST_LEVEL), max(low, SMALLEST_LEVEL)
