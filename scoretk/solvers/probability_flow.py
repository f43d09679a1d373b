r"""The probability-flow ODE, from p_init at t = 0 to data at t = 1.

    dx/dt = velocity(x, t) = alpha' D(x, t) + sigma' e(x, t)

The methods are those of `scoretk.ode.registry`. Methods on a fixed grid read the tables of
`scoretk.ode.tableaus`, one row an evaluation. Adaptive methods give each sample steps of its own
(`scoretk.ode.rowwise`), or are torchdiffeq's, with an error norm under which every sample meets the
tolerance whatever its neighbours are. None evaluates outside its interval.

References:
    Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, "Score-based generative modeling through
    stochastic differential equations" (2021).
    Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations" (2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import counts, flags, positive
from scoretk.core.rows import add_scaled, finite_rows
from scoretk.errors import InvalidArgument, Status
from scoretk.fields.convert import coefficients
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import TimedField, of_rows
from scoretk.fields.wrapped import check_flow
from scoretk.ode.adjoint import BackwardSolve, with_adjoint
from scoretk.ode.grids import grid, kept_grid
from scoretk.ode.registry import Method, Rule, every_method, find_method
from scoretk.ode.rowwise import PAIRS, VelocityOf
from scoretk.ode.tableaus import GRID_RULES, Tableau, tableau
from scoretk.ode.velocities import Solved
from scoretk.solvers.base import Info, read_row

__all__ = ["ProbabilityFlow", "velocity_determinate"]

SHARED, TIMES = frozenset({"table", "step"}), frozenset({"times", "step"})


class FlowState(NamedTuple):
    """The state of a method on a fixed grid.

    Position x, the point to evaluate at next (`ahead`) and past predictions, latest first, each
    `(chains, *event_shape)`; the table of the steps; the index of its next row.
    """

    x: Tensor
    ahead: Tensor
    past: tuple[Tensor, ...]
    table: Tensor
    step: Tensor

    @property
    def shared(self) -> frozenset[str]:
        """Names of the leaves that all chains share."""
        return SHARED


class IntervalState(NamedTuple):
    """The state of an adaptive method.

    Position `(chains, *event_shape)`; the times of the grid; the index of the next interval.
    """

    x: Tensor
    times: Tensor
    step: Tensor

    @property
    def shared(self) -> frozenset[str]:
        """Names of the leaves that all chains share."""
        return TIMES


@dataclass(frozen=True)
class ProbabilityFlow:
    """Sampling by the probability-flow ODE.

    Args:
        method: On a fixed grid one of "euler", "heun" (of Karras et al.), "trapezoid", "midpoint",
            "ralston_3", "rk4", "rk4_38", "ralston_4", "dpmpp_2m", "adams_2" to "_4", "adams_pc_2",
            "_3", "multistep_2" to "_4", "noise_multistep_2" to "_4", "unipc_2", "_3" (see
            `scoretk.ode.tableaus`). Adaptive are "dopri5", "tsit5" and "bosh3", where each sample
            has steps of its own, and torchdiffeq's "dopri8", "fehlberg2", "adaptive_heun",
            "torchdiffeq/dopri5" and "torchdiffeq/bosh3", where the hardest sample sets the step of
            all. Names that other packages give these ("ddim", "dpm++ 2m", ...: `scoretk.ode.names`)
            are taken too, and become the name here.
        steps: The number of intervals of the grid, the closing one of `denoise` among them; None
            for 32, and for 1 with an adaptive method.
        grid: None (logistic; uniform in t on a table and without a path), a name in
            `scoretk.grids.GRIDS`, or increasing times in [0, 1], such as `scoretk.grids.adapt`
            finds.
        denoise: Whether a path that ends above sigma = 0 (VE, EDM) gets a last step to sigma = 0.
        rtol: The relative tolerance of an adaptive method, which keeps `|error| <= atol + rtol |x|`
            in root mean square over each sample.
        atol: The absolute tolerance of an adaptive method.
        max_steps: The most steps that an adaptive method may take in an interval of the grid.
        adjoint: Whether gradients come from the adjoint equation, as `grad="adjoint"` asks (see
            `scoretk.ode.adjoint`); for adaptive methods.

    A method on a fixed grid makes one evaluation an interval, but two for "heun" and "trapezoid"
    (one where the interval ends at sigma = 0) and "midpoint", three for "ralston_3", and four for
    "rk4", "rk4_38" and "ralston_4". No method evaluates a model where sigma is 0, and the closing
    step of `denoise` does at the end of the path alone.

    "adams_3" is the most accurate choice that is also stable where steps are few. From about 16
    steps "adams_pc_3" is more accurate still, and so is "ralston_4" from about 36 evaluations where
    the steps to sigma = 0 are even in `alpha / (alpha + sigma)`. For data much narrower than the
    last levels and fewer than ten steps "dpmpp_2m" is best.
    """

    method: str = "adams_3"
    steps: int | None = None
    grid: str | Sequence[float] | Tensor | None = None
    denoise: bool = False
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000
    adjoint: bool = dataclass_field(default=False, repr=False)

    timed: ClassVar[bool | None] = True
    as_data: ClassVar[tuple[str, ...]] = ("steps", "grid", "denoise", "rtol", "atol", "max_steps")
    init_cost: ClassVar[dict[str, int]] = {}

    def __post_init__(self) -> None:
        method = find_method(self.method)
        # one name for one solver, and none to look up in a compiled step
        object.__setattr__(self, "method", method.name)
        flags(self, "denoise", "adjoint")
        if self.steps is not None:
            counts(self, steps=1)
        positive("rtol", self.rtol)
        positive("atol", self.atol)
        counts(self, max_steps=1)
        if self.adjoint and not method.adaptive:
            known = ", ".join(m.name for m in every_method() if m.adaptive)
            raise InvalidArgument("adjoint", True, f"an adaptive method, one of {known}")
        object.__setattr__(self, "grid", kept_grid(self.grid))

    @property
    def ode_method(self) -> Method:
        """The method's entry in `scoretk.ode.registry`."""
        return find_method(self.method)

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.ode_method.adaptive

    @property
    def with_adjoint(self) -> Callable[[], ProbabilityFlow] | None:
        """Makes this solver with gradients by the adjoint equation; None on a fixed grid."""
        return partial(replace, self, adjoint=True) if self.adaptive else None

    @property
    def capturable(self) -> bool:
        """Whether the grid is fixed: adaptive methods read their error after each step."""
        return not self.adaptive

    @property
    def needs(self) -> frozenset[str]:
        """A velocity; a denoiser for methods that integrate predictions of data or noise."""
        return frozenset({self.ode_method.needs})

    @property
    def step_cost(self) -> dict[str, int]:
        """One evaluation a row of the table; adaptive methods report what they used."""
        return {} if self.adaptive else {"velocity": 1}

    def times(self, field: TimedField) -> Tensor:
        """The grid's times, float64."""
        steps = self.steps if self.steps is not None else (1 if self.adaptive else 32)
        closing = self.denoise and field.path is not None and float(field.path.sigma(1.0)) > 0
        if (
            self.adaptive
            or not closing
            or (self.grid is not None and not isinstance(self.grid, str))
        ):
            return grid(self.grid, field.path, steps)
        if steps == 1:
            raise InvalidArgument(
                "steps", steps, "at least 2 with denoise=True: the closing step is one of them"
            )
        return grid(self.grid, field.path, steps - 1)

    def milestones(self, field: TimedField) -> tuple[bool, ...]:
        """Which steps complete an interval of the grid."""
        if self.adaptive:
            return (True,) * (len(self.times(field)) - 1)
        return self._tableau(field).milestones

    def start(self, field: TimedField, x: Tensor, noise: NoiseSource) -> Tensor:
        """A draw x of the base, brought from t = 0 to the grid's first time."""
        first = float(self.times(field)[0])
        if first == 0 or field.path is None:
            return x
        return x * float(field.path.sigma(first) / field.path.sigma(0.0))

    def init(self, field: TimedField, x: Tensor, noise: NoiseSource) -> FlowState | IntervalState:
        check_flow(field)
        start = torch.zeros((), dtype=torch.int64)
        if self.adaptive:
            return IntervalState(x, self.times(field), start)
        past = tuple(torch.zeros_like(x) for _ in range(self.ode_method.rule.memory))
        return FlowState(x, x, past, self._tableau(field).rows, start)

    def step(self, field: TimedField, state: Any, noise: NoiseSource) -> tuple[Any, Info]:
        """One evaluation of a fixed-grid method, or one interval of an adaptive one."""
        if isinstance(state, IntervalState):
            return self._interval(field, state)
        return self._evaluation(field, state)

    def _evaluation(self, field: TimedField, state: FlowState) -> tuple[FlowState, Info]:
        t, p, q, *weights = read_row(state.table, state.step)
        width = len(weights) // 2
        prediction = field.to("velocity" if field.path is None else "data", state.ahead, t)
        values = (state.x, _combine((p, q), (state.ahead, prediction)), *state.past)
        x = ahead = _combine(weights[:width], values)
        if GRID_RULES[self.method].stages > 1:
            x = _combine(weights[width:], values)
        return FlowState(x, ahead, values[1:-1], state.table, state.step + 1), {}

    def _tableau(self, field: TimedField) -> Tableau:
        return tableau(self.ode_method.name, field.path, self.times(field), self.denoise)

    def _interval(self, field: TimedField, state: IntervalState) -> tuple[IntervalState, Info]:
        start, end = state.times[int(state.step) :][:2].tolist()
        closes = int(state.step) == len(state.times) - 2 and self._closes_apart(field, end)
        reached = self._last_inside(field, end, state.x.dtype) if closes else end
        x, status, evaluations = self._solved(field, state.x, start, max(start, reached))
        well = (status == Status.OK).nonzero().flatten() if closes else status[:0]
        if len(well):  # a failed row is not asked: what the model is there would reach gradients
            closed, calls = self._closed(of_rows(field, well), x[well], max(start, reached), end)
            sound = finite_rows(closed)
            x = x.index_copy(0, well[sound], closed[sound])
            status = status.index_fill(0, well[~sound], int(Status.NONFINITE))
            evaluations = evaluations.index_add(0, well, torch.full_like(well, calls))
        return state._replace(x=x, step=state.step + 1), {
            "status": status,
            "evaluations": evaluations,
        }

    def _closed(self, field: TimedField, x: Tensor, start: float, end: float) -> tuple[Tensor, int]:
        """The closing step: x at the end, where the model is not evaluated.

        It is a midpoint step of the model's own velocity, or else the denoised x.

        Returns:
            x at the end, `(chains, *event_shape)`, and how many evaluations a chain this took.
        """
        if field.source == "velocity" and _bounded(field, end):
            half = (end - start) / 2
            return x + 2 * half * field.velocity(
                x + half * field.velocity(x, start), start + half
            ), 2
        assert field.path is not None
        return float(field.path.alpha(end)) * field.denoise(x, start), 1

    def _solved(self, field: TimedField, x: Tensor, start: float, end: float) -> Solved:
        if not (self.adjoint and torch.is_grad_enabled()):
            return self._integrated(field, start, end, x)
        velocity_of, method = partial(_velocity_of, field), self.ode_method
        back = method.rule if method.rowwise else PAIRS["dopri5"]
        way = BackwardSolve(
            field, velocity_of, start, end, back, self.rtol, self.atol, self.max_steps
        )
        return with_adjoint(partial(self._integrated, field, start, end), x, way)

    def _integrated(self, field: TimedField, start: float, end: float, x: Tensor) -> Solved:
        limits = {"rtol": self.rtol, "atol": self.atol, "max_steps": self.max_steps}
        select = partial(_velocity_of, field)
        rule: Rule = self.ode_method.rule
        return rule.solve(VelocityOf(field), x, (start, end), select=select, **limits)

    def _closes_apart(self, field: TimedField, end: float) -> bool:
        """Whether the run ends with a closing step to sigma = 0.

        Above sigma = 0 it does where `denoise` asks for it; at sigma = 0 where the velocity may
        have no value. A model's own velocity, such as `(data - x) / (1 - t)`, is not evaluated
        there.
        """
        if field.path is None:
            return end == 1
        sigma = float(field.path.sigma(end))
        if sigma > 0:
            return self.denoise
        return field.source == "velocity" or not velocity_determinate(field, end)

    def _last_inside(self, field: TimedField, end: float, dtype: torch.dtype) -> float:
        """The time at which the closing step starts.

        It is the end itself, or, where sigma is 0 there, a level whose square is below atol.
        """
        level = max(0.1 * math.sqrt(self.atol), 64 * torch.finfo(dtype).eps)
        if field.path is None:
            return end - level
        return (
            end if float(field.path.sigma(end)) > 0 else float(field.path.t(-2 * math.log(level)))
        )


