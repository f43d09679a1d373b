"""`make mutants`: how many small wrong versions of the package the default tests tell from the right one.

Each mutant of the list (`listed.py`) is put into a copy of the package, and the tests that cover its file run until one fails.
The test that killed it is run once on the copy without it as well: where it fails there too, it says nothing, and the others go
on without it. A mutant whose tests do not end in time, or with which the package cannot be imported, is killed as well.

    python -m tests.mutants.run [ROUND ...] [--only TEXT] [--afresh] [--laws]

goes through those that are not known to be killed (all, with `--afresh`), under all tests that cover their files (under those
of `tests/laws` alone, which takes seconds, with `--laws`), remembers each outcome in `known.json`, and writes
docs/mutants.md. Every mutant runs in a fork of one process that has imported torch once, and imports the package anew.
"""

import argparse
import ast
import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.mutants.listed import ROOT, ROUNDS, Mutant, covering, mutants

AHEAD = (
    "numpy",
    "scipy.stats",
    "sklearn.linear_model",
    "sympy",
    "torchdiffeq",
    "torch.distributed.tensor",
)
"""What tests import and what takes seconds: imported once, before the forks."""
OUTPUT, NOT_COLLECTED = "output.txt", " (not collected)"
COPIED = (
    "scoretk",
    "tests",
    "docs",
    "benchmarks",
    "pyproject.toml",
    "README.md",
    "CONTRIBUTING.md",
)
LIMIT, TEST_LIMIT = 900.0, 150
"""Seconds for the tests of a mutant, and for one test."""
KNOWN, PAGE = ROOT / "tests" / "mutants" / "known.json", ROOT / "docs" / "mutants.md"


class Outcome(NamedTuple):
    """The test that failed first, empty where none did, and the seconds that it took to know."""

    killed_by: str
    seconds: float


class FirstFailure:
    """Pytest's plugin that tells through a pipe which test failed first."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.tell(f"{report.nodeid or 'tests'}{NOT_COLLECTED}")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.tell(report.nodeid)

    def tell(self, text: str) -> None:
        os.write(self.pipe, f"{text}\n".encode())


def first_failure(copy: Path, tests: list[str], *options: str) -> str:
    """The first of these tests that fails in the copy, empty where all pass; pytest's further options."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _run_there(copy, tests, options, write)
    os.close(write)
    with open(read) as told:
        os.set_blocking(read, False)
        ended = _wait(child, time.monotonic() + LIMIT)
        os.set_blocking(read, True)
        first = told.readline().strip()
    if not first and ended not in (0, None):
        raise RuntimeError(
            f"the tests did not run: exit code {ended}\n{(copy / OUTPUT).read_text()[-2000:]}"
        )
    return first or ("" if ended == 0 else "the time limit")


