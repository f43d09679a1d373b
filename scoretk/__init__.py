"""scoretk: one sampler and score toolkit for every generative model family.

A model offers a *field* (an energy, a score or a velocity); one solver layer samples from it. The public names below
are loaded on first use, so that listing plugins, printing help or importing the package needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "AmbiguousName": "errors",
    "AnnealedLangevin": "solvers",
    "Broken": "plugins",
    "BrokenPlugin": "errors",
    "ChainFailure": "errors",
    "Checkpoint": "checkpoint",
    "CheckpointError": "errors",
    "ContrastiveDivergence": "learn",
    "Cosine": "fields",
    "Cost": "draws",
    "Diffusion": "fields",
    "Draws": "draws",
    "EDM": "fields",
    "Energy": "fields",
    "Estimate": "likelihood",
    "FitFailure": "errors",
    "InvalidArgument": "errors",
    "Linear": "fields",
    "MALA": "solvers",
    "MissingCapability": "errors",
    "MissingDependency": "errors",
    "ModelSpec": "plugins",
    "Noise": "noise",
    "OutputExists": "errors",
    "ProbabilityFlow": "solvers",
    "ReplayBuffer": "learn",
    "SOLVERS": "solvers",
    "Score": "fields",
    "ScoretkError": "errors",
    "SingularConversion": "errors",
    "Status": "errors",
    "Stream": "streams",
    "SubVP": "fields",
    "Tabulated": "fields",
    "ULA": "solvers",
    "UnknownName": "errors",
    "VE": "fields",
    "VP": "fields",
    "Velocity": "fields",
    "describe": "plugins",
    "from_distribution": "fields",
    "from_reversed_time": "fields",
    "from_sigmas": "fields",
    "from_timesteps": "fields",
    "guided": "fields",
    "list_models": "plugins",
    "load": "plugins",
    "log_prob": "likelihood",
    "ncsnv2_step_size": "solvers",
    "product": "fields",
    "sample": "sampling",
    "tempered": "fields",
}

if TYPE_CHECKING:
    from scoretk.checkpoint import Checkpoint as Checkpoint
    from scoretk.draws import Cost as Cost
    from scoretk.draws import Draws as Draws
    from scoretk.errors import (
        AmbiguousName as AmbiguousName,
    )
    from scoretk.errors import (
        BrokenPlugin as BrokenPlugin,
    )
    from scoretk.errors import (
        ChainFailure as ChainFailure,
    )
    from scoretk.errors import (
        CheckpointError as CheckpointError,
    )
    from scoretk.errors import FitFailure as FitFailure
    from scoretk.errors import (
        InvalidArgument as InvalidArgument,
    )
    from scoretk.errors import (
        MissingCapability as MissingCapability,
    )
    from scoretk.errors import (
        MissingDependency as MissingDependency,
    )
    from scoretk.errors import (
        OutputExists as OutputExists,
    )
    from scoretk.errors import (
        ScoretkError as ScoretkError,
    )
    from scoretk.errors import (
        SingularConversion as SingularConversion,
    )
    from scoretk.errors import (
        Status as Status,
    )
    from scoretk.errors import (
        UnknownName as UnknownName,
    )
    from scoretk.fields import (
        EDM as EDM,
    )
    from scoretk.fields import (
        VE as VE,
    )
    from scoretk.fields import (
        VP as VP,
    )
    from scoretk.fields import (
        Cosine as Cosine,
    )
    from scoretk.fields import (
        Diffusion as Diffusion,
    )
    from scoretk.fields import (
        Energy as Energy,
    )
    from scoretk.fields import (
        Linear as Linear,
    )
    from scoretk.fields import (
        Score as Score,
    )
    from scoretk.fields import (
        SubVP as SubVP,
    )
    from scoretk.fields import (
        Tabulated as Tabulated,
    )
    from scoretk.fields import (
        Velocity as Velocity,
    )
    from scoretk.fields import (
        from_distribution as from_distribution,
    )
    from scoretk.fields import (
        from_reversed_time as from_reversed_time,
    )
    from scoretk.fields import (
        from_sigmas as from_sigmas,
    )
    from scoretk.fields import (
        from_timesteps as from_timesteps,
    )
    from scoretk.fields import (
        guided as guided,
    )
    from scoretk.fields import (
        product as product,
    )
    from scoretk.fields import (
        tempered as tempered,
    )
    from scoretk.learn import ContrastiveDivergence as ContrastiveDivergence
    from scoretk.learn import ReplayBuffer as ReplayBuffer
    from scoretk.likelihood import Estimate as Estimate
    from scoretk.likelihood import log_prob as log_prob
    from scoretk.noise import Noise as Noise
    from scoretk.plugins import (
        Broken as Broken,
    )
    from scoretk.plugins import (
        ModelSpec as ModelSpec,
    )
    from scoretk.plugins import (
        describe as describe,
    )
    from scoretk.plugins import (
        list_models as list_models,
    )
    from scoretk.plugins import (
        load as load,
    )
    from scoretk.sampling import sample as sample
    from scoretk.solvers import (
        MALA as MALA,
    )
    from scoretk.solvers import (
        SOLVERS as SOLVERS,
    )
    from scoretk.solvers import (
        ULA as ULA,
    )
    from scoretk.solvers import (
        AnnealedLangevin as AnnealedLangevin,
    )
    from scoretk.solvers import (
        ProbabilityFlow as ProbabilityFlow,
    )
    from scoretk.solvers import (
        ncsnv2_step_size as ncsnv2_step_size,
    )
    from scoretk.streams import Stream as Stream

__all__ = ["__version__"]
__all__ += list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'scoretk' has no attribute {name!r}")
    value = getattr(import_module(f"scoretk.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
