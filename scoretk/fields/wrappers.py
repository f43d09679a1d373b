"""Wrappers that make a field of a plain callable or module, and nothing more.

Each offers what its callable gives. A network in a `Diffusion` or `Velocity` is called as
`net(x, t, **cond)` with x of shape `(batch, *event_shape)` and t of shape `(batch,)`, in the dtype
of x, in this package's time (t = 0 noise, t = 1 data). Networks that take integer timesteps, sigma
or reversed time are adapted in `scoretk.fields.adapters`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.answers import check_asked, check_energy, check_rows, unwritten
from scoretk.fields.base import Base, as_base, standard_normal
from scoretk.fields.constrained import constrained
from scoretk.fields.convert import check_number, check_time, convert, prediction_name
from scoretk.fields.foreign import user_function
from scoretk.fields.gradient import ByAutograd, OwnGradient
from scoretk.fields.paths import VP, GaussianPath, Linear, check_path
from scoretk.fields.protocols import field_name, optional
from scoretk.fields.validation import rejecting
from scoretk.fields.variables import ByName, FreeEnergy, check_takes, variables_of
from scoretk.fields.wrapped import Kind, Wrapped

__all__ = [
    "At",
    "Diffusion",
    "Energy",
    "GaussianPathField",
    "Score",
    "Velocity",
    "check_rows",
    "no_gaussian_path",
]


_OF_A_MAP = (
    "around",
    "constrain",
    "constrained_shape",
    "constraint",
    "field",
    "transform",
    "unconstrain",
)
"""What a field over a map has beside a law; an energy of named variables has it from its map."""


@dataclass(frozen=True, eq=False)
class Energy(ByAutograd):
    """A static field from an energy, `E(x) = -log p(x) + const`.

    Its score, `-grad E(x)`, is by autograd, or by a gradient of one's own.

    With `variables` the function takes these by name, each `(batch, *shape)` and in its support,
    in place of x. Then x holds their free coordinates side by side, the energy is

        E(x) = E_user(T(x)) - log |det dT/dx|

    with T the map to the variables, and draws hold the variables themselves: `draws["tau"]` is
    `(chains, kept, *shape)` (`scoretk.fields.variables`).

    Args:
        fn: A callable or module, `fn(x, **cond) -> (batch,)` for x `(batch, *event_shape)`; with
            `variables` it is called as `fn(mu=..., tau=..., **cond)`.
        event_shape: The shape of one x; with `variables` it follows from these.
        autocast: torch.bfloat16 or torch.float16, in which products within `fn` are computed
            (`torch.autocast`) while x and the result stay in float32; None for their own dtype.
        variables: By name a shape, a constraint of `torch.distributions.constraints` (of one
            number), or a `scoretk.Variable(shape, constraint, dims)`.
        grad: The gradient of `fn`, `grad(x, **cond)`, like x; then both may be functions of numpy
            arrays, and autograd need not see their inside. None for autograd.

    Raises:
        InvalidArgument: `fn` or `grad` cannot be called, `event_shape` is no shape, `autocast` no
            such dtype, or `variables` are none, or beside a `grad`.
    """

    fn: Callable[..., Tensor]
    event_shape: tuple[int, ...] = None  # type: ignore[assignment]
    autocast: InitVar[torch.dtype | None] = None
    variables: InitVar[Mapping[str, Any] | None] = None
    grad: InitVar[Callable[..., Any] | None] = None

    provides = frozenset({"energy", "score"})
    _free: ClassVar[Any] = None
    """With `variables`, the same law as a field over the map to them."""

    def __post_init__(
        self,
        autocast: torch.dtype | None,
        variables: Mapping[str, Any] | None,
        grad: Callable[..., Any] | None,
    ) -> None:
        if grad is not None:
            user_function("grad", grad, "grad(x, **cond)")
        if variables is None:
            user_function("fn", self.fn, "fn(x, **cond)")
            if grad is not None:
                object.__setattr__(self, "fn", OwnGradient(self.fn, grad))
            object.__setattr__(self, "fn", _autocast(self.fn, autocast))
            if self.event_shape is None:
                raise InvalidArgument(
                    "event_shape",
                    None,
                    "a tuple of positive integers, such as (2,), or variables={...}",
                    "variables={'mu': (), 'theta': (8,)}: fn takes these by name",
                )
            object.__setattr__(self, "event_shape", as_event_shape(self.event_shape))
            return
        if self.event_shape is not None:
            raise InvalidArgument(
                "event_shape", self.event_shape, "none beside variables, from which it follows"
            )
        if grad is not None:
            hint = (
                "Let fn and grad take all side by side, and name the entries: "
                "scoretk.constrained(scoretk.Energy(fn, event_shape, grad=grad), variables)"
            )
            raise InvalidArgument("grad", grad, "None beside variables", hint)
        space = variables_of(variables)
        check_takes(self.fn, space.layout)
        fn = _autocast(self.fn, autocast)
        users = Energy(ByName(fn, space.layout), (space.layout.size,))
        free = replace(constrained(users, space), direct=FreeEnergy(fn, space))
        own = {"event_shape": free.event_shape, "variables": space, "_free": free}
        for name, value in (own | {name: getattr(free, name) for name in _OF_A_MAP}).items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        of = self.event_shape if self._free is None else self._free.constraint.layout.told()
        return f"Energy({_short(self.fn)}, {of})"

    def in_free_space(self) -> Any:
        """The field as solvers get it: with `variables` that of the map to these."""
        return self if self._free is None else self._free

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`E(x)`, `(batch, *event_shape) -> (batch,)`."""
        check_asked(x, self.event_shape)
        ask = self.fn if self._free is None else self._free.energy
        found = unwritten("energy", lambda y: rejecting(ask, y, cond, torch.inf), x, beside=cond)
        return check_energy(found, x)


