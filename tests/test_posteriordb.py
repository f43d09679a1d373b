"""Reference posteriors: models against laws written another way, the user's folder, and what is judged."""

import json
import zipfile

import numpy as np
import pytest
import torch
import torch.distributions as D
from scipy.integrate import solve_ivp

import scoretk as stk
from scoretk.cli import main
from scoretk.demo.bench import reference, tables
from scoretk.demo.bench.posteriordb import MODELS, archived, dynamics, target_of
from scoretk.demo.bench.recursion import autoregressive, log_product
from scoretk.demo.bench.reference import Agreement, Found, against_reference, agreement
from scoretk.demo.bench.target import Reference, Target
from scoretk.fields.variables import variables_of
from tests.posteriors import POSTERIORS
from tests.posteriors import data as known_data

N, ROWS = 7, 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def uniforms(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=generator(seed))


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def levels(seed):
    return torch.tensor([1.0, 2, 3, 4, 2, 3, 4], dtype=torch.float64).roll(seed)


SHRUB = {
    **{
        name: 0.5 + uniforms(N, seed=i)
        for i, name in enumerate(("diam1", "diam2", "canopy_height", "total_height", "density"))
    },
    "group": (normals(N, seed=8) > 0).double(),
    "weight": 100 * uniforms(N, seed=9),
}
CHILD = {
    "kid_score": 90 + normals(N),
    "mom_hs": number([0.0, 1, 1, 0, 1, 1, 0]),
    "mom_iq": 100 + 10 * normals(N, seed=1),
    "mom_work": levels(0),
}
EARNER = {
    "earn": 1e3 * (1 + uniforms(N)),
    "height": 65 + normals(N, seed=1),
    "male": CHILD["mom_hs"],
}
WELL = {
    "switched": CHILD["mom_hs"],
    "dist": 50 * uniforms(N),
    "arsenic": uniforms(N, seed=1),
    "vote": CHILD["mom_hs"],
    "income": levels(1),
}
VOTER = {
    "partyid7": normals(N),
    "age_discrete": levels(2),
    **{
        name: normals(N, seed=i)
        for i, name in enumerate(("real_ideo", "race_adj", "educ1", "gender", "income"), 3)
    },
}


def columns(*parts):
    return torch.stack([torch.ones(N, dtype=torch.float64), *parts], 1)


def standard(x, times=1):
    return (x - x.mean()) / (times * x.std())


def logs(*names):
    return [SHRUB[name].log() for name in names]


hs, iq = CHILD["mom_hs"], CHILD["mom_iq"]
height, male = EARNER["height"], EARNER["male"]
one, other, canopy, total, density = logs(
    "diam1", "diam2", "canopy_height", "total_height", "density"
)
group, earnings = SHRUB["group"], EARNER["earn"].log()
about = (hs - hs.mean(), iq - iq.mean())
near = (hs - 0.5, iq - 100)
units = (standard(hs, 2), standard(iq, 2))
dummies = [(levels(0) == k).double() for k in (2, 3, 4)]
ages = [(levels(2) == k).double() for k in (2, 3, 4)]
LINEAR = {
    "kidscore_momhs": (CHILD, "kid_score", columns(hs)),
    "kidscore_momiq": (CHILD, "kid_score", columns(iq)),
    "kidscore_momhsiq": (CHILD, "kid_score", columns(hs, iq)),
    "kidscore_interaction": (CHILD, "kid_score", columns(hs, iq, hs * iq)),
    "kidscore_interaction_c": (CHILD, "kid_score", columns(*about, about[0] * about[1])),
    "kidscore_interaction_c2": (CHILD, "kid_score", columns(*near, near[0] * near[1])),
    "kidscore_interaction_z": (CHILD, "kid_score", columns(*units, units[0] * units[1])),
    "kidscore_mom_work": (CHILD, "kid_score", columns(*dummies)),
    "earn_height": (EARNER, "earn", columns(height)),
    "log10earn_height": (EARNER, earnings / np.log(10), columns(height)),
    "logearn_height": (EARNER, earnings, columns(height)),
    "logearn_height_male": (EARNER, earnings, columns(height, male)),
    "logearn_logheight_male": (EARNER, earnings, columns(height.log(), male)),
    "logearn_interaction": (EARNER, earnings, columns(height, male, height * male)),
    "logearn_interaction_z": (
        EARNER,
        earnings,
        columns(standard(height), male, standard(height) * male),
    ),
    "mesquite": (SHRUB, "weight", columns(*(SHRUB[n] for n in list(SHRUB)[:5]), group)),
    "logmesquite": (
        SHRUB,
        SHRUB["weight"].log(),
        columns(one, other, canopy, total, density, group),
    ),
    "logmesquite_logvolume": (SHRUB, SHRUB["weight"].log(), columns(one + other + canopy)),
    "logmesquite_logva": (
        SHRUB,
        SHRUB["weight"].log(),
        columns(one + other + canopy, one + other, group),
    ),
    "logmesquite_logvash": (
        SHRUB,
        SHRUB["weight"].log(),
        columns(one + other + canopy, one + other, one - other, total, group),
    ),
    "logmesquite_logvas": (
        SHRUB,
        SHRUB["weight"].log(),
        columns(one + other + canopy, one + other, one - other, total, density, group),
    ),
    "nes": (
        VOTER,
        "partyid7",
        columns(
            VOTER["real_ideo"],
            VOTER["race_adj"],
            *ages,
            VOTER["educ1"],
            VOTER["gender"],
            VOTER["income"],
        ),
    ),
    "sesame_one_pred_a": ({"watched": normals(N), "encouraged": hs}, "watched", columns(hs)),
    "blr": ({"X": columns(hs, iq), "y": normals(N)}, "y", columns(hs, iq)),
}
HALF_CAUCHY = {"kidscore_momhs", "kidscore_momiq", "kidscore_momhsiq", "kidscore_interaction"}


