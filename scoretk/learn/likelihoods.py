r"""Maximum likelihood, exact and through latent variables.

With a decoder p(x | z), a prior p(z) and an encoder q(z | x), and draws `z_k ~ q(. | x)`,

    log w_k = log p(x | z_k) + log p(z_k) - log q(z_k | x),        E w_k = p(x)
    ELBO = E log w_k = E log p(x | z) - KL(q(. | x) || p)          <= log p(x)
    IWAE = E log (1/K sum_k w_k)                                   between the two

and IWAE tends to log p(x) as K grows. The draws are explicit functions of normals that the caller
gives, so that gradients reach the encoder.

References:
    Kingma, Welling, "Auto-encoding variational Bayes" (2014).
    Rezende, Mohamed, Wierstra, "Stochastic backpropagation and approximate inference in deep
    generative models" (2014).
    Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders" (2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Protocol

from einops import rearrange, repeat
from torch import Tensor
from torch import distributions as td

from scoretk.errors import InvalidArgument
from scoretk.fields.wrappers import check_rows
from scoretk.learn.typed import typed

__all__ = [
    "log_weights",
    "negative_elbo",
    "negative_iwae",
    "negative_log_likelihood",
    "reparametrised",
]

HINT = (
    "Distributions have one batch axis: wrap them, Independent(distribution, number of event axes)"
)


class Density(Protocol):
    """A normalised density: a torch distribution or a field with `log_prob`."""

    def log_prob(self, value: Tensor, /) -> Tensor: ...


Decoder = Callable[[Tensor], Density]


@typed
def negative_log_likelihood(log_prob: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The negative log likelihood `-log p(x)`, in nats.

    Its mean is least where p is nearest to the law of the data in Kullback-Leibler divergence.

    Args:
        log_prob: A normalised log density, `(batch, *event_shape) -> (batch,)`.
        x: Data, `(batch, *event_shape)`.

    Returns:
        `(batch,)`.

    Raises:
        InvalidArgument: Where `log_prob` is no function, or does not give one number a row.
    """
    return -check_rows("log_prob", log_prob(x), x.shape[:1], "A log density gives one number a row")


@singledispatch
def reparametrised(distribution: td.Distribution, noise: Tensor) -> Tensor:
    """A draw as a function of standard normals, `loc + scale noise`.

    Args:
        distribution: A `Normal`, a `MultivariateNormal` or an `Independent` of one.
        noise: Standard normal, `(..., *batch_shape, *event_shape)`.

    Returns:
        A tensor like the noise.

    Raises:
        InvalidArgument: For any other distribution.
    """
    raise InvalidArgument(
        "posterior", distribution, "a Normal, a MultivariateNormal or an Independent of one"
    )


@reparametrised.register
def _(distribution: td.Normal, noise: Tensor) -> Tensor:
    return distribution.loc + distribution.scale * noise


@reparametrised.register
def _(distribution: td.MultivariateNormal, noise: Tensor) -> Tensor:
    return distribution.loc + (distribution.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)


@reparametrised.register(td.Independent)
def _(distribution: td.Independent[td.Distribution], noise: Tensor) -> Tensor:
    return reparametrised(distribution.base_dist, noise)


@typed
def log_weights(
    x: Tensor, posterior: td.Distribution, decoder: Decoder, prior: Density, noise: Tensor
) -> Tensor:
    """The log importance weights `log w_k`; the mean of `w_k` is `p(x)` for any encoder.

    Args:
        x: Data, `(batch, *event_shape)`.
        posterior: The encoder's `q(. | x)`, a normal law with batch shape `(batch,)`.
        decoder: Takes latents `(rows, *latent_shape)` to p(x | z), with batch shape `(rows,)`.
        prior: The law p(z) of one latent.
        noise: Standard normals, `(k, batch, *latent_shape)`.

    Returns:
        `(k, batch)`, in nats.

    Raises:
        InvalidArgument: Where shapes disagree.
    """
    z = _latents(x, posterior, noise)
    rows = rearrange(z, "k batch ... -> (k batch) ...")
    log_prior = check_rows("prior", prior.log_prob(rows), rows.shape[:1], HINT)
    log_prior = rearrange(log_prior, "(k batch) -> k batch", k=len(z))
    return _reconstruction(x, decoder, z) + log_prior - posterior.log_prob(z)


@typed
def negative_elbo(
    x: Tensor,
    posterior: td.Distribution,
    decoder: Decoder,
    prior: Density,
    noise: Tensor,
    *,
    exact_kl: bool = False,
) -> Tensor:
    """The negative evidence lower bound, in nats, averaged over the k draws.

    Args:
        x: As in `log_weights`.
        posterior: As in `log_weights`.
        decoder: As in `log_weights`.
        prior: As in `log_weights`; a torch distribution where `exact_kl`.
        noise: As in `log_weights`.
        exact_kl: Whether the Kullback-Leibler term is taken in closed form, for pairs of posterior
            and prior that torch has it for.

    Returns:
        `(batch,)`.

    Raises:
        InvalidArgument: Where shapes disagree, or the prior is no distribution where it must be.

    References:
        Kingma, Welling, "Auto-encoding variational Bayes" (2014): their estimator A, and B where
        `exact_kl`.
    """
    if not exact_kl:
        return -log_weights(x, posterior, decoder, prior, noise).mean(0)
    if not isinstance(prior, td.Distribution):
        raise InvalidArgument("prior", prior, "a torch distribution where exact_kl=True")
    z = _latents(x, posterior, noise)
    return td.kl_divergence(posterior, prior) - _reconstruction(x, decoder, z).mean(0)


@typed
def negative_iwae(
    x: Tensor, posterior: td.Distribution, decoder: Decoder, prior: Density, noise: Tensor
) -> Tensor:
    """The negative importance-weighted bound, `-log mean_k w_k`, in nats.

    With one draw it is the negative ELBO.

    Args:
        x: As in `log_weights`.
        posterior: As in `log_weights`.
        decoder: As in `log_weights`.
        prior: As in `log_weights`.
        noise: As in `log_weights`.

    Returns:
        `(batch,)`.

    Raises:
        InvalidArgument: Where shapes disagree.

    References:
        Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders" (2016).
    """
    return math.log(len(noise)) - log_weights(x, posterior, decoder, prior, noise).logsumexp(0)


def _latents(x: Tensor, posterior: td.Distribution, noise: Tensor) -> Tensor:
    if not isinstance(posterior, td.Distribution):
        way = "It is that of x: encoder(x)" if callable(posterior) else ""
        raise InvalidArgument("posterior", posterior, "a torch distribution of latents", way)
    if posterior.batch_shape != x.shape[:1]:
        raise InvalidArgument(
            "posterior", tuple(posterior.batch_shape), f"the batch shape ({len(x)},)", HINT
        )
    expected = (*posterior.batch_shape, *posterior.event_shape)
    if tuple(noise.shape[1:]) != expected or not len(noise):
        raise InvalidArgument(
            "noise", noise, f"shape (k, {', '.join(map(str, expected))}) with k of at least 1"
        )
    return reparametrised(posterior, noise)


def _reconstruction(x: Tensor, decoder: Decoder, z: Tensor) -> Tensor:
    """The reconstruction `log p(x | z_k)`, `(k, batch)`, the decoder called once for all k."""
    repeated = repeat(x, "batch ... -> (k batch) ...", k=len(z))
    law = decoder(rearrange(z, "k batch ... -> (k batch) ..."))
    values = check_rows("decoder", law.log_prob(repeated), repeated.shape[:1], HINT)
    return rearrange(values, "(k batch) -> k batch", k=len(z))
