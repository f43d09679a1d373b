"""Hierarchies, Gaussian processes and mixtures.

References:
    Rubin, "Estimation in parallel randomized experiments" (1981), for the eight schools.
    Riutort-Mayol, Bürkner, Andersen, Solin, Vehtari, "Practical Hilbert space approximate Bayesian
    Gaussian processes for probabilistic programming" (2022), for the process of the accelerations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.distributions.constraints import positive, unit_interval

from scoretk.demo.bench.posteriordb.model import Arrays, Model, cauchy, gaussian, student
from scoretk.fields.layout import Variable
from scoretk.fields.supports import ordered

__all__ = ["HIERARCHIES"]


def eight_schools_centered(data: Arrays) -> Model:
    """`theta_j ~ N(mu, tau^2)`, a funnel where tau is small."""
    y, errors = data["y"], data["sigma"]

    def energy(theta: Tensor, mu: Tensor, tau: Tensor) -> Tensor:
        prior = cauchy(tau, 5) + (mu / 5).square() / 2
        seen = ((y - theta) / errors).square().sum(1) / 2
        return prior + gaussian(theta - mu[:, None], tau) + seen

    return Model({"theta": (len(y),), "mu": (), "tau": positive}, energy)


def eight_schools_noncentered(data: Arrays) -> Model:
    """`theta_j = mu + tau z_j`, `z_j ~ N(0, 1)`."""
    y, errors = data["y"], data["sigma"]

    def schools(z: Tensor, mu: Tensor, tau: Tensor) -> Tensor:
        return mu[..., None] + tau[..., None] * z

    def energy(theta_trans: Tensor, mu: Tensor, tau: Tensor) -> Tensor:
        seen = ((y - schools(theta_trans, mu, tau)) / errors).square().sum(1) / 2
        return seen + gaussian(theta_trans, 1.0) + cauchy(tau, 5) + (mu / 5).square() / 2

    def parameters(values: Arrays) -> Arrays:
        return {**values, "theta": schools(values["theta_trans"], values["mu"], values["tau"])}

    return Model({"theta_trans": (len(y),), "mu": (), "tau": positive}, energy, parameters)


def _exponentiated(x: Tensor, rho: Tensor, alpha: Tensor) -> Tensor:
    """`alpha^2 exp(-(x_i - x_j)^2 / (2 rho^2))`, `(batch, n, n)`."""
    squares = (x[:, None] - x).square()
    return alpha.square()[:, None, None] * (-squares / (2 * rho.square()[:, None, None])).exp()


def _gamma_and_half_normal(rho: Tensor, alpha: Tensor) -> Tensor:
    """`rho ~ Gamma(25, 4), alpha ~ N(0, 2^2)`."""
    return 4 * rho - 24 * rho.log() + (alpha / 2).square() / 2


def gp_regr(data: Arrays) -> Model:
    """A Gaussian process seen with noise of *variance* sigma."""
    x, y = data["x"], data["y"]
    identity = torch.eye(len(x), dtype=x.dtype)

    def energy(rho: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        covariance = _exponentiated(x, rho, alpha) + sigma[:, None, None] * identity
        root, failed = torch.linalg.cholesky_ex(covariance)
        z = torch.linalg.solve_triangular(root, y[:, None].expand(len(rho), -1, 1), upper=False)
        seen = z.square().sum((1, 2)) / 2 + root.diagonal(dim1=1, dim2=2).log().sum(1)
        prior = _gamma_and_half_normal(rho, alpha) + sigma.square() / 2
        return torch.where(failed == 0, seen + prior, torch.inf)

    return Model(dict.fromkeys(("rho", "alpha", "sigma"), positive), energy)


def gp_pois_regr(data: Arrays) -> Model:
    """Counts whose log rates are a Gaussian process, by its root of the covariance times N(0, I)."""
    x, counts = data["x"], data["k"]
    jitter = 1e-10 * torch.eye(len(x), dtype=x.dtype)

    def process(rho: Tensor, alpha: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        root, failed = torch.linalg.cholesky_ex(_exponentiated(x, rho, alpha) + jitter)
        return (root @ z[..., None])[..., 0], failed

    def energy(rho: Tensor, alpha: Tensor, f_tilde: Tensor) -> Tensor:
        f, failed = process(rho, alpha, f_tilde)
        seen = f.exp().sum(1) - f @ counts
        prior = _gamma_and_half_normal(rho, alpha) + gaussian(f_tilde, 1.0)
        return torch.where(failed == 0, seen + prior, torch.inf)

    def parameters(values: Arrays) -> Arrays:
        return {**values, "f": process(values["rho"], values["alpha"], values["f_tilde"])[0]}

    variables = {"rho": positive, "alpha": positive, "f_tilde": (len(x),)}
    return Model(variables, energy, parameters)


def accel_gp(data: Arrays) -> Model:
    """Accelerations whose mean and log deviation are Gaussian processes, by eigenfunctions."""
    y = data["Y"]
    parts = [("", data["Xgp_1"], data["slambda_1"])]
    parts += [("sigma_", data["Xgp_sigma_1"], data["slambda_sigma_1"])]
    told = 0.0 if bool(data["prior_only"]) else 1.0

    def process(
        deviation: Tensor, length: Tensor, z: Tensor, basis: Tensor, roots: Tensor
    ) -> Tensor:
        """With the square root of the spectral density at the eigenvalues' roots as weights."""
        log_weight = (2 * deviation.log() + math.log(2 * math.pi) / 2 + length.log())[
            :, None
        ] - length[:, None].square() * roots.square().sum(1) / 2
        return ((log_weight / 2).exp() * z) @ basis.T

    def energy(intercept: Tensor, intercept_sigma: Tensor, **values: Tensor) -> Tensor:
        prior = student(intercept + 13, 3, 36) + student(intercept_sigma, 3, 10)
        made = []
        for kind, basis, roots in parts:
            deviation, length, z = (values[f"{n}_{kind}1"] for n in ("sdgp", "lscale", "zgp"))
            prior = prior + student(deviation, 3, 36) + gaussian(z, 1.0)
            prior = prior + 2.124909 * length.log() + 0.0177 / length
            made.append(process(deviation, length, z, basis, roots))
        scale = (intercept_sigma[:, None] + made[1]).exp()
        return told * gaussian(y - intercept[:, None] - made[0], scale) + prior

    def parameters(values: Arrays) -> Arrays:
        new = {"intercept": "Intercept", "intercept_sigma": "Intercept_sigma"}
        return {new.get(name, name): value for name, value in values.items()}

    variables = {
        "intercept": (),
        "intercept_sigma": (),
        **{f"{n}_{kind}1": positive for kind, _, _ in parts for n in ("sdgp", "lscale")},
        **{f"zgp_{kind}1": (basis.shape[1],) for kind, basis, _ in parts},
    }
    return Model(variables, energy, parameters)


def low_dim_gauss_mix(data: Arrays) -> Model:
    """Two normals of any weights, means and deviations, means in order."""
    y = data["y"]

    def energy(mu: Tensor, sigma: Tensor, theta: Tensor) -> Tensor:
        share = torch.stack([theta.log(), torch.log1p(-theta)], 1)
        z = (y[:, None] - mu[:, None]) / sigma[:, None]
        seen = (share - sigma.log())[:, None] - z.square() / 2
        prior = gaussian(mu, 2.0) + gaussian(sigma, 2.0) - 4 * share.sum(1)
        return prior - seen.logsumexp(2).sum(1)

    variables = {
        "mu": Variable((2,), ordered),
        "sigma": Variable((2,), positive),
        "theta": unit_interval,
    }
    return Model(variables, energy)


HIERARCHIES: Mapping[str, Callable[[Arrays], Model]] = MappingProxyType(
    {
        "eight_schools_centered": eight_schools_centered,
        "eight_schools_noncentered": eight_schools_noncentered,
        "gp_regr": gp_regr,
        "gp_pois_regr": gp_pois_regr,
        "accel_gp": accel_gp,
        "low_dim_gauss_mix": low_dim_gauss_mix,
    }
)
"""By the names of posteriordb."""
