"""Models of ours that should keep the laws: held to each in fewer cases than a user's model is.

That wrong models are found in as many cases as users have is what `test_conformance` holds.
"""

from unittest import mock

from scoretk.conformance import check_model, kit

CASES = 5
"""The first is the simplest, of one row; the others differ in rows, seed, scale and time."""


def checked(model, cond=None):
    """As `check_model`."""
    with mock.patch.object(kit, "EXAMPLES", CASES):
        return check_model(model, cond=cond)


def broken_laws(model, cond=None):
    """What failed, by the name of the check."""
    return {r.check: r.detail for r in checked(model, cond) if r.status == "failed"}
