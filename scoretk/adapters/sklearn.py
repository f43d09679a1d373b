"""Densities of scikit-learn as fields: Gaussian mixtures and kernel density estimates.

A mixture is the law `sum_k w_k N(m_k, C_k)`. A kernel density estimate of data y_i with weights w_i
is

    p(x) = sum_i w_i K(|x - y_i| / h) / (c_d h^d),   c_d = int K(|u|) du over R^d

with d the dimension and h the bandwidth. With V_d the volume of the unit ball, `r = |u|`:

    kernel         K(r)            where       c_d                   law of r under a draw
    gaussian       exp(-r^2 / 2)               (2 pi)^(d/2)          of a normal
    exponential    exp(-r)                     d! V_d                Gamma(d, 1)
    tophat         1               r <= 1      V_d                   r^d uniform
    epanechnikov   1 - r^2         r <= 1      2 V_d / (d + 2)       r^2 of Beta(d/2, 2)
    linear         1 - r           r <= 1      V_d / (d + 1)         r of Beta(d, 2)
    cosine         cos(pi r / 2)   r <= 1      d V_d C_(d-1)         none in closed form

where `C_k = int_0^1 r^k cos(pi r / 2) dr`. (scikit-learn 1.9 leaves a term of C_k out in even
dimensions, so that its density of the cosine kernel does not integrate to 1 there.) The four of
bounded support have holes, in which the energy is infinite; that of tophat is constant within its
balls, and has no score.

References:
    Silverman, "Density estimation for statistics and data analysis" (1986).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from scoretk.core.devices import on
from scoretk.core.keywords import explained
from scoretk.core.rows import row_sum
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.answers import check_asked
from scoretk.fields.distribution import DistributionField, from_distribution
from scoretk.fields.foreign import nearest, owners, part_of
from scoretk.fields.gradient import grad_energy
from scoretk.fields.protocols import NoiseSource, drawn
from scoretk.fields.states import pick

__all__ = ["KernelDensityField", "from_sklearn"]

BISECTIONS = 60


@explained
def from_sklearn(estimator: Any) -> DistributionField | KernelDensityField:
    """A field with energy, score, `log_prob` and `draw` from a density of scikit-learn.

    Its numbers are float64, as scikit-learn's are.

    Args:
        estimator: A fitted `GaussianMixture`, of any type of covariance, or a fitted
            `KernelDensity` with the Euclidean metric, of any kernel.

    Returns:
        The field. That of the tophat kernel has no score, that of the cosine kernel no `draw`.

    Raises:
        InvalidArgument: It is no such density, or not fitted; or its attributes, changed by hand since,
            do not agree with each other.
    """
    kinds = {owner: make for owner, make in _KINDS.items() if owner in owners(estimator)}
    if not kinds:
        raise InvalidArgument(
            "estimator",
            estimator,
            "a GaussianMixture or a KernelDensity of scikit-learn",
            part_of(estimator)
            or nearest(estimator)
            or "Of a BayesianGaussianMixture, whose score_samples is a bound and no density, a "
            "GaussianMixture takes over weights_, means_, covariances_ and precisions_cholesky_",
        )
    name, make = next(iter(kinds.items()))
    fitted = "weights_" if name[1] == "GaussianMixture" else "tree_"
    if not hasattr(estimator, fitted):
        raise InvalidArgument("estimator", estimator, "a fitted one", "Call its fit(data) first")
    field: DistributionField | KernelDensityField = make(estimator)
    return field


def _tensor(array: Any) -> Tensor:
    return torch.tensor(array, dtype=torch.float64)  # a copy, which later fits leave alone


def _mixture(gm: Any) -> DistributionField:
    try:
        field, points, least = _of_moments(gm)
        with warnings.catch_warnings():  # of columns that had names when it was fitted
            warnings.simplefilter("ignore")
            own = _tensor(gm.score_samples(points.numpy()))
    except (AttributeError, RuntimeError, ValueError) as error:  # torch's and numpy's, of shapes
        raise _disagrees(gm, f". It raised {type(error).__name__}: {error}") from error
    # some types of covariance are asked by differences of squares, as large as the distance of 0
    rounding = 64 * torch.finfo(torch.float64).eps * float(points.square().amax()) / least
    close = (OWN if str(gm.means_.dtype) == "float64" else OWN_IN_FLOAT32) + rounding
    if not bool(((field.log_prob(points) - own).abs() <= close).all()):
        raise _disagrees(gm)
    return field


OWN, OWN_IN_FLOAT32 = 1e-3, 0.1
"""What a mixture's `score_samples` may differ by from the density of its moments, in nats: it is of
`precisions_cholesky_`, which in float32 has few digits where coordinates are nearly one.
"""


def _of_moments(gm: Any) -> tuple[DistributionField, Tensor, float]:
    """The law of a mixture's weights, means and covariances; points a standard deviation from its means
    along each axis of the components, `(points, d)`; and the least variance along one of these axes.
    """
    means, covariances = _tensor(gm.means_), _tensor(gm.covariances_)
    k, d = means.shape
    each: td.Distribution
    if gm.covariance_type in ("diag", "spherical"):
        std = covariances.sqrt().reshape(k, -1).expand(k, d)
        each, axes = td.Independent(td.Normal(means, std), 1), std.diag_embed()
    else:
        factor = torch.linalg.cholesky(covariances).expand(k, d, d)
        each, axes = td.MultivariateNormal(means, scale_tril=factor), factor.mT
    weights = td.Categorical(_tensor(gm.weights_))
    field = from_distribution(td.MixtureSameFamily(weights, each))
    points = torch.cat([means, (means[:, None] + axes).flatten(0, 1)])
    return field, points, float(axes.diagonal(dim1=1, dim2=2).square().amin())


def _disagrees(gm: Any, said: str = "") -> InvalidArgument:
    return InvalidArgument(
        "estimator",
        f"{gm}, whose score_samples is not the density of its weights_, means_ and covariances_",
        "attributes that agree with each other",
        "By hand, weights_ sum to 1, and precisions_cholesky_, by which score_samples goes, are of "
        f"covariances_, by which sample does; or fit it anew{said}",
    )


@dataclass(frozen=True, eq=False)
class KernelDensityField:
    """The static field of a kernel density estimate; made by `from_sklearn`.

    Attributes:
        data: y, `(n, d)`.
        log_weights: `log w_i`, `(n,)`, normalised.
        bandwidth: h.
        kernel: A name of the module's table.
    """

    data: Tensor
    log_weights: Tensor
    bandwidth: float
    kernel: str

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape[1:])

    @property
    def provides(self) -> frozenset[str]:
        """All of energy, score, `log_prob` and `draw` that the kernel allows."""
        lacks = {"tophat": {"score"}, "cosine": {"draw"}}.get(self.kernel, set())
        return frozenset({"energy", "score", "log_prob", "draw"} - lacks)

    def log_prob(self, x: Tensor) -> Tensor:
        """The normalised log density, `(batch, d) -> (batch,)`; `-inf` where there is none."""
        check_asked(x, self.event_shape)
        data, d = on(self.data, x.device).to(x), self.data.shape[1]
        if len(x) == 0:
            return row_sum(x)
        if "score" not in self.provides and x.requires_grad and torch.is_grad_enabled():
            raise MissingCapability(
                "A tophat KernelDensity",
                self.provides,
                {"score"},
                "Its density is constant within balls and jumps between: use draw(n, noise), or fit "
                "another kernel",
            )
        apart = (x[:, None] - data) / self.bandwidth
        square = (apart * apart).sum(2)
        kernel = _KERNELS[self.kernel](square)
        logs = kernel + on(self.log_weights, x.device).to(x)
        # of a row without any kernel the gradient is to be NaN, not an error
        return torch.logsumexp(logs, 1) - _log_norm(self.kernel, d) - d * math.log(self.bandwidth)

    def energy(self, x: Tensor) -> Tensor:
        """`-log_prob(x)`, `(batch,)`."""
        return -self.log_prob(x)

    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`E(x)`, `(batch,)`, and its gradient, like x, in one evaluation.

        Raises:
            MissingCapability: The kernel is constant where it is not 0.
        """
        return grad_energy(self.energy, x)

    def score(self, x: Tensor) -> Tensor:
        """`grad log p(x)`, like x."""
        return -self.energy_and_grad(x)[1]

    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact samples, a datum by its weight, a direction and a distance.

        Such as `field.draw(8, scoretk.Noise(0, 8))`.

        Args:
            n: How many.
            noise: Noise of as many chains, such as `scoretk.Noise(seed, n)`.

        Returns:
            `(n, d)`.

        Raises:
            MissingCapability: The law of the distance has no closed form.
        """
        if "draw" not in self.provides:
            raise MissingCapability(
                "A cosine KernelDensity",
                self.provides,
                {"draw"},
                "The law of its distances has no closed form: sample it with MALA",
            )
        d = self.data.shape[1]
        u = noise.uniform(0, Stream.START, (d + 1,), torch.float64)
        z = noise.normal(0, Stream.START, (d,), torch.float64)
        which = pick(on(self.log_weights, u.device).expand(n, -1), u[:, 0])
        if self.kernel != "gaussian":
            z = z / z.norm(dim=1, keepdim=True) * _RADII[self.kernel](u[:, 1:])[:, None]
        return on(self.data, u.device)[which] + self.bandwidth * z


def _estimate(kde: Any) -> KernelDensityField:
    data = _tensor(kde.tree_.data)
    if not _is_euclidean(kde.tree_, data):
        raise InvalidArgument(
            "estimator",
            kde,
            "a KernelDensity fitted with metric='euclidean'",
            "Others have no known norm, and a metric that is set later is that of the next fit",
        )
    weights = kde.tree_.sample_weight
    given = torch.ones(len(data), dtype=torch.float64) if weights is None else _tensor(weights)
    return KernelDensityField(
        data, (given / given.sum()).log(), float(kde.bandwidth_), str(kde.kernel)
    )


def _is_euclidean(tree: Any, data: Tensor) -> bool:
    """Whether a tree's distances are Euclidean: what the estimator says of them may be newer than it."""
    spread = (data.amax(0) - data.amin(0)).clamp(min=1e-3)
    point = data[:1] + spread * torch.linspace(1.0, 2.0, data.shape[1], dtype=torch.float64)
    found, _ = tree.query(point.numpy(), k=1)
    return math.isclose(float(found[0, 0]), float((data - point).norm(dim=1).amin()), rel_tol=1e-6)


