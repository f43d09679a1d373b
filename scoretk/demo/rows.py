"""What the demo finds: rows by model and solver, likelihoods by model and method."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from scoretk.demo.likelihoods import Likelihood
from scoretk.demo.quality import Quality

__all__ = ["Demo", "Done", "Row"]


@dataclass(frozen=True)
class Row:
    """One line of the table of samples.

    Args:
        model: The name of the model.
        family: Its family.
        solver: The name of the solver.
        setting: Its setting, as text.
        quality: The quality of the samples.
        evaluations: How often the model was evaluated.
        seconds: How long it took.
        chains: How many chains there were.
        failed: How many of them failed.
        reason: Why there is no run, empty where there is one.
        different: How many different draws there are, None where that says nothing.
    """

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
    different: int | None = None

    @property
    def shown(self) -> str:
        """The setting, and how many draws are different where many are equal."""
        n = self.chains - self.failed
        if self.different is None or self.different > n / 2:
            return self.setting
        return f"{self.setting} [{self.different} different draws, shown as {n}]".lstrip()


@dataclass(frozen=True)
class Done:
    """A model that is done, as one line.

    Args:
        model: Its name.
        runs: How many runs there are.
        empty: How many solvers do not serve it.
        failed: How many chains of all have failed.
        seconds: How long the runs took.
        nearest: The run whose samples are nearest to the data, None where none is judged.
    """

    model: str
    runs: int
    empty: int
    failed: int
    seconds: float
    nearest: Row | None

    @classmethod
    def of(cls, rows: list[Row]) -> Done:
        """Of the rows of one model, of which there is one at least."""
        runs = [row for row in rows if not row.reason]
        judged = [row for row in runs if row.quality.distance is not None and row.solver != "draw"]
        return cls(
            rows[0].model,
            len(runs),
            len(rows) - len(runs),
            sum(row.failed for row in runs),
            sum(row.seconds for row in runs),
            min(judged, key=lambda row: row.quality.distance or 0.0, default=None),
        )

    def __str__(self) -> str:
        best = self.nearest
        near = "" if best is None else f"  nearest: {best.solver} {best.quality.distance:.2f}"
        failed = f"  {self.failed} chains failed" if self.failed else ""
        return f"{self.model:<22}{self.runs:>3} runs{self.seconds:>7.1f} s{near}{failed}"


@dataclass
class Demo:
    """What the demo found: rows, likelihoods, and the file names of the pictures."""

    rows: list[Row] = field(default_factory=list)
    likelihoods: list[Likelihood] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """All of it as plain values for JSON.

        A number that is not finite, such as a distance that overflows, is None.
        """
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
