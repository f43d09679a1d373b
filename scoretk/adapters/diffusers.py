"""Models of diffusers as fields: the network, and the scheduler that says how it was trained.

A scheduler's configuration fixes what the network means. Three conventions are known:

    trained on     path                               network's time          prediction_type
    a table        Tabulated(alphas_cumprod)          k = N - 1 ... 0         epsilon, sample,
                                                      (or log(s) / 4)         v_prediction
    levels beyond  EDM(sigma_min, sigma_max)          log(s) / 4              v_prediction
    a line         Linear, s = 1 - t                  by architecture         noise - data = dx/ds
    EDM            EDM(sigma_min, sigma_max, rho)     log(s) / 4              F, preconditioned

with s the noise level. The table is the scheduler's own, rescaled to zero terminal signal-to-noise
ratio where that is asked for; x is in the variance-preserving coordinates of the network, so that
`scale_model_input` has nothing left to do: a scheduler's sample in units of 1/alpha, as those with
sigmas have it, is `sqrt(1 + s^2) x`. On a line the time that a network is called with is a matter of
its architecture (`scoretk.adapters.clocks`). The steps of a scheduler are `field.grid(steps)`, times for
`ProbabilityFlow(grid=...)`:

    DDIM             ProbabilityFlow("ddim")       Euler, FlowMatchEuler     ProbabilityFlow("euler")
    DDPM             ReverseSDE("ddpm")            Heun                      ProbabilityFlow("heun")
    DPMSolver++(2M)  ProbabilityFlow("dpmpp_2m")   FlowMatchHeun             ProbabilityFlow("trapezoid")

Some schedulers round the timesteps that they find for their levels, and some cut them; which, is seen
by the steps that one sets.

Where the noise levels of a scheduler with `timestep_type="continuous"` go beyond its table, as those
of Stable Video Diffusion do, the network is one of EDM for data of spread 1.

A scheduler that clips its prediction of the data has a field whose denoiser is clipped, and whose
noise follows from it; DDIM clips only one of the two.

References:
    Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative
    models" (2022): the preconditioning of EDM.
    Lin, Liu, Li, Yang, "Common diffusion noise schedules and sample steps are flawed" (2024).
    Esser et al., "Scaling rectified flow transformers for high-resolution image synthesis" (2024):
    the shift of a line's grid.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from scoretk.adapters.clocks import clock_of
from scoretk.core.arguments import count
from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.core.devices import constant_like
from scoretk.core.keywords import explained
from scoretk.core.rows import across
from scoretk.core.warned import warn
from scoretk.errors import InvalidArgument
from scoretk.fields.base import Base
from scoretk.fields.convert import convert, prediction_name
from scoretk.fields.foreign import answered, misfit, owners, within
from scoretk.fields.paths import EDM, GaussianPath, Linear, Tabulated
from scoretk.fields.wrappers import Diffusion, GaussianPathField

__all__ = ["DiffusersField", "from_diffusers"]

ADDED = ("text_embeds", "time_ids", "image_embeds")
"""Conditions that a UNet takes in a dictionary of its own, `added_cond_kwargs`."""


FEW = 10
"""Steps that every scheduler can set: some need four, some allow fifty."""

LOWER_ORDER_BELOW = 15
"""The number of steps from which on diffusers' multistep methods keep their order in the last."""

OF_DDIM = ("DDIMScheduler", "DDIMParallelScheduler")
NEVER_CLIPPED = ("CogVideoX", "TCD")
"""The beginnings of the names of schedulers that have `clip_sample` in their configuration only."""
PREDICT_BESIDE = ("transformer_2", "unet_2", "controlnet", "adapter")
"""Parts of pipelines that predict together with the network, or in its place at some times."""

