"""Which plugins are installed, read from their metadata alone: no code of theirs runs here.

A plugin's canonical id is `distribution/name`: the normalised name of the distribution that
registers it and the key of its entry point. Where sys.path holds a distribution twice the first one
counts, as it does for `import`.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import Distribution, PackageMetadata, distribution, distributions
from pathlib import Path
from traceback import format_exception_only

from scoretk.errors import printable

__all__ = ["Broken", "Entry", "discover", "normalised", "read_entries"]

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Entry:
    """A plugin as its metadata shows it, with characters that would control a terminal escaped.

    Attributes:
        id: The canonical id, `distribution/name`.
        name: The key of the entry point.
        distribution: The normalised name of the distribution.
        version: The distribution's version.
        value: The object that the entry point points at, "module:attribute".
        needs: After `verify`, which optional package it lacks here; else empty.
    """

    id: str
    name: str
    distribution: str
    version: str
    value: str
    needs: str = ""


@dataclass(frozen=True)
class Broken:
    """A plugin that failed.

    Attributes:
        id: The canonical id; `distribution/*` where the metadata cannot be read and no name is
            known.
        distribution: The normalised name of the distribution.
        version: The distribution's version.
        stage: At which stage: "list", "describe", "load" or "train".
        error: The type and message of the exception.
    """

    id: str
    distribution: str
    version: str
    stage: str
    error: str

    @classmethod
    def by(cls, error: BaseException, entry: Entry, stage: str) -> Broken:
        """The record of a failure.

        It keeps the text of the error only, so that no model is kept alive by a traceback.

        Args:
            error: What was raised.
            entry: The plugin.
            stage: "list", "describe", "load" or "train".
        """
        text = printable("".join(format_exception_only(error)).strip(), keep="\n\t")
        return cls(entry.id, entry.distribution, entry.version, stage, text)

    def __str__(self) -> str:
        fix = (
            f"`pip install --force-reinstall {self.distribution}` repairs an incomplete "
            "installation, `pip check` shows what is missing; otherwise upgrade "
            f"{self.distribution} or ask its authors"
        )
        what = f"plugin {self.id} ({self.distribution} {self.version}) failed at {self.stage}"
        return f"{what}: {self.error.rstrip('.')}. {fix}"


def normalised(name: str) -> str:
    """A distribution's name as package indexes compare it: `My_Pkg` is `my-pkg`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def discover(group: str) -> list[Entry | Broken]:
    """Every plugin that registers in an entry-point group, sorted by id.

    Args:
        group: The group, such as "scoretk.models".

    Returns:
        An `Entry` for each; a `Broken` for each distribution whose metadata cannot be read.
    """
    found: dict[str, Entry | Broken] = {}
    for dist in distributions():
        for item in _read(dist, group):
            first = found.setdefault(item.id, item)
            # Of several distributions without a name none hides another.
            if first is not item and item.distribution == UNKNOWN:
                found[f"{item.id} {len(found)}"] = replace(item, id=f"{item.id} {len(found)}")
    return [found[id] for id in sorted(found)]


def read_entries(name: str, group: str) -> list[Entry]:
    """What a distribution registers in a group; raises whatever reading its metadata raises.

    Args:
        name: The normalised name of the distribution.
        group: The entry-point group.
    """
    # Of several on sys.path the first, which need not be the one that was found.
    dist = distribution(name)
    version = _version(dist.metadata)
    points = dist.entry_points.select(group=group)
    return [
        Entry(
            f"{name}/{printable(point.name)}",
            printable(point.name),
            name,
            version,
            printable(point.value),
        )
        for point in points
    ]


def _version(metadata: PackageMetadata) -> str:
    try:
        found = metadata["Version"]
    except KeyError:  # in later versions of Python
        found = None
    return UNKNOWN if found is None else printable(found)


def _read(dist: Distribution, group: str) -> list[Entry] | list[Broken]:
    try:
        if f"[{group}]" not in _points(dist):
            return []
    except (OSError, UnicodeError):
        pass  # it cannot be ruled out, so reading it shall say what is wrong
    name = version = UNKNOWN
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that lack an entry
            metadata = dist.metadata  # every access to it reads and parses a whole file
            version = _version(metadata)
            name = printable(normalised(metadata["Name"]))
        return read_entries(name, group)
    except Exception as error:  # noqa: BLE001 (one damaged distribution must not hide the others)
        error.add_note(f"in {getattr(dist, '_path', None) or dist.locate_file('')}")
        return [Broken.by(error, Entry(f"{name}/*", "*", name, version, ""), "list")]


def _points(dist: Distribution) -> str:
    """The text that lists what a distribution registers: most of them register nothing of ours."""
    path = getattr(dist, "_path", None)
    if not isinstance(path, Path):  # in an archive, or of somebody's own importer
        return dist.read_text("entry_points.txt") or ""
    file = path / "entry_points.txt"
    try:
        at = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return _text(file, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)


@lru_cache(maxsize=2**12)
def _text(file: Path, *_: int) -> str:
    """A file's text, read once for each state of the file: an environment has hundreds of them."""
    return file.read_text(encoding="utf-8")
