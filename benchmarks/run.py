"""All benchmarks, one after another: `python benchmarks/run.py [--device cpu] [--out FOLDER]`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in (
        "steps",
        "probability_flow",
        "noise",
        "footprint",
        "accuracy",
        "adaptive",
        "network",
        "effective",
    ):
        command = [
            sys.executable,
            str(HERE / f"{name}.py"),
            "--json",
            str(options.out / f"{name}.json"),
        ]
        place = [] if name in ("footprint", "accuracy") else ["--device", options.device]
        subprocess.run([*command, *place], check=True)


if __name__ == "__main__":
    main()
