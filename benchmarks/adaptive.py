"""The adaptive solver: microseconds an evaluation around a trivial model, and what a stiff sample costs its neighbours.

    python benchmarks/adaptive.py [--device cpu] [--threads N] [--rounds 7] [--json FILE]

Time: 16 x 2 points in float32 that turn about the origin by 60 radians, and the same points on EDM's path under the denoiser
`x / 2`, with torchdiffeq's dopri5 given the velocity written out by hand. An evaluation is a call of the model for the batch.

Count: `dx/dt = -rate (x - 1)` for 99 samples with rates from .1 to 2, and one with 1500: the sample-evaluations of the
batch, which the model counts, over the sum of those of every sample by itself. It comes out alike on any machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from measure import Report, arguments, fastest, finish
from torch import Tensor
from torchdiffeq import odeint

import scoretk as stk

METHODS = ("dopri5", "tsit5", "bosh3")
TOLERANCE = 1e-6
LOW, HIGH = 0.002 ** (1 / 7), 80 ** (1 / 7)

Model = Callable[..., Tensor]
Run = Callable[..., Tensor]


class Counted:
    """A model that counts how often it is asked, and for how many samples."""

    def __init__(self, model: Model) -> None:
        self.model, self.calls, self.rows = model, 0, 0

    def __call__(self, x: Tensor, *arguments: Tensor, **cond: Tensor) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return self.model(x, *arguments, **cond)


def turned(x: Tensor, t: Tensor) -> Tensor:
    """60 radians in the unit of time."""
    return x.flip(1) * x.new_tensor([-60.0, 60.0])


def halved(x: Tensor, t: Tensor) -> Tensor:
    """The trivial denoiser."""
    return x / 2


def decayed(x: Tensor, t: Tensor, rate: Tensor) -> Tensor:
    """Towards 1."""
    return -rate[:, None] * (x - 1)


def by_scoretk(
    kind: Callable[[Model], object], method: str, model: Model, x: Tensor, **cond: Tensor
) -> Tensor:
    """scoretk, from t = 0 to 1."""
    solver = stk.ProbabilityFlow(method, rtol=TOLERANCE, atol=TOLERANCE)
    draws = stk.sample(kind(model), solver, init=x, cond=cond)
    if draws.failures:
        raise RuntimeError(f"samples of scoretk failed: {draws.failures}")
    return draws.final


def by_torchdiffeq(
    velocity: Callable[..., Tensor], method: str, model: Model, x: Tensor, **cond: Tensor
) -> Tensor:
    """torchdiffeq, whose steps all samples share."""
    times = x.new_tensor([0.0, 1.0])
    return odeint(
        lambda t, x: velocity(model, x, t, **cond),
        x,
        times,
        rtol=TOLERANCE,
        atol=TOLERANCE,
        method=method,
    )[-1]


def of_velocity(model: Model, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
    """The model's own answer."""
    return model(x, t, **cond)


def of_denoiser(model: Model, x: Tensor, t: Tensor) -> Tensor:
    """`sigma' / sigma (x - D)` on EDM's path."""
    return 7 * (LOW - HIGH) / (HIGH + t * (LOW - HIGH)) * (x - model(x, t))


def flow(model: Model) -> object:
    """A velocity as a field."""
    return stk.Velocity(model, (2,))


def diffusion(model: Model) -> object:
    """A denoiser as a field."""
    return stk.Diffusion(model, (2,), stk.EDM(0.002, 80.0), predicts="data")


def counted(run: Run, model: Model, x: Tensor, **cond: Tensor) -> Counted:
    """The model after a run, which must have come to an end."""
    asked = Counted(model)
    if not bool(torch.isfinite(run(asked, x, **cond)).all()):
        raise RuntimeError(f"{run} gives numbers that are not finite")
    return asked


PROBLEMS = {
    "16 x 2, turned": (turned, of_velocity, flow),
    "16 x 2, EDM": (halved, of_denoiser, diffusion),
}


def timed(device: torch.device, rounds: int) -> Report:
    """Microseconds an evaluation."""
    report = Report(
        "Adaptive integration around a trivial model, an evaluation", "torchdiffeq dopri5"
    )
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)).to(device)
    for row, (model, velocity, field) in PROBLEMS.items():
        runs: dict[str, Run] = {"torchdiffeq dopri5": partial(by_torchdiffeq, velocity, "dopri5")}
        runs |= {f"scoretk {method}": partial(by_scoretk, field, method) for method in METHODS}
        calls = {name: counted(run, model, x).calls for name, run in runs.items()}
        seconds = fastest(
            {name: partial(run, model, x) for name, run in runs.items()}, device, rounds
        )
        report.add(row, seconds, calls, {name: "60" for name in runs if name.startswith("scoretk")})
        report.notes.append(
            f"evaluations, {row}: " + ", ".join(f"{name} {n}" for name, n in calls.items())
        )
    return report


@dataclass(frozen=True)
class Spent:
    """Sample-evaluations of a batch, and of its samples one by one."""

    name: str
    together: int
    alone: int
    ratio: float
    aim: str


@dataclass(frozen=True)
class Census:
    """A report of counts."""

    title: str
    rows: list[Spent]

    def show(self) -> None:
        """Print the table."""
        print(f"\n{self.title}\n\n{'':28}{'together':>12}{'alone':>12}{'ratio':>12}   aim")
        for row in self.rows:
            print(f"{row.name:28}{row.together:>12}{row.alone:>12}{row.ratio:>12.3f}   {row.aim}")


def stiff() -> Census:
    """Sample-evaluations together and alone."""
    x = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rates = torch.cat([torch.linspace(0.1, 2.0, 99), torch.tensor([1500.0])]).double()
    runs: dict[str, Run] = {
        f"scoretk {method}": partial(by_scoretk, flow, method) for method in METHODS
    }
    runs["torchdiffeq dopri5"] = partial(by_torchdiffeq, of_velocity, "dopri5")
    rows = []
    for name, run in runs.items():
        together = counted(run, decayed, x, rate=rates).rows
        alone = sum(
            counted(run, decayed, x[i : i + 1], rate=rates[i : i + 1]).rows for i in range(len(x))
        )
        rows.append(
            Spent(
                name,
                together,
                alone,
                together / alone,
                "1.05" if name.startswith("scoretk") else "",
            )
        )
    return Census(
        "One stiff sample among 100: sample-evaluations of the batch and of its samples one by one",
        rows,
    )


def main() -> None:
    options = arguments(__doc__)
    with torch.no_grad():
        finish([timed(options.device, options.rounds), stiff()], options)


if __name__ == "__main__":
    main()