def linear(name, beta, sigma):
    data, y, design = LINEAR[name]
    y = data[y] if isinstance(y, str) else y
    made = D.Normal(beta @ design.T, sigma[:, None]).log_prob(y).sum(1)
    if name in HALF_CAUCHY:
        return made + D.Cauchy(number(0.0), number(2.5)).log_prob(sigma)
    if name == "blr":
        law = D.Normal(number(0.0), number(10.0))
        return made + law.log_prob(beta).sum(1) + law.log_prob(sigma)
    return made


# The others, step by step.

SCHOOLS = {"y": 10 * normals(4), "sigma": 10 + normals(4, seed=1)}
SEQUENCE = {"y": normals(9), "K": number(2), "sigma1": number(0.5)}
STATES = {
    "u": uniforms(6),
    "v": uniforms(6, seed=1),
    "alpha": number([[4.0, 2.0], [1.5, 3.0]]),
    "tau": number(0.5),
    "rho": number(0.7),
    "y": 5 + 4 * normals(6),
}
DOG = (uniforms(3, 6) > 0.5).double()
DOG[:, 0] = 1
PROCESS = {"x": number([-2.0, -1, 0, 1.5, 3]), "y": normals(5), "k": number([1.0, 0, 3, 2, 4])}
SPLINE = {
    "Y": normals(N),
    "Xgp_1": normals(N, 3, seed=1),
    "slambda_1": uniforms(3, 1, seed=2),
    "Xgp_sigma_1": normals(N, 2, seed=3),
    "slambda_sigma_1": uniforms(2, 1, seed=4),
    "prior_only": number(0.0),
}
GEM = {"X": columns(*normals(3, N)), "Y": normals(N), "prior_only": number(0.0)}
RATE = {name: number(float(k)) for k, name in enumerate(("k", "k1", "k2", "n", "n1", "n2"), 3)}
PREY = {
    "ts": number([1.0, 2, 3]),
    "y_init": number([20.0, 5.0]),
    "y": number([[25.0, 6], [40, 8], [30, 12]]),
}
DOSE = {
    "t0": number(0.0),
    "D": number(30.0),
    "V": number(2.0),
    "times": number([0.5, 1, 4]),
    "C_hat": number([2.0, 5, 7]),
}


def ar_k(alpha, beta, sigma):
    y = SEQUENCE["y"]
    made = D.Normal(0, 10.0).log_prob(alpha) + D.Normal(0, 10.0).log_prob(beta).sum(1)
    made = made + D.Cauchy(number(0.0), number(2.5)).log_prob(sigma)
    for t in range(2, len(y)):
        mean = alpha + beta[:, 0] * y[t - 1] + beta[:, 1] * y[t - 2]
        made = made + D.Normal(mean, sigma).log_prob(y[t])
    return made


def arma11(mu, phi, theta, sigma):
    y, made = SEQUENCE["y"], D.Normal(0, 10.0).log_prob(mu)
    made = made + D.Normal(0, 2.0).log_prob(phi) + D.Normal(0, 2.0).log_prob(theta)
    made = made + D.Cauchy(number(0.0), number(2.5)).log_prob(sigma)
    error = y[0] - mu - phi * mu
    made = made + D.Normal(0, sigma).log_prob(error)
    for t in range(1, len(y)):
        error = y[t] - (mu + phi * y[t - 1] + theta * error)
        made = made + D.Normal(0, sigma).log_prob(error)
    return made


def garch11(mu, alpha0, alpha1, share):
    y, variance = SEQUENCE["y"], SEQUENCE["sigma1"].square()
    made = (1 - alpha1).log() + D.Normal(mu, variance.sqrt()).log_prob(y[0])
    for t in range(1, len(y)):
        variance = alpha0 + alpha1 * (y[t - 1] - mu) ** 2 + (1 - alpha1) * share * variance
        made = made + D.Normal(mu, variance.sqrt()).log_prob(y[t])
    return made


def forward(theta1, theta2, emission):
    """Probabilities, not logarithms, state by state; `emission(t)` is `(batch, 2)`."""
    alike = emission(0).exp()
    for t in range(1, 6):
        ahead = [alike[:, 0] * theta1[:, k] + alike[:, 1] * theta2[:, k] for k in (0, 1)]
        alike = torch.stack(ahead, 1) * emission(t).exp()
    return alike.sum(1).log()


def hmm_example(theta1, theta2, low, gap):
    mu = torch.stack([low, low + gap], 1)
    made = forward(theta1, theta2, lambda t: D.Normal(mu, 1.0).log_prob(STATES["y"][t]))
    return made + D.Normal(3, 1.0).log_prob(low) + D.Normal(10, 1.0).log_prob(low + gap)


