"""Microseconds an evaluation of fixed-grid probability-flow samplers around a trivial model: what the solver itself costs.

    python benchmarks/probability_flow.py [--device cpu] [--threads N] [--rounds 7] [--json FILE]

The model returns `x / 2` whatever it is asked, 16 x 2 points in float32; each contestant takes 250 steps.
"""

from __future__ import annotations

import itertools

import torch
from measure import Report, arguments, at_hand, fastest, finish
from torch import Tensor

import scoretk as stk

STEPS = 250
SIZE = (16, 2)


def by_hand(x: Tensor) -> Tensor:
    """Euler on EDM's path, as short as it gets."""
    sigmas = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), STEPS + 1).pow(7).tolist()
    for a, b in itertools.pairwise(sigmas):
        denoised = x / 2
        x = denoised + (b / a) * (x - denoised)
    return x


def by_scoretk(x: Tensor, method: str, compiled: bool = False) -> Tensor:
    """scoretk on EDM's path; Heun makes two evaluations a step."""
    field = stk.Diffusion(lambda x, t: x / 2, SIZE[1:], stk.EDM(0.002, 80.0), predicts="data")
    return stk.sample(field, stk.ProbabilityFlow(method, STEPS), init=x, compile=compiled).final


def by_azula(x: Tensor, name: str) -> Tensor:
    """azula's samplers, whose times run from 1 to 0."""
    from azula import sample
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VESchedule

    class Half(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = VESchedule()

        def forward(self, x_t: Tensor, t: Tensor, **_: Tensor) -> DiracPosterior:
            return DiracPosterior(mean=x_t / 2)

    return getattr(sample, name)(Half().to(x.device), steps=STEPS, silent=True)(x)


def by_diffusers(x: Tensor, name: str) -> Tensor:
    """diffusers' schedulers, in the loop that its pipelines write."""
    import diffusers

    scheduler = getattr(diffusers, name)(num_train_timesteps=1000)
    scheduler.set_timesteps(STEPS, device=x.device)
    for t in scheduler.timesteps:
        x = scheduler.step(x / 2, t, x).prev_sample
    return x


def main() -> None:
    options = arguments(__doc__)
    x = torch.randn(SIZE, generator=torch.Generator().manual_seed(0)).to(options.device)
    runs = {
        "by hand, Euler": lambda: by_hand(x),
        "scoretk euler": lambda: by_scoretk(x, "euler"),
        "scoretk dpmpp_2m": lambda: by_scoretk(x, "dpmpp_2m"),
        "scoretk heun": lambda: by_scoretk(x, "heun"),
        "scoretk euler, compiled": lambda: by_scoretk(x, "euler", True),
        "azula EulerSampler": lambda: by_azula(x, "EulerSampler"),
        "azula DDIMSampler": lambda: by_azula(x, "DDIMSampler"),
        "azula HeunSampler": lambda: by_azula(x, "HeunSampler"),
        "azula zABSampler": lambda: by_azula(x, "zABSampler"),
        "diffusers DDIM": lambda: by_diffusers(x, "DDIMScheduler"),
        "diffusers UniPC": lambda: by_diffusers(x, "UniPCMultistepScheduler"),
    }
    runs = at_hand(runs)
    with torch.no_grad():
        for name, run in runs.items():
            if not bool(torch.isfinite(run()).all()):
                raise RuntimeError(f"{name} gives numbers that are not finite")
        seconds = fastest(runs, options.device, options.rounds)
    report = Report("Probability flow around a trivial model, an evaluation", "by hand, Euler")
    evaluations = {name: 2 * STEPS if "eun" in name else STEPS for name in runs}
    report.add(
        "16 x 2", seconds, evaluations, {name: "15" for name in runs if name.startswith("scoretk")}
    )
    finish([report], options)


if __name__ == "__main__":
    main()
