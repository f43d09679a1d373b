"""Adaptive integration of `dx/dt = u(x, t)` in which every row has steps and tolerances of its own.

A pair of embedded Runge-Kutta methods with weights a, b, e = b - b_hat and nodes c takes a row from
(x, t) by its own step h to

    k_i = u(x + h sum_j a_ij k_j, t + c_i h),    x' = x + h sum_i b_i k_i,
    error = h sum_i e_i k_i,

the last k_i being that at x', so that it is the first of the next step. In the norm r, the root
mean square over the row of error / (atol + rtol max(|x|, |x'|)), a step is accepted where r <= 1.
Either way the next is, by a proportional-integral control,

    h' = h clip(.9 r^-p r_before^q, .2, 10),    p = .7/order,    q = .4/order,

with r_before that of the last accepted step. At times within a step the state is the quartic

    x(s) = hermite(x, k_1, x', k_last; s) + s^2 (1 - s)^2 h sum_i d_i k_i,    0 <= s <= 1.

All rows make their attempts together, and leave the batch as soon as they arrive or fail: an
evaluation is never spent on a row that is done. Everything is done row by row in elementwise
operations, and r and h'/h are rounded to float32, so that the order in which a sum was taken
decides no step: a row's result is that of the row alone, to the bit where the velocity allows.

References:
    Dormand, Prince, "A family of embedded Runge-Kutta formulae" (1980).
    Bogacki, Shampine, "A 3(2) pair of Runge-Kutta formulas" (1989).
    Tsitouras, "Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying
    assumption" (2011).
    Hairer, Norsett, Wanner, "Solving ordinary differential equations I" (1993), II.4 for the first
    step and the control, II.6 for the quartic.
    Soederlind, "Digital filters in adaptive time-stepping" (2003).
    Lienen, Guennemann, "torchode: a parallel ODE solver for PyTorch" (2022), for rows that step by
    themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import count, finite, floats, option, positive
from scoretk.core.devices import widest
from scoretk.core.rows import across, finite_rows, select_rows
from scoretk.errors import InvalidArgument, Status
from scoretk.fields.resolve import TimedField
from scoretk.ode.velocities import Select, Solved, Velocity

__all__ = ["PAIRS", "Along", "Pair", "RowSolution", "Velocity", "VelocityOf", "integrate_rows"]

Along = Callable[[Tensor, Tensor, Tensor, Tensor], None]

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
RESPONSE, MEMORY = 0.7, 0.4  # p and q in units of 1 / order
LEAST_ERROR = 1e-4  # what r_before counts as at least: a lucky step is no reason to hold back
STRETCH = 1.01  # a step that comes so near to the end goes there
LEAST_ULPS = 16  # the least step, in spacings of floats at the larger end


class VelocityOf:
    """The velocity of a timed field, which can be evaluated at all times of a step together.

    Args:
        field: A timed field as a solver receives it.
    """

    def __init__(self, field: TimedField) -> None:
        self.field = field

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.field.velocity(x, t)


class Pair(NamedTuple):
    """An embedded pair whose last stage is the next step's first.

    Attributes:
        order: The order of x'.
        nodes: c_2, c_3, ...
        weights: The rows a_2, a_3, ..., the last of them b.
        error: e.
        bend: d of the quartic.
    """

    order: int
    nodes: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]
    bend: tuple[float, ...]

    @property
    def stages(self) -> int:
        """Evaluations of an attempt, without the first, which is that of the step before."""
        return len(self.nodes)

    @property
    def adaptive(self) -> bool:
        """Whether it chooses its steps."""
        return True

    @property
    def embedded(self) -> bool:
        """Whether it estimates its error."""
        return True

    @property
    def rowwise(self) -> bool:
        """Whether a row's steps are its own."""
        return True

    @property
    def of_velocity(self) -> bool:
        """Whether a velocity is enough."""
        return True

    def solve(
        self,
        velocity: Velocity,
        x: Tensor,
        stops: Sequence[float],
        *,
        select: Select | None,
        rtol: float,
        atol: float,
        max_steps: int,
    ) -> Solved:
        """`dx/dt = velocity(x, t)` from the first stop to the last, each row with steps of its own.

        Args:
            velocity: As in `integrate_rows`.
            x: Where to start, `(rows, *event)`.
            stops: Times, increasing or decreasing.
            select: As in `integrate_rows`.
            rtol: As in `integrate_rows`.
            atol: As in `integrate_rows`.
            max_steps: As in `integrate_rows`.

        Returns:
            Position at the end, status and evaluations.
        """
        found = integrate_rows(
            velocity,
            x,
            stops[0],
            stops[-1],
            method=self,
            rtol=rtol,
            atol=atol,
            max_steps=max_steps,
            select=select,
        )
        return found.x, found.status, found.evaluations


