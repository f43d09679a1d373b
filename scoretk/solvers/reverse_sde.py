r"""Reverse-time SDEs of a Gaussian path, from p_init at t = 0 to data at t = 1.

With u the velocity of the probability flow, every member of the family

    dx = (u + a^2/2 score) dt + a dW,    a = eta g,
    g^2 = 2 sigma^2 (alpha'/alpha - sigma'/sigma)

has the path's densities p_t, whether the path was made for diffusion or for flow matching: eta = 0
is the probability flow, eta = 1 the reverse of the diffusion `dx = (alpha'/alpha) x dt + g dW`. In
the coordinates `y = x/alpha`, `s = sigma/alpha`

    dy = (1 + eta^2) (y - D) ds/s + eta sqrt(d(s^2)) dW,      s falling,

whatever the path. With D and `e = (x - alpha D) / sigma` predicted at s, and `q = s'/s`, a step to
s' keeps a part k of the noise and draws the rest anew,

    x' = alpha' D + sigma' (k e + sqrt(1 - k^2) z)

where the methods differ in k (and 2M in D):

    ancestral   k = q^(eta^2), the exact solution while D stays as it is. With eta = 1 this is DDPM,
                a draw of q(x' | x, x_1 = D).
    DDIM        k^2 = 1 - eta^2 (1 - q^2). The same as ancestral with eta = 1 and with eta = 0.
    Euler       k : sqrt(1 - k^2) = g : eta sqrt(1 - q^2),    g = 1 - (1 + eta^2) (1 - q^2) / 2.
                Euler-Maruyama in the time s^2, in which the noise is uniform, `y' = D + s (g e +
                eta sqrt(1 - q^2) z)`, its noise scaled to the level reached.
    DPM++(2M)   As ancestral, with D at the middle of the step, extrapolated in log(alpha/sigma)
                from the last two predictions: SDE-DPM-Solver++(2M). First order on the first step,
                after alpha = 0 and to sigma' = 0. On equal steps of t from alpha = 0, which stay
                long in that logarithm however many they are, its error is `h^2 log(1/h)`.

So a step to sigma' = 0 returns D without noise, one from alpha = 0 is bounded, and where the data
are small beside the noise the scale of x is right however long the steps. (Unscaled, Euler-Maruyama
- with eta = 1 the reverse diffusion sampler of Song et al. - adds `(1 + eta^2)^2 (1 - q^2)^2 / 4`
of s^2 too much variance a step. After alpha = 0 the first ratios q are about 0, 1/2, 2/3, 3/4, ...
on any grid, and an error that is made there decays as `q^(2 eta^2)` only: with eta = 0 never.)
Written in x, each method is `x' = a x + b D + c D_before + d z` with numbers from alpha and sigma
alone: one row of a table for each evaluation.

A corrector makes Langevin steps `y' = y + h score_y + sqrt(2 h) z` at the level just reached, with
Song et al.'s rule for a signal-to-noise ratio r, `h = 2 (r |z| / |score_y|)^2`. They take the mean
of the norms over the batch; here no sample depends on its neighbours. With n entries in a sample

    level     takes the norms that pure noise has, sqrt(n) and sqrt(n)/s, so that h = 2 r^2 s^2 for
              all. In the law of level s it leaves up to r^2 / (1 - r^2) of the variance too much,
              which more steps do not mend.
    sample    takes the norm of the sample's own score: h = 2 r^2 n / |score_y|^2, and at most s^2,
              as no density of level s is more curved than 1/s^2. As h depends on y, the density is
              kept only up to a share 2/n of the variance, however small r: good enough for images,
              not for the plane. (The sample's own |z| would add as much again.)

References:
    Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, "Score-based generative modeling through
    stochastic differential equations" (2021): the reverse SDE, its Euler steps, correctors.
    Ho, Jain, Abbeel, "Denoising diffusion probabilistic models" (2020).
    Song, Meng, Ermon, "Denoising diffusion implicit models" (2021).
    Lu, Zhou, Bao, Chen, Li, Zhu, "DPM-Solver++: fast solver for guided sampling of diffusion
    probabilistic models" (2022).
    Albergo, Boffi, Vanden-Eijnden, "Stochastic interpolants: a unifying framework for flows and
    diffusions" (2023), for the family in a.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import counts, finite, flags, option, positive
from scoretk.core.rows import across, add_scaled, row_sum
from scoretk.core.streams import Stream
from scoretk.core.warned import warn
from scoretk.errors import InvalidArgument, MissingCapability, SingularConversion, UnknownName
from scoretk.fields.combine.powers import exponents
from scoretk.fields.paths import GaussianPath
from scoretk.fields.protocols import NoiseSource, field_name
from scoretk.fields.resolve import TimedField, gaussian_path
from scoretk.fields.wrapped import check_flow, without_flow
from scoretk.ode.grids import grid, kept_grid
from scoretk.ode.names import FOREIGN, Foreign, spelled
from scoretk.ode.registry import has_method
from scoretk.ode.tableaus import Knot, knots
from scoretk.solvers.annealed import TOLD
from scoretk.solvers.base import Info, read_row

__all__ = ["ReverseSDE"]

Weights = tuple[float, float, float, float]

SHARED = frozenset({"table", "step"})


class SDEState(NamedTuple):
    """The state of `ReverseSDE`.

    Position x and the last prediction of the data, each `(chains, *event_shape)`; the table of the
    steps; the index of its next row.
    """

    x: Tensor
    last: Tensor
    table: Tensor
    step: Tensor

    @property
    def shared(self) -> frozenset[str]:
        """Names of the leaves that all chains share."""
        return SHARED


@dataclass(frozen=True)
class ReverseSDE:
    """Sampling by a reverse-time SDE.

    Args:
        method: "euler", "ancestral" (also "ddpm"), "ddim" (also "euler_a") or "dpmpp_2m".
        steps: The number of intervals of the grid, the closing one of `denoise` among them.
        grid: None (logistic; uniform in t on a table), a name in `scoretk.grids.GRIDS`, or
            increasing times in [0, 1].
        eta: The noise in units of the reverse diffusion's own, at least 0, and at most 1 with
            "ddim". Without noise, eta = 0, it is the `ProbabilityFlow` of "euler" or "dpmpp_2m".
            (Code that scales the square of the noise has eta^2 under this name.)
        corrector: How many Langevin steps are made at each level; 0 with "dpmpp_2m". Powers and
            products of fields are refused without any.
        snr: The signal-to-noise ratio r of these steps, in (0, sqrt(1/2)].
        rule: "level" or "sample": the norms that the size of these steps follows.
        denoise: Whether a path that ends above sigma = 0 (VE, EDM) gets a last step to sigma = 0.

    Each interval takes one evaluation, and `corrector` more where it ends above sigma = 0.
    """

    method: str = "dpmpp_2m"
    steps: int = 64
    grid: str | Sequence[float] | None = None
    eta: float = 1.0
    corrector: int = 0
    snr: float = 0.16
    rule: str = "level"
    denoise: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"denoise"})
    timed: ClassVar[bool | None] = True
    capturable: ClassVar[bool] = True
    as_data: ClassVar[tuple[str, ...]] = ("steps", "grid", "eta", "corrector", "snr", "denoise")
    init_cost: ClassVar[dict[str, int]] = {}
    step_cost: ClassVar[dict[str, int]] = {"denoise": 1}

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", _named(self.method))  # one name for one solver
        flags(self, "denoise")
        counts(self, steps=1)
        eta = finite("eta", self.eta)
        if not (0 <= eta <= (1 if self.method == "ddim" else math.inf) and eta * eta < math.inf):
            raise InvalidArgument(
                "eta",
                self.eta,
                "a number of at least 0 with a finite square, and at most 1 with method='ddim'",
            )
        counts(self, corrector=0)
        if self.corrector and self.method == "dpmpp_2m":
            raise InvalidArgument(
                "corrector",
                self.corrector,
                "0 with method='dpmpp_2m', whose memory is of a path without corrections",
                "Take method='ancestral'",
            )
        option("rule", self.rule, ("level", "sample"))
        if not positive("snr", self.snr) <= 0.5**0.5:
            raise InvalidArgument(
                "snr", self.snr, "a positive number of at most sqrt(1/2), with which h = s^2"
            )
        object.__setattr__(self, "grid", kept_grid(self.grid))

    def times(self, field: TimedField) -> Tensor:
        """The grid's times, float64."""
        path = _path(field)
        closing = self.denoise and not isinstance(self.grid, tuple) and float(path.sigma(1.0)) > 0
        if closing and self.steps == 1:
            raise InvalidArgument(
                "steps", 1, "at least 2 with denoise=True: the closing step is one of them"
            )
        return grid(self.grid, path, self.steps - closing)

    def milestones(self, field: TimedField) -> tuple[bool, ...]:
        """Which steps complete an interval: its last correction, or its only step."""
        return tuple(
            i == len(rows) - 1 for rows in self._intervals(field) for i in range(len(rows))
        )

    def init(self, field: TimedField, x: Tensor, noise: NoiseSource) -> SDEState:
        intervals = self._intervals(field)
        rows = [row for interval in intervals for row in interval]
        if len(rows) == len(intervals):  # no corrections, or all levels are at sigma = 0
            check_flow(field)
        self._check_first(field)
        self._warn_of_width(field, rows)
        table = torch.tensor(rows, dtype=torch.float64)
        return SDEState(x, torch.zeros_like(x), table, torch.zeros((), dtype=torch.int64))

    def _check_first(self, field: TimedField) -> None:
        """Refuse a field that says its score alone where no data are in x: alpha = 0.

        The mean of the data, of which every step is made, is `(x + sigma^2 score) / alpha`.
        """
        first = float(self.times(field)[0])
        if field.source == "score" and float(_path(field).alpha(first)) == 0:
            raise MissingCapability(
                field_name(field.native),
                {f"the score at t = {first:g}"},
                {"the mean of the data"},
                f"On {field.path!r} alpha({first:g}) is 0, where the score does not tell it (as that of a power or a "
                "product of fields does not). Take AnnealedLangevin(), or a path whose alpha(0) is above 0, such as VP()",
            )

    def _warn_of_width(self, field: TimedField, rows: list[tuple[float, ...]]) -> None:
        """Warn where corrections are too few for a power or a product of fields, or too large."""
        if without_flow(field) is None:
            return
        off = [self._width(field, rows, power) for power in {*exponents(field)}]
        worst = max(off, key=lambda ratio: abs(math.log(ratio)) if ratio > 0 else math.inf)
        if not 1 - TOLD < worst < 1 + TOLD:
            warn(
                f"ReverseSDE: with {self.corrector} corrections at each level, of snr {self.snr:g}, the variance of "
                f"this power or product of fields ends wrong, {worst:.3g} times that of a standard normal. Set more "
                "of them, or more steps, or take AnnealedLangevin(), which makes as many as are needed"
            )

    def _width(self, field: TimedField, rows: list[tuple[float, ...]], power: float) -> float:
        """The variance at the end for a power of N(0, 1) at every time, in units of the right one."""
        path, t = _path(field), torch.tensor([row[0] for row in rows], dtype=torch.float64)
        alphas, sigmas = path.alpha(t).tolist(), path.sigma(t).tolist()
        variance: float = sigmas[0] ** 2 / power
        for (_, a, b, _, spread, length2), alpha, sigma in zip(rows, alphas, sigmas, strict=True):
            slope = power / (alpha**2 + sigma**2)  # of minus the score
            data = (1 - slope * sigma**2) / alpha if alpha > 0 else 0.0
            part = 1.0
            if length2 < math.inf:  # |mean - x|^2 = n sigma^4 slope^2 variance
                entries = math.prod(field.event_shape)
                part = min(1.0, length2 / (entries * sigma**4 * slope**2 * variance))
            variance = (1 - part + part * (a + b * data)) ** 2 * variance + part * spread**2
        return variance * power

    def start(self, field: TimedField, x: Tensor, noise: NoiseSource) -> Tensor:
        """A draw x of the base, brought from t = 0 to the grid's first time."""
        path = _path(field)
        return x * float(path.sigma(float(self.times(field)[0])) / path.sigma(0.0))

    def step(self, field: TimedField, state: SDEState, noise: NoiseSource) -> tuple[SDEState, Info]:
        """One evaluation, by the next row of the table.

        A row holds t, the weights of x, D, D_before and z, and the square L^2 of a length. With the
        rule "sample" x goes a part p of the way, `x' = x + p (mean - x) + sqrt(p) d z` with p = L^2
        / |mean - x|^2, at most 1. Steps have an infinite length L, and so p = 1; corrections have
        mean = alpha D, d = sqrt(2) sigma, and so p = h / s^2.
        """
        t, a, b, c, spread, length2 = read_row(state.table, state.step)
        x = state.x
        z = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        data = field.denoise(x, t)
        mean = _plus(_plus(x * a, b, data), c, state.last)
        if self.rule == "sample":
            part = across((length2 / row_sum((mean - x).square())).clamp(max=1), x)
            mean, z = torch.lerp(x, mean, part), part.sqrt() * z
        x = _plus(mean, spread, z)
        last = data if self.method == "dpmpp_2m" else x  # no other method reads it
        return SDEState(x, last, state.table, state.step + 1), {}

    def _intervals(self, field: TimedField) -> list[list[tuple[float, ...]]]:
        """The table's rows, interval by interval."""
        points = knots(_path(field), self.times(field), self.denoise)
        if any(k.sigma == 0 for k in points[:-1]):
            raise SingularConversion(
                "the grid goes on behind sigma = 0: nothing leads away from there"
            )
        intervals, weights_of = [], SDE_STEPS[self.method]
        for before, (now, after) in zip([None, *points], pairwise(points), strict=False):
            step = (now.t, *weights_of(before, now, after, self.eta), math.inf)
            corrections = self.corrector if after.sigma > 0 else 0
            intervals.append(
                [step] + [self._correction(after, math.prod(field.event_shape))] * corrections
            )
        return intervals

    def _correction(self, at: Knot, entries: int) -> tuple[float, ...]:
        """The row of a Langevin step at a level, for events of so many entries."""
        part = 2 * self.snr**2
        if self.rule == "sample":
            return at.t, 0.0, at.alpha, 0.0, math.sqrt(2) * at.sigma, part * entries * at.sigma**2
        return at.t, 1 - part, part * at.alpha, 0.0, math.sqrt(2 * part) * at.sigma, math.inf


