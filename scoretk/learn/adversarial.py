r"""Adversarial losses: a critic bounds a divergence of data and generator, which is minimised.

Let P be the law of the data and Q that of the generator. For a convex f with f(1) = 0 and conjugate
f*, and a critic V whose output g_f brings into the domain of f*,

    D_f(P || Q) = E_Q f(p/q) = max_V  E_P g_f(V(x)) - E_Q f*(g_f(V(y)))

with the maximum where g_f(V) = f'(p/q).

    name           f(u)                                 g_f(v)                   f*(g_f(v))
    kl             u log u                              v                        exp(v - 1)
    reverse-kl     -log u                               -exp(-v)                 v - 1
    pearson        (u - 1)^2                            v                        v^2 / 4 + v
    hellinger      (sqrt u - 1)^2                       1 - exp(-v)              exp(v) - 1
    js             u log u - (u + 1) log((u + 1) / 2)   log 2 - softplus(-v)     softplus(v) - log 2
    gan            u log u - (u + 1) log(u + 1)         -softplus(-v)            softplus(v)

"js" is twice the Jensen-Shannon divergence; "gan", for which f(1) = -log 4, is that minus log 4.
For both the best V is log p/q.

The Wasserstein-1 distance is instead the maximum of `E_P V - E_Q V` over critics with gradients of
norm at most 1, which a penalty on the norm enforces.

References:
    Nowozin, Cseke, Tomioka, "f-GAN: training generative neural samplers using variational
    divergence minimization" (2016).
    Goodfellow et al., "Generative adversarial nets" (2014).
    Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, "Improved training of Wasserstein GANs" (2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from scoretk.core.arguments import option
from scoretk.core.rows import across
from scoretk.errors import InvalidArgument
from scoretk.fields.wrappers import check_rows
from scoretk.learn.typed import typed

__all__ = [
    "DIVERGENCES",
    "Divergence",
    "f_gan_critic",
    "f_gan_generator",
    "gradient_penalty",
    "wasserstein_critic",
    "wasserstein_generator",
]

Critic = Callable[[Tensor], Tensor]
Function = Callable[[Tensor], Tensor]

LOG_2 = math.log(2)


@dataclass(frozen=True)
class Divergence:
    """An f-divergence.

    Args:
        f: f(u), convex.
        activation: g_f(v), the last function of the critic.
        conjugate: f*(g_f(v)).
    """

    f: Function
    activation: Function
    conjugate: Function


DIVERGENCES: dict[str, Divergence] = {
    "kl": Divergence(lambda u: u * u.log(), lambda v: v, lambda v: torch.exp(v - 1)),
    "reverse-kl": Divergence(lambda u: -u.log(), lambda v: -torch.exp(-v), lambda v: v - 1),
    "pearson": Divergence(lambda u: (u - 1).square(), lambda v: v, lambda v: v.square() / 4 + v),
    "hellinger": Divergence(
        lambda u: (u.sqrt() - 1).square(), lambda v: -torch.expm1(-v), torch.expm1
    ),
    "js": Divergence(
        lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
        lambda v: LOG_2 - softplus(-v),
        lambda v: softplus(v) - LOG_2,
    ),
    "gan": Divergence(
        lambda u: u * u.log() - (u + 1) * (u + 1).log(), lambda v: -softplus(-v), softplus
    ),
}


@typed
def f_gan_critic(critic: Critic, x: Tensor, y: Tensor, divergence: str = "gan") -> Tensor:
    """The critic's loss, `E f*(g_f(V(y))) - E g_f(V(x))`.

    It is minus a lower bound of `D_f(data || generator)`.

    Args:
        critic: V, `(rows, *event_shape) -> (rows,)`.
        x: Data, `(n, *event_shape)`.
        y: Draws of the generator, `(m, *event_shape)`.
        divergence: A name in `DIVERGENCES`.

    Returns:
        A scalar.

    Raises:
        InvalidArgument: Where the critic does not give one number a row.
        UnknownName: For an unknown divergence.

    References:
        Nowozin, Cseke, Tomioka, "f-GAN: training generative neural samplers using variational
        divergence minimization" (2016); Goodfellow et al., "Generative adversarial nets" (2014),
        for "gan".
    """
    d = _divergence(divergence)
    return d.conjugate(_values(critic, y)).mean() - d.activation(_values(critic, x)).mean()


@typed
def f_gan_generator(
    critic: Critic, y: Tensor, divergence: str = "gan", *, saturating: bool = False
) -> Tensor:
    """The generator's loss, `-E g_f(V(y))`.

    With `saturating` it is the bound of the divergence itself, `-E f*(g_f(V(y)))`, whose gradient
    may vanish as long as the critic tells all draws from data.

    Args:
        critic: V, `(rows, *event_shape) -> (rows,)`.
        y: Draws of the generator with their gradients, `(m, *event_shape)`.
        divergence: A name in `DIVERGENCES`.
        saturating: Whether to take the second form.

    Returns:
        A scalar.

    Raises:
        InvalidArgument: Where the critic does not give one number a row.
        UnknownName: For an unknown divergence.

    References:
        Nowozin, Cseke, Tomioka, "f-GAN: training generative neural samplers using variational
        divergence minimization" (2016), section 3.2.
    """
    d = _divergence(divergence)
    return -(d.conjugate if saturating else d.activation)(_values(critic, y)).mean()


@typed
def gradient_penalty(critic: Critic, x: Tensor, slope: float = 1.0) -> Tensor:
    """The penalty `(|grad V(x)| - slope)^2` on a critic, with the norm over the whole event.

    With slope 0, at the data, this is the R1 penalty.

    Args:
        critic: V, `(rows, *event_shape) -> (rows,)`, its rows independent (no batch normalisation).
        x: Where the gradient is taken, `(batch, *event_shape)`.
        slope: The norm of the gradient that costs nothing.

    Returns:
        `(batch,)`, differentiable in the critic's parameters.

    Raises:
        InvalidArgument: Where the critic does not give one number a row.

    References:
        Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, "Improved training of Wasserstein GANs"
        (2017); Mescheder, Geiger, Nowozin, "Which training methods for GANs do actually converge?"
        (2018), for R1.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        total = _values(critic, y).sum()
        (gradient,) = torch.autograd.grad(total, y, create_graph=keep)
    if slope == 0:  # without the square root, which has no derivative at 0
        return gradient.flatten(1).square().sum(1)
    return (torch.linalg.vector_norm(gradient.flatten(1), dim=1) - slope).square()


