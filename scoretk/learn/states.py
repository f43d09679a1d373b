"""What losses remember from call to call, such as replay buffers, for each part of a batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from scoretk.errors import InvalidArgument
from scoretk.learn import processes
from scoretk.learn.resume import packed, unpacked

__all__ = ["States"]


class States:
    """The states of objects that belong to a training, such as losses with a replay buffer.

    Args:
        candidates: Objects, of which those count that have `state_dict` and `load_state_dict` and
            are no modules.
        parts: How many parts a batch is computed in. With several, each part has states of its own,
            and the objects must have `for_part(number)`, which makes them that part's.

    Raises:
        InvalidArgument: Where there are several parts and an object has no `for_part`.
    """

    def __init__(self, candidates: list[Any], parts: int) -> None:
        unlike = {id(c): c for c in candidates if not isinstance(c, nn.Module)}.values()
        self.objects = [
            c for c in unlike if hasattr(c, "state_dict") and hasattr(c, "load_state_dict")
        ]
        self.kept: dict[int, list[Any]] = {}
        if parts > 1 and self.objects:
            self._part_them(parts)

    def _part_them(self, parts: int) -> None:
        unfit = [o for o in self.objects if not hasattr(o, "for_part")]
        if unfit:
            raise InvalidArgument(
                "state",
                unfit[0],
                "a state with for_part(number), as each part of a batch has its own",
            )
        start = self._now()
        for part in processes.own(parts):
            self._set(start)
            for o in self.objects:
                o.for_part(part)
            self.kept[part] = self._now()

    @contextmanager
    def of(self, part: int) -> Iterator[None]:
        """A context in which the objects have the states of this part, which it may change."""
        if part in self.kept:
            self._set(self.kept[part])
        yield
        if part in self.kept:
            self.kept[part] = self._now()

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """A context in which the objects have the first states of this process.

        Afterwards they have the states of before again.
        """
        before = self._now()
        self._set(next(iter(self.kept.values()), before))
        yield
        self._set(before)

    def moment(self) -> dict[int, list[Any]]:
        """The states of all parts, by number, those of the other processes included."""
        return {
            part: state
            for content in processes.gathered(packed(self.kept or {0: self._now()}))
            for part, state in unpacked(content).items()
        }

    def restore(self, moment: dict[int, list[Any]]) -> None:
        """The inverse of `moment`."""
        self.kept = {part: moment[part] for part in self.kept}
        self._set(next(iter(self.kept.values()), moment[0]))

    def _now(self) -> list[Any]:
        return [copy.deepcopy(o.state_dict()) for o in self.objects]

    def _set(self, states: list[Any]) -> None:
        for o, state in zip(self.objects, states, strict=True):
            o.load_state_dict(copy.deepcopy(state))  # it may keep and change what it is given
