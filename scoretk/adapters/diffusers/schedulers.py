"""What a scheduler of diffusers says: its configuration, its timesteps, which way they run."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scoretk.errors import InvalidArgument
from scoretk.fields.foreign import misfit

FEW = 10
"""Steps that every scheduler can set: some need four, some allow fifty."""


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
    known = _settings_of(type(scheduler))
    own = {name: value for name, value in config.items() if name in known}
    return own or config  # of a class that names none of them


def _settings_of(kind: type) -> frozenset[str]:
    """The names of the settings that are a scheduler's own, by its class.

    `from_config` keeps those of the scheduler that the configuration was of, too.
    """
    begins = [vars(each)["__init__"] for each in kind.__mro__ if "__init__" in vars(each)]
    known = [inspect.signature(begin).parameters for begin in begins if inspect.isroutine(begin)]
    return frozenset(name for parameters in known for name in parameters)
