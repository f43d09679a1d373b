"""Whether a field is what it is said to be, by data of its law: what a network predicts shows so alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.conformance.kit import CheckResult
from scoretk.core.arguments import event_shape
from scoretk.core.arrays import aligned
from scoretk.core.devices import wide
from scoretk.core.keywords import explained
from scoretk.core.modules import left_as_found
from scoretk.core.noise import Noise
from scoretk.core.rows import row_sum
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.convert import PREDICTIONS, row_coefficients
from scoretk.fields.distribution import in_free_space
from scoretk.fields.protocols import is_timed, optional
from scoretk.fields.resolve import StaticField, gaussian_path, prediction, resolve

__all__ = ["check_on_data"]

FEWEST = 32
LEVELS = (0.1, 0.3, 1.0, 3.0)
"""The noise in units of the data's spread at which a field in time is asked."""
TIMES = 400
ERRORS = 4.0
"""By how many standard errors a finding has to be beyond what is allowed."""
WORSE, BETTER = 2.0, 0.8
"""How much larger than that of the best line an error may be, and how much smaller that of another
reading of a network must be to be the better one.
"""
TURNED = "turned "
"""How a reading is called of a network that is asked at time 1 - t."""
NEAR = 1.25
"""How large the errors of such a reading may be at each level, beside those of the best line."""
_METHODS = {"velocity": "velocity", "score": "score", "data": "denoise"}


@explained
def check_on_data(
    field: Any, data: Tensor, *, cond: Mapping[str, Tensor] | None = None, seed: int = 0
) -> list[CheckResult]:
    """Hold a field to data of the law that it is said to be of, held back ones where it was trained.

    A field in time is asked for the data in noised ones, at four levels of noise: the mean square
    error is to be no more than twice that of the best line in each entry ("denoises"), and no other
    `predicts`, nor time the other way round, is to make it clearly smaller ("predicts"). A network whose prediction or time is
    taken for another's samples garbage without a failure.

    The score s of a static field is asked whether `E[s_i(x) (x_i - E x_i)]` is about -1 in the mean
    over entries, as it is of the law's own score by Stein's identity ("slopes"): a score of the
    wrong sign or scale, or an energy that is a log density, is told.

    Args:
        field: A field with a score, or one in time on a Gaussian path.
        data: `(n, *event_shape)`, n at least 32; of a constrained field in the user's space, as
            draws are, `(n, *constrained_shape)`.
        cond: Conditions by name, a row of data each, `(n, ...)`.
        seed: The seed of the noise.

    Returns:
        One result for each check.

    Raises:
        InvalidArgument: Data of another shape, too few, whole numbers, not finite, all alike, or
            outside a constrained field's support.
        MissingCapability: The field has neither a score nor a Gaussian path.

    References:
        Stein, "A bound for the error in the normal approximation to the distribution of a sum of
        dependent random variables" (1972).
    """
    field = in_free_space(field)
    data = _checked(field, data)
    with left_as_found(field), torch.no_grad():
        if is_timed(field):
            return _in_time(field, data, dict(cond or {}), Noise(seed, len(data)))
        return [_slopes(resolve(field, {"score"}, timed=False, cond=cond), data)]


def _checked(field: Any, data: Any) -> Tensor:
    """The data in the space of the field's score."""
    free = is_timed(field) or optional(field, "unconstrain") is None
    shape = event_shape(field.event_shape if free else tuple(field.constrained_shape))
    if not isinstance(data, Tensor) or data.shape[1:] != shape or len(data) < FEWEST:
        raise InvalidArgument(
            "data", data, f"a tensor of at least {FEWEST} rows of the field's events, (n, *{shape})"
        )
    x: Tensor = data if free or not data.is_floating_point() else field.unconstrain(data)
    sound = x.is_floating_point() and bool(x.isfinite().all()) and bool((x != x[:1]).any())
    if not sound:
        raise InvalidArgument("data", data, "finite real numbers that are not all alike")
    return x


def _slopes(bound: Any, data: Tensor) -> CheckResult:
    assert isinstance(bound, StaticField)
    x = wide(data)
    products = row_sum(wide(bound.score(aligned(data))) * (x - x.mean(0))) / x[0].numel()
    found, error = float(products.mean()), float(products.std()) / math.sqrt(len(x))
    wrong = not -2 - ERRORS * error <= found <= -0.5 + ERRORS * error
    law = "the mean over data of score times distance from the mean is about -1 an entry"
    hint = " (as if it had the wrong sign)" if found > 0 else ""
    told = f"it is {found:.3g} +- {error:.2g}{hint}" if wrong else ""
    return CheckResult("slopes", "failed" if wrong else "passed", law, told)


