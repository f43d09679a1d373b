"""A static field on a Gaussian path.

`p_t` is the law of `x_t = alpha x_1 + sigma eps` with `x_1 ~ p = exp(-E) / Z`.

The denoiser `D(x, t) = E[x_1 | x_t = x]` is a mean over the posterior
`p(x_1 | x) ~ exp(-E(x_1)) N(x; alpha x_1, sigma^2 I)`. A reference `N(m, s^2)` of the data (s one
number, or one a coordinate) has a posterior of its own, `N(mu, r^2)` with

    mu  = (alpha x + (sigma/s)^2 m) / (alpha^2 + (sigma/s)^2),
    r^2 = sigma^2 / (alpha^2 + (sigma/s)^2),

which is `N(x/alpha, (sigma/alpha)^2)` for s = inf, the reference itself where alpha = 0, and the
point `x/alpha` where sigma = 0. In `u = (x_1 - mu) / r` the likelihood cancels, and with
`g(u) = E(x_1) - |(x_1 - m) / s|^2 / 2`

    p(u | x) ~ exp(-|u|^2 / 2 - g(u)).

*Monte Carlo*: `u_k ~ N(0, I)`, weights `w_k ~ exp(-g(u_k))`. *Langevin*: S steps that keep N(0, I)
where g is constant,

    u' = a u - (1 - a) b grad g(u) + sqrt(1 - a^2) z,      a = exp(-h),      b = 1/S, 2/S, ..., 1,

from `u ~ N(0, I)`. They are not corrected by acceptance, which would make D discontinuous in x, but
by their weight, that of annealed importance sampling with `N_b` the density of a step and of its
reversal,

    w ~ exp(-|u_S|^2 / 2 - g(u_S) + |u_0|^2 / 2)  prod_s N_b(u_(s-1) | u_s) / N_b(u_s | u_(s-1)),

so that either mean is consistent as the samples grow, whatever S and h are, and smooth in x.
Without an energy there are no weights: then b = 1, all weights are equal, and the bias of the steps
remains.

The normals are antithetic pairs, fixed by the seed and shared by all rows and times. The standard
error is a jackknife that leaves out one pair at a time: it agrees with the delta method where many
samples share the weight, and does not vanish where one has it all.

References:
    Akhound-Sadegh, Rector-Brooks, Bose, Mittal, Lemos, Liu, Sendera, Ravanbakhsh, Gidel, Bengio,
    Malkin, Tong, "Iterated denoising energy matching for sampling from Boltzmann densities" (2024).
    Huang, Dong, Hao, Ma, Zhang, "Reverse diffusion Monte Carlo" (2024).
    Neal, "Annealed importance sampling" (2001).
    Thin, Kotelevskii, Doucet, Durmus, Moulines, Panov, "Monte Carlo variational auto-encoders"
    (2021): the weight of unadjusted steps.
    Efron, Stein, "The jackknife estimate of variance" (1981).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from scoretk.core.arguments import count, option, positive, tensor_like
from scoretk.core.devices import constant_like, on, precise
from scoretk.core.keywords import explained
from scoretk.core.noise import Noise, derive
from scoretk.core.rows import across, finite_rows, row_dot, row_sum, select_rows
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.base import NormalBase, standard_normal
from scoretk.fields.convert import check_time
from scoretk.fields.foreign import no_field
from scoretk.fields.paths import VP, GaussianPath, check_path
from scoretk.fields.protocols import field_name, is_field, is_timed, offers, way_to_energy
from scoretk.fields.resolve import static
from scoretk.fields.wrapped import Kind, Wrapped
from scoretk.fields.wrappers import GaussianPathField

__all__ = ["Denoised", "Smoothed", "smoothed"]

ESTIMATORS = ("monte-carlo", "langevin")
DIRECTIONS = 2**32
"""The index of the directions' seed among those derived from the user's: beyond any count of calls,
and not that of the chains.
"""


class Denoised(NamedTuple):
    """An estimate of the denoiser and how good it is.

    Attributes:
        mean: `E[x_1 | x_t = x]`, like x.
        stderr: The root of its expected squared Euclidean error, `(batch,)`, in units of x_1.
        effective: The effective number of samples, `1 / sum_k w_k^2`, `(batch,)`.
    """

    mean: Tensor
    stderr: Tensor
    effective: Tensor


@explained
def smoothed(
    field: Any,
    path: GaussianPath = VP(),  # noqa: B008 (frozen)
    estimator: str = "monte-carlo",
    *,
    samples: int = 256,
    steps: int = 32,
    step_size: float = 0.05,
    reference: tuple[Any, Any] | Tensor | None = None,
    seed: int = 0,
) -> Smoothed:
    """A static field on a Gaussian path, so that solvers in time can sample it.

    See the module's docstring.

    Args:
        field: Static, with an energy (of any normalisation); for "langevin" a score is enough.
        path: A `GaussianPath`.
        estimator: "monte-carlo" (one energy a sample; for few dimensions, or late times), or
            "langevin" (`steps + 1` energies and gradients a sample; for more dimensions).
        samples: K, even, at least 4: antithetic pairs, for each row. An evaluation holds `batch K`
            events at once; the `batch` of `sample` bounds that.
        steps: S, the number of steps of "langevin".
        step_size: h, the size of a step of "langevin", in units of the reference's posterior: below
            about the ratio of the data's smallest variance to that of the reference, and with `S h`
            of order 1 or more.
        reference: `(m, s)`, each a number or of the event shape, or samples of the data
            `(n, *event_shape)` whose mean and standard deviation are taken; None for N(0, I). It
            should cover the data; a poor one costs effective samples.
        seed: The seed of the normals.

    Returns:
        A field in time, with `error` and `estimate` besides the usual methods.

    Raises:
        InvalidArgument: An argument does not fit.
        UnknownName: No estimator has this name.
        MissingCapability: The field is timed already, or has no energy where one is needed.
    """
    if not is_field(field):
        raise no_field("field", field, "a static field, such as scoretk.Energy(fn, event_shape)")
    check_path(path)
    option("estimator", estimator, ESTIMATORS)
    langevin, has, shape = estimator == "langevin", offers(field), tuple(field.event_shape)
    if is_timed(field):
        raise MissingCapability(
            field_name(field),
            {f"{name}(x, t)" for name in has},
            {"energy(x)"},
            "It is timed already: solvers in time serve it as it is, and field.at(t) is its static "
            "field at time t",
        )
    if not has & ({"energy", "score"} if langevin else {"energy"}):
        if "score" in has:
            bridge = "estimator='langevin' needs the score only"
        else:
            bridge = way_to_energy(field, "Give it energy(x) or score(x)")
        raise MissingCapability(field_name(field), has, {"energy"}, bridge)
    if count("samples", samples, least=4) % 2:
        raise InvalidArgument(
            "samples", samples, "an even number: the samples come in antithetic pairs"
        )
    count("steps", steps, least=1)
    noise = Noise(derive(seed, DIRECTIONS), samples // 2)
    normals = [noise.normal(0, Stream.START, shape)]
    if langevin:
        normals += [noise.normal(s, Stream.PROPOSAL, shape) for s in range(steps)]
    mean, std = _reference(reference, shape)
    return Smoothed(
        field,
        path,
        mean,
        std,
        torch.stack(normals),
        positive("step_size", step_size),
        "energy" in has,
    )


def _reference(value: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in float64, each of shape () or of the event's."""
    expected = f"(mean, std), samples of shape (n, {', '.join(map(str, shape))}), or None"
    if value is None:
        value = (0.0, 1.0)
    elif isinstance(value, Tensor):
        data = tensor_like("reference", value, (None, *shape)).double()
        if len(data) < 2:
            raise InvalidArgument("reference", value, "at least two samples")
        value = (data.mean(0), data.std(0))
    if not isinstance(value, tuple) or len(value) != 2:
        raise InvalidArgument("reference", value, expected)
    mean, std = (
        tensor_like("reference", v, shape if getattr(v, "ndim", 0) else ()).detach().cpu()
        for v in value
    )
    if not bool((std > 0).all()):
        hint = "A coordinate that never varies has none: give (mean, std) with a positive std"
        raise InvalidArgument("reference", value, "positive standard deviations", hint)
    return mean.double(), std.double()


