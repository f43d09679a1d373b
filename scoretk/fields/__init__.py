"""What a model is: protocols, wrappers, Gaussian paths, conversions and combinations of fields."""

from scoretk.core.keywords import explained_class
from scoretk.fields.adapters import from_reversed_time, from_sigmas, from_timesteps
from scoretk.fields.base import Base, EmpiricalBase, NormalBase, as_base, standard_normal
from scoretk.fields.bridge import Bridge, Stretched, bridge
from scoretk.fields.combine import classifier_guided, guided, mixture, product, tempered
from scoretk.fields.constrained import Constrained, constrained, ordered
from scoretk.fields.convert import PREDICTIONS, coefficients, convert
from scoretk.fields.couplings import Couplings
from scoretk.fields.discrete import Discrete, DiscreteField
from scoretk.fields.distribution import DistributionField, from_distribution
from scoretk.fields.layout import Variable
from scoretk.fields.operators import Blur, Downsample, LinearGaussian, Mask, Matrix
from scoretk.fields.paths import (
    EDM,
    VE,
    VP,
    Cosine,
    GaussianPath,
    Interpolant,
    Linear,
    PathPoint,
    SubVP,
    Tabulated,
)
from scoretk.fields.posterior import DPS, MMPS, TMPD, DiffPIR, PiGDM, Replacement, posterior
from scoretk.fields.protocols import (
    CAPABILITIES,
    Drawable,
    Field,
    HasEnergy,
    HasLogProb,
    HasScore,
    NoiseSource,
    Timed,
    is_timed,
    offers,
)
from scoretk.fields.recompute import Recomputed, recomputed
from scoretk.fields.resolve import StaticField, TimedField, resolve
from scoretk.fields.smoothed import Denoised, Smoothed, smoothed
from scoretk.fields.wrappers import Diffusion, Energy, GaussianPathField, Score, Velocity

__all__ = [
    "CAPABILITIES",
    "DPS",
    "EDM",
    "MMPS",
    "PREDICTIONS",
    "TMPD",
    "VE",
    "VP",
    "Base",
    "Blur",
    "Bridge",
    "Constrained",
    "Cosine",
    "Couplings",
    "Denoised",
    "DiffPIR",
    "Diffusion",
    "Discrete",
    "DiscreteField",
    "DistributionField",
    "Downsample",
    "Drawable",
    "EmpiricalBase",
    "Energy",
    "Field",
    "GaussianPath",
    "GaussianPathField",
    "HasEnergy",
    "HasLogProb",
    "HasScore",
    "Interpolant",
    "Linear",
    "LinearGaussian",
    "Mask",
    "Matrix",
    "NoiseSource",
    "NormalBase",
    "PathPoint",
    "PiGDM",
    "Recomputed",
    "Replacement",
    "Score",
    "Smoothed",
    "StaticField",
    "Stretched",
    "SubVP",
    "Tabulated",
    "Timed",
    "TimedField",
    "Variable",
    "Velocity",
    "as_base",
    "bridge",
    "classifier_guided",
    "coefficients",
    "constrained",
    "convert",
    "from_distribution",
    "from_reversed_time",
    "from_sigmas",
    "from_timesteps",
    "guided",
    "is_timed",
    "mixture",
    "offers",
    "ordered",
    "posterior",
    "product",
    "recomputed",
    "resolve",
    "smoothed",
    "standard_normal",
    "tempered",
]

for _made in (
    *(Energy, Score, Velocity, Diffusion, Discrete, Couplings, Variable),
    *(EDM, VE, VP, SubVP, Cosine, Interpolant, Linear, Tabulated),
    *(Blur, Downsample, LinearGaussian, Mask, Matrix),
    *(DPS, MMPS, TMPD, DiffPIR, PiGDM, Replacement),
):
    explained_class(_made)
