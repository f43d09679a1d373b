"""The tables of a benchmark as JSON, as text and as one HTML page."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from html import escape
from pathlib import Path
from typing import Any

import torch

from scoretk.core.versions import versions
from scoretk.demo.bench.rows import Cell, Curve, Link, Measured, Row
from scoretk.demo.bench.tables import TABLES

__all__ = ["about", "plain", "shown", "write_report"]

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 100rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .5rem; text-align: right; vertical-align: top; }
th { border-bottom: 2px solid #888; }
th.name, td.name { text-align: left; }
tr.no td { background: #fdf0ec; }
pre { color: #555; white-space: pre-wrap; }
.scroll { overflow-x: auto; }
"""
Rows = Mapping[str, Sequence[Row]]


def about(seed: int, data: Path | None, command: str) -> dict[str, Any]:
    """Where and how a benchmark was run, in plain values.

    Args:
        seed: The seed.
        data: The user's folder of data.
        command: The command line that makes it again.
    """
    return {
        "command": command,
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions(),
        "seed": seed,
        "data": data is not None,
    }


def shown(cell: Cell) -> str:
    """A cell as text."""
    if isinstance(cell, float | int):
        return f"{cell:,.0f}" if math.isfinite(cell) else "-"
    return "" if cell is None else str(cell)


def plain(cell: Cell) -> Any:
    """A cell as a value of JSON, which has no infinity: null."""
    if isinstance(cell, Measured):
        return {name: plain(value) for name, value in asdict(cell).items()}
    if isinstance(cell, Curve):
        return [[plain(number) for number in point] for point in cell.points]
    if isinstance(cell, Link):
        return cell.name
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def write_report(folder: Path, rows: Rows, told: Mapping[str, Any]) -> list[Path]:
    """Write `bench.json` and `index.html` into a folder, which is made where it is not there.

    Args:
        folder: The folder.
        rows: The rows of each table, by its name in `TABLES`.
        told: What `about` says.

    Returns:
        The two files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "about": dict(told),
        "tables": {
            name: [{head: plain(cell) for head, cell in row.items()} for row in made]
            for name, made in rows.items()
        },
    }
    files = folder / "bench.json", folder / "index.html"
    files[0].write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    body = "".join(_section(name, made) for name, made in rows.items())
    lines = "\n".join(f"{key:8} {value}" for key, value in told.items())
    files[1].write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>scoretk bench</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>scoretk and the published tables</h1>"
        f"<pre>{escape(lines)}</pre>{body}</body></html>\n",
        encoding="utf-8",
    )
    return list(files)


def _section(name: str, rows: Sequence[Row]) -> str:
    """A table with its title and legend; rows that are not reached stand out."""
    table = TABLES[name]
    heads = list(rows[0]) if rows else []
    head = "".join(f'<th class="{_kind(rows[0][h])}">{escape(h)}</th>' for h in heads)
    lines = "".join(
        f'<tr class="{escape(str(row.get("reached", "")))}">'
        + "".join(f'<td class="{_kind(row[h])}">{_html(row[h])}</td>' for h in heads)
        + "</tr>\n"
        for row in rows
    )
    return (
        f"<h2>{escape(table.title)}</h2><p>{escape(table.legend)}</p>"
        f'<div class="scroll"><table><tr>{head}</tr>\n{lines}</table></div>'
    )


def _html(cell: Cell) -> str:
    text = escape(shown(cell))
    return f'<a href="{text}">{text}</a>' if isinstance(cell, Link) else text


def _kind(cell: Cell) -> str:
    return "name" if isinstance(cell, str) else ""
