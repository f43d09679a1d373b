"""No setting is ignored: another value of it makes other steps, another grid, or another way to learn."""

from dataclasses import dataclass, fields, replace
from functools import cache

import pytest
import torch
from torch.utils._pytree import tree_leaves

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.fields.base import NormalBase
from scoretk.fields.resolve import resolve
from scoretk.fields.states import uniform_states
from scoretk.solvers.base import is_grid, traits
from scoretk.solvers.importance import Ladder
from tests.recorded import recorded

N, D = 4, 3
SCALES = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)


def energy(x):
    return ((x / SCALES.to(x)) ** 2 / 2 + torch.cos(2 * x)).sum(1)


STATIC = stk.Energy(energy, (D,))
SITES = stk.Discrete(STATIC, (-1.0, 0.5, 2.0))
TIMED = stk.posterior(
    stk.Diffusion(
        lambda x, t: torch.sin(3 * x) * (1 + t)[:, None], (D,), stk.VE(0.05, 5.0), "noise"
    ),
    stk.LinearGaussian(torch.eye(D), torch.ones(D), 0.7),
)
MALA, HMC = stk.MALA(0.3), stk.HMC(0.3, leapfrogs=2, metric="none")
LADDER = Ladder((0.0, 0.6, 1.0))
GRID = (0.0, 0.4, 0.7, 1.0)
FLOW, SDE = stk.ProbabilityFlow(steps=6), stk.ReverseSDE("euler", steps=6)

SETTINGS = [
    (stk.ULA(0.3), {"step_size": 0.2, "temperature": 2.0, "clip": 0.1, "box": (-0.5, 0.5)}),
    (stk.MALA(0.3), {"step_size": 0.2, "temperature": 2.0}),
    (stk.MALA(), {"accept": 0.8}),
    (stk.Barker(0.3), {"step_size": 0.2, "temperature": 2.0}),
    (stk.Barker(), {"accept": 0.8}),
    (stk.PreconditionedLangevin(), {"step_size": 0.2, "metric": "dense", "accept": 0.8}),
    (stk.PreconditionedLangevin(3.0, metric="none"), {"adjusted": False}),
    (stk.Underdamped(0.3), {"step_size": 0.2, "friction": 2.0, "temperature": 2.0}),
    (stk.GHMC(0.3), {"step_size": 0.2, "friction": 2.0}),
    (stk.GHMC(), {"accept": 0.8}),
    (
        stk.HMC(),
        {"step_size": 0.2, "leapfrogs": 3, "jitter": 0.0, "metric": "dense", "accept": 0.9},
    ),
    (
        stk.ChEES(),
        {
            "step_size": 0.2,
            "length": 0.5,
            "metric": "dense",
            "accept": 0.9,
            "learning_rate": 0.1,
            "most": 3,
        },
    ),
    (stk.NUTS(max_depth=2), {"step_size": 0.2, "metric": "dense", "accept": 0.9}),
    (stk.NUTS(0.5, metric="none"), {"max_depth": 1}),
    (
        stk.MCLMC(),
        {
            "step_size": 0.2,
            "length": 0.5,
            "metric": "none",
            "integrator": "leapfrog",
            "energy_variance": 0.1,
        },
    ),
    (
        stk.AdjustedMCLMC(),
        {
            "step_size": 0.2,
            "length": 0.5,
            "leapfrogs": 2,
            "jitter": 0.0,
            "metric": "none",
            "integrator": "leapfrog",
            "accept": 0.8,
            "most": 3,
            "spread": 2.0,
        },
    ),
    (stk.GibbsWithGradients(), {"temperature": 3.0}),
    (stk.DiscreteLangevin(1.0), {"step_size": 3.0, "adjusted": False, "temperature": 3.0}),
    (stk.DiscreteLangevin(), {"accept": 0.8}),
    (
        stk.ParallelTempering(HMC, replicas=3),
        {
            "kernel": MALA,
            "replicas": 4,
            "hottest": 5.0,
            "temperatures": (1.0, 1.5),
            "kernel_steps": 2,
        },
    ),
    *(
        (
            solver,
            {
                "levels": 3,
                "base": NormalBase((D,), 0.5),
                "kernel": MALA,
                "moves": 2,
                "ladder": LADDER,
            },
        )
        for solver in (stk.AIS(2, kernel=HMC), stk.SMC(2, kernel=HMC, island=2, threshold=1.0))
    ),
    (stk.SMC(4, kernel=HMC, island=2, threshold=0.95), {"island": 4, "threshold": 0.0}),
    (
        stk.AnnealedLangevin(levels=3, steps_per_level=2, step_size=1e-3),
        {"levels": (3.0, 0.2), "steps_per_level": 3, "step_size": 1e-4, "denoise": False},
    ),
    (FLOW, {"method": "heun", "steps": 5, "grid": GRID, "denoise": True}),
    (stk.ProbabilityFlow("bosh3", steps=2), {"rtol": 0.1, "atol": 0.1, "max_steps": 2}),
    (SDE, {"method": "ancestral", "steps": 5, "grid": GRID, "eta": 0.5, "denoise": True}),
    (replace(SDE, corrector=1), {"corrector": 2, "snr": 0.3, "rule": "sample"}),
    (
        stk.TwistedSMC(6, island=4, threshold=1.0),
        {"steps": 5, "grid": GRID, "island": 2, "threshold": 0.0},
    ),
    (
        stk.SplitGibbs(0.5, sweeps=4, steps=2, first=2.0, held=0.5),
        {"coupling": 0.4, "sweeps": 3, "steps": 3, "first": 4.0, "held": 1.0, "spread": 1.0},
    ),
    (stk.DAPS(4, 2), {"levels": 3, "steps": 3, "grid": GRID, "spread": 1.0}),
]
CASES = [(solver, name, value) for solver, some in SETTINGS for name, value in some.items()]
ELSEWHERE = {("ProbabilityFlow", "adjoint")}
"""What a run with gradients alone is other for."""


