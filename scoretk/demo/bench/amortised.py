r"""Amortised posteriors: one network for all measurements, judged by a classifier.

A velocity v(theta, t, x), learned from n pairs of parameters and simulations by conditional flow
matching, is sampled given x as it comes. Both are standardised by the pairs' means and deviations.
Posteriors of both tasks are exact:

    gaussian_linear   theta ~ N(0, I / 10), x ~ N(theta, I / 10), ten numbers each;
                      theta given x ~ N(x / 2, I / 20)
    two_moons         theta ~ U(-1, 1)^2, x = p + (-|theta_1 + theta_2|, theta_2 - theta_1) / sqrt 2,
                      p = (r cos a + 1/4, r sin a), a ~ U(-pi / 2, pi / 2), r ~ N(.1, .01^2)
    slcp              `scoretk.demo.bench.slcp`

The second one's is drawn by inversion: p as above, `s = -(x - p)_1` and `d = (x - p)_2` are |theta_1 + theta_2|
and theta_2 - theta_1 over sqrt 2, where s >= 0; theta is one of two points, evenly, and counts where it is in the
square. The map from theta to (s, d) keeps areas, so that no weight is left.

C2ST is the held-out accuracy, five-fold, of a classifier that tells draws from exact ones: 1/2 where the
laws are the same. It has two hidden layers of ten units a coordinate, as the published ones, which are the mean
over ten measurements of the benchmark's own and 10,000 draws; here are measurements of other truths of the prior,
and the training of a classifier ends early where held-out rows say so. With fewer draws it sees less: such rows are not
counted as reached.

References:
    Lueckmann, Boelts, Greenberg, Gonçalves, Macke, "Benchmarking simulation-based inference" (2021): tasks,
    C2ST and the published numbers.
    Lopez-Paz, Oquab, "Revisiting classifier two-sample tests" (2017).
    Wildberger, Dax, Buchholz, Green, Macke, Schölkopf, "Flow matching for scalable simulation-based
    inference" (2023).
    Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows" (2019).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoretk.adapters.flows import from_flow
from scoretk.core.dependencies import required
from scoretk.core.noise import Noise, derive
from scoretk.demo.bench.rows import Asked, Measured, Row, Table
from scoretk.demo.bench.slcp import slcp, slcp_exact
from scoretk.errors import MissingDependency
from scoretk.fields import Velocity
from scoretk.inference.sampling import sample
from scoretk.learn.fitting import fit
from scoretk.learn.losses import flow_matching, stratified
from scoretk.learn.recipe import Recipe
from scoretk.solvers import ProbabilityFlow

__all__ = [
    "AMORTISED",
    "LEARNERS",
    "TASKS",
    "FlowPlan",
    "FlowPosterior",
    "Plan",
    "Posterior",
    "Task",
    "amortised",
    "c2st",
    "learned",
    "learned_flow",
]

FOLDS, FLOORS = 5, 2
"""Of a classifier; of how many measurements exact draws are told from exact draws."""
HARMONICS = 4
PUBLISHED_DRAWS = 10_000
"""What classifiers of the published numbers were given; one with fewer sees less."""


class Task(NamedTuple):
    """A simulator with its prior.

    Attributes:
        simulated: `(n, generator)` to parameters `(n, d)` and their simulations `(n, k)`.
        exact: `(x, n, generator)` to draws of the posterior `(n, d)`, x a simulation `(k,)`.
        published: C2ST of neural posterior estimation by the number of simulations.
    """

    simulated: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    exact: Callable[[Tensor, int, torch.Generator], Tensor]
    published: Mapping[int, float]


def _normals(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _linear(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    theta, noise = (math.sqrt(0.1) * _normals(n, 10, generator=generator) for _ in range(2))
    return theta, theta + noise


def _linear_exact(x: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return x / 2 + math.sqrt(0.05) * _normals(n, 10, generator=generator)


def _crescent(n: int, generator: torch.Generator) -> Tensor:
    """Draws of p, `(n, 2)`."""
    angle = math.pi * (torch.rand(n, generator=generator, dtype=torch.float64) - 0.5)
    radius = 0.1 + 0.01 * _normals(n, generator=generator)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)


def _moons(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    theta = 2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1
    total, apart = theta.sum(1), theta[:, 1] - theta[:, 0]
    moved = torch.stack([-total.abs(), apart], 1) / math.sqrt(2)
    return theta, _crescent(n, generator) + moved


def _moons_exact(x: Tensor, n: int, generator: torch.Generator) -> Tensor:
    kept: list[Tensor] = []
    while sum(map(len, kept)) < n:
        moved = x - _crescent(n, generator)
        side = 2 * torch.randint(2, (n,), generator=generator) - 1
        total, apart = -side * moved[:, 0], moved[:, 1]
        theta = torch.stack([total - apart, total + apart], 1) / math.sqrt(2)
        kept.append(theta[(moved[:, 0] <= 0) & (theta.abs() <= 1).all(1)])
    return torch.cat(kept)[:n]


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "two-moons": Task(_moons, _moons_exact, {1_000: 0.725, 10_000: 0.606}),
        "gaussian-linear": Task(_linear, _linear_exact, {1_000: 0.694, 10_000: 0.552}),
        "slcp": Task(slcp, slcp_exact, {1_000: 0.975, 10_000: 0.901}),
    }
)


class ConditionalVelocity(nn.Module):
    """A multilayer perceptron of a point, a time and a measurement.

    Args:
        width: Coordinates of the point.
        given: Those of the measurement.
        hidden: The units of each of its layers.
        layers: How many hidden layers it has.
    """

    def __init__(self, width: int, given: int, hidden: int, layers: int) -> None:
        super().__init__()
        sizes = [width + given + 2 * HARMONICS, *[hidden] * layers]
        parts: list[nn.Module] = []
        for before, after in pairwise(sizes):
            parts += [nn.Linear(before, after), nn.SiLU()]
        self.layers = nn.Sequential(*parts, nn.Linear(hidden, width))

    def forward(self, theta: Tensor, t: Tensor, given: Tensor) -> Tensor:
        """The velocity, like theta; t is `(batch,)`, given the measurement, `(batch, k)`."""
        angle = math.pi * t[:, None] * torch.arange(1, HARMONICS + 1, device=t.device)
        told = torch.cat([theta, given, angle.sin(), angle.cos()], 1).to(theta)
        velocity: Tensor = self.layers(told)
        return velocity


@dataclass(frozen=True, eq=False)
class Posterior:
    """What flow matching learned.

    Args:
        field: The velocity of standardised parameters, given the standardised measurement "given".
        centre: Means of parameters and measurements, side by side.
        scale: Their standard deviations.
    """

    field: Velocity
    centre: Tensor
    scale: Tensor

    def drawn(self, x: Tensor, n: int, seed: int = 0) -> Tensor:
        """Draws given a measurement x `(k,)`: `(n, d)`, float64."""
        cond = {"given": _standardised(self, x).expand(n, -1)}
        draws = sample(
            self.field, ProbabilityFlow(steps=32), n, seed=seed, cond=cond, progress=False
        )
        return _back(self, draws.final)


@dataclass(frozen=True, eq=False)
class FlowPosterior:
    """What a normalizing flow learned.

    Args:
        field: The flow of standardised parameters, given the standardised measurement "c".
        centre: As in `Posterior`.
        scale: As in `Posterior`.
    """

    field: Any
    centre: Tensor
    scale: Tensor

    def drawn(self, x: Tensor, n: int, seed: int = 0) -> Tensor:
        """Draws given a measurement x `(k,)`: `(n, d)`, float64."""
        given = _standardised(self, x).expand(n, -1)
        with torch.no_grad():
            return _back(self, self.field.draw(n, Noise(seed, n), c=given))


def _standardised(posterior: Posterior | FlowPosterior, x: Tensor) -> Tensor:
    d = len(posterior.centre) - len(x)
    return ((x - posterior.centre[d:]) / posterior.scale[d:]).float()


def _back(posterior: Posterior | FlowPosterior, theta: Tensor) -> Tensor:
    d = theta.shape[1]
    return posterior.centre[:d] + posterior.scale[:d] * theta.double()


@dataclass(frozen=True)
class Plan:
    """How a posterior is learned by flow matching.

    Args:
        steps: Of the optimiser.
        hidden: Units of each hidden layer.
        layers: Hidden layers.
    """

    steps: int = 4000
    hidden: int = 128
    layers: int = 4


@dataclass(frozen=True)
class FlowPlan:
    """How a posterior is learned by a normalizing flow.

    Args:
        steps: Of the optimiser, at most: held-out pairs say when to stop.
        hidden: Units of each of the two hidden layers of a transform.
        transforms: How many transforms there are.
    """

    steps: int = 4000
    hidden: int = 64
    transforms: int = 5


def learned(theta: Tensor, x: Tensor, plan: Plan = Plan(), seed: int = 0) -> Posterior:
    """Learn the posterior from pairs.

    Args:
        theta: Parameters, `(n, d)`.
        x: Their simulations, `(n, k)`.
        plan: The network and its training.
        seed: Of weights and batches.
    """
    rows, centre, scale = _pairs(theta, x)
    d = theta.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        net = ConditionalVelocity(d, x.shape[1], plan.hidden, plan.layers)

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        to, given = rows[:, :d], rows[:, d:]
        start = torch.randn(to.shape, generator=generator)
        times = stratified(len(to), generator)
        return flow_matching(lambda z, t: net(z, t, given), to, times, start)

    fit(net, loss, rows, Recipe(plan.steps), seed=seed % 2**63)
    return Posterior(Velocity(net, (d,)), centre, scale)


def learned_flow(
    theta: Tensor, x: Tensor, plan: FlowPlan = FlowPlan(), seed: int = 0
) -> FlowPosterior:
    """Learn the posterior from pairs by the likelihood of a flow.

    Args:
        theta: Parameters, `(n, d)`.
        x: Their simulations, `(n, k)`.
        plan: The flow and its training.
        seed: Of weights and batches.

    Raises:
        MissingDependency: Without zuko.
    """
    zuko = required("zuko", "flows", "a posterior by a normalizing flow")
    rows, centre, scale = _pairs(theta, x)
    d = theta.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        flow = zuko.flows.NSF(
            d, x.shape[1], transforms=plan.transforms, hidden_features=[plan.hidden] * 2
        )

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        likelihood: Tensor = flow(rows[:, d:]).log_prob(rows[:, :d])
        return -likelihood

    recipe = Recipe(plan.steps, batch=128, held_out=0.1, evaluations=40, patience=5)
    fit(flow, loss, rows, recipe, seed=seed % 2**63)
    return FlowPosterior(from_flow(flow), centre, scale)


def _pairs(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters and simulations side by side, standardised, and their means and deviations."""
    both = torch.cat([theta, x], 1)
    centre, scale = both.mean(0), both.std(0)
    return ((both - centre) / scale).float(), centre, scale


