r"""Decoupled annealing posterior sampling (DAPS): each noise level from data that are drawn anew.

At level s, `x_t = alpha (x + s e)`, the probability flow leads `x_t` to data x^, around which the data given
`x_t` are taken to be normal; the measurement is drawn in, and what is drawn gets the noise of the next level:

    x^ : the flow from x_t in a few Euler steps
    x  ~ N(x; x^, r^2 I) L(x),      r^2 = s^2 spread^2 / (s^2 + spread^2)
    x_t' = alpha' (x + s' e')

With `y = A x + std eps` the draw is one linear system (`scoretk.fields.posterior.apart`), where the paper makes
Langevin steps. As no point of a level hangs on that of the level before but through the data, large errors of early levels can be
mended later.

Were x a draw of the posterior of x_1 given x_t, x_t' would have the posterior's law at its level, whatever its
grid is. It is where the prior is N(m, spread^2 I) and the flow takes one step, which leads to the mean of x_1
given x_t. The flow itself leads to a draw of the prior, not to that mean: with noise of r around it
directions of which nothing was measured come out too wide, with about twice the variance. With r = s, `spread`
infinite, as it is published, early draws are far from the data as well.

References:
    Zhang, Chu, Berner, Meng, Anandkumar, Song, "Improving diffusion inverse problem solving with
    decoupled noise annealing" (2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from scoretk.core.arguments import counts, positive
from scoretk.core.rows import add_scaled
from scoretk.core.streams import Stream
from scoretk.core.warned import warn
from scoretk.fields.protocols import NoiseSource, field_name
from scoretk.fields.resolve import TimedField, gaussian_path
from scoretk.ode.grids import grid, kept_grid
from scoretk.solvers.base import Info, TableState, read_row
from scoretk.solvers.parts.alternation import alternation, descent

__all__ = ["DAPS"]

EXPONENT = 2.0
"""Levels of the flow's steps fall as this power of what is left of them: of 1, 2, 3 and 7 the one with which five
steps followed the flow of N(0, 1) best between levels of 1 and 10.
"""


@dataclass(frozen=True)
class DAPS:
    """Decoupled annealing, for posteriors of priors in time and linear measurements.

    Of a field that is no posterior the same with nothing measured, which is not the prior, and is
    warned of.

    Args:
        levels: The number of intervals of the grid.
        steps: The steps of the flow from each level to data, each one evaluation.
        grid: As in `ReverseSDE`; where alpha = 0 at its first time, the middle of its first interval
            stands for that.
        spread: The standard deviation of the data, for how far they may be from where the flow
            leads; infinite for r = s.

    Raises:
        InvalidArgument: A setting does not fit; at the start of a run, the measurement is not linear.
    """

    levels: int = 40
    steps: int = 5
    grid: str | Sequence[float] | None = None
    spread: float = math.inf

    needs: ClassVar[frozenset[str]] = frozenset({"denoise"})
    timed: ClassVar[bool | None] = True
    capturable: ClassVar[bool] = False
    init_cost: ClassVar[dict[str, int]] = {}
    step_cost: ClassVar[dict[str, int]] = {"denoise": 1}

    def __post_init__(self) -> None:
        counts(self, levels=1, steps=1)
        if self.spread != math.inf:
            positive("spread", self.spread)
        object.__setattr__(self, "grid", kept_grid(self.grid))

    def times(self, field: TimedField) -> Tensor:
        """The grid's times, float64."""
        path = gaussian_path(field.native, "denoise")
        times = grid(self.grid, path, self.levels)
        if float(path.alpha(times[0])) == 0:
            times = torch.cat([times[:2].mean()[None], times[1:]])
        return times

    def milestones(self, field: TimedField) -> tuple[bool, ...]:
        """Which steps complete an interval."""
        return (*(False,) * (self.steps - 1), True) * (len(self.times(field)) - 1)

    def start(self, field: TimedField, x: Tensor, noise: NoiseSource) -> Tensor:
        """A draw x of the base, brought from t = 0 to the grid's first time."""
        path = gaussian_path(field.native, "denoise")
        return x * float(path.sigma(self.times(field)[0]) / path.sigma(0.0))

    def init(self, field: TimedField, x: Tensor, noise: NoiseSource) -> TableState:
        exact = (
            self.steps == 1 and self.spread < math.inf
        )  # of a normal prior, which the user then has
        if alternation(field).likelihood is None and not exact:
            warn(
                f"DAPS: nothing is measured in {field_name(field.native)}, and draws have about twice the "
                "variance of its law. Take ProbabilityFlow() or ReverseSDE(), or give a measurement: "
                "scoretk.posterior(prior, scoretk.LinearGaussian(...))"
            )
        rows = torch.tensor(self._rows(field), dtype=torch.float64)
        return TableState(x, rows, torch.zeros((), dtype=torch.int64))

    def step(
        self, field: TimedField, state: TableState, noise: NoiseSource
    ) -> tuple[TableState, Info]:
        """One step of the flow; the last of an interval also draws, and leads to the next level.

        A row holds t, the weights of x and D, the width of the draw (0: none), and alpha and sigma of
        the next level.
        """
        t, a, b, width, alpha, sigma = read_row(state.table, state.step)
        turns = alternation(field)
        x = add_scaled(state.x * a, turns.prior.denoise(state.x, t), b)
        if width > 0:
            z = noise.normal(state.step, Stream.PROPOSAL, tuple(x.shape[1:]), x.dtype)
            x = add_scaled(alpha * turns.drawn(x, width, noise, state.step), z, sigma)
        return state._replace(x=x, step=state.step + 1), {}

    def _rows(self, field: TimedField) -> list[tuple[float, ...]]:
        """The table's rows."""
        path, times = gaussian_path(field.native, "denoise"), self.times(field)
        alphas, sigmas = path.alpha(times).tolist(), path.sigma(times).tolist()
        alphas[-1], sigmas[-1] = 1.0, 0.0  # the last draw is one of data
        rows: list[tuple[float, ...]] = []
        for i, (alpha, sigma) in enumerate(zip(alphas[:-1], sigmas[:-1], strict=True)):
            level = sigma / alpha
            for now, after in pairwise(descent(path, level, self.steps, EXPONENT)):
                q = after.sigma * now.alpha / (after.alpha * now.sigma)
                rows.append(
                    (now.t, after.alpha / now.alpha * q, after.alpha * (1 - q), 0.0, 1.0, 0.0)
                )
            width = level / math.hypot(1, level / self.spread)
            rows[-1] = (*rows[-1][:3], width, alphas[i + 1], sigmas[i + 1])
        return rows
