"""Fixed-grid methods of the probability flow as tables of numbers: one row an evaluation.

Every method here is linear in the position x, the present prediction and a few earlier ones, so its
coefficients follow from alpha and sigma alone, in float64, once a run. A row has the numbers of one
evaluation:

    t                           the time at which the field is evaluated
    (p, q)                      of what is remembered, F = p x + q D
    weights of (x, F, F_1, ..)  for the point of the next evaluation, F_1, .. the earlier F
    weights of (x, F, F_1, ..)  for the position

so that a compiled or captured step serves every row, and no evaluation is spent that does not
count. Steps are exact in `x_t = alpha D + sigma e` but for the change of the prediction. With any
`m = a alpha + b sigma` (a `Form`),

    d(x/m) = F d(alpha/m) / b = -F d(sigma/m) / a,        F = b D - a e = (m D - a x) / sigma

    x' = (m'/m) x + (alpha' sigma - alpha sigma') / m  <F>

where `<F>` is the mean of F, evenly in alpha/m (or in sigma/m), over the step.

    form     m               F      evenly in    known as
    DATA     sigma           D      alpha/sigma  DPM-Solver++, UniPC: exponential in log-SNR
    NOISE    alpha           -e     sigma/alpha  DPM-Solver, DEIS, linear multistep
    LINEAR   alpha + sigma   D - e  w            Adams methods in the time of the linear path,
                                                 w = alpha/(alpha+sigma)

A constant F gives DDIM (Euler) in every form. Multistep methods of order k put a polynomial in w
through the last k predictions and average it exactly. In w, unlike in log-SNR, both ends are
ordinary points: D is smooth in `sigma/alpha` where that vanishes and in its inverse where that
does, so high order holds up to alpha = 0 and sigma = 0. A corrector averages the last step once
more with the prediction made since, which costs no evaluation; the first steps, whose order is low
for lack of earlier predictions, are always corrected.

Order is lowered at the start, where the form has no value (m = 0), and on steps so long beside
those before that the weights of `<F>` exceed `LARGEST_WEIGHTS` in absolute sum; a step over which
`1 - w` falls by more than a factor `LONGEST_CORRECTED` is not corrected, because the correction of
narrow data would grow from step to step. `dpmpp_2m`, whose line is one in log-SNR, is of first
order on steps from alpha = 0 or to sigma = 0.

Runge-Kutta methods work in w too; "heun" is Heun's method in `sigma/alpha`, as Karras et al. have
it. "rk4_38" is Kutta's 3/8 rule, "ralston_3" and "ralston_4" the rules of three and four stages
with the least bound on their error. On a step to sigma = 0 those with a stage at its end give way
to one without (`closing`), as there neither does a denoiser determine F nor has a velocity such as
`(data - x) / (1 - t)` a value. A velocity without a Gaussian path counts as the linear path's,
`w = t`.

Rules of a velocity are rules for any `dx/dt = u(x, t)` as well: `solve` follows them between given
times, where no form, path or end has a say. There multistep rules get their past by Kutta's rule
(`STARTER`).

References:
    Butcher, "Coefficients for the study of Runge-Kutta integration processes" (1963).
    Song, Meng, Ermon, "Denoising diffusion implicit models" (2021).
    Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative
    models" (2022).
    Hairer, Norsett, Wanner, "Solving ordinary differential equations I" (1993), III.1 for what
    multistep methods are started with.
    Lu, Zhou, Bao, Chen, Li, Zhu, "DPM-Solver++: fast solver for guided sampling of diffusion
    probabilistic models" (2022).
    Ralston, "Runge-Kutta methods with minimum error bounds" (1962).
    Zhang, Chen, "Fast sampling of diffusion models with exponential integrator" (2023).
    Zhao, Bai, Rao, Zhou, Lu, "UniPC: a unified predictor-corrector framework for fast sampling of
    diffusion models" (2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, zip_longest
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoretk.core.rows import finite_rows
from scoretk.errors import SingularConversion, Status
from scoretk.fields.paths import GaussianPath
from scoretk.ode.velocities import Solved, Velocity

__all__ = ["GRID_RULES", "Knot", "Multistep", "RungeKutta", "Tableau", "knots", "tableau"]

LARGEST_WEIGHTS = 10.0
LONGEST_CORRECTED = 4.0
LAST_STAGE = 0.95
"""The last stage of a step to sigma = 0, as a part of the step. Nearer to 1 the prediction there,
which is large for data narrower than the step, would count for more.
"""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2


class Knot(NamedTuple):
    """A time of the grid.

    Attributes:
        t: The time.
        alpha: The path's alpha there.
        sigma: The path's sigma there.
    """

    t: float
    alpha: float
    sigma: float


class Form(NamedTuple):
    """`m = a alpha + b sigma`, the scale by which x is divided.

    Attributes:
        a: The coefficient of alpha.
        b: The coefficient of sigma.
    """

    a: float
    b: float

    def scale(self, k: Knot) -> float:
        """`m` at a knot."""
        return self.a * k.alpha + self.b * k.sigma

    def remembered(self, k: Knot) -> tuple[float, float]:
        """`(p, q)` with `F = p x + q D` at a knot."""
        return (-self.a / k.sigma, self.scale(k) / k.sigma) if self.a else (0.0, 1.0)

    def step(self, now: Knot, after: Knot) -> tuple[float, float]:
        """The coefficients of x and of `<F>` in a step.

        They are `m'/m` and `(alpha' sigma - alpha sigma') / m`, the latter computed as
        `(alpha' - alpha m'/m) / b` or `(sigma m'/m - sigma') / a`.
        """
        gain = self.scale(after) / self.scale(now)
        return gain, (after.alpha - now.alpha * gain) / self.b if self.b else (
            now.sigma * gain - after.sigma
        ) / self.a


DATA, NOISE, LINEAR = Form(0.0, 1.0), Form(1.0, 0.0), Form(1.0, 1.0)

Mean = Callable[[Sequence[Knot], Knot, Knot, Form], list[float]]
"""`(nodes, now, after, form) -> weights`: those of the predictions at the nodes (newest first) in
`<F>` over the step from now to after.
"""


def polynomial_mean(nodes: Sequence[Knot], now: Knot, after: Knot, form: Form) -> list[float]:
    """`<F>` of the polynomial in w through predictions: its Lagrange polynomials, averaged.

    The quadrature is Gauss-Legendre. Times in w are pairs (w, 1 - w), whose differences
    `w (1 - v) - v (1 - w)` keep their digits near both ends.

    Args:
        nodes: The knots of the predictions, newest first.
        now: The knot at which the step begins.
        after: The knot at which it ends.
        form: The scale and prediction of the method.

    Returns:
        The weight of each prediction.
    """
    m, m_after = form.scale(now), form.scale(after)
    alpha = (1 - _NODES) * m_after * now.alpha + _NODES * m * after.alpha
    sigma = (1 - _NODES) * m_after * now.sigma + _NODES * m * after.sigma
    at = (alpha / (alpha + sigma), sigma / (alpha + sigma))
    w = [(k.alpha / (k.alpha + k.sigma), k.sigma / (k.alpha + k.sigma)) for k in nodes]

    def apart(u: tuple[Any, Any], v: tuple[Any, Any]) -> Any:
        return u[0] * v[1] - v[0] * u[1]

    factors = [[apart(at, v) / apart(u, v) for v in w if v is not u] for u in w]
    return [float(_WEIGHTS @ np.prod(f, 0)) if f else 1.0 for f in factors]


def midpoint_mean(nodes: Sequence[Knot], now: Knot, after: Knot, form: Form) -> list[float]:
    """`<F>` of DPM-Solver++(2M): the line in log-SNR through two predictions, at mid-step.

    Args:
        nodes: The knots of the predictions, newest first.
        now: The knot at which the step begins.
        after: The knot at which it ends.
        form: Not used: the method is one of DATA.

    Returns:
        The weight of each prediction; the newest alone on steps from alpha = 0 or to sigma = 0.

    References:
        Lu, Zhou, Bao, Chen, Li, Zhu, "DPM-Solver++: fast solver for guided sampling of diffusion
        probabilistic models" (2022).
    """
    if len(nodes) == 1 or after.sigma == 0 or nodes[1].alpha == 0:
        return [1.0]
    before, here, there = (math.log(k.alpha / k.sigma) for k in (nodes[1], now, after))
    share = (there - here) / (here - before) / 2
    return [1 + share, -share]


class GridRule:
    """What rules along a given grid share: no estimate of their error, every row by itself."""

    adaptive: ClassVar[bool] = False
    embedded: ClassVar[bool] = False
    rowwise: ClassVar[bool] = True


@dataclass(frozen=True)
class Multistep(GridRule):
    """One evaluation a step: `<F>` from the last predictions.

    Args:
        points: The number of predictions that a step uses.
        form: The scale and prediction in which it works.
        corrected: Whether the last step is averaged once more with the prediction at its end.
        mean: The weights of the predictions in `<F>`.
    """

    points: int
    form: Form
    corrected: bool = False
    mean: Mean = polynomial_mean

    stages: ClassVar[int] = 1

    @property
    def order(self) -> int:
        """The power of the step size in the error at the end."""
        return self.points + self.corrected

    @property
    def memory(self) -> int:
        """How many earlier predictions it uses."""
        return self.order - 1

    @property
    def of_velocity(self) -> bool:
        """Whether a velocity without a Gaussian path is enough."""
        return self.form == LINEAR or self.order == 1

    def solve(self, velocity: Velocity, x: Tensor, stops: Sequence[float], **_: Any) -> Solved:
        """`dx/dt = velocity(x, t)` from stop to stop, for a rule of the velocity.

        The first `memory` steps have no past: they are Kutta's, whose first stages are the past of
        those that follow.

        Args:
            velocity: `(x, t) -> like x`, t a float.
            x: Where to start, `(rows, *event)`.
            stops: Times, increasing or decreasing.

        Returns:
            Position at the end, status and evaluations.
        """
        times = [Knot(t, t, 1 - t) for t in stops]
        slopes: list[Tensor] = []
        shares: list[float] = []
        for i, (now, after) in enumerate(pairwise(times)):
            slopes = [velocity(x, now.t), *slopes[: self.memory]]
            past = times[i::-1][: len(slopes)]
            if i < self.memory:
                x = STARTER.taken(velocity, x, slopes[0], now.t, after.t)
                continue
            if self.corrected and shares:
                before = times[i - 1]
                change = _sum(self._shares(past, before, now, LINEAR), [0.0, *(-s for s in shares)])
                x = x + (now.t - before.t) * _combined(change, slopes)
            shares = self._shares(past[: self.points], now, after, LINEAR)
            x = x + (after.t - now.t) * _combined(shares, slopes)
        steps = len(times) - 1
        return _settled(x, steps + (STARTER.stages - 1) * min(self.memory, steps))

    def rows(self, grid: Sequence[Knot], path: GaussianPath | None) -> list[list[list[float]]]:
        """The rows of each interval of a grid; without a path those of a velocity."""
        form = self.form if path is not None else LINEAR
        first = 0 if form.scale(grid[0]) > 0 else 1
        rows, shares = [], [1.0]
        for i, (now, after) in enumerate(pairwise(grid)):
            own = form if i >= first else DATA
            past = [grid[j] for j in range(i, max(min(first, i), i - self.memory) - 1, -1)]
            gain, rate = own.step(now, after)
            correction = []
            before = grid[i - 1]
            if self._corrects(i - first) and _share_of_noise(
                before
            ) <= LONGEST_CORRECTED * _share_of_noise(now):
                moved = gain * own.step(before, now)[1]
                correction = [
                    moved * c
                    for c in _sum(
                        self._shares(past, before, now, own), [0.0, *(-s for s in shares)]
                    )
                ]
            shares = self._shares(past[: self.points], now, after, own)
            weights = _sum([rate * s for s in shares], correction)
            memorised = own.remembered(now) if path is not None else (0.0, 1.0)
            rows.append([_row(now.t, memorised, (gain, *weights), (gain, *weights), self.memory)])
        return rows

    def _corrects(self, done: int) -> bool:
        """Whether the last of `done` steps is corrected.

        With a corrector all are, otherwise those at which the order still rises.
        """
        return done > 0 and (
            self.corrected or (done < self.points and self.mean is polynomial_mean)
        )

    def _shares(self, nodes: Sequence[Knot], now: Knot, after: Knot, form: Form) -> list[float]:
        """The weights of `<F>`, of the highest order that the step's length allows."""
        for order in range(len(nodes), 1, -1):
            shares = self.mean(nodes[:order], now, after, form)
            if sum(map(abs, shares)) <= LARGEST_WEIGHTS:
                return shares
        return [1.0]