ALL_ANEW = ("LCM", "TCD", "FlowMatchLCM")
"""The beginnings of the names of schedulers that keep none, or a part only, of the noise that was predicted."""

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
class DiffusersField(GaussianPathField):
    """The field in time of a network and a scheduler of diffusers; made by `from_diffusers`.

    Attributes:
        model: The network, called by the field's own time.
        scheduler: The scheduler, as it was given.
        convention: How the scheduler's steps are times of the field.
        null: The condition values that stand for none, for `scoretk.guided`; None without.
        decode: From latents to images, `(batch, *event_shape)` to images; None without a decoder.
    """

    model: Diffusion
    scheduler: Any
    convention: Any
    null: Mapping[str, Any] | None = None
    decode: Callable[[Tensor], Tensor] | None = None

    def __repr__(self) -> str:
        network = type(self.model.net.network).__name__  # type: ignore[attr-defined]
        return f"from_diffusers({network}, {type(self.scheduler).__name__}, {self.event_shape})"

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.model.event_shape

    @property
    def path(self) -> GaussianPath:  # type: ignore[override]
        """The path that the scheduler's configuration says."""
        return self.model.path

    @property
    def predicts(self) -> str:  # type: ignore[override]
        return self.model.predicts

    @property
    def base(self) -> Base:
        """The law at t = 0, N(0, sigma(0)^2 I)."""
        return self.model.base

    @property
    def provides(self) -> frozenset[str]:  # type: ignore[override]
        """All predictions and a base; `decode` with a decoder."""
        return GaussianPathField.provides | ({"decode"} if self.decode else frozenset())

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """The network's own prediction, like x."""
        return self.model.predict(x, t, **cond)

    def grid(self, steps: int, **options: Any) -> Tensor:
        """The times of a scheduler's steps, `(steps + 1,)`, for `ProbabilityFlow(grid=...)`.

        Args:
            steps: `num_inference_steps`.
            options: What `set_timesteps` takes besides, such as `mu` for a dynamic shift.
        """
        _warn_of_other_noise(self.scheduler)
        made = _with_steps(self.scheduler, count("steps", steps, least=1), **options)
        if isinstance(self.convention, _Clipped):
            _warn_of_half_clipped(self.scheduler)
        times: Tensor = self.convention.grid(made)
        return times.clamp(0, 1)


@explained
def from_diffusers(
    model: Any,
    scheduler: Any = None,
    event_shape: Sequence[int] | None = None,
    *,
    null: Mapping[str, Any] | None = None,
    integer: bool | None = None,
    clip: bool | None = None,
    time_scale: float | None = None,
    autocast: torch.dtype | None = None,
) -> DiffusersField:
    """A field in time from a network and a scheduler of diffusers, or from a pipeline.

    Condition values reach the network by its own names: "class_labels", "encoder_hidden_states",
    "pooled_projections", "guidance", ...; "text_embeds" and "time_ids" go into `added_cond_kwargs`.
    Classifier-free guidance is `scoretk.guided(field, weight, null={name: value for none})`. A
    network with twice the channels, which has learned its variance, is asked for the first half.

    Args:
        model: A network of diffusers, anything called as `net(x, timestep, **cond)` that returns a
            tensor, a tuple or an object with `sample`; or a pipeline, whose `unet` or
            `transformer`, `scheduler` and `vae` are taken.
        scheduler: A scheduler of diffusers; None for that of the pipeline.
        event_shape: The shape of one x; None for `(in_channels, *sample_size)` of the network.
        null: The condition values that stand for none, by name.
        integer: Whether the network is called with timesteps rounded to integers; None for what
            the scheduler does. With False solvers see a smooth model between timesteps, where the
            network can take them.
        clip: Whether the prediction of the data is clipped; None for what the scheduler's
            `clip_sample` says.
        time_scale: On a line, what the network is called with at pure noise, its time being
            `time_scale * s` of the noise level s: 1000 where its pipeline hands over the
            scheduler's timesteps, 1 where timestep / 1000. None for what the pipelines of its
            architecture do, and for the timesteps with networks that are not of diffusers.
        autocast: As in `scoretk.Energy`.

    Returns:
        The field. `field.grid(steps)` has the times of the scheduler's own steps.

    Raises:
        InvalidArgument: The scheduler's convention is not known, or how the network counts time,
            or an argument does not fit.
    """
    if isinstance(model, type):
        raise misfit("model", model, "a network of diffusers, or a pipeline")
    parts = model if hasattr(model, "scheduler") else None
    network = _network_of(parts) if parts is not None else model
    scheduler = parts.scheduler if scheduler is None and parts is not None else scheduler
    config = _config_of(scheduler)
    if event_shape is None:
        event_shape = _shape_of(network)
    of_flow = type(scheduler).__name__.startswith("FlowMatch")
    if not of_flow:
        _check_direction(scheduler)
    if of_flow or config.get("use_flow_sigmas"):
        convention: _Convention = _line(network, scheduler, config, integer, time_scale)
    elif time_scale is None:
        convention = _convention(scheduler, config, integer)
    else:
        raise InvalidArgument("time_scale", time_scale, "None with a scheduler that is of no flow")
    if config.get("thresholding") and clip is None:  # which diffusers does before it clips
        raise InvalidArgument(
            "scheduler",
            type(scheduler),
            "one without dynamic thresholding, which is no prediction of a model",
            "clip=False leaves it out",
        )
    if _clips(scheduler) if clip is None else clip:
        convention = _Clipped(convention, float(config.get("clip_sample_range", 1.0)))
    net = _Network(network, convention, *_called(network))
    field = Diffusion(
        net, as_event_shape(event_shape), convention.path, convention.predicts, autocast=autocast
    )
    return DiffusersField(field, scheduler, convention, null, _decoder(parts))


