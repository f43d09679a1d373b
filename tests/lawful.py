"""Models of ours that should keep the laws: held to each in fewer cases than a user's model is.

That wrong models are found in the cases that users have, and the simplest of them named, is what `test_conformance` holds.
"""

from unittest import mock

from scoretk.conformance import check_model, kit
from scoretk.conformance.subject import Case, NotApplicable, Violation

CASES = (Case(rows=1), Case(rows=6, seed=57, scale=2.0, t=0.9), Case(4, seed=11, scale=0.3, t=0.1))
"""The first is the simplest, of one row; the others differ from it and from each other in all."""


def in_cases(law, subject):
    """Hold a subject to a law in `CASES`, without the search that a wrong model is worth."""
    for case in CASES:
        try:
            law(subject, case)
        except NotApplicable:
            raise
        except Exception as error:
            raise Violation(f"{error!r} [{case}, {subject.dtype}]") from error


def checked(model, cond=None):
    """As `check_model`."""
    with mock.patch.object(kit, "_explore", in_cases):
        return check_model(model, cond=cond)


def broken_laws(model, cond=None):
    """What failed, by the name of the check."""
    return {r.check: r.detail for r in checked(model, cond) if r.status == "failed"}
