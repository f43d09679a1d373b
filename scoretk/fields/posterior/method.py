"""What a method of posteriors in time is, and what it is told of the prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from scoretk.core.rows import across

__all__ = ["PosteriorMethod", "PriorMoments", "trait"]


class PriorMoments(NamedTuple):
    """The prior at `(x_t, t)`: D, like x; the product `u -> V u`.

    Alpha and sigma, `()` or `(batch,)`, float64.
    """

    data: Tensor
    covariance: Callable[[Tensor], Tensor]
    alpha: Tensor
    sigma: Tensor

    def variance(self, spread: float, like: Tensor) -> Tensor:
        """`v`, the variance of x_1 given x_t for data `N(m, spread^2 I)`, to be multiplied with
        tensors like this one.
        """
        noise = (self.sigma * spread) ** 2
        return across((noise / ((self.alpha * spread) ** 2 + self.sigma**2)).to(like), like)


class PosteriorMethod(Protocol):
    """An approximation of `p(y | x_t)`, as what it adds to the denoiser.

    Anything with `shift` is one; what it leaves unsaid is as here (`trait`).
    """

    differentiates: ClassVar[bool] = True
    """Whether it asks for V, and so for the derivative of the denoiser."""

    linear: ClassVar[bool] = False
    """Whether it is for linear measurements with Gaussian noise alone, a `LinearGaussian`."""

    def shift(self, likelihood: Any, prior: PriorMoments, cond: dict[str, Tensor]) -> Tensor:
        """What the measurement adds to the denoised data.

        Args:
            likelihood: A `LinearGaussian`, or what has `log_likelihood`, `slope` and `gradient`.
            prior: Its moments of x_1 given x_t.
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
