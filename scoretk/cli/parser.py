"""The words of the command line, and what completes them in a shell."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any, NoReturn

from scoretk._version import __version__
from scoretk.cli.benchmarks import bench
from scoretk.cli.commands import check, demo, fit, sample
from scoretk.cli.listing import describe_one, list_all
from scoretk.errors import near_match
from scoretk.plugins import Entry, list_models, list_solvers
from scoretk.plugins.targets import list_targets

__all__ = ["make_parser"]


def _names(*lists: Any) -> Any:
    """A completer: the names of models or of solvers, short where they are this package's."""

    def complete(**_: Any) -> list[str]:
        entries = [entry for listed in lists for entry in listed()]
        return [
            entry.name if entry.distribution == "scoretk" else entry.id
            for entry in entries
            if isinstance(entry, Entry)
        ]

    return complete


MODELS = _names(list_models)
SOLVERS = _names(list_solvers)
EITHER = _names(list_models, list_solvers)
TARGETS = _names(list_targets)


class Words(argparse.ArgumentParser):
    """A parser that names the nearest of the words it knows, and the usage of the command asked."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; what a command does not know is told with this command's usage."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            asked = getattr(options, "command", None) or self
            asked.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options

    def error(self, message: str) -> NoReturn:
        """As argparse's, with the nearest of the choices."""
        found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        near = near_match(found[1], re.findall(r"[\w-]+", found[2])) if found else ""
        super().error(message + near)


def _add(command: argparse.ArgumentParser, *names: str, by: Any = None, **options: Any) -> None:
    """Add an argument, with what completes it."""
    command.add_argument(*names, **options).completer = by  # type: ignore[attr-defined]


