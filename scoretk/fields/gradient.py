"""The gradient of an energy: one forward and one backward pass for all rows, or one's own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretk.core.arguments import keyword_names
from scoretk.core.once import known_once
from scoretk.core.rows import across
from scoretk.errors import InvalidArgument
from scoretk.fields.answers import BY_HAND, check_rows, noted, written_into

__all__ = [
    "ByAutograd",
    "OwnGradient",
    "followed",
    "grad_energy",
    "score_of_energy",
    "slope_of_energy",
]


def grad_energy(
    energy: Callable[[Tensor], Tensor], x: Tensor, owner: object = None
) -> tuple[Tensor, Tensor]:
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
        owner: The field that errors show, where it is not `energy` itself.

    Returns:
        `E(x)`, `(batch,)`, and `grad E(x)`, like x.

    Raises:
        InvalidArgument: The energy does not depend on x in a way that autograd sees, or writes into
            x.
    """
    return _marked(*slope_of_energy(energy, x, 1.0, owner))


def score_of_energy(energy: Callable[[Tensor], Tensor], x: Tensor, owner: object = None) -> Tensor:
    """`-grad E(x)`, like x; else as `grad_energy`."""
    return _marked(*slope_of_energy(energy, x, -1.0, owner))[1]


def _marked(values: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Energies and slopes as `slope_of_energy` gives them, slopes NaN in rows without a finite energy."""
    if torch.compiler.is_compiling():
        return values, slope + across(values - values, slope)
    # On the CPU the host can look first, without a stall.
    if values.device.type == "cpu" and math.isfinite(values.sum().item()):
        return values, slope
    zero = _number(0.0, values.dtype, values.device)
    return values, torch.addcmul(slope, across(values, slope), zero)  # inf * 0 is NaN


class ByAutograd:
    """A static field whose gradients are those of its `energy(x, **cond)` by autograd."""

    energy: Callable[..., Tensor]

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`-grad E(x)`, like x."""
        return score_of_energy(lambda y: self.energy(y, **cond), x, self)

    def energy_and_grad(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`E(x)`, `(batch,)`, and its gradient, like x, in one evaluation."""
        return grad_energy(lambda y: self.energy(y, **cond), x, self)


def slope_of_energy(
    energy: Callable[[Tensor], Tensor], x: Tensor, sign: float, owner: object = None
) -> tuple[Tensor, Tensor]:
    """As `grad_energy`, the gradient times a sign; in rows whose energy is not finite it is whatever
    autograd makes of it, so that whoever goes on with it has to look at the energy too.
    """
    if not isinstance(x, Tensor):
        raise InvalidArgument("x", x, "a tensor of rows, (batch, *event_shape)")
    if torch.compiler.is_compiling():

        def total(y: Tensor) -> tuple[Tensor, Tensor]:
            values = energy(y)
            return values.sum(), values

        gradient, values = torch.func.grad(total, has_aux=True)(x)
        return values, sign * gradient
    keep = x.requires_grad and torch.is_grad_enabled()
    owner = energy if owner is None else owner
    with torch.enable_grad():
        y = x if keep else x.detach().requires_grad_()
        try:
            values = energy(y)
        except RuntimeError as error:  # among them autograd's, of a leaf that is written into
            written = written_into("energy", energy, x)
            # torch's error where a number or an array is taken out of the graph.
            if written is None and "requires grad" in str(error):
                written = _without_gradient(owner)
            if written is None:
                raise
            raise written from error
        if not values.requires_grad:
            raise _without_gradient(owner)
        signs = _number(sign, values.dtype, values.device).expand(values.shape)
        try:
            (slope,) = torch.autograd.grad(values, y, signs, create_graph=keep, allow_unused=True)
        except NotImplementedError as error:  # a Function without a backward
            raise _without_gradient(owner) from error
        if slope is None:  # a graph, and x is not in it
            raise _without_gradient(owner)
    return values if keep else values.detach(), slope


@cache
def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device=device)


def followed(energy: Tensor, x: Tensor) -> Tensor:
    """A part of an energy, refused where autograd does not follow it from x.

    Other parts, such as a Jacobian, would hide that it was not.

    Raises:
        InvalidArgument: Where x requires gradients, and the part does not.
    """
    asked = not torch.compiler.is_compiling() and torch.is_grad_enabled() and x.requires_grad
    if asked and not energy.requires_grad:
        raise _without_gradient(energy)
    return energy


@dataclass(frozen=True, eq=False)
class OwnGradient:
    """A function of rows together with its gradient, of which autograd need not see the inside.

    Both may be functions of tensors or of numpy arrays. Where a function does not take a tensor,
    it is given the array: `np.sum(x, axis=1)` and `x.astype(float)` are of arrays alone. Each gets
    a copy of x, which it may write into.

    Attributes:
        fn: `fn(x, **cond) -> (batch,)`.
        grad: `grad(x, **cond)`, the gradient of `fn` in x, like x.
    """

    fn: Callable[..., Any]
    grad: Callable[..., Any]

    @cached_property
    def _shared(self) -> frozenset[str] | None:
        return keyword_names(self.grad, 1)

    def __call__(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`fn(x, **cond)`, differentiable in x once, and in what `fn` has of torch's parameters;
        in conditions it is not.

        Raises:
            InvalidArgument: `grad` does not take these conditions.
        """
        if self._shared is not None and not cond.keys() <= self._shared:
            apart = ", ".join(sorted(cond.keys() - self._shared))
            raise InvalidArgument("grad", self.grad, f"a function that takes {apart}, as fn does")
        values = check_rows(
            "energy", _asked("fn", self.fn, x, cond), x.shape[:1], "One number a row"
        )
        found: Tensor = _Given.apply(x, values, self.grad, cond)  # type: ignore[no-untyped-call]
        return found


class _Given(torch.autograd.Function):
    """Values at x, whose derivative in x is `grad(x)`."""

    @staticmethod
    def forward(x: Tensor, values: Tensor, grad: object, cond: dict[str, Tensor]) -> Tensor:
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, ctx.grad, ctx.cond = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            gradient = check_rows(
                "grad",
                _asked("grad", ctx.grad, x, ctx.cond),
                x.shape,
                "The gradient is shaped like x",
            )
        return known_once(across(slope, x) * gradient, slope, x), slope, None, None


def _asked(name: str, fn: Callable[..., Any], x: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """A function's answer as a tensor like x; `fn` takes tensors or arrays."""
    x = x.detach().clone()
    cond = {name: value.detach() for name, value in cond.items()}
    try:
        found = _answer(fn, x, cond)
    except Exception as error:
        noted(error, name, {"x": x, **cond})
        raise
    if isinstance(found, np.ndarray | np.generic):
        found = torch.as_tensor(np.ascontiguousarray(found) if np.ndim(found) else found)
    return found.to(x) if isinstance(found, Tensor) and found.is_floating_point() else found


def _answer(fn: Callable[..., Any], x: Tensor, cond: dict[str, Tensor]) -> Any:
    """What a function makes of tensors or, where it does not take these, of arrays."""
    with warnings.catch_warnings():
        # numpy's, of a tensor that it hands back as one
        warnings.filterwarnings("ignore", ".*__array_wrap__.*", DeprecationWarning)
        try:
            return fn(x, **cond)
        except (TypeError, AttributeError) as error:
            arrays = {name: value.cpu().numpy() for name, value in cond.items()}
            try:
                return fn(x.cpu().numpy(), **arrays)
            except (TypeError, AttributeError):
                raise error from None


def _without_gradient(energy: object) -> InvalidArgument:
    """The error for an energy that autograd cannot follow."""
    hint = (
        f"{BY_HAND}. A constant, detached or numpy-computed energy has none that torch sees, nor "
        "has one that looks up a table by x.long(). Or write it in torch: what is flat within a "
        "region as torch.where(inside, 0 * x.sum(1), torch.inf), a look-up of states as a product "
        "with one-hot rows (scoretk.Discrete(field, 'one-hot') and x @ table)"
    )
    if torch.is_inference_mode_enabled():
        hint = "torch.inference_mode() forbids all gradients: use torch.no_grad(), which does not"
    return InvalidArgument(
        "energy", energy, "an energy that torch can differentiate with respect to x", hint
    )