def _run_there(copy: Path, tests: list[str], more: tuple[str, ...], pipe: int) -> None:
    """Run the tests in the copy and end this process: 0 where they passed, none is run by default or one was told."""
    os.setsid()
    os.chdir(copy)
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy)}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in [n for n in sys.modules if n.partition(".")[0] in ("scoretk", "tests")]:
        del sys.modules[name]  # as the tests' package has imported them here
    sys.path[:] = [str(copy), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    told = os.open(copy / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(told, 1)
    os.dup2(told, 2)
    code = 3
    try:
        import scoretk

        assert Path(scoretk.__file__).is_relative_to(copy)
        options = [
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "pytest_timeout",
            f"--timeout={TEST_LIMIT}",
        ]
        code = pytest.main([*options, *more, *tests], plugins=[FirstFailure(pipe)])
    except BaseException:  # noqa: BLE001 (told, and the process ends)
        traceback.print_exc()
    os._exit(0 if code in (0, 1, 2, 5) else 3)


def _wait(child: int, until: float) -> int | None:
    """Its exit code; None where it was ended because the time had passed."""
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


class Copy:
    """A copy of the repository in a folder of its own, and which tests are known to pass or to fail in it unchanged."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sound = folder, dict[str, bool]()
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name)
            elif (ROOT / name).exists():
                shutil.copy(ROOT / name, folder / name)
        for prepare in (
            ["compileall", "-q", "scoretk"],
            ["pytest", "-q", "--collect-only", "tests/laws"],
        ):
            subprocess.run(
                [sys.executable, "-m", *prepare],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(folder)},
                check=True,
                stdout=subprocess.DEVNULL,
            )

    def tried(self, mutant: Mutant, *, laws: bool = False) -> Outcome:
        """What becomes of a mutant under the tests that cover its file, or under those of its laws alone."""
        started, broken = time.monotonic(), list[str]()
        tests = [t for t in covering(mutant.file) if not laws or t.startswith("tests/laws/")]
        while True:
            with self.changed(mutant):
                killer = first_failure(self.folder, tests, *broken) if tests else ""
            if not killer or self.passes(killer):
                return Outcome(killer, round(time.monotonic() - started, 1))
            file = killer.removesuffix(NOT_COLLECTED)
            broken.append(f"--ignore={file}" if NOT_COLLECTED in killer else f"--deselect={file}")

    def passes(self, killer: str) -> bool:
        """Whether a test passes, or is collected, without a mutant."""
        test, told, _ = killer.partition(NOT_COLLECTED)
        if not Path(self.folder, test.partition("::")[0]).is_file():  # the time limit
            return True
        if killer not in self.sound:
            only = ["--collect-only"] if told else []
            self.sound[killer] = not first_failure(self.folder, [test], *only)
        return self.sound[killer]

    @contextlib.contextmanager
    def changed(self, mutant: Mutant) -> Any:
        path = self.folder / "scoretk" / mutant.file
        source = path.read_text()
        for made in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            made.unlink()
        wrong = mutant.applied(source)
        ast.parse(wrong)  # a mutant is a program
        path.write_text(wrong)
        try:
            yield
        finally:
            path.write_text(source)


def key(mutant: Mutant) -> str:
    return hashlib.sha256("\0".join((mutant.file, mutant.old, mutant.new)).encode()).hexdigest()[
        :16
    ]


def rates(known: dict[str, list[Any]], listed: list[Mutant]) -> list[str]:
    """Lines of a table: how many of a round's mutants are killed, by package and in all, and how many nobody asked about."""
    lines = []
    for name in ROUNDS:
        of_round = [m for m in listed if m.round == name and not m.equivalent]
        for package in [
            *dict.fromkeys(m.package for m in of_round),
            *(["all"] if of_round else []),
        ]:
            some = [m for m in of_round if package in (m.package, "all")]
            asked = [m for m in some if key(m) in known]
            killed = sum(bool(known[key(m)][0]) for m in asked)
            lines.append(
                f"| {name} | {package} | {killed} of {len(some)} | {len(some) - len(asked)} |"
            )
    return lines


def page(known: dict[str, list[Any]]) -> str:
    """docs/mutants.md."""
    listed = mutants()
    lines = [
        "# Mutants",
        "",
        "Written by `make mutants` (`tests/mutants/run.py`; [testing.md](testing.md) says what it does). Small wrong versions of",
        "the package, and the default test that tells each from the right one. The fresh round was written after the tests",
        "that the first one had led to, without a look at them; the others were written from the source alone, but for",
        "those of the fifth of `bench`, `learn`, `run/checkpoint.py`, `run/store.py` and `run/stored.py`: beside their tests.",
        "The seventh and the ninth hold those that survived at first of samples that a program made",
        "(`python -m tests.mutants.search`), the tenth those of samples by hand and by program of places that no",
        "edit before had touched, the eleventh the killed ones of one more sample by hand, the twelfth those that survived",
        "at first of the next, with relatives of theirs elsewhere, the thirteenth those of one of `core` and `run` alone,",
        "the fourteenth those of two of all other rooms, the fifteenth those of one of all rooms, the sixteenth all of two of",
        "`core`, `diagnostics`, `fields`, `plugins` and `conformance` that are killed, the seventeenth those of scales that",
        "may be a factor, the eighteenth all of two of all rooms and adapters that are killed.",
        "",
        "| round | package | killed | not asked |",
        "|---|---|---:|---:|",
        *rates(known, listed),
    ]
    same = [m for m in listed if m.equivalent]
    if same:
        lines += ["", "Edits that change nothing, and are not counted:", ""]
        lines += [f"- `{m.file}`: {m.why}: {m.equivalent}" for m in same]
    for name in ROUNDS:
        lines += [
            "",
            f"## The {name} round",
            "",
            "| file | what is wrong | killed by |",
            "|---|---|---|",
        ]
        for m in listed:
            if m.round == name and not m.equivalent:
                test = known.get(key(m), [""])[0].replace("|", "\\|")
                told = f"`{test}`" if test else "**survives**" if key(m) in known else "not asked"
                lines.append(f"| `{m.file}` | {m.why} | {told} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", nargs="*", help=f"of {', '.join(ROUNDS)}; all")
    parser.add_argument(
        "--only", default="", help="those whose file or description holds this text"
    )
    parser.add_argument(
        "--afresh", action="store_true", help="also those that are known to be killed"
    )
    parser.add_argument(
        "--laws", action="store_true", help="under tests/laws alone; survivors are not remembered"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in AHEAD:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    known = json.loads(KNOWN.read_text()) if KNOWN.exists() else {}
    chosen = [
        m
        for m in mutants(*asked.rounds)
        if not m.equivalent
        and (asked.only in m.file or asked.only in m.why)
        and (asked.afresh or not known.get(key(m), [""])[0])
    ]
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder).resolve())
        for i, mutant in enumerate(chosen):
            outcome = copy.tried(mutant, laws=asked.laws)
            if outcome.killed_by or not asked.laws:
                known[key(mutant)] = list(outcome)
            KNOWN.write_text(json.dumps(known, indent=0, sort_keys=True) + "\n")
            said = outcome.killed_by or "SURVIVES"
            print(
                f"{i + 1}/{len(chosen)} {mutant.file}: {mutant.why}: {said} ({outcome.seconds} s)",
                flush=True,
            )
    PAGE.write_text(page(known))
    print("\n".join(rates(known, mutants(*asked.rounds))))
    survivors = [
        m for m in mutants(*asked.rounds) if not m.equivalent and not known.get(key(m), ["-"])[0]
    ]
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
