r"""Losses for fields on a path, as pure functions of everything they depend on.

One value a row, to be averaged.

All are mean squares over the event, `|.|^2 / d`, so that losses of different event shapes compare.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoretk.core.rows import across, row_sum
from scoretk.errors import InvalidArgument
from scoretk.fields import GaussianPath
from scoretk.fields.convert import check_prediction

__all__ = [
    "denoising_score_matching",
    "flow_matching",
    "noise_prediction",
    "prediction_error",
    "stratified",
]

Network = Callable[[Tensor, Tensor], Tensor]


def noise_prediction(
    net: Network, x: Tensor, t: Tensor, noise: Tensor, path: GaussianPath
) -> Tensor:
    """Noise prediction: `|net(alpha x + sigma eps, t) - eps|^2 / d`, minimised by `E[eps | x_t]`.

    References:
        Ho, Jain, Abbeel, "Denoising diffusion probabilistic models" (2020).

    Args:
        net: `net(x_t, t)` like x_t.
        x: Data `(batch, *event_shape)`.
        t: `(batch,)` in [0, 1].
        noise: Standard normal, like x.
        path: From noise to data.

    Returns:
        `(batch,)`. Raises `InvalidArgument` where shapes disagree.
    """
    return prediction_error(net, x, t, noise, path, "noise")


def prediction_error(
    net: Network, x: Tensor, t: Tensor, noise: Tensor, path: GaussianPath, predicts: str = "noise"
) -> Tensor:
    """The regression of any prediction.

    `|net(x_t, t) - y|^2 / d` at `x_t = alpha x + sigma eps`, least for `E[y | x_t]`.

        predicts   data   noise   score          velocity                   v
        y          x      eps     -eps / sigma   alpha' x + sigma' eps      alpha eps - sigma x

    Each is `noise_prediction` times a weight of the time, `scoretk.learn.weighting(predicts, path,
    t)`.

    References:
        Ho, Jain, Abbeel (2020): noise.
        Vincent, "A connection between score matching and denoising autoencoders" (2011): score.
        Salimans, Ho, "Progressive distillation for fast sampling of diffusion models" (2022): data
        and v.

    Arguments are as in `noise_prediction`.

    Args:
        predicts: What the network's output means. t must lie where y is finite.

    Returns:
        `(batch,)`. Raises `InvalidArgument` where shapes disagree; `UnknownName`.
    """
    _check(x, t, noise)
    check_prediction(predicts)
    alpha, sigma, dalpha, dsigma = (across(value.to(x), x) for value in path(t.double()))
    target = {
        "data": lambda: x,
        "noise": lambda: noise,
        "score": lambda: -noise / sigma,
        "velocity": lambda: dalpha * x + dsigma * noise,
        "v": lambda: alpha * noise - sigma * x,
    }[predicts]()
    return _mean_square(net(alpha * x + sigma * noise, t) - target)


def flow_matching(net: Network, x: Tensor, t: Tensor, start: Tensor) -> Tensor:
    """Conditional flow matching on straight lines.

    `|net((1 - t) x_0 + t x_1, t) - (x_1 - x_0)|^2 / d`.

    Minimised by the velocity of a flow that takes the distribution of x_0 to that of x_1, whatever
    their coupling: as drawn, or by minibatch optimal transport (`scoretk.learn.couplings`).

    References:
        Lipman, Chen, Ben-Hamu, Nickel, Le, "Flow matching for generative modeling" (2023).

    Args:
        net: `net(x_t, t)` like x_t.
        x: The data x_1 `(batch, *event_shape)`.
        t: `(batch,)` in [0, 1].
        start: The x_0 coupled with them, like x.

    Returns:
        `(batch,)`. Raises `InvalidArgument` where shapes disagree.
    """
    _check(x, t, start)
    return _mean_square(net(torch.lerp(start, x, across(t.to(x), x)), t) - (x - start))


def denoising_score_matching(
    score: Callable[[Tensor], Tensor], x: Tensor, noise: Tensor, sigma: float | Tensor
) -> Tensor:
    """Denoising score matching.

    `|sigma score(x + sigma eps) + eps|^2 / d`, minimised by the score of the noised data.

    That is the square error of the score weighted by sigma^2; times `sigma^(p - 2)` it is weighted
    by `sigma^p`.

    References:
        Vincent, "A connection between score matching and denoising autoencoders" (2011).
        Song, Ermon, "Generative modeling by estimating gradients of the data distribution" (2019),
        for several sigmas.

    Args:
        score: Of a static field.
        x: Data `(batch, *event_shape)`.
        noise: Standard normal, like x.
        sigma: > 0, a number or one a row, `(batch,)`.

    Returns:
        `(batch,)`. Raises `InvalidArgument` where shapes disagree.
    """
    levels = (
        sigma if isinstance(sigma, Tensor) and sigma.ndim else x.new_full((len(x),), float(sigma))
    )
    _check(x, levels, noise)
    scale = across(levels.to(x), x)
    return _mean_square(scale * score(x + scale * noise) + noise)


def stratified(n: int, generator: torch.Generator) -> Tensor:
    """N numbers, each uniform on [0, 1) and one in each nth of it: times that make a batch's loss
    less noisy, `(n,)`.

    References:
        Kingma, Salimans, Poole, Ho, "Variational diffusion models" (2021), who share one offset
        likewise.
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
