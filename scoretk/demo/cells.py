"""The cells of the table: which solver serves which model, in which view of it, with which settings.

A *view* is what of a model a solver can work on: the field itself; a static field with Gaussian noise put on it, where its
family can do that exactly (`noised`); one noise level of a timed field (`at`), from which a last denoising step leads to the
data (walk-jump sampling: Saremi, Hyvärinen, "Neural empirical Bayes", 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoretk.errors import MissingCapability
from scoretk.fields.paths import VP
from scoretk.fields.protocols import is_timed, offers
from scoretk.fields.resolve import resolve
from scoretk.sampling import sample
from scoretk.solvers import (
    AIS,
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
    BlockGibbs,
    ChEES,
    DiscreteLangevin,
    GibbsWithGradients,
    ParallelTempering,
    PreconditionedLangevin,
    ProbabilityFlow,
    ReverseSDE,
    Underdamped,
)
from scoretk.solvers.importance import resampled

__all__ = ["Cell", "Size", "cells"]

WALK_LEVEL = 0.5
"""sigma/alpha of the noise level at which a kernel walks through a timed field."""

BEST_ACCEPTANCE = 0.574
ISLAND = 40


@dataclass(frozen=True)
class Size:
    """How much the demo does: chains, steps of a kernel, and rows at which likelihoods are taken."""

    chains: int = 360
    steps: int = 1000
    likelihood_rows: int = 60


@dataclass(frozen=True)
class Cell:
    """One model under one solver: what to call it, and the run (None with a reason where there is none)."""

    solver: str
    setting: str
    run: Callable[[int], Any] | None = None
    finish: Callable[[Tensor], Tensor] = lambda x: x
    reason: str = ""


def cells(field: Any, size: Size) -> Iterator[Cell]:
    """The cells of one model, at least one a solver."""
    for name, solver in SOLVERS.items():
        served = [view for view in _views(field) if _serves(solver, view)]
        if not served:
            yield Cell(name, "", reason=_reason(solver, field))
        elif name not in SETTINGS:
            yield Cell(name, "", reason="no settings for it in the demo")
        else:
            yield from SETTINGS[name](served[0], size)


@dataclass(frozen=True)
class _View:
    """A field that a solver can be tried on; how its positions become samples; its noise level, where it is one."""

    field: Any
    label: str = ""
    finish: Callable[[Tensor], Tensor] = lambda x: x
    level: float | None = None


def _views(field: Any) -> Iterator[_View]:
    yield _View(field)
    path = getattr(field, "path", None)
    if is_timed(field) and path is not None:
        t = float(path.t(torch.tensor(-2 * math.log(WALK_LEVEL), dtype=torch.float64)))
        yield _View(
            field.at(t), f"at level {WALK_LEVEL}, then denoised", partial(_denoised, field, t), float(path.sigma(t))
        )
    if callable(getattr(field, "noised", None)):
        yield _View(field.noised(VP()), "with VP noise")


def _denoised(field: Any, t: float, x: Tensor) -> Tensor:
    with torch.no_grad():
        return resolve(field, {"denoise"}).denoise(x, t)  # type: ignore[union-attr]


def _serves(solver: Any, view: _View) -> bool:
    try:
        resolve(view.field, _needs(solver), timed=solver.timed)
    except MissingCapability:
        return False
    return True


def _needs(solver: Any) -> frozenset[str]:
    return solver().needs if isinstance(solver.needs, property) else solver.needs


def _reason(solver: Any, field: Any) -> str:
    if solver.timed and not is_timed(field):
        return "static field: no noised densities known"
    missing = sorted(_needs(solver) - offers(field) - ({"score"} if "energy" in offers(field) else set()))
    return f"field without {' and '.join(missing)}" if missing else "discrete states, which it would leave"


def _cell(view: _View, solver: str, setting: str, made: Callable[[], Any], **options: Any) -> Cell:
    def run(seed: int) -> Any:
        return sample(view.field, made(), seed=seed, keep="last", **options)

    return Cell(solver, " ".join(filter(None, (setting, view.label))), run, view.finish)


def _step_size(view: _View, chains: int = 64, steps: int = 40, rounds: int = 12) -> float:
    """A step size for Langevin kernels: the one that MALA accepts at its best rate, or a fifth of the noise's variance."""
    if view.level is not None or not _serves(MALA, view):
        return 0.2 * (view.level if view.level is not None else 0.5) ** 2
    size, x = 0.05, None
    for k in range(rounds):
        draws = sample(view.field, MALA(size), chains=chains, steps=steps, init=x, seed=k, keep="last")
        size *= math.exp(2 * (float(draws.stats["accept"].nanmean()) - BEST_ACCEPTANCE))
        x = draws.final
    return size


def _ula(view: _View, size: Size) -> Iterator[Cell]:
    def made() -> ULA:
        return ULA(_step_size(view) / (1 if view.level is not None else 4))

    yield _cell(view, "ula", "", made, chains=size.chains, steps=size.steps)


