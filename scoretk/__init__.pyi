from scoretk import conformance as conformance
from scoretk import diagnostics as diagnostics
from scoretk import learn as learn
from scoretk._version import __version__ as __version__
from scoretk.core.noise import Noise as Noise
from scoretk.core.streams import Stream as Stream
from scoretk.diagnostics.summary import (
    Finding as Finding,
)
from scoretk.diagnostics.summary import (
    Summary as Summary,
)
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
from scoretk.errors import (
    FitFailure as FitFailure,
)
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
    DPS as DPS,
)
from scoretk.fields import (
    EDM as EDM,
)
from scoretk.fields import (
    MMPS as MMPS,
)
from scoretk.fields import (
    VE as VE,
)
from scoretk.fields import (
    VP as VP,
)
from scoretk.fields import (
    Blur as Blur,
)
from scoretk.fields import (
    Cosine as Cosine,
)
from scoretk.fields import (
    Diffusion as Diffusion,
)
from scoretk.fields import (
    Discrete as Discrete,
)
from scoretk.fields import (
    Downsample as Downsample,
)
from scoretk.fields import (
    Energy as Energy,
)
from scoretk.fields import (
    Interpolant as Interpolant,
)
from scoretk.fields import (
    Linear as Linear,
)
from scoretk.fields import (
    LinearGaussian as LinearGaussian,
)
from scoretk.fields import (
    Mask as Mask,
)
from scoretk.fields import (
    Matrix as Matrix,
)
from scoretk.fields import (
    PiGDM as PiGDM,
)
from scoretk.fields import (
    Replacement as Replacement,
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
    bridge as bridge,
)
from scoretk.fields import (
    classifier_guided as classifier_guided,
)
from scoretk.fields import (
    constrained as constrained,
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
    mixture as mixture,
)
from scoretk.fields import (
    ordered as ordered,
)
from scoretk.fields import (
    posterior as posterior,
)
from scoretk.fields import (
    product as product,
)
from scoretk.fields import (
    smoothed as smoothed,
)
from scoretk.fields import (
    tempered as tempered,
)
from scoretk.inference.encoding import (
    Latents as Latents,
)
from scoretk.inference.encoding import (
    encode as encode,
)
from scoretk.inference.encoding import (
    interpolate as interpolate,
)
from scoretk.inference.likelihood import (
    Estimate as Estimate,
)
from scoretk.inference.likelihood import (
    bits_per_dim as bits_per_dim,
)
from scoretk.inference.likelihood import (
    log_prob as log_prob,
)
from scoretk.inference.partition import log_partition as log_partition
from scoretk.inference.sampling import sample as sample
from scoretk.learn import (
    ContrastiveDivergence as ContrastiveDivergence,
)
from scoretk.learn import (
    ReplayBuffer as ReplayBuffer,
)
from scoretk.ode import grids as grids
from scoretk.plugins import (
    Broken as Broken,
)
from scoretk.plugins import (
    ModelSpec as ModelSpec,
)
from scoretk.plugins import (
    SolverSpec as SolverSpec,
)
from scoretk.plugins import (
    describe as describe,
)
from scoretk.plugins import (
    describe_solver as describe_solver,
)
from scoretk.plugins import (
    list_models as list_models,
)
from scoretk.plugins import (
    list_solvers as list_solvers,
)
from scoretk.plugins import (
    load as load,
)
from scoretk.plugins import (
    load_solver as load_solver,
)
from scoretk.plugins import (
    train as train,
)
from scoretk.run.checkpoint import Checkpoint as Checkpoint
from scoretk.run.draws import (
    Cost as Cost,
)
from scoretk.run.draws import (
    Draws as Draws,
)
from scoretk.solvers import (
    AIS as AIS,
)
from scoretk.solvers import (
    GHMC as GHMC,
)
from scoretk.solvers import (
    HMC as HMC,
)
from scoretk.solvers import (
    MALA as MALA,
)
from scoretk.solvers import (
    MCLMC as MCLMC,
)
from scoretk.solvers import (
    NUTS as NUTS,
)
from scoretk.solvers import (
    SMC as SMC,
)
from scoretk.solvers import (
    SOLVERS as SOLVERS,
)
from scoretk.solvers import (
    ULA as ULA,
)
from scoretk.solvers import (
    AdjustedMCLMC as AdjustedMCLMC,
)
from scoretk.solvers import (
    AnnealedLangevin as AnnealedLangevin,
)
from scoretk.solvers import (
    BlockGibbs as BlockGibbs,
)
from scoretk.solvers import (
    ChEES as ChEES,
)
from scoretk.solvers import (
    DiscreteLangevin as DiscreteLangevin,
)
from scoretk.solvers import (
    GibbsWithGradients as GibbsWithGradients,
)
from scoretk.solvers import (
    Ladder as Ladder,
)
from scoretk.solvers import (
    ParallelTempering as ParallelTempering,
)
from scoretk.solvers import (
    PreconditionedLangevin as PreconditionedLangevin,
)
from scoretk.solvers import (
    ProbabilityFlow as ProbabilityFlow,
)
from scoretk.solvers import (
    ReverseSDE as ReverseSDE,
)
from scoretk.solvers import (
    Underdamped as Underdamped,
)
from scoretk.solvers import (
    Warmup as Warmup,
)
from scoretk.solvers import (
    largest_distance as largest_distance,
)
from scoretk.solvers import (
    ncsnv2_ladder as ncsnv2_ladder,
)
from scoretk.solvers import (
    ncsnv2_overlap as ncsnv2_overlap,
)
from scoretk.solvers import (
    ncsnv2_ratio as ncsnv2_ratio,
)
from scoretk.solvers import (
    ncsnv2_step_size as ncsnv2_step_size,
)
from scoretk.solvers import (
    unconditional as unconditional,
)
from scoretk.solvers.barker import Barker as Barker
