"""Time series and hidden Markov models.

References:
    Stan Development Team, "Stan user's guide", time-series models, for arK, arma11 and garch11.
    Damiano, Peterson, Weylandt, "A tutorial on hidden Markov models using Stan" (2018).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.distributions.constraints import positive, simplex, unit_interval

from scoretk.demo.bench.posteriordb.model import Arrays, Model, cauchy, gaussian
from scoretk.demo.bench.recursion import autoregressive, log_product
from scoretk.fields.layout import Variable
from scoretk.fields.supports import ordered

__all__ = ["SERIES"]


def arK(data: Arrays) -> Model:
    """Autoregression: `y_t ~ N(alpha + sum_k beta_k y_(t-k), sigma^2)` for t past K."""
    y, order = data["y"], int(data["K"])
    before = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], 1)

    def energy(alpha: Tensor, beta: Tensor, sigma: Tensor) -> Tensor:
        residual = y[order:] - alpha[:, None] - beta @ before.T
        prior = (alpha / 10).square() / 2 + gaussian(beta, 10.0) + cauchy(sigma, 2.5)
        return gaussian(residual, sigma) + prior

    return Model({"alpha": (), "beta": (order,), "sigma": positive}, energy)


def arma11(data: Arrays) -> Model:
    """`y_t = mu + phi y_(t-1) + theta e_(t-1) + e_t`, `e_t ~ N(0, sigma^2)`, y_0 = mu and e_0 = 0."""
    y = data["y"]

    def energy(mu: Tensor, phi: Tensor, theta: Tensor, sigma: Tensor) -> Tensor:
        before = torch.cat([mu[:, None], y[:-1].expand(len(mu), -1)], 1)
        error = autoregressive(y - mu[:, None] - phi[:, None] * before, -theta[:, None])
        prior = (mu / 10).square() + (phi / 2).square() + (theta / 2).square()
        return gaussian(error, sigma) + prior / 2 + cauchy(sigma, 2.5)

    return Model({"mu": (), "phi": (), "theta": (), "sigma": positive}, energy)


def garch11(data: Arrays) -> Model:
    """`y_t ~ N(mu, s_t)` with variances `s_t = alpha_0 + alpha_1 (y_(t-1) - mu)^2 + beta_1 s_(t-1)`.

    Uniform where alpha_1 + beta_1 < 1; beta_1 is the share of `1 - alpha_1` that is sampled.
    """
    y, first = data["y"], data["sigma1"].square()

    def energy(mu: Tensor, alpha0: Tensor, alpha1: Tensor, share: Tensor) -> Tensor:
        residual = y - mu[:, None]
        shock = alpha0[:, None] + alpha1[:, None] * residual[:, :-1].square()
        inputs = torch.cat([first.expand(len(mu), 1), shock], 1)
        variance = autoregressive(inputs, ((1 - alpha1) * share)[:, None])
        return gaussian(residual, variance.sqrt()) - torch.log1p(-alpha1)

    def parameters(values: Arrays) -> Arrays:
        beta1 = (1 - values["alpha1"]) * values["share"]
        return {**{n: values[n] for n in ("mu", "alpha0", "alpha1")}, "beta1": beta1}

    variables = {"mu": (), "alpha0": positive, "alpha1": unit_interval, "share": unit_interval}
    return Model(variables, energy, parameters)


def _hidden(theta1: Tensor, theta2: Tensor, emission: Tensor) -> Tensor:
    """Of what two hidden states emit, every first one as likely.

    Args:
        theta1: The probabilities of the next state from the first, `(batch, 2)`.
        theta2: Those from the second.
        emission: The log densities of the outputs, `(batch, n, 2)`.
    """
    moves = torch.stack([theta1, theta2], 1).log()[:, None]
    if emission.shape[1] == 1:
        return -emission[:, 0].logsumexp(1)
    along = log_product(moves + emission[:, 1:, None, :])
    return -(emission[:, 0, :, None] + along).logsumexp((1, 2))


def _log_normal_density(x: Tensor, mean: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Up to a constant: x `(n,)` and means `(batch, 2)` give `(batch, n, 2)`."""
    return -((x[:, None] - mean[:, None]) / scale).square() / 2