@dataclass(frozen=True, eq=False)
class Smoothed(Wrapped, GaussianPathField):
    """A static field on a Gaussian path, its denoiser estimated; made by `smoothed`.

    Attributes:
        field: The static field.
        path: The Gaussian path.
        mean: Of the reference, of shape () or of the event's, float64.
        std: Of the reference, likewise.
        directions: The normals, `(1 + S, K/2, *event_shape)`.
        step_size: h.
        weighted: Whether the field's energy weights the samples.
    """

    field: Any
    path: GaussianPath
    mean: Tensor
    std: Tensor
    directions: Tensor
    step_size: float
    weighted: bool

    kind = Kind.NOISED
    computed = GaussianPathField.provides
    predicts = "data"

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.field,)

    @property
    def base(self) -> NormalBase:
        """N(0, sigma(0)^2 I)."""
        return standard_normal(self.event_shape, float(self.path.sigma(0.0)))

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """The estimate of `E[x_1 | x_t = x]`, like x."""
        return self.estimate(x, t, **cond).mean

    def error(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """The denoiser's standard error, in units of x_1; times `alpha / sigma^2` it is the
        score's.

        It is the root of the expected squared Euclidean error, infinite where one pair of samples
        has all the weight. Without an energy it includes how far the mean score over the samples,
        zero in equilibrium, would still move the mean. Modes that the steps do not reach, and the
        bias of their size, show in no score and are not in it.

        Returns:
            `(batch,)`.
        """
        return self.estimate(x, t, **cond).stderr

    def estimate(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Denoised:
        """The denoiser with its standard error and effective number of samples, in one evaluation.

        Samples of infinite or NaN energy have no weight; a row in which no sample has any is NaN.

        Args:
            x: `(batch, *event_shape)`.
            t: A scalar or one time a row, in [0, 1].
            cond: Condition values, one row a row of x.

        Returns:
            The three, as `Denoised`.
        """
        center, radius = self._posterior(x, t)
        k = 2 * self.directions.shape[1]
        rows = {name: value.repeat_interleave(k, 0) for name, value in cond.items()}
        target = _Whitened(
            self.field,
            center.repeat_interleave(k, 0),
            radius.repeat_interleave(k, 0),
            constant_like(self.mean, x),
            constant_like(self.std, x),
            rows,
        )
        u, log_weight, pull = (
            self._anneal(target) if len(self.directions) > 1 else self._propose(target)
        )
        if self.weighted:
            usable = log_weight.isfinite()
            u = select_rows(usable, u, torch.zeros_like(u))
            log_weight = log_weight.where(usable, -torch.inf)
        weights = torch.softmax(rearrange(log_weight, "(batch k) -> batch k", k=k), 1)
        mean, variance = _jackknife(weights, rearrange(u, "(batch k) ... -> batch k ...", k=k))
        if pull is not None:
            pulls = rearrange(pull, "(batch k) ... -> batch k ...", k=k)
            drift, spread = _jackknife(weights, pulls)
            variance = variance + (drift.square() - spread).clamp(min=0)
        stderr = row_sum(radius.square() * variance).sqrt()
        return Denoised(center + radius * mean, stderr, 1 / weights.square().sum(1))

    def _posterior(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """`mu` and r of the reference's posterior, like x."""
        check_time(t, x)
        exact = precise(t)
        std = on(self.std, x.device)
        alpha, sigma = (
            across(f(exact), x).to(std.dtype) for f in (self.path.alpha, self.path.sigma)
        )
        total = alpha**2 + (sigma / std) ** 2
        gain, shrink = (alpha / total).to(x), ((sigma / std) ** 2 / total).to(x)
        return gain * x + shrink * constant_like(self.mean, x), (sigma / total.sqrt()).to(
            x
        ).expand_as(x)

    def _normal(self, index: int, target: _Whitened) -> Tensor:
        """Normals `(batch K, *event)`: for each row the same antithetic pairs."""
        half = constant_like(self.directions, target.center)[index]
        both = torch.cat([half, -half])
        return repeat(both, "k ... -> (batch k) ...", batch=len(target.center) // len(both))

    def _propose(self, target: _Whitened) -> tuple[Tensor, Tensor, None]:
        u = self._normal(0, target)
        return u, -target.potential(u), None

    def _anneal(self, target: _Whitened) -> tuple[Tensor, Tensor, Tensor | None]:
        """The samples after the Langevin steps.

        Returns:
            The positions u `(batch K, *event)`, their log weights `(batch K,)`, and, where they are
            not weighted, the posterior's score there.
        """
        steps = len(self.directions) - 1
        a = math.exp(-self.step_size)
        c, spread = -math.expm1(-self.step_size), math.sqrt(-math.expm1(-2 * self.step_size))
        u = self._normal(0, target)
        log_weight = u.new_zeros(len(u))
        value, grad = target.potential_and_grad(u, self.weighted)
        for s in range(1, steps + 1):
            b, z = s / steps if self.weighted else 1.0, self._normal(s, target)
            drift, free, back = c * b * grad, a * u + spread * z, spread * u - a * z
            u = free - drift
            value, grad = target.potential_and_grad(u, self.weighted)
            if self.weighted:
                # |free|^2 + |back|^2 = |u|^2 + |z|^2: the large squares cancel, what is left is
                # of the drift's order.
                shift = (a * drift + c * b * grad) / spread
                log_weight = (
                    log_weight
                    - (row_dot(drift, drift - 2 * free) + row_dot(shift, shift + 2 * back)) / 2
                )
        return (u, log_weight - value, None) if self.weighted else (u, log_weight, -u - grad)


@dataclass(frozen=True, eq=False)
class _Whitened:
    """The posterior in `u = (x_1 - mu) / r`, relative to the reference's: the potential g.

    Attributes:
        field: The static field.
        center: mu, `(rows, *event)`.
        radius: r, like center.
        mean: m of the reference.
        std: s of the reference.
        cond: Condition values, one row a row.
    """

    field: Any
    center: Tensor
    radius: Tensor
    mean: Tensor
    std: Tensor
    cond: dict[str, Tensor]

    def potential(self, u: Tensor) -> Tensor:
        """`g(u) = E(x_1) - |(x_1 - m) / s|^2 / 2`, `(rows,)`."""
        x = self.center + self.radius * u
        return (
            static(self.field).energy(x, **self.cond)
            - row_sum(((x - self.mean) / self.std).square()) / 2
        )

    def potential_and_grad(self, u: Tensor, weighted: bool) -> tuple[Tensor, Tensor]:
        """`g(u)`, `(rows,)`, and its gradient, like u; unweighted, without an energy, g is 0."""
        x = self.center + self.radius * u
        off = (x - self.mean) / self.std
        if not weighted:
            return u.new_zeros(len(u)), self.radius * (
                -static(self.field).score(x, **self.cond) - off / self.std
            )
        energy, slope = static(self.field).energy_and_grad(x, **self.cond)
        grad = self.radius * (slope - off / self.std)
        # Any drift has exact weights, as a step and its reversal share it: where the energy has no
        # gradient there is none.
        return energy - row_sum(off.square()) / 2, select_rows(
            finite_rows(grad), grad, torch.zeros_like(grad)
        )


def _jackknife(weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean and its variance by leaving out one antithetic pair at a time.

    Without pair i the mean moves by `-sum_pair w (value - mean) / (1 - sum_pair w)`.

    Args:
        weights: `(batch, K)`, which sum to 1.
        values: `(batch, K, *event)`, the members of a pair K/2 apart.

    Returns:
        Mean and variance, `(batch, *event)` each.
    """
    pairs = weights.shape[1] // 2
    share = weights.reshape(weights.shape + (1,) * (values.ndim - 2))
    mean = (share * values).sum(1)
    part = (share * (values - mean[:, None])).unflatten(1, (2, pairs)).sum(1)
    rest = 1 - share.unflatten(1, (2, pairs)).sum(1)
    moved = torch.where(rest > 0, part / rest, torch.inf)
    return mean, (pairs - 1) / pairs * moved.square().sum(1)
