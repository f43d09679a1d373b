r"""Split Gibbs sampling: posteriors of priors in time by turns, of the measurement and of the prior.

A second point z stands between the data x and what was measured, coupled to x by a standard
deviation rho:

    pi(x, z) ~ p(x) N(z; x, rho^2 I) L(z)

A sweep draws either given the other, and both draws are what is at hand: `z | x` asks the measurement
only, and of `y = A z + std eps` is one linear system (`scoretk.fields.posterior.apart`); `x | z ~ p(x)
N(z; x, rho^2 I)` is the prior's data given themselves with noise of level rho, to which the reverse diffusion
leads from there. Sweeps leave x with the law

    p(x) N(y; A x, std^2 I + rho^2 A A^T),

the posterior of a noise that is too large by rho: the bias goes with rho^2, and is small where rho |A| is
well below std. But x moves by about rho a sweep, so that a small rho does not lead from one mode to another. So
couplings fall from sweep to sweep before they stay; what chains have not met by then they do not find. How many are in
which mode is then that of a coupling on the way, and no number of sweeps behind it mends that.

A step of the reverse diffusion from level s to s', with `q = s'/s` and D the denoised data, is a draw of

    N(q^2 x + (1 - q^2) D, s'^2 (1 - q^2) + (1 - q^2)^2 v),    v = s^2 spread^2 / (s^2 + spread^2)

v being the variance of the data given x of a prior N(m, spread^2 I), for which the step is exact, however long. Ancestral
steps (DDPM's smaller variance) have v = 0: too little noise in each step by a share of about the length
of the step, which adds up over sweeps to a law that is too narrow whatever rho is. With `spread` infinite, v =
s^2, the error goes to 0 with rho at any number of steps; with a single step a sweep without measurement is one of
unadjusted Langevin, `x + rho^2 score + sqrt(2) rho z`.

References:
    Vono, Dobigeon, Chainais, "Split-and-augmented Gibbs sampler - application to large-scale inference
    problems" (2019).
    Coeurdoux, Dobigeon, Chainais, "Plug-and-play split Gibbs sampler: embedding deep generative priors in
    Bayesian inference" (2023).
    Wu, Sun, Chen, Zhang, Yue, Bouman, "Principled probabilistic imaging using diffusion models as
    plug-and-play priors" (2024), for couplings that fall.
    Ho, Jain, Abbeel, "Denoising diffusion probabilistic models" (2020), for both variances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from scoretk.core.arguments import counts, fraction, positive
from scoretk.core.rows import add_scaled
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.paths import GaussianPath
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import TimedField, gaussian_path
from scoretk.ode.tableaus import Knot
from scoretk.solvers.base import Info, TableState, read_row
from scoretk.solvers.parts.alternation import alternation, descent

__all__ = ["SplitGibbs"]

UNMEASURED = 0.1
"""The last coupling where nothing was measured."""


@dataclass(frozen=True)
class SplitGibbs:
    """Split Gibbs sampling, for posteriors of priors in time and linear measurements.

    Of a field that is no posterior it samples the prior. A start that is given (`init=`) is one of data.

    Args:
        coupling: rho, the standard deviation between both points in the last sweeps, in units of the
            data; above the level at which the path ends. None for half of the measurement's std, with which
            an operator of norm 1 is taken to have a quarter more of noise in variance, or .1
            where nothing was measured; at most `first`.
        sweeps: How many draws of each.
        steps: The steps of the reverse diffusion in a sweep, each one evaluation.
        first: rho in the first sweep, at least `coupling` and at most the level at which the path
            begins; it falls geometrically.
        held: In (0, 1]: the share of sweeps, the last ones, that are at `coupling`; with 1 it is the
            Markov chain of one coupling.
        spread: The standard deviation of the data, for the noise of the reverse diffusion; infinite
            for data of any spread.

    Raises:
        InvalidArgument: A setting does not fit; at the start of a run, the measurement is not linear,
            or a coupling is no level of the path.
    """

    coupling: float | None = None
    sweeps: int = 40
    steps: int = 5
    first: float = 10.0
    held: float = 0.25
    spread: float = math.inf

    needs: ClassVar[frozenset[str]] = frozenset({"denoise"})
    timed: ClassVar[bool | None] = True
    capturable: ClassVar[bool] = False
    init_cost: ClassVar[dict[str, int]] = {}
    step_cost: ClassVar[dict[str, int]] = {"denoise": 1}

    def __post_init__(self) -> None:
        counts(self, sweeps=1, steps=1)
        positive("first", self.first)
        if self.coupling is not None and not positive("coupling", self.coupling) <= self.first:
            raise InvalidArgument("first", self.first, f"at least the coupling, {self.coupling:g}")
        fraction("held", self.held, "(0, 1]")
        if self.spread != math.inf:
            positive("spread", self.spread)

    def couplings(self, field: TimedField) -> list[float]:
        """The coupling rho of each sweep."""
        last = self.coupling
        if last is None:
            std = alternation(field).std
            last = min(self.first, UNMEASURED if std is None else std / 2)
        held = math.ceil(self.held * self.sweeps)
        falling = self.sweeps - held
        ratio = last / self.first
        fallen = [self.first * ratio ** (i / falling) for i in range(falling)]
        return fallen + [last] * held

    def milestones(self, field: TimedField) -> tuple[bool, ...]:
        """Which steps complete a sweep."""
        return (*(False,) * (self.steps - 1), True) * self.sweeps

    def start(self, field: TimedField, x: Tensor, noise: NoiseSource) -> Tensor:
        """A draw x of the base, as noise of the first coupling."""
        path = gaussian_path(field.native, "denoise")
        return x * (self.couplings(field)[0] / float(path.sigma(0.0)))

    def init(self, field: TimedField, x: Tensor, noise: NoiseSource) -> TableState:
        path, couplings = gaussian_path(field.native, "denoise"), self.couplings(field)
        alternation(field)
        _check_levels(path, couplings)
        rows = [row for rho in couplings for row in self._sweep(path, rho)]
        table = torch.tensor(rows, dtype=torch.float64)
        return TableState(x, table, torch.zeros((), dtype=torch.int64))

    def step(
        self, field: TimedField, state: TableState, noise: NoiseSource
    ) -> tuple[TableState, Info]:
        """One step of the reverse diffusion, the first of a sweep after a draw by the measurement.

        A row holds t, the width of that draw (0: none) and alpha at t, and the weights of x, D and z.
        """
        t, width, alpha, a, b, spread = read_row(state.table, state.step)
        x, turns = state.x, alternation(field)
        if width > 0:
            x = alpha * turns.drawn(x, width, noise, state.step)
        z = noise.normal(state.step, Stream.PROPOSAL, tuple(x.shape[1:]), x.dtype)
        x = add_scaled(add_scaled(x * a, turns.prior.denoise(x, t), b), z, spread)
        return state._replace(x=x, step=state.step + 1), {}

    def _sweep(self, path: GaussianPath, rho: float) -> list[tuple[float, ...]]:
        """The rows of a sweep."""
        return [
            (now.t, rho if i == 0 else 0.0, now.alpha, *self._weights(now, after))
            for i, (now, after) in enumerate(pairwise(descent(path, rho, self.steps, 1.0)))
        ]

    def _weights(self, now: Knot, after: Knot) -> tuple[float, float, float]:
        """The weights of x, D and z."""
        level, later = now.sigma / now.alpha, after.sigma / after.alpha
        q2 = (later / level) ** 2
        own = level**2 / (1 + (level / self.spread) ** 2)
        noise = later**2 * (1 - q2) + (1 - q2) ** 2 * own
        return (
            after.alpha / now.alpha * q2,
            after.alpha * (1 - q2),
            after.alpha * math.sqrt(noise),
        )


def _check_levels(path: GaussianPath, couplings: list[float]) -> None:
    """Refuse couplings that are no levels of the path."""
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    highest, lowest = (path.sigma(ends) / path.alpha(ends)).tolist()
    if not couplings[0] <= highest:
        raise InvalidArgument(
            "first", couplings[0], f"at most {highest:g}, the level at which {path!r} begins"
        )
    if not couplings[-1] > lowest:
        raise InvalidArgument(
            "coupling", couplings[-1], f"above {lowest:g}, the level at which {path!r} ends"
        )
