"""One setting of each solver that does well on a target of unit scale.

Tests, the demo and the laws of conformance try the solvers with these settings.

A new solver is its own file, one line in the table of `scoretk.plugins.solvers`, and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from scoretk.solvers.annealed import AnnealedLangevin
from scoretk.solvers.barker import Barker
from scoretk.solvers.clusters import SwendsenWang
from scoretk.solvers.daps import DAPS
from scoretk.solvers.discrete import BlockGibbs, DiscreteLangevin, GibbsWithGradients
from scoretk.solvers.hmc import HMC, ChEES
from scoretk.solvers.importance import AIS, SMC
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

__all__ = ["EXAMPLES"]

EXAMPLES: Mapping[str, Any] = MappingProxyType(
    {
        "ula": ULA(0.2),
        "mala": MALA(0.3),
        "barker": Barker(0.5),
        "preconditioned-langevin": PreconditionedLangevin(0.3, metric="none"),
        "underdamped": Underdamped(0.4),
        "ghmc": GHMC(0.5),
        "hmc": HMC(0.5, leapfrogs=3, metric="none"),
        "chees": ChEES(0.5, length=1.5, metric="none"),
        "nuts": NUTS(0.5, metric="none", max_depth=4),
        "mclmc": MCLMC(0.5, length=1.0, metric="none"),
        "adjusted-mclmc": AdjustedMCLMC(0.5, leapfrogs=3, metric="none"),
        "gibbs-with-gradients": GibbsWithGradients(),
        "discrete-langevin": DiscreteLangevin(1.0),
        "block-gibbs": BlockGibbs(),
        "swendsen-wang": SwendsenWang(),
        "parallel-tempering": ParallelTempering(
            HMC(0.5, leapfrogs=3, metric="none"), temperatures=(1.0, 2.0, 4.0)
        ),
        "ais": AIS(levels=24),
        "smc": SMC(levels=24, island=8),
        "annealed-langevin": AnnealedLangevin(levels=(2.0, 1.0), steps_per_level=12, step_size=0.2),
        "reverse-sde": ReverseSDE(steps=8),
        "twisted-smc": TwistedSMC(steps=8, island=8),
        "split-gibbs": SplitGibbs(sweeps=4, steps=2),
        "daps": DAPS(levels=4, steps=2),
        "probability-flow": ProbabilityFlow(steps=8),
    }
)
"""The solvers by name, with nothing left to tune; `needs` and `timed` say which fields they serve."""