def rows_of(theta1, theta2):
    return sum(
        D.Dirichlet(a).log_prob(theta)
        for a, theta in zip(STATES["alpha"], (theta1, theta2), strict=True)
    )


def near_0_and_3(pair):
    return D.Normal(0, 1.0).log_prob(pair[:, 0]) + D.Normal(3, 1.0).log_prob(pair[:, 1])


def hmm_drive_0(theta1, theta2, phi_low, phi_gap, lambda_low, lambda_gap):
    phi, lam = (
        torch.stack([a, a + b], 1) for a, b in ((phi_low, phi_gap), (lambda_low, lambda_gap))
    )

    def emission(t):
        u, v = STATES["u"][t], STATES["v"][t]
        return D.Exponential(phi).log_prob(u) + D.Exponential(lam).log_prob(v)

    made = forward(theta1, theta2, emission) + rows_of(theta1, theta2)
    return made + near_0_and_3(phi) + near_0_and_3(lam)


def hmm_drive_1(theta1, theta2, phi, lam):
    def emission(t):
        u, v = STATES["u"][t], STATES["v"][t]
        by = D.Normal(phi, STATES["tau"]).log_prob(u)
        return by + D.Normal(lam, STATES["rho"]).log_prob(v)

    made = forward(theta1, theta2, emission) + rows_of(theta1, theta2)
    return made + near_0_and_3(phi) + near_0_and_3(lam)


def schools(theta, mu, tau):
    return (
        D.Normal(theta, SCHOOLS["sigma"]).log_prob(SCHOOLS["y"]).sum(1)
        + D.Cauchy(number(0.0), number(5.0)).log_prob(tau)
        + D.Normal(0, 5.0).log_prob(mu)
    )


def eight_schools_centered(theta, mu, tau):
    return schools(theta, mu, tau) + D.Normal(mu[:, None], tau[:, None]).log_prob(theta).sum(1)


def eight_schools_noncentered(theta_trans, mu, tau):
    made = schools(mu[:, None] + tau[:, None] * theta_trans, mu, tau)
    return made + D.Normal(0, 1.0).log_prob(theta_trans).sum(1)


def kernel(rho, alpha, noise):
    x = PROCESS["x"]
    squares = (x[:, None] - x) ** 2
    made = [a**2 * (-squares / (2 * r**2)).exp() for r, a in zip(rho, alpha, strict=True)]
    return torch.stack(made) + torch.diag_embed(noise[:, None].expand(-1, 5))


def smooth(rho, alpha):
    made = D.Gamma(number(25.0), number(4.0)).log_prob(rho)
    return made + D.Normal(0, number(2.0)).log_prob(alpha)


def gp_regr(rho, alpha, sigma):
    law = D.MultivariateNormal(torch.zeros(5, dtype=torch.float64), kernel(rho, alpha, sigma))
    return law.log_prob(PROCESS["y"]) + smooth(rho, alpha) + D.Normal(0, 1.0).log_prob(sigma)


def gp_pois_regr(rho, alpha, f_tilde):
    root = torch.linalg.cholesky(kernel(rho, alpha, torch.full_like(rho, 1e-10)))
    f = torch.einsum("bij,bj->bi", root, f_tilde)
    made = D.Poisson(f.exp()).log_prob(PROCESS["k"]).sum(1)
    return made + smooth(rho, alpha) + D.Normal(0, 1.0).log_prob(f_tilde).sum(1)


def accel_gp(intercept, intercept_sigma, **v):
    def process(deviation, length, z, basis, roots):
        density = (
            deviation**2
            * (2 * np.pi) ** 0.5
            * length
            * (-(length**2) * (roots**2).sum(1)[:, None] / 2).exp()
        )
        return (basis * 1.0) @ (density.sqrt() * z.T)

    t36 = D.StudentT(number(3.0), number(0.0), number(36.0))
    scale_law = D.InverseGamma(number(1.124909), number(0.0177))
    made = D.StudentT(number(3.0), number(-13.0), number(36.0)).log_prob(intercept)
    made = made + D.StudentT(number(3.0), number(0.0), number(10.0)).log_prob(intercept_sigma)
    paths = []
    for kind in ("", "sigma_"):
        deviation, length, z = (v[f"{n}_{kind}1"] for n in ("sdgp", "lscale", "zgp"))
        made = made + t36.log_prob(deviation) + scale_law.log_prob(length)
        made = made + D.Normal(0, 1.0).log_prob(z).sum(1)
        basis, roots = SPLINE[f"Xgp_{kind}1"], SPLINE[f"slambda_{kind}1"]
        paths.append(process(deviation, length, z, basis, roots).T)
    scale = (intercept_sigma[:, None] + paths[1]).exp()
    return made + D.Normal(intercept[:, None] + paths[0], scale).log_prob(SPLINE["Y"]).sum(1)


def low_dim_gauss_mix(mu, sigma, theta):
    made = D.Beta(number(5.0), number(5.0)).log_prob(theta)
    law = D.Normal(0, 2.0)
    made = made + law.log_prob(mu).sum(1) + law.log_prob(sigma).sum(1)
    one, other = (
        D.Normal(mu[:, k, None], sigma[:, k, None]).log_prob(normals(8)).exp() for k in (0, 1)
    )
    return made + (theta[:, None] * one + (1 - theta)[:, None] * other).log().sum(1)


