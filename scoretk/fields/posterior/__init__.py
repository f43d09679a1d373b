"""Posteriors: a prior field and a likelihood of measurements, for inverse problems.

For a *static* prior energies add up, `E(x) - log L(x)`, and any kernel samples the posterior
itself. For a prior on a Gaussian path the posterior is a timed field as well, whose denoiser is
conditional. With `D = E[x_1 | x_t]`, `J = dD/dx_t` and
`V = Cov[x_1 | x_t] = (sigma^2 / alpha) J^T`, score and denoiser are shifted alike:

    score_y = score + grad log p(y | x_t)
    D_y = D + (sigma^2 / alpha) grad log p(y | x_t) = D + V grad_D log p(y | x_t).

A method is an approximation of `p(y | x_t)`. With `r = y - A D`, R = std^2 I and the posterior
variance `v = sigma^2 spread^2 / (alpha^2 spread^2 + sigma^2)` of data of standard deviation
`spread` in all directions,

    MMPS         D_y = D + V A^T (R + A V A^T)^-1 r
                 Kalman's update; exact for Gaussian priors
    PiGDM        D_y = D + V A^T (R + v A A^T)^-1 r
                 exact for Gaussian priors N(m, spread^2 I)
    Replacement  D_y = D + v A^T (R + v A A^T)^-1 r
                 likewise; no derivative of the denoiser
    TMPD         D_y = D + V A^T (R + diag(A V A^T 1))^-1 r
                 exact for Gaussian priors where A V A^T is diagonal
    DiffPIR      D_y = D + u A^T (R + u A A^T)^-1 r,  u = sigma^2 / (prior_weight alpha^2)
                 Replacement for data of any spread, times a weight
    DPS          D_y = D + V A^T r  scale sqrt(m) / |r|_K
                 |r|_K^2 = r^T (R + v A A^T) r, m entries of y
                 D_y = D + V g  scale g^T V g / (g^T V g + p^T H p)
                 for any other L: g and -H the gradient and the Hessian of log L at D, p = V g;
                 exact for Gaussians and one entry

Each row is on its own: its norm, its iterations. At sigma = 0, V and v vanish and `D_y = D`. Near
alpha = 0 J vanishes and V does not, so that the product `(sigma^2 / alpha) J^T` has no digits left.
As `p(x_1 | x_t) ~ p(x_1) exp(l x_1 - (alpha / sigma)^2 |x_1|^2 / 2)` with
`l = alpha x_t / sigma^2`, a point at which alpha/sigma is below the fourth root of the dtype's
rounding is replaced by one of that alpha/sigma and of the same l, with an error of the order of the
rounding's square root.

References:
    Chung, Kim, Mccann, Klasky, Ye, "Diffusion posterior sampling for general noisy inverse
    problems" (2023): DPS.
    Song, Vahdat, Mardani, Kautz, "Pseudoinverse-guided diffusion models for inverse problems"
    (2023): PiGDM.
    Rozet, Andry, Lanusse, Louppe, "Learning diffusion priors from observations by expectation
    maximization" (2024): MMPS.
    Lugmayr, Danelljan, Romero, Yu, Timofte, Van Gool, "RePaint: inpainting using denoising
    diffusion probabilistic models" (2022): replacement.
    Wang, Yu, Zhang, "Zero-shot image restoration using denoising diffusion null-space model"
    (2023): replacement.
    Boys, Girolami, Pidstrigach, Reich, Mosca, Akyildiz, "Tweedie moment projected diffusions for
    inverse problems" (2024): TMPD.
    Zhu, Zhang, Liang, Cao, Wen, Timofte, Van Gool, "Denoising diffusion models for plug-and-play
    image restoration" (2023): DiffPIR.
    Hestenes, Stiefel, "Methods of conjugate gradients for solving linear systems" (1952).
"""

from scoretk.fields.posterior.diffpir import DiffPIR
from scoretk.fields.posterior.dps import DPS
from scoretk.fields.posterior.joining import POSTERIOR_METHODS, posterior
from scoretk.fields.posterior.method import PosteriorMethod, PriorMoments
from scoretk.fields.posterior.mmps import MMPS
from scoretk.fields.posterior.pigdm import PiGDM
from scoretk.fields.posterior.replacement import Replacement
from scoretk.fields.posterior.tmpd import TMPD

__all__ = [
    "DPS",
    "MMPS",
    "POSTERIOR_METHODS",
    "TMPD",
    "DiffPIR",
    "PiGDM",
    "PosteriorMethod",
    "PriorMoments",
    "Replacement",
    "posterior",
]
