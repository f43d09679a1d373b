"""The table in print: through rich where it is installed, else as plain columns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from scoretk.demo.main import Row

__all__ = ["HEAD", "cells_of", "print_table"]

HEAD = (
    "model",
    "solver",
    "setting",
    "distance",
    "MMD^2",
    "balance",
    "confidence",
    "copies",
    "log p",
    "evaluations",
    "s",
    "failed",
)

LEGEND = """\
distance: sliced Wasserstein to held-out rows (digits) or to exact draws, over that of two real samples; for eight-schools
  |z|, the largest error of a posterior mean in standard errors. MMD^2: with its noise floor.
balance: entropy of the classes that a classifier sees, over log 10; confidence: its mean top probability, less that on
  real images; copies: share nearer to a training image than 99 % of the held-out ones are.
log p: mean log density of held-out rows in nats, with its standard error (digits: a density over pixels in [-1, 1]).
failed: chains that are flagged and left out."""


def cells_of(row: Row) -> tuple[str, ...]:
    """The texts of one line, in the order of `HEAD`."""
    q = row.quality
    if row.reason:
        return (row.model, row.solver, f"{row.reason}: {row.setting}", *[""] * 5, _pair(row.log_prob), "", "", "")
    distance = f"|z| {q.z:.1f}" if q.z is not None else _number(q.distance, "{:.2f}")
    found = "" if q.mmd is None else f"{q.mmd:.4f} ({q.mmd_floor:.4f})"
    confidence = None if q.confidence is None or q.real_confidence is None else q.confidence - q.real_confidence
    return (
        row.model, row.solver, row.setting, distance, found, _number(q.balance, "{:.3f}"), _number(confidence, "{:+.3f}"),
        _number(q.copied, "{:.3f}"), _pair(row.log_prob), f"{row.evaluations:,}", f"{row.seconds:.1f}",
        f"{row.failed} of {row.chains}" if row.failed else "0",
    )  # fmt: skip


def _gathered(rows: list[Row]) -> list[Row]:
    """The rows, those of one model that are empty for one reason as one line after its others."""
    gathered: list[Row] = []
    for model in dict.fromkeys(row.model for row in rows):
        ours = [row for row in rows if row.model == model]
        gathered += [row for row in ours if not row.reason]
        for reason in dict.fromkeys(row.reason for row in ours if row.reason):
            names = ", ".join(row.solver for row in ours if row.reason == reason)
            gathered.append(Row(model, ours[0].family, "not run", names, reason=reason))
    first = {row.model: row.log_prob for row in reversed(rows) if row.log_prob is not None}
    return [replace(row, log_prob=first.pop(row.model, None)) for row in gathered]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _pair(value: tuple[float, float] | None) -> str:
    return "" if value is None else f"{value[0]:.2f} ± {value[1]:.2f}"


def print_table(rows: list[Row]) -> None:
    """Print the table and what its columns mean."""
    lines = [cells_of(row) for row in _gathered(rows)]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        _print_plain(lines)
    else:
        console: Any = Console()
        console = console if console.is_terminal else Console(width=200)
        table = Table(box=None, pad_edge=False)
        for i, name in enumerate(HEAD):
            table.add_column(name, justify="left" if i < 3 else "right", no_wrap=i != 2)
        last = ""
        for line in lines:
            table.add_row(line[0] if line[0] != last else "", *line[1:])
            last = line[0]
        console.print(table)
    print(f"\n{LEGEND}")
    for accuracy in {row.quality.real_accuracy for row in rows} - {None}:
        print(f"The classifier's accuracy on held-out real digits is {accuracy:.3f}.")


def _print_plain(lines: list[tuple[str, ...]]) -> None:
    widths = [max(len(line[i]) for line in (HEAD, *lines)) for i in range(len(HEAD))]
    for line in (HEAD, *lines):
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
