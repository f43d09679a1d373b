"""Numbers among a solver's settings are data to its steps: a graph takes them as tensors, and serves all their values."""

import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import pytest
import torch
from torch.utils._pytree import tree_leaves

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.fields.resolve import resolve
from scoretk.fields.states import uniform_states
from scoretk.run.capture import compiled_for, on_data
from scoretk.solvers.base import as_data, is_grid, traits
from scoretk.solvers.warmup.tuned import Before, Tuned
from tests.laws.test_settings import SETTINGS, SITES, STATIC, TIMED, D, N

LENGTHS = {"leapfrogs"}
"""How often something is done one after another within a step, which is what a graph is of."""
STRUCTURE = {"method", "metric", "integrator", "rule", "adjusted", "adjoint", *LENGTHS}


def captured(solver):
    return solver.capturable or traits(solver).capturable_as_loop


CAPTURED = [(s, some) for s, some in SETTINGS if captured(s)]
CLIPPED = stk.ULA(0.3, 0.5, clip=0.5, box=(-0.5, 0.5))


def begun(solver, dtype):
    field = SITES if "states" in solver.needs else TIMED if solver.timed is not False else STATIC
    noise = Noise(5, N, dtype=dtype)
    bound = resolve(field, solver.needs, timed=solver.timed)
    x = (
        uniform_states(SITES.states, (D,), noise)
        if field is SITES
        else noise.normal(0, Stream.START, (D,))
    )
    return bound, solver.init(bound, traits(solver).start(bound, x, noise), noise), noise


def stepped(solver, bound, state, noise):
    found = []
    for _ in range(2):
        state, info = solver.step(bound, state, noise)
        found += [v for v in tree_leaves((tuple(state), info)) if isinstance(v, torch.Tensor)]
    return found


@pytest.mark.parametrize("solver", [CLIPPED, *(s for s, _ in CAPTURED)], ids=repr)
def test_a_step_takes_its_numbers_as_tensors(solver):
    """The dtypes stay, as a tensor without an axis has no say in them."""
    bound, state, noise = begun(solver, torch.float32)
    numbers, tensors = (stepped(s, bound, state, noise) for s in (solver, fed(solver)))
    for one, other in zip(tensors, numbers, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def all_of(solver, bound, state, noise):
    """The steps of a whole grid, or two."""
    count = len(solver.milestones(bound)) - 1 if is_grid(solver) else 2
    found = []
    for _ in range(count):
        state, info = solver.step(bound, state, noise)
        found += [v for v in tree_leaves((tuple(state), info)) if isinstance(v, torch.Tensor)]
    return found


@pytest.mark.parametrize("solver", [CLIPPED, *(s for s, _ in CAPTURED)], ids=repr)
def test_a_step_as_the_compiler_traces_it_is_the_step(solver, as_traced):
    """What is written twice, for graphs and for eager steps, is the same: numbers of a table, noise, loops, checks."""
    bound, state, noise = begun(solver, torch.float64)
    eager = all_of(solver, bound, state, noise)
    as_traced(True)
    bound, state, noise = begun(solver, torch.float64)
    for one, other in zip(all_of(solver, bound, state, noise), eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)


AHEAD = [s for s, _ in SETTINGS if traits(s).capturable_ahead is not None]


@pytest.mark.parametrize("solver", AHEAD, ids=repr)
def test_steps_whose_length_is_known_ahead_are_the_steps(solver):
    """Each from where the one before has led; several, since lengths differ from step to step."""
    bound, state, noise = begun(solver, torch.float64)
    kind_at = traits(solver).capturable_ahead(state)
    kinds = {kind_at(i) for i in range(6)}
    assert len(kinds) > 1, "steps of one length show nothing"
    for i in range(6):
        found = kind_at(i).step(bound, state, noise)
        state, info = solver.step(bound, state, noise)
        for one, other in zip(tree_leaves(found), tree_leaves((state, info)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)


def fed(solver):
    """The solver as a graph has it."""
    return on_data(solver, torch.device("cpu"))


@pytest.mark.parametrize(("solver", "some"), CAPTURED, ids=lambda v: repr(v)[:40])
def test_a_graph_is_for_all_numbers(solver, some):
    """Whatever is not the kind of a step, nor how long it is, may have another value in the same graph."""
    _, state, _ = begun(solver, torch.float64)
    for name, value in some.items():
        other = replace(solver, **{name: value})
        same = compiled_for(other, state) == compiled_for(solver, state)
        assert same is (name in as_data(solver)), name


def test_every_number_of_every_captured_solver_is_data():
    for solver, _ in CAPTURED:
        names = {f.name for f in fields(solver) if f.init} - STRUCTURE
        assert names == set(as_data(solver)) - STRUCTURE, solver


def test_what_another_run_has_tuned_is_data_too():
    tuned = Tuned(stk.MALA(), {"step_size": torch.tensor(0.1)}, Before(0, 0, torch.zeros(0)))
    assert isinstance(
        fed(tuned).temperature, torch.Tensor
    )  # the kernel's own step: one graph serves both
    assert tuned.solver.temperature == 1.0


@dataclass(frozen=True)
class Rooted(stk.ULA):
    """A subclass with a step of its own, which takes numbers alone."""

    def step(self, field, state, noise):
        return stk.ULA(math.sqrt(self.step_size)).step(field, state, noise)


def test_a_step_of_a_subclass_has_its_numbers_as_they_are():
    assert as_data(Rooted(0.1)) == ()
    assert fed(Rooted(0.1)).step_size == 0.1
    test_a_step_takes_its_numbers_as_tensors(Rooted(0.1))


@dataclass(frozen=True)
class Wide(stk.ULA):
    """The mutant: a setting that gets an axis takes a state of float32 along."""

    as_data: ClassVar = ("step_size",)

    def step(self, field, state, noise):
        size = torch.as_tensor(self.step_size).reshape(1)
        return state._replace(x=state.x + size * state.score, step=state.step + 1), {}


@dataclass(frozen=True)
class Forgetful(stk.ULA):
    """The mutant: a step that takes a tensor for a setting that was not given."""

    as_data: ClassVar = ("temperature",)

    def step(self, field, state, noise):
        given = self.temperature if isinstance(self.temperature, float) else 1.0
        return stk.ULA(self.step_size, given).step(field, state, noise)


@pytest.mark.parametrize("mutant", [Wide(0.1), Forgetful(0.3, 2.0)], ids=repr)
def test_a_step_that_does_not_take_tensors_is_found(mutant):
    with pytest.raises(AssertionError):
        test_a_step_takes_its_numbers_as_tensors(mutant)
