"""The cells of the table: which solver serves which model, in which view, with which settings.

A *view* is the field that a solver works on, made from a model (`solvers.matrix` says how): the
model itself; a static field with Gaussian noise on it, exactly where its family can (`noised`),
else estimated (`scoretk.smoothed`); or one noise level of a timed field (`at`), from which a last
denoising step leads to the data (walk-jump sampling).

References:
    Saremi, Hyvärinen, "Neural empirical Bayes" (2019), for walk-jump sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from scoretk.fields.paths import VP
from scoretk.fields.protocols import is_timed, offers, optional
from scoretk.fields.resolve import resolve
from scoretk.fields.smoothed import smoothed
from scoretk.inference.sampling import sample
from scoretk.solvers import (
    AIS,
    EXAMPLES,
    GHMC,
    HMC,
    MALA,
    MCLMC,
    NUTS,
    SMC,
    SOLVERS,
    ULA,
    AdjustedMCLMC,
    AnnealedLangevin,
    ChEES,
    GibbsWithGradients,
    ParallelTempering,
    PreconditionedLangevin,
    ProbabilityFlow,
    ReverseSDE,
    Underdamped,
)
from scoretk.solvers.importance import resampled
from scoretk.solvers.matrix import AT, SMOOTHED, use
from scoretk.solvers.parts.nested import with_step_size

__all__ = ["Cell", "Size", "cells"]

WALK_LEVEL = 0.5
"""The noise level sigma/alpha at which kernels sample a timed field."""

BEST_ACCEPTANCE = 0.574
ISLAND = 40
DEPTH, MOST = 5, 16
REPLICAS = 4
SMOOTHED_LABEL = "smoothed"
PLANE = 2
"""Up to this many dimensions noised scores are estimated by plain Monte Carlo."""


@dataclass(frozen=True)
class Size:
    """How much the demo does.

    Args:
        chains: How many chains a run has.
        steps: How many steps a Langevin kernel makes.
        trajectories: How many steps a kernel makes that takes several gradients a step, and as many
            for warmup.
        rounds: In how many short runs a step size is found.
        likelihood_rows: At how many held-out rows likelihoods are computed.
        annealed: How many chains annealed importance sampling has.
    """

    chains: int = 360
    steps: int = 500
    trajectories: int = 60
    rounds: int = 12
    likelihood_rows: int = 60
    annealed: int = 256

    def less(self) -> Size:
        """A smaller size, for networks with costly energies: fewer chains and steps."""
        return replace(
            self,
            chains=self.chains // 3,
            steps=self.steps // 2,
            trajectories=self.trajectories // 3,
            annealed=self.annealed // 2,
        )


@dataclass(frozen=True)
class Cell:
    """One model under one solver.

    Args:
        solver: The name of the solver.
        setting: Its setting, as text.
        run: Takes a seed to draws, None where the solver does not serve the model.
        finish: Takes positions to samples of the model.
        reason: Why there is no run.
    """

    solver: str
    setting: str
    run: Callable[[int], Any] | None = None
    finish: Callable[[Tensor], Tensor] = lambda x: x
    reason: str = ""


def cells(field: Any, size: Size) -> Iterator[Cell]:
    """The cells of one model, at least one for each solver."""
    views = _Views(field, size.rounds)
    for name in SOLVERS:
        found = use(offers(field), name)
        if found.way is None:
            yield Cell(name, "", reason=found.reason)
        elif name in SETTINGS:
            yield from SETTINGS[name](views.of(found.way), size)
        elif name in EXAMPLES:
            yield _example(name, views.of(found.way), size)
        else:
            yield Cell(name, "", reason="no settings for it in the demo")


@dataclass(frozen=True)
class _View:
    """A field that a solver can work on.

    Args:
        field: The field.
        label: What to call it, empty for the model itself.
        finish: Takes its positions to samples of the model.
        level: The standard deviation of its noise, where it is a noise level of a timed field.
        rounds: In how many short runs its step size is found.
    """

    field: Any
    label: str = ""
    finish: Callable[[Tensor], Tensor] = lambda x: x
    level: float | None = None
    rounds: int = 12

    @property
    def discrete(self) -> bool:
        """Whether its states are discrete."""
        return "states" in offers(self.field)

    @cached_property
    def step_size(self) -> float:
        """A step size for Langevin kernels, in squared units of x.

        It is tuned where there is an energy, and a fifth of the noise's variance at a noise level.
        """
        if self.level is not None or "energy" not in offers(self.field):
            return 0.2 * (self.level if self.level is not None else 0.5) ** 2
        return _step_size(self.field, self.rounds)


@dataclass(frozen=True)
class _Views:
    """The views of a model, each made when it is first used."""

    field: Any
    rounds: int

    def of(self, way: str) -> _View:
        return self.walk if way == AT else self.noised if way == SMOOTHED else self.plain

    @cached_property
    def plain(self) -> _View:
        return _View(self.field, rounds=self.rounds)

    @cached_property
    def walk(self) -> _View:
        t = float(self.field.path.t(torch.tensor(-2 * math.log(WALK_LEVEL), dtype=torch.float64)))
        label = f"at level {WALK_LEVEL}, then denoised"
        return _View(
            self.field.at(t),
            label,
            partial(_denoised, self.field, t),
            float(self.field.path.sigma(t)),
        )

    @cached_property
    def noised(self) -> _View:
        if callable(optional(self.field, "noised")):
            return replace(self.plain, field=self.field.noised(VP()), label="with VP noise")
        rough = sample(
            self.field, MALA(self.plain.step_size), chains=64, steps=100, keep="last"
        ).final
        if math.prod(self.field.event_shape) <= PLANE:
            made = smoothed(self.field, samples=64, reference=rough)
        else:
            made = smoothed(self.field, estimator="langevin", samples=4, steps=12, reference=rough)
        return replace(self.plain, field=made, label=SMOOTHED_LABEL)


def _denoised(field: Any, t: float, x: Tensor) -> Tensor:
    with torch.no_grad():
        return resolve(field, {"denoise"}).denoise(x, t)  # type: ignore[union-attr]


def _cell(view: _View, solver: str, setting: str, made: Callable[[], Any], **options: Any) -> Cell:
    def run(seed: int) -> Any:
        return sample(view.field, made(), seed=seed, keep="last", **options)

    return Cell(solver, " ".join(filter(None, (setting, view.label))), run, view.finish)


def _step_size(field: Any, rounds: int, chains: int = 64, steps: int = 25) -> float:
    """The step size at which MALA has its best acceptance, found in some short runs."""
    size, x = 0.05, None
    for k in range(rounds):
        draws = sample(field, MALA(size), chains=chains, steps=steps, init=x, seed=k, keep="last")
        size *= math.exp(2 * (float(draws.stats["accept"].nanmean()) - BEST_ACCEPTANCE))
        x = draws.final
    return size


def _ula(view: _View, size: Size) -> Iterator[Cell]:
    def made() -> ULA:
        return ULA(view.step_size / (1 if view.level is not None else 4))

    yield _cell(
        view,
        "ula",
        "",
        made,
        chains=size.chains,
        steps=size.steps // (3 if view.level is not None else 1),
    )


def _underdamped(view: _View, size: Size) -> Iterator[Cell]:
    def made() -> Underdamped:
        h = math.sqrt(view.step_size / 2)  # half the length sqrt(2 h) of a Langevin step
        return Underdamped(h if view.level is not None else h / 2)

    steps = size.steps // (3 if view.level is not None else 1)
    yield _cell(view, "underdamped", "", made, chains=size.chains, steps=steps)


def _ghmc(view: _View, size: Size) -> Iterator[Cell]:
    yield _cell(
        view,
        "ghmc",
        "",
        lambda: GHMC(math.sqrt(view.step_size / 2)),
        chains=size.chains,
        steps=size.steps,
    )


def _preconditioned(view: _View, size: Size) -> Iterator[Cell]:
    made = PreconditionedLangevin
    yield _cell(
        view,
        "preconditioned-langevin",
        "",
        made,
        chains=size.chains,
        steps=size.steps,
        warmup=size.steps // 4,
    )


def _example(name: str, view: _View, size: Size) -> Cell:
    """A kernel with the settings of its example, and the view's step size where it takes one."""

    def made() -> Any:
        return EXAMPLES[name] if view.discrete else with_step_size(EXAMPLES[name], view.step_size)

    return _cell(view, name, "", made, chains=size.chains, steps=size.steps)


