"""The table of docs/bring-your-own.md, made of what the tests of the adapters declare.

A module of tests that holds an adapter to its library says so in a list BRINGS of literals, which is read without importing it:
what is brought, the line that makes a field of it, what it is checked against, the library in the version that was tried, and
the names of the tests (of another module of adapters as `module.test`). `python -m tests.adapters.table` writes the page.
"""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
PAGE = ROOT / "docs" / "bring-your-own.md"
MODULES = (
    "test_supports",
    "adapters/test_flows",
    "adapters/test_sklearn",
    "adapters/test_diffusers",
    "adapters/test_denoisers",
    "adapters/test_posteriors",
    "adapters/test_sbi",
    "adapters/test_transformers",
    "adapters/test_pretrained",
    "adapters/test_own_gradient",
    "adapters/test_own_network",
)
"""In the order of the page."""
HEAD = "| bring | install | line | checked against | version | by |\n|---|---|---|---|---|---|\n"
ALONE = frozenset({"k-diffusion"})
"""What is installed without what it asks for, which does not fit beside our pins."""
OLD = re.compile(r"^\| bring \|.*\n(?:\|.*\n)+", re.MULTILINE)


@cache
def toml():
    """The extras of the package, with what they install."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return told["project"]["optional-dependencies"]


def extras():
    """The extra that installs a library, by the library's name: that which begins with it."""
    first = {re.match(r"[\w-]+", needs[0])[0]: extra for extra, needs in toml().items()}
    return first | {"scikit-learn": "sklearn"}  # and of the demo


class Brought(NamedTuple):
    """A row of the table."""

    what: str
    line: str
    against: str
    library: str
    tests: list[str]
    module: str

    @property
    def install(self):
        """What is given to pip beside this package: an extra, or the library alone."""
        name, _, _ = self.library.partition("==")
        if not name:
            return ""
        return "alone" if name in ALONE else f"`{extras()[name]}`"

    def row(self):
        _, _, version = self.library.partition("==")
        cells = (self.what, self.install, f"`{self.line}`", self.against, version)
        return f"| {' | '.join((*cells, f'`{Path(self.module).name}`'))} |\n".replace("|  |", "| |")


def parsed(module):
    return ast.parse((TESTS / f"{module}.py").read_text()).body


def declared(module):
    """The rows that a module declares."""
    (brings,) = (
        ast.literal_eval(node.value)
        for node in parsed(module)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "BRINGS"
    )
    return [Brought(*row, module) for row in brings]


def tests_of(module):
    """The names of a module's tests, those of a class as `Class.test`."""
    found = set()
    for node in parsed(module):
        owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        inside = node.body if owner else [node]
        found |= {owner + f.name for f in inside if isinstance(f, ast.FunctionDef)}
    return {name for name in found if name.rpartition(".")[2].startswith("test_")}


def brought():
    return [row for module in MODULES for row in declared(module)]


def table():
    return HEAD + "".join(row.row() for row in brought())


if __name__ == "__main__":
    PAGE.write_text(OLD.sub(lambda _: table(), PAGE.read_text()))
