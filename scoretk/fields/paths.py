"""Gaussian paths from noise (t = 0) to data (t = 1).

A path is the pair of functions in `x_t = alpha(t) x_1 + sigma(t) eps`, `eps ~ N(0, I)`:

    path         alpha                    sigma
    Linear       t                        1 - t
    Cosine       sin(pi t / 2)            cos(pi t / 2)
    Interpolant  t                        (1 - t) sqrt(1 + bulge^2 t^2)
    VP           exp(-int_0^s beta / 2)   sqrt(1 - alpha^2)     s = 1 - t, beta linear in s
    SubVP        as VP                    1 - alpha^2
    VE           1                        sigma_max^(1-t) sigma_min^t
    EDM          1                        ((1 - t) sigma_max^(1/rho) + t sigma_min^(1/rho))^rho
    Tabulated    from alphas_cumprod      sqrt(1 - alpha^2)

A path is called with t and returns `alpha, sigma, alpha', sigma'`; its inverse takes the log
signal-to-noise ratio `log(alpha^2 / sigma^2)` back to t. Functions take a float (computed in
float64) or a tensor (in its own dtype).

At the data end of VP `sigma' = -inf`, while `sigma sigma' = -alpha alpha'` stays finite;
`sigma_dsigma` gives that product, so that conversions have their value there.

References:
    Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, "Score-based generative modeling through
    stochastic differential equations" (2021): VP, sub-VP, VE.
    Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative
    models" (2022): EDM.
    Nichol, Dhariwal, "Improved denoising diffusion probabilistic models" (2021): Cosine.
    Lipman, Chen, Ben-Hamu, Nickel, Le, "Flow matching for generative modeling" (2023): Linear.
    Albergo, Boffi, Vanden-Eijnden, "Stochastic interpolants: a unifying framework for flows and
    diffusions" (2023): Interpolant.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import finite, floats, positive
from scoretk.core.devices import constant_like
from scoretk.core.rows import power, sigmoid, softplus
from scoretk.errors import InvalidArgument

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Cosine",
    "GaussianPath",
    "Interpolant",
    "Linear",
    "PathPoint",
    "SubVP",
    "Tabulated",
    "check_path",
]

Time = float | Tensor

STEEPEST = 1.9
"""The largest slope of log alpha, per interval, at the end of the first interval: below 2, so that
the parabola from alpha = 0 is monotone.
"""
SHOWN = 8
"""How many numbers of a table are shown; of longer ones the ends."""
BISECTIONS = 60
"""Halvings of an interval, until less is left of it than float64 resolves."""


class PathPoint(NamedTuple):
    """Alpha, sigma and their time derivatives at one time, or at one time a row.

    Attributes:
        alpha: The signal coefficient.
        sigma: The noise coefficient.
        dalpha: The time derivative of alpha.
        dsigma: The time derivative of sigma.
    """

    alpha: Tensor
    sigma: Tensor
    dalpha: Tensor
    dsigma: Tensor


def _tensor(value: Time) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


class GaussianPath(ABC):
    """`x_t = alpha(t) x_1 + sigma(t) eps`.

    A subclass defines `alpha`, `sigma`, their derivatives `dalpha` and `dsigma`, and the inverse
    `t`; t is a float, of which float64 tensors are made, or a tensor of times in [0, 1].
    """

    steers: ClassVar[bool] = True
    """Its tensors are float64 whatever the state is, and do not tell the state's dtype
    (`scoretk.core.modules.state_like`).
    """

    @abstractmethod
    def alpha(self, t: Time) -> Tensor:
        """The signal coefficient, like t."""

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """The noise coefficient, like t."""

    @abstractmethod
    def dalpha(self, t: Time) -> Tensor:
        """The time derivative of `alpha`, like t."""

    @abstractmethod
    def dsigma(self, t: Time) -> Tensor:
        """The time derivative of `sigma`, like t; `-inf` where it is not finite."""

    @abstractmethod
    def t(self, log_snr: Time) -> Tensor:
        """The time at which `log(alpha^2 / sigma^2)` has this value, like `log_snr`."""

    def sigma_dsigma(self, t: Time) -> Tensor:
        """`sigma sigma' = (sigma^2)' / 2`, like t; finite also where `sigma'` is not."""
        return self.sigma(t) * self.dsigma(t)

    def log_snr(self, t: Time) -> Tensor:
        """`log(alpha^2 / sigma^2)`, like t; `inf` where sigma = 0, `-inf` where alpha = 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def __call__(self, t: Time) -> PathPoint:
        """`(alpha, sigma, alpha', sigma')` at t."""
        return PathPoint(self.alpha(t), self.sigma(t), self.dalpha(t), self.dsigma(t))


