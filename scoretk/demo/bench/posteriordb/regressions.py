"""Linear and logistic regressions, in the units of their data.

    y_i ~ N(sum_k beta_k x_ik, sigma^2),    logit P(y_i = 1) = sum_k beta_k x_ik

with flat priors where none is named. Books have these in columns that are far from 0 and correlated;
so they are here.

References:
    Gelman, Hill, "Data analysis using regression and multilevel/hierarchical models" (2006), for the
    regressions of children's scores, earnings, mesquite bushes, party identification, wells, votes
    and radon.
    Bürkner, "brms: an R package for Bayesian multilevel models using Stan" (2017), for that of
    diamonds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.distributions.constraints import positive

from scoretk.demo.bench.posteriordb.model import (
    Arrays,
    Model,
    bernoulli,
    cauchy,
    gaussian,
    ones_beside,
    student,
)

__all__ = ["REGRESSIONS"]

Prior = Callable[[Tensor, Tensor], Tensor]
"""The energy of (beta, sigma), `(batch,)`."""


def _flat(beta: Tensor, sigma: Tensor) -> Tensor:
    return torch.zeros_like(sigma)


def _cauchy_scale(beta: Tensor, sigma: Tensor) -> Tensor:
    return cauchy(sigma, 2.5)


def _normal(beta: Tensor, sigma: Tensor) -> Tensor:
    return gaussian(beta, 10.0) + (sigma / 10).square() / 2


def _linear(y: Tensor, design: Tensor, prior: Prior = _flat) -> Model:
    """A linear regression on the columns of a design, `(n, k)`."""

    def energy(beta: Tensor, sigma: Tensor) -> Tensor:
        return gaussian(y - beta @ design.T, sigma) + prior(beta, sigma)

    return Model({"beta": (design.shape[1],), "sigma": positive}, energy)


def _logistic(y: Tensor, *columns: Tensor) -> Model:
    """A logistic regression with an intercept `alpha` of its own."""
    features = torch.stack(columns, 1)

    def energy(alpha: Tensor, beta: Tensor) -> Tensor:
        return bernoulli(alpha[:, None] + beta @ features.T, y)

    return Model({"alpha": (), "beta": (features.shape[1],)}, energy)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean()


def _levels(x: Tensor, *which: int) -> list[Tensor]:
    """A column of 0 and 1 for each of some levels of a factor."""
    return [(x == level).double() for level in which]


def blr(data: Arrays) -> Model:
    """Priors N(0, 10^2), half of it for sigma."""
    return _linear(data["y"], data["X"], _normal)


def kidscore_momhs(data: Arrays) -> Model:
    return _linear(data["kid_score"], ones_beside(data["mom_hs"]), _cauchy_scale)


def kidscore_momiq(data: Arrays) -> Model:
    return _linear(data["kid_score"], ones_beside(data["mom_iq"]), _cauchy_scale)


def kidscore_momhsiq(data: Arrays) -> Model:
    return _linear(data["kid_score"], ones_beside(data["mom_hs"], data["mom_iq"]), _cauchy_scale)


def _interaction(y: Tensor, a: Tensor, b: Tensor, prior: Prior = _flat) -> Model:
    """On two columns and their product."""
    return _linear(y, ones_beside(a, b, a * b), prior)


def kidscore_interaction(data: Arrays) -> Model:
    return _interaction(data["kid_score"], data["mom_hs"], data["mom_iq"], _cauchy_scale)


def kidscore_interaction_c(data: Arrays) -> Model:
    return _interaction(data["kid_score"], _centred(data["mom_hs"]), _centred(data["mom_iq"]))


def kidscore_interaction_c2(data: Arrays) -> Model:
    """About an even share of high schools and an IQ of 100."""
    return _interaction(data["kid_score"], data["mom_hs"] - 0.5, data["mom_iq"] - 100)


def kidscore_interaction_z(data: Arrays) -> Model:
    """In units of two standard deviations."""
    a, b = (_centred(x) / (2 * x.std()) for x in (data["mom_hs"], data["mom_iq"]))
    return _interaction(data["kid_score"], a, b)


def kidscore_mom_work(data: Arrays) -> Model:
    return _linear(data["kid_score"], ones_beside(*_levels(data["mom_work"], 2, 3, 4)))


def earn_height(data: Arrays) -> Model:
    return _linear(data["earn"], ones_beside(data["height"]))


def log10earn_height(data: Arrays) -> Model:
    return _linear(data["earn"].log10(), ones_beside(data["height"]))


def logearn_height(data: Arrays) -> Model:
    return _linear(data["earn"].log(), ones_beside(data["height"]))


def logearn_height_male(data: Arrays) -> Model:
    return _linear(data["earn"].log(), ones_beside(data["height"], data["male"]))


def logearn_logheight_male(data: Arrays) -> Model:
    return _linear(data["earn"].log(), ones_beside(data["height"].log(), data["male"]))


def logearn_interaction(data: Arrays) -> Model:
    return _interaction(data["earn"].log(), data["height"], data["male"])


def logearn_interaction_z(data: Arrays) -> Model:
    height = _centred(data["height"]) / data["height"].std()
    return _interaction(data["earn"].log(), height, data["male"])


MEASURES = ("diam1", "diam2", "canopy_height", "total_height", "density")


def mesquite(data: Arrays) -> Model:
    return _linear(data["weight"], ones_beside(*(data[m] for m in MEASURES), data["group"]))


def logmesquite(data: Arrays) -> Model:
    columns = [data[m].log() for m in MEASURES]
    return _linear(data["weight"].log(), ones_beside(*columns, data["group"]))


def _canopy(data: Arrays) -> tuple[Tensor, Tensor, Tensor]:
    """The logarithms of the canopy's volume, area and shape."""
    one, other, height = (data[m].log() for m in MEASURES[:3])
    return one + other + height, one + other, one - other


