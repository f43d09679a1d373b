"""`classifier_guided`: the score of a field plus that of `p(y | x_t)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arguments import finite, function, names
from scoretk.core.devices import precise
from scoretk.core.keywords import explained
from scoretk.core.rows import across
from scoretk.errors import InvalidArgument
from scoretk.fields.answers import check_rows
from scoretk.fields.combine.intervals import Interval, Steered, as_interval
from scoretk.fields.gradient import grad_energy
from scoretk.fields.posterior.early import earliest_time, informed
from scoretk.fields.posterior.likelihoods import split
from scoretk.fields.protocols import is_timed
from scoretk.fields.resolve import TimedField, gaussian_path
from scoretk.fields.wrapped import Kind

__all__ = ["Classified", "classifier_guided"]


@explained
def classifier_guided(
    field: object,
    log_prob: Callable[..., Tensor],
    weight: float = 1.0,
    *,
    measured: str | Iterable[str] = (),
    interval: Interval | None = None,
) -> object:
    """Classifier guidance: `score + weight grad log p(y | x_t)`.

    Weight 1 is Bayes' rule, exact for an exact classifier. Any other weight is the power
    `p(y | x_t)^weight`, with the caveat of `scoretk.fields.combine`. A classifier of clean data is
    a likelihood: see `posterior`.

    Args:
        field: Timed, on a Gaussian path.
        log_prob: Called as `log_prob(x, t, **cond)`, x noisy and t of shape `(batch,)` in the dtype
            of x; gives `log p(y | x_t = x)` of the y wanted, `(batch,)`, up to a constant,
            differentiable in x.
        weight: Any finite number; 0 means no guidance.
        measured: The names of the condition values that `log_prob` takes; all others go to the
            field alone.
        interval: Noise levels `(low, high)` as in `guided`; at other levels the field alone is
            evaluated.

    Returns:
        A timed field on the same path. Its values are differentiable in the classifier's parameters
        where x requires gradients, as in runs with `grad=True`.

    Raises:
        InvalidArgument: An argument does not fit, or the field is static.
        MissingCapability: The field has no Gaussian path.

    References:
        Dhariwal, Nichol, "Diffusion models beat GANs on image synthesis" (2021).
    """
    if not is_timed(field):
        raise InvalidArgument(
            "field", field, "a timed field", "For a static one: posterior(field, log_likelihood)"
        )
    function("log_prob", log_prob, "log_prob(x, t) -> (batch,)")
    taken = names("measured", measured)
    gaussian_path(field, "classifier guidance")
    return Classified(field, log_prob, finite("weight", weight), taken, as_interval(interval))


@dataclass(frozen=True, eq=False)
class Classified(Steered):
    """The field's denoiser, shifted by `weight (sigma^2 / alpha) grad log p(y | x_t)`.

    Near alpha = 0 it is evaluated as `posterior` is.

    Attributes:
        first: The field.
        classifier: `log_prob` of `classifier_guided`.
        weight: As there.
        measured: As there.
        interval: As there.
    """

    first: Any
    classifier: Callable[..., Tensor]
    weight: float
    measured: frozenset[str]
    interval: Interval | None

    kind = Kind.TILT
    predicts = "data"

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.first,)

    def __post_init__(self) -> None:
        super().__post_init__()
        earliest = {
            dtype: earliest_time(self.path, dtype) for dtype in (torch.float32, torch.float64)
        }
        object.__setattr__(self, "_earliest", earliest)

    def exponents(self, parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
        """Of `p(x_t | y)^w p(x_t)^(1 - w)`, what is in the numerator; the field itself is there once."""
        least, most = parts[0]
        return least, (max(self.weight, 0.0) + max(1 - self.weight, 0.0)) * most

    def plain(self, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The field's own denoiser D, like x."""
        return TimedField(self.first, self.path, split(cond, self.measured)[1]).denoise(x, t)

    def steered(self, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]) -> Tensor:
        """`D + weight (sigma^2 / alpha) grad log p(y | x_t)`, like x."""
        own, path = split(cond, self.measured)[0], self.path
        x, t = informed(path, x, t, self._earliest[x.dtype])  # type: ignore[attr-defined]
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        hint = "A classifier gives one number a row: the log probability of the class wanted"
        slope = -grad_energy(
            lambda z: (
                -check_rows("log_prob", self.classifier(z, times, **own), z.shape[:1], hint).to(
                    z.dtype
                )
            ),
            x,
        )[1]
        exact = precise(t)
        gain = (self.weight * path.sigma(exact) ** 2 / path.alpha(exact)).to(x)
        return self.plain(x, t, cond) + across(gain, x) * slope
