"""Which cases of a test run each time, and which with `-m slow` only."""

import pytest


def slow_but(cases, *quick):
    """Parameters of a test: those that are not said to be quick are marked slow."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def slow_rows_but(rows, *quick):
    """The same where a case is a row of several parameters."""
    return [row if row in quick else pytest.param(*row, marks=pytest.mark.slow) for row in rows]


def in_turn(firsts, seconds, *always):
    """Rows of two parameters: each first with the seconds that are always asked and one of the others, in turn.

    Each second has a first as well. The rest is marked slow.
    """
    firsts, seconds = list(firsts), list(seconds)
    places = [j for j, second in enumerate(seconds) if second not in always]
    turns, rows = min(len(firsts), len(places)), []
    for i, first in enumerate(firsts):
        for j, second in enumerate(seconds):
            is_quick = j not in places or (i - places.index(j)) % turns == 0
            marks = () if is_quick else pytest.mark.slow
            rows.append(pytest.param(first, second, marks=marks))
    return rows


def named(case):
    """Ids of such rows: words, numbers and shapes as they are, all else by its class."""
    return str(case) if isinstance(case, (str, int, float, tuple)) else type(case).__name__


def slow_unless(cases, kinds):
    """The same where the quick ones are the instances of these classes."""
    return [c if isinstance(c, kinds) else pytest.param(c, marks=pytest.mark.slow) for c in cases]