def shocks(probability):
    """Trial by trial, from how often a dog was shocked and avoided it before."""
    made = 0.0
    for dog in DOG:
        shocked = avoided = 0.0
        for y in dog:
            p = probability(shocked, avoided)
            made = made + (p.log() if y else torch.log1p(-p))
            shocked, avoided = shocked + float(y), avoided + 1 - float(y)
    return made


def dogs(beta):
    prior = D.Normal(0, 100.0).log_prob(beta).sum(1)
    return prior + shocks(lambda s, a: (beta[:, 0] + beta[:, 1] * a + beta[:, 2] * s).sigmoid())


def dogs_log(avoided, shocked):
    return shocks(lambda s, a: (avoided * a + shocked * s).sigmoid())


def dogs_hierarchical(a, b):
    return shocks(lambda s, avoided: a**s * b**avoided)


def rate(theta, hits, trials):
    return D.Binomial(int(RATE[trials]), theta).log_prob(RATE[hits])


def m0_model(omega, p):
    made = 0.0
    for row in (uniforms(6, 3) > 0.6).double():
        caught = omega * D.Bernoulli(p[:, None]).log_prob(row).sum(1).exp()
        made = made + (caught if row.any() else caught + 1 - omega).log()
    return made


def solved(slope, start, times):
    return torch.from_numpy(
        solve_ivp(slope, (0, times[-1]), start, t_eval=times, rtol=1e-9, atol=1e-10).y.T
    )


def lotka_volterra(theta, z_init, sigma):
    def path(th, z):
        a, b, c, d = th.tolist()
        return solved(
            lambda t, z: [(a - b * z[1]) * z[0], (-c + d * z[0]) * z[1]],
            z.tolist(),
            PREY["ts"].tolist(),
        )

    z = torch.stack([path(th, z) for th, z in zip(theta, z_init, strict=True)])
    made = D.LogNormal(z_init.log(), sigma).log_prob(PREY["y_init"]).sum(1)
    made = made + D.LogNormal(z.log(), sigma[:, None]).log_prob(PREY["y"]).sum((1, 2))
    made = made + D.Normal(1, 0.5).log_prob(theta[:, ::2]).sum(1)
    made = made + D.Normal(0.05, 0.05).log_prob(theta[:, 1::2]).sum(1)
    made = made + D.LogNormal(-1, 1.0).log_prob(sigma).sum(1)
    return made + D.LogNormal(number(np.log(10)), 1.0).log_prob(z_init).sum(1)


def one_comp_mm_elim_abs(k_a, K_m, V_m, sigma):
    dose, volume = float(DOSE["D"]), float(DOSE["V"])

    def path(k, m, v):
        def slope(t, c):
            return [np.exp(-k * t) * dose * k / volume - v / volume * c[0] / (m + c[0])]

        return solved(slope, [0.0], DOSE["times"].tolist())[:, 0]

    made = torch.stack([path(*map(float, row)) for row in zip(k_a, K_m, V_m, strict=True)])
    made = D.LogNormal(made.log(), sigma[:, None]).log_prob(DOSE["C_hat"]).sum(1)
    law = D.HalfCauchy(number(1.0))
    return made + sum(law.log_prob(x) for x in (k_a, K_m, V_m, sigma))


def kilpisjarvi(alpha, beta, sigma):
    made = D.Normal(1.0, 3.0).log_prob(alpha) + D.Normal(-1.0, 2.0).log_prob(beta)
    mean = alpha[:, None] + beta[:, None] * KILPIS["x"]
    return made + D.Normal(mean, sigma[:, None]).log_prob(KILPIS["y"]).sum(1)


KILPIS = {
    "x": 2 * normals(N),
    "y": normals(N, seed=1),
    "pmualpha": number(1.0),
    "psalpha": number(3.0),
    "pmubeta": number(-1.0),
    "psbeta": number(2.0),
}
RADON = {"floor_measure": hs, "log_radon": normals(N)}


def radon_pooled(alpha, beta, sigma_y):
    made = D.Normal(0, 1.0).log_prob(sigma_y)
    made = made + D.Normal(0, 10.0).log_prob(alpha) + D.Normal(0, 10.0).log_prob(beta)
    mean = alpha[:, None] + beta[:, None] * hs
    return made + D.Normal(mean, sigma_y[:, None]).log_prob(RADON["log_radon"]).sum(1)


def diamonds(b, intercept, sigma):
    made = D.Normal(0, 1.0).log_prob(b).sum(1)
    made = made + D.StudentT(number(3.0), number(8.0), number(10.0)).log_prob(intercept)
    made = made + D.StudentT(number(3.0), number(0.0), number(10.0)).log_prob(sigma)
    features = GEM["X"][:, 1:]
    mean = intercept[:, None] + b @ (features - features.mean(0)).T
    return made + D.Normal(mean, sigma[:, None]).log_prob(GEM["Y"]).sum(1)


def logistic(*features, y="switched"):
    def law(alpha, beta):
        logits = alpha[:, None] + sum(beta[:, k, None] * x for k, x in enumerate(features))
        return D.Bernoulli(logits=logits).log_prob(WELL[y]).sum(1)

    return law