_KINDS: Mapping[tuple[str, str], Callable[[Any], Any]] = MappingProxyType(
    {("sklearn", "GaussianMixture"): _mixture, ("sklearn", "KernelDensity"): _estimate}
)


def _root(square: Tensor) -> Tensor:
    """`sqrt`, with gradient 0 at 0, where a distance has none."""
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def _log(value: Tensor) -> Tensor:
    """`log` of what is positive, `-inf` elsewhere, with a finite gradient everywhere."""
    inside = value > 0
    return torch.where(inside, torch.where(inside, value, 1.0).log(), -torch.inf)


_KERNELS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "gaussian": lambda square: -square / 2,
        "exponential": lambda square: -_root(square),
        "tophat": lambda square: torch.where(square <= 1, 0.0, -torch.inf).to(square),
        "epanechnikov": lambda square: _log(1 - square),
        "linear": lambda square: _log(1 - _root(square)),
        # where cos is 0 it is 6e-17 in float64
        "cosine": lambda square: _log(
            torch.where(square < 1, torch.cos(math.pi / 2 * _root(square.clamp(max=1))), 0.0)
        ),
    }
)
"""`log K` of the squared distance in bandwidths."""


def _log_norm(kernel: str, d: int) -> float:
    """`log c_d`."""
    log_ball = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)
    if kernel == "gaussian":
        return d / 2 * math.log(2 * math.pi)
    factor: dict[str, Callable[[], float]] = {
        "exponential": lambda: math.lgamma(d + 1),
        "tophat": lambda: 0.0,
        "epanechnikov": lambda: math.log(2 / (d + 2)),
        "linear": lambda: -math.log(d + 1),
        "cosine": lambda: math.log(d * _cosine_moment(d - 1)),
    }
    return log_ball + factor[kernel]()


