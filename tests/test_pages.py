"""The tables of docs/methods.md and docs/solvers.md are what the package has, and their Python blocks run."""

import inspect
import math
import re
from dataclasses import fields
from pathlib import Path

import pytest

import scoretk as stk
from scoretk.fields import operators, paths
from scoretk.fields.convert import PREDICTIONS
from scoretk.fields.posterior import POSTERIOR_METHODS
from scoretk.ode.grids import GRIDS
from scoretk.ode.names import FOREIGN, spelled
from scoretk.ode.registry import every_method
from scoretk.plugins.solvers import SOLVER_PROTOCOL
from scoretk.solvers.base import GridSolver, Solver, Traits, TunedSolver
from scoretk.solvers.reverse_sde import SDE_STEPS

DOCS = Path(__file__).parent.parent / "docs"
METHODS, SOLVERS = ((DOCS / name).read_text() for name in ("methods.md", "solvers.md"))
STEPS = {
    (False, True): "on the grid",
    (True, True): "chosen, each row its own",
    (True, False): "chosen, for the whole batch",
}


def table(page, first, nth=0):
    """The rows of the page's table (the nth, where several are alike) whose head begins with `first`."""
    head = [m.start() for m in re.finditer(rf"^\| {first} \|", page, re.MULTILINE)][nth]
    lines = page[head:].split("\n\n")[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def also_known(name, kind):
    """The names of other packages that mean this method, as they are compared."""
    return {key for key, meant in FOREIGN.items() if getattr(meant, kind) == name} | {spelled(name)}


def names_in(row):
    """Those that the last cell of a row lists, and the name in its first."""
    return {spelled(name) for name in (row[0].strip("`"), *row[-1].split(", ")) if name}


def check_methods(page):
    got = [[*row[:-1], names_in(row)] for row in table(page, "method")]
    assert got == [
        [
            f"`{m.name}`",
            str(m.order),
            str(m.stages),
            STEPS[m.adaptive, m.rowwise],
            m.needs,
            also_known(m.name, "flow"),
        ]
        for m in every_method()
    ]


def check_solvers(page):
    rows = {
        name.strip("`"): (kind, meaning, default)
        for name, kind, meaning, default in table(page, "name")
    }
    own = [set(dir(protocol)) for protocol in (Solver, GridSolver, TunedSolver)]
    public = {name for name in set.union(*own) - set(dir(stk.Energy)) if not name.startswith("_")}
    said = {f.name: f.default for f in fields(Traits)}
    assert set(rows) == public | set(said)
    assert [name for name, row in rows.items() if row[2] == "required"] == list(
        dict.fromkeys(("needs", "timed", "init_cost", "step_cost", "capturable", *SOLVER_PROTOCOL))
    )
    plain = {n: v for n, v in said.items() if v is None or isinstance(v, bool | int | float)}
    assert {n: rows[n][2] for n in plain if plain[n] is None or not math.isnan(plain[n])} == {
        n: repr(v) for n, v in plain.items() if v is None or not math.isnan(v)
    }


def test_the_table_of_methods_is_the_registry():
    check_methods(METHODS)
    rows = [[row[0].strip("`"), names_in(row)] for row in table(METHODS, "method", 1)]
    assert rows == [[name, also_known(name, "sde")] for name in SDE_STEPS]


@pytest.mark.parametrize(
    "wrong",
    [
        ("| `rk4` | 4 |", "| `rk4` | 5 |"),
        ("| ddim, euler discrete |", "| euler discrete |"),
        ("| rk45, ode45 |", "| rk45, ode45, euler a |"),
        ("| `tsit5` | 5 | 6 | chosen, each row its own |", "| `tsit5` | 5 | 6 | on the grid |"),
        (re.search(r"\| `adams_4`.*\n", METHODS).group(), ""),
    ],
)
def test_a_wrong_row_would_be_found(wrong):
    assert wrong[0] in METHODS
    with pytest.raises(AssertionError):
        check_methods(METHODS.replace(*wrong))


def test_defaults_of_paths_and_predictions():
    rows = {name.strip("`"): (path, predicts) for name, path, predicts in table(METHODS, "made by")}
    assert set(rows) == {
        "Diffusion", "from_timesteps", "from_sigmas", "from_reversed_time", "Velocity", "smoothed"
    }  # fmt: skip
    for name, (path, predicts) in rows.items():
        given = inspect.signature(getattr(stk, name)).parameters
        if "predicts" in given:
            assert predicts == f'"{given["predicts"].default}"'
        if "path" in given and given["path"].default is not None:
            assert path == f"`{given['path'].default!r}`"
    assert rows["from_sigmas"][0] == f"`{stk.from_sigmas(lambda x, s: x, (2,)).path!r}`"
    timesteps = stk.from_timesteps(lambda x, k: x, [0.9, 0.5, 0.1], (2,))
    assert isinstance(timesteps.path, stk.Tabulated)
    for made in (stk.from_reversed_time, stk.Velocity):
        assert made(lambda x, t: x, (2,)).path == stk.Linear()
        assert rows[made.__name__][0].startswith("`Linear()`")


def test_names_are_all_listed():
    listed = {row[0].strip("`") for row in table(METHODS, "method", 2)}
    assert listed == set(POSTERIOR_METHODS)
    for name in {*paths.__all__} - {"GaussianPath", "PathPoint", "check_path"}:
        assert f"`{name}`" in METHODS
    shown = " ".join(row[0] for row in table(METHODS, "operator"))
    assert set(re.findall(r"`(\w+)`", shown)) == {
        *operators.__all__
    } - {"LinearGaussian", "value_and_pullback"}  # fmt: skip
    for name in (*GRIDS, *PREDICTIONS):
        assert f'"{name}"' in METHODS


def test_the_table_of_a_solver_is_the_protocols():
    check_solvers(SOLVERS)
    for wrong in (("| `island` |", "| `isle` |"), ("| True |\n| `temp", "| False |\n| `temp")):
        assert wrong[0] in SOLVERS
        with pytest.raises(AssertionError):
            check_solvers(SOLVERS.replace(*wrong))


def blocks():
    return re.findall(r"```python\n(.*?)```", SOLVERS, re.DOTALL)


def test_the_kernel_of_the_page_is_tuned():
    names: dict = {}
    exec(compile(blocks()[0], "docs/solvers.md", "exec"), names)
    assert 1.3 < float(names["draws"].tuned["step_size"]) < 2.1
    assert abs(float(names["draws"].stats["accept"].mean()) - 0.35) < 0.05


@pytest.mark.slow
def test_the_page_of_solvers_runs():
    names: dict = {}
    for block in blocks():
        exec(compile(block, "docs/solvers.md", "exec"), names)
    failing = names["failed"](names["check_solver"](names["TunedWalk"]()))
    assert failing == []