def _named(method: Any) -> str:
    """The name in `SDE_STEPS` of a method, which may be given by another package's name for it.

    Raises:
        UnknownName: Where no method is known by this name.
    """
    if not isinstance(method, str) or method in SDE_STEPS:
        return option("method", method, SDE_STEPS)
    meant = FOREIGN.get(spelled(method), Foreign())
    if meant.sde:
        return meant.sde
    advice = f"It has no noise: ProbabilityFlow({method!r})" if has_method(method) else meant.advice
    raise UnknownName("method", method, SDE_STEPS, advice)


def _path(field: TimedField) -> GaussianPath:
    return gaussian_path(field.native, "denoise")


def _plus(total: Tensor, weight: Any, term: Tensor) -> Tensor:
    """The sum `total + weight term`; a weight that is a float 0, in eager mode, leaves it out."""
    nothing = not isinstance(weight, Tensor) and weight == 0
    return total if nothing else add_scaled(total, term, weight)


def _ratio(now: Knot, after: Knot) -> float:
    """The ratio of levels `q = s'/s`: 0 from alpha = 0 and to sigma' = 0."""
    return after.sigma * now.alpha / (now.sigma * after.alpha)


def _renewed(now: Knot, after: Knot, kept: float) -> Weights:
    """The weights of `x' = alpha' D + sigma' (k e + sqrt(1 - k^2) z)`, k the part kept."""
    gain = after.sigma / now.sigma * kept
    return gain, after.alpha - now.alpha * gain, 0.0, after.sigma * math.sqrt(1 - kept**2)


