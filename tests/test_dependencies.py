"""Optional packages are asked for in one place, which says what is missing, or what is wrong with what is there."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

import scoretk
from scoretk.core.dependencies import required
from scoretk.errors import MissingDependency

ROOT = Path(scoretk.__file__).parent
OPTIONAL = {"cli/__init__.py", "core/dependencies.py", "demo/table.py", "run/progress.py"}
"""Where another way is gone if a package is absent: nothing is refused there."""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a module of a package that is found, and forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "inner.py").write_text(text)
        for module in (name, f"{name}.inner"):
            monkeypatch.delitem(sys.modules, module, raising=False)

    return write


def test_what_is_there_is_imported(package):
    package("stk_there", "value = 3")
    assert required("stk_there.inner", "demo", "This").value == 3


@pytest.mark.parametrize("absent", ["stk_nowhere", "stk_nowhere.inner", "json.nowhere"])
def test_what_is_absent_is_named_with_the_way(absent):
    with pytest.raises(MissingDependency) as caught:
        required(absent, "demo", "This")
    top = absent.partition(".")[0]
    assert str(caught.value) == f"This needs '{top}': pip install 'scoretk[demo]'"


def test_a_part_that_is_still_loaded_is_no_package(package, monkeypatch):
    package("stk_gone", "value = 3")
    required("stk_gone.inner", "demo", "This")
    monkeypatch.setitem(sys.modules, "stk_gone", None)
    with pytest.raises(MissingDependency, match="needs 'stk_gone': pip"):
        required("stk_gone.inner", "demo", "This")


def test_it_is_named_as_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependency, match="'scikit-learn': pip"):
        required("sklearn.datasets", "demo", "This")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import stk_nowhere", "No module named 'stk_nowhere'"),
        ("from json import nowhere", "cannot import name 'nowhere'"),
        ("raise ImportError('built for another numpy')", "built for another numpy"),
    ],
)
def test_what_is_there_and_does_not_import_is_not_called_absent(package, text, said):
    package("stk_broken", text)
    with pytest.raises(MissingDependency, match=rf"'stk_broken', which does not import.*{said}"):
        required("stk_broken.inner", "demo", "This")


def test_every_package_is_asked_for_there_by_an_extra_that_is():
    extras = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    asked = set()
    texts = {path: path.read_text() for path in sorted(ROOT.rglob("*.py"))}
    for path in (p for p, text in texts.items() if "ImportError" in text or "required(" in text):
        for node in ast.walk(ast.parse(texts[path])):
            if isinstance(node, ast.ExceptHandler) and node.type is not None:
                named = "ImportError" in ast.unparse(node.type)
                assert not named or str(path.relative_to(ROOT)) in OPTIONAL, path
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "required":
                asked.add(ast.literal_eval(node.args[1]))
    assert len(asked) > 10
    assert asked <= extras["optional-dependencies"].keys()
