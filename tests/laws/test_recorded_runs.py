"""Draws and a short run of every solver are what they were (`tests/recorded.py`).

Longer runs are no records: after a warmup the rounding of another processor has made another chain of the same law.
"""

import pytest
import torch

import scoretk as stk
from scoretk.solvers import EXAMPLES
from tests.laws.test_rows_alone import D
from tests.recorded import drawn, or_error, recorded


def network(x, t):
    return torch.sin(3 * x) * (1 + t)[:, None]


def energy(x):
    return ((x / torch.tensor([0.3, 1.0, 2.5]).to(x)) ** 2 / 2 + torch.cos(2 * x)).sum(1)


WELL = stk.Energy(energy, (D,))


def prior(path=None):
    return stk.Diffusion(network, (D,), path or stk.VP(), "noise")


DRAWS = {
    "all": drawn,
    "last": lambda: drawn(keep="last"),
    "moments": lambda: drawn(keep="moments", steps=40),
    "one": lambda: drawn()["tau"],
    "some chains": lambda: drawn()[[0, 2]],
    "joined": lambda: stk.concatenate([drawn(chains=range(2)), drawn(chains=range(2, 5))]),
    "read again": lambda: drawn(keep="last", chains=3),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws(name):
    made = DRAWS[name]()
    if isinstance(made, torch.Tensor):
        return recorded(f"draws {name}", made)
    names = (
        "ok",
        "failures",
        "kept",
        "variables",
        "moments",
        "divergent",
        "cost",
        "stats",
        "final",
        "status",
    )
    parts = {
        n: or_error(lambda n=n: (lambda v: v() if callable(v) else v)(getattr(made, n)))
        for n in names
    }
    told = (
        repr(made),
        len(made),
        "mu" in made,
        "nu" in made,
        or_error(lambda: str(made.summary())),
        or_error(made.summary),
    )
    frame = or_error(
        lambda: (lambda f: (list(f.columns), f.to_numpy(float)))(made.to_pandas().reset_index())
    )
    recorded(
        f"draws {name}",
        (parts, told, frame, or_error(lambda: made["nu"]), or_error(made._repr_html_)),
    )


EXAMPLES = {name: solver for name, solver in EXAMPLES.items() if "states" not in solver.needs}


MEASURED = stk.posterior(prior(), stk.LinearGaussian(torch.eye(D), torch.ones(D), 0.7))


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    """Of every solver a whole run, with all that is told of it."""
    solver = EXAMPLES[name]
    static = solver.timed is False
    run = {"chains": 8, "dtype": torch.float64} | (
        {"steps": 6} if static and not grid_of(solver) else {}
    )
    made = or_error(lambda: stk.sample(WELL if static else MEASURED, solver, **run))
    draws = made[0] if isinstance(made[0], stk.Draws) else made
    parts = [
        getattr(draws, n, None) for n in ("x", "final", "stats", "cost", "status", "failed_at")
    ]
    recorded(f"example {name}", (parts, repr(draws), made[1]))


def grid_of(solver):
    return callable(getattr(solver, "milestones", None))
