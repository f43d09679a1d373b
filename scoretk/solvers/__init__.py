"""The solvers, one a file, and the one table of them. Third-party solvers register in the group `scoretk.solvers`."""

from scoretk.solvers.annealed import AnnealedLangevin, ncsnv2_step_size
from scoretk.solvers.base import GridSolver, Info, Solver, State, is_grid
from scoretk.solvers.hmc import HMC, ChEES
from scoretk.solvers.importance import AIS, SMC, Ladder
from scoretk.solvers.mala import MALA
from scoretk.solvers.probability_flow import ProbabilityFlow
from scoretk.solvers.ula import ULA
from scoretk.solvers.underdamped import GHMC, Underdamped

__all__ = [
    "AIS",
    "GHMC",
    "HMC",
    "MALA",
    "SMC",
    "SOLVERS",
    "ULA",
    "AnnealedLangevin",
    "ChEES",
    "GridSolver",
    "Info",
    "Ladder",
    "ProbabilityFlow",
    "Solver",
    "State",
    "Underdamped",
    "is_grid",
    "ncsnv2_step_size",
]

SOLVERS: dict[str, type] = {
    "ula": ULA,
    "mala": MALA,
    "underdamped": Underdamped,
    "ghmc": GHMC,
    "hmc": HMC,
    "chees": ChEES,
    "ais": AIS,
    "smc": SMC,
    "annealed-langevin": AnnealedLangevin,
    "probability-flow": ProbabilityFlow,
}