def _log_exponential_density(x: Tensor, rate: Tensor) -> Tensor:
    return rate.log()[:, None] - x[:, None] * rate[:, None]


def _rising(low: Tensor, gap: Tensor) -> Tensor:
    """Two positive numbers, the second larger."""
    return torch.stack([low, low + gap], -1)


def _at(x: Tensor, first: float, second: float) -> Tensor:
    """Of pairs whose entries are normal with deviation 1 about two places."""
    return (x[:, 0] - first).square() / 2 + (x[:, 1] - second).square() / 2


def hmm_example(data: Arrays) -> Model:
    """Two states with normal outputs, whose means are positive and rise."""
    y, row = data["y"], Variable((2,), simplex)

    def energy(theta1: Tensor, theta2: Tensor, low: Tensor, gap: Tensor) -> Tensor:
        mu = _rising(low, gap)
        return _at(mu, 3, 10) + _hidden(theta1, theta2, _log_normal_density(y, mu))

    def parameters(values: Arrays) -> Arrays:
        rows = {name: values[name] for name in ("theta1", "theta2")}
        return {**rows, "mu": _rising(values["low"], values["gap"])}

    variables = {"theta1": row, "theta2": row, "low": positive, "gap": positive}
    return Model(variables, energy, parameters)


def _dirichlet(theta: Tensor, concentration: Tensor) -> Tensor:
    return -((concentration - 1) * theta.log()).sum(1)


def hmm_drive_0(data: Arrays) -> Model:
    """Two states with exponential speeds and distances, whose rates are positive and rise."""
    u, v, alpha = data["u"], data["v"], data["alpha"]
    names = ("phi_low", "phi_gap", "lambda_low", "lambda_gap")

    def energy(theta1: Tensor, theta2: Tensor, **rates: Tensor) -> Tensor:
        phi, lam = (_rising(rates[names[i]], rates[names[i + 1]]) for i in (0, 2))
        emission = _log_exponential_density(u, phi) + _log_exponential_density(v, lam)
        prior = _dirichlet(theta1, alpha[0]) + _dirichlet(theta2, alpha[1])
        return prior + _at(phi, 0, 3) + _at(lam, 0, 3) + _hidden(theta1, theta2, emission)

    def parameters(values: Arrays) -> Arrays:
        return {
            **{name: values[name] for name in ("theta1", "theta2")},
            "phi": _rising(values["phi_low"], values["phi_gap"]),
            "lambda": _rising(values["lambda_low"], values["lambda_gap"]),
        }

    row = Variable((2,), simplex)
    variables = {"theta1": row, "theta2": row, **dict.fromkeys(names, positive)}
    return Model(variables, energy, parameters)


def hmm_drive_1(data: Arrays) -> Model:
    """Two states with normal logarithms of speeds and distances, whose means rise."""
    u, v, alpha = data["u"], data["v"], data["alpha"]

    def energy(theta1: Tensor, theta2: Tensor, phi: Tensor, lam: Tensor) -> Tensor:
        emission = _log_normal_density(u, phi, data["tau"])
        emission = emission + _log_normal_density(v, lam, data["rho"])
        prior = _dirichlet(theta1, alpha[0]) + _dirichlet(theta2, alpha[1])
        return prior + _at(phi, 0, 3) + _at(lam, 0, 3) + _hidden(theta1, theta2, emission)

    def parameters(values: Arrays) -> Arrays:
        named = {name: values[name] for name in ("theta1", "theta2", "phi")}
        return {**named, "lambda": values["lam"]}

    row, pair = Variable((2,), simplex), Variable((2,), ordered)
    return Model({"theta1": row, "theta2": row, "phi": pair, "lam": pair}, energy, parameters)


SERIES: Mapping[str, Callable[[Arrays], Model]] = MappingProxyType(
    {
        model.__name__: model
        for model in (arK, arma11, garch11, hmm_example, hmm_drive_0, hmm_drive_1)
    }
)
"""By the names of posteriordb."""
