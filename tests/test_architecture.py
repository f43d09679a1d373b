"""The layout holds: few rooms, imports point one way, no circles, nothing imported inside functions, light things light."""

import ast
import re
import subprocess
import sys
import warnings
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import scoretk
from scoretk.core.moved import FOLDERS, MOVED, PUBLIC

ROOT = Path(scoretk.__file__).parent
LOOSE = {"__init__", "__main__", "errors", "_version"}
FLOORS = ["errors", "_version", "core", "plugins", "fields", "adapters", "ode", "solvers"]
FLOORS += ["diagnostics", "run", "inference", "learn", "models", "conformance", "demo", "cli"]
FLOORS += ["__main__", "__init__"]
"""A module imports from its own floor and from those before it; `plugins` from `errors` and `_version` alone."""
MOST_FOLDERS, MOST_ARROWS = 14, 79
"""Of the rooms at the top, and from room to room, each module loose at the root a room like the folders."""
LATE = {"scoretk.core.noise_kernel"}
"""Imported where they serve: it needs Triton, which takes seconds and comes with CUDA."""


def name_of(path):
    parts = [ROOT.name, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(f): f for f in sorted(ROOT.rglob("*.py"))}


@cache
def nodes_of(name):
    """All that a module's source is made of, as Python's parser sees it."""
    return list(ast.walk(ast.parse(FILES[name].read_text())))


def imported(node):
    """The names that an import of any form asks for, those of relative imports without their package."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "a relative import"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def module_of(name):
    """The module of the package that a dotted name is of, None for other packages'."""
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or None


@cache
def arrows():
    """From each module to those of the package that it imports."""
    asked = {
        name: {module_of(i) for node in nodes_of(name) for i in imported(node)} for name in FILES
    }
    return {name: others - {name, None} for name, others in asked.items()}


def room(name):
    return (*name.split("."), "__init__")[1]


def test_few_rooms_and_no_module_loose():
    assert {f.stem for f in ROOT.glob("*.py")} == LOOSE
    assert {room(name) for name in FILES} == set(FLOORS), "a new room: give it its floor"
    assert len([d for d in ROOT.iterdir() if (d / "__init__.py").exists()]) <= MOST_FOLDERS


def between_rooms():
    return {(room(n), room(o)) for n in FILES for o in arrows()[n] if room(n) != room(o)}


def test_few_arrows_from_room_to_room():
    """A new one: is what is asked for in the room that it belongs to?"""
    assert len(between_rooms()) <= MOST_ARROWS
    assert ("core", "errors") in between_rooms()


def points_up(name, other):
    """Whether an import of the one by the other is not from a floor below."""
    if other == ROOT.name or FLOORS.index(room(other)) > FLOORS.index(room(name)):
        return True
    return room(name) == "plugins" and room(other) not in ("plugins", "errors", "_version")


def test_imports_point_one_way():
    wrong = [f"{n} imports {other}" for n in FILES for other in arrows()[n] if points_up(n, other)]
    assert not wrong
    assert points_up("scoretk.core.noise", "scoretk.run.drive")
    assert points_up("scoretk.plugins.spec", "scoretk.core.rows")
    assert points_up("scoretk.run.drive", "scoretk")


def test_nothing_runs_in_a_circle():
    tuple(TopologicalSorter(arrows()).static_order())  # raises CycleError


def test_one_module_knows_the_format_of_files():
    knows = {
        name
        for name in FILES
        for node in nodes_of(name)
        if any(i.partition(".")[0] == "safetensors" for i in imported(node))
    }
    assert knows == {"scoretk.core.sealed"}


SIGNATURES = {"sample", "encode", "log_prob", "log_partition", "fit", "train", "integrate_rows"}
"""Contracts: what users call, the settings of `scoretk fit`, and an integrator in the field's usual form."""
LANGUAGE = {"_fill"}
"""A kernel in Triton's language, which has no objects."""
MOST_ARGUMENTS = 8


def crowded(nodes):
    """The functions with more arguments than an object should take their place for."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            taken = [
                a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            ]
            if len(taken) - (taken[:1] == ["self"]) > MOST_ARGUMENTS:
                found.add(node.name)
    return found


def test_functions_take_few_arguments():
    found = set().union(*(crowded(nodes_of(name)) for name in FILES))
    assert found == SIGNATURES | LANGUAGE


def test_a_ninth_argument_would_be_found():
    nine, eight = (
        ast.walk(ast.parse(f"def f(self, a, b, c, d, e, f, g, *, {rest}): ..."))
        for rest in ("h, i", "h")
    )
    assert crowded(nine) == {"f"}
    assert crowded(eight) == set()


def test_a_circle_would_be_found():
    circle = {"a": {"b"}, "b": {"c"}, "c": {"a"}}
    with pytest.raises(ValueError, match="cycle"):
        tuple(TopologicalSorter(circle).static_order())
    node = ast.parse("import scoretk.run.drive").body[0]
    assert [module_of(i) for i in imported(node)] == ["scoretk.run.drive"]


@pytest.mark.thorough
def test_imports_stand_at_the_top():
    """Those of the package's own modules: only commands import what they run when it is asked for."""
    inside = {
        (name, module_of(i))
        for name in FILES
        if room(name) != "cli"
        for f in nodes_of(name)
        if isinstance(f, ast.FunctionDef)
        for n in ast.walk(f)
        for i in imported(n)
    }
    assert {(name, other) for name, other in inside if other} <= {
        ("scoretk.core.noise", late) for late in LATE
    }


