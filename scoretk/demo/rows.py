"""What the demo finds: a row a model and solver, a likelihood a model and method."""

from __future__ import annotations

from dataclasses import dataclass, field

from scoretk.demo.likelihoods import Likelihood
from scoretk.demo.quality import Quality

__all__ = ["Demo", "Row"]


@dataclass(frozen=True)
class Row:
    """One line of the table of samples; `reason` says why there is no run."""

    model: str
    family: str
    solver: str
    setting: str
    quality: Quality = field(default_factory=Quality)
    evaluations: int = 0
    seconds: float = 0.0
    chains: int = 0
    failed: int = 0
    reason: str = ""

    def __str__(self) -> str:
        done = f"-- {self.reason}" if self.reason else f"{self.setting}  {self.seconds:.1f} s"
        return f"{self.model}  {self.solver}  {done}"


@dataclass
class Demo:
    """What the demo found: a row a model and solver, a likelihood a model and method, and the pictures' names."""

    rows: list[Row] = field(default_factory=list)
    likelihoods: list[Likelihood] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
