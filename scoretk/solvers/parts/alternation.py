"""What samplers have in common that alternate draws by the measurement with runs of the prior.

Both work on data x, at *levels* s: `x_t = alpha (x + s e)`, `s = sigma / alpha`. A run of the prior
leads from a level to sigma = 0, in steps whose levels are those of `descent`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.operators import LinearGaussian
from scoretk.fields.paths import GaussianPath
from scoretk.fields.posterior.apart import Separated, drawn_near
from scoretk.fields.posterior.nested import posterior_within
from scoretk.fields.protocols import NoiseSource, field_name, optional
from scoretk.fields.resolve import TimedField
from scoretk.fields.wrapped import check_flow
from scoretk.ode.tableaus import Knot

__all__ = ["Alternation", "alternation", "descent"]


@dataclass(frozen=True)
class Alternation:
    """A field as its prior, and as what was measured.

    Args:
        prior: The prior; of a field that is no posterior the field itself.
        likelihood: That of the measurement, None where nothing was measured.
        cond: The likelihood's own condition values.
    """

    prior: TimedField
    likelihood: LinearGaussian | None
    cond: dict[str, Tensor]

    @property
    def std(self) -> float | None:
        """The standard deviation of the measurement's noise, None where nothing was measured."""
        return None if self.likelihood is None else self.likelihood.std

    def drawn(self, centre: Tensor, width: float, noise: NoiseSource, step: Tensor) -> Tensor:
        """A draw by the measurement of data within `width` of a point.

        Args:
            centre: `(chains, *event_shape)`.
            width: The standard deviation, positive.
            noise: The noise of the chains.
            step: The index of the step.

        Returns:
            Like the centre.
        """

        def normals(n: int) -> Tensor:
            return noise.normal(step, Stream.CORRECTION, (n,), centre.dtype)

        if self.likelihood is None:
            return centre + width * normals(math.prod(centre.shape[1:])).reshape(centre.shape)
        return drawn_near(self.likelihood, self.cond, centre, width, normals)


def alternation(field: TimedField) -> Alternation:
    """The field taken apart.

    Raises:
        InvalidArgument: The likelihood is not of a linear measurement, or there is another
            measurement within.
        MissingCapability: The prior is a power or a product of fields in time, which no flow follows.
    """
    check_flow(field)
    if posterior_within(field) is not None:
        hint = (
            "What is measured within would be left to its guidance. Measure last, and once: "
            "LinearGaussian(operator, y, 1.0) of all rows, each divided by its std"
        )
        raise InvalidArgument(
            "field", field_name(field.native), "no posterior inside another field", hint
        )
    own = optional(field.native, "separated")
    if own is None:
        return Alternation(field, None, {})
    found: Separated = own(**field.cond)
    if not isinstance(found.likelihood, LinearGaussian):
        raise InvalidArgument(
            "likelihood",
            found.likelihood.of,
            "a LinearGaussian, of which a draw near a point is one linear system",
            "For any other take TwistedSMC(), or guidance: ProbabilityFlow() with method='dps'",
        )
    return Alternation(found.prior, found.likelihood, found.cond)


def descent(path: GaussianPath, level: float, steps: int, exponent: float) -> list[Knot]:
    """The times between a level and sigma = 0, at levels `level (1 - i / steps)^exponent`.

    A path that ends above sigma = 0 stays at its end until the last step.

    Args:
        path: The Gaussian path.
        level: The first, `sigma / alpha`.
        steps: The number of intervals.
        exponent: At least 1: the larger, the more of the steps are at small levels.

    Returns:
        `steps + 1` knots, the last of data: alpha = 1, sigma = 0.
    """
    down = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    t = path.t(-2 * (level * down**exponent).log()).clamp(0, 1)
    known = zip(t.tolist(), path.alpha(t).tolist(), path.sigma(t).tolist(), strict=True)
    return [*(Knot(*k) for k in known), Knot(1.0, 1.0, 0.0)]
