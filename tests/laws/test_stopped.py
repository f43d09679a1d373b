"""A run that is stopped anywhere goes on to the same draws, and a saved file that says one thing otherwise is refused."""

import math
import os
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch

import scoretk as stk
from scoretk import learn
from scoretk.core.sealed import read_sealed, write_sealed
from scoretk.errors import CheckpointError
from scoretk.solvers import EXAMPLES
from scoretk.solvers.base import adapts, is_grid
from tests.laws.test_running import TUNES
from tests.recorded import leaves, recorded

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


@pytest.fixture(autouse=True)
def written_soon(monkeypatch):
    """No disk is waited for."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


ALL = {name: solver for name, solver in EXAMPLES.items() if name not in TUNES} | TUNED
LATER = ("mala, tuned", "parallel-tempering, tuned")
# blocks end at multiples of eight steps: within warmup, before the first block's end, and after warmup
AT = dict.fromkeys(TUNED, 0.5) | {
    "split-gibbs": 0.3  # later calls are a look at derivatives, which outlives a failure
}
WHERE = [(name, AT.get(name, 0.4)) for name in ALL]
WHERE += [(name, share) for share in (0.2, 0.8) for name in LATER]
KEEPS = ("all", "moments", "last")
CASES = [
    pytest.param(name, share, KEEPS[i % 3], bool(i % 2), id=f"{name} at {share}")
    for i, (name, share) in enumerate(WHERE)
]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("kept", [{}, {"checkpoint": "run"}, {"keep": "store.zarr"}])
def test_who_stops_a_run_is_told_what_is_kept_of_it(tmp_path, error, kept):
    def energy(x):
        left[0] -= 1
        if left[0] == 0:
            raise error
        return x.square().sum(1) / 2

    left, kept = [50], {name: tmp_path / file for name, file in kept.items()}
    kept |= {"keep": stk.Zarr(kept["keep"])} if "keep" in kept else {}
    with pytest.raises(error) as stopped:
        stk.sample(stk.Energy(energy, (2,)), stk.MALA(0.3), chains=2, steps=100, **kept)
    (*_, told) = ["", *getattr(stopped.value, "__notes__", ())]
    if "checkpoint" in kept:
        assert told.startswith("The run so far is in")
    elif error is KeyboardInterrupt:
        assert "With checkpoint=path" in told
    else:
        assert "checkpoint" not in told


@pytest.mark.parametrize(("name", "share", "keep", "folder"), CASES)
def test_a_run_that_is_stopped_goes_on_to_the_same_draws(
    tmp_path, monkeypatch, name, share, keep, folder
):
    """In warmup, after it and on a grid, of one batch of two, in a file and in a folder: to the bit, with all that is told."""
    monkeypatch.setattr("scoretk.run.batches.BLOCK_SECONDS", 0.0)  # of as few steps as can be
    solver = ALL[name]
    size = getattr(solver, "island", 2)
    steps = {} if is_grid(solver) else {"steps": 8, "warmup": 12 * adapts(solver), "thin": 2}

    def run(field, path):
        with stk.distributed() if folder else nullcontext():
            return stk.sample(
                field,
                solver,
                chains=(1 + (folder or is_grid(solver))) * size,
                batch=size,
                keep=keep,
                seed=4,
                checkpoint=path,
                **steps,
            )

    left = {"calls": MANY}
    straight = run(field_for(solver, left), tmp_path / "straight")
    left["calls"] = math.ceil(share * (MANY - left["calls"]))
    field = field_for(solver, left)
    with pytest.raises(Gone):
        run(field, tmp_path / "run")
    left["calls"] = MANY
    found = run(field, tmp_path / "run")
    for part in (*PARTS, *(["x"] if keep != "moments" else [])):
        assert_same(*(in_order(getattr(draws, part)) for draws in (found, straight)), part)
    for (name, *file), (its_name, *its_file) in zip(
        in_files(tmp_path / "run"), in_files(tmp_path / "straight"), strict=True
    ):
        assert name == its_name
        assert_same(file, its_file, name)


def assert_same(one, other, what):
    """All texts and all bits."""
    for (text, value, _), (words, values, _) in zip(leaves(one), leaves(other), strict=True):
        assert text == words, what
        assert torch.equal(value.nan_to_num(7.0), values.nan_to_num(7.0)), what


def in_files(path):
    """The name, the tensors and the header of each file of a checkpoint, without what a run has changed."""
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        kind = file.name.partition("-")[0].partition(".")[0] if path.is_dir() else "run"
        tensors, header = read_sealed(file, kind)
        del header["identity"]
        yield kind, tensors, header


PARTS = (
    *("final", "status", "failed_at", "chains", "stats", "tuned", "cost"),
    *("mean", "var", "half_mean", "half_var", "half_draws"),
)


def in_order(value):
    return dict(sorted(value.items())) if isinstance(value, dict) else value


def otherwise(tensors, header):
    """Each way in which one part of a file is not what it was: what is told of it, and the parts."""
    for name, value in tensors.items():
        less = {n: v for n, v in tensors.items() if n != name}
        yield f"without {name}", less, header
        wide = value.double() if value.dtype != torch.float64 else value.float()
        yield f"{name} of another type", less | {name: wide}, header
        if value.ndim and len(value):
            yield f"{name} with a row less", less | {name: value[1:]}, header
        if not value.is_floating_point():
            yield f"{name} of 99", less | {name: torch.full_like(value, 99)}, header
    for at in places(header):
        yield f"without {'.'.join(at)}", tensors, changed(header, at)
        for odd in ("no such",) if "settings" in at else (None, "no such"):
            yield f"{'.'.join(at)} of {odd!r}", tensors, changed(header, at, odd)
    yield "another entry", tensors, header | {"other": 1}


def places(header, deep=2):
    """The ways to all entries, and to those within them."""
    for key, value in header.items():
        yield (key,)
        if isinstance(value, dict) and deep > 1 and key != "provenance":
            yield from ((key, *rest) for rest in places(value, deep - 1))


def changed(header, at, *value):
    """A header with another value of one entry, or without it."""
    key, *rest = at
    own = dict(header)
    if rest:
        own[key] = changed(own[key], rest, *value)
    elif value:
        own[key] = value[0]
    else:
        del own[key]
    return own


def answered(ask, what):
    """The error and what it says, without what torch and Python say; None where there is none."""
    try:
        ask()
    except stk.ScoretkError as error:
        own = any(word in what for word in ("settings", "identity", "made", "structure"))
        said = re.sub(r"(state_dict|Invalid).*", "", str(error))
        return type(error).__name__, "" if own else said
    return None


def named():
    space = {"mu": (2,), "tau": stk.Variable((), torch.distributions.constraints.positive)}
    field = stk.Energy(lambda mu, tau: mu.square().sum(1) / 2 + tau, variables=space)
    return field, stk.MALA(), {"chains": 3, "steps": 6, "warmup": 4, "keep": "all"}


DRAWN = {
    "all": lambda: stk.sample(named()[0], named()[1], **named()[2]),
    "moments": lambda: stk.sample(
        stk.Energy(well, (D,)), stk.ULA(0.1), chains=3, steps=6, keep="moments"
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_draws_that_say_one_thing_otherwise_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)  # as a long path is told in part
    path = DRAWN[name]().save("draws.safetensors")
    parts, told = read_sealed(path, "draws"), {}
    for what, tensors, header in otherwise(*parts):
        write_sealed(path, "draws", tensors, header)
        told[what] = answered(lambda: stk.Draws.load(path), what)
    recorded(f"saved: draws, {name}", told)


def tuned_run(path, **more):
    run = {"chains": 4, "steps": 6, "warmup": 12, "seed": 2, "batch": 4, "checkpoint": path}
    return stk.sample(stk.Energy(well, (D,)), stk.MALA(), **run | more)


def fitted(path):
    recipe = learn.Recipe(4, 4, decay=0.5, held_out=0.25)
    module = torch.nn.utils.skip_init(torch.nn.Linear, D, 1)
    with torch.no_grad():
        for value in module.parameters():
            value.fill_(0.5)
    rows = torch.arange(24.0).reshape(8, D) / 24
    return learn.fit(
        module, lambda x, g: (module(x) - 1).square().mean(1), rows, recipe, checkpoint=path
    )


SAVED = {
    "a run that keeps all": ("run", tuned_run, "record"),
    "a run that keeps moments": ("run", partial(tuned_run, keep="moments"), ""),
    "a training": ("fit", fitted, ""),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_checkpoint_that_says_one_thing_otherwise_is_refused(tmp_path, monkeypatch, name):
    """And left as it is."""
    monkeypatch.chdir(tmp_path)
    (kind, ask, about), path = SAVED[name], Path("saved")
    ask(path)
    parts, told = read_sealed(path, kind), {}
    for what, tensors, header in otherwise(*parts):
        if about in what:
            write_sealed(path, kind, tensors, header)
            before = path.read_bytes()
            told[what] = answered(lambda: ask(path), what)
            assert told[what] is None or path.read_bytes() == before
    recorded(f"saved: {name}", told)


@pytest.mark.parametrize("folder", [False, True])
def test_a_run_that_was_made_longer_is_a_longer_one(tmp_path, folder):
    """In a file or a folder it is read again as it is, and one of fewer steps is refused, be it the first or not."""

    def run(steps):
        with stk.distributed() if folder else nullcontext():
            return tuned_run(tmp_path / "run", steps=steps, batch=2)

    first, longer = run(6), run(14)
    assert torch.equal(longer.x[:, :6], first.x)
    assert torch.equal(run(14).x, longer.x)
    steps = {header["settings"]["steps"] for _, _, header in in_files(tmp_path / "run")}
    assert steps == {14}
    for steps in (6, 10):
        with pytest.raises(CheckpointError, match="not shortened"):
            run(steps)
    assert torch.equal(run(14).x, longer.x)
