"""What tells a field from another with the same weights: its answers at fixed points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from scoretk.core.anatomy import left_as_found, state_like
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.fields.base import plain_base
from scoretk.fields.paths import GaussianPath
from scoretk.fields.protocols import is_timed, optional
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
def answers(field: Any, cond: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What a field answers at fixed points, in float32 on the CPU.

    Args:
        field: The field.
        cond: Its conditions by name, one row a point.

    Returns:
        By name. What it does not offer, or does not answer (without conditions that it is not
        given), is not there.
    """
    rows = dict(cond or {})
    n = next((len(value) for value in rows.values()), PROBES)
    asks = (_of_timed if is_timed(field) else _of_static)(field, n, rows)
    found = {}
    with left_as_found(field):
        for name, ask in asks.items():
            try:
                found[name] = ask().detach().float().cpu()
            except Exception:  # noqa: BLE001 (whatever a network raises without its conditions)
                continue
    return found


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
    return {
        "answers": lambda: bound.score(x),
        "answers.energy": lambda: bound.energy(start.draw(n, Noise(0, n)).to(like)),
    }


def _of_timed(field: Any, n: int, cond: dict[str, Tensor]) -> Asks:
    x, _ = _points(field, n)
    bound: Any = resolve(field, (), cond, timed=True)
    path = prediction(field)[1]
    asks: Asks = {
        "answers": lambda: bound.predict(x, 0.5),
        "answers.ends": lambda: torch.stack([bound.predict(x, t) for t in ENDS]),
        "answers.velocity": lambda: torch.stack([bound.velocity(x, t) for t in TIMES]),
    }
    if isinstance(path, GaussianPath):
        times = torch.tensor(TIMES, dtype=torch.float64)
        asks["answers.path"] = lambda: torch.stack([path.alpha(times), path.sigma(times)])
    base = optional(field, "base")
    if base is not None:
        asks["answers.base"] = lambda: base.draw(n, Noise(0, n))
    return asks


def _points(field: Any, n: int) -> tuple[Tensor, Tensor]:
    """Points of N(0, I), `(n, *event_shape)`, and a tensor of the dtype and device of the field."""
    x = Noise(0, n).normal(0, Stream.PROBE, tuple(field.event_shape))
    like = next(iter(state_like(field)), x)
    return x.to(like), like
