"""The pages of the site: their Python blocks run, and what they say of names, defaults and laws is what the code has."""

import ast
import inspect
import re
import runpy
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from subprocess import run
from unittest import mock

import pytest

import scoretk as stk
from scoretk.cli.parser import make_parser
from scoretk.conformance import CHECKS, SOLVER_CHECKS
from scoretk.inference import asked
from scoretk.solvers.matrix import MEANINGS
from tests.promises import blocks, run_blocks

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {page.name: page.read_text() for page in sorted(DOCS.glob("*.md"))}
ELSEWHERE = {
    "bring-your-own.md": "adapters/test_docs.py",
    "learning.md": "test_learning_docs.py",
    "solvers.md": "test_pages.py",
    "variables.md": "test_variables.py",
}
"""Pages whose blocks another test runs."""
NEEDS = {"many-machines.md": "dask", "pictures.md": "matplotlib"}
"""What the blocks of a page import, beyond what the tests of this package need."""
ELSEWHERE_TESTED = "import ray\n"
"""How a block begins that a test of its own runs, where what it needs is installed (`test_distributed.py`)."""
CHAPTERS = runpy.run_path(str(DOCS / "site" / "chapters.py"))


def rows(text, heading):
    """The cells of the tables below a heading, without their heads."""
    section = re.search(rf"^#+ {heading}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    heads = {i - 1 for i, row in enumerate(cells) if set(row[0]) == {"-"}}
    return [row for i, row in enumerate(cells) if i not in heads and set(row[0]) != {"-"}]


def code(text):
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", text)


def needed(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])


def own_blocks(text):
    return [block for block in blocks(text) if not block.startswith(ELSEWHERE_TESTED)]


OWN = [name for name, text in PAGES.items() if blocks(text) and name not in ELSEWHERE]


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_a_page_runs_as_it_stands(name):
    needed(name)
    run_blocks(name, own_blocks(PAGES[name]))


@pytest.mark.thorough
@pytest.mark.parametrize("name", OWN)
def test_a_page_runs(name):
    """With a tenth of its hundreds of steps, and so short a warmup where it leaves its length open."""
    needed(name)
    text = re.sub(r"\b(steps|warmup)=(\d+)00\b", r"\1=\g<2>0", PAGES[name])
    with mock.patch.object(asked, "DEFAULT_WARMUP", 30):
        run_blocks(name, own_blocks(text))


def test_other_pages_run_elsewhere():
    for page, test in ELSEWHERE.items():
        assert page in (Path(__file__).parent / test).read_text()
    for folder in ("reference", "plugin-template"):
        assert not any(blocks(page.read_text()) for page in (DOCS / folder).glob("*.md"))


def test_every_page_is_in_a_toctree():
    listed = re.findall(r"```{toctree}\n(.*?)```", PAGES["index.md"], re.DOTALL)
    entries = " ".join(listed).split()
    assert {*entries} >= {page.removesuffix(".md") for page in PAGES} - {"index"}
    chapters = re.search(r"```{toctree}\n(.*?)```", (DOCS / "reference/index.md").read_text(), re.S)
    assert chapters[1].split()[1:] == [*CHAPTERS["CHAPTERS"]]


def test_every_page_is_linked_from_the_first():
    """By a link: where the pages are read as files, a toctree is none."""
    linked = {*re.findall(r"\]\(([\w-]+\.md)", PAGES["index.md"])}
    assert linked >= {*PAGES} - {"index.md"}


def test_the_reference_has_every_public_name():
    names = [name for page in CHAPTERS["CHAPTERS"] for name in CHAPTERS["chapter"](page)]
    assert len(names) == len(set(names))
    assert {f"scoretk.{name}" for name in stk.__all__} <= set(names)
    short = {name.rpartition(".")[2] for name in names}
    for module in stk._MODULES:
        assert {*getattr(stk, module).__all__} <= short, module
    for page in CHAPTERS["CHAPTERS"]:
        assert f"```{{public}} {page}\n" in (DOCS / "reference" / f"{page}.md").read_text()
        assert f"```{{names}} {page}\n" in (DOCS / "reference" / "index.md").read_text()


