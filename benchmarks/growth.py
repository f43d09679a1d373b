"""Time and memory of runs from 10 to 10^6 chains and from 1 to 10^5 dimensions; 10^9 kept numbers streamed to a store.

    python benchmarks/growth.py chains
    python benchmarks/growth.py dimensions
    python benchmarks/growth.py stream FOLDER      # 4 GB on the disk, removed at the end

Each size is a process of its own, so that its peak of resident memory is its own. Beside the seconds of the clock stand those
of the processor, which other work on the machine stretches less.
"""

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

import scoretk as stk

SIZES = {
    "chains": [(10**k, 2, 100) for k in range(1, 7)],
    "dimensions": [(16, 10**k, 100) for k in range(6)],
}
STREAMED = {"chains": 10_000, "dim": 2, "steps": 50_000}


def normal(dim):
    return stk.Energy(lambda x: x.square().sum(1) / 2, (dim,), grad=lambda x: x)


def peak():
    """The highest resident size of the process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(chains, dim, steps, **options):
    field, solver = normal(dim), stk.ULA(0.1)
    stk.sample(field, solver, chains=2, steps=2)
    before, began, spent = peak(), time.perf_counter(), time.process_time()
    draws = stk.sample(field, solver, chains=chains, steps=steps, seed=1, **options)
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    return draws, {"seconds": seconds, "cpu": spent, "grown": peak() - before, "peak": peak()}


def one(kind, *numbers):
    _, found = measured(*numbers, keep="moments" if kind == "moments" else "all")
    print(json.dumps(found))


def table(kind):
    torch.set_num_threads(1)
    for keep in ("all", "moments"):
        for chains, dim, steps in SIZES[kind]:
            made = subprocess.run(
                [sys.executable, __file__, "one", keep, str(chains), str(dim), str(steps)],
                capture_output=True,
                text=True,
                check=True,
            )
            found = json.loads(made.stdout.splitlines()[-1])
            kept = chains * dim * 4 * (steps if keep == "all" else 8) / 1e6
            print(
                f"| {keep} | {chains:,} | {dim:,} | {steps} | {found['seconds']:.2f} | "
                f"{1e3 * found['cpu'] / steps:.3f} | {kept:,.1f} | {found['grown']:,.0f} |",
                flush=True,
            )


def stream(folder):
    torch.set_num_threads(1)
    path = Path(folder) / "big.zarr"
    sizes = STREAMED
    try:
        began = time.perf_counter()
        draws, found = measured(
            sizes["chains"], sizes["dim"], sizes["steps"], keep=stk.Zarr(path), batch=2_500
        )
        print(
            f"{draws.x.numel():,} numbers in {found['seconds']:.0f} s ({found['cpu']:.0f} s of the "
            f"processor), peak {found['peak']:.0f} MB"
        )
        written = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        print(f"{written / 1e9:.2f} GB in {sum(1 for _ in path.rglob('*'))} files")
        began = time.perf_counter()
        mean, var = draws.moments()
        print(f"moments in {time.perf_counter() - began:.0f} s: {mean.mean():.5f} {var.mean():.5f}")
        print(f"peak {peak():.0f} MB")
        began = time.perf_counter()
        print(draws.summary())
        print(f"summary in {time.perf_counter() - began:.0f} s, peak {peak():.0f} MB")
    finally:
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    if kind == "one":
        torch.set_num_threads(1)
        one(rest[0], *map(int, rest[1:]))
    elif kind == "stream":
        stream(*rest)
    else:
        table(kind)
