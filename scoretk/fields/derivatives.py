r"""Derivatives by autograd, and whether they are those of the function.

What cuts a graph is refused, not read as zero.

A function f of rows may leave the graph on its way (`torch.no_grad`, `detach`, `.data`, numpy, an
inference mode, an `autograd.Function` that returns None), in whole or in one of its parts, and
autograd then says nothing, or too little, of how it depends on x. With random v and w, autograd's
and the central difference's

    told = <J^T w, v>,      seen(h) = <w, (f(x + h v) - f(x - h v)) / (2 h)>

agree for a smooth f. They are taken to differ in a row only where the difference quotient knows
better: where `seen(h)` and `seen(2h)` agree with each other ten times as well as with `told`, and
by more than rounding. A function with kinks within h, or with noise of its own, is thus left alone.

A step function (rounding, a sign, an index of the largest entry) has the derivative that autograd
says, zero, and what follows the derivative does not see it. It is told by what no place shows a
derivative of and moves the values all the same.

References:
    Griewank, Walther, "Evaluating derivatives" (2008): products with J and J^T, and tests of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoretk.core.noise import Noise
from scoretk.core.rows import across, row_dot, row_sum
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument

__all__ = ["check_derivative", "check_no_steps", "probes", "value_and_pullback"]

Map = Callable[[Tensor], Tensor]
CLEAR, TOLERANCE, ROUNDINGS = 10.0, 0.05, 16.0
PLACES, ALL_PLACES = 24, 480
"""At how many places a derivative of zero is looked at, and at how many before a function is said
to go in steps.
"""
NEAREST, FARTHEST = 1e-3, 10.0
"""The sizes of these places: a steep sigmoid has its derivative about one of them only."""


def probes(like: Tensor, n: int, which: int) -> Tensor:
    """N rows of standard normal noise of the toolkit's own, shaped like a row of this tensor.

    The same each time.
    """
    noise = Noise(which, n, device=like.device, dtype=like.dtype)
    return noise.normal(0, Stream.PROBE, tuple(like.shape[1:]), like.dtype)


def value_and_pullback(
    f: Callable[[Tensor], Tensor], x: Tensor, *, keep: bool
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """`f(x)` and `v -> J^T v` with `J = df/dx`, row by row and as often as is liked, for one
    evaluation of f.

    Args:
        keep: Whether both are differentiable themselves; otherwise no graph outlives the pullback.

    Raises:
        `InvalidArgument` where f depends on x and autograd does not see it.
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
    f: Map, x: Tensor, what: str, owner: object, hint: str, gradient: Map | None = None
) -> None:
    """Raise `InvalidArgument` where autograd's derivative of f at x is not that of its values.

    See the module's docstring.

    Args:
        f: `(rows, *event) -> (rows, *out)`, its rows independent.
        x: `(rows, *event)`.
        what: The argument that is to blame and its value.
        owner: The argument that is to blame and its value.
        hint: The way out.
        gradient: Of an f with one number a row, where it is not autograd's. Costs six evaluations
            of f on these rows, four of them without a graph.
    """
    x = x.detach()
    with torch.no_grad():
        value = f(x)
    w, v = probes(value, len(value), 1), probes(x, len(x), 2)
    pull = (
        _pulled(f, what, owner, hint)
        if gradient is None
        else _weighted(gradient, what, owner, hint)
    )
    told = row_dot(pull(x, w), v)
    scale = x.square().mean().sqrt()
    step = torch.finfo(x.dtype).eps ** (1 / 3) * torch.where(
        (scale > 0) & scale.isfinite(), scale, 1.0
    )
    with torch.no_grad():
        near, far = (row_dot(w, f(x + h * v) - f(x - h * v)) / (2 * h) for h in (step, 2 * step))
    off, unsure, size = (told - near).abs(), (near - far).abs(), told.abs() + near.abs()
    rounding = ROUNDINGS * torch.finfo(x.dtype).eps * row_sum((w * value).abs()) / step
    wrong = (off > CLEAR * unsure) & (off > TOLERANCE * size) & (off > rounding)
    if int(wrong.sum()) * 2 > len(x):
        row = int(wrong.to(torch.int8).argmax())
        expected = "what torch can differentiate with respect to x"
        found = f"Along one direction autograd says {float(told[row]):.4g}, its values {float(near[row]):.4g}"
        raise InvalidArgument(what, owner, expected, f"{found}: {_why()}. {hint}")


def check_no_steps(
    f: Map, like: Tensor, what: str, owner: object, hint: str, gradient: Map | None = None
) -> None:
    """Raise `InvalidArgument` where f depends on coordinates of x of which it has no derivative
    anywhere.

    Values at two places differ in these coordinates, and no place of many has a derivative. Costs
    one evaluation where each coordinate has one, two where f is constant in some.

    Args:
        f: `(rows, *event) -> (rows, *out)` for any number of rows, at places of size 1.
        like: `(1, *event)`, of the dtype and on the device of these.
        what: As in `check_derivative`.
        owner: As in `check_derivative`.
        hint: As in `check_derivative`.
        gradient: As in `check_derivative`.
    """
    pull = (
        _pulled(f, what, owner, hint)
        if gradient is None
        else _weighted(gradient, what, owner, hint)
    )
    for n in (PLACES, ALL_PLACES):
        z = probes(like, n, 3)
        x = across(torch.logspace(math.log10(NEAREST), math.log10(FARTHEST), n).to(z), z) * z
        with torch.no_grad():
            value = f(x).nan_to_num()
        blind = (pull(x, probes(value, n, 1)) == 0).all(0)
        if not bool(blind.any()):
            return
        with torch.no_grad():
            elsewhere, again = f(torch.where(blind, x.flip(0), x)).nan_to_num(), f(x).nan_to_num()
        if torch.equal(elsewhere, value) or not torch.equal(
            again, value
        ):  # constant, or noisy by itself
            return
    raise InvalidArgument(
        what,
        owner,
        "what has a derivative with respect to x",
        f"It goes in steps, flat between. {hint}",
    )


def _pulled(f: Map, what: str, owner: object, hint: str) -> Callable[[Tensor, Tensor], Tensor]:
    """`(x, w) -> J^T w`; zero where nothing of f is in the graph."""

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
        except RuntimeError as error:  # without a graph it has just been evaluated
            expected = "what torch can differentiate with respect to x"
            raise InvalidArgument(
                what, owner, expected, f"{str(error).splitlines()[0]} {hint}"
            ) from error

    return pull


def _weighted(
    gradient: Map, what: str, owner: object, hint: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """`(x, w) -> w grad f`, of one number a row."""

    def pull(x: Tensor, w: Tensor) -> Tensor:
        try:
            return across(w, x) * gradient(x)
        except InvalidArgument as error:
            expected = "what torch can differentiate with respect to x"
            raise InvalidArgument(what, owner, expected, f"{_why()}. {hint}") from error

    return pull


def _why() -> str:
    if torch.is_inference_mode_enabled():
        return "torch.inference_mode() forbids all gradients: use torch.no_grad(), which does not"
    return "part of it runs under torch.no_grad, behind detach, or in numpy"