def check_names(text):
    """Every `stk.` in backticks exists; calls of it take these keywords, and are made where they are complete."""
    seen = 0
    for snippet in code(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if not snippet.startswith("stk."):
            continue
        for node in ast.walk(ast.parse(snippet, mode="eval")):
            if re.fullmatch(r"stk(\.\w+)+", ast.unparse(node)):
                eval(ast.unparse(node), {"stk": stk})
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("stk."):
                seen += 1
                thing = eval(ast.unparse(node.func), {"stk": stk})
                given = {word.arg: word.value for word in node.keywords}
                inspect.signature(thing).bind_partial(*node.args, **given)
                values = [*node.args, *given.values()]
                solver = isinstance(thing, type) and thing in {*stk.SOLVERS.values()}
                if solver and all(isinstance(value, ast.Constant) for value in values):
                    eval(ast.unparse(node), {"stk": stk})
    return seen


def test_names_of_other_packages_lead_to_ours():
    assert check_names(PAGES["coming-from.md"]) > 60
    # `.final`, `draws["tau"]`: of what a run gives
    for snippet in code(PAGES["coming-from.md"]):
        for attribute in re.findall(r"^draws\.(\w+)", snippet):
            assert attribute in {*dir(stk.Draws), *stk.Draws.__dataclass_fields__}


@pytest.mark.parametrize("name", sorted({*PAGES} - {"coming-from.md", "design.md", "mutants.md"}))
def test_names_of_a_page_are_ours(name):
    check_names(re.sub(r"`stk\.[^`]*\.\.\.[^`]*`", "", PAGES[name]))


@pytest.mark.parametrize(
    "wrong",
    [
        ('ProbabilityFlow("ddim")', 'ProbabilityFlow("ddpm")'),
        ("stk.log_prob(field, x)", "stk.log_density(field, x)"),
        ("stk.NUTS(accept=0.8, max_depth=10)", "stk.NUTS(accept=0.8, depth=10)"),
        ("stk.grids.karras", "stk.grids.karas"),
        ("leapfrogs=10", "leapfrogs=0"),
    ],
)
def test_a_wrong_name_would_be_found(wrong):
    text = PAGES["coming-from.md"]
    assert wrong[0] in text
    with pytest.raises((AttributeError, TypeError, stk.ScoretkError)):
        check_names(text.replace(*wrong))


def check_choosing(text):
    for name, setting, default in rows(text, "Defaults in one place"):
        parameter = inspect.signature(getattr(stk, name.strip("`"))).parameters[setting.strip("`")]
        told = default.split(",")[0].split(" where")[0]
        if parameter.default is None:
            continue
        assert ast.literal_eval(told) == parameter.default, (name, setting)
    solvers = {*stk.SOLVERS.values()}
    named = {
        getattr(stk, found[1], None)
        for snippet in code(text)
        if (found := re.match(r"(\w+)\b", snippet))
    }
    assert solvers <= named
    for snippet in code(text):
        if re.match(r"[A-Z]\w*\(.*\)$", snippet) and snippet.split("(")[0] in dir(stk):
            eval(snippet, vars(stk) | {name: getattr(stk, name) for name in stk.__all__})


def defaults_by_field():
    """The table's first rows: what `sample` takes where no solver is named."""
    static = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
    timed = stk.smoothed(static)
    discrete = stk.load("ising")
    return {"an energy": static, "discrete states": discrete, "a diffusion or a flow": timed}


def test_defaults_are_those_of_the_code():
    text = PAGES["choosing.md"]
    check_choosing(text)
    table = {row[0]: row[1] for row in rows(text, "Choosing a solver")}
    for kind, field in defaults_by_field().items():
        assert table[kind] == f"`{type(asked.default_solver(field)).__name__}()`"
    with pytest.raises(stk.InvalidArgument):
        asked.default_solver(stk.Score(lambda x: -x, (2,)))
    told = {
        (row[0].strip("`"), row[1].strip("`")): row[2]
        for row in rows(text, "Defaults in one place")
    }
    assert told["sample", "chains"].split(",")[0] == str(asked.DEFAULT_CHAINS)
    assert told["sample", "warmup"].split()[0] == str(asked.DEFAULT_WARMUP)
    assert (
        f"steps a kernel makes after warmup (default {told['sample', 'steps']})"
        in stk.sample.__doc__
    )
    flow = defaults_by_field()["a diffusion or a flow"]
    assert told["ProbabilityFlow", "steps"].startswith(
        f"{len(stk.ProbabilityFlow().times(flow)) - 1},"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        ("| `ChEES` | `accept` | 0.651 |", "| `ChEES` | `accept` | 0.65 |"),
        ("`pilot`", "`pilots`"),
        ("`NUTS(accept=0.95)`", "`NUTS(accept=1.95)`"),
        ('`ProbabilityFlow("dpmpp_2m", steps=8)`', '`ProbabilityFlow("dpmpp", steps=8)`'),
    ],
)
def test_a_wrong_default_would_be_found(wrong):
    assert wrong[0] in PAGES["choosing.md"]
    with pytest.raises((AssertionError, KeyError, stk.ScoretkError)):
        check_choosing(PAGES["choosing.md"].replace(*wrong))


