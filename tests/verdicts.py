"""Runs whose verdict is known: well-mixed ones, in which nothing may be found, and broken ones, each with its cause.

`python -m tests.verdicts` runs both tables in full and prints the two rates that docs/diagnostics.md states.

*Well mixed* are chains that start in their law (or have forgotten where they started), forget it at least ten times over, and
have a thousand effective draws of every coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import scoretk as stk
from scoretk.diagnostics.summary import Summary
from scoretk.models.targets.mixture import gaussian

__all__ = ["BROKEN", "REAL", "SYNTHETIC", "Run"]


@dataclass(frozen=True)
class Run:
    """A run by name: draws from a seed, or draws as `sample` returns them."""

    name: str
    make: Callable[[int], Tensor | stk.Draws]

    def summary(self, seed: int = 0) -> Summary:
        made = self.make(seed)
        return (made if isinstance(made, stk.Draws) else drawn(made)).summary(most=1)


def drawn(x: Tensor, **stats: Tensor) -> stk.Draws:
    """Draws as a run of an unknown solver would return them."""
    status = torch.zeros(len(x), dtype=torch.int64)
    return stk.Draws(x=x, final=x[:, -1], status=status, failed_at=status - 1, stats=stats)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def autoregressive(
    seed: int, chains: int, n: int, d: int, keep: float | Tensor, start: Tensor | None = None
) -> Tensor:
    """`x' = keep x + sqrt(1 - keep^2) z` on N(0, 1), from N(0, 1) or from a start; keep a number, or one a chain."""
    z = normal(seed, n, chains, d)
    keep = torch.as_tensor(keep, dtype=torch.float32).reshape(-1, 1)
    x, xs = z[0] if start is None else start.expand(chains, d).clone(), []
    for t in range(n):
        x = keep * x + (1 - keep**2).sqrt() * z[t] if t or start is not None else x
        xs.append(x)
    return torch.stack(xs, 1)


def switching(seed: int, chains: int, n: int, stay: float, distance: float = 6.0) -> Tensor:
    """Two modes of equal weight, between which a chain changes with probability 1 - stay a step."""
    u = torch.rand(chains, n, generator=torch.Generator().manual_seed(seed))
    first = torch.rand(chains, 1, generator=torch.Generator().manual_seed(seed + 1)) < 0.5
    mode = (first + (u > stay).cumsum(1)) % 2
    return (distance * mode[..., None] + normal(seed + 2, chains, n, 1)).float()


def ornstein(mean: float, std: float, d: int = 2) -> stk.Energy:
    """The energy of N(mean, std^2 I)."""
    return stk.Energy(lambda x: ((x - mean) / std).square().sum(1) / 2, (d,))


# ---- well mixed -------------------------------------------------------------------------------------------------------------

SIZES = [
    (4, 1000, 1),
    (4, 2000, 10),
    (2, 3000, 3),
    (1, 4000, 2),
    (8, 500, 5),
    (16, 200, 3),
    (32, 60, 2),
    (64, 100, 10),
    (256, 40, 4),
    (256, 300, 2),
    (512, 20, 3),
    (1024, 8, 2),
    (2048, 4, 1),
    (64, 100, 1000),
    (16, 200, 300),
]
KEEPS = [
    (4, 10_000, 2, 0.9),
    (4, 4000, 20, 0.6),
    (16, 1000, 3, 0.8),
    (64, 200, 5, 0.8),
    (64, 100, 10, 0.6),
    (256, 300, 2, 0.9),
    (256, 100, 100, 0.5),
    (1024, 60, 2, 0.5),
    (64, 200, 3, -0.7),
    (256, 300, 2, -0.9),
    (4, 4000, 3, -0.5),
]


def independent(seed: int, chains: int, n: int, d: int) -> Tensor:
    return normal(seed, chains, n, d)


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "cauchy": lambda x: torch.tan(math.pi * (torch.special.ndtr(x.double()) - 0.5)),
    "exponential": lambda x: -torch.special.log_ndtr(-x.double()),
    "far from 0": lambda x: 1000 + x,
    "bimodal": lambda x: x + 5 * x.sign(),
    "binary": lambda x: (x > 0.5).float(),
    "rare": lambda x: (x > 2.5).float(),
    "counts": lambda x: (3 + 2 * x).round().clamp(min=0),
    "a fixed coordinate": lambda x: torch.cat([x, torch.full_like(x[..., :1], 0.3)], -1),
    "Cholesky factors": lambda x: torch.tril(x[..., :1, None] + torch.eye(3)).flatten(2),
}


def shaped(shape: Callable[[Tensor], Tensor], made: Callable[[int], Tensor], seed: int) -> Tensor:
    return shape(made(seed))


def _synthetic() -> list[Run]:
    plain = [
        Run(f"independent {size}", partial(independent, chains=size[0], n=size[1], d=size[2]))
        for size in SIZES
    ]
    correlated = [
        Run(f"AR(1) {keep}: {c, n, d}", partial(autoregressive, chains=c, n=n, d=d, keep=keep))
        for c, n, d, keep in KEEPS
    ]
    shapes = [
        Run(f"{name}: {made.name}", partial(shaped, shape, made.make))
        for name, shape in SHAPES.items()
        for made in (*plain[5:9:3], correlated[3])
    ]
    modes = [Run("modes that change often", partial(switching, chains=64, n=300, stay=0.7))]
    return [*plain, *correlated, *shapes, *modes]


SYNTHETIC = _synthetic()


def real(name: str, field, solver, **options) -> Run:
    def make(seed: int) -> stk.Draws:
        target = stk.load(field) if isinstance(field, str) else field
        return stk.sample(target, solver, seed=seed, **options)

    return Run(name, make)


ten_scales = stk.Energy(lambda x: (x / torch.arange(1, 11)).square().sum(1) / 2, (10,))
near_wells = stk.Energy(
    lambda x: -torch.logaddexp(-(x - 3).square().sum(1) / 2, -(x + 3).square().sum(1) / 2), (1,)
)
gamma = stk.constrained(
    stk.Energy(lambda x: (x - 2 * x.log()).sum(1), (2,)), torch.distributions.constraints.positive
)
weak = stk.load("ising", size=4, coupling=0.2)
tempered_hmc = stk.ParallelTempering(stk.HMC(0.4, leapfrogs=4, metric="none"), replicas=5)

REAL = [
    real("ChEES default, normal", gaussian(2), None, chains=256, steps=200, warmup=200),
    real(
        "ChEES default, normal of other scale",
        ornstein(5, 3, 10),
        None,
        chains=64,
        steps=300,
        warmup=300,
    ),
    real("ChEES, eight schools", "eight-schools", None, chains=64, steps=300),
    real("NUTS, eight schools", "eight-schools", stk.NUTS(), chains=16, steps=200, warmup=200),
    real(
        "HMC, normal in 500 dimensions", gaussian(500), stk.HMC(), chains=32, steps=200, warmup=200
    ),
    real("HMC, ten scales", ten_scales, stk.HMC(), chains=32, steps=300, warmup=300),
    real("NUTS, normal", gaussian(3), stk.NUTS(), chains=32, steps=100, warmup=100),
    real("MALA", ornstein(0, 1, 5), stk.MALA(0.6), chains=64, steps=1000),
    real("MALA, thinned", ornstein(0, 1, 3), stk.MALA(0.6), chains=64, steps=1000, thin=5),
    real("MALA with warmup", ornstein(3, 1, 3), stk.MALA(0.6), chains=64, steps=500, warmup=200),
    real("MALA, semicircle", "semicircle", stk.MALA(0.1), chains=64, steps=500, warmup=100),
    real("ULA", ornstein(0, 1, 3), stk.ULA(0.2), chains=64, steps=500, warmup=50),
    real("underdamped", ornstein(0, 1, 3), stk.Underdamped(0.5), chains=64, steps=500, warmup=100),
    real("GHMC", ornstein(0, 1, 3), stk.GHMC(0.5), chains=64, steps=500, warmup=100),
    real(
        "preconditioned",
        ornstein(0, 2, 4),
        stk.PreconditionedLangevin(),
        chains=64,
        steps=500,
        warmup=300,
    ),
    real("MCLMC", ornstein(0, 1, 10), stk.MCLMC(), chains=64, steps=400, warmup=300),
    real(
        "adjusted MCLMC", ornstein(0, 1, 10), stk.AdjustedMCLMC(), chains=32, steps=200, warmup=200
    ),
    real("tempering, two modes", near_wells, tempered_hmc, chains=64, steps=500, warmup=300),
    real("block Gibbs, Ising", weak, stk.BlockGibbs(), chains=64, steps=200, warmup=50),
    real(
        "discrete Langevin, Ising",
        weak,
        stk.DiscreteLangevin(4.0),
        chains=64,
        steps=500,
        warmup=100,
    ),
    real("HMC on a constrained law", gamma, stk.HMC(), chains=32, steps=300, warmup=300),
    real("regression", "linear-regression", None, chains=64, steps=200, warmup=300),
    real("probability flow", stk.smoothed(gaussian(2)), stk.ProbabilityFlow(steps=16), chains=512),
    real("SMC", "ring-mixture", stk.SMC(100), chains=1024),
]


# ---- broken -----------------------------------------------------------------------------------------------------------------


def changed(
    change: Callable[[Tensor], Tensor],
    seed: int,
    chains: int = 64,
    n: int = 300,
    d: int = 3,
    keep: float = 0.5,
) -> Tensor:
    """Well-mixed chains of N(0, 1), with one thing wrong."""
    return change(autoregressive(seed, chains, n, d, keep))


def broken(name: str, change: Callable[[Tensor], Tensor], **size) -> Run:
    return Run(name, partial(changed, change, **size))


def set_(x: Tensor, where, value) -> Tensor:
    x = x.clone()
    x[where] = value
    return x


def trend(x: Tensor, by: float, where=slice(None)) -> Tensor:
    x = x.clone()
    x[..., where] += (
        torch.linspace(0, by, x.shape[1])[None, :, None]
        if isinstance(where, slice)
        else torch.linspace(0, by, x.shape[1])
    )
    return x


def parities(seed: int, thin: int, start: int | None = None, stay: float = 0.0) -> Tensor:
    """Six bits of which each step changes one: chains of period two, every thin-th draw."""
    made = torch.Generator().manual_seed(seed)
    bits = (
        torch.randint(2, (64, 6), generator=made) if start is None else torch.full((64, 6), start)
    )
    xs = []
    for _ in range(400):
        for _ in range(thin):
            site = torch.randint(6, (64, 1), generator=made)
            move = torch.rand(64, 1, generator=made) >= stay
            bits = torch.where((torch.arange(6) == site) & move, 1 - bits, bits)
        xs.append(bits)
    return torch.stack(xs, 1).float()


def in_bfloat16(seed: int) -> Tensor:
    """Langevin steps whose state is kept in bfloat16: most steps are rounded away."""
    x, z = normal(seed, 64, 2).bfloat16(), normal(seed + 1, 400, 64, 2)
    xs = []
    for t in range(400):
        x = (x.float() - 1e-4 * x.float() + math.sqrt(2e-4) * z[t]).bfloat16()
        xs.append(x.float())
    return torch.stack(xs, 1)


def half(x: Tensor) -> slice:
    return slice(0, len(x) // 2)


labels = torch.tensor([3.0, 0.0, -3.0])
two_wells = stk.Energy(
    lambda x: -torch.logaddexp(-(x - 6).square().sum(1) / 2, -(x + 6).square().sum(1) / 2), (2,)
)
many_wells = stk.Energy(lambda x: 8 * (x.square() - 1).square().sum(1), (4,))
"""Two wells in each coordinate, which a small step does not leave."""

BROKEN = [
    # drift, in which all chains agree
    real("ULA on its way to 100", ornstein(100, 1), stk.ULA(step_size=0.01), chains=256, steps=300),
    real(
        "ULA on its way to 100, warmup 200",
        ornstein(100, 1),
        stk.ULA(step_size=0.01),
        chains=256,
        steps=300,
        warmup=200,
    ),
    real(
        "ULA on its way to sd 10", ornstein(0, 10), stk.ULA(step_size=0.01), chains=256, steps=500
    ),
    real("MALA with its burn-in", ornstein(20, 1, 5), stk.MALA(0.3), chains=64, steps=300),
    real(
        "underdamped, one scale of 100",
        stk.Energy(lambda x: (x / torch.tensor([1.0, 100])).square().sum(1) / 2, (2,)),
        stk.Underdamped(0.3),
        chains=128,
        steps=500,
    ),
    broken("a trend of half a standard deviation", partial(trend, by=0.5), chains=256),
    broken("one coordinate of 300 drifts", partial(trend, by=1.5, where=217), d=300),
    broken(
        "one coordinate of 500 drifts in 32 chains",
        partial(trend, by=3.0, where=499),
        d=500,
        chains=32,
        n=200,
    ),
    broken("four chains with a trend", partial(trend, by=2.0), chains=4, n=1000),
    broken("one chain with a trend", partial(trend, by=4.0), chains=1, n=1000),
    broken("the spread grows", lambda x: x * torch.linspace(0.6, 1.4, x.shape[1])[None, :, None]),
    broken(
        "a start at 0, far from the spread",
        lambda x: x * (1 - torch.exp(-torch.arange(x.shape[1]) / 50.0))[None, :, None],
    ),
    # chains that differ
    broken("half of the chains at twice the spread", lambda x: set_(x, half(x), 2 * x[half(x)])),
    broken("one chain of 64 at twice the spread", lambda x: set_(x, 17, 2 * x[17])),
    broken(
        "one chain of four at three times the spread",
        lambda x: set_(x, 2, 3 * x[2]),
        chains=4,
        n=1000,
    ),
    broken("one chain of 64 sits elsewhere", lambda x: set_(x, 40, x[40] + 2)),
    broken(
        "one coordinate of 500 in two places",
        lambda x: set_(x, (half(x), slice(None), 321), x[half(x), :, 321] + 1),
        d=500,
    ),
    broken(
        "a quarter of the chains at temperature 4",
        lambda x: set_(x, slice(0, 16), 2 * x[:16]),
        n=100,
    ),
    broken(
        "labels switched",
        lambda x: torch.cat([x[half(x)] + labels, x[len(x) // 2 :] + labels.flip(0)]),
    ),
    Run("modes that never change", partial(switching, chains=64, n=300, stay=1.0)),
    Run("modes that change seldom", partial(switching, chains=256, n=300, stay=0.997)),
    Run("modes that change seldom, one chain", partial(switching, chains=1, n=2000, stay=0.998)),
    real(
        "HMC in two wells",
        two_wells,
        stk.HMC(0.3, leapfrogs=5, metric="none"),
        chains=64,
        steps=300,
        warmup=100,
    ),
    real("MALA in many wells", many_wells, stk.MALA(0.005), chains=64, steps=500),
    # chains that do not move, or hardly
    broken("half of the chains frozen", lambda x: set_(x, half(x), x[half(x), :1])),
    broken(
        "half of the chains freeze half-way",
        lambda x: set_(x, (half(x), slice(150, None)), x[half(x), 149:150]),
    ),
    broken("a coordinate that never moves", lambda x: set_(x, (..., 1), x[:, :1, 1])),
    real("MALA that accepts nothing", ornstein(0, 0.01, 10), stk.MALA(1.0), chains=32, steps=100),
    real("ULA with a tiny step", ornstein(0, 5), stk.ULA(1e-6), chains=64, steps=300),
    Run("one slow chain", lambda seed: autoregressive(seed, 16, 1000, 2, [0.5] * 15 + [0.999])),
    Run("heavy autocorrelation", partial(autoregressive, chains=8, n=2000, d=2, keep=0.998)),
    Run("few draws", partial(autoregressive, chains=4, n=100, d=2, keep=0.8)),
    Run("three draws of each chain", partial(independent, chains=64, n=3, d=2)),
    Run("chains stalled in bfloat16", in_bfloat16),
    # values
    broken("an infinite draw", lambda x: set_(x, (3, 7, 1), math.inf)),
    broken("an infinite draw of one of 500", lambda x: set_(x, (3, 7, 400), -math.inf), d=500),
    broken("NaN draws", lambda x: set_(x, (3, slice(7, 9), 1), math.nan)),
    broken("a clamp at 1", lambda x: x.clamp(max=1.0)),
    broken(
        "a clamp at one coordinate of 300",
        lambda x: set_(x, (..., 211), x[..., 211].clamp(-2, 2)),
        d=300,
    ),
    broken("the edge of float32", lambda x: torch.sigmoid(12 * x)),
    broken("kept in bfloat16", lambda x: x.bfloat16().float()),
    broken("far from 0 in float32", lambda x: x + 1e6),
    broken("chains that are copies", lambda x: x[torch.arange(64) % 4]),
    # chains that alternate
    Run("bits that alternate", partial(parities, thin=1)),
    Run("bits that alternate from one start", partial(parities, thin=1, start=0)),
    Run("bits that alternate, thinned", partial(parities, thin=10)),
    Run("bits that alternate, thinned, from one start", partial(parities, thin=10, start=0)),
    Run("bits that nearly alternate", partial(parities, thin=1, stay=0.001)),
    broken(
        "signs that alternate",
        lambda x: (
            x.abs() * torch.where(torch.arange(x.shape[1]) % 2 == 1, 1.0, -1.0)[None, :, None]
        ),
    ),
    # laws that the solver does not reach
    real("HMC in the funnel", "funnel", stk.HMC(), chains=64, steps=300, warmup=200),
    real("MALA in the funnel", "funnel", stk.MALA(0.05), chains=64, steps=500),
    real("ULA that leaves", ornstein(0, 1), stk.ULA(2.5), chains=16, steps=400),
    real("the semicircle's edge", "semicircle", stk.ULA(0.2), chains=16, steps=100),
    real("AIS in too few levels", ornstein(4, 0.3, 4), stk.AIS(3), chains=512),
]


def rate(runs: list[Run], seeds: range) -> tuple[int, int, list[str]]:
    """How many runs have a finding, of how many, and which have or, of broken ones, have not."""
    found = {f"{run.name} (seed {seed})": run.summary(seed) for run in runs for seed in seeds}
    flagged = [name for name, summary in found.items() if not summary.ok]
    return len(flagged), len(found), flagged


if __name__ == "__main__":
    torch.set_num_threads(1)
    for title, runs, seeds in (
        ("well mixed, synthetic", SYNTHETIC, range(4)),
        ("well mixed, real", REAL, range(9)),
        ("broken", BROKEN, range(3)),
    ):
        flagged, total, names = rate(runs, seeds)
        print(f"{title}: {flagged} of {total} have a finding")
        for name in names if title != "broken" else []:
            print(f"  {name}")