def _tuned(
    solver: str, make: Callable[[], Any], view: _View, size: Size, setting: str = ""
) -> Iterator[Cell]:
    yield _cell(
        view,
        solver,
        setting,
        make,
        chains=size.chains,
        steps=size.trajectories,
        warmup=size.trajectories,
    )


def _nuts(view: _View, size: Size) -> Iterator[Cell]:
    made, few = partial(NUTS, max_depth=DEPTH), max(1, size.trajectories // 2)
    yield _cell(
        view, "nuts", f"up to {2**DEPTH} leapfrogs", made, chains=size.chains, steps=few, warmup=few
    )


def _inner(view: _View) -> Any:
    """The kernel inside a solver that has one."""
    if view.discrete:
        return GibbsWithGradients()
    return HMC(math.sqrt(view.step_size / 2), leapfrogs=4, metric="none")


def _weighted(name: str, view: _View, size: Size) -> Iterator[Cell]:
    """AIS or SMC, its draws resampled by their weights, so that they can be judged like others."""
    island = min(ISLAND, size.chains)
    chains = size.chains // island * island if name == "smc" else size.chains

    def run(seed: int) -> Any:
        levels, kernel = 2 * size.trajectories, _inner(view)
        solver = (
            AIS(levels, kernel=kernel)
            if name == "ais"
            else SMC(levels, kernel=kernel, island=island)
        )
        draws = sample(view.field, solver, chains=chains, seed=seed, keep="last")
        start = torch.full((1,), 0.5)
        chosen = resampled(draws.stats["log_weight"][None], start)[0][0]
        return replace(draws, final=draws.final[chosen], status=draws.status[chosen])

    yield Cell(name, " ".join(filter(None, ("resampled", view.label))), run, view.finish)


def _tempering(view: _View, size: Size) -> Iterator[Cell]:
    def made() -> ParallelTempering:
        return ParallelTempering(_inner(view), replicas=REPLICAS)

    runs = {"chains": size.chains, "steps": size.trajectories, "warmup": size.trajectories}
    yield _cell(view, "parallel-tempering", f"{REPLICAS} temperatures", made, **runs)


def _annealed(view: _View, size: Size) -> Iterator[Cell]:
    if is_timed(view.field):
        yield _cell(
            view,
            "annealed-langevin",
            "40 levels",
            lambda: AnnealedLangevin(40, 5),
            chains=size.chains,
        )
        return

    def made() -> AnnealedLangevin:
        levels = torch.logspace(1, 0, 10, dtype=torch.float64).tolist()
        return AnnealedLangevin(levels, max(1, size.steps // 10), view.step_size / 4)

    yield _cell(view, "annealed-langevin", "temperatures 10 to 1", made, chains=size.chains)


def _flow(view: _View, size: Size) -> Iterator[Cell]:
    if view.label == SMOOTHED_LABEL:
        yield _cell(
            view,
            "probability-flow",
            "adams_3 8",
            partial(ProbabilityFlow, "adams_3", 8),
            chains=size.chains,
        )
        return
    for method, steps in (
        ("euler", 32),
        ("heun", 16),
        ("dpmpp_2m", 16),
        ("adams_3", 16),
        ("dopri5", None),
    ):
        setting = method if steps is None else f"{method} {steps}"
        made = partial(ProbabilityFlow, method, steps, rtol=1e-3, atol=1e-3)
        yield _cell(view, "probability-flow", setting, made, chains=size.chains)


def _reverse_sde(view: _View, size: Size) -> Iterator[Cell]:
    methods = (
        (("dpmpp_2m", 8),)
        if view.label == SMOOTHED_LABEL
        else (("ancestral", 64), ("dpmpp_2m", 32))
    )
    for method, steps in methods:
        yield _cell(
            view,
            "reverse-sde",
            f"{method} {steps}",
            partial(ReverseSDE, method, steps),
            chains=size.chains,
        )


# Solvers that are not here run as in `EXAMPLES`.
SETTINGS: dict[str, Callable[[_View, Size], Iterator[Cell]]] = {
    "ula": _ula,
    "preconditioned-langevin": _preconditioned,
    "underdamped": _underdamped,
    "ghmc": _ghmc,
    "hmc": partial(_tuned, "hmc", HMC),
    "chees": partial(_tuned, "chees", ChEES),
    "nuts": _nuts,
    "mclmc": partial(_tuned, "mclmc", MCLMC),
    "adjusted-mclmc": partial(
        _tuned, "adjusted-mclmc", partial(AdjustedMCLMC, most=MOST), setting=f"up to {MOST} steps"
    ),
    "parallel-tempering": _tempering,
    "ais": partial(_weighted, "ais"),
    "smc": partial(_weighted, "smc"),
    "annealed-langevin": _annealed,
    "probability-flow": _flow,
    "reverse-sde": _reverse_sde,
}
