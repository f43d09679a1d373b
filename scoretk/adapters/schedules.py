"""A Gaussian path from another library's functions alpha and sigma of the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretk.fields.paths import BISECTIONS, GaussianPath, Time

__all__ = ["Scheduled", "each_time"]

Cond = dict[str, Tensor]


def each_time(
    ask: Callable[[Tensor, Tensor, Cond], Tensor], x: Tensor, t: Tensor, cond: Cond
) -> Tensor:
    """What a model that takes one time for all rows says of rows with their own times.

    Args:
        ask: Asks the model for some rows of x, a time of shape `()` and the rows' conditions; gives
            rows like x.
        x: `(batch, *event_shape)`.
        t: `(batch,)`.
        cond: Conditions, a row a row.

    Returns:
        Like x.
    """
    if len(t) == 0:
        return torch.zeros_like(x)
    times, which = t.unique(return_inverse=True)
    if len(times) == 1:
        return ask(x, times[0], cond)
    rows = [(which == i).nonzero()[:, 0] for i in range(len(times))]
    parts = [
        ask(x[at], time, {name: value[at] for name, value in cond.items()})
        for at, time in zip(rows, times, strict=True)
    ]
    return torch.cat(parts)[torch.cat(rows).argsort()]


@dataclass(frozen=True, eq=False)
class Scheduled(GaussianPath):
    """`x_t = alpha(t) x_1 + sigma(t) eps` with given functions, derivatives by autograd.

    Args:
        scales: Takes t, of any shape, to `(alpha, sigma)`, each like t, with alpha/sigma increasing.
    """

    scales: Callable[[Tensor], tuple[Tensor, Tensor]]

    def _at(self, t: Time) -> tuple[Tensor, Tensor]:
        t = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
        alpha, sigma = self.scales(t)
        return alpha.to(t).expand(t.shape), sigma.to(t).expand(t.shape)

    def alpha(self, t: Time) -> Tensor:
        return self._at(t)[0]

    def sigma(self, t: Time) -> Tensor:
        return self._at(t)[1]

    def dalpha(self, t: Time) -> Tensor:
        return self._slope(t, 0)

    def dsigma(self, t: Time) -> Tensor:
        return self._slope(t, 1)

    def sigma_dsigma(self, t: Time) -> Tensor:
        """`sigma sigma'`; where sigma is 0 and its slope infinite, the value just before."""
        product = self.sigma(t) * self.dsigma(t)
        if bool(product.isfinite().all()):
            return product
        before = self._at(t)[0].new_tensor(1.0) * t * (1 - 1e-6)
        return torch.where(product.isfinite(), product, self.sigma(before) * self.dsigma(before))

    def _slope(self, t: Time, which: int) -> Tensor:
        """The derivative of one of the two, of which each entry has its own time."""
        t = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
        with torch.enable_grad():
            s = t.detach().clone().requires_grad_()
            value = self._at(s)[which]
            if not value.requires_grad:  # a constant
                return torch.zeros_like(t)
            (slope,) = torch.autograd.grad(value.sum(), s)
        return slope

    def t(self, log_snr: Time) -> Tensor:
        """By bisection, as log-SNR increases with t."""
        if not isinstance(log_snr, Tensor):
            log_snr = torch.tensor(log_snr, dtype=torch.float64)
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(BISECTIONS):
            t = (low + high) / 2
            below = self.log_snr(t) < log_snr
            low, high = torch.where(below, t, low), torch.where(below, high, t)
        return (low + high) / 2
