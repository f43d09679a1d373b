"""The solvers, one a file, and the one table of them. Third-party solvers register in the group `scoretk.solvers`."""

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
from scoretk.solvers.discrete import BlockGibbs, DiscreteLangevin, GibbsWithGradients
from scoretk.solvers.hmc import HMC, ChEES
from scoretk.solvers.importance import AIS, SMC, Ladder
from scoretk.solvers.mala import MALA
from scoretk.solvers.mclmc import MCLMC, AdjustedMCLMC
from scoretk.solvers.nuts import NUTS
from scoretk.solvers.preconditioned import PreconditionedLangevin
from scoretk.solvers.probability_flow import ProbabilityFlow
from scoretk.solvers.reverse_sde import ReverseSDE
from scoretk.solvers.tempering import ParallelTempering
from scoretk.solvers.ula import ULA
from scoretk.solvers.underdamped import GHMC, Underdamped

__all__ = [
    "AIS",
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
    "State",
    "Underdamped",
    "is_grid",
    "largest_distance",
    "ncsnv2_ladder",
    "ncsnv2_overlap",
    "ncsnv2_ratio",
    "ncsnv2_step_size",
    "unconditional",
]

SOLVERS: dict[str, type] = {
    "ula": ULA,
    "mala": MALA,
    "preconditioned-langevin": PreconditionedLangevin,
    "underdamped": Underdamped,
    "ghmc": GHMC,
    "hmc": HMC,
    "chees": ChEES,
    "nuts": NUTS,
    "mclmc": MCLMC,
    "adjusted-mclmc": AdjustedMCLMC,
    "gibbs-with-gradients": GibbsWithGradients,
    "discrete-langevin": DiscreteLangevin,
    "block-gibbs": BlockGibbs,
    "parallel-tempering": ParallelTempering,
    "ais": AIS,
    "smc": SMC,
    "annealed-langevin": AnnealedLangevin,
    "reverse-sde": ReverseSDE,
    "probability-flow": ProbabilityFlow,
}
