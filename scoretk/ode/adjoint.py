"""Gradients through an adaptive solve by the adjoint equation, which stores the final state only.

For `dx/dt = u(x, t; theta)` from t_0 to t_1 and a loss L of x(t_1), the adjoint `a = dL/dx` goes
back along with x by

    da/dt = -(du/dx)^T a,      dL/dx(t_0) = a(t_0)
    dL/dtheta = int_{t_0}^{t_1} (du/dtheta)^T a dt.

Whatever the method of the forward solve, each row goes back with steps of its own
(`scoretk.ode.rowwise`). Its adjoint is measured in units of its size at t_1, so that the tolerances
are relative to it and a loss times c has gradients times c. The integral, which belongs to all rows
together, is summed over their steps by the pair's own weights and has no say in the steps.

These are the gradients of the exact solution, up to the tolerances; those of the steps taken differ
by as much. Going back magnifies errors in x as much as going forwards contracts them; where that is
too much, a solve cut into intervals (`steps` of `ProbabilityFlow`) starts from the stored x at the
end of each.

References:
    Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations" (2018).
    Gholami, Keutzer, Biros, "ANODE: unconditionally accurate memory-efficient gradients for neural
    ODEs" (2019), for the magnified errors.
    Kidger, Chen, Lyons, "'Hey, that's not an ODE': faster ODE adjoints via seminorms" (2021), for
    the integral that has no say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.core.modules import field_tensors, left_as_found
from scoretk.core.once import known_once
from scoretk.core.rows import across
from scoretk.errors import InvalidArgument, ScoretkError, Status
from scoretk.fields.resolve import TimedField
from scoretk.ode.rowwise import Pair, integrate_rows
from scoretk.ode.velocities import Solved, Velocity

__all__ = ["BackwardSolve", "with_adjoint"]


@dataclass(frozen=True, eq=False)
class BackwardSolve:
    """The solve backwards.

    Attributes:
        field: The field as a solver receives it, whose parameters get gradients.
        velocity_of: The velocity of some of the rows, by their indices.
        start: The time t_0 of the forward solve, where this one ends.
        end: The time t_1, where it begins.
        method: As in `integrate_rows`.
        rtol: As in `integrate_rows`.
        atol: As in `integrate_rows`.
        max_steps: As in `integrate_rows`.
    """

    field: TimedField
    velocity_of: Callable[[Tensor], Velocity]
    start: float
    end: float
    method: str | Pair
    rtol: float
    atol: float
    max_steps: int


def with_adjoint(solve: Callable[[Tensor], Solved], x: Tensor, way: BackwardSolve) -> Solved:
    """`solve(x)`, with gradients by the adjoint equation.

    They go to x, and to all that the field holds (weights, condition rows).

    Args:
        solve: The forward solve, which runs without a graph.
        x: `(rows, *event)`.
        way: How to go back.

    Returns:
        What `solve` returns. A row that failed passes no gradient on.

    Raises:
        InvalidArgument: The velocity depends on a tensor that wants gradients and is not among what
            the field shows.
        ScoretkError: In the backward pass, where a row does not arrive.
    """
    parameters = list({id(p): p for p in field_tensors(way.field) if p.requires_grad}.values())
    first = torch.zeros(1, dtype=torch.int64, device=x.device)
    y, u = _evaluated(way, first, x[:1], torch.full_like(x[:1].reshape(1, -1)[:, 0], way.start))
    _check_shown(u, [y, *parameters])
    solved: Solved = _Adjoint.apply(solve, way, x, *parameters)  # type: ignore[no-untyped-call]
    return solved


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        solve: Callable[[Tensor], Solved],
        way: BackwardSolve,
        x: Tensor,
        *parameters: Tensor,
    ) -> Solved:
        end, status, evaluations = solve(x)
        ctx.way = way
        ctx.save_for_backward(end, status, *parameters)
        ctx.mark_non_differentiable(status, evaluations)
        return end, status, evaluations

    @staticmethod
    def backward(ctx: Any, a: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        end, status, *parameters = ctx.saved_tensors
        # In eval mode again: the run that held the modules in it is over.
        with torch.no_grad(), left_as_found(ctx.way.field, grad=True):
            found = _back(ctx.way, end, a, status == int(Status.OK), parameters)
        return None, None, *(known_once(part, a, end, *parameters) for part in found)


def _back(
    way: BackwardSolve, x: Tensor, a: Tensor, arrived: Tensor, parameters: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients of the adjoint equation.

    Args:
        way: How to go back.
        x: The positions at t_1, `(rows, *event)`.
        a: dL/dx there, like x.
        arrived: The rows that did not fail, `(rows,)` of bool.
        parameters: Tensors of the field.

    Returns:
        dL/dx at t_0, like x, and then dL/dtheta for each of the parameters.
    """
    size = a.reshape(len(a), -1).abs().amax(1)
    rows = (arrived & (size != 0)).nonzero()[:, 0]
    size = size[rows]
    sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, x.dtype)) for p in parameters]

    def rate(which: Tensor) -> Velocity:
        def augmented(z: Tensor, t: Tensor) -> Tensor:
            y, u = _evaluated(way, rows[which], z[:, 0], t)
            return torch.stack([u.detach(), -_pulled(u, [y], z[:, 1])[0]], 1)

        return augmented

    def along(which: Tensor, z: Tensor, t: Tensor, weight: Tensor) -> None:
        u = _evaluated(way, rows[which], z[:, 0], t)[1]
        # The weights are negative, as the steps go back.
        pull = -z[:, 1] * across((weight * size[which]).to(z), u)
        for total, part in zip(sums, _pulled(u, parameters, pull), strict=True):
            total += part

    found = integrate_rows(
        rate(torch.arange(len(rows), device=x.device)),
        torch.stack([x[rows], a[rows] / across(size, a)], 1),
        way.end,
        way.start,
        method=way.method,
        rtol=way.rtol,
        atol=way.atol,
        max_steps=way.max_steps,
        select=rate,
        along=along if parameters else None,
    )
    _check_arrived(rows, found.status)
    to_start = torch.zeros_like(a).index_copy(0, rows, found.x[:, 1] * across(size, a))
    return [to_start, *(total.to(p.dtype) for total, p in zip(sums, parameters, strict=True))]