@typed
def wasserstein_critic(
    critic: Critic, x: Tensor, y: Tensor, mix: Tensor, penalty: float = 10.0
) -> Tensor:
    """The critic's loss: `E V(y) - E V(x) + penalty E (|grad V(u x + (1 - u) y)| - 1)^2`.

    Args:
        critic: V, `(rows, *event_shape) -> (rows,)`, its rows independent.
        x: Data, `(batch, *event_shape)`.
        y: As many draws of the generator, like x.
        mix: u, uniform on [0, 1], `(batch,)`.
        penalty: The weight of the penalty on the gradient.

    Returns:
        A scalar.

    Raises:
        InvalidArgument: Where shapes disagree.

    References:
        Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, "Improved training of Wasserstein GANs"
        (2017).
    """
    if y.shape != x.shape or mix.shape != x.shape[:1]:
        raise InvalidArgument(
            "y, mix", (tuple(y.shape), tuple(mix.shape)), f"shapes {tuple(x.shape)} and ({len(x)},)"
        )
    between = torch.lerp(y, x, across(mix.to(x), x))
    slopes = gradient_penalty(critic, between).mean()
    return _values(critic, y).mean() - _values(critic, x).mean() + penalty * slopes


@typed
def wasserstein_generator(critic: Critic, y: Tensor) -> Tensor:
    """The generator's loss, `-E V(y)`.

    Args:
        critic: V, `(rows, *event_shape) -> (rows,)`.
        y: Draws of the generator with their gradients, `(m, *event_shape)`.

    Returns:
        A scalar.
    """
    return -_values(critic, y).mean()


def _divergence(name: str) -> Divergence:
    return DIVERGENCES[option("divergence", name, DIVERGENCES)]


def _values(critic: Critic, rows: Tensor) -> Tensor:
    return check_rows("critic", critic(rows), rows.shape[:1], "A critic gives one number a row")