def check_path(path: object) -> None:
    """Refuse what is no path, and a path of one's own that loses digits.

    Raises:
        InvalidArgument: It is none, or not float64 at a time that is a number.
    """
    if not isinstance(path, GaussianPath):
        expected = "a GaussianPath such as scoretk.VP() or scoretk.Linear()"
        names = "alpha, sigma, dalpha, dsigma and t"
        hint = f"One of your own derives from scoretk.fields.GaussianPath and defines {names}"
        raise InvalidArgument("path", path, expected, hint)
    if type(path).__module__ == __name__:
        return
    for name in ("alpha", "sigma", "dalpha", "dsigma"):
        told = getattr(path, name)(0.5)
        if not isinstance(told, Tensor) or told.dtype != torch.float64:
            expected = "a tensor in float64 at a time that is a number"
            hint = (
                "Such as t if isinstance(t, torch.Tensor) else torch.tensor(t, dtype=torch.float64)"
            )
            raise InvalidArgument(f"path.{name}(0.5)", told, expected, hint)


@dataclass(frozen=True)
class Linear(GaussianPath):
    """`alpha = t`, `sigma = 1 - t`: the straight path of flow matching and rectified flow."""

    def alpha(self, t: Time) -> Tensor:
        return _tensor(t)

    def sigma(self, t: Time) -> Tensor:
        return 1 - _tensor(t)

    def dalpha(self, t: Time) -> Tensor:
        return torch.ones_like(_tensor(t))

    def dsigma(self, t: Time) -> Tensor:
        return -torch.ones_like(_tensor(t))

    def t(self, log_snr: Time) -> Tensor:
        return sigmoid(_tensor(log_snr) / 2)


@dataclass(frozen=True)
class Interpolant(GaussianPath):
    """`x_t = t x_1 + (1 - t) x_0 + gamma z`, with x_0 and z both N(0, I).

    So `alpha = t` and `sigma^2 = (1 - t)^2 + gamma^2`. Here `gamma = bulge t (1 - t)`, so that
    `sigma = (1 - t) sqrt(1 + bulge^2 t^2)` has the finite slope -sqrt(1 + bulge^2) at the data, and
    log-SNR increases for every bulge >= 0. (The gamma of a Brownian bridge, `sqrt(2 t (1 - t))`,
    gives `sigma = sqrt(1 - t^2)`: variance preserving, but with sigma' = -inf at t = 1.)

    Args:
        bulge: At least 0; 0 is `Linear`.

    References:
        Albergo, Boffi, Vanden-Eijnden, "Stochastic interpolants: a unifying framework for flows and
        diffusions" (2023).
    """

    bulge: float = 2.0

    def __post_init__(self) -> None:
        if finite("bulge", self.bulge) < 0:
            raise InvalidArgument("bulge", self.bulge, "a number of at least 0")

    def _swelling(self, t: Tensor) -> Tensor:
        """`sqrt(1 + bulge^2 t^2)`."""
        return torch.sqrt(1 + (self.bulge * t) ** 2)

    def alpha(self, t: Time) -> Tensor:
        return _tensor(t)

    def sigma(self, t: Time) -> Tensor:
        t = _tensor(t)
        return (1 - t) * self._swelling(t)

    def dalpha(self, t: Time) -> Tensor:
        return torch.ones_like(_tensor(t))

    def dsigma(self, t: Time) -> Tensor:
        t = _tensor(t)
        swelling = self._swelling(t)
        return (1 - t) * self.bulge**2 * t / swelling - swelling

    def t(self, log_snr: Time) -> Tensor:
        # log-SNR = 2 u - log(1 + bulge^2 t^2) increases in u = logit t: bisection.
        log_snr = _tensor(log_snr)
        low, high = log_snr / 2, log_snr / 2 + math.log1p(self.bulge**2) / 2
        for _ in range(BISECTIONS):
            u = (low + high) / 2
            below = 2 * (u - self._swelling(sigmoid(u)).log()) < log_snr
            low, high = torch.where(below, u, low), torch.where(below, high, u)
        return sigmoid((low + high) / 2)


@dataclass(frozen=True)
class Cosine(GaussianPath):
    """`alpha = sin(pi t / 2)`, `sigma = cos(pi t / 2)`: constant-speed motion on the circle."""

    def alpha(self, t: Time) -> Tensor:
        return torch.sin(math.pi / 2 * _tensor(t))

    def sigma(self, t: Time) -> Tensor:
        # Exactly 0 at t = 1, which cos(pi / 2) is not.
        return torch.sin(math.pi / 2 * (1 - _tensor(t)))

    def dalpha(self, t: Time) -> Tensor:
        return math.pi / 2 * self.sigma(t)

    def dsigma(self, t: Time) -> Tensor:
        return -math.pi / 2 * self.alpha(t)

    def t(self, log_snr: Time) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(_tensor(log_snr) / 2))


