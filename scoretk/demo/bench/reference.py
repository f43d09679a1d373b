r"""Reference posteriors: whether the default call finds the law that reference draws are of.

Of every parameter the mean m and the mean square about the reference's mean are compared with those of
reference draws, in standard errors of both sides,

    z = (m - m_ref) / (s_ref sqrt(1 / n + 1 / n_ref)),

s_ref being the reference's standard deviation, and n effective draws by autocorrelation. (By the
standard deviation of the draws themselves a chain that sits far off would hide itself: it makes its
own error.) A run is right where no |z| is larger than chance makes one of so many once in a thousand
times (`SURPRISE`). What the run says of itself is its verdict, `draws.summary()`: one that finds nothing
in a run that is wrong is the worst that can happen.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.demo.bench.evidence import SURPRISE
from scoretk.demo.bench.target import Reference, Target
from scoretk.diagnostics.convergence import ess, mcse
from scoretk.errors import InvalidArgument
from scoretk.inference.sampling import sample
from scoretk.run.draws import Draws

__all__ = ["CHAINS", "Agreement", "Found", "against_reference", "agreement", "numbers_of"]

CHAINS = 64
ROWS = 1 << 14
"""How many draws' parameters are computed at a time."""
CONSTANT = 1e-9
"""The share of the reference's standard deviation that is rounding."""


@dataclass(frozen=True)
class Agreement:
    """How far draws are from reference draws.

    Args:
        z: The largest |z| of a mean, and of which parameter.
        spread: The largest |z| of a mean square, and of which parameter.
        ratio: The ratio of the two standard deviations that is farthest from 1.
        parameters: How many parameters are compared.
    """

    z: tuple[float, str]
    spread: tuple[float, str]
    ratio: float
    parameters: int

    @property
    def most(self) -> float:
        """The |z| that chance exceeds in one of all comparisons once in `1 / SURPRISE` times."""
        tail = torch.tensor(SURPRISE / (4 * self.parameters), dtype=torch.float64)
        return -float(torch.special.ndtri(tail))

    @property
    def right(self) -> bool:
        """Whether means and spreads are those of the reference."""
        return self.z[0] <= self.most and self.spread[0] <= self.most


@dataclass(frozen=True)
class Found:
    """What a run found of a posterior.

    Args:
        agreement: How far it is from the reference.
        gradients: Gradients a chain, those of warmup among them.
        effective: The fewest effective draws of a parameter, all chains together.
        per_draw: Gradients an effective draw, all of the run.
        problems: What the verdict says, empty where it is clean.
        seconds: How long it took.
    """

    agreement: Agreement
    gradients: float
    effective: float
    per_draw: float
    problems: tuple[str, ...]
    seconds: float

    @property
    def cause(self) -> str:
        """Why the row is not reached, empty where it is."""
        told = self.problems[0] if self.problems else ""
        if self.agreement.right:
            return told and f"said not to be trusted: {told}"
        what, (z, name) = max(
            ("mean", self.agreement.z),
            ("spread", self.agreement.spread),
            key=lambda e: _large(e[1][0]),
        )
        off = f"the {what} of {name} is {z:.1f} standard errors off"
        return f"{off}, and said: {told}" if told else f"WRONG WITH A CLEAN VERDICT: {off}"


def _large(z: float) -> float:
    return math.inf if math.isnan(z) else z


def against_reference(target: Target, solver: Any = None, seed: int = 0) -> Found:
    """Sample a posterior by the default call and hold it to its reference draws.

    Args:
        target: The target, with reference draws.
        solver: Another solver than the default.
        seed: The seed.

    Raises:
        InvalidArgument: There are no reference draws.
    """
    reference = target.reference
    if reference is None:
        raise InvalidArgument("target", target.name, "a target with reference draws")
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong is in the verdict
        draws = sample(target.field, solver, CHAINS, seed=seed, progress=False)
        verdict = draws.summary()
    names = list(reference.draws)
    mine = _side_by_side(numbers_of(draws, reference), names)
    theirs = _side_by_side(reference.draws, names)
    gradients = draws.cost.get("score", 0)
    effective = float(ess(mine).min())
    return Found(
        agreement(mine, theirs, names),
        gradients / CHAINS,
        effective,
        gradients / effective,
        tuple(finding.problem for finding in verdict.findings),
        time.perf_counter() - started,
    )


def agreement(mine: Tensor, theirs: Tensor, names: Sequence[str]) -> Agreement:
    """How far draws are from reference draws.

    Args:
        mine: The draws, `(chains, draws, k)`.
        theirs: Reference draws, as many numbers, `(chains, draws, k)`.
        names: The names of the numbers.
    """
    centre = theirs.mean((0, 1))
    means = _z(mine, theirs)
    squares = _z((mine - centre).square(), (theirs - centre).square())
    log_ratio = mine.flatten(0, 1).std(0).log() - theirs.flatten(0, 1).std(0).log()
    farthest = log_ratio.abs().nan_to_num(nan=math.inf).argmax()
    ratio = float(log_ratio[farthest].exp())
    return Agreement(_worst(means, names), _worst(squares, names), ratio, len(names))


def numbers_of(draws: Draws, reference: Reference) -> dict[str, Tensor]:
    """What is compared, by the names of reference draws, `(chains, draws)` each."""
    assert draws.layout is not None  # targets with reference draws have named variables
    given = {name: draws[name].double() for name in draws.layout.shapes}
    chains, kept = next(iter(given.values())).shape[:2]
    flat = {name: value.flatten(0, 1) for name, value in given.items()}
    parts = [
        reference.numbers({name: value[i : i + ROWS] for name, value in flat.items()})
        for i in range(0, chains * kept, ROWS)
    ]
    return {
        name: torch.cat([part[name] for part in parts]).reshape(chains, kept) for name in parts[0]
    }


def _side_by_side(values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.stack([values[name] for name in names], -1)


def _z(mine: Tensor, theirs: Tensor) -> Tensor:
    """The differences of means in the standard errors of draws of the reference's law; 0 of equal ones."""
    off = mine.mean((0, 1)) - theirs.mean((0, 1))
    own, known = (x.flatten(0, 1).std(0) for x in (mine, theirs))
    # mcse / own is the root of one over the effective draws; where nothing ever moves, no error
    # excuses a difference
    share = torch.where(own > CONSTANT * known, mcse(mine) / own, 0.0)
    error = ((known * share).square() + mcse(theirs).square()).sqrt()
    return torch.where(off == 0, 0.0, off / error)


def _worst(z: Tensor, names: Sequence[str]) -> tuple[float, str]:
    place = int(z.abs().nan_to_num(nan=math.inf).argmax())
    return float(z[place].abs()), names[place]
