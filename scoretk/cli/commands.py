"""`scoretk check`, `sample`, `fit` and `demo`: what runs, and imports what it needs when it runs."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from scoretk.cli.listing import kind_of
from scoretk.cli.output import FitLine, print_json, print_rows, say, say_progress
from scoretk.core.dependencies import required
from scoretk.errors import InvalidArgument, MissingDependency
from scoretk.plugins import describe, find_model, load, load_solver, train

__all__ = ["check", "demo", "fit", "sample"]

ENOUGH_TO_JUDGE, JUDGED = 20, 8
"""The least draws of a chain for a verdict, and the most coordinates that it looks at."""


def check(options: argparse.Namespace) -> bool:
    """Hold a model or a solver to its laws, and print a line a law.

    Returns:
        Whether none is broken.
    """
    results = _checked_model(options) if kind_of(options) == "model" else _checked_solver(options)
    count = {s: sum(r.status == s for r in results) for s in ("passed", "failed", "skipped")}
    if options.json:
        print_json([dataclasses.asdict(r) for r in results])
    else:
        rows = [(r.status, r.check, r.detail or r.law.partition("\n")[0]) for r in results]
        print_rows(rows, indent="")
        told = ", ".join(f"{n} {status}" for status, n in count.items())
        say(f"{options.name}: {told}" + " (skipped laws do not apply)" * bool(count["skipped"]))
    return not count["failed"]


def _checked_model(options: argparse.Namespace) -> list[Any]:
    describe(options.name)  # an unknown name fails before heavy imports
    parameters = _assignments("--param", options.param)
    if options.set:
        raise InvalidArgument(
            "--set", options.set, f"nothing: {options.name} is a model, and these are for solvers"
        )
    configuration = required("hypothesis.configuration", "check", "scoretk check")
    configuration.set_hypothesis_home_dir(
        os.devnull
    )  # else it leaves a folder in the working directory
    from scoretk.conformance import check_model

    return check_model(load(options.name, **parameters) if parameters else options.name)


def _checked_solver(options: argparse.Namespace) -> list[Any]:
    settings = _assignments("--set", options.set)
    if options.param:
        raise InvalidArgument(
            "--param",
            options.param,
            f"nothing: {options.name} is a solver, and these are for models",
        )
    solver = load_solver(options.name, **settings) if settings else options.name
    from scoretk.conformance import check_solver

    return check_solver(solver)


def sample(options: argparse.Namespace) -> bool:
    """Draw from a model, write the draws and print what was done.

    Returns:
        Whether any chain is well.
    """
    from scoretk.run.draws import FORMATS, check_output

    if options.output:  # only the first format holds moments
        check_output(
            options.output, options.force, FORMATS[:1] if options.keep == "moments" else FORMATS
        )
    parameters = _assignments("--param", options.param)
    describe(options.name)
    settings = _assignments("--set", options.set)
    if settings and options.solver is None:
        raise InvalidArgument("--set", options.set, "the solver that it is for, by --solver")
    solver = None if options.solver is None else load_solver(options.solver, **settings)

    import torch

    from scoretk.core.modules import to_device
    from scoretk.core.ranks import Ranks
    from scoretk.inference.asked import packages_of
    from scoretk.inference.sampling import sample as draw
    from scoretk.run.ranks import distributed
    from scoretk.run.store import Zarr

    names = (
        "chains",
        "steps",
        "warmup",
        "thin",
        "batch",
        "seed",
        "compile",
        "checkpoint",
        "on_failure",
    )
    started = "TORCHELASTIC_RUN_ID" in os.environ  # by torchrun, several processes
    with distributed() if started else contextlib.nullcontext(Ranks()) as ranks:
        device = options.device or (str(ranks.device) if ranks.world_size > 1 else None)
        field = load(options.name, **parameters) if parameters else options.name
        if parameters and device:
            to_device(field, device)
        draws = draw(
            field,
            solver,
            dtype=getattr(torch, options.dtype) if options.dtype else None,
            device=device,
            keep=Zarr(options.keep) if _streams(options.keep) else options.keep,
            **{name: getattr(options, name) for name in names},
        )
        if ranks.rank > 0:
            return True
    if parameters:  # the field was made here: what it is of is known all the same
        given = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
        draws.provenance["model"] = f"{find_model(options.name).id}({given})"
    if packages := packages_of(options.name, options.solver):
        draws.provenance["packages"] = packages
    written = str(draws.save(options.output, options.force)) if options.output else None
    _report(options, draws, written)
    if not bool(draws.ok.any()):
        say("scoretk: every chain failed", file=sys.stderr)
        return False
    return True


def fit(options: argparse.Namespace) -> None:
    """Train a model and write its weights."""
    describe(options.name)
    from scoretk.core.arrayfiles import read_array
    from scoretk.run.draws import check_output
    from scoretk.run.group import joined

    output = check_output(
        options.output or f"{options.name.rpartition('/')[2]}.safetensors",
        options.force,
        (".safetensors",),
    )
    settings = _assignments("--set", options.set)
    data = None if options.data is None else read_array(options.data, options.array)
    chosen = {"checkpoint": options.checkpoint, **settings}
    with joined() as (ranks, _), contextlib.closing(FitLine()) as line:  # by torchrun, of several
        trained = train(options.name, data, seed=options.seed, report=line, **chosen)
        if ranks.rank > 0:
            return
    try:
        trained.save(output)
    except OSError as error:  # of a plugin's own
        raise InvalidArgument(
            "output", str(output), "a place that can be written", str(error)
        ) from error
    if options.json:
        print_json(
            {
                "model": options.name,
                "output": str(output),
                "seed": options.seed,
                "settings": settings,
            }
        )
    else:
        say(f"written  {output}")
        say(f"load it  scoretk.load({options.name!r}, weights={str(output)!r})")


def _inverse(options: argparse.Namespace) -> None:
    from scoretk.demo.inverse import PRIORS, print_restored, run_inverse

    started = time.perf_counter()
    names = PRIORS if options.models is None else options.models.split(",")
    report = None if options.json else say_progress
    rows = run_inverse(options.output, models=names, seed=options.seed, report=report)
    if options.json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    print_restored(rows)
    say(
        f"\ndemo done: {len({r.problem for r in rows})} inverse problems, "
        f"{sum(bool(r.model) for r in rows)} runs, {time.perf_counter() - started:.0f} s; pictures "
        f"and inverse.json in {options.output}/"
    )


def demo(options: argparse.Namespace) -> None:
    """Run every built-in model through every solver, or inverse problems."""
    if options.inverse:
        _inverse(options)
        return
    from scoretk.demo.main import run_demo
    from scoretk.demo.table import print_tables

    started = time.perf_counter()
    names = None if options.models is None else options.models.split(",")
    report = None if options.json else say_progress
    found = run_demo(
        options.output, models=names, seed=options.seed, workers=options.workers, report=report
    )
    if options.json:
        print_json(found.plain())
        return
    print_tables(found)
    runs, none = sum(not r.reason for r in found.rows), sum(bool(r.reason) for r in found.rows)
    counted = f"{len({r.model for r in found.rows})} models, {runs} runs, {none} cells without one"
    say(
        f"\ndemo done: {counted}, {time.perf_counter() - started:.0f} s; tables and pictures in "
        f"{options.output}/index.html"
    )


def _report(options: argparse.Namespace, draws: Any, written: str | None) -> None:
    shape = list((draws.x if draws.kept else draws.final).shape)
    averages = {name: _average(value) for name, value in draws.stats.items()}
    known = {name: value if math.isfinite(value) else None for name, value in averages.items()}
    tuned = {name: float(value) for name, value in draws.tuned.items() if value.numel() == 1}
    written = written or (options.keep if _streams(options.keep) else None)
    summary = {
        "shape": shape,
        "tuned": tuned,
        "failed": draws.failures,
        "stats": known,
        "cost": dict(draws.cost),
        "output": written,
        "provenance": draws.provenance,
    }
    if options.json:
        print_json(summary)
        return
    say(f"draws    {' x '.join(map(str, shape))} (chains x kept x event)")
    say(
        "chains   " + (", ".join(f"{n} {name}" for name, n in draws.failures.items()) or "all well")
    )
    for name, value in averages.items():
        say(f"{name:8} {value:.4g}")
    if tuned:
        say("tuned    " + ", ".join(f"{name} {value:.4g}" for name, value in tuned.items()))
    say("cost     " + ", ".join(f"{n:,} {kind}" for kind, n in draws.cost.items()))
    if draws.kept >= ENOUGH_TO_JUDGE:
        with contextlib.suppress(MissingDependency):
            say(f"verdict  {draws.summary(most=JUDGED).verdict}")
    if written:
        say(f"written  {written}")


def _average(value: Any) -> float:
    """The mean of a statistic where it is no NaN; of one in a store, a piece at a time."""
    from scoretk.run.stored import Lazy

    total, n = 0.0, 0
    for _, piece in value.pieces() if isinstance(value, Lazy) else [(None, value)]:
        numbers = piece.cpu().double()
        total, n = total + float(numbers.nansum()), n + int((~numbers.isnan()).sum())
    return total / n if n else math.nan


def _streams(keep: str | None) -> bool:
    """Whether what is to be kept goes to a store."""
    return keep is not None and keep.endswith(".zarr")


def _assignments(flag: str, pairs: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` pairs; values are Python literals where they read as such, else strings."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidArgument(flag, pair, "NAME=VALUE")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return values
