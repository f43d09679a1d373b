r"""Posteriors: a prior field and a likelihood of measurements, for inverse problems.

For a *static* prior energies add up, `E(x) - log L(x)`, and any kernel samples the posterior itself. For a prior on a Gaussian
path the posterior is a timed field as well, whose denoiser is conditional. With `D = E[x_1 | x_t]`, `J = dD/dx_t` and
`V = Cov[x_1 | x_t] = (sigma^2 / alpha) J^T`, score and denoiser are shifted alike:

    score_y = score + grad log p(y | x_t),      D_y = D + (sigma^2 / alpha) grad log p(y | x_t) = D + V grad_D log p(y | x_t).

A method is an approximation of `p(y | x_t)`. With `r = y - A D`, R = std^2 I and the posterior variance
`v = sigma^2 spread^2 / (alpha^2 spread^2 + sigma^2)` of data of standard deviation `spread` in all directions,

    MMPS          D_y = D + V A^T (R + A V A^T)^-1 r           Kalman's update; exact for Gaussian priors
    PiGDM         D_y = D + V A^T (R + v A A^T)^-1 r           exact for Gaussian priors N(m, spread^2 I)
    Replacement   D_y = D + v A^T (R + v A A^T)^-1 r           likewise; no derivative of the denoiser
    DPS           D_y = D + V A^T r  scale sqrt(m) / |r|_K     |r|_K^2 = r^T (R + v A A^T) r, m entries of y
                  D_y = D + V g  scale g^T V g / (g^T V g + p^T H p)     for any other L: g and -H the gradient and the Hessian of
                                                                         log L at D, p = V g; exact for Gaussians and one entry

Each row is on its own: its norm, its iterations. At sigma = 0, V and v vanish and `D_y = D`. At alpha = 0 it is J that vanishes,
and V does not. As `p(x_1 | x_t) ~ p(x_1) exp(l x_1 - (alpha / sigma)^2 |x_1|^2 / 2)` with `l = alpha x_t / sigma^2`, alpha/sigma
is raised, with l kept, to the fourth root of the dtype's rounding where it is less: an error of the order of the square root.

References: Chung, Kim, Mccann, Klasky, Ye, "Diffusion posterior sampling for general noisy inverse problems" (2023): DPS. Song,
Vahdat, Mardani, Kautz, "Pseudoinverse-guided diffusion models for inverse problems" (2023): PiGDM. Rozet, Andry, Lanusse, Louppe,
"Learning diffusion priors from observations by expectation maximization" (2024): MMPS. Lugmayr, Danelljan, Romero, Yu,
Timofte, Van Gool, "RePaint: inpainting using denoising diffusion probabilistic models" (2022) and Wang, Yu, Zhang, "Zero-shot
image restoration using denoising diffusion null-space model" (2023): replacement. Hestenes, Stiefel, "Methods of conjugate
gradients for solving linear systems" (1952).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol
from weakref import WeakSet

import torch
from torch import Tensor

from scoretk.core.arguments import counts, names, option, positive
from scoretk.core.rows import across, row_dot, select_rows
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.answers import check_rows, unwritten
from scoretk.fields.convert import check_time
from scoretk.fields.derivatives import check_derivative, check_no_steps, probes, value_and_pullback
from scoretk.fields.distribution import in_one_space
from scoretk.fields.gradient import grad_energy
from scoretk.fields.operators import LinearGaussian
from scoretk.fields.paths import GaussianPath
from scoretk.fields.protocols import field_name, is_timed, offers
from scoretk.fields.resolve import TimedField, gaussian_path, static
from scoretk.fields.validation import rejecting
from scoretk.fields.wrapped import Kind, Wrapped, check_within, shared_map
from scoretk.fields.wrappers import GaussianPathField

__all__ = ["DPS", "METHODS", "MMPS", "PiGDM", "Replacement", "posterior"]

PIGDM_ITERATIONS = 64
"""Of the solves without the network: at most so many, and none after the residual has reached the rounding."""
DERIVATIVE_ROWS = 8
"""In how many rows the derivatives of the prior and of the likelihood are looked at."""
LOG_SNR = (-4.0, 0.0, 4.0)
"""At which log(alpha^2 / sigma^2), as the path has them, the prior's are."""
CUTS = 12
"""How often a step up a log-likelihood is cut to a quarter at most."""


