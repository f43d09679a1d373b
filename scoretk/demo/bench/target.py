"""What samplers are judged on: a field, and what is known of its law.

A target is a field with a truth: `Moments`, the means and variances of the squares of some
coordinates; its log partition function; or a `Reference`, draws of its law. Targets are plugins
(`scoretk.plugins.targets`): a function `build(data)` that gets the user's folder of data, or None,
and returns a `Target`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor

from scoretk.errors import InvalidArgument

__all__ = ["Arrays", "Moments", "Published", "Reference", "Target", "unchanged"]

T = TypeVar("T")


def unchanged(x: T) -> T:
    """The coordinates of the field, or its variables, themselves."""
    return x


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of the squares of coordinates y = of(x).

    Args:
        mean_square: E y_i^2, `(k,)`.
        var_square: Var y_i^2, `(k,)`.
        source: Where these come from.
        error: The standard error of `mean_square`, `(k,)`; None where it is exact.
        of: The coordinates, `(n, *event_shape)` to `(n, k)`.
    """

    mean_square: Tensor
    var_square: Tensor
    source: str
    error: Tensor | None = None
    of: Callable[[Tensor], Tensor] = unchanged

    def __post_init__(self) -> None:
        for name in ("mean_square", "var_square"):
            value = getattr(self, name)
            sound = value.shape == self.mean_square.shape and bool((value > 0).all())
            if not sound or value.ndim != 1 or not bool(value.isfinite().all()):
                raise InvalidArgument(name, value, "positive numbers, one a coordinate")

    @staticmethod
    def gaussian(variance: Tensor, source: str, of: Callable[[Tensor], Tensor] = unchanged) -> Any:
        """Those of centred normal coordinates: E y^2 = v, Var y^2 = 2 v^2.

        Args:
            variance: v, `(k,)`.
            source: As in `Moments`.
            of: As in `Moments`.
        """
        return Moments(variance, 2 * variance.square(), source, None, of)


Arrays = Mapping[str, Tensor]
"""Data, or parameters, by name."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Draws of a target's law that others have made.

    Args:
        draws: By the names of numbers, "sigma" or "beta[1]", `(chains, draws)` each.
        parameters: What they are of, by name, `(n, *shape)` each, from the field's named variables,
            `(n, *shape)` each; by default these.
    """

    draws: Arrays
    parameters: Callable[[Arrays], Arrays] = unchanged

    def __post_init__(self) -> None:
        shapes = {value.shape for value in self.draws.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2:
            raise InvalidArgument(
                "draws", sorted(shapes), "as many of every number, (chains, draws)"
            )

    def numbers(self, values: Arrays) -> dict[str, Tensor]:
        """What the draws are of, number by number, from variables by name.

        Args:
            values: The field's variables, `(n, *shape)` each.

        Returns:
            `(n,)` each, by names that count from 1: "sigma", "beta[2]", "z[2,1]"; those of `draws`.

        Raises:
            InvalidArgument: The draws are of other numbers.
        """
        made: dict[str, Tensor] = {}
        for name, value in self.parameters(values).items():
            places = product(*(range(1, size + 1) for size in value.shape[1:]))
            labels = [f"{name}[{','.join(map(str, at))}]" if at else name for at in places]
            made.update(zip(labels, value.reshape(len(value), -1).T, strict=True))
        missing = [name for name in self.draws if name not in made]
        if missing:
            raise InvalidArgument("reference draws", missing, f"some of {', '.join(made)}")
        return {name: made[name] for name in self.draws}


@dataclass(frozen=True)
class Published:
    """Numbers of the literature on a target.

    Args:
        values: By the name of a column; None where the method is said not to reach the aim.
        source: Where they stand, and what is not known of them.
    """

    values: Mapping[str, float | None] = field(default_factory=dict)
    source: str = ""

    @property
    def best(self) -> float | None:
        """The least of them, None where there is none."""
        return min((v for v in self.values.values() if v is not None), default=None)


@dataclass(frozen=True, eq=False)
class Target:
    """A field with a truth.

    Args:
        name: Its name in tables.
        field: The field.
        moments: The squares of its coordinates, None where they are not known.
        published: What the literature reached on it.
        note: What a reader of the table has to know.
        log_z: Its log partition function, None where it is not known.
        log_z_error: The standard error of `log_z`, 0 where it is exact.
        base: Where the literature's annealing begins, None for where `log_partition` does.
        reference: Draws of its law, None where there are none; its field has named variables.
    """

    name: str
    field: Any
    moments: Moments | None = None
    published: Published = field(default_factory=Published)
    note: str = ""
    log_z: float | None = None
    log_z_error: float = 0.0
    base: Any = None
    reference: Reference | None = None

    @property
    def dim(self) -> int:
        """How many coordinates the field has."""
        return int(torch.Size(self.field.event_shape).numel())
