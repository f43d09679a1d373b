"""The command line: `scoretk list | describe | check | sample | fit | demo`.

Exit codes: 0 done, 1 a run that failed, 2 wrong use, 130 interrupted. A command imports what it
needs when it runs, so that listing needs no torch.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from scoretk.errors import (
    AmbiguousName,
    InvalidArgument,
    MissingCapability,
    MissingDependency,
    OutputExists,
    ScoretkError,
    UnknownName,
    printable,
)
from scoretk.plugins import (
    Broken,
    Entry,
    describe,
    describe_all,
    describe_solver,
    find_model,
    find_solver,
    list_models,
    list_solvers,
    load,
    load_solver,
    train,
    verify,
    verify_solvers,
)

__all__ = ["main"]

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130
_MISUSE = (InvalidArgument, UnknownName, AmbiguousName, MissingCapability, OutputExists)

ENOUGH_TO_JUDGE, JUDGED = 20, 8
"""The least draws of a chain for a verdict, and the most coordinates that it looks at."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words of the command line; None for those of the process.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except _MISUSE as error:
        return _complain(error, WRONG_USE)
    except ScoretkError as error:
        return _complain(error, FAILED)
    except KeyboardInterrupt as error:
        _say("interrupted", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
        return INTERRUPTED


def _complain(error: BaseException, code: int) -> int:
    _say(f"scoretk: {error}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scoretk", description="One sampler and score toolkit for every model family."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    listing = commands.add_parser(
        "list", help="the registered models and solvers, from metadata alone"
    )
    listing.add_argument(
        "--verify", action="store_true", help="import each of them as well, and build the models"
    )
    listing.add_argument(
        "--matrix",
        action="store_true",
        help="which solver serves which of them, and why not the others",
    )
    listing.set_defaults(run=_list)

    one = commands.add_parser("describe", help="what a plugin says about its model or solver")
    one.add_argument("name")
    _add_kind(one)
    one.set_defaults(run=_describe)

    check = commands.add_parser(
        "check", help="hold a model to the laws of a field, or a solver to those of solvers"
    )
    check.add_argument("name")
    check.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="a setting of the solver"
    )
    _add_kind(check)
    check.set_defaults(run=_check)

    sample = commands.add_parser("sample", help="draw from a model and write the draws")
    sample.add_argument("name")
    sample.add_argument(
        "--solver",
        metavar="NAME",
        help="such as nuts, mala, probability-flow; by default one that tunes itself",
    )
    sample.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the solver"
    )
    sample.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the model",
    )
    for name in ("chains", "steps", "warmup", "thin", "batch"):
        sample.add_argument(f"--{name}", type=int)
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--keep", choices=("all", "last", "moments"))
    sample.add_argument("--device")
    sample.add_argument("--dtype", choices=("float32", "float64"))
    sample.add_argument("--compile", action="store_true", help="compile the step")
    sample.add_argument(
        "--checkpoint", metavar="FILE", help="save the run here, and go on from here"
    )
    sample.add_argument("--on-failure", choices=("flag", "raise"), default="flag")
    sample.add_argument(
        "-o", "--output", metavar="FILE", help="x.nc or x.zarr (ArviZ), x.safetensors or x.npy"
    )
    sample.add_argument("--force", action="store_true", help="overwrite the output file")
    sample.set_defaults(run=_sample)

    fit = commands.add_parser(
        "fit", help="train a model, on its own data or on yours, and write the weights"
    )
    fit.add_argument("name")
    fit.add_argument(
        "--data",
        metavar="FILE",
        help="x.npy, x.npz or x.csv: rows (n, *event_shape); else its own data",
    )
    fit.add_argument("--array", metavar="NAME", help="which array of an x.npz")
    fit.add_argument(
        "--set", action="append", default=[], metavar="SETTING=VALUE", help="such as steps=2000"
    )
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument(
        "--checkpoint", metavar="FILE", help="save the training here, and go on from here"
    )
    fit.add_argument(
        "-o", "--output", metavar="FILE", help="the weights; by default NAME.safetensors"
    )
    fit.add_argument("--force", action="store_true", help="overwrite the output file")
    fit.set_defaults(run=_fit)

    demo = commands.add_parser(
        "demo", help="every built-in model through every solver: tables, pictures and a page"
    )
    demo.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        default="demo",
        help="for the page, the pictures and table.json",
    )
    demo.add_argument("--models", metavar="NAME,...", help="these only")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes (%(default)s)"
    )
    demo.add_argument(
        "--inverse",
        action="store_true",
        help="inverse problems instead: images restored by posteriors",
    )
    demo.set_defaults(run=_demo)

    for command in (listing, one, check, sample, fit, demo):
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _say(*lines: object, sep: str = " ", file: Any = None) -> None:
    """Print to a stream of any encoding.

    Characters that would control a terminal, from whatever plugin or file, are escaped.
    """
    stream = sys.stdout if file is None else file
    text = sep.join(printable(line, keep="\n\t") for line in lines)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def _print_json(value: Any) -> None:
    _say(json.dumps(value, indent=2))