class Learner(NamedTuple):
    """A way to learn posteriors.

    Attributes:
        learned: `(theta, x, plan, seed)` to what has `drawn`.
        quick: The plan of a minute.
        full: The plan of hours.
    """

    learned: Callable[..., Any]
    quick: Plan | FlowPlan
    full: Plan | FlowPlan


LEARNERS: Mapping[str, Learner] = MappingProxyType(
    {
        "flow-matching": Learner(learned, Plan(steps=500, hidden=64, layers=3), Plan()),
        "spline-flow": Learner(learned_flow, FlowPlan(200, 32, 3), FlowPlan()),
    }
)
QUICK, FULL = (500, 2), (PUBLISHED_DRAWS, 10)
"""How many draws a classifier gets, and of how many measurements."""


def c2st(x: Tensor, y: Tensor, seed: int = 0) -> float:
    """The held-out accuracy of a classifier between two sets of draws, 1/2 where their laws are one.

    Args:
        x: Draws, `(n, d)`.
        y: As many others.
        seed: Of folds and weights.

    Raises:
        MissingDependency: Without scikit-learn.
    """
    networks = required("sklearn.neural_network", "demo", "C2ST")
    choices = required("sklearn.model_selection", "demo", "C2ST")
    hidden = 10 * x.shape[1]
    rows = ((torch.cat([x, y]) - x.mean(0)) / x.std(0)).numpy()
    labels = torch.cat([torch.zeros(len(x)), torch.ones(len(y))]).numpy()
    classifier: Any = networks.MLPClassifier(
        (hidden, hidden), max_iter=200, early_stopping=True, random_state=seed % 2**32
    )
    folds = choices.KFold(FOLDS, shuffle=True, random_state=seed % 2**32)
    return float(choices.cross_val_score(classifier, rows, labels, cv=folds).mean())