@dataclass(frozen=True, eq=False)
class Score:
    """A static field from a score, `grad log p(x)`; it has no energy.

    Args:
        fn: A callable or module, `fn(x, **cond)`, like x `(batch, *event_shape)`.
        event_shape: The shape of one x.
        autocast: torch.bfloat16 or torch.float16, in which products within `fn` are computed
            (`torch.autocast`) while x and the result stay in float32; None for their own dtype.

    Raises:
        InvalidArgument: `fn` cannot be called, `event_shape` is no shape, or `autocast` no such
            dtype.
    """

    fn: Callable[..., Tensor]
    event_shape: tuple[int, ...]
    autocast: InitVar[torch.dtype | None] = None

    provides = frozenset({"score"})

    def __post_init__(self, autocast: torch.dtype | None) -> None:
        user_function("fn", self.fn, "fn(x, **cond)")
        object.__setattr__(self, "fn", _autocast(self.fn, autocast))
        object.__setattr__(self, "event_shape", as_event_shape(self.event_shape))

    def __repr__(self) -> str:
        return f"Score({_short(self.fn)}, {self.event_shape})"

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`grad log p(x)`, like x."""
        check_asked(x, self.event_shape)
        score = unwritten("score", lambda y: rejecting(self.fn, y, cond, torch.nan), x, beside=cond)
        return check_rows("score", score, x.shape, "A score is shaped like x", x.dtype)


@dataclass(frozen=True, eq=False)
class _Autocast:
    """A function whose products are computed in another dtype, by `torch.autocast`."""

    fn: Callable[..., Tensor]
    dtype: torch.dtype

    def __call__(self, *given: Tensor, **named: Tensor) -> Tensor:
        first = next(iter((*given, *named.values())))
        with torch.autocast(first.device.type, self.dtype):
            return self.fn(*given, **named)


def _autocast(fn: Callable[..., Tensor], dtype: torch.dtype | None) -> Callable[..., Tensor]:
    if dtype is None:
        return fn
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.bfloat16, torch.float16):
        raise InvalidArgument("autocast", dtype, "torch.bfloat16, torch.float16 or None")
    return _Autocast(fn, dtype)


def _short(fn: Any) -> str:
    """A function in a word: its name, else its class."""
    while isinstance(fn, ByName | OwnGradient | _Autocast):
        fn = fn.fn
    fn = fn.func if isinstance(fn, partial) else fn
    text = getattr(fn, "__name__", "") or ("" if isinstance(fn, nn.Module) else repr(fn))
    wordy = not text or " at 0x" in text or "\n" in text or len(text) > WORDY
    return type(fn).__name__ if wordy else text


WORDY = 60
"""The longest repr of a function that the repr of its field has."""


class GaussianPathField:
    """The methods of every field on a Gaussian path, from one native prediction and its
    conversions.

    A subclass gives `path`, `predicts` (a name in `PREDICTIONS`) and `predict(x, t, **cond)`.
    Everywhere x is `(batch, *event_shape)`, t a scalar or one time a row.
    """

    path: GaussianPath
    predicts: str

    provides = frozenset({"denoise", "score", "velocity", "base"})

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """The native prediction, like x."""
        raise NotImplementedError  # abstract: this class is a mixin for frozen dataclasses

    def _as(self, target: str, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]) -> Tensor:
        return convert(self.predict(x, t, **cond), x, t, self.path, self.predicts, target)

    def denoise(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """`D = E[x_1 | x_t = x]`, like x."""
        return self._as("data", x, t, cond)

    def noise(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """`e = E[eps | x_t = x] = -sigma score`, like x."""
        return self._as("noise", x, t, cond)

    def score(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """`grad log p_t(x) = -e / sigma`, like x."""
        return self._as("score", x, t, cond)

    def velocity(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """`alpha' D + sigma' e`, the velocity of the probability-flow ODE, like x."""
        return self._as("velocity", x, t, cond)

    def v(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """`alpha e - sigma D`, like x."""
        return self._as("v", x, t, cond)

    def at(self, t: float | Tensor) -> At:
        """The static field of time t: its score is that of `p_t`."""
        return At(self, t)


@dataclass(frozen=True, eq=False)
class At(Wrapped):
    """A timed field at one time: a static field with the score of `p_t`.

    It has a density where the field has `log_prob_at(x, t, **cond)`, the normalised `log p_t(x)`,
    `(batch,)`.

    Attributes:
        field: The field in time.
        t: A scalar or one time a row.
    """

    field: Any
    t: float | Tensor

    kind = Kind.MOMENT

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.t, Tensor):
            check_number(self.t)

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.field,)

    @property
    def computed(self) -> frozenset[str]:
        """A score; with `log_prob_at` also `log_prob` and an energy."""
        known = callable(optional(self.field, "log_prob_at"))
        return frozenset({"score", "log_prob", "energy"} if known else {"score"})

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`grad log p_t(x)`, like x."""
        score: Tensor = self.field.score(x, self.t, **cond)
        return score

    def log_prob(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`log p_t(x)`, `(batch,)`; only where the field has `log_prob_at`."""
        log_prob: Tensor = self.field.log_prob_at(x, self.t, **cond)
        return log_prob

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`-log p_t(x)`, `(batch,)`; only where the field has `log_prob_at`."""
        return -self.log_prob(x, **cond)


def _call_network(
    field: Diffusion | Velocity, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]
) -> Tensor:
    check_asked(x, field.event_shape)
    check_time(t, x)
    if not isinstance(t, Tensor):
        times = x.new_full(x.shape[:1], t)
    else:
        times = t.to(x.device, x.dtype).expand(x.shape[:1])
    prediction = unwritten(
        field.predicts, lambda y: field.net(y, times, **cond), x, beside={"t": times, **cond}
    )
    hint = "A timed model's prediction is shaped like x" + _within(prediction)
    return check_rows(field.predicts, prediction, x.shape, hint, x.dtype)