@dataclass(frozen=True)
class RungeKutta(GridRule):
    """Explicit stages within a step.

    Args:
        order: The power of the step size in the error at the end.
        form: The scale and prediction in which it works.
        nodes: c_i, the times of the stages as parts of the step.
        weights: a_ij for every stage after the first, and b_i.
        closing: The rule for steps to sigma = 0, where a stage at the end of the step has no value.
    """

    order: int
    form: Form
    nodes: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    closing: RungeKutta | None = None

    of_velocity: ClassVar[bool] = True

    @property
    def stages(self) -> int:
        """Evaluations a step."""
        return len(self.nodes)

    @property
    def memory(self) -> int:
        """How many earlier predictions it uses."""
        return self.stages - 1

    def solve(self, velocity: Velocity, x: Tensor, stops: Sequence[float], **_: Any) -> Solved:
        """`dx/dt = velocity(x, t)` from stop to stop.

        Args:
            velocity: `(x, t) -> like x`, t a float.
            x: Where to start, `(rows, *event)`.
            stops: Times, increasing or decreasing.

        Returns:
            Position at the end, status and evaluations.
        """
        for now, after in pairwise(stops):
            x = self.taken(velocity, x, velocity(x, now), now, after)
        return _settled(x, self.stages * (len(stops) - 1))

    def taken(
        self, velocity: Velocity, x: Tensor, first: Tensor, now: float, after: float
    ) -> Tensor:
        """The position after one step.

        Args:
            velocity: `(x, t) -> like x`, t a float.
            x: The position before it, `(rows, *event)`.
            first: The velocity there, like x.
            now: The time before it.
            after: The time after it.

        Returns:
            Like x.
        """
        slopes = [first]
        for c, weights in zip(self.nodes[1:], self.weights, strict=False):
            slopes.append(
                velocity(x + (after - now) * _combined(weights, slopes), (1 - c) * now + c * after)
            )
        return x + (after - now) * _combined(self.weights[-1], slopes)

    def rows(self, grid: Sequence[Knot], path: GaussianPath | None) -> list[list[list[float]]]:
        """The rows of each interval of a grid; without a path those of a velocity."""
        return [self._interval(now, after, path) for now, after in pairwise(grid)]

    def _interval(self, now: Knot, after: Knot, path: GaussianPath | None) -> list[list[float]]:
        rule = self.closing if after.sigma == 0 and self.closing else self
        # Behind the path's end no model was trained: a step there has no stage to evaluate.
        rule = _EULER if after.t == now.t else rule
        form = LINEAR if path is None else rule.form if rule.form.scale(now) > 0 else DATA
        stops = [_between(now, after, c, form, path) for c in rule.nodes]
        rows = []
        for stage, there, c, weights in zip(
            stops, [*stops[1:], after], [*rule.nodes[1:], 1.0], rule.weights, strict=True
        ):
            # All stages lie on one straight line: this one is a part c of the whole.
            gain, rate = form.step(now, there)
            ahead = (gain, *(rate / c * w for w in reversed(weights)))
            memorised = form.remembered(stage) if path is not None else (0.0, 1.0)
            rows.append(_row(stage.t, memorised, ahead, (1.0,), self.memory))
        rows[-1] = _row(stops[-1].t, memorised, ahead, ahead, self.memory)
        return rows


