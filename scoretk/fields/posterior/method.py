"""What a method of posteriors in time is, and what it is told of the prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from scoretk.core.rows import across

__all__ = ["PosteriorMethod", "PriorMoments", "trait"]


class PriorMoments(NamedTuple):
    """The prior's moments of x_1 given `(x_t, t)`.

    Attributes:
        data: The mean D, like x.
        covariance: The product `u -> V u` with the covariance; u like x.
        alpha: Of the path at t, `()` or `(batch,)`, float64.
        sigma: Likewise.
    """

    data: Tensor
    covariance: Callable[[Tensor], Tensor]
    alpha: Tensor
    sigma: Tensor

    def variance(self, spread: float, like: Tensor) -> Tensor:
        """`v`, the variance of x_1 given x_t for data `N(m, spread^2 I)`.

        Args:
            spread: The standard deviation of the data.
            like: A tensor `(batch, ...)`.

        Returns:
            Shaped so that it broadcasts over `like`.
        """
        return across(self.narrowed(spread).to(like), like)

    def narrowed(self, spread: float) -> Tensor:
        """As `variance`, `()` or `(batch,)`, float64."""
        noise = (self.sigma * spread) ** 2
        return noise / ((self.alpha * spread) ** 2 + self.sigma**2)


class PosteriorMethod(Protocol):
    """An approximation of `p(y | x_t)`, by what it adds to the denoiser.

    Anything with `shift` is one; for an attribute that it lacks the one here counts (`trait`).
    """

    differentiates: ClassVar[bool] = True
    """Whether it uses V, and so the derivative of the denoiser."""

    linear: ClassVar[bool] = False
    """Whether it is only for linear measurements with Gaussian noise, a `LinearGaussian`."""

    def shift(self, likelihood: Any, prior: PriorMoments, cond: dict[str, Tensor]) -> Tensor:
        """What the measurement adds to the denoised data.

        Args:
            likelihood: A `LinearGaussian`, or what has `log_likelihood`, `slope` and `gradient`.
            prior: The prior's moments of x_1 given x_t.
            cond: The likelihood's own condition values, one row a chain.

        Returns:
            `D_y - D`, like x.
        """
        ...


def trait(method: Any, name: str) -> bool:
    """What a method says of itself, or else what `PosteriorMethod` says.

    Args:
        method: A method of posteriors in time.
        name: "differentiates" or "linear".
    """
    return bool(getattr(method, name, getattr(PosteriorMethod, name)))
