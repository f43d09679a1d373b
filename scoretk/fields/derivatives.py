"""Derivatives by autograd, and checks whether they are those of the function.

A function f of rows may leave the graph on its way (`torch.no_grad`, `detach`, `.data`, numpy, an
inference mode, an `autograd.Function` that returns None), in whole or in one of its parts; autograd
then returns a derivative that is zero, or lacks a part. Here that is refused. With random v and w,
autograd's derivative and the central difference,

    told = <J^T w, v>,      seen(h) = <w, (f(x + h v) - f(x - h v)) / (2 h)>,

agree for a smooth f. They are taken to differ in a row only where the difference quotient is
reliable: where `seen(h)` and `seen(2h)` agree with each other ten times as well as with `told`, and
`told` is off by more than rounding. A function with kinks within h, or with noise of its own, is
thus left alone.

A step function (rounding, a sign, the index of the largest entry) really has the derivative zero
that autograd says, and what follows the derivative does not see the function. It is recognised by a
derivative that is zero at every one of many points, while its values differ between them.

References:
    Griewank, Walther, "Evaluating derivatives" (2008): products with J and J^T, and tests of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoretk.core.anatomy import walk
from scoretk.core.noise import Noise
from scoretk.core.rows import across, row_dot, row_sum
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument, first_line
from scoretk.fields.gradient import OwnGradient

__all__ = ["check_derivative", "check_no_steps", "probes", "value_and_pullback"]

Map = Callable[[Tensor], Tensor]
CLEAR, TOLERANCE, ROUNDINGS = 10.0, 0.05, 16.0
PLACES, ALL_PLACES = 24, 480
"""The number of points at which a derivative is looked for first, and, if it is zero at these, the
number before a function is said to move in steps.
"""
NEAREST, FARTHEST = 1e-3, 10.0
"""The range of sizes of these points: a steep sigmoid has a derivative only near some of them."""


def probes(like: Tensor, n: int, which: int) -> Tensor:
    """Rows of standard normal noise, the same each time.

    Args:
        like: `(batch, ...)`: shape of a row, dtype and device.
        n: How many.
        which: The seed.

    Returns:
        `(n, ...)`.
    """
    noise = Noise(which, n, device=like.device, dtype=like.dtype, window=1)
    return noise.normal(0, Stream.PROBE, tuple(like.shape[1:]), like.dtype)


def value_and_pullback(
    f: Callable[[Tensor], Tensor], x: Tensor, *, keep: bool
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """`f(x)` and `v -> J^T v` with `J = df/dx`, row by row, for one evaluation of f.

    Args:
        f: `(rows, *event) -> (rows, *out)`, its rows independent.
        x: `(rows, *event)`.
        keep: Whether both are themselves differentiable; otherwise no graph outlives the pullback.

    Returns:
        The value, `(rows, *out)`, and the pullback, v like the value to like x, which can be called
        any number of times.

    Raises:
        InvalidArgument: f depends on x and autograd does not see it.
    """
    if torch.compiler.is_compiling():
        pulled = torch.func.vjp(f, x)
        return pulled[0], lambda v: pulled[1](v)[0]
    with torch.enable_grad():
        y = x if x.requires_grad and keep else x.detach().requires_grad_()
        value = f(y)
    if not value.requires_grad:
        with torch.no_grad():
            elsewhere = f(x.detach() + (1 + x.detach().abs()))
        if not torch.equal(elsewhere, value):
            raise InvalidArgument(
                "f", f, "a function that torch can differentiate with respect to x", _why()
            )
        return value, lambda v: torch.zeros_like(x)

    def pullback(v: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(
            value, y, v, retain_graph=True, create_graph=keep, materialize_grads=True
        )
        return gradient

    return value if keep else value.detach(), pullback


def check_derivative(
    f: Map,
    x: Tensor,
    what: str,
    owner: object,
    hint: str,
    gradient: Map | None = None,
    coarse: float | None = None,
) -> None:
    """Check that autograd's derivative of f at x is that of its values.

    See the module's docstring. It costs six evaluations of f on these rows, five of them without a
    graph.

    Args:
        f: `(rows, *event) -> (rows, *out)`, its rows independent.
        x: `(rows, *event)`.
        what: The argument that errors name.
        owner: The value of that argument.
        hint: What to do.
        gradient: The gradient `(rows, *event) -> (rows, *event)` of an f with one number a row,
            where it is not by autograd.
        coarse: What seems wrong is looked at once more with a step of this size, relative to x,
            and left alone where it is right there: f may go in small steps that its derivative is
            meant not to see, those of a network in bfloat16 or quantised. None does not look.

    Raises:
        InvalidArgument: In more than half of the rows it is not.
    """
    x = x.detach()
    with torch.no_grad():
        value = f(x)
    w, v = probes(value, len(value), 1), probes(x, len(x), 2)
    if gradient is None:
        pull = _pulled(f, what, owner, hint)
    else:
        pull = _weighted(gradient, what, owner, hint)
    told = row_dot(pull(x, w), v)
    scale = x.square().mean().sqrt()
    scale = torch.where((scale > 0) & scale.isfinite(), scale, 1.0)

    def quotient(h: Tensor) -> Tensor:
        return row_dot(w, f(x + h * v) - f(x - h * v)) / (2 * h)

    def wrong_at(step: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            near, far = quotient(step), quotient(2 * step)
        off, unsure, size = (told - near).abs(), (near - far).abs(), told.abs() + near.abs()
        rounding = ROUNDINGS * torch.finfo(x.dtype).eps * row_sum((w * value).abs()) / step
        return (off > CLEAR * unsure) & (off > TOLERANCE * size) & (off > rounding), near

    wrong, near = wrong_at(torch.finfo(x.dtype).eps ** (1 / 3) * scale)
    if coarse is not None and int(wrong.sum()) * 2 > len(x):
        wrong = wrong & wrong_at(coarse * scale)[0]
    if int(wrong.sum()) * 2 > len(x):
        row = int(wrong.to(torch.int8).argmax())
        says = "autograd" if gradient is None else "its gradient"
        found = (
            f"Along one direction {says} says {float(told[row]):.4g}, its values "
            f"{float(near[row]):.4g}"
        )
        turned = (told + near).abs() <= TOLERANCE * (told.abs() + near.abs())
        expected, why = _of_slope(owner, hint, opposite=bool(turned[wrong].all()))
        raise InvalidArgument(what, owner, expected, f"{found}: {why}")


def check_no_steps(
    f: Map, like: Tensor, what: str, owner: object, hint: str, gradient: Map | None = None
) -> None:
    """Check that f does not depend in steps on coordinates of x.

    It does where its values at two points that differ in these coordinates differ, and none of many
    points has a derivative with respect to them. It costs two evaluations where each coordinate has
    a derivative, four where f is constant in some.

    Args:
        f: `(rows, *event) -> (rows, *out)` for any number of rows, which are of the sizes
            from `NEAREST` to `FARTHEST`.
        like: `(1, *event)`, of the dtype and on the device of x.
        what: The argument that errors name.
        owner: The value of that argument.
        hint: What to do.
        gradient: As in `check_derivative`.

    Raises:
        InvalidArgument: It depends on some coordinate in steps.
    """
    if gradient is None:
        pull = _pulled(f, what, owner, hint)
    else:
        pull = _weighted(gradient, what, owner, hint)
    for n in (PLACES, ALL_PLACES):
        z = probes(like, n, 3)
        x = across(torch.logspace(math.log10(NEAREST), math.log10(FARTHEST), n).to(z), z) * z
        with torch.no_grad():
            value = f(x).nan_to_num()
        blind = (pull(x, probes(value, n, 1)) == 0).all(0)
        if not bool(blind.any()):
            return
        with torch.no_grad():
            elsewhere = f(torch.where(blind, x.flip(0), x)).nan_to_num()
            repeated = f(x).nan_to_num()
        # Constant in these coordinates, or with noise of its own.
        if torch.equal(elsewhere, value) or not torch.equal(repeated, value):
            return
    raise InvalidArgument(
        what,
        owner,
        "what has a derivative with respect to x",
        f"It goes in steps, flat between. {hint}",
    )


def _pulled(f: Map, what: str, owner: object, hint: str) -> Callable[[Tensor, Tensor], Tensor]:
    """`(x, w) -> J^T w` by autograd; zero where nothing of f is in the graph."""

    def pull(x: Tensor, w: Tensor) -> Tensor:
        try:
            with torch.enable_grad():
                y = x.clone().requires_grad_()
                value = f(y)
                if not value.requires_grad:
                    return torch.zeros_like(x)
                return torch.autograd.grad(value, y, w, allow_unused=True, materialize_grads=True)[
                    0
                ]
        except RuntimeError as error:
            # The graph is at fault: f has just been evaluated without one.
            expected = "what torch can differentiate with respect to x"
            raise InvalidArgument(what, owner, expected, f"{first_line(error)} {hint}") from error

    return pull


def _weighted(
    gradient: Map, what: str, owner: object, hint: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """`(x, w) -> w grad f` of an f with one number a row."""

    def pull(x: Tensor, w: Tensor) -> Tensor:
        try:
            return across(w, x) * gradient(x)
        except InvalidArgument as error:
            expected = "what torch can differentiate with respect to x"
            raise InvalidArgument(what, owner, expected, f"{_why()}. {hint}") from error

    return pull


def _of_slope(owner: object, hint: str, opposite: bool) -> tuple[str, str]:
    """What was expected of a gradient that is not that of the values, and why it is not.

    Args:
        owner: The field, or what else has them.
        hint: What to do, where no `grad=` is given.
        opposite: Whether it is minus that of the values.
    """
    if isinstance(getattr(owner, "fn", None), OwnGradient):
        sign = ", but minus it" if opposite else ""
        return "a grad= that is the gradient of fn", f"grad= is not the gradient of fn{sign}"
    why = f"it has the opposite sign, or {_why()}" if opposite else _why()
    if any(isinstance(part, OwnGradient) for part in walk(owner)):
        why = f"grad= of a part is not the gradient of its fn, or {why}"
    return "what torch can differentiate with respect to x", f"{why}. {hint}"


def _why() -> str:
    if torch.is_inference_mode_enabled():
        return "torch.inference_mode() forbids all gradients: use torch.no_grad(), which does not"
    return "part of it runs under torch.no_grad, behind detach, or in numpy"