def _evaluated(way: BackwardSolve, rows: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The point y = x of these rows, and the velocity u at y with its graph, the condition rows
    in it.
    """
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        return y, way.velocity_of(rows)(y, t)


def _pulled(u: Tensor, to: Sequence[Tensor], a: Tensor) -> Sequence[Tensor]:
    """`(du/dv)^T a` for every v."""
    if not (u.requires_grad and to):
        return [torch.zeros_like(v) for v in to]
    return torch.autograd.grad(u, to, a, allow_unused=True, materialize_grads=True)


def _check_shown(u: Tensor, known: Sequence[Tensor]) -> None:
    """Refuse a velocity with a hidden dependence, whose gradient would silently be none."""
    own, ends = {id(v) for v in known}, {v.grad_fn for v in known}
    ahead, seen = [u.grad_fn], set(ends)
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in own:
            raise InvalidArgument(
                "grad",
                "adjoint",
                f"a field that shows what it depends on: a tensor of shape {tuple(leaf.shape)} is "
                f"hidden",
                "Hold it in a module or an attribute of the field, pass it in cond, or use "
                "grad='checkpoint'",
            )
        ahead += [following for following, _ in node.next_functions]


def _check_arrived(rows: Tensor, status: Tensor) -> None:
    failed = (status != int(Status.OK)).nonzero()[:, 0]
    if len(failed):
        name = Status(int(status[failed[0]])).name
        raise ScoretkError(
            f"grad='adjoint': {len(failed)} row(s) did not come back, the first row "
            f"{int(rows[failed[0]])}, {name}. Allow more max_steps or a larger rtol, or use "
            "grad='checkpoint'"
        )
