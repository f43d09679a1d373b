"""One suite for CPU and GPU: `pytest --device cuda`. Statistical tests run in float64 unless they test a dtype."""

import gc
import os
from unittest import mock

# Tests run side by side: more threads than cores would only wait for one another, and those of
# NumPy's and scikit-learn's libraries wait by spinning (a fit of a classifier took six times as
# long). Before any of them is imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="the torch device that the tests run on")


def pytest_sessionstart():
    """Collection makes a million objects that stay: without this they are looked through again and again, then and later."""
    gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def fewer_cases(monkeypatch):
    """Laws are held in the few cases that do for right models of ours (`tests/lawful.py`)."""
    from scoretk.conformance import kit
    from tests.lawful import in_cases

    monkeypatch.setattr(kit, "_explore", in_cases)


@pytest.fixture(scope="session")
def compiler_begun():
    """The compiler has traced something, and with it looked up, by their names, the functions that it knows."""
    traced = torch.compile(lambda x: x + torch.compiler.is_compiling(), backend="eager")
    assert traced(torch.zeros(())) == 1


@pytest.fixture
def as_traced(compiler_begun, monkeypatch):
    """`as_traced(True)`: the package takes the ways that it takes in what the compiler traces.

    A compiler that began with the function replaced would not know the right one in any later test of the process.
    """
    return lambda answer: monkeypatch.setattr(torch.compiler, "is_compiling", lambda: answer)


@pytest.fixture(scope="module")
def coarse_pictures():
    """Figures are saved with few pixels: drawing the demo's takes longer than the runs of its tests."""
    from matplotlib.figure import Figure

    save = Figure.savefig
    with mock.patch.object(Figure, "savefig", lambda figure, to, **_: save(figure, to, dpi=20)):
        yield


def pytest_collection_modifyitems(items):
    """Slow tests have half an hour, where they do not say other: machines differ, and so does what else they do."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(autouse=True)
def global_rng_untouched():
    """A law of the package, held in every test: nothing reads or writes torch's global generator."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(torch.random.get_rng_state(), before), "the global RNG was touched"