class Denoised(NamedTuple):
    """The prior at `(x_t, t)`: D, like x; the product `u -> V u`; alpha and sigma, `()` or `(batch,)`, float64."""

    data: Tensor
    covariance: Callable[[Tensor], Tensor]
    alpha: Tensor
    sigma: Tensor

    def variance(self, spread: float, like: Tensor) -> Tensor:
        """`v`, the variance of x_1 given x_t for data `N(m, spread^2 I)`, to be multiplied with tensors like this one."""
        noise = (self.sigma * spread) ** 2
        return across((noise / ((self.alpha * spread) ** 2 + self.sigma**2)).to(like), like)


class Method(Protocol):
    """An approximation of `p(y | x_t)`, as what it adds to the denoiser."""

    differentiates: ClassVar[bool]
    """Whether it asks for V, and so for the derivative of the denoiser."""

    def shift(self, likelihood: Any, prior: Denoised, cond: dict[str, Tensor]) -> Tensor:
        """`D_y - D`, like x."""
        ...


@dataclass(frozen=True)
class MMPS:
    """Moment matching: `p(x_1 | x_t)` as a Gaussian with the mean D and the covariance V; exact for Gaussian priors.

    The system is solved by conjugate gradients, each iteration one product with the transposed Jacobian of the denoiser: exact
    from as many iterations on as there are entries of y, often close with a few. Where a network's Jacobian is far from a
    covariance (symmetric, of non-negative curvature) more of them do not converge: the iterate of the smallest residual is taken.

    Arguments: iterations, the most of them.
    """

    iterations: int = 5

    differentiates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        counts(self, iterations=1)

    def shift(self, likelihood: LinearGaussian, prior: Denoised, cond: dict[str, Tensor]) -> Tensor:
        """`V A^T (R + A V A^T)^-1 r`, like x."""

        def covariance(w: Tensor) -> Tensor:
            return likelihood.std**2 * w + likelihood.forward(prior.covariance(likelihood.adjoint(w, prior.data)))

        residual = likelihood.residual(prior.data, **cond)
        w = conjugate_gradients(covariance, residual, self.iterations, likelihood.std**2)
        return prior.covariance(likelihood.adjoint(w, prior.data))


@dataclass(frozen=True)
class PiGDM:
    """Pseudoinverse guidance: `p(x_1 | x_t)` as a Gaussian with the mean D and the covariance `v I`.

    One product with the transposed Jacobian an evaluation. Arguments: spread, the standard deviation of the data.
    """

    spread: float = 1.0

    differentiates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("spread", self.spread)

    def shift(self, likelihood: LinearGaussian, prior: Denoised, cond: dict[str, Tensor]) -> Tensor:
        """`V A^T (R + v A A^T)^-1 r`, like x."""
        return prior.covariance(_pulled(likelihood, prior, self.spread, cond))


@dataclass(frozen=True)
class Replacement:
    """The measured part of D replaced: for a `Mask` each measured pixel by `(v y + std^2 D) / (v + std^2)`, and D elsewhere.

    Without noise this is `D + A^+ (y - A D)`, and a measured pixel's path is `alpha y + sigma e`, as in RePaint, with the noise
    e it started from in place of fresh noise. The rest of D learns of y through x_t only. No derivative of the denoiser is
    taken, nor are steps taken back to mend the seam (RePaint's resampling is a sampler's business, not a field's).

    Arguments: spread, the standard deviation of the data.
    """

    spread: float = 1.0

    differentiates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("spread", self.spread)

    def shift(self, likelihood: LinearGaussian, prior: Denoised, cond: dict[str, Tensor]) -> Tensor:
        """`v A^T (R + v A A^T)^-1 r`, like x."""
        pulled = _pulled(likelihood, prior, self.spread, cond)
        return prior.variance(self.spread, pulled) * pulled


