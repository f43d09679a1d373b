"""The demo: build each model, run its cells, judge the samples, draw pictures, and make tables."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arguments import count
from scoretk.core.noise import Noise
from scoretk.demo.cells import Cell, Size, cells
from scoretk.demo.likelihoods import compared, likelihoods
from scoretk.demo.page import write_page
from scoretk.demo.pictures import digit_sheet, plane_sheet
from scoretk.demo.quality import Reference, judge, reference
from scoretk.demo.rows import Demo, Done, Row
from scoretk.diagnostics.verdict import different
from scoretk.errors import InvalidArgument, MissingCapability, Status
from scoretk.fields.protocols import is_timed, offers, optional
from scoretk.models.digits.data import EVENT_SHAPE
from scoretk.plugins import Entry, ModelSpec, describe, list_models, load

__all__ = ["run_demo"]

BUILT_IN = "scoretk"
DECODING_SEED = 321
THREADS = "OMP_NUM_THREADS"
ONE_CLASS = {"digits-flow-classes": 8}
"""Models of a single class of digits, and that class."""
SLOW = frozenset(
    {
        "digits-made",
        "digits-nade",
        "digits-pixelcnn",
        "digits-realnvp",
        "digits-spline",
        "digits-transformer",
    }
)
"""Models whose gradient takes several times as long as others'."""


@dataclass(frozen=True)
class _Share:
    """What the demo found for one model, with panels of its points where they are in the plane."""

    found: Demo
    plane: list[tuple[str, Tensor]]


def run_demo(
    folder: str | Path = "demo",
    *,
    models: Iterable[str] | None = None,
    seed: int = 0,
    size: Size | None = None,
    workers: int = 1,
    report: Callable[[object], Any] | None = None,
) -> Demo:
    """Run models through every solver that serves them.

    Args:
        folder: The folder for the page `index.html`, `table.json` and the pictures, made where it
            does not exist.
        models: Names of models, None for all built-in ones.
        seed: The seed of the random numbers.
        size: How much to do, None for the default.
        workers: How many processes of one thread each work (1: this one). It changes nothing but
            the time.
        report: Called with a `Done` for every model when it is done.

    Returns:
        The rows of the tables, and the names of the pictures.

    Raises:
        InvalidArgument: For a folder that cannot be written.
        UnknownName: For the name of a model that is not registered.
        MissingDependency: Where a package that the demo needs is not installed.
    """
    target = _folder(folder)
    specs = [describe(name) for name in models] if models is not None else _built_in()
    demo, plane = Demo(), list[tuple[str, Tensor]]()
    work = partial(_one_model, target, size or Size(), seed)
    with closing(_parts(work, specs, count("workers", workers, least=1))) as parts:
        for part in parts:
            demo.rows += part.found.rows
            demo.likelihoods += part.found.likelihoods
            demo.pictures += part.found.pictures
            plane += part.plane
            if report is not None:
                report(Done.of(part.found.rows))
    if plane:
        plane_sheet(target / "plane.png", plane)
        demo.pictures.append("plane.png")
    (target / "table.json").write_text(
        json.dumps({"seed": seed, **demo.plain()}, indent=1, allow_nan=False)
    )
    write_page(target / "index.html", demo)
    return demo