def made(solver):
    """All that a few steps make and report, and what warmup would learn."""
    field = SITES if "states" in solver.needs else TIMED if solver.timed is not False else STATIC
    noise = Noise(5, N, dtype=torch.float64)
    bound = resolve(field, solver.needs, timed=solver.timed)
    x = (
        uniform_states(SITES.states, (D,), noise)
        if field is SITES
        else noise.normal(0, Stream.START, (D,))
    )
    state, found = solver.init(bound, traits(solver).start(bound, x, noise), noise), []
    for _ in range(len(solver.milestones(bound)) if is_grid(solver) else 2):
        state, info = solver.step(bound, state, noise)
        leaves = tree_leaves((tuple(state), info))
        found += [v.nan_to_num(7.0) for v in leaves if isinstance(v, torch.Tensor)]
    return found, repr(getattr(solver, "adaptation", None))


usual = cache(made)


@pytest.mark.parametrize(
    ("solver", "name", "value"), CASES, ids=lambda v: v if isinstance(v, str) else type(v).__name__
)
def test_another_value_of_a_setting_makes_another_run(solver, name, value):
    (one, learned), (other, learns) = usual(solver), made(replace(solver, **{name: value}))
    pairs = zip(one, other, strict=True) if len(one) == len(other) else []
    assert learned != learns or not pairs or not all(torch.equal(a, b) for a, b in pairs)
    if not isinstance(solver, Deaf):
        recorded(f"{solver!r} with {name}={value!r}", (other, learns))


def test_every_setting_of_every_solver_is_asked_about():
    asked = {(type(solver).__name__, name) for solver, name, _ in CASES} | ELSEWHERE
    classes = {type(solver) for solver in stk.solvers.EXAMPLES.values()}
    assert asked == {(c.__name__, f.name) for c in classes for f in fields(c) if f.init}


@dataclass(frozen=True)
class Deaf(stk.ULA):
    """Mutant: a solver that ignores its temperature."""

    def step(self, field, state, noise):
        return stk.ULA(self.step_size).step(field, state, noise)


def test_a_setting_that_is_ignored_is_found():
    with pytest.raises(AssertionError):
        test_another_value_of_a_setting_makes_another_run(Deaf(0.3), "temperature", 2.0)


GIVEN = (0.0, 0.3, 0.75, 1.0)
ALONG = {
    "reverse SDE": lambda **given: stk.ReverseSDE("ancestral", **given),
    "euler": lambda **given: stk.ProbabilityFlow("euler", **given),
    "dpmpp_2m": lambda **given: stk.ProbabilityFlow("dpmpp_2m", **given),
    "twisted": lambda denoise, **given: stk.TwistedSMC(**given),
}


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("path", [stk.VP(), stk.EDM()], ids=repr)
@pytest.mark.parametrize("name", ALONG)
def test_times_that_are_given_are_the_grid_whatever_else_is_said(name, path, denoise):
    """Also of a single step, of which a closing one would leave none."""
    field = resolve(stk.Diffusion(lambda x, t: x, (2,), path), {"denoise"})
    for steps in (1, 8):
        times = ALONG[name](grid=GIVEN, steps=steps, denoise=denoise).times(field)
        assert times.tolist() == list(GIVEN)