@dataclass(frozen=True)
class DPS:
    """Diffusion posterior sampling: the likelihood at D, `p(y | x_t) ~ L(D)`.

    For a `LinearGaussian` likelihood the residual has, as in the paper, its norm taken out, row by row: the gradient is that of
    `-zeta |y - A D|`. The paper leaves the size zeta to the user; here

        zeta = scale sqrt(m) |r| / |r|_K,      |r|_K^2 = std^2 |r|^2 + v |A^T r|^2,

    with which scale 1 is the force of PiGDM on a residual of the expected size (`|r|^2 = m k` where `K = k I`), and a residual n
    times as large is pulled as much, not n times as much. One product with the transposed Jacobian an evaluation.

    Any other log-likelihood is stepped up from D in the direction `p = V g`, g its gradient there, as far as the posterior of x_1
    given x_t has its maximum on that line,

        s maximises  log L(D + s p) - s^2 g^T V g / 2:      s = g^T V g / (g^T V g + p^T H p),

    where H, the curvature of -log L, counts where it is positive and is seen from D to as far as x_1 is spread, and a step that
    lowers what it should raise is cut to a quarter until it does not. `D_y = D + scale s p`, Kalman's update of a single linear
    measurement; `V g` alone would overshoot by v / std^2. Two gradients of log L and one value or more an evaluation.

    Arguments: scale; spread, the standard deviation of the data.
    """

    scale: float = 1.0
    spread: float = 1.0

    differentiates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("scale", self.scale)
        positive("spread", self.spread)

    def shift(self, likelihood: Any, prior: Denoised, cond: dict[str, Tensor]) -> Tensor:
        """`V A^T r scale sqrt(m) / |r|_K`, or `scale s V grad log L(D)`, like x."""
        if not isinstance(likelihood, LinearGaussian):
            return self.scale * _uphill(likelihood, prior, self.spread, cond)
        residual = likelihood.residual(prior.data, **cond)
        pulled = likelihood.adjoint(residual, prior.data)
        v = prior.variance(self.spread, pulled).flatten()
        norm = (likelihood.std**2 * row_dot(residual, residual) + v * row_dot(pulled, pulled)).sqrt()
        weight = self.scale * math.sqrt(math.prod(residual.shape[1:])) / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        weight = torch.where(norm.isfinite(), weight, torch.nan)  # and not 0, which would leave the prior as it is
        return prior.covariance(across(weight, pulled) * pulled)


METHODS: dict[str, Callable[[], Method]] = {"mmps": MMPS, "pigdm": PiGDM, "dps": DPS, "replacement": Replacement}


def posterior(
    prior: Any,
    likelihood: Any,
    method: str | Method | None = None,
    *,
    measured: str | Iterable[str] = (),
) -> Any:
    """The posterior of a prior and a likelihood, as a field: see the module's docstring.

    Arguments:
        prior: a static field, whose posterior is exact: energies, or scores, add up; or a timed field on a Gaussian path,
            whose posterior is timed and starts from the same `base`. `prior.at(t)` is static.
        likelihood: `LinearGaussian(operator, y, std)`; a callable `log_likelihood(x, **cond) -> (batch,)`; or a static field
            with an energy, `-log L`.
        method: for a timed prior, "mmps" (the default for a `LinearGaussian`), "pigdm", "replacement" or "dps" (the default,
            and the only one, for any other likelihood), or an object with settings, such as `MMPS(iterations=10)`.
        measured: the names of the condition values that a callable likelihood takes; all others go to the prior alone. A
            `LinearGaussian` names its own.
    Raises: `InvalidArgument`, `UnknownName`; `MissingCapability` for a timed prior that has no Gaussian path.
    """
    prior, likelihood = (
        in_one_space((prior, likelihood))
        if hasattr(likelihood, "event_shape")
        else (*in_one_space((prior,)), likelihood)
    )
    if not hasattr(prior, "event_shape"):
        raise InvalidArgument(
            "prior", prior, "a field, such as scoretk.Energy(fn, event_shape) or scoretk.Diffusion(...)"
        )
    taken = names("measured", measured)
    if hasattr(likelihood, "event_shape"):
        if shared_map("prior, likelihood", (prior, likelihood)) is not None:
            likelihood = likelihood.field
        else:
            check_within("likelihood", likelihood, prior)
    space = shared_map("prior", (prior,))
    if space is not None:
        return space.around(posterior(space.field, likelihood, method, measured=taken))
    law = _likelihood(likelihood, taken, tuple(prior.event_shape))
    if is_timed(prior):
        return _TimedPosterior(prior, law, _method(method, law), gaussian_path(prior, "posterior"))
    if not offers(prior) & {"energy", "score"}:
        raise MissingCapability(field_name(prior), offers(prior), {"energy"}, "A prior needs an energy or a score")
    if method is not None:
        raise InvalidArgument("method", method, "None for a static prior, whose posterior needs no approximation")
    return _Posterior(prior, law)