@dataclass(frozen=True)
class _LinearBeta(GaussianPath):
    """What VP and sub-VP share: a rate beta that is linear in s = 1 - t.

    `log alpha = -int_0^s beta / 2` with `beta = beta_min + s (beta_max - beta_min)`.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        low, high = positive("beta_min", self.beta_min), positive("beta_max", self.beta_max)
        if low > high:
            raise InvalidArgument(
                "beta_min, beta_max",
                (self.beta_min, self.beta_max),
                "0 < beta_min <= beta_max, both finite",
            )

    def _log_alpha(self, t: Time) -> Tensor:
        s = 1 - _tensor(t)
        return -s * (self.beta_min + s * (self.beta_max - self.beta_min) / 2) / 2

    def _t_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        twice, slope = -2 * log_alpha, self.beta_max - self.beta_min
        return 1 - 2 * twice / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * twice))

    def alpha(self, t: Time) -> Tensor:
        return self._log_alpha(t).exp()

    def dalpha(self, t: Time) -> Tensor:
        beta = self.beta_min + (1 - _tensor(t)) * (self.beta_max - self.beta_min)
        return self.alpha(t) * beta / 2


@dataclass(frozen=True)
class VP(_LinearBeta):
    """Variance preserving, `alpha^2 + sigma^2 = 1`: the path of DDPM in continuous time.

    Args:
        beta_min: The rate at the data.
        beta_max: The rate at the noise, at least `beta_min`.
    """

    def sigma(self, t: Time) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def dsigma(self, t: Time) -> Tensor:
        return self.sigma_dsigma(t) / self.sigma(t)

    def sigma_dsigma(self, t: Time) -> Tensor:
        return -self.alpha(t) * self.dalpha(t)

    def t(self, log_snr: Time) -> Tensor:
        return self._t_of_log_alpha(-softplus(-_tensor(log_snr)) / 2)


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """`alpha` as VP and `sigma = 1 - alpha^2`, below VP's everywhere.

    Args:
        beta_min: The rate at the data.
        beta_max: The rate at the noise, at least `beta_min`.
    """

    def sigma(self, t: Time) -> Tensor:
        return -torch.expm1(2 * self._log_alpha(t))

    def dsigma(self, t: Time) -> Tensor:
        return -2 * self.alpha(t) * self.dalpha(t)

    def t(self, log_snr: Time) -> Tensor:
        # alpha = 2 / (1/r + sqrt(1/r^2 + 4)) solves r alpha^2 + alpha = r, r = alpha / sigma,
        # without cancellation.
        inverse = torch.exp(-_tensor(log_snr) / 2)
        return self._t_of_log_alpha(math.log(2) - torch.log(inverse + torch.sqrt(inverse**2 + 4)))


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    if not positive("sigma_min", sigma_min) < positive("sigma_max", sigma_max):
        raise InvalidArgument(
            "sigma_min, sigma_max", (sigma_min, sigma_max), "0 < sigma_min < sigma_max, both finite"
        )


class _VarianceExploding(GaussianPath):
    """What VE and EDM share: the data are not scaled, `alpha = 1`."""

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(_tensor(t))

    def dalpha(self, t: Time) -> Tensor:
        return torch.zeros_like(_tensor(t))

    def log_snr(self, t: Time) -> Tensor:
        return -2 * self.sigma(t).log()


@dataclass(frozen=True)
class VE(_VarianceExploding):
    """Variance exploding with geometric sigma: `sigma = sigma_max^(1-t) sigma_min^t`.

    Args:
        sigma_min: Sigma at t = 1.
        sigma_max: Sigma at t = 0, above `sigma_min`.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)

    def sigma(self, t: Time) -> Tensor:
        t = _tensor(t)
        return torch.exp(math.log(self.sigma_max) * (1 - t) + math.log(self.sigma_min) * t)

    def dsigma(self, t: Time) -> Tensor:
        return self.sigma(t) * math.log(self.sigma_min / self.sigma_max)

    def t(self, log_snr: Time) -> Tensor:
        return (math.log(self.sigma_max) + _tensor(log_snr) / 2) / math.log(
            self.sigma_max / self.sigma_min
        )


