"""A U-Net sampled by the probability flow, beside as many calls of the network alone: what the solver adds.

    python benchmarks/network.py [--device cpu] [--autocast bf16] [--compile] [--steps 18] [--batch 64] [--channels 64]
                                 [--threads N] [--rounds 7] [--json FILE]

The network: 3 x 32 x 32 images; 64, 128 and 128 channels at 32, 16 and 8 pixels, two residual blocks each way at every size,
attention at the smallest; weights as torch draws them. "network" calls it with one and the same x and t; the state is float32,
also where `--autocast bf16` makes the network compute in bfloat16. With `--compile` the network is compiled for both, and
beside them scoretk compiles its whole step, network included. With `--graphs` the compiler replays CUDA graphs of the network.
The aim: at most 1.02 times the network. Each run is compared with the network alone just before and just after it, by the
processor's time on a CPU; reported are the median ratio and the middle half of all, for the network beside itself too: so far
apart are equal runs. On a CPU "within one run" is its time over that which it spent in the network's own calls, both by the
processor's clock: what the solver adds, whatever the machine does between one run and the next.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import Report, finish, paired
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

import scoretk as stk

IMAGE = (3, 32, 32)


class Block(nn.Module):
    """Two convolutions with the time between them, beside a straight way."""

    def __init__(self, channels: int, out: int, time: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(32, channels), nn.GroupNorm(32, out)])
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)]
        )
        self.time = nn.Linear(time, out)
        self.straight = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.convolutions[0](silu(self.norms[0](x))) + self.time(time)[:, :, None, None]
        return self.straight(x) + self.convolutions[1](silu(self.norms[1](h)))


class Attention(nn.Module):
    """Four heads over the pixels, beside a straight way."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.mix, self.out = (
            nn.GroupNorm(32, channels),
            nn.Conv2d(channels, 3 * channels, 1),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.mix(self.norm(x))
            .reshape(len(x), 3, 4, x.shape[1] // 4, -1)
            .transpose(-1, -2)
            .unbind(1)
        )
        return x + self.out(
            scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(x.shape)
        )


