"""Plugins for real: third-party distributions are installed by pip into a folder, and fresh processes use them.

Each distribution has its own way of being wrong. What a process answers comes back as JSON.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from zipfile import ZipFile

import pytest

from tests.processes import IS_TESTED, environment

TEMPLATE = Path(__file__).parents[1] / "docs" / "plugin-template"

FIELD = """
class Field:
    event_shape = (2,)
    def __init__(self, **parameters):
        self.parameters = parameters
    def energy(self, x):
        return 0.0
"""


def spec(name, factory="build", before="", after="", **changes):
    """The source of a plugin's module with a spec, and a factory that returns a field."""
    fields = {
        "name": name,
        "family": "test",
        "factory": f"{{module}}:{factory}",
        "provides": {"energy"},
        "event_shape": (2,),
        "summary": name,
        "parameters": {"width": 64},
        **changes,
    }
    call = f"spec = ModelSpec(**{fields!r})\n".replace("'{module}:", "__name__ + ':")
    return f"{before}\nfrom scoretk import ModelSpec\n{call}{FIELD}\ndef build(**p): return Field(**p)\n{dedent(after)}"


DISTRIBUTIONS = {  # distribution: (key of the entry point, source of the module)
    "good": ("good", spec("good", parameters={"width": 64, "depth": 2})),
    "import-raises": ("import-raises", "raise RuntimeError('no luck today')"),
    "import-missing": ("import-missing", "import a_package_that_is_not_installed"),
    "import-exits": ("import-exits", "import sys; sys.exit(3)"),
    "import-base-exception": (
        "import-base-exception",
        "class Panic(BaseException): pass\nraise Panic('rust')",
    ),
    "import-syntax": ("import-syntax", "def ("),
    "no-attribute": ("no-attribute", "nothing = 0"),
    "wrong-type": ("wrong-type", "spec = {'name': 'wrong-type'}"),
    "other-name": ("other-name", spec("another-name")),
    "newer": ("newer", spec("newer", interface=2, field_of_the_future=True)),
    "invalid-spec": ("invalid-spec", spec("invalid-spec", provides={"energie"})),
    "factory-raises": (
        "factory-raises",
        spec("factory-raises", after="def build(width): 1 / (width - 64)"),
    ),
    "factory-exits": (
        "factory-exits",
        spec("factory-exits", after="def build(**p): raise SystemExit('bye')"),
    ),
    "factory-missing": ("factory-missing", spec("factory-missing", factory="absent")),
    "factory-not-callable": (
        "factory-not-callable",
        spec("factory-not-callable", after="build = 3"),
    ),
    "factory-other-arguments": (
        "factory-other-arguments",
        spec("factory-other-arguments", after="def build(depth): return Field()"),
    ),
    "not-a-field": ("not-a-field", spec("not-a-field", after="def build(**p): return object()")),
    "a-class": ("a-class", spec("a-class", after="def build(**p): return Field")),
    "claims-score": ("claims-score", spec("claims-score", provides={"energy", "score"})),
    "declares-less": ("declares-less", spec("declares-less", after="Field.provides = {'draw'}")),
    "other-shape": ("other-shape", spec("other-shape", event_shape=(3,))),
    "shape-on-load": ("shape-on-load", spec("shape-on-load", event_shape=None)),
    "refuses": (
        "refuses",
        spec(
            "refuses",
            after="""
            from scoretk import InvalidArgument
            def build(width):
                if width < 0:
                    raise InvalidArgument("width", width, "a positive number")
                return {0: Field}[width - 64]()
            """,
        ),
    ),
    "claim-one": ("contested", spec("contested", summary="one")),
    "claim-two": ("contested", spec("contested", summary="two")),
    "claims-built-in": ("gaussian", spec("gaussian", summary="not the built-in")),
    "malformed": ("malformed", ""),
}

VALUES = {
    "malformed": "malformed module:spec",
    "good": "good_module:spec [extra]",
}  # else "module:spec"

SOLVERS = {
    "solver-good": (
        "fancy",
        "class spec:\n    def init(self, field, x, noise): ...\n    def step(self, field, s, noise): ...\n",
    ),
    "solver-raises": ("raises", "raise RuntimeError('no luck today')"),
    "solver-instance": ("instance", "spec = object()"),
    "solver-half": ("half", "class spec:\n    def init(self, field, x, noise): ...\n"),
}

