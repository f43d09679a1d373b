"""The rows of "mnist": families trained on its images, their test nats or bits beside the published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from scoretk.demo.bench.mnist.data import Split, grey_split, split, split_rows
from scoretk.demo.bench.mnist.estimates import AGREE, Nats, Second
from scoretk.demo.bench.mnist.idx import Images, find_images, find_labels
from scoretk.demo.bench.mnist.judge import Judge, Judged, judge_of
from scoretk.demo.bench.mnist.published import FAMILIES, Entry
from scoretk.demo.bench.mnist.training import Plan, Stopwatch, Trained
from scoretk.demo.bench.rows import Asked, Cell, Curve, Link, Measured, Row, Table
from scoretk.diagnostics import plot
from scoretk.errors import InvalidArgument, MissingDependency, ScoretkError, UnknownName

__all__ = ["MNIST", "mnist"]

QUICK = 600, 200, 200
"""How many images of the split small recipes take."""
QUICK_DRAWN = 16
SHOWN = "samples", "entropy of the judge", "classes apart", "judge"
"""The columns of samples."""


def mnist(asked: Asked) -> Iterator[Row]:
    """The rows, one a family; none where targets or solvers are asked for, which it has not.

    Raises:
        UnknownName: For a family that is none.
        InvalidArgument: Where files are damaged; where they are not there, if the table was named.
    """
    for name in asked.families:
        if name not in FAMILIES:
            raise UnknownName("family", name, set(FAMILIES))
    if asked.targets or asked.solvers:
        return
    try:
        images = find_images(asked.data)
    except InvalidArgument as error:
        if "mnist" in asked.named or asked.families:
            raise
        yield _row("all", None, None, None, str(error), None)
        return
    splits = {False: split(images, 0), True: grey_split(images)}
    splits = {grey: data.to(asked.device) for grey, data in splits.items()}
    if asked.quick:
        splits = {grey: data.first(*QUICK) for grey, data in splits.items()}
    judges = _Judges(asked, images, splits)
    for name in asked.families or FAMILIES:
        yield _made(name, splits[FAMILIES[name].grey], judges, asked)


class _Judges:
    """The judge of binarised images and that of grey ones, trained when one is asked for."""

    def __init__(self, asked: Asked, images: Images, splits: dict[bool, Split]) -> None:
        assert asked.data is not None
        self.quick, self.splits = asked.quick, splits
        labels = find_labels(asked.data, images)
        self.labels = None if labels is None else split_rows(labels).to(asked.device)
        if self.labels is not None and asked.quick:
            self.labels = self.labels.first(*QUICK)
        self.made: dict[bool, Judge] = {}

    def judged(self, grey: bool, samples: Tensor) -> Judged | None:
        """What the judge says of samples; None without labels."""
        if self.labels is None:
            return None
        if grey not in self.made:
            self.made[grey] = judge_of(self.splits[grey], self.labels, self.quick)
        return self.made[grey].judged(samples)


def _made(name: str, data: Split, judges: _Judges, asked: Asked) -> Row:
    """The row of a family."""
    entry, watch = FAMILIES[name], Stopwatch()
    family = entry.quick if asked.quick else entry.family
    try:
        trained = family.train(data, Plan(asked.minutes, asked.steps, asked.seed))
        nats = family.judge(trained.field, data, asked.seed)
        shown: dict[str, Cell] = {}
        if asked.folder is not None or judges.labels is not None:
            n = QUICK_DRAWN if asked.quick else entry.drawn
            samples = family.draws(trained.field, n, asked.seed)
            shown = {
                "samples": _sheet(name, samples, asked.folder),
                **_opinions(judges.judged(entry.grey, samples)),
            }
    except ScoretkError as error:
        return _row(name, entry, None, None, str(error), float(watch))
    cause = _cause(entry, trained, nats)
    return _row(name, entry, trained, nats, cause, float(watch), shown)


def _sheet(name: str, samples: Tensor, folder: Path | None) -> Cell:
    """A sheet of the first samples, in the folder; None without one."""
    if folder is None:
        return None
    try:
        figure = plot.samples(samples.cpu(), most=36)
    except MissingDependency as error:
        return str(error)
    file = Link(f"samples-{name}.png")
    figure.savefig(folder / file.name, dpi=100)
    return file


def _opinions(judged: Judged | None) -> dict[str, Cell]:
    """The cells of the judge, beside the floor of as many real images."""
    if judged is None:
        return {"entropy of the judge": None, "classes apart": None, "judge": None}
    samples, floor = judged.samples, judged.floor
    return {
        "entropy of the judge": f"{samples.entropy:.3f} ± {samples.stderr:.3f} ({floor.entropy:.3f})",
        "classes apart": f"{samples.apart:.3f} ({floor.apart:.3f})",
        "judge": f"right on {judged.accuracy:.4f} of the test images",
    }


def _cause(entry: Entry, trained: Trained, nats: Nats) -> str:
    """Why a row is not reached, empty where it is."""
    causes, second = [], nats.second
    if second is not None and not second.trusted:
        causes.append("an estimate is said not to be trusted")
    elif second is not None and not second.agrees:
        causes.append(f"two estimates are {abs(second.z):.1f} standard errors apart")
    if not nats.value <= entry.published:
        unit = "bits per dimension" if entry.grey else "nats"
        far = f"{nats.value - entry.published:.2f} {unit} above the published number"
        short = trained.steps < trained.of
        causes.append(f"{far}, after {trained.steps:,} of {trained.of:,} steps" if short else far)
    return "; ".join(causes)


def _row(
    name: str,
    entry: Entry | None,
    trained: Trained | None,
    nats: Nats | None,
    cause: str,
    seconds: float | None,
    shown: Row | None = None,
) -> Row:
    grey = entry is not None and entry.grey
    measured = None if nats is None else Measured(nats.value, nats.stderr)
    return {
        "family": name,
        "test nats": None if grey else measured,
        "bits per dimension": measured if grey else None,
        "error of the estimate": None if nats is None else f"{nats.estimate:.{4 if grey else 3}f}",
        "published": None if entry is None else f"{entry.published:.2f}",
        "how": None if nats is None else nats.how,
        "two estimates": None if nats is None or nats.second is None else _both(nats.second),
        **dict.fromkeys(SHOWN),
        **(shown or {}),
        "steps": None if trained is None else f"{trained.steps:,} of {trained.of:,}",
        "curve": None if trained is None else Curve(trained.curve),
        "recipe": None if trained is None else trained.recipe,
        "source": None if entry is None else entry.source,
        "reached": "no" if cause else "yes",
        "cause": cause,
        "seconds": seconds,
    }


def _both(second: Second) -> str:
    return (
        f"{second.first:.3f} and {second.second:.3f}, z {second.z:.2f} ({second.how}"
        f"{'' if second.trusted else '; not to be trusted'})"
    )


MNIST = Table(
    "MNIST",
    "Mean negative log likelihood of the test images, in nats, each pixel drawn once by its grey "
    "level (seed 0; the last sixth of the training file chooses the weights); of grey images, "
    "dequantised uniformly, in bits per dimension. The standard error is that of the spread of "
    "images and of what is estimated together; the latter apart in the next column. The published "
    "numbers are of the same images, most of them in another draw, and none was checked against its "
    "paper. The curve is of nats or bits on images for choosing, after steps, or of the loss where "
    "a density takes a solve. A row is reached at or below the published number, where two "
    f"estimates are within {AGREE:g} of their standard errors of each other. A classifier trained "
    "on real digits judges samples: by the mean entropy of its classes, and by how far their "
    "histogram is from that of the training labels; in brackets as many real test images.",
    mnist,
    anywhere=True,
)
