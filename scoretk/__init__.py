"""scoretk: one sampler and score toolkit for every generative model family.

A model offers a *field* (an energy, a score or a velocity); one solver layer samples from it. The public names below
are loaded on first use, so that listing plugins, printing help or importing the package needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_NAMES = {
    "summary": (
        "Finding",
        "Summary",
    ),
    "partition": ("log_partition",),
    "checkpoint": ("Checkpoint",),
    "draws": (
        "Cost",
        "Draws",
    ),
    "errors": (
        "AmbiguousName",
        "BrokenPlugin",
        "ChainFailure",
        "CheckpointError",
        "FitFailure",
        "InvalidArgument",
        "MissingCapability",
        "MissingDependency",
        "OutputExists",
        "ScoretkError",
        "SingularConversion",
        "Status",
        "UnknownName",
    ),
    "fields": (
        "Cosine",
        "Diffusion",
        "Discrete",
        "EDM",
        "Energy",
        "Linear",
        "Score",
        "SubVP",
        "Tabulated",
        "VE",
        "VP",
        "Velocity",
        "bridge",
        "constrained",
        "from_distribution",
        "from_reversed_time",
        "from_sigmas",
        "from_timesteps",
        "guided",
        "ordered",
        "product",
        "smoothed",
        "tempered",
    ),
    "learn": (
        "ContrastiveDivergence",
        "ReplayBuffer",
    ),
    "likelihood": (
        "Estimate",
        "log_prob",
    ),
    "noise": ("Noise",),
    "plugins": (
        "Broken",
        "ModelSpec",
        "describe",
        "list_models",
        "load",
        "train",
    ),
    "sampling": ("sample",),
    "solvers": (
        "AIS",
        "AdjustedMCLMC",
        "AnnealedLangevin",
        "BlockGibbs",
        "ChEES",
        "DiscreteLangevin",
        "GHMC",
        "GibbsWithGradients",
        "HMC",
        "Ladder",
        "MALA",
        "MCLMC",
        "NUTS",
        "PreconditionedLangevin",
        "ProbabilityFlow",
        "ReverseSDE",
        "SMC",
        "SOLVERS",
        "ULA",
        "Underdamped",
        "ncsnv2_step_size",
    ),
    "streams": ("Stream",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

if TYPE_CHECKING:
    from scoretk.checkpoint import Checkpoint
    from scoretk.draws import Cost, Draws
    from scoretk.errors import (
        AmbiguousName,
        BrokenPlugin,
        ChainFailure,
        CheckpointError,
        FitFailure,
        InvalidArgument,
        MissingCapability,
        MissingDependency,
        OutputExists,
        ScoretkError,
        SingularConversion,
        Status,
        UnknownName,
    )
    from scoretk.fields import (
        EDM,
        VE,
        VP,
        Cosine,
        Diffusion,
        Discrete,
        Energy,
        Linear,
        Score,
        SubVP,
        Tabulated,
        Velocity,
        bridge,
        constrained,
        from_distribution,
        from_reversed_time,
        from_sigmas,
        from_timesteps,
        guided,
        ordered,
        product,
        smoothed,
        tempered,
    )
    from scoretk.learn import ContrastiveDivergence, ReplayBuffer
    from scoretk.likelihood import Estimate, log_prob
    from scoretk.noise import Noise
    from scoretk.partition import log_partition
    from scoretk.plugins import Broken, ModelSpec, describe, list_models, load, train
    from scoretk.sampling import sample
    from scoretk.solvers import (
        AIS,
        GHMC,
        HMC,
        MALA,
        MCLMC,
        NUTS,
        SMC,
        SOLVERS,
        ULA,
        AdjustedMCLMC,
        AnnealedLangevin,
        BlockGibbs,
        ChEES,
        DiscreteLangevin,
        GibbsWithGradients,
        Ladder,
        PreconditionedLangevin,
        ProbabilityFlow,
        ReverseSDE,
        Underdamped,
        ncsnv2_step_size,
    )
    from scoretk.streams import Stream
    from scoretk.summary import Finding, Summary

__all__ = [
    "AIS",
    "EDM",
    "GHMC",
    "HMC",
    "MALA",
    "MCLMC",
    "NUTS",
    "SMC",
    "SOLVERS",
    "ULA",
    "VE",
    "VP",
    "AdjustedMCLMC",
    "AmbiguousName",
    "AnnealedLangevin",
    "BlockGibbs",
    "Broken",
    "BrokenPlugin",
    "ChEES",
    "ChainFailure",
    "Checkpoint",
    "CheckpointError",
    "ContrastiveDivergence",
    "Cosine",
    "Cost",
    "Diffusion",
    "Discrete",
    "DiscreteLangevin",
    "Draws",
    "Energy",
    "Estimate",
    "Finding",
    "FitFailure",
    "GibbsWithGradients",
    "InvalidArgument",
    "Ladder",
    "Linear",
    "MissingCapability",
    "MissingDependency",
    "ModelSpec",
    "Noise",
    "OutputExists",
    "PreconditionedLangevin",
    "ProbabilityFlow",
    "ReplayBuffer",
    "ReverseSDE",
    "Score",
    "ScoretkError",
    "SingularConversion",
    "Status",
    "Stream",
    "SubVP",
    "Summary",
    "Tabulated",
    "Underdamped",
    "UnknownName",
    "Velocity",
    "__version__",
    "bridge",
    "constrained",
    "describe",
    "from_distribution",
    "from_reversed_time",
    "from_sigmas",
    "from_timesteps",
    "guided",
    "list_models",
    "load",
    "log_partition",
    "log_prob",
    "ncsnv2_step_size",
    "ordered",
    "product",
    "sample",
    "smoothed",
    "tempered",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'scoretk' has no attribute {name!r}")
    value = getattr(import_module(f"scoretk.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