def logmesquite_logvolume(data: Arrays) -> Model:
    return _linear(data["weight"].log(), ones_beside(_canopy(data)[0]))


def logmesquite_logva(data: Arrays) -> Model:
    return _linear(data["weight"].log(), ones_beside(*_canopy(data)[:2], data["group"]))


def logmesquite_logvash(data: Arrays) -> Model:
    columns = (*_canopy(data), data["total_height"].log(), data["group"])
    return _linear(data["weight"].log(), ones_beside(*columns))


def logmesquite_logvas(data: Arrays) -> Model:
    columns = (*_canopy(data), data["total_height"].log(), data["density"].log(), data["group"])
    return _linear(data["weight"].log(), ones_beside(*columns))


def nes(data: Arrays) -> Model:
    """Party identification, age in four levels."""
    columns = (
        data["real_ideo"],
        data["race_adj"],
        *_levels(data["age_discrete"], 2, 3, 4),
        data["educ1"],
        data["gender"],
        data["income"],
    )
    return _linear(data["partyid7"], ones_beside(*columns))


def sesame_one_pred_a(data: Arrays) -> Model:
    return _linear(data["watched"], ones_beside(data["encouraged"]))


def kilpisjarvi(data: Arrays) -> Model:
    """Summer temperatures on years, neither of which is centred."""
    x, y = data["x"], data["y"]

    def energy(alpha: Tensor, beta: Tensor, sigma: Tensor) -> Tensor:
        prior = ((alpha - data["pmualpha"]) / data["psalpha"]).square() / 2
        prior = prior + ((beta - data["pmubeta"]) / data["psbeta"]).square() / 2
        return gaussian(y - alpha[:, None] - beta[:, None] * x, sigma) + prior

    return Model({"alpha": (), "beta": (), "sigma": positive}, energy)


def radon_pooled(data: Arrays) -> Model:
    x, y = data["floor_measure"], data["log_radon"]

    def energy(alpha: Tensor, beta: Tensor, sigma_y: Tensor) -> Tensor:
        prior = sigma_y.square() / 2 + (alpha / 10).square() / 2 + (beta / 10).square() / 2
        return gaussian(y - alpha[:, None] - beta[:, None] * x, sigma_y) + prior

    return Model({"alpha": (), "beta": (), "sigma_y": positive}, energy)


def diamonds(data: Arrays) -> Model:
    """Prices on powers of sizes and kinds, columns centred: `b ~ N(0, 1)`, the others Student's t."""
    features, y = data["X"][:, 1:], data["Y"]
    features = features - features.mean(0)
    told = 0.0 if bool(data["prior_only"]) else 1.0

    def energy(b: Tensor, intercept: Tensor, sigma: Tensor) -> Tensor:
        prior = gaussian(b, 1.0) + student(intercept - 8, 3, 10) + student(sigma, 3, 10)
        return told * gaussian(y - intercept[:, None] - b @ features.T, sigma) + prior

    def parameters(values: Arrays) -> Arrays:
        return {"b": values["b"], "Intercept": values["intercept"], "sigma": values["sigma"]}

    variables = {"b": (features.shape[1],), "intercept": (), "sigma": positive}
    return Model(variables, energy, parameters)


def wells_dist(data: Arrays) -> Model:
    """Distances in metres, both coefficients in one vector."""
    design, y = ones_beside(data["dist"]), data["switched"]
    return Model({"beta": (2,)}, lambda beta: bernoulli(beta @ design.T, y))


def wells_dist100_model(data: Arrays) -> Model:
    return _logistic(data["switched"], data["dist"] / 100)


def wells_dist100ars_model(data: Arrays) -> Model:
    return _logistic(data["switched"], data["dist"] / 100, data["arsenic"])


def wells_interaction_c_model(data: Arrays) -> Model:
    distance, arsenic = _centred(data["dist"]) / 100, _centred(data["arsenic"])
    return _logistic(data["switched"], distance, arsenic, distance * arsenic)


def nes_logit_model(data: Arrays) -> Model:
    return _logistic(data["vote"], data["income"])


REGRESSIONS: Mapping[str, Callable[[Arrays], Model]] = MappingProxyType(
    {
        model.__name__: model
        for model in (
            blr,
            kidscore_momhs,
            kidscore_momiq,
            kidscore_momhsiq,
            kidscore_interaction,
            kidscore_interaction_c,
            kidscore_interaction_c2,
            kidscore_interaction_z,
            kidscore_mom_work,
            earn_height,
            log10earn_height,
            logearn_height,
            logearn_height_male,
            logearn_logheight_male,
            logearn_interaction,
            logearn_interaction_z,
            mesquite,
            logmesquite,
            logmesquite_logvolume,
            logmesquite_logva,
            logmesquite_logvash,
            logmesquite_logvas,
            nes,
            sesame_one_pred_a,
            kilpisjarvi,
            radon_pooled,
            diamonds,
            wells_dist,
            wells_dist100_model,
            wells_dist100ars_model,
            wells_interaction_c_model,
            nes_logit_model,
        )
    }
)
"""By the names of posteriordb."""