class UNet(nn.Module):
    """`net(x, t)`, like x; with `autocast` it computes in that dtype, and answers in x's."""

    def __init__(self, channels: int, autocast: torch.dtype | None) -> None:
        super().__init__()
        widths, self.channels, self.autocast = (
            (channels, 2 * channels, 2 * channels),
            channels,
            autocast,
        )
        time = 4 * channels
        self.time = nn.Sequential(
            nn.Linear(channels, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU()
        )
        self.first = nn.Conv2d(IMAGE[0], channels, 3, padding=1)
        self.down, self.smaller = nn.ModuleList(), nn.ModuleList()
        kept, width = [channels], channels
        for level, out in enumerate(widths):
            self.down.append(nn.ModuleList([Block(width, out, time), Block(out, out, time)]))
            kept, width = [*kept, out, out], out
            if level < len(widths) - 1:
                self.smaller.append(nn.Conv2d(out, out, 3, stride=2, padding=1))
                kept.append(out)
        self.middle = nn.ModuleList([Block(width, width, time), Block(width, width, time)])
        self.attention = Attention(width)
        self.up, self.larger = nn.ModuleList(), nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            blocks = []
            for _ in range(3):
                blocks.append(Block(width + kept.pop(), out, time))
                width = out
            self.up.append(nn.ModuleList(blocks))
            if level:
                self.larger.append(
                    nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(out, out, 3, padding=1))
                )
        self.last = nn.Sequential(
            nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, IMAGE[0], 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
            return self.predict(x, t).to(x.dtype)

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's own answer."""
        half = self.channels // 2
        angle = (
            1000
            * t[:, None]
            * torch.exp(-math.log(1e4) / half * torch.arange(half, device=t.device))
        )
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        h = self.first(x)
        kept = [h]
        for level, blocks in enumerate(self.down):
            for block in blocks:
                h = block(h, time)
                kept.append(h)
            if level < len(self.smaller):
                h = self.smaller[level](h)
                kept.append(h)
        h = self.middle[1](self.attention(self.middle[0](h, time)), time)
        for level, blocks in enumerate(self.up):
            for block in blocks:
                h = block(torch.cat([h, kept.pop()], 1), time)
            if level < len(self.larger):
                h = self.larger[level](h)
        return self.last(h)


def alone(net: Callable[..., Tensor], x: Tensor, steps: int) -> Tensor:
    """The network, called so often."""
    t = torch.full(x.shape[:1], 0.5, device=x.device)
    for _ in range(steps):
        answer = net(x, t)
    return answer


def sampled(
    net: Callable[..., Tensor], method: str, x: Tensor, steps: int, compiled: bool = False
) -> Tensor:
    """scoretk around it, one evaluation a step."""
    field = stk.Diffusion(net, IMAGE, stk.VP(), predicts="v")
    return stk.sample(field, stk.ProbabilityFlow(method, steps), init=x, compile=compiled).final


class Clocked(nn.Module):
    """A network that adds up the processor's seconds within its calls."""

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net, self.seconds = net, 0.0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        started = time.process_time()
        answer = self.net(x, t)
        self.seconds += time.process_time() - started
        return answer


def within(net: Callable[..., Tensor], method: str, x: Tensor, steps: int, rounds: int) -> float:
    """The median ratio of a run's processor time to what its network's calls took of it."""
    ratios = []
    for _ in range(rounds):
        clocked = Clocked(net).eval()
        started = time.process_time()
        sampled(clocked, method, x, steps)
        ratios.append((time.process_time() - started) / clocked.seconds)
    return statistics.median(ratios)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--autocast", choices=["bf16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--graphs", action="store_true")
    for name, default in (
        ("steps", 18),
        ("batch", 64),
        ("channels", 64),
        ("threads", 1),
        ("rounds", 7),
    ):
        parser.add_argument(f"--{name}", default=default, type=int)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    plain = (
        UNet(options.channels, torch.bfloat16 if options.autocast else None)
        .to(options.device)
        .eval()
    )
    x = torch.randn(options.batch, *IMAGE).to(options.device)
    mode = "reduce-overhead" if options.graphs else "default"
    net = torch.compile(plain, mode=mode) if options.compile or options.graphs else plain
    runs = {"network": partial(alone, net, x, options.steps)}
    runs |= {
        f"scoretk {method}": partial(sampled, net, method, x, options.steps)
        for method in ("adams_3", "euler")
    }
    if options.compile:
        runs["scoretk, compile=True"] = partial(sampled, plain, "adams_3", x, options.steps, True)
    with torch.no_grad():
        for name, run in runs.items():
            if not bool(torch.isfinite(run()).all()):
                raise RuntimeError(f"{name} gives numbers that are not finite")
        found = paired(runs, "network", options.device, options.rounds)
        inside = (
            {m: within(net, m, x, options.steps, options.rounds) for m in ("adams_3", "euler")}
            if options.device.type == "cpu"
            else {}
        )
    kind = (
        ["compiled"] * options.compile
        + ["graphs"] * options.graphs
        + ["bf16"] * bool(options.autocast)
    )
    report = Report(
        f"A U-Net of {sum(p.numel() for p in plain.parameters()) / 1e6:.1f} M parameters, an evaluation",
        "network",
    )
    row = f"{options.batch} images" + "".join(f", {k}" for k in kind)
    alone_for = statistics.median(other for pairs in found.values() for _, other in pairs)
    ratios = {name: [own / other for own, other in pairs] for name, pairs in found.items()}
    seconds = {name: alone_for * statistics.median(of_name) for name, of_name in ratios.items()}
    report.add(row, seconds, options.steps, {name: "1.02" for name in runs if name != "network"})
    for name, of_name in ratios.items():
        low, middle, high = statistics.quantiles(of_name, n=4)
        report.notes.append(
            f"{name}: {middle:.3f} times the network, half within {low:.3f}, {high:.3f}"
        )
    report.notes.extend(f"scoretk {m}, within one run: {ratio:.4f}" for m, ratio in inside.items())
    finish([report], options)


if __name__ == "__main__":
    main()
