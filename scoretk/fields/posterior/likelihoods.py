"""What a posterior takes for a likelihood, and how its derivative is examined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arguments import function
from scoretk.errors import InvalidArgument
from scoretk.fields.answers import check_rows, unwritten
from scoretk.fields.derivatives import check_derivative, check_no_steps
from scoretk.fields.gradient import grad_energy
from scoretk.fields.operators import LinearGaussian
from scoretk.fields.posterior.examined import DERIVATIVE_ROWS, EXAMINED, is_new
from scoretk.fields.protocols import field_name, is_field, is_timed, offers
from scoretk.fields.resolve import static
from scoretk.fields.validation import rejecting

__all__ = [
    "CallableLikelihood",
    "FieldLikelihood",
    "Likelihood",
    "as_likelihood",
    "look_for_steps",
    "split",
]


IN_TORCH = (
    "Write it in torch operations on x; for a linear measurement take "
    "LinearGaussian(operator, y, std, adjoint=f), f(w) = A^T w"
)


@dataclass(frozen=True, eq=False)
class CallableLikelihood:
    """A callable `log_likelihood(x, **cond)` and the names of the condition values that are its
    own.
    """

    of: Callable[..., Tensor]
    measured: frozenset[str]

    def log_likelihood(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`log L(x)`, `(batch,)`."""
        hint = (
            "A log-likelihood gives one number a row: sum over the event axes, keep the batch axis"
        )
        found = unwritten("log_likelihood", lambda y: rejecting(self.of, y, cond, -torch.inf), x)
        return check_rows("log_likelihood", found, x.shape[:1], hint).to(x.dtype)

    def slope(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`log L(x)` and its gradient, by autograd.

        The first call sees whether that is the derivative of the values.
        """
        if is_new(self):
            _look_along(self, x, cond)
        return self.gradient(x, **cond)

    def gradient(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """As `slope`, unexamined."""
        value, gradient = grad_energy(lambda z: -self.log_likelihood(z, **cond), x)
        return -value, -gradient


@dataclass(frozen=True, eq=False)
class FieldLikelihood:
    """`-E`, with the energy of a static field and its own gradient, and the names of the condition
    values that are its own.
    """

    of: Any
    measured: frozenset[str]

    def log_likelihood(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`-E(x)`, `(batch,)`."""
        return -static(self.of).energy(x, **cond)

    def slope(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`-E(x)` and its gradient.

        The first call sees whether that is the derivative of the values.
        """
        if is_new(self):
            _look_along(self, x, cond)
        return self.gradient(x, **cond)

    def gradient(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """As `slope`, unexamined."""
        energy, gradient = static(self.of).energy_and_grad(x, **cond)
        return -energy, -gradient


Likelihood = LinearGaussian | CallableLikelihood | FieldLikelihood


def as_likelihood(value: Any, measured: frozenset[str], event_shape: tuple[int, ...]) -> Likelihood:
    """What a user gave as a likelihood, held to the event's shape. Raises `InvalidArgument`."""
    if isinstance(value, LinearGaussian):
        if measured:
            raise InvalidArgument(
                "measured", set(measured), "nothing with a LinearGaussian", "Its y may be a name"
            )
        value.check(event_shape)
        return value
    if is_field(value):
        if (
            is_timed(value)
            or "energy" not in offers(value)
            or tuple(value.event_shape) != event_shape
        ):
            raise InvalidArgument(
                "likelihood",
                field_name(value),
                f"a static field with an energy and event shape {event_shape}",
            )
        return FieldLikelihood(value, measured)
    form = "log_likelihood(x), a LinearGaussian, or a static field"
    return CallableLikelihood(function("likelihood", value, form), measured)


def split(
    cond: dict[str, Tensor], own: frozenset[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The condition values of the likelihood, and those of the prior."""
    missing = own - cond.keys()
    if missing:
        raise InvalidArgument(
            "cond",
            set(cond),
            f"values for {', '.join(sorted(missing))}, which the likelihood takes",
        )
    return {n: v for n, v in cond.items() if n in own}, {
        n: v for n, v in cond.items() if n not in own
    }


def _look_along(
    likelihood: CallableLikelihood | FieldLikelihood, x: Tensor, cond: dict[str, Tensor]
) -> None:
    """See whether the likelihood's gradient at some of the rows x is the derivative of its values."""
    rows = {name: value[:DERIVATIVE_ROWS] for name, value in cond.items()}
    check_derivative(
        lambda z: likelihood.log_likelihood(z, **rows),
        x[:DERIVATIVE_ROWS],
        "likelihood",
        likelihood.of,
        IN_TORCH,
        lambda z: likelihood.gradient(z, **rows)[1],
    )
    EXAMINED.add(likelihood)


def look_for_steps(
    likelihood: CallableLikelihood | FieldLikelihood, x: Tensor, cond: dict[str, Tensor]
) -> None:
    """See whether the likelihood depends on x in steps, which what follows its gradient does not
    see.
    """

    def rows(z: Tensor) -> dict[str, Tensor]:
        return {
            name: value[torch.arange(len(z), device=x.device) % len(x)]
            for name, value in cond.items()
        }

    check_no_steps(
        lambda z: likelihood.log_likelihood(z, **rows(z)),
        x[:1],
        "likelihood",
        likelihood.of,
        IN_TORCH,
        lambda z: likelihood.gradient(z, **rows(z))[1],
    )
