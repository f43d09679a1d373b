"""Nanoseconds a number: scoretk's counter-based noise, eager and compiled, beside `torch.randn`, in one run.

    python benchmarks/noise.py [--device cpu] [--threads N] [--repeats 20] [--quick] [--json FILE]

Each figure is the least of the repeats; `--quick` has the first two shapes in float32 alone. Rows differ in how much of a block
of four words an event uses: (1000,) all, (2,) half, (1,) a quarter. The last rows are whole calls of small batches, in
microseconds, served from windows of many steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from scoretk.core.noise import Noise

SHAPES = ((1_000, (1_000,)), (10_000, (100,)), (250_000, (4,)), (500_000, (2,)), (1_000_000, (1,)))
CALLS = ((10, (2,)), (1_000, (2,)), (10_000, (2,)), (1_024, (64,)))


def least(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest of so many calls, after two that warm up."""
    best = float("inf")
    for i in range(repeats + 2):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= 2:
            best = min(best, time.perf_counter() - start)
    return best


def per_number(
    chains: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, repeats: int
) -> dict:
    """Eager, compiled and torch.randn for one shape, in nanoseconds a normal."""
    torch._dynamo.reset()
    noise = Noise(0, chains, device=device, dtype=dtype, window=1)
    compiled = torch.compile(
        lambda step: noise.normal(step, 0, shape), fullgraph=True, dynamic=False
    )
    step, size = torch.tensor(3, device=device), (chains, *shape)
    to_nanoseconds = 1e9 / torch.Size(size).numel()
    row = {
        "eager": least(lambda: noise.normal(3, 0, shape), device, repeats) * to_nanoseconds,
        "compiled": least(lambda: compiled(step), device, repeats) * to_nanoseconds,
        "randn": least(lambda: torch.randn(size, dtype=dtype, device=device), device, repeats)
        * to_nanoseconds,
    }
    return {
        "chains": chains,
        "shape": shape,
        "dtype": str(dtype),
        **row,
        "ratio": row["compiled"] / row["randn"],
    }


def per_call(chains: int, shape: tuple[int, ...], device: torch.device, repeats: int) -> dict:
    """Microseconds a call over the steps of a long run, windows included."""
    steps = 4096 if chains * shape[0] < 1000 else 256

    def run() -> None:
        noise = Noise(0, chains, device=device)
        for step in range(4096, 4096 + steps):
            noise.normal(step, 0, shape)

    def reference() -> None:
        for _ in range(steps):
            torch.randn((chains, *shape), device=device)

    repeats = max(repeats // 4, 3)
    scoretk, randn = (least(f, device, repeats) / steps * 1e6 for f in (run, reference))
    return {"chains": chains, "shape": shape, "eager": scoretk, "randn": randn}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print(f"torch {torch.__version__}, {device}, {options.threads} thread(s)\n")
    print(
        f"{'ns a normal':24}{'dtype':>15}{'eager':>9}{'compiled':>10}{'randn':>8}{'compiled/randn':>16}"
    )
    rows = []
    for dtype in (torch.float32,) if options.quick else (torch.float32, torch.float64):
        for chains, shape in SHAPES[:2] if options.quick else SHAPES:
            rows.append(row := per_number(chains, shape, dtype, device, options.repeats))
            name = f"{chains} x {shape[0]}"
            figures = (
                f"{row['eager']:9.2f}{row['compiled']:10.2f}{row['randn']:8.2f}{row['ratio']:16.2f}"
            )
            print(f"{name:24}{row['dtype']:>15}{figures}")
    print(f"\n{'us a call, float32':24}{'eager':>24}{'randn':>18}")
    calls = []
    for chains, shape in CALLS:
        calls.append(row := per_call(chains, shape, device, options.repeats))
        print(f"{f'{chains} x {shape[0]}':24}{row['eager']:24.2f}{row['randn']:18.2f}")
    if options.json:
        result = {"torch": torch.__version__, "device": str(device), "threads": options.threads}
        options.json.write_text(
            json.dumps({**result, "ns_per_normal": rows, "us_per_call": calls}, indent=1)
        )


if __name__ == "__main__":
    main()
