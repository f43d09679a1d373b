"""The progress line on a terminal or in a notebook: rate, time left and failed chains."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from scoretk.errors import InvalidArgument, MissingDependency

__all__ = ["ProgressBar"]


def in_notebook() -> bool:
    """Whether the program runs in a notebook that can show a line which changes."""
    if "IPython" not in sys.modules or find_spec("ipywidgets") is None:
        return False
    try:
        from rich.console import Console
    except ImportError:
        return False
    return Console().is_jupyter


class ProgressBar:
    """Shows steps done out of `total` through rich.

    Args:
        show: Whether it is shown; None for where rich is installed, and standard error is a
            terminal or the program runs in a notebook (with ipywidgets).
        total: How many steps there are.

    Raises:
        InvalidArgument: Where `show` is neither.
        MissingDependency: Where `show` is True and rich is not installed.
    """

    def __init__(self, show: bool | None, total: int) -> None:
        if show is not None and not isinstance(show, bool):
            raise InvalidArgument("progress", show, "True, False or None")
        self._bar: Any = None
        if show is False or (show is None and not (sys.stderr.isatty() or in_notebook())):
            return
        try:
            from rich import progress as rich
            from rich.console import Console
        except ImportError as error:
            if show:
                raise MissingDependency("rich", "progress", "progress=True") from error
            return
        self._bar = rich.Progress(
            rich.TextColumn("sampling"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[rate]}"),
            rich.TimeRemainingColumn(),
            rich.TextColumn("{task.fields[failed]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("sampling", total=total, rate="", failed="")

    def __enter__(self) -> ProgressBar:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, failed: int) -> None:
        """Show `done` steps and `failed` chains so far."""
        if self._bar:
            speed = self._bar.tasks[self._task].speed
            rate = f"{speed:,.0f} steps/s" if speed else ""
            self._bar.update(
                self._task,
                completed=done,
                rate=rate,
                failed=f"[red]{failed} failed" if failed else "all chains well",
            )
