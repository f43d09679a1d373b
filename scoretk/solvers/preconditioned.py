r"""Preconditioned Langevin, adjusted or not, with a step size and a metric that warmup tunes.

    x' = x - h M grad E(x) + sqrt(2 h) S z,    M = S S^T,

S a diagonal or a Cholesky factor of the target's covariance: Langevin dynamics in coordinates in
which the target has about unit covariance. A step is one leapfrog step of size `eps = sqrt(2 h)`
with momentum z, and Metropolis' log ratio is minus its error of the total energy.

References:
    Roberts, Stramer, "Langevin diffusions and Metropolis-Hastings algorithms" (2002).
    Girolami, Calderhead, "Riemann manifold Langevin and Hamiltonian Monte Carlo methods" (2011).
    Roberts, Rosenthal, "Optimal scaling of discrete approximations to Langevin diffusions" (1998),
    for the acceptance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scoretk.core.rows import across
from scoretk.errors import InvalidArgument
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import StaticField
from scoretk.solvers.base import Info
from scoretk.solvers.hmc import Hamiltonian, HMCState
from scoretk.solvers.warmup.learning import Trial
from scoretk.solvers.warmup.plan import takes_pilot

__all__ = ["PreconditionedLangevin"]


@takes_pilot
@dataclass(frozen=True)
class PreconditionedLangevin(Hamiltonian):
    """Langevin with the target's own scales: MALA, or ULA with adjusted=False.

    Reports what `HMC` does. `draws.tuned["step_size"]` is `eps = sqrt(2 h)`.

    Args:
        step_size: h > 0, in squared units of the scales; None to tune it in warmup.
        metric: "auto", "diagonal", "fisher", "dense" or "none": the scales learned in warmup
            (`warmup.scales`); "auto" is dense where coordinates are strongly correlated, and else
            diagonal.
        accept: The mean acceptance, in (0, 1), that warmup tunes the step size to.
        adjusted: Whether a Metropolis decision makes it exact. Warmup makes the decision in any
            case: the step size of the unadjusted chain is the one at which MALA would accept so
            often.
    """

    step_size: float | None = None
    metric: str = "auto"
    accept: float = 0.574
    adjusted: bool = True

    reports: ClassVar[tuple[str, ...]] = ("accept", "energy", "hamiltonian", "diverging")
    capturable: ClassVar[bool] = True
    as_data: ClassVar[tuple[str, ...]] = ("step_size", "accept")
    step_cost: ClassVar[Mapping[str, int]] = {"energy": 1, "score": 1}
    untuned: ClassVar[frozenset[str]] = frozenset({"length"})

    @property
    def exact(self) -> bool:
        """Whether it leaves its target as it is."""
        return self.adjusted

    def __post_init__(self) -> None:
        self._check()
        if not isinstance(self.adjusted, bool):
            raise InvalidArgument("adjusted", self.adjusted, "True or False")

    @property
    def _eps(self) -> float | None:
        return None if self.step_size is None else math.sqrt(2 * self.step_size)

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> HMCState:
        return self._start(field, x, 0.0)

    def step(
        self, field: StaticField, state: HMCState, noise: NoiseSource
    ) -> tuple[HMCState, Info]:
        new, info, end = self._trajectory(field, state, noise, state.step_size.to(state.x.dtype), 1)
        if self.adjusted:
            return new, info
        return new._replace(**end.point._asdict()), info | {"energy": end.point.energy}

    def trial(
        self, field: StaticField, state: HMCState, noise: NoiseSource, shorter: Tensor
    ) -> Trial:
        """As `Tunable.trial`; with a Metropolis decision whether the solver is adjusted or not."""
        eps = across(state.step_size.to(state.x.dtype) * shorter, state.x)
        new, info, _ = self._trajectory(field, state, noise, eps, 1)
        return Trial(new, info, info["accept"])