def _list(options: argparse.Namespace) -> int:
    if options.matrix:
        return _matrix(options)
    found = verify() if options.verify else list_models()
    solvers = verify_solvers() if options.verify else list_solvers()
    broken = [e for e in (*found, *solvers) if isinstance(e, Broken)]
    if options.json:
        named = {"models": found, "solvers": solvers}
        _print_json(
            {
                kind: [dataclasses.asdict(e) | {"broken": isinstance(e, Broken)} for e in entries]
                for kind, entries in named.items()
            }
        )
    else:
        _say_entries(found, options.verify)
        _say("\nsolvers")
        _say_entries(solvers, options.verify)
    return FAILED if broken and options.verify else DONE


def _say_entries(entries: Sequence[Entry | Broken], verified: bool) -> None:
    width = max((len(e.id) for e in entries), default=0)
    for entry in entries:
        if isinstance(entry, Broken):
            state = f"BROKEN at {entry.stage}: {' | '.join(entry.error.splitlines())}"
        else:
            state = entry.needs or "ok" * verified
        _say(f"{entry.id:{width}}  {entry.version:10}  {state}".rstrip())


def _matrix(options: argparse.Namespace) -> int:
    from scoretk.solvers.matrix import matrix, matrix_text

    found = {name.removeprefix("scoretk/"): spec for name, spec in describe_all().items()}
    specs = {name: spec for name, spec in found.items() if not isinstance(spec, ScoretkError)}
    if options.json:
        table = matrix(specs)
        _print_json(
            {s: {m: dataclasses.asdict(u) for m, u in row.items()} for s, row in table.items()}
        )
    else:
        _say(matrix_text(specs))
    for error in (spec for spec in found.values() if isinstance(spec, ScoretkError)):
        _say(error, file=sys.stderr)
    return DONE


def _describe(options: argparse.Namespace) -> int:
    kind = _kind(options)
    spec = (describe(options.name) if kind == "model" else describe_solver(options.name)).as_dict()
    if options.json:
        _print_json(spec)
    else:
        for key, value in spec.items():
            shown = (
                ", ".join(f"{k}={v}" for k, v in value.items())
                if isinstance(value, dict)
                else value
            )
            listed = isinstance(shown, list) and key != "event_shape"
            _say(f"{key:12} {(', '.join(shown) or 'none') if listed else shown}")
    return DONE


def _add_kind(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--kind", choices=tuple(_FINDERS), help="where a model and a solver have the same name"
    )


_FINDERS = {"model": find_model, "solver": find_solver}


def _kind(options: argparse.Namespace) -> str:
    """Whether the name is that of a model or of a solver; `--kind` decides where it is of both."""
    if options.kind:
        _FINDERS[options.kind](options.name)
        return str(options.kind)
    unknown: list[str] = []
    found = []
    for kind, find in _FINDERS.items():
        try:
            find(options.name)
        except UnknownName as error:
            unknown += error.known
        else:
            found.append(kind)
    if len(found) > 1:
        raise InvalidArgument(
            "--kind", None, "model or solver", f"{options.name!r} is the name of one of each"
        )
    if not found:
        raise UnknownName("model or solver", options.name, unknown)
    return found[0]


def _check(options: argparse.Namespace) -> int:
    results = _checked_model(options) if _kind(options) == "model" else _checked_solver(options)
    failed = [r for r in results if r.status == "failed"]
    if options.json:
        _print_json([dataclasses.asdict(r) for r in results])
    else:
        for r in results:
            _say(f"{r.status:8} {r.check}" + (f": {r.detail}" if r.detail else ""))
        held, silent = (sum(r.status == s for r in results) for s in ("passed", "skipped"))
        _say(f"{options.name}: {held} laws hold, {len(failed)} fail, {silent} do not apply")
    return FAILED if failed else DONE


def _checked_model(options: argparse.Namespace) -> list[Any]:
    describe(options.name)  # an unknown name fails before heavy imports
    if options.set:
        raise InvalidArgument(
            "--set", options.set, f"nothing: {options.name} is a model, and these are for solvers"
        )
    try:
        from hypothesis.configuration import set_hypothesis_home_dir
    except ImportError as error:
        raise MissingDependency("hypothesis", "check", "scoretk check") from error
    set_hypothesis_home_dir(os.devnull)  # else it leaves a folder in the working directory
    from scoretk.conformance import check_model

    return check_model(options.name)


def _checked_solver(options: argparse.Namespace) -> list[Any]:
    settings = _assignments("--set", options.set)
    solver = load_solver(options.name, **settings) if settings else options.name
    from scoretk.conformance import check_solver

    return check_solver(solver)


