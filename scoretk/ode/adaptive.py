r"""Adaptive integration of `dx/dt = velocity(x, t)` by torchdiffeq's Runge-Kutta pairs, with guarantees added.

One step size serves the batch; the error norm is the largest over rows of the root-mean-square scaled error, so each
row meets the tolerance whatever its neighbours are. The last step ends on the interval's end (torchdiffeq would pass it
and interpolate), and no stage is evaluated outside. A row whose velocity becomes non-finite is held still and flagged
instead of ending the batch.

Reference: Dormand, Prince, "A family of embedded Runge-Kutta formulae" (1980).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoretk.core.rows import finite_rows, select_rows
from scoretk.errors import Status

__all__ = ["ADAPTIVE", "Integral", "integrate", "largest_row_rms"]

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


class Integral(NamedTuple):
    """Position at the end, like x; `Status` codes `(batch,)`; velocity evaluations of the whole batch."""

    x: Tensor
    status: Tensor
    evaluations: int


def largest_row_rms(scaled: Tensor) -> Tensor:
    """The error norm: root mean square over each row, the largest over rows. The steps that it sets are constants to autograd."""
    return scaled.detach().reshape(len(scaled), -1).square().mean(1).max().sqrt()


class _Guarded:
    """The velocity as the integrator sees it: inside the interval, failed rows at rest, calls counted."""

    def __init__(self, velocity: Callable[[Tensor, float], Tensor], x: Tensor, start: float, end: float) -> None:
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
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
) -> Integral:
    """Integrate from time `start` to time `end`, in either direction.

    Arguments: velocity, `(x, t) -> like x`; x `(batch, *event)`; method, a name in `ADAPTIVE`; rtol and atol, the error
    allowed a step, `atol + rtol |x|`; max_steps.
    Returns: an `Integral`. A failed row stays where it started, with status `NONFINITE`; where the steps run out or
    shrink to nothing all rows do, with `MAX_STEPS` or `DIVERGED`.
    """
    from torchdiffeq import odeint  # here, as it imports scipy, which takes longer than all of this package

    guarded = _Guarded(velocity, x, start, end)
    times = torch.tensor([start, end], dtype=torch.float64, device=x.device if x.device.type != "mps" else "cpu")
    options = {"norm": largest_row_rms, "step_t": times[1:], "max_num_steps": max_steps}
    failure = Status.OK
    try:
        final = odeint(guarded, x, times, rtol=rtol, atol=atol, method=method, options=options)[-1]
    except AssertionError as error:  # torchdiffeq's way of saying that it gave up
        failure = Status.MAX_STEPS if "max_num_steps" in str(error) else Status.DIVERGED
        final = x
    fine = guarded.alive & finite_rows(final)
    status = torch.where(fine, int(failure), int(Status.NONFINITE))
    return Integral(select_rows(fine, final, x), status, guarded.calls)