def wells_dist(beta):
    logits = beta[:, :1] + beta[:, 1:] * WELL["dist"]
    return D.Bernoulli(logits=logits).log_prob(WELL["switched"]).sum(1)


far, arsenic = WELL["dist"] / 100, WELL["arsenic"]
LAWS = {
    "kilpisjarvi": (KILPIS, kilpisjarvi),
    "radon_pooled": (RADON, radon_pooled),
    "diamonds": (GEM, diamonds),
    "wells_dist": (WELL, wells_dist),
    "wells_dist100_model": (WELL, logistic(far)),
    "wells_dist100ars_model": (WELL, logistic(far, arsenic)),
    "wells_interaction_c_model": (
        WELL,
        logistic(
            far - far.mean(),
            arsenic - arsenic.mean(),
            (far - far.mean()) * (arsenic - arsenic.mean()),
        ),
    ),
    "nes_logit_model": (WELL, logistic(WELL["income"], y="vote")),
    "arK": (SEQUENCE, ar_k),
    "arma11": (SEQUENCE, arma11),
    "garch11": (SEQUENCE, garch11),
    "hmm_example": (STATES, hmm_example),
    "hmm_drive_0": (STATES, hmm_drive_0),
    "hmm_drive_1": (STATES, hmm_drive_1),
    "eight_schools_centered": (SCHOOLS, eight_schools_centered),
    "eight_schools_noncentered": (SCHOOLS, eight_schools_noncentered),
    "gp_regr": (PROCESS, gp_regr),
    "gp_pois_regr": (PROCESS, gp_pois_regr),
    "accel_gp": (SPLINE, accel_gp),
    "low_dim_gauss_mix": ({"y": normals(8)}, low_dim_gauss_mix),
    "dogs": ({"y": DOG}, dogs),
    "dogs_log": ({"y": DOG}, dogs_log),
    "dogs_hierarchical": ({"y": DOG}, dogs_hierarchical),
    "Rate_1_model": (RATE, lambda theta: rate(theta, "k", "n")),
    "Rate_2_model": (
        RATE,
        lambda theta1, theta2: rate(theta1, "k1", "n1") + rate(theta2, "k2", "n2"),
    ),
    "Rate_3_model": (RATE, lambda theta: rate(theta, "k1", "n1") + rate(theta, "k2", "n2")),
    "Rate_4_model": (RATE, lambda theta, thetaprior: rate(theta, "k", "n")),
    "Rate_5_model": (RATE, lambda theta: rate(theta, "k1", "n1") + rate(theta, "k2", "n2")),
    "M0_model": ({"y": (uniforms(6, 3) > 0.6).double()}, m0_model),
    "lotka_volterra": (PREY, lotka_volterra),
    "one_comp_mm_elim_abs": (DOSE, one_comp_mm_elim_abs),
    **{
        name: (data, lambda beta, sigma, name=name: linear(name, beta, sigma))
        for name, (data, _, _) in LINEAR.items()
    },
}
NEAR = {
    "dogs_log": {"avoided": number(-0.3), "shocked": number(0.1)},
    "lotka_volterra": {
        "theta": number([0.55, 0.028, 0.8, 0.024]),
        "z_init": number([30.0, 6.0]),
        "sigma": number([0.3, 0.2]),
    },
    "one_comp_mm_elim_abs": {
        n: number(v)
        for n, v in zip(("k_a", "K_m", "V_m", "sigma"), (0.7, 2.0, 1.0, 0.3), strict=True)
    },
}


TOLERANCE = {"lotka_volterra": 1e-4, "one_comp_mm_elim_abs": 1e-4, "gp_pois_regr": 1e-5}


def points(name, model):
    """Variables by name within their supports."""
    if name in NEAR:
        return {
            n: value * (1 + uniforms(ROWS, *value.shape, seed=k) / 5)
            for k, (n, value) in enumerate(NEAR[name].items())
        }
    named = variables_of(model.variables)
    return named.layout.split(named.constrain(normals(ROWS, named.free.size, seed=7) / 2))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_are_what_their_laws_say(name):
    """Up to a constant, at points of the support; and the field is the same law in free space."""
    data, law = LAWS[name]
    model = MODELS[name](data)
    values = points(name, model)
    made = model.energy(**values)
    assert made.shape == (ROWS,)
    off = made + law(**values)
    assert float((off - off.mean()).abs().max()) < TOLERANCE.get(name, 1e-8) * float(made.std())
    other = made - law(**{n: v.roll(1, 0) for n, v in values.items()})
    assert float(other.std()) > 0.01, "points at which the law says nothing"
    assert model.field().event_shape == (variables_of(model.variables).free.size,)


