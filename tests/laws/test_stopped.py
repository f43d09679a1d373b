"""A run that is stopped anywhere goes on to the same draws, and a saved file that says one thing otherwise is refused."""

import math
from contextlib import nullcontext

import pytest
import torch

import scoretk as stk
from scoretk.solvers import EXAMPLES
from scoretk.solvers.base import adapts, is_grid
from tests.laws.test_running import TUNES
from tests.recorded import leaves

D, MANY = 3, 10**6
SCALES = torch.tensor([0.5, 1.0, 2.0])


class Gone(Exception):
    """What ends a run."""


def counted(function, left):
    """A function that is gone once it has been called so often; how often it was is taken off `left`."""

    def called(x, *t):
        left["calls"] -= 1
        if left["calls"] < 0:
            raise Gone("said so")
        return function(x, *t)

    return called


def well(x):
    u = x / SCALES.to(x)
    return (u.square() / 2 + torch.cos(2 * u) / 4).sum(1) + u[:, 0] * u[:, 2] / 4


def wave(x, t):
    return torch.sin(2 * x) * (1 + t)[:, None]


class Spins:
    """Sites of two values, with sweeps and clusters."""

    event_shape, states, gibbs_shape = (D,), (-1.0, 1.0), (D,)
    couplings = stk.Couplings(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([0.5, 0.9]))

    def __init__(self, left):
        self._ask = counted(lambda x: -(x[:, 0] * x[:, 1] / 2 + 0.9 * x[:, 1] * x[:, 2]), left)

    def energy(self, x):
        return self._ask(x)

    def gibbs(self, x, u):
        self._ask(x)
        return torch.where(u < 0.6, 1.0, -1.0)


def field_for(solver, left):
    """A field that the solver serves, whose function can be called so often."""
    if "states" in solver.needs:
        return Spins(left)
    if solver.timed is False:
        return stk.Energy(counted(well, left), (D,))
    prior = stk.Diffusion(counted(wave, left), (D,), stk.VP(), "noise")
    return stk.posterior(prior, stk.LinearGaussian(torch.eye(D), torch.ones(D), 0.7))


TUNED = {f"{name}, tuned": s for name, s in TUNES.items()} | {"nuts, tuned": stk.NUTS(max_depth=2)}
ALL = {name: solver for name, solver in EXAMPLES.items() if name not in TUNES} | TUNED
LATER = ("mala, tuned", "chees, tuned", "discrete-langevin, tuned", "parallel-tempering, tuned")
WHERE = [(name, 0.3) for name in ALL] + [(name, 0.8) for name in LATER]
KEEPS = ("all", "moments", "last")
CASES = [
    pytest.param(name, share, KEEPS[i % 3], bool(i % 2), id=f"{name} at {share}")
    for i, (name, share) in enumerate(WHERE)
]


@pytest.mark.parametrize(("name", "share", "keep", "folder"), CASES)
def test_a_run_that_is_stopped_goes_on_to_the_same_draws(
    tmp_path, monkeypatch, name, share, keep, folder
):
    """In warmup, after it and on a grid, of one batch of two, in a file and in a folder: to the bit, with all that is told."""
    monkeypatch.setattr("scoretk.run.batches.BLOCK_SECONDS", 0.0)  # of as few steps as can be
    solver = ALL[name]
    size = getattr(solver, "island", 2)
    steps = {} if is_grid(solver) else {"steps": 9, "warmup": 18 * adapts(solver), "thin": 2}

    def run(field, **where):
        with stk.distributed() if folder and where else nullcontext():
            return stk.sample(
                field, solver, chains=2 * size, batch=size, keep=keep, seed=4, **steps, **where
            )

    left = {"calls": MANY}
    straight = run(field_for(solver, left))
    left["calls"] = math.ceil(share * (MANY - left["calls"]))
    field = field_for(solver, left)
    with pytest.raises(Gone):
        run(field, checkpoint=tmp_path / "run")
    left["calls"] = MANY
    found = run(field, checkpoint=tmp_path / "run")
    for part in (*PARTS, *(["x"] if keep != "moments" else [])):
        told, expected = (leaves(in_order(getattr(draws, part))) for draws in (found, straight))
        for (text, value, _), (words, values, _) in zip(told, expected, strict=True):
            assert text == words, part
            assert torch.equal(value.nan_to_num(7.0), values.nan_to_num(7.0)), part


PARTS = (
    *("final", "status", "failed_at", "chains", "stats", "tuned", "cost"),
    *("mean", "var", "half_mean", "half_var", "half_draws"),
)


def in_order(value):
    return dict(sorted(value.items())) if isinstance(value, dict) else value