def _in_time(field: Any, data: Tensor, cond: dict[str, Tensor], noise: Noise) -> list[CheckResult]:
    name, _ = prediction(field)
    asked = _Asked(
        optional(field, "predict") or getattr(field, _METHODS[name]),
        gaussian_path(field, "denoise"),
        data,
        cond,
        noise,
    )
    errors = asked.errors()
    far = [
        f"{float(own.mean()):.3g} times at t = {float(t):.3g}"
        for t, own in zip(asked.times, errors[name], strict=True)
        if _is_far(own, WORSE)
    ]
    law = f"data are found in noised ones with at most {WORSE:g} times the error of the best line"
    denoises = CheckResult("denoises", "failed" if far else "passed", law, "; ".join(far))
    turned = {
        f"{TURNED}{reading}": of_levels
        for reading, of_levels in asked.errors(turned=True).items()
        if not any(_is_far(own, NEAR) for own in of_levels)
    }
    means = {k: torch.stack(v).mean(0) for k, v in (errors | turned).items()}
    return [denoises, _reading(name, means)]


def _is_far(own: Tensor, most: float) -> bool:
    """Whether errors, a row each, are beyond what is allowed."""
    return not float(own.mean()) <= most + ERRORS * float(own.std()) / math.sqrt(len(own))


@dataclass(frozen=True)
class _Asked:
    """A network, and noised data in which it is to find the data."""

    raw: Callable[..., Tensor]
    path: Any
    data: Tensor
    cond: dict[str, Tensor]
    noise: Noise

    @property
    def times(self) -> list[Tensor]:
        """The times at which it is asked."""
        return _times(self.path, float(wide(self.data).var(0).mean().sqrt()))

    def errors(self, *, turned: bool = False) -> dict[str, list[Tensor]]:
        """The square errors of each reading of its answers, in those of the best line: a row each.

        Args:
            turned: Whether it is asked as one whose time runs from data to noise, so that a
                velocity has the other sign.
        """
        x, shape = wide(self.data), tuple(self.data.shape[1:])
        variance = x.var(0)
        found: dict[str, list[Tensor]] = {reading: [] for reading in PREDICTIONS}
        for level, t in enumerate(self.times):
            alpha, sigma = float(self.path.alpha(t)), float(self.path.sigma(t))
            eps = self.noise.normal(level, Stream.START, shape, torch.float64).to(x)
            noised = alpha * x + sigma * eps
            at = self.data.new_full((len(x),), 1 - float(t) if turned else float(t))
            answer = wide(self.raw(noised.to(self.data.dtype), at, **self.cond))
            line = (variance * sigma**2 / (variance * alpha**2 + sigma**2)).sum()
            for reading, rows in found.items():
                a, b = row_coefficients(self.path, t, reading, "data", torch.float64)
                a = -a if turned and reading == "velocity" else a
                rows.append(row_sum((a.to(x) * answer + b.to(x) * noised - x).square()) / line)
        return found


def _times(path: Any, spread: float) -> list[Tensor]:
    """The times at which the noise is nearest to `LEVELS` of the data's spread."""
    t = torch.linspace(0, 1, TIMES + 1, dtype=torch.float64)[1:-1]
    noise = (path.sigma(t) / (path.alpha(t) * spread)).log()
    chosen = {
        int((noise - math.log(level)).abs().nan_to_num(math.inf).argmin()) for level in LEVELS
    }
    return [t[i] for i in sorted(chosen)]


def _reading(name: str, errors: dict[str, Tensor]) -> CheckResult:
    """Whether another reading of the network's answers finds the data clearly better."""
    law = "no other `predicts` finds the data clearly better, nor time the other way round"
    own, best = errors[name], min(errors, key=lambda reading: float(errors[reading].mean()))
    gain = BETTER * own - errors[best]
    better = float(gain.mean()) > ERRORS * float(gain.std()) / math.sqrt(len(gain))
    if best == name or not better:
        return CheckResult("predicts", "passed", law)
    share = float(errors[best].mean() / own.mean())
    way = best.removeprefix(TURNED)
    with_ = f"from_reversed_time(..., predicts={way!r})" if way != best else f"predicts={best!r}"
    told = f"with {with_} the error is {share:.2g} times that with {name!r}"
    return CheckResult("predicts", "failed", law, told)
