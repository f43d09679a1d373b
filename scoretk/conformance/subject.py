"""A field as the laws see it, with the points, times and conditions at which it is evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

from scoretk.core.modules import state_like
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.fields.base import base_of
from scoretk.fields.protocols import is_timed, offers, optional

__all__ = ["Case", "NotApplicable", "Subject", "Violation", "close", "demand"]

METHODS = ("energy", "score", "velocity", "denoise", "log_prob", "decode")
TIMELESS = ("log_prob", "decode")

POOL = 16
"""How many draws of a field with `draw` are the points at which it is evaluated."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""The rounding that is allowed, relative to the largest number in a row, or to 1."""


class Violation(AssertionError):
    """Raised where a law does not hold."""


class NotApplicable(SkipTest):
    """Raised where a law says nothing about a field; test runners show it as a skipped test."""


@dataclass(frozen=True)
class Case:
    """One example at which a field is evaluated.

    Args:
        rows: How many rows the batch has.
        seed: The seed of its noise.
        scale: The factor on points where the field would start.
        t: The time, for a timed field.
    """

    rows: int = 4
    seed: int = 0
    scale: float = 1.0
    t: float = 0.5


@dataclass(frozen=True, eq=False)
class Subject:
    """A field and what is claimed of it.

    Args:
        field: The field.
        claims: The capabilities that are claimed of it.
        dtype: The dtype of the points.
        device: Their device.
        cond: Condition values by name, `(rows, ...)`; a batch takes the rows in turn.
    """

    field: Any
    claims: frozenset[str]
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cond: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def all_of(
        cls, model: Any, claims: frozenset[str], cond: Mapping[str, Tensor]
    ) -> list[Subject]:
        """The subjects of a field: on its device, and in its dtype or, where it has none, in both."""
        held = state_like(model)
        dtypes = [held[0].dtype] if held and held[0].dtype in TOLERANCE else list(TOLERANCE)
        device = held[0].device if held else torch.device("cpu")
        return [cls(model, claims, dtype, device, cond) for dtype in dtypes]

    @property
    def timed(self) -> bool:
        return is_timed(self.field)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.field.event_shape)

    @property
    def methods(self) -> list[str]:
        """The methods it offers that take points."""
        has = offers(self.field)
        return [name for name in METHODS if name in has]

    def noise(self, case: Case) -> Noise:
        """The noise of a case, one chain for each row."""
        return Noise(case.seed, case.rows, device=self.device, dtype=self.dtype, window=1)

    def points(self, case: Case) -> Tensor:
        """Points at which the field can be evaluated, `(rows, *event_shape)`.

        They are its own draws where it has them, else points where it would start, times the scale.
        (Draws are not scaled, as the field may have an edge where its draws do.)
        """
        noise = self.noise(case)
        if "draw" in offers(self.field):
            return self._like(self._drawn[torch.arange(case.seed, case.seed + case.rows) % POOL])
        start = optional(self.field, "initial")
        if start is None and self.timed:
            start = optional(base_of(self.field), "draw")
        if callable(start):
            x = start(case.rows, noise)
        else:
            x = noise.normal(0, Stream.START, self.shape)
        return self._like(case.scale * x)

    @cached_property
    def _drawn(self) -> Tensor:
        """Draws of the field, `(POOL, *event_shape)`, made once, as drawing may take long."""
        return self.field.draw(POOL, self.noise(Case(POOL))).cpu()

    def times(self, case: Case) -> Tensor:
        """A time for each row, near that of the case and inside (0, 1): `(rows,)`.

        Where no method takes one, that of the case for all.
        """
        if not self.timed:
            return torch.full((case.rows,), case.t, dtype=self.dtype, device=self.device)
        spread = 0.1 * self.noise(case).uniform(0, Stream.USER, ())
        return (0.9 * case.t + spread).to(self.dtype)

    def directions(self, case: Case) -> Tensor:
        """Random unit vectors, `(rows, *event_shape)`."""
        v = self.noise(case).normal(1, Stream.USER, self.shape)
        if self.shape:
            return v / v.flatten(1).norm(dim=1).reshape(-1, *[1] * len(self.shape))
        return v.sign()

    def conditions(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The condition values of some rows of a batch."""
        index = torch.tensor(rows, dtype=torch.int64)
        return {key: value[index.to(value.device) % len(value)] for key, value in self.cond.items()}

    def __call__(
        self, name: str, x: Tensor, t: Any = None, rows: Sequence[int] | None = None
    ) -> Any:
        """The answer of a method at x.

        Args:
            name: The name of the method.
            x: `(n, *event_shape)`.
            t: The time, for methods of a timed field that take one.
            rows: Which rows of the batch these are, so that they get their conditions; None for the
                first n.
        """
        bound = self.conditions(range(len(x)) if rows is None else rows)
        takes_time = self.timed and name not in TIMELESS
        return getattr(self.field, name)(x, *([t] if takes_time else []), **bound)

    def ask(self, name: str, case: Case) -> Any:
        """The answer of a method at the points of a case; for "draw" the field's draws."""
        if name == "draw":
            return self.field.draw(case.rows, self.noise(case))
        return self(name, self.points(case), self.times(case))

    def answers(self, case: Case) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        """The tuples `(method, x, t, answer)` of all methods at the points of a case."""
        points, times = self.points(case), self.times(case)
        for name in self.methods:
            x, t = points.clone(), times.clone()
            yield name, x, t, self(name, x, t)

    def _like(self, x: Tensor) -> Tensor:
        return x.detach().to(self.device, self.dtype).contiguous().clone()


def demand(holds: bool, message: str) -> None:
    """Raise unless a law holds.

    Raises:
        Violation: With this message.
    """
    if not holds:
        raise Violation(message)


def close(name: str, got: Tensor, expected: Tensor, meaning: str, factor: float = 1.0) -> None:
    """Raise unless two tensors agree row by row to rounding; NaN agrees with NaN.

    Args:
        name: The name of the method.
        got: Its answer, `(rows, ...)`.
        expected: What it should be, like it.
        meaning: What is compared, as text.
        factor: The factor on the dtype's `TOLERANCE`.

    Raises:
        Violation: At the first row where they differ.
    """
    demand(
        got.shape == expected.shape,
        f"{name}: {meaning}: shapes {tuple(got.shape)} and {tuple(expected.shape)}",
    )
    wanted = _flat(expected.detach())
    scale = wanted.nan_to_num(0, 0, 0).abs().amax(1, keepdim=True) if wanted.numel() else wanted
    bound = factor * TOLERANCE.get(expected.dtype, 1e-4) * scale.clamp(min=1)
    error = _flat((got - expected).abs())
    same = _flat((got == expected) | (got.isnan() & expected.isnan()))
    for i in (~((error <= bound) | same).all(1)).nonzero().flatten().tolist():
        raise Violation(f"{name}: {meaning}: row {i} is {_short(got[i])} and {_short(expected[i])}")


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1) if x.ndim > 1 else x[:, None]


def _short(value: Tensor) -> str:
    numbers = ", ".join(f"{v:.6g}" for v in value.detach().flatten()[:4].tolist())
    return f"({numbers}{', ...' if value.numel() > 4 else ''})"
