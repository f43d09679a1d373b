"""Which cases of a test run each time, and which with `-m slow` only."""

import pytest


def slow_but(cases, *quick):
    """Parameters of a test: those that are not said to be quick are marked slow."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def slow_rows_but(rows, *quick):
    """The same where a case is a row of several parameters."""
    return [row if row in quick else pytest.param(*row, marks=pytest.mark.slow) for row in rows]


def slow_unless(cases, kinds):
    """The same where the quick ones are the instances of these classes."""
    return [c if isinstance(c, kinds) else pytest.param(c, marks=pytest.mark.slow) for c in cases]