def _underdamped(view: _View, size: Size) -> Iterator[Cell]:
    def made() -> Underdamped:
        h = math.sqrt(_step_size(view) / 2)  # a length: half of the one that Langevin steps have
        return Underdamped(h if view.level is not None else h / 2)

    yield _cell(view, "underdamped", "", made, chains=size.chains, steps=size.steps)


def _ghmc(view: _View, size: Size) -> Iterator[Cell]:
    def made() -> GHMC:
        return GHMC(math.sqrt(_step_size(view) / 2))

    yield _cell(view, "ghmc", "", made, chains=size.chains, steps=size.steps)


def _mala(view: _View, size: Size) -> Iterator[Cell]:
    yield _cell(view, "mala", "", lambda: MALA(_step_size(view)), chains=size.chains, steps=size.steps)


def _preconditioned(view: _View, size: Size) -> Iterator[Cell]:
    made = PreconditionedLangevin
    yield _cell(view, "preconditioned-langevin", "", made, chains=size.chains, steps=size.steps, warmup=size.steps // 4)


def _tuned(solver: str, make: Callable[[], Any], view: _View, size: Size) -> Iterator[Cell]:
    yield _cell(view, solver, "", make, chains=size.chains, steps=size.steps // 4, warmup=size.steps // 4)


def _weighted(name: str, view: _View, size: Size) -> Iterator[Cell]:
    """Weighted draws, resampled by their weights at the end, so that what is judged is equally weighted."""
    island = min(ISLAND, size.chains)
    chains = size.chains // island * island if name == "smc" else size.chains

    def run(seed: int) -> Any:
        kernel = HMC(math.sqrt(_step_size(view) / 2), leapfrogs=4, metric="none")
        levels = size.steps // 4
        solver = AIS(levels, kernel=kernel) if name == "ais" else SMC(levels, kernel=kernel, island=island)
        draws = sample(view.field, solver, chains=chains, seed=seed, keep="last")
        start = torch.full((1,), 0.5)
        chosen = resampled(draws.stats["log_weight"][None], start)[0][0]
        return replace(draws, final=draws.final[chosen], status=draws.status[chosen])

    yield Cell(name, " ".join(filter(None, ("resampled", view.label))), run, view.finish)


def _tempering(view: _View, size: Size) -> Iterator[Cell]:
    made = partial(ParallelTempering, HMC(leapfrogs=5, metric="none"), replicas=4)
    yield _cell(
        view,
        "parallel-tempering",
        "4 temperatures",
        made,
        chains=size.chains,
        steps=size.steps // 4,
        warmup=size.steps // 4,
    )


def _discrete(solver: str, make: Callable[[], Any], view: _View, size: Size) -> Iterator[Cell]:
    yield _cell(view, solver, "", make, chains=size.chains, steps=size.steps)


def _annealed(view: _View, size: Size) -> Iterator[Cell]:
    if is_timed(view.field):
        yield _cell(view, "annealed-langevin", "40 levels", lambda: AnnealedLangevin(40, 5), chains=size.chains)
        return

    def made() -> AnnealedLangevin:
        levels = torch.logspace(1, 0, 10, dtype=torch.float64).tolist()
        return AnnealedLangevin(levels, max(1, size.steps // 10), _step_size(view) / 4)

    yield _cell(view, "annealed-langevin", "temperatures 10 to 1", made, chains=size.chains)


def _flow(view: _View, size: Size) -> Iterator[Cell]:
    for method, steps in (("euler", 32), ("heun", 16), ("dpmpp_2m", 16), ("adams_3", 16), ("dopri5", None)):
        setting = method if steps is None else f"{method} {steps}"
        made = partial(ProbabilityFlow, method, steps, rtol=1e-3, atol=1e-3)
        yield _cell(view, "probability-flow", setting, made, chains=size.chains)


def _reverse_sde(view: _View, size: Size) -> Iterator[Cell]:
    for method, steps in (("ancestral", 64), ("dpmpp_2m", 32)):
        yield _cell(view, "reverse-sde", f"{method} {steps}", partial(ReverseSDE, method, steps), chains=size.chains)


SETTINGS: dict[str, Callable[[_View, Size], Iterator[Cell]]] = {
    "ula": _ula,
    "mala": _mala,
    "preconditioned-langevin": _preconditioned,
    "underdamped": _underdamped,
    "ghmc": _ghmc,
    "hmc": partial(_tuned, "hmc", HMC),
    "chees": partial(_tuned, "chees", ChEES),
    "nuts": partial(_tuned, "nuts", NUTS),
    "mclmc": partial(_tuned, "mclmc", MCLMC),
    "adjusted-mclmc": partial(_tuned, "adjusted-mclmc", AdjustedMCLMC),
    "gibbs-with-gradients": partial(_discrete, "gibbs-with-gradients", GibbsWithGradients),
    "discrete-langevin": partial(_discrete, "discrete-langevin", partial(DiscreteLangevin, 0.5)),
    "block-gibbs": partial(_discrete, "block-gibbs", BlockGibbs),
    "parallel-tempering": _tempering,
    "ais": partial(_weighted, "ais"),
    "smc": partial(_weighted, "smc"),
    "annealed-langevin": _annealed,
    "probability-flow": _flow,
    "reverse-sde": _reverse_sde,
}
