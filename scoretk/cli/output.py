"""What the command line prints: text that any terminal takes, JSON, and one line that is renewed."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from scoretk.errors import printable

__all__ = ["FitLine", "on_a_closed_pipe", "print_json", "print_rows", "say", "say_progress"]

CLEAR = "\r\x1b[K"


def say(*lines: object, file: Any = None) -> None:
    """Print to a stream of any encoding.

    Characters that would control a terminal, from whatever plugin or file, are escaped.
    """
    stream = sys.stdout if file is None else file
    text = " ".join(printable(line, keep="\n\t") for line in lines)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    say(json.dumps(value, indent=2, allow_nan=False))


def print_rows(rows: Sequence[Sequence[str]], indent: str = "  ") -> None:
    """Print rows of texts in columns.

    On a terminal a line ends where the terminal does; elsewhere nothing is cut.
    """
    if not rows:
        return
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    most = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for row in rows:
        cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        line = (indent + "  ".join(cells)).rstrip()
        say(line if most is None or len(line) <= most else line[: most - 3] + "...")


def say_progress(progress: Any) -> None:
    """Print a line of progress to standard error."""
    say(progress, file=sys.stderr)


class FitLine:
    """The progress of a fit: the step, the rate, the time left and the loss.

    On a terminal it is one line that is renewed, elsewhere a line for each report.
    """

    def __init__(self) -> None:
        self._first, self._last = (0, 0.0), 0
        self._open = False

    def __call__(self, progress: Any) -> None:
        """Show a `scoretk.learn.recipe.Progress`."""
        now = time.monotonic()
        if (
            progress.step <= self._last or not self._last
        ):  # the first of a fit; a recipe may have two
            self._first = (progress.step, now)
        self._last = progress.step
        steps, seconds = progress.step - self._first[0], now - self._first[1]
        line = str(progress)
        if steps and seconds:
            rate = steps / seconds
            line += f"  {rate:.3g} steps/s"
            if progress.of is not None:
                line += f"  {_duration((progress.of - progress.step) / rate)} left"
        if not sys.stderr.isatty():
            say(line, file=sys.stderr)
            return
        print(CLEAR + printable(line), end="", file=sys.stderr, flush=True)
        self._open = True

    def close(self) -> None:
        """End the line."""
        if self._open:
            print(file=sys.stderr)
            self._open = False


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def on_a_closed_pipe() -> None:
    """Let nothing more be written to standard output, whose reader has gone, at the process's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
