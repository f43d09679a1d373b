"""The gradient of an energy: one forward and one backward pass for all rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoretk.core.rows import across
from scoretk.errors import InvalidArgument
from scoretk.fields.answers import written_into

__all__ = ["followed", "grad_energy"]


def grad_energy(energy: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """An energy and its gradient.

    Rows are independent, so the gradient of the summed energy holds each row's own. Where x itself
    asks for gradients the result is differentiable, in x and in the parameters; otherwise no graph
    is kept.

    Where the energy is NaN or infinite there is no gradient, and it is returned as NaN, whatever
    autograd makes of the branch (a `where` that gives NaN has derivative 0): a solver that uses
    scores must not go on there unnoticed.

    Args:
        energy: `(batch, *event_shape) -> (batch,)`.
        x: `(batch, *event_shape)`.

    Returns:
        `E(x)`, `(batch,)`, and `grad E(x)`, like x.

    Raises:
        InvalidArgument: The energy does not depend on x in a way that autograd sees, or writes into
            x.
    """
    if torch.compiler.is_compiling():

        def total(y: Tensor) -> tuple[Tensor, Tensor]:
            values = energy(y)
            return values.sum(), values

        gradient, values = torch.func.grad(total, has_aux=True)(x)
        return values, _only_where_finite(gradient, values)
    keep = x.requires_grad and torch.is_grad_enabled()
    with torch.enable_grad():
        y = x if keep else x.detach().requires_grad_()
        try:
            values = energy(y)
        except RuntimeError as error:  # among them autograd's, of a leaf that is written into
            written = written_into("energy", energy, x)
            # torch's error where a number or an array is taken out of the graph.
            if written is None and "requires grad" in str(error):
                written = _without_gradient(energy)
            if written is None:
                raise
            raise written from error
        if not values.requires_grad:
            raise _without_gradient(values)
        summed = values.sum()
        try:
            (gradient,) = torch.autograd.grad(summed, y, create_graph=keep, allow_unused=True)
        except NotImplementedError as error:  # a Function without a backward
            raise _without_gradient(values) from error
        if gradient is None:  # a graph, and x is not in it
            raise _without_gradient(values)
    # On the CPU the host can look first, without a stall.
    if summed.device.type != "cpu" or not math.isfinite(summed.item()):
        gradient = _only_where_finite(gradient, values if keep else values.detach())
    return values if keep else values.detach(), gradient


def followed(energy: Tensor, x: Tensor) -> Tensor:
    """A part of an energy, if autograd has followed it from x.

    Other parts, such as a Jacobian, would hide that it was not.

    Raises:
        InvalidArgument: Where x requires gradients, and the part does not.
    """
    asked = not torch.compiler.is_compiling() and torch.is_grad_enabled() and x.requires_grad
    if asked and not energy.requires_grad:
        raise _without_gradient(energy)
    return energy


def _without_gradient(energy: object) -> InvalidArgument:
    """The error for an energy that autograd cannot follow."""
    hint = (
        "A constant, detached or numpy-computed energy has no gradient, nor has one that looks up a "
        "table by x.long(). Write it in torch, a look-up of states as a product with one-hot rows "
        "(scoretk.Discrete(field, 'one-hot') and x @ table); on real numbers a Score will do"
    )
    if torch.is_inference_mode_enabled():
        hint = "torch.inference_mode() forbids all gradients: use torch.no_grad(), which does not"
    return InvalidArgument(
        "energy", energy, "an energy that torch can differentiate with respect to x", hint
    )


def _only_where_finite(gradient: Tensor, values: Tensor) -> Tensor:
    return gradient + across(values - values, gradient)  # 0 where finite, NaN elsewhere
