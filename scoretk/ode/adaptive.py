"""Adaptive integration of `dx/dt = velocity(x, t)` by torchdiffeq's pairs, with guarantees added.

One step size serves the batch; the error norm is the largest over rows of the root-mean-square
scaled error, so each row meets the tolerance whatever its neighbours are. The last step ends on the
interval's end (torchdiffeq would pass it and interpolate), and no stage is evaluated outside. A row
whose velocity becomes non-finite is held still and flagged instead of ending the batch.

Where this package has a pair of the same name (`dopri5`, `bosh3`, which go row by row),
torchdiffeq's is named `torchdiffeq/dopri5`.

References:
    Dormand, Prince, "A family of embedded Runge-Kutta formulae" (1980).
    Bogacki, Shampine, "A 3(2) pair of Runge-Kutta formulas" (1989).
    Fehlberg, "Low-order classical Runge-Kutta formulas with stepsize control and their application
    to some heat transfer problems" (1969).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import option
from scoretk.core.devices import widest
from scoretk.core.rows import finite_rows, select_rows
from scoretk.errors import Status
from scoretk.ode.velocities import Solved, Velocity

__all__ = ["TORCHDIFFEQ", "Borrowed", "Integral", "integrate", "largest_row_rms"]


@dataclass(frozen=True)
class Borrowed:
    """A pair of torchdiffeq's.

    Attributes:
        name: Its name there.
        order: Its order.
        stages: The evaluations of every further step.
    """

    name: str
    order: int
    stages: int

    adaptive: ClassVar[bool] = True
    embedded: ClassVar[bool] = True
    rowwise: ClassVar[bool] = False
    of_velocity: ClassVar[bool] = True

    def solve(
        self,
        velocity: Velocity,
        x: Tensor,
        stops: Sequence[float],
        *,
        rtol: float,
        atol: float,
        max_steps: int,
        **_: Any,
    ) -> Solved:
        """`dx/dt = velocity(x, t)` from the first stop to the last, with steps that the batch
        shares.

        Args:
            velocity: `(x, t) -> like x`, t a float.
            x: Where to start, `(rows, *event)`.
            stops: Times, increasing or decreasing.
            rtol: Relative tolerance of a step.
            atol: Absolute tolerance of a step.
            max_steps: The most steps.

        Returns:
            Position at the end, status and evaluations.
        """
        found = integrate(
            velocity, x, stops[0], stops[-1], method=self, rtol=rtol, atol=atol, max_steps=max_steps
        )
        return found.x, found.status, torch.full_like(found.status, found.evaluations)


TORCHDIFFEQ = {
    "torchdiffeq/dopri5": Borrowed("dopri5", 5, 6),
    "torchdiffeq/bosh3": Borrowed("bosh3", 3, 3),
    "dopri8": Borrowed("dopri8", 8, 13),
    "fehlberg2": Borrowed("fehlberg2", 2, 2),
    "adaptive_heun": Borrowed("adaptive_heun", 2, 1),
}
"""Two names have the prefix as this package has pairs of the bare names; the others may have it."""


class Integral(NamedTuple):
    """The result of `integrate`.

    Attributes:
        x: The position at the end, like the start.
        status: `Status` codes, `(batch,)`.
        evaluations: Velocity evaluations of the whole batch.
    """

    x: Tensor
    status: Tensor
    evaluations: int


def largest_row_rms(scaled: Tensor) -> Tensor:
    """The error norm: the largest over rows of the root mean square over a row.

    Autograd takes the steps that it sets as constants.

    Args:
        scaled: Errors in units of the tolerance, `(batch, *event)`.

    Returns:
        `()`.
    """
    return scaled.detach().reshape(len(scaled), -1).square().mean(1).max().sqrt()


class _Guarded:
    """The velocity as the integrator calls it: inside the interval, failed rows at rest,
    counted.
    """

    def __init__(
        self, velocity: Callable[[Tensor, float], Tensor], x: Tensor, start: float, end: float
    ) -> None:
        self.velocity, self.low, self.high = velocity, min(start, end), max(start, end)
        self.alive = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.calls = 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        u = self.velocity(x, min(max(float(t), self.low), self.high))
        self.alive = self.alive & finite_rows(u)
        return select_rows(self.alive, u, torch.zeros_like(u))


def integrate(
    velocity: Callable[[Tensor, float], Tensor],
    x: Tensor,
    start: float,
    end: float,
    *,
    method: str | Borrowed = "torchdiffeq/dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
) -> Integral:
    """Integrate from time `start` to time `end`, in either direction.

    Args:
        velocity: `(x, t) -> like x`, t a float.
        x: `(batch, *event)`.
        start: The time of x.
        end: The time to reach.
        method: A pair or its name in `TORCHDIFFEQ`.
        rtol: The relative part of the error allowed in a step, `atol + rtol |x|`.
        atol: The absolute part.
        max_steps: The most steps, all rows together.

    Returns:
        An `Integral`. A failed row stays where it started, with status `NONFINITE`; where the steps
        run out or shrink to nothing all rows do, with `MAX_STEPS` or `DIVERGED`.
    """
    # Here, as it imports scipy, which takes longer than all of this package.
    from torchdiffeq import odeint

    if isinstance(method, Borrowed):
        pair = method
    else:
        pair = TORCHDIFFEQ[option("method", method, TORCHDIFFEQ)]
    guarded = _Guarded(velocity, x, start, end)
    times = torch.tensor([start, end], dtype=widest(x.device), device=x.device)
    options = {"norm": largest_row_rms, "step_t": times[1:], "max_num_steps": max_steps}
    options["dtype"] = times.dtype  # of its clock
    failure = Status.OK
    try:
        final = odeint(guarded, x, times, rtol=rtol, atol=atol, method=pair.name, options=options)[
            -1
        ]
    except AssertionError as error:  # torchdiffeq's way of saying that it gave up
        failure = Status.MAX_STEPS if "max_num_steps" in str(error) else Status.DIVERGED
        final = x
    fine = guarded.alive & finite_rows(final)
    status = torch.where(fine, int(failure), int(Status.NONFINITE))
    return Integral(select_rows(fine, final, x), status, guarded.calls)
