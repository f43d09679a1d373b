"""Guidance in an interval of noise levels.

References:
    Kynkaanniemi, Aittala, Karras, Laine, Aila, Lehtinen, "Applying guidance in a limited interval
    improves sample and distribution quality in diffusion models" (2024).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoretk.core.devices import precise
from scoretk.core.rows import across
from scoretk.errors import InvalidArgument
from scoretk.fields.combine.members import SamePath
from scoretk.fields.convert import check_time

__all__ = ["Interval", "Steered", "as_interval"]


Interval = tuple[float, float]


def as_interval(value: Any) -> Interval | None:
    """Noise levels (low, high) with 0 <= low < high; None for all levels.

    Raises:
        InvalidArgument: It is neither.
    """
    if value is None:
        return None
    try:
        low, high = (float(v) for v in value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument("interval", value, "None or noise levels (low, high)") from error
    if not 0 <= low < high:
        raise InvalidArgument("interval", value, "noise levels (low, high) with 0 <= low < high")
    return low, high


class Steered(SamePath):
    """Guidance within an interval of noise levels, the first field alone elsewhere.

    A subclass gives `plain` and `steered`.
    """

    interval: Interval | None

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """The guided prediction, like x."""
        check_time(t, x)
        if self.interval is None:
            return self.steered(x, t, cond)
        low, high = self.interval
        exact = precise(t)
        level = self.path.sigma(exact) / self.path.alpha(exact)
        inside = (low < level) & (level <= high)
        if not isinstance(t, Tensor):
            return self.steered(x, t, cond) if bool(inside) else self.plain(x, t, cond)
        return torch.where(across(inside.to(x.device), x), *self.both(x, t, cond))

    def plain(self, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The prediction without guidance, like x."""
        raise NotImplementedError

    def steered(self, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The prediction with guidance, like x."""
        raise NotImplementedError

    def both(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The prediction with guidance and the one without, each like x."""
        return self.steered(x, t, cond), self.plain(x, t, cond)
