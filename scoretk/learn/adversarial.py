r"""Adversarial losses.

A critic bounds a divergence between the data P and a generator's Q, which the generator makes
small.

For a convex f with f(1) = 0 and conjugate f*, and a critic V whose output g_f brings into the
domain of f*,

    D_f(P || Q) = E_Q f(p/q) = max_V  E_P g_f(V(x)) - E_Q f*(g_f(V(y))),        at the maximum g_f(V) = f'(p/q)

    name           f(u)                                 g_f(v)                   f*(g_f(v))
    kl             u log u                              v                        exp(v - 1)
    reverse-kl     -log u                               -exp(-v)                 v - 1
    pearson        (u - 1)^2                            v                        v^2 / 4 + v
    hellinger      (sqrt u - 1)^2                       1 - exp(-v)              exp(v) - 1
    js             u log u - (u + 1) log((u + 1) / 2)   log 2 - softplus(-v)     softplus(v) - log 2
    gan            u log u - (u + 1) log(u + 1)         -softplus(-v)            softplus(v)

js is twice the Jensen-Shannon divergence; gan, for which f(1) = -log 4, is that minus log 4. For
both the best V is log p/q.

The Wasserstein distance is instead `max E_P V - E_Q V` over critics of slope 1, which a penalty on
the slope asks for.

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
    """An f-divergence: `f(u)`, the critic's last function `activation(v) = g_f(v)`, and
    `conjugate(v) = f*(g_f(v))`.
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


def f_gan_critic(critic: Critic, x: Tensor, y: Tensor, divergence: str = "gan") -> Tensor:
    """The critic's loss, `E f*(g_f(V(y))) - E g_f(V(x))`.

    Minus a lower bound of `D_f(data || generator)`.

    References:
        Nowozin, Cseke, Tomioka (2016).
        "gan" is that of Goodfellow et al. (2014).

    Args:
        critic: V, `(rows, *event_shape) -> (rows,)`.
        x: Data, and y, the generator's draws, `(rows, *event_shape)`.
        divergence: A name in `DIVERGENCES`.

    Returns:
        a scalar. Raises `InvalidArgument`; `UnknownName`.
    """
    d = _divergence(divergence)
    return d.conjugate(_values(critic, y)).mean() - d.activation(_values(critic, x)).mean()


def f_gan_generator(
    critic: Critic, y: Tensor, divergence: str = "gan", *, saturating: bool = False
) -> Tensor:
    """The generator's loss.

    `-E g_f(V(y))`, or `-E f*(g_f(V(y)))`, the divergence itself, which may have no slope at first.

    References:
        Nowozin, Cseke, Tomioka (2016), section 3.2.

    Args:
        critic: As in `f_gan_critic`.
        divergence: As in `f_gan_critic`.
        y: The generator's draws with their gradients.
        saturating: The second form. Returns: a scalar. Raises `InvalidArgument`; `UnknownName`.
    """
    d = _divergence(divergence)
    return -(d.conjugate if saturating else d.activation)(_values(critic, y)).mean()


def gradient_penalty(critic: Critic, x: Tensor, slope: float = 1.0) -> Tensor:
    """`(|grad V(x)| - slope)^2`, `(batch,)`, with the norm over the whole event.

    Differentiable in the critic's parameters.

    With slope 0 at the data this is the R1 penalty of Mescheder, Geiger, Nowozin, "Which training
    methods for GANs do actually converge?" (2018).

    Args:
        critic: As in `f_gan_critic`, rows independent (no batch normalisation).
        x: `(batch, *event_shape)`.
        slope: The one that costs nothing.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        total = _values(critic, y).sum()
        (gradient,) = torch.autograd.grad(total, y, create_graph=keep)
    if slope == 0:  # without the root, whose own slope at 0 is none
        return gradient.flatten(1).square().sum(1)
    return (torch.linalg.vector_norm(gradient.flatten(1), dim=1) - slope).square()


def wasserstein_critic(
    critic: Critic, x: Tensor, y: Tensor, mix: Tensor, penalty: float = 10.0
) -> Tensor:
    """The critic's loss: `E V(y) - E V(x) + penalty E (|grad V(u x + (1 - u) y)| - 1)^2`.

    References:
        Gulrajani et al. (2017).

    Args:
        critic: As in `f_gan_critic`.
        x: Data, and y, as many draws of the generator, `(batch, *event_shape)`.
        mix: The u, uniform on [0, 1], `(batch,)`.
        penalty: Its weight.

    Returns:
        a scalar. Raises `InvalidArgument` where shapes disagree.
    """
    if y.shape != x.shape or mix.shape != x.shape[:1]:
        raise InvalidArgument(
            "y, mix", (tuple(y.shape), tuple(mix.shape)), f"shapes {tuple(x.shape)} and ({len(x)},)"
        )
    between = torch.lerp(y, x, across(mix.to(x), x))
    slopes = gradient_penalty(critic, between).mean()
    return _values(critic, y).mean() - _values(critic, x).mean() + penalty * slopes


def wasserstein_generator(critic: Critic, y: Tensor) -> Tensor:
    """The generator's loss, `-E V(y)`, a scalar. Arguments as in `f_gan_generator`."""
    return -_values(critic, y).mean()


def _divergence(name: str) -> Divergence:
    return DIVERGENCES[option("divergence", name, DIVERGENCES)]


def _values(critic: Critic, rows: Tensor) -> Tensor:
    return check_rows("critic", critic(rows), rows.shape[:1], "A critic gives one number a row")
