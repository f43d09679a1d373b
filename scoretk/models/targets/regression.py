r"""Bayesian regressions on scikit-learn's data, with N(0, 1) priors and closed-form gradients.

    logistic   E(w) = sum_i log(1 + exp(-m_i)) + |w|^2 / 2,    m_i = (2 y_i - 1) a_i . w
    linear     E(w, log sigma) = |y - A w|^2 / (2 sigma^2) + n log sigma
                                 + |w|^2 / 2 + sigma^2 / 2 - log sigma

with rows `a_i = (1, features)` of the design matrix A `(n, k)`, the features standardised. A and y
are loaded at the first call and kept for each dtype and device.

References:
    Gelman et al., "Bayesian Data Analysis" (3rd ed. 2013), chapters 14 and 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from scoretk.core.dependencies import required
from scoretk.fields import Variable
from scoretk.fields.variables import Derived, variables_of

__all__ = [
    "LinearParameters",
    "LinearRegression",
    "LogisticRegression",
    "linear_regression",
    "logistic_regression",
]


class _Data(NamedTuple):
    """The design matrix `(n, k)`, its first column ones, and the response `(n,)`."""

    design: Tensor
    response: Tensor


_KEPT: dict[tuple[str, torch.dtype, torch.device], _Data] = {}
"""Data by name, dtype and device. They are not in the fields, whose tensors a run's settings hold."""


def _data(name: str, x: Tensor) -> _Data:
    """The data in the dtype and on the device of x."""
    key = (name, x.dtype, x.device)
    if key not in _KEPT:
        with torch.inference_mode(False):  # so that autograd may use what is kept
            design, response = (
                torch.from_numpy(part).to(x.device, x.dtype) for part in _load(name)
            )
        _KEPT[key] = _Data(design, response)
    return _KEPT[key]


def _load(name: str) -> tuple[Any, Any]:
    """The design and the response as float64 arrays: labels are -1 and 1, others standardised.

    Raises:
        MissingDependency: Where scikit-learn is not installed.
    """
    datasets, preprocessing = (
        required(f"sklearn.{name}", "demo", "The regression data")
        for name in ("datasets", "preprocessing")
    )
    features, response = getattr(datasets, f"load_{name}")(return_X_y=True)
    design = preprocessing.add_dummy_feature(preprocessing.scale(features))
    return design, 2.0 * response - 1 if name == "breast_cancer" else preprocessing.scale(response)


@dataclass(frozen=True)
class LogisticRegression:
    """Malignant or benign: 569 tumours with 30 features; `x = (intercept, w_1..30)`.

        y_i ~ Bernoulli(sigmoid(a_i . x)),  x ~ N(0, I)

    References:
        Street, Wolberg, Mangasarian, "Nuclear feature extraction for breast tumor diagnosis"
        (1993), the data.
    """

    provides = frozenset({"energy", "score"})
    variables = variables_of({"intercept": (), "slopes": Variable((30,), dims="feature")})

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (31,)

    def energy(self, x: Tensor) -> Tensor:
        """The negative log posterior up to a constant, `(batch,)`."""
        return self._energy(x, self._margins(x))

    def score(self, x: Tensor) -> Tensor:
        """The score `A^T (y - sigmoid(A x)) - x`, like x."""
        return -self._grad(x, self._margins(x))

    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energy `(batch,)` and its gradient, like x, from one product with the data."""
        margins = self._margins(x)
        return self._energy(x, margins), self._grad(x, margins)

    def _margins(self, x: Tensor) -> Tensor:
        design, labels = _data("breast_cancer", x)
        return x @ design.T * labels

    def _energy(self, x: Tensor, margins: Tensor) -> Tensor:
        return x.square().sum(1) / 2 - logsigmoid(margins).sum(1)

    def _grad(self, x: Tensor, margins: Tensor) -> Tensor:
        design, labels = _data("breast_cancer", x)
        return x - (torch.sigmoid(-margins) * labels) @ design


class LinearParameters(NamedTuple):
    """The model's own parameters: intercept `(batch,)`, slopes `(batch, 10)`, sigma `(batch,)`."""

    intercept: Tensor
    slopes: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class LinearRegression:
    """Progression of diabetes: 442 patients, 10 features; `x = (intercept, w_1..10, log sigma)`.

        y_i ~ N(a_i . w, sigma^2),  w ~ N(0, I),  sigma ~ half-normal(1)

    References:
        Efron et al., "Least angle regression" (2004), whose data these are.
    """

    provides = frozenset({"energy", "score"})

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (12,)

    def parameters(self, x: Tensor) -> LinearParameters:
        """The intercept, the slopes and sigma at positions `(..., 12)`."""
        return LinearParameters(x[..., 0], x[..., 1:-1], x[..., -1].exp())

    @property
    def variables(self) -> Derived:
        """The names of the parameters: draws["sigma"]."""
        return _LINEAR

    def energy(self, x: Tensor) -> Tensor:
        """The negative log posterior up to a constant, `(batch,)`.

        It includes the Jacobian of `sigma = exp(x_11)`.
        """
        return self._energy(x, self._standard(x))

    def score(self, x: Tensor) -> Tensor:
        """The score, like x.

        It is `A^T (y - A w) / sigma^2 - w` in w, and `|y - A w|^2 / sigma^2 - n - sigma^2 + 1` in
        log sigma.
        """
        return -self._grad(x, self._standard(x))

    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energy `(batch,)` and its gradient, like x, from one product with the data."""
        standard = self._standard(x)
        return self._energy(x, standard), self._grad(x, standard)

    def _standard(self, x: Tensor) -> Tensor:
        """The standardised residuals `(y - A w) / sigma`, `(batch, n)`."""
        design, response = _data("diabetes", x)
        return (response - x[:, :-1] @ design.T) * torch.exp(-x[:, -1:])

    def _energy(self, x: Tensor, standard: Tensor) -> Tensor:
        w, log_sigma = x[:, :-1], x[:, -1]
        prior = w.square().sum(1) / 2 + torch.exp(2 * log_sigma) / 2 - log_sigma
        return standard.square().sum(1) / 2 + standard.shape[1] * log_sigma + prior

    def _grad(self, x: Tensor, standard: Tensor) -> Tensor:
        w, log_sigma = x[:, :-1], x[:, -1:]
        of_w = w - standard @ _data("diabetes", x).design * torch.exp(-log_sigma)
        of_scale = (
            standard.shape[1]
            - standard.square().sum(1, keepdim=True)
            + torch.exp(2 * log_sigma)
            - 1
        )
        return torch.cat([of_w, of_scale], 1)


def _at(intercept: Tensor, slopes: Tensor, sigma: Tensor) -> Tensor:
    """The position of these parameters: the inverse of `LinearRegression.parameters`."""
    return torch.cat([intercept[..., None], slopes, sigma.log()[..., None]], -1)


_LINEAR = Derived(
    variables_of(
        {"intercept": (), "slopes": Variable((10,), dims="feature"), "sigma": constraints.positive}
    ),
    of=lambda x: LinearRegression().parameters(x)._asdict(),
    at=_at,
)


def logistic_regression() -> LogisticRegression:
    """The posterior of a logistic regression on scikit-learn's breast-cancer data."""
    return LogisticRegression()


def linear_regression() -> LinearRegression:
    """The posterior of a linear regression on scikit-learn's diabetes data."""
    return LinearRegression()