def _euler(before: Knot | None, now: Knot, after: Knot, eta: float) -> Weights:
    elapsed = 1 - _ratio(now, after) ** 2
    kept, renewed = 1 - (1 + eta**2) / 2 * elapsed, eta * math.sqrt(elapsed)
    return _renewed(now, after, kept / math.hypot(kept, renewed))


def _ancestral(before: Knot | None, now: Knot, after: Knot, eta: float) -> Weights:
    return _renewed(now, after, _ratio(now, after) ** eta**2)


def _ddim(before: Knot | None, now: Knot, after: Knot, eta: float) -> Weights:
    return _renewed(now, after, math.sqrt(1 - eta**2 * (1 - _ratio(now, after) ** 2)))


def _dpmpp_2m(before: Knot | None, now: Knot, after: Knot, eta: float) -> Weights:
    gain, rate, _, spread = _ancestral(before, now, after, eta)
    if before is None or before.alpha == 0 or after.sigma == 0:
        return gain, rate, 0.0, spread
    ahead = math.log(_ratio(now, after)) / math.log(_ratio(before, now)) / 2
    return gain, rate * (1 + ahead), -rate * ahead, spread


SDE_STEPS: dict[str, Callable[[Knot | None, Knot, Knot, float], Weights]] = {
    "euler": _euler,
    "ancestral": _ancestral,
    "ddim": _ddim,
    "dpmpp_2m": _dpmpp_2m,
}
