"""`scoretk bench`: the published tables, printed row by row and written as JSON and one page."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from scoretk.cli.output import print_json, say
from scoretk.errors import InvalidArgument, UnknownName

__all__ = ["bench"]

HIDDEN = ("seconds",)


def bench(options: argparse.Namespace) -> None:
    """Make the rows that are asked for; what is not reached is said in the row, and is no failure.

    Raises:
        UnknownName: No table, target or solver has this name.
        InvalidArgument: The folder of data is none, that of the output cannot be made, or the seed is
            none.
    """
    from scoretk.core.arguments import count, integer, positive
    from scoretk.demo.bench.page import about, plain, write_report
    from scoretk.demo.bench.rows import Asked
    from scoretk.demo.bench.tables import TABLES

    for name in options.tables:
        if name not in TABLES:
            raise UnknownName("table", name, set(TABLES))
    data = None if options.data is None else Path(options.data)
    if data is not None and not data.is_dir():
        raise InvalidArgument("--data", options.data, "a folder that is there")
    integer("--seed", options.seed, below=2**64)
    _check_training(options)
    if options.minutes is not None:
        positive("--minutes", options.minutes)
    if options.steps is not None:
        count("--steps", options.steps, least=1)
    _check_device(options)
    output = None if options.output is None else _folder(options.output)
    asked = Asked(
        not options.full,
        data,
        _names(options.target),
        _names(options.solver),
        options.seed,
        tuple(options.tables),
        _names(options.families),
        options.minutes,
        options.steps,
        output,
        options.device,
    )
    started = time.perf_counter()
    made: dict[str, list[Any]] = {}
    for name in options.tables or TABLES:
        if not options.json:
            say(TABLES[name].title)
        made[name] = []
        for row in TABLES[name].rows(asked):
            made[name].append(row)
            say(_line(row), file=sys.stderr if options.json else None)
    if not any(made.values()):
        expected = f"of targets and solvers that are in {', '.join(made)}"
        raise InvalidArgument("--target, --solver", (options.target, options.solver), expected)
    told = about(options.seed, data, _command(options))
    written = [] if output is None else write_report(output, made, told)
    if options.json:
        tables = {
            n: [{h: plain(c) for h, c in row.items()} for row in rs] for n, rs in made.items()
        }
        print_json({"about": told, "tables": tables})
        return
    for path in written:
        say(f"written  {path}")
    rows = [row for table in made.values() for row in table]
    reached = sum(row.get("reached") == "yes" for row in rows)
    seconds = time.perf_counter() - started
    say(f"bench done: {len(rows)} rows, {reached} reached, {seconds:.0f} s")


def _check_training(options: argparse.Namespace) -> None:
    """Refuse options of the table "mnist" that would do nothing.

    Raises:
        InvalidArgument: Without that table, or where its small recipes are made.
    """
    for flag in ("families", "minutes", "steps"):
        given = getattr(options, flag)
        if given is not None and "mnist" not in options.tables:
            raise InvalidArgument(f"--{flag}", given, "the table by name: scoretk bench mnist")
        if given is not None and flag != "families" and not options.full:
            raise InvalidArgument(
                f"--{flag}", given, "--full beside it: small recipes take seconds"
            )


def _check_device(options: argparse.Namespace) -> None:
    """Refuse a device that is not there, and one for tables that are made on the CPU.

    Raises:
        InvalidArgument: In either case.
    """
    from scoretk.core.arguments import device
    from scoretk.demo.bench.tables import TABLES

    if device("--device", options.device).type == "cpu":
        return
    able = [name for name, table in TABLES.items() if table.anywhere]
    if not options.tables or not set(options.tables) <= set(able):
        expected = f"cpu, or only tables that are made on any device, by name: {', '.join(able)}"
        raise InvalidArgument("--device", options.device, expected)


def _folder(output: str) -> Path:
    """The folder for the report, made before rows are, which take hours."""
    path = Path(output)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(
            "--output", output, "a folder that can be made", str(error)
        ) from error
    return path


def _names(listed: str | None) -> tuple[str, ...]:
    return () if listed is None else tuple(listed.split(","))


def _line(row: Any) -> str:
    from scoretk.demo.bench.page import shown

    cells = ((head, shown(cell)) for head, cell in row.items() if head not in HIDDEN)
    return "  " + "; ".join(f"{head} {text}" for head, text in cells if text)


def _command(options: argparse.Namespace) -> str:
    """The command line that makes these rows again."""
    words = ["scoretk", "bench", *options.tables, "--full" if options.full else "--quick"]
    for flag in ("target", "solver", "families", "minutes", "steps", "data"):
        value = getattr(options, flag)
        words += [] if value is None else [f"--{flag}", "FOLDER" if flag == "data" else str(value)]
    words += [] if options.device == "cpu" else ["--device", options.device]
    return shlex.join([*words, "--seed", str(options.seed)])