def amortised(asked: Asked) -> Iterator[Row]:
    """The rows of "amortised": tasks by numbers of simulations and ways to learn."""
    for name in asked.targets or TASKS:
        if name not in TASKS:
            continue
        for n in (1_000,) if asked.quick else (1_000, 10_000):
            for learner in LEARNERS:
                if asked.solvers and learner not in asked.solvers:
                    continue
                try:
                    yield _made(name, n, learner, asked)
                except MissingDependency as error:
                    yield _row(name, n, learner, {"reached": "no", "cause": str(error)})


def _made(name: str, n: int, learner: str, asked: Asked) -> Row:
    task, begun = TASKS[name], time.perf_counter()
    draws, measurements = QUICK if asked.quick else FULL
    learn, quick, full = LEARNERS[learner]
    generator = torch.Generator().manual_seed(derive(asked.seed, n) % 2**63)
    pairs = task.simulated(n, generator)
    posterior = learn(*pairs, quick if asked.quick else full, derive(asked.seed, n, 1))
    found, floor = [], []
    for i, x in enumerate(task.simulated(measurements, generator)[1]):
        exact, other = (task.exact(x, draws, generator) for _ in range(2))
        seed = derive(asked.seed, n, 2, i)
        found.append(c2st(exact, posterior.drawn(x, draws, seed), seed))
        if i < FLOORS:
            floor.append(c2st(exact, other, seed))
    value, stderr = statistics.fmean(found), statistics.stdev(found) / math.sqrt(len(found))
    cause = _cause(value, task.published[n], draws)
    made: Row = {
        "C2ST": Measured(value, stderr),
        "of exact draws": f"{statistics.fmean(floor):.3f}",
        "measurements": measurements,
        "draws": draws,
        "reached": "no" if cause else "yes",
        "cause": cause,
        "seconds": time.perf_counter() - begun,
    }
    return _row(name, n, learner, made)