@dataclass(frozen=True, eq=False)
class _Network:
    """A network of diffusers, called by this package's time.

    Attributes:
        network: The network.
        convention: How it is asked.
        keyword: The name of its time; None where that is its second argument.
        grouped: Whether it takes some conditions in `added_cond_kwargs`.
    """

    network: Any
    convention: Any
    keyword: str | None
    grouped: bool

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        prediction: Tensor = self.convention.predict(lambda y, k: self._ask(y, k, cond), x, t)
        return prediction

    def _ask(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        state = x.dtype
        inner = within(self.network)
        x, *rows = _as_taken(inner, x, *cond.values())
        cond = dict(zip(cond, rows, strict=True))
        if not any(package == "diffusers" for package, _ in owners(inner)):
            (time,) = _as_taken(inner, time)  # (those embed it in float32: bfloat16 has no 999)
        given: dict[str, Any] = {n: v for n, v in cond.items() if not (self.grouped and n in ADDED)}
        added = {n: v for n, v in cond.items() if n not in given}
        if added:
            given["added_cond_kwargs"] = added
        args = (x,) if self.keyword else (x, time)
        if self.keyword:
            given[self.keyword] = time
        found = answered(lambda: self.network(*args, **given), inner, x, cond)
        found = getattr(found, "sample", found)
        found = found[0] if isinstance(found, tuple | list) else found
        if isinstance(found, Tensor) and found.shape[1:2] == (2 * x.shape[1],):
            found = found[:, : x.shape[1]]  # what follows is the variance
        output: Tensor = found.to(state) if isinstance(found, Tensor) else found
        return output


def _as_taken(network: Any, *given: Tensor) -> list[Tensor]:
    """Floating-point tensors in the dtype of a network that has one."""
    dtype = getattr(network, "dtype", None)
    if not isinstance(dtype, torch.dtype):
        own = network.parameters() if isinstance(network, torch.nn.Module) else ()
        dtype = next((p.dtype for p in own if p.is_floating_point()), None)
    if dtype is None:
        return list(given)
    return [v.to(dtype) if v.is_floating_point() else v for v in given]


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


def _warn_of_other_noise(scheduler: Any) -> None:
    """Warn where a scheduler draws other noise in its steps than any solver of this package does."""
    config, name = _config_of(scheduler), type(scheduler).__name__
    if config.get("stochastic_sampling") or name.startswith(ALL_ANEW):
        how = " with stochastic_sampling=True" if config.get("stochastic_sampling") else ""
        warn(
            f"{name}{how} draws all noise anew at each step, x' = a' D + s' z with the denoised D and "
            f"levels a' and s' (TCDScheduler a share of it): a rule for models that were distilled for it, and with many "
            f"steps of any other model of half of the data's variance. No solver here steps by it: "
            f"ProbabilityFlow is its deterministic flow, ReverseSDE its diffusion"
        )
    variance = config.get("variance_type", "fixed_small")
    if name.startswith("DDPM") and not str(variance).startswith("fixed_small"):
        warn(
            f"{name} with variance_type={variance!r} draws noise of another variance than that of "
            f"q(x' | x, D): ReverseSDE('ddpm') steps by the latter, as with 'fixed_small'"
        )


def _clips(scheduler: Any) -> bool:
    """Whether a scheduler clips its prediction of the data."""
    name = type(scheduler).__name__
    return bool(_config_of(scheduler).get("clip_sample")) and not name.startswith(NEVER_CLIPPED)


def _warn_of_half_clipped(scheduler: Any) -> None:
    """Warn where a scheduler clips the data and keeps the noise that was predicted with it."""
    name = type(scheduler).__name__
    if name.startswith(OF_DDIM):
        reach = _config_of(scheduler).get("clip_sample_range", 1.0)
        warn(
            f"{name} with clip_sample=True clips its prediction of the data to {reach} and keeps the "
            f"noise of that without: where one is beyond, its own samples are others. The field's noise "
            f"follows from the clipped data, as in step(..., use_clipped_model_output=True); clip=False "
            f"clips nothing"
        )


def _warn_of_last_step(scheduler: Any) -> None:
    """Warn where a multistep method takes its last step at first order, and not to the data.

    To the data, where sigma is 0, its steps of all orders are one.
    """
    config, name = _config_of(scheduler), type(scheduler).__name__
    few = bool(config.get("lower_order_final")) and len(scheduler.timesteps) < LOWER_ORDER_BELOW
    first_order = few or bool(config.get("euler_at_final"))
    higher = int(config.get("solver_order", 1)) > 1
    if (
        name.startswith("DPMSolverMultistep")
        and higher
        and first_order
        and scheduler.sigmas[-1] > 0
    ):
        warn(
            f"{name} takes the last of {len(scheduler.timesteps)} steps, to the level "
            f"{float(scheduler.sigmas[-1]):.3g}, at first order: its own samples are others. "
            f"ProbabilityFlow('dpmpp_2m') takes it at second; at {LOWER_ORDER_BELOW} steps and more, "
            f"or with final_sigmas_type 'zero', both do the same"
        )


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


def _warn_of_uneven(scheduler: Any, timesteps: Tensor, table: int) -> None:
    """Warn where a scheduler of DDIM's own steps do not lead from one of its timesteps to the next.

    Each of them goes down by `N // steps`, whatever the next timestep is. Where that is another one,
    the sample is taken for one of a level that it does not have.

    Args:
        scheduler: A scheduler that has set its steps.
        timesteps: Its timesteps, in the order in which they are taken.
        table: N.
    """
    stride = table // len(timesteps)
    led, next_ones = timesteps - stride, timesteps[1:]
    if type(scheduler).__name__.startswith((*OF_DDIM, "CogVideoXDDIM")) and not (
        bool((led[:-1] == next_ones).all()) and float(led[-1]) < 0
    ):
        warn(
            f"{type(scheduler).__name__} goes down by {table} // {len(timesteps)} = {stride} at each "
            f"of its steps, which is not where its next timestep is: with these its own samples are "
            f"others. The grid has its timesteps, and leads from each to the next. A number of steps "
            f"that divides {table}, with timestep_spacing 'leading' or 'trailing', has no such gap"
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


def _with_steps(scheduler: Any, steps: int, **options: Any) -> Any:
    """A copy of a scheduler that has set its steps, and knows of none before."""
    shifts = _config_of(scheduler).get("use_dynamic_shifting")
    known = inspect.signature(scheduler.set_timesteps).parameters
    if type(scheduler).__name__.startswith("FlowMatch") and shifts and options.get("mu") is None:
        raise InvalidArgument(
            "mu",
            None,
            f"the shift of its times, as {type(scheduler).__name__} has use_dynamic_shifting=True",
            f"field.grid({steps}, mu=0.7), say: pipelines make it of the number of their latents' "
            f"patches, from base_shift to max_shift of the configuration",
        )
    if options.get("mu") is not None and "mu" in known and not shifts:
        raise InvalidArgument(
            "mu",
            options["mu"],
            f"none, as {type(scheduler).__name__} has use_dynamic_shifting=False, and leaves it out",
        )
    made = copy.deepcopy(scheduler)
    with warnings.catch_warnings():  # diffusers' own use of numpy is no news of ours
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            made.set_timesteps(steps, **options)
        except Exception as error:  # whatever a scheduler raises
            given = ", ".join([f"steps={steps}", *(f"{n}={v!r}" for n, v in options.items())])
            raise InvalidArgument(
                "steps",
                given,
                f"steps that {type(scheduler).__name__} can set",
                f"It raised {type(error).__name__}: {error}",
            ) from error
    return made


def _with_few(scheduler: Any) -> Any:
    """A copy of a scheduler with a few steps set, without a shift of its times where they move."""
    known = inspect.signature(scheduler.set_timesteps).parameters
    moves = _config_of(scheduler).get("use_dynamic_shifting") and "mu" in known
    steps = min(FEW, int(_config_of(scheduler)["num_train_timesteps"]))
    return _with_steps(scheduler, steps, **({"mu": 0.0} if moves else {}))


def _cut(k: Tensor) -> Tensor:
    """The integer parts; what is an integer but for rounding counts as one."""
    return (k + 1 / 64).floor()


def _of_integers(scheduler: Any) -> bool:
    """Whether a scheduler's timesteps are integers, which some are from `set_timesteps` on."""
    try:
        made = _with_few(scheduler)
    except Exception as error:  # whatever a scheduler of its own kind raises
        raise _unknown(scheduler, f"no steps of the usual kind ({error})") from error
    return not torch.as_tensor(made.timesteps).is_floating_point()


def _check_direction(scheduler: Any) -> None:
    """Check that a scheduler's steps lead from the noise to the data.

    Raises:
        InvalidArgument: Its timesteps rise, as those of an inverse one do: each of its steps asks the
            network at the level that it leads to, or takes it for one before, which no grid says.
    """
    try:
        times = torch.as_tensor(_with_few(scheduler).timesteps)
    except Exception:  # noqa: BLE001 (whatever a scheduler of its own kind raises: told later)
        return
    if len(times) > 1 and float(times[0]) < float(times[-1]):
        name = type(scheduler).__name__
        raise InvalidArgument(
            "scheduler",
            f"{name}, whose timesteps rise from {float(times[0]):g} to {float(times[-1]):g}",
            "a scheduler that leads from the noise to the data",
            f"This one inverts data. Give the scheduler that the network was trained with, such as "
            f"{name.replace('Inverse', '')}.from_config(scheduler.config), and invert with "
            f"scoretk.encode(field, x)",
        )


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


def _unknown(scheduler: Any, what: str) -> InvalidArgument:
    return InvalidArgument(
        "scheduler",
        type(scheduler),
        "a scheduler with a table alphas_cumprod (DDPM, DDIM, PNDM, Euler, Heun, DPMSolver, UniPC, "
        "...), a FlowMatch scheduler or one of EDM",
        f"It has {what}. By hand: scoretk.from_timesteps, from_sigmas or from_reversed_time",
    )


def _config_of(scheduler: Any) -> Mapping[str, Any]:
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping) or not hasattr(scheduler, "set_timesteps"):
        raise misfit(
            "scheduler",
            scheduler,
            "a scheduler of diffusers, which says how the network was trained",
            "Such as DDIMScheduler.from_config(...)",
        )
    own = {name: value for name, value in config.items() if _reads(scheduler, name)}
    return own or config  # of a class that names none of them


def _reads(scheduler: Any, name: str) -> bool:
    """Whether a setting is the scheduler's own.

    `from_config` keeps those of the scheduler that the configuration was of, too.
    """
    begins = [
        vars(kind)["__init__"] for kind in type(scheduler).__mro__ if "__init__" in vars(kind)
    ]
    known = [inspect.signature(begin).parameters for begin in begins if inspect.isroutine(begin)]
    return any(name in parameters for parameters in known)


def _network_of(pipeline: Any) -> Any:
    more = next((n for n in PREDICT_BESIDE if getattr(pipeline, n, None) is not None), None)
    if more is not None:
        raise InvalidArgument(
            "model",
            type(pipeline),
            f"a pipeline of which one network predicts; this one has {more!r} beside it",
            "Give the one network and the scheduler: from_diffusers(pipeline.unet, pipeline.scheduler)",
        )
    found = [
        part
        for part in (getattr(pipeline, name, None) for name in ("unet", "transformer"))
        if part is not None
    ]
    if len(found) != 1:
        raise InvalidArgument(
            "model", type(pipeline), "a pipeline with one unet or transformer", "Give the network"
        )
    return found[0]


def _shape_of(network: Any) -> tuple[int, ...]:
    config = getattr(within(network), "config", {})
    channels, size = (
        config.get(name) if isinstance(config, Mapping) else None
        for name in ("in_channels", "sample_size")
    )
    if channels is None or size is None:
        raise InvalidArgument(
            "event_shape", None, "the shape of one x, which this network does not say"
        )
    axes = 1 if "1D" in type(within(network)).__name__ else 2
    return (channels, *((size,) * axes if isinstance(size, int) else size))


def _called(network: Any) -> tuple[str | None, bool]:
    """By which name a network takes its time, and whether it takes conditions in a dictionary."""
    network = within(network)  # whose wrappers take any arguments
    function = network.forward if isinstance(network, torch.nn.Module) else network
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None, False
    keyword = next((n for n in ("timestep", "timesteps") if n in names[1:]), None)
    return keyword, "added_cond_kwargs" in names


@dataclass(frozen=True, eq=False)
class _Decoder:
    """From latents to images by a variational autoencoder: `vae.decode(std z / scale + mean)`.

    Attributes:
        vae: The autoencoder.
        scale: Its `scaling_factor`.
        mean: What its latents are shifted by: `shift_factor`, or `latents_mean` of each channel.
        std: The `latents_std` of each channel; 1 without.
    """

    vae: Any
    scale: float
    mean: Tensor
    std: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        dtype = getattr(self.vae, "dtype", z.dtype)
        mean, std = (self._across(v, z) for v in (self.mean, self.std))
        given = (std * z / self.scale + mean).to(dtype)
        found = answered(lambda: self.vae.decode(given), self.vae, z, {})
        found = getattr(found, "sample", found)
        image: Tensor = found[0] if isinstance(found, tuple) else found
        return image.to(z.dtype)

    def _across(self, each: Tensor, z: Tensor) -> Tensor:
        return each.to(z).reshape(-1, *(1 for _ in z.shape[2:]))


def _decoder(pipeline: Any) -> _Decoder | None:
    vae = getattr(pipeline, "vae", None)
    if vae is None:
        return None
    config = vae.config
    mean, std = (
        config.get(name) if config.get(name) is not None else getattr(vae, name, None)
        for name in ("latents_mean", "latents_std")
    )
    if mean is None or std is None:
        mean, std = float(config.get("shift_factor") or 0), 1.0
    scale = float(config.get("scaling_factor") or 1)
    return _Decoder(vae, scale, *(torch.as_tensor(v, dtype=torch.float64) for v in (mean, std)))
