"""The plugins of one entry-point group: finding one by name, and isolating its code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any

from scoretk._version import __version__
from scoretk.errors import (
    AmbiguousName,
    BrokenPlugin,
    InvalidArgument,
    MissingDependency,
    ScoretkError,
    UnknownName,
)
from scoretk.plugins.containment import contained
from scoretk.plugins.discovery import Broken, Entry, discover, normalised, read_entries

__all__ = ["BUILT_IN", "Catalog", "pointed_at"]

BUILT_IN = "scoretk"


class Catalog:
    """The plugins of one entry-point group, with those that have failed in this process.

    Metadata is read afresh each time, and a plugin that failed is tried again when it is asked for
    again.

    Args:
        group: The entry-point group.
        kind: What errors call a plugin of the group, such as "solver".
        built_in: This package's own, "module:attribute" by name, where they stand in a table and
            not in its metadata.
    """

    def __init__(
        self, group: str, kind: str, built_in: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.group, self.kind = group, kind
        self._own = [
            Entry(f"{BUILT_IN}/{n}", n, BUILT_IN, __version__, value)
            for n, value in built_in.items()
        ]
        self._met: dict[str, Broken] = {}
        self._surveys = False

    def listing(self) -> list[Entry | Broken]:
        """All plugins sorted by id, from metadata alone.

        Returns:
            An `Entry` for each; a `Broken` where that, or an earlier use of the plugin, failed.
        """
        return [self._met.get(item.id, item) for item in self._all()]

    def _all(self) -> list[Entry | Broken]:
        return sorted([*self._own, *discover(self.group)], key=lambda item: item.id)

    def find(self, name: str) -> Entry:
        """The plugin of this full id or short name.

        The short name of a built-in always means the built-in.

        Args:
            name: A full id ("my-package/my-model") or a short name.

        Raises:
            InvalidArgument: The name is no string.
            UnknownName: Nothing has this name.
            AmbiguousName: Several distributions have this short name.
            BrokenPlugin: The distribution's metadata cannot be read.
        """
        if not isinstance(name, str):
            raise InvalidArgument("name", name, f"the name of a {self.kind}")
        if own := _claims(name, self._own):  # without a look at what is installed
            return own[0]
        found = self._all()
        entries = [item for item in found if isinstance(item, Entry)]
        claims = _claims(name, entries)
        if len(claims) > 1:
            raise AmbiguousName(name, [entry.id for entry in claims])
        if claims:
            return claims[0]
        self._refuse_unreadable(name, [item for item in found if isinstance(item, Broken)])
        raise UnknownName(self.kind, name, {e.id if "/" in name else e.name for e in entries})

    @contextmanager
    def isolated(
        self, entry: Entry, stage: str, given: Mapping[str, Any] | None = None
    ) -> Iterator[None]:
        """Run a plugin's code: what it raises is recorded, what it does to this process is undone.

        Whatever it raises becomes a `Broken` record and the cause of a `BrokenPlugin`;
        `containment` says what is undone. Some errors pass as they are: `MissingDependency`, which
        is no fault of the plugin; `KeyboardInterrupt`, in a `survey` only if the user pressed
        Ctrl-C; and with arguments `given` any `ScoretkError`, which refuses them. With these
        nothing is recorded, as they may be at fault and not the plugin.

        Args:
            entry: The plugin.
            stage: "describe", "load" or "train".
            given: The arguments that the caller of the package gave.
        """
        with contained() as interrupts:
            try:
                yield
            except BaseException as error:
                # SystemExit too, and what extension modules and test runners derive from
                # BaseException.
                if isinstance(error, KeyboardInterrupt) and (
                    interrupts.pressed or not self._surveys
                ):
                    raise
                if isinstance(error, MissingDependency) or (
                    given and isinstance(error, ScoretkError)
                ):
                    raise
                broken = Broken.by(error, entry, stage)
                if not given:
                    self._met[entry.id] = broken
                raise BrokenPlugin(f"{broken}{_blame(given)}") from error
        if not given and entry.id in self._met and self._met[entry.id].stage == stage:
            del self._met[entry.id]

    def verified(self, use: Callable[[str], object]) -> list[Entry | Broken]:
        """All plugins after each has been used by its id.

        Returns:
            An `Entry` for each, a `Broken` for those that failed. One that only lacks an optional
            package is not broken: its entry says what it `needs`.
        """
        needs = dict[str, str]()
        with self.survey():
            for item in self.listing():
                try:
                    use(item.id)
                except MissingDependency as error:
                    needs[item.id] = str(error)
                except ScoretkError:  # the next listing shows it
                    pass
        return [
            replace(e, needs=needs.get(e.id, "")) if isinstance(e, Entry) else e
            for e in self.listing()
        ]

    @contextmanager
    def survey(self) -> Iterator[None]:
        """Go through plugins that nobody asked for individually.

        None of them can end that, not even by raising `KeyboardInterrupt` itself.
        """
        before, self._surveys = self._surveys, True
        try:
            yield
        finally:
            self._surveys = before

    def _refuse_unreadable(self, name: str, unreadable: list[Broken]) -> None:
        for broken in unreadable:
            if normalised(name.partition("/")[0]) == broken.distribution:
                try:
                    read_entries(broken.distribution, self.group)
                except Exception as error:
                    raise BrokenPlugin(str(broken)) from error


def _claims(name: str, entries: list[Entry]) -> list[Entry]:
    distribution, _, key = name.partition("/")
    by_id = [entry for entry in entries if entry.id == f"{normalised(distribution)}/{key}"]
    by_name = [entry for entry in entries if entry.name == name]
    return by_id or [entry for entry in by_name if entry.distribution == BUILT_IN] or by_name


def _blame(given: Mapping[str, Any] | None) -> str:
    shown = ", ".join(f"{name}={value!r}" for name, value in (given or {}).items())
    return f". It was loaded with {shown}: check these first" if given else ""


def pointed_at(value: str) -> Any:
    """The object that "module:attribute" points at.

    Extras, as in "module:attribute [extra]", are ignored.
    """
    return resolve_name(value.partition("[")[0].strip())
