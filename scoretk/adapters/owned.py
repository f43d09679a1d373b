"""Log densities that another library computes, with its own gradients, as fields of named variables.

The owner gives `log p(x)` and its gradient for rows x, in the user's space; the bijections onto the
supports of the variables, and the logarithms of their Jacobians, are this package's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.core.once import known_once
from scoretk.core.rows import across
from scoretk.errors import InvalidArgument
from scoretk.fields.constrained import Constrained, constrained
from scoretk.fields.variables import Variables
from scoretk.fields.wrappers import Energy

__all__ = [
    "Owned",
    "called",
    "check_repeats",
    "generators_kept",
    "inner",
    "is_flat",
    "no_start",
    "of_variables",
]

Both = tuple[Tensor, Tensor]

ROUNDING = 1e-5
"""What two answers at one point may differ by: sums in float32 on a device have no fixed order."""


@dataclass(frozen=True, eq=False)
class Owned:
    """An energy that its owner computes, differentiable in x once, by the owner's gradient.

    Attributes:
        value: Takes x `(batch, *event_shape)` to `log p(x)`, `(batch,)`.
        both: Takes x to `log p(x)` and its gradient, like x, in one evaluation.
        made: How it was made, in words: its repr.
    """

    value: Callable[[Tensor], Tensor]
    both: Callable[[Tensor], Both]
    made: str

    def __repr__(self) -> str:
        return self.made

    def __call__(self, x: Tensor) -> Tensor:
        """`-log p(x)`, `(batch,)`."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return -self.value(x.detach()).to(x)
        value, gradient = self.both(x.detach())
        energy: Tensor = _Known.apply(x, -value.to(x), -gradient.to(x))  # type: ignore[no-untyped-call]
        return energy


class _Known(torch.autograd.Function):
    """A value whose derivative in x is known already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(x, gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, gradient = ctx.saved_tensors
        return known_once(across(slope, gradient) * gradient, slope, x), None, None


def called(adapter: str, owner: Any) -> str:
    """How a field was made, in a few words: `from_numpyro(schools)`."""
    return f"{adapter}({getattr(owner, '__name__', type(owner).__name__)})"


def inner(*shape: int) -> Tensor:
    """A point that is not special: free coordinates between .1 and .4, one event of a shape."""
    return torch.linspace(0.1, 0.4, math.prod(shape), dtype=torch.float64).reshape(1, *shape)


def generators_kept() -> AbstractContextManager[None]:
    """What draws within leaves torch's global generators as they were, of the CPU and the device."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    return torch.random.fork_rng(devices)


def check_repeats(argument: str, ask: Callable[[], Any]) -> None:
    """Check that a log density says the same of one point when it is asked again, but for rounding.

    Args:
        argument: What the message names.
        ask: Asks for the log density of one point, always of the same; a number.

    Raises:
        InvalidArgument: It does not: it draws random numbers of its own.
    """
    first, again = float(ask()), float(ask())
    same = math.isclose(first, again, rel_tol=ROUNDING, abs_tol=ROUNDING)
    if not same and not (math.isnan(first) and math.isnan(again)):
        raise InvalidArgument(
            argument,
            f"log densities {first:.6g} and {again:.6g} of one point",
            "a log density that is a function of the point",
            "Draw no random numbers in it, and no mini-batches: give it all data",
        )


def is_flat(law: Any) -> bool:
    """Whether a law of Pyro or numpyro has a support and no samples, whatever is around it."""
    while law is not None and type(law).__name__ != "ImproperUniform":
        law = getattr(law, "base_dist", None)
    return law is not None


def no_start(site: Any) -> InvalidArgument:
    """The error for a site of a flat law of whose support no point is known."""
    return InvalidArgument(
        "model",
        f"site {site['name']!r}, a flat one, on {site['fn'].support}",
        "a support with a known bijection: real, positive, an interval, a simplex, ...",
        "Sample the site from a law with samples, and take its log density away by a factor",
    )


def of_variables(energy: Callable[[Tensor], Tensor], space: Variables) -> Constrained:
    """A field over named variables, of an energy of these side by side.

    Args:
        energy: Takes the variables side by side in the user's space, `(batch, size)`, to
            `(batch,)`.
        space: The variables and their supports.

    Returns:
        The field, in free space.
    """
    return constrained(Energy(energy, (space.layout.size,)), space)  # type: ignore[arg-type]
