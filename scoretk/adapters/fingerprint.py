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

__all__ = ["OF_THE_NETWORK", "answers", "predicted", "same"]

PROBES = 4
TIMES = (0.2, 0.4, 0.6, 0.8)
ENDS = (0.005, 0.02, 0.05, 0.1, 0.9, 0.95, 0.98, 0.995)
"""Where guidance of an interval of noise levels begins and ends, and velocities may be large."""
CLOSE = 1e-3
"""How near the answers have to be, in units of the largest: devices and versions round apart."""

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


def same(found: Tensor | None, stored: Tensor) -> bool:
    """Whether two answers are the same but for rounding; NaN and infinities in the same places."""
    if found is None or found.shape != stored.shape:
        return False
    finite = stored[stored.isfinite()].abs()
    scale = float(finite.amax()) if len(finite) else 0.0
    return torch.allclose(found, stored, rtol=0, atol=CLOSE * scale, equal_nan=True)


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
