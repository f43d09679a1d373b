"""The list of wrong versions: what they are, and which tests cover what they change.

`first.toml`, `fresh.toml` and `third.toml` to `eighteenth.toml` hold, by file of the package, edits
`[old text, new text, what is wrong]`, with a fourth entry where the edit changes nothing that can be observed: why.
`covers.toml` holds, by file or folder, the tests that cover it, and by room those that cover all of it.
"""

import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ROUNDS = (
    "first",
    "fresh",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
    "fourteenth",
    "fifteenth",
    "sixteenth",
    "seventeenth",
    "eighteenth",
)


class Mutant(NamedTuple):
    """An edit of a file of the package, named from the package's root; `equivalent` says why it is none, or is empty."""

    round: str
    file: str
    old: str
    new: str
    why: str
    equivalent: str = ""

    @property
    def package(self) -> str:
        return self.file.partition("/")[0]

    def applied(self, source: str) -> str:
        """The wrong version of a file that holds the old text once."""
        if source.count(self.old) != 1:
            raise ValueError(f"{self.file} holds {self.old!r} {source.count(self.old)} times")
        return source.replace(self.old, self.new)


def mutants(*rounds: str) -> list[Mutant]:
    """All of these rounds, in the order of the lists."""
    found = []
    for name in rounds or ROUNDS:
        by_file = tomllib.loads((HERE / f"{name}.toml").read_text())
        found += [
            Mutant(name, file, *edit) for file, part in by_file.items() for edit in part["edits"]
        ]
    return found


@cache
def covers(table: str = "covers") -> dict[str, list[str]]:
    return tomllib.loads((HERE / "covers.toml").read_text())[table]


def covering(file: str) -> list[str]:
    """The test files for a file of the package, the cheapest first.

    Those of the longest name in the table that begins the file's, and after the first of them those of its room.
    """
    known = [name for name in covers() if file == name or file.startswith(f"{name.rstrip('/')}/")]
    first, *others = covers()[max(known, key=len)]
    of_room = covers("rooms").get(file.partition("/")[0], [])
    return [f"tests/{name}" for name in dict.fromkeys([first, *of_room, *others])]
