r"""The probability-flow ODE, from p_init at t = 0 to data at t = 1.

    dx/dt = velocity(x, t) = alpha' D(x, t) + sigma' e(x, t)

Fixed grids run through the tables of `scoretk.solvers.tableaus`, one row an evaluation. Adaptive methods are
torchdiffeq's, with an error norm under which every sample meets the tolerance whatever its neighbours are, and no
evaluation outside the interval.

References: Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, "Score-based generative modeling through stochastic
differential equations" (2021); Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations" (2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.arguments import count, option, positive
from scoretk.errors import InvalidArgument, Status
from scoretk.fields.convert import coefficients
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import TimedField, gaussian_path
from scoretk.grids import grid
from scoretk.rows import finite_rows, select_rows
from scoretk.solvers.adaptive import ADAPTIVE, integrate
from scoretk.solvers.base import Info, read_row
from scoretk.solvers.tableaus import METHODS, Tableau, tableau

__all__ = ["ProbabilityFlow", "velocity_determinate"]


SHARED, TIMES = frozenset({"table", "step"}), frozenset({"times", "step"})


class FlowState(NamedTuple):
    """Position x, the point to evaluate at next, the last prediction: `(chains, *event_shape)`; table and row index."""

    x: Tensor
    ahead: Tensor
    last: Tensor
    table: Tensor
    step: Tensor

    @property
    def shared(self) -> frozenset[str]:
        """Leaves that are not the chains' own."""
        return SHARED


class IntervalState(NamedTuple):
    """Position `(chains, *event_shape)`; the output times; the index of the next interval."""

    x: Tensor
    times: Tensor
    step: Tensor

    @property
    def shared(self) -> frozenset[str]:
        """Leaves that are not the chains' own."""
        return TIMES


