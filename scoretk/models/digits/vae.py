r"""digits-vae, digits-vae-binary and digits-latent-energy.

Variational autoencoders of handwritten digits.

E log w of the importance weights w is the ELBO. The decoder is Gaussian with a learned mean and std
a pixel, or Bernoulli. The learned prior is tilted,

    p(z) = exp(-f(z)) N(z; 0, I) / Z,    loss = -E_q [log p(x | z) - log q(z | x)] + E_q E(z) - mean E(z-)

with z- the persistent Langevin chains of contrastive divergence. As `E(z) = |z|^2 / 2 + f(z)`, the
loss is the negative ELBO and the last two terms are contrastive divergence's, through which the
encoder learns as well.

References:
    Kingma, Welling, "Auto-encoding variational Bayes" (2014).
    Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders" (2016).
    Pang, Han, Nijkamp, Zhu, Wu, "Learning latent space energy-based prior model" (2020).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributions as td

from scoretk.core.arguments import count, finite
from scoretk.fields import Energy
from scoretk.learn.contrastive import ContrastiveDivergence, ReplayBuffer
from scoretk.learn.fitting import Progress, Recipe
from scoretk.learn.likelihoods import negative_elbo, negative_iwae, reparametrised
from scoretk.models.digits.data import binarised, load_digits
from scoretk.models.digits.networks import ConfinedEnergy, Dropout, EnergyMLP, PrincipalAxes, fresh
from scoretk.models.digits.stored import Stored, read_weights
from scoretk.models.digits.training import TrainingRequest, dequantised, prepare
from scoretk.models.latent.vae import VAE, check_states
from scoretk.solvers import ULA

__all__ = ["BINARY", "GAUSSIAN", "LATENT_ENERGY", "LearnedPrior", "VAEVariant"]


FLOOR = 0.01
"""Of the decoder's std, over the data's, and of the pixel means that a Bernoulli decoder starts
from.
"""


BIN = 0.125
"""How far the digits' levels are apart."""


BITS = (0.0, 1.0)


