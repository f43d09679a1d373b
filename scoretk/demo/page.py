"""The demo as one HTML page: the tables, and pictures in files beside it."""

from __future__ import annotations

from html import escape
from pathlib import Path

from scoretk.demo.rows import Demo
from scoretk.demo.table import Table, merged, tables

__all__ = ["write_page"]

LONG = 60

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .6rem; text-align: right; vertical-align: top; white-space: nowrap; }
th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid #888; }
th.name, td.name { text-align: left; }
td.wide { white-space: normal; max-width: 34rem; }
tr.first td { border-top: 1px solid #ccc; }
pre { color: #555; white-space: pre-wrap; font: inherit; }
figure { margin: 0 0 2rem; }
img { max-width: 100%; height: auto; }
"""


def write_page(path: Path, demo: Demo) -> None:
    """Write the page of a demo to a path, in the folder of its pictures."""
    figures = "".join(
        f'<figure id="{escape(name)}"><figcaption>{escape(name.removesuffix(".png"))}</figcaption>'
        f'<img src="{escape(name)}" alt="{escape(name)}" loading="lazy"></figure>'
        for name in demo.pictures
    )
    body = "".join(map(_table, tables(demo)))
    path.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>scoretk demo</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>Generative families and samplers on handwritten "
        f"digits</h1>"
        f"{body}<h2>Pictures</h2>{figures}</body></html>\n",
        encoding="utf-8",
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
        f"<h2>{escape(table.title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
        f"<pre>{escape(table.legend)}</pre>"
    )


def _cell(tag: str, text: str, name: bool) -> str:
    kinds = " ".join(kind for kind, holds in (("name", name), ("wide", len(text) > LONG)) if holds)
    return f'<{tag} class="{kinds}">{escape(text)}</{tag}>'
