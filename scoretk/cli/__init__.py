"""The command line: `scoretk list | describe | check | sample | fit | demo | bench`.

Exit codes: 0 done, 1 a run that failed, 2 wrong use, 130 interrupted, 141 nobody reads what is
printed. A command imports what it needs when it runs, so that listing needs no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Sequence

from scoretk.cli.output import on_a_closed_pipe, say
from scoretk.cli.parser import make_parser
from scoretk.errors import (
    AmbiguousName,
    InvalidArgument,
    MissingCapability,
    OutputExists,
    ScoretkError,
    UnknownName,
)

__all__ = ["main"]

DONE, FAILED, WRONG_USE, INTERRUPTED, UNREAD = 0, 1, 2, 130, 141
_KEYWORD = re.compile(
    r"(?<![\w(/.-])(batch|chains|checkpoint|device|dtype|keep|seed|steps|thin|warmup)=('?)([\w.]*)\2"
)
"""An argument of Python in a message: the line has it as an option."""
_MISUSE = (InvalidArgument, UnknownName, AmbiguousName, MissingCapability, OutputExists)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words of the command line; None for those of the process.

    Returns:
        The exit code.
    """
    parser = make_parser()
    _complete(parser)
    try:
        options = parser.parse_args(arguments)
        if options.run is None:
            options.run = lambda _: parser.print_help()
        done = options.run(options)
        sys.stdout.flush()
        return FAILED if done is False else DONE
    except _MISUSE as error:
        return _complain(error, WRONG_USE)
    except ScoretkError as error:
        return _complain(error, FAILED)
    except KeyboardInterrupt as error:
        _say("interrupted", error)
        return INTERRUPTED
    except BrokenPipeError:
        on_a_closed_pipe()
        return UNREAD


def _complain(error: BaseException, code: int) -> int:
    _say(f"scoretk: {error}", error)
    return code


def _say(text: str, error: BaseException) -> None:
    """Print an error and its notes, which name arguments of Python, as the line has them."""
    told = "\n".join([text, *getattr(error, "__notes__", [])])
    told = told.replace("keep=scoretk.Zarr(path)", "--keep NAME.zarr")
    say(_KEYWORD.sub(lambda found: f"--{found[1]} {found[3]}".rstrip(), told), file=sys.stderr)


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell that asks how a line goes on, where argcomplete is installed."""
    with contextlib.suppress(ImportError):
        import argcomplete

        argcomplete.autocomplete(parser)
