"""`guided`: classifier-free guidance, `u + weight (c - u)`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arguments import finite, fraction, numbers
from scoretk.core.keywords import explained
from scoretk.core.rows import across
from scoretk.errors import InvalidArgument
from scoretk.fields.alike import alike
from scoretk.fields.combine.intervals import Interval, Steered, as_interval
from scoretk.fields.distribution import in_one_space
from scoretk.fields.foreign import no_field
from scoretk.fields.protocols import is_field, is_timed, offers, optional
from scoretk.fields.resolve import TimedField, gaussian_path, prediction, static
from scoretk.fields.wrapped import Kind, Wrapped, shared_map

__all__ = ["Guided", "GuidedStatic", "guided"]


@explained
def guided(
    field: object,
    weight: float,
    unconditional: object | None = None,
    null: Mapping[str, Any] | None = None,
    *,
    interval: Interval | None = None,
    rescale: float = 0.0,
) -> object:
    """Classifier-free guidance: `g = u + weight (c - u)` in the model's own prediction.

    As all predictions are affine in one another with the same x, guiding one is guiding all, and u may
    predict another than c, on the same path. Weight
    1 is no guidance, 0 the unconditional model, above 1 stronger guidance. (Ho and Salimans write
    weight = 1 + w.)

    A model that takes a value for no condition, `null={"label": 10}`, is called once a step, on a
    batch of twice the size; one whose keyword is left out, `null={"label": None}`, or that has a
    model apart for it, twice.

    Args:
        field: The conditional model c.
        weight: Any finite number.
        unconditional: The model u; by default `field` itself with the condition values in `null` in
            place of the caller's. At most one of `unconditional` and `null` is given; with neither
            the field's own `null` is used, where it has one.
        null: Condition values that stand for no condition, by name; None leaves the keyword out.
        interval: `(low, high)`, the noise levels `low < sigma/alpha <= high` at which to guide; at
            others c alone is evaluated (Kynkaanniemi et al.). Timed fields only.
        rescale: phi in [0, 1], the part in which g is brought back to the standard deviation of c
            over the entries of its sample, `g (1 - phi + phi std(c) / std(g))`, against the
            saturation of large weights (Lin et al.). Timed fields of at least two entries only;
            with it the result does depend on what the model predicts.

    Returns:
        A field, timed or static as c is.

    Raises:
        InvalidArgument: The fields do not fit together, or an argument is out of its range.
        MissingCapability: A timed field has no Gaussian path.

    References:
        Ho, Salimans, "Classifier-free diffusion guidance" (2022).
        Kynkaanniemi, Aittala, Karras, Laine, Aila, Lehtinen, "Applying guidance in a limited
        interval improves sample and distribution quality in diffusion models" (2024).
        Lin, Liu, Li, Yang, "Common diffusion noise schedules and sample steps are flawed" (2024).
    """
    finite("weight", weight)
    if unconditional is None and null is None:
        null = optional(field, "null")
    if (unconditional is None) == (null is None):
        raise InvalidArgument(
            "unconditional, null",
            (unconditional, null),
            "exactly one of the two, or a field with a `null` of its own",
            ""
            if null is not None
            else "null={name: value} is what the network was trained with for no condition, such as "
            "null={'label': 10}; null={name: None} leaves the keyword out",
        )
    field, other = in_one_space((field, field if unconditional is None else unconditional))
    for name, one in (("field", field), ("unconditional", other)):
        if not is_field(one):
            raise no_field(name, one, "a field")
    if is_timed(field) != is_timed(other):
        raise InvalidArgument("unconditional", other, "timed as the field is (or static as it is)")
    both: tuple[Any, Any] = (field, other)
    shape, theirs = (tuple(f.event_shape) for f in both)
    if shape != theirs:
        raise InvalidArgument("unconditional", other, f"the field's event shape {shape}")
    fraction("rescale", rescale)
    values, apart = _null(null), unconditional is not None
    if not is_timed(field):
        if interval is not None or rescale:
            raise InvalidArgument(
                "interval, rescale", (interval, rescale), "None and 0 for a static field"
            )
        space = shared_map("unconditional", (field, other))
        if space is None:
            return GuidedStatic(field, other, float(weight), values, apart)
        pair = (space.field, other.field if apart else None)
        return space.around(guided(pair[0], weight, pair[1], None if apart else values))
    gaussian_path(field, "guidance")
    path, apart_path = (prediction(f)[1] for f in both)
    if not alike(path, apart_path):
        expected = f"a model on the field's path, {type(path).__name__}"
        raise InvalidArgument("unconditional", apart_path, expected)
    if rescale and math.prod(field.event_shape) < 2:  # type: ignore[attr-defined]
        raise InvalidArgument(
            "rescale", rescale, "0 for an event of one entry, which has no standard deviation"
        )
    return Guided(field, other, float(weight), values, apart, as_interval(interval), float(rescale))


def _spread(x: Tensor) -> Tensor:
    """The standard deviation over the d entries of each row times the root of d, `(batch,)`; of one entry 0."""
    flat = x.flatten(1)
    apart: Tensor = torch.linalg.vector_norm(flat - flat.mean(1, keepdim=True), dim=1)
    return apart


def _null(values: Any) -> dict[str, Any]:
    """Condition values that stand for none, by name.

    Raises:
        InvalidArgument: A value cannot be a condition.
    """
    if not isinstance(values, Mapping | None) or not all(
        isinstance(name, str) for name in values or {}
    ):
        raise InvalidArgument(
            "null", values, "a mapping of names to condition values, None to leave one out"
        )
    for name, value in (values or {}).items():
        if value is not None:
            numbers(f"null[{name!r}]", value)
    return dict(values or {})


class _Blend(Wrapped):
    """What guided fields share.

    Attributes:
        first: The conditional model c.
        other: The unconditional model u.
        nulls: The condition values that stand for none, by name.
        apart: Whether u is a model of its own, called without conditions.
    """

    first: Any
    other: Any
    nulls: dict[str, Any]
    apart: bool

    kind = Kind.BLEND

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.first, self.other) if self.apart else (self.first,)

    def _pair(
        self, asked: Callable[..., Tensor], x: Tensor, cond: dict[str, Tensor], *, doubled: bool
    ) -> tuple[Tensor, Tensor]:
        """The answers of c and u at x.

        Where one model is called with the same conditions both times, it is called once, on a batch
        of twice the size: a network that does not fill the device takes no longer for that.

        Args:
            asked: `(field, x, copies, cond)` to its answer, x being so many copies of the batch.
            x: `(batch, *event_shape)`.
            cond: The caller's conditions.
            doubled: Whether c takes a batch of twice the size.
        """
        free = _unconditioned(x, cond, self.nulls, self.apart)
        if self.apart or not doubled or free.keys() != cond.keys():
            return asked(self.first, x, 1, cond), asked(self.other, x, 1, free)
        rows = {name: torch.cat([value, free[name]]) for name, value in cond.items()}
        c, u = asked(self.first, torch.cat([x, x]), 2, rows).chunk(2)
        return c, u

    @property
    def null(self) -> Any:
        """What stands for no condition here: the nulls, or with u apart the first field's own."""
        return optional(self.first, "null") if self.apart else self.nulls