@dataclass(frozen=True, eq=False)
class _Likelihood:
    """A callable `log_likelihood(x, **cond)` and the names of the condition values that are its own."""

    of: Callable[..., Tensor]
    measured: frozenset[str]

    def log_likelihood(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`log L(x)`, `(batch,)`."""
        hint = "A log-likelihood gives one number a row: sum over the event axes, keep the batch axis"
        found = unwritten("log_likelihood", lambda y: rejecting(self.of, y, cond, -torch.inf), x)
        return check_rows("log_likelihood", found, x.shape[:1], hint).to(x.dtype)

    def slope(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`log L(x)` and its gradient, by autograd. The first call sees whether that is the derivative of the values."""
        if _is_new(self):
            _look_along(self, x, cond)
        return self.gradient(x, **cond)

    def gradient(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """As `slope`, unexamined."""
        value, gradient = grad_energy(lambda z: -self.log_likelihood(z, **cond), x)
        return -value, -gradient


@dataclass(frozen=True, eq=False)
class _FieldLikelihood:
    """`-E`, with the energy of a static field and its own gradient, and the names of the condition values that are its own."""

    of: Any
    measured: frozenset[str]

    def log_likelihood(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`-E(x)`, `(batch,)`."""
        return -static(self.of).energy(x, **cond)

    def slope(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`-E(x)` and its gradient. The first call sees whether that is the derivative of the values."""
        if _is_new(self):
            _look_along(self, x, cond)
        return self.gradient(x, **cond)

    def gradient(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """As `slope`, unexamined."""
        energy, gradient = static(self.of).energy_and_grad(x, **cond)
        return -energy, -gradient


Likelihood = LinearGaussian | _Likelihood | _FieldLikelihood

_EXAMINED: WeakSet[Any] = WeakSet()
"""The likelihoods and posteriors whose derivatives have been looked at."""


def _is_new(value: Any) -> bool:
    return value not in _EXAMINED and not torch.compiler.is_compiling()


IN_TORCH = (
    "Write it in torch operations on x; for a linear measurement take "
    "LinearGaussian(operator, y, std, adjoint=f), f(w) = A^T w"
)


def _look_along(likelihood: _Likelihood | _FieldLikelihood, x: Tensor, cond: dict[str, Tensor]) -> None:
    """See whether the likelihood's gradient at some of the rows x is the derivative of its values."""
    rows = {name: value[:DERIVATIVE_ROWS] for name, value in cond.items()}
    check_derivative(
        lambda z: likelihood.log_likelihood(z, **rows), x[:DERIVATIVE_ROWS], "likelihood", likelihood.of, IN_TORCH,
        lambda z: likelihood.gradient(z, **rows)[1],
    )  # fmt: skip
    _EXAMINED.add(likelihood)


def _look_for_steps(likelihood: _Likelihood | _FieldLikelihood, x: Tensor, cond: dict[str, Tensor]) -> None:
    """See whether the likelihood depends on x in steps, which what follows its gradient does not see."""

    def rows(z: Tensor) -> dict[str, Tensor]:
        return {name: value[torch.arange(len(z), device=x.device) % len(x)] for name, value in cond.items()}

    check_no_steps(
        lambda z: likelihood.log_likelihood(z, **rows(z)), x[:1], "likelihood", likelihood.of, IN_TORCH,
        lambda z: likelihood.gradient(z, **rows(z))[1],
    )  # fmt: skip


def _likelihood(value: Any, measured: frozenset[str], event_shape: tuple[int, ...]) -> Likelihood:
    if isinstance(value, LinearGaussian):
        if measured:
            raise InvalidArgument("measured", set(measured), "nothing with a LinearGaussian", "Its y may be a name")
        value.check(event_shape)
        return value
    if hasattr(value, "event_shape"):
        if is_timed(value) or "energy" not in offers(value) or tuple(value.event_shape) != event_shape:
            raise InvalidArgument(
                "likelihood", field_name(value), f"a static field with an energy and event shape {event_shape}"
            )
        return _FieldLikelihood(value, measured)
    if not callable(value):
        raise InvalidArgument("likelihood", value, "a LinearGaussian, a callable log_likelihood(x), or a static field")
    return _Likelihood(value, measured)


def _method(value: str | Method | None, likelihood: Likelihood) -> Method:
    linear = isinstance(likelihood, LinearGaussian)
    if value is None:
        value = "mmps" if linear else "dps"
    method = METHODS[option("method", value, METHODS)]() if isinstance(value, str) else value
    if isinstance(method, type) or not callable(getattr(method, "shift", None)):
        raise InvalidArgument("method", value, "a method, such as scoretk.MMPS(iterations=10)")
    if not linear and isinstance(method, MMPS | PiGDM | Replacement):
        raise InvalidArgument("method", value, "'dps' for a likelihood that is no LinearGaussian")
    return method


def _split(cond: dict[str, Tensor], own: frozenset[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The condition values of the likelihood, and those of the prior."""
    missing = own - cond.keys()
    if missing:
        raise InvalidArgument("cond", set(cond), f"values for {', '.join(sorted(missing))}, which the likelihood takes")
    return {n: v for n, v in cond.items() if n in own}, {n: v for n, v in cond.items() if n not in own}


@dataclass(frozen=True, eq=False)
class _Posterior(Wrapped):
    """`E(x) - log L(x)`, E the prior's energy."""

    prior: Any
    likelihood: Likelihood

    kind = Kind.TILT

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.prior,)

    @property
    def computed(self) -> frozenset[str]:
        """A score, and an energy where the prior has one."""
        return frozenset({"score"}) | (offers(self.prior) & {"energy"})

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`E(x) - log L(x)`, `(batch,)`. Raises `MissingCapability` where the prior has no energy."""
        if "energy" not in self.provides:
            bridge = "A score alone does not give an energy: use a solver that needs the score only, such as ULA"
            raise MissingCapability(field_name(self.prior), offers(self.prior), {"energy"}, bridge)
        own, others = _split(cond, self.likelihood.measured)
        return static(self.prior).energy(x, **others) - self.likelihood.log_likelihood(x, **own)

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`score(x) + grad log L(x)`, like x."""
        own, others = _split(cond, self.likelihood.measured)
        return static(self.prior).score(x, **others) + self.likelihood.slope(x, **own)[1]

    def energy_and_grad(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """The energy and its gradient, prior and likelihood evaluated once."""
        own, others = _split(cond, self.likelihood.measured)
        energy, gradient = static(self.prior).energy_and_grad(x, **others)
        value, slope = self.likelihood.slope(x, **own)
        return energy - value, gradient - slope


@dataclass(frozen=True, eq=False)
class _TimedPosterior(Wrapped, GaussianPathField):
    """The prior's denoiser, shifted by the method; where alpha(0) = 0 it says nothing there, and the base is the prior's."""

    prior: Any
    likelihood: Likelihood
    method: Method
    path: GaussianPath
    predicts: str = "data"

    kind = Kind.TILT
    computed = GaussianPathField.provides - {"base"}

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.prior,)

    def __post_init__(self) -> None:
        super().__post_init__()
        earliest = {dtype: _earliest(self.path, dtype) for dtype in (torch.float32, torch.float64)}
        object.__setattr__(self, "_earliest", earliest)

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """`D_y`, like x."""
        check_time(t, x)
        own, others = _split(cond, self.likelihood.measured)
        x, t = _informed(self.path, x, t, self._earliest[x.dtype])  # type: ignore[attr-defined]
        prior = TimedField(self.prior, self.path, others)
        if self.method.differentiates and len(x) and _is_new(self):
            self._look_at(x, others)
        alpha, sigma = (f(torch.as_tensor(t, dtype=torch.float64)) for f in (self.path.alpha, self.path.sigma))
        gain = across((sigma**2 / alpha).to(x), x)
        if self.method.differentiates:
            keep = x.requires_grad and torch.is_grad_enabled()
            data, pullback = value_and_pullback(lambda z: prior.denoise(z, t), x, keep=keep)
        else:
            data, pullback = prior.denoise(x, t), _no_derivative
        point = Denoised(data, lambda u: gain * pullback(u), alpha, sigma)
        return data + self.method.shift(self.likelihood, point, own)

    def _look_at(self, x: Tensor, cond: dict[str, Tensor]) -> None:
        """See whether autograd has the derivative of the prior's denoiser, and whether that moves in steps.

        Where the signal is less than the noise, as large, and more: at another time a model may be another one.
        """
        times = [float(self.path.t(r).clamp(0, 1)) for r in LOG_SNR]
        hint = "Let torch see through its network; or take method='replacement', which asks for no derivative of it"

        def denoised(times: Sequence[float]) -> Callable[[Tensor], Tensor]:
            """D of rows of size 1, brought to the size of `x_t`, at these times in turn."""

            def f(z: Tensor) -> Tensor:
                turn = torch.arange(len(z), device=z.device)
                t = torch.tensor(times, dtype=torch.float64, device=z.device)[turn % len(times)]
                prior = TimedField(self.prior, self.path, {name: value[turn % len(x)] for name, value in cond.items()})
                return prior.denoise(across(torch.hypot(self.path.alpha(t), self.path.sigma(t)).to(z), z) * z, t)

            return f

        for t in times:
            check_derivative(denoised([t]), probes(x, DERIVATIVE_ROWS, 0), "prior", self.prior, hint)
        check_no_steps(denoised(times), x[:1], "prior", self.prior, hint)
        _EXAMINED.add(self)


def _no_derivative(u: Tensor) -> Tensor:
    raise NotImplementedError("a method that asks for V says so: differentiates = True")


def _earliest(path: GaussianPath, dtype: torch.dtype) -> float:
    """When alpha/sigma is the fourth root of the dtype's rounding; 0 where it always is above."""
    return max(0.0, float(path.t(math.log(torch.finfo(dtype).eps) / 2)))


def _informed(path: GaussianPath, x: Tensor, t: float | Tensor, earliest: float) -> tuple[Tensor, float | Tensor]:
    """`(x_t, t)`, or before `earliest` the point at that time that says the same of x_1 (the same l)."""
    if earliest == 0 or (not isinstance(t, Tensor) and t >= earliest):
        return x, t
    exact = torch.as_tensor(t, dtype=torch.float64)
    later = exact.clamp(min=earliest)
    tilt = (path.alpha(s) / path.sigma(s) ** 2 for s in (exact, later))
    kept = torch.where(exact < earliest, next(tilt) / next(tilt), 1.0)
    return across(kept.to(x), x) * x, t.clamp(min=earliest) if isinstance(t, Tensor) else earliest


def _uphill(likelihood: Any, prior: Denoised, spread: float, cond: dict[str, Tensor]) -> Tensor:
    """`s p`, like x: how far the log-likelihood is followed from D in the direction `p = V g`; see `DPS`."""
    unknown = _is_new(likelihood)
    value, gradient = likelihood.slope(prior.data, **cond)
    if unknown:
        _look_for_steps(likelihood, prior.data, cond)
    direction = prior.covariance(gradient)
    rise, length = row_dot(gradient, direction), row_dot(direction, direction).sqrt()
    reach = (prior.variance(spread, direction).flatten() * math.prod(direction.shape[1:])).sqrt()
    tiny = torch.finfo(length.dtype).tiny
    part = (reach / length.clamp(min=tiny)).clamp(max=1.0)
    ahead = likelihood.slope(prior.data + across(part, direction) * direction, **cond)[1]
    bend = row_dot(gradient - ahead, direction) / part.clamp(min=tiny)
    share = torch.where(rise > 0, rise / (rise + torch.where(bend > 0, bend, 0.0)).clamp(min=tiny), 0.0)
    return across(share * _kept(likelihood, prior.data, direction, share, rise, value, cond), direction) * direction


def _kept(
    likelihood: Any, data: Tensor, p: Tensor, share: Tensor, rise: Tensor, value: Tensor, cond: dict[str, Tensor]
) -> Tensor:
    """By what a step `share p` is cut, `(batch,)`: to a quarter, until the posterior on its line is no lower than at D."""
    looks = data.device.type == "cpu" and not torch.compiler.is_compiling()
    kept, rounding = torch.ones_like(rise), 8 * torch.finfo(rise.dtype).eps * value.abs()
    with torch.no_grad():
        for _ in range(CUTS):
            s = kept * share
            gain = likelihood.log_likelihood(data + across(s, p) * p, **cond) - value - s**2 * rise / 2
            higher = (gain >= -rounding) | (s == 0)
            if looks and bool(higher.all()):
                break
            kept = torch.where(higher, kept, kept / 4)
    return kept


def _pulled(likelihood: LinearGaussian, prior: Denoised, spread: float, cond: dict[str, Tensor]) -> Tensor:
    """`A^T (R + v A A^T)^-1 r`, like x."""
    residual = likelihood.residual(prior.data, **cond)
    v = prior.variance(spread, residual)

    def covariance(w: Tensor) -> Tensor:
        return likelihood.std**2 * w + v * likelihood.forward(likelihood.adjoint(w, prior.data))

    w = conjugate_gradients(covariance, residual, PIGDM_ITERATIONS, likelihood.std**2)
    return likelihood.adjoint(w, prior.data)


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, least: float) -> Tensor:
    """w with `K w = b`, each row a system of its own, from w = 0: the iterate of the smallest residual.

    Arguments: product, `w -> K w`; b, `(batch, ...)`; iterations, the most of them; least, a positive lower bound of the
    eigenvalues of K. A row is done when its residual is down to the rounding, or a direction's curvature below `least / 2`; it is
    NaN where the dtype does not hold the squares of b, or its products.
    """
    w = best = torch.zeros_like(b)
    residual = direction = b
    square = smallest = row_dot(b, b)
    held = square.isfinite()
    goal, going = square * torch.finfo(b.dtype).eps ** 2, square > 0
    looks = b.device.type == "cpu" and not torch.compiler.is_compiling()
    for _ in range(iterations):
        if looks and not bool(going.any()):
            break
        image = product(direction)
        curvature = row_dot(direction, image)
        held = held & curvature.isfinite()
        going = going & (curvature > least / 2 * row_dot(direction, direction))
        step = across(torch.where(going, square / curvature.where(going, 1.0), 0.0), b)
        w, residual = w + step * direction, residual - step * image
        before, square = square, row_dot(residual, residual)
        best, smallest = select_rows(square < smallest, w, best), torch.minimum(square, smallest)
        direction = residual + across(square / before.where(going, 1.0), b) * direction
        going = going & (square > goal)
    return select_rows(held, best, torch.full_like(best, torch.nan))
