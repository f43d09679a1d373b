"""Steps of schedulers that no solver here makes, each of which a warning tells."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from scoretk.adapters.diffusers.schedulers import _config_of
from scoretk.core.warned import warn

LOWER_ORDER_BELOW = 15
"""The number of steps from which on diffusers' multistep methods keep their order in the last."""

OF_DDIM = ("DDIMScheduler", "DDIMParallelScheduler")
NEVER_CLIPPED = ("CogVideoX", "TCD")
"""The beginnings of the names of schedulers that have `clip_sample` in their configuration only."""

ALL_ANEW = ("LCM", "TCD", "FlowMatchLCM")
"""The beginnings of the names of schedulers that keep none, or a part only, of the noise that was predicted."""


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