@dataclass(frozen=True, eq=False)
class Guided(_Blend, Steered):
    """Guidance of a field in time: `u + weight (c - u)` in what the field predicts.

    Attributes:
        first: The conditional model c.
        other: The unconditional model u.
        weight: 1 means no guidance.
        nulls: The condition values that stand for none, by name.
        apart: Whether u is a model of its own, called without conditions.
        interval: The noise levels at which to guide, None for all.
        rescale: phi, the part in which the standard deviation is that of c.
    """

    first: Any
    other: Any
    weight: float
    nulls: dict[str, Any]
    apart: bool
    interval: Interval | None
    rescale: float

    @property
    def predicts(self) -> str:  # type: ignore[override]
        return prediction(self.first)[0]

    def plain(self, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The prediction of c, like x."""
        return TimedField(self.first, self.path, cond).predict(x, t)

    def steered(self, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]) -> Tensor:
        """`u + weight (c - u)`, rescaled, like x."""
        return self.both(x, t, cond)[0]

    def both(self, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The guided prediction and that of c, each like x."""
        times = t.expand(len(x)) if isinstance(t, Tensor) else t

        def asked(field: Any, x: Tensor, copies: int, cond: dict[str, Tensor]) -> Tensor:
            when = times.repeat(copies) if isinstance(times, Tensor) else times
            return TimedField(field, self.path, cond).to(self.predicts, x, when)

        c, u = self._pair(asked, x, cond, doubled=True)
        g = u + self.weight * (c - u)
        if not self.rescale:
            return g, c
        ours, theirs = (_spread(value) for value in (g, c))
        ratio = torch.where(ours > 0, theirs / ours, 1.0)  # a constant stays as it is
        return g * across(1 + self.rescale * (ratio - 1), g), c

    def exponents(self, parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
        """The least positive exponent of `c^w u^(1 - w)`, and the sum of the positive ones.

        For w outside of (0, 1) the first is the lesser of the two fields' own.
        """
        w, (least, most), (other, others) = self.weight, parts[0], parts[-1]
        total = max(w, 0.0) * most + max(1 - w, 0.0) * others
        return min(w * least, (1 - w) * other) if 0 < w < 1 else min(least, other), total

    def at(self, t: float | Tensor) -> Any:
        """The static field of time t.

        Without interval and rescaling its energy is guided as well, where both fields have one.
        """
        if self.interval is not None or self.rescale:
            return super().at(t)
        of_rows = isinstance(t, Tensor) and t.ndim > 0
        fields = self.first.at(t), self.other.at(t)
        return GuidedStatic(*fields, self.weight, self.nulls, self.apart, doubled=not of_rows)


@dataclass(frozen=True, eq=False)
class GuidedStatic(_Blend):
    """Guidance of a static field: energies and scores are `u + weight (c - u)`.

    Attributes:
        first: The conditional model c.
        other: The unconditional model u.
        weight: 1 means no guidance.
        nulls: The condition values that stand for none, by name.
        apart: Whether u is a model of its own, called without conditions.
        doubled: Whether c takes a batch of twice the size; not where it holds a time a row.
    """

    first: Any
    other: Any
    weight: float
    nulls: dict[str, Any]
    apart: bool
    doubled: bool = True

    @property
    def computed(self) -> frozenset[str]:
        return offers(self.first) & offers(self.other) & {"energy", "score"}

    def _blend(self, name: str, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        def asked(field: Any, x: Tensor, copies: int, cond: dict[str, Tensor]) -> Tensor:
            value: Tensor = getattr(static(field), name)(x, **cond)
            return value

        c, u = self._pair(asked, x, cond, doubled=self.doubled)
        return u + self.weight * (c - u)

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`E_u + weight (E_c - E_u)`, `(batch,)`."""
        return self._blend("energy", x, cond)

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`s_u + weight (s_c - s_u)`, like x."""
        return self._blend("score", x, cond)


def _unconditioned(
    x: Tensor, cond: dict[str, Tensor], null: dict[str, Any], apart: bool
) -> dict[str, Any]:
    """The condition values with which the unconditional model is called.

    None for a model apart, else the caller's with the nulls in their place, as rows.
    """
    if apart:
        return {}
    kept = {name: value for name, value in cond.items() if name not in null}
    return kept | {n: _null_rows(n, v, cond.get(n), x) for n, v in null.items() if v is not None}


def _null_rows(name: str, value: Any, given: Tensor | None, x: Tensor) -> Tensor:
    """A null as one value a row of x, like the condition that it replaces where that is given.

    Where it is not, it is one row, however many x has; a floating-point number is of the dtype of x.

    Args:
        name: The condition's name.
        value: The null: a number or a tensor.
        given: The caller's condition rows, or None.
        x: `(batch, *event_shape)`.

    Raises:
        InvalidArgument: The null does not fit the condition's shape or dtype.
    """
    own = torch.as_tensor(value)
    if own.is_floating_point() and not isinstance(value, Tensor):
        own = torch.as_tensor(value, dtype=torch.float64)  # all its digits
    if given is None:
        dtype = own.dtype if isinstance(value, Tensor) or not own.is_floating_point() else x.dtype
        return own.to(x.device, dtype).expand(len(x), *own.shape)
    if own.dtype != given.dtype and not given.is_floating_point():
        whole = own.to(given.dtype)
        if not torch.equal(whole.to(own.dtype), own):
            raise InvalidArgument(
                f"null[{name!r}]",
                value,
                f"a value that {given.dtype} holds, as the condition is of that",
            )
        own = whole
    row = own[0] if own.ndim == given.ndim and len(own) == 1 else own
    try:
        return row.to(given.device, given.dtype).expand(given.shape[1:]).expand(given.shape)
    except RuntimeError as error:
        shape = f"a number, or shape {tuple(given.shape[1:])} as a row of the condition"
        way = "It stands for none in all chains"
        raise InvalidArgument(f"null[{name!r}]", value, shape, way) from error
