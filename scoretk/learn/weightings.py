r"""Weights w that turn noise prediction into every other regression on a Gaussian path.

The loss is `weighting(name, path, t) * noise_prediction(net, x, t, noise, path)`. Given x_t, an
error e in the predicted noise is an error of `-e / sigma` in the score, `-(sigma / alpha) e` in the
data, `(alpha + sigma^2 / alpha) e` in v and `-(lambda' sigma / 2) e` in the velocity, with lambda =
log(alpha^2 / sigma^2) and its time derivative lambda' > 0. So

    name         w                                with it, noise prediction is
    noise        1                                itself: score matching weighted by sigma^2
    score        1 / sigma^2                      denoising score matching, unweighted
    data         sigma^2 / alpha^2                data prediction
    v            ((alpha^2 + sigma^2) / alpha)^2  v prediction
    velocity     (lambda' sigma / 2)^2            flow matching
    likelihood   lambda' / 2                      1/d of the integrand over t of a bound of -log p
    min-snr      min(1, 5 / snr)                  data prediction weighted by min(snr, 5)
    edm          (s^2 + 1/4) / (1/4)              data prediction as EDM weights it

where snr = alpha^2 / sigma^2 and s = sigma / alpha; EDM's data have standard deviation 1/2.

References:
    Vincent, "A connection between score matching and denoising autoencoders" (2011).
    Kingma, Salimans, Poole, Ho, "Variational diffusion models" (2021), and Song, Durkan, Murray,
    Ermon, "Maximum likelihood training of score-based diffusion models" (2021): likelihood.
    Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative
    models" (2022): edm.
    Salimans, Ho, "Progressive distillation for fast sampling of diffusion models" (2022): v.
    Hang et al., "Efficient diffusion training via min-SNR weighting strategy" (2023).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from scoretk.core.arguments import option
from scoretk.core.devices import wide
from scoretk.core.keywords import explained
from scoretk.fields import GaussianPath
from scoretk.fields.paths import PathPoint

__all__ = ["WEIGHTINGS", "weighting"]

MIN_SNR = 5.0
EDM_DATA_VARIANCE = 0.5**2


def _growth(p: PathPoint) -> Tensor:
    """lambda', the time derivative of log(alpha^2 / sigma^2)."""
    return 2 * (p.dalpha / p.alpha - p.dsigma / p.sigma)


WEIGHTINGS: dict[str, Callable[[PathPoint], Tensor]] = {
    "noise": lambda p: p.alpha.new_ones(p.alpha.shape),
    "score": lambda p: p.sigma**-2,
    "data": lambda p: (p.sigma / p.alpha) ** 2,
    "v": lambda p: ((p.alpha**2 + p.sigma**2) / p.alpha) ** 2,
    "velocity": lambda p: (_growth(p) * p.sigma / 2) ** 2,
    "likelihood": lambda p: _growth(p) / 2,
    "min-snr": lambda p: (MIN_SNR * (p.sigma / p.alpha) ** 2).clamp(max=1),
    "edm": lambda p: ((p.sigma / p.alpha) ** 2 + EDM_DATA_VARIANCE) / EDM_DATA_VARIANCE,
}


@explained
def weighting(name: str, path: GaussianPath, t: Tensor) -> Tensor:
    """The weight of noise prediction at times t.

    Several weights are infinite at an end of the path: draw t inside.

    Args:
        name: A name in `WEIGHTINGS`.
        path: The Gaussian path.
        t: Times, `(batch,)`.

    Returns:
        `(batch,)`.

    Raises:
        UnknownName: For an unknown weighting.
    """
    return WEIGHTINGS[option("weighting", name, WEIGHTINGS)](path(wide(t))).to(t)
