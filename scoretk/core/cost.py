"""What an answer has taken: evaluations of the model."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Cost", "together"]


class Cost(dict[str, int]):
    """Model evaluations by kind ("energy", "score", "velocity"), counted by rows.

    A batch of 100 counts 100. An energy that is evaluated together with its gradient counts one of
    each.
    """

    @property
    def total(self) -> int:
        """The sum over kinds."""
        return sum(self.values())

    def __int__(self) -> int:
        return self.total


def together(parts: Sequence[Cost]) -> Cost:
    """The sum of several costs."""
    return Cost({kind: sum(p.get(kind, 0) for p in parts) for part in parts for kind in part})