BROKEN = {  # distribution: (stage, what the error starts with, type of the cause)
    "import-raises": ("describe", "RuntimeError: no luck today", "RuntimeError"),
    "import-missing": (
        "describe",
        "ModuleNotFoundError: No module named 'a_package_",
        "ModuleNotFoundError",
    ),
    "import-exits": ("describe", "SystemExit: 3", "SystemExit"),
    "import-base-exception": ("describe", "import_base_exception_module.Panic: rust", "Panic"),
    "import-syntax": ("describe", 'File "', "SyntaxError"),
    "no-attribute": (
        "describe",
        "AttributeError: module 'no_attribute_module' has no",
        "AttributeError",
    ),
    "wrong-type": (
        "describe",
        "TypeError: wrong_type_module:spec is of type dict, not a scoretk.",
        "TypeError",
    ),
    "other-name": (
        "describe",
        "ValueError: the entry point's key is 'other-name' but its spec's",
        "ValueError",
    ),
    "newer": (
        "describe",
        "scoretk.errors.InvalidArgument: interface: expected 1, got 2. ",
        "InvalidArgument",
    ),
    "invalid-spec": (
        "describe",
        "scoretk.errors.InvalidArgument: provides: expected cap",
        "InvalidArgument",
    ),
    "malformed": ("describe", "ValueError: invalid format: ", "ValueError"),
    "factory-raises": ("load", "ZeroDivisionError: division by zero", "ZeroDivisionError"),
    "factory-exits": ("load", "SystemExit: bye", "SystemExit"),
    "factory-missing": (
        "load",
        "AttributeError: module 'factory_missing_module'",
        "AttributeError",
    ),
    "factory-not-callable": ("load", "TypeError: 'int' object is not callable", "TypeError"),
    "factory-other-arguments": (
        "load",
        "TypeError: build() got an unexpected keyword argument 'w",
        "TypeError",
    ),
    "not-a-field": ("load", "TypeError: not_a_field_module:build returned <object", "TypeError"),
    "a-class": ("load", "TypeError: a_class_module:build returned <class", "TypeError"),
    "claims-score": ("load", "TypeError: the spec claims score, which", "TypeError"),
    "declares-less": ("load", "TypeError: the spec claims energy, which", "TypeError"),
    "other-shape": (
        "load",
        "ValueError: the spec says event_shape=(3,) but the field's is (2,)",
        "ValueError",
    ),
}

HEALTHY = ["claim-one/contested", "claim-two/contested", "claims-built-in/gaussian", "good/good"]
HEALTHY += ["refuses/refuses", "shape-on-load/shape-on-load"]


def module_of(distribution):
    return distribution.replace("-", "_") + "_module"


