"""The field of a network and its scheduler, or of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.adapters.diffusers.conventions import _Clipped, _Convention, _convention, _line
from scoretk.adapters.diffusers.decoder import _decoder
from scoretk.adapters.diffusers.differences import (
    _clips,
    _warn_of_half_clipped,
    _warn_of_other_noise,
)
from scoretk.adapters.diffusers.network import _called, _Network, _network_of, _shape_of
from scoretk.adapters.diffusers.schedulers import _check_direction, _config_of, _with_steps
from scoretk.core.arguments import count
from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument
from scoretk.fields.base import Base
from scoretk.fields.foreign import misfit
from scoretk.fields.paths import GaussianPath
from scoretk.fields.wrappers import Diffusion, GaussianPathField

__all__ = ["DiffusersField", "from_diffusers"]


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
