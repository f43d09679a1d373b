"""`scoretk list` and `scoretk describe`: what is registered, and what it says of itself."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from scoretk.cli.output import print_json, print_rows, say
from scoretk.errors import InvalidArgument, ScoretkError, UnknownName
from scoretk.plugins import (
    Broken,
    Entry,
    ModelSpec,
    describe,
    describe_all,
    describe_solver,
    find_model,
    find_solver,
    list_models,
    list_solvers,
    verify,
    verify_solvers,
)

__all__ = ["describe_one", "kind_of", "list_all"]

OWN = "scoretk"
_FINDERS = {"model": find_model, "solver": find_solver}


def list_all(options: argparse.Namespace) -> bool:
    """Print what is registered.

    Other packages' plugins are named from their metadata alone, unless `--verify` or `--family`
    asks for what they say.

    Returns:
        Whether nothing that was verified is broken.
    """
    if options.matrix:
        return _matrix(options)
    if options.model or options.solver:
        raise _without_matrix(options)
    models = verify() if options.verify else list_models()
    solvers = verify_solvers() if options.verify else list_solvers()
    if options.family:
        names = _of_family(describe_all(), options.family)
        models, solvers = [entry for entry in models if entry.id in names], []
    broken = [e for e in (*models, *solvers) if isinstance(e, Broken)]
    if options.json:
        named = {"models": models, "solvers": solvers}
        print_json(
            {
                kind: [
                    dataclasses.asdict(e) | {"broken": isinstance(e, Broken)} for e in named[kind]
                ]
                for kind in options.kinds or named
            }
        )
    else:
        asked = bool(options.verify or options.family)
        # plugins are asked before anything is printed: meanwhile standard output is not ours
        told: dict[str, Sequence[Sequence[str]]] = {
            "models": [_model_row(e, asked) for e in models],
            "solvers": [_solver_row(e, asked) for e in solvers],
        }
        kinds = options.kinds or (["models"] if options.family else [*told])
        for place, kind in enumerate(kinds):
            say(f"\n{kind}" if place else kind)
            print_rows(told[kind])
    return not (broken and options.verify)


def _of_family(specs: Mapping[str, Any], family: str) -> dict[str, ModelSpec]:
    """The specs of a family.

    Raises:
        UnknownName: There is none.
    """
    sound = {name: spec for name, spec in specs.items() if isinstance(spec, ModelSpec)}
    families = {spec.family for spec in sound.values()}
    if family not in families:
        raise UnknownName("family", family, families)
    return {name: spec for name, spec in sound.items() if spec.family == family}


def _shown(entry: Entry) -> str:
    return entry.name if entry.distribution == OWN else entry.id


def _state(entry: Entry | Broken) -> str:
    if isinstance(entry, Broken):
        return f"BROKEN at {entry.stage}: {' | '.join(entry.error.splitlines())}"
    return entry.needs


def _elsewhere(entry: Entry) -> str:
    return f"{entry.distribution} {entry.version}"


def _model_row(entry: Entry | Broken, asked: bool) -> tuple[str, str, str]:
    if isinstance(entry, Broken) or entry.needs:
        return (entry.id, "", _state(entry))
    if not asked and entry.distribution != OWN:
        return (_shown(entry), "", _elsewhere(entry))
    spec = describe(entry.id)
    return (_shown(entry), spec.family, spec.summary)


def _solver_row(entry: Entry | Broken, asked: bool) -> tuple[str, str]:
    if isinstance(entry, Broken) or entry.needs:
        return (entry.id, _state(entry))
    if asked:
        return (_shown(entry), describe_solver(entry.id).summary)
    return (
        _shown(entry),
        _own_summary(entry.value) if entry.distribution == OWN else _elsewhere(entry),
    )


def _own_summary(value: str) -> str:
    """The first line on a class of this package, "module:class", whose import would take torch's."""
    module, _, name = value.partition(":")
    *folders, file = module.split(".")[1:]
    source = files(OWN).joinpath(*folders, f"{file}.py").read_text(encoding="utf-8")
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    told = next((ast.get_docstring(node) for node in classes if node.name == name), None)
    return (told or "").partition("\n")[0]


def _without_matrix(options: argparse.Namespace) -> InvalidArgument:
    """The error for what chooses from the matrix, without the matrix."""
    asked = {"--model": options.model, "--solver": options.solver}
    given = {option: names for option, names in asked.items() if names}
    typed = shlex.join([word for pair in given.items() for word in pair])
    return InvalidArgument(
        " and ".join(given),
        ", ".join(given.values()),
        "--matrix beside " + ("it" if len(given) == 1 else "them"),
        f"scoretk list --matrix {typed}",
    )


def _matrix(options: argparse.Namespace) -> bool:
    from scoretk.solvers.matrix import matrix, matrix_text, solver_names

    found = {name.removeprefix(f"{OWN}/"): spec for name, spec in describe_all().items()}
    specs = {name: spec for name, spec in found.items() if isinstance(spec, ModelSpec)}
    if options.family:
        specs = _of_family(specs, options.family)
    specs = _chosen("model", specs, options.model)
    solvers = _chosen("solver", dict.fromkeys(solver_names(), None), options.solver)
    if options.json:
        table = matrix(specs, solvers)
        print_json(
            {s: {m: dataclasses.asdict(u) for m, u in row.items()} for s, row in table.items()}
        )
    else:
        say(matrix_text(specs, solvers))
    for error in (spec for spec in found.values() if isinstance(spec, ScoretkError)):
        say(error, file=sys.stderr)
    return True


def _chosen(kind: str, known: Mapping[str, Any], names: str | None) -> dict[str, Any]:
    """Those of the names in a list with commas, full ids or short names; all where there is no list.

    Raises:
        UnknownName: One is not known.
        AmbiguousName: Plugins of several packages have this short name.
    """
    if names is None:
        return dict(known)
    chosen = [name if name in known else _shown(_FINDERS[kind](name)) for name in names.split(",")]
    for name in chosen:
        if name not in known:
            hint = f"scoretk describe {name} says what it is"
            raise UnknownName(f"{kind} of the matrix", name, known, hint)
    return {name: known[name] for name in chosen}


def describe_one(options: argparse.Namespace) -> None:
    """Print what a plugin says of its model or solver."""
    kind = kind_of(options)
    spec = (describe(options.name) if kind == "model" else describe_solver(options.name)).as_dict()
    if options.json:
        print_json(spec)
        return
    for key, value in spec.items():
        shown = (
            ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
        )
        listed = isinstance(shown, list) and key != "event_shape"
        say(f"{key:12} {(', '.join(shown) or 'none') if listed else shown}")


def kind_of(options: argparse.Namespace) -> str:
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
