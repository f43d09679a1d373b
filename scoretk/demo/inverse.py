r"""Inverse problems on held-out digits: half an image missing, 8 x 8 pixels from 4 x 4, and noise.

Each image is measured once, `y = A x + std eps`, and restored by k draws of the posterior: with a
timed prior by the methods of `scoretk.posterior`, which are all approximations; with an energy by
HMC and MALA on prior plus likelihood, exact but for the length of the chains. With x_j the draws of
an image, m their mean, v their variance (divisor k - 1), and means over images and pixels,

    error  = sqrt(mean (m - truth)^2)             single = sqrt(mean (x_j - truth)^2)
    spread = sqrt((1 + 1/k) mean v) / error       fit    = sqrt(mean (y - A x_j)^2) / std

Were the prior the law of the digits, the truth would be a draw of its posterior like any other, so
that exact draws have spread 1 and fit 1. A spread below 1 says that draws vary too little; a fit
above 1 that they do not agree with the measurement. The baselines are a plain one for each problem,
and, with the mean M and the covariance C of the training images,

    M + C A^T (A C A^T + std^2 I)^-1 (y - A M),

which is the posterior mean if digits were Gaussian, and the best estimate that is linear in y
(Wiener's filter).

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
from einops import rearrange, repeat
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
    """An inverse problem, `y = operator(x) + std eps`, with a plain baseline.

    Args:
        name: Its name.
        title: What is measured, as text.
        operator: A, linear in x.
        std: The standard deviation of the noise.
        baseline: The name of the baseline.
        plain: The baseline: takes y and the mean of the training images to images.
        shown: Takes y to images, NaN where nothing was measured.
    """

    name: str
    title: str
    operator: Callable[[Tensor], Tensor]
    std: float
    baseline: str
    plain: Callable[[Tensor, Tensor], Tensor]
    shown: Callable[[Tensor], Tensor]

    def measure(self, x: Tensor) -> Tensor:
        """The measurements of images x, the same at every call."""
        exact = self.operator(x)
        return exact + self.std * Noise(MEASUREMENT_SEED, len(x)).normal(
            0, Stream.START, exact.shape[1:], exact.dtype
        )


def _completed(y: Tensor, lower: Tensor) -> Tensor:
    """Images of the upper halves y, `(n, 32)`, and the lower half of an image, `(1, 8, 8)`."""
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
    """How draws agree with the truth and with what was measured (see the module).

    `stderr` is the standard error of `error` over images.
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
    """One line of the table: a baseline, or the draws of a posterior.

    Images of which a draw failed are left out. A value is None where all are, and for a baseline
    where only draws have it.

    Args:
        problem: The name of the problem.
        model: The name of the prior, empty for a baseline.
        method: The name of the baseline, or of method and solver.
        agreement: How the draws agree with truth and measurement.
        accuracy: The share of the means that a classifier puts into the class of the truth.
        single_accuracy: That of single draws.
        evaluations: How often the prior was evaluated.
        seconds: How long it took.
        chains: How many draws there are.
        failed: How many of them failed.
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
    """Held-out images and labels, equally many of each class, and what is known of training images.

    `mean` `(1, 8, 8)` and `covariance` `(64, 64)` are of the training images, on which `classifier`
    is trained.
    """

    truth: Tensor
    labels: Tensor
    mean: Tensor
    covariance: Tensor
    classifier: Classifier


class _Run(NamedTuple):
    """A way to sample a posterior: its name, solver, method and options of `sample`.

    `shown` says whether its draws are in the picture.
    """

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
    """Solve every problem by the baselines and with every model as the prior.

    Args:
        folder: The folder for `inverse.json` and a picture of each problem, made where it does not
            exist.
        models: Names of models of digits, timed on a Gaussian path or with an energy.
        images: How many images are restored, rounded down to tens, at least ten.
        steps: How many steps HMC makes, and as many for warmup.
        seed: The seed of the draws; the measurements are the same for all seeds.
        report: Called with each row as it is done.

    Returns:
        The rows of the table.

    Raises:
        InvalidArgument: For a folder that cannot be written.
        UnknownName: For the name of a model that is not registered.
        MissingDependency: Where scikit-learn or matplotlib is not installed.
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
    """Yield the rows, and write a picture of each problem into the folder.

    Arguments are those of `run_inverse`, the models by name.
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
    """The best estimate that is linear in y (Wiener's filter).

    Args:
        problem: The problem.
        y: The measurements, `(n, ...)`.
        mean: The mean of the training images, `(1, 8, 8)`.
        covariance: Their covariance, `(64, 64)` in float64.

    Returns:
        `(n, 1, 8, 8)`, in the dtype of y.
    """
    basis = torch.eye(len(covariance), dtype=covariance.dtype).reshape(-1, *mean.shape)
    a_t = rearrange(problem.operator(basis), "d ... -> d (...)")
    noise = problem.std**2 * torch.eye(a_t.shape[1], dtype=a_t.dtype)
    gain = torch.linalg.solve(a_t.T @ covariance @ a_t + noise, a_t.T @ covariance)
    residual = rearrange(y - problem.operator(mean[None]), "n ... -> n (...)").to(gain)
    return mean + (residual @ gain).to(y).unflatten(1, mean.shape)


def agreement(problem: Problem, y: Tensor, x: Tensor, truth: Tensor) -> Agreement:
    """How draws of the posteriors given y agree with the truth and with y.

    Args:
        problem: The problem.
        y: The measurements, `(n, ...)`.
        x: k draws for each, k at least 2, `(n, k, 1, 8, 8)`.
        truth: The images that were measured, `(n, 1, 8, 8)`.
    """
    k = x.shape[1]
    error, stderr = _error(x.mean(1), truth)
    spread = math.sqrt((1 + 1 / k) * float(x.var(1).mean())) / error
    images = rearrange(x, "n k ... -> (n k) ...")
    residual = repeat(y, "n ... -> (n k) ...", k=k) - problem.operator(images)
    return Agreement(error, stderr, _rms(x - truth[:, None]), spread, _rms(residual) / problem.std)


def _error(x: Tensor, truth: Tensor) -> tuple[float, float]:
    """The root mean square error over images and pixels, and its standard error over images."""
    squares = (x - truth).square().flatten(1).mean(1)
    error = math.sqrt(float(squares.mean()))
    return error, float(squares.std()) / math.sqrt(len(squares)) / (2 * error)


def _rms(x: Tensor) -> float:
    return math.sqrt(float(x.square().mean()))


def _known(of_each: int) -> _Known:
    """So many held-out images of each class, in the order 0 ... 9, 0 ... 9, ..."""
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
    """The finished row, and the draws `(n, k, 1, 8, 8)`."""
    field = posterior(prior, LinearGaussian(problem.operator, "y", problem.std), run.method)
    rows = {"y": repeat(y, "n ... -> (n draws) ...", draws=DRAWS)}
    started = time.perf_counter()
    draws = sample(
        field, run.solver, chains=len(rows["y"]), cond=rows, seed=seed, keep="last", **run.options
    )
    seconds = time.perf_counter() - started
    x = rearrange(draws.final, "(n draws) ... -> n draws ...", draws=DRAWS)
    well = rearrange(draws.ok, "(n draws) -> n draws", draws=DRAWS).all(1)
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
            rearrange(x[well], "n draws ... -> (n draws) ..."),
            repeat(labels, "n -> (n draws)", draws=DRAWS),
        ),
    ), x
