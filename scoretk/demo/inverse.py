r"""Inverse problems on held-out digits: half an image missing, 8 x 8 pixels from 4 x 4, and noise.

Each image is measured once, `y = A x + std eps`, and restored by k draws of the posterior: of a
timed prior through the methods of `scoretk.posterior`, approximations all; of an energy by HMC and
MALA on prior plus likelihood, exact but for the chains' length. With x_j the draws of an image, m
their mean, v their variance (divisor k - 1), and means over images and pixels,

    error  = sqrt(mean (m - truth)^2)             single = sqrt(mean (x_j - truth)^2)
    spread = sqrt((1 + 1/k) mean v) / error       fit    = sqrt(mean (y - A x_j)^2) / std

Were the prior the digits' own law, the truth would be a draw of its posterior like any other, so
that exact draws have the spread 1 and the fit 1. A spread below 1 is false confidence; a fit above
1 has not heeded the measurement. The baselines are a plain one for each problem, and with the mean
and covariance M, C of the training images

    M + C A^T (A C A^T + std^2 I)^-1 (y - A M),

the posterior mean if digits were Gaussian, and the best estimate that is linear in y (Wiener's
filter).

References:
    Wiener, "Extrapolation, interpolation, and smoothing of stationary time series" (1949).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.demo.pictures import restored_sheet
from scoretk.diagnostics import Classifier
from scoretk.errors import InvalidArgument
from scoretk.fields.operators import Downsample, LinearGaussian, Mask
from scoretk.fields.posterior import DPS, MMPS, PiGDM, Replacement, posterior
from scoretk.fields.protocols import is_timed
from scoretk.inference.sampling import sample
from scoretk.models.digits.data import EVENT_SHAPE, load_digits
from scoretk.plugins import load
from scoretk.solvers import HMC, MALA, ProbabilityFlow, ReverseSDE

__all__ = [
    "HEAD",
    "LEGEND",
    "PRIORS",
    "PROBLEMS",
    "Agreement",
    "Problem",
    "Restoration",
    "agreement",
    "linear_estimate",
    "lines_of",
    "print_restored",
    "restorations",
    "run_inverse",
]

PRIORS = ("digits-diffusion", "digits-energy")
CLASSES = 10
DRAWS = 8
SHOWN_DRAWS = 2
MEASUREMENT_SEED = 654
UPPER = (torch.arange(8) < 4)[:, None].expand(EVENT_SHAPE)


@dataclass(frozen=True)
class Problem:
    """What is measured, `y = operator(x) + std eps`, and the plain way back.

    `plain(y, mean)` is an image of y and the training images' mean; `shown(y)` y as an image, NaN
    where nothing is known.
    """

    name: str
    title: str
    operator: Callable[[Tensor], Tensor]
    std: float
    baseline: str
    plain: Callable[[Tensor, Tensor], Tensor]
    shown: Callable[[Tensor], Tensor]

    def measure(self, x: Tensor) -> Tensor:
        """y, the same at every call."""
        exact = self.operator(x)
        return exact + self.std * Noise(MEASUREMENT_SEED, len(x)).normal(
            0, Stream.START, exact.shape[1:], exact.dtype
        )


def _completed(y: Tensor, lower: Tensor) -> Tensor:
    """The upper halves y, `(n, 32)`, above the lower half of an image `(1, 8, 8)`."""
    images = lower.repeat(len(y), 1, 1, 1)
    images[:, UPPER] = y
    return images


PROBLEMS = (
    Problem(
        "inpainting",
        "the lower half missing",
        Mask(UPPER),
        0.05,
        "mean image",
        _completed,
        lambda y: _completed(y, torch.full(EVENT_SHAPE, math.nan)),
    ),
    Problem(
        "super-resolution",
        "8 x 8 pixels from 4 x 4",
        Downsample(2),
        0.05,
        "nearest pixel",
        lambda y, _: interpolate(y, scale_factor=2),
        lambda y: interpolate(y, scale_factor=2),
    ),
    Problem(
        "denoising",
        "noise of standard deviation 0.5",
        lambda x: x,
        0.5,
        "as measured",
        lambda y, _: y,
        lambda y: y,
    ),
)


class Agreement(NamedTuple):
    """How draws agree with the truth and with what was measured (see the module's docstring).

    Stderr is that of error.
    """

    error: float
    stderr: float
    single: float | None = None
    spread: float | None = None
    fit: float | None = None


HEAD = (
    "problem",
    "prior",
    "method",
    "error",
    "of a draw",
    "spread",
    "fit",
    "accuracy",
    "of a draw",
    "evaluations",
    "s",
    "failed",
)
LEGEND = f"""\
{"; ".join(f"{p.name}: {p.title}" for p in PROBLEMS)}.
error: root mean square over pixels in [-1, 1] of the mean of {DRAWS} draws, with its standard error over images, and of one draw.
spread: what the draws' spread makes one expect of the error, over the error; fit: the residual y - A x of a draw over the noise:
  both 1 for exact draws under the true prior. accuracy: share of the means, and of the draws, that a classifier of real digits
  gets right.
evaluations: of the prior, products with its Jacobian not counted."""


@dataclass(frozen=True)
class Restoration:
    """One line of the table: a baseline (no model), or a posterior's draws.

    `accuracy` and `single_accuracy` are shares of the means, and of the draws, that a classifier
    trained on real digits puts into the class of the truth. Images of which a draw failed are left
    out; None where all are, and for what draws alone have.
    """

    problem: str
    model: str
    method: str
    agreement: Agreement | None = None
    accuracy: float | None = None
    single_accuracy: float | None = None
    evaluations: int = 0
    seconds: float = 0.0
    chains: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return f"{self.problem}  {self.model}  {self.method}  {self.seconds:.1f} s"


class _Known(NamedTuple):
    """Held-out images and their labels, as many of each class; of the training images the moments.

    The judge.
    """

    truth: Tensor
    labels: Tensor
    mean: Tensor
    covariance: Tensor
    classifier: Classifier


class _Run(NamedTuple):
    """A way to a posterior; shown, whether in the picture."""

    name: str
    solver: Any
    method: Any = None
    options: Mapping[str, Any] = {}
    shown: bool = True


def run_inverse(
    folder: str | Path = "demo",
    *,
    models: Iterable[str] = PRIORS,
    images: int = 50,
    steps: int = 40,
    seed: int = 0,
    report: Callable[[Restoration], Any] | None = None,
) -> list[Restoration]:
    """Every problem, by the baselines and with every model as the prior.

    Args:
        folder: For `inverse.json` and a sheet a problem, made where it does not exist.
        models: Names of models of digits, timed on a Gaussian path or with an energy.
        images: How many, rounded down to the tens, at least ten.
        steps: Of HMC, and as many for warmup.
        seed: Of the draws: what is measured is the same for all.
        report: Called with each row as it is done.

    Raises:
        `InvalidArgument` for a folder that cannot be written; `UnknownName`; `MissingDependency`.
    """
    target = Path(folder)
    priors = {name: load(name) for name in models}
    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / "inverse.json").touch()
    except OSError as error:
        raise InvalidArgument(
            "output", str(folder), "a folder that can be written", str(error)
        ) from error
    rows: list[Restoration] = []
    for row in restorations(priors, target, images, steps, seed):
        rows.append(row)
        if report is not None:
            report(row)
    (target / "inverse.json").write_text(
        json.dumps({"seed": seed, "rows": [asdict(row) for row in rows]}, indent=1)
    )
    return rows


def restorations(
    models: Mapping[str, Any], folder: Path, images: int, steps: int, seed: int
) -> Iterator[Restoration]:
    """The rows, one after the other, and a sheet of each problem in the folder.

    Arguments as in `run_inverse`.
    """
    known = _known(max(1, images // CLASSES))
    spread = float(known.covariance.diagonal().mean().sqrt())
    for problem in PROBLEMS:
        y = problem.measure(known.truth)
        baselines = {
            problem.baseline: problem.plain(y, known.mean),
            "Wiener filter": linear_estimate(problem, y, known.mean, known.covariance),
        }
        for name, x in baselines.items():
            error, stderr = _error(x, known.truth)
            accuracy = known.classifier.accuracy(x, known.labels)
            yield Restoration(problem.name, "", name, Agreement(error, stderr), accuracy)
        seen = problem.shown(y)
        sheet = [("truth", known.truth), ("measured", seen)]
        sheet += [(name, x) for name, x in baselines.items() if not torch.equal(x, seen)]
        for model, prior in models.items():
            for run in _runs(prior, problem, spread, steps):
                row, x = _restore(
                    Restoration(problem.name, model, run.name), problem, prior, run, y, known, seed
                )
                yield row
                if run.shown:
                    sheet.append((f"{model}: mean of {DRAWS}", x.mean(1)))
                    sheet += [(f"draw {j + 1}", x[:, j]) for j in range(SHOWN_DRAWS)]
        restored_sheet(
            folder / f"{problem.name}.png", f"{problem.name}: {problem.title}", sheet, CLASSES
        )


def lines_of(rows: Iterable[Restoration]) -> list[tuple[str, ...]]:
    """The rows as lines of text, in the order of `HEAD`."""
    return [_line(row) for row in rows]


def print_restored(rows: Iterable[Restoration]) -> None:
    """Print the rows as columns, and what the columns mean."""
    lines = [HEAD, *lines_of(rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        )
    print(f"\n{LEGEND}")


def _line(row: Restoration) -> tuple[str, ...]:
    found, names = row.agreement, (row.problem, row.model or "none", row.method)
    failed = f"{row.failed} of {row.chains}" if row.failed else "0"
    if found is None:
        return (*names, *[""] * 6, f"{row.evaluations:,}", f"{row.seconds:.1f}", failed)
    measures = (
        f"{found.error:.3f} ± {found.stderr:.3f}",
        _number(found.single, ".3f"),
        _number(found.spread, ".2f"),
        _number(found.fit, ".2f"),
        _number(row.accuracy, ".3f"),
        _number(row.single_accuracy, ".3f"),
    )
    return (
        *names,
        *measures,
        *((f"{row.evaluations:,}", f"{row.seconds:.1f}", failed) if row.model else [""] * 3),
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def linear_estimate(problem: Problem, y: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """The linear-Gaussian estimate, `(n, 1, 8, 8)` like y in dtype.

    Mean `(1, 8, 8)`, covariance `(64, 64)` float64.
    """
    basis = torch.eye(len(covariance), dtype=covariance.dtype).reshape(-1, *mean.shape)
    a_t = problem.operator(basis).flatten(1)
    noise = problem.std**2 * torch.eye(a_t.shape[1], dtype=a_t.dtype)
    gain = torch.linalg.solve(a_t.T @ covariance @ a_t + noise, a_t.T @ covariance)
    residual = (y - problem.operator(mean[None])).flatten(1).to(gain)
    return mean + (residual @ gain).to(y).unflatten(1, mean.shape)


def agreement(problem: Problem, y: Tensor, x: Tensor, truth: Tensor) -> Agreement:
    """Of draws x, `(n, k, 1, 8, 8)` with k at least 2, of the posteriors given y, with the truth
    `(n, 1, 8, 8)`.
    """
    k = x.shape[1]
    error, stderr = _error(x.mean(1), truth)
    spread = math.sqrt((1 + 1 / k) * float(x.var(1).mean())) / error
    residual = y.repeat_interleave(k, 0) - problem.operator(x.flatten(0, 1))
    return Agreement(error, stderr, _rms(x - truth[:, None]), spread, _rms(residual) / problem.std)


def _error(x: Tensor, truth: Tensor) -> tuple[float, float]:
    """Root mean square over images and pixels, and its standard error over images."""
    squares = (x - truth).square().flatten(1).mean(1)
    error = math.sqrt(float(squares.mean()))
    return error, float(squares.std()) / math.sqrt(len(squares)) / (2 * error)


def _rms(x: Tensor) -> float:
    return math.sqrt(float(x.square().mean()))


def _known(of_each: int) -> _Known:
    """Images in the order 0 ... 9, 0 ... 9, ..."""
    digits = load_digits()
    chosen = torch.stack(
        [(digits.test_labels == c).nonzero()[:of_each, 0] for c in range(CLASSES)], 1
    ).flatten()
    rows = digits.train.flatten(1).double()
    classifier = Classifier(digits.train, digits.train_labels)
    return _Known(
        digits.test[chosen],
        digits.test_labels[chosen],
        digits.train.mean(0),
        torch.cov(rows.T),
        classifier,
    )


def _runs(prior: Any, problem: Problem, spread: float, steps: int) -> Iterator[_Run]:
    if not is_timed(prior):
        yield _Run("hmc", HMC(leapfrogs=10), options={"steps": steps, "warmup": steps})
        mala = MALA(min(0.4 * problem.std**2, 0.01))
        yield _Run("mala", mala, options={"steps": 10 * steps}, shown=False)
        return
    sde = ReverseSDE("dpmpp_2m", 32)
    for name, method in {"mmps": MMPS(), "pigdm": PiGDM(spread), "dps": DPS(spread=spread)}.items():
        yield _Run(f"{name}, reverse-sde", sde, method, shown=name == "mmps")
    yield _Run("replacement, reverse-sde", sde, Replacement(spread), shown=False)
    yield _Run("mmps, probability-flow", ProbabilityFlow("adams_3", 16), MMPS(), shown=False)


def _restore(
    row: Restoration, problem: Problem, prior: Any, run: _Run, y: Tensor, known: _Known, seed: int
) -> tuple[Restoration, Tensor]:
    """The row, and the draws `(n, k, 1, 8, 8)`."""
    field = posterior(prior, LinearGaussian(problem.operator, "y", problem.std), run.method)
    rows = {"y": y.repeat_interleave(DRAWS, 0)}
    started = time.perf_counter()
    draws = sample(
        field, run.solver, chains=len(rows["y"]), cond=rows, seed=seed, keep="last", **run.options
    )
    seconds = time.perf_counter() - started
    x, well = draws.final.unflatten(0, (-1, DRAWS)), draws.ok.unflatten(0, (-1, DRAWS)).all(1)
    row = replace(
        row,
        evaluations=sum(draws.cost.values()),
        seconds=seconds,
        chains=len(draws.ok),
        failed=int((~draws.ok).sum()),
    )
    if not bool(well.any()):
        return row, x
    labels = known.labels[well]
    return replace(
        row,
        agreement=agreement(problem, y[well], x[well], known.truth[well]),
        accuracy=known.classifier.accuracy(x[well].mean(1), labels),
        single_accuracy=known.classifier.accuracy(
            x[well].flatten(0, 1), labels.repeat_interleave(DRAWS)
        ),
    ), x