def _cosine_moment(k: int) -> float:
    """`C_k = int_0^1 r^k cos(a r) dr` with a = pi / 2, by parts twice.

    `C_k = 1/a - k (k - 1) / a^2 C_(k-2)`, `C_0 = 1/a`, `C_1 = 1/a - 1/a^2`.
    """
    a = math.pi / 2
    if k < 2:
        return 1 / a - k / a**2
    return 1 / a - k * (k - 1) / a**2 * _cosine_moment(k - 2)


def _beta_of_two(u: Tensor, a: float) -> Tensor:
    """The inverse distribution function of Beta(a, 2): `F(x) = x^a (1 + a (1 - x))`."""
    low, high = torch.zeros_like(u), torch.ones_like(u)
    for _ in range(BISECTIONS):
        x = (low + high) / 2
        below = x**a * (1 + a * (1 - x)) < u
        low, high = torch.where(below, x, low), torch.where(below, high, x)
    return (low + high) / 2


_RADII: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "exponential": lambda u: -u.log().sum(1),
        "tophat": lambda u: u[:, 0] ** (1 / u.shape[1]),
        "epanechnikov": lambda u: _beta_of_two(u[:, 0], u.shape[1] / 2).sqrt(),
        "linear": lambda u: _beta_of_two(u[:, 0], u.shape[1]),
    }
)
"""The distance in bandwidths from d uniforms, `(n, d) -> (n,)`."""