def _sample(options: argparse.Namespace) -> int:
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

    from scoretk.core.anatomy import to_device
    from scoretk.inference.sampling import sample

    field = load(options.name, **parameters) if parameters else options.name
    if parameters and options.device:
        to_device(field, options.device)
    names = (
        "chains",
        "steps",
        "warmup",
        "thin",
        "batch",
        "seed",
        "keep",
        "device",
        "compile",
        "checkpoint",
        "on_failure",
    )
    draws = sample(
        field,
        solver,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        **{name: getattr(options, name) for name in names},
    )
    written = str(draws.save(options.output, options.force)) if options.output else None
    _report(options, draws, written)
    if not bool(draws.ok.any()):
        _say("scoretk: every chain failed", file=sys.stderr)
        return FAILED
    return DONE


def _fit(options: argparse.Namespace) -> int:
    describe(options.name)
    from scoretk.core.arrayfiles import read_array
    from scoretk.learn.processes import joined, rank
    from scoretk.run.draws import check_output

    output = check_output(
        options.output or f"{options.name.rpartition('/')[2]}.safetensors",
        options.force,
        (".safetensors",),
    )
    settings = _assignments("--set", options.set)
    data = None if options.data is None else read_array(options.data, options.array)
    chosen = {"checkpoint": options.checkpoint, **settings}
    with joined():  # where torchrun started several processes
        trained = train(options.name, data, seed=options.seed, report=_show_progress, **chosen)
        if rank() > 0:
            return DONE
    try:
        trained.save(output)
    except OSError as error:  # of a plugin's own
        raise InvalidArgument(
            "output", str(output), "a place that can be written", str(error)
        ) from error
    if options.json:
        _print_json(
            {
                "model": options.name,
                "output": str(output),
                "seed": options.seed,
                "settings": settings,
            }
        )
    else:
        _say(f"written  {output}")
        _say(f"load it  scoretk.load({options.name!r}, weights={str(output)!r})")
    return DONE


def _inverse(options: argparse.Namespace) -> int:
    from scoretk.demo.inverse import PRIORS, print_restored, run_inverse

    started = time.perf_counter()
    names = PRIORS if options.models is None else options.models.split(",")
    report = None if options.json else _show_progress
    rows = run_inverse(options.output, models=names, seed=options.seed, report=report)
    if options.json:
        _print_json([dataclasses.asdict(row) for row in rows])
        return DONE
    print_restored(rows)
    _say(
        f"\ndemo done: {len({r.problem for r in rows})} inverse problems, "
        f"{sum(bool(r.model) for r in rows)} runs, {time.perf_counter() - started:.0f} s; pictures "
        f"and inverse.json in {options.output}/"
    )
    return DONE


def _demo(options: argparse.Namespace) -> int:
    if options.inverse:
        return _inverse(options)
    from scoretk.demo import print_tables, run_demo

    started = time.perf_counter()
    names = None if options.models is None else options.models.split(",")
    report = None if options.json else _show_progress
    demo = run_demo(
        options.output, models=names, seed=options.seed, workers=options.workers, report=report
    )
    if options.json:
        _print_json(demo.plain())
        return DONE
    print_tables(demo)
    runs, none = sum(not r.reason for r in demo.rows), sum(bool(r.reason) for r in demo.rows)
    counted = f"{len({r.model for r in demo.rows})} models, {runs} runs, {none} cells without one"
    _say(
        f"\ndemo done: {counted}, {time.perf_counter() - started:.0f} s; tables and pictures in "
        f"{options.output}/index.html"
    )
    return DONE


def _show_progress(progress: Any) -> None:
    _say(progress, file=sys.stderr)


def _report(options: argparse.Namespace, draws: Any, written: str | None) -> None:
    shape = list((draws.x if draws.x is not None else draws.final).shape)
    averages = {name: float(value.cpu().double().nanmean()) for name, value in draws.stats.items()}
    tuned = {name: float(value) for name, value in draws.tuned.items() if value.numel() == 1}
    summary = {
        "shape": shape,
        "tuned": tuned,
        "failed": draws.failures,
        "stats": averages,
        "cost": dict(draws.cost),
        "output": written,
        "provenance": draws.provenance,
    }
    if options.json:
        _print_json(summary)
        return
    _say(f"draws    {' x '.join(map(str, shape))} (chains x kept x event)")
    _say(
        "chains   " + (", ".join(f"{n} {name}" for name, n in draws.failures.items()) or "all well")
    )
    for name, value in averages.items():
        _say(f"{name:8} {value:.4g}")
    if tuned:
        _say("tuned    " + ", ".join(f"{name} {value:.4g}" for name, value in tuned.items()))
    _say("cost     " + ", ".join(f"{n:,} {kind}" for kind, n in draws.cost.items()))
    if draws.x is not None and draws.x.shape[1] >= ENOUGH_TO_JUDGE:
        with contextlib.suppress(MissingDependency):
            _say(f"verdict  {draws.summary(most=JUDGED).verdict}")
    if written:
        _say(f"written  {written}")


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


if __name__ == "__main__":
    sys.exit(main())