def _row(name: str, n: int, learner: str, made: Row) -> Row:
    """All columns, empty where nothing was made."""
    return {
        "target": name,
        "solver": learner,
        "simulations": n,
        "C2ST": made.get("C2ST"),
        "of exact draws": made.get("of exact draws"),
        "published: NPE": f"{TASKS[name].published[n]:.3f}",
        "measurements": made.get("measurements"),
        "draws": made.get("draws"),
        "reached": made["reached"],
        "cause": made["cause"],
        "seconds": made.get("seconds"),
    }


def _cause(value: float, published: float, draws: int) -> str:
    """Why a row is not reached, empty where it is."""
    causes = [] if value <= published else [f"{value - published:.3f} above the published number"]
    if draws < PUBLISHED_DRAWS:
        causes.append(
            f"a classifier of {draws:,} draws, where the published had {PUBLISHED_DRAWS:,}"
        )
    return "; ".join(causes)


AMORTISED = Table(
    "Amortised posteriors",
    "C2ST, the held-out accuracy of a classifier between draws and exact ones, 1/2 where the laws are the same: "
    "the mean over measurements of truths of the prior with its standard error, and that between exact draws. "
    "Posteriors are learned from simulations by conditional flow matching and sampled by 32 steps, or by the likelihood "
    "of a normalizing flow of splines, and drawn. The published "
    "numbers are neural posterior estimation's in the benchmark of Lueckmann et al. (2021), on ten measurements of its "
    "own, by a like classifier on 10,000 draws; they were not checked against the paper. A row is reached at or "
    "below them, by as many draws.",
    amortised,
)