@pytest.mark.parametrize("old", sorted(MOVED.keys() - PUBLIC))
def test_old_paths_lead_to_the_new_ones_for_a_release(old):
    for home in MOVED[old].split():
        module = import_module(f"scoretk.{home}")
        forward = import_module(f"scoretk.{old}")
        for name in getattr(module, "__all__", ()):
            with pytest.warns(
                DeprecationWarning, match=rf"scoretk\.{old}\.{name} is now scoretk\."
            ):
                found = getattr(forward, name)
            assert found is getattr(module, name) or len(MOVED[old].split()) > 1
        with warnings.catch_warnings(), pytest.raises(AttributeError, match="no_such_name"):
            forward.no_such_name  # noqa: B018


MOVED_WITHIN = {
    f"{old}{name.removeprefix(f'scoretk.{new}')}"
    for old, new in FOLDERS.items()
    for name in FILES
    if f"{name}.".startswith(f"scoretk.{new}.")
}
"""The old paths of all modules of folders that moved."""


@pytest.mark.parametrize("old", sorted(MOVED_WITHIN - MOVED.keys()))
def test_old_paths_within_folders_that_moved_lead_to_the_new_ones(old):
    folder = old.partition(".")[0]
    home = import_module(f"scoretk.{FOLDERS[folder]}{old.removeprefix(folder)}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forward = import_module(f"scoretk.{old}")
    for name in getattr(home, "__all__", ()):
        told = f"scoretk.{old}.{name} is now {home.__name__}.{name}"
        with pytest.warns(DeprecationWarning, match=re.escape(told)):
            assert getattr(forward, name) is getattr(home, name)


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_what_was_never_in_a_folder_that_moved_is_not_found(folder):
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_module(f"scoretk.{folder}.no_such_module")


def test_an_old_folder_that_is_left_without_code_is_no_package(tmp_path, monkeypatch):
    """As a checkout has it where cached code lay beside what moved."""
    (tmp_path / "bench" / "__pycache__").mkdir(parents=True)
    monkeypatch.setattr(scoretk, "__path__", [*scoretk.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "scoretk.bench", raising=False)
    forward = import_module("scoretk.bench")
    with pytest.warns(DeprecationWarning, match="is now scoretk.demo.bench.Target"):
        assert forward.Target is import_module("scoretk.demo.bench").Target


@pytest.mark.parametrize("path", sorted(PUBLIC))
def test_public_paths_are_the_modules_themselves(path):
    module = import_module(f"scoretk.{path}")
    assert module is import_module(f"scoretk.{MOVED[path]}") is getattr(scoretk, path)


def in_a_fresh_process(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_importing_and_listing_need_no_torch():
    code = "import sys, scoretk; scoretk.list_models(); scoretk.describe('ring-mixture'); print('torch' in sys.modules)"
    assert in_a_fresh_process(code) == "False"


@pytest.mark.thorough
def test_the_public_names_need_nothing_slow():
    code = "import sys, torch, scoretk; [getattr(scoretk, n) for n in scoretk.__all__]; print(sorted(sys.modules))"
    loaded = in_a_fresh_process(code)
    for heavy in (
        "scipy",
        "sklearn",
        "torch._dynamo",
        "torchdiffeq",
        "arviz",
        "matplotlib",
        "rich",
        "hypothesis",
    ):
        assert f"'{heavy}'" not in loaded, heavy


def test_every_public_name_exists():
    assert set(scoretk.__all__) == scoretk._HOME.keys() - scoretk._MODULES
    assert "__version__" in scoretk.__all__
    for name in scoretk._MODULES:
        assert getattr(scoretk, name).__name__.startswith("scoretk.")
    for name in scoretk.__all__:
        assert getattr(scoretk, name) is not None
    with pytest.raises(AttributeError):
        scoretk.no_such_name  # noqa: B018


def patched(path):
    """What a file of tests puts in a module's place of a name: the module and the name, where both are written out."""
    text = path.read_text()
    tree = ast.parse(text if "setattr(" in text else "")
    aliases = {
        a.asname or a.name: f"{node.module}.{a.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for a in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr" and node.args:
            match node.args:
                case [ast.Constant(value=str(whole)), _] if whole.startswith("scoretk."):
                    yield whole.rpartition(".")[::2]
                case [ast.Name(id=alias), ast.Constant(value=str(name)), _] if alias in aliases:
                    yield aliases[alias], name


def read_by_functions(nodes):
    """The names that bodies of functions read, which defaults do not: those are read once, where a function is made."""
    functions = (n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    bodies = (inner for f in functions for part in f.body for inner in ast.walk(part))
    return {n.id for n in bodies if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


@pytest.mark.thorough
def test_what_tests_put_in_place_is_read():
    """A constant that is patched where nobody reads it changes nothing, and the test shows nothing."""
    found = {
        (module, name)
        for path in Path(__file__).parent.rglob("*.py")
        for module, name in patched(path)
        if module in FILES and name.isupper()
    }
    assert len(found) > 20
    unread = {m + "." + name for m, name in found if name not in read_by_functions(nodes_of(m))}
    assert not unread


def test_a_default_is_no_reading():
    assert read_by_functions(ast.walk(ast.parse("def f(x=A, *, y=B): return C"))) == {"C"}
