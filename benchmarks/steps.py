"""Microseconds a Langevin step, and a trajectory of Hamiltonian Monte Carlo: scoretk, a hand-written torch loop, torchebm; one
energy, chains and precision.

    python benchmarks/steps.py [--device cpu] [--threads N] [--rounds 7] [--json FILE]

Every contestant runs whole calls of its own sampler from the same start and returns the last positions. A call of
`stk.sample` costs about a millisecond beside its steps; it is in the figures. The first compiled call is reported apart.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time

import torch
from measure import Report, arguments, at_hand, fastest, finish
from torch import Tensor, nn

import scoretk as stk

STEP_SIZE = 0.01
LEAPFROGS = 10


class Ring(nn.Module):
    """Energy of eight Gaussians of standard deviation 1/4 on a circle of radius 2, `(n, 2) -> (n,)`."""

    def __init__(self) -> None:
        super().__init__()
        angle = torch.arange(8) * math.pi / 4
        self.register_buffer("means", 2 * torch.stack([angle.cos(), angle.sin()], 1))

    def forward(self, x: Tensor) -> Tensor:
        distances = (x[:, None] - self.means).square().sum(-1)
        return -torch.logsumexp(-8 * distances, 1)


def mlp(width: int = 128, dim: int = 64) -> nn.Module:
    """A confined energy with four hidden layers, `(n, 64) -> (n,)`."""
    torch.manual_seed(0)
    sizes = [dim, width, width, width, width]
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
    net = nn.Sequential(*layers, nn.Linear(width, 1))

    class Confined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).squeeze(1) + x.square().sum(1) / 2

    return Confined()


def by_hand(energy: nn.Module, x: Tensor, steps: int) -> Tensor:
    """What a user would write."""
    for _ in range(steps):
        y = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(energy(y).sum(), y)
        x = x - STEP_SIZE * gradient + math.sqrt(2 * STEP_SIZE) * torch.randn_like(x)
    return x


def by_torchebm(energy: nn.Module, x: Tensor, steps: int) -> Tensor:
    """torchebm's sampler."""
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.energy = energy

        def forward(self, x: Tensor) -> Tensor:
            return self.energy(x)

    sampler = LangevinDynamics(
        Model().to(x.device), step_size=STEP_SIZE, noise_scale=1.0, device=x.device
    )
    return sampler.sample(x=x, n_steps=steps)


def by_scoretk(energy: nn.Module, x: Tensor, steps: int, compiled: bool) -> Tensor:
    """scoretk, eager or compiled."""
    field = stk.Energy(energy, tuple(x.shape[1:]))
    return stk.sample(
        field, stk.ULA(STEP_SIZE), init=x, steps=steps, keep="last", compile=compiled
    ).final


def hmc_by_torchebm(energy: nn.Module, x: Tensor, steps: int) -> Tensor:
    """torchebm's Hamiltonian Monte Carlo."""
    from torchebm.core import BaseModel
    from torchebm.samplers import HamiltonianMonteCarlo

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.energy = energy

        def forward(self, x: Tensor) -> Tensor:
            return self.energy(x)

    model = Model().to(x.device)
    return HamiltonianMonteCarlo(
        model, step_size=0.1, n_leapfrog_steps=LEAPFROGS, device=x.device
    ).sample(x=x, n_steps=steps)


def hmc_by_scoretk(energy: nn.Module, x: Tensor, steps: int, compiled: bool) -> Tensor:
    """scoretk, eager or compiled."""
    solver = stk.HMC(0.1, LEAPFROGS, jitter=0.0, metric="none")
    field = stk.Energy(energy, tuple(x.shape[1:]))
    return stk.sample(field, solver, init=x, steps=steps, keep="last", compile=compiled).final


def trajectories(options: argparse.Namespace) -> Report:
    """Trajectories of ten leapfrog steps, 10 chains on the ring."""
    report = Report(f"Hamiltonian Monte Carlo, {LEAPFROGS} leapfrog steps", "torchebm")
    energy = Ring().to(options.device).requires_grad_(False)
    x = torch.randn((10, 2), generator=torch.Generator().manual_seed(1)).to(options.device)
    runs = {
        "torchebm": lambda: hmc_by_torchebm(energy, x, 50),
        "scoretk eager": lambda: hmc_by_scoretk(energy, x, 200, False),
        "scoretk compiled": lambda: hmc_by_scoretk(energy, x, 4000, True),
    }
    runs = at_hand(runs)
    for name, run in runs.items():
        check(name, torch.cat([run() for _ in range(20 if name == "torchebm" else 1)]))
    seconds = fastest(runs, options.device, options.rounds)
    steps = {"torchebm": 50, "scoretk eager": 200, "scoretk compiled": 4000}
    report.add("ring 10 x 2", seconds, steps, {"scoretk compiled": "40"})
    return report


def check(name: str, x: Tensor) -> None:
    """Nobody is timed on another computation: on the ring the mean radius is near 2."""
    radius = float(x.norm(dim=1).mean())
    if not 1.8 < radius < 2.3:
        raise RuntimeError(f"{name} is not on the ring: mean radius {radius:.2f}")


def main() -> None:
    options = arguments(__doc__)
    report = Report("Langevin steps", "torchebm")
    rows = [
        ("ring 10 x 2", Ring(), (10, 2), 1000),
        ("ring 10,000 x 2", Ring(), (10_000, 2), 100),
        ("MLP 4 x 128, 1024 x 64", mlp(), (1024, 64), 40),
    ]
    if options.device.type != "cpu":  # what fills an accelerator
        rows += [
            ("ring 1,000,000 x 2", Ring(), (1_000_000, 2), 100),
            ("MLP 4 x 128, 65,536 x 64", mlp(), (65_536, 64), 40),
        ]
    for row, energy, size, steps in rows:
        energy = energy.to(options.device).requires_grad_(False)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(size, generator=generator).to(options.device)
        many = 4 * steps
        runs = {
            "by hand": lambda e=energy, x=x, n=steps: by_hand(e, x, n),
            "torchebm": lambda e=energy, x=x, n=steps: by_torchebm(e, x, n),
            "scoretk eager": lambda e=energy, x=x, n=steps: by_scoretk(e, x, n, False),
            "scoretk compiled": lambda e=energy, x=x, n=many: by_scoretk(e, x, n, True),
        }
        runs = at_hand(runs)
        if size[1] == 2:
            for name, run in runs.items():
                check(name, torch.cat([run() for _ in range(4 if size[0] == 10 else 1)]))
        started = time.perf_counter()
        by_scoretk(energy, x, 16, True).cpu()  # until it is there
        compile_seconds = time.perf_counter() - started
        seconds = fastest(runs, options.device, options.rounds)
        aims = {"scoretk eager": "faster than torchebm"}
        if size == (10, 2):
            hand = 1e6 * seconds["by hand"] / steps
            aims = {"scoretk eager": f"by hand + 25 = {hand + 25:.0f}", "scoretk compiled": "12"}
        elif size == (10_000, 2):
            aims["scoretk compiled"] = "a third of torchebm"
        report.add(row, seconds, dict.fromkeys(runs, steps) | {"scoretk compiled": many}, aims)
        report.notes.append(
            f"{row}: a compiled call from a warm compiler cache takes {compile_seconds:.1f} s at first"
        )
    finish([report, trajectories(options)], options)


if __name__ == "__main__":
    main()
