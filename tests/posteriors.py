"""Posteriors with reference draws, written as a user writes them first: nothing scaled, nothing centred."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.distributions.constraints import positive, real

import scoretk as stk


@cache
def data():
    with np.load(Path(__file__).parent / "data" / "posteriors.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def sblrc(x):
    beta, sigma = x[:, :5], x[:, 5]
    residual = data()["sblrc/y"].to(x) - beta @ data()["sblrc/X"].to(x).T
    likelihood = (residual / sigma[:, None]).square().sum(1) / 2 + 100 * sigma.log()
    return likelihood + (beta / 10).square().sum(1) / 2 + (sigma / 10).square() / 2


def kilpisjarvi(x):
    alpha, beta, sigma = x.unbind(1)
    y = data()["kilpisjarvi/y"].to(x)
    residual = y - alpha[:, None] - beta[:, None] * data()["kilpisjarvi/x"].to(x)
    likelihood = (residual / sigma[:, None]).square().sum(1) / 2 + 62 * sigma.log()
    return likelihood + ((alpha - y.mean()) / 100).square() / 2 + (beta * 30).square() / 2


def arma(x):
    mu, phi, theta, sigma = x.unbind(1)
    y = data()["arma/y"].to(x)
    before = torch.cat([mu[:, None], y[:-1].expand(len(x), -1)], 1)
    error, factor, shift = y - mu[:, None] - phi[:, None] * before, -theta, 1
    while shift < len(y):  # error_t = u_t - theta error_(t-1), by doubling
        error = error + factor[:, None] * torch.nn.functional.pad(error[:, :-shift], (shift, 0))
        factor, shift = factor.square(), 2 * shift
    likelihood = (error / sigma[:, None]).square().sum(1) / 2 + len(y) * sigma.log()
    prior = (mu / 10).square() / 2 + (phi / 2).square() / 2 + (theta / 2).square() / 2
    return likelihood + prior + (sigma / 2.5).square().log1p()


def mesquite(x):
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    columns = [data()[f"mesquite/{name}"].log() for name in names]
    design = torch.stack([torch.ones_like(columns[0]), *columns, data()["mesquite/group"]], 1).to(x)
    residual = data()["mesquite/weight"].log().to(x) - x[:, :7] @ design.T
    return (residual / x[:, 7:]).square().sum(1) / 2 + 46 * x[:, 7].log()


def gp(x):
    rho, alpha, sigma = x.unbind(1)
    at, y = data()["gp/x"].to(x), data()["gp/y"].to(x)
    kernel = (-(at[:, None] - at).square() / (2 * rho.square()[:, None, None])).exp()
    covariance = alpha.square()[:, None, None] * kernel + sigma[:, None, None] * torch.eye(11).to(x)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    z = torch.linalg.solve_triangular(factor, y[:, None].expand(len(x), 11, 1), upper=False)[..., 0]
    likelihood = z.square().sum(1) / 2 + factor.diagonal(dim1=1, dim2=2).log().sum(1)
    prior = 4 * rho - 24 * rho.log() + (alpha / 2).square() / 2 + sigma.square() / 2
    return torch.where(failed == 0, likelihood + prior, torch.inf)


@dataclass(frozen=True)
class Posterior:
    """An energy of real parameters followed by positive ones, and what its reference draws say."""

    name: str
    energy: object
    reals: int
    positives: int

    def field(self, form):
        """In the user's space with a constraint, or with logarithms that the user takes."""
        k, n = self.reals, self.reals + self.positives
        if form == "constrained":
            parts = [(real, k), (positive, self.positives)] if k else positive
            return stk.constrained(stk.Energy(self.energy, (n,)), parts)
        return stk.Energy(lambda z: self.energy(self.user(z)) - z[:, k:].sum(1), (n,))

    def user(self, z):
        return torch.cat([z[..., : self.reals], z[..., self.reals :].exp()], -1)

    def known(self, what):
        return data()[f"{self.name}/{what}"]


POSTERIORS = {
    p.name: p
    for p in (
        Posterior("arma", arma, 3, 1),
        Posterior("gp", gp, 0, 3),
        Posterior("kilpisjarvi", kilpisjarvi, 2, 1),
        Posterior("mesquite", mesquite, 7, 1),
        Posterior("sblrc", sblrc, 5, 1),
    )
}
