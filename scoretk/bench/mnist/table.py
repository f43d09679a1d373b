"""The rows of "mnist": families trained on binarised images, their test nats beside the published."""

from __future__ import annotations

from collections.abc import Iterator

from scoretk.bench.mnist.data import Split, split
from scoretk.bench.mnist.estimates import AGREE, Nats, Second
from scoretk.bench.mnist.idx import find_images
from scoretk.bench.mnist.published import FAMILIES, Entry
from scoretk.bench.mnist.training import Plan, Stopwatch, Trained
from scoretk.bench.rows import Asked, Curve, Measured, Row, Table
from scoretk.errors import InvalidArgument, ScoretkError, UnknownName

__all__ = ["MNIST", "mnist"]

QUICK = 600, 200, 200
"""How many images of the split small recipes take."""


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
    data = split(images, 0)
    if asked.quick:
        data = data.first(*QUICK)
    for name in asked.families or FAMILIES:
        yield _made(name, data, asked)


def _made(name: str, data: Split, asked: Asked) -> Row:
    """The row of a family."""
    entry, watch = FAMILIES[name], Stopwatch()
    family = entry.quick if asked.quick else entry.family
    try:
        trained = family.train(data, Plan(asked.minutes, asked.steps, asked.seed))
        nats = family.judge(trained.field, data, asked.seed)
    except ScoretkError as error:
        return _row(name, entry, None, None, str(error), float(watch))
    return _row(name, entry, trained, nats, _cause(entry, trained, nats), float(watch))


def _cause(entry: Entry, trained: Trained, nats: Nats) -> str:
    """Why a row is not reached, empty where it is."""
    causes, second = [], nats.second
    if second is not None and not second.trusted:
        causes.append("an estimate is said not to be trusted")
    elif second is not None and not second.agrees:
        causes.append(f"two estimates are {abs(second.z):.1f} standard errors apart")
    if not nats.value <= entry.published:
        far = f"{nats.value - entry.published:.2f} nats above the published number"
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
) -> Row:
    return {
        "family": name,
        "test nats": None if nats is None else Measured(nats.value, nats.stderr),
        "error of the estimate": None if nats is None else f"{nats.estimate:.3f}",
        "published": None if entry is None else f"{entry.published:.2f}",
        "how": None if nats is None else nats.how,
        "two estimates": None if nats is None or nats.second is None else _both(nats.second),
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
    "MNIST, binarised",
    "Mean negative log likelihood of the test images, in nats, each pixel drawn once by its grey "
    "level (seed 0; the last sixth of the training file chooses the weights). The standard error is "
    "that of the spread of images and of what is estimated together; the latter apart in the next "
    "column. The published numbers are of the same images, most of them in another draw, and none "
    "was checked against its paper. The curve is of nats on images for choosing, after steps. A row "
    f"is reached at or below the published number, where two estimates are within {AGREE:g} of their "
    "standard errors of each other.",
    mnist,
)