@dataclass(frozen=True)
class EDM(_VarianceExploding):
    """Variance exploding with `sigma^(1/rho)` linear in t.

    Args:
        sigma_min: Sigma at t = 1.
        sigma_max: Sigma at t = 0, above `sigma_min`.
        rho: Positive; larger values spend more of the time at small sigma.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)
        positive("rho", self.rho)

    @property
    def _ends(self) -> tuple[float, float]:
        return self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)

    def sigma(self, t: Time) -> Tensor:
        (high, low), t = self._ends, _tensor(t)
        return power(high * (1 - t) + low * t, self.rho)

    def dsigma(self, t: Time) -> Tensor:
        (high, low), t = self._ends, _tensor(t)
        return self.rho * power(high * (1 - t) + low * t, self.rho - 1) * (low - high)

    def t(self, log_snr: Time) -> Tensor:
        high, low = self._ends
        return (high - torch.exp(-_tensor(log_snr) / (2 * self.rho))) / (high - low)


@dataclass(frozen=True, eq=False)
class Tabulated(GaussianPath):
    """A discrete-time schedule `alphas_cumprod[k] = alpha^2` made continuous,
    `sigma^2 = 1 - alpha^2`.

    Timestep k, from 0 (least noise) to N - 1 (most), sits at `t = 1 - (k + 1) / N`, so t = 0 is k =
    N - 1, and t = 1 is the data themselves (alpha = 1, sigma = 0), one step below k = 0. Between
    the tabulated times log alpha is a cubic in t, monotone and with a continuous derivative, so
    that adaptive solvers meet no kinks.

    A table that ends at 0 (zero terminal signal-to-noise ratio) has alpha(0) = 0. Within its first
    interval alpha is a parabola from 0, `alpha_1 u (2 - s + (s - 1) u)` with u = N t, which meets
    the cubic beyond with its slope s. There a prediction of the noise or the score holds no
    information on the data; one of the data, v or the velocity does.

    Args:
        alphas_cumprod: A sequence or tensor `(N,)`, decreasing, in (0, 1); the last one may be 0
            where there are three or more.

    Raises:
        InvalidArgument: The table is not decreasing, or not in this range.

    References:
        Fritsch, Butland, "A method for constructing local monotone piecewise cubic interpolants"
        (1984).
        Lin, Liu, Li, Yang, "Common diffusion noise schedules and sample steps are flawed" (2024),
        for tables that end at 0.
    """

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        table = floats("alphas_cumprod", self.alphas_cumprod, "a sequence of numbers")
        table = table.detach().cpu().flatten()
        decreasing = len(table) >= 2 and bool((table.diff() < 0).all()) and float(table[-1]) >= 0
        if not (decreasing and float(table[0]) < 1 and float(table[1]) > 0):
            raise InvalidArgument(
                "alphas_cumprod",
                self.alphas_cumprod,
                "at least two decreasing numbers in (0, 1), of which only a third may be 0",
                _rising(table),
            )
        object.__setattr__(self, "alphas_cumprod", table)
        # knots in increasing t: t = 0 (k = N - 1), 1/N, ..., 1 (the data)
        knots = torch.cat([table.log().flip(0) / 2, table.new_zeros(1)])
        silent = float(table[-1]) == 0
        cubics = (
            _monotone_cubics(knots[1:], steepest=STEEPEST) if silent else _monotone_cubics(knots)
        )
        object.__setattr__(self, "_parabola", None)
        if silent:
            s = -float(cubics[1, 0] + 2 * cubics[2, 0] + 3 * cubics[3, 0])
            object.__setattr__(self, "_parabola", (float(knots[1]), 2 - s, s - 1))
            cubics = torch.cat(
                [torch.tensor([[float(knots[1])], [0], [0], [0]]).to(cubics), cubics], 1
            )
        object.__setattr__(self, "_cubics", cubics)

    def __repr__(self) -> str:
        if len(self.alphas_cumprod) <= SHOWN:
            return f"Tabulated(alphas_cumprod={self.alphas_cumprod!r})"
        first, last = (float(self.alphas_cumprod[i]) for i in (0, -1))
        return f"Tabulated(alphas_cumprod={first:.4g} ... {last:.4g}, of {self.steps} timesteps)"

    @property
    def steps(self) -> int:
        """N, the number of timesteps."""
        return len(self.alphas_cumprod)

    def timestep(self, t: Time) -> Tensor:
        """The (fractional) timestep k of time t; -1 at t = 1."""
        return self.steps * (1 - _tensor(t)) - 1

    def _cell(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The interval in which t lies.

        Returns:
            The coefficients of its cubic, `(4, *t.shape)`, and the distance from t to the knot on
            its right, in intervals, like t.
        """
        table = constant_like(self._cubics, t)  # type: ignore[attr-defined]
        cell = (t * self.steps).floor().long().clamp(0, self.steps - 1)
        # By a flat index: one without axes is a number to the compiler.
        chosen = table.index_select(1, cell.flatten()).reshape(4, *cell.shape)
        return chosen, (cell + 1).to(t.dtype) - t * self.steps

    def _log_alpha(self, t: Time) -> Tensor:
        t = _tensor(t)
        (c0, c1, c2, c3), v = self._cell(t)
        # From the right, so that alpha = 1 exactly at t = 1.
        cubic: Tensor = c0 + v * (c1 + v * (c2 + v * c3))
        if self._parabola is None:  # type: ignore[attr-defined]
            return cubic
        first, linear, square = self._parabola  # type: ignore[attr-defined]
        u = (t * self.steps).clamp(max=1)
        return torch.where(u < 1, first + torch.log(u * (linear + square * u)), cubic)

    def alpha(self, t: Time) -> Tensor:
        return self._log_alpha(t).exp()

    def dalpha(self, t: Time) -> Tensor:
        t = _tensor(t)
        (_, c1, c2, c3), v = self._cell(t)
        cubic: Tensor = -self.steps * (c1 + v * (2 * c2 + v * 3 * c3)) * self.alpha(t)
        if self._parabola is None:  # type: ignore[attr-defined]
            return cubic
        first, linear, square = self._parabola  # type: ignore[attr-defined]
        u = t * self.steps
        return torch.where(u < 1, self.steps * math.exp(first) * (linear + 2 * square * u), cubic)

    def sigma(self, t: Time) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)).clamp(max=0))

    def dsigma(self, t: Time) -> Tensor:
        return self.sigma_dsigma(t) / self.sigma(t)

    def sigma_dsigma(self, t: Time) -> Tensor:
        return -self.alpha(t) * self.dalpha(t)

    def t(self, log_snr: Time) -> Tensor:
        log_alpha = -softplus(-_tensor(log_snr)) / 2
        table = constant_like(self._cubics, log_alpha)  # type: ignore[attr-defined]
        knots = table[0].contiguous()
        cell = torch.searchsorted(knots, log_alpha, right=False).clamp(0, self.steps - 1)
        c0, c1, c2, c3 = table[:, cell]
        low, high = torch.zeros_like(log_alpha), torch.ones_like(log_alpha)
        for _ in range(BISECTIONS):  # the cubic falls with v
            v = (low + high) / 2
            before = c0 + v * (c1 + v * (c2 + v * c3)) > log_alpha
            low, high = torch.where(before, v, low), torch.where(before, high, v)
        u = cell + 1 - (low + high) / 2
        if self._parabola is not None:  # type: ignore[attr-defined]
            first, linear, square = self._parabola  # type: ignore[attr-defined]
            y = torch.exp((log_alpha - first).clamp(max=0))
            u = torch.where(cell == 0, 2 * y / (linear + torch.sqrt(linear**2 + 4 * square * y)), u)
        return u / self.steps