def _share_of_noise(k: Knot) -> float:
    """`1 - w = sigma / (alpha + sigma)`."""
    return k.sigma / (k.alpha + k.sigma)


def _between(now: Knot, after: Knot, c: float, form: Form, path: GaussianPath | None) -> Knot:
    """The knot a part c of the way from now to after, evenly in the form's own coordinate."""
    if c in (0.0, 1.0):
        return after if c else now
    if path is None:
        t = now.t + c * (after.t - now.t)
        return Knot(t, t, 1 - t)
    m, m_after = form.scale(now), form.scale(after)
    alpha = (1 - c) * m_after * now.alpha + c * m * after.alpha
    sigma = (1 - c) * m_after * now.sigma + c * m * after.sigma
    t = float(path.t(2 * math.log(alpha / sigma)))
    return Knot(t, float(path.alpha(t)), float(path.sigma(t)))


def _combined(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """`sum_i weights_i slopes_i`, of as many as both have."""
    return torch.stack([w * k for w, k in zip(weights, slopes, strict=False) if w]).sum(0)


def _settled(x: Tensor, evaluations: int) -> Solved:
    """The result of a solve: position, status, and the same number of evaluations for every row."""
    status = torch.where(finite_rows(x), int(Status.OK), int(Status.NONFINITE))
    return x, status, torch.full_like(status, evaluations)


def _sum(u: Sequence[float], v: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip_longest(u, v, fillvalue=0.0)]


def _row(
    t: float,
    memorised: tuple[float, float],
    ahead: Sequence[float],
    kept: Sequence[float],
    memory: int,
) -> list[float]:
    """A row of the table, `3 + 2 (memory + 2)` numbers: see the module's docstring."""
    return [t, *memorised, *_sum(ahead, [0.0] * (memory + 2)), *_sum(kept, [0.0] * (memory + 2))]


def four_stages(c2: float, c3: float, c4: float = 1.0) -> RungeKutta:
    """Kutta's rule with stages at 0, c2, c3, c4 in w, 0 < c2 < c3 < c4 <= 1.

    With b from the quadrature and d_i = sum_j a_ij c_j, the conditions `sum b d = 1/6`,
    `sum b c d = 1/8` and `sum b_i a_ij d_j = 1/24` give the stages. The last one of fourth order,
    `sum b_i a_ij c_j^2 = 1/12`, then holds for c4 = 1 alone (Butcher, 1963): below it the error of
    a single step is of fourth order in its length, as that of all steps before it is.

    Args:
        c2: The second node.
        c3: The third node.
        c4: The last node; where it is 1 the rule closes with `c4 = LAST_STAGE`.

    Returns:
        The rule, of order 4 where c4 = 1, else 3.

    References:
        Butcher, "Coefficients for the study of Runge-Kutta integration processes" (1963).
    """
    b = np.linalg.solve(
        np.vander([0.0, c2, c3, c4], increasing=True).T, [1, 1 / 2, 1 / 3, 1 / 4]
    ).tolist()
    d3 = (c4 / 6 - 1 / 8) / (b[2] * (c4 - c3))
    d4 = (1 / 6 - b[2] * d3) / b[3]
    a32, a43 = d3 / c2, 1 / (24 * b[3] * d3)
    a42 = (d4 - a43 * c3) / c2
    weights = ((c2,), (c3 - a32, a32), (c4 - a42 - a43, a42, a43), tuple(b))
    closing = four_stages(c2, c3, LAST_STAGE) if c4 == 1 else None
    return RungeKutta(4 if c4 == 1 else 3, LINEAR, (0.0, c2, c3, c4), weights, closing)


_R5 = math.sqrt(5)
_EULER = RungeKutta(1, DATA, (0.0,), ((1.0,),))
STARTER = four_stages(1 / 3, 2 / 3)
"""Of fourth order, which all multistep rules here need at most."""

GRID_RULES: dict[str, Multistep | RungeKutta] = {
    "euler": Multistep(1, DATA),
    "trapezoid": RungeKutta(2, LINEAR, (0.0, 1.0), ((1.0,), (1 / 2, 1 / 2)), _EULER),
    "heun": RungeKutta(2, NOISE, (0.0, 1.0), ((1.0,), (1 / 2, 1 / 2)), _EULER),
    "midpoint": RungeKutta(2, LINEAR, (0.0, 1 / 2), ((1 / 2,), (0.0, 1.0))),
    "ralston_3": RungeKutta(
        3, LINEAR, (0.0, 1 / 2, 3 / 4), ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9))
    ),
    "rk4": RungeKutta(
        4,
        LINEAR,
        (0.0, 1 / 2, 1 / 2, 1.0),
        ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
        four_stages(1 / 3, 2 / 3, LAST_STAGE),
    ),
    "rk4_38": STARTER,
    "ralston_4": four_stages(2 / 5, (14 - 3 * _R5) / 16),
    "dpmpp_2m": Multistep(2, DATA, mean=midpoint_mean),
    **{f"multistep_{k}": Multistep(k, DATA) for k in (2, 3, 4)},
    **{f"noise_multistep_{k}": Multistep(k, NOISE) for k in (2, 3, 4)},
    **{f"unipc_{k}": Multistep(k, DATA, corrected=True) for k in (2, 3)},
    **{f"adams_{k}": Multistep(k, LINEAR) for k in (2, 3, 4)},
    **{f"adams_pc_{k}": Multistep(k, LINEAR, corrected=True) for k in (2, 3)},
}
"""Rules by name. The number in a multistep rule's name is that of the predictions a step uses."""