@pytest.mark.parametrize("name", ["arma", "gp", "kilpisjarvi", "mesquite", "sblrc"])
def test_the_five_are_those_that_the_default_is_held_to(name):
    """Energies written apart (tests/posteriors.py), on the data of posteriordb."""
    data = {n.partition("/")[2]: v for n, v in known_data().items() if n.startswith(f"{name}/")}
    data |= {"T": number(200.0), "pmualpha": data["y"].mean() if "y" in data else number(0.0)}
    data |= {"psalpha": number(100.0), "pmubeta": number(0.0), "psbeta": number(1 / 30)}
    of = {"arma": "arma11", "gp": "gp_regr", "mesquite": "logmesquite", "sblrc": "blr"}
    model = MODELS[of.get(name, name)](data)
    named = variables_of(model.variables)
    spread = POSTERIORS[name].known("sd")
    x = POSTERIORS[name].known("mean") + normals(ROWS, len(spread)) * spread / 3
    off = model.energy(**named.layout.split(x)) - POSTERIORS[name].energy(x)
    assert float((off - off.mean()).abs().max()) < 1e-6


# Means of posteriordb's reference draws, and their Monte-Carlo errors.
PUBLISHED = {
    "logmesquite_logva": (
        [5.22413625845132, 0.612229191684084, 0.292417332746266, -0.527324726594322],
        [0.000918247, 0.002003120, 0.002472657, 0.001189863],
    ),
    "logmesquite_logvash": (
        [
            5.30991111507,
            0.38717666200,
            0.40963935784,
            -0.31746362874,
            0.42345526277,
            -0.53855443473,
        ],
        [0.00170214, 0.00283124, 0.00300455, 0.00229450, 0.00316864, 0.00122004],
    ),
    "logmesquite_logvas": (
        [
            *(5.35152488111, 0.37589195825, 0.39743947989, -0.37489457479),
            *(0.38936340651, 0.11003919075, -0.58471389259),
        ],
        [0.00177751, 0.00290736, 0.00303434, 0.00243810, 0.00329243, 0.00125730, 0.00134499],
    ),
    "logmesquite_logvolume": ([5.17084758451, 0.72200851943], [0.000873165, 0.000563652]),
    "mesquite": (
        [
            *(-727.038221507, 187.037002473, 373.695945425, 355.612262706),
            *(-101.687497479, 132.059069903, -365.330401223),
        ],
        [1.50383375, 1.19584761, 1.29772566, 2.26548993, 1.92110560, 0.36262239, 1.06538074],
    ),
}


def least_squares(name, off=0.0):
    """The mode given any sigma, which is the mean under a flat prior, by a step of Newton's."""
    data = {n.partition("/")[2]: v.double() for n, v in known_data().items() if "mesquite/" in n}
    data = {n: v + off if n == "group" else v for n, v in data.items()}
    model, start = MODELS[name](data), torch.zeros(len(PUBLISHED[name][0]), dtype=torch.float64)

    def energy(beta):
        return model.energy(beta=beta[None], sigma=number([1.0]))[0]

    grad, hessian = (f(energy, start) for f in (gradient, torch.autograd.functional.hessian))
    return start - torch.linalg.solve(hessian, grad)


def gradient(energy, start):
    x = start.clone().requires_grad_()
    return torch.autograd.grad(energy(x), x)[0]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_means_of_regressions_are_the_published_ones(name):
    mean, error = map(number, PUBLISHED[name])
    assert float(((least_squares(name) - mean) / error).abs().max()) < 5
    if len(mean) > 2:
        moved = least_squares(name, off=0.1)
        assert float(((moved - mean) / error).abs().max()) > 5, "a column that is off is not seen"


def test_recursions_are_their_steps():
    u, f = normals(3, 11), number([[0.5], [-0.9], [1.1]])
    state, steps = torch.zeros(3, dtype=torch.float64), []
    for t in range(11):
        state = u[:, t] + f[:, 0] * state
        steps.append(state)
    assert torch.allclose(autoregressive(u, f), torch.stack(steps, 1), atol=1e-12)
    for n in (1, 2, 5, 8):
        m = normals(2, n, 3, 3)
        product = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
        for t in range(n):
            product = product @ m[:, t].exp()
        assert torch.allclose(log_product(m), product.log())


def test_steps_of_differential_equations_are_short_enough(monkeypatch):
    """A tenth of the error in a law that the test of models allows; twice the step is seen."""
    data, law = LAWS["lotka_volterra"]
    values = points("lotka_volterra", MODELS["lotka_volterra"](data))

    def error():
        off = MODELS["lotka_volterra"](data).energy(**values) + law(**values)
        return float((off - off.mean()).abs().max())

    fine = error()
    monkeypatch.setattr(dynamics, "YEAR", 1.0)
    assert fine < 1e-3 * error()


# The user's folder.