def check_cli(text):
    """The parser takes the lines of the page, which have all commands, with the options and signs that it names."""
    taken = {}
    for line in re.search(r"```\n(.*?)```", text, re.DOTALL)[1].splitlines():
        _, command, *words = shlex.split(line, comments=True)
        taken[command] = vars(make_parser().parse_args([command, *words]))
    assert {*taken} == {"list", "describe", "check", "sample", "fit", "demo", "bench"}
    table, signs = (part.split("\n\n")[0] for part in text.split("|---|---|")[1:])
    options = re.findall(r"^\| (.*?) \| ([a-z, ]+) \|", table, re.MULTILINE)
    assert len(options) > 5
    for names, of in options:
        for name in re.findall(r"`-(?:-([\w-]+)|o)", names):
            for command in of.split(", "):
                assert (name or "output").replace("-", "_") in taken[command], (name, command)
    told = re.findall(r"^\| `(.)` \| (.*) \|$", signs, re.MULTILINE)
    assert {sign: meaning.replace("`", "") for sign, meaning in told} == MEANINGS


def test_the_page_of_the_command_line_is_the_parsers():
    text = PAGES["cli.md"]
    check_cli(text)
    for wrong in (
        ("--family", "--kin"),
        ("scoretk describe", "scoretk tell"),
        ("| `--inverse` | demo |", "| `--inverse` | fit |"),
        ("| `t` | one time", "| `t` | two times"),
    ):
        assert wrong[0] in text
        with pytest.raises((AssertionError, KeyError, SystemExit)):
            check_cli(text.replace(*wrong))


def first(doc):
    return " ".join((doc or "").strip().split("\n\n")[0].split())


def check_glossary(text):
    statuses = rows(text, "Statuses of a chain")
    assert [row[:2] for row in statuses] == [[f"`{s.name}`", str(int(s))] for s in stk.Status]
    source = (ROOT / "scoretk" / "errors.py").read_text()
    for name, _, meaning, _ in statuses[1:]:
        said = re.search(rf'^    {name.strip("`")} = \d\n    """(.*?)"""', source, re.M | re.S)[1]
        assert meaning == first(said)
    kinds = [(name, getattr(stk, name)) for name in stk.__all__]
    assert rows(text, "Errors") == [
        [f"`{name}`", f"`{kind.__bases__[-1].__name__}`", first(kind.__doc__)]
        for name, kind in kinds
        if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    for heading, checks in (("Laws of a model", CHECKS), ("Laws of a solver", SOLVER_CHECKS)):
        laws = [[f"`{check.name}`", " ".join(check.law.split())] for check in checks]
        assert rows(text, heading) == laws


@pytest.mark.parametrize(
    "wrong",
    [
        ("| `DIVERGED` | 2 |", "| `DIVERGED` | 3 |"),
        ("| `UnknownName` | `LookupError` |", "| `UnknownName` | `KeyError` |"),
        (re.search(r"\| `permuted`.*\n", PAGES["glossary.md"])[0], ""),
        ("used up its steps", "used up its evaluations"),
    ],
)
def test_the_glossary_is_the_code(wrong):
    check_glossary(PAGES["glossary.md"])
    assert wrong[0] in PAGES["glossary.md"]
    with pytest.raises(AssertionError):
        check_glossary(PAGES["glossary.md"].replace(*wrong))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_the_picture_of_the_landing_page_is_made():
    made = runpy.run_path(str(DOCS / "pictures" / "landing.py"))["picture"](steps=10, chains=8)
    assert [axes.get_title() for axes in made.axes] == [
        "an energy",
        "a diffusion",
        "a trained flow",
    ]
    assert (DOCS / "pictures" / "landing.png").stat().st_size < 120_000


@pytest.mark.slow
@pytest.mark.skipif(find_spec("sphinx") is None, reason="sphinx is not installed")
def test_the_site_has_every_public_name(tmp_path):
    """A strict build, whose inventory is asked for each name."""
    strict = ["-E", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    run([sys.executable, "-m", "sphinx", *strict], check=True, timeout=600)
    from sphinx.util.inventory import InventoryFile

    with (tmp_path / "objects.inv").open("rb") as file:
        found = InventoryFile.load(file, "", lambda base, uri: uri)
    known = {name for kind, names in found.items() if kind.startswith("py:") for name in names}
    assert CHAPTERS["listed"]() <= known