def write_wheel(folder, distribution, key, source, group="scoretk.models", value=None):
    """A wheel of one module and one entry point, as a build backend would write it."""
    module = module_of(distribution)
    stem = f"{distribution.replace('-', '_')}-1.5"
    info = f"{stem}.dist-info"
    files = {
        f"{module}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[{group}]\n{key} = {value or f'{module}:spec'}\n",
    }
    digests = {path: hashlib.sha256(text.encode()).digest() for path, text in files.items()}
    record = [
        f"{p},sha256={base64.urlsafe_b64encode(d).decode().rstrip('=')},"
        for p, d in digests.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    wheel = folder / f"{stem}-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def pip_install(target, *sources):
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
    ]
    command += [
        "--no-deps",
        "--no-build-isolation",
        "--no-compile",
        "--target",
        str(target),
        *map(str, sources),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A folder into which every distribution of the tables above is installed."""
    folder = tmp_path_factory.mktemp("wheels")
    wheels = [
        write_wheel(folder, name, key, source, value=VALUES.get(name))
        for name, (key, source) in DISTRIBUTIONS.items()
    ]
    wheels += [
        write_wheel(folder, name, *solver, group="scoretk.solvers")
        for name, solver in SOLVERS.items()
    ]
    return pip_install(tmp_path_factory.mktemp("site"), *wheels)


@pytest.fixture(scope="session")
def hanging_site(tmp_path_factory):
    """A model whose import never ends, one whose import is stopped by Ctrl-C, and a heavy one."""
    folder = tmp_path_factory.mktemp("hanging-wheels")
    sources = {
        "hangs": "import time; time.sleep(3600)",
        "interrupted": "raise KeyboardInterrupt",
        "heavy": spec("heavy", before="import torch"),
    }
    wheels = [write_wheel(folder, name, name, source) for name, source in sources.items()]
    return pip_install(tmp_path_factory.mktemp("hanging-site"), *wheels)


@pytest.fixture(scope="session")
def template_site(tmp_path_factory):
    """The template of the documentation, built and installed as its author would."""
    copy = tmp_path_factory.mktemp("template") / "plugin-template"
    shutil.copytree(TEMPLATE, copy)
    return pip_install(tmp_path_factory.mktemp("template-site"), copy)


PRELUDE = """
import json, sys
import scoretk as stk
from scoretk import plugins
answer = {}
def failure(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except BaseException as error:
        cause = error.__cause__
        return {"type": type(error).__name__, "text": str(error), "cause": cause and type(cause).__name__,
                "traced": bool(cause and cause.__traceback__), "argument": getattr(error, "argument", None)}
def listed(items):
    return {item.id: [type(item).__name__, item.distribution, item.version, getattr(item, "stage", None),
                      getattr(item, "error", None)] for item in items if item.distribution != "scoretk"}
"""


def ask(site, tmp_path, code, seed=None, timeout=60):
    """Run code in a fresh process that has the site on its path; returns its dict `answer`."""
    script = f"{IS_TESTED}\n{PRELUDE}\n{dedent(code)}\nprint('ANSWER' + json.dumps(answer))\n"
    env = environment(site, PYTHONHASHSEED="random" if seed is None else str(seed))
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("ANSWER")[2])


def entry(distribution):
    return ["Entry", distribution, "1.5", None, None]


@pytest.mark.thorough
def test_list_shows_every_plugin_and_runs_none(site, tmp_path):
    answer = ask(
        site,
        tmp_path,
        """
        answer["listed"] = listed(stk.list_models())
        answer["ids"] = [item.id for item in stk.list_models()]
        answer["modules"] = sorted(sys.modules)
    """,
    )
    expected = {f"{name}/{key}": entry(name) for name, (key, _) in DISTRIBUTIONS.items()}
    assert answer["listed"] == expected
    assert answer["ids"] == sorted(answer["ids"])
    assert {"scoretk/gaussian", "scoretk/ring-mixture"} < set(answer["ids"])
    heavy = {"torch", "numpy", "scoretk.fields", "scoretk.models", *map(module_of, DISTRIBUTIONS)}
    assert not heavy & set(answer["modules"])


@pytest.mark.thorough
def test_list_returns_at_once_beside_imports_that_hang_or_are_heavy(hanging_site, tmp_path):
    answer = ask(
        hanging_site,
        tmp_path,
        """
        answer["listed"] = listed(stk.list_models())
        answer["found"] = plugins.find_model("hangs").id
        answer["unknown"] = failure(stk.load, "hang")
        answer["torch"] = "torch" in sys.modules
    """,
        timeout=30,
    )
    assert answer["listed"] == {f"{n}/{n}": entry(n) for n in ("hangs", "heavy", "interrupted")}
    assert answer["found"] == "hangs/hangs"
    assert "did you mean 'hangs'?" in answer["unknown"]["text"]
    assert not answer["torch"]


@pytest.mark.thorough
def test_ctrl_c_during_an_import_is_not_swallowed(hanging_site, tmp_path):
    answer = ask(
        hanging_site,
        tmp_path,
        """
        answer["failure"] = failure(stk.load, "interrupted")
        answer["listed"] = listed(stk.list_models())
    """,
    )
    assert answer["failure"]["type"] == "KeyboardInterrupt"
    assert answer["listed"]["interrupted/interrupted"] == entry("interrupted")


@pytest.mark.thorough
def test_the_order_does_not_depend_on_the_hash_seed(site, tmp_path):
    def answer(seed):
        return ask(
            site,
            tmp_path,
            """
            answer["models"] = [str(item) for item in stk.list_models()]
            answer["solvers"] = [str(item) for item in plugins.list_solvers()]
            answer["ambiguous"] = failure(stk.describe, "contested")
            answer["unknown"] = failure(stk.describe, "contestet")
            answer["parameter"] = failure(stk.load, "good", b=1, a=2, c=3)
            answer["claims"] = failure(stk.load, "claims-score")
            answer["spec"] = stk.describe("claims-score").as_dict()
        """,
            seed,
        )

    first = answer(0)
    assert first["parameter"]["argument"] == "a"
    assert all(answer(seed) == first for seed in (1, 2))


@pytest.mark.thorough
def test_a_good_plugin_is_described_and_loaded(site, tmp_path):
    answer = ask(
        site,
        tmp_path,
        """
        spec = stk.describe("good")
        answer["spec"] = spec.as_dict()
        answer["loaded"] = [stk.load(name).parameters for name in ("good", "good/good", "Good/good")]
        answer["changed"] = stk.load("good", depth=3).parameters
        answer["after"] = dict(spec.parameters)
        answer["shape"] = list(stk.load("shape-on-load").event_shape)
        answer["torch"] = "torch" in sys.modules
    """,
    )
    assert answer["spec"]["name"] == "good"
    assert answer["spec"]["factory"] == "good_module:build"
    assert answer["loaded"] == [{"width": 64, "depth": 2}] * 3
    assert answer["changed"] == {"width": 64, "depth": 3}
    assert answer["after"] == {"width": 64, "depth": 2}
    assert answer["shape"] == [2]
    assert not answer["torch"]


@pytest.mark.thorough
def test_describe_imports_that_plugin_alone(site, tmp_path):
    answer = ask(
        site,
        tmp_path,
        """
        stk.describe("good")
        answer["modules"] = [name for name in sys.modules if name.endswith("_module")]
    """,
    )
    assert answer["modules"] == ["good_module"]


def test_each_broken_plugin_is_recorded_at_its_stage_and_raises_with_its_cause(site, tmp_path):
    answer = ask(
        site,
        tmp_path,
        f"""
        names = {list(BROKEN)!r}
        answer["described"] = [name for name in names if failure(stk.describe, name) is None]
        answer["after-describe"] = listed(stk.list_models())
        answer["raised"] = {{name: failure(stk.load, name) for name in names}}
        answer["listed"] = listed(stk.list_models())
        answer["again"] = failure(stk.load, "import-raises")
        answer["good"] = stk.load("good").parameters
    """,
    )
    at_load = [name for name, (stage, *_) in BROKEN.items() if stage == "load"]
    assert answer["described"] == at_load
    assert all(answer["after-describe"][f"{name}/{name}"] == entry(name) for name in at_load)
    for name, (stage, error, cause) in BROKEN.items():
        raised, (kind, *record, text) = (
            answer["raised"][name],
            answer["listed"].pop(f"{name}/{name}"),
        )
        assert [kind, *record] == ["Broken", name, "1.5", stage], name
        assert text.startswith(error), name
        assert (raised["type"], raised["cause"], raised["traced"]) == (
            "BrokenPlugin",
            cause,
            True,
        ), name
        assert raised["text"].startswith(
            f"plugin {name}/{name} ({name} 1.5) failed at {stage}: {error}"
        ), name
        assert f"pip install --force-reinstall {name}" in raised["text"], name
    assert answer["listed"] == {id: entry(id.partition("/")[0]) for id in HEALTHY}
    assert answer["again"]["cause"] == "RuntimeError"
    assert answer["good"]


def test_the_fix_for_a_newer_interface_is_to_upgrade_scoretk(site, tmp_path):
    answer = ask(site, tmp_path, 'answer["raised"] = failure(stk.describe, "newer")')
    assert "written for a newer scoretk: pip install --upgrade scoretk" in answer["raised"]["text"]


def test_what_the_caller_gives_is_the_callers_fault(site, tmp_path):
    answer = ask(
        site,
        tmp_path,
        """
        answer["misspelt"] = failure(stk.load, "good", widht=32)
        answer["refused"] = failure(stk.load, "refuses", width=-1)
        answer["failed"] = failure(stk.load, "refuses", width=65)
        answer["listed"] = listed(stk.list_models())
    """,
    )
    assert answer["misspelt"]["type"] == "InvalidArgument"
    assert answer["misspelt"]["argument"] == "widht"
    message = "widht: expected a parameter of good/good (did you mean 'width'?), got 32. It takes width, depth"
    assert answer["misspelt"]["text"] == message
    assert answer["refused"]["type"] == "InvalidArgument"
    assert answer["refused"]["argument"] == "width"
    assert (answer["failed"]["type"], answer["failed"]["cause"]) == ("BrokenPlugin", "KeyError")
    assert "loaded with width=65: check these first" in answer["failed"]["text"]
    assert [id for id, (kind, *_) in answer["listed"].items() if kind == "Broken"] == []


@pytest.mark.thorough
def test_a_plugin_that_works_again_is_no_longer_listed_as_broken(site, tmp_path):
    answer = ask(
        site,
        tmp_path,
        """
        import types
        answer["raised"] = [failure(stk.load, name)["type"] for name in ("import-raises", "factory-raises")]
        answer["broken"] = listed(stk.list_models())["import-raises/import-raises"][0]
        good = stk.describe("good")
        mended = stk.ModelSpec(**{**good.as_dict(), "name": "import-raises"})
        sys.modules["import_raises_module"] = types.SimpleNamespace(spec=mended)
        stk.describe("import-raises")
        answer["mended"] = listed(stk.list_models())["import-raises/import-raises"]
        stk.describe("factory-raises")  # works as before, and says nothing about the factory
        answer["described"] = listed(stk.list_models())["factory-raises/factory-raises"][3]
        sys.modules["factory_raises_module"].build = sys.modules["good_module"].build
        stk.load("factory-raises", width=65)  # nor does a success with other parameters
        answer["overridden"] = listed(stk.list_models())["factory-raises/factory-raises"][3]
        stk.load("factory-raises")
        answer["loaded"] = listed(stk.list_models())["factory-raises/factory-raises"]
    """,
    )
    assert answer["raised"] == ["BrokenPlugin", "BrokenPlugin"]
    assert answer["broken"] == "Broken"
    assert answer["mended"] == entry("import-raises")
    assert answer["described"] == "load"
    assert answer["overridden"] == "load"
    assert answer["loaded"] == entry("factory-raises")


@pytest.mark.thorough
def test_verify_takes_all_through_every_stage(site, tmp_path):
    answer = ask(
        site,
        tmp_path,
        """
        answer["before"] = failure(stk.load, "import-raises")["type"]
        items = plugins.verify()
        answer["listed"] = listed(items)
        answer["same"] = items == stk.list_models()
    """,
    )
    broken = {id: item[3] for id, item in answer["listed"].items() if item[0] == "Broken"}
    assert broken == {f"{name}/{name}": stage for name, (stage, *_) in BROKEN.items()}
    assert [id for id, item in answer["listed"].items() if item[0] == "Entry"] == HEALTHY
    assert answer["same"]


def test_a_contested_name_is_ambiguous_and_its_full_ids_are_not(site, tmp_path):
    answer = ask(
        site,
        tmp_path,
        """
        answer["raised"] = [failure(call, "contested") for call in (stk.describe, stk.load, plugins.find_model)]
        answer["one"] = stk.describe("claim-one/contested").summary
        answer["two"] = stk.describe("claim-two/contested").summary
        answer["loaded"] = type(stk.load("claim-two/contested")).__module__
    """,
    )
    for raised in answer["raised"]:
        assert raised["type"] == "AmbiguousName"
        assert "claim-one/contested, claim-two/contested" in raised["text"]
    assert (answer["one"], answer["two"], answer["loaded"]) == ("one", "two", "claim_two_module")


def test_nobody_takes_the_short_name_of_a_built_in(site, tmp_path):
    answer = ask(
        site,
        tmp_path,
        """
        answer["short"] = plugins.find_model("gaussian").id
        answer["full"] = stk.describe("claims-built-in/gaussian").summary
    """,
    )
    assert answer == {"short": "scoretk/gaussian", "full": "not the built-in"}


def test_solvers_are_found_and_isolated_in_the_same_way(site, tmp_path):
    answer = ask(
        site,
        tmp_path,
        """
        answer["listed"] = listed(plugins.list_solvers())
        answer["modules"] = [name for name in sys.modules if name.endswith("_module") or name == "torch"]
        answer["raised"] = {name: failure(plugins.load_solver_class, name)
                            for name in ("raises", "instance", "half", "fancyy", "good")}
        fancy = plugins.load_solver_class("fancy")
        answer["class"] = [fancy.__module__, fancy is plugins.load_solver_class("solver-good/fancy")]
        answer["after"] = listed(plugins.list_solvers())
        answer["models"] = [id for id, item in listed(stk.list_models()).items() if item[0] == "Broken"]
    """,
    )
    assert answer["listed"] == {
        f"{name}/{key}": entry(name) for name, (key, _) in sorted(SOLVERS.items())
    }
    assert answer["modules"] == []
    raised = {name: (got["type"], got["cause"]) for name, got in answer["raised"].items()}
    assert raised == {
        "raises": ("BrokenPlugin", "RuntimeError"),
        "instance": ("BrokenPlugin", "TypeError"),
        "half": ("BrokenPlugin", "TypeError"),
        "fancyy": ("UnknownName", None),
        "good": ("UnknownName", None),
    }
    assert "unknown solver 'fancyy' (did you mean 'fancy'?)" in answer["raised"]["fancyy"]["text"]
    assert (
        "solver_instance_module:spec is of type object, not a solver class"
        in answer["raised"]["instance"]["text"]
    )
    assert "it has no step" in answer["raised"]["half"]["text"]
    assert answer["class"] == ["solver_good_module", True]
    assert answer["after"].pop("solver-good/fancy") == entry("solver-good")
    assert {item[0]: item[3] for item in answer["after"].values()} == {"Broken": "load"}
    assert answer["models"] == []


def test_the_template_is_short():
    files = [path for path in TEMPLATE.rglob("*") if path.is_file() and "egg-info" not in str(path)]
    files = [path for path in files if path.suffix in (".py", ".toml", ".md")]
    assert sum(len(path.read_text().splitlines()) for path in files) < 110
    assert {path.name for path in files} == {
        "pyproject.toml",
        "README.md",
        "__init__.py",
        "spec.py",
        "model.py",
        "kernel.py",
    }


@pytest.mark.thorough
def test_the_template_lists_and_describes_without_torch(template_site, tmp_path):
    answer = ask(
        template_site,
        tmp_path,
        """
        answer["listed"] = listed(stk.list_models())
        answer["spec"] = stk.describe("double-well").as_dict()
        answer["solvers"] = listed(plugins.list_solvers())
        answer["torch"] = "torch" in sys.modules
    """,
    )
    assert answer["solvers"] == {
        "my-scoretk-model/random-walk": ["Entry", "my-scoretk-model", "0.1.0", None, None]
    }
    assert answer["listed"] == {
        "my-scoretk-model/double-well": ["Entry", "my-scoretk-model", "0.1.0", None, None]
    }
    assert answer["spec"]["provides"] == ["energy"]
    assert answer["spec"]["parameters"] == {"barrier": 4.0}
    assert not answer["torch"]


@pytest.fixture(scope="module")
def of_the_template(template_site, tmp_path_factory):
    return ask(
        template_site,
        tmp_path_factory.mktemp("asked"),
        """
        import torch
        field = stk.load("double-well", barrier=2.0)
        x = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
        answer["energy"] = field.energy(x).tolist()
        answer["score"] = field.score(x).tolist()
        answer["shape"] = list(field.event_shape)
        answer["misspelt"] = failure(stk.load, "double-well", barier=2.0)["text"]
        from scoretk.conformance import check_model, check_solver, kit
        from tests.lawful import in_cases
        kit._explore = in_cases
        answer["results"] = [[r.check, r.status, r.detail] for r in check_model("double-well")]
        answer["solver"] = [[r.check, r.status, r.detail] for r in check_solver("my-scoretk-model/random-walk")]
        answer["accept"] = float(stk.sample("double-well", "random-walk", chains=64, steps=20).stats["accept"].mean())
    """,
        timeout=120,
    )


@pytest.mark.thorough
def test_the_template_loads_and_has_its_energy_and_score(of_the_template):
    answer = of_the_template
    assert answer["energy"] == pytest.approx([2.0, 2.0, 2 * 0.5625 + 0.5])
    assert answer["score"][2] == pytest.approx(
        [3.0, 1.0]
    )  # -8 x (x^2 - 1) at x = 1/2, and -y at y = -1
    assert answer["shape"] == [2]
    assert "did you mean 'barrier'?" in answer["misspelt"]


@pytest.mark.thorough
def test_the_template_obeys_the_laws(of_the_template):
    answer = of_the_template
    assert {status for _, status, _ in answer["solver"]} == {"passed"}, answer["solver"]
    assert 0.1 < answer["accept"] < 0.9
    assert [result for result in answer["results"] if result[1] == "failed"] == []
    passed = {check for check, status, _ in answer["results"] if status == "passed"}
    assert {"loads", "claimed", "alone", "gradient", "together", "quiet"} <= passed