@dataclass(frozen=True)
class ProbabilityFlow:
    """Sampling by the probability-flow ODE.

    Arguments: method, fixed-grid "euler", "heun" or "dpmpp_2m", or adaptive, one of torchdiffeq's "dopri5", "dopri8",
    "bosh3", "fehlberg2", "adaptive_heun"; steps, intervals of the grid (the closing one of `denoise` among them); grid,
    None (logistic; uniform in t on the linear path, on a table and without a path), "uniform", "logistic", "karras",
    "log_snr", or increasing times in [0, 1]; denoise, whether a path that ends above sigma = 0 (VE, EDM) gets a last
    first-order step to sigma = 0; rtol, atol and max_steps, for adaptive methods: `|error| <= atol + rtol |x|` in root
    mean square over each sample, and the most steps an interval may take. Adaptive methods walk the grid's intervals
    (default: one).

    The evaluations are the intervals for "euler" and "dpmpp_2m", and two an interval for "heun" (one where it ends at
    sigma = 0).
    """

    method: str = "heun"
    steps: int | None = None
    grid: str | Sequence[float] | None = None
    denoise: bool = False
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000

    timed: ClassVar[bool | None] = True
    init_cost: ClassVar[dict[str, int]] = {}

    def __post_init__(self) -> None:
        option("method", self.method, (*METHODS, *ADAPTIVE))
        if self.steps is not None:
            count("steps", self.steps, least=1)
        positive("rtol", self.rtol)
        positive("atol", self.atol)
        count("max_steps", self.max_steps, least=1)
        if self.grid is not None and not isinstance(self.grid, str):
            object.__setattr__(self, "grid", tuple(grid(self.grid, None, 1).tolist()))

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.method in ADAPTIVE

    @property
    def capturable(self) -> bool:
        """Adaptive methods look at their error after each step, and so synchronise."""
        return not self.adaptive

    @property
    def needs(self) -> frozenset[str]:
        """A velocity; DPM++ is an integrator of the denoiser."""
        return frozenset({"denoise"}) if self.method == "dpmpp_2m" else frozenset({"velocity"})

    @property
    def step_cost(self) -> dict[str, int]:
        """One evaluation a row of the table; adaptive methods report what they used."""
        return {} if self.adaptive else {"velocity": 1}

    def times(self, field: TimedField) -> Tensor:
        """The grid's times, float64."""
        steps = self.steps if self.steps is not None else (1 if self.adaptive else 32)
        closing = self.denoise and field.path is not None and float(field.path.sigma(1.0)) > 0
        if self.adaptive or not closing or (self.grid is not None and not isinstance(self.grid, str)):
            return grid(self.grid, field.path, steps)
        if steps == 1:
            raise InvalidArgument("steps", steps, "at least 2 with denoise=True: the closing step is one of them")
        return grid(self.grid, field.path, steps - 1)

    def milestones(self, field: TimedField) -> tuple[bool, ...]:
        """Which rows complete an interval."""
        return (True,) * (len(self.times(field)) - 1) if self.adaptive else self._tableau(field).milestones

    def init(self, field: TimedField, x: Tensor, noise: NoiseSource) -> FlowState | IntervalState:
        start = torch.zeros((), dtype=torch.int64)
        if self.adaptive:
            return IntervalState(x, self.times(field), start)
        return FlowState(x, x, torch.zeros_like(x), self._tableau(field).rows, start)

    def step(self, field: TimedField, state: Any, noise: NoiseSource) -> tuple[Any, Info]:
        """One evaluation of a fixed-grid method, or one interval of an adaptive one."""
        return self._interval(field, state) if self.adaptive else self._evaluation(field, state)

    def _evaluation(self, field: TimedField, state: FlowState) -> tuple[FlowState, Info]:
        t, a, b, c, a_kept, b_kept, c_kept = read_row(state.table, state.step)
        prediction = field.to("velocity" if field.path is None else "data", state.ahead, t)
        x = ahead = _combine(a, state.x, b, prediction, c, state.last)
        if self.method == "heun":
            x = _combine(a_kept, state.x, b_kept, prediction, c_kept, state.last)
        last = x if self.method == "euler" else prediction  # Euler remembers nothing
        return FlowState(x, ahead, last, state.table, state.step + 1), {}

    def _tableau(self, field: TimedField) -> Tableau:
        if field.path is None and self.method == "dpmpp_2m":
            gaussian_path(field.native, "denoise")
        return tableau(self.method, field.path, self.times(field), self.denoise)

    def _interval(self, field: TimedField, state: IntervalState) -> tuple[IntervalState, Info]:
        start, end = state.times[int(state.step) :][:2].tolist()
        closes = int(state.step) == len(state.times) - 2 and self._closes_apart(field, end)
        reached = self._last_inside(field, end) if closes else end
        x, status, calls = integrate(
            field.velocity, state.x, start, max(start, reached),
            method=self.method, rtol=self.rtol, atol=self.atol, max_steps=self.max_steps,
        )  # fmt: skip
        if closes:
            assert field.path is not None
            closed = float(field.path.alpha(end)) * field.denoise(x, max(start, reached))
            x = select_rows((status == Status.OK) & finite_rows(closed), closed, x)
            status = torch.where((status == Status.OK) & ~finite_rows(closed), int(Status.NONFINITE), status)
        evaluations = torch.full(x.shape[:1], calls + closes, dtype=torch.int64, device=x.device)
        return state._replace(x=x, step=state.step + 1), {"status": status, "evaluations": evaluations}

    def _closes_apart(self, field: TimedField, end: float) -> bool:
        """Whether the run ends with a first-order step to sigma = 0 of its own: asked for, or the velocity has no value there."""
        if field.path is None:
            return False
        sigma = float(field.path.sigma(end))
        return self.denoise if sigma > 0 else not velocity_determinate(field, end)

    def _last_inside(self, field: TimedField, end: float) -> float:
        """Where the closing step starts: the end itself, or, where sigma is 0 there, a level whose square is below atol."""
        assert field.path is not None
        if float(field.path.sigma(end)) > 0:
            return end
        return float(field.path.t(-2 * math.log(0.1 * math.sqrt(self.atol))))


def velocity_determinate(field: TimedField, t: float) -> bool:
    """Whether the field's own prediction determines the velocity at time t (at an end point it may not)."""
    if field.path is None:
        return True
    return all(bool(c.isfinite()) for c in coefficients(field.path, t, field.source, "velocity"))


def _combine(a: Any, x: Tensor, b: Any, y: Tensor, c: Any, z: Tensor) -> Tensor:
    """`a x + b y + c z`; in eager mode, where the coefficients are floats, without the terms that are zero."""
    if isinstance(a, Tensor):
        return a * x + b * y + c * z
    total = torch.add(x * a, y, alpha=b)
    return total if c == 0 else torch.add(total, z, alpha=c)
