"""A kernel inside another solver.

Noise of its own for each replica and each time that it is started anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from scoretk.errors import InvalidArgument
from scoretk.fields.protocols import NoiseSource
from scoretk.plugins import load_solver
from scoretk.solvers.base import Solver, is_grid, traits

__all__ = ["NestedNoise", "as_kernel", "with_step_size"]


@dataclass(frozen=True)
class NestedNoise:
    """The noise of rows that are replicas of chains, `(chains * replicas,)`, its steps counted from
    `first`.
    """

    noise: NoiseSource
    first: int | Tensor
    replicas: int = 1

    @property
    def chains(self) -> Tensor:
        """The number of each row's chain."""
        return self.noise.chains.repeat_interleave(self.replicas)

    def normal(
        self, step: int | Tensor, stream: int, shape: tuple[int, ...], dtype: object = None
    ) -> Tensor:
        """Standard normals, `(chains * replicas, *shape)`."""
        return self._rows(self.noise.normal, step, stream, shape, dtype)

    def uniform(
        self, step: int | Tensor, stream: int, shape: tuple[int, ...], dtype: object = None
    ) -> Tensor:
        """Uniforms in (0, 1), `(chains * replicas, *shape)`."""
        return self._rows(self.noise.uniform, step, stream, shape, dtype)

    def rademacher(
        self, step: int | Tensor, stream: int, shape: tuple[int, ...], dtype: object = None
    ) -> Tensor:
        """Random signs, `(chains * replicas, *shape)`."""
        return self._rows(self.noise.rademacher, step, stream, shape, dtype)

    def _rows(
        self,
        kind: Callable[..., Tensor],
        step: int | Tensor,
        stream: int,
        shape: tuple[int, ...],
        dtype: object,
    ) -> Tensor:
        # replicas vary fastest, so that element e of one is no element of another, whatever
        # shapes a kernel asks
        values = kind(self.first + step, stream, (*shape, self.replicas), dtype)
        return values.movedim(-1, 1).flatten(0, 1)


def as_kernel(kernel: Any, *, sweeps: bool = False) -> Any:
    """The kernel that runs inside another solver: it must be exact, at temperature 1.

    Args:
        kernel: a solver object, or the name of a registered solver.
        sweeps: whether one that asks the field for its `gibbs` and no energy will do.

    Raises:
        InvalidArgument: where it cannot run there. UnknownName, AmbiguousName, BrokenPlugin: as
        `scoretk.load_solver`.
    """
    kernel = load_solver(kernel) if isinstance(kernel, str) else kernel
    kinds = {"energy", "gibbs"} if sweeps else {"energy"}
    fits = (
        isinstance(kernel, Solver)
        and not isinstance(kernel, type)
        and not is_grid(kernel)
        and bool(kinds & kernel.needs)
    )
    if not fits or not traits(kernel).exact or traits(kernel).temperature != 1:
        raise InvalidArgument(
            "kernel",
            kernel,
            "a kernel with a Metropolis decision, at temperature 1",
            "Such as HMC(step_size=0.3)",
        )
    return kernel


def with_step_size(kernel: Any, step_size: float | None) -> Any:
    """The kernel with this step size; itself where it has none to set."""
    return (
        replace(kernel, step_size=step_size)
        if step_size is not None and hasattr(kernel, "step_size")
        else kernel
    )
