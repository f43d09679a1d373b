"""`from_`: the field of another library's object, by the adapter for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from scoretk.adapters.azula import from_azula
from scoretk.adapters.diffusers import from_diffusers
from scoretk.adapters.flow_matching import from_flow_matching
from scoretk.adapters.flows import from_flow
from scoretk.adapters.jax import from_jax
from scoretk.adapters.k_diffusion import from_k_diffusion
from scoretk.adapters.numpyro import from_numpyro
from scoretk.adapters.pymc import from_pymc
from scoretk.adapters.pyro import from_pyro
from scoretk.adapters.sbi import from_sbi
from scoretk.adapters.sklearn import from_sklearn
from scoretk.adapters.stan import from_stan
from scoretk.adapters.torchcfm import from_torchcfm
from scoretk.adapters.transformers import from_language_model
from scoretk.errors import InvalidArgument
from scoretk.fields.distribution import from_distribution
from scoretk.fields.foreign import ADAPTERS, adapter_of, nearest, ways
from scoretk.fields.protocols import is_field

__all__ = ["from_"]

BY_NAME: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        adapter.__name__: adapter
        for adapter in (
            from_azula,
            from_diffusers,
            from_distribution,
            from_flow,
            from_flow_matching,
            from_jax,
            from_k_diffusion,
            from_language_model,
            from_numpyro,
            from_pymc,
            from_pyro,
            from_sbi,
            from_sklearn,
            from_stan,
            from_torchcfm,
        )
    }
)
"""The adapters of `scoretk.fields.foreign.ADAPTERS`, by name."""


def from_(value: Any, /, *args: Any, **options: Any) -> Any:
    """The field of an object of another library, by the adapter for it.

    Args:
        value: A field, which is returned as it is; or an object that an adapter takes.
        args: What that adapter takes besides, as the scheduler in `from_diffusers(unet, scheduler)`.
        options: The same, by name.

    Returns:
        A field.

    Raises:
        InvalidArgument: No adapter is known for it.
    """
    adapter = adapter_of(value)
    if adapter is not None:
        return BY_NAME[adapter](value, *args, **options)
    if is_field(value):
        if args or options:
            needless = ", ".join([*map(repr, args), *(f"{n}=" for n in options)])
            raise InvalidArgument(
                "value",
                value,
                "nothing beside a field, which stays as it is",
                f"Leave out {needless}",
            )
        return value
    known = ", ".join(sorted({package.replace("jaxlib", "jax") for package, _ in ADAPTERS}))
    raise InvalidArgument(
        "value",
        value,
        f"a field, or an object of {known}",
        nearest(value)
        or ways(
            value,
            "Wrap a callable: scoretk.Energy(fn, event_shape) or Score of x; a network of x and t, "
            "Diffusion or Velocity; of sigma, from_sigmas; of timesteps, from_timesteps",
        ),
    )
