"""The layout holds: imports point one way, nothing of the package is imported inside functions, light things stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import scoretk

ROOT = Path(scoretk.__file__).parent
LEVELS = [
    {"errors"}, {"core"}, {"arguments", "streams", "rows", "compiling", "noise", "mixing"}, {"plugins"}, {"fields"},
    {"grids", "progress"}, {"solvers", "tape"}, {"arrays", "record", "checkpoint", "verdict", "summary", "witness"}, {"drive"},
    {"draws", "runs"}, {"sampling", "likelihood", "encoding", "matrix"}, {"partition"}, {"learn", "diagnostics"},
    {"families"}, {"conformance", "demo"}, {"cli"},
]  # fmt: skip
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))


def top(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(node):
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "scoretk":
        return [node.module] if node.module != "scoretk" else [f"scoretk.{a.name}" for a in node.names]
    return []


@pytest.mark.parametrize(
    "path", [f for f in FILES if top(f) not in ("__init__",)], ids=lambda f: str(f.relative_to(ROOT))
)
def test_imports_point_one_way_and_stand_at_the_top(path):
    tree = ast.parse(path.read_text())
    inside = [n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f) if imported(n)]
    if top(path) != "cli":
        assert not inside, "an import of the package's own modules inside a function"
    assert top(path) in LEVEL, "a new module: give it its place in LEVELS"
    for node in ast.walk(tree):
        for name in imported(node):
            part = name.split(".")[1]
            if part in LEVEL:
                assert LEVEL[part] <= LEVEL[top(path)], f"{path.name} imports {name}"


def in_a_fresh_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_and_listing_need_no_torch():
    code = "import sys, scoretk; scoretk.list_models(); scoretk.describe('ring-mixture'); print('torch' in sys.modules)"
    assert in_a_fresh_process(code) == "False"


def test_the_public_names_need_nothing_slow():
    code = "import sys, torch, scoretk; [getattr(scoretk, n) for n in scoretk.__all__]; print(sorted(sys.modules))"
    loaded = in_a_fresh_process(code)
    for heavy in ("scipy", "sklearn", "torch._dynamo", "torchdiffeq", "arviz", "matplotlib", "rich", "hypothesis"):
        assert f"'{heavy}'" not in loaded, heavy


def test_every_public_name_exists():
    assert set(scoretk.__all__) == {"__version__", *scoretk._HOME}
    for name in scoretk.__all__:
        assert getattr(scoretk, name) is not None
    with pytest.raises(AttributeError):
        scoretk.no_such_name  # noqa: B018