def packed(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(f"{path}.zip", "w") as archive:
        archive.writestr(path.name, json.dumps(value))


def exact(shift=0.0, seed=0):
    """Draws of the posterior of 6 hits in 10 trials under a uniform prior."""
    rng = np.random.default_rng(seed)
    return rng.beta(7, 5, size=(10, 400)) + shift


OTHERS = {
    "other-none": {"model_name": "none"},
    "bare-Rate_1_model": {"reference_posterior_name": None},
}


@pytest.fixture
def checkout(tmp_path):
    """A folder laid out as posteriordb is, with a posterior of a model; others of none, and without draws."""

    def made(shift=0.0, others=False, **changed):
        root = tmp_path / "posterior_database"
        described = {
            "name": "hits-Rate_1_model",
            "model_name": "Rate_1_model",
            "data_name": "hits",
            "reference_posterior_name": "hits-Rate_1_model",
            **changed,
        }
        folder = root / "posteriors"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hits-Rate_1_model.json").write_text(json.dumps(described))
        if others:
            for name, part in OTHERS.items():
                (folder / f"{name}.json").write_text(json.dumps({**described, **part}))
        packed(root / "data" / "data" / "hits.json", {"n": 10, "k": 6})
        chains = [{"theta": list(chain)} for chain in exact(shift)]
        packed(root / "reference_posteriors" / "draws" / "draws" / "hits-Rate_1_model.json", chains)
        return tmp_path

    return made


def test_a_checkout_is_read(checkout):
    folder = checkout(others=True)
    for place in (folder, folder / "posterior_database"):
        assert set(archived(place)) == {"hits-Rate_1_model", *OTHERS}
    found = archived(folder)["hits-Rate_1_model"]
    assert found.data() == {"n": number(10.0), "k": number(6.0)}
    assert found.draws()["theta"].shape == (10, 400)
    assert not archived(None)
    assert target_of(found).reference.draws["theta"].shape == (10, 400)


def test_posteriors_that_cannot_be_tried_are_in_plain_sight(checkout, monkeypatch):
    """Those of models that are not here have a row; those without reference draws have nothing to be held to."""
    monkeypatch.setattr(tables, "against_reference", lambda *_: told())
    rows = list(tables.reference(tables.Asked(quick=False, data=checkout(others=True))))
    assert [(row["target"], row["reached"]) for row in rows] == [
        ("hits-Rate_1_model", "yes"),
        ("other-none", "no"),
    ]
    assert "'none'" in rows[1]["cause"]


def test_arrays_beside_each_other_are_read(tmp_path):
    folder = tmp_path / "posteriordb"
    folder.mkdir()
    np.savez(
        folder / "hits-Rate_1_model.npz", **{"data/n": 10, "data/k": 6, "draws/theta": exact()}
    )
    (found,) = archived(tmp_path).values()
    assert (found.name, found.model) == ("hits-Rate_1_model", "Rate_1_model")
    assert target_of(found).reference.draws["theta"].shape == (10, 400)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda root: (root / "data/data/hits.json.zip").unlink(), "hits.json.zip"),
        (lambda root: (root / "data/data/hits.json.zip").write_bytes(b"no"), "whole file"),
        (lambda root: packed(root / "data/data/hits.json", {"n": 10}), "'k'"),
        (lambda root: packed(root / "data/data/hits.json", {"n": "ten", "k": 6}), "numbers"),
        (lambda root: packed(root / "data/data/hits.json", [1]), "JSON object"),
        (lambda root: packed(draws_of(root), {"theta": [1]}), "chains"),
        (lambda root: packed(draws_of(root), [{"theta": [1, 2]}, {"theta": [1]}]), "equal rows"),
        (lambda root: packed(draws_of(root), [{"theta": [1]}, {"phi": [1]}]), "same parameters"),
    ],
)
def test_what_is_wrong_in_a_checkout_is_said(checkout, spoil, told):
    folder = checkout()
    spoil(folder / "posterior_database")
    (row,) = tables.reference(tables.Asked(quick=False, data=folder))
    assert row["reached"] == "no"
    assert told in row["cause"]


def draws_of(root):
    return root / "reference_posteriors/draws/draws/hits-Rate_1_model.json"


def test_a_posterior_without_reference_draws_says_so(checkout):
    folder = checkout(reference_posterior_name=None)
    asked = tables.Asked(targets=("hits-Rate_1_model",), data=folder)
    (row,) = tables.reference(asked)
    assert "reference draws" in row["cause"]


# What is judged.


def with_one_far_off(x):
    return torch.cat([x[:-1], x[-1:] * 0 + 500.0])


def numbers(n, seed=0, scale=1.0, shift=0.0, chains=10):
    return shift + scale * normals(chains, n, 3, seed=seed)


@pytest.mark.parametrize(
    ("mine", "right"),
    [
        (numbers(500, 1), True),
        (numbers(500, 1, shift=0.15), False),
        (numbers(500, 1, scale=1.15), False),
        (numbers(500, 1, scale=0.87), False),
        (numbers(500, 1) * number([1.0, 1.0, torch.nan]), False),
        (with_one_far_off(numbers(500, 1, chains=64)), False),
        (numbers(500, 1) * number([1.0, 1.0, 0.0]), False),
    ],
)
def test_draws_are_those_of_the_reference_or_not(mine, right):
    assert agreement(mine, numbers(500), ["a", "b", "c"]).right == right


def test_draws_that_are_right_are_seldom_called_wrong():
    """At a rate of a thousandth of all: none of 40 sets, and one of 40 at most by chance."""
    right = [
        agreement(numbers(100, 2 * s), numbers(100, 2 * s + 1), "abc").right for s in range(40)
    ]
    assert sum(right) >= 39