def make_parser() -> argparse.ArgumentParser:
    """The parser of `scoretk`, whose options have the command as `run`, None where there is none."""
    parser = Words(
        prog="scoretk", description="One sampler and score toolkit for every model family."
    )
    parser.add_argument("--version", action="version", version=f"scoretk {__version__}")
    parser.set_defaults(run=None, command=None)
    commands = parser.add_subparsers(metavar="command")

    listing = commands.add_parser("list", help="the registered models and solvers")
    listing.add_argument(
        "--verify",
        action="store_true",
        help="import other packages' plugins as well, and build all models",
    )
    listing.add_argument(
        "--matrix",
        action="store_true",
        help="which solver serves which of them, and why not the others",
    )
    listing.add_argument("--family", metavar="NAME", help="models of this family only")
    listing.add_argument(
        "--models", action="append_const", const="models", dest="kinds", help="the models only"
    )
    listing.add_argument(
        "--solvers", action="append_const", const="solvers", dest="kinds", help="the solvers only"
    )
    _add(listing, "--model", by=MODELS, metavar="NAME,...", help="of the matrix, these lines only")
    _add(
        listing,
        "--solver",
        by=SOLVERS,
        metavar="NAME,...",
        help="of the matrix, these columns only",
    )
    listing.set_defaults(run=list_all)

    one = commands.add_parser("describe", help="what a plugin says about its model or solver")
    _add(one, "name", by=EITHER)
    _add_kind(one)
    one.set_defaults(run=describe_one)

    checking = commands.add_parser(
        "check", help="hold a model to the laws of a field, or a solver to those of solvers"
    )
    _add(checking, "name", by=EITHER)
    _add_pairs(checking, "--set", "OPTION=VALUE", "a setting of the solver")
    _add_pairs(checking, "--param", "NAME=VALUE", "a parameter of the model")
    _add_kind(checking)
    checking.set_defaults(run=check)

    sampling = commands.add_parser("sample", help="draw from a model and write the draws")
    _add(sampling, "name", by=MODELS)
    _add(
        sampling,
        "--solver",
        by=SOLVERS,
        metavar="NAME",
        help="such as nuts, mala, probability-flow; by default one that tunes itself",
    )
    _add_pairs(sampling, "--set", "OPTION=VALUE", "an option of the solver")
    _add_pairs(sampling, "--param", "NAME=VALUE", "a parameter of the model")
    for name in ("chains", "steps", "warmup", "thin", "batch"):
        sampling.add_argument(f"--{name}", type=int)
    sampling.add_argument("--seed", type=int, default=0)
    sampling.add_argument(
        "--keep",
        metavar="WHAT",
        help="all, last, moments, or x.zarr, a store that need not fit in memory",
    )
    sampling.add_argument("--device")
    sampling.add_argument("--dtype", choices=("float32", "float64"))
    sampling.add_argument("--compile", action="store_true", help="compile the step")
    sampling.add_argument(
        "--checkpoint", metavar="FILE", help="save the run here, and go on from here"
    )
    sampling.add_argument("--on-failure", choices=("flag", "raise"), default="flag")
    sampling.add_argument(
        "-o", "--output", metavar="FILE", help="x.nc or x.zarr (ArviZ), x.safetensors or x.npy"
    )
    sampling.add_argument("--force", action="store_true", help="overwrite the output file")
    sampling.set_defaults(run=sample)

    fitting = commands.add_parser(
        "fit", help="train a model, on its own data or on yours, and write the weights"
    )
    _add(fitting, "name", by=MODELS)
    fitting.add_argument(
        "--data",
        metavar="FILE",
        help="x.npy, x.npz or x.csv: rows (n, *event_shape); else its own data",
    )
    fitting.add_argument("--array", metavar="NAME", help="which array of an x.npz")
    _add_pairs(fitting, "--set", "SETTING=VALUE", "such as steps=2000")
    fitting.add_argument("--seed", type=int, default=0)
    fitting.add_argument(
        "--checkpoint", metavar="FILE", help="save the training here, and go on from here"
    )
    fitting.add_argument(
        "-o", "--output", metavar="FILE", help="the weights; by default NAME.safetensors"
    )
    fitting.add_argument("--force", action="store_true", help="overwrite the output file")
    fitting.set_defaults(run=fit)

    showing = commands.add_parser(
        "demo", help="every built-in model through every solver: tables, pictures and a page"
    )
    showing.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        default="demo",
        help="for the page, the pictures and table.json",
    )
    showing.add_argument("--models", metavar="NAME,...", help="these only")
    showing.add_argument("--seed", type=int, default=0)
    showing.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes (%(default)s)"
    )
    showing.add_argument(
        "--inverse",
        action="store_true",
        help="inverse problems instead: images restored by posteriors",
    )
    showing.set_defaults(run=demo)

    measuring = commands.add_parser(
        "bench", help="the published tables, run with this package's solvers: JSON and a page"
    )
    measuring.add_argument(
        "tables",
        nargs="*",
        metavar="table",
        help="low-error, evidence, posteriors, reference, mnist, few-steps or amortised; all of them by default",
    )
    size = measuring.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="the rows that are made in a minute (the default)"
    )
    size.add_argument("--full", action="store_true", help="all rows, which takes hours")
    measuring.add_argument(
        "--data", metavar="FOLDER", help="your folder of data, for the targets that need some"
    )
    _add(measuring, "--target", by=TARGETS, metavar="NAME,...", help="these targets only")
    _add(measuring, "--solver", by=SOLVERS, metavar="NAME,...", help="these solvers in their place")
    measuring.add_argument("--families", metavar="NAME,...", help="of mnist, these families only")
    measuring.add_argument(
        "--minutes", type=float, help="of mnist, how long a family is trained, with --full"
    )
    measuring.add_argument(
        "--steps", type=int, help="of mnist, how many steps in their place, on any machine the same"
    )
    measuring.add_argument("--seed", type=int, default=0)
    measuring.add_argument(
        "--device", default="cpu", help="where low-error, evidence and mnist are made, such as cuda"
    )
    measuring.add_argument(
        "-o", "--output", metavar="FOLDER", help="for bench.json and the page, index.html"
    )
    measuring.set_defaults(run=bench)

    for command in (listing, one, checking, sampling, fitting, showing, measuring):
        command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(command=command)
    return parser


def _add_pairs(command: argparse.ArgumentParser, flag: str, metavar: str, told: str) -> None:
    """Add an option that can be given many times, a name and a value each."""
    command.add_argument(flag, action="append", default=[], metavar=metavar, help=told)


def _add_kind(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--kind", choices=("model", "solver"), help="where a model and a solver have the same name"
    )