def _within(prediction: Any) -> str:
    """How to take the tensor out of an answer that holds it, as diffusers' networks give it."""
    if isinstance(getattr(prediction, "sample", None), Tensor):
        return ": lambda x, t, **cond: net(x, t, **cond).sample"
    if isinstance(prediction, tuple | list) and isinstance(next(iter(prediction), None), Tensor):
        return ": lambda x, t, **cond: net(x, t, **cond)[0]"
    return ""


@dataclass(frozen=True, eq=False)
class Diffusion(GaussianPathField):
    """A timed field from a network that predicts data, noise, score, velocity or v on a Gaussian
    path.

    Its `base` is N(0, sigma(0)^2 I).

    Args:
        net: Called as `net(x, t, **cond)` with t of shape `(batch,)`.
        event_shape: The shape of one x.
        path: A `GaussianPath`.
        predicts: What the network predicts: "data", "noise", "score", "velocity" or "v"; names of
            other packages ("epsilon", "x0", "v_prediction", ...: `ALSO_KNOWN_AS`) mean these.
        null: For `scoretk.guided`, where the network has learned to do without conditions: the
            condition values that stand for none, by name (None leaves the keyword out).
        autocast: As in `Energy`.

    Raises:
        InvalidArgument: An argument does not fit.
        UnknownName: `predicts` is none of these.
    """

    net: Callable[..., Tensor]
    event_shape: tuple[int, ...]
    path: GaussianPath = VP()  # noqa: RUF009 (frozen)
    predicts: str = "noise"
    null: Mapping[str, Any] | None = None
    autocast: InitVar[torch.dtype | None] = None

    def __post_init__(self, autocast: torch.dtype | None) -> None:
        user_function("net", self.net, "net(x, t, **cond)")
        object.__setattr__(self, "net", _autocast(self.net, autocast))
        object.__setattr__(self, "event_shape", as_event_shape(self.event_shape))
        object.__setattr__(self, "predicts", prediction_name(self.predicts))
        check_path(self.path)

    def __repr__(self) -> str:
        named = f"{_short(self.net)}, {self.event_shape}, {self.path!r}, {self.predicts!r}"
        return f"Diffusion({named})"

    @property
    def base(self) -> Base:
        """The law at t = 0, N(0, sigma(0)^2 I)."""
        return standard_normal(self.event_shape, float(self.path.sigma(0.0)))

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """The network's own output, like x."""
        return _call_network(self, x, t, cond)


