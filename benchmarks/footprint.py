"""Peak memory of a run of 10^6 chains with `keep="moments"`, and the time that importing scoretk takes beside torch's.

    python benchmarks/footprint.py [--json FILE]

Each figure comes from processes of its own. Memory: the largest resident set of a process that runs the chains, less that of
one that makes two states and stops; 20 and 200 steps, to show that it does not grow. Import: least of ten starts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

CHAINS = 1_000_000

RUN = f"""
import resource, sys, torch, scoretk as stk
torch.set_num_threads(1)
field = stk.Score(lambda x: -x, (2,))
x = torch.zeros({CHAINS}, 2)
stk.sample(field, stk.ULA(0.1), init=x[:10], steps=2, keep="moments")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
steps = int(sys.argv[1])
if steps:
    stk.sample(field, stk.ULA(0.1), init=x, steps=steps, keep="moments")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def output(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def seconds(code: str, times: int = 10) -> float:
    """The least time that a fresh interpreter takes for some code."""
    least = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        output(code)
        least = min(least, time.perf_counter() - started)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    state = CHAINS * 2 * 2 * 4 / 2**20  # position and score, float32
    found = {
        f"MB above the state, {steps} steps": float(output(RUN, str(steps))) - state
        for steps in (20, 200)
    }
    torch_alone = seconds("import torch")
    found["seconds, import scoretk"] = seconds("import scoretk")
    found["seconds, import torch"] = torch_alone
    everything = "import torch, scoretk; [getattr(scoretk, name) for name in scoretk.__all__]"
    found["seconds beside torch, import scoretk"] = seconds("import torch, scoretk") - torch_alone
    found["seconds beside torch, every public name"] = seconds(everything) - torch_alone
    for name, value in found.items():
        print(f"{name:45}{value:8.3f}")
    print("aims: 200 MB above the state; 0.15 s beside torch")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