class Tableau(NamedTuple):
    """A method along a grid.

    Attributes:
        rows: `(evaluations, 3 + 2 (memory + 2))`, float64: see the module's docstring.
        milestones: For each row, whether it ends an interval.
    """

    rows: Tensor
    milestones: tuple[bool, ...]


def knots(path: GaussianPath | None, times: Tensor, denoise: bool) -> list[Knot]:
    """The times of a grid with their alpha and sigma.

    Args:
        path: The Gaussian path; None for the linear one.
        times: The grid, `(n + 1,)`, float64.
        denoise: Whether sigma = 0 follows a path's end that is above it.

    Returns:
        A knot for each time, and one more at sigma = 0 where it follows.
    """
    if path is None:
        return [Knot(t, t, 1 - t) for t in times.tolist()]
    found = [
        Knot(*k)
        for k in zip(
            times.tolist(), path.alpha(times).tolist(), path.sigma(times).tolist(), strict=True
        )
    ]
    if denoise and found[-1].sigma > 0:
        found.append(Knot(found[-1].t, found[-1].alpha, 0.0))
    return found


def tableau(
    method: str, path: GaussianPath | None, times: Tensor, denoise: bool = False
) -> Tableau:
    """The rows of a rule along a grid.

    Args:
        method: A name in `GRID_RULES`.
        path: The Gaussian path; None for a velocity without one.
        times: The grid, `(n + 1,)`, float64.
        denoise: Whether the run ends with a step to sigma = 0.

    Returns:
        The rows, and which of them end an interval.

    Raises:
        SingularConversion: The grid goes on behind sigma = 0.
    """
    grid = tuple(knots(path, times, denoise))
    if any(k.sigma == 0 for k in grid[:-1]):
        raise SingularConversion("the grid goes on behind sigma = 0: nothing leads away from there")
    return _along(GRID_RULES[method], grid, path)


@lru_cache(16)
def _along(
    method: Multistep | RungeKutta, grid: tuple[Knot, ...], path: GaussianPath | None
) -> Tableau:
    intervals = method.rows(grid, path)
    ends = tuple(i == len(rows) - 1 for rows in intervals for i in range(len(rows)))
    return Tableau(
        torch.tensor([row for rows in intervals for row in rows], dtype=torch.float64), ends
    )