PAIRS = {
    "dopri5": Pair(
        5,
        (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
        (
            -12715105075 / 11282082432,
            0.0,
            87487479700 / 32700410799,
            -10690763975 / 1880347072,
            701980252875 / 199316789632,
            -1453857185 / 822651844,
            69997945 / 29380423,
        ),
    ),
    "tsit5": Pair(
        5,
        (0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
        (
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (
                5.86145544294642,
                -12.92096931784711,
                8.159367898576159,
                -0.071584973281401,
                -0.028269050394068383,
            ),
            (
                0.09646076681806523,
                0.01,
                0.4798896504144996,
                1.379008574103742,
                -3.290069515436081,
                2.324710524099774,
            ),
        ),
        (
            -0.00178001105222577714,
            -0.0008164344596567469,
            0.007880878010261995,
            -0.1447110071732629,
            0.5823571654525552,
            -0.45808210592918697,
            1 / 66,
        ),
        (
            -1.0530884977290216,
            0.1017,
            2.490627285651252793,
            -16.54810288924490272,
            47.37952196281928122,
            -34.87065786149660974,
            2.5,
        ),
    ),
    "bosh3": Pair(
        3,
        (1 / 2, 3 / 4, 1.0),
        ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        (-5 / 72, 1 / 12, 1 / 9, -1 / 8),
        (0.0, 0.0, 0.0, 0.0),
    ),
}


class RowSolution(NamedTuple):
    """The result of `integrate_rows`.

    A row that did not arrive has its last accepted state in `x`, and in `states` at the times
    beyond.

    Attributes:
        x: The last positions, `(rows, *event)`.
        t: The times there, `(rows,)`.
        status: `Status` codes, `(rows,)`.
        evaluations: Velocity evaluations, `(rows,)`.
        states: x at the times asked for, `(rows, times, *event)`; None where none were.
    """

    x: Tensor
    t: Tensor
    status: Tensor
    evaluations: Tensor
    states: Tensor | None


class Integration(NamedTuple):
    """What all rows share.

    Attributes:
        pair: The embedded pair.
        nodes: Its nodes, `(stages, 1)`.
        start: The time at which the rows start.
        end: The time to reach.
    """

    pair: Pair
    nodes: Tensor
    start: float
    end: float

    @property
    def span(self) -> float:
        """The interval's length, negative where time decreases."""
        return self.end - self.start

    @property
    def least(self) -> float:
        """The least length of a step."""
        return LEAST_ULPS * torch.finfo(self.nodes.dtype).eps * max(abs(self.start), abs(self.end))


class ActiveRows(NamedTuple):
    """The rows under way.

    Attributes:
        rows: Their indices in the batch, `(rows,)`.
        x: Their positions, `(rows, *event)`.
        u: dx/dt there, like x.
        t: Their times, `(rows,)`.
        h: The step to try next, `(rows,)`.
        error: r_before, `(rows,)`.
        rtol: Relative tolerances, shaped to broadcast over x.
        atol: Absolute tolerances, likewise.
    """

    rows: Tensor
    x: Tensor
    u: Tensor
    t: Tensor
    h: Tensor
    error: Tensor
    rtol: Tensor
    atol: Tensor


class Attempt(NamedTuple):
    """An attempted step of every row.

    Attributes:
        h: The step, `(rows,)`.
        x: The position before it, `(rows, *event)`.
        t: The time before it, `(rows,)`.
        x_after: The position after it.
        t_after: The time after it.
        k: The velocities of all stages, each like x.
        error: r, `(rows,)`.
        accepted: Whether r <= 1, `(rows,)` of bool.
    """

    h: Tensor
    x: Tensor
    t: Tensor
    x_after: Tensor
    t_after: Tensor
    k: list[Tensor]
    error: Tensor
    accepted: Tensor


def integrate_rows(
    velocity: Velocity,
    x: Tensor,
    start: float,
    end: float,
    *,
    method: str | Pair = "dopri5",
    rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-5,
    max_steps: int = 10_000,
    at: Sequence[float] | Tensor | None = None,
    select: Select | None = None,
    along: Along | None = None,
) -> RowSolution:
    """Integrate from time `start` to time `end`, in either direction, each row with its own steps.

    Gradients are recorded where autograd is on, with the steps as constants. The host waits for the
    device once a step.

    Args:
        velocity: `(x, t) -> like x` with x `(rows, *event)` and t `(rows,)` in float64 (float32 on
            a device without it), never outside the interval.
        x: Where to start, `(rows, *event)`.
        start: The time there.
        end: The time to reach.
        method: A pair or its name in `PAIRS`.
        rtol: The relative part of the error allowed in a step, `atol + rtol |x|` in root mean
            square over a row; a number or `(rows,)`.
        atol: The absolute part, likewise.
        max_steps: The most attempts.
        at: Times in the interval to report the state at, which cost no evaluation.
        select: For a velocity that depends on the row by more than x: called with the indices
            `(k,)` of the rows that go on whenever others leave, it returns the velocity of these.
            Without it, `velocity` has to serve any rows.
        along: Called as `along(rows, x, t, w)` with points on the trajectories of rows `(k,)`, such
            that the sum of `w f(x, t)` over the calls is the integral of f dt along each row's
            trajectory, to the method's order and with no say in its steps.

    Returns:
        A `RowSolution`. A row costs two evaluations and those of its attempts. One that uses up its
        steps keeps its state, with status `MAX_STEPS`; one whose steps shrink to nothing has
        `NONFINITE` if its velocity is not finite, else `DIVERGED`.

    Raises:
        InvalidArgument: An argument is out of its range.
        UnknownName: No pair has this name.
    """
    pair = method if isinstance(method, Pair) else PAIRS[option("method", method, PAIRS)]
    start = finite("start", start)
    end = finite("end", end)
    attempts = count("max_steps", max_steps, least=1)
    t = torch.full(x.shape[:1], start, dtype=widest(x.device), device=x.device)
    wanted = None if at is None else _inside(at, start, end).to(t)
    tolerances = _tolerance("rtol", rtol, x), _tolerance("atol", atol, x)
    found = _unsolved(x, t, wanted)
    if start == end or not len(x):
        return found._replace(status=torch.zeros_like(found.status))
    shared = Integration(pair, t.new_tensor(pair.nodes)[:, None], start, end)
    active, spent = _started(shared, velocity, x, t, *tolerances), 2
    for _ in range(attempts):
        step = _attempt(shared, velocity, active)
        if along is not None:
            for place in _places(shared, active.rows, step):
                along(*place)
        active, spent = _advanced(shared, active, step), spent + len(pair.nodes)
        arrived = active.t == end
        over = arrived | (active.h.abs() < shared.least)
        if wanted is None:
            leaving = int(over.sum())  # the only point of a step at which the host waits
        else:
            met = _met(shared, step, wanted)
            leaving, meeting = torch.stack([over.sum(), met.sum()]).tolist()  # here likewise
            if meeting:
                _report(pair, found, active.rows, step, wanted, met, meeting)
        if leaving:
            failure = torch.where(
                step.error.isfinite(), int(Status.DIVERGED), int(Status.NONFINITE)
            )
            order = over.to(torch.int8).argsort(stable=True)
            stay, gone = order[:-leaving], order[-leaving:]
            _settle(
                found,
                _rows(active, gone),
                torch.where(arrived, int(Status.OK), failure)[gone],
                spent,
            )
            active = _rows(active, stay)
            if not len(stay):
                break
            velocity = velocity if select is None else select(active.rows)
    _settle(found, active, torch.full_like(active.rows, int(Status.MAX_STEPS)), spent)
    if wanted is not None:
        _hold(shared, found, wanted)
    return found


def _tolerance(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """One tolerance a row, shaped to broadcast over x."""
    if not isinstance(value, Tensor):
        value = x.new_full(x.shape[:1], positive(name, value))
    if value.shape != x.shape[:1] or not bool((value > 0).all()):
        raise InvalidArgument(name, value, f"a positive number, or one a row: shape ({len(x)},)")
    return across(value.to(x), x)


def _inside(at: Sequence[float] | Tensor, start: float, end: float) -> Tensor:
    within = f"times between {start} and {end}, in one dimension"
    times = floats("at", at, within).cpu()
    if times.ndim != 1 or not bool(((times >= min(start, end)) & (times <= max(start, end))).all()):
        raise InvalidArgument("at", at, within)
    return times


def _unsolved(x: Tensor, t: Tensor, wanted: Tensor | None) -> RowSolution:
    none = torch.zeros(x.shape[:1], dtype=torch.int64, device=x.device)
    states = None if wanted is None else x[:, None].repeat_interleave(len(wanted), 1)
    return RowSolution(x.clone(), t.clone(), none, none.clone(), states)


def _rows(active: ActiveRows, rows: Tensor) -> ActiveRows:
    return ActiveRows(*(leaf[rows] for leaf in active))


def _combine(weights: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    """`sum_i weights_i k_i`, term by term.

    A matrix product would round a row according to the rows beside it.
    """
    total = k[0] * weights[0]
    for weight, slope in zip(weights[1:], k[1:], strict=True):
        if weight:
            total.add_(slope, alpha=weight)
    return total


def _row_rms(ratio: Tensor) -> Tensor:
    """The root mean square over each row, `(rows,)`, rounded to float32.

    NaN and infinity give infinity.
    """
    square = ratio.square().reshape(len(ratio), -1)
    return square.mean(1, dtype=widest(ratio.device)).sqrt().float().nan_to_num(torch.inf)


def _started(
    shared: Integration, velocity: Velocity, x: Tensor, t: Tensor, rtol: Tensor, atol: Tensor
) -> ActiveRows:
    """The rows at the start, with their first steps.

    These follow from the sizes of x, u and du/dt, the last by a trial step of Euler's method.
    """
    u = velocity(x, t)
    with torch.no_grad():
        scale, span = atol + rtol * x.abs(), shared.span
        # Sizes in tolerances, times in spans.
        size, speed = (_row_rms(x / scale).to(t), _row_rms(u / scale).to(t) * abs(span))
        usual = (size > 1e-5) & (speed > 1e-5) & speed.isfinite()
        trial = torch.where(usual, 0.01 * size / speed, 1e-4).clamp(max=1.0)
        inside = (t + trial * span).clamp(
            min(shared.start, shared.end), max(shared.start, shared.end)
        )
        turn = velocity(x + across((trial * span).to(x), x) * u, inside) - u
        bend = _row_rms(turn / scale).to(t) * abs(span) / trial
        share = (0.01 / torch.maximum(speed, bend)) ** (1 / shared.pair.order)
        share = torch.maximum(torch.minimum(share, 100 * trial), 0.001 * trial).float().to(t)
        h = share.clamp(min=shared.least / abs(span)) * span
    rows = torch.arange(len(x), device=x.device)
    return ActiveRows(rows, x, u, t, h, torch.ones_like(t), rtol, atol)


def _slopes(
    velocity: Velocity, times: Tensor, dtype: torch.dtype
) -> Sequence[Callable[[Tensor], Tensor]]:
    """The velocity at each of a step's times, `(stages, rows)`, as functions of x."""
    if isinstance(velocity, VelocityOf):
        return velocity.field.velocities(times, dtype)
    return [lambda x, time=time: velocity(x, time) for time in times]  # type: ignore[misc]


def _attempt(shared: Integration, velocity: Velocity, active: ActiveRows) -> Attempt:
    """One step of every row, of the length that it wants but not past the end."""
    x, t = active.x, active.t
    last = STRETCH * active.h / (shared.end - t) >= 1
    after = torch.where(last, shared.end, t + active.h)
    h = after - t
    long, k = across(h.to(x), x), [active.u]
    slopes = _slopes(velocity, torch.lerp(t, after, shared.nodes), x.dtype)
    for weights, slope in zip(shared.pair.weights, slopes, strict=True):
        ahead = torch.addcmul(x, long, _combine(weights, k))
        k.append(slope(ahead))
    with torch.no_grad():
        scale = torch.addcmul(active.atol, active.rtol, torch.maximum(x.abs(), ahead.abs()))
        error = _row_rms(long * _combine(shared.pair.error, k) / scale)
        # A position may overflow at a finite speed.
        error = torch.where(finite_rows(ahead), error, torch.inf)
    return Attempt(h, x, t, ahead, after, k, error, error <= 1)


def _advanced(shared: Integration, active: ActiveRows, step: Attempt) -> ActiveRows:
    """The rows after the attempt, with their next steps."""
    error, order = step.error.to(step.t), shared.pair.order
    factor = SAFETY * error ** (-RESPONSE / order) * active.error ** (MEMORY / order)
    return active._replace(
        x=select_rows(step.accepted, step.x_after, step.x),
        u=select_rows(step.accepted, step.k[-1], step.k[0]),
        t=torch.where(step.accepted, step.t_after, step.t),
        h=step.h * factor.float().clamp(SHRINK, GROW),
        error=torch.where(step.accepted, error.clamp(min=LEAST_ERROR), active.error),
    )


def _places(
    shared: Integration, rows: Tensor, step: Attempt
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The quadrature over the accepted steps.

    Yields:
        Rows, their x and t, and h b_i, for each stage that has a weight.
    """
    taken = step.accepted.nonzero()[:, 0]
    rows, x, t, after, h = (leaf[taken] for leaf in (rows, step.x, step.t, step.t_after, step.h))
    k, long = [slope[taken] for slope in step.k], across(h.to(step.x), step.x)
    stages = zip(((), *shared.pair.weights), (t, *torch.lerp(t, after, shared.nodes)), strict=True)
    for b, (weights, time) in zip(shared.pair.weights[-1], stages, strict=False):
        if b and len(taken):
            yield (
                rows,
                torch.addcmul(x, long, _combine(weights, k[: len(weights)])) if weights else x,
                time,
                b * h,
            )


def _met(shared: Integration, step: Attempt, wanted: Tensor) -> Tensor:
    """Which of the times asked for lie in each row's accepted step, `(rows, times)` of bool."""
    since = (wanted - step.t[:, None]) * shared.span
    left = (step.t_after[:, None] - wanted) * shared.span
    return (since > 0) & (left >= 0) & step.accepted[:, None]


def _report(
    pair: Pair, found: RowSolution, rows: Tensor, step: Attempt, wanted: Tensor, met: Tensor, n: int
) -> None:
    """Write the states at the n times met, by the quartic in its form nested about the chord."""
    assert found.states is not None
    places = met.flatten().to(torch.int8).argsort(descending=True, stable=True)[:n]
    row, which = places // len(wanted), places % len(wanted)
    x, x_after, first, last = (leaf[row] for leaf in (step.x, step.x_after, step.k[0], step.k[-1]))
    h = across(step.h[row].to(x), x)
    s = across(((wanted[which] - step.t[row]) / step.h[row]).to(x), x)
    change, bulge = x_after - x, h * _combine(pair.bend, [k[row] for k in step.k])
    rise = h * first - change
    fall = change - h * last - rise
    found.states[rows[row], which] = x + s * (
        change + (1 - s) * (rise + s * (fall + (1 - s) * bulge))
    )


def _settle(found: RowSolution, active: ActiveRows, status: Tensor, spent: int) -> None:
    """Write down the rows that end here."""
    found.x[active.rows] = active.x
    found.t[active.rows] = active.t
    found.status[active.rows] = status
    found.evaluations[active.rows] = spent


def _hold(shared: Integration, found: RowSolution, wanted: Tensor) -> None:
    """Give rows that failed their last state at the times beyond."""
    assert found.states is not None
    row, which = ((wanted - found.t[:, None]) * shared.span > 0).nonzero(as_tuple=True)
    found.states[row, which] = found.x[row]
