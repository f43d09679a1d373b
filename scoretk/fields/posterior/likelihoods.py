"""What a posterior takes for a likelihood, and how its derivative is checked."""

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
from scoretk.fields.protocols import field_name, is_field, is_timed, offers, way_to_energy
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


class _Examined:
    """A likelihood whose gradient is compared with its values where it is first asked for."""

    def slope(self: Any, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """As `gradient`; the first call checks whether that is the derivative of the values."""
        if len(x) and is_new(self):
            _look_along(self, x, cond)
        found: tuple[Tensor, Tensor] = self.gradient(x, **cond)
        return found


@dataclass(frozen=True, eq=False)
class CallableLikelihood(_Examined):
    """A likelihood from a callable `log_likelihood(x, **cond) -> (batch,)`.

    Attributes:
        of: The callable.
        measured: The names of the condition values that are its own.
    """

    of: Callable[..., Tensor]
    measured: frozenset[str]

    def log_likelihood(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`log L(x)`, `(batch,)`."""
        hint = (
            "A log-likelihood gives one number a row: sum over the event axes, keep the batch axis"
        )
        found = unwritten(
            "log_likelihood", lambda y: rejecting(self.of, y, cond, -torch.inf), x, beside=cond
        )
        return check_rows("log_likelihood", found, x.shape[:1], hint).to(x.dtype)

    def gradient(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`log L(x)`, `(batch,)`, and its gradient by autograd, like x."""
        value, gradient = grad_energy(lambda z: -self.log_likelihood(z, **cond), x)
        return -value, -gradient


@dataclass(frozen=True, eq=False)
class FieldLikelihood(_Examined):
    """A likelihood from a static field, `log L = -E`.

    Attributes:
        of: The field.
        measured: The names of the condition values that are its own.
    """

    of: Any
    measured: frozenset[str]

    def log_likelihood(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`-E(x)`, `(batch,)`."""
        return -static(self.of).energy(x, **cond)

    def gradient(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`-E(x)`, `(batch,)`, and its gradient by the field, like x."""
        energy, gradient = static(self.of).energy_and_grad(x, **cond)
        return -energy, -gradient


Likelihood = LinearGaussian | CallableLikelihood | FieldLikelihood


def as_likelihood(value: Any, measured: frozenset[str], event_shape: tuple[int, ...]) -> Likelihood:
    """What a user gave as a likelihood.

    Args:
        value: A `LinearGaussian`, a callable or a static field with an energy.
        measured: The names of the condition values that are its own.
        event_shape: The prior's event shape, which it has to fit.

    Returns:
        An object with `log_likelihood` and `slope`.

    Raises:
        InvalidArgument: It is none of these, or does not fit.
    """
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
                "" if "energy" in offers(value) else way_to_energy(value),
            )
        return FieldLikelihood(value, measured)
    form = "log_likelihood(x), a LinearGaussian, or a static field"
    return CallableLikelihood(function("likelihood", value, form), measured)


def split(
    cond: dict[str, Tensor], own: frozenset[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The condition values of the likelihood, and those of the prior.

    Raises:
        InvalidArgument: One of the likelihood's is missing.
    """
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
    """Check at some of the rows x whether the likelihood's gradient is that of its values.

    Raises:
        InvalidArgument: It is not.
    """
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
    """Check that the likelihood does not depend on x in steps, of which its gradient shows nothing.

    Raises:
        InvalidArgument: It does.
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
