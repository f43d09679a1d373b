"""Posteriors of sbi as fields: its potential, in the free space of its prior's support.

A potential is `log p(theta | x)` up to a constant. It is asked for one observation, given once, or
for a condition "x_o" with one row a chain. The prior's support is the field's constraint.

References:
    Tejero-Cantero, Boelts, Deistler, Lueckmann, Durkan, Goncalves, Greenberg, Macke, "sbi: a toolkit
    for simulation-based inference" (2020).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from scoretk.adapters.law_supports import check_supports
from scoretk.adapters.owned import called, check_repeats, generators_kept, inner
from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.core.arguments import numbers
from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument
from scoretk.fields.constrained import Constrained, constrained
from scoretk.fields.foreign import answered, misfit
from scoretk.fields.wrappers import Energy

__all__ = ["from_sbi", "potential_at"]

OBSERVATION = (
    "An observation has the shape of one x that the posterior was trained on, and no NaN; several of "
    "the same parameters are for posteriors of a likelihood or a ratio"
)


@explained
def from_sbi(
    posterior: Any, x: Any = None, event_shape: Sequence[int] | None = None, support: Any = None
) -> Energy | Constrained:
    """A field over the parameters from a posterior, or a potential, of sbi.

    Args:
        posterior: A posterior of sbi, of any of its methods, or its `potential_fn`.
        x: The observation, or several of the same parameters, `(trials, *shape)`; None for that
            which the posterior has as its default (`default_x`), or a potential at this moment; or,
            without one, for `cond={"x_o": rows}`, with a row a chain.
        event_shape: The shape of the parameters; None for that of the prior.
        support: Where the parameters live, as a constraint is given to `scoretk.constrained`; None
            for what the prior says.

    Returns:
        The field: in free space where the prior's support is bounded.

    Raises:
        InvalidArgument: It is no such posterior, does not say its prior, or answers by chance; or
            its prior, a transformed law, lives on a part of what it says.
    """
    potential = _potential(posterior)
    if not callable(potential) or not hasattr(potential, "set_x"):
        raise misfit("posterior", posterior, "a posterior of sbi, or its potential_fn")
    prior = getattr(potential, "prior", None) or getattr(posterior, "prior", None)
    if event_shape is None:
        event_shape = _shape_of(prior)
    held = potential_at(posterior, x)
    known = held.return_x_o() is not None
    if not known and type(held).__name__ == "EnsemblePotential":  # whose rows could be trials
        raise InvalidArgument("x", None, "an observation, of an ensemble", "from_sbi(posterior, x)")
    energy: Any = _OfOne(held) if known else _OfRows(held)
    field = Energy(energy, as_event_shape(event_shape))
    support = _support_of(prior) if support is None else support
    made = field if support is None else constrained(field, support)
    if known:
        at = inner(*made.event_shape).to(held.device, torch.get_default_dtype())
        with generators_kept():  # it may draw, and is refused then
            check_repeats("posterior", lambda: made.energy(at))
    return made


def _potential(posterior: Any) -> Any:
    """The potential of a posterior, or itself: one of sbi's may be made of a function, too."""
    if hasattr(posterior, "set_x"):
        return posterior
    return getattr(posterior, "potential_fn", posterior)


def potential_at(posterior: Any, x: Any) -> Any:
    """The potential of a posterior at x, or at its default: a copy, as that is its own state.

    What a posterior was last asked for is left in its potential; its default is its own.
    """
    held = copy.deepcopy(_potential(posterior))
    if x is not None:
        given = numbers("x", x)
        answered(lambda: held.set_x(given), held, given, {}, OBSERVATION)
    elif hasattr(posterior, "default_x"):
        held.set_x(posterior.default_x)
    return held


def _shape_of(prior: Any) -> Any:
    shape = getattr(prior, "event_shape", None)
    if not shape:
        raise InvalidArgument(
            "event_shape", None, "the shape of the parameters, which no prior of the posterior says"
        )
    return tuple(shape)


def _support_of(prior: Any) -> Any:
    """The constraint of a prior; None where it is all of R^d, or the prior does not say.

    Raises:
        InvalidArgument: It lives on a part of that, as `1 + 2 u` of a uniform u, on all of R.
    """
    for law in _laws_of(prior):
        try:
            check_supports("a prior", law)
        except InvalidArgument as error:
            raise InvalidArgument(
                "posterior",
                f"one whose prior is a {type(law).__name__} said to be on {law.support}",
                "a prior that says where it lives, or support=",
                "Such as scoretk.from_sbi(posterior, x, support="
                "torch.distributions.constraints.interval(1.0, 3.0))",
            ) from error
    try:
        support = prior.support
    except (AttributeError, NotImplementedError):
        return None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return None if support is constraints.real or support is constraints.real_vector else support


def _laws_of(prior: Any) -> list[Any]:
    """The distributions of torch in a prior, of which sbi has several side by side, or wraps one."""
    held = [getattr(prior, "prior", None), *getattr(prior, "dists", ())]
    inner = [law for part in held if part is not None for law in _laws_of(part)]
    return inner or [prior] * isinstance(prior, Distribution)


@dataclass(frozen=True, eq=False)
class _OfOne:
    """The energy at one observation, which the potential holds."""

    potential: Any

    def __repr__(self) -> str:
        return called("from_sbi", self.potential)

    def __call__(self, theta: Tensor) -> Tensor:
        grad = torch.is_grad_enabled()
        shape = tuple(self.potential.return_x_o().shape)
        value: Tensor = answered(
            lambda: self.potential(theta, track_gradients=grad),
            self.potential,
            theta,
            {},
            f"{OBSERVATION}. This observation has shape {shape}",
        )
        return -value


@dataclass(frozen=True, eq=False)
class _OfRows:
    """The energy of each row at its own observation."""

    potential: Any

    def __repr__(self) -> str:
        return called("from_sbi", self.potential)

    def __call__(self, theta: Tensor, x_o: Tensor | None = None) -> Tensor:
        if x_o is None:
            hint = "Or give it once: from_sbi(posterior, x)"
            raise InvalidArgument("cond", None, "an observation a chain, cond={'x_o': rows}", hint)
        rows, held = x_o, copy.copy(self.potential)  # the observation is of this evaluation alone

        def ask() -> Tensor:
            held.set_x(rows, x_is_iid=False)
            value: Tensor = held(theta, track_gradients=torch.is_grad_enabled())
            return -value.reshape(len(theta))

        return answered(ask, self.potential, theta, {"x_o": rows}, OBSERVATION)
