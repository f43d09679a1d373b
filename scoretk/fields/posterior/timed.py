"""The posterior of a prior in time: its denoiser, shifted by a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.core.devices import precise, widest
from scoretk.core.rows import across
from scoretk.fields.convert import check_time
from scoretk.fields.derivatives import check_derivative, check_no_steps, probes, value_and_pullback
from scoretk.fields.paths import GaussianPath
from scoretk.fields.posterior.apart import Separated
from scoretk.fields.posterior.early import earliest_time, informed
from scoretk.fields.posterior.examined import DERIVATIVE_ROWS, EXAMINED, is_new
from scoretk.fields.posterior.likelihoods import Likelihood, split
from scoretk.fields.posterior.method import PosteriorMethod, PriorMoments, trait
from scoretk.fields.posterior.scale import look_at_spread
from scoretk.fields.posterior.twist import Twist, twisted
from scoretk.fields.protocols import optional
from scoretk.fields.resolve import TimedField
from scoretk.fields.wrapped import Kind, Wrapped
from scoretk.fields.wrappers import GaussianPathField

__all__ = ["TimedPosterior"]


LOG_SNR = (-4.0, 0.0, 4.0)
"""The log(alpha^2 / sigma^2) at which the prior's derivatives are checked, as the path has them."""


@dataclass(frozen=True, eq=False)
class TimedPosterior(Wrapped, GaussianPathField):
    """The prior's denoiser, shifted by the method.

    Its base is the prior's: where alpha(0) = 0 the measurement says nothing of x_t at t = 0.

    Attributes:
        prior: A field in time.
        likelihood: Its likelihood.
        method: The approximation of `p(y | x_t)`.
        path: The prior's Gaussian path.
        predicts: "data".
    """

    prior: Any
    likelihood: Likelihood
    method: PosteriorMethod
    path: GaussianPath
    predicts: str = "data"

    kind = Kind.TILT
    computed = GaussianPathField.provides - {"base"}

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.prior,)

    @property
    def own_conditions(self) -> frozenset[str]:
        """The names of the likelihood's conditions."""
        return self.likelihood.measured

    def __post_init__(self) -> None:
        super().__post_init__()
        earliest = {
            dtype: earliest_time(self.path, dtype) for dtype in (torch.float32, torch.float64)
        }
        object.__setattr__(self, "_earliest", earliest)

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """`D_y`, like x."""
        point, own = self._moments(x, t, cond)
        look_at_spread(self, self.likelihood, point, own)
        return point.data + self.method.shift(self.likelihood, point, own)

    def twist(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Twist:
        """D, D_y and a guess of `p(y | x_t)`, see `scoretk.fields.posterior.twist`.

        Where the prior is a posterior itself D is that of its prior, and y all that was measured:
        `p(y, y' | x_t) = p(y' | x_t) p(y | x_t, y')`.
        """
        point, own = self._moments(x, t, cond)
        look_at_spread(self, self.likelihood, point, own)
        shift, log_twist = twisted(self.method, self.likelihood, point, own)
        found = Twist(point.data, point.data + shift, log_twist)
        before = optional(self.prior, "twist")
        if before is None:
            return found
        others = split(cond, self.likelihood.measured)[1]
        first: Twist = before(x, t, **others)
        return Twist(first.prior, found.guided, first.log_twist + log_twist)

    def separated(self, **cond: Tensor) -> Separated:
        """The prior, and the likelihood with its own condition values."""
        own, others = split(cond, self.likelihood.measured)
        return Separated(TimedField(self.prior, self.path, others), self.likelihood, own)

    def log_likelihood(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`log L(x)` of data x, `(batch,)`, of all that was measured where the prior is a posterior."""
        own, others = split(cond, self.likelihood.measured)
        value = self.likelihood.log_likelihood(x, **own)
        before = optional(self.prior, "log_likelihood")
        return value if before is None else value + before(x, **others)

    def _moments(
        self, x: Tensor, t: float | Tensor, cond: dict[str, Tensor]
    ) -> tuple[PriorMoments, dict[str, Tensor]]:
        """The prior's moments of x_1 given x_t, and the likelihood's own condition values."""
        check_time(t, x)
        own, others = split(cond, self.likelihood.measured)
        x, t = informed(self.path, x, t, self._earliest[x.dtype])  # type: ignore[attr-defined]
        prior = TimedField(self.prior, self.path, others)
        differentiates = trait(self.method, "differentiates")
        if differentiates and len(x) and is_new(self):
            self._look_at(x, others)
        alpha, sigma = (f(precise(t)) for f in (self.path.alpha, self.path.sigma))
        gain = across((sigma**2 / alpha).to(x), x)
        if differentiates:
            keep = x.requires_grad and torch.is_grad_enabled()
            data, pullback = value_and_pullback(lambda z: prior.denoise(z, t), x, keep=keep)
        else:
            data, pullback = prior.denoise(x, t), _no_derivative
        return PriorMoments(data, lambda u: gain * pullback(u), alpha, sigma), own

    def _look_at(self, x: Tensor, cond: dict[str, Tensor]) -> None:
        """Check autograd's derivative of the prior's denoiser, and that the denoiser has no steps.

        At times where the signal is less than the noise, as large, and more, as a model may use
        another network at another time.

        Args:
            x: `(batch, *event_shape)`, for its shape, dtype and device.
            cond: The prior's condition values.

        Raises:
            InvalidArgument: The derivative is not that of the values, or the denoiser moves in
                steps.
        """
        times = [float(self.path.t(r).clamp(0, 1)) for r in LOG_SNR]
        hint = (
            "Let torch see through its network; or take method='replacement', which asks for no "
            "derivative of it"
        )

        def denoised(times: Sequence[float]) -> Callable[[Tensor], Tensor]:
            """`D` at these times in turn, of rows of size 1 that are scaled to the size of
            `x_t`.
            """

            def f(z: Tensor) -> Tensor:
                turn = torch.arange(len(z), device=z.device)
                t = torch.tensor(times, dtype=widest(z.device), device=z.device)[turn % len(times)]
                prior = TimedField(
                    self.prior,
                    self.path,
                    {name: value[turn % len(x)] for name, value in cond.items()},
                )
                return prior.denoise(
                    across(torch.hypot(self.path.alpha(t), self.path.sigma(t)).to(z), z) * z, t
                )

            return f

        for t in times:
            check_derivative(
                denoised([t]), probes(x, DERIVATIVE_ROWS, 0), "prior", self.prior, hint
            )
        check_no_steps(denoised(times), x[:1], "prior", self.prior, hint)
        EXAMINED.add(self)


def _no_derivative(u: Tensor) -> Tensor:
    raise NotImplementedError("a method that asks for V says so: differentiates = True")