class Velocity(GaussianPathField):
    """A timed field from a network that predicts the velocity `dx/dt` of a flow.

    The flow leads from `base` (t = 0) to data (t = 1). With the standard normal base it is taken as
    the linear Gaussian path `x_t = t x_1 + (1 - t) eps`, with independent coupling, so that score
    and denoiser follow from the velocity. With any other base it has a velocity only: asking for
    the others raises `MissingCapability`.

    Args:
        net: Called as `net(x, t, **cond)` with t of shape `(batch,)`.
        event_shape: The shape of one x.
        base: The law at t = 0: None for N(0, I), a `torch.distributions.Distribution`, a field with
            `draw`, or a tensor `(n, *event_shape)` of samples to start from.
        null: As in `Diffusion`.
        autocast: As in `Energy`.

    Raises:
        InvalidArgument: An argument does not fit.
    """

    predicts = "velocity"
    path: GaussianPath | None  # type: ignore[assignment]

    def __init__(
        self,
        net: Callable[..., Tensor],
        event_shape: Sequence[int],
        base: object = None,
        *,
        null: Mapping[str, Any] | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.net = _autocast(user_function("net", net, "net(x, t, **cond)"), autocast)
        self.event_shape = as_event_shape(event_shape)
        self.path = Linear() if base is None else None
        self.null = null
        self.base = (
            standard_normal(self.event_shape) if base is None else as_base(base, self.event_shape)
        )

    def __repr__(self) -> str:
        return f"Velocity(net={_short(self.net)}, event_shape={self.event_shape}, base={self.base})"

    @property
    def provides(self) -> frozenset[str]:  # type: ignore[override]
        """A velocity and a base; with the standard normal base all conversions as well."""
        return frozenset({"velocity", "base"}) if self.path is None else GaussianPathField.provides

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """The network's own output, like x."""
        return _call_network(self, x, t, cond)

    def _as(self, target: str, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]) -> Tensor:
        if self.path is None:
            if target != "velocity":
                raise no_gaussian_path(self, target)
            return self.predict(x, t, **cond)
        return super()._as(target, x, t, cond)


def no_gaussian_path(field: object, target: str) -> MissingCapability:
    """The error for a conversion of a velocity that has no Gaussian path."""
    return MissingCapability(
        field_name(field),
        {"velocity"},
        {target},
        "A velocity gives score and denoiser on a Gaussian path only: use base=None where the flow "
        "was trained from N(0, I), or Diffusion(net, event_shape, path=..., predicts='velocity') "
        "for another Gaussian path",
    )