def told(z=1.0, problems=()):
    close = Agreement((z, "mu"), (1.0, "tau"), 1.02, 2)
    return Found(close, 2000.0, 900.0, 2.2, tuple(problems), 1.0)


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        (told(), ""),
        (told(9.0), "WRONG WITH A CLEAN VERDICT: the mean of mu is 9.0"),
        (told(float("nan")), "WRONG WITH A CLEAN VERDICT"),
        (told(9.0, ["R-hat is 1.4"]), "9.0 standard errors off, and said: R-hat"),
        (told(1.0, ["R-hat is 1.4"]), "said not to be trusted: R-hat"),
    ],
)
def test_what_a_reader_is_told(found, cause, monkeypatch, checkout):
    monkeypatch.setattr(tables, "against_reference", lambda *_: found)
    (row,) = tables.reference(tables.Asked(quick=False, data=checkout()))
    assert cause in row["cause"]
    assert (row["reached"] == "yes") == (not cause)
    assert row["verdict"] == ("not to be trusted" if found.problems else "clean")


@pytest.mark.thorough
@pytest.mark.parametrize(("shift", "right"), [(0.0, True), (0.035, False)])
def test_draws_are_held_to_the_reference(shift, right, checkout, monkeypatch):
    """Those of a short run; reference draws a quarter of a standard deviation off are seen."""

    def short(field, solver, chains, **others):
        kernel = stk.HMC(step_size=0.5, leapfrogs=3)
        return stk.sample(field, kernel, chains, 100, 20, **others)

    monkeypatch.setattr(reference, "sample", short)
    (found,) = archived(checkout(shift)).values()
    made = against_reference(target_of(found))
    assert made.agreement.right == right
    assert made.gradients == pytest.approx(1 + 120 * 3, abs=30)
    assert made.per_draw == pytest.approx(64 * made.gradients / made.effective)
    assert ("CLEAN" in made.cause) == (not right and not made.problems)


@pytest.mark.slow
def test_the_default_call_is_held_to_the_reference(checkout, capsys):
    words = ["bench", "reference", "--full", "--json", "--data"]
    for shift, reached in ((0.0, "yes"), (0.035, "no")):
        assert main([*words, str(checkout(shift))]) == 0
        (row,) = json.loads(capsys.readouterr().out)["tables"]["reference"]
        assert row["reached"] == reached
        assert ("CLEAN" in row["cause"]) == (reached == "no")


def eight_schools(n):
    """Exact draws of Rubin's eight schools: tau by a grid, and given it mu, then theta, are normal."""
    y, errors = number([28.0, 8, -3, 7, -1, 1, 18, 12]), number([15.0, 10, 16, 11, 9, 11, 10, 18])
    log_tau = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    tau = log_tau.exp()
    variance = errors**2 + tau[:, None] ** 2
    precision = 1 / 25 + (1 / variance).sum(1)
    centre = (y / variance).sum(1) / precision
    log_density = log_tau - ((y**2 / variance + variance.log()).sum(1) + precision.log()) / 2
    log_density += precision * centre**2 / 2 - (tau / 5).square().log1p()
    which = torch.multinomial(log_density.softmax(0), n, True, generator=generator(1))
    tau, z = tau[which], normals(n, 9, seed=2)
    mu = centre[which] + z[:, 0] / precision[which].sqrt()
    share = 1 / (1 / errors**2 + 1 / tau[:, None] ** 2)
    theta = share * (y / errors**2 + mu[:, None] / tau[:, None] ** 2) + share.sqrt() * z[:, 1:]
    numbers = {"mu": mu, "tau": tau, **{f"theta[{k + 1}]": theta[:, k] for k in range(8)}}
    return {"y": y, "sigma": errors}, {name: x.reshape(10, -1) for name, x in numbers.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eight_schools_noncentered", "eight_schools_centered"])
def test_eight_schools_are_right_or_said_not_to_be_trusted(name):
    """The centred one is a funnel that its draws do not get to the end of, and says so."""
    data, draws = eight_schools(100_000)
    model = MODELS[name](data)
    made = against_reference(
        Target(name, model.field(), reference=Reference(draws, model.parameters))
    )
    assert made.agreement.right or made.problems
    assert (not made.cause) == name.endswith("noncentered")


def test_rows_without_a_folder_and_of_other_targets():
    (row,) = tables.reference(tables.Asked())
    assert "--data" in row["cause"]
    assert not list(tables.reference(tables.Asked(targets=("banana",))))
    with pytest.raises(stk.UnknownName):
        list(tables.reference(tables.Asked(targets=("bananna",))))


def test_reference_draws_of_other_parameters_are_refused(checkout):
    folder = checkout()
    packed(draws_of(folder / "posterior_database"), [{"nu": [1.0, 2.0]}])
    (row,) = tables.reference(tables.Asked(quick=False, data=folder))
    assert "nu" in row["cause"]
    field = stk.Energy(lambda mu: mu.square() / 2, variables={"mu": ()})
    with pytest.raises(stk.InvalidArgument, match="reference draws"):
        against_reference(Target("t", field))
    with pytest.raises(stk.InvalidArgument, match="chains, draws"):
        Reference({"mu": torch.zeros(3)})


def test_numbers_of_parameters_are_named_as_in_reference_draws():
    value = torch.arange(12.0).reshape(2, 2, 3)
    draws = dict.fromkeys(("z[2,3]", "mu", "z[1,1]"), torch.zeros(1, 4))
    named = Reference(draws).numbers({"z": value, "mu": value[:, 0, 0]})
    assert list(named) == list(draws)
    assert torch.equal(named["z[2,3]"], value[:, 1, 2])
    assert torch.equal(named["mu"], value[:, 0, 0])
