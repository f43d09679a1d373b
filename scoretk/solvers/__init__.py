"""The solvers, one a file.

The one table of them is `scoretk.plugins.solvers`, so that they are listed without torch.
"""

from typing import Any

from scoretk.core.keywords import explained_class
from scoretk.plugins.catalog import pointed_at
from scoretk.plugins.solvers import BUILT_IN_SOLVERS
from scoretk.solvers.annealed import (
    AnnealedLangevin,
    largest_distance,
    ncsnv2_ladder,
    ncsnv2_overlap,
    ncsnv2_ratio,
    ncsnv2_step_size,
    unconditional,
)
from scoretk.solvers.base import GridSolver, Info, Solver, State, is_grid
from scoretk.solvers.clusters import SwendsenWang
from scoretk.solvers.daps import DAPS
from scoretk.solvers.discrete import BlockGibbs, DiscreteLangevin, GibbsWithGradients
from scoretk.solvers.examples import EXAMPLES
from scoretk.solvers.hmc import HMC, ChEES
from scoretk.solvers.importance import AIS, SMC, Ladder
from scoretk.solvers.mala import MALA
from scoretk.solvers.mclmc import MCLMC, AdjustedMCLMC
from scoretk.solvers.nuts import NUTS
from scoretk.solvers.preconditioned import PreconditionedLangevin
from scoretk.solvers.probability_flow import ProbabilityFlow
from scoretk.solvers.reverse_sde import ReverseSDE
from scoretk.solvers.split_gibbs import SplitGibbs
from scoretk.solvers.tempering import ParallelTempering
from scoretk.solvers.twisted import TwistedSMC
from scoretk.solvers.ula import ULA
from scoretk.solvers.underdamped import GHMC, Underdamped
from scoretk.solvers.warmup.plan import Warmup

__all__ = [
    "AIS",
    "DAPS",
    "EXAMPLES",
    "GHMC",
    "HMC",
    "MALA",
    "MCLMC",
    "NUTS",
    "SMC",
    "SOLVERS",
    "ULA",
    "AdjustedMCLMC",
    "AnnealedLangevin",
    "BlockGibbs",
    "ChEES",
    "DiscreteLangevin",
    "GibbsWithGradients",
    "GridSolver",
    "Info",
    "Ladder",
    "ParallelTempering",
    "PreconditionedLangevin",
    "ProbabilityFlow",
    "ReverseSDE",
    "Solver",
    "SplitGibbs",
    "State",
    "SwendsenWang",
    "TwistedSMC",
    "Underdamped",
    "Warmup",
    "is_grid",
    "largest_distance",
    "ncsnv2_ladder",
    "ncsnv2_overlap",
    "ncsnv2_ratio",
    "ncsnv2_step_size",
    "unconditional",
]

SOLVERS: dict[str, type[Any]] = {
    name: pointed_at(value) for name, value in BUILT_IN_SOLVERS.items()
}
"""The solvers of this package by name, in the order in which they are shown."""

for _made in (*SOLVERS.values(), Ladder, Warmup):
    explained_class(_made, named=True)
