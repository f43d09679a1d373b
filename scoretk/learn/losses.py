r"""Losses for fields on a path, as pure functions of all that they depend on.

Each gives one value a row, to be averaged over the batch: a mean square over the d entries of an
event, `|.|^2 / d`, so that losses on different event shapes compare.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoretk.core.devices import wide
from scoretk.core.rows import across, row_sum
from scoretk.errors import InvalidArgument
from scoretk.fields import GaussianPath
from scoretk.fields.convert import prediction_name
from scoretk.learn.typed import typed

__all__ = [
    "denoising_score_matching",
    "flow_matching",
    "noise_prediction",
    "prediction_error",
    "stratified",
]

Network = Callable[[Tensor, Tensor], Tensor]


@typed
def noise_prediction(
    net: Network, x: Tensor, t: Tensor, noise: Tensor, path: GaussianPath
) -> Tensor:
    """Noise prediction: `|net(alpha x + sigma eps, t) - eps|^2 / d`, minimised by `E[eps | x_t]`.

    Args:
        net: `net(x_t, t)`, like x_t.
        x: Data, `(batch, *event_shape)`.
        t: Times in [0, 1], `(batch,)`.
        noise: eps, standard normal, like x.
        path: The Gaussian path, which gives alpha and sigma at t.

    Returns:
        `(batch,)`.

    Raises:
        InvalidArgument: Where shapes disagree.

    References:
        Ho, Jain, Abbeel, "Denoising diffusion probabilistic models" (2020).
    """
    return prediction_error(net, x, t, noise, path, "noise")


@typed
def prediction_error(
    net: Network, x: Tensor, t: Tensor, noise: Tensor, path: GaussianPath, predicts: str = "noise"
) -> Tensor:
    """The regression of any prediction, `|net(x_t, t) - y|^2 / d` at `x_t = alpha x + sigma eps`.

    It is minimised by `E[y | x_t]`, where

        predicts   data   noise   score          velocity                   v
        y          x      eps     -eps / sigma   alpha' x + sigma' eps      alpha eps - sigma x

    Each is `noise_prediction` times a weight of the time, `scoretk.learn.weighting(predicts, path,
    t)`.

    Args:
        net: As in `noise_prediction`.
        x: As in `noise_prediction`.
        t: As in `noise_prediction`; y must be finite there.
        noise: As in `noise_prediction`.
        path: As in `noise_prediction`.
        predicts: What the network predicts, a name of the table.

    Returns:
        `(batch,)`.

    Raises:
        InvalidArgument: Where shapes disagree.
        UnknownName: For an unknown prediction.

    References:
        Ho, Jain, Abbeel, "Denoising diffusion probabilistic models" (2020), for noise.
        Vincent, "A connection between score matching and denoising autoencoders" (2011), for the
        score.
        Salimans, Ho, "Progressive distillation for fast sampling of diffusion models" (2022), for
        data and v.
    """
    _check(x, t, noise)
    alpha, sigma, dalpha, dsigma = (across(value.to(x), x) for value in path(wide(t)))
    target = {
        "data": lambda: x,
        "noise": lambda: noise,
        "score": lambda: -noise / sigma,
        "velocity": lambda: dalpha * x + dsigma * noise,
        "v": lambda: alpha * noise - sigma * x,
    }[prediction_name(predicts)]()
    return _mean_square(net(alpha * x + sigma * noise, t) - target)


@typed
def flow_matching(net: Network, x: Tensor, t: Tensor, start: Tensor) -> Tensor:
    """Conditional flow matching on lines: `|net((1 - t) x_0 + t x_1, t) - (x_1 - x_0)|^2 / d`.

    It is minimised by the velocity of a flow that takes the law of x_0 to that of x_1, whatever
    their coupling: as drawn, or by minibatch optimal transport (`scoretk.learn.couplings`).

    Args:
        net: `net(x_t, t)`, like x_t.
        x: The data x_1, `(batch, *event_shape)`.
        t: Times in [0, 1], `(batch,)`.
        start: The x_0 coupled with the data, like x.

    Returns:
        `(batch,)`.

    Raises:
        InvalidArgument: Where shapes disagree.

    References:
        Lipman, Chen, Ben-Hamu, Nickel, Le, "Flow matching for generative modeling" (2023).
    """
    _check(x, t, start)
    return _mean_square(net(torch.lerp(start, x, across(t.to(x), x)), t) - (x - start))


@typed
def denoising_score_matching(
    score: Callable[[Tensor], Tensor], x: Tensor, noise: Tensor, sigma: float | Tensor
) -> Tensor:
    """Denoising score matching: `|sigma score(x + sigma eps) + eps|^2 / d`.

    It is minimised by the score of the noised data. This is the squared error of the score,
    weighted by sigma^2; times `sigma^(p - 2)` it is weighted by `sigma^p`.

    Args:
        score: The score of a static field, `score(x)`, like x.
        x: Data, `(batch, *event_shape)`.
        noise: eps, standard normal, like x.
        sigma: The noise level, > 0: a number, or one a row, `(batch,)`.

    Returns:
        `(batch,)`.

    Raises:
        InvalidArgument: Where shapes disagree.

    References:
        Vincent, "A connection between score matching and denoising autoencoders" (2011).
        Song, Ermon, "Generative modeling by estimating gradients of the data distribution" (2019),
        for several sigmas.
    """
    levels = (
        sigma if isinstance(sigma, Tensor) and sigma.ndim else x.new_full((len(x),), float(sigma))
    )
    _check(x, levels, noise)
    scale = across(levels.to(x), x)
    return _mean_square(scale * score(x + scale * noise) + noise)


@typed
def stratified(n: int, generator: torch.Generator) -> Tensor:
    """Stratified times: the i-th is uniform on [i / n, (i + 1) / n).

    The mean of a loss over them has less variance than over independent times.

    Args:
        n: How many.
        generator: The source of randomness.

    Returns:
        `(n,)`, float32.

    References:
        Kingma, Salimans, Poole, Ho, "Variational diffusion models" (2021), who stratify by one
        offset for all.
    """
    shift = torch.rand(n, generator=generator)
    return (torch.arange(n) + shift) / max(n, 1)


def _check(x: Tensor, t: Tensor, noise: Tensor) -> None:
    if noise.shape != x.shape:
        raise InvalidArgument("noise or start", noise, f"the shape of x, {tuple(x.shape)}")
    if t.shape != x.shape[:1]:
        raise InvalidArgument("t", t, f"one time a row, shape ({len(x)},)")


def _mean_square(error: Tensor) -> Tensor:
    return row_sum(error.square()) / max(error[0].numel() if len(error) else 1, 1)
