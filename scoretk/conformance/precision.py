"""A field held in float64 for a while, so that finite differences can be told from rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from scoretk.conformance.subject import Case, Subject
from scoretk.core.modules import modules_of

__all__ = ["in_float64"]

FINE, COARSE = 1e-5, 2e-2
"""The relative errors allowed of a finite difference, where the energy has the digits of float64
and where it has those of float32.
"""


@contextmanager
def in_float64(s: Subject, case: Case) -> Iterator[tuple[Subject, float]]:
    """A context with the subject in float64, and the tolerance that its energy allows.

    Where the field does not take float64 the subject is as it was.
    """
    held = [t for m in modules_of(s.field) for t in (*m.parameters(False), *m.buffers(False))]
    single = [(t, t.data) for t in held if t.is_floating_point()]
    try:
        for tensor, data in single:
            tensor.data = data.double()
        double = replace(
            s, dtype=torch.float64, cond={key: _double(value) for key, value in s.cond.items()}
        )
        tolerance = _tolerance(double, case)
        if tolerance is None:
            for tensor, data in single:
                tensor.data = data
            yield s, COARSE
        else:
            yield double, tolerance
    finally:
        for tensor, data in single:
            tensor.data = data


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _tolerance(s: Subject, case: Case) -> float | None:
    """The tolerance that the digits of the energy allow; None where the field takes no float64."""
    try:
        energy = s("energy", s.points(case), s.times(case))
    except (RuntimeError, TypeError, ValueError):
        return None
    rounded = energy.float().double()
    if torch.equal(energy.double(), rounded) and bool((energy != energy.round()).any()):
        return COARSE
    return FINE
