"""The tables as lines of text, and in print: by rich where it is installed, else as plain columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scoretk.demo.rows import Demo, Row

__all__ = ["Table", "merged", "print_tables", "tables"]

WIDTH = 200


@dataclass(frozen=True)
class Table:
    """A table as text.

    Args:
        title: Its title.
        head: The names of the columns.
        lines: The texts of each line.
        legend: What the columns mean.
        left: How many columns, the first ones, are names.
    """

    title: str
    head: tuple[str, ...]
    lines: list[tuple[str, ...]]
    legend: str
    left: int


SAMPLES = (
    "family",
    "model",
    "solver",
    "setting",
    "distance",
    "MMD^2",
    "balance",
    "confidence",
    "copies",
    "evaluations",
    "s",
    "failed",
)
SAMPLES_LEGEND = """\
distance: sliced Wasserstein to held-out rows (digits) or to exact draws, over that of two real samples; for posteriors |z|,
  the largest error of a posterior mean in standard errors. MMD^2: with its noise floor.
balance: entropy of the classes that a classifier sees, over log 10; confidence: its mean top probability, less that on
  real images; copies: share nearer to a training image than 99 % of the held-out ones are.
failed: chains that are flagged and left out.
[k different draws, shown as n]: resampled from a handful, each many times over: its measures are those of k draws."""

LIKELIHOODS = ("family", "model", "method", "value", "± rows", "± method", "unit", "note")
LIKELIHOODS_LEGEND = """\
bits/dim: of the 17 grey levels, least is best, a uniform guess is 4.09; bits/pixel: of binary images, a uniform guess is 1;
nats: mean log density of exact draws. ± rows: standard error over the held-out rows, which methods on one model share;
± method: what the method itself adds, by which two methods may differ."""


def tables(demo: Demo) -> tuple[Table, Table]:
    """The tables of likelihoods and of samples, both ordered by family and model."""
    family = {row.model: row.family for row in demo.rows}
    likelihoods: list[tuple[str, ...]] = [
        (
            family[v.model],
            v.model,
            v.method,
            _number(v.value, ".3f"),
            _number(v.rows_error, ".3f"),
            _number(v.own_error, ".3f"),
            v.unit,
            v.note,
        )
        for v in demo.likelihoods
    ]
    samples = [_cells(row) for row in _gathered(demo.rows)]
    return (
        Table(
            "Likelihood of held-out data", LIKELIHOODS, _ordered(likelihoods), LIKELIHOODS_LEGEND, 3
        ),
        Table("Samples", SAMPLES, _ordered(samples), SAMPLES_LEGEND, 4),
    )


def _ordered(lines: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return sorted(lines, key=lambda line: line[:2])


def _cells(row: Row) -> tuple[str, ...]:
    """The texts of one line, in the order of `SAMPLES`."""
    q, names = row.quality, (row.family, row.model, row.solver)
    if row.reason:
        return (
            *names,
            f"{row.reason}: {row.setting}" if row.setting else row.reason,
            *[""] * (len(SAMPLES) - 4),
        )
    distance = f"|z| {q.z:.1f}" if q.z is not None else _number(q.distance, ".2f")
    found = "" if q.mmd is None else f"{q.mmd:.4f} ({q.mmd_floor:.4f})"
    if q.confidence is None or q.real_confidence is None:
        confidence = None
    else:
        confidence = q.confidence - q.real_confidence
    return (
        *names,
        row.shown,
        distance,
        found,
        _number(q.balance, ".3f"),
        _number(confidence, "+.3f"),
        _number(q.copied, ".3f"),
        f"{row.evaluations:,}",
        f"{row.seconds:.1f}",
        f"{row.failed} of {row.chains}" if row.failed else "0",
    )


def _gathered(rows: list[Row]) -> list[Row]:
    """The rows, with one row for all solvers that do not serve a model for the same reason."""
    gathered: list[Row] = []
    for model in dict.fromkeys(row.model for row in rows):
        ours = [row for row in rows if row.model == model]
        gathered += [row for row in ours if not row.reason]
        for reason in dict.fromkeys(row.reason for row in ours if row.reason):
            names = ", ".join(row.solver for row in ours if row.reason == reason)
            gathered.append(Row(model, ours[0].family, "not run", names, reason=reason))
    return gathered


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def merged(table: Table) -> list[tuple[str, ...]]:
    """The lines, with family and model only in the first of several lines."""
    last: tuple[str, ...] = ("", "")
    lines = []
    for line in table.lines:
        lines.append(
            tuple("" if line[: i + 1] == last[: i + 1] else line[i] for i in range(2)) + line[2:]
        )
        last = line[:2]
    return lines


def print_tables(demo: Demo) -> None:
    """Print both tables and what their columns mean."""
    for table in tables(demo):
        print(f"\n{table.title}\n")
        _print(table)
        print(f"\n{table.legend}")
    for accuracy in {row.quality.real_accuracy for row in demo.rows} - {None}:
        print(f"The classifier's accuracy on held-out real digits is {accuracy:.3f}.")


def _print(table: Table) -> None:
    lines = merged(table)
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        widths = [
            max(len(line[i]) for line in (table.head, *lines)) for i in range(len(table.head))
        ]
        for line in (table.head, *lines):
            print(
                "  ".join(
                    text.ljust(width) for text, width in zip(line, widths, strict=True)
                ).rstrip()
            )
        return
    console: Any = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    shown = RichTable(box=None, pad_edge=False)
    for i, name in enumerate(table.head):
        words = i == table.left - 1 or name == "note"
        shown.add_column(
            name, justify="left" if i < table.left or name == "note" else "right", no_wrap=not words
        )
    for line in lines:
        shown.add_row(*line)
    console.print(shown)
