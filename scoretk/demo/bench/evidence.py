r"""Evidence: log Z where it is known, by `log_partition` as it comes, over several seeds.

With the error z_s of seed s in its own standard errors, `sum_s z_s^2` is chi-squared where estimates are
normal about the truth with the errors that they say. Both a bias and standard errors that are too small
make it large. Where log Z is a number of the literature's, its own error is in the standard errors of z.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from scoretk.core.noise import derive
from scoretk.demo.bench.target import Target
from scoretk.errors import InvalidArgument, Status
from scoretk.inference.partition import log_partition

__all__ = ["SURPRISE", "Evidence", "evidence_of"]

SURPRISE = 1e-3
"""How rarely a right method may have so large a sum of squares."""


@dataclass(frozen=True)
class Evidence:
    """What a method found of a target's log Z.

    Args:
        value: The estimates, one a seed.
        stderr: Their standard errors.
        z: Their errors in these.
        trusted: How many of them are trusted (`Status.OK`).
        evaluations: Of energies or of gradients, whichever are more, all chains of the first seed.
        seconds: How long a seed took.
    """

    value: tuple[float, ...]
    stderr: tuple[float, ...]
    z: tuple[float, ...]
    trusted: int
    evaluations: int
    seconds: float

    @property
    def mean_square(self) -> float:
        """The mean of z^2 over seeds, near 1 where errors are what they are said to be."""
        return sum(z**2 for z in self.z) / len(self.z)

    @property
    def chance(self) -> float:
        """How likely a sum of squares as large as this is, where errors are what they are said to be."""
        half = torch.tensor([len(self.z) / 2, self.mean_square * len(self.z) / 2])
        return float(torch.special.gammaincc(*half.double()))


def evidence_of(
    target: Target,
    method: str,
    seeds: int,
    seed: int = 0,
    *,
    base: Any = None,
    device: str | None = None,
) -> Evidence:
    """Find a target's log Z by `log_partition` as it comes.

    Args:
        target: The target, with `log_z`.
        method: As in `log_partition`.
        seeds: How many times.
        seed: From which the seeds are derived.
        base: As in `log_partition`.
        device: As in `log_partition`.

    Raises:
        InvalidArgument: The target's log Z is not known.
    """
    if target.log_z is None:
        raise InvalidArgument("target", target.name, "a target whose log Z is known")
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is not to be trusted is counted
        found = [
            log_partition(
                target.field,
                base,
                method=method,
                seed=derive(seed, s),
                device=device,
                progress=False,
            )
            for s in range(seeds)
        ]
    value, stderr = (tuple(float(getattr(f, name)) for f in found) for name in ("value", "stderr"))
    return Evidence(
        value,
        stderr,
        tuple(
            (v - target.log_z) / math.hypot(e, target.log_z_error)
            for v, e in zip(value, stderr, strict=True)
        ),
        sum(int(f.status) == Status.OK for f in found),
        max(found[0].cost.get(kind, 0) for kind in ("energy", "score")),
        (time.perf_counter() - started) / seeds,
    )
