"""Flows of zuko, and their laws at given conditions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from scoretk.adapters.flows.law import Cond, _fails, _like
from scoretk.adapters.flows.supports import Support, zuko_support
from scoretk.errors import InvalidArgument
from scoretk.fields.distribution import draw_from, explicit
from scoretk.fields.freelaws import unvalidated
from scoretk.fields.protocols import NoiseSource


class _OfZuko:
    """What a flow of zuko and a distribution of one have in common: a base of torch's."""

    @property
    def discrete(self) -> bool:
        base = self._base  # type: ignore[attr-defined]
        return not _fails(lambda: base().support) and bool(base().support.is_discrete)

    def some_conditions(self, rows: int) -> Cond | None:
        return None

    def gap(self, z: Tensor, other: Tensor) -> Tensor:
        """The distance; on a box, whose ends circular flows make one point, that on the circle."""
        apart, box = (z - other).abs(), _bare(self._base().support)  # type: ignore[attr-defined]
        low, high = (getattr(box, name, None) for name in ("lower_bound", "upper_bound"))
        return apart if low is None or high is None else torch.minimum(apart, high - low - apart)


@dataclass(frozen=True, eq=False)
class _ZukoLaw(_OfZuko):
    """A distribution that zuko has made: a flow without, or with one, condition."""

    flow: Any
    names = ()

    def __post_init__(self) -> None:
        if self.flow.batch_shape:
            raise InvalidArgument(
                "flow",
                self.flow,
                "an empty batch_shape",
                "Give the flow itself, scoretk.from_flow(flow), and the rows as cond={'c': rows}",
            )

    def conditional(self, shape: tuple[int, ...]) -> bool:
        return False

    def shape(self) -> tuple[int, ...]:
        return tuple(self.flow.event_shape)

    def support(self, shape: tuple[int, ...]) -> Support | None:
        return zuko_support(self.flow.transform, torch.zeros((1, *shape)).to(_like(self.flow)))

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        return _of_base(self.flow, x)

    @property
    def explicit(self) -> bool:
        return explicit(self.flow.base)

    def _base(self) -> td.Distribution:
        base: td.Distribution = self.flow.base
        return base

    def base(self, noise: NoiseSource, cond: Cond) -> Tensor:
        return draw_from(self.flow.base, noise).to(_like(self.flow).dtype)

    def inverse(self, z: Tensor, cond: Cond) -> Tensor:
        x: Tensor = self.flow.transform.inv(z)
        return x

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        z: Tensor = self.flow.transform(x)
        return z


@dataclass(frozen=True, eq=False)
class _Zuko(_OfZuko):
    """A flow of zuko: `flow(c)` is the distribution given c, a row for a row of c."""

    flow: Any
    names = ("c",)

    def conditional(self, shape: tuple[int, ...]) -> bool:
        own = shape if _fails(self.shape) else self.shape()
        zeros = _like(self.flow).new_zeros((1, *own))
        return _fails(lambda: self.flow().log_prob(zeros))

    def shape(self) -> tuple[int, ...]:
        return tuple(getattr(self.flow, "base", self.flow)().event_shape)

    def support(self, shape: tuple[int, ...]) -> Support | None:
        transform = getattr(self.flow, "transform", None)
        x = torch.zeros((1, *shape)).to(_like(self.flow))
        return None if transform is None else zuko_support(transform, x)

    def log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        return _of_base(self.flow(*_rows(cond)), x)

    @property
    def explicit(self) -> bool:
        base = getattr(self.flow, "base", None)
        return base is not None and not _fails(base) and explicit(base())

    def _base(self) -> td.Distribution:
        base: td.Distribution = self.flow.base()
        return base

    def base(self, noise: NoiseSource, cond: Cond) -> Tensor:
        return draw_from(self._base(), noise).to(_like(self.flow).dtype)

    def inverse(self, z: Tensor, cond: Cond) -> Tensor:
        x: Tensor = self.flow(*_rows(cond)).transform.inv(z)
        return x

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        z: Tensor = self.flow(*_rows(cond)).transform(x)
        return z


def _of_base(law: Any, x: Tensor) -> Tensor:
    """The log density of a distribution of zuko, `(batch,)`; `-inf` of rows outside its base's support.

    torch's own checks would refuse all rows for one; without them some of its families, such as
    Exponential, say of what is outside what their formula gives there.
    """
    law = unvalidated(law)
    log_prob: Tensor = law.log_prob(x)
    base = getattr(law, "base", None)
    if base is None or _fails(lambda: base.support) or not hasattr(law, "transform"):
        return log_prob
    support = base.support
    if _bare(support) is td.constraints.real:
        return log_prob
    return torch.where(support.check(law.transform(x)), log_prob, -torch.inf)


def _bare(support: td.constraints.Constraint) -> td.constraints.Constraint:
    """The constraint of one number, of one of many of these."""
    while isinstance(support, td.constraints.independent):
        support = support.base_constraint
    return support


def _rows(cond: Cond) -> Iterator[Tensor]:
    """Conditions of zuko, which takes a vector for one condition of all rows.

    Raises:
        InvalidArgument: One has no row a chain.
    """
    for name, value in cond.items():
        if value.ndim < 2:
            hint = f"One for all: {name}.expand(chains, -1). Of one number each: {name}[:, None]"
            raise InvalidArgument(name, value, "a row a chain, (chains, width)", hint)
        yield value
