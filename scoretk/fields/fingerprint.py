"""What tells a field from another with the same weights: its answers at fixed points."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arguments import keyword_names
from scoretk.core.modules import left_as_found, outermost_modules, state_like
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument, SingularConversion
from scoretk.fields.base import plain_base
from scoretk.fields.conditions import taken
from scoretk.fields.paths import GaussianPath
from scoretk.fields.protocols import field_name, is_timed, offers, optional
from scoretk.fields.resolve import prediction, resolve

__all__ = ["OF_THE_NETWORK", "answers", "closeness", "precision", "predicted", "same"]

PROBES = 4
TIMES = (0.2, 0.4, 0.6, 0.8)
ENDS = (0.005, 0.02, 0.05, 0.1, 0.9, 0.95, 0.98, 0.995)
"""Where guidance of an interval of noise levels begins and ends, and velocities may be large."""
CLOSE = {"float64": 1e-6, "float32": 1e-4, "float16": 1.2e-2, "bfloat16": 0.1}
"""How near the answers of a row have to be, in units of its largest, by the coarsest dtype that they are
computed in: some hundred roundings of float32 in another order, a dozen of a half precision, as a velocity may be
the difference of two predictions ten times as large.
"""
APART = 1e-3
"""The least of these between two kinds of device (some multiply float32 by ten bits), and for folders that do
not say theirs.
"""
FLOOR = 1e-6
"""What is nothing, in units of the largest answer of all: a row may be the difference of large numbers."""

OF_THE_NETWORK = frozenset({"answers", "answers.energy", "answers.ends"})
"""Those that call what the user wrote; the others are of a path and a base."""

Asks = dict[str, Callable[[], Tensor]]


@torch.no_grad()
def answers(
    field: Any, cond: Mapping[str, Tensor] | None = None, only: Collection[str] | None = None
) -> tuple[dict[str, Tensor], Exception | None]:
    """What a field answers at fixed points, in float32 on the CPU.

    Args:
        field: The field.
        cond: Its conditions by name, one row a point.
        only: The names of the questions to ask; None for all.

    Returns:
        The answers by name, without those that it does not offer, or does not give for want of a
        condition; and the first error that says so.

    Raises:
        InvalidArgument: It raises another error, which is the cause; or any, at conditions.
    """
    rows = dict(cond or {})
    n = next((len(value) for value in rows.values()), PROBES)
    asks = (_of_timed if is_timed(field) else _of_static)(field, n, rows)
    discrete = optional(field, "states") is not None
    found: dict[str, Tensor] = {}
    want: Exception | None = None
    with left_as_found(field):
        for name, ask in asks.items():
            if only is not None and name not in only:
                continue
            try:
                found[name] = ask().detach().float().cpu()
            except SingularConversion:
                continue
            except Exception as error:
                if name == "answers" and discrete:  # which are points off its states
                    continue
                if rows or not _wants(field, error):
                    raise _unanswered(field, rows, error) from error
                want = want or error
    return found, want


def _wants(field: Any, error: BaseException) -> bool:
    """Whether an error of a field that was given no conditions says that one is missing.

    It is one of this package about conditions; or what the model raised names a condition that the
    field takes, as Python's own does, or met None in its place.
    """
    if isinstance(error, InvalidArgument) and error.argument == "cond":
        return True
    while error.__cause__ is not None:
        error = error.__cause__
    names = taken(field)
    if isinstance(error, KeyError):  # of a network that takes any, cond["y"]
        return names is None
    if names is None:  # of another library's model, what its network may be given
        networks = (keyword_names(m, 1 + is_timed(field)) for m in outermost_modules(field))
        names = frozenset[str]().union(*(found or () for found in networks))
    said = str(error)
    words = {word for word in re.findall(r"\w+", said) if len(word) > 1}
    quoted = set(re.findall(r"'(\w+)'", said))
    return bool(names & (words | quoted)) or (bool(names) and "NoneType" in words)


def _unanswered(field: Any, rows: Mapping[str, Tensor], error: Exception) -> InvalidArgument:
    said = f"It raised {type(error).__name__}: {error}"
    if rows:
        shapes = {key: tuple(value.shape) for key, value in rows.items()}
        wanted = f"conditions at which {field_name(field)} answers"
        return InvalidArgument("cond", shapes, wanted, said)
    names = ", ".join(sorted(taken(field) or ()))
    hint = f". If it needs {names}: cond= takes a few rows of each condition" if names else ""
    wanted = "a field that answers at points of N(0, I)"
    return InvalidArgument("field", field_name(field), wanted, said + hint)


def predicted(field: Any) -> str | None:
    """The name of what a timed field natively predicts; None of a static one."""
    return prediction(field)[0] if is_timed(field) else None


def precision(field: Any) -> dict[str, str]:
    """The coarsest dtype that a field's answers are computed in, and the kind of its device."""
    _, like = _points(field, 1)
    dtypes = [t.dtype for t in state_like(field) if t.is_floating_point()] or [like.dtype]
    part: Any = field
    while part is not None:  # of wrappers, the network's
        dtypes += [d for d in [getattr(part, "autocast", None)] if isinstance(d, torch.dtype)]
        part = getattr(part, "model", getattr(part, "field", None))
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    return {"dtype": str(coarsest).removeprefix("torch."), "device": like.device.type}


