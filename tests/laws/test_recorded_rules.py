"""Grids, ODE methods and their names are what they were (`tests/recorded.py`)."""

from functools import partial

import pytest
import torch

import scoretk as stk
from scoretk import grids
from scoretk.ode.names import FOREIGN
from scoretk.ode.registry import every_method
from tests.laws.test_fields import ALL_PATHS
from tests.laws.test_rows_alone import D, X
from tests.recorded import or_error, recorded

ENDS = torch.tensor([0.0, 1e-3, 0.2, 0.45, 0.7, 0.999, 1.0], dtype=torch.float64)


def network(x, t):
    return torch.sin(3 * x) * (1 + t)[:, None]


@pytest.mark.parametrize("path", ALL_PATHS, ids=lambda p: type(p).__name__)
def test_grids(path):
    kinds = ("cosine", "edm", "karras", "log_snr", "logistic", "uniform", None, GIVEN)
    found = [or_error(lambda k=k: grids.grid(k, path, 6)) for k in kinds]
    recorded(f"grids {path!r}", (found, grids.levels(path, ENDS[1:-1])))


@pytest.mark.parametrize("path", ALL_PATHS, ids=lambda p: type(p).__name__)
def test_grids_of_few_steps(path):
    """As few as there can be, and fewer, where the ends are steps of their own."""
    kinds = ("cosine", "edm", "karras", "log_snr", "logistic", "uniform", None)
    for kind in kinds:
        found = [or_error(lambda k=kind, n=n: grids.grid(k, path, n)) for n in (1, 2, 3)]
        recorded(f"grids of few steps {path!r} {kind}", found)
    levels = [or_error(lambda n=n: grids.table(path, (3.0, 1.0, 0.5), n)) for n in (None, 1, 2, 5)]
    recorded(f"tables of few steps {path!r}", levels)


GIVEN = (0.0, 0.3, 0.6, 1.0)


METHODS = [method.name for method in every_method() if not method.adaptive]
"""Whether an adaptive step is taken hangs on rounding where its error is at the limit."""


def prior(path=None):
    return stk.Diffusion(network, (D,), path or stk.VP(), "noise")


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    method = next(m for m in every_method() if m.name == name)
    options = {"steps": 3}
    found = {}
    for path in (stk.VP(), stk.Linear(), stk.VE(0.02, 9.0)):
        solver = or_error(lambda: stk.ProbabilityFlow(name, **options))[0]
        if isinstance(solver, stk.ProbabilityFlow):
            run = partial(stk.sample, prior(path), solver, chains=3, dtype=torch.float64)
            found[repr(path)] = or_error(lambda run=run: (run().final, run().cost))
    back = or_error(lambda: stk.encode(prior(), X, method=name, **options).x)
    recorded(f"method {name}", (method[2:], found, back))


def test_names_of_methods():
    recorded("names of methods", {name: tuple(meant) for name, meant in sorted(FOREIGN.items())})