def _parts(
    work: Callable[[ModelSpec], _Share], specs: list[ModelSpec], workers: int
) -> Generator[_Share]:
    """What is found for each model, in the order of the models.

    No process outlives this one: each holds the reading end of a pipe, and exits when the writing
    end is closed, by whatever stops the run (Ctrl-C, an error) or ends this process.
    """
    if workers == 1:
        yield from map(work, specs)
        return
    # a fork of a process with running threads may hang
    spawn = multiprocessing.get_context("spawn")
    ended, running = spawn.Pipe(duplex=False)
    with (
        ended,
        running,
        _one_thread_each(),
        ProcessPoolExecutor(
            workers, mp_context=spawn, initializer=_worker, initargs=(ended,)
        ) as pool,
    ):
        try:
            yield from pool.map(work, specs)
        except BaseException:
            running.close()
            raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started meanwhile have one thread, those of NumPy's and SciPy's libraries too.

    They read the variable as they are imported; with a thread a core in each process they would
    wait for one another, and by spinning.
    """
    before = os.environ.get(THREADS)
    os.environ[THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before


def _worker(ended: Connection) -> None:
    """Set up a worker process: one thread, no Ctrl-C, and an exit when the first process ends."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def leave() -> None:
        wait([ended])
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def _one_model(target: Path, size: Size, seed: int, spec: ModelSpec) -> _Share:
    model = load(spec.name)
    digits = spec.trainer is not None
    if digits and not is_timed(model):
        size = size.less().less() if spec.name in SLOW else size.less()
    real = reference(model, size.chains, digits, ONE_CLASS.get(spec.name))
    found, panels = Demo(), list[tuple[str, Tensor]]()
    if real.rows is not None:
        panels.append(
            ("real digits, held out" if digits else f"{spec.name}: exact draws", real.rows)
        )
        rows = real.rows[: size.likelihood_rows]
        found.likelihoods += compared(
            likelihoods(spec.name, model, rows, digits, size.annealed, seed)
        )
    for cell in (*_exact(model, digits, size), *cells(model, size)):
        row, x = _run(spec, cell, partial(_images, model) if digits else _same, real, seed)
        found.rows.append(row)
        if x is not None and len(x):
            panels.append((f"{spec.name}: {cell.solver} {row.shown}".rstrip(), x))
    if digits:
        found.pictures.append(f"{spec.name}.png")
        digit_sheet(target / found.pictures[0], panels)
    return _Share(found, panels if tuple(model.event_shape) == (2,) and not digits else [])


def _exact(model: Any, digits: bool, size: Size) -> Iterator[Cell]:
    """The model's own sampler, as a cell beside those of the solvers."""
    latent = tuple(model.event_shape) != EVENT_SHAPE
    source, setting = optional(model, "marginal") or model, "exact"
    if latent and "draw" not in offers(source):
        source, setting = getattr(model, "prior", model), "generator alone"
    if digits and "draw" in offers(source):
        yield Cell("draw", setting, partial(_drawn, source, size.chains))


def _drawn(source: Any, n: int, seed: int) -> _Drawn:
    with torch.no_grad():
        return _Drawn(source.draw(n, Noise(seed, n)))


def _images(model: Any, x: Tensor) -> Tensor:
    """Images x as they are; decoded latents, with the decoder's own noise where it has some."""
    if tuple(x.shape[1:]) == EVENT_SHAPE:
        return x
    with torch.no_grad():
        if callable(optional(model, "observe")):
            return model.observe(x, Noise(DECODING_SEED, len(x), dtype=x.dtype))
        return model.decode(x)


@dataclass(frozen=True)
class _Drawn:
    """Exact draws, with what a table needs of `Draws`."""

    final: Tensor
    cost: dict[str, int] = field(default_factory=dict)

    @property
    def status(self) -> Tensor:
        return torch.zeros(len(self.final), dtype=torch.int64)

    @property
    def ok(self) -> Tensor:
        return self.status == Status.OK


def _built_in() -> list[ModelSpec]:
    return [
        describe(e.id) for e in list_models() if isinstance(e, Entry) and e.distribution == BUILT_IN
    ]


def _folder(folder: str | Path) -> Path:
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / "table.json").touch()
    except OSError as error:
        raise InvalidArgument(
            "output", str(folder), "a folder that can be written", str(error)
        ) from error
    return target


def _same(x: Tensor) -> Tensor:
    return x


def _run(
    spec: ModelSpec, cell: Cell, shown: Callable[[Tensor], Tensor], real: Reference, seed: int
) -> tuple[Row, Tensor | None]:
    row = Row(spec.name, spec.family, cell.solver, cell.setting, reason=cell.reason)
    if cell.run is None:
        return row, None
    started = time.perf_counter()
    try:
        draws = cell.run(seed)
    except (InvalidArgument, MissingCapability) as error:  # settings that refuse the field
        return dataclasses.replace(row, reason=str(error).split(". ")[0]), None
    seconds = time.perf_counter() - started
    well = draws.final[draws.ok]
    x = shown(cell.finish(well))
    x = x[torch.isfinite(x).flatten(1).all(1)]
    done = dataclasses.replace(
        row,
        quality=judge(x, real),
        evaluations=sum(draws.cost.values()),
        seconds=seconds,
        chains=len(draws.status),
        failed=len(draws.status) - len(x),
        different=different(well.detach().cpu().numpy()) if len(well) else None,
    )
    return done, x