def closeness(one: Mapping[str, str] | None, other: Mapping[str, str]) -> float:
    """How near the answers of two fields have to be that are one, by their `precision`."""
    known = one or {"dtype": other["dtype"]}
    close = max(CLOSE.get(told["dtype"], APART) for told in (known, other))
    return close if known.get("device") == other["device"] else max(close, APART)


def same(name: str, found: Tensor | None, stored: Tensor, close: float, events: int) -> bool:
    """Whether two answers are the same but for rounding; NaN and infinities in the same places.

    Args:
        name: Of which question.
        found: An answer.
        stored: The other.
        close: How near each row has to be, in units of its largest.
        events: How many axes one x has.
    """
    if found is None or found.shape != stored.shape:
        return False
    finite = torch.where(stored.isfinite(), stored.abs(), 0.0)
    if finite.numel() == 0:
        return True
    if name == "answers.energy":  # a difference of sums, up to a constant: by the largest of all
        scale = finite.amax()
    elif name == "answers.path" or not events:
        scale = finite
    else:
        scale = finite.amax(tuple(range(-events, 0)), keepdim=True)
    allowed = close * scale + FLOOR * finite.amax()
    near = (found - stored).abs() <= allowed
    alike = (found == stored) | (found.isnan() & stored.isnan())
    return bool((near | alike).all())


def _of_static(field: Any, n: int, cond: dict[str, Tensor]) -> Asks:
    x, like = _points(field, n)
    needs = () if optional(field, "states") is None else ("states",)
    bound: Any = resolve(field, needs, cond, timed=False)
    start = plain_base(field)
    asks: Asks = {"answers": lambda: bound.score(x)}
    if "energy" in offers(bound.native):
        asks["answers.energy"] = lambda: bound.energy(start.draw(n, Noise(0, n)).to(like))
    return asks


def _of_timed(field: Any, n: int, cond: dict[str, Tensor]) -> Asks:
    x, _ = _points(field, n)
    bound: Any = resolve(field, (), cond, timed=True)
    source, path = prediction(field)
    asks: Asks = {
        "answers": lambda: bound.predict(x, 0.5),
        "answers.ends": lambda: torch.stack([bound.predict(x, t) for t in ENDS]),
    }
    if source == "velocity" or isinstance(path, GaussianPath):
        asks["answers.velocity"] = lambda: torch.stack([bound.velocity(x, t) for t in TIMES])
    if isinstance(path, GaussianPath):
        times = torch.tensor(TIMES, dtype=torch.float64)
        asks["answers.path"] = lambda: torch.stack([path.alpha(times), path.sigma(times)])
    base = optional(field, "base")
    if callable(getattr(base, "draw", None)):
        asks["answers.base"] = lambda: base.draw(n, Noise(0, n))
    return asks


def _points(field: Any, n: int) -> tuple[Tensor, Tensor]:
    """Points of N(0, I), `(n, *event_shape)`, and a tensor of the dtype and device of the field."""
    x = Noise(0, n).normal(0, Stream.PROBE, tuple(field.event_shape))
    like = next(iter(state_like(field)), x)
    return x.to(like), like
