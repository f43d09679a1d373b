"""What is told of models and solvers is what it was (`tests/recorded.py`)."""

import contextlib
import importlib
import inspect
import pkgutil

import pytest

import scoretk as stk
from scoretk import diagnostics, grids, learn
from tests.recorded import recorded


@pytest.mark.parametrize("name", sorted(stk.solvers.EXAMPLES))
def test_solvers_described(name):
    recorded(f"solver {name}", (stk.describe_solver(name), stk.describe_solver(name).as_dict()))


def test_examples():
    """One setting of each solver, which the demo, benchmarks and tables show."""
    recorded("examples", {name: repr(solver) for name, solver in stk.solvers.EXAMPLES.items()})


def test_plugins_listed():
    listed = [(e.id, getattr(e, "summary", "")) for e in (*stk.list_models(), *stk.list_solvers())]
    recorded("listed", listed)


@pytest.mark.parametrize("name", [e.id for e in stk.list_models()])
def test_models_described(name):
    spec = stk.describe(name)
    recorded(
        f"model {name}",
        {
            n: getattr(spec, n)
            for n in ("name", "family", "provides", "event_shape", "summary", "parameters")
        },
    )


def signatures(room):
    """Every public name of a room with its parameters, and of a class those of its public methods."""
    found = {}
    for name in sorted(room.__all__):
        made = getattr(room, name)
        if not callable(made) or (isinstance(made, type) and issubclass(made, Exception)):
            continue
        methods = vars(made) if isinstance(made, type) else {}
        asked = {name: made} | {
            f"{name}.{n}": m for n, m in methods.items() if n[0] != "_" and inspect.isfunction(m)
        }
        for key, what in asked.items():
            with contextlib.suppress(TypeError, ValueError):
                taken = inspect.signature(what).parameters.values()
                found[key] = {p.name: (p.default, p.kind.name) for p in taken}
    return found


@pytest.mark.parametrize(
    "room", [stk, learn, diagnostics, grids, stk.plot], ids=lambda room: room.__name__
)
def test_defaults(room):
    """What is done where nothing is said stays, or changes with intent."""
    recorded(f"defaults of {room.__name__}", signatures(room))


ROOMS = ("core", "fields", "inference", "learn", "ode", "run", "solvers")


@pytest.mark.parametrize("room", ROOMS)
def test_numbers_that_are_taken_where_none_is_said(room):
    """Of all that one module asks of another: tolerances, counts and sizes."""
    package, numbers = importlib.import_module(f"scoretk.{room}"), {}
    for module in pkgutil.walk_packages(package.__path__, f"scoretk.{room}."):
        if module.name.endswith("noise_kernel"):
            continue  # needs Triton
        part = importlib.import_module(module.name)
        for name in sorted(getattr(part, "__all__", ())):
            made = getattr(part, name)
            if inspect.isfunction(made) and made.__module__ == module.name:
                for p in inspect.signature(made).parameters.values():
                    if isinstance(p.default, int | float):
                        numbers[f"{module.name}.{name}({p.name})"] = str(p.default)
    assert numbers
    recorded(f"numbers of {room}", numbers)
