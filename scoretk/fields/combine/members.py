"""What combinations share: fields that fit together, each with its own conditions, on one path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.alike import alike
from scoretk.fields.conditions import Names, own, taken
from scoretk.fields.foreign import no_field
from scoretk.fields.paths import GaussianPath
from scoretk.fields.protocols import field_name, is_field, is_timed, offers, without_law
from scoretk.fields.resolve import TimedField, gaussian_path
from scoretk.fields.wrapped import Wrapped
from scoretk.fields.wrappers import GaussianPathField

__all__ = ["Members", "OfMany", "SamePath", "check_laws", "fitting"]


SUCH_AS = "Such as scoretk.Energy(fn, event_shape)"


def fitting(argument: str, fields: Sequence[Any], purpose: str) -> bool:
    """Check that fields fit together.

    Args:
        argument: The argument that errors name.
        fields: Those that are to be combined.
        purpose: What timed fields need a Gaussian path for, for the message.

    Returns:
        Whether they are timed.

    Raises:
        InvalidArgument: They are no fields, of several event shapes, timed and static, or on
            several paths.
        MissingCapability: A timed one has no Gaussian path.
    """
    if not isinstance(fields, Sequence) or isinstance(fields, str) or not fields:
        raise InvalidArgument(argument, fields, "at least one field")
    for f in fields:
        if not is_field(f):
            several = isinstance(f, list | tuple) and f and all(map(is_field, f))
            way = "Each by itself: product(*fields)" if several else SUCH_AS
            raise no_field(argument, f, "a field", way)
    shapes = {tuple(f.event_shape) for f in fields}
    if len(shapes) > 1:
        raise InvalidArgument(argument, shapes, "fields of one event shape")
    timed = {is_timed(f) for f in fields}
    if len(timed) > 1:
        hint = "Take field.at(t) of the timed ones, or leave time out"
        raise InvalidArgument(argument, fields, "all static or all timed", hint)
    if not timed.pop():
        return False
    paths = [gaussian_path(f, purpose) for f in fields]
    if not all(alike(paths[0], path) for path in paths[1:]):
        raise InvalidArgument(argument, paths, "timed fields on one Gaussian path")
    return True


def check_laws(fields: Sequence[Any]) -> None:
    """Refuse static fields without a law that can be combined.

    Raises:
        MissingCapability: One has neither an energy nor a score; the message says what makes one of
            what it has.
    """
    for f in fields:
        if not offers(f) & {"energy", "score"}:
            raise MissingCapability(
                field_name(f), offers(f), {"energy", "score"}, without_law(offers(f))
            )


class Members(Wrapped):
    """A combination of fields, each of which gets the conditions that it takes.

    Attributes:
        fields: Those that are combined.
        takes: The names of the conditions that each takes.
    """

    fields: tuple[Any, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        # Here, as a compiled function cannot read signatures.
        takes: tuple[Names, ...] = tuple(map(taken, self.fields))
        object.__setattr__(self, "takes", takes)

    @property
    def inner(self) -> tuple[Any, ...]:
        return self.fields

    def told(self, cond: dict[str, Tensor]) -> Iterable[tuple[Any, dict[str, Tensor]]]:
        """Each field with its conditions."""
        return zip(self.fields, own(self.takes, cond), strict=True)  # type: ignore[attr-defined]


class SamePath(Wrapped, GaussianPathField):
    """A timed combination on the path of its fields."""

    @property
    def computed(self) -> frozenset[str]:
        return GaussianPathField.provides - {"base"}

    @property
    def path(self) -> GaussianPath:  # type: ignore[override]
        return gaussian_path(self.inner[0], "this combination")


class OfMany(Members, SamePath):
    """A timed combination of several fields on one path."""

    def views(self, cond: dict[str, Tensor]) -> list[TimedField]:
        """The fields as solvers see them, the condition rows bound."""
        return [
            TimedField(f, gaussian_path(f, "this combination"), own) for f, own in self.told(cond)
        ]
