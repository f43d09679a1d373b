"""The demo as one HTML page: the tables, and pictures in files beside it."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from scoretk.demo.rows import Demo, Row
from scoretk.demo.table import Table, merged, tables

__all__ = ["write_page"]

LONG = 30
DISTANCES, ERRORS = (1.0, 8.0), (3.0, 30.0)
"""Of the lightest and of the darkest cells of the map, in floors and in standard errors."""
DARK = 0.5
"""How far along from one to the other a cell has light letters."""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; }
th, td { padding: .1rem .3rem; text-align: right; vertical-align: top; white-space: nowrap; }
th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid #888; }
th.name, td.name { text-align: left; }
td.wide { white-space: normal; min-width: 11rem; max-width: 22rem; }
tr.first td { border-top: 1px solid #ccc; }
.scroll { overflow-x: auto; }
.map td { min-width: 2rem; padding: .1rem 0; text-align: center; border: 1px solid #fff; }
.map td.name { border: 0; padding-right: .6rem; text-align: left; }
.map th { vertical-align: bottom; text-align: center; padding: .2rem 0; }
.map th span { writing-mode: vertical-rl; transform: rotate(180deg); }
.map .none { background: #f2f2f2; }
.sheets { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(36rem, 100%), 1fr)); gap: 1rem; }
pre { color: #555; white-space: pre-wrap; font: inherit; }
figure { margin: 0; }
img { max-width: 100%; height: auto; }
"""
MAP_LEGEND = (
    "Sliced Wasserstein distance to held-out rows, over that of two real samples: 1.0 is as good as "
    "real. Of several settings the nearest. Grey: no run, for the reason that the cell shows when "
    "pointed at; z: of posteriors, the largest error of a mean in standard errors; an exclamation "
    "mark: chains that failed and are left out."
)


def write_page(path: Path, demo: Demo) -> None:
    """Write the page of a demo to a path, in the folder of its pictures."""
    figures = "".join(
        f'<figure id="{escape(name)}"><figcaption>{escape(name.removesuffix(".png"))}</figcaption>'
        f'<a href="{escape(name)}"><img src="{escape(name)}" alt="{escape(name)}" loading="lazy"></a>'
        f"</figure>"
        for name in demo.pictures
    )
    body = "".join(map(_table, tables(demo)))
    path.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>scoretk demo</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>Generative families and samplers on handwritten "
        f'digits</h1>{_map(demo)}<h2>Pictures</h2><div class="sheets">{figures}</div>{body}'
        f"</body></html>\n",
        encoding="utf-8",
    )


def _map(demo: Demo) -> str:
    """Every model by every solver, coloured by how far the samples are from real ones."""
    solvers = sorted(dict.fromkeys(row.solver for row in demo.rows), key=lambda n: n != "draw")
    family = {row.model: row.family for row in demo.rows}
    models = sorted(family, key=lambda model: (family[model], model))
    head = "".join(f"<th><span>{escape(name)}</span></th>" for name in solvers)
    lines, last = "", ""
    for model in models:
        ours = [row for row in demo.rows if row.model == model]
        cells = "".join(_tile([row for row in ours if row.solver == name]) for name in solvers)
        first, last = family[model] != last, family[model]
        lines += (
            f'<tr class="{"first" if first else ""}">'
            f"{_cell('td', family[model] if first else '', True)}{_cell('td', model, True)}"
            f"{cells}</tr>\n"
        )
    return (
        f'<div class="scroll"><table class="map"><thead><tr><th></th><th></th>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div><pre>{escape(MAP_LEGEND)}</pre>"
    )


def _tile(rows: list[Row]) -> str:
    """The cell of a model and a solver."""
    told = "; ".join(row.reason or row.shown or row.solver for row in rows)
    distances = [row for row in rows if row.quality.distance is not None]
    errors = [row for row in rows if row.quality.z is not None]
    if distances:
        best = min(distances, key=lambda row: row.quality.distance or 0.0)
        value, (light, dark), mark = best.quality.distance or 0.0, DISTANCES, ""
    elif errors:
        best = min(errors, key=lambda row: row.quality.z or 0.0)
        value, (light, dark), mark = best.quality.z or 0.0, ERRORS, "z "
    else:
        return f'<td class="none" title="{escape(told, quote=True)}"></td>'
    share = math.log(min(max(value, light), dark) / light) / math.log(dark / light)
    colour = f"hsl(215 55% {95 - 55 * share:.0f}%); color: {'#fff' if share > DARK else '#222'}"
    shown = f"{value:.1f}" if value < 10 else f"{value:.0f}" if value < 100 else "&gt;99"
    return (
        f'<td style="background: {colour}" title="{escape(told, quote=True)}">'
        f"{mark}{shown}{'!' if best.failed else ''}</td>"
    )


def _table(table: Table) -> str:
    names = {*range(table.left), *(i for i, name in enumerate(table.head) if name == "note")}
    head = "".join(_cell("th", name, i in names) for i, name in enumerate(table.head))
    lines = "".join(
        f'<tr class="{"first" if line[1] else ""}">'
        + "".join(_cell("td", text, i in names) for i, text in enumerate(line))
        + "</tr>\n"
        for line in merged(table)
    )
    return (
        f'<h2>{escape(table.title)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div><pre>{escape(table.legend)}</pre>"
    )


def _cell(tag: str, text: str, name: bool) -> str:
    kinds = " ".join(kind for kind, holds in (("name", name), ("wide", len(text) > LONG)) if holds)
    return f'<{tag} class="{kinds}">{escape(text)}</{tag}>'