class Network(nn.Module):
    """Encoder and decoder as MLPs, and f of a learned prior.

    Args:
        settings: Of the variant.
        mean: `(d,)` and std `()` of the data.
        generator: Of the weights, None for none.
    """

    mean: Tensor
    std: Tensor
    prior: ConfinedEnergy | None

    def __init__(
        self,
        settings: dict[str, Any],
        mean: Tensor,
        std: Tensor,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.shape, self.binary, self.latent = (
            tuple(settings["data_shape"]),
            settings["binary"],
            settings["latent"],
        )
        width, dropout, d = settings["width"], settings["dropout"], math.prod(self.shape)

        def made(make: Callable[[], nn.Module]) -> nn.Module:
            return make() if generator is None else fresh(make, generator)

        self.encoder = made(lambda: _mlp((d, width, width, 2 * self.latent), dropout, 0))
        self.decoder = made(
            lambda: _mlp((self.latent, width, width, d if self.binary else 2 * d), dropout, 10)
        )
        self.prior = None
        if settings["prior_width"]:
            f = made(lambda: EnergyMLP(self.latent, settings["prior_width"]))
            self.prior = ConfinedEnergy(
                f, PrincipalAxes(torch.zeros(self.latent), None, torch.ones(self.latent))
            )
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def posterior(self, x: Tensor) -> td.Independent[td.Distribution]:
        """q(z | x), `(batch, *shape)` to a normal over `(latent,)`."""
        centre, log_std = self.encoder(
            (x.to(self.mean.dtype).flatten(1) - self.mean) / self.std
        ).chunk(2, 1)
        return _independent(td.Normal(centre, log_std.exp(), validate_args=False), 1)

    def likelihood(self, z: Tensor) -> td.Independent[td.Distribution]:
        """p(x | z), `(rows, latent)` to a distribution over `shape`."""
        out = self.decoder(z.to(self.mean.dtype))
        if self.binary:
            logits = (self.mean.logit(FLOOR) + out).unflatten(1, self.shape)
            return _independent(td.Bernoulli(logits=logits, validate_args=False), len(self.shape))
        centre, log_std = out.chunk(2, 1)
        centre = (self.mean + self.std * centre).unflatten(1, self.shape)
        scale = (self.std * (FLOOR + log_std.exp())).unflatten(1, self.shape)
        return _independent(td.Normal(centre, scale, validate_args=False), len(self.shape))

    def field(self) -> VAE:
        """The field that it is."""
        prior = None if self.prior is None else Energy(self.prior, (self.latent,))
        states = BITS if self.binary else None
        return VAE(self.posterior, self.likelihood, (self.latent,), self.shape, prior, states)


def _mlp(sizes: tuple[int, ...], dropout: float, seed: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(sizes)):
        layers += [nn.SiLU(), Dropout(dropout, seed + i)] if i else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


def _independent(law: td.Distribution, axes: int) -> td.Independent[td.Distribution]:
    return td.Independent(law, axes, validate_args=False)


@dataclass(frozen=True)
class VAEVariant:
    """A model of this family with the prior N(0, I): its name, and whether its pixels are 0 and 1."""

    model: str
    binary: bool

    def build(self, weights: str | os.PathLike[str] | None = None) -> VAE:
        """The autoencoder with these weights, by default the shipped ones.

        Raises:
            `InvalidArgument` where the file holds no weights of this model.
        """
        return _built(self.model, weights)

    def default_data(self) -> Tensor:
        """What the shipped weights were trained on: the digits' training images, `(1437, 1, 8, 8)`."""
        images = load_digits().train
        return binarised(images) if self.binary else images

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int = 4000,
        latent: int = 12,
        width: int = 128,
        dropout: float = 0.1,
        draws: int = 3,
        bin: float | None = None,
        report: Callable[[Progress], Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> Stored:
        """Fit the autoencoder to data.

        Args:
            data: `(n, *data_shape)`, None for the digits.
            seed: Of the random numbers.
            steps: Of the optimiser.
            latent: How many.
            width: Of both networks.
            dropout: Of both networks.
            draws: How many importance weights the bound has (1: the ELBO).
            bin: The width of the uniform noise put on the data, None for the digits' 1/8, 0 for
                data that are continuous or binary.
            report: Called after each evaluation.
            checkpoint: A file to save to and to go on from.

        Returns:
            the weights of the best bound on a held-out tenth of the rows.

        Raises:
            `InvalidArgument`, `FitFailure`, `CheckpointError`.
        """
        count("draws", draws, least=1)
        bin = (0.0 if self.binary else BIN) if bin is None else finite("bin", bin)
        rows = _training_rows(self.default_data() if data is None else data, self.binary)
        network = _fresh(
            rows,
            seed,
            binary=self.binary,
            latent=latent,
            width=width,
            dropout=dropout,
            prior_width=0,
        )
        unit = td.Independent(td.Normal(torch.zeros(latent), torch.ones(latent)), 1)

        def loss(batch: Tensor, generator: torch.Generator) -> Tensor:
            x = dequantised(batch, bin, generator)
            normals = torch.randn((draws, len(x), latent), generator=generator)
            if draws == 1:
                return negative_elbo(
                    x, network.posterior(x), network.likelihood, unit, normals, exact_kl=True
                )
            return negative_iwae(x, network.posterior(x), network.likelihood, unit, normals)

        training = TrainingRequest(self.model, data is None, seed, report, checkpoint)
        return training.fitted(
            network,
            loss,
            rows,
            Recipe(steps),
            network.settings,
            steps=steps,
            latent=latent,
            width=width,
            dropout=dropout,
            draws=draws,
            bin=bin,
        )


@dataclass(frozen=True)
class LearnedPrior:
    """The Gaussian model with a learned prior."""

    model: str

    def build(self, weights: str | os.PathLike[str] | None = None) -> VAE:
        """As `VAEVariant.build`."""
        return _built(self.model, weights)

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int = 3500,
        latent: int = 12,
        width: int = 128,
        dropout: float = 0.1,
        prior_width: int = 64,
        chain_steps: int = 20,
        step_size: float = 0.05,
        chains: int = 2000,
        refresh: float = 0.01,
        decay: float = 1e-3,
        bin: float = BIN,
        report: Callable[[Progress], Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> Stored:
        """Fit autoencoder and prior to data together.

        Arguments are as `VAEVariant.train`.

        Args:
            prior_width: Of f.
            chain_steps: Langevin steps of step_size in latents before each step of the optimiser.
            chains: Slots of the replay buffer.
            refresh: The share of the chains that start anew from N(0, I) when read.
            decay: Of `f^2`.

        Returns:
            the averaged weights of the last step.

        Raises:
            `InvalidArgument`, `FitFailure`, `CheckpointError`; `ChainFailure` where every chain
            failed.
        """
        rows = _training_rows(load_digits().train if data is None else data, binary=False)
        network = _fresh(
            rows,
            seed,
            binary=False,
            latent=latent,
            width=width,
            dropout=dropout,
            prior_width=prior_width,
        )
        prior = network.field().prior
        divergence = ContrastiveDivergence(
            ULA(step_size), chain_steps, ReplayBuffer(chains, refresh), seed
        )

        def loss(batch: Tensor, generator: torch.Generator) -> Tensor:
            x = dequantised(batch, finite("bin", bin), generator)
            q = network.posterior(x)
            z = reparametrised(q, torch.randn((len(x), latent), generator=generator))
            gap, negatives = divergence(
                prior, z
            )  # E_q E(z), through which the encoder learns, less E of the chains
            f = prior.fn.correction(torch.cat([z.detach(), negatives]))
            return (
                q.log_prob(z) - network.likelihood(z).log_prob(x) + gap + decay * f.square().mean()
            )

        recipe = Recipe(steps, held_out=0.0)
        recipe = replace(recipe, batch=min(recipe.batch, chains))
        training = TrainingRequest(self.model, data is None, seed, report, checkpoint)
        return training.fitted(
            network,
            loss,
            rows,
            recipe,
            network.settings,
            state=divergence,
            steps=steps,
            latent=latent,
            width=width,
            dropout=dropout,
            prior_width=prior_width,
            chain_steps=chain_steps,
            step_size=step_size,
            chains=chains,
            refresh=refresh,
            decay=decay,
            bin=bin,
        )


GAUSSIAN = VAEVariant("digits-vae", binary=False)


BINARY = VAEVariant("digits-vae-binary", binary=True)


LATENT_ENERGY = LearnedPrior("digits-latent-energy")


def _built(model: str, weights: str | os.PathLike[str] | None) -> VAE:
    stored = read_weights(weights, model)
    d = math.prod(stored.settings["data_shape"])
    network = stored.into(lambda: Network(stored.settings, torch.zeros(d), torch.ones(())))
    assert isinstance(network, Network)
    return network.field()


def _training_rows(data: Any, binary: bool) -> Tensor:
    rows = prepare(data, 1.0).rows
    if binary:
        check_states("data", rows, BITS)
    return rows


def _fresh(rows: Tensor, seed: int, **settings: Any) -> Network:
    mean, std = rows.flatten(1).mean(0), rows.flatten(1).var(0).mean().sqrt()
    settings = {"data_shape": list(rows.shape[1:]), **settings}
    return Network(settings, mean, std, torch.Generator().manual_seed(seed))
