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
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from scoretk.adapters.law_supports import check_supports
from scoretk.adapters.owned import called, check_repeats, generators_kept, inner
from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.core.arguments import integer, numbers
from scoretk.core.dependencies import required
from scoretk.core.keywords import explained
from scoretk.core.noise import derive
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.constrained import Constrained, constrained
from scoretk.fields.foreign import answered, misfit
from scoretk.fields.wrappers import Energy
from scoretk.inference.sampling import sample

__all__ = ["from_sbi", "to_sbi"]

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
    held = _at(posterior, x)
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


def _at(posterior: Any, x: Any) -> Any:
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


def to_sbi(posterior: Any, solver: Any = None, **options: Any) -> Any:
    """A posterior of sbi whose samples a solver of this package makes.

    Args:
        posterior: A posterior of sbi, of any of its methods, or a potential that has its prior.
        solver: As in `scoretk.sample`.
        options: What `scoretk.sample` takes besides: "chains" (by default 100), "steps", "warmup",
            "seed", ...

    Returns:
        A posterior of sbi, of the same default observation. Its `sample(shape, x)` takes as many of
        each chain's draws as are needed, evenly from all that are kept, and
        `sample_batched(shape, x)` the same for each of several observations, in one run; each call
        has noise of its own, and the same calls in the same order draw the same. `log_prob` is the
        given posterior's own. Chains that fail are an error, unless `on_failure="flag"` is among the options.

    Raises:
        MissingDependency: sbi is not installed.
    """
    base = required("sbi.inference.posteriors.base_posterior", "sbi", "A posterior of sbi")
    settings = {"chains": 100, "on_failure": "raise"} | options | {"keep": "all"}

    calls, seed_of_all = count(), integer("seed", settings.pop("seed", 0), below=2**64)
    own = copy.deepcopy(getattr(posterior, "log_prob", None))

    class Sampled(base.NeuralPosterior):  # type: ignore[misc, name-defined]
        def log_prob(self, theta: Tensor, x: Any = None, **given: Any) -> Tensor:
            if own is None:
                raise MissingCapability(
                    "to_sbi(potential)",
                    {"sample", "sample_batched", "potential"},
                    {"log_prob"},
                    "A potential is known up to a constant: ask .potential(theta, x), or make it of "
                    "a posterior",
                )
            log_prob: Tensor = own(theta, self._x_else_default_x(x), **given)
            return log_prob

        def sample(
            self, sample_shape: Any = (), x: Any = None, show_progress_bars: bool = False
        ) -> Tensor:
            wanted = torch.Size(sample_shape)
            field = from_sbi(self.potential_fn, self._x_else_default_x(x))
            draws = sample(field, solver, **_run(show_progress_bars, next(calls)))
            return _spread(draws.x, wanted.numel()).reshape(*wanted, *draws.x.shape[2:])

        def sample_batched(
            self, sample_shape: Any, x: Any, show_progress_bars: bool = False
        ) -> Tensor:
            wanted, rows = torch.Size(sample_shape), numbers("x", x)
            run = _run(show_progress_bars, next(calls))
            each = run["chains"]
            held = copy.deepcopy(self.potential_fn)
            held.set_x(None)
            of_each = {"x_o": rows.repeat_interleave(each, 0)}
            run |= {"chains": each * len(rows), "cond": of_each}
            draws = sample(from_sbi(held), solver, **run)
            found = [_spread(part, wanted.numel()) for part in draws.x.split(each)]
            return torch.stack(found, 1).reshape(*wanted, len(rows), *draws.x.shape[2:])

    def _run(shown: bool, call: int) -> dict[str, Any]:
        seed = derive(seed_of_all, call) if call else seed_of_all
        return ({"progress": True} if shown else {}) | settings | {"seed": seed}

    return Sampled(_at(posterior, None))


def _spread(x: Tensor, n: int) -> Tensor:
    """So many draws, `(n, *event)`, evenly from all chains, and from each chain's `(chains, kept)`.

    Raises:
        InvalidArgument: There are fewer.
    """
    chains, kept = x.shape[:2]
    each = -(-n // chains)
    if each > kept:
        hint = f"Ask for steps={each} or more, or for more chains"
        raise InvalidArgument("sample_shape", n, f"at most {chains * kept} draws", hint)
    places = torch.linspace(kept - 1, 0, each, dtype=torch.float64).round().long()
    return x[:, places].transpose(0, 1).flatten(0, 1)[:n]


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
