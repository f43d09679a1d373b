"""What the benchmarks share: contestants timed in turn in one run, a printed table, and JSON with machine and versions.

Contestants of a row run one after another, round after round, so that what the machine does beside hits them alike. The least
time of each is reported: the others hold what the machine did beside.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch

PEERS = ("scoretk", "torch", "torchebm", "azula", "diffusers")
OF_JAX = ("jax", "numpyro", "blackjax")
T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """One contestant in one row: microseconds a step, and their ratio to the row's reference."""

    row: str
    name: str
    microseconds: float
    ratio: float
    aim: str = ""


@dataclass
class Report:
    """What a script found."""

    title: str
    reference: str
    timings: list[Timing] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self, row: str, seconds: dict[str, float], steps: dict[str, int] | int, aims: dict[str, str]
    ) -> None:
        """Take in the seconds of a row's contestants, which made so many steps each; they are told at once."""
        each = {
            name: value / (steps if isinstance(steps, int) else steps[name])
            for name, value in seconds.items()
        }
        told = ", ".join(f"{name} {1e6 * value:.1f}" for name, value in each.items())
        print(f"{row}, us a step: {told}", flush=True)
        reference = each.get(self.reference, math.nan)
        for name, value in each.items():
            self.timings.append(
                Timing(row, name, 1e6 * value, value / reference, aims.get(name, ""))
            )

    def show(self) -> None:
        """Print the table."""
        print(f"\n{self.title}\n")
        print(f"{'':28}{'':26}{'us a step':>12}{'x ' + self.reference:>22}   aim")
        last = ""
        for t in self.timings:
            print(
                f"{t.row if t.row != last else '':28}{t.name:26}{t.microseconds:>12.1f}{t.ratio:>22.2f}   {t.aim}"
            )
            last = t.row
        for note in self.notes:
            print(note)


def at_hand(contestants: dict[str, T]) -> dict[str, T]:
    """The contestants but those of packages that are not installed, by which their names begin; these are told."""
    packages = {name: name.split()[0] for name in contestants}
    missing = {p for p in packages.values() if p in (*PEERS, *OF_JAX) and not find_spec(p)}
    for package in sorted(missing):
        print(f"{package} is not installed: its rows are left out")
    return {name: run for name, run in contestants.items() if packages[name] not in missing}


def fastest(
    contestants: dict[str, Callable[[], object]], device: torch.device, rounds: int = 7
) -> dict[str, float]:
    """The least seconds of each contestant over some rounds, in turn, after one round that warms up."""
    least = dict.fromkeys(contestants, float("inf"))
    for k in range(rounds + 1):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if k:
                least[name] = min(least[name], time.perf_counter() - started)
    return least


def spent(run: Callable[[], object], device: torch.device) -> float:
    """The seconds that a run takes: of the processor, where others use it too; of the clock on a device."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    started = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def paired(
    contestants: dict[str, Callable[[], object]],
    reference: str,
    device: torch.device,
    rounds: int = 7,
) -> dict[str, list[tuple[float, float]]]:
    """For each contestant and round its seconds, and those of the reference just before and after it.

    What the machine does in a minute then hits both alike: the median of the ratios of the pairs is
    steadier than the ratio of the least times. The two are as in `spent`.

    Args:
        contestants: What is run, the reference among it.
        reference: Its name.
        device: Where.
        rounds: How many, after one that warms up.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for k in range(rounds + 1):
        before = spent(contestants[reference], device)
        for name, run in contestants.items():
            own = spent(run, device)  # of the reference too: how far apart equal runs are
            after = spent(contestants[reference], device)
            if k:
                found[name].append((own, (before + after) / 2))
            before = after
    return found


def machine(device: torch.device) -> dict[str, str]:
    """Versions and the kind of machine, without its name."""
    found = {
        "python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
    }
    found["device"] = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU ({platform.machine()})"
    )
    return found | versions(PEERS)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The version of each package."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def arguments(text: str) -> argparse.Namespace:
    """`--device`, `--threads`, `--rounds`, `--json`; sets the threads."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--rounds", default=7, type=int)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def finish(reports: Sequence[Report], options: argparse.Namespace) -> None:
    """Print the reports and, where asked, write them."""
    about = machine(options.device)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for report in reports:
        report.show()
    if options.json:
        options.json.write_text(
            json.dumps({"machine": about, "reports": [asdict(r) for r in reports]}, indent=1)
        )
