"""What tables are made of: cells, rows, and what is asked of them.

A row is a mapping from heads to cells, in the order in which they are shown: a text, a number, a
`Measured` number, a `Curve`, a `Link`, or None for what is not there. What a row does not reach stands in its
column "cause".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Asked", "Cell", "Curve", "Link", "Measured", "Row", "Table"]

MOST_SHOWN = 6
"""About how many points of a curve are shown; JSON has them all."""


@dataclass(frozen=True)
class Measured:
    """A number and its standard error; the number is infinite where it was not reached."""

    value: float
    stderr: float

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "not reached"
        if not math.isfinite(self.stderr):
            return f"{self.value:,.0f} ± ?"
        small = 0 < self.stderr < 1
        digits = 1 - math.floor(math.log10(self.stderr)) if small else 0
        return f"{self.value:,.{digits}f} ± {self.stderr:,.{digits}f}"


@dataclass(frozen=True)
class Curve:
    """How a number fell in training.

    Args:
        points: (steps, number, seconds) of each look, in order.
    """

    points: tuple[tuple[int, float, float], ...]

    def __str__(self) -> str:
        chosen = self.points[:: max(1, len(self.points) // MOST_SHOWN)]
        chosen += () if chosen[-1:] == self.points[-1:] else self.points[-1:]
        return ", ".join(f"{step:,}: {number:.2f}" for step, number, _ in chosen)


@dataclass(frozen=True)
class Link:
    """A file in the folder of the report.

    Args:
        name: Its name.
    """

    name: str

    def __str__(self) -> str:
        return self.name


Cell = str | float | Measured | Curve | Link | None
Row = Mapping[str, Cell]


@dataclass(frozen=True)
class Asked:
    """What is asked of tables.

    Args:
        quick: Only the rows that are made in a minute.
        data: The user's folder of data, None where there is none.
        targets: Names of targets, empty for all.
        solvers: Names of solvers, empty for the table's own.
        seed: The seed.
        named: The tables that were asked for by name: what these lack of data is an error.
        families: Names of families of models, empty for all.
        minutes: The time for the training of a family, None for its recipe's steps.
        steps: The steps of the training of a family, None for `minutes`.
        folder: Where the report is written, which pictures may be put into; None where none is.
        device: Where chains and networks are, for the tables that are made on any (`Table.anywhere`).
    """

    quick: bool = True
    data: Path | None = None
    targets: tuple[str, ...] = ()
    solvers: tuple[str, ...] = ()
    seed: int = 0
    named: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    minutes: float | None = None
    steps: int | None = None
    folder: Path | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        title: Its title.
        legend: What its columns mean.
        rows: Makes the rows that are asked for, one after another.
        anywhere: Whether they are made on `Asked.device`; others are made on the CPU.
    """

    title: str
    legend: str
    rows: Callable[[Asked], Iterator[Row]]
    anywhere: bool = False
