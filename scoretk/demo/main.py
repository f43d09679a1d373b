"""The demo: build each model, run its cells, judge the samples, draw the sheets, and return the rows of the table."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretk.demo.cells import Cell, Size, cells
from scoretk.demo.pictures import digit_sheet, plane_sheet
from scoretk.demo.quality import Quality, Reference, judge, reference
from scoretk.errors import InvalidArgument
from scoretk.plugins import Entry, describe, list_models, load

__all__ = ["Row", "run_demo"]

BUILT_IN = "scoretk"


@dataclass(frozen=True)
class Row:
    """One line of the table; `log_prob` (in a model's first row) is the mean log density of held-out rows in nats and its
    standard error; `reason` says why there is no run.
    """

    model: str
    family: str
    solver: str
    setting: str
    quality: Quality = field(default_factory=Quality)
    log_prob: tuple[float, float] | None = None
    evaluations: int = 0
    seconds: float = 0.0
    chains: int = 0
    failed: int = 0
    reason: str = ""

    def __str__(self) -> str:
        done = f"-- {self.reason}" if self.reason else f"{self.setting}  {self.seconds:.1f} s"
        return f"{self.model}  {self.solver}  {done}"


def run_demo(
    folder: str | Path = "demo", *, models: Iterable[str] | None = None, seed: int = 0, size: Size | None = None,
    report: Callable[[Row], Any] | None = None,
) -> list[Row]:  # fmt: skip
    """Run the built-in models, or those named, through every solver that serves them.

    Arguments: folder for `table.json` and the sheets, made where it does not exist; models, short names; seed; size;
    report, called with each row as it is done.
    Returns: the rows.
    Raises: `InvalidArgument` for a folder that cannot be written; `UnknownName`; `MissingDependency`.
    """
    target, amount = _folder(folder), size or Size()
    wanted = [describe(name) for name in models] if models is not None else _built_in()
    rows: list[Row] = []
    planes: list[tuple[str, Tensor]] = []
    for spec in wanted:
        model = load(spec.name)
        real = reference(model, amount.likelihood_rows, amount.chains)
        panels: list[tuple[str, Tensor]] = []
        if real.rows is not None:
            panels.append(("real digits, held out" if real.images else f"{spec.name}: exact draws", real.rows))
        for k, cell in enumerate(cells(model, amount)):
            row, x = _run(spec, cell, real, seed)
            if k == 0:
                row = dataclasses.replace(row, log_prob=real.log_prob)
            rows.append(row)
            if report is not None:
                report(row)
            if x is not None and len(x):
                panels.append((f"{spec.name}: {cell.solver} {cell.setting}".rstrip(), x))
        if real.images:
            digit_sheet(target / f"{spec.name}.png", panels)
        elif tuple(model.event_shape) == (2,):
            planes += panels
    if planes:
        plane_sheet(target / "plane.png", planes)
    table = [dataclasses.asdict(row) for row in rows]
    (target / "table.json").write_text(json.dumps({"seed": seed, "rows": table}, indent=1))
    return rows


def _built_in() -> list[Any]:
    return [describe(e.id) for e in list_models() if isinstance(e, Entry) and e.distribution == BUILT_IN]


def _folder(folder: str | Path) -> Path:
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / "table.json").touch()
    except OSError as error:
        raise InvalidArgument("output", str(folder), "a folder that can be written", str(error)) from error
    return target


def _run(spec: Any, cell: Cell, real: Reference, seed: int) -> tuple[Row, Tensor | None]:
    row = Row(spec.name, spec.family, cell.solver, cell.setting, reason=cell.reason)
    if cell.run is None:
        return row, None
    started = time.perf_counter()
    try:
        draws = cell.run(seed)
    except InvalidArgument as error:  # a shape that the solver refuses
        return dataclasses.replace(row, reason=str(error).split(",")[0]), None
    seconds = time.perf_counter() - started
    x = cell.finish(draws.final[draws.ok])
    x = x[torch.isfinite(x).flatten(1).all(1)]
    done = dataclasses.replace(
        row, quality=judge(x, real), evaluations=sum(draws.cost.values()), seconds=seconds, chains=len(draws.status),
        failed=int((~draws.ok).sum()),
    )  # fmt: skip
    return done, x
