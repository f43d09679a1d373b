"""What a scheduler makes of a network: on a table, on a line, of EDM; and where it clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from scoretk.adapters.clocks import clock_of
from scoretk.adapters.diffusers.differences import (
    _warn_of_last_step,
    _warn_of_other_noise,
    _warn_of_uneven,
)
from scoretk.adapters.diffusers.schedulers import (
    _config_of,
    _cut,
    _of_integers,
    _unknown,
    _with_few,
)
from scoretk.core.devices import constant_like
from scoretk.core.rows import across
from scoretk.core.warned import warn
from scoretk.errors import InvalidArgument
from scoretk.fields.convert import convert, prediction_name
from scoretk.fields.paths import EDM, GaussianPath, Linear, Tabulated

BY_LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Settings by which a scheduler chooses levels, and finds timesteps for them."""


class _Convention(Protocol):
    """What a scheduler says of its network."""

    @property
    def path(self) -> GaussianPath:
        """The Gaussian path that the network was trained on."""

    @property
    def predicts(self) -> str:
        """What `predict` gives."""

    def predict(self, ask: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
        """The prediction at x `(batch, *event)` and t `(batch,)`; `ask(x, time)` is the network."""

    def grid(self, scheduler: Any) -> Tensor:
        """The times of the steps that a scheduler has set."""


@dataclass(frozen=True, eq=False)
class _OnTable:
    """A network trained on the integer timesteps of a table.

    Attributes:
        path: The table as a path.
        predicts: What the network predicts.
        whole: Makes integers of its timesteps; None where they are none.
        levels: s of each timestep, `(N,)`, where the scheduler has sigmas; None where k is linear
            in t.
        evenly: In which function of s k is linear between two timesteps, `torch.log` or the
            identity.
        by_level: Whether its time is `log(s) / 4` of the noise level s.
        last: Where the last step of a scheduler without sigmas leads, a time.
    """

    path: Tabulated
    predicts: str
    whole: Callable[[Tensor], Tensor] | None
    levels: Tensor | None
    evenly: Callable[[Tensor], Tensor]
    by_level: bool
    last: float

    def predict(self, ask: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
        if self.by_level:
            return ask(x, -self.path.log_snr(t) / 8)
        k = self.timestep(t).clamp(min=0)
        return ask(x, self.whole(k).long() if self.whole else k)

    @property
    def _ends(self) -> tuple[float, float]:
        """The lowest and the highest noise level of the table."""
        low, high = (torch.exp(-self.path.log_snr(t) / 2) for t in (1 - 1 / self.path.steps, 0.0))
        return float(low), float(high)

    def timestep(self, t: Tensor) -> Tensor:
        """The timestep at t, a real number."""
        if self.levels is None:
            return self.path.timestep(t)
        levels, level = constant_like(self.levels, t), torch.exp(-self.path.log_snr(t) / 2)
        above = torch.searchsorted(levels, level.contiguous()).clamp(1, self.path.steps - 1)
        low, high, level = map(self.evenly, (levels[above - 1], levels[above], level))
        return above - 1 + ((level - low) / (high - low)).clamp(0, 1)

    def grid(self, scheduler: Any) -> Tensor:
        sigmas = getattr(scheduler, "sigmas", None)
        if sigmas is not None:
            ends = self._ends
            if _beyond(ends, sigmas):
                own = _positive(sigmas)
                raise InvalidArgument(
                    "scheduler",
                    f"noise levels from {float(own.min()):.3g} to {float(own.max()):.3g}",
                    f"levels of its table, from {ends[0]:.3g} to {ends[1]:.3g}, as the network has no "
                    f"timesteps for others",
                    "sigma_min and sigma_max are the scheduler's to set; a network that knows more "
                    "levels is told these by timestep_type='continuous', prediction_type="
                    "'v_prediction'",
                )
            times = _times_of_levels(self.path, sigmas)
            _warn_of_other_levels(scheduler, self, times)
            _warn_of_last_step(scheduler)
            return times
        steps = torch.as_tensor(scheduler.timesteps, dtype=torch.float64).cpu()
        _warn_of_uneven(scheduler, steps, self.path.steps)
        times = 1 - (steps + 1) / self.path.steps
        last = times.new_tensor([max(self.last, float(times[-1]))])
        found: Tensor = torch.cat([times, last]).unique()
        return found


def _warn_of_other_levels(scheduler: Any, convention: _OnTable, times: Tensor) -> None:
    """Warn where a scheduler asks its network at timesteps that are not those of its noise levels."""
    own = torch.as_tensor(scheduler.timesteps, dtype=torch.float64).cpu().unique().flip(0)
    asked = times[: len(own)]
    ours = (
        -convention.path.log_snr(asked) / 8 if convention.by_level else convention.timestep(asked)
    )
    close = 1e-2 if convention.by_level else 2.0
    levels = len(_positive(scheduler.sigmas).unique())
    apart = abs(levels - len(own)) > 1 or not bool(((ours - own).abs() <= close).all())
    if apart:
        warn(
            f"{type(scheduler).__name__} asks its network at timesteps that are not those of the noise "
            f"levels of its steps (interpolation_type {_config_of(scheduler).get('interpolation_type')!r}): "
            f"its own samples are others. The grid has its levels, and the network is asked at these"
        )


@dataclass(frozen=True, eq=False)
class _OnLine:
    """A network of a flow on lines: `x = s noise + (1 - s) data`, its time linear in s.

    Attributes:
        start: Its time where the scheduler's timestep is 0.
        span: How far its time goes until the scheduler's timestep is N.
        inverted: Whether the scheduler's time runs from noise to data.
        negated: Whether it predicts what the scheduler takes the negative of.
        whole: N, where the scheduler's timesteps are cut to integers; None where they are not.
    """

    start: float
    span: float
    inverted: bool
    negated: bool
    whole: int | None
    predicts = "velocity"

    @property
    def path(self) -> Linear:
        return Linear()

    def predict(self, ask: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
        share = t if self.inverted else 1 - t
        if self.whole:
            share = _cut(share * self.whole).clamp(max=self.whole - 1) / self.whole
        raw = ask(x, self.start + self.span * share)
        return raw if self.inverted != self.negated else -raw

    def grid(self, scheduler: Any) -> Tensor:
        _warn_of_last_step(scheduler)
        sigmas: Tensor = torch.as_tensor(scheduler.sigmas, dtype=torch.float64).cpu().unique()
        return sigmas if self.inverted else (1 - sigmas).flip(0)


@dataclass(frozen=True, eq=False)
class _OnEDM:
    """A network F with the preconditioning of EDM: `D = c_skip x + c_out F(c_in x, log(s) / 4)`.

    Attributes:
        path: The path.
        spread: The standard deviation of the data that the preconditioning is for.
        sign: That of c_out, -1 where F predicts v.
    """

    path: EDM
    spread: float
    sign: float
    predicts = "data"

    def predict(self, ask: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
        level = self.path.sigma(t)
        s, square = across(level, x), across(level**2 + self.spread**2, x)
        raw = ask(x / square.sqrt(), level.log() / 4)
        data: Tensor = (
            self.spread**2 / square * x + self.sign * s * self.spread / square.sqrt() * raw
        )
        return data

    def grid(self, scheduler: Any) -> Tensor:
        levels = torch.as_tensor(scheduler.sigmas, dtype=torch.float64).cpu()
        times: Tensor = self.path.t(-2 * levels[levels > 0].unique().flip(0).log())
        return times


@dataclass(frozen=True, eq=False)
class _Clipped:
    """A convention whose prediction of the data is clipped to [-reach, reach]."""

    convention: Any
    reach: float
    predicts = "data"

    @property
    def path(self) -> GaussianPath:
        path: GaussianPath = self.convention.path
        return path

    def predict(self, ask: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
        raw = self.convention.predict(ask, x, t)
        data = convert(raw, x, t, self.path, self.convention.predicts, "data")
        return data.clamp(-self.reach, self.reach)

    def grid(self, scheduler: Any) -> Tensor:
        times: Tensor = self.convention.grid(scheduler)
        return times


def _positive(sigmas: Any) -> Tensor:
    """The noise levels above 0."""
    levels = torch.as_tensor(sigmas, dtype=torch.float64).cpu()
    return levels[levels > 0]


def _beyond(ends: tuple[float, float], sigmas: Any) -> bool:
    """Whether noise levels go beyond those of a table, but for rounding."""
    levels = _positive(sigmas)
    return bool((levels < ends[0] * (1 - 1e-3)).any() or (levels > ends[1] * (1 + 1e-3)).any())


def _times_of_levels(path: Tabulated, sigmas: Any) -> Tensor:
    """Times of decreasing levels `sigma / alpha`, each once; 0 is t = 1."""
    levels = torch.as_tensor(sigmas, dtype=torch.float64).cpu().unique().flip(0)
    times = path.t(-2 * levels[levels > 0].log())
    return torch.cat([times, times.new_ones(int((levels == 0).sum()))])


def _line(
    network: Any,
    scheduler: Any,
    config: Mapping[str, Any],
    integer: bool | None,
    time_scale: float | None,
) -> _OnLine:
    """The convention of a scheduler of a flow on lines, and of the network that it leads."""
    kind, steps = config.get("prediction_type"), int(config["num_train_timesteps"])
    if kind not in (None, "flow_prediction"):
        raise _unknown(scheduler, f"use_flow_sigmas with prediction_type {kind!r}")
    start, span, negated = clock_of(network, steps, time_scale)
    if integer is None:  # FlowMatch schedulers have no others
        integer = bool(config.get("use_flow_sigmas")) and _of_integers(scheduler)
    inverted = bool(config.get("invert_sigmas"))
    _warn_of_other_noise(scheduler)
    return _OnLine(start, span, inverted, negated, steps if integer else None)


def _convention(scheduler: Any, config: Mapping[str, Any], integer: bool | None) -> _Convention:
    """The convention of a scheduler, by its configuration."""
    name, kind = type(scheduler).__name__, config.get("prediction_type", "epsilon")
    if name.startswith("EDM"):
        path = EDM(config["sigma_min"], config["sigma_max"], config["rho"])
        if kind not in ("epsilon", "v_prediction"):
            raise _unknown(scheduler, f"prediction_type {kind!r}")
        sign = 1.0 if kind == "epsilon" else -1.0
        return _OnEDM(path, float(config["sigma_data"]), sign)
    table = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(table, Tensor) or kind not in ("epsilon", "sample", "v_prediction"):
        raise _unknown(scheduler, f"prediction_type {kind!r}" if table is not None else "no table")
    table = _decreasing(table)
    tabulated, predicts = Tabulated(table), prediction_name(kind)
    if predicts == "noise" and float(tabulated.alpha(0.0)) == 0:
        raise InvalidArgument(
            "scheduler",
            type(scheduler),
            "prediction_type 'v_prediction' or 'sample' with zero terminal signal-to-noise ratio",
            "At its first timestep x_t is all noise, which tells nothing of the data",
        )
    if integer is None:
        integer = _of_integers(scheduler)
    by_level = config.get("timestep_type") == "continuous" and kind == "v_prediction"
    last = 1.0 if config.get("set_alpha_to_one", True) else 1 - 1 / tabulated.steps
    levels = None
    if getattr(scheduler, "sigmas", None) is not None:
        levels = (1 / table.double() - 1).sqrt()
    if by_level and levels is not None:
        made = _with_few(scheduler)
        own = _positive(made.sigmas)
        if _beyond((float(levels[0]), float(levels[-1])), own):
            return _OnEDM(EDM(float(own.min()), float(own.max())), 1.0, -1.0)
    evenly = torch.log if any(config.get(name) for name in BY_LEVELS) else torch.Tensor.clone
    whole = torch.round if integer else None
    convention = _OnTable(tabulated, predicts, whole, levels, evenly, by_level, last)
    if levels is None or not integer or not _of_integers(scheduler):
        return convention
    made = _with_few(scheduler)
    times = _times_of_levels(tabulated, made.sigmas[: len(made.timesteps)])
    k, own = convention.timestep(times), torch.as_tensor(made.timesteps).cpu()
    rounds = len(k) == len(own) and torch.equal(k.round().long(), own.long())
    return convention if rounds else replace(convention, whole=_cut)


def _decreasing(table: Tensor) -> Tensor:
    """A table alphas_cumprod that decreases to its end.

    Schedulers with sigmas put 2^-24 in the place of a zero terminal signal-to-noise ratio, which is
    above the entries before it: these are drawn up to a line of the logarithms.
    """
    above = (table > table[-1]).nonzero()
    last = int(above[-1]) if len(above) else len(table) - 1
    if last >= len(table) - 2:
        return table
    ends = table[[last, -1]].log()
    rest = torch.linspace(float(ends[0]), float(ends[1]), len(table) - last, dtype=torch.float64)
    return torch.cat([table[: last + 1], rest[1:-1].exp().to(table), table[-1:]])