def _rising(table: Tensor) -> str:
    """What to do about a table that does not fall; "" where that is not known."""
    if len(table) < 2 or not bool((table.diff() >= 0).all()):
        return ""
    return "These increase: of betas, (1 - betas).cumprod(0); from noise to data, table.flip(0)"


def _monotone_cubics(knots: Tensor, steepest: float = math.inf) -> Tensor:
    """Increasing cubics through increasing knots, in v, the distance to the right knot.

    The slope at an inner knot is the harmonic mean of its neighbours'. Those at the ends are
    extrapolated, and kept between a third of and three times their interval's, the first at most
    `steepest`; this keeps each cubic monotone.

    Args:
        knots: `(cells + 1,)`.
        steepest: The largest slope at the first knot.

    Returns:
        Coefficients `(4, cells)`, constant terms first.
    """
    rise = knots.diff()
    inner = 2 * rise[:-1] * rise[1:] / (rise[:-1] + rise[1:])
    pairs = ((rise[0], rise[min(1, len(rise) - 1)]), (rise[-1], rise[max(-2, -len(rise))]))
    ends = [((3 * a - b) / 2).clamp(a / 3, 3 * a) for a, b in pairs]
    slopes = torch.cat([ends[0].clamp(max=steepest)[None], inner, ends[1][None]])
    excess = slopes[1:] - rise
    c3 = slopes[1:] - slopes[:-1] - 2 * excess
    return torch.stack([knots[1:], -slopes[1:], excess - c3, c3])
