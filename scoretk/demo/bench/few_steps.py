r"""Few steps: errors of methods along a grid by their number of evaluations.

Methods of the probability flow begin at the same noise as a solution on 300 intervals, and their error
is the median distance from where that ends: they all aim at one point, so that small errors are seen
with few chains. By the coupling it is of, the root mean square is no less than the Wasserstein distance of
the laws. Its standard error is over bootstrapped chains.

Methods of the reverse SDE end elsewhere by their nature. Their error is of their law: the sliced Wasserstein
distance to as many exact draws (of the solved flow where none are exact), whose *floor* is that between
two sets of these; the mean over batches of chains, and its standard error.

Of grids "found" is `scoretk.grids.search`'s, for the method and the count, found on trajectories of another seed.
"edm" is the one of Karras et al., with which their Heun and DPM-Solver++(2M) are mostly used; these, and DDIM,
are the literature's rows. What other packages reach on the ring is in `PEERS`.

References:
    Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative
    models" (2022).
    Lu, Zhou, Bao, Chen, Li, Zhu, "DPM-Solver++: fast solver for guided sampling of diffusion
    probabilistic models" (2022).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from scoretk.core.noise import Noise, derive
from scoretk.demo.bench.rows import Asked, Measured, Row, Table
from scoretk.diagnostics.distances import sliced_wasserstein
from scoretk.errors import InvalidArgument, UnknownName
from scoretk.fields.paths import EDM
from scoretk.inference.sampling import sample
from scoretk.models.targets.mixture import ring_mixture
from scoretk.ode.grids import search
from scoretk.ode.registry import find_method
from scoretk.ode.tableaus import GRID_RULES, tableau
from scoretk.plugins import load
from scoretk.solvers import ProbabilityFlow, ReverseSDE

__all__ = [
    "CONTESTANTS",
    "COUNTS",
    "FEW_STEPS",
    "PEERS",
    "TASKS",
    "Contestant",
    "Task",
    "few_steps",
]

COUNTS = (5, 8, 10, 20)
"""Evaluations."""
POINTS, LAW, BATCHES, FINE, RESAMPLES = 256, 1024, 8, 300, 1000
"""Chains of an error of the end point, of a law, and batches of these; intervals of the solution; of the bootstrap."""
NEAR = 1.5
"""How many times the floor counts as right."""
PEERS: Mapping[int, float] = MappingProxyType({5: 2.4e-2, 8: 1.1e-2, 10: 3.9e-3, 20: 1.8e-4})
"""The best of azula 0.11.1, diffusers 0.42.1 and flow_matching 1.0.10 on the ring, `benchmarks/accuracy.py`."""


@dataclass(frozen=True)
class Contestant:
    """A method and its grid.

    Args:
        method: Of `ProbabilityFlow`, or of `ReverseSDE` where it has noise.
        grid: A name in `GRIDS`, "" for the default, or "found".
        noisy: Whether it is a method of the reverse SDE.
        literature: Whether others use it so.
    """

    method: str
    grid: str = ""
    noisy: bool = False
    literature: bool = False


CONTESTANTS: Mapping[str, Contestant] = MappingProxyType(
    {
        **{name: Contestant(name) for name in GRID_RULES},
        **{
            f"{name}/{grid}": Contestant(name, grid, literature=grid == "edm")
            for grid, names in {
                "edm": ("euler", "heun", "dpmpp_2m"),
                "found": ("adams_3", "adams_pc_2", "adams_pc_3", "dpmpp_2m"),
            }.items()
            for name in names
        },
        **{
            f"{name}/sde": Contestant(name, "", True) for name in ("euler", "ancestral", "dpmpp_2m")
        },
    }
)
QUICK = ("adams_3", "euler/edm", "heun/edm", "dpmpp_2m/edm", "adams_pc_2/found", "dpmpp_2m/sde")
TRIES, QUICK_TRIES = 400, 60
"""How many grids are tried."""


@dataclass(frozen=True, eq=False)
class Task:
    """A field to be sampled.

    Args:
        field: The field.
        denoise: Whether its path ends above sigma = 0, and a last step follows.
        exact: Whether draws of the law are exact.
        peers: The best of other packages by count, empty where it was not measured.
    """

    field: Any
    denoise: bool
    exact: bool
    peers: Mapping[int, float]

    def starts(self, n: int, seed: int) -> Tensor:
        """Noise, `(n, *event_shape)`."""
        drawn: Tensor = self.field.base.draw(n, Noise(seed, torch.arange(n)))
        return drawn.double() if self.exact else drawn

    def solved(self, x: Tensor) -> Tensor:
        """Where the flow leads x."""
        solver = ProbabilityFlow("adams_pc_3", FINE, denoise=self.denoise)
        return sample(self.field, solver, init=x, progress=False).final

    def drawn(self, n: int, seed: int) -> Tensor:
        """Draws of the law, `(n, *event_shape)`."""
        if not self.exact:
            return self.solved(self.starts(n, seed))
        drawn: Tensor = self.field.mixture.draw(n, Noise(seed, torch.arange(n)))
        return drawn.double()

    def steps(self, method: str, count: int) -> int:
        """The most steps of a method for which so many evaluations suffice, the closing one among them; 0 for none."""
        for steps in range(count, 0, -1):
            if steps > self.denoise:
                times = ProbabilityFlow(method, steps, denoise=self.denoise).times(self.field)
                if len(tableau(method, self.field.path, times, self.denoise).rows) <= count:
                    return steps
        return 0


@lru_cache(2)
def _task(name: str) -> Task:
    return TASKS[name]()


def _ring() -> Task:
    return Task(ring_mixture().noised(EDM(0.002, 80.0)), True, True, PEERS)


def _digits() -> Task:
    return Task(load("digits-diffusion"), False, False, {})


TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {"ring": _ring, "digits-diffusion": _digits}
)


def few_steps(asked: Asked) -> Iterator[Row]:
    """The rows of "few-steps": tasks by contestants.

    Raises:
        UnknownName: For a contestant that is none.
    """
    chosen = tuple(name for name in asked.solvers if name in CONTESTANTS)
    if asked.solvers and not chosen and "few-steps" in asked.named:
        raise UnknownName("solver", asked.solvers[0], set(CONTESTANTS))
    names = chosen or (() if asked.solvers else QUICK if asked.quick else tuple(CONTESTANTS))
    targets = asked.targets or (("ring",) if asked.quick else tuple(TASKS))
    for target in targets:
        if target not in TASKS or not names:
            continue
        task = _task(target)
        made: dict[str, tuple[dict[int, Measured], float]] = {}
        floor = _floor(task, asked.seed)
        for name in names:
            begun = time.perf_counter()
            one = CONTESTANTS[name]
            tries = QUICK_TRIES if asked.quick else TRIES
            errors = (
                laws(task, one, asked.seed) if one.noisy else ends(task, one, asked.seed, tries)
            )
            made[name] = errors, time.perf_counter() - begun
        yield from _rows(target, task, made, floor)


def ends(task: Task, one: Contestant, seed: int = 0, tries: int = TRIES) -> dict[int, Measured]:
    """The median distance of a method's end points from the flow's, by count.

    Args:
        task: The task.
        one: A method without noise.
        seed: Of the noise to begin with.
        tries: How many grids are tried where one is to be found.

    Returns:
        A number and its standard error; infinite where so few evaluations make no step.
    """
    x = task.starts(POINTS, derive(seed, 0))
    exact = task.solved(x)
    found = {}
    for count in COUNTS:
        steps = task.steps(one.method, count)
        if steps == 0:
            found[count] = Measured(math.inf, math.nan)
            continue
        grid: Any = one.grid or None
        try:
            if grid == "found":
                inner, stages = steps - task.denoise, find_method(one.method).stages
                grid = search(
                    task.field,
                    inner,
                    one.method,
                    denoise=task.denoise,
                    tries=max(1, tries // stages),
                    seed=derive(seed, 1),
                )
            solver = ProbabilityFlow(one.method, steps, grid, task.denoise)
            end = sample(task.field, solver, init=x, progress=False).final
        except InvalidArgument:  # the grid's ends are steps of their own, and there are fewer
            found[count] = Measured(math.inf, math.nan)
            continue
        distance = (end - exact).flatten(1).norm(dim=1).double()
        generator = torch.Generator().manual_seed(derive(seed, 2) % 2**63)
        again = torch.randint(POINTS, (RESAMPLES, POINTS), generator=generator)
        spread = distance[again].median(1).values.std()
        found[count] = Measured(float(distance.median()), float(spread))
    return found


def laws(task: Task, one: Contestant, seed: int = 0) -> dict[int, Measured]:
    """The sliced Wasserstein distance of a method's draws from the law, by count.

    Args:
        task: The task.
        one: A method with noise.
        seed: From which those of draws are derived.
    """
    found = {}
    for count in COUNTS:
        solver = ReverseSDE(one.method, count, one.grid or None, denoise=task.denoise)
        x = task.starts(BATCHES * LAW, derive(seed, 3))
        end = sample(task.field, solver, init=x, seed=derive(seed, 4), progress=False).final
        found[count] = _apart(end, task.drawn(BATCHES * LAW, derive(seed, 5)))
    return found


@lru_cache(2)
def _floor(task: Task, seed: int) -> Measured:
    """The distance between exact draws."""
    one, other = (task.drawn(BATCHES * LAW, derive(seed, k)) for k in (5, 6))
    return _apart(one, other)


def _apart(x: Tensor, y: Tensor) -> Measured:
    parts = [sliced_wasserstein(a, b) for a, b in zip(x.split(LAW), y.split(LAW), strict=True)]
    return Measured(statistics.fmean(parts), statistics.stdev(parts) / math.sqrt(len(parts)))


def _rows(
    target: str, task: Task, made: Mapping[str, tuple[dict[int, Measured], float]], floor: Measured
) -> Iterator[Row]:
    plain = {n: errors for n, (errors, _) in made.items() if not CONTESTANTS[n].noisy}
    best = {c: min((e[c].value for e in plain.values()), default=math.inf) for c in COUNTS}
    known = {
        c: min(
            [e[c].value for n, e in plain.items() if CONTESTANTS[n].literature]
            + [task.peers.get(c, math.inf)]
        )
        for c in COUNTS
    }
    for name, (errors, seconds) in made.items():
        noisy = CONTESTANTS[name].noisy
        limit = dict.fromkeys(COUNTS, NEAR * floor.value) if noisy else known
        behind = [str(c) for c in COUNTS if not errors[c].value <= limit[c]]
        if noisy:
            what = f"more than {NEAR} times the floor"
        else:
            what = "behind the best of the literature and peers"
        cause = f"{what} at {', '.join(behind)} evaluations" if behind else ""
        yield {
            "target": target,
            "solver": name,
            "error": "of the law" if noisy else "of the end point",
            **{f"{c} evaluations": errors[c] for c in COUNTS},
            "best at": ""
            if noisy
            else ", ".join(str(c) for c in COUNTS if errors[c].value == best[c]),
            "floor": f"{floor.value:.4f} ± {floor.stderr:.4f}" if noisy else None,
            "published: peers": None if noisy or not task.peers else _listed(task.peers),
            "reached": "no" if cause else "yes",
            "cause": cause,
            "seconds": seconds,
        }


def _listed(values: Mapping[int, float]) -> str:
    return ", ".join(f"{count}: {value:.2g}" for count, value in values.items())


FEW_STEPS = Table(
    "Few steps",
    "Errors at 5, 8, 10 and 20 evaluations. Of methods of the probability flow the median distance of 256 "
    "end points from those of the same noise solved on 300 intervals, with its standard error over bootstrapped "
    "chains; of those of the reverse SDE the sliced Wasserstein distance between 1,024 draws and as many of the law, "
    "the mean over eight batches, beside the floor. The ring is eight normals of deviation 1/4 on a circle of "
    "radius 2, from noise of deviation 80 to .002 to 0, with its exact denoiser; digits-diffusion is the network "
    "that ships. Grids that are found are so for each count, on other noise. Peers are azula, diffusers and "
    "flow_matching, each at its best among hundreds of settings, chosen on the 64 points that it was judged by "
    "(benchmarks/accuracy.py). A row is reached where it is at or below the best of these, and of DDIM, Heun and "
    f"DPM-Solver++(2M) on EDM's grid, at every count; one of the SDE, where it is at most {NEAR} times the floor.",
    few_steps,
)
