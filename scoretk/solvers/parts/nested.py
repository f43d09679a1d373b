"""A kernel inside something else: which kernels can run there, and the noise that they get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scoretk.core.noise import DerivedNoise
from scoretk.errors import InvalidArgument
from scoretk.fields.protocols import NoiseSource
from scoretk.plugins import as_solver, load_solver
from scoretk.solvers.base import Solver, check_settled, has_step_size, is_grid, traits

__all__ = ["NestedNoise", "as_kernel", "settled_kernel", "with_step_size"]


@dataclass(frozen=True)
class NestedNoise(DerivedNoise):
    """Noise for several replicas of each chain, as rows `(chains * replicas,)`.

    Args:
        noise: The noise of the chains.
        first: The step of `noise` that step 0 of the kernel reads, so that a kernel that is started
            anew gets new noise.
        replicas: How many rows a chain has.
    """

    noise: NoiseSource
    first: int | Tensor
    replicas: int = 1

    @property
    def chains(self) -> Tensor:
        """The id of each row's chain, `(chains * replicas,)`."""
        return self.noise.chains.repeat_interleave(self.replicas)

    def _ask(
        self, method: str, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None
    ) -> Tensor:
        """Values `(chains * replicas, *shape)`."""
        # replicas vary fastest: no two share an element, whatever shapes a kernel asks for
        kind = getattr(self.noise, method)
        values: Tensor = kind(self.first + step, stream, (*shape, self.replicas), dtype)
        return values.movedim(-1, 1).flatten(0, 1)


def as_kernel(kernel: Any, *, sweeps: bool = False) -> Any:
    """The kernel that runs inside another solver: it must be exact, at temperature 1.

    Args:
        kernel: A solver object, or the name of a registered solver.
        sweeps: Whether a kernel is accepted that needs the field's `gibbs` and no energy.

    Raises:
        InvalidArgument: Where it cannot run there.
        UnknownName: As `scoretk.load_solver`; likewise AmbiguousName and BrokenPlugin.
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


def settled_kernel(argument: str, value: Any) -> Any:
    """The kernel that an argument means, to be run for ever where there is no warmup.

    Args:
        argument: The argument's name, for errors.
        value: A solver object, or the name of a registered solver.

    Raises:
        InvalidArgument: It is no solver, carries its own grid, or has anything left to tune.
        UnknownName: As `scoretk.load_solver`; likewise AmbiguousName and BrokenPlugin.
    """
    kernel = as_solver(argument, value)
    if is_grid(kernel):
        raise InvalidArgument(
            argument, kernel, "a kernel that can run for ever, such as ULA or MALA"
        )
    check_settled(argument, kernel)
    return kernel


def with_step_size(kernel: Any, step_size: float | None) -> Any:
    """The kernel with this step size; unchanged where that is None or the kernel has none."""
    if step_size is None or not has_step_size(kernel):
        return kernel
    return replace(kernel, step_size=step_size)