def _bounded(field: TimedField, t: float) -> bool:
    """Whether the velocity of a smooth field is bounded at t: not where sigma' is infinite."""
    return field.path is None or bool(field.path.dsigma(t).isfinite())


def _velocity_of(field: TimedField, rows: Tensor) -> VelocityOf:
    """The velocity as a function of x and t at some rows of the batch."""
    return VelocityOf(of_rows(field, rows))


def velocity_determinate(field: TimedField, t: float) -> bool:
    """Whether the field's own prediction determines the velocity at t; at an end it may not."""
    if field.path is None:
        return True
    return all(bool(c.isfinite()) for c in coefficients(field.path, t, field.source, "velocity"))


def _combine(weights: Sequence[Any], values: Sequence[Tensor]) -> Tensor:
    """The sum of `w_i x_i`; weights that are floats, as in eager mode, leave out terms of zero."""
    if isinstance(weights[0], Tensor):
        return sum(
            (w * x for w, x in zip(weights, values, strict=True)), torch.zeros_like(values[0])
        )
    total = None
    for w, x in zip(weights, values, strict=True):
        if total is not None:
            total = total if w == 0 else add_scaled(total, x, w)
        elif w != 0:
            total = x if w == 1 else x * w
    return values[0] * 0.0 if total is None else total
